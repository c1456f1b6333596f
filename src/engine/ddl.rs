//! Creating and dropping relations and continuous queries, and keeping shards in step with the catalog.
//!
//! A definition is one entry of shard 0; its topic and query then get their state in a data shard. A crash
//! between the two is mended by `reconcile` at the next start. Leaves out binding (sql) and running queries
//! (`query`).

use crate::engine::query::ensure_errors;
use crate::engine::session::Session;
use crate::engine::view::check_view_kind;
use crate::engine::{Engine, Outcome, Result, replication_error};
use crate::replication::{ReplicationError, Shard};
use crate::storage::TopicStorage;
use millstream_catalog::model::{Offset, PartitionId, QueryId, ShardId, SqlState, TopicId};
use millstream_catalog::query::{OffsetReset, OnError};
use millstream_catalog::schema::OWN_NAMES;
use millstream_catalog::{
    CatalogError, Command, Query, QueryOptions, QueryState, Relation, RelationKind, Reply, Schema, TopicOptions, View,
};
use millstream_sql::dialect::{
    CreateAs, CreateRelation, Drop, ObjectKind, QualifiedName, QueryAction, QueryControl, Replace, render,
};
use millstream_sql::plan::{ContinuousPlan, PlanContext, plan_continuous};
use millstream_sql::stream::{Output, Pipeline};
use millstream_sql::{SqlError, bind};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

type Positions = Vec<(TopicId, PartitionId, Offset)>;

/// Nodes of a cluster; replication between nodes is not offered yet.
pub(crate) const NODES: u32 = 1;

impl Engine {
    /// Makes the data shards agree with the catalog: after a crash between the two, and after each start.
    pub(crate) async fn reconcile(&self) -> Result<()> {
        let catalog = self.catalog();
        let is_here = |relation: &&Arc<Relation>| self.replication().damage(relation.shard).is_none();
        for relation in catalog.relations().filter(is_here) {
            self.ensure_topic(relation).await?;
        }
        for query in catalog.queries() {
            // One of a damaged shard waits until the shard is whole.
            let sink = catalog.relation_by_id(query.sink);
            if sink.is_some_and(|sink| self.replication().damage(sink.shard).is_some()) {
                continue;
            }
            let shard = self.shard_of_query(query)?;
            if shard.progress(query.id).is_none() {
                self.ensure_query(query).await?;
            }
            self.end_if_terminated(query.id).await?;
        }
        for shard in self.replication().shards().iter().filter(|shard| shard.damage().is_none()) {
            for topic in shard.partitions().topics() {
                if catalog.relation_by_id(topic).is_none() {
                    shard.drop_topic(topic).await.map_err(replication_error)?;
                }
            }
            for query in shard.queries() {
                if catalog.query_by_id(query).is_none() {
                    shard.drop_query(query).await.map_err(replication_error)?;
                }
            }
        }
        Ok(())
    }

    /// The shard that runs `query`: its sink's.
    pub(crate) fn shard_of_query(&self, query: &Query) -> Result<&Arc<Shard>> {
        let catalog = self.catalog();
        let sink = catalog
            .relation_by_id(query.sink)
            .ok_or_else(|| SqlError::internal(format!("query \"{}\" has no sink", query.name)))?;
        self.shard(sink.shard)
    }

    /// The shard of all `sources` of a query.
    ///
    /// # Errors
    /// 0A000 when they are in several.
    pub(crate) fn shard_of_all(&self, sources: &[Arc<Relation>]) -> Result<&Arc<Shard>> {
        let first = sources.first().ok_or_else(|| SqlError::internal("a query without a source"))?;
        if let Some(other) = sources.iter().find(|source| source.shard != first.shard) {
            let what =
                format!("a continuous query over \"{}\" and \"{}\", which are in two shards,", first.name, other.name);
            return Err(SqlError::unsupported(what, "run the server with --shards 1"));
        }
        self.shard_of(first)
    }

