//! Floating-point numbers in lists, `CASE` and arrays, where -0 is 0 as in comparisons.
//!
//! The engine compares numbers so, but looks for them in lists bit by bit, and so it compares arrays. There a number is
//! replaced by its canonical form; -0 is a value of its own elsewhere, which prints as it was written. NaNs have one form
//! wherever they come from (`bind::insert`, `function::arith`). Pure.

use super::operator::folded;
use crate::function::by_value::{float_function, is_by_value};
use crate::types::{canonical, scalar_first};
use datafusion::common::ScalarValue;
use datafusion::logical_expr::Expr;
use datafusion::logical_expr::expr::InList;
use millstream_catalog::SqlType;

/// A value in its canonical form, if it is or has floating-point numbers.
pub(super) fn side(expr: Expr, sql_type: &SqlType) -> Expr {
    if matches!(&expr, Expr::ScalarFunction(call) if is_by_value(&call.func)) {
        return expr;
    }
    match (float_function(sql_type), literal(&expr)) {
        (Some(_), Some(value)) => Expr::Literal(value, None),
        (Some(function), None) => function.call(vec![expr]),
        (None, _) => expr,
    }
}

/// A constant floating-point number in its canonical form.
fn literal(expr: &Expr) -> Option<ScalarValue> {
    let value = folded(expr)?;
    matches!(value, ScalarValue::Float32(_) | ScalarValue::Float64(_)).then_some(())?;
    scalar_first(&canonical(value.to_array().ok()?)).ok()
}

/// `side IN (sides)`, a column as it is where none of the constants is zero: scans and indexes understand that.
pub(super) fn listed(list: InList) -> InList {
    let is_zero = |value: ScalarValue| {
        matches!(value, ScalarValue::Float64(Some(number)) if number == 0.0)
            || matches!(value, ScalarValue::Float32(Some(number)) if number == 0.0)
    };
    let is_plain = |item: &Expr| literal(item).is_some_and(|value| !is_zero(value));
    let column = match list.expr.as_ref() {
        Expr::ScalarFunction(call) if is_by_value(&call.func) => call.args.first().cloned(),
        _ => None,
    };
    match column {
        Some(column @ Expr::Column(_)) if list.list.iter().all(is_plain) => InList { expr: Box::new(column), ..list },
        _ => list,
    }
}
