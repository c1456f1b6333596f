//! Assignment of columns of one SQL type to another, under PostgreSQL's assignment casts.
//!
//! Narrower than an explicit cast: text becomes another type only where it was an untyped literal, and
//! numbers must fit. Leaves out names and rows, which `bind::insert` adds to what is refused here.

use super::builder::ColumnBuilder;
use super::datetime::DAY;
use super::encoder::ColumnEncoder;
use super::error::ValueError;
use super::numeric::{Shape, parse_numeric};
use super::source::Source;
use arrow::array::{ArrayRef, new_null_array};
use arrow::array::{
    Date32Array, Float32Array, Float64Array, Int16Array, Int32Array, Int64Array, PrimitiveArray,
    Time64MicrosecondArray, TimestampMicrosecondArray,
};
use arrow::datatypes::{ArrowPrimitiveType, DataType};
use datafusion::common::ScalarValue;
use millstream_catalog::SqlType;
use millstream_catalog::model::SqlState;
use millstream_catalog::schema::StructField;
use std::sync::Arc;

/// A value that cannot be assigned, and where it was.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AssignRefused {
    /// The row in the array.
    pub row: usize,
    /// Why.
    pub error: ValueError,
}

impl ValueError {
    /// 42804 for a value of type `from` where `to` is wanted.
    pub(crate) fn unassignable(to: &SqlType, from: &str) -> Self {
        Self::new(SqlState::DatatypeMismatch, format!("expression is of type {from}, not {to}"))
            .hint("You will need to rewrite or cast the expression.")
    }
}

fn is_number(sql_type: &SqlType) -> bool {
    is_integer(sql_type) || matches!(sql_type, SqlType::Real | SqlType::Double | SqlType::Numeric { .. })
}

fn is_integer(sql_type: &SqlType) -> bool {
    matches!(sql_type, SqlType::SmallInt | SqlType::Integer | SqlType::BigInt)
}

fn is_string(sql_type: &SqlType) -> bool {
    matches!(sql_type, SqlType::Text | SqlType::Varchar(_) | SqlType::Char(_))
}

/// True if PostgreSQL has an assignment cast from `from` to `to`, or they are one type.
pub fn is_assignable(from: &SqlType, to: &SqlType) -> bool {
    use SqlType::{Date, Interval, Json, Jsonb, Time, Timestamp, TimestampTz};
    match (from, to) {
        (from, to) if from == to || is_number(from) && is_number(to) || is_string(to) => true,
        (Json, Jsonb) | (Jsonb, Json) | (Time, Interval) | (Interval, Time) => true,
        (Date | Timestamp | TimestampTz, Timestamp | TimestampTz) | (Timestamp | TimestampTz, Date | Time) => true,
        (SqlType::Array(from), SqlType::Array(to)) => is_assignable(from, to),
        (SqlType::Struct(from), SqlType::Struct(to)) => {
            let fits = |(from, to): (&StructField, &StructField)| {
                from.name == to.name && is_assignable(&from.sql_type, &to.sql_type)
            };
            from.len() == to.len() && from.iter().zip(to).all(fits)
        }
        (SqlType::Map(key, value), SqlType::Map(to_key, to_value)) => {
            is_assignable(key, to_key) && is_assignable(value, to_value)
        }
        (Json | Jsonb, document) | (document, Json | Jsonb) => document.is_document(),
        _ => false,
    }
}

