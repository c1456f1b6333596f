//! Statements and views of consumer groups.
//!
//! Leaves out parsing (sql), and what members do (`consumer`). What it shows is put together from the shards, which have
//! the offsets, and the coordinator, which has the members.

use super::coordinator::GroupRow;
use super::{Receipts, TopicPartition};
use crate::engine::describe::fixed_rows;
use crate::engine::insert::{PREPARED_WAITS_MAX, wait_for_prepared};
use crate::engine::prepare::Arguments;
use crate::engine::session::Session;
use crate::engine::{Engine, Outcome, Result, ResultColumn, RowsTag, read_error, replication_error};
use crate::replication::{Append, GroupCommit, GroupOffset, GroupTake, ReplicationError, TakePartition, Taking};
use crate::storage::{PartitionView, ScanRequest};
use arrow::array::{ArrayRef, AsArray, Int32Array, Int64Array, StringArray};
use arrow::datatypes::{DataType, TimestampMicrosecondType};
use datafusion::common::ScalarValue;
use millstream_catalog::model::{GroupName, Name, Offset, PartitionId, RowCount, SqlState, Timestamp, TopicId};
use millstream_catalog::{Relation, SqlType};
use millstream_sql::SqlError;
use millstream_sql::dialect::{
    AlterGroup, CommitOffsets, CommitPosition, DropGroups, Given, GroupRef, Ident, Position, QualifiedName, ResetTo,
};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Display;
use std::sync::Arc;

/// A group as it is.
#[derive(Debug, Clone, Default)]
pub(crate) struct GroupStatus {
    /// What is committed.
    pub(crate) offsets: BTreeMap<TopicPartition, GroupOffset>,
    /// When it last took or committed anything.
    pub(crate) used_at: Option<Timestamp>,
    /// Its members.
    pub(crate) members: GroupRow,
}

impl GroupStatus {
    /// What it is doing, in Kafka's words.
    pub(crate) fn state(&self) -> &'static str {
        match (self.members.present(), self.members.is_rebalancing) {
            (0, _) => "empty",
            (_, true) => "rebalancing",
            (_, false) => "stable",
        }
    }

    /// Whether it reads a topic.
    fn has_begun(&self, topic: TopicId) -> bool {
        let first = (topic, PartitionId::new(0));
        self.offsets.range(first..).take_while(|((of, _), _)| *of == topic).any(|(_, offset)| offset.is_begun())
    }
}

/// What one group has of one partition.
#[derive(Debug, Clone)]
pub(crate) struct OffsetRow {
    pub(crate) topic: Arc<Relation>,
    pub(crate) partition: PartitionId,
    pub(crate) committed: Offset,
    /// The oldest event there is.
    pub(crate) start: Offset,
    pub(crate) end: Offset,
    pub(crate) member: Option<String>,
}

impl OffsetRow {
    /// Events that are to be read: not those that were removed.
    pub(crate) fn lag(&self) -> RowCount {
        self.end.since(self.committed.max(self.start))
    }
}

impl Engine {
    /// Every group that has members or committed offsets.
    pub(crate) fn group_statuses(&self) -> BTreeMap<GroupName, GroupStatus> {
        let mut all: BTreeMap<GroupName, GroupStatus> = BTreeMap::new();
        for shard in self.replication().shards() {
            for (name, committed) in shard.groups() {
                let status = all.entry(name).or_default();
                status.offsets.extend(committed.offsets);
                status.used_at = status.used_at.max(Some(committed.used_at));
            }
        }
        for (name, row) in self.groups().rows() {
            if !row.members.is_empty() || all.contains_key(&name) {
                all.entry(name).or_default().members = row;
            }
        }
        all
    }

