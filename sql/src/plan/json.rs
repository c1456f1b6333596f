//! Operators and functions of `json` and `jsonb`: which one is meant by the types of the operands.
//!
//! Leaves out evaluation (`function::json`). Source: PostgreSQL 15, section 9.16. Pure.

use super::operator::{convert, is_string, no_operator, type_of};
use crate::error::{Near, SqlError};
use crate::function::errors::external;
use crate::function::json::{JsonOp, NAMES, json_call};
use datafusion::common::{ExprSchema, Result};
use datafusion::logical_expr::Expr;
use datafusion::logical_expr::expr::ScalarFunction;
use millstream_catalog::SqlType;
use millstream_catalog::model::SqlState;
use sqlparser::ast::BinaryOperator;

fn text_array() -> SqlType {
    SqlType::Array(Box::new(SqlType::Text))
}

pub(super) fn is_json(sql_type: &SqlType) -> bool {
    matches!(sql_type, SqlType::Json | SqlType::Jsonb)
}

/// The call that `op` is when an operand is `json` or `jsonb`, or `op` is one of theirs; `None` for other operators.
pub(super) fn operator(
    op: &BinaryOperator,
    left: &Expr,
    right: &Expr,
    schema: &dyn ExprSchema,
) -> Result<Option<Expr>> {
    use BinaryOperator as B;
    let (lt, rt) = (type_of(left, schema)?, type_of(right, schema)?);
    let symbol = op.to_string();
    let is_jsonb = |sql_type: &Option<SqlType>| *sql_type == Some(SqlType::Jsonb);
    let (op, sides) = match op {
        B::Arrow => (JsonOp::Get, (left, right)),
        B::LongArrow => (JsonOp::GetText, (left, right)),
        B::HashArrow => (JsonOp::Path, (left, right)),
        B::HashLongArrow => (JsonOp::PathText, (left, right)),
        B::Question => (JsonOp::Exists, (left, right)),
        B::QuestionPipe => (JsonOp::ExistsAny, (left, right)),
        B::QuestionAnd => (JsonOp::ExistsAll, (left, right)),
        B::AtArrow | B::ArrowAt if lt.iter().chain(&rt).any(is_json) => match op {
            B::AtArrow => (JsonOp::Contains, (left, right)),
            _ => (JsonOp::Contains, (right, left)),
        },
        B::StringConcat if is_jsonb(&lt) && (is_jsonb(&rt) || rt.is_none()) || lt.is_none() && is_jsonb(&rt) => {
            (JsonOp::Concat, (left, right))
        }
        B::Minus if is_jsonb(&lt) => (JsonOp::Remove, (left, right)),
        _ => return Ok(None),
    };
    let refused = || no_operator(&symbol, lt.as_ref(), rt.as_ref());
    if lt.is_none() && rt.is_none() || lt.is_none() && !matches!(op, JsonOp::Contains | JsonOp::Concat) {
        let fact = format!("operator is not unique: unknown {symbol} unknown");
        let error = SqlError::new(SqlState::AmbiguousFunction, fact).near(Near::Sign(symbol.clone()));
        return Err(external(error.hint("cast the left side: '…'::jsonb")));
    }
    let (value, other) = sides;
    let of_value = if std::ptr::eq(value, left) { &lt } else { &rt };
    let of_other = if std::ptr::eq(value, left) { &rt } else { &lt };
    let value_type = of_value.clone().unwrap_or(SqlType::Jsonb);
    let other_type = other_type(op, &value_type, of_other.as_ref()).ok_or_else(refused)?;
    let result = match op {
        JsonOp::GetText | JsonOp::PathText => SqlType::Text,
        JsonOp::Get | JsonOp::Path | JsonOp::Concat | JsonOp::Remove => value_type.clone(),
        _ => SqlType::Boolean,
    };
    let value = convert(value.clone(), of_value.as_ref(), &value_type)?;
    let other = convert(other.clone(), of_other.as_ref(), &other_type)?;
    Ok(Some(json_call(op, vec![value_type, other_type], result).call(vec![value, other])))
}

/// The type of the other operand beside a value of type `value`; `None` where there is no such operator.
fn other_type(op: JsonOp, value: &SqlType, other: Option<&SqlType>) -> Option<SqlType> {
    let is_index = matches!(other, Some(SqlType::SmallInt | SqlType::Integer));
    let is_text = other.is_none_or(is_string);
    let is_texts = match other {
        Some(SqlType::Array(item)) => is_string(item),
        other => other.is_none(),
    };
    let known = |sql_type: SqlType| Some(other.cloned().filter(|_| is_index).unwrap_or(sql_type));
    match op {
        _ if !is_json(value) => None,
        JsonOp::Get | JsonOp::GetText if is_index || is_text => known(SqlType::Text),
        JsonOp::Path | JsonOp::PathText if is_texts => Some(text_array()),
        _ if *value != SqlType::Jsonb => None,
        JsonOp::Remove if is_index || is_text => known(SqlType::Text),
        JsonOp::Remove | JsonOp::ExistsAny | JsonOp::ExistsAll if is_texts => Some(text_array()),
        JsonOp::Exists if is_text => Some(SqlType::Text),
        JsonOp::Contains | JsonOp::Concat if other.is_none_or(|other| *other == SqlType::Jsonb) => Some(SqlType::Jsonb),
        _ => None,
    }
}

