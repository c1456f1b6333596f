//! `extract(field FROM time)` and `date_part(field, time)`.
//!
//! `extract` gives numeric, with the fraction PostgreSQL shows: none for whole fields, three digits for milliseconds, six
//! for second and epoch. `date_part` gives double precision. Source: PostgreSQL 15, section 9.9.1. Pure.

use super::cast::bad_argument;
use super::errors::{external, fail};
use crate::error::SqlError;
use arrow::array::{Array, ArrayRef, AsArray, Decimal128Array};
use arrow::compute::cast;
use arrow::datatypes::{
    DataType, Date32Type, FieldRef, IntervalMonthDayNanoType, Time64MicrosecondType, TimeUnit, TimestampMicrosecondType,
};
use chrono::{DateTime, Datelike, NaiveDateTime};
use datafusion::common::{Result, ScalarValue};
use datafusion::logical_expr::{
    ColumnarValue, ReturnFieldArgs, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature, Volatility,
};
use millstream_catalog::model::SqlState;
use std::sync::Arc;

const SECOND: i64 = 1_000_000;
const MINUTE: i64 = 60 * SECOND;
const HOUR: i64 = 60 * MINUTE;
const DAY: i64 = 24 * HOUR;

#[derive(Debug, PartialEq, Eq, Hash)]
struct Extract {
    is_double: bool,
    signature: Signature,
}

/// Both functions.
pub(super) fn functions() -> [ScalarUDF; 2] {
    [false, true].map(|is_double| {
        ScalarUDF::new_from_impl(Extract { is_double, signature: Signature::any(2, Volatility::Immutable) })
    })
}

/// Digits after the point of a field.
fn scale_of(field: &str) -> i8 {
    match field {
        "second" | "seconds" | "epoch" => 6,
        "millisecond" | "milliseconds" => 3,
        _ => 0,
    }
}

fn scalar_text(value: &ScalarValue) -> Option<String> {
    value.try_as_str().flatten().map(str::to_lowercase)
}

impl ScalarUDFImpl for Extract {
    fn name(&self) -> &str {
        if self.is_double { "date_part" } else { "extract" }
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, _: &[DataType]) -> Result<DataType> {
        Err(external(SqlError::internal("extract is typed by its field")))
    }

    fn return_field_from_args(&self, args: ReturnFieldArgs<'_>) -> Result<FieldRef> {
        let field = args.scalar_arguments.first().copied().flatten().and_then(scalar_text);
        let field = field.ok_or_else(|| {
            external(SqlError::unsupported("a field that is not a constant", "write extract(year FROM …)"))
        })?;
        let is_time = matches!(
            args.arg_fields.get(1).map(|field| field.data_type()),
            Some(
                DataType::Timestamp(..)
                    | DataType::Date32
                    | DataType::Time64(_)
                    | DataType::Interval(_)
                    | DataType::Null
            )
        );
        if !is_time {
            return Err(bad_argument(self.name()));
        }
        let data_type = match (self.is_double, scale_of(&field)) {
            (true, _) => DataType::Float64,
            (false, 0) => DataType::Decimal128(20, 0),
            (false, scale) => DataType::Decimal128(26, scale),
        };
        Ok(Arc::new(arrow::datatypes::Field::new(self.name(), data_type, true)))
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let [ColumnarValue::Scalar(field), source] = args.args.as_slice() else {
            return Err(bad_argument(self.name()));
        };
        let field = scalar_text(field).unwrap_or_default();
        let is_scalar = matches!(source, ColumnarValue::Scalar(_));
        let array = source.to_array(if is_scalar { 1 } else { args.number_rows })?;
        let values = parts(&field, &array)?;
        let scale = scale_of(&field);
        let exact = Decimal128Array::from(values).with_precision_and_scale(38, scale)?;
        let result = cast(&exact, args.return_field.data_type())?;
        match is_scalar {
            true => Ok(ColumnarValue::Scalar(ScalarValue::try_from_array(&result, 0)?)),
            false => Ok(ColumnarValue::Array(result)),
        }
    }
}

