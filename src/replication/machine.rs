//! The state machine of a shard: applies committed entries to partitions, queries and, on shard 0, the catalog.
//!
//! Owns the writer side of the shard's store and when it is sealed. `apply` is deterministic and total: what
//! a request may not do is a reply ([`Refused`]); anything else that goes wrong is a bug or damage, and stops
//! the node rather than let replicas differ. openraft's state machine task is the only caller. A crash loses
//! the memory; the manifest and the entries after it give it back.

mod decide;
mod staged;

pub(super) use self::decide::Runs;
use self::decide::{Run, parts_of};
use super::codec::DecodeError;
use super::entry::{Change, EntryData, Operations, Part, Write, WriteBatch, Writes};
use super::error::Refused;
use super::guard::GuardError;
use super::log_store::LogStore;
use super::manifest::{Extra, decode_applied, decode_extra, encode_applied, encode_extra};
use super::producers::Novelty;
use super::progress;
use super::raft::{Entry, LogId, Replies, Reply, SnapshotMeta, StoredMembership, TypeConfig, index_of};
use super::read_side::{Failure, ReadSide};
use super::stages::{Stages, StagesError};
use super::types::{Appended, Decider, PartitionPosition};
use super::upkeep;
use crate::env;
use crate::storage::{ManifestState, Rewrite, Rewritten, SealJob, Sealed, ShardStore, StorageError};
use bytes::Bytes;
use futures::{Stream, TryStreamExt};
use millstream_catalog::model::limit::CATALOG_ENTRIES_MAX;
use millstream_catalog::model::{
    ByteSize, EntryIndex, Offset, PartitionId, RowCount, ShardId, StageId, TopicId, TransactionId,
};
use millstream_catalog::{Snapshot, State};
use openraft::storage::{ApplyResponder, EntryResponder, RaftSnapshotBuilder, RaftStateMachine};
use openraft::{EntryPayload, OptionalSend};
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use tokio::sync::oneshot;

/// Bytes of log, in multiples of the seal size, after which a shard is sealed however few rows they hold.
const LOG_BYTES_FACTOR: u64 = 4;

/// The data of a snapshot: the manifest and segment files, which are in place already.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct SnapshotFiles;

/// What stops a shard.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Fatal {
    #[error("entry {index} {error}")]
    Entry { index: EntryIndex, error: DecodeError },
    #[error("manifest {0}")]
    Manifest(DecodeError),
    #[error("cannot encode the manifest: {0}")]
    Encode(String),
    #[error("the job that wrote segments ended before its time")]
    SealDied,
    #[error(transparent)]
    Storage(#[from] StorageError),
}

impl From<StagesError> for Fatal {
    fn from(error: StagesError) -> Self {
        match error {
            StagesError::Manifest(error) => Self::Manifest(error),
            StagesError::Storage(error) => Self::Storage(error),
        }
    }
}

/// The state of one shard.
pub(crate) struct Machine {
    shard: ShardId,
    store: ShardStore,
    catalog: Option<State>,
    log: LogStore,
    read: Arc<ReadSide>,
    failure: Failure,
    seal_bytes: ByteSize,
    applied: Option<LogId>,
    membership: StoredMembership,
    /// Log since the last seal.
    log_bytes: u64,
    log_entries: u64,
    /// The catalog has changes that are not published.
    is_catalog_new: bool,
    /// The entry just applied asks for a seal.
    is_seal_asked: bool,
    sealing: Option<Sealing>,
    snapshot: Option<SnapshotMeta>,
    /// New segments for the entry that is applied next.
    rewritten: Vec<(Rewrite, Rewritten)>,
    stages: Stages,
}

/// A seal job that runs.
struct Sealing {
    meta: SnapshotMeta,
    /// Files of staged rows that it removes.
    unstaged: usize,
    done: oneshot::Receiver<Result<Sealed, StorageError>>,
}

impl GuardError {
    fn at(self, index: EntryIndex) -> Fatal {
        match self {
            Self::Entry(error) => Fatal::Entry { index, error },
            Self::Storage(error) => Fatal::Storage(error),
        }
    }
}

