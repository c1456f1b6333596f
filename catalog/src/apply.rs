//! The only way to change the catalog: `apply`, deterministic and total.
//!
//! The same commands in the same order give the same states and replies on every replica. Leaves out
//! everything that needs a clock or I/O.

use crate::command::{Command, RelationChange, Reply};
use crate::model::limit::{COLUMNS_MAX, QUERIES_MAX, TOPICS_MAX};
use crate::model::{Name, QueryId, TopicId};
use crate::query::{Query, QueryState, SourceForm};
use crate::relation::{Relation, TopicOptions};
use crate::schema::Column;
use crate::state::State;
use crate::view::{Misfit, View};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::sync::Arc;

/// Why a command changed nothing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
pub enum CatalogError {
    /// The name is taken.
    #[error("relation \"{0}\" already exists")]
    Exists(Name),
    /// The relation has a column of the name.
    #[error("column \"{column}\" of relation \"{relation}\" already exists")]
    ColumnExists {
        /// The relation.
        relation: Name,
        /// The column.
        column: Name,
    },
    /// The relation has no column of the name.
    #[error("column \"{0}\" does not exist")]
    NoColumn(Name),
    /// No relation has the id (it was dropped meanwhile).
    #[error("topic {0} does not exist")]
    NoRelation(TopicId),
    /// No query has the id.
    #[error("query {0} does not exist")]
    NoQuery(QueryId),
    /// Others read it, or insert into it.
    #[error("cannot drop \"{name}\" because other objects depend on it")]
    InUse {
        /// The relation.
        name: Name,
        /// The queries that insert into it.
        #[serde(default)]
        writers: Vec<Name>,
        /// The queries that read it.
        readers: Vec<Name>,
        /// The views that read it.
        #[serde(default)]
        views: Vec<Name>,
    },
    /// It is no view.
    #[error("\"{0}\" is not a view")]
    NotView(Name),
    /// A view would read itself.
    #[error("view \"{0}\" would read itself")]
    Circle(Name),
    /// A view of other columns cannot be replaced.
    #[error("{0}")]
    Misfit(Misfit),
    /// The name is another query's.
    #[error("query \"{0}\" already exists")]
    QueryExists(Name),
    /// The query was terminated; it cannot change any more.
    #[error("query \"{0}\" was terminated")]
    Terminated(Name),
    /// A limit is reached.
    #[error("limit of {limit} {what} is reached")]
    Limit {
        /// What is counted.
        what: String,
        /// The limit.
        limit: usize,
    },
}

/// Applies `command` to `state`.
///
/// # Errors
/// [`CatalogError`]; the state is then unchanged.
pub fn apply(state: &mut State, command: Command) -> Result<Reply, CatalogError> {
    let reply = match command {
        Command::CreateRelation { relation, query } => create(state, *relation, query.map(|q| *q)),
        Command::CreateQuery { query } => create_query(state, *query),
        Command::CreateView { view, replace } => create_view(state, *view, replace),
        Command::ReplaceQuery { query, former, added, sql } => replace_query(state, *query, former, added, sql),
        Command::DropRelation { id, cascade, keeps_written } => drop_relation(state, id, cascade, keeps_written),
        Command::AlterRelation { id, changes } => alter(state, id, changes),
        Command::SetQueryState { id, state: to } => set_query_state(state, id, to),
    }?;
    state.version += 1;
    Ok(reply)
}

