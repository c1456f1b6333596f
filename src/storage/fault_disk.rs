//! A disk in memory that does everything a real one may do at the worst moment.
//!
//! Owns the model: files are sectors of 512 bytes with a durable state and unsynced writes on top, directories
//! a durable state and unsynced changes on top. At a [`crash`](FaultDisk::crash) each sector written since its
//! file's last sync keeps one of the states it went through, and each unsynced change of a directory happens or
//! does not. Faults are injected: an operation after which everything fails (the power is off), failing syncs, a full disk, flipped
//! bits. Same seed and same calls ⇒ same bytes. Used by tests of every layer; leaves out speed.
//!
//! A directory is a name in its parent like any other: it is durable once the parent was synced, and what is in one that
//! is lost is lost with it.

use super::disk::{DirLock, Disk, DiskEntry, DiskFile};
use super::error::StorageError;
use arrow::buffer::Buffer;
use bytes::Bytes;
use parking_lot::{Condvar, Mutex};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Bytes a disk writes atomically.
const SECTOR_BYTES: u64 = 512;

type FileId = u64;

/// A disk in memory with seeded faults. Clones share the disk.
#[derive(Clone)]
pub struct FaultDisk {
    state: Arc<Mutex<State>>,
}

/// An unsynced change of a file.
#[derive(Debug, Clone)]
enum Change {
    Write { position: u64, bytes: Vec<u8> },
    Length { len: u64 },
}

#[derive(Debug, Clone, Default)]
struct Node {
    durable: Vec<u8>,
    current: Vec<u8>,
    changes: Vec<Change>,
}

/// An unsynced change of a directory.
#[derive(Debug, Clone)]
enum Naming {
    Link(PathBuf, FileId),
    Unlink(PathBuf),
    Rename(PathBuf, PathBuf, FileId),
    Directory(PathBuf),
    NoDirectory(PathBuf),
}

#[derive(Debug, Default)]
struct State {
    nodes: BTreeMap<FileId, Node>,
    node_next: FileId,
    dirs: BTreeSet<PathBuf>,
    dirs_durable: BTreeSet<PathBuf>,
    names: BTreeMap<PathBuf, FileId>,
    names_durable: BTreeMap<PathBuf, FileId>,
    namings: Vec<Naming>,
    locked: BTreeSet<PathBuf>,
    steps: u64,
    steps_max: Option<u64>,
    syncs_until_failure: Option<u64>,
    panics_at_create: bool,
    capacity: Option<u64>,
    are_syncs_held: bool,
    syncs_waiting: usize,
    released: Arc<Condvar>,
    /// Files cannot take space before it is written to.
    is_without_reserves: bool,
}

/// SplitMix64 (Steele, Lea and Flood, 2014).
struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        (z ^ (z >> 31)) % bound.max(1)
    }
}

impl fmt::Debug for FaultDisk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = self.state.lock();
        f.debug_struct("FaultDisk").field("steps", &state.steps).field("names", &state.names.keys()).finish()
    }
}

impl Default for FaultDisk {
    fn default() -> Self {
        Self::new()
    }
}

impl FaultDisk {
    /// An empty disk without faults.
    pub fn new() -> Self {
        let mut state = State::default();
        state.dirs.extend([PathBuf::from("/"), PathBuf::new()]);
        state.dirs_durable.clone_from(&state.dirs);
        Self { state: Arc::new(Mutex::new(state)) }
    }

    /// Changing operations so far: writes, syncs, creations, renames, removals, changes of length.
    pub fn steps(&self) -> u64 {
        self.state.lock().steps
    }

    /// Lets `steps` more changing operations through; from then on every operation fails, reads too.
    pub fn fail_after(&self, steps: u64) {
        let mut state = self.state.lock();
        state.steps_max = Some(state.steps + steps);
    }

    /// The next file that is created panics.
    pub fn panic_at_create(&self) {
        self.state.lock().panics_at_create = true;
    }

