//! Why replication refused or lost a request.
//!
//! Owns the one error of this layer with its SQLSTATE, and [`Refused`], the deterministic refusals of the
//! state machine, which are replies and leave the state as it was. The engine turns them into SQL errors.

use crate::storage::StorageError;
use millstream_catalog::CatalogError;
use millstream_catalog::model::limit::STAGED_PARTS_MAX;
use millstream_catalog::model::{
    ByteSize, GroupName, Offset, PartitionId, ProducerId, QueryId, Sequence, ShardId, SqlState, StageId, StepNumber,
    TopicId,
};
use serde::{Deserialize, Serialize};

/// Why the state machine refused a request. A function of the log alone, so equal on every replica.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
pub(crate) enum Refused {
    #[error("topic {0} does not exist")]
    NoTopic(TopicId),
    #[error("topic {0} has no partition {1}")]
    NoPartition(TopicId, PartitionId),
    #[error("rows of topic {0} changed meanwhile")]
    Changed(TopicId),
    #[error("continuous query {0} does not exist")]
    NoQuery(QueryId),
    #[error("continuous query {query}: step {step} does not follow step {last}")]
    StaleStep { query: QueryId, step: StepNumber, last: StepNumber },
    #[error("continuous query {query}: checkpoint of step {step} is not newer than the last, or of a step not taken")]
    StaleCheckpoint { query: QueryId, step: StepNumber },
    #[error("continuous query {query} took {steps} steps without a checkpoint")]
    CheckpointOverdue { query: QueryId, steps: usize },
    #[error("continuous query {query} has yet to save what it made of the events of topic {topic}")]
    EventsNeeded { query: QueryId, topic: TopicId },
    #[error("producer {producer}, topic {topic}: row {sequence} does not follow the rows written before")]
    SequenceGap { producer: ProducerId, topic: TopicId, sequence: Sequence, next: Option<Sequence> },
    #[error("too many producers")]
    ProducersFull,
    #[error("transaction {0} was given up")]
    NoStage(StageId),
    #[error(transparent)]
    Catalog(CatalogError),
    #[error("too many parts of open transactions")]
    StagesFull,
    #[error("group {group}: partition {partition} of topic {topic} has another reader")]
    Fenced { group: GroupName, topic: TopicId, partition: PartitionId },
    #[error("group {group}: nothing is committed for partition {partition} of topic {topic}")]
    NoOffset { group: GroupName, topic: TopicId, partition: PartitionId },
    #[error("offset {offset} is above the end {end} of partition {partition} of topic {topic}")]
    AboveEnd { topic: TopicId, partition: PartitionId, offset: Offset, end: Offset },
    #[error("group {0} is held by a transaction")]
    GroupHeld(GroupName),
    #[error("too many committed offsets")]
    GroupsFull,
}

