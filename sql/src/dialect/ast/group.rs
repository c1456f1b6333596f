//! Statements of consumer groups and of notifications.
//!
//! Leaves out what they do (engine). Built by `dialect::parse`; a crash does nothing to it.

use super::{Ident, Position, QualifiedName};
use millstream_catalog::model::{GroupName, Offset, PartitionId, Timestamp};

/// `COMMIT OFFSETS …`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CommitOffsets {
    /// `COMMIT OFFSETS FOR CURSOR name`: of what was fetched from it.
    Cursor(Ident),
    /// `COMMIT OFFSETS (GROUP …, TOPIC …, PARTITION …, OFFSET …)`
    Position(CommitPosition),
}

/// `(GROUP 'g', TOPIC 't', PARTITION 0, OFFSET 42)`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CommitPosition {
    /// Whose offset.
    pub group: GroupRef,
    /// Of what.
    pub topic: QualifiedName,
    /// Of which partition.
    pub partition: PartitionId,
    /// The next offset to read.
    pub offset: Offset,
    /// Where the offset stands.
    pub position: Position,
}

/// A consumer group as named in a statement.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GroupRef {
    /// The name: of an identifier, folded if it was unquoted; of a literal, as written.
    pub name: GroupName,
    /// Where it stands.
    pub position: Position,
}

/// `ALTER CONSUMER GROUP g RESET OFFSETS [FOR TOPIC t [PARTITION n]] TO …`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AlterGroup {
    /// Whose offsets.
    pub group: GroupRef,
    /// Of which topic; `None` is all that the group reads.
    pub topic: Option<QualifiedName>,
    /// Of which partition; `None` is all.
    pub partition: Option<PartitionId>,
    /// The new position.
    pub to: ResetTo,
}

/// Where a group's offsets are set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ResetTo {
    /// `EARLIEST`: to the oldest stored event.
    Earliest,
    /// `LATEST`: after the newest.
    Latest,
    /// `TIMESTAMP '…'`: to the first event of that time or later.
    Timestamp(Timestamp),
    /// `OFFSET n`
    Offset(Offset),
}

/// `DROP CONSUMER GROUP [IF EXISTS] names`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DropGroups {
    /// Groups that are not there are no error.
    pub if_exists: bool,
    /// What to drop, at least one.
    pub groups: Vec<GroupRef>,
}
