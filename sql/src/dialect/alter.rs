//! `ALTER STREAM | TABLE | TOPIC` and `TRUNCATE`.
//!
//! Leaves out what types and options mean (`bind::alter`). A crash does nothing to it.

use super::ast::{Alter, AlterAction, Statement};
use super::cursor::Cursor;
use super::{create, options, refuse};
use crate::error::SqlError;
use sqlparser::tokenizer::Token;

/// `TRUNCATE [TABLE] [ONLY] name [*], … [CONTINUE IDENTITY] [RESTRICT]`.
pub(super) fn truncate(cursor: &mut Cursor<'_>) -> Result<Statement, SqlError> {
    cursor.expect(&["truncate"])?;
    if !cursor.is(&["view"]) && !cursor.is(&["materialized", "view"]) {
        let _ = create::object_kind(cursor);
    }
    let _ = cursor.eat(&["only"]);
    let names = cursor.list(|cursor| {
        let name = cursor.target()?;
        let _ = cursor.eat_token(&Token::Mul);
        Ok(name)
    })?;
    if cursor.is(&["restart", "identity"]) {
        return Err(cursor.unsupported("RESTART IDENTITY", "leave it out: offsets go on from where they were"));
    }
    let _ = cursor.eat(&["continue", "identity"]);
    if cursor.is(&["cascade"]) {
        return Err(cursor.unsupported("TRUNCATE … CASCADE", "leave it out: what queries made of the events stays"));
    }
    let _ = cursor.eat(&["restrict"]);
    Ok(Statement::Truncate(names))
}

/// `ALTER STREAM | TABLE | TOPIC [IF EXISTS] name action, …`.
pub(super) fn alter(cursor: &mut Cursor<'_>) -> Result<Statement, SqlError> {
    let start = cursor.clone();
    cursor.expect(&["alter"])?;
    if cursor.is(&["view"]) || cursor.is(&["materialized", "view"]) {
        return Err(refuse::statement(&start));
    }
    let Some(kind) = create::object_kind(cursor) else { return Err(refuse::statement(&start)) };
    let if_exists = cursor.eat(&["if", "exists"]);
    let _ = cursor.eat(&["only"]);
    let name = cursor.target()?;
    let mut actions = Vec::new();
    loop {
        let position = cursor.position();
        actions.push(action(cursor)?);
        let is_alone =
            |action: &AlterAction| matches!(action, AlterAction::Rename(_) | AlterAction::RenameColumn { .. });
        if actions.len() > 1 && actions.iter().any(is_alone) {
            return Err(SqlError::unsupported("RENAME with other actions", "send it by itself").at(position));
        }
        if !cursor.eat_token(&Token::Comma) {
            break;
        }
    }
    Ok(Statement::Alter(Box::new(Alter { kind, name, if_exists, actions })))
}

fn action(cursor: &mut Cursor<'_>) -> Result<AlterAction, SqlError> {
    match cursor.word() {
        Some("add") => add(cursor),
        Some("rename") => rename(cursor),
        Some("set") if cursor.peek_at(1) == Some(&Token::LParen) => {
            cursor.at += 1;
            Ok(AlterAction::Set(options::list(cursor)?))
        }
        Some("reset") => {
            cursor.at += 1;
            let names = cursor.parens(|cursor| {
                let position = cursor.position();
                Ok((cursor.ident()?.as_str().to_ascii_lowercase(), position))
            })?;
            Ok(AlterAction::Reset(names))
        }
        _ => Err(refuse_action(cursor)),
    }
}

/// `ADD [COLUMN] [IF NOT EXISTS] column`.
fn add(cursor: &mut Cursor<'_>) -> Result<AlterAction, SqlError> {
    let place = cursor.clone();
    cursor.expect(&["add"])?;
    if !cursor.eat(&["column"])
        && matches!(cursor.word(), Some("constraint" | "primary" | "unique" | "check" | "foreign"))
    {
        return Err(place.unsupported("ADD of a constraint", "create another stream or table and copy the rows"));
    }
    let if_not_exists = cursor.eat(&["if", "not", "exists"]);
    Ok(AlterAction::AddColumn { if_not_exists, column: Box::new(create::column(cursor)?) })
}

/// `RENAME TO name | RENAME [COLUMN] a TO b`.
fn rename(cursor: &mut Cursor<'_>) -> Result<AlterAction, SqlError> {
    cursor.expect(&["rename"])?;
    if cursor.eat(&["to"]) {
        return cursor.target().map(AlterAction::Rename);
    }
    if cursor.is(&["constraint"]) {
        return Err(cursor.unsupported("RENAME CONSTRAINT", "constraints have no names"));
    }
    let _ = cursor.eat(&["column"]);
    let from = cursor.ident()?;
    cursor.expect(&["to"])?;
    Ok(AlterAction::RenameColumn { from, to: cursor.ident()? })
}

/// What PostgreSQL can do and this cannot.
fn refuse_action(cursor: &Cursor<'_>) -> SqlError {
    const COPY: &str =
        "create another stream or table with the columns wanted and copy the rows with INSERT INTO … SELECT";
    let what = match (cursor.word(), cursor.word_at(1)) {
        (Some("drop"), Some("constraint")) => "DROP CONSTRAINT",
        (Some("drop"), Some(_)) => return cursor.unsupported("DROP COLUMN", "leave the column out where it is read"),
        (Some("alter"), Some(_)) => "ALTER COLUMN",
        (Some("set"), Some("schema")) => {
            return cursor.unsupported("SET SCHEMA", "streams and tables live in schema \"public\"");
        }
        (Some("owner"), Some("to")) => {
            return cursor.unsupported("OWNER TO", "every session may do everything until there are roles");
        }
        (Some("attach" | "detach"), Some("partition")) => {
            return cursor.unsupported("ATTACH and DETACH PARTITION", "use SET (partitions = n)");
        }
        (
            Some("set" | "enable" | "disable" | "force" | "no" | "inherit" | "cluster" | "replica" | "validate"),
            Some(_),
        ) => {
            return cursor.unsupported("this form of ALTER", "use ADD COLUMN, RENAME or SET (option = value)");
        }
        _ => return cursor.unexpected(),
    };
    cursor.unsupported(what, COPY)
}