fn create(state: &mut State, mut relation: Relation, query: Option<Query>) -> Result<Reply, CatalogError> {
    if state.has_name(&relation.name) {
        return Err(CatalogError::Exists(relation.name));
    }
    if state.relations.len() >= TOPICS_MAX {
        return Err(CatalogError::Limit { what: "topics".to_owned(), limit: TOPICS_MAX });
    }
    if query.is_some() && state.queries.len() >= QUERIES_MAX {
        return Err(CatalogError::Limit { what: "continuous queries".to_owned(), limit: QUERIES_MAX });
    }
    if let Some(source) = query.iter().flat_map(|q| q.sources.iter().chain(q.views.keys())).find(|id| !state.has(**id))
    {
        return Err(CatalogError::NoRelation(*source));
    }
    state.topic_last = state.topic_last.next();
    relation.id = state.topic_last;
    relation.query = None;
    let mut query_id = None;
    if let Some(mut query) = query {
        state.query_last = state.query_last.next();
        query.id = state.query_last;
        query.sink = relation.id;
        relation.query = Some(query.id);
        query_id = Some(query.id);
        state.queries.insert(query.id, Arc::new(query));
    }
    let topic = relation.id;
    state.relations.insert(topic, Arc::new(relation));
    Ok(Reply::Created { topic, query: query_id })
}

fn create_query(state: &mut State, mut query: Query) -> Result<Reply, CatalogError> {
    if state.queries.values().any(|other| other.name == query.name) {
        return Err(CatalogError::QueryExists(query.name));
    }
    if state.queries.len() >= QUERIES_MAX {
        return Err(CatalogError::Limit { what: "continuous queries".to_owned(), limit: QUERIES_MAX });
    }
    let read = query.sources.iter().chain(query.views.keys());
    let gone = read.chain([&query.sink]).find(|id| !state.has(**id));
    if let Some(gone) = gone {
        return Err(CatalogError::NoRelation(*gone));
    }
    state.query_last = state.query_last.next();
    query.id = state.query_last;
    let (topic, id) = (query.sink, query.id);
    state.queries.insert(id, Arc::new(query));
    Ok(Reply::Created { topic, query: Some(id) })
}

fn replace_query(
    state: &mut State,
    new: Query,
    former: String,
    added: Vec<Column>,
    sql: String,
) -> Result<Reply, CatalogError> {
    let old = state.queries.get(&new.id).cloned().ok_or(CatalogError::NoQuery(new.id))?;
    if old.state == QueryState::Terminated {
        return Err(CatalogError::Terminated(old.name.clone()));
    }
    let before = state.relations.get(&old.sink).cloned().ok_or(CatalogError::NoRelation(old.sink))?;
    if let Some(gone) = new.views.keys().find(|view| !state.views.contains_key(view)) {
        return Err(CatalogError::NoRelation(*gone));
    }
    let mut relation = Relation::clone(&before);
    for column in added {
        change_relation(state, &mut relation, RelationChange::AddColumn { column, fill: None })?;
    }
    relation.sql = sql;
    if relation.schema != before.schema {
        remember(state, &before);
    }
    // What failed with the old text may not fail with the new one.
    let is_failed = matches!(old.state, QueryState::Error { .. });
    let query = Query {
        name: old.name.clone(),
        sources: old.sources.clone(),
        sink: old.sink,
        state: if is_failed { QueryState::Running } else { old.state.clone() },
        created_at: old.created_at,
        target: old.target.clone(),
        former: Some(former),
        ..new
    };
    state.queries.insert(query.id, Arc::new(query));
    state.relations.insert(relation.id, Arc::new(relation));
    Ok(Reply::Changed)
}

fn create_view(state: &mut State, mut view: View, replace: bool) -> Result<Reply, CatalogError> {
    let old = state.views.values().find(|old| old.name == view.name).cloned();
    match (&old, replace) {
        (Some(old), true) => view.check_replaces(old).map_err(CatalogError::Misfit)?,
        (Some(_), false) => return Err(CatalogError::Exists(view.name)),
        (None, true) if state.has_name(&view.name) => return Err(CatalogError::NotView(view.name)),
        (None, _) if state.has_name(&view.name) => return Err(CatalogError::Exists(view.name)),
        (None, _) if state.views.len() >= TOPICS_MAX => {
            return Err(CatalogError::Limit { what: "views".to_owned(), limit: TOPICS_MAX });
        }
        (None, _) => {}
    }
    if let Some(gone) = view.sources.iter().find(|source| !state.has(**source)) {
        return Err(CatalogError::NoRelation(*gone));
    }
    match old {
        Some(old) => {
            if read_through(state, &view.sources).contains(&old.id) {
                return Err(CatalogError::Circle(view.name));
            }
            // Views that read it keep to the columns it had.
            if view.columns.len() > old.columns.len() {
                remember_in_views(state, old.id, &old.form());
            }
            view.id = old.id;
        }
        None => {
            state.topic_last = state.topic_last.next();
            view.id = state.topic_last;
        }
    }
    let topic = view.id;
    state.views.insert(topic, Arc::new(view));
    Ok(Reply::Created { topic, query: None })
}

