//! Changing what there is: `TRUNCATE`, and `ALTER` of streams and tables.
//!
//! Leaves out making and dropping (`ddl`) and the shapes of rows (storage). What continuous queries made of events that
//! are removed stays: they save their state first, so that none of them needs the events again.

use crate::engine::ddl::to_the_end;
use crate::engine::session::Session;
use crate::engine::{Engine, Outcome, Result, query, replication_error};
use crate::replication::ReplicationError;
use millstream_catalog::model::{ShardId, SqlState, TopicId};
use millstream_catalog::{Relation, RelationKind};
use millstream_sql::SqlError;
use millstream_sql::dialect::{Alter, QualifiedName};
use std::collections::BTreeSet;
use std::sync::Arc;

impl Session {
    /// The relation that a statement changes.
    ///
    /// # Errors
    /// 42P01 when there is none.
    pub(crate) fn altered(&self, name: &QualifiedName) -> Result<Arc<Relation>> {
        let catalog = self.engine.catalog();
        let relation = catalog.relation(name.as_str()).filter(|_| self.reaches_public(name));
        relation.cloned().ok_or_else(|| {
            SqlError::new(SqlState::UndefinedTable, format!("relation \"{name}\" does not exist")).at(name.position)
        })
    }

    /// `ALTER`
    pub(crate) async fn alter(&mut self, alter: &Alter) -> Result<Outcome> {
        Err(SqlError::unsupported(
            "ALTER",
            "create a new stream or table and copy the events with INSERT INTO … SELECT",
        )
        .at(alter.name.position))
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
            to_the_end(truncate(Arc::clone(&self.engine), shard, topics)).await?;
        }
        Ok(Outcome::Command { tag: "TRUNCATE TABLE".to_owned() })
    }
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
