//! Which segments and batches of a partition a scan reads: offsets, event times, statistics, bloom filters.
//!
//! Owns the choice. Leaves out what a predicate means for statistics, which the asker brings as a [`Pruner`], and
//! reading ([`scan`](super::scan)). A crash ends it.
//!
//! A part is skipped only when it cannot have a wanted row; a filter that is damaged skips nothing.

use super::batch::RowtimeRange;
use super::bloom::hashes;
use super::error::StorageError;
use super::fit::place;
use super::open_segment::OpenSegment;
use super::partition::PartitionView;
use super::scan::{ScanCounts, ScanRequest, Source};
use super::segment::Segment;
use super::statistics::{ColumnStatistics, maxs, mins};
use arrow::array::{ArrayRef, Int64Array, UInt64Array};
use arrow::datatypes::SchemaRef;
use millstream_catalog::model::limit::BATCH_ROWS_MAX;
use millstream_catalog::model::{Offset, RowCount};
use millstream_catalog::schema::ROWOFFSET;
use std::fmt::Debug;
use std::ops::Range;
use std::sync::Arc;

/// Segments whose statistics are looked at together: as many are open for it.
const SEGMENTS_AT_ONCE: usize = 1_024;

/// What a scan's predicate says of parts of which only statistics are known.
pub trait Pruner: Debug + Send + Sync {
    /// For each part whether it may have a wanted row; `None` when nothing can be said.
    fn keep(&self, parts: &Parts<'_>) -> Option<Vec<bool>>;

    /// Every wanted row has, in each of these columns, one of its values.
    fn keys(&self) -> &[KeyValues];
}

/// The only values a wanted row may have in a column.
#[derive(Debug, Clone)]
pub struct KeyValues {
    /// Position in the stored schema.
    pub column: usize,
    /// The values, of the column's type.
    pub values: ArrayRef,
}

/// Statistics of several parts, by column.
#[derive(Debug)]
pub struct Parts<'a> {
    schema: &'a SchemaRef,
    parts: Vec<Part<'a>>,
}

#[derive(Debug)]
struct Part<'a> {
    offsets: Range<Offset>,
    rows: RowCount,
    /// The schema the part was written with, and statistics of its columns.
    schema: &'a SchemaRef,
    columns: &'a [ColumnStatistics],
}

impl Part<'_> {
    /// What is known of the column at `index` of `schema`; nothing of one that was added later.
    fn column(&self, schema: &SchemaRef, index: usize) -> Option<&ColumnStatistics> {
        self.columns.get(place(schema, self.schema, index)?)
    }
}

impl<'a> Parts<'a> {
    fn new(schema: &'a SchemaRef) -> Self {
        Self { schema, parts: Vec::new() }
    }

    fn push(
        &mut self,
        offsets: Range<Offset>,
        rows: RowCount,
        segment: &'a OpenSegment,
        columns: &'a [ColumnStatistics],
    ) {
        self.parts.push(Part { offsets, rows, schema: segment.schema(), columns });
    }

    /// Their number.
    pub fn len(&self) -> usize {
        self.parts.len()
    }

    /// True for none.
    pub fn is_empty(&self) -> bool {
        self.parts.is_empty()
    }

    /// The rows of each.
    pub fn rows(&self) -> UInt64Array {
        self.parts.iter().map(|part| Some(part.rows.value())).collect()
    }

    /// The nulls of a stored column in each.
    pub fn nulls(&self, column: &str) -> Option<UInt64Array> {
        if column == ROWOFFSET {
            return Some(self.parts.iter().map(|_| Some(0)).collect());
        }
        let at = self.schema.index_of(column).ok()?;
        Some(self.parts.iter().map(|part| part.column(self.schema, at).map(|column| column.nulls)).collect())
    }

    /// A value per part that no value of the stored column, or of `rowoffset`, is below; null where none is known.
    pub fn mins(&self, column: &str) -> Option<ArrayRef> {
        if column == ROWOFFSET {
            return Some(Arc::new(self.offsets(|part| part.offsets.start.value())));
        }
        let (at, field) = self.schema.column_with_name(column)?;
        mins(field.data_type(), self.parts.iter().map(|part| part.column(self.schema, at)))
    }

    /// A value per part that no value is above, likewise.
    pub fn maxs(&self, column: &str) -> Option<ArrayRef> {
        if column == ROWOFFSET {
            return Some(Arc::new(self.offsets(|part| part.offsets.end.value().saturating_sub(1))));
        }
        let (at, field) = self.schema.column_with_name(column)?;
        maxs(field.data_type(), self.parts.iter().map(|part| part.column(self.schema, at)))
    }

    fn offsets(&self, bound: impl Fn(&Part<'_>) -> u64) -> Int64Array {
        self.parts.iter().map(|part| i64::try_from(bound(part)).ok()).collect()
    }
}

/// A segment that may be read, open while that is decided.
type Candidate<'v> = (&'v Arc<Segment>, Arc<OpenSegment>);

