//! `repeat`, `replace` and others that make values of any size from small ones, refused before these are more than a batch may hold.
//!
//! The library makes them at once, outside the query's memory accounting. Pure.

use super::errors::fail;
use arrow::array::{Array, AsArray, StringArray};
use arrow::compute::{cast, concat};
use arrow::datatypes::{DataType, Int64Type};
use datafusion::common::Result;
use datafusion::logical_expr::{ColumnarValue, ScalarFunctionArgs, ScalarUDF};
use millstream_catalog::model::SqlState;

/// Bytes that one call makes for one batch.
const TEXT_BYTES_MAX: i64 = 256 << 20;
/// Bytes an item of an array is counted as.
const ITEM_BYTES: i64 = 16;

/// The functions that need it.
pub(super) const NAMES: [&str; 8] =
    ["repeat", "lpad", "rpad", "array_repeat", "array_resize", "replace", "regexp_replace", "array_to_string"];

/// The length of each row's text, or one for all.
fn lengths(text: &ColumnarValue) -> Result<Vec<i64>> {
    let array = text.to_array(1)?;
    let lengths = cast(&arrow::compute::kernels::length::length(&array)?, &DataType::Int64)?;
    Ok(lengths.as_primitive::<Int64Type>().iter().map(|length| length.unwrap_or(0)).collect())
}

/// A call of `function` with its result bounded.
pub(super) fn bounded(function: &ScalarUDF, args: ScalarFunctionArgs) -> Result<ColumnarValue> {
    let is_scalar = args.args.iter().all(|arg| matches!(arg, ColumnarValue::Scalar(_)));
    let rows = if is_scalar { 1 } else { args.number_rows };
    if bytes(function.name(), &args.args, rows)? <= TEXT_BYTES_MAX {
        return function.invoke_with_args(args);
    }
    if function.name() != "regexp_replace" || rows < 2 {
        return Err(fail(SqlState::ProgramLimitExceeded, "requested length too large"));
    }
    // What a pattern matches is not known before, so the bound is wide: fewer rows at once come below it.
    let half = rows / 2;
    let parts = [part(&args, 0, half), part(&args, half, rows - half)];
    let parts = parts.map(|args| {
        let rows = args.number_rows;
        bounded(function, args)?.into_array(rows)
    });
    let [first, second] = parts;
    let (first, second) = (first?, second?);
    if first.get_array_memory_size() + second.get_array_memory_size() > TEXT_BYTES_MAX as usize * 2 {
        return Err(fail(SqlState::ProgramLimitExceeded, "requested length too large"));
    }
    Ok(ColumnarValue::Array(concat(&[&first, &second])?))
}

/// The arguments of `count` rows from row `start`.
fn part(args: &ScalarFunctionArgs, start: usize, count: usize) -> ScalarFunctionArgs {
    let slice = |arg: &ColumnarValue| match arg {
        ColumnarValue::Array(array) => ColumnarValue::Array(array.slice(start, count)),
        scalar => scalar.clone(),
    };
    ScalarFunctionArgs { args: args.args.iter().map(slice).collect(), number_rows: count, ..args.clone() }
}

/// The most bytes that a call of `name` makes.
fn bytes(name: &str, args: &[ColumnarValue], rows: usize) -> Result<i64> {
    match (name, args) {
        ("replace", [text, from, to]) => {
            let crude = {
                let (text, from, to) = (lengths(text)?, lengths(from)?, lengths(to)?);
                sum(rows, |row| {
                    grown(at(&text, row), at(&text, row) / at(&from, row).max(1) + 1, at(&from, row), at(&to, row))
                })
            };
            if crude <= TEXT_BYTES_MAX {
                return Ok(crude);
            }
            let (text, from, to) = (texts(text)?, texts(from)?, texts(to)?);
            Ok(sum(rows, |row| {
                let (text, from, to) = (text_at(&text, row), text_at(&from, row), text_at(&to, row));
                grown(text.len() as i64, text.matches(from).count() as i64, from.len() as i64, to.len() as i64)
            }))
        }
        ("regexp_replace", [text, _, to, ..]) => {
            let (text, to) = (lengths(text)?, texts(to)?);
            Ok(sum(rows, |row| {
                let (text, to) = (at(&text, row), text_at(&to, row));
                // Each reference to what was matched repeats at most all of the text.
                let references = to.matches(['\\', '$']).count() as i64 + 1;
                text.saturating_mul(references).saturating_add((text + 1).saturating_mul(to.len() as i64))
            }))
        }
        ("array_to_string", [list, between, ..]) => {
            let (items, between) = (list.to_array(rows)?, lengths(between)?);
            let own = items.to_data().get_slice_memory_size()? as i64;
            let count = lengths(list)?;
            let all = sum(rows, |row| at(&count, row).saturating_mul(at(&between, row).saturating_add(4)));
            // A number takes up to three times its bytes as text.
            Ok(all.saturating_add(own.saturating_mul(3)))
        }
        (_, [value, count, ..]) => {
            let counts = cast(&count.to_array(1)?, &DataType::Int64)?;
            let counts: Vec<i64> =
                counts.as_primitive::<Int64Type>().iter().map(|count| count.unwrap_or(0).max(0)).collect();
            // The padding functions count characters of at most four bytes.
            let unit = match name {
                "repeat" => lengths(value)?,
                "lpad" | "rpad" => vec![4],
                // The item is the first argument, or the third of array_resize.
                _ => {
                    let item = args.get(2).unwrap_or(value).to_array(1)?;
                    vec![ITEM_BYTES.max(item.get_array_memory_size() as i64 / item.len().max(1) as i64)]
                }
            };
            Ok(sum(rows, |row| at(&unit, row).saturating_mul(at(&counts, row))))
        }
        _ => Ok(0),
    }
}

fn sum(rows: usize, bytes: impl Fn(usize) -> i64) -> i64 {
    (0..rows).map(bytes).fold(0, i64::saturating_add)
}

/// The bytes of a text with `count` of its parts replaced.
fn grown(text: i64, count: i64, from: i64, to: i64) -> i64 {
    count.saturating_mul((to - from).max(0)).saturating_add(text)
}

/// A text argument, one row or one for each.
fn texts(text: &ColumnarValue) -> Result<StringArray> {
    Ok(cast(&text.to_array(1)?, &DataType::Utf8)?.as_string::<i32>().clone())
}

/// A row's value, or the one for all.
fn at(values: &[i64], row: usize) -> i64 {
    values.get(row).or(values.first()).copied().unwrap_or(0)
}

fn text_at(texts: &StringArray, row: usize) -> &str {
    let row = if row < texts.len() { row } else { 0 };
    if row < texts.len() && texts.is_valid(row) { texts.value(row) } else { "" }
}
