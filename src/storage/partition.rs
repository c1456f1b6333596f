//! A partition as readers see it: an immutable view, replaced atomically.
//!
//! Owns [`Partition`] (the current view and its watch channel) and [`PartitionView`]. Leaves out who
//! appends ([`ShardStore`](super::shard_store::ShardStore), the single writer), iteration
//! ([`scan`](super::scan)). A crash loses views; opening the shard and replaying its log makes equal ones.
//!
//! Readers take no lock: [`Partition::view`] is one atomic load. A reader keeps its view as long as it
//! likes; sealing and dropping do not disturb it.

use super::compaction::PartitionUpkeep;
use super::error::StorageError;
use super::key_set::KeySet;
use super::scan::{PartitionScan, ScanRequest};
use super::segment::Segment;
use super::tail::TailBatch;
use arc_swap::ArcSwap;
use arrow::datatypes::SchemaRef;
use millstream_catalog::model::limit::{BATCH_ROWS_MAX, GUARD_ROWS_MAX};
use millstream_catalog::model::{ByteSize, EntryIndex, Offset, PartitionId, RowCount, TopicId};
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use tokio::sync::watch;

/// One partition of a topic.
#[derive(Debug)]
pub struct Partition {
    topic: TopicId,
    id: PartitionId,
    view: ArcSwap<PartitionView>,
    end: watch::Sender<Offset>,
    is_dropped: AtomicBool,
}

impl Partition {
    pub(crate) fn new(topic: TopicId, id: PartitionId, view: PartitionView) -> Self {
        let (end, _) = watch::channel(view.offset_end);
        Self { topic, id, view: ArcSwap::from_pointee(view), end, is_dropped: AtomicBool::new(false) }
    }

    /// The topic.
    pub fn topic(&self) -> TopicId {
        self.topic
    }

    /// The number of the partition in its topic.
    pub fn id(&self) -> PartitionId {
        self.id
    }

    /// The schema of stored batches.
    pub fn schema(&self) -> SchemaRef {
        self.view.load().schema.clone()
    }

    /// What is visible now.
    pub fn view(&self) -> Arc<PartitionView> {
        self.view.load_full()
    }

    /// Follows `offset_end`; also wakes, without a new value, when the topic is dropped.
    pub fn subscribe(&self) -> watch::Receiver<Offset> {
        self.end.subscribe()
    }

    /// Whether the topic was dropped; what was published stays readable through this handle.
    pub fn is_dropped(&self) -> bool {
        self.is_dropped.load(Ordering::Acquire)
    }

    /// Replaces the view without waking anybody. Only the single writer calls it.
    pub(crate) fn publish(&self, view: PartitionView) {
        self.view.store(Arc::new(view));
    }

    /// Wakes whoever waits for more rows. Comes after the shard's applied entry is set: who wakes and reads up
    /// to that entry finds the rows, and nobody goes back to sleep on rows that were announced.
    pub(crate) fn announce(&self) {
        let end = self.view.load().offset_end;
        self.end.send_if_modified(|seen| std::mem::replace(seen, end) != end);
    }

    /// Wakes whoever waits for more rows without any: there are more partitions to wait for.
    pub(crate) fn wake(&self) {
        self.end.send_modify(|_| {});
    }

    pub(crate) fn set_dropped(&self) {
        self.is_dropped.store(true, Ordering::Release);
        self.wake();
    }
}

/// What a partition holds at one moment: segments, then batches being sealed, then the tail. Offsets go from
/// `offset_start` to `offset_end`, dense but for what compaction removed; the first segment may begin before, and those
/// rows are not stored any more as far as a reader is concerned.
#[derive(Clone)]
pub struct PartitionView {
    pub(crate) schema: SchemaRef,
    pub(crate) segments: Arc<[Arc<Segment>]>,
    pub(crate) frozen: Arc<[Arc<TailBatch>]>,
    pub(crate) tail: Arc<[Arc<TailBatch>]>,
    pub(crate) offset_start: Offset,
    pub(crate) offset_end: Offset,
    pub(crate) upkeep: Arc<PartitionUpkeep>,
}

impl PartitionView {
    pub(crate) fn empty(schema: SchemaRef) -> Self {
        let none: Arc<[Arc<TailBatch>]> = Arc::new([]);
        Self {
            schema,
            segments: Arc::new([]),
            frozen: none.clone(),
            tail: none,
            offset_start: Offset::ZERO,
            offset_end: Offset::ZERO,
            upkeep: Arc::default(),
        }
    }

    /// The schema of stored batches.
    pub fn schema(&self) -> &SchemaRef {
        &self.schema
    }

    /// The first offset still stored.
    pub fn offset_start(&self) -> Offset {
        self.offset_start
    }

    /// The offset after the last published row.
    pub fn offset_end(&self) -> Offset {
        self.offset_end
    }

    /// Rows stored.
    ///
    /// # Errors
    /// When a segment that must be looked into cannot be opened.
    pub fn rows(&self) -> Result<RowCount, StorageError> {
        self.rows_before(self.offset_end)
    }

