//! `mode()` and `percentile_disc(fraction)`, `WITHIN GROUP (ORDER BY value)`: values that are there, by their order.
//!
//! NULLs do not count. Of values that are there equally often, `mode` is the first in the order. Source: PostgreSQL 15,
//! table 9.62. Accumulators take back what they were given. A crash loses them with their query.

use super::errors::{external, fail};
use crate::error::SqlError;
use crate::types::canonical;
use arrow::array::{Array, ArrayRef, AsArray, Int64Array, ListArray};
use arrow::buffer::OffsetBuffer;
use arrow::datatypes::{DataType, Field, FieldRef, Float64Type, Int64Type};
use arrow::row::{RowConverter, SortField};
use datafusion::common::{Result, ScalarValue};
use datafusion::logical_expr::function::{AccumulatorArgs, StateFieldsArgs};
use datafusion::logical_expr::utils::{AggregateOrderSensitivity, format_state_name};
use datafusion::logical_expr::{Accumulator, AggregateUDF, AggregateUDFImpl, Signature, Volatility};
use millstream_catalog::model::SqlState;
use std::collections::BTreeMap;
use std::sync::Arc;

/// Which of the two.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Kind {
    Mode,
    Percentile,
}

#[derive(Debug, PartialEq, Eq, Hash)]
struct OrderedSet {
    kind: Kind,
    signature: Signature,
}

/// `mode`.
pub(super) fn mode() -> AggregateUDF {
    function(Kind::Mode)
}

/// `percentile_disc`.
pub(super) fn percentile_disc() -> AggregateUDF {
    function(Kind::Percentile)
}

fn function(kind: Kind) -> AggregateUDF {
    AggregateUDF::new_from_impl(OrderedSet { kind, signature: Signature::user_defined(Volatility::Immutable) })
}

impl OrderedSet {
    fn no_function(&self) -> datafusion::common::DataFusionError {
        let arguments = if self.kind == Kind::Mode { "" } else { "fraction" };
        let form = format!("write {}({arguments}) WITHIN GROUP (ORDER BY value)", self.name());
        let fact = format!("{} takes other arguments", self.name());
        external(SqlError::new(SqlState::UndefinedFunction, fact).hint(form))
    }
}

impl AggregateUDFImpl for OrderedSet {
    fn name(&self) -> &str {
        match self.kind {
            Kind::Mode => "mode",
            Kind::Percentile => "percentile_disc",
        }
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn coerce_types(&self, types: &[DataType]) -> Result<Vec<DataType>> {
        let known = |value: &DataType| if value.is_null() { DataType::Utf8 } else { value.clone() };
        match (self.kind, types) {
            (Kind::Mode, [value]) => Ok(vec![known(value)]),
            (Kind::Percentile, [value, fraction]) if fraction.is_numeric() || fraction.is_null() => {
                Ok(vec![known(value), DataType::Float64])
            }
            _ => Err(self.no_function()),
        }
    }

    fn return_type(&self, types: &[DataType]) -> Result<DataType> {
        types.first().cloned().ok_or_else(|| self.no_function())
    }

    fn return_field(&self, fields: &[FieldRef]) -> Result<FieldRef> {
        let value = fields.first().ok_or_else(|| self.no_function())?;
        Ok(Arc::new(value.as_ref().clone().with_name(self.name()).with_nullable(true)))
    }

    fn accumulator(&self, args: AccumulatorArgs<'_>) -> Result<Box<dyn Accumulator>> {
        let value = args.return_field.data_type().clone();
        let options = args.order_bys.first().map(|order| order.options).unwrap_or_default();
        let converter = RowConverter::new(vec![SortField::new_with_options(value.clone(), options)])?;
        Ok(Box::new(Counts { kind: self.kind, value, converter, counts: BTreeMap::new(), fraction: None, bytes: 0 }))
    }

    fn create_sliding_accumulator(&self, args: AccumulatorArgs<'_>) -> Result<Box<dyn Accumulator>> {
        self.accumulator(args)
    }

    fn state_fields(&self, args: StateFieldsArgs<'_>) -> Result<Vec<FieldRef>> {
        let value = args.input_fields.first().ok_or_else(|| self.no_function())?.data_type().clone();
        let list = |name: &str, item: DataType| -> FieldRef {
            Arc::new(Field::new_list(format_state_name(args.name, name), Field::new_list_field(item, true), true))
        };
        let fraction = Field::new(format_state_name(args.name, "fraction"), DataType::Float64, true);
        Ok(vec![list("values", value), list("counts", DataType::Int64), Arc::new(fraction)])
    }

    fn order_sensitivity(&self) -> AggregateOrderSensitivity {
        AggregateOrderSensitivity::Insensitive
    }

    fn supports_within_group_clause(&self) -> bool {
        true
    }
}

/// How often each value is there, in their order.
#[derive(Debug)]
struct Counts {
    kind: Kind,
    value: DataType,
    converter: RowConverter,
    counts: BTreeMap<Box<[u8]>, i64>,
    /// Of a percentile; `None` before any row, and where it is NULL.
    fraction: Option<f64>,
    bytes: usize,
}

impl Counts {
    fn add(&mut self, values: &ArrayRef, count: impl Fn(usize) -> i64) -> Result<()> {
        let rows = self.converter.convert_columns(&[canonical(Arc::clone(values))])?;
        for row in (0..values.len()).filter(|row| values.is_valid(*row)) {
            let bytes = rows.row(row).data().to_vec().into_boxed_slice();
            let length = bytes.len() + size_of::<(Box<[u8]>, i64)>();
            match self.counts.entry(bytes) {
                std::collections::btree_map::Entry::Occupied(mut found) => {
                    *found.get_mut() += count(row);
                    if *found.get() <= 0 {
                        found.remove();
                        self.bytes = self.bytes.saturating_sub(length);
                    }
                }
                std::collections::btree_map::Entry::Vacant(vacant) if count(row) > 0 => {
                    vacant.insert(count(row));
                    self.bytes += length;
                }
                std::collections::btree_map::Entry::Vacant(_) => {}
            }
        }
        Ok(())
    }

