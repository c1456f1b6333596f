//! The last stage: stored rows of the sink.
//!
//! Owns the order and types of stored columns, `rowtime` and `rowtombstone`. Leaves out partitioning and writing
//! (engine). Stateless: a crash loses nothing.

use super::delta::{Delta, Weights, arrow_error};
use crate::error::SqlError;
use arrow::array::{Array, ArrayRef, BooleanArray, Int16Array, RecordBatch, RecordBatchOptions};
use arrow::compute::{self, CastOptions};
use arrow::datatypes::{DataType, SchemaRef};
use std::sync::Arc;

/// Where a stored column's values come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum SinkColumn {
    /// The column of the delta at this position.
    Delta(usize),
    /// The key of the one row of a table without key columns: always 0.
    OneRow,
}

/// Makes stored rows.
#[derive(Debug)]
pub(crate) struct Sink {
    columns: Vec<SinkColumn>,
    schema: SchemaRef,
    has_tombstones: bool,
}

impl Sink {
    /// Stored rows of `schema`: the columns, `rowtime`, and `rowtombstone` if `has_tombstones`.
    pub(crate) fn new(columns: Vec<SinkColumn>, schema: SchemaRef, has_tombstones: bool) -> Self {
        Self { columns, schema, has_tombstones }
    }

    /// The stored rows of `delta`; `None` when it has none.
    ///
    /// # Errors
    /// 22003 and such when a value does not fit the stored type.
    pub(crate) fn rows(&self, delta: &Delta) -> Result<Option<RecordBatch>, SqlError> {
        let count = delta.len();
        if count == 0 {
            return Ok(None);
        }
        let mut columns: Vec<ArrayRef> = Vec::with_capacity(self.schema.fields().len());
        for (column, field) in self.columns.iter().zip(self.schema.fields()) {
            let values: ArrayRef = match column {
                SinkColumn::Delta(index) => Arc::clone(delta.batch.column(*index)),
                SinkColumn::OneRow => Arc::new(Int16Array::from(vec![0; count])),
            };
            columns.push(stored(values, field.data_type()).map_err(|error| delta.blame(count - 1, error))?);
        }
        columns.push(Arc::new(delta.rowtime.clone().with_timezone("UTC")));
        if self.has_tombstones {
            let tombstones: BooleanArray = match &delta.weights {
                Weights::Ones => BooleanArray::from(vec![false; count]),
                Weights::Each(_) => (0..count).map(|row| Some(delta.weights.is_gone(row))).collect(),
            };
            columns.push(Arc::new(tombstones));
        }
        let options = RecordBatchOptions::new().with_row_count(Some(count));
        let batch = RecordBatch::try_new_with_options(Arc::clone(&self.schema), columns, &options);
        Ok(Some(batch.map_err(arrow_error)?))
    }

    /// True for the table of an aggregate without groups.
    pub(crate) fn has_one_row(&self) -> bool {
        self.columns.contains(&SinkColumn::OneRow)
    }

    /// For the fingerprint.
    pub(crate) fn text(&self) -> String {
        let types: Vec<String> = self.schema.fields().iter().map(|field| field.data_type().to_string()).collect();
        format!("sink({:?}; {}; {})", self.columns, types.join(", "), self.has_tombstones)
    }
}

/// `values` as the stored type; an error where one does not fit.
fn stored(values: ArrayRef, data_type: &DataType) -> Result<ArrayRef, SqlError> {
    if values.data_type() == data_type {
        return Ok(values);
    }
    let options = CastOptions { safe: false, ..CastOptions::default() };
    compute::cast_with_options(&values, data_type, &options).map_err(arrow_error)
}
