//! Opening a shard's directory: the manifest, its segments, and what else lies there.
//!
//! Owns the checks at open and the fate of files the manifest does not list. Leaves out the log, which
//! replication replays on top. Called once per shard and start. A crash while opening changes nothing: every
//! step can be done again.
//!
//! Removed are only files that are known: `manifest.tmp`, `segments/*.tmp` and what the manifest lists as
//! removed. Anything else in `segments/` goes to `unknown/`, under its name or with a number behind it.

use super::batch::TopicStorage;
use super::disk::{Disk, DiskEntry};
use super::error::StorageError;
use super::manifest::{MANIFEST, MANIFEST_TMP, Manifest, ManifestIndex, SegmentManifest, TopicManifest};
use super::partition_writer::PartitionWriter;
use super::seal::{SEGMENTS, TMP, is_dense};
use super::segment::{Segment, SegmentHome};
use super::shard_store::TopicState;
use millstream_catalog::model::{EntryIndex, PartitionId, ShardId};
use std::collections::HashSet;
use std::io;
use std::path::Path;
use std::sync::Arc;

/// Directory, within a shard's, of files found in `segments/` that nobody knows.
pub(crate) const UNKNOWN: &str = "unknown";

/// What was found in a shard's directory.
pub(crate) struct Recovered {
    pub(crate) manifest: Option<Manifest>,
    pub(crate) topics: Vec<TopicState>,
}

/// Opens `dir`, creating it if it is not there.
///
/// # Errors
/// [`StorageError::Corrupt`], [`StorageError::Missing`] and [`StorageError::Newer`] name the file; nothing
/// is changed then.
pub(crate) fn recover(home: &Arc<SegmentHome>, dir: &Path, shard: ShardId) -> Result<Recovered, StorageError> {
    let disk = &*home.disk;
    let failed = |error| StorageError::io("open a shard's directory", error);
    disk.create_dir_durable(dir).map_err(failed)?;
    disk.create_dir_durable(&home.dir).map_err(failed)?;
    let found = disk.list(&home.dir).map_err(failed)?;
    let manifest = Manifest::read(disk, dir)?;
    let mut topics = Vec::new();
    if let Some(manifest) = &manifest {
        if manifest.index.shard != shard {
            return Err(corrupt("it is another shard's"));
        }
        let names = found.iter().map(|entry| entry.name.as_str()).collect();
        for topic in &manifest.index.topics {
            topics.push(open_topic(home, &names, topic)?);
        }
    }
    tidy(disk, dir, &found, manifest.as_ref().map(|manifest| &manifest.index)).map_err(failed)?;
    Ok(Recovered { manifest, topics })
}

fn corrupt(what: &'static str) -> StorageError {
    StorageError::Corrupt { file: MANIFEST.to_owned(), position: 0, what }
}

fn open_topic(
    home: &Arc<SegmentHome>,
    names: &HashSet<&str>,
    listed: &TopicManifest,
) -> Result<TopicState, StorageError> {
    let storage = listed.storage()?;
    let mut partitions = Vec::with_capacity(listed.partitions.len());
    for (id, partition) in (0u32..).map(PartitionId::new).zip(&listed.partitions) {
        if !is_dense(partition) {
            return Err(corrupt("the offsets of a partition's segments do not follow each other"));
        }
        let mut segments: Vec<Arc<Segment>> = Vec::with_capacity(partition.segments.len());
        for segment in &partition.segments {
            let before = segments.last().map_or(EntryIndex::default(), |before| before.entry_last());
            let is_there = names.contains(segment.file.as_str());
            segments.push(Arc::new(open_segment(home, (&storage, id), segment, is_there, before)?));
        }
        let offsets = partition.offset_start..partition.offset_next;
        partitions.push(PartitionWriter::new(&storage, id, segments, offsets, partition.upkeep.clone()));
    }
    Ok(TopicState { storage, schema_hex: listed.schema.as_str().into(), partitions })
}

/// A segment, not opened unless its manifest is an earlier one; one that is damaged or gone keeps its place, and only
/// reads of its rows fail.
fn open_segment(
    home: &Arc<SegmentHome>,
    (topic, partition): (&TopicStorage, PartitionId),
    listed: &SegmentManifest,
    is_there: bool,
    entry_before: EntryIndex,
) -> Result<Segment, StorageError> {
    let expected = listed.expected(topic.topic, partition, &topic.schema);
    let file = || listed.file.clone();
    if let Some(lost) = &listed.lost {
        return Ok(Segment::unreadable(home, file(), expected, entry_before, (lost.as_str().into(), true)));
    }
    let opened = match expected.entries {
        _ if !is_there => Err(StorageError::Missing { file: file() }),
        Some(entries) => Ok(Segment::listed(home, file(), expected.clone(), entries)),
        None => Segment::open(home, file(), expected.clone()),
    };
    match opened {
        Err(error) if error.is_damage() => {
            let damage = (error.to_string().into(), false);
            let segment = Segment::unreadable(home, file(), expected, entry_before, damage);
            segment.report(&error.to_string());
            Ok(segment)
        }
        opened => opened,
    }
}

/// Removes what is known to be garbage and moves aside what is not known at all.
fn tidy(disk: &dyn Disk, dir: &Path, found: &[DiskEntry], index: Option<&ManifestIndex>) -> io::Result<()> {
    let tmp = dir.join(MANIFEST_TMP);
    if disk.exists(&tmp)? {
        disk.remove(&tmp)?;
    }
    let topics = index.iter().flat_map(|index| &index.topics);
    let listed: HashSet<&str> = topics
        .flat_map(|topic| &topic.partitions)
        .flat_map(|partition| &partition.segments)
        .map(|segment| segment.file.as_str())
        .collect();
    let removed: HashSet<&str> = index.iter().flat_map(|index| &index.removed).map(String::as_str).collect();
    let segments = dir.join(SEGMENTS);
    let mut is_changed = false;
    for entry in found {
        let name = entry.name.as_str();
        if listed.contains(name) {
            continue;
        }
        is_changed = true;
        let is_known = removed.contains(name) || name.ends_with(TMP) || is_unfinished(name, index);
        if !entry.is_dir && is_known {
            disk.remove(&segments.join(name))?;
        } else {
            move_aside(disk, dir, name)?;
        }
    }
    if is_changed { disk.sync_dir(&segments) } else { Ok(()) }
}

/// Whether `name` is a segment of a seal that did not get as far as its manifest: the log has its rows. Or of a rewrite
/// that did not: what it replaces is listed.
fn is_unfinished(name: &str, index: Option<&ManifestIndex>) -> bool {
    if Segment::is_rewritten_file_name(name) {
        return true;
    }
    let Some((topic, partition, offset_start)) = Segment::parse_file_name(name) else { return false };
    let topic = index.iter().flat_map(|index| &index.topics).find(|listed| listed.topic == topic);
    let listed = topic.and_then(|topic| topic.partitions.get(partition.value() as usize));
    listed.is_none_or(|listed| offset_start >= listed.offset_next)
}

fn move_aside(disk: &dyn Disk, dir: &Path, name: &str) -> io::Result<()> {
    let unknown = dir.join(UNKNOWN);
    disk.create_dir_durable(&unknown)?;
    let mut to = unknown.join(name);
    let mut number = 1;
    while disk.exists(&to)? {
        to = unknown.join(format!("{name}.{number}"));
        number += 1;
    }
    tracing::warn!(file = name, "file in the segment directory is not in the manifest; moved to \"unknown\"");
    disk.rename(&dir.join(SEGMENTS).join(name), &to)?;
    disk.sync_dir(&unknown)
}
