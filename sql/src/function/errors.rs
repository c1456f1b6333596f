//! Errors of functions: a `SqlError` travels inside the engine's error and comes out unchanged.

use crate::error::SqlError;
use datafusion::common::DataFusionError;
use millstream_catalog::model::SqlState;

/// Wraps `error`, so that `SqlError::from` gives it back.
pub fn external(error: SqlError) -> DataFusionError {
    DataFusionError::External(Box::new(error))
}

/// A wrapped error of `state` that says `message`.
pub fn fail(state: SqlState, message: impl Into<String>) -> DataFusionError {
    external(SqlError::new(state, message))
}
