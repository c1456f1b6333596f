//! Operators: which one is meant by the types of its operands, and what the operands become.
//!
//! Owns PostgreSQL's resolution for built-in operators: literals of unknown type take the other side's type, numbers meet
//! at the wider type, text meets only text. Leaves out evaluation. Called by the engine's planner for every binary
//! operator. Source: PostgreSQL 15, section 10.2. Pure.

use crate::error::{Near, SqlError};
use crate::function::arith::Arithmetic;
use crate::function::by_value::key_function;
use crate::function::cast::{cast_function, constant_function, constant_value};
use crate::function::errors::external;
use crate::function::registry;
use crate::types::{scalar_null, scalar_text};
use datafusion::common::{DFSchema, DataFusionError, ExprSchema, Result, ScalarValue};
use datafusion::logical_expr::expr::Placeholder;
use datafusion::logical_expr::planner::{ExprPlanner, PlannerResult, RawBinaryExpr, RawFieldAccessExpr};
use datafusion::logical_expr::{BinaryExpr, Expr, ExprSchemable, Operator, ScalarUDF};
use millstream_catalog::SqlType;
use millstream_catalog::model::SqlState;
use sqlparser::ast::BinaryOperator;
use std::sync::Arc;

/// Types operators as PostgreSQL does.
#[derive(Debug)]
pub(super) struct Operators;

impl ExprPlanner for Operators {
    fn plan_binary_op(&self, raw: RawBinaryExpr, schema: &DFSchema) -> Result<PlannerResult<RawBinaryExpr>> {
        let RawBinaryExpr { op, left, right } = raw;
        if let BinaryOperator::Custom(mark) = &op
            && let Some(expr) = super::settle::settle(mark, left.clone(), schema)?
        {
            return Ok(PlannerResult::Planned(expr));
        }
        if let BinaryOperator::Custom(mark) = &op
            && let Some(expr) = super::any::settle(mark, left.clone(), &right, schema)?
        {
            return Ok(PlannerResult::Planned(expr));
        }
        if let Some(expr) = super::json::operator(&op, &left, &right, schema)? {
            return Ok(PlannerResult::Planned(expr));
        }
        match plan(&op, left.clone(), right.clone(), schema)? {
            Some(expr) => Ok(PlannerResult::Planned(expr)),
            None => Ok(PlannerResult::Original(RawBinaryExpr { op, left, right })),
        }
    }

    fn plan_field_access(
        &self,
        raw: RawFieldAccessExpr,
        schema: &DFSchema,
    ) -> Result<PlannerResult<RawFieldAccessExpr>> {
        super::access::access(raw.expr, raw.field_access, schema).map(PlannerResult::Planned)
    }
}

fn array_function(name: &str) -> Result<Arc<ScalarUDF>> {
    registry().scalar(name).ok_or_else(|| external(SqlError::internal("an array function is missing")))
}

/// The type of an expression; `None` for a literal or parameter that takes any.
pub(super) fn type_of(expr: &Expr, schema: &dyn ExprSchema) -> Result<Option<SqlType>> {
    match expr {
        Expr::Literal(ScalarValue::Utf8(_) | ScalarValue::Null, None) => Ok(None),
        Expr::Placeholder(Placeholder { field: None, .. }) => Ok(None),
        Expr::Alias(alias) => type_of(&alias.expr, schema),
        _ => {
            let (_, field) = expr.to_field(schema)?;
            if field.data_type().is_null() {
                return Ok(None);
            }
            SqlType::of(&field).map(Some).ok_or_else(|| {
                external(SqlError::unsupported("a value of this type in an operator", "cast it to text or json"))
            })
        }
    }
}

