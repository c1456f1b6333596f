//! What callers hand to a shard and get back.
//!
//! Owns the shapes only; encoding is in `entry`, the rules are in `machine`. The engine builds and reads them.

use arrow::array::RecordBatch;
use bytes::Bytes;
use millstream_catalog::model::{
    ByteSize, Durability, EntryIndex, GroupEpoch, GroupName, Offset, PartitionId, ProducerId, QueryId, RowCount,
    Sequence, ShardId, StageId, StepNumber, Term, Timestamp, TopicId, TransactionId,
};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::sync::Arc;

/// Rows for one partition, in the stored schema of its topic.
#[derive(Debug, Clone)]
pub struct PartitionWrite {
    /// The topic.
    pub topic: TopicId,
    /// The partition.
    pub partition: PartitionId,
    /// The rows, in the topic's stored schema.
    pub batch: RecordBatch,
    /// What the rows were computed from; `None` when from nothing that is stored.
    pub guard: Option<Guard>,
}

/// What changed rows were computed from: the rows of the same keys before `position`.
///
/// Where a row of one of the keys came to the partition since, the whole write is refused
/// ([`ReplicationError::Changed`](super::ReplicationError::Changed)), when it is applied: so equally on every replica.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Guard {
    /// The end of the partition as it was read.
    pub position: Offset,
    /// The columns of the topic's key.
    pub key: Arc<[usize]>,
}

/// What an idempotent producer says of the rows of one statement: the first one's number, and how many they are.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProducerClaim {
    /// Who writes.
    pub producer: ProducerId,
    /// Where; numbers count by producer and topic.
    pub topic: TopicId,
    /// The first row's number.
    pub sequence: Sequence,
    /// How many rows.
    pub rows: RowCount,
}

/// How far a consumer group is in one partition.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Serialize, Deserialize)]
pub struct GroupPosition {
    /// The next event to read.
    pub offset: Offset,
    /// Rows of that event that were taken, of a query that gives several for one.
    #[serde(default)]
    pub rows: u32,
}

impl From<Offset> for GroupPosition {
    fn from(offset: Offset) -> Self {
        Self { offset, rows: 0 }
    }
}

/// Where a consumer group goes on in one partition.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct GroupOffset {
    /// What to read next.
    pub position: GroupPosition,
    /// Since when it is read by whom it is read now: a commit carries it. 0 while nobody has begun to read it, and the
    /// position was committed by hand.
    pub epoch: GroupEpoch,
}

impl GroupOffset {
    /// Whether somebody has begun to read there. What was only committed by hand says nothing of other partitions.
    pub(crate) fn is_begun(&self) -> bool {
        self.epoch != GroupEpoch::default()
    }
}

/// How far a consumer group has come in one partition.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GroupCommit {
    /// The group.
    pub group: GroupName,
    /// The topic.
    pub topic: TopicId,
    /// The partition.
    pub partition: PartitionId,
    /// The epoch in which it was read; `None` commits whoever reads it.
    pub epoch: Option<GroupEpoch>,
    /// What to read next.
    pub position: GroupPosition,
}

/// Partitions that a new reader takes for a consumer group, or that are set to other offsets: from then on nobody commits
/// who read them before.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GroupTake {
    /// The group.
    pub group: GroupName,
    /// The wall clock, by which groups expire.
    pub now: Timestamp,
    /// The partitions; with none the group counts as used.
    pub partitions: Vec<TakePartition>,
}

/// One of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TakePartition {
    /// The topic.
    pub topic: TopicId,
    /// The partition.
    pub partition: PartitionId,
    /// What becomes of it.
    pub taking: Taking,
}

/// What becomes of a group's offset in a partition.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Taking {
    /// A new reader goes on where the group was.
    Read,
    /// The group begins here, if nothing is committed; whoever reads goes on reading.
    Begin(Offset),
    /// The group goes on here.
    Set(Offset),
}

/// What is appended at once, all or nothing: the writes of a statement or transaction.
#[derive(Debug, Clone, Default)]
pub struct Append {
    /// The rows.
    pub parts: Vec<PartitionWrite>,
    /// What producers say of them; empty when none does.
    pub claims: Vec<ProducerClaim>,
    /// How far consumer groups have come with it.
    pub commits: Vec<GroupCommit>,
    /// The wall clock, by which producers and groups expire.
    pub now: Timestamp,
    /// What was staged for it before; its rows come first.
    pub staged: Option<StageId>,
    /// When it is acknowledged. What was staged is always synced.
    pub durability: Durability,
}

impl Append {
    /// Whether rows come with it.
    pub(crate) fn brings_rows(&self) -> bool {
        !self.parts.is_empty() || self.staged.is_some()
    }

