//! `millstream check --repair`: makes good what can be, without losing more than is damaged.
//!
//! Order, and what a kill leaves: (1) bytes are put back in place, each change by itself; (2) what is whole of a broken
//! segment is written as new segments, which no manifest lists yet; (3) the manifest is replaced, listing those, and
//! the lost rows with their offsets and the reason; (4) the broken file is moved to `damaged/`. A repair that was
//! killed is run again.

use super::check::{Broken, Check};
use crate::replication::inspect;
use crate::storage::fit::Wanted;
use crate::storage::manifest::{MANIFEST, Manifest, SegmentManifest, TopicManifest};
use crate::storage::open_segment::OpenSegment;
use crate::storage::seal::{SEGMENTS, TMP};
use crate::storage::segment_writer::SegmentWriter;
use crate::storage::{Disk, StorageError, TopicStorage};
use millstream_catalog::model::{Offset, PartitionId, RowCount};
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;

/// Directory, within a shard's, of segments that were given up.
const DAMAGED: &str = "damaged";

fn failed(source: std::io::Error) -> StorageError {
    StorageError::io("repair the data directory", source)
}

/// Makes good what `check` found.
///
/// # Errors
/// The disk's.
pub(crate) fn repair(check: &Check) -> Result<(), StorageError> {
    for patch in &check.patches {
        let file = check.disk.open(&patch.path).map_err(failed)?;
        file.write_at(&patch.bytes, patch.position).and_then(|()| file.sync_data()).map_err(failed)?;
    }
    if let Some(shards) = check.identity {
        inspect::write_shards(&*check.disk, &check.dir, shards)?;
    }
    for (id, manifest) in &check.manifests {
        let is_broken = |segment: &&SegmentManifest| check.broken.contains_key(&(*id, segment.file.clone()));
        let partitions = manifest.index.topics.iter().flat_map(|topic| &topic.partitions);
        let broken: Vec<String> =
            partitions.flat_map(|p| &p.segments).filter(is_broken).map(|segment| segment.file.clone()).collect();
        if !broken.is_empty() || check.broken_stages.contains_key(id) {
            let shard = Shard { check, id: *id, dir: check.dir.join("shards").join(id.to_string()) };
            shard.give_up(manifest.clone(), &broken)?;
        }
    }
    Ok(())
}

struct Shard<'a> {
    check: &'a Check,
    id: u32,
    dir: PathBuf,
}

