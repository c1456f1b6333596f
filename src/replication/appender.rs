//! Forms entries out of waiting requests, proposes them, and answers each request.
//!
//! Owns the shard's queue and its bounds. A request that finds nothing on its way is encoded and proposed by
//! its own caller, with no hop to another task, unless more are about to follow it; what arrives meanwhile is proposed
//! by the appender's task when the entry before is committed. Encoding never runs on the Raft core. Leaves out the rules of
//! forming (`flow`). A caller that goes away does not undo its request.

use super::entry::{AppendWrite, EntryData, Operations, Part, StepWrite, Write, WriteBatch, WriteRows, Writes};
use super::error::ReplicationError;
use super::flow::{Flow, ReplySender, Request, Waiting};
use super::log_store::LogStore;
use super::raft::{EntryResponder, Raft, Reply, WriteResult};
use super::read_side::Failure;
use super::types::{Append, PartitionWrite};
use super::write_room::WriteRoom;
use crate::env;
use crate::storage::StorageError;
use arrow::array::RecordBatch;
use arrow::compute::concat_batches;
use futures::FutureExt as _;
use millstream_catalog::model::limit::APPEND_QUEUE_STATEMENTS_MAX;
use millstream_catalog::model::{Durability, PartitionId, RowCount, ShardId, TopicId};
use openraft::error::ClientWriteError;
use parking_lot::Mutex;
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, oneshot};

/// Entries of more bytes are encoded on a blocking thread.
const ENCODE_INLINE_BYTES: usize = 1 << 20;

/// Where the answer to a queued request comes.
pub(crate) type Answer = oneshot::Receiver<Result<Reply, ReplicationError>>;

/// Batches of as many rows stay by themselves.
const LARGE_ROWS: usize = 8 << 10;

/// The write path of one shard.
pub(crate) struct Appender {
    shard: ShardId,
    raft: Raft,
    flow: Mutex<Flow>,
    wake: Notify,
    room: WriteRoom,
    requests: Arc<Semaphore>,
    log: LogStore,
    failure: Failure,
    is_shutting_down: AtomicBool,
}

impl Appender {
    /// An appender and its task, which ends after [`Appender::close`].
    pub(crate) fn start(shard: ShardId, raft: Raft, log: LogStore, failure: Failure, room: WriteRoom) -> Arc<Self> {
        let appender = Arc::new(Self {
            shard,
            raft,
            flow: Mutex::default(),
            wake: Notify::new(),
            room,
            requests: Arc::new(Semaphore::new(APPEND_QUEUE_STATEMENTS_MAX)),
            log,
            failure,
            is_shutting_down: AtomicBool::new(false),
        });
        let task = Arc::clone(&appender);
        // Ends by itself after `close`.
        let _task = env::spawn("appender", async move { task.run().await });
        appender
    }

    /// What came in by `receiver`.
    pub(crate) async fn answer(&self, receiver: Answer) -> Result<Reply, ReplicationError> {
        receiver.await.unwrap_or_else(|_| Err(self.stopped()))
    }

    /// Waits for space in the queue. Requests queued one after the other are carried out in that order.
    ///
    /// # Cancellation
    /// Before the request is queued nothing happens; after that it is carried out unobserved.
    pub(crate) async fn queue(self: &Arc<Self>, request: Request, bytes: usize) -> Result<Answer, ReplicationError> {
        let (waiting, answer) = self.waiting(request, bytes).await?;
        let taken = {
            let (mut flow, now) = (self.flow.lock(), env::instant());
            flow.push(waiting);
            let taken = flow.take(now);
            if flow.gathering(now).is_some() {
                // It looks at the time.
                self.wake.notify_one();
            }
            taken
        };
        if let Some(taken) = taken {
            self.propose_detached(taken);
        }
        Ok(answer)
    }

    /// The same for a request that more will follow: they may share an entry, which the appender's task forms when it
    /// comes to run, at the latest when the caller waits.
    pub(crate) async fn queue_first(&self, request: Request, bytes: usize) -> Result<Answer, ReplicationError> {
        let (waiting, answer) = self.waiting(request, bytes).await?;
        let (mut flow, now) = (self.flow.lock(), env::instant());
        flow.push(waiting);
        if flow.is_ready(now) || flow.gathering(now).is_some() {
            self.wake.notify_one();
        }
        Ok(answer)
    }