    /// Lets `syncs` more file syncs succeed and fails the one after; what it should have made durable never will be.
    pub fn fail_sync_after(&self, syncs: u64) {
        self.state.lock().syncs_until_failure = Some(syncs);
    }

    /// Makes syncs of files wait until what it returns is dropped.
    pub fn hold_syncs(&self) -> HeldSyncs {
        self.state.lock().are_syncs_held = true;
        HeldSyncs { state: Arc::clone(&self.state) }
    }

    /// As a file system on which files take no space before they are written to.
    pub fn refuse_reserves(&self) {
        self.state.lock().is_without_reserves = true;
    }

    /// Bounds the sum of all file lengths; `None` lifts the bound.
    pub fn set_capacity(&self, bytes: Option<u64>) {
        self.state.lock().capacity = bytes;
    }

    /// Bytes in all files.
    pub fn bytes_used(&self) -> u64 {
        self.state.lock().bytes_used()
    }

    /// Flips one bit of a file, now and for ever.
    ///
    /// # Errors
    /// `NotFound` for an unknown file, `UnexpectedEof` for a position past its end.
    pub fn flip_bit(&self, path: &Path, position: u64, bit: u8) -> io::Result<()> {
        let mut state = self.state.lock();
        let id = state.find(path)?;
        let node = state.node(id)?;
        let at = to_usize(position);
        let mask = 1_u8 << (bit % 8);
        *node.current.get_mut(at).ok_or(io::ErrorKind::UnexpectedEof)? ^= mask;
        if let Some(byte) = node.durable.get_mut(at) {
            *byte ^= mask;
        }
        Ok(())
    }

    /// The power fails: what a new start finds, decided by `seed`. No faults are armed on the new disk, and
    /// handles into the old one do not reach it.
    pub fn crash(&self, seed: u64) -> Self {
        let state = self.state.lock();
        let mut random = Random(seed);
        let mut names = state.names_durable.clone();
        let mut dirs = state.dirs_durable.clone();
        let policy = random.below(4);
        for naming in &state.namings {
            if keeps(&mut random, policy) {
                naming.apply(&mut names);
                naming.apply_dirs(&mut dirs);
            }
        }
        // What is in a directory that is gone is gone with it.
        let is_reached = |path: &Path, dirs: &BTreeSet<PathBuf>| path.ancestors().skip(1).all(|dir| dirs.contains(dir));
        let reached: BTreeSet<PathBuf> = dirs.iter().filter(|dir| is_reached(dir, &dirs)).cloned().collect();
        names.retain(|path, _| is_reached(path, &reached));
        let mut nodes = BTreeMap::new();
        for id in names.values() {
            if let Some(node) = state.nodes.get(id) {
                let bytes = node.survive(&mut random, policy);
                nodes.insert(*id, Node { current: bytes.clone(), durable: bytes, changes: Vec::new() });
            }
        }
        let survivor = State {
            nodes,
            node_next: state.node_next,
            dirs: reached.clone(),
            dirs_durable: reached,
            names_durable: names.clone(),
            names,
            ..State::default()
        };
        Self { state: Arc::new(Mutex::new(survivor)) }
    }
}

/// What a crash keeps: 0 nothing, 1 everything, else a mixture; so that the two ends are as common as what is between.
const MIXED: u64 = 2;

fn keeps(random: &mut Random, policy: u64) -> bool {
    match policy {
        0 => false,
        1 => true,
        _ => random.below(2) == 0,
    }
}

fn to_usize(value: u64) -> usize {
    usize::try_from(value).unwrap_or(usize::MAX)
}

impl Naming {
    fn apply(&self, names: &mut BTreeMap<PathBuf, FileId>) {
        match self {
            Self::Link(path, id) => {
                names.insert(path.clone(), *id);
            }
            Self::Unlink(path) => {
                names.remove(path);
            }
            Self::Rename(from, to, id) => {
                if names.get(from) == Some(id) {
                    names.remove(from);
                }
                names.insert(to.clone(), *id);
            }
            Self::Directory(_) | Self::NoDirectory(_) => {}
        }
    }

