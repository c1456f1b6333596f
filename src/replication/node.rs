//! All shards of this node: opening them together, and ending them in order.
//!
//! Owns the data directory's layout: `wal/` for the shared log, `shards/<id>/` for each shard's store, `node` for
//! what there is. Leaves
//! out what shards do. The node's start-up calls it. After a crash it starts the same way.

use super::across::{Across, Cuts};
use super::error::ReplicationError;
use super::identity::Identity;
use super::raft::config_checked;
use super::read_side::Failure;
use super::shard::{CatalogShard, Core, Shard, Shared};
use super::types::Append;
use super::write_room::WriteRoom;
use crate::env;
use crate::storage::wal::{ShardRecovered, Wal, WalOptions, WalStats};
use crate::storage::{Disk, StorageError};
use futures::future::{join_all, try_join_all};
use millstream_catalog::model::limit::{SHARDS_MAX, WAL_BYTES_TARGET};
use millstream_catalog::model::{ByteSize, NodeId, ShardId};
use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Notify;
use tokio::task::JoinHandle;

/// Between looks at the log while nothing goes from it: the first time, and in the long run.
const KEEP_PAUSE_MIN: Duration = Duration::from_secs(1);
const KEEP_PAUSE_MAX: Duration = Duration::from_secs(60);

/// How a node's log is laid out.
#[derive(Debug, Clone)]
pub struct ReplicationConfig {
    /// Where everything durable is.
    pub data_dir: PathBuf,
    /// This node.
    pub node: NodeId,
    /// Shards of partitions, besides the catalog's.
    pub shards: u32,
    /// Bytes of rows in memory after which a shard writes segments.
    pub seal_bytes: ByteSize,
    /// Bytes of rows on their way to the log, of all shards, before writers are held back.
    pub writes_bytes: ByteSize,
}

/// The shards of this node.
pub struct Replication {
    catalog: Arc<CatalogShard>,
    shards: Vec<Arc<Shard>>,
    cores: Arc<[Arc<Core>]>,
    across: Across,
    damaged: BTreeMap<ShardId, StorageError>,
    wal: Wal,
    room: WriteRoom,
    failure: Failure,
    /// The keeper of the log's size, and the one that hears when a sync fails that nobody waited for.
    tasks: [JoinHandle<()>; 2],
}

impl Replication {
    /// Opens the log and every shard. When it returns, this node leads each of them and has applied all that was
    /// committed. A shard whose log or manifest is damaged is out of service ([`Replication::damage`]) as long as the
    /// catalog's and another one are whole.
    ///
    /// # Errors
    /// [`ReplicationError::Storage`] when files are damaged, newer than this program, or in use.
    pub(crate) async fn start_on(
        config: ReplicationConfig,
        disk: Arc<dyn Disk>,
        wal_options: WalOptions,
    ) -> Result<Self, ReplicationError> {
        let dir = &config.data_dir;
        let created = disk.create_dir_durable(dir).and_then(|()| disk.create_dir_durable(&dir.join("shards")));
        created.map_err(|source| StorageError::io("create the data directory", source))?;
        let lock = disk.lock(dir)?;
        let identity = Identity { node: config.node, shards: config.shards.clamp(1, SHARDS_MAX) };
        let before = Identity::read(&*disk, dir)?;
        let (wal, recovered) = Wal::open(Arc::clone(&disk), &dir.join("wal"), wal_options)?;
        wal.hold(lock);
        let has_votes = recovered.values().any(|shard| shard.vote.is_some() || shard.corrupt.is_some());
        let checked = match &before {
            Some(before) => before.check(identity.shards, has_votes),
            // Of a node that was killed before it wrote the file, or that lost it: the log has its shards.
            None => {
                if has_votes {
                    tracing::warn!("the file \"node\" of the data directory is missing, and written anew");
                }
                let there = recovered.keys().map(|shard| shard.value()).max().unwrap_or(0);
                Identity { shards: there, ..identity }.check(identity.shards, true)
            }
        };
        if let Err(error) = checked {
            wal.close();
            return Err(error);
        }
        let shared = Shared {
            disk,
            wal: wal.clone(),
            node: config.node,
            raft_config: config_checked().map_err(start_error)?,
            seal_bytes: config.seal_bytes,
            room: WriteRoom::new(config.writes_bytes),
            failure: Failure::new(),
            purged: Arc::new(Notify::new()),
        };
        let started = match start_shards(&config, &shared, recovered).await {
            Ok(started) if before != Some(identity) => {
                identity.write(&*shared.disk, dir).map(|()| started).map_err(Into::into)
            }
            started => started,
        };
        let (cores, damaged): (Arc<[Arc<Core>]>, _) = match started {
            Ok((cores, damaged)) => (cores.into(), damaged),
            Err(error) => {
                wal.close();
                return Err(error);
            }
        };
        let Some((catalog, data)) = cores.split_first() else {
            return Err(start_error("it was not opened".to_owned()));
        };
        let across = Across::start(data, damaged.is_empty()).await;
        let keeper = env::spawn("log-keeper", keep(wal.clone(), Arc::clone(&cores), Arc::clone(&shared.purged)));
        let watch = env::spawn("log-watch", watch(wal.clone(), shared.failure.clone()));
        Ok(Self {
            catalog: Arc::new(CatalogShard::new(Arc::clone(catalog))),
            shards: data.iter().map(|core| Arc::new(Shard::new(Arc::clone(core)))).collect(),
            cores,
            across,
            damaged,
            wal,
            room: shared.room,
            failure: shared.failure,
            tasks: [keeper, watch],
        })
    }

