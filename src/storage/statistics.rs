//! Statistics of a segment's columns: nulls, smallest and largest value.
//!
//! Owns their computation, their text and the arrays that pruning compares. Leaves out event-time pruning, which has
//! its own range per block ([`RowtimeRange`](super::batch::RowtimeRange)). Called when a segment is written and
//! when a scan is planned. A crash does nothing.

use arrow::array::{
    Array, ArrayRef, ArrowPrimitiveType, AsArray, BinaryArray, BooleanArray, FixedSizeBinaryArray, PrimitiveArray,
    StringArray,
};
use arrow::compute::{max, max_binary, max_boolean, max_string, min, min_binary, min_boolean, min_string};
use arrow::datatypes::{
    DataType, Date32Type, Decimal128Type, Float32Type, Float64Type, Int16Type, Int32Type, Int64Type,
    Time64MicrosecondType, TimeUnit, TimestampMicrosecondType,
};
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// Longer values are cut: statistics are for pruning, and are read at every open.
const VALUE_BYTES_MAX: usize = 64;

/// What is known of the values of one column in one segment.
///
/// `min` and `max` are inclusive, absent when the type has no order here or when every value is null. Integers,
/// dates (days), times and timestamps (µs) and decimals (unscaled) are decimal numbers; floats are in shortest
/// form, ordered as IEEE 754 totalOrder, the sign of NaN lost; texts are themselves; bytes are hexadecimal;
/// booleans `false` and `true`. A text of more than 64 bytes is cut to a bound: a prefix is the smaller one, a
/// prefix with its last character raised the larger (absent when none can be raised). So it is with bytes of
/// more than 32. Version 1 left such bounds out.
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

    fn text(&self) -> String {
        match self {
            Self::Boolean(value) => value.to_string(),
            Self::Integer(value) => value.to_string(),
            Self::Float(value) => format!("{value:?}"),
            Self::Text(value) => value.clone(),
            Self::Bytes(value) => value.iter().map(|byte| format!("{byte:02x}")).collect(),
        }
    }

    /// A short value that is not larger.
    fn floor(self) -> Self {
        match self {
            Self::Text(text) => Self::Text(prefix(&text).to_owned()),
            Self::Bytes(mut bytes) => {
                bytes.truncate(VALUE_BYTES_MAX / 2);
                Self::Bytes(bytes)
            }
            other => other,
        }
    }

    /// A short value that is not smaller; `None` when there is none.
    fn ceiling(self) -> Option<Self> {
        match self {
            Self::Text(text) if text.len() > VALUE_BYTES_MAX => raised(prefix(&text)).map(Self::Text),
            Self::Bytes(mut bytes) if bytes.len() > VALUE_BYTES_MAX / 2 => {
                bytes.truncate(VALUE_BYTES_MAX / 2);
                let last = bytes.iter().rposition(|byte| *byte < u8::MAX)?;
                bytes.truncate(last + 1);
                bytes[last] += 1;
                Some(Self::Bytes(bytes))
            }
            other => Some(other),
        }
    }
}

/// The first 64 bytes, or fewer where a character would be cut.
fn prefix(text: &str) -> &str {
    let end = (0..=VALUE_BYTES_MAX.min(text.len())).rev().find(|end| text.is_char_boundary(*end)).unwrap_or(0);
    &text[..end]
}

/// The text with its last character raised by one, those that cannot be raised dropped: larger than every text
/// that begins with `text`.
fn raised(text: &str) -> Option<String> {
    let next = |last: char| match last {
        '\u{d7ff}' => Some('\u{e000}'),
        last => char::from_u32(last as u32 + 1),
    };
    let (at, next) = text.char_indices().rev().find_map(|(at, last)| next(last).map(|next| (at, next)))?;
    let raised = format!("{}{next}", &text[..at]);
    (raised.len() <= VALUE_BYTES_MAX).then_some(raised)
}

/// Which of the two bounds an array is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Side {
    Min,
    Max,
}

