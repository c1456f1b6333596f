//! openraft's own suite against the log store; the state machine beside it is a plain one in memory.

use crate::replication::log_store::LogStore;
use crate::replication::machine::SnapshotFiles;
use crate::replication::raft::{LogId, Replies, SnapshotMeta, StoredMembership, TypeConfig};
use crate::replication::read_side::Failure;
use crate::storage::FaultDisk;
use crate::storage::wal::{Wal, WalOptions};
use futures::{Stream, TryStreamExt};
use millstream_catalog::model::{ByteSize, ShardId};
use openraft::alias::SnapshotOf;
use openraft::storage::{EntryResponder, RaftSnapshotBuilder, RaftStateMachine};
use openraft::testing::log::{StoreBuilder, Suite};
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
        let store = LogStore::open(wal.clone(), ShardId::new(1), Default::default(), Failure::new()).expect("empty");
        Ok((Closing(wal), store, Plain::default()))
    }
}

#[tokio::test]
async fn the_log_store_passes_the_suite_of_openraft() {
    Suite::test_all(Builder).await.expect("every case");
}
