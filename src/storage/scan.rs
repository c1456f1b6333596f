//! Bounded reads of a partition view: projection, batch size, division among threads.
//!
//! Owns [`ScanRequest`] and the iterator that serves it. Leaves out which batches are read
//! ([`skip`](super::skip)), filtering of rows (SQL does that) and waiting for new rows (the reader). Called by the engine. A crash ends it.

use super::batch::StoredBatch;
use super::error::StorageError;
use super::fit::Wanted;
use super::partition::PartitionView;
use super::segment::Segment;
use super::skip::{Pruner, plan};
use super::tail::TailBatch;
use arrow::datatypes::SchemaRef;
use millstream_catalog::model::limit::BATCH_ROWS_MAX;
use millstream_catalog::model::{Offset, Timestamp};
use std::ops::Range;
use std::sync::Arc;

/// What to read of a partition.
#[derive(Debug, Clone)]
pub struct ScanRequest {
    /// Offsets; exactly these rows come, as far as they are stored and published.
    pub offsets: Range<Offset>,
    /// Smallest and largest event time, both inclusive. Segments and batches with no such row are skipped;
    /// *other* rows of the rest still come: the caller filters.
    pub rowtime: Option<(Option<Timestamp>, Option<Timestamp>)>,
    /// What else a row must be like; used as `rowtime` is.
    pub pruner: Option<Arc<dyn Pruner>>,
    /// The stored schema as the caller knows it: columns added since are left out, and those that rows do not have yet
    /// are filled. `None` is that of the view.
    pub schema: Option<SchemaRef>,
    /// Positions in that schema, in the order wanted; `None` is all of them.
    pub projection: Option<Vec<usize>>,
    /// Most rows of one batch, at least 1. Batches are cut where they exceed it, and never joined.
    pub batch_rows: usize,
}

impl ScanRequest {
    /// Everything.
    pub fn all() -> Self {
        Self {
            offsets: Offset::ZERO..Offset::new(u64::MAX),
            rowtime: None,
            pruner: None,
            schema: None,
            projection: None,
            batch_rows: BATCH_ROWS_MAX,
        }
    }
}

/// How much a scan reads and how much its bounds let it skip.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ScanCounts {
    /// Segments with a batch to read.
    pub segments_read: usize,
    /// Segments of which no row is read.
    pub segments_skipped: usize,
    /// Those of them that only a bloom filter ruled out.
    pub segments_skipped_by_filter: usize,
    /// Batches to read, in segments and in memory.
    pub batches_read: usize,
    /// Batches skipped, those of skipped segments included; of those not looked into, as many as their rows need.
    pub batches_skipped: usize,
}

#[derive(Debug)]
pub(super) enum Source {
    /// A block and its rows.
    Block {
        segment: Arc<Segment>,
        block: usize,
        rows: u64,
    },
    Memory(Arc<TailBatch>),
}

impl Source {
    fn rows(&self) -> u64 {
        match self {
            Self::Block { rows, .. } => *rows,
            Self::Memory(batch) => batch.stored.rows().value(),
        }
    }
}

/// The rows of a [`ScanRequest`] in offset order.
///
/// A damaged block is one `Err`; iteration may go on after it and yields the other blocks.
#[derive(Debug)]
pub struct PartitionScan {
    schema: SchemaRef,
    offsets: Range<Offset>,
    /// Absent when it is refused.
    wanted: Option<Wanted>,
    batch_rows: usize,
    sources: std::vec::IntoIter<Source>,
    rest: Option<StoredBatch>,
    refused: Option<StorageError>,
    counts: ScanCounts,
}

impl PartitionScan {
    pub(crate) fn new(view: &PartitionView, mut request: ScanRequest) -> Self {
        request.offsets.start = request.offsets.start.max(view.offset_start);
        let known = request.schema.as_ref().unwrap_or(&view.schema);
        let (wanted, refused) = match Wanted::new(known, request.projection.as_deref()) {
            Ok(wanted) => (Some(wanted), None),
            Err(error) => (None, Some(error)),
        };
        let mut counts = ScanCounts::default();
        let planned = match refused {
            Some(refused) => Err(refused),
            None => plan(view, &request, &mut counts),
        };
        let (sources, refused) = match planned {
            Ok(sources) => (sources, None),
            Err(error) => (Vec::new(), Some(error)),
        };
        Self {
            schema: wanted.as_ref().map_or_else(|| view.schema.clone(), |wanted| wanted.output().clone()),
            offsets: request.offsets,
            wanted,
            batch_rows: request.batch_rows.max(1),
            sources: sources.into_iter(),
            rest: None,
            refused,
            counts,
        }
    }

