//! Rows of Arrow batches as DataRow messages, written straight into the output buffer.
//!
//! Owns the row descriptions of results and the framing of rows. Each column is dispatched once per batch to
//! its encoder; a row is then one pass over the columns with no allocation. Leaves out value formats
//! (`engine::types`) and pacing (`pump`). No state outlives a batch.

use crate::engine::types::{self, ColumnEncoder};
use crate::engine::{Form, ResultColumn, RowBatch, SqlError, SqlState};
use crate::server::pg::message::Format;
use crate::server::pg::reply::{self, Field, patch_length};
use arrow::array::RecordBatch;
use std::ops::Range;

/// Bytes of one DataRow, as PostgreSQL has it.
const ROW_BYTES_MAX: usize = (1 << 30) - 1;

/// The format of each column of a result, as a Bind asked for it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Formats(Vec<Format>);

impl Formats {
    /// None: all text. One: for all columns. Else one for each.
    pub(super) fn new(codes: Vec<Format>) -> Self {
        Self(codes)
    }

    /// How many the client gave.
    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    /// The format of column `index`.
    pub(super) fn of(&self, index: usize) -> Format {
        match self.0.as_slice() {
            [] => Format::Text,
            [one] => *one,
            each => each.get(index).copied().unwrap_or(Format::Text),
        }
    }
}

/// `T`: describes `columns`.
pub(super) fn describe(out: &mut Vec<u8>, columns: &[ResultColumn], formats: &Formats) {
    let fields = columns.iter().enumerate().map(|(index, column)| Field {
        name: &column.name,
        oid: types::oid(&column.sql_type),
        typlen: types::typlen(&column.sql_type),
        typmod: types::typmod(&column.sql_type),
        format: formats.of(index),
    });
    reply::row_description(out, fields);
}

/// Appends `rows` if they are a whole batch that several get, encoded once for all; false when that cannot be.
pub(super) fn put_shared(
    batch: &RowBatch,
    rows: &Range<usize>,
    columns: &[ResultColumn],
    formats: &Formats,
    out: &mut Vec<u8>,
) -> bool {
    let Some(forms) = batch.forms().filter(|_| *rows == (0..batch.num_rows())) else { return false };
    let form = Form::DataRows(formats.0.iter().map(|format| *format == Format::Binary).collect());
    let encoded = forms.get(&form, || {
        let encoder = RowEncoder::new(batch, columns, formats)?;
        let mut bytes = Vec::new();
        rows.clone().try_for_each(|row| encoder.encode(row, &mut bytes))?;
        Ok::<_, SqlError>(bytes)
    });
    // What cannot be encoded fails where it is sent alone, behind the rows before it.
    encoded.is_ok_and(|encoded| {
        out.extend_from_slice(&encoded);
        true
    })
}

/// Writes rows of one batch.
#[derive(Debug)]
pub(super) struct RowEncoder {
    columns: Vec<(ColumnEncoder, Format)>,
    count: [u8; 2],
}

impl RowEncoder {
    /// An encoder of `batch`, whose columns are `columns` by position.
    ///
    /// # Errors
    /// `XX000` when the batch does not have the columns that were announced.
    pub(super) fn new(batch: &RecordBatch, columns: &[ResultColumn], formats: &Formats) -> Result<Self, SqlError> {
        if batch.num_columns() != columns.len() {
            return Err(SqlError::new(
                SqlState::InternalError,
                format!("a result of {} columns came with {}", columns.len(), batch.num_columns()),
            ));
        }
        let count = u16::try_from(columns.len())
            .map_err(|_| SqlError::new(SqlState::TooManyColumns, "a result has too many columns"))?;
        let encoder = |(index, (array, column)): (usize, (&arrow::array::ArrayRef, &ResultColumn))| {
            (ColumnEncoder::new(array.as_ref(), &column.sql_type), formats.of(index))
        };
        let columns = batch.columns().iter().zip(columns).enumerate().map(encoder).collect();
        Ok(Self { columns, count: count.to_be_bytes() })
    }

