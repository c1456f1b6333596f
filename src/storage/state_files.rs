//! Files with the state of one continuous query: what memory has no room for, and what a checkpoint saved.
//!
//! Owns `state/<query>/` in a shard's directory, the names in it, and which files may go. A file is written once: as
//! `<number>.spill`, which a restart removes, until a checkpoint names it; then it is synced and becomes `<number>.state`.
//! It goes when nobody holds it and the last checkpoint does not name it. A crash keeps what the last committed checkpoint
//! names, as that is synced before the checkpoint is written to the log. Whether a checkpoint was committed whose writer got
//! no answer is known after a restart: until then, or until another checkpoint is, its files stay. Leaves out what is in a
//! file (`sql`) and the checkpoints (replication).
//!
//! Layout, little-endian: magic `MSSF`, version `u16` 1, two bytes of zero, length `u64`, CRC-32C of the bytes `u32`, then
//! the bytes.

use super::disk::Disk;
use super::error::StorageError;
use parking_lot::Mutex;
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Directory of the queries' state within a shard's directory.
pub(crate) const STATE: &str = "state";
/// What names of files that a checkpoint names end with.
const SAVED: &str = ".state";
const SPILLED: &str = ".spill";
const MAGIC: &[u8; 4] = b"MSSF";
const VERSION: u16 = 1;
const HEADER_BYTES: usize = 20;

/// The files of one query.
#[derive(Debug)]
pub struct StateFiles {
    disk: Arc<dyn Disk>,
    dir: PathBuf,
    files: Mutex<Files>,
}

#[derive(Debug, Default)]
struct Files {
    next: u64,
    /// Those that are there.
    known: BTreeMap<u64, File>,
    /// Those the last checkpoint names.
    named: BTreeSet<u64>,
}

#[derive(Debug, Default, Clone, Copy)]
struct File {
    holders: u32,
    is_saved: bool,
    /// A checkpoint names it of which it is not known whether it is the last.
    is_pending: bool,
}

impl StateFiles {
    /// The files of the query whose last checkpoint names those of `named`. Numbers go on after those that are there.
    ///
    /// # Errors
    /// When the directory cannot be read.
    pub fn open(disk: Arc<dyn Disk>, shard_dir: &Path, query: u64, named: &[u64]) -> Result<Self, StorageError> {
        let dir = shard_dir.join(STATE).join(query.to_string());
        let named: BTreeSet<u64> = named.iter().copied().collect();
        let file = |is_pending| File { holders: 0, is_saved: true, is_pending };
        let mut known: BTreeMap<u64, File> = named.iter().map(|number| (*number, file(false))).collect();
        let mut next = named.last().map_or(1, |last| last + 1);
        for entry in listed(&*disk, &dir).map_err(failed)? {
            let number = entry.split('.').next().and_then(|number| number.parse::<u64>().ok());
            next = next.max(number.map_or(0, |number| number + 1));
            if let Some(number) = saved_number(&entry) {
                known.entry(number).or_insert(file(true));
            }
        }
        Ok(Self { disk, dir, files: Mutex::new(Files { next, known, named }) })
    }

