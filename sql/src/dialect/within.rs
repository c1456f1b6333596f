//! `JOIN b WITHIN … ON`: how far apart in event time the rows of two streams may be; and `FOR SYSTEM_TIME AS OF
//! PROCTIME()`, another name of the join of a stream with a table.
//!
//! The clauses are cut out of the tokens and put in again as a hint of the table before them, which sqlparser can read; the
//! planner takes them from there. Leaves out what it means. Pure.

use super::cursor::Cursor;
use super::duration;
use super::select::follows_operand;
use crate::error::SqlError;
use millstream_catalog::model::{Span, SqlState};
use sqlparser::ast::{Expr, ObjectNamePart};
use sqlparser::tokenizer::{Token, TokenWithSpan};
use std::ops::Range;

/// The name under which the clause is a call: before, after and grace in microseconds.
pub(crate) const WITHIN: &str = "$within";

/// The name under which `FOR SYSTEM_TIME AS OF PROCTIME()` is a call.
pub(crate) const CURRENT: &str = "$current";

/// `FOR SYSTEM_TIME AS OF PROCTIME() [[AS] alias]`: how many tokens it has, and those of the alias.
///
/// # Errors
/// 0A000 for another time.
fn current(cursor: &Cursor<'_>, at: usize) -> Result<Option<(usize, Range<usize>)>, SqlError> {
    let mut place = cursor.clone();
    place.at = at;
    if !place.eat(&["for", "system_time"]) {
        return Ok(None);
    }
    let is_now =
        place.eat(&["as", "of", "proctime"]) && place.eat_token(&Token::LParen) && place.eat_token(&Token::RParen);
    if !is_now {
        place.at = at;
        let hint = "PROCTIME() looks events up in the table; filter on rowtime or rowoffset for earlier events";
        return Err(place.unsupported("FOR SYSTEM_TIME AS OF another time than PROCTIME()", hint));
    }
    let alias = place.at;
    let follows =
        ["on", "using", "join", "left", "right", "full", "inner", "cross", "where", "group", "window", "within"];
    let is_alias = |word: Option<&str>| word.is_some_and(|word| !follows.contains(&word));
    if place.eat(&["as"])
        || is_alias(place.word())
        || matches!(place.peek(), Some(Token::Word(word)) if word.quote_style.is_some())
    {
        place.at += 1;
    }
    Ok(Some((place.at, alias..place.at)))
}

/// True if a WITHIN clause is at `at`.
fn is_within(cursor: &Cursor<'_>, at: usize) -> bool {
    let mut place = cursor.clone();
    place.at = at;
    place.is(&["within"])
        && follows_operand(cursor, at)
        && matches!(place.peek_at(1), Some(Token::Number(..) | Token::LParen))
}

/// Whether a hint is the clause.
pub(super) fn is_clause(hint: &Expr) -> bool {
    matches!(hint, Expr::Function(call) if matches!(call.name.0.as_slice(),
        [ObjectNamePart::Identifier(name)] if [WITHIN, CURRENT].contains(&name.value.as_str()) && name.quote_style.is_some()))
}

/// The tokens at `indexes`, with each WITHIN clause as a hint.
///
/// # Errors
/// 42601 and 22023 for a clause that cannot be read, 0A000 behind a sub-query.
pub(super) fn tokens(
    cursor: &Cursor<'_>,
    indexes: impl Iterator<Item = usize>,
) -> Result<Vec<TokenWithSpan>, SqlError> {
    let mut tokens = Vec::new();
    let mut next = 0;
    for at in indexes.filter(|at| *at < cursor.lexemes.len()) {
        if at < next {
            continue;
        }
        if let Some((end, alias)) = current(cursor, at)? {
            tokens.extend(cursor.lexemes.get(alias).into_iter().flatten().map(|lexeme| lexeme.token.clone()));
            let span =
                cursor.lexemes.get(at).map_or_else(sqlparser::tokenizer::Span::empty, |lexeme| lexeme.token.span);
            let mut push = |token: Token| tokens.push(TokenWithSpan::new(token, span));
            push(Token::make_keyword("with"));
            push(Token::LParen);
            push(Token::make_word(CURRENT, Some('"')));
            push(Token::LParen);
            push(Token::RParen);
            push(Token::RParen);
            next = end;
            continue;
        }
        if !is_within(cursor, at) {
            tokens.extend(cursor.lexemes.get(at).map(|lexeme| lexeme.token.clone()));
            continue;
        }
        let mut place = cursor.clone();
        place.at = at;
        let [before, after, grace] = clause(&mut place)?;
        next = place.at;
        let span = cursor.lexemes.get(at).map_or_else(sqlparser::tokenizer::Span::empty, |lexeme| lexeme.token.span);
        let mut push = |token: Token| tokens.push(TokenWithSpan::new(token, span));
        let number = |span: Span| Token::Number(span.micros().to_string(), false);
        push(Token::make_keyword("with"));
        push(Token::LParen);
        push(Token::make_word(WITHIN, Some('"')));
        push(Token::LParen);
        push(number(before));
        push(Token::Comma);
        push(number(after));
        push(Token::Comma);
        push(number(grace));
        push(Token::RParen);
        push(Token::RParen);
    }
    Ok(tokens)
}

/// `WITHIN 10 SECONDS [GRACE PERIOD …]` or `WITHIN (1 HOUR, 2 HOURS) [GRACE PERIOD …]`.
fn clause(cursor: &mut Cursor<'_>) -> Result<[Span; 3], SqlError> {
    let position = cursor.position();
    let token = |back: usize| cursor.at.checked_sub(back).and_then(|at| cursor.lexemes.get(at));
    let is_closed = |back: usize| token(back).is_some_and(|lexeme| lexeme.token.token == Token::RParen);
    // `) WITHIN`, `) alias WITHIN` or `) AS alias WITHIN`.
    let is_behind_query = is_closed(1) || is_closed(2) || is_closed(3);
    if is_behind_query {
        return Err(
            SqlError::unsupported("WITHIN behind a sub-query", "put a range of event times into ON").at(position)
        );
    }
    cursor.expect(&["within"])?;
    let (before, after) = if cursor.eat_token(&Token::LParen) {
        let before = length(cursor)?;
        cursor.expect_token(&Token::Comma)?;
        let after = length(cursor)?;
        cursor.expect_token(&Token::RParen)?;
        (before, after)
    } else {
        let both = length(cursor)?;
        (both, both)
    };
    let grace = match cursor.is(&["grace", "period"]) {
        true => {
            cursor.at += 2;
            length(cursor)?
        }
        false => Span::ZERO,
    };
    Ok([before, after, grace])
}

fn length(cursor: &mut Cursor<'_>) -> Result<Span, SqlError> {
    let position = cursor.position();
    let length = duration::length(cursor)?;
    match length < Span::ZERO {
        false => Ok(length),
        true => Err(SqlError::new(SqlState::InvalidParameterValue, "a time must not be negative").at(position)),
    }
}
