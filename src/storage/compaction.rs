//! What compaction and merging did to a partition so far, and when tombstones may go.
//!
//! Owns the state that the manifest keeps per partition, and the arithmetic of its times. Leaves out deciding
//! ([`upkeep`](super::upkeep)) and the work itself ([`rewrite`](super::rewrite)). Times come from entries of the log, so
//! equal logs give equal states; a crash loses nothing that the manifest and the log do not give back.

use millstream_catalog::model::{Offset, Timestamp};
use serde::{Deserialize, Serialize};

/// What upkeep did to one partition.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct PartitionUpkeep {
    /// Rewrites so far; numbers the files they make.
    pub rewrites: u64,
    /// Below it, rows were compacted among themselves.
    pub compacted_upto: Offset,
    /// Tombstones left below it.
    pub tombstones: u64,
    /// Below it, tombstones were removed: a reader that stands there may have missed a deletion.
    pub tombstones_upto: Offset,
    /// Offsets, ascending, and when what is below each was first compacted.
    pub marks: Vec<(Offset, Timestamp)>,
}

impl PartitionUpkeep {
    /// Whether nothing was done yet.
    pub(crate) fn is_none(&self) -> bool {
        *self == Self::default()
    }
}
