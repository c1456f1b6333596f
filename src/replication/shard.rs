//! One shard as others see it: its write path, its read side, its Raft group.
//!
//! Owns starting a shard and checking requests before they are queued. [`Shard`] holds partitions and queries,
//! [`CatalogShard`] the catalog; both are the same machine underneath. The engine calls them. A crash loses
//! what was not acknowledged.

use super::appender::Appender;
use super::entry::Change;
use super::error::ReplicationError;
use super::flow::Request;
use super::groups::Groups;
use super::log_store::LogStore;
use super::machine::{Fatal, Machine};
use super::manifest::decode_applied;
use super::network::NoPeers;
use super::raft::{LOG_ENTRIES_KEPT, Raft, Reply, index_of};
use super::read_side::{Failure, ReadSide};
use super::runtime::as_group;
use super::staging;
use super::types::{Append, Appended, Decider, PartitionPosition, PartitionWrite, QueryProgress, ShardStatus, Step};
use super::write_room::WriteRoom;
use super::{progress, upkeep};
use crate::env;
use crate::storage::batch::{batch_bytes, with_schema};
use crate::storage::wal::{ShardRecovered, Wal};
use crate::storage::{Disk, Partitions, Rewrite, RewriteJob, ShardStore, StorageError, TopicStorage};
use futures::TryStreamExt;
use futures::future::join_all;
use millstream_catalog::model::limit::STATEMENT_ROWS_BYTES_MAX;
use millstream_catalog::model::{
    ByteSize, EntryIndex, NodeId, Offset, PartitionId, ProducerId, QueryId, RowCount, Sequence, ShardId, StageId, Term,
    TopicId, TransactionId,
};
use millstream_catalog::{Command, Snapshot};
use openraft::async_runtime::WatchReceiver;
use openraft::storage::{RaftLogReader, RaftLogStorage, RaftStateMachine};
use openraft::{BasicNode, Config, LogIdOptionExt, ServerState};
use parking_lot::RwLock;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::sync::{Notify, watch};
use tokio::task::JoinHandle;

/// Bytes a change of definitions is counted as in the queue.
pub(super) const CHANGE_BYTES: usize = 4 << 10;

/// How long a start waits for transactions to be given up.
const START_ABORTS_WAIT: Duration = Duration::from_secs(5);

/// Open transactions, and what decides about those that are prepared; and decisions.
pub(super) type Transactions = (Vec<(StageId, Option<Decider>)>, Vec<TransactionId>);

/// What all shards of a node share.
#[derive(Debug, Clone)]
pub(crate) struct Shared {
    pub(crate) disk: Arc<dyn Disk>,
    pub(crate) wal: Wal,
    pub(crate) node: NodeId,
    pub(crate) raft_config: Arc<Config>,
    pub(crate) seal_bytes: ByteSize,
    pub(crate) room: WriteRoom,
    pub(crate) failure: Failure,
    /// Woken when entries of a shard went from the log, so that another may be what keeps its files.
    pub(crate) purged: Arc<Notify>,
}

/// A running shard.
pub(crate) struct Core {
    id: ShardId,
    node: NodeId,
    raft: Raft,
    appender: Arc<Appender>,
    log: LogStore,
    read: Arc<ReadSide>,
    partitions: Arc<Partitions>,
    failure: Failure,
    disk: Arc<dyn Disk>,
    dir: PathBuf,
    /// The compactor, and the one that waits for space.
    tasks: [JoinHandle<()>; 2],
}

/// Refuses a manifest that is gone, or older than what the log has let go: rows between the two would be missing.
fn check_manifest(shared: &Shared, dir: &Path, id: ShardId, log: &LogStore) -> Result<(), ReplicationError> {
    let Some(purged) = log.purged() else { return Ok(()) };
    let file = format!("shards/{id}/manifest");
    let Some(sealed) = ShardStore::sealed_at(&*shared.disk, dir)? else {
        return Err(StorageError::Missing { file }.into());
    };
    let sealed = decode_applied(sealed).map_err(|e| ReplicationError::Start { shard: id, reason: e.to_string() })?;
    if sealed.last_log_id.as_ref().is_none_or(|sealed| index_of(sealed) < purged) {
        let what = "it is older than the log, which no longer has the rows between";
        return Err(StorageError::Corrupt { file, position: 0, what }.into());
    }
    Ok(())
}

