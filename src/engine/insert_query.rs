//! `INSERT INTO … SELECT … EMIT CHANGES`: one more continuous query that writes a relation there is.
//!
//! Owns its checks and how its rows become the relation's. Leaves out its steps (`query`) and the catalog. A crash ends
//! the statement; what it proposed is there or is not.

use crate::engine::ddl::{establish, views_of};
use crate::engine::query::{QUERY_ERRORS, ensure_errors, writes};
use crate::engine::session::Session;
use crate::engine::write::{self, Routed};
use crate::engine::{Engine, Outcome, Result};
use arrow::array::RecordBatch;
use millstream_catalog::model::{Name, QueryId, SqlState, Timestamp, TopicId};
use millstream_catalog::query::OnError;
use millstream_catalog::{Command, Query, QueryOptions, QueryState, Relation, RelationKind, Snapshot, SqlType};
use millstream_sql::bind::insert::{InsertRows, InsertSelect, literal_columns};
use millstream_sql::dialect::{Ident, InsertQuery, Position, Select, render};
use millstream_sql::plan::{ContinuousPlan, PlanContext, eval_constant, plan_insert_query};
use millstream_sql::{SqlError, bind};
use sqlparser::ast;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// How the rows of a query become rows of the relation it inserts into.
#[derive(Debug)]
pub(crate) struct Target {
    binding: InsertSelect,
    relation: Arc<Relation>,
}

impl Target {
    /// The columns that `query` gives, of `relation`.
    ///
    /// # Errors
    /// As of INSERT … SELECT.
    pub(crate) fn new(
        relation: &Arc<Relation>,
        columns: &[Name],
        plan: &ContinuousPlan,
        select: &Select,
        context: &PlanContext,
    ) -> Result<Self> {
        let columns: Vec<Ident> =
            columns.iter().map(|name| Ident { name: name.clone(), position: Position::UNKNOWN }).collect();
        let mut eval = |expr: &ast::Expr, sql_type: &SqlType| eval_constant(context, expr, sql_type, &[]);
        let literals = literal_columns(select);
        let binding = InsertSelect::plan(relation, Some(&columns), &plan.columns, &literals, &mut eval)?;
        Ok(Self { binding, relation: Arc::clone(relation) })
    }

    /// `rows` as the pipeline gives them, by partition.
    ///
    /// # Errors
    /// As of INSERT … SELECT.
    pub(crate) fn route(
        &mut self,
        engine: &Engine,
        rows: &RecordBatch,
        count: usize,
        now: Timestamp,
    ) -> Result<Routed> {
        let shape = |error| SqlError::internal(format!("rows of a query have another shape: {error}"));
        let given = rows.project(&(0..count).collect::<Vec<_>>()).map_err(shape)?;
        let InsertRows { batch, rowtime } = self.binding.rows(&given)?;
        // A column that has the event time wins, as in INSERT; else it is that of the query's row.
        let rowtime = match (rowtime, self.relation.timestamp) {
            (None, None) => rows.columns().get(count).cloned(),
            (rowtime, _) => rowtime,
        };
        write::route(engine, &self.relation, InsertRows { batch, rowtime }, now)
    }
}

/// Plans `select`, whose rows go into `columns` of `relation`: what those cannot take is an error of the event.
///
/// # Errors
/// As [`plan_insert_query`], and of INSERT … SELECT.
pub(crate) fn plan_into(
    context: &PlanContext,
    select: &Select,
    options: &QueryOptions,
    relation: &Arc<Relation>,
    columns: &[Name],
) -> Result<ContinuousPlan> {
    let plain = plan_insert_query(context, select, options, &[])?;
    let target = Target::new(relation, columns, &plain, select, context)?;
    plan_insert_query(context, select, options, &target.binding.assignments())
}

