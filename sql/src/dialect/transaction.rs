//! `BEGIN`, `COMMIT`, `ROLLBACK` and savepoints.
//!
//! Leaves out what they do (engine). A crash does nothing to it.

use super::ast::{Chain, Statement, TransactionAccess, TransactionModes};
use super::cursor::Cursor;
use super::group;
use crate::error::SqlError;
use sqlparser::tokenizer::Token;

/// Any statement of transactions.
pub(super) fn transaction(cursor: &mut Cursor<'_>) -> Result<Statement, SqlError> {
    let word = cursor.word().unwrap_or("");
    let place = cursor.clone();
    cursor.at += 1;
    match word {
        "begin" => {
            let _ = noise(cursor);
            modes(cursor).map(Statement::Begin)
        }
        "start" => {
            cursor.expect(&["transaction"])?;
            modes(cursor).map(Statement::Begin)
        }
        "commit" if cursor.eat(&["offsets"]) => group::commit(cursor),
        "commit" | "rollback" if cursor.is(&["prepared"]) => Err(place.unsupported("two-phase commit", "use COMMIT")),
        "commit" | "end" => {
            let _ = noise(cursor);
            chain(cursor).map(Statement::Commit)
        }
        "rollback" | "abort" => {
            let _ = noise(cursor);
            if word == "rollback" && cursor.eat(&["to"]) {
                let _ = cursor.eat(&["savepoint"]);
                return cursor.ident().map(Statement::RollbackTo);
            }
            chain(cursor).map(Statement::Rollback)
        }
        "savepoint" => cursor.ident().map(Statement::Savepoint),
        _ => {
            let _ = cursor.eat(&["savepoint"]);
            cursor.ident().map(Statement::Release)
        }
    }
}

/// `WORK` or `TRANSACTION`, which change nothing.
fn noise(cursor: &mut Cursor<'_>) -> bool {
    cursor.eat(&["work"]) || cursor.eat(&["transaction"])
}

fn chain(cursor: &mut Cursor<'_>) -> Result<Chain, SqlError> {
    if cursor.eat(&["and", "chain"]) {
        return Ok(Chain::Yes);
    }
    let _ = cursor.eat(&["and", "no", "chain"]);
    Ok(Chain::No)
}

/// `ISOLATION LEVEL …`, `READ ONLY | WRITE`, `[NOT] DEFERRABLE`, with or without commas.
pub(super) fn modes(cursor: &mut Cursor<'_>) -> Result<TransactionModes, SqlError> {
    let mut modes = TransactionModes::default();
    let mut is_first = true;
    while !cursor.is_end() {
        if !is_first {
            let _ = cursor.eat_token(&Token::Comma);
        }
        is_first = false;
        if cursor.eat(&["read", "only"]) {
            modes.access = Some(TransactionAccess::ReadOnly);
        } else if cursor.eat(&["read", "write"]) {
            modes.access = Some(TransactionAccess::ReadWrite);
        } else if cursor.eat(&["isolation", "level"]) {
            isolation(cursor)?;
        } else if cursor.is(&["deferrable"]) {
            return Err(cursor.unsupported("DEFERRABLE", "leave it out: readers never wait for writers"));
        } else if !cursor.eat(&["not", "deferrable"]) {
            return Err(cursor.unexpected());
        }
    }
    Ok(modes)
}

/// Read committed is the one level there is; read uncommitted is the same, as in PostgreSQL.
fn isolation(cursor: &mut Cursor<'_>) -> Result<(), SqlError> {
    if cursor.eat(&["read", "committed"]) || cursor.eat(&["read", "uncommitted"]) {
        return Ok(());
    }
    let what = match cursor.word() {
        Some("serializable") => "isolation level SERIALIZABLE",
        Some("repeatable") if cursor.is(&["repeatable", "read"]) => "isolation level REPEATABLE READ",
        _ => return Err(cursor.unexpected()),
    };
    Err(cursor.unsupported(what, "use READ COMMITTED"))
}
