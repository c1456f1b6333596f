//! Sessions: their edges are known where rows are grouped, by the other grouping columns.
//!
//! Below each GROUP BY over edges of a session, window functions compute them; before, their columns hold the event's
//! time. The streaming planner recognises those functions. Leaves out the functions (`function::session_window`). Pure.

use crate::dialect::ast::Position;
use crate::error::SqlError;
use crate::function::errors::external;
use crate::function::session_window::session_edge;
use crate::function::window::{SessionMark, session_mark};
use datafusion::common::tree_node::Transformed;
use datafusion::common::{Column, Result};
use datafusion::logical_expr::{Aggregate, Expr, JoinType, LogicalPlan, LogicalPlanBuilder};
use std::collections::BTreeSet;
use std::sync::Arc;

/// `plan` with the edges of its sessions, which stand at `positions`.
///
/// # Errors
/// 0A000 for sessions that nothing groups, or whose edges are used before.
pub(super) fn with_sessions(plan: LogicalPlan, positions: &[Position]) -> Result<LogicalPlan, SqlError> {
    if positions.is_empty() {
        return Ok(plan);
    }
    let mut used = BTreeSet::new();
    let plan = plan.transform_up_with_subqueries(|node| match node {
        LogicalPlan::Aggregate(aggregate) => grouped(aggregate, &mut used),
        other => Ok(Transformed::no(other)),
    })?;
    match positions.iter().enumerate().find(|(number, _)| !used.contains(&(*number as i64))) {
        None => Ok(plan.data),
        Some((_, position)) => {
            let hint = "group by the start and end of the window, and by the columns each of which has sessions";
            Err(SqlError::unsupported("a session window that is not grouped by", hint).at(*position))
        }
    }
}

fn grouped(aggregate: Aggregate, used: &mut BTreeSet<i64>) -> Result<Transformed<LogicalPlan>> {
    let schema = Arc::clone(aggregate.input.schema());
    let mut marks: Vec<Option<SessionMark>> = Vec::with_capacity(schema.fields().len());
    for at in 0..schema.fields().len() {
        marks.push(mark_of(&aggregate.input, at)?);
    }
    let mark = |expr: &Expr| match expr {
        Expr::Column(column) => schema.maybe_index_of_column(column).and_then(|at| marks[at]),
        _ => None,
    };
    let keys: Vec<Expr> = aggregate.group_expr.iter().filter(|expr| mark(expr).is_none()).cloned().collect();
    let numbers: BTreeSet<i64> = aggregate.group_expr.iter().filter_map(mark).map(|mark| mark.number).collect();
    if numbers.is_empty() {
        return Ok(Transformed::no(LogicalPlan::Aggregate(aggregate)));
    }
    let is_early = |key: &Expr| {
        key.column_refs()
            .iter()
            .any(|column| schema.maybe_index_of_column(column).is_some_and(|at| marks[at].is_some()))
    };
    if numbers.len() > 1 || keys.iter().any(is_early) {
        return Err(external(early()));
    }
    used.extend(numbers);
    let Some(time) = marks.iter().position(Option::is_some).map(|at| schema.qualified_field(at)) else {
        return Err(external(SqlError::internal("a session without a time")));
    };
    let time = Expr::Column(Column::from(time));
    let (mut edges, mut columns) = (Vec::new(), Vec::new());
    for ((qualifier, field), mark) in schema.iter().zip(&marks) {
        let column = Expr::Column(Column::from((qualifier, field)));
        columns.push(match mark {
            None => column,
            Some(mark) => {
                let edge = session_edge(*mark, time.clone(), &keys);
                let name = edge.schema_name().to_string();
                edges.push(edge);
                Expr::Column(Column::new_unqualified(name)).alias_qualified(qualifier.cloned(), field.name())
            }
        });
    }
    let input = LogicalPlanBuilder::from(Arc::unwrap_or_clone(aggregate.input)).window(edges)?;
    let input = Arc::new(input.project(columns)?.build()?);
    let aggregate = Aggregate::try_new(input, aggregate.group_expr, aggregate.aggr_expr)?;
    Ok(Transformed::yes(LogicalPlan::Aggregate(aggregate)))
}

fn early() -> SqlError {
    let hint = "group by the edges as they are; filter with HAVING, or compute around the query";
    SqlError::unsupported("an edge of a session in an expression before it is known", hint)
}

/// The edge of a session that output column `at` of `plan` stands for.
fn mark_of(plan: &LogicalPlan, at: usize) -> Result<Option<SessionMark>> {
    let (input, at) = match plan {
        LogicalPlan::Projection(projection) => {
            let expr = unalias(&projection.expr[at]);
            if let Some((mark, _)) = session_mark(expr) {
                return Ok(Some(mark));
            }
            let Expr::Column(column) = expr else { return Ok(None) };
            (&projection.input, projection.input.schema().maybe_index_of_column(column))
        }
        LogicalPlan::SubqueryAlias(alias) => (&alias.input, Some(at)),
        LogicalPlan::Filter(filter) => (&filter.input, Some(at)),
        LogicalPlan::Join(join) if matches!(join.join_type, JoinType::Inner | JoinType::Left | JoinType::Right) => {
            let width = join.left.schema().fields().len();
            if at < width { (&join.left, Some(at)) } else { (&join.right, Some(at - width)) }
        }
        _ => return Ok(None),
    };
    let Some(at) = at else { return Ok(None) };
    let mark = mark_of(input, at)?;
    if mark.is_some() {
        let (qualifier, field) = input.schema().qualified_field(at);
        let column = Column::from((qualifier, field));
        let is_early = |expr: &Expr| !matches!(unalias(expr), Expr::Column(_)) && expr.column_refs().contains(&column);
        if plan.expressions().iter().any(is_early) {
            return Err(external(early()));
        }
    }
    Ok(mark)
}

fn unalias(expr: &Expr) -> &Expr {
    match expr {
        Expr::Alias(alias) => unalias(&alias.expr),
        expr => expr,
    }
}
