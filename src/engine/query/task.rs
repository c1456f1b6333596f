//! One continuous query: a fold over its sources' log, committed step by step.
//!
//! A step takes what arrived, runs the pipeline, and proposes one entry with the positions and the rows it
//! writes. After a restart the last checkpoint is loaded and the steps since are replayed without their
//! output, which is committed already. Leaves out operators (sql) and which queries run (`super`).

use super::replay::{History, Skipped};
use super::state::QueryFiles;
use super::{Status, errors};
use crate::engine::held::Held;
use crate::engine::input::Reader;
use crate::engine::inputs::{Inputs, SourcePositions, StepEvents};
use crate::engine::insert_query::{Target, plan_into};
use crate::engine::write::route_stored;
use crate::engine::{Engine, Result, replication_error};
use crate::env;
use crate::replication::{Checkpoint, PartitionWrite, QueryProgress, Shard, Step};
use millstream_catalog::model::limit::{
    STEP_BYTES_LARGE, STEP_BYTES_TARGET, STEP_ROWS_TARGET, STEPS_SINCE_CHECKPOINT_MAX,
};
use millstream_catalog::model::{ByteSize, Durability, PartitionId, RowCount, SqlState, StepNumber, TopicId};
use millstream_catalog::query::OnError;
use millstream_catalog::{Compression, Query, Relation};
use millstream_sql::SqlError;
use millstream_sql::dialect::{self, Select, Statement};
use millstream_sql::plan::{ContinuousPlan, PlanContext, PlanSettings, plan_continuous};
use millstream_sql::stream::{OperatorShown, Pipeline, SkippedEvent, StepInput};
use parking_lot::Mutex;
use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio_util::sync::CancellationToken;

/// Time between checkpoints of a query that takes steps.
const CHECKPOINT_EVERY: Duration = Duration::from_secs(5);
/// Steps after which a checkpoint of little state is taken whatever the time: they are kept for replay.
const CHECKPOINT_STEPS: u64 = 2_000;
/// The same for any state: half of what a shard keeps.
const CHECKPOINT_STEPS_MAX: u64 = STEPS_SINCE_CHECKPOINT_MAX as u64 / 2;
/// So many bytes of state a second are written at most, on average, if all of it changed. What is not saved is computed again
/// after a restart, which is faster than it came.
const CHECKPOINT_BYTES_PER_SECOND: u64 = 16 << 20;
/// State a query may keep in memory however little there is: less is not worth a file.
const STATE_BYTES_LEAST: ByteSize = ByteSize::new(512 << 10);
/// How often the bytes of the state are counted while steps follow each other: that may look at all of it.
const REPORT_EVERY: Duration = Duration::from_millis(100);
/// How often it is counted how many rows a second come to the operators.
const MEASURE_EVERY: Duration = Duration::from_secs(1);

/// A query with its operators.
pub(super) struct QueryTask {
    engine: Arc<Engine>,
    query: Arc<Query>,
    sink: Arc<Relation>,
    /// Where it inserts into a relation that was not made for it.
    target: Option<Target>,
    shard: Arc<Shard>,
    inputs: Inputs,
    pipeline: Pipeline,
    positions: SourcePositions,
    /// The events that steps since the last checkpoint left out.
    skipped: Skipped,
    stop: CancellationToken,
    step: StepNumber,
    checkpoint_step: StepNumber,
    checkpoint_at: Instant,
    reported_at: Instant,
    /// When rows a second were counted last.
    measured_at: Option<Instant>,
    /// Rows that had come to each operator by then.
    measured_rows: Vec<u64>,
    /// Rows that came to each a second before that.
    rates: Vec<f64>,
    /// Whether rates may be others by now.
    is_moving: bool,
    /// Of the state, when that was counted last.
    state_bytes: ByteSize,
    /// When each partition last had something to read.
    active_at: HashMap<(usize, PartitionId), Instant>,
    /// Those that the last step left out of time.
    idle_before: HashSet<(usize, PartitionId)>,
    status: Arc<Mutex<Status>>,
    /// Bytes of the operators' state in memory.
    held: Held,
    /// Files of it.
    files: Arc<QueryFiles>,
}

