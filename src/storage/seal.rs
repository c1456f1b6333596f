//! Sealing: frozen rows become segment files, and a new manifest lists them.
//!
//! Owns the order of writes of a seal. Leaves out freezing and installing
//! ([`ShardStore`](super::shard_store::ShardStore)) and when to seal (replication). Run on a thread that may block, one job
//! of a shard at a time.
//!
//! Order, and what a crash leaves: (1) each segment is written to `segments/<name>.tmp`, synced, renamed;
//! (2) the segments directory is synced; (3) the manifest is replaced; (4) files of dropped topics, which
//! the new manifest lists as removed, are unlinked. Before (3) is durable the old manifest holds and the
//! log still has the rows: the next open removes `.tmp` files and moves segments that no manifest lists
//! aside. After it the new one holds, and the next open finishes (4).

use super::batch::TopicStorage;
use super::disk::Disk;
use super::error::StorageError;
use super::manifest::{Manifest, ManifestIndex, PartitionManifest, SegmentManifest, TopicManifest};
use super::partition::PartitionView;
use super::removing::Removing;
use super::segment::{Segment, SegmentExpected, SegmentHome};
use super::segment_writer::{SegmentPlan, write_segment};
use super::staging::{STAGED, StagedFile};
use bytes::Bytes;
use millstream_catalog::model::{EntryIndex, Offset, PartitionId, RowCount, ShardId};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Directory of segments within a shard's directory.
pub(crate) const SEGMENTS: &str = "segments";
/// End of the name of a segment that is being written.
pub(crate) const TMP: &str = ".tmp";

/// Work that makes everything frozen durable; see the module for its order.
#[derive(Debug)]
#[must_use = "frozen rows stay in memory until the job has run and is installed"]
pub struct SealJob {
    pub(crate) disk: Arc<dyn Disk>,
    pub(crate) dir: PathBuf,
    pub(crate) home: Arc<SegmentHome>,
    pub(crate) shard: ShardId,
    pub(crate) published: EntryIndex,
    pub(crate) topics: Vec<TopicPlan>,
    pub(crate) removing: Vec<Removing>,
    pub(crate) applied: Bytes,
    pub(crate) extra: Bytes,
    /// Staged rows that `extra` speaks of, and no manifest before.
    pub(crate) staged: Vec<StagedFile>,
    /// Files of staged rows that it no longer speaks of.
    pub(crate) unstaged: Vec<String>,
    /// Held while a seal is under way.
    pub(crate) token: Arc<()>,
}

/// A topic as it was when the tails were frozen.
#[derive(Debug)]
pub(crate) struct TopicPlan {
    pub(crate) storage: TopicStorage,
    pub(crate) schema_hex: Arc<str>,
    /// One view per partition, with an empty tail.
    pub(crate) partitions: Vec<PartitionView>,
}

/// What a job has made durable, to be installed.
#[derive(Debug)]
#[must_use = "the store must install what was sealed before it seals again"]
pub struct Sealed {
    pub(crate) segments: Vec<Arc<Segment>>,
    pub(crate) removed: Vec<String>,
    pub(crate) published: EntryIndex,
    _token: Arc<()>,
}

impl Sealed {
    /// Number of new segments.
    pub fn segments(&self) -> usize {
        self.segments.len()
    }

    /// The last entry whose rows the manifest covers.
    pub fn published(&self) -> EntryIndex {
        self.published
    }
}

impl SealJob {
    /// The same job, whose `extra` speaks of the files `staged`, as the first, and no longer of those named `unstaged`.
    pub fn with_staged(self, staged: Vec<StagedFile>, unstaged: Vec<String>) -> Self {
        Self { staged, unstaged, ..self }
    }

    /// The last entry whose rows the manifest will cover.
    pub fn published(&self) -> EntryIndex {
        self.published
    }

    /// Writes segments and manifest; blocks. When it returns, the log up to the sealed entry is not needed.
    ///
    /// # Errors
    /// [`StorageError::DiskFull`] and other errors of the disk: the old manifest holds, frozen rows stay
    /// readable, and a later seal takes them along. [`StorageError::SyncFailed`]: the node must stop.
    pub fn run(self) -> Result<Sealed, StorageError> {
        let mut written = Vec::new();
        match self.write(&mut written) {
            Ok(segments) => {
                let removed = self.remove_dropped();
                self.remove_unstaged();
                Ok(Sealed { segments, removed, published: self.published, _token: self.token })
            }
            Err(StorageError::SyncFailed) => Err(StorageError::SyncFailed),
            Err(error) => {
                // No manifest lists these; whatever cannot be removed now, the next open takes care of.
                for path in written {
                    let _ = self.disk.remove(&path);
                }
                Err(error)
            }
        }
    }