    /// Removes the files of a query that its last checkpoint does not name, when it is known which that is and nobody holds
    /// any: after a start, and when the query is gone.
    ///
    /// # Errors
    /// When they cannot be removed.
    pub fn tidy(disk: &dyn Disk, shard_dir: &Path, query: u64, named: &[u64]) -> Result<(), StorageError> {
        let dir = shard_dir.join(STATE).join(query.to_string());
        for entry in listed(disk, &dir).map_err(failed)? {
            if saved_number(&entry).is_none_or(|number| !named.contains(&number)) {
                disk.remove(&dir.join(entry)).map_err(failed)?;
            }
        }
        if !named.is_empty() {
            return Ok(());
        }
        match disk.remove_dir(&dir) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failed(error)),
            _ => Ok(()),
        }
    }

    /// The queries that have files in the shard.
    ///
    /// # Errors
    /// When the directory cannot be read.
    pub fn queries(disk: &dyn Disk, shard_dir: &Path) -> Result<Vec<u64>, StorageError> {
        let names = listed(disk, &shard_dir.join(STATE)).map_err(failed)?;
        Ok(names.iter().filter_map(|name| name.parse().ok()).collect())
    }

    /// Writes a file, held once; its number.
    ///
    /// # Errors
    /// [`StorageError::DiskFull`], or the system's error.
    pub fn write(&self, bytes: &[u8]) -> Result<u64, StorageError> {
        let number = {
            let mut files = self.files.lock();
            let number = files.next;
            files.next += 1;
            files.known.insert(number, File { holders: 1, is_saved: false, is_pending: false });
            number
        };
        let written = self.write_new(number, bytes);
        if written.is_err() {
            self.release(number);
        }
        written.map(|()| number).map_err(failed)
    }

    fn write_new(&self, number: u64, bytes: &[u8]) -> io::Result<()> {
        if number == 1 || !self.disk.exists(&self.dir)? {
            self.disk.create_dir_durable(&self.dir)?;
        }
        let file = self.disk.create(&self.path(number, false))?;
        let mut header = [0; HEADER_BYTES];
        header[..4].copy_from_slice(MAGIC);
        header[4..6].copy_from_slice(&VERSION.to_le_bytes());
        header[8..16].copy_from_slice(&(bytes.len() as u64).to_le_bytes());
        header[16..].copy_from_slice(&crc32c::crc32c(bytes).to_le_bytes());
        file.write_at(&header, 0)?;
        file.write_at(bytes, HEADER_BYTES as u64)
    }

    /// The bytes of a file.
    ///
    /// # Errors
    /// [`StorageError::Missing`] and [`StorageError::Corrupt`] name it.
    pub fn read(&self, number: u64) -> Result<Vec<u8>, StorageError> {
        let is_saved = self.files.lock().known.get(&number).is_none_or(|file| file.is_saved);
        read(&*self.disk, &self.path(number, is_saved))
    }

    /// Holds a file once more.
    pub fn hold(&self, number: u64) {
        self.files
            .lock()
            .known
            .entry(number)
            .or_insert(File { holders: 0, is_saved: true, is_pending: false })
            .holders += 1;
    }

    /// Holds a file once less; it goes if nobody needs it.
    pub fn release(&self, number: u64) {
        let mut files = self.files.lock();
        let is_named = files.named.contains(&number);
        let Some(file) = files.known.get_mut(&number) else { return };
        file.holders = file.holders.saturating_sub(1);
        if file.holders == 0 && !is_named && !file.is_pending {
            let is_saved = file.is_saved;
            files.known.remove(&number);
            self.unlink(number, is_saved);
        }
    }

    /// Makes files durable, for a checkpoint to name them.
    ///
    /// # Errors
    /// The system's error.
    pub fn save(&self, numbers: &[u64]) -> Result<(), StorageError> {
        let is_new = |number: &u64| self.files.lock().known.get(number).is_some_and(|file| !file.is_saved);
        let new: Vec<u64> = numbers.iter().copied().filter(is_new).collect();
        for number in &new {
            let (from, to) = (self.path(*number, false), self.path(*number, true));
            let synced = self.disk.open(&from).and_then(|file| file.sync_data());
            synced.and_then(|()| self.disk.rename(&from, &to)).map_err(failed)?;
            if let Some(file) = self.files.lock().known.get_mut(number) {
                file.is_saved = true;
                file.is_pending = true;
            }
        }
        if new.is_empty() { Ok(()) } else { self.disk.sync_dir(&self.dir).map_err(failed) }
    }

    /// The last checkpoint names these now, which were saved; what only the one before named goes.
    pub fn name(&self, numbers: &[u64]) {
        let mut files = self.files.lock();
        files.named = numbers.iter().copied().collect();
        let Files { known, named, .. } = &mut *files;
        known.retain(|number, file| {
            file.is_pending = false;
            let is_needed = file.holders > 0 || !file.is_saved || named.contains(number);
            if !is_needed {
                self.unlink(*number, true);
            }
            is_needed
        });
    }

    fn path(&self, number: u64, is_saved: bool) -> PathBuf {
        self.dir.join(format!("{number:016}{}", if is_saved { SAVED } else { SPILLED }))
    }

    /// What cannot be removed now, the next start removes.
    fn unlink(&self, number: u64, is_saved: bool) {
        if let Err(error) = self.disk.remove(&self.path(number, is_saved)) {
            tracing::debug!(%error, number, "a file of state could not be removed");
        }
    }
}

/// The bytes of a file of state.
///
/// # Errors
/// [`StorageError::Missing`], [`StorageError::Corrupt`] and [`StorageError::Newer`] name it.
pub(crate) fn read(disk: &dyn Disk, path: &Path) -> Result<Vec<u8>, StorageError> {
    let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let corrupt = |position, what| StorageError::Corrupt { file: name.clone(), position, what };
    let file = disk.open_read(path).map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => StorageError::Missing { file: name.clone() },
        _ => failed(error),
    })?;
    let size = file.len().map_err(failed)?;
    let mut header = [0; HEADER_BYTES];
    if size < HEADER_BYTES as u64 {
        return Err(corrupt(0, "it is too short"));
    }
    file.read_at(&mut header, 0).map_err(failed)?;
    let (magic, rest) = header.split_at(4);
    if magic != MAGIC {
        return Err(corrupt(0, "it does not begin as a file of state"));
    }
    let number = |at: std::ops::Range<usize>| rest[at].iter().rev().fold(0, |sum, byte| sum << 8 | u64::from(*byte));
    if number(0..2) != u64::from(VERSION) {
        let (version, supported) = (number(0..2) as u32, u32::from(VERSION));
        return Err(StorageError::Newer { file: name, version, supported });
    }
    if size - HEADER_BYTES as u64 != number(4..12) {
        return Err(corrupt(8, "its length is not what was written"));
    }
    let mut bytes = vec![0; number(4..12) as usize];
    file.read_at(&mut bytes, HEADER_BYTES as u64).map_err(failed)?;
    match u64::from(crc32c::crc32c(&bytes)) == number(12..16) {
        true => Ok(bytes),
        false => Err(corrupt(HEADER_BYTES as u64, "its bytes are not what was written")),
    }
}

