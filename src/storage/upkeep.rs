//! What upkeep a partition needs: pure decisions of retention, merging and compaction.
//!
//! Owns [`decide`], a function of what a view says of its segments, a policy and a time. Leaves out who asks, when, and
//! the execution: a log start moves by an entry of the log, a [`Rewrite`](super::rewrite::Rewrite) by another. Reads and
//! writes nothing; a crash does nothing to it.
//!
//! - **Retention**, as Kafka's: segments go from the oldest on, while the newest event time of the next one is older than
//!   `retention`, or while the rest still has `retention_bytes`. Event time counts, not arrival. Rows in memory go after a
//!   seal, which is asked for when everything is too old. A clock that steps back delays, and brings nothing back: a
//!   log start only moves forward.
//! - **Merging**: eight neighbours of one level become one segment, a level being a factor of eight in bytes above
//!   64 KiB; or as many as reach the target. So a row is written once per level, six times at most up to 256 MiB (64
//!   KiB · 8⁴), and beside full segments a partition has at most seven of a level and what lies between them. A merged
//!   segment spans at most an eighth of `retention` and has at most a quarter of `retention_bytes`: events stay no
//!   longer than nine eighths of their time.
//! - **Compaction**, when rows not yet compacted have half the bytes (Kafka's `min.cleanable.dirty.ratio`), so a row is
//!   copied twice per doubling; or when tombstones are due.

use super::compaction::PartitionUpkeep;
use super::partition::PartitionView;
use millstream_catalog::model::limit::{COMPACTION_ROWS_MAX, SEGMENT_BYTES_TARGET};
use millstream_catalog::model::{ByteSize, Offset, RowCount, Span, Timestamp};
use std::ops::Range;

/// Neighbours of one level that become one segment.
const FAN: usize = 8;
/// Bytes below which all segments are of one level.
const LEVEL_BYTES: u64 = 64 << 10;
/// Levels; the last one is for everything larger.
const LEVELS: u32 = 6;
/// Parts of a retention that one merged segment may span.
const RETENTION_PARTS: i64 = 8;
/// Parts of the retained bytes that one merged segment may have.
const RETENTION_BYTES_PARTS: u64 = 4;

/// What is asked of a topic's partitions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct UpkeepPolicy {
    /// Events older than this go.
    pub retention: Option<Span>,
    /// Bytes that are kept whatever their age.
    pub retention_bytes: Option<ByteSize>,
    /// How long tombstones stay once they were compacted; `None` when the topic is not compacted.
    pub compaction: Option<Span>,
}

/// What a decision needs to know of a segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Sealed {
    start: Offset,
    end: Offset,
    rows: RowCount,
    bytes: u64,
    /// Smallest and largest event time in µs.
    rowtime: Option<(i64, i64)>,
    is_damaged: bool,
}

/// What a decision needs to know of a partition.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct PartitionFacts {
    segments: Vec<Sealed>,
    memory_bytes: u64,
    /// The largest event time in memory; `None` when there is nothing, or it has no time.
    memory_rowtime_last: Option<i64>,
    upkeep: PartitionUpkeep,
}

impl PartitionFacts {
    /// What a view says.
    pub fn of(view: &PartitionView) -> Self {
        let sealed = view.segments().iter().map(|segment| Sealed {
            start: segment.offset_start(),
            end: segment.offset_end(),
            rows: segment.rows(),
            bytes: segment.bytes().value(),
            rowtime: segment.rowtime().map(|range| (range.first.micros(), range.last.micros())),
            is_damaged: segment.damage().is_some(),
        });
        let rowtimes = view.in_memory().filter_map(|batch| batch.rowtime);
        Self {
            segments: sealed.collect(),
            memory_bytes: view.unsealed_bytes().value(),
            memory_rowtime_last: rowtimes.map(|range| range.last.micros()).max(),
            upkeep: view.upkeep().clone(),
        }
    }

