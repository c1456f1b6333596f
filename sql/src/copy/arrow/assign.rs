//! Columns of an Arrow stream as columns of a relation.
//!
//! Owns which Arrow types stand for which SQL types: those of their own kind, wider or narrower, whatever the unit of
//! time; a value that does not fit is refused as INSERT refuses it. A column that has the stored type is checked in one
//! pass and used as it is. Text of json, and strings that are padded or cut, go through `ColumnBuilder`. Leaves out
//! names and NOT NULL.

use crate::types::{AssignRefused, ColumnBuilder, ColumnEncoder, ValueError, assign_array, canonical};
use crate::types::{DATE_END, DATE_FIRST, DAY, filled_bytes, least_bytes};
use arrow::array::{
    Array, ArrayRef, ArrowPrimitiveType, AsArray, BooleanArray, Int64Array, ListArray, MapArray, PrimitiveArray,
    StructArray, UInt32Array, new_null_array,
};
use arrow::buffer::{NullBuffer, OffsetBuffer, ScalarBuffer};
use arrow::compute::{cast, nullif, take};
use arrow::datatypes::{
    DataType, Date32Type, Date64Type, Decimal128Type, IntervalMonthDayNano, IntervalMonthDayNanoType, IntervalUnit,
    Time32MillisecondType, Time32SecondType, Time64MicrosecondType, Time64NanosecondType, TimeUnit,
    TimestampMicrosecondType, TimestampMillisecondType, TimestampNanosecondType, TimestampSecondType,
};
use millstream_catalog::SqlType;
use millstream_catalog::model::SqlState;
use millstream_catalog::schema::StructField;
use std::collections::HashSet;
use std::ops::RangeInclusive;
use std::sync::Arc;

/// A value that does not fit, and its row.
pub(super) type Refused = AssignRefused;

/// True if a column of `from` may go into one of `to`.
pub(super) fn is_assignable(from: &DataType, to: &SqlType) -> bool {
    use DataType::{
        Binary, BinaryView, Boolean, Date32, Date64, Dictionary, Duration, FixedSizeBinary, FixedSizeList, Interval,
        LargeBinary, LargeList, LargeUtf8, List, Map, Null, Struct, Time32, Time64, Timestamp, Utf8, Utf8View,
    };
    match (from, to) {
        (Null, _) | (Boolean, SqlType::Boolean) => true,
        (Dictionary(_, values), to) => is_assignable(values, to),
        (from, SqlType::SmallInt | SqlType::Integer | SqlType::BigInt) => from.is_integer(),
        (from, SqlType::Real | SqlType::Double) => from.is_integer() || from.is_floating(),
        (from, SqlType::Numeric { .. }) => from.is_numeric(),
        (
            Utf8 | LargeUtf8 | Utf8View,
            SqlType::Text | SqlType::Varchar(_) | SqlType::Char(_) | SqlType::Json | SqlType::Jsonb,
        )
        | (Binary | LargeBinary | BinaryView | FixedSizeBinary(_), SqlType::Bytea)
        | (FixedSizeBinary(16), SqlType::Uuid)
        | (Date32 | Date64, SqlType::Date | SqlType::Timestamp | SqlType::TimestampTz)
        | (Time32(_) | Time64(_), SqlType::Time)
        | (Timestamp(..), SqlType::Timestamp | SqlType::TimestampTz)
        | (Interval(_) | Duration(_), SqlType::Interval) => true,
        (List(item) | LargeList(item) | FixedSizeList(item, _), SqlType::Array(to)) => {
            is_assignable(item.data_type(), to)
        }
        (Struct(from), SqlType::Struct(to)) => from.iter().all(|field| {
            let to = to.iter().find(|to| to.name == *field.name());
            let is_only = from.iter().filter(|other| other.name() == field.name()).count() == 1;
            is_only && to.is_some_and(|to| is_assignable(field.data_type(), &to.sql_type))
        }),
        (Map(entries, _), SqlType::Map(key, value)) => match entries.data_type() {
            Struct(fields) => is_assignable(fields[0].data_type(), key) && is_assignable(fields[1].data_type(), value),
            _ => false,
        },
        _ => false,
    }
}