/// `value['key']` and `value[index]` of a `jsonb`: a step of a path, which is a key in an object and a number in an array.
///
/// # Errors
/// 42804 for `json`, which has no subscripts, and for a subscript that is neither an integer nor text.
pub(super) fn subscript(value: Expr, of_value: &SqlType, key: Expr, schema: &dyn ExprSchema) -> Result<Expr> {
    if *of_value != SqlType::Jsonb {
        let fact = format!("cannot subscript type {of_value} because it does not support subscripting");
        return Err(external(SqlError::new(SqlState::DatatypeMismatch, fact).hint("use -> and ->>")));
    }
    let from = type_of(&key, schema)?;
    if let Some(other) = &from
        && !is_string(other)
        && !matches!(other, SqlType::SmallInt | SqlType::Integer)
    {
        let error = SqlError::new(SqlState::DatatypeMismatch, format!("subscript type {other} is not supported"));
        return Err(external(error.hint("jsonb subscript must be coercible to either integer or text.")));
    }
    let key = convert(key, from.as_ref(), &SqlType::Text)?;
    Ok(json_call(JsonOp::Extract, vec![SqlType::Jsonb, SqlType::Text], SqlType::Jsonb).call(vec![value, key]))
}

/// The call that a function of [`NAMES`] is for its arguments; `None` for other functions.
pub(super) fn function(call: &ScalarFunction, schema: &dyn ExprSchema) -> Result<Option<Expr>> {
    let name = call.func.name();
    let Some((_, op)) = NAMES.iter().find(|(known, _)| *known == name) else { return Ok(None) };
    let own = if name.starts_with("jsonb") || name == "to_jsonb" { SqlType::Jsonb } else { SqlType::Json };
    let types = call.args.iter().map(|arg| type_of(arg, schema)).collect::<Result<Vec<_>>>()?;
    let refused = || {
        let shown = |sql_type: &Option<SqlType>| sql_type.as_ref().map_or("unknown".to_owned(), SqlType::to_string);
        let list = types.iter().map(shown).collect::<Vec<_>>().join(", ");
        let error = SqlError::new(SqlState::UndefinedFunction, format!("function {name}({list}) does not exist"));
        let hint = "No function matches the given name and argument types. You might need to add explicit type casts.";
        external(error.hint(hint).near(Near::Word(name.to_owned())))
    };
    let (wanted, result) = signature(*op, &own, &types).map_err(external)?.ok_or_else(refused)?;
    let args = call.args.iter().zip(&types).zip(&wanted);
    let args = args.map(|((arg, from), to)| convert(arg.clone(), from.as_ref(), to)).collect::<Result<Vec<_>>>()?;
    Ok(Some(json_call(*op, wanted, result).call(args)))
}

/// The types that arguments take, and that of the result; `None` where there is no such function.
fn signature(
    op: JsonOp,
    own: &SqlType,
    given: &[Option<SqlType>],
) -> std::result::Result<Option<(Vec<SqlType>, SqlType)>, SqlError> {
    let is_own = |sql_type: &Option<SqlType>| sql_type.as_ref().is_none_or(|sql_type| sql_type == own);
    let is_text = |sql_type: &Option<SqlType>| sql_type.iter().all(is_string);
    let settled = || given.iter().map(|sql_type| sql_type.clone().unwrap_or(SqlType::Text)).collect::<Vec<_>>();
    Ok(match (op, given) {
        (JsonOp::TypeOf, [value]) if is_own(value) => Some((vec![own.clone()], SqlType::Text)),
        (JsonOp::Length, [value]) if is_own(value) => Some((vec![own.clone()], SqlType::Integer)),
        (JsonOp::Extract | JsonOp::ExtractText, [value, path @ ..]) if is_own(value) && path.iter().all(is_text) => {
            let mut types = vec![SqlType::Text; given.len()];
            types[0] = own.clone();
            Some((types, if op == JsonOp::Extract { own.clone() } else { SqlType::Text }))
        }
        (JsonOp::Concat | JsonOp::Contains, [left, right]) if is_own(left) && is_own(right) => {
            let result = if op == JsonOp::Concat { SqlType::Jsonb } else { SqlType::Boolean };
            Some((vec![own.clone(); 2], result))
        }
        (JsonOp::Object, _) if given.len() % 2 == 1 => {
            let fact = "argument list must have even number of elements";
            let hint = "The arguments must consist of alternating keys and values.";
            return Err(SqlError::new(SqlState::InvalidParameterValue, fact).hint(hint));
        }
        (JsonOp::Object | JsonOp::Array, _) => Some((settled(), own.clone())),
        (JsonOp::Convert, [None]) => {
            let fact = "could not determine polymorphic type because input has type unknown";
            return Err(SqlError::new(SqlState::DatatypeMismatch, fact).hint("cast the argument: to_jsonb('…'::text)"));
        }
        (JsonOp::Convert, [Some(_)]) => Some((settled(), own.clone())),
        _ => None,
    })
}
