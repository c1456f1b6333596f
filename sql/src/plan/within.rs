//! `WITHIN` of a join: its clause as a condition on the event times of both sides.
//!
//! Leaves out its syntax (`dialect::within`) and what time does to the join (`pipeline`). Pure.

use super::from::binary;
use super::rewrite::call;
use super::scope::{ScopeRelation, reference};
use crate::dialect::within::{CURRENT, WITHIN};
use crate::error::SqlError;
use millstream_catalog::schema::ROWTIME;
use sqlparser::ast::{
    BinaryOperator, Expr, FunctionArg, FunctionArgExpr, FunctionArguments, JoinConstraint, JoinOperator,
    ObjectNamePart, TableFactor,
};

/// The clause behind a table, taken out of it: before, after and grace.
pub(super) fn take(factor: &mut TableFactor) -> Option<Vec<Expr>> {
    let TableFactor::Table { with_hints, .. } = factor else { return None };
    let [Expr::Function(hint)] = with_hints.as_slice() else { return None };
    let name = hint.name.0.last().and_then(ObjectNamePart::as_ident);
    let FunctionArguments::List(list) = &hint.args else { return None };
    if name.is_none_or(|name| name.value != WITHIN) || list.args.len() != 3 {
        return None;
    }
    let lengths = list.args.iter().filter_map(|arg| match arg {
        FunctionArg::Unnamed(FunctionArgExpr::Expr(length)) => Some(length.clone()),
        _ => None,
    });
    let lengths = lengths.collect();
    with_hints.clear();
    Some(lengths)
}

/// Whether the hints of a table are `FOR SYSTEM_TIME AS OF PROCTIME()`.
pub(super) fn is_current(hints: &[Expr]) -> bool {
    matches!(hints, [Expr::Function(call)] if call.name.0.last().and_then(ObjectNamePart::as_ident).is_some_and(|name| name.value == CURRENT))
}

/// Adds the clause to the condition of a join of `relations`, the first `left` of which are its left side.
///
/// # Errors
/// 0A000 where a side has no stream.
pub(super) fn add(
    within: Option<Vec<Expr>>,
    operator: &mut JoinOperator,
    relations: &[ScopeRelation],
    left: usize,
) -> Result<(), SqlError> {
    let Some(lengths) = within else { return Ok(()) };
    let (left, right) = relations.split_at(left.min(relations.len()));
    let mut args = vec![time(left)?, time(right)?];
    args.extend(lengths);
    let condition = call(WITHIN, args);
    let (JoinOperator::Join(constraint)
    | JoinOperator::Inner(constraint)
    | JoinOperator::Left(constraint)
    | JoinOperator::LeftOuter(constraint)
    | JoinOperator::Right(constraint)
    | JoinOperator::RightOuter(constraint)
    | JoinOperator::FullOuter(constraint)) = operator
    else {
        return Err(SqlError::unsupported("WITHIN of this kind of join", "use JOIN … WITHIN … ON"));
    };
    let JoinConstraint::On(on) = constraint else {
        return Err(SqlError::internal("a join without its condition"));
    };
    let rest = std::mem::replace(on, Expr::Value(sqlparser::ast::Value::Null.with_empty_span()));
    *on = binary(condition, BinaryOperator::And, Expr::Nested(Box::new(rest)));
    Ok(())
}

/// The event time of a joined row: the greatest of its streams'.
fn time(relations: &[ScopeRelation]) -> Result<Expr, SqlError> {
    let streams = relations.iter().filter(|relation| relation.is_stream);
    let mut times: Vec<Expr> = streams.map(|stream| reference(&stream.plan_alias, ROWTIME)).collect();
    match times.len() {
        0 => Err(SqlError::unsupported(
            "WITHIN where one side has no stream",
            "a stream finds a table's rows without it; for sub-queries put a range of event times into ON",
        )),
        1 => Ok(times.remove(0)),
        _ => Ok(call("greatest", times)),
    }
}
