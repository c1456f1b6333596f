//! The memory map of a sealed file: the one place with `unsafe`.
//!
//! Leaves out deciding what is sealed: `Disk::map` and its callers do. A crash does nothing to a map.
#![allow(unsafe_code)]

use arrow::buffer::Buffer;
use bytes::Bytes;
use memmap2::Mmap;
use std::fs::File;
use std::io;

/// The bytes of `file`, read-only and without a copy; they stay valid after the file is unlinked.
///
/// # Errors
/// When the system cannot map the file.
pub(super) fn map(file: &File) -> io::Result<Buffer> {
    if file.metadata()?.len() == 0 {
        return Ok(Buffer::from(Bytes::new()));
    }
    // Safety: a map is unsound only if the file changes while it is mapped. Callers map sealed files, which
    // Millstream never writes to or truncates again and removes by unlink only (the inode lives as long as
    // the map); the data directory's lock keeps other Millstream processes away from them.
    let map = unsafe { Mmap::map(file)? };
    Ok(Buffer::from(Bytes::from_owner(map)))
}
