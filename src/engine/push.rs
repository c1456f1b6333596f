//! Push queries: subscriptions that deliver every row the moment it is committed.
//!
//! A pull chain from the client: nothing is read ahead of it, so a slow client costs its position and one
//! batch. New rows are computed where they are sent, a backlog on the query threads, so that it holds up nobody else.
//! Leaves out delivery (server) and operators (sql). Reads only; a crash ends the subscription.

use crate::engine::group::{Consumer, Delivery, Joining, MemberInfo, Receipts, Reset};
use crate::engine::input::{First, Positions, Reader, Removed};
use crate::engine::inputs::{Inputs, SourcePositions};
use crate::engine::member::MemberSubscription;
use crate::engine::prepare::Arguments;
use crate::engine::session::Session;
use crate::engine::shared::{Next, Seat};
use crate::engine::{Engine, Idle, Outcome, Param, Prepared, Result, ResultColumn, RowBatch, Rows, RowsTag, Via};
use crate::storage::batch::batch_bytes;
use arrow::array::{RecordBatch, UInt32Array};
use arrow::compute::take_record_batch;
use millstream_catalog::model::{GroupName, Name, Offset, RowCount, Span, SqlState, Timestamp};
use millstream_catalog::{QueryOptions, Relation, SqlType};
use millstream_sql::SqlError;
use millstream_sql::bind::ddl::{GroupReset, bind_push_options};
use millstream_sql::dialect::{Explain, Select};
use millstream_sql::plan::{ContinuousPlan, describe_push, plan_continuous, plan_push};
use millstream_sql::stream::{InputBatch, Pipeline, StepInput};
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;

/// More rows than these are computed on the query threads. A hand-over costs as much as some hundred rows.
pub(super) const ROWS_INLINE_MAX: usize = 1_024;
/// Bytes that rows may keep beside their own.
const SPARE_BYTES_MAX: usize = 64 << 10;

/// A subscription's state between rows.
struct Subscription {
    engine: Arc<Engine>,
    work: Work,
    /// Rows until `LIMIT`.
    left: u64,
    versions: watch::Receiver<u64>,
    is_done: bool,
    idle: Idle,
}

/// Who computes the rows.
enum Work {
    /// The subscription itself.
    Own(Box<Own>),
    /// All that run the same query.
    Shared(Seat),
}

impl Work {
    fn inputs(&self) -> &Inputs {
        match self {
            Self::Own(own) => &own.inputs,
            Self::Shared(seat) => seat.query().inputs(),
        }
    }
}

/// What a subscription has to itself whose rows depend on where it began.
struct Own {
    inputs: Inputs,
    /// Absent while it is on a query thread, and for good if it panics there.
    pipeline: Option<Pipeline>,
    positions: SourcePositions,
    /// Rows that stand before the first change: a table's rows as they are.
    first: VecDeque<InputBatch>,
    /// There is a row to give before the first event.
    is_new: bool,
}

impl Session {
    async fn plan_push(&self, select: &Select, arguments: Arguments) -> Result<(ContinuousPlan, Pipeline)> {
        let select = select.clone();
        self.pipeline(move |context| plan_push(context, &select, &arguments.types, arguments.values)).await
    }

    /// The parameters' types and the columns of a push query.
    pub(crate) async fn describe_push(
        &self,
        select: &Select,
        declared: &[Option<SqlType>],
    ) -> Result<(Vec<SqlType>, Vec<ResultColumn>)> {
        bind_push_options(select)?;
        let context = self.plan_context();
        let (select, declared) = (select.clone(), declared.to_vec());
        self.engine.compute.run(async move { describe_push(&context, &select, &declared) }).await
    }

