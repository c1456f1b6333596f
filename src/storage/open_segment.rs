//! An open segment: one mapped Arrow IPC file, read block by block.
//!
//! Owns verification and decoding. Leaves out the layout of the file (`footer`), its writing, and how long it stays open
//! (`segment`). The file may be unlinked while it is mapped. A crash does nothing to it: it was synced
//! before a manifest listed it.
//!
//! Uncompressed blocks are not copied: columns point into the map. Decoding checks offsets and UTF-8, so
//! decoded columns are kept (pointers only), and only asked-for ones are decoded.

use super::batch::{RowtimeRange, StoredBatch};
use super::bloom::Bloom;
use super::disk::Disk;
use super::entries::EntryRuns;
use super::error::StorageError;
use super::fit::{Wanted, is_older};
use super::footer::{BLOOM_MARKER, SegmentFooter, parse_end};
use super::mmap::MAPS;
use super::segment::SegmentExpected;
use super::statistics::ColumnStatistics;
use arrow::array::{Array as _, ArrayRef};
use arrow::buffer::Buffer;
use arrow::datatypes::SchemaRef;
use arrow::ipc::reader::FileDecoder;
use arrow::ipc::{Block, MetadataVersion};
use bytes::Bytes;
use millstream_catalog::model::{ByteSize, EntryIndex, Offset, RowCount};
use millstream_catalog::relation::Compression;
use std::fmt;
use std::ops::Range;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

/// A sealed segment, mapped.
pub(crate) struct OpenSegment {
    file: String,
    map: Buffer,
    schema: SchemaRef,
    compression: Compression,
    footer: SegmentFooter,
    blocks: Vec<SegmentBlock>,
    /// Why no row of it can be read.
    damage: Option<Arc<str>>,
    /// Filters that were used, by their position in the footer.
    blooms: Box<[OnceLock<Bloom>]>,
}

struct SegmentBlock {
    ipc: Block,
    /// Of its first row.
    offset_start: Offset,
    /// Where its packed offsets are in the map; empty when it has no gaps.
    offsets: Range<usize>,
    /// Where its packed entry runs are in the map.
    entries: Range<usize>,
    is_verified: AtomicBool,
    /// Columns that point into the map; none are kept of compressed blocks.
    columns: Box<[OnceLock<ArrayRef>]>,
}

/// A block of a map.
struct BlockBytes(Buffer);

impl AsRef<[u8]> for BlockBytes {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

impl OpenSegment {
    /// Maps `dir/file` and verifies everything but the blocks.
    ///
    /// # Errors
    /// [`StorageError::Missing`], [`StorageError::Corrupt`], [`StorageError::Newer`], or the disk's error.
    pub(crate) fn open(
        disk: &dyn Disk,
        dir: &Path,
        file: String,
        expected: &SegmentExpected,
    ) -> Result<Self, StorageError> {
        let map = disk.map(&dir.join(&file)).map_err(|error| match error.kind() {
            std::io::ErrorKind::NotFound => StorageError::Missing { file: file.clone() },
            _ => StorageError::io("map a segment", error),
        })?;
        Self::of_map(map, file, expected)
    }

