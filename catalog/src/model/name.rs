//! Validated names of catalog objects.

use super::limit::NAME_BYTES_MAX;
use serde::{Deserialize, Serialize};
use std::fmt;

/// The name of a relation, query or column, as PostgreSQL folds and quotes it.
///
/// Never empty, at most 63 bytes, no NUL or other control character. Anything else may stand in a quoted name; topics
/// have further rules, though no name is ever used as a file name.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Name(String);

/// Why a text is not a name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// The text has no characters.
    #[error("zero-length delimited identifier")]
    Empty,
    /// The text is longer than 63 bytes.
    #[error("identifier \"{0}…\" is longer than {NAME_BYTES_MAX} bytes")]
    TooLong(String),
    /// The text has a control character.
    #[error("identifier has a control character")]
    Control,
}

impl Name {
    /// Checks `text`.
    ///
    /// # Errors
    /// [`NameError`] when it is empty, too long or has control characters.
    pub fn new(text: impl Into<String>) -> Result<Self, NameError> {
        let text = text.into();
        if text.is_empty() {
            return Err(NameError::Empty);
        }
        if text.len() > NAME_BYTES_MAX {
            return Err(NameError::TooLong(text.chars().take(20).collect()));
        }
        if text.chars().any(char::is_control) {
            return Err(NameError::Control);
        }
        Ok(Self(text))
    }

    /// The text as stored: folded if it was unquoted, as written if quoted.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for Name {
    type Error = NameError;
    fn try_from(text: String) -> Result<Self, NameError> {
        Self::new(text)
    }
}
impl From<Name> for String {
    fn from(name: Name) -> Self {
        name.0
    }
}
impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}
