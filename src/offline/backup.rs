//! `millstream backup` and `restore`: a copy of a node that runs, in a state it could have crashed in.
//!
//! A backup is a data directory. It is taken by another process than the server's, from its files alone; why the copy is
//! whole is in `docs/adr/0004-backup-by-pinning-files.md`. In short: files are pinned by hard links in `backup/`, a
//! directory within the data directory; once no manifest changed from before to after the pinning, manifests and log
//! belong together. Segments are never written again, and the server reuses no file of the log that has a second name.
//!
//! The file `node` says "unfinished" until everything else is durable: what a killed backup or restore leaves is refused
//! by servers and checks. Leaves out schedules and other machines: a backup is files, to be moved with any tool.

use super::check::{self, CheckError};
use super::log::{Piece, pieces};
use super::report::Report;
use super::{list, read_file};
use crate::replication::inspect::{self, IDENTITY, UNFINISHED};
use crate::storage::frame::FrameKind;
use crate::storage::manifest::{MANIFEST, Manifest};
use crate::storage::seal::SEGMENTS;
use crate::storage::staging::STAGED;
use crate::storage::state_files::{STATE, saved_number};
use crate::storage::wal::file::{DATA_START, FileName, log_name};
use crate::storage::{Disk, StorageError};
use bytes::Bytes;
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

/// Directory, within the data directory, of second names that keep files as they are.
const PINS: &str = "backup";
/// How often manifests may change while files are pinned, before the backup gives up.
const ATTEMPTS_MAX: usize = 1_000;
/// Bytes copied at once.
const COPY_BYTES: u64 = 1 << 20;

/// Why there is no backup, or nothing was restored.
#[derive(Debug, thiserror::Error)]
pub enum BackupError {
    /// Something is there already.
    #[error("{} is not empty", .0.display())]
    NotEmpty(PathBuf),
    /// Copies would copy themselves.
    #[error("{} is inside of the data directory", .0.display())]
    Inside(PathBuf),
    /// Nothing to copy.
    #[error("{} is not the data directory of a node that has started", .0.display())]
    NoDirectory(PathBuf),
    /// Two at a time.
    #[error("another backup of {} is running", .0.display())]
    Running(PathBuf),
    /// The server writes segments faster than they can be pinned.
    #[error("the server wrote segments all the time: try again when it does less")]
    Busy,
    /// What should be restored is damaged.
    #[error("the backup is damaged:\n{0}repair it first (check --data-dir … --repair), or take another")]
    Damaged(Box<Report>),
    /// Its files could not be checked.
    #[error(transparent)]
    Check(#[from] CheckError),
    /// The disk.
    #[error(transparent)]
    Storage(#[from] StorageError),
}

fn failed(source: io::Error) -> BackupError {
    StorageError::io("copy the data directory", source).into()
}

/// What was copied.
#[derive(Debug)]
pub struct Copied {
    /// Bytes copied.
    pub bytes: u64,
    /// Segments taken from the base without a copy.
    pub linked: u64,
    /// The check of the copy.
    pub report: Report,
}

/// Copies the data directory `dir`, of a server that may run, to `to`; everything acknowledged before it began is in
/// it. Segments that the earlier backup `base` has are linked from there instead of copied.
///
/// # Errors
/// [`BackupError`]; damage that was copied is no error, but in [`Copied::report`].
pub fn backup(disk: Arc<dyn Disk>, dir: &Path, to: &Path, base: Option<&Path>) -> Result<Copied, BackupError> {
    let identity = read_file(&*disk, &dir.join(IDENTITY)).map_err(|_| BackupError::NoDirectory(dir.to_owned()))?;
    if identity == UNFINISHED.as_bytes() {
        return Err(BackupError::NoDirectory(dir.to_owned()));
    }
    if let (Ok(dir), Ok(inside)) = (whole(dir), whole(to))
        && inside.starts_with(dir)
    {
        return Err(BackupError::Inside(to.to_owned()));
    }
    check_empty(&*disk, to)?;
    let pins = dir.join(PINS);
    disk.create_dir_all(&pins).map_err(failed)?;
    let lock = disk.lock(&pins).map_err(|error| match error {
        StorageError::Locked => BackupError::Running(dir.to_owned()),
        error => error.into(),
    })?;
    let pinned = Pinning { disk: &*disk, dir, pins: &pins }.run();
    let copied = pinned.and_then(|pinned| {
        let mut copy = Copy { disk: &*disk, to, bytes: 0, linked: 0 };
        copy.run(&pinned, &pins, base, &identity)?;
        Ok((copy.bytes, copy.linked))
    });
    // What cannot be removed now, the next backup removes.
    let _ = unpin(&*disk, &pins);
    drop(lock);
    let (bytes, linked) = copied?;
    Ok(Copied { bytes, linked, report: check::check(disk, to)? })
}

/// The path from the root on, without `.` and `..`, as far as its text tells.
fn whole(path: &Path) -> io::Result<PathBuf> {
    let mut whole = PathBuf::new();
    for part in std::path::absolute(path)?.components() {
        match part {
            Component::ParentDir => drop(whole.pop()),
            part => whole.push(part),
        }
    }
    Ok(whole)
}

/// Copies the backup `from` to the new data directory `dir`, durably, after checking it.
///
/// # Errors
/// [`BackupError`]
pub fn restore(disk: Arc<dyn Disk>, from: &Path, dir: &Path) -> Result<Copied, BackupError> {
    check_empty(&*disk, dir)?;
    let report = check::check(Arc::clone(&disk), from)?;
    if !report.is_clean() {
        return Err(BackupError::Damaged(Box::new(report)));
    }
    let identity = read_file(&*disk, &from.join(IDENTITY)).map_err(|_| BackupError::NoDirectory(from.to_owned()))?;
    let mut copy = Copy { disk: &*disk, to: dir, bytes: 0, linked: 0 };
    copy.begin()?;
    for part in ["wal", "shards"] {
        copy.tree(&from.join(part), &dir.join(part))?;
    }
    copy.finish(&identity)?;
    let bytes = copy.bytes;
    Ok(Copied { bytes, linked: 0, report: check::check(disk, dir)? })
}

fn check_empty(disk: &dyn Disk, dir: &Path) -> Result<(), BackupError> {
    match list(disk, dir)?.is_empty() {
        true => Ok(()),
        false => Err(BackupError::NotEmpty(dir.to_owned())),
    }
}

fn unpin(disk: &dyn Disk, pins: &Path) -> Result<(), StorageError> {
    for entry in list(disk, pins)? {
        disk.remove(&pins.join(entry.name)).map_err(|source| StorageError::io("remove a pinned file", source))?;
    }
    disk.remove_dir(pins).map_err(|source| StorageError::io("remove the pinned files", source))
}

/// Files that stay as they are under their names in the pins' directory, and belong together.
struct Pinned {
    /// By shard, the manifest as read.
    manifests: BTreeMap<u32, Bytes>,
    /// The names there of files that manifests list.
    files: BTreeSet<String>,
    /// Files of continuous queries' state.
    states: BTreeSet<StateName>,
    /// Files of the log, oldest first.
    log: Vec<u64>,
    /// Where the frames of the last one end.
    log_end: u64,
}

struct Pinning<'a> {
    disk: &'a dyn Disk,
    dir: &'a Path,
    pins: &'a Path,
}

/// A file of a query's state that a checkpoint may name.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct StateName {
    shard: u32,
    query: String,
    file: String,
}

