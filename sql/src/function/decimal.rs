//! Arithmetic of `numeric`: exact in 38 digits, rounded half away from zero.
//!
//! The result's scale is fixed by the operands' scales, as our type has one: the greater for `+ - %`, the sum (at most 20,
//! never below either) for `*`, the greater and at least 10 for `/`. More than 38 digits is 22003. Pure.

use super::arith::Arithmetic;
use super::errors::fail;
use arrow::array::{ArrayRef, AsArray, Decimal128Array};
use arrow::compute::{try_binary, try_unary};
use arrow::datatypes::{DECIMAL128_MAX_PRECISION, DataType, Decimal128Type, DecimalType, i256};
use arrow::error::ArrowError;
use datafusion::common::{Result, ScalarValue};
use datafusion::logical_expr::ColumnarValue;
use millstream_catalog::model::SqlState;
use std::sync::Arc;

/// The greatest scale a product takes on.
const PRODUCT_SCALE_MAX: i8 = 20;
/// The least scale of a quotient; that of plain `numeric`.
const QUOTIENT_SCALE_MIN: i8 = 10;

/// The type of `left op right`.
pub(super) fn result_type(op: Arithmetic, (p1, s1): (u8, i8), (p2, s2): (u8, i8)) -> DataType {
    let greater = s1.max(s2);
    let whole = |precision: u8, scale: i8| i16::from(precision) - i16::from(scale);
    let fit = |digits: i16| u8::try_from(digits.clamp(1, i16::from(DECIMAL128_MAX_PRECISION))).unwrap_or(38);
    match op {
        Arithmetic::Add | Arithmetic::Subtract => {
            DataType::Decimal128(fit(whole(p1, s1).max(whole(p2, s2)) + i16::from(greater) + 1), greater)
        }
        Arithmetic::Multiply => {
            let scale = (s1 + s2).min(PRODUCT_SCALE_MAX.max(greater));
            DataType::Decimal128(fit(whole(p1, s1) + whole(p2, s2) + i16::from(scale)), scale)
        }
        Arithmetic::Divide => DataType::Decimal128(38, greater.max(QUOTIENT_SCALE_MIN)),
        Arithmetic::Modulo => DataType::Decimal128(fit(whole(p1, s1).max(whole(p2, s2)) + i16::from(greater)), greater),
    }
}

/// The values of `left op right` in `target`, which [`result_type`] gave.
pub(super) fn apply(
    op: Arithmetic,
    (left, s1): (&ColumnarValue, i8),
    (right, s2): (&ColumnarValue, i8),
    target: &DataType,
    rows: usize,
) -> Result<ColumnarValue> {
    let DataType::Decimal128(precision, scale) = target else {
        return Err(super::errors::external(crate::error::SqlError::internal("not a numeric")));
    };
    let step = Step { op, s1, s2, scale: *scale, limit: power(*precision) };
    let wrap = |error: ArrowError| super::arith::numeric_error(&error, "value");
    let finish = |array: Decimal128Array| -> Result<ArrayRef> {
        Ok(Arc::new(array.with_precision_and_scale(*precision, *scale).map_err(wrap)?))
    };
    let compute = |a: i128, b: i128| step.compute(a, b);
    let array = match (left, right) {
        (
            ColumnarValue::Scalar(ScalarValue::Decimal128(Some(a), ..)),
            ColumnarValue::Scalar(ScalarValue::Decimal128(Some(b), ..)),
        ) => {
            let value = compute(*a, *b).map_err(wrap)?;
            return Ok(ColumnarValue::Scalar(ScalarValue::Decimal128(Some(value), *precision, *scale)));
        }
        (ColumnarValue::Array(a), ColumnarValue::Scalar(ScalarValue::Decimal128(Some(b), ..))) => {
            try_unary::<Decimal128Type, _, Decimal128Type>(a.as_primitive(), |a| compute(a, *b))
        }
        (ColumnarValue::Scalar(ScalarValue::Decimal128(Some(a), ..)), ColumnarValue::Array(b)) => {
            try_unary::<Decimal128Type, _, Decimal128Type>(b.as_primitive(), |b| compute(*a, b))
        }
        _ => {
            let (a, b) = (left.to_array(rows)?, right.to_array(rows)?);
            try_binary::<_, _, _, Decimal128Type>(
                a.as_primitive::<Decimal128Type>(),
                b.as_primitive::<Decimal128Type>(),
                compute,
            )
        }
    };
    Ok(ColumnarValue::Array(finish(array.map_err(wrap)?)?))
}

