//! Queries: the streaming clauses are cut out of the tokens, sqlparser reads the rest, `vet` checks it.
//!
//! Owns `WINDOW … (…)`, `PARTITION BY …`, `EMIT …` and what follows it. Leaves out names and types (planner). Called
//! for every statement that has a query in it; a crash does nothing to it.

use super::ast::{Emit, EmitKind, PartitionBy, Position, Select, WindowClause, WindowKind, WithOptions};
use super::cursor::Cursor;
use super::lexer::Lexeme;
use super::{duration, flink, options, render, vet, within};
use crate::error::SqlError;
use millstream_catalog::model::{RowCount, Span, SqlState};
use sqlparser::keywords::Keyword;
use sqlparser::parser::Parser;
use sqlparser::tokenizer::{Token, TokenWithSpan, Word};
use std::ops::Range;

/// Reads a query from the next token to the end of the statement.
pub(super) fn select(cursor: &mut Cursor<'_>) -> Result<Select, SqlError> {
    let end = cursor.lexemes.len();
    let mut part = cursor.part(end);
    select_part(&mut part)
}

/// Reads a query that takes all the tokens of `cursor`.
pub(super) fn select_part(cursor: &mut Cursor<'_>) -> Result<Select, SqlError> {
    let start = cursor.at;
    refuse_unsupported_clauses(cursor)?;
    let emit_at = find_emit(cursor);
    let body_end = emit_at.unwrap_or(cursor.lexemes.len());
    let window = find_window(cursor, body_end)?;
    let partition_by = find_partition_by(cursor, body_end)?;
    let cut = window.iter().map(|(_, range)| range.clone()).chain(partition_by.iter().map(|(_, range)| range.clone()));
    let mut query = query(cursor, start..body_end, cut.collect())?;
    vet::query(&mut query, &|word| first(cursor, start, word))?;
    cursor.at = body_end;
    let emit = if emit_at.is_some() { Some(emit(cursor)?) } else { None };
    let (options, limit) = if emit.is_some() { tail(cursor)? } else { (WithOptions::default(), None) };
    cursor.expect_end()?;
    let sql = render::text(cursor.text, cursor.lexemes.get(start..).unwrap_or_default());
    let (window, partition_by) = (window.map(|(clause, _)| clause), partition_by.map(|(clause, _)| clause));
    Ok(Select { query, window, partition_by, emit, options, limit, sql })
}

/// The tokens of `range` without those of `cut`, through sqlparser.
fn query(
    cursor: &Cursor<'_>,
    range: Range<usize>,
    cut: Vec<Range<usize>>,
) -> Result<Box<sqlparser::ast::Query>, SqlError> {
    let is_left = |at: &usize| !cut.iter().any(|cut| cut.contains(at));
    let left: Vec<usize> = range.clone().filter(is_left).collect();
    let part: Vec<Lexeme> = left.iter().filter_map(|at| cursor.lexemes.get(*at)).cloned().collect();
    let mut tokens: Vec<TokenWithSpan> = Vec::with_capacity(part.len() + 3);
    // `TABLE name` is `SELECT * FROM name`.
    let mut first_index = range.start;
    if let Some(first) = part.first()
        && word(first) == Some("table")
    {
        let span = first.token.span;
        let keyword = |text: &str| TokenWithSpan::new(Token::make_keyword(text), span);
        tokens.extend([keyword("select"), TokenWithSpan::new(Token::Mul, span), keyword("from")]);
        first_index += 1;
        let name = |lexeme: &Lexeme| matches!(lexeme.token.token, Token::Word(_));
        if !part.get(1).is_some_and(name) {
            let mut place = cursor.clone();
            place.at = range.start + 1;
            return Err(place.unexpected());
        }
    }
    let indexes = flink::indexes(cursor, left.into_iter().filter(|at| *at >= first_index))?;
    tokens.extend(within::tokens(cursor, indexes.into_iter())?);
    let end = |parser: &mut Parser<'_>| {
        let query = parser.parse_query()?;
        if parser.peek_token_ref().token != Token::EOF {
            return parser.expected_ref("end of statement", parser.peek_token_ref());
        }
        Ok(query)
    };
    cursor.run_parser(tokens, &part, end).map(|(query, _)| query)
}

