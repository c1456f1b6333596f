//! State of an aggregate over rows that go away again: the arguments of every row, counted.
//!
//! Least and greatest are the ends of what is there; any other function is computed anew from all of it whenever its
//! group changes, ties of its order by value. Sums and counts are kept as columns (`columns`), which take rows back by
//! subtraction. Leaves out DISTINCT and FILTER (`call`).

use super::call::{Input, Touched, scalars};
use super::delta::{Weights, sql_error};
use super::multiset::Multiset;
use super::replayed::evaluate_sorted;
use crate::error::SqlError;
use crate::types::canonical;
use arrow::array::{Array, ArrayRef, RecordBatch, new_null_array};
use arrow::compute;
use arrow::datatypes::DataType;
use datafusion::physical_expr::aggregate::AggregateFunctionExpr;
use std::sync::Arc;

/// What is made of the rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Made {
    Least,
    Greatest,
    Any,
}

/// The arguments of every row, by group.
pub(super) struct Retracted {
    function: Arc<AggregateFunctionExpr>,
    types: Vec<DataType>,
    pub(super) result: DataType,
    made: Made,
    /// Equal rows count once.
    is_distinct: bool,
    rows: Multiset,
}

impl Retracted {
    /// Of arguments of `types`, order columns last.
    pub(super) fn new(
        function: Arc<AggregateFunctionExpr>,
        types: Vec<DataType>,
        result: DataType,
    ) -> Result<Self, SqlError> {
        let made = match function.fun().name() {
            "min" if types.len() == 1 => Made::Least,
            "max" if types.len() == 1 => Made::Greatest,
            _ => Made::Any,
        };
        Ok(Self { rows: Multiset::new(&types)?, function, types, result, made, is_distinct: false })
    }

    /// The same, of equal rows one.
    pub(super) fn distinct(
        function: Arc<AggregateFunctionExpr>,
        types: Vec<DataType>,
        result: DataType,
    ) -> Result<Self, SqlError> {
        Ok(Self { is_distinct: true, ..Self::new(function, types, result)? })
    }

    /// The same without groups.
    pub(super) fn fresh(&self) -> Result<Self, SqlError> {
        let fresh = Self::new(Arc::clone(&self.function), self.types.clone(), self.result.clone())?;
        Ok(Self { is_distinct: self.is_distinct, ..fresh })
    }

    /// Adds the rows of the second group of each pair to those of the first.
    pub(super) fn merge(&mut self, pairs: &[(u32, u32)]) -> Result<(), SqlError> {
        pairs.iter().for_each(|(first, second)| self.rows.merge(*first, *second));
        Ok(())
    }

    pub(super) fn step(
        &mut self,
        input: &Input<'_>,
        weights: &Weights,
        touched: &Touched,
    ) -> Result<ArrayRef, SqlError> {
        let (rows, starts) = input.by_group(touched);
        self.rows.grow(touched.capacity);
        let arguments: Vec<ArrayRef> = match self.is_distinct {
            true => input.arguments.iter().map(|column| canonical(Arc::clone(column))).collect(),
            false => input.arguments.to_vec(),
        };
        let keys = self.rows.codec().encode(&arguments)?;
        let skips_null = self.made != Made::Any;
        for (index, found) in touched.found.iter().enumerate() {
            for row in rows[starts[index]..starts[index + 1]].iter().map(|row| *row as usize) {
                if !(skips_null && input.arguments[0].is_null(row)) {
                    self.rows.change(found.slot, keys.get(row), weights.is_gone(row));
                }
            }
        }
        self.current(touched)
    }

    /// The aggregate of each touched group as it is.
    pub(super) fn current(&self, touched: &Touched) -> Result<ArrayRef, SqlError> {
        if self.made == Made::Any {
            let values = touched.found.iter().map(|found| {
                let all = self.rows.values(found.slot);
                let times = |count: u32| if self.is_distinct { 1 } else { count as usize };
                let all: Vec<&[u8]> = all.flat_map(|(row, count)| std::iter::repeat_n(row, times(count))).collect();
                let columns = match all.is_empty() {
                    true => self.types.iter().map(arrow::array::new_empty_array).collect(),
                    false => self.rows.codec().decode(all.into_iter())?,
                };
                evaluate_sorted(&self.function, &columns)
            });
            return scalars(values.collect::<Result<Vec<_>, _>>()?, &self.result);
        }
        let end = |slot: u32| {
            let mut values = self.rows.values(slot);
            if self.made == Made::Least { values.next() } else { values.next_back() }
        };
        let ends: Vec<Option<&[u8]>> =
            touched.found.iter().map(|found| end(found.slot).map(|(value, _)| value)).collect();
        let present: Vec<&[u8]> = ends.iter().copied().flatten().collect();
        if present.is_empty() {
            return Ok(new_null_array(&self.result, ends.len()));
        }
        let mut next = 0..present.len() as u32;
        let places: arrow::array::UInt32Array = ends.iter().map(|end| end.and_then(|_| next.next())).collect();
        let values = self.rows.codec().decode(present.into_iter())?;
        let values = values.first().ok_or_else(|| SqlError::internal("an aggregate without an argument"))?;
        compute::take(values, &places, None).map_err(super::delta::arrow_error)
    }

    pub(super) fn clear(&mut self, slots: &[u32]) {
        self.rows.clear(slots);
    }

    pub(super) fn save(&self, slots: &[u32]) -> Result<RecordBatch, SqlError> {
        self.rows.save(slots)
    }

    pub(super) fn restore(&mut self, batch: &RecordBatch, count: usize) -> Result<(), SqlError> {
        self.rows.restore(batch, count)
    }

    pub(super) fn bytes(&self) -> usize {
        self.rows.bytes()
    }
}

/// Whether the state of `function` is sums, so that rows can be taken back from it.
pub(super) fn is_linear(function: &AggregateFunctionExpr) -> Result<bool, SqlError> {
    let fields = function.state_fields().map_err(sql_error)?;
    let types: Vec<&DataType> = fields.iter().map(|field| field.data_type()).collect();
    Ok(matches!(
        (function.fun().name(), types.as_slice()),
        ("count", [DataType::Int64]) | ("sum" | "avg", [DataType::Decimal128(_, _), DataType::Int64])
    ))
}
