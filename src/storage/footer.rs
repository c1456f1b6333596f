//! The footer of a segment: what Millstream knows of the file beyond Arrow's own format.
//!
//! Owns the layout below and its codec. Leaves out mapping and decoding ([`segment`](super::segment)) and
//! writing ([`segment_writer`](super::segment_writer)). A crash leaves a file without its end, which no
//! manifest lists.
//!
//! A segment is a complete Arrow IPC file; any Arrow tool opens it. What is ours stands in the custom metadata
//! of the IPC footer, under two keys:
//!
//! | key | value |
//! |---|---|
//! | `millstream.entries` | the entry runs of all blocks, packed one after another ([`entries`](super::entries)) |
//! | `millstream.offsets` | the offsets of rows of blocks with gaps, packed like entries of one row each; absent without gaps |
//! | `millstream.segment` | JSON of [`SegmentFooter`] |
//!
//! Which bytes are covered by which CRC-32C, so that every bit of the file is:
//!
//! | bytes | what | checksum stands in | verified |
//! |---|---|---|---|
//! | `0 .. header_bytes` | magic, schema message | footer: `header_crc` | at open |
//! | `position .. position + bytes` of each block | one IPC record batch message, metadata and body | footer: `crc` of the block | at its first read after the file was mapped |
//! | `position .. position + bytes` of each bloom filter | [`bloom`](super::bloom) filter of one key column | footer: `crc` of the filter | at its first use after the file was mapped |
//! | end of all these .. end of file | end marker, IPC footer, its length, magic | manifest: `end` | at open |
//!
//! A segment is opened when it is first read, so a version that earlier programs cannot read goes with a version of the
//! manifest that they refuse.
//!
//! Between the last block and the first filter stand eight bytes, an end marker (`ffffffff 00000000`), under the
//! first filter's checksum: a reader of the file as a stream stops there. Without key columns there are neither
//! marker nor filters.
//!
//! | version | what it has more |
//! |---|---|
//! | 1 | |
//! | 2 | bloom filters; statistics per block; bounds of long values |
//! | 3 | as 2; gaps between offsets |
//!
//! A block's checksum is not computed again while the file stays mapped: the pages come from the same page
//! cache, and a scan in memory must not pay for it twice.

use super::batch::RowtimeRange;
use super::error::StorageError;
use super::segment::SegmentExpected;
use super::statistics::ColumnStatistics;
use arrow::buffer::Buffer;
use arrow::datatypes::Schema;
use arrow::ipc::convert::fb_to_schema;
use arrow::ipc::reader::read_footer_length;
use arrow::ipc::{Block, Footer, root_as_footer};
use millstream_catalog::model::{EntryIndex, Offset, PartitionId, RowCount, Timestamp, TopicId};
use serde::{Deserialize, Serialize};
use std::ops::Range;

/// Key of the packed entry runs.
pub(crate) const ENTRIES_KEY: &str = "millstream.entries";
/// Key of the packed offsets.
pub(crate) const OFFSETS_KEY: &str = "millstream.offsets";
/// Key of the JSON.
pub(crate) const SEGMENT_KEY: &str = "millstream.segment";
/// Version of the layout without gaps between offsets.
pub(crate) const SEGMENT_VERSION: u32 = 2;
/// Version of the layout with gaps; later ones are refused.
pub(crate) const SEGMENT_VERSION_GAPS: u32 = 3;
/// Stands before the first filter: the end of a stream of IPC messages.
pub(crate) const BLOOM_MARKER: [u8; 8] = [0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0];
/// Footer length and magic at the very end of an IPC file.
const TRAILER_BYTES: usize = 10;

/// What a segment says about itself.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct SegmentFooter {
    pub(crate) version: u32,
    pub(crate) topic: TopicId,
    pub(crate) partition: PartitionId,
    pub(crate) offset_start: Offset,
    /// The end of a segment with gaps; else it is `offset_start` and `rows`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) offset_end: Option<Offset>,
    pub(crate) rows: RowCount,
    pub(crate) entry_first: EntryIndex,
    pub(crate) entry_last: EntryIndex,
    pub(crate) rowtime: Option<RowtimeBounds>,
    pub(crate) header_bytes: u64,
    pub(crate) header_crc: u32,
    /// One per column of the stored schema.
    pub(crate) columns: Vec<ColumnStatistics>,
    pub(crate) blocks: Vec<BlockFooter>,
    /// Filters of key columns, one after another behind the last block.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) blooms: Vec<BloomFooter>,
}