/// Assigns every value of `array`, a column of type `from`, to type `to`.
///
/// # Errors
/// 42804 where there is no assignment cast; 22003, 22001 and the like with the first row that does not fit.
pub fn assign_array(array: &ArrayRef, from: &SqlType, to: &SqlType) -> Result<ArrayRef, AssignRefused> {
    if *array.data_type() == DataType::Null {
        return Ok(new_null_array(&to.arrow(), array.len()));
    }
    if !is_assignable(from, to) {
        return Err(AssignRefused { row: 0, error: ValueError::unassignable(to, &from.to_string()) });
    }
    let is_same = from == to || *to == SqlType::Text && matches!(from, SqlType::Varchar(_) | SqlType::Json);
    if is_same && *array.data_type() == to.arrow() {
        return Ok(array.clone());
    }
    let encoder = ColumnEncoder::new(array.as_ref(), from);
    let source = Source::new(array.as_ref(), from);
    let rows = array.len();
    match (&source, to) {
        (Source::Int(_) | Source::Float(_) | Source::Decimal(_), SqlType::SmallInt) => {
            let value = |row| integer(&source, &encoder, row, i16::MIN.into(), i16::MAX.into(), to);
            each::<_, Int16Array>(&source, rows, |row| Ok(value(row)? as i16))
        }
        (Source::Int(_) | Source::Float(_) | Source::Decimal(_), SqlType::Integer) => {
            let value = |row| integer(&source, &encoder, row, i32::MIN.into(), i32::MAX.into(), to);
            each::<_, Int32Array>(&source, rows, |row| Ok(value(row)? as i32))
        }
        (Source::Int(_) | Source::Float(_) | Source::Decimal(_), SqlType::BigInt) => {
            let value = |row| integer(&source, &encoder, row, i64::MIN, i64::MAX, to);
            each::<_, Int64Array>(&source, rows, value)
        }
        (Source::Int(values), SqlType::Double) => {
            each::<_, Float64Array>(&source, rows, |row| Ok(values.value(row) as f64))
        }
        (Source::Float(values), SqlType::Double) => each::<_, Float64Array>(&source, rows, |row| Ok(values.value(row))),
        (Source::Int(values), SqlType::Real) => {
            each::<_, Float32Array>(&source, rows, |row| Ok(values.value(row) as f32))
        }
        (Source::Float(values), SqlType::Real) => {
            each::<_, Float32Array>(&source, rows, |row| narrow(values.value(row)))
        }
        (Source::Timestamp(values) | Source::TimestampTz(values), SqlType::Timestamp) => {
            each::<_, TimestampMicrosecondArray>(&source, rows, |row| Ok(values.micros(row)))
        }
        (Source::Timestamp(values) | Source::TimestampTz(values), SqlType::TimestampTz) => {
            let array: PrimitiveArray<_> =
                collect::<arrow::datatypes::TimestampMicrosecondType>(&source, rows, |row| Ok(values.micros(row)))?;
            Ok(Arc::new(array.with_timezone("UTC")))
        }
        (Source::Timestamp(values) | Source::TimestampTz(values), SqlType::Date) => {
            each::<_, Date32Array>(&source, rows, |row| Ok(values.micros(row).div_euclid(DAY) as i32))
        }
        (Source::Timestamp(values) | Source::TimestampTz(values), SqlType::Time) => {
            each::<_, Time64MicrosecondArray>(&source, rows, |row| Ok(values.micros(row).rem_euclid(DAY)))
        }
        _ => through_text(&encoder, from, to, rows),
    }
}

/// An array of `value(row)` for the rows that are not NULL.
fn each<T, A>(
    source: &Source,
    rows: usize,
    value: impl Fn(usize) -> Result<T::Native, ValueError>,
) -> Result<ArrayRef, AssignRefused>
where
    T: ArrowPrimitiveType,
    A: From<PrimitiveArray<T>> + arrow::array::Array + 'static,
{
    Ok(Arc::new(A::from(collect::<T>(source, rows, value)?)))
}

fn collect<T: ArrowPrimitiveType>(
    source: &Source,
    rows: usize,
    value: impl Fn(usize) -> Result<T::Native, ValueError>,
) -> Result<PrimitiveArray<T>, AssignRefused> {
    let cell = |row| match source.is_null(row) {
        true => Ok(None),
        false => value(row).map(Some).map_err(|error| AssignRefused { row, error }),
    };
    (0..rows).map(cell).collect()
}

