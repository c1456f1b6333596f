//! A log of events of several relations, and the two ways to run a query over it: once over all of it, and continuously
//! in steps with restarts. Both give the rows as PostgreSQL shows them, so that they can be compared.

use super::{Files, Random};
use crate::dialect::{Select, Statement};
use crate::error::SqlError;
use crate::exec::execute;
use crate::plan::{ContinuousPlan, PlanContext, PlanSettings, plan_continuous, plan_select};
use crate::ports::{BatchIter, RelationSource, ScanColumn, ScanRequest, ScanSummary};
use crate::stream::{InputBatch, Pipeline, StepInput};
use crate::types::{ColumnBuilder, ColumnEncoder};
use arrow::array::{
    ArrayRef, AsArray, BooleanArray, Int32Array, Int64Array, RecordBatch, RecordBatchOptions,
    TimestampMicrosecondArray, UInt32Array,
};
use arrow::compute::take_record_batch;
use arrow::datatypes::{Field, Schema as ArrowSchema, SchemaRef};
use futures::StreamExt;
use millstream_catalog::command::Command;
use millstream_catalog::model::{ByteSize, Name, Offset, PartitionId, ShardId, Timestamp, TopicId};
use millstream_catalog::{
    Column, QueryOptions, Relation, RelationKind, Schema, Snapshot, SqlType, State, TopicOptions, apply,
};
use std::collections::{BTreeMap, HashMap};
use std::ops::Range;
use std::sync::Arc;

/// The start of 2024, in seconds.
pub(super) const YEAR_2024: i64 = 1_704_067_200;

/// An event of a relation.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct LogEvent {
    pub(super) relation: usize,
    pub(super) partition: u32,
    /// The columns as text, `None` for NULL.
    pub(super) cells: Vec<Option<String>>,
    /// Event time, in microseconds.
    pub(super) rowtime: i64,
    /// For tables: the row of this key went away.
    pub(super) is_gone: bool,
}

/// Events of all relations, in the order of commit.
#[derive(Debug)]
pub(super) struct Log {
    pub(super) relations: Vec<Arc<Relation>>,
    /// The stored rows of each, in the order of commit.
    pub(super) stored: Vec<RecordBatch>,
    /// The partition and the offset of each of them.
    places: Vec<Vec<(u32, i64)>>,
    /// The relation of each event.
    pub(super) order: Vec<usize>,
    /// Whether it has the deletion of a row that is not there, as compaction may leave one.
    is_compacted: bool,
}

/// A relation with `columns`: name, type, whether it is of the key.
pub(super) fn relation(id: u64, name: &str, kind: RelationKind, columns: &[(&str, SqlType, bool)]) -> Relation {
    let column = |(name, sql_type, is_key): &(&str, SqlType, bool)| Column {
        name: Name::new(*name).unwrap(),
        sql_type: sql_type.clone(),
        is_nullable: !is_key,
        is_key: *is_key,
        default: None,
        is_hidden: false,
        is_headers: false,
    };
    Relation {
        id: TopicId::new(id),
        name: Name::new(name).unwrap(),
        kind,
        schema: Schema { columns: columns.iter().map(column).collect() },
        timestamp: None,
        watermark_delay: None,
        options: TopicOptions::default(),
        shard: ShardId::new(1),
        query: None,
        created_at: Timestamp::from_micros(0),
        sql: String::new(),
        fills: Default::default(),
        row_ids: None,
        is_materialized: false,
    }
}

