//! A sealed segment as views have it: what the manifest says of it, and its file, open while it is used.
//!
//! Owns when the file is opened, mapped and let go. Leaves out reading (`open_segment`) and how many are open at once (`maps`). Shared by every view that has it. A crash does nothing to it: it was synced
//! before a manifest listed it.
//!
//! Opening a shard opens no segment: offsets, rows, times and entries stand in the manifest. So a node starts as fast with
//! much data as with little, and a segment is found damaged when it is first used, or by `millstream check`; then it
//! keeps its place, and each read of it says why it fails.

use super::batch::RowtimeRange;
use super::disk::Disk;
use super::error::StorageError;
use super::maps::{self, Slot};
use super::open_segment::OpenSegment;
use arrow::datatypes::SchemaRef;
use millstream_catalog::model::{ByteSize, EntryIndex, Offset, PartitionId, RowCount, TopicId};
use millstream_catalog::relation::Compression;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};

/// The part of the file after the last block.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct SegmentEnd {
    pub(crate) bytes: u64,
    pub(crate) crc: u32,
}

/// What must be known of a segment before it is opened; the manifest has it.
#[derive(Debug, Clone)]
pub(crate) struct SegmentExpected {
    pub(crate) topic: TopicId,
    pub(crate) partition: PartitionId,
    pub(crate) offset_start: Offset,
    /// Where it ends, if its rows have gaps.
    pub(crate) offset_end: Option<Offset>,
    pub(crate) rows: RowCount,
    pub(crate) bytes: u64,
    pub(crate) end: SegmentEnd,
    pub(crate) compression: Compression,
    pub(crate) schema: SchemaRef,
    pub(crate) rowtime: Option<RowtimeRange>,
    /// The first and the last entry with rows in it; earlier manifests do not say.
    pub(crate) entries: Option<(EntryIndex, EntryIndex)>,
}

/// Where the segments of a shard are.
#[derive(Debug)]
pub(crate) struct SegmentHome {
    pub(crate) disk: Arc<dyn Disk>,
    pub(crate) dir: PathBuf,
}

/// A sealed segment.
pub struct Segment {
    home: Arc<SegmentHome>,
    file: String,
    expected: SegmentExpected,
    entries: (EntryIndex, EntryIndex),
    slot: Arc<Slot>,
    /// Why no row of it can be read, once that is known.
    damage: OnceLock<Arc<str>>,
    /// Whether `damage` stands in the manifest.
    is_lost: bool,
}

impl Segment {
    /// The file name of a segment.
    pub(crate) fn file_name(topic: TopicId, partition: PartitionId, offset_start: Offset) -> String {
        format!("t{topic}-p{partition}-{offset_start:020}.arrow", offset_start = offset_start.value())
    }

    /// The file name of a segment that replaces others; `number` is that of the rewrite in its partition.
    pub(crate) fn rewritten_file_name(
        (topic, partition): (TopicId, PartitionId),
        offset_start: Offset,
        number: u64,
    ) -> String {
        format!("t{topic}-p{partition}-{offset_start:020}-r{number}.arrow", offset_start = offset_start.value())
    }

    /// Whether a file has the name of a segment that replaces others.
    pub(crate) fn is_rewritten_file_name(name: &str) -> bool {
        let Some((of_segment, number)) = name.strip_suffix(".arrow").and_then(|stem| stem.rsplit_once("-r")) else {
            return false;
        };
        number.parse::<u64>().is_ok() && Self::parse_file_name(&format!("{of_segment}.arrow")).is_some()
    }

    /// Topic, partition and first offset of a segment's file name; `None` for any other name.
    pub(crate) fn parse_file_name(name: &str) -> Option<(TopicId, PartitionId, Offset)> {
        let (topic, rest) = name.strip_prefix('t')?.split_once("-p")?;
        let (partition, rest) = rest.split_once('-')?;
        let offset = rest.strip_suffix(".arrow")?;
        let place = (topic.parse().ok()?, partition.parse().ok()?, offset.parse().ok()?);
        let place = (TopicId::new(place.0), PartitionId::new(place.1), Offset::new(place.2));
        (Self::file_name(place.0, place.1, place.2) == name).then_some(place)
    }

