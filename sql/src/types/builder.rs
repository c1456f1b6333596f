//! `ColumnBuilder`: PostgreSQL text and binary values into one Arrow column of a SQL type.
//!
//! One dispatch per cell on an enum, no allocation per cell for fixed-width types. Leaves out NOT NULL and
//! places in statements, which callers know. INSERT, COPY and query parameters call it. After an error the
//! builder's current cell is undefined and the whole column is to be dropped, as the statement fails.

use super::array::{Items, parse_array};
use super::assign::assign_array;
use super::binary;
use super::datetime;
use super::document::{self, Document, MapSink, StructSink};
use super::error::ValueError;
use super::interval::{Interval, parse_interval};
use super::numeric::{Shape, parse_numeric, parse_numeric_binary};
use super::width::least_bytes;
use super::{json, json_node, number, text};
use arrow::array::{
    ArrayRef, BinaryBuilder, BooleanBuilder, Date32Builder, Decimal128Builder, FixedSizeBinaryBuilder, Float32Builder,
    Float64Builder, Int16Builder, Int32Builder, Int64Builder, IntervalMonthDayNanoBuilder, ListArray,
    NullBufferBuilder, StringBuilder, Time64MicrosecondBuilder, TimestampMicrosecondBuilder,
};
use arrow::buffer::{OffsetBuffer, ScalarBuffer};
use arrow::datatypes::{FieldRef, IntervalMonthDayNano};
use datafusion::common::ScalarValue;
use millstream_catalog::SqlType;
use millstream_catalog::model::limit::{EVENT_BYTES_MAX, STATEMENT_ROWS_BYTES_MAX};
use std::sync::Arc;

/// Builds one column of a SQL type.
///
/// ```
/// # use millstream_sql::types::ColumnBuilder;
/// # use millstream_catalog::SqlType;
/// let mut builder = ColumnBuilder::new(&SqlType::Integer, 2);
/// builder.append_text(b"42")?;
/// builder.append_null();
/// assert_eq!(builder.finish().len(), 2);
/// # Ok::<(), millstream_sql::types::ValueError>(())
/// ```
#[derive(Debug)]
pub struct ColumnBuilder {
    sql_type: SqlType,
    sink: Sink,
    scratch: Vec<u8>,
}

#[derive(Debug)]
enum Sink {
    Boolean(BooleanBuilder),
    SmallInt(Int16Builder),
    Integer(Int32Builder),
    BigInt(Int64Builder),
    Real(Float32Builder),
    Double(Float64Builder),
    Numeric(Decimal128Builder, Shape),
    Text(StringBuilder),
    Varchar(StringBuilder, u32),
    Char(StringBuilder, u32),
    Json(StringBuilder),
    Jsonb(StringBuilder),
    Bytea(BinaryBuilder),
    Date(Date32Builder),
    Time(Time64MicrosecondBuilder),
    Timestamp(TimestampMicrosecondBuilder),
    TimestampTz(TimestampMicrosecondBuilder),
    Interval(IntervalMonthDayNanoBuilder),
    Uuid(FixedSizeBinaryBuilder),
    Array(Box<ListSink>),
    Struct(Box<StructSink>),
    Map(Box<MapSink>),
}

/// A list column under construction.
#[derive(Debug)]
struct ListSink {
    field: FieldRef,
    items: ColumnBuilder,
    /// Bytes that each element takes at least.
    width: usize,
    ends: Vec<i32>,
    nulls: NullBufferBuilder,
}

