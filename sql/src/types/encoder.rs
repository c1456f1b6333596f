//! `ColumnEncoder`: cells of an Arrow column in PostgreSQL's text and binary forms.
//!
//! Takes every Arrow type DataFusion produces for a SQL type, not only the stored one. One dispatch per
//! cell on an enum, no allocation per cell. Leaves out framing, which the wire and COPY do.

use super::array::quote_element;
use super::datetime::{self, DAY, DAYS_TO_2000, MICROS_TO_2000};
use super::interval::{Interval, write_interval};
use super::json_value::write_json;
use super::number::{write_double, write_int, write_real};
use super::numeric::Digits;
use super::oid::oid;
use super::source::{Bytes, Decimals, Floats, Intervals, Ints, Lists, Source};
use super::text::{write_hex, write_uuid};
use arrow::array::Array;
use arrow::util::display::{ArrayFormatter, FormatOptions};
use millstream_catalog::SqlType;
use std::io::Write;

/// The name of a field as JSON has it, quotes included, and its cells.
pub(crate) type NamedField = (Vec<u8>, ColumnEncoder);

/// Writes the cells of one column.
///
/// Holds references to the column's buffers, not the column: it may outlive its batch.
#[derive(Debug)]
pub struct ColumnEncoder {
    sql_type: SqlType,
    source: Source,
}

impl ColumnEncoder {
    /// An encoder of `array` for a column announced as `sql_type`.
    ///
    /// An array of an Arrow type that does not stand for `sql_type` is cast once; one that cannot be cast
    /// is shown as Arrow displays it.
    pub fn new(array: &dyn Array, sql_type: &SqlType) -> Self {
        Self { sql_type: sql_type.clone(), source: Source::new(array, sql_type) }
    }

    /// True if the cell is NULL.
    pub fn is_null(&self, row: usize) -> bool {
        self.source.is_null(row)
    }

    /// The type the cells are written as.
    pub fn sql_type(&self) -> &SqlType {
        &self.sql_type
    }

    /// Appends the text form of a cell; false, and nothing appended, for NULL.
    pub fn text(&self, row: usize, out: &mut Vec<u8>) -> bool {
        if self.source.is_null(row) {
            return false;
        }
        match &self.source {
            Source::Null => return false,
            Source::Boolean(values) => out.push(if values.value(row) { b't' } else { b'f' }),
            Source::Int(values) => text_int(values, row, out),
            Source::Float(Floats::F64(values)) => write_double(values.value(row), out),
            Source::Float(Floats::F32(values)) => write_real(values.value(row), out),
            Source::Float(Floats::F16(values)) => write_real(values.value(row).to_f32(), out),
            Source::Decimal(values) => decimal(values, row, |digits, scale| digits.text(scale, out)),
            Source::Text(values) => out.extend_from_slice(values.value(row)),
            Source::Bytea(values) => {
                out.extend_from_slice(b"\\x");
                write_hex(values.value(row), out);
            }
            Source::Uuid(values) => write_uuid(values.value(row), out),
            Source::Date(values) => datetime::write_date(values.days(row), out),
            Source::Time(values) => datetime::write_time(values.micros(row), out),
            Source::Timestamp(values) => datetime::write_timestamp_with(values.micros(row), b' ', b"", out),
            Source::TimestampTz(values) => datetime::write_timestamp_with(values.micros(row), b' ', b"+00", out),
            Source::Interval(values) => write_interval(interval(values, row), out),
            Source::List(values) if !self.sql_type.is_document() => self.text_list(values, row, out),
            Source::List(_) | Source::Struct(_) | Source::Map(_) => write_json(self, row, &mut Vec::new(), out),
            Source::Dictionary(keys, values) => return values.text(keys.index(row), out),
            Source::Display(array) => display(array.as_ref(), row, out),
        }
        true
    }

