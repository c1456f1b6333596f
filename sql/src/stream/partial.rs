//! Rows of a step grouped by pane, before they come once for each of their windows.
//!
//! A pane is the rows that are in the same hopping windows. Their aggregates are computed once here, and what comes out, one
//! row per group and pane, is merged into each window above ([`Call::merging`]). Leaves out the windows' state
//! (`aggregate`) and which aggregates give the same whatever the order they are merged in (`plan::pipeline::panes`).
//! Stateless: a crash loses nothing.

use super::bounds::WindowBounds;
use super::call::PartialCall;
use super::delta::{Delta, Origin, Weights, arrow_error, downcast, sql_error};
use super::expression::{evaluate, evaluate_predicate, first_failure};
use super::operator::{Operator, only};
use crate::error::SqlError;
use crate::function::window::{Hopping, Pane};
use crate::types::canonical;
use arrow::array::{ArrayRef, AsArray, BooleanArray, Int64Array, RecordBatch, TimestampMicrosecondArray, UInt32Array};
use arrow::compute;
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use datafusion::common::HashMap;
use datafusion::logical_expr::EmitTo;
use datafusion::physical_expr::PhysicalExpr;
use datafusion::physical_plan::aggregates::group_values::new_group_values;
use datafusion::physical_plan::aggregates::order::GroupOrdering;
use std::sync::Arc;

/// In: rows with a time. Out: per group of a pane the keys, the list of window starts, then the states of the calls; event
/// time is the greatest, and the input row the last. Rows that are late for some windows are groups of their own, those late
/// for all of them each for itself.
pub(crate) struct Partial {
    keys: Vec<Arc<dyn PhysicalExpr>>,
    time: usize,
    hopping: Hopping,
    window: Option<WindowBounds>,
    calls: Vec<PartialCall>,
    schema: SchemaRef,
}

/// The rows of a step by group.
struct Panes {
    /// Per row, its group.
    groups: Vec<usize>,
    /// Per group, its last row.
    last: Vec<u32>,
    /// Per group, the greatest event time.
    rowtime: Vec<i64>,
    /// The rows that a window takes; `None` when that is all.
    open: Option<BooleanArray>,
}

impl Partial {
    /// Groups by `keys` and the windows that hold the time at `time`, which have these bounds where they close.
    pub(crate) fn new(
        keys: Vec<Arc<dyn PhysicalExpr>>,
        (time, hopping): (usize, Hopping),
        window: Option<WindowBounds>,
        calls: Vec<PartialCall>,
        schema: SchemaRef,
    ) -> Self {
        Self { keys, time, hopping, window, calls, schema }
    }

    /// The times of the rows.
    fn times(&self, input: &Delta) -> Result<TimestampMicrosecondArray, SqlError> {
        downcast(input.batch.column(self.time))
    }

    /// How many of a pane's windows take what comes at `now`: one closes after the other.
    fn open(&self, pane: Pane, now: i64) -> i64 {
        let Some(window) = self.window else { return pane.count };
        let is_open = |start: &i64| now < window.close(*start);
        match is_open(&pane.first) {
            true => pane.count,
            false => self.hopping.starts_of(pane).filter(is_open).count() as i64,
        }
    }

    /// Per row, the number of its pane and of how many of the windows take it; one that none takes has a number of its own.
    /// And which rows are taken, unless all are. A row without a time is in the one window that has none.
    fn panes(&self, input: &Delta) -> Result<(Int64Array, Option<BooleanArray>), SqlError> {
        let times = self.times(input)?;
        let mut numbers: HashMap<Option<(i64, i64, i64)>, i64> = HashMap::new();
        // Rows of a pane follow each other more often than not.
        let mut before: Option<(Pane, i64, i64)> = None;
        let mut panes: Vec<i64> = Vec::with_capacity(input.len());
        for (row, (time, now)) in times.iter().zip(input.times().iter()).enumerate() {
            let next = numbers.len() as i64;
            let Some(time) = time else {
                panes.push(*numbers.entry(None).or_insert(next));
                continue;
            };
            let pane = match before.filter(|(pane, ..)| pane.holds(time)) {
                Some((pane, ..)) => pane,
                None => self.hopping.pane(time).map_err(|error| input.blame(row, sql_error(error)))?,
            };
            let open = self.open(pane, *now);
            let number = match before {
                _ if open == 0 => -1 - row as i64,
                Some((known, same, number)) if (known, same) == (pane, open) => number,
                _ => *numbers.entry(Some((pane.first, pane.count, open))).or_insert(next),
            };
            before = Some((pane, open, number));
            panes.push(number);
        }
        let open = panes.iter().any(|pane| *pane < 0).then(|| panes.iter().map(|pane| Some(*pane >= 0)).collect());
        Ok((Int64Array::from(panes), open))
    }

    fn group(&self, input: &Delta, keys: &[ArrayRef]) -> Result<Panes, SqlError> {
        let (panes, open) = self.panes(input)?;
        let panes: ArrayRef = Arc::new(panes);
        let columns: Vec<ArrayRef> = keys.iter().cloned().chain([panes]).collect();
        let field = |(at, column): (usize, &ArrayRef)| Field::new(format!("{at}"), column.data_type().clone(), true);
        let schema = Schema::new(columns.iter().enumerate().map(field).collect::<Vec<_>>());
        let mut values = new_group_values(Arc::new(schema), &GroupOrdering::None).map_err(sql_error)?;
        let mut groups = Vec::with_capacity(input.len());
        values.intern(&columns, &mut groups).map_err(sql_error)?;
        let (mut last, mut rowtime) = (vec![0; values.len()], vec![i64::MIN; values.len()]);
        for (row, (group, event)) in groups.iter().zip(input.rowtime.values()).enumerate() {
            last[*group] = row as u32;
            rowtime[*group] = rowtime[*group].max(*event);
        }
        Ok(Panes { groups, last, rowtime, open })
    }

