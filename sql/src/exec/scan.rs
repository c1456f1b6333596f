//! The scan of a relation as an operator of a bounded query.
//!
//! Owns opening the port, sharing its iterators among threads, and yielding between batches. Leaves out storage, and
//! evaluating filters. Each thread takes the next iterator when it has read its last to the end, so none waits for
//! another with work left. A dropped stream stops reading at the batch it is in.

use crate::error::SqlError;
use crate::exec::bounds::Bounds;
use crate::exec::interrupt::Interrupts;
use crate::exec::pruning::Pruning;
use crate::function::errors::external;
use crate::ports::{BatchIter, RelationSource, ScanColumn, ScanCount, ScanMetrics, ScanRequest, ScanSummary};
use arrow::array::{ArrayRef, RecordBatch, RecordBatchOptions};
use arrow::datatypes::SchemaRef;
use datafusion::common::stats::Precision;
use datafusion::common::tree_node::TreeNodeRecursion;
use datafusion::common::{DataFusionError, Result, ScalarValue, Statistics};
use datafusion::execution::{SendableRecordBatchStream, TaskContext};
use datafusion::physical_expr::{EquivalenceProperties, PhysicalExpr};
use datafusion::physical_plan::execution_plan::{Boundedness, EmissionType, ReplaceChildrenOptions, SchedulingType};
use datafusion::physical_plan::metrics::{BaselineMetrics, ExecutionPlanMetricsSet, MetricsSet};
use datafusion::physical_plan::statistics::StatisticsArgs;
use datafusion::physical_plan::{
    DisplayAs, DisplayFormatType, ExecutionPlan, Partitioning, PlanProperties, RecordBatchStream,
};
use futures::Stream;
use millstream_catalog::Relation;
use millstream_catalog::model::{Offset, Timestamp};
use std::collections::VecDeque;
use std::fmt;
use std::pin::Pin;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::task::{Context, Poll};

/// After so many rows a scan lets others run: at 20 M rows/s that is 25 ms.
const ROWS_PER_TURN: usize = 524_288;

/// What to scan.
#[derive(Debug, Clone)]
pub struct ScanTarget {
    /// The relation.
    pub relation: Arc<Relation>,
    /// Where its rows are.
    pub source: Arc<dyn RelationSource>,
    /// The columns wanted.
    pub columns: Vec<ScanColumn>,
    /// Their schema.
    pub schema: SchemaRef,
    /// What rows are wanted.
    pub bounds: Bounds,
    /// Tests of parts of the log.
    pub pruning: Option<Arc<Pruning>>,
    /// The only keys of a table that are wanted.
    pub lookup: Option<Vec<ArrayRef>>,
    /// How many, when no filter follows.
    pub limit: Option<usize>,
    /// Threads.
    pub parallelism: usize,
}

/// A scan of one relation.
#[derive(Debug)]
pub struct ScanExec {
    target: ScanTarget,
    rounds: Mutex<Rounds>,
    /// Each partition is one iterator, in their order.
    is_in_parts: bool,
    scanned: Arc<ScanMetrics>,
    summary: OnceLock<Option<ScanSummary>>,
    properties: Arc<PlanProperties>,
    metrics: ExecutionPlanMetricsSet,
}

/// Iterators that several threads read, each one by one thread; `None` for one that is taken.
type Queue = Arc<Mutex<VecDeque<Option<BatchIter>>>>;
/// Threads that a scan in parts is cut for: its parts are as small as is worth a thread.
const THREADS_OF_PARTS: usize = 1 << 20;

/// The scan as often as it was opened: once, but for recursive queries.
struct Rounds {
    queues: Vec<Queue>,
    /// How often each partition was read.
    taken: Vec<usize>,
}

impl fmt::Debug for Rounds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Rounds({}, {:?})", self.queues.len(), self.taken)
    }
}

