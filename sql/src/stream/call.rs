//! One aggregate of a continuous GROUP BY: its arguments, and its state for every group.
//!
//! Owns three ways to keep state, chosen so that results depend neither on how the log is cut into steps nor on when
//! state was saved and restored:
//!
//! - columns: the state is a few values per group. Each step loads those of the groups it touches into a fresh
//!   vectorised accumulator, updates it in event order, and stores the state back. Saved state *is* the running state.
//!   Approximate percentiles are kept so too: they are not exact, but the same with and without a restore.
//! - boxed: the state grows with the group (`array_agg`, `median`): one live accumulator per group.
//! - replayed: the function wants its input sorted (`nth_value … ORDER BY`): the arguments are kept, sorted and fed
//!   to a new accumulator whenever the group changes.
//!
//! Over rows that go away again, sums are taken back from columns, and all else is kept as counted arguments
//! (`retracted`).
//!
//! Leaves out groups and windows (`aggregate`) and DISTINCT (`distinct`).

use super::boxed::Boxed;
use super::columns::{Columns, Maker};
use super::delta::{Delta, arrow_error, sql_error};
use super::distinct::DistinctGate;
use super::expression::{evaluate, evaluate_predicate};
use super::moments::Moment;
use super::replayed::Replayed;
use super::retracted::{Retracted, is_linear};
use super::save::{StateReader, StateWriter};
use super::slots::Found;
use crate::error::SqlError;
use arrow::array::{Array, ArrayRef, BooleanArray, RecordBatch, UInt32Array, UInt64Array, new_empty_array};
use arrow::compute;
use arrow::datatypes::{DataType, Schema};
use datafusion::error::Result as DataFusionResult;
use datafusion::physical_expr::PhysicalExpr;
use datafusion::physical_expr::aggregate::AggregateFunctionExpr;
use datafusion::physical_expr::expressions::Column;
use datafusion::scalar::ScalarValue;
use std::sync::Arc;

/// The groups a step touches, and which of them each row belongs to.
pub(crate) struct Touched {
    /// Per row, the position of its group in `found`.
    pub(crate) groups: Vec<usize>,
    /// Per touched group, its slot.
    pub(crate) found: Vec<Found>,
    /// One more than the greatest slot.
    pub(crate) capacity: usize,
    /// The same groups, those known before the step first.
    pub(super) ranked: Ranked,
}

/// Groups numbered so that those known before the step come first. The vectorised accumulators take it for granted that
/// a group with a number below the count they are told has had a row or a state.
pub(super) struct Ranked {
    /// How many were known before.
    pub(super) known: usize,
    /// Per row, its group.
    pub(super) groups: Vec<usize>,
    /// Per group, its slot.
    pub(super) slots: Vec<u32>,
    /// Per group of `Touched::found`, its number here; `None` where the numbers are equal.
    pub(super) ranks: Option<UInt64Array>,
}

impl Touched {
    /// `found` are the groups, `groups` says which of them each row belongs to.
    pub(crate) fn new(groups: Vec<usize>, found: Vec<Found>, capacity: usize) -> Self {
        let known = found.iter().filter(|found| !found.is_new).count();
        let is_ranked = found.iter().take(known).all(|found| !found.is_new);
        let ranked = match is_ranked {
            true => Ranked {
                known,
                groups: groups.clone(),
                slots: found.iter().map(|found| found.slot).collect(),
                ranks: None,
            },
            false => {
                let (mut next_known, mut next_new) = (0, known);
                let mut slots = vec![0; found.len()];
                let ranks: Vec<u64> = found
                    .iter()
                    .map(|found| {
                        let next = if found.is_new { &mut next_new } else { &mut next_known };
                        slots[*next] = found.slot;
                        *next += 1;
                        (*next - 1) as u64
                    })
                    .collect();
                let groups = groups.iter().map(|group| ranks[*group] as usize).collect();
                Ranked { known, groups, slots, ranks: Some(UInt64Array::from(ranks)) }
            }
        };
        Self { groups, found, capacity, ranked }
    }
}

