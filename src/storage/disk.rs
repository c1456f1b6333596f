//! The seam to the file system: every file, directory and lock of a node goes through [`Disk`].
//!
//! Owns the only calls to `std::fs`. Leaves out what is in the files, and retries: every error goes up as it
//! is. [`RealDisk`] is the machine's, [`FaultDisk`](super::FaultDisk) one in memory that loses what was not synced.
//!
//! What a crash may do, and every caller must survive: a write not followed by [`DiskFile::sync_data`] is kept,
//! lost, or kept in some of its 512-byte sectors; a created, renamed or removed name not followed by
//! [`Disk::sync_dir`] of its directory is kept or lost, each by itself.
#![allow(clippy::disallowed_methods)]

use super::error::StorageError;
use super::mmap::MAPS;
use arrow::buffer::Buffer;
use rustix::fs::FallocateFlags;
use rustix::io::{Errno, retry_on_intr};
use std::any::Any;
use std::fmt;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::sync::Arc;

/// A name in a directory.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct DiskEntry {
    /// The last part of the path; names that are not UTF-8 are shown with replacement characters.
    pub name: String,
    /// Whether it is a directory.
    pub is_dir: bool,
}

/// Files and directories. Blocking; call it from threads that may block.
pub trait Disk: Send + Sync + fmt::Debug + 'static {
    /// Opens an existing file for reading and writing.
    ///
    /// # Errors
    /// `NotFound` when there is none, or the system's error.
    fn open(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>>;

    /// Opens an existing file for reading only.
    ///
    /// # Errors
    /// `NotFound` when there is none, or the system's error.
    fn open_read(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>>;

    /// Gives a file a second name `to`, which must be new, on the same file system.
    ///
    /// # Errors
    /// `CrossesDevices`, or the system's error.
    fn link(&self, from: &Path, to: &Path) -> io::Result<()>;

    /// Whether a file has more names than this one.
    ///
    /// # Errors
    /// The system's error.
    fn is_linked(&self, path: &Path) -> io::Result<bool>;

    /// Creates a file, or empties an existing one. The name is durable after [`Disk::sync_dir`].
    ///
    /// # Errors
    /// The system's error.
    fn create(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>>;

    /// Renames a file, replacing what has the name `to`; atomic, durable after [`Disk::sync_dir`].
    ///
    /// # Errors
    /// The system's error.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;

    /// Removes a file; maps and open handles of it stay valid. Durable after [`Disk::sync_dir`].
    ///
    /// # Errors
    /// The system's error.
    fn remove(&self, path: &Path) -> io::Result<()>;

    /// Removes an empty directory.
    ///
    /// # Errors
    /// The system's error.
    fn remove_dir(&self, dir: &Path) -> io::Result<()>;

    /// What is in a directory, sorted by name.
    ///
    /// # Errors
    /// `NotFound` when there is no such directory, or the system's error.
    fn list(&self, dir: &Path) -> io::Result<Vec<DiskEntry>>;

    /// Creates a directory and its parents; no error if it exists.
    ///
    /// # Errors
    /// The system's error.
    fn create_dir_all(&self, dir: &Path) -> io::Result<()>;

    /// Creates a directory and its parents, and makes their names durable; also the name of one that was there, as
    /// whoever made it may have been killed before.
    ///
    /// # Errors
    /// The system's error.
    fn create_dir_durable(&self, dir: &Path) -> io::Result<()> {
        let mut missing = Vec::new();
        for dir in dir.ancestors().filter(|dir| !dir.as_os_str().is_empty()) {
            if self.exists(dir)? {
                break;
            }
            missing.push(dir);
        }
        self.create_dir_all(dir)?;
        if missing.is_empty() {
            return match self.sync_dir(parent_of(dir)) {
                // Of a directory that others made for us.
                Err(error) if error.kind() == io::ErrorKind::PermissionDenied => Ok(()),
                synced => synced,
            };
        }
        missing.into_iter().try_for_each(|dir| self.sync_dir(parent_of(dir)))
    }

    /// Makes the names in a directory durable.
    ///
    /// # Errors
    /// The system's error.
    fn sync_dir(&self, dir: &Path) -> io::Result<()>;

    /// Whether the path names a file or directory.
    ///
    /// # Errors
    /// The system's error.
    fn exists(&self, path: &Path) -> io::Result<bool>;

    /// The bytes of a sealed file, read-only and without a copy. The file must never be written again;
    /// removing it is fine.
    ///
    /// # Errors
    /// `NotFound` when there is none, or the system's error.
    fn map(&self, path: &Path) -> io::Result<Buffer>;

    /// Takes the directory for this process until the guard is dropped or the process ends.
    ///
    /// # Errors
    /// [`StorageError::Locked`] when another process (or guard) has it.
    fn lock(&self, dir: &Path) -> Result<DirLock, StorageError>;

    /// As [`Disk::lock`], without writing anything: a directory that was never locked stays as it is.
    ///
    /// # Errors
    /// [`StorageError::Locked`] when another process (or guard) has it.
    fn lock_existing(&self, dir: &Path) -> Result<Option<DirLock>, StorageError>;
}

/// The directory that `dir` is a name in.
fn parent_of(dir: &Path) -> &Path {
    dir.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new(if dir.has_root() {
        "/"
    } else {
        "."
    }))
}

/// An open file. Concurrent calls are fine; overlapping writes are the caller's business.
pub trait DiskFile: Send + Sync + fmt::Debug {
    /// Fills `bytes` from `position` on.
    ///
    /// # Errors
    /// `UnexpectedEof` when the file ends before, or the system's error.
    fn read_at(&self, bytes: &mut [u8], position: u64) -> io::Result<()>;

    /// Writes all of `bytes` at `position`, growing the file as needed.
    ///
    /// # Errors
    /// `StorageFull`, or the system's error; part of the bytes may have been written.
    fn write_at(&self, bytes: &[u8], position: u64) -> io::Result<()>;

    /// Makes everything written so far (and the length) durable.
    ///
    /// # Errors
    /// The system's error; then it is unknown what is durable, and asking again proves nothing.
    fn sync_data(&self) -> io::Result<()>;

    /// Bytes in the file.
    ///
    /// # Errors
    /// The system's error.
    fn len(&self) -> io::Result<u64>;

    /// Whether the file has no bytes.
    ///
    /// # Errors
    /// The system's error.
    fn is_empty(&self) -> io::Result<bool> {
        Ok(self.len()? == 0)
    }

    /// Takes the space for the first `bytes` bytes, which may be more than there are: they read as zeros, and writing them
    /// needs no more space. False where the file system cannot do that; nothing is done then.
    ///
    /// # Errors
    /// `StorageFull`, or the system's error.
    fn reserve(&self, bytes: u64) -> io::Result<bool>;

    /// Cuts or zero-extends the file.
    ///
    /// # Errors
    /// The system's error.
    fn set_len(&self, len: u64) -> io::Result<()>;
}

/// Keeps a directory taken; see [`Disk::lock`].
pub struct DirLock {
    _held: Box<dyn Any + Send + Sync>,
}

impl DirLock {
    /// A guard that releases what `held` holds when dropped.
    pub(super) fn new(held: impl Any + Send + Sync) -> Self {
        Self { _held: Box::new(held) }
    }
}

impl fmt::Debug for DirLock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("DirLock")
    }
}

