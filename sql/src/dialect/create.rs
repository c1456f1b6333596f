//! `CREATE` and `DROP`.
//!
//! Leaves out what types, keys and options mean (`bind::ddl`). A crash does nothing to it.

use super::ast::{
    ColumnDef, ColumnKey, CreateAs, CreateRelation, DefaultValue, Drop, Emit, EmitKind, Ident, ObjectKind, OptionValue,
    Position, QualifiedName, Replace, Statement, Watermark, WithOptions,
};
use super::cursor::Cursor;
use super::{duration, options, render, select, vet};
use crate::error::SqlError;
use millstream_catalog::model::{Name, Span, SqlState};
use sqlparser::ast::{ArrayElemTypeDef, DataType, StructBracketKind, StructField};
use sqlparser::tokenizer::Token;

/// What may stand after `CREATE` or `DROP` and is not supported, and the hint.
const OBJECTS: &[(&[&str], &str)] = &[
    (&["recursive", "view"], "use CREATE VIEW … AS WITH RECURSIVE …"),
    (&["consumer", "group"], "subscribe with SELECT … EMIT CHANGES WITH (group = 'name'): its first member makes it"),
    (&["connector"], "use INSERT or COPY to bring events in"),
    (&["source"], "use INSERT or COPY to bring events in"),
    (&["sink"], "use SELECT … EMIT CHANGES to take events out"),
    (&["role"], "every session may do everything until there are roles"),
    (&["user"], "every session may do everything until there are roles"),
    (&["group"], "every session may do everything until there are roles"),
    (&["index"], "name the columns to look rows up by as KEY or PRIMARY KEY"),
    (&["unique", "index"], "name the columns as PRIMARY KEY of a table"),
    (&["schema"], "streams and tables live in schema \"public\""),
    (&["database"], "start another server with a data directory of its own"),
    (&["temp"], "use CREATE TABLE, and DROP it afterwards"),
    (&["temporary"], "use CREATE TABLE, and DROP it afterwards"),
    (&["local"], "use CREATE TABLE, and DROP it afterwards"),
    (&["global"], "use CREATE TABLE, and DROP it afterwards"),
    (&["unlogged"], "use CREATE TABLE: every event is logged"),
    (&["foreign", "table"], "load the rows with COPY … FROM STDIN"),
    (&["type"], "use the types there are, json among them"),
    (&["domain"], "use the type itself"),
    (&["sequence"], "rowpartition and rowoffset number every event"),
    (&["function"], "see SHOW FUNCTIONS for those there are"),
    (&["procedure"], "send the statements themselves"),
    (&["aggregate"], "see SHOW FUNCTIONS for those there are"),
    (&["trigger"], "use CREATE STREAM … AS SELECT"),
    (&["rule"], "use CREATE STREAM … AS SELECT"),
    (&["extension"], "see SHOW FUNCTIONS for what is built in"),
    (&["publication"], "subscribe with SELECT … EMIT CHANGES"),
    (&["subscription"], "subscribe with SELECT … EMIT CHANGES"),
    (&["query"], "use TERMINATE QUERY"),
    (&["tablespace"], "start the server with another data directory"),
    (&["server"], "load the rows with COPY … FROM STDIN"),
    (&["policy"], "every session may do everything until there are roles"),
    (&["cast"], "use the casts there are"),
    (&["collation"], "texts are ordered by their bytes"),
    (&["operator"], "use the operators there are"),
    (&["statistics"], "leave it out: statistics are kept with the stored events"),
    (&["language"], "see SHOW FUNCTIONS for what is built in"),
    (&["event", "trigger"], "use CREATE STREAM … AS SELECT"),
    (&["owned"], "drop the streams and tables by name"),
];

/// The error for an object of a kind there is not.
fn refuse_object(cursor: &Cursor<'_>, verb: &str) -> SqlError {
    if cursor.is(&["external", "table"]) {
        return SqlError::new(SqlState::InsufficientPrivilege, "permission denied: statements do not read files")
            .hint("load the file with COPY … FROM STDIN")
            .at(cursor.position());
    }
    match OBJECTS.iter().find(|(words, _)| cursor.is(words)) {
        Some((words, hint)) => cursor.unsupported(&format!("{verb} {}", words.join(" ").to_uppercase()), hint),
        None => cursor.unexpected(),
    }
}