/// One aggregate with its state.
pub(crate) struct Call {
    function: Arc<AggregateFunctionExpr>,
    arguments: Vec<Arc<dyn PhysicalExpr>>,
    filter: Option<Arc<dyn PhysicalExpr>>,
    gate: Option<DistinctGate>,
    keep: Keep,
}

/// An aggregate over some of a group's rows, whose state is merged into the group's.
pub(crate) struct PartialCall {
    pub(super) maker: Maker,
    pub(super) arguments: Vec<Arc<dyn PhysicalExpr>>,
    pub(super) filter: Option<Arc<dyn PhysicalExpr>>,
    /// The types of its states.
    pub(super) states: Vec<DataType>,
    /// For the fingerprint.
    pub(super) text: String,
}

/// What an aggregate takes of each row.
pub(crate) struct Arguments {
    /// One column per argument, then those to order by.
    values: Vec<ArrayRef>,
    /// Which rows count; all if there is none.
    filter: Option<BooleanArray>,
}

enum Keep {
    Columns(Columns),
    Boxed(Boxed),
    Replayed(Replayed),
    Retracted(Retracted),
}

/// Whether rows an aggregate has seen go away again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Rows {
    /// They stay.
    Stay,
    /// They stay, and groups become one.
    Merge,
    /// They may go.
    Go,
}

impl Call {
    /// `function` without DISTINCT, on columns of `input`, over rows that pass `filter`; `is_distinct` lets each argument row count once.
    ///
    /// # Errors
    /// When the function cannot be made, or its state cannot be kept.
    pub(crate) fn new(
        function: Arc<AggregateFunctionExpr>,
        filter: Option<Arc<dyn PhysicalExpr>>,
        is_distinct: bool,
        input: &Schema,
        rows: Rows,
    ) -> Result<Self, SqlError> {
        let mut arguments = function.expressions();
        let types = types_of(&arguments, input)?;
        let is_distinct = is_distinct && !is_idempotent(function.fun().name());
        let gate = match is_distinct && rows != Rows::Merge {
            true => Some(DistinctGate::new(&types)?),
            false => None,
        };
        arguments.extend(function.order_bys().iter().map(|order| Arc::clone(&order.expr)));
        let keep = match rows {
            // What both of two groups have seen counts once in the one they become: only the values tell.
            Rows::Merge if is_distinct => {
                refuse(function.fun().name())?;
                let (types, result) = (types_of(&arguments, input)?, function.field().data_type().clone());
                Keep::Retracted(Retracted::distinct(Arc::clone(&function), types, result)?)
            }
            Rows::Stay | Rows::Merge => Keep::choose(&function, &types, &types_of(&arguments, input)?)?,
            Rows::Go => Keep::choose_retracting(&function, types_of(&arguments, input)?)?,
        };
        Ok(Self { function, arguments, filter, gate, keep })
    }

    /// The aggregate in two: over some of a group's rows, and over the states of those, the columns of `schema` from
    /// position `first` on; `None` where its state is not a few values.
    pub(crate) fn split(self, first: usize) -> Option<(PartialCall, Self)> {
        let text = self.text();
        let Self { function, arguments, filter, gate: None, keep: Keep::Columns(columns) } = self else { return None };
        let (maker, states) = columns.parts();
        let state = |at: usize| -> Arc<dyn PhysicalExpr> { Arc::new(Column::new(&format!("state{at}"), at)) };
        let merged = (first..first + states.len()).map(state).collect();
        let keep = Keep::Columns(columns.merging());
        let merging = Self { function, arguments: merged, filter: None, gate: None, keep };
        Some((PartialCall { maker, arguments, filter, states, text }, merging))
    }

    /// The same aggregate without state.
    pub(crate) fn fresh(&self) -> Result<Self, SqlError> {
        Ok(Self {
            function: Arc::clone(&self.function),
            arguments: self.arguments.clone(),
            filter: self.filter.clone(),
            gate: self.gate.as_ref().map(DistinctGate::fresh).transpose()?,
            keep: match &self.keep {
                Keep::Columns(columns) => Keep::Columns(columns.fresh()),
                Keep::Boxed(boxed) => Keep::Boxed(boxed.fresh()),
                Keep::Replayed(replayed) => Keep::Replayed(replayed.fresh()),
                Keep::Retracted(retracted) => Keep::Retracted(retracted.fresh()?),
            },
        })
    }

