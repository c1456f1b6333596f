//! What can go wrong in storage, by what the caller does next.
//!
//! Owns the enum and its SQLSTATEs. Leaves out words about SQL objects: storage knows only ids and files.

use millstream_catalog::model::{EntryIndex, Offset, PartitionId, ShardId, SqlState, TopicId};
use std::io;
use std::ops::Range;
use std::sync::Arc;

/// A failure of the storage layer. Cheap to clone: one failed sync answers many waiters.
#[derive(Debug, Clone, thiserror::Error)]
pub enum StorageError {
    /// The operating system refused; nothing was acknowledged.
    #[error("could not {action}: {source}")]
    Io {
        /// What was tried, as in "could not …".
        action: &'static str,
        /// The system's reason.
        #[source]
        source: Arc<io::Error>,
    },
    /// Stored bytes are not what was written. The owner goes out of service here.
    #[error("file \"{file}\" is damaged at byte {position}: {what}")]
    Corrupt {
        /// The file's name within its directory.
        file: String,
        /// The first byte of the damaged frame or block.
        position: u64,
        /// What does not hold.
        what: &'static str,
    },
    /// Stored rows cannot be read; all others can. Reading them again gives the same.
    #[error("offsets {} to {} of topic {topic}, partition {partition} are damaged: {reason}", offsets.start, offsets.end.before())]
    DamagedRows {
        /// The topic.
        topic: TopicId,
        /// The partition.
        partition: PartitionId,
        /// The rows that cannot be read.
        offsets: Range<Offset>,
        /// The file, the place in it, and what does not hold.
        reason: Arc<str>,
    },
    /// No space for more data. Goes on by itself when there is space again.
    #[error("no space left on the data disk")]
    DiskFull,
    /// A write or sync failed: what is on disk is unknown, and the node must stop.
    #[error("the write-ahead log could not be synced")]
    SyncFailed,
    /// Another process uses the data directory.
    #[error("the data directory is in use by another process")]
    Locked,
    /// A later version of Millstream wrote this.
    #[error("file \"{file}\" has format version {version}, this binary reads up to {supported}")]
    Newer {
        /// The file's name within its directory.
        file: String,
        /// The version found.
        version: u32,
        /// The newest version this binary reads.
        supported: u32,
    },
    /// An entry does not follow the last one of its shard.
    #[error("entry {index} of shard {shard} does not follow the last one")]
    OutOfOrder {
        /// The shard.
        shard: ShardId,
        /// The entry refused.
        index: EntryIndex,
    },
    /// The owner was closed before.
    #[error("storage is shut down")]
    Closed,
    /// A file that the manifest lists is not there.
    #[error("file \"{file}\" is missing")]
    Missing {
        /// The file's name within its directory.
        file: String,
    },
    /// Rows or a projection do not fit the topic's schema; the caller has a bug.
    #[error("{what}")]
    Schema {
        /// What does not fit.
        what: String,
    },
    /// The shard has no such partition.
    #[error("partition {partition} of topic {topic} is not in this shard")]
    NoPartition {
        /// The topic.
        topic: TopicId,
        /// The partition.
        partition: PartitionId,
    },
    /// The topic was dropped, and everything published before was read.
    #[error("topic {topic} was dropped")]
    Dropped {
        /// The topic.
        topic: TopicId,
    },
    /// The position to read from is no longer stored.
    #[error("offset {position} is below the log start {offset_start}")]
    BelowStart {
        /// The position asked for.
        position: Offset,
        /// The first offset that is stored.
        offset_start: Offset,
    },
    /// More bytes than one record can hold.
    #[error("a record of {bytes} bytes is too large")]
    TooLarge {
        /// Its size.
        bytes: u64,
    },
}

impl StorageError {
    /// Wraps a system error; "no space" becomes [`StorageError::DiskFull`]. `action` completes "could not …".
    pub fn io(action: &'static str, source: io::Error) -> Self {
        match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Self::DiskFull,
            _ => Self::Io { action, source: Arc::new(source) },
        }
    }

    /// Whether the files are not what was written, or not all there: others can still be read.
    pub(crate) fn is_damage(&self) -> bool {
        matches!(self, Self::Corrupt { .. } | Self::Missing { .. } | Self::DamagedRows { .. })
    }

    /// The SQLSTATE clients see.
    pub fn sqlstate(&self) -> SqlState {
        match self {
            Self::Io { .. } | Self::SyncFailed => SqlState::IoError,
            Self::Corrupt { .. } | Self::Missing { .. } | Self::DamagedRows { .. } => SqlState::DataCorrupted,
            Self::DiskFull => SqlState::DiskFull,
            Self::Locked => SqlState::ObjectInUse,
            Self::Newer { .. } => SqlState::FeatureNotSupported,
            Self::OutOfOrder { .. } | Self::Schema { .. } => SqlState::InternalError,
            Self::NoPartition { .. } | Self::Dropped { .. } => SqlState::UndefinedTable,
            Self::BelowStart { .. } => SqlState::OffsetBelowLogStart,
            Self::Closed => SqlState::AdminShutdown,
            Self::TooLarge { .. } => SqlState::ProgramLimitExceeded,
        }
    }

    /// Whether the same request may succeed later without anybody's help.
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::DiskFull | Self::Io { .. } => true,
            Self::Corrupt { .. }
            | Self::DamagedRows { .. }
            | Self::SyncFailed
            | Self::Locked
            | Self::Newer { .. }
            | Self::OutOfOrder { .. }
            | Self::Missing { .. }
            | Self::Schema { .. }
            | Self::NoPartition { .. }
            | Self::Dropped { .. }
            | Self::BelowStart { .. }
            | Self::Closed
            | Self::TooLarge { .. } => false,
        }
    }
}