/// The smaller bounds of a column in some parts, as an array of its type, null where there is none.
///
/// `None` when the type has no order here.
pub(crate) fn mins<'a>(
    data_type: &DataType,
    parts: impl Iterator<Item = Option<&'a ColumnStatistics>>,
) -> Option<ArrayRef> {
    bounds(data_type, Side::Min, parts.map(|part| part.and_then(|part| part.min.as_deref())))
}

/// The larger bounds, likewise.
pub(crate) fn maxs<'a>(
    data_type: &DataType,
    parts: impl Iterator<Item = Option<&'a ColumnStatistics>>,
) -> Option<ArrayRef> {
    bounds(data_type, Side::Max, parts.map(|part| part.and_then(|part| part.max.as_deref())))
}

fn bounds<'a>(data_type: &DataType, side: Side, texts: impl Iterator<Item = Option<&'a str>>) -> Option<ArrayRef> {
    let float = |text: &str| -> Option<f64> {
        let value: f64 = text.parse().ok()?;
        // Its text does not tell which of the two NaNs it was, the least value or the greatest.
        (!(value.is_nan() && side == Side::Min)).then_some(value)
    };
    Some(match data_type {
        DataType::Boolean => Arc::new(texts.map(|text| text?.parse().ok()).collect::<BooleanArray>()),
        DataType::Int16 => parsed::<Int16Type>(data_type, texts, |text| text.parse().ok()),
        DataType::Int32 => parsed::<Int32Type>(data_type, texts, |text| text.parse().ok()),
        DataType::Int64 => parsed::<Int64Type>(data_type, texts, |text| text.parse().ok()),
        DataType::Float32 => parsed::<Float32Type>(data_type, texts, |text| float(text).map(|value| value as f32)),
        DataType::Float64 => parsed::<Float64Type>(data_type, texts, float),
        DataType::Decimal128(_, _) => parsed::<Decimal128Type>(data_type, texts, |text| text.parse().ok()),
        DataType::Date32 => parsed::<Date32Type>(data_type, texts, |text| text.parse().ok()),
        DataType::Time64(TimeUnit::Microsecond) => {
            parsed::<Time64MicrosecondType>(data_type, texts, |text| text.parse().ok())
        }
        DataType::Timestamp(TimeUnit::Microsecond, _) => {
            parsed::<TimestampMicrosecondType>(data_type, texts, |text| text.parse().ok())
        }
        DataType::Utf8 => Arc::new(texts.collect::<StringArray>()),
        DataType::Binary => Arc::new(texts.map(|text| unhex(text?)).collect::<BinaryArray>()),
        DataType::FixedSizeBinary(width) => {
            let whole = |bytes: &Vec<u8>| i32::try_from(bytes.len()) == Ok(*width);
            let values = texts.map(|text| unhex(text?).filter(whole));
            Arc::new(FixedSizeBinaryArray::try_from_sparse_iter_with_size(values, *width).ok()?)
        }
        _ => return None,
    })
}

fn parsed<'a, T: ArrowPrimitiveType>(
    data_type: &DataType,
    texts: impl Iterator<Item = Option<&'a str>>,
    value: impl Fn(&str) -> Option<T::Native>,
) -> ArrayRef {
    let array: PrimitiveArray<T> = texts.map(|text| value(text?)).collect();
    Arc::new(array.with_data_type(data_type.clone()))
}

fn unhex(text: &str) -> Option<Vec<u8>> {
    let digit = |byte: &u8| (*byte as char).to_digit(16);
    let pairs = text.as_bytes().chunks(2);
    pairs.map(|pair| u8::try_from(digit(pair.first()?)? * 16 + digit(pair.get(1)?)?).ok()).collect()
}

impl StatisticsBuilder {
    pub(crate) fn add(&mut self, array: &ArrayRef) {
        self.nulls += array.null_count() as u64;
        if let Some((low, high)) = range(array) {
            self.widen(low, high);
        }
    }

    /// Takes in what another builder has seen.
    pub(crate) fn merge(&mut self, other: &Self) {
        self.nulls += other.nulls;
        if let Some((low, high)) = other.range.clone() {
            self.widen(low, high);
        }
    }

    fn widen(&mut self, low: Value, high: Value) {
        self.range = Some(match self.range.take() {
            None => (low, high),
            Some((min, max)) => {
                (if low.is_less(&min) { low } else { min }, if max.is_less(&high) { high } else { max })
            }
        });
    }