    /// A segment that is opened and verified at once, but for its blocks: one just written, or one of which the manifest
    /// does not say everything.
    ///
    /// # Errors
    /// [`StorageError::Missing`], [`StorageError::Corrupt`], [`StorageError::Newer`], or the disk's error.
    pub(crate) fn open(home: &Arc<SegmentHome>, file: String, expected: SegmentExpected) -> Result<Self, StorageError> {
        let open = OpenSegment::open(&*home.disk, &home.dir, file.clone(), &expected)?;
        let entries = (open.entry_first(), open.entry_last());
        let expected = SegmentExpected { rowtime: open.rowtime(), entries: Some(entries), ..expected };
        let segment = Self::new(home, file, expected, entries);
        maps::keep(&segment.slot, &Arc::new(open));
        Ok(segment)
    }

    /// A segment that is opened when it is used: the manifest says everything else of it.
    pub(crate) fn listed(
        home: &Arc<SegmentHome>,
        file: String,
        expected: SegmentExpected,
        entries: (EntryIndex, EntryIndex),
    ) -> Self {
        Self::new(home, file, expected, entries)
    }

    /// A segment that cannot be opened. `entry` is the last entry of the segment before it, for a manifest that says none;
    /// `is_lost` when the damage stands in the manifest.
    pub(crate) fn unreadable(
        home: &Arc<SegmentHome>,
        file: String,
        expected: SegmentExpected,
        entry: EntryIndex,
        (damage, is_lost): (Arc<str>, bool),
    ) -> Self {
        let entries = expected.entries.unwrap_or((entry, entry));
        Self { damage: OnceLock::from(damage), is_lost, ..Self::new(home, file, expected, entries) }
    }

    fn new(
        home: &Arc<SegmentHome>,
        file: String,
        expected: SegmentExpected,
        entries: (EntryIndex, EntryIndex),
    ) -> Self {
        let (home, slot, damage) = (Arc::clone(home), Arc::default(), OnceLock::new());
        Self { home, file, expected, entries, slot, damage, is_lost: false }
    }

    /// The open file. Of a damaged one, a stand-in: one block that no read gets.
    ///
    /// # Errors
    /// When the system cannot open it now, but perhaps later.
    pub(crate) fn opened(&self) -> Result<Arc<OpenSegment>, StorageError> {
        if let Some(open) = self.slot.open() {
            return Ok(open);
        }
        if let Some(damage) = self.damage.get() {
            return Ok(self.stand_in(damage));
        }
        match OpenSegment::open(&*self.home.disk, &self.home.dir, self.file.clone(), &self.expected) {
            Ok(open) => {
                let open = Arc::new(open);
                maps::keep(&self.slot, &open);
                Ok(open)
            }
            Err(error) => self.not_opened(error),
        }
    }

    fn not_opened(&self, error: StorageError) -> Result<Arc<OpenSegment>, StorageError> {
        if !error.is_damage() {
            return Err(error);
        }
        // Another may have kept it open meanwhile, to unlink its file.
        if let Some(open) = self.slot.open() {
            return Ok(open);
        }
        let mut is_new = false;
        let damage = self.damage.get_or_init(|| {
            is_new = true;
            error.to_string().into()
        });
        if is_new {
            self.report(damage);
        }
        Ok(self.stand_in(damage))
    }

    fn stand_in(&self, damage: &Arc<str>) -> Arc<OpenSegment> {
        Arc::new(OpenSegment::unreadable(self.file.clone(), &self.expected, Arc::clone(damage)))
    }

    /// Keeps the file open until the segment is dropped, so that it may be unlinked: readers of older views go on.
    ///
    /// # Errors
    /// When it cannot be opened now, or too many are kept so.
    pub(crate) fn pin(&self) -> Result<(), StorageError> {
        let open = self.opened()?;
        maps::pin(&self.slot, &open)
    }

    /// Lets its file go, as when others are used more.
    #[cfg(test)]
    pub(crate) fn evict(&self) {
        self.slot.evict();
    }

