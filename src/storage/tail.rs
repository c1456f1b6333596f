//! The tail: a partition's published rows that are not in a segment yet, as few batches.
//!
//! Owns the merging of small batches. Leaves out publication (the shard's store) and sealing. Called by the
//! single writer only; what it returns is immutable and shared with readers. A crash empties it: the log
//! brings the rows back.
//!
//! Merging: a batch's *weight* is its rows, or 1/256 of its bytes if that is more; its *level* is the integer
//! logarithm of the weight to base 8. A new batch first takes in the batches of lower levels right before it;
//! then eight neighbours of one level become one. So a row is copied about once per level: at most six times
//! on its way to the weight of 65,536 at which a batch is left alone; and beside those full batches there are
//! at most seven per level. Rejected: binary merging (three times the copies for half the batches), and
//! merging in a thread of its own (a second writer).

use super::batch::{RowtimeRange, StoredBatch, batch_bytes, concat, with_schema};
use super::entries::EntryRuns;
use super::error::StorageError;
use super::mmap::MAPS;
use arrow::array::{Array as _, ArrayRef, RecordBatch};
use arrow::datatypes::SchemaRef;
use millstream_catalog::model::limit::BATCH_ROWS_MAX;
use millstream_catalog::model::{ByteSize, EntryIndex, Offset, RowCount};
use std::sync::Arc;

/// Batches of one level that become one.
const FAN: usize = 8;
/// Weight above which batches are not merged.
const WEIGHT_MAX: u64 = BATCH_ROWS_MAX as u64;
/// Bytes that weigh as much as a row: a full batch has at most 16 MiB, unless one append brought more.
const BYTES_PER_WEIGHT: u64 = 256;
/// Level from which batches are left alone.
const LEVEL_FULL: u32 = 5;

/// A batch in memory, with what pruning and cuts need to know of it.
#[derive(Debug)]
pub(crate) struct TailBatch {
    pub(crate) stored: StoredBatch,
    pub(crate) rowtime: Option<RowtimeRange>,
    pub(crate) entry_first: EntryIndex,
    pub(crate) entry_last: EntryIndex,
    /// Bytes of the rows, as counted when they were appended.
    pub(crate) bytes: ByteSize,
    /// Its rows are in a mapped file: a copy would bring them into memory.
    is_mapped: bool,
}

impl TailBatch {
    /// The rows of one append, all of one entry.
    pub(crate) fn new(offset_start: Offset, batch: RecordBatch, index: EntryIndex) -> Self {
        let rowtime = RowtimeRange::of(&batch);
        let bytes = batch_bytes(&batch);
        let entries = EntryRuns::of(index, RowCount::of(batch.num_rows()));
        let stored = StoredBatch { offset_start, offsets: None, batch, entries };
        Self { stored, rowtime, entry_first: index, entry_last: index, bytes, is_mapped: false }
    }

    /// As [`TailBatch::new`], of rows in a mapped file.
    pub(crate) fn mapped(offset_start: Offset, batch: RecordBatch, index: EntryIndex) -> Self {
        Self { is_mapped: true, ..Self::new(offset_start, batch, index) }
    }

    /// Its rows are about to be read.
    pub(crate) fn read(&self) -> &StoredBatch {
        let first = |column: &ArrayRef| column.to_data().buffers().first().map(|buffer| buffer.as_ptr());
        let address = if self.is_mapped { self.stored.batch.columns().iter().find_map(first) } else { None };
        if let Some(address) = address {
            MAPS.read(address, self.bytes);
        }
        &self.stored
    }

    pub(crate) fn offset_end(&self) -> Offset {
        self.stored.offset_end()
    }

    /// The rows from offset `start` on, which must be in the batch.
    pub(crate) fn after(&self, start: Offset) -> Self {
        let skip = start.since(self.stored.offset_start).as_usize();
        let stored = self.stored.slice(skip, self.stored.batch.num_rows().saturating_sub(skip));
        Self {
            rowtime: RowtimeRange::of(&stored.batch),
            entry_first: stored.entries.first().unwrap_or(self.entry_first),
            entry_last: self.entry_last,
            bytes: batch_bytes(&stored.batch),
            is_mapped: self.is_mapped,
            stored,
        }
    }

