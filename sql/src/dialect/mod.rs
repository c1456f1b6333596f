//! Text to statements: tokens, streaming clauses cut out of them, then sqlparser for what SQL shares.
//!
//! Owns the grammar of DIALECT and PostgreSQL's words for what is wrong with a text. Leaves out names,
//! types and options (`bind`) and plans. Sessions call [`parse`]; a crash does nothing to it.

mod alter;
pub mod ast;
mod change;
mod copy;
mod create;
mod cursor;
mod cursors;
pub(crate) mod duration;
mod escapes;
mod flink;
mod group;
#[cfg(test)]
mod group_tests;
mod insert;
mod keywords;
mod lexer;
mod locate;
mod nesting;
pub(crate) mod options;
mod postgres;
mod refuse;
pub mod render;
mod select;
mod session;
mod statement;
#[cfg(test)]
mod tests;
mod tokens;
mod transaction;
mod vet;
mod view;
pub(crate) mod within;

pub use ast::*;
pub use locate::locate;

use crate::error::SqlError;

/// Parses a text of any number of statements separated by semicolons; an empty text gives none.
///
/// # Errors
/// `42601` with PostgreSQL's words and the position in characters of the whole text; `0A000` with a hint
/// for what is known but not supported; `54000` and `54001` for texts over the limits.
pub fn parse(text: &str) -> Result<Vec<Parsed>, SqlError> {
    statement::parse_text(text)
}
