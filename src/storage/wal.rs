//! The write-ahead log of a node.

use super::disk::Disk;
use super::error::StorageError;
use bytes::Bytes;
use millstream_catalog::model::{ByteSize, EntryIndex, ShardId, Term};
use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;
use tokio::sync::watch;

/// How a log is laid out.
#[derive(Debug, Clone)]
pub struct WalOptions {
    /// Bytes of one file; files are zero-filled ahead and recycled.
    pub file_bytes: ByteSize,
    /// Bytes written with one sync; the rest of what waits goes with the next.
    pub batch_bytes_max: ByteSize,
    /// Bytes waiting before [`Wal::append`] holds its caller back.
    pub queue_bytes_max: ByteSize,
}

impl Default for WalOptions {
    fn default() -> Self {
        Self {
            file_bytes: ByteSize::new(64 << 20),
            batch_bytes_max: ByteSize::new(8 << 20),
            queue_bytes_max: ByteSize::new(64 << 20),
        }
    }
}

/// What a shard appends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum WalRecord {
    /// A Raft entry; must follow the shard's last one.
    Entry {
        /// Its term.
        term: Term,
        /// Its index.
        index: EntryIndex,
        /// Its content, opaque here.
        payload: Bytes,
    },
    /// The shard's vote; replaces the one before.
    Vote {
        /// Opaque here.
        payload: Bytes,
    },
    /// The shard's committed mark; replaces the one before. Written with the next record that is synced, and
    /// never the cause of a sync; a crash may lose it.
    Committed {
        /// Opaque here.
        payload: Bytes,
    },
    /// Entries after `after` are gone.
    Truncate {
        /// The last entry kept.
        after: EntryIndex,
    },
    /// Entries up to `upto` are gone.
    Purge {
        /// The last entry gone.
        upto: EntryIndex,
        /// Opaque here (the log id purged up to).
        payload: Bytes,
    },
}

/// Runs on the writer's thread, after the sync; must not block.
pub type WalDone = Box<dyn FnOnce(Result<(), StorageError>) + Send>;

/// A stored entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WalEntry {
    /// Its term.
    pub term: Term,
    /// Its index.
    pub index: EntryIndex,
    /// Its content.
    pub payload: Bytes,
}

/// What the log holds of one shard when it is opened.
#[derive(Debug, Clone, Default)]
pub struct ShardRecovered {
    /// The last vote.
    pub vote: Option<Bytes>,
    /// The last committed mark that reached the disk.
    pub committed: Option<Bytes>,
    /// Up to where entries were purged, with the payload of that purge.
    pub purged: Option<(EntryIndex, Bytes)>,
    /// The first entry present.
    pub first: Option<EntryIndex>,
    /// The last entry present.
    pub last: Option<(Term, EntryIndex)>,
    /// Damage that may have cost this shard something: it must neither vote nor lead here.
    pub corrupt: Option<StorageError>,
}

/// Counts since the log was opened, and its size now.
#[derive(Debug, Clone, Default)]
pub struct WalStats {
    /// Files, the current one and the one prepared included.
    pub files: usize,
    /// Their bytes.
    pub bytes: ByteSize,
    /// Appends answered.
    pub appends: u64,
    /// Syncs for them.
    pub syncs: u64,
    /// Bytes written for them.
    pub bytes_written: ByteSize,
    /// Whether the next file could not be allocated.
    pub is_disk_full: bool,
    /// The shard whose oldest entry keeps the oldest file; seal and purge it to get space back.
    pub oldest: Option<ShardId>,
}

/// The log: a handle, cheap to clone.
#[derive(Debug, Clone)]
pub struct Wal {
    failed: watch::Receiver<bool>,
}

impl Wal {
    /// Opens or creates the log in `dir`.
    ///
    /// # Errors
    /// When the directory cannot be read or written, or a later version wrote it.
    pub fn open(
        _disk: Arc<dyn Disk>,
        _dir: &Path,
        _options: WalOptions,
    ) -> Result<(Self, HashMap<ShardId, ShardRecovered>), StorageError> {
        Err(StorageError::Closed)
    }

    /// Queues records; `done` runs once they are synced.
    pub fn append(&self, _shard: ShardId, _records: Vec<WalRecord>, done: WalDone) {
        done(Err(StorageError::Closed));
    }

    /// Entries `first..end`, as many as fit `bytes_max` but at least one; none if `first` is not present.
    /// An entry can be read once its append is done.
    ///
    /// # Errors
    /// [`StorageError::Corrupt`] when a checksum does not hold.
    pub fn read(
        &self,
        _shard: ShardId,
        _first: EntryIndex,
        _end: EntryIndex,
        _bytes_max: ByteSize,
    ) -> Result<Vec<WalEntry>, StorageError> {
        Err(StorageError::Closed)
    }

    /// Whether entries of `bytes` can be expected to find room; ask before proposing them.
    ///
    /// # Errors
    /// [`StorageError::DiskFull`] when the next file could not be allocated and the current one nears its end.
    pub fn check_room(&self, _bytes: ByteSize) -> Result<(), StorageError> {
        Err(StorageError::Closed)
    }

    /// Turns true, for ever, when a write or sync failed: the node must stop.
    pub fn failed(&self) -> watch::Receiver<bool> {
        self.failed.clone()
    }

    /// Counts and sizes.
    pub fn stats(&self) -> WalStats {
        WalStats::default()
    }

    /// Writes what waits, marks the end, and stops the threads. Appends from now on get [`StorageError::Closed`].
    pub fn close(&self) {}
}
