//! Splits a text into statements and finds out what each is.
//!
//! Called by `dialect::parse`, and again for the statements inside of `EXPLAIN` and `PREPARE`. A crash does
//! nothing to it.

use super::ast::{Describe, Explain, Parsed, QueryAction, QueryControl, Statement};
use super::cursor::Cursor;
use super::lexer::{self, Lexeme};
use super::{alter, change, copy, create, cursors, group, insert, nesting, refuse, select, session, transaction};
use crate::error::SqlError;
use sqlparser::tokenizer::Token;

/// Parses every statement of `text`.
pub(super) fn parse_text(text: &str) -> Result<Vec<Parsed>, SqlError> {
    let lexemes = lexer::tokenize(text)?;
    let mut statements = Vec::new();
    for part in lexemes.split_inclusive(|lexeme| lexeme.token.token == Token::SemiColon) {
        let (part, semicolon) = match part.split_last() {
            Some((last, rest)) if last.token.token == Token::SemiColon => (rest, Some(last.position())),
            _ => (part, None),
        };
        if part.is_empty() {
            continue;
        }
        nesting::check(part)?;
        statements.push(parsed(Cursor { text, lexemes: part, at: 0, semicolon })?);
    }
    Ok(statements)
}

/// Parses the one statement that the rest of `cursor` is.
fn parsed(mut cursor: Cursor<'_>) -> Result<Parsed, SqlError> {
    let rest = cursor.lexemes.get(cursor.at..).unwrap_or_default();
    let (Some(first), Some(last)) = (rest.first(), rest.last()) else { return Err(cursor.unexpected()) };
    let text = cursor.text.get(first.bytes.start..last.bytes.end).unwrap_or("").into();
    let start = Lexeme::position(first).saturating_sub(1);
    let statement = statement(&mut cursor)?;
    cursor.expect_end()?;
    Ok(Parsed { statement, text, start })
}

/// Parses the statement that follows the next token, as in `EXPLAIN …`.
pub(super) fn inner(cursor: &mut Cursor<'_>) -> Result<Parsed, SqlError> {
    let end = cursor.lexemes.len();
    parsed(cursor.part(end))
}

fn statement(cursor: &mut Cursor<'_>) -> Result<Statement, SqlError> {
    if cursor.is_token(&Token::LParen) {
        return select::select(cursor).map(Box::new).map(Statement::Select);
    }
    let Some(word) = cursor.word() else { return Err(cursor.unexpected()) };
    match word {
        "select" | "values" | "table" | "with" => select::select(cursor).map(Box::new).map(Statement::Select),
        "insert" => insert::insert(cursor),
        "update" => change::update(cursor),
        "delete" => change::delete(cursor),
        "copy" => copy::copy(cursor),
        "create" => create::create(cursor),
        "drop" if cursor.is(&["drop", "consumer"]) => group::drop(cursor),
        "drop" => create::drop(cursor),
        "alter" if cursor.is(&["alter", "consumer"]) => group::alter(cursor),
        "alter" if !cursor.is(&["alter", "system"]) => alter::alter(cursor),
        "truncate" => alter::truncate(cursor),
        "explain" => explain(cursor),
        "describe" | "desc" => describe(cursor),
        "pause" | "resume" | "terminate" => control(cursor),
        "flush" => {
            cursor.at += 1;
            Ok(Statement::Flush)
        }
        "refresh" => refresh(cursor),
        "show" => session::show(cursor),
        "set" => session::set(cursor),
        "reset" => session::reset(cursor),
        "discard" => session::discard(cursor),
        "begin" | "start" | "commit" | "end" | "rollback" | "abort" | "savepoint" | "release" => {
            transaction::transaction(cursor)
        }
        "declare" => cursors::declare(cursor),
        "fetch" => cursors::fetch(cursor),
        "move" => cursors::fetch(cursor),
        "close" => cursors::close(cursor),
        "prepare" => cursors::prepare(cursor),
        "execute" => cursors::execute(cursor),
        "deallocate" => cursors::deallocate(cursor),
        "listen" => group::listen(cursor),
        "unlisten" => group::unlisten(cursor),
        _ => Err(refuse::statement(cursor)),
    }
}

