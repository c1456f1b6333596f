//! `CREATE OR REPLACE … AS SELECT` of a relation there is: another text for its query, which keeps its state.
//!
//! Owns the checks, and the switch: the query stands still, the old pipeline saves its state, then one entry of the catalog
//! has the new text. A crash before it leaves the old query, one after it the new; the steps of either are repeated by the
//! pipeline that took them. Leaves out which state fits which pipeline (sql) and steps (`query`).

use crate::engine::ddl::{NODES, named_output, views_of};
use crate::engine::query::ensure_errors;
use crate::engine::session::Session;
use crate::engine::{Engine, Outcome, Result, query};
use millstream_catalog::model::{SqlState, TopicId};
use millstream_catalog::query::OnError;
use millstream_catalog::{Column, Command, Query, QueryOptions, QueryState, Relation, RelationKind};
use millstream_sql::dialect::{CreateAs, ObjectKind, render};
use millstream_sql::plan::{ContinuousPlan, plan_continuous};
use millstream_sql::stream::Pipeline;
use millstream_sql::{SqlError, bind};
use std::collections::BTreeMap;
use std::sync::Arc;

const ANEW: &str = "drop it and create it anew, or create it under another name";

/// `sqlstate`: why the query of `name` is not replaced.
fn refused(sqlstate: SqlState, name: &impl std::fmt::Display, reason: impl std::fmt::Display) -> SqlError {
    SqlError::new(sqlstate, format!("cannot replace the query of \"{name}\": {reason}")).hint(ANEW)
}

impl Session {
    /// Replaces the query that writes `relation`.
    pub(crate) async fn replace_query(&mut self, create: &CreateAs, relation: &Arc<Relation>) -> Result<Outcome> {
        let query = self.replaced(create, relation)?;
        let options = self.replaced_options(create, relation, &query)?;
        let (select, planned) = (create.select.clone(), options.clone());
        let (plan, pipeline) = self.pipeline(move |context| plan_continuous(context, &select, &planned)).await?;
        let added = added_columns(create, relation, &pipeline)?;
        self.check_sources(&query, &plan)?;
        if options.on_error == OnError::Skip {
            self.check_errors_apart(&plan)?;
            self.to_the_end(ensure_errors(Arc::clone(&self.engine), relation.shard)).await?;
        }
        let new = Query {
            sql: render::select(&create.select).to_owned(),
            fingerprint: pipeline.fingerprint(),
            options,
            views: views_of(&plan),
            forms: BTreeMap::new(),
            ..Query::clone(&query)
        };
        let (was, was_relation) = (query, Arc::clone(relation));
        let replacement = Replacement { new, pipeline, added, sql: create.sql.clone(), was, was_relation };
        let done = self.to_the_end(switch(Arc::clone(&self.engine), replacement)).await;
        done.map_err(|error| error.at(create.name.position))?;
        Ok(Outcome::Command { tag: format!("CREATE {}", create.kind.keyword()) })
    }

    /// The query that the statement replaces.
    fn replaced(&self, create: &CreateAs, relation: &Relation) -> Result<Arc<Query>> {
        let name = &create.name;
        let word = match relation.kind {
            _ if relation.is_materialized => "materialized view",
            RelationKind::Stream => "stream",
            RelationKind::Table => "table",
        };
        let is_right = match create.kind {
            ObjectKind::MaterializedView => relation.is_materialized,
            kind => kind.relation_kind() == Some(relation.kind) && !relation.is_materialized,
        };
        if !is_right {
            let wanted = create.kind.keyword().to_lowercase();
            let error = SqlError::new(SqlState::WrongObjectType, format!("\"{name}\" is not a {wanted}"));
            return Err(error.detail(format!("it is a {word}")).hint(ANEW).at(name.position));
        }
        let catalog = self.engine.catalog();
        let query = relation.query.and_then(|id| catalog.query_by_id(id)).cloned().ok_or_else(|| {
            let message = format!("{word} \"{name}\" is not written by a query of its own");
            SqlError::new(SqlState::WrongObjectType, message).hint(ANEW).at(name.position)
        })?;
        match query.state {
            QueryState::Terminated => {
                let message = format!("query \"{}\" was terminated", query.name);
                let error = SqlError::new(SqlState::ObjectNotInPrerequisiteState, message);
                Err(error.hint(ANEW).at(name.position))
            }
            _ => Ok(query),
        }
    }

    /// The options of the new query; those of the topic stay.
    fn replaced_options(&self, create: &CreateAs, relation: &Relation, query: &Query) -> Result<QueryOptions> {
        let mut options = bind::ddl::bind_create_as(create, NODES)?.query;
        if let Some(option) = bind::ddl::changed_topic_option(&create.options, &relation.options, NODES)? {
            let what = format!("another {} in CREATE OR REPLACE", option.name);
            return Err(SqlError::unsupported(what, "use ALTER … SET").at(option.position));
        }
        let reset = create.options.find("auto_offset_reset");
        if let Some(option) = reset.filter(|_| options.auto_offset_reset != query.options.auto_offset_reset) {
            let what = "another auto_offset_reset in CREATE OR REPLACE";
            let hint = "leave it out: the query goes on where it is";
            return Err(SqlError::unsupported(what, hint).at(option.position));
        }
        options.auto_offset_reset = query.options.auto_offset_reset;
        Ok(options)
    }