fn stored(relation: &Relation, events: &[&LogEvent]) -> RecordBatch {
    let schema = relation.stored_schema();
    let column = |(at, column): (usize, &Column)| {
        let mut builder = ColumnBuilder::new(&column.sql_type, events.len());
        for event in events {
            match &event.cells[at] {
                None => builder.append_null(),
                Some(cell) => builder.append_text(cell.as_bytes()).unwrap_or_else(|error| panic!("{cell}: {error:?}")),
            }
        }
        builder.finish()
    };
    let mut columns: Vec<ArrayRef> = relation.schema.columns.iter().enumerate().map(column).collect();
    let times = TimestampMicrosecondArray::from_iter_values(events.iter().map(|event| event.rowtime));
    columns.push(Arc::new(times.with_timezone("UTC")));
    if relation.has_tombstones() {
        columns.push(Arc::new(events.iter().map(|event| Some(event.is_gone)).collect::<BooleanArray>()));
    }
    RecordBatch::try_new(schema, columns).unwrap()
}

impl Log {
    pub(super) fn new(relations: Vec<Relation>, events: &[LogEvent]) -> Self {
        let of = |at: usize| -> Vec<&LogEvent> { events.iter().filter(|event| event.relation == at).collect() };
        let places = |at: usize| {
            let mut next: HashMap<u32, i64> = HashMap::new();
            let place = |event: &&LogEvent| {
                let offset = next.entry(event.partition).or_insert(-1);
                *offset += 1;
                (event.partition, *offset)
            };
            of(at).iter().map(place).collect()
        };
        let is_stray = |(at, event): (usize, &LogEvent)| {
            let columns = &relations[event.relation].schema.columns;
            let key = |event: &LogEvent| -> Vec<Option<String>> {
                let cells = event.cells.iter().zip(columns);
                cells.filter(|(_, column)| column.is_key).map(|(cell, _)| cell.clone()).collect()
            };
            let is_same = |other: &&LogEvent| other.relation == event.relation && key(other) == key(event);
            event.is_gone && events[..at].iter().rev().find(is_same).is_none_or(|last| last.is_gone)
        };
        Self {
            is_compacted: events.iter().enumerate().any(is_stray),
            stored: relations.iter().enumerate().map(|(at, relation)| stored(relation, &of(at))).collect(),
            places: (0..relations.len()).map(places).collect(),
            order: events.iter().map(|event| event.relation).collect(),
            relations: relations.into_iter().map(Arc::new).collect(),
        }
    }

    /// The stored rows of one stream, in one partition.
    pub(super) fn of_one(relation: Relation, stored: RecordBatch) -> Self {
        let rows = stored.num_rows();
        Self {
            relations: vec![Arc::new(relation)],
            stored: vec![stored],
            places: vec![(0..rows as i64).map(|offset| (0, offset)).collect()],
            order: vec![0; rows],
            is_compacted: false,
        }
    }

    /// What the planner knows and reads of this log.
    pub(super) fn context(self: &Arc<Self>) -> PlanContext {
        let mut state = State::default();
        for relation in &self.relations {
            let relation = Box::new(relation.as_ref().clone());
            apply(&mut state, Command::CreateRelation { relation, query: None }).unwrap();
        }
        PlanContext {
            catalog: Snapshot::new(state),
            source: Arc::clone(self) as _,
            now: Timestamp::from_micros(0),
            settings: Arc::new(PlanSettings { target_partitions: 1, ..PlanSettings::default() }),
        }
    }

    /// The rows of a relation as they are at the end: all events, or the current rows.
    fn current(&self, at: usize) -> Vec<u32> {
        let (relation, stored) = (&self.relations[at], &self.stored[at]);
        if !relation.has_tombstones() {
            return (0..stored.num_rows() as u32).collect();
        }
        let columns = relation.schema.columns.iter().enumerate();
        let keys: Vec<usize> = columns.filter(|(_, column)| column.is_key).map(|(at, _)| at).collect();
        let types: Vec<SqlType> = keys.iter().map(|at| relation.schema.columns[*at].sql_type.clone()).collect();
        let keys = rows(&stored.project(&keys).unwrap(), &types);
        let gone = stored.columns().last().unwrap().as_boolean();
        let mut last: BTreeMap<Vec<String>, u32> = BTreeMap::new();
        for (row, key) in keys.into_iter().enumerate() {
            match gone.value(row) {
                true => drop(last.remove(&key)),
                false => drop(last.insert(key, row as u32)),
            }
        }
        last.into_values().collect()
    }