    /// As [`OpenSegment::open`], of the file's bytes.
    ///
    /// # Errors
    /// [`StorageError::Corrupt`], [`StorageError::Newer`].
    pub(crate) fn of_map(map: Buffer, file: String, expected: &SegmentExpected) -> Result<Self, StorageError> {
        let corrupt = |position: u64, what| StorageError::Corrupt { file: file.clone(), position, what };
        if map.len() as u64 != expected.bytes {
            return Err(corrupt(map.len() as u64, "the file does not have the length it was written with"));
        }
        let end_start = expected.bytes.saturating_sub(expected.end.bytes);
        if crc32c::crc32c(map.get(end_start as usize..).unwrap_or_default()) != expected.end.crc {
            return Err(corrupt(end_start, "the footer's checksum does not match"));
        }
        let parsed = parse_end(&file, &map)?;
        let footer = parsed.footer;
        let header = map.get(..footer.header_bytes as usize).unwrap_or_default();
        if crc32c::crc32c(header) != footer.header_crc {
            return Err(corrupt(0, "the header's checksum does not match"));
        }
        let is_expected = footer.topic == expected.topic
            && footer.partition == expected.partition
            && footer.offset_start == expected.offset_start
            && footer.offset_end == expected.offset_end
            && footer.rows == expected.rows
            && footer.parts_end() == Some(end_start)
            && expected.entries.is_none_or(|entries| entries == (footer.entry_first, footer.entry_last))
            && is_older(&parsed.schema, &expected.schema);
        if !is_expected {
            return Err(corrupt(end_start, "the footer is another segment's"));
        }
        // Shared by all segments that were written since a column was last added.
        let schema = match parsed.schema.fields() == expected.schema.fields() {
            true => expected.schema.clone(),
            false => Arc::new(parsed.schema),
        };
        let keeps_columns = expected.compression == Compression::None;
        let columns = if keeps_columns { schema.fields().len() } else { 0 };
        let mut offset_next = footer.offset_start;
        let mut blocks = Vec::with_capacity(footer.blocks.len());
        let places = parsed.blocks.into_iter().zip(parsed.entries).zip(parsed.offsets);
        for (block, ((ipc, entries), offsets)) in footer.blocks.iter().zip(places) {
            let columns = (0..columns).map(|_| OnceLock::new()).collect();
            let offset_start = block.offset_start.unwrap_or(offset_next);
            let is_verified = AtomicBool::new(false);
            blocks.push(SegmentBlock { ipc, offset_start, offsets, entries, is_verified, columns });
            offset_next = offset_start.plus(block.rows);
        }
        let blooms = footer.blooms.iter().map(|_| OnceLock::new()).collect();
        let compression = expected.compression;
        Ok(Self { file, map, schema, compression, footer, blocks, damage: None, blooms })
    }

    /// A segment that cannot be opened: it keeps its place, and each read of it says why.
    pub(crate) fn unreadable(file: String, expected: &SegmentExpected, damage: Arc<str>) -> Self {
        let footer = SegmentFooter::unreadable(expected);
        let block = SegmentBlock {
            ipc: Block::default(),
            offset_start: expected.offset_start,
            offsets: 0..0,
            entries: 0..0,
            is_verified: AtomicBool::new(false),
            columns: Box::default(),
        };
        let (map, schema, blocks) = (Buffer::from_vec(Vec::<u8>::new()), expected.schema.clone(), vec![block]);
        let compression = expected.compression;
        Self { file, map, schema, compression, footer, blocks, damage: Some(damage), blooms: Box::default() }
    }

    /// The schema of its rows.
    pub(crate) fn schema(&self) -> &SchemaRef {
        &self.schema
    }
    /// The first offset it is for; compaction may have removed its row.
    pub(crate) fn offset_start(&self) -> Offset {
        self.footer.offset_start
    }
    /// The offset after the last one it is for.
    pub(crate) fn offset_end(&self) -> Offset {
        self.footer.offset_end.unwrap_or(self.footer.offset_start.plus(self.footer.rows))
    }
    /// Rows in the segment, at least one.
    pub(crate) fn rows(&self) -> RowCount {
        self.footer.rows
    }
    /// Smallest and largest event time, if the rows have one.
    pub(crate) fn rowtime(&self) -> Option<RowtimeRange> {
        self.footer.rowtime.map(Into::into)
    }
    /// Statistics of the segment's own columns, those of [`OpenSegment::schema`].
    pub(crate) fn columns(&self) -> &[ColumnStatistics] {
        &self.footer.columns
    }
    /// Number of blocks.
    pub(crate) fn blocks(&self) -> usize {
        self.blocks.len()
    }
    /// The first entry with rows here.
    pub(crate) fn entry_first(&self) -> EntryIndex {
        self.footer.entry_first
    }
    /// The last entry with rows here.
    pub(crate) fn entry_last(&self) -> EntryIndex {
        self.footer.entry_last
    }

    /// Offsets of a block's rows, with the gaps after them.
    pub(crate) fn block_offsets(&self, block: usize) -> Range<Offset> {
        let end = self.blocks.get(block + 1).map_or(self.offset_end(), |next| next.offset_start);
        self.blocks[block].offset_start..end
    }

    /// Rows before `offset`.
    pub(crate) fn rows_before(&self, offset: Offset) -> RowCount {
        if offset >= self.offset_end() {
            return self.rows();
        }
        let Some(last) = self.blocks.partition_point(|block| block.offset_start < offset).checked_sub(1) else {
            return RowCount::ZERO;
        };
        let rows = self.footer.blocks[last].rows;
        let within = match self.offsets(last) {
            Some(offsets) => offsets.rows_upto(EntryIndex::new(offset.value().saturating_sub(1))),
            None => offset.since(self.blocks[last].offset_start).min(rows),
        };
        self.footer.blocks[..last].iter().fold(within, |sum, block| sum.plus(block.rows))
    }

