//! UNION ALL: the rows of several inputs, as they come.
//!
//! Where rows have keys, those of an input are told from those of the others by its number. Leaves out UNION, which is a
//! GROUP BY above. Stateless: a crash loses nothing.

use super::delta::{Delta, Origin, arrow_error, concat};
use super::operator::Operator;
use crate::error::SqlError;
use arrow::array::{ArrayRef, Int32Array, RecordBatch, RecordBatchOptions, new_null_array};
use arrow::datatypes::SchemaRef;
use std::sync::Arc;

/// One column of what comes of an input.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum UnionColumn {
    /// The input's column at this position.
    Input(usize),
    /// NULL: a key column of another input.
    Null,
    /// The input's number.
    Number,
}

/// Puts its inputs together.
pub(crate) struct Union {
    /// Per input, where each column comes from.
    inputs: Vec<Vec<UnionColumn>>,
    schema: SchemaRef,
}

impl Union {
    /// Rows of `schema`, whose columns come from each input as `inputs` says.
    pub(crate) fn new(inputs: Vec<Vec<UnionColumn>>, schema: SchemaRef) -> Self {
        Self { inputs, schema }
    }
}

impl Operator for Union {
    fn step(&mut self, inputs: Vec<Delta>, origin: &Arc<Origin>) -> Result<Delta, SqlError> {
        let mut parts = Vec::with_capacity(inputs.len());
        for (number, (input, columns)) in inputs.into_iter().zip(&self.inputs).enumerate() {
            let rows = input.len();
            let column = |(column, field): (&UnionColumn, &arrow::datatypes::FieldRef)| -> ArrayRef {
                match column {
                    UnionColumn::Input(at) => Arc::clone(input.batch.column(*at)),
                    UnionColumn::Null => new_null_array(field.data_type(), rows),
                    UnionColumn::Number => Arc::new(Int32Array::from(vec![number as i32; rows])),
                }
            };
            let columns = columns.iter().zip(self.schema.fields()).map(column).collect();
            let options = RecordBatchOptions::new().with_row_count(Some(rows));
            let batch = RecordBatch::try_new_with_options(Arc::clone(&self.schema), columns, &options);
            parts.push(Delta { batch: batch.map_err(arrow_error)?, ..input });
        }
        parts.retain(|part| part.len() > 0);
        if parts.is_empty() {
            return Ok(Delta::empty(Arc::clone(&self.schema), origin));
        }
        // In the order of the events, as one input would have them; what comes of one event stays together. The rows of an
        // input stay in their order: a join tells what goes behind what came, also when it went with an earlier event.
        let mut places: Vec<usize> = Vec::new();
        for part in &parts {
            let mut last = 0;
            places.extend((0..part.len()).map(|row| {
                last = part.input_row(row).max(last);
                last
            }));
        }
        let all = concat(&parts)?;
        let mut order: Vec<u32> = (0..all.len() as u32).collect();
        order.sort_by_key(|row| places.get(*row as usize).copied());
        all.take(&order.into())
    }

    fn fingerprint(&self) -> String {
        format!("union({:?})", self.inputs)
    }
}
