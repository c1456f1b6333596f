//! The partitions of one shard, as the shard's state machine writes them.
//!
//! Owns which topics exist, what is visible, and what a seal takes. Leaves out Raft, the log and when to
//! seal: replication calls everything here, from one thread at a time. Readers use [`Partitions`].
//! A crash loses what was not sealed; [`ShardStore::open`] gives what was, and replication applies the
//! later entries of the log again.

use super::batch::TopicStorage;
use super::disk::Disk;
use super::error::StorageError;
use super::fit::width;
use super::key_set::KeySet;
use super::manifest::encode_schema;
use super::partition::Partition;
use super::partition_writer::PartitionWriter;
use super::partitions::Partitions;
use super::recovery::{Recovered, recover};
use super::removing::Removing;
use super::rewrite::{Rewrite, RewriteJob, Rewritten, inputs_of};
use super::seal::{SEGMENTS, SealJob, Sealed, TopicPlan};
use super::segment::SegmentHome;
use super::tail::TailBatch;
use arrow::array::RecordBatch;
use bytes::Bytes;
use millstream_catalog::model::{ByteSize, EntryIndex, Offset, PartitionId, ShardId, TopicId};
use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// What the last seal was given.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ManifestState {
    /// The `applied` bytes.
    pub applied: Bytes,
    /// The `extra` bytes.
    pub extra: Bytes,
}

/// The single writer of a shard's partitions.
///
/// Offsets are given densely by [`ShardStore::append`] in call order, from the log's prefix alone, so
/// they are equal on every replica.
#[derive(Debug)]
pub struct ShardStore {
    disk: Arc<dyn Disk>,
    dir: PathBuf,
    home: Arc<SegmentHome>,
    shard: ShardId,
    topics: BTreeMap<TopicId, TopicState>,
    directory: Arc<Partitions>,
    /// Partitions with rows that are not published.
    pending: BTreeSet<(TopicId, PartitionId)>,
    /// Partitions with rows that are published and not frozen.
    unsealed: BTreeSet<(TopicId, PartitionId)>,
    /// The entry of the last append or publish.
    appended: EntryIndex,
    tail_bytes: ByteSize,
    frozen_bytes: ByteSize,
    /// Files of dropped topics, or before the log start, that a manifest may still list.
    removing: Vec<Removing>,
    token: Arc<()>,
}

/// A topic and the write side of its partitions.
#[derive(Debug)]
pub(crate) struct TopicState {
    pub(crate) storage: TopicStorage,
    pub(crate) schema_hex: Arc<str>,
    pub(crate) partitions: Vec<PartitionWriter>,
}

impl TopicState {
    fn readers(&self) -> Arc<[Arc<Partition>]> {
        self.partitions.iter().map(|writer| writer.partition().clone()).collect()
    }
}

impl ShardStore {
    /// Opens the shard in `dir`, creating it if needed, and what its last seal was given.
    ///
    /// # Errors
    /// [`StorageError::Corrupt`], [`StorageError::Missing`] or [`StorageError::Newer`] name what is wrong; the
    /// directory is left as it is.
    pub fn open(
        disk: Arc<dyn Disk>,
        dir: &Path,
        shard: ShardId,
    ) -> Result<(Self, Option<ManifestState>), StorageError> {
        let home = Arc::new(SegmentHome { disk: Arc::clone(&disk), dir: dir.join(SEGMENTS) });
        let Recovered { manifest, topics } = recover(&home, dir, shard)?;
        let published = manifest.as_ref().map_or(EntryIndex::default(), |manifest| manifest.index.published);
        let directory = Arc::new(Partitions::new(shard, published));
        for topic in &topics {
            directory.insert(topic.storage.topic, topic.readers());
        }
        let state = manifest.map(|manifest| ManifestState { applied: manifest.applied, extra: manifest.extra });
        let store = Self {
            disk,
            dir: dir.to_owned(),
            home,
            shard,
            topics: topics.into_iter().map(|topic| (topic.storage.topic, topic)).collect(),
            directory,
            pending: BTreeSet::new(),
            unsealed: BTreeSet::new(),
            appended: published,
            tail_bytes: ByteSize::ZERO,
            frozen_bytes: ByteSize::ZERO,
            removing: Vec::new(),
            token: Arc::new(()),
        };
        Ok((store, state))
    }

