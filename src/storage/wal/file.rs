//! A file of the log: its name, its header, its allocation.
//!
//! Owns what is at bytes 0 to 511 and how a file comes to be; frames start at [`DATA_START`]. Leaves out when
//! files are needed (`prepare`) and what is in them. A file gets its final name only when its space is taken (or it is
//! recycled), its header synced; a crash before leaves a `.tmp` or `.spare` that recovery drops or reuses.
//!
//! | byte | size | field |
//! |---|---|---|
//! | 0 | 8 | magic `MSWALOG` and a zero |
//! | 8 | 2 | version, 1 |
//! | 10 | 6 | zero |
//! | 16 | 8 | sequence |
//! | 24 | 8 | bytes of the file |
//! | 32 | 28 | zero |
//! | 60 | 4 | CRC-32C of bytes 0 to 59 |

use crate::storage::disk::{Disk, DiskFile};
use crate::storage::error::StorageError;
use crate::storage::frame::{u32_at, u64_at};
use std::path::Path;
use std::sync::Arc;

/// Where the first frame starts: the header has a sector of its own, never written again while in use.
pub(crate) const DATA_START: u64 = 512;
/// The version written, and the newest one read.
const VERSION: u16 = 1;
const MAGIC: [u8; 8] = *b"MSWALOG\0";
const HEADER_BYTES: usize = 64;
/// Bytes filled between syncs where space cannot be taken otherwise.
const FILL_BYTES: u64 = 1 << 20;
/// Bytes filled at once of a file that could be used as it is: a sync of the writer may have to wait behind them.
const STEP_BYTES: u64 = 256 << 10;

/// A file of the log, open.
#[derive(Debug)]
pub(super) struct WalFile {
    pub(super) sequence: u64,
    pub(super) bytes: u64,
    pub(super) file: Arc<dyn DiskFile>,
}

/// What a name in the log's directory stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum FileName {
    /// A file of the log.
    Log(u64),
    /// A purged file kept for reuse.
    Spare,
    /// A file whose allocation was not finished.
    Unfinished,
    /// Not ours.
    Unknown,
}

/// The name of the file with `sequence`.
pub(crate) fn log_name(sequence: u64) -> String {
    format!("{sequence:020}.wal")
}

/// The name the file with `sequence` has while it waits for reuse.
pub(super) fn spare_name(sequence: u64) -> String {
    format!("{sequence:020}.spare")
}

fn unfinished_name(sequence: u64) -> String {
    format!("{sequence:020}.tmp")
}

impl FileName {
    /// Reads a name.
    pub(crate) fn parse(name: &str) -> Self {
        let Some((number, kind)) = name.split_once('.') else { return Self::Unknown };
        if number.len() != 20 || !number.bytes().all(|byte| byte.is_ascii_digit()) {
            return Self::Unknown;
        }
        match (kind, number.parse()) {
            ("wal", Ok(sequence)) => Self::Log(sequence),
            ("spare", Ok(_)) => Self::Spare,
            ("tmp", Ok(_)) => Self::Unfinished,
            _ => Self::Unknown,
        }
    }
}

/// The header of the file `sequence` of `bytes` bytes.
pub(crate) fn encode_header(sequence: u64, bytes: u64) -> [u8; HEADER_BYTES] {
    let mut header = [0; HEADER_BYTES];
    header[..8].copy_from_slice(&MAGIC);
    header[8..10].copy_from_slice(&VERSION.to_le_bytes());
    header[16..24].copy_from_slice(&sequence.to_le_bytes());
    header[24..32].copy_from_slice(&bytes.to_le_bytes());
    let crc = crc32c::crc32c(&header[..60]);
    header[60..].copy_from_slice(&crc.to_le_bytes());
    header
}

/// Checks the header at the start of `bytes`, of the file `sequence` that has `len` bytes. Each frame names its file,
/// so a damaged header costs nothing: it is only reported as such.
///
/// # Errors
/// [`StorageError::Newer`] when a later version wrote the file; [`StorageError::Corrupt`] when it is another file, or
/// was cut: no crash does that, as a file has its name only once it is whole.
pub(crate) fn check_header(bytes: &[u8], sequence: u64, len: u64) -> Result<bool, StorageError> {
    let Some(header) = bytes.first_chunk::<HEADER_BYTES>() else { return Ok(false) };
    if header[..8] != MAGIC || crc32c::crc32c(&header[..60]) != u32_at(header, 60) {
        return Ok(false);
    }
    let version = u16::from_le_bytes([header[8], header[9]]);
    if version > VERSION {
        let file = log_name(sequence);
        return Err(StorageError::Newer { file, version: version.into(), supported: VERSION.into() });
    }
    let damaged = |position, what| StorageError::Corrupt { file: log_name(sequence), position, what };
    if u64_at(header, 16) != sequence {
        return Err(damaged(16, "it is another file of a log"));
    }
    if u64_at(header, 24) != len {
        return Err(damaged(len, "the file has another length than it was made with"));
    }
    Ok(true)
}

/// Allocates the file `sequence`: its space taken, synced, named. Also whether there is something to [`fill`].
///
/// # Errors
/// [`StorageError::DiskFull`] or the system's error; nothing is left behind if that can be helped.
pub(super) fn create(disk: &dyn Disk, dir: &Path, sequence: u64, bytes: u64) -> Result<(WalFile, bool), StorageError> {
    let unfinished = dir.join(unfinished_name(sequence));
    let taken = take_space(disk, &unfinished, bytes);
    let named = taken.and_then(|(file, must_fill)| {
        Ok((name_file(disk, dir, &unfinished, WalFile { sequence, bytes, file })?, must_fill))
    });
    named.map_err(|source| {
        // Best effort: an unfinished file is dropped by the next start anyway.
        let _ = disk.remove(&unfinished);
        StorageError::io("allocate a file of the write-ahead log", source)
    })
}