    /// The same rows in a schema of the same columns and more.
    ///
    /// # Errors
    /// [`StorageError::Schema`] when the columns are others.
    pub(crate) fn with_schema(&self, schema: &SchemaRef) -> Result<Self, StorageError> {
        let batch = with_schema(self.stored.batch.clone(), schema)?;
        let bytes = batch_bytes(&batch);
        let (entry_first, entry_last) = (self.entry_first, self.entry_last);
        let stored = StoredBatch { batch, ..self.stored.clone() };
        Ok(Self { stored, rowtime: self.rowtime, entry_first, entry_last, bytes, is_mapped: self.is_mapped })
    }

    fn weight(&self) -> u64 {
        if self.is_mapped {
            return WEIGHT_MAX;
        }
        self.stored.rows().value().max(self.bytes.value() / BYTES_PER_WEIGHT).max(1)
    }

    fn level(&self) -> u32 {
        self.weight().ilog(FAN as u64).min(LEVEL_FULL)
    }

    fn merge(parts: &[Arc<TailBatch>]) -> Result<Arc<TailBatch>, StorageError> {
        let (Some(first), Some(last)) = (parts.first(), parts.last()) else {
            return Err(StorageError::Schema { what: "no rows to merge".to_owned() });
        };
        if parts.len() == 1 {
            return Ok(first.clone());
        }
        let batches: Vec<RecordBatch> = parts.iter().map(|part| part.stored.batch.clone()).collect();
        let stored = StoredBatch {
            offset_start: first.stored.offset_start,
            offsets: None,
            batch: concat(first.stored.batch.schema_ref(), &batches)?,
            entries: EntryRuns::concat(parts.iter().map(|part| &part.stored.entries)),
        };
        Ok(Arc::new(TailBatch {
            stored,
            rowtime: parts.iter().fold(None, |range, part| RowtimeRange::union(range, part.rowtime)),
            entry_first: first.entry_first,
            entry_last: last.entry_last,
            bytes: parts.iter().fold(ByteSize::ZERO, |sum, part| sum.plus(part.bytes)),
            is_mapped: false,
        }))
    }
}

/// The published batches of a partition that are not frozen, in order.
#[derive(Debug, Default)]
pub(crate) struct Tail {
    batches: Vec<Arc<TailBatch>>,
}

impl Tail {
    /// These batches as they are.
    pub(crate) fn of(batches: Vec<Arc<TailBatch>>) -> Self {
        Self { batches }
    }

    /// Adds batches, which must follow the last one; merges where that pays.
    pub(crate) fn extend(&mut self, batches: Vec<TailBatch>) {
        for merged in merge_neighbours(batches.into_iter().map(Arc::new).collect()) {
            self.push(merged);
        }
    }

    /// The batches as they are now.
    pub(crate) fn batches(&self) -> &[Arc<TailBatch>] {
        &self.batches
    }

    /// Takes every batch out.
    pub(crate) fn take(&mut self) -> Vec<Arc<TailBatch>> {
        std::mem::take(&mut self.batches)
    }

    fn push(&mut self, new: Arc<TailBatch>) {
        let level = new.level();
        let lower = self.batches.iter().rev().take_while(|batch| batch.level() < level).count();
        self.batches.push(new);
        if lower > 0 {
            self.merge_last(lower + 1);
        }
        while let Some(last) = self.batches.last() {
            let level = last.level();
            let equal = self.batches.iter().rev().take_while(|batch| batch.level() == level).count();
            if level == LEVEL_FULL || equal < FAN || !self.merge_last(equal) {
                break;
            }
        }
    }

