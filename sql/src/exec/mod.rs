//! Bounded execution of planned SELECTs.
//!
//! Owns the scan over the port, the memory bound of a query and the stream of its batches. Leaves out planning
//! (`plan`) and where rows are kept (`ports`). Called by the engine. A crash ends the query and nothing else.

pub mod bounds;
pub mod scan;
pub mod table;

use crate::error::SqlError;
use arrow::array::RecordBatch;
use futures::Stream;
use std::pin::Pin;

/// The rows of a running query; dropping it cancels the query.
pub type BatchStream = Pin<Box<dyn Stream<Item = Result<RecordBatch, SqlError>> + Send>>;