    pub(crate) fn finish(self) -> ColumnStatistics {
        let (min, max) = self.range.unzip();
        let text = |value: Value| value.text();
        ColumnStatistics {
            nulls: self.nulls,
            min: min.map(Value::floor).map(text),
            max: max.and_then(Value::ceiling).map(text),
        }
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
    use arrow::array::{Decimal128Array, Float32Array, Float64Array, Int32Array, NullArray, TimestampMicrosecondArray};
    use proptest::prelude::*;

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
    fn long_values_are_cut_to_bounds() {
        let text = |value: String| of(vec![Arc::new(StringArray::from(vec![value]))]);
        assert_eq!(text("x".repeat(64)), some(&"x".repeat(64), &"x".repeat(64)));
        assert_eq!(text("x".repeat(65)), some(&"x".repeat(64), &format!("{}y", "x".repeat(63))));
        // The 64th byte is within a character of two bytes.
        let long = format!("{}éé", "x".repeat(63));
        assert_eq!(text(long), some(&"x".repeat(63), &format!("{}y", "x".repeat(62))));
        let highest = char::MAX.to_string().repeat(17);
        assert_eq!(text(highest.clone()), (0, Some(highest[..64].to_owned()), None));
        let bytes = |value: Vec<u8>| of(vec![Arc::new(BinaryArray::from(vec![value.as_slice()]))]);
        assert_eq!(bytes(vec![255; 33]), (0, Some("ff".repeat(32)), None));
        assert_eq!(bytes([vec![1], vec![255; 40]].concat()), some(&format!("01{}", "ff".repeat(31)), "02"));
        assert_eq!(raised("a\u{d7ff}"), Some("a\u{e000}".to_owned()));
    }

    #[test]
    fn bounds_come_back_as_arrays_of_the_column() {
        let round = |array: ArrayRef| {
            let mut builder = StatisticsBuilder::default();
            builder.add(&array);
            let done = builder.finish();
            let parts = [Some(&done), None];
            let min = mins(array.data_type(), parts.into_iter()).unwrap();
            let max = maxs(array.data_type(), parts.into_iter()).unwrap();
            assert!(min.is_null(1) && max.is_null(1));
            assert_eq!((min.slice(0, 1), max.slice(0, 1)), (array.slice(0, 1), array.slice(1, 1)));
        };
        round(Arc::new(Int32Array::from(vec![-7, 3])));
        round(Arc::new(BooleanArray::from(vec![false, true])));
        round(Arc::new(StringArray::from(vec!["", "é"])));
        round(Arc::new(BinaryArray::from(vec![&[][..], &[0, 255]])));
        round(Arc::new(Float32Array::from(vec![-0.1, f32::INFINITY])));
        round(Arc::new(Decimal128Array::from(vec![-5, 7]).with_precision_and_scale(10, 2).unwrap()));
        round(Arc::new(TimestampMicrosecondArray::from(vec![1, 2]).with_timezone("UTC")));
        let uuids = FixedSizeBinaryArray::try_from_iter([[0u8; 16], [255; 16]].into_iter()).unwrap();
        round(Arc::new(uuids));
    }

    #[test]
    fn a_least_nan_is_no_bound() {
        let statistics = ColumnStatistics { nulls: 0, min: Some("NaN".to_owned()), max: Some("NaN".to_owned()) };
        let part = || std::iter::once(Some(&statistics));
        assert!(mins(&DataType::Float64, part()).unwrap().is_null(0));
        let max = maxs(&DataType::Float64, part()).unwrap();
        assert!(max.as_primitive::<Float64Type>().value(0).is_nan());
    }

    proptest! {
        #[test]
        fn bounds_hold_for_every_text(texts in prop::collection::vec("\\PC{0,80}", 1..9)) {
            let (_, min, max) = of(vec![Arc::new(StringArray::from(texts.clone()))]);
            for text in &texts {
                prop_assert!(min.as_ref().is_some_and(|min| min <= text));
                prop_assert!(max.as_ref().is_none_or(|max| max >= text));
            }
        }
    }
}
