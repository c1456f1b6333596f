//! State of an aggregate that is a few values per group.
//!
//! Each step loads the groups it touches into a fresh vectorised accumulator, updates it in event order, and stores the
//! state back: what is saved is what runs. Leaves out arguments and DISTINCT (`call`).

use super::call::{Input, Ranked, Touched, blame_last};
use super::delta::{Delta, Weights, arrow_error, blame, sql_error};
use super::expression::first_failure;
use super::moments::{Moment, Moments};
use super::states::StateColumn;
use crate::error::SqlError;
use arrow::array::{Array, ArrayRef, BooleanArray, new_null_array};
use arrow::compute::{self, kernels::numeric};
use arrow::datatypes::DataType;
use datafusion::error::Result as DataFusionResult;
use datafusion::logical_expr::{EmitTo, GroupsAccumulator};
use datafusion::physical_expr::GroupsAccumulatorAdapter;
use datafusion::physical_expr::aggregate::AggregateFunctionExpr;
use datafusion::scalar::ScalarValue;
use std::sync::Arc;

/// Makes the vectorised accumulator of a step.
#[derive(Clone)]
pub(super) enum Maker {
    Groups(Arc<AggregateFunctionExpr>),
    Single(Arc<AggregateFunctionExpr>),
    Moments(Moment),
}

impl Maker {
    pub(super) fn make(&self) -> DataFusionResult<Box<dyn GroupsAccumulator>> {
        match self {
            Self::Groups(function) => function.create_groups_accumulator(),
            Self::Single(function) => {
                let function = Arc::clone(function);
                Ok(Box::new(GroupsAccumulatorAdapter::new(move || function.create_accumulator())))
            }
            Self::Moments(moment) => Ok(Box::new(Moments::new(*moment))),
        }
    }
}

/// State of a few values per group.
pub(super) struct Columns {
    maker: Maker,
    takes: Takes,
    states: Vec<StateColumn>,
    pub(super) result: DataType,
}

/// What an aggregate's rows are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Takes {
    /// Its arguments.
    Arguments,
    /// States of the same aggregate over other rows.
    States,
}

impl Columns {
    pub(super) fn new(maker: Maker, states: &[DataType], result: DataType) -> Self {
        Self { maker, takes: Takes::Arguments, states: states.iter().map(StateColumn::new).collect(), result }
    }

    /// What makes its accumulators, and the types of their states.
    pub(super) fn parts(&self) -> (Maker, Vec<DataType>) {
        (self.maker.clone(), self.states.iter().map(StateColumn::data_type).collect())
    }

    /// The same without groups.
    pub(super) fn fresh(&self) -> Self {
        let (maker, states) = self.parts();
        Self { takes: self.takes, ..Self::new(maker, &states, self.result.clone()) }
    }

    /// The same aggregate over states of it.
    pub(super) fn merging(self) -> Self {
        Self { takes: Takes::States, ..self }
    }

    /// An accumulator that holds the touched groups as they were before the step.
    fn load(&self, ranked: &Ranked) -> Result<Box<dyn GroupsAccumulator>, SqlError> {
        let mut accumulator = self.maker.make().map_err(sql_error)?;
        if ranked.known > 0 {
            let slots = &ranked.slots[..ranked.known];
            let states = self.states.iter().map(|column| column.read(slots)).collect::<Result<Vec<_>, _>>()?;
            let groups: Vec<usize> = (0..ranked.known).collect();
            accumulator.merge_batch(&states, &groups, ranked.known).map_err(sql_error)?;
        }
        Ok(accumulator)
    }