    /// A push query as a statement.
    pub(crate) async fn push_query(
        &mut self,
        select: &Select,
        (prepared, params): (&Prepared, &[Param]),
        via: Via,
    ) -> Result<Outcome> {
        if self.transaction.is_implicit() && self.transaction.has_writes() {
            return Err(SqlError::unsupported(
                "a subscription behind writes in one text or pipeline",
                "send it by itself: the writes commit at the end, which it does not reach",
            ));
        }
        let delivery = if via == Via::Portal { Delivery::Asked } else { Delivery::Written };
        let rows = self.subscribe(select, prepared.arguments(params)?, delivery).await?;
        prepared.check_columns(Some(&rows.columns))?;
        // What has no end is no part of a text that ends.
        let ends = select.limit.is_some() || via == Via::Portal;
        self.consume(rows.receipts.as_ref(), ends);
        if via != Via::Portal && select.limit.is_none() {
            let hint = match self.settings.show("application_name")?.as_str() {
                "psql" => "psql shows rows as they come with \\set FETCH_COUNT 1",
                _ => "LIMIT at its end stops it after so many rows",
            };
            let options = bind_push_options(select)?;
            let is_taken = options.group.is_some() && options.auto_commit && !self.transaction.is_explicit();
            let message = match is_taken {
                true => {
                    "this query does not end: rows arrive until it is cancelled; its group has taken those that were sent"
                }
                false => "this query does not end: rows arrive until it is cancelled",
            };
            self.notify_hint(message, hint);
        }
        Ok(Outcome::Rows(rows))
    }

    /// Begins a subscription.
    pub(crate) async fn subscribe(
        &mut self,
        select: &Select,
        arguments: Arguments,
        delivery: Delivery,
    ) -> Result<Rows> {
        let options = bind_push_options(select)?;
        let (plan, pipeline) = self.plan_push(select, arguments).await?;
        self.make_sources(&plan.sources).await?;
        let reset = self.reset_of(options.auto_offset_reset);
        let earliest = reset == Reset::Earliest;
        let partitions = self.engine.shard_of_all(&plan.sources)?.partitions();
        let bytes_max = self.engine.budget().subscription_bytes();
        let removed = if earliest || options.group.is_some() { Removed::Skip } else { Removed::Refuse };
        let reader = |(number, source): (usize, &Arc<Relation>)| Reader {
            removed,
            ..Reader::of(number, source, Arc::clone(&partitions), &pipeline, bytes_max)
        };
        let mut readers: Vec<Reader> = plan.sources.iter().enumerate().map(reader).collect();
        if let Some(group) = options.group {
            let auto_commit = options.auto_commit;
            let commit_interval = options.auto_commit_interval.and_then(duration);
            let member = Membership { group, reset, auto_commit, commit_interval, delivery, limit: select.limit };
            return self.subscribe_as(member, (plan, pipeline), readers).await;
        }
        if reset == Reset::None {
            return Err(needs_group());
        }
        let begun = match readers.as_mut_slice() {
            [reader] if earliest || !pipeline.keeps_rows_of(0) => self.begin_one(reader, earliest).await?,
            _ => Begun { positions: Vec::new(), first: VecDeque::new() },
        };
        let is_plain = readers.iter().all(|reader| reader.first.is_none() && !pipeline.keeps_rows_of(reader.source))
            && begun.first.is_empty()
            && !begun.positions.is_empty()
            && pipeline.is_shareable();
        let (columns, work) = if is_plain {
            let query = self.engine.shared().get(plan, pipeline, readers);
            (Arc::clone(query.columns()), Work::Shared(Seat::new(&query, begun.positions)))
        } else {
            let inputs = Inputs::new(readers);
            let (positions, first, pipeline) = match begun.positions.is_empty() {
                false => (begun.positions, begun.first, pipeline),
                true => {
                    let (positions, pipeline) = Box::pin(self.begin_many(&inputs, pipeline, earliest)).await?;
                    (positions, VecDeque::new(), pipeline)
                }
            };
            let is_new = pipeline.begins_with_row();
            let own = Own { inputs, pipeline: Some(pipeline), positions, first, is_new };
            (plan.columns.into(), Work::Own(Box::new(own)))
        };
        let subscription = Subscription {
            engine: Arc::clone(&self.engine),
            work,
            versions: self.engine.replication().catalog().subscribe(),
            left: select.limit.map_or(u64::MAX, |limit| limit.value()),
            is_done: false,
            idle: Idle::default(),
        };
        let idle = subscription.idle.clone();
        let stream = futures::stream::unfold(subscription, |mut subscription| async move {
            let batch = subscription.next().await?;
            Some((batch, subscription))
        });
        let tag = RowsTag::Counted("SELECT");
        Ok(Rows { columns, tag, is_push: true, stream: Box::pin(stream), idle, receipts: None })
    }