    fn apply_dirs(&self, dirs: &mut BTreeSet<PathBuf>) {
        match self {
            Self::Directory(dir) => drop(dirs.insert(dir.clone())),
            Self::NoDirectory(dir) => drop(dirs.remove(dir)),
            Self::Link(..) | Self::Unlink(_) | Self::Rename(..) => {}
        }
    }

    fn is_in(&self, dir: &Path) -> bool {
        match self {
            Self::Link(path, _) | Self::Unlink(path) | Self::Rename(_, path, _) => path.parent() == Some(dir),
            Self::Directory(path) | Self::NoDirectory(path) => path.parent() == Some(dir),
        }
    }
}

impl Change {
    fn apply(&self, bytes: &mut Vec<u8>) {
        match self {
            Self::Write { position, bytes: written } => {
                let start = to_usize(*position);
                let end = start.saturating_add(written.len());
                if bytes.len() < end {
                    bytes.resize(end, 0);
                }
                bytes[start..end].copy_from_slice(written);
            }
            Self::Length { len } => bytes.resize(to_usize(*len), 0),
        }
    }

    fn sectors(&self) -> std::ops::Range<u64> {
        match self {
            Self::Write { position, bytes } => {
                position / SECTOR_BYTES..(position + bytes.len() as u64).div_ceil(SECTOR_BYTES)
            }
            Self::Length { .. } => 0..0,
        }
    }
}

impl Node {
    /// Makes every change durable.
    fn sync(&mut self) {
        for change in self.changes.drain(..) {
            change.apply(&mut self.durable);
        }
    }

    /// What a crash leaves: each touched sector in one of the states it went through.
    fn survive(&self, random: &mut Random, policy: u64) -> Vec<u8> {
        let mut bytes = self.durable.clone();
        // How many of the changes to a sector reached the disk, by sector.
        let mut kept: BTreeMap<u64, u64> = BTreeMap::new();
        let mut touched: BTreeMap<u64, u64> = BTreeMap::new();
        for sector in self.changes.iter().flat_map(Change::sectors) {
            *touched.entry(sector).or_default() += 1;
        }
        for (sector, count) in touched {
            let keep = match policy {
                0 => 0,
                1 => count,
                _ => random.below(count + 1),
            };
            kept.insert(sector, keep);
        }
        for change in &self.changes {
            match change {
                Change::Length { .. } => {
                    if keeps(random, policy) {
                        change.apply(&mut bytes);
                    }
                }
                Change::Write { position, bytes: written } => {
                    for sector in change.sectors() {
                        let Some(left) = kept.get_mut(&sector).filter(|left| **left > 0) else { continue };
                        *left -= 1;
                        let start = (sector * SECTOR_BYTES).max(*position);
                        let end = ((sector + 1) * SECTOR_BYTES).min(position + written.len() as u64);
                        let part = written[to_usize(start - position)..to_usize(end - position)].to_vec();
                        Change::Write { position: start, bytes: part }.apply(&mut bytes);
                    }
                }
            }
        }
        bytes
    }
}

impl State {
    /// Counts a changing operation; fails when the power is off.
    fn step(&mut self) -> io::Result<()> {
        self.check_power()?;
        self.steps += 1;
        Ok(())
    }

    fn check_power(&self) -> io::Result<()> {
        match self.steps_max {
            Some(max) if self.steps >= max => Err(io::Error::other("the power is off")),
            _ => Ok(()),
        }
    }

