//! Functions of the library under PostgreSQL's names and types: `to_timestamp(double)`, `gen_random_uuid()`, `pg_typeof`.
//!
//! Leaves out patterns (`pattern`). Pure.

use super::cast::bad_argument;
use super::errors::fail;
use arrow::array::{ArrayRef, AsArray, FixedSizeBinaryArray, TimestampMicrosecondArray};
use arrow::compute::cast;
use arrow::datatypes::{DataType, FieldRef, Float64Type, TimeUnit};
use datafusion::common::{Result, ScalarValue};
use datafusion::logical_expr::{
    ColumnarValue, ReturnFieldArgs, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature, Volatility,
};
use millstream_catalog::SqlType;
use millstream_catalog::model::SqlState;
use std::sync::Arc;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Kind {
    ToTimestamp,
    RandomUuid,
    TypeOf,
}

#[derive(Debug, PartialEq, Eq, Hash)]
struct Function {
    kind: Kind,
    signature: Signature,
}

/// All of them.
pub(super) fn functions() -> [ScalarUDF; 3] {
    let of = |kind, signature| ScalarUDF::new_from_impl(Function { kind, signature });
    [
        of(Kind::ToTimestamp, Signature::any(1, Volatility::Immutable)),
        of(Kind::RandomUuid, Signature::exact(Vec::new(), Volatility::Volatile)),
        of(Kind::TypeOf, Signature::any(1, Volatility::Immutable)),
    ]
}

impl ScalarUDFImpl for Function {
    fn name(&self) -> &str {
        match self.kind {
            Kind::ToTimestamp => "to_timestamp",
            Kind::RandomUuid => "gen_random_uuid",
            Kind::TypeOf => "pg_typeof",
        }
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, _: &[DataType]) -> Result<DataType> {
        Ok(self.result().arrow())
    }

    fn return_field_from_args(&self, args: ReturnFieldArgs<'_>) -> Result<FieldRef> {
        if self.kind == Kind::ToTimestamp && !args.arg_fields.iter().all(|field| field.data_type().is_numeric()) {
            return Err(bad_argument("to_timestamp"));
        }
        Ok(Arc::new(self.result().field(self.name(), true)))
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        match (self.kind, args.args.first()) {
            (Kind::ToTimestamp, Some(value)) => {
                let is_scalar = matches!(value, ColumnarValue::Scalar(_));
                let times = to_timestamp(&value.to_array(if is_scalar { 1 } else { args.number_rows })?)?;
                match is_scalar {
                    true => Ok(ColumnarValue::Scalar(ScalarValue::try_from_array(&times, 0)?)),
                    false => Ok(ColumnarValue::Array(times)),
                }
            }
            (Kind::RandomUuid, _) => random_uuids(args),
            (Kind::TypeOf, _) => {
                let field = args.arg_fields.first().ok_or_else(|| bad_argument("pg_typeof"))?;
                let shown = match SqlType::of(field) {
                    Some(SqlType::Numeric { .. }) => "numeric".to_owned(),
                    Some(SqlType::Varchar(_)) => "character varying".to_owned(),
                    Some(SqlType::Char(_)) => "character".to_owned(),
                    Some(sql_type) => sql_type.to_string(),
                    None => "unknown".to_owned(),
                };
                Ok(ColumnarValue::Scalar(ScalarValue::Utf8(Some(shown))))
            }
            _ => Err(bad_argument(self.name())),
        }
    }
}

impl Function {
    fn result(&self) -> SqlType {
        match self.kind {
            Kind::ToTimestamp => SqlType::TimestampTz,
            Kind::RandomUuid => SqlType::Uuid,
            Kind::TypeOf => SqlType::Text,
        }
    }
}

/// Seconds since 1970, rounded to microseconds.
fn to_timestamp(seconds: &ArrayRef) -> Result<ArrayRef> {
    let seconds = cast(seconds, &DataType::Float64)?;
    let micros = |seconds: f64| {
        let micros = (seconds * 1e6).round();
        match micros.is_finite() && micros.abs() < 9.2e18 {
            true => Ok(micros as i64),
            false => Err(fail(SqlState::DatetimeFieldOverflow, "timestamp out of range")),
        }
    };
    let times: TimestampMicrosecondArray = seconds.as_primitive::<Float64Type>().try_unary(micros)?;
    let zone = match SqlType::TimestampTz.arrow() {
        DataType::Timestamp(TimeUnit::Microsecond, zone) => zone,
        _ => None,
    };
    Ok(Arc::new(times.with_timezone_opt(zone)))
}

/// The library makes them as text.
fn random_uuids(args: ScalarFunctionArgs) -> Result<ColumnarValue> {
    let rows = args.number_rows;
    let text = datafusion::functions::string::uuid().inner().invoke_with_args(args)?.to_array(rows)?;
    let text = cast(&text, &DataType::Utf8)?;
    let bytes = text.as_string::<i32>().iter().flatten().map(|text| {
        let digits: Vec<u8> = text
            .bytes()
            .filter_map(|byte| char::from(byte).to_digit(16))
            .filter_map(|digit| u8::try_from(digit).ok())
            .collect();
        digits.chunks(2).map(|pair| pair.iter().fold(0, |byte, digit| byte << 4 | digit)).collect::<Vec<u8>>()
    });
    let uuids = FixedSizeBinaryArray::try_from_iter(bytes)?;
    Ok(ColumnarValue::Array(Arc::new(uuids)))
}
