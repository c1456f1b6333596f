//! Single pieces of expression syntax: what they mean, and which are refused.
//!
//! Leaves out names (`rewrite`) and operand types (`operator`). Pure.

use super::PlanContext;
use super::from::binary;
use super::refuse;
use super::rewrite::{call, position_of};
use super::settle::has_window_call;
use crate::dialect::ast::Position;
use crate::error::{Near, SqlError};
use crate::function::Registry;
use datafusion::common::ScalarValue;
use millstream_catalog::SqlType;
use millstream_catalog::model::SqlState;
use sqlparser::ast::{
    BinaryOperator, CastKind, DataType, DateTimeField, Expr, Function, FunctionArg, FunctionArgExpr,
    FunctionArgumentClause, FunctionArguments, Interval, NullTreatment, ObjectNamePart, Parens, UnaryOperator, Value,
};

/// `IS DISTINCT FROM` among the binary operators.
pub(super) const IS_DISTINCT_FROM: &str = "IS DISTINCT FROM";
/// `IS NOT DISTINCT FROM` among the binary operators.
pub(super) const IS_NOT_DISTINCT_FROM: &str = "IS NOT DISTINCT FROM";

pub(super) fn is_distinct_from() -> BinaryOperator {
    BinaryOperator::Custom(IS_DISTINCT_FROM.to_owned())
}

pub(super) fn is_not_distinct_from() -> BinaryOperator {
    BinaryOperator::Custom(IS_NOT_DISTINCT_FROM.to_owned())
}

/// Refuses expressions that would mean something else, or nothing.
pub(super) fn check(expr: &Expr) -> Result<(), SqlError> {
    let (what, hint) = match expr {
        Expr::Like { any: true, .. } | Expr::ILike { any: true, .. } => ("LIKE ANY without an array", "use OR"),
        Expr::SimilarTo { .. } => ("SIMILAR TO", "use a regular expression: ~"),
        Expr::RLike { .. } => ("RLIKE", "use a regular expression: ~"),
        Expr::Convert { .. } => ("CONVERT", "use CAST"),
        Expr::Cast { array: true, .. } | Expr::Cast { format: Some(_), .. } => {
            ("CAST with FORMAT or ARRAY", "use to_char or a cast")
        }
        Expr::Cast { kind: sqlparser::ast::CastKind::TryCast | sqlparser::ast::CastKind::SafeCast, .. } => {
            ("TRY_CAST", "use CASE and CAST")
        }
        Expr::Dictionary(_) => ("a dictionary", "write MAP('key' := value), or STRUCT(name := value)"),
        Expr::JsonAccess { .. } => (":", "use a json function"),
        Expr::MatchAgainst { .. } => ("MATCH … AGAINST", "use LIKE or ~"),
        Expr::Prefixed { .. } => ("a prefixed literal", "use a cast"),
        Expr::IsNormalized { .. } => ("IS NORMALIZED", "compare with normalize in the client"),
        Expr::InUnnest { .. } => ("IN UNNEST", "use = ANY (array)"),
        Expr::MemberOf(_) => ("MEMBER OF", "use = ANY (array)"),
        Expr::Prior(_) | Expr::OuterJoin(_) => ("PRIOR or (+)", "use WITH RECURSIVE or LEFT JOIN"),
        Expr::Lambda(_) => ("a lambda", "use unnest and a sub-query"),
        Expr::Collate { collation, .. } if !is_c_collation(collation) => {
            ("this COLLATE", "text is ordered by its bytes, as \"C\" does")
        }
        Expr::Tuple(_) => ("a row as a value", "compare its parts one by one"),
        Expr::Wildcard(_) | Expr::QualifiedWildcard(..) => ("* in an expression", "name the columns"),
        Expr::AnyOp { right, .. } | Expr::AllOp { right, .. } if matches!(right.as_ref(), Expr::Tuple(_)) => {
            ("ANY over a list", "use IN, or ANY (ARRAY[…])")
        }
        _ => return Ok(()),
    };
    Err(SqlError::unsupported(what, hint).at(position_of(expr)))
}

fn is_c_collation(collation: &sqlparser::ast::ObjectName) -> bool {
    let last = collation.0.last().and_then(ObjectNamePart::as_ident);
    last.is_some_and(|ident| ["C", "POSIX", "default", "ucs_basic"].contains(&ident.value.as_str()))
}

