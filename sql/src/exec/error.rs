//! The engine's errors as PostgreSQL's: SQLSTATE and words.
//!
//! Owns the mapping. Leaves out errors this crate makes itself, which travel inside and come out unchanged. Names of
//! types and crates of the engine never reach a message. Pure.

use crate::error::{Near, SqlError};
use crate::exec::memory::bound_of;
use arrow::error::ArrowError;
use datafusion::common::{DataFusionError, SchemaError};
use millstream_catalog::model::SqlState;

impl From<DataFusionError> for SqlError {
    fn from(error: DataFusionError) -> Self {
        of_engine(&error)
    }
}

fn of_engine(error: &DataFusionError) -> SqlError {
    match error {
        DataFusionError::External(inner) => of_external(inner.as_ref()),
        DataFusionError::Context(_, inner) | DataFusionError::Diagnostic(_, inner) => of_engine(inner),
        DataFusionError::Shared(inner) => of_engine(inner),
        DataFusionError::Collection(errors) => {
            errors.first().map_or_else(|| SqlError::internal("an error without words"), of_engine)
        }
        DataFusionError::ArrowError(inner, _) => of_arrow(inner),
        DataFusionError::SchemaError(inner, _) => of_schema(inner),
        DataFusionError::ResourcesExhausted(text) => {
            let error = SqlError::new(SqlState::OutOfMemory, "out of memory: the query needs more than it may hold")
                .hint("filter earlier, group by fewer values, sort fewer rows, or start the server with a larger --memory");
            match bound_of(text) {
                Some(bound) => error.detail(bound),
                None => error,
            }
        }
        DataFusionError::NotImplemented(text)
            if text.contains("OuterReferenceColumn") || text.contains("ScalarSubquery") =>
        {
            correlated()
        }
        DataFusionError::NotImplemented(text) if text.contains("Exists") || text.contains("InSubquery") => {
            SqlError::unsupported("EXISTS or IN with a sub-query outside a condition", "put it into WHERE, or join")
        }
        DataFusionError::NotImplemented(text) => SqlError::unsupported(quoted(text), "write the query another way"),
        DataFusionError::Plan(text) => of_plan(text),
        DataFusionError::Execution(text) => of_execution(text),
        DataFusionError::ExecutionJoin(_) => SqlError::new(SqlState::QueryCanceled, "the query was stopped"),
        DataFusionError::SQL(..) => SqlError::syntax("syntax error"),
        _ => internal(),
    }
}

fn correlated() -> SqlError {
    SqlError::unsupported("this correlated sub-query", "write it as a join, or with an aggregate such as max")
}

