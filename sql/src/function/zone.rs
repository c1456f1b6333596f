//! `timestamp AT TIME ZONE zone`, which is `timezone(zone, timestamp)`.
//!
//! Pure: the rules of named zones are compiled in.

use super::cast::bad_argument;
use super::errors::fail;
use crate::types::zone::Zone;
use arrow::array::{ArrayRef, AsArray, StringArray, TimestampMicrosecondArray};
use arrow::compute::cast;
use arrow::datatypes::{DataType, TimeUnit, TimestampMicrosecondType};
use datafusion::common::{Result, ScalarValue};
use datafusion::logical_expr::{ColumnarValue, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature, Volatility};
use millstream_catalog::model::SqlState;
use std::sync::Arc;

#[derive(Debug, PartialEq, Eq, Hash)]
struct TimeZone {
    signature: Signature,
}

/// The function `timezone`.
pub(super) fn function() -> ScalarUDF {
    ScalarUDF::new_from_impl(TimeZone { signature: Signature::any(2, Volatility::Immutable) })
}

/// A zone: a name, an abbreviation or an offset. POSIX writes the sign of offsets the other way, and so does
/// PostgreSQL for bare ones.
fn zone_of(text: &str) -> Option<Zone> {
    let name = text.trim();
    let (sign, digits) = match name.as_bytes().first()? {
        b'+' => (-1, &name[1..]),
        b'-' => (1, &name[1..]),
        _ => return Zone::named(name),
    };
    let number = |part: &str| {
        let is_short = (1..=2).contains(&part.len()) && part.bytes().all(|byte| byte.is_ascii_digit());
        is_short.then(|| part.parse::<i32>().ok()).flatten()
    };
    let mut parts = digits.split(':');
    let hours = number(parts.next()?).filter(|hours| *hours <= 15)?;
    let minutes = parts.next().map_or(Some(0), number).filter(|minutes| *minutes < 60)?;
    parts.next().is_none().then_some(Zone::Fixed(sign * (hours * 60 + minutes) * 60))
}

impl ScalarUDFImpl for TimeZone {
    fn name(&self) -> &str {
        "timezone"
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, types: &[DataType]) -> Result<DataType> {
        match types {
            [DataType::Utf8 | DataType::Null, DataType::Timestamp(_, Some(_))] => {
                Ok(DataType::Timestamp(TimeUnit::Microsecond, None))
            }
            [DataType::Utf8 | DataType::Null, DataType::Timestamp(_, None) | DataType::Date32 | DataType::Utf8] => {
                Ok(DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into())))
            }
            _ => Err(bad_argument("timezone")),
        }
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let [zone, time] = args.args.as_slice() else { return Err(bad_argument("timezone")) };
        let target = args.return_field.data_type();
        let is_scalar = matches!((zone, time), (ColumnarValue::Scalar(_), ColumnarValue::Scalar(_)));
        let rows = if is_scalar { 1 } else { args.number_rows };
        let zones = cast(&zone.to_array(rows)?, &DataType::Utf8)?;
        let zones: &StringArray = zones.as_string();
        let is_zoned = matches!(time.data_type(), DataType::Timestamp(_, Some(_)));
        let plain = DataType::Timestamp(TimeUnit::Microsecond, None);
        let times = time.to_array(rows)?;
        let times = match times.data_type() {
            DataType::Timestamp(TimeUnit::Microsecond, _) => times,
            _ => cast(&times, &plain)?,
        };
        let mut last: Option<(&str, Zone)> = None;
        let moved = zones.iter().zip(times.as_primitive::<TimestampMicrosecondType>().iter()).map(|(zone, time)| {
            let (Some(zone), Some(time)) = (zone, time) else { return Ok(None) };
            let found = match last {
                Some((name, found)) if name == zone => found,
                _ => zone_of(zone).ok_or_else(|| {
                    fail(SqlState::InvalidParameterValue, format!("time zone \"{zone}\" not recognized"))
                })?,
            };
            last = Some((zone, found));
            let moved = match is_zoned {
                true => time.checked_add(found.offset_micros_at(time)),
                false => time.checked_sub(found.offset_micros(time)),
            };
            moved.map(Some).ok_or_else(|| fail(SqlState::DatetimeFieldOverflow, "timestamp out of range"))
        });
        let moved: TimestampMicrosecondArray = moved.collect::<Result<_>>()?;
        let moved: ArrayRef = match target {
            DataType::Timestamp(_, Some(zone)) => Arc::new(moved.with_timezone(Arc::clone(zone))),
            _ => Arc::new(moved),
        };
        match is_scalar {
            true => Ok(ColumnarValue::Scalar(ScalarValue::try_from_array(&moved, 0)?)),
            false => Ok(ColumnarValue::Array(moved)),
        }
    }
}
