//! Rows in the order of the log although several threads read it.
//!
//! What a query gives without ORDER BY is what it reads, in the order it was written: an INSERT of it keeps the later
//! of two rows of a key, and so must the copy of a stream. Owns that the parts of a scan are given out one after the
//! other wherever nothing between the scan and the result reorders rows. Leaves out aggregates, joins that share their
//! work by keys, and sorts, which have no order to keep. Called when a query is planned.

use super::scan::ScanExec;
use datafusion::common::Result;
use datafusion::common::tree_node::{TreeNode, TreeNodeRecursion};
use datafusion::execution::{SendableRecordBatchStream, TaskContext};
use datafusion::logical_expr::{Expr, LogicalPlan};
use datafusion::physical_expr::{EquivalenceProperties, PhysicalExpr};
use datafusion::physical_plan::coalesce_partitions::CoalescePartitionsExec;
use datafusion::physical_plan::common::spawn_buffered;
use datafusion::physical_plan::execution_plan::{ChildrenPropertiesMode, ReplaceChildrenOptions, SchedulingType};
use datafusion::physical_plan::limit::GlobalLimitExec;
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use datafusion::physical_plan::union::UnionExec;
use datafusion::physical_plan::unnest::UnnestExec;
use datafusion::physical_plan::{
    DisplayAs, DisplayFormatType, ExecutionPlan, ExecutionPlanProperties, Partitioning, PlanProperties,
};
use futures::StreamExt;
use std::collections::VecDeque;
use std::fmt;
use std::sync::Arc;

/// Batches that a part may be ahead of the one before it: with a filter a part of 65,536 rows gives eight.
const BATCHES_AHEAD: usize = 8;

/// Aggregates whose result depends on the order of rows.
const ORDERED_AGGREGATES: [&str; 5] = ["array_agg", "string_agg", "first_value", "last_value", "nth_value"];

/// True if a result of `plan` depends on the order in which an aggregate takes rows.
pub(super) fn has_ordered_aggregate(plan: &LogicalPlan) -> Result<bool> {
    let mut is_found = false;
    plan.apply_with_subqueries(|node| {
        if let LogicalPlan::Aggregate(aggregate) = node {
            for expr in &aggregate.aggr_expr {
                expr.apply(|expr| {
                    is_found |= matches!(expr, Expr::AggregateFunction(call)
                        if call.params.order_by.is_empty() && ORDERED_AGGREGATES.contains(&call.func.name()));
                    Ok(TreeNodeRecursion::Continue)
                })?;
            }
        }
        Ok(TreeNodeRecursion::Continue)
    })?;
    Ok(is_found)
}

/// `plan` with its rows in the order they are read, as far as nothing in it reorders them.
pub(super) fn in_order(plan: Arc<dyn ExecutionPlan>, threads: usize) -> Result<Arc<dyn ExecutionPlan>> {
    if let Some(merged) = plan.downcast_ref::<CoalescePartitionsExec>() {
        let Some(input) = in_parts(merged.input())? else { return Ok(plan) };
        let ordered: Arc<dyn ExecutionPlan> = Arc::new(InOrderExec::new(input, threads));
        return Ok(match merged.fetch() {
            Some(rows) => Arc::new(GlobalLimitExec::new(ordered, 0, Some(rows))),
            None => ordered,
        });
    }
    if plan.output_partitioning().partition_count() > 1 {
        return Ok(match in_parts(&plan)? {
            Some(input) => Arc::new(InOrderExec::new(input, threads)),
            None => plan,
        });
    }
    // What wants its input sorted merges parts by that order itself.
    let wants_order = plan.required_input_ordering().iter().any(Option::is_some);
    match plan.children().as_slice() {
        [input] if !wants_order && plan.maintains_input_order() == [true] => {
            let input = in_order(Arc::clone(input), threads)?;
            with_inputs(plan, vec![input])
        }
        _ => Ok(plan),
    }
}

