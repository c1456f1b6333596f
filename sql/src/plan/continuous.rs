//! SELECT that may run continuously: checked for what that allows, its sub-queries made joins, its columns pruned.
//!
//! Owns the refusals that the statement's text shows, each naming its clause. Leaves out operators and what they refuse
//! (`pipeline`). Pure.

use super::distinct_on::first_rows;
use super::rewrite::position_of;
use super::select::{Drafted, Run, draft, in_result_types, result_columns};
use super::union::unite;
use super::{ContinuousPlan, Emission, PlanContext, ResultColumn, parameter};
use crate::bind::ddl::{check_makes_nothing, grace_option};
use crate::dialect::ast::{Emit, EmitKind, Position, Select};
use crate::error::{Near, SqlError};
use crate::exec::session::{analyze, optimize_continuous};
use crate::function::assign::{Assignment, assign_function};
use crate::function::series::SERIES;
use datafusion::common::ScalarValue;
use datafusion::common::tree_node::{TreeNode, TreeNodeRecursion};
use datafusion::logical_expr::{self, FetchType, LogicalPlan, Projection, Volatility};
use millstream_catalog::model::SqlState;
use millstream_catalog::query::EmitForms;
use millstream_catalog::{QueryOptions, SqlType};
use sqlparser::ast::{Distinct, Expr, LimitClause, Query, SelectItem, SetExpr, Spanned};
use std::collections::HashSet;
use std::sync::Arc;

/// Who takes the rows of a continuous query.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Taker {
    /// A stream or table that it makes.
    Relation,
    /// One that there is.
    Insert,
    /// A client.
    Subscription,
}

/// Plans `select` for a continuous run with `options`, whose rows are those of a stream or table that it makes.
///
/// # Errors
/// As `plan_select`; 0A000 with a hint for what cannot run continuously, 42701 for two columns of one name.
pub fn plan_continuous(
    context: &PlanContext,
    select: &Select,
    options: &QueryOptions,
) -> Result<ContinuousPlan, SqlError> {
    plan_query(context, select, options, Taker::Relation)
}

/// Plans `select` for a continuous run with `options`, whose rows go into a stream or table that there is; `assignments` says
/// how its columns become those of that.
///
/// # Errors
/// As `plan_continuous`, but that names of columns do not matter.
pub fn plan_insert_query(
    context: &PlanContext,
    select: &Select,
    options: &QueryOptions,
    assignments: &[Option<Assignment>],
) -> Result<ContinuousPlan, SqlError> {
    let mut plan = plan_query(context, select, options, Taker::Insert)?;
    let mut exprs = Vec::with_capacity(plan.columns.len());
    for (at, column) in plan.plan.schema().columns().into_iter().enumerate() {
        let value = logical_expr::Expr::Column(column);
        exprs.push(match assignments.get(at) {
            Some(Some(assignment)) => {
                plan.columns[at].sql_type = assignment.to.clone();
                assign_function(assignment.clone()).call(vec![value]).alias(format!("column{at}"))
            }
            _ => value,
        });
    }
    if assignments.iter().any(Option::is_some) {
        plan.plan = LogicalPlan::Projection(Projection::try_new(exprs, Arc::new(plan.plan))?);
    }
    Ok(plan)
}

fn plan_query(
    context: &PlanContext,
    select: &Select,
    options: &QueryOptions,
    taker: Taker,
) -> Result<ContinuousPlan, SqlError> {
    let (plan, params) = plan_with(context, select, &[], None, taker)?;
    if params.is_empty() {
        let emission = match (plan.emission, options.emit) {
            (Emission::Changes, EmitForms::EveryChange) => Emission::EveryChange,
            (emission, _) => emission,
        };
        return Ok(ContinuousPlan { emission, state_retention: options.state_retention, ..plan });
    }
    let fact = "a continuous query cannot have parameters";
    Err(SqlError::new(SqlState::UndefinedParameter, fact).hint("write the values into the statement"))
}

/// Plans `select` for a subscription, with the values of its parameters, which have the types that `describe_push` gave.
///
/// # Errors
/// As `plan_insert_query`.
pub fn plan_push(
    context: &PlanContext,
    select: &Select,
    params: &[SqlType],
    values: Vec<ScalarValue>,
) -> Result<ContinuousPlan, SqlError> {
    check_makes_nothing(select)?;
    let types: Vec<Option<SqlType>> = params.iter().cloned().map(Some).collect();
    plan_with(context, select, &types, Some(values), Taker::Subscription).map(|(plan, _)| plan)
}