    /// Rewrites of the partition so far.
    pub fn rewrites(&self) -> u64 {
        self.upkeep.rewrites
    }
}

/// What to do with a partition.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct UpkeepActions {
    /// Where its log shall start, if it shall move.
    pub offset_start: Option<Offset>,
    /// Whether rows in memory are too old, and must be sealed to go.
    pub needs_seal: bool,
    /// Segments to replace.
    pub rewrite: Option<RewriteRange>,
}

/// Whole segments to replace by others with the same rows, or the last of each key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RewriteRange {
    /// The offsets of the segments.
    pub offsets: Range<Offset>,
    /// Bytes of their files.
    pub bytes: ByteSize,
    /// To compact: tombstones below this offset go.
    pub tombstones_upto: Option<Offset>,
}

/// What a partition needs at `now`. Nothing from `hold` on is removed or compacted: a continuous query would read it
/// again after a restart, or has not read it yet.
pub fn decide(facts: &PartitionFacts, policy: &UpkeepPolicy, hold: Offset, now: Timestamp) -> UpkeepActions {
    let expired = decide_expired(facts, policy, hold, now);
    let rest = facts.segments.get(expired..).unwrap_or_default();
    let before = policy.retention.map(|retention| now.minus(retention).micros());
    let is_old = |last: Option<i64>| last.zip(before).is_some_and(|(last, before)| last < before);
    UpkeepActions {
        offset_start: expired.checked_sub(1).and_then(|last| facts.segments.get(last)).map(|segment| segment.end),
        needs_seal: rest.is_empty() && is_old(facts.memory_rowtime_last),
        rewrite: decide_rewrite(facts, rest, policy, (hold, now)),
    }
}

/// How many of the oldest segments go.
fn decide_expired(facts: &PartitionFacts, policy: &UpkeepPolicy, hold: Offset, now: Timestamp) -> usize {
    let before = policy.retention.map(|retention| now.minus(retention).micros());
    let mut bytes = facts.segments.iter().fold(facts.memory_bytes, |sum, segment| sum.saturating_add(segment.bytes));
    let goes = |segment: &&Sealed| {
        let is_old = segment.rowtime.zip(before).is_some_and(|((_, last), before)| last < before);
        bytes = bytes.saturating_sub(segment.bytes);
        let is_over = policy.retention_bytes.is_some_and(|kept| bytes >= kept.value());
        segment.end <= hold && (is_old || is_over)
    };
    facts.segments.iter().take_while(goes).count()
}

fn decide_rewrite(
    facts: &PartitionFacts,
    segments: &[Sealed],
    policy: &UpkeepPolicy,
    (hold, now): (Offset, Timestamp),
) -> Option<RewriteRange> {
    let Some(delete_retention) = policy.compaction else {
        return decide_merge(segments, policy);
    };
    let compacted = segments.partition_point(|segment| segment.end <= facts.upkeep.compacted_upto);
    let due = facts.upkeep.tombstones_due(now, delete_retention);
    if let Some(count) = decide_compaction(&facts.upkeep, segments, (compacted, hold), due) {
        return range_of(&segments[..count], Some(due));
    }
    // What was compacted and what was not are merged each by itself.
    let (clean, dirty) = segments.split_at(compacted);
    decide_merge(clean, policy).or_else(|| decide_merge(dirty, policy))
}

