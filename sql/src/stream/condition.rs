//! The rest of a join's condition: an expression over a row of each side.
//!
//! Leaves out which pairs are tried (`join`, `lookup`). Holds nothing.

use super::delta::{Delta, arrow_error, sql_error};
use super::expression::evaluate_predicate;
use super::join::Side;
use super::store::Store;
use crate::error::SqlError;
use arrow::array::{Array, BooleanArray, RecordBatch, RecordBatchOptions, UInt32Array};
use arrow::datatypes::{Schema, SchemaRef};
use datafusion::common::tree_node::{Transformed, TreeNode};
use datafusion::physical_expr::PhysicalExpr;
use datafusion::physical_expr::expressions::Column;
use datafusion::physical_expr::utils::collect_columns;
use std::sync::Arc;

/// A condition, over the columns that it reads.
pub(super) struct Condition {
    whole: Arc<dyn PhysicalExpr>,
    expression: Arc<dyn PhysicalExpr>,
    schema: SchemaRef,
    left: Vec<usize>,
    right: Vec<usize>,
}

impl Condition {
    /// `whole` is over columns of `schema`, the first `visible` of which are the left side's.
    pub(super) fn new(whole: &Arc<dyn PhysicalExpr>, schema: &SchemaRef, visible: usize) -> Result<Self, SqlError> {
        let mut used: Vec<usize> = collect_columns(whole).iter().map(Column::index).collect();
        used.sort_unstable();
        let renumbered = Arc::clone(whole).transform(|part| {
            let Some(column) = part.downcast_ref::<Column>() else { return Ok(Transformed::no(part)) };
            let at = used.partition_point(|at| *at < column.index());
            Ok(Transformed::yes(Arc::new(Column::new(column.name(), at)) as Arc<dyn PhysicalExpr>))
        });
        let fields: Vec<_> = used.iter().map(|at| schema.field(*at).clone()).collect();
        let (left, right): (Vec<usize>, Vec<usize>) = used.into_iter().partition(|at| *at < visible);
        Ok(Self {
            whole: Arc::clone(whole),
            expression: renumbered.map_err(sql_error)?.data,
            schema: Arc::new(Schema::new(fields)),
            left,
            right: right.into_iter().map(|at| at - visible).collect(),
        })
    }

    /// As it was given.
    pub(super) fn whole(&self) -> &Arc<dyn PhysicalExpr> {
        &self.whole
    }

    /// For which pairs it is true: of the rows `rows` of `delta`, which is the side `side`, and those of `store` with `ids`.
    ///
    /// # Errors
    /// Those of the expression, with the event.
    pub(super) fn holds(
        &self,
        side: Side,
        (delta, rows): (&Delta, UInt32Array),
        (store, ids): (&Store, &[u32]),
    ) -> Result<BooleanArray, SqlError> {
        let (own, others) = match side {
            Side::Left => (&self.left, &self.right),
            Side::Right => (&self.right, &self.left),
        };
        let own = Delta { batch: delta.batch.project(own).map_err(arrow_error)?, ..delta.clone() };
        let events = own.take(&rows)?;
        let (own, others) = (events.batch.columns().to_vec(), store.columns(ids, others.iter().copied())?);
        let (left, right) = if side == Side::Left { (own, others) } else { (others, own) };
        let options = RecordBatchOptions::new().with_row_count(Some(events.len()));
        let columns = left.into_iter().chain(right).collect();
        let batch = RecordBatch::try_new_with_options(Arc::clone(&self.schema), columns, &options);
        let mask =
            evaluate_predicate(self.expression.as_ref(), &Delta { batch: batch.map_err(arrow_error)?, ..events })?;
        let is_true = |row: usize| mask.is_valid(row) && mask.value(row);
        Ok((0..mask.len()).map(|row| Some(is_true(row))).collect())
    }
}