impl Core {
    /// Opens the shard in `dir`, makes this node lead it, and applies its log.
    pub(crate) async fn start(
        shared: &Shared,
        dir: &Path,
        id: ShardId,
        recovered: ShardRecovered,
    ) -> Result<Arc<Self>, ReplicationError> {
        let fail = |reason: String| ReplicationError::Start { shard: id, reason };
        if let Some(damage) = recovered.corrupt {
            return Err(damage.into());
        }
        let failure = shared.failure.of_shard();
        let file_before = recovered.file_before.clone();
        let log = LogStore::open(shared.wal.clone(), id, recovered, failure.clone(), Arc::clone(&shared.purged));
        let log = log.map_err(|e| fail(e.to_string()))?;
        if log.has_lost_all() {
            return Err(match file_before {
                Some(file) => StorageError::Corrupt { file, position: 0, what: "the file is missing" },
                None => {
                    let what = "a shard has a vote there and none of its entries";
                    StorageError::Corrupt { file: "wal".to_owned(), position: 0, what }
                }
            }
            .into());
        }
        // Before the store removes or sets aside what no manifest names.
        check_manifest(shared, dir, id, &log)?;
        let opened = ShardStore::open(Arc::clone(&shared.disk), dir, id)?;
        let partitions = opened.0.partitions();
        let read = ReadSide::new();
        let machine = Machine::open(opened, log.clone(), Arc::clone(&read), failure.clone(), (id, shared.seal_bytes));
        let mut machine = machine.map_err(|fatal| match fatal {
            Fatal::Storage(error) => error.into(),
            fatal => fail(fatal.to_string()),
        })?;
        // What an entry met while the log was applied is damage of this shard alone.
        let ended = |reason: String| failure.damage().map_or_else(|| fail(reason), |damage| damage.clone().into());
        let applied = apply_committed(&mut machine, &log).await;
        applied.map_err(|e| ended(failure.reason().map_or_else(|| e.to_string(), |reason| reason.to_string())))?;
        let node = shared.node;
        let config = Arc::clone(&shared.raft_config);
        let raft = as_group(&failure, Raft::new(node.value(), config, NoPeers, log.clone(), machine)).await;
        let raft = raft.map_err(|e| ended(e.to_string()))?;
        lead(&raft, node, &shared.failure).await.map_err(ended)?;
        let appender = Appender::start(id, raft.clone(), log.clone(), failure.clone(), shared.room.clone());
        let retry = env::spawn("log-retry", log.clone().retry_stalled());
        let compactor = env::spawn("compactor", compact(raft.clone(), Arc::clone(&read)));
        let (disk, dir, tasks) = (Arc::clone(&shared.disk), dir.to_owned(), [compactor, retry]);
        let core = Arc::new(Self { id, node, raft, appender, log, read, partitions, failure, disk, dir, tasks });
        core.abort_stages().await;
        Ok(core)
    }

    pub(super) async fn submit(&self, request: Request, bytes: usize) -> Result<Reply, ReplicationError> {
        self.hand_over(request, bytes).await?.await
    }

    /// Queues a request; the future gives its answer, and dropping it changes nothing.
    async fn hand_over(
        &self,
        request: Request,
        bytes: usize,
    ) -> Result<impl Future<Output = Result<Reply, ReplicationError>> + Send, ReplicationError> {
        let check = if request.frees_space() { LogStore::check_room_to_free } else { LogStore::check_room };
        self.check_writable(check(&self.log, bytes))?;
        let frees_files = request.frees_files();
        let answer = self.appender.queue(request, bytes).await?;
        Ok(async move {
            let reply = self.appender.answer(answer).await?;
            if frees_files && (self.log.is_disk_full() || self.read.is_disk_full.load(Ordering::Relaxed)) {
                self.seal_for_space();
            }
            Ok(reply)
        })
    }

