//! `UPDATE`, `DELETE` and `ON CONFLICT`.
//!
//! Expressions, FROM and RETURNING go to sqlparser. Leaves out names and types (`bind::change`). A crash does nothing to
//! it.

use super::ast::{
    Assignment, Change, ChangeKind, ConflictAction, ConflictTarget, OnConflict, Statement, Target, is_default,
    select_from,
};
use super::cursor::Cursor;
use super::{select, vet};
use crate::error::SqlError;
use sqlparser::ast::{Expr, SelectItem, SetExpr, TableWithJoins};
use sqlparser::parser::Parser;
use sqlparser::tokenizer::Token;

/// `UPDATE table [[AS] alias] SET … [FROM …] [WHERE …] [RETURNING …]`.
pub(super) fn update(cursor: &mut Cursor<'_>) -> Result<Statement, SqlError> {
    let start = cursor.at;
    cursor.expect(&["update"])?;
    let target = target(cursor, &["set"])?;
    cursor.expect(&["set"])?;
    let assignments = assignments(cursor)?;
    let from = from(cursor, "from")?;
    let selection = selection(cursor)?;
    let returning = returning(cursor)?;
    let change = Change { kind: ChangeKind::Update(assignments), target, from, selection, returning };
    vetted(cursor, start, change)
}

/// `DELETE FROM table [[AS] alias] [USING …] [WHERE …] [WITH (rowtime = …)] [RETURNING …]`.
pub(super) fn delete(cursor: &mut Cursor<'_>) -> Result<Statement, SqlError> {
    let start = cursor.at;
    cursor.expect(&["delete", "from"])?;
    let target = target(cursor, &["using", "where", "with", "returning"])?;
    let from = from(cursor, "using")?;
    let selection = selection(cursor)?;
    let mut rowtime = with_rowtime(cursor)?;
    let returning = returning(cursor)?;
    if rowtime.is_none() {
        rowtime = with_rowtime(cursor)?;
    }
    vetted(cursor, start, Change { kind: ChangeKind::Delete(rowtime), target, from, selection, returning })
}

/// The table, and its alias unless one of `clauses` is next.
fn target(cursor: &mut Cursor<'_>, clauses: &[&str]) -> Result<Target, SqlError> {
    if cursor.is(&["only"]) {
        return Err(cursor.unsupported("ONLY", "leave it out: tables have no descendants"));
    }
    let name = cursor.target()?;
    cursor.eat_token(&Token::Mul);
    let is_clause = cursor.word().is_some_and(|word| clauses.contains(&word));
    let alias = match cursor.eat(&["as"]) || (!is_clause && matches!(cursor.peek(), Some(Token::Word(_)))) {
        true => Some(cursor.ident()?),
        false => None,
    };
    Ok(Target { name, alias })
}

/// `column = value, (column, …) = (value, …), …`, each column once.
fn assignments(cursor: &mut Cursor<'_>) -> Result<Vec<Assignment>, SqlError> {
    let groups = cursor.list(|cursor| match cursor.is_token(&Token::LParen) {
        true => row(cursor),
        false => one(cursor).map(|assignment| vec![assignment]),
    })?;
    let assignments: Vec<Assignment> = groups.into_iter().flatten().collect();
    let mut seen = std::collections::HashSet::new();
    match assignments.iter().find(|assignment| !seen.insert(&assignment.column.name)) {
        None => Ok(assignments),
        Some(again) => {
            let fact = format!("multiple assignments to same column \"{}\"", again.column);
            Err(SqlError::syntax(fact).at(again.column.position))
        }
    }
}

fn one(cursor: &mut Cursor<'_>) -> Result<Assignment, SqlError> {
    let column = cursor.ident()?;
    if matches!(cursor.peek(), Some(Token::LBracket | Token::Period)) {
        return Err(cursor.unsupported("assigning to a part of a column", "assign the whole column"));
    }
    cursor.expect_token(&Token::Eq)?;
    let end = cursor.lexemes.len();
    let value = cursor.with_parser(end, |parser| parser.parse_expr())?;
    Ok(Assignment { column, value: given(value) })
}

/// `None` for the word `DEFAULT`.
fn given(value: Expr) -> Option<Expr> {
    (!is_default(&value)).then_some(value)
}

/// `(column, …) = [ROW] (value, …)`.
fn row(cursor: &mut Cursor<'_>) -> Result<Vec<Assignment>, SqlError> {
    let columns = cursor.parens(Cursor::ident)?;
    cursor.expect_token(&Token::Eq)?;
    cursor.eat(&["row"]);
    let place = cursor.clone();
    cursor.expect_token(&Token::LParen)?;
    if matches!(cursor.word(), Some("select" | "with" | "values")) {
        return Err(place.unsupported("assigning a sub-query to several columns", "give each column its own"));
    }
    let end = cursor.find(|_| false);
    let values = cursor.with_parser(end, |parser| parser.parse_comma_separated(Parser::parse_expr))?;
    cursor.expect_token(&Token::RParen)?;
    if columns.len() != values.len() {
        return Err(SqlError::syntax("number of columns does not match number of values").at(place.position()));
    }
    let assignment = |(column, value)| Assignment { column, value: given(value) };
    Ok(columns.into_iter().zip(values).map(assignment).collect())
}

/// `FROM …` or `USING …`, if it is next.
fn from(cursor: &mut Cursor<'_>, word: &str) -> Result<Vec<TableWithJoins>, SqlError> {
    if !cursor.eat(&[word]) {
        return Ok(Vec::new());
    }
    let end = cursor.lexemes.len();
    cursor.with_parser(end, |parser| parser.parse_comma_separated(Parser::parse_table_and_joins))
}