    /// What another session defined or altered just now, and the catalog has before the shard: of partitions that are not
    /// there nobody tells that they grow.
    async fn make_sources(&self, sources: &[Arc<Relation>]) -> Result<()> {
        for source in sources.iter().filter(|source| !self.engine.is_made(source)) {
            self.engine.ensure_topic(source).await?;
        }
        Ok(())
    }

    fn reset_of(&self, option: Option<GroupReset>) -> Reset {
        match option {
            Some(GroupReset::Earliest) => Reset::Earliest,
            Some(GroupReset::Latest) => Reset::Latest,
            Some(GroupReset::None) => Reset::None,
            None => self.settings.offset_reset(),
        }
    }

    /// Begins a subscription as a member of a consumer group.
    async fn subscribe_as(
        &mut self,
        member: Membership,
        (plan, pipeline): (ContinuousPlan, Pipeline),
        readers: Vec<Reader>,
    ) -> Result<Rows> {
        let is_shared = (0..plan.sources.len()).any(|source| !pipeline.keeps_rows_of(source));
        if !pipeline.is_shareable() || !is_shared {
            let hint = "make a stream or table of the query with CREATE … AS SELECT, and subscribe to that";
            let what = "a query that keeps state, or reads a stream twice, in a consumer group";
            return Err(SqlError::unsupported(what, hint));
        }
        let sources = plan.sources.iter().enumerate().filter(|(source, _)| !pipeline.keeps_rows_of(*source));
        let topics: Vec<Arc<Relation>> = sources.map(|(_, source)| Arc::clone(source)).collect();
        let session = self.entry.row();
        let info = MemberInfo {
            pid: session.pid,
            user: session.user,
            application_name: session.application_name,
            client: session.client,
            instance: self.settings.group_instance_id(),
            joined_at: self.engine.clock().now(),
            max_poll_interval: self.settings.max_poll_interval().and_then(duration),
            session_timeout: self.settings.session_timeout().and_then(duration),
        };
        let Membership { group, reset, auto_commit, commit_interval, delivery, limit } = member;
        if self.transaction.has_left(&group) {
            let message = format!("the transaction has rows of a closed cursor of consumer group \"{group}\"");
            return Err(SqlError::new(SqlState::ObjectInUse, message)
                .detail("their partitions are its own until it ends")
                .hint("COMMIT or ROLLBACK first, or go on with the cursor instead of closing it"));
        }
        let shard = Arc::clone(self.engine.shard_of_all(&plan.sources)?);
        let durability = self.settings.durability();
        let joining =
            Joining { group, topics, shard, reset, delivery, auto_commit, commit_interval, durability, limit, info };
        let consumer = Consumer::join(&self.engine, joining).await?;
        let are_tables = readers.iter().map(|reader| pipeline.keeps_rows_of(reader.source)).collect();
        let query = self.engine.shared().get(plan, pipeline, readers);
        let columns = Arc::clone(query.columns());
        let subscription = MemberSubscription::new(&self.engine, &consumer, query, are_tables);
        let idle = subscription.idle();
        let stream = Box::pin(subscription.into_stream());
        let receipts = Some(Receipts::new(consumer));
        Ok(Rows { columns, tag: RowsTag::Counted("SELECT"), is_push: true, stream, idle, receipts })
    }

    /// Where a subscription to one relation begins.
    async fn begin_one(&self, reader: &mut Reader, earliest: bool) -> Result<Begun> {
        let source = Arc::clone(&reader.relation);
        let (positions, first) = match (earliest, source.has_tombstones()) {
            (false, _) => (reader.ends()?, VecDeque::new()),
            (true, false) => {
                reader.first = self.rows_first(&source, reader).await?;
                (reader.starts(), VecDeque::new())
            }
            (true, true) => self.table_rows(&source, reader).await?,
        };
        Ok(Begun { positions: vec![positions], first })
    }