/// The values of `array`, which is assignable to `to`, as the relation stores them.
///
/// # Errors
/// What INSERT refuses, with the first row.
pub(super) fn assign(array: &ArrayRef, to: &SqlType) -> Result<ArrayRef, Refused> {
    match array.data_type() {
        DataType::Null => return Ok(new_null_array(&to.arrow(), array.len())),
        DataType::Dictionary(_, values) => return assign(&cast_to(array, values, to)?, to),
        _ => {}
    }
    match to {
        SqlType::Numeric { precision, .. } if !array.data_type().is_floating() => numeric(array, *precision, to),
        SqlType::Numeric { .. } | SqlType::Real if array.data_type().is_floating() => {
            let from = if *array.data_type() == DataType::Float64 { SqlType::Double } else { SqlType::Real };
            assign_array(array, &from, to)
        }
        SqlType::Text | SqlType::Varchar(_) | SqlType::Char(_) | SqlType::Json | SqlType::Jsonb => text(array, to),
        SqlType::Date => date(array),
        SqlType::Time => time(array),
        SqlType::Timestamp => Ok(Arc::new(timestamp(array)?.with_timezone_opt(None::<&str>))),
        SqlType::TimestampTz => Ok(Arc::new(timestamp(array)?.with_timezone("UTC"))),
        SqlType::Interval => interval(array),
        SqlType::Array(item) => list(array, item),
        SqlType::Struct(fields) => structs(array.as_struct(), fields, to),
        SqlType::Map(key, value) => map(array.as_map(), (key, value), to),
        _ => cast_to(array, &to.arrow(), to),
    }
}

/// The array as `wanted`, itself if it is that.
fn cast_to(array: &ArrayRef, wanted: &DataType, to: &SqlType) -> Result<ArrayRef, Refused> {
    if array.data_type() == wanted {
        return Ok(Arc::clone(array));
    }
    let refused = |_| Refused { row: 0, error: ValueError::unassignable(to, &array.data_type().to_string()) };
    let found = cast(array, wanted).map_err(refused)?;
    if found.null_count() > array.logical_null_count() {
        // What does not fit became NULL.
        let row = (0..array.len()).find(|row| found.is_null(*row) && array.is_valid(*row)).unwrap_or(0);
        return Err(misfit(array, row, to));
    }
    Ok(found)
}

/// The error that the value of a row gives as text.
#[cold]
fn misfit(array: &ArrayRef, row: usize, to: &SqlType) -> Refused {
    let mut text = Vec::new();
    if let Some(from) = SqlType::of_arrow(array.data_type()) {
        ColumnEncoder::new(array.as_ref(), &from).text(row, &mut text);
    }
    let error = ColumnBuilder::new(to, 1).append_text(&text).err();
    let error = error.unwrap_or_else(|| {
        ValueError::new(SqlState::NumericValueOutOfRange, format!("a value is out of range for type {to}"))
    });
    Refused { row, error }
}

/// The first row that has a value outside of `range`.
fn outside<T>(array: &PrimitiveArray<T>, range: RangeInclusive<i64>) -> Option<usize>
where
    T: ArrowPrimitiveType,
    T::Native: Into<i64>,
{
    if array.values().iter().all(|value| range.contains(&(*value).into())) {
        return None;
    }
    (0..array.len()).find(|row| array.is_valid(*row) && !range.contains(&array.value(*row).into()))
}

fn check<T>(array: &PrimitiveArray<T>, range: RangeInclusive<i64>, what: &str) -> Result<(), Refused>
where
    T: ArrowPrimitiveType,
    T::Native: Into<i64>,
{
    match outside(array, range) {
        None => Ok(()),
        Some(row) => {
            let error = ValueError::new(SqlState::DatetimeFieldOverflow, format!("{what} out of range"));
            Err(Refused { row, error })
        }
    }
}

