//! The openraft types of this node, its settings, and the responder of an entry.
//!
//! Owns the choices: one leader per term, entries that carry encoded bytes, replies per request. Leaves out
//! storage (`log_store`, `machine`) and peers (`network`).

use super::codec::{DecodeError, Decoder, Encoder};
use super::entry::EntryData;
use super::error::Refused;
use super::machine::Machine;
use super::types::{Appended, GroupOffset};
use bytes::Bytes;
use millstream_catalog::model::{EntryIndex, StageId, Term};
use openraft::raft::responder::Responder;
use openraft::vote::RaftLeaderId;
use openraft::{BasicNode, Config, OptionalSend, RaftTypeConfig, SnapshotPolicy};
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// The types of every shard's Raft group.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct TypeConfig;

// By hand, because `declare_raft_types!` takes no responder of ours.
impl RaftTypeConfig for TypeConfig {
    type D = EntryData;
    type R = Replies;
    type NodeId = u64;
    type Node = BasicNode;
    type Term = u64;
    type LeaderId = openraft::impls::leader_id_std::LeaderId<u64, u64>;
    type Vote = openraft::impls::Vote<Self::LeaderId>;
    type Payload = openraft::EntryPayload<EntryData, u64, BasicNode>;
    type Entry = openraft::Entry<<Self::LeaderId as RaftLeaderId>::Committed, Self::Payload>;
    type AsyncRuntime = super::runtime::Runtime;
    type Responder<T>
        = EntryResponder<T>
    where
        T: OptionalSend + 'static;
    type Batch<T>
        = openraft::impls::InlineBatch<T>
    where
        T: OptionalSend + 'static;
    type ErrorSource = openraft::impls::BoxedErrorSource;
}

/// The handle of one shard's group.
pub(crate) type Raft = openraft::Raft<TypeConfig, Machine>;
pub(crate) type LogId = openraft::alias::LogIdOf<TypeConfig>;
pub(crate) type Vote = openraft::alias::VoteOf<TypeConfig>;
pub(crate) type Entry = openraft::alias::EntryOf<TypeConfig>;
pub(crate) type Payload = openraft::alias::PayloadOf<TypeConfig>;
pub(crate) type Membership = openraft::Membership<u64, BasicNode>;
pub(crate) type StoredMembership = openraft::alias::StoredMembershipOf<TypeConfig>;
pub(crate) type SnapshotMeta = openraft::alias::SnapshotMetaOf<TypeConfig>;
pub(crate) type WriteResult = openraft::raft::ClientWriteResult<TypeConfig>;

/// What the state machine answers to one request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Reply {
    /// The change is made, by this entry.
    Done(EntryIndex),
    /// The rows are stored and visible.
    Appended(Appended),
    /// The rows wait for the commit of this transaction.
    Staged(StageId),
    /// The catalog changed.
    Catalog(millstream_catalog::Reply),
    /// What is committed of the partitions that were taken, in their order.
    Taken(Vec<GroupOffset>),
}

/// One answer per request of an entry, in order.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Replies(pub(crate) Vec<Result<Reply, Refused>>);

/// Takes the outcome of one proposed entry to those who wait for it.
///
/// Dropped without an outcome when the core stops.
pub(crate) struct EntryResponder<T> {
    committed: Option<Box<dyn FnOnce() + Send>>,
    complete: Box<dyn FnOnce(T) + Send>,
}

impl<T> EntryResponder<T> {
    /// `committed` runs on the Raft core once the entry is on a quorum, `complete` with the outcome; both
    /// must be short and must not wait.
    pub(crate) fn new(committed: impl FnOnce() + Send + 'static, complete: impl FnOnce(T) + Send + 'static) -> Self {
        Self { committed: Some(Box::new(committed)), complete: Box::new(complete) }
    }
}

impl<T: Send + 'static> Responder<TypeConfig, T> for EntryResponder<T> {
    fn on_commit(&mut self, _log_id: LogId) {
        if let Some(committed) = self.committed.take() {
            committed();
        }
    }

    fn on_complete(self, result: T) {
        (self.complete)(result);
    }
}

