//! The commands that change the catalog, and their replies.
//!
//! Each is one entry of shard 0. Leaves out validation of SQL, done before a command is proposed; `apply`
//! re-checks only what concurrent commands may have changed. Serialised by `persist`.

use crate::model::{Name, QueryId, TopicId};
use crate::query::{Query, QueryState};
use crate::relation::{Relation, TopicOptions};
use crate::schema::Column;
use crate::view::View;
use serde::{Deserialize, Serialize};

/// One change. Ids inside definitions are ignored on creation: `apply` allocates them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Command {
    /// Adds a stream or table and, with `query`, the continuous query that writes it.
    CreateRelation {
        /// The definition; `id` and `query` are set by `apply`.
        relation: Box<Relation>,
        /// The query; `id` and `sink` are set by `apply`.
        query: Option<Box<Query>>,
    },
    /// Adds a continuous query that inserts into a relation there is.
    CreateQuery {
        /// The query; `id` is set by `apply`.
        query: Box<Query>,
    },
    /// Adds a view.
    CreateView {
        /// The definition; `id` is set by `apply`.
        view: Box<View>,
        /// One of the name becomes this.
        replace: bool,
    },
    /// Gives a query another text; it goes on where it is, with the state it has.
    ReplaceQuery {
        /// The query as it will be; its name, sources, sink and state stay.
        query: Box<Query>,
        /// The fingerprint of the pipeline whose state is saved now.
        former: String,
        /// Columns that its sink has more, at the end.
        added: Vec<Column>,
        /// The statement, canonical.
        sql: String,
    },
    /// Removes a relation and the queries that write it, or a view.
    DropRelation {
        /// The relation or view, by id, so that a name created anew meanwhile is not hit.
        id: TopicId,
        /// Also drop every view and query that reads it, and the relation it was made with, transitively.
        cascade: bool,
        /// Without `cascade`, refuse also while queries insert into it. Entries of the log from before this was asked have
        /// it false.
        #[serde(default)]
        keeps_written: bool,
    },
    /// Changes a relation: all of the changes, or none.
    AlterRelation {
        /// The relation, by id.
        id: TopicId,
        /// What to change, in order.
        changes: Vec<RelationChange>,
    },
    /// Changes the state of a query.
    SetQueryState {
        /// The query.
        id: QueryId,
        /// The state from now on.
        state: QueryState,
    },
}

/// A change of a relation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RelationChange {
    /// One more column, at the end.
    AddColumn {
        /// The column; not of a key.
        column: Column,
        /// What rows written before have in it, encoded by storage; else NULL.
        fill: Option<String>,
    },
    /// Another name.
    Rename(Name),
    /// Another name of a column.
    RenameColumn {
        /// The old name.
        from: Name,
        /// The new name.
        to: Name,
    },
    /// Other options; partitions only grow.
    SetOptions(TopicOptions),
    /// Rows of a table without a key can change from now on.
    AddRowIds,
}

/// What `apply` did.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reply {
    /// The relation or view, and the query, now exist under these ids.
    Created {
        /// The relation's or view's id.
        topic: TopicId,
        /// The query's id, if one came with it.
        query: Option<QueryId>,
    },
    /// These are gone, in the order they were dropped.
    Dropped {
        /// Ids and names of relations and views.
        relations: Vec<(TopicId, Name)>,
        /// Ids of queries.
        queries: Vec<QueryId>,
    },
    /// The query has the state, or the relation the changes.
    Changed,
}
