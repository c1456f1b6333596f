//! `CREATE STREAM | TOPIC | TABLE`: types, keys, event time and options, to a definition for the catalog.
//!
//! Leaves out existence, ids and shards (engine), and the values of defaults (planner). Pure: a crash does
//! nothing to it.

use super::options::{self, CreateAsOptions};
use crate::dialect::ast::{ColumnDef, ColumnKey, CreateAs, CreateRelation, Ident, Position, QualifiedName, Select};
use crate::error::SqlError;
use crate::types;
use millstream_catalog::model::{ShardId, Span, SqlState, Timestamp, TopicId, limit};
use millstream_catalog::schema::{OWN_NAMES, ROWFIRST, ROWGONE, ROWOFFSET, ROWPARTITION, ROWTIME, ROWTOMBSTONE};
use millstream_catalog::{CleanupPolicy, Column, Relation, RelationKind, Schema, SqlType};
use sqlparser::ast::{Expr, Visit, Visitor};
use std::collections::HashSet;
use std::ops::ControlFlow;

pub use super::options::{
    GroupReset, PushOptions, bind_push_options, changed_topic_option, check_materialized, grace_option,
};

/// Names of pseudo-columns, which no column may have.
const RESERVED: [&str; 9] =
    [ROWTIME, ROWPARTITION, ROWOFFSET, "rowop", ROWTOMBSTONE, ROWFIRST, ROWGONE, "windowstart", "windowend"];

/// The definition that `create` gives; its id is 0 and its shard the first: the engine decides both.
///
/// # Errors
/// What is wrong with a column, a key, the event time or an option, with its position.
pub fn bind_relation(create: &CreateRelation, now: Timestamp, nodes: u32) -> Result<Relation, SqlError> {
    let kind = create.kind.relation_kind().ok_or_else(|| SqlError::internal("a view without its query"))?;
    check_topic_name(&create.name)?;
    check_names(create)?;
    let mut columns = create.columns.iter().map(column).collect::<Result<Vec<Column>, SqlError>>()?;
    keys(create, kind, &mut columns)?;
    check_headers(create, &columns)?;
    let has_key = columns.iter().any(|column| column.is_key);
    let options = options::relation_options(&create.options, has_key, kind, nodes)?;
    let (timestamp, watermark_delay) = event_time(create, &columns, options.timestamp)?;
    let mut relation = Relation {
        id: TopicId::default(),
        name: create.name.name.clone(),
        kind,
        schema: Schema { columns },
        timestamp,
        watermark_delay,
        options: options.topic,
        shard: ShardId::default(),
        query: None,
        created_at: now,
        sql: create.sql.clone(),
        fills: Default::default(),
        row_ids: None,
        is_materialized: false,
    };
    relation.add_row_ids();
    Ok(relation)
}

/// The options of `CREATE … AS SELECT`.
///
/// # Errors
/// `42602` for a name no topic may have, `22023` for unknown options and values, `0A000` for those without effect yet.
pub fn bind_create_as(create: &CreateAs, nodes: u32) -> Result<CreateAsOptions, SqlError> {
    check_topic_name(&create.name)?;
    let mut bound = options::create_as_options(&create.options, create.kind.relation_kind(), nodes)?;
    let Some(window) = &create.select.window else { return Ok(bound) };
    let Some((retention, position)) = window.retention else { return Ok(bound) };
    let grace = window.grace.map_or(0, Span::micros);
    if retention.micros() < window.kind.length().micros().saturating_add(grace) {
        let fact = "RETENTION must not be less than the window's size and its grace period";
        return Err(SqlError::new(SqlState::InvalidParameterValue, fact).at(position));
    }
    if bound.topic.cleanup.retention.is_some() || bound.topic.cleanup.policy.is_some() {
        let fact = "RETENTION of the windows and an option of the table say how long rows are kept";
        return Err(SqlError::new(SqlState::InvalidParameterValue, fact).hint("leave one of them out").at(position));
    }
    bound.topic.cleanup.policy = Some(CleanupPolicy::CompactDelete);
    bound.topic.cleanup.retention = Some(retention);
    Ok(bound)
}