    /// Merges the last `count` batches as far as weights allow; false if nothing could be merged.
    fn merge_last(&mut self, count: usize) -> bool {
        let before = self.batches.len();
        let last = self.batches.split_off(before.saturating_sub(count));
        self.batches.extend(merge_neighbours(last));
        self.batches.len() < before
    }
}

/// Merges neighbours from the first on while their weights fit in one batch.
fn merge_neighbours(batches: Vec<Arc<TailBatch>>) -> Vec<Arc<TailBatch>> {
    let mut merged = Vec::new();
    let mut rest = batches.as_slice();
    while let Some(first) = rest.first() {
        let mut weight = first.weight();
        let more = rest.iter().skip(1).take_while(|batch| {
            weight += batch.weight();
            weight <= WEIGHT_MAX
        });
        let (group, after) = rest.split_at(1 + more.count());
        match TailBatch::merge(group) {
            Ok(batch) => merged.push(batch),
            // Merging is only for speed: what cannot be merged stays as it is.
            Err(_) => merged.extend_from_slice(group),
        }
        rest = after;
    }
    merged
}

#[cfg(test)]
mod tests {
    use super::super::testing::{dense, tail_batch};
    use super::*;
    use millstream_catalog::model::Timestamp;
    use proptest::prelude::*;

    fn stored(tail: &Tail) -> Vec<StoredBatch> {
        tail.batches().iter().map(|batch| batch.stored.clone()).collect()
    }

    #[test]
    fn single_rows_become_few_batches() {
        let mut tail = Tail::default();
        for offset in 0..5_000 {
            tail.extend(vec![tail_batch(offset..offset + 1, offset + 1)]);
            assert!(tail.batches().len() <= (FAN - 1) * 5, "{} batches of {offset} rows", tail.batches().len());
        }
        assert_eq!(dense(0, stored(&tail)), (0..5_000).collect::<Vec<_>>());
    }

    #[test]
    fn merged_batches_keep_entries_ranges_and_bytes() {
        let mut tail = Tail::default();
        let parts: Vec<TailBatch> = (0..8).map(|i| tail_batch(i * 2..i * 2 + 2, i + 10)).collect();
        let bytes: u64 = parts.iter().map(|part| part.bytes.value()).sum();
        for part in parts {
            tail.extend(vec![part]);
        }
        let [only] = tail.batches() else { panic!("{} batches", tail.batches().len()) };
        assert_eq!((only.entry_first.value(), only.entry_last.value()), (10, 17));
        let range = RowtimeRange { first: Timestamp::from_micros(0), last: Timestamp::from_micros(150) };
        assert_eq!(only.rowtime, Some(range));
        assert_eq!(only.bytes.value(), bytes);
        assert_eq!(only.stored.entries.rows_upto(EntryIndex::new(12)).value(), 6);
    }

    #[test]
    fn full_batches_are_left_alone() {
        let mut tail = Tail::default();
        for part in 0..20 {
            tail.extend(vec![tail_batch(part * 40_000..(part + 1) * 40_000, part + 1)]);
        }
        assert_eq!(tail.batches().len(), 20);
    }

    #[test]
    fn rows_published_together_are_merged_at_once() {
        let mut tail = Tail::default();
        tail.extend((0..64).map(|offset| tail_batch(offset..offset + 1, 1 + offset)).collect());
        assert_eq!(tail.batches().len(), 1);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]
        #[test]
        fn any_sizes_stay_in_order_and_few(sizes in prop::collection::vec(
            prop_oneof![4 => 1u64..4, 2 => 4u64..300, 1 => 300u64..9_000], 1..120,
        )) {
            let mut tail = Tail::default();
            let mut next = 0;
            for (entry, size) in (1..).zip(&sizes) {
                tail.extend(vec![tail_batch(next..next + size, entry)]);
                next += size;
            }
            let full = 2 * next as usize / 32_768 + 1;
            prop_assert!(tail.batches().len() <= (FAN - 1) * 5 + full, "{} batches", tail.batches().len());
            prop_assert_eq!(dense(0, stored(&tail)), (0..next).collect::<Vec<_>>());
        }
    }
}
