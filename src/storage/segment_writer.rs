//! Writing a segment: frozen batches become one Arrow IPC file with checksums and statistics.
//!
//! Owns block boundaries and the order of bytes. Leaves out names, syncing of directories and the manifest
//! ([`seal`](super::seal)). Called by a seal job, on a thread that may block. A crash leaves a part of a
//! `.tmp` file, which the next open removes.
//!
//! Blocks have 65,536 rows, but for the last one, whatever batches the rows came in; a block of more than
//! 32 MiB is halved until it is smaller. So the file is a function of its rows alone, and replicas that seal
//! at the same entry write the same file.

use super::batch::{RowtimeRange, StoredBatch, batch_bytes, concat};
use super::bloom::BloomBuilder;
use super::disk::DiskFile;
use super::entries::EntryRuns;
use super::error::StorageError;
use super::footer::{
    BLOOM_MARKER, BlockFooter, BloomFooter, ENTRIES_KEY, OFFSETS_KEY, SEGMENT_KEY, SEGMENT_VERSION,
    SEGMENT_VERSION_GAPS, SegmentFooter,
};
use super::segment::SegmentEnd;
use super::statistics::StatisticsBuilder;
use super::tail::TailBatch;
use arrow::array::RecordBatch;
use arrow::datatypes::SchemaRef;
use arrow::error::ArrowError;
use arrow::ipc::CompressionType;
use arrow::ipc::writer::{FileWriter, IpcWriteOptions};
use millstream_catalog::model::limit::BATCH_ROWS_MAX;
use millstream_catalog::model::{EntryIndex, Offset, PartitionId, RowCount, TopicId};
use millstream_catalog::relation::Compression;
use millstream_catalog::schema::key_of;
use std::io::{self, Write};
use std::ops::Range;
use std::sync::Arc;

/// Bytes of rows in a block, before compression; what a reader of a compressed block must hold.
pub(crate) const BLOCK_BYTES_MAX: u64 = 32 << 20;
/// Bytes written at once.
const WRITE_BYTES: usize = 1 << 20;

/// Which rows a segment holds and how.
#[derive(Debug)]
pub(crate) struct SegmentPlan<'a> {
    pub(crate) topic: TopicId,
    pub(crate) partition: PartitionId,
    pub(crate) schema: &'a SchemaRef,
    pub(crate) compression: Compression,
    /// Not empty, dense.
    pub(crate) batches: &'a [Arc<TailBatch>],
}

/// What the manifest must know to verify the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct SegmentWritten {
    /// Bytes of the file.
    pub(crate) bytes: u64,
    /// Everything after the last block.
    pub(crate) end: SegmentEnd,
}

/// Writes the whole file; the caller syncs it.
///
/// # Errors
/// [`StorageError::DiskFull`] and other errors of the disk; the file is then to be thrown away.
pub(crate) fn write_segment(file: Arc<dyn DiskFile>, plan: &SegmentPlan<'_>) -> Result<SegmentWritten, StorageError> {
    let mut writer = SegmentWriter::create(file, plan.schema, plan.compression)?;
    for rows in Blocks::new(plan.batches) {
        writer.write(&rows)?;
    }
    let offset = |batch: Option<&Arc<TailBatch>>, of: fn(&TailBatch) -> Offset| batch.map_or(Offset::ZERO, |b| of(b));
    let offset_start = offset(plan.batches.first(), |batch| batch.stored.offset_start);
    let offset_end = offset(plan.batches.last(), TailBatch::offset_end);
    writer.finish((plan.topic, plan.partition), offset_start..offset_end)
}

fn options(compression: Compression) -> Result<IpcWriteOptions, ArrowError> {
    IpcWriteOptions::default().try_with_compression(match compression {
        Compression::None => None,
        Compression::Lz4 => Some(CompressionType::LZ4_FRAME),
        Compression::Zstd => Some(CompressionType::ZSTD),
    })
}

fn refuse(error: ArrowError) -> StorageError {
    match error {
        ArrowError::IoError(_, source) => StorageError::io("write a segment", source),
        other => StorageError::Schema { what: format!("rows cannot be written as a segment: {other}") },
    }
}

/// A segment that is being written, block by block.
pub(crate) struct SegmentWriter {
    writer: FileWriter<SegmentFile>,
    schema: SchemaRef,
    header: (u64, u32),
    blocks: Vec<BlockFooter>,
    entries: Vec<u8>,
    offsets: Vec<u8>,
    statistics: Vec<StatisticsBuilder>,
    /// Of key columns.
    blooms: Vec<(usize, BloomBuilder)>,
}

fn no_statistics(schema: &SchemaRef) -> Vec<StatisticsBuilder> {
    schema.fields().iter().map(|_| StatisticsBuilder::default()).collect()
}

