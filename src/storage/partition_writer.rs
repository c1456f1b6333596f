//! The write side of one partition: what is appended, published, frozen and sealed.
//!
//! Owns the next offset and the order of the three parts of a view. Leaves out which partitions exist and
//! when to seal ([`ShardStore`](super::shard_store::ShardStore), the only caller). A crash loses what is not in a segment;
//! the log brings it back.

use super::batch::{TopicStorage, batch_bytes, with_schema};
use super::compaction::PartitionUpkeep;
use super::error::StorageError;
use super::key_set::KeySet;
use super::partition::{Partition, PartitionView};
use super::rewrite::{Rewrite, Rewritten};
use super::segment::Segment;
use super::tail::{Tail, TailBatch};
use arrow::array::RecordBatch;
use arrow::datatypes::SchemaRef;
use millstream_catalog::model::limit::BATCH_ROWS_MAX;
use millstream_catalog::model::{ByteSize, EntryIndex, Offset, PartitionId, RowCount};
use std::ops::Range;
use std::sync::Arc;

/// One partition as its only writer has it.
#[derive(Debug)]
pub(crate) struct PartitionWriter {
    partition: Arc<Partition>,
    view: PartitionView,
    tail: Tail,
    /// Appended, not published; by entry.
    pending: Vec<TailBatch>,
    /// The offset of the next row appended.
    offset_next: Offset,
    /// Bytes of rows that are not being sealed: a function of the log, however its entries were published and merged.
    tail_bytes: ByteSize,
}

impl PartitionWriter {
    /// A partition with these segments, which follow each other up to the last of `offsets`.
    pub(crate) fn new(
        topic: &TopicStorage,
        id: PartitionId,
        segments: Vec<Arc<Segment>>,
        offsets: Range<Offset>,
        upkeep: PartitionUpkeep,
    ) -> Self {
        let empty = PartitionView::empty(topic.schema.clone());
        let (offset_start, offset_end, upkeep) = (offsets.start, offsets.end, Arc::new(upkeep));
        let view = PartitionView { segments: segments.into(), offset_start, offset_end, upkeep, ..empty };
        let partition = Arc::new(Partition::new(topic.topic, id, view.clone()));
        let (tail, pending, tail_bytes) = (Tail::default(), Vec::new(), ByteSize::ZERO);
        Self { partition, view, tail, pending, offset_next: offset_end, tail_bytes }
    }

    pub(crate) fn partition(&self) -> &Arc<Partition> {
        &self.partition
    }

    /// The offset of the next row.
    pub(crate) fn offset_next(&self) -> Offset {
        self.offset_next
    }

    pub(crate) fn view(&self) -> &PartitionView {
        &self.view
    }

    /// Adds rows, cut at 65,536 without a copy; their first offset and their bytes.
    ///
    /// # Errors
    /// [`StorageError::Schema`] when the rows are not of the topic's schema; nothing is appended then.
    pub(crate) fn append(
        &mut self,
        index: EntryIndex,
        rows: RecordBatch,
        make: fn(Offset, RecordBatch, EntryIndex) -> TailBatch,
    ) -> Result<(Offset, ByteSize), StorageError> {
        let rows = with_schema(rows, &self.view.schema)?;
        let base = self.offset_next;
        let mut bytes = ByteSize::ZERO;
        let mut start = 0;
        while start < rows.num_rows() {
            let take = (rows.num_rows() - start).min(BATCH_ROWS_MAX);
            let part = if take == rows.num_rows() { rows.clone() } else { rows.slice(start, take) };
            let batch = make(self.offset_next, part, index);
            bytes = bytes.plus(batch.bytes);
            self.offset_next = self.offset_next.plus(RowCount::of(take));
            self.pending.push(batch);
            start += take;
        }
        self.tail_bytes = self.tail_bytes.plus(bytes);
        Ok((base, bytes))
    }

