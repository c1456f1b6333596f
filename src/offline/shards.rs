//! Checking shards: manifests, their place in the log, and what lies in their directories.
//!
//! Owns the rules between files. Leaves out the content of segments (`segments`).

use super::check::{Broken, Check, Patch};
use super::heal::flipped_bit;
use super::log::{Log, ShardLog};
use super::report::Finding;
use super::segments;
use crate::replication::inspect::StagedListed;
use crate::storage::StorageError;
use crate::storage::manifest::{CRC_POSITION, MANIFEST, MANIFEST_TMP, Manifest, PartitionManifest, TopicManifest};
use crate::storage::seal::{SEGMENTS, TMP};
use crate::storage::staging::STAGED;
use crate::storage::state_files::{self, STATE, saved_name};
use bytes::Bytes;
use millstream_catalog::State;
use millstream_catalog::model::{EntryIndex, Offset, PartitionId, QueryId};
use std::collections::{BTreeMap, BTreeSet, HashSet};

/// The manifest of a shard, within the data directory.
pub(crate) fn manifest_name(shard: u32) -> String {
    format!("shards/{shard}/{MANIFEST}")
}

/// Reads the manifest of each shard there is; gives the shards.
///
/// # Errors
/// [`StorageError::Newer`], or when a directory cannot be read.
pub(crate) fn read_manifests(check: &mut Check) -> Result<BTreeSet<u32>, StorageError> {
    let mut ids = BTreeSet::new();
    for entry in super::list(&*check.disk, &check.dir.join("shards"))? {
        let Ok(id) = entry.name.parse::<u32>() else {
            let file = format!("shards/{}", entry.name);
            check.report.findings.push(Finding::note(file, "not a shard; it is left alone"));
            continue;
        };
        ids.insert(id);
        let names = super::list(&*check.disk, &check.dir.join("shards").join(&entry.name))?;
        if !names.iter().any(|name| name.name == MANIFEST) {
            continue;
        }
        let file = manifest_name(id);
        let Some(bytes) = check.read(&file) else { continue };
        match decode(check, &file, &bytes, id)? {
            Some(manifest) if manifest.index.shard.value() == id => {
                check.manifests.insert(id, manifest);
            }
            Some(_) => check.report.findings.push(Finding::damage(file, "it is another shard's").of_shard(id)),
            None => {}
        }
    }
    Ok(ids)
}

fn decode(check: &mut Check, file: &str, bytes: &Bytes, shard: u32) -> Result<Option<Manifest>, StorageError> {
    let error = match Manifest::decode(bytes) {
        Err(error) if error.is_damage() => error,
        decoded => return decoded.map(Some),
    };
    let finding = Finding::damage(file, error.to_string()).of_shard(shard);
    let Some((bit, manifest)) = heal(bytes) else {
        check.report.findings.push(finding);
        return Ok(None);
    };
    let position = bit as u64 / 8;
    let finding = finding.at(position..position + 1);
    check.report.findings.push(finding.repaired_by("the flipped bit is put back; nothing is lost"));
    let byte = bytes[bit / 8] ^ (1 << (bit % 8));
    check.patches.push(Patch { path: check.dir.join(file), position, bytes: vec![byte] });
    Ok(Some(manifest))
}

/// The flipped bit of a manifest, and what it says without. Found by its checksum, proved by its content.
fn heal(bytes: &Bytes) -> Option<(usize, Manifest)> {
    let crc_end = CRC_POSITION + 4;
    let stored = u32::from_le_bytes(bytes.get(CRC_POSITION..crc_end)?.try_into().ok()?);
    let covered = [&bytes[..CRC_POSITION], &bytes[crc_end..]].concat();
    let in_covered = flipped_bit(&covered, stored).map(|bit| if bit < CRC_POSITION * 8 { bit } else { bit + 32 });
    let difference = crc32c::crc32c(&covered) ^ stored;
    let in_crc = (difference.count_ones() == 1).then(|| CRC_POSITION * 8 + difference.trailing_zeros() as usize);
    in_covered.into_iter().chain(in_crc).find_map(|bit| {
        let mut healed = bytes.to_vec();
        healed[bit / 8] ^= 1 << (bit % 8);
        Manifest::decode(&Bytes::from(healed)).ok().map(|manifest| (bit, manifest))
    })
}