    /// The place in the log that the store in `dir` was last sealed at, as it was given; `None` when it never was.
    ///
    /// # Errors
    /// When the manifest cannot be read.
    pub fn sealed_at(disk: &dyn Disk, dir: &Path) -> Result<Option<Bytes>, StorageError> {
        Ok(crate::storage::manifest::Manifest::read(disk, dir)?.map(|manifest| manifest.applied))
    }

    /// The shard.
    pub fn shard(&self) -> ShardId {
        self.shard
    }

    /// The shard's directory.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The disk it is on.
    pub fn disk(&self) -> &Arc<dyn Disk> {
        &self.disk
    }

    /// The read side; the same one for the life of the store.
    pub fn partitions(&self) -> Arc<Partitions> {
        self.directory.clone()
    }

    /// The topics, ascending.
    pub fn topics(&self) -> impl Iterator<Item = &TopicStorage> {
        self.topics.values().map(|topic| &topic.storage)
    }

    /// A topic.
    pub fn topic(&self, topic: TopicId) -> Option<&TopicStorage> {
        self.topics.get(&topic).map(|state| &state.storage)
    }

    /// Adds a topic with empty partitions; a topic that exists stays as it is. Durable with the next seal.
    pub fn create_topic(&mut self, topic: TopicStorage) {
        if self.topics.contains_key(&topic.topic) {
            return;
        }
        let none = Offset::ZERO..Offset::ZERO;
        let partitions = (0..topic.partitions)
            .map(|id| PartitionWriter::new(&topic, PartitionId::new(id), Vec::new(), none.clone(), Default::default()))
            .collect();
        let state = TopicState { schema_hex: encode_schema(&topic.schema).into(), storage: topic, partitions };
        self.directory.insert(state.storage.topic, state.readers());
        self.topics.insert(state.storage.topic, state);
    }

    /// Gives a topic that exists more columns, more partitions, other names of columns and another compression of later
    /// segments; never fewer columns or partitions. Durable with the next seal, as appends are: the log repeats it.
    ///
    /// # Errors
    /// [`StorageError::Schema`] when the columns are not those it has and more.
    pub fn alter_topic(&mut self, topic: TopicStorage) -> Result<(), StorageError> {
        let Some(state) = self.topics.get_mut(&topic.topic) else { return Ok(()) };
        let more = topic.partitions.saturating_sub(state.storage.partitions);
        let partitions = topic.partitions.max(state.storage.partitions);
        if topic.schema != state.storage.schema && width(&topic.schema) >= width(&state.storage.schema) {
            for writer in &mut state.partitions {
                self.tail_bytes = less(self.tail_bytes, writer.tail_bytes());
                self.frozen_bytes = less(self.frozen_bytes, writer.frozen_bytes());
                writer.alter(&topic.schema)?;
                self.tail_bytes = self.tail_bytes.plus(writer.tail_bytes());
                self.frozen_bytes = self.frozen_bytes.plus(writer.frozen_bytes());
            }
            state.schema_hex = encode_schema(&topic.schema).into();
            state.storage.schema = topic.schema.clone();
        }
        let schema = state.storage.schema.clone();
        state.storage = TopicStorage { partitions, schema, ..topic };
        if more > 0 {
            let new = partitions - more..partitions;
            let none = Offset::ZERO..Offset::ZERO;
            let empty = |id| {
                PartitionWriter::new(&state.storage, PartitionId::new(id), Vec::new(), none.clone(), Default::default())
            };
            let new: Vec<PartitionWriter> = new.map(empty).collect();
            state.partitions.extend(new);
            self.directory.insert(state.storage.topic, state.readers());
            state.partitions.iter().for_each(|writer| writer.partition().wake());
        }
        Ok(())
    }

