//! When a write is acknowledged.

use serde::{Deserialize, Serialize};

/// What an acknowledgement of a write means.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Durability {
    /// Its bytes are on stable storage.
    #[default]
    Sync,
    /// Its bytes are handed to the operating system, which has them on stable storage soon after
    /// ([`ASYNC_SYNC_DELAY`](super::limit::ASYNC_SYNC_DELAY)): they survive the end of the process, not that of the
    /// machine.
    Async,
}

impl Durability {
    /// The stricter of two: what is written together is as durable as the part that asks for most.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        if self == Self::Async { other } else { self }
    }

    /// As `WITH` and `SET` have it.
    pub fn word(self) -> &'static str {
        match self {
            Self::Sync => "sync",
            Self::Async => "async",
        }
    }

    /// The durability of that word, in lower case.
    pub fn parse(word: &str) -> Option<Self> {
        [Self::Sync, Self::Async].into_iter().find(|durability| durability.word() == word)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_together_is_async_only_if_all_of_it_is() {
        use Durability::{Async, Sync};
        let cases = [(Sync, Sync, Sync), (Sync, Async, Sync), (Async, Sync, Sync), (Async, Async, Async)];
        for (one, other, both) in cases {
            assert_eq!(one.and(other), both);
        }
        assert_eq!(Durability::parse("async"), Some(Async));
        assert_eq!(Durability::parse("Async"), None);
    }
}
