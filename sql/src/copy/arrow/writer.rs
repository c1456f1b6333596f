//! Batches as one Arrow IPC stream.
//!
//! The schema has the result's names and the Arrow types of its SQL types, so it is the same for every plan of a query,
//! and there before the first row. Leaves out files and compression. Source: Arrow columnar format, "IPC Streaming Format".

use crate::error::SqlError;
use crate::plan::ResultColumn;
use arrow::array::{Array, RecordBatch, RecordBatchOptions};
use arrow::compute::cast;
use arrow::datatypes::{Schema, SchemaRef};
use arrow::error::ArrowError;
use arrow::ipc::writer::StreamWriter;
use std::fmt;
use std::sync::Arc;

/// Bytes of a piece: one message of COPY.
const PIECE_BYTES: usize = 64 << 10;

/// Writes an Arrow IPC stream in pieces.
pub(in crate::copy) struct ArrowWriter {
    schema: SchemaRef,
    stream: StreamWriter<Vec<u8>>,
    /// Bytes of the stream's buffer already given.
    given: usize,
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
        let stream = StreamWriter::try_new(Vec::new(), &schema).map_err(internal)?;
        Ok(Self { schema, stream, given: 0 })
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
        let batch = RecordBatch::try_new_with_options(Arc::clone(&self.schema), columns, &options);
        self.stream.write(&batch.map_err(internal)?).map_err(internal)
    }

    /// Appends the next piece; false, and nothing appended, when all is given.
    pub(in crate::copy) fn next(&mut self, out: &mut Vec<u8>) -> bool {
        let buffer = self.stream.get_mut();
        if self.given == buffer.len() {
            self.given = 0;
            buffer.clear();
            return false;
        }
        let end = buffer.len().min(self.given + PIECE_BYTES);
        out.extend_from_slice(&buffer[self.given..end]);
        self.given = end;
        true
    }

    /// Appends the end of the stream.
    pub(in crate::copy) fn finish(&mut self, out: &mut Vec<u8>) -> Result<(), SqlError> {
        self.stream.finish().map_err(internal)?;
        while self.next(out) {}
        Ok(())
    }
}
