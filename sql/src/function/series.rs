//! `generate_series(start, stop [, step])` as an array, for `unnest`.
//!
//! Bounded by `SERIES_ROWS_MAX` (54000): the values are made at once. Pure.

use super::cast::bad_argument;
use super::errors::fail;
use arrow::array::{ArrayRef, AsArray, Int32Array, Int64Array, ListArray, TimestampMicrosecondArray, new_null_array};
use arrow::buffer::OffsetBuffer;
use arrow::compute::kernels::numeric;
use arrow::compute::{cast, concat};
use arrow::datatypes::{
    DataType, Field, Int64Type, IntervalMonthDayNanoType, IntervalUnit, TimeUnit, TimestampMicrosecondType,
};
use datafusion::common::{Result, ScalarValue};
use datafusion::logical_expr::{ColumnarValue, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature, Volatility};
use millstream_catalog::model::SqlState;
use std::sync::Arc;

/// Values of one series; 80 MB of them.
const SERIES_ROWS_MAX: usize = 10_000_000;

#[derive(Debug, PartialEq, Eq, Hash)]
struct Series {
    signature: Signature,
}

/// The name of the function; it counts as volatile so that it is not computed while a statement is planned.
pub(crate) const SERIES: &str = "$series";

/// The function `$series`, which `generate_series` becomes.
pub(super) fn function() -> ScalarUDF {
    ScalarUDF::new_from_impl(Series { signature: Signature::variadic_any(Volatility::Volatile) })
}

fn item_type(types: &[DataType]) -> Result<DataType> {
    let is_int = |data_type: &DataType| {
        matches!(data_type, DataType::Int16 | DataType::Int32 | DataType::Int64 | DataType::Null)
    };
    let step = types.get(2);
    match types {
        [a, b] | [a, b, _] if is_int(a) && is_int(b) && step.is_none_or(is_int) => {
            let is_wide = types.contains(&DataType::Int64);
            Ok(if is_wide { DataType::Int64 } else { DataType::Int32 })
        }
        [DataType::Timestamp(_, zone), DataType::Timestamp(..) | DataType::Date32 | DataType::Utf8, _] => {
            Ok(DataType::Timestamp(TimeUnit::Microsecond, zone.clone()))
        }
        [DataType::Date32, DataType::Date32 | DataType::Timestamp(_, None), _] => {
            Ok(DataType::Timestamp(TimeUnit::Microsecond, None))
        }
        _ => Err(bad_argument("generate_series")),
    }
}

impl ScalarUDFImpl for Series {
    fn name(&self) -> &str {
        SERIES
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, types: &[DataType]) -> Result<DataType> {
        Ok(DataType::List(Arc::new(Field::new_list_field(item_type(types)?, true))))
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let rows = args.number_rows;
        let DataType::List(item) = args.return_field.data_type() else { return Err(bad_argument("generate_series")) };
        let is_int = item.data_type().is_integer();
        let step_type = if is_int { DataType::Int64 } else { DataType::Interval(IntervalUnit::MonthDayNano) };
        let value_type = if is_int { DataType::Int64 } else { item.data_type().clone() };
        let column = |at: usize, to: &DataType| -> Result<ArrayRef> {
            match args.args.get(at) {
                Some(value) => Ok(cast(&value.to_array(rows)?, to)?),
                None => Ok(ScalarValue::Int64(Some(1)).to_array_of_size(rows)?),
            }
        };
        let (start, stop, step) = (column(0, &value_type)?, column(1, &value_type)?, column(2, &step_type)?);
        let mut parts: Vec<ArrayRef> = Vec::new();
        let mut lengths = Vec::with_capacity(rows);
        let mut total = 0;
        for row in 0..rows {
            let has_null = [&start, &stop, &step].iter().any(|column| column.is_null(row));
            let part: ArrayRef = match (has_null, is_int) {
                (true, _) => new_null_array(&value_type, 0),
                (false, true) => {
                    let at = |column: &ArrayRef| column.as_primitive::<Int64Type>().value(row);
                    Arc::new(integers(at(&start), at(&stop), at(&step))?)
                }
                (false, false) => times(&start.slice(row, 1), &stop.slice(row, 1), &step.slice(row, 1))?,
            };
            lengths.push(part.len());
            total += part.len();
            if total > SERIES_ROWS_MAX {
                return Err(too_long());
            }
            parts.push(part);
        }
        let values = match parts.is_empty() {
            true => new_null_array(&value_type, 0),
            false => concat(&parts.iter().map(AsRef::as_ref).collect::<Vec<_>>())?,
        };
        let values: ArrayRef = match item.data_type() {
            DataType::Int32 => Arc::new(narrow(&values)?),
            _ => values,
        };
        let lists = ListArray::try_new(Arc::clone(item), OffsetBuffer::from_lengths(lengths), values, None)?;
        Ok(ColumnarValue::Array(Arc::new(lists)))
    }
}

fn narrow(values: &ArrayRef) -> Result<Int32Array> {
    let cast = cast(values, &DataType::Int32)?;
    Ok(cast.as_primitive().clone())
}

fn too_long() -> datafusion::common::DataFusionError {
    fail(SqlState::ProgramLimitExceeded, format!("generate_series gives at most {SERIES_ROWS_MAX} rows"))
}

fn zero_step() -> datafusion::common::DataFusionError {
    fail(SqlState::InvalidParameterValue, "step size cannot equal zero")
}

fn integers(start: i64, stop: i64, step: i64) -> Result<Int64Array> {
    if step == 0 {
        return Err(zero_step());
    }
    let span = (i128::from(stop) - i128::from(start)) / i128::from(step);
    let is_empty = (stop < start) == (step > 0) && stop != start;
    let count = if is_empty { 0 } else { usize::try_from(span + 1).map_err(|_| too_long())? };
    if count > SERIES_ROWS_MAX {
        return Err(too_long());
    }
    // Within stop, so within 64 bits.
    let value = |at: i64| start.wrapping_add(at.wrapping_mul(step));
    Ok((0..i64::try_from(count).unwrap_or(0)).map(value).collect())
}

fn times(start: &ArrayRef, stop: &ArrayRef, step: &ArrayRef) -> Result<ArrayRef> {
    let interval = step.as_primitive::<IntervalMonthDayNanoType>().value(0);
    let parts = [i64::from(interval.months), i64::from(interval.days), interval.nanoseconds];
    if parts.iter().all(|part| *part == 0) {
        return Err(zero_step());
    }
    let is_down = parts.iter().find(|part| **part != 0).is_some_and(|part| *part < 0);
    let at = |array: &ArrayRef| array.as_primitive::<TimestampMicrosecondType>().value(0);
    let end = at(stop);
    let mut values = Vec::new();
    let mut current = Arc::clone(start);
    loop {
        let value = at(&current);
        if (is_down && value < end) || (!is_down && value > end) {
            break;
        }
        if values.len() >= SERIES_ROWS_MAX {
            return Err(too_long());
        }
        values.push(value);
        current = numeric::add(&current, step)
            .map_err(|_| fail(SqlState::DatetimeFieldOverflow, "timestamp out of range"))?;
    }
    let values = TimestampMicrosecondArray::from(values);
    let zone = match start.data_type() {
        DataType::Timestamp(_, zone) => zone.clone(),
        _ => None,
    };
    Ok(Arc::new(values.with_timezone_opt(zone)))
}