    /// Removes a topic; no error if there is none. Readers that hold it read on to its end. Its files are
    /// unlinked after the next seal's manifest no longer lists them.
    pub fn drop_topic(&mut self, topic: TopicId) {
        let Some(state) = self.topics.remove(&topic) else { return };
        self.directory.remove(topic);
        for writer in &state.partitions {
            self.tail_bytes = less(self.tail_bytes, writer.tail_bytes());
            self.frozen_bytes = less(self.frozen_bytes, writer.frozen_bytes());
            let id = (topic, writer.partition().id());
            self.pending.remove(&id);
            self.unsealed.remove(&id);
            self.removing.extend(writer.view().segments().iter().map(Removing::of));
            writer.partition().set_dropped();
        }
    }

    /// Adds rows of entry `index` and gives the offset of the first. They become visible with
    /// [`ShardStore::publish`]. More than 65,536 rows are cut without a copy.
    ///
    /// # Errors
    /// [`StorageError::OutOfOrder`] for an entry before the last one appended, or published, here;
    /// [`StorageError::NoPartition`]; [`StorageError::Schema`]. Nothing is appended then.
    pub fn append(
        &mut self,
        index: EntryIndex,
        topic: TopicId,
        partition: PartitionId,
        batch: RecordBatch,
    ) -> Result<Offset, StorageError> {
        self.append_as(index, (topic, partition), batch, TailBatch::new)
    }

    /// As [`ShardStore::append`], of rows in a mapped file: they are not copied before they are sealed.
    ///
    /// # Errors
    /// As [`ShardStore::append`].
    pub fn append_mapped(
        &mut self,
        index: EntryIndex,
        topic: TopicId,
        partition: PartitionId,
        batch: RecordBatch,
    ) -> Result<Offset, StorageError> {
        self.append_as(index, (topic, partition), batch, TailBatch::mapped)
    }

    fn append_as(
        &mut self,
        index: EntryIndex,
        (topic, partition): (TopicId, PartitionId),
        batch: RecordBatch,
        make: fn(Offset, RecordBatch, EntryIndex) -> TailBatch,
    ) -> Result<Offset, StorageError> {
        if index < self.appended || index <= self.directory.applied() {
            return Err(StorageError::OutOfOrder { shard: self.shard, index });
        }
        let state = self.topics.get_mut(&topic);
        let writer = state.and_then(|state| state.partitions.get_mut(partition.value() as usize));
        let writer = writer.ok_or(StorageError::NoPartition { topic, partition })?;
        let (offset, bytes) = writer.append(index, batch, make)?;
        self.appended = index;
        self.tail_bytes = self.tail_bytes.plus(bytes);
        self.pending.insert((topic, partition));
        Ok(offset)
    }

    /// Where a partition ends, with what is not published yet; `None` when it is not there.
    pub fn offset_end(&self, topic: TopicId, partition: PartitionId) -> Option<Offset> {
        let topic = self.topics.get(&topic)?;
        topic.partitions.get(partition.value() as usize).map(PartitionWriter::offset_next)
    }

    /// Whether a row of the partition from `position` on, published or not, has one of `keys`.
    ///
    /// # Errors
    /// [`StorageError::NoPartition`], or when rows cannot be read.
    pub fn is_touched(
        &self,
        topic: TopicId,
        partition: PartitionId,
        position: Offset,
        keys: &KeySet,
    ) -> Result<bool, StorageError> {
        let state = self.topics.get(&topic);
        let writer = state.and_then(|state| state.partitions.get(partition.value() as usize));
        writer.ok_or(StorageError::NoPartition { topic, partition })?.is_touched(position, keys)
    }