fn of_external(error: &(dyn std::error::Error + Send + Sync + 'static)) -> SqlError {
    if let Some(error) = error.downcast_ref::<SqlError>() {
        return error.clone();
    }
    if let Some(error) = error.downcast_ref::<DataFusionError>() {
        return of_engine(error);
    }
    match error.downcast_ref::<ArrowError>() {
        Some(error) => of_arrow(error),
        None if error.to_string().contains("regex") => of_execution("invalid regular expression"),
        None => internal(),
    }
}

fn internal() -> SqlError {
    SqlError::internal("the query engine failed").hint("please report the statement")
}

fn of_arrow(error: &ArrowError) -> SqlError {
    match error {
        ArrowError::ExternalError(inner) => of_external(inner.as_ref()),
        ArrowError::DivideByZero => SqlError::new(SqlState::DivisionByZero, "division by zero"),
        ArrowError::ArithmeticOverflow(_) => SqlError::new(SqlState::NumericValueOutOfRange, "value out of range"),
        ArrowError::CastError(text) | ArrowError::ParseError(text) | ArrowError::InvalidArgumentError(text) => {
            of_execution(text)
        }
        ArrowError::ComputeError(text) => of_execution(text),
        ArrowError::MemoryError(_) => SqlError::new(SqlState::OutOfMemory, "out of memory"),
        ArrowError::OffsetOverflowError(_) => {
            SqlError::new(SqlState::ProgramLimitExceeded, "a column of one batch is larger than 2 GiB")
        }
        _ => internal(),
    }
}

fn of_schema(error: &SchemaError) -> SqlError {
    match error {
        SchemaError::FieldNotFound { field, .. } => {
            SqlError::new(SqlState::UndefinedColumn, format!("column \"{}\" does not exist", field.name))
        }
        SchemaError::AmbiguousReference { field } => {
            SqlError::new(SqlState::AmbiguousColumn, format!("column reference \"{}\" is ambiguous", field.name))
        }
        SchemaError::DuplicateQualifiedField { name, .. } | SchemaError::DuplicateUnqualifiedField { name } => {
            SqlError::new(SqlState::DuplicateColumn, format!("column \"{name}\" specified more than once"))
        }
    }
}

/// 42883 for a function, where the engine's words name it.
fn arguments(text: &str) -> SqlError {
    let name = between(text, "function '", "'").or_else(|| between(text, "'", "'"));
    let name = name.map(|name| name.split('(').next().unwrap_or(name)).filter(|name| is_name(name));
    let fact = match name {
        Some(name) => format!("function {name} does not take arguments of these types"),
        None => "a function does not take arguments of these types".to_owned(),
    };
    let error = SqlError::new(SqlState::UndefinedFunction, fact)
        .hint("No function matches the given name and argument types. You might need to add explicit type casts.");
    match name {
        Some(name) => error.near(Near::Word(name.to_owned())),
        None => error,
    }
}

/// Errors of planning, told apart by their words: the engine has no codes.
fn of_plan(text: &str) -> SqlError {
    let lower = text.to_lowercase();
    let has = |part: &str| lower.contains(part);
    if has("having clause references") {
        return SqlError::new(SqlState::GroupingError, "HAVING needs GROUP BY or an aggregate function");
    }
    if has("correlated scalar subquery") {
        return correlated();
    }
    if has("must be in group by")
        || has("must appear in the group by")
        || has("could not be resolved from available columns")
    {
        let column = between(text, "column \"", "\"").or_else(|| between(text, "Expression ", " could")).unwrap_or("?");
        let fact = format!(
            "column \"{}\" must appear in the GROUP BY clause or be used in an aggregate function",
            plain(column)
        );
        let name = plain(column.rsplit('.').next().unwrap_or(column));
        return SqlError::new(SqlState::GroupingError, fact).near(Near::Word(name));
    }
    if has("aggregate functions are not allowed") || has("aggregate function calls cannot be nested") {
        return SqlError::new(SqlState::GroupingError, "aggregate functions are not allowed here");
    }
    if has("for select distinct, order by") {
        return SqlError::new(
            SqlState::InvalidColumnReference,
            "for SELECT DISTINCT, ORDER BY expressions must appear in select list",
        );
    }
    if has("select distinct on expressions must match") {
        return SqlError::new(
            SqlState::InvalidColumnReference,
            "SELECT DISTINCT ON expressions must match initial ORDER BY expressions",
        );
    }
    if has("no function matches")
        || has("failed to coerce arguments")
        || has("does not support")
        || has("coercion from")
    {
        return arguments(text);
    }
    if has("cannot coerce") || has("incompatible") || has("cannot infer common") || has("union") && has("type") {
        return SqlError::new(SqlState::DatatypeMismatch, "types cannot be matched").hint("add explicit type casts");
    }
    if has("non-boolean predicate") {
        return SqlError::new(SqlState::DatatypeMismatch, "a condition must be of type boolean");
    }
    if has("limit must be >= 0") {
        return SqlError::new(SqlState::InvalidRowCountInLimitClause, "LIMIT must not be negative");
    }
    if has("offset must be >=0") || has("offset must be >= 0") || has("skip must be >= 0") {
        return SqlError::new(SqlState::InvalidRowCountInResultOffsetClause, "OFFSET must not be negative");
    }
    if has("limit") || has("offset") || has("skip") {
        return SqlError::new(
            SqlState::InvalidParameterValue,
            "LIMIT and OFFSET must be whole numbers that are not negative",
        );
    }
    if has("unsupported") || has("not supported") || has("not implemented") || has("correlated") || has("subquery") {
        return SqlError::unsupported(quoted(text), "write the query another way");
    }
    SqlError::new(SqlState::SyntaxError, told(text).unwrap_or_else(|| format!("{HIDDEN} is not valid")))
}

/// Errors of evaluation, told apart by their words.
fn of_execution(text: &str) -> SqlError {
    let lower = text.to_lowercase();
    let has = |part: &str| lower.contains(part);
    if has("divide by zero") || has("division by zero") {
        return SqlError::new(SqlState::DivisionByZero, "division by zero");
    }
    if has("overflow")
        || has("out of range")
        || has("can't cast value")
        || has("too large to store")
        || has("too small to store")
    {
        return SqlError::new(SqlState::NumericValueOutOfRange, "value out of range");
    }
    if has("cannot cast string") || has("error parsing") || has("parser error") || has("cannot parse") {
        return match between(text, "string '", "'") {
            Some(value) => {
                SqlError::new(SqlState::InvalidTextRepresentation, format!("invalid input syntax: \"{value}\""))
            }
            None => SqlError::new(SqlState::InvalidTextRepresentation, "invalid input syntax"),
        };
    }
    if let Some(unit) = between(text, "date_trunc granularity: '", "'") {
        return SqlError::new(SqlState::InvalidParameterValue, format!("unit \"{unit}\" not recognized"))
            .hint("units are microsecond, millisecond, second, minute, hour, day, week, month, quarter and year");
    }
    if has("returned more than one row") || has("more than one row") {
        return SqlError::new(
            SqlState::CardinalityViolation,
            "more than one row returned by a subquery used as an expression",
        );
    }
    if has("regular expression") || has("regex") {
        return SqlError::new(SqlState::InvalidRegularExpression, "invalid regular expression");
    }
    if has("ntile requires a positive integer") {
        return SqlError::new(SqlState::InvalidArgumentForNtile, "argument of ntile must be greater than zero");
    }
    if has("negative substring length") || has("negative count not allowed") {
        return SqlError::new(SqlState::SubstringError, "negative substring length not allowed");
    }
    if has("not implemented") || has("not supported") || has("unsupported") {
        return SqlError::unsupported(quoted(text), "write the expression another way");
    }
    SqlError::new(SqlState::DataException, told(text).unwrap_or_else(|| format!("{HIDDEN} cannot be computed")))
}

fn between<'a>(text: &'a str, start: &str, end: &str) -> Option<&'a str> {
    let (_, rest) = text.split_once(start)?;
    rest.split_once(end).map(|(found, _)| found)
}