/// `sources`, and what the views among them read, and so on.
fn read_through(state: &State, sources: &BTreeSet<TopicId>) -> BTreeSet<TopicId> {
    let mut all = sources.clone();
    let mut left: Vec<TopicId> = sources.iter().copied().collect();
    while let Some(view) = left.pop() {
        let read = state.views.get(&view).into_iter().flat_map(|view| &view.sources);
        left.extend(read.filter(|source| all.insert(**source)).collect::<Vec<_>>());
    }
    all
}

fn drop_relation(state: &mut State, id: TopicId, cascade: bool, keeps_written: bool) -> Result<Reply, CatalogError> {
    let name = state.relations.get(&id).map(|relation| relation.name.clone());
    let name = name.or_else(|| state.views.get(&id).map(|view| view.name.clone()));
    let name = name.ok_or(CatalogError::NoRelation(id))?;
    let mut doomed = BTreeSet::from([id]);
    let (mut readers, mut views) = (Vec::new(), Vec::new());
    let reads = |q: &Query, doomed: &BTreeSet<TopicId>| {
        q.state != QueryState::Terminated
            && !doomed.contains(&q.sink)
            && (q.sources.iter().any(|source| doomed.contains(source))
                || q.views.keys().any(|view| doomed.contains(view)))
    };
    // Each pass adds the sinks of queries that read something doomed, until nothing is added. A query that inserts into
    // a relation there was goes without it.
    loop {
        let more: Vec<TopicId> = state
            .queries
            .values()
            .filter(|q| q.target.is_none() && reads(q, &doomed))
            .map(|q| {
                readers.push(q.name.clone());
                q.sink
            })
            .collect();
        let over = state.views.values().filter(|view| !doomed.contains(&view.id));
        let over: Vec<&Arc<View>> = over.filter(|view| view.sources.iter().any(|id| doomed.contains(id))).collect();
        views.extend(over.iter().map(|view| view.name.clone()));
        let over: Vec<TopicId> = over.iter().map(|view| view.id).collect();
        if more.is_empty() && over.is_empty() {
            break;
        }
        doomed.extend(more.into_iter().chain(over));
    }
    let inserting = state.queries.values().filter(|q| q.target.is_some() && reads(q, &doomed));
    let inserting: Vec<(QueryId, Name)> = inserting.map(|q| (q.id, q.name.clone())).collect();
    readers.extend(inserting.iter().map(|(_, name)| name.clone()));
    let writers = state.queries.values().filter(|q| keeps_written && q.target.is_some() && q.sink == id);
    let writers = writers.filter(|q| q.state != QueryState::Terminated);
    let writers: Vec<Name> = writers.map(|q| q.name.clone()).collect();
    let is_in_use = !readers.is_empty() || !views.is_empty() || !writers.is_empty();
    if is_in_use && !cascade {
        return Err(CatalogError::InUse { name, writers, readers, views });
    }
    let writing = state.queries.values().filter(|q| doomed.contains(&q.sink)).map(|q| q.id);
    let queries: Vec<QueryId> = writing.chain(inserting.into_iter().map(|(id, _)| id)).collect();
    for query in &queries {
        state.queries.remove(query);
    }
    let relations = doomed
        .into_iter()
        .filter_map(|id| {
            let relation = state.relations.remove(&id).map(|relation| relation.name.clone());
            Some((id, relation.or_else(|| state.views.remove(&id).map(|view| view.name.clone()))?))
        })
        .collect();
    Ok(Reply::Dropped { relations, queries })
}

