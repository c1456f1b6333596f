//! What others read of a shard while its state machine writes: topics' schemas, queries, the catalog.
//!
//! Owns the shared views and the node's failure signal. The state machine is the only writer; sessions and
//! continuous queries read. Leaves out partitions, whose views storage publishes.

use super::groups::Groups;
use super::producers::Producers;
use super::types::QueryProgress;
use crate::storage::{Rewrite, Rewritten, StorageError, TopicStorage};
use arc_swap::ArcSwap;
use millstream_catalog::Snapshot;
use millstream_catalog::model::{EntryIndex, QueryId, ShardId, TopicId};
use parking_lot::{Mutex, RwLock};
use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// The views of one shard.
#[derive(Debug)]
pub(crate) struct ReadSide {
    /// What a write is checked against before it is proposed.
    pub(crate) topics: RwLock<HashMap<TopicId, TopicStorage>>,
    pub(crate) queries: RwLock<BTreeMap<QueryId, QueryProgress>>,
    pub(crate) producers: RwLock<Producers>,
    pub(crate) groups: RwLock<Groups>,
    pub(crate) catalog: ArcSwap<Snapshot>,
    pub(crate) catalog_version: watch::Sender<u64>,
    pub(crate) is_sealing: AtomicBool,
    /// The last seal found no space.
    pub(crate) is_disk_full: AtomicBool,
    /// A seal was asked for by which space comes back.
    pub(crate) is_seal_asked: AtomicBool,
    /// One more than the index of the last entry in the manifest; 0 for none.
    sealed_end: AtomicU64,
    /// New segments that the leader's task wrote and that no entry has taken into use yet.
    pub(crate) rewritten: Mutex<Vec<(Rewrite, Rewritten)>>,
    /// Bytes of rows that are not in segments.
    pub(crate) unsealed_bytes: AtomicU64,
    /// Bytes of segments that were replaced by others since the start.
    pub(crate) bytes_rewritten: AtomicU64,
    /// Counts finished seal jobs.
    pub(crate) seals: watch::Sender<u64>,
    /// The last seal job, awaited by a shutdown.
    pub(crate) seal_job: Mutex<Option<JoinHandle<()>>>,
}

impl ReadSide {
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self {
            topics: RwLock::default(),
            queries: RwLock::default(),
            producers: RwLock::default(),
            groups: RwLock::default(),
            catalog: ArcSwap::from_pointee(Snapshot::default()),
            catalog_version: watch::Sender::new(0),
            is_sealing: AtomicBool::new(false),
            is_disk_full: AtomicBool::new(false),
            is_seal_asked: AtomicBool::new(false),
            sealed_end: AtomicU64::new(0),
            rewritten: Mutex::default(),
            unsealed_bytes: AtomicU64::new(0),
            bytes_rewritten: AtomicU64::new(0),
            seals: watch::Sender::new(0),
            seal_job: Mutex::default(),
        })
    }

    pub(crate) fn set_sealed(&self, index: EntryIndex) {
        self.sealed_end.store(index.next().value(), Ordering::Release);
    }

    pub(crate) fn sealed(&self) -> Option<EntryIndex> {
        self.sealed_end.load(Ordering::Acquire).checked_sub(1).map(EntryIndex::new)
    }
}

/// The node's fatal failure, once there is one; or the damage that ends one shard and leaves the others.
#[derive(Debug, Clone)]
pub(crate) struct Failure {
    reason: watch::Sender<Option<Arc<str>>>,
    damage: Arc<OnceLock<StorageError>>,
}

impl Failure {
    pub(crate) fn new() -> Self {
        Self { reason: watch::Sender::new(None), damage: Arc::default() }
    }

    /// The node's, for a shard with damage of its own.
    pub(crate) fn of_shard(&self) -> Self {
        Self { reason: self.reason.clone(), damage: Arc::default() }
    }

    /// The shard is out of service until its files were repaired.
    pub(crate) fn give_up(&self, shard: ShardId, damage: &StorageError) {
        if self.damage.set(damage.clone()).is_ok() {
            tracing::error!(shard = shard.value(), error = %damage, "an entry needs what is damaged, the shard ends");
        }
    }

    /// Why the shard is out of service.
    pub(crate) fn damage(&self) -> Option<&StorageError> {
        self.damage.get()
    }

    /// Keeps and logs the first fatal storage error; a log that was closed on purpose is none.
    pub(crate) fn report(&self, error: &StorageError) {
        if !matches!(error, StorageError::Closed) {
            self.stop(&error.to_string());
        }
    }

    /// Keeps and logs the first reason.
    pub(crate) fn stop(&self, reason: &str) {
        let is_first = self.reason.send_if_modified(|current| {
            let is_first = current.is_none();
            current.get_or_insert_with(|| Arc::from(reason));
            is_first
        });
        if is_first {
            tracing::error!(reason, "replication stopped, no further writes are accepted");
        }
    }

    pub(crate) fn reason(&self) -> Option<Arc<str>> {
        self.reason.borrow().clone()
    }

    pub(crate) fn subscribe(&self) -> watch::Receiver<Option<Arc<str>>> {
        self.reason.subscribe()
    }
}
