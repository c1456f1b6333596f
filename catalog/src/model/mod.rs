//! The vocabulary: identifiers, offsets, times, sizes, names, limits and SQLSTATEs as types.
//!
//! Every id, offset, time and size that crosses a function is one of these. Leaves out anything that
//! needs I/O. Used by every layer.

pub mod durability;
pub mod group;
pub mod id;
pub mod limit;
pub mod name;
pub mod offset;
pub mod producer;
pub mod size;
pub mod sqlstate;
pub mod time;

pub use durability::Durability;
pub use group::{GroupName, GroupNameError};
pub use id::{
    EntryIndex, GroupEpoch, NodeId, PartitionId, QueryId, ShardId, StageId, StepNumber, Term, TopicId, TransactionId,
};
pub use name::Name;
pub use offset::Offset;
pub use producer::{ProducerId, ProducerIdError, Sequence};
pub use size::{ByteSize, RowCount};
pub use sqlstate::SqlState;
pub use time::{Span, Timestamp};
