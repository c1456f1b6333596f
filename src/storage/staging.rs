//! Staged rows: those of a transaction that is too large for one entry, until it commits.
//!
//! Owns their files, `staged/<stage>-<part>.arrow` in a shard's directory: segments of rows counted from zero, read
//! through the map. So what an open transaction wrote costs memory of the page cache only, and when it commits its rows
//! join the tail without a copy. Leaves out which transactions there are (replication). A file is made durable only when
//! a manifest lists it: until then the log has its rows, and repeats it.

use super::batch::TopicStorage;
use super::disk::Disk;
use super::error::StorageError;
use super::fit::Wanted;
use super::open_segment::OpenSegment;
use super::segment::{SegmentEnd, SegmentExpected};
use super::segment_writer::{SegmentPlan, write_segment};
use super::tail::TailBatch;
use arrow::array::RecordBatch;
use arrow::datatypes::SchemaRef;
use millstream_catalog::model::limit::BATCH_ROWS_MAX;
use millstream_catalog::model::{EntryIndex, Offset, PartitionId, RowCount, TopicId};
use millstream_catalog::relation::Compression;
use serde::{Deserialize, Serialize};
use std::collections::{HashSet, VecDeque};
use std::io;
use std::path::Path;
use std::sync::Arc;

/// Directory of staged rows within a shard's directory.
pub const STAGED: &str = "staged";

/// A file of staged rows of one topic, as the manifest lists it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StagedFile {
    file: String,
    topic: TopicId,
    /// Of the first run.
    partition: PartitionId,
    rows: RowCount,
    bytes: u64,
    end: SegmentEnd,
    /// The rows of each partition, in the file's order; empty in older manifests, when there is only one.
    #[serde(default)]
    runs: Vec<(PartitionId, RowCount)>,
}

/// Rows of one partition, in the stored schema of their topic as it was when they came.
#[derive(Debug, Clone)]
pub struct StagedRows {
    /// The topic.
    pub topic: TopicId,
    /// The partition.
    pub partition: PartitionId,
    /// The rows; of a file they point into its map.
    pub batches: Vec<RecordBatch>,
}

impl StagedRows {
    /// How many.
    pub fn rows(&self) -> RowCount {
        RowCount::of(self.batches.iter().map(RecordBatch::num_rows).sum())
    }
}

impl StagedFile {
    /// Writes rows of one topic, which came with entry `index`, and gives them back as read from the file.
    ///
    /// # Errors
    /// [`StorageError::DiskFull`] and other errors of the disk; the file then means nothing.
    pub fn write(
        disk: &dyn Disk,
        dir: &Path,
        file: String,
        schema: &SchemaRef,
        (index, rows): (EntryIndex, &[StagedRows]),
    ) -> Result<(Self, Vec<StagedRows>), StorageError> {
        let failed = |error| StorageError::io("stage rows", error);
        let dir = dir.join(STAGED);
        disk.create_dir_all(&dir).map_err(failed)?;
        let out = disk.create(&dir.join(&file)).map_err(failed)?;
        let mut batches = Vec::new();
        let mut count = RowCount::ZERO;
        for rows in rows.iter().flat_map(|run| &run.batches).flat_map(cut) {
            let next = count.plus(RowCount::of(rows.num_rows()));
            batches.push(Arc::new(TailBatch::new(Offset::ZERO.plus(count), rows, index)));
            count = next;
        }
        let runs: Vec<_> = rows.iter().map(|run| (run.partition, run.rows())).collect();
        let (topic, partition) = rows.first().map_or_else(Default::default, |run| (run.topic, run.partition));
        let plan = SegmentPlan { topic, partition, schema, compression: Compression::None, batches: &batches };
        let written = write_segment(out, &plan)?;
        let staged = Self { file, topic, partition, rows: count, bytes: written.bytes, end: written.end, runs };
        let rows = staged.open(disk, &dir, schema)?;
        Ok((staged, rows))
    }

    /// The rows of a file that a manifest lists; none when the topic is gone.
    ///
    /// # Errors
    /// [`StorageError::Missing`] and [`StorageError::Corrupt`] name the file.
    pub fn read(
        &self,
        disk: &dyn Disk,
        dir: &Path,
        topic: Option<&TopicStorage>,
    ) -> Result<Vec<StagedRows>, StorageError> {
        match topic {
            Some(topic) => self.open(disk, &dir.join(STAGED), &topic.schema),
            None => Ok(Vec::new()),
        }
    }

    /// What the file must hold.
    pub(crate) fn expected(&self, schema: &SchemaRef) -> SegmentExpected {
        SegmentExpected {
            topic: self.topic,
            partition: self.partition,
            offset_start: Offset::ZERO,
            offset_end: None,
            rows: self.rows,
            bytes: self.bytes,
            end: self.end,
            compression: Compression::None,
            schema: schema.clone(),
            rowtime: None,
            entries: None,
        }
    }

    fn open(&self, disk: &dyn Disk, dir: &Path, schema: &SchemaRef) -> Result<Vec<StagedRows>, StorageError> {
        let segment = OpenSegment::open(disk, dir, self.file.clone(), &self.expected(schema))?;
        let wanted = Wanted::new(schema, None)?;
        let read = |block| segment.read(block, &wanted).map(|stored| stored.batch);
        let mut batches = (0..segment.blocks()).map(read).collect::<Result<VecDeque<_>, _>>()?;
        let whole = [(self.partition, self.rows)];
        let runs = if self.runs.is_empty() { whole.as_slice() } else { &self.runs };
        let run = |(partition, rows): &(PartitionId, RowCount)| StagedRows {
            topic: self.topic,
            partition: *partition,
            batches: take(&mut batches, rows.as_usize()),
        };
        Ok(runs.iter().map(run).collect())
    }