    pub(crate) async fn ensure_topic(&self, relation: &Relation) -> Result<()> {
        let shard = self.shard_of(relation)?;
        let topic = TopicStorage {
            topic: relation.id,
            partitions: relation.options.partitions,
            schema: relation.topic_schema(),
            compression: relation.options.compression,
        };
        let stored = match shard.topic(relation.id) {
            None => shard.create_topic(topic).await,
            Some(stored) if stored == topic => Ok(()),
            Some(_) => shard.alter_topic(topic).await,
        };
        stored.map_err(replication_error)?;
        self.groups().grow(relation.id, relation.options.partitions);
        Ok(())
    }

    /// Lets go of the events that a terminated query would read again.
    async fn end_if_terminated(&self, id: QueryId) -> Result<()> {
        let catalog = self.catalog();
        let Some(query) = catalog.query_by_id(id).filter(|query| query.state == QueryState::Terminated) else {
            return Ok(());
        };
        let shard = self.shard_of_query(query)?;
        match shard.progress(id).is_some_and(|progress| progress.checkpoint.is_some()) {
            true => shard.end_query(id).await.map_err(replication_error),
            false => Ok(()),
        }
    }

    async fn ensure_query(&self, query: &Query) -> Result<()> {
        let shard = self.shard_of_query(query)?;
        let mut positions: Positions = Vec::new();
        for source in &query.sources {
            let catalog = self.catalog();
            let Some(source) = catalog.relation_by_id(*source) else { continue };
            for id in source.partitions() {
                let view = shard.partitions().get(source.id, id).map(|partition| partition.view());
                let position = match (view, query.options.auto_offset_reset) {
                    (None, _) => Offset::ZERO,
                    (Some(view), OffsetReset::Earliest) => view.offset_start(),
                    (Some(view), OffsetReset::Latest) => view.offset_end(),
                };
                positions.push((source.id, id, position));
            }
        }
        shard.create_query(query.id, positions).await.map_err(replication_error)
    }

    pub(crate) async fn propose(&self, command: Command) -> Result<Reply> {
        self.replication().catalog().propose(command).await.map_err(catalog_error)
    }

    /// Spreads topics over the data shards.
    fn place(&self) -> ShardId {
        let shards = self.replication().shards().iter().filter(|shard| shard.damage().is_none());
        let catalog = self.catalog();
        let mut load: BTreeMap<ShardId, usize> = shards.map(|shard| (shard.id(), 0)).collect();
        for relation in catalog.relations() {
            // Those of damaged shards are no load of others.
            load.entry(relation.shard).and_modify(|count| *count += 1);
        }
        load.into_iter().min_by_key(|(id, count)| (*count, *id)).map_or(ShardId::new(1), |(id, _)| id)
    }
}

/// Commits a definition, makes its topic, and starts its query.
pub(crate) async fn establish(engine: Arc<Engine>, command: Command) -> Result<()> {
    let Reply::Created { topic, query } = engine.propose(command).await? else {
        return Err(SqlError::internal("unexpected reply of the catalog"));
    };
    let catalog = engine.catalog();
    // Without one, another session has dropped it already.
    if let Some(relation) = catalog.relation_by_id(topic) {
        engine.ensure_topic(relation).await?;
    }
    match query.and_then(|query| catalog.query_by_id(query)) {
        Some(query) => {
            engine.ensure_query(query).await?;
            crate::engine::query::refresh(&engine).await?;
            crate::engine::query::begun(&engine, query.id).await
        }
        None => Ok(()),
    }
}

/// Commits the end of a relation and of what depends on it, and lets their rows go.
async fn abolish(engine: Arc<Engine>, id: TopicId, cascade: bool) -> Result<()> {
    let command = Command::DropRelation { id, cascade, keeps_written: true };
    let Reply::Dropped { relations, queries } = engine.propose(command).await? else {
        return Err(SqlError::internal("unexpected reply of the catalog"));
    };
    crate::engine::query::refresh(&engine).await?;
    for shard in engine.replication().shards().iter().filter(|shard| shard.damage().is_none()) {
        for query in &queries {
            if shard.progress(*query).is_some() {
                shard.drop_query(*query).await.map_err(replication_error)?;
            }
        }
        let held = shard.partitions().topics();
        for (topic, _) in relations.iter().filter(|(topic, _)| held.contains(topic)) {
            shard.drop_topic(*topic).await.map_err(replication_error)?;
        }
    }
    engine.tables().retain(&engine.catalog());
    Ok(())
}