impl QueryTask {
    /// Plans the query and brings its operators to where its last committed step left them.
    ///
    /// # Errors
    /// When it can no longer be planned, SE006 when a checkpoint does not fit its pipeline.
    pub(super) async fn recover(
        engine: &Arc<Engine>,
        query: &Arc<Query>,
        status: Arc<Mutex<Status>>,
        stop: &CancellationToken,
    ) -> Result<Self> {
        let catalog = engine.catalog().seen_by(query);
        let missing = |what| SqlError::internal(format!("the {what} of query \"{}\" is gone", query.name));
        let sink = Arc::clone(catalog.relation_by_id(query.sink).ok_or_else(|| missing("sink"))?);
        let shard = Arc::clone(engine.shard(sink.shard)?);
        let (select, planned, mut pipeline) = plan(engine, query)?;
        let files = Arc::new(QueryFiles::open(&shard, query)?);
        pipeline.set_store(Arc::<QueryFiles>::clone(&files));
        let target = match &query.target {
            None => None,
            Some(columns) => Some(Target::new(&sink, columns, &planned, &select, &context(engine, query))?),
        };
        let progress = shard.progress(query.id).ok_or_else(|| missing("progress"))?;
        let reader = |(number, id): (usize, &TopicId)| {
            let source = catalog.relation_by_id(*id).ok_or_else(|| missing("source"))?;
            let bytes = step_bytes(source, false);
            let reader = Reader::of(number, source, shard.partitions(), &pipeline, bytes);
            Ok(Reader { rows_max: STEP_ROWS_TARGET, ..reader })
        };
        let inputs = Inputs::new(query.sources.iter().enumerate().map(reader).collect::<Result<Vec<_>>>()?);
        let mut task = Self {
            engine: Arc::clone(engine),
            query: Arc::clone(query),
            sink,
            target,
            shard,
            positions: SourcePositions::new(),
            skipped: Skipped::new(),
            stop: stop.clone(),
            step: StepNumber::default(),
            checkpoint_step: StepNumber::default(),
            checkpoint_at: env::instant(),
            reported_at: env::instant(),
            measured_at: None,
            measured_rows: Vec::new(),
            rates: Vec::new(),
            is_moving: false,
            state_bytes: ByteSize::ZERO,
            active_at: HashMap::new(),
            idle_before: HashSet::new(),
            inputs,
            pipeline,
            status,
            held: engine.state_room.yielding_share(),
            files,
        };
        match &progress.checkpoint {
            Some(checkpoint) => task.replay(checkpoint, &progress, stop).await?,
            None => {
                // Step 0: the positions it begins at, which replay needs.
                task.positions = task.history().of_sources(&progress.positions);
                task.save().await?;
            }
        }
        task.report_state()?;
        Ok(task)
    }

    /// Saves the state of a query that does not run, unless that was done.
    ///
    /// # Errors
    /// As [`QueryTask::recover`], and those of the log.
    pub(super) async fn settle(engine: &Arc<Engine>, query: &Arc<Query>) -> Result<()> {
        let progress = engine.shard_of_query(query)?.progress(query.id);
        if progress.is_none_or(|progress| progress.since_checkpoint.is_empty()) {
            return Ok(());
        }
        let mut task = Self::recover(engine, query, Arc::default(), &CancellationToken::new()).await?;
        if task.step > task.checkpoint_step { task.save().await } else { Ok(()) }
    }

    /// Saves the state of a query that does not run, and gives the fingerprint of the pipeline that saved it: its own, or
    /// one that it replaced and that took the last steps.
    ///
    /// # Errors
    /// As [`QueryTask::recover`], and those of the log.
    pub(super) async fn save_whole(engine: &Arc<Engine>, query: &Arc<Query>) -> Result<String> {
        let mut task = Self::recover(engine, query, Arc::default(), &CancellationToken::new()).await?;
        if task.step > task.checkpoint_step {
            task.save().await?;
        }
        let progress = task.shard.progress(query.id);
        let checkpoint = progress.as_ref().and_then(|progress| progress.checkpoint.as_ref());
        Ok(checkpoint.map_or_else(|| task.pipeline.fingerprint(), |checkpoint| checkpoint.fingerprint.clone()))
    }

    async fn replay(
        &mut self,
        checkpoint: &Checkpoint,
        progress: &QueryProgress,
        stop: &CancellationToken,
    ) -> Result<()> {
        let history = self.history();
        self.pipeline.keep_within(self.held.fair())?;
        self.positions = history.restore(&mut self.pipeline, checkpoint)?;
        self.step = checkpoint.step;
        self.checkpoint_step = checkpoint.step;
        for record in progress.since_checkpoint.iter().filter(|record| record.step > checkpoint.step) {
            history.repeat(&mut self.pipeline, &mut self.positions, record, &mut self.skipped)?;
            self.step = record.step;
            self.report()?;
            if stop.is_cancelled() {
                return Err(SqlError::new(SqlState::QueryCanceled, "the query was stopped while it was recovered"));
            }
            tokio::task::yield_now().await;
        }
        Ok(())
    }

