//! Arithmetic of dates, times and intervals, as PostgreSQL has it.
//!
//! Source: PostgreSQL 15, table 9.31 "Date/Time Operators". Overflow is 22008. Pure.

use super::arith::Arithmetic;
use super::errors::{external, fail};
use crate::error::SqlError;
use arrow::array::{
    Array, ArrayRef, AsArray, Date32Array, Int32Array, IntervalMonthDayNanoArray, PrimitiveArray,
    Time64MicrosecondArray,
};
use arrow::compute::kernels::numeric;
use arrow::compute::{cast, try_binary};
use arrow::datatypes::{
    DataType, Date32Type, Float64Type, Int32Type, IntervalMonthDayNano, IntervalMonthDayNanoType, IntervalUnit,
    Time64MicrosecondType, TimeUnit, TimestampMicrosecondType,
};
use arrow::error::ArrowError;
use datafusion::common::{Result, ScalarValue};
use datafusion::logical_expr::ColumnarValue;
use millstream_catalog::model::SqlState;
use std::sync::Arc;

const DAY_MICROS: i64 = 86_400_000_000;
const DAY_NANOS: i64 = 86_400_000_000_000;
const DAYS_PER_MONTH: f64 = 30.0;

fn interval() -> DataType {
    DataType::Interval(IntervalUnit::MonthDayNano)
}

fn timestamp() -> DataType {
    DataType::Timestamp(TimeUnit::Microsecond, None)
}

fn is_number(data_type: &DataType) -> bool {
    data_type.is_numeric()
}

/// The type of `left op right`, where there is such an operator.
pub(super) fn result_type(op: Arithmetic, left: &DataType, right: &DataType) -> Option<DataType> {
    use Arithmetic::{Add, Divide, Multiply, Subtract};
    use DataType::{Date32, Int16, Int32, Interval, Time64, Timestamp};
    Some(match (op, left, right) {
        (Add, Date32, Int16 | Int32) | (Add, Int16 | Int32, Date32) | (Subtract, Date32, Int16 | Int32) => Date32,
        (Subtract, Date32, Date32) => Int32,
        (Add | Subtract, Date32, Interval(_)) | (Add, Interval(_), Date32) => timestamp(),
        (Add, Date32, Time64(_)) | (Add, Time64(_), Date32) => timestamp(),
        (Add | Subtract, Timestamp(_, _), Interval(_)) => left.clone(),
        (Add, Interval(_), Timestamp(_, _)) => right.clone(),
        (Subtract, Timestamp(_, _), Timestamp(_, _)) | (Subtract, Time64(_), Time64(_)) => interval(),
        (Add | Subtract, Time64(_), Interval(_)) => left.clone(),
        (Add, Interval(_), Time64(_)) => right.clone(),
        (Add | Subtract, Interval(_), Interval(_)) => interval(),
        (Multiply | Divide, Interval(_), number) if is_number(number) => interval(),
        (Multiply, number, Interval(_)) if is_number(number) => interval(),
        _ => return None,
    })
}

/// The values of `left op right`, in the type [`result_type`] gave.
pub(super) fn apply(op: Arithmetic, left: &ColumnarValue, right: &ColumnarValue, rows: usize) -> Result<ColumnarValue> {
    let is_scalar = matches!((left, right), (ColumnarValue::Scalar(_), ColumnarValue::Scalar(_)));
    let rows = if is_scalar { 1 } else { rows };
    let (left, right) = (left.to_array(rows)?, right.to_array(rows)?);
    let result = arrays(op, &left, &right).map_err(|error| match error {
        datafusion::common::DataFusionError::ArrowError(error, _) => match *error {
            ArrowError::DivideByZero => fail(SqlState::DivisionByZero, "division by zero"),
            _ => fail(SqlState::DatetimeFieldOverflow, "date or time out of range"),
        },
        other => other,
    })?;
    match is_scalar {
        true => Ok(ColumnarValue::Scalar(ScalarValue::try_from_array(&result, 0)?)),
        false => Ok(ColumnarValue::Array(result)),
    }
}

fn arrays(op: Arithmetic, left: &ArrayRef, right: &ArrayRef) -> Result<ArrayRef> {
    use DataType::{Date32, Interval, Time64, Timestamp};
    match (left.data_type(), right.data_type()) {
        (Date32, Date32) => {
            let difference: Int32Array =
                try_binary(left.as_primitive::<Date32Type>(), right.as_primitive::<Date32Type>(), |a: i32, b: i32| {
                    a.checked_sub(b).ok_or_else(overflow)
                })?;
            Ok(Arc::new(difference))
        }
        (Date32, Interval(_)) => arrays(op, &cast(left, &timestamp())?, right),
        (Date32, Time64(_)) => date_and_time(left, right),
        (Time64(_), Date32) => date_and_time(right, left),
        (Date32, _) => date_and_days(op, left, right),
        (_, Date32) if is_number(left.data_type()) => date_and_days(op, right, left),
        (Timestamp(_, _), Timestamp(_, _)) => between_timestamps(left, right),
        (Time64(_), Time64(_)) => {
            let difference: IntervalMonthDayNanoArray = try_binary(
                left.as_primitive::<Time64MicrosecondType>(),
                right.as_primitive::<Time64MicrosecondType>(),
                |a: i64, b: i64| -> Result<_, ArrowError> {
                    Ok(IntervalMonthDayNano::new(0, 0, (a - b).checked_mul(1_000).ok_or_else(overflow)?))
                },
            )?;
            Ok(Arc::new(difference))
        }
        (Time64(_), Interval(_)) => time_and_interval(op, left, right),
        (Interval(_), Time64(_)) => time_and_interval(op, right, left),
        (Interval(_), Timestamp(_, _)) => Ok(numeric::add(right, left)?),
        (Interval(_), Date32) => arrays(op, &cast(right, &timestamp())?, left),
        (Timestamp(_, _), Interval(_)) | (Interval(_), Interval(_)) => match op {
            Arithmetic::Subtract => Ok(numeric::sub(left, right)?),
            _ => Ok(numeric::add(left, right)?),
        },
        (Interval(_), number) if is_number(number) => scale(op, left, right),
        (number, Interval(_)) if is_number(number) => scale(op, right, left),
        _ => Err(external(SqlError::internal("no such operator"))),
    }
}

