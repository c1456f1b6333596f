//! Continuous queries of this node: which run, how far they are, and waiting for them.
//!
//! One task per running query, on the query threads. Leaves out one query's steps (`task`) and definitions
//! (`ddl`). After a crash `start` brings every running query back; each goes on where it was.

mod errors;
mod replay;
mod state;
mod task;

use crate::engine::{Engine, Result, read_error};
pub(crate) use errors::{QUERY_ERRORS, ensure as ensure_errors, writes};
use futures::FutureExt;
use millstream_catalog::model::{ByteSize, Offset, PartitionId, QueryId, SqlState, StepNumber, Timestamp, TopicId};
use millstream_catalog::{Command, Query, QueryState, Snapshot};
use millstream_sql::SqlError;
use millstream_sql::stream::OperatorShown;
use parking_lot::Mutex;
use std::collections::{BTreeSet, HashMap};
use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;
use task::QueryTask;
pub(crate) use task::plan;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

/// The tasks of running queries.
#[derive(Debug, Default)]
pub(crate) struct Supervisor {
    tasks: tokio::sync::Mutex<HashMap<QueryId, Running>>,
    /// Held by whoever changes a relation: one change at a time reaches the shards.
    pub(crate) altering: tokio::sync::Mutex<()>,
    statuses: Mutex<HashMap<QueryId, Arc<Mutex<Status>>>>,
}

#[derive(Debug)]
struct Running {
    stop: CancellationToken,
    handle: JoinHandle<()>,
}

/// What a running query tells of itself.
#[derive(Debug, Clone, Default)]
pub(crate) struct Status {
    /// Its watermark.
    pub(crate) watermark: Option<Timestamp>,
    /// Bytes its operators hold.
    pub(crate) state_bytes: ByteSize,
    /// Its operators, each with the rows a second that came to it of late.
    pub(crate) operators: Vec<(OperatorShown, f64)>,
    /// Why it waits to be tried again.
    pub(crate) failure: Option<String>,
}

impl Supervisor {
    /// The status of a query that runs or ran since the start.
    pub(crate) fn status(&self, query: QueryId) -> Status {
        self.statuses.lock().get(&query).map(|status| status.lock().clone()).unwrap_or_default()
    }
}

/// Starts every running query, and then keeps the tasks in step with the catalog.
pub(crate) async fn start(engine: &Arc<Engine>) -> Result<()> {
    for shard in engine.replication().shards() {
        if let Err(error) = shard.remove_state() {
            tracing::warn!(%error, "files of queries that are gone could not be removed");
        }
    }
    refresh(engine).await
}

/// Stops every task; their queries stay running in the catalog.
pub(crate) async fn stop(engine: &Engine) {
    let mut tasks = engine.queries.tasks.lock().await;
    for (_, running) in tasks.drain() {
        running.halt().await;
    }
}

impl Running {
    async fn halt(self) {
        self.stop.cancel();
        if let Err(error) = self.handle.await {
            tracing::debug!(%error, "a query task was already gone");
        }
    }
}

/// Starts tasks of queries that should run and have none, stops those that should not.
pub(crate) async fn refresh(engine: &Arc<Engine>) -> Result<()> {
    if engine.shutdown.is_cancelled() {
        return Ok(());
    }
    let mut tasks = engine.queries.tasks.lock().await;
    let catalog = engine.catalog();
    let should_run = |id: &QueryId| catalog.query_by_id(*id).is_some_and(|query| query.state == QueryState::Running);
    let halted: Vec<QueryId> =
        tasks.iter().filter(|(id, task)| !should_run(id) || task.handle.is_finished()).map(|(id, _)| *id).collect();
    for id in halted {
        if let Some(running) = tasks.remove(&id) {
            running.halt().await;
        }
    }
    // One whose progress is not there yet is started by the session that makes it.
    let is_made = |query: &Query| engine.shard_of_query(query).is_ok_and(|shard| shard.progress(query.id).is_some());
    for query in catalog.queries().filter(|query| query.state == QueryState::Running && is_made(query)) {
        tasks.entry(query.id).or_insert_with(|| spawn(engine, query));
    }
    engine.queries.statuses.lock().retain(|id, _| catalog.query_by_id(*id).is_some());
    Ok(())
}

