//! The text of `EXPLAIN [ANALYZE]` for pull queries.
//!
//! Leaves out continuous queries, whose pipelines describe themselves. Pure but for running the query under ANALYZE.

use super::{physical_plan, session};
use crate::error::SqlError;
use crate::plan::{PlanContext, PlannedSelect};
use datafusion::common::ScalarValue;
use datafusion::physical_plan::display::DisplayableExecutionPlan;
use datafusion::physical_plan::execute_stream;
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
    let text = match mode {
        ExplainMode::Plan => DisplayableExecutionPlan::new(plan.as_ref()).indent(false).to_string(),
        ExplainMode::Analyze => {
            let mut rows = execute_stream(Arc::clone(&plan), state.task_ctx())?;
            while let Some(batch) = rows.next().await {
                batch?;
            }
            DisplayableExecutionPlan::with_metrics(plan.as_ref()).indent(false).to_string()
        }
    };
    Ok(text.lines().map(str::to_owned).collect())
}
