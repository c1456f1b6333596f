//! Consumer groups: their names.

use super::limit::GROUP_NAME_BYTES_MAX;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::sync::Arc;

/// The name of a consumer group: 1 to 249 bytes, no control characters.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct GroupName(Arc<str>);

/// Why a text is no [`GroupName`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the name of a consumer group has 1 to {GROUP_NAME_BYTES_MAX} bytes, and no control characters")]
pub struct GroupNameError;

impl GroupName {
    /// Checks `text`.
    ///
    /// # Errors
    /// [`GroupNameError`] when it is empty, too long or has control characters.
    pub fn new(text: impl Into<Arc<str>>) -> Result<Self, GroupNameError> {
        let text = text.into();
        let is_name = !text.is_empty() && text.len() <= GROUP_NAME_BYTES_MAX && !text.chars().any(char::is_control);
        if is_name { Ok(Self(text)) } else { Err(GroupNameError) }
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for GroupName {
    type Error = GroupNameError;
    fn try_from(text: String) -> Result<Self, GroupNameError> {
        Self::new(text)
    }
}
impl From<GroupName> for String {
    fn from(name: GroupName) -> Self {
        name.as_str().to_owned()
    }
}
impl fmt::Display for GroupName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_have_a_length_and_no_control_characters() {
        for bytes in [1, GROUP_NAME_BYTES_MAX - 1, GROUP_NAME_BYTES_MAX] {
            assert_eq!(GroupName::new("x".repeat(bytes)).unwrap().as_str().len(), bytes);
        }
        for text in [String::new(), "x".repeat(GROUP_NAME_BYTES_MAX + 1), "a\nb".to_owned(), "a\0".to_owned()] {
            assert_eq!(GroupName::new(text), Err(GroupNameError));
        }
        assert_eq!(GroupName::new("Billing-1 é").unwrap().to_string(), "Billing-1 é");
    }

    #[test]
    fn what_is_stored_is_checked_when_it_is_read() {
        let name = GroupName::new("billing").unwrap();
        let json = serde_json::to_string(&name).unwrap();
        assert_eq!(json, "\"billing\"");
        assert_eq!(serde_json::from_str::<GroupName>(&json).unwrap(), name);
        assert!(serde_json::from_str::<GroupName>("\"\"").is_err());
    }
}
