//! Idempotent producers: their names, and the numbers of the rows they write.

use super::limit::PRODUCER_NAME_BYTES_MAX;
use super::size::RowCount;
use serde::{Deserialize, Serialize};
use std::fmt;

/// The name a client gives itself, to write each row once: 1 to 255 bytes.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ProducerId(String);

/// Why a text is no [`ProducerId`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a producer id has 1 to {PRODUCER_NAME_BYTES_MAX} bytes")]
pub struct ProducerIdError;

impl ProducerId {
    /// Checks `text`.
    ///
    /// # Errors
    /// [`ProducerIdError`] when it is empty or too long.
    pub fn new(text: impl Into<String>) -> Result<Self, ProducerIdError> {
        let text = text.into();
        if text.is_empty() || text.len() > PRODUCER_NAME_BYTES_MAX { Err(ProducerIdError) } else { Ok(Self(text)) }
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for ProducerId {
    type Error = ProducerIdError;
    fn try_from(text: String) -> Result<Self, ProducerIdError> {
        Self::new(text)
    }
}
impl From<ProducerId> for String {
    fn from(id: ProducerId) -> Self {
        id.0
    }
}
impl fmt::Display for ProducerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The number of a row in what one producer writes to one topic; it says nothing of offsets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Sequence(u64);

impl Sequence {
    /// The largest number a new producer may begin with: people count from 0 or from 1.
    pub const FIRST_LAST: Self = Self(1);

    /// Wraps a number.
    pub const fn new(value: u64) -> Self {
        Self(value)
    }
    /// The number.
    pub const fn value(self) -> u64 {
        self.0
    }
    /// The number `rows` further on; saturates.
    pub const fn plus(self, rows: RowCount) -> Self {
        Self(self.0.saturating_add(rows.value()))
    }
    /// Numbers in `start..self`; zero when `start` is past `self`.
    pub const fn since(self, start: Self) -> RowCount {
        RowCount::new(self.0.saturating_sub(start.0))
    }
}

impl fmt::Display for Sequence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}
