//! Consumer groups: which member reads which partition, and how far each has come.
//!
//! Owns membership, which is in memory at the coordinator, and a member's progress between what it has read, handed over
//! and committed. Committed offsets are state of the shard that holds the partitions (`replication::groups`), where a
//! commit is refused once somebody else took the partition: so nothing here is trusted with the promise that events are
//! committed once. Leaves out reading (`push`) and delivery (server). A crash forgets the members, who are gone with it.

mod admin;
mod assignor;
mod consumer;
mod coordinator;
mod fetched;
mod machine;
mod progress;
mod receipts;

pub(crate) use admin::{GroupStatus, group_columns};
pub(crate) use consumer::{Consumer, Delivery, Joining, Reset, Settled};
pub(crate) use coordinator::{Coordinator, MemberInfo};
pub(crate) use fetched::{Fetched, FetchedMark};
pub(crate) use progress::position_of;
pub use receipts::{Asked, Receipts};
pub(crate) use receipts::{FetchReceipts, commit_died, is_final};

use millstream_catalog::model::{PartitionId, TopicId};

/// A partition of a topic.
pub(crate) type TopicPartition = (TopicId, PartitionId);
