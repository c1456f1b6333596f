//! GROUPING SETS: each row once per set, NULL in the grouping columns that are not in it.
//!
//! Leaves out the grouping, which an aggregate above does (`aggregate`). Stateless: a crash loses nothing.

use super::delta::{Delta, Origin, arrow_error, concat};
use super::expression::evaluate;
use super::operator::{Operator, only};
use crate::error::SqlError;
use arrow::array::{ArrayRef, RecordBatch, RecordBatchOptions, UInt64Array, new_null_array};
use arrow::compute;
use arrow::datatypes::SchemaRef;
use datafusion::physical_expr::PhysicalExpr;
use std::sync::Arc;

/// One of the sets.
#[derive(Debug)]
pub(crate) struct GroupingSet {
    /// Which of the grouping expressions are in it.
    pub(crate) has: Vec<bool>,
    /// The number it is told by.
    pub(crate) id: u64,
}

/// Gives each row once per set: the input's columns, the grouping expressions, and the number of the set.
pub(crate) struct Expand {
    keys: Vec<Arc<dyn PhysicalExpr>>,
    sets: Vec<GroupingSet>,
    schema: SchemaRef,
}

impl Expand {
    /// Rows of `schema`.
    pub(crate) fn new(keys: Vec<Arc<dyn PhysicalExpr>>, sets: Vec<GroupingSet>, schema: SchemaRef) -> Self {
        Self { keys, sets, schema }
    }
}

impl Operator for Expand {
    fn step(&mut self, inputs: Vec<Delta>, origin: &Arc<Origin>) -> Result<Delta, SqlError> {
        let input = only(inputs)?;
        if input.len() == 0 {
            return Ok(Delta::empty(Arc::clone(&self.schema), origin));
        }
        let keys = self.keys.iter().map(|key| evaluate(key.as_ref(), &input));
        let keys = keys.collect::<Result<Vec<ArrayRef>, _>>()?;
        let number = self.schema.field(self.schema.fields().len() - 1).data_type();
        let mut parts = Vec::with_capacity(self.sets.len());
        for set in &self.sets {
            let mut columns = input.batch.columns().to_vec();
            columns.extend(keys.iter().zip(&set.has).map(|(key, has)| match has {
                true => Arc::clone(key),
                false => new_null_array(key.data_type(), key.len()),
            }));
            let id = UInt64Array::from(vec![set.id; input.len()]);
            columns.push(compute::cast(&id, number).map_err(arrow_error)?);
            let options = RecordBatchOptions::new().with_row_count(Some(input.len()));
            let batch = RecordBatch::try_new_with_options(Arc::clone(&self.schema), columns, &options);
            parts.push(Delta { batch: batch.map_err(arrow_error)?, ..input.clone() });
        }
        concat(&parts)
    }

    fn fingerprint(&self) -> String {
        let keys: Vec<String> = self.keys.iter().map(ToString::to_string).collect();
        format!("expand({}; {:?})", keys.join(", "), self.sets)
    }
}