/// `expr`, of type `from` or unknown, as `to`.
pub(super) fn convert(expr: Expr, from: Option<&SqlType>, to: &SqlType) -> Result<Expr> {
    let typed = |value: ScalarValue| Expr::Literal(value, None);
    match (expr, from) {
        (expr, Some(SqlType::Char(_))) if *to == SqlType::Text => Ok(cast_function(SqlType::Text).call(vec![expr])),
        (expr, Some(from)) if from == to || (is_string(from) && *to == SqlType::Text) => Ok(expr),
        (Expr::Literal(ScalarValue::Utf8(Some(text)), _), None) => {
            if is_string(to) {
                return Ok(typed(ScalarValue::Utf8(Some(text))));
            }
            let value = scalar_text(to, text.as_bytes());
            let value = value.map_err(|error| external(error.near(Near::Literal(text))))?;
            // A literal alone would be text.
            Ok(match to.has(&SqlType::Jsonb) || to.has(&SqlType::Json) || to.is_document() {
                true => constant_function(value, to).call(Vec::new()),
                false => typed(value),
            })
        }
        (Expr::Literal(ScalarValue::Null | ScalarValue::Utf8(None), _), None) => {
            Ok(typed(scalar_null(to).map_err(external)?))
        }
        (Expr::Placeholder(placeholder), None) => {
            let field = Arc::new(to.field("", true));
            Ok(Expr::Placeholder(Placeholder::new_with_field(placeholder.id, Some(field))))
        }
        (expr, _) => match folded(&expr) {
            Some(value) if is_widening(from, to) => Ok(typed(value.cast_to(&to.arrow())?)),
            _ if is_widening(from, to) => {
                Ok(Expr::Cast(datafusion::logical_expr::Cast::new(Box::new(expr), to.arrow())))
            }
            _ => Ok(cast_function(to.clone()).call(vec![expr])),
        },
    }
}

/// The value of a constant that needs no evaluation beyond a cast.
pub(super) fn folded(expr: &Expr) -> Option<ScalarValue> {
    match expr {
        Expr::Literal(value, _) => Some(value.clone()),
        Expr::Cast(cast) => folded(&cast.expr)?.cast_to(cast.field.data_type()).ok(),
        other => constant_value(other).cloned(),
    }
}

/// Casts that cannot fail and mean the same everywhere.
fn is_widening(from: Option<&SqlType>, to: &SqlType) -> bool {
    use SqlType::{BigInt, Date, Double, Integer, Numeric, Real, SmallInt, Timestamp, TimestampTz};
    matches!(
        (from, to),
        (None, _)
            | (Some(SmallInt), Integer | BigInt | Numeric { .. } | Real | Double)
            | (Some(Integer), BigInt | Numeric { .. } | Double)
            | (Some(BigInt), Numeric { .. } | Double)
            | (Some(Real | Numeric { .. }), Double)
            | (Some(Date), Timestamp | TimestampTz)
            | (Some(Timestamp), TimestampTz)
    )
}

pub(super) fn is_string(sql_type: &SqlType) -> bool {
    matches!(sql_type, SqlType::Text | SqlType::Varchar(_) | SqlType::Char(_))
}

/// The order in which numbers widen.
fn rank(sql_type: &SqlType) -> Option<u8> {
    Some(match sql_type {
        SqlType::SmallInt => 1,
        SqlType::Integer => 2,
        SqlType::BigInt => 3,
        SqlType::Numeric { .. } => 4,
        SqlType::Real => 5,
        SqlType::Double => 6,
        _ => return None,
    })
}

/// An integer type as a numeric that holds all its values.
pub(super) fn as_numeric(sql_type: &SqlType) -> SqlType {
    match sql_type {
        SqlType::SmallInt => SqlType::Numeric { precision: 5, scale: 0 },
        SqlType::Integer => SqlType::Numeric { precision: 10, scale: 0 },
        SqlType::BigInt => SqlType::Numeric { precision: 19, scale: 0 },
        other => other.clone(),
    }
}

/// The types two numbers are brought to; numerics keep their scales.
fn numbers(left: &SqlType, right: &SqlType) -> Option<(SqlType, SqlType)> {
    let (a, b) = (rank(left)?, rank(right)?);
    Some(match a.max(b) {
        4 => (as_numeric(left), as_numeric(right)),
        5 | 6 if a != b || a == 6 => (SqlType::Double, SqlType::Double),
        wider if wider == a => (left.clone(), left.clone()),
        _ => (right.clone(), right.clone()),
    })
}

