//! Backslash commands: what a line that begins with `\` asks for.
//!
//! Owns their names, arguments and help. Leaves out doing them (`run`).

use crate::cli::Format;
use std::path::PathBuf;

/// What `\d` lists.
const LISTED: &str = "SELECT name, kind, partitions, events FROM millstream.topics \
    UNION ALL SELECT name, kind, NULL, NULL FROM millstream.views WHERE kind = 'view' ORDER BY name;";

/// A backslash command.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Command {
    /// `\q`
    Quit,
    /// `\?`
    Help,
    /// `\x`
    Vertical,
    /// `\timing`
    Timing,
    /// `\format name`
    Format(Format),
    /// `\i file`
    Include(PathBuf),
    /// `\o [file]`
    Output(Option<PathBuf>),
    /// `\copy table [(columns)] from 'file' [options]`: the statement to send, and the file
    CopyFrom { statement: String, file: PathBuf },
    /// `\copy {table [(columns)] | (query)} to 'file' [options]`: likewise
    CopyTo { statement: String, file: PathBuf },
    /// A statement that stands behind a command.
    Sql(String),
}

/// The text of `\?`.
pub(crate) const HELP: &str = "\
Statements end with a semicolon. Ctrl-C cancels what runs, Ctrl-D leaves.

  \\d            streams and tables
  \\d NAME       columns and properties of a stream or table
  \\dt           tables
  \\dv           views
  \\l            databases
  \\x            one line per column, on and off
  \\format NAME  table, vertical, csv, json, ndjson or markdown
  \\timing       show how long statements take, on and off
  \\i FILE       run the statements in a file
  \\o [FILE]     send rows to a file, or back to the terminal
  \\copy TABLE [(COLUMNS)] FROM 'FILE' [WITH (…)]
                load a file of this machine
  \\copy {TABLE [(COLUMNS)] | (QUERY)} TO 'FILE' [WITH (…)]
                write rows to a file of this machine
  \\q            leave
  \\?            this help
";

/// What a line that begins with a backslash means.
///
/// # Errors
/// One line for the user.
pub(crate) fn parse(line: &str) -> Result<Command, String> {
    let line = line.trim().trim_end_matches(';').trim_end();
    let (name, rest) = line.split_once(char::is_whitespace).unwrap_or((line, ""));
    let rest = rest.trim();
    let sql = |text: &str| Ok(Command::Sql(text.to_owned()));
    match name {
        "\\q" | "\\quit" => Ok(Command::Quit),
        "\\?" | "\\h" | "\\help" => Ok(Command::Help),
        "\\x" => Ok(Command::Vertical),
        "\\timing" => Ok(Command::Timing),
        "\\format" => format(rest),
        "\\i" => required(rest, "\\i FILE").map(|path| Command::Include(PathBuf::from(unquote(path)))),
        "\\o" => Ok(Command::Output((!rest.is_empty()).then(|| PathBuf::from(unquote(rest))))),
        "\\copy" => copy(rest),
        "\\d" if rest.is_empty() => sql(LISTED),
        "\\dv" => sql("SELECT name, kind, query, sql FROM millstream.views ORDER BY name;"),
        "\\d" => sql(&format!("DESCRIBE EXTENDED {rest};")),
        "\\dt" => sql("SELECT name, partitions, primary_key, query FROM millstream.tables ORDER BY name;"),
        "\\l" => sql("SELECT current_database() AS database;"),
        _ => Err(format!("unknown command {name}; \\? lists the commands")),
    }
}

fn required<'a>(rest: &'a str, usage: &str) -> Result<&'a str, String> {
    if rest.is_empty() { Err(format!("usage: {usage}")) } else { Ok(rest) }
}

fn format(name: &str) -> Result<Command, String> {
    use clap::ValueEnum as _;
    Format::from_str(name, true)
        .map(Command::Format)
        .map_err(|_| "formats: table, vertical, csv, json, ndjson, markdown".to_owned())
}

fn unquote(text: &str) -> String {
    match text.strip_prefix('\'').and_then(|rest| rest.strip_suffix('\'')) {
        Some(inner) => inner.replace("''", "'"),
        None => text.to_owned(),
    }
}

/// `{table [(columns)] | (query)} {from | to} 'file' [options]`.
fn copy(rest: &str) -> Result<Command, String> {
    let usage = || "usage: \\copy {TABLE [(COLUMNS)] | (QUERY)} {FROM | TO} 'FILE' [WITH (…)]".to_owned();
    let (at, length, is_from) = direction(rest).ok_or_else(usage)?;
    let (what, place) = (rest[..at].trim(), rest[at + length..].trim());
    let (file, options) = match place.strip_prefix('\'') {
        Some(inner) => {
            let end = inner.find('\'').ok_or_else(usage)?;
            (&inner[..end], inner[end + 1..].trim())
        }
        None => place.split_once(char::is_whitespace).unwrap_or((place, "")),
    };
    if what.is_empty() || file.is_empty() {
        return Err(usage());
    }
    let file = PathBuf::from(file);
    Ok(match is_from {
        true => Command::CopyFrom { statement: format!("COPY {what} FROM STDIN {options};"), file },
        false => Command::CopyTo { statement: format!("COPY {what} TO STDOUT {options};"), file },
    })
}

/// Where the word `from` or `to` stands that is in no parentheses and no quotes, its length, and whether it is `from`.
fn direction(text: &str) -> Option<(usize, usize, bool)> {
    let mut depth = 0_usize;
    let mut quote = None;
    let mut word = 0;
    for (at, c) in text.char_indices().chain([(text.len(), ' ')]) {
        let is_word = c.is_alphanumeric() || c == '_';
        if depth == 0 && quote.is_none() && !is_word {
            match text[word..at].to_ascii_lowercase().as_str() {
                "from" => return Some((word, 4, true)),
                "to" => return Some((word, 2, false)),
                _ => {}
            }
        }
        match (quote, c) {
            (Some(open), _) if c == open => quote = None,
            (Some(_), _) => {}
            (None, '\'' | '"') => quote = Some(c),
            (None, '(') => depth += 1,
            (None, ')') => depth = depth.saturating_sub(1),
            (None, _) => {}
        }
        if !is_word {
            word = at + c.len_utf8();
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn copy_names_a_file_of_this_machine() {
        let copy = parse("\\copy flights (a, b) from 'my file.csv' with (format csv, header)").unwrap();
        assert_eq!(
            copy,
            Command::CopyFrom {
                statement: "COPY flights (a, b) FROM STDIN with (format csv, header);".to_owned(),
                file: PathBuf::from("my file.csv"),
            }
        );
        let copy = parse("\\copy (select 'x to y)' as \"from\" from s) TO out.bin (format binary)").unwrap();
        let statement = "COPY (select 'x to y)' as \"from\" from s) TO STDOUT (format binary);".to_owned();
        assert_eq!(copy, Command::CopyTo { statement, file: PathBuf::from("out.bin") });
        assert!(parse("\\copy flights").is_err());
        assert!(parse("\\copy flights from 'x").is_err());
    }

    #[test]
    fn unknown_commands_are_told_so() {
        assert!(parse("\\nonsense").unwrap_err().contains("\\?"));
        assert!(parse("\\format xml").is_err());
        assert_eq!(parse("\\q;").unwrap(), Command::Quit);
    }
}