    /// The relations that a plan reads.
    pub(super) fn sources(&self, plan: &ContinuousPlan) -> Vec<usize> {
        let position =
            |source: &Arc<Relation>| self.relations.iter().position(|relation| relation.name == source.name).unwrap();
        plan.sources.iter().map(position).collect()
    }

    /// The events of `range` that `pipeline` reads; `next` are the rows of each relation that come next.
    pub(super) fn batches(
        &self,
        range: Range<usize>,
        sources: &[usize],
        next: &mut [usize],
        pipeline: &Pipeline,
    ) -> Vec<InputBatch> {
        let mut batches = Vec::new();
        for of_one in self.order[range].chunk_by(|a, b| a == b) {
            let (relation, start) = (of_one[0], next[of_one[0]]);
            next[relation] += of_one.len();
            let Some(source) = sources.iter().position(|source| *source == relation) else { continue };
            let mut row = start;
            for places in self.places[relation][start..start + of_one.len()].chunk_by(|a, b| a.0 == b.0) {
                let batch = self.stored[relation].slice(row, places.len()).project(pipeline.projection(source));
                row += places.len();
                batches.push(InputBatch {
                    source,
                    partition: PartitionId::new(places[0].0),
                    offset_start: Offset::new(places[0].1 as u64),
                    offsets: None,
                    batch: batch.unwrap(),
                });
            }
        }
        batches
    }
}

impl RelationSource for Log {
    fn scan(&self, relation: &Arc<Relation>, request: ScanRequest) -> Result<Vec<BatchIter>, SqlError> {
        let at = self.relations.iter().position(|other| other.name == relation.name).unwrap();
        let current = self.current(at);
        let batch = take_record_batch(&self.stored[at], &UInt32Array::from(current.clone())).unwrap();
        let place = |row: &u32| self.places[at][*row as usize];
        let column = |column: &ScanColumn| -> ArrayRef {
            match column {
                ScanColumn::Stored(at) => Arc::clone(batch.column(*at)),
                ScanColumn::RowPartition => {
                    Arc::new(Int32Array::from_iter_values(current.iter().map(|row| place(row).0 as i32)))
                }
                ScanColumn::RowOffset => Arc::new(Int64Array::from_iter_values(current.iter().map(|row| place(row).1))),
            }
        };
        let columns: Vec<ArrayRef> = request.projection.iter().map(column).collect();
        let field = |(at, column): (usize, &ArrayRef)| Field::new(format!("c{at}"), column.data_type().clone(), true);
        let schema = ArrowSchema::new(columns.iter().enumerate().map(field).collect::<Vec<_>>());
        let options = RecordBatchOptions::new().with_row_count(Some(batch.num_rows()));
        let batch = RecordBatch::try_new_with_options(Arc::new(schema), columns, &options).unwrap();
        Ok(vec![Box::new(std::iter::once(Ok(batch)))])
    }
    fn summary(&self, _: &Arc<Relation>, _: &ScanRequest) -> Option<ScanSummary> {
        None
    }
    fn system_views(&self) -> Vec<(String, SchemaRef)> {
        Vec::new()
    }
    fn system_view(&self, name: &str) -> Result<RecordBatch, SqlError> {
        Err(SqlError::internal(format!("no view {name}")))
    }
}

pub(super) fn select(sql: &str) -> Select {
    parse(sql).unwrap_or_else(|error| panic!("{sql}: {error:?}"))
}

fn parse(sql: &str) -> Result<Select, SqlError> {
    match crate::dialect::parse(sql)?.remove(0).statement {
        Statement::Select(select) => Ok(*select),
        other => panic!("{sql}: {other:?}"),
    }
}