fn catalog_error(error: ReplicationError) -> SqlError {
    let ReplicationError::Catalog(error) = error else { return replication_error(error) };
    let message = error.to_string();
    match error {
        CatalogError::Exists(_) => SqlError::new(SqlState::DuplicateTable, message),
        CatalogError::ColumnExists { .. } => SqlError::new(SqlState::DuplicateColumn, message),
        CatalogError::NoColumn(_) => SqlError::new(SqlState::UndefinedColumn, message),
        CatalogError::QueryExists(_) => {
            SqlError::new(SqlState::DuplicateObject, message).hint("give it another name with WITH (query = '…')")
        }
        CatalogError::NoRelation(_) => SqlError::new(SqlState::UndefinedTable, message),
        CatalogError::NoQuery(_) => SqlError::new(SqlState::UndefinedObject, message),
        CatalogError::InUse { writers, readers, views, .. } => {
            let writers = writers.iter().map(|name| format!("query \"{name}\" writes it"));
            let views = views.iter().map(|name| format!("view \"{name}\" reads it"));
            let readers = readers.iter().map(|name| format!("query \"{name}\" reads it"));
            SqlError::new(SqlState::DependentObjectsStillExist, message)
                .detail(writers.chain(views).chain(readers).collect::<Vec<_>>().join("; "))
                .hint("use DROP … CASCADE to drop the dependent objects too")
        }
        CatalogError::NotView(_) => SqlError::new(SqlState::WrongObjectType, message),
        CatalogError::Circle(name) => SqlError::new(
            SqlState::InvalidObjectDefinition,
            format!("infinite recursion detected in rules for relation \"{name}\""),
        ),
        CatalogError::Misfit(_) => SqlError::new(SqlState::InvalidTableDefinition, message)
            .hint("drop the view and create it again, or create one of another name"),
        CatalogError::Terminated(_) => SqlError::new(SqlState::ObjectNotInPrerequisiteState, message),
        CatalogError::Limit { .. } => SqlError::new(SqlState::ConfigurationLimitExceeded, message),
    }
}

impl Session {
    /// Definitions take effect at once: they cannot wait for COMMIT, nor be rolled back.
    pub(crate) async fn check_definition(&mut self, word: &str) -> Result<()> {
        if self.transaction.is_explicit() {
            return Err(SqlError::new(
                SqlState::ActiveSqlTransaction,
                format!("{word} cannot run inside a transaction block"),
            )
            .hint("run it outside of BEGIN … COMMIT; drivers call this autocommit"));
        }
        if self.transaction.has_writes() {
            return Err(SqlError::new(
                SqlState::ActiveSqlTransaction,
                format!("{word} cannot follow writes in one text or pipeline: they commit together at its end"),
            )
            .hint("send it by itself"));
        }
        Ok(())
    }

    /// Refuses a definition that would be in no schema.
    pub(crate) fn check_public(&self, name: &QualifiedName) -> Result<()> {
        if self.reaches_public(name) {
            return Ok(());
        }
        Err(SqlError::new(SqlState::InvalidSchemaName, "no schema has been selected to create in")
            .hint("streams and tables live in schema \"public\": SET search_path = public")
            .at(name.position))
    }

    /// True when a relation or view of the name exists and that is fine.
    pub(crate) fn exists(&mut self, name: &QualifiedName, if_not_exists: bool) -> Result<bool> {
        self.check_public(name)?;
        let catalog = self.engine.catalog();
        if catalog.relation(name.as_str()).is_none() && catalog.view(name.as_str()).is_none() {
            return Ok(false);
        }
        let message = format!("relation \"{name}\" already exists");
        if !if_not_exists {
            return Err(SqlError::new(SqlState::DuplicateTable, message).at(name.position));
        }
        self.notify("NOTICE", SqlState::DuplicateTable, format!("{message}, skipping"));
        Ok(true)
    }