    /// Has a manifest written that no longer lists files which are not needed: only then they go.
    fn seal_for_space(&self) {
        if self.read.is_seal_asked.swap(true, Ordering::AcqRel) {
            return;
        }
        let (appender, read, shard) = (Arc::clone(&self.appender), Arc::clone(&self.read), self.id.value());
        // Not awaited: who gave the files up need not wait until they are gone.
        let _task = env::spawn("seal", async move {
            let queued = appender.queue(Request::Change(Change::Seal), CHANGE_BYTES).await;
            let sealed = match queued {
                Ok(answer) => appender.answer(answer).await.map(drop),
                Err(error) => Err(error),
            };
            read.is_seal_asked.store(false, Ordering::Release);
            if let Err(error) = sealed {
                tracing::debug!(shard, %error, "files that are not needed wait for the next seal");
            }
        });
    }

    /// Whether the node runs, and has the room in its log that was asked for.
    fn check_writable(&self, room: Result<(), StorageError>) -> Result<(), ReplicationError> {
        if self.is_ended() {
            return Err(self.appender.stopped());
        }
        match room {
            Ok(()) => Ok(()),
            Err(StorageError::DiskFull) => Err(ReplicationError::DiskFull),
            Err(_) => Err(self.appender.stopped()),
        }
    }

    fn is_ended(&self) -> bool {
        self.failure.reason().is_some() || self.failure.damage().is_some() || self.appender.is_closed()
    }

    pub(super) async fn change(&self, change: Change) -> Result<Reply, ReplicationError> {
        self.submit(Request::Change(change), CHANGE_BYTES).await
    }

    /// Checks rows against what the read side knows, and gives them exactly the stored schema, so that apply
    /// cannot refuse them; with their bytes.
    pub(super) fn check(
        &self,
        mut parts: Vec<PartitionWrite>,
    ) -> Result<(Vec<PartitionWrite>, usize), ReplicationError> {
        let topics = self.read.topics.read();
        let mut bytes = ByteSize::ZERO;
        for part in &mut parts {
            let topic = part.topic;
            let shape = topics.get(&topic).ok_or(ReplicationError::NoTopic(topic))?;
            if part.partition.value() >= shape.partitions {
                return Err(ReplicationError::NoPartition(topic, part.partition));
            }
            if part.batch.num_columns() > shape.schema.fields().len() {
                return Err(ReplicationError::TopicBehind(topic));
            }
            part.batch = with_schema(part.batch.clone(), &shape.schema)
                .map_err(|error| ReplicationError::SchemaMismatch { topic, reason: error.to_string() })?;
            bytes = bytes.plus(batch_bytes(&part.batch));
        }
        if bytes > STATEMENT_ROWS_BYTES_MAX {
            return Err(ReplicationError::TooLarge { bytes, limit: STATEMENT_ROWS_BYTES_MAX });
        }
        Ok((parts, bytes.as_usize()))
    }

    pub(crate) fn id(&self) -> ShardId {
        self.id
    }

    pub(super) fn disk(&self) -> Arc<dyn Disk> {
        Arc::clone(&self.disk)
    }

    /// The shard's directory.
    pub(super) fn dir(&self) -> &Path {
        &self.dir
    }

    #[cfg(test)]
    pub(crate) fn failure(&self) -> &Failure {
        &self.failure
    }

    /// Committed offsets of groups.
    pub(super) fn groups(&self) -> &RwLock<Groups> {
        &self.read.groups
    }

    /// Why nothing more is answered.
    pub(super) fn stopped(&self) -> ReplicationError {
        self.appender.stopped()
    }

