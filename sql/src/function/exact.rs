//! `sum` and `avg` with PostgreSQL's result types, exact for integers and `numeric`.
//!
//! `sum(smallint | integer)` is bigint, `sum(bigint)` numeric(38,0), `sum(numeric(p,s))` numeric(38,s); `avg` of those is
//! numeric(38, max(s, 10)). Sums are kept in 128 bits and checked. Floats and intervals go to the engine's own functions.
//! Accumulators take back what they were given, for sliding frames and retractions. A crash loses them with their query.

use super::decimal::{average, overflow};
use super::errors::{external, fail};
use crate::error::SqlError;
use arrow::array::{Array, ArrayRef, AsArray, BooleanArray, Decimal128Array, Int64Array, ListArray};
use arrow::buffer::{NullBuffer, OffsetBuffer};
use arrow::datatypes::{DataType, Decimal128Type, Field, FieldRef, Int16Type, Int32Type, Int64Type};
use datafusion::common::{Result, ScalarValue};
use datafusion::functions_aggregate::{average::Avg, sum::Sum};
use datafusion::logical_expr::function::{AccumulatorArgs, StateFieldsArgs};
use datafusion::logical_expr::utils::format_state_name;
use datafusion::logical_expr::{
    Accumulator, AggregateUDF, AggregateUDFImpl, EmitTo, GroupsAccumulator, ReversedUDAF, Signature, Volatility,
};
use millstream_catalog::model::SqlState;
use std::collections::HashSet;
use std::sync::Arc;

/// Which of the two.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Kind {
    Sum,
    Average,
}

/// The scale of an average of integers, that of plain `numeric`.
const AVERAGE_SCALE: i8 = 10;

#[derive(Debug, PartialEq, Eq, Hash)]
struct Exact {
    kind: Kind,
    signature: Signature,
}

/// `sum`.
pub(super) fn sum() -> AggregateUDF {
    AggregateUDF::new_from_impl(Exact { kind: Kind::Sum, signature: Signature::user_defined(Volatility::Immutable) })
}

/// `avg`.
pub(super) fn avg() -> AggregateUDF {
    AggregateUDF::new_from_impl(Exact {
        kind: Kind::Average,
        signature: Signature::user_defined(Volatility::Immutable),
    })
}

/// The scale of an exact input, or `None` for floats and intervals.
fn input_scale(data_type: &DataType) -> Option<i8> {
    match data_type {
        DataType::Int16 | DataType::Int32 | DataType::Int64 => Some(0),
        DataType::Decimal128(_, scale) => Some(*scale),
        _ => None,
    }
}

impl Exact {
    fn output(&self, input: &DataType) -> Option<DataType> {
        let scale = input_scale(input)?;
        Some(match (self.kind, input) {
            (Kind::Sum, DataType::Int16 | DataType::Int32) => DataType::Int64,
            (Kind::Sum, _) => DataType::Decimal128(38, scale),
            (Kind::Average, _) => DataType::Decimal128(38, scale.max(AVERAGE_SCALE)),
        })
    }

    fn finish(&self, args: &AccumulatorArgs<'_>) -> Result<Finish> {
        let input = args.expr_fields.first().map(|field| field.data_type().clone());
        let input = input.ok_or_else(|| external(SqlError::internal("an aggregate without an argument")))?;
        let scale = input_scale(&input).unwrap_or(0);
        Ok(Finish { kind: self.kind, scale, output: args.return_field.data_type().clone() })
    }
}

fn is_exact(args: &AccumulatorArgs<'_>) -> bool {
    args.expr_fields.first().is_some_and(|field| input_scale(field.data_type()).is_some())
}

