//! Definitions of views: a stored SELECT, expanded where it is used.
//!
//! The catalog keeps the text and what it named when it was made, never a plan. Ids of views are of the one count of
//! relations', so that whatever reads either names it by one kind of id. Leaves out the expansion (sql). A crash does
//! nothing to it.

use crate::model::{Name, Timestamp, TopicId};
use crate::query::SourceForm;
use crate::schema::SqlType;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};

/// A view.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct View {
    /// Its id; never reused, and no relation's.
    pub id: TopicId,
    /// The name in schema `public`.
    pub name: Name,
    /// The SELECT, canonical text.
    pub sql: String,
    /// Its columns, all of them named.
    pub columns: Vec<ViewColumn>,
    /// The relations and views its text names.
    pub sources: BTreeSet<TopicId>,
    /// Where names without a schema are looked for.
    pub search_path: Vec<String>,
    /// Sources that were altered since: as `sql` knows them.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub forms: BTreeMap<TopicId, SourceForm>,
    /// When it was created, or last replaced.
    pub created_at: Timestamp,
    /// The statement that made it, canonical.
    pub statement: String,
}

/// A column of a view.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ViewColumn {
    /// Its name.
    pub name: Name,
    /// Its type.
    pub sql_type: SqlType,
}

impl View {
    /// Itself as those that read it know it.
    pub fn form(&self) -> SourceForm {
        SourceForm { name: self.name.clone(), columns: self.columns.iter().map(|column| column.name.clone()).collect() }
    }
}

/// Why a view cannot take the place of another: what reads that relies on its columns.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Misfit {
    /// It has fewer columns.
    #[error("cannot drop columns from view")]
    Fewer,
    /// A column has another name.
    #[error("cannot change name of view column \"{from}\" to \"{to}\"")]
    Name {
        /// The name it has.
        from: Name,
        /// The name it would have.
        to: Name,
    },
    /// A column has another type.
    #[error("cannot change data type of view column \"{column}\" from {from} to {to}")]
    Type {
        /// The column.
        column: Name,
        /// The type it has.
        from: SqlType,
        /// The type it would have.
        to: SqlType,
    },
}