/// The types two values are brought to before they are compared.
pub(super) fn comparable(left: &SqlType, right: &SqlType) -> Option<(SqlType, SqlType)> {
    use SqlType::{Date, Timestamp, TimestampTz};
    let both = |sql_type: SqlType| Some((sql_type.clone(), sql_type));
    match (left, right) {
        (left, right) if is_string(left) && is_string(right) => both(SqlType::Text),
        (left, _) if !left.has_equality() => None,
        (left, right) if left == right => both(left.clone()),
        (Date | Timestamp, Date | Timestamp) => both(Timestamp),
        (Date | Timestamp | TimestampTz, Date | Timestamp | TimestampTz) => both(TimestampTz),
        (SqlType::Array(left), SqlType::Array(right)) => {
            let (left, right) = comparable(left, right)?;
            Some((SqlType::Array(Box::new(left)), SqlType::Array(Box::new(right))))
        }
        _ => numbers(left, right),
    }
}

fn plan(op: &BinaryOperator, left: Expr, right: Expr, schema: &DFSchema) -> Result<Option<Expr>> {
    use BinaryOperator as B;
    let comparison = |op: Operator| compare(op, left.clone(), right.clone(), schema).map(Some);
    let text = |op: Operator| texts(op, left.clone(), right.clone(), schema).map(Some);
    match op {
        B::Eq => comparison(Operator::Eq),
        B::NotEq => comparison(Operator::NotEq),
        B::Lt => comparison(Operator::Lt),
        B::LtEq => comparison(Operator::LtEq),
        B::Gt => comparison(Operator::Gt),
        B::GtEq => comparison(Operator::GtEq),
        B::Custom(name) if name == super::syntax::IS_DISTINCT_FROM => comparison(Operator::IsDistinctFrom),
        B::Custom(name) if name == super::syntax::IS_NOT_DISTINCT_FROM => comparison(Operator::IsNotDistinctFrom),
        B::Plus => arithmetic(Arithmetic::Add, left, right, schema).map(Some),
        B::Minus => arithmetic(Arithmetic::Subtract, left, right, schema).map(Some),
        B::Multiply => arithmetic(Arithmetic::Multiply, left, right, schema).map(Some),
        B::Divide => arithmetic(Arithmetic::Divide, left, right, schema).map(Some),
        B::Modulo => arithmetic(Arithmetic::Modulo, left, right, schema).map(Some),
        B::And => logical(Operator::And, left, right, schema).map(Some),
        B::Or => logical(Operator::Or, left, right, schema).map(Some),
        B::StringConcat => concatenate(left, right, schema),
        B::PGRegexMatch => text(Operator::RegexMatch),
        B::PGRegexIMatch => text(Operator::RegexIMatch),
        B::PGRegexNotMatch => text(Operator::RegexNotMatch),
        B::PGRegexNotIMatch => text(Operator::RegexNotIMatch),
        B::PGLikeMatch => text(Operator::LikeMatch),
        B::PGILikeMatch => text(Operator::ILikeMatch),
        B::PGNotLikeMatch => text(Operator::NotLikeMatch),
        B::PGNotILikeMatch => text(Operator::NotILikeMatch),
        B::BitwiseAnd => bits(Operator::BitwiseAnd, left, right, schema).map(Some),
        B::BitwiseOr => bits(Operator::BitwiseOr, left, right, schema).map(Some),
        B::BitwiseXor | B::PGBitwiseXor => bits(Operator::BitwiseXor, left, right, schema).map(Some),
        B::PGBitwiseShiftLeft => bits(Operator::BitwiseShiftLeft, left, right, schema).map(Some),
        B::PGBitwiseShiftRight => bits(Operator::BitwiseShiftRight, left, right, schema).map(Some),
        B::PGExp => power(left, right, schema).map(Some),
        B::AtArrow | B::ArrowAt => Ok(None),
        B::PGOverlap => Ok(Some(array_function("array_has_any")?.call(vec![left, right]))),
        other => Err(external(SqlError::unsupported(format!("operator {other}"), "use a function"))),
    }
}

