//! A sealed segment: one mapped Arrow IPC file, read block by block.
//!
//! Owns verification and decoding. Leaves out the layout of the file ([`footer`](super::footer)) and its
//! writing. Shared by every view that has it; the file may be unlinked while it is mapped. A crash does
//! nothing to it: it was synced before a manifest listed it.
//!
//! Uncompressed blocks are not copied: columns point into the map. Decoding checks offsets and UTF-8, so
//! decoded columns are kept (pointers only), and only asked-for ones are decoded.

use super::batch::{RowtimeRange, StoredBatch};
use super::disk::Disk;
use super::entries::EntryRuns;
use super::error::StorageError;
use super::footer::{SegmentFooter, parse_end};
use super::statistics::ColumnStatistics;
use arrow::array::{ArrayRef, RecordBatch, RecordBatchOptions};
use arrow::buffer::Buffer;
use arrow::datatypes::SchemaRef;
use arrow::ipc::reader::FileDecoder;
use arrow::ipc::{Block, MetadataVersion};
use millstream_catalog::model::{ByteSize, EntryIndex, Offset, PartitionId, RowCount, TopicId};
use millstream_catalog::relation::Compression;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::ops::Range;
use std::path::Path;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

/// The part of the file after the last block.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct SegmentEnd {
    pub(crate) bytes: u64,
    pub(crate) crc: u32,
}

/// What must be known of a segment before it is opened; the manifest has it.
#[derive(Debug)]
pub(crate) struct SegmentExpected<'a> {
    pub(crate) topic: TopicId,
    pub(crate) partition: PartitionId,
    pub(crate) offset_start: Offset,
    pub(crate) rows: RowCount,
    pub(crate) bytes: u64,
    pub(crate) end: SegmentEnd,
    pub(crate) compression: Compression,
    pub(crate) schema: &'a SchemaRef,
}

/// A sealed, mapped segment.
pub struct Segment {
    file: String,
    map: Buffer,
    schema: SchemaRef,
    compression: Compression,
    footer: SegmentFooter,
    end: SegmentEnd,
    blocks: Vec<SegmentBlock>,
}

struct SegmentBlock {
    ipc: Block,
    offset_start: Offset,
    /// Where its packed entry runs are in the map.
    entries: Range<usize>,
    is_verified: AtomicBool,
    /// Columns that point into the map; none are kept of compressed blocks.
    columns: Box<[OnceLock<ArrayRef>]>,
}

impl Segment {
    /// The file name of a segment.
    pub(crate) fn file_name(topic: TopicId, partition: PartitionId, offset_start: Offset) -> String {
        format!("t{topic}-p{partition}-{offset_start:020}.arrow", offset_start = offset_start.value())
    }

    /// Maps `dir/file` and verifies everything but the blocks.
    ///
    /// # Errors
    /// [`StorageError::Missing`], [`StorageError::Corrupt`], [`StorageError::Newer`], or the disk's error.
    pub(crate) fn open(
        disk: &dyn Disk,
        dir: &Path,
        file: String,
        expected: &SegmentExpected<'_>,
    ) -> Result<Self, StorageError> {
        let map = disk.map(&dir.join(&file)).map_err(|error| match error.kind() {
            std::io::ErrorKind::NotFound => StorageError::Missing { file: file.clone() },
            _ => StorageError::io("map a segment", error),
        })?;
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
            && footer.rows == expected.rows
            && footer.blocks.last().is_some_and(|block| block.position + block.bytes == end_start)
            && parsed.schema.fields() == expected.schema.fields();
        if !is_expected {
            return Err(corrupt(end_start, "the footer is another segment's"));
        }
        let keeps_columns = expected.compression == Compression::None;
        let columns = if keeps_columns { expected.schema.fields().len() } else { 0 };
        let mut offset_start = footer.offset_start;
        let mut blocks = Vec::with_capacity(footer.blocks.len());
        for ((block, ipc), entries) in footer.blocks.iter().zip(parsed.blocks).zip(parsed.entries) {
            let columns = (0..columns).map(|_| OnceLock::new()).collect();
            blocks.push(SegmentBlock { ipc, offset_start, entries, is_verified: AtomicBool::new(false), columns });
            offset_start = offset_start.plus(block.rows);
        }
        let schema = expected.schema.clone();
        Ok(Self { file, map, schema, compression: expected.compression, footer, end: expected.end, blocks })
    }