/// The types of a subscription's parameters, and its columns. `param_types` are the types the client declares.
///
/// # Errors
/// As `plan_insert_query`.
pub fn describe_push(
    context: &PlanContext,
    select: &Select,
    param_types: &[Option<SqlType>],
) -> Result<(Vec<SqlType>, Vec<ResultColumn>), SqlError> {
    plan_with(context, select, param_types, None, Taker::Subscription).map(|(plan, params)| (params, plan.columns))
}

/// The plan, with placeholders where `values` are not known, and the types of its parameters.
fn plan_with(
    context: &PlanContext,
    select: &Select,
    param_types: &[Option<SqlType>],
    values: Option<Vec<ScalarValue>>,
    taker: Taker,
) -> Result<(ContinuousPlan, Vec<SqlType>), SqlError> {
    refuse_query(&select.query, taker)?;
    let partition_by = partition_by(select)?;
    let drafted = draft(context, select, param_types, Run::Continuously)?;
    let Drafted { plan, output, sources, views, window, grace, parameters, .. } = drafted;
    let (plan, params) = parameter::settle(plan, param_types, parameters)?;
    let plan = match values {
        Some(values) => parameter::with_values(plan, values)?,
        None => plan,
    };
    if taker == Taker::Relation {
        check_names(&select.query, output.iter().map(|column| column.name.as_str()))?;
    }
    let plan = analyze(unite(plan)?)?;
    let columns = result_columns(&plan, &output)?;
    let plan = in_result_types(plan, &columns)?;
    check_subqueries(&plan)?;
    let plan = optimize_continuous(first_rows(plan)?)?;
    check_expressions(&plan)?;
    let emission = match &select.emit {
        Some(Emit { kind: EmitKind::Final, .. }) => Emission::Final,
        _ => Emission::Changes,
    };
    let grace = grace_option(&select.options)?.or(grace);
    let partition_by = key_columns(partition_by, &columns)?;
    let plan =
        ContinuousPlan { plan, window, grace, sources, views, columns, partition_by, emission, state_retention: None };
    Ok((plan, params))
}

/// Refuses two columns of one name.
fn check_names<'a>(query: &Query, columns: impl Iterator<Item = &'a str>) -> Result<(), SqlError> {
    let mut names = HashSet::new();
    let Some((at, twice)) = columns.enumerate().find(|(_, name)| !names.insert(*name)) else { return Ok(()) };
    let items = match query.body.as_ref() {
        SetExpr::Select(body) => body.projection.as_slice(),
        _ => &[],
    };
    // Behind a star it is not known which item is which column.
    let item = items.iter().take(at + 1).take_while(|item| is_plain(item)).nth(at);
    let position = item.map_or(Position::UNKNOWN, |item| Position::of(item.span()));
    let error = SqlError::new(SqlState::DuplicateColumn, format!("column \"{twice}\" specified more than once"));
    Err(error.hint("give the columns different names with AS").at(position))
}

/// True for an item that is one column.
fn is_plain(item: &SelectItem) -> bool {
    matches!(item, SelectItem::UnnamedExpr(_) | SelectItem::ExprWithAlias { .. })
}

/// A column of the result that PARTITION BY names.
enum KeyColumn {
    /// By its name.
    Named(String),
    /// By its position.
    At(usize),
}

/// What PARTITION BY names, each an expression or a name of the select list.
///
/// # Errors
/// 42P10 for another.
fn partition_by(select: &Select) -> Result<Vec<(KeyColumn, Position)>, SqlError> {
    let Some(clause) = &select.partition_by else { return Ok(Vec::new()) };
    let items = match select.query.body.as_ref() {
        SetExpr::Select(body) => body.projection.as_slice(),
        _ => &[],
    };
    let plain = items.iter().take_while(|item| is_plain(item));
    let find = |wanted: &Expr| {
        plain.clone().position(|item| match item {
            SelectItem::UnnamedExpr(expr) | SelectItem::ExprWithAlias { expr, .. } => expr == wanted,
            _ => false,
        })
    };
    let column = |wanted: &Expr| match (find(wanted), wanted) {
        (Some(at), _) => Ok((KeyColumn::At(at), clause.position)),
        (None, Expr::Identifier(name)) => Ok((KeyColumn::Named(name.value.clone()), clause.position)),
        (None, _) => {
            let fact = format!("PARTITION BY expression \"{wanted}\" is not in the select list");
            let error = SqlError::new(SqlState::InvalidColumnReference, fact);
            Err(error.hint("select it: it is the key of the new stream").at(clause.position))
        }
    };
    clause.expressions.iter().map(column).collect()
}

