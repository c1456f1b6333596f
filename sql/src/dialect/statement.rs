//! Which statement a text is, and its parts up to the query or expression that sqlparser parses.
//!
//! Called by `dialect::parse`; a crash does nothing to it.

use super::ast::{Parsed, Select, Statement, WithOptions};
use crate::error::SqlError;
use sqlparser::ast;
use sqlparser::dialect::PostgreSqlDialect;
use sqlparser::parser::Parser;

/// Parses every statement of `text`.
pub(super) fn parse_text(text: &str) -> Result<Vec<Parsed>, SqlError> {
    let statements =
        Parser::parse_sql(&PostgreSqlDialect {}, text).map_err(|error| SqlError::syntax(error.to_string()))?;
    statements
        .into_iter()
        .map(|statement| match statement {
            ast::Statement::Query(query) => {
                let select = Select { query, window: None, emit: None, options: WithOptions::default(), limit: None };
                Ok(Parsed { statement: Statement::Select(Box::new(select)), text: text.to_owned(), start: 0 })
            }
            other => Err(SqlError::unsupported(format!("statement \"{other}\""), "use SELECT")),
        })
        .collect()
}
