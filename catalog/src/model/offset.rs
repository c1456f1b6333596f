//! Offsets: positions of events in a partition. Ranges are half-open.

use super::size::RowCount;
use serde::{Deserialize, Serialize};
use std::fmt;

/// The position of an event in its partition, from zero on; dense until compaction leaves gaps.
///
/// A *position* (next offset to read) is also an `Offset`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Offset(u64);

impl Offset {
    /// The first offset of every partition.
    pub const ZERO: Self = Self(0);

    /// Wraps a raw offset.
    pub const fn new(value: u64) -> Self {
        Self(value)
    }
    /// The raw offset.
    pub const fn value(self) -> u64 {
        self.0
    }
    /// The offset `rows` further on. Saturates: a partition never reaches `u64::MAX` events.
    pub const fn plus(self, rows: RowCount) -> Self {
        Self(self.0.saturating_add(rows.value()))
    }
    /// The offset before this one, the last of a range that ends here; zero stays.
    pub const fn before(self) -> Self {
        Self(self.0.saturating_sub(1))
    }
    /// The offset after this one.
    pub const fn next(self) -> Self {
        Self(self.0.saturating_add(1))
    }
    /// Rows in `start..self`; zero when `start` is past `self`.
    ///
    /// `Offset::new(7).since(Offset::new(5))` is 2 rows: offsets 5 and 6.
    pub const fn since(self, start: Self) -> RowCount {
        RowCount::new(self.0.saturating_sub(start.0))
    }
}

impl fmt::Display for Offset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}