/// 42883 in PostgreSQL's words.
pub(super) fn no_operator(op: &str, left: Option<&SqlType>, right: Option<&SqlType>) -> DataFusionError {
    let shown = |sql_type: Option<&SqlType>| match sql_type {
        Some(SqlType::Numeric { .. }) => "numeric".to_owned(),
        Some(sql_type) => sql_type.to_string(),
        None => "unknown".to_owned(),
    };
    let fact = format!("operator does not exist: {} {op} {}", shown(left), shown(right));
    let hint = "No operator matches the given name and argument types. You might need to add explicit type casts.";
    external(SqlError::new(SqlState::UndefinedFunction, fact).hint(hint).near(Near::Sign(op.to_owned())))
}

fn binary(left: Expr, op: Operator, right: Expr) -> Expr {
    Expr::BinaryExpr(BinaryExpr::new(Box::new(left), op, Box::new(right)))
}

/// An unknown side takes the type of the known one.
fn settle(left: Option<SqlType>, right: Option<SqlType>) -> (SqlType, SqlType) {
    match (left, right) {
        (Some(left), Some(right)) => (left, right),
        (Some(known), None) | (None, Some(known)) => {
            let known = if is_string(&known) { SqlType::Text } else { known };
            (known.clone(), known)
        }
        (None, None) => (SqlType::Text, SqlType::Text),
    }
}

/// True for a constant whose value is one of `column`.
pub(super) fn fits(expr: &Expr, column: &SqlType) -> bool {
    let Some(value) = folded(expr) else { return false };
    let is_integer = |sql_type: &SqlType| rank(sql_type).is_some_and(|rank| rank <= 3);
    let back = value.cast_to(&column.arrow()).and_then(|narrowed| narrowed.cast_to(&value.data_type()));
    is_integer(column) && value.data_type().is_integer() && back.is_ok_and(|back| back == value)
}

/// `expr` as `column`: a constant that [`fits`], or anything of unknown type.
pub(super) fn narrow(expr: Expr, from: Option<&SqlType>, column: &SqlType) -> Result<Expr> {
    match folded(&expr).filter(|_| from.is_some()) {
        Some(value) => Ok(Expr::Literal(value.cast_to(&column.arrow())?, None)),
        None => convert(expr, from, column),
    }
}

/// Values to be compared of which one is a `char(n)`: the blanks at its end mean nothing, nor do those of a literal
/// beside it.
pub(super) fn unfilled(exprs: Vec<Expr>, schema: &dyn ExprSchema) -> Result<Vec<Expr>> {
    let types = exprs.iter().map(|expr| type_of(expr, schema)).collect::<Result<Vec<_>>>()?;
    if !types.iter().flatten().any(|sql_type| matches!(sql_type, SqlType::Char(_))) {
        return Ok(exprs);
    }
    let unfilled = |(expr, from): (Expr, Option<SqlType>)| match (expr, from) {
        (expr, Some(from @ SqlType::Char(_))) => convert(expr, Some(&from), &SqlType::Text),
        (Expr::Literal(ScalarValue::Utf8(Some(text)), metadata), None) => {
            Ok(Expr::Literal(ScalarValue::Utf8(Some(text.trim_end_matches(' ').to_owned())), metadata))
        }
        (expr, _) => Ok(expr),
    };
    exprs.into_iter().zip(types).map(unfilled).collect()
}

/// Both sides brought to types that can be compared.
pub(super) fn compare_operands(op: &str, left: Expr, right: Expr, schema: &dyn ExprSchema) -> Result<(Expr, Expr)> {
    let mut sides = unfilled(vec![left, right], schema)?.into_iter();
    let (Some(left), Some(right)) = (sides.next(), sides.next()) else {
        return Err(external(SqlError::internal("a comparison without its sides")));
    };
    let (lt, rt) = (type_of(&left, schema)?, type_of(&right, schema)?);
    let (a, b) = settle(lt.clone(), rt.clone());
    if lt.is_some() && rt.is_some() && a != b {
        if fits(&right, &a) {
            return Ok((left, narrow(right, rt.as_ref(), &a)?));
        }
        if fits(&left, &b) {
            return Ok((narrow(left, lt.as_ref(), &b)?, right));
        }
    }
    let Some((to_left, to_right)) = comparable(&a, &b) else {
        return Err(no_operator(op, lt.as_ref(), rt.as_ref()));
    };
    let (left, right) = (convert(left, lt.as_ref(), &to_left)?, convert(right, rt.as_ref(), &to_right)?);
    Ok((compared_by(left, &to_left), compared_by(right, &to_right)))
}

