//! Parts of values and their making: `array[1]`, `array[1:2]`, `jsonb['key']`, `(struct).field`, `map['key']`, `STRUCT(…)`.
//!
//! Leaves out operators (`operator`, `json`) and evaluation (`function::part`). Pure.

use super::operator::{convert, type_of};
use super::refuse;
use super::settle::{common_type, marked, union};
use crate::error::SqlError;
use crate::function::errors::external;
use crate::function::part::{ARRAYS, MAP, PartOp, STRUCT, part_call};
use datafusion::common::{DFSchema, ExprSchema, Result, ScalarValue};
use datafusion::logical_expr::expr::ScalarFunction;
use datafusion::logical_expr::{Expr, GetFieldAccess};
use millstream_catalog::SqlType;
use millstream_catalog::model::SqlState;
use millstream_catalog::schema::StructField;
use sqlparser::ast::{self, AccessExpr, Subscript, Value};

/// The part of `value` that `access` names.
pub(super) fn access(value: Expr, access: GetFieldAccess, schema: &DFSchema) -> Result<Expr> {
    let of_value = type_of(&value, schema)?;
    let key = match access {
        GetFieldAccess::ListRange { start, stop, .. } => return slice(value, of_value, *start, *stop, schema),
        GetFieldAccess::ListIndex { key } => *key,
        GetFieldAccess::NamedStructField { name } => Expr::Literal(name, None),
    };
    match of_value {
        Some(document @ (SqlType::Json | SqlType::Jsonb)) => super::json::subscript(value, &document, key, schema),
        Some(SqlType::Struct(fields)) => field(value, &fields, &key),
        Some(SqlType::Map(of_key, of_value)) => {
            let from = type_of(&key, schema)?;
            let key = convert(key, from.as_ref(), &of_key)?;
            let types = vec![SqlType::Map(of_key.clone(), of_value.clone()), *of_key];
            Ok(part_call(PartOp::Entry, types, *of_value).call(vec![value, key]))
        }
        Some(SqlType::Array(item)) => {
            let key = index(key, schema)?;
            let types = vec![SqlType::Array(item.clone()), SqlType::BigInt];
            Ok(part_call(PartOp::Element, types, *item).call(vec![value, key]))
        }
        other => Err(no_subscript(other.as_ref())),
    }
}

fn no_subscript(of_value: Option<&SqlType>) -> datafusion::common::DataFusionError {
    let shown = of_value.map_or_else(|| "unknown".to_owned(), SqlType::to_string);
    let fact = format!("cannot subscript type {shown} because it does not support subscripting");
    external(SqlError::new(SqlState::DatatypeMismatch, fact))
}

/// A subscript of an array.
fn index(key: Expr, schema: &DFSchema) -> Result<Expr> {
    match type_of(&key, schema)? {
        None => convert(key, None, &SqlType::Integer),
        Some(SqlType::SmallInt | SqlType::Integer | SqlType::BigInt) => Ok(key),
        Some(_) => {
            let fact = "array subscript must have type integer";
            Err(external(SqlError::new(SqlState::DatatypeMismatch, fact)))
        }
    }
}

fn slice(value: Expr, of_value: Option<SqlType>, from: Expr, to: Expr, schema: &DFSchema) -> Result<Expr> {
    match of_value {
        Some(array @ SqlType::Array(_)) => {
            let args = vec![value, index(from, schema)?, index(to, schema)?];
            let types = vec![array.clone(), SqlType::BigInt, SqlType::BigInt];
            Ok(part_call(PartOp::Slice, types, array).call(args))
        }
        Some(SqlType::Jsonb) => {
            let fact = "jsonb subscript does not support slices";
            Err(external(SqlError::new(SqlState::DatatypeMismatch, fact)))
        }
        other => Err(no_subscript(other.as_ref())),
    }
}

