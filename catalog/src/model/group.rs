//! Consumer groups: their names, and the epochs in which their members read partitions.

use super::limit::GROUP_NAME_BYTES_MAX;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::sync::Arc;

/// The name of a consumer group: 1 to 249 bytes without control characters, as Kafka's topics have.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct GroupName(Arc<str>);

/// Why a text is no [`GroupName`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the name of a consumer group has 1 to {GROUP_NAME_BYTES_MAX} bytes and no control characters")]
pub struct GroupNameError;

impl GroupName {
    /// Checks `text`.
    ///
    /// # Errors
    /// [`GroupNameError`] when it is empty, too long, or has control characters.
    pub fn new(text: impl Into<String>) -> Result<Self, GroupNameError> {
        let text = text.into();
        let is_name = !text.is_empty() && text.len() <= GROUP_NAME_BYTES_MAX && !text.chars().any(char::is_control);
        if is_name { Ok(Self(text.into())) } else { Err(GroupNameError) }
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
        name.0.as_ref().to_owned()
    }
}
impl fmt::Display for GroupName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}
