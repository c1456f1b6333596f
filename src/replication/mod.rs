//! The replicated log: one Raft group (openraft) per shard, on one write-ahead log per node.
//!
//! Owns the only path by which anything becomes durable: a request is joined with whatever else waits for
//! its shard, encoded once, proposed as one entry, synced by the WAL, applied to the shard's store and
//! answered. Shard 0 holds the catalog, shards 1…n hold partitions and the progress of continuous queries.
//! Leaves out SQL, and files below the WAL and the shard stores. The engine calls it. After a crash every
//! shard opens its manifest and applies the entries that follow it, so nothing acknowledged is lost.

mod across;
mod appender;
mod codec;
mod entry;
mod error;
mod flow;
mod groups;
mod guard;
mod identity;
pub(crate) mod inspect;
mod ipc;
mod log_store;
mod machine;
mod manifest;
mod network;
mod node;
mod producers;
mod progress;
mod raft;
mod read_side;
mod runtime;
mod shard;
mod stages;
mod staging;
mod stall;
mod state;
#[cfg(test)]
mod tests;
mod types;
mod upkeep;
mod write_room;

pub use across::Cuts;
pub use error::ReplicationError;
pub use groups::Committed;
pub use node::{Replication, ReplicationConfig};
pub use shard::{CatalogShard, Shard};
pub use staging::Staging;
pub use types::{
    Append, Appended, Checkpoint, GroupCommit, GroupOffset, GroupPosition, GroupTake, Guard, PartitionPosition,
    PartitionWrite, ProducerClaim, QueryProgress, ShardStatus, Step, StepRecord, TakePartition, Taking,
};