    /// Whether it may be refused for what was written before.
    pub(crate) fn is_conditional(&self) -> bool {
        !self.claims.is_empty() || !self.commits.is_empty() || self.parts.iter().any(|part| part.guard.is_some())
    }
}

impl From<Vec<PartitionWrite>> for Append {
    fn from(parts: Vec<PartitionWrite>) -> Self {
        Self { parts, ..Self::default() }
    }
}

/// Where it is recorded that a transaction over several shards commits: without a record it does not.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Decider {
    /// The shard that keeps the record.
    pub(crate) shard: ShardId,
    /// The transaction, among those of that shard.
    pub(crate) transaction: TransactionId,
}

/// Where the rows of one statement or step went.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Appended {
    /// The entry they came with.
    pub index: EntryIndex,
    /// The offset of the first row of each part, in the order of the parts; empty when all were stored before.
    pub offsets: Vec<Offset>,
}

/// A position in one partition: the next offset to read.
pub type PartitionPosition = (TopicId, PartitionId, Offset);

/// One step of a continuous query: what it has read and what it writes, committed together.
#[derive(Debug, Clone)]
pub struct Step {
    /// The query.
    pub query: QueryId,
    /// The number after the last committed step.
    pub step: StepNumber,
    /// Positions after this step, of the partitions that moved.
    pub positions: Vec<PartitionPosition>,
    /// Partitions that were taken for idle.
    pub idle: Vec<(TopicId, PartitionId)>,
    /// The wall clock the step saw.
    pub now: Timestamp,
    /// The rows it writes.
    pub outputs: Vec<PartitionWrite>,
    /// Rows it read.
    pub input_rows: RowCount,
    /// Rows it read that came too late.
    pub late_rows: RowCount,
    /// Rows it read that could not be taken.
    pub skipped_rows: RowCount,
    /// When it counts as committed. What a crash takes back of it is computed again.
    pub durability: Durability,
}

/// What a replay of one step needs: which input, which idle partitions, which time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StepRecord {
    /// The step.
    pub step: StepNumber,
    /// Positions after the step, of the partitions that moved.
    pub positions: Vec<PartitionPosition>,
    /// Partitions that were taken for idle.
    pub idle: Vec<(TopicId, PartitionId)>,
    /// The wall clock the step saw.
    pub now: Timestamp,
}

/// The saved state of a query's operators after a step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Checkpoint {
    /// The query.
    pub query: QueryId,
    /// The step after which the state was taken.
    pub step: StepNumber,
    /// Positions after that step.
    pub positions: BTreeMap<(TopicId, PartitionId), Offset>,
    /// The pipeline whose state this is.
    pub fingerprint: String,
    /// The state.
    pub state: Bytes,
    /// The files it names, ascending: those of the query in the shard's directory.
    pub files: Vec<u64>,
}

/// How far a continuous query is.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct QueryProgress {
    /// The last committed step; 0 when there was none.
    pub step: StepNumber,
    /// Positions after it.
    pub positions: BTreeMap<(TopicId, PartitionId), Offset>,
    /// Rows read in total.
    pub input_rows: RowCount,
    /// Rows written in total.
    pub output_rows: RowCount,
    /// Rows that came too late in total.
    pub late_rows: RowCount,
    /// Rows that could not be taken in total.
    pub skipped_rows: RowCount,
    /// The last checkpoint.
    pub checkpoint: Option<Checkpoint>,
    /// The steps after the checkpoint, in order, to replay the operators' state after a restart.
    pub since_checkpoint: Vec<StepRecord>,
}

/// A shard as system views show it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ShardStatus {
    /// The shard.
    pub shard: ShardId,
    /// Whether this node leads it.
    pub is_leader: bool,
    /// The current term.
    pub term: Term,
    /// The last entry of the log.
    pub log_last: Option<EntryIndex>,
    /// The last applied entry.
    pub applied: Option<EntryIndex>,
    /// The last entry whose effects are in the manifest, so that the log no longer needs it.
    pub sealed: Option<EntryIndex>,
    /// The last entry that was removed from the log.
    pub purged: Option<EntryIndex>,
    /// Requests that wait to be proposed.
    pub waiting_requests: RowCount,
    /// Bytes of these requests.
    pub waiting_bytes: ByteSize,
    /// Bytes of rows that are not in segments.
    pub unsealed_bytes: ByteSize,
    /// Whether segments are being written now.
    pub is_sealing: bool,
    /// Bytes of segments that merging and compaction replaced since the start.
    pub bytes_rewritten: ByteSize,
}
