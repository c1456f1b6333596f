//! Transactions that are in the log and not committed: their rows, the files these are in, and what they hold.
//!
//! Owns which there are, as a function of the log, and moving their rows to files, so that a COPY of any size takes no
//! memory. Those that commit in several shards are *prepared* in each: until they end, nobody else writes the keys that
//! their changed rows have, or as their producers. Also owns the decisions about such transactions that this shard keeps.
//! Leaves out the files themselves (`storage::staging`) and when a transaction ends (`machine`, by the log). A manifest
//! lists the files; after a crash later ones are written again from the log.

use super::codec::DecodeError;
use super::types::{Decider, GroupCommit, ProducerClaim};
use crate::storage::batch::batch_bytes;
use crate::storage::{Disk, KeySet, ShardStore, StagedFile, StagedRows, StorageError};
use arrow::array::RecordBatch;
use millstream_catalog::model::{
    ByteSize, EntryIndex, GroupName, PartitionId, ProducerId, ShardId, StageId, Timestamp, TopicId, TransactionId,
};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;

/// Rows that came with the end of a transaction stay in memory up to so many bytes, but for a manifest.
const PREPARED_BYTES: ByteSize = ByteSize::new(1 << 20);

/// The open transactions of a shard.
#[derive(Debug, Default)]
pub(crate) struct Stages {
    /// The last one begun.
    last: StageId,
    open: BTreeMap<StageId, Stage>,
    /// Transactions that commit, in this shard or others.
    decisions: BTreeSet<TransactionId>,
    /// Files of those that ended, which a manifest may still list.
    ended: Vec<String>,
}

#[derive(Debug, Default)]
struct Stage {
    parts: Vec<StagedPart>,
    prepared: Option<Prepared>,
}

/// What a prepared transaction does besides its rows.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Prepared {
    pub(crate) decider: Decider,
    pub(crate) claims: Vec<ProducerClaim>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) commits: Vec<GroupCommit>,
    pub(crate) now: Timestamp,
}

/// Rows of one topic from one entry.
#[derive(Debug)]
struct StagedPart {
    /// By partition.
    runs: Vec<StagedRows>,
    entry: EntryIndex,
    /// They came with the end of their transaction.
    is_last: bool,
    /// For each run that has any, the keys that nobody else may write.
    held: Vec<Option<KeySet>>,
    /// Where they are; nowhere when the disk was full.
    file: Option<StagedFile>,
    /// A manifest lists the file.
    is_listed: bool,
    /// Why they cannot be read.
    damage: Option<StorageError>,
}

/// Open transactions as a manifest has them.
#[derive(Default, Serialize, Deserialize)]
struct Listed {
    last: StageId,
    open: Vec<ListedStage>,
    decisions: BTreeSet<TransactionId>,
}

#[derive(Serialize, Deserialize)]
struct ListedStage {
    stage: StageId,
    parts: Vec<ListedPart>,
    prepared: Option<Prepared>,
}

#[derive(Serialize, Deserialize)]
struct ListedPart {
    entry: EntryIndex,
    file: StagedFile,
    is_last: bool,
    /// For each run columns of the keys that are held, if any.
    held: Vec<Option<Vec<usize>>>,
}

/// As manifests had them before transactions over several shards.
type ListedBefore = (StageId, Vec<(StageId, Vec<(EntryIndex, StagedFile)>)>);

impl From<ListedBefore> for Listed {
    fn from((last, open): ListedBefore) -> Self {
        let part = |(entry, file)| ListedPart { entry, file, is_last: false, held: Vec::new() };
        let stage = |(stage, parts): (_, Vec<_>)| ListedStage {
            stage,
            parts: parts.into_iter().map(part).collect(),
            prepared: None,
        };
        Self { last, open: open.into_iter().map(stage).collect(), decisions: BTreeSet::new() }
    }
}

impl Stages {
    /// Takes in rows; `None` begins a transaction. False when there is no such transaction.
    pub(crate) fn stage(
        &mut self,
        stage: Option<StageId>,
        entry: EntryIndex,
        rows: Vec<StagedRows>,
    ) -> Option<StageId> {
        let stage = stage.unwrap_or_else(|| self.begin());
        let staged = self.open.get_mut(&stage)?;
        let rows = rows.into_iter().map(|rows| (rows, None)).collect();
        staged.parts.extend(parts_of(rows, entry, false));
        Some(stage)
    }

    fn begin(&mut self) -> StageId {
        self.last = self.last.next();
        self.open.insert(self.last, Stage::default());
        self.last
    }