    /// The shard of the catalog.
    pub fn catalog(&self) -> &Arc<CatalogShard> {
        &self.catalog
    }

    /// The shard of partitions with this id, if it is in service.
    pub fn shard(&self, id: ShardId) -> Option<&Arc<Shard>> {
        self.shards.iter().find(|shard| shard.id() == id && shard.damage().is_none())
    }

    /// Why a shard is out of service here; `None` of one that is not.
    pub fn damage(&self, id: ShardId) -> Option<&StorageError> {
        let since = self.shards.iter().find(|shard| shard.id() == id).and_then(|shard| shard.damage());
        since.or_else(|| self.damaged.get(&id))
    }

    /// The shards that were out of service from the start on, and why.
    pub fn damaged(&self) -> &BTreeMap<ShardId, StorageError> {
        &self.damaged
    }

    /// The shards of partitions that were in service at the start, by id from 1; see [`Shard::damage`].
    pub fn shards(&self) -> &[Arc<Shard>] {
        &self.shards
    }

    #[cfg(test)]
    pub(crate) fn cores(&self) -> &[Arc<Core>] {
        &self.cores
    }

    #[cfg(test)]
    pub(crate) fn room(&self) -> &WriteRoom {
        &self.room
    }

    /// Bytes of rows on their way to the log.
    pub fn writes_bytes(&self) -> ByteSize {
        self.room.used()
    }

    /// Appends to several shards, all or none. When it returns, all rows are synced, applied, and visible to every later
    /// read. As [`Shard::append`], but for offsets: those are not told.
    ///
    /// # Errors
    /// [`ReplicationError`], as of [`Shard::append`].
    ///
    /// # Cancellation
    /// The transaction goes on.
    pub async fn append_across(&self, shares: Vec<(ShardId, Append)>) -> Result<(), ReplicationError> {
        let share = |(id, append)| match self.cores.iter().find(|core| core.id() == id) {
            Some(core) => Ok((Arc::clone(core), append)),
            None => Err(ReplicationError::NoLeader(id)),
        };
        self.across.append(shares.into_iter().map(share).collect::<Result<_, _>>()?).await
    }

    /// The shards' last entries, with all or none of each transaction over several shards; `None` when there is one shard.
    ///
    /// # Cancellation
    /// Safe.
    pub async fn cuts(&self) -> Option<Cuts> {
        if self.shards.len() < 2 {
            return None;
        }
        Some(self.across.cuts(&self.cores).await)
    }

