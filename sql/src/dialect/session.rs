//! `SET`, `SHOW`, `RESET` and `DISCARD`.
//!
//! Leaves out which settings there are (engine). A crash does nothing to it.

use super::ast::{Discard, Set, SetScope, SetValue, Show, Statement};
use super::cursor::Cursor;
use super::{duration, transaction};
use crate::error::SqlError;
use millstream_catalog::model::Span;
use sqlparser::tokenizer::Token;

/// `SET …`.
pub(super) fn set(cursor: &mut Cursor<'_>) -> Result<Statement, SqlError> {
    cursor.expect(&["set"])?;
    if cursor.eat(&["session", "characteristics", "as", "transaction"]) {
        return transaction::modes(cursor).map(Statement::SetSessionCharacteristics);
    }
    let mut scope = SetScope::Session;
    if !matches!(cursor.peek_at(1), Some(Token::Eq)) && cursor.word_at(1) != Some("to") {
        if cursor.eat(&["local"]) {
            scope = SetScope::Local;
        } else if !cursor.is(&["session", "authorization"]) {
            let _ = cursor.eat(&["session"]);
        }
    }
    refuse_special(cursor)?;
    if cursor.eat(&["transaction"]) {
        if cursor.is(&["snapshot"]) {
            return Err(cursor.unsupported("SET TRANSACTION SNAPSHOT", "use READ COMMITTED"));
        }
        return transaction::modes(cursor).map(Statement::SetTransaction);
    }
    let position = cursor.position();
    let (name, value) = if cursor.eat(&["time", "zone"]) {
        ("timezone".to_owned(), time_zone(cursor)?)
    } else if cursor.eat(&["names"]) {
        ("client_encoding".to_owned(), if cursor.is_end() { SetValue::Default } else { values(cursor)? })
    } else if cursor.eat(&["schema"]) {
        ("search_path".to_owned(), SetValue::Values(vec![cursor.string()?]))
    } else {
        let name = name(cursor)?;
        if cursor.is(&["from", "current"]) {
            return Err(cursor.unsupported("SET … FROM CURRENT", "write the value"));
        }
        if !cursor.eat(&["to"]) {
            cursor.expect_token(&Token::Eq)?;
        }
        (name, values(cursor)?)
    };
    Ok(Statement::Set(Set { scope, name, value, position }))
}

fn refuse_special(cursor: &Cursor<'_>) -> Result<(), SqlError> {
    let assigned = matches!(cursor.peek_at(1), Some(Token::Eq)) || cursor.word_at(1) == Some("to");
    if assigned {
        return Ok(());
    }
    let what = match cursor.word() {
        Some("role") => "SET ROLE",
        Some("session") if cursor.is(&["session", "authorization"]) => "SET SESSION AUTHORIZATION",
        Some("constraints") => "SET CONSTRAINTS",
        Some("xml") => "SET XML OPTION",
        _ => return Ok(()),
    };
    Err(cursor.unsupported(what, "leave it out"))
}

/// A setting's name: words with dots, or ksqlDB's in quotes, whose dots become underscores.
fn name(cursor: &mut Cursor<'_>) -> Result<String, SqlError> {
    if let Some(Token::SingleQuotedString(text)) = cursor.peek() {
        cursor.at += 1;
        return Ok(text.trim_start_matches("ksql.streams.").to_ascii_lowercase().replace('.', "_"));
    }
    let mut name = cursor.ident()?.name.as_str().to_ascii_lowercase();
    while cursor.eat_token(&Token::Period) {
        name = format!("{name}.{}", cursor.ident()?);
    }
    Ok(name)
}

/// `DEFAULT`, or one or more values.
fn values(cursor: &mut Cursor<'_>) -> Result<SetValue, SqlError> {
    if cursor.eat(&["default"]) {
        return Ok(SetValue::Default);
    }
    cursor.list(value).map(SetValue::Values)
}

fn value(cursor: &mut Cursor<'_>) -> Result<String, SqlError> {
    match cursor.peek() {
        Some(Token::SingleQuotedString(text)) => {
            cursor.at += 1;
            Ok(text.clone())
        }
        Some(Token::Word(word)) if word.quote_style.is_some() || is_value(&word.value) => {
            cursor.at += 1;
            Ok(word.value.clone())
        }
        _ => cursor.number(),
    }
}

