//! Set-returning functions: a row for each element of its arrays.
//!
//! Leaves out making the arrays, which expressions below do. Stateless: a crash loses nothing.

use super::delta::{Delta, Origin, arrow_error};
use super::operator::{Operator, only};
use crate::error::SqlError;
use arrow::array::{Array, ArrayRef, AsArray, Int32Array, ListArray, RecordBatch, RecordBatchOptions, UInt32Array};
use arrow::compute;
use arrow::datatypes::{DataType, SchemaRef};
use std::sync::Arc;

/// One column of what comes out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum UnnestColumn {
    /// The input's column at this position, for each element.
    Of(usize),
    /// The elements of the array at this position.
    Element(usize),
    /// The element's number, from 0.
    Ordinal,
}

/// Gives a row for each element; of several arrays, as many as the longest has, NULL for those that others lack.
pub(crate) struct Unnest {
    columns: Vec<UnnestColumn>,
    schema: SchemaRef,
    /// Whether NULL in place of an array gives a row.
    keeps_null: bool,
}

impl Unnest {
    /// Rows of `schema`, whose columns come from the input as `columns` says.
    pub(crate) fn new(columns: Vec<UnnestColumn>, schema: SchemaRef, keeps_null: bool) -> Self {
        Self { columns, schema, keeps_null }
    }

    /// The arrays by their positions.
    fn lists(&self, delta: &Delta) -> Result<Vec<(usize, ListArray)>, SqlError> {
        let mut lists: Vec<(usize, ListArray)> = Vec::new();
        for column in &self.columns {
            if let UnnestColumn::Element(at) = column
                && lists.iter().all(|(other, _)| other != at)
            {
                lists.push((*at, list(delta.batch.column(*at))?));
            }
        }
        Ok(lists)
    }

    fn elements(&self, delta: &Delta) -> Result<Delta, SqlError> {
        let lists = self.lists(delta)?;
        let length = |list: &ListArray, row: usize| match list.is_null(row) {
            true => usize::from(self.keeps_null),
            false => list.value_length(row) as usize,
        };
        let (mut rows, mut ordinals) = (Vec::new(), Vec::new());
        for row in 0..delta.len() {
            let count = lists.iter().map(|(_, list)| length(list, row)).max().unwrap_or(0);
            rows.extend(std::iter::repeat_n(row as u32, count));
            ordinals.extend(0..count as i32);
        }
        let rows = UInt32Array::from(rows);
        let column = |column: &UnnestColumn| -> Result<ArrayRef, SqlError> {
            match column {
                UnnestColumn::Ordinal => Ok(Arc::new(Int32Array::from(ordinals.clone()))),
                UnnestColumn::Of(at) => compute::take(delta.batch.column(*at), &rows, None).map_err(arrow_error),
                UnnestColumn::Element(at) => {
                    let found = lists.iter().find(|(other, _)| other == at);
                    let (_, list) = found.ok_or_else(|| SqlError::internal("no array to unnest"))?;
                    let place = |(row, ordinal): (&u32, &i32)| {
                        let row = *row as usize;
                        let is_there = list.is_valid(row) && *ordinal < list.value_length(row);
                        is_there.then(|| (list.value_offsets()[row] + ordinal) as u32)
                    };
                    let places: UInt32Array = rows.values().iter().zip(&ordinals).map(place).collect();
                    compute::take(list.values(), &places, None).map_err(arrow_error)
                }
            }
        };
        let columns = self.columns.iter().map(column).collect::<Result<Vec<_>, _>>()?;
        let options = RecordBatchOptions::new().with_row_count(Some(rows.len()));
        let batch = RecordBatch::try_new_with_options(Arc::clone(&self.schema), columns, &options);
        Ok(Delta { batch: batch.map_err(arrow_error)?, ..delta.take(&rows)? })
    }
}

fn list(array: &ArrayRef) -> Result<ListArray, SqlError> {
    let item = match array.data_type() {
        DataType::List(_) => return Ok(array.as_list::<i32>().clone()),
        DataType::LargeList(item) | DataType::FixedSizeList(item, _) => Arc::clone(item),
        _ => return Err(SqlError::internal("unnest of what is no array")),
    };
    let cast = compute::cast(array, &DataType::List(item)).map_err(arrow_error)?;
    cast.as_list_opt::<i32>().cloned().ok_or_else(|| SqlError::internal("unnest of what is no array"))
}

impl Operator for Unnest {
    fn step(&mut self, inputs: Vec<Delta>, _: &Arc<Origin>) -> Result<Delta, SqlError> {
        self.elements(&only(inputs)?)
    }

    fn fingerprint(&self) -> String {
        format!("unnest({:?} {})", self.columns, self.keeps_null)
    }
}
