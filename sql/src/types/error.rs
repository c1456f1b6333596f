//! Why a value was refused: SQLSTATE, message, detail, hint, without a place in a statement.
//!
//! Leaves out rows, columns and positions, which callers add (`bind::insert`, `copy`). Every parser of
//! this folder returns it. A crash does nothing to it.

use millstream_catalog::model::SqlState;
use std::borrow::Cow;
use std::fmt;

/// Bytes of a refused value that are repeated in its message; longer values are cut.
const QUOTED_BYTES_MAX: usize = 256;

/// A value that does not fit its type.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ValueError {
    /// The SQLSTATE.
    pub sqlstate: SqlState,
    /// PostgreSQL's message.
    pub message: String,
    /// Further facts.
    pub detail: Option<String>,
    /// What to do next.
    pub hint: Option<&'static str>,
    /// The byte of the value where it went wrong, where that is known.
    pub at: Option<usize>,
}

impl ValueError {
    /// An error with a message only.
    pub fn new(sqlstate: SqlState, message: impl Into<String>) -> Self {
        Self { sqlstate, message: message.into(), detail: None, hint: None, at: None }
    }

    /// The same error with a detail.
    #[must_use]
    pub fn detail(mut self, detail: impl Into<String>) -> Self {
        self.detail = Some(detail.into());
        self
    }

    /// The same error with a hint.
    #[must_use]
    pub fn hint(mut self, hint: &'static str) -> Self {
        self.hint = Some(hint);
        self
    }

    /// `invalid input syntax for type T: "text"` (22P02).
    pub fn syntax(type_name: &str, text: &[u8]) -> Self {
        Self::new(
            SqlState::InvalidTextRepresentation,
            format!("invalid input syntax for type {type_name}: \"{}\"", quoted(text)),
        )
    }

    /// `value "text" is out of range for type T` (22003).
    pub(crate) fn range(type_name: &str, text: &[u8]) -> Self {
        Self::new(
            SqlState::NumericValueOutOfRange,
            format!("value \"{}\" is out of range for type {type_name}", quoted(text)),
        )
    }

    /// `incorrect binary data format` (22P03).
    pub(crate) fn binary() -> Self {
        Self::new(SqlState::InvalidBinaryRepresentation, "incorrect binary data format")
    }

    /// `insufficient data left in message` (08P01).
    pub(crate) fn short() -> Self {
        Self::new(SqlState::ProtocolViolation, "insufficient data left in message")
    }

    /// A value larger than a limit (54000).
    pub(crate) fn too_large(what: &str, max: u64) -> Self {
        Self::new(SqlState::ProgramLimitExceeded, format!("{what} exceeds {max} bytes"))
            .hint("store large values outside, or split the event")
    }
}

impl fmt::Display for ValueError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for ValueError {}

/// `text` for a message: lossy UTF-8, cut after 256 bytes.
pub(crate) fn quoted(text: &[u8]) -> Cow<'_, str> {
    if text.len() <= QUOTED_BYTES_MAX {
        return String::from_utf8_lossy(text);
    }
    let mut end = QUOTED_BYTES_MAX;
    while end > 0 && text[end] & 0xC0 == 0x80 {
        end -= 1;
    }
    Cow::Owned(format!("{}…", String::from_utf8_lossy(&text[..end])))
}