impl AggregateUDFImpl for Exact {
    fn name(&self) -> &str {
        match self.kind {
            Kind::Sum => "sum",
            Kind::Average => "avg",
        }
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn coerce_types(&self, types: &[DataType]) -> Result<Vec<DataType>> {
        let [input] = types else {
            return Err(fail(SqlState::UndefinedFunction, format!("{} takes one argument", self.name())));
        };
        Ok(vec![match input {
            exact if input_scale(exact).is_some() => exact.clone(),
            DataType::Float32 | DataType::Float64 | DataType::Null => DataType::Float64,
            DataType::Int8 | DataType::UInt8 | DataType::UInt16 => DataType::Int32,
            DataType::UInt32 => DataType::Int64,
            DataType::UInt64 => DataType::Decimal128(20, 0),
            DataType::Decimal32(p, s) | DataType::Decimal64(p, s) => DataType::Decimal128(*p, *s),
            DataType::Interval(_) | DataType::Duration(_) => input.clone(),
            other => {
                let shown =
                    millstream_catalog::SqlType::of_arrow(other).map_or("unknown".to_owned(), |t| t.to_string());
                let fact = format!("function {}({shown}) does not exist", self.name());
                return Err(fail(SqlState::UndefinedFunction, fact));
            }
        }])
    }

    fn return_type(&self, types: &[DataType]) -> Result<DataType> {
        let input = types.first().cloned().unwrap_or(DataType::Null);
        match (self.output(&input), self.kind) {
            (Some(output), _) => Ok(output),
            (None, Kind::Sum) => Sum::new().return_type(types),
            (None, Kind::Average) => Avg::new().return_type(types),
        }
    }

    fn accumulator(&self, args: AccumulatorArgs<'_>) -> Result<Box<dyn Accumulator>> {
        if !is_exact(&args) {
            return match self.kind {
                Kind::Sum => Sum::new().accumulator(args),
                Kind::Average => Avg::new().accumulator(args),
            };
        }
        let finish = self.finish(&args)?;
        match args.is_distinct {
            true => Ok(Box::new(DistinctTotal { values: HashSet::new(), finish })),
            false => Ok(Box::new(Total { sum: 0, count: 0, finish })),
        }
    }

    fn create_sliding_accumulator(&self, args: AccumulatorArgs<'_>) -> Result<Box<dyn Accumulator>> {
        match (is_exact(&args), self.kind) {
            (true, _) => self.accumulator(args),
            (false, Kind::Sum) => Sum::new().create_sliding_accumulator(args),
            (false, Kind::Average) => Avg::new().create_sliding_accumulator(args),
        }
    }

    fn state_fields(&self, args: StateFieldsArgs<'_>) -> Result<Vec<FieldRef>> {
        let is_exact = args.input_fields.first().is_some_and(|field| input_scale(field.data_type()).is_some());
        match (is_exact, args.is_distinct, self.kind) {
            (true, true, _) => {
                let item = Field::new_list_field(state_type(), true);
                Ok(vec![Arc::new(Field::new_list(format_state_name(args.name, "values"), item, false))])
            }
            (true, false, _) => Ok(vec![
                Arc::new(Field::new(format_state_name(args.name, "sum"), state_type(), true)),
                Arc::new(Field::new(format_state_name(args.name, "count"), DataType::Int64, true)),
            ]),
            (false, _, Kind::Sum) => Sum::new().state_fields(args),
            (false, _, Kind::Average) => Avg::new().state_fields(args),
        }
    }

    fn groups_accumulator_supported(&self, args: AccumulatorArgs<'_>) -> bool {
        match (is_exact(&args), self.kind) {
            (true, _) => !args.is_distinct,
            (false, Kind::Sum) => Sum::new().groups_accumulator_supported(args),
            (false, Kind::Average) => Avg::new().groups_accumulator_supported(args),
        }
    }

    fn create_groups_accumulator(&self, args: AccumulatorArgs<'_>) -> Result<Box<dyn GroupsAccumulator>> {
        match (is_exact(&args), self.kind) {
            (true, _) => {
                let finish = self.finish(&args)?;
                Ok(Box::new(GroupTotals { sums: Vec::new(), counts: Vec::new(), finish }))
            }
            (false, Kind::Sum) => Sum::new().create_groups_accumulator(args),
            (false, Kind::Average) => Avg::new().create_groups_accumulator(args),
        }
    }

    fn reverse_expr(&self) -> ReversedUDAF {
        ReversedUDAF::Identical
    }
}

/// Unscaled sums travel as numeric(38,0), whatever their scale is.
fn state_type() -> DataType {
    DataType::Decimal128(38, 0)
}

/// From a sum and a count to the result.
#[derive(Debug, Clone)]
struct Finish {
    kind: Kind,
    scale: i8,
    output: DataType,
}

impl Finish {
    /// The result, unscaled.
    fn value(&self, sum: i128, count: u64) -> Result<i128> {
        match (&self.output, self.kind) {
            (DataType::Decimal128(_, scale), Kind::Average) => average(sum, count, self.scale, *scale),
            _ => Ok(sum),
        }
    }