/// `plan` with one partition for each part of its scans, in order; `None` if it gives rows in another order.
fn in_parts(plan: &Arc<dyn ExecutionPlan>) -> Result<Option<Arc<dyn ExecutionPlan>>> {
    let partitions = |plan: &Arc<dyn ExecutionPlan>| plan.output_partitioning().partition_count();
    if partitions(plan) == 1 {
        return Ok(Some(Arc::clone(plan)));
    }
    if let Some(scan) = plan.downcast_ref::<ScanExec>() {
        return Ok(Some(Arc::new(scan.in_parts()?)));
    }
    let is_union = plan.downcast_ref::<UnionExec>().is_some();
    let is_unnest = plan.downcast_ref::<UnnestExec>().is_some();
    let mut children = Vec::new();
    for (input, keeps_order) in plan.children().into_iter().zip(plan.maintains_input_order()) {
        let is_side = partitions(input) == 1;
        let is_main = partitions(input) == partitions(plan) && (keeps_order || is_unnest);
        children.push(match is_side || is_main || is_union {
            true => match in_parts(input)? {
                Some(input) => input,
                None => return Ok(None),
            },
            false => return Ok(None),
        });
    }
    Ok(if children.is_empty() { None } else { Some(with_inputs(Arc::clone(plan), children)?) })
}

fn with_inputs(plan: Arc<dyn ExecutionPlan>, inputs: Vec<Arc<dyn ExecutionPlan>>) -> Result<Arc<dyn ExecutionPlan>> {
    plan.replace_children(inputs, ReplaceChildrenOptions::new(ChildrenPropertiesMode::Recompute))
}

/// The partitions of its input, one after the other; several are worked on at once.
#[derive(Debug)]
struct InOrderExec {
    input: Arc<dyn ExecutionPlan>,
    threads: usize,
    properties: Arc<PlanProperties>,
}

impl InOrderExec {
    fn new(input: Arc<dyn ExecutionPlan>, threads: usize) -> Self {
        let properties = PlanProperties::new(
            EquivalenceProperties::new(input.schema()),
            Partitioning::UnknownPartitioning(1),
            input.pipeline_behavior(),
            input.boundedness(),
        )
        .with_scheduling_type(SchedulingType::Cooperative);
        Self { input, threads, properties: Arc::new(properties) }
    }
}

impl DisplayAs for InOrderExec {
    fn fmt_as(&self, _: DisplayFormatType, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "InOrder: parallel={}", self.threads)
    }
}

impl ExecutionPlan for InOrderExec {
    fn name(&self) -> &str {
        "InOrder"
    }

    fn properties(&self) -> &Arc<PlanProperties> {
        &self.properties
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
            Some(input) => Arc::new(Self::new(input, self.threads)),
            None => self,
        })
    }

    fn execute(&self, _: usize, context: Arc<TaskContext>) -> Result<SendableRecordBatchStream> {
        let parts = Parts {
            input: Arc::clone(&self.input),
            context,
            next: 0,
            // One more than threads: who is done early finds another.
            begun_max: self.threads.saturating_add(1),
            begun: VecDeque::new(),
        };
        let rows = futures::stream::unfold(parts, |mut parts| async move {
            loop {
                if let Err(error) = parts.begin() {
                    parts.next = usize::MAX;
                    parts.begun.clear();
                    return Some((Err(error), parts));
                }
                match parts.begun.front_mut()?.next().await {
                    Some(batch) => return Some((batch, parts)),
                    None => drop(parts.begun.pop_front()),
                }
            }
        });
        Ok(Box::pin(RecordBatchStreamAdapter::new(self.input.schema(), rows)))
    }
}

/// The partitions of an input that is read in order.
struct Parts {
    input: Arc<dyn ExecutionPlan>,
    context: Arc<TaskContext>,
    /// The first that is not begun.
    next: usize,
    begun_max: usize,
    begun: VecDeque<SendableRecordBatchStream>,
}

impl Parts {
    /// Begins as many as may be worked on.
    fn begin(&mut self) -> Result<()> {
        while self.begun.len() < self.begun_max && self.next < self.input.output_partitioning().partition_count() {
            let part = self.input.execute(self.next, Arc::clone(&self.context))?;
            self.begun.push_back(spawn_buffered(part, BATCHES_AHEAD));
            self.next += 1;
        }
        Ok(())
    }
}