/// Where a word, or a string with its quotes, first stands, from index `start` on; unknown if it does not.
pub(super) fn first(cursor: &Cursor<'_>, start: usize, wanted: &str) -> Position {
    let is_wanted = |lexeme: &&Lexeme| match &lexeme.token.token {
        Token::SingleQuotedString(value) => wanted.strip_prefix('\'').and_then(|w| w.strip_suffix('\'')) == Some(value),
        _ => word(lexeme) == Some(wanted),
    };
    let lexeme = cursor.lexemes.iter().skip(start).find(is_wanted);
    lexeme.map_or(Position::UNKNOWN, |lexeme| Position::new(lexeme.position()))
}

fn word(lexeme: &Lexeme) -> Option<&str> {
    match &lexeme.token.token {
        Token::Word(Word { value, quote_style: None, .. }) => Some(value),
        _ => None,
    }
}

fn word_of<'a>(cursor: &Cursor<'a>, at: usize) -> Option<&'a str> {
    cursor.lexemes.get(at).and_then(word)
}

fn token_of<'a>(cursor: &Cursor<'a>, at: usize) -> Option<&'a Token> {
    cursor.lexemes.get(at).map(|lexeme| &lexeme.token.token)
}

/// True if the token before `at` ends an operand, so that a word at `at` may begin a clause.
pub(super) fn follows_operand(cursor: &Cursor<'_>, at: usize) -> bool {
    let Some(before) = at.checked_sub(1).and_then(|before| token_of(cursor, before)) else { return false };
    match before {
        Token::RParen | Token::RBracket | Token::Mul => true,
        Token::Number(..) | Token::SingleQuotedString(_) | Token::Placeholder(_) => true,
        Token::Word(word) if word.quote_style.is_some() => true,
        Token::Word(word) => !matches!(
            word.keyword,
            Keyword::SELECT
                | Keyword::DISTINCT
                | Keyword::ALL
                | Keyword::FROM
                | Keyword::JOIN
                | Keyword::WHERE
                | Keyword::AND
                | Keyword::OR
                | Keyword::NOT
                | Keyword::BY
                | Keyword::HAVING
                | Keyword::ON
                | Keyword::AS
                | Keyword::IN
                | Keyword::LATERAL
        ),
        _ => false,
    }
}

/// Tokens at the level of the statement's own brackets, from the next on: their indexes.
fn top_level<'a>(cursor: &'a Cursor<'_>, end: usize) -> impl Iterator<Item = usize> + 'a {
    let mut depth = 0_usize;
    (cursor.at..end).filter(move |at| match token_of(cursor, *at) {
        Some(Token::LParen | Token::LBracket) => {
            depth += 1;
            false
        }
        Some(Token::RParen | Token::RBracket) => {
            depth = depth.saturating_sub(1);
            false
        }
        _ => depth == 0,
    })
}

/// Where `EMIT` stands, if it is the clause and not a name.
fn find_emit(cursor: &Cursor<'_>) -> Option<usize> {
    top_level(cursor, cursor.lexemes.len()).find(|at| is_emit(cursor, *at))
}

fn is_emit(cursor: &Cursor<'_>, at: usize) -> bool {
    word_of(cursor, at) == Some("emit")
        && match word_of(cursor, at + 1) {
            Some("changes" | "final") => true,
            Some("on") => word_of(cursor, at + 2) == Some("window") && word_of(cursor, at + 3) == Some("close"),
            _ => false,
        }
        && follows_operand(cursor, at)
}