    /// The schema of the batches: what was projected.
    pub fn schema(&self) -> &SchemaRef {
        &self.schema
    }

    /// Rows of the batches that are read; those of them outside the offsets count too.
    pub fn rows(&self) -> u64 {
        self.sources.as_slice().iter().map(Source::rows).sum()
    }

    /// Cuts the scan between batches into scans of about `rows` rows each, in order.
    pub fn divide(self, rows: u64) -> Vec<Self> {
        let part = |sources: Vec<Source>, refused| Self {
            schema: self.schema.clone(),
            offsets: self.offsets.clone(),
            wanted: self.wanted.clone(),
            batch_rows: self.batch_rows,
            sources: sources.into_iter(),
            rest: None,
            refused,
            counts: self.counts,
        };
        if self.refused.is_some() {
            return vec![part(Vec::new(), self.refused)];
        }
        let (mut parts, mut current, mut held) = (Vec::new(), Vec::new(), 0);
        for source in self.sources {
            held += source.rows();
            current.push(source);
            if held >= rows {
                parts.push(part(std::mem::take(&mut current), None));
                held = 0;
            }
        }
        if !current.is_empty() {
            parts.push(part(current, None));
        }
        parts
    }

    /// What is read and skipped; known before the first batch.
    pub fn counts(&self) -> ScanCounts {
        self.counts
    }

    fn read(&self, wanted: &Wanted, source: &Source) -> Result<StoredBatch, StorageError> {
        let stored = match source {
            Source::Block { segment, block, .. } => segment.opened()?.read(*block, wanted)?,
            Source::Memory(batch) => wanted.of_stored(batch.read())?,
        };
        let (start, end) = (stored.rows_before(self.offsets.start), stored.rows_before(self.offsets.end));
        Ok(stored.slice(start, end.saturating_sub(start)))
    }
}

impl Iterator for PartitionScan {
    type Item = Result<StoredBatch, StorageError>;

