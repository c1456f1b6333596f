//! Expressions whose parts must be of one type: CASE, IN, COALESCE and its kin, LIKE, conditions.
//!
//! The rewriter marks them with an operator of its own, so that they are typed when they are built and every use of them
//! sees the final type. Source: PostgreSQL 15, section 10.5. Leaves out operators proper. Pure.

use super::from::binary;
use super::operator::{as_numeric, boolean, comparable, compared_by, convert, folded, no_operator, type_of, unfilled};
use super::refuse;
use crate::error::{Near, SqlError};
use crate::function::cast::constant_type;
use crate::function::errors::external;
use crate::function::typed::{plain_type, with_type, without_types};
use arrow::datatypes::DataType;
use datafusion::common::{DFSchema, Result};
use datafusion::logical_expr::expr::{InList, ScalarFunction};
use datafusion::logical_expr::{Between, Case, Cast, Expr, ExprSchemable, Like, Operator, binary_expr};
use millstream_catalog::SqlType;
use millstream_catalog::model::SqlState;
use sqlparser::ast::{self, BinaryOperator, Visit, Visitor};
use std::ops::ControlFlow;

/// The mark on an expression whose parts must agree.
pub(super) const AGREE: &str = "$agree";
/// The mark on a condition, followed by the clause it stands in.
pub(super) const CONDITION: &str = "$condition ";

/// `expr`, to be settled when it is built.
pub(super) fn marked(expr: ast::Expr) -> ast::Expr {
    binary(expr, BinaryOperator::Custom(AGREE.to_owned()), refuse::null())
}

/// `expr` as the condition of `clause`.
///
/// # Errors
/// 42P20 for a window function, which is computed after conditions.
pub(super) fn condition(expr: &mut ast::Expr, clause: &str) -> std::result::Result<(), SqlError> {
    if clause != "QUALIFY" && has_window_call(expr) {
        let fact = format!("window functions are not allowed in {clause}");
        return Err(SqlError::new(SqlState::WindowingError, fact).hint("put the query into FROM, and filter around it"));
    }
    let inner = std::mem::replace(expr, refuse::null());
    *expr = binary(inner, BinaryOperator::Custom(format!("{CONDITION}{clause}")), refuse::null());
    Ok(())
}

/// Whether there is a window function in it, outside of sub-queries.
pub(super) fn has_window_call(node: &impl Visit) -> bool {
    node.visit(&mut FindOver { depth: 0 }).is_break()
}

struct FindOver {
    depth: usize,
}

impl Visitor for FindOver {
    type Break = ();

    fn pre_visit_query(&mut self, _: &ast::Query) -> ControlFlow<()> {
        self.depth += 1;
        ControlFlow::Continue(())
    }

    fn post_visit_query(&mut self, _: &ast::Query) -> ControlFlow<()> {
        self.depth -= 1;
        ControlFlow::Continue(())
    }

    fn pre_visit_expr(&mut self, expr: &ast::Expr) -> ControlFlow<()> {
        match expr {
            ast::Expr::Function(ast::Function { over: Some(_), .. }) if self.depth == 0 => ControlFlow::Break(()),
            _ => ControlFlow::Continue(()),
        }
    }
}

/// True for calls whose arguments must agree.
fn needs_agreement(function: &str) -> bool {
    ["coalesce", "greatest", "least", "nullif"].contains(&function)
}

