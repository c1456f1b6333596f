//! Checking a segment: that it opens, that every block is as written, and that its statistics say what its rows are.
//!
//! Leaves out where it stands among others (`shards`).

use super::check::{Broken, Check, Patch};
use super::heal::{BYTES_MAX, flipped_bit};
use super::report::Finding;
use super::statistics::ColumnCheck;
use crate::storage::fit::Wanted;
use crate::storage::footer::parse_end;
use crate::storage::open_segment::OpenSegment;
use crate::storage::segment::SegmentExpected;
use crate::storage::{StorageError, StoredBatch};
use arrow::array::AsArray;
use arrow::buffer::Buffer;
use arrow::datatypes::TimestampMicrosecondType;
use bytes::Bytes;
use millstream_catalog::model::{EntryIndex, Offset, PartitionId};
use millstream_catalog::schema::ROWTIME;
use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;

/// Whose segment it is.
#[derive(Debug)]
pub(crate) struct Place<'a> {
    pub(crate) shard: u32,
    pub(crate) topic: &'a str,
    pub(crate) partition: PartitionId,
    /// The last entry the manifest covers.
    pub(crate) published: EntryIndex,
    /// The last entry of the segment before.
    pub(crate) entry: EntryIndex,
    /// What a repair does about what cannot be made good.
    pub(crate) given_up: &'a str,
}

impl Place<'_> {
    fn lost(&self, finding: Finding, offsets: Range<Offset>) -> Finding {
        Finding {
            shard: Some(self.shard),
            topic: Some(self.topic.to_owned()),
            partition: Some(self.partition.value()),
            offsets: Some((offsets.start.value(), offsets.end.value())),
            ..finding
        }
    }
}

/// Checks a segment that the manifest lists; gives what of it cannot be read and cannot be made good.
///
/// # Errors
/// [`StorageError::Newer`].
pub(crate) fn check(
    check: &mut Check,
    file: &str,
    expected: &SegmentExpected,
    place: &mut Place<'_>,
) -> Result<Option<Broken>, StorageError> {
    check.report.segments += 1;
    let findings = check.report.findings.len();
    let end = expected.offset_end.unwrap_or(expected.offset_start.plus(expected.rows));
    let offsets = expected.offset_start..end;
    let Some(bytes) = check.read(file) else {
        let reason = check.report.findings.pop().map_or_else(String::new, |finding| finding.what);
        check.report.findings.truncate(findings);
        let finding = Finding::damage(file, reason.as_str()).repaired_by(place.given_up);
        check.report.findings.push(place.lost(finding, offsets));
        return Ok(Some(Broken::whole(reason)));
    };
    let name = Path::new(file).file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let error = match OpenSegment::of_map(Buffer::from(bytes.clone()), name.clone(), expected) {
        Ok(segment) => return Ok(check_blocks(check, file, &bytes, &segment, place)),
        Err(error) if error.is_damage() => error,
        Err(error) => return Err(error),
    };
    let finding = Finding::damage(file, error.to_string());
    if let Some((bit, segment)) = heal(&bytes, &name, expected) {
        let position = bit as u64 / 8;
        let finding = finding.at(position..position + 1).repaired_by(PUT_BACK);
        check.report.findings.push(place.lost(finding, offsets));
        patch_bit(check, file, &bytes, bit);
        check_blocks(check, file, &bytes, &segment, place);
        return Ok(None);
    }
    check.report.findings.push(place.lost(finding.repaired_by(place.given_up), offsets));
    Ok(Some(Broken::whole(error.to_string())))
}

const PUT_BACK: &str = "the flipped bit is put back; nothing is lost";
/// What a repair does about a segment.
pub(crate) const GIVEN_UP: &str =
    "the file is moved to \"damaged\"; these offsets keep their place, and reading them fails";

fn patch_bit(check: &mut Check, file: &str, bytes: &Bytes, bit: usize) {
    let byte = bytes[bit / 8] ^ (1 << (bit % 8));
    check.patches.push(Patch { path: check.dir.join(file), position: bit as u64 / 8, bytes: vec![byte] });
}

/// The flipped bit of a segment's header or footer, and the segment without: every block of it must then be readable,
/// which is the proof.
fn heal(bytes: &Bytes, name: &str, expected: &SegmentExpected) -> Option<(usize, OpenSegment)> {
    let end_start = usize::try_from(expected.bytes.checked_sub(expected.end.bytes)?).ok()?;
    if bytes.len() as u64 != expected.bytes {
        return None;
    }
    let bit = match flipped_bit(&bytes[end_start..], expected.end.crc) {
        Some(bit) => end_start * 8 + bit,
        None => {
            let footer = parse_end(name, &Buffer::from(bytes.clone())).ok()?.footer;
            flipped_bit(bytes.get(..usize::try_from(footer.header_bytes).ok()?)?, footer.header_crc)?
        }
    };
    let mut healed = bytes.to_vec();
    healed[bit / 8] ^= 1 << (bit % 8);
    let segment = OpenSegment::of_map(Buffer::from(Bytes::from(healed)), name.to_owned(), expected).ok()?;
    let wanted = Wanted::new(segment.schema(), None).ok()?;
    let is_proved = (0..segment.blocks()).all(|block| segment.read(block, &wanted).is_ok());
    is_proved.then_some((bit, segment))
}