    fn scalar(&self, sum: i128, count: u64) -> Result<ScalarValue> {
        if count == 0 {
            return ScalarValue::try_from(&self.output);
        }
        let value = self.value(sum, count)?;
        match &self.output {
            DataType::Decimal128(precision, scale) => {
                checked(value).map(|value| ScalarValue::Decimal128(Some(value), *precision, *scale))
            }
            _ => bigint(value).map(|value| ScalarValue::Int64(Some(value))),
        }
    }

    fn array(&self, sums: &[i128], counts: &[u64]) -> Result<ArrayRef> {
        let nulls: NullBuffer = counts.iter().map(|count| *count > 0).collect();
        let filled = |(sum, count): (&i128, &u64)| if *count == 0 { Ok(0) } else { self.value(*sum, *count) };
        let values = sums.iter().zip(counts).map(filled);
        match &self.output {
            DataType::Decimal128(precision, scale) => {
                let values: Vec<i128> = values.map(|value| checked(value?)).collect::<Result<_>>()?;
                let array = Decimal128Array::new(values.into(), Some(nulls));
                Ok(Arc::new(array.with_precision_and_scale(*precision, *scale)?))
            }
            _ => {
                let values: Vec<i64> = values.map(|value| bigint(value?)).collect::<Result<_>>()?;
                Ok(Arc::new(Int64Array::new(values.into(), Some(nulls))))
            }
        }
    }
}

fn checked(value: i128) -> Result<i128> {
    match value.unsigned_abs() < 10_u128.pow(38) {
        true => Ok(value),
        false => Err(overflow()),
    }
}

fn bigint(value: i128) -> Result<i64> {
    i64::try_from(value).map_err(|_| fail(SqlState::NumericValueOutOfRange, "bigint out of range"))
}

/// Calls `each` with the unscaled value of every row that is not NULL.
fn for_each(array: &ArrayRef, mut each: impl FnMut(usize, i128) -> Result<()>) -> Result<()> {
    macro_rules! rows {
        ($type:ty) => {{
            let array = array.as_primitive::<$type>();
            match array.nulls() {
                None => array.values().iter().enumerate().try_for_each(|(row, value)| each(row, i128::from(*value))),
                Some(nulls) => nulls.valid_indices().try_for_each(|row| each(row, i128::from(array.value(row)))),
            }
        }};
    }
    match array.data_type() {
        DataType::Int16 => rows!(Int16Type),
        DataType::Int32 => rows!(Int32Type),
        DataType::Int64 => rows!(Int64Type),
        DataType::Decimal128(..) => rows!(Decimal128Type),
        _ => Err(external(SqlError::internal("an exact aggregate over another type"))),
    }
}

/// The sum of all rows that are not NULL, and how many they are.
fn total(array: &ArrayRef) -> Result<(i128, u64)> {
    let count = (array.len() - array.null_count()) as u64;
    macro_rules! narrow {
        ($type:ty) => {{
            let array = array.as_primitive::<$type>();
            match array.nulls() {
                // 64 bits of value and 64 of headroom: cannot overflow within a batch.
                None => array.values().iter().map(|value| i128::from(*value)).sum(),
                Some(nulls) => nulls.valid_indices().map(|row| i128::from(array.value(row))).sum(),
            }
        }};
    }
    let sum = match array.data_type() {
        DataType::Int16 => narrow!(Int16Type),
        DataType::Int32 => narrow!(Int32Type),
        DataType::Int64 => narrow!(Int64Type),
        _ => {
            let mut sum: i128 = 0;
            for_each(array, |_, value| {
                sum = sum.checked_add(value).ok_or_else(overflow)?;
                Ok(())
            })?;
            sum
        }
    };
    Ok((sum, count))
}

fn argument(values: &[ArrayRef]) -> Result<&ArrayRef> {
    values.first().ok_or_else(|| external(SqlError::internal("an aggregate without an argument")))
}

/// The sum so far of one group.
#[derive(Debug)]
struct Total {
    sum: i128,
    count: u64,
    finish: Finish,
}

impl Accumulator for Total {
    fn update_batch(&mut self, values: &[ArrayRef]) -> Result<()> {
        let (sum, count) = total(argument(values)?)?;
        self.sum = self.sum.checked_add(sum).ok_or_else(overflow)?;
        self.count += count;
        Ok(())
    }