impl ScanExec {
    /// Opens the scan: what it will read is fixed from here on.
    ///
    /// # Errors
    /// Those of the port.
    pub fn open(target: ScanTarget) -> Result<Self> {
        let scanned = Arc::new(ScanMetrics::default());
        let opened = open(&target, &scanned)?;
        let threads = if target.lookup.is_some() { 1 } else { target.parallelism.max(1) };
        let partitions = opened.len().clamp(1, threads);
        let properties = PlanProperties::new(
            EquivalenceProperties::new(Arc::clone(&target.schema)),
            Partitioning::UnknownPartitioning(partitions),
            EmissionType::Incremental,
            Boundedness::Bounded,
        )
        .with_scheduling_type(SchedulingType::Cooperative);
        let rounds = Rounds { queues: vec![Arc::new(Mutex::new(opened))], taken: vec![0; partitions] };
        let metrics = ExecutionPlanMetricsSet::new();
        let (rounds, properties, summary) = (Mutex::new(rounds), Arc::new(properties), OnceLock::new());
        Ok(Self { target, rounds, is_in_parts: false, scanned, summary, properties, metrics })
    }

    /// The same scan with a partition for each part of the log, in its order.
    ///
    /// # Errors
    /// Those of the port.
    pub(super) fn in_parts(&self) -> Result<Self> {
        if self.target.relation.has_tombstones() {
            return Ok(self.by_part());
        }
        let target = ScanTarget { parallelism: THREADS_OF_PARTS, ..self.target.clone() };
        Ok(Self { is_in_parts: true, ..Self::open(target)? })
    }

    /// The same scan with a partition for each iterator of the port: as small as they get where the rows are in memory.
    fn by_part(&self) -> Self {
        let queues = self.rounds.lock().unwrap_or_else(PoisonError::into_inner).queues.clone();
        let parts = queues.first().map_or(0, |queue| queue.lock().unwrap_or_else(PoisonError::into_inner).len());
        let properties =
            PlanProperties::clone(&self.properties).with_partitioning(Partitioning::UnknownPartitioning(parts));
        Self {
            target: self.target.clone(),
            rounds: Mutex::new(Rounds { queues, taken: vec![0; parts] }),
            is_in_parts: true,
            scanned: Arc::clone(&self.scanned),
            summary: self.summary.clone(),
            properties: Arc::new(properties),
            metrics: ExecutionPlanMetricsSet::new(),
        }
    }

    /// The iterators `partition` shares with the others; opened anew when it has read them before, as recursive queries do.
    fn take(&self, partition: usize) -> Result<Queue> {
        let mut rounds = self.rounds.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(round) = rounds.taken.get_mut(partition) else {
            return Err(external(SqlError::internal("a scan has fewer partitions than are read")));
        };
        let at = *round;
        *round += 1;
        if let Some(queue) = rounds.queues.get(at) {
            return Ok(Arc::clone(queue));
        }
        let queue: Queue = Arc::new(Mutex::new(open(&self.target, &self.scanned)?));
        rounds.queues.push(Arc::clone(&queue));
        Ok(queue)
    }

    /// What metadata knows of the rows; `None` when a bound may give more rows than it says.
    fn summary(&self) -> Option<ScanSummary> {
        let target = &self.target;
        let is_exact = target.bounds.rowtime() == (None, None)
            && target.limit.is_none()
            && target.pruning.is_none()
            && target.lookup.is_none();
        let request = || request(target, &self.scanned);
        *self.summary.get_or_init(|| target.source.summary(&target.relation, &request()).filter(|_| is_exact))
    }

    /// What was read and skipped, for people.
    pub(super) fn counted(&self) -> String {
        let value = |count| self.scanned.value(count);
        let (rows, bytes) = (value(ScanCount::Rows), value(ScanCount::Bytes));
        if self.target.lookup.is_some() {
            return format!("Read: {rows} rows, {bytes} bytes");
        }
        let skipped = value(ScanCount::SegmentsSkipped);
        let by_filter = value(ScanCount::SegmentsSkippedByFilter);
        format!(
            "Read: {} segments, {} batches, {rows} rows, {bytes} bytes; skipped: {skipped} segments ({} by statistics, \
             {by_filter} by bloom filter), {} batches",
            value(ScanCount::SegmentsRead),
            value(ScanCount::BatchesRead),
            skipped.saturating_sub(by_filter),
            value(ScanCount::BatchesSkipped),
        )
    }
}

