//! Rows in PostgreSQL's binary COPY format.
//!
//! | part | bytes |
//! |---|---|
//! | signature | `PGCOPY\n`, 255, `\r\n`, 0 |
//! | flags | i32, 0 |
//! | length of the header's extension | i32, 0 |
//! | row | i16 number of columns; of each i32 length and its bytes, length -1 for NULL |
//! | trailer | i16, -1 |
//!
//! Integers are big-endian. Leaves out values (`types`). Source: PostgreSQL 15 documentation, COPY, "Binary Format".

use crate::types::ColumnEncoder;

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