fn is_name(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
}

/// A column without quotes of its own.
fn plain(column: &str) -> String {
    column.replace('"', "")
}

/// What is meant where the engine's words are not fit to be shown.
const HIDDEN: &str = "this expression or clause";

/// The engine's words for what it does not support.
fn quoted(text: &str) -> String {
    told(text).unwrap_or_else(|| HIDDEN.to_owned())
}

/// The engine's words, if they are fit to be shown: one lower-case line without its types and names.
fn told(text: &str) -> Option<String> {
    const OURS: [&str; 17] = [
        "hysical plan",
        "ogical expression",
        "Subquery(",
        "DataFusion",
        "datafusion",
        "Arrow",
        "arrow",
        "Utf8",
        "Int64",
        "Int32",
        "Float64",
        "Timestamp(",
        "Decimal128",
        "Expr::",
        "{ ",
        "::",
        "Some(",
    ];
    let line = text.lines().next().unwrap_or_default().trim().trim_end_matches('.');
    let line = line.strip_prefix("Execution error: ").unwrap_or(line);
    if line.is_empty() || line.len() > 160 || OURS.iter().any(|word| line.contains(word)) {
        return None;
    }
    let mut chars = line.chars();
    chars.next().map(|first| first.to_lowercase().chain(chars).collect())
}