impl ColumnBuilder {
    /// An empty column with room for `capacity` values.
    pub fn new(sql_type: &SqlType, capacity: usize) -> Self {
        let strings = || StringBuilder::with_capacity(capacity, capacity * 8);
        let micros = || TimestampMicrosecondBuilder::with_capacity(capacity);
        let sink = match sql_type {
            SqlType::Boolean => Sink::Boolean(BooleanBuilder::with_capacity(capacity)),
            SqlType::SmallInt => Sink::SmallInt(Int16Builder::with_capacity(capacity)),
            SqlType::Integer => Sink::Integer(Int32Builder::with_capacity(capacity)),
            SqlType::BigInt => Sink::BigInt(Int64Builder::with_capacity(capacity)),
            SqlType::Real => Sink::Real(Float32Builder::with_capacity(capacity)),
            SqlType::Double => Sink::Double(Float64Builder::with_capacity(capacity)),
            SqlType::Numeric { precision, scale } => Sink::Numeric(
                Decimal128Builder::with_capacity(capacity).with_data_type(sql_type.arrow()),
                Shape { precision: *precision, scale: *scale },
            ),
            SqlType::Text => Sink::Text(strings()),
            SqlType::Varchar(n) => Sink::Varchar(strings(), *n),
            SqlType::Char(n) => Sink::Char(strings(), *n),
            SqlType::Json => Sink::Json(strings()),
            SqlType::Jsonb => Sink::Jsonb(strings()),
            SqlType::Bytea => Sink::Bytea(BinaryBuilder::with_capacity(capacity, capacity * 8)),
            SqlType::Date => Sink::Date(Date32Builder::with_capacity(capacity)),
            SqlType::Time => Sink::Time(Time64MicrosecondBuilder::with_capacity(capacity)),
            SqlType::Timestamp => Sink::Timestamp(micros()),
            SqlType::TimestampTz => Sink::TimestampTz(micros().with_data_type(sql_type.arrow())),
            SqlType::Interval => Sink::Interval(IntervalMonthDayNanoBuilder::with_capacity(capacity)),
            SqlType::Uuid => Sink::Uuid(FixedSizeBinaryBuilder::with_capacity(capacity, 16)),
            SqlType::Array(item) => Sink::Array(Box::new(ListSink {
                field: Arc::new(item.field("item", true)),
                items: Self::new(item, capacity),
                width: least_bytes(&item.arrow()),
                ends: Vec::with_capacity(capacity),
                nulls: NullBufferBuilder::new(capacity),
            })),
            SqlType::Struct(fields) => Sink::Struct(Box::new(StructSink::new(sql_type, fields, capacity))),
            SqlType::Map(key, value) => Sink::Map(Box::new(MapSink::new(sql_type, key, value, capacity))),
        };
        Self { sql_type: sql_type.clone(), sink, scratch: Vec::new() }
    }

    /// The type it builds.
    pub fn sql_type(&self) -> &SqlType {
        &self.sql_type
    }