impl View {
    /// Whether `self` can take the place of `old`: it begins with the same columns.
    ///
    /// # Errors
    /// The first difference.
    pub fn check_replaces(&self, old: &Self) -> Result<(), Misfit> {
        if self.columns.len() < old.columns.len() {
            return Err(Misfit::Fewer);
        }
        for (from, to) in old.columns.iter().zip(&self.columns) {
            if from.name != to.name {
                return Err(Misfit::Name { from: from.name.clone(), to: to.name.clone() });
            }
            if from.sql_type != to.sql_type {
                let (column, from, to) = (from.name.clone(), from.sql_type.clone(), to.sql_type.clone());
                return Err(Misfit::Type { column, from, to });
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use crate::model::{Durability, Name, QueryId, ShardId, TopicId};
    use crate::persist::{decode_command, decode_state, encode_command, encode_state};
    use crate::{
        CatalogError, Column, Command, Misfit, Query, QueryState, Relation, RelationChange, RelationKind, Reply,
        Schema, Snapshot, SqlType, State, TopicOptions, View, ViewColumn, apply,
    };
    use std::collections::{BTreeMap, BTreeSet};

    fn name(text: &str) -> Name {
        Name::new(text).unwrap()
    }

    fn column(text: &str) -> Column {
        Column {
            name: name(text),
            sql_type: SqlType::Integer,
            is_nullable: true,
            is_key: false,
            default: None,
            is_hidden: false,
            is_headers: false,
        }
    }

    fn relation(text: &str) -> Relation {
        Relation {
            id: TopicId::default(),
            name: name(text),
            kind: RelationKind::Stream,
            schema: Schema { columns: vec![column("a")] },
            timestamp: None,
            watermark_delay: None,
            options: TopicOptions { durability: Durability::Sync, ..TopicOptions::default() },
            shard: ShardId::new(1),
            query: None,
            created_at: Default::default(),
            sql: String::new(),
            fills: BTreeMap::new(),
            row_ids: None,
            is_materialized: false,
        }
    }

    fn view(text: &str, sources: &[u64], columns: &[&str]) -> View {
        View {
            id: TopicId::default(),
            name: name(text),
            sql: format!("SELECT of {text}"),
            columns: columns.iter().map(|it| ViewColumn { name: name(it), sql_type: SqlType::Integer }).collect(),
            sources: sources.iter().map(|id| TopicId::new(*id)).collect(),
            search_path: vec!["public".to_owned()],
            forms: BTreeMap::new(),
            created_at: Default::default(),
            statement: String::new(),
        }
    }

    fn query(text: &str, sources: &[u64], views: &[&View]) -> Query {
        Query {
            id: QueryId::default(),
            name: name(text),
            sql: String::new(),
            sources: sources.iter().map(|id| TopicId::new(*id)).collect(),
            sink: TopicId::default(),
            fingerprint: String::new(),
            state: QueryState::Running,
            options: Default::default(),
            created_at: Default::default(),
            target: None,
            forms: BTreeMap::new(),
            views: views.iter().map(|view| (view.id, View::clone(view))).collect(),
            former: None,
        }
    }

    fn add(state: &mut State, view: View) -> TopicId {
        let reply = apply(state, Command::CreateView { view: Box::new(view), replace: false }).unwrap();
        let Reply::Created { topic, query: None } = reply else { panic!("{reply:?}") };
        topic
    }

    /// Stream `s` (1), view `v` of it (2), view `w` of `v` (3), stream `q` (4) of a query over `w`.
    fn state() -> State {
        let mut state = State::default();
        apply(&mut state, Command::CreateRelation { relation: Box::new(relation("s")), query: None }).unwrap();
        assert_eq!(add(&mut state, view("v", &[1], &["a"])), TopicId::new(2));
        assert_eq!(add(&mut state, view("w", &[2], &["a", "b"])), TopicId::new(3));
        let views: Vec<View> = state.views.values().map(|view| View::clone(view)).collect();
        let query = Some(Box::new(query("q", &[1], &views.iter().collect::<Vec<_>>())));
        apply(&mut state, Command::CreateRelation { relation: Box::new(relation("q")), query }).unwrap();
        state
    }

    fn replace(state: &mut State, view: View) -> Result<Reply, CatalogError> {
        apply(state, Command::CreateView { view: Box::new(view), replace: true })
    }

    #[test]
    fn names_are_shared_with_relations() {
        let mut state = state();
        let taken = |state: &mut State, command| assert!(matches!(apply(state, command), Err(CatalogError::Exists(_))));
        taken(&mut state, Command::CreateView { view: Box::new(view("s", &[], &["a"])), replace: false });
        taken(&mut state, Command::CreateView { view: Box::new(view("v", &[], &["a"])), replace: false });
        taken(&mut state, Command::CreateRelation { relation: Box::new(relation("v")), query: None });
        let changes = vec![RelationChange::Rename(name("v"))];
        taken(&mut state, Command::AlterRelation { id: TopicId::new(1), changes });
        assert_eq!(replace(&mut state, view("s", &[], &["a"])), Err(CatalogError::NotView(name("s"))));
    }

    #[test]
    fn a_view_is_dropped_with_what_reads_it() {
        let mut state = state();
        let before = state.clone();
        let drop = |id, cascade| Command::DropRelation { id: TopicId::new(id), cascade, keeps_written: true };
        for (id, views) in [(1, &["v", "w"][..]), (2, &["w"]), (3, &[])] {
            let Err(CatalogError::InUse { readers, views: found, .. }) = apply(&mut state, drop(id, false)) else {
                panic!("{id} was dropped")
            };
            assert_eq!(readers, [name("q")]);
            assert_eq!(found, views.iter().map(|view| name(view)).collect::<Vec<_>>());
        }
        assert_eq!(state, before);
        let Ok(Reply::Dropped { relations, queries }) = apply(&mut state, drop(2, true)) else { panic!() };
        assert_eq!(relations.iter().map(|(id, _)| id.value()).collect::<Vec<_>>(), [2, 3, 4]);
        assert_eq!(queries.len(), 1);
        assert!(state.views.is_empty() && state.queries.is_empty() && state.relations.len() == 1);
    }

    #[test]
    fn another_definition_begins_with_the_same_columns_and_does_not_read_itself() {
        let mut state = state();
        let before = state.clone();
        let misfit = |columns: &[&str], state: &mut State| match replace(state, view("w", &[2], columns)) {
            Err(CatalogError::Misfit(misfit)) => misfit,
            other => panic!("{other:?}"),
        };
        assert_eq!(misfit(&["a"], &mut state), Misfit::Fewer);
        assert_eq!(misfit(&["a", "c"], &mut state), Misfit::Name { from: name("b"), to: name("c") });
        let mut wide = view("w", &[2], &["a", "b"]);
        wide.columns[1].sql_type = SqlType::Text;
        assert!(matches!(replace(&mut state, wide), Err(CatalogError::Misfit(Misfit::Type { .. }))));
        assert_eq!(replace(&mut state, view("v", &[3], &["a"])), Err(CatalogError::Circle(name("v"))));
        assert_eq!(replace(&mut state, view("v", &[9], &["a"])), Err(CatalogError::NoRelation(TopicId::new(9))));
        assert_eq!(state, before);
        replace(&mut state, view("v", &[1], &["a", "more"])).unwrap();
        assert_eq!(state.views[&TopicId::new(2)].columns.len(), 2);
        // What reads it keeps to the columns it had.
        assert_eq!(state.views[&TopicId::new(3)].forms[&TopicId::new(2)].columns, [name("a")]);
    }

    #[test]
    fn a_query_sees_the_views_it_was_made_over() {
        let mut state = state();
        let changes = vec![RelationChange::Rename(name("t"))];
        apply(&mut state, Command::AlterRelation { id: TopicId::new(1), changes }).unwrap();
        assert_eq!(state.views[&TopicId::new(2)].forms[&TopicId::new(1)].name, name("s"));
        let mut other = view("v", &[1], &["a"]);
        other.sql = "SELECT something else".to_owned();
        replace(&mut state, other).unwrap();
        let query = state.queries.values().next().unwrap().clone();
        let now = Snapshot::new(state);
        assert_eq!(now.view("v").unwrap().sql, "SELECT something else");
        assert_eq!(now.seen_by(&query).view("v").unwrap().sql, "SELECT of v");
        assert_eq!(now.seen_by(&query).relation("s").unwrap().id, TopicId::new(1));
    }

    #[test]
    fn states_and_commands_are_what_they_were_after_encoding_and_older_ones_open() {
        let state = state();
        assert_eq!(decode_state(&encode_state(&state)).unwrap(), state);
        let command = Command::CreateView { view: Box::new(view("x", &[1, 2], &["a"])), replace: true };
        assert_eq!(decode_command(&encode_command(&command)).unwrap(), command);
        // As programs before version 3 wrote them.
        let old = concat!(
            r#"{"version":2,"topic_last":2,"query_last":1,"relations":{"1":{"id":1,"name":"s","kind":"stream","#,
            r#""schema":{"columns":[{"name":"a","sql_type":"integer","is_nullable":true,"is_key":false,"default":null,"#,
            r#""is_hidden":false}]},"timestamp":null,"watermark_delay":null,"options":{"partitions":1,"#,
            r#""compression":"none"},"shard":1,"query":null,"created_at":0,"sql":"CREATE STREAM s (a integer)"}},"#,
            r#""queries":{"1":{"id":1,"name":"q","sql":"SELECT a FROM s","sources":[1],"sink":2,"fingerprint":"2-0","#,
            r#""state":"running","options":{"auto_offset_reset":"earliest","idle_timeout":10000000},"created_at":0}}}"#
        );
        for version in [1_u8, 2] {
            let bytes: Vec<u8> = std::iter::once(version).chain(old.bytes()).collect();
            let opened = decode_state(&bytes).unwrap();
            assert_eq!(opened.relations[&TopicId::new(1)].name, name("s"));
            assert!(opened.views.is_empty() && opened.queries[&QueryId::new(1)].views.is_empty());
            assert_eq!(opened.relations[&TopicId::new(1)].options.partitions, 1);
        }
        assert_eq!(BTreeSet::from([TopicId::new(1)]), state.views[&TopicId::new(2)].sources);
    }
}