    /// The type of the result.
    pub(crate) fn data_type(&self) -> &DataType {
        self.keep.result_type()
    }

    /// The arguments over the rows of `delta`.
    pub(crate) fn evaluate(&self, delta: &Delta) -> Result<Arguments, SqlError> {
        let values = self.arguments.iter().map(|argument| evaluate(argument.as_ref(), delta));
        let filter = self.filter.as_ref().map(|filter| evaluate_predicate(filter.as_ref(), delta));
        Ok(Arguments { values: values.collect::<Result<Vec<_>, _>>()?, filter: filter.transpose()? })
    }

    /// Takes the rows of `delta`, with their arguments, and gives the aggregate of each touched group.
    pub(crate) fn step(
        &mut self,
        arguments: Arguments,
        delta: &Delta,
        touched: &Touched,
    ) -> Result<ArrayRef, SqlError> {
        let Arguments { values: arguments, mut filter } = arguments;
        if let Some(gate) = &mut self.gate {
            let own = arguments.len() - self.function.order_bys().len();
            let slots = touched.groups.iter().map(|group| touched.found[*group].slot);
            filter = Some(gate.pass(&arguments[..own], filter.as_ref(), &delta.weights, slots, touched.capacity)?);
        }
        let input = Input { arguments: &arguments, filter: filter.as_ref() };
        let values = match &mut self.keep {
            Keep::Columns(columns) => columns.step_weighted(&input, &delta.weights, touched, delta)?,
            Keep::Boxed(boxed) => boxed.step(&input, touched).map_err(|error| blame_last(delta, error))?,
            Keep::Replayed(replayed) => replayed.step(&input, touched).map_err(|error| blame_last(delta, error))?,
            Keep::Retracted(retracted) => {
                retracted.step(&input, &delta.weights, touched).map_err(|error| blame_last(delta, error))?
            }
        };
        self.in_type(values)
    }

    /// The aggregate of each touched group before the step; of new groups anything.
    pub(crate) fn current(&self, touched: &Touched) -> Result<ArrayRef, SqlError> {
        let values = match &self.keep {
            Keep::Columns(columns) => columns.current(touched)?,
            Keep::Boxed(boxed) => boxed.current(touched)?,
            Keep::Replayed(replayed) => replayed.current(touched)?,
            Keep::Retracted(retracted) => retracted.current(touched)?,
        };
        self.in_type(values)
    }

    fn in_type(&self, values: ArrayRef) -> Result<ArrayRef, SqlError> {
        if values.data_type() == self.data_type() {
            return Ok(values);
        }
        compute::cast(&values, self.data_type()).map_err(arrow_error)
    }

    /// Adds what the second group of each pair has seen to the first; the second is to be cleared.
    ///
    /// Only of a call made for groups that become one.
    pub(crate) fn merge(&mut self, pairs: &[(u32, u32)]) -> Result<(), SqlError> {
        match &mut self.keep {
            Keep::Columns(columns) => columns.merge(pairs),
            Keep::Boxed(boxed) => boxed.merge(pairs),
            Keep::Replayed(replayed) => replayed.merge(pairs),
            Keep::Retracted(retracted) => retracted.merge(pairs),
        }
    }

    /// Forgets the groups at `slots`.
    pub(crate) fn clear(&mut self, slots: &[u32]) {
        if let Some(gate) = &mut self.gate {
            gate.clear(slots);
        }
        match &mut self.keep {
            Keep::Columns(columns) => columns.clear(slots),
            Keep::Boxed(boxed) => boxed.clear(slots),
            Keep::Replayed(replayed) => replayed.clear(slots),
            Keep::Retracted(retracted) => retracted.clear(slots),
        }
    }

    /// Writes the state of the groups at `slots`, in that order, as sections that start with `name`.
    pub(crate) fn save(&self, name: &str, slots: &[u32], state: &mut StateWriter) -> Result<(), SqlError> {
        if let Some(gate) = &self.gate {
            state.put(&format!("{name}.seen"), &gate.save(slots)?)?;
        }
        let columns = match &self.keep {
            Keep::Columns(columns) => columns.save(slots)?,
            Keep::Boxed(boxed) => boxed.save(slots)?,
            Keep::Replayed(replayed) => replayed.save(slots)?,
            Keep::Retracted(retracted) => return state.put(name, &retracted.save(slots)?),
        };
        let columns = columns.into_iter().enumerate().map(|(index, column)| (format!("state{index}"), column, true));
        state.put(name, &RecordBatch::try_from_iter_with_nullable(columns).map_err(arrow_error)?)
    }

