//! Identifiers. Each is opaque, ordered, and never reused within one data directory.
//!
//! Leaves out how ids are allocated: `State` does that for topics and queries, openraft for entries.

use serde::{Deserialize, Serialize};
use std::fmt;

macro_rules! id {
    ($(#[$doc:meta])* $name:ident, $repr:ty) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name($repr);

        impl $name {
            /// Wraps a raw number.
            pub const fn new(value: $repr) -> Self {
                Self(value)
            }
            /// The raw number, for encoding and display.
            pub const fn value(self) -> $repr {
                self.0
            }
            /// The id after this one; saturates at the largest.
            pub const fn next(self) -> Self {
                Self(self.0.saturating_add(1))
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

id!(
    /// A topic, and the one relation (stream or table) that reads it.
    TopicId,
    u64
);
id!(
    /// A continuous query.
    QueryId,
    u64
);
id!(
    /// A transaction of a shard whose rows came in several entries.
    StageId,
    u64
);
id!(
    /// A transaction over several shards, by the shard that decides it.
    TransactionId,
    u64
);
id!(
    /// A partition within its topic, from zero.
    PartitionId,
    u32
);
id!(
    /// One Raft group and the partitions it replicates. Shard 0 holds the catalog.
    ShardId,
    u32
);
id!(
    /// A node of the cluster.
    NodeId,
    u64
);
id!(
    /// A Raft term.
    Term,
    u64
);
id!(
    /// The position of an entry in a shard's Raft log.
    EntryIndex,
    u64
);
id!(
    /// The number of a continuous query's step; the first is 1, 0 means none was taken.
    StepNumber,
    u64
);
id!(
    /// Counts, within a shard, who takes partitions for a consumer group: commits of whoever had one before are refused.
    GroupEpoch,
    u64
);

impl ShardId {
    /// The shard of the catalog.
    pub const CATALOG: Self = Self(0);
}