fn key_columns(wanted: Vec<(KeyColumn, Position)>, columns: &[ResultColumn]) -> Result<Vec<usize>, SqlError> {
    let column = |(key, position): (KeyColumn, Position)| match key {
        KeyColumn::At(at) => Ok(at),
        KeyColumn::Named(name) => columns.iter().position(|column| column.name == name).ok_or_else(|| {
            let fact = format!("PARTITION BY column \"{name}\" is not in the select list");
            let error = SqlError::new(SqlState::InvalidColumnReference, fact);
            error.hint("select it: it is the key of the new stream").at(position)
        }),
    };
    wanted.into_iter().map(column).collect()
}

fn refused(what: &str, hint: &str) -> SqlError {
    SqlError::unsupported(format!("{what} in a continuous query"), hint)
}

/// Refuses clauses of the outermost query that have no meaning for one that does not end.
fn refuse_query(query: &Query, taker: Taker) -> Result<(), SqlError> {
    let is_limited = query.limit_clause.is_some() || query.fetch.is_some();
    if query.order_by.is_some() && !is_limited && !is_distinct_on(query) {
        return Err(refused("ORDER BY without LIMIT", "order when reading the result"));
    }
    if query.order_by.is_none() && is_limited {
        let hint = match taker {
            Taker::Subscription => "put LIMIT after EMIT CHANGES, or say with ORDER BY which rows",
            Taker::Relation | Taker::Insert => "say with ORDER BY which rows, or put LIMIT into a query that reads it",
        };
        let position = match &query.limit_clause {
            Some(LimitClause::LimitOffset { limit: Some(limit), .. }) => position_of(limit),
            _ => Position::UNKNOWN,
        };
        return Err(refused("LIMIT or OFFSET without ORDER BY", hint).at(position));
    }
    match query.body.as_ref() {
        SetExpr::Query(inner) => refuse_query(inner, taker),
        SetExpr::Values(_) => Err(refused("VALUES", "read a stream or table")),
        _ => Ok(()),
    }
}

/// ORDER BY says which row of each group.
fn is_distinct_on(query: &Query) -> bool {
    matches!(query.body.as_ref(), SetExpr::Select(select) if matches!(select.distinct, Some(Distinct::On(_))))
}

/// A scalar sub-query becomes a join, which would give a row for each of its rows.
fn check_subqueries(plan: &LogicalPlan) -> Result<(), SqlError> {
    let mut is_single = true;
    plan.apply_with_subqueries(|level| {
        level.apply_expressions(|expr| {
            expr.apply(|expr| {
                if let logical_expr::Expr::ScalarSubquery(query) = expr {
                    let is_own = query.outer_ref_columns.is_empty();
                    is_single &= gives_one_row(&query.subquery) || (is_own && is_first_row(&query.subquery));
                }
                Ok(TreeNodeRecursion::Continue)
            })
        })
    })?;
    match is_single {
        true => Ok(()),
        false => Err(refused("a scalar sub-query that may give several rows", "make it an aggregate such as max(…)")),
    }
}

fn gives_one_row(plan: &LogicalPlan) -> bool {
    match plan {
        LogicalPlan::Aggregate(aggregate) => aggregate.group_expr.is_empty(),
        LogicalPlan::Projection(_) | LogicalPlan::SubqueryAlias(_) => plan.inputs().into_iter().all(gives_one_row),
        _ => false,
    }
}

fn is_first_row(plan: &LogicalPlan) -> bool {
    match plan {
        LogicalPlan::Limit(limit) => matches!(limit.get_fetch_type(), Ok(FetchType::Literal(Some(0 | 1)))),
        LogicalPlan::Projection(_) | LogicalPlan::SubqueryAlias(_) => plan.inputs().into_iter().all(is_first_row),
        _ => false,
    }
}

/// Volatile functions would give other rows on replay.
fn check_expressions(plan: &LogicalPlan) -> Result<(), SqlError> {
    let mut volatile = None;
    plan.apply(|level| {
        level.apply_expressions(|expr| {
            expr.apply(|expr| {
                if let logical_expr::Expr::ScalarFunction(call) = expr
                    && call.func.signature().volatility == Volatility::Volatile
                    && call.func.name() != SERIES
                {
                    volatile = Some(call.func.name().to_owned());
                }
                Ok(TreeNodeRecursion::Continue)
            })
        })
    })?;
    match volatile {
        Some(name) => {
            let error = refused(&format!("{name}()"), "a replay after a crash must give the same rows");
            Err(error.near(Near::Word(name)))
        }
        None => Ok(()),
    }
}
