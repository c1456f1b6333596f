//! Windows that are written as expressions.
//!
//! Pure.

use arrow::datatypes::DataType;
use datafusion::common::ScalarValue;
use datafusion::logical_expr::Expr;
use millstream_catalog::model::Span;

/// The size and the time of `date_bin(size, time)`, aligned to the Unix epoch or to a constant.
pub(super) fn bin(expression: &Expr) -> Option<(Span, &Expr)> {
    let Expr::ScalarFunction(call) = uncast(expression) else { return None };
    if call.func.name() != "date_bin" {
        return None;
    }
    let Expr::Literal(ScalarValue::IntervalMonthDayNano(Some(size)), _) = call.args.first()? else { return None };
    let is_constant = call.args.get(2).is_none_or(|origin| matches!(origin, Expr::Literal(..)));
    if size.months != 0 || size.nanoseconds % 1_000 != 0 || !is_constant {
        return None;
    }
    let micros = i64::from(size.days).checked_mul(86_400_000_000)?.checked_add(size.nanoseconds / 1_000)?;
    Some((Span::from_micros(micros), uncast(call.args.get(1)?))).filter(|_| micros > 0)
}

/// The time in another unit, which the library computes in.
fn uncast(expression: &Expr) -> &Expr {
    match expression {
        Expr::Cast(cast) if matches!(cast.field.data_type(), DataType::Timestamp(..)) => &cast.expr,
        expression => expression,
    }
}