    /// Appends a value in PostgreSQL's text form.
    ///
    /// # Errors
    /// PostgreSQL's SQLSTATE and message for text the type does not accept; 54000 past a size limit.
    pub fn append_text(&mut self, value: &[u8]) -> Result<(), ValueError> {
        let int = |type_name: &str, min: i64, max: i64| number::parse_int(value, min, max, type_name);
        match &mut self.sink {
            Sink::Boolean(sink) => sink.append_value(number::parse_bool(value)?),
            Sink::SmallInt(sink) => sink.append_value(int("smallint", i16::MIN.into(), i16::MAX.into())? as i16),
            Sink::Integer(sink) => sink.append_value(int("integer", i32::MIN.into(), i32::MAX.into())? as i32),
            Sink::BigInt(sink) => sink.append_value(int("bigint", i64::MIN, i64::MAX)?),
            Sink::Real(sink) => sink.append_value(number::parse_real(value)?),
            Sink::Double(sink) => sink.append_value(number::parse_double(value)?),
            Sink::Numeric(sink, shape) => sink.append_value(parse_numeric(value, *shape)?),
            Sink::Text(sink) => push_str(sink, text::check_text(value)?)?,
            Sink::Varchar(sink, n) => push_str(sink, text::cut(text::check_text(value)?, *n, "character varying")?)?,
            Sink::Char(sink, n) => push_padded(sink, text::check_text(value)?, *n, &mut self.scratch)?,
            Sink::Json(sink) => {
                let plain = text::check_text(value)?;
                json::check_json(value)?;
                push_str(sink, plain)?;
            }
            Sink::Jsonb(sink) => push_jsonb(sink, value, &mut self.scratch)?,
            Sink::Bytea(sink) => {
                self.scratch.clear();
                text::parse_bytea(value, &mut self.scratch)?;
                push_bytes(sink, &self.scratch)?;
            }
            Sink::Date(sink) => sink.append_value(datetime::parse_date(value)?),
            Sink::Time(sink) => sink.append_value(datetime::parse_time(value)?),
            Sink::Timestamp(sink) => sink.append_value(datetime::parse_timestamp(value)?),
            Sink::TimestampTz(sink) => sink.append_value(datetime::parse_timestamptz(value)?),
            Sink::Interval(sink) => sink.append_value(stored_interval(parse_interval(value)?)?),
            Sink::Uuid(sink) => push_uuid(sink, &text::parse_uuid(value)?)?,
            Sink::Struct(_) | Sink::Map(_) => return document::append_text(self, value),
            Sink::Array(sink) if sink.items.sql_type.is_document() => return document::append_text(self, value),
            Sink::Array(sink) => {
                let items = match sink.items.sql_type {
                    SqlType::Array(_) => Items::Nested,
                    _ => Items::Plain,
                };
                parse_array(value, items, |item| match item {
                    Some(item) => sink.items.append_text(item),
                    None => {
                        sink.items.append_null();
                        Ok(())
                    }
                })?;
                sink.end();
            }
        }
        Ok(())
    }

    /// Appends a value in PostgreSQL's binary form.
    ///
    /// # Errors
    /// 22P03 or 08P01 for bytes that are not a value of the type, and what [`Self::append_text`] gives.
    pub fn append_binary(&mut self, value: &[u8]) -> Result<(), ValueError> {
        match &mut self.sink {
            Sink::Boolean(sink) => sink.append_value(binary::fixed::<1>(value)?[0] != 0),
            Sink::SmallInt(sink) => sink.append_value(i16::from_be_bytes(binary::fixed(value)?)),
            Sink::Integer(sink) => sink.append_value(i32::from_be_bytes(binary::fixed(value)?)),
            Sink::BigInt(sink) => sink.append_value(i64::from_be_bytes(binary::fixed(value)?)),
            Sink::Real(sink) => sink.append_value(f32::from_be_bytes(binary::fixed(value)?)),
            Sink::Double(sink) => sink.append_value(f64::from_be_bytes(binary::fixed(value)?)),
            Sink::Numeric(sink, shape) => sink.append_value(parse_numeric_binary(value, *shape)?),
            Sink::Text(_) | Sink::Varchar(..) | Sink::Char(..) | Sink::Json(_) => return self.append_text(value),
            Sink::Jsonb(sink) => push_jsonb(sink, binary::jsonb(value)?, &mut self.scratch)?,
            Sink::Bytea(sink) => push_bytes(sink, value)?,
            Sink::Date(sink) => sink.append_value(binary::date(value)?),
            Sink::Time(sink) => sink.append_value(binary::time(value)?),
            Sink::Timestamp(sink) | Sink::TimestampTz(sink) => sink.append_value(binary::timestamp(value)?),
            Sink::Interval(sink) => sink.append_value(stored_interval(binary::interval(value)?)?),
            Sink::Uuid(sink) => push_uuid(sink, &binary::fixed(value)?)?,
            Sink::Struct(_) | Sink::Map(_) => return self.append_text(value),
            Sink::Array(sink) if sink.items.sql_type.is_document() => return self.append_text(value),
            Sink::Array(sink) => {
                binary::array(value, &sink.items.sql_type.clone(), |item| match item {
                    Some(item) => sink.items.append_binary(item),
                    None => {
                        sink.items.append_null();
                        Ok(())
                    }
                })?;
                sink.end();
            }
        }
        Ok(())
    }