/// A side of a comparison.
pub(super) fn compared_by(expr: Expr, sql_type: &SqlType) -> Expr {
    match sql_type {
        SqlType::Real | SqlType::Double => expr,
        other => super::float::side(by_value(expr, other), other),
    }
}

/// A value to be compared: of an interval its length, of a `jsonb` its key.
pub(super) fn by_value(expr: Expr, sql_type: &SqlType) -> Expr {
    match (sql_type, key_function(sql_type)) {
        (SqlType::Interval, _) => crate::function::span::function().call(vec![expr]),
        (_, Some(key)) => key.call(vec![expr]),
        _ => expr,
    }
}

fn compare(op: Operator, left: Expr, right: Expr, schema: &DFSchema) -> Result<Expr> {
    let shown = match op {
        Operator::NotEq => "<>".to_owned(),
        Operator::IsDistinctFrom | Operator::IsNotDistinctFrom => "=".to_owned(),
        other => other.to_string(),
    };
    let (left, right) = compare_operands(&shown, left, right, schema)?;
    Ok(binary(left, op, right))
}

fn logical(op: Operator, left: Expr, right: Expr, schema: &DFSchema) -> Result<Expr> {
    let left = boolean(left, schema, &op.to_string())?;
    let right = boolean(right, schema, &op.to_string())?;
    Ok(binary(left, op, right))
}

/// `expr` as a condition; 42804 for anything but a boolean.
pub(super) fn boolean(expr: Expr, schema: &dyn ExprSchema, clause: &str) -> Result<Expr> {
    match type_of(&expr, schema)? {
        Some(SqlType::Boolean) => Ok(expr),
        None => convert(expr, None, &SqlType::Boolean),
        Some(other) => {
            let fact = format!("argument of {clause} must be type boolean, not type {other}");
            let near = Near::Behind(clause.to_owned());
            Err(external(SqlError::new(SqlState::DatatypeMismatch, fact).near(near)))
        }
    }
}

fn texts(op: Operator, left: Expr, right: Expr, schema: &DFSchema) -> Result<Expr> {
    let (lt, rt) = (type_of(&left, schema)?, type_of(&right, schema)?);
    if lt.iter().chain(&rt).all(is_string) {
        // Patterns see the blanks at the end of a char(n).
        let text = |expr: Expr, from: Option<SqlType>| match from {
            Some(SqlType::Char(_)) => Ok(expr),
            from => convert(expr, from.as_ref(), &SqlType::Text),
        };
        return Ok(binary(text(left, lt)?, op, text(right, rt)?));
    }
    Err(no_operator(&op.to_string(), lt.as_ref(), rt.as_ref()))
}

fn bits(op: Operator, left: Expr, right: Expr, schema: &DFSchema) -> Result<Expr> {
    let (lt, rt) = (type_of(&left, schema)?, type_of(&right, schema)?);
    let (a, b) = settle(lt.clone(), rt.clone());
    match numbers(&a, &b) {
        Some((to, _)) if rank(&to).is_some_and(|rank| rank <= 3) => {
            let left = convert(left, lt.as_ref(), &to)?;
            Ok(binary(left, op, convert(right, rt.as_ref(), &to)?))
        }
        _ => Err(no_operator(&op.to_string(), lt.as_ref(), rt.as_ref())),
    }
}

fn power(left: Expr, right: Expr, schema: &DFSchema) -> Result<Expr> {
    let mut args = Vec::new();
    for arg in [left, right] {
        let from = type_of(&arg, schema)?;
        args.push(convert(arg, from.as_ref(), &SqlType::Double)?);
    }
    let function = registry().scalar("power").ok_or_else(|| external(SqlError::internal("power is missing")))?;
    Ok(function.call(args))
}