/// Integers and decimals.
fn numeric(array: &ArrayRef, precision: u8, to: &SqlType) -> Result<ArrayRef, Refused> {
    let found = cast_to(array, &to.arrow(), to)?;
    let values = found.as_primitive::<Decimal128Type>();
    let end = 10_u128.pow(u32::from(precision));
    if values.values().iter().any(|value| value.unsigned_abs() >= end) {
        let is_misfit = |row: &usize| values.is_valid(*row) && values.value(*row).unsigned_abs() >= end;
        if let Some(row) = (0..values.len()).find(is_misfit) {
            return Err(misfit(&found, row, to));
        }
    }
    Ok(found)
}

fn text(array: &ArrayRef, to: &SqlType) -> Result<ArrayRef, Refused> {
    let found = cast_to(array, &DataType::Utf8, to)?;
    let strings = found.as_string::<i32>();
    let offsets = strings.value_offsets();
    let (start, end) = (offsets[0] as usize, offsets[offsets.len() - 1] as usize);
    let bytes = &strings.value_data()[start..end];
    let mut lengths = offsets.windows(2).map(|pair| (pair[1] - pair[0]).cast_unsigned());
    // As many bytes are at least as few characters.
    let is_as_stored = match to {
        SqlType::Text => true,
        SqlType::Varchar(chars_max) => lengths.all(|length| length <= *chars_max),
        SqlType::Char(chars) => bytes.is_ascii() && strings.null_count() == 0 && lengths.all(|length| length == *chars),
        _ => false,
    };
    if is_as_stored && !bytes.contains(&0) {
        return Ok(found);
    }
    let mut builder = ColumnBuilder::new(to, strings.len());
    for row in 0..strings.len() {
        match strings.is_null(row) {
            true => builder.append_null(),
            false => {
                builder.append_text(strings.value(row).as_bytes()).map_err(|error| Refused { row, error })?;
            }
        }
    }
    Ok(builder.finish())
}

fn date(array: &ArrayRef) -> Result<ArrayRef, Refused> {
    let range = DATE_FIRST..=DATE_END - 1;
    if *array.data_type() == DataType::Date32 {
        check(array.as_primitive::<Date32Type>(), range, "date")?;
        return Ok(Arc::clone(array));
    }
    let days: Int64Array = array.as_primitive::<Date64Type>().unary(|millis| millis.div_euclid(86_400_000));
    check(&days, range, "date")?;
    Ok(Arc::new(days.unary::<_, Date32Type>(|days| days as i32)))
}

fn time(array: &ArrayRef) -> Result<ArrayRef, Refused> {
    let micros: PrimitiveArray<Time64MicrosecondType> = match array.data_type() {
        DataType::Time32(TimeUnit::Second) => {
            array.as_primitive::<Time32SecondType>().unary(|seconds| i64::from(seconds) * 1_000_000)
        }
        DataType::Time32(_) => array.as_primitive::<Time32MillisecondType>().unary(|millis| i64::from(millis) * 1_000),
        DataType::Time64(TimeUnit::Nanosecond) => {
            array.as_primitive::<Time64NanosecondType>().unary(|nanos| nanos.div_euclid(1_000))
        }
        _ => array.as_primitive::<Time64MicrosecondType>().clone(),
    };
    check(&micros, 0..=DAY, "time")?;
    Ok(Arc::new(micros))
}