    pub(super) fn step(&mut self, input: &Input<'_>, touched: &Touched, delta: &Delta) -> Result<ArrayRef, SqlError> {
        let ranked = &touched.ranked;
        let count = ranked.slots.len();
        let mut accumulator = self.load(ranked)?;
        let updated = match (ranked.groups.is_empty(), self.takes) {
            (true, _) => touch(accumulator.as_mut(), input, count),
            (_, Takes::Arguments) => accumulator.update_batch(input.arguments, &ranked.groups, input.filter, count),
            (_, Takes::States) => accumulator.merge_batch(input.arguments, &ranked.groups, count),
        };
        updated.map_err(|error| self.blame(input, ranked, delta, sql_error(error)))?;
        let states = accumulator.state(EmitTo::All).map_err(sql_error)?;
        for (column, state) in self.states.iter_mut().zip(&states) {
            column.write(&ranked.slots, state, touched.capacity)?;
        }
        let mut result = self.maker.make().map_err(sql_error)?;
        let all: Vec<usize> = (0..count).collect();
        result.merge_batch(&states, &all, count).map_err(sql_error)?;
        let values = result.evaluate(EmitTo::All).map_err(|error| blame_last(delta, sql_error(error)))?;
        match &ranked.ranks {
            None => Ok(values),
            Some(ranks) => compute::take(&values, ranks, None).map_err(arrow_error),
        }
    }

    /// As `step`, where rows with a negative weight are taken back: for state that is sums.
    pub(super) fn step_weighted(
        &mut self,
        input: &Input<'_>,
        weights: &Weights,
        touched: &Touched,
        delta: &Delta,
    ) -> Result<ArrayRef, SqlError> {
        if let Weights::Ones = weights {
            return self.step(input, touched, delta);
        }
        let ranked = &touched.ranked;
        let count = ranked.slots.len();
        let known = &ranked.slots[..ranked.known];
        let before = self.states.iter().map(|column| column.read(known)).collect::<Result<Vec<_>, _>>()?;
        let (plus, minus) = (self.sums(input, weights, false, ranked)?, self.sums(input, weights, true, ranked)?);
        for (index, column) in self.states.iter_mut().enumerate() {
            let data_type = plus[index].data_type();
            let new = new_null_array(data_type, count - ranked.known);
            let before = compute::concat(&[before[index].as_ref(), new.as_ref()]).map_err(arrow_error)?;
            let sum = numeric::add_wrapping(&zeroed(&before)?, &zeroed(&plus[index])?).map_err(arrow_error)?;
            let sum = numeric::sub_wrapping(&sum, &zeroed(&minus[index])?).map_err(arrow_error)?;
            let sum = compute::cast(&sum, data_type).map_err(arrow_error)?;
            column.write(&ranked.slots, &sum, touched.capacity)?;
        }
        self.values(&ranked.slots, ranked).map_err(|error| blame_last(delta, error))
    }

    /// The state of only the rows that are gone, or only those that are not.
    fn sums(
        &self,
        input: &Input<'_>,
        weights: &Weights,
        gone: bool,
        ranked: &Ranked,
    ) -> Result<Vec<ArrayRef>, SqlError> {
        let is_wanted = |row: usize| {
            let passes = input.filter.is_none_or(|filter| filter.is_valid(row) && filter.value(row));
            passes && weights.is_gone(row) == gone
        };
        let wanted = BooleanArray::from_iter((0..ranked.groups.len()).map(|row| Some(is_wanted(row))));
        let mut accumulator = self.maker.make().map_err(sql_error)?;
        accumulator
            .update_batch(input.arguments, &ranked.groups, Some(&wanted), ranked.slots.len())
            .map_err(sql_error)?;
        accumulator.state(EmitTo::All).map_err(sql_error)
    }

    /// The aggregates of `slots`, in the order of the touched groups.
    fn values(&self, slots: &[u32], ranked: &Ranked) -> Result<ArrayRef, SqlError> {
        let states = self.states.iter().map(|column| column.read(slots)).collect::<Result<Vec<_>, _>>()?;
        let mut result = self.maker.make().map_err(sql_error)?;
        let all: Vec<usize> = (0..slots.len()).collect();
        result.merge_batch(&states, &all, slots.len()).map_err(sql_error)?;
        let values = result.evaluate(EmitTo::All).map_err(sql_error)?;
        match &ranked.ranks {
            None => Ok(values),
            Some(ranks) => compute::take(&values, ranks, None).map_err(arrow_error),
        }
    }

    /// The aggregate of each touched group as it is; anything for new ones.
    pub(super) fn current(&self, touched: &Touched) -> Result<ArrayRef, SqlError> {
        let ranked = &touched.ranked;
        if ranked.known == 0 {
            return Ok(new_null_array(&self.result, ranked.slots.len()));
        }
        // A known group stands in for a new one: nobody looks at it.
        let mut slots = ranked.slots.clone();
        slots.iter_mut().skip(ranked.known).for_each(|slot| *slot = ranked.slots[0]);
        self.values(&slots, ranked)
    }