/// The number `text` with its type, or `None` where it has it already.
///
/// Digits alone decide, as the sign is an operator in PostgreSQL: 2147483648 and -2147483648 are bigint.
pub(super) fn number(text: &str) -> Result<Option<Expr>, SqlError> {
    let digits = text.strip_prefix('-').unwrap_or(text);
    let value = |text: &str| refuse::literal(Value::Number(text.to_owned(), false));
    let numeric = |text: &str, digits: usize| {
        let info = sqlparser::ast::ExactNumberInfo::PrecisionAndScale(digits.clamp(1, 38) as u64, 0);
        refuse::cast(value(text), DataType::Numeric(info))
    };
    if digits.bytes().all(|byte| byte.is_ascii_digit()) {
        if digits.parse::<i32>().is_ok() {
            return Ok(Some(refuse::cast(value(text), DataType::Int(None))));
        }
        if text.parse::<i64>().is_ok() {
            return Ok(None);
        }
        if text.parse::<u64>().is_ok() {
            return Ok(Some(numeric(text, 20)));
        }
    }
    let Some(plain) = without_exponent(digits) else {
        let fact = "a numeric constant has more than 38 digits";
        return Err(SqlError::new(SqlState::NumericValueOutOfRange, fact).hint("cast it: 1e300::float8"));
    };
    match plain == digits {
        true => Ok(None),
        // A whole number with an exponent is numeric, not integer.
        false if !plain.contains('.') => Ok(Some(numeric(&plain, plain.len()))),
        false => Ok(Some(value(&plain))),
    }
}

/// `1.5e3` as `1500`; `None` for more than 38 digits.
fn without_exponent(text: &str) -> Option<String> {
    let (mantissa, exponent) = text.split_once(['e', 'E']).unwrap_or((text, "0"));
    let exponent: i64 = exponent.parse().ok().filter(|exponent| (-400..=400).contains(exponent))?;
    let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
    let significant: String = [whole, fraction].concat();
    let point = i64::try_from(whole.len()).ok()? + exponent;
    let zeros = |count: i64| "0".repeat(usize::try_from(count.max(0)).unwrap_or(0));
    let digits = format!("{}{significant}{}", zeros(1 - point), zeros(point - i64::try_from(significant.len()).ok()?));
    let (before, after) = digits.split_at(usize::try_from(point.max(1)).ok()?);
    let before = before.trim_start_matches('0');
    let before = if before.is_empty() { "0" } else { before };
    if before.trim_start_matches('0').len() + after.len() > 38 {
        return None;
    }
    if !text.contains(['e', 'E']) {
        return Some(text.to_owned());
    }
    Some(if after.is_empty() { before.to_owned() } else { format!("{before}.{after}") })
}

/// The value of a string literal that is cast to `target`.
pub(super) fn literal(text: &str, target: &SqlType, context: &PlanContext) -> Result<ScalarValue, SqlError> {
    let word = text.trim().to_ascii_lowercase();
    if word == "now" && *target == SqlType::TimestampTz {
        return Ok(ScalarValue::TimestampMicrosecond(Some(context.now.micros()), Some("UTC".into())));
    }
    match target {
        // An explicit cast shortens text, an assignment refuses it.
        SqlType::Varchar(length) | SqlType::Char(length) => {
            let short: String = text.chars().take(usize::try_from(*length).unwrap_or(usize::MAX)).collect();
            crate::types::scalar_text(target, short.as_bytes())
        }
        _ => crate::types::scalar_text(target, text.as_bytes()),
    }
}

/// The text of `INTERVAL '…' unit`.
pub(super) fn interval_text(interval: &Interval) -> Result<String, SqlError> {
    let is_plain = interval.leading_precision.is_none() && interval.fractional_seconds_precision.is_none();
    let text = match interval.value.as_ref() {
        Expr::Value(value) => match &value.value {
            Value::SingleQuotedString(text) | Value::EscapedStringLiteral(text) | Value::Number(text, _) => {
                Some(text.clone())
            }
            _ => None,
        },
        // A number was given its type already.
        Expr::Cast { expr, .. } => super::names::number(expr).map(str::to_owned),
        _ => None,
    };
    let Some(text) = text.filter(|_| is_plain && interval.last_field.is_none()) else {
        return Err(SqlError::unsupported(
            "this form of INTERVAL",
            "use INTERVAL '1 hour 30 minutes', or multiply an interval",
        ));
    };
    let is_number = !text.is_empty() && text.trim().bytes().all(|byte| byte.is_ascii_digit() || b"+-.".contains(&byte));
    match &interval.leading_field {
        Some(field) if is_number => Ok(format!("{text} {}", unit(field)?)),
        _ => Ok(text),
    }
}

