//! Replacing segments: neighbours become one, or all up to an offset become those of the last rows of their keys.
//!
//! Owns what a replacement is ([`Rewrite`], as an entry of the log has it), and the job that writes the new files. Leaves
//! out deciding ([`upkeep`](super::upkeep)), the entry (replication) and the manifest ([`seal`](super::seal)). Run on a
//! thread that may block; reads one block at a time and writes one, so its memory is bounded by those and, for
//! compaction, by the keys of [`COMPACTION_ROWS_MAX`](millstream_catalog::model::limit::COMPACTION_ROWS_MAX) rows.
//!
//! The files are a function of the replaced segments and of the `Rewrite` alone, so replicas write the same. Order, and
//! what a crash leaves: (1) each file is written to `.tmp`, synced, renamed; (2) the directory is synced; (3) the entry
//! of the log is applied: views change, offsets do not; (4) the next seal's manifest lists the new files, and the old
//! ones as removed; (5) these are unlinked. Before (4) the old manifest holds, its files are all there, the next open
//! removes the new ones, and the entry, if it is in the log, has them written again.

use super::batch::{StoredBatch, batch_bytes};
use super::compaction::PartitionUpkeep;
use super::disk::{Disk, DiskFile};
use super::error::StorageError;
use super::fit::Wanted;
use super::last_rows::LastRows;
use super::partition::PartitionView;
use super::seal::TMP;
use super::segment::{Segment, SegmentExpected, SegmentHome};
use super::segment_writer::{BLOCK_BYTES_MAX, SegmentWriter};
use arrow::datatypes::SchemaRef;
use millstream_catalog::model::limit::{BATCH_ROWS_MAX, SEGMENT_BYTES_TARGET};
use millstream_catalog::model::{Offset, PartitionId, Timestamp, TopicId};
use millstream_catalog::relation::Compression;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Segments of a partition to be replaced, as the log has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rewrite {
    /// The topic.
    pub topic: TopicId,
    /// The partition.
    pub partition: PartitionId,
    /// The offsets of the segments, all of them whole.
    pub offsets: Range<Offset>,
    /// More than that of any rewrite of the partition before; it names the files.
    pub number: u64,
    /// How the new files are compressed.
    pub compression: Compression,
    /// How to compact; `None` to keep every row.
    pub compaction: Option<CompactionPlan>,
}

/// Which rows compaction takes away.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CompactionPlan {
    /// Positions of the key columns in the stored schema.
    pub key: Vec<u32>,
    /// Tombstones below this offset go.
    pub tombstones_upto: Offset,
    /// The time of the decision.
    pub now: Timestamp,
}

/// What [`Rewrite`] asks for, made out of the segments that are there.
#[derive(Debug)]
pub struct RewriteJob {
    home: Arc<SegmentHome>,
    rewrite: Rewrite,
    schema: SchemaRef,
    inputs: Vec<Arc<Segment>>,
    upkeep: PartitionUpkeep,
    /// Bytes after which compaction begins a new file.
    target_bytes: u64,
}

/// New segments, which no manifest lists yet.
#[derive(Debug)]
#[must_use = "its files are to be installed or discarded"]
pub struct Rewritten {
    pub(crate) segments: Vec<Arc<Segment>>,
    pub(crate) upkeep: PartitionUpkeep,
    made: Vec<PathBuf>,
}

impl Rewritten {
    /// Removes the files again: what they replace is not there any more.
    pub fn discard(self, disk: &dyn Disk) {
        drop(self.segments);
        for path in &self.made {
            // What cannot be removed now, the next open removes.
            let _ = disk.remove(path);
        }
    }
}

impl RewriteJob {
    /// The job of `rewrite` on the partition with `view`; `None` when its segments are no longer those it was decided
    /// for.
    pub fn plan(view: &PartitionView, rewrite: &Rewrite) -> Option<Self> {
        let inputs = inputs_of(view, rewrite)?.to_vec();
        let (schema, upkeep) = (view.schema().clone(), view.upkeep().clone());
        let home = Arc::clone(inputs.first()?.home());
        let (rewrite, target_bytes) = (rewrite.clone(), SEGMENT_BYTES_TARGET.value());
        Some(Self { home, rewrite, schema, inputs, upkeep, target_bytes })
    }