    async fn waiting(&self, request: Request, bytes: usize) -> Result<(Waiting, Answer), ReplicationError> {
        let permits = self.acquire(request.takes_room().then_some(bytes)).await?;
        let (sender, receiver) = oneshot::channel();
        Ok((Waiting { request, bytes, reply: ReplySender { sender, _permits: permits } }, receiver))
    }

    async fn acquire(
        &self,
        bytes: Option<usize>,
    ) -> Result<(OwnedSemaphorePermit, Option<OwnedSemaphorePermit>), ReplicationError> {
        let requests = Arc::clone(&self.requests).acquire_owned().await.map_err(|_| self.stopped())?;
        let Some(bytes) = bytes else { return Ok((requests, None)) };
        let bytes = self.room.acquire(bytes).await.ok_or_else(|| self.stopped())?;
        Ok((requests, Some(bytes)))
    }

    /// Why nothing more is answered.
    pub(crate) fn stopped(&self) -> ReplicationError {
        if let Some(damage) = self.failure.damage() {
            return damage.clone().into();
        }
        match self.failure.reason() {
            Some(reason) => ReplicationError::Stopped { shard: self.shard, reason: reason.to_string() },
            None if self.is_shutting_down.load(Ordering::Acquire) => ReplicationError::ShuttingDown,
            None => ReplicationError::Stopped { shard: self.shard, reason: "its Raft core ended".to_owned() },
        }
    }

    /// Refuses further requests and those that wait.
    pub(crate) fn close(&self) {
        self.is_shutting_down.store(true, Ordering::Release);
        let waiting = self.flow.lock().close();
        for waiting in waiting {
            waiting.reply.send(Err(self.stopped()));
        }
        self.room.close();
        self.requests.close();
        self.wake.notify_one();
    }

    /// Whether nothing more is taken.
    pub(crate) fn is_closed(&self) -> bool {
        self.is_shutting_down.load(Ordering::Acquire)
    }

    /// Requests that wait, and their bytes.
    pub(crate) fn depth(&self) -> (usize, usize) {
        self.flow.lock().depth()
    }

    async fn run(self: Arc<Self>) {
        loop {
            let (taken, gathering) = {
                let (mut flow, now) = (self.flow.lock(), env::instant());
                (flow.take(now), flow.gathering(now))
            };
            match (taken, gathering) {
                (Some(taken), _) => Arc::clone(&self).propose(taken).await,
                (None, _) if self.is_shutting_down.load(Ordering::Acquire) => return,
                (None, None) => self.wake.notified().await,
                // Either way there may be an entry to form then.
                (None, Some(until)) => drop(tokio::time::timeout_at(until.into(), self.wake.notified()).await),
            }
        }
    }

    /// Proposes on the caller's time as far as that goes without waiting. The rest, if any, goes on in a task
    /// of its own, so that a caller that goes away takes no one's request with it.
    fn propose_detached(self: &Arc<Self>, taken: Vec<Waiting>) {
        let mut proposing = Box::pin(tokio::task::unconstrained(Arc::clone(self).propose(taken)));
        if proposing.as_mut().now_or_never().is_none() {
            let _task = env::spawn("propose", proposing);
        }
    }

    async fn propose(self: Arc<Self>, taken: Vec<Waiting>) {
        let bytes: usize = taken.iter().map(|waiting| waiting.bytes).sum();
        let frees_space = taken.iter().all(|waiting| waiting.request.frees_space());
        let formed = if bytes > ENCODE_INLINE_BYTES {
            let forming = env::spawn_blocking(move || form(taken)).await;
            forming.unwrap_or_else(|_| Err((FormError::Encode("encoding ended early".to_owned()), Vec::new())))
        } else {
            form(taken)
        };
        // Asked again here, because what was proposed meanwhile took its share.
        let check = if frees_space { LogStore::check_room_to_free } else { LogStore::check_room };
        let formed = formed.and_then(|(data, waiters)| match check(&self.log, data.len()) {
            Err(StorageError::DiskFull) => Err((FormError::DiskFull, waiters)),
            Ok(()) | Err(_) => Ok((data, waiters)),
        });
        match formed {
            Ok((data, waiters)) => {
                let responder = self.responder(waiters);
                self.log.set_alone(self.flow.lock().is_alone());
                // A core that ended drops the responder, and with it the callers' channels.
                let proposed = self.raft.client_write_ff(data, Some(responder)).await;
                let is_expected = self.is_shutting_down.load(Ordering::Acquire) || self.failure.damage().is_some();
                if let (Err(fatal), false) = (proposed, is_expected) {
                    self.failure.stop(&format!("shard {}: {fatal}", self.shard));
                }
            }
            Err((error, waiters)) => {
                for waiter in waiters {
                    waiter.send(Err(error.clone().into()));
                }
                self.settle(|flow| flow.committed(env::instant()) | flow.completed());
            }
        }
        self.settle(|flow| {
            flow.formed();
            flow.depth().0 > 0
        });
    }