fn request(target: &ScanTarget, metrics: &Arc<ScanMetrics>) -> ScanRequest {
    ScanRequest {
        projection: target.columns.clone(),
        offsets: target.bounds.offsets(),
        partitions: target.bounds.partitions(target.relation.options.partitions),
        rowtime: target.bounds.rowtime(),
        pruning: target.pruning.clone(),
        lookup: target.lookup.clone(),
        limit: target.limit,
        parallelism: target.parallelism,
        metrics: Arc::clone(metrics),
    }
}

fn open(target: &ScanTarget, metrics: &Arc<ScanMetrics>) -> Result<VecDeque<Option<BatchIter>>> {
    Ok(target
        .source
        .scan(&target.relation, request(target, metrics))
        .map_err(external)?
        .into_iter()
        .map(Some)
        .collect())
}

impl DisplayAs for ScanExec {
    fn fmt_as(&self, _: DisplayFormatType, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<&str> = self.target.schema.fields().iter().map(|field| field.name().as_str()).collect();
        let partitions = self.properties.partitioning.partition_count();
        if let Some(keys) = &self.target.lookup {
            let (name, keys) = (&self.target.relation.name, keys.first().map_or(0, |column| column.len()));
            return write!(f, "Index lookup on {name} using primary key: columns=[{}], keys={keys}", names.join(", "));
        }
        write!(f, "Scan: {}, columns=[{}]", self.target.relation.name, names.join(", "))?;
        if let Some(range) = self.target.bounds.offsets() {
            match range.end.value() {
                u64::MAX => write!(f, ", offsets={}..", range.start)?,
                end => write!(f, ", offsets={}..{end}", range.start)?,
            }
        }
        if let Some(list) = self.target.bounds.partitions(self.target.relation.options.partitions) {
            let list: Vec<String> = list.iter().map(ToString::to_string).collect();
            write!(f, ", partitions=[{}]", list.join(", "))?;
        }
        let (first, last) = self.target.bounds.rowtime();
        if let Some(first) = first {
            write!(f, ", rowtime>={}", shown(first.micros()))?;
        }
        if let Some(last) = last {
            write!(f, ", rowtime<={}", shown(last.micros()))?;
        }
        if let Some(pruning) = &self.target.pruning {
            write!(f, ", pruning=[{}]", pruning.shown())?;
        }
        if let Some(limit) = self.target.limit {
            write!(f, ", limit={limit}")?;
        }
        let word = if self.is_in_parts { "parts" } else { "parallel" };
        write!(f, ", {word}={partitions}")
    }
}

fn shown(micros: i64) -> String {
    match chrono::DateTime::from_timestamp_micros(micros) {
        Some(time) => time.format("%Y-%m-%d %H:%M:%S%.6f+00").to_string(),
        None => micros.to_string(),
    }
}

impl ExecutionPlan for ScanExec {
    fn name(&self) -> &str {
        "Scan"
    }

    fn properties(&self) -> &Arc<PlanProperties> {
        &self.properties
    }

    fn children(&self) -> Vec<&Arc<dyn ExecutionPlan>> {
        Vec::new()
    }

    fn apply_expressions(
        &self,
        _: &mut dyn FnMut(&Arc<dyn PhysicalExpr>) -> Result<TreeNodeRecursion>,
    ) -> Result<TreeNodeRecursion> {
        Ok(TreeNodeRecursion::Continue)
    }

    fn replace_children(
        self: Arc<Self>,
        _: Vec<Arc<dyn ExecutionPlan>>,
        _: ReplaceChildrenOptions,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        Ok(self)
    }

    fn with_new_children(self: Arc<Self>, _: Vec<Arc<dyn ExecutionPlan>>) -> Result<Arc<dyn ExecutionPlan>> {
        Ok(self)
    }

    fn execute(&self, partition: usize, context: Arc<TaskContext>) -> Result<SendableRecordBatchStream> {
        Ok(Box::pin(ScanStream {
            queue: self.take(partition)?,
            part: self.is_in_parts.then_some(partition),
            reading: None,
            schema: Arc::clone(&self.target.schema),
            rows_of_turn: 0,
            interrupts: context.session_config().get_extension().unwrap_or_default(),
            metrics: BaselineMetrics::new(&self.metrics, partition),
        }))
    }

    fn metrics(&self) -> Option<MetricsSet> {
        Some(self.metrics.clone_inner())
    }