/// Clauses of DIALECT that stand anywhere in a query and are not there yet.
pub(super) fn refuse_unsupported_clauses(cursor: &Cursor<'_>) -> Result<(), SqlError> {
    let refuse = |at: usize, what: &str, hint: &str| {
        Err(SqlError::unsupported(what, hint).at(cursor.lexemes.get(at).map_or(0, Lexeme::position)))
    };
    let mut depth = 0_usize;
    for at in cursor.at..cursor.lexemes.len() {
        match token_of(cursor, at) {
            Some(Token::LParen | Token::LBracket) => depth += 1,
            Some(Token::RParen | Token::RBracket) => depth = depth.saturating_sub(1),
            _ => {}
        }
        match (word_of(cursor, at), token_of(cursor, at + 1)) {
            (Some("emit"), _) if depth > 0 && is_emit(cursor, at) => {
                return refuse(at, "EMIT in a sub-query", "write EMIT at the end of the statement");
            }
            (Some("window"), _) if depth > 0 && is_window(cursor, at) => {
                return refuse(at, "WINDOW in a sub-query", "create a table with the window and read that");
            }
            _ => {}
        }
    }
    Ok(())
}

fn is_window(cursor: &Cursor<'_>, at: usize) -> bool {
    word_of(cursor, at) == Some("window")
        && matches!(word_of(cursor, at + 1), Some("tumbling" | "hopping" | "session"))
        && token_of(cursor, at + 2) == Some(&Token::LParen)
}

/// The window clause of the outermost SELECT, with its tokens.
fn find_window(cursor: &Cursor<'_>, end: usize) -> Result<Option<(WindowClause, Range<usize>)>, SqlError> {
    let mut found: Option<(WindowClause, Range<usize>)> = None;
    let mut after_from = false;
    let mut set_operation = None;
    for at in top_level(cursor, end) {
        let mut place = cursor.clone();
        place.at = at;
        match word_of(cursor, at) {
            Some("window") if is_window(cursor, at) => {
                if found.is_some() || !after_from || !follows_operand(cursor, at) {
                    return Err(place.unexpected());
                }
                let clause = window(&mut place)?;
                check_after_window(&place, end)?;
                found = Some((clause, at..place.at));
            }
            Some("from") => after_from = true,
            Some("where" | "group" | "having" | "order" | "limit") => after_from = false,
            Some("union" | "except" | "intersect") => set_operation = Some(place),
            _ => {}
        }
    }
    match (set_operation, &found) {
        (Some(place), Some(_)) => {
            Err(place.unsupported("WINDOW with UNION, EXCEPT or INTERSECT", "create a table with the window first"))
        }
        _ => Ok(found),
    }
}

/// `PARTITION BY` of the outermost SELECT, with its tokens: to the next clause.
fn find_partition_by(cursor: &Cursor<'_>, end: usize) -> Result<Option<(PartitionBy, Range<usize>)>, SqlError> {
    let is_by = |at: usize| matches!(token_of(cursor, at), Some(Token::Word(by)) if by.keyword == Keyword::BY);
    let is_here =
        |at: &usize| word_of(cursor, *at) == Some("partition") && is_by(at + 1) && follows_operand(cursor, *at);
    let Some(at) = top_level(cursor, end).find(is_here) else { return Ok(None) };
    let mut place = cursor.clone();
    place.at = at;
    let position = place.position();
    let is_set = |at: &usize| matches!(word_of(cursor, *at), Some("union" | "except" | "intersect"));
    if top_level(cursor, end).any(|at| is_set(&at)) {
        return Err(place.unsupported("PARTITION BY with UNION, EXCEPT or INTERSECT", "put them into a sub-query"));
    }
    place.at = at + 2;
    let is_clause = |at: &usize| {
        matches!(
            word_of(cursor, *at),
            Some("group" | "having" | "order" | "limit" | "offset" | "fetch" | "where" | "window")
        )
    };
    let clause_end = top_level(&place, end).find(is_clause).unwrap_or(end);
    let expressions = place.with_parser(clause_end, |parser| parser.parse_comma_separated(Parser::parse_expr))?;
    match place.at == clause_end {
        true => Ok(Some((PartitionBy { expressions, position }, at..clause_end))),
        false => Err(place.unexpected()),
    }
}

/// Only a later clause may follow a window clause: an alias there would otherwise become that of the relation.
fn check_after_window(place: &Cursor<'_>, end: usize) -> Result<(), SqlError> {
    let is_clause = matches!(
        place.word(),
        Some("where" | "group" | "having" | "order" | "limit" | "offset" | "fetch" | "for" | "window")
            | Some("union" | "except" | "intersect" | "partition")
    );
    if place.at >= end || is_clause { Ok(()) } else { Err(place.unexpected()) }
}