/// Times of any unit, and dates at midnight; zones are names only, as the values are in UTC.
fn timestamp(array: &ArrayRef) -> Result<PrimitiveArray<TimestampMicrosecondType>, Refused> {
    let micros = match array.data_type() {
        DataType::Timestamp(TimeUnit::Second, _) => scaled(array.as_primitive::<TimestampSecondType>(), 1_000_000)?,
        DataType::Timestamp(TimeUnit::Millisecond, _) => {
            scaled(array.as_primitive::<TimestampMillisecondType>(), 1_000)?
        }
        DataType::Timestamp(TimeUnit::Nanosecond, _) => {
            array.as_primitive::<TimestampNanosecondType>().unary(|nanos| nanos.div_euclid(1_000))
        }
        DataType::Date32 => scaled(array.as_primitive::<Date32Type>(), DAY)?,
        DataType::Date64 => scaled(array.as_primitive::<Date64Type>(), 1_000)?,
        _ => array.as_primitive::<TimestampMicrosecondType>().clone(),
    };
    check(&micros, DATE_FIRST * DAY..=i64::MAX, "timestamp")?;
    Ok(micros)
}

fn scaled<T>(array: &PrimitiveArray<T>, micros: i64) -> Result<PrimitiveArray<TimestampMicrosecondType>, Refused>
where
    T: ArrowPrimitiveType,
    T::Native: Into<i64>,
{
    check(array, i64::MIN / micros..=i64::MAX / micros, "timestamp")?;
    Ok(array.unary(|value| value.into().wrapping_mul(micros)))
}

/// Intervals are stored in whole microseconds.
fn interval(array: &ArrayRef) -> Result<ArrayRef, Refused> {
    if *array.data_type() != DataType::Interval(IntervalUnit::MonthDayNano) {
        return assign_array(array, &SqlType::Interval, &SqlType::Interval);
    }
    let values = array.as_primitive::<IntervalMonthDayNanoType>();
    if values.values().iter().all(|value| value.nanoseconds % 1_000 == 0) {
        return Ok(Arc::clone(array));
    }
    let whole = |value: IntervalMonthDayNano| {
        let nanoseconds = value.nanoseconds - value.nanoseconds % 1_000;
        IntervalMonthDayNano { nanoseconds, ..value }
    };
    Ok(Arc::new(values.unary::<_, IntervalMonthDayNanoType>(whole)))
}

fn list(array: &ArrayRef, item: &SqlType) -> Result<ArrayRef, Refused> {
    let (ends, values) = items(array).ok_or_else(|| Refused {
        row: 0,
        error: ValueError::new(SqlState::ProgramLimitExceeded, "a list of the arrow stream has too many elements"),
    })?;
    let values = assign(&values, item).map_err(|refused| row_of(&ends, refused))?;
    let offsets = OffsetBuffer::new(ScalarBuffer::from(ends));
    let field = Arc::new(item.field("item", true));
    let list = ListArray::try_new(field, offsets, values, array.nulls().cloned());
    let refused = |_| Refused { row: 0, error: ValueError::unassignable(item, "another list") };
    list.map(|list| Arc::new(list) as ArrayRef).map_err(refused)
}

/// What was refused of an element, with the row of its list.
fn row_of(ends: &[i32], refused: Refused) -> Refused {
    let row = ends.iter().position(|end| *end as usize > refused.row).unwrap_or(1) - 1;
    Refused { row, error: refused.error }
}

/// Fields go by name; those that are not there are NULL.
fn structs(found: &StructArray, fields: &[StructField], to: &SqlType) -> Result<ArrayRef, Refused> {
    let refused = || Refused { row: 0, error: ValueError::unassignable(to, "another struct") };
    let absent = found.nulls().map(|nulls| BooleanArray::new(!nulls.inner(), None));
    let child = |field: &StructField| match (found.column_by_name(&field.name), &absent) {
        (None, _) => Ok(new_null_array(&field.sql_type.arrow(), found.len())),
        (Some(child), None) => assign(child, &field.sql_type),
        // What stands in the fields of a NULL is no value.
        (Some(child), Some(absent)) => assign(&nullif(child, absent).map_err(|_| refused())?, &field.sql_type),
    };
    let children = fields.iter().map(child).collect::<Result<_, _>>()?;
    let DataType::Struct(fields) = to.arrow() else { return Err(refused()) };
    let made = StructArray::try_new_with_length(fields, children, found.nulls().cloned(), found.len());
    made.map(|made| Arc::new(made) as ArrayRef).map_err(|_| refused())
}

