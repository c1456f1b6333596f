//! Batches as one Arrow IPC stream.
//!
//! The schema has the result's names and the Arrow types of its SQL types, so it is the same for every plan of a query,
//! and there before the first row. A batch is encoded as a whole, and given in pieces. Leaves out files and compression.
//! Source: Arrow columnar format, "IPC Streaming Format".

use crate::error::SqlError;
use crate::plan::ResultColumn;
use arrow::array::{Array, RecordBatch, RecordBatchOptions};
use arrow::compute::cast;
use arrow::datatypes::{Schema, SchemaRef};
use arrow::error::ArrowError;
use arrow::ipc::writer::{
    DictionaryTracker, EncodedData, IpcDataGenerator, IpcWriteContext, IpcWriteOptions, write_message,
};
use std::fmt;
use std::sync::Arc;

/// Bytes of a piece: one message of COPY.
const PIECE_BYTES: usize = 256 << 10;
/// A marker, and no metadata.
const END: [u8; 8] = [0xFF, 0xFF, 0xFF, 0xFF, 0, 0, 0, 0];

/// Writes an Arrow IPC stream in pieces.
pub(in crate::copy) struct ArrowWriter {
    schema: SchemaRef,
    options: IpcWriteOptions,
    context: IpcWriteContext,
    /// Of the message that is given: marker, length and metadata, and how much of it is given.
    head: (Vec<u8>, usize),
    /// Its values, likewise.
    body: (Vec<u8>, usize),
}

impl fmt::Debug for ArrowWriter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ArrowWriter").field("schema", &self.schema).finish_non_exhaustive()
    }
}

fn internal(error: ArrowError) -> SqlError {
    SqlError::internal(format!("rows cannot be written as arrow: {error}"))
}

impl ArrowWriter {
    /// A stream of a result of these columns; its schema is the first piece.
    pub(in crate::copy) fn new(columns: &[ResultColumn]) -> Result<Self, SqlError> {
        let fields: Vec<_> = columns.iter().map(|column| column.sql_type.field(&column.name, true)).collect();
        let schema = Arc::new(Schema::new(fields));
        let options = IpcWriteOptions::default();
        let mut tracker = DictionaryTracker::new(true);
        let encoded =
            IpcDataGenerator::default().schema_to_bytes_with_dictionary_tracker(&schema, &mut tracker, &options);
        let mut writer =
            Self { schema, options, context: IpcWriteContext::default(), head: (Vec::new(), 0), body: (Vec::new(), 0) };
        writer.message(encoded)?;
        Ok(writer)
    }

    /// Takes a message; the values are not copied.
    fn message(&mut self, encoded: EncodedData) -> Result<(), SqlError> {
        let EncodedData { ipc_message, arrow_data } = encoded;
        self.head = (Vec::with_capacity(ipc_message.len() + 72), 0);
        let head = EncodedData { ipc_message, arrow_data: Vec::new() };
        write_message(&mut self.head.0, head, &self.options).map_err(internal)?;
        self.body = (arrow_data, 0);
        Ok(())
    }

    /// Takes a batch, whose columns are used as they are where they have the schema's type.
    pub(in crate::copy) fn begin(&mut self, batch: &RecordBatch) -> Result<(), SqlError> {
        let mut columns = Vec::with_capacity(batch.num_columns());
        for (array, field) in batch.columns().iter().zip(self.schema.fields()) {
            columns.push(match array.data_type() == field.data_type() {
                true => Arc::clone(array),
                false => cast(array, field.data_type()).map_err(internal)?,
            });
        }
        let options = RecordBatchOptions::new().with_row_count(Some(batch.num_rows()));
        let batch = RecordBatch::try_new_with_options(Arc::clone(&self.schema), columns, &options).map_err(internal)?;
        let mut tracker = DictionaryTracker::new(true);
        // No SQL type is stored as a dictionary, so that there are none before the batch.
        let (_, encoded) = IpcDataGenerator::default()
            .encode(&batch, &mut tracker, &self.options, &mut self.context)
            .map_err(internal)?;
        self.message(encoded)
    }

    /// Appends the next piece; false, and nothing appended, when all is given.
    pub(in crate::copy) fn next(&mut self, out: &mut Vec<u8>) -> bool {
        let mut room = PIECE_BYTES;
        for (bytes, given) in [&mut self.head, &mut self.body] {
            let end = bytes.len().min(*given + room);
            out.extend_from_slice(&bytes[*given..end]);
            room -= end - *given;
            *given = end;
        }
        room < PIECE_BYTES
    }

    /// Appends the end of the stream.
    pub(in crate::copy) fn finish(&mut self, out: &mut Vec<u8>) {
        while self.next(out) {}
        out.extend_from_slice(&END);
    }
}
