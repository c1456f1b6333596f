//! `to_char(time, pattern)` with PostgreSQL's patterns.
//!
//! Source: PostgreSQL 15, table 9.27 "Template Patterns for Date/Time Formatting". Leaves out numbers, intervals and
//! localised names. Pure.

use super::cast::bad_argument;
use super::errors::external;
use crate::error::SqlError;
use arrow::array::{ArrayRef, AsArray, StringArray};
use arrow::compute::cast;
use arrow::datatypes::{DataType, TimeUnit, TimestampMicrosecondType};
use chrono::{DateTime, Datelike, NaiveDateTime, Timelike};
use datafusion::common::{Result, ScalarValue};
use datafusion::logical_expr::{ColumnarValue, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature, Volatility};
use std::sync::Arc;

const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];
const DAYS: [&str; 7] = ["Sunday", "Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday"];
/// Longest first, so that `HH24` is not `HH`.
const PATTERNS: [&str; 43] = [
    "MONTH", "Month", "month", "SSSSS", "HH24", "HH12", "YYYY", "IYYY", "A.M.", "P.M.", "a.m.", "p.m.", "Month",
    "Y,YYY", "DAY", "Day", "day", "MON", "Mon", "mon", "YYY", "DDD", "HH", "MI", "SS", "MS", "US", "AM", "PM", "am",
    "pm", "YY", "MM", "DY", "Dy", "dy", "DD", "ID", "IW", "WW", "CC", "TZ", "OF",
];

#[derive(Debug, PartialEq, Eq, Hash)]
struct ToChar {
    signature: Signature,
}

/// The function `to_char`.
pub(super) fn functions() -> [ScalarUDF; 1] {
    [ScalarUDF::new_from_impl(ToChar { signature: Signature::any(2, Volatility::Immutable) })]
}