/// Refuses what is said of a stream or table to be made where none is: `PARTITION BY`, and `RETENTION` of windows.
///
/// # Errors
/// `0A000` at the clause.
pub fn check_makes_nothing(select: &Select) -> Result<(), SqlError> {
    if let Some(clause) = &select.partition_by {
        let hint = "it is the key of the new stream in CREATE STREAM … AS SELECT";
        return Err(SqlError::unsupported("PARTITION BY here", hint).at(clause.position));
    }
    match select.window.as_ref().and_then(|window| window.retention) {
        None => Ok(()),
        Some((_, position)) => {
            let hint = "it says how long a table made by CREATE TABLE … AS SELECT keeps its rows";
            Err(SqlError::unsupported("RETENTION of windows here", hint).at(position))
        }
    }
}

/// Refuses a name that would need escapes in paths, addresses and the statements that tools make of it.
///
/// # Errors
/// `42602`; `42939` for names of the server's own.
pub fn check_topic_name(name: &QualifiedName) -> Result<(), SqlError> {
    let text = name.name.as_str();
    if text.starts_with(OWN_NAMES) {
        let message = format!("names that begin with \"{OWN_NAMES}\" are the server's own");
        return Err(SqlError::new(SqlState::ReservedName, message).at(name.position));
    }
    let wrong = text.chars().find(|c| matches!(c, '/' | '\\' | '"' | '\'' | '`'));
    let reason = match wrong {
        Some(wrong) => format!("it has a {wrong}"),
        None if [".", ".."].contains(&text) => "it has only dots".to_owned(),
        None => return Ok(()),
    };
    Err(SqlError::new(SqlState::InvalidName, format!("invalid topic name \"{text}\""))
        .detail(reason)
        .hint("slashes, backslashes and quotes cannot be part of the name of a stream, topic or table")
        .at(name.position))
}

/// Refuses a column name that stands for a pseudo-column.
///
/// # Errors
/// `42939`.
pub fn check_column_name(name: &str, position: Position) -> Result<(), SqlError> {
    if !RESERVED.contains(&name) {
        return Ok(());
    }
    Err(SqlError::new(SqlState::ReservedName, format!("column name \"{name}\" is reserved"))
        .hint("every stream and table has its own; choose another name")
        .at(position))
}

fn check_names(create: &CreateRelation) -> Result<(), SqlError> {
    if create.columns.is_empty() {
        return Err(SqlError::new(
            SqlState::InvalidTableDefinition,
            format!("relation \"{}\" has no columns", create.name),
        )
        .at(create.name.position));
    }
    if create.columns.len() > limit::COLUMNS_MAX {
        let message = format!("a relation can have at most {} columns", limit::COLUMNS_MAX);
        return Err(SqlError::new(SqlState::TooManyColumns, message).at(create.name.position));
    }
    let mut seen = HashSet::new();
    for ColumnDef { name, .. } in &create.columns {
        check_column_name(name.as_str(), name.position)?;
        if !seen.insert(name.as_str()) {
            let message = format!("column \"{name}\" specified more than once");
            return Err(SqlError::new(SqlState::DuplicateColumn, message).at(name.position));
        }
    }
    Ok(())
}

pub(super) fn column(def: &ColumnDef) -> Result<Column, SqlError> {
    if let Some(default) = &def.default {
        check_default(def, &default.expr)?;
    }
    Ok(Column {
        name: def.name.name.clone(),
        sql_type: types::sql_type(&def.data_type, def.type_position)?,
        is_nullable: !def.is_not_null,
        is_key: false,
        default: def.default.as_ref().map(|default| default.sql.clone()),
        is_hidden: false,
        is_headers: def.is_headers,
    })
}