    /// Rows stored before `end`.
    ///
    /// # Errors
    /// As [`PartitionView::rows`].
    pub fn rows_before(&self, end: Offset) -> Result<RowCount, StorageError> {
        let until = |to: Offset| -> Result<u64, StorageError> {
            let mut rows = 0;
            for segment in self.segments.iter().take_while(|segment| segment.offset_start() < to) {
                rows += segment.rows_before(to)?.value();
            }
            Ok(rows + self.in_memory().map(|batch| batch.stored.rows_before(to) as u64).sum::<u64>())
        };
        Ok(RowCount::new(until(end.min(self.offset_end))?.saturating_sub(until(self.offset_start)?)))
    }

    /// What compaction and merging did here so far.
    pub fn upkeep(&self) -> &PartitionUpkeep {
        &self.upkeep
    }

    /// Bytes of the segment files.
    pub fn sealed_bytes(&self) -> ByteSize {
        self.segments.iter().fold(ByteSize::ZERO, |sum, segment| sum.plus(segment.bytes()))
    }

    /// Bytes of the rows in memory.
    pub fn unsealed_bytes(&self) -> ByteSize {
        self.in_memory().fold(ByteSize::ZERO, |sum, batch| sum.plus(batch.bytes))
    }

    /// Bytes in all.
    pub fn bytes(&self) -> ByteSize {
        self.sealed_bytes().plus(self.unsealed_bytes())
    }

    /// The sealed segments, by offset.
    pub fn segments(&self) -> &[Arc<Segment>] {
        &self.segments
    }

    /// A reader of history went on from `from` to `to`: the pages of blocks that it has behind it now are given back. Others
    /// who read them find them in the system's cache.
    pub(crate) fn pass(&self, from: Offset, to: Offset) {
        let first = self.segments.partition_point(|segment| segment.offset_end() <= from);
        for segment in self.segments[first..].iter().take_while(|segment| segment.offset_start() < to) {
            segment.pass(from, to);
        }
    }

    /// Batches in memory, by offset.
    pub(crate) fn in_memory(&self) -> impl Iterator<Item = &Arc<TailBatch>> {
        self.frozen.iter().chain(self.tail.iter())
    }

    /// The offset after the last row of entries up to and including `cut`.
    ///
    /// Taken at one `cut` over several partitions of a shard this is a consistent cut: it holds each
    /// entry's rows in all of them or in none. The view must be at least as new as the cut, so take
    /// [`Partitions::applied`](super::partitions::Partitions::applied) first and views after it.
    ///
    /// Rows 0..3 of entry 7 and row 3 of entry 9: 0 at cut 6, 3 at cuts 7 and 8, 4 from cut 9 on. Never before the log
    /// start.
    ///
    /// # Errors
    /// When the cut is within a segment that cannot be opened.
    pub fn offset_end_at(&self, cut: EntryIndex) -> Result<Offset, StorageError> {
        let segments = self.segments.partition_point(|segment| segment.entry_first() <= cut);
        let sealed = segments.checked_sub(1).and_then(|last| self.segments.get(last));
        let mut end = sealed.map_or(Ok(self.offset_start), |segment| segment.offset_end_at(cut))?;
        for batch in self.in_memory().take_while(|batch| batch.entry_first <= cut) {
            end = match batch.entry_last <= cut {
                true => batch.offset_end(),
                false => batch.stored.offset_start.plus(batch.stored.entries.rows_upto(cut)),
            };
        }
        Ok(end.max(self.offset_start))
    }

    /// As [`PartitionView::offset_end_at`], for a read that wants the state of each key: not before what was compacted,
    /// where the rows that were the last ones of their keys at an earlier `cut` may be gone.
    ///
    /// # Errors
    /// As [`PartitionView::offset_end_at`].
    pub fn state_end_at(&self, cut: EntryIndex) -> Result<Offset, StorageError> {
        Ok(self.offset_end_at(cut)?.max(self.upkeep.compacted_upto.min(self.offset_end)))
    }

    /// Whether a row from `position` on has one of `keys`. Also when rows from there on are no longer stored, or a repair
    /// gave them up: what they were is not known.
    ///
    /// # Errors
    /// When the rows cannot be read. That says nothing of other replicas' rows, so the caller must not go on.
    pub fn is_touched(&self, position: Offset, keys: &KeySet) -> Result<bool, StorageError> {
        if position >= self.offset_end {
            return Ok(false);
        }
        let first = self.offset_start.max(self.upkeep.tombstones_forgotten);
        let is_lost = |segment: &Arc<Segment>| segment.lost().is_some() && segment.offset_end() > position;
        if position < first
            || self.offset_end.since(position) > GUARD_ROWS_MAX
            || self.segments.iter().rev().any(is_lost)
        {
            return Ok(true);
        }
        let request = ScanRequest {
            offsets: position..self.offset_end,
            schema: None,
            rowtime: None,
            pruner: None,
            projection: Some(keys.columns().to_vec()),
            batch_rows: BATCH_ROWS_MAX,
        };
        for stored in self.scan(request) {
            if keys.meets_keys(stored?.batch.columns())? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Reads a range; see [`ScanRequest`]. Cheap: segments are opened, and nothing is decoded before the first `next`.
    pub fn scan(&self, request: ScanRequest) -> PartitionScan {
        PartitionScan::new(self, request)
    }
}

impl fmt::Debug for PartitionView {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PartitionView")
            .field("offset_start", &self.offset_start)
            .field("offset_end", &self.offset_end)
            .field("segments", &self.segments.len())
            .field("frozen", &self.frozen.len())
            .field("tail", &self.tail.len())
            .finish()
    }
}
