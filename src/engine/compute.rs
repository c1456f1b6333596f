//! The threads that plan and run queries, apart from those that replicate and serve.
//!
//! Their stacks are large: planners recurse. A panic inside ends the statement, not the process. A statement that works
//! for long without waiting keeps its thread, but another takes its place in the pool, so that all statements go on and
//! the system shares the processors among them. Leaves out what runs. A crash does nothing to it.

use crate::engine::{Result, RowBatch, RowStream};
use crate::env;
use futures::StreamExt;
use millstream_catalog::model::SqlState;
use millstream_sql::SqlError;
use millstream_sql::exec::{BatchStream, Interrupts, StopOnDrop};
use parking_lot::Mutex;
use std::cell::Cell;
use std::future::Future;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::runtime::{Handle, Runtime};
use tokio::sync::mpsc;
use tokio_util::task::AbortOnDropHandle;

/// Bytes of stack per thread; reserved, not used, until something recurses deeply.
const STACK_BYTES: usize = 32 << 20;
/// Batches a query may be ahead of its reader.
const BATCHES_AHEAD: usize = 2;

/// How long a statement may keep its place in the pool while another waits for one.
const TURN: Duration = Duration::from_millis(50);
/// The same when no statement is seen to wait; one that runs may still have left work behind on the thread.
const TURN_MAX: Duration = Duration::from_millis(250);

thread_local! {
    /// When this thread began, or last gave up its place.
    static TURN_BEGAN: Cell<Option<Instant>> = const { Cell::new(None) };
}

/// For a statement that begins.
pub(crate) fn interrupts() -> Arc<Interrupts> {
    let began = env::instant();
    Arc::new(Interrupts::new(move || {
        let now = env::instant();
        let turn = TURN_BEGAN.get().unwrap_or(began).max(began);
        let held = now.saturating_duration_since(turn);
        if held >= TURN_MAX || (held >= TURN && env::is_place_wanted()) {
            env::give_up_place();
            TURN_BEGAN.set(Some(env::instant()));
        }
    }))
}

/// A pool of query threads.
#[derive(Debug)]
pub(crate) struct Compute {
    handle: Handle,
    runtime: Mutex<Option<Runtime>>,
}

fn died(error: tokio::task::JoinError) -> SqlError {
    if error.is_panic() {
        tracing::error!(%error, "a query thread panicked");
        return defect();
    }
    SqlError::new(SqlState::AdminShutdown, "terminating connection due to administrator command")
}

/// The statement panicked.
pub(crate) fn defect() -> SqlError {
    SqlError::internal("the statement hit a defect of the server and was stopped")
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
        if is_much { Box::pin(self.run(async move { work() })).await } else { work() }
    }

    /// Starts `work` there; aborting the handle stops it.
    pub(crate) fn spawn(&self, work: impl Future<Output = ()> + Send + 'static) -> tokio::task::JoinHandle<()> {
        self.handle.spawn(work)
    }

    /// Moves the work behind `stream` there, at most [`BATCHES_AHEAD`] batches before its reader, and holds `stop` until
    /// that is dropped.
    pub(crate) fn drive(&self, mut stream: BatchStream, stop: StopOnDrop) -> RowStream {
        let (send, receive) = mpsc::channel(BATCHES_AHEAD);
        let task = AbortOnDropHandle::new(self.handle.spawn(async move {
            while let Some(batch) = stream.next().await {
                if send.send(batch.map(RowBatch::from)).await.is_err() {
                    return;
                }
            }
        }));
        let state = (receive, Some(task), stop);
        Box::pin(futures::stream::unfold(state, |(mut receive, mut task, stop)| async move {
            if let Some(batch) = receive.recv().await {
                return Some((batch, (receive, task, stop)));
            }
            match task.take()?.await {
                Ok(()) => None,
                Err(error) => Some((Err(died(error)), (receive, None, stop))),
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