    fn read_fraction(&mut self, fractions: Option<&ArrayRef>) -> Result<()> {
        let Some(fractions) = fractions.and_then(|fractions| fractions.as_primitive_opt::<Float64Type>()) else {
            return Ok(());
        };
        if let Some(fraction) = fractions.iter().flatten().next() {
            if !(0.0..=1.0).contains(&fraction) {
                let fact = format!("percentile value {fraction} is not between 0 and 1");
                return Err(fail(SqlState::NumericValueOutOfRange, fact));
            }
            self.fraction = Some(fraction);
        }
        Ok(())
    }

    fn mode(&self) -> Option<&[u8]> {
        let mut most: Option<(&[u8], i64)> = None;
        for (value, count) in &self.counts {
            if most.is_none_or(|(_, most)| *count > most) {
                most = Some((value, *count));
            }
        }
        most.map(|(value, _)| value)
    }

    fn percentile(&self) -> Option<&[u8]> {
        let total: i64 = self.counts.values().sum();
        let place = (self.fraction? * total as f64).ceil().max(1.0) as i64;
        let mut so_far = 0;
        for (value, count) in &self.counts {
            so_far += count;
            if so_far >= place {
                return Some(value);
            }
        }
        None
    }

    fn decode<'a>(&self, values: impl Iterator<Item = &'a [u8]>) -> Result<ArrayRef> {
        let parser = self.converter.parser();
        let mut columns = self.converter.convert_rows(values.map(|value| parser.parse(value)))?;
        columns.pop().ok_or_else(|| external(SqlError::internal("an aggregate without a value")))
    }
}

fn one_list(values: ArrayRef) -> Result<ScalarValue> {
    let item = Arc::new(Field::new_list_field(values.data_type().clone(), true));
    let offsets = OffsetBuffer::from_lengths([values.len()]);
    Ok(ScalarValue::List(Arc::new(ListArray::try_new(item, offsets, values, None)?)))
}

impl Accumulator for Counts {
    fn update_batch(&mut self, values: &[ArrayRef]) -> Result<()> {
        if self.kind == Kind::Percentile {
            self.read_fraction(values.get(1))?;
        }
        values.first().map_or(Ok(()), |values| self.add(values, |_| 1))
    }

    fn retract_batch(&mut self, values: &[ArrayRef]) -> Result<()> {
        values.first().map_or(Ok(()), |values| self.add(values, |_| -1))
    }

    fn supports_retract_batch(&self) -> bool {
        true
    }

    fn merge_batch(&mut self, states: &[ArrayRef]) -> Result<()> {
        let [values, counts, fractions] = states else {
            return Err(external(SqlError::internal("another state of an aggregate")));
        };
        self.read_fraction(Some(fractions))?;
        let (values, counts) = (values.as_list::<i32>(), counts.as_list::<i32>());
        for row in 0..values.len() {
            let count = counts.value(row);
            let count = count.as_primitive::<Int64Type>();
            self.add(&values.value(row), |at| count.value(at))?;
        }
        Ok(())
    }

    fn state(&mut self) -> Result<Vec<ScalarValue>> {
        let values = self.decode(self.counts.keys().map(AsRef::as_ref))?;
        let counts: ArrayRef = Arc::new(Int64Array::from_iter_values(self.counts.values().copied()));
        Ok(vec![one_list(values)?, one_list(counts)?, ScalarValue::Float64(self.fraction)])
    }

    fn evaluate(&mut self) -> Result<ScalarValue> {
        let value = if self.kind == Kind::Mode { self.mode() } else { self.percentile() };
        match value {
            None => ScalarValue::try_from(&self.value),
            Some(value) => ScalarValue::try_from_array(&self.decode(std::iter::once(value))?, 0),
        }
    }

    fn size(&self) -> usize {
        size_of_val(self) + self.bytes
    }
}
