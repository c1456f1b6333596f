//! Changing what there is: `TRUNCATE`, and `ALTER` of streams and tables.
//!
//! Leaves out making and dropping (`ddl`) and the shapes of rows (storage). What continuous queries made of events that
//! are removed stays: they save their state first, so that none of them needs the events again.

use crate::engine::ddl::{NODES, check_object_kind};
use crate::engine::session::Session;
use crate::engine::{Engine, Outcome, Result, query, replication_error};
use crate::replication::ReplicationError;
use crate::storage::fit;
use millstream_catalog::model::{ShardId, SqlState, TopicId};
use millstream_catalog::{Column, Command, Relation, RelationChange, RelationKind};
use millstream_sql::dialect::{Alter, AlterAction, ColumnDef, QualifiedName};
use millstream_sql::plan::eval_constant;
use millstream_sql::{SqlError, bind};
use std::collections::BTreeSet;
use std::sync::Arc;

impl Session {
    /// The relation that a statement changes.
    ///
    /// # Errors
    /// 42P01 when there is none.
    pub(crate) fn altered(&self, name: &QualifiedName) -> Result<Arc<Relation>> {
        if self.view_named(name).is_some() {
            let error = SqlError::new(SqlState::WrongObjectType, format!("\"{name}\" is not a stream or table"));
            return Err(error.detail("it is a view").hint("use CREATE OR REPLACE VIEW").at(name.position));
        }
        self.relation(name)
    }

    /// `ALTER STREAM | TABLE | TOPIC`
    pub(crate) async fn alter(&mut self, alter: &Alter) -> Result<Outcome> {
        let word = alter.kind.keyword();
        self.check_definition(&format!("ALTER {word}")).await?;
        let tag = Outcome::Command { tag: format!("ALTER {word}") };
        let relation = match self.altered(&alter.name) {
            Err(error) if alter.if_exists && error.sqlstate == SqlState::UndefinedTable => {
                self.notify("NOTICE", SqlState::SuccessfulCompletion, format!("{}, skipping", error.message));
                return Ok(tag);
            }
            found => found?,
        };
        check_object_kind(alter.kind, "ALTER", &relation, &alter.name)?;
        let changes = self.bind_changes(alter, &relation)?;
        if !changes.is_empty() {
            let engine = Arc::clone(&self.engine);
            let done = self.to_the_end(carry_out(engine, relation.id, changes)).await;
            done.map_err(|error| error.at(alter.name.position))?;
        }
        Ok(tag)
    }

    fn bind_changes(&mut self, alter: &Alter, relation: &Arc<Relation>) -> Result<Vec<RelationChange>> {
        let mut changes = Vec::new();
        let mut added: Vec<Column> = Vec::new();
        // Several actions of one statement build on each other.
        let mut now = Relation::clone(relation);
        for action in &alter.actions {
            match action {
                AlterAction::AddColumn { if_not_exists, column } => {
                    let is_there = |there: &Column| there.name == column.name.name;
                    if *if_not_exists && relation.schema.columns.iter().chain(&added).any(is_there) {
                        let message =
                            format!("column \"{}\" of relation \"{}\" already exists", column.name, alter.name);
                        self.notify("NOTICE", SqlState::DuplicateColumn, format!("{message}, skipping"));
                        continue;
                    }
                    check_own_columns(relation, &alter.name)?;
                    let bound = bind::alter::bind_added(column, relation, &added)?;
                    let fill = self.fill(column, &bound)?;
                    added.push(bound.clone());
                    changes.push(RelationChange::AddColumn { column: bound, fill });
                }
                AlterAction::Rename(name) => {
                    bind::ddl::check_topic_name(name)?;
                    changes.push(RelationChange::Rename(name.name.clone()));
                }
                AlterAction::RenameColumn { from, to } => {
                    bind::ddl::check_column_name(to.as_str(), to.position)?;
                    changes.push(RelationChange::RenameColumn { from: from.name.clone(), to: to.name.clone() });
                }
                AlterAction::Set(options) => {
                    now.options = bind::alter::bind_set(options, &now, NODES)?;
                    changes.push(RelationChange::SetOptions(now.options.clone()));
                }
                AlterAction::Reset(names) => {
                    now.options = bind::alter::bind_reset(names, &now)?;
                    changes.push(RelationChange::SetOptions(now.options.clone()));
                }
            }
        }
        Ok(changes)
    }