/// `WHERE …`, if it is next.
fn selection(cursor: &mut Cursor<'_>) -> Result<Option<Expr>, SqlError> {
    if cursor.is(&["where", "current", "of"]) {
        return Err(cursor.unsupported("WHERE CURRENT OF", "name the row by its key"));
    }
    if !cursor.eat(&["where"]) {
        return Ok(None);
    }
    let end = cursor.lexemes.len();
    cursor.with_parser(end, |parser| parser.parse_expr()).map(Some)
}

/// `WITH (rowtime = …)`, if it is next.
fn with_rowtime(cursor: &mut Cursor<'_>) -> Result<Option<Box<Expr>>, SqlError> {
    if !cursor.eat(&["with"]) {
        return Ok(None);
    }
    cursor.expect_token(&Token::LParen)?;
    if !cursor.is(&["rowtime"]) {
        return Err(cursor.unsupported("this option of DELETE", "the options are rowtime"));
    }
    cursor.at += 1;
    cursor.expect_token(&Token::Eq)?;
    let end = cursor.find(|_| false);
    let value = cursor.with_parser(end, |parser| parser.parse_expr())?;
    cursor.expect_token(&Token::RParen)?;
    Ok(Some(Box::new(value)))
}

/// `RETURNING item, …`, if it is next.
fn returning(cursor: &mut Cursor<'_>) -> Result<Vec<SelectItem>, SqlError> {
    if !cursor.eat(&["returning"]) {
        return Ok(Vec::new());
    }
    let is_with =
        |token: &Token| matches!(token, Token::Word(word) if word.quote_style.is_none() && word.value == "with");
    let end = cursor.find(is_with);
    cursor.with_parser(end, |parser| parser.parse_projection())
}

/// The statement, with everything in it checked as that of a query is.
fn vetted(cursor: &Cursor<'_>, start: usize, mut change: Change) -> Result<Statement, SqlError> {
    let mut place = cursor.clone();
    place.at = start;
    select::refuse_unsupported_clauses(&place)?;
    let first = |word: &str| select::first(&place, start, word);
    let values: Vec<&mut Expr> = match &mut change.kind {
        ChangeKind::Update(assignments) => assignments.iter_mut().filter_map(|a| a.value.as_mut()).collect(),
        ChangeKind::Delete(rowtime) => rowtime.as_deref_mut().into_iter().collect(),
    };
    for value in values.into_iter().chain(&mut change.selection) {
        vet::expr(value, &first)?;
    }
    let mut rest = select_from(std::mem::take(&mut change.returning), &change.target, Vec::new(), None);
    if let SetExpr::Select(rest) = rest.body.as_mut() {
        rest.from = std::mem::take(&mut change.from);
    }
    vet::query(&mut rest, &first)?;
    if let SetExpr::Select(rest) = *rest.body {
        (change.from, change.returning) = (rest.from, rest.projection);
    }
    Ok(Statement::Change(Box::new(change)))
}

/// `ON CONFLICT [(columns) | ON CONSTRAINT name] DO NOTHING | DO UPDATE SET … [WHERE …]`, if it is next.
pub(super) fn on_conflict(cursor: &mut Cursor<'_>) -> Result<Option<OnConflict>, SqlError> {
    let (start, position) = (cursor.at, cursor.position());
    if !cursor.eat(&["on", "conflict"]) {
        return Ok(None);
    }
    let target = conflict_target(cursor)?;
    cursor.expect(&["do"])?;
    if cursor.eat(&["nothing"]) {
        return Ok(Some(OnConflict { target, action: ConflictAction::Nothing, position }));
    }
    cursor.expect(&["update", "set"])?;
    if target == ConflictTarget::Any {
        let fact = "ON CONFLICT DO UPDATE requires inference specification or constraint name";
        return Err(SqlError::syntax(fact).hint("For example, ON CONFLICT (column_name).").at(position));
    }
    let mut assignments = assignments(cursor)?;
    let mut selection = selection(cursor)?.map(Box::new);
    let place = cursor.clone();
    let first = |word: &str| select::first(&place, start, word);
    for value in assignments.iter_mut().filter_map(|a| a.value.as_mut()).chain(selection.as_deref_mut()) {
        vet::expr(value, &first)?;
    }
    Ok(Some(OnConflict { target, action: ConflictAction::Update(assignments, selection), position }))
}

fn conflict_target(cursor: &mut Cursor<'_>) -> Result<ConflictTarget, SqlError> {
    if cursor.eat(&["on", "constraint"]) {
        return cursor.ident().map(ConflictTarget::Constraint);
    }
    if !cursor.is_token(&Token::LParen) {
        return Ok(ConflictTarget::Any);
    }
    let columns = cursor.parens(|cursor| {
        let column = cursor.ident().map_err(|error| match cursor.peek() {
            Some(Token::LParen) => cursor.unsupported("an expression in ON CONFLICT", "name the columns of the key"),
            _ => error,
        })?;
        match cursor.peek() {
            Some(Token::Comma | Token::RParen) => Ok(column),
            _ => Err(cursor.unsupported("more than columns in ON CONFLICT", "name the columns of the key")),
        }
    })?;
    if cursor.is(&["where"]) {
        return Err(cursor.unsupported("WHERE behind the columns of ON CONFLICT", "leave it out: there is one key"));
    }
    Ok(ConflictTarget::Columns(columns))
}