fn field(value: Expr, fields: &[StructField], key: &Expr) -> Result<Expr> {
    let Expr::Literal(ScalarValue::Utf8(Some(name)), _) = key else {
        let fact = "a field of a STRUCT is named by a literal";
        return Err(external(
            SqlError::new(SqlState::DatatypeMismatch, fact).hint("write (value).field or value['field']"),
        ));
    };
    let Some(at) = fields.iter().position(|field| field.name == *name) else {
        let fact = format!("column \"{name}\" not found in data type {}", SqlType::Struct(fields.to_vec()));
        return Err(external(SqlError::new(SqlState::UndefinedColumn, fact)));
    };
    let result = fields[at].sql_type.clone();
    Ok(part_call(PartOp::Field(at), vec![SqlType::Struct(fields.to_vec())], result).call(vec![value]))
}

/// Makes the steps of an access literals: a name behind a dot is that of a field, and a slice has both ends.
pub(super) fn literal_steps(chain: &mut [AccessExpr]) -> std::result::Result<(), SqlError> {
    let number = |text: &str| refuse::literal(Value::Number(text.to_owned(), false));
    for step in chain {
        match step {
            AccessExpr::Dot(ast::Expr::Identifier(name)) => {
                let name = refuse::literal(Value::SingleQuotedString(name.value.clone()));
                *step = AccessExpr::Subscript(Subscript::Index { index: name });
            }
            AccessExpr::Dot(_) => {
                return Err(SqlError::unsupported("this behind a dot", "write (value).field"));
            }
            AccessExpr::Subscript(Subscript::Slice { lower_bound, upper_bound, stride }) => {
                if stride.is_some() {
                    return Err(SqlError::syntax("a slice has two bounds").hint("write array[from:to]"));
                }
                lower_bound.get_or_insert_with(|| number("1"));
                upper_bound.get_or_insert_with(|| number("2147483647"));
            }
            AccessExpr::Subscript(Subscript::Index { .. }) => {}
        }
    }
    Ok(())
}

/// `STRUCT(a := 1)` and `MAP('k' := 1)` as calls, typed when they are built.
pub(super) fn constructor(expr: &mut ast::Expr) -> Option<ast::Expr> {
    let text = |name: &ast::Ident| refuse::literal(Value::SingleQuotedString(name.value.clone()));
    let take = |expr: &mut ast::Expr| std::mem::replace(expr, refuse::null());
    let (name, args) = match expr {
        ast::Expr::Struct { values, .. } => {
            let pair = |value: &mut ast::Expr| match value {
                ast::Expr::Named { expr, name } => vec![text(name), take(expr)],
                other => vec![take(other)],
            };
            (STRUCT, values.iter_mut().flat_map(pair).collect())
        }
        ast::Expr::Map(map) => {
            let pair = |entry: &mut ast::MapEntry| [take(&mut entry.key), take(&mut entry.value)];
            (MAP, map.entries.iter_mut().flat_map(pair).collect())
        }
        _ => return None,
    };
    Some(marked(super::rewrite::call(name, args)))
}

/// The call that a function of [`ARRAYS`] is for its arguments.
fn array_function(op: PartOp, call: &ScalarFunction, schema: &DFSchema) -> Result<Expr> {
    let types = call.args.iter().map(|arg| type_of(arg, schema)).collect::<Result<Vec<_>>>()?;
    match (&op, types.as_slice(), call.args.as_slice()) {
        (PartOp::Join, _, [left, right]) => {
            if let Some(joined) = join(left, right, schema)? {
                return Ok(joined);
            }
        }
        (_, [Some(list @ SqlType::Array(_)), _], [array, number]) => {
            let result = if op == PartOp::Trim { list.clone() } else { SqlType::Integer };
            let types = vec![list.clone(), SqlType::BigInt];
            return Ok(part_call(op, types, result).call(vec![array.clone(), index(number.clone(), schema)?]));
        }
        _ => {}
    }
    let shown = |sql_type: &Option<SqlType>| sql_type.as_ref().map_or("unknown".to_owned(), SqlType::to_string);
    let list = types.iter().map(shown).collect::<Vec<_>>().join(", ");
    let fact = format!("function {}({list}) does not exist", call.func.name());
    Err(external(SqlError::new(SqlState::UndefinedFunction, fact)))
}

