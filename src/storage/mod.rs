//! Storage: the write-ahead log, segments and partitions.
//!
//! Knows no Raft, no SQL and no network. Replication writes through it, the engine reads through it. Each
//! module says what a crash does to its files.

pub mod batch;
mod bloom;
mod compaction;
pub mod disk;
pub mod entries;
pub mod error;
pub mod fault_disk;
pub mod fit;
pub(crate) mod footer;
pub(crate) mod frame;
mod key_set;
mod last_rows;
pub(crate) mod manifest;
mod maps;
mod mmap;
pub(crate) mod open_segment;
pub mod partition;
mod partition_writer;
pub mod partitions;
mod patience;
pub(crate) mod recovery;
mod removing;
pub mod rewrite;
pub mod scan;
pub mod seal;
pub mod segment;
pub(crate) mod segment_writer;
pub mod shard_store;
pub mod skip;
pub mod staging;
pub(crate) mod state_files;
pub mod statistics;
pub mod summary;
mod tail;
#[cfg(test)]
mod testing;
pub mod upkeep;
pub mod wal;

/// Has memory of this process come in pages of the common size: huge ones cost more to clear than they save.
pub fn without_huge_pages() {
    mmap::without_huge_pages();
}

/// Bounds the pages of mapped files that stay resident, for all nodes of this process.
pub fn set_maps_bytes_max(bytes: millstream_catalog::model::ByteSize) {
    mmap::MAPS.set_bytes_max(bytes);
}

/// Bytes of mapped files that were read since pages were last given back.
pub fn maps_bytes() -> millstream_catalog::model::ByteSize {
    mmap::MAPS.bytes()
}

pub use batch::{StoredBatch, TopicStorage};
pub use compaction::PartitionUpkeep;
pub use disk::{DirLock, Disk, DiskEntry, DiskFile, RealDisk};
pub use entries::EntryRuns;
pub use error::StorageError;
pub use fault_disk::FaultDisk;
pub use key_set::KeySet;
pub use partition::{Partition, PartitionView};
pub use partitions::Partitions;
pub(crate) use patience::Patience;
pub use rewrite::{CompactionPlan, Rewrite, RewriteJob, Rewritten};
pub use scan::{PartitionScan, ScanRequest};
pub use seal::{SealJob, Sealed};
pub use segment::Segment;
pub use shard_store::{ManifestState, ShardStore};
pub use skip::{KeyValues, Parts, Pruner};
pub use staging::{StagedFile, StagedRows};
pub use state_files::StateFiles;
pub use upkeep::{PartitionFacts, RewriteRange, UpkeepActions, UpkeepPolicy};