fn alter(state: &mut State, id: TopicId, changes: Vec<RelationChange>) -> Result<Reply, CatalogError> {
    let before = state.relations.get(&id).cloned().ok_or(CatalogError::NoRelation(id))?;
    let mut relation = Relation::clone(&before);
    for change in changes {
        change_relation(state, &mut relation, change)?;
    }
    remember(state, &before);
    if relation.name != before.name {
        rename_query(state, &before, &relation.name);
    }
    state.relations.insert(id, Arc::new(relation));
    Ok(Reply::Changed)
}

fn change_relation(state: &State, relation: &mut Relation, change: RelationChange) -> Result<(), CatalogError> {
    let exists = |relation: &Relation, column: &Name| match relation.schema.find(column.as_str()) {
        None => Ok(()),
        Some(_) => Err(CatalogError::ColumnExists { relation: relation.name.clone(), column: column.clone() }),
    };
    match change {
        RelationChange::AddColumn { column, fill } => {
            exists(relation, &column.name)?;
            let at = relation.schema.columns.len();
            if at >= COLUMNS_MAX {
                return Err(CatalogError::Limit { what: "columns".to_owned(), limit: COLUMNS_MAX });
            }
            relation.schema.columns.push(column);
            relation.fills.extend(fill.map(|fill| (at, fill)));
        }
        RelationChange::Rename(name) => {
            if state.has_name(&name) {
                return Err(CatalogError::Exists(name));
            }
            relation.name = name;
        }
        RelationChange::RenameColumn { from, to } => {
            let found = relation.schema.columns.iter().position(|column| column.name == from);
            let at = found.ok_or(CatalogError::NoColumn(from))?;
            exists(relation, &to)?;
            relation.schema.columns[at].name = to;
        }
        RelationChange::AddRowIds => relation.add_row_ids(),
        RelationChange::SetOptions(options) => {
            let partitions = options.partitions.max(relation.options.partitions);
            relation.options = TopicOptions { partitions, ..options };
        }
    }
    Ok(())
}

/// Lets the queries and views that read `relation` keep to what it is now.
fn remember(state: &mut State, relation: &Relation) {
    let form = SourceForm {
        name: relation.name.clone(),
        columns: relation.schema.columns.iter().map(|column| column.name.clone()).collect(),
    };
    for query in state.queries.values_mut().filter(|query| query.sources.contains(&relation.id)) {
        if !query.forms.contains_key(&relation.id) {
            Arc::make_mut(query).forms.insert(relation.id, form.clone());
        }
    }
    remember_in_views(state, relation.id, &form);
}

/// Lets the views that read what has the id keep to its `form`.
fn remember_in_views(state: &mut State, id: TopicId, form: &SourceForm) {
    for view in state.views.values_mut().filter(|view| view.sources.contains(&id)) {
        if !view.forms.contains_key(&id) {
            Arc::make_mut(view).forms.insert(id, form.clone());
        }
    }
}

/// The query that writes a relation has its name, unless that is another query's.
fn rename_query(state: &mut State, relation: &Relation, name: &Name) {
    let is_taken = state.queries.values().any(|query| query.name == *name);
    let Some(query) = relation.query.and_then(|id| state.queries.get_mut(&id)) else { return };
    if query.name == relation.name && !is_taken {
        Arc::make_mut(query).name = name.clone();
    }
}

fn set_query_state(state: &mut State, id: QueryId, to: QueryState) -> Result<Reply, CatalogError> {
    let query = state.queries.get_mut(&id).ok_or(CatalogError::NoQuery(id))?;
    if query.state == QueryState::Terminated {
        return Err(CatalogError::Terminated(query.name.clone()));
    }
    Arc::make_mut(query).state = to;
    Ok(Reply::Changed)
}