    /// Counts of the shared log.
    pub fn wal_stats(&self) -> WalStats {
        self.wal.stats()
    }

    /// Completes when a fatal error stopped replication, with the reason; the node must end then.
    ///
    /// # Cancellation
    /// Safe.
    pub async fn failed(&self) -> String {
        let mut reason = self.failure.subscribe();
        match reason.wait_for(Option::is_some).await {
            Ok(reason) => reason.as_deref().unwrap_or_default().to_owned(),
            // `self` holds the sender.
            Err(_) => std::future::pending().await,
        }
    }

    /// Refuses further requests, ends every shard, and syncs and closes the log. When the last sync fails, what was answered
    /// before it was synced may be lost: [`Replication::failed`] completes then.
    pub async fn shutdown(&self) {
        self.tasks.iter().for_each(JoinHandle::abort);
        join_all(self.cores.iter().map(|core| core.shutdown())).await;
        self.wal.close();
        if *self.wal.failed().borrow() {
            self.failure.report(&StorageError::SyncFailed);
        }
    }
}

fn start_error(reason: String) -> ReplicationError {
    ReplicationError::Start { shard: ShardId::CATALOG, reason }
}

/// Starts the catalog's shard and the others, at once; also gives those that are damaged, unless that is all.
async fn start_shards(
    config: &ReplicationConfig,
    shared: &Shared,
    mut recovered: HashMap<ShardId, ShardRecovered>,
) -> Result<(Vec<Arc<Core>>, BTreeMap<ShardId, StorageError>), ReplicationError> {
    let shards = config.shards.clamp(1, SHARDS_MAX);
    let starts = (0..=shards).map(|number| {
        let id = ShardId::new(number);
        let recovered = recovered.remove(&id).unwrap_or_default();
        let dir = config.data_dir.join("shards").join(number.to_string());
        async move {
            match Core::start(shared, &dir, id, recovered).await {
                Err(ReplicationError::Storage(damage)) if id != ShardId::CATALOG && damage.is_damage() => {
                    Ok(Err((id, damage)))
                }
                started => started.map(Ok),
            }
        }
    });
    let starts: Vec<_> = starts.collect();
    let mut cores = Vec::new();
    let mut damaged = BTreeMap::new();
    for started in try_join_all(starts).await? {
        match started {
            Ok(core) => cores.push(core),
            Err((id, damage)) => {
                tracing::error!(shard = id.value(), error = %damage, "the shard is damaged and out of service");
                damaged.insert(id, damage);
            }
        }
    }
    match damaged.first_key_value() {
        // The catalog alone serves nobody.
        Some((_, damage)) if cores.len() <= 1 => Err(damage.clone().into()),
        _ => Ok((cores, damaged)),
    }
}

/// Stops the node when the log fails: whoever wrote what it has lost may have been answered.
async fn watch(wal: Wal, failure: Failure) {
    if wal.failed().wait_for(|has_failed| *has_failed).await.is_ok() {
        failure.report(&StorageError::SyncFailed);
    }
}

/// Seals quiet shards whose few old entries keep the shared log from giving files back, when it is large or the disk full.
/// One after the other: whose turn it is shows when the entries of the one before are gone. A seal that finds no space is tried
/// again rarely, since each try is an entry in what is left of the log.
async fn keep(wal: Wal, cores: Arc<[Arc<Core>]>, purged: Arc<Notify>) {
    let mut pause = KEEP_PAUSE_MIN;
    loop {
        let stats = wal.stats();
        let is_due = stats.is_disk_full || stats.bytes >= WAL_BYTES_TARGET.plus(stats.spare_bytes);
        let core = cores.iter().find(|core| is_due && Some(core.id()) == stats.oldest);
        if let Some(core) = core
            && let Err(error) = core.seal().await
        {
            tracing::debug!(shard = core.id().value(), %error, "a quiet shard was not sealed");
        }
        pause = match tokio::time::timeout(pause, purged.notified()).await {
            Ok(()) => KEEP_PAUSE_MIN,
            Err(_) => (pause * 2).min(KEEP_PAUSE_MAX),
        };
    }
}
