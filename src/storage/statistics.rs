//! Statistics of a segment's columns: nulls, smallest and largest value.
//!
//! Owns their computation and their text. Leaves out event-time pruning, which has its own range per block
//! ([`RowtimeRange`](super::batch::RowtimeRange)). Called when a segment is written. A crash does nothing.

use arrow::array::{Array, ArrayRef, ArrowPrimitiveType, AsArray, BooleanArray};
use arrow::compute::{max, max_binary, max_boolean, max_string, min, min_binary, min_boolean, min_string};
use arrow::datatypes::{
    DataType, Date32Type, Decimal128Type, Float32Type, Float64Type, Int16Type, Int32Type, Int64Type,
    Time64MicrosecondType, TimeUnit, TimestampMicrosecondType,
};
use serde::{Deserialize, Serialize};

/// Longer values are not kept: statistics are for pruning, and are read at every open.
const VALUE_BYTES_MAX: usize = 64;

/// What is known of the values of one column in one segment.
///
/// `min` and `max` are inclusive, absent when the type has no order here, when every value is null or when
/// they are longer than 64 bytes. Integers, dates (days), times and timestamps (µs) and decimals (unscaled)
/// are decimal numbers; floats are in shortest form, ordered as IEEE 754 totalOrder; texts are themselves;
/// bytes are hexadecimal; booleans `false` and `true`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct ColumnStatistics {
    /// Number of nulls.
    pub nulls: u64,
    /// The smallest value that is not null.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub min: Option<String>,
    /// The largest value that is not null.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub max: Option<String>,
}

/// Collects the statistics of one column, array by array.
#[derive(Debug, Default)]
pub(crate) struct StatisticsBuilder {
    nulls: u64,
    range: Option<(Value, Value)>,
}

/// A value in an order of its own kind; one column has one kind.
#[derive(Debug, Clone)]
enum Value {
    Boolean(bool),
    Integer(i128),
    Float(f64),
    Text(String),
    Bytes(Vec<u8>),
}

impl Value {
    fn is_less(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Boolean(a), Self::Boolean(b)) => a < b,
            (Self::Integer(a), Self::Integer(b)) => a < b,
            (Self::Float(a), Self::Float(b)) => a.total_cmp(b).is_lt(),
            (Self::Text(a), Self::Text(b)) => a < b,
            (Self::Bytes(a), Self::Bytes(b)) => a < b,
            _ => false,
        }
    }

    fn text(&self) -> Option<String> {
        let text = match self {
            Self::Boolean(value) => value.to_string(),
            Self::Integer(value) => value.to_string(),
            Self::Float(value) => format!("{value:?}"),
            Self::Text(value) => value.clone(),
            Self::Bytes(value) => value.iter().map(|byte| format!("{byte:02x}")).collect(),
        };
        (text.len() <= VALUE_BYTES_MAX).then_some(text)
    }
}

impl StatisticsBuilder {
    pub(crate) fn add(&mut self, array: &ArrayRef) {
        self.nulls += array.null_count() as u64;
        let Some((low, high)) = range(array) else { return };
        self.range = Some(match self.range.take() {
            None => (low, high),
            Some((min, max)) => {
                (if low.is_less(&min) { low } else { min }, if max.is_less(&high) { high } else { max })
            }
        });
    }

    pub(crate) fn finish(self) -> ColumnStatistics {
        let (min, max) = self.range.map_or((None, None), |(min, max)| (min.text(), max.text()));
        ColumnStatistics { nulls: self.nulls, min, max }
    }
}

fn primitive<T: ArrowPrimitiveType>(array: &ArrayRef, value: impl Fn(T::Native) -> Value) -> Option<(Value, Value)>
where
    T::Native: arrow::datatypes::ArrowNativeType,
{
    let array = array.as_primitive_opt::<T>()?;
    Some((value(min(array)?), value(max(array)?)))
}