/// Runs `work` while the queries that read `topics` stand still with their state saved, so that none of them would
/// read an event again after a restart. One that cannot be brought to that is left as it is.
pub(crate) async fn while_settled<T>(
    engine: &Arc<Engine>,
    topics: &BTreeSet<TopicId>,
    work: impl Future<Output = Result<T>>,
) -> Result<T> {
    let mut tasks = engine.queries.tasks.lock().await;
    let catalog = engine.catalog();
    for query in catalog.queries().filter(|query| query.sources.iter().any(|source| topics.contains(source))) {
        if let Some(running) = tasks.remove(&query.id) {
            running.halt().await;
        }
        let (owner, settled) = (Arc::clone(engine), Arc::clone(query));
        if let Err(error) = engine.compute.run(async move { QueryTask::settle(&owner, &settled).await }).await {
            tracing::warn!(query = %query.name, %error, "a continuous query could not save its state");
        }
    }
    let result = work.await;
    drop(tasks);
    refresh(engine).await?;
    result
}

/// Runs `work` while the query stands still with its state saved, by a pipeline of the fingerprint it is given.
///
/// # Errors
/// When it cannot be brought to that; then nothing was done.
pub(crate) async fn while_saved<T, F: Future<Output = Result<T>>>(
    engine: &Arc<Engine>,
    id: QueryId,
    work: impl FnOnce(String) -> F,
) -> Result<T> {
    let mut tasks = engine.queries.tasks.lock().await;
    if let Some(running) = tasks.remove(&id) {
        running.halt().await;
    }
    let saved = match engine.catalog().query_by_id(id).cloned() {
        Some(query) => {
            let owner = Arc::clone(engine);
            engine.compute.run(async move { QueryTask::save_whole(&owner, &query).await }).await
        }
        None => Err(SqlError::new(SqlState::UndefinedObject, format!("query {id} does not exist"))),
    };
    let result = match saved {
        Ok(fingerprint) => work(fingerprint).await,
        Err(error) => Err(error),
    };
    drop(tasks);
    let started = refresh(engine).await;
    result.and_then(|done| started.map(|()| done))
}

/// Starts the queries that write `topic` again, so that they know its partitions.
pub(crate) async fn restart_writers(engine: &Arc<Engine>, topic: TopicId) -> Result<()> {
    let mut tasks = engine.queries.tasks.lock().await;
    let catalog = engine.catalog();
    for query in catalog.queries().filter(|query| query.sink == topic) {
        if let Some(running) = tasks.remove(&query.id) {
            running.halt().await;
        }
    }
    drop(tasks);
    refresh(engine).await
}

fn spawn(engine: &Arc<Engine>, query: &Arc<Query>) -> Running {
    let stop = CancellationToken::new();
    let status = Arc::new(Mutex::new(Status::default()));
    engine.queries.statuses.lock().insert(query.id, Arc::clone(&status));
    let (engine, query, token) = (Arc::clone(engine), Arc::clone(query), stop.clone());
    let compute = Arc::clone(&engine);
    let handle = compute.compute.spawn(async move {
        let mut pause = RETRY_FIRST;
        while let Some(error) = live(&engine, &query, &status, &token).await {
            if token.is_cancelled() || engine.shutdown.is_cancelled() {
                return;
            }
            if may_pass(error.sqlstate) {
                tracing::warn!(query = %query.name, sqlstate = %error.sqlstate, %error, "a continuous query is tried again");
                status.lock().failure = Some(format!("{}: {error} (it is tried again)", error.sqlstate));
            } else if fail(&engine, &query, error).await {
                return;
            }
            tokio::select! {
                () = token.cancelled() => return,
                () = tokio::time::sleep(pause) => pause = (pause * 2).min(RETRY_LAST),
            }
        }
    });
    Running { stop, handle }
}

/// How long a definition waits for its query to begin.
const BEGIN_TIME_MAX: Duration = Duration::from_secs(5);
/// How long a query waits for what may pass, at first and at most.
const RETRY_FIRST: Duration = Duration::from_millis(200);
const RETRY_LAST: Duration = Duration::from_secs(30);

/// Whether what stopped a query may be over by itself: the disk is full, or memory is.
fn may_pass(sqlstate: SqlState) -> bool {
    matches!(sqlstate, SqlState::DiskFull | SqlState::OutOfMemory | SqlState::InsufficientResources)
}

/// Runs a query from its last committed step until it is stopped, or fails.
async fn live(
    engine: &Arc<Engine>,
    query: &Arc<Query>,
    status: &Arc<Mutex<Status>>,
    token: &CancellationToken,
) -> Option<SqlError> {
    let life = async {
        match QueryTask::recover(engine, query, Arc::clone(status), token).await {
            Ok(task) => {
                status.lock().failure = None;
                task.run(token).await.err()
            }
            Err(error) => Some(error),
        }
    };
    AssertUnwindSafe(life).catch_unwind().await.unwrap_or_else(|_| {
        tracing::error!(query = %query.name, "a continuous query panicked");
        Some(SqlError::internal("the query hit a defect of the server and was stopped"))
    })
}