    /// Takes in the last rows of a transaction, with the keys of theirs to hold; from now on it waits for its end only.
    pub(crate) fn prepare(
        &mut self,
        stage: Option<StageId>,
        entry: EntryIndex,
        rows: Vec<(StagedRows, Option<KeySet>)>,
        prepared: Prepared,
    ) -> Option<StageId> {
        let stage = stage.unwrap_or_else(|| self.begin());
        let staged = self.open.get_mut(&stage)?;
        staged.parts.extend(parts_of(rows, entry, true));
        staged.prepared = Some(prepared);
        Some(stage)
    }

    /// The rows of a transaction, in order.
    pub(crate) fn rows(&self, stage: StageId) -> Option<impl Iterator<Item = &StagedRows>> {
        self.open.get(&stage).map(|staged| staged.parts.iter().flat_map(|part| &part.runs))
    }

    /// The rows of a transaction, in order, and whether they are in a file.
    pub(crate) fn rows_placed(&self, stage: StageId) -> impl Iterator<Item = (&StagedRows, bool)> {
        let staged = self.open.get(&stage);
        let parts = staged.into_iter().flat_map(|staged| &staged.parts);
        parts.flat_map(|part| part.runs.iter().map(|rows| (rows, !part.is_last)))
    }

    /// What a transaction was prepared with.
    pub(crate) fn prepared(&self, stage: StageId) -> Option<&Prepared> {
        self.open.get(&stage)?.prepared.as_ref()
    }

    /// Whether anything is held by a prepared transaction.
    pub(crate) fn holds_any(&self) -> bool {
        self.open.values().any(|staged| staged.prepared.is_some())
    }