fn unit(field: &DateTimeField) -> Result<&'static str, SqlError> {
    Ok(match field {
        DateTimeField::Year | DateTimeField::Years => "year",
        DateTimeField::Month | DateTimeField::Months => "month",
        DateTimeField::Week(None) | DateTimeField::Weeks => "week",
        DateTimeField::Day | DateTimeField::Days => "day",
        DateTimeField::Hour | DateTimeField::Hours => "hour",
        DateTimeField::Minute | DateTimeField::Minutes => "minute",
        DateTimeField::Second | DateTimeField::Seconds => "second",
        _ => {
            return Err(SqlError::unsupported(
                "this unit of INTERVAL",
                "use year, month, week, day, hour, minute or second",
            ));
        }
    })
}

/// What a prefix operator means, where it is a function.
pub(super) fn unary(op: UnaryOperator, inner: &mut Box<Expr>) -> Result<Option<Expr>, SqlError> {
    let inner = || std::mem::replace(inner.as_mut(), refuse::null());
    Ok(match op {
        UnaryOperator::Not => None,
        UnaryOperator::Plus => Some(inner_of(inner)),
        UnaryOperator::Minus => Some(call("$negate", vec![inner_of(inner)])),
        UnaryOperator::PGAbs => Some(call("abs", vec![inner_of(inner)])),
        UnaryOperator::PGSquareRoot => Some(call("sqrt", vec![inner_of(inner)])),
        UnaryOperator::PGCubeRoot => Some(call("cbrt", vec![inner_of(inner)])),
        UnaryOperator::BitwiseNot => {
            let minus_one = refuse::cast(refuse::literal(Value::Number("-1".to_owned(), false)), DataType::Int(None));
            Some(Expr::Nested(Box::new(binary(inner_of(inner), BinaryOperator::PGBitwiseXor, minus_one))))
        }
        _ => return Err(SqlError::unsupported("this prefix operator", "use a function")),
    })
}

fn inner_of(inner: impl FnOnce() -> Expr) -> Expr {
    inner()
}

/// Checks a call, and takes schema names off.
pub(super) fn function(registry: &Registry, function: &mut Function) -> Result<(), SqlError> {
    let position = function
        .name
        .0
        .first()
        .and_then(ObjectNamePart::as_ident)
        .map_or(Position::UNKNOWN, |ident| Position::of(ident.span));
    let parts: Vec<String> =
        function.name.0.iter().filter_map(|part| part.as_ident().map(|ident| ident.value.clone())).collect();
    let name = match parts.as_slice() {
        // Functions this crate put there itself.
        [name] if name.starts_with('$') && position == Position::UNKNOWN && position.get() == 0 => return Ok(()),
        [name] => name.to_lowercase(),
        [schema, name] if schema == "pg_catalog" || schema == "public" => name.to_lowercase(),
        _ => return Err(no_function(&parts.join(".")).at(position)),
    };
    if name.starts_with('$') || !registry.has(&name) {
        let later = LATER.iter().find(|(later, _)| *later == name);
        return Err(match later {
            Some((_, hint)) => SqlError::unsupported(format!("function {name}"), *hint).at(position),
            None => no_function(&name).at(position),
        });
    }
    refuse_clauses(registry, function, &name).map_err(|error| error.at(position))?;
    // Under its own name: a call by another one is renamed by the engine's planner, with the text of its arguments.
    let name = registry.scalar(&name).map_or(name, |function| function.name().to_owned());
    // As ksqlDB has it.
    let name = if name == "explode" { "unnest".to_owned() } else { name };
    function.name.0 = vec![ObjectNamePart::Identifier(super::scope::quoted(&name))];
    Ok(())
}

/// Functions of ksqlDB and PostgreSQL that people will ask for and that are not there yet, with what to write instead.
const LATER: [(&str, &str); 2] = [("histogram", "group by the value and count"), ("json_agg", "write array_agg(x)")];

/// Functions that mean nothing without OVER.
const WINDOW_ONLY: [&str; 8] =
    ["row_number", "rank", "dense_rank", "percent_rank", "cume_dist", "ntile", "lag", "lead"];