/// Rows as PostgreSQL shows them.
pub(super) fn rows(batch: &RecordBatch, types: &[SqlType]) -> Vec<Vec<String>> {
    let encoders = batch.columns().iter().zip(types);
    let encoders: Vec<_> = encoders.map(|(array, sql_type)| ColumnEncoder::new(array.as_ref(), sql_type)).collect();
    let cell = |encoder: &ColumnEncoder, row: usize| {
        let mut text = Vec::new();
        match encoder.text(row, &mut text) {
            true => String::from_utf8(text).unwrap(),
            false => "∅".to_owned(),
        }
    };
    (0..batch.num_rows()).map(|row| encoders.iter().map(|encoder| cell(encoder, row)).collect()).collect()
}

/// The rows of `sql`, run once.
pub(super) async fn bounded(context: &PlanContext, sql: &str) -> Result<Vec<Vec<String>>, SqlError> {
    let planned = plan_select(context, &parse(sql)?, &[])?;
    let types: Vec<SqlType> = planned.columns.iter().map(|column| column.sql_type.clone()).collect();
    let mut stream = execute(context, &planned, Vec::new()).await?;
    let mut found = Vec::new();
    while let Some(batch) = stream.next().await {
        found.extend(rows(&batch?, &types));
    }
    Ok(found)
}

/// What a query writes, as a reader of its sink sees it.
#[derive(Default)]
struct Kept {
    stream: Vec<Vec<String>>,
    table: BTreeMap<Vec<String>, Vec<String>>,
}

impl Kept {
    fn take(&mut self, pipeline: &Pipeline, stored: &RecordBatch, is_compacted: bool) {
        assert_eq!(stored.schema(), pipeline.output().stored_schema());
        let columns = &pipeline.output().columns;
        let types: Vec<SqlType> = columns.iter().map(|column| column.sql_type.clone()).collect();
        let all = rows(&stored.project(&(0..types.len()).collect::<Vec<_>>()).unwrap(), &types);
        let tombstones = stored.column_by_name("rowtombstone").map(|column| column.as_boolean().clone());
        for (row, cells) in all.into_iter().enumerate() {
            let keys = columns.iter().zip(&cells).filter(|(column, _)| column.is_key);
            let key: Vec<String> = keys.map(|(_, cell)| cell.clone()).collect();
            let shown = cells[..pipeline.output().selected].to_vec();
            match tombstones.as_ref().map(|tombstones| tombstones.value(row)) {
                None => self.stream.push(shown),
                Some(true) => {
                    let is_there = self.table.remove(&key).is_some();
                    // Without state nobody knows whether a row that came and went in one step was there before.
                    let may_miss = is_compacted || !pipeline.is_stateful();
                    assert!(is_there || may_miss, "nothing to remove at {key:?}");
                }
                Some(false) => drop(self.table.insert(key, shown)),
            }
        }
    }
}

/// How many events a step takes, and whether the pipeline is made anew after it.
pub(super) type Cut = (usize, bool);

/// Steps of up to `most` events, and a restart after every third or so.
pub(super) fn cuts(random: &mut Random, most: u64) -> impl Iterator<Item = Cut> {
    std::iter::repeat_with(move || (random.below(most) as usize, random.below(3) == 0))
}

/// Runs `sql` over the log in the steps of `cuts`; the rows of its sink, and how many events were late.
pub(super) fn continuous(
    context: &PlanContext,
    sql: &str,
    log: &Log,
    cuts: impl Iterator<Item = Cut>,
) -> Result<(Vec<Vec<String>>, u64), SqlError> {
    continuous_in(context, sql, log, cuts, None)
}