fn overflow() -> ArrowError {
    ArrowError::ArithmeticOverflow(String::new())
}

fn date_and_days(op: Arithmetic, dates: &ArrayRef, days: &ArrayRef) -> Result<ArrayRef> {
    let days = cast(days, &DataType::Int32)?;
    let sum: Date32Array =
        try_binary(dates.as_primitive::<Date32Type>(), days.as_primitive::<Int32Type>(), |date: i32, days: i32| {
            match op {
                Arithmetic::Subtract => date.checked_sub(days),
                _ => date.checked_add(days),
            }
            .ok_or_else(overflow)
        })?;
    Ok(Arc::new(sum))
}

fn date_and_time(dates: &ArrayRef, times: &ArrayRef) -> Result<ArrayRef> {
    let sum: PrimitiveArray<TimestampMicrosecondType> = try_binary(
        dates.as_primitive::<Date32Type>(),
        times.as_primitive::<Time64MicrosecondType>(),
        |date: i32, time: i64| {
            i64::from(date).checked_mul(DAY_MICROS).and_then(|day| day.checked_add(time)).ok_or_else(overflow)
        },
    )?;
    Ok(Arc::new(sum))
}

/// Days and a rest shorter than a day, both of the sign of the difference.
fn between_timestamps(left: &ArrayRef, right: &ArrayRef) -> Result<ArrayRef> {
    let difference: IntervalMonthDayNanoArray = try_binary(
        left.as_primitive::<TimestampMicrosecondType>(),
        right.as_primitive::<TimestampMicrosecondType>(),
        |a: i64, b: i64| {
            let micros = a.checked_sub(b).ok_or_else(overflow)?;
            let days = i32::try_from(micros / DAY_MICROS).map_err(|_| overflow())?;
            Ok::<_, ArrowError>(IntervalMonthDayNano::new(0, days, micros % DAY_MICROS * 1_000))
        },
    )?;
    Ok(Arc::new(difference))
}

/// Wraps around midnight; months and days of the interval do not count.
fn time_and_interval(op: Arithmetic, times: &ArrayRef, intervals: &ArrayRef) -> Result<ArrayRef> {
    let sum: Time64MicrosecondArray = try_binary(
        times.as_primitive::<Time64MicrosecondType>(),
        intervals.as_primitive::<IntervalMonthDayNanoType>(),
        |time: i64, interval: IntervalMonthDayNano| {
            let micros = interval.nanoseconds / 1_000;
            let moved = match op {
                Arithmetic::Subtract => time.checked_sub(micros),
                _ => time.checked_add(micros),
            };
            moved.map(|moved| moved.rem_euclid(DAY_MICROS)).ok_or_else(overflow)
        },
    )?;
    Ok(Arc::new(sum))
}

/// Multiplies or divides; fractions of months become days of a thirtieth, fractions of days become time.
fn scale(op: Arithmetic, intervals: &ArrayRef, factors: &ArrayRef) -> Result<ArrayRef> {
    let factors = cast(factors, &DataType::Float64)?;
    let intervals = intervals.as_primitive::<IntervalMonthDayNanoType>();
    let factors = factors.as_primitive::<Float64Type>();
    let scaled: IntervalMonthDayNanoArray =
        try_binary(intervals, factors, |interval: IntervalMonthDayNano, factor: f64| match op {
            Arithmetic::Divide if factor == 0.0 => Err(ArrowError::DivideByZero),
            Arithmetic::Divide => scaled(interval, |value| value / factor).ok_or_else(overflow),
            _ => scaled(interval, |value| value * factor).ok_or_else(overflow),
        })?;
    Ok(Arc::new(scaled))
}

fn scaled(interval: IntervalMonthDayNano, by: impl Fn(f64) -> f64) -> Option<IntervalMonthDayNano> {
    let whole = |value: f64| -> Option<i32> {
        (value.is_finite() && value.abs() < f64::from(i32::MAX)).then_some(value as i32)
    };
    let months = by(f64::from(interval.months));
    let month_days = (months - months.trunc()) * DAYS_PER_MONTH;
    let days = by(f64::from(interval.days));
    let extra = month_days.trunc();
    let rest = (month_days - extra) + (days - days.trunc());
    // Microseconds are our precision: round there, as PostgreSQL does.
    let nanos = by(interval.nanoseconds as f64 / 1_000.0) + rest * (DAY_NANOS as f64 / 1_000.0);
    let micros = nanos.round();
    if !micros.is_finite() || micros.abs() >= 9.0e15 {
        return None;
    }
    Some(IntervalMonthDayNano::new(
        whole(months.trunc())?,
        whole(days.trunc() + extra)?,
        (micros as i64).checked_mul(1_000)?,
    ))
}