/// Checks that each shard's manifest and log meet.
pub(crate) fn check_places(check: &mut Check, ids: &BTreeSet<u32>, covered: &BTreeMap<u32, u64>, log: &Log) {
    let none = ShardLog::default();
    for id in ids.iter().copied().chain(log.shards.keys().copied().filter(|id| !ids.contains(id))) {
        let shard = log.shards.get(&id).unwrap_or(&none);
        let covered = covered.get(&id).copied();
        let mut say = |what: String| {
            check.report.findings.push(Finding::damage(manifest_name(id), what).of_shard(id));
        };
        // Counted as Raft does, one less than the log.
        match (covered, shard.purged) {
            (None, Some(purged)) => say(format!("the log has no entries up to {}, and no manifest has", purged - 1)),
            (Some(covered), Some(purged)) if covered < purged => {
                say(format!("it covers entries up to {}, the log begins after {}", covered - 1, purged - 1));
            }
            (Some(covered), _) => match shard.next() {
                Some(next) if next <= covered => {
                    say(format!("it covers entries up to {}, the log ends at {}", covered - 1, next as i64 - 2));
                }
                None => say("the log has nothing of the shard".to_owned()),
                Some(_) if !shard.has_vote() => say("the log has no vote of the shard".to_owned()),
                Some(_) => {}
            },
            (None, None) => {}
        }
    }
}

/// Checks a shard's segments against its manifest.
///
/// # Errors
/// [`StorageError::Newer`], or when a directory cannot be read.
pub(crate) fn check_segments(
    check: &mut Check,
    shard: u32,
    manifest: &Manifest,
    catalog: Option<&State>,
) -> Result<(), StorageError> {
    for topic in &manifest.index.topics {
        let name = catalog.and_then(|catalog| catalog.relations.get(&topic.topic));
        let name = name.map_or_else(|| format!("#{}", topic.topic), |relation| relation.name.to_string());
        check_topic(check, shard, manifest.index.published, topic, &name)?;
    }
    note_unlisted(check, shard, manifest)
}

fn check_topic(
    check: &mut Check,
    shard: u32,
    published: EntryIndex,
    topic: &TopicManifest,
    name: &str,
) -> Result<(), StorageError> {
    let storage = match topic.storage() {
        Ok(storage) => storage,
        Err(error) => {
            let what = format!("{error} (topic \"{name}\")");
            check.report.findings.push(Finding::damage(manifest_name(shard), what).of_shard(shard));
            return Ok(());
        }
    };
    for (id, partition) in (0u32..).map(PartitionId::new).zip(&topic.partitions) {
        if let Some(what) = disorder(partition) {
            let what = format!("{what} (topic \"{name}\", partition {id})");
            check.report.findings.push(Finding::damage(manifest_name(shard), what).of_shard(shard));
        }
        let given_up = segments::GIVEN_UP;
        let mut place =
            segments::Place { shard, topic: name, partition: id, published, entry: EntryIndex::default(), given_up };
        for segment in &partition.segments {
            let file = format!("shards/{shard}/{SEGMENTS}/{}", segment.file);
            let expected = segment.expected(storage.topic, id, &storage.schema);
            let offsets = (segment.offset_start.value(), segment.end().value());
            if let Some(lost) = &segment.lost {
                let finding = Finding::note(file, format!("lost before: {lost}")).of_shard(shard);
                let (topic, partition) = (Some(name.to_owned()), Some(id.value()));
                check.report.findings.push(Finding { topic, partition, offsets: Some(offsets), ..finding });
            } else if let Some(broken) = segments::check(check, &file, &expected, &mut place)? {
                check.broken.insert((shard, segment.file.clone()), broken);
            }
        }
    }
    Ok(())
}