    /// Appends the binary form of a cell; false, and nothing appended, for NULL.
    pub fn binary(&self, row: usize, out: &mut Vec<u8>) -> bool {
        if self.source.is_null(row) {
            return false;
        }
        match &self.source {
            Source::Null => return false,
            Source::Boolean(values) => out.push(u8::from(values.value(row))),
            Source::Int(values) => self.binary_int(values, row, out),
            Source::Float(values) => self.binary_float(values, row, out),
            Source::Decimal(values) => decimal(values, row, |digits, scale| digits.binary(scale, out)),
            Source::Text(values) => {
                if self.sql_type == SqlType::Jsonb {
                    out.push(1);
                }
                out.extend_from_slice(values.value(row));
            }
            Source::Bytea(values) | Source::Uuid(values) => out.extend_from_slice(values.value(row)),
            Source::Date(values) => {
                let days = values.days(row).saturating_sub(i64::from(DAYS_TO_2000));
                let days = days.clamp(i32::MIN.into(), i32::MAX.into()) as i32;
                out.extend_from_slice(&days.to_be_bytes());
            }
            Source::Time(values) => out.extend_from_slice(&values.micros(row).to_be_bytes()),
            Source::Timestamp(values) | Source::TimestampTz(values) => {
                out.extend_from_slice(&values.micros(row).saturating_sub(MICROS_TO_2000).to_be_bytes());
            }
            Source::Interval(values) => {
                let interval = interval(values, row);
                out.extend_from_slice(&interval.micros.to_be_bytes());
                out.extend_from_slice(&interval.days.to_be_bytes());
                out.extend_from_slice(&interval.months.to_be_bytes());
            }
            Source::List(values) if !self.sql_type.is_document() => self.binary_list(values, row, out),
            Source::List(_) | Source::Struct(_) | Source::Map(_) => write_json(self, row, &mut Vec::new(), out),
            Source::Dictionary(keys, values) => return values.binary(keys.index(row), out),
            Source::Display(array) => display(array.as_ref(), row, out),
        }
        true
    }

    /// The elements of a list cell and their range in it; `None` for other types and NULL.
    pub(crate) fn items(&self, row: usize) -> Option<(&Self, std::ops::Range<usize>)> {
        match &self.source {
            Source::Dictionary(keys, values) if !self.source.is_null(row) => values.items(keys.index(row)),
            Source::List(values) if !self.source.is_null(row) => Some((&values.items, values.range(row))),
            _ => None,
        }
    }

    /// The fields of a struct cell with their names as JSON has them; `None` for other types and NULL.
    pub(crate) fn fields(&self, row: usize) -> Option<(&[NamedField], usize)> {
        match &self.source {
            Source::Dictionary(keys, values) if !self.source.is_null(row) => values.fields(keys.index(row)),
            Source::Struct(values) if !self.source.is_null(row) => Some((&values.fields, row)),
            _ => None,
        }
    }

    /// The keys and values of a map cell and their range; `None` for other types and NULL.
    pub(crate) fn entries(&self, row: usize) -> Option<(&Self, &Self, std::ops::Range<usize>)> {
        match &self.source {
            Source::Dictionary(keys, values) if !self.source.is_null(row) => values.entries(keys.index(row)),
            Source::Map(map) if !self.source.is_null(row) => Some((&map.keys, &map.values, map.range(row))),
            _ => None,
        }
    }

    /// Microseconds of a timestamp cell.
    pub(crate) fn timestamp_micros(&self, row: usize) -> Option<i64> {
        match &self.source {
            Source::Timestamp(values) | Source::TimestampTz(values) => Some(values.micros(row)),
            Source::Dictionary(keys, values) => values.timestamp_micros(keys.index(row)),
            _ => None,
        }
    }

    fn text_list(&self, values: &Lists, row: usize, out: &mut Vec<u8>) {
        let is_nested = matches!(values.items.sql_type, SqlType::Array(_));
        out.push(b'{');
        for (i, item) in values.range(row).enumerate() {
            if i > 0 {
                out.push(b',');
            }
            let start = out.len();
            if !values.items.text(item, out) {
                out.extend_from_slice(b"NULL");
            } else if !is_nested {
                quote_element(start, out);
            }
        }
        out.push(b'}');
    }

