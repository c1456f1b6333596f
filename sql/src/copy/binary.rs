//! Rows in PostgreSQL's binary COPY format.
//!
//! | part | bytes |
//! |---|---|
//! | signature | `PGCOPY\n`, 255, `\r\n`, 0 |
//! | flags | i32: bits 16 to 31 must be understood, and none is; the others are passed over |
//! | length of the header's extension | i32, and so many bytes, which are passed over |
//! | row | i16 number of columns; of each i32 length and its bytes, length -1 for NULL |
//! | trailer | i16, -1; it may be missing |
//!
//! Integers are big-endian. Leaves out values (`types`). Source: PostgreSQL 15 documentation, COPY, "Binary Format";
//! what is refused, and its words, are those of its `copyfromparse.c`.

use super::records::RECORD_BYTES_MAX;
use super::sink::Sink;
use crate::bind::insert::{InsertRows, row_too_large};
use crate::error::SqlError;
use crate::types::ColumnEncoder;
use millstream_catalog::model::SqlState;

const SIGNATURE: &[u8; 11] = b"PGCOPY\n\xff\r\n\0";
const HEADER: &[u8; 19] = b"PGCOPY\n\xff\r\n\0\0\0\0\0\0\0\0\0";
const TRAILER: [u8; 2] = (-1_i16).to_be_bytes();

/// Writes rows in binary.
#[derive(Debug, Default)]
pub(super) struct BinaryWriter {
    has_header: bool,
}

impl BinaryWriter {
    /// The header stands with the first row or the trailer, as PostgreSQL sends it: psycopg reads each further message
    /// as a row.
    fn header(&mut self, out: &mut Vec<u8>) {
        if !std::mem::replace(&mut self.has_header, true) {
            out.extend_from_slice(HEADER);
        }
    }

    /// Appends a row.
    pub(super) fn row(&mut self, cells: &[ColumnEncoder], row: usize, out: &mut Vec<u8>) {
        self.header(out);
        out.extend_from_slice(&u16::try_from(cells.len()).unwrap_or(u16::MAX).to_be_bytes());
        for cell in cells {
            let start = out.len();
            out.extend_from_slice(&(-1_i32).to_be_bytes());
            if cell.binary(row, out) {
                let length = i32::try_from(out.len() - start - 4).unwrap_or(i32::MAX);
                out[start..start + 4].copy_from_slice(&length.to_be_bytes());
            }
        }
    }

    /// Appends the trailer.
    pub(super) fn finish(&mut self, out: &mut Vec<u8>) {
        self.header(out);
        out.extend_from_slice(&TRAILER);
    }
}

/// Reads rows in binary.
#[derive(Debug)]
pub(super) struct BinaryReader {
    sink: Sink,
    stage: Stage,
    /// The start of what is not complete.
    partial: Vec<u8>,
    /// Bytes it has at least when it is complete.
    wanted: usize,
}

/// What comes next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    Header,
    /// So many bytes that are passed over.
    Extension(usize),
    Rows,
    /// Nothing.
    Ended,
}

/// What was found at the start of some data.
enum Found {
    /// Something of this length.
    Whole(usize),
    /// Something of at least this length; of a row, the value of this column is the first that is not there.
    Part { wanted: usize, column: Option<usize> },
}

impl BinaryReader {
    pub(super) fn new(sink: Sink) -> Self {
        Self { sink, stage: Stage::Header, partial: Vec::new(), wanted: 0 }
    }

    /// Takes the next chunk of data, cut anywhere.
    pub(super) fn push(&mut self, data: &[u8]) -> Result<(), SqlError> {
        if self.partial.is_empty() {
            let rest = self.read(data)?;
            self.partial.extend_from_slice(&data[rest..]);
            return Ok(());
        }
        self.partial.extend_from_slice(data);
        if self.partial.len() < self.wanted {
            return Ok(());
        }
        let mut joined = std::mem::take(&mut self.partial);
        let rest = self.read(&joined)?;
        joined.drain(..rest);
        self.partial = joined;
        Ok(())
    }

