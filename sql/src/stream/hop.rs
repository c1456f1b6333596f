//! Rows that come once for each of their windows.
//!
//! Leaves out which windows those are, which a projection or the panes (`partial`) below compute, and when they close.
//! Stateless: a crash loses nothing.

use super::delta::{Delta, Origin, arrow_error};
use super::operator::{Operator, only};
use crate::error::SqlError;
use arrow::array::{Array, ArrayRef, AsArray, RecordBatch, UInt32Array};
use arrow::datatypes::SchemaRef;
use std::sync::Arc;

/// In: rows with a list of window starts. Out: the same columns, an element in place of the list; what comes of one
/// row stays together, in the order of the list, with the row's weight.
#[derive(Debug)]
pub(crate) struct Hop {
    list: usize,
    schema: SchemaRef,
}

impl Hop {
    /// Of the list at `list`, to rows of `schema`.
    pub(crate) fn new(list: usize, schema: SchemaRef) -> Self {
        Self { list, schema }
    }
}

impl Operator for Hop {
    fn step(&mut self, inputs: Vec<Delta>, _: &Arc<Origin>) -> Result<Delta, SqlError> {
        let input = only(inputs)?;
        let lists = input.batch.column(self.list).as_list_opt::<i32>();
        let lists = lists.ok_or_else(|| SqlError::internal("window starts are no list"))?.clone();
        let rows = (0..lists.len()).flat_map(|row| {
            let count = if lists.is_null(row) { 0 } else { lists.value_length(row) as usize };
            std::iter::repeat_n(row as u32, count)
        });
        let rows = UInt32Array::from_iter_values(rows);
        let (first, last) = (lists.offsets()[0] as usize, lists.offsets()[lists.len()] as usize);
        let elements = lists.values().slice(first, last - first);
        let others: Vec<usize> = (0..input.batch.num_columns()).filter(|at| *at != self.list).collect();
        let others = input.batch.project(&others).map_err(arrow_error)?;
        let output = Delta { batch: others, ..input }.take(&rows)?;
        let mut columns: Vec<ArrayRef> = output.batch.columns().to_vec();
        columns.insert(self.list, elements);
        let batch = RecordBatch::try_new(Arc::clone(&self.schema), columns).map_err(arrow_error)?;
        Ok(Delta { batch, ..output })
    }

    fn fingerprint(&self) -> String {
        let types: Vec<String> = self.schema.fields().iter().map(|field| field.data_type().to_string()).collect();
        format!("hop({}; {})", self.list, types.join(", "))
    }
}
