//! The payload of a log entry: its bytes, and the operations in them.
//!
//! The bytes (`encoding`) are made once, by the appender, and are what the WAL and peers get. Leaves out what
//! operations do (`machine`). On the leader the decoded operations travel with the bytes, so that apply
//! uses the very batches that were appended; after a restart they are decoded when applied.

mod encoding;
#[cfg(test)]
mod tests;

pub(super) use self::encoding::{
    BLANK_PAYLOAD, decode_checkpoint, decode_files, decode_idle, decode_membership, decode_payload,
    decode_position_map, decode_positions, decode_producer, encode_checkpoint, encode_files, encode_idle,
    encode_payload, encode_position_map, encode_positions,
};
use self::encoding::{decode, encode, is_rewrite};
use super::codec::DecodeError;
use super::ipc::decode_batch;
use super::types::{Checkpoint, Decider, GroupCommit, GroupTake, Guard, PartitionPosition, ProducerClaim};
use crate::storage::batch::with_schema;
use crate::storage::{Rewrite, TopicStorage};
use arrow::array::RecordBatch;
use arrow::datatypes::SchemaRef;
use bytes::Bytes;
use millstream_catalog::Command;
use millstream_catalog::model::{
    Durability, GroupName, PartitionId, QueryId, RowCount, StageId, StepNumber, Timestamp, TopicId, TransactionId,
};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::fmt;
use std::sync::Arc;

/// The operations of one entry.
#[derive(Debug)]
pub(crate) enum Operations {
    /// Statements and steps that were waiting together. They change no definition.
    Writes(Writes),
    /// One change of definitions, alone in its entry.
    Change(Change),
}

/// Rows, and the statements and steps they belong to.
#[derive(Debug, Default)]
pub(crate) struct Writes {
    pub(crate) batches: Vec<WriteBatch>,
    pub(crate) writes: Vec<Write>,
}

/// Rows for one partition from one or more writes, in their order.
#[derive(Debug)]
pub(crate) struct WriteBatch {
    pub(crate) topic: TopicId,
    pub(crate) partition: PartitionId,
    pub(crate) rows: RowCount,
    pub(crate) data: WriteRows,
}

/// The rows themselves.
#[derive(Debug)]
pub(crate) enum WriteRows {
    /// As appended on this node.
    Decoded(RecordBatch),
    /// As found in the log: an IPC message without its schema.
    Encoded(Bytes),
}

impl WriteRows {
    /// The batch, decoded with the topic's stored schema if need be.
    pub(crate) fn batch(&self, schema: &SchemaRef) -> Result<RecordBatch, DecodeError> {
        match self {
            Self::Decoded(batch) => fit(batch.clone(), schema),
            Self::Encoded(bytes) => fit(decode_batch(bytes.clone(), schema)?, schema),
        }
    }
}

/// Rows made before a column was added get it.
fn fit(batch: RecordBatch, schema: &SchemaRef) -> Result<RecordBatch, DecodeError> {
    if batch.num_columns() == schema.fields().len() {
        return Ok(batch);
    }
    with_schema(batch, schema).map_err(|error| DecodeError::Damaged(error.to_string()))
}

/// The next rows of a batch that belong to one write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Part {
    /// Index into [`Writes::batches`].
    pub(crate) batch: usize,
    pub(crate) rows: RowCount,
}

/// One request of the write path; each gets its own reply.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Write {
    Append(AppendWrite),
    /// Rows of a transaction that will commit, or be given up, with a later write; `None` begins one.
    Stage(Option<StageId>, Vec<Part>),
    /// Gives a transaction up, prepared or not.
    Abort(StageId),
    /// Gives a transaction up that is not prepared: of one that is, its decider knows.
    GiveUp(StageId),
    /// An append that is checked now, and carried out or given up when a transaction over several shards ends.
    Prepare(Decider, AppendWrite),
    /// Carries out what was prepared.
    Commit(StageId),
    /// The transaction commits, in every shard that prepared it.
    Decide(TransactionId),
    /// All of them have carried it out.
    Forget(TransactionId),
    Step(StepWrite),
    Checkpoint(Checkpoint),
    /// Gives partitions to another reader of their group.
    Take(GroupTake),
}

