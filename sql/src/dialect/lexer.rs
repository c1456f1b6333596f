//! PostgreSQL's lexical rules: text to sqlparser's tokens, without white space and comments.
//!
//! Source: PostgreSQL 15 documentation, 4.1, and `scan.l`. Every token's span is on line 1, columns in
//! characters of the whole text from 1. Unquoted words are folded to lower case; every form of string
//! becomes a plain one, its escapes resolved. Leaves out the grammar. Called by `parse`.

use super::escapes::unicode_escapes;
use super::tokens;
use crate::error::SqlError;
use millstream_catalog::model::{SqlState, limit};
use sqlparser::tokenizer::{Location, Span, Token, TokenWithSpan};
use std::ops::Range;

/// A token and where it stands.
#[derive(Debug, Clone)]
pub(super) struct Lexeme {
    /// The token, with its span in characters.
    pub(super) token: TokenWithSpan,
    /// The same in bytes of the text.
    pub(super) bytes: Range<usize>,
}

impl Lexeme {
    /// Characters from 1.
    pub(super) fn position(&self) -> usize {
        usize::try_from(self.token.span.start.column).unwrap_or(0)
    }
}

/// All tokens of `text`.
///
/// # Errors
/// `42601` for what is no token, `22025`, `22021` for wrong escapes, `54000` over the limits.
pub(super) fn tokenize(text: &str) -> Result<Vec<Lexeme>, SqlError> {
    if text.len() > limit::STATEMENT_BYTES_MAX {
        return Err(SqlError::new(SqlState::ProgramLimitExceeded, "statement is too long")
            .detail(format!("{} bytes; the limit is {} bytes", text.len(), limit::STATEMENT_BYTES_MAX))
            .hint("load large amounts of data with COPY"));
    }
    let mut lexer = Lexer { text, byte: 0, chars: 0 };
    let mut lexemes = Vec::new();
    while let Some(lexeme) = lexer.next()? {
        if lexemes.len() == limit::STATEMENT_TOKENS_MAX {
            return Err(SqlError::new(SqlState::ProgramLimitExceeded, "statement has too many words")
                .detail(format!("the limit is {} words, literals and signs", limit::STATEMENT_TOKENS_MAX))
                .hint("load large amounts of data with COPY")
                .at(lexeme.position()));
        }
        lexemes.push(lexeme);
    }
    Ok(lexemes)
}

struct Lexer<'a> {
    text: &'a str,
    /// Bytes consumed.
    byte: usize,
    /// Characters consumed.
    chars: usize,
}

