//! `COPY`, with PostgreSQL's options in both spellings.
//!
//! Owns the checks of the options against each other, in PostgreSQL's words. Leaves out the data. A crash
//! does nothing to it.

use super::ast::{Copy, CopyColumns, CopyDirection, CopyFormat, CopyHeader, CopyOptions, Position, Statement};
use super::cursor::Cursor;
use super::insert::sequence_number;
use super::{select, statement};
use crate::error::SqlError;
use millstream_catalog::model::{Sequence, SqlState};
use sqlparser::tokenizer::Token;

/// `COPY name [(columns)] FROM STDIN …`, `COPY name | (query) TO STDOUT …`.
pub(super) fn copy(cursor: &mut Cursor<'_>) -> Result<Statement, SqlError> {
    cursor.expect(&["copy"])?;
    let position = cursor.position();
    let is_binary = cursor.eat(&["binary"]);
    let direction = if cursor.is_token(&Token::LParen) && !is_binary {
        let query = query(cursor)?;
        cursor.expect(&["to"])?;
        stdout(cursor)?;
        CopyDirection::SelectToStdout(Box::new(query))
    } else {
        relation(cursor)?
    };
    let mut given = options(cursor)?;
    if is_binary {
        put(&mut given.format, CopyFormat::Binary, position)?;
    }
    if cursor.is(&["where"]) && matches!(direction, CopyDirection::FromStdin { .. }) {
        return Err(cursor.unsupported("COPY … WHERE", "filter the rows where they are read"));
    }
    let is_from = matches!(direction, CopyDirection::FromStdin { .. });
    if cursor.is(&["where"]) {
        return Err(cursor.unexpected());
    }
    let options = check(given, is_from)?;
    Ok(Statement::Copy(Box::new(Copy { direction, options })))
}

fn query(cursor: &mut Cursor<'_>) -> Result<super::ast::Select, SqlError> {
    cursor.expect_token(&Token::LParen)?;
    match cursor.word() {
        Some("insert" | "update" | "delete" | "merge") => {
            return Err(cursor.unsupported("COPY of a statement that writes", "use a SELECT"));
        }
        Some("select" | "with" | "values" | "table") => {}
        _ if cursor.is_token(&Token::LParen) => {}
        _ => return Err(cursor.unexpected()),
    }
    let end = cursor.find(|_| false);
    let mut part = cursor.part(end);
    let query = select::select_part(&mut part)?;
    cursor.expect_token(&Token::RParen)?;
    Ok(query)
}

fn relation(cursor: &mut Cursor<'_>) -> Result<CopyDirection, SqlError> {
    let place = cursor.clone();
    let name = cursor.qualified()?;
    let columns = cursor.columns()?;
    if cursor.eat(&["to"]) {
        stdout(cursor)?;
        return Ok(CopyDirection::TableToStdout { name, columns });
    }
    cursor.expect(&["from"])?;
    if !cursor.eat(&["stdin"]) {
        return Err(refuse_file(cursor));
    }
    let name = place.clone().target()?;
    Ok(CopyDirection::FromStdin { name, columns })
}

fn stdout(cursor: &mut Cursor<'_>) -> Result<(), SqlError> {
    if cursor.eat(&["stdout"]) { Ok(()) } else { Err(refuse_file(cursor)) }
}

fn refuse_file(cursor: &Cursor<'_>) -> SqlError {
    let message = match cursor.peek() {
        Some(Token::SingleQuotedString(_)) => "permission denied: COPY does not read or write files of the server",
        _ if cursor.is(&["program"]) => "permission denied: COPY does not run programs",
        _ => return cursor.unexpected(),
    };
    SqlError::new(SqlState::InsufficientPrivilege, message)
        .hint("use COPY … FROM STDIN or TO STDOUT; psql's \\copy command also works for anyone")
        .at(cursor.position())
}

/// How the names of PostgreSQL's other encodings begin.
const ENCODINGS: &[&str] = &[
    "abc",
    "alt",
    "big5",
    "euc",
    "gb18030",
    "gbk",
    "iso8859",
    "johab",
    "koi8",
    "latin",
    "mskanji",
    "muleinternal",
    "shiftjis",
    "shiftjis2004",
    "sjis",
    "sqlascii",
    "tcvn",
    "uhc",
    "vscii",
    "win",
    "windows",
];

/// The options as given, with where each stands.
#[derive(Default)]
struct Given {
    format: Option<(CopyFormat, Position)>,
    delimiter: Option<(String, Position)>,
    null: Option<(String, Position)>,
    header: Option<(CopyHeader, Position)>,
    quote: Option<(String, Position)>,
    escape: Option<(String, Position)>,
    force_quote: Option<(CopyColumns, Position)>,
    force_not_null: Option<(CopyColumns, Position)>,
    force_null: Option<(CopyColumns, Position)>,
    encoding: Option<((), Position)>,
    sequence: Option<(Sequence, Position)>,
}

