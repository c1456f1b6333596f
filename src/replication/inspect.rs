//! What log entries and manifests say, for the tools that read a data directory without running it.
//!
//! Owns reading only, through the codecs the running node uses. Leaves out files (`storage`) and judgement (`offline`).
//! A crash does nothing to it.

use super::entry::{self, Change, EntryData, Operations, Write};
use super::identity::Identity;
use super::manifest::{Extra, decode_applied, decode_extra, encode_extra};
use super::raft::{decode_log_id, decode_vote, index_of, term_of};
use super::stages;
pub(crate) use super::stages::StagedListed;
use super::types::Checkpoint;
use crate::storage::{Disk, StorageError};
use bytes::Bytes;
use millstream_catalog::model::{EntryIndex, NodeId, PartitionId, QueryId, RowCount, StageId, Term, TopicId};
use millstream_catalog::{Command, State};
use openraft::EntryPayload;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

/// The only node there is.
const NODE: NodeId = NodeId::new(1);
/// Name of the file that says what a data directory holds.
pub(crate) const IDENTITY: &str = super::identity::FILE;

/// What the file "node" says in a directory that is not whole yet.
pub(crate) const UNFINISHED: &str = super::identity::UNFINISHED_TEXT;

/// The payload of an entry that does nothing, padded to any length.
pub(crate) fn blank_entry(length: usize) -> Vec<u8> {
    let mut payload = entry::BLANK_PAYLOAD.to_vec();
    payload.resize(length, 0);
    payload
}

/// What an entry does.
#[derive(Debug)]
pub(crate) enum EntryContent {
    /// Rows for partitions, from this many statements and steps; and checkpoints of queries, with the files they name.
    Writes { batches: Vec<(TopicId, PartitionId, RowCount)>, writes: usize, checkpoints: Vec<(QueryId, Vec<u64>)> },
    /// A query has no checkpoint from here on.
    QueryEnds(QueryId),
    /// A change of the catalog.
    Catalog(Box<Command>),
    /// Anything else, in words.
    Other(String),
}

/// Where a shard's manifest stands, and what it keeps beside the segments.
#[derive(Debug)]
pub(crate) struct ManifestContent {
    pub(crate) term: Term,
    /// The last entry it covers.
    pub(crate) applied: EntryIndex,
    /// The catalog, of shard 0.
    pub(crate) catalog: Option<State>,
    /// Of each query, the files that its checkpoint names.
    pub(crate) queries: BTreeMap<QueryId, Vec<u64>>,
    /// The files of open transactions.
    pub(crate) staged: Vec<StagedListed>,
}

/// Writes the file "node" anew.
///
/// # Errors
/// The system's error.
pub(crate) fn write_shards(disk: &dyn Disk, dir: &Path, shards: u32) -> Result<(), StorageError> {
    Identity { node: NODE, shards }.write(disk, dir)
}

/// Reads an entry's payload.
///
/// # Errors
/// Why it cannot be read.
pub(crate) fn read_entry(payload: Bytes) -> Result<EntryContent, String> {
    match entry::decode_payload(payload).map_err(|error| error.to_string())? {
        EntryPayload::Blank => Ok(EntryContent::Other("blank".to_owned())),
        EntryPayload::Membership(membership) => Ok(EntryContent::Other(format!("membership {membership}"))),
        EntryPayload::Normal(data) => read_data(&data),
    }
}

fn read_data(data: &EntryData) -> Result<EntryContent, String> {
    let operations = data.operations().map_err(|error| error.to_string())?;
    Ok(match &*operations {
        Operations::Writes(writes) => {
            let batches = writes.batches.iter().map(|batch| (batch.topic, batch.partition, batch.rows));
            let checkpoint = |write: &Write| match write {
                Write::Checkpoint(checkpoint) => Some((checkpoint.query, checkpoint.files.clone())),
                _ => None,
            };
            let checkpoints = writes.writes.iter().filter_map(checkpoint).collect();
            EntryContent::Writes { batches: batches.collect(), writes: writes.writes.len(), checkpoints }
        }
        Operations::Change(Change::Catalog(command)) => EntryContent::Catalog(command.clone()),
        Operations::Change(Change::EndQuery(query) | Change::DropQuery(query)) => EntryContent::QueryEnds(*query),
        Operations::Change(change) => EntryContent::Other(format!("{change:?}")),
    })
}

/// Reads what replication keeps in a manifest.
///
/// # Errors
/// Why it cannot be read.
pub(crate) fn read_manifest(applied: Bytes, extra: Bytes) -> Result<ManifestContent, String> {
    let meta = decode_applied(applied).map_err(|error| error.to_string())?;
    let Extra { catalog, queries, stages, .. } = decode_extra(extra).map_err(|error| error.to_string())?;
    let last = meta.last_log_id.ok_or_else(|| "it covers no entry".to_owned())?;
    let staged = stages::listed(&stages).map_err(|error| error.to_string())?;
    let files = |checkpoint: Option<Checkpoint>| checkpoint.map_or_else(Vec::new, |checkpoint| checkpoint.files);
    let queries = queries.into_iter().map(|(query, progress)| (query, files(progress.checkpoint))).collect();
    Ok(ManifestContent { term: term_of(&last), applied: index_of(&last), catalog, queries, staged })
}

/// What a manifest keeps beside segments, without the transactions `given_up`.
///
/// # Errors
/// Why it cannot be read.
pub(crate) fn without_stages(extra: Bytes, given_up: &BTreeSet<StageId>) -> Result<Bytes, String> {
    let Extra { catalog, queries, producers, stages, groups } =
        decode_extra(extra).map_err(|error| error.to_string())?;
    let stages = stages::without(&stages, given_up).map_err(|error| error.to_string())?;
    Ok(encode_extra(catalog.as_ref(), &queries, &producers, &stages, &groups))
}

/// Reads a vote: its term, the node voted for, and whether it was committed.
///
/// # Errors
/// Why it cannot be read.
pub(crate) fn read_vote(payload: Bytes) -> Result<(Term, u64, bool), String> {
    let vote = decode_vote(payload).map_err(|error| error.to_string())?;
    Ok((Term::new(vote.leader_id.term), vote.leader_id.voted_for, vote.committed))
}

/// Reads the place in the log that a committed mark or a purge names.
///
/// # Errors
/// Why it cannot be read.
pub(crate) fn read_place(payload: Bytes) -> Result<(Term, EntryIndex), String> {
    let id = decode_log_id(payload).map_err(|error| error.to_string())?;
    Ok((term_of(&id), index_of(&id)))
}

/// The number of data shards in the file "node"; `None` when there is no such file.
///
/// # Errors
/// [`StorageError::Newer`], [`StorageError::Corrupt`], or the system's error.
pub(crate) fn read_shards(disk: &dyn Disk, dir: &Path) -> Result<Option<u32>, StorageError> {
    Ok(Identity::read(disk, dir)?.map(|identity| identity.shards))
}