    /// Gives up the transactions that a crash left, but for those that other shards know more about. On a full disk that
    /// goes on after the start.
    async fn abort_stages(self: &Arc<Self>) {
        let abort = |stage| {
            let core = Arc::clone(self);
            env::spawn("abort", async move { staging::abort(&core, stage).await })
        };
        let (stages, _) = self.transactions().await.unwrap_or_default();
        let open = stages.into_iter().filter(|(_, decider)| decider.is_none());
        let aborted = join_all(open.map(|(stage, _)| abort(stage)));
        let _ = tokio::time::timeout(START_ABORTS_WAIT, aborted).await;
    }

    /// Transactions that neither committed nor were given up, and the decisions about transactions kept here; `None` when
    /// the shard ended.
    pub(super) async fn transactions(&self) -> Option<Transactions> {
        let stages = self.raft.with_state_machine(|machine| Box::pin(std::future::ready(machine.stages())));
        stages.await.ok()
    }

    /// Whether a small entry by which space comes back finds room; also when it finds something else that stops it.
    pub(super) fn has_room_to_free(&self) -> bool {
        self.is_ended() || !matches!(self.log.check_room_to_free(CHANGE_BYTES), Err(StorageError::DiskFull))
    }

    /// The current term, another in each life of the node.
    pub(super) fn term(&self) -> Term {
        Term::new(self.raft.metrics().borrow_watched().current_term)
    }

    /// The last entry that readers see.
    pub(super) fn applied(&self) -> EntryIndex {
        self.partitions.applied()
    }

    /// The number of a producer's next row in `topic`; `None` for one that is not known.
    pub(super) fn sequence_next(&self, topic: TopicId, producer: &ProducerId) -> Option<Sequence> {
        self.read.producers.read().next(topic, producer)
    }

    /// Writes segments and the manifest now, unless nothing came since the last time.
    pub(crate) async fn seal(&self) -> Result<(), ReplicationError> {
        let applied = self.partitions.applied();
        if self.read.is_sealing.load(Ordering::Acquire) || self.read.sealed().is_some_and(|sealed| sealed >= applied) {
            return Ok(());
        }
        self.change(Change::Seal).await.map(|_| ())
    }

    pub(crate) async fn shutdown(&self) {
        self.appender.close();
        if let Err(error) = self.raft.shutdown().await {
            tracing::warn!(shard = self.id.value(), %error, "Raft core did not end in order");
        }
        self.tasks.iter().for_each(JoinHandle::abort);
        let job = self.read.seal_job.lock().take();
        if let Some(job) = job {
            // Its outcome does not matter: with or without the new manifest, the log has the rest.
            let _ = job.await;
        }
    }

    fn status(&self) -> ShardStatus {
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow_watched();
        let (requests, bytes) = self.appender.depth();
        ShardStatus {
            shard: self.id,
            is_leader: metrics.state == ServerState::Leader && metrics.current_leader == Some(self.node.value()),
            term: Term::new(metrics.current_term),
            log_last: metrics.last_log_index.map(EntryIndex::new),
            applied: metrics.last_applied.as_ref().map(index_of),
            sealed: self.read.sealed(),
            purged: self.log.purged(),
            waiting_requests: RowCount::of(requests),
            waiting_bytes: ByteSize::of(bytes),
            unsealed_bytes: ByteSize::new(self.read.unsealed_bytes.load(Ordering::Relaxed)),
            is_sealing: self.read.is_sealing.load(Ordering::Acquire),
            bytes_rewritten: ByteSize::new(self.read.bytes_rewritten.load(Ordering::Relaxed)),
        }
    }
}

/// Founds or joins the group of one, wins the election, and waits until the whole log is applied.
async fn lead(raft: &Raft, node: NodeId, failure: &Failure) -> Result<(), String> {
    if raft.is_initialized().await.map_err(|e| e.to_string())? {
        // At once: nobody else can lead, so there is no timer to wait for.
        raft.trigger().elect(false).await.map_err(|e| e.to_string())?;
    } else {
        let members = BTreeMap::from([(node.value(), BasicNode::default())]);
        raft.initialize(members).await.map_err(|e| e.to_string())?;
    }
    let is_ready = |metrics: &openraft::RaftMetrics<super::raft::TypeConfig>| {
        metrics.state == ServerState::Leader
            && metrics.last_applied.is_some()
            && metrics.last_applied.as_ref().map(|id| id.index()) >= metrics.last_log_index
    };
    let wait = raft.wait(None);
    let mut failed = failure.subscribe();
    let waited = tokio::select! {
        waited = wait.metrics(is_ready, "leads and has applied its log") => waited,
        _ = failed.wait_for(Option::is_some) => return Err(failure.reason().unwrap_or_default().to_string()),
    };
    waited.map(|_| ()).map_err(|e| failure.reason().map_or_else(|| e.to_string(), |reason| reason.to_string()))
}

