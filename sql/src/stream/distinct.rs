//! DISTINCT in aggregates: lets the first of equal argument rows of a group through, in event order.
//!
//! Used instead of the distinct accumulators of the engine's libraries, whose results for floats depend on the order
//! of a hash table. Leaves out the aggregate itself. State: the arguments seen, per group.

use super::delta::{arrow_error, downcast};
use super::slots::KeyCodec;
use crate::error::SqlError;
use crate::types::canonical;
use arrow::array::{Array, ArrayRef, BinaryArray, BooleanArray, BooleanBufferBuilder, RecordBatch, UInt32Array};
use arrow::datatypes::{DataType, Field, Schema};
use std::collections::HashSet;
use std::sync::Arc;

/// The argument rows seen so far, by slot.
#[derive(Debug)]
pub(crate) struct DistinctGate {
    codec: KeyCodec,
    seen: Vec<HashSet<Box<[u8]>>>,
    bytes: usize,
}

impl DistinctGate {
    /// For arguments of these types.
    pub(crate) fn new(types: &[DataType]) -> Result<Self, SqlError> {
        Ok(Self { codec: KeyCodec::new(types)?, seen: Vec::new(), bytes: 0 })
    }

    /// True for rows that pass `filter` and whose arguments their slot has not seen before.
    pub(crate) fn pass(
        &mut self,
        arguments: &[ArrayRef],
        filter: Option<&BooleanArray>,
        slots: impl Iterator<Item = u32>,
        capacity: usize,
    ) -> Result<BooleanArray, SqlError> {
        self.seen.resize_with(capacity, HashSet::new);
        let columns: Vec<ArrayRef> = arguments.iter().map(|column| canonical(Arc::clone(column))).collect();
        let keys = self.codec.encode(&columns)?;
        let mut passed = BooleanBufferBuilder::new(columns.first().map_or(0, |column| column.len()));
        for (row, slot) in slots.enumerate() {
            let is_wanted = filter.is_none_or(|filter| filter.is_valid(row) && filter.value(row));
            let seen = &mut self.seen[slot as usize];
            let key = keys.get(row);
            let is_first = is_wanted && !seen.contains(key);
            if is_first {
                self.bytes += key.len() + 32;
                seen.insert(key.into());
            }
            passed.append(is_first);
        }
        Ok(BooleanArray::new(passed.finish(), None))
    }

    /// Forgets what `slots` have seen.
    pub(crate) fn clear(&mut self, slots: &[u32]) {
        for slot in slots {
            if let Some(seen) = self.seen.get_mut(*slot as usize) {
                self.bytes -= seen.iter().map(|key| key.len() + 32).sum::<usize>();
                *seen = HashSet::new();
            }
        }
    }

    /// Memory held, about.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    /// What `slots` have seen: the index into `slots`, and the key; keys of a slot in ascending order.
    pub(crate) fn save(&self, slots: &[u32]) -> Result<RecordBatch, SqlError> {
        let mut owners = Vec::new();
        let mut keys: Vec<&[u8]> = Vec::new();
        for (owner, slot) in slots.iter().enumerate() {
            let Some(seen) = self.seen.get(*slot as usize) else { continue };
            let mut sorted: Vec<&[u8]> = seen.iter().map(AsRef::as_ref).collect();
            sorted.sort_unstable();
            owners.resize(owners.len() + sorted.len(), owner as u32);
            keys.extend(sorted);
        }
        let schema =
            Schema::new(vec![Field::new("owner", DataType::UInt32, false), Field::new("key", DataType::Binary, false)]);
        let columns: Vec<ArrayRef> = vec![Arc::new(UInt32Array::from(owners)), Arc::new(BinaryArray::from(keys))];
        RecordBatch::try_new(Arc::new(schema), columns).map_err(arrow_error)
    }

    /// Takes over what `save` wrote; the slots are now 0, 1, 2 ….
    pub(crate) fn restore(&mut self, batch: &RecordBatch, capacity: usize) -> Result<(), SqlError> {
        let owners: UInt32Array = downcast(batch.column(0))?;
        let keys: BinaryArray = downcast(batch.column(1))?;
        self.seen.resize_with(capacity, HashSet::new);
        for (owner, key) in owners.values().iter().zip(keys.iter().flatten()) {
            let Some(seen) = self.seen.get_mut(*owner as usize) else {
                return Err(SqlError::internal("saved state names a group that is not there"));
            };
            self.bytes += key.len() + 32;
            seen.insert(key.into());
        }
        Ok(())
    }
}