    /// `CREATE STREAM | TOPIC | TABLE name (…)`
    pub(crate) async fn create_relation(&mut self, create: &CreateRelation) -> Result<Outcome> {
        let word = create.kind.keyword();
        self.check_definition(&format!("CREATE {word}")).await?;
        let tag = Outcome::Command { tag: format!("CREATE {word}") };
        let mut relation = bind::ddl::bind_relation(create, self.engine.clock().now(), NODES)?;
        self.check_defaults(create, &relation)?;
        if self.exists(&create.name, create.if_not_exists)? {
            return Ok(tag);
        }
        relation.shard = self.engine.place();
        let command = Command::CreateRelation { relation: Box::new(relation), query: None };
        match self.to_the_end(establish(Arc::clone(&self.engine), command)).await {
            Ok(()) => {}
            Err(error) if error.sqlstate == SqlState::DuplicateTable && create.if_not_exists => {}
            Err(error) => return Err(error.at(create.name.position)),
        }
        Ok(tag)
    }

    /// A default must be a constant expression of its column's type.
    fn check_defaults(&self, create: &CreateRelation, relation: &Relation) -> Result<()> {
        let context = self.plan_context();
        for (def, column) in create.columns.iter().zip(&relation.schema.columns) {
            if let Some(default) = &def.default {
                millstream_sql::plan::eval_constant(&context, &default.expr, &column.sql_type, &[])
                    .map_err(|error| error.at(def.constraint_position))?;
            }
        }
        Ok(())
    }

    /// The plan that `plan` makes, and its pipeline.
    pub(crate) async fn pipeline(
        &self,
        plan: impl FnOnce(&PlanContext) -> Result<ContinuousPlan> + Send + 'static,
    ) -> Result<(ContinuousPlan, Pipeline)> {
        let context = self.plan_context();
        let planned = async move {
            let plan = plan(&context)?;
            let pipeline = Pipeline::plan(&plan)?;
            Ok((plan, pipeline))
        };
        self.engine.compute.run(planned).await
    }

    /// `CREATE STREAM | TABLE | MATERIALIZED VIEW name AS SELECT …`
    pub(crate) async fn create_as(&mut self, create: &CreateAs) -> Result<Outcome> {
        let word = create.kind.keyword();
        self.check_definition(&format!("CREATE {word}")).await?;
        let tag = Outcome::Command { tag: format!("CREATE {word}") };
        if create.replace == Replace::Yes {
            self.check_public(&create.name)?;
            if let Some(relation) = self.engine.catalog().relation(create.name.as_str()) {
                return self.replace_query(create, relation).await;
            }
        }
        if self.exists(&create.name, create.if_not_exists)? {
            return Ok(tag);
        }
        let bound = bind::ddl::bind_create_as(create, NODES)?;
        let (select, options) = (create.select.clone(), bound.query.clone());
        let (plan, pipeline) = self.pipeline(move |context| plan_continuous(context, &select, &options)).await?;
        if pipeline.is_unbounded() {
            let hint = "add WITHIN, a range of event times, or WITH (state_retention = '…')";
            self.notify_hint("this query keeps every event of the streams it joins", hint);
        }
        let (relation, query) = self.define(create, bound.topic, bound.query, &plan, &pipeline)?;
        if query.options.on_error == OnError::Skip {
            self.check_errors_apart(&plan)?;
            self.to_the_end(ensure_errors(Arc::clone(&self.engine), relation.shard)).await?;
        }
        let command = Command::CreateRelation { relation: Box::new(relation), query: Some(Box::new(query)) };
        match self.to_the_end(establish(Arc::clone(&self.engine), command)).await {
            Ok(()) => {}
            Err(error) if error.sqlstate == SqlState::DuplicateTable && create.if_not_exists => {}
            Err(error) => return Err(error.at(create.name.position)),
        }
        Ok(tag)
    }

