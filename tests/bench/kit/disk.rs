//! The disk's own time for what an acknowledged write must at least do.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::time::{Duration, Instant};

/// Bytes of one append.
const APPEND_BYTES: usize = 4 << 10;
/// Bytes of the file, written once before anything is timed.
const FILE_BYTES: usize = 64 << 20;

/// A file of blocks that were already written, and a place in it.
#[derive(Debug)]
pub(crate) struct SyncProbe {
    file: File,
    position: usize,
}

impl SyncProbe {
    /// A probe on a file in `dir`.
    pub(crate) fn new(dir: &Path) -> anyhow::Result<Self> {
        let file = OpenOptions::new().create(true).truncate(true).write(true).open(dir.join("probe"))?;
        let zeros = vec![0; 1 << 20];
        for position in (0..FILE_BYTES).step_by(zeros.len()) {
            file.write_all_at(&zeros, position as u64)?;
        }
        file.sync_all()?;
        Ok(Self { file, position: 0 })
    }

    /// Times one append with its `fdatasync`.
    pub(crate) fn append(&mut self) -> anyhow::Result<Duration> {
        let bytes = [self.position as u8 | 1; APPEND_BYTES];
        let begin = Instant::now();
        self.file.write_all_at(&bytes, self.position as u64)?;
        self.file.sync_data()?;
        let time = begin.elapsed();
        self.position = (self.position + APPEND_BYTES) % FILE_BYTES;
        Ok(time)
    }
}
