//! Counts of rows and bytes.

use serde::{Deserialize, Serialize};
use std::fmt;

macro_rules! count {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(u64);

        impl $name {
            /// None.
            pub const ZERO: Self = Self(0);
            /// Wraps a raw count.
            pub const fn new(value: u64) -> Self {
                Self(value)
            }
            /// A count from a length in memory.
            pub const fn of(len: usize) -> Self {
                Self(len as u64)
            }
            /// The raw count.
            pub const fn value(self) -> u64 {
                self.0
            }
            /// The count as a length in memory (64-bit targets only).
            pub const fn as_usize(self) -> usize {
                self.0 as usize
            }
            /// The sum; saturates.
            pub const fn plus(self, other: Self) -> Self {
                Self(self.0.saturating_add(other.0))
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

count!(
    /// A number of rows.
    RowCount
);
count!(
    /// A number of bytes.
    ByteSize
);