pub(super) fn object_kind(cursor: &mut Cursor<'_>) -> Option<ObjectKind> {
    let kind = match cursor.word() {
        Some("stream") => ObjectKind::Stream,
        Some("topic") => ObjectKind::Topic,
        Some("table") => ObjectKind::Table,
        Some("view") => ObjectKind::View,
        Some("materialized") if cursor.word_at(1) == Some("view") => {
            cursor.at += 1;
            ObjectKind::MaterializedView
        }
        _ => return None,
    };
    cursor.at += 1;
    Some(kind)
}

/// `CREATE STREAM | TOPIC | TABLE | VIEW | MATERIALIZED VIEW …`.
pub(super) fn create(cursor: &mut Cursor<'_>) -> Result<Statement, SqlError> {
    let start = cursor.at;
    cursor.expect(&["create"])?;
    let place = cursor.clone();
    let replace = if cursor.eat(&["or", "replace"]) { Replace::Yes } else { Replace::No };
    if cursor.is(&["view"]) {
        return super::view::create(cursor, start, replace);
    }
    let Some(kind) = object_kind(cursor) else { return Err(refuse_object(cursor, "CREATE")) };
    let if_not_exists = if_not_exists(cursor, replace)?;
    let name = cursor.target()?;
    let sql = render::text(cursor.text, cursor.lexemes.get(start..).unwrap_or_default());
    let columns = if kind == ObjectKind::MaterializedView { cursor.columns()? } else { None };
    if cursor.is(&["as"]) || cursor.is(&["with"]) || kind == ObjectKind::MaterializedView {
        let options = options::with_options(cursor)?;
        if kind == ObjectKind::Topic && cursor.is_end() && replace == Replace::No {
            return topic(name, if_not_exists, options, sql);
        }
        let mut select = select_as(cursor)?;
        carry_grace(&options, &mut select);
        let create = CreateAs { kind, name, if_not_exists, replace, columns, options, select, sql };
        return Ok(Statement::CreateAs(Box::new(create)));
    }
    if replace == Replace::Yes {
        let hint = "DROP it first, or change it with ALTER";
        return Err(place.unsupported("CREATE OR REPLACE without AS SELECT", hint));
    }
    if kind == ObjectKind::Topic && cursor.is_end() {
        return topic(name, if_not_exists, WithOptions::default(), sql);
    }
    refuse_column_names(cursor)?;
    let mut elements = Elements::default();
    cursor.parens(|cursor| element(cursor, &mut elements))?;
    let options = relation_tail(cursor)?;
    Ok(Statement::CreateRelation(Box::new(CreateRelation {
        kind,
        name,
        if_not_exists,
        columns: elements.columns,
        primary_key: elements.primary_key,
        watermark: elements.watermark,
        options,
        sql,
    })))
}

/// `IF NOT EXISTS`, which is not for what may be replaced.
pub(super) fn if_not_exists(cursor: &mut Cursor<'_>, replace: Replace) -> Result<bool, SqlError> {
    match (replace, cursor.is(&["if", "not", "exists"])) {
        (Replace::Yes, true) => Err(cursor.unexpected()),
        (Replace::No, _) => Ok(cursor.eat(&["if", "not", "exists"])),
        (Replace::Yes, false) => Ok(false),
    }
}

/// A topic without columns: those of a Kafka record.
fn topic(name: QualifiedName, if_not_exists: bool, options: WithOptions, sql: String) -> Result<Statement, SqlError> {
    let ident = |word: &str| Ok::<_, SqlError>(Ident { name: Name::new(word)?, position: name.position });
    let column = |name: Ident, data_type, key, is_headers| ColumnDef {
        name: name.clone(),
        data_type,
        type_position: name.position,
        key,
        is_not_null: false,
        is_headers,
        default: None,
        constraint_position: name.position,
    };
    let columns = vec![
        column(ident("key")?, DataType::Bytea, ColumnKey::Key, false),
        column(ident("value")?, DataType::Bytea, ColumnKey::No, false),
        column(ident("headers")?, headers_type(), ColumnKey::No, true),
    ];
    let (primary_key, watermark) = (None, None);
    let kind = ObjectKind::Topic;
    let create = CreateRelation { kind, name, if_not_exists, columns, primary_key, watermark, options, sql };
    Ok(Statement::CreateRelation(Box::new(create)))
}

/// `CREATE TABLE name (a, b) AS SELECT`.
fn refuse_column_names(cursor: &Cursor<'_>) -> Result<(), SqlError> {
    let mut place = cursor.clone();
    if place.columns().is_ok_and(|columns| columns.is_some()) && (place.is(&["as"]) || place.is(&["with"])) {
        return Err(cursor.unsupported("a list of names before AS", "name the columns in the SELECT"));
    }
    Ok(())
}

