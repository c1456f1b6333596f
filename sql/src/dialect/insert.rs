//! `INSERT`.
//!
//! Rows of `VALUES` go to sqlparser expression by expression. Leaves out names and types (`bind::insert`).
//! A crash does nothing to it.

use super::ast::{Ident, Insert, InsertSource, Statement};
use super::cursor::Cursor;
use super::{select, vet};
use crate::error::SqlError;
use millstream_catalog::model::SqlState;
use sqlparser::ast::{Expr, SelectItem};
use sqlparser::parser::{Parser, ParserError};
use sqlparser::tokenizer::Token;

/// `INSERT INTO name [(columns)] VALUES … | DEFAULT VALUES | SELECT … [RETURNING …]`.
pub(super) fn insert(cursor: &mut Cursor<'_>) -> Result<Statement, SqlError> {
    cursor.expect(&["insert"])?;
    if cursor.is(&["or"]) {
        return Err(cursor.unsupported("INSERT OR …", "use INSERT: into a table with a primary key it is an upsert"));
    }
    if cursor.is(&["overwrite"]) {
        return Err(cursor.unsupported("INSERT OVERWRITE", "DROP the relation and create it again"));
    }
    cursor.expect(&["into"])?;
    let name = cursor.target()?;
    if cursor.is(&["as"]) {
        return Err(cursor.unsupported("a name for the target of INSERT", "use the relation's own name"));
    }
    let columns = if is_query(cursor) { None } else { cursor.columns()? };
    check_columns(columns.as_deref())?;
    refuse_options(cursor)?;
    if cursor.is(&["overriding"]) {
        return Err(cursor.unsupported("OVERRIDING", "leave it out: there are no identity columns"));
    }
    let end = find_tail(cursor);
    let source = source(cursor, end)?;
    if cursor.is(&["on"]) {
        let hint = "leave it out: INSERT into a table with a primary key is an upsert";
        return Err(cursor.unsupported("ON CONFLICT", hint));
    }
    let returning = returning(cursor)?;
    refuse_options(cursor)?;
    Ok(Statement::Insert(Box::new(Insert { name, columns, source, returning })))
}

/// True if a parenthesis is next that begins a query and not a list of columns.
fn is_query(cursor: &Cursor<'_>) -> bool {
    let mut ahead = 0;
    while cursor.peek_at(ahead) == Some(&Token::LParen) {
        ahead += 1;
    }
    ahead > 0 && matches!(cursor.word_at(ahead), Some("select" | "with" | "values" | "table"))
}

fn check_columns(columns: Option<&[Ident]>) -> Result<(), SqlError> {
    let mut seen = std::collections::HashSet::new();
    for column in columns.unwrap_or_default() {
        if !seen.insert(&column.name) {
            let message = format!("column \"{}\" specified more than once", column.name);
            return Err(SqlError::new(SqlState::DuplicateColumn, message).at(column.position));
        }
    }
    Ok(())
}

/// `WITH (…)`, which no INSERT takes yet.
fn refuse_options(cursor: &Cursor<'_>) -> Result<(), SqlError> {
    if !cursor.is(&["with"]) || cursor.peek_at(1) != Some(&Token::LParen) {
        return Ok(());
    }
    Err(match cursor.word_at(2) {
        Some("sequence") => cursor.unsupported(
            "INSERT … WITH (sequence = …)",
            "leave it out, and look the rows up after an error of unknown outcome",
        ),
        Some("query") => {
            cursor.unsupported("INSERT … WITH (query = …)", "use CREATE STREAM … AS SELECT or CREATE TABLE … AS SELECT")
        }
        _ => cursor.unsupported("WITH (…) on INSERT", "leave it out"),
    })
}

/// The index of `ON CONFLICT` or `RETURNING` at this level, or the end.
fn find_tail(cursor: &Cursor<'_>) -> usize {
    let mut place = cursor.clone();
    loop {
        place.at = place.find(|token| {
            matches!(token, Token::Word(word) if word.quote_style.is_none() && matches!(word.value.as_str(), "on" | "returning"))
        });
        if place.is_end() || place.is(&["returning"]) || place.is(&["on", "conflict"]) || place.word().is_none() {
            return place.at;
        }
        place.at += 1;
    }
}

fn source(cursor: &mut Cursor<'_>, end: usize) -> Result<InsertSource, SqlError> {
    if cursor.eat(&["default", "values"]) {
        return Ok(InsertSource::DefaultValues);
    }
    if cursor.is(&["values"]) && !is_longer_query(cursor, end) {
        cursor.at += 1;
        return values(cursor, end).map(InsertSource::Values);
    }
    if !is_query(cursor) && !matches!(cursor.word(), Some("select" | "with" | "table" | "values")) {
        return Err(cursor.unexpected());
    }
    let mut part = cursor.part(end);
    let select = select::select_part(&mut part)?;
    if let Some(emit) = &select.emit {
        return Err(SqlError::unsupported(
            "INSERT INTO … SELECT … EMIT CHANGES",
            "use CREATE STREAM … AS SELECT or CREATE TABLE … AS SELECT",
        )
        .at(emit.position));
    }
    Ok(InsertSource::Select(Box::new(select)))
}

/// True if `VALUES …` has more to it than rows: a set operation, an order or a limit.
fn is_longer_query(cursor: &Cursor<'_>, end: usize) -> bool {
    let clause = |token: &Token| {
        matches!(token, Token::Word(word) if word.quote_style.is_none()
            && matches!(word.value.as_str(), "union" | "except" | "intersect" | "order" | "limit" | "offset" | "fetch"))
    };
    cursor.find(clause) < end
}

/// `(…), (…)`: all rows of one length.
fn values(cursor: &mut Cursor<'_>, end: usize) -> Result<Vec<Vec<Expr>>, SqlError> {
    let start = cursor.at;
    let place = cursor.clone();
    let mut rows = cursor.with_parser(end, |parser| parser.parse_comma_separated(row))?;
    let length = rows.first().map_or(0, Vec::len);
    if let Some(odd) = rows.iter().find(|row| row.len() != length) {
        let position = odd
            .first()
            .map_or_else(Default::default, |expr| super::ast::Position::of(sqlparser::ast::Spanned::span(expr)));
        return Err(SqlError::syntax("VALUES lists must all be the same length").at(position));
    }
    for expr in rows.iter_mut().flatten() {
        // Literals, which nearly all values are, need no look.
        if !matches!(expr, Expr::Value(_)) && !super::ast::is_default(expr) {
            vet::expr(expr, &|word| select::first(&place, start, word))?;
        }
    }
    Ok(rows)
}

fn row(parser: &mut Parser<'_>) -> Result<Vec<Expr>, ParserError> {
    parser.expect_token(&Token::LParen)?;
    let row = parser.parse_comma_separated(Parser::parse_expr)?;
    parser.expect_token(&Token::RParen)?;
    Ok(row)
}

/// `RETURNING item, …`.
fn returning(cursor: &mut Cursor<'_>) -> Result<Vec<SelectItem>, SqlError> {
    if !cursor.eat(&["returning"]) {
        return Ok(Vec::new());
    }
    let end =
        cursor.find(|token| matches!(token, Token::Word(word) if word.quote_style.is_none() && word.value == "with"));
    cursor.with_parser(end, |parser| parser.parse_projection())
}
