//! The catalog's state: every definition, and the next free ids.
//!
//! Changed only by `apply`; read through `Snapshot`. Equal prefixes of commands give equal states. After a
//! crash it is rebuilt from the last persisted snapshot and the entries after it.

use crate::model::{Name, QueryId, TopicId};
use crate::query::Query;
use crate::relation::Relation;
use crate::view::View;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::sync::Arc;

/// Every definition.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct State {
    /// Counts the applied commands that changed anything.
    pub version: u64,
    /// The last id given out, of a topic or view.
    pub topic_last: TopicId,
    /// The last query id given out.
    pub query_last: QueryId,
    /// Relations by id.
    pub relations: BTreeMap<TopicId, Arc<Relation>>,
    /// Queries by id; terminated ones stay until their sink is dropped.
    pub queries: BTreeMap<QueryId, Arc<Query>>,
    /// Views by id.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub views: BTreeMap<TopicId, Arc<View>>,
}

impl State {
    /// Whether a relation or view has the name.
    pub fn has_name(&self, name: &Name) -> bool {
        let mut views = self.views.values();
        self.relations.values().any(|relation| relation.name == *name) || views.any(|view| view.name == *name)
    }

    /// Whether there is a relation or view of the id.
    pub fn has(&self, id: TopicId) -> bool {
        self.relations.contains_key(&id) || self.views.contains_key(&id)
    }
}