impl StateName {
    /// Its place within the data directory.
    fn path(&self) -> PathBuf {
        PathBuf::from("shards").join(self.shard.to_string()).join(STATE).join(&self.query).join(&self.file)
    }

    /// The name under which it is pinned: a name is of one file only, ever.
    fn pin(&self) -> String {
        format!("{}-{STATE}-{}-{}", self.shard, self.query, self.file)
    }
}

/// A file that a manifest lists.
struct Listed {
    /// Its directory within the shard's.
    dir: &'static str,
    file: String,
    /// The name under which it is pinned: another file may have the name of the one before, never its checksum.
    pin: String,
}

/// The files that a shard's manifest lists, but for those that are known to be lost.
fn listed(shard: u32, manifest: &Bytes) -> Result<Vec<Listed>, BackupError> {
    let manifest = Manifest::decode(manifest)?;
    let of = |dir, file: &str, (bytes, crc): (u64, u32)| {
        let pin = format!("{shard}-{dir}-{crc:08x}-{bytes}-{file}");
        Listed { dir, file: file.to_owned(), pin }
    };
    let partitions = manifest.index.topics.iter().flat_map(|topic| &topic.partitions);
    let segments = partitions.flat_map(|partition| &partition.segments).filter(|segment| segment.lost.is_none());
    let segments = segments.map(|segment| of(SEGMENTS, &segment.file, (segment.bytes, segment.end.crc)));
    // What else the manifest says of one that cannot be read, the check of the copy names.
    let staged = inspect::read_manifest(manifest.applied.clone(), manifest.extra.clone());
    let staged = staged.map_or_else(|_| Vec::new(), |content| content.staged);
    let staged = staged.iter().map(|listed| of(STAGED, listed.file.file(), listed.file.identity()));
    Ok(segments.chain(staged).collect())
}

