//! Where values are compared without an operator, or with what a sub-query gives: grouping, DISTINCT, ORDER BY, set
//! operations, aggregates, `IN (SELECT …)`.
//!
//! Types without equality are refused there, and values whose stored form is not what they are compared by get the form
//! that is: intervals are sorted by length, `jsonb` by value. Leaves out operators (`operator`). Pure.

use super::operator::{by_value, compare_operands, type_of};
use crate::error::SqlError;
use crate::function::by_value::{canonical_function, float_function, is_by_value, key_function};
use crate::function::errors::external;
use crate::function::total_order::order_functions;
use arrow::datatypes::DataType;
use datafusion::common::tree_node::{Transformed, TreeNode};
use datafusion::common::{Column, DFSchema, ExprSchema, Result};
use datafusion::logical_expr::expr::{
    BinaryExpr, InSubquery, SetComparison, SetQuantifier, Sort, WindowFunctionParams,
};
use datafusion::logical_expr::{
    Aggregate, Distinct, Expr, ExprSchemable, LogicalPlan, Operator, Projection, ScalarUDF, Subquery, WindowFrameBound,
    WindowFrameUnits,
};
use millstream_catalog::SqlType;
use millstream_catalog::model::SqlState;
use std::sync::Arc;

fn no_equality(sql_type: &SqlType) -> datafusion::common::DataFusionError {
    let fact = format!("could not identify an equality operator for type {sql_type}");
    let hint =
        if *sql_type == SqlType::Json { "cast it to jsonb" } else { "compare a value of it, or cast it to text" };
    external(SqlError::new(SqlState::UndefinedFunction, fact).hint(hint))
}

fn no_order(sql_type: &SqlType) -> datafusion::common::DataFusionError {
    let fact = format!("could not identify an ordering operator for type {sql_type}");
    external(SqlError::new(SqlState::UndefinedFunction, fact).hint("cast it to jsonb, or to text"))
}

/// `expr` in the one form of values equal to it, under its own name.
///
/// # Errors
/// 42883 for a type without equality.
fn grouped(expr: Expr, schema: &dyn ExprSchema) -> Result<Option<Expr>> {
    let Some(sql_type) = type_of(&expr, schema)? else { return Ok(None) };
    if !sql_type.has_equality() {
        return Err(no_equality(&sql_type));
    }
    let is_done = matches!(expr.clone().unalias(), Expr::ScalarFunction(call) if is_by_value(&call.func));
    let Some(canonical) = canonical_function(&sql_type).filter(|_| !is_done) else { return Ok(None) };
    let call = canonical.call(vec![expr.clone()]);
    Ok(Some(match expr {
        Expr::Column(Column { relation, name, .. }) => call.alias_qualified(relation, name),
        other => call.alias(other.schema_name().to_string()),
    }))
}

/// A value to sort by; `None` where it is the value itself.
///
/// # Errors
/// 42883 for a type without order.
fn sorted(expr: &Expr, schema: &dyn ExprSchema) -> Result<Option<Expr>> {
    let is_done = matches!(expr.clone().unalias(), Expr::ScalarFunction(call) if is_by_value(&call.func));
    let is_plain = |sql_type: &SqlType| sql_type.has_equality() && !is_done && key_function(sql_type).is_none();
    let with_float = |sql_type: SqlType| float_function(&sql_type).filter(|_| is_plain(&sql_type));
    match type_of(expr, schema)?.and_then(with_float) {
        Some(float) => Ok(Some(float.call(vec![expr.clone()]))),
        None => joined(expr, schema),
    }
}

/// A value to join by: as [`sorted`], but that joins compare floating-point numbers as SQL does.
fn joined(expr: &Expr, schema: &dyn ExprSchema) -> Result<Option<Expr>> {
    let Some(sql_type) = type_of(expr, schema)? else { return Ok(None) };
    if !sql_type.has_equality() {
        return Err(no_order(&sql_type));
    }
    let by_value = by_value(expr.clone(), &sql_type);
    Ok((by_value != *expr).then_some(by_value))
}

/// Replaces each of `exprs` by what `change` gives, and tells whether it gave any.
fn replace(exprs: &mut [Expr], change: impl Fn(&Expr) -> Result<Option<Expr>>) -> Result<bool> {
    let mut is_changed = false;
    for expr in exprs {
        if let Some(changed) = change(expr)? {
            *expr = changed;
            is_changed = true;
        }
    }
    Ok(is_changed)
}