    fn find(&self, path: &Path) -> io::Result<FileId> {
        self.names.get(path).copied().ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    fn node(&mut self, id: FileId) -> io::Result<&mut Node> {
        self.nodes.get_mut(&id).ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    fn check_parent(&self, path: &Path) -> io::Result<()> {
        match path.parent() {
            Some(parent) if self.dirs.contains(parent) => Ok(()),
            _ => Err(io::ErrorKind::NotFound.into()),
        }
    }

    fn rename(&mut self, from: &Path, to: &Path) -> io::Result<()> {
        let id = self.find(from)?;
        self.check_parent(to)?;
        let naming = Naming::Rename(from.to_owned(), to.to_owned(), id);
        naming.apply(&mut self.names);
        self.namings.push(naming);
        Ok(())
    }

    fn bytes_used(&self) -> u64 {
        self.names.values().filter_map(|id| self.nodes.get(id)).map(|node| node.current.len() as u64).sum()
    }

    /// Of a file that shall grow to `len`: the length the disk has room for.
    fn room(&self, len_old: u64, len: u64) -> u64 {
        match self.capacity {
            Some(capacity) => len.min(len_old.max(len_old + capacity.saturating_sub(self.bytes_used()))),
            None => len,
        }
    }

    fn write(&mut self, id: FileId, bytes: &[u8], position: u64) -> io::Result<()> {
        let end = position + bytes.len() as u64;
        let len = self.node(id)?.current.len() as u64;
        let room = if end > len { self.room(len, end) } else { end };
        let fits = &bytes[..to_usize(room.saturating_sub(position)).min(bytes.len())];
        let node = self.node(id)?;
        if !fits.is_empty() {
            let change = Change::Write { position, bytes: fits.to_vec() };
            change.apply(&mut node.current);
            node.changes.push(change);
        }
        if room < end { Err(io::ErrorKind::StorageFull.into()) } else { Ok(()) }
    }

    fn sync(&mut self, id: FileId) -> io::Result<()> {
        if let Some(left) = self.syncs_until_failure {
            self.syncs_until_failure = left.checked_sub(1);
            if left == 0 {
                let mut random = Random(self.steps);
                let node = self.node(id)?;
                node.durable = node.survive(&mut random, MIXED);
                node.changes.clear();
                return Err(io::Error::other("sync failed"));
            }
        }
        self.node(id)?.sync();
        Ok(())
    }

    fn sync_dir(&mut self, dir: &Path) {
        let namings = std::mem::take(&mut self.namings);
        let (synced, pending): (Vec<_>, Vec<_>) = namings.into_iter().partition(|naming| naming.is_in(dir));
        for naming in synced {
            naming.apply(&mut self.names_durable);
            naming.apply_dirs(&mut self.dirs_durable);
        }
        self.namings = pending;
    }
}

impl Disk for FaultDisk {
    fn open(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>> {
        let state = self.state.lock();
        state.check_power()?;
        let id = state.find(path)?;
        Ok(Arc::new(FaultFile { state: self.state.clone(), id }))
    }

    fn create(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>> {
        let mut state = self.state.lock();
        state.step()?;
        assert!(!std::mem::take(&mut state.panics_at_create), "a panic on purpose");
        state.check_parent(path)?;
        let id = match state.names.get(path).copied() {
            Some(id) => {
                let change = Change::Length { len: 0 };
                let node = state.node(id)?;
                change.apply(&mut node.current);
                node.changes.push(change);
                id
            }
            None => {
                let id = state.node_next;
                state.node_next += 1;
                state.nodes.insert(id, Node::default());
                state.names.insert(path.to_owned(), id);
                state.namings.push(Naming::Link(path.to_owned(), id));
                id
            }
        };
        Ok(Arc::new(FaultFile { state: self.state.clone(), id }))
    }

    fn open_read(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>> {
        self.open(path)
    }

    fn link(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut state = self.state.lock();
        state.step()?;
        let id = state.find(from)?;
        state.check_parent(to)?;
        if state.names.contains_key(to) {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        let naming = Naming::Link(to.to_owned(), id);
        naming.apply(&mut state.names);
        state.namings.push(naming);
        Ok(())
    }

    fn is_linked(&self, path: &Path) -> io::Result<bool> {
        let state = self.state.lock();
        state.check_power()?;
        let id = state.find(path)?;
        Ok(state.names.values().filter(|other| **other == id).count() > 1)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut state = self.state.lock();
        state.step()?;
        state.rename(from, to)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        let mut state = self.state.lock();
        state.step()?;
        state.find(path)?;
        let naming = Naming::Unlink(path.to_owned());
        naming.apply(&mut state.names);
        state.namings.push(naming);
        Ok(())
    }

    fn remove_dir(&self, dir: &Path) -> io::Result<()> {
        let mut state = self.state.lock();
        state.step()?;
        if state.names.keys().chain(&state.dirs).any(|path| path.parent() == Some(dir)) {
            return Err(io::ErrorKind::DirectoryNotEmpty.into());
        }
        state.dirs.remove(dir).then_some(()).ok_or(io::ErrorKind::NotFound)?;
        state.namings.push(Naming::NoDirectory(dir.to_owned()));
        Ok(())
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<DiskEntry>> {
        let state = self.state.lock();
        state.check_power()?;
        if !state.dirs.contains(dir) {
            let is_file = state.names.contains_key(dir);
            return Err(if is_file { io::ErrorKind::NotADirectory } else { io::ErrorKind::NotFound }.into());
        }
        let name = |path: &Path| path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        let within = |path: &&PathBuf| path.parent() == Some(dir);
        let files = state.names.keys().filter(within).map(|path| DiskEntry { name: name(path), is_dir: false });
        let dirs = state.dirs.iter().filter(within).map(|path| DiskEntry { name: name(path), is_dir: true });
        let mut entries: Vec<_> = files.chain(dirs).filter(|entry| !entry.name.is_empty()).collect();
        entries.sort();
        Ok(entries)
    }

    fn create_dir_all(&self, dir: &Path) -> io::Result<()> {
        let mut state = self.state.lock();
        state.check_power()?;
        let missing: Vec<PathBuf> =
            dir.ancestors().filter(|dir| !state.dirs.contains(*dir)).map(Path::to_owned).collect();
        if !missing.is_empty() {
            state.step()?;
        }
        for dir in missing.into_iter().rev() {
            state.namings.push(Naming::Directory(dir.clone()));
            state.dirs.insert(dir);
        }
        Ok(())
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        let mut state = self.state.lock();
        state.step()?;
        state.sync_dir(dir);
        Ok(())
    }

    fn exists(&self, path: &Path) -> io::Result<bool> {
        let state = self.state.lock();
        state.check_power()?;
        Ok(state.names.contains_key(path) || state.dirs.contains(path))
    }

    fn map(&self, path: &Path) -> io::Result<Buffer> {
        let mut state = self.state.lock();
        state.check_power()?;
        let id = state.find(path)?;
        Ok(Buffer::from(Bytes::copy_from_slice(&state.node(id)?.current)))
    }

    fn lock(&self, dir: &Path) -> Result<DirLock, StorageError> {
        if !self.state.lock().locked.insert(dir.to_owned()) {
            return Err(StorageError::Locked);
        }
        Ok(DirLock::new(FaultLock { state: self.state.clone(), dir: dir.to_owned() }))
    }

    fn lock_existing(&self, dir: &Path) -> Result<Option<DirLock>, StorageError> {
        self.lock(dir).map(Some)
    }
}

/// Syncs that wait.
#[derive(Debug)]
pub struct HeldSyncs {
    state: Arc<Mutex<State>>,
}

impl HeldSyncs {
    /// How many wait now.
    pub fn waiting(&self) -> usize {
        self.state.lock().syncs_waiting
    }
}

impl Drop for HeldSyncs {
    fn drop(&mut self) {
        let mut state = self.state.lock();
        state.are_syncs_held = false;
        state.released.notify_all();
    }
}

struct FaultLock {
    state: Arc<Mutex<State>>,
    dir: PathBuf,
}

impl Drop for FaultLock {
    fn drop(&mut self) {
        self.state.lock().locked.remove(&self.dir);
    }
}

struct FaultFile {
    state: Arc<Mutex<State>>,
    id: FileId,
}

impl fmt::Debug for FaultFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FaultFile").field("id", &self.id).finish_non_exhaustive()
    }
}

impl DiskFile for FaultFile {
    fn read_at(&self, bytes: &mut [u8], position: u64) -> io::Result<()> {
        let mut state = self.state.lock();
        state.check_power()?;
        let node = state.node(self.id)?;
        let start = to_usize(position);
        let stored = node.current.get(start..start.saturating_add(bytes.len()));
        bytes.copy_from_slice(stored.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }

    fn write_at(&self, bytes: &[u8], position: u64) -> io::Result<()> {
        let mut state = self.state.lock();
        state.step()?;
        state.write(self.id, bytes, position)
    }

    fn sync_data(&self) -> io::Result<()> {
        let mut state = self.state.lock();
        let released = Arc::clone(&state.released);
        state.syncs_waiting += 1;
        released.wait_while(&mut state, |state| state.are_syncs_held);
        state.syncs_waiting -= 1;
        state.step()?;
        state.sync(self.id)
    }

    fn len(&self) -> io::Result<u64> {
        let mut state = self.state.lock();
        state.check_power()?;
        Ok(state.node(self.id)?.current.len() as u64)
    }

    fn reserve(&self, bytes: u64) -> io::Result<bool> {
        if self.state.lock().is_without_reserves {
            return Ok(false);
        }
        if self.len()? < bytes {
            self.set_len(bytes)?;
        }
        Ok(true)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        let mut state = self.state.lock();
        state.step()?;
        let len_old = state.node(self.id)?.current.len() as u64;
        if len > len_old && state.room(len_old, len) < len {
            return Err(io::ErrorKind::StorageFull.into());
        }
        let change = Change::Length { len };
        let node = state.node(self.id)?;
        change.apply(&mut node.current);
        node.changes.push(change);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn root() -> PathBuf {
        PathBuf::from("/d")
    }

    fn disk_with_file(name: &str, bytes: &[u8]) -> (FaultDisk, Arc<dyn DiskFile>) {
        let disk = FaultDisk::new();
        disk.create_dir_durable(&root()).unwrap();
        let file = disk.create(&root().join(name)).unwrap();
        file.write_at(bytes, 0).unwrap();
        file.sync_data().unwrap();
        disk.sync_dir(&root()).unwrap();
        (disk, file)
    }

    #[test]
    fn synced_bytes_survive_and_unsynced_sectors_may_not() {
        let (disk, file) = disk_with_file("a", &[1; 2048]);
        file.write_at(&[2; 2048], 0).unwrap();
        let mut seen = BTreeSet::new();
        for seed in 0..200 {
            let survivor = disk.crash(seed);
            let bytes = survivor.map(&root().join("a")).unwrap();
            let sectors: Vec<u8> = bytes.chunks(512).map(|sector| sector[0]).collect();
            assert!(bytes.chunks(512).all(|sector| sector.iter().all(|byte| *byte == sector[0])), "a torn sector");
            seen.insert(sectors);
        }
        assert_eq!(seen.len(), 16, "every subset of four sectors");
        file.sync_data().unwrap();
        assert!((0..50).all(|seed| disk.crash(seed).map(&root().join("a")).unwrap().as_slice() == [2; 2048]));
    }

    #[test]
    fn names_survive_only_a_synced_directory() {
        let (disk, _) = disk_with_file("a", b"x");
        disk.rename(&root().join("a"), &root().join("b")).unwrap();
        let has = |disk: &FaultDisk, name: &str| disk.exists(&root().join(name)).unwrap();
        let crashed: BTreeSet<_> =
            (0..50).map(|seed| disk.crash(seed)).map(|disk| (has(&disk, "a"), has(&disk, "b"))).collect();
        assert_eq!(crashed, BTreeSet::from([(true, false), (false, true)]));
        disk.sync_dir(&root()).unwrap();
        disk.remove(&root().join("b")).unwrap();
        let crashed: BTreeSet<_> = (0..50).map(|seed| has(&disk.crash(seed), "b")).collect();
        assert_eq!(crashed, BTreeSet::from([false, true]));
        assert_eq!(disk.list(&root()).unwrap(), []);
    }

    #[test]
    fn a_directory_that_was_not_synced_takes_its_files_with_it() {
        let disk = FaultDisk::new();
        let deep = root().join("deep");
        disk.create_dir_all(&deep).unwrap();
        disk.create(&deep.join("a")).unwrap();
        disk.sync_dir(&deep).unwrap();
        let has = |disk: &FaultDisk| disk.exists(&deep.join("a")).unwrap();
        assert_eq!((0..50).map(|seed| has(&disk.crash(seed))).collect::<BTreeSet<_>>(), BTreeSet::from([false, true]));
        disk.sync_dir(&root()).unwrap();
        assert!(!(0..50).all(|seed| has(&disk.crash(seed))), "its parent is not durable");
        disk.create_dir_durable(&root()).unwrap();
        assert!((0..50).all(|seed| has(&disk.crash(seed))));
    }

    #[test]
    fn a_file_lives_under_each_of_its_names() {
        let (disk, file) = disk_with_file("a", b"x");
        assert!(!disk.is_linked(&root().join("a")).unwrap());
        disk.link(&root().join("a"), &root().join("b")).unwrap();
        assert!(disk.is_linked(&root().join("a")).unwrap() && disk.link(&root().join("a"), &root().join("b")).is_err());
        disk.rename(&root().join("a"), &root().join("c")).unwrap();
        file.write_at(b"y", 0).unwrap();
        assert_eq!(disk.map(&root().join("b")).unwrap().as_slice(), b"y");
        disk.remove(&root().join("c")).unwrap();
        assert!(!disk.is_linked(&root().join("b")).unwrap());
    }

    #[test]
    fn same_seed_leaves_the_same_bytes() {
        let (disk, file) = disk_with_file("a", &[1; 4096]);
        file.write_at(&[2; 4096], 100).unwrap();
        for seed in 0..20 {
            let map = |disk: FaultDisk| disk.map(&root().join("a")).unwrap();
            assert_eq!(map(disk.crash(seed)), map(disk.crash(seed)));
        }
    }

    #[test]
    fn failed_sync_loses_what_it_should_have_kept() {
        let (disk, file) = disk_with_file("a", &[1; 8192]);
        disk.fail_sync_after(0);
        file.write_at(&[2; 8192], 0).unwrap();
        assert!(file.sync_data().is_err());
        file.sync_data().unwrap();
        let mut bytes = [0; 8192];
        file.read_at(&mut bytes, 0).unwrap();
        assert_eq!(bytes, [2; 8192], "the cache still has it");
        assert!(disk.crash(0).map(&root().join("a")).unwrap().contains(&1));
    }

    #[test]
    fn full_disk_takes_what_fits_and_the_power_stays_off() {
        let (disk, file) = disk_with_file("a", &[1; 100]);
        disk.set_capacity(Some(150));
        let full = file.write_at(&[2; 100], 100).unwrap_err();
        assert_eq!((full.kind(), file.len().unwrap()), (io::ErrorKind::StorageFull, 150));
        file.write_at(&[3; 100], 0).unwrap();
        assert_eq!(file.set_len(151).unwrap_err().kind(), io::ErrorKind::StorageFull);
        let other = disk.create(&root().join("b")).unwrap();
        assert_eq!(other.write_at(&[1], 0).unwrap_err().kind(), io::ErrorKind::StorageFull);
        disk.remove(&root().join("a")).unwrap();
        other.write_at(&[1], 0).unwrap();
        disk.fail_after(1);
        other.write_at(&[1], 0).unwrap();
        assert!(other.write_at(&[1], 0).is_err() && other.len().is_err() && disk.list(&root()).is_err());
    }

    #[test]
    fn lock_is_exclusive_until_dropped() {
        let disk = FaultDisk::new();
        let lock = disk.lock(&root()).unwrap();
        assert!(matches!(disk.clone().lock(&root()), Err(StorageError::Locked)));
        drop(lock);
        disk.lock(&root()).unwrap();
    }
}