impl Lexer<'_> {
    fn rest(&self) -> &str {
        self.text.get(self.byte..).unwrap_or("")
    }

    fn peek(&self) -> Option<char> {
        self.rest().chars().next()
    }

    fn peek_byte(&self, ahead: usize) -> u8 {
        self.text.as_bytes().get(self.byte + ahead).copied().unwrap_or(0)
    }

    fn bump(&mut self) -> Option<char> {
        let c = self.peek()?;
        self.byte += c.len_utf8();
        self.chars += 1;
        Some(c)
    }

    /// Moves over `bytes` bytes, which end on a character.
    fn skip(&mut self, bytes: usize) {
        let end = self.byte + bytes;
        self.chars += self.text.get(self.byte..end).map_or(0, |part| part.chars().count());
        self.byte = end;
    }

    fn skip_while(&mut self, mut wanted: impl FnMut(char) -> bool) {
        while self.peek().is_some_and(&mut wanted) {
            self.bump();
        }
    }

    /// `message at or near "…"`, from byte `start` to what was consumed, at character `chars`.
    fn error(&self, message: &str, start: usize, chars: usize) -> SqlError {
        let near: String = self.text.get(start..self.byte).unwrap_or("").chars().take(80).collect();
        SqlError::syntax(format!("{message} at or near \"{near}\"")).at(chars + 1)
    }

    /// Passes white space and comments.
    fn space(&mut self) -> Result<(), SqlError> {
        loop {
            self.skip_while(is_space);
            if self.rest().starts_with("--") {
                self.skip_while(|c| c != '\n' && c != '\r');
            } else if self.rest().starts_with("/*") {
                self.comment()?;
            } else {
                return Ok(());
            }
        }
    }

    fn comment(&mut self) -> Result<(), SqlError> {
        let (start, chars) = (self.byte, self.chars);
        let mut depth = 0_usize;
        loop {
            match (self.peek_byte(0), self.peek_byte(1)) {
                (b'/', b'*') => {
                    depth += 1;
                    self.skip(2);
                }
                (b'*', b'/') => {
                    depth -= 1;
                    self.skip(2);
                    if depth == 0 {
                        return Ok(());
                    }
                }
                _ => {
                    if self.bump().is_none() {
                        return Err(self.error("unterminated /* comment", start, chars));
                    }
                }
            }
        }
    }

    fn next(&mut self) -> Result<Option<Lexeme>, SqlError> {
        self.space()?;
        let (start, chars) = (self.byte, self.chars);
        let Some(first) = self.peek() else { return Ok(None) };
        let token = match first {
            '\'' => self.string()?,
            '"' => self.quoted_identifier()?,
            '0'..='9' => self.number()?,
            '.' if self.peek_byte(1).is_ascii_digit() => self.number()?,
            '$' => self.dollar()?,
            '\0' => {
                return Err(SqlError::new(
                    SqlState::CharacterNotInRepertoire,
                    "invalid byte sequence for encoding \"UTF8\": 0x00",
                )
                .at(chars + 1));
            }
            c if is_identifier_start(c) => self.word()?,
            c if is_operator(c) => self.operator(),
            _ => self.punctuation()?,
        };
        let place = |chars: usize| Location::new(1, chars as u64 + 1);
        let span = Span::new(place(chars), place(self.chars));
        Ok(Some(Lexeme { token: TokenWithSpan::new(token, span), bytes: start..self.byte }))
    }

    fn punctuation(&mut self) -> Result<Token, SqlError> {
        let (start, chars) = (self.byte, self.chars);
        let c = self.bump();
        Ok(match c {
            Some('(') => Token::LParen,
            Some(')') => Token::RParen,
            Some('[') => Token::LBracket,
            Some(']') => Token::RBracket,
            Some(',') => Token::Comma,
            Some(';') => Token::SemiColon,
            Some('.') => Token::Period,
            Some(':') if self.peek() == Some(':') => {
                self.bump();
                Token::DoubleColon
            }
            Some(':') if self.peek() == Some('=') => {
                self.bump();
                Token::Assignment
            }
            Some(':') => Token::Colon,
            _ => return Err(self.error("syntax error", start, chars)),
        })
    }

    /// `'…'`, and the strings that follow it on later lines, which SQL takes as one.
    fn string(&mut self) -> Result<Token, SqlError> {
        let mut value = String::new();
        self.quoted('\'', "unterminated quoted string", &mut value)?;
        self.continuations(|lexer| lexer.quoted('\'', "unterminated quoted string", &mut value))?;
        Ok(Token::SingleQuotedString(value))
    }

    /// Runs `part` for each further `'…'` that only white space with a line break separates from the last.
    fn continuations(&mut self, mut part: impl FnMut(&mut Self) -> Result<(), SqlError>) -> Result<(), SqlError> {
        loop {
            let (byte, chars) = (self.byte, self.chars);
            self.space()?;
            let between = self.text.get(byte..self.byte).unwrap_or("");
            if self.peek() != Some('\'') || !between.contains(['\n', '\r']) || between.contains("/*") {
                (self.byte, self.chars) = (byte, chars);
                return Ok(());
            }
            part(self)?;
        }
    }

    /// A quoted text in which the doubled quote stands for itself; the opening quote is next.
    fn quoted(&mut self, quote: char, unterminated: &str, value: &mut String) -> Result<(), SqlError> {
        let (start, chars) = (self.byte, self.chars);
        self.bump();
        loop {
            match self.bump() {
                None => return Err(self.error(unterminated, start, chars)),
                Some('\0') => return Err(nul(self.chars)),
                Some(c) if c == quote => {
                    if self.peek() != Some(quote) {
                        return Ok(());
                    }
                    self.bump();
                    value.push(c);
                }
                Some(c) => value.push(c),
            }
        }
    }

    fn quoted_identifier(&mut self) -> Result<Token, SqlError> {
        let (start, chars) = (self.byte, self.chars);
        let mut value = String::new();
        self.quoted('"', "unterminated quoted identifier", &mut value)?;
        self.checked_identifier(&value, start, chars)?;
        Ok(Token::make_word(&value, Some('"')))
    }

    fn checked_identifier(&self, value: &str, start: usize, chars: usize) -> Result<(), SqlError> {
        if value.is_empty() {
            return Err(self.error("zero-length delimited identifier", start, chars));
        }
        if value.chars().any(char::is_control) {
            return Err(SqlError::new(SqlState::InvalidName, "identifier has a control character").at(chars + 1));
        }
        Ok(())
    }

    fn number(&mut self) -> Result<Token, SqlError> {
        let (start, chars) = (self.byte, self.chars);
        let digits = |lexer: &mut Self| lexer.skip_while(|c| c.is_ascii_digit());
        digits(self);
        if self.peek() == Some('.') && self.peek_byte(1) != b'.' {
            self.bump();
            digits(self);
        }
        if matches!(self.peek(), Some('e' | 'E')) {
            let sign = usize::from(matches!(self.peek_byte(1), b'+' | b'-'));
            if self.peek_byte(1 + sign).is_ascii_digit() {
                self.skip(1 + sign);
                digits(self);
            }
        }
        let value = self.text.get(start..self.byte).unwrap_or("").to_owned();
        if self.peek().is_some_and(is_identifier_start) {
            self.skip_while(is_identifier_part);
            return Err(self.error("trailing junk after numeric literal", start, chars));
        }
        Ok(Token::Number(value, false))
    }

    /// `$1`, `$$…$$` or `$tag$…$tag$`.
    fn dollar(&mut self) -> Result<Token, SqlError> {
        let (start, chars) = (self.byte, self.chars);
        if self.peek_byte(1).is_ascii_digit() {
            self.bump();
            self.skip_while(|c| c.is_ascii_digit());
            let value = self.text.get(start..self.byte).unwrap_or("").to_owned();
            if self.peek().is_some_and(is_identifier_start) {
                self.skip_while(is_identifier_part);
                return Err(self.error("trailing junk after parameter", start, chars));
            }
            return Ok(Token::Placeholder(value));
        }
        self.bump();
        if self.peek().is_some_and(is_identifier_start) {
            self.skip_while(|c| c != '$' && is_identifier_part(c));
        }
        if self.peek() != Some('$') {
            return Err(self.error("syntax error", start, chars));
        }
        self.bump();
        let tag = self.text.get(start..self.byte).unwrap_or("");
        let Some(length) = self.rest().find(tag) else {
            self.skip(self.rest().len());
            return Err(self.error("unterminated dollar-quoted string", start, chars));
        };
        let value = self.rest().get(..length).unwrap_or("").to_owned();
        if value.contains('\0') {
            return Err(nul(chars + 1));
        }
        self.skip(length + tag.len());
        Ok(Token::SingleQuotedString(value))
    }

    /// An unquoted word, or a string with a letter before it.
    fn word(&mut self) -> Result<Token, SqlError> {
        let (start, chars) = (self.byte, self.chars);
        match (self.peek_byte(0).to_ascii_lowercase(), self.peek_byte(1), self.peek_byte(2)) {
            (b'e', b'\'', _) => {
                self.bump();
                return self.escape_string();
            }
            (b'n', b'\'', _) => {
                self.bump();
                return self.string();
            }
            (b'u', b'&', b'\'' | b'"') => {
                self.skip(2);
                return self.unicode(start, chars);
            }
            (b'b' | b'x', b'\'', _) => {
                return Err(SqlError::unsupported("a bit string", "write bytes as '\\x…'::bytea").at(chars + 1));
            }
            _ => {}
        }
        self.skip_while(is_identifier_part);
        let word = self.text.get(start..self.byte).unwrap_or("");
        if word.chars().any(char::is_control) {
            return Err(SqlError::new(SqlState::InvalidName, "identifier has a control character").at(chars + 1));
        }
        Ok(tokens::word(word))
    }

    /// `E'…'`, from its quote on.
    fn escape_string(&mut self) -> Result<Token, SqlError> {
        let position = self.chars;
        let mut bytes = Vec::new();
        self.escaped(&mut bytes)?;
        self.continuations(|lexer| lexer.escaped(&mut bytes))?;
        match String::from_utf8(bytes) {
            Ok(value) if !value.contains('\0') => Ok(Token::SingleQuotedString(value)),
            Ok(_) => Err(nul(position)),
            Err(_) => Err(SqlError::new(
                SqlState::CharacterNotInRepertoire,
                "invalid byte sequence for encoding \"UTF8\" in an escape string",
            )
            .at(position)),
        }
    }

    fn escaped(&mut self, bytes: &mut Vec<u8>) -> Result<(), SqlError> {
        let (start, chars) = (self.byte, self.chars);
        self.bump();
        loop {
            match self.bump() {
                None => return Err(self.error("unterminated quoted string", start, chars)),
                Some('\'') => {
                    if self.peek() != Some('\'') {
                        return Ok(());
                    }
                    self.bump();
                    bytes.push(b'\'');
                }
                Some('\\') => self.escape(bytes)?,
                Some(c) => push(bytes, c),
            }
        }
    }

    /// What follows a backslash in `E'…'`.
    fn escape(&mut self, bytes: &mut Vec<u8>) -> Result<(), SqlError> {
        let at = self.chars;
        let Some(c) = self.bump() else { return Ok(()) };
        match c {
            'b' => bytes.push(8),
            'f' => bytes.push(12),
            'n' => bytes.push(b'\n'),
            'r' => bytes.push(b'\r'),
            't' => bytes.push(b'\t'),
            '0'..='7' => {
                let more = self.digits(2, 8);
                let value = c.to_digit(8).unwrap_or(0) * 8_u32.pow(more.1) + more.0;
                bytes.push((value & 0xff) as u8);
            }
            'x' if self.peek().is_some_and(|c| c.is_ascii_hexdigit()) => {
                let (value, _) = self.digits(2, 16);
                bytes.push((value & 0xff) as u8);
            }
            'u' | 'U' => {
                let length = if c == 'u' { 4 } else { 8 };
                let c = self.code_point(length, at)?;
                push(bytes, c);
            }
            other => push(bytes, other),
        }
        Ok(())
    }

    /// Up to `most` digits of `radix`: their value and how many there were.
    fn digits(&mut self, most: u32, radix: u32) -> (u32, u32) {
        let (mut value, mut count) = (0_u32, 0);
        while count < most
            && let Some(digit) = self.peek().and_then(|c| c.to_digit(radix))
        {
            value = value.wrapping_mul(radix).wrapping_add(digit);
            count += 1;
            self.bump();
        }
        (value, count)
    }

    /// Exactly `length` hexadecimal digits, and a second half if they are the first of a surrogate pair.
    fn code_point(&mut self, length: u32, at: usize) -> Result<char, SqlError> {
        let invalid = || {
            SqlError::new(SqlState::InvalidEscapeSequence, "invalid Unicode escape")
                .hint("Unicode escapes are \\uXXXX or \\UXXXXXXXX")
                .at(at)
        };
        let (mut value, count) = self.digits(length, 16);
        if count != length {
            return Err(invalid());
        }
        if (0xd800..0xdc00).contains(&value) {
            let wide = matches!((self.peek_byte(0), self.peek_byte(1)), (b'\\', b'U'));
            if !wide && !matches!((self.peek_byte(0), self.peek_byte(1)), (b'\\', b'u')) {
                return Err(invalid());
            }
            self.skip(2);
            let (low, _) = self.digits(if wide { 8 } else { 4 }, 16);
            if !(0xdc00..0xe000).contains(&low) {
                return Err(invalid());
            }
            value = 0x10000 + ((value - 0xd800) << 10) + (low - 0xdc00);
        }
        char::from_u32(value).filter(|c| *c != '\0').ok_or_else(invalid)
    }

    /// `U&'…'` or `U&"…"`, from its quote on, with the backslash as the escape character.
    fn unicode(&mut self, start: usize, chars: usize) -> Result<Token, SqlError> {
        let quote = if self.peek() == Some('"') { '"' } else { '\'' };
        let mut raw = String::new();
        let unterminated = if quote == '"' { "unterminated quoted identifier" } else { "unterminated quoted string" };
        self.quoted(quote, unterminated, &mut raw)?;
        let value = unicode_escapes(&raw).ok_or_else(|| {
            SqlError::new(SqlState::SyntaxError, "invalid Unicode escape")
                .hint("Unicode escapes are \\XXXX or \\+XXXXXX")
                .at(chars + 1)
        })?;
        if quote == '\'' {
            return Ok(Token::SingleQuotedString(value));
        }
        self.checked_identifier(&value, start, chars)?;
        Ok(Token::make_word(&value, Some('"')))
    }

    /// The longest operator, as PostgreSQL takes it: it ends before a comment, and a trailing plus or minus
    /// belongs to it only when it has a character that no standard operator has.
    fn operator(&mut self) -> Token {
        let rest = self.rest();
        let mut end = rest.find(|c| !is_operator(c)).unwrap_or(rest.len());
        for comment in ["--", "/*"] {
            if let Some(at) = rest.get(..end).and_then(|run| run.find(comment)) {
                end = at;
            }
        }
        let mut run = rest.get(..end).unwrap_or("");
        if !run.contains(['~', '!', '@', '#', '%', '^', '&', '|', '`', '?']) {
            while run.len() > 1 && run.ends_with(['+', '-']) {
                run = run.get(..run.len() - 1).unwrap_or("");
            }
        }
        // Of STRUCT<a STRUCT<b STRUCT<c integer>>>: PostgreSQL has no operator of more of them.
        if run.len() > 2 && run.bytes().all(|byte| byte == b'>') {
            run = ">>";
        }
        let (token, length) = (tokens::operator(run), run.len());
        self.skip(length);
        token
    }
}

fn nul(chars: usize) -> SqlError {
    SqlError::new(SqlState::CharacterNotInRepertoire, "invalid byte sequence for encoding \"UTF8\": 0x00").at(chars)
}

fn push(bytes: &mut Vec<u8>, c: char) {
    bytes.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes());
}

fn is_space(c: char) -> bool {
    matches!(c, ' ' | '\t' | '\n' | '\r' | '\x0c' | '\x0b')
}

fn is_identifier_start(c: char) -> bool {
    c.is_ascii_alphabetic() || c == '_' || !c.is_ascii()
}

fn is_identifier_part(c: char) -> bool {
    is_identifier_start(c) || c.is_ascii_digit() || c == '$'
}

fn is_operator(c: char) -> bool {
    "+-*/<>=~!@#%^&|`?".contains(c)
}
