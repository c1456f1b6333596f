//! Transactions whose rows came in several entries, and are not committed: their rows, and the files they are in.
//!
//! Owns which there are, as a function of the log, and moving their rows to files, so that a COPY of any size takes no
//! memory. Leaves out the files themselves (`storage::staging`) and when a transaction ends (`machine`, by the log). A
//! manifest lists the files; after a crash later ones are written again from the log.

use super::codec::DecodeError;
use crate::storage::{Disk, ShardStore, StagedFile, StagedRows, StorageError};
use millstream_catalog::model::{EntryIndex, StageId, TopicId};
use std::collections::BTreeMap;
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
}

/// Open transactions as a manifest has them.
type Listed = Vec<(StageId, Vec<(EntryIndex, StagedFile)>)>;

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
        parts.extend(rows.into_iter().map(|rows| StagedPart { rows, entry, file: None }));
        Some(stage)
    }

    /// The rows of a transaction, in order.
    pub(crate) fn rows(&self, stage: StageId) -> Option<impl Iterator<Item = &StagedRows>> {
        self.open.get(&stage).map(|parts| parts.iter().map(|part| &part.rows))
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

    /// The files of open transactions, and the names of those that ended; `None` while some rows are in memory only.
    pub(crate) fn files(&self) -> Option<(Vec<StagedFile>, Vec<String>)> {
        let files = self.open.values().flatten().map(|part| part.file.clone()).collect::<Option<_>>()?;
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
        let open: Listed = self.open.iter().map(|(stage, all)| (*stage, parts(all))).collect();
        // Numbers and names only: it cannot fail.
        serde_json::to_vec(&(self.last, open)).unwrap_or_default()
    }

    /// What a manifest kept; files of no open transaction are removed.
    ///
    /// # Errors
    /// [`StagesError`] when bytes or files are not what was written.
    pub(crate) fn restore(bytes: &[u8], store: &ShardStore) -> Result<Self, StagesError> {
        let (disk, dir) = (&**store.disk(), store.dir());
        let mut stages = Self::default();
        if !bytes.is_empty() {
            let listed: (StageId, Listed) =
                serde_json::from_slice(bytes).map_err(|error| DecodeError::Damaged(error.to_string()))?;
            stages.last = listed.0;
            for (stage, files) in listed.1 {
                let mut parts = Vec::with_capacity(files.len());
                for (entry, file) in files {
                    let rows = file.read(disk, dir, store.topic(file.topic()))?;
                    parts.push(StagedPart { rows, entry, file: Some(file) });
                }
                stages.open.insert(stage, parts);
            }
        }
        StagedFile::tidy(&stages.files().unwrap_or_default().0, disk, dir)?;
        Ok(stages)
    }
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