/// At most one column is declared HEADERS, and it has their type.
fn check_headers(create: &CreateRelation, columns: &[Column]) -> Result<(), SqlError> {
    let mut first = None;
    for (def, column) in create.columns.iter().zip(columns).filter(|(def, _)| def.is_headers) {
        let wrong = |message: String| SqlError::new(SqlState::InvalidTableDefinition, message).at(def.type_position);
        if let Some(first) = first.replace(&column.name) {
            return Err(wrong(format!("columns \"{first}\" and \"{}\" are both declared HEADERS", column.name)));
        }
        if column.sql_type != SqlType::headers() {
            let fact = format!("column \"{}\" is declared HEADERS but is of type {}", column.name, column.sql_type);
            return Err(wrong(fact).hint("write the name and HEADERS"));
        }
        if column.is_key {
            return Err(wrong(format!("column \"{}\" is declared HEADERS and cannot be a key", column.name)));
        }
    }
    Ok(())
}

/// A default has no columns, parameters or sub-queries.
fn check_default(def: &ColumnDef, default: &Expr) -> Result<(), SqlError> {
    struct Check;
    impl Visitor for Check {
        type Break = (SqlState, &'static str, Position);
        fn pre_visit_query(&mut self, _: &sqlparser::ast::Query) -> ControlFlow<Self::Break> {
            ControlFlow::Break((
                SqlState::FeatureNotSupported,
                "cannot use subquery in DEFAULT expression",
                Position::UNKNOWN,
            ))
        }
        fn pre_visit_expr(&mut self, expr: &Expr) -> ControlFlow<Self::Break> {
            let column = (SqlState::FeatureNotSupported, "cannot use column reference in DEFAULT expression");
            match expr {
                Expr::Identifier(ident) => ControlFlow::Break((column.0, column.1, Position::of(ident.span))),
                Expr::CompoundIdentifier(parts) => {
                    let position = parts.first().map_or(Position::UNKNOWN, |ident| Position::of(ident.span));
                    ControlFlow::Break((column.0, column.1, position))
                }
                Expr::Value(value) if matches!(value.value, sqlparser::ast::Value::Placeholder(_)) => {
                    ControlFlow::Break((
                        SqlState::UndefinedParameter,
                        "there is no parameter here",
                        Position::of(value.span),
                    ))
                }
                _ => ControlFlow::Continue(()),
            }
        }
    }
    match default.visit(&mut Check) {
        ControlFlow::Continue(()) => Ok(()),
        ControlFlow::Break((sqlstate, message, position)) => {
            let position = if position.get() == 0 { def.constraint_position } else { position };
            Err(SqlError::new(sqlstate, message).hint("write a constant, or an expression of constants").at(position))
        }
    }
}

/// Marks the key columns.
fn keys(create: &CreateRelation, kind: RelationKind, columns: &mut [Column]) -> Result<(), SqlError> {
    let word = create.kind.keyword();
    let mut inline = None;
    for (def, column) in create.columns.iter().zip(columns.iter_mut()) {
        let wrong = |message: String, hint: &str| {
            SqlError::new(SqlState::FeatureNotSupported, message).hint(hint).at(def.constraint_position)
        };
        match (def.key, kind) {
            (ColumnKey::No, _) => continue,
            (ColumnKey::Key, RelationKind::Table) => {
                return Err(wrong(format!("a {word} has no KEY"), "use PRIMARY KEY"));
            }
            (ColumnKey::PrimaryKey, RelationKind::Stream) => {
                return Err(wrong(format!("a {word} has no PRIMARY KEY"), "use KEY, or CREATE TABLE"));
            }
            (ColumnKey::Key, RelationKind::Stream) => {}
            (ColumnKey::PrimaryKey, RelationKind::Table) => {
                if inline.replace(def).is_some() {
                    return Err(multiple_keys(create, def.constraint_position));
                }
                column.is_nullable = false;
            }
        }
        column.is_key = true;
        check_key_type(column, def.constraint_position)?;
    }
    let Some(names) = &create.primary_key else { return Ok(()) };
    let position = names.first().map_or(Position::UNKNOWN, |name| name.position);
    if kind == RelationKind::Stream {
        return Err(SqlError::new(SqlState::FeatureNotSupported, format!("a {word} has no PRIMARY KEY"))
            .hint("mark the columns KEY, or use CREATE TABLE")
            .at(position));
    }
    if inline.is_some() {
        return Err(multiple_keys(create, position));
    }
    names.iter().try_for_each(|name| table_key(name, columns))
}

fn multiple_keys(create: &CreateRelation, position: Position) -> SqlError {
    let message = format!("multiple primary keys for table \"{}\" are not allowed", create.name);
    SqlError::new(SqlState::InvalidTableDefinition, message)
        .hint("write PRIMARY KEY (a, b) after the columns")
        .at(position)
}

/// One column of `PRIMARY KEY (…)`.
fn table_key(name: &Ident, columns: &mut [Column]) -> Result<(), SqlError> {
    let Some(column) = columns.iter_mut().find(|column| column.name == name.name) else {
        let message = format!("column \"{name}\" named in key does not exist");
        return Err(SqlError::new(SqlState::UndefinedColumn, message).at(name.position));
    };
    if column.is_key {
        let message = format!("column \"{name}\" appears twice in primary key constraint");
        return Err(SqlError::new(SqlState::DuplicateColumn, message).at(name.position));
    }
    (column.is_key, column.is_nullable) = (true, false);
    check_key_type(column, name.position)
}

/// Keys are compared: `json` has no equality.
fn check_key_type(column: &Column, position: Position) -> Result<(), SqlError> {
    if column.sql_type.has_equality() {
        return Ok(());
    }
    let without = if column.sql_type.has(&SqlType::Json) { "json".to_owned() } else { column.sql_type.to_string() };
    let fact = format!("could not identify an equality operator for type {without}");
    Err(SqlError::new(SqlState::UndefinedFunction, fact)
        .hint(format!("declare column \"{}\" jsonb or text", column.name))
        .at(position))
}

/// The event-time column and the delay of the watermark.
fn event_time(
    create: &CreateRelation,
    columns: &[Column],
    named: Option<(String, Position)>,
) -> Result<(Option<usize>, Option<Span>), SqlError> {
    let named = match &named {
        Some((name, position)) => Some((event_time_column(columns, name, *position)?, *position)),
        None => None,
    };
    let Some(watermark) = &create.watermark else { return Ok((named.map(|(at, _)| at), None)) };
    let delay = Some(watermark.delay);
    if watermark.column.as_str() == ROWTIME {
        return Ok((named.map(|(at, _)| at), delay));
    }
    let at = event_time_column(columns, watermark.column.as_str(), watermark.column.position)?;
    match named {
        Some((other, position)) if other != at => Err(SqlError::new(
            SqlState::InvalidObjectDefinition,
            format!("event time is column \"{}\" of WATERMARK FOR", watermark.column),
        )
        .hint("leave the option timestamp out, or name the same column")
        .at(position)),
        _ => Ok((Some(at), delay)),
    }
}

fn event_time_column(columns: &[Column], name: &str, position: Position) -> Result<usize, SqlError> {
    // The option is a string: as with other names, the exact one is preferred to the folded one.
    let exact = columns.iter().position(|column| column.name.as_str() == name);
    let found = exact.or_else(|| columns.iter().position(|column| column.name.as_str() == name.to_ascii_lowercase()));
    let Some(at) = found else {
        let message = format!("column \"{name}\" does not exist");
        return Err(SqlError::new(SqlState::UndefinedColumn, message).at(position));
    };
    match columns.get(at).map(|column| &column.sql_type) {
        Some(SqlType::Timestamp | SqlType::TimestampTz | SqlType::BigInt) => Ok(at),
        Some(other) => Err(SqlError::new(
            SqlState::DatatypeMismatch,
            format!("column \"{name}\" is of type {other} but event time is a timestamp"),
        )
        .hint("use timestamptz, timestamp, or bigint for milliseconds since 1970")
        .at(position)),
        None => Err(SqlError::internal("a column found is gone")),
    }
}