    /// Makes everything appended up to entry `index` visible, then [`Partitions::applied`] is `index`.
    pub fn publish(&mut self, index: EntryIndex) {
        let pending = std::mem::take(&mut self.pending);
        for id in pending.iter().copied() {
            let writer = self.topics.get_mut(&id.0).and_then(|s| s.partitions.get_mut(id.1.value() as usize));
            let Some(writer) = writer else { continue };
            if writer.publish(index) {
                self.pending.insert(id);
            }
            self.unsealed.insert(id);
        }
        self.appended = self.appended.max(index);
        self.directory.set_applied(index);
        for id in pending {
            let writer = self.topics.get(&id.0).and_then(|s| s.partitions.get(id.1.value() as usize));
            if let Some(writer) = writer {
                writer.partition().announce();
            }
        }
    }

    /// Publishes what was appended, then moves the log start of a partition forward to `to`, or to its end when that is
    /// before; gives where it is now. Rows before it are no longer read; files with none after it are unlinked once
    /// the next seal's manifest no longer lists them. Durable with that seal, as appends are: the log repeats it.
    ///
    /// # Errors
    /// [`StorageError::NoPartition`].
    pub fn move_start(&mut self, topic: TopicId, partition: PartitionId, to: Offset) -> Result<Offset, StorageError> {
        self.publish(self.appended);
        let state = self.topics.get_mut(&topic);
        let writer = state.and_then(|state| state.partitions.get_mut(partition.value() as usize));
        let writer = writer.ok_or(StorageError::NoPartition { topic, partition })?;
        let (start, to) = (writer.view().offset_start(), to.min(writer.view().offset_end()));
        if to <= start {
            return Ok(start);
        }
        self.tail_bytes = less(self.tail_bytes, writer.tail_bytes());
        self.frozen_bytes = less(self.frozen_bytes, writer.frozen_bytes());
        let gone = writer.move_start(to);
        self.directory.count_removed(&gone);
        self.removing.extend(gone.iter().map(Removing::of));
        self.tail_bytes = self.tail_bytes.plus(writer.tail_bytes());
        self.frozen_bytes = self.frozen_bytes.plus(writer.frozen_bytes());
        Ok(to)
    }

    /// The job of `rewrite`; `None` when its segments are not there, on this replica as on every other.
    pub fn rewrite_job(&self, rewrite: &Rewrite) -> Option<RewriteJob> {
        let writer = self.topics.get(&rewrite.topic)?.partitions.get(rewrite.partition.value() as usize)?;
        RewriteJob::plan(writer.view(), rewrite)
    }

    /// Keeps from `rewrite`, carried out or not, which deletions may no longer be found: a function of the log alone.
    pub fn forget_tombstones(&mut self, rewrite: &Rewrite) {
        let state = self.topics.get_mut(&rewrite.topic);
        let writer = state.and_then(|state| state.partitions.get_mut(rewrite.partition.value() as usize));
        if let (Some(writer), Some(plan)) = (writer, &rewrite.compaction) {
            writer.forget_tombstones(plan.tombstones_upto);
        }
    }

    /// Removes new files that are not to be used.
    pub fn discard_rewrite(&self, rewritten: Rewritten) {
        rewritten.discard(&*self.disk);
    }

    /// Replaces segments in the views; readers of older views go on with the old files, which are unlinked after the
    /// next seal's manifest no longer lists them. Bytes of files that went; `None`, and no change, when the segments
    /// are no longer there.
    pub fn install_rewrite(&mut self, rewrite: &Rewrite, rewritten: Rewritten) -> Option<ByteSize> {
        let state = self.topics.get_mut(&rewrite.topic);
        let writer = state.and_then(|state| state.partitions.get_mut(rewrite.partition.value() as usize));
        let Some(writer) = writer.filter(|writer| inputs_of(writer.view(), rewrite).is_some()) else {
            rewritten.discard(&*self.disk);
            return None;
        };
        let gone = writer.replace(rewrite, rewritten);
        self.directory.count_replaced(&gone);
        self.removing.extend(gone.iter().map(Removing::of));
        Some(gone.iter().fold(ByteSize::ZERO, |sum, segment| sum.plus(segment.bytes())))
    }