/// Each key once: a second one orders nothing, and the engine's aggregates fail over it.
fn sort_keys(keys: &mut Vec<Sort>, schema: &dyn ExprSchema) -> Result<bool> {
    let mut is_changed = false;
    for key in keys.iter_mut() {
        is_changed |= replace(std::slice::from_mut(&mut key.expr), |expr| sorted(expr, schema))?;
    }
    Ok(is_changed | once(keys, |key| &key.expr))
}

/// Leaves out what is there before, and tells whether there was any.
fn once<T>(items: &mut Vec<T>, expr: impl Fn(&T) -> &Expr) -> bool {
    let count = items.len();
    let mut seen: Vec<Expr> = Vec::with_capacity(count);
    items.retain(|item| {
        let is_new = !seen.contains(expr(item));
        seen.push(expr(item).clone());
        is_new
    });
    items.len() < count
}

/// Aggregates that compare their argument, and none of them knows documents.
const ORDERED: [&str; 2] = ["min", "max"];

/// Checks the argument of `name` if that compares it; gives the function from what is compared in its place.
///
/// # Errors
/// 42883 for a type that cannot be compared.
fn ordered(name: &str, args: &mut [Expr], schema: &dyn ExprSchema) -> Result<Option<ScalarUDF>> {
    let (true, Some(arg)) = (ORDERED.contains(&name), args.first_mut()) else { return Ok(None) };
    let Some(sql_type) = type_of(arg, schema)? else { return Ok(None) };
    if !sql_type.has_equality() || sql_type.has(&SqlType::Jsonb) || sql_type.is_document() {
        let fact = format!("function {name}({sql_type}) does not exist");
        let hint = "take the least or greatest of a value in it";
        return Err(external(SqlError::new(SqlState::UndefinedFunction, fact).hint(hint)));
    }
    let Some((order, back)) = order_functions(&sql_type) else { return Ok(None) };
    *arg = order.call(vec![arg.clone()]);
    Ok(Some(back))
}

fn with(function: Option<ScalarUDF>, expr: Expr) -> Expr {
    match function {
        Some(function) => function.call(vec![expr]),
        None => expr,
    }
}

/// A call of an aggregate or window function, comparing by value what it compares.
///
/// # Errors
/// 42883 for a type that the function cannot compare.
pub(super) fn call(expr: Expr, schema: &dyn ExprSchema) -> Result<Expr> {
    match expr {
        Expr::AggregateFunction(mut call) => {
            let back = ordered(call.func.name(), &mut call.params.args, schema)?;
            if call.params.distinct {
                let plain = |expr: &Expr| Ok(grouped(expr.clone(), schema)?.map(Expr::unalias));
                replace(&mut call.params.args, plain)?;
            }
            sort_keys(&mut call.params.order_by, schema)?;
            Ok(with(back, Expr::AggregateFunction(call)))
        }
        Expr::WindowFunction(mut call) => {
            let back = ordered(call.fun.name(), &mut call.params.args, schema)?;
            replace(&mut call.params.partition_by, |expr| sorted(expr, schema))?;
            sort_keys(&mut call.params.order_by, schema)?;
            by_groups(&mut call.params, schema)?;
            Ok(with(back, Expr::WindowFunction(call)))
        }
        // `count(*)` is a call of another form under its own name.
        Expr::Alias(mut alias) if matches!(*alias.expr, Expr::AggregateFunction(_) | Expr::WindowFunction(_)) => {
            alias.expr = Box::new(self::call(*alias.expr, schema)?);
            Ok(Expr::Alias(alias))
        }
        other => Ok(other),
    }
}

/// A frame without distances as one of groups, which is the same; one of a range the engine refuses for bytes.
fn by_groups(params: &mut WindowFunctionParams, schema: &dyn ExprSchema) -> Result<()> {
    let Some(first) = params.order_by.first() else { return Ok(()) };
    let is_plain = |bound: &WindowFrameBound| match bound {
        WindowFrameBound::CurrentRow => true,
        WindowFrameBound::Preceding(distance) | WindowFrameBound::Following(distance) => distance.is_null(),
    };
    let frame = &params.window_frame;
    let is_range = frame.units == WindowFrameUnits::Range && is_plain(&frame.start_bound) && is_plain(&frame.end_bound);
    if is_range
        && matches!(
            first.expr.get_type(schema)?,
            DataType::Binary
                | DataType::FixedSizeBinary(_)
                | DataType::Time64(_)
                | DataType::Interval(_)
                | DataType::Struct(_)
        )
    {
        params.window_frame.units = WindowFrameUnits::Groups;
    }
    Ok(())
}

