//! Transactions whose rows came in several entries, and are not committed: their rows, and the files they are in.
//!
//! Owns which there are, as a function of the log, and moving their rows to files, so that a COPY of any size takes no
//! memory. Leaves out the files themselves (`storage::staging`) and when a transaction ends (`machine`, by the log). A
//! manifest lists the files; after a crash later ones are written again from the log.

use super::codec::DecodeError;
use crate::storage::{Disk, ShardStore, StagedFile, StagedRows, StorageError};
use millstream_catalog::model::{EntryIndex, StageId, TopicId};
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;

/// The open transactions of a shard.
#[derive(Debug, Default)]
pub(crate) struct Stages {
    /// The last one begun.
    last: StageId,
    open: BTreeMap<StageId, Vec<StagedPart>>,
    /// Files of those that ended, which a manifest may still list.
    ended: Vec<String>,
}

/// Rows of one partition from one entry.
#[derive(Debug)]
struct StagedPart {
    rows: StagedRows,
    entry: EntryIndex,
    /// Where they are; nowhere when the disk was full.
    file: Option<StagedFile>,
    /// Why they cannot be read.
    damage: Option<StorageError>,
}

/// Open transactions as a manifest has them, after the last one begun.
type Listed = (StageId, Vec<(StageId, Vec<(EntryIndex, StagedFile)>)>);

impl Stages {
    /// Takes in rows; `None` begins a transaction. False when there is no such transaction.
    pub(crate) fn stage(
        &mut self,
        stage: Option<StageId>,
        entry: EntryIndex,
        rows: Vec<StagedRows>,
    ) -> Option<StageId> {
        let stage = match stage {
            Some(stage) => stage,
            None => {
                self.last = self.last.next();
                self.open.insert(self.last, Vec::new());
                self.last
            }
        };
        let parts = self.open.get_mut(&stage)?;
        parts.extend(rows.into_iter().map(|rows| StagedPart { rows, entry, file: None, damage: None }));
        Some(stage)
    }

    /// The rows of a transaction, in order.
    pub(crate) fn rows(&self, stage: StageId) -> Option<impl Iterator<Item = &StagedRows>> {
        self.open.get(&stage).map(|parts| parts.iter().map(|part| &part.rows))
    }

    /// Why a transaction cannot be committed, though the log may say so: its rows cannot be read.
    pub(crate) fn damage(&self, stage: StageId) -> Option<&StorageError> {
        self.open.get(&stage)?.iter().find_map(|part| part.damage.as_ref())
    }

    /// Forgets a transaction, which was committed or given up.
    pub(crate) fn end(&mut self, stage: StageId) {
        let parts = self.open.remove(&stage).unwrap_or_default();
        self.ended.extend(parts.into_iter().filter_map(|part| part.file).map(|file| file.file().to_owned()));
    }

    /// Those that are open.
    pub(crate) fn ids(&self) -> Vec<StageId> {
        self.open.keys().copied().collect()
    }

    /// What is in memory and belongs into files: a job that blocks, and whose outcome goes to [`Stages::moved`].
    pub(crate) fn move_out(&self, store: &ShardStore) -> Option<MoveOut> {
        let mut parts = Vec::new();
        for (stage, staged) in &self.open {
            for (number, part) in staged.iter().enumerate().filter(|(_, part)| part.file.is_none()) {
                parts.push(((*stage, number), part.entry, part.rows.clone()));
            }
        }
        let (disk, dir) = (Arc::clone(store.disk()), store.dir().to_owned());
        (!parts.is_empty()).then_some(MoveOut { disk, dir, parts })
    }

    /// Takes files into use instead of memory.
    pub(crate) fn moved(&mut self, moved: Vec<Moved>) {
        for ((stage, number), file, rows) in moved {
            if let Some(part) = self.open.get_mut(&stage).and_then(|parts| parts.get_mut(number)) {
                (part.rows, part.file) = (rows, Some(file));
            }
        }
    }

    /// The files of open transactions, but for damaged ones, and the names of those that ended; `None` while some rows are
    /// in memory only.
    pub(crate) fn files(&self) -> Option<(Vec<StagedFile>, Vec<String>)> {
        let whole = self.open.values().flatten().filter(|part| part.damage.is_none());
        let files = whole.map(|part| part.file.clone()).collect::<Option<_>>()?;
        Some((files, self.ended.clone()))
    }

    /// A manifest was written when there were so many names of ended files.
    pub(crate) fn forget_ended(&mut self, count: usize) {
        self.ended.drain(..count.min(self.ended.len()));
    }

    /// The bytes a manifest keeps: JSON of the last id, and each open transaction's parts as entry and file.
    pub(crate) fn encode(&self) -> Vec<u8> {
        let parts = |parts: &Vec<StagedPart>| -> Vec<_> {
            parts.iter().filter_map(|part| Some((part.entry, part.file.clone()?))).collect()
        };
        encode(&(self.last, self.open.iter().map(|(stage, all)| (*stage, parts(all))).collect()))
    }