    /// Takes steps until `stop`.
    ///
    /// # Errors
    /// Of an event the pipeline cannot take, or of the log.
    pub(super) async fn run(mut self, stop: &CancellationToken) -> Result<()> {
        // The first step may be empty: a count has its row before any event, and FLUSH waits for it.
        if self.step == StepNumber::default() {
            let positions = self.positions.clone();
            self.step(StepEvents { batches: Vec::new(), positions, rows: RowCount::ZERO }).await?;
        }
        let wanted = self.held.wanted();
        loop {
            let mut waiting = self.inputs.waiting();
            while let Some(input) = self.inputs.next(&self.positions)? {
                if stop.is_cancelled() {
                    return Ok(());
                }
                self.step(input).await?;
                self.checkpoint_if_due().await?;
                tokio::task::yield_now().await;
            }
            self.status.lock().failure = None;
            let idle = self.next_idle();
            let has_news = self.step > self.checkpoint_step;
            self.report_state()?;
            let due = self.checkpoint_pause().0.saturating_sub(env::elapsed(self.checkpoint_at));
            tokio::select! {
                () = stop.cancelled() => return Ok(()),
                () = waiting.changed() => {}
                () = wanted.notified() => {}
                () = tokio::time::sleep(due), if has_news => self.checkpoint_if_due().await?,
                () = tokio::time::sleep(MEASURE_EVERY), if self.is_moving => self.measure(self.pipeline.operators_shown()),
                () = tokio::time::sleep(idle.unwrap_or_default()), if idle.is_some() => self.pass_time().await?,
            }
        }
    }

    async fn step(&mut self, input: StepEvents) -> Result<()> {
        let now = self.engine.clock().now();
        let idle = self.idle(&input);
        let before = self.inputs.flat(&self.positions);
        let before: HashMap<_, _> = before.into_iter().collect();
        let moved =
            self.inputs.flat(&input.positions).into_iter().filter(|(at, offset)| before.get(at) != Some(offset));
        let moved = moved.map(|((topic, id), offset)| (topic, id, offset)).collect();
        let number = self.step.next();
        let events = StepInput { batches: input.batches, idle: &idle, now };
        let output = match self.query.options.on_error {
            OnError::Stop => self.pipeline.step(&events)?,
            OnError::Skip => self.history().step(&mut self.pipeline, number, &events, &mut self.skipped)?,
        };
        let skipped = self.skipped.get(&number).map_or(&[][..], Vec::as_slice);
        let skipped_rows = RowCount::of(skipped.len());
        let errors = self.errors(skipped)?;
        let mut outputs = match output.batch {
            Some(batch) => match &mut self.target {
                None => route_stored(&self.sink, batch, &self.engine.spreader)?.parts,
                Some(target) => {
                    let count = self.pipeline.output().selected;
                    target.route(&self.engine, &batch, count, now)?.parts
                }
            },
            None => Vec::new(),
        };
        outputs.extend(errors);
        let sink = self.engine.catalog().relation_by_id(self.sink.id).cloned();
        let durability = sink.map_or(Durability::Sync, |sink| sink.options.durability);
        let step = Step {
            query: self.query.id,
            step: number,
            positions: moved,
            idle: idle.into_iter().map(|(source, id)| (self.query.sources[source], id)).collect(),
            now,
            outputs,
            input_rows: input.rows,
            late_rows: output.late_rows,
            skipped_rows,
            durability,
        };
        self.shard.step(step).await.map_err(replication_error)?;
        self.inputs.pass(&self.positions, &input.positions);
        self.positions = input.positions;
        self.step = number;
        self.is_moving = true;
        self.status.lock().failure = None;
        self.report()
    }

    /// What a replay of its steps reads.
    fn history(&self) -> History {
        let (engine, query) = (Arc::clone(&self.engine), Arc::clone(&self.query));
        let (shard, files, stop) = (Arc::clone(&self.shard), Arc::clone(&self.files), self.stop.clone());
        let state_bytes_max = self.held.fair();
        History { engine, query, shard, files, state_bytes_max, inputs: self.inputs.clone(), stop }
    }

