//! Stopping a query in the middle of its work, and its turns on a thread that others need too.
//!
//! A task can be stopped, and lets others run, only where it waits. A join of many rows with many, or an operator that
//! takes all it gets before it gives anything, may not wait for hours. Owns the points in between at which a query looks
//! up: each evaluation of a join's condition, and each batch that sources, joins, sorts, windows and UNNEST give. Leaves
//! out how a thread is given up, and who stops a query (the engine).

use super::scan::ScanExec;
use crate::error::SqlError;
use crate::function::errors::external;
use arrow::array::RecordBatch;
use arrow::datatypes::{DataType, FieldRef, Schema};
use datafusion::common::tree_node::{Transformed, TransformedResult, TreeNode, TreeNodeRecursion};
use datafusion::common::{JoinType, Result, Statistics};
use datafusion::execution::{SendableRecordBatchStream, TaskContext};
use datafusion::logical_expr::ColumnarValue;
use datafusion::physical_expr::PhysicalExpr;
use datafusion::physical_expr::expressions::lit;
use datafusion::physical_plan::execution_plan::{ChildrenPropertiesMode, ReplaceChildrenOptions};
use datafusion::physical_plan::joins::utils::JoinFilter;
use datafusion::physical_plan::joins::{HashJoinExec, NestedLoopJoinExec, NestedLoopJoinExecBuilder};
use datafusion::physical_plan::sorts::sort::SortExec;
use datafusion::physical_plan::sorts::sort_preserving_merge::SortPreservingMergeExec;
use datafusion::physical_plan::statistics::{ChildStats, StatisticsArgs};
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use datafusion::physical_plan::unnest::UnnestExec;
use datafusion::physical_plan::windows::{BoundedWindowAggExec, WindowAggExec};
use datafusion::physical_plan::{DisplayAs, DisplayFormatType, ExecutionPlan, PlanProperties};
use futures::StreamExt;
use millstream_catalog::model::SqlState;
use std::fmt;
use std::hash::{Hash, Hasher};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// What a query looks at between two pieces of its work.
pub struct Interrupts {
    is_stopped: AtomicBool,
    between: Box<dyn Fn() + Send + Sync>,
}

impl Interrupts {
    /// `between` is called often, on whatever thread the query works: there it may let others run.
    pub fn new(between: impl Fn() + Send + Sync + 'static) -> Self {
        Self { is_stopped: AtomicBool::new(false), between: Box::new(between) }
    }

    /// Stops the query when what it returns is dropped.
    pub fn stop_on_drop(self: &Arc<Self>) -> StopOnDrop {
        StopOnDrop(Arc::clone(self))
    }

    /// Lets others run.
    ///
    /// # Errors
    /// 57014 when the query was stopped.
    pub(super) fn check(&self) -> Result<()> {
        if self.is_stopped.load(Ordering::Relaxed) {
            return Err(external(SqlError::new(SqlState::QueryCanceled, "canceling statement due to user request")));
        }
        (self.between)();
        Ok(())
    }
}

impl Default for Interrupts {
    fn default() -> Self {
        Self::new(|| ())
    }
}

impl fmt::Debug for Interrupts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Interrupts({:?})", self.is_stopped)
    }
}

/// Held by whoever waits for a query: it need not go on without.
#[derive(Debug)]
pub struct StopOnDrop(Arc<Interrupts>);

impl Drop for StopOnDrop {
    fn drop(&mut self) {
        self.0.is_stopped.store(true, Ordering::Relaxed);
    }
}

/// `plan` with the points at which it looks at `interrupts`; scans have their own.
pub(super) fn interruptible(
    plan: Arc<dyn ExecutionPlan>,
    interrupts: &Arc<Interrupts>,
) -> Result<Arc<dyn ExecutionPlan>> {
    plan.transform_up(|plan| {
        let plan = match checked_join(plan.as_ref(), interrupts)? {
            Some(join) => join,
            None if is_long(plan.as_ref()) => plan,
            None => return Ok(Transformed::no(plan)),
        };
        Ok(Transformed::yes(Arc::new(InterruptExec { input: plan, interrupts: Arc::clone(interrupts) }) as _))
    })
    .data()
}

/// Whether it may give many batches for few, or for none, or all at the end.
fn is_long(plan: &dyn ExecutionPlan) -> bool {
    (plan.children().len() != 1 && plan.downcast_ref::<ScanExec>().is_none())
        || plan.downcast_ref::<UnnestExec>().is_some()
        || plan.downcast_ref::<SortExec>().is_some()
        || plan.downcast_ref::<SortPreservingMergeExec>().is_some()
        || plan.downcast_ref::<WindowAggExec>().is_some()
        || plan.downcast_ref::<BoundedWindowAggExec>().is_some()
}

/// The same join, interrupted by its condition; `None` if `plan` is none or gives rows for all it finds.
fn checked_join(plan: &dyn ExecutionPlan, interrupts: &Arc<Interrupts>) -> Result<Option<Arc<dyn ExecutionPlan>>> {
    if let Some(join) = plan.downcast_ref::<NestedLoopJoinExec>() {
        let Some(filter) = checked(join.filter(), join.join_type(), interrupts) else { return Ok(None) };
        let join = NestedLoopJoinExecBuilder::from(join).with_filter(Some(filter)).build()?;
        return Ok(Some(Arc::new(join)));
    }
    if let Some(join) = plan.downcast_ref::<HashJoinExec>() {
        let Some(filter) = checked(join.filter(), join.join_type(), interrupts) else { return Ok(None) };
        return Ok(Some(join.builder().with_filter(Some(filter)).build_exec()?));
    }
    Ok(None)
}