impl SegmentWriter {
    /// Begins a file.
    ///
    /// # Errors
    /// Of the disk.
    pub(crate) fn create(
        file: Arc<dyn DiskFile>,
        schema: &SchemaRef,
        compression: Compression,
    ) -> Result<Self, StorageError> {
        let options = options(compression).map_err(refuse)?;
        let out = SegmentFile { file, buffer: Vec::with_capacity(WRITE_BYTES), position: 0, crc: 0 };
        let mut writer = FileWriter::try_new_with_options(out, schema, options).map_err(refuse)?;
        let header = writer.get_mut().mark();
        let statistics = no_statistics(schema);
        let blooms = key_of(schema).into_iter().map(|column| (column, BloomBuilder::default())).collect();
        let (schema, blocks, entries, offsets) = (schema.clone(), Vec::new(), Vec::new(), Vec::new());
        Ok(Self { writer, schema, header, blocks, entries, offsets, statistics, blooms })
    }

    /// Bytes written so far.
    pub(crate) fn position(&mut self) -> u64 {
        self.writer.get_mut().position
    }

    /// Rows written so far.
    pub(crate) fn rows(&self) -> RowCount {
        self.blocks.iter().fold(RowCount::ZERO, |sum, block| sum.plus(block.rows))
    }

    /// Writes the rows of one block, in halves if they are too large.
    ///
    /// # Errors
    /// Of the disk; the file is then to be thrown away.
    pub(crate) fn write(&mut self, parts: &[StoredBatch]) -> Result<(), StorageError> {
        let rows: usize = parts.iter().map(|part| part.batch.num_rows()).sum();
        let bytes: u64 = parts.iter().map(|part| batch_bytes(&part.batch).value()).sum();
        if bytes > BLOCK_BYTES_MAX && rows > 1 {
            let (first, second) = halve(parts, rows / 2);
            self.write(&first)?;
            return self.write(&second);
        }
        let batches: Vec<RecordBatch> = parts.iter().map(|part| part.batch.clone()).collect();
        let batch = concat(&self.schema, &batches)?;
        let offsets = gaps(parts, rows);
        let runs = EntryRuns::concat(parts.iter().map(|part| &part.entries));
        let position = self.writer.get_mut().position;
        self.writer.write(&batch).map_err(refuse)?;
        let (end, crc) = self.writer.get_mut().mark();
        let mut statistics = no_statistics(&self.schema);
        for ((column, of_block), of_file) in batch.columns().iter().zip(&mut statistics).zip(&mut self.statistics) {
            of_block.add(column);
            of_file.merge(of_block);
        }
        self.blooms.retain_mut(|(column, bloom)| batch.columns().get(*column).is_some_and(|array| bloom.add(array)));
        let packed = runs.packed();
        self.blocks.push(BlockFooter {
            position,
            bytes: end - position,
            crc,
            rows: RowCount::of(rows),
            rowtime: RowtimeRange::of(&batch).map(Into::into),
            entry_first: runs.first().unwrap_or_default(),
            entry_last: runs.last().unwrap_or_default(),
            entries_bytes: packed.len() as u64,
            offset_start: parts.first().map(|part| part.offset_start),
            offsets_bytes: offsets.len() as u64,
            columns: statistics.into_iter().map(StatisticsBuilder::finish).collect(),
        });
        self.entries.extend_from_slice(&packed);
        self.offsets.extend_from_slice(&offsets);
        Ok(())
    }

    /// Ends the file, as the segment of a partition for all offsets of `range`. The caller syncs it.
    ///
    /// # Errors
    /// Of the disk; the file is then to be thrown away.
    pub(crate) fn finish(
        mut self,
        (topic, partition): (TopicId, PartitionId),
        range: Range<Offset>,
    ) -> Result<SegmentWritten, StorageError> {
        let rows = self.rows();
        let has_gaps = range.end.since(range.start) != rows;
        if !has_gaps {
            self.blocks.iter_mut().for_each(|block| block.offset_start = None);
        }
        let blooms = self.write_blooms().map_err(|error| StorageError::io("write a segment", error))?;
        if let [only] = self.blocks.as_mut_slice() {
            only.columns.clear();
        }
        let end_start = self.writer.get_mut().position;
        let footer = SegmentFooter {
            version: if has_gaps { SEGMENT_VERSION_GAPS } else { SEGMENT_VERSION },
            topic,
            partition,
            offset_start: range.start,
            offset_end: has_gaps.then_some(range.end),
            rows,
            entry_first: self.blocks.first().map_or(EntryIndex::default(), |block| block.entry_first),
            entry_last: self.blocks.last().map_or(EntryIndex::default(), |block| block.entry_last),
            rowtime: self
                .blocks
                .iter()
                .fold(None, |range, block| RowtimeRange::union(range, block.rowtime.map(Into::into)))
                .map(Into::into),
            header_bytes: self.header.0,
            header_crc: self.header.1,
            columns: self.statistics.into_iter().map(StatisticsBuilder::finish).collect(),
            blocks: self.blocks,
            blooms,
        };
        let json = serde_json::to_string(&footer)
            .map_err(|e| StorageError::Schema { what: format!("a segment's footer cannot be encoded: {e}") })?;
        let entries = String::from_utf8_lossy(&self.entries).into_owned();
        self.writer.write_metadata(ENTRIES_KEY, entries);
        if !self.offsets.is_empty() {
            self.writer.write_metadata(OFFSETS_KEY, String::from_utf8_lossy(&self.offsets).into_owned());
        }
        self.writer.write_metadata(SEGMENT_KEY, json);
        self.writer.finish().map_err(refuse)?;
        let (bytes, crc) = self.writer.get_mut().mark();
        Ok(SegmentWritten { bytes, end: SegmentEnd { bytes: bytes - end_start, crc } })
    }
}