fn check_blocks(
    check: &mut Check,
    file: &str,
    bytes: &Bytes,
    segment: &OpenSegment,
    place: &mut Place<'_>,
) -> Option<Broken> {
    let mut lost = BTreeMap::new();
    let mut content = Content::new(segment, place);
    for block in 0..segment.blocks() {
        let wanted = Wanted::new(segment.schema(), None);
        match wanted.and_then(|wanted| segment.read(block, &wanted)) {
            Ok(stored) => content.add(block, &stored),
            Err(error) => {
                content.is_whole = false;
                let reason = match error {
                    StorageError::DamagedRows { reason, .. } => reason.to_string(),
                    error => error.to_string(),
                };
                let range = segment.block_bytes(block);
                let place_of = range.start as usize..range.end as usize;
                let block_bytes = bytes.get(place_of).filter(|bytes| bytes.len() <= BYTES_MAX).unwrap_or_default();
                let finding = Finding::damage(file, reason.as_str()).at(range.clone());
                let finding = match flipped_bit(block_bytes, segment.block_crc(block)) {
                    Some(bit) => {
                        patch_bit(check, file, bytes, range.start as usize * 8 + bit);
                        finding.repaired_by(PUT_BACK)
                    }
                    None => {
                        lost.insert(block, reason.clone());
                        finding.repaired_by(place.given_up)
                    }
                };
                check.report.findings.push(place.lost(finding, segment.block_offsets(block)));
            }
        }
    }
    for column in segment.filtered() {
        if let Err(error) = segment.bloom(column) {
            let what = format!("{error}; nothing is lost, reads do without it");
            check.report.findings.push(Finding::damage(file, what).of_shard(place.shard));
        }
    }
    for wrong in content.finish() {
        check.report.findings.push(Finding::damage(file, wrong).of_shard(place.shard));
    }
    check.report.rows += segment.rows().value();
    place.entry = segment.entry_last();
    let reason = lost.values().next()?.clone();
    Some(Broken { blocks: lost, reason })
}

/// What the rows say, against what the footer says of them.
struct Content<'a> {
    segment: &'a OpenSegment,
    published: EntryIndex,
    /// The last entry seen.
    entry: EntryIndex,
    columns: Vec<ColumnCheck>,
    is_whole: bool,
    wrong: Vec<String>,
}

impl<'a> Content<'a> {
    fn new(segment: &'a OpenSegment, place: &Place<'_>) -> Self {
        let columns = segment.schema().fields().iter().map(|_| ColumnCheck::default()).collect();
        let (published, entry) = (place.published, place.entry);
        Self { segment, published, entry, columns, is_whole: true, wrong: Vec::new() }
    }

    fn add(&mut self, block: usize, stored: &StoredBatch) {
        let mut say = |what: &str| self.wrong.push(format!("block {block}: {what}"));
        let (said, rows) = (self.segment.block_offsets(block), stored.row_offsets());
        let is_within = |row: &i64| u64::try_from(*row).is_ok_and(|row| said.contains(&Offset::new(row)));
        if rows.len() != stored.batch.num_rows() || !rows.values().is_sorted_by(|a, b| a < b) {
            say("its offsets do not ascend");
        }
        if !rows.values().iter().all(is_within) || stored.offset_start != said.start {
            say("it has other offsets than the footer says");
        }
        let entries: Vec<_> = stored.entries.iter().collect();
        if entries.iter().map(|(_, rows)| rows.as_usize()).sum::<usize>() != stored.batch.num_rows() {
            say("the entries' rows do not add up");
        }
        if !entries.is_sorted_by(|a, b| a.0 < b.0) || entries.first().is_some_and(|first| first.0 < self.entry) {
            say("its entries do not ascend");
        }
        self.entry = entries.last().map_or(self.entry, |last| last.0);
        if self.entry > self.published {
            say("it has rows of entries that the manifest does not cover");
        }
        let times = stored.batch.column_by_name(ROWTIME).and_then(|column| {
            let times = column.as_primitive_opt::<TimestampMicrosecondType>()?;
            let range = |a: (i64, i64), b: (i64, i64)| (a.0.min(b.0), a.1.max(b.1));
            times.iter().flatten().map(|time| (time, time)).reduce(range)
        });
        let said = self.segment.block_rowtime(block).map(|range| (range.first.micros(), range.last.micros()));
        if times != said {
            say("its event times are not those of the footer");
        }
        for (column, statistics) in self.columns.iter_mut().enumerate() {
            statistics.add(stored.batch.column(column), self.segment.columns().get(column));
        }
    }

    fn finish(self) -> Vec<String> {
        let mut wrong = self.wrong;
        if self.is_whole {
            for (column, found) in self.columns.iter().enumerate() {
                let Some(what) = found.disagreement(self.segment.columns().get(column)) else { continue };
                wrong.push(format!("column \"{}\": {what}", self.segment.schema().field(column).name()));
            }
            if self.entry != self.segment.entry_last() {
                wrong.push("its last entry is not the one the footer names".to_owned());
            }
        }
        wrong
    }
}