/// The smallest and largest value of an array.
fn range(array: &ArrayRef) -> Option<(Value, Value)> {
    let integer = |value: i64| Value::Integer(value.into());
    match array.data_type() {
        DataType::Boolean => {
            let array: &BooleanArray = array.as_boolean();
            Some((Value::Boolean(min_boolean(array)?), Value::Boolean(max_boolean(array)?)))
        }
        DataType::Int16 => primitive::<Int16Type>(array, |value| integer(value.into())),
        DataType::Int32 => primitive::<Int32Type>(array, |value| integer(value.into())),
        DataType::Int64 => primitive::<Int64Type>(array, integer),
        DataType::Float32 => primitive::<Float32Type>(array, |value| Value::Float(value.into())),
        DataType::Float64 => primitive::<Float64Type>(array, Value::Float),
        DataType::Decimal128(_, _) => primitive::<Decimal128Type>(array, Value::Integer),
        DataType::Date32 => primitive::<Date32Type>(array, |value| integer(value.into())),
        DataType::Time64(TimeUnit::Microsecond) => primitive::<Time64MicrosecondType>(array, integer),
        DataType::Timestamp(TimeUnit::Microsecond, _) => primitive::<TimestampMicrosecondType>(array, integer),
        DataType::Utf8 => {
            let array = array.as_string::<i32>();
            Some((Value::Text(min_string(array)?.to_owned()), Value::Text(max_string(array)?.to_owned())))
        }
        DataType::Binary => {
            let array = array.as_binary::<i32>();
            Some((Value::Bytes(min_binary(array)?.to_vec()), Value::Bytes(max_binary(array)?.to_vec())))
        }
        DataType::FixedSizeBinary(_) => {
            let values = array.as_fixed_size_binary();
            let (low, high) = (values.iter().flatten().min()?, values.iter().flatten().max()?);
            Some((Value::Bytes(low.to_vec()), Value::Bytes(high.to_vec())))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use arrow::array::{BinaryArray, Decimal128Array, Float64Array, Int32Array, NullArray, StringArray};
    use std::sync::Arc;

    fn of(arrays: Vec<ArrayRef>) -> (u64, Option<String>, Option<String>) {
        let mut builder = StatisticsBuilder::default();
        arrays.iter().for_each(|array| builder.add(array));
        let done = builder.finish();
        (done.nulls, done.min, done.max)
    }

    fn some(min: &str, max: &str) -> (u64, Option<String>, Option<String>) {
        (0, Some(min.to_owned()), Some(max.to_owned()))
    }

    #[test]
    fn ranges_span_arrays_and_leave_nulls_out() {
        let arrays: Vec<ArrayRef> =
            vec![Arc::new(Int32Array::from(vec![Some(3), None])), Arc::new(Int32Array::from(vec![-7, 2]))];
        assert_eq!(of(arrays), (1, Some("-7".to_owned()), Some("3".to_owned())));
    }

    #[test]
    fn every_kind_has_its_text() {
        assert_eq!(of(vec![Arc::new(Float64Array::from(vec![0.1, f64::NAN, -0.0]))]), some("-0.0", "NaN"));
        assert_eq!(of(vec![Arc::new(StringArray::from(vec!["é", "a"]))]), some("a", "é"));
        assert_eq!(of(vec![Arc::new(BooleanArray::from(vec![true, false]))]), some("false", "true"));
        assert_eq!(of(vec![Arc::new(BinaryArray::from(vec![&[255u8][..], &[0, 1]]))]), some("0001", "ff"));
        assert_eq!(of(vec![Arc::new(Decimal128Array::from(vec![i128::MAX, 0]))]), some("0", &i128::MAX.to_string()));
        assert_eq!(of(vec![Arc::new(NullArray::new(2))]), (0, None, None));
    }

    #[test]
    fn values_of_64_bytes_are_kept_and_longer_ones_are_not() {
        let (kept, long) = ("x".repeat(64), "y".repeat(65));
        let found = of(vec![Arc::new(StringArray::from(vec![kept.clone(), long]))]);
        assert_eq!(found, (0, Some(kept), None));
    }
}
