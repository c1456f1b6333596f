//! Statements of consumer groups and of notifications.
//!
//! Leaves out what they do (engine). Built by `dialect::parse`; a crash does nothing to it.

use super::{Ident, Position, QualifiedName};
use millstream_catalog::SqlType;
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
    pub group: Given<GroupRef>,
    /// Of what.
    pub topic: Given<QualifiedName>,
    /// Of which partition.
    pub partition: Given<PartitionId>,
    /// The next offset to read.
    pub offset: Given<Offset>,
    /// Where the offset stands.
    pub position: Position,
}

/// A value of a statement.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Given<T> {
    /// As written.
    Value(T),
    /// The parameter with this index, from 0, which stands there.
    Param(usize, Position),
}

impl<T> Given<T> {
    /// The parameter's index, if it is one.
    fn param(&self) -> Option<usize> {
        match self {
            Self::Value(_) => None,
            Self::Param(index, _) => Some(*index),
        }
    }
}

impl CommitPosition {
    /// The types of its parameters, `$1` first, where they are not `declared`.
    pub fn params(&self, declared: &[Option<SqlType>]) -> Vec<SqlType> {
        let used = [
            (self.group.param(), SqlType::Text),
            (self.topic.param(), SqlType::Text),
            (self.partition.param(), SqlType::Integer),
            (self.offset.param(), SqlType::BigInt),
        ];
        let mut types = declared.to_vec();
        for (index, sql_type) in used.into_iter().filter_map(|(index, sql_type)| Some((index?, sql_type))) {
            types.resize(types.len().max(index + 1), None);
            types[index].get_or_insert(sql_type);
        }
        types.into_iter().map(|sql_type| sql_type.unwrap_or(SqlType::Text)).collect()
    }
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