/// The packed offsets of a block's rows; none when they follow each other.
fn gaps(parts: &[StoredBatch], rows: usize) -> Vec<u8> {
    let (Some(first), Some(last)) = (parts.first(), parts.last()) else { return Vec::new() };
    if last.offset_end().since(first.offset_start) == RowCount::of(rows) {
        return Vec::new();
    }
    let offsets = parts.iter().flat_map(|part| part.row_offsets().values().to_vec());
    EntryRuns::of_offsets(offsets.map(|offset| Offset::new(offset as u64))).packed()
}

impl SegmentWriter {
    fn write_blooms(&mut self) -> io::Result<Vec<BloomFooter>> {
        let file = self.writer.get_mut();
        let mut footers = Vec::new();
        for (column, bloom) in std::mem::take(&mut self.blooms) {
            let position = file.position;
            if footers.is_empty() {
                file.write_all(&BLOOM_MARKER)?;
            }
            file.write_all(&bloom.finish())?;
            let (end, crc) = file.mark();
            footers.push(BloomFooter { column, position, bytes: end - position, crc });
        }
        Ok(footers)
    }
}

/// The first `rows` rows of `parts`, and the others.
fn halve(parts: &[StoredBatch], rows: usize) -> (Vec<StoredBatch>, Vec<StoredBatch>) {
    let (mut first, mut second) = (Vec::new(), Vec::new());
    let mut left = rows;
    for part in parts {
        let size = part.batch.num_rows();
        let take = size.min(left);
        left -= take;
        if take > 0 {
            first.push(part.slice(0, take));
        }
        if take < size {
            second.push(part.slice(take, size - take));
        }
    }
    (first, second)
}

/// Batches cut and grouped at multiples of 65,536 rows, without a copy.
struct Blocks<'a> {
    batches: &'a [Arc<TailBatch>],
    /// Rows of the first batch that are in blocks already.
    taken: usize,
}

impl<'a> Blocks<'a> {
    fn new(batches: &'a [Arc<TailBatch>]) -> Self {
        Self { batches, taken: 0 }
    }
}

impl Iterator for Blocks<'_> {
    type Item = Vec<StoredBatch>;

    fn next(&mut self) -> Option<Vec<StoredBatch>> {
        let mut block = Vec::new();
        let mut room = BATCH_ROWS_MAX;
        while let (Some((first, rest)), true) = (self.batches.split_first(), room > 0) {
            let left = first.stored.batch.num_rows() - self.taken;
            let take = left.min(room);
            if take > 0 {
                let stored = if self.taken == 0 { first.read() } else { &first.stored };
                block.push(stored.slice(self.taken, take));
            }
            room -= take;
            self.taken += take;
            if take == left {
                self.batches = rest;
                self.taken = 0;
            }
        }
        (!block.is_empty()).then_some(block)
    }
}

/// Sequential writes with a checksum since the last mark.
struct SegmentFile {
    file: Arc<dyn DiskFile>,
    buffer: Vec<u8>,
    /// Position of the next byte, buffered ones counted.
    position: u64,
    crc: u32,
}

impl SegmentFile {
    /// The position, and the checksum of what was written since the last mark.
    fn mark(&mut self) -> (u64, u32) {
        (self.position, std::mem::take(&mut self.crc))
    }

    fn write_out(&mut self) -> io::Result<()> {
        let start = self.position - self.buffer.len() as u64;
        self.file.write_at(&self.buffer, start)?;
        self.buffer.clear();
        Ok(())
    }
}

impl io::Write for SegmentFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.buffer.len() + bytes.len() > WRITE_BYTES && !self.buffer.is_empty() {
            self.write_out()?;
        }
        self.crc = crc32c::crc32c_append(self.crc, bytes);
        if bytes.len() >= WRITE_BYTES {
            self.file.write_at(bytes, self.position)?;
        } else {
            self.buffer.extend_from_slice(bytes);
        }
        self.position += bytes.len() as u64;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        match self.buffer.is_empty() {
            true => Ok(()),
            false => self.write_out(),
        }
    }
}
