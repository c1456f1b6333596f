//! `x op ANY (array)` and `x op ALL (array)`: the item and the array's items are brought to one type.
//!
//! The rewriter marks both sides with the other one, as their types are known only when they are built. Source: PostgreSQL
//! 15, section 9.25. Leaves out the comparison itself. Pure.

use super::from::binary;
use super::operator::{convert, is_string, no_operator, type_of};
use super::refuse;
use super::settle::union;
use crate::error::SqlError;
use crate::function::errors::external;
use datafusion::common::{DFSchema, Result};
use datafusion::logical_expr::Expr;
use millstream_catalog::SqlType;
use millstream_catalog::model::SqlState;
use sqlparser::ast::{self, BinaryOperator, Visit, Visitor};
use std::ops::ControlFlow;

/// The mark on an item; its right side is the array.
const ITEM: &str = "$item";
/// The mark on an array; its right side is the item.
const ARRAY: &str = "$array";

/// Gives ANY over an array, which the engine takes for false where it is NULL, another form. `x = ANY (ARRAY[1, 2])` is
/// `x IN (1, 2)`: other items have types of their own, which IN would give up. `x < ANY (y)` is `NOT x >= ALL (y)`. A
/// parameter stays, so that its items can be looked up.
pub(super) fn rewrite(expr: &mut ast::Expr) {
    let ast::Expr::AnyOp { left, compare_op, right, .. } = expr else { return };
    let take = |expr: &mut ast::Expr| Box::new(std::mem::replace(expr, refuse::null()));
    if let (BinaryOperator::Eq, ast::Expr::Array(array)) = (&*compare_op, right.as_mut())
        && !array.elem.is_empty()
        && array.elem.iter().all(is_number)
    {
        *expr = ast::Expr::InList { expr: take(left), list: std::mem::take(&mut array.elem), negated: false };
        return;
    }
    let compare_op = match compare_op {
        BinaryOperator::Eq if is_parameter(right) => return,
        BinaryOperator::Eq => BinaryOperator::NotEq,
        BinaryOperator::NotEq => BinaryOperator::Eq,
        BinaryOperator::Lt => BinaryOperator::GtEq,
        BinaryOperator::GtEq => BinaryOperator::Lt,
        BinaryOperator::Gt => BinaryOperator::LtEq,
        BinaryOperator::LtEq => BinaryOperator::Gt,
        _ => return,
    };
    if matches!(right.as_ref(), ast::Expr::Subquery(_) | ast::Expr::Tuple(_)) {
        return;
    }
    let all = ast::Expr::AllOp { left: take(left), compare_op, right: take(right) };
    *expr = ast::Expr::UnaryOp { op: ast::UnaryOperator::Not, expr: Box::new(all) };
}

/// Whether it is a number, or NULL.
fn is_number(expr: &ast::Expr) -> bool {
    match expr {
        ast::Expr::UnaryOp { op: ast::UnaryOperator::Minus, expr } | ast::Expr::Nested(expr) => is_number(expr),
        ast::Expr::Value(value) => matches!(value.value, ast::Value::Number(..) | ast::Value::Null),
        _ => false,
    }
}

fn is_parameter(expr: &ast::Expr) -> bool {
    match expr {
        ast::Expr::Cast { expr, .. } | ast::Expr::Nested(expr) => is_parameter(expr),
        ast::Expr::Value(value) => matches!(value.value, ast::Value::Placeholder(_)),
        _ => false,
    }
}

/// Marks both sides of an ANY or ALL over an array.
pub(super) fn mark(item: &mut ast::Expr, array: &mut ast::Expr) {
    // One ANY inside of another keeps its types: the marks would double with each level.
    let is_nested = |expr: &ast::Expr| expr.visit(&mut FindAny).is_break();
    if matches!(array, ast::Expr::Subquery(_)) || is_nested(item) || is_nested(array) {
        return;
    }
    let (own, other) = (std::mem::replace(item, refuse::null()), std::mem::replace(array, refuse::null()));
    *item = binary(own.clone(), BinaryOperator::Custom(ITEM.to_owned()), other.clone());
    *array = binary(other, BinaryOperator::Custom(ARRAY.to_owned()), own);
}

/// Finds an ANY or ALL.
struct FindAny;

impl Visitor for FindAny {
    type Break = ();

    fn pre_visit_expr(&mut self, expr: &ast::Expr) -> ControlFlow<()> {
        match expr {
            ast::Expr::AnyOp { .. } | ast::Expr::AllOp { .. } => ControlFlow::Break(()),
            _ => ControlFlow::Continue(()),
        }
    }
}

/// A marked side in its type; `None` when `mark` is no mark of these.
pub(super) fn settle(mark: &str, own: Expr, other: &Expr, schema: &DFSchema) -> Result<Option<Expr>> {
    if mark != ITEM && mark != ARRAY {
        return Ok(None);
    }
    let (from, of_other) = (type_of(&own, schema)?, type_of(other, schema)?);
    let (item, array) = if mark == ITEM { (&from, &of_other) } else { (&of_other, &from) };
    let common = match (item, array) {
        (_, Some(array)) if !matches!(array, SqlType::Array(_)) => {
            let fact = "op ANY/ALL (array) requires array on right side";
            return Err(external(SqlError::new(SqlState::WrongObjectType, fact)));
        }
        (None, None) => SqlType::Text,
        (Some(item), None) if is_string(item) => SqlType::Text,
        (Some(item), None) => item.clone(),
        (None, Some(array)) => item_of(array),
        (Some(item), Some(array)) => {
            let items = item_of(array);
            union(item, &items).ok_or_else(|| no_operator("=", Some(item), Some(&items)))?
        }
    };
    let to = if mark == ITEM { common } else { SqlType::Array(Box::new(common)) };
    convert(own, from.as_ref(), &to).map(Some)
}

fn item_of(array: &SqlType) -> SqlType {
    match array {
        SqlType::Array(item) if is_string(item) => SqlType::Text,
        SqlType::Array(item) => (**item).clone(),
        other => other.clone(),
    }
}
