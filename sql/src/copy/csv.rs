//! Fields of csv: separated by a delimiter, quoted where they must be.
//!
//! Leaves out where records end (`lines.rs`). Source: PostgreSQL 15 documentation, COPY, "CSV Format".

use super::sink::Sink;
use crate::dialect::ast::{CopyColumns, CopyOptions};
use crate::error::SqlError;
use millstream_catalog::model::SqlState;

/// Reads records of csv.
#[derive(Debug)]
pub(super) struct CsvFields {
    delimiter: u8,
    quote: u8,
    escape: u8,
    null: Vec<u8>,
    /// Columns in which an unquoted NULL text is text.
    force_not_null: Vec<bool>,
    /// Columns in which a quoted NULL text is NULL.
    force_null: Vec<bool>,
    scratch: Vec<u8>,
}

/// One field: its bytes are a range of the record, or stand in the scratch buffer.
struct Field {
    len: usize,
    is_quoted: bool,
}

impl CsvFields {
    pub(super) fn new(options: &CopyOptions, sink: &Sink) -> Result<Self, SqlError> {
        Ok(Self {
            delimiter: options.delimiter,
            quote: options.quote,
            escape: options.escape,
            null: options.null.clone().into_bytes(),
            force_not_null: forced(&options.force_not_null, sink, "FORCE_NOT_NULL")?,
            force_null: forced(&options.force_null, sink, "FORCE_NULL")?,
            scratch: Vec::new(),
        })
    }

    /// The field at the start of `rest`; a quoted one is decoded into the scratch buffer.
    #[inline]
    fn field(&mut self, rest: &[u8]) -> Field {
        let (delimiter, quote) = (self.delimiter, self.quote);
        let found = rest.iter().position(|byte| *byte == delimiter || *byte == quote).unwrap_or(rest.len());
        if rest.get(found) == Some(&quote) {
            return self.quoted_field(rest, found);
        }
        Field { len: found, is_quoted: false }
    }

    fn quoted_field(&mut self, rest: &[u8], first_quote: usize) -> Field {
        self.scratch.clear();
        self.scratch.extend_from_slice(&rest[..first_quote]);
        let mut at = first_quote;
        let mut in_quotes = false;
        while let Some(byte) = rest.get(at).copied() {
            at += 1;
            if !in_quotes {
                if byte == self.delimiter {
                    return Field { len: at - 1, is_quoted: true };
                }
                if byte == self.quote {
                    in_quotes = true
                } else {
                    self.scratch.push(byte)
                }
                continue;
            }
            let next = rest.get(at).copied();
            if byte == self.escape && (next == Some(self.quote) || next == Some(self.escape)) {
                self.scratch.extend(next);
                at += 1;
            } else if byte == self.quote {
                in_quotes = false;
            } else {
                self.scratch.push(byte);
            }
        }
        Field { len: at, is_quoted: true }
    }

    /// Reads one row.
    pub(super) fn row(&mut self, record: &[u8], sink: &mut Sink) -> Result<(), SqlError> {
        let mut rest = Some(record);
        for at in 0..sink.width() {
            let Some(data) = rest else {
                return Err(sink.bad(format!("missing data for column \"{}\"", sink.name(at)), record));
            };
            let field = self.field(data);
            rest = data.get(field.len + 1..);
            if field.is_quoted {
                let is_null = self.force_null[at] && self.scratch == self.null;
                if is_null {
                    sink.null(at)?
                } else {
                    sink.text(at, &self.scratch)?
                }
                continue;
            }
            let raw = &data[..field.len];
            let is_null = raw == self.null.as_slice() && !self.force_not_null[at];
            if is_null { sink.null(at)? } else { sink.text(at, raw)? }
        }
        if let Some(extra) = rest {
            let at = record.len() - extra.len();
            return Err(sink.bad_at("extra data after last expected column", record, at));
        }
        sink.end_row(record.len())
    }

    /// The fields of a header line.
    pub(super) fn split(&mut self, record: &[u8]) -> Vec<Vec<u8>> {
        let mut names = Vec::new();
        let mut rest = Some(record);
        while let Some(data) = rest {
            let field = self.field(data);
            names.push(if field.is_quoted { self.scratch.clone() } else { data[..field.len].to_vec() });
            rest = data.get(field.len + 1..);
        }
        names
    }
}

/// Which targets an option names.
fn forced(columns: &CopyColumns, sink: &Sink, option: &str) -> Result<Vec<bool>, SqlError> {
    let mut forced = vec![*columns == CopyColumns::All; sink.width()];
    if let CopyColumns::Named(names) = columns {
        for name in names {
            let at = sink.find(name.as_str().as_bytes()).ok_or_else(|| {
                if let Some(error) = sink.unknown(name.as_str()) {
                    return error.at(name.position);
                }
                let message = format!("{option} column \"{name}\" not referenced by COPY");
                SqlError::new(SqlState::InvalidColumnReference, message).at(name.position)
            })?;
            forced[at] = true;
        }
    }
    Ok(forced)
}
