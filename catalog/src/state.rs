//! The catalog's state: every definition, and the next free ids.
//!
//! Changed only by `apply`; read through `Snapshot`. Equal prefixes of commands give equal states. After a
//! crash it is rebuilt from the last persisted snapshot and the entries after it.

use crate::model::{QueryId, TopicId};
use crate::query::Query;
use crate::relation::Relation;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::sync::Arc;

/// Every definition.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct State {
    /// Counts the applied commands that changed anything.
    pub version: u64,
    /// The last topic id given out.
    pub topic_last: TopicId,
    /// The last query id given out.
    pub query_last: QueryId,
    /// Relations by id.
    pub relations: BTreeMap<TopicId, Arc<Relation>>,
    /// Queries by id; terminated ones stay until their sink is dropped.
    pub queries: BTreeMap<QueryId, Arc<Query>>,
}