impl SegmentFooter {
    /// The position after blocks and filters.
    pub(crate) fn parts_end(&self) -> Option<u64> {
        let blocks_end = self.blocks.last().map(|block| block.position + block.bytes)?;
        Some(self.blooms.last().map_or(blocks_end, |bloom| bloom.position + bloom.bytes))
    }
}

/// The filter of one key column. The first one's range begins with the end marker.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct BloomFooter {
    /// Position in the stored schema.
    pub(crate) column: usize,
    pub(crate) position: u64,
    pub(crate) bytes: u64,
    pub(crate) crc: u32,
}

/// One block: an IPC record batch of at most 65,536 rows. Blocks follow each other without gaps.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct BlockFooter {
    pub(crate) position: u64,
    pub(crate) bytes: u64,
    pub(crate) crc: u32,
    pub(crate) rows: RowCount,
    pub(crate) rowtime: Option<RowtimeBounds>,
    pub(crate) entry_first: EntryIndex,
    pub(crate) entry_last: EntryIndex,
    /// Bytes of this block's entry runs in `millstream.entries`.
    pub(crate) entries_bytes: u64,
    /// Offset of the first row, in a segment with gaps.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) offset_start: Option<Offset>,
    /// Bytes of this block's offsets in `millstream.offsets`; none when they follow each other.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub(crate) offsets_bytes: u64,
    /// One per column of the stored schema; left out of a file with one block, where they are those of the file.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) columns: Vec<ColumnStatistics>,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde calls it so")]
fn is_zero(bytes: &u64) -> bool {
    *bytes == 0
}

impl SegmentFooter {
    /// Of a segment that cannot be read: what the manifest says of it, as one block of unknown content.
    pub(crate) fn unreadable(expected: &SegmentExpected) -> Self {
        let rowtime = expected.rowtime.map(Into::into);
        let (entry_first, entry_last) = expected.entries.unwrap_or_default();
        let block = BlockFooter {
            position: 0,
            bytes: 0,
            crc: 0,
            rows: expected.rows,
            rowtime,
            entry_first,
            entry_last,
            entries_bytes: 0,
            offset_start: None,
            offsets_bytes: 0,
            columns: Vec::new(),
        };
        Self {
            version: SEGMENT_VERSION,
            topic: expected.topic,
            partition: expected.partition,
            offset_start: expected.offset_start,
            offset_end: expected.offset_end,
            rows: expected.rows,
            entry_first,
            entry_last,
            rowtime,
            header_bytes: 0,
            header_crc: 0,
            columns: Vec::new(),
            blocks: vec![block],
            blooms: Vec::new(),
        }
    }
}

/// Inclusive event-time bounds in µs, as JSON `[first, last]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct RowtimeBounds(i64, i64);

impl From<RowtimeRange> for RowtimeBounds {
    fn from(range: RowtimeRange) -> Self {
        Self(range.first.micros(), range.last.micros())
    }
}

impl From<RowtimeBounds> for RowtimeRange {
    fn from(bounds: RowtimeBounds) -> Self {
        Self { first: Timestamp::from_micros(bounds.0), last: Timestamp::from_micros(bounds.1) }
    }
}

/// What the end of a segment file holds, decoded and checked against the file's length.
#[derive(Debug)]
pub(crate) struct ParsedEnd {
    pub(crate) schema: Schema,
    pub(crate) footer: SegmentFooter,
    /// Arrow's own description of the blocks, as many as the footer has.
    pub(crate) blocks: Vec<Block>,
    /// Where each block's entry runs are in the file.
    pub(crate) entries: Vec<Range<usize>>,
    /// Where each block's offsets are; empty for those without gaps.
    pub(crate) offsets: Vec<Range<usize>>,
}

