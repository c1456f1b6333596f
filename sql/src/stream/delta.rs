//! What flows between operators: a batch with a weight, an event time and an origin per row.
//!
//! Owns the shape only. Leaves out how operators use it. Lives within one step; a crash loses nothing.

use arrow::array::{
    Array, BooleanArray, Int8Array, Int64Array, RecordBatch, RecordBatchOptions, TimestampMicrosecondArray, UInt32Array,
};
use arrow::compute;
use arrow::datatypes::SchemaRef;
use millstream_catalog::model::{Name, Offset, PartitionId, RowCount, Timestamp};
use std::borrow::Cow;
use std::sync::Arc;

use crate::error::{EventPlace, Near, SqlError};

/// Before any event.
pub(crate) const NEVER: i64 = i64::MIN;

/// How often each row counts: +1 for a row that is there now, −1 for one that is gone.
///
/// A −1 carries the row as it was, but where a plan says that rows have a key and only their new forms come: then of a
/// row with −1 only the key columns mean anything.
#[derive(Debug, Clone)]
pub(crate) enum Weights {
    /// Every row is there.
    Ones,
    /// One weight per row.
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

    /// The weights of rows that are gone where `gone` says so.
    pub(crate) fn of(gone: &[bool]) -> Self {
        match gone.contains(&true) {
            false => Self::Ones,
            true => Self::Each(Int8Array::from_iter_values(gone.iter().map(|gone| if *gone { -1 } else { 1 }))),
        }
    }

    fn take(&self, rows: &UInt32Array) -> Result<Self, SqlError> {
        Ok(match self {
            Self::Ones => Self::Ones,
            Self::Each(weights) => Self::Each(downcast(&compute::take(weights, rows, None).map_err(arrow_error)?)?),
        })
    }
}

/// Consecutive rows of a step's input from one partition.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Run {
    /// The source, by its position among the query's.
    pub(crate) source: usize,
    /// The partition.
    pub(crate) partition: PartitionId,
    /// The offset of the run's first row.
    pub(crate) offset_start: Offset,
    /// The position of that row in the step's input.
    pub(crate) row_start: usize,
}

/// Where the rows of a step came from, and what time it was at each.
#[derive(Debug)]
pub(crate) struct Origin {
    /// The runs, by ascending `row_start`.
    pub(crate) runs: Vec<Run>,
    /// The query's event time at each input row, in microseconds; empty when nothing in the query asks for it.
    pub(crate) clock: Vec<i64>,
    /// The query's event time at the end of the step, in microseconds; [`NEVER`] before any.
    pub(crate) end: i64,
    /// The time the leader gave this step.
    pub(crate) now: Timestamp,
    /// The names of the sources, where there are several.
    pub(crate) names: Arc<[Name]>,
}

impl Default for Origin {
    fn default() -> Self {
        let (runs, clock, names) = (Vec::new(), Vec::new(), Arc::default());
        Self { runs, clock, end: NEVER, now: Timestamp::from_micros(0), names }
    }
}

impl Origin {
    /// Where an input row is.
    pub(crate) fn place(&self, row: usize) -> Option<EventPlace> {
        let index = self.runs.partition_point(|run| run.row_start <= row).checked_sub(1)?;
        let Run { source, partition, offset_start, row_start } = *self.runs.get(index)?;
        Some(EventPlace { source, partition, offset: offset_start.plus(RowCount::of(row - row_start)) })
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
    /// The input row each row stems from, or the last one it does; `None` where they are the same.
    pub(crate) rows: Option<UInt32Array>,
    /// The query's event time when each row came about, where it is not that at the input row: of rows that time
    /// itself made, the last moment before it did.
    pub(crate) clock: Option<Int64Array>,
    /// Shared by all deltas of a step.
    pub(crate) origin: Arc<Origin>,
}

impl Delta {
    /// Number of rows.
    pub(crate) fn len(&self) -> usize {
        self.batch.num_rows()
    }

    /// The rows that are there.
    pub(crate) fn come(&self) -> Vec<u32> {
        (0..self.len() as u32).filter(|row| !self.weights.is_gone(*row as usize)).collect()
    }

    /// The input row that `row` stems from.
    pub(crate) fn input_row(&self, row: usize) -> usize {
        match &self.rows {
            None => row,
            Some(rows) => rows.value(row) as usize,
        }
    }

    /// No rows of `schema`.
    pub(crate) fn empty(schema: SchemaRef, origin: &Arc<Origin>) -> Self {
        Self {
            batch: RecordBatch::new_empty(schema),
            rowtime: TimestampMicrosecondArray::from(Vec::<i64>::new()).with_timezone("UTC"),
            weights: Weights::Ones,
            rows: Some(UInt32Array::from(Vec::<u32>::new())),
            clock: None,
            origin: Arc::clone(origin),
        }
    }

    /// Rows of saved state, for expressions to be evaluated over.
    pub(crate) fn of_batch(batch: RecordBatch) -> Self {
        let rowtime = TimestampMicrosecondArray::from(vec![0; batch.num_rows()]).with_timezone("UTC");
        let origin = Arc::new(Origin::default());
        Self { batch, rowtime, weights: Weights::Ones, rows: None, clock: None, origin }
    }

