//! Bounded reads of a partition view: offset and event-time pruning, projection, batch size.
//!
//! Owns [`ScanRequest`] and the iterator that serves it. Leaves out filtering of rows (SQL does that) and
//! waiting for new rows (the reader). Called by the engine. A crash ends it.

use super::batch::{RowtimeRange, StoredBatch};
use super::error::StorageError;
use super::partition::PartitionView;
use super::segment::Segment;
use super::tail::TailBatch;
use arrow::array::{RecordBatch, RecordBatchOptions};
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
    /// Positions in the stored schema, in the order wanted; `None` is all of them.
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
    /// Segments of which no byte is read.
    pub segments_skipped: usize,
    /// Batches to read, in segments and in memory.
    pub batches_read: usize,
    /// Batches skipped, those of skipped segments included.
    pub batches_skipped: usize,
}

#[derive(Debug)]
enum Source {
    Block { segment: Arc<Segment>, block: usize },
    Memory(Arc<TailBatch>),
}

/// The rows of a [`ScanRequest`] in offset order.
///
/// A damaged block is one `Err`; iteration may go on after it and yields the other blocks.
#[derive(Debug)]
pub struct PartitionScan {
    schema: SchemaRef,
    offsets: Range<Offset>,
    projection: Option<Vec<usize>>,
    batch_rows: usize,
    sources: std::vec::IntoIter<Source>,
    rest: Option<StoredBatch>,
    refused: Option<StorageError>,
    counts: ScanCounts,
}

impl PartitionScan {
    pub(crate) fn new(view: &PartitionView, request: ScanRequest) -> Self {
        let mut refused = None;
        let schema = project_schema(&view.schema, request.projection.as_deref()).unwrap_or_else(|error| {
            refused = Some(error);
            view.schema.clone()
        });
        let mut counts = ScanCounts::default();
        let sources = if refused.is_some() { Vec::new() } else { plan(view, &request, &mut counts) };
        Self {
            schema,
            offsets: request.offsets,
            projection: request.projection,
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

    /// What is read and skipped; known before the first batch.
    pub fn counts(&self) -> ScanCounts {
        self.counts
    }

    fn read(&self, source: &Source) -> Result<StoredBatch, StorageError> {
        let stored = match source {
            Source::Block { segment, block } => segment.read(*block, self.projection.as_deref(), &self.schema)?,
            Source::Memory(batch) => project(&batch.stored, self.projection.as_deref(), &self.schema)?,
        };
        let start = self.offsets.start.since(stored.offset_start).as_usize().min(stored.batch.num_rows());
        let end = self.offsets.end.since(stored.offset_start).as_usize().min(stored.batch.num_rows());
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
                match self.read(&source) {
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

/// Decides which batches are read.
fn plan(view: &PartitionView, request: &ScanRequest, counts: &mut ScanCounts) -> Vec<Source> {
    let wanted = |start: Offset, end: Offset, rowtime: Option<RowtimeRange>| {
        let offsets = start < request.offsets.end && end > request.offsets.start;
        offsets && request.rowtime.is_none_or(|bounds| rowtime.is_none_or(|range| range.meets(bounds)))
    };
    let mut sources = Vec::new();
    for segment in view.segments.iter() {
        let before = sources.len();
        if wanted(segment.offset_start(), segment.offset_end(), segment.rowtime()) {
            let blocks = (0..segment.blocks()).filter(|block| {
                let offsets = segment.block_offsets(*block);
                wanted(offsets.start, offsets.end, segment.block_rowtime(*block))
            });
            sources.extend(blocks.map(|block| Source::Block { segment: segment.clone(), block }));
        }
        let read = sources.len() - before;
        counts.batches_read += read;
        counts.batches_skipped += segment.blocks() - read;
        match read {
            0 => counts.segments_skipped += 1,
            _ => counts.segments_read += 1,
        }
    }
    for batch in view.in_memory() {
        if wanted(batch.stored.offset_start, batch.offset_end(), batch.rowtime) {
            counts.batches_read += 1;
            sources.push(Source::Memory(batch.clone()));
        } else {
            counts.batches_skipped += 1;
        }
    }
    sources
}

/// The schema of the projected columns.
///
/// # Errors
/// [`StorageError::Schema`] when there is no such column.
pub(crate) fn project_schema(schema: &SchemaRef, projection: Option<&[usize]>) -> Result<SchemaRef, StorageError> {
    let Some(projection) = projection else { return Ok(schema.clone()) };
    let projected = schema.project(projection);
    projected.map(Arc::new).map_err(|e| StorageError::Schema { what: format!("no such column to project: {e}") })
}

/// The projected columns of a batch in memory; `schema` is their schema.
///
/// # Errors
/// [`StorageError::Schema`] when there is no such column.
pub(crate) fn project(
    stored: &StoredBatch,
    projection: Option<&[usize]>,
    schema: &SchemaRef,
) -> Result<StoredBatch, StorageError> {
    let Some(projection) = projection else { return Ok(stored.clone()) };
    let columns = projection.iter().filter_map(|column| stored.batch.columns().get(*column).cloned()).collect();
    let options = RecordBatchOptions::new().with_row_count(Some(stored.batch.num_rows()));
    let batch = RecordBatch::try_new_with_options(schema.clone(), columns, &options)
        .map_err(|e| StorageError::Schema { what: format!("no such column to project: {e}") })?;
    Ok(StoredBatch { offset_start: stored.offset_start, batch, entries: stored.entries.clone() })
}