    fn define(
        &self,
        create: &CreateAs,
        topic: TopicOptions,
        options: QueryOptions,
        plan: &ContinuousPlan,
        pipeline: &Pipeline,
    ) -> Result<(Relation, Query)> {
        let output = named_output(create, pipeline)?;
        bind::ddl::check_materialized(&create.options, &topic, output.kind)?;
        let shard = self.engine.shard_of_all(&plan.sources)?.id();
        let now = self.engine.clock().now();
        let relation = Relation {
            id: TopicId::default(),
            name: create.name.name.clone(),
            kind: output.kind,
            schema: Schema { columns: output.columns },
            timestamp: None,
            watermark_delay: None,
            options: topic,
            shard,
            query: None,
            created_at: now,
            sql: render::create_as(create).to_owned(),
            fills: Default::default(),
            row_ids: None,
            is_materialized: create.kind == ObjectKind::MaterializedView,
        };
        let query = Query {
            id: QueryId::default(),
            name: create.name.name.clone(),
            sql: render::select(&create.select).to_owned(),
            sources: plan.sources.iter().map(|source| source.id).collect(),
            sink: TopicId::default(),
            fingerprint: pipeline.fingerprint(),
            state: QueryState::Running,
            options,
            created_at: now,
            target: None,
            forms: BTreeMap::new(),
            views: views_of(plan),
            former: None,
        };
        Ok((relation, query))
    }

    /// `DROP`
    pub(crate) async fn drop_relations(&mut self, drop: &Drop) -> Result<Outcome> {
        let word = drop.kind.keyword();
        self.check_definition(&format!("DROP {word}")).await?;
        let mut ids = BTreeSet::new();
        for name in &drop.names {
            let catalog = self.engine.catalog();
            if let Some(view) = self.view_named(name) {
                check_view_kind(drop.kind, "DROP", name)?;
                ids.insert(view.id);
                continue;
            }
            match catalog.relation(name.as_str()).filter(|_| self.reaches_public(name)) {
                Some(relation) if relation.name.as_str().starts_with(OWN_NAMES) => {
                    let message = format!("cannot drop stream \"{name}\": it is the server's own");
                    let error = SqlError::new(SqlState::WrongObjectType, message).hint("TRUNCATE it");
                    return Err(error.at(name.position));
                }
                Some(relation) => {
                    check_object_kind(drop.kind, "DROP", relation, name)?;
                    ids.insert(relation.id);
                }
                None if drop.if_exists => self.notify(
                    "NOTICE",
                    SqlState::SuccessfulCompletion,
                    format!("{} \"{name}\" does not exist, skipping", word.to_lowercase()),
                ),
                None => {
                    let message = format!("{} \"{name}\" does not exist", word.to_lowercase());
                    return Err(SqlError::new(SqlState::UndefinedTable, message).at(name.position));
                }
            }
        }
        // Readers before what they read, so that `DROP a, b` needs no CASCADE when b reads a.
        let mut left: Vec<TopicId> = ids.into_iter().rev().collect();
        while let Some((refused, count)) = self.abolish_all(&mut left, drop.cascade).await? {
            // A view that was replaced may read what is newer.
            if left.len() == count {
                return Err(refused);
            }
        }
        Ok(Outcome::Command { tag: format!("DROP {word}") })
    }

    /// Drops what it can of `ids`, in order; those that others read stay, and the first error with how many there were.
    async fn abolish_all(&self, ids: &mut Vec<TopicId>, cascade: bool) -> Result<Option<(SqlError, usize)>> {
        let (mut refused, count) = (None, ids.len());
        for id in std::mem::take(ids) {
            match self.to_the_end(abolish(Arc::clone(&self.engine), id, cascade)).await {
                Ok(()) => {}
                // Gone with an earlier one of the list.
                Err(error) if error.sqlstate == SqlState::UndefinedTable => {}
                Err(error) if error.sqlstate == SqlState::DependentObjectsStillExist => {
                    ids.push(id);
                    refused.get_or_insert((error, count));
                }
                Err(error) => return Err(error),
            }
        }
        Ok(refused)
    }

    /// `PAUSE | RESUME | TERMINATE QUERY name`
    pub(crate) async fn control_query(&mut self, control: &QueryControl) -> Result<Outcome> {
        let (word, state) = match control.action {
            QueryAction::Pause => ("PAUSE", QueryState::Paused),
            QueryAction::Resume => ("RESUME", QueryState::Running),
            QueryAction::Terminate => ("TERMINATE", QueryState::Terminated),
        };
        self.check_definition(&format!("{word} QUERY")).await?;
        let catalog = self.engine.catalog();
        let query = catalog.query(control.name.as_str()).ok_or_else(|| {
            SqlError::new(SqlState::UndefinedObject, format!("query \"{}\" does not exist", control.name))
                .at(control.name.position)
        })?;
        let (engine, id) = (Arc::clone(&self.engine), query.id);
        self.to_the_end(async move {
            engine.propose(Command::SetQueryState { id, state }).await?;
            crate::engine::query::refresh(&engine).await?;
            engine.end_if_terminated(id).await
        })
        .await?;
        Ok(Outcome::Command { tag: format!("{word} QUERY") })
    }