/// Keys are there, and each once.
fn map(found: &MapArray, (key, value): (&SqlType, &SqlType), to: &SqlType) -> Result<ArrayRef, Refused> {
    let refused = || Refused { row: 0, error: ValueError::unassignable(to, "another map") };
    let taken;
    let found = match (0..found.len()).any(|row| found.is_null(row) && found.value_length(row) > 0) {
        false => found,
        // What stands in a NULL is no entry.
        true => {
            let rows = UInt32Array::from_iter_values(0..u32::try_from(found.len()).unwrap_or(u32::MAX));
            taken = take(found, &rows, None).map_err(|_| refused())?;
            taken.as_map()
        }
    };
    let offsets = found.value_offsets();
    let (start, length) = (offsets[0] as usize, (offsets[found.len()] - offsets[0]) as usize);
    let ends: Vec<i32> = offsets.iter().map(|offset| offset - offsets[0]).collect();
    let part =
        |values: &ArrayRef, to| assign(&values.slice(start, length), to).map_err(|refused| row_of(&ends, refused));
    let (keys, values) = (part(found.keys(), key)?, part(found.values(), value)?);
    let distinct = canonical(Arc::clone(&keys));
    let texts = ColumnEncoder::new(distinct.as_ref(), key);
    let mut seen = HashSet::new();
    for (row, pair) in ends.windows(2).enumerate() {
        seen.clear();
        for entry in pair[0] as usize..pair[1] as usize {
            let mut text = Vec::new();
            let is_there = texts.text(entry, &mut text);
            if !is_there || !seen.insert(text) {
                let what = if is_there { "a key is there twice" } else { "a key is NULL" };
                let error = ValueError::unassignable(to, "a map of the arrow stream").detail(what.to_owned());
                return Err(Refused { row, error });
            }
        }
    }
    let DataType::Map(entries, _) = to.arrow() else { return Err(refused()) };
    let DataType::Struct(fields) = entries.data_type() else { return Err(refused()) };
    let pairs = StructArray::try_new(fields.clone(), vec![keys, values], None).map_err(|_| refused())?;
    let offsets = OffsetBuffer::new(ScalarBuffer::from(ends));
    let made = MapArray::try_new(Arc::clone(&entries), offsets, pairs, found.nulls().cloned(), false);
    made.map(|made| Arc::new(made) as ArrayRef).map_err(|_| refused())
}

/// Where the elements of each list begin, and where the last ends, in the elements of these lists alone; `None` for more
/// than 2^31, which [`stored_bytes`] finds before.
fn items(array: &ArrayRef) -> Option<(Vec<i32>, ArrayRef)> {
    Some(match array.data_type() {
        DataType::List(_) => {
            let list = array.as_list::<i32>();
            let (start, end) = (list.value_offsets()[0], list.value_offsets()[list.len()]);
            let ends = list.value_offsets().iter().map(|offset| offset - start).collect();
            (ends, list.values().slice(start as usize, (end - start) as usize))
        }
        DataType::LargeList(_) => {
            let list = array.as_list::<i64>();
            let (start, end) = (list.value_offsets()[0], list.value_offsets()[list.len()]);
            let ends = list.value_offsets().iter().map(|offset| i32::try_from(offset - start).ok());
            (ends.collect::<Option<_>>()?, list.values().slice(start as usize, (end - start) as usize))
        }
        _ => {
            let list = array.as_fixed_size_list();
            let length = usize::try_from(list.value_length()).ok()?;
            let ends = (0..=list.len()).map(|row| i32::try_from(row.checked_mul(length)?).ok());
            (ends.collect::<Option<_>>()?, Arc::clone(list.values()))
        }
    })
}

