//! One form for values that are equal but not the same bytes, and keys with the order of values.
//!
//! Keys and groups are compared as bytes. Leaves out where that is needed. Pure.

use super::error::ValueError;
use super::json_node::{canonicalise, parse, sort_key};
use arrow::array::{
    Array, ArrayRef, AsArray, BinaryBuilder, Decimal128Array, Float32Array, Float64Array, IntervalMonthDayNanoArray,
    ListArray, StringArray, StructArray,
};
use arrow::compute::cast;
use arrow::datatypes::{
    DataType, Field, Fields, Float32Type, Float64Type, IntervalMonthDayNano, IntervalMonthDayNanoType,
};
use millstream_catalog::SqlType;
use millstream_catalog::schema::StructField;
use std::sync::Arc;

const DAY_NANOS: i128 = 86_400_000_000_000;
/// What the length of an interval is stored as.
const LENGTH: DataType = DataType::Decimal128(38, 0);

/// `array` with one form of zero and of NaN, so that values that are equal in SQL are equal bytes.
///
/// For columns whose SQL type is known, [`canonical_of`] does more.
pub fn canonical(array: ArrayRef) -> ArrayRef {
    match array.data_type() {
        DataType::Float64 => match array.as_any().downcast_ref::<Float64Array>() {
            Some(floats) => {
                Arc::new(floats.unary::<_, Float64Type>(|value| if value.is_nan() { f64::NAN } else { value + 0.0 }))
            }
            None => array,
        },
        DataType::Float32 => match array.as_any().downcast_ref::<Float32Array>() {
            Some(floats) => {
                Arc::new(floats.unary::<_, Float32Type>(|value| if value.is_nan() { f32::NAN } else { value + 0.0 }))
            }
            None => array,
        },
        _ => array,
    }
}

/// `array` with one form of NaN: how it is stored. Zeros stay as they are, since -0 prints as it was written.
pub(crate) fn with_one_nan(array: ArrayRef) -> ArrayRef {
    let is_other = match array.data_type() {
        DataType::Float64 => {
            array.as_primitive::<Float64Type>().values().iter().any(|v| v.is_nan() && v.to_bits() != f64::NAN.to_bits())
        }
        DataType::Float32 => {
            array.as_primitive::<Float32Type>().values().iter().any(|v| v.is_nan() && v.to_bits() != f32::NAN.to_bits())
        }
        _ => false,
    };
    match array.data_type() {
        DataType::Float64 if is_other => Arc::new(
            array.as_primitive::<Float64Type>().unary::<_, Float64Type>(|v| if v.is_nan() { f64::NAN } else { v }),
        ),
        DataType::Float32 if is_other => Arc::new(
            array.as_primitive::<Float32Type>().unary::<_, Float32Type>(|v| if v.is_nan() { f32::NAN } else { v }),
        ),
        _ => array,
    }
}

/// As [`canonical`], for a column of `sql_type`: `jsonb` too, also inside of arrays and structs.
///
/// # Errors
/// 22003 for a number in a `jsonb` that no numeric holds.
pub fn canonical_of(array: ArrayRef, sql_type: &SqlType) -> Result<ArrayRef, ValueError> {
    match sql_type {
        SqlType::Jsonb => {
            let Some(texts) = texts(&array) else { return Ok(array) };
            if !texts.value_data().contains(&b'.') {
                return Ok(array);
            }
            let one = |text: Option<&str>| text.map(canonical_json).transpose();
            Ok(Arc::new(texts.iter().map(one).collect::<Result<StringArray, _>>()?))
        }
        _ => inside(array, sql_type, &canonical_of).map(canonical),
    }
}

/// The type of [`sort_key_of`].
pub(crate) fn sort_key_type(sql_type: &SqlType) -> SqlType {
    match sql_type {
        SqlType::Jsonb => SqlType::Bytea,
        SqlType::Interval => SqlType::Numeric { precision: 38, scale: 0 },
        SqlType::Array(item) => SqlType::Array(Box::new(sort_key_type(item))),
        SqlType::Struct(fields) => {
            let key = |field: &StructField| StructField {
                name: field.name.clone(),
                sql_type: sort_key_type(&field.sql_type),
            };
            SqlType::Struct(fields.iter().map(key).collect())
        }
        other => other.clone(),
    }
}