    fn write(&self, written: &mut Vec<PathBuf>) -> Result<Vec<Arc<Segment>>, StorageError> {
        let dir = self.dir.join(SEGMENTS);
        let mut index = ManifestIndex {
            shard: self.shard,
            published: self.published,
            topics: Vec::new(),
            removed: self.removing.iter().map(|removing| removing.file.clone()).collect(),
        };
        let mut segments = Vec::new();
        for topic in &self.topics {
            let mut partitions = Vec::with_capacity(topic.partitions.len());
            for (id, view) in (0u32..).map(PartitionId::new).zip(&topic.partitions) {
                let mut listed: Vec<SegmentManifest> = view.segments().iter().map(|segment| list(segment)).collect();
                if let Some(segment) = self.write_partition(&dir, &topic.storage, id, view, written)? {
                    listed.push(list(&segment));
                    segments.push(Arc::new(segment));
                }
                let (offset_start, offset_next) = (view.offset_start(), view.offset_end());
                let upkeep = view.upkeep().clone();
                partitions.push(PartitionManifest { offset_start, offset_next, segments: listed, upkeep });
            }
            index.topics.push(TopicManifest {
                topic: topic.storage.topic,
                compression: topic.storage.compression,
                schema: topic.schema_hex.to_string(),
                partitions,
            });
        }
        if !segments.is_empty() {
            self.disk.sync_dir(&dir).map_err(|_| StorageError::SyncFailed)?;
        }
        StagedFile::sync(&self.staged, &*self.disk, &self.dir)?;
        let manifest = Manifest { index, applied: self.applied.clone(), extra: self.extra.clone() };
        manifest.replace(&*self.disk, &self.dir)?;
        Ok(segments)
    }

    /// The segment of a partition's frozen rows, if it has any.
    fn write_partition(
        &self,
        dir: &Path,
        topic: &TopicStorage,
        partition: PartitionId,
        view: &PartitionView,
        written: &mut Vec<PathBuf>,
    ) -> Result<Option<Segment>, StorageError> {
        let (Some(first), Some(last)) = (view.frozen.first(), view.frozen.last()) else { return Ok(None) };
        let failed = |error| StorageError::io("write a segment", error);
        let (offset_start, compression) = (first.stored.offset_start, topic.compression);
        let rows: RowCount = last.offset_end().since(offset_start);
        let name = Segment::file_name(topic.topic, partition, offset_start);
        let tmp = dir.join(format!("{name}{TMP}"));
        let file = self.disk.create(&tmp).map_err(failed)?;
        written.push(tmp.clone());
        let schema = &topic.schema;
        let plan = SegmentPlan { topic: topic.topic, partition, schema, compression, batches: &view.frozen };
        let done = write_segment(file.clone(), &plan)?;
        file.sync_data().map_err(|_| StorageError::SyncFailed)?;
        let path = dir.join(&name);
        self.disk.rename(&tmp, &path).map_err(failed)?;
        written.push(path);
        let (topic, bytes, end, schema) = (topic.topic, done.bytes, done.end, schema.clone());
        let (offset_end, rowtime, entries) = (None, None, None);
        let expected = SegmentExpected {
            topic,
            partition,
            offset_start,
            offset_end,
            rows,
            bytes,
            end,
            compression,
            schema,
            rowtime,
            entries,
        };
        Segment::open(&self.home, name, expected).map(Some)
    }

    /// Unlinks staged rows of transactions that ended before the manifest; what cannot go now, goes at the next open.
    fn remove_unstaged(&self) {
        for file in &self.unstaged {
            let _ = self.disk.remove(&self.dir.join(STAGED).join(file));
        }
    }

    /// Unlinks files of dropped topics; gives those that are gone for good.
    fn remove_dropped(&self) -> Vec<String> {
        if self.removing.is_empty() {
            return Vec::new();
        }
        let dir = self.dir.join(SEGMENTS);
        // Of those that readers still have and that cannot be kept open, the next seal tries again.
        let free = self.removing.iter().filter(|removing| removing.free().is_ok());
        let mut gone: Vec<String> = free.map(|removing| removing.file.clone()).collect();
        gone.retain(|file| match self.disk.remove(&dir.join(file)) {
            Ok(()) => true,
            Err(error) => error.kind() == io::ErrorKind::NotFound,
        });
        match self.disk.sync_dir(&dir) {
            Ok(()) => gone,
            // They may come back; the next manifest lists them once more.
            Err(_) => Vec::new(),
        }
    }
}

fn list(segment: &Segment) -> SegmentManifest {
    SegmentManifest {
        file: segment.file().to_owned(),
        offset_start: segment.offset_start(),
        offset_end: segment.expected().offset_end,
        rows: segment.rows(),
        bytes: segment.bytes().value(),
        compression: segment.compression(),
        end: segment.expected().end,
        rowtime: segment.rowtime().map(|range| (range.first.micros(), range.last.micros())),
        entries: segment.expected().entries,
        lost: segment.lost().map(str::to_owned),
    }
}

/// Whether a partition's segments follow each other up to the next offset. The first may begin before the log start
/// `offset_start`, but does not end before it; only below what was compacted does it begin after it, is there room between
/// two, or after the last.
pub(crate) fn is_dense(partition: &PartitionManifest) -> bool {
    let compacted = partition.upkeep.compacted_upto;
    let follows = |before: Offset, next: Offset| next == before || (next > before && next <= compacted);
    let Some(first) = partition.segments.first() else {
        return partition.offset_next <= partition.offset_start.max(compacted);
    };
    let end = partition
        .segments
        .iter()
        .try_fold(first.offset_start, |before, segment| follows(before, segment.offset_start).then(|| segment.end()));
    first.offset_start <= partition.offset_start.max(compacted)
        && first.end() > partition.offset_start
        && end.is_some_and(|end| follows(end, partition.offset_next))
}