fn put<T>(slot: &mut Option<(T, Position)>, value: T, position: Position) -> Result<(), SqlError> {
    if slot.replace((value, position)).is_some() {
        return Err(SqlError::syntax("conflicting or redundant options").at(position));
    }
    Ok(())
}

fn options(cursor: &mut Cursor<'_>) -> Result<Given, SqlError> {
    let mut given = Given::default();
    let _ = cursor.eat(&["with"]);
    if cursor.is_token(&Token::LParen) {
        cursor.parens(|cursor| option(cursor, &mut given))?;
    } else {
        while !cursor.is_end() && !cursor.is(&["where"]) {
            old_option(cursor, &mut given)?;
        }
    }
    Ok(given)
}

/// `name [value]` in parentheses.
fn option(cursor: &mut Cursor<'_>, given: &mut Given) -> Result<(), SqlError> {
    let position = cursor.position();
    let place = cursor.clone();
    let Some(name) = cursor.word() else { return Err(cursor.unexpected()) };
    cursor.at += 1;
    let takes_nothing = matches!(cursor.peek(), Some(Token::Comma | Token::RParen));
    if takes_nothing && matches!(name, "format" | "delimiter" | "null" | "quote" | "escape" | "encoding") {
        return Err(SqlError::syntax(format!("{name} requires a parameter")).at(position));
    }
    match name {
        "format" => {
            let format = format(cursor)?;
            put(&mut given.format, format, position)
        }
        "delimiter" => put(&mut given.delimiter, text(cursor)?, position),
        "null" => put(&mut given.null, text(cursor)?, position),
        "quote" => put(&mut given.quote, text(cursor)?, position),
        "escape" => put(&mut given.escape, text(cursor)?, position),
        "header" => {
            let header = header(cursor)?;
            put(&mut given.header, header, position)
        }
        "force_quote" => put(&mut given.force_quote, columns(cursor, name)?, position),
        "force_not_null" => put(&mut given.force_not_null, columns(cursor, name)?, position),
        "force_null" => put(&mut given.force_null, columns(cursor, name)?, position),
        "encoding" => {
            encoding(cursor)?;
            put(&mut given.encoding, (), position)
        }
        "freeze" => Err(place.unsupported("FREEZE", "leave it out")),
        "sequence" => {
            cursor.eat_token(&Token::Eq);
            let number = sequence_number(cursor)?;
            put(&mut given.sequence, number, position)
        }
        "group" => {
            let hint = "write COPY (SELECT … EMIT CHANGES WITH (group = 'name')) TO STDOUT";
            Err(place.unsupported("a consumer group among the options of COPY", hint))
        }
        _ => Err(SqlError::syntax(format!("option \"{name}\" not recognized")).at(position)),
    }
}

/// The options before PostgreSQL 9, which psql users still type: `CSV HEADER DELIMITER AS ';'`.
fn old_option(cursor: &mut Cursor<'_>, given: &mut Given) -> Result<(), SqlError> {
    let position = cursor.position();
    let place = cursor.clone();
    let Some(name) = cursor.word() else { return Err(cursor.unexpected()) };
    cursor.at += 1;
    let value = |cursor: &mut Cursor<'_>| {
        let _ = cursor.eat(&["as"]);
        cursor.string()
    };
    match name {
        "csv" => put(&mut given.format, CopyFormat::Csv, position),
        "binary" => put(&mut given.format, CopyFormat::Binary, position),
        "freeze" => Err(place.unsupported("FREEZE", "leave it out")),
        "header" => put(&mut given.header, CopyHeader::Yes, position),
        "delimiter" => put(&mut given.delimiter, value(cursor)?, position),
        "delimiters" => put(&mut given.delimiter, value(cursor)?, position),
        "using" if cursor.eat(&["delimiters"]) => put(&mut given.delimiter, value(cursor)?, position),
        "null" => put(&mut given.null, value(cursor)?, position),
        "quote" => put(&mut given.quote, value(cursor)?, position),
        "escape" => put(&mut given.escape, value(cursor)?, position),
        "encoding" => {
            encoding(cursor)?;
            put(&mut given.encoding, (), position)
        }
        "force" if cursor.eat(&["quote"]) => put(&mut given.force_quote, bare_columns(cursor)?, position),
        "force" if cursor.eat(&["not", "null"]) => put(&mut given.force_not_null, bare_columns(cursor)?, position),
        "force" if cursor.eat(&["null"]) => put(&mut given.force_null, bare_columns(cursor)?, position),
        _ => Err(place.unexpected()),
    }
}