/// Puts a query that cannot go on into state `error`. False when that could not be stored: then it is tried again.
async fn fail(engine: &Engine, query: &Query, error: SqlError) -> bool {
    let current = engine.catalog();
    // With a shard that is out of service it waits, and goes on when the shard does.
    let is_here = engine.shard_of_query(query).is_ok();
    if !is_here || current.query_by_id(query.id).is_none_or(|now| now.state != QueryState::Running) {
        return true;
    }
    tracing::warn!(query = %query.name, sqlstate = %error.sqlstate, %error, detail = error.detail, "a continuous query stopped");
    let message = match &error.detail {
        Some(detail) => format!("{} ({detail})", error.message),
        None => error.message,
    };
    let state = QueryState::Error { sqlstate: error.sqlstate, message };
    let command = Command::SetQueryState { id: query.id, state };
    match engine.replication().catalog().propose(command).await {
        Ok(_) => true,
        Err(error) => {
            tracing::warn!(query = %query.name, %error, "the state of a stopped query could not be stored");
            false
        }
    }
}

/// Waits until every running query has taken in all that was committed before.
///
/// What a query reads is complete before the query is looked at.
///
/// # Errors
/// 57P01 when the server shuts down meanwhile.
pub(crate) async fn flush(engine: &Engine) -> Result<()> {
    for id in in_order(&engine.catalog()) {
        let catalog = engine.catalog();
        let Some(query) = catalog.query_by_id(id) else { continue };
        let Ok(shard) = engine.shard_of_query(query) else { continue };
        // Where a reader ends that begins now: the newest rows may be compacted away.
        let applied = shard.partitions().applied();
        let mut ends: Vec<(TopicId, PartitionId, Offset)> = Vec::new();
        for source in query.sources.iter().filter_map(|source| catalog.relation_by_id(*source)) {
            for id in source.partitions() {
                let Some(partition) = shard.partitions().get(source.id, id) else { continue };
                let end = partition.view().offset_end_at(applied);
                ends.push((source.id, id, end.map_err(|error| read_error(&source.name, error))?));
            }
        }
        reached(engine, id, &ends).await?;
    }
    Ok(())
}

/// Every query after those that write what it reads.
fn in_order(catalog: &Snapshot) -> Vec<QueryId> {
    let mut done: Vec<QueryId> = Vec::new();
    let mut left: Vec<&Arc<Query>> = catalog.queries().collect();
    while !left.is_empty() {
        let waits = |query: &Query| {
            left.iter()
                .any(|other| other.id != query.id && query.sources.iter().any(|source| writes(catalog, other, *source)))
        };
        let mut ready: Vec<QueryId> = left.iter().filter(|query| !waits(query)).map(|query| query.id).collect();
        if ready.is_empty() {
            // There are no circles; if there were, each would come once still.
            ready = left.iter().map(|query| query.id).collect();
        }
        left.retain(|query| !ready.contains(&query.id));
        done.extend(ready);
    }
    done
}

/// Waits a moment for the first step of a query just made: what it has without any event is there then.
pub(crate) async fn begun(engine: &Engine, id: QueryId) -> Result<()> {
    // On a full disk it begins later.
    tokio::time::timeout(BEGIN_TIME_MAX, reached(engine, id, &[])).await.unwrap_or(Ok(()))
}

/// Waits until a query has taken its first step and all before `ends`, or runs no more.
async fn reached(engine: &Engine, id: QueryId, ends: &[(TopicId, PartitionId, Offset)]) -> Result<()> {
    let catalog = engine.catalog();
    let Some(query) = catalog.query_by_id(id) else { return Ok(()) };
    let Ok(shard) = engine.shard_of_query(query) else { return Ok(()) };
    let mut applied = shard.partitions().subscribe_applied();
    let mut versions = engine.replication().catalog().subscribe();
    loop {
        let runs = engine.catalog().query_by_id(id).is_some_and(|query| query.state == QueryState::Running);
        let is_done = shard.progress(id).is_none_or(|progress| {
            let is_past = |(topic, id, end): &(TopicId, PartitionId, Offset)| {
                progress.positions.get(&(*topic, *id)).copied().unwrap_or(Offset::ZERO) >= *end
            };
            progress.step > StepNumber::default() && ends.iter().all(is_past)
        });
        if !runs || is_done {
            return Ok(());
        }
        tokio::select! {
            changed = applied.changed() => changed.map_err(|_| stopped())?,
            changed = versions.changed() => changed.map_err(|_| stopped())?,
            () = engine.shutdown.cancelled() => return Err(stopped()),
        }
    }
}

fn stopped() -> SqlError {
    SqlError::new(SqlState::AdminShutdown, "the server is shutting down")
}