/// Applies what is known to be committed, in pieces of bounded bytes: openraft would take 64 entries at once, of whatever
/// size.
async fn apply_committed(machine: &mut Machine, log: &LogStore) -> Result<(), std::io::Error> {
    let mut log = log.clone();
    let (applied, _) = machine.applied_state().await?;
    let (start, end) = (applied.next_index(), log.read_committed().await?.next_index());
    // Of a log that begins later openraft says so.
    if start >= end || log.get_log_state().await?.last_purged_log_id.next_index() > start {
        return Ok(());
    }
    let entries = log.entries_stream(start..end).await.map_ok(|entry| (entry, None));
    machine.apply(Box::pin(entries)).await
}

/// After each seal: takes the segments into use, and lets the log go that they replace.
async fn compact(raft: Raft, read: Arc<ReadSide>) {
    let mut seals = read.seals.subscribe();
    // A crash may have come between a manifest and the purge of the log behind it.
    if let Some(upto) = read.sealed().and_then(|sealed| sealed.value().checked_sub(LOG_ENTRIES_KEPT))
        && raft.trigger().purge_log(upto).await.is_err()
    {
        return;
    }
    loop {
        let installed = raft.with_state_machine(|machine| {
            machine.install_finished();
            Box::pin(std::future::ready(()))
        });
        if installed.await.is_err() || raft.trigger().snapshot().await.is_err() {
            return;
        }
        if seals.changed().await.is_err() {
            return;
        }
    }
}

/// The shard of the catalog.
pub struct CatalogShard {
    core: Arc<Core>,
}

impl CatalogShard {
    pub(crate) fn new(core: Arc<Core>) -> Self {
        Self { core }
    }
    /// The catalog as of the last applied command.
    pub fn snapshot(&self) -> Snapshot {
        Snapshot::clone(&self.core.read.catalog.load())
    }

    /// Its version, changing with each command that changed anything.
    pub fn subscribe(&self) -> watch::Receiver<u64> {
        self.core.read.catalog_version.subscribe()
    }

    /// Commits `command`. When it returns, the change is durable and in [`CatalogShard::snapshot`].
    ///
    /// # Errors
    /// [`ReplicationError::Catalog`] when the catalog refuses it; nothing is changed then.
    ///
    /// # Cancellation
    /// The command may be carried out nevertheless.
    pub async fn propose(&self, command: Command) -> Result<millstream_catalog::Reply, ReplicationError> {
        match self.core.change(Change::Catalog(Box::new(command))).await? {
            Reply::Catalog(reply) => Ok(reply),
            Reply::Done(_) | Reply::Appended(_) | Reply::Staged(_) | Reply::Taken(_) => {
                Err(self.core.appender.stopped())
            }
        }
    }

    /// Where the shard is.
    pub fn status(&self) -> ShardStatus {
        self.core.status()
    }
}

/// A shard of partitions and continuous queries.
pub struct Shard {
    pub(super) core: Arc<Core>,
}

impl Shard {
    pub(crate) fn new(core: Arc<Core>) -> Self {
        Self { core }
    }
    pub(super) fn core(&self) -> &Arc<Core> {
        &self.core
    }

    /// The shard's id.
    pub fn id(&self) -> ShardId {
        self.core.id
    }

    /// Why it is out of service, though it was in service when the node started.
    pub fn damage(&self) -> Option<&StorageError> {
        self.core.failure.damage()
    }