impl Machine {
    /// The state in `store` and its manifest.
    ///
    /// # Errors
    /// [`Fatal::Manifest`] when the manifest cannot be read.
    pub(crate) fn open(
        (store, manifest): (ShardStore, Option<ManifestState>),
        log: LogStore,
        read: Arc<ReadSide>,
        failure: Failure,
        (shard, seal_bytes): (ShardId, ByteSize),
    ) -> Result<Self, Fatal> {
        let mut machine = Self {
            shard,
            catalog: (shard == ShardId::CATALOG).then(State::default),
            store,
            log,
            read,
            failure,
            seal_bytes,
            applied: None,
            membership: StoredMembership::default(),
            log_bytes: 0,
            log_entries: 0,
            is_catalog_new: false,
            is_seal_asked: false,
            sealing: None,
            snapshot: None,
            rewritten: Vec::new(),
            stages: Stages::default(),
        };
        if let Some(manifest) = manifest {
            machine.restore(manifest)?;
        } else {
            machine.stages = Stages::restore(&[], &machine.store)?;
        }
        Ok(machine)
    }

    fn restore(&mut self, manifest: ManifestState) -> Result<(), Fatal> {
        let meta = decode_applied(manifest.applied).map_err(Fatal::Manifest)?;
        let Extra { catalog, queries, producers, stages, groups } =
            decode_extra(manifest.extra).map_err(Fatal::Manifest)?;
        if catalog.is_some() != self.catalog.is_some() {
            return Err(Fatal::Manifest(DecodeError::Damaged("it is of another shard".to_owned())));
        }
        self.stages = Stages::restore(&stages, &self.store)?;
        self.applied = meta.last_log_id;
        self.membership = meta.last_membership.clone();
        if let Some(index) = meta.last_log_id.as_ref().map(index_of) {
            self.read.set_sealed(index);
        }
        self.snapshot = Some(meta);
        self.catalog = catalog;
        self.publish_catalog();
        *self.read.queries.write() = queries;
        *self.read.producers.write() = producers;
        *self.read.groups.write() = groups;
        let shapes = self.store.topics().map(|topic| (topic.topic, topic.clone()));
        *self.read.topics.write() = shapes.collect();
        Ok(())
    }

    /// Makes what was applied so far visible.
    fn publish(&mut self) {
        if self.is_catalog_new {
            self.publish_catalog();
        }
        if let Some(applied) = &self.applied {
            let index = index_of(applied);
            self.store.publish(index);
            self.log.applied(index);
        }
        self.count_unsealed();
    }

    fn count_unsealed(&self) {
        let bytes = self.store.unsealed_bytes().plus(self.store.frozen_bytes());
        self.read.unsealed_bytes.store(bytes.value(), Ordering::Relaxed);
    }

    /// Once for all entries that are applied together: each view is a whole one.
    fn publish_catalog(&mut self) {
        self.is_catalog_new = false;
        if let Some(state) = &self.catalog {
            self.read.catalog.store(Arc::new(Snapshot::new(state.clone())));
            self.read.catalog_version.send_replace(state.version);
        }
    }

    fn apply_entry(&mut self, entry: &Entry) -> Result<Replies, Fatal> {
        let index = index_of(&entry.log_id);
        let replies = match &entry.payload {
            EntryPayload::Blank => Replies::default(),
            EntryPayload::Membership(membership) => {
                self.membership = StoredMembership::new(Some(entry.log_id), membership.clone());
                Replies::default()
            }
            EntryPayload::Normal(data) => self.apply_data(index, data)?,
        };
        self.applied = Some(entry.log_id);
        self.log_entries += 1;
        Ok(replies)
    }

    /// Has the files written that an entry takes into use.
    async fn prepare(&mut self, entry: &Entry) -> Result<(), Fatal> {
        let EntryPayload::Normal(data) = &entry.payload else { return Ok(()) };
        if !data.is_rewrite() {
            return Ok(());
        }
        let index = index_of(&entry.log_id);
        let operations = data.operations().map_err(|error| Fatal::Entry { index, error })?;
        if let Operations::Change(Change::Rewrite(rewrites)) = &*operations {
            // The leader decided on segments that a seal makes which may still run here.
            if rewrites.iter().any(|rewrite| self.store.rewrite_job(rewrite).is_none())
                && let Some(sealing) = self.sealing.take()
            {
                let result = sealing.done.await.map_err(|_| Fatal::SealDied)?;
                self.install((sealing.meta, sealing.unstaged), result)?;
            }
            self.rewritten = upkeep::rewritten(&self.store, &self.read, rewrites).await?;
        }
        Ok(())
    }