/// The number of a file that a checkpoint may name, by its name.
pub(crate) fn saved_number(name: &str) -> Option<u64> {
    name.strip_suffix(SAVED)?.parse().ok()
}

/// The name of a file that a checkpoint names.
pub(crate) fn saved_name(number: u64) -> String {
    format!("{number:016}{SAVED}")
}

/// The names in a directory; none when there is no such directory.
fn listed(disk: &dyn Disk, dir: &Path) -> io::Result<Vec<String>> {
    match disk.list(dir) {
        Ok(entries) => Ok(entries.into_iter().map(|entry| entry.name).collect()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(error),
    }
}

fn failed(error: io::Error) -> StorageError {
    StorageError::io("keep the state of a query", error)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::FaultDisk;

    fn open(disk: &FaultDisk, named: &[u64]) -> StateFiles {
        StateFiles::open(Arc::new(disk.clone()), Path::new("/shard"), 7, named).unwrap()
    }

    fn names(disk: &FaultDisk) -> Vec<String> {
        listed(disk, Path::new("/shard/state/7")).unwrap()
    }

    #[test]
    fn files_go_when_nobody_holds_them_and_no_checkpoint_names_them() {
        let disk = FaultDisk::new();
        let files = open(&disk, &[]);
        let (one, two) = (files.write(b"one").unwrap(), files.write(b"two").unwrap());
        assert_eq!(files.read(two).unwrap(), b"two");
        files.save(&[one]).unwrap();
        files.name(&[one]);
        assert_eq!(names(&disk), [saved_name(one), format!("{two:016}.spill")]);
        files.release(one);
        files.release(two);
        assert_eq!(names(&disk), [saved_name(one)]);
        assert_eq!(files.read(one).unwrap(), b"one");
        let three = files.write(b"three").unwrap();
        files.hold(one);
        files.save(&[three]).unwrap();
        files.name(&[three]);
        assert_eq!(names(&disk).len(), 2);
        files.release(one);
        assert_eq!(names(&disk), [saved_name(three)]);
        assert_eq!(StateFiles::queries(&disk, Path::new("/shard")).unwrap(), [7]);
        StateFiles::tidy(&disk, Path::new("/shard"), 7, &[]).unwrap();
        assert_eq!(StateFiles::queries(&disk, Path::new("/shard")).unwrap(), [0; 0]);
    }

    #[test]
    fn a_power_cut_keeps_what_a_checkpoint_may_name() {
        for seed in 0..50 {
            let disk = FaultDisk::new();
            let files = open(&disk, &[]);
            let (one, two) = (files.write(&[1; 5_000]).unwrap(), files.write(&[2; 5_000]).unwrap());
            files.save(&[one]).unwrap();
            let after = disk.crash(seed);
            StateFiles::tidy(&after, Path::new("/shard"), 7, &[one]).unwrap();
            let files = open(&after, &[one]);
            assert_eq!(files.read(one).unwrap(), [1; 5_000]);
            assert_eq!(names(&after), [saved_name(one)], "{two}");
            assert!(files.write(b"x").unwrap() > one);
        }
    }

    #[test]
    fn files_of_a_checkpoint_without_an_answer_stay_until_it_is_known() {
        let disk = FaultDisk::new();
        let files = open(&disk, &[]);
        let (one, two) = (files.write(b"one").unwrap(), files.write(b"two").unwrap());
        files.save(&[one]).unwrap();
        files.name(&[one]);
        files.save(&[two]).unwrap();
        // Whether the checkpoint that names it is in the log, nobody knows; its writer gives up, and begins again.
        files.release(one);
        files.release(two);
        drop(files);
        let again = open(&disk, &[one]);
        assert_eq!(names(&disk), [saved_name(one), saved_name(two)]);
        let three = again.write(b"three").unwrap();
        assert!(three > two, "names are used once");
        // After a restart it is known.
        let restarted = disk.crash(1);
        StateFiles::tidy(&restarted, Path::new("/shard"), 7, &[two]).unwrap();
        assert_eq!(names(&restarted), [saved_name(two)]);
        // Or another one is the last.
        again.save(&[three]).unwrap();
        again.name(&[three]);
        assert_eq!(names(&disk), [saved_name(three)]);
    }

    #[test]
    fn every_damaged_byte_is_found() {
        let disk = FaultDisk::new();
        let files = open(&disk, &[]);
        let number = files.write(b"state of a query").unwrap();
        let path = files.path(number, false);
        let file = disk.open(&path).unwrap();
        for at in (0..file.len().unwrap()).filter(|at| ![6, 7].contains(at)) {
            let mut byte = [0];
            file.read_at(&mut byte, at).unwrap();
            file.write_at(&[byte[0] ^ 4], at).unwrap();
            files.read(number).unwrap_err();
            file.write_at(&byte, at).unwrap();
        }
        assert_eq!(files.read(number).unwrap(), b"state of a query");
        file.set_len(20).unwrap();
        files.read(number).unwrap_err();
    }
}