/// Name of the lock file in a data directory.
const LOCK_NAME: &str = "lock";

/// The machine's file system.
#[derive(Debug, Clone, Copy, Default)]
pub struct RealDisk;

impl Disk for RealDisk {
    fn open(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>> {
        let file = OpenOptions::new().read(true).write(true).open(path)?;
        Ok(Arc::new(RealFile(file)))
    }

    fn open_read(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>> {
        Ok(Arc::new(RealFile(File::open(path)?)))
    }

    fn link(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::hard_link(from, to)
    }

    fn is_linked(&self, path: &Path) -> io::Result<bool> {
        Ok(fs::metadata(path)?.nlink() > 1)
    }

    fn create(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>> {
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(true).open(path)?;
        Ok(Arc::new(RealFile(file)))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::rename(from, to)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        fs::remove_file(path)
    }

    fn remove_dir(&self, dir: &Path) -> io::Result<()> {
        fs::remove_dir(dir)
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<DiskEntry>> {
        let mut entries = Vec::new();
        for entry in fs::read_dir(dir)? {
            let entry = entry?;
            let name = entry.file_name().to_string_lossy().into_owned();
            entries.push(DiskEntry { name, is_dir: entry.file_type()?.is_dir() });
        }
        entries.sort();
        Ok(entries)
    }

    fn create_dir_all(&self, dir: &Path) -> io::Result<()> {
        fs::create_dir_all(dir)
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        File::open(dir)?.sync_all()
    }

    fn exists(&self, path: &Path) -> io::Result<bool> {
        path.try_exists()
    }

    fn map(&self, path: &Path) -> io::Result<Buffer> {
        MAPS.map(&File::open(path)?)
    }

    fn lock(&self, dir: &Path) -> Result<DirLock, StorageError> {
        let refused = |source| StorageError::io("lock the data directory", source);
        let mut options = OpenOptions::new();
        let file = options.read(true).write(true).create(true).truncate(false).open(dir.join(LOCK_NAME));
        take(file.map_err(refused)?)
    }

    fn lock_existing(&self, dir: &Path) -> Result<Option<DirLock>, StorageError> {
        match File::open(dir.join(LOCK_NAME)) {
            Ok(file) => take(file).map(Some),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(StorageError::io("lock the data directory", source)),
        }
    }
}

fn take(file: File) -> Result<DirLock, StorageError> {
    match file.try_lock() {
        Ok(()) => Ok(DirLock::new(file)),
        Err(TryLockError::WouldBlock) => Err(StorageError::Locked),
        Err(TryLockError::Error(source)) => Err(StorageError::io("lock the data directory", source)),
    }
}

#[derive(Debug)]
struct RealFile(File);

impl DiskFile for RealFile {
    fn read_at(&self, bytes: &mut [u8], position: u64) -> io::Result<()> {
        self.0.read_exact_at(bytes, position)
    }

    fn write_at(&self, bytes: &[u8], position: u64) -> io::Result<()> {
        self.0.write_all_at(bytes, position)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.0.sync_data()
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self.0.metadata()?.len())
    }

    fn reserve(&self, bytes: u64) -> io::Result<bool> {
        match retry_on_intr(|| rustix::fs::fallocate(&self.0, FallocateFlags::empty(), 0, bytes)) {
            Ok(()) => Ok(true),
            Err(Errno::OPNOTSUPP | Errno::NOSYS) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.0.set_len(len)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_written_renamed_listed_mapped_and_removed() {
        let dir = tempfile::tempdir().unwrap();
        let disk = RealDisk;
        let sub = dir.path().join("a/b");
        disk.create_dir_all(&sub).unwrap();
        let file = disk.create(&sub.join("x")).unwrap();
        file.write_at(b"world", 5).unwrap();
        file.write_at(b"hello", 0).unwrap();
        file.sync_data().unwrap();
        assert_eq!(file.len().unwrap(), 10);
        disk.rename(&sub.join("x"), &sub.join("y")).unwrap();
        disk.sync_dir(&sub).unwrap();
        assert_eq!(disk.list(&sub).unwrap(), [DiskEntry { name: "y".into(), is_dir: false }]);
        assert!(disk.list(dir.path()).unwrap()[0].is_dir);
        let map = disk.map(&sub.join("y")).unwrap();
        disk.remove(&sub.join("y")).unwrap();
        assert_eq!(map.as_slice(), b"helloworld");
        assert!(!disk.exists(&sub.join("y")).unwrap());
        let mut bytes = [0; 20];
        assert_eq!(file.read_at(&mut bytes, 0).unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
        disk.create(&sub.join("empty")).unwrap();
        assert!(disk.map(&sub.join("empty")).unwrap().is_empty());
    }

    #[test]
    fn second_lock_of_a_directory_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let lock = RealDisk.lock(dir.path()).unwrap();
        assert!(matches!(RealDisk.lock(dir.path()), Err(StorageError::Locked)));
        drop(lock);
        RealDisk.lock(dir.path()).unwrap();
    }
}
