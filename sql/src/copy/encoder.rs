//! `CopyEncoder`: batches of a result as copy data, in pieces a message can hold.
//!
//! Owns the order of header, rows and end. Leaves out the formats (`writer`, `binary`, `arrow`) and the protocol. The
//! server calls it for each batch of a COPY TO STDOUT.

use super::arrow::ArrowWriter;
use super::binary::BinaryWriter;
use super::writer::LineWriter;
use crate::dialect::ast::{CopyFormat, CopyOptions};
use crate::error::SqlError;
use crate::plan::ResultColumn;
use crate::types::ColumnEncoder;
use arrow::array::RecordBatch;
use millstream_catalog::SqlType;
use std::ops::Range;

/// Encodes rows as copy data: [`Self::header`], then for each batch [`Self::begin`] and [`Self::next`] until it gives
/// false, then [`Self::finish`].
///
/// A piece is one row, as PostgreSQL sends it and psycopg's `Copy.rows` relies on; of arrow, some part of the stream.
#[derive(Debug)]
pub struct CopyEncoder {
    types: Vec<SqlType>,
    format: Writer,
    /// The columns of the batch begun, for the formats of rows.
    cells: Vec<ColumnEncoder>,
    /// Its rows to come.
    rows: Range<usize>,
}

#[derive(Debug)]
enum Writer {
    Lines(Box<LineWriter>),
    Binary(BinaryWriter),
    Arrow(Box<ArrowWriter>),
}

impl CopyEncoder {
    /// An encoder for a result of these columns.
    ///
    /// # Errors
    /// 42703 when `FORCE_QUOTE` names a column that is not among them.
    pub fn new(options: &CopyOptions, columns: &[ResultColumn]) -> Result<Self, SqlError> {
        let format = match options.format {
            CopyFormat::Text | CopyFormat::Csv | CopyFormat::Json => {
                Writer::Lines(Box::new(LineWriter::new(options, columns)?))
            }
            CopyFormat::Binary => Writer::Binary(BinaryWriter::default()),
            CopyFormat::Arrow => Writer::Arrow(Box::new(ArrowWriter::new(columns)?)),
        };
        let types = columns.iter().map(|column| column.sql_type.clone()).collect();
        Ok(Self { types, format, cells: Vec::new(), rows: 0..0 })
    }

    /// True for data that is not text.
    pub fn is_binary(&self) -> bool {
        !matches!(self.format, Writer::Lines(_))
    }

    /// Appends what a reader can have before the first row, if anything.
    pub fn header(&mut self, out: &mut Vec<u8>) {
        match &mut self.format {
            Writer::Lines(lines) => lines.header(out),
            Writer::Binary(_) => {}
            Writer::Arrow(stream) => while stream.next(out) {},
        }
    }

    /// Takes the next batch; all pieces of the one before were taken.
    ///
    /// # Errors
    /// XX000 when the batch is not of the columns announced.
    pub fn begin(&mut self, batch: &RecordBatch) -> Result<(), SqlError> {
        if batch.num_columns() != self.types.len() {
            return Err(SqlError::internal("a batch has other columns than its result"));
        }
        if let Writer::Arrow(stream) = &mut self.format {
            return stream.begin(batch);
        }
        let cells = batch.columns().iter().zip(&self.types);
        self.cells = cells.map(|(array, sql_type)| ColumnEncoder::new(array.as_ref(), sql_type)).collect();
        self.rows = 0..batch.num_rows();
        Ok(())
    }

    /// Appends the next piece of the batch; false, and nothing appended, at its end.
    pub fn next(&mut self, out: &mut Vec<u8>) -> bool {
        if let Writer::Arrow(stream) = &mut self.format {
            return stream.next(out);
        }
        let Some(row) = self.rows.next() else { return false };
        match &mut self.format {
            Writer::Lines(lines) => lines.row(&self.cells, row, out),
            Writer::Binary(rows) => rows.row(&self.cells, row, out),
            Writer::Arrow(_) => {}
        }
        true
    }

    /// Appends what ends the data, if anything.
    pub fn finish(&mut self, out: &mut Vec<u8>) {
        match &mut self.format {
            Writer::Lines(_) => {}
            Writer::Binary(rows) => rows.finish(out),
            Writer::Arrow(stream) => stream.finish(out),
        }
    }
}