/// `AS SELECT …`, of a continuous query.
pub(super) fn select_as(cursor: &mut Cursor<'_>) -> Result<super::ast::Select, SqlError> {
    cursor.expect(&["as"])?;
    if !cursor.is_token(&Token::LParen) && !matches!(cursor.word(), Some("select" | "with" | "values" | "table")) {
        return Err(cursor.unexpected());
    }
    let end = cursor.lexemes.len();
    for words in [&["with", "no", "data"][..], &["with", "data"]] {
        let mut place = cursor.clone();
        place.at = end.saturating_sub(words.len());
        if place.at > cursor.at && place.is(words) {
            return Err(place.unsupported(&words.join(" ").to_uppercase(), "use WITH (auto_offset_reset = 'latest')"));
        }
    }
    let place = cursor.clone();
    let select = select::select(cursor)?;
    if select.limit.is_some() {
        let at = last(&place, "limit");
        return Err(SqlError::unsupported("LIMIT of a continuous query", "put LIMIT into a query that reads it").at(at));
    }
    if let Some(option) = select.options.0.iter().find(|option| options::is_of_group(&option.name)) {
        let what = format!("option \"{}\" of a continuous query", option.name);
        return Err(SqlError::unsupported(what, options::GROUP_HINT).at(option.position));
    }
    if let Some(option) = select.options.0.first() {
        return Err(SqlError::unsupported("WITH after EMIT in CREATE", "put WITH (…) before AS").at(option.position));
    }
    Ok(select)
}

/// Makes the option `grace` part of the query: its text must say all that its rows depend on.
fn carry_grace(options: &WithOptions, select: &mut super::ast::Select) {
    let Some(option) = options.0.iter().find(|option| option.name == "grace") else { return };
    let (OptionValue::Text(text) | OptionValue::Word(text)) = &option.value else { return };
    if select.emit.is_none() {
        select.emit = Some(Emit { kind: EmitKind::Changes, position: Position::UNKNOWN });
        select.sql.push_str(" EMIT CHANGES");
    }
    select.sql.push_str(&format!(" WITH (grace = {})", render::string_literal(text)));
    select.options.0.push(option.clone());
}

fn last(cursor: &Cursor<'_>, wanted: &str) -> Position {
    let mut place = cursor.clone();
    place.at = place.lexemes.len();
    while place.at > 0 && place.word() != Some(wanted) {
        place.at -= 1;
    }
    place.position()
}

#[derive(Default)]
struct Elements {
    columns: Vec<ColumnDef>,
    primary_key: Option<Vec<Ident>>,
    watermark: Option<Watermark>,
}

/// A column, or a constraint of the whole relation.
fn element(cursor: &mut Cursor<'_>, elements: &mut Elements) -> Result<(), SqlError> {
    match cursor.word() {
        Some("primary") => {
            let position = cursor.position();
            cursor.expect(&["primary", "key"])?;
            let columns = cursor.parens(Cursor::ident)?;
            if elements.primary_key.replace(columns).is_some() {
                return Err(SqlError::new(SqlState::InvalidTableDefinition, "multiple primary keys are not allowed")
                    .at(position));
            }
            refuse_constraint_options(cursor)
        }
        Some("watermark") if cursor.is(&["watermark", "for"]) => {
            let position = cursor.position();
            let watermark = watermark(cursor)?;
            if elements.watermark.replace(watermark).is_some() {
                return Err(
                    SqlError::new(SqlState::InvalidTableDefinition, "multiple watermarks are not allowed").at(position)
                );
            }
            Ok(())
        }
        Some("constraint") => Err(cursor.unsupported("a name for a constraint", "leave CONSTRAINT and its name out")),
        Some("like") => Err(cursor.unsupported("LIKE", "list the columns")),
        Some("unique" | "check" | "foreign" | "exclude") if !is_column(cursor) => Err(refuse_constraint(cursor)),
        _ => column(cursor).map(|column| elements.columns.push(column)),
    }
}

/// True if the next word is a column's name although it could begin a constraint.
fn is_column(cursor: &Cursor<'_>) -> bool {
    cursor.is(&["exclude"]) && cursor.word_at(1).is_some_and(|word| word != "using")
}

fn refuse_constraint(cursor: &Cursor<'_>) -> SqlError {
    match cursor.word() {
        Some("unique") => cursor.unsupported("UNIQUE", "use PRIMARY KEY of a table: the latest row of a key counts"),
        Some("check") => cursor.unsupported("CHECK", "filter the events with WHERE where they are read"),
        Some("foreign" | "references") => cursor.unsupported("a foreign key", "join the relations where they are read"),
        _ => cursor.unsupported("EXCLUDE", "filter the events with WHERE where they are read"),
    }
}

