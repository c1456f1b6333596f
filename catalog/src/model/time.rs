//! Points in time and spans, in microseconds, as PostgreSQL and the stored batches have them.

use serde::{Deserialize, Serialize};
use std::fmt;

/// A point in time: microseconds since 1970-01-01T00:00:00Z. Leap seconds do not exist.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Timestamp(i64);

impl Timestamp {
    /// Before every event.
    pub const MIN: Self = Self(i64::MIN);

    /// Wraps microseconds since the epoch.
    pub const fn from_micros(micros: i64) -> Self {
        Self(micros)
    }
    /// Microseconds since the epoch.
    pub const fn micros(self) -> i64 {
        self.0
    }
    /// This moment less `span`; saturates.
    pub const fn minus(self, span: Span) -> Self {
        Self(self.0.saturating_sub(span.0))
    }
    /// This moment plus `span`; saturates.
    pub const fn plus(self, span: Span) -> Self {
        Self(self.0.saturating_add(span.0))
    }
}

impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A length of time in microseconds, zero or positive by use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Span(i64);

impl Span {
    /// No time.
    pub const ZERO: Self = Self(0);
    /// Wraps microseconds.
    pub const fn from_micros(micros: i64) -> Self {
        Self(micros)
    }
    /// Whole seconds; saturates.
    pub const fn from_secs(secs: i64) -> Self {
        Self(secs.saturating_mul(1_000_000))
    }
    /// Microseconds.
    pub const fn micros(self) -> i64 {
        self.0
    }
}

/// Units of a span, in microseconds, largest first.
const UNITS: [(&str, i64); 6] = [
    ("day", 86_400_000_000),
    ("hour", 3_600_000_000),
    ("minute", 60_000_000),
    ("second", 1_000_000),
    ("millisecond", 1_000),
    ("microsecond", 1),
];

impl fmt::Display for Span {
    /// In words: `1 hour 30 minutes`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0 == 0 {
            return f.write_str("0 seconds");
        }
        let mut rest = self.0;
        for (unit, micros) in UNITS {
            let count = rest / micros;
            rest %= micros;
            if count != 0 {
                let plural = if count == 1 { "" } else { "s" };
                let space = if rest == 0 { "" } else { " " };
                write!(f, "{count} {unit}{plural}{space}")?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_are_written_in_words() {
        let words = |micros: i64| Span::from_micros(micros).to_string();
        assert_eq!(words(0), "0 seconds");
        assert_eq!(words(3_600_000_000), "1 hour");
        assert_eq!(
            words(2 * 86_400_000_000 + 90 * 60_000_000 + 1_500_000),
            "2 days 1 hour 30 minutes 1 second 500 milliseconds"
        );
    }
}
