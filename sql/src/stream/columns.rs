//! State of an aggregate that is a few values per group.
//!
//! Each step loads the groups it touches into a fresh vectorised accumulator, updates it in event order, and stores the
//! state back: what is saved is what runs. Leaves out arguments and DISTINCT (`call`).

use super::call::{Input, Ranked, Touched, blame_last};
use super::delta::{Delta, arrow_error, blame, sql_error};
use super::expression::first_failure;
use super::moments::{Moment, Moments};
use super::states::StateColumn;
use crate::error::SqlError;
use arrow::array::{Array, ArrayRef, BooleanArray, new_null_array};
use arrow::compute;
use arrow::datatypes::DataType;
use datafusion::error::Result as DataFusionResult;
use datafusion::logical_expr::{EmitTo, GroupsAccumulator};
use datafusion::physical_expr::GroupsAccumulatorAdapter;
use datafusion::physical_expr::aggregate::AggregateFunctionExpr;
use std::sync::Arc;

/// Makes the vectorised accumulator of a step.
pub(super) enum Maker {
    Groups(Arc<AggregateFunctionExpr>),
    Single(Arc<AggregateFunctionExpr>),
    Moments(Moment),
}

impl Maker {
    fn make(&self) -> DataFusionResult<Box<dyn GroupsAccumulator>> {
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
    states: Vec<StateColumn>,
    pub(super) result: DataType,
}

impl Columns {
    pub(super) fn new(maker: Maker, states: &[DataType], result: DataType) -> Self {
        Self { maker, states: states.iter().map(StateColumn::new).collect(), result }
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
        let updated = match ranked.groups.is_empty() {
            true => touch(accumulator.as_mut(), input, count),
            false => accumulator.update_batch(input.arguments, &ranked.groups, input.filter, count),
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

    /// Finds the event that made an update fail, by repeating the step up to ever closer ends.
    fn blame(&self, input: &Input<'_>, ranked: &Ranked, delta: &Delta, error: SqlError) -> SqlError {
        let fails = |start: usize, count: usize| {
            let end = start + count;
            let arguments: Vec<ArrayRef> = input.arguments.iter().map(|column| column.slice(0, end)).collect();
            let filter = input.filter.map(|filter| filter.slice(0, end));
            self.load(ranked).is_ok_and(|mut accumulator| {
                let groups = &ranked.groups[..end];
                accumulator.update_batch(&arguments, groups, filter.as_ref(), ranked.slots.len()).is_err()
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

/// Makes the groups exist without rows, by a row that does not count.
fn touch(accumulator: &mut dyn GroupsAccumulator, input: &Input<'_>, count: usize) -> DataFusionResult<()> {
    let arguments: Vec<ArrayRef> = input.arguments.iter().map(|column| new_null_array(column.data_type(), 1)).collect();
    accumulator.update_batch(&arguments, &[0], Some(&BooleanArray::from(vec![false])), count)
}
