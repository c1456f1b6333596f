//! SELECT that may run continuously: checked for what that allows, and brought into the shape `ContinuousPlan` promises.
//!
//! Owns the refusals, each naming its clause. Leaves out operators and their own refusals (`stream`). Pure.

use super::select::{Drafted, Run, draft, in_result_types, result_columns};
use super::{ContinuousPlan, PlanContext, ResultColumn, parameter, scanned_relation};
use crate::dialect::ast::Select;
use crate::error::SqlError;
use crate::exec::session::{analyze, simplify};
use datafusion::common::ScalarValue;
use datafusion::common::tree_node::{Transformed, TreeNode, TreeNodeRecursion};
use datafusion::logical_expr::expr_rewriter::NamePreserver;
use datafusion::logical_expr::{Expr, LogicalPlan, Projection, Volatility};
use millstream_catalog::SqlType;
use millstream_catalog::model::SqlState;
use sqlparser::ast::{
    Expr as SqlExpr, Function, FunctionArguments, GroupByExpr, Query, Select as SqlSelect, SetExpr, Spanned,
    TableFactor, Visit, Visitor,
};
use std::collections::HashSet;
use std::ops::ControlFlow;
use std::sync::Arc;

/// Plans `select` for a continuous run.
///
/// # Errors
/// As `plan_select`; 0A000 with a hint for what cannot run continuously, 42701 for two columns of one name.
pub fn plan_continuous(context: &PlanContext, select: &Select) -> Result<ContinuousPlan, SqlError> {
    let (plan, params) = plan_with(context, select, &[], None)?;
    if params.is_empty() {
        return Ok(plan);
    }
    let fact = "a continuous query cannot have parameters";
    Err(SqlError::new(SqlState::UndefinedParameter, fact).hint("write the values into the statement"))
}

/// Plans `select` for a subscription, with the values of its parameters, which have the types that `describe_push` gave.
///
/// # Errors
/// As `plan_continuous`.
pub fn plan_push(
    context: &PlanContext,
    select: &Select,
    params: &[SqlType],
    values: Vec<ScalarValue>,
) -> Result<ContinuousPlan, SqlError> {
    let types: Vec<Option<SqlType>> = params.iter().cloned().map(Some).collect();
    plan_with(context, select, &types, Some(values)).map(|(plan, _)| plan)
}

/// The types of a subscription's parameters, and its columns. `param_types` are the types the client declares.
///
/// # Errors
/// As `plan_continuous`.
pub fn describe_push(
    context: &PlanContext,
    select: &Select,
    param_types: &[Option<SqlType>],
) -> Result<(Vec<SqlType>, Vec<ResultColumn>), SqlError> {
    plan_with(context, select, param_types, None).map(|(plan, params)| (params, plan.columns))
}

/// The plan, with placeholders where `values` are not known, and the types of its parameters.
fn plan_with(
    context: &PlanContext,
    select: &Select,
    param_types: &[Option<SqlType>],
    values: Option<Vec<ScalarValue>>,
) -> Result<(ContinuousPlan, Vec<SqlType>), SqlError> {
    let body = refuse_query(&select.query)?;
    refuse_select(body)?;
    let Drafted { plan, output, sources, window, parameters } = draft(context, select, param_types, Run::Continuously)?;
    let (plan, params) = parameter::settle(plan, param_types, parameters)?;
    let plan = match values {
        Some(values) => parameter::with_values(plan, values)?,
        None => plan,
    };
    let mut names = HashSet::new();
    if let Some(twice) = output.iter().find(|column| !names.insert(column.name.as_str())) {
        let fact = format!("column \"{}\" specified more than once", twice.name);
        return Err(SqlError::new(SqlState::DuplicateColumn, fact).hint("give the columns different names with AS"));
    }
    let plan = analyze(plan)?;
    let columns = result_columns(&plan, &output)?;
    let plan = simplify(in_result_types(plan, &columns)?)?;
    let plan = merge_projections(plan)?;
    check_shape(&plan, &columns)?;
    Ok((ContinuousPlan { plan, window, sources, columns }, params))
}

fn refused(what: &str, hint: &str) -> SqlError {
    SqlError::unsupported(format!("{what} in a continuous query"), hint)
}

/// The only SELECT of a query that may run continuously.
fn refuse_query(query: &Query) -> Result<&SqlSelect, SqlError> {
    let one_step = "create a stream or table from the inner query first, and read that";
    if query.with.is_some() {
        return Err(refused("WITH", one_step));
    }
    if query.order_by.is_some() {
        return Err(refused("ORDER BY", "order when reading the result"));
    }
    if query.limit_clause.is_some() || query.fetch.is_some() {
        return Err(refused("LIMIT or OFFSET", "put LIMIT after EMIT CHANGES, or limit when reading the result"));
    }
    match query.body.as_ref() {
        SetExpr::Select(select) => Ok(select),
        SetExpr::Query(inner) => refuse_query(inner),
        SetExpr::SetOperation { op, .. } => Err(refused(&op.to_string(), "write several queries into one stream")),
        SetExpr::Values(_) => Err(refused("VALUES", "read a stream or table")),
        _ => Err(refused("this query", "write SELECT … FROM a stream or table")),
    }
}

