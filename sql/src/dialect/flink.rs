//! Flink's spelling of windows in FROM: `TABLE(TUMBLE(TABLE rel, DESCRIPTOR(ts), INTERVAL '1' MINUTE))`, with names of
//! arguments or without.
//!
//! Only tokens are left out and put in order, so that what stays is `TUMBLE(rel, ts, INTERVAL '1' MINUTE)`. Leaves out
//! what it means (planner). Pure.

use super::ast::Position;
use super::cursor::Cursor;
use crate::error::SqlError;
use millstream_catalog::model::SqlState;
use sqlparser::tokenizer::Token;
use std::ops::Range;

/// The functions, and the names of their arguments in order.
const FUNCTIONS: [(&str, &[&str]); 3] = [
    ("tumble", &["data", "timecol", "size", "offset"]),
    ("hop", &["data", "timecol", "slide", "size", "offset"]),
    ("session", &["data", "timecol", "gap"]),
];

/// The tokens of `range`, by their indexes, without Flink's words.
///
/// # Errors
/// 42601 and 42883 for arguments that cannot be read, 0A000 for PARTITION BY.
pub(super) fn indexes(cursor: &Cursor<'_>, range: impl Iterator<Item = usize>) -> Result<Vec<usize>, SqlError> {
    let mut kept = Vec::new();
    let mut next = 0;
    for at in range {
        if at < next {
            continue;
        }
        match call(cursor, at)? {
            Some((call, end)) => {
                kept.extend(call);
                next = end;
            }
            None => kept.push(at),
        }
    }
    Ok(kept)
}

/// The call that begins at `at`, and the index behind it, if it is one in Flink's words.
fn call(cursor: &Cursor<'_>, at: usize) -> Result<Option<(Vec<usize>, usize)>, SqlError> {
    let mut place = cursor.clone();
    place.at = at;
    let is_wrapped = place.is(&["table"]) && place.peek_at(1) == Some(&Token::LParen);
    place.at += if is_wrapped { 2 } else { 0 };
    let name = place.word();
    let Some((_, names)) = FUNCTIONS.iter().find(|(known, _)| name == Some(known)) else { return Ok(None) };
    if place.peek_at(1) != Some(&Token::LParen) {
        return Ok(None);
    }
    let head = place.at..place.at + 2;
    place.at += 2;
    let is_named = place.peek_at(1) == Some(&Token::RArrow);
    if !is_wrapped && !is_named && !place.is(&["table"]) {
        return Ok(None);
    }
    let position = place.position();
    let (mut arguments, mut commas) = (Vec::new(), Vec::new());
    loop {
        let end = place.find(|token| *token == Token::Comma);
        arguments.push(place.at..end);
        place.at = end;
        if !place.eat_token(&Token::Comma) {
            break;
        }
        commas.push(end);
    }
    let close = place.at;
    place.expect_token(&Token::RParen)?;
    if is_wrapped {
        place.expect_token(&Token::RParen)?;
    }
    let ordered = in_order(cursor, arguments, names, position)?;
    let mut kept: Vec<usize> = head.collect();
    for (number, argument) in ordered.into_iter().enumerate() {
        kept.extend(number.checked_sub(1).and_then(|before| commas.get(before)));
        kept.extend(plain(cursor, argument)?);
    }
    kept.push(close);
    Ok(Some((kept, place.at)))
}

/// The arguments in the order of `names`, without their names.
fn in_order(
    cursor: &Cursor<'_>,
    arguments: Vec<Range<usize>>,
    names: &[&str],
    position: Position,
) -> Result<Vec<Range<usize>>, SqlError> {
    let mut ordered: Vec<(usize, Range<usize>)> = Vec::new();
    for (number, argument) in arguments.into_iter().enumerate() {
        let mut place = cursor.clone();
        place.at = argument.start;
        if place.peek_at(1) != Some(&Token::RArrow) {
            ordered.push((number, argument));
            continue;
        }
        let Some(at) = names.iter().position(|name| place.word() == Some(name)) else {
            let fact = format!("the arguments are {}", names.join(", "));
            return Err(SqlError::new(SqlState::UndefinedFunction, "a window has no argument of this name")
                .hint(fact)
                .at(place.position()));
        };
        ordered.push((at, argument.start + 2..argument.end));
    }
    ordered.sort_by_key(|(at, _)| *at);
    if ordered.windows(2).any(|pair| pair[0].0 == pair[1].0) {
        return Err(SqlError::syntax("an argument of a window is given twice").at(position));
    }
    Ok(ordered.into_iter().map(|(_, argument)| argument).collect())
}

/// An argument without `TABLE` and `DESCRIPTOR`.
fn plain(cursor: &Cursor<'_>, argument: Range<usize>) -> Result<Range<usize>, SqlError> {
    let mut place = cursor.clone();
    place.at = argument.start;
    if place.is(&["table"]) && place.peek_at(1) != Some(&Token::LParen) {
        let mut rest = place.clone();
        rest.at += 1;
        while rest.at < argument.end {
            if rest.is(&["partition", "by"]) {
                return Err(rest.unsupported("PARTITION BY of a window", "group by the columns and the window"));
            }
            rest.at += 1;
        }
        return Ok(argument.start + 1..argument.end);
    }
    if !(place.is(&["descriptor"]) && place.peek_at(1) == Some(&Token::LParen)) {
        return Ok(argument);
    }
    place.at += 2;
    let start = place.at;
    place.qualified()?;
    let end = place.at;
    place.expect_token(&Token::RParen)?;
    if place.at != argument.end {
        return Err(place.unexpected());
    }
    Ok(start..end)
}