    /// The stored partitions, for reading.
    pub fn partitions(&self) -> Arc<Partitions> {
        Arc::clone(&self.core.partitions)
    }

    /// Appends the rows of one statement, all or nothing.
    ///
    /// When it returns, they are synced, applied, and visible to every later read. Statements that wait
    /// together share one entry and one sync. Waits while too much is queued for the shard. Offsets are
    /// those of the first row of each part; of an empty part, where the next row would go. When claims say that all rows
    /// were stored before, nothing is, and there are no offsets.
    ///
    /// # Errors
    /// [`ReplicationError`]; when it is `Stopped` or `ShuttingDown`, the rows may or may not be stored.
    /// [`ReplicationError::SequenceGap`] when claims do not follow what their producers wrote.
    ///
    /// # Cancellation
    /// The rows may be stored nevertheless.
    pub async fn append(&self, append: impl Into<Append>) -> Result<Appended, ReplicationError> {
        self.begin(append).await?.await
    }

    /// The same in two steps: the first hands the rows over, the future says what became of them.
    ///
    /// # Errors
    /// As of [`Shard::append`]; nothing was handed over.
    ///
    /// # Cancellation
    /// Until it returns, nothing is stored.
    pub async fn begin(
        &self,
        append: impl Into<Append>,
    ) -> Result<impl Future<Output = Result<Appended, ReplicationError>> + Send, ReplicationError> {
        let mut append = append.into();
        let (parts, bytes) = self.core.check(std::mem::take(&mut append.parts))?;
        let (parts, gaps) = split_empty(parts);
        let is_empty = parts.is_empty() && append.staged.is_none() && append.commits.is_empty();
        append.parts = parts;
        let bytes = bytes + append.overhead_bytes();
        let handed = if is_empty { None } else { Some(self.core.hand_over(Request::Append(append), bytes).await?) };
        Ok(async move {
            let Some(reply) = handed else {
                return Ok(self.fill(Appended { index: self.core.partitions.applied(), offsets: Vec::new() }, gaps));
            };
            match reply.await? {
                // Stored before, or all staged.
                Reply::Appended(appended) if appended.offsets.is_empty() => Ok(appended),
                reply => self.appended(reply, gaps),
            }
        })
    }