    fn apply_data(&mut self, index: EntryIndex, data: &EntryData) -> Result<Replies, Fatal> {
        self.log_bytes += data.len() as u64;
        let operations = data.operations().map_err(|error| Fatal::Entry { index, error })?;
        match &*operations {
            Operations::Writes(writes) => self.apply_writes(index, writes),
            Operations::Change(change) => Ok(Replies(vec![self.apply_change(index, change)?])),
        }
    }

    fn apply_change(&mut self, index: EntryIndex, change: &Change) -> Result<Result<Reply, Refused>, Fatal> {
        match change {
            Change::CreateTopic(topic) => {
                // Repeated when a crash came between catalog and shard.
                if self.store.topic(topic.topic).is_none() {
                    self.read.topics.write().insert(topic.topic, topic.clone());
                    self.store.create_topic(topic.clone());
                }
            }
            Change::AlterTopic(topic) => {
                self.store.alter_topic(topic.clone())?;
                let altered = self.store.topic(topic.topic).map(|topic| (topic.topic, topic.clone()));
                self.read.topics.write().extend(altered);
            }
            Change::DropTopic(topic) => {
                self.read.topics.write().remove(topic);
                self.read.producers.write().drop_topic(*topic);
                self.read.groups.write().drop_topic(*topic);
                if self.store.topic(*topic).is_some() {
                    self.store.drop_topic(*topic);
                }
            }
            Change::CreateQuery(query, positions) => {
                progress::create(&mut self.read.queries.write(), *query, positions);
            }
            Change::DropQuery(query) => {
                self.read.queries.write().remove(query);
            }
            Change::Catalog(command) => {
                let state = self.catalog.get_or_insert_default();
                let applied = millstream_catalog::apply(state, (**command).clone());
                self.is_catalog_new |= applied.is_ok();
                return Ok(applied.map(Reply::Catalog).map_err(Refused::Catalog));
            }
            Change::Seal => self.is_seal_asked = true,
            Change::Rewrite(rewrites) => {
                upkeep::install(&mut self.store, &self.read, rewrites, std::mem::take(&mut self.rewritten));
            }
            Change::DropGroups(groups, unless_since) => {
                if let Some(held) = groups.iter().find(|group| self.stages.holds_group(group)) {
                    return Ok(Err(Refused::GroupHeld(held.clone())));
                }
                self.read.groups.write().drop_groups(groups, *unless_since);
            }
            Change::EndQuery(query) => progress::end(&mut self.read.queries.write(), *query),
            Change::MoveStarts(positions) => self.move_starts(positions)?,
            Change::Truncate(topics) => {
                let queries = self.read.queries.read();
                let needed = topics.iter().find_map(|id| Some((progress::reader_again(&queries, *id)?, *id)));
                drop(queries);
                if let Some((query, topic)) = needed {
                    return Ok(Err(Refused::EventsNeeded { query, topic }));
                }
                let end = |topic: &TopicId| {
                    let partitions = self.store.topic(*topic).map_or(0, |topic| topic.partitions);
                    let topic = *topic;
                    (0..partitions).map(move |id| (topic, PartitionId::new(id), Offset::new(u64::MAX)))
                };
                for (topic, partition, to) in topics.iter().flat_map(end).collect::<Vec<_>>() {
                    self.store.move_start(topic, partition, to)?;
                }
            }
        }
        Ok(Ok(Reply::Done(index)))
    }

    /// Moves log starts as far as queries let them; those of partitions that were dropped meanwhile are no more.
    fn move_starts(&mut self, positions: &[PartitionPosition]) -> Result<(), Fatal> {
        for (topic, partition, to) in positions {
            if self.store.topic(*topic).is_none_or(|topic| partition.value() >= topic.partitions) {
                continue;
            }
            let hold = progress::hold(&self.read.queries.read(), *topic, *partition);
            self.store.move_start(*topic, *partition, hold.map_or(*to, |first| first.min(*to)))?;
        }
        Ok(())
    }

