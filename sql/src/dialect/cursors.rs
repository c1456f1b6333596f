//! Cursors and prepared statements: `DECLARE`, `FETCH`, `MOVE`, `CLOSE`, `PREPARE`, `EXECUTE`, `DEALLOCATE`.
//!
//! Leaves out what they do (engine). A crash does nothing to it.

use super::ast::{Declare, Execute, Fetch, FetchCount, Ident, OptionValue, Position, Prepare, Statement};
use super::cursor::Cursor;
use super::{duration, options, select, statement, vet};
use crate::error::SqlError;
use millstream_catalog::model::{RowCount, Span, SqlState};
use sqlparser::tokenizer::Token;

/// `DECLARE name [ASENSITIVE | INSENSITIVE] [NO SCROLL] CURSOR [WITH | WITHOUT HOLD] FOR select`.
pub(super) fn declare(cursor: &mut Cursor<'_>) -> Result<Statement, SqlError> {
    cursor.expect(&["declare"])?;
    let name = cursor.ident()?;
    let mut insensitive = None;
    while !cursor.eat(&["cursor"]) {
        match cursor.word() {
            Some("binary") => {
                let hint = "ask for binary columns in the extended protocol";
                return Err(cursor.unsupported("DECLARE … BINARY", hint));
            }
            Some("insensitive") => insensitive = Some(cursor.position()),
            Some("asensitive") => {}
            Some("no") if cursor.is(&["no", "scroll"]) => cursor.at += 1,
            Some("scroll") => return Err(cursor.unsupported("SCROLL", "use NO SCROLL: cursors move forward only")),
            _ => return Err(cursor.unexpected()),
        }
        cursor.at += 1;
    }
    let hold = cursor.eat(&["with", "hold"]);
    if !hold {
        let _ = cursor.eat(&["without", "hold"]);
    }
    cursor.expect(&["for"])?;
    if !cursor.is_token(&Token::LParen) && !matches!(cursor.word(), Some("select" | "with" | "values" | "table")) {
        return Err(cursor.unexpected());
    }
    let select = select::select(cursor)?;
    match (insensitive, &select.emit) {
        (Some(position), Some(_)) => {
            Err(SqlError::unsupported("an INSENSITIVE cursor with EMIT CHANGES", "leave INSENSITIVE out").at(position))
        }
        _ => Ok(Statement::Declare(Box::new(Declare { name, hold, select }))),
    }
}

/// `FETCH | MOVE [direction] [FROM | IN] cursor [WITH (timeout = '…')]`.
pub(super) fn fetch(cursor: &mut Cursor<'_>) -> Result<Statement, SqlError> {
    let is_move = cursor.is(&["move"]);
    cursor.at += 1;
    let count = direction(cursor)?;
    if !cursor.eat(&["from"]) {
        let _ = cursor.eat(&["in"]);
    }
    let fetch = Fetch { cursor: cursor.ident()?, count, timeout: timeout(cursor)? };
    Ok(if is_move { Statement::Move(fetch) } else { Statement::Fetch(fetch) })
}

fn direction(cursor: &mut Cursor<'_>) -> Result<FetchCount, SqlError> {
    let one = FetchCount::Rows(RowCount::new(1));
    // A cursor may have the name of a direction.
    let is_name = cursor.peek_at(1).is_none() || (cursor.is(&["next", "with"]) || cursor.is(&["first", "with"]));
    if is_name && !cursor.is(&["all"]) {
        return Ok(one);
    }
    match cursor.word() {
        Some("next") => {
            cursor.at += 1;
            Ok(one)
        }
        Some("all") => {
            cursor.at += 1;
            Ok(FetchCount::All)
        }
        Some("forward") => {
            cursor.at += 1;
            match cursor.peek() {
                Some(Token::Number(..) | Token::Minus | Token::Plus) => count(cursor),
                _ if cursor.eat(&["all"]) => Ok(FetchCount::All),
                _ => Ok(one),
            }
        }
        Some("relative") => {
            cursor.at += 1;
            let position = cursor.position();
            match count(cursor)? {
                FetchCount::Rows(rows) if rows == RowCount::new(1) => Ok(one),
                _ => Err(SqlError::unsupported("FETCH RELATIVE", "use FETCH n").at(position)),
            }
        }
        Some("prior" | "backward") => Err(backward(cursor)),
        Some("first" | "last" | "absolute") => {
            Err(cursor.unsupported("FETCH of a row by its place", "use FETCH n, which moves forward"))
        }
        _ if matches!(cursor.peek(), Some(Token::Number(..) | Token::Minus | Token::Plus)) => count(cursor),
        _ => Ok(one),
    }
}