    fn statistics_from_inputs(&self, _: &[Arc<Statistics>], args: &StatisticsArgs) -> Result<Arc<Statistics>> {
        let target = &self.target;
        let mut statistics = Statistics::new_unknown(&target.schema);
        if args.partition().is_some() && self.properties.partitioning.partition_count() != 1 {
            return Ok(Arc::new(statistics));
        }
        match self.summary() {
            None => {
                let rows = target.source.summary(&target.relation, &ScanRequest::default());
                statistics.num_rows = rows.map_or(Precision::Absent, |known| Precision::Inexact(known.rows.as_usize()));
            }
            Some(summary) => {
                statistics.num_rows = Precision::Exact(summary.rows.as_usize());
                for (column, statistics) in target.columns.iter().zip(&mut statistics.column_statistics) {
                    if let Some((least, greatest)) = ends(&summary, column, &target.relation) {
                        statistics.null_count = Precision::Exact(0);
                        statistics.min_value = Precision::Exact(least);
                        statistics.max_value = Precision::Exact(greatest);
                    }
                }
            }
        }
        Ok(Arc::new(statistics))
    }
}

/// The least and the greatest value of a column, when metadata knows them.
fn ends(summary: &ScanSummary, column: &ScanColumn, relation: &Relation) -> Option<(ScalarValue, ScalarValue)> {
    let offset = |offset: Offset| i64::try_from(offset.value()).ok().map(|offset| ScalarValue::Int64(Some(offset)));
    let time = |time: Timestamp| ScalarValue::TimestampMicrosecond(Some(time.micros()), Some("UTC".into()));
    match column {
        ScanColumn::RowOffset => {
            let (first, last) = summary.offsets?;
            Some((offset(first)?, offset(last)?))
        }
        ScanColumn::Stored(at) if *at == relation.schema.columns.len() => {
            let (first, last) = summary.rowtime?;
            Some((time(first), time(last)))
        }
        _ => None,
    }
}

/// Batches of one partition; reads at most one per poll.
struct ScanStream {
    queue: Queue,
    /// The only iterator it reads.
    part: Option<usize>,
    reading: Option<BatchIter>,
    schema: SchemaRef,
    rows_of_turn: usize,
    interrupts: Arc<Interrupts>,
    metrics: BaselineMetrics,
}

impl ScanStream {
    fn next_batch(&mut self) -> Option<Result<RecordBatch>> {
        let timer = self.metrics.elapsed_compute().clone();
        let _timer = timer.timer();
        loop {
            if self.reading.is_none() {
                let mut queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
                let taken = match self.part {
                    Some(part) => queue.get_mut(part)?.take()?,
                    None => queue.pop_front()??,
                };
                drop(queue);
                self.reading = Some(taken);
            }
            match self.reading.as_mut()?.next() {
                Some(Ok(batch)) => return Some(with_schema(batch, &self.schema)),
                Some(Err(error)) => return Some(Err(external(error))),
                None => self.reading = None,
            }
        }
    }
}

/// The columns of `batch` under `schema`; no data is copied.
fn with_schema(batch: RecordBatch, schema: &SchemaRef) -> Result<RecordBatch> {
    let options = RecordBatchOptions::new().with_row_count(Some(batch.num_rows()));
    RecordBatch::try_new_with_options(Arc::clone(schema), batch.columns().to_vec(), &options)
        .map_err(|error| DataFusionError::ArrowError(Box::new(error), None))
}

impl Stream for ScanStream {
    type Item = Result<RecordBatch>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        if self.rows_of_turn >= ROWS_PER_TURN {
            self.rows_of_turn = 0;
            context.waker().wake_by_ref();
            return Poll::Pending;
        }
        if let Err(error) = self.interrupts.check() {
            return Poll::Ready(Some(Err(error)));
        }
        let next = self.next_batch();
        if let Some(Ok(batch)) = &next {
            self.rows_of_turn += batch.num_rows().max(1);
        }
        self.metrics.record_poll(Poll::Ready(next))
    }
}

impl RecordBatchStream for ScanStream {
    fn schema(&self) -> SchemaRef {
        Arc::clone(&self.schema)
    }
}
