//! Names, types and definitions of Millstream, and the one pure function that changes them.
//!
//! Owns the vocabulary every other layer speaks (`model`), the definitions of relations and continuous
//! queries, and `apply`, the deterministic state machine of the catalog. Leaves out I/O, SQL text, time
//! and replication: callers pass time in and persist the bytes. A crash does nothing to it.

pub mod apply;
pub mod command;
pub mod model;
pub mod persist;
pub mod query;
pub mod relation;
pub mod schema;
pub mod snapshot;
pub mod state;
pub mod view;

pub use apply::{CatalogError, apply};
pub use command::{Command, RelationChange, Reply};
pub use query::{Query, QueryOptions, QueryState, SourceForm};
pub use relation::{Cleanup, CleanupPolicy, Compression, Relation, RelationKind, TopicOptions};
pub use schema::{Column, Schema, SqlType};
pub use snapshot::Snapshot;
pub use state::State;
pub use view::{Misfit, View, ViewColumn};