fn checked(filter: Option<&JoinFilter>, join_type: &JoinType, interrupts: &Arc<Interrupts>) -> Option<JoinFilter> {
    let checked = |inner| Arc::new(Checked { inner, interrupts: Arc::clone(interrupts) });
    if let Some(filter) = filter {
        let (columns, schema) = (filter.column_indices().to_vec(), Arc::clone(filter.schema()));
        return Some(JoinFilter::new(checked(Arc::clone(filter.expression())), columns, schema));
    }
    let gives_rows = matches!(join_type, JoinType::Inner | JoinType::Left | JoinType::Right | JoinType::Full);
    (!gives_rows).then(|| JoinFilter::new(checked(lit(true)), Vec::new(), Arc::new(Schema::empty())))
}

/// A join's condition that looks up before each evaluation: of one batch with a row, or of a batch of pairs.
#[derive(Debug)]
struct Checked {
    inner: Arc<dyn PhysicalExpr>,
    interrupts: Arc<Interrupts>,
}

impl fmt::Display for Checked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.inner.fmt(f)
    }
}

impl PartialEq for Checked {
    fn eq(&self, other: &Self) -> bool {
        self.inner.eq(&other.inner)
    }
}

impl Eq for Checked {}

impl Hash for Checked {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.inner.hash(state);
    }
}

impl PhysicalExpr for Checked {
    fn data_type(&self, schema: &Schema) -> Result<DataType> {
        self.inner.data_type(schema)
    }

    fn nullable(&self, schema: &Schema) -> Result<bool> {
        self.inner.nullable(schema)
    }

    fn return_field(&self, schema: &Schema) -> Result<FieldRef> {
        self.inner.return_field(schema)
    }

    fn evaluate(&self, batch: &RecordBatch) -> Result<ColumnarValue> {
        self.interrupts.check()?;
        self.inner.evaluate(batch)
    }

    fn children(&self) -> Vec<&Arc<dyn PhysicalExpr>> {
        vec![&self.inner]
    }

    fn with_new_children(self: Arc<Self>, mut children: Vec<Arc<dyn PhysicalExpr>>) -> Result<Arc<dyn PhysicalExpr>> {
        let inner = children.pop().unwrap_or_else(|| Arc::clone(&self.inner));
        Ok(Arc::new(Self { inner, interrupts: Arc::clone(&self.interrupts) }))
    }

    fn fmt_sql(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.inner.fmt_sql(f)
    }
}

/// The rows of its input; looks up before each batch. `EXPLAIN` does not show it.
#[derive(Debug)]
pub(super) struct InterruptExec {
    input: Arc<dyn ExecutionPlan>,
    interrupts: Arc<Interrupts>,
}

impl DisplayAs for InterruptExec {
    fn fmt_as(&self, _: DisplayFormatType, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl ExecutionPlan for InterruptExec {
    fn name(&self) -> &str {
        "Interrupt"
    }

    fn properties(&self) -> &Arc<PlanProperties> {
        self.input.properties()
    }

    fn children(&self) -> Vec<&Arc<dyn ExecutionPlan>> {
        vec![&self.input]
    }

    fn apply_expressions(
        &self,
        _: &mut dyn FnMut(&Arc<dyn PhysicalExpr>) -> Result<TreeNodeRecursion>,
    ) -> Result<TreeNodeRecursion> {
        Ok(TreeNodeRecursion::Continue)
    }

    fn maintains_input_order(&self) -> Vec<bool> {
        vec![true]
    }

    fn with_new_children(self: Arc<Self>, children: Vec<Arc<dyn ExecutionPlan>>) -> Result<Arc<dyn ExecutionPlan>> {
        self.replace_children(children, ReplaceChildrenOptions::new(ChildrenPropertiesMode::Recompute))
    }

    fn replace_children(
        self: Arc<Self>,
        children: Vec<Arc<dyn ExecutionPlan>>,
        _: ReplaceChildrenOptions,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        Ok(match children.into_iter().next() {
            Some(input) => Arc::new(Self { input, interrupts: Arc::clone(&self.interrupts) }),
            None => self,
        })
    }

    fn execute(&self, partition: usize, context: Arc<TaskContext>) -> Result<SendableRecordBatchStream> {
        let interrupts = Arc::clone(&self.interrupts);
        let rows = self.input.execute(partition, context)?.map(move |batch| interrupts.check().and(batch));
        Ok(Box::pin(RecordBatchStreamAdapter::new(self.input.schema(), rows)))
    }

    fn child_stats_requests(&self, partition: Option<usize>) -> Vec<ChildStats> {
        vec![ChildStats::At(partition)]
    }

    fn statistics_from_inputs(&self, inputs: &[Arc<Statistics>], _: &StatisticsArgs) -> Result<Arc<Statistics>> {
        match inputs.first() {
            Some(input) => Ok(Arc::clone(input)),
            None => Ok(Arc::new(Statistics::new_unknown(&self.schema()))),
        }
    }
}