    /// The topic of its rows.
    pub fn topic(&self) -> TopicId {
        self.topic
    }

    /// The partition of its rows.
    pub fn partition(&self) -> PartitionId {
        self.partition
    }

    /// The bytes and checksum by which it is known.
    pub(crate) fn identity(&self) -> (u64, u32) {
        (self.bytes, self.end.crc)
    }

    /// Its name in the directory of staged rows.
    pub fn file(&self) -> &str {
        &self.file
    }

    /// Makes files durable, before a manifest lists them.
    ///
    /// # Errors
    /// [`StorageError::Missing`] names the file; after [`StorageError::SyncFailed`] the node must stop.
    pub fn sync(files: &[Self], disk: &dyn Disk, dir: &Path) -> Result<(), StorageError> {
        if files.is_empty() {
            return Ok(());
        }
        let staged = dir.join(STAGED);
        for listed in files {
            let file = disk.open(&staged.join(&listed.file));
            let file = file.map_err(|error| match error.kind() {
                io::ErrorKind::NotFound => StorageError::Missing { file: listed.file.clone() },
                _ => StorageError::io("sync staged rows", error),
            })?;
            file.sync_data().map_err(|_| StorageError::SyncFailed)?;
        }
        disk.sync_dir(&staged).and_then(|()| disk.sync_dir(dir)).map_err(|_| StorageError::SyncFailed)
    }

    /// Removes every file of staged rows but those of `kept`.
    ///
    /// # Errors
    /// Of the disk.
    pub fn tidy(kept: &[Self], disk: &dyn Disk, dir: &Path) -> Result<(), StorageError> {
        let failed = |error| StorageError::io("remove staged rows", error);
        let kept: HashSet<&str> = kept.iter().map(|staged| staged.file.as_str()).collect();
        let dir = dir.join(STAGED);
        if !disk.exists(&dir).map_err(failed)? {
            return Ok(());
        }
        for entry in disk.list(&dir).map_err(failed)? {
            if !kept.contains(entry.name.as_str()) {
                disk.remove(&dir.join(&entry.name)).map_err(failed)?;
            }
        }
        Ok(())
    }
}

/// The next rows, so many.
fn take(batches: &mut VecDeque<RecordBatch>, mut rows: usize) -> Vec<RecordBatch> {
    let mut taken = Vec::new();
    while rows > 0 {
        let Some(batch) = batches.pop_front() else { break };
        let own = rows.min(batch.num_rows());
        if own < batch.num_rows() {
            batches.push_front(batch.slice(own, batch.num_rows() - own));
        }
        rows -= own;
        taken.push(batch.slice(0, own));
    }
    taken
}

fn cut(batch: &RecordBatch) -> impl Iterator<Item = RecordBatch> + '_ {
    let rows = batch.num_rows();
    (0..rows).step_by(BATCH_ROWS_MAX).map(move |start| batch.slice(start, BATCH_ROWS_MAX.min(rows - start)))
}

#[cfg(test)]
mod tests {
    use super::super::fault_disk::FaultDisk;
    use super::super::testing::{numbers, rows, schema, topic};
    use super::*;

    #[test]
    fn staged_rows_survive_once_synced_and_others_are_tidied_away() {
        let disk = FaultDisk::new();
        let dir = Path::new("/data/shard");
        disk.create_dir_all(dir).unwrap();
        for parent in ["/", "/data"] {
            disk.sync_dir(Path::new(parent)).unwrap();
        }
        let storage = topic(1, 3, Compression::None);
        let part = |partition, range| StagedRows {
            topic: TopicId::new(1),
            partition: PartitionId::new(partition),
            batches: vec![rows(range)],
        };
        let write = |name: &str, parts: &[StagedRows]| {
            StagedFile::write(&disk, dir, name.to_owned(), &schema(), (EntryIndex::new(5), parts)).unwrap()
        };
        let all = |read: &[StagedRows]| {
            let run = |run: &StagedRows| (run.partition.value(), run.batches.iter().flat_map(numbers).collect());
            read.iter().map(run).collect::<Vec<(u32, Vec<_>)>>()
        };
        let (kept, read) = write("a", &[part(2, 0..100_000), part(0, 7..9), part(1, 9..70_000)]);
        let expected = vec![(2, (0..100_000).collect()), (0, vec![7, 8]), (1, (9..70_000).collect())];
        assert!(all(&read) == expected);
        let (gone, _) = write("b", &[part(1, 0..10)]);
        // As a manifest had it before there was more than one partition in a file.
        let mut json = serde_json::to_value(&gone).unwrap();
        json.as_object_mut().unwrap().remove("runs");
        let before: StagedFile = serde_json::from_value(json).unwrap();
        assert_eq!(all(&before.read(&disk, dir, Some(&storage)).unwrap()), vec![(1, (0..10).collect())]);
        let kept = [kept];
        StagedFile::sync(&kept, &disk, dir).unwrap();
        let disk = disk.crash(7);
        let read = kept[0].read(&disk, dir, Some(&storage)).unwrap();
        assert!(all(&read) == expected);
        StagedFile::tidy(&kept, &disk, dir).unwrap();
        assert!(matches!(gone.read(&disk, dir, Some(&storage)), Err(StorageError::Missing { .. })));
        kept[0].read(&disk, dir, Some(&storage)).unwrap();
    }
}