/// Decides which batches are read.
///
/// # Errors
/// When a segment cannot be opened now. A damaged one is read, to say so.
pub(super) fn plan(
    view: &PartitionView,
    request: &ScanRequest,
    counts: &mut ScanCounts,
) -> Result<Vec<Source>, StorageError> {
    let wanted = |offsets: &Range<Offset>, rowtime: Option<RowtimeRange>| {
        let meets = offsets.start < request.offsets.end && offsets.end > request.offsets.start;
        let is_in_time = |bounds| rowtime.is_none_or(|range| range.meets(bounds));
        !request.offsets.is_empty() && meets && request.rowtime.is_none_or(is_in_time)
    };
    let is_found = |segment: &&Arc<Segment>| wanted(&(segment.offset_start()..segment.offset_end()), segment.rowtime());
    let (found, passed): (Vec<&Arc<Segment>>, Vec<_>) = view.segments.iter().partition(is_found);
    // They stay closed.
    let passed = passed.iter().map(|segment| segment.rows().as_usize().div_ceil(BATCH_ROWS_MAX));
    let mut batches: usize = passed.sum();
    let mut sources: Vec<Source> = Vec::with_capacity(found.len());
    for some in found.chunks(SEGMENTS_AT_ONCE) {
        let mut open: Vec<Candidate<'_>> = Vec::with_capacity(some.len());
        for segment in some {
            open.push((segment, segment.opened()?));
        }
        batches += open.iter().map(|(_, segment)| segment.blocks()).sum::<usize>();
        counts.segments_skipped_by_filter += by_pruner(view, request, &mut open);
        let mut blocks: Vec<(&Candidate<'_>, usize)> = Vec::new();
        for candidate in &open {
            let segment = &candidate.1;
            let in_bounds = |block: &usize| wanted(&segment.block_offsets(*block), segment.block_rowtime(*block));
            blocks.extend((0..segment.blocks()).filter(in_bounds).map(|block| (candidate, block)));
        }
        by_block_statistics(view, request, &mut blocks);
        let mut last: Option<&Arc<Segment>> = None;
        for ((segment, open), block) in blocks {
            counts.segments_read += usize::from(last.is_none_or(|last| !Arc::ptr_eq(last, segment)));
            last = Some(segment);
            let rows = open.block_rows(block).value();
            sources.push(Source::Block { segment: Arc::clone(segment), block, rows });
        }
    }
    counts.segments_skipped = view.segments.len() - counts.segments_read;
    counts.batches_skipped = batches - sources.len();
    for batch in view.in_memory() {
        if wanted(&(batch.stored.offset_start..batch.offset_end()), batch.rowtime) {
            sources.push(Source::Memory(batch.clone()));
        } else {
            counts.batches_skipped += 1;
        }
    }
    counts.batches_read = sources.len();
    Ok(sources)
}

/// Leaves those that may have a wanted row, and gives how many only a filter ruled out.
fn by_pruner(view: &PartitionView, request: &ScanRequest, found: &mut Vec<Candidate<'_>>) -> usize {
    let Some(pruner) = &request.pruner else { return 0 };
    let schema = request.schema.as_ref().unwrap_or(&view.schema);
    let mut parts = Parts::new(schema);
    for (_, segment) in found.iter() {
        parts.push(segment.offset_start()..segment.offset_end(), segment.rows(), segment, segment.columns());
    }
    let keep = pruner.keep(&parts);
    retain(found, keep);
    let before = found.len();
    let keys: Vec<(usize, Vec<u64>)> =
        pruner.keys().iter().filter_map(|key| Some((key.column, hashes(&key.values)?))).collect();
    if !keys.is_empty() {
        found.retain(|(_, segment)| {
            let may = |column: usize, hashes: &[u64]| match place(schema, segment.schema(), column) {
                Some(column) => may_contain(segment, column, hashes),
                None => true,
            };
            keys.iter().all(|(column, hashes)| may(*column, hashes))
        });
    }
    before - found.len()
}

fn may_contain(segment: &OpenSegment, column: usize, hashes: &[u64]) -> bool {
    match segment.bloom(column) {
        Ok(Some(bloom)) => hashes.iter().any(|hash| bloom.may_contain(*hash)),
        Ok(None) => true,
        Err(error) => {
            tracing::warn!(%error, "a bloom filter cannot be used: the segment is read");
            true
        }
    }
}

fn by_block_statistics(view: &PartitionView, request: &ScanRequest, blocks: &mut Vec<(&Candidate<'_>, usize)>) {
    let Some(pruner) = &request.pruner else { return };
    if blocks.iter().all(|((_, segment), _)| segment.blocks() == 1) {
        return;
    }
    let schema = request.schema.as_ref().unwrap_or(&view.schema);
    let mut parts = Parts::new(schema);
    for ((_, segment), block) in blocks.iter() {
        let offsets = segment.block_offsets(*block);
        let rows = segment.block_rows(*block);
        parts.push(offsets, rows, segment, segment.block_columns(*block));
    }
    let keep = pruner.keep(&parts);
    retain(blocks, keep);
}

fn retain<T>(items: &mut Vec<T>, keep: Option<Vec<bool>>) {
    let Some(keep) = keep.filter(|keep| keep.len() == items.len()) else { return };
    let mut keep = keep.into_iter();
    items.retain(|_| keep.next().unwrap_or(true));
}
