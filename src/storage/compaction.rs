//! What compaction and merging did to a partition so far, and when tombstones may go.
//!
//! Owns the state that the manifest keeps per partition, and the arithmetic of its times. Leaves out deciding
//! ([`upkeep`](super::upkeep)) and the work itself ([`rewrite`](super::rewrite)). Times come from entries of the log, so
//! equal logs give equal states; a crash loses nothing that the manifest and the log do not give back.

use millstream_catalog::model::{Offset, Span, Timestamp};
use serde::{Deserialize, Serialize};

/// Times of compaction that are kept; beyond, neighbours become the later one, and tombstones stay longer.
const MARKS_MAX: usize = 16;

/// What upkeep did to one partition.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct PartitionUpkeep {
    /// The number of the last rewrite; it names the files that made.
    pub rewrites: u64,
    /// Below it, rows were compacted among themselves.
    pub compacted_upto: Offset,
    /// Tombstones left below it.
    pub tombstones: u64,
    /// Below it, tombstones were removed: a reader that stands there may have missed a deletion.
    pub tombstones_upto: Offset,
    /// Below it, the log said that tombstones go: so it is where their segments could not be written, too.
    #[serde(default)]
    pub tombstones_forgotten: Offset,
    /// Offsets, ascending, and when what is below each was first compacted.
    pub marks: Vec<(Offset, Timestamp)>,
}

impl PartitionUpkeep {
    /// Whether nothing was done yet.
    pub(crate) fn is_none(&self) -> bool {
        *self == Self::default()
    }

    /// The offset below which tombstones were compacted at least `delete_retention` ago.
    ///
    /// With marks `(10, 0 h), (20, 5 h)` and 24 hours: 0 until 24 h, 10 until 29 h, then 20. A clock that steps back
    /// only delays it.
    pub(crate) fn tombstones_due(&self, now: Timestamp, delete_retention: Span) -> Offset {
        let before = now.minus(delete_retention);
        let due = self.marks.iter().take_while(|(_, compacted_at)| *compacted_at <= before).last();
        due.map_or(self.tombstones_upto, |(upto, _)| self.tombstones_upto.max(*upto))
    }

    /// The state after rows below `upto` were compacted at `now`, which left `tombstones` and none below
    /// `tombstones_upto`.
    pub(crate) fn compacted(&self, upto: Offset, now: Timestamp, tombstones: u64, tombstones_upto: Offset) -> Self {
        let mut marks = self.marks.clone();
        marks.retain(|(mark, _)| *mark > tombstones_upto);
        if upto > self.compacted_upto {
            marks.push((upto, now));
        }
        if marks.len() > MARKS_MAX {
            let (_, first_at) = marks.remove(0);
            if let Some((_, next_at)) = marks.first_mut() {
                *next_at = (*next_at).max(first_at);
            }
        }
        Self {
            rewrites: self.rewrites,
            compacted_upto: self.compacted_upto.max(upto),
            tombstones,
            tombstones_upto: self.tombstones_upto.max(tombstones_upto),
            tombstones_forgotten: self.tombstones_forgotten,
            marks,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hour(hours: i64) -> Timestamp {
        Timestamp::from_micros(hours * 3_600_000_000)
    }

    #[test]
    fn tombstones_are_due_so_long_after_they_were_first_compacted() {
        let day = Span::from_secs(86_400);
        let at = |upto| Offset::new(upto);
        let once = PartitionUpkeep::default().compacted(at(10), hour(0), 3, at(0));
        let twice = once.compacted(at(20), hour(5), 4, at(0));
        let due = |hours| twice.tombstones_due(hour(hours), day).value();
        assert_eq!([due(-9), due(0), due(23), due(24), due(28), due(29)], [0, 0, 0, 10, 10, 20]);
        let later = twice.compacted(at(20), hour(25), 1, at(10));
        assert_eq!(later.marks, [(at(20), hour(5))]);
        assert_eq!((later.tombstones, later.tombstones_upto), (1, at(10)));
        assert_eq!(later.tombstones_due(hour(0), day), at(10), "what is gone stays gone");
    }

    #[test]
    fn many_compactions_keep_few_marks_and_no_tombstone_goes_early() {
        let mut state = PartitionUpkeep::default();
        for hours in 0..100 {
            state = state.compacted(Offset::new(hours + 1), hour(hours as i64), 1, Offset::ZERO);
            assert!(state.marks.len() <= MARKS_MAX);
        }
        for retention in 0..120 {
            let due = state.tombstones_due(hour(100), Span::from_secs(retention * 3_600)).value();
            // The row at offset n was compacted at hour n.
            assert!(due as i64 <= 101 - retention.min(101), "{due} after {retention} hours");
        }
    }

    #[test]
    fn a_clock_that_stepped_back_holds_later_tombstones() {
        let state = PartitionUpkeep::default().compacted(Offset::new(5), hour(50), 1, Offset::ZERO);
        let state = state.compacted(Offset::new(9), hour(2), 2, Offset::ZERO);
        assert_eq!(state.tombstones_due(hour(10), Span::from_secs(3_600)), Offset::ZERO);
    }
}