    /// As [`Segment::opened`], when the file could not be opened.
    #[cfg(test)]
    pub(crate) fn opened_after(&self, error: StorageError) -> Result<Arc<OpenSegment>, StorageError> {
        self.not_opened(error)
    }

    /// As [`OpenSegment::pass`].
    pub(crate) fn pass(&self, from: Offset, to: Offset) {
        if let Some(open) = self.slot.open() {
            open.pass(from, to);
        }
    }

    /// Whether its file is open now.
    #[cfg(test)]
    pub(crate) fn is_open(&self) -> bool {
        self.slot.open().is_some()
    }

    /// Says once that rows cannot be read.
    pub(crate) fn report(&self, damage: &str) {
        tracing::error!(
            topic = self.topic().value(),
            partition = self.partition().value(),
            offset_start = self.offset_start().value(),
            offset_last = self.offset_end().before().value(),
            error = damage,
            "these rows cannot be read"
        );
    }

    /// Why no row of it can be read, if that was found. A damaged block of a segment that opens is found when it is read.
    pub fn damage(&self) -> Option<&str> {
        self.damage.get().map(|damage| &**damage)
    }
    /// What the manifest says of lost rows.
    pub(crate) fn lost(&self) -> Option<&str> {
        self.damage().filter(|_| self.is_lost)
    }
    /// Where its file is.
    pub(crate) fn home(&self) -> &Arc<SegmentHome> {
        &self.home
    }
    /// What the manifest says of it.
    pub(crate) fn expected(&self) -> &SegmentExpected {
        &self.expected
    }
    /// The file's name in the shard's segment directory.
    pub fn file(&self) -> &str {
        &self.file
    }
    /// The topic.
    pub fn topic(&self) -> TopicId {
        self.expected.topic
    }
    /// The partition.
    pub fn partition(&self) -> PartitionId {
        self.expected.partition
    }
    /// The first offset it is for; compaction may have removed its row.
    pub fn offset_start(&self) -> Offset {
        self.expected.offset_start
    }
    /// The offset after the last one it is for.
    pub fn offset_end(&self) -> Offset {
        self.expected.offset_end.unwrap_or(self.expected.offset_start.plus(self.expected.rows))
    }
    /// Rows in the segment, at least one.
    pub fn rows(&self) -> RowCount {
        self.expected.rows
    }
    /// Bytes of the file.
    pub fn bytes(&self) -> ByteSize {
        ByteSize::new(self.expected.bytes)
    }
    /// How buffers are compressed.
    pub fn compression(&self) -> Compression {
        self.expected.compression
    }
    /// Smallest and largest event time, if the rows have one.
    pub fn rowtime(&self) -> Option<RowtimeRange> {
        self.expected.rowtime
    }
    /// The first entry with rows here.
    pub fn entry_first(&self) -> EntryIndex {
        self.entries.0
    }
    /// The last entry with rows here.
    pub fn entry_last(&self) -> EntryIndex {
        self.entries.1
    }

    /// Rows before `offset`.
    ///
    /// # Errors
    /// When it has gaps, and cannot be opened.
    pub(crate) fn rows_before(&self, offset: Offset) -> Result<RowCount, StorageError> {
        if offset <= self.offset_start() {
            return Ok(RowCount::ZERO);
        }
        match self.expected.offset_end {
            _ if offset >= self.offset_end() => Ok(self.rows()),
            None => Ok(offset.since(self.offset_start())),
            Some(_) => Ok(self.opened()?.rows_before(offset)),
        }
    }

    /// The offset after the last row of entries up to and including `cut`.
    ///
    /// # Errors
    /// When the cut is within it, and it cannot be opened.
    pub(crate) fn offset_end_at(&self, cut: EntryIndex) -> Result<Offset, StorageError> {
        match cut {
            _ if self.entry_last() <= cut => Ok(self.offset_end()),
            _ if self.entry_first() > cut => Ok(self.offset_start()),
            _ => Ok(self.opened()?.offset_end_at(cut)),
        }
    }
}

impl fmt::Debug for Segment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Segment").field("file", &self.file).field("rows", &self.expected.rows).finish_non_exhaustive()
    }
}
