//! Appends for which the WAL had no room: kept in order, and appended again once there is some.
//!
//! Owns the difference between a full disk, which passes, and a failed one, which stops the node: openraft takes
//! every error of an append for the end, so a full disk must not reach it. New statements are refused before
//! they are proposed; this is for those that were on their way. Leaves out what room is (`storage::wal`). A crash
//! loses them; none was acknowledged.

use super::raft::TypeConfig;
use super::read_side::Failure;
use crate::storage::StorageError;
use crate::storage::wal::{Urgency, Wal, WalRecord};
use millstream_catalog::model::{ByteSize, ShardId};
use openraft::storage::IOFlushed;
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{Notify, oneshot};

/// How long until the WAL is asked for room again.
const RETRY: Duration = Duration::from_millis(200);

/// Entries on their way into the WAL.
pub(crate) struct EntryAppend {
    /// The index of the first.
    pub(crate) first: u64,
    pub(crate) records: Vec<WalRecord>,
    pub(crate) flushed: IOFlushed<TypeConfig>,
    pub(crate) urgency: Urgency,
}

impl EntryAppend {
    fn bytes(&self) -> ByteSize {
        let bytes = |record: &WalRecord| match record {
            WalRecord::Entry { payload, .. } => ByteSize::of(payload.len()),
            _ => ByteSize::ZERO,
        };
        self.records.iter().map(bytes).fold(ByteSize::ZERO, ByteSize::plus)
    }
}

/// The appends of one shard that wait for room.
#[derive(Default)]
pub(crate) struct Stall {
    waiting: Mutex<Waiting>,
    wake: Notify,
}

#[derive(Default)]
struct Waiting {
    appends: BTreeMap<u64, EntryAppend>,
    /// One is out of `appends` and on its way again.
    is_retrying: bool,
}

impl Waiting {
    fn is_stalled(&self) -> bool {
        self.is_retrying || !self.appends.is_empty()
    }
}

impl std::fmt::Debug for Stall {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Stall({} appends)", self.waiting.lock().appends.len())
    }
}

impl Stall {
    /// Whether anything waits.
    pub(crate) fn is_stalled(&self) -> bool {
        self.waiting.lock().is_stalled()
    }

    /// Appends to the WAL, behind what waits.
    pub(crate) fn append(self: &Arc<Self>, wal: &Wal, shard: ShardId, failure: &Failure, append: EntryAppend) {
        let mut waiting = self.waiting.lock();
        if waiting.is_stalled() {
            waiting.appends.insert(append.first, append);
            return;
        }
        drop(waiting);
        let EntryAppend { first, records, flushed, urgency } = append;
        let kept = records.clone();
        let stall = Arc::clone(self);
        let failure = failure.clone();
        let done = move |result: Result<(), StorageError>| {
            stall.settle(EntryAppend { first, records: kept, flushed, urgency }, result, &failure);
        };
        wal.append(shard, records, urgency, Box::new(done));
    }

    /// Tells openraft how an append ended, unless it is to be tried again.
    fn settle(&self, append: EntryAppend, result: Result<(), StorageError>, failure: &Failure) {
        let Err(error) = result else { return append.flushed.io_completed(Ok(())) };
        let mut waiting = self.waiting.lock();
        let is_waiting = match error {
            StorageError::DiskFull => true,
            // It follows one that was refused.
            StorageError::OutOfOrder { .. } => waiting.is_stalled(),
            _ => false,
        };
        if is_waiting {
            waiting.appends.insert(append.first, append);
            drop(waiting);
            self.wake.notify_one();
            return;
        }
        drop(waiting);
        failure.report(&error);
        append.flushed.io_completed(Err(io::Error::other(error)));
    }

    /// Appends what waits, one after the other, whenever there is room. Runs until it is aborted.
    pub(crate) async fn run(self: Arc<Self>, wal: Wal, shard: ShardId, failure: Failure) {
        loop {
            self.wake.notified().await;
            tracing::warn!(shard = shard.value(), "no space left for the write-ahead log, entries wait");
            while self.is_stalled() {
                if !self.retry(&wal, shard, &failure).await {
                    tokio::time::sleep(RETRY).await;
                }
            }
            tracing::info!(shard = shard.value(), "the write-ahead log has space again");
        }
    }

    /// Appends the first of what waits; whether that went well.
    async fn retry(&self, wal: &Wal, shard: ShardId, failure: &Failure) -> bool {
        let append = {
            let mut waiting = self.waiting.lock();
            let Some(first) = waiting.appends.first_entry() else { return true };
            if wal.check_room(first.get().bytes()).is_err_and(|error| matches!(error, StorageError::DiskFull)) {
                return false;
            }
            let append = first.remove();
            waiting.is_retrying = true;
            append
        };
        let (done, synced) = oneshot::channel();
        let send = move |result| {
            // The receiver is gone only when this task is.
            let _ = done.send(result);
        };
        wal.append(shard, append.records.clone(), Urgency::Batched, Box::new(send));
        let result = synced.await.unwrap_or(Err(StorageError::Closed));
        let went_well = result.is_ok();
        self.settle(append, result, failure);
        self.waiting.lock().is_retrying = false;
        went_well
    }
}