    /// Carries a definition out to its end, whatever becomes of the statement that asked for it: a relation that the
    /// catalog has and the shard has not could not be written. Meanwhile the statement is not cancelled.
    pub(crate) async fn to_the_end(&self, work: impl Future<Output = Result<()>> + Send + 'static) -> Result<()> {
        self.entry.handed().set(true);
        let done = crate::env::spawn("definition", work).await;
        self.entry.handed().set(false);
        done.unwrap_or_else(|_| Err(SqlError::internal("a definition was not carried out to its end")))
    }

    /// `FLUSH`
    pub(crate) async fn flush(&mut self) -> Result<Outcome> {
        if self.transaction.is_implicit() {
            self.commit_before().await?;
        }
        crate::engine::query::flush(&self.engine).await?;
        Ok(Outcome::Command { tag: "FLUSH".to_owned() })
    }
}

/// What the query gives, under the names that the statement gives the first columns.
pub(crate) fn named_output(create: &CreateAs, pipeline: &Pipeline) -> Result<Output> {
    let mut output = pipeline.output().clone();
    check_kind(create, output.kind)?;
    let names = create.columns.as_deref().unwrap_or_default();
    if names.len() > output.selected {
        return Err(SqlError::syntax("too many column names were specified").at(create.name.position));
    }
    for (column, name) in output.columns.iter_mut().zip(names) {
        bind::ddl::check_column_name(name.as_str(), name.position)?;
        column.name = name.name.clone();
    }
    output.check_storable()?;
    Ok(output)
}

/// The views that a query is made over, as they are now.
pub(crate) fn views_of(plan: &ContinuousPlan) -> BTreeMap<TopicId, View> {
    plan.views.iter().map(|view| (view.id, View::clone(view))).collect()
}

fn check_kind(create: &CreateAs, kind: RelationKind) -> Result<()> {
    match (create.kind.relation_kind(), kind) {
        (Some(RelationKind::Stream), RelationKind::Table) => {
            Err(SqlError::new(SqlState::WrongObjectType, "an aggregate gives a table, not a stream")
                .hint("write CREATE TABLE … AS SELECT")
                .at(create.name.position))
        }
        (Some(RelationKind::Table), RelationKind::Stream) => {
            Err(SqlError::new(SqlState::WrongObjectType, "a projection of a stream gives a stream, not a table")
                .hint("write CREATE STREAM … AS SELECT, or group the rows")
                .at(create.name.position))
        }
        _ => Ok(()),
    }
}

/// Refuses to DROP or ALTER by the word of another kind of relation.
pub(crate) fn check_object_kind(kind: ObjectKind, verb: &str, relation: &Relation, name: &QualifiedName) -> Result<()> {
    // The name of a materialized view is changed as that of the stream or table it is.
    let is_materialized = relation.is_materialized && verb == "DROP";
    let is_right = match kind {
        ObjectKind::Topic => true,
        ObjectKind::MaterializedView => is_materialized,
        kind => kind.relation_kind() == Some(relation.kind) && !is_materialized,
    };
    if is_right {
        return Ok(());
    }
    let (is, word) = match relation.kind {
        _ if is_materialized => ("materialized view", "MATERIALIZED VIEW"),
        RelationKind::Stream => ("stream", "STREAM"),
        RelationKind::Table => ("table", "TABLE"),
    };
    let wanted = kind.keyword().to_lowercase();
    Err(SqlError::new(SqlState::WrongObjectType, format!("\"{name}\" is not a {wanted}"))
        .detail(format!("it is a {is}"))
        .hint(format!("use {verb} {word}"))
        .at(name.position))
}