    /// Takes over what `save` wrote, into slots 0 to `count`.
    pub(crate) fn restore(&mut self, name: &str, count: usize, state: &mut StateReader) -> Result<(), SqlError> {
        if let Some(gate) = &mut self.gate {
            gate.restore(&state.take(&format!("{name}.seen"))?, count)?;
        }
        let batch = state.take(name)?;
        match &mut self.keep {
            Keep::Columns(columns) => columns.restore(batch.columns(), count),
            Keep::Boxed(boxed) => boxed.restore(batch.columns(), count),
            Keep::Replayed(replayed) => replayed.restore(batch.columns(), count),
            Keep::Retracted(retracted) => retracted.restore(&batch, count),
        }
    }

    /// Memory held, about.
    pub(crate) fn bytes(&self) -> usize {
        let kept = match &self.keep {
            Keep::Columns(columns) => columns.bytes(),
            Keep::Boxed(boxed) => boxed.bytes(),
            Keep::Replayed(replayed) => replayed.bytes(),
            Keep::Retracted(retracted) => retracted.bytes(),
        };
        kept + self.gate.as_ref().map_or(0, DistinctGate::bytes)
    }

    /// For the fingerprint: function, arguments, filter and how state is laid out.
    pub(crate) fn text(&self) -> String {
        let arguments: Vec<String> = self.arguments.iter().map(ToString::to_string).collect();
        let filter = self.filter.as_ref().map_or(String::new(), |filter| format!(" where {filter}"));
        let keep = match &self.keep {
            Keep::Columns(_) => "columns",
            Keep::Boxed(_) => "boxed",
            Keep::Replayed(_) => "replayed",
            Keep::Retracted(_) => "retracted",
        };
        let distinct = if self.gate.is_some() { "distinct " } else { "" };
        let orders: Vec<String> = self.function.order_bys().iter().map(ToString::to_string).collect();
        format!(
            "{}({distinct}{} order {}){filter} {keep} {} nulls {}",
            self.function.fun().name(),
            arguments.join(", "),
            orders.join(", "),
            self.data_type(),
            self.function.ignore_nulls(),
        )
    }
}

/// The arguments of a step, and the rows of it that count.
pub(super) struct Input<'a> {
    /// The argument columns, order columns last.
    pub(super) arguments: &'a [ArrayRef],
    /// True for rows that count.
    pub(super) filter: Option<&'a BooleanArray>,
}

impl Input<'_> {
    /// Rows that count, by touched group, each group's in event order: the rows, and where each group's begin.
    pub(super) fn by_group(&self, touched: &Touched) -> (Vec<u32>, Vec<usize>) {
        let is_wanted = |row: usize| self.filter.is_none_or(|filter| filter.is_valid(row) && filter.value(row));
        let mut starts = vec![0_usize; touched.found.len() + 1];
        for (row, group) in touched.groups.iter().enumerate() {
            starts[group + 1] += usize::from(is_wanted(row));
        }
        for group in 1..starts.len() {
            starts[group] += starts[group - 1];
        }
        let mut rows = vec![0_u32; starts[touched.found.len()]];
        let mut next = starts.clone();
        for (row, group) in touched.groups.iter().enumerate() {
            if is_wanted(row) {
                rows[next[*group]] = row as u32;
                next[*group] += 1;
            }
        }
        (rows, starts)
    }

    pub(super) fn take(&self, rows: &[u32]) -> Result<Vec<ArrayRef>, SqlError> {
        let rows = UInt32Array::from(rows.to_vec());
        let taken = self.arguments.iter().map(|column| compute::take(column, &rows, None));
        taken.collect::<Result<Vec<_>, _>>().map_err(arrow_error)
    }
}