    /// Whether a row for the partition has a key that is held.
    ///
    /// # Errors
    /// When keys cannot be compared.
    pub(crate) fn holds_key(
        &self,
        (topic, partition): (TopicId, PartitionId),
        rows: &RecordBatch,
    ) -> Result<bool, StorageError> {
        let parts = self.open.values().flat_map(|staged| &staged.parts);
        for (run, held) in parts.flat_map(|part| part.runs.iter().zip(&part.held)) {
            if let Some(held) = held
                && (run.topic, run.partition) == (topic, partition)
                && held.meets(rows)?
            {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Whether a prepared transaction writes as this producer.
    pub(crate) fn holds_producer(&self, topic: TopicId, producer: &ProducerId) -> bool {
        let claims = self.open.values().filter_map(|staged| staged.prepared.as_ref()).flat_map(|it| &it.claims);
        claims.into_iter().any(|claim| claim.topic == topic && claim.producer == *producer)
    }

    /// Whether a prepared transaction commits offsets of the group.
    pub(crate) fn holds_group(&self, group: &GroupName) -> bool {
        let commits = self.open.values().filter_map(|staged| staged.prepared.as_ref()).flat_map(|it| &it.commits);
        commits.into_iter().any(|commit| commit.group == *group)
    }

    /// Whether a prepared transaction commits the group's offset in this partition.
    pub(crate) fn holds_offset(&self, group: &GroupName, topic: TopicId, partition: PartitionId) -> bool {
        let commits = self.open.values().filter_map(|staged| staged.prepared.as_ref()).flat_map(|it| &it.commits);
        let is_of = |commit: &GroupCommit| (commit.topic, commit.partition) == (topic, partition);
        commits.into_iter().any(|commit| is_of(commit) && commit.group == *group)
    }

    /// Records that a transaction commits.
    pub(crate) fn decide(&mut self, transaction: TransactionId) {
        self.decisions.insert(transaction);
    }

    /// All have carried out a decision.
    pub(crate) fn forget(&mut self, transaction: TransactionId) {
        self.decisions.remove(&transaction);
    }

    /// Why a transaction cannot be committed, though the log may say so: its rows cannot be read.
    pub(crate) fn damage(&self, stage: StageId) -> Option<&StorageError> {
        self.open.get(&stage)?.parts.iter().find_map(|part| part.damage.as_ref())
    }

    /// Parts of all transactions.
    pub(crate) fn parts(&self) -> usize {
        self.open.values().map(|staged| staged.parts.len()).sum()
    }

    /// Forgets a transaction, which was committed or given up.
    pub(crate) fn end(&mut self, stage: StageId) {
        let parts = self.open.remove(&stage).unwrap_or_default().parts;
        self.ended.extend(parts.into_iter().filter_map(|part| part.file).map(|file| file.file().to_owned()));
    }

    /// Those that are open, and what decides about those that are prepared.
    pub(crate) fn ids(&self) -> Vec<(StageId, Option<Decider>)> {
        let decider = |staged: &Stage| staged.prepared.as_ref().map(|prepared| prepared.decider);
        self.open.iter().map(|(stage, staged)| (*stage, decider(staged))).collect()
    }

    /// The decisions kept here.
    pub(crate) fn decisions(&self) -> Vec<TransactionId> {
        self.decisions.iter().copied().collect()
    }

    /// What is in memory and belongs into files: a job that blocks, and whose outcome goes to [`Stages::moved`]. `is_all`
    /// when a manifest is to list it.
    pub(crate) fn move_out(&self, store: &ShardStore, is_all: bool) -> Option<MoveOut> {
        let mut parts = Vec::new();
        let is_due = |part: &StagedPart| {
            part.file.is_none() && (is_all || !part.is_last || bytes_of(&part.runs) > PREPARED_BYTES)
        };
        for (stage, staged) in &self.open {
            for (number, part) in staged.parts.iter().enumerate().filter(|(_, part)| is_due(part)) {
                parts.push(((*stage, number), part.entry, part.runs.clone()));
            }
        }
        let (disk, dir) = (Arc::clone(store.disk()), store.dir().to_owned());
        (!parts.is_empty()).then_some(MoveOut { disk, dir, parts })
    }

    /// Takes files into use instead of memory.
    pub(crate) fn moved(&mut self, moved: Vec<Moved>) {
        for ((stage, number), file, rows) in moved {
            if let Some(part) = self.open.get_mut(&stage).and_then(|staged| staged.parts.get_mut(number)) {
                (part.runs, part.file) = (rows, Some(file));
            }
        }
    }

    /// The files of open transactions that no manifest lists yet, and the names of those that ended; `None` while some
    /// rows are in memory only.
    pub(crate) fn files(&self) -> Option<(Vec<StagedFile>, Vec<String>)> {
        let parts = self.open.values().flat_map(|staged| &staged.parts).filter(|part| !part.is_listed);
        let files = parts.map(|part| part.file.clone()).collect::<Option<_>>()?;
        Some((files, self.ended.clone()))
    }

    /// A manifest was written that lists what was applied up to `upto`, when there were so many names of ended files.
    pub(crate) fn listed(&mut self, upto: EntryIndex, ended: usize) {
        let parts = self.open.values_mut().flat_map(|staged| &mut staged.parts);
        parts.filter(|part| part.entry <= upto).for_each(|part| part.is_listed = true);
        self.ended.drain(..ended.min(self.ended.len()));
    }

    /// The bytes a manifest keeps: JSON.
    pub(crate) fn encode(&self) -> Vec<u8> {
        let part = |part: &StagedPart| {
            let columns = |held: &KeySet| held.columns().to_vec();
            let held = part.held.iter().map(|held| held.as_ref().map(columns)).collect();
            Some(ListedPart { entry: part.entry, file: part.file.clone()?, is_last: part.is_last, held })
        };
        let stage = |(stage, staged): (&StageId, &Stage)| ListedStage {
            stage: *stage,
            parts: staged.parts.iter().filter_map(part).collect(),
            prepared: staged.prepared.clone(),
        };
        let open = self.open.iter().map(stage).collect();
        encode(&Listed { last: self.last, open, decisions: self.decisions.clone() })
    }

    /// What a manifest kept; files of no open transaction are removed. Damaged ones are missed when their transaction
    /// commits: most are given up. With keys that are held they are missed at once: what else is written depends on them.
    ///
    /// # Errors
    /// [`StagesError`] when bytes are not what was written, or of the disk.
    pub(crate) fn restore(bytes: &[u8], store: &ShardStore) -> Result<Self, StagesError> {
        let (disk, dir) = (&**store.disk(), store.dir());
        let listed = decode(bytes)?;
        let mut stages = Self { last: listed.last, decisions: listed.decisions, ..Self::default() };
        let mut kept = Vec::new();
        for ListedStage { stage, parts: listed, prepared } in listed.open {
            let mut parts = Vec::with_capacity(listed.len());
            for ListedPart { entry, file, is_last, held } in listed {
                let (runs, damage) = match file.read(disk, dir, store.topic(file.topic())) {
                    Ok(runs) => (runs, None),
                    Err(damage) if damage.is_damage() && held.iter().all(Option::is_none) => (Vec::new(), Some(damage)),
                    Err(error) => return Err(error.into()),
                };
                kept.push(file.clone());
                let keys = |(run, columns): (_, Option<Vec<usize>>)| match columns {
                    Some(columns) => keys_of(run, &columns),
                    None => Ok(None),
                };
                let held = runs.iter().zip(held).map(keys).collect::<Result<_, StorageError>>()?;
                parts.push(StagedPart { runs, entry, is_last, held, file: Some(file), is_listed: true, damage });
            }
            stages.open.insert(stage, Stage { parts, prepared });
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
    let decoded = match bytes.first() {
        None => Ok(Listed::default()),
        Some(b'[') => serde_json::from_slice::<ListedBefore>(bytes).map(Listed::from),
        Some(_) => serde_json::from_slice(bytes),
    };
    decoded.map_err(|error| DecodeError::Damaged(error.to_string()))
}

/// A file of an open transaction, as a manifest lists it.
#[derive(Debug)]
pub(crate) struct StagedListed {
    pub(crate) stage: StageId,
    pub(crate) file: StagedFile,
    /// The shard that decides about the transaction, of one that is prepared.
    pub(crate) decider: Option<ShardId>,
}

/// The files of open transactions that a manifest lists.
///
/// # Errors
/// When the bytes are not what was written.
pub(crate) fn listed(bytes: &[u8]) -> Result<Vec<StagedListed>, DecodeError> {
    let of = |open: ListedStage| {
        let (stage, decider) = (open.stage, open.prepared.map(|prepared| prepared.decider.shard));
        open.parts.into_iter().map(move |part| StagedListed { stage, file: part.file, decider })
    };
    Ok(decode(bytes)?.open.into_iter().flat_map(of).collect())
}

/// What a manifest keeps, without the transactions `given_up`: their ids are not used again.
///
/// # Errors
/// When the bytes are not what was written.
pub(crate) fn without(bytes: &[u8], given_up: &BTreeSet<StageId>) -> Result<Vec<u8>, DecodeError> {
    let mut listed = decode(bytes)?;
    listed.open.retain(|of| !given_up.contains(&of.stage));
    Ok(encode(&listed))
}

/// One part per topic, by partition; rows of one partition stay in their order.
fn parts_of(rows: Vec<(StagedRows, Option<KeySet>)>, entry: EntryIndex, is_last: bool) -> Vec<StagedPart> {
    let mut by_topic: BTreeMap<TopicId, Vec<_>> = BTreeMap::new();
    for run in rows {
        by_topic.entry(run.0.topic).or_default().push(run);
    }
    let part = |mut runs: Vec<(StagedRows, _)>| {
        runs.sort_by_key(|(rows, _)| rows.partition);
        let (runs, held) = runs.into_iter().unzip();
        StagedPart { runs, entry, is_last, held, file: None, is_listed: false, damage: None }
    };
    by_topic.into_values().map(part).collect()
}

fn bytes_of(runs: &[StagedRows]) -> ByteSize {
    runs.iter().flat_map(|run| &run.batches).fold(ByteSize::ZERO, |sum, batch| sum.plus(batch_bytes(batch)))
}

/// The keys in `columns` of the rows; `None` without rows.
///
/// # Errors
/// When there are no such columns.
pub(crate) fn keys_of(rows: &StagedRows, columns: &[usize]) -> Result<Option<KeySet>, StorageError> {
    let mut keys: Option<KeySet> = None;
    for batch in &rows.batches {
        let of_batch = KeySet::new(batch, columns)?;
        match &mut keys {
            Some(keys) => keys.extend(of_batch),
            None => keys = Some(of_batch),
        }
    }
    Ok(keys)
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
pub(crate) type Moved = ((StageId, usize), StagedFile, Vec<StagedRows>);

/// Writes staged rows to files.
pub(crate) struct MoveOut {
    disk: Arc<dyn Disk>,
    dir: PathBuf,
    parts: Vec<((StageId, usize), EntryIndex, Vec<StagedRows>)>,
}

impl MoveOut {
    /// Blocks. What does not fit on a full disk stays in memory.
    ///
    /// # Errors
    /// Of the disk, but for a full one.
    pub(crate) fn run(self) -> Result<Vec<Moved>, StorageError> {
        let mut moved = Vec::with_capacity(self.parts.len());
        for (place, entry, rows) in self.parts {
            let Some(schema) = rows.iter().flat_map(|run| &run.batches).map(RecordBatch::schema).next() else {
                continue;
            };
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