    /// Writes and syncs the new segments; blocks. `stop` ends it early, with [`StorageError::Closed`].
    ///
    /// # Errors
    /// [`StorageError::DiskFull`], [`StorageError::DamagedRows`] and others: no file is left behind then.
    /// [`StorageError::SyncFailed`]: the node must stop.
    pub fn run(self, stop: &AtomicBool) -> Result<Rewritten, StorageError> {
        let mut output = Output::new(&self);
        let written = self.write(&mut output, stop);
        let (segments, made) = (output.segments, output.made);
        match written {
            Ok(upkeep) => Ok(Rewritten { segments, upkeep, made }),
            Err(error) => {
                drop(segments);
                if !matches!(error, StorageError::SyncFailed) {
                    made.iter().for_each(|path| _ = self.home.disk.remove(path));
                }
                Err(error)
            }
        }
    }

    fn write(&self, output: &mut Output<'_>, stop: &AtomicBool) -> Result<PartitionUpkeep, StorageError> {
        let dirty_start = self.upkeep.compacted_upto;
        let wanted = Wanted::new(&self.schema, None)?;
        let mut last = match &self.rewrite.compaction {
            Some(plan) => Some(LastRows::read(&self.inputs, &self.schema, plan, dirty_start)?),
            None => None,
        };
        for segment in &self.inputs {
            let is_large = segment.offset_end() <= dirty_start && segment.bytes().value() * 2 >= self.target_bytes;
            if let Some(last) = &mut last
                && is_large
                && last.keeps_all(segment)?
            {
                output.keep(segment)?;
                continue;
            }
            let open = segment.opened()?;
            for block in 0..open.blocks() {
                if stop.load(Ordering::Relaxed) {
                    return Err(StorageError::Closed);
                }
                let stored = open.read_anew(block, &wanted)?;
                output.push(match &mut last {
                    Some(last) => last.filter(&stored)?,
                    None => stored,
                })?;
            }
        }
        output.flush()?;
        output.close(self.rewrite.offsets.end)?;
        self.home.disk.sync_dir(&self.home.dir).map_err(|_| StorageError::SyncFailed)?;
        let upkeep = match (&self.rewrite.compaction, last) {
            (Some(plan), Some(last)) => {
                let upto = self.rewrite.offsets.end;
                self.upkeep.compacted(upto, plan.now, last.tombstones(), plan.tombstones_upto)
            }
            _ => self.upkeep.clone(),
        };
        Ok(PartitionUpkeep { rewrites: self.rewrite.number, ..upkeep })
    }
}

/// The segments that `rewrite` replaces, if they are exactly there.
pub(crate) fn inputs_of<'a>(view: &'a PartitionView, rewrite: &Rewrite) -> Option<&'a [Arc<Segment>]> {
    let segments = view.segments();
    let start = segments.partition_point(|segment| segment.offset_start() < rewrite.offsets.start);
    let end = segments.partition_point(|segment| segment.offset_end() <= rewrite.offsets.end);
    let inputs = segments.get(start..end)?;
    let is_exact = inputs.first()?.offset_start() == rewrite.offsets.start
        && inputs.last()?.offset_end() == rewrite.offsets.end
        && rewrite.number > view.upkeep().rewrites
        && inputs.iter().all(|segment| segment.damage().is_none());
    is_exact.then_some(inputs)
}

/// The new segments, one of them being written.
struct Output<'a> {
    job: &'a RewriteJob,
    segments: Vec<Arc<Segment>>,
    /// Files that must go if the job fails.
    made: Vec<PathBuf>,
    open: Option<OpenFile>,
    /// The first offset that the next segment is for.
    start: Offset,
    pending: Vec<StoredBatch>,
    pending_rows: usize,
    pending_bytes: u64,
}

struct OpenFile {
    name: String,
    tmp: PathBuf,
    file: Arc<dyn DiskFile>,
    writer: SegmentWriter,
}

