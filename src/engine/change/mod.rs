//! UPDATE, DELETE and INSERT … ON CONFLICT in a session: rows found, new forms computed, written if nothing changed since.
//!
//! Each attempt reads what is committed, computes, locks the rows, and looks whether they changed meanwhile; then the write
//! carries the position it was computed at, and is refused when it is applied after another write of the same rows. So no
//! update is lost, whatever the order; a statement by itself is computed anew and does not fail. Leaves out planning (sql),
//! locks (`row_lock`) and the refusal (replication). A crash before the append forgets the statement.

mod attempt;
mod own_rows;
mod plans;
mod returning;
mod row_ids;
mod source;
#[cfg(test)]
mod tests;
mod update;
mod upsert;

use crate::engine::alter::carry_out;
use crate::engine::held::Held;
use crate::engine::insert::check_bytes;
use crate::engine::prepare::{Arguments, Moment, Plan, Planned, Prepared};
use crate::engine::session::Session;
use crate::engine::write::Routed;
use crate::engine::{Idle, Outcome, Result, ResultColumn, Rows, RowsTag};
use crate::replication::PartitionWrite;
use crate::storage::batch::batch_bytes;
use arrow::array::RecordBatch;
use arrow::compute::concat_batches;
use arrow::datatypes::Schema;
use datafusion::common::ScalarValue;
use futures::StreamExt;
use millstream_catalog::model::{ByteSize, SqlState, Timestamp};
use millstream_catalog::{QueryState, Relation, RelationChange, RelationKind, SqlType};
use millstream_sql::SqlError;
use millstream_sql::dialect::{Change, Select, Target};
use millstream_sql::exec::{self, RunningPlan};
use millstream_sql::plan::{PlanContext, PlannedSelect, plan_select};
use plans::{ANOTHER_TIME, Known, Plans};
use returning::Returning;
use source::{TargetSource, internal};
use std::sync::Arc;
use update::Update;
use upsert::Upsert;

pub(crate) use own_rows::OwnRows;
pub(crate) use plans::KeptPlans;
pub(crate) use row_ids::settled;
pub(crate) use upsert::has_conflicts;