impl Pinning<'_> {
    fn run(&self) -> Result<Pinned, BackupError> {
        // Of a backup that was killed.
        for entry in list(self.disk, self.pins)?.into_iter().filter(|entry| entry.name != "lock") {
            self.disk.remove(&self.pins.join(entry.name)).map_err(failed)?;
        }
        let (mut manifests, mut states) = (self.manifests()?, self.states()?);
        for _ in 0..ATTEMPTS_MAX {
            let pinned = self.pin(&manifests, &states)?;
            let after = (self.manifests()?, self.states()?);
            if (&after.0, &after.1) == (&manifests, &states) {
                return Ok(pinned);
            }
            (manifests, states) = after;
        }
        Err(BackupError::Busy)
    }

    fn manifests(&self) -> Result<BTreeMap<u32, Bytes>, BackupError> {
        let mut found = BTreeMap::new();
        for entry in list(self.disk, &self.dir.join("shards"))? {
            let Ok(shard) = entry.name.parse::<u32>() else { continue };
            match read_file(self.disk, &self.dir.join("shards").join(&entry.name).join(MANIFEST)) {
                Ok(bytes) => {
                    found.insert(shard, bytes);
                }
                // A shard that never sealed has none.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(failed(error)),
            }
        }
        Ok(found)
    }

    /// The files of state that are durable.
    fn states(&self) -> Result<BTreeSet<StateName>, BackupError> {
        let mut found = BTreeSet::new();
        for entry in list(self.disk, &self.dir.join("shards"))? {
            let Ok(shard) = entry.name.parse::<u32>() else { continue };
            let dir = self.dir.join("shards").join(&entry.name).join(STATE);
            for query in list(self.disk, &dir)?.into_iter().filter(|query| query.is_dir) {
                let files = list(self.disk, &dir.join(&query.name))?.into_iter().map(|entry| entry.name);
                let files = files.filter(|file| saved_number(file).is_some());
                found.extend(files.map(|file| StateName { shard, query: query.name.clone(), file }));
            }
        }
        Ok(found)
    }

    fn pin(&self, manifests: &BTreeMap<u32, Bytes>, states: &BTreeSet<StateName>) -> Result<Pinned, BackupError> {
        for state in states {
            self.link(&self.dir.join(state.path()), &state.pin())?;
        }
        let mut files = BTreeSet::new();
        for (shard, bytes) in manifests {
            let from = self.dir.join("shards").join(shard.to_string());
            for Listed { dir, file, pin } in listed(*shard, bytes)? {
                if self.link(&from.join(dir).join(file), &pin)? {
                    files.insert(pin);
                }
            }
        }
        let mut log = Vec::new();
        for entry in list(self.disk, &self.dir.join("wal"))? {
            let FileName::Log(sequence) = FileName::parse(&entry.name) else { continue };
            if self.link(&self.dir.join("wal").join(&entry.name), &entry.name)? {
                log.push(sequence);
            }
        }
        log.sort_unstable();
        let log_end = loop {
            let Some(newest) = log.last() else { return Err(BackupError::NoDirectory(self.dir.to_owned())) };
            let bytes = read_file(self.disk, &self.pins.join(log_name(*newest))).map_err(failed)?;
            match log_end(&bytes, *newest)? {
                Some(end) => break end,
                None => log.pop(),
            };
        };
        Ok(Pinned { manifests: manifests.clone(), files, states: states.clone(), log, log_end })
    }

    /// Gives a file a second name; whether it is there.
    fn link(&self, from: &Path, name: &str) -> Result<bool, BackupError> {
        match self.disk.link(from, &self.pins.join(name)) {
            Ok(()) => Ok(true),
            // Pinned before.
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(failed(error)),
        }
    }
}

/// Where the whole frames of a file end, its end mark left out: the copy goes on in this file. `None` without frames.
fn log_end(bytes: &Bytes, sequence: u64) -> Result<Option<u64>, StorageError> {
    let found = pieces(bytes, sequence)?;
    let is_kept = |piece: &Piece| matches!(piece, Piece::Frame(header) if header.kind != FrameKind::End);
    let synced = found.iter().filter_map(|(_, piece)| piece.header()).map(|header| header.synced).max();
    let synced = synced.unwrap_or(DATA_START);
    // Damage within what was synced is copied as it is, for the check of the copy to name.
    let kept = found.iter().take_while(|(range, piece)| is_kept(piece) || range.start < synced);
    let end = kept.filter(|(_, piece)| !matches!(piece.header(), Some(h) if h.kind == FrameKind::End)).last();
    Ok((!found.is_empty()).then(|| end.map_or(DATA_START, |(range, _)| range.end)))
}

struct Copy<'a> {
    disk: &'a dyn Disk,
    to: &'a Path,
    bytes: u64,
    linked: u64,
}