fn refuse_clauses(registry: &Registry, function: &Function, name: &str) -> Result<(), SqlError> {
    if function.uses_odbc_syntax || !matches!(function.parameters, FunctionArguments::None) {
        return Err(SqlError::unsupported("this form of a call", "write name(arguments)"));
    }
    if function.over.is_none() && function.within_group.is_empty() && WINDOW_ONLY.contains(&name) {
        let fact = format!("window function {name} requires an OVER clause");
        return Err(SqlError::new(SqlState::WindowingError, fact).near(Near::Word(name.to_owned())));
    }
    let is_aggregate = registry.is_aggregate_name(name);
    if function.over.is_some() && !is_aggregate && !registry.is_window_name(name) {
        let fact = format!("OVER specified, but {name} is not a window function nor an aggregate function");
        return Err(SqlError::new(SqlState::WrongObjectType, fact));
    }
    if is_aggregate && function.over.is_none() && has_window_call(&function.args) {
        let fact = "aggregate function calls cannot contain window function calls";
        return Err(SqlError::new(SqlState::GroupingError, fact).hint("put the inner call into a sub-query in FROM"));
    }
    if function.filter.is_some() && !is_aggregate {
        let fact = format!("FILTER specified, but {name} is not an aggregate function");
        return Err(SqlError::new(SqlState::WrongObjectType, fact));
    }
    match &function.args {
        FunctionArguments::Subquery(_) => {
            Err(SqlError::unsupported("ARRAY (SELECT …)", "use array_agg in a sub-query"))
        }
        FunctionArguments::None => Ok(()),
        FunctionArguments::List(list) => {
            if list.duplicate_treatment.is_some() && !is_aggregate {
                let fact = format!("DISTINCT specified, but {name} is not an aggregate function");
                return Err(SqlError::new(SqlState::WrongObjectType, fact));
            }
            let is_star = |arg: &FunctionArg| matches!(arg, FunctionArg::Unnamed(FunctionArgExpr::Wildcard));
            if list.args.iter().any(is_star) && (list.duplicate_treatment.is_some() || name != "count") {
                return Err(SqlError::syntax("* is an argument of count only, and not with DISTINCT"));
            }
            let known = |clause: &FunctionArgumentClause| match clause {
                FunctionArgumentClause::OrderBy(_) => is_aggregate,
                FunctionArgumentClause::IgnoreOrRespectNulls(treatment) => {
                    matches!(treatment, NullTreatment::RespectNulls | NullTreatment::IgnoreNulls)
                }
                _ => false,
            };
            match list.clauses.iter().all(known) {
                true => Ok(()),
                false => Err(SqlError::unsupported("a clause inside the arguments of a call", "leave it out")),
            }
        }
    }
}

fn no_function(name: &str) -> SqlError {
    SqlError::new(SqlState::UndefinedFunction, format!("function \"{name}\" does not exist"))
        .hint("SHOW FUNCTIONS lists those there are")
}

/// Values of unknown type in a column of VALUES have the type that another row's is cast to; where every value is of
/// unknown type, parameters are text.
pub(super) fn type_values(rows: &mut [Parens<Vec<Expr>>], declared: &[Option<SqlType>]) {
    let is_untyped = |expr: &Expr| match expr {
        Expr::Value(value) => match &value.value {
            Value::Placeholder(id) => {
                let at = id.trim_start_matches('$').parse::<usize>().ok().and_then(|number| number.checked_sub(1));
                at.and_then(|at| declared.get(at)).is_none_or(Option::is_none)
            }
            Value::Null | Value::SingleQuotedString(_) | Value::EscapedStringLiteral(_) => true,
            _ => false,
        },
        _ => false,
    };
    let width = rows.iter().map(|row| row.content.len()).min().unwrap_or(0);
    for column in 0..width {
        if !rows.iter().all(|row| is_untyped(&row.content[column])) {
            let given = rows.iter().find_map(|row| match &row.content[column] {
                Expr::Cast { data_type, .. } => Some(data_type.clone()),
                Expr::TypedString(typed) => Some(typed.data_type.clone()),
                _ => None,
            });
            let untyped = rows.iter_mut().map(|row| &mut row.content[column]).filter(|expr| is_untyped(expr));
            if let Some(data_type) = given {
                untyped
                    .for_each(|expr| *expr = refuse::cast(std::mem::replace(expr, refuse::null()), data_type.clone()));
            }
            continue;
        }
        for row in rows.iter_mut() {
            let expr = &mut row.content[column];
            if matches!(expr, Expr::Value(value) if matches!(value.value, Value::Placeholder(_))) {
                let inner = Box::new(std::mem::replace(expr, refuse::null()));
                let (kind, data_type) = (CastKind::DoubleColon, DataType::Text);
                *expr = Expr::Cast { kind, expr: inner, data_type, array: false, format: None };
            }
        }
    }
}