    /// Bytes of rows that came after the last seal was begun. What a failed one left is not counted, so that this is a
    /// function of the log and of nothing else, and a full disk is not tried again at each entry.
    pub fn unsealed_bytes(&self) -> ByteSize {
        self.tail_bytes
    }

    /// Bytes of rows that a job under way, or one that failed, has taken and that are still in memory.
    pub fn frozen_bytes(&self) -> ByteSize {
        self.frozen_bytes
    }

    /// Whether a job, or what it sealed, is still to be run or installed.
    pub fn is_sealing(&self) -> bool {
        Arc::strong_count(&self.token) > 1
    }

    /// Publishes what was appended, and freezes the tails: they stay readable, and the job makes them durable
    /// with `applied` and `extra`. Cheap: no row is copied or written here.
    ///
    /// What an earlier job failed to seal is taken along.
    ///
    /// # Panics
    /// While [`ShardStore::is_sealing`]: two jobs would write the same files.
    pub fn seal(&mut self, applied: Bytes, extra: Bytes) -> SealJob {
        assert!(!self.is_sealing(), "one seal of a shard at a time");
        self.publish(self.appended);
        for (topic, partition) in std::mem::take(&mut self.unsealed) {
            let state = self.topics.get_mut(&topic);
            if let Some(writer) = state.and_then(|state| state.partitions.get_mut(partition.value() as usize)) {
                self.frozen_bytes = less(self.frozen_bytes, writer.frozen_bytes());
                writer.freeze();
                self.frozen_bytes = self.frozen_bytes.plus(writer.frozen_bytes());
            }
        }
        self.tail_bytes = ByteSize::ZERO;
        let plan = |state: &TopicState| TopicPlan {
            storage: state.storage.clone(),
            schema_hex: state.schema_hex.clone(),
            partitions: state.partitions.iter().map(|writer| writer.view().clone()).collect(),
        };
        SealJob {
            disk: self.disk.clone(),
            dir: self.dir.clone(),
            home: Arc::clone(&self.home),
            shard: self.shard,
            published: self.directory.applied(),
            topics: self.topics.values().map(plan).collect(),
            removing: self.removing.clone(),
            applied,
            extra,
            staged: Vec::new(),
            unstaged: Vec::new(),
            token: self.token.clone(),
        }
    }

    /// Replaces frozen rows in memory by the segments made of them; readers notice nothing.
    pub fn install(&mut self, sealed: Sealed) {
        let removed: HashSet<&str> = sealed.removed.iter().map(String::as_str).collect();
        self.removing.retain(|removing| !removed.contains(removing.file.as_str()));
        for segment in sealed.segments {
            let state = self.topics.get_mut(&segment.topic());
            match state.and_then(|state| state.partitions.get_mut(segment.partition().value() as usize)) {
                Some(writer) => {
                    self.frozen_bytes = less(self.frozen_bytes, writer.frozen_bytes());
                    self.removing.extend(writer.install(segment).as_ref().map(Removing::of));
                    self.frozen_bytes = self.frozen_bytes.plus(writer.frozen_bytes());
                }
                // Dropped while it was being sealed: the manifest lists the file, so the next one removes it.
                None => self.removing.push(Removing::of(&segment)),
            }
        }
    }
}

fn less(from: ByteSize, bytes: ByteSize) -> ByteSize {
    ByteSize::new(from.value().saturating_sub(bytes.value()))
}

#[cfg(test)]
#[path = "shard_store_tests.rs"]
mod tests;