/// Settles a marked expression; `None` when `op` is no mark.
pub(super) fn settle(op: &str, expr: Expr, schema: &DFSchema) -> Result<Option<Expr>> {
    if let Some(clause) = op.strip_prefix(CONDITION) {
        return boolean(expr, schema, clause).map(Some);
    }
    if op != AGREE {
        return Ok(None);
    }
    Ok(Some(match expr {
        Expr::Case(case) => self::case(case, schema)?,
        // The planner names a call after the text of its arguments where the function has another name than the call: names
        // in names would double with each cast inside of another.
        Expr::Alias(alias) if is_cast(&alias.expr) => *alias.expr,
        Expr::InList(list) => Expr::InList(in_list(list, schema)?),
        Expr::Between(between) => {
            let parts = vec![*between.expr, *between.low, *between.high];
            let mut parts = compared(parts, "BETWEEN", schema)?.into_iter();
            let (Some(expr), Some(low), Some(high)) = (parts.next(), parts.next(), parts.next()) else {
                return Err(external(SqlError::internal("BETWEEN without its parts")));
            };
            Expr::Between(Between::new(Box::new(expr), between.negated, Box::new(low), Box::new(high)))
        }
        Expr::Like(like) => Expr::Like(self::like(like, schema)?),
        Expr::Not(inner) => Expr::Not(Box::new(boolean(*inner, schema, "NOT")?)),
        Expr::ScalarFunction(call) if needs_agreement(call.func.name()) => self::call(call, schema)?,
        Expr::ScalarFunction(call) if call.func.name() == "make_array" => make_array(call, schema)?,
        Expr::ScalarFunction(call) => {
            let known = super::json::function(&call, schema)?;
            if let Some(expr) = known.map_or_else(|| super::access::construct(&call, schema), |expr| Ok(Some(expr)))? {
                return Ok(Some(expr));
            }
            let call = without_blanks(with_literals(call), schema)?;
            with_result_type(Expr::ScalarFunction(call), schema)?
        }
        other => with_result_type(other, schema)?,
    }))
}

fn is_cast(expr: &Expr) -> bool {
    matches!(expr, Expr::ScalarFunction(call) if crate::function::cast::cast_target(&call.func).is_some())
}

/// A call with its constant arguments as literals: some functions are typed by them, and the type must not change later.
fn with_literals(call: ScalarFunction) -> ScalarFunction {
    // A literal has no other type than its value's.
    let literal = |arg: Expr| match folded(&arg) {
        Some(value) if !has_own_type(&arg) => Expr::Literal(value, None),
        _ => arg,
    };
    ScalarFunction { args: call.args.into_iter().map(literal).collect(), func: call.func }
}

/// True for a constant of a type that its value alone does not tell.
fn has_own_type(arg: &Expr) -> bool {
    constant_type(arg).is_some_and(|sql_type| SqlType::of_arrow(&sql_type.arrow()).as_ref() != Some(sql_type))
}

/// A call with each `char(n)` as text, which loses the blanks at its end.
fn without_blanks(call: ScalarFunction, schema: &DFSchema) -> Result<ScalarFunction> {
    let sees_blanks = call.func.name() == "octet_length";
    let argument = |arg: Expr| match type_of(&arg, schema)? {
        Some(from @ SqlType::Char(_)) if !sees_blanks => convert(arg, Some(&from), &SqlType::Text),
        _ => Ok(arg),
    };
    Ok(ScalarFunction { args: call.args.into_iter().map(argument).collect::<Result<_>>()?, func: call.func })
}

/// Aggregates and window functions that give values of their first argument, or an array of them.
const GIVE_VALUES: [&str; 9] =
    ["array_agg", "min", "max", "first_value", "last_value", "nth_value", "any_value", "lag", "lead"];

/// A call of one of those with the SQL type of what it gives.
fn typed(mut expr: Expr, schema: &DFSchema) -> Result<Expr> {
    let (args, order) = match &mut expr {
        Expr::AggregateFunction(call) if GIVE_VALUES.contains(&call.func.name()) => {
            (&mut call.params.args, call.params.order_by.as_mut_slice())
        }
        Expr::WindowFunction(call) if GIVE_VALUES.contains(&call.fun.name()) => (&mut call.params.args, &mut [][..]),
        _ => return Ok(expr),
    };
    let Some(first) = args.first_mut() else { return Ok(expr) };
    let Some(sql_type) = SqlType::of(&first.to_field(schema)?.1) else { return Ok(expr) };
    if let Some(plain) = without_types(first, &sql_type) {
        // With DISTINCT the engine wants to see that the order is that of the argument.
        order.iter_mut().filter(|key| key.expr == *first).for_each(|key| key.expr = plain.clone());
        *first = plain;
    }
    // What `lag` and `lead` give where there is no row.
    if let Some(default) = args.get_mut(2).filter(|default| matches!(default, Expr::Literal(..)))
        && type_of(default, schema)?.is_none()
    {
        let value = convert(default.clone(), None, &sql_type)?;
        *default = folded(&value).map_or(value, |value| Expr::Literal(value, None));
    }
    let (given, own) = (plain_type(&expr.get_type(schema)?), plain_type(&sql_type.arrow()));
    Ok(match given {
        given if given == own => with_type(expr, &sql_type),
        DataType::List(item) if *item.data_type() == own => with_type(expr, &SqlType::Array(Box::new(sql_type))),
        _ => expr,
    })
}