    fn next(&mut self) -> Option<Self::Item> {
        if let Some(error) = self.refused.take() {
            return Some(Err(error));
        }
        let batch = match self.rest.take() {
            Some(rest) => rest,
            None => {
                let source = self.sources.next()?;
                match self.read(self.wanted.as_ref()?, &source) {
                    // All it has of these offsets are gaps.
                    Ok(batch) if batch.batch.num_rows() == 0 => return self.next(),
                    Ok(batch) => batch,
                    Err(error) => return Some(Err(error)),
                }
            }
        };
        let rows = batch.batch.num_rows();
        if rows <= self.batch_rows {
            return Some(Ok(batch));
        }
        self.rest = Some(batch.slice(self.batch_rows, rows - self.batch_rows));
        Some(Ok(batch.slice(0, self.batch_rows)))
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::super::batch::TopicStorage;
    use super::super::fault_disk::FaultDisk;
    use super::super::shard_store::ShardStore;
    use super::super::testing::{dense, rows, schema, topic};
    use super::*;
    use bytes::Bytes;
    use millstream_catalog::model::{EntryIndex, PartitionId, RowCount, ShardId, TopicId};
    use millstream_catalog::relation::Compression;
    use std::path::Path;

    /// Segments with offsets 0..10 and 10..20, and 20..30 in memory; row n has event time 10 n.
    pub(in super::super) fn view() -> Arc<PartitionView> {
        let disk = Arc::new(FaultDisk::new());
        let (mut store, _) = ShardStore::open(disk, Path::new("/s"), ShardId::new(1)).unwrap();
        store.create_topic(TopicStorage { compression: Compression::Lz4, ..topic(1, 1, Compression::None) });
        for part in 0..3 {
            let index = EntryIndex::new(part + 1);
            let numbers = part * 10..part * 10 + 10;
            store.append(index, TopicId::new(1), PartitionId::new(0), rows(numbers)).unwrap();
            store.publish(index);
            if part < 2 {
                let sealed = store.seal(Bytes::new(), Bytes::new()).run().unwrap();
                store.install(sealed);
            }
        }
        store.partitions().get(TopicId::new(1), PartitionId::new(0)).unwrap().view()
    }

    fn read(view: &PartitionView, request: ScanRequest) -> (Vec<StoredBatch>, ScanCounts) {
        let scan = view.scan(request);
        let counts = scan.counts();
        (scan.map(Result::unwrap).collect(), counts)
    }

    #[test]
    fn offsets_are_exact_and_skip_what_is_outside() {
        let view = view();
        for start in 0..31 {
            for end in start..32 {
                let offsets = Offset::new(start)..Offset::new(end);
                let (batches, counts) = read(&view, ScanRequest { offsets, ..ScanRequest::all() });
                assert_eq!(dense(start, batches), (start..end.min(30)).collect::<Vec<_>>());
                let meets = |low: u64, high: u64| usize::from(start < high && end > low && start < end);
                assert_eq!(counts.segments_read, meets(0, 10) + meets(10, 20), "{start}..{end}");
                assert_eq!(counts.segments_read + counts.segments_skipped, 2);
                assert_eq!(counts.batches_read, counts.segments_read + meets(20, 30));
                assert_eq!(counts.batches_read + counts.batches_skipped, 3);
            }
        }
    }

    #[test]
    fn event_times_skip_segments_and_batches_at_their_bounds() {
        let view = view();
        let at = |micros: i64| Some(Timestamp::from_micros(micros));
        for (bounds, read_parts) in [
            ((at(89), at(99)), [true, false, false]),
            ((at(90), at(100)), [true, true, false]),
            ((at(91), at(101)), [false, true, false]),
            ((at(189), at(199)), [false, true, false]),
            ((at(190), at(200)), [false, true, true]),
            ((at(191), None), [false, false, true]),
            ((at(291), None), [false, false, false]),
            ((None, at(-1)), [false, false, false]),
            ((None, at(0)), [true, false, false]),
            ((None, None), [true, true, true]),
        ] {
            let (batches, counts) = read(&view, ScanRequest { rowtime: Some(bounds), ..ScanRequest::all() });
            let starts: Vec<u64> = batches.iter().map(|batch| batch.offset_start.value()).collect();
            let expected: Vec<u64> = (0..3).filter(|part| read_parts[*part as usize]).map(|part| part * 10).collect();
            assert_eq!(starts, expected, "{bounds:?}");
            assert_eq!(counts.segments_read, read_parts[..2].iter().filter(|read| **read).count());
            assert_eq!(counts.batches_skipped, 3 - starts.len());
        }
    }

    #[test]
    fn batches_are_cut_only_where_they_are_too_long() {
        let view = view();
        for (batch_rows, sizes) in
            [(9, &[9, 1, 9, 1, 9, 1][..]), (10, &[10, 10, 10]), (11, &[10, 10, 10]), (4, &[4, 4, 2, 4, 4, 2, 4, 4, 2])]
        {
            let (batches, _) = read(&view, ScanRequest { batch_rows, ..ScanRequest::all() });
            let found: Vec<usize> = batches.iter().map(|batch| batch.batch.num_rows()).collect();
            assert_eq!(found, sizes);
            assert_eq!(dense(0, batches), (0..30).collect::<Vec<_>>());
        }
        let (batches, _) = read(&view, ScanRequest { batch_rows: 0, ..ScanRequest::all() });
        assert_eq!(batches.len(), 30);
    }

    #[test]
    fn projections_hold_for_segments_and_memory() {
        let view = view();
        for projection in [vec![3, 0], vec![], vec![1, 1]] {
            let request = ScanRequest { projection: Some(projection.clone()), ..ScanRequest::all() };
            assert_eq!(*view.scan(request.clone()).schema().as_ref(), schema().project(&projection).unwrap());
            for stored in read(&view, request).0 {
                let start = stored.offset_start.value();
                assert_eq!(stored.batch, rows(start..start + 10).project(&projection).unwrap());
                assert_eq!(stored.entries.rows(), RowCount::new(10));
            }
        }
        let mut refused = view.scan(ScanRequest { projection: Some(vec![4]), ..ScanRequest::all() });
        assert!(matches!(refused.next(), Some(Err(StorageError::Schema { .. }))));
        assert!(refused.next().is_none());
    }
}