/// The field of every value, unscaled at the field's scale.
fn parts(field: &str, array: &ArrayRef) -> Result<Vec<Option<i128>>> {
    let unknown = || fail(SqlState::InvalidParameterValue, format!("unit \"{field}\" not supported for this type"));
    let rows = 0..array.len();
    match array.data_type() {
        DataType::Timestamp(..) => {
            // What the engine computes of constants may be in other units.
            let array = cast(array, &DataType::Timestamp(TimeUnit::Microsecond, None))?;
            let times = array.as_primitive::<TimestampMicrosecondType>();
            times.iter().map(|time| time.map(|time| of_moment(field, time).ok_or_else(unknown)).transpose()).collect()
        }
        DataType::Date32 => {
            let days = array.as_primitive::<Date32Type>();
            let of_day = |day: i32| of_moment(field, i64::from(day) * DAY).ok_or_else(unknown);
            days.iter().map(|day| day.map(of_day).transpose()).collect()
        }
        DataType::Time64(_) => {
            let times = array.as_primitive::<Time64MicrosecondType>();
            let of_time = |time: i64| if field == "epoch" { Some(i128::from(time)) } else { of_clock(field, time) };
            times.iter().map(|time| time.map(|time| of_time(time).ok_or_else(unknown)).transpose()).collect()
        }
        DataType::Interval(_) => {
            let intervals = array.as_primitive::<IntervalMonthDayNanoType>();
            intervals
                .iter()
                .map(|value| value.map(|value| of_interval(field, value).ok_or_else(unknown)).transpose())
                .collect()
        }
        _ => Ok(rows.map(|_| None).collect()),
    }
}

/// Days of 400 years.
const CYCLE_DAYS: i64 = 146_097;

/// Fields of the time of day; `micros` since midnight, or the time part of an interval.
fn of_clock(field: &str, micros: i64) -> Option<i128> {
    Some(i128::from(match field {
        "hour" | "hours" => micros / HOUR,
        "minute" | "minutes" => micros % HOUR / MINUTE,
        "second" | "seconds" | "millisecond" | "milliseconds" | "microsecond" | "microseconds" => micros % MINUTE,
        _ => return None,
    }))
}

fn of_moment(field: &str, micros: i64) -> Option<i128> {
    if let Some(value) = of_clock(field, micros.rem_euclid(DAY)) {
        return Some(value);
    }
    if field == "epoch" {
        return Some(i128::from(micros));
    }
    // The calendar repeats every 400 years, weekdays included; the library's ends before PostgreSQL's.
    let cycles = micros.div_euclid(CYCLE_DAYS * DAY);
    let time: NaiveDateTime = DateTime::from_timestamp_micros(micros.rem_euclid(CYCLE_DAYS * DAY))?.naive_utc();
    // There is no year, century or millennium 0: 1 BC is -1.
    let shown = |year: i64| if year > 0 { year } else { year - 1 };
    let year = i64::from(time.year()) + cycles * 400;
    let age = |years: i64| if year > 0 { (year + years - 1) / years } else { -((years - year) / years) };
    Some(i128::from(match field {
        "year" | "years" => shown(year),
        "month" | "months" => i64::from(time.month()),
        "day" | "days" => i64::from(time.day()),
        "quarter" => i64::from(time.month0() / 3 + 1),
        "week" | "weeks" => i64::from(time.iso_week().week()),
        "isoyear" => shown(i64::from(time.iso_week().year()) + cycles * 400),
        "dow" => i64::from(time.weekday().num_days_from_sunday()),
        "isodow" => i64::from(time.weekday().number_from_monday()),
        "doy" => i64::from(time.ordinal()),
        "decade" => year.div_euclid(10),
        "century" => age(100),
        "millennium" => age(1_000),
        "julian" => micros.div_euclid(DAY) + 2_440_588,
        "timezone" | "timezone_hour" | "timezone_minute" => 0,
        _ => return None,
    }))
}

fn of_interval(field: &str, value: arrow::datatypes::IntervalMonthDayNano) -> Option<i128> {
    let micros = value.nanoseconds / 1_000;
    let (months, days) = (i64::from(value.months), i64::from(value.days));
    if let Some(value) = of_clock(field, micros) {
        return Some(value);
    }
    Some(match field {
        "year" | "years" => i128::from(months / 12),
        "month" | "months" => i128::from(months % 12),
        "day" | "days" => i128::from(days),
        "quarter" => i128::from(months % 12 / 3 + 1),
        "decade" => i128::from(months / 120),
        "century" => i128::from(months / 1_200),
        "millennium" => i128::from(months / 12_000),
        // A year has 365.25 days here, a month outside a year 30.
        "epoch" => {
            let year = i128::from(months / 12) * (i128::from(DAY) * 1_461 / 4);
            year + (i128::from(months % 12) * 30 + i128::from(days)) * i128::from(DAY) + i128::from(micros)
        }
        _ => return None,
    })
}