    /// The states of the groups, one call after the other.
    fn states(&self, input: &Delta, panes: &Panes) -> Result<Vec<ArrayRef>, SqlError> {
        let mut states = Vec::new();
        // Of rows that are late nothing is computed.
        let taken = panes.open.as_ref().map(|open| input.filter(open)).transpose()?;
        let taken = taken.as_ref().unwrap_or(input);
        for call in &self.calls {
            let arguments = call.arguments.iter().map(|argument| spread(evaluate(argument.as_ref(), taken)?, panes));
            let arguments = arguments.collect::<Result<Vec<ArrayRef>, _>>()?;
            let filter = call.filter.as_ref().map(|filter| evaluate_predicate(filter.as_ref(), taken)).transpose()?;
            let filter = match (filter, &panes.open) {
                (Some(filter), Some(_)) => Some(spread(Arc::new(filter), panes)?.as_boolean().clone()),
                (filter, None) => filter,
                (None, open) => open.clone(),
            };
            let update = |end: usize| {
                let mut accumulator = call.maker.make()?;
                let arguments: Vec<ArrayRef> = arguments.iter().map(|column| column.slice(0, end)).collect();
                let filter = filter.as_ref().map(|filter| filter.slice(0, end));
                let count = panes.last.len();
                accumulator.update_batch(&arguments, &panes.groups[..end], filter.as_ref(), count)?;
                Ok(accumulator)
            };
            let mut accumulator = update(input.len()).map_err(|error| {
                let row = first_failure(input.len(), |start, count| update(start + count).is_err());
                input.blame(row, sql_error(error))
            })?;
            states.extend(accumulator.state(EmitTo::All).map_err(sql_error)?);
        }
        Ok(states)
    }
}

/// `values` of the rows that a window takes, NULL for the others.
fn spread(values: ArrayRef, panes: &Panes) -> Result<ArrayRef, SqlError> {
    let Some(open) = &panes.open else { return Ok(values) };
    let mut next = 0;
    let place = |is_open: Option<bool>| {
        is_open.unwrap_or(false).then(|| {
            next += 1;
            next - 1
        })
    };
    let places: UInt32Array = open.iter().map(place).collect();
    compute::take(&values, &places, None).map_err(arrow_error)
}

impl Operator for Partial {
    fn step(&mut self, inputs: Vec<Delta>, origin: &Arc<Origin>) -> Result<Delta, SqlError> {
        let input = only(inputs)?;
        if input.len() == 0 {
            return Ok(Delta::empty(Arc::clone(&self.schema), origin));
        }
        let keys = self.keys.iter().map(|key| Ok(canonical(evaluate(key.as_ref(), &input)?)));
        let keys = keys.collect::<Result<Vec<ArrayRef>, SqlError>>()?;
        let panes = self.group(&input, &keys)?;
        let states = self.states(&input, &panes)?;
        let last = UInt32Array::from(panes.last);
        let taken = keys.iter().map(|column| compute::take(column, &last, None));
        let mut columns = taken.collect::<Result<Vec<ArrayRef>, _>>().map_err(arrow_error)?;
        // All rows of a group are in the same windows.
        let times = downcast(&compute::take(&self.times(&input)?, &last, None).map_err(arrow_error)?)?;
        columns.push(Arc::new(self.hopping.starts(&times).map_err(sql_error)?));
        columns.extend(states);
        let batch = RecordBatch::try_new(Arc::clone(&self.schema), columns).map_err(arrow_error)?;
        let rows = last.values().iter().map(|row| input.input_row(*row as usize) as u32);
        let clock = input
            .clock
            .as_ref()
            .map(|clock| Int64Array::from_iter_values(last.values().iter().map(|row| clock.value(*row as usize))));
        Ok(Delta {
            batch,
            rowtime: TimestampMicrosecondArray::from(panes.rowtime).with_timezone("UTC"),
            weights: Weights::Ones,
            rows: Some(UInt32Array::from_iter_values(rows)),
            clock,
            origin: Arc::clone(origin),
        })
    }

    fn fingerprint(&self) -> String {
        let keys: Vec<String> = self.keys.iter().map(ToString::to_string).collect();
        let calls: Vec<&str> = self.calls.iter().map(|call| call.text.as_str()).collect();
        let types: Vec<String> = self.schema.fields().iter().map(|field| field.data_type().to_string()).collect();
        let window = self.window.map_or_else(String::new, |window| format!(" {}", window.text()));
        let Hopping { size, slide, offset } = self.hopping;
        let hopping = format!("{} by {size} {slide} {offset}", self.time);
        format!("panes({}; {hopping}{window}; {}; {})", keys.join(", "), calls.join(", "), types.join(", "))
    }
}

/// The columns of the states of calls, as [`Partial`] gives them.
pub(crate) fn state_fields(calls: &[PartialCall]) -> Vec<Field> {
    let types: Vec<&DataType> = calls.iter().flat_map(|call| &call.states).collect();
    types.into_iter().enumerate().map(|(at, state)| Field::new(format!("state{at}"), state.clone(), true)).collect()
}