/// Entries that stay in the log although the manifest has them; openraft needs the last one's term.
pub(crate) const LOG_ENTRIES_KEPT: u64 = 1;

/// The settings of every shard's group.
///
/// openraft's own snapshots are off: a snapshot is our manifest, taken when segments are sealed, and the
/// log behind it is purged. A follower is never sent a snapshot because it lags, only because entries are gone.
pub(crate) fn config() -> Config {
    Config {
        cluster_name: "millstream".to_owned(),
        heartbeat_interval: 150,
        election_timeout_min: 500,
        election_timeout_max: 1_000,
        snapshot_policy: SnapshotPolicy::Never,
        replication_lag_threshold: u64::MAX,
        max_in_snapshot_log_to_keep: LOG_ENTRIES_KEPT,
        purge_batch_size: 1,
        enable_pre_vote: Some(true),
        // An election at start appends an entry of the new term, which commits everything before it.
        enable_leader_restore: Some(false),
        ..Config::default()
    }
}

/// Settings checked by openraft.
pub(crate) fn config_checked() -> Result<Arc<Config>, String> {
    config().validate().map(Arc::new).map_err(|e| e.to_string())
}

pub(crate) fn log_id(term: Term, index: EntryIndex) -> LogId {
    LogId::new_term_index(term.value(), index.value())
}
pub(crate) fn index_of(id: &LogId) -> EntryIndex {
    EntryIndex::new(id.index())
}
pub(crate) fn term_of(id: &LogId) -> Term {
    Term::new(id.committed_leader_id().term)
}

const VERSION: u8 = 1;

/// `version u8, term u64, index u64`.
pub(crate) fn encode_log_id(id: &LogId) -> Bytes {
    let mut encoder = Encoder::with_capacity(17);
    encoder.u8(VERSION);
    encoder.u64(term_of(id).value());
    encoder.u64(id.index());
    encoder.finish()
}

pub(crate) fn decode_log_id(bytes: Bytes) -> Result<LogId, DecodeError> {
    let mut decoder = Decoder::new(bytes);
    decoder.version(VERSION)?;
    let id = log_id(Term::new(decoder.u64()?), EntryIndex::new(decoder.u64()?));
    decoder.finish()?;
    Ok(id)
}

/// `version u8, term u64, node u64, committed u8`.
pub(crate) fn encode_vote(vote: &Vote) -> Bytes {
    let mut encoder = Encoder::with_capacity(18);
    encoder.u8(VERSION);
    encoder.u64(vote.leader_id.term);
    encoder.u64(vote.leader_id.voted_for);
    encoder.u8(u8::from(vote.committed));
    encoder.finish()
}

pub(crate) fn decode_vote(bytes: Bytes) -> Result<Vote, DecodeError> {
    let mut decoder = Decoder::new(bytes);
    decoder.version(VERSION)?;
    let (term, node) = (decoder.u64()?, decoder.u64()?);
    let vote = match decoder.u8()? {
        0 => Vote::new(term, node),
        1 => Vote::new_committed(term, node),
        kind => return Err(DecodeError::Kind(kind)),
    };
    decoder.finish()?;
    Ok(vote)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_are_accepted_by_openraft() {
        config_checked().expect("valid settings");
    }

    #[test]
    fn votes_and_log_ids_survive_encoding() {
        for vote in [Vote::new(3, 7), Vote::new_committed(u64::MAX, 0)] {
            assert_eq!(decode_vote(encode_vote(&vote)), Ok(vote));
        }
        let id = log_id(Term::new(5), EntryIndex::new(9));
        assert_eq!(decode_log_id(encode_log_id(&id)), Ok(id));
        assert_eq!(decode_log_id(Bytes::from_static(&[2, 0])), Err(DecodeError::Version(2)));
        assert_eq!(decode_log_id(Bytes::from_static(&[1, 0])), Err(DecodeError::Short));
    }
}
