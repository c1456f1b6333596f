//! What SQL needs from the world: stored events and system views, as one port.
//!
//! Owns the request and the shapes of what comes back; leaves out where rows are kept. `exec` calls it while a query
//! runs; the engine implements it over storage. Holds nothing, so a crash does nothing to it.

use crate::error::SqlError;
use crate::exec::pruning::Pruning;
use arrow::array::{ArrayRef, RecordBatch};
use arrow::datatypes::SchemaRef;
use millstream_catalog::Relation;
use millstream_catalog::model::{Offset, PartitionId, RowCount, Timestamp};
use std::fmt::Debug;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Batches of one unit of parallelism, in the order of the request's projection.
///
/// Synchronous: one `next` reads and decodes at most one batch.
pub type BatchIter = Box<dyn Iterator<Item = Result<RecordBatch, SqlError>> + Send>;

/// One column of a scan.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ScanColumn {
    /// The column at this position of `relation.stored_schema()`.
    Stored(usize),
    /// `rowpartition`: `Int32`, never null.
    RowPartition,
    /// `rowoffset`: `Int64`, never null.
    RowOffset,
}

/// Which rows and columns a scan wants. Offsets and partitions of a relation without tombstones are exact. Every other
/// bound may be answered with more rows than asked: the query filters again.
/// Of a table with a key the bounds apply to its current rows: an older version of a row never comes back because the
/// newer one is out of bounds.
///
/// `rowoffset >= 10 AND rowoffset < 20 AND rowtime <= t` is `offsets: Some(10..20)`, `rowtime: (None, Some(t))`.
#[derive(Debug, Clone, Default)]
pub struct ScanRequest {
    /// The columns of each batch, in this order; may be empty: batches then have rows but no columns.
    pub projection: Vec<ScanColumn>,
    /// Offsets wanted in every partition, half-open.
    pub offsets: Option<Range<Offset>>,
    /// Partitions wanted; `None` is all.
    pub partitions: Option<Vec<PartitionId>>,
    /// The least and the greatest event time wanted, both inclusive.
    pub rowtime: (Option<Timestamp>, Option<Timestamp>),
    /// Tests of parts of the log; only of relations without tombstones.
    pub pruning: Option<Arc<Pruning>>,
    /// The only keys wanted of a table, an array per key column; only of relations with tombstones.
    pub lookup: Option<Vec<ArrayRef>>,
    /// Each iterator may stop after this many rows. Given only when no filter follows.
    pub limit: Option<usize>,
    /// How many iterators are useful at most; fewer or more are allowed.
    pub parallelism: usize,
    /// Counts what was read and skipped, for `EXPLAIN ANALYZE`.
    pub metrics: Arc<ScanMetrics>,
}

/// One thing a scan counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ScanCount {
    /// Segments of which rows were read.
    SegmentsRead,
    /// Segments that offsets, event times, statistics or filters ruled out.
    SegmentsSkipped,
    /// Those of them that only a bloom filter ruled out.
    SegmentsSkippedByFilter,
    /// Batches that were read.
    BatchesRead,
    /// Batches that were skipped, those of skipped segments too.
    BatchesSkipped,
    /// Rows that were read.
    Rows,
    /// Bytes of the wanted columns that were read.
    Bytes,
}

/// What a scan read and what it could skip. Written by the source, read after the query ended.
#[derive(Debug, Default)]
pub struct ScanMetrics {
    counts: [AtomicU64; 7],
}

impl ScanMetrics {
    /// Adds to a count.
    pub fn add(&self, count: ScanCount, more: u64) {
        self.counts[count as usize].fetch_add(more, Ordering::Relaxed);
    }
    /// A count so far.
    pub fn value(&self, count: ScanCount) -> u64 {
        self.counts[count as usize].load(Ordering::Relaxed)
    }
}

/// What metadata knows of the rows of a scan.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ScanSummary {
    /// Their number.
    pub rows: RowCount,
    /// The first and the last offset; `None` when that is not known or there are no rows.
    pub offsets: Option<(Offset, Offset)>,
    /// The least and the greatest event time; `None` when that is not known, not asked for, or there are no rows.
    pub rowtime: Option<(Timestamp, Timestamp)>,
}

/// Stored events and system views, as of one moment.
///
/// One source serves one statement: every scan through it sees the same committed rows.
pub trait RelationSource: Send + Sync + Debug {
    /// Batches of `relation`; of a table with a key, its current rows, in the same parts whatever the parallelism. An empty
    /// answer means no rows.
    ///
    /// # Errors
    /// Storage errors, as far as they show before the first batch.
    fn scan(&self, relation: &Arc<Relation>, request: ScanRequest) -> Result<Vec<BatchIter>, SqlError>;

    /// What metadata knows of the rows a scan with these offsets and partitions and no other bounds gives; event times
    /// only when `rowtime` is in the projection.
    fn summary(&self, relation: &Arc<Relation>, request: &ScanRequest) -> Option<ScanSummary>;

    /// The value of a setting of the session; `None` when there is no such setting.
    fn setting(&self, _name: &str) -> Option<String> {
        None
    }

    /// Name and schema of every view in schema `millstream`.
    fn system_views(&self) -> Vec<(String, SchemaRef)>;

    /// The rows of one system view, in the schema `system_views` gave.
    ///
    /// # Errors
    /// When the view cannot be computed now.
    fn system_view(&self, name: &str) -> Result<RecordBatch, SqlError>;
}

/// Refuses the views of schema `millstream` that the contract has and this version has not.
///
/// # Errors
/// 0A000, naming the alternative.
pub fn refuse_later(view: &str) -> Result<(), SqlError> {
    let hint = match view {
        "consumer_groups" | "consumer_group_members" | "consumer_group_offsets" => "there are no consumer groups yet",
        "connectors" => "there are no connectors yet",
        "functions" => "use SHOW FUNCTIONS",
        "query_errors" => "it is made with the first query WITH (on_error = 'skip')",
        _ => return Ok(()),
    };
    Err(SqlError::unsupported(format!("the view millstream.{view}"), hint))
}