    /// What is written of events that were left out.
    fn errors(&self, skipped: &[SkippedEvent]) -> Result<Vec<PartitionWrite>> {
        if skipped.is_empty() {
            return Ok(Vec::new());
        }
        let relation = errors::relation(&self.engine);
        let relation = relation.ok_or_else(|| SqlError::internal("the stream of skipped events is gone"))?;
        let rows = errors::rows(&relation, &self.query, &self.inputs, skipped)?;
        Ok(route_stored(&relation, rows, &self.engine.spreader)?.parts)
    }

    /// When the next partition becomes idle, for a query that time alone may make give rows.
    fn next_idle(&self) -> Option<Duration> {
        if !self.pipeline.waits_for_time() || self.active_at.len() < 2 {
            return None;
        }
        let due = self.active_at.iter().filter(|(at, _)| !self.idle_before.contains(at));
        due.map(|(_, active_at)| self.idle_timeout().saturating_sub(env::elapsed(*active_at))).min()
    }

    /// A step without events: partitions that became idle hold time back no longer.
    async fn pass_time(&mut self) -> Result<()> {
        let positions = self.positions.clone();
        self.step(StepEvents { batches: Vec::new(), positions, rows: RowCount::ZERO }).await
    }

    fn idle_timeout(&self) -> Duration {
        u64::try_from(self.query.options.idle_timeout.micros()).map_or(Duration::ZERO, Duration::from_micros)
    }

    /// Partitions that have had nothing to read for the query's idle timeout; only with more than one.
    fn idle(&mut self, input: &StepEvents) -> Vec<(usize, PartitionId)> {
        let readers = self.inputs.readers().iter();
        let partitions: Vec<(usize, PartitionId)> =
            readers.flat_map(|reader| reader.ids().into_iter().map(|id| (reader.source, id))).collect();
        if partitions.len() == 1 {
            return Vec::new();
        }
        let now = env::instant();
        for (source, positions) in input.positions.iter().enumerate() {
            for (id, position) in positions {
                if self.positions.get(source).and_then(|before| before.get(id)) != Some(position) {
                    self.active_at.insert((source, *id), now);
                }
            }
        }
        let timeout = self.idle_timeout();
        let is_idle = |at: &(usize, PartitionId)| {
            let active_at = *self.active_at.entry(*at).or_insert(now);
            now.saturating_duration_since(active_at) >= timeout
        };
        let idle: Vec<(usize, PartitionId)> = partitions.into_iter().filter(is_idle).collect();
        self.idle_before = idle.iter().copied().collect();
        idle
    }

    async fn checkpoint_if_due(&mut self) -> Result<()> {
        let steps = self.step.value() - self.checkpoint_step.value();
        let (pause, steps_max) = self.checkpoint_pause();
        let is_due = env::elapsed(self.checkpoint_at) >= pause || steps >= steps_max;
        if steps > 0 && is_due { self.save().await } else { Ok(()) }
    }

    /// After how much time, or how many steps, the state is saved.
    fn checkpoint_pause(&self) -> (Duration, u64) {
        let seconds = self.state_bytes.value() / CHECKPOINT_BYTES_PER_SECOND;
        let pause = CHECKPOINT_EVERY.max(Duration::from_secs(seconds));
        let share = pause.as_secs() / CHECKPOINT_EVERY.as_secs().max(1);
        (pause, (CHECKPOINT_STEPS * share.max(1)).min(CHECKPOINT_STEPS_MAX))
    }

    /// Commits the operators' state.
    async fn save(&mut self) -> Result<()> {
        let saved = self.pipeline.save()?;
        let checkpoint = Checkpoint {
            query: self.query.id,
            step: self.step,
            positions: self.inputs.flat(&self.positions).into_iter().collect(),
            fingerprint: self.pipeline.fingerprint(),
            state: saved.bytes.into(),
            files: saved.files.clone(),
        };
        self.files.save(&saved.files)?;
        self.shard.checkpoint(checkpoint).await.map_err(replication_error)?;
        self.files.name(&saved.files);
        self.checkpoint_step = self.step;
        self.checkpoint_at = env::instant();
        self.skipped.clear();
        Ok(())
    }

    /// Tells how far it is, and now and then counts its state.
    ///
    /// # Errors
    /// As of [`QueryTask::report_state`].
    fn report(&mut self) -> Result<()> {
        self.status.lock().watermark = self.pipeline.watermark();
        match env::elapsed(self.reported_at) >= REPORT_EVERY {
            true => self.report_state(),
            false => Ok(()),
        }
    }