/// The column that a sub-query is compared by.
const VALUE: &str = "$value";

/// Where a comparison with a sub-query stands in a condition.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    /// It is one of the conditions that must all be true: the engine makes it a join that knows NULL.
    Top,
    /// It is one of several of which one must be true: the engine makes it a join in which NULL is false.
    Either,
    /// NULL is not false there.
    Inside,
}

/// A condition in which comparisons with sub-queries, `x IN (SELECT y …)` and `x > ALL (SELECT y …)`, compare as operators
/// do.
///
/// # Errors
/// 42883 for types that cannot be compared.
fn condition(expr: Expr, place: Place, schema: &DFSchema) -> Result<Transformed<Expr>> {
    match expr {
        Expr::BinaryExpr(BinaryExpr { left, op: op @ (Operator::And | Operator::Or), right }) => {
            let place = if op == Operator::Or && place == Place::Top { Place::Either } else { place };
            let (left, right) = (condition(*left, place, schema)?, condition(*right, place, schema)?);
            let is_changed = left.transformed || right.transformed;
            let both = Expr::BinaryExpr(BinaryExpr { left: Box::new(left.data), op, right: Box::new(right.data) });
            Ok(if is_changed { Transformed::yes(both) } else { Transformed::no(both) })
        }
        Expr::Not(inner) => match *inner {
            Expr::InSubquery(query) if place == Place::Top => {
                with_query(Expr::InSubquery(InSubquery { negated: !query.negated, ..query }), place, schema)
            }
            inner => Ok(condition(inner, Place::Inside, schema)?.update_data(|inner| Expr::Not(Box::new(inner)))),
        },
        Expr::InSubquery(_) | Expr::SetComparison(_) => with_query(expr, place, schema),
        other => other.transform_up(|expr| with_query(expr, Place::Inside, schema)),
    }
}

/// A comparison with a sub-query. As `IN` where the engine's join gives what that does in its place, else as `ANY` or `ALL`.
fn with_query(expr: Expr, place: Place, schema: &DFSchema) -> Result<Transformed<Expr>> {
    // `NOT IN` that reads the row outside has no form that runs continuously; `<> ALL` has.
    let is_written_in = matches!(expr, Expr::InSubquery(_));
    let (mut own, mut query, op, quantifier) = match expr {
        Expr::InSubquery(InSubquery { expr, subquery, negated: false }) => {
            (expr, subquery, Operator::Eq, SetQuantifier::Any)
        }
        Expr::InSubquery(InSubquery { expr, subquery, negated: true }) => {
            (expr, subquery, Operator::NotEq, SetQuantifier::All)
        }
        Expr::SetComparison(SetComparison { expr, subquery, op, quantifier }) => (expr, subquery, op, quantifier),
        other => return Ok(Transformed::no(other)),
    };
    let shown = if op == Operator::NotEq { "<>".to_owned() } else { op.to_string() };
    let is_plain = sides(&shown, &mut own, &mut query, schema)?;
    let negated = match (op, &quantifier) {
        (Operator::Eq, SetQuantifier::Any) => Some(false),
        (Operator::NotEq, SetQuantifier::All) => Some(true),
        _ => None,
    };
    Ok(Transformed::yes(match (negated, place) {
        (Some(negated), Place::Top) if is_written_in || !negated || query.outer_ref_columns.is_empty() => {
            Expr::InSubquery(InSubquery { expr: own, subquery: query, negated })
        }
        (Some(false), Place::Either) if is_plain => {
            Expr::InSubquery(InSubquery { expr: own, subquery: query, negated: false })
        }
        _ => Expr::SetComparison(SetComparison { expr: own, subquery: query, op, quantifier }),
    }))
}

