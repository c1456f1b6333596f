//! State of an aggregate that wants its input sorted: the arguments of every row.
//!
//! Whenever a group changes, its rows are sorted and fed to a new accumulator. Leaves out DISTINCT and FILTER (`call`).

use super::call::{Input, Touched, scalars};
use super::delta::{arrow_error, sql_error};
use crate::error::SqlError;
use arrow::array::{Array, ArrayRef, AsArray, ListArray, UInt64Array, new_empty_array};
use arrow::buffer::OffsetBuffer;
use arrow::compute::{self, SortColumn, SortOptions};
use arrow::datatypes::{DataType, Field};
use datafusion::physical_expr::aggregate::AggregateFunctionExpr;
use datafusion::scalar::ScalarValue;
use std::sync::Arc;

/// The arguments of every row, by group.
pub(super) struct Replayed {
    function: Arc<AggregateFunctionExpr>,
    types: Vec<DataType>,
    pub(super) result: DataType,
    /// By slot, the argument columns, order columns last.
    groups: Vec<Vec<ArrayRef>>,
}

impl Replayed {
    pub(super) fn new(function: Arc<AggregateFunctionExpr>, types: Vec<DataType>, result: DataType) -> Self {
        Self { function, types, result, groups: Vec::new() }
    }

    /// The same without groups.
    pub(super) fn fresh(&self) -> Self {
        Self::new(Arc::clone(&self.function), self.types.clone(), self.result.clone())
    }

    pub(super) fn step(&mut self, input: &Input<'_>, touched: &Touched) -> Result<ArrayRef, SqlError> {
        let (rows, starts) = input.by_group(touched);
        self.groups.resize_with(touched.capacity, Vec::new);
        let mut values = Vec::with_capacity(touched.found.len());
        for (index, found) in touched.found.iter().enumerate() {
            let added = input.take(&rows[starts[index]..starts[index + 1]])?;
            let group = &mut self.groups[found.slot as usize];
            if found.is_new || group.is_empty() {
                *group = added;
            } else {
                for (column, added) in group.iter_mut().zip(&added) {
                    *column = compute::concat(&[column.as_ref(), added.as_ref()]).map_err(arrow_error)?;
                }
            }
            values.push(evaluate_sorted(&self.function, &self.groups[found.slot as usize])?);
        }
        scalars(values, &self.result)
    }

    /// The aggregate of each touched group as it is; NULL for new ones.
    pub(super) fn current(&self, touched: &Touched) -> Result<ArrayRef, SqlError> {
        let null = ScalarValue::try_from(&self.result).map_err(sql_error)?;
        let values = touched.found.iter().map(|found| match self.groups.get(found.slot as usize) {
            Some(columns) if !found.is_new => evaluate_sorted(&self.function, columns),
            _ => Ok(null.clone()),
        });
        scalars(values.collect::<Result<Vec<_>, _>>()?, &self.result)
    }

    /// Adds the rows of the second group of each pair to those of the first.
    pub(super) fn merge(&mut self, pairs: &[(u32, u32)]) -> Result<(), SqlError> {
        for (first, second) in pairs {
            let second = std::mem::take(&mut self.groups[*second as usize]);
            for (column, added) in self.groups[*first as usize].iter_mut().zip(&second) {
                *column = compute::concat(&[column.as_ref(), added.as_ref()]).map_err(arrow_error)?;
            }
        }
        Ok(())
    }

    pub(super) fn clear(&mut self, slots: &[u32]) {
        for slot in slots {
            if let Some(group) = self.groups.get_mut(*slot as usize) {
                *group = Vec::new();
            }
        }
    }

    /// One list per group and argument.
    pub(super) fn save(&self, slots: &[u32]) -> Result<Vec<ArrayRef>, SqlError> {
        let mut columns = Vec::with_capacity(self.types.len());
        for (index, data_type) in self.types.iter().enumerate() {
            let field = Arc::new(Field::new_list_field(data_type.clone(), true));
            let parts: Vec<&ArrayRef> =
                slots.iter().filter_map(|slot| self.groups[*slot as usize].get(index)).collect();
            let lengths = parts.iter().map(|part| part.len());
            let offsets = OffsetBuffer::from_lengths(lengths);
            let values = match parts.is_empty() {
                true => new_empty_array(data_type),
                false => {
                    let parts: Vec<&dyn Array> = parts.iter().map(|part| part.as_ref()).collect();
                    compute::concat(&parts).map_err(arrow_error)?
                }
            };
            let list = ListArray::try_new(field, offsets, values, None).map_err(arrow_error)?;
            columns.push(Arc::new(list) as ArrayRef);
        }
        Ok(columns)
    }

    pub(super) fn restore(&mut self, columns: &[ArrayRef], count: usize) -> Result<(), SqlError> {
        self.groups = vec![Vec::with_capacity(columns.len()); count];
        for column in columns {
            let Some(lists) = column.as_list_opt::<i32>() else {
                return Err(SqlError::internal("saved arguments are lists"));
            };
            for (slot, group) in self.groups.iter_mut().enumerate() {
                group.push(lists.value(slot));
            }
        }
        Ok(())
    }

    pub(super) fn bytes(&self) -> usize {
        self.groups.iter().flatten().map(|column| column.get_array_memory_size()).sum()
    }
}

/// `function` of the rows of `columns`, order columns last, sorted as it wants them; ties stay as they are.
pub(super) fn evaluate_sorted(function: &AggregateFunctionExpr, columns: &[ArrayRef]) -> Result<ScalarValue, SqlError> {
    let rows = columns.first().map_or(0, |column| column.len());
    let orders = function.order_bys();
    let mut accumulator = function.create_accumulator().map_err(sql_error)?;
    if rows > 0 && orders.is_empty() {
        accumulator.update_batch(columns).map_err(sql_error)?;
    } else if rows > 0 {
        let sort_columns = columns.iter().skip(columns.len() - orders.len()).zip(orders);
        let mut sort: Vec<SortColumn> = sort_columns
            .map(|(values, order)| SortColumn { values: Arc::clone(values), options: Some(order.options) })
            .collect();
        // The order they are in settles ties, and makes the sort stable.
        let arrival: ArrayRef = Arc::new(UInt64Array::from_iter_values(0..rows as u64));
        sort.push(SortColumn { values: arrival, options: Some(SortOptions::default()) });
        let order = compute::lexsort_to_indices(&sort, None).map_err(arrow_error)?;
        let sorted = columns.iter().map(|column| compute::take(column, &order, None));
        let sorted = sorted.collect::<Result<Vec<_>, _>>().map_err(arrow_error)?;
        accumulator.update_batch(&sorted).map_err(sql_error)?;
    }
    accumulator.evaluate().map_err(sql_error)
}
