//! The text of `EXPLAIN [ANALYZE]` for pull queries.
//!
//! Leaves out continuous queries, whose pipelines describe themselves. Pure but for running the query under ANALYZE.

use super::interrupt::InterruptExec;
use super::scan::ScanExec;
use super::{physical_plan, session};
use crate::error::SqlError;
use crate::plan::{PlanContext, PlannedSelect};
use datafusion::common::ScalarValue;
use datafusion::physical_plan::display::DisplayableExecutionPlan;
use datafusion::physical_plan::{ExecutionPlan, execute_stream};
use futures::StreamExt;
use std::sync::Arc;

/// What `EXPLAIN` does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExplainMode {
    /// Shows the plan.
    Plan,
    /// Runs the query, and shows the plan with what each part did.
    Analyze,
}

/// The lines of `EXPLAIN` for `planned`.
///
/// Under `Analyze` each part has its rows and the time its work took, summed over threads, and a scan a line more with
/// what it read and skipped.
///
/// # Errors
/// Those of planning, and under `Analyze` those of the query.
pub async fn explain(
    context: &PlanContext,
    planned: &PlannedSelect,
    params: Vec<ScalarValue>,
    mode: ExplainMode,
) -> Result<Vec<String>, SqlError> {
    let state = session::session(&context.settings)?;
    let plan = physical_plan(&state, planned, params).await?;
    if mode == ExplainMode::Analyze {
        let mut rows = execute_stream(Arc::clone(&plan), state.task_ctx())?;
        while let Some(batch) = rows.next().await {
            batch?;
        }
    }
    Ok(lines(plan.as_ref(), mode))
}

/// The lines of a plan.
pub(super) fn lines(plan: &dyn ExecutionPlan, mode: ExplainMode) -> Vec<String> {
    let mut lines = Vec::new();
    describe(plan, mode, 0, &mut lines);
    lines
}

fn describe(plan: &dyn ExecutionPlan, mode: ExplainMode, depth: usize, lines: &mut Vec<String>) {
    if plan.downcast_ref::<InterruptExec>().is_some() {
        return plan.children().into_iter().for_each(|input| describe(input.as_ref(), mode, depth, lines));
    }
    let indent = "  ".repeat(depth);
    let shown = DisplayableExecutionPlan::new(plan).one_line().to_string();
    let shown = shown.trim_end();
    match mode {
        ExplainMode::Plan => lines.push(format!("{indent}{shown}")),
        ExplainMode::Analyze => {
            lines.push(format!("{indent}{shown}{}", actual(plan)));
            if let Some(scan) = plan.downcast_ref::<ScanExec>() {
                lines.push(format!("{indent}  {}", scan.counted()));
            }
        }
    }
    for child in plan.children() {
        describe(child.as_ref(), mode, depth + 1, lines);
    }
}

/// `  (actual time=1.234 rows=5)`, the time in milliseconds as PostgreSQL gives it.
fn actual(plan: &dyn ExecutionPlan) -> String {
    let Some(metrics) = plan.metrics() else { return String::new() };
    let rows = metrics.output_rows().map(|rows| format!(" rows={rows}")).unwrap_or_default();
    match metrics.elapsed_compute() {
        Some(nanos) => format!("  (actual time={:.3}{rows})", nanos as f64 / 1e6),
        None if rows.is_empty() => String::new(),
        None => format!("  (actual{rows})"),
    }
}