    /// Queues the rows of one statement and does not wait for them: what is queued after is appended after. The future
    /// ends as [`Shard::append`] does; dropping it changes nothing.
    ///
    /// # Errors
    /// [`ReplicationError`], when nothing was queued.
    pub async fn append_ahead(
        &self,
        append: Append,
    ) -> Result<impl Future<Output = Result<(), ReplicationError>> + Send + 'static, ReplicationError> {
        let mut append = append;
        let (parts, bytes) = self.core.check(std::mem::take(&mut append.parts))?;
        append.parts = split_empty(parts).0;
        let bytes = bytes + append.overhead_bytes();
        self.core.check_writable(self.core.log.check_room(bytes))?;
        let answer = self.core.appender.queue_first(Request::Append(append), bytes).await?;
        let core = Arc::clone(&self.core);
        Ok(async move { core.appender.answer(answer).await.map(drop) })
    }

    /// The number of a producer's next row in `topic`; `None` for one that is not known.
    pub fn sequence_next(&self, topic: TopicId, producer: &ProducerId) -> Option<Sequence> {
        self.core.sequence_next(topic, producer)
    }

    /// Begins to store a topic. A topic that exists stays as it is.
    ///
    /// # Errors
    /// [`ReplicationError`].
    pub async fn create_topic(&self, topic: TopicStorage) -> Result<(), ReplicationError> {
        self.core.change(Change::CreateTopic(topic)).await.map(|_| ())
    }

    /// A topic as it is stored.
    pub fn topic(&self, topic: TopicId) -> Option<TopicStorage> {
        self.core.read.topics.read().get(&topic).cloned()
    }

    /// Adds columns and partitions to a topic, and changes names of columns and options; never fewer columns or
    /// partitions. One that does not exist is no error.
    ///
    /// # Errors
    /// [`ReplicationError`].
    pub async fn alter_topic(&self, topic: TopicStorage) -> Result<(), ReplicationError> {
        self.core.change(Change::AlterTopic(topic)).await.map(|_| ())
    }

    /// Removes a topic and its rows. One that does not exist is no error.
    ///
    /// # Errors
    /// [`ReplicationError`].
    pub async fn drop_topic(&self, topic: TopicId) -> Result<(), ReplicationError> {
        let has_segments = self.has_segments(&[topic]);
        self.core.change(Change::DropTopic(topic)).await?;
        self.free(has_segments).await;
        Ok(())
    }

    /// Moves log starts forward: the events before are no longer read, and their files go with the next seals. Each
    /// moves at most to the first event that a continuous query may need: see [`Shard::hold`].
    ///
    /// # Errors
    /// [`ReplicationError`].
    pub async fn move_starts(&self, to: Vec<PartitionPosition>) -> Result<(), ReplicationError> {
        let bytes = CHANGE_BYTES + 20 * to.len();
        self.core.submit(Request::Change(Change::MoveStarts(to)), bytes).await.map(|_| ())
    }

    /// Forgets every event of these topics that was committed before, of all or of none.
    ///
    /// # Errors
    /// [`ReplicationError::EventsNeeded`] when a query would read some again after a restart.
    pub async fn truncate(&self, topics: Vec<TopicId>) -> Result<(), ReplicationError> {
        let has_segments = self.has_segments(&topics);
        self.core.change(Change::Truncate(topics)).await?;
        self.free(has_segments).await;
        Ok(())
    }

    fn has_segments(&self, topics: &[TopicId]) -> bool {
        let read = self.core.read.topics.read();
        let partitions = |id: &TopicId| read.get(id).map_or(0, |topic| topic.partitions);
        let mut places = topics.iter().flat_map(|id| (0..partitions(id)).map(|number| (*id, PartitionId::new(number))));
        places.any(|(topic, id)| {
            self.core.partitions.get(topic, id).is_some_and(|partition| !partition.view().segments().is_empty())
        })
    }

    /// Files that nobody reads any more go with the next manifest: writes one when there are any.
    async fn free(&self, has_segments: bool) {
        if has_segments && let Err(error) = self.core.change(Change::Seal).await {
            tracing::debug!(shard = self.core.id.value(), %error, "files are removed later");
        }
    }

    /// The first offset of a partition that the checkpoint of a query holds: it and what follows must stay.
    pub fn hold(&self, topic: TopicId, partition: PartitionId) -> Option<Offset> {
        progress::hold(&self.core.read.queries.read(), topic, partition)
    }

    /// Writes the new segments of `rewrites` and takes them into use; gives those whose files could not be written, and
    /// stay as they are. `stop` ends it early. The files that were replaced go with the next [`Shard::seal`].
    ///
    /// # Errors
    /// [`ReplicationError`].
    ///
    /// # Cancellation
    /// New files may be left until the next start.
    pub async fn rewrite(
        &self,
        rewrites: Vec<Rewrite>,
        stop: Arc<AtomicBool>,
    ) -> Result<Vec<Rewrite>, ReplicationError> {
        let job = |rewrite: &Rewrite| {
            let view = self.core.partitions.get(rewrite.topic, rewrite.partition)?.view();
            let job = RewriteJob::plan(&view, rewrite)?;
            Some((rewrite.clone(), job))
        };
        let jobs: Vec<_> = rewrites.iter().filter_map(job).collect();
        let ran = env::spawn_blocking(move || upkeep::run_jobs(jobs, &stop)).await;
        let done = match ran {
            Ok(Ok(done)) => done,
            Ok(Err(error)) => {
                self.core.failure.report(&error);
                return Err(error.into());
            }
            Err(_) => Vec::new(),
        };
        let made: Vec<Rewrite> = done.iter().map(|(rewrite, _)| rewrite.clone()).collect();
        upkeep::stash(&self.core.read, done);
        let failed = rewrites.into_iter().filter(|rewrite| !made.contains(rewrite)).collect();
        if !made.is_empty() {
            let bytes = CHANGE_BYTES + 64 * made.len();
            let unused = made.clone();
            let submitted = self.core.submit(Request::Change(Change::Rewrite(made)), bytes).await;
            if let Err(error) = submitted {
                let mut stash = self.core.read.rewritten.lock();
                let unused: Vec<_> = stash.extract_if(.., |(rewrite, _)| unused.contains(rewrite)).collect();
                drop(stash);
                unused.into_iter().for_each(|(_, rewritten)| rewritten.discard(&*self.core.disk));
                return Err(error);
            }
        }
        Ok(failed)
    }

    /// Writes segments and the manifest now, unless nothing came since the last time.
    ///
    /// # Errors
    /// [`ReplicationError`].
    pub async fn seal(&self) -> Result<(), ReplicationError> {
        self.core.seal().await
    }

    /// Begins to keep the progress of a query. One that exists keeps its progress.
    ///
    /// # Errors
    /// [`ReplicationError`].
    pub async fn create_query(
        &self,
        query: QueryId,
        positions: Vec<PartitionPosition>,
    ) -> Result<(), ReplicationError> {
        self.core.change(Change::CreateQuery(query, positions)).await.map(|_| ())
    }

    /// Commits a step: positions and outputs together, or neither. Steps submitted in order stay in order,
    /// so the next may be submitted before this one returns.
    ///
    /// # Errors
    /// [`ReplicationError::StaleStep`] when it does not follow the last committed step.
    ///
    /// # Cancellation
    /// The step may be committed nevertheless.
    pub async fn step(&self, mut step: Step) -> Result<Appended, ReplicationError> {
        let (outputs, bytes) = self.core.check(std::mem::take(&mut step.outputs))?;
        let (outputs, gaps) = split_empty(outputs);
        step.outputs = outputs;
        let bytes = bytes + step.overhead_bytes();
        self.appended(self.core.submit(Request::Step(step), bytes).await?, gaps)
    }

    /// How far a query is.
    pub fn progress(&self, query: QueryId) -> Option<Arc<QueryProgress>> {
        self.core.read.queries.read().get(&query).cloned().map(Arc::new)
    }

    /// The queries whose progress the shard keeps.
    pub fn queries(&self) -> Vec<QueryId> {
        self.core.read.queries.read().keys().copied().collect()
    }

    /// Where the shard is.
    pub fn status(&self) -> ShardStatus {
        self.core.status()
    }

    fn appended(&self, reply: Reply, gaps: Vec<Gap>) -> Result<Appended, ReplicationError> {
        match reply {
            Reply::Appended(appended) => Ok(self.fill(appended, gaps)),
            Reply::Done(_) | Reply::Catalog(_) | Reply::Staged(_) | Reply::Taken(_) => {
                Err(self.core.appender.stopped())
            }
        }
    }

    /// Puts offsets for the empty parts in their places.
    fn fill(&self, mut appended: Appended, gaps: Vec<Gap>) -> Appended {
        for gap in gaps {
            let partition = self.core.partitions.get(gap.write.topic, gap.write.partition);
            let offset = partition.map_or(Offset::ZERO, |partition| partition.view().offset_end());
            appended.offsets.insert(gap.place, offset);
        }
        appended
    }
}

/// A part without rows, and its place among the parts.
struct Gap {
    place: usize,
    write: PartitionWrite,
}

/// The parts with rows, and the others in the order of their places.
fn split_empty(parts: Vec<PartitionWrite>) -> (Vec<PartitionWrite>, Vec<Gap>) {
    if parts.iter().all(|part| part.batch.num_rows() > 0) {
        return (parts, Vec::new());
    }
    let mut gaps = Vec::new();
    let mut full = Vec::with_capacity(parts.len());
    for (place, write) in parts.into_iter().enumerate() {
        if write.batch.num_rows() == 0 {
            gaps.push(Gap { place, write });
        } else {
            full.push(write);
        }
    }
    (full, gaps)
}