    /// Decides each write in order, then stores the rows of the accepted ones, whole batches where it can.
    fn apply_writes(&mut self, index: EntryIndex, writes: &Writes) -> Result<Replies, Fatal> {
        let runs = Runs::new(writes).map_err(|error| Fatal::Entry { index, error })?;
        let (verdicts, taken) = self.decide(index, writes, &runs)?;
        let stages = self.apply_stages(index, (writes, &runs), &verdicts)?;
        let mut bases = Vec::with_capacity(writes.batches.len());
        for (number, batch) in writes.batches.iter().enumerate() {
            let is_new = |run: &Run| matches!(verdicts.get(run.write), Some(Ok(Novelty::New)));
            let accepted: Vec<bool> = runs.of_batch(number).map(is_new).collect();
            bases.push(self.store_batch(index, batch, runs.of_batch(number), &accepted)?);
        }
        let mut cursors = vec![0; bases.len()];
        let mut taken = taken.into_iter();
        let replies = writes.writes.iter().zip(verdicts).zip(stages).map(|((write, verdict), stage)| {
            // Refused writes take their offsets too, to keep the cursors in step.
            let offsets = parts_of(write).iter().map(|part| next_offset(&bases, &mut cursors, *part)).collect();
            verdict.map(|novelty| match (write, novelty) {
                (Write::Checkpoint(_), _) => Reply::Done(index),
                (Write::Take(_), _) => Reply::Taken(taken.next().unwrap_or_default()),
                (_, Novelty::New) => Reply::Appended(Appended { index, offsets }),
                (_, Novelty::Staged) => stage.map_or(Reply::Done(index), Reply::Staged),
                (_, Novelty::Repeated) => Reply::Appended(Appended { index, offsets: Vec::new() }),
            })
        });
        Ok(Replies(replies.collect()))
    }