fn backward(cursor: &Cursor<'_>) -> SqlError {
    SqlError::new(SqlState::ObjectNotInPrerequisiteState, "cursor can only scan forward")
        .hint("declare another cursor to read from the start")
        .at(cursor.position())
}

/// A positive number of rows.
fn count(cursor: &mut Cursor<'_>) -> Result<FetchCount, SqlError> {
    let place = cursor.clone();
    let number = cursor.number()?;
    if number.starts_with('-') {
        return Err(backward(&place));
    }
    let rows: u64 = number.parse().map_err(|_| place.unexpected())?;
    if rows == 0 {
        return Err(place.unsupported("FETCH 0", "keep the last row yourself"));
    }
    Ok(FetchCount::Rows(RowCount::new(rows)))
}

/// `WITH (timeout = '1s')`.
fn timeout(cursor: &mut Cursor<'_>) -> Result<Option<Span>, SqlError> {
    let mut timeout = None;
    for option in options::with_options(cursor)?.0 {
        if option.name != "timeout" {
            return Err(SqlError::new(
                SqlState::InvalidParameterValue,
                format!("unrecognized parameter \"{}\"", option.name),
            )
            .hint("FETCH takes WITH (timeout = '1s')")
            .at(option.position));
        }
        let OptionValue::Text(text) = &option.value else {
            return Err(SqlError::new(SqlState::InvalidParameterValue, "timeout must be an interval in quotes")
                .hint("write WITH (timeout = '1s')")
                .at(option.value_position));
        };
        let span = duration::parse_interval(text).map_err(|error| error.at(option.value_position))?;
        if span < Span::ZERO {
            return Err(SqlError::new(SqlState::InvalidParameterValue, "timeout must not be negative")
                .at(option.value_position));
        }
        timeout = Some(span);
    }
    Ok(timeout)
}

/// `CLOSE name | ALL`.
pub(super) fn close(cursor: &mut Cursor<'_>) -> Result<Statement, SqlError> {
    cursor.expect(&["close"])?;
    name_or_all(cursor).map(Statement::Close)
}

fn name_or_all(cursor: &mut Cursor<'_>) -> Result<Option<Ident>, SqlError> {
    if cursor.eat(&["all"]) { Ok(None) } else { cursor.ident().map(Some) }
}

/// `PREPARE name [(types)] AS statement`.
pub(super) fn prepare(cursor: &mut Cursor<'_>) -> Result<Statement, SqlError> {
    let place = cursor.clone();
    cursor.expect(&["prepare"])?;
    if cursor.is(&["transaction"]) {
        return Err(place.unsupported("two-phase commit", "use COMMIT"));
    }
    let name = cursor.ident()?;
    let mut types = Vec::new();
    if cursor.is_token(&Token::LParen) {
        types = cursor.parens(|cursor| {
            let position = cursor.position();
            let end = cursor.find(|token| *token == Token::Comma);
            Ok((cursor.with_parser(end, |parser| parser.parse_data_type())?, position))
        })?;
    }
    cursor.expect(&["as"])?;
    let place = cursor.clone();
    let words = ["select", "with", "values", "table", "insert", "update", "delete"];
    if !cursor.is_token(&Token::LParen) && !cursor.word().is_some_and(|word| words.contains(&word)) {
        return Err(cursor.unexpected());
    }
    let statement = statement::inner(cursor)?;
    match statement.statement {
        Statement::Select(_) | Statement::Insert(_) | Statement::Change(_) => {
            Ok(Statement::Prepare(Box::new(Prepare { name, types, statement })))
        }
        _ => Err(place.unexpected()),
    }
}

/// `EXECUTE name [(arguments)]`.
pub(super) fn execute(cursor: &mut Cursor<'_>) -> Result<Statement, SqlError> {
    cursor.expect(&["execute"])?;
    let name = cursor.ident()?;
    let mut arguments = Vec::new();
    if cursor.is_token(&Token::LParen) {
        arguments = cursor.parens(|cursor| {
            let start = cursor.at;
            let end = cursor.find(|token| *token == Token::Comma);
            let mut expr = cursor.with_parser(end, |parser| parser.parse_expr())?;
            let place = cursor.clone();
            vet::expr(&mut expr, &|word: &str| -> Position { select::first(&place, start, word) })?;
            Ok(expr)
        })?;
    }
    Ok(Statement::Execute(Execute { name, arguments }))
}

/// `DEALLOCATE [PREPARE] name | ALL`.
pub(super) fn deallocate(cursor: &mut Cursor<'_>) -> Result<Statement, SqlError> {
    cursor.expect(&["deallocate"])?;
    if cursor.peek_at(1).is_some() {
        let _ = cursor.eat(&["prepare"]);
    }
    name_or_all(cursor).map(Statement::Deallocate)
}