/// Why a request was not carried out, or why replication did not start.
#[derive(Debug, thiserror::Error)]
pub enum ReplicationError {
    /// The topic was dropped, or never was.
    #[error("topic {0} does not exist")]
    NoTopic(TopicId),
    /// The topic has fewer partitions.
    #[error("topic {0} has no partition {1}")]
    NoPartition(TopicId, PartitionId),
    /// The rows have a column that was added to the definition and not yet to the topic; nothing was written.
    #[error("topic {0} does not have all columns of the rows yet")]
    TopicBehind(TopicId),
    /// The rows do not have the stored schema of the topic; nothing was written.
    #[error("rows for topic {topic} do not have its columns: {reason}")]
    SchemaMismatch {
        /// The topic.
        topic: TopicId,
        /// Where they differ.
        reason: String,
    },
    /// The rows of one statement are too many for one entry.
    #[error("statement has {bytes} bytes of rows, more than {limit}")]
    TooLarge {
        /// Bytes of its rows.
        bytes: ByteSize,
        /// The limit.
        limit: ByteSize,
    },
    /// Rows that the write was computed from changed since; nothing was written.
    #[error("could not serialize access due to concurrent update")]
    Changed(TopicId),
    /// The query was dropped, or never was.
    #[error("continuous query {0} does not exist")]
    NoQuery(QueryId),
    /// Someone else advanced the query: read its progress and go on from there.
    #[error("continuous query {query}: step {step} does not follow step {last}")]
    StaleStep {
        /// The query.
        query: QueryId,
        /// The refused step.
        step: StepNumber,
        /// The last committed step.
        last: StepNumber,
    },
    /// The checkpoint is not newer than the last, or of a step that was not taken.
    #[error("continuous query {query}: checkpoint of step {step} is not newer than the last, or of a step not taken")]
    StaleCheckpoint {
        /// The query.
        query: QueryId,
        /// The refused checkpoint's step.
        step: StepNumber,
    },
    /// The query must commit a checkpoint before its next step.
    #[error("continuous query {query} took {steps} steps without a checkpoint")]
    CheckpointOverdue {
        /// The query.
        query: QueryId,
        /// Steps since the last checkpoint.
        steps: usize,
    },
    /// A query would read the events again after a restart: it must commit a checkpoint first.
    #[error("continuous query {query} has yet to save what it made of the events of topic {topic}")]
    EventsNeeded {
        /// The query.
        query: QueryId,
        /// The topic.
        topic: TopicId,
    },
    /// Rows of an idempotent producer do not follow those it wrote before; nothing was written.
    #[error("producer \"{producer}\": row {sequence} does not follow the rows written before")]
    SequenceGap {
        /// Who writes.
        producer: ProducerId,
        /// Where.
        topic: TopicId,
        /// The number of the first row.
        sequence: Sequence,
        /// The number it should have; `None` when the producer is not known.
        next: Option<Sequence>,
    },
    /// The transaction was given up; nothing of it was written.
    #[error("transaction {0} was given up")]
    NoStage(StageId),
    /// Open transactions of the shard have as many parts in files as they may; nothing was written.
    #[error("open transactions have written rows in more than {STAGED_PARTS_MAX} parts")]
    StagesFull,
    /// The shard remembers as many producers as it may.
    #[error("too many producers")]
    ProducersFull,
    /// Somebody else reads the partition for the group since, or its offsets were reset; nothing was written.
    #[error("consumer group \"{group}\": a partition was given to another member before its events were committed")]
    Fenced {
        /// The group.
        group: GroupName,
        /// The topic.
        topic: TopicId,
        /// The partition.
        partition: PartitionId,
    },
    /// The group has no committed offset in a partition.
    #[error("consumer group \"{group}\" has no committed offset for partition {partition}")]
    NoOffset {
        /// The group.
        group: GroupName,
        /// The topic.
        topic: TopicId,
        /// The partition.
        partition: PartitionId,
    },
    /// An offset lies behind the partition's end; nothing was written.
    #[error("offset {offset} is above the end of partition {partition}, which is {end}")]
    AboveEnd {
        /// The topic.
        topic: TopicId,
        /// The partition.
        partition: PartitionId,
        /// The offset.
        offset: Offset,
        /// The end.
        end: Offset,
    },
    /// A transaction over several shards is about to commit offsets of the group.
    #[error("a transaction commits offsets of consumer group \"{0}\" just now")]
    GroupHeld(GroupName),
    /// The shard remembers as many committed offsets as it may.
    #[error("too many committed offsets of consumer groups")]
    GroupsFull,
    /// The catalog refused the command.
    #[error(transparent)]
    Catalog(#[from] CatalogError),
    /// The node does not lead the shard now; nothing was written.
    #[error("shard {0} has no leader on this node")]
    NoLeader(ShardId),
    /// The disk is full; nothing was written.
    #[error("no space left for the write-ahead log")]
    DiskFull,
    /// The node stopped because of a fatal error; whether the request was carried out is unknown.
    #[error("shard {shard} stopped: {reason}")]
    Stopped {
        /// The shard.
        shard: ShardId,
        /// The fact that stopped it.
        reason: String,
    },
    /// The node is shutting down; whether the request was carried out is unknown.
    #[error("the server is shutting down")]
    ShuttingDown,
    /// Rows or a definition could not be encoded; nothing was written.
    #[error("cannot encode a log entry: {0}")]
    Encode(String),
    /// The storage did not open.
    #[error(transparent)]
    Storage(#[from] StorageError),
    /// The data directory was in use, but its log has nothing.
    #[error("the directory was in use before, but its write-ahead log (\"wal\") is missing or empty")]
    LogGone,
    /// Shards of the data directory would be left out.
    #[error("the directory has {there} shards of partitions: start with --shards {there} or more, not {asked}")]
    FewerShards {
        /// The shards asked for.
        asked: u32,
        /// Those there.
        there: u32,
    },
    /// A shard did not start.
    #[error("shard {shard} did not start: {reason}")]
    Start {
        /// The shard.
        shard: ShardId,
        /// The fact.
        reason: String,
    },
}

impl ReplicationError {
    /// The SQLSTATE a client sees.
    pub fn sqlstate(&self) -> SqlState {
        match self {
            Self::NoTopic(_) | Self::NoPartition(..) | Self::TopicBehind(_) => SqlState::UndefinedTable,
            Self::SchemaMismatch { .. } | Self::Encode(_) => SqlState::InternalError,
            Self::TooLarge { .. } | Self::CheckpointOverdue { .. } | Self::StagesFull => SqlState::ProgramLimitExceeded,
            Self::NoQuery(_) => SqlState::UndefinedObject,
            Self::StaleStep { .. } | Self::StaleCheckpoint { .. } | Self::Changed(_) | Self::GroupHeld(_) => {
                SqlState::SerializationFailure
            }
            Self::EventsNeeded { .. } => SqlState::ObjectInUse,
            Self::Catalog(error) => catalog_sqlstate(error),
            Self::SequenceGap { .. } => SqlState::ObjectNotInPrerequisiteState,
            Self::NoStage(_) => SqlState::SerializationFailure,
            Self::ProducersFull | Self::GroupsFull => SqlState::ConfigurationLimitExceeded,
            Self::Fenced { .. } => SqlState::GroupMemberFenced,
            Self::NoOffset { .. } => SqlState::NoCommittedOffset,
            Self::AboveEnd { .. } => SqlState::OffsetAboveLogEnd,
            Self::NoLeader(_) => SqlState::NoLeader,
            Self::DiskFull => SqlState::DiskFull,
            Self::Stopped { .. } | Self::Start { .. } => SqlState::IoError,
            Self::ShuttingDown => SqlState::AdminShutdown,
            Self::Storage(error) => error.sqlstate(),
            Self::LogGone => SqlState::DataCorrupted,
            Self::FewerShards { .. } => SqlState::InvalidParameterValue,
        }
    }

    /// Whether the same request may succeed later, on this node.
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::NoLeader(_)
            | Self::DiskFull
            | Self::EventsNeeded { .. }
            | Self::ProducersFull
            | Self::StagesFull
            | Self::GroupHeld(_)
            | Self::GroupsFull => true,
            Self::NoTopic(_)
            | Self::NoPartition(..)
            | Self::TopicBehind(_)
            | Self::SchemaMismatch { .. }
            | Self::TooLarge { .. }
            | Self::Changed(_)
            | Self::NoQuery(_)
            | Self::StaleStep { .. }
            | Self::StaleCheckpoint { .. }
            | Self::CheckpointOverdue { .. }
            | Self::SequenceGap { .. }
            | Self::NoStage(_)
            | Self::Fenced { .. }
            | Self::NoOffset { .. }
            | Self::AboveEnd { .. }
            | Self::Catalog(_)
            | Self::Stopped { .. }
            | Self::ShuttingDown
            | Self::Encode(_)
            | Self::Storage(_)
            | Self::LogGone
            | Self::FewerShards { .. }
            | Self::Start { .. } => false,
        }
    }
}