    /// Appends `row` as one DataRow.
    ///
    /// # Errors
    /// `54000` when it is longer than a message may be; nothing is appended then.
    pub(super) fn encode(&self, row: usize, out: &mut Vec<u8>) -> Result<(), SqlError> {
        let begin = out.len();
        out.push(b'D');
        let start = out.len();
        out.extend_from_slice(&[0; 4]);
        out.extend_from_slice(&self.count);
        for (column, format) in &self.columns {
            let cell = out.len();
            out.extend_from_slice(&[0; 4]);
            let is_value = match format {
                Format::Text => column.text(row, out),
                Format::Binary => column.binary(row, out),
            };
            if is_value {
                // A cell's length does not count itself, a frame's does.
                let length = u32::try_from(out.len() - cell - 4).unwrap_or(u32::MAX);
                patch(out, cell, length.to_be_bytes());
            } else {
                patch(out, cell, (-1_i32).to_be_bytes());
            }
            if out.len() - begin > ROW_BYTES_MAX {
                out.truncate(begin);
                return Err(SqlError::new(SqlState::ProgramLimitExceeded, "a row of the result is too long")
                    .detail(format!("a row may have {ROW_BYTES_MAX} bytes on the wire"))
                    .hint("select fewer columns, or parts of them"));
            }
        }
        patch_length(out, start);
        Ok(())
    }
}

fn patch(out: &mut [u8], at: usize, bytes: [u8; 4]) {
    if let Some(place) = out.get_mut(at..at + 4) {
        place.copy_from_slice(&bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::SqlType;
    use arrow::array::{Int32Array, StringArray};
    use std::sync::Arc;

    fn columns() -> Vec<ResultColumn> {
        [("n", SqlType::Integer), ("t", SqlType::Text)]
            .map(|(name, sql_type)| ResultColumn { name: name.to_owned(), sql_type, source: None })
            .to_vec()
    }

    fn batch() -> RecordBatch {
        let numbers = Int32Array::from(vec![Some(7), None]);
        let texts = StringArray::from(vec![Some("ab"), Some("")]);
        RecordBatch::try_from_iter([("n", Arc::new(numbers) as _), ("t", Arc::new(texts) as _)]).unwrap()
    }

    #[test]
    fn text_rows_have_the_documented_layout() {
        let encoder = RowEncoder::new(&batch(), &columns(), &Formats::default()).unwrap();
        let mut out = Vec::new();
        encoder.encode(0, &mut out).unwrap();
        assert_eq!(out, b"D\0\0\0\x11\0\x02\0\0\0\x017\0\0\0\x02ab");
        out.clear();
        encoder.encode(1, &mut out).unwrap();
        assert_eq!(out, b"D\0\0\0\x0e\0\x02\xff\xff\xff\xff\0\0\0\0");
    }

    #[test]
    fn formats_are_per_column() {
        let formats = Formats::new(vec![Format::Binary, Format::Text]);
        let encoder = RowEncoder::new(&batch(), &columns(), &formats).unwrap();
        let mut out = Vec::new();
        encoder.encode(0, &mut out).unwrap();
        assert_eq!(out, b"D\0\0\0\x14\0\x02\0\0\0\x04\0\0\0\x07\0\0\0\x02ab");
    }

    #[test]
    fn one_format_is_for_all_columns() {
        assert_eq!(Formats::new(vec![Format::Binary]).of(5), Format::Binary);
        assert_eq!(Formats::new(vec![]).of(5), Format::Text);
    }

    #[test]
    fn a_batch_of_other_columns_is_an_internal_error() {
        let error = RowEncoder::new(&batch(), &columns()[..1], &Formats::default()).unwrap_err();
        assert_eq!(error.sqlstate, SqlState::InternalError);
    }
}
