//! Bounded execution of planned SELECTs.
//!
//! Owns the scan over the port, the memory bound of a query and the stream of its batches. Leaves out planning
//! (`plan`) and where rows are kept (`ports`). Called by the engine. A crash ends the query and nothing else.

pub mod bounds;
mod error;
mod explain;
pub mod scan;
pub(crate) mod session;
pub mod table;

pub use explain::{ExplainMode, explain};

use crate::error::SqlError;
use crate::plan::{PlanContext, PlannedSelect};
use arrow::array::RecordBatch;
use datafusion::common::tree_node::Transformed;
use datafusion::common::{DataFusionError, ScalarValue};
use datafusion::execution::SessionState;
use datafusion::logical_expr::expr::Placeholder;
use datafusion::logical_expr::{Expr, LogicalPlan};
use datafusion::physical_plan::{ExecutionPlan, execute_stream};
use futures::{Stream, StreamExt};
use millstream_catalog::model::SqlState;
use std::pin::Pin;
use std::sync::Arc;

/// The rows of a running query; dropping it cancels the query.
pub type BatchStream = Pin<Box<dyn Stream<Item = Result<RecordBatch, SqlError>> + Send>>;

/// Runs `planned` with the values of its parameters.
///
/// Batches have the Arrow types of the result's SQL types; their field names are internal. The stream works on the
/// thread that polls it and on tasks it starts, and yields at least every half million rows.
///
/// # Errors
/// Those of optimisation, and of opening the scans; later ones come through the stream.
///
/// # Cancellation
/// Dropping the stream stops the query at the batch it is in.
pub async fn execute(
    context: &PlanContext,
    planned: &PlannedSelect,
    params: Vec<ScalarValue>,
) -> Result<BatchStream, SqlError> {
    let state = session::session(&context.settings)?;
    let physical = physical_plan(&state, planned, params).await?;
    let stream = execute_stream(physical, state.task_ctx())?;
    Ok(Box::pin(stream.map(|batch| batch.map_err(SqlError::from))))
}

async fn physical_plan(
    state: &SessionState,
    planned: &PlannedSelect,
    params: Vec<ScalarValue>,
) -> Result<Arc<dyn ExecutionPlan>, SqlError> {
    if params.len() != planned.params.len() {
        let fact =
            format!("the statement has {} parameters, but {} values were given", planned.params.len(), params.len());
        return Err(SqlError::new(SqlState::ProtocolViolation, fact));
    }
    let plan = with_values(planned.plan.clone(), params)?;
    let plan = state.optimizer().optimize(plan, state, |_, _| {})?;
    Ok(state.query_planner().create_physical_plan(&plan, state).await?)
}

/// `plan` with `values` in place of `$1 …`.
pub(crate) fn with_values(plan: LogicalPlan, values: Vec<ScalarValue>) -> Result<LogicalPlan, SqlError> {
    if values.is_empty() {
        return Ok(plan);
    }
    let value_of = |id: &str| {
        let at = id.trim_start_matches('$').parse::<usize>().ok()?.checked_sub(1)?;
        values.get(at).cloned()
    };
    let plan = crate::plan::map_expressions(plan, |expr| match &expr {
        Expr::Placeholder(Placeholder { id, field }) => {
            let no_value =
                || crate::function::errors::fail(SqlState::UndefinedParameter, format!("there is no parameter {id}"));
            let value = value_of(id).ok_or_else(no_value)?;
            let value = match field {
                Some(field) if *field.data_type() != value.data_type() => value.cast_to(field.data_type())?,
                _ => value,
            };
            let metadata = field.as_ref().filter(|field| !field.metadata().is_empty());
            let metadata =
                metadata.map(|field| datafusion::logical_expr::expr::FieldMetadata::from(field.metadata().clone()));
            Ok(Transformed::yes(Expr::Literal(value, metadata)))
        }
        _ => Ok(Transformed::no(expr)),
    });
    plan.map_err(|error: DataFusionError| SqlError::from(error))
}