impl ReplicationError {
    /// Whether it is known that the request is not in the log. What a shard that stopped says is not: the entry may have
    /// been what stopped it.
    pub(crate) fn is_unwritten(&self) -> bool {
        matches!(self, Self::NoLeader(_) | Self::DiskFull | Self::Encode(_))
    }
}

fn catalog_sqlstate(error: &CatalogError) -> SqlState {
    match error {
        CatalogError::Exists(_) => SqlState::DuplicateTable,
        CatalogError::ColumnExists { .. } => SqlState::DuplicateColumn,
        CatalogError::NoColumn(_) => SqlState::UndefinedColumn,
        CatalogError::NoRelation(_) => SqlState::UndefinedTable,
        CatalogError::NoQuery(_) => SqlState::UndefinedObject,
        CatalogError::NotView(_) => SqlState::WrongObjectType,
        CatalogError::Circle(_) => SqlState::InvalidObjectDefinition,
        CatalogError::Misfit(_) => SqlState::InvalidTableDefinition,
        CatalogError::InUse { .. } => SqlState::DependentObjectsStillExist,
        CatalogError::QueryExists(_) => SqlState::DuplicateObject,
        CatalogError::Terminated(_) => SqlState::ObjectNotInPrerequisiteState,
        CatalogError::Limit { .. } => SqlState::ConfigurationLimitExceeded,
    }
}

impl From<Refused> for ReplicationError {
    fn from(refused: Refused) -> Self {
        match refused {
            Refused::NoTopic(topic) => Self::NoTopic(topic),
            Refused::NoPartition(topic, partition) => Self::NoPartition(topic, partition),
            Refused::Changed(topic) => Self::Changed(topic),
            Refused::NoQuery(query) => Self::NoQuery(query),
            Refused::StaleStep { query, step, last } => Self::StaleStep { query, step, last },
            Refused::StaleCheckpoint { query, step } => Self::StaleCheckpoint { query, step },
            Refused::CheckpointOverdue { query, steps } => Self::CheckpointOverdue { query, steps },
            Refused::EventsNeeded { query, topic } => Self::EventsNeeded { query, topic },
            Refused::SequenceGap { producer, topic, sequence, next } => {
                Self::SequenceGap { producer, topic, sequence, next }
            }
            Refused::ProducersFull => Self::ProducersFull,
            Refused::NoStage(stage) => Self::NoStage(stage),
            Refused::StagesFull => Self::StagesFull,
            Refused::Catalog(error) => Self::Catalog(error),
            Refused::Fenced { group, topic, partition } => Self::Fenced { group, topic, partition },
            Refused::NoOffset { group, topic, partition } => Self::NoOffset { group, topic, partition },
            Refused::AboveEnd { topic, partition, offset, end } => Self::AboveEnd { topic, partition, offset, end },
            Refused::GroupHeld(group) => Self::GroupHeld(group),
            Refused::GroupsFull => Self::GroupsFull,
        }
    }
}