impl Session {
    /// Makes the query and starts it.
    pub(crate) async fn insert_query(&mut self, insert: &InsertQuery) -> Result<Outcome> {
        self.check_definition("INSERT … EMIT CHANGES").await?;
        let relation = self.target(&insert.name)?;
        let options = QueryOptions { on_error: insert.on_error, ..QueryOptions::default() };
        let (select, planned) = (insert.select.clone(), options.clone());
        let (plan, pipeline) = self.pipeline(move |context| plan_insert_query(context, &select, &planned, &[])).await?;
        bind::ddl::check_makes_nothing(&insert.select)?;
        if pipeline.output().kind != RelationKind::Stream {
            let hint = "use CREATE TABLE … AS SELECT, which takes rows back";
            return Err(SqlError::unsupported("INSERT of rows that change", hint).at(insert.name.position));
        }
        let columns = match &insert.columns {
            Some(columns) => columns.iter().map(|column| column.name.clone()).collect(),
            None => {
                let shown = relation.schema.columns.iter().filter(|column| !column.is_hidden);
                shown.take(plan.columns.len()).map(|column| column.name.clone()).collect::<Vec<_>>()
            }
        };
        Target::new(&relation, &columns, &plan, &insert.select, &self.plan_context())?.binding.check(&insert.select)?;
        let mut all = plan.sources.clone();
        all.push(Arc::clone(&relation));
        self.engine.shard_of_all(&all)?;
        self.check_circle(&relation, &plan)?;
        if options.on_error == OnError::Skip {
            self.check_errors_apart(&plan)?;
            self.to_the_end(ensure_errors(Arc::clone(&self.engine), relation.shard)).await?;
        }
        let (select, planned) = (insert.select.clone(), options.clone());
        let (into, named) = (Arc::clone(&relation), columns.clone());
        let planned = self.pipeline(move |context| plan_into(context, &select, &planned, &into, &named)).await?;
        let (plan, pipeline) = planned;
        let query = Query {
            id: QueryId::default(),
            name: match &insert.query {
                Some(query) => query.name.clone(),
                None => self.free_query_name(&relation)?,
            },
            sql: render::select(&insert.select).to_owned(),
            sources: plan.sources.iter().map(|source| source.id).collect(),
            sink: relation.id,
            fingerprint: pipeline.fingerprint(),
            state: QueryState::Running,
            options,
            created_at: self.engine.clock().now(),
            target: Some(columns),
            forms: BTreeMap::new(),
            views: views_of(&plan),
            former: None,
        };
        let command = Command::CreateQuery { query: Box::new(query) };
        self.to_the_end(establish(Arc::clone(&self.engine), command)).await?;
        Ok(Outcome::Command { tag: "INSERT 0 0".to_owned() })
    }

    /// Refuses a query that would read what it writes, through others too.
    fn check_circle(&self, sink: &Relation, plan: &ContinuousPlan) -> Result<()> {
        let catalog = self.engine.catalog();
        let mut read: BTreeSet<TopicId> = plan.sources.iter().map(|source| source.id).collect();
        read_by(&catalog, &mut read);
        if !read.contains(&sink.id) {
            return Ok(());
        }
        let fact = format!("the query would read what it writes into \"{}\"", sink.name);
        Err(SqlError::new(SqlState::InvalidObjectDefinition, fact).hint("insert into another stream or table"))
    }

    /// Refuses a query that would leave events out because of those it left out before.
    pub(crate) fn check_errors_apart(&self, plan: &ContinuousPlan) -> Result<()> {
        let catalog = self.engine.catalog();
        let mut read: BTreeSet<TopicId> = plan.sources.iter().map(|source| source.id).collect();
        read_by(&catalog, &mut read);
        let own = catalog.relation(QUERY_ERRORS).filter(|own| read.contains(&own.id));
        match own {
            None => Ok(()),
            Some(_) => {
                let fact = "a query with on_error = 'skip' would read what it leaves out";
                let hint = "leave on_error out, or read another stream than millstream.query_errors";
                Err(SqlError::new(SqlState::InvalidObjectDefinition, fact).hint(hint))
            }
        }
    }

    fn free_query_name(&self, relation: &Relation) -> Result<Name> {
        let catalog = self.engine.catalog();
        let base: String = relation.name.as_str().chars().take(40).collect();
        let mut names = (1..).map(|number| format!("insert_{base}_{number}"));
        let free = names.find(|name| !catalog.queries().any(|query| query.name.as_str() == name.as_str()));
        Ok(Name::new(free.unwrap_or_default())?)
    }
}

/// Adds to `read` all that queries read to write what is in it, through others too.
fn read_by(catalog: &Snapshot, read: &mut BTreeSet<TopicId>) {
    loop {
        let writes = catalog.queries().filter(|query| read.iter().any(|topic| writes(catalog, query, *topic)));
        let more: Vec<TopicId> =
            writes.flat_map(|query| query.sources.iter().copied()).filter(|topic| !read.contains(topic)).collect();
        if more.is_empty() {
            return;
        }
        read.extend(more);
    }
}