impl Shard<'_> {
    fn give_up(&self, mut manifest: Manifest, broken: &[String]) -> Result<(), StorageError> {
        for topic in &mut manifest.index.topics {
            self.split_topic(topic)?;
        }
        if let Some(stages) = self.check.broken_stages.get(&self.id) {
            let unreadable =
                |_| StorageError::Corrupt { file: MANIFEST.to_owned(), position: 0, what: "it does not decode" };
            manifest.extra = inspect::without_stages(manifest.extra, stages).map_err(unreadable)?;
        }
        let segments = self.dir.join(SEGMENTS);
        self.disk().sync_dir(&segments).map_err(failed)?;
        manifest.replace(self.disk(), &self.dir)?;
        let damaged = self.dir.join(DAMAGED);
        self.disk().create_dir_durable(&damaged).map_err(failed)?;
        for file in broken {
            if self.disk().exists(&segments.join(file)).map_err(failed)? {
                self.disk().rename(&segments.join(file), &damaged.join(file)).map_err(failed)?;
            }
        }
        for dir in [&damaged, &segments, &self.dir] {
            self.disk().sync_dir(dir).map_err(failed)?;
        }
        Ok(())
    }

    fn disk(&self) -> &dyn Disk {
        &*self.check.disk
    }

    fn split_topic(&self, topic: &mut TopicManifest) -> Result<(), StorageError> {
        let storage = topic.storage()?;
        for (id, partition) in (0u32..).map(PartitionId::new).zip(&mut topic.partitions) {
            let mut kept = Vec::with_capacity(partition.segments.len());
            for segment in std::mem::take(&mut partition.segments) {
                match self.check.broken.get(&(self.id, segment.file.clone())) {
                    None => kept.push(segment),
                    Some(broken) if broken.blocks.is_empty() => {
                        let offsets = segment.offset_start..segment.end();
                        kept.push(lost(&segment, offsets, segment.rows, &broken.reason));
                    }
                    Some(broken) => kept.extend(self.split(&storage, id, &segment, broken)?),
                }
            }
            partition.segments = kept;
        }
        Ok(())
    }

    /// The parts of a segment that opens: runs of whole blocks as segments of their own, runs of broken ones as lost.
    fn split(
        &self,
        storage: &TopicStorage,
        partition: PartitionId,
        listed: &SegmentManifest,
        broken: &Broken,
    ) -> Result<Vec<SegmentManifest>, StorageError> {
        let dir = self.dir.join(SEGMENTS);
        let expected = listed.expected(storage.topic, partition, &storage.schema);
        let segment = OpenSegment::open(self.disk(), &dir, listed.file.clone(), &expected)?;
        let mut parts = Vec::new();
        let mut start = 0;
        while start < segment.blocks() {
            let is_lost = broken.blocks.contains_key(&start);
            let same = |block: &usize| broken.blocks.contains_key(block) == is_lost;
            let end = start + (start..segment.blocks()).take_while(same).count();
            parts.push(if is_lost {
                let offsets = offsets_of(&segment, &(start..end));
                let rows = (start..end).fold(RowCount::ZERO, |sum, block| sum.plus(segment.block_rows(block)));
                lost(listed, offsets, rows, &broken.blocks[&start])
            } else {
                self.keep(storage, partition, (&segment, listed), start..end)?
            });
            start = end;
        }
        Ok(parts)
    }

    /// Writes some blocks of a segment as one of its own.
    fn keep(
        &self,
        storage: &TopicStorage,
        partition: PartitionId,
        (segment, listed): (&OpenSegment, &SegmentManifest),
        blocks: Range<usize>,
    ) -> Result<SegmentManifest, StorageError> {
        let dir = self.dir.join(SEGMENTS);
        let offsets = offsets_of(segment, &blocks);
        let stem = listed.file.trim_end_matches(".arrow");
        let file = format!("{stem}-kept-{:020}.arrow", offsets.start.value());
        let tmp = dir.join(format!("{file}{TMP}"));
        let out = self.disk().create(&tmp).map_err(failed)?;
        let mut writer = SegmentWriter::create(Arc::clone(&out), &storage.schema, listed.compression)?;
        let rowtimes = blocks.clone().filter_map(|block| segment.block_rowtime(block));
        let rowtime = rowtimes.map(|r| (r.first.micros(), r.last.micros())).reduce(|a, b| (a.0.min(b.0), a.1.max(b.1)));
        let wanted = Wanted::new(&storage.schema, None)?;
        for block in blocks {
            writer.write(&[segment.read(block, &wanted)?])?;
        }
        let rows = writer.rows();
        let written = writer.finish((storage.topic, partition), offsets.clone())?;
        out.sync_data().map_err(failed)?;
        self.disk().rename(&tmp, &dir.join(&file)).map_err(failed)?;
        let (bytes, end) = (written.bytes, written.end);
        Ok(SegmentManifest { file, bytes, end, rowtime, ..place(listed, offsets, rows) })
    }
}

/// The offsets of some blocks, with the gaps before the first block and after each.
fn offsets_of(segment: &OpenSegment, blocks: &Range<usize>) -> Range<Offset> {
    let start = if blocks.start == 0 { segment.offset_start() } else { segment.block_offsets(blocks.start).start };
    start..segment.block_offsets(blocks.end - 1).end
}

/// Of the segment `of`, the rows of some offsets.
fn place(of: &SegmentManifest, offsets: Range<Offset>, rows: RowCount) -> SegmentManifest {
    let has_gaps = offsets.end.since(offsets.start) != rows;
    let offset_end = has_gaps.then_some(offsets.end);
    SegmentManifest { offset_start: offsets.start, offset_end, rows, entries: None, ..of.clone() }
}

fn lost(of: &SegmentManifest, offsets: Range<Offset>, rows: RowCount, reason: &str) -> SegmentManifest {
    SegmentManifest { bytes: 0, lost: Some(reason.to_owned()), ..place(of, offsets, rows) }
}
