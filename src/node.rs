//! A node: builds everything in order, and stops it in the reverse order.
//!
//! Owns start and stop. Leaves out options (`config`) and what the parts do. `main`, the demo and embedding
//! programs call it. A crash at any moment is recovered by the next start.

use crate::config::Config;
use crate::engine::{Budget, Engine, EngineConfig, SqlError};
use crate::env;
use crate::server::admin::AdminServer;
use crate::server::pg::PgServer;
use crate::storage::{self, Disk, RealDisk};
use std::net::SocketAddr;
use std::sync::Arc;

/// A running node.
#[derive(Debug)]
pub struct Node {
    engine: Arc<Engine>,
    pg: PgServer,
    admin: AdminServer,
}

/// Why a node did not start.
#[derive(Debug, thiserror::Error)]
pub enum NodeError {
    /// An address cannot be listened on.
    #[error("cannot listen on {address}")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The engine refused the data directory.
    #[error("cannot open the data directory {data_dir}: {error}")]
    Open {
        /// The directory.
        data_dir: std::path::PathBuf,
        /// Why.
        error: SqlError,
    },
}

impl Node {
    /// Opens the data directory, recovers it, and listens. The admin address answers from the beginning,
    /// `/readyz` with 503 until clients are accepted.
    ///
    /// # Errors
    /// [`NodeError`]
    pub async fn start(config: &Config) -> Result<Self, NodeError> {
        let listen = |address| move |source| NodeError::Listen { address, source };
        let admin = AdminServer::start(config.admin_listen).await.map_err(listen(config.admin_listen))?;
        let engine_config = EngineConfig {
            data_dir: config.data_dir.clone(),
            shards: config.shards,
            seal_bytes: config.seal_bytes,
            query_threads: env::cores(),
            memory: config.memory,
            offsets_retention: config.offsets_retention,
        };
        storage::set_maps_bytes_max(Budget::of(config.memory).map_bytes());
        let disk: Arc<dyn Disk> = Arc::new(RealDisk);
        let engine = Engine::open(engine_config, disk, env::system_clock())
            .await
            .map_err(|error| NodeError::Open { data_dir: config.data_dir.clone(), error })?;
        let pg = match PgServer::start(config.listen, Arc::clone(&engine)).await {
            Ok(pg) => pg,
            Err(error) => {
                // Its threads hold the log: nobody else may open it before they have ended.
                engine.shutdown().await;
                return Err(listen(config.listen)(error));
            }
        };
        admin.ready(&engine);
        Ok(Self { engine, pg, admin })
    }

    /// The engine, for sessions inside this process.
    pub fn engine(&self) -> &Arc<Engine> {
        &self.engine
    }

    /// Where PostgreSQL clients connect.
    pub fn pg_address(&self) -> SocketAddr {
        self.pg.address()
    }

    /// Where HTTP is answered.
    pub fn admin_address(&self) -> SocketAddr {
        self.admin.address()
    }

    /// Completes when the log cannot be written any more, with the reason.
    pub async fn failed(&self) -> String {
        self.engine.failed().await
    }

    /// Stops taking work, finishes what is acknowledged, and closes the data directory.
    pub async fn stop(&self) {
        self.admin.not_ready();
        self.pg.stop().await;
        self.engine.shutdown().await;
        self.admin.stop().await;
    }
}
