//! `CopyDecoder`: copy data in chunks to batches of a relation's rows.
//!
//! Owns the choice of the reader. Leaves out the formats (`records`, `binary`, `arrow`) and the protocol. The engine
//! calls it; an error ends the COPY and nothing is written.

use super::arrow::ArrowReader;
use super::binary::BinaryReader;
use super::records::LineReader;
use super::sink::Sink;
use crate::bind::insert::{InsertRows, PlanEval};
use crate::dialect::ast::{CopyFormat, CopyOptions, Ident};
use crate::error::SqlError;
use millstream_catalog::Relation;
use millstream_catalog::model::ByteSize;

/// Decodes copy data.
#[derive(Debug)]
pub struct CopyDecoder(Reader);

#[derive(Debug)]
enum Reader {
    Lines(Box<LineReader>),
    Binary(Box<BinaryReader>),
    Arrow(Box<ArrowReader>),
}

impl CopyDecoder {
    /// A decoder for `COPY relation (columns) FROM STDIN`; `eval` gives the defaults that are not literals.
    ///
    /// # Errors
    /// 42703 and 42701 for columns; 42P10 for options that name a column the COPY does not.
    pub fn new(
        relation: &Relation,
        columns: Option<&[Ident]>,
        options: &CopyOptions,
        eval: PlanEval<'_>,
    ) -> Result<Self, SqlError> {
        Ok(Self(match options.format {
            CopyFormat::Text | CopyFormat::Csv | CopyFormat::Json => {
                Reader::Lines(Box::new(LineReader::new(Sink::new(relation, columns, eval)?, options)?))
            }
            CopyFormat::Binary => Reader::Binary(Box::new(BinaryReader::new(Sink::new(relation, columns, eval)?))),
            CopyFormat::Arrow => Reader::Arrow(Box::new(ArrowReader::new(relation, columns, eval)?)),
        }))
    }

    /// True for data that is not text.
    pub fn is_binary(&self) -> bool {
        !matches!(self.0, Reader::Lines(_))
    }

    /// Takes the next chunk of data, cut anywhere; all rows of the one before were taken.
    ///
    /// # Errors
    /// PostgreSQL's SQLSTATE and message for data that is not the format's or a value that is not its
    /// column's, with line and column in the context. The decoder is of no use afterwards.
    pub fn push(&mut self, data: &[u8]) -> Result<(), SqlError> {
        match &mut self.0 {
            Reader::Lines(reader) => reader.push(data),
            Reader::Binary(reader) => reader.push(data),
            Reader::Arrow(reader) => reader.push(data),
        }
    }

    /// Ends the data.
    ///
    /// # Errors
    /// Those of [`Self::push`], and 22P04 for data that ends within a row.
    pub fn finish(&mut self) -> Result<(), SqlError> {
        match &mut self.0 {
            Reader::Lines(reader) => reader.finish(),
            Reader::Binary(reader) => reader.finish(),
            Reader::Arrow(reader) => reader.finish(),
        }
    }

    /// Gives the whole rows so far as a batch, although there is room for more in it: memory is short.
    ///
    /// # Errors
    /// Those of [`Self::push`].
    pub fn cut(&mut self) -> Result<(), SqlError> {
        match &mut self.0 {
            Reader::Lines(reader) => reader.cut(),
            Reader::Binary(reader) => reader.cut(),
            // Its batches are those of the stream.
            Reader::Arrow(_) => Ok(()),
        }
    }

    /// Bytes of data that was taken and not yet given as rows: parts of a row or message, rows of a batch that is not
    /// full, dictionaries.
    pub fn held_bytes(&self) -> ByteSize {
        let bytes = match &self.0 {
            Reader::Lines(reader) => reader.held_bytes(),
            Reader::Binary(reader) => reader.held_bytes(),
            Reader::Arrow(reader) => reader.held_bytes(),
        };
        ByteSize::new(bytes as u64)
    }

    /// The next batch of rows that is complete, at most 65,536 of them.
    ///
    /// # Errors
    /// Those of [`Self::push`]: the rows of arrow are converted as they are taken.
    pub fn next_rows(&mut self) -> Result<Option<InsertRows>, SqlError> {
        match &mut self.0 {
            Reader::Lines(reader) => Ok(reader.next_rows()),
            Reader::Binary(reader) => Ok(reader.next_rows()),
            Reader::Arrow(reader) => reader.next_rows(),
        }
    }
}