impl Copy<'_> {
    fn run(&mut self, pinned: &Pinned, pins: &Path, base: Option<&Path>, identity: &Bytes) -> Result<(), BackupError> {
        self.begin()?;
        let wal = self.to.join("wal");
        self.disk.create_dir_durable(&wal).map_err(failed)?;
        for (at, sequence) in pinned.log.iter().enumerate() {
            let name = log_name(*sequence);
            let end = (at + 1 == pinned.log.len()).then_some(pinned.log_end);
            self.file(&pins.join(&name), &wal.join(&name), end)?;
        }
        self.disk.sync_dir(&wal).map_err(failed)?;
        for state in &pinned.states {
            let to = self.to.join(state.path());
            let dir = to.parent().unwrap_or(self.to);
            self.disk.create_dir_durable(dir).map_err(failed)?;
            self.file(&pins.join(state.pin()), &to, None)?;
            self.disk.sync_dir(dir).map_err(failed)?;
        }
        for (shard, manifest) in &pinned.manifests {
            let known = base.map_or_else(BTreeSet::new, |base| known(self.disk, base, *shard));
            let dir = self.to.join("shards").join(shard.to_string());
            for part in [SEGMENTS, STAGED] {
                self.disk.create_dir_durable(&dir.join(part)).map_err(failed)?;
            }
            for Listed { dir: part, file, pin } in listed(*shard, manifest)? {
                let to = dir.join(part).join(&file);
                if let Some(base) = base.filter(|_| known.contains(&pin)) {
                    let from = base.join("shards").join(shard.to_string()).join(part).join(&file);
                    if self.disk.link(&from, &to).is_ok() {
                        self.linked += 1;
                        continue;
                    }
                }
                // One that is missing is for the check of the copy to name.
                if pinned.files.contains(&pin) {
                    self.file(&pins.join(pin), &to, None)?;
                }
            }
            for part in [SEGMENTS, STAGED] {
                self.disk.sync_dir(&dir.join(part)).map_err(failed)?;
            }
            self.write(&dir.join(MANIFEST), manifest)?;
            self.disk.sync_dir(&dir).map_err(failed)?;
        }
        self.finish(identity)
    }

    fn begin(&mut self) -> Result<(), BackupError> {
        self.disk.create_dir_durable(self.to).map_err(failed)?;
        self.write(&self.to.join(IDENTITY), UNFINISHED.as_bytes())?;
        self.disk.sync_dir(self.to).map_err(failed)?;
        self.disk.create_dir_durable(&self.to.join("shards")).map_err(failed)
    }

    /// Everything else is durable.
    fn finish(&mut self, identity: &Bytes) -> Result<(), BackupError> {
        let tmp = self.to.join(format!("{IDENTITY}.tmp"));
        self.write(&tmp, identity)?;
        self.disk.rename(&tmp, &self.to.join(IDENTITY)).map_err(failed)?;
        self.disk.sync_dir(self.to).map_err(failed)
    }

    fn write(&mut self, path: &Path, bytes: &[u8]) -> Result<(), BackupError> {
        let file = self.disk.create(path).map_err(failed)?;
        file.write_at(bytes, 0).and_then(|()| file.sync_data()).map_err(failed)?;
        self.bytes += bytes.len() as u64;
        Ok(())
    }

    /// Copies a file, or its first `end` bytes and zeros for the rest.
    fn file(&mut self, from: &Path, to: &Path, end: Option<u64>) -> Result<(), BackupError> {
        let copy = || {
            let (from, to) = (self.disk.open_read(from)?, self.disk.create(to)?);
            let length = from.len()?;
            let end = end.unwrap_or(length).min(length);
            let mut position = 0;
            while position < end {
                let mut bytes = vec![0; (end - position).min(COPY_BYTES) as usize];
                from.read_at(&mut bytes, position)?;
                to.write_at(&bytes, position)?;
                position += bytes.len() as u64;
            }
            to.set_len(length)?;
            to.sync_data()?;
            Ok(end)
        };
        self.bytes += copy().map_err(failed)?;
        Ok(())
    }

    fn tree(&mut self, from: &Path, to: &Path) -> Result<(), BackupError> {
        self.disk.create_dir_durable(to).map_err(failed)?;
        for entry in list(self.disk, from)? {
            let (from, to) = (from.join(&entry.name), to.join(&entry.name));
            match entry.is_dir {
                true => self.tree(&from, &to)?,
                false => self.file(&from, &to, None)?,
            }
        }
        self.disk.sync_dir(to).map_err(failed)
    }
}

/// By what files are pinned, those that a backup has; none when it cannot be read.
fn known(disk: &dyn Disk, base: &Path, shard: u32) -> BTreeSet<String> {
    let manifest = read_file(disk, &base.join("shards").join(shard.to_string()).join(MANIFEST)).ok();
    let listed = manifest.and_then(|manifest| listed(shard, &manifest).ok()).unwrap_or_default();
    listed.into_iter().map(|listed| listed.pin).collect()
}
