//! `LineReader`: the formats of lines: text, csv and JSON.
//!
//! Cuts the data into records and hands each to its format. Leaves out the formats' fields. Only `CopyDecoder`
//! calls it.

use super::csv::CsvFields;
use super::json::JsonFields;
use super::lines::{Lines, Quoting, last_record};
use super::sink::Sink;
use super::text::TextFields;
use crate::bind::insert::{InsertRows, row_too_large};
use crate::dialect::ast::{CopyFormat, CopyHeader, CopyOptions};
use crate::error::SqlError;
use millstream_catalog::model::limit::EVENT_BYTES_MAX;

/// Bytes of one record of copy data: an event in hex, and room for separators.
pub(super) const RECORD_BYTES_MAX: usize = 2 * EVENT_BYTES_MAX.as_usize() + (1 << 20);

/// UTF-8's byte order mark.
pub(super) const BYTE_ORDER_MARK: &[u8] = b"\xEF\xBB\xBF";

/// Reads lines.
#[derive(Debug)]
pub(super) struct LineReader {
    sink: Sink,
    lines: Lines,
    fields: Fields,
    header: CopyHeader,
    /// The start of a record that is not complete.
    partial: Vec<u8>,
    /// A byte order mark may come, which csv and JSON lines of other programs begin with.
    is_at_start: bool,
    /// `\.` was read: what follows is not data.
    is_ended: bool,
}

/// The fields of a record, by format.
#[derive(Debug)]
enum Fields {
    Text(TextFields),
    Csv(CsvFields),
    Json(JsonFields),
}

impl LineReader {
    /// A reader of `options.format`, which is one of lines.
    ///
    /// # Errors
    /// 42P10 for options that name a column the COPY does not.
    pub(super) fn new(sink: Sink, options: &CopyOptions) -> Result<Self, SqlError> {
        let (quoting, fields) = match options.format {
            CopyFormat::Csv => {
                let quoting = Quoting::Quotes { quote: options.quote, escape: options.escape };
                (quoting, Fields::Csv(CsvFields::new(options, &sink)?))
            }
            CopyFormat::Json => (Quoting::Plain, Fields::Json(JsonFields::new(sink.width()))),
            _ => (Quoting::Backslash, Fields::Text(TextFields::new(options))),
        };
        Ok(Self {
            sink,
            lines: Lines::new(quoting),
            fields,
            header: options.header,
            partial: Vec::new(),
            is_at_start: options.format != CopyFormat::Text,
            is_ended: false,
        })
    }

    /// Takes the next chunk of data, cut anywhere.
    pub(super) fn push(&mut self, data: &[u8]) -> Result<(), SqlError> {
        if self.is_ended {
            return Ok(());
        }
        if self.partial.is_empty() {
            let rest = self.records(data)?;
            self.partial.extend_from_slice(&data[rest..]);
        } else {
            let mut joined = std::mem::take(&mut self.partial);
            joined.extend_from_slice(data);
            let rest = self.records(&joined)?;
            joined.drain(..rest);
            self.partial = joined;
        }
        if self.partial.len() > RECORD_BYTES_MAX {
            return Err(row_too_large(self.partial.len()).context(self.sink.place()));
        }
        Ok(())
    }

    /// Ends the data: the last record needs no line ending.
    pub(super) fn finish(&mut self) -> Result<(), SqlError> {
        let data = std::mem::take(&mut self.partial);
        if !data.is_empty() && !self.is_ended {
            if self.lines.in_quotes() {
                return Err(self.unterminated(&data));
            }
            let record = last_record(&data);
            self.record(record)?;
        }
        self.sink.close_batch()
    }

    /// 22P04 in the column whose quotes do not end.
    fn unterminated(&mut self, record: &[u8]) -> SqlError {
        let error = self.sink.bad("unterminated CSV quoted field", record);
        let Fields::Csv(fields) = &mut self.fields else { return error };
        let fields = fields.split(record);
        match fields.last() {
            Some(last) if fields.len() <= self.sink.width() => {
                error.context(self.sink.place_of(fields.len() - 1, last))
            }
            _ => error,
        }
    }

    /// Makes a batch of the rows so far.
    pub(super) fn cut(&mut self) -> Result<(), SqlError> {
        self.sink.close_batch()
    }

    /// Bytes of what was taken and is not yet a batch.
    pub(super) fn held_bytes(&self) -> usize {
        self.partial.capacity() + self.sink.held_bytes()
    }

    /// The next batch of rows that is complete.
    pub(super) fn next_rows(&mut self) -> Option<InsertRows> {
        self.sink.next_rows()
    }

    /// Reads the complete records of `data`; gives the start of the first that is not.
    fn records(&mut self, data: &[u8]) -> Result<usize, SqlError> {
        let mut at = 0;
        if self.is_at_start {
            if data.len() < BYTE_ORDER_MARK.len() && BYTE_ORDER_MARK.starts_with(data) {
                return Ok(0);
            }
            at = if data.starts_with(BYTE_ORDER_MARK) { BYTE_ORDER_MARK.len() } else { 0 };
            self.is_at_start = false;
        }
        while at < data.len() && !self.is_ended {
            let rest = &data[at..];
            let found = self.lines.next(rest).map_err(|error| error.context(self.sink.place()))?;
            let Some(record) = found else { return Ok(at) };
            self.record(&rest[..record.end])?;
            at += record.next;
        }
        Ok(if self.is_ended { data.len() } else { at })
    }

    fn record(&mut self, record: &[u8]) -> Result<(), SqlError> {
        let header = std::mem::take(&mut self.header);
        if header != CopyHeader::No {
            if header == CopyHeader::Match {
                self.check_header(record)?;
            }
            self.sink.line += lines_of(record);
            return Ok(());
        }
        let is_end = record == b"\\." && !matches!(self.fields, Fields::Json(_));
        if is_end {
            self.is_ended = true;
            return Ok(());
        }
        match &mut self.fields {
            Fields::Text(fields) => fields.row(record, &mut self.sink)?,
            Fields::Csv(fields) => fields.row(record, &mut self.sink)?,
            Fields::Json(fields) => fields.row(record, &mut self.sink)?,
        }
        self.sink.line += match self.fields {
            // Only quoted fields and escapes hold line endings.
            Fields::Json(_) => 1,
            Fields::Text(_) | Fields::Csv(_) => lines_of(record),
        };
        Ok(())
    }

    fn check_header(&mut self, record: &[u8]) -> Result<(), SqlError> {
        let names = match &mut self.fields {
            Fields::Text(fields) => fields.split(record),
            Fields::Csv(fields) => fields.split(record),
            Fields::Json(_) => return Ok(()),
        };
        let bad = |message: String| self.sink.bad(message, record);
        if names.len() != self.sink.width() {
            let message =
                format!("wrong number of fields in header line: got {}, expected {}", names.len(), self.sink.width());
            return Err(bad(message));
        }
        for (at, name) in names.iter().enumerate() {
            let expected = self.sink.name(at);
            if name.as_slice() != expected.as_bytes() {
                let found = crate::types::quoted(name);
                let message = format!(
                    "column name mismatch in header line field {}: got \"{found}\", expected \"{expected}\"",
                    at + 1
                );
                return Err(bad(message));
            }
        }
        Ok(())
    }
}

/// Lines a record takes: one, and those inside its fields.
fn lines_of(record: &[u8]) -> u64 {
    1 + record.iter().filter(|byte| **byte == b'\n').count() as u64
}