/// One operation on unscaled values.
struct Step {
    op: Arithmetic,
    s1: i8,
    s2: i8,
    scale: i8,
    limit: i128,
}

impl Step {
    fn compute(&self, a: i128, b: i128) -> Result<i128, ArrowError> {
        let overflow = || ArrowError::ArithmeticOverflow(String::new());
        let exact = match self.op {
            Arithmetic::Add | Arithmetic::Subtract | Arithmetic::Modulo => {
                let a = shift(a, self.scale - self.s1).ok_or_else(overflow)?;
                let b = shift(b, self.scale - self.s2).ok_or_else(overflow)?;
                match self.op {
                    Arithmetic::Add => a.checked_add(b),
                    Arithmetic::Subtract => a.checked_sub(b),
                    _ if b == 0 => return Err(ArrowError::DivideByZero),
                    _ => a.checked_rem(b),
                }
            }
            Arithmetic::Multiply => self.multiply(a, b),
            Arithmetic::Divide if b == 0 => return Err(ArrowError::DivideByZero),
            Arithmetic::Divide => {
                let up = self.scale - self.s1 + self.s2;
                divide(wide_shift(a, up), i256::from_i128(b))
            }
        };
        exact.filter(|value| value.unsigned_abs() < self.limit.unsigned_abs()).ok_or_else(overflow)
    }

    fn multiply(&self, a: i128, b: i128) -> Option<i128> {
        let down = self.s1 + self.s2 - self.scale;
        match (a.checked_mul(b), down) {
            (Some(product), 0) => Some(product),
            (None, 0) => None,
            _ => divide(i256::from_i128(a).checked_mul(i256::from_i128(b)), wide_power(down)),
        }
    }
}

/// `10^digits`.
fn power(digits: u8) -> i128 {
    10_i128.checked_pow(u32::from(digits)).unwrap_or(i128::MAX)
}

fn wide_power(digits: i8) -> i256 {
    (0..digits).fold(i256::ONE, |value, _| value.wrapping_mul(i256::from_i128(10)))
}

fn shift(value: i128, digits: i8) -> Option<i128> {
    match u32::try_from(digits) {
        Ok(0) | Err(_) => Some(value),
        Ok(digits) => value.checked_mul(10_i128.checked_pow(digits)?),
    }
}

fn wide_shift(value: i128, digits: i8) -> Option<i256> {
    i256::from_i128(value).checked_mul(wide_power(digits))
}

/// The quotient, rounded half away from zero.
fn divide(value: Option<i256>, by: i256) -> Option<i128> {
    let value = value?;
    let (quotient, rest) = (value.checked_div(by)?, value.checked_rem(by)?);
    let twice = rest.checked_add(rest)?.checked_abs()?;
    let rounded = if twice >= by.checked_abs()? {
        let is_negative = (value < i256::ZERO) != (by < i256::ZERO);
        let away = if is_negative { i256::MINUS_ONE } else { i256::ONE };
        quotient.checked_add(away)?
    } else {
        quotient
    };
    rounded.to_i128()
}

/// `sum / count` at scale `to`, for averages.
pub(super) fn average(sum: i128, count: u64, from: i8, to: i8) -> Result<i128> {
    let wide = wide_shift(sum, to - from);
    let value = divide(wide, i256::from_i128(i128::from(count)));
    let limit = power(Decimal128Type::MAX_PRECISION);
    value.filter(|value| value.unsigned_abs() < limit.unsigned_abs()).ok_or_else(overflow)
}

/// 22003.
pub(super) fn overflow() -> datafusion::common::DataFusionError {
    fail(SqlState::NumericValueOutOfRange, "value overflows numeric format")
}
