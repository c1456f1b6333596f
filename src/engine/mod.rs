//! Sessions, statements and continuous queries over the replicated log.
//!
//! Owns what happens between the text of a statement and its rows: sessions, transactions, cursors, writes,
//! pull and push queries, and the tasks of continuous queries. Leaves out the wire (server), SQL itself
//! (sql), durability (replication, storage). The server, the demo and embedding programs call it. After a
//! crash everything here is rebuilt from the catalog and the log.

mod alter;
mod budget;
mod bulk;
mod change;
mod compute;
mod copy;
mod cursor;
mod ddl;
mod describe;
mod fold;
mod group;
mod held;
mod input;
mod inputs;
mod insert;
mod insert_query;
mod listen;
mod member;
mod outcome;
mod pin;
mod prepare;
mod producer;
mod pull;
mod push;
mod query;
mod registry;
mod replace;
mod row_lock;
mod select;
mod session;
mod settings;
mod shared;
mod skip;
mod system_view;
mod table;
#[cfg(test)]
mod tests;
mod transaction;
mod undo;
mod upkeep;
mod versions;
mod view;
mod write;

pub use budget::Budget;
pub use copy::{CopyIn, CopyOut};
pub use group::{Asked, Receipts};
pub use insert::Commit;
pub use millstream_catalog::model::{ShardId, SqlState};
pub use millstream_catalog::{Column, SqlType};
pub use millstream_sql::SqlError;
pub use millstream_sql::bind::insert::Param;
pub use millstream_sql::dialect::{Parsed, Statement};
use millstream_sql::exec::QueryMemory;
pub use millstream_sql::plan::ResultColumn;
/// Formats of values on the wire and in copy data.
pub use millstream_sql::{copy as formats, types};
pub use outcome::{
    Form, Forms, Idle, Notice, Outcome, Result, RowBatch, RowStream, Rows, RowsTag, TransactionStatus, Via,
};
pub use prepare::{Prepared, check_columns, has_other_columns};
pub use registry::{Handed, SessionId, SessionRow};
pub use session::{Session, SessionOptions};
pub use settings::SERVER_VERSION;

use crate::env::Clock;
use crate::replication::{Replication, ReplicationConfig, ReplicationError, Shard};
use crate::storage::wal::{WalOptions, WalStats};
use crate::storage::{Disk, StorageError};
use arrow::datatypes::SchemaRef;
use budget::Share;
use compute::Compute;
use group::Coordinator;
pub(crate) use held::{Held, HoldingRoom};
use millstream_catalog::model::{ByteSize, NodeId, PartitionId, Span};
use millstream_catalog::{Relation, Snapshot};
use parking_lot::Mutex;
use query::Supervisor;
use registry::Registry;
use row_lock::RowLocks;
use shared::SharedQueries;
use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use table::Tables;
use tokio_util::sync::CancellationToken;
use upkeep::Upkeep;
use write::Spreader;

/// How an engine is opened.
#[derive(Debug, Clone)]
pub struct EngineConfig {
    /// The data directory; created if missing.
    pub data_dir: PathBuf,
    /// Data shards of a new directory; of an old one, at least as many as it has.
    pub shards: u32,
    /// Bytes in memory per shard before they are rewritten as segments.
    pub seal_bytes: ByteSize,
    /// Threads that plan and run queries.
    pub query_threads: usize,
    /// Memory of the whole process, which [`Budget`] divides.
    pub memory: ByteSize,
    /// How long the committed offsets of a consumer group are kept that has no members.
    pub offsets_retention: Span,
}

/// A node's engine: one per data directory, shared by all its sessions.
pub struct Engine {
    config: EngineConfig,
    clock: Arc<dyn Clock>,
    replication: Replication,
    tables: Tables,
    registry: Registry,
    spreader: Spreader,
    holding: HoldingRoom,
    state_room: HoldingRoom,
    query_memory: QueryMemory,
    row_locks: Arc<RowLocks>,
    compute: Compute,
    queries: Supervisor,
    groups: Arc<Coordinator>,
    shared: SharedQueries,
    upkeep: Mutex<Option<Upkeep>>,
    shutdown: CancellationToken,
}

