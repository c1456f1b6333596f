//! What metadata knows of a range of a partition: its number of rows, its offsets and event times.
//!
//! Owns the sum over segments and batches. Reads rows only where the range ends within a batch. Leaves out what is
//! asked (SQL). A crash ends it.

use super::batch::RowtimeRange;
use super::error::StorageError;
use super::partition::PartitionView;
use super::scan::ScanRequest;
use millstream_catalog::model::{Offset, RowCount};
use std::ops::Range;

/// What is known of some rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Summary {
    /// Their number.
    pub rows: RowCount,
    /// The first and the last offset; `None` for no rows, and where compaction left gaps.
    pub offsets: Option<(Offset, Offset)>,
    /// Event times; `None` for no rows, and when they were not asked for.
    pub rowtime: Option<RowtimeRange>,
}

impl Summary {
    /// Both together; of what is not known of one, nothing is known.
    pub fn and(self, other: Self) -> Self {
        match (self.rows.value(), other.rows.value()) {
            (_, 0) => self,
            (0, _) => other,
            _ => Self {
                rows: self.rows.plus(other.rows),
                offsets: self.offsets.zip(other.offsets).map(|(a, b)| (a.0.min(b.0), a.1.max(b.1))),
                rowtime: self.rowtime.zip(other.rowtime).and_then(|(a, b)| RowtimeRange::union(Some(a), Some(b))),
            },
        }
    }
}

impl PartitionView {
    /// The rows with these offsets, as far as they are stored.
    ///
    /// # Errors
    /// When a segment that must be looked into cannot be opened.
    pub fn summary(&self, offsets: Range<Offset>) -> Result<Summary, StorageError> {
        let range = self.stored(offsets);
        let rows = self.rows_before(range.end)?.value() - self.rows_before(range.start)?.value();
        let rows = RowCount::new(rows);
        let is_dense = rows == range.end.since(range.start) && rows > RowCount::ZERO;
        let offsets = is_dense.then(|| (range.start, range.end.before()));
        Ok(Summary { rows, offsets, rowtime: None })
    }

    /// The same with event times.
    ///
    /// # Errors
    /// [`StorageError::DamagedRows`] when a batch that must be read is damaged; or as [`PartitionView::summary`].
    pub fn summary_with_times(&self, offsets: Range<Offset>) -> Result<Summary, StorageError> {
        let mut summary = self.summary(offsets.clone())?;
        let range = self.stored(offsets);
        let is_within = |part: &Range<Offset>| part.start >= range.start && part.end <= range.end;
        let mut partial: Vec<Range<Offset>> = Vec::new();
        let mut add = |part: Range<Offset>, times: Option<RowtimeRange>| match is_within(&part) {
            true => summary.rowtime = RowtimeRange::union(summary.rowtime, times),
            false if part.start < range.end && part.end > range.start => partial.push(part),
            false => {}
        };
        for segment in self.segments.iter() {
            let whole = segment.offset_start()..segment.offset_end();
            match is_within(&whole) {
                true => add(whole, segment.rowtime()),
                // No part of it is wanted.
                false if whole.end <= range.start || whole.start >= range.end => {}
                false => {
                    let open = segment.opened()?;
                    (0..open.blocks()).for_each(|block| add(open.block_offsets(block), open.block_rowtime(block)));
                }
            }
        }
        for batch in self.in_memory() {
            add(batch.stored.offset_start..batch.offset_end(), batch.rowtime);
        }
        for part in partial {
            let offsets = part.start.max(range.start)..part.end.min(range.end);
            for stored in self.scan(ScanRequest { offsets, ..ScanRequest::all() }) {
                summary.rowtime = RowtimeRange::union(summary.rowtime, RowtimeRange::of(&stored?.batch));
            }
        }
        Ok(summary)
    }

    fn stored(&self, offsets: Range<Offset>) -> Range<Offset> {
        let start = offsets.start.max(self.offset_start);
        start..offsets.end.min(self.offset_end).max(start)
    }
}

#[cfg(test)]
mod tests {
    use super::super::scan::tests::view;
    use super::*;
    use millstream_catalog::model::Timestamp;

    #[test]
    fn every_range_has_the_summary_of_its_rows() {
        let view = view();
        for start in 0..31 {
            for end in start..32 {
                let summary = view.summary_with_times(Offset::new(start)..Offset::new(end)).unwrap();
                let end = end.min(30);
                let at = |offset: u64| Timestamp::from_micros(offset as i64 * 10);
                let expected = (start < end).then(|| Summary {
                    rows: RowCount::new(end - start),
                    offsets: Some((Offset::new(start), Offset::new(end - 1))),
                    rowtime: Some(RowtimeRange { first: at(start), last: at(end - 1) }),
                });
                assert_eq!(summary, expected.unwrap_or_default(), "{start}..{end}");
            }
        }
    }
}
