//! HTTP for operators: health, readiness, metrics.
//!
//! Owns the listener and the routes. Leaves out what is measured (`metrics`) and TLS: the address is loopback
//! unless configured otherwise, and nothing here changes anything. It answers before the engine is open, so
//! that a slow recovery can be watched. A crash loses the listener.

mod health;
pub(super) mod metrics;

use crate::engine::Engine;
use crate::env;
use axum::Router;
use axum::routing::get;
use parking_lot::RwLock;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// How long an answer under way may take when the listener closes.
const STOP_GRACE: Duration = Duration::from_secs(1);
/// How often the recorder digests its samples; they take memory until then.
const UPKEEP_INTERVAL: Duration = Duration::from_secs(5);

/// A listening HTTP server.
#[derive(Debug)]
pub struct AdminServer {
    address: SocketAddr,
    state: AdminState,
    stopping: CancellationToken,
    tasks: TaskTracker,
}

/// What the routes see: the engine once it is open, until the node stops.
#[derive(Debug, Clone, Default)]
pub(in crate::server) struct AdminState(Arc<RwLock<Option<Arc<Engine>>>>);

impl AdminState {
    fn engine(&self) -> Option<Arc<Engine>> {
        self.0.read().clone()
    }
}

impl AdminServer {
    /// Listens on `listen`. Port 0 takes a free port.
    ///
    /// # Errors
    /// When the address cannot be listened on.
    pub async fn start(listen: SocketAddr) -> io::Result<Self> {
        let listener = TcpListener::bind(listen).await?;
        let address = listener.local_addr()?;
        let (state, stopping, tasks) = (AdminState::default(), CancellationToken::new(), TaskTracker::new());
        let recorder = metrics::recorder();
        let stopped = stopping.clone().cancelled_owned();
        let serving = axum::serve(listener, router(state.clone())).with_graceful_shutdown(stopped);
        env::spawn(
            "admin",
            tasks.track_future(async move {
                if let Err(error) = serving.await {
                    tracing::error!(%error, "the admin listener failed");
                }
            }),
        );
        let stopped = stopping.clone();
        env::spawn(
            "metrics-upkeep",
            tasks.track_future(async move {
                while tokio::time::timeout(UPKEEP_INTERVAL, stopped.cancelled()).await.is_err() {
                    recorder.run_upkeep();
                }
            }),
        );
        Ok(Self { address, state, stopping, tasks })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The engine is open and clients are accepted: `/readyz` says so.
    pub fn ready(&self, engine: &Arc<Engine>) {
        *self.state.0.write() = Some(Arc::clone(engine));
    }

    /// The node takes no new work: `/readyz` says so.
    pub fn not_ready(&self) {
        *self.state.0.write() = None;
    }

    /// Closes the listener.
    pub async fn stop(&self) {
        self.not_ready();
        self.stopping.cancel();
        self.tasks.close();
        if tokio::time::timeout(STOP_GRACE, self.tasks.wait()).await.is_err() {
            tracing::debug!("an admin connection did not end in time");
        }
    }
}

fn router(state: AdminState) -> Router {
    Router::new()
        .route("/healthz", get(health::alive))
        .route("/readyz", get(health::ready))
        .route("/metrics", get(metrics::scrape))
        .with_state(state)
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpStream;

    async fn get(address: SocketAddr, path: &str) -> String {
        let mut socket = TcpStream::connect(address).await.unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n");
        socket.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        socket.read_to_string(&mut answer).await.unwrap();
        answer
    }

    #[tokio::test]
    async fn health_readiness_and_metrics_are_answered_and_nothing_else() {
        let admin = AdminServer::start("127.0.0.1:0".parse().unwrap()).await.unwrap();
        let meters = metrics::Meters::new();
        meters.statement().succeeded();
        assert!(get(admin.address(), "/healthz").await.starts_with("HTTP/1.1 200"));
        assert!(get(admin.address(), "/readyz").await.starts_with("HTTP/1.1 503"));
        let page = get(admin.address(), "/metrics").await;
        assert!(page.starts_with("HTTP/1.1 200"), "{page}");
        assert!(page.contains("statements_executed_total"), "{page}");
        assert!(page.contains("statement_duration_seconds_bucket"), "{page}");
        assert!(get(admin.address(), "/nothing").await.starts_with("HTTP/1.1 404"));
        admin.stop().await;
    }
}