/// `WINDOW TUMBLING (SIZE n unit …)`, `HOPPING (SIZE n unit, ADVANCE BY n unit …)` or `SESSION (n unit …)`, each
/// with `[, RETENTION n unit] [, GRACE PERIOD n unit]`.
fn window(cursor: &mut Cursor<'_>) -> Result<WindowClause, SqlError> {
    let position = cursor.position();
    cursor.expect(&["window"])?;
    let kind = window_kind(cursor)?;
    let (mut grace, mut retention) = (None, None);
    while cursor.eat_token(&Token::Comma) {
        if retention.is_none() && cursor.is(&["retention"]) {
            let position = cursor.position();
            cursor.expect(&["retention"])?;
            retention = Some((positive(cursor, "retention")?, position));
            continue;
        }
        if grace.is_some() {
            return Err(cursor.unexpected());
        }
        cursor.expect(&["grace", "period"])?;
        let grace_position = cursor.position();
        let length = duration::length(cursor)?;
        if length < Span::ZERO {
            let message = "grace period must not be negative";
            return Err(SqlError::new(SqlState::InvalidParameterValue, message).at(grace_position));
        }
        grace = Some(length);
    }
    cursor.expect_token(&Token::RParen)?;
    Ok(WindowClause { kind, grace, retention, position })
}

/// `TUMBLING (SIZE …`, `HOPPING (SIZE …, ADVANCE BY …` or `SESSION (…`.
fn window_kind(cursor: &mut Cursor<'_>) -> Result<WindowKind, SqlError> {
    let word = cursor.word().unwrap_or_default().to_owned();
    cursor.at += 1;
    cursor.expect_token(&Token::LParen)?;
    if word == "session" {
        return Ok(WindowKind::Session { gap: positive(cursor, "gap")? });
    }
    cursor.expect(&["size"])?;
    let size = positive(cursor, "size")?;
    if word == "tumbling" {
        return Ok(WindowKind::Tumbling { size });
    }
    cursor.expect_token(&Token::Comma)?;
    cursor.expect(&["advance", "by"])?;
    Ok(WindowKind::Hopping { size, advance: positive(cursor, "advance")? })
}

/// A length of a window.
fn positive(cursor: &mut Cursor<'_>, what: &str) -> Result<Span, SqlError> {
    let position = cursor.position();
    let length = duration::length(cursor)?;
    if length > Span::ZERO {
        return Ok(length);
    }
    let message = format!("window {what} must be positive");
    Err(SqlError::new(SqlState::InvalidParameterValue, message).at(position))
}

/// `EMIT CHANGES`, `EMIT FINAL` or `EMIT ON WINDOW CLOSE`.
fn emit(cursor: &mut Cursor<'_>) -> Result<Emit, SqlError> {
    let position = cursor.position();
    cursor.expect(&["emit"])?;
    if cursor.eat(&["changes"]) {
        return Ok(Emit { kind: EmitKind::Changes, position });
    }
    if !cursor.eat(&["final"]) {
        cursor.expect(&["on", "window", "close"])?;
    }
    Ok(Emit { kind: EmitKind::Final, position })
}

/// `[WITH (…)] [LIMIT n]` after `EMIT CHANGES`.
fn tail(cursor: &mut Cursor<'_>) -> Result<(WithOptions, Option<RowCount>), SqlError> {
    let options = options::with_options(cursor)?;
    let mut limit = None;
    if cursor.eat(&["limit"]) {
        let position = cursor.position();
        if matches!(cursor.peek(), Some(Token::Placeholder(_))) {
            return Err(cursor.unsupported("a parameter in LIMIT after EMIT", "write the number"));
        }
        let number = cursor.number()?;
        let rows = number.parse::<u64>().map_err(|_| not_a_row_count(&number, position))?;
        limit = Some(RowCount::new(rows));
    }
    Ok((options, limit))
}

fn not_a_row_count(number: &str, position: Position) -> SqlError {
    let message = format!("LIMIT must be a whole number that is not negative, not {number}");
    SqlError::new(SqlState::InvalidParameterValue, message).at(position)
}
