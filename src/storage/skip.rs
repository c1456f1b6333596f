//! Which segments and batches of a partition a scan reads: offsets, event times, statistics, bloom filters.
//!
//! Owns the choice. Leaves out what a predicate means for statistics, which the asker brings as a [`Pruner`], and
//! reading ([`scan`](super::scan)). A crash ends it.
//!
//! A part is skipped only when it cannot have a wanted row; a filter that is damaged skips nothing.

use super::batch::RowtimeRange;
use super::bloom::hashes;
use super::fit::place;
use super::partition::PartitionView;
use super::scan::{ScanCounts, ScanRequest, Source};
use super::segment::Segment;
use super::statistics::{ColumnStatistics, maxs, mins};
use arrow::array::{ArrayRef, Int64Array, UInt64Array};
use arrow::datatypes::SchemaRef;
use millstream_catalog::model::{Offset, RowCount};
use millstream_catalog::schema::ROWOFFSET;
use std::fmt::Debug;
use std::ops::Range;
use std::sync::Arc;

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

    fn push(&mut self, offsets: Range<Offset>, rows: RowCount, segment: &'a Segment, columns: &'a [ColumnStatistics]) {
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

/// Decides which batches are read.
pub(super) fn plan(view: &PartitionView, request: &ScanRequest, counts: &mut ScanCounts) -> Vec<Source> {
    let wanted = |offsets: &Range<Offset>, rowtime: Option<RowtimeRange>| {
        let meets = offsets.start < request.offsets.end && offsets.end > request.offsets.start;
        let is_in_time = |bounds| rowtime.is_none_or(|range| range.meets(bounds));
        !request.offsets.is_empty() && meets && request.rowtime.is_none_or(is_in_time)
    };
    let found: Vec<&Arc<Segment>> = view
        .segments
        .iter()
        .filter(|segment| wanted(&(segment.offset_start()..segment.offset_end()), segment.rowtime()))
        .collect();
    let (found, absent) = by_pruner(view, request, found);
    let mut blocks: Vec<(&Arc<Segment>, usize)> = Vec::new();
    for segment in found {
        let in_bounds = |block: &usize| wanted(&segment.block_offsets(*block), segment.block_rowtime(*block));
        blocks.extend((0..segment.blocks()).filter(in_bounds).map(|block| (segment, block)));
    }
    let blocks = by_block_statistics(view, request, blocks);
    let mut sources: Vec<Source> = Vec::with_capacity(blocks.len());
    let mut last: Option<&Arc<Segment>> = None;
    for (segment, block) in blocks {
        counts.segments_read += usize::from(last.is_none_or(|last| !Arc::ptr_eq(last, segment)));
        last = Some(segment);
        sources.push(Source::Block { segment: Arc::clone(segment), block });
    }
    counts.segments_skipped_by_filter = absent;
    counts.segments_skipped = view.segments.len() - counts.segments_read;
    let batches: usize = view.segments.iter().map(|segment| segment.blocks()).sum();
    for batch in view.in_memory() {
        if wanted(&(batch.stored.offset_start..batch.offset_end()), batch.rowtime) {
            sources.push(Source::Memory(batch.clone()));
        } else {
            counts.batches_skipped += 1;
        }
    }
    counts.batches_read = sources.len();
    let read = sources.iter().filter(|source| matches!(source, Source::Block { .. })).count();
    counts.batches_skipped += batches - read;
    sources
}

/// Those of `found` that may have a wanted row, and how many only a filter ruled out.
fn by_pruner<'v>(
    view: &PartitionView,
    request: &ScanRequest,
    mut found: Vec<&'v Arc<Segment>>,
) -> (Vec<&'v Arc<Segment>>, usize) {
    let Some(pruner) = &request.pruner else { return (found, 0) };
    let schema = request.schema.as_ref().unwrap_or(&view.schema);
    let mut parts = Parts::new(schema);
    for segment in &found {
        parts.push(segment.offset_start()..segment.offset_end(), segment.rows(), segment, segment.columns());
    }
    retain(&mut found, pruner.keep(&parts));
    let before = found.len();
    let keys: Vec<(usize, Vec<u64>)> =
        pruner.keys().iter().filter_map(|key| Some((key.column, hashes(&key.values)?))).collect();
    if !keys.is_empty() {
        found.retain(|segment| {
            let may = |column: usize, hashes: &[u64]| match place(schema, segment.schema(), column) {
                Some(column) => may_contain(segment, column, hashes),
                None => true,
            };
            keys.iter().all(|(column, hashes)| may(*column, hashes))
        });
    }
    let absent = before - found.len();
    (found, absent)
}

fn may_contain(segment: &Segment, column: usize, hashes: &[u64]) -> bool {
    match segment.bloom(column) {
        Ok(Some(bloom)) => hashes.iter().any(|hash| bloom.may_contain(*hash)),
        Ok(None) => true,
        Err(error) => {
            tracing::warn!(%error, "a bloom filter cannot be used: the segment is read");
            true
        }
    }
}

fn by_block_statistics<'v>(
    view: &PartitionView,
    request: &ScanRequest,
    mut blocks: Vec<(&'v Arc<Segment>, usize)>,
) -> Vec<(&'v Arc<Segment>, usize)> {
    let Some(pruner) = &request.pruner else { return blocks };
    if blocks.iter().all(|(segment, _)| segment.blocks() == 1) {
        return blocks;
    }
    let schema = request.schema.as_ref().unwrap_or(&view.schema);
    let mut parts = Parts::new(schema);
    for (segment, block) in &blocks {
        let offsets = segment.block_offsets(*block);
        let rows = segment.block_rows(*block);
        parts.push(offsets, rows, segment, segment.block_columns(*block));
    }
    retain(&mut blocks, pruner.keep(&parts));
    blocks
}

fn retain<T>(items: &mut Vec<T>, keep: Option<Vec<bool>>) {
    let Some(keep) = keep.filter(|keep| keep.len() == items.len()) else { return };
    let mut keep = keep.into_iter();
    items.retain(|_| keep.next().unwrap_or(true));
}
