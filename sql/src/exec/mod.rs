//! Bounded execution of planned SELECTs.
//!
//! Owns the scan over the port, the memory bound of a query and the stream of its batches. Leaves out planning
//! (`plan`) and where rows are kept (`ports`). Called by the engine. A crash ends the query and nothing else.

pub mod bounds;
mod error;
mod explain;
mod in_order;
mod interrupt;
mod memory;
pub mod pruning;
pub mod scan;
pub(crate) mod session;
pub mod table;

pub use explain::{ExplainMode, explain};
pub use interrupt::{Interrupts, StopOnDrop};
pub use memory::QueryMemory;

/// A query that runs: its rows, and how it gets them.
pub struct Running {
    /// The rows; dropping it cancels the query.
    pub rows: BatchStream,
    /// What it runs.
    pub plan: RunningPlan,
}

/// The parts of a query that runs, or ran.
#[derive(Debug)]
pub struct RunningPlan(Arc<dyn ExecutionPlan>);

impl RunningPlan {
    /// The lines of `EXPLAIN ANALYZE`: what each part did so far.
    pub fn lines(&self) -> Vec<String> {
        explain::lines(self.0.as_ref(), ExplainMode::Analyze)
    }
}

use crate::error::SqlError;
use crate::plan::{PlanContext, PlannedSelect, with_values};
use arrow::array::RecordBatch;
use datafusion::common::ScalarValue;
use datafusion::execution::SessionState;
use datafusion::logical_expr::LogicalPlan;
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
/// Dropping the stream stops the query at the batch it is in. While a thread is inside of the stream, only
/// [`PlanSettings::interrupts`](crate::plan::PlanSettings::interrupts) do.
pub async fn execute(
    context: &PlanContext,
    planned: &PlannedSelect,
    params: Vec<ScalarValue>,
) -> Result<BatchStream, SqlError> {
    Ok(start(context, planned, params).await?.rows)
}

/// The same as [`execute`], for who wants to know what the query did.
///
/// # Errors
/// As of [`execute`].
pub async fn start(
    context: &PlanContext,
    planned: &PlannedSelect,
    params: Vec<ScalarValue>,
) -> Result<Running, SqlError> {
    let state = session::session(&context.settings)?;
    let plan = physical_plan(&state, planned, params).await?;
    let stream = execute_stream(Arc::clone(&plan), state.task_ctx())?;
    Ok(Running { rows: Box::pin(stream.map(|batch| batch.map_err(SqlError::from))), plan: RunningPlan(plan) })
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
    let plan = session::optimizer(state, &plan)?.optimize(plan, state, |_, _| {})?;
    let plan = threaded(state, plan).await?;
    match state.config().get_extension::<Interrupts>() {
        Some(interrupts) => Ok(interrupt::interruptible(plan, &interrupts)?),
        None => Ok(plan),
    }
}

async fn threaded(state: &SessionState, plan: LogicalPlan) -> Result<Arc<dyn ExecutionPlan>, SqlError> {
    let threads = state.config().target_partitions();
    if threads == 1 {
        return Ok(state.query_planner().create_physical_plan(&plan, state).await?);
    }
    if in_order::has_ordered_aggregate(&plan)? {
        // On the heap: it is large, and held while the query is planned.
        let mut state = Box::new(state.clone());
        state.config_mut().options_mut().execution.target_partitions = 1;
        return Ok(state.query_planner().create_physical_plan(&plan, state.as_ref()).await?);
    }
    Ok(in_order::in_order(state.query_planner().create_physical_plan(&plan, state).await?, threads)?)
}