    fn retract_batch(&mut self, values: &[ArrayRef]) -> Result<()> {
        let (sum, count) = total(argument(values)?)?;
        self.sum = self.sum.checked_sub(sum).ok_or_else(overflow)?;
        self.count = self.count.saturating_sub(count);
        Ok(())
    }

    fn supports_retract_batch(&self) -> bool {
        true
    }

    fn merge_batch(&mut self, states: &[ArrayRef]) -> Result<()> {
        let [sums, counts] = states else {
            return Err(external(SqlError::internal("a sum's state has two columns")));
        };
        let (sum, _) = total(sums)?;
        let (count, _) = total(counts)?;
        self.sum = self.sum.checked_add(sum).ok_or_else(overflow)?;
        self.count += u64::try_from(count).unwrap_or(0);
        Ok(())
    }

    fn state(&mut self) -> Result<Vec<ScalarValue>> {
        let count = i64::try_from(self.count).unwrap_or(i64::MAX);
        Ok(vec![ScalarValue::Decimal128(Some(self.sum), 38, 0), ScalarValue::Int64(Some(count))])
    }

    fn evaluate(&mut self) -> Result<ScalarValue> {
        self.finish.scalar(self.sum, self.count)
    }

    fn size(&self) -> usize {
        size_of_val(self)
    }
}

/// The distinct values so far of one group.
#[derive(Debug)]
struct DistinctTotal {
    values: HashSet<i128>,
    finish: Finish,
}

impl Accumulator for DistinctTotal {
    fn update_batch(&mut self, values: &[ArrayRef]) -> Result<()> {
        for_each(argument(values)?, |_, value| {
            self.values.insert(value);
            Ok(())
        })
    }

    fn merge_batch(&mut self, states: &[ArrayRef]) -> Result<()> {
        let lists = argument(states)?.as_list::<i32>();
        for list in lists.iter().flatten() {
            self.update_batch(&[list])?;
        }
        Ok(())
    }

    fn state(&mut self) -> Result<Vec<ScalarValue>> {
        let values: Vec<i128> = self.values.iter().copied().collect();
        let values = Decimal128Array::from(values).with_precision_and_scale(38, 0)?;
        let item = Arc::new(Field::new_list_field(state_type(), true));
        let offsets = OffsetBuffer::from_lengths([values.len()]);
        Ok(vec![ScalarValue::List(Arc::new(ListArray::try_new(item, offsets, Arc::new(values), None)?))])
    }