    /// The offsets of a block with gaps, packed as entry runs of one row each.
    fn offsets(&self, block: usize) -> Option<EntryRuns> {
        let range = &self.blocks[block].offsets;
        let packed = (!range.is_empty()).then(|| self.map.slice_with_length(range.start, range.len()))?;
        Some(EntryRuns::from_packed(packed, self.footer.blocks[block].rows))
    }

    /// Statistics of a block's columns.
    pub(crate) fn block_columns(&self, block: usize) -> &[ColumnStatistics] {
        match self.footer.blocks[block].columns.as_slice() {
            // Of a file of one block they are those of the file; version 1 had none else.
            [] if self.blocks.len() == 1 => &self.footer.columns,
            columns => columns,
        }
    }

    /// The columns with a filter.
    pub(crate) fn filtered(&self) -> impl Iterator<Item = usize> + '_ {
        self.footer.blooms.iter().map(|bloom| bloom.column)
    }

    /// The filter of a key column; `None` when there is none.
    ///
    /// # Errors
    /// [`StorageError::Corrupt`] when it is not what was written.
    pub(crate) fn bloom(&self, column: usize) -> Result<Option<&Bloom>, StorageError> {
        let found = self.footer.blooms.iter().zip(&self.blooms).enumerate();
        let Some((at, (place, kept))) = found.into_iter().find(|(_, (place, _))| place.column == column) else {
            return Ok(None);
        };
        if let Some(bloom) = kept.get() {
            return Ok(Some(bloom));
        }
        let corrupt = |what| StorageError::Corrupt { file: self.file.clone(), position: place.position, what };
        let bytes = self.map.slice_with_length(place.position as usize, place.bytes as usize);
        if crc32c::crc32c(&bytes) != place.crc {
            return Err(corrupt("a bloom filter's checksum does not match"));
        }
        let bytes = if at == 0 { bytes.slice(BLOOM_MARKER.len().min(bytes.len())) } else { bytes };
        let bloom = Bloom::new(bytes).ok_or_else(|| corrupt("a bloom filter has no whole blocks"))?;
        Ok(Some(kept.get_or_init(|| bloom)))
    }

    /// Where a block is in the file.
    pub(crate) fn block_bytes(&self, block: usize) -> Range<u64> {
        let place = &self.footer.blocks[block];
        place.position..place.position + place.bytes
    }

    /// Rows of a block.
    pub(crate) fn block_rows(&self, block: usize) -> RowCount {
        self.footer.blocks[block].rows
    }

    /// The checksum a block must have.
    pub(crate) fn block_crc(&self, block: usize) -> u32 {
        self.footer.blocks[block].crc
    }

    pub(crate) fn block_rowtime(&self, block: usize) -> Option<RowtimeRange> {
        self.footer.blocks[block].rowtime.map(Into::into)
    }

    /// The offset after the last row of entries up to and including `cut`.
    pub(crate) fn offset_end_at(&self, cut: EntryIndex) -> Offset {
        if self.entry_last() <= cut || self.damage.is_some() {
            return self.offset_end();
        }
        let after = self.footer.blocks.partition_point(|block| block.entry_first <= cut);
        match after.checked_sub(1) {
            Some(block) => {
                let rows = self.entries(block).rows_upto(cut);
                let offsets = self.offsets(block);
                let nth = rows.as_usize().checked_sub(1).and_then(|nth| offsets.as_ref()?.iter().nth(nth));
                nth.map_or(self.blocks[block].offset_start.plus(rows), |(last, _)| Offset::new(last.value()).next())
            }
            None => self.offset_start(),
        }
    }

    fn entries(&self, block: usize) -> EntryRuns {
        let range = &self.blocks[block].entries;
        EntryRuns::from_packed(self.map.slice_with_length(range.start, range.len()), self.footer.blocks[block].rows)
    }

    /// A reader went on from `from` to `to`: the pages of blocks that it has behind it now are not needed for a while.
    pub(crate) fn pass(&self, from: Offset, to: Offset) {
        let is_passed = |block: &usize| {
            let end = self.block_offsets(*block).end;
            from < end && end <= to
        };
        let passed: Vec<Range<u64>> =
            (0..self.blocks.len()).filter(is_passed).map(|block| self.block_bytes(block)).collect();
        if let (Some(first), Some(last)) = (passed.first(), passed.last())
            && let Some(bytes) = self.map.get(first.start as usize..last.end as usize)
        {
            MAPS.pass(bytes);
        }
    }