/// How many segments to compact, from the first on, of which `compacted` were before.
fn decide_compaction(
    upkeep: &PartitionUpkeep,
    segments: &[Sealed],
    (compacted, hold): (usize, Offset),
    due: Offset,
) -> Option<usize> {
    let (clean, dirty) = segments.split_at(compacted);
    if segments.iter().any(|segment| segment.is_damaged) {
        return None;
    }
    let bytes = |segments: &[Sealed]| segments.iter().map(|segment| segment.bytes).sum::<u64>();
    let is_dirty = !dirty.is_empty() && bytes(dirty) >= bytes(clean);
    let has_due = upkeep.tombstones > 0 && due > upkeep.tombstones_upto;
    if !is_dirty && !has_due {
        return None;
    }
    // The last row of each key is held in memory: only so many rows at once.
    let mut rows = RowCount::ZERO;
    let fits = |segment: &&Sealed| {
        let is_first = rows == RowCount::ZERO;
        rows = rows.plus(segment.rows);
        segment.end <= hold && (is_first || rows <= COMPACTION_ROWS_MAX)
    };
    let more = if is_dirty { dirty.iter().take_while(fits).count() } else { 0 };
    (more > 0 || (has_due && compacted > 0)).then_some(compacted + more)
}

fn range_of(segments: &[Sealed], tombstones_upto: Option<Offset>) -> Option<RewriteRange> {
    let (first, last) = (segments.first()?, segments.last()?);
    let bytes = ByteSize::new(segments.iter().map(|segment| segment.bytes).sum());
    Some(RewriteRange { offsets: first.start..last.end, bytes, tombstones_upto })
}

fn level(bytes: u64) -> u32 {
    (bytes / LEVEL_BYTES).max(1).ilog(FAN as u64).min(LEVELS - 1)
}

/// Bytes of a segment that merging aims at under a policy.
fn target_of(policy: &UpkeepPolicy) -> u64 {
    let most = policy.retention_bytes.map_or(u64::MAX, |bytes| bytes.value() / RETENTION_BYTES_PARTS);
    SEGMENT_BYTES_TARGET.value().min(most)
}

/// The oldest neighbours that become one.
fn decide_merge(segments: &[Sealed], policy: &UpkeepPolicy) -> Option<RewriteRange> {
    let target = target_of(policy);
    let span_max = policy.retention.map(|retention| retention.micros() / RETENTION_PARTS);
    (0..LEVELS).find_map(|level| merge_of_level(segments, level, target, span_max))
}

/// The first run of eight segments of `level`, with smaller ones between them, or of fewer that reach a bound.
fn merge_of_level(segments: &[Sealed], level_max: u32, target: u64, span_max: Option<i64>) -> Option<RewriteRange> {
    let mut run = Run::default();
    for (at, segment) in segments.iter().enumerate() {
        let is_whole = segment.is_damaged || segment.bytes > target / 2 || level(segment.bytes) > level_max;
        if is_whole {
            run = Run { start: at + 1, ..Run::default() };
            continue;
        }
        let grown = run.with(segment, level_max);
        let is_too_long =
            span_max.zip(grown.rowtime).is_some_and(|(most, (first, last))| last.saturating_sub(first) > most);
        if grown.bytes > target || is_too_long {
            if run.count >= 2 && run.of_level > 0 {
                return range_of(&segments[run.start..at], None);
            }
            run = Run { start: at, ..Run::default() }.with(segment, level_max);
        } else {
            run = grown;
        }
        if run.of_level >= FAN {
            return range_of(&segments[run.start..=at], None);
        }
    }
    None
}

/// Neighbours that may become one segment.
#[derive(Debug, Clone, Copy, Default)]
struct Run {
    start: usize,
    count: usize,
    /// Those of the level that is looked at; others are smaller.
    of_level: usize,
    bytes: u64,
    rowtime: Option<(i64, i64)>,
}

impl Run {
    fn with(self, segment: &Sealed, level_max: u32) -> Self {
        let rowtime = match (self.rowtime, segment.rowtime) {
            (Some(a), Some(b)) => Some((a.0.min(b.0), a.1.max(b.1))),
            (a, b) => a.or(b),
        };
        Self {
            count: self.count + 1,
            of_level: self.of_level + usize::from(level(segment.bytes) == level_max),
            bytes: self.bytes + segment.bytes,
            rowtime,
            ..self
        }
    }
}

#[cfg(test)]
#[path = "upkeep_tests.rs"]
mod tests;