fn concatenate(left: Expr, right: Expr, schema: &DFSchema) -> Result<Option<Expr>> {
    let (lt, rt) = (type_of(&left, schema)?, type_of(&right, schema)?);
    let is_array = |sql_type: &Option<SqlType>| matches!(sql_type, Some(SqlType::Array(_)));
    if is_array(&lt) || is_array(&rt) {
        let joined = super::access::join(&left, &right, schema)?;
        return joined.map(Some).ok_or_else(|| no_operator("||", lt.as_ref(), rt.as_ref()));
    }
    if let (Some(SqlType::Bytea), Some(SqlType::Bytea) | None) | (None, Some(SqlType::Bytea)) = (&lt, &rt) {
        return Err(external(SqlError::unsupported("|| of bytea", "encode both to text first")));
    }
    if !lt.iter().chain(&rt).any(is_string) && lt.is_some() && rt.is_some() {
        return Err(no_operator("||", lt.as_ref(), rt.as_ref()));
    }
    let text = |expr: Expr, from: Option<SqlType>| match from {
        Some(SqlType::Text | SqlType::Varchar(_)) | None => convert(expr, from.as_ref(), &SqlType::Text),
        Some(_) => Ok(cast_function(SqlType::Text).call(vec![expr])),
    };
    Ok(Some(binary(text(left, lt)?, Operator::StringConcat, text(right, rt)?)))
}

fn is_temporal(sql_type: &SqlType) -> bool {
    use SqlType::{Date, Interval, Time, Timestamp, TimestampTz};
    matches!(sql_type, Date | Time | Timestamp | TimestampTz | Interval)
}

fn arithmetic(op: Arithmetic, left: Expr, right: Expr, schema: &DFSchema) -> Result<Expr> {
    let (lt, rt) = (type_of(&left, schema)?, type_of(&right, schema)?);
    let refused = || no_operator(op.symbol(), lt.as_ref(), rt.as_ref());
    let (to_left, to_right) = match (&lt, &rt) {
        (None, None) => {
            let fact = format!("operator is not unique: unknown {} unknown", op.symbol());
            return Err(external(
                SqlError::new(SqlState::AmbiguousFunction, fact)
                    .near(Near::Sign(op.symbol().to_owned()))
                    .hint("Could not choose a best candidate operator. You might need to add explicit type casts."),
            ));
        }
        (Some(known), None) => (known.clone(), unknown_operand(op, known).ok_or_else(refused)?),
        (None, Some(known)) => (unknown_operand(op, known).ok_or_else(refused)?, known.clone()),
        (Some(left), Some(right)) => match numbers(left, right) {
            Some(both) => both,
            None if is_temporal(left) || is_temporal(right) => temporal(left, right),
            None => return Err(refused()),
        },
    };
    let left = convert(left, lt.as_ref(), &to_left)?;
    let right = convert(right, rt.as_ref(), &to_right)?;
    let function = registry().scalar(op.function_name()).ok_or_else(refused)?;
    let call = function.call(vec![left, right]);
    // The operator may not exist for these times and numbers.
    call.to_field(schema).map_err(|_| refused())?;
    Ok(call)
}

/// The type an unknown operand takes beside `known`.
fn unknown_operand(op: Arithmetic, known: &SqlType) -> Option<SqlType> {
    use SqlType::{Date, Interval, Timestamp, TimestampTz};
    Some(match (op, known) {
        (_, known) if rank(known).is_some() => known.clone(),
        (Arithmetic::Add, Date | Timestamp | TimestampTz | SqlType::Time) => Interval,
        (Arithmetic::Subtract, known) if is_temporal(known) => known.clone(),
        (Arithmetic::Add, Interval) => Interval,
        (Arithmetic::Multiply | Arithmetic::Divide, Interval) => SqlType::Double,
        _ => return None,
    })
}

/// Two points in time meet at one type; everything else stays.
fn temporal(left: &SqlType, right: &SqlType) -> (SqlType, SqlType) {
    use SqlType::{Date, Timestamp, TimestampTz};
    match (left, right) {
        (Date, Date) => (Date, Date),
        (Date | Timestamp | TimestampTz, Date | Timestamp | TimestampTz) => {
            comparable(left, right).unwrap_or((left.clone(), right.clone()))
        }
        (Date, number) if matches!(number, SqlType::SmallInt | SqlType::Integer) => (Date, number.clone()),
        _ => (left.clone(), right.clone()),
    }
}