/// A [`super::Append`] whose rows are parts of the entry's batches.
#[derive(Debug, PartialEq, Eq, Default)]
pub(crate) struct AppendWrite {
    pub(crate) parts: Vec<Part>,
    /// Per part; empty when there is none. The append is refused when keys of rows were written since it was computed.
    pub(crate) guards: Vec<Option<Guard>>,
    pub(crate) claims: Vec<ProducerClaim>,
    pub(crate) commits: Vec<GroupCommit>,
    pub(crate) now: Timestamp,
    /// The transaction it commits.
    pub(crate) staged: Option<StageId>,
}

impl AppendWrite {
    /// Whether nothing but a missing topic stands against it.
    fn is_unconditional(&self) -> bool {
        self.guards.is_empty() && self.claims.is_empty() && self.commits.is_empty() && self.staged.is_none()
    }
}

/// A [`super::Step`] whose outputs are parts of the entry's batches.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct StepWrite {
    pub(crate) query: QueryId,
    pub(crate) step: StepNumber,
    pub(crate) positions: Vec<PartitionPosition>,
    pub(crate) idle: Vec<(TopicId, PartitionId)>,
    pub(crate) now: Timestamp,
    pub(crate) input_rows: RowCount,
    pub(crate) late_rows: RowCount,
    pub(crate) skipped_rows: RowCount,
    pub(crate) outputs: Vec<Part>,
}

/// A change of definitions.
#[derive(Debug, Clone)]
pub(crate) enum Change {
    CreateTopic(TopicStorage),
    DropTopic(TopicId),
    CreateQuery(QueryId, Vec<PartitionPosition>),
    DropQuery(QueryId),
    Catalog(Box<Command>),
    /// Seal after this entry, whatever its size: so that a quiet shard does not hold back the shared log.
    Seal,
    /// Adds columns and partitions, and changes names and options.
    AlterTopic(TopicStorage),
    /// Replaces segments by others with the same rows, or the last of each key.
    Rewrite(Vec<Rewrite>),
    /// Forgets the checkpoint of a query that will not run again: it holds back no events any more.
    EndQuery(QueryId),
    /// Moves log starts forward, each at most to the first event that a query would read again after a restart.
    MoveStarts(Vec<PartitionPosition>),
    /// Moves the log starts of every partition of these topics to their ends as of this entry, all or none.
    Truncate(Vec<TopicId>),
    /// Forgets consumer groups; only those that were not used since, if a time is given.
    DropGroups(Vec<GroupName>, Option<Timestamp>),
}

/// What openraft carries: bytes, and on the leader the operations they encode.
#[derive(Clone)]
pub(crate) struct EntryData {
    bytes: Bytes,
    operations: Option<Arc<Operations>>,
    /// Whether its log must sync it before it counts as stored. Not part of the bytes: in a log it is stored already.
    durability: Durability,
}

impl EntryData {
    /// Encodes `operations`.
    ///
    /// # Errors
    /// A text when Arrow cannot encode a batch.
    pub(crate) fn new(operations: Operations) -> Result<Self, String> {
        let bytes = encode(&operations)?;
        Ok(Self { bytes, operations: Some(Arc::new(operations)), durability: Durability::Sync })
    }
    /// The same entry, stored as `durability` says.
    pub(crate) fn with_durability(self, durability: Durability) -> Self {
        Self { durability, ..self }
    }
    /// Whether it must be synced before it counts as stored.
    pub(crate) fn durability(&self) -> Durability {
        self.durability
    }
    /// Bytes in the log.
    pub(crate) fn len(&self) -> usize {
        self.bytes.len()
    }
    /// Whether it replaces segments, which takes files to be written before it is applied.
    pub(crate) fn is_rewrite(&self) -> bool {
        is_rewrite(&self.bytes)
    }
    /// The operations.
    pub(crate) fn operations(&self) -> Result<Arc<Operations>, DecodeError> {
        match &self.operations {
            Some(operations) => Ok(Arc::clone(operations)),
            None => Ok(Arc::new(decode(self.bytes.clone())?)),
        }
    }
}

impl fmt::Debug for EntryData {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "EntryData({} bytes)", self.bytes.len())
    }
}

impl fmt::Display for EntryData {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes", self.bytes.len())
    }
}

impl PartialEq for EntryData {
    fn eq(&self, other: &Self) -> bool {
        self.bytes == other.bytes
    }
}

// openraft asks for serde; entries travel and rest as the bytes above, so this is never on a hot path.
impl Serialize for EntryData {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(&self.bytes)
    }
}

impl<'de> Deserialize<'de> for EntryData {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let bytes = Vec::<u8>::deserialize(deserializer)?;
        Ok(Self { bytes: Bytes::from(bytes), operations: None, durability: Durability::Sync })
    }
}