    /// Ends the data, with its trailer or without.
    pub(super) fn finish(&mut self) -> Result<(), SqlError> {
        let rest = std::mem::take(&mut self.partial);
        match self.stage {
            Stage::Header if rest.len() < SIGNATURE.len() => return Err(bad("COPY file signature not recognized")),
            Stage::Header if rest.len() < SIGNATURE.len() + 4 => {
                return Err(bad("invalid COPY file header (missing flags)"));
            }
            Stage::Header => return Err(bad("invalid COPY file header (missing length)")),
            Stage::Extension(_) => return Err(bad("invalid COPY file header (wrong length)")),
            Stage::Rows if rest.len() >= 2 => {
                let column = match self.row(&rest)? {
                    Found::Part { column, .. } => column,
                    Found::Whole(_) => None,
                };
                return Err(bad("unexpected EOF in COPY data").context(self.place(column)));
            }
            Stage::Rows | Stage::Ended => {}
        }
        self.sink.close_batch()
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

    /// Reads what is complete of `data`; gives the start of what is not.
    fn read(&mut self, data: &[u8]) -> Result<usize, SqlError> {
        let mut at = 0;
        loop {
            let rest = &data[at..];
            let found = match self.stage {
                Stage::Header => self.header(rest)?,
                Stage::Extension(0) => {
                    self.stage = Stage::Rows;
                    Found::Whole(0)
                }
                Stage::Extension(_) if rest.is_empty() => return Ok(at),
                Stage::Extension(left) => {
                    let here = left.min(rest.len());
                    self.stage = Stage::Extension(left - here);
                    Found::Whole(here)
                }
                Stage::Rows => self.row(rest)?,
                Stage::Ended if rest.is_empty() => return Ok(at),
                Stage::Ended => return Err(bad("received copy data after EOF marker").context(self.sink.place())),
            };
            match found {
                Found::Whole(length) => at += length,
                Found::Part { wanted, .. } => {
                    self.wanted = wanted;
                    return Ok(at);
                }
            }
        }
    }

    fn header(&mut self, data: &[u8]) -> Result<Found, SqlError> {
        let seen = data.len().min(SIGNATURE.len());
        if data[..seen] != SIGNATURE[..seen] {
            return Err(bad("COPY file signature not recognized"));
        }
        let word = |at: usize| data.get(at..at + 4).and_then(|bytes| bytes.try_into().ok()).map(i32::from_be_bytes);
        let (Some(flags), Some(extension)) = (word(11), word(15)) else {
            return Ok(Found::Part { wanted: HEADER.len(), column: None });
        };
        if flags & (1 << 16) != 0 {
            return Err(bad("invalid COPY file header (WITH OIDS)"));
        }
        if flags >> 16 != 0 {
            return Err(bad("unrecognized critical flags in COPY file header"));
        }
        let extension = usize::try_from(extension).map_err(|_| bad("invalid COPY file header (missing length)"))?;
        self.stage = Stage::Extension(extension);
        Ok(Found::Whole(HEADER.len()))
    }

    /// Reads one row or the trailer.
    fn row(&mut self, data: &[u8]) -> Result<Found, SqlError> {
        let Some((count, _)) = data.split_first_chunk::<2>() else {
            return Ok(Found::Part { wanted: 2, column: None });
        };
        let count = i16::from_be_bytes(*count);
        if count == -1 {
            self.stage = Stage::Ended;
            return Ok(Found::Whole(2));
        }
        let width = self.sink.width();
        if usize::try_from(count) != Ok(width) {
            let message = format!("row field count is {count}, expected {width}");
            return Err(bad(message).context(self.sink.place()));
        }
        let mut end = 2;
        for at in 0..width {
            end = match field(&data[end..]) {
                Ok((_, length)) => end + length,
                Err(Some(wanted)) if end + wanted > RECORD_BYTES_MAX => {
                    return Err(row_too_large(end + wanted).context(self.place(Some(at))));
                }
                Err(Some(wanted)) => return Ok(Found::Part { wanted: end + wanted, column: Some(at) }),
                Err(None) => return Err(bad("invalid field size").context(self.place(Some(at)))),
            };
        }
        self.append(&data[2..end])?;
        Ok(Found::Whole(end))
    }

    /// Appends the fields of a row that is whole.
    fn append(&mut self, row: &[u8]) -> Result<(), SqlError> {
        let mut rest = row;
        for at in 0..self.sink.width() {
            let Ok((value, length)) = field(rest) else { break };
            rest = &rest[length..];
            match value {
                Some(value) => self.sink.binary(at, value)?,
                None => self.sink.null(at)?,
            }
        }
        self.sink.end_row(row.len())?;
        self.sink.line += 1;
        Ok(())
    }

    fn place(&self, column: Option<usize>) -> String {
        match column {
            Some(at) => format!("{}, column {}", self.sink.place(), self.sink.name(at)),
            None => self.sink.place(),
        }
    }
}

/// The value at the start of `data` and the bytes it takes; or how many it takes at least, if that makes sense.
#[inline]
fn field(data: &[u8]) -> Result<(Option<&[u8]>, usize), Option<usize>> {
    let Some((length, rest)) = data.split_first_chunk::<4>() else { return Err(Some(4)) };
    let length = i32::from_be_bytes(*length);
    if length == -1 {
        return Ok((None, 4));
    }
    let length = usize::try_from(length).map_err(|_| None)?;
    rest.get(..length).map(|value| (Some(value), 4 + length)).ok_or(Some(4 + length))
}

#[cold]
fn bad(message: impl Into<String>) -> SqlError {
    SqlError::new(SqlState::BadCopyFileFormat, message)
}