    /// Counts how many rows a second came to each of its operators since that was done last, and shows them.
    fn measure(&mut self, shown: Vec<OperatorShown>) {
        let now = env::instant();
        let rows: Vec<u64> = shown.iter().map(|one| one.rows_in.value()).collect();
        let seconds = self.measured_at.map_or(0.0, |before| now.saturating_duration_since(before).as_secs_f64());
        let rate = |(at, rows): (usize, &u64)| {
            let before = self.measured_rows.get(at).copied().unwrap_or(0);
            if seconds > 0.0 { rows.saturating_sub(before) as f64 / seconds } else { 0.0 }
        };
        self.rates = rows.iter().enumerate().map(rate).collect();
        self.is_moving = self.rates.iter().any(|rate| *rate > 0.0);
        self.measured_rows = rows;
        self.measured_at = Some(now);
        self.show(shown);
    }

    /// Shows its operators.
    fn show(&self, operators: Vec<OperatorShown>) {
        let with_rate = |(at, one)| (one, self.rates.get(at).copied().unwrap_or(0.0));
        self.status.lock().operators = operators.into_iter().enumerate().map(with_rate).collect();
    }

    /// Counts its state, and has what memory has no room for go to disk.
    ///
    /// # Errors
    /// 53200 when the state of all tables and queries takes too much memory all the same, 53100 when the disk is full.
    fn report_state(&mut self) -> Result<()> {
        let fair = self.held.fair();
        self.pipeline.keep_within(fair)?;
        let shown = self.pipeline.operators_shown();
        let bytes = shown.iter().filter_map(|one| one.state).fold(ByteSize::ZERO, ByteSize::plus);
        self.reported_at = env::instant();
        self.state_bytes = bytes;
        {
            let mut status = self.status.lock();
            (status.state_bytes, status.watermark) = (bytes, self.pipeline.watermark());
        }
        match self.measured_at.is_none_or(|measured_at| env::elapsed(measured_at) >= MEASURE_EVERY) {
            true => self.measure(shown),
            false => self.show(shown),
        }
        let before = self.held.bytes();
        let spilled = self.pipeline.spilled_bytes();
        self.inputs.take_about(|source| step_bytes(source, spilled > ByteSize::ZERO));
        self.held.put(ByteSize::new(bytes.value() - spilled.value()));
        if !self.held.is_over() {
            return Ok(());
        }
        self.held.want();
        if self.held.bytes() <= before || self.held.bytes() <= fair.max(STATE_BYTES_LEAST) {
            return Ok(());
        }
        let most = self.held.bytes_max();
        Err(SqlError::new(
            SqlState::OutOfMemory,
            format!("the state of query \"{}\" does not fit in memory", self.query.name),
        )
        .detail(format!("current rows of all tables and the state of continuous queries may take {most} bytes"))
        .hint("group by fewer values, close windows earlier, or start the server with a larger --memory"))
    }
}

/// How many bytes of a source a step takes, about. One with state on disk reads and writes the parts that it touches, which
/// is most of them whether its events are few or many; a compressed block is decoded anew for each step that begins in it.
fn step_bytes(source: &Relation, is_spilled: bool) -> ByteSize {
    let is_compressed = source.options.compression != Compression::None;
    if is_spilled || is_compressed { STEP_BYTES_LARGE } else { STEP_BYTES_TARGET }
}

/// What a stored query is planned with.
fn context(engine: &Arc<Engine>, query: &Query) -> PlanContext {
    PlanContext {
        catalog: engine.catalog().seen_by(query),
        source: Arc::new(crate::engine::pull::LogSource::new(engine, None, None)),
        now: engine.clock().now(),
        settings: Arc::new(PlanSettings::default()),
    }
}

/// Plans a stored query anew.
///
/// # Errors
/// When the catalog no longer has what it reads.
pub(crate) fn plan(engine: &Arc<Engine>, query: &Query) -> Result<(Box<Select>, ContinuousPlan, Pipeline)> {
    let parsed = dialect::parse(&query.sql)?;
    let Some(Statement::Select(select)) = parsed.into_iter().next().map(|parsed| parsed.statement) else {
        return Err(SqlError::internal(format!("the text of query \"{}\" is not a SELECT", query.name)));
    };
    let context = context(engine, query);
    let plan = match &query.target {
        None => plan_continuous(&context, &select, &query.options)?,
        Some(columns) => {
            let catalog = engine.catalog().seen_by(query);
            let gone = || SqlError::internal(format!("the sink of query \"{}\" is gone", query.name));
            let sink = catalog.relation_by_id(query.sink).ok_or_else(gone)?;
            plan_into(&context, &select, &query.options, sink, columns)?
        }
    };
    let pipeline = Pipeline::plan(&plan)?;
    Ok((select, plan, pipeline))
}
