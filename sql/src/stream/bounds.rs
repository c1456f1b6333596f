//! When the windows of grouped rows close.
//!
//! Leaves out what goes then, which operators keep. Called by those that group by a window. Pure.

use arrow::array::{ArrayRef, AsArray};
use arrow::datatypes::TimestampMicrosecondType;
use millstream_catalog::model::Span;

/// Which grouping expression tells when a window ends, and how long after that late events are taken.
#[derive(Debug, Clone, Copy)]
pub(crate) struct WindowBounds {
    /// Its position among the grouping expressions.
    pub(crate) key: usize,
    /// What is added to it to have the window's end.
    pub(crate) length: Span,
    /// The grace period.
    pub(crate) grace: Span,
    /// How far the time of the rows may be behind the query's.
    pub(crate) delay: Span,
    /// An event may be in several windows, its rows one after the other: it is late when none of them takes it.
    pub(crate) is_shared: bool,
}

impl WindowBounds {
    /// When the windows of keys go, by the query's time; of a key without one, never.
    pub(crate) fn closes(&self, keys: &[ArrayRef]) -> Option<Vec<i64>> {
        let ends = keys.get(self.key)?.as_primitive_opt::<TimestampMicrosecondType>()?;
        Some(ends.iter().map(|end| end.map_or(i64::MAX, |end| self.close(end))).collect())
    }

    /// For the fingerprint.
    pub(crate) fn text(&self) -> String {
        let delay = if self.delay == Span::ZERO { String::new() } else { format!(", delay {}", self.delay) };
        let edge = match self.length {
            Span::ZERO => format!("ending at key {}", self.key + 1),
            length => format!("of {length} from key {}", self.key + 1),
        };
        format!("window {edge}, grace {}{delay}", self.grace)
    }

    /// The query's time at which the window of a key goes.
    pub(crate) fn close(&self, key: i64) -> i64 {
        key.saturating_add(self.length.micros()).saturating_add(self.grace.micros()).saturating_add(self.delay.micros())
    }
}
