//! Values with their counts, per slot, in their order.
//!
//! What aggregates over rows that go away keep where a few numbers do not do: a least value is known only when all are.
//! Leaves out what is made of them (`retracted`). Saved as one batch of owners, encoded values and counts.

use super::delta::{arrow_error, downcast};
use super::slots::KeyCodec;
use crate::error::SqlError;
use arrow::array::{ArrayRef, BinaryArray, RecordBatch, UInt32Array};
use arrow::datatypes::{DataType, Field, Schema};
use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::sync::Arc;

/// Memory of a value beside its bytes, about.
const ENTRY_BYTES: usize = 40;

/// The values of every slot.
#[derive(Debug)]
pub(super) struct Multiset {
    codec: KeyCodec,
    groups: Vec<BTreeMap<Box<[u8]>, u32>>,
    bytes: usize,
}

impl Multiset {
    /// Of rows of these types.
    pub(super) fn new(types: &[DataType]) -> Result<Self, SqlError> {
        Ok(Self { codec: KeyCodec::new(types)?, groups: Vec::new(), bytes: 0 })
    }

    /// The codec of the values.
    pub(super) fn codec(&self) -> &KeyCodec {
        &self.codec
    }

    /// Makes place for slots below `capacity`.
    pub(super) fn grow(&mut self, capacity: usize) {
        if self.groups.len() < capacity {
            self.groups.resize_with(capacity, BTreeMap::new);
        }
    }

    /// One more of `value`, or one less; gives how many there are now. One less than none stays none.
    pub(super) fn change(&mut self, slot: u32, value: &[u8], is_gone: bool) -> u32 {
        let group = &mut self.groups[slot as usize];
        match (group.get_mut(value), is_gone) {
            (Some(count), false) => {
                *count += 1;
                *count
            }
            (Some(count), true) if *count > 1 => {
                *count -= 1;
                *count
            }
            (Some(_), true) => {
                group.remove(value);
                self.bytes -= value.len() + ENTRY_BYTES;
                0
            }
            (None, false) => {
                group.insert(value.into(), 1);
                self.bytes += value.len() + ENTRY_BYTES;
                1
            }
            (None, true) => 0,
        }
    }

    /// The values of a slot in ascending order, with their counts.
    pub(super) fn values(&self, slot: u32) -> impl DoubleEndedIterator<Item = (&[u8], u32)> {
        let group = self.groups.get(slot as usize);
        group.into_iter().flat_map(|group| group.iter().map(|(value, count)| (value.as_ref(), *count)))
    }

    /// Moves the values of slot `from` to slot `to`.
    pub(super) fn merge(&mut self, to: u32, from: u32) {
        let Some(moved) = self.groups.get_mut(from as usize).map(std::mem::take) else { return };
        self.grow(to as usize + 1);
        for (value, count) in moved {
            match self.groups[to as usize].entry(value) {
                Entry::Occupied(mut found) => {
                    self.bytes -= found.key().len() + ENTRY_BYTES;
                    *found.get_mut() += count;
                }
                Entry::Vacant(vacant) => drop(vacant.insert(count)),
            }
        }
    }

    /// Forgets the values of `slots`.
    pub(super) fn clear(&mut self, slots: &[u32]) {
        for slot in slots {
            if let Some(group) = self.groups.get_mut(*slot as usize) {
                self.bytes -= group.keys().map(|value| value.len() + ENTRY_BYTES).sum::<usize>();
                *group = BTreeMap::new();
            }
        }
    }

    /// Memory held, about.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// The values of `slots`: the index into `slots`, the value, and its count.
    pub(super) fn save(&self, slots: &[u32]) -> Result<RecordBatch, SqlError> {
        let (mut owners, mut values, mut counts) = (Vec::new(), Vec::new(), Vec::new());
        for (owner, slot) in slots.iter().enumerate() {
            for (value, count) in self.values(*slot) {
                owners.push(owner as u32);
                values.push(value);
                counts.push(count);
            }
        }
        let field = |name, data_type| Field::new(name, data_type, false);
        let fields =
            vec![field("owner", DataType::UInt32), field("value", DataType::Binary), field("count", DataType::UInt32)];
        let columns: Vec<ArrayRef> = vec![
            Arc::new(UInt32Array::from(owners)),
            Arc::new(BinaryArray::from(values)),
            Arc::new(UInt32Array::from(counts)),
        ];
        RecordBatch::try_new(Arc::new(Schema::new(fields)), columns).map_err(arrow_error)
    }

    /// Takes over what `save` wrote; the slots are now 0, 1, 2 ….
    pub(super) fn restore(&mut self, batch: &RecordBatch, capacity: usize) -> Result<(), SqlError> {
        let (owners, counts): (UInt32Array, UInt32Array) = (downcast(batch.column(0))?, downcast(batch.column(2))?);
        let values: BinaryArray = downcast(batch.column(1))?;
        self.grow(capacity);
        for (row, owner) in owners.values().iter().enumerate() {
            let Some(group) = self.groups.get_mut(*owner as usize) else {
                return Err(SqlError::internal("saved state names a group that is not there"));
            };
            self.bytes += values.value(row).len() + ENTRY_BYTES;
            group.insert(values.value(row).into(), counts.value(row));
        }
        Ok(())
    }
}