/// `EXPLAIN [ANALYZE] [VERBOSE] | EXPLAIN (option, …) statement`, `EXPLAIN QUERY name`.
fn explain(cursor: &mut Cursor<'_>) -> Result<Statement, SqlError> {
    cursor.expect(&["explain"])?;
    if cursor.eat(&["query"]) {
        return cursor.ident().map(Statement::ExplainQuery);
    }
    let (mut analyze, mut verbose) = (false, false);
    // A parenthesis may also begin the query.
    let options = cursor.is_token(&Token::LParen)
        && !matches!(cursor.word_at(1), Some("select" | "with" | "values" | "table") | None);
    if options {
        cursor.parens(|cursor| explain_option(cursor, &mut analyze, &mut verbose))?;
    } else {
        analyze = cursor.eat(&["analyze"]) || cursor.eat(&["analyse"]);
        verbose = cursor.eat(&["verbose"]);
    }
    let place = cursor.clone();
    let words = ["select", "with", "values", "table", "insert", "update", "delete", "create", "execute"];
    if !cursor.is_token(&Token::LParen) && !cursor.word().is_some_and(|word| words.contains(&word)) {
        return Err(cursor.unexpected());
    }
    let statement = inner(cursor)?;
    match statement.statement {
        Statement::Select(_)
        | Statement::Insert(_)
        | Statement::Change(_)
        | Statement::CreateAs(_)
        | Statement::Execute(_) => Ok(Statement::Explain(Explain { analyze, verbose, statement: Box::new(statement) })),
        _ => Err(place.unexpected()),
    }
}

fn explain_option(cursor: &mut Cursor<'_>, analyze: &mut bool, verbose: &mut bool) -> Result<(), SqlError> {
    let place = cursor.clone();
    let Some(name) = cursor.word() else { return Err(cursor.unexpected()) };
    cursor.at += 1;
    if name == "format" {
        let Some(format) = cursor.word() else { return Err(cursor.unexpected()) };
        if format != "text" {
            return Err(cursor.unsupported("EXPLAIN in another format than text", "use FORMAT TEXT"));
        }
        cursor.at += 1;
        return Ok(());
    }
    let value = match cursor.peek() {
        Some(Token::Comma | Token::RParen) | None => true,
        _ => boolean(cursor)?,
    };
    match name {
        "analyze" | "analyse" => *analyze = value,
        "verbose" => *verbose = value,
        // What is never shown may be switched off.
        "costs" | "buffers" | "settings" | "wal" | "generic_plan" | "memory" if !value => {}
        "timing" | "summary" if value => {}
        "costs" | "buffers" | "settings" | "wal" | "timing" | "summary" | "generic_plan" | "memory" => {
            let what = format!("EXPLAIN option {} {}", name.to_uppercase(), if value { "ON" } else { "OFF" });
            return Err(place.unsupported(&what, "leave it out"));
        }
        _ => {
            return Err(SqlError::syntax(format!("unrecognized EXPLAIN option \"{name}\"")).at(place.position()));
        }
    }
    Ok(())
}

/// `on`, `off`, `true`, `false`, `1`, `0`, also in quotes.
pub(super) fn boolean(cursor: &mut Cursor<'_>) -> Result<bool, SqlError> {
    let text = match cursor.peek() {
        Some(Token::Word(word)) if word.quote_style.is_none() => word.value.clone(),
        Some(Token::SingleQuotedString(text)) => text.to_ascii_lowercase(),
        Some(Token::Number(number, _)) => number.clone(),
        _ => return Err(cursor.unexpected()),
    };
    let value = match text.as_str() {
        "on" | "true" | "1" | "yes" => true,
        "off" | "false" | "0" | "no" => false,
        _ => return Err(cursor.unexpected()),
    };
    cursor.at += 1;
    Ok(value)
}

/// `DESCRIBE [EXTENDED] name`.
fn describe(cursor: &mut Cursor<'_>) -> Result<Statement, SqlError> {
    cursor.at += 1;
    if cursor.is(&["consumer", "group"]) {
        return group::describe(cursor);
    }
    if cursor.is(&["connector"]) && cursor.peek_at(1).is_some() {
        return Err(cursor.unsupported("DESCRIBE CONNECTOR", "use INSERT or COPY"));
    }
    let extended = cursor.is(&["extended"]) && cursor.peek_at(1).is_some() && cursor.eat(&["extended"]);
    Ok(Statement::Describe(Describe { extended, name: cursor.qualified()? }))
}

/// `REFRESH MATERIALIZED VIEW [CONCURRENTLY] name [WITH DATA]`.
fn refresh(cursor: &mut Cursor<'_>) -> Result<Statement, SqlError> {
    cursor.expect(&["refresh", "materialized", "view"])?;
    let _ = cursor.eat(&["concurrently"]);
    let name = cursor.target()?;
    if cursor.is(&["with", "no", "data"]) {
        return Err(cursor.unsupported("WITH NO DATA", "use DROP MATERIALIZED VIEW"));
    }
    let _ = cursor.eat(&["with", "data"]);
    Ok(Statement::Refresh(name))
}

/// `PAUSE | RESUME | TERMINATE QUERY name`.
fn control(cursor: &mut Cursor<'_>) -> Result<Statement, SqlError> {
    let action = match cursor.word() {
        Some("pause") => QueryAction::Pause,
        Some("resume") => QueryAction::Resume,
        _ => QueryAction::Terminate,
    };
    cursor.at += 1;
    cursor.expect(&["query"])?;
    Ok(Statement::Query(QueryControl { action, name: cursor.ident()? }))
}