    /// What a manifest kept; files of no open transaction are removed. Damaged ones are missed when their transaction
    /// commits: most are given up.
    ///
    /// # Errors
    /// [`StagesError`] when bytes are not what was written, or of the disk.
    pub(crate) fn restore(bytes: &[u8], store: &ShardStore) -> Result<Self, StagesError> {
        let (disk, dir) = (&**store.disk(), store.dir());
        let (last, listed) = decode(bytes)?;
        let mut stages = Self { last, ..Self::default() };
        let mut kept = Vec::new();
        for (stage, files) in listed {
            let mut parts = Vec::with_capacity(files.len());
            for (entry, file) in files {
                let (rows, damage) = match file.read(disk, dir, store.topic(file.topic())) {
                    Ok(rows) => (rows, None),
                    Err(damage) if damage.is_damage() => (file.no_rows(), Some(damage)),
                    Err(error) => return Err(error.into()),
                };
                kept.push(file.clone());
                parts.push(StagedPart { rows, entry, file: Some(file), damage });
            }
            stages.open.insert(stage, parts);
        }
        StagedFile::tidy(&kept, disk, dir)?;
        Ok(stages)
    }
}

fn encode(listed: &Listed) -> Vec<u8> {
    // Numbers and names only: it cannot fail.
    serde_json::to_vec(listed).unwrap_or_default()
}

fn decode(bytes: &[u8]) -> Result<Listed, DecodeError> {
    if bytes.is_empty() {
        return Ok(Listed::default());
    }
    serde_json::from_slice(bytes).map_err(|error| DecodeError::Damaged(error.to_string()))
}

/// The files of open transactions that a manifest lists.
///
/// # Errors
/// When the bytes are not what was written.
pub(crate) fn listed(bytes: &[u8]) -> Result<Vec<(StageId, StagedFile)>, DecodeError> {
    let open = decode(bytes)?.1.into_iter();
    Ok(open.flat_map(|(stage, files)| files.into_iter().map(move |(_, file)| (stage, file))).collect())
}

/// What a manifest keeps, without the transactions `given_up`: their ids are not used again.
///
/// # Errors
/// When the bytes are not what was written.
pub(crate) fn without(bytes: &[u8], given_up: &BTreeSet<StageId>) -> Result<Vec<u8>, DecodeError> {
    let (last, mut open) = decode(bytes)?;
    open.retain(|(stage, _)| !given_up.contains(stage));
    Ok(encode(&(last, open)))
}

/// Why the transactions of a manifest cannot be opened.
#[derive(Debug)]
pub(crate) enum StagesError {
    Manifest(DecodeError),
    Storage(StorageError),
}

impl From<DecodeError> for StagesError {
    fn from(error: DecodeError) -> Self {
        Self::Manifest(error)
    }
}

impl From<StorageError> for StagesError {
    fn from(error: StorageError) -> Self {
        Self::Storage(error)
    }
}

/// A part's place, its file, and its rows as they are there.
pub(crate) type Moved = ((StageId, usize), StagedFile, StagedRows);

/// Writes staged rows to files.
pub(crate) struct MoveOut {
    disk: Arc<dyn Disk>,
    dir: PathBuf,
    parts: Vec<((StageId, usize), EntryIndex, StagedRows)>,
}

impl MoveOut {
    /// Blocks. What does not fit on a full disk stays in memory.
    ///
    /// # Errors
    /// Of the disk, but for a full one.
    pub(crate) fn run(self) -> Result<Vec<Moved>, StorageError> {
        let mut moved = Vec::with_capacity(self.parts.len());
        for (place, entry, rows) in self.parts {
            let Some(schema) = rows.batches.first().map(|batch| batch.schema()) else { continue };
            let name = format!("{}-{}.arrow", place.0, place.1);
            match StagedFile::write(&*self.disk, &self.dir, name, &schema, (entry, &rows)) {
                Ok((file, rows)) => moved.push((place, file, rows)),
                Err(StorageError::DiskFull) => break,
                Err(error) => return Err(error),
            }
        }
        Ok(moved)
    }
}

/// Whether rows may be appended: their topic is still there.
pub(crate) fn fits(rows: &StagedRows, store: &ShardStore) -> Result<(), super::error::Refused> {
    let refused = |topic: TopicId| super::error::Refused::NoTopic(topic);
    let topic = store.topic(rows.topic).ok_or(refused(rows.topic))?;
    if rows.partition.value() >= topic.partitions {
        return Err(super::error::Refused::NoPartition(rows.topic, rows.partition));
    }
    Ok(())
}