/// The lengths of intervals in nanoseconds, a month counted as 30 days and a day as 24 hours.
///
/// Source: PostgreSQL 15, `interval_cmp_value` in `timestamp.c`.
pub(crate) fn lengths_of(intervals: &IntervalMonthDayNanoArray) -> Decimal128Array {
    let length = |value: IntervalMonthDayNano| {
        (i128::from(value.months) * 30 + i128::from(value.days)) * DAY_NANOS + i128::from(value.nanoseconds)
    };
    // Of the type's default precision, 38, and of no scale.
    intervals.iter().map(|value| value.map(length)).collect::<Decimal128Array>().with_data_type(LENGTH)
}

/// A column of `sql_type` with each `jsonb` as bytes of the same order, each interval as its length and each
/// floating-point number in its one form, also inside of arrays and structs.
///
/// # Errors
/// 22003 for a number in a `jsonb` that no numeric holds.
pub(crate) fn sort_key_of(array: ArrayRef, sql_type: &SqlType) -> Result<ArrayRef, ValueError> {
    if let Some(intervals) = array.as_primitive_opt::<IntervalMonthDayNanoType>() {
        return Ok(Arc::new(lengths_of(intervals)));
    }
    let SqlType::Jsonb = sql_type else { return inside(array, sql_type, &sort_key_of).map(canonical) };
    let Some(texts) = texts(&array) else { return Ok(array) };
    let mut keys = BinaryBuilder::with_capacity(texts.len(), texts.value_data().len());
    let mut key = Vec::new();
    for text in texts.iter() {
        let Some(text) = text else {
            keys.append_null();
            continue;
        };
        key.clear();
        sort_key(&parse(text.as_bytes())?, &mut key)?;
        keys.append_value(&key);
    }
    Ok(Arc::new(keys.finish()))
}

fn texts(array: &ArrayRef) -> Option<StringArray> {
    cast(array, &DataType::Utf8).ok()?.as_string_opt::<i32>().cloned()
}

fn canonical_json(text: &str) -> Result<String, ValueError> {
    let mut out = Vec::with_capacity(text.len());
    canonicalise(text.as_bytes(), &mut out)?;
    String::from_utf8(out).map_err(|_| ValueError::syntax("jsonb", text.as_bytes()))
}

type Change = dyn Fn(ArrayRef, &SqlType) -> Result<ArrayRef, ValueError>;

/// The field of what became of a child: its SQL type goes with its Arrow type.
fn changed(field: &Field, child: &ArrayRef) -> Field {
    match field.data_type() == child.data_type() {
        true => field.clone(),
        false => Field::new(field.name(), child.data_type().clone(), field.is_nullable()),
    }
}

/// The array with `change` done to the items of a list and the fields of a struct.
fn inside(array: ArrayRef, sql_type: &SqlType, change: &Change) -> Result<ArrayRef, ValueError> {
    if let (SqlType::Struct(types), Some(value)) = (sql_type, array.as_struct_opt()) {
        let children = value.columns().iter().zip(types);
        let children: Vec<ArrayRef> =
            children.map(|(child, field)| change(Arc::clone(child), &field.sql_type)).collect::<Result<_, _>>()?;
        let fields = value.fields().iter().zip(&children);
        let fields: Fields = fields.map(|(field, child)| changed(field, child)).collect();
        let made = StructArray::try_new_with_length(fields, children, value.nulls().cloned(), value.len());
        return Ok(made.map_or(array, |made| Arc::new(made)));
    }
    match (sql_type, array.as_list_opt::<i32>()) {
        (SqlType::Array(item), Some(list)) => {
            let items = change(Arc::clone(list.values()), item)?;
            let DataType::List(field) = list.data_type() else { return Ok(array) };
            let field = changed(field, &items);
            let list = ListArray::try_new(Arc::new(field), list.offsets().clone(), items, list.nulls().cloned());
            Ok(list.map_or(array, |list| Arc::new(list)))
        }
        _ => Ok(array),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use arrow::array::AsArray;

    #[test]
    fn zeros_and_nans_have_one_form() {
        let array: ArrayRef = Arc::new(Float64Array::from(vec![Some(-0.0), Some(-f64::NAN), None, Some(1.5)]));
        let array = canonical(array);
        let array = array.as_primitive::<Float64Type>();
        assert_eq!(array.value(0).to_bits(), 0.0_f64.to_bits());
        assert_eq!(array.value(1).to_bits(), f64::NAN.to_bits());
        assert!(array.is_null(2));
        assert_eq!(array.value(3), 1.5);
    }
}