    /// Stores the accepted runs of `batch`; the offset of each run's first row, refused ones at zero.
    fn store_batch<'a>(
        &mut self,
        index: EntryIndex,
        batch: &WriteBatch,
        runs: impl Iterator<Item = &'a Run>,
        accepted: &[bool],
    ) -> Result<Vec<Offset>, Fatal> {
        let Some(topic) = self.store.topic(batch.topic) else { return Ok(vec![Offset::ZERO; accepted.len()]) };
        if !accepted.contains(&true) {
            return Ok(vec![Offset::ZERO; accepted.len()]);
        }
        let rows = batch.data.batch(&topic.schema).map_err(|error| Fatal::Entry { index, error })?;
        if RowCount::of(rows.num_rows()) != batch.rows {
            let error = DecodeError::Damaged("a batch has another number of rows than it says".to_owned());
            return Err(Fatal::Entry { index, error });
        }
        if accepted.iter().all(|accepted| *accepted) {
            let base = self.store.append(index, batch.topic, batch.partition, rows)?;
            return Ok(runs.map(|run| base.plus(run.start)).collect());
        }
        let mut offsets = Vec::with_capacity(accepted.len());
        for (run, accepted) in runs.zip(accepted) {
            offsets.push(if *accepted {
                let rows = rows.slice(run.start.as_usize(), run.rows.as_usize());
                self.store.append(index, batch.topic, batch.partition, rows)?
            } else {
                Offset::ZERO
            });
        }
        Ok(offsets)
    }

    /// Whether to seal after the entry just applied: a function of the log alone, so that segments of all
    /// replicas have the same bounds.
    fn must_seal(&self) -> bool {
        let log_bytes_max = self.seal_bytes.value().saturating_mul(LOG_BYTES_FACTOR);
        let is_catalog = self.catalog.is_some();
        self.is_seal_asked
            || self.store.unsealed_bytes() >= self.seal_bytes
            || self.log_bytes >= log_bytes_max
            || (is_catalog && self.log_entries >= CATALOG_ENTRIES_MAX)
    }

    /// Freezes the tails and writes them on a blocking thread. Waits while an earlier job still runs, so at
    /// most one frozen generation is in memory.
    async fn seal(&mut self) -> Result<(), Fatal> {
        if let Some(sealing) = self.sealing.take() {
            let result = sealing.done.await.map_err(|_| Fatal::SealDied)?;
            self.install((sealing.meta, sealing.unstaged), result)?;
        }
        let Some(applied) = self.applied else { return Ok(()) };
        self.move_out(true).await?;
        let meta = SnapshotMeta { last_log_id: Some(applied), last_membership: self.membership.clone() };
        let place = encode_applied(&applied, &self.membership).map_err(Fatal::Encode)?;
        let Some((staged, unstaged)) = self.stages.files() else {
            tracing::warn!(shard = self.shard.value(), "no space left to stage rows, sealing later");
            return Ok(());
        };
        let extra = self.encode_extra();
        let ended = unstaged.len();
        let job = self.store.seal(place, extra).with_staged(staged, unstaged);
        (self.log_bytes, self.log_entries, self.is_seal_asked) = (0, 0, false);
        self.read.is_sealing.store(true, Ordering::Release);
        self.sealing =
            Some(Sealing { meta, unstaged: ended, done: run_seal(job, self.log.clone(), Arc::clone(&self.read)) });
        Ok(())
    }

    /// Takes the segments of a job into use. A full disk is no failure: the rows stay in memory and in the log,
    /// and go with the next seal.
    fn install(
        &mut self,
        (meta, unstaged): (SnapshotMeta, usize),
        result: Result<Sealed, StorageError>,
    ) -> Result<(), Fatal> {
        self.read.is_disk_full.store(matches!(result, Err(StorageError::DiskFull)), Ordering::Relaxed);
        match result {
            Ok(sealed) => {
                self.store.install(sealed);
                self.count_unsealed();
                if let Some(upto) = meta.last_log_id.as_ref().map(index_of) {
                    self.stages.listed(upto, unstaged);
                }
            }
            Err(StorageError::DiskFull) => {
                tracing::warn!(shard = self.shard.value(), "no space left to write segments, trying again later");
                self.read.is_sealing.store(false, Ordering::Release);
                return Ok(());
            }
            Err(error) => return Err(error.into()),
        }
        if let Some(index) = meta.last_log_id.as_ref().map(index_of) {
            self.read.set_sealed(index);
        }
        self.snapshot = Some(meta);
        self.read.is_sealing.store(false, Ordering::Release);
        Ok(())
    }

    /// Transactions that neither committed nor were given up, and the decisions about transactions kept here.
    pub(crate) fn stages(&self) -> (Vec<(StageId, Option<Decider>)>, Vec<TransactionId>) {
        (self.stages.ids(), self.stages.decisions())
    }

    /// Installs a finished seal job, if there is one. A failed job stops the shard.
    pub(crate) fn install_finished(&mut self) {
        let Some(mut sealing) = self.sealing.take() else { return };
        let installed = match sealing.done.try_recv() {
            Ok(result) => self.install((sealing.meta, sealing.unstaged), result),
            Err(oneshot::error::TryRecvError::Closed) => Err(Fatal::SealDied),
            Err(oneshot::error::TryRecvError::Empty) => {
                self.sealing = Some(sealing);
                return;
            }
        };
        if let Err(fatal) = installed {
            self.stop(&fatal);
        }
    }

    fn encode_extra(&self) -> Bytes {
        let read = &self.read;
        let (queries, producers, groups) = (read.queries.read(), read.producers.read(), read.groups.read());
        encode_extra(self.catalog.as_ref(), &queries, &producers, &self.stages.encode(), &groups)
    }

    fn stop(&self, fatal: &Fatal) -> io::Error {
        let text = format!("shard {}: {fatal}", self.shard);
        match fatal {
            Fatal::Storage(StorageError::Closed) => {}
            // Nothing works without the catalog.
            Fatal::Storage(damage) if damage.is_damage() && self.catalog.is_none() => {
                self.failure.give_up(self.shard, damage);
            }
            _ => self.failure.stop(&text),
        }
        io::Error::other(text)
    }
}

/// The offset of the next run of the part's batch.
fn next_offset(bases: &[Vec<Offset>], cursors: &mut [usize], part: Part) -> Offset {
    let Some(cursor) = cursors.get_mut(part.batch) else { return Offset::ZERO };
    let offset = bases.get(part.batch).and_then(|offsets| offsets.get(*cursor));
    *cursor += 1;
    offset.copied().unwrap_or_default()
}