    /// The file's name in the shard's segment directory.
    pub fn file(&self) -> &str {
        &self.file
    }
    /// The topic.
    pub fn topic(&self) -> TopicId {
        self.footer.topic
    }
    /// The partition.
    pub fn partition(&self) -> PartitionId {
        self.footer.partition
    }
    /// Offset of the first row.
    pub fn offset_start(&self) -> Offset {
        self.footer.offset_start
    }
    /// The offset after the last row.
    pub fn offset_end(&self) -> Offset {
        self.footer.offset_start.plus(self.footer.rows)
    }
    /// Rows in the segment, at least one.
    pub fn rows(&self) -> RowCount {
        self.footer.rows
    }
    /// Bytes of the file.
    pub fn bytes(&self) -> ByteSize {
        ByteSize::of(self.map.len())
    }
    /// How buffers are compressed.
    pub fn compression(&self) -> Compression {
        self.compression
    }
    /// Smallest and largest event time, if the rows have one.
    pub fn rowtime(&self) -> Option<RowtimeRange> {
        self.footer.rowtime.map(Into::into)
    }
    /// Statistics per column of the stored schema.
    pub fn columns(&self) -> &[ColumnStatistics] {
        &self.footer.columns
    }
    /// Number of blocks.
    pub fn blocks(&self) -> usize {
        self.blocks.len()
    }
    /// The first entry with rows here.
    pub fn entry_first(&self) -> EntryIndex {
        self.footer.entry_first
    }
    /// The last entry with rows here.
    pub fn entry_last(&self) -> EntryIndex {
        self.footer.entry_last
    }

    pub(crate) fn end(&self) -> SegmentEnd {
        self.end
    }

    /// Offsets of a block's rows.
    pub(crate) fn block_offsets(&self, block: usize) -> Range<Offset> {
        let start = self.blocks[block].offset_start;
        start..start.plus(self.footer.blocks[block].rows)
    }

    pub(crate) fn block_rowtime(&self, block: usize) -> Option<RowtimeRange> {
        self.footer.blocks[block].rowtime.map(Into::into)
    }

    /// The block with the row at `offset`, which must be in the segment.
    pub(crate) fn block_at(&self, offset: Offset) -> usize {
        self.blocks.partition_point(|block| block.offset_start <= offset).saturating_sub(1)
    }

    /// The offset after the last row of entries up to and including `cut`.
    pub(crate) fn offset_end_at(&self, cut: EntryIndex) -> Offset {
        if self.entry_last() <= cut {
            return self.offset_end();
        }
        let after = self.footer.blocks.partition_point(|block| block.entry_first <= cut);
        match after.checked_sub(1) {
            Some(block) => self.blocks[block].offset_start.plus(self.entries(block).rows_upto(cut)),
            None => self.offset_start(),
        }
    }

    fn entries(&self, block: usize) -> EntryRuns {
        let range = &self.blocks[block].entries;
        EntryRuns::from_packed(self.map.slice_with_length(range.start, range.len()), self.footer.blocks[block].rows)
    }

    /// The rows of a block; `schema` is that of the projected columns.
    ///
    /// # Errors
    /// [`StorageError::Corrupt`] when the block is not what was written; other blocks stay readable.
    pub(crate) fn read(
        &self,
        block: usize,
        projection: Option<&[usize]>,
        schema: &SchemaRef,
    ) -> Result<StoredBatch, StorageError> {
        let bytes = self.verified(block)?;
        let all: Vec<usize>;
        let wanted = match projection {
            Some(projection) => projection,
            None => {
                all = (0..self.schema.fields().len()).collect();
                &all
            }
        };
        let columns = self.decode(block, &bytes, wanted)?;
        let rows = self.footer.blocks[block].rows.as_usize();
        let options = RecordBatchOptions::new().with_row_count(Some(rows));
        let batch = RecordBatch::try_new_with_options(schema.clone(), columns, &options)
            .map_err(|_| self.corrupt(block, "a block does not have the segment's columns"))?;
        Ok(StoredBatch { offset_start: self.blocks[block].offset_start, batch, entries: self.entries(block) })
    }

    /// The bytes of a block, checked against its checksum once since the file was mapped.
    fn verified(&self, block: usize) -> Result<Buffer, StorageError> {
        let place = &self.footer.blocks[block];
        let bytes = self.map.slice_with_length(place.position as usize, place.bytes as usize);
        let is_verified = &self.blocks[block].is_verified;
        if !is_verified.load(Ordering::Acquire) {
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
        StorageError::Corrupt { file: self.file.clone(), position: self.footer.blocks[block].position, what }
    }
}

impl fmt::Debug for Segment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Segment")
            .field("file", &self.file)
            .field("rows", &self.footer.rows)
            .field("blocks", &self.blocks.len())
            .finish_non_exhaustive()
    }
}
