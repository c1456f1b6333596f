//! What flows between operators: a batch with a weight, an event time and an origin per row.
//!
//! Owns the shape only. Leaves out how operators use it. Lives within one step; a crash loses nothing.

use arrow::array::{Array, BooleanArray, Int8Array, RecordBatch, TimestampMicrosecondArray, UInt32Array};
use arrow::compute;
use millstream_catalog::model::{Offset, PartitionId, RowCount, Timestamp};
use std::sync::Arc;

use crate::error::SqlError;

/// How often each row counts: +1 for a row that is there now, −1 for one that is gone.
#[derive(Debug, Clone)]
pub(crate) enum Weights {
    /// Every row is there.
    Ones,
    /// One weight per row; of a row with −1 only the key columns mean anything.
    Each(Int8Array),
}

impl Weights {
    /// True for a row that is gone.
    pub(crate) fn is_gone(&self, row: usize) -> bool {
        match self {
            Self::Ones => false,
            Self::Each(weights) => weights.value(row) < 0,
        }
    }
}

/// Consecutive rows of a step's input from one partition.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Run {
    /// The partition.
    pub(crate) partition: PartitionId,
    /// The offset of the run's first row.
    pub(crate) offset_start: Offset,
    /// The position of that row in the step's input.
    pub(crate) row_start: usize,
}

/// Where the rows of a step came from, and what time it was at each.
#[derive(Debug, Default)]
pub(crate) struct Origin {
    /// The runs, by ascending `row_start`.
    pub(crate) runs: Vec<Run>,
    /// The query's event time at each input row, in microseconds; empty when the query has no window.
    pub(crate) clock: Vec<i64>,
    /// The time the leader gave this step.
    pub(crate) now: Timestamp,
}

impl Origin {
    /// The partition and offset of an input row.
    pub(crate) fn place(&self, row: usize) -> Option<(PartitionId, Offset)> {
        let index = self.runs.partition_point(|run| run.row_start <= row).checked_sub(1)?;
        let run = self.runs.get(index)?;
        Some((run.partition, run.offset_start.plus(RowCount::of(row - run.row_start))))
    }
}

/// A batch of changes within one step.
#[derive(Debug, Clone)]
pub(crate) struct Delta {
    /// The columns.
    pub(crate) batch: RecordBatch,
    /// The event time per row, never null.
    pub(crate) rowtime: TimestampMicrosecondArray,
    /// The weight per row.
    pub(crate) weights: Weights,
    /// The input row each row stems from; `None` where they are the same.
    pub(crate) rows: Option<UInt32Array>,
    /// Shared by all deltas of a step.
    pub(crate) origin: Arc<Origin>,
}

impl Delta {
    /// Number of rows.
    pub(crate) fn len(&self) -> usize {
        self.batch.num_rows()
    }

    /// The input row that `row` stems from.
    pub(crate) fn input_row(&self, row: usize) -> usize {
        match &self.rows {
            None => row,
            Some(rows) => rows.value(row) as usize,
        }
    }

    /// The rows where `mask` is true; null counts as false.
    pub(crate) fn filter(&self, mask: &BooleanArray) -> Result<Self, SqlError> {
        let rows = match &self.rows {
            None => UInt32Array::from_iter_values(0..self.len() as u32),
            Some(rows) => rows.clone(),
        };
        let weights = match &self.weights {
            Weights::Ones => Weights::Ones,
            Weights::Each(weights) => Weights::Each(downcast(&compute::filter(weights, mask).map_err(arrow_error)?)?),
        };
        Ok(Self {
            batch: compute::filter_record_batch(&self.batch, mask).map_err(arrow_error)?,
            rowtime: downcast(&compute::filter(&self.rowtime, mask).map_err(arrow_error)?)?,
            weights,
            rows: Some(downcast(&compute::filter(&rows, mask).map_err(arrow_error)?)?),
            origin: Arc::clone(&self.origin),
        })
    }

    /// `error`, with the partition and offset of the event that `row` stems from.
    pub(crate) fn blame(&self, row: usize, error: SqlError) -> SqlError {
        blame(&self.origin, self.input_row(row), error)
    }
}

/// `error`, with the partition and offset of input row `row`.
pub(crate) fn blame(origin: &Origin, row: usize, error: SqlError) -> SqlError {
    let Some((partition, offset)) = origin.place(row) else { return error };
    let place = format!("partition {}, offset {offset}", partition.value());
    match error.detail.clone() {
        Some(detail) => error.detail(format!("{place}: {detail}")),
        None => error.detail(place),
    }
}

/// An Arrow kernel's error as SQL's.
pub(crate) fn arrow_error(error: arrow::error::ArrowError) -> SqlError {
    sql_error(datafusion::error::DataFusionError::from(error))
}

/// An expression's or aggregate's error as SQL's.
pub(crate) fn sql_error(error: datafusion::error::DataFusionError) -> SqlError {
    SqlError::from(error)
}

/// A typed copy of `array`; sharing, not copying, its buffers.
pub(crate) fn downcast<T: Array + Clone + 'static>(array: &dyn Array) -> Result<T, SqlError> {
    array
        .as_any()
        .downcast_ref::<T>()
        .cloned()
        .ok_or_else(|| SqlError::internal(format!("unexpected column type {}", array.data_type())))
}