fn types_of(arguments: &[Arc<dyn PhysicalExpr>], input: &Schema) -> Result<Vec<DataType>, SqlError> {
    let types = arguments.iter().map(|argument| argument.data_type(input));
    types.collect::<DataFusionResult<Vec<_>>>().map_err(sql_error)
}

/// Names the last event of the step: what failed came with it or before it in the step.
pub(super) fn blame_last(delta: &Delta, error: SqlError) -> SqlError {
    match delta.len().checked_sub(1) {
        None => error,
        Some(last) => delta.blame(last, error),
    }
}

/// Functions that do not change when an argument comes twice.
fn is_idempotent(name: &str) -> bool {
    matches!(name, "min" | "max" | "bool_and" | "bool_or" | "every" | "bit_and" | "bit_or" | "any_value")
}

impl Keep {
    fn choose(
        function: &Arc<AggregateFunctionExpr>,
        types: &[DataType],
        with_order: &[DataType],
    ) -> Result<Self, SqlError> {
        let name = function.fun().name();
        let result = function.field().data_type().clone();
        refuse(name)?;
        if let Some(moment) = Moment::of(name, types, &result) {
            let states = Moment::state_types();
            return Ok(Self::Columns(Columns::new(Maker::Moments(moment), &states, result)));
        }
        function.create_accumulator().map_err(sql_error)?;
        if !function.order_bys().is_empty() && name == "nth_value" {
            return Ok(Self::Replayed(Replayed::new(Arc::clone(function), with_order.to_vec(), result)));
        }
        let fields = function.state_fields().map_err(sql_error)?;
        let states: Vec<DataType> = fields.iter().map(|field| field.data_type().clone()).collect();
        let is_digest =
            matches!(name, "approx_median" | "approx_percentile_cont" | "approx_percentile_cont_with_weight");
        let keeps_one_row = matches!(name, "min" | "max" | "first_value" | "last_value" | "any_value");
        let is_fixed = |data_type: &DataType| *data_type == DataType::Boolean || data_type.primitive_width().is_some();
        if is_digest {
            return Ok(Self::Columns(Columns::new(Maker::Single(Arc::clone(function)), &states, result)));
        }
        if keeps_one_row || states.iter().all(is_fixed) {
            let maker = match function.groups_accumulator_supported() {
                true => Maker::Groups(Arc::clone(function)),
                false => Maker::Single(Arc::clone(function)),
            };
            return Ok(Self::Columns(Columns::new(maker, &states, result)));
        }
        Ok(Self::Boxed(Boxed::new(Arc::clone(function), states, result)))
    }

    fn choose_retracting(function: &Arc<AggregateFunctionExpr>, with_order: Vec<DataType>) -> Result<Self, SqlError> {
        let result = function.field().data_type().clone();
        refuse(function.fun().name())?;
        function.create_accumulator().map_err(sql_error)?;
        if !is_linear(function)? {
            return Ok(Self::Retracted(Retracted::new(Arc::clone(function), with_order, result)?));
        }
        let fields = function.state_fields().map_err(sql_error)?;
        let states: Vec<DataType> = fields.iter().map(|field| field.data_type().clone()).collect();
        let maker = match function.groups_accumulator_supported() {
            true => Maker::Groups(Arc::clone(function)),
            false => Maker::Single(Arc::clone(function)),
        };
        Ok(Self::Columns(Columns::new(maker, &states, result)))
    }

    fn result_type(&self) -> &DataType {
        match self {
            Self::Columns(columns) => &columns.result,
            Self::Boxed(boxed) => &boxed.result,
            Self::Replayed(replayed) => &replayed.result,
            Self::Retracted(retracted) => &retracted.result,
        }
    }
}

fn refuse(name: &str) -> Result<(), SqlError> {
    match name {
        "grouping" => Err(SqlError::unsupported(
            "function \"grouping\" in a continuous query",
            "run the query without EMIT CHANGES",
        )),
        _ => Ok(()),
    }
}

/// An array of `values`, which are of type `data_type`.
pub(super) fn scalars(values: Vec<ScalarValue>, data_type: &DataType) -> Result<ArrayRef, SqlError> {
    if values.is_empty() {
        return Ok(new_empty_array(data_type));
    }
    ScalarValue::iter_to_array(values).map_err(sql_error)
}
