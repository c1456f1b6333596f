//! State of an aggregate that grows with its group: one live accumulator per group.
//!
//! Leaves out arguments and DISTINCT (`call`). Saved as the accumulators' own state.

use super::call::{Input, Touched, scalars};
use super::delta::sql_error;
use crate::error::SqlError;
use arrow::array::ArrayRef;
use arrow::datatypes::DataType;
use datafusion::error::Result as DataFusionResult;
use datafusion::logical_expr::Accumulator;
use datafusion::physical_expr::aggregate::AggregateFunctionExpr;
use datafusion::scalar::ScalarValue;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// One live accumulator per group.
pub(super) struct Boxed {
    function: Arc<AggregateFunctionExpr>,
    states: Vec<DataType>,
    pub(super) result: DataType,
    /// By slot. Locked, for reading an accumulator's state takes it apart and puts it together again.
    groups: Mutex<Vec<Option<Box<dyn Accumulator>>>>,
}

impl Boxed {
    pub(super) fn new(function: Arc<AggregateFunctionExpr>, states: Vec<DataType>, result: DataType) -> Self {
        Self { function, states, result, groups: Mutex::new(Vec::new()) }
    }

    /// The same without groups.
    pub(super) fn fresh(&self) -> Self {
        Self::new(Arc::clone(&self.function), self.states.clone(), self.result.clone())
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Option<Box<dyn Accumulator>>>> {
        self.groups.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn step(&mut self, input: &Input<'_>, touched: &Touched) -> Result<ArrayRef, SqlError> {
        let (rows, starts) = input.by_group(touched);
        let mut groups = self.groups.lock().unwrap_or_else(PoisonError::into_inner);
        groups.resize_with(touched.capacity, || None);
        let mut values = Vec::with_capacity(touched.found.len());
        for (index, found) in touched.found.iter().enumerate() {
            let place = &mut groups[found.slot as usize];
            let accumulator = match place {
                Some(accumulator) if !found.is_new => accumulator,
                place => place.insert(self.function.create_accumulator().map_err(sql_error)?),
            };
            let rows = &rows[starts[index]..starts[index + 1]];
            if !rows.is_empty() {
                accumulator.update_batch(&input.take(rows)?).map_err(sql_error)?;
            }
            values.push(accumulator.evaluate().map_err(sql_error)?);
        }
        scalars(values, &self.result)
    }

    /// The aggregate of each touched group as it is; NULL for new ones.
    pub(super) fn current(&self, touched: &Touched) -> Result<ArrayRef, SqlError> {
        let null = ScalarValue::try_from(&self.result).map_err(sql_error)?;
        let mut groups = self.lock();
        let values = touched.found.iter().map(|found| match groups.get_mut(found.slot as usize) {
            Some(Some(accumulator)) if !found.is_new => accumulator.evaluate().map_err(sql_error),
            _ => Ok(null.clone()),
        });
        scalars(values.collect::<Result<Vec<_>, _>>()?, &self.result)
    }

    /// Adds the state of the second group of each pair to that of the first.
    pub(super) fn merge(&mut self, pairs: &[(u32, u32)]) -> Result<(), SqlError> {
        let mut groups = self.lock();
        for (first, second) in pairs {
            let second = groups.get_mut(*second as usize).and_then(Option::take);
            let first = groups.get_mut(*first as usize).and_then(Option::as_mut);
            let (Some(mut second), Some(first)) = (second, first) else {
                return Err(SqlError::internal("a group has no accumulator"));
            };
            let state = second.state().map_err(sql_error)?;
            let arrays = state.iter().map(ScalarValue::to_array).collect::<DataFusionResult<Vec<_>>>();
            first.merge_batch(&arrays.map_err(sql_error)?).map_err(sql_error)?;
        }
        Ok(())
    }

    pub(super) fn clear(&mut self, slots: &[u32]) {
        let mut groups = self.lock();
        for slot in slots {
            if let Some(group) = groups.get_mut(*slot as usize) {
                *group = None;
            }
        }
    }

    pub(super) fn save(&self, slots: &[u32]) -> Result<Vec<ArrayRef>, SqlError> {
        let mut groups = self.lock();
        let mut columns: Vec<Vec<ScalarValue>> = vec![Vec::with_capacity(slots.len()); self.states.len()];
        for slot in slots {
            let Some(Some(accumulator)) = groups.get_mut(*slot as usize) else {
                return Err(SqlError::internal("a group has no accumulator"));
            };
            let state = accumulator.state().map_err(sql_error)?;
            let arrays = state.iter().map(ScalarValue::to_array).collect::<DataFusionResult<Vec<_>>>();
            *accumulator = self.load(&arrays.map_err(sql_error)?)?;
            columns.iter_mut().zip(state).for_each(|(column, value)| column.push(value));
        }
        drop(groups);
        columns.into_iter().zip(&self.states).map(|(values, data_type)| scalars(values, data_type)).collect()
    }

    fn load(&self, state: &[ArrayRef]) -> Result<Box<dyn Accumulator>, SqlError> {
        let mut accumulator = self.function.create_accumulator().map_err(sql_error)?;
        accumulator.merge_batch(state).map_err(sql_error)?;
        Ok(accumulator)
    }

    pub(super) fn restore(&mut self, columns: &[ArrayRef], count: usize) -> Result<(), SqlError> {
        let mut restored = Vec::with_capacity(count);
        for row in 0..count {
            let state: Vec<ArrayRef> = columns.iter().map(|column| column.slice(row, 1)).collect();
            restored.push(Some(self.load(&state)?));
        }
        *self.lock() = restored;
        Ok(())
    }

    pub(super) fn bytes(&self) -> usize {
        self.lock().iter().flatten().map(|accumulator| accumulator.size()).sum()
    }
}