/// The engine has an average of numbers only.
fn check_average(expr: &Expr, schema: &DFSchema) -> Result<()> {
    let (name, arg) = match expr {
        Expr::AggregateFunction(call) => (call.func.name(), call.params.args.first()),
        Expr::WindowFunction(call) => (call.fun.name(), call.params.args.first()),
        _ => return Ok(()),
    };
    let Some(arg) = arg.filter(|_| name == "avg") else { return Ok(()) };
    if type_of(arg, schema)? != Some(SqlType::Interval) {
        return Ok(());
    }
    let fact = "function avg(interval) does not exist";
    Err(external(SqlError::new(SqlState::UndefinedFunction, fact).hint("write sum(x) / count(x)")))
}

/// A call with the result type PostgreSQL gives it, where the library's differs.
fn with_result_type(expr: Expr, schema: &DFSchema) -> Result<Expr> {
    check_average(&expr, schema)?;
    let expr = typed(super::equality::call(expr, schema)?, schema)?;
    let wanted = match &expr {
        // Set-returning: its type is that of a row, known later.
        Expr::Unnest(_) => return Ok(expr),
        Expr::AggregateFunction(call) if call.func.name() == "sum" => match call.params.args.first() {
            Some(arg) if type_of(arg, schema)? == Some(SqlType::Real) => SqlType::Real,
            _ => return Ok(expr),
        },
        Expr::ScalarFunction(call) if call.func.name() == "power" => SqlType::Double,
        // Given a time with a zone, the library computes in nanoseconds.
        Expr::ScalarFunction(call) if call.func.name() == "date_bin" => match call.args.get(1) {
            Some(time) if type_of(time, schema)? == Some(SqlType::TimestampTz) => SqlType::TimestampTz,
            _ => return Ok(expr),
        },
        _ => match expr.get_type(schema)? {
            DataType::Decimal128(precision, scale) if scale > 0 && is_whole(&expr) => {
                SqlType::Numeric { precision, scale: 0 }
            }
            DataType::UInt64 | DataType::UInt32 if is_integer_call(&expr) => SqlType::Integer,
            DataType::UInt64 | DataType::UInt32 => SqlType::BigInt,
            _ => return Ok(expr),
        },
    };
    // What the call gives is known only once its arguments are coerced.
    let is_coerced = matches!(&expr, Expr::ScalarFunction(call) if call.func.name() == "date_bin");
    match !is_coerced && expr.get_type(schema)? == wanted.arrow() {
        true => Ok(expr),
        false => Ok(Expr::Cast(Cast::new(Box::new(expr), wanted.arrow()))),
    }
}

/// Functions to whole numbers.
fn is_whole(expr: &Expr) -> bool {
    matches!(expr, Expr::ScalarFunction(call) if ["ceil", "floor"].contains(&call.func.name()))
}

/// Counts that PostgreSQL gives as integer rather than bigint.
fn is_integer_call(expr: &Expr) -> bool {
    match expr {
        Expr::ScalarFunction(_) => true,
        Expr::WindowFunction(call) => call.fun.name() == "ntile",
        _ => false,
    }
}

/// The type that values of all `types` take.
pub(super) fn common_type(types: &[SqlType], what: &str) -> Result<SqlType, SqlError> {
    let mut types = types.iter();
    let Some(first) = types.next() else { return Ok(SqlType::Text) };
    types.try_fold(first.clone(), |common, next| {
        union(&common, next).ok_or_else(|| {
            let fact = format!("{what} types {common} and {next} cannot be matched");
            SqlError::new(SqlState::DatatypeMismatch, fact)
        })
    })
}

pub(super) fn union(left: &SqlType, right: &SqlType) -> Option<SqlType> {
    if left == right {
        return Some(left.clone());
    }
    if let (SqlType::Numeric { precision: p1, scale: s1 }, SqlType::Numeric { precision: p2, scale: s2 }) =
        (as_numeric(left), as_numeric(right))
        && [left, right].iter().any(|side| matches!(side, SqlType::Numeric { .. }))
    {
        let scale = s1.max(s2);
        let whole = (i16::from(p1) - i16::from(s1)).max(i16::from(p2) - i16::from(s2));
        let precision = u8::try_from((whole + i16::from(scale)).clamp(1, 38)).unwrap_or(38);
        return Some(SqlType::Numeric { precision, scale });
    }
    comparable(left, right).and_then(|(left, right)| (left == right).then_some(left))
}

