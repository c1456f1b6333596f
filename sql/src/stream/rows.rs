//! Whole rows as bytes: what operators keep of rows they must give again.
//!
//! Equal rows have equal bytes. Leaves out who keeps them. Holds nothing.

use super::delta::arrow_error;
use super::slots::{KeyBytes, KeyCodec};
use crate::error::SqlError;
use arrow::array::{RecordBatch, RecordBatchOptions};
use arrow::datatypes::{DataType, SchemaRef};
use std::sync::Arc;

/// Encodes rows of a schema, and makes batches of encoded rows.
#[derive(Debug)]
pub(super) struct RowCodec {
    schema: SchemaRef,
    codec: KeyCodec,
}

impl RowCodec {
    pub(super) fn new(schema: SchemaRef) -> Result<Self, SqlError> {
        let types: Vec<DataType> = schema.fields().iter().map(|field| field.data_type().clone()).collect();
        Ok(Self { codec: KeyCodec::new(&types)?, schema })
    }

    pub(super) fn encode(&self, batch: &RecordBatch) -> Result<KeyBytes, SqlError> {
        self.codec.encode(batch.columns())
    }

    /// The rows of `bytes`, one after the other.
    pub(super) fn decode<'a>(&self, bytes: impl Iterator<Item = &'a [u8]>) -> Result<RecordBatch, SqlError> {
        let mut count = 0;
        let counted = bytes.inspect(|_| count += 1).collect::<Vec<_>>();
        let columns = self.codec.decode(counted.into_iter())?;
        let options = RecordBatchOptions::new().with_row_count(Some(count));
        RecordBatch::try_new_with_options(Arc::clone(&self.schema), columns, &options).map_err(arrow_error)
    }

    pub(super) fn schema(&self) -> &SchemaRef {
        &self.schema
    }

    /// For the fingerprint.
    pub(super) fn text(&self) -> String {
        types_text(&self.schema)
    }
}

/// The types of columns, for the fingerprint.
pub(super) fn types_text(schema: &SchemaRef) -> String {
    let types: Vec<String> = schema.fields().iter().map(|field| field.data_type().to_string()).collect();
    types.join(", ")
}