fn refuse_constraint_options(cursor: &Cursor<'_>) -> Result<(), SqlError> {
    match cursor.word() {
        Some("deferrable" | "initially" | "not" | "include" | "using" | "with") => {
            Err(cursor.unsupported("an option of PRIMARY KEY", "leave it out"))
        }
        _ => Ok(()),
    }
}

/// `WATERMARK FOR column AS column [- INTERVAL '…']`.
fn watermark(cursor: &mut Cursor<'_>) -> Result<Watermark, SqlError> {
    cursor.expect(&["watermark", "for"])?;
    let column = cursor.ident()?;
    cursor.expect(&["as"])?;
    let place = cursor.clone();
    let source = cursor.ident()?;
    if source.name != column.name {
        return Err(place.unsupported("a watermark of another column", "write column AS column - INTERVAL '…'"));
    }
    let mut delay = Span::ZERO;
    if cursor.eat_token(&Token::Minus) {
        let place = cursor.clone();
        delay = duration::interval_literal(cursor)?;
        if delay < Span::ZERO {
            let message = "the delay of a watermark must not be negative";
            return Err(SqlError::new(SqlState::InvalidParameterValue, message).at(place.position()));
        }
    }
    Ok(Watermark { column, delay })
}

/// `name type [KEY | PRIMARY KEY] [NOT NULL | NULL] [DEFAULT expr] [HEADERS]`; `HEADERS` alone is a type too.
pub(super) fn column(cursor: &mut Cursor<'_>) -> Result<ColumnDef, SqlError> {
    let name = cursor.ident()?;
    let mut behind = cursor.clone();
    behind.at = angle_end(cursor);
    let end = behind.find(|token| *token == Token::Comma);
    let type_position = cursor.position();
    let is_headers = cursor.eat(&["headers"]);
    let data_type = match is_headers {
        true => headers_type(),
        false => cursor.with_parser(end, |parser| parser.parse_data_type())?,
    };
    let mut column = ColumnDef {
        is_headers,
        name,
        data_type,
        type_position,
        key: ColumnKey::No,
        is_not_null: false,
        default: None,
        constraint_position: Position::UNKNOWN,
    };
    let mut is_null = None;
    while cursor.at < end {
        let position = cursor.position();
        let place = cursor.clone();
        if cursor.eat(&["key"]) || cursor.is(&["primary"]) {
            let key = if cursor.is(&["primary"]) { ColumnKey::PrimaryKey } else { ColumnKey::Key };
            if key == ColumnKey::PrimaryKey {
                cursor.expect(&["primary", "key"])?;
            }
            if column.key != ColumnKey::No {
                return Err(place.unexpected());
            }
            (column.key, column.constraint_position) = (key, position);
        } else if !column.is_headers && cursor.eat(&["headers"]) {
            (column.is_headers, column.constraint_position) = (true, position);
        } else if cursor.eat(&["not", "null"]) {
            column.is_not_null = true;
        } else if cursor.eat(&["null"]) {
            is_null = Some(position);
        } else if cursor.is(&["default"]) && column.default.is_none() {
            column.default = Some(default(cursor, end)?);
            column.constraint_position = position;
        } else {
            return Err(refuse_column_constraint(cursor));
        }
        if let (Some(position), true) = (is_null, column.is_not_null || column.key == ColumnKey::PrimaryKey) {
            let message = format!("conflicting NULL/NOT NULL declarations for column \"{}\"", column.name);
            return Err(SqlError::syntax(message).at(position));
        }
    }
    Ok(column)
}

/// The index behind `STRUCT<…>`, `MAP<…>` or `ARRAY<…>` if one is next: commas inside of it end no column.
fn angle_end(cursor: &Cursor<'_>) -> usize {
    if !matches!(cursor.word(), Some("struct" | "map" | "array")) || cursor.peek_at(1) != Some(&Token::Lt) {
        return cursor.at;
    }
    let (mut depth, mut ahead) = (0_usize, 1);
    while let Some(token) = cursor.peek_at(ahead) {
        match token {
            Token::Lt => depth += 1,
            Token::Gt => depth = depth.saturating_sub(1),
            Token::ShiftRight => depth = depth.saturating_sub(2),
            _ => {}
        }
        ahead += 1;
        if depth == 0 {
            break;
        }
    }
    cursor.at + ahead
}

