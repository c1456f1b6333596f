//! ksqlDB's own aggregates, as calls of those there are.
//!
//! Owns their names and what each stands for. Pure.

use super::refuse::literal;
use super::rewrite::call;
use crate::dialect::ast::Position;
use crate::error::SqlError;
use crate::function::histogram::HISTOGRAM;
use sqlparser::ast::{
    DuplicateTreatment, Expr, Function, FunctionArg, FunctionArgExpr, FunctionArgumentClause, FunctionArguments, Ident,
    NullTreatment, ObjectName, ObjectNamePart, OrderByExpr, OrderByOptions, Spanned, Value,
};

/// The names, and the aggregate that each is made of.
pub(crate) const NAMES: [(&str, &str); 8] = [
    ("collect_list", "array_agg"),
    ("collect_set", "array_agg"),
    ("count_distinct", "count"),
    ("earliest_by_offset", "first_value"),
    ("histogram", "array_agg"),
    ("latest_by_offset", "last_value"),
    ("topk", "array_agg"),
    ("topkdistinct", "array_agg"),
];

/// What is made of the values that are collected in place of one of them.
pub(super) enum Made {
    /// How often each is there.
    Histogram,
    /// So many of them.
    First(String),
}

impl Made {
    /// It, of the array.
    pub(super) fn of(self, array: Expr) -> Expr {
        match self {
            Self::Histogram => call(HISTOGRAM, vec![array]),
            Self::First(count) => call("array_slice", vec![array, number("1"), number(&count)]),
        }
    }
}

/// `expr` with a call of one of them replaced by that of its aggregate, and what is to be made of that.
///
/// # Errors
/// 42883 for other arguments.
pub(super) fn replace(expr: &mut Expr) -> Result<Option<Made>, SqlError> {
    let Expr::Function(function) = &mut *expr else { return Ok(None) };
    let Some(name) = function.name.0.last().and_then(ObjectNamePart::as_ident).map(|ident| ident.value.to_lowercase())
    else {
        return Ok(None);
    };
    let position = Position::of(function.span());
    let Some((_, base)) = NAMES.iter().find(|(known, _)| *known == name) else { return Ok(None) };
    let count = match (&function.args, name.starts_with("topk")) {
        (FunctionArguments::List(list), true) => list.args.get(1).and_then(whole),
        _ => None,
    };
    let FunctionArguments::List(list) = &mut function.args else { return Err(misused(&name, position)) };
    let wanted = if name.starts_with("topk") { 2 } else { 1 };
    if list.args.len() != wanted || (wanted == 2 && count.is_none()) {
        return Err(misused(&name, position));
    }
    list.args.truncate(1);
    if matches!(name.as_str(), "collect_set" | "count_distinct" | "topkdistinct") {
        list.duplicate_treatment = Some(DuplicateTreatment::Distinct);
    }
    function.name = ObjectName(vec![ObjectNamePart::Identifier(Ident::new(*base))]);
    if name.ends_with("_by_offset") {
        function.null_treatment = Some(NullTreatment::IgnoreNulls);
    }
    if name == HISTOGRAM.trim_start_matches('$') {
        only_there(function);
        return Ok(Some(Made::Histogram));
    }
    if count.is_some() {
        greatest_first(function);
    }
    Ok(count.map(Made::First))
}

/// Sorts what is collected, without NULLs.
fn greatest_first(function: &mut Function) {
    let FunctionArguments::List(list) = &mut function.args else { return };
    let Some(FunctionArg::Unnamed(FunctionArgExpr::Expr(value))) = list.args.first().cloned() else { return };
    let options = OrderByOptions { asc: Some(false), nulls_first: None };
    let order = OrderByExpr { expr: value, options, with_fill: None };
    list.clauses.push(FunctionArgumentClause::OrderBy(vec![order]));
    only_there(function);
}

/// Collects no NULLs.
fn only_there(function: &mut Function) {
    let FunctionArguments::List(list) = &function.args else { return };
    let Some(FunctionArg::Unnamed(FunctionArgExpr::Expr(value))) = list.args.first().cloned() else { return };
    let is_there = Expr::IsNotNull(Box::new(value));
    function.filter = Some(Box::new(match function.filter.take() {
        None => is_there,
        Some(filter) => super::from::binary(Expr::Nested(filter), sqlparser::ast::BinaryOperator::And, is_there),
    }));
}

/// A number as it was written: resolution puts its type around it.
fn whole(arg: &FunctionArg) -> Option<String> {
    let FunctionArg::Unnamed(FunctionArgExpr::Expr(expr)) = arg else { return None };
    let value = match expr {
        Expr::Cast { expr, .. } => expr,
        expr => expr,
    };
    super::names::number(value).filter(|number| number.parse::<u32>().is_ok()).map(str::to_owned)
}

fn number(text: &str) -> Expr {
    super::refuse::as_bigint(literal(Value::Number(text.to_owned(), false)))
}

fn misused(name: &str, position: Position) -> SqlError {
    let hint = match name.starts_with("topk") {
        true => format!("{name}(value, 3): the number is a constant"),
        false => format!("{name}(value)"),
    };
    SqlError::new(
        millstream_catalog::model::SqlState::UndefinedFunction,
        format!("{name} with these arguments does not exist"),
    )
    .hint(hint)
    .at(position)
}