    /// The query's event time when `row` came about, in microseconds.
    pub(crate) fn time_at(&self, row: usize) -> i64 {
        match &self.clock {
            Some(clock) => clock.value(row),
            None => self.origin.clock.get(self.input_row(row)).copied().unwrap_or(NEVER),
        }
    }

    /// The query's event time when each row came about, in microseconds.
    pub(crate) fn times(&self) -> Cow<'_, [i64]> {
        let clock = &self.origin.clock;
        match (&self.clock, &self.rows) {
            (Some(clock), _) => Cow::Borrowed(clock.values()),
            (None, None) if clock.len() == self.len() => Cow::Borrowed(clock),
            (None, Some(rows)) if !clock.is_empty() => {
                rows.values().iter().map(|row| clock.get(*row as usize).copied().unwrap_or(NEVER)).collect()
            }
            (None, _) => (0..self.len()).map(|row| self.time_at(row)).collect(),
        }
    }

    /// The rows where `mask` is true; null counts as false.
    pub(crate) fn filter(&self, mask: &BooleanArray) -> Result<Self, SqlError> {
        let picked = |row: &usize| mask.is_valid(*row) && mask.value(*row);
        self.take(&UInt32Array::from_iter_values((0..mask.len()).filter(picked).map(|row| row as u32)))
    }

    /// The rows at `picked`, in that order.
    pub(crate) fn take(&self, picked: &UInt32Array) -> Result<Self, SqlError> {
        let rows = match &self.rows {
            None => picked.clone(),
            Some(rows) => downcast(&compute::take(rows, picked, None).map_err(arrow_error)?)?,
        };
        let clock = match &self.clock {
            None => None,
            Some(clock) => Some(downcast(&compute::take(clock, picked, None).map_err(arrow_error)?)?),
        };
        let columns = self.batch.columns().iter().map(|column| compute::take(column, picked, None));
        let columns = columns.collect::<Result<Vec<_>, _>>().map_err(arrow_error)?;
        // There may be no columns.
        let options = RecordBatchOptions::new().with_row_count(Some(picked.len()));
        let batch = RecordBatch::try_new_with_options(self.batch.schema(), columns, &options);
        Ok(Self {
            batch: batch.map_err(arrow_error)?,
            rowtime: downcast(&compute::take(&self.rowtime, picked, None).map_err(arrow_error)?)?,
            weights: self.weights.take(picked)?,
            rows: Some(rows),
            clock,
            origin: Arc::clone(&self.origin),
        })
    }

    /// `error`, with the partition and offset of the event that `row` stems from.
    pub(crate) fn blame(&self, row: usize, error: SqlError) -> SqlError {
        blame(&self.origin, self.input_row(row), error)
    }
}

/// `error`, with the partition and offset of input row `row`.
pub(crate) fn blame(origin: &Origin, row: usize, mut error: SqlError) -> SqlError {
    let Some(event) = origin.place(row) else { return error };
    error.near = Some(Box::new(Near::Event(event)));
    let EventPlace { source, partition, offset } = event;
    let name = origin.names.get(source).map_or(String::new(), |name| format!("\"{name}\", "));
    let place = format!("{name}partition {}, offset {offset}", partition.value());
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

/// `delta`, every row with `weight`.
pub(crate) fn with_weight(delta: Delta, weight: i8) -> Delta {
    let weights = Weights::Each(Int8Array::from(vec![weight; delta.len()]));
    Delta { weights, ..delta }
}

/// The rows of all `deltas`, which have one schema, one after the other.
pub(crate) fn concat(deltas: &[Delta]) -> Result<Delta, SqlError> {
    let first = deltas.first().ok_or_else(|| SqlError::internal("no rows to put together"))?;
    let batch = compute::concat_batches(&first.batch.schema(), deltas.iter().map(|delta| &delta.batch));
    let rowtime: Vec<&dyn Array> = deltas.iter().map(|delta| &delta.rowtime as &dyn Array).collect();
    let gone = deltas.iter().flat_map(|delta| (0..delta.len()).map(|row| delta.weights.is_gone(row)));
    let rows = deltas.iter().flat_map(|delta| (0..delta.len()).map(|row| delta.input_row(row) as u32));
    let clock = deltas.iter().flat_map(|delta| (0..delta.len()).map(|row| delta.time_at(row)));
    let has_clock = deltas.iter().any(|delta| delta.clock.is_some());
    Ok(Delta {
        batch: batch.map_err(arrow_error)?,
        rowtime: downcast(&compute::concat(&rowtime).map_err(arrow_error)?)?,
        weights: Weights::of(&gone.collect::<Vec<bool>>()),
        rows: Some(UInt32Array::from_iter_values(rows)),
        clock: has_clock.then(|| Int64Array::from_iter_values(clock)),
        origin: Arc::clone(&first.origin),
    })
}
