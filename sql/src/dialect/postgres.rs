//! The dialect sqlparser parses queries and expressions with: its PostgreSQL, less what we do not have.
//!
//! Owns two guards besides: a reserved word is never taken for a name, and the work of one call is bounded
//! (sqlparser backtracks, and some nestings would take it time exponential in their depth). Used by
//! `cursor`; a crash does nothing to it.

use super::keywords::is_fully_reserved;
use sqlparser::ast::{Expr, Map, MapEntry};
use sqlparser::dialect::{Dialect, PostgreSqlDialect, Precedence};
use sqlparser::keywords::Keyword;
use sqlparser::parser::{Parser, ParserError};
use sqlparser::tokenizer::Token;
use std::any::TypeId;
use std::cell::Cell;

/// Expressions that may be begun for each token: enough for every honest statement.
const BEGINNINGS_PER_TOKEN: u64 = 64;
/// The same for the smallest statements.
const BEGINNINGS_MIN: u64 = 20_000;

/// The dialect of one parse.
#[derive(Debug)]
pub(super) struct Millstream {
    postgres: PostgreSqlDialect,
    /// Expressions that may still be begun.
    left: Cell<u64>,
}

impl Millstream {
    /// For a statement of so many tokens.
    pub(super) fn new(tokens: usize) -> Self {
        let left = BEGINNINGS_MIN.saturating_add(BEGINNINGS_PER_TOKEN.saturating_mul(tokens as u64));
        Self { postgres: PostgreSqlDialect {}, left: Cell::new(left) }
    }

    /// True once the bound is reached.
    pub(super) fn is_exhausted(&self) -> bool {
        self.left.get() == 0
    }
}

/// Reserved words that begin an expression.
fn begins_expression(word: &str) -> bool {
    matches!(
        word,
        "all"
            | "any"
            | "array"
            | "case"
            | "cast"
            | "current_catalog"
            | "current_date"
            | "current_role"
            | "current_time"
            | "current_timestamp"
            | "current_user"
            | "default"
            | "distinct"
            | "false"
            | "localtime"
            | "localtimestamp"
            | "not"
            | "null"
            | "session_user"
            | "some"
            | "true"
            | "user"
    )
}

impl Millstream {
    /// `(a := 1, b := 'x')` behind `STRUCT`.
    fn struct_literal(&self, parser: &mut Parser<'_>) -> Result<Expr, ParserError> {
        parser.expect_token(&Token::LParen)?;
        let values = parser.parse_comma_separated(|parser| {
            let name = parser.parse_identifier()?;
            parser.expect_token(&Token::Assignment)?;
            Ok(Expr::Named { expr: Box::new(parser.parse_expr()?), name })
        })?;
        parser.expect_token(&Token::RParen)?;
        Ok(Expr::Struct { values, fields: Vec::new() })
    }

    /// `('k' := 1, 'l' := 2)` behind `MAP`.
    fn map_literal(&self, parser: &mut Parser<'_>) -> Result<Expr, ParserError> {
        parser.expect_token(&Token::LParen)?;
        let entries = parser.parse_comma_separated(|parser| {
            // The sign has the precedence of a comparison.
            let key = Box::new(parser.parse_subexpr(self.prec_value(Precedence::Eq))?);
            parser.expect_token(&Token::Assignment)?;
            Ok(MapEntry { key, value: Box::new(parser.parse_expr()?) })
        })?;
        parser.expect_token(&Token::RParen)?;
        Ok(Expr::Map(Map { entries }))
    }
}

impl Dialect for Millstream {
    fn dialect(&self) -> TypeId {
        self.postgres.dialect()
    }

    fn identifier_quote_style(&self, identifier: &str) -> Option<char> {
        self.postgres.identifier_quote_style(identifier)
    }

    fn is_delimited_identifier_start(&self, ch: char) -> bool {
        self.postgres.is_delimited_identifier_start(ch)
    }

    fn is_identifier_start(&self, ch: char) -> bool {
        self.postgres.is_identifier_start(ch)
    }

    fn is_identifier_part(&self, ch: char) -> bool {
        self.postgres.is_identifier_part(ch)
    }

    fn is_custom_operator_part(&self, ch: char) -> bool {
        self.postgres.is_custom_operator_part(ch)
    }

    /// A word that failed as the beginning of `CASE`, `NOT` and the like is not tried again as a name.
    fn is_reserved_for_identifier(&self, keyword: Keyword) -> bool {
        self.postgres.is_reserved_for_identifier(keyword)
            || is_fully_reserved(&keyword.to_string().to_ascii_lowercase())
    }