impl fmt::Debug for Engine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Engine").field("config", &self.config).finish_non_exhaustive()
    }
}

impl Engine {
    /// Opens the data directory, recovers everything in it, and starts its continuous queries.
    ///
    /// # Errors
    /// When the directory is in use, damaged or of a newer format, or the disk fails.
    pub async fn open(config: EngineConfig, disk: Arc<dyn Disk>, clock: Arc<dyn Clock>) -> Result<Arc<Self>> {
        Self::open_on(config, disk, clock, WalOptions::default()).await
    }

    /// As [`Engine::open`], on a log of another layout.
    pub(crate) async fn open_on(
        config: EngineConfig,
        disk: Arc<dyn Disk>,
        clock: Arc<dyn Clock>,
        wal_options: WalOptions,
    ) -> Result<Arc<Self>> {
        let budget = Budget::of(config.memory);
        let state_room = HoldingRoom::new(budget.share(Share::State));
        let replication = ReplicationConfig {
            data_dir: config.data_dir.clone(),
            node: NodeId::new(1),
            shards: config.shards,
            seal_bytes: budget.seal_bytes(config.seal_bytes, config.shards),
            writes_bytes: budget.share(Share::Writes),
        };
        let replication = Replication::start_on(replication, disk, wal_options).await.map_err(replication_error)?;
        let engine = Arc::new(Self {
            compute: Compute::start(config.query_threads)?,
            config,
            clock,
            replication,
            tables: Tables::new(state_room.clone()),
            registry: Registry::new(budget.sessions_max()),
            spreader: Spreader::default(),
            holding: HoldingRoom::new(budget.share(Share::Rows)),
            query_memory: QueryMemory::new(budget.share(Share::Queries), budget.query_bytes()),
            state_room,
            row_locks: Arc::default(),
            queries: Supervisor::default(),
            groups: Arc::default(),
            shared: SharedQueries::default(),
            upkeep: Mutex::default(),
            shutdown: CancellationToken::new(),
        });
        let started = match engine.reconcile().await {
            Ok(()) => query::start(&engine).await,
            Err(error) => Err(error),
        };
        if let Err(error) = started {
            // The log's threads must have ended before the directory's lock is given up.
            engine.shutdown().await;
            return Err(error);
        }
        let (groups, shutdown) = (Arc::clone(&engine.groups), engine.shutdown.clone());
        let _task = crate::env::spawn("groups", shutdown.run_until_cancelled_owned(groups.watch()));
        *engine.upkeep.lock() = Some(Upkeep::start(&engine));
        Ok(engine)
    }

    /// A new session.
    ///
    /// # Errors
    /// 53300 when there are too many.
    pub fn session(self: &Arc<Self>, options: SessionOptions) -> Result<Session> {
        Session::open(self, options)
    }

    /// Cancels the statement of the session with this id and secret, if there is one.
    pub fn cancel(&self, id: SessionId) {
        self.registry.cancel(id);
    }

    /// Stops continuous queries, then replication; what was acknowledged is on disk. Sessions get 57P01.
    pub async fn shutdown(&self) {
        self.shutdown.cancel();
        query::stop(self).await;
        let upkeep = self.upkeep.lock().take();
        if let Some(upkeep) = upkeep {
            upkeep.stop().await;
        }
        self.replication.shutdown().await;
        self.compute.stop();
    }

    /// Cancelled when the engine shuts down.
    pub fn shutdown_token(&self) -> &CancellationToken {
        &self.shutdown
    }

    /// Completes when the log cannot be written any more, with the reason.
    pub async fn failed(&self) -> String {
        self.replication.failed().await
    }

    /// The number of open sessions.
    pub fn session_count(&self) -> usize {
        self.registry.rows().len()
    }