    /// Appends NULL.
    pub fn append_null(&mut self) {
        match &mut self.sink {
            Sink::Boolean(sink) => sink.append_null(),
            Sink::SmallInt(sink) => sink.append_null(),
            Sink::Integer(sink) => sink.append_null(),
            Sink::BigInt(sink) => sink.append_null(),
            Sink::Real(sink) => sink.append_null(),
            Sink::Double(sink) => sink.append_null(),
            Sink::Numeric(sink, _) => sink.append_null(),
            Sink::Text(sink) | Sink::Varchar(sink, _) | Sink::Char(sink, _) | Sink::Json(sink) | Sink::Jsonb(sink) => {
                sink.append_null()
            }
            Sink::Bytea(sink) => sink.append_null(),
            Sink::Date(sink) => sink.append_null(),
            Sink::Time(sink) => sink.append_null(),
            Sink::Timestamp(sink) | Sink::TimestampTz(sink) => sink.append_null(),
            Sink::Interval(sink) => sink.append_null(),
            Sink::Uuid(sink) => sink.append_null(),
            Sink::Array(sink) => {
                sink.nulls.append_null();
                sink.ends.push(sink.items.len_i32());
            }
            Sink::Struct(sink) => sink.append_null(),
            Sink::Map(sink) => sink.append_null(),
        }
    }

    /// Appends a value of DataFusion under PostgreSQL's assignment rules (see [`super::assign_array`]).
    ///
    /// # Errors
    /// 42804 when its type cannot be assigned, 22003 and the like when the value does not fit.
    pub fn append_scalar(&mut self, value: &ScalarValue) -> Result<(), ValueError> {
        match (&mut self.sink, value) {
            (_, value) if value.is_null() => self.append_null(),
            (Sink::Boolean(sink), ScalarValue::Boolean(Some(value))) => sink.append_value(*value),
            (Sink::SmallInt(sink), ScalarValue::Int16(Some(value))) => sink.append_value(*value),
            (Sink::Integer(sink), ScalarValue::Int32(Some(value))) => sink.append_value(*value),
            (Sink::BigInt(sink), ScalarValue::Int64(Some(value))) => sink.append_value(*value),
            (Sink::Double(sink), ScalarValue::Float64(Some(value))) => sink.append_value(*value),
            (Sink::Text(sink), ScalarValue::Utf8(Some(value))) => push_str(sink, value)?,
            (Sink::Timestamp(sink), ScalarValue::TimestampMicrosecond(Some(value), None))
            | (Sink::TimestampTz(sink), ScalarValue::TimestampMicrosecond(Some(value), Some(_))) => {
                sink.append_value(*value);
            }
            _ => self.append_other(value)?,
        }
        Ok(())
    }

    fn append_other(&mut self, value: &ScalarValue) -> Result<(), ValueError> {
        let array = value.to_array().map_err(|_| ValueError::unassignable(&self.sql_type, "this value"))?;
        let is_uuid = self.sql_type == SqlType::Uuid && *array.data_type() == self.sql_type.arrow();
        let from = if is_uuid { Some(SqlType::Uuid) } else { SqlType::of_arrow(array.data_type()) };
        let from = from.ok_or_else(|| ValueError::unassignable(&self.sql_type, "a value of another type"))?;
        let assigned = assign_array(&array, &from, &self.sql_type).map_err(|refused| refused.error)?;
        self.append_first(&assigned)
    }

    /// Appends a value that a builder of the same type made.
    pub(crate) fn append_stored(&mut self, value: &ScalarValue) -> Result<(), ValueError> {
        let array = value.to_array().map_err(|_| ValueError::unassignable(&self.sql_type, "this value"))?;
        self.append_first(&array)
    }