/// Decodes the end of a mapped segment.
///
/// # Errors
/// [`StorageError::Corrupt`] naming `file`, or [`StorageError::Newer`].
pub(crate) fn parse_end(file: &str, map: &Buffer) -> Result<ParsedEnd, StorageError> {
    let corrupt = |position: usize, what: &'static str| StorageError::Corrupt {
        file: file.to_owned(),
        position: position as u64,
        what,
    };
    let bytes = map.as_slice();
    let (start, footer_bytes) = footer_range(bytes).ok_or_else(|| corrupt(bytes.len(), "no end of an Arrow file"))?;
    let ipc = root_as_footer(footer_bytes).map_err(|_| corrupt(start, "the footer does not decode"))?;
    let json = metadata(&ipc, SEGMENT_KEY).ok_or_else(|| corrupt(start, "the footer is not a segment's"))?;
    let version: Version = serde_json::from_str(json).map_err(|_| corrupt(start, "the footer has no version"))?;
    if version.version > SEGMENT_VERSION_GAPS {
        let (version, supported) = (version.version, SEGMENT_VERSION_GAPS);
        return Err(StorageError::Newer { file: file.to_owned(), version, supported });
    }
    let footer: SegmentFooter =
        serde_json::from_str(json).map_err(|_| corrupt(start, "the statistics do not decode"))?;
    let packed = metadata(&ipc, ENTRIES_KEY).ok_or_else(|| corrupt(start, "the entry runs are missing"))?;
    let lengths = footer.blocks.iter().map(|block| block.entries_bytes);
    let entries = ranges(bytes, packed, lengths).ok_or_else(|| corrupt(start, "the entry runs do not add up"))?;
    let packed = metadata(&ipc, OFFSETS_KEY).unwrap_or_default();
    let lengths = footer.blocks.iter().map(|block| block.offsets_bytes);
    let offsets = ranges(bytes, packed, lengths).ok_or_else(|| corrupt(start, "the offsets do not add up"))?;
    let blocks: Vec<Block> = ipc.recordBatches().into_iter().flatten().copied().collect();
    check_blocks(&footer, &blocks, start).map_err(|what| corrupt(start, what))?;
    let schema = ipc.schema().map(fb_to_schema).ok_or_else(|| corrupt(start, "the schema is missing"))?;
    Ok(ParsedEnd { schema, footer, blocks, entries, offsets })
}

#[derive(Deserialize)]
struct Version {
    version: u32,
}

/// Position and bytes of the IPC footer.
fn footer_range(bytes: &[u8]) -> Option<(usize, &[u8])> {
    let trailer_start = bytes.len().checked_sub(TRAILER_BYTES)?;
    let trailer: [u8; TRAILER_BYTES] = bytes.get(trailer_start..)?.try_into().ok()?;
    let start = trailer_start.checked_sub(read_footer_length(trailer).ok()?)?;
    Some((start, bytes.get(start..trailer_start)?))
}

fn metadata<'a>(footer: &Footer<'a>, key: &str) -> Option<&'a str> {
    footer.custom_metadata()?.iter().find(|pair| pair.key() == Some(key))?.value()
}

/// Where in `bytes` the parts of `packed`, of these lengths, are; `packed` is a part of `bytes`, or empty.
fn ranges(bytes: &[u8], packed: &str, lengths: impl Iterator<Item = u64>) -> Option<Vec<Range<usize>>> {
    let start = if packed.is_empty() { 0 } else { (packed.as_ptr() as usize).checked_sub(bytes.as_ptr() as usize)? };
    let mut position = start;
    let mut ranges = Vec::new();
    for length in lengths {
        let end = position.checked_add(usize::try_from(length).ok()?)?;
        ranges.push(position..end);
        position = end;
    }
    (position == start + packed.len() && position <= bytes.len()).then_some(ranges)
}

/// Whether both descriptions of the blocks agree and cover the file up to its end part.
fn check_blocks(footer: &SegmentFooter, blocks: &[Block], end_max: usize) -> Result<(), &'static str> {
    if footer.blocks.is_empty() || blocks.len() != footer.blocks.len() {
        return Err("the number of blocks differs");
    }
    let mut position = footer.header_bytes;
    let mut rows = RowCount::ZERO;
    for (ours, arrow) in footer.blocks.iter().zip(blocks) {
        let arrow_bytes = i64::from(arrow.metaDataLength()).checked_add(arrow.bodyLength());
        let is_same = u64::try_from(arrow.offset()) == Ok(ours.position)
            && arrow_bytes.and_then(|bytes| u64::try_from(bytes).ok()) == Some(ours.bytes)
            && arrow.metaDataLength() > 8;
        if !is_same || ours.position != position || ours.rows == RowCount::ZERO {
            return Err("a block's place differs");
        }
        position = position.saturating_add(ours.bytes);
        rows = rows.plus(ours.rows);
    }
    for bloom in &footer.blooms {
        if bloom.position != position {
            return Err("a filter's place differs");
        }
        position = position.saturating_add(bloom.bytes);
    }
    if position > end_max as u64 {
        return Err("blocks reach past the footer");
    }
    if rows != footer.rows {
        return Err("the number of rows differs");
    }
    Ok(())
}
