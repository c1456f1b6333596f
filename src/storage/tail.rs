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

use super::batch::{RowtimeRange, StoredBatch, batch_bytes, concat};
use super::entries::EntryRuns;
use super::error::StorageError;
use arrow::array::RecordBatch;
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
}

impl TailBatch {
    /// The rows of one append, all of one entry.
    pub(crate) fn new(offset_start: Offset, batch: RecordBatch, index: EntryIndex) -> Self {
        let rowtime = RowtimeRange::of(&batch);
        let bytes = batch_bytes(&batch);
        let entries = EntryRuns::of(index, RowCount::of(batch.num_rows()));
        let stored = StoredBatch { offset_start, batch, entries };
        Self { stored, rowtime, entry_first: index, entry_last: index, bytes }
    }

    pub(crate) fn offset_end(&self) -> Offset {
        self.stored.offset_end()
    }

    fn weight(&self) -> u64 {
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
            batch: concat(first.stored.batch.schema_ref(), &batches)?,
            entries: EntryRuns::concat(parts.iter().map(|part| &part.stored.entries)),
        };
        Ok(Arc::new(TailBatch {
            stored,
            rowtime: parts.iter().fold(None, |range, part| RowtimeRange::union(range, part.rowtime)),
            entry_first: first.entry_first,
            entry_last: last.entry_last,
            bytes: parts.iter().fold(ByteSize::ZERO, |sum, part| sum.plus(part.bytes)),
        }))
    }
}

/// The published batches of a partition that are not frozen, in order.
#[derive(Debug, Default)]
pub(crate) struct Tail {
    batches: Vec<Arc<TailBatch>>,
}

impl Tail {
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