/// All `exprs` as their common type, and that type.
fn agree(exprs: Vec<Expr>, what: &str, schema: &DFSchema) -> Result<(Vec<Expr>, SqlType)> {
    let types = exprs.iter().map(|expr| type_of(expr, schema)).collect::<Result<Vec<_>>>()?;
    let known: Vec<SqlType> = types.iter().flatten().cloned().collect();
    let common = common_type(&known, what).map_err(external)?;
    let exprs = exprs.into_iter().zip(types).map(|(expr, from)| convert(expr, from.as_ref(), &common));
    Ok((exprs.collect::<Result<_>>()?, common))
}

/// Expressions of one type, to be compared with each other.
fn compared(exprs: Vec<Expr>, what: &str, schema: &DFSchema) -> Result<Vec<Expr>> {
    let (exprs, _) = agree(unfilled(exprs, schema)?, what, schema)?;
    let by_value = |expr: Expr| match type_of(&expr, schema)? {
        Some(sql_type) if !sql_type.has_equality() => Err(no_operator("=", Some(&sql_type), Some(&sql_type))),
        Some(sql_type) => Ok(super::float::side(compared_by(expr, &sql_type), &sql_type)),
        None => Ok(expr),
    };
    exprs.into_iter().map(by_value).collect()
}

fn case(case: Case, schema: &DFSchema) -> Result<Expr> {
    let mut whens = Vec::new();
    let mut results = Vec::new();
    let has_operand = case.expr.is_some();
    let mut values: Vec<Expr> = case.expr.map(|operand| *operand).into_iter().collect();
    for (when, then) in case.when_then_expr {
        match has_operand {
            true => values.push(*when),
            false => whens.push(Box::new(boolean(*when, schema, "CASE/WHEN")?)),
        }
        results.push(*then);
    }
    let mut values = if has_operand { compared(values, "CASE/WHEN", schema)? } else { values }.into_iter();
    let operand = if has_operand { values.next().map(Box::new) } else { None };
    whens.extend(values.map(Box::new));
    let has_else = case.else_expr.is_some();
    results.extend(case.else_expr.map(|expr| *expr));
    let (mut results, common) = agree(results, "CASE", schema)?;
    let else_expr = if has_else { results.pop().map(Box::new) } else { None };
    let when_then_expr = whens.into_iter().zip(results.into_iter().map(Box::new)).collect();
    Ok(with_type(Expr::Case(Case { expr: operand, when_then_expr, else_expr }), &common))
}

fn in_list(list: InList, schema: &DFSchema) -> Result<InList> {
    let mut exprs = vec![*list.expr];
    exprs.extend(list.list);
    let exprs = unfilled(exprs, schema)?;
    let types = exprs.iter().map(|expr| type_of(expr, schema)).collect::<Result<Vec<_>>>()?;
    // The column's own type is enough where every constant fits it: no column is cast.
    let is_plain =
        |column: &&Option<SqlType>| column.as_ref().is_some_and(|column| column.has_equality() && !has_key(column));
    if let Some(Some(column)) = types.first().filter(is_plain) {
        let fits = |expr: &Expr| super::operator::fits(expr, column);
        let rest = exprs.iter().zip(&types).skip(1);
        if rest.clone().all(|(expr, from)| from.is_none() || from.as_ref() == Some(column) || fits(expr)) {
            let column = column.clone();
            let convert_item =
                |(expr, from): (Expr, Option<SqlType>)| super::operator::narrow(expr, from.as_ref(), &column);
            let mut items = exprs.into_iter().zip(types);
            let first = items.next().map(|(expr, _)| expr);
            let list_items = items.map(convert_item).collect::<Result<Vec<_>>>()?;
            return match first {
                Some(first) => {
                    let sided = list_items.into_iter().map(|item| super::float::side(item, &column)).collect();
                    let first = Box::new(super::float::side(first, &column));
                    Ok(super::float::listed(InList { expr: first, list: sided, negated: list.negated }))
                }
                None => Err(external(SqlError::internal("IN without a left side"))),
            };
        }
    }
    let mut exprs = compared(exprs, "IN", schema)?.into_iter();
    let first = exprs.next().ok_or_else(|| external(SqlError::internal("IN without a left side")))?;
    Ok(super::float::listed(InList { expr: Box::new(first), list: exprs.collect(), negated: list.negated }))
}