    /// The partitions of a group, those of dropped topics left out. Those that a topic got since nobody has begun to read:
    /// the group reads them from their beginning.
    pub(crate) fn offset_rows(&self, status: &GroupStatus) -> Vec<OffsetRow> {
        let catalog = self.catalog();
        let readers = status.members.readers();
        let mut rows = Vec::with_capacity(status.offsets.len());
        let topics: BTreeSet<TopicId> = status.offsets.keys().map(|(topic, _)| *topic).collect();
        for topic in topics.into_iter().filter_map(|topic| catalog.relation_by_id(topic)) {
            let Ok(shard) = self.shard_of(topic) else { continue };
            let Some(partitions) = shard.partitions().topic(topic.id) else { continue };
            let is_begun = status.has_begun(topic.id);
            for found in partitions.iter() {
                let (partition, view) = (found.id(), found.view());
                let (start, end) = (view.offset_start(), view.offset_end());
                let stored = status.offsets.get(&(topic.id, partition)).map(|stored| stored.position.offset);
                let Some(committed) = stored.or(is_begun.then_some(start)) else { continue };
                let member = readers.get(&(topic.id, partition)).cloned();
                rows.push(OffsetRow { topic: Arc::clone(topic), partition, committed, start, end, member });
            }
        }
        rows
    }

    fn group(&self, group: &GroupRef) -> Result<GroupStatus> {
        self.group_statuses().remove(&group.name).ok_or_else(|| {
            let message = format!("consumer group \"{}\" does not exist", group.name);
            SqlError::new(SqlState::UndefinedObject, message).at(group.position)
        })
    }

    /// 55006 while a group has members.
    fn check_empty(&self, group: &GroupRef) -> Result<()> {
        match self.groups().present(&group.name) {
            0 => Ok(()),
            members => {
                let message = format!("consumer group \"{}\" has members", group.name);
                Err(SqlError::new(SqlState::ObjectInUse, message)
                    .detail(format!("{members} read for it: see millstream.consumer_group_members"))
                    .hint("end their subscriptions first")
                    .at(group.position))
            }
        }
    }

    /// Forgets groups nobody has used since `oldest`, and keeps those that have members.
    pub(crate) async fn expire_groups(&self, oldest: Timestamp, now: Timestamp) {
        for shard in self.replication().shards() {
            let groups = shard.groups().into_iter();
            let (used, unused): (Vec<_>, Vec<_>) = groups
                .filter(|(_, committed)| committed.used_at < oldest)
                .map(|(name, _)| name)
                .partition(|name| self.groups().present(name) > 0);
            if !unused.is_empty() {
                tracing::info!(groups = ?unused, "consumer groups that nobody used are forgotten");
                unused.iter().for_each(|group| self.groups().forget(group));
            }
            for group in unused {
                if let Err(error) = shard.drop_groups(vec![group], Some(oldest)).await {
                    tracing::warn!(%error, "a consumer group is forgotten later");
                }
            }
            for group in used {
                let take = GroupTake { group, now, partitions: Vec::new() };
                if let Err(error) = shard.take_partitions(take).await {
                    tracing::warn!(%error, "a consumer group is not noted to be used");
                }
            }
        }
    }
}

/// Columns of `DESCRIBE CONSUMER GROUP`.
pub(crate) fn group_columns() -> Vec<ResultColumn> {
    let column = |(name, sql_type): (&str, SqlType)| ResultColumn { name: name.to_owned(), sql_type, source: None };
    let columns = [
        ("member", SqlType::Text),
        ("client", SqlType::Text),
        ("topic", SqlType::Text),
        ("partition", SqlType::Integer),
        ("committed_offset", SqlType::BigInt),
        ("end_offset", SqlType::BigInt),
        ("lag", SqlType::BigInt),
    ];
    columns.into_iter().map(column).collect()
}