    fn parse_prefix(&self, parser: &mut Parser<'_>) -> Option<Result<Expr, ParserError>> {
        let left = self.left.get();
        if left == 0 {
            return Some(Err(ParserError::RecursionLimitExceeded));
        }
        self.left.set(left - 1);
        let next = parser.peek_token_ref();
        match &next.token {
            // `INTERVAL` is a prefix for sqlparser; in PostgreSQL it is a name unless a string follows.
            Token::Word(word) if word.quote_style.is_none() && word.keyword == Keyword::INTERVAL => {
                let (ident, after) = (word.to_ident(next.span), &parser.peek_nth_token_ref(1).token);
                if matches!(after, Token::SingleQuotedString(_) | Token::LParen | Token::Period) {
                    return None;
                }
                parser.advance_token();
                Some(Ok(Expr::Identifier(ident)))
            }
            Token::Word(word)
                if word.quote_style.is_none() && matches!(word.keyword, Keyword::STRUCT | Keyword::MAP) =>
            {
                let (ident, keyword) = (word.to_ident(next.span), word.keyword);
                if parser.peek_nth_token_ref(1).token == Token::Period {
                    return None;
                }
                parser.advance_token();
                Some(match (parser.peek_token_ref().token == Token::LParen, keyword) {
                    (false, _) => Ok(Expr::Identifier(ident)),
                    (true, Keyword::STRUCT) => self.struct_literal(parser),
                    (true, _) => self.map_literal(parser),
                })
            }
            Token::Word(word)
                if word.quote_style.is_none() && is_fully_reserved(&word.value) && !begins_expression(&word.value) =>
            {
                Some(parser.expected_ref("an expression", next))
            }
            _ => None,
        }
    }

    /// The right side of `IS [NOT] DISTINCT FROM` ends where a looser operator begins; sqlparser would take in all that
    /// follows. It does not follow itself, as in PostgreSQL: copies of its left side would be quadratic, and deep.
    fn parse_infix(&self, parser: &mut Parser<'_>, left: &Expr, _: u8) -> Option<Result<Expr, ParserError>> {
        let found = parser.peek_token();
        let make: fn(Box<Expr>, Box<Expr>) -> Expr =
            if parser.parse_keywords(&[Keyword::IS, Keyword::DISTINCT, Keyword::FROM]) {
                Expr::IsDistinctFrom
            } else if parser.parse_keywords(&[Keyword::IS, Keyword::NOT, Keyword::DISTINCT, Keyword::FROM]) {
                Expr::IsNotDistinctFrom
            } else {
                return None;
            };
        if matches!(left, Expr::IsDistinctFrom(..) | Expr::IsNotDistinctFrom(..)) {
            return Some(parser.expected("end of expression", found));
        }
        let right = parser.parse_subexpr(self.prec_value(Precedence::Is));
        Some(right.map(|right| make(Box::new(left.clone()), Box::new(right))))
    }

    fn get_next_precedence(&self, parser: &Parser<'_>) -> Option<Result<u8, ParserError>> {
        self.postgres.get_next_precedence(parser)
    }

    fn prec_value(&self, precedence: Precedence) -> u8 {
        self.postgres.prec_value(precedence)
    }

    // Of types only: literals are read above.
    fn supports_struct_literal(&self) -> bool {
        true
    }
    fn supports_map_literal_with_angle_brackets(&self) -> bool {
        true
    }
    fn supports_unicode_string_literal(&self) -> bool {
        true
    }
    fn supports_filter_during_aggregation(&self) -> bool {
        true
    }
    fn supports_group_by_expr(&self) -> bool {
        true
    }
    fn allow_extract_custom(&self) -> bool {
        true
    }
    fn allow_extract_single_quotes(&self) -> bool {
        true
    }
    fn supports_bitwise_shift_operators(&self) -> bool {
        true
    }
    fn supports_empty_projections(&self) -> bool {
        true
    }
    fn supports_nested_comments(&self) -> bool {
        true
    }
    fn supports_string_escape_constant(&self) -> bool {
        true
    }
    fn supports_array_typedef_with_brackets(&self) -> bool {
        true
    }
    fn supports_notnull_operator(&self) -> bool {
        true
    }
    fn supports_interval_options(&self) -> bool {
        true
    }
    fn supports_comma_separated_trim(&self) -> bool {
        true
    }
}