    /// Appends the first value of an array of this type.
    pub(crate) fn append_first(&mut self, array: &ArrayRef) -> Result<(), ValueError> {
        let mut binary = Vec::new();
        if super::ColumnEncoder::new(array.as_ref(), &self.sql_type).binary(0, &mut binary) {
            return self.append_binary(&binary);
        }
        self.append_null();
        Ok(())
    }

    /// For callers that find the elements of an array themselves: the builder of the elements.
    pub(crate) fn items(&mut self) -> Option<&mut Self> {
        match &mut self.sink {
            Sink::Array(sink) => Some(&mut sink.items),
            _ => None,
        }
    }

    /// Checks that another element may go to [`Self::items`], whatever it is: few bytes may become a wide one.
    pub(crate) fn check_items(&self) -> Result<(), ValueError> {
        match &self.sink {
            Sink::Array(sink) => check_elements(sink.items.len(), sink.width),
            _ => Ok(()),
        }
    }

    /// The least bytes of the elements of arrays and maps so far, which their text says little of.
    pub(crate) fn element_bytes(&self) -> usize {
        match &self.sink {
            Sink::Array(sink) => sink.items.len() * sink.width + sink.items.element_bytes(),
            Sink::Struct(sink) => sink.element_bytes(),
            Sink::Map(sink) => sink.element_bytes(),
            _ => 0,
        }
    }

    /// Ends the array whose elements went to [`Self::items`].
    pub(crate) fn end_items(&mut self) {
        if let Sink::Array(sink) = &mut self.sink {
            sink.end();
        }
    }

    /// The parts of a column of STRUCT or MAP.
    pub(super) fn document(&mut self) -> Option<Document<'_>> {
        match &mut self.sink {
            Sink::Struct(sink) => Some(Document::Struct(sink)),
            Sink::Map(sink) => Some(Document::Map(sink)),
            _ => None,
        }
    }

    /// Values so far.
    pub fn len(&self) -> usize {
        use arrow::array::ArrayBuilder;
        match &self.sink {
            Sink::Boolean(sink) => sink.len(),
            Sink::SmallInt(sink) => sink.len(),
            Sink::Integer(sink) => sink.len(),
            Sink::BigInt(sink) => sink.len(),
            Sink::Real(sink) => sink.len(),
            Sink::Double(sink) => sink.len(),
            Sink::Numeric(sink, _) => sink.len(),
            Sink::Text(sink) | Sink::Varchar(sink, _) | Sink::Char(sink, _) | Sink::Json(sink) | Sink::Jsonb(sink) => {
                sink.len()
            }
            Sink::Bytea(sink) => sink.len(),
            Sink::Date(sink) => sink.len(),
            Sink::Time(sink) => sink.len(),
            Sink::Timestamp(sink) | Sink::TimestampTz(sink) => sink.len(),
            Sink::Interval(sink) => sink.len(),
            Sink::Uuid(sink) => sink.len(),
            Sink::Array(sink) => sink.ends.len(),
            Sink::Struct(sink) => sink.len(),
            Sink::Map(sink) => sink.len(),
        }
    }

    /// True before the first value.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    pub(super) fn len_i32(&self) -> i32 {
        // Elements are bounded by the bytes of a statement, well below 2^31.
        i32::try_from(self.len()).unwrap_or(i32::MAX)
    }

    /// The column, of the Arrow type `SqlType::arrow` gives; the builder is empty again.
    pub fn finish(&mut self) -> ArrayRef {
        match &mut self.sink {
            Sink::Boolean(sink) => Arc::new(sink.finish()),
            Sink::SmallInt(sink) => Arc::new(sink.finish()),
            Sink::Integer(sink) => Arc::new(sink.finish()),
            Sink::BigInt(sink) => Arc::new(sink.finish()),
            Sink::Real(sink) => Arc::new(sink.finish()),
            Sink::Double(sink) => Arc::new(sink.finish()),
            Sink::Numeric(sink, _) => Arc::new(sink.finish()),
            Sink::Text(sink) | Sink::Varchar(sink, _) | Sink::Char(sink, _) | Sink::Json(sink) | Sink::Jsonb(sink) => {
                Arc::new(sink.finish())
            }
            Sink::Bytea(sink) => Arc::new(sink.finish()),
            Sink::Date(sink) => Arc::new(sink.finish()),
            Sink::Time(sink) => Arc::new(sink.finish()),
            Sink::Timestamp(sink) | Sink::TimestampTz(sink) => Arc::new(sink.finish()),
            Sink::Interval(sink) => Arc::new(sink.finish()),
            Sink::Uuid(sink) => Arc::new(sink.finish()),
            Sink::Array(sink) => Arc::new(sink.finish()),
            Sink::Struct(sink) => sink.finish(),
            Sink::Map(sink) => sink.finish(),
        }
    }
}