fn refuse_select(select: &SqlSelect) -> Result<(), SqlError> {
    let one_step = "create a stream or table from the inner query first, and read that";
    if select.distinct.is_some() {
        return Err(refused("DISTINCT", "use GROUP BY"));
    }
    if !select.named_window.is_empty() {
        return Err(refused("WINDOW … AS", "use WINDOW TUMBLING and GROUP BY"));
    }
    if select.qualify.is_some() {
        return Err(refused("QUALIFY", "filter when reading the result"));
    }
    match select.from.as_slice() {
        [] => return Err(refused("a SELECT without FROM", "read a stream or table")),
        [tree] if tree.joins.is_empty() => match &tree.relation {
            TableFactor::Table { args: None, .. } => {}
            TableFactor::Derived { .. } => return Err(refused("a sub-query in FROM", one_step)),
            _ => return Err(refused("a function in FROM", "read a stream or table")),
        },
        _ => return Err(refused("a join", "join when reading the result, with a pull query")),
    }
    if let GroupByExpr::Expressions(exprs, _) = &select.group_by {
        let is_set = |expr: &SqlExpr| matches!(expr, SqlExpr::Rollup(_) | SqlExpr::Cube(_) | SqlExpr::GroupingSets(_));
        if exprs.iter().any(is_set) {
            return Err(refused("ROLLUP, CUBE or GROUPING SETS", "create one query per grouping"));
        }
    }
    match select.visit(&mut Refusals) {
        ControlFlow::Break(error) => Err(*error),
        ControlFlow::Continue(()) => Ok(()),
    }
}

/// Refuses what may hide inside an expression.
struct Refusals;

impl Visitor for Refusals {
    type Break = Box<SqlError>;

    fn pre_visit_expr(&mut self, expr: &SqlExpr) -> ControlFlow<Self::Break> {
        let at = crate::dialect::ast::Position::of(expr.span());
        let error = match expr {
            SqlExpr::Subquery(_) | SqlExpr::Exists { .. } | SqlExpr::InSubquery { .. } => {
                refused("a sub-query", "create a table from the inner query first, and read that").at(at)
            }
            SqlExpr::Function(Function { over: Some(_), .. }) => {
                refused("OVER", "use WINDOW TUMBLING and GROUP BY, or OVER when reading the result").at(at)
            }
            SqlExpr::Function(Function { args: FunctionArguments::Subquery(_), .. }) => {
                refused("a sub-query", "create a table from the inner query first, and read that").at(at)
            }
            _ => return ControlFlow::Continue(()),
        };
        ControlFlow::Break(Box::new(error))
    }
}

/// Two projections at the top become one.
fn merge_projections(plan: LogicalPlan) -> Result<LogicalPlan, SqlError> {
    let LogicalPlan::Projection(outer) = plan else { return Ok(plan) };
    let LogicalPlan::Projection(inner) = outer.input.as_ref() else { return Ok(LogicalPlan::Projection(outer)) };
    if matches!(inner.input.as_ref(), LogicalPlan::TableScan(_))
        && inner.schema.fields().iter().any(|field| field.name() == super::window::WINDOWSTART)
    {
        return Ok(LogicalPlan::Projection(outer));
    }
    let names = NamePreserver::new_for_projection();
    let mut exprs = Vec::new();
    for expr in outer.expr {
        let name = names.save(&expr);
        let substituted = expr.transform_up(|expr| match &expr {
            Expr::Column(column) => {
                let at = inner.schema.index_of_column(column)?;
                Ok(Transformed::yes(inner.expr[at].clone().unalias()))
            }
            _ => Ok(Transformed::no(expr)),
        })?;
        exprs.push(name.restore(substituted.data));
    }
    let merged = Projection::try_new(exprs, Arc::clone(&inner.input))?;
    merge_projections(LogicalPlan::Projection(merged))
}

/// Refuses whatever is not of the promised shape.
fn check_shape(plan: &LogicalPlan, columns: &[ResultColumn]) -> Result<(), SqlError> {
    let LogicalPlan::Projection(root) = plan else {
        return Err(SqlError::internal("a continuous plan begins with a projection"));
    };
    if root.expr.len() != columns.len() {
        return Err(SqlError::internal("a continuous plan has other columns than its result"));
    }
    let mut levels = Vec::new();
    let mut level = root.input.as_ref();
    loop {
        check_expressions(level)?;
        levels.push(match level {
            LogicalPlan::Filter(_) => 'f',
            LogicalPlan::Aggregate(_) => 'a',
            LogicalPlan::Projection(_) => 'p',
            LogicalPlan::TableScan(scan) if scanned_relation(scan).is_some() => 's',
            LogicalPlan::TableScan(_) => return Err(refused("a system view", "read a stream or table")),
            LogicalPlan::EmptyRelation(_) => {
                return Err(refused("a condition that is never true", "leave the query out"));
            }
            other => {
                let kind = other.display().to_string();
                let word = kind.split([':', ' ']).next().unwrap_or("this clause").to_lowercase();
                return Err(refused(&word, "create a stream or table from a part of the query first"));
            }
        });
        match level.inputs().as_slice() {
            [input] => level = input,
            _ => break,
        }
    }
    check_expressions(plan)?;
    let shape: String = levels.into_iter().collect();
    let rest = shape.strip_prefix("fa").or_else(|| shape.strip_prefix('a')).unwrap_or(&shape);
    match rest.strip_prefix('f').unwrap_or(rest) {
        "s" | "ps" => Ok(()),
        _ => Err(SqlError::internal("a continuous plan of an unknown shape")),
    }
}

/// Volatile functions would give other rows on replay.
fn check_expressions(plan: &LogicalPlan) -> Result<(), SqlError> {
    let mut volatile = None;
    plan.apply_expressions(|expr| {
        expr.apply(|expr| {
            if let Expr::ScalarFunction(call) = expr
                && call.func.signature().volatility == Volatility::Volatile
            {
                volatile = Some(call.func.name().to_owned());
            }
            Ok(TreeNodeRecursion::Continue)
        })
    })?;
    match volatile {
        Some(name) => Err(refused(&format!("{name}()"), "a replay after a crash must give the same rows")),
        None => Ok(()),
    }
}
