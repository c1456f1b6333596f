//! All shards of this node: opening them together, and ending them in order.
//!
//! Owns the data directory's layout: `wal/` for the shared log, `shards/<id>/` for each shard's store. Leaves
//! out what shards do. The node's start-up calls it. After a crash it starts the same way.

use super::error::ReplicationError;
use super::raft::config_checked;
use super::read_side::Failure;
use super::shard::{CatalogShard, Core, Shard, Shared};
use crate::env::Clock;
use crate::storage::Disk;
use crate::storage::wal::{Wal, WalOptions, WalStats};
use futures::future::{join_all, try_join_all};
use millstream_catalog::model::limit::SHARDS_MAX;
use millstream_catalog::model::{ByteSize, NodeId, ShardId};
use std::path::PathBuf;
use std::sync::Arc;
use tokio::sync::watch;

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
}

/// The shards of this node.
pub struct Replication {
    catalog: Arc<CatalogShard>,
    shards: Vec<Arc<Shard>>,
    wal: Wal,
    failure: Failure,
}

impl Replication {
    /// Opens the log and every shard. When it returns, this node leads each of them and has applied all that was
    /// committed.
    ///
    /// # Errors
    /// [`ReplicationError::Storage`] when files are damaged, newer than this program, or in use.
    pub async fn start(
        config: ReplicationConfig,
        disk: Arc<dyn Disk>,
        _clock: Arc<dyn Clock>,
    ) -> Result<Self, ReplicationError> {
        let shards = config.shards.clamp(1, SHARDS_MAX - 1);
        let wal_dir = config.data_dir.join("wal");
        let (wal, mut recovered) = Wal::open(Arc::clone(&disk), &wal_dir, WalOptions::default())?;
        let fail = |reason| ReplicationError::Start { shard: ShardId::CATALOG, reason };
        let failure = Failure::new();
        let shared = Shared {
            disk,
            wal: wal.clone(),
            node: config.node,
            raft_config: config_checked().map_err(fail)?,
            seal_bytes: config.seal_bytes,
            failure: failure.clone(),
        };
        let starts = (0..=shards).map(|number| {
            let id = ShardId::new(number);
            let recovered = recovered.remove(&id).unwrap_or_default();
            let dir = config.data_dir.join("shards").join(number.to_string());
            let shared = shared.clone();
            async move { Core::start(&shared, &dir, id, recovered).await }
        });
        let starts: Vec<_> = starts.collect();
        let cores = match try_join_all(starts).await {
            Ok(cores) => cores,
            Err(error) => {
                wal.close();
                return Err(error);
            }
        };
        let mut cores = cores.into_iter();
        let catalog = cores.next().map(CatalogShard::new).ok_or_else(|| fail("it was not opened".to_owned()))?;
        let shards = cores.map(|core| Arc::new(Shard::new(core))).collect();
        Ok(Self { catalog: Arc::new(catalog), shards, wal, failure })
    }

    /// The shard of the catalog.
    pub fn catalog(&self) -> &Arc<CatalogShard> {
        &self.catalog
    }

    /// The shard of partitions with this id.
    pub fn shard(&self, id: ShardId) -> Option<&Arc<Shard>> {
        self.shards.iter().find(|shard| shard.id() == id)
    }

    /// The shards of partitions, by id from 1.
    pub fn shards(&self) -> &[Arc<Shard>] {
        &self.shards
    }

    /// Counts of the shared log.
    pub fn wal_stats(&self) -> WalStats {
        self.wal.stats()
    }

    /// Why replication stopped, once a fatal error stopped it; the node must end then.
    pub fn failed(&self) -> watch::Receiver<Option<Arc<str>>> {
        self.failure.subscribe()
    }

    /// Refuses further requests, ends every shard, and syncs and closes the log.
    pub async fn shutdown(&self) {
        join_all(self.shards.iter().map(|shard| shard.shutdown())).await;
        self.catalog.shutdown().await;
        self.wal.close();
    }
}