impl ListSink {
    fn end(&mut self) {
        self.nulls.append_non_null();
        self.ends.push(self.items.len_i32());
    }

    fn finish(&mut self) -> ListArray {
        let mut offsets = Vec::with_capacity(self.ends.len() + 1);
        offsets.push(0);
        offsets.append(&mut self.ends);
        let offsets = OffsetBuffer::new(ScalarBuffer::from(offsets));
        ListArray::new(self.field.clone(), offsets, self.items.finish(), self.nulls.finish())
    }
}

fn check_room(held: usize, more: usize) -> Result<(), ValueError> {
    if more > EVENT_BYTES_MAX.as_usize() {
        return Err(ValueError::too_large("value", EVENT_BYTES_MAX.value()));
    }
    if held + more > STATEMENT_ROWS_BYTES_MAX.as_usize() {
        return Err(ValueError::too_large("column of one statement", STATEMENT_ROWS_BYTES_MAX.value()));
    }
    Ok(())
}

pub(super) fn check_elements(count: usize, width: usize) -> Result<(), ValueError> {
    match count.saturating_mul(width) > STATEMENT_ROWS_BYTES_MAX.as_usize() {
        true => Err(ValueError::too_large("column of one statement", STATEMENT_ROWS_BYTES_MAX.value())),
        false => Ok(()),
    }
}

fn push_str(sink: &mut StringBuilder, value: &str) -> Result<(), ValueError> {
    check_room(sink.values_slice().len(), value.len())?;
    sink.append_value(value);
    Ok(())
}

fn push_bytes(sink: &mut BinaryBuilder, value: &[u8]) -> Result<(), ValueError> {
    check_room(sink.values_slice().len(), value.len())?;
    sink.append_value(value);
    Ok(())
}

fn push_uuid(sink: &mut FixedSizeBinaryBuilder, value: &[u8; 16]) -> Result<(), ValueError> {
    sink.append_value(value).map_err(|_| ValueError::binary())
}

fn push_padded(sink: &mut StringBuilder, value: &str, n: u32, scratch: &mut Vec<u8>) -> Result<(), ValueError> {
    let value = text::cut(value, n, "character")?;
    let blanks = (n as usize).saturating_sub(value.chars().count());
    check_room(sink.values_slice().len(), value.len() + blanks)?;
    scratch.clear();
    scratch.extend_from_slice(value.as_bytes());
    scratch.resize(value.len() + blanks, b' ');
    push_str(sink, text::check_text(scratch)?)
}

fn push_jsonb(sink: &mut StringBuilder, value: &[u8], scratch: &mut Vec<u8>) -> Result<(), ValueError> {
    text::check_text(value)?;
    scratch.clear();
    json_node::normalise(value, scratch)?;
    push_str(sink, text::check_text(scratch)?)
}

fn stored_interval(interval: Interval) -> Result<IntervalMonthDayNano, ValueError> {
    let nanos = interval.micros.checked_mul(1000).ok_or_else(|| {
        ValueError::new(millstream_catalog::model::SqlState::DatetimeFieldOverflow, "interval out of range")
    })?;
    Ok(IntervalMonthDayNano::new(interval.months, interval.days, nanos))
}