/// Runs a job on a blocking thread, once the log has on stable storage what the job's manifest covers.
fn run_seal(job: SealJob, log: LogStore, read: Arc<ReadSide>) -> oneshot::Receiver<Result<Sealed, StorageError>> {
    let (done, receiver) = oneshot::channel();
    let finished = Arc::clone(&read);
    let task = env::spawn_blocking(move || {
        // A job that panics drops `done` unanswered. The shard is gone when nobody takes the result.
        if let Ok(result) = catch_unwind(AssertUnwindSafe(|| log.sync().and_then(|()| job.run()))) {
            if matches!(result, Err(StorageError::DiskFull)) {
                log.free_spares();
            }
            let _ = done.send(result);
        } else {
            drop(done);
        }
        finished.seals.send_modify(|seals| *seals += 1);
    });
    *read.seal_job.lock() = Some(task);
    receiver
}

/// Those who wait for entries that are applied but not yet visible.
#[derive(Default)]
struct Answers(Vec<(ApplyResponder<TypeConfig>, Replies)>);

impl Answers {
    fn send(&mut self) {
        for (responder, replies) in self.0.drain(..) {
            responder.send(replies);
        }
    }
}

impl RaftStateMachine<TypeConfig> for Machine {
    type SnapshotData = SnapshotFiles;
    type SnapshotBuilder = ManifestSnapshot;

    async fn applied_state(&mut self) -> Result<(Option<LogId>, StoredMembership), io::Error> {
        Ok((self.applied, self.membership.clone()))
    }

    async fn apply<Strm>(&mut self, mut entries: Strm) -> Result<(), io::Error>
    where
        Strm: Stream<Item = Result<EntryResponder<TypeConfig>, io::Error>> + Unpin + OptionalSend,
    {
        let mut answers = Answers::default();
        while let Some((entry, responder)) = entries.try_next().await? {
            self.prepare(&entry).await.map_err(|fatal| self.stop(&fatal))?;
            let replies = self.apply_entry(&entry).map_err(|fatal| self.stop(&fatal))?;
            self.move_out(false).await.map_err(|fatal| self.stop(&fatal))?;
            answers.0.extend(responder.map(|responder| (responder, replies)));
            if self.must_seal() {
                self.publish();
                answers.send();
                self.seal().await.map_err(|fatal| self.stop(&fatal))?;
            }
        }
        self.publish();
        answers.send();
        Ok(())
    }

    async fn try_create_snapshot_builder(&mut self, force: bool) -> Option<ManifestSnapshot> {
        (force || self.snapshot.is_some()).then(|| ManifestSnapshot { meta: self.snapshot.clone() })
    }

    async fn get_snapshot_builder(&mut self) -> ManifestSnapshot {
        ManifestSnapshot { meta: self.snapshot.clone() }
    }

    async fn install_snapshot(&mut self, _meta: &SnapshotMeta, _snapshot: SnapshotFiles) -> Result<(), io::Error> {
        let text = format!("shard {}: a snapshot came, but this node has no peers", self.shard);
        Err(io::Error::new(io::ErrorKind::Unsupported, text))
    }

    async fn get_current_snapshot(&mut self) -> Result<Option<ManifestSnapshotOf>, io::Error> {
        Ok(self.snapshot.clone().map(|meta| ManifestSnapshotOf { meta, snapshot: SnapshotFiles }))
    }
}

type ManifestSnapshotOf = openraft::alias::SnapshotOf<TypeConfig, SnapshotFiles>;

/// Gives openraft the last durable manifest as its snapshot: nothing is left to build.
pub(crate) struct ManifestSnapshot {
    meta: Option<SnapshotMeta>,
}

impl RaftSnapshotBuilder<TypeConfig> for ManifestSnapshot {
    type SnapshotData = SnapshotFiles;

    async fn build_snapshot(&mut self) -> Result<ManifestSnapshotOf, io::Error> {
        let meta = self.meta.clone().ok_or_else(|| io::Error::other("the log is purged but there is no manifest"))?;
        Ok(ManifestSnapshotOf { meta, snapshot: SnapshotFiles })
    }
}