    /// The wanted columns of a block's rows.
    ///
    /// # Errors
    /// [`StorageError::DamagedRows`] when the block is not what was written; other blocks stay readable.
    pub(crate) fn read(&self, block: usize, wanted: &Wanted) -> Result<StoredBatch, StorageError> {
        let bytes = self.verified(block)?;
        let columns = self.decode(block, &bytes, &wanted.places(&self.schema))?;
        if self.compression == Compression::None {
            let size = |column: &ArrayRef| column.to_data().get_slice_memory_size().unwrap_or_default();
            MAPS.read(bytes.as_ptr(), ByteSize::of(columns.iter().map(size).sum()));
        }
        let rows = self.footer.blocks[block].rows.as_usize();
        let batch = wanted
            .rows(&self.schema, columns, rows)
            .map_err(|_| self.corrupt(block, "a block does not have the segment's columns"))?;
        let offsets = self.offsets(block).map(|runs| runs.iter().map(|(offset, _)| offset.value() as i64).collect());
        let offset_start = self.blocks[block].offset_start;
        Ok(StoredBatch { offset_start, offsets, batch, entries: self.entries(block) })
    }

    /// As [`OpenSegment::read`], of bytes that are checked anew: what gets a new checksum must be what was written.
    ///
    /// # Errors
    /// As [`OpenSegment::read`].
    pub(crate) fn read_anew(&self, block: usize, wanted: &Wanted) -> Result<StoredBatch, StorageError> {
        if let Some(block) = self.blocks.get(block) {
            block.is_verified.store(false, Ordering::Release);
        }
        self.read(block, wanted)
    }

    /// The bytes of a block, checked against its checksum once since the file was mapped.
    fn verified(&self, block: usize) -> Result<Buffer, StorageError> {
        if let Some(damage) = &self.damage {
            return Err(self.damaged(block, damage.clone()));
        }
        let place = &self.footer.blocks[block];
        let bytes = self.map.slice_with_length(place.position as usize, place.bytes as usize);
        // A buffer of its own, or queries that hold rows of it would be counted as if they held the file.
        let bytes = Buffer::from(Bytes::from_owner(BlockBytes(bytes)));
        let is_verified = &self.blocks[block].is_verified;
        let is_new = !is_verified.load(Ordering::Acquire);
        // All of it, or what of it decoding takes; columns that are not decoded count when they are read.
        if is_new || self.compression != Compression::None {
            MAPS.read(bytes.as_ptr(), ByteSize::of(bytes.len()));
        }
        if is_new {
            if crc32c::crc32c(&bytes) != place.crc {
                return Err(self.corrupt(block, "a block's checksum does not match"));
            }
            is_verified.store(true, Ordering::Release);
        }
        Ok(bytes)
    }

    /// The wanted columns, decoded if they were not before.
    fn decode(&self, block: usize, bytes: &Buffer, wanted: &[usize]) -> Result<Vec<ArrayRef>, StorageError> {
        let kept = &self.blocks[block].columns;
        let mut missing: Vec<usize> = wanted.to_vec();
        missing.retain(|column| kept.get(*column).is_none_or(|kept| kept.get().is_none()));
        missing.sort_unstable();
        missing.dedup();
        let decoded = match missing.is_empty() {
            true => Vec::new(),
            false => {
                let decoder = FileDecoder::new(self.schema.clone(), MetadataVersion::V5);
                let decoder = decoder.with_projection(missing.clone());
                let batch = decoder.read_record_batch(&self.blocks[block].ipc, bytes).ok().flatten();
                batch.ok_or_else(|| self.corrupt(block, "a block does not decode"))?.columns().to_vec()
            }
        };
        for (column, array) in missing.iter().zip(&decoded) {
            if let Some(kept) = kept.get(*column) {
                // Another reader may have been first; then both have the same column.
                let _ = kept.set(array.clone());
            }
        }
        let column = |column: &usize| {
            let fresh = missing.binary_search(column).ok().and_then(|at| decoded.get(at).cloned());
            fresh.or_else(|| kept.get(*column).and_then(|kept| kept.get().cloned()))
        };
        let columns: Option<Vec<ArrayRef>> = wanted.iter().map(column).collect();
        columns.ok_or_else(|| self.corrupt(block, "a block does not have the segment's columns"))
    }