fn like(like: Like, schema: &DFSchema) -> Result<Like> {
    let text = |expr: Box<Expr>, is_pattern: bool| -> Result<Box<Expr>> {
        let from = type_of(&expr, schema)?;
        match &from {
            // Patterns see the blanks at its end.
            Some(SqlType::Char(_)) => Ok(expr),
            None | Some(SqlType::Text | SqlType::Varchar(_)) => {
                Ok(Box::new(convert(*expr, from.as_ref(), &SqlType::Text)?))
            }
            Some(other) => {
                let op = if like.case_insensitive { "~~*" } else { "~~" };
                let other = other.to_string();
                let (left, right) = if is_pattern { ("text", other.as_str()) } else { (other.as_str(), "text") };
                let fact = format!("operator does not exist: {left} {op} {right}");
                let near = Near::Word(if like.case_insensitive { "ilike" } else { "like" }.to_owned());
                Err(external(SqlError::new(SqlState::UndefinedFunction, fact).near(near)))
            }
        }
    };
    Ok(Like { expr: text(like.expr.clone(), false)?, pattern: text(like.pattern.clone(), true)?, ..like })
}

/// `ARRAY[…]`: its elements are of one type.
fn make_array(call: ScalarFunction, schema: &DFSchema) -> Result<Expr> {
    let (args, common) = agree(call.args, "ARRAY", schema)?;
    if let SqlType::Array(_) = common {
        return Err(external(SqlError::unsupported("an array of arrays", "use jsonb")));
    }
    Ok(with_type(Expr::ScalarFunction(ScalarFunction { func: call.func, args }), &SqlType::Array(Box::new(common))))
}

/// Whether values are compared by something else than how they are stored.
fn has_key(sql_type: &SqlType) -> bool {
    sql_type.has(&SqlType::Interval) || sql_type.has(&SqlType::Jsonb)
}

/// Values among which one is chosen by `CASE`: each one more makes it three times as large.
const CHOSEN_MAX: usize = 5;

/// `best` where it is there and compares so with `next`, or `next` is not there; else `next`.
fn chosen(best: Expr, next: Expr, op: Operator, sql_type: &SqlType) -> Expr {
    let is_better = binary_expr(compared_by(best.clone(), sql_type), op, compared_by(next.clone(), sql_type));
    let when = vec![(Box::new(next.clone().is_null()), Box::new(best.clone())), (Box::new(is_better), Box::new(best))];
    Expr::Case(Case { expr: None, when_then_expr: when, else_expr: Some(Box::new(next)) })
}

fn call(call: ScalarFunction, schema: &DFSchema) -> Result<Expr> {
    let name = call.func.name().to_owned();
    let what = name.to_uppercase();
    let (args, common) = agree(call.args, &what, schema)?;
    let compares = name != "coalesce";
    if compares && !common.has_equality() {
        return Err(no_operator("=", Some(&common), Some(&common)));
    }
    let is_by_key = compares && has_key(&common);
    let is_float = matches!(common, SqlType::Real | SqlType::Double);
    Ok(match args.as_slice() {
        [left, right] if (is_by_key || is_float) && name == "nullif" => {
            let is_equal = compared_by(left.clone(), &common).eq(compared_by(right.clone(), &common));
            let null = Box::new(Expr::Literal(crate::types::scalar_null(&common).map_err(external)?, None));
            let when = vec![(Box::new(is_equal), null)];
            with_type(
                Expr::Case(Case { expr: None, when_then_expr: when, else_expr: Some(Box::new(left.clone())) }),
                &common,
            )
        }
        [first, rest @ ..] if is_by_key && common == SqlType::Interval && rest.len() < CHOSEN_MAX => {
            let op = if name == "greatest" { Operator::GtEq } else { Operator::LtEq };
            rest.iter().fold(first.clone(), |best, next| chosen(best, next.clone(), op, &common))
        }
        _ if is_by_key => {
            let fact = format!("{what} of {common}");
            return Err(external(SqlError::unsupported(fact, "use CASE WHEN a > b THEN a ELSE b END")));
        }
        _ => with_type(Expr::ScalarFunction(ScalarFunction { func: call.func, args }), &common),
    })
}