fn format(cursor: &mut Cursor<'_>) -> Result<CopyFormat, SqlError> {
    let place = cursor.clone();
    let name = text(cursor)?;
    match name.as_str() {
        "text" => Ok(CopyFormat::Text),
        "csv" => Ok(CopyFormat::Csv),
        "json" => Ok(CopyFormat::Json),
        "binary" => Ok(CopyFormat::Binary),
        "arrow" => Ok(CopyFormat::Arrow),
        _ => Err(SqlError::new(SqlState::InvalidParameterValue, format!("COPY format \"{name}\" not recognized"))
            .hint("the formats are text, csv, binary, json and arrow")
            .at(place.position())),
    }
}

fn header(cursor: &mut Cursor<'_>) -> Result<CopyHeader, SqlError> {
    if cursor.eat(&["match"]) {
        return Ok(CopyHeader::Match);
    }
    match cursor.peek() {
        Some(Token::Comma | Token::RParen) | None => Ok(CopyHeader::Yes),
        _ => {
            let position = cursor.position();
            let refused = |_| SqlError::syntax("header requires a Boolean value or \"match\"").at(position);
            Ok(if statement::boolean(cursor).map_err(refused)? { CopyHeader::Yes } else { CopyHeader::No })
        }
    }
}

fn encoding(cursor: &mut Cursor<'_>) -> Result<(), SqlError> {
    let place = cursor.clone();
    let name = match cursor.peek() {
        Some(Token::Number(..)) => String::new(),
        _ => text(cursor)?,
    };
    let plain = name.to_ascii_lowercase().replace(['-', '_', ' '], "");
    match plain.as_str() {
        "utf8" | "unicode" => Ok(()),
        _ if ENCODINGS.iter().any(|known| plain.starts_with(known)) => {
            Err(place.unsupported(&format!("encoding \"{name}\""), "send UTF-8"))
        }
        _ => Err(invalid("argument to option \"encoding\" must be a valid encoding name", place.position())),
    }
}

/// A string, or a bare word.
fn text(cursor: &mut Cursor<'_>) -> Result<String, SqlError> {
    match cursor.peek() {
        Some(Token::Word(word)) => {
            cursor.at += 1;
            Ok(word.value.clone())
        }
        _ => cursor.string(),
    }
}

fn columns(cursor: &mut Cursor<'_>, option: &str) -> Result<CopyColumns, SqlError> {
    if cursor.eat_token(&Token::Mul) {
        return Ok(CopyColumns::All);
    }
    if !cursor.is_token(&Token::LParen) {
        let message = format!("argument to option \"{option}\" must be a list of column names");
        return Err(invalid(message, cursor.position()));
    }
    cursor.parens(Cursor::ident).map(CopyColumns::Named)
}

fn bare_columns(cursor: &mut Cursor<'_>) -> Result<CopyColumns, SqlError> {
    if cursor.eat_token(&Token::Mul) {
        return Ok(CopyColumns::All);
    }
    cursor.list(Cursor::ident).map(CopyColumns::Named)
}

fn unsupported(message: impl Into<String>, position: Position) -> SqlError {
    SqlError::new(SqlState::FeatureNotSupported, message).at(position)
}

fn invalid(message: impl Into<String>, position: Position) -> SqlError {
    SqlError::new(SqlState::InvalidParameterValue, message).at(position)
}

fn one_byte(what: &str, text: &str, position: Position) -> Result<u8, SqlError> {
    match text.as_bytes() {
        [byte] => Ok(*byte),
        _ => Err(unsupported(format!("COPY {what} must be a single one-byte character"), position)),
    }
}

