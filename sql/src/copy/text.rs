//! Fields of PostgreSQL's text format: separated by tabs, with backslash escapes.
//!
//! Leaves out where records end (`lines.rs`). Source: PostgreSQL 15 documentation, COPY, "Text Format".

use super::sink::Sink;
use crate::dialect::ast::CopyOptions;
use crate::error::SqlError;

/// Reads records of the text format.
#[derive(Debug)]
pub(super) struct TextFields {
    delimiter: u8,
    null: Vec<u8>,
    scratch: Vec<u8>,
}

impl TextFields {
    pub(super) fn new(options: &CopyOptions) -> Self {
        Self { delimiter: options.delimiter, null: options.null.clone().into_bytes(), scratch: Vec::new() }
    }

    /// Length of the field at the start of `rest`, and whether it has escapes.
    #[inline]
    fn field(&self, rest: &[u8]) -> (usize, bool) {
        let mut at = 0;
        let mut is_escaped = false;
        while let Some(byte) = rest.get(at) {
            if *byte == self.delimiter {
                break;
            }
            if *byte == b'\\' {
                is_escaped = true;
                at += 1;
            }
            at += 1;
        }
        (at.min(rest.len()), is_escaped)
    }

    /// Reads one row.
    pub(super) fn row(&mut self, record: &[u8], sink: &mut Sink) -> Result<(), SqlError> {
        let mut rest = Some(record);
        for at in 0..sink.width() {
            let Some(data) = rest else {
                return Err(sink.bad(format!("missing data for column \"{}\"", sink.name(at)), record));
            };
            let (len, is_escaped) = self.field(data);
            let raw = &data[..len];
            rest = data.get(len + 1..);
            if raw == self.null.as_slice() {
                sink.null(at)?;
            } else if is_escaped {
                self.scratch.clear();
                if !unescape(raw, &mut self.scratch) {
                    let error = sink.bad("end-of-copy marker corrupt", record);
                    return Err(error.context(sink.place_of(at, raw)));
                }
                sink.text(at, &self.scratch)?;
            } else {
                sink.text(at, raw)?;
            }
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
            let (len, _) = self.field(data);
            let mut name = Vec::new();
            unescape(&data[..len], &mut name);
            names.push(name);
            rest = data.get(len + 1..);
        }
        names
    }
}

/// Replaces escapes; false for `\.`, which only stands alone on a line.
fn unescape(raw: &[u8], out: &mut Vec<u8>) -> bool {
    let mut at = 0;
    while let Some(byte) = raw.get(at) {
        at += 1;
        if *byte != b'\\' {
            out.push(*byte);
            continue;
        }
        let Some(escape) = raw.get(at) else {
            out.push(b'\\');
            break;
        };
        at += 1;
        match escape {
            b'b' => out.push(8),
            b'f' => out.push(12),
            b'n' => out.push(b'\n'),
            b'r' => out.push(b'\r'),
            b't' => out.push(b'\t'),
            b'v' => out.push(11),
            b'.' => return false,
            b'0'..=b'7' => {
                let (value, used) = digits(&raw[at - 1..], 8, 3);
                out.push(value);
                at += used - 1;
            }
            b'x' => match digits(&raw[at..], 16, 2) {
                (_, 0) => out.push(b'x'),
                (value, used) => {
                    out.push(value);
                    at += used;
                }
            },
            other => out.push(*other),
        }
    }
    true
}

/// The value of up to `max` leading digits, modulo 256, and how many they are.
fn digits(text: &[u8], radix: u32, max: usize) -> (u8, usize) {
    let mut value = 0u32;
    let mut used = 0;
    while used < max {
        let Some(digit) = text.get(used).and_then(|byte| char::from(*byte).to_digit(radix)) else { break };
        value = value * radix + digit;
        used += 1;
    }
    ((value & 0xFF) as u8, used)
}