/// Both sides as what `op` compares; the sub-query's has a name that no column of the other side has. Whether that one is
/// its column as it is.
fn sides(op: &str, own: &mut Expr, query: &mut Subquery, schema: &DFSchema) -> Result<bool> {
    let plan = Arc::clone(&query.subquery);
    let [column] = <[Column; 1]>::try_from(plan.schema().columns())
        .map_err(|_| external(SqlError::internal("a comparison with a sub-query of several columns")))?;
    let named = |expr: Expr, plan| Projection::try_new(vec![expr.alias(VALUE)], plan).map(LogicalPlan::Projection);
    let plan = Arc::new(named(Expr::Column(column), plan)?);
    let (value, both) = (Expr::Column(Column::new_unqualified(VALUE)), schema.join(plan.schema())?);
    let (left, right) = compare_operands(op, own.clone(), value.clone(), &both)?;
    *own = left;
    let is_plain = right == value;
    let plan = if is_plain { plan } else { Arc::new(named(right, plan)?) };
    *query = query.with_plan(plan);
    Ok(is_plain)
}

/// One step of a plan, comparing by value what it compares.
///
/// # Errors
/// 42883 for a type that cannot be compared.
pub(crate) fn step(node: LogicalPlan) -> Result<Transformed<LogicalPlan>> {
    match node {
        LogicalPlan::Filter(_) | LogicalPlan::Projection(_) => {
            let Some(schema) = node.inputs().first().map(|input| Arc::clone(input.schema())) else {
                return Ok(Transformed::no(node));
            };
            node.map_expressions(|expr| condition(expr, Place::Top, &schema))
        }
        LogicalPlan::Sort(mut sort) => {
            let is_changed = sort_keys(&mut sort.expr, sort.input.schema())?;
            let node = LogicalPlan::Sort(sort);
            Ok(if is_changed { Transformed::yes(node) } else { Transformed::no(node) })
        }
        LogicalPlan::Aggregate(aggregate) => {
            let Aggregate { input, mut group_expr, aggr_expr, schema, .. } = aggregate;
            let is_changed = replace(&mut group_expr, |expr| match expr {
                Expr::GroupingSet(_) => Ok(None),
                expr => grouped(expr.clone(), input.schema()),
            })?;
            let node = match is_changed {
                true => Aggregate::try_new(input, group_expr, aggr_expr)?,
                false => Aggregate::try_new_with_schema(input, group_expr, aggr_expr, schema)?,
            };
            let node = LogicalPlan::Aggregate(node);
            Ok(if is_changed { Transformed::yes(node) } else { Transformed::no(node) })
        }
        LogicalPlan::Distinct(Distinct::All(input)) => {
            let mut columns: Vec<Expr> = input.schema().columns().into_iter().map(Expr::Column).collect();
            match replace(&mut columns, |expr| grouped(expr.clone(), input.schema()))? {
                true => {
                    let input = Arc::new(LogicalPlan::Projection(Projection::try_new(columns, input)?));
                    Ok(Transformed::yes(LogicalPlan::Distinct(Distinct::All(input))))
                }
                false => Ok(Transformed::no(LogicalPlan::Distinct(Distinct::All(input)))),
            }
        }
        LogicalPlan::Distinct(Distinct::On(mut on)) => {
            let schema = Arc::clone(on.input.schema());
            let mut is_changed = replace(&mut on.on_expr, |expr| sorted(expr, &schema))?;
            is_changed |= once(&mut on.on_expr, |expr| expr);
            if let Some(keys) = &mut on.sort_expr {
                is_changed |= sort_keys(keys, &schema)?;
            }
            let node = LogicalPlan::Distinct(Distinct::On(on));
            Ok(if is_changed { Transformed::yes(node) } else { Transformed::no(node) })
        }
        LogicalPlan::Join(mut join) => {
            let mut is_changed = false;
            for (left, right) in &mut join.on {
                is_changed |= replace(std::slice::from_mut(left), |expr| joined(expr, join.left.schema()))?;
                is_changed |= replace(std::slice::from_mut(right), |expr| joined(expr, join.right.schema()))?;
            }
            if let Some(filter) = join.filter.take() {
                let both = join.left.schema().join(join.right.schema())?;
                let filter = condition(filter, Place::Top, &both)?;
                is_changed |= filter.transformed;
                join.filter = Some(filter.data);
            }
            let node = LogicalPlan::Join(join);
            Ok(if is_changed { Transformed::yes(node) } else { Transformed::no(node) })
        }
        other => Ok(Transformed::no(other)),
    }
}
