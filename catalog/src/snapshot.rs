//! An immutable view of the catalog with a version, handed to planners and sessions.
//!
//! Cloning is one reference count. Leaves out how it is kept current: replication swaps it after each
//! applied command.

use crate::model::{QueryId, TopicId};
use crate::query::Query;
use crate::relation::Relation;
use crate::state::State;
use crate::view::View;
use std::collections::HashMap;
use std::sync::Arc;

/// A view of the catalog at one version.
#[derive(Debug, Clone, Default)]
pub struct Snapshot {
    inner: Arc<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    state: State,
    by_name: HashMap<String, TopicId>,
    queries_by_name: HashMap<String, QueryId>,
    views_by_name: HashMap<String, TopicId>,
}

impl Snapshot {
    /// A view of `state`.
    pub fn new(state: State) -> Self {
        let by_name = state.relations.values().map(|r| (r.name.as_str().to_owned(), r.id)).collect();
        let queries_by_name = state.queries.values().map(|q| (q.name.as_str().to_owned(), q.id)).collect();
        let views_by_name = state.views.values().map(|view| (view.name.as_str().to_owned(), view.id)).collect();
        Self { inner: Arc::new(Inner { state, by_name, queries_by_name, views_by_name }) }
    }

    /// The catalog in which the text of `query` means what it meant when the query was made: what it reads has the names
    /// and columns it had then, and views are those of that time.
    pub fn seen_by(&self, query: &Query) -> Self {
        if query.forms.is_empty() && query.views.is_empty() {
            return self.clone();
        }
        let mut state = self.inner.state.clone();
        state.views = query.views.iter().map(|(id, view)| (*id, Arc::new(view.clone()))).collect();
        for (id, form) in &query.forms {
            let Some(relation) = state.relations.get_mut(id).map(Arc::make_mut) else { continue };
            relation.name = form.name.clone();
            relation.schema.columns.truncate(form.columns.len());
            relation.fills.retain(|at, _| *at < form.columns.len());
            relation.row_ids = relation.row_ids.filter(|at| *at < form.columns.len());
            for (column, name) in relation.schema.columns.iter_mut().zip(&form.columns) {
                column.name = name.clone();
            }
        }
        let mut snapshot = Self::new(state);
        if let Some(inner) = Arc::get_mut(&mut snapshot.inner) {
            // Another relation may have taken the name since.
            inner.by_name.extend(query.forms.iter().map(|(id, form)| (form.name.as_str().to_owned(), *id)));
        }
        snapshot
    }

    /// Grows with each change; equal versions of one node are equal catalogs.
    pub fn version(&self) -> u64 {
        self.inner.state.version
    }
    /// The stream or table named `name` (already folded).
    pub fn relation(&self, name: &str) -> Option<&Arc<Relation>> {
        self.relation_by_id(*self.inner.by_name.get(name)?)
    }
    /// The stream or table with `id`.
    pub fn relation_by_id(&self, id: TopicId) -> Option<&Arc<Relation>> {
        self.inner.state.relations.get(&id)
    }
    /// The view named `name`.
    pub fn view(&self, name: &str) -> Option<&Arc<View>> {
        self.view_by_id(*self.inner.views_by_name.get(name)?)
    }
    /// The view with `id`.
    pub fn view_by_id(&self, id: TopicId) -> Option<&Arc<View>> {
        self.inner.state.views.get(&id)
    }
    /// Every view, by id.
    pub fn views(&self) -> impl Iterator<Item = &Arc<View>> {
        self.inner.state.views.values()
    }
    /// The query named `name`.
    pub fn query(&self, name: &str) -> Option<&Arc<Query>> {
        self.query_by_id(*self.inner.queries_by_name.get(name)?)
    }
    /// The query with `id`.
    pub fn query_by_id(&self, id: QueryId) -> Option<&Arc<Query>> {
        self.inner.state.queries.get(&id)
    }
    /// Every relation, by id.
    pub fn relations(&self) -> impl Iterator<Item = &Arc<Relation>> {
        self.inner.state.relations.values()
    }
    /// Every query, by id.
    pub fn queries(&self) -> impl Iterator<Item = &Arc<Query>> {
        self.inner.state.queries.values()
    }
}
