//! The threads that plan and run queries, apart from those that replicate and serve.
//!
//! Their stacks are large: planners recurse. A panic inside ends the statement, not the process. Leaves out
//! what runs. A crash does nothing to it.

use crate::engine::{BatchStream, Result};
use crate::env;
use futures::StreamExt;
use millstream_catalog::model::SqlState;
use millstream_sql::SqlError;
use parking_lot::Mutex;
use std::future::Future;
use tokio::runtime::{Handle, Runtime};
use tokio::sync::mpsc;
use tokio_util::task::AbortOnDropHandle;

/// Bytes of stack per thread; reserved, not used, until something recurses deeply.
const STACK_BYTES: usize = 32 << 20;
/// Batches a query may be ahead of its reader.
const BATCHES_AHEAD: usize = 2;

/// A pool of query threads.
#[derive(Debug)]
pub(crate) struct Compute {
    handle: Handle,
    runtime: Mutex<Option<Runtime>>,
}

fn died(error: tokio::task::JoinError) -> SqlError {
    if error.is_panic() {
        tracing::error!(%error, "a query thread panicked");
        return SqlError::internal("the statement hit a defect of the server and was stopped");
    }
    SqlError::new(SqlState::AdminShutdown, "terminating connection due to administrator command")
}

impl Compute {
    /// Starts `threads` threads.
    pub(crate) fn start(threads: usize) -> Result<Self> {
        let runtime = env::runtime("query", threads.max(1), STACK_BYTES).map_err(|error| {
            SqlError::new(SqlState::InsufficientResources, format!("no threads for queries: {error}"))
        })?;
        Ok(Self { handle: runtime.handle().clone(), runtime: Mutex::new(Some(runtime)) })
    }

    /// Runs `work` there; dropping the future stops it.
    pub(crate) async fn run<T: Send + 'static>(
        &self,
        work: impl Future<Output = Result<T>> + Send + 'static,
    ) -> Result<T> {
        AbortOnDropHandle::new(self.handle.spawn(work)).await.map_err(died)?
    }

    /// Runs `work` there when it is much, else at once: to change threads would take longer.
    pub(crate) async fn run_if<T: Send + 'static>(
        &self,
        is_much: bool,
        work: impl FnOnce() -> Result<T> + Send + 'static,
    ) -> Result<T> {
        if is_much { self.run(async move { work() }).await } else { work() }
    }

    /// Starts `work` there; aborting the handle stops it.
    pub(crate) fn spawn(&self, work: impl Future<Output = ()> + Send + 'static) -> tokio::task::JoinHandle<()> {
        self.handle.spawn(work)
    }

    /// Moves the work behind `stream` there, at most [`BATCHES_AHEAD`] batches before its reader.
    pub(crate) fn drive(&self, mut stream: BatchStream) -> BatchStream {
        let (send, receive) = mpsc::channel(BATCHES_AHEAD);
        let task = AbortOnDropHandle::new(self.handle.spawn(async move {
            while let Some(batch) = stream.next().await {
                if send.send(batch).await.is_err() {
                    return;
                }
            }
        }));
        let state = (receive, Some(task));
        Box::pin(futures::stream::unfold(state, |(mut receive, mut task)| async move {
            if let Some(batch) = receive.recv().await {
                return Some((batch, (receive, task)));
            }
            match task.take()?.await {
                Ok(()) => None,
                Err(error) => Some((Err(died(error)), (receive, None))),
            }
        }))
    }

    /// Stops all threads without waiting for what runs.
    pub(crate) fn stop(&self) {
        if let Some(runtime) = self.runtime.lock().take() {
            runtime.shutdown_background();
        }
    }
}

impl Drop for Compute {
    fn drop(&mut self) {
        self.stop();
    }
}
