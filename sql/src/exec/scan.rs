//! The scan of a relation as an operator of a bounded query.
//!
//! Owns opening the port, grouping its iterators into partitions, and yielding between batches. Leaves out storage, and
//! evaluating filters. A dropped stream stops reading at the batch it is in.

use crate::error::SqlError;
use crate::exec::bounds::Bounds;
use crate::function::errors::external;
use crate::ports::{BatchIter, RelationSource, ScanColumn, ScanMetrics, ScanRequest};
use arrow::array::{RecordBatch, RecordBatchOptions};
use arrow::datatypes::SchemaRef;
use datafusion::common::stats::Precision;
use datafusion::common::tree_node::TreeNodeRecursion;
use datafusion::common::{DataFusionError, Result, Statistics};
use datafusion::execution::{SendableRecordBatchStream, TaskContext};
use datafusion::physical_expr::{EquivalenceProperties, PhysicalExpr};
use datafusion::physical_plan::execution_plan::{Boundedness, EmissionType, ReplaceChildrenOptions, SchedulingType};
use datafusion::physical_plan::metrics::{
    BaselineMetrics, Count, ExecutionPlanMetricsSet, Metric, MetricValue, MetricsSet,
};
use datafusion::physical_plan::statistics::StatisticsArgs;
use datafusion::physical_plan::{
    DisplayAs, DisplayFormatType, ExecutionPlan, Partitioning, PlanProperties, RecordBatchStream,
};
use futures::Stream;
use millstream_catalog::Relation;
use std::fmt;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
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
    /// How many, when no filter follows.
    pub limit: Option<usize>,
    /// Threads.
    pub parallelism: usize,
}

/// A scan of one relation.
#[derive(Debug)]
pub struct ScanExec {
    target: ScanTarget,
    opened: Mutex<Vec<Option<Reading>>>,
    scanned: Arc<ScanMetrics>,
    properties: Arc<PlanProperties>,
    metrics: ExecutionPlanMetricsSet,
}

/// The iterators of one partition, read one after the other.
struct Reading(std::collections::VecDeque<BatchIter>);

impl fmt::Debug for Reading {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Reading({})", self.0.len())
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
        let properties = PlanProperties::new(
            EquivalenceProperties::new(Arc::clone(&target.schema)),
            Partitioning::UnknownPartitioning(opened.len()),
            EmissionType::Incremental,
            Boundedness::Bounded,
        )
        .with_scheduling_type(SchedulingType::Cooperative);
        let opened = Mutex::new(opened.into_iter().map(Some).collect());
        let metrics = ExecutionPlanMetricsSet::new();
        Ok(Self { target, opened, scanned, properties: Arc::new(properties), metrics })
    }

    /// The iterators of `partition`; opened anew when they were read before, as recursive queries do.
    fn take(&self, partition: usize) -> Result<Reading> {
        let mut opened = self.opened.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(reading) = opened.get_mut(partition).and_then(Option::take) {
            return Ok(reading);
        }
        let again = open(&self.target, &self.scanned)?;
        again
            .into_iter()
            .nth(partition)
            .ok_or_else(|| external(SqlError::internal("a repeated scan has fewer partitions than the first")))
    }
}

fn open(target: &ScanTarget, metrics: &Arc<ScanMetrics>) -> Result<Vec<Reading>> {
    let request = ScanRequest {
        projection: target.columns.clone(),
        offsets: target.bounds.offsets(),
        partitions: target.bounds.partitions(target.relation.options.partitions),
        rowtime: target.bounds.rowtime(),
        limit: target.limit,
        parallelism: target.parallelism,
        metrics: Arc::clone(metrics),
    };
    let iterators = target.source.scan(&target.relation, request).map_err(external)?;
    let count = iterators.len().clamp(1, target.parallelism.max(1));
    let mut readings: Vec<Reading> = (0..count).map(|_| Reading(Default::default())).collect();
    for (at, iterator) in iterators.into_iter().enumerate() {
        readings[at % count].0.push_back(iterator);
    }
    Ok(readings)
}

impl DisplayAs for ScanExec {
    fn fmt_as(&self, _: DisplayFormatType, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<&str> = self.target.schema.fields().iter().map(|field| field.name().as_str()).collect();
        let partitions = self.properties.partitioning.partition_count();
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
        if let Some(limit) = self.target.limit {
            write!(f, ", limit={limit}")?;
        }
        write!(f, ", parallel={partitions}")
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

    fn execute(&self, partition: usize, _: Arc<TaskContext>) -> Result<SendableRecordBatchStream> {
        Ok(Box::pin(ScanStream {
            reading: self.take(partition)?,
            schema: Arc::clone(&self.target.schema),
            rows_of_turn: 0,
            metrics: BaselineMetrics::new(&self.metrics, partition),
        }))
    }

    fn metrics(&self) -> Option<MetricsSet> {
        let mut metrics = self.metrics.clone_inner();
        let counts =
            [("segments_read", self.scanned.segments_read()), ("segments_skipped", self.scanned.segments_skipped())];
        for (name, value) in counts {
            let count = Count::new();
            count.add(usize::try_from(value).unwrap_or(usize::MAX));
            metrics.push(Arc::new(Metric::new(MetricValue::Count { name: name.into(), count }, None)));
        }
        Some(metrics)
    }

    fn statistics_from_inputs(&self, _: &[Arc<Statistics>], args: &StatisticsArgs) -> Result<Arc<Statistics>> {
        let mut statistics = Statistics::new_unknown(&self.target.schema);
        let partitions = self.properties.partitioning.partition_count();
        let rows = self.target.source.row_count(&self.target.relation);
        if let Some(rows) = rows.filter(|_| args.partition().is_none() || partitions == 1) {
            let is_whole = self.target.bounds.is_empty() && self.target.limit.is_none();
            let rows = rows.as_usize();
            statistics.num_rows = if is_whole { Precision::Exact(rows) } else { Precision::Inexact(rows) };
        }
        Ok(Arc::new(statistics))
    }
}

/// Batches of one partition; reads at most one per poll.
struct ScanStream {
    reading: Reading,
    schema: SchemaRef,
    rows_of_turn: usize,
    metrics: BaselineMetrics,
}

impl ScanStream {
    fn next_batch(&mut self) -> Option<Result<RecordBatch>> {
        let timer = self.metrics.elapsed_compute().clone();
        let _timer = timer.timer();
        loop {
            let iterator = self.reading.0.front_mut()?;
            match iterator.next() {
                Some(Ok(batch)) => return Some(with_schema(batch, &self.schema)),
                Some(Err(error)) => return Some(Err(external(error))),
                None => drop(self.reading.0.pop_front()),
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