/// A number as an integer in a range: floats round half to even, `numeric` half away from zero.
fn integer(
    source: &Source,
    encoder: &ColumnEncoder,
    row: usize,
    min: i64,
    max: i64,
    to: &SqlType,
) -> Result<i64, ValueError> {
    let refused = || ValueError::new(SqlState::NumericValueOutOfRange, format!("{to} out of range"));
    let wide = match source {
        Source::Int(values) => values.value(row),
        Source::Float(values) => {
            let value = values.value(row).round_ties_even();
            // Within ±2^64 the conversion is exact; NaN fails the comparison.
            if value.abs() < 18_446_744_073_709_551_616.0 { value as i128 } else { return Err(refused()) }
        }
        _ => {
            let mut text = Vec::new();
            encoder.text(row, &mut text);
            parse_numeric(&text, Shape { precision: 38, scale: 0 }).map_err(|_| refused())?
        }
    };
    i64::try_from(wide).ok().filter(|value| (min..=max).contains(value)).ok_or_else(refused)
}

/// A number in a statement as an integer of type `to`; a fraction is rounded.
///
/// # Errors
/// 22003 out of the type's range.
pub(crate) fn integer_literal(text: &str, to: &SqlType) -> Result<ScalarValue, ValueError> {
    let refused = || ValueError::new(SqlState::NumericValueOutOfRange, format!("{to} out of range"));
    let shape = Shape { precision: 38, scale: 0 };
    let value = parse_numeric(text.as_bytes(), shape).map_err(|error| match error.sqlstate {
        SqlState::NumericValueOutOfRange => refused(),
        _ => error,
    })?;
    Ok(match to {
        SqlType::SmallInt => ScalarValue::Int16(Some(value.try_into().map_err(|_| refused())?)),
        SqlType::Integer => ScalarValue::Int32(Some(value.try_into().map_err(|_| refused())?)),
        _ => ScalarValue::Int64(Some(value.try_into().map_err(|_| refused())?)),
    })
}

fn narrow(value: f64) -> Result<f32, ValueError> {
    let narrow = value as f32;
    let refused = |what| ValueError::new(SqlState::NumericValueOutOfRange, format!("value out of range: {what}"));
    if narrow.is_infinite() && value.is_finite() {
        Err(refused("overflow"))
    } else if narrow == 0.0 && value != 0.0 {
        Err(refused("underflow"))
    } else {
        Ok(narrow)
    }
}

/// The casts that PostgreSQL also does by writing and reading text.
fn through_text(encoder: &ColumnEncoder, from: &SqlType, to: &SqlType, rows: usize) -> Result<ArrayRef, AssignRefused> {
    let mut builder = ColumnBuilder::new(to, rows);
    let mut text = Vec::new();
    for row in 0..rows {
        text.clear();
        if !encoder.text(row, &mut text) {
            builder.append_null();
            continue;
        }
        adapt(&mut text, from, to);
        builder.append_text(&text).map_err(|error| AssignRefused { row, error })?;
    }
    Ok(builder.finish())
}

/// Makes the output form of `from` what PostgreSQL's cast to `to` reads.
fn adapt(text: &mut Vec<u8>, from: &SqlType, to: &SqlType) {
    match (from, to) {
        (SqlType::Boolean, _) if is_string(to) => {
            let word: &[u8] = if text == b"t" { b"true" } else { b"false" };
            word.clone_into(text);
        }
        (SqlType::Char(_), to) if is_string(to) && !matches!(to, SqlType::Char(_)) => {
            while text.last() == Some(&b' ') {
                text.pop();
            }
        }
        (SqlType::Double, SqlType::Numeric { .. }) => round_digits(text, 14),
        (SqlType::Real, SqlType::Numeric { .. }) => round_digits(text, 5),
        (SqlType::Interval, SqlType::Time) => {
            let micros = super::interval::parse_interval(text).map_or(0, |interval| interval.micros.rem_euclid(DAY));
            text.clear();
            super::datetime::write_time(micros, text);
        }
        _ => {}
    }
}

/// Rewrites float text with so many digits after the first, as PostgreSQL's cast to `numeric` does.
fn round_digits(text: &mut Vec<u8>, digits: usize) {
    let value = std::str::from_utf8(text).ok().and_then(|plain| plain.parse::<f64>().ok());
    if let Some(value) = value.filter(|value| value.is_finite()) {
        *text = format!("{value:.digits$e}").into_bytes();
    }
}