/// The same checks, in the same order and words, as PostgreSQL's `ProcessCopyOptions`.
fn check(given: Given, is_from: bool) -> Result<CopyOptions, SqlError> {
    let format = given.format.map_or(CopyFormat::Text, |(format, _)| format);
    let mut options = CopyOptions::of(format);
    let is_lines = matches!(format, CopyFormat::Text | CopyFormat::Csv);
    only_in(&given, format)?;
    // Where the signs stand that must differ from one another.
    let place = |first: &Option<(String, Position)>, other: &Option<(String, Position)>| {
        first.as_ref().or(other.as_ref()).map_or(Position::UNKNOWN, |(_, position)| *position)
    };
    let (delimited, null) = (place(&given.quote, &given.delimiter), place(&given.null, &given.delimiter));
    if let Some((text, position)) = &given.delimiter {
        options.delimiter = one_byte("delimiter", text, *position)?;
        if matches!(options.delimiter, b'\n' | b'\r') {
            return Err(invalid("COPY delimiter cannot be newline or carriage return", *position));
        }
        if format == CopyFormat::Text && b"\\.abcdefghijklmnopqrstuvwxyz0123456789".contains(&options.delimiter) {
            return Err(invalid(format!("COPY delimiter cannot be \"{text}\""), *position));
        }
    }
    if let Some((text, position)) = given.null {
        if text.contains(['\n', '\r']) {
            return Err(invalid("COPY null representation cannot use newline or carriage return", position));
        }
        options.null = text;
    }
    if let Some((text, position)) = &given.quote {
        options.quote = one_byte("quote", text, *position)?;
        options.escape = options.quote;
    }
    if format == CopyFormat::Csv && options.quote == options.delimiter {
        return Err(invalid("COPY delimiter and quote must be different", delimited));
    }
    if let Some((text, position)) = &given.escape {
        options.escape = one_byte("escape", text, *position)?;
    }
    if let Some((header, position)) = given.header {
        if header == CopyHeader::Match && !is_from {
            return Err(unsupported("cannot use \"match\" with HEADER in COPY TO", position));
        }
        options.header = header;
    }
    if let Some((sequence, position)) = given.sequence {
        if !is_from {
            return Err(invalid("COPY sequence only available using COPY FROM", position));
        }
        options.sequence = Some(sequence);
    }
    directions(given.force_quote, given.force_not_null, given.force_null, is_from, &mut options)?;
    if is_lines && options.null.as_bytes().contains(&options.delimiter) {
        return Err(unsupported("COPY delimiter must not appear in the NULL specification", null));
    }
    if format == CopyFormat::Csv && options.null.as_bytes().contains(&options.quote) {
        return Err(unsupported("CSV quote character must not appear in the NULL specification", null));
    }
    Ok(options)
}

/// The format in PostgreSQL's messages.
fn word(format: CopyFormat) -> &'static str {
    match format {
        CopyFormat::Text => "TEXT",
        CopyFormat::Csv => "CSV",
        CopyFormat::Json => "JSON",
        CopyFormat::Binary => "BINARY",
        CopyFormat::Arrow => "ARROW",
    }
}

/// Options that one format has.
fn only_in(given: &Given, format: CopyFormat) -> Result<(), SqlError> {
    if matches!(format, CopyFormat::Json | CopyFormat::Binary | CopyFormat::Arrow) {
        let header = given.header.as_ref().filter(|(header, _)| *header != CopyHeader::No);
        let of_lines = [
            ("DELIMITER", SqlState::SyntaxError, given.delimiter.as_ref().map(|(_, position)| position)),
            ("NULL", SqlState::SyntaxError, given.null.as_ref().map(|(_, position)| position)),
            ("HEADER", SqlState::FeatureNotSupported, header.map(|(_, position)| position)),
        ];
        if let Some((what, sqlstate, Some(position))) = of_lines.into_iter().find(|(.., position)| position.is_some()) {
            let message = format!("cannot specify {what} in {} mode", word(format));
            return Err(SqlError::new(sqlstate, message).at(*position));
        }
    }
    let csv_only = [
        ("quote", given.quote.as_ref().map(|(_, position)| position)),
        ("escape", given.escape.as_ref().map(|(_, position)| position)),
        ("force quote", given.force_quote.as_ref().map(|(_, position)| position)),
        ("force not null", given.force_not_null.as_ref().map(|(_, position)| position)),
        ("force null", given.force_null.as_ref().map(|(_, position)| position)),
    ];
    if let Some((what, Some(position))) =
        csv_only.into_iter().find(|(_, position)| position.is_some() && format != CopyFormat::Csv)
    {
        return Err(unsupported(format!("COPY {what} available only in CSV mode"), *position));
    }
    Ok(())
}

type Columns = Option<(CopyColumns, Position)>;

fn directions(
    force_quote: Columns,
    force_not_null: Columns,
    force_null: Columns,
    is_from: bool,
    options: &mut CopyOptions,
) -> Result<(), SqlError> {
    if let Some((columns, position)) = force_quote {
        if is_from {
            return Err(unsupported("COPY force quote only available using COPY TO", position));
        }
        options.force_quote = columns;
    }
    for (what, given, slot) in [
        ("force not null", force_not_null, &mut options.force_not_null),
        ("force null", force_null, &mut options.force_null),
    ] {
        if let Some((columns, position)) = given {
            if !is_from {
                return Err(unsupported(format!("COPY {what} only available using COPY FROM"), position));
            }
            *slot = columns;
        }
    }
    Ok(())
}
