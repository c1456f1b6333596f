//! `millstream check`: is a data directory what was written, and do its files agree?
//!
//! Owns the order: the file `node`, manifests, the log, then segments against all of them. Leaves out the parts' own
//! rules (`log`, `shards`, `segments`) and making good (`repair`). Takes the directory's lock, so no server runs
//! meanwhile; without `--repair` nothing is written, not even that lock.

use super::report::{Finding, Report};
use super::{log, repair, shards};
use crate::replication::inspect;
use crate::storage::manifest::Manifest;
use crate::storage::{Disk, StorageError};
use bytes::Bytes;
use millstream_catalog::model::StageId;
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Why a directory could not be checked.
#[derive(Debug, thiserror::Error)]
pub enum CheckError {
    /// There is no data directory of ours.
    #[error("{} is not a data directory", .0.display())]
    NoDirectory(PathBuf),
    /// A server has it.
    #[error("a server runs on {}: stop it first, or check a backup", .0.display())]
    InUse(PathBuf),
    /// The disk, or a later version.
    #[error(transparent)]
    Storage(#[from] StorageError),
}

/// Bytes to be written by a repair.
#[derive(Debug)]
pub(crate) struct Patch {
    pub(crate) path: PathBuf,
    pub(crate) position: u64,
    pub(crate) bytes: Vec<u8>,
}

/// A segment of which not all can be read.
#[derive(Debug)]
pub(crate) struct Broken {
    /// Why, for each block that cannot be read; without any, the file cannot be opened.
    pub(crate) blocks: BTreeMap<usize, String>,
    pub(crate) reason: String,
}

/// A check under way.
#[derive(Debug)]
pub(crate) struct Check {
    pub(crate) disk: Arc<dyn Disk>,
    pub(crate) dir: PathBuf,
    pub(crate) report: Report,
    pub(crate) patches: Vec<Patch>,
    /// By shard and file.
    pub(crate) broken: BTreeMap<(u32, String), Broken>,
    /// Open transactions of which not all rows can be read, by shard.
    pub(crate) broken_stages: BTreeMap<u32, BTreeSet<StageId>>,
    pub(crate) manifests: BTreeMap<u32, Manifest>,
    /// The data shards that a new file `node` must name.
    pub(crate) identity: Option<u32>,
}

/// Checks the data directory `dir`; writes nothing.
///
/// # Errors
/// [`CheckError`] when it cannot be checked. Damage is in the report.
pub fn check(disk: Arc<dyn Disk>, dir: &Path) -> Result<Report, CheckError> {
    let _lock = lock(&*disk, dir)?;
    Ok(run(disk, dir)?.report)
}

/// Checks `dir`, makes good what can be without losing more than is damaged, and checks again.
///
/// Gives what was found, and what is left. Killed at any moment, it can be run again.
///
/// # Errors
/// [`CheckError`] when it cannot be checked or written.
pub fn check_and_repair(disk: Arc<dyn Disk>, dir: &Path) -> Result<(Report, Report), CheckError> {
    let _lock = lock(&*disk, dir)?;
    let mut found = run(Arc::clone(&disk), dir)?;
    repair::repair(&found)?;
    found.report.is_repaired = true;
    Ok((found.report, run(disk, dir)?.report))
}

fn lock(disk: &dyn Disk, dir: &Path) -> Result<Option<crate::storage::DirLock>, CheckError> {
    let exists = |name: &str| disk.exists(&dir.join(name));
    let is_ours = ["wal", "shards", inspect::IDENTITY].into_iter().map(exists).collect::<io::Result<Vec<_>>>();
    let is_ours = is_ours.map_err(|source| StorageError::io("read the data directory", source))?;
    if !is_ours.contains(&true) {
        return Err(CheckError::NoDirectory(dir.to_owned()));
    }
    disk.lock_existing(dir).map_err(|error| match error {
        StorageError::Locked => CheckError::InUse(dir.to_owned()),
        error => error.into(),
    })
}

fn run(disk: Arc<dyn Disk>, dir: &Path) -> Result<Check, StorageError> {
    let mut check = Check {
        disk,
        dir: dir.to_owned(),
        report: Report::default(),
        patches: Vec::new(),
        broken: BTreeMap::new(),
        broken_stages: BTreeMap::new(),
        manifests: BTreeMap::new(),
        identity: None,
    };
    let ids = shards::read_manifests(&mut check)?;
    check_identity(&mut check, &ids)?;
    let mut covered = BTreeMap::new();
    let (mut catalog, mut staged, mut states) = (None, BTreeMap::new(), BTreeMap::new());
    let manifests = std::mem::take(&mut check.manifests);
    for (id, manifest) in &manifests {
        match inspect::read_manifest(manifest.applied.clone(), manifest.extra.clone()) {
            Ok(content) => {
                covered.insert(*id, content.applied.value() + 1);
                catalog = catalog.or(content.catalog);
                staged.insert(*id, content.staged);
                states.extend(content.queries.into_iter().map(|(query, files)| ((*id, query), files)));
            }
            Err(error) => {
                let finding = Finding::damage(shards::manifest_name(*id), error).of_shard(*id);
                check.report.findings.push(finding);
            }
        }
    }
    let log = log::check(&mut check, covered.clone(), catalog, states)?;
    shards::check_places(&mut check, &ids, &covered, &log);
    for (id, manifest) in &manifests {
        shards::check_segments(&mut check, *id, manifest, log.catalog.as_ref())?;
        shards::check_staged(&mut check, *id, manifest, &staged.remove(id).unwrap_or_default())?;
    }
    for ((shard, query), files) in &log.states {
        shards::check_state(&mut check, *shard, *query, files)?;
    }
    check.manifests = manifests;
    note_unknown(&mut check)?;
    Ok(check)
}

fn check_identity(check: &mut Check, ids: &BTreeSet<u32>) -> Result<(), StorageError> {
    let file = inspect::IDENTITY;
    // Shard 0 is the catalog's.
    let there = ids.last().copied().unwrap_or_default();
    let what = match inspect::read_shards(&*check.disk, &check.dir) {
        Ok(Some(shards)) if there <= shards => return Ok(()),
        Ok(Some(shards)) => format!("it says {shards} shards, but there are {there}"),
        // A directory that was never led has no such file.
        Ok(None) if check.manifests.is_empty() => return Ok(()),
        Ok(None) => "the file is missing".to_owned(),
        Err(error) if error.is_damage() => error.to_string(),
        Err(error) => return Err(error),
    };
    if super::read_file(&*check.disk, &check.dir.join(file)).is_ok_and(|bytes| bytes == inspect::UNFINISHED.as_bytes())
    {
        check.report.findings.push(Finding::damage(file, what));
        return Ok(());
    }
    let repair = format!("it is written anew, for {there} shards");
    check.report.findings.push(Finding::damage(file, what).repaired_by(repair));
    check.identity = Some(there);
    Ok(())
}

fn note_unknown(check: &mut Check) -> Result<(), StorageError> {
    for entry in super::list(&*check.disk, &check.dir)? {
        if !["wal", "shards", "lock", inspect::IDENTITY].contains(&entry.name.as_str()) {
            check.report.findings.push(Finding::note(entry.name, "not part of a data directory; it is left alone"));
        }
    }
    Ok(())
}

impl Check {
    /// The bytes of a file; one that cannot be read is a finding.
    pub(crate) fn read(&mut self, file: &str) -> Option<Bytes> {
        match super::read_file(&*self.disk, &self.dir.join(file)) {
            Ok(bytes) => {
                self.report.files += 1;
                self.report.bytes += bytes.len() as u64;
                Some(bytes)
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                self.report.findings.push(Finding::damage(file, "the file is missing"));
                None
            }
            Err(error) => {
                self.report.findings.push(Finding::damage(file, format!("it cannot be read: {error}")));
                None
            }
        }
    }
}
