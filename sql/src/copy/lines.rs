//! Where records of copy data end, found in chunks that may be cut anywhere.
//!
//! The line ending of the first line holds for all, as in PostgreSQL. The scan goes on where it stopped, so
//! that a record of many chunks is read once. Leaves out fields.

use crate::error::SqlError;
use millstream_catalog::model::SqlState;

/// The ending of lines.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ending {
    Unknown,
    Newline,
    Return,
    ReturnNewline,
}

/// What makes a byte other than itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Quoting {
    /// A backslash escapes the next byte (text).
    Backslash,
    /// Quotes, and an escape within them (csv).
    Quotes { quote: u8, escape: u8 },
    /// Nothing: any line ending ends the record (JSON).
    Plain,
}

/// Finds the ends of records.
#[derive(Debug)]
pub(super) struct Lines {
    quoting: Quoting,
    ending: Ending,
    /// Bytes of the current record already seen.
    seen: usize,
    in_quotes: bool,
}

/// A complete record: its bytes are before `end`, the next one starts at `next`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Record {
    pub(super) end: usize,
    pub(super) next: usize,
}

impl Lines {
    pub(super) fn new(quoting: Quoting) -> Self {
        Self { quoting, ending: Ending::Unknown, seen: 0, in_quotes: false }
    }

    /// True inside a quoted field.
    pub(super) fn in_quotes(&self) -> bool {
        self.in_quotes
    }

    /// The first record of `data`, which starts where the last one ended; `None` if it is not complete.
    ///
    /// # Errors
    /// 22P04 for a line ending that is not the first line's.
    pub(super) fn next(&mut self, data: &[u8]) -> Result<Option<Record>, SqlError> {
        let found = match self.quoting {
            Quoting::Plain => self.next_plain(data),
            Quoting::Backslash => self.next_backslash(data)?,
            Quoting::Quotes { quote, escape } => self.next_quoted(data, quote, escape)?,
        };
        if found.is_some() {
            self.seen = 0;
        }
        Ok(found)
    }

    fn next_plain(&mut self, data: &[u8]) -> Option<Record> {
        let rest = data.get(self.seen..).unwrap_or(&[]);
        let Some(at) = rest.iter().position(|byte| *byte == b'\n') else {
            self.seen = data.len();
            return None;
        };
        let end = self.seen + at;
        Some(Record { end, next: end + 1 })
    }

    fn next_backslash(&mut self, data: &[u8]) -> Result<Option<Record>, SqlError> {
        let mut at = self.seen;
        loop {
            let rest = data.get(at..).unwrap_or(&[]);
            let Some(found) = rest.iter().position(|byte| matches!(byte, b'\n' | b'\r' | b'\\')) else {
                self.seen = data.len().max(at);
                return Ok(None);
            };
            at += found;
            if data[at] == b'\\' {
                if at + 1 == data.len() {
                    self.seen = at;
                    return Ok(None);
                }
                at += 2;
                continue;
            }
            self.seen = at;
            return self.end_at(data, at);
        }
    }

    fn next_quoted(&mut self, data: &[u8], quote: u8, escape: u8) -> Result<Option<Record>, SqlError> {
        let mut at = self.seen;
        loop {
            let rest = data.get(at..).unwrap_or(&[]);
            let found = if self.in_quotes {
                rest.iter().position(|byte| *byte == quote || *byte == escape)
            } else {
                rest.iter().position(|byte| matches!(byte, b'\n' | b'\r') || *byte == quote)
            };
            let Some(found) = found else {
                self.seen = data.len().max(at);
                return Ok(None);
            };
            at += found;
            let byte = data[at];
            if self.in_quotes && byte == escape && escape != quote {
                match data.get(at + 1) {
                    None => {
                        self.seen = at;
                        return Ok(None);
                    }
                    Some(next) => at += if *next == quote || *next == escape { 2 } else { 1 },
                }
            } else if byte == quote {
                // A doubled quote leaves the quotes and enters them again.
                self.in_quotes = !self.in_quotes;
                at += 1;
            } else {
                self.seen = at;
                return self.end_at(data, at);
            }
        }
    }

    /// The record that ends with the line ending at `at`.
    fn end_at(&mut self, data: &[u8], at: usize) -> Result<Option<Record>, SqlError> {
        let is_newline = data[at] == b'\n';
        let next = data.get(at + 1);
        let (ending, len) = match (self.ending, is_newline) {
            (Ending::Unknown | Ending::Newline, true) => (Ending::Newline, 1),
            (Ending::Unknown | Ending::ReturnNewline, false) if next.is_none() => return Ok(None),
            (Ending::Unknown | Ending::ReturnNewline, false) if next == Some(&b'\n') => (Ending::ReturnNewline, 2),
            (Ending::Unknown | Ending::Return, false) => (Ending::Return, 1),
            (Ending::Return | Ending::ReturnNewline, true) => return Err(self.stray("newline", "\\n")),
            (Ending::Newline | Ending::ReturnNewline, false) => return Err(self.stray("carriage return", "\\r")),
        };
        self.ending = ending;
        Ok(Some(Record { end: at, next: at + len }))
    }

    #[cold]
    fn stray(&self, what: &str, escape: &str) -> SqlError {
        match self.quoting {
            Quoting::Quotes { .. } => {
                SqlError::new(SqlState::BadCopyFileFormat, format!("unquoted {what} found in data"))
                    .hint(format!("Use quoted CSV field to represent {what}."))
            }
            Quoting::Backslash | Quoting::Plain => {
                SqlError::new(SqlState::BadCopyFileFormat, format!("literal {what} found in data"))
                    .hint(format!("Use \"{escape}\" to represent {what}."))
            }
        }
    }
}

/// The last record of the data, which has no line ending: without a carriage return that waited for its newline.
pub(super) fn last_record(data: &[u8]) -> &[u8] {
    data.strip_suffix(b"\r").unwrap_or(data)
}
