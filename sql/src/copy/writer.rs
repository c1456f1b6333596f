//! `LineWriter`: rows as lines of text, csv or JSON.
//!
//! Leaves out the formats that are no lines (`binary`, `arrow`). Only `CopyEncoder` calls it.

use super::records::BYTE_ORDER_MARK;
use crate::dialect::ast::{CopyColumns, CopyFormat, CopyHeader, CopyOptions};
use crate::error::SqlError;
use crate::plan::ResultColumn;
use crate::types::ColumnEncoder;
use crate::types::json::write_string;
use crate::types::json_value::write_json;
use millstream_catalog::model::SqlState;

/// Writes one line for each row.
#[derive(Debug)]
pub(super) struct LineWriter {
    options: CopyOptions,
    names: Vec<String>,
    /// Columns that are always quoted.
    force_quote: Vec<bool>,
    /// `"name":` of each column, for JSON.
    keys: Vec<Vec<u8>>,
    scratch: Vec<u8>,
}

impl LineWriter {
    /// A writer of a result of these columns.
    ///
    /// # Errors
    /// 42703 when `FORCE_QUOTE` names a column that is not among them.
    pub(super) fn new(options: &CopyOptions, columns: &[ResultColumn]) -> Result<Self, SqlError> {
        let mut force_quote = vec![options.force_quote == CopyColumns::All; columns.len()];
        if let CopyColumns::Named(names) = &options.force_quote {
            for name in names {
                let at = columns.iter().position(|column| column.name == name.as_str()).ok_or_else(|| {
                    let message = format!("column \"{name}\" does not exist");
                    SqlError::new(SqlState::UndefinedColumn, message).at(name.position)
                })?;
                force_quote[at] = true;
            }
        }
        let key = |column: &ResultColumn| {
            let mut key = Vec::new();
            write_string(column.name.as_bytes(), &mut key);
            key.push(b':');
            key
        };
        Ok(Self {
            names: columns.iter().map(|column| column.name.clone()).collect(),
            force_quote,
            keys: columns.iter().map(key).collect(),
            options: options.clone(),
            scratch: Vec::new(),
        })
    }

    /// Appends the header line, if one is asked for.
    pub(super) fn header(&self, out: &mut Vec<u8>) {
        if self.options.header == CopyHeader::No {
            return;
        }
        for (at, name) in self.names.iter().enumerate() {
            if at > 0 {
                out.push(self.options.delimiter);
            }
            match self.options.format {
                CopyFormat::Csv => self.csv_field(name.as_bytes(), false, out),
                _ => text_field(name.as_bytes(), self.options.delimiter, out),
            }
        }
        out.push(b'\n');
    }

    /// Appends a row and the end of its line.
    pub(super) fn row(&mut self, cells: &[ColumnEncoder], row: usize, out: &mut Vec<u8>) {
        let mut scratch = std::mem::take(&mut self.scratch);
        match self.options.format {
            CopyFormat::Csv => self.csv_row(cells, row, &mut scratch, out),
            CopyFormat::Json => self.json_row(cells, row, &mut scratch, out),
            _ => self.text_row(cells, row, &mut scratch, out),
        }
        out.push(b'\n');
        self.scratch = scratch;
    }

    fn text_row(&self, encoders: &[ColumnEncoder], row: usize, scratch: &mut Vec<u8>, out: &mut Vec<u8>) {
        for (at, encoder) in encoders.iter().enumerate() {
            if at > 0 {
                out.push(self.options.delimiter);
            }
            let start = out.len();
            if encoder.text(row, out) {
                escape_text(start, self.options.delimiter, scratch, out);
            } else {
                out.extend_from_slice(self.options.null.as_bytes());
            }
        }
    }

    fn csv_row(&self, encoders: &[ColumnEncoder], row: usize, scratch: &mut Vec<u8>, out: &mut Vec<u8>) {
        for (at, encoder) in encoders.iter().enumerate() {
            if at > 0 {
                out.push(self.options.delimiter);
            }
            scratch.clear();
            if encoder.text(row, scratch) {
                self.csv_field(scratch, self.force_quote[at], out);
            } else {
                out.extend_from_slice(self.options.null.as_bytes());
            }
        }
    }

    /// One value, quoted where it must be: by force, or where it would be read as something else.
    fn csv_field(&self, value: &[u8], is_forced: bool, out: &mut Vec<u8>) {
        let CopyOptions { delimiter, quote, escape, null, .. } = &self.options;
        let is_special = |byte: u8| (byte == *delimiter) | (byte == *quote) | (byte == b'\n') | (byte == b'\r');
        // A lone \. on a line ends the data.
        let is_end_marker = self.names.len() == 1 && value == b"\\.";
        let is_mark = value.starts_with(BYTE_ORDER_MARK);
        if !is_forced && value != null.as_bytes() && !is_end_marker && !is_mark && !has_any(value, is_special) {
            out.extend_from_slice(value);
            return;
        }
        out.push(*quote);
        for byte in value {
            if *byte == *quote || *byte == *escape {
                out.push(*escape);
            }
            out.push(*byte);
        }
        out.push(*quote);
    }

    fn json_row(&self, encoders: &[ColumnEncoder], row: usize, scratch: &mut Vec<u8>, out: &mut Vec<u8>) {
        out.push(b'{');
        for (at, encoder) in encoders.iter().enumerate() {
            if at > 0 {
                out.push(b',');
            }
            out.extend_from_slice(&self.keys[at]);
            let start = out.len();
            write_json(encoder, row, scratch, out);
            // Line endings in JSON are white space between tokens; one object is one line.
            for byte in &mut out[start..] {
                if matches!(byte, b'\n' | b'\r') {
                    *byte = b' ';
                }
            }
        }
        out.push(b'}');
    }
}

/// Bytes that are looked at together.
const LANES: usize = 32;

/// Whether `is_special` holds for some byte. It is asked without branches, so that the compiler makes vectors of it.
fn has_any(value: &[u8], is_special: impl Fn(u8) -> bool) -> bool {
    let is_any = |bytes: &[u8]| bytes.iter().fold(false, |any, byte| any | is_special(*byte));
    let (lanes, rest) = value.as_chunks::<LANES>();
    lanes.iter().any(|lane| is_any(lane)) || is_any(rest)
}

/// Puts in the escapes of a value of the text format, which is the end of `out`.
fn escape_text(start: usize, delimiter: u8, scratch: &mut Vec<u8>, out: &mut Vec<u8>) {
    // From backspace (8) to carriage return (13) all have a letter.
    let is_special = |byte: u8| (byte.wrapping_sub(8) < 6) | (byte == b'\\') | (byte == delimiter);
    if has_any(&out[start..], is_special) {
        scratch.clear();
        scratch.extend_from_slice(&out[start..]);
        out.truncate(start);
        text_field(scratch, delimiter, out);
    }
}

/// One value of the text format, with escapes.
fn text_field(value: &[u8], delimiter: u8, out: &mut Vec<u8>) {
    for byte in value {
        let letter = match byte {
            8 => b'b',
            12 => b'f',
            b'\n' => b'n',
            b'\r' => b'r',
            b'\t' => b't',
            11 => b'v',
            b'\\' => b'\\',
            other if *other == delimiter => delimiter,
            other => {
                out.push(*other);
                continue;
            }
        };
        out.extend_from_slice(&[b'\\', letter]);
    }
}