/// `STRUCT<key text, value bytea>[]`, which `HEADERS` stands for.
fn headers_type() -> DataType {
    let field = |name: &str, field_type| StructField { field_name: Some(name.into()), field_type, options: None };
    let fields = vec![field("key", DataType::Text), field("value", DataType::Bytea)];
    let item = DataType::Struct(fields, StructBracketKind::AngleBrackets);
    DataType::Array(ArrayElemTypeDef::SquareBracket(Box::new(item), None))
}

fn default(cursor: &mut Cursor<'_>, end: usize) -> Result<DefaultValue, SqlError> {
    cursor.expect(&["default"])?;
    let start = cursor.at;
    let mut expr = cursor.with_parser(end, |parser| parser.parse_expr())?;
    let place = cursor.clone();
    vet::expr(&mut expr, &|word: &str| select::first(&place, start, word))?;
    let sql = render::text(cursor.text, cursor.lexemes.get(start..cursor.at).unwrap_or_default());
    Ok(DefaultValue { expr, sql })
}

fn refuse_column_constraint(cursor: &Cursor<'_>) -> SqlError {
    let hint = "leave it out";
    match cursor.word() {
        Some("unique" | "check" | "references") => refuse_constraint(cursor),
        Some("constraint") => cursor.unsupported("a name for a constraint", "leave CONSTRAINT and its name out"),
        Some("collate") => cursor.unsupported("COLLATE", "leave it out: texts are ordered by their bytes"),
        Some("generated" | "as") => cursor.unsupported("a generated column", "compute it where it is read"),
        Some("storage") => cursor.unsupported("STORAGE", hint),
        Some("compression") => cursor.unsupported("COMPRESSION of a column", "use WITH (compression = 'lz4')"),
        Some("deferrable" | "initially") => cursor.unsupported("DEFERRABLE", hint),
        Some("auto_increment" | "autoincrement" | "identity") => {
            cursor.unsupported("a numbered column", "rowpartition and rowoffset number every event")
        }
        Some("comment") => cursor.unsupported("COMMENT", hint),
        _ => cursor.unexpected(),
    }
}

/// What follows the columns: `WITH (…)`, and what PostgreSQL and others allow there.
fn relation_tail(cursor: &mut Cursor<'_>) -> Result<WithOptions, SqlError> {
    refuse_table_clause(cursor)?;
    let options = options::with_options(cursor)?;
    refuse_table_clause(cursor)?;
    Ok(options)
}

fn refuse_table_clause(cursor: &Cursor<'_>) -> Result<(), SqlError> {
    let (what, hint) = match cursor.word() {
        Some("append") => ("APPEND ONLY", "use CREATE STREAM"),
        Some("inherits") => ("INHERITS", "list all columns"),
        Some("partition") => ("PARTITION BY", "mark the columns KEY and use WITH (partitions = n)"),
        Some("partitioned") => ("PARTITIONED BY", "mark the columns KEY and use WITH (partitions = n)"),
        Some("using") => ("USING", "leave it out"),
        Some("tablespace") => ("TABLESPACE", "start the server with another data directory"),
        Some("on") => ("ON COMMIT and ON CONFLICT", "leave it out"),
        Some("without") => ("WITHOUT OIDS", "leave it out"),
        Some("engine") => ("ENGINE", "leave it out"),
        Some("include") => ("INCLUDE", "rowtime, rowpartition and rowoffset are always there"),
        Some("format") => ("FORMAT", "send rows with INSERT or COPY"),
        _ => return Ok(()),
    };
    Err(cursor.unsupported(what, hint))
}

/// `DROP STREAM | TOPIC | TABLE | VIEW | MATERIALIZED VIEW [IF EXISTS] name, … [CASCADE | RESTRICT]`.
pub(super) fn drop(cursor: &mut Cursor<'_>) -> Result<Statement, SqlError> {
    cursor.expect(&["drop"])?;
    let Some(kind) = object_kind(cursor) else { return Err(refuse_object(cursor, "DROP")) };
    let if_exists = cursor.eat(&["if", "exists"]);
    let names = cursor.list(Cursor::target)?;
    let cascade = cursor.eat(&["cascade"]);
    if !cascade {
        let _ = cursor.eat(&["restrict"]);
    }
    if cursor.is(&["delete", "topic"]) {
        return Err(cursor.unsupported("DELETE TOPIC", "leave it out: the topic goes with the stream or table"));
    }
    Ok(Statement::Drop(Drop { kind, names, if_exists, cascade }))
}