/// What a statement does to rows of one table.
enum Work<'a> {
    Update(Update<'a>),
    Upsert(Upsert<'a>),
}

/// New forms of rows, not yet written.
struct Computed {
    /// Rows that go.
    tombstones: Routed,
    /// Rows that come, or come in a new form.
    new: Routed,
    /// What RETURNING shows, as a scan of the table has it; of new rows without their places.
    shown: RecordBatch,
}

impl Computed {
    fn parts(&mut self) -> impl Iterator<Item = &mut PartitionWrite> {
        self.tombstones.parts.iter_mut().chain(&mut self.new.parts)
    }
}

/// What a statement did.
struct Done {
    count: usize,
    rows: Option<RecordBatch>,
}

/// The result of a query that was run to its end.
struct Found {
    columns: Vec<ResultColumn>,
    rows: RecordBatch,
    ran: Option<RunningPlan>,
}

impl Session {
    /// Plans an UPDATE or DELETE.
    pub(crate) async fn plan_change(&self, change: &Change, declared: &[Option<SqlType>]) -> Result<Planned> {
        let relation = self.changed_table(&change.target, change.kind.keyword())?;
        let update = Update::bind(&relation, change)?;
        let moment = Moment::now(&self.engine, &self.settings);
        let plans = self.plans(change, &update, &update.param_types(declared), moment.at()).await?;
        update.check(&plans.find.columns)?;
        let declared: Vec<Option<SqlType>> = plans.find.params.iter().cloned().map(Some).collect();
        let (params, columns) = Returning::describe(plans.returning.as_ref(), &declared);
        let kept = match params.len() == declared.len() {
            true => KeptPlans::described(moment, plans),
            false => KeptPlans::default(),
        };
        Ok((params, columns, Plan::Change(kept)))
    }

    /// Plans of a statement whose parameters have these types, at a time.
    async fn plans(
        &self,
        change: &Change,
        update: &Update<'_>,
        declared: &[Option<SqlType>],
        now: Timestamp,
    ) -> Result<Plans> {
        let source = self.target_source(update.relation());
        let context = PlanContext { now, ..self.reading(&source) };
        let (select, types) = (update.select(), declared.to_vec());
        let find = self.engine.compute.run(async move { plan_select(&context, &select, &types) }).await?;
        let declared: Vec<Option<SqlType>> = find.params.iter().cloned().map(Some).collect();
        let items = (&change.target, change.returning.as_slice());
        let returning = Returning::plan(self, (&source, now), items, &declared).await;
        Ok(Plans { source, find: Arc::new(find), returning: returning.map_err(|error| of_from(error, change))? })
    }

    /// The plans of an execution: those the statement keeps, or new ones.
    async fn plans_now(
        &self,
        change: &Change,
        update: &Update<'_>,
        kept: &KeptPlans,
        types: Vec<SqlType>,
    ) -> Result<Arc<Plans>> {
        let known = kept.take(&self.engine, &self.settings);
        if let Known::Plans(plans) = known {
            return Ok(plans);
        }
        let declared: Vec<Option<SqlType>> = types.into_iter().map(Some).collect();
        let (version, now) = (self.engine.catalog().version(), self.engine.clock().now());
        let plans = Arc::new(self.plans(change, update, &declared, now).await?);
        if let Known::Again = known {
            let others = self.plans(change, update, &declared, now.plus(ANOTHER_TIME)).await?;
            kept.keep((version, &self.settings), &plans, &others);
        }
        Ok(plans)
    }

    /// `UPDATE`, `DELETE`
    pub(crate) async fn change(
        &mut self,
        change: &Change,
        prepared: &Prepared,
        arguments: Arguments,
    ) -> Result<Outcome> {
        let (done, plans, _) = self.run_change(change, Some(prepared), arguments).await?;
        Ok(outcome(change.kind.keyword(), done, plans.returning.as_ref()))
    }

    /// `EXPLAIN ANALYZE` of an UPDATE or DELETE, which runs it.
    pub(crate) async fn explain_change(&mut self, change: &Change, arguments: Arguments) -> Result<Vec<String>> {
        let begun = self.engine.clock().now();
        let (done, _, ran) = self.run_change(change, None, arguments).await?;
        let millis = (self.engine.clock().now().micros() - begun.micros()) as f64 / 1e3;
        let rows = done.rows.map_or(0, |rows| rows.num_rows());
        let word = if change.kind.keyword() == "DELETE" { "Delete" } else { "Update" };
        let first = format!("{word} on {}  (actual time={millis:.3} rows={rows})", change.target.name);
        Ok(std::iter::once(first).chain(ran.into_iter().map(|line| format!("  {line}"))).collect())
    }

    /// Runs the statement: what it did, its plans, and what the query that found the rows did.
    async fn run_change(
        &mut self,
        change: &Change,
        prepared: Option<&Prepared>,
        arguments: Arguments,
    ) -> Result<(Done, Arc<Plans>, Vec<String>)> {
        let unkept = KeptPlans::default();
        let kept = match prepared.map(|prepared| &prepared.plan) {
            Some(Plan::Change(kept)) => kept,
            _ => &unkept,
        };
        let keyword = change.kind.keyword();
        self.transaction.check_writable(keyword)?;
        let relation = self.changed_table(&change.target, keyword)?;
        let relation = if relation.lacks_key() { self.with_row_ids(relation).await? } else { relation };
        let Arguments { types, values } = arguments;
        let update = Update::bind(&relation, change)?;
        let plans = self.plans_now(change, &update, kept, types).await?;
        if let Some(prepared) = prepared {
            prepared.check_columns(plans.returning.as_ref().map(|returning| &*returning.columns))?;
        }
        let work = Work::Update(update.by(&plans.find));
        let done = self.carry_out(&work, &plans.source, &values, plans.returning.as_ref()).await?;
        let Work::Update(update) = &work else { return Err(SqlError::internal("another statement was run")) };
        Ok((done, Arc::clone(&plans), update.ran()))
    }

    /// The query that finds the rows of a statement, for EXPLAIN.
    pub(crate) fn changed_select(&self, change: &Change) -> Result<(&'static str, Select)> {
        let relation = self.changed_table(&change.target, change.kind.keyword())?;
        let update = Update::bind(&relation, change)?;
        Ok((if update.is_delete() { "Delete" } else { "Update" }, update.select()))
    }

    /// The table a statement changes.
    ///
    /// # Errors
    /// As of [`Session::target`]; 0A000 for a stream.
    fn changed_table(&self, target: &Target, keyword: &str) -> Result<Arc<Relation>> {
        self.check_no_view(&target.name, if keyword == "DELETE" { "delete from" } else { "update" })?;
        let relation = self.target(&target.name)?;
        let position = target.name.position;
        if relation.kind == RelationKind::Stream {
            return Err(SqlError::unsupported(
                format!("{keyword} of stream \"{}\"", relation.name),
                "events are not changed: write a new one, or keep the rows in a table",
            )
            .at(position));
        }
        Ok(relation)
    }

    /// A table without a key, once its rows can change.
    ///
    /// # Errors
    /// 0A000 while a continuous query reads it that was made before rows of such tables could change.
    async fn with_row_ids(&self, relation: Arc<Relation>) -> Result<Arc<Relation>> {
        let catalog = self.engine.catalog();
        if relation.row_ids.is_none() {
            let reads = |query: &&Arc<millstream_catalog::Query>| {
                query.sources.contains(&relation.id) && query.state != QueryState::Terminated
            };
            if let Some(query) = catalog.queries().find(reads) {
                return Err(SqlError::unsupported(
                    format!("changing rows of table \"{}\", which query \"{}\" reads,", relation.name, query.name),
                    "the query was made when its rows could not change: drop it and make it again",
                ));
            }
        }
        if relation.row_ids.is_some() {
            return Ok(relation);
        }
        // Made before rows of such tables could change.
        let carried_out = carry_out(Arc::clone(&self.engine), relation.id, vec![RelationChange::AddRowIds]);
        self.to_the_end(carried_out).await?;
        let relation = self.engine.catalog().relation_by_id(relation.id).cloned();
        relation.ok_or_else(|| SqlError::new(SqlState::UndefinedTable, "the table was dropped meanwhile"))
    }

    /// A table as it is committed now.
    fn target_source(&self, relation: &Arc<Relation>) -> Arc<TargetSource> {
        Arc::new(TargetSource::new(self.log_source(), relation))
    }

    /// What a query over the table is planned with.
    fn reading(&self, source: &Arc<TargetSource>) -> PlanContext {
        PlanContext { source: Arc::clone(source) as _, ..self.plan_context() }
    }

    /// Runs a query to its end.
    async fn run_whole(
        &self,
        context: PlanContext,
        select: Select,
        (declared, values): (&[Option<SqlType>], &[ScalarValue]),
        held: &mut Held,
    ) -> Result<Found> {
        let (planning, types) = (context.clone(), declared.to_vec());
        let planned = self.engine.compute.run(async move { plan_select(&planning, &select, &types) }).await?;
        self.run_plan(context, Arc::new(planned), values, held).await
    }

    /// Runs a planned query to its end.
    async fn run_plan(
        &self,
        context: PlanContext,
        planned: Arc<PlannedSelect>,
        values: &[ScalarValue],
        held: &mut Held,
    ) -> Result<Found> {
        let values = values.to_vec();
        let _stop = context.settings.interrupts.stop_on_drop();
        let (columns, batches, ran) = self
            .engine
            .compute
            .run(async move {
                let mut running = exec::start(&context, &planned, values).await?;
                let (mut batches, mut bytes) = (Vec::new(), ByteSize::ZERO);
                while let Some(batch) = running.rows.next().await {
                    let batch = batch?;
                    bytes = bytes.plus(batch_bytes(&batch));
                    check_bytes(bytes)?;
                    batches.push(batch);
                }
                Ok((planned.columns.clone(), batches, running.plan))
            })
            .await?;
        let bytes = batches.iter().fold(ByteSize::ZERO, |sum, batch| sum.plus(batch_bytes(batch)));
        held.set(bytes)?;
        let fields: Vec<_> = columns.iter().map(|column| column.sql_type.field(&column.name, true)).collect();
        let schema = Arc::new(Schema::new(fields));
        let named = |batch: RecordBatch| RecordBatch::try_new(Arc::clone(&schema), batch.columns().to_vec());
        let batches: Vec<RecordBatch> =
            batches.into_iter().map(named).collect::<std::result::Result<_, _>>().map_err(internal)?;
        Ok(Found { columns, rows: concat_batches(&schema, &batches).map_err(internal)?, ran: Some(ran) })
    }
}

impl Work<'_> {
    /// Whether rows get their places by being written.
    fn gives_places(&self) -> bool {
        !matches!(self, Self::Update(update) if update.is_delete())
    }

    async fn compute(
        &self,
        session: &Session,
        source: &Arc<TargetSource>,
        values: &[ScalarValue],
        held: &mut Held,
    ) -> Result<Computed> {
        match self {
            Self::Update(update) => update.compute(session, source, values, held).await,
            Self::Upsert(upsert) => upsert.compute(session, source, values, held).await,
        }
    }
}

/// An error of RETURNING, in a statement that has other tables too.
fn of_from(error: SqlError, change: &Change) -> SqlError {
    let is_name = matches!(error.sqlstate, SqlState::UndefinedTable | SqlState::UndefinedColumn);
    if change.from.is_empty() || !is_name {
        return error;
    }
    let position = error.position;
    let error = SqlError::unsupported(
        "RETURNING a column of FROM or USING",
        format!("return columns of \"{}\"", change.target.shown()),
    );
    SqlError { position, ..error }
}

fn outcome(keyword: &'static str, done: Done, returning: Option<&Returning>) -> Outcome {
    match (returning, done.rows) {
        (Some(returning), Some(rows)) => Outcome::Rows(Rows {
            columns: Arc::clone(&returning.columns),
            tag: RowsTag::Counted(keyword),
            is_push: false,
            stream: Box::pin(futures::stream::iter([Ok(rows.into())])),
            idle: Idle::default(),
            receipts: None,
        }),
        _ => Outcome::Command { tag: format!("{keyword} {}", done.count) },
    }
}