fn take_space(disk: &dyn Disk, path: &Path, bytes: u64) -> std::io::Result<(Arc<dyn DiskFile>, bool)> {
    let file = disk.create(path)?;
    if file.reserve(bytes)? {
        return Ok((file, true));
    }
    let zeros = vec![0; FILL_BYTES.min(bytes) as usize];
    let mut position = 0;
    while position < bytes {
        let part = &zeros[..(bytes - position).min(FILL_BYTES) as usize];
        file.write_at(part, position)?;
        position += part.len() as u64;
        if position < bytes {
            file.sync_data()?;
        }
    }
    Ok((file, false))
}

/// Writes zeros to some of a file without frames, from `position` on; gives where they end. File systems with a journal
/// write to it at the first sync of a place that was never written, which makes that sync two.
///
/// # Errors
/// The system's error.
pub(super) fn fill_step(file: &WalFile, position: u64) -> std::io::Result<u64> {
    let end = file.bytes.min(position + STEP_BYTES);
    file.file.write_at(&vec![0; (end - position) as usize], position)?;
    file.file.sync_data()?;
    Ok(end)
}

/// The same for all of it.
///
/// # Errors
/// The system's error.
pub(super) fn fill(file: &WalFile) -> std::io::Result<()> {
    let mut position = DATA_START;
    while position < file.bytes {
        position = fill_step(file, position)?;
    }
    Ok(())
}

/// Makes the spare file `name` the file `sequence`. One with a second name is left to whoever gave it that (a backup,
/// which did before the file became a spare), and a new one is made.
///
/// # Errors
/// The system's error; the spare is then of no use.
pub(super) fn recycle(
    disk: &dyn Disk,
    dir: &Path,
    name: &str,
    sequence: u64,
    bytes: u64,
) -> Result<(WalFile, bool), StorageError> {
    let path = dir.join(name);
    let failed = |source| StorageError::io("recycle a file of the write-ahead log", source);
    if disk.is_linked(&path).map_err(failed)? {
        disk.remove(&path).map_err(failed)?;
        return create(disk, dir, sequence, bytes);
    }
    let recycled = disk.open(&path).and_then(|file| name_file(disk, dir, &path, WalFile { sequence, bytes, file }));
    Ok((recycled.map_err(failed)?, false))
}

/// Writes the header of a file without frames anew if it is not whole.
///
/// # Errors
/// The system's error, [`StorageError::Newer`].
pub(super) fn heal_header(file: &WalFile) -> Result<(), StorageError> {
    let failed = |source| StorageError::io("write the header of a prepared log file", source);
    let mut header = vec![0; DATA_START as usize];
    file.file.read_at(&mut header, 0).map_err(failed)?;
    if check_header(&header, file.sequence, file.bytes)? {
        return Ok(());
    }
    let written = file.file.write_at(&encode_header(file.sequence, file.bytes), 0);
    written.and_then(|()| file.file.sync_data()).map_err(failed)
}

fn name_file(disk: &dyn Disk, dir: &Path, path: &Path, file: WalFile) -> std::io::Result<WalFile> {
    file.file.write_at(&encode_header(file.sequence, file.bytes), 0)?;
    file.file.sync_data()?;
    disk.rename(path, &dir.join(log_name(file.sequence)))?;
    disk.sync_dir(dir)?;
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_told_apart() {
        assert_eq!(FileName::parse(&log_name(7)), FileName::Log(7));
        assert_eq!(FileName::parse(&spare_name(7)), FileName::Spare);
        assert_eq!(FileName::parse(&unfinished_name(7)), FileName::Unfinished);
        for name in ["7.wal", "notes.txt", "00000000000000000007.wal.bak", "x", "99999999999999999999.wal"] {
            assert_eq!(FileName::parse(name), FileName::Unknown, "{name}");
        }
    }

    #[test]
    fn header_of_version_1_keeps_its_bytes() {
        let header = encode_header(3, 1 << 26);
        let hex: String = header.iter().map(|byte| format!("{byte:02x}")).collect();
        let pinned = "4d5357414c4f470001000000000000000300000000000000000000040000000000000000000000000000000000000000\
                      0000000000000000000000006fbacc53";
        assert_eq!(hex, pinned);
        assert!(check_header(&header, 3, 1 << 26).unwrap());
        let position = |checked| match checked {
            Err(StorageError::Corrupt { position, .. }) => position,
            other => panic!("{other:?}"),
        };
        assert_eq!(position(check_header(&header, 4, 1 << 26)), 16, "another file");
        assert_eq!(position(check_header(&header, 3, 5_000)), 5_000, "cut");
    }

    #[test]
    fn header_of_a_later_version_is_refused() {
        let mut header = encode_header(3, 1 << 26);
        header[8] = 2;
        assert!(!check_header(&header, 3, 1 << 26).unwrap());
        let crc = crc32c::crc32c(&header[..60]);
        header[60..].copy_from_slice(&crc.to_le_bytes());
        assert!(matches!(check_header(&header, 3, 1 << 26), Err(StorageError::Newer { version: 2, supported: 1, .. })));
    }
}
