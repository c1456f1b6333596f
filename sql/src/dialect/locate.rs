//! The place of an error that was found without one.
//!
//! Types are settled after a statement's places are gone. What such an error is about often stands in the text only
//! once, and is there then; where it stands twice, no place is better than a wrong one. Leaves out errors that were
//! found with their place.

use super::ast::Parsed;
use super::lexer::{Lexeme, tokenize};
use crate::error::{Near, SqlError};
use sqlparser::tokenizer::Token;

/// Longer texts are not read a second time.
const TEXT_BYTES_MAX: usize = 64 << 10;

/// `error` with its place in `parsed`, if that is certain.
#[must_use]
pub fn locate(error: SqlError, parsed: &Parsed) -> SqlError {
    let (None, Some(near), true) = (error.position, &error.near, parsed.text.len() <= TEXT_BYTES_MAX) else {
        return error;
    };
    let Ok(lexemes) = tokenize(&parsed.text) else { return error };
    let mut found = lexemes.iter().enumerate().filter(|(_, lexeme)| is_near(lexeme, near));
    let (Some((index, _)), None) = (found.next(), found.next()) else { return error };
    let index = if matches!(**near, Near::Behind(_)) { index + 1 } else { index };
    match lexemes.get(index) {
        Some(lexeme) => {
            let position = parsed.start + lexeme.position();
            error.at(position)
        }
        None => error,
    }
}

fn is_near(lexeme: &Lexeme, near: &Near) -> bool {
    match (&lexeme.token.token, near) {
        (Token::Word(word), Near::Word(wanted) | Near::Behind(wanted)) => word.value.eq_ignore_ascii_case(wanted),
        (Token::SingleQuotedString(text), Near::Literal(wanted)) => text == wanted,
        (Token::Word(_) | Token::SingleQuotedString(_), _) => false,
        (sign, Near::Sign(wanted)) => sign.to_string() == *wanted,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use millstream_catalog::model::SqlState;

    fn position(text: &str, near: Near) -> Option<usize> {
        let parsed = crate::dialect::parse(text).unwrap().pop().unwrap();
        locate(SqlError::new(SqlState::UndefinedFunction, "x").near(near), &parsed).position
    }

    #[test]
    fn what_stands_once_is_found_and_what_stands_twice_is_not() {
        assert_eq!(position("SELECT 1; SELECT a + b FROM s", Near::Sign("+".to_owned())), Some(20));
        assert_eq!(position("SELECT a + b + c FROM s", Near::Sign("+".to_owned())), None);
        assert_eq!(position("SELECT '+', a + b FROM s", Near::Sign("+".to_owned())), Some(15));
        assert_eq!(position("SELECT UPPER(1)", Near::Word("upper".to_owned())), Some(8));
        assert_eq!(position("SELECT 'ä' || E'x\\n' FROM s", Near::Literal("x\n".to_owned())), Some(15));
        assert_eq!(position("SELECT a FROM s WHERE a", Near::Behind("where".to_owned())), Some(23));
        assert_eq!(position("SELECT 1", Near::Word("where".to_owned())), None);
    }

    #[test]
    fn a_place_that_is_known_stays() {
        let parsed = crate::dialect::parse("SELECT a + b").unwrap().pop().unwrap();
        let error = SqlError::new(SqlState::UndefinedFunction, "x").near(Near::Sign("+".to_owned())).at(3_usize);
        assert_eq!(locate(error, &parsed).position, Some(3));
    }
}