    /// Makes rows of entries up to `index` visible; true if there are later ones.
    pub(crate) fn publish(&mut self, index: EntryIndex) -> bool {
        let visible = self.pending.partition_point(|batch| batch.entry_first <= index);
        let later = self.pending.split_off(visible);
        let visible = std::mem::replace(&mut self.pending, later);
        if let Some(last) = visible.last() {
            self.view.offset_end = last.offset_end();
            self.tail.extend(visible);
            self.view.tail = self.tail.batches().into();
            self.partition.publish(self.view.clone());
        }
        !self.pending.is_empty()
    }

    /// As [`PartitionView::is_touched`], over what is not published yet too.
    pub(crate) fn is_touched(&self, position: Offset, keys: &KeySet) -> Result<bool, StorageError> {
        for batch in self.pending.iter().filter(|batch| batch.offset_end() > position) {
            let before = position.since(batch.stored.offset_start).as_usize();
            let rows = &batch.stored.batch;
            if keys.meets(&rows.slice(before, rows.num_rows() - before))? {
                return Ok(true);
            }
        }
        self.view.is_touched(position, keys)
    }

    /// Moves the tail to what is being sealed. Readers see the same rows before and after.
    pub(crate) fn freeze(&mut self) {
        self.tail_bytes = ByteSize::ZERO;
        let tail = self.tail.take();
        if tail.is_empty() {
            return;
        }
        self.view.frozen = self.view.frozen.iter().cloned().chain(tail).collect();
        self.view.tail = Arc::new([]);
        self.partition.publish(self.view.clone());
    }

    /// Replaces what was being sealed by the segment made of it; gives it back if none of its rows is stored any
    /// more, because the log start moved past them meanwhile.
    pub(crate) fn install(&mut self, segment: Arc<Segment>) -> Option<Arc<Segment>> {
        if segment.offset_end() <= self.view.offset_start {
            return Some(segment);
        }
        let frozen = self.view.frozen.first().map(|batch| batch.stored.offset_start);
        let frozen_end = self.view.frozen.last().map(|batch| batch.offset_end());
        assert!(
            frozen == Some(segment.offset_start().max(self.view.offset_start))
                && frozen_end == Some(segment.offset_end()),
            "a sealed segment holds exactly the frozen rows"
        );
        self.view.segments = self.view.segments.iter().cloned().chain([segment]).collect();
        self.view.frozen = Arc::new([]);
        self.partition.publish(self.view.clone());
        None
    }

    /// Takes another schema, of the same columns and more: rows in memory get the columns they do not have.
    ///
    /// # Errors
    /// [`StorageError::Schema`] when the columns are others.
    pub(crate) fn alter(&mut self, schema: &SchemaRef) -> Result<(), StorageError> {
        let fit = |batches: &[Arc<TailBatch>]| -> Result<Vec<Arc<TailBatch>>, StorageError> {
            batches.iter().map(|batch| Ok(Arc::new(batch.with_schema(schema)?))).collect()
        };
        let more = self.more_bytes(schema)?;
        self.pending = self.pending.iter().map(|batch| batch.with_schema(schema)).collect::<Result<_, _>>()?;
        self.view.frozen = fit(&self.view.frozen)?.into();
        self.tail = Tail::of(fit(self.tail.batches())?);
        self.view.tail = self.tail.batches().into();
        self.view.schema = schema.clone();
        self.partition.publish(self.view.clone());
        self.tail_bytes = self.tail_bytes.plus(more);
        Ok(())
    }

    /// Bytes of the columns that `schema` has more, which are the same in each row.
    fn more_bytes(&self, schema: &SchemaRef) -> Result<ByteSize, StorageError> {
        let Some(first) = self.tail.batches().first().map(|batch| &**batch).or(self.pending.first()) else {
            return Ok(ByteSize::ZERO);
        };
        let row = first.stored.batch.slice(0, 1);
        let before = batch_bytes(&row).value();
        let more = batch_bytes(&with_schema(row, schema)?).value().saturating_sub(before);
        Ok(ByteSize::new(more * self.tail_rows()))
    }

