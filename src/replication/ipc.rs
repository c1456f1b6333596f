//! Rows of an entry as Arrow IPC messages without their schema, which the topic has.
//!
//! Leaves out the entry around them (`entry`). Pure; a crash does nothing to it.

use super::codec::{DecodeError, Decoder};
use crate::storage::fit::{width, without_later};
use arrow::array::RecordBatch;
use arrow::buffer::Buffer;
use arrow::datatypes::{DataType, SchemaRef};
use arrow::ipc::writer::{DictionaryTracker, IpcDataGenerator, IpcWriteContext, IpcWriteOptions};
use arrow::ipc::{MetadataVersion, root_as_message};
use bytes::Bytes;
use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

/// Bytes of a message's body are aligned to this; small, because most entries hold few rows.
const ALIGNMENT: usize = 8;

/// An IPC message: its head (length u32 and flatbuffer) and its body.
pub(super) fn encode_batch(batch: &RecordBatch) -> Result<(Vec<u8>, Vec<u8>), String> {
    let options = IpcWriteOptions::try_new(ALIGNMENT, false, MetadataVersion::V5).map_err(|e| e.to_string())?;
    let mut dictionaries = DictionaryTracker::new(true);
    let (dictionary_messages, message) = IpcDataGenerator::default()
        .encode(batch, &mut dictionaries, &options, &mut IpcWriteContext::default())
        .map_err(|e| e.to_string())?;
    if !dictionary_messages.is_empty() {
        return Err("dictionary columns are not stored".to_owned());
    }
    let length = u32::try_from(message.ipc_message.len()).map_err(|e| e.to_string())?;
    let mut head = Vec::with_capacity(4 + message.ipc_message.len());
    head.extend_from_slice(&length.to_le_bytes());
    head.extend_from_slice(&message.ipc_message);
    Ok((head, message.arrow_data))
}

/// The batch of a message, in the topic's stored schema, or with the first of its columns.
pub(super) fn decode_batch(bytes: Bytes, schema: &SchemaRef) -> Result<RecordBatch, DecodeError> {
    let damaged = |e: &dyn fmt::Display| DecodeError::Damaged(e.to_string());
    let mut decoder = Decoder::new(bytes.clone());
    let head_end = 4 + decoder.u32()? as usize;
    if head_end > bytes.len() {
        return Err(DecodeError::Short);
    }
    let head = bytes.slice(4..head_end);
    let message = root_as_message(&head).map_err(|e| damaged(&e))?;
    let rows = message.header_as_record_batch().ok_or(DecodeError::Kind(message.header_type().0))?;
    let body = Buffer::from(bytes.slice(head_end..));
    let version = message.version();
    let schema = schema_of(rows.nodes().map_or(0, |nodes| nodes.len()), schema);
    arrow::ipc::reader::read_record_batch(&body, rows, schema, &HashMap::new(), None, &version).map_err(|e| damaged(&e))
}

/// The schema of a message with this many nodes: `schema`, or as it was before columns were added.
fn schema_of(nodes: usize, schema: &SchemaRef) -> SchemaRef {
    let count = |schema: &SchemaRef| schema.fields().iter().map(|field| nodes_of(field.data_type())).sum::<usize>();
    if count(schema) == nodes {
        return Arc::clone(schema);
    }
    let older = (0..width(schema)).rev().map(|kept| without_later(schema, kept));
    older.into_iter().find(|older| count(older) == nodes).unwrap_or_else(|| Arc::clone(schema))
}

/// Nodes that an array has in a message: its own and those of its children.
fn nodes_of(data_type: &DataType) -> usize {
    1 + match data_type {
        DataType::List(item)
        | DataType::LargeList(item)
        | DataType::FixedSizeList(item, _)
        | DataType::Map(item, _) => nodes_of(item.data_type()),
        DataType::Struct(fields) => fields.iter().map(|field| nodes_of(field.data_type())).sum(),
        _ => 0,
    }
}
