//! Reads the tokens of one statement from left to right.
//!
//! Owns PostgreSQL's words for an unexpected token, the reading of names and literals, and the hand-over of
//! parts to sqlparser. Leaves out the grammar. Used by every statement; a crash does nothing to it.

use super::ast::{Ident, Position, QualifiedName};
use super::keywords::is_reserved;
use super::lexer::Lexeme;
use super::postgres::Millstream;
use crate::error::SqlError;
use millstream_catalog::model::{Name, SqlState, limit};
use sqlparser::parser::{Parser, ParserError};
use sqlparser::tokenizer::{Token, TokenWithSpan};

/// A place among the tokens of one statement.
#[derive(Debug, Clone)]
pub(super) struct Cursor<'a> {
    /// The whole text.
    pub(super) text: &'a str,
    /// The tokens of the statement.
    pub(super) lexemes: &'a [Lexeme],
    /// The next one.
    pub(super) at: usize,
    /// The semicolon that ends it, in characters from 1; `None` at the end of the text.
    pub(super) semicolon: Option<usize>,
}

impl<'a> Cursor<'a> {
    /// The token `ahead` of the next.
    pub(super) fn peek_at(&self, ahead: usize) -> Option<&'a Token> {
        self.lexemes.get(self.at + ahead).map(|lexeme| &lexeme.token.token)
    }

    /// The next token.
    pub(super) fn peek(&self) -> Option<&'a Token> {
        self.peek_at(0)
    }

    /// True after the last token.
    pub(super) fn is_end(&self) -> bool {
        self.at >= self.lexemes.len()
    }

    /// Where the next token stands; the semicolon or nowhere at the end.
    pub(super) fn position(&self) -> Position {
        Position::new(self.lexemes.get(self.at).map_or(self.semicolon.unwrap_or(0), Lexeme::position))
    }

    /// The unquoted word `ahead`, in lower case.
    pub(super) fn word_at(&self, ahead: usize) -> Option<&'a str> {
        match self.peek_at(ahead) {
            Some(Token::Word(word)) if word.quote_style.is_none() => Some(&word.value),
            _ => None,
        }
    }

    /// The next token, if it is an unquoted word.
    pub(super) fn word(&self) -> Option<&'a str> {
        self.word_at(0)
    }

    /// True if the next tokens are these words.
    pub(super) fn is(&self, words: &[&str]) -> bool {
        words.iter().enumerate().all(|(i, word)| self.word_at(i) == Some(word))
    }

    /// Passes these words if they are next, all of them.
    pub(super) fn eat(&mut self, words: &[&str]) -> bool {
        let found = self.is(words);
        if found {
            self.at += words.len();
        }
        found
    }

    /// Passes these words.
    pub(super) fn expect(&mut self, words: &[&str]) -> Result<(), SqlError> {
        for word in words {
            if !self.eat(&[word]) {
                return Err(self.unexpected());
            }
        }
        Ok(())
    }

    /// True if the next token is this.
    pub(super) fn is_token(&self, token: &Token) -> bool {
        self.peek() == Some(token)
    }

    /// Passes this token if it is next.
    pub(super) fn eat_token(&mut self, token: &Token) -> bool {
        let found = self.is_token(token);
        self.at += usize::from(found);
        found
    }

    /// Passes this token.
    pub(super) fn expect_token(&mut self, token: &Token) -> Result<(), SqlError> {
        if self.eat_token(token) { Ok(()) } else { Err(self.unexpected()) }
    }

    /// Fails unless every token was read.
    pub(super) fn expect_end(&self) -> Result<(), SqlError> {
        if self.is_end() { Ok(()) } else { Err(self.unexpected()) }
    }

    /// `42601` at the next token.
    pub(super) fn unexpected(&self) -> SqlError {
        match (self.lexemes.get(self.at), self.semicolon) {
            (Some(lexeme), _) => {
                let near: String =
                    self.text.get(lexeme.bytes.clone()).unwrap_or("").chars().take(limit::NAME_BYTES_MAX).collect();
                SqlError::syntax(format!("syntax error at or near \"{near}\"")).at(lexeme.position())
            }
            (None, Some(position)) => SqlError::syntax("syntax error at or near \";\"").at(position),
            (None, None) => SqlError::syntax("syntax error at end of input").at(self.text.chars().count() + 1),
        }
    }

    /// `0A000` at the next token.
    pub(super) fn unsupported(&self, what: &str, hint: &str) -> SqlError {
        SqlError::unsupported(what, hint).at(self.position())
    }

    /// A name: a quoted identifier, or a word that is not reserved.
    pub(super) fn ident(&mut self) -> Result<Ident, SqlError> {
        match self.peek() {
            Some(Token::Word(word)) if word.quote_style.is_some() || !is_reserved(&word.value) => {
                let position = self.position();
                let name = Name::new(word.value.clone()).map_err(|error| SqlError::from(error).at(position))?;
                self.at += 1;
                Ok(Ident { name, position })
            }
            _ => Err(self.unexpected()),
        }
    }

    /// A name with an optional schema.
    pub(super) fn qualified(&mut self) -> Result<QualifiedName, SqlError> {
        let first = self.ident()?;
        if !self.eat_token(&Token::Period) {
            return Ok(QualifiedName { schema: None, name: first.name, position: first.position });
        }
        let second = self.ident()?;
        if self.is_token(&Token::Period) {
            return Err(SqlError::new(SqlState::FeatureNotSupported, "cross-database references are not implemented")
                .hint("write schema.name")
                .at(first.position));
        }
        Ok(QualifiedName { schema: Some(first.name), name: second.name, position: first.position })
    }

    /// The name of something users make: in `public`, or without a schema.
    pub(super) fn target(&mut self) -> Result<QualifiedName, SqlError> {
        let name = self.qualified()?;
        let position = name.position;
        match name.schema.as_ref().map(Name::as_str) {
            None | Some("public") => Ok(name),
            Some(system @ ("millstream" | "pg_catalog" | "information_schema")) => Err(SqlError::new(
                SqlState::InsufficientPrivilege,
                format!("permission denied: \"{system}\" is a system schema"),
            )
            .hint("streams and tables live in schema \"public\"")
            .at(position)),
            Some(other) => {
                Err(SqlError::new(SqlState::InvalidSchemaName, format!("schema \"{other}\" does not exist"))
                    .hint("streams and tables live in schema \"public\"")
                    .at(position))
            }
        }
    }

    /// `item, item, …`
    pub(super) fn list<T>(
        &mut self,
        mut item: impl FnMut(&mut Self) -> Result<T, SqlError>,
    ) -> Result<Vec<T>, SqlError> {
        let mut items = vec![item(self)?];
        while self.eat_token(&Token::Comma) {
            items.push(item(self)?);
        }
        Ok(items)
    }

    /// `(item, item, …)`
    pub(super) fn parens<T>(&mut self, item: impl FnMut(&mut Self) -> Result<T, SqlError>) -> Result<Vec<T>, SqlError> {
        self.expect_token(&Token::LParen)?;
        let items = self.list(item)?;
        self.expect_token(&Token::RParen)?;
        Ok(items)
    }

    /// `(name, …)` if a parenthesis is next.
    pub(super) fn columns(&mut self) -> Result<Option<Vec<Ident>>, SqlError> {
        if self.is_token(&Token::LParen) { self.parens(Self::ident).map(Some) } else { Ok(None) }
    }

    /// A string literal.
    pub(super) fn string(&mut self) -> Result<String, SqlError> {
        match self.peek() {
            Some(Token::SingleQuotedString(value)) => {
                self.at += 1;
                Ok(value.clone())
            }
            _ => Err(self.unexpected()),
        }
    }

    /// `$n`, if it is next: its index, from 0.
    pub(super) fn param(&mut self) -> Result<Option<usize>, SqlError> {
        let Some(Token::Placeholder(name)) = self.peek() else { return Ok(None) };
        let number = name.strip_prefix('$').and_then(|number| number.parse::<usize>().ok());
        let number = number.filter(|number| (1..=limit::PARAMETERS_MAX).contains(number));
        let number = number.ok_or_else(|| self.unexpected())?;
        self.at += 1;
        Ok(Some(number - 1))
    }

    /// A number with an optional sign, as written.
    pub(super) fn number(&mut self) -> Result<String, SqlError> {
        let start = self.at;
        let sign = if self.eat_token(&Token::Minus) { "-" } else { "" };
        if sign.is_empty() {
            self.eat_token(&Token::Plus);
        }
        match self.peek() {
            Some(Token::Number(value, _)) => {
                self.at += 1;
                Ok(format!("{sign}{value}"))
            }
            _ => {
                self.at = start;
                Err(self.unexpected())
            }
        }
    }

    /// The index of the first token from the next on, at the same level of brackets, that `stop` accepts; an
    /// unmatched closing bracket stops too.
    pub(super) fn find(&self, stop: impl Fn(&Token) -> bool) -> usize {
        let mut depth = 0_usize;
        for (i, lexeme) in self.lexemes.iter().enumerate().skip(self.at) {
            match &lexeme.token.token {
                token if depth == 0 && stop(token) => return i,
                Token::LParen | Token::LBracket => depth += 1,
                Token::RParen | Token::RBracket if depth == 0 => return i,
                Token::RParen | Token::RBracket => depth -= 1,
                _ => {}
            }
        }
        self.lexemes.len()
    }

    /// A cursor over the tokens from the next up to index `end`; this one moves there.
    pub(super) fn part(&mut self, end: usize) -> Self {
        let mut part = self.clone();
        part.lexemes = self.lexemes.get(..end).unwrap_or(self.lexemes);
        if end < self.lexemes.len() {
            part.semicolon = None;
        }
        self.at = end.max(self.at);
        part
    }

    /// Lets sqlparser read from the next token on, up to index `end`, and moves behind what it read.
    pub(super) fn with_parser<T>(
        &mut self,
        end: usize,
        read: impl FnOnce(&mut Parser<'_>) -> Result<T, ParserError>,
    ) -> Result<T, SqlError> {
        let part = self.lexemes.get(self.at..end).unwrap_or_default();
        let tokens: Vec<TokenWithSpan> = part.iter().map(|lexeme| lexeme.token.clone()).collect();
        let (result, consumed) = self.run_parser(tokens, part, read)?;
        self.at += consumed;
        Ok(result)
    }

    /// Lets sqlparser read `tokens`, which come from `part`; also says how many tokens of `part` it passed.
    pub(super) fn run_parser<T>(
        &self,
        tokens: Vec<TokenWithSpan>,
        part: &[Lexeme],
        read: impl FnOnce(&mut Parser<'_>) -> Result<T, ParserError>,
    ) -> Result<(T, usize), SqlError> {
        let dialect = Millstream::new(tokens.len());
        let mut parser = Parser::new(&dialect)
            .with_recursion_limit(limit::EXPRESSION_DEPTH_MAX * 4)
            .with_tokens_with_locations(tokens);
        let result = read(&mut parser);
        let next = parser.peek_token_ref();
        let next = usize::try_from(next.span.start.column).unwrap_or(0);
        let passed = if next == 0 { part.len() } else { part.partition_point(|lexeme| lexeme.position() < next) };
        match result {
            Ok(value) => Ok((value, passed)),
            Err(error) => Err(self.parser_error(error, part, passed, &dialect)),
        }
    }

    fn parser_error(&self, error: ParserError, part: &[Lexeme], passed: usize, dialect: &Millstream) -> SqlError {
        if dialect.is_exhausted() || matches!(error, ParserError::RecursionLimitExceeded) {
            return SqlError::new(SqlState::StatementTooComplex, "stack depth limit exceeded")
                .hint("simplify the statement");
        }
        let message = match error {
            ParserError::TokenizerError(message) | ParserError::ParserError(message) => message,
            ParserError::RecursionLimitExceeded => String::new(),
        };
        let reported = message.rsplit_once(", Column: ").and_then(|(_, column)| column.parse::<usize>().ok());
        let position = match reported {
            Some(position) => Some(position),
            None if message.contains("found: EOF") => None,
            None => part.get(passed).map(Lexeme::position),
        };
        let mut place = self.clone();
        place.at = match (position, part.last()) {
            (Some(position), _) => self.lexemes.partition_point(|lexeme| lexeme.position() < position),
            (None, Some(last)) => self.lexemes.partition_point(|lexeme| lexeme.position() <= last.position()),
            (None, None) => self.at,
        };
        place.unexpected()
    }
}
