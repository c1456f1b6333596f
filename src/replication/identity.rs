//! The file that says what a data directory holds: `node`, written when its shards first lead.
//!
//! Owns the checks that need something beside the log: a log that is gone, fewer shards than before, a later
//! format. Leaves out what is in the log. A crash before it is written leaves a directory that is founded again or
//! goes on, as the log has it.
//!
//! Text, one `name value` per line: `millstream 1` (the format's version), `node 1`, `shards 3` (of partitions), and
//! `crc`, the CRC-32C in hexadecimal of what stands before it; the first files were without.

use super::error::ReplicationError;
use crate::storage::{Disk, StorageError};
use millstream_catalog::model::NodeId;
use std::io;
use std::path::Path;

pub(super) const FILE: &str = "node";
const UNFINISHED: &str = "node.tmp";
/// What stands in the file while a backup or restore writes the rest of the directory.
pub(super) const UNFINISHED_TEXT: &str = "unfinished\n";
/// The version written, and the newest one read.
const VERSION: u32 = 1;

/// What a data directory holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Identity {
    pub(super) node: NodeId,
    /// Shards of partitions, besides the catalog's.
    pub(super) shards: u32,
}

impl Identity {
    /// Reads the file in `dir`; `None` in a new directory.
    ///
    /// # Errors
    /// [`StorageError::Newer`], [`StorageError::Corrupt`], or the system's error.
    pub(super) fn read(disk: &dyn Disk, dir: &Path) -> Result<Option<Self>, StorageError> {
        let failed = |source| StorageError::io("read the file \"node\" of the data directory", source);
        let file = match disk.open(&dir.join(FILE)) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(failed(error)),
        };
        let mut bytes = vec![0; file.len().map_err(failed)? as usize];
        file.read_at(&mut bytes, 0).map_err(failed)?;
        let corrupt = |what| StorageError::Corrupt { file: FILE.to_owned(), position: 0, what };
        let text = std::str::from_utf8(&bytes).map_err(|_| corrupt("it is not text"))?;
        if text == UNFINISHED_TEXT {
            return Err(corrupt("a backup or restore into this directory was not finished"));
        }
        let damaged = || corrupt("a line is missing");
        let value = |name: &str| -> Result<u32, StorageError> {
            let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
            line.and_then(|value| value.trim().parse().ok()).ok_or_else(damaged)
        };
        let version = value("millstream")?;
        if version > VERSION {
            return Err(StorageError::Newer { file: FILE.to_owned(), version, supported: VERSION });
        }
        let identity = Self { node: NodeId::new(value("node")?.into()), shards: value("shards")? };
        // The first files have no checksum, and nothing else that `identity` does not say.
        if text != identity.text() && text != identity.lines() {
            return Err(corrupt("its checksum does not match"));
        }
        Ok(Some(identity))
    }

    fn lines(&self) -> String {
        format!("millstream {VERSION}\nnode {}\nshards {}\n", self.node, self.shards)
    }

    fn text(&self) -> String {
        let lines = self.lines();
        format!("{lines}crc {:08x}\n", crc32c::crc32c(lines.as_bytes()))
    }

    /// Writes the file, atomically and durably.
    ///
    /// # Errors
    /// The system's error.
    pub(super) fn write(&self, disk: &dyn Disk, dir: &Path) -> Result<(), StorageError> {
        let text = self.text();
        let write = || {
            let file = disk.create(&dir.join(UNFINISHED))?;
            file.write_at(text.as_bytes(), 0)?;
            file.sync_data()?;
            disk.rename(&dir.join(UNFINISHED), &dir.join(FILE))?;
            disk.sync_dir(dir)
        };
        write().map_err(|source| StorageError::io("write the file \"node\" of the data directory", source))
    }

    /// Whether a node with `shards` may start here, with a log that `has_votes`.
    ///
    /// # Errors
    /// [`ReplicationError::LogGone`], [`ReplicationError::FewerShards`].
    pub(super) fn check(&self, shards: u32, has_votes: bool) -> Result<(), ReplicationError> {
        if !has_votes {
            return Err(ReplicationError::LogGone);
        }
        if shards < self.shards {
            return Err(ReplicationError::FewerShards { asked: shards, there: self.shards });
        }
        Ok(())
    }
}