    /// The sources stay, and their order: positions and event time are kept by them.
    fn check_sources(&self, query: &Query, plan: &ContinuousPlan) -> Result<()> {
        let catalog = self.engine.catalog();
        let wanted: Vec<TopicId> = plan.sources.iter().map(|source| source.id).collect();
        if wanted == query.sources {
            return Ok(());
        }
        let names = |ids: &[TopicId]| {
            let names = ids.iter().filter_map(|id| catalog.relation_by_id(*id));
            names.map(|relation| format!("\"{}\"", relation.name)).collect::<Vec<_>>().join(", ")
        };
        let (before, after) = (names(&query.sources), names(&wanted));
        Err(refused(SqlState::FeatureNotSupported, &query.name, format!("it reads {before}, and would read {after}")))
    }
}

/// The columns that the new query has behind those there are.
fn added_columns(create: &CreateAs, relation: &Relation, pipeline: &Pipeline) -> Result<Vec<Column>> {
    let output = named_output(create, pipeline)?;
    let refuse =
        |reason: String| Err(refused(SqlState::InvalidTableDefinition, &create.name, reason).at(create.name.position));
    let part = |column: &Column| match (column.is_key, column.is_hidden) {
        (true, true) => "a hidden part of the key",
        (true, false) => "part of the key",
        (false, true) => "hidden",
        (false, false) => "no part of the key",
    };
    let mut wanted = output.columns.iter();
    for old in &relation.schema.columns {
        let Some(new) = wanted.next() else { return refuse(format!("column \"{}\" would be gone", old.name)) };
        if old.name != new.name {
            return refuse(format!("column \"{}\" would be \"{}\"", old.name, new.name));
        }
        if old.sql_type != new.sql_type {
            let (old_type, new_type) = (&old.sql_type, &new.sql_type);
            return refuse(format!("column \"{}\" of type {old_type} would be of type {new_type}", old.name));
        }
        if (old.is_key, old.is_hidden) != (new.is_key, new.is_hidden) {
            return refuse(format!("column \"{}\" is {}, and would be {}", old.name, part(old), part(new)));
        }
        if old.is_nullable != new.is_nullable {
            return refuse(format!("column \"{}\" would no longer be as strict about NULL", old.name));
        }
    }
    let added: Vec<Column> = wanted.cloned().collect();
    match added.iter().find(|column| column.is_key || column.is_hidden || !column.is_nullable) {
        Some(column) => refuse(format!("column \"{}\" would be added, {}", column.name, part(column))),
        None => Ok(added),
    }
}

/// What takes the place of a query.
struct Replacement {
    new: Query,
    pipeline: Pipeline,
    added: Vec<Column>,
    sql: String,
    /// What was there when the new query was planned.
    was: Arc<Query>,
    was_relation: Arc<Relation>,
}

impl Replacement {
    /// Whether the new query was planned for another one than `old`, or for other columns.
    fn is_outdated(&self, old: &Query, relation: Option<&Arc<Relation>>) -> bool {
        let was = &self.was;
        let is_same = old.sql == was.sql && old.options == was.options && old.forms == was.forms;
        !is_same || relation.is_none_or(|relation| relation.schema != self.was_relation.schema)
    }
}

/// Carries a replacement out.
async fn switch(engine: Arc<Engine>, replacement: Replacement) -> Result<()> {
    let _one_at_a_time = engine.queries.altering.lock().await;
    let id = replacement.new.id;
    let owner = Arc::clone(&engine);
    let work = move |former: String| async move {
        let catalog = owner.catalog();
        let name = &replacement.new.name;
        let old = catalog
            .query_by_id(id)
            .ok_or_else(|| SqlError::new(SqlState::UndefinedObject, format!("query \"{name}\" does not exist")))?;
        let topic = replacement.was_relation.id;
        if replacement.is_outdated(old, catalog.relation_by_id(topic)) {
            let fact = format!("query \"{name}\" was changed by another session meanwhile");
            return Err(SqlError::new(SqlState::SerializationFailure, fact).hint("try again"));
        }
        let Replacement { new, pipeline, added, sql, .. } = replacement;
        let (_, _, before) = query::plan(&owner, old)?;
        pipeline.check_follows(&before).map_err(|reason| refused(SqlState::FeatureNotSupported, &new.name, reason))?;
        owner.propose(Command::ReplaceQuery { query: Box::new(new), former, added, sql }).await?;
        if let Some(relation) = owner.catalog().relation_by_id(topic) {
            owner.ensure_topic(relation).await?;
        }
        Ok(())
    };
    query::while_saved(&engine, id, work).await
}