    fn corrupt(&self, block: usize, what: &'static str) -> StorageError {
        let position = self.footer.blocks[block].position;
        let error = StorageError::Corrupt { file: self.file.clone(), position, what };
        self.damaged(block, error.to_string().into())
    }

    fn damaged(&self, block: usize, reason: Arc<str>) -> StorageError {
        // A scan may ask for blocks of the file as it was planned, when it could be opened.
        let is_whole = self.damage.is_some();
        let offsets = if is_whole { self.offset_start()..self.offset_end() } else { self.block_offsets(block) };
        StorageError::DamagedRows { topic: self.footer.topic, partition: self.footer.partition, offsets, reason }
    }
}

impl fmt::Debug for OpenSegment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OpenSegment")
            .field("file", &self.file)
            .field("rows", &self.footer.rows)
            .field("blocks", &self.blocks.len())
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::super::fault_disk::FaultDisk;
    use super::super::segment::SegmentEnd;
    use super::super::segment_writer::{SegmentPlan, SegmentWriter, SegmentWritten, write_segment};
    use super::super::tail::TailBatch;
    use super::super::testing::{dense, numbers, rows, schema, tail_batch};
    use super::*;
    use arrow::array::RecordBatch;
    use arrow::array::{Array, AsArray};
    use arrow::ipc::reader::FileReader;
    use millstream_catalog::model::{PartitionId, Timestamp, TopicId};
    use std::io::Cursor;
    use std::sync::Arc;

    /// A segment as version 1 wrote it, of offsets 10 to 29; every later version must read it.
    const FIXTURE: &[u8] = include_bytes!("fixtures/segment-1.arrow");
    /// Bytes and CRC-32C of its end, as the manifest had them.
    const FIXTURE_END: (u64, u32) = (962, 2_741_531_880);
    const NAME: &str = "t4-p2-00000000000000000010.arrow";

    fn dir() -> &'static Path {
        Path::new("/segments")
    }

    fn write(disk: &FaultDisk, batches: &[Arc<TailBatch>], compression: Compression) -> SegmentWritten {
        disk.create_dir_all(dir()).unwrap();
        let (topic, partition, schema) = (TopicId::new(4), PartitionId::new(2), &schema());
        let plan = SegmentPlan { topic, partition, schema, compression, batches };
        write_segment(disk.create(&dir().join(NAME)).unwrap(), &plan).unwrap()
    }

    fn open(
        disk: &FaultDisk,
        offsets: Range<u64>,
        written: SegmentWritten,
        compression: Compression,
    ) -> Result<OpenSegment, StorageError> {
        let expected = SegmentExpected {
            topic: TopicId::new(4),
            partition: PartitionId::new(2),
            offset_start: Offset::new(offsets.start),
            offset_end: None,
            rows: RowCount::new(offsets.end - offsets.start),
            bytes: written.bytes,
            end: written.end,
            compression,
            schema: schema(),
            rowtime: None,
            entries: None,
        };
        OpenSegment::open(disk, dir(), NAME.to_owned(), &expected)
    }

    fn sealed(batches: Vec<TailBatch>, compression: Compression) -> (FaultDisk, OpenSegment, SegmentWritten) {
        let disk = FaultDisk::new();
        let batches: Vec<Arc<TailBatch>> = batches.into_iter().map(Arc::new).collect();
        let written = write(&disk, &batches, compression);
        let start = batches[0].stored.offset_start.value();
        let end = batches.last().unwrap().offset_end().value();
        let segment = open(&disk, start..end, written, compression).unwrap();
        (disk, segment, written)
    }

    /// Some open segment.
    pub(in super::super) fn open_one() -> OpenSegment {
        sealed(vec![tail_batch(10..13, 1)], Compression::None).1
    }

    fn read_all(segment: &OpenSegment) -> Result<Vec<StoredBatch>, StorageError> {
        (0..segment.blocks()).map(|block| segment.read(block, &Wanted::new(&schema(), None).unwrap())).collect()
    }

    #[test]
    fn rows_and_entries_come_back_with_every_compression() {
        for compression in [Compression::None, Compression::Lz4, Compression::Zstd] {
            let batches = vec![tail_batch(10..15, 3), tail_batch(15..16, 5), tail_batch(16..30, 6)];
            let (_disk, segment, _) = sealed(batches, compression);
            let read = read_all(&segment).unwrap();
            assert_eq!(dense(10, read.clone()), (10..30).collect::<Vec<_>>());
            let runs: Vec<(u64, u64)> = read[0].entries.iter().map(|(i, n)| (i.value(), n.value())).collect();
            assert_eq!(runs, [(3, 5), (5, 1), (6, 14)]);
            for (cut, end) in [(2, 10), (3, 15), (4, 15), (5, 16), (6, 30), (7, 30)] {
                assert_eq!(segment.offset_end_at(EntryIndex::new(cut)), Offset::new(end), "cut {cut}");
            }
            let range = RowtimeRange { first: Timestamp::from_micros(100), last: Timestamp::from_micros(290) };
            assert_eq!(segment.rowtime(), Some(range));
            assert_eq!(segment.columns()[0].max.as_deref(), Some("29"));
            assert_eq!(segment.columns()[1].nulls, 4);
        }
    }

    #[test]
    fn an_arrow_reader_opens_a_segment() {
        for compression in [Compression::None, Compression::Lz4, Compression::Zstd] {
            let (disk, _, _) = sealed(vec![tail_batch(10..30, 1)], compression);
            let bytes = disk.map(&dir().join(NAME)).unwrap().to_vec();
            let reader = FileReader::try_new(Cursor::new(bytes), None).unwrap();
            assert_eq!(reader.schema(), schema());
            let batches: Vec<RecordBatch> = reader.map(Result::unwrap).collect();
            assert_eq!(batches, [rows(10..30)]);
        }
    }

    fn fixture(bytes: &[u8]) -> OpenSegment {
        let disk = FaultDisk::new();
        disk.create_dir_all(dir()).unwrap();
        disk.create(&dir().join(NAME)).unwrap().write_at(bytes, 0).unwrap();
        let end = SegmentEnd { bytes: FIXTURE_END.0, crc: FIXTURE_END.1 };
        let written = SegmentWritten { bytes: bytes.len() as u64, end };
        open(&disk, 10..30, written, Compression::Zstd).unwrap()
    }

    #[test]
    fn the_first_version_opens() {
        let segment = fixture(FIXTURE);
        assert_eq!(dense(10, read_all(&segment).unwrap()), (10..30).collect::<Vec<_>>());
        assert_eq!(segment.block_columns(0)[0].max.as_deref(), Some("29"));
    }

    #[test]
    fn the_same_rows_in_other_batches_are_the_same_file() {
        let file = |cuts: &[u64]| {
            let batches = cuts.windows(2).map(|cut| tail_batch(cut[0]..cut[1], 1 + cut[0] / 100)).collect();
            let (disk, _, _) = sealed(batches, Compression::None);
            disk.map(&dir().join(NAME)).unwrap().to_vec()
        };
        let fine: Vec<u64> = (0..=70).map(|i| i * 10).collect();
        assert!(file(&fine) == file(&[0, 100, 200, 300, 400, 500, 600, 700]));
    }

    #[test]
    fn uncompressed_columns_point_into_the_map() {
        let (_disk, segment, _) = sealed(vec![tail_batch(10..1_000, 1)], Compression::None);
        let map = segment.map.as_slice().as_ptr_range();
        let batch = segment.read(0, &Wanted::new(&schema(), None).unwrap()).unwrap().batch;
        for column in batch.columns() {
            for buffer in column.to_data().buffers() {
                assert!(map.contains(&buffer.as_ptr()), "{}", column.data_type());
            }
        }
    }

    #[test]
    fn projections_decode_their_columns_only() {
        for compression in [Compression::None, Compression::Lz4] {
            let (_disk, segment, _) = sealed(vec![tail_batch(10..30, 1)], compression);
            let project =
                |columns: &[usize]| segment.read(0, &Wanted::new(&schema(), Some(columns)).unwrap()).unwrap().batch;
            for columns in [&[3, 0][..], &[1, 1], &[]] {
                assert_eq!(project(columns), rows(10..30).project(columns).unwrap());
            }
            let kept: Vec<bool> = segment.blocks[0].columns.iter().map(|kept| kept.get().is_some()).collect();
            match compression {
                Compression::None => assert_eq!(kept, [true, true, false, true]),
                _ => assert!(kept.is_empty()),
            }
            let _ = project(&[0]).column(0).as_primitive::<arrow::datatypes::Int64Type>();
        }
    }

    #[test]
    fn every_flipped_bit_is_found_and_named() {
        let (disk, _, written) = sealed(vec![tail_batch(10..13, 1)], Compression::None);
        for position in 0..written.bytes {
            let bit = (position % 8) as u8;
            disk.flip_bit(&dir().join(NAME), position, bit).unwrap();
            let found = open(&disk, 10..13, written, Compression::None).and_then(|segment| {
                segment.bloom(0)?;
                segment.bloom(1)?;
                read_all(&segment)
            });
            match found {
                Err(StorageError::Corrupt { file, .. }) => assert_eq!(file, NAME),
                Err(StorageError::DamagedRows { reason, .. }) => assert!(reason.contains(NAME), "{reason}"),
                other => panic!("byte {position}: {other:?}"),
            }
            disk.flip_bit(&dir().join(NAME), position, bit).unwrap();
        }
    }

    #[test]
    fn other_blocks_of_a_damaged_segment_stay_readable() {
        let rows_max = 65_536;
        let batches = (0..3).map(|i| tail_batch(i * 50_000..(i + 1) * 50_000, i + 1)).collect();
        let (disk, segment, written) = sealed(batches, Compression::Lz4);
        assert_eq!(segment.blocks(), 3);
        let damaged = segment.footer.blocks[1].position;
        disk.flip_bit(&dir().join(NAME), damaged + 1_000, 3).unwrap();
        let segment = open(&disk, 0..150_000, written, Compression::Lz4).unwrap();
        let read = |block| segment.read(block, &Wanted::new(&schema(), None).unwrap());
        assert_eq!(numbers(&read(0).unwrap().batch).len(), rows_max);
        let Err(StorageError::DamagedRows { offsets, reason, .. }) = read(1) else { panic!("not found") };
        assert_eq!(offsets, Offset::new(65_536)..Offset::new(131_072));
        assert!(reason.contains(&format!("at byte {damaged}:")), "{reason}");
        assert_eq!(read(2).unwrap().offset_start, Offset::new(131_072));
        assert_eq!(segment.rows_before(Offset::new(131_071)).value(), 131_071);
        assert_eq!(segment.rows_before(Offset::new(131_072)).value(), 131_072);
    }

    /// Rows of these numbers, which are their offsets, two to an entry.
    fn sparse(numbers: &[u64]) -> StoredBatch {
        let batches: Vec<RecordBatch> = numbers.iter().map(|n| rows(*n..*n + 1)).collect();
        let entries: Vec<EntryRuns> =
            numbers.iter().map(|n| EntryRuns::of(EntryIndex::new(n / 2 + 1), RowCount::new(1))).collect();
        StoredBatch {
            offset_start: Offset::new(numbers[0]),
            offsets: Some(numbers.iter().map(|n| *n as i64).collect()),
            batch: arrow::compute::concat_batches(&schema(), &batches).unwrap(),
            entries: EntryRuns::concat(&entries),
        }
    }

    #[test]
    fn a_segment_with_gaps_knows_the_offset_of_each_row() {
        let blocks = [vec![3, 4, 9, 10, 11], vec![20, 21, 22], vec![30, 41]];
        let all: Vec<u64> = blocks.concat();
        for compression in [Compression::None, Compression::Zstd] {
            let disk = FaultDisk::new();
            disk.create_dir_all(dir()).unwrap();
            let file = disk.create(&dir().join(NAME)).unwrap();
            let mut writer = SegmentWriter::create(file, &schema(), compression).unwrap();
            blocks.iter().for_each(|block| writer.write(&[sparse(block)]).unwrap());
            let place = (TopicId::new(4), PartitionId::new(2));
            let written = writer.finish(place, Offset::new(1)..Offset::new(50)).unwrap();
            let expected = SegmentExpected {
                topic: place.0,
                partition: place.1,
                offset_start: Offset::new(1),
                offset_end: Some(Offset::new(50)),
                rows: RowCount::of(all.len()),
                bytes: written.bytes,
                end: written.end,
                compression,
                schema: schema(),
                rowtime: None,
                entries: None,
            };
            let segment = OpenSegment::open(&disk, dir(), NAME.to_owned(), &expected).unwrap();
            assert_eq!((segment.offset_start().value(), segment.offset_end().value()), (1, 50));
            let mut read = Vec::new();
            for block in 0..segment.blocks() {
                let stored = segment.read(block, &Wanted::new(&schema(), None).unwrap()).unwrap();
                assert_eq!(numbers(&stored.batch), blocks[block]);
                assert_eq!(stored.offset_end().value(), blocks[block][blocks[block].len() - 1] + 1);
                read.extend(stored.row_offsets().values().iter().map(|offset| *offset as u64));
                let tail = stored.slice(1, stored.batch.num_rows() - 1);
                assert_eq!(tail.offset_start.value(), blocks[block][1]);
            }
            assert_eq!(read, all);
            for offset in 0..55 {
                let before = all.iter().filter(|row| **row < offset).count();
                assert_eq!(segment.rows_before(Offset::new(offset)).as_usize(), before, "before {offset}");
                let upto = all.iter().filter(|row| **row / 2 < offset).max().map_or(1, |last| last + 1);
                let upto = if offset > 20 { 50 } else { upto };
                assert_eq!(segment.offset_end_at(EntryIndex::new(offset)).value(), upto, "cut {offset}");
            }
            assert_eq!(segment.block_offsets(0), Offset::new(3)..Offset::new(20));
            assert_eq!(segment.block_offsets(2), Offset::new(30)..Offset::new(50));
        }
    }

    #[test]
    fn large_rows_make_blocks_of_fewer_rows() {
        let wide = "x".repeat(12 << 20);
        let columns: Vec<ArrayRef> = vec![
            rows(0..3).column(0).clone(),
            Arc::new(arrow::array::StringArray::from(vec![wide.as_str(); 3])),
            rows(0..3).column(2).clone(),
            rows(0..3).column(3).clone(),
        ];
        let batch = RecordBatch::try_new(schema(), columns).unwrap();
        let (_disk, segment, _) =
            sealed(vec![TailBatch::new(Offset::ZERO, batch, EntryIndex::new(1))], Compression::Zstd);
        let blocks: Vec<u64> = (0..segment.blocks()).map(|block| segment.footer.blocks[block].rows.value()).collect();
        assert_eq!(blocks, [1, 2]);
        assert_eq!(segment.columns()[1].max.as_deref(), Some(format!("{}y", "x".repeat(63)).as_str()));
    }

    #[test]
    fn keys_have_filters_and_other_columns_and_old_files_have_none() {
        let (_disk, segment, _) = sealed(vec![tail_batch(10..5_000, 1)], Compression::Lz4);
        let ids = segment.bloom(0).unwrap().unwrap();
        let may = |id: i64| {
            let array: ArrayRef = Arc::new(arrow::array::Int64Array::from(vec![id]));
            ids.may_contain(super::super::bloom::hashes(&array).unwrap()[0])
        };
        assert!((10..5_000).all(may));
        assert!((10_000..20_000).filter(|id| may(*id)).count() < 200);
        assert!(segment.bloom(1).unwrap().is_some());
        assert!(segment.bloom(3).unwrap().is_none());
        assert!(fixture(FIXTURE).bloom(0).unwrap().is_none());
    }

    #[test]
    fn blocks_have_their_own_statistics() {
        let batches = (0..3).map(|i| tail_batch(i * 50_000..(i + 1) * 50_000, i + 1)).collect();
        let (_disk, segment, _) = sealed(batches, Compression::None);
        let ends = |block| {
            let column = &segment.block_columns(block)[0];
            (column.min.clone().unwrap(), column.max.clone().unwrap())
        };
        let own = |low: u64, high: u64| (low.to_string(), high.to_string());
        assert_eq!((ends(0), ends(1), ends(2)), (own(0, 65_535), own(65_536, 131_071), own(131_072, 149_999)));
        let (_disk, segment, _) = sealed(vec![tail_batch(10..30, 1)], Compression::None);
        assert!(segment.footer.blocks[0].columns.is_empty());
        assert_eq!(segment.block_columns(0), segment.columns());
    }

    #[test]
    fn another_length_or_another_segment_is_refused() {
        let (disk, _, written) = sealed(vec![tail_batch(10..30, 1)], Compression::None);
        let longer = SegmentWritten { bytes: written.bytes + 1, ..written };
        for found in [
            open(&disk, 10..30, longer, Compression::None),
            open(&disk, 10..29, written, Compression::None),
            open(&disk, 11..31, written, Compression::None),
        ] {
            assert!(matches!(found, Err(StorageError::Corrupt { .. })), "{found:?}");
        }
        disk.remove(&dir().join(NAME)).unwrap();
        let found = open(&disk, 10..30, written, Compression::None);
        assert!(matches!(found, Err(StorageError::Missing { file }) if file == NAME));
    }
}