/// Bytes that `array` takes at least once it is a column of `to`: dictionaries and views are resolved, numbers become
/// wider, and NULLs that took no bytes take those of a value.
pub(super) fn stored_bytes(array: &dyn Array, to: &SqlType) -> usize {
    let wide = |width: usize| array.len().saturating_mul(width);
    let items = |values: &ArrayRef, item: &SqlType, start: usize, end: usize| {
        wide(size_of::<i32>()).saturating_add(stored_bytes(values.slice(start, end - start).as_ref(), item))
    };
    match (array.data_type(), to) {
        (DataType::Null, _) => wide(least_bytes(&to.arrow())),
        (DataType::Utf8View, _) => view_bytes(array.as_string_view().views(), array.nulls()) + wide(filled_bytes(to)),
        (DataType::BinaryView, _) => view_bytes(array.as_binary_view().views(), array.nulls()) + wide(filled_bytes(to)),
        (DataType::Dictionary(..), _) => {
            let dictionary = array.as_any_dictionary();
            let values = dictionary.values();
            if values.is_empty() {
                return wide(filled_bytes(to));
            }
            let length = |key: usize| value_bytes(values.as_ref(), key);
            dictionary.normalized_keys().into_iter().map(length).fold(wide(filled_bytes(to)), usize::saturating_add)
        }
        (DataType::List(_), SqlType::Array(item)) => {
            let list = array.as_list::<i32>();
            items(list.values(), item, list.value_offsets()[0] as usize, list.value_offsets()[list.len()] as usize)
        }
        (DataType::LargeList(_), SqlType::Array(item)) => {
            let list = array.as_list::<i64>();
            items(list.values(), item, list.value_offsets()[0] as usize, list.value_offsets()[list.len()] as usize)
        }
        (DataType::FixedSizeList(..), SqlType::Array(item)) => {
            let values = array.as_fixed_size_list().values();
            items(values, item, 0, values.len())
        }
        (DataType::Struct(_), SqlType::Struct(fields)) => {
            let found = array.as_struct();
            let child = |field: &StructField| match found.column_by_name(&field.name) {
                Some(child) => stored_bytes(child.as_ref(), &field.sql_type),
                None => wide(filled_bytes(&field.sql_type)),
            };
            fields.iter().map(child).fold(array.len(), usize::saturating_add)
        }
        (DataType::Map(..), SqlType::Map(key, value)) => {
            let map = array.as_map();
            let (start, end) = (map.value_offsets()[0] as usize, map.value_offsets()[map.len()] as usize);
            items(map.keys(), key, start, end).saturating_add(items(map.values(), value, start, end))
        }
        _ => wide(filled_bytes(to)),
    }
}

/// The length of a view is its first 32 bits.
fn view_bytes(views: &[u128], nulls: Option<&NullBuffer>) -> usize {
    let length = |view: &u128| *view as u32 as usize;
    match nulls {
        None => views.iter().map(length).sum(),
        Some(nulls) => views.iter().zip(nulls).filter(|(_, is_valid)| *is_valid).map(|(view, _)| length(view)).sum(),
    }
}

fn value_bytes(values: &dyn Array, at: usize) -> usize {
    match values.data_type() {
        DataType::Utf8 => values.as_string::<i32>().value_length(at).unsigned_abs() as usize,
        DataType::LargeUtf8 => values.as_string::<i64>().value_length(at).unsigned_abs() as usize,
        DataType::Binary => values.as_binary::<i32>().value_length(at).unsigned_abs() as usize,
        DataType::LargeBinary => values.as_binary::<i64>().value_length(at).unsigned_abs() as usize,
        DataType::Utf8View => values.as_string_view().views()[at] as u32 as usize,
        DataType::BinaryView => values.as_binary_view().views()[at] as u32 as usize,
        DataType::FixedSizeBinary(width) => usize::try_from(*width).unwrap_or(0),
        other => other.primitive_width().unwrap_or(1),
    }
}