/// Checks the files of open transactions. A repair gives up the transaction of one that cannot be made good.
///
/// # Errors
/// [`StorageError::Newer`], or when a directory cannot be read.
pub(crate) fn check_staged(
    check: &mut Check,
    shard: u32,
    manifest: &Manifest,
    staged: &[StagedListed],
) -> Result<(), StorageError> {
    for StagedListed { stage, file: listed, decider } in staged {
        // Nobody reads rows of a topic that is gone; one that cannot be read was named.
        let topic = manifest.index.topics.iter().find(|topic| topic.topic == listed.topic());
        let Some(storage) = topic.and_then(|topic| topic.storage().ok()) else { continue };
        let file = format!("shards/{shard}/{STAGED}/{}", listed.file());
        let (name, partition, published) =
            (format!("#{}", storage.topic), listed.partition(), manifest.index.published);
        let given_up = match decider {
            Some(decider) => format!(
                "the rows are given up here; shard {decider} decides about the transaction that they are of, and if it \
                 commits, other shards have its other rows"
            ),
            None => {
                "the transaction that the rows are of is given up, as at the next start if it was not committed".into()
            }
        };
        let given_up = given_up.as_str();
        let mut place =
            segments::Place { shard, topic: &name, partition, published, entry: EntryIndex::default(), given_up };
        let found = check.report.findings.len();
        if segments::check(check, &file, &listed.expected(&storage.schema), &mut place)?.is_some() {
            check.broken_stages.entry(shard).or_default().insert(*stage);
        }
        // Its rows have no offsets yet.
        check.report.findings.iter_mut().skip(found).for_each(|finding| finding.offsets = None);
    }
    let listed: HashSet<&str> = staged.iter().map(|listed| listed.file.file()).collect();
    let dir = check.dir.join("shards").join(shard.to_string()).join(STAGED);
    for entry in super::list(&*check.disk, &dir)?.iter().filter(|entry| !listed.contains(entry.name.as_str())) {
        let file = format!("shards/{shard}/{STAGED}/{}", entry.name);
        let what = "in no manifest; the next start removes it, and writes it again if the log says so";
        check.report.findings.push(Finding::note(file, what).of_shard(shard));
    }
    Ok(())
}