impl<'a> Output<'a> {
    fn new(job: &'a RewriteJob) -> Self {
        Self {
            job,
            segments: Vec::new(),
            made: Vec::new(),
            open: None,
            start: job.rewrite.offsets.start,
            pending: Vec::new(),
            pending_rows: 0,
            pending_bytes: 0,
        }
    }

    /// Adds rows; writes a block when there are enough.
    fn push(&mut self, stored: StoredBatch) -> Result<(), StorageError> {
        if stored.batch.num_rows() == 0 {
            return Ok(());
        }
        let target_bytes = self.job.target_bytes;
        if self.pending.is_empty() && self.open.as_mut().is_some_and(|open| open.writer.position() >= target_bytes) {
            self.close(stored.offset_start)?;
        }
        let room = BATCH_ROWS_MAX - self.pending_rows;
        let rows = stored.batch.num_rows();
        let head = stored.slice(0, rows.min(room));
        self.pending_rows += head.batch.num_rows();
        self.pending_bytes += batch_bytes(&head.batch).value();
        self.pending.push(head);
        if self.pending_rows == BATCH_ROWS_MAX || self.pending_bytes >= BLOCK_BYTES_MAX {
            self.flush()?;
        }
        if rows > room { self.push(stored.slice(room, rows - room)) } else { Ok(()) }
    }

    /// Writes what was added as a block.
    fn flush(&mut self) -> Result<(), StorageError> {
        if self.pending.is_empty() {
            return Ok(());
        }
        let mut open = match self.open.take() {
            Some(open) => open,
            None => self.create()?,
        };
        open.writer.write(&self.pending)?;
        self.open = Some(open);
        (self.pending_rows, self.pending_bytes) = (0, 0);
        self.pending.clear();
        Ok(())
    }

    fn create(&mut self) -> Result<OpenFile, StorageError> {
        let rewrite = &self.job.rewrite;
        let name = Segment::rewritten_file_name((rewrite.topic, rewrite.partition), self.start, rewrite.number);
        let tmp = self.job.home.dir.join(format!("{name}{TMP}"));
        let file = self.job.home.disk.create(&tmp).map_err(|error| StorageError::io("write a segment", error))?;
        self.made.push(tmp.clone());
        let writer = SegmentWriter::create(Arc::clone(&file), &self.job.schema, rewrite.compression)?;
        Ok(OpenFile { name, tmp, file, writer })
    }

    /// Takes a segment over as it is.
    fn keep(&mut self, segment: &Arc<Segment>) -> Result<(), StorageError> {
        self.flush()?;
        self.close(segment.offset_start())?;
        self.segments.push(Arc::clone(segment));
        self.start = segment.offset_end();
        Ok(())
    }

    /// Ends the file that is being written, if there is one, as the segment for all offsets up to `end`.
    fn close(&mut self, end: Offset) -> Result<(), StorageError> {
        let offsets = std::mem::replace(&mut self.start, end)..end;
        let Some(open) = self.open.take() else { return Ok(()) };
        let rewrite = &self.job.rewrite;
        let rows = open.writer.rows();
        let done = open.writer.finish((rewrite.topic, rewrite.partition), offsets.clone())?;
        open.file.sync_data().map_err(|_| StorageError::SyncFailed)?;
        let path = self.job.home.dir.join(&open.name);
        self.job.home.disk.rename(&open.tmp, &path).map_err(|error| StorageError::io("write a segment", error))?;
        self.made.push(path);
        let expected = SegmentExpected {
            topic: rewrite.topic,
            partition: rewrite.partition,
            offset_start: offsets.start,
            offset_end: (offsets.end.since(offsets.start) != rows).then_some(offsets.end),
            rows,
            bytes: done.bytes,
            end: done.end,
            compression: rewrite.compression,
            schema: self.job.schema.clone(),
            rowtime: None,
            entries: None,
        };
        let segment = Segment::open(&self.job.home, open.name, expected)?;
        self.segments.push(Arc::new(segment));
        Ok(())
    }
}

#[cfg(test)]
#[path = "rewrite_tests.rs"]
mod tests;
