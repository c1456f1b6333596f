//! PostgreSQL's binary forms of fixed-width values and arrays, as clients send them.
//!
//! Leaves out `numeric` (`numeric.rs`) and output (`encoder.rs`). Only `ColumnBuilder` calls it.

use super::datetime::{DATE_END, DATE_FIRST, DAY, DAYS_TO_2000, MICROS_TO_2000};
use super::error::ValueError;
use super::interval::Interval;
use super::oid::oid;
use millstream_catalog::SqlType;
use millstream_catalog::model::SqlState;

/// Exactly `N` bytes.
pub(crate) fn fixed<const N: usize>(value: &[u8]) -> Result<[u8; N], ValueError> {
    value.try_into().map_err(|_| if value.len() < N { ValueError::short() } else { ValueError::binary() })
}

/// The text of a `jsonb`: version 1, then text.
pub(crate) fn jsonb(value: &[u8]) -> Result<&[u8], ValueError> {
    match value.split_first() {
        Some((1, text)) => Ok(text),
        Some((version, _)) => {
            let message = format!("unsupported jsonb version number {version}");
            Err(ValueError::new(SqlState::InvalidBinaryRepresentation, message))
        }
        None => Err(ValueError::short()),
    }
}

fn out_of_range(type_name: &str) -> ValueError {
    ValueError::new(SqlState::DatetimeFieldOverflow, format!("{type_name} out of range"))
}

fn infinite(type_name: &str) -> ValueError {
    let message = format!("infinity is not supported as a {type_name}");
    ValueError::new(SqlState::FeatureNotSupported, message).hint("use NULL, or a date far away")
}

/// A `date`: days since 2000.
pub(crate) fn date(value: &[u8]) -> Result<i32, ValueError> {
    let days = i32::from_be_bytes(fixed(value)?);
    if matches!(days, i32::MIN | i32::MAX) {
        return Err(infinite("date"));
    }
    let stored = i64::from(days) + i64::from(DAYS_TO_2000);
    let is_held = (DATE_FIRST..DATE_END).contains(&stored);
    i32::try_from(stored).ok().filter(|_| is_held).ok_or_else(|| out_of_range("date"))
}

/// A `time`: microseconds since midnight.
pub(crate) fn time(value: &[u8]) -> Result<i64, ValueError> {
    let micros = i64::from_be_bytes(fixed(value)?);
    if (0..=DAY).contains(&micros) { Ok(micros) } else { Err(out_of_range("time")) }
}

/// A `timestamp` or `timestamptz`: microseconds since 2000.
pub(crate) fn timestamp(value: &[u8]) -> Result<i64, ValueError> {
    let micros = i64::from_be_bytes(fixed(value)?);
    if matches!(micros, i64::MIN | i64::MAX) {
        return Err(infinite("timestamp"));
    }
    let stored = micros.checked_add(MICROS_TO_2000).ok_or_else(|| out_of_range("timestamp"))?;
    if stored < DATE_FIRST * DAY { Err(out_of_range("timestamp")) } else { Ok(stored) }
}

/// An `interval`: microseconds, days, months.
pub(crate) fn interval(value: &[u8]) -> Result<Interval, ValueError> {
    let bytes: [u8; 16] = fixed(value)?;
    let (micros, rest) = bytes.split_at(8);
    let (days, months) = rest.split_at(4);
    Ok(Interval {
        micros: i64::from_be_bytes(fixed(micros)?),
        days: i32::from_be_bytes(fixed(days)?),
        months: i32::from_be_bytes(fixed(months)?),
    })
}

/// Calls `item` for each element of a one-dimensional array of `item_type`.
pub(crate) fn array(
    value: &[u8],
    item_type: &SqlType,
    mut item: impl FnMut(Option<&[u8]>) -> Result<(), ValueError>,
) -> Result<(), ValueError> {
    let mut rest = value;
    let (dimensions, _flags, element) = (take_i32(&mut rest)?, take_i32(&mut rest)?, take_i32(&mut rest)?);
    if !(0..=6).contains(&dimensions) {
        let message = format!("invalid number of dimensions: {dimensions}");
        return Err(ValueError::new(SqlState::InvalidBinaryRepresentation, message));
    }
    // Drivers send `text` for `varchar` and the like: what counts is that the bytes mean the same.
    let is_text = |oid: u32| matches!(oid, 19 | 25 | 705 | 1042 | 1043);
    let (given, expected) = (element.cast_unsigned(), oid(item_type));
    if given != expected && !(is_text(given) && is_text(expected)) {
        let message = format!("binary data has array element type {given} instead of expected {expected}");
        return Err(ValueError::new(SqlState::DatatypeMismatch, message));
    }
    if dimensions == 0 {
        return if rest.is_empty() { Ok(()) } else { Err(ValueError::binary()) };
    }
    if dimensions > 1 {
        let message = "multidimensional arrays are not supported in binary form";
        return Err(ValueError::new(SqlState::FeatureNotSupported, message).hint("send a one-dimensional array"));
    }
    let (count, _lower) = (take_i32(&mut rest)?, take_i32(&mut rest)?);
    if count < 0 {
        return Err(ValueError::binary());
    }
    for _ in 0..count {
        let len = take_i32(&mut rest)?;
        if len == -1 {
            item(None)?;
            continue;
        }
        let len = usize::try_from(len).map_err(|_| ValueError::binary())?;
        let (bytes, tail) = rest.split_at_checked(len).ok_or_else(ValueError::short)?;
        rest = tail;
        item(Some(bytes))?;
    }
    if rest.is_empty() { Ok(()) } else { Err(ValueError::binary()) }
}

fn take_i32(rest: &mut &[u8]) -> Result<i32, ValueError> {
    let (head, tail) = rest.split_first_chunk::<4>().ok_or_else(ValueError::short)?;
    *rest = tail;
    Ok(i32::from_be_bytes(*head))
}