/// Reads the files that the last checkpoint of a query names.
///
/// # Errors
/// [`StorageError::Newer`], or when one cannot be read.
pub(crate) fn check_state(check: &mut Check, shard: u32, query: QueryId, files: &[u64]) -> Result<(), StorageError> {
    for number in files {
        let file = format!("shards/{shard}/{STATE}/{query}/{}", saved_name(*number));
        match state_files::read(&*check.disk, &check.dir.join(&file)) {
            Ok(bytes) => {
                check.report.files += 1;
                check.report.bytes += bytes.len() as u64;
            }
            Err(error) if error.is_damage() => {
                let what =
                    format!("{error}; without a backup, drop the continuous query, and create it to compute it anew");
                check.report.findings.push(Finding::damage(file, what).of_shard(shard));
            }
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// What is wrong with the offsets of a partition's segments: each begins where the one before ends, up to the next
/// offset. The first may begin before the log start. Where compaction was, it may have left nothing.
fn disorder(partition: &PartitionManifest) -> Option<String> {
    let compacted = partition.upkeep.compacted_upto;
    let begin_max = partition.offset_start.max(compacted);
    let mut end = None;
    for segment in &partition.segments {
        let (start, next) = (segment.offset_start, segment.end());
        match end {
            None if start > begin_max || next <= partition.offset_start => {
                return Some(format!("the log start {} is not in the first segment", partition.offset_start));
            }
            Some(end) if end > start || (end < start && start > compacted) => {
                return Some(format!("after offset {end} segments go on with {start}"));
            }
            _ => end = Some(next),
        }
    }
    let (end, gap_max) = end.map_or((Offset::ZERO, begin_max), |end| (end, compacted.max(end)));
    let is_right = (end..=gap_max).contains(&partition.offset_next);
    (!is_right).then(|| format!("segments end at {end}, not at {}", partition.offset_next))
}

fn note_unlisted(check: &mut Check, shard: u32, manifest: &Manifest) -> Result<(), StorageError> {
    let topics = manifest.index.topics.iter().flat_map(|topic| &topic.partitions);
    let listed: HashSet<&str> = topics.flat_map(|p| &p.segments).map(|segment| segment.file.as_str()).collect();
    let removed: HashSet<&str> = manifest.index.removed.iter().map(String::as_str).collect();
    let dir = check.dir.join("shards").join(shard.to_string());
    for entry in super::list(&*check.disk, &dir.join(SEGMENTS))? {
        let name = entry.name.as_str();
        if !listed.contains(name) && !removed.contains(name) {
            let what = if name.ends_with(TMP) {
                "a segment that was not finished; the next start removes it"
            } else {
                "in no manifest; the next start removes it if the log has its rows, else sets it aside"
            };
            let file = format!("shards/{shard}/{SEGMENTS}/{name}");
            check.report.findings.push(Finding::note(file, what).of_shard(shard));
        }
    }
    for entry in super::list(&*check.disk, &dir)? {
        if ![MANIFEST, MANIFEST_TMP, SEGMENTS, STAGED, STATE].contains(&entry.name.as_str()) {
            let file = format!("shards/{shard}/{}", entry.name);
            check.report.findings.push(Finding::note(file, "nothing reads it").of_shard(shard));
        }
    }
    Ok(())
}

/// Of a segment that cannot be opened.
impl Broken {
    pub(crate) fn whole(reason: String) -> Self {
        Self { blocks: BTreeMap::new(), reason }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::PartitionUpkeep;
    use crate::storage::seal::is_dense;
    use crate::storage::segment::SegmentEnd;
    use millstream_catalog::Compression;
    use millstream_catalog::model::RowCount;

    fn partition(start: u64, segments: &[(u64, u64)], compacted: u64, next: u64) -> PartitionManifest {
        let segment = |(start, end): &(u64, u64)| crate::storage::manifest::SegmentManifest {
            file: format!("{start}"),
            offset_start: Offset::new(*start),
            offset_end: None,
            rows: RowCount::new(end - start),
            bytes: 1,
            compression: Compression::None,
            end: SegmentEnd { bytes: 1, crc: 1 },
            rowtime: None,
            entries: None,
            lost: None,
        };
        PartitionManifest {
            offset_start: Offset::new(start),
            offset_next: Offset::new(next),
            segments: segments.iter().map(segment).collect(),
            upkeep: PartitionUpkeep { compacted_upto: Offset::new(compacted), ..PartitionUpkeep::default() },
        }
    }

    /// What the check says, and what a start would, are two programs.
    #[test]
    fn gaps_are_in_order_where_compaction_was_and_nowhere_else() {
        for (start, segments, compacted, next, is_right) in [
            (0, &[][..], 0, 0, true),
            (0, &[], 0, 1, false),
            (0, &[], 4, 4, true),
            (0, &[], 4, 5, false),
            (3, &[], 0, 3, true),
            (0, &[(0, 5), (5, 9)], 0, 9, true),
            (0, &[(0, 5), (5, 9)], 0, 10, false),
            (0, &[(0, 5), (5, 9)], 0, 8, false),
            (0, &[(0, 5), (6, 9)], 5, 9, false),
            (0, &[(0, 5), (6, 9)], 6, 9, true),
            (0, &[(0, 5), (4, 9)], 9, 9, false),
            (0, &[(2, 5)], 1, 5, false),
            (0, &[(2, 5)], 5, 5, true),
            (0, &[(0, 5)], 8, 8, true),
            (0, &[(0, 5)], 8, 9, false),
            (0, &[(0, 5)], 8, 7, true),
            (3, &[(0, 5)], 0, 5, true),
            (5, &[(0, 5)], 0, 5, false),
        ] {
            let manifest = partition(start, segments, compacted, next);
            let said = format!("{manifest:?}: {:?}", disorder(&manifest));
            assert_eq!((disorder(&manifest).is_none(), is_dense(&manifest)), (is_right, is_right), "{said}");
        }
    }
}