/// `on` and `true` are values although they are reserved.
fn is_value(word: &str) -> bool {
    matches!(word, "on" | "true" | "false") || !super::keywords::is_reserved(word)
}

/// `LOCAL`, `DEFAULT`, a name, hours east of UTC, or an interval.
fn time_zone(cursor: &mut Cursor<'_>) -> Result<SetValue, SqlError> {
    if cursor.eat(&["local"]) || cursor.eat(&["default"]) {
        return Ok(SetValue::Default);
    }
    if !cursor.is(&["interval"]) {
        return value(cursor).map(|zone| SetValue::Values(vec![zone]));
    }
    let mut part = cursor.clone();
    let offset = duration::interval_literal(&mut part)?;
    cursor.at = part.at;
    let _ = cursor.eat(&["hour", "to", "minute"]) || cursor.eat(&["to", "minute"]);
    let minutes = offset.micros() / Span::from_secs(60).micros();
    let sign = if minutes < 0 { '-' } else { '+' };
    Ok(SetValue::Values(vec![format!("{sign}{:02}:{:02}", minutes.abs() / 60, minutes.abs() % 60)]))
}

/// `SHOW …`.
pub(super) fn show(cursor: &mut Cursor<'_>) -> Result<Statement, SqlError> {
    cursor.expect(&["show"])?;
    if cursor.eat(&["consumer", "groups"]) {
        return Ok(Statement::Show(Show::Groups));
    }
    if cursor.is(&["connectors"]) {
        return Err(cursor.unsupported("SHOW CONNECTORS", "use INSERT or COPY to bring events in"));
    }
    for (words, name) in [
        (["time", "zone"].as_slice(), "timezone"),
        (&["transaction", "isolation", "level"], "transaction_isolation"),
        (&["session", "authorization"], "session_authorization"),
    ] {
        if cursor.eat(words) {
            return Ok(Statement::Show(Show::Setting(name.to_owned())));
        }
    }
    let show = match cursor.word() {
        Some("streams") => Show::Streams,
        Some("tables") => Show::Tables,
        Some("topics") => Show::Topics,
        Some("views") => Show::Views,
        Some("queries") => Show::Queries,
        Some("functions") => Show::Functions,
        Some("nodes") => Show::Nodes,
        Some("all") => Show::All,
        _ => return name(cursor).map(|name| Statement::Show(Show::Setting(name))),
    };
    cursor.at += 1;
    Ok(Statement::Show(show))
}

/// `RESET name | ALL`.
pub(super) fn reset(cursor: &mut Cursor<'_>) -> Result<Statement, SqlError> {
    cursor.expect(&["reset"])?;
    if cursor.eat(&["all"]) {
        return Ok(Statement::Reset(None));
    }
    for (words, name) in
        [(["time", "zone"].as_slice(), "timezone"), (&["transaction", "isolation", "level"], "transaction_isolation")]
    {
        if cursor.eat(words) {
            return Ok(Statement::Reset(Some(name.to_owned())));
        }
    }
    if cursor.is(&["session", "authorization"]) {
        return Err(cursor.unsupported("RESET SESSION AUTHORIZATION", "leave it out"));
    }
    if cursor.is(&["role"]) {
        return Err(cursor.unsupported("RESET ROLE", "leave it out"));
    }
    name(cursor).map(|name| Statement::Reset(Some(name)))
}

/// `DISCARD ALL | PLANS | SEQUENCES | TEMP`.
pub(super) fn discard(cursor: &mut Cursor<'_>) -> Result<Statement, SqlError> {
    cursor.expect(&["discard"])?;
    let discard = match cursor.word() {
        Some("all") => Discard::All,
        Some("plans") => Discard::Plans,
        Some("sequences") => Discard::Sequences,
        Some("temp" | "temporary") => Discard::Temp,
        _ => return Err(cursor.unexpected()),
    };
    cursor.at += 1;
    Ok(Statement::Discard(discard))
}