/// A piece of a pattern.
#[derive(Debug, Clone, PartialEq)]
enum Piece {
    Field { name: &'static str, is_filled: bool },
    Text(String),
}

fn compile(pattern: &str) -> Vec<Piece> {
    let mut pieces = Vec::new();
    let mut rest = pattern;
    let mut is_filled = true;
    while let Some(first) = rest.chars().next() {
        if let Some(after) = rest.strip_prefix("FM") {
            (rest, is_filled) = (after, false);
            continue;
        }
        if let Some(quoted) = rest.strip_prefix('"') {
            let (text, after) = quoted.split_once('"').unwrap_or((quoted, ""));
            pieces.push(Piece::Text(text.to_owned()));
            rest = after;
            continue;
        }
        let single = ["Y", "D", "W", "Q", "J"];
        match PATTERNS.into_iter().chain(single).find(|name| rest.starts_with(name)) {
            Some(name) => {
                pieces.push(Piece::Field { name, is_filled });
                is_filled = true;
                rest = &rest[name.len()..];
                // TH and th after a number are its ordinal ending; the digits alone are shown.
            }
            None => {
                pieces.push(Piece::Text(first.to_string()));
                rest = &rest[first.len_utf8()..];
            }
        }
    }
    pieces
}

fn number(value: i64, width: usize, is_filled: bool) -> String {
    if is_filled { format!("{value:0width$}") } else { value.to_string() }
}

fn word(value: &str, name: &str, is_filled: bool, width: usize) -> String {
    let is_upper = name.chars().all(|c| c.is_ascii_uppercase());
    let is_lower = name.chars().all(|c| c.is_ascii_lowercase());
    let value = match (is_upper, is_lower) {
        (true, _) => value.to_uppercase(),
        (_, true) => value.to_lowercase(),
        _ => value.to_owned(),
    };
    if is_filled { format!("{value:<width$}") } else { value }
}

fn field(name: &str, is_filled: bool, time: &NaiveDateTime) -> String {
    let year = i64::from(time.year());
    let hour = i64::from(time.hour());
    let hour12 = if hour % 12 == 0 { 12 } else { hour % 12 };
    let micros = i64::from(time.nanosecond() / 1_000);
    let week = |ordinal: u32| i64::from((ordinal - 1) / 7 + 1);
    let month = MONTHS[time.month0() as usize % 12];
    let day = DAYS[time.weekday().num_days_from_sunday() as usize % 7];
    let (value, width) = match name {
        "HH24" => (hour, 2),
        "HH12" | "HH" => (hour12, 2),
        "MI" => (i64::from(time.minute()), 2),
        "SS" => (i64::from(time.second()), 2),
        "SSSSS" => (i64::from(time.num_seconds_from_midnight()), 1),
        "MS" => (micros / 1_000, 3),
        "US" => (micros, 6),
        "YYYY" => (year, 4),
        "YYY" => (year % 1_000, 3),
        "YY" => (year % 100, 2),
        "Y" => (year % 10, 1),
        "IYYY" => (i64::from(time.iso_week().year()), 4),
        "MM" => (i64::from(time.month()), 2),
        "DDD" => (i64::from(time.ordinal()), 3),
        "DD" => (i64::from(time.day()), 2),
        "D" => (i64::from(time.weekday().number_from_sunday()), 1),
        "ID" => (i64::from(time.weekday().number_from_monday()), 1),
        "IW" => (i64::from(time.iso_week().week()), 2),
        "WW" => (week(time.ordinal()), 2),
        "W" => (week(time.day()), 1),
        "Q" => (i64::from(time.month0() / 3 + 1), 1),
        "CC" => ((year + 99) / 100, 2),
        "J" => (i64::from(time.num_days_from_ce()) + 1_721_425, 1),
        "Y,YYY" => return format!("{},{:03}", year / 1_000, year % 1_000),
        "MONTH" | "Month" | "month" => return word(month, name, is_filled, 9),
        "MON" | "Mon" | "mon" => return word(&month[..3], name, false, 3),
        "DAY" | "Day" | "day" => return word(day, name, is_filled, 9),
        "DY" | "Dy" | "dy" => return word(&day[..3], name, false, 3),
        "AM" | "PM" => return if hour < 12 { "AM" } else { "PM" }.to_owned(),
        "am" | "pm" => return if hour < 12 { "am" } else { "pm" }.to_owned(),
        "A.M." | "P.M." => return if hour < 12 { "A.M." } else { "P.M." }.to_owned(),
        "a.m." | "p.m." => return if hour < 12 { "a.m." } else { "p.m." }.to_owned(),
        "TZ" => return "UTC".to_owned(),
        "OF" => return "+00".to_owned(),
        _ => return String::new(),
    };
    number(value, width, is_filled)
}

fn render(pieces: &[Piece], micros: i64) -> Option<String> {
    let time = DateTime::from_timestamp_micros(micros)?.naive_utc();
    let mut out = String::new();
    for piece in pieces {
        match piece {
            Piece::Text(text) => out.push_str(text),
            Piece::Field { name, is_filled } => out.push_str(&field(name, *is_filled, &time)),
        }
    }
    Some(out)
}

impl ScalarUDFImpl for ToChar {
    fn name(&self) -> &str {
        "to_char"
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, types: &[DataType]) -> Result<DataType> {
        match types {
            [DataType::Timestamp(..) | DataType::Date32, DataType::Utf8 | DataType::Null] => Ok(DataType::Utf8),
            [number, _] if number.is_numeric() || matches!(number, DataType::Interval(_)) => Err(external(
                SqlError::unsupported("to_char of a number or interval", "cast it to text, or round it first"),
            )),
            _ => Err(bad_argument("to_char")),
        }
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let [times, patterns] = args.args.as_slice() else { return Err(bad_argument("to_char")) };
        let is_scalar = matches!((times, patterns), (ColumnarValue::Scalar(_), ColumnarValue::Scalar(_)));
        let rows = if is_scalar { 1 } else { args.number_rows };
        let array = times.to_array(rows)?;
        let array = match array.data_type() {
            DataType::Timestamp(TimeUnit::Microsecond, _) => array,
            _ => cast(&array, &DataType::Timestamp(TimeUnit::Microsecond, None))?,
        };
        let times = array.as_primitive::<TimestampMicrosecondType>();
        let text: StringArray = match patterns {
            ColumnarValue::Scalar(pattern) => match pattern.try_as_str().flatten() {
                Some(pattern) => {
                    let pieces = compile(pattern);
                    times.iter().map(|time| time.and_then(|time| render(&pieces, time))).collect()
                }
                None => times.iter().map(|_| None::<String>).collect(),
            },
            ColumnarValue::Array(patterns) => {
                let patterns = cast(patterns, &DataType::Utf8)?;
                let rows = times.iter().zip(patterns.as_string::<i32>().iter());
                rows.map(|(time, pattern)| render(&compile(pattern?), time?)).collect()
            }
        };
        let text: ArrayRef = Arc::new(text);
        match is_scalar {
            true => Ok(ColumnarValue::Scalar(ScalarValue::try_from_array(&text, 0)?)),
            false => Ok(ColumnarValue::Array(text)),
        }
    }
}
