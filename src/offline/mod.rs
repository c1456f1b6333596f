//! Tools on a data directory that do not run it: check and repair, dump, backup and restore.
//!
//! Owns judging files that others wrote, and copying them. Reads through the codecs of `storage` and `replication`, and
//! shares no judgement with them: what recovery believes is what is checked here. `main` calls it. What a crash does to
//! a repair or a restore, each says itself.

pub mod backup;
pub mod check;
pub mod dump;
mod heal;
mod log;
mod repair;
mod report;
mod segments;
mod shards;
mod statistics;
#[cfg(test)]
mod tests;

pub use report::{Finding, Report, Severity};

use crate::storage::{Disk, StorageError};
use bytes::Bytes;
use std::io;
use std::path::Path;

/// The bytes of a file.
///
/// # Errors
/// The system's error.
pub(crate) fn read_file(disk: &dyn Disk, path: &Path) -> io::Result<Bytes> {
    let file = disk.open_read(path)?;
    let length = usize::try_from(file.len()?).map_err(|_| io::ErrorKind::FileTooLarge)?;
    let mut bytes = vec![0; length];
    file.read_at(&mut bytes, 0)?;
    Ok(Bytes::from(bytes))
}

/// What is in a directory; nothing when there is none.
///
/// # Errors
/// The system's error.
pub(crate) fn list(disk: &dyn Disk, dir: &Path) -> Result<Vec<crate::storage::DiskEntry>, StorageError> {
    match disk.list(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        listed => listed.map_err(|source| StorageError::io("list a directory", source)),
    }
}