    /// Where a subscription to several relations, or to what is made of a table, begins. Tables are there with their rows
    /// as they are; what those give is shown only from the earliest on.
    async fn begin_many(
        &self,
        inputs: &Inputs,
        mut pipeline: Pipeline,
        earliest: bool,
    ) -> Result<(SourcePositions, Pipeline)> {
        let starts: SourcePositions = inputs.readers().iter().map(Reader::starts).collect();
        if earliest {
            return Ok((starts, pipeline));
        }
        let inputs = inputs.clone();
        let now = self.engine.clock().now();
        self.engine
            .compute
            .run(async move {
                let cut = inputs.readers().first().map(|reader| reader.partitions.applied());
                let cut = cut.ok_or_else(|| SqlError::internal("a push query without a source"))?;
                let ends = inputs.readers().iter().map(|reader| reader.ends_at(cut)).collect::<Result<Vec<_>>>()?;
                let mut positions = ends.clone();
                for (number, reader) in
                    inputs.readers().iter().enumerate().filter(|(number, _)| pipeline.keeps_rows_of(*number))
                {
                    positions[number] = reader.starts();
                }
                while positions != ends {
                    let Some(input) = inputs.next_up_to(&positions, cut)? else { break };
                    pipeline.step(&StepInput { batches: input.batches, idle: &[], now })?;
                    positions = input.positions;
                    tokio::task::yield_now().await;
                }
                Ok((ends, pipeline))
            })
            .await
    }

    /// Of a table without a key, what a reader from the beginning must know.
    async fn rows_first(&self, source: &Arc<Relation>, reader: &Reader) -> Result<Option<Arc<First>>> {
        if source.row_ids.is_none() {
            return Ok(None);
        }
        let (engine, relation, partitions) =
            (Arc::clone(&self.engine), Arc::clone(source), Arc::clone(&reader.partitions));
        let cut = partitions.applied();
        let ends = reader.ends_at(cut)?;
        let known = async move { engine.tables().versions(&relation, &partitions, cut) };
        Ok(Some(Arc::new(First { ends, versions: self.engine.compute.run(known).await? })))
    }

    /// A table's rows as they are, and the positions of the changes after them.
    async fn table_rows(&self, source: &Arc<Relation>, reader: &Reader) -> Result<(Positions, VecDeque<InputBatch>)> {
        let (engine, relation) = (Arc::clone(&self.engine), Arc::clone(source));
        let (partitions, projection) = (Arc::clone(&reader.partitions), reader.projection.clone());
        self.engine
            .compute
            .run(async move {
                let _pin = engine.pin();
                let rows = engine.tables().rows(&relation, &partitions, partitions.applied())?;
                let mut first = VecDeque::new();
                for (partition, batches) in rows.partitions {
                    for batch in batches {
                        let batch = batch
                            .project(&projection)
                            .map_err(|error| SqlError::internal(format!("table rows cannot be read: {error}")))?;
                        first.push_back(InputBatch {
                            source: 0,
                            partition,
                            offset_start: Offset::ZERO,
                            offsets: None,
                            batch,
                        });
                    }
                }
                let positions = rows.positions.into_iter().collect::<Positions>();
                Ok((positions, first))
            })
            .await
    }

    /// `EXPLAIN` of a push query, or of the continuous query that would write `sink`.
    pub(crate) async fn explain_continuous(
        &self,
        select: &Select,
        sink: Option<&Name>,
        explain: &Explain,
        arguments: Arguments,
    ) -> Result<Vec<String>> {
        if explain.analyze {
            return Err(SqlError::unsupported("EXPLAIN ANALYZE of a query that does not end", "leave ANALYZE out"));
        }
        let (plan, pipeline) = match sink {
            None => self.plan_push(select, arguments).await?,
            Some(_) => {
                let select = select.clone();
                self.pipeline(move |context| plan_continuous(context, &select, &QueryOptions::default())).await?
            }
        };
        let mut lines = crate::engine::describe::pipeline_lines(select, &plan, &pipeline, sink);
        if explain.verbose {
            lines.extend(pipeline.operators_shown().iter().map(ToString::to_string));
            lines.push("Logical plan:".to_owned());
            lines.extend(plan.plan.display_indent().to_string().lines().map(|line| format!("  {line}")));
        }
        Ok(lines)
    }
}