    /// Adds the state of the second group of each pair to that of the first.
    pub(super) fn merge(&mut self, pairs: &[(u32, u32)]) -> Result<(), SqlError> {
        let mut firsts: Vec<u32> = pairs.iter().map(|(first, _)| *first).collect();
        firsts.dedup();
        let count = firsts.len();
        let mut next = 0;
        let groups: Vec<usize> = pairs
            .iter()
            .map(|(first, _)| {
                next += usize::from(firsts[next] != *first);
                next
            })
            .collect();
        let seconds: Vec<u32> = pairs.iter().map(|(_, second)| *second).collect();
        let read = |slots: &[u32]| self.states.iter().map(|column| column.read(slots)).collect::<Result<Vec<_>, _>>();
        let mut accumulator = self.maker.make().map_err(sql_error)?;
        let all: Vec<usize> = (0..count).collect();
        accumulator.merge_batch(&read(&firsts)?, &all, count).map_err(sql_error)?;
        accumulator.merge_batch(&read(&seconds)?, &groups, count).map_err(sql_error)?;
        let states = accumulator.state(EmitTo::All).map_err(sql_error)?;
        let capacity = firsts.iter().max().map_or(0, |slot| *slot as usize + 1);
        for (column, state) in self.states.iter_mut().zip(&states) {
            let capacity = capacity.max(column.capacity());
            column.write(&firsts, state, capacity)?;
        }
        Ok(())
    }

    /// Finds the event that made an update fail, by repeating the step up to ever closer ends.
    fn blame(&self, input: &Input<'_>, ranked: &Ranked, delta: &Delta, error: SqlError) -> SqlError {
        let fails = |start: usize, count: usize| {
            let end = start + count;
            let arguments: Vec<ArrayRef> = input.arguments.iter().map(|column| column.slice(0, end)).collect();
            let filter = input.filter.map(|filter| filter.slice(0, end));
            self.load(ranked).is_ok_and(|mut accumulator| {
                let (groups, count) = (&ranked.groups[..end], ranked.slots.len());
                let updated = match self.takes {
                    Takes::Arguments => accumulator.update_batch(&arguments, groups, filter.as_ref(), count),
                    Takes::States => accumulator.merge_batch(&arguments, groups, count),
                };
                updated.is_err()
            })
        };
        let row = first_failure(delta.len(), fails);
        blame(&delta.origin, delta.input_row(row), error)
    }

    pub(super) fn clear(&mut self, slots: &[u32]) {
        self.states.iter_mut().for_each(|column| column.clear(slots));
    }

    pub(super) fn bytes(&self) -> usize {
        self.states.iter().map(StateColumn::bytes).sum()
    }

    pub(super) fn save(&self, slots: &[u32]) -> Result<Vec<ArrayRef>, SqlError> {
        self.states.iter().map(|column| column.read(slots)).collect()
    }

    pub(super) fn restore(&mut self, columns: &[ArrayRef], count: usize) -> Result<(), SqlError> {
        let slots: Vec<u32> = (0..count as u32).collect();
        for (state, column) in self.states.iter_mut().zip(columns) {
            state.write(&slots, column, count)?;
        }
        Ok(())
    }
}

/// `values`, with 0 for NULL.
fn zeroed(values: &ArrayRef) -> Result<ArrayRef, SqlError> {
    if values.null_count() == 0 {
        return Ok(Arc::clone(values));
    }
    let zero = ScalarValue::new_zero(values.data_type()).map_err(sql_error)?.to_scalar().map_err(sql_error)?;
    compute::kernels::zip::zip(&compute::is_not_null(values).map_err(arrow_error)?, values, &zero).map_err(arrow_error)
}

/// Makes the groups exist without rows, by a row that does not count.
fn touch(accumulator: &mut dyn GroupsAccumulator, input: &Input<'_>, count: usize) -> DataFusionResult<()> {
    let arguments: Vec<ArrayRef> = input.arguments.iter().map(|column| new_null_array(column.data_type(), 1)).collect();
    accumulator.update_batch(&arguments, &[0], Some(&BooleanArray::from(vec![false])), count)
}