/// `left || right` where one of them is an array; `None` where there is no such operator.
pub(super) fn join(left: &Expr, right: &Expr, schema: &dyn ExprSchema) -> Result<Option<Expr>> {
    let (lt, rt) = (type_of(left, schema)?, type_of(right, schema)?);
    let item = |sql_type: &Option<SqlType>| match sql_type {
        Some(SqlType::Array(item)) => Some((**item).clone()),
        _ => None,
    };
    let common = match (item(&lt), item(&rt)) {
        (Some(left), Some(right)) => union(&left, &right),
        (Some(item), None) => rt.as_ref().map_or_else(|| Some(item.clone()), |other| union(&item, other)),
        (None, Some(item)) => lt.as_ref().map_or_else(|| Some(item.clone()), |other| union(other, &item)),
        (None, None) => None,
    };
    let Some(common) = common else { return Ok(None) };
    let array = SqlType::Array(Box::new(common.clone()));
    // What has no type yet is an array.
    let side = |expr: &Expr, from: &Option<SqlType>| {
        let to = if from.is_none() || item(from).is_some() { &array } else { &common };
        Ok::<_, datafusion::common::DataFusionError>((convert(expr.clone(), from.as_ref(), to)?, to.clone()))
    };
    let ((left, to_left), (right, to_right)) = (side(left, &lt)?, side(right, &rt)?);
    Ok(Some(part_call(PartOp::Join, vec![to_left, to_right], array.clone()).call(vec![left, right])))
}

/// The call that a constructor is for its arguments; `None` for other functions.
pub(super) fn construct(call: &ScalarFunction, schema: &DFSchema) -> Result<Option<Expr>> {
    if let Some((_, op)) = ARRAYS.iter().find(|(name, _)| *name == call.func.name()) {
        return array_function(op.clone(), call, schema).map(Some);
    }
    let is_struct = call.func.name() == STRUCT;
    if !is_struct && call.func.name() != MAP {
        return Ok(None);
    }
    let pairs: Vec<(&Expr, &Expr)> = call.args.chunks_exact(2).map(|pair| (&pair[0], &pair[1])).collect();
    let typed =
        |expr: &Expr| Ok::<_, datafusion::common::DataFusionError>(type_of(expr, schema)?.unwrap_or(SqlType::Text));
    if is_struct {
        let (mut fields, mut args) = (Vec::new(), Vec::new());
        for (name, value) in pairs {
            let Expr::Literal(ScalarValue::Utf8(Some(name)), _) = name else {
                return Err(external(SqlError::internal("a field without a name")));
            };
            let (from, sql_type) = (type_of(value, schema)?, typed(value)?);
            args.push(convert(value.clone(), from.as_ref(), &sql_type)?);
            fields.push(StructField { name: name.clone(), sql_type });
        }
        let result = SqlType::Struct(fields);
        crate::types::check_type(&result).map_err(external)?;
        let types = vec![SqlType::Text; args.len()];
        return Ok(Some(part_call(PartOp::Make, types, result).call(args)));
    }
    let of = |side: usize| {
        let exprs = call.args.iter().skip(side).step_by(2);
        let types = exprs.map(|expr| type_of(expr, schema)).collect::<Result<Vec<_>>>()?;
        common_type(&types.into_iter().flatten().collect::<Vec<_>>(), "MAP").map_err(external)
    };
    let (key, value) = (of(0)?, of(1)?);
    let mut args = Vec::with_capacity(call.args.len());
    for (at, arg) in call.args.iter().enumerate() {
        let from = type_of(arg, schema)?;
        args.push(convert(arg.clone(), from.as_ref(), if at % 2 == 0 { &key } else { &value })?);
    }
    let result = SqlType::Map(Box::new(key), Box::new(value));
    crate::types::check_type(&result).map_err(external)?;
    let types = vec![SqlType::Text; args.len()];
    Ok(Some(part_call(PartOp::Make, types, result).call(args)))
}