    fn binary_list(&self, values: &Lists, row: usize, out: &mut Vec<u8>) {
        let range = values.range(row);
        let has_nulls = range.clone().any(|item| values.items.is_null(item));
        let word = |value: i32, out: &mut Vec<u8>| out.extend_from_slice(&value.to_be_bytes());
        let count = i32::try_from(range.len()).unwrap_or(i32::MAX);
        word(i32::from(count > 0), out);
        word(i32::from(has_nulls), out);
        word(oid(&values.items.sql_type).cast_signed(), out);
        if count == 0 {
            return;
        }
        word(count, out);
        word(1, out);
        for item in range {
            let start = out.len();
            word(-1, out);
            if values.items.binary(item, out) {
                let len = i32::try_from(out.len() - start - 4).unwrap_or(i32::MAX);
                out[start..start + 4].copy_from_slice(&len.to_be_bytes());
            }
        }
    }

    fn binary_int(&self, values: &Ints, row: usize, out: &mut Vec<u8>) {
        let wide = values.value(row);
        match self.sql_type {
            SqlType::SmallInt => out.extend_from_slice(&(wide as i16).to_be_bytes()),
            SqlType::Integer => out.extend_from_slice(&(wide as i32).to_be_bytes()),
            SqlType::Numeric { .. } => Digits::of(wide).binary(0, out),
            _ => out.extend_from_slice(&(wide as i64).to_be_bytes()),
        }
    }

    fn binary_float(&self, values: &Floats, row: usize, out: &mut Vec<u8>) {
        let wide = values.value(row);
        match self.sql_type {
            SqlType::Real => out.extend_from_slice(&(wide as f32).to_be_bytes()),
            _ => out.extend_from_slice(&wide.to_be_bytes()),
        }
    }
}

fn text_int(values: &Ints, row: usize, out: &mut Vec<u8>) {
    let wide = values.value(row);
    match i64::try_from(wide) {
        Ok(value) => write_int(value, out),
        Err(_) => Digits::of(wide).text(0, out),
    }
}

fn decimal(values: &Decimals, row: usize, write: impl FnOnce(Digits, i8)) {
    match values {
        Decimals::D32(values) => write(Digits::of(values.value(row).into()), values.scale()),
        Decimals::D64(values) => write(Digits::of(values.value(row).into()), values.scale()),
        Decimals::D128(values) => write(Digits::of(values.value(row)), values.scale()),
        Decimals::D256(values) => write(Digits::of_text(&values.value(row).to_string()), values.scale()),
    }
}

fn interval(values: &Intervals, row: usize) -> Interval {
    match values {
        Intervals::MonthDayNano(values) => {
            let value = values.value(row);
            Interval { months: value.months, days: value.days, micros: value.nanoseconds / 1000 }
        }
        Intervals::YearMonth(values) => Interval { months: values.value(row), ..Interval::default() },
        Intervals::DayTime(values) => {
            let value = values.value(row);
            Interval { months: 0, days: value.days, micros: i64::from(value.milliseconds) * 1000 }
        }
        Intervals::Duration(values) => {
            let micros = values.micros(row);
            // PostgreSQL shows the difference of two timestamps in days and time.
            Interval { months: 0, days: (micros / DAY) as i32, micros: micros % DAY }
        }
    }
}

fn display(array: &dyn Array, row: usize, out: &mut Vec<u8>) {
    let options = FormatOptions::default().with_display_error(true);
    if let Ok(formatter) = ArrayFormatter::try_new(array, &options) {
        let _ = write!(out, "{}", formatter.value(row));
    }
}

impl Bytes {
    /// The bytes of a cell.
    pub(crate) fn value(&self, row: usize) -> &[u8] {
        match self {
            Self::Utf8(values) => values.value(row).as_bytes(),
            Self::LargeUtf8(values) => values.value(row).as_bytes(),
            Self::Utf8View(values) => values.value(row).as_bytes(),
            Self::Binary(values) => values.value(row),
            Self::LargeBinary(values) => values.value(row),
            Self::BinaryView(values) => values.value(row),
            Self::Fixed(values) => values.value(row),
        }
    }
}