    /// What rows written before a column was added have in it: the value its default has now.
    fn fill(&self, def: &ColumnDef, column: &Column) -> Result<Option<String>> {
        let Some(default) = &def.default else { return Ok(None) };
        let context = self.plan_context();
        let eval = || {
            let value = eval_constant(&context, &default.expr, &column.sql_type, &[]);
            value.map_err(|error| error.at(def.constraint_position))
        };
        let value = eval()?;
        if value != eval()? {
            let hint = "add the column without it; rows written before have NULL";
            return Err(SqlError::unsupported("a DEFAULT that differs from row to row, of a column added later", hint)
                .at(def.constraint_position));
        }
        if value.is_null() {
            return match column.is_nullable {
                true => Ok(None),
                false => Err(SqlError::new(
                    SqlState::NotNullViolation,
                    format!("column \"{}\" contains null values", def.name),
                )
                .hint("give it a DEFAULT that is not NULL")
                .at(def.constraint_position)),
            };
        }
        let array = value.to_array().map_err(|error| SqlError::internal(error.to_string()))?;
        fit::encode_fill(&array).map(Some).map_err(|error| SqlError::internal(error.to_string()))
    }

    /// `TRUNCATE`
    pub(crate) async fn truncate(&mut self, names: &[QualifiedName]) -> Result<Outcome> {
        self.check_definition("TRUNCATE").await?;
        let mut topics = BTreeSet::new();
        let mut shard: Option<ShardId> = None;
        for name in names {
            let relation = self.altered(name)?;
            if relation.query.is_some() && relation.kind == RelationKind::Table {
                let message = format!("table \"{name}\" is written by a continuous query");
                return Err(SqlError::new(SqlState::WrongObjectType, message)
                    .hint("truncate what the query reads, or drop the table and create it again")
                    .at(name.position));
            }
            if shard.replace(relation.shard).is_some_and(|other| other != relation.shard) {
                return Err(SqlError::unsupported(
                    "TRUNCATE of topics in several shards",
                    "truncate them one by one, or start the server with --shards 1",
                )
                .at(name.position));
            }
            topics.insert(relation.id);
        }
        if let Some(shard) = shard {
            self.to_the_end(truncate(Arc::clone(&self.engine), shard, topics)).await?;
        }
        Ok(Outcome::Command { tag: "TRUNCATE TABLE".to_owned() })
    }
}

/// The columns of what a query writes are the query's.
fn check_own_columns(relation: &Relation, name: &QualifiedName) -> Result<()> {
    if relation.query.is_none() {
        return Ok(());
    }
    Err(SqlError::new(SqlState::WrongObjectType, format!("relation \"{name}\" is written by a continuous query"))
        .detail("its columns are those of the query")
        .hint("create another with the columns wanted")
        .at(name.position))
}

/// Commits the changes of a definition, and makes the topic and the queries that write it follow.
pub(crate) async fn carry_out(engine: Arc<Engine>, id: TopicId, changes: Vec<RelationChange>) -> Result<()> {
    let _one_at_a_time = engine.queries.altering.lock().await;
    let partitions = |engine: &Engine| engine.catalog().relation_by_id(id).map(|relation| relation.options.partitions);
    let before = partitions(&engine);
    engine.propose(Command::AlterRelation { id, changes }).await?;
    if let Some(relation) = engine.catalog().relation_by_id(id) {
        engine.ensure_topic(relation).await?;
    }
    if before == partitions(&engine) { Ok(()) } else { query::restart_writers(&engine, id).await }
}

/// Forgets the events of `topics`, after the queries that read them have saved what they made of them.
async fn truncate(engine: Arc<Engine>, shard: ShardId, topics: BTreeSet<TopicId>) -> Result<()> {
    let shard = Arc::clone(engine.shard(shard)?);
    let ids: Vec<TopicId> = topics.iter().copied().collect();
    let truncated = query::while_settled(&engine, &topics, async move { Ok(shard.truncate(ids).await) }).await?;
    truncated.map_err(|error| match error {
        ReplicationError::EventsNeeded { query, .. } => {
            let name = engine.catalog().query_by_id(query).map_or_else(String::new, |query| query.name.to_string());
            SqlError::new(SqlState::ObjectInUse, format!("query \"{name}\" still needs stored events"))
                .detail("it has steps that it did not save and cannot repeat now")
                .hint("resume it, or drop it")
        }
        error => replication_error(error),
    })
}
