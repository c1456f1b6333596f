//! openraft's own suite against the log store; the state machine beside it is a plain one in memory.

use crate::replication::Checkpoint;
use crate::replication::entry::{EntryData, Operations, Write, Writes};
use crate::replication::log_store::LogStore;
use crate::replication::machine::SnapshotFiles;
use crate::replication::raft::{Entry, LogId, Replies, SnapshotMeta, StoredMembership, TypeConfig, log_id};
use crate::replication::read_side::Failure;
use crate::storage::FaultDisk;
use crate::storage::wal::{Wal, WalOptions};
use futures::{FutureExt, Stream, TryStreamExt};
use millstream_catalog::model::{ByteSize, EntryIndex, QueryId, ShardId, StepNumber, Term};
use openraft::alias::SnapshotOf;
use openraft::entry::RaftEntry;
use openraft::storage::{
    EntryResponder, IOFlushed, RaftLogReader, RaftLogStorage, RaftSnapshotBuilder, RaftStateMachine,
};
use openraft::testing::log::{StoreBuilder, Suite};
use openraft::type_config::TypeConfigExt;
use openraft::{EntryPayload, OptionalSend, StorageError};
use std::io;
use std::path::Path;
use std::sync::Arc;

#[derive(Debug, Default, Clone)]
struct Plain {
    applied: Option<LogId>,
    membership: StoredMembership,
    snapshot: Option<SnapshotMeta>,
}

impl RaftStateMachine<TypeConfig> for Plain {
    type SnapshotData = SnapshotFiles;
    type SnapshotBuilder = Built;

    async fn applied_state(&mut self) -> Result<(Option<LogId>, StoredMembership), io::Error> {
        Ok((self.applied, self.membership.clone()))
    }
    async fn apply<Strm>(&mut self, mut entries: Strm) -> Result<(), io::Error>
    where
        Strm: Stream<Item = Result<EntryResponder<TypeConfig>, io::Error>> + Unpin + OptionalSend,
    {
        while let Some((entry, responder)) = entries.try_next().await? {
            self.applied = Some(entry.log_id);
            if let EntryPayload::Membership(membership) = entry.payload {
                self.membership = StoredMembership::new(Some(entry.log_id), membership);
            }
            if let Some(responder) = responder {
                responder.send(Replies::default());
            }
        }
        Ok(())
    }
    async fn get_snapshot_builder(&mut self) -> Built {
        let meta = SnapshotMeta { last_log_id: self.applied, last_membership: self.membership.clone() };
        self.snapshot = Some(meta.clone());
        Built(meta)
    }
    async fn install_snapshot(&mut self, meta: &SnapshotMeta, _: SnapshotFiles) -> Result<(), io::Error> {
        self.applied = meta.last_log_id;
        self.membership = meta.last_membership.clone();
        self.snapshot = Some(meta.clone());
        Ok(())
    }
    async fn get_current_snapshot(&mut self) -> Result<Option<SnapshotOf<TypeConfig, SnapshotFiles>>, io::Error> {
        Ok(self.snapshot.clone().map(|meta| openraft::Snapshot { meta, snapshot: SnapshotFiles }))
    }
}

struct Built(SnapshotMeta);

impl RaftSnapshotBuilder<TypeConfig> for Built {
    type SnapshotData = SnapshotFiles;
    async fn build_snapshot(&mut self) -> Result<SnapshotOf<TypeConfig, SnapshotFiles>, io::Error> {
        Ok(openraft::Snapshot { meta: self.0.clone(), snapshot: SnapshotFiles })
    }
}

struct Builder;

/// Closes the log of one test.
struct Closing(Wal);

impl Drop for Closing {
    fn drop(&mut self) {
        self.0.close();
    }
}

impl StoreBuilder<TypeConfig, LogStore, Plain, Closing> for Builder {
    async fn build(&self) -> Result<(Closing, LogStore, Plain), StorageError<TypeConfig>> {
        let options = WalOptions { file_bytes: ByteSize::new(1 << 20), ..WalOptions::default() };
        let (wal, _) = Wal::open(Arc::new(FaultDisk::new()), Path::new("/wal"), options).expect("opens");
        let store = LogStore::open(wal.clone(), ShardId::new(1), Default::default(), Failure::new(), Arc::default())
            .expect("empty");
        Ok((Closing(wal), store, Plain::default()))
    }
}

#[tokio::test]
async fn the_log_store_passes_the_suite_of_openraft() {
    Suite::test_all(Builder).await.expect("every case");
}

#[tokio::test]
async fn entries_without_room_wait_and_go_in_order() {
    let disk = FaultDisk::new();
    let options = || WalOptions { file_bytes: ByteSize::new(1 << 20), ..WalOptions::default() };
    let (wal, _) = Wal::open(Arc::new(disk.clone()), Path::new("/wal"), options()).expect("opens");
    let failure = Failure::new();
    let mut store = LogStore::open(wal.clone(), ShardId::new(1), Default::default(), failure.clone(), Arc::default())
        .expect("empty");
    let retry = crate::env::spawn("retry", store.clone().retry_stalled());
    let mut flushed = Vec::new();
    for index in 0..60 {
        if index == 3 {
            disk.set_capacity(Some(disk.bytes_used()));
        }
        let data = EntryData::new(Operations::Writes(Writes {
            batches: Vec::new(),
            writes: vec![Write::Checkpoint(Checkpoint {
                query: QueryId::new(1),
                step: StepNumber::new(index),
                positions: Default::default(),
                fingerprint: String::new(),
                state: vec![7; 100_000].into(),
                files: Vec::new(),
            })],
        }));
        let payload = EntryPayload::Normal(data.expect("encodes"));
        let entry = Entry::new(log_id(Term::new(1), EntryIndex::new(index)), payload);
        let (done, synced) = TypeConfig::oneshot();
        store.append([entry], IOFlushed::signal(done)).await.expect("queued");
        flushed.push(synced);
    }
    let deadline = crate::env::instant() + std::time::Duration::from_secs(20);
    while store.check_room(0).is_ok() {
        assert!(crate::env::instant() < deadline, "60 entries do not fit");
        tokio::task::yield_now().await;
    }
    let last = flushed.pop().expect("60");
    let mut last = Box::pin(last);
    assert!(last.as_mut().now_or_never().is_none(), "none waits");
    assert_eq!(failure.reason(), None);
    // What waits can be read, as openraft wants.
    assert_eq!(store.try_get_log_entries(0..100).await.expect("reads").len(), 60);
    disk.set_capacity(None);
    while store.check_room(0).is_err() {
        assert!(crate::env::instant() < deadline, "there is space again");
        tokio::task::yield_now().await;
    }
    last.await.expect("answered").expect("synced");
    for synced in flushed {
        synced.await.expect("answered").expect("synced");
    }
    retry.abort();
    wal.close();
    let (wal, mut shards) = Wal::open(Arc::new(disk), Path::new("/wal"), options()).expect("opens");
    let recovered = shards.remove(&ShardId::new(1)).expect("shard");
    let mut store = LogStore::open(wal.clone(), ShardId::new(1), recovered, failure, Arc::default()).expect("readable");
    let entries = store.try_get_log_entries(0..100).await.expect("reads");
    assert!(entries.iter().map(RaftEntry::index).eq(0..60));
    wal.close();
}