/// A subscription by itself begins somewhere.
fn needs_group() -> SqlError {
    SqlError::new(SqlState::InvalidParameterValue, "auto_offset_reset = 'none' is for consumer groups")
        .hint("say WITH (group = '…'), or SET auto_offset_reset = 'latest'")
}

/// How a subscription is a member of a group.
struct Membership {
    group: GroupName,
    reset: Reset,
    auto_commit: bool,
    commit_interval: Option<Duration>,
    delivery: Delivery,
    limit: Option<RowCount>,
}

/// A span that is not negative.
fn duration(span: Span) -> Option<Duration> {
    u64::try_from(span.micros()).ok().map(Duration::from_micros)
}

/// Where a subscription begins.
struct Begun {
    positions: SourcePositions,
    /// Rows before that.
    first: VecDeque<InputBatch>,
}

impl Subscription {
    async fn next(&mut self) -> Option<Result<RowBatch>> {
        while !self.is_done && self.left > 0 {
            // However long nothing passes its filter, others have their turn.
            tokio::task::coop::consume_budget().await;
            match self.advance().await {
                Ok(Some(batch)) => return Some(Ok(self.limit(batch))),
                Ok(None) => {}
                Err(error) => {
                    self.is_done = true;
                    return Some(Err(error));
                }
            }
        }
        None
    }

    fn limit(&mut self, batch: RowBatch) -> RowBatch {
        let rows = batch.num_rows() as u64;
        if rows <= self.left {
            self.left -= rows;
            return batch;
        }
        let wanted = self.left as usize;
        self.left = 0;
        batch.slice(0, wanted)
    }

    /// Takes the next input, waiting for it; `None` when it gave no row.
    async fn advance(&mut self) -> Result<Option<RowBatch>> {
        // One that is behind others takes what they made: it has nothing to wait for.
        if let Work::Shared(seat) = &mut self.work
            && let Some(rows) = seat.take()
        {
            check_rows_stay(&self.engine, self.work.inputs().readers())?;
            return Ok(rows);
        }
        let mut waiting = self.work.inputs().waiting();
        let next = match &mut self.work {
            Work::Shared(seat) => seat.next(&self.engine.compute, self.engine.clock().now()).await?,
            Work::Own(own) => own.next(&self.engine).await?,
        };
        if let Next::Passed(rows) = next {
            check_rows_stay(&self.engine, self.work.inputs().readers())?;
            return Ok(rows);
        }
        let _idle = self.idle.begin();
        tokio::select! {
            () = waiting.changed() => {}
            changed = self.versions.changed() => {
                let catalog = self.engine.catalog();
                let is_gone = |reader: &&Reader| changed.is_err() || catalog.relation_by_id(reader.relation.id).is_none();
                if let Some(reader) = self.work.inputs().readers().iter().find(is_gone) {
                    return Err(dropped(&reader.relation));
                }
            }
            () = self.engine.shutdown_token().cancelled() => return Err(shutting_down()),
        }
        Ok(None)
    }
}

impl Own {
    /// Goes on by some events.
    async fn next(&mut self, engine: &Engine) -> Result<Next> {
        if let Some(batch) = self.first.pop_front() {
            return self.compute(engine, batch.batch.num_rows(), Source::Batches(vec![batch])).await;
        }
        self.inputs.check_removed(&self.positions)?;
        let behind = self.inputs.behind(&self.positions);
        if behind > RowCount::ZERO {
            let source = Source::Log { inputs: self.inputs.clone(), from: self.positions.clone() };
            return self.compute(engine, behind.as_usize(), source).await;
        }
        match self.is_new {
            true => self.compute(engine, 0, Source::Batches(Vec::new())).await,
            false => Ok(Next::AtEnd),
        }
    }

    /// Runs the pipeline over `rows` rows of `source`: here, or on the query threads if they are many.
    async fn compute(&mut self, engine: &Engine, rows: usize, source: Source) -> Result<Next> {
        self.is_new = false;
        let now = engine.clock().now();
        let pipeline = self.pipeline.take().ok_or_else(|| SqlError::internal("the subscription has ended"))?;
        let work = move || compute(pipeline, source, now);
        let computed = engine.compute.run_if(rows > ROWS_INLINE_MAX, work).await?;
        self.pipeline = Some(computed.pipeline);
        if let Some(positions) = computed.positions {
            self.positions = positions;
        }
        Ok(Next::Passed(computed.rows.map(RowBatch::from)))
    }
}