    fn evaluate(&mut self) -> Result<ScalarValue> {
        let sum = self.values.iter().try_fold(0_i128, |sum, value| sum.checked_add(*value)).ok_or_else(overflow)?;
        self.finish.scalar(sum, self.values.len() as u64)
    }

    fn size(&self) -> usize {
        size_of_val(self) + self.values.capacity() * size_of::<i128>()
    }
}

/// The sums so far of many groups.
#[derive(Debug)]
struct GroupTotals {
    sums: Vec<i128>,
    counts: Vec<u64>,
    finish: Finish,
}

impl GroupTotals {
    fn grow(&mut self, groups: usize) {
        self.sums.resize(groups.max(self.sums.len()), 0);
        self.counts.resize(groups.max(self.counts.len()), 0);
    }
}

impl GroupsAccumulator for GroupTotals {
    fn update_batch(
        &mut self,
        values: &[ArrayRef],
        groups: &[usize],
        filter: Option<&BooleanArray>,
        total_num_groups: usize,
    ) -> Result<()> {
        self.grow(total_num_groups);
        let (sums, counts) = (&mut self.sums, &mut self.counts);
        for_each(argument(values)?, |row, value| {
            if filter.is_none_or(|filter| filter.is_valid(row) && filter.value(row)) {
                let group = groups[row];
                sums[group] = sums[group].checked_add(value).ok_or_else(overflow)?;
                counts[group] += 1;
            }
            Ok(())
        })
    }

    fn merge_batch(&mut self, states: &[ArrayRef], groups: &[usize], total_num_groups: usize) -> Result<()> {
        self.grow(total_num_groups);
        let [partial_sums, partial_counts] = states else {
            return Err(external(SqlError::internal("a sum's state has two columns")));
        };
        let (sums, counts) = (&mut self.sums, &mut self.counts);
        for_each(partial_sums, |row, value| {
            let group = groups[row];
            sums[group] = sums[group].checked_add(value).ok_or_else(overflow)?;
            Ok(())
        })?;
        for_each(partial_counts, |row, value| {
            counts[groups[row]] += u64::try_from(value).unwrap_or(0);
            Ok(())
        })
    }

    fn evaluate(&mut self, emit_to: EmitTo) -> Result<ArrayRef> {
        let (sums, counts) = (emit_to.take_needed(&mut self.sums), emit_to.take_needed(&mut self.counts));
        self.finish.array(&sums, &counts)
    }

    fn state(&mut self, emit_to: EmitTo) -> Result<Vec<ArrayRef>> {
        let (sums, counts) = (emit_to.take_needed(&mut self.sums), emit_to.take_needed(&mut self.counts));
        let counts = counts.into_iter().map(|count| i64::try_from(count).unwrap_or(i64::MAX));
        let sums = Decimal128Array::from(sums).with_precision_and_scale(38, 0)?;
        Ok(vec![Arc::new(sums), Arc::new(Int64Array::from_iter_values(counts))])
    }

    fn convert_to_state(&self, values: &[ArrayRef], filter: Option<&BooleanArray>) -> Result<Vec<ArrayRef>> {
        let array = argument(values)?;
        let mut sums = vec![0_i128; array.len()];
        let mut counts = vec![0_i64; array.len()];
        for_each(array, |row, value| {
            if filter.is_none_or(|filter| filter.is_valid(row) && filter.value(row)) {
                sums[row] = value;
                counts[row] = 1;
            }
            Ok(())
        })?;
        let sums = Decimal128Array::from(sums).with_precision_and_scale(38, 0)?;
        Ok(vec![Arc::new(sums), Arc::new(Int64Array::from(counts))])
    }

    fn size(&self) -> usize {
        size_of_val(self) + self.sums.capacity() * size_of::<i128>() + self.counts.capacity() * size_of::<u64>()
    }
}