    fn settle(&self, change: impl FnOnce(&mut Flow) -> bool) {
        let must_wake = change(&mut self.flow.lock());
        if must_wake {
            self.wake.notify_one();
        }
    }

    fn responder(self: &Arc<Self>, waiters: Vec<ReplySender>) -> EntryResponder<WriteResult> {
        let is_committed = Arc::new(AtomicBool::new(false));
        let in_flight = InFlight { appender: Arc::clone(self), is_committed: Arc::clone(&is_committed) };
        let appender = Arc::clone(self);
        EntryResponder::new(
            move || {
                is_committed.store(true, Ordering::Release);
                appender.settle(|flow| flow.committed(env::instant()));
            },
            move |result: WriteResult| {
                answer(in_flight.appender.shard, result, waiters);
                drop(in_flight);
            },
        )
    }
}

/// Counts an entry out of flight when its responder is gone, answered or not.
struct InFlight {
    appender: Arc<Appender>,
    is_committed: Arc<AtomicBool>,
}

impl Drop for InFlight {
    fn drop(&mut self) {
        let is_committed = self.is_committed.load(Ordering::Acquire);
        self.appender.settle(|flow| {
            if !is_committed {
                flow.committed(env::instant());
            }
            flow.completed()
        });
    }
}

fn answer(shard: ShardId, result: WriteResult, waiters: Vec<ReplySender>) {
    match result {
        Ok(response) => {
            for (waiter, reply) in waiters.into_iter().zip(response.data.0) {
                waiter.send(reply.map_err(ReplicationError::from));
            }
        }
        Err(ClientWriteError::LogEntryDiscarded(_)) => {
            for waiter in waiters {
                let reason = "another node leads it now; the outcome is unknown".to_owned();
                waiter.send(Err(ReplicationError::Stopped { shard, reason }));
            }
        }
        Err(_) => {
            for waiter in waiters {
                waiter.send(Err(ReplicationError::NoLeader(shard)));
            }
        }
    }
}

/// Why an entry was not proposed; each of its requests gets it.
#[derive(Debug, Clone)]
enum FormError {
    Encode(String),
    DiskFull,
}

impl From<FormError> for ReplicationError {
    fn from(error: FormError) -> Self {
        match error {
            FormError::Encode(text) => Self::Encode(text),
            FormError::DiskFull => Self::DiskFull,
        }
    }
}

type Formed = Result<(EntryData, Vec<ReplySender>), (FormError, Vec<ReplySender>)>;

/// Encodes the requests as one entry.
fn form(taken: Vec<Waiting>) -> Formed {
    let mut waiters = Vec::with_capacity(taken.len());
    let mut forming = Forming::default();
    let mut change = None;
    let durability = taken.iter().map(|waiting| waiting.request.durability());
    let durability = durability.fold(Durability::Async, Durability::and);
    for waiting in taken {
        waiters.push(waiting.reply);
        match waiting.request {
            Request::Append(append) => {
                let append = forming.append(append);
                forming.writes.push(Write::Append(append));
            }
            Request::Prepare(decider, append) => {
                let append = forming.append(append);
                forming.writes.push(Write::Prepare(decider, append));
            }
            Request::Stage(stage, parts) => {
                let parts = forming.parts(parts);
                forming.writes.push(Write::Stage(stage, parts));
            }
            Request::Abort(stage) => forming.writes.push(Write::Abort(stage)),
            Request::GiveUp(stage) => forming.writes.push(Write::GiveUp(stage)),
            Request::Commit(stage) => forming.writes.push(Write::Commit(stage)),
            Request::Decide(transaction) => forming.writes.push(Write::Decide(transaction)),
            Request::Forget(transaction) => forming.writes.push(Write::Forget(transaction)),
            Request::Step(step) => forming.step(step),
            Request::Checkpoint(checkpoint) => forming.writes.push(Write::Checkpoint(checkpoint)),
            Request::Take(take) => forming.writes.push(Write::Take(take)),
            Request::Change(it) => change = Some(it),
        }
    }
    let operations = match change {
        Some(change) => Ok(Operations::Change(change)),
        None => forming.finish().map(Operations::Writes),
    };
    match operations.and_then(EntryData::new) {
        Ok(data) => Ok((data.with_durability(durability), waiters)),
        Err(text) => Err((FormError::Encode(text), waiters)),
    }
}