/// The same, with state in parts, most of which are in `files`.
pub(super) fn continuous_in(
    context: &PlanContext,
    sql: &str,
    log: &Log,
    mut cuts: impl Iterator<Item = Cut>,
    files: Option<&Arc<Files>>,
) -> Result<(Vec<Vec<String>>, u64), SqlError> {
    let plan = plan_continuous(context, &parse(sql)?, &QueryOptions::default())?;
    let make = || {
        let mut pipeline = Pipeline::plan(&plan)?;
        if let Some(files) = files {
            pipeline.set_store(Arc::<Files>::clone(files));
        }
        Ok::<_, SqlError>(pipeline)
    };
    let mut pipeline = make()?;
    let sources = log.sources(&plan);
    let (mut kept, mut late, mut start, mut next) = (Kept::default(), 0, 0, vec![0; log.relations.len()]);
    loop {
        let (count, is_restart) = cuts.next().unwrap_or((log.order.len(), false));
        let count = count.min(log.order.len() - start);
        pipeline.keep_within(ByteSize::new([0, 0, 4_000, 100_000][start % 4]))?;
        let batches = log.batches(start..start + count, &sources, &mut next, &pipeline);
        let output = pipeline.step(&StepInput { batches, idle: &[], now: Timestamp::from_micros(7) })?;
        late += output.late_rows.value();
        if let Some(stored) = &output.batch {
            kept.take(&pipeline, stored, log.is_compacted);
        }
        if is_restart {
            let saved = pipeline.save().unwrap();
            let mut restored = make()?;
            restored.restore(&saved.bytes).unwrap_or_else(|error| panic!("{sql}: {error:?}"));
            pipeline = restored;
        }
        start += count;
        if start == log.order.len() {
            kept.stream.extend(kept.table.into_values());
            return Ok((kept.stream, late));
        }
    }
}

/// Whether the query looks rows of a table up, as they are at the moment.
pub(super) fn looks_up(context: &PlanContext, sql: &str) -> bool {
    let plan = parse(sql).and_then(|select| plan_continuous(context, &select, &QueryOptions::default()));
    let pipeline = plan.and_then(|plan| Pipeline::plan(&plan));
    pipeline.is_ok_and(|pipeline| pipeline.operators_shown().iter().any(|line| line.text.contains(": lookup of ")))
}

/// Where the two runs of a query differ; `is_near` tells the rows that are compared.
pub(super) async fn difference(
    log: &Arc<Log>,
    sql: &str,
    random: &mut Random,
    is_near: impl Fn(&Vec<String>) -> bool,
) -> Option<String> {
    let context = log.context();
    let expected = bounded(&context, sql.trim_end_matches("EMIT FINAL")).await;
    let found = continuous(&context, sql, log, cuts(random, 40));
    let files = Arc::new(Files::default());
    let parted = continuous_in(&context, sql, log, cuts(random, 40), Some(&files));
    let (Ok((mut found, late)), Ok(mut expected)) = (found.clone(), expected.clone()) else {
        let (found, expected) = (found.err(), expected.err());
        return Some(format!("{sql}\n continuously {found:?}\n bounded {expected:?}"));
    };
    expected.retain(&is_near);
    found.retain(&is_near);
    expected.sort();
    found.sort();
    match parted {
        Err(error) => return Some(format!("{sql}\n in parts {error:?}")),
        Ok((_, parted_late)) if parted_late != late => {
            return Some(format!("{sql}\n in parts {parted_late} late, whole {late}"));
        }
        Ok((mut rows, _)) => {
            rows.retain(&is_near);
            rows.sort();
            if rows != expected && found == expected {
                let first = rows.iter().zip(&expected).find(|(found, expected)| found != expected);
                return Some(format!("{sql}\n in parts {} rows, expected {}; {first:?}", rows.len(), expected.len()));
            }
        }
    }
    if files.count() > 0 {
        return Some(format!("{sql}\n {} files of state are left", files.count()));
    }
    if found == expected && late == 0 {
        return None;
    }
    let first = found.iter().zip(&expected).find(|(found, expected)| found != expected);
    Some(format!("{sql}\n {} rows, expected {}, {late} late; {first:?}", found.len(), expected.len()))
}
