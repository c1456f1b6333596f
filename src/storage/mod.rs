//! Storage: the write-ahead log, segments and partitions.
//!
//! Knows no Raft, no SQL and no network. Replication writes through it, the engine reads through it. Each
//! module says what a crash does to its files.

pub mod disk;
pub mod error;
pub mod fault_disk;
pub(crate) mod frame;
mod mmap;
pub mod wal;

pub use disk::{DirLock, Disk, DiskEntry, DiskFile, RealDisk};
pub use error::StorageError;
pub use fault_disk::FaultDisk;