/// Writes of an entry under construction: rows for one partition become one batch, whoever they come from, but for
/// batches that are large already: they are not copied.
#[derive(Default)]
struct Forming {
    /// Also by columns: some may have been made before one was added.
    by_partition: HashMap<(TopicId, PartitionId, usize), usize>,
    batches: Vec<FormingBatch>,
    writes: Vec<Write>,
}

struct FormingBatch {
    topic: TopicId,
    partition: PartitionId,
    rows: RowCount,
    parts: Vec<RecordBatch>,
}

impl Forming {
    fn append(&mut self, mut append: Append) -> AppendWrite {
        let has_guards = append.parts.iter().any(|part| part.guard.is_some());
        let guard = |part: &mut PartitionWrite| part.guard.take();
        let guards = if has_guards { append.parts.iter_mut().map(guard).collect() } else { Vec::new() };
        let parts = self.parts(std::mem::take(&mut append.parts));
        let Append { claims, commits, now, staged, .. } = append;
        AppendWrite { parts, guards, claims, commits, now, staged }
    }

    fn step(&mut self, step: super::types::Step) {
        let outputs = self.parts(step.outputs);
        self.writes.push(Write::Step(StepWrite {
            query: step.query,
            step: step.step,
            positions: step.positions,
            idle: step.idle,
            now: step.now,
            input_rows: step.input_rows,
            late_rows: step.late_rows,
            skipped_rows: step.skipped_rows,
            outputs,
        }));
    }

    fn parts(&mut self, writes: Vec<PartitionWrite>) -> Vec<Part> {
        writes.into_iter().map(|write| self.part(write)).collect()
    }

    fn part(&mut self, write: PartitionWrite) -> Part {
        let rows = RowCount::of(write.batch.num_rows());
        let (topic, partition) = (write.topic, write.partition);
        let key = (topic, partition, write.batch.num_columns());
        let is_large = write.batch.num_rows() >= LARGE_ROWS;
        if is_large {
            // What follows must not come before it.
            self.by_partition.remove(&key);
        }
        let next = self.batches.len();
        let number = if is_large { next } else { *self.by_partition.entry(key).or_insert(next) };
        if number == self.batches.len() {
            self.batches.push(FormingBatch { topic, partition, rows: RowCount::ZERO, parts: Vec::new() });
        }
        if let Some(batch) = self.batches.get_mut(number) {
            batch.rows = batch.rows.plus(rows);
            batch.parts.push(write.batch);
        }
        Part { batch: number, rows }
    }

    fn finish(self) -> Result<Writes, String> {
        let batch = |batch: FormingBatch| {
            let rows = match batch.parts.as_slice() {
                [one] => one.clone(),
                [first, ..] => concat_batches(&first.schema(), &batch.parts).map_err(|e| e.to_string())?,
                [] => return Err("a batch has no rows".to_owned()),
            };
            let FormingBatch { topic, partition, rows: count, .. } = batch;
            Ok(WriteBatch { topic, partition, rows: count, data: WriteRows::Decoded(rows) })
        };
        let batches = self.batches.into_iter().map(batch).collect::<Result<_, String>>()?;
        Ok(Writes { batches, writes: self.writes })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use arrow::array::{ArrayRef, Int64Array};

    #[test]
    fn large_batches_stay_by_themselves_and_in_their_order() {
        let write = |rows: usize| {
            let numbers: ArrayRef = Arc::new(Int64Array::from(vec![0; rows]));
            let batch = RecordBatch::try_from_iter([("n", numbers)]).unwrap();
            PartitionWrite { topic: TopicId::new(1), partition: PartitionId::new(0), batch, guard: None }
        };
        let mut forming = Forming::default();
        let parts = forming.parts([2, 1, LARGE_ROWS, 1, 1].map(write).to_vec());
        assert_eq!(parts.iter().map(|part| part.batch).collect::<Vec<_>>(), [0, 0, 1, 2, 2]);
        let counts: Vec<usize> = forming.finish().unwrap().batches.iter().map(|batch| batch.rows.as_usize()).collect();
        assert_eq!(counts, [3, LARGE_ROWS, 2]);
    }
}