fn long(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

/// Tries again while a transaction over several shards has the group's offsets.
async fn unheld<T, F: Future<Output = std::result::Result<T, ReplicationError>>>(attempt: impl Fn() -> F) -> Result<T> {
    let mut waits = 0;
    loop {
        match attempt().await {
            Err(ReplicationError::GroupHeld(_)) if waits < PREPARED_WAITS_MAX => wait_for_prepared(&mut waits).await,
            done => return done.map_err(replication_error),
        }
    }
}

impl Session {
    /// `DESCRIBE CONSUMER GROUP`
    pub(crate) fn describe_group(&self, group: &GroupRef) -> Result<Outcome> {
        let status = self.engine.group(group)?;
        let rows = self.engine.offset_rows(&status);
        let client = |name: &str| {
            let member = status.members.members.iter().find(|member| member.name() == name);
            member.map(|member| member.info.client.clone())
        };
        let reads = |name: &String| rows.iter().any(|row| row.member.as_ref() == Some(name));
        let idle: Vec<String> =
            status.members.members.iter().map(|member| member.name()).filter(|name| !reads(name)).collect();
        let none = idle.len();
        let members: Vec<Option<String>> =
            rows.iter().map(|row| row.member.clone()).chain(idle.into_iter().map(Some)).collect();
        let clients = members.iter().map(|name| name.as_deref().and_then(client)).collect::<StringArray>();
        let longs = |of: fn(&OffsetRow) -> u64| -> ArrayRef {
            Arc::new(rows.iter().map(|row| Some(long(of(row)))).chain((0..none).map(|_| None)).collect::<Int64Array>())
        };
        let topics = rows.iter().map(|row| Some(row.topic.name.to_string())).chain((0..none).map(|_| None));
        let partitions =
            rows.iter().map(|row| i32::try_from(row.partition.value()).ok()).chain((0..none).map(|_| None));
        let arrays: Vec<ArrayRef> = vec![
            Arc::new(members.into_iter().collect::<StringArray>()),
            Arc::new(clients),
            Arc::new(topics.collect::<StringArray>()),
            Arc::new(partitions.collect::<Int32Array>()),
            longs(|row| row.committed.value()),
            longs(|row| row.end.value()),
            longs(|row| row.lag().value()),
        ];
        fixed_rows(group_columns(), arrays, RowsTag::Plain("DESCRIBE")).map(Outcome::Rows)
    }

    /// `COMMIT OFFSETS`
    pub(crate) async fn commit_offsets(&mut self, commit: &CommitOffsets, arguments: Arguments) -> Result<Outcome> {
        match commit {
            CommitOffsets::Cursor(cursor) => self.commit_cursor(cursor).await?,
            CommitOffsets::Position(position) => self.commit_position(Place::of(position, &arguments)?).await?,
        }
        Ok(Outcome::Command { tag: "COMMIT OFFSETS".to_owned() })
    }

    async fn commit_cursor(&mut self, cursor: &Ident) -> Result<()> {
        let receipts = self.cursors.receipts(cursor.as_str()).map_err(|error| error.at(cursor.position))?;
        let Some(receipts) = receipts else {
            let message = format!("cursor \"{cursor}\" is not of a consumer group");
            return Err(SqlError::new(SqlState::ObjectNotInPrerequisiteState, message)
                .hint("declare it FOR SELECT … EMIT CHANGES WITH (group = '…')")
                .at(cursor.position));
        };
        match self.is_consumed(true) {
            true => self.fetch_more(Some(&receipts)).await?,
            false => {
                if let Some(consumer) = receipts.consumer() {
                    consumer.commit_handed().await?;
                }
            }
        }
        Ok(())
    }

    /// What has partitions under a name.
    fn topic(&self, name: &QualifiedName) -> Result<Arc<Relation>> {
        if self.view_named(name).is_some() {
            let message = format!("\"{name}\" is a view, which has no offsets");
            return Err(SqlError::new(SqlState::WrongObjectType, message)
                .hint("name what the view reads: DESCRIBE CONSUMER GROUP lists it")
                .at(name.position));
        }
        self.relation(name)
    }

    async fn commit_position(&mut self, commit: Place) -> Result<()> {
        let topic = self.topic(&commit.topic)?;
        let place = (topic.id, commit.partition);
        let shard = Arc::clone(self.engine.shard_of(&topic)?);
        let end = partition_of(&self.engine, &topic, commit.partition, &commit.topic)?.offset_end();
        if commit.offset > end {
            let message = format!("offset {} is above the end of \"{}\"", commit.offset, topic.name);
            return Err(SqlError::new(SqlState::OffsetAboveLogEnd, message)
                .detail(format!("partition {} ends at {end}", commit.partition))
                .hint("OFFSET is the next to read: at most the end, where nothing is read until more is written")
                .at(commit.position));
        }
        let (group, position) = (commit.group, commit.offset.into());
        let mut commit = GroupCommit { group, topic: place.0, partition: place.1, epoch: None, position };
        if self.transaction.is_open() {
            // Refused at the end if another member took the partition meanwhile.
            let stored = shard.group(&commit.group).and_then(|group| group.offsets.get(&place).copied());
            commit.epoch = stored.map(|stored| stored.epoch);
            self.transaction.hold_commit(shard.id(), commit);
            return Ok(());
        }
        let durability = self.settings.durability().unwrap_or(topic.options.durability);
        let now = self.engine.clock().now();
        let append = Append { commits: vec![commit], now, durability, ..Append::default() };
        self.append_to(shard.id(), append).await.map(drop)
    }

    /// `ALTER CONSUMER GROUP … RESET OFFSETS`
    pub(crate) async fn alter_group(&mut self, alter: &AlterGroup) -> Result<Outcome> {
        self.check_no_block("ALTER CONSUMER GROUP")?;
        self.engine.check_empty(&alter.group)?;
        let topics: Vec<Arc<Relation>> = match &alter.topic {
            Some(name) => vec![self.topic(name)?],
            None => {
                let status = self.engine.group(&alter.group)?;
                let mut ids: Vec<_> = status.offsets.keys().map(|(topic, _)| *topic).collect();
                ids.dedup();
                let catalog = self.engine.catalog();
                ids.into_iter().filter_map(|id| catalog.relation_by_id(id).cloned()).collect()
            }
        };
        for topic in topics {
            let ids: Vec<PartitionId> = match (alter.partition, &alter.topic) {
                (Some(partition), Some(name)) => {
                    partition_of(&self.engine, &topic, partition, name)?;
                    vec![partition]
                }
                _ => topic.partitions().collect(),
            };
            let positions = self.reset_topic(&alter.group, &topic, ids, alter.to).await?;
            let ResetTo::Offset(wanted) = alter.to else { continue };
            for (partition, offset) in positions.into_iter().filter(|(_, offset)| *offset != wanted) {
                let message =
                    format!("partition {partition} of \"{}\" has no offset {wanted}: set to {offset}", topic.name);
                self.notify("NOTICE", SqlState::SuccessfulCompletion, message);
            }
        }
        Ok(Outcome::Command { tag: "ALTER CONSUMER GROUP".to_owned() })
    }

    /// Sets a group's offsets in partitions of a topic, to what there is: an offset that was removed is the oldest, one above
    /// the end is the end. Which they are.
    async fn reset_topic(
        &self,
        group: &GroupRef,
        topic: &Arc<Relation>,
        ids: Vec<PartitionId>,
        to: ResetTo,
    ) -> Result<Vec<(PartitionId, Offset)>> {
        let shard = Arc::clone(self.engine.shard_of(topic)?);
        let (partitions, relation) = (shard.partitions(), Arc::clone(topic));
        let positions = self.engine.compute.run(async move {
            let mut positions = Vec::with_capacity(ids.len());
            for partition in ids {
                let Some(found) = partitions.get(relation.id, partition) else { continue };
                let view = found.view();
                let offset = match to {
                    ResetTo::Earliest => view.offset_start(),
                    ResetTo::Latest => view.offset_end(),
                    ResetTo::Offset(offset) => offset.max(view.offset_start()).min(view.offset_end()),
                    ResetTo::Timestamp(time) => first_since(&relation, &view, time)?,
                };
                positions.push((partition, offset));
            }
            Ok(positions)
        });
        let positions = positions.await?;
        let set = |(partition, offset): &(PartitionId, Offset)| {
            let (topic, taking) = (topic.id, Taking::Set(*offset));
            TakePartition { topic, partition: *partition, taking }
        };
        let partitions = positions.iter().map(set).collect();
        let take = GroupTake { group: group.name.clone(), now: self.engine.clock().now(), partitions };
        unheld(|| shard.take_partitions(take.clone())).await?;
        Ok(positions)
    }

    /// `DROP CONSUMER GROUP`
    pub(crate) async fn drop_groups(&mut self, drop: &DropGroups) -> Result<Outcome> {
        self.check_no_block("DROP CONSUMER GROUP")?;
        for group in &drop.groups {
            match self.engine.group(group) {
                Err(error) if !drop.if_exists => return Err(error),
                Err(_) => {
                    let message = format!("consumer group \"{}\" does not exist, skipping", group.name);
                    self.notify("NOTICE", SqlState::SuccessfulCompletion, message);
                }
                Ok(_) => self.engine.check_empty(group)?,
            }
        }
        let names: Vec<GroupName> = drop.groups.iter().map(|group| group.name.clone()).collect();
        for shard in self.engine.replication().shards() {
            if names.iter().any(|name| shard.group(name).is_some()) {
                unheld(|| shard.drop_groups(names.clone(), None)).await?;
            }
        }
        names.iter().for_each(|name| self.engine.groups().forget(name));
        Ok(Outcome::Command { tag: "DROP CONSUMER GROUP".to_owned() })
    }

    fn check_no_block(&self, word: &str) -> Result<()> {
        match self.transaction.is_explicit() {
            true => Err(SqlError::new(
                SqlState::ActiveSqlTransaction,
                format!("{word} cannot run inside a transaction block"),
            )),
            false => Ok(()),
        }
    }

    /// Rows of a member are fetched: within a transaction they are committed with it. `ends` unless the statement goes on
    /// for ever, and so cannot be part of a text that commits at its end. Statements before one Sync are no transaction of
    /// the client's: whether its Sync has come yet says nothing about what it has taken.
    pub(crate) fn consume(&mut self, receipts: Option<&Receipts>, ends: bool) {
        if let Some(receipts) = receipts
            && self.is_consumed(ends)
        {
            self.transaction.consume(receipts.member());
        }
    }

    /// Rows of a cursor or portal go on: within a transaction they are committed with it. What its client took before the
    /// transaction is committed before it: no commit of less may come behind the transaction's own.
    ///
    /// # Errors
    /// When the log cannot be written.
    pub async fn fetch_more(&mut self, receipts: Option<&Receipts>) -> Result<()> {
        let Some(receipts) = receipts.filter(|_| self.is_consumed(true)) else { return Ok(()) };
        let member = receipts.member();
        if !member.is_in_transaction() {
            member.commit().await?;
        }
        self.transaction.consume(member);
        Ok(())
    }

    fn is_consumed(&self, ends: bool) -> bool {
        let is_part = match self.transaction.is_pipeline() {
            true => self.transaction.has_writes(),
            false => self.transaction.is_open() && ends,
        };
        self.transaction.is_explicit() || is_part
    }
}

/// What `COMMIT OFFSETS (…)` says, with its parameters.
struct Place {
    group: GroupName,
    topic: QualifiedName,
    partition: PartitionId,
    offset: Offset,
    /// Where the offset stands.
    position: Position,
}

impl Place {
    /// # Errors
    /// 22004 for NULL, 22023 for what is no name or number of its kind, 42P02 where there is no such parameter.
    fn of(commit: &CommitPosition, arguments: &Arguments) -> Result<Self> {
        let invalid = |what: &dyn Display, place: &Position| {
            SqlError::new(SqlState::InvalidParameterValue, what.to_string()).at(*place)
        };
        let group = match &commit.group {
            Given::Value(group) => group.name.clone(),
            Given::Param(index, place) => {
                GroupName::new(text_of(arguments, *index, *place)?).map_err(|error| invalid(&error, place))?
            }
        };
        let topic = match &commit.topic {
            Given::Value(topic) => topic.clone(),
            Given::Param(index, place) => {
                let name = Name::new(text_of(arguments, *index, *place)?).map_err(|error| invalid(&error, place))?;
                QualifiedName { schema: None, name, position: *place }
            }
        };
        let number = |index: &usize, place: &Position, last: u64| {
            let value = value_of(arguments, *index, *place, &DataType::Int64)?;
            let ScalarValue::Int64(Some(number)) = value else { return Err(invalid(&"not a number", place)) };
            let number = u64::try_from(number).ok().filter(|number| *number <= last);
            number
                .ok_or_else(|| invalid(&format!("parameter ${} is a whole number from 0 to {last}", index + 1), place))
        };
        let partition = match &commit.partition {
            Given::Value(partition) => *partition,
            Given::Param(index, place) => {
                let number = number(index, place, i32::MAX.unsigned_abs().into())?;
                PartitionId::new(u32::try_from(number).unwrap_or(u32::MAX))
            }
        };
        let offset = match &commit.offset {
            Given::Value(offset) => *offset,
            Given::Param(index, place) => Offset::new(number(index, place, i64::MAX.unsigned_abs())?),
        };
        Ok(Self { group, topic, partition, offset, position: commit.position })
    }
}

/// The value of a parameter that stands at `place`, as a number or a text.
fn value_of(arguments: &Arguments, index: usize, place: Position, data_type: &DataType) -> Result<ScalarValue> {
    let number = index + 1;
    let missing = || SqlError::new(SqlState::UndefinedParameter, format!("there is no parameter ${number}")).at(place);
    let value = arguments.values.get(index).ok_or_else(missing)?;
    if value.is_null() {
        let message = format!("parameter ${number} is NULL");
        return Err(SqlError::new(SqlState::NullValueNotAllowed, message).at(place));
    }
    let given = value.data_type();
    let is_fit = given.is_integer() || matches!(given, DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View);
    let cast = if is_fit { value.cast_to(data_type).ok().filter(|value| !value.is_null()) } else { None };
    cast.ok_or_else(|| {
        let wanted = if data_type.is_integer() { "whole number" } else { "name" };
        SqlError::new(SqlState::InvalidParameterValue, format!("parameter ${number} is no {wanted}")).at(place)
    })
}

fn text_of(arguments: &Arguments, index: usize, place: Position) -> Result<String> {
    match value_of(arguments, index, place, &DataType::Utf8)? {
        ScalarValue::Utf8(Some(text)) => Ok(text),
        other => Err(SqlError::internal(format!("a text is {}", other.data_type()))),
    }
}

fn partition_of(
    engine: &Engine,
    topic: &Relation,
    partition: PartitionId,
    name: &QualifiedName,
) -> Result<Arc<PartitionView>> {
    let found = engine.shard_of(topic)?.partitions().get(topic.id, partition);
    found.map(|partition| partition.view()).ok_or_else(|| {
        let message = format!("\"{}\" has no partition {partition}", topic.name);
        let last = topic.options.partitions.saturating_sub(1);
        SqlError::new(SqlState::InvalidParameterValue, message).detail(format!("it has 0 to {last}")).at(name.position)
    })
}

/// The first event of `time` or later; the end when there is none.
fn first_since(relation: &Relation, view: &PartitionView, time: Timestamp) -> Result<Offset> {
    let is_before = |segment: &&Arc<crate::storage::Segment>| {
        segment.damage().is_none() && segment.rowtime().is_some_and(|range| range.last < time)
    };
    let passed = view.segments().iter().take_while(is_before).last();
    let from = passed.map_or(view.offset_start(), |segment| segment.offset_end());
    let schema = relation.topic_schema();
    let at = schema.index_of(millstream_catalog::schema::ROWTIME);
    let at = at.map_err(|error| SqlError::internal(error.to_string()))?;
    let request = ScanRequest {
        offsets: from..view.offset_end(),
        schema: Some(schema),
        projection: Some(vec![at]),
        ..ScanRequest::all()
    };
    for stored in view.scan(request) {
        let stored = stored.map_err(|error| read_error(&relation.name, error))?;
        let times = stored.batch.column(0).as_primitive::<TimestampMicrosecondType>();
        if let Some(row) = times.values().iter().position(|at| *at >= time.micros()) {
            return Ok(match &stored.offsets {
                Some(offsets) => Offset::new(offsets.value(row) as u64),
                None => stored.offset_start.plus(RowCount::of(row)),
            });
        }
    }
    Ok(view.offset_end())
}
