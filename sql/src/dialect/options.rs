//! `WITH (name = value, …)`.
//!
//! Leaves out what the options mean (`bind`). Called by statements that take options; a crash does nothing to it.

use super::ast::{OptionValue, WithOption, WithOptions};
use super::cursor::Cursor;
use crate::error::SqlError;
use millstream_catalog::model::SqlState;
use sqlparser::tokenizer::Token;

/// Why a continuous query is in no consumer group.
pub(crate) const GROUP_HINT: &str =
    "it is an option of SELECT … EMIT CHANGES: a continuous query keeps its own position, and reads every partition";

/// Whether an option of this name is one of consumer groups only.
pub(super) fn is_of_group(name: &str) -> bool {
    matches!(name, "group" | "auto_commit" | "auto_commit_interval" | "mode")
}

/// Reads `WITH (…)` if it is next, and nothing otherwise.
pub(super) fn with_options(cursor: &mut Cursor<'_>) -> Result<WithOptions, SqlError> {
    if !cursor.is(&["with"]) || cursor.peek_at(1) != Some(&Token::LParen) {
        return Ok(WithOptions::default());
    }
    cursor.at += 1;
    list(cursor)
}

/// Reads `(name = value, …)`.
pub(super) fn list(cursor: &mut Cursor<'_>) -> Result<WithOptions, SqlError> {
    let mut options: Vec<WithOption> = Vec::new();
    for option in cursor.parens(option)? {
        if options.iter().any(|other| other.name == option.name) {
            let message = format!("parameter \"{}\" specified more than once", option.name);
            return Err(SqlError::syntax(message).at(option.position));
        }
        options.push(option);
    }
    Ok(WithOptions(options))
}

fn option(cursor: &mut Cursor<'_>) -> Result<WithOption, SqlError> {
    let position = cursor.position();
    let name = match cursor.peek() {
        Some(Token::Word(word)) => word.value.clone(),
        Some(Token::SingleQuotedString(text)) => text.clone(),
        _ => return Err(cursor.unexpected()),
    };
    let mut name = name.to_ascii_lowercase();
    cursor.at += 1;
    while cursor.eat_token(&Token::Period) {
        name = format!("{name}.{}", cursor.ident()?);
    }
    cursor.expect_token(&Token::Eq)?;
    let value_position = cursor.position();
    let value = value(cursor)?;
    Ok(WithOption { name: name.replace('.', "_"), value, position, value_position })
}

/// A literal.
pub(super) fn value(cursor: &mut Cursor<'_>) -> Result<OptionValue, SqlError> {
    match cursor.peek() {
        Some(Token::SingleQuotedString(text)) => {
            cursor.at += 1;
            Ok(OptionValue::Text(text.clone()))
        }
        Some(Token::Word(word)) => {
            cursor.at += 1;
            Ok(OptionValue::Word(word.value.clone()))
        }
        Some(Token::Placeholder(_)) => {
            Err(SqlError::new(SqlState::FeatureNotSupported, "parameters are not supported in options")
                .hint("write the value")
                .at(cursor.position()))
        }
        _ => cursor.number().map(OptionValue::Number),
    }
}