    fn tail_rows(&self) -> u64 {
        let rows = self.tail.batches().iter().map(|batch| &**batch).chain(&self.pending);
        rows.map(|batch| batch.stored.rows().value()).sum()
    }

    /// Forgets the published rows before `to`, which lies between the log start and the end; gives the segments of
    /// which no row is left. One that is left in part stays whole: views begin at the log start.
    pub(crate) fn move_start(&mut self, to: Offset) -> Vec<Arc<Segment>> {
        let gone = self.view.segments.partition_point(|segment| segment.offset_end() <= to);
        let (gone, kept) = self.view.segments.split_at(gone);
        let (gone, kept) = (gone.to_vec(), kept.into());
        self.view.segments = kept;
        self.view.frozen = after(&self.view.frozen, to).into();
        let before = self.tail_rows();
        self.tail = Tail::of(after(self.tail.batches(), to));
        // By rows: which rows are in one batch is not the same everywhere.
        let bytes = u128::from(self.tail_bytes.value()) * u128::from(self.tail_rows()) / u128::from(before.max(1));
        self.tail_bytes = ByteSize::new(u64::try_from(bytes).unwrap_or(u64::MAX));
        self.view.tail = self.tail.batches().into();
        self.view.offset_start = to;
        self.partition.publish(self.view.clone());
        gone
    }

    /// Replaces the segments of `rewrite`, which are there, by new ones; gives those that went.
    pub(crate) fn replace(&mut self, rewrite: &Rewrite, rewritten: Rewritten) -> Vec<Arc<Segment>> {
        let Rewritten { segments: new, upkeep, .. } = rewritten;
        let is_replaced = |segment: &Arc<Segment>| {
            segment.offset_start() >= rewrite.offsets.start && segment.offset_end() <= rewrite.offsets.end
        };
        let (gone, kept): (Vec<_>, Vec<_>) = self.view.segments.iter().cloned().partition(is_replaced);
        let gone = gone.into_iter().filter(|old| !new.iter().any(|new| new.file() == old.file())).collect();
        let place = kept.partition_point(|segment| segment.offset_start() < rewrite.offsets.start);
        let (before, after) = kept.split_at(place);
        self.view.segments = before.iter().chain(&new).chain(after).cloned().collect();
        self.view.upkeep = Arc::new(upkeep);
        self.partition.publish(self.view.clone());
        gone
    }

    /// Tombstones below `upto` go, or would if their segments could be written.
    pub(crate) fn forget_tombstones(&mut self, upto: Offset) {
        if upto > self.view.upkeep.tombstones_forgotten {
            let upkeep = PartitionUpkeep { tombstones_forgotten: upto, ..PartitionUpkeep::clone(&self.view.upkeep) };
            self.view.upkeep = Arc::new(upkeep);
            self.partition.publish(self.view.clone());
        }
    }

    /// Bytes of rows that are not being sealed, pending ones included.
    pub(crate) fn tail_bytes(&self) -> ByteSize {
        self.tail_bytes
    }

    /// Bytes of rows that are being sealed.
    pub(crate) fn frozen_bytes(&self) -> ByteSize {
        self.view.frozen.iter().fold(ByteSize::ZERO, |sum, batch| sum.plus(batch.bytes))
    }
}

/// What of `batches` is not before `start`.
fn after(batches: &[Arc<TailBatch>], start: Offset) -> Vec<Arc<TailBatch>> {
    let gone = batches.partition_point(|batch| batch.offset_end() <= start);
    let mut kept = batches.get(gone..).unwrap_or_default().to_vec();
    if let Some(first) = kept.first_mut()
        && first.stored.offset_start < start
    {
        *first = Arc::new(first.after(start));
    }
    kept
}