/// What was read may be a change of a row: the plan is of a time when rows did not change.
pub(super) fn check_rows_stay(engine: &Engine, readers: &[Reader]) -> Result<()> {
    let catalog = engine.catalog();
    let is_old = |reader: &&Reader| {
        let relation = &reader.relation;
        let can_change_now = || catalog.relation_by_id(relation.id).is_some_and(|now| now.row_ids.is_some());
        relation.lacks_key() && relation.row_ids.is_none() && can_change_now()
    };
    let Some(reader) = readers.iter().find(is_old) else { return Ok(()) };
    let fact = format!("rows of table \"{}\" can change from now on", reader.relation.name);
    Err(SqlError::new(SqlState::ObjectNotInPrerequisiteState, fact).hint("subscribe again"))
}

/// 42P01
pub(super) fn dropped(relation: &Relation) -> SqlError {
    SqlError::new(SqlState::UndefinedTable, format!("relation \"{}\" was dropped", relation.name))
}

/// 57P01
pub(super) fn shutting_down() -> SqlError {
    SqlError::new(SqlState::AdminShutdown, "terminating connection due to administrator command")
}

/// Where a computation's rows come from.
enum Source {
    Batches(Vec<InputBatch>),
    Log { inputs: Inputs, from: SourcePositions },
}

/// What a computation gives back.
struct Computed {
    pipeline: Pipeline,
    /// After the rows it read.
    positions: Option<SourcePositions>,
    /// In the client's columns, if there are any.
    rows: Option<RecordBatch>,
}

fn compute(mut pipeline: Pipeline, source: Source, now: Timestamp) -> Result<Computed> {
    let (batches, positions) = match source {
        Source::Batches(batches) => (batches, None),
        Source::Log { inputs, from } => match inputs.next(&from)? {
            Some(input) => (input.batches, Some(input.positions)),
            None => return Ok(Computed { pipeline, positions: None, rows: None }),
        },
    };
    let output = pipeline.step(&StepInput { batches, idle: &[], now })?;
    let rows = client_rows(&pipeline, output.batch)?;
    Ok(Computed { pipeline, positions, rows })
}

/// What of a step's output is the client's, in its columns; `None` when that is nothing.
pub(super) fn client_rows(pipeline: &Pipeline, output: Option<RecordBatch>) -> Result<Option<RecordBatch>> {
    let rows = output.filter(|rows| rows.num_rows() > 0);
    rows.map(|rows| pipeline.output().client_rows(&rows).and_then(alone)).transpose()
}

/// Rows that keep no more in memory than themselves, for as long as a client does not read them: they may be a few of a
/// large batch, which else would stay after it became part of a segment.
fn alone(rows: RecordBatch) -> Result<RecordBatch> {
    let own = batch_bytes(&rows).as_usize();
    if rows.get_array_memory_size() <= SPARE_BYTES_MAX + 2 * own {
        return Ok(rows);
    }
    let all = UInt32Array::from_iter_values(0..rows.num_rows() as u32);
    take_record_batch(&rows, &all).map_err(|error| SqlError::internal(format!("rows cannot be copied: {error}")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use arrow::array::{Array as _, StringArray};

    #[test]
    fn few_rows_do_not_keep_a_large_batch() {
        let text = StringArray::from_iter_values((0..10_000).map(|row| format!("{row:0100}")));
        let batch = RecordBatch::try_from_iter([("t", Arc::new(text) as _)]).unwrap();
        let all = batch.get_array_memory_size();
        let kept = alone(batch.clone()).unwrap();
        assert_eq!(kept.column(0).to_data().buffers()[1].as_ptr(), batch.column(0).to_data().buffers()[1].as_ptr());
        let few = batch.slice(500, 10);
        assert!(few.get_array_memory_size() >= all / 2);
        let copied = alone(few.clone()).unwrap();
        assert_eq!(copied, few);
        assert!(copied.get_array_memory_size() < 10_000, "{}", copied.get_array_memory_size());
    }
}