    /// The rows of a view of schema `millstream`, outside of any session.
    ///
    /// # Errors
    /// 42P01 when there is no such view.
    pub fn system_view(self: &Arc<Self>, name: &str) -> Result<arrow::array::RecordBatch> {
        system_view::rows(self, None, name)
    }

    /// Counts and sizes of the node's write-ahead log.
    pub fn log_stats(&self) -> WalStats {
        self.replication.wal_stats()
    }

    /// A share, of nothing yet, of the memory for rows before they are committed, and for messages.
    pub(crate) fn room(&self) -> Held {
        self.holding.share()
    }

    pub(crate) fn catalog(&self) -> Snapshot {
        self.replication.catalog().snapshot()
    }

    pub(crate) fn groups(&self) -> &Arc<Coordinator> {
        &self.groups
    }

    pub(crate) fn shared(&self) -> &SharedQueries {
        &self.shared
    }

    pub(crate) fn budget(&self) -> Budget {
        Budget::of(self.config.memory)
    }

    pub(crate) fn clock(&self) -> &Arc<dyn Clock> {
        &self.clock
    }

    pub(crate) fn replication(&self) -> &Replication {
        &self.replication
    }

    pub(crate) fn shard(&self, id: ShardId) -> Result<&Arc<Shard>> {
        self.replication.shard(id).ok_or_else(|| match self.replication.damage(id) {
            Some(damage) => SqlError::new(SqlState::DataCorrupted, format!("shard {id} is damaged and out of service"))
                .detail(damage.to_string())
                .hint("topics of other shards can be used; stop the server and run \"millstream check\""),
            None => SqlError::new(SqlState::NoLeader, format!("shard {id} is not on this node")),
        })
    }

    pub(crate) fn shard_of(&self, relation: &Relation) -> Result<&Arc<Shard>> {
        self.shard(relation.shard)
    }

    /// Whether the shard has all partitions and columns of the definition: just after a change it may not yet.
    pub(crate) fn is_made(&self, relation: &Relation) -> bool {
        let columns = relation.schema.columns.len() + 1 + usize::from(relation.has_tombstones());
        let partitions = self.shard_of(relation).ok().and_then(|shard| shard.partitions().topic(relation.id));
        partitions.is_some_and(|partitions| {
            let first = partitions.first().map(|first| first.schema());
            partitions.len() >= relation.options.partitions as usize
                && first.is_some_and(|schema| schema.fields().len() >= columns)
        })
    }

    /// The schema of the relation's stored batches: the very one its partitions have, if they have its columns.
    pub(crate) fn stored_schema(&self, relation: &Relation) -> SchemaRef {
        let shard = self.shard_of(relation).ok();
        let partition = shard.and_then(|shard| shard.partitions().get(relation.id, PartitionId::new(0)));
        let columns = relation.schema.columns.len() + 1 + usize::from(relation.has_tombstones());
        let schema = partition.map(|partition| partition.schema()).filter(|schema| schema.fields().len() == columns);
        schema.unwrap_or_else(|| relation.topic_schema())
    }
}

/// What a client is told of a failure to read the log of the relation `name`.
pub(crate) fn read_error(name: &impl fmt::Display, error: StorageError) -> SqlError {
    match error {
        StorageError::DamagedRows { partition, offsets, reason, .. } => {
            let (first, last) = (offsets.start, offsets.end.before());
            let message = format!("offsets {first} to {last} of \"{name}\", partition {partition} are damaged");
            SqlError::new(SqlState::DataCorrupted, message)
                .detail(reason.to_string())
                .hint("other rows can be read: exclude these by a condition on rowpartition and rowoffset")
        }
        error => SqlError::new(error.sqlstate(), error.to_string()),
    }
}

/// What a client is told of a failed write.
pub(crate) fn replication_error(error: ReplicationError) -> SqlError {
    let message = match error {
        // Of which the statement knew when it began.
        ReplicationError::NoTopic(_) | ReplicationError::NoPartition(..) => {
            "a relation that the statement uses was dropped meanwhile".to_owned()
        }
        _ => error.to_string(),
    };
    SqlError::new(error.sqlstate(), message)
}
