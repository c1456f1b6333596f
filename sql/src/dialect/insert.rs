//! `INSERT`.
//!
//! Rows of `VALUES` go to sqlparser expression by expression. Leaves out names and types (`bind::insert`).
//! A crash does nothing to it.

use super::ast::{Ident, Insert, InsertQuery, InsertSource, SequenceValue, Statement};
use super::cursor::Cursor;
use super::{change, options, select, vet};
use crate::error::SqlError;
use millstream_catalog::model::{Name, Sequence, SqlState};
use millstream_catalog::query::OnError;
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
    let alias = if cursor.eat(&["as"]) { Some(cursor.ident()?) } else { None };
    let columns = if is_query(cursor) { None } else { cursor.columns()? };
    check_columns(columns.as_deref())?;
    refuse_group(cursor)?;
    let query = query_options(cursor)?;
    let mut sequence = self::sequence(cursor)?;
    if cursor.is(&["overriding"]) {
        return Err(cursor.unsupported("OVERRIDING", "leave it out: there are no identity columns"));
    }
    let end = find_tail(cursor);
    let place = cursor.clone();
    let source = source(cursor, end)?;
    let source = match source {
        InsertSource::Select(select) if select.emit.is_some() => {
            refuse_group(cursor)?;
            if alias.is_some() || sequence.is_some() || cursor.at < cursor.lexemes.len() {
                return Err(place.unsupported(
                    "an alias, ON CONFLICT, RETURNING or a sequence with EMIT CHANGES",
                    "write INSERT INTO name [(columns)] [WITH (query = '…')] SELECT … EMIT CHANGES",
                ));
            }
            let (query, on_error) = query.unwrap_or_default();
            return Ok(Statement::InsertQuery(Box::new(InsertQuery { name, columns, query, on_error, select })));
        }
        source => source,
    };
    if query.is_some() {
        return Err(place.unsupported("options of a query without EMIT CHANGES", "add EMIT CHANGES, or leave WITH out"));
    }
    let conflict = change::on_conflict(cursor)?;
    sequence = sequence.or(self::sequence(cursor)?);
    let returning = returning(cursor)?;
    sequence = sequence.or(self::sequence(cursor)?);
    if let (Some(_), Some(conflict)) = (&sequence, &conflict) {
        let hint = "leave ON CONFLICT out: a statement that is repeated writes nothing";
        return Err(SqlError::unsupported("ON CONFLICT with a sequence", hint).at(conflict.position));
    }
    Ok(Statement::Insert(Box::new(Insert { name, alias, columns, source, conflict, returning, sequence })))
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

/// Refuses `WITH (group = …)`, if it is next: a statement that inserts is no member of a group.
fn refuse_group(cursor: &Cursor<'_>) -> Result<(), SqlError> {
    let mut place = cursor.clone();
    place.at += 2;
    match place.word() {
        Some(name) if is_options(cursor) && options::is_of_group(name) => {
            Err(place.unsupported(&format!("option \"{name}\" of INSERT"), options::GROUP_HINT))
        }
        _ => Ok(()),
    }
}

/// `WITH (query = 'name', on_error = 'stop' | 'skip')`, if it is next.
fn query_options(cursor: &mut Cursor<'_>) -> Result<Option<(Option<Ident>, OnError)>, SqlError> {
    if !is_options(cursor) || !matches!(cursor.word_at(2), Some("query" | "on_error")) {
        return Ok(None);
    }
    cursor.at += 1;
    let (mut query, mut on_error) = (None, None);
    cursor.parens(|cursor| {
        let is_name = cursor.eat(&["query"]);
        if !is_name && !cursor.eat(&["on_error"]) {
            return Err(cursor.unsupported("this option of INSERT", "the options are query and on_error"));
        }
        cursor.expect_token(&Token::Eq)?;
        let position = cursor.position();
        let value = cursor.string()?;
        let is_twice = match is_name {
            true => query.replace(Ident { name: Name::new(value)?, position }).is_some(),
            false => on_error.replace(on_error_of(&value).map_err(|error| error.at(position))?).is_some(),
        };
        if is_twice { Err(SqlError::syntax("an option specified more than once").at(position)) } else { Ok(()) }
    })?;
    Ok(Some((query, on_error.unwrap_or_default())))
}

fn on_error_of(value: &str) -> Result<OnError, SqlError> {
    match value.to_lowercase().as_str() {
        "stop" => Ok(OnError::Stop),
        "skip" => Ok(OnError::Skip),
        _ => {
            let fact = format!("invalid value for parameter \"on_error\": \"{value}\"");
            Err(SqlError::new(SqlState::InvalidParameterValue, fact).hint("use 'stop' or 'skip'"))
        }
    }
}

/// `WITH (sequence = n | $n)`, if it is next.
fn sequence(cursor: &mut Cursor<'_>) -> Result<Option<SequenceValue>, SqlError> {
    if !is_options(cursor) {
        return Ok(None);
    }
    cursor.at += 1;
    let mut values = cursor.parens(|cursor| {
        if !cursor.eat(&["sequence"]) {
            return Err(cursor.unsupported("this option of INSERT", "the options are sequence"));
        }
        cursor.expect_token(&Token::Eq)?;
        match cursor.param()? {
            Some(index) => Ok(SequenceValue::Param(index)),
            None => sequence_number(cursor).map(SequenceValue::Number),
        }
    })?;
    let value = values.pop();
    if values.is_empty() { Ok(value) } else { Err(SqlError::syntax("sequence specified more than once")) }
}

/// A number from 0.
pub(super) fn sequence_number(cursor: &mut Cursor<'_>) -> Result<Sequence, SqlError> {
    let position = cursor.position();
    let invalid = || {
        SqlError::new(SqlState::InvalidParameterValue, "a sequence is a whole number from 0 to 9223372036854775807")
            .at(position)
    };
    let number = cursor.number().map_err(|_| invalid())?;
    number.parse::<i64>().ok().and_then(|n| u64::try_from(n).ok()).map(Sequence::new).ok_or_else(invalid)
}

fn is_options(cursor: &Cursor<'_>) -> bool {
    cursor.is(&["with"]) && cursor.peek_at(1) == Some(&Token::LParen)
}

/// The index of `ON CONFLICT`, `RETURNING` or `WITH (` at this level, or the end.
fn find_tail(cursor: &Cursor<'_>) -> usize {
    let mut place = cursor.clone();
    loop {
        place.at = place.find(|token| {
            matches!(token, Token::Word(word) if word.quote_style.is_none() && matches!(word.value.as_str(), "on" | "returning" | "with"))
        });
        if place.is_end()
            || place.is(&["returning"])
            || place.is(&["on", "conflict"])
            || is_options(&place)
            || place.word().is_none()
        {
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
