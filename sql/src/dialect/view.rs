//! `CREATE VIEW`, and what begins like it.
//!
//! Leaves out what the names in a view's SELECT mean (planner). A crash does nothing to it.

use super::ast::{CreateView, Replace, Statement};
use super::create;
use super::cursor::Cursor;
use super::render;
use crate::error::SqlError;

/// `CREATE [OR REPLACE] VIEW [IF NOT EXISTS] name [(columns)] AS SELECT …`, from `VIEW` on; the statement began at `start`.
pub(super) fn create(cursor: &mut Cursor<'_>, start: usize, replace: Replace) -> Result<Statement, SqlError> {
    cursor.expect(&["view"])?;
    let if_not_exists = create::if_not_exists(cursor, replace)?;
    let name = cursor.target()?;
    let columns = cursor.columns()?;
    if cursor.is(&["with"]) {
        return Err(cursor.unsupported("an option of a view", "leave it out: a view stores nothing"));
    }
    let sql = render::text(cursor.text, cursor.lexemes.get(start..).unwrap_or_default());
    for words in [&["with", "check", "option"][..], &["with", "cascaded", "check", "option"]] {
        let mut place = cursor.clone();
        place.at = cursor.lexemes.len().saturating_sub(words.len());
        if place.at > cursor.at && place.is(words) {
            return Err(place.unsupported("WITH CHECK OPTION", "leave it out: rows are not written through views"));
        }
    }
    let select = create::select_as(cursor)?;
    if let Some(emit) = &select.emit {
        let hint = "write EMIT where the view is read";
        return Err(SqlError::unsupported("EMIT in a view", hint).at(emit.position));
    }
    Ok(Statement::CreateView(Box::new(CreateView { name, if_not_exists, replace, columns, select, sql })))
}
