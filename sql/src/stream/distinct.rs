//! DISTINCT in aggregates: lets the first of equal argument rows of a group through, in event order, and of rows that go
//! away again the last.
//!
//! Used instead of the distinct accumulators of the engine's libraries, whose results for floats depend on the order
//! of a hash table. Leaves out the aggregate itself. State: the arguments seen, per group.

use super::delta::Weights;
use super::multiset::Multiset;
use crate::error::SqlError;
use crate::types::canonical;
use arrow::array::{Array, ArrayRef, BooleanArray, BooleanBufferBuilder, RecordBatch};
use arrow::datatypes::DataType;
use std::sync::Arc;

/// The argument rows seen so far, by slot.
#[derive(Debug)]
pub(crate) struct DistinctGate {
    types: Vec<DataType>,
    seen: Multiset,
}

impl DistinctGate {
    /// For arguments of these types.
    pub(crate) fn new(types: &[DataType]) -> Result<Self, SqlError> {
        Ok(Self { types: types.to_vec(), seen: Multiset::new(types)? })
    }

    /// The same, which has seen nothing.
    pub(crate) fn fresh(&self) -> Result<Self, SqlError> {
        Self::new(&self.types)
    }

    /// True for rows that pass `filter` and whose arguments their slot has not seen before, or has no more.
    pub(crate) fn pass(
        &mut self,
        arguments: &[ArrayRef],
        filter: Option<&BooleanArray>,
        weights: &Weights,
        slots: impl Iterator<Item = u32>,
        capacity: usize,
    ) -> Result<BooleanArray, SqlError> {
        self.seen.grow(capacity);
        let columns: Vec<ArrayRef> = arguments.iter().map(|column| canonical(Arc::clone(column))).collect();
        let keys = self.seen.codec().encode(&columns)?;
        let mut passed = BooleanBufferBuilder::new(columns.first().map_or(0, |column| column.len()));
        for (row, slot) in slots.enumerate() {
            let is_wanted = filter.is_none_or(|filter| filter.is_valid(row) && filter.value(row));
            let is_gone = weights.is_gone(row);
            let count = if is_wanted { self.seen.change(slot, keys.get(row), is_gone) } else { u32::MAX };
            passed.append(is_wanted && count == u32::from(!is_gone));
        }
        Ok(BooleanArray::new(passed.finish(), None))
    }

    /// Forgets what `slots` have seen.
    pub(crate) fn clear(&mut self, slots: &[u32]) {
        self.seen.clear(slots);
    }

    /// Memory held, about.
    pub(crate) fn bytes(&self) -> usize {
        self.seen.bytes()
    }

    /// What `slots` have seen.
    pub(crate) fn save(&self, slots: &[u32]) -> Result<RecordBatch, SqlError> {
        self.seen.save(slots)
    }

    /// Takes over what `save` wrote; the slots are now 0, 1, 2 ….
    pub(crate) fn restore(&mut self, batch: &RecordBatch, capacity: usize) -> Result<(), SqlError> {
        self.seen.restore(batch, capacity)
    }
}
