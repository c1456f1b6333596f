//! Canonical text of statements, for the catalog.
//!
//! The source's own tokens, with one space where there was any space or comment, and strings in plain quotes. Parsing it gives the same statement again. sqlparser's own
//! printing is not used: it loses quotes inside of strings. Called while parsing; a crash does nothing to it.

use super::ast::{CreateAs, CreateRelation, Select};
use super::lexer::Lexeme;
use sqlparser::tokenizer::Token;
use std::fmt::Write;

/// The canonical text of a query, streaming clauses included.
pub fn select(select: &Select) -> &str {
    &select.sql
}

/// The canonical text of a definition.
pub fn create_relation(create: &CreateRelation) -> &str {
    &create.sql
}

/// The canonical text of a definition by query.
pub fn create_as(create: &CreateAs) -> &str {
    &create.sql
}

/// A string literal.
pub fn string_literal(text: &str) -> String {
    format!("'{}'", text.replace('\'', "''"))
}

/// An identifier, quoted where it must be.
pub fn identifier(name: &str) -> String {
    let plain = |b: u8| b.is_ascii_lowercase() || b == b'_';
    let is_plain = name.bytes().next().is_some_and(plain)
        && name.bytes().all(|b| plain(b) || b.is_ascii_digit() || b == b'$')
        && !super::keywords::is_reserved(name);
    if is_plain { name.to_owned() } else { format!("\"{}\"", name.replace('"', "\"\"")) }
}

/// The canonical text of tokens of `source`.
pub(super) fn text(source: &str, lexemes: &[Lexeme]) -> String {
    let mut out = String::new();
    let mut end = None;
    for lexeme in lexemes {
        if end.is_some_and(|end| end != lexeme.bytes.start) {
            out.push(' ');
        }
        end = Some(lexeme.bytes.end);
        match &lexeme.token.token {
            Token::Word(word) if word.quote_style.is_some() => {
                // A word that Unicode escapes made needs the same quotes.
                let _ = write!(out, "\"{}\"", word.value.replace('"', "\"\""));
            }
            Token::SingleQuotedString(value) => out.push_str(&string_literal(value)),
            _ => out.push_str(source.get(lexeme.bytes.clone()).unwrap_or("")),
        }
    }
    out
}
