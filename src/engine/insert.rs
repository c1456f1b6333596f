//! INSERT in a session: rows from values, parameters or a query, appended as one statement.
//!
//! Leaves out conversions (sql) and event times and partitions (`write`). All rows of a statement become
//! visible together, or none does.

use crate::engine::bulk::Bulk;
use crate::engine::change::has_conflicts;
use crate::engine::prepare::{InsertTarget, Plan, Planned, Prepared, Returned, ReturnedSource};
use crate::engine::producer::Numbered;
use crate::engine::session::Session;
use crate::engine::transaction::Leaving;
use crate::engine::write::{self, Routed};
use crate::engine::{Idle, Outcome, Param, Result, ResultColumn, Rows, RowsTag, replication_error};
use crate::replication::{Append, PartitionWrite, ProducerClaim, ReplicationError};
use crate::storage::batch::batch_bytes;
use arrow::array::{ArrayRef, RecordBatch};
use arrow::datatypes::DataType;
use datafusion::common::ScalarValue;
use futures::StreamExt;
use futures::future::BoxFuture;
use millstream_catalog::model::{ByteSize, Durability, Offset, Sequence, ShardId, SqlState, Timestamp};
use millstream_catalog::schema::{OWN_NAMES, ROWOFFSET, ROWPARTITION, ROWTIME};
use millstream_catalog::{Relation, SqlType};
use millstream_sql::bind::insert::{InsertPlan, InsertSelect, literal_columns, select_types};
use millstream_sql::dialect::{Insert, InsertSource, Parsed, QualifiedName, Select, SequenceValue, Statement};
use millstream_sql::plan::eval_constant;
use millstream_sql::{SqlError, types};
use sqlparser::ast;
use std::sync::Arc;
use std::time::Duration;

/// How often a write is tried again whose keys a transaction holds that is about to commit: for about 50 s. Each time takes a
/// sync.
pub(crate) const PREPARED_WAITS_MAX: u32 = 1_000;
/// The longest wait before it.
const PREPARED_WAIT_MAX: Duration = Duration::from_millis(50);

/// Ends when a queued statement is committed, or was refused. Dropping it changes nothing.
pub type Commit = BoxFuture<'static, Result<()>>;

impl Session {
    /// The relation a statement writes.
    ///
    /// # Errors
    /// 42P01 when there is none, 0A000 when it is a view, 42809 when a continuous query writes it.
    pub(crate) fn target(&self, name: &QualifiedName) -> Result<Arc<Relation>> {
        self.check_no_view(name, "insert into")?;
        let relation = self.relation(name)?;
        if relation.name.as_str().starts_with(OWN_NAMES) {
            let message = format!("stream \"{name}\" is written by the server");
            return Err(SqlError::new(SqlState::WrongObjectType, message).at(name.position));
        }
        if relation.query.is_some() {
            return Err(SqlError::new(
                SqlState::WrongObjectType,
                format!("relation \"{name}\" is written by a continuous query"),
            )
            .hint("insert into what the query reads")
            .at(name.position));
        }
        Ok(relation)
    }

    pub(crate) async fn plan_insert(&self, insert: &Insert, declared: &[Option<SqlType>]) -> Result<Planned> {
        let relation = self.target(&insert.name)?;
        if let Some(conflict) = &insert.conflict
            && has_conflicts(&relation, conflict)?
        {
            return Box::pin(self.plan_upsert(insert, conflict, declared)).await;
        }
        let returning = returning(&relation, &insert.returning)?;
        let declared = &with_sequence(declared, insert.sequence);
        let columns = returned_columns(&returning);
        let rows = match &insert.source {
            InsertSource::Values(rows) => rows.as_slice(),
            InsertSource::DefaultValues => &[],
            InsertSource::Select(select) => {
                let declared = select_types(&relation, insert.columns.as_deref(), select, declared)?;
                return Ok((self.plan_pull(select, &declared).await?.params, columns, Plan::Late));
            }
        };
        let context = self.plan_context();
        let mut eval = |expr: &ast::Expr, sql_type: &SqlType| eval_constant(&context, expr, sql_type, &[]);
        let plan = match &insert.source {
            InsertSource::DefaultValues => InsertPlan::defaults(&relation, declared, &mut eval)?,
            _ => InsertPlan::plan(&relation, insert.columns.as_deref(), rows, declared, &mut eval)?,
        };
        let params = plan.params().to_vec();
        Ok((params, columns, Plan::Insert(InsertTarget { relation, plan, returning, sequence: insert.sequence })))
    }

    /// `INSERT`
    pub(crate) async fn insert(&mut self, insert: &Insert, prepared: &Prepared, params: Vec<Param>) -> Result<Outcome> {
        self.transaction.check_writable("INSERT")?;
        if let Some(conflict) = &insert.conflict
            && has_conflicts(&*self.target(&insert.name)?, conflict)?
        {
            return Box::pin(self.upsert(insert, conflict, prepared, params)).await;
        }
        if let InsertSource::Select(select) = &insert.source {
            let sequence = insert.sequence.map(|sequence| sequence_value(sequence, &prepared.params, &params));
            return Box::pin(self.insert_select(insert, select, (prepared, &params), sequence.transpose()?)).await;
        }
        let is_current = prepared
            .insert_relation()
            .is_some_and(|it| self.engine.catalog().relation(insert.name.as_str()).is_some_and(|r| Arc::ptr_eq(r, it)));
        if !is_current {
            let declared: Vec<Option<SqlType>> = prepared.params.iter().cloned().map(Some).collect();
            let (_, columns, plan) = self.plan_insert(insert, &declared).await?;
            prepared.check_columns(columns.as_deref())?;
            return self.insert_planned(&plan, &params).await;
        }
        self.insert_planned(&prepared.plan, &params).await
    }

    async fn insert_planned(&mut self, plan: &Plan, params: &[Param]) -> Result<Outcome> {
        let Plan::Insert(target) = plan else { return Err(SqlError::internal("an INSERT has no plan")) };
        let (routed, claim) = self.planned_rows(target, params)?;
        self.write(&target.relation, routed, claim, &target.returning).await
    }

    /// Whether a statement is of the kind that [`Session::ahead_shard`] may allow.
    pub fn may_run_ahead(parsed: &Parsed) -> bool {
        matches!(&parsed.statement, Statement::Insert(insert) if insert.returning.is_empty())
    }

    /// The shard that an INSERT can be queued for without waiting for its commit: one by itself, of values, that
    /// returns nothing, whose definition still stands and whose table takes INSERTs now.
    pub fn ahead_shard(&self, prepared: &Prepared) -> Option<ShardId> {
        let Plan::Insert(target) = &prepared.plan else { return None };
        let parsed = prepared.parsed().ok()?;
        let Statement::Insert(insert) = &parsed.statement else { return None };
        let is_current = || {
            let catalog = self.engine.catalog();
            catalog
                .relation(insert.name.as_str())
                .is_some_and(|it| Arc::ptr_eq(it, &target.relation) || **it == *target.relation)
        };
        let is_free = !self.settings.implicit_flush()
            && !self.transaction.is_open()
            && !self.engine.row_locks.is_closed(target.relation.id);
        (is_free && target.returning.is_empty() && is_current() && self.engine.is_made(&target.relation))
            .then_some(target.relation.shard)
    }

    /// Runs an INSERT that [`Session::ahead_shard`] allows up to its place in the queue of its shard: the tag, and what
    /// ends when it is committed. INSERTs of one shard are committed in the order of these calls; so one that meets a key of a
    /// transaction that is about to commit is refused (40001), not tried again behind those that follow it.
    ///
    /// # Errors
    /// Of the rows; nothing is queued then.
    pub async fn insert_ahead(&mut self, prepared: &Prepared, params: Vec<Param>) -> Result<(String, Commit)> {
        prepared.check_param_count(params.len())?;
        let Plan::Insert(target) = &prepared.plan else { return Err(SqlError::internal("an INSERT has no plan")) };
        let (routed, claim) = self.planned_rows(target, &params)?;
        let count: usize = routed.iter().map(|routed| routed.row_count).sum();
        let tag = format!("INSERT 0 {count}");
        let parts: Vec<_> = routed.into_iter().flat_map(|routed| routed.parts).collect();
        if parts.is_empty() {
            return Ok((tag, Box::pin(std::future::ready(Ok(())))));
        }
        let (claims, now) = (claim.into_iter().collect(), self.engine.clock().now());
        let durability = self.durability_of(&parts, self.settings.durability());
        let append = Append { parts, claims, now, durability, ..Append::default() };
        let queued = self.engine.shard(target.relation.shard)?.append_ahead(append).await.map_err(replication_error)?;
        Ok((tag, Box::pin(async move { queued.await.map_err(replication_error) })))
    }

    /// The rows of an INSERT of values, and what its producer says of them.
    fn planned_rows(&self, target: &InsertTarget, params: &[Param]) -> Result<(Vec<Routed>, Option<ProducerClaim>)> {
        let now = self.engine.clock().now();
        let rows = {
            let context = target.plan.needs_eval().then(|| self.plan_context());
            let mut eval =
                |expr: &ast::Expr, sql_type: &SqlType, values: &[datafusion::common::ScalarValue]| match &context {
                    Some(context) => eval_constant(context, expr, sql_type, values),
                    None => Err(SqlError::internal("an expression was not planned for")),
                };
            target.plan.rows(params, &mut eval)?
        };
        let relation = &target.relation;
        let sequence = target.sequence.map(|it| sequence_value(it, target.plan.params(), params)).transpose()?;
        let Some(sequence) = sequence else {
            return Ok((vec![write::route(&self.engine, relation, rows, now)?], None));
        };
        let mut numbered = self.number(relation, sequence)?;
        Ok((numbered.route(&self.engine, relation, rows, now)?, numbered.finish()))
    }

    async fn insert_select(
        &mut self,
        insert: &Insert,
        select: &Select,
        (prepared, params): (&Prepared, &[Param]),
        sequence: Option<Sequence>,
    ) -> Result<Outcome> {
        let relation = self.target(&insert.name)?;
        let returning = returning(&relation, &insert.returning)?;
        prepared.check_columns(returned_columns(&returning).as_deref())?;
        let mut rows = self.run_select(select, prepared.arguments(params)?).await?;
        let mut binding = {
            let context = self.plan_context();
            let mut eval = |expr: &ast::Expr, sql_type: &SqlType| eval_constant(&context, expr, sql_type, &[]);
            let literals = literal_columns(select);
            InsertSelect::plan(&relation, insert.columns.as_deref(), &rows.columns, &literals, &mut eval)?
        };
        let now = self.engine.clock().now();
        let mut numbered = sequence.map(|sequence| self.number(&relation, sequence)).transpose()?;
        let mut routed = Vec::new();
        let mut bytes = ByteSize::ZERO;
        let mut held = self.engine.holding.share();
        let mut bulk = Bulk::new(&self.engine);
        while let Some(batch) = rows.stream.next().await {
            let batch = batch?;
            let rows = binding.rows(&batch)?;
            let new = match &mut numbered {
                Some(numbered) => numbered.route(&self.engine, &relation, rows, now)?,
                None => vec![write::route(&self.engine, &relation, rows, now)?],
            };
            if returning.is_empty() {
                bulk.push(new);
                if bulk.is_full() {
                    bulk.flush(self, &relation).await?;
                }
                continue;
            }
            bytes = bytes.plus(batch_bytes(&batch));
            check_bytes(bytes)?;
            held.set(bytes)?;
            routed.extend(new);
        }
        let claim = numbered.and_then(Numbered::finish);
        if returning.is_empty() {
            let count = bulk.finish(self, &relation, claim).await?;
            return Ok(Outcome::Command { tag: format!("INSERT 0 {count}") });
        }
        self.write(&relation, routed, claim, &returning).await
    }

    /// Appends routed rows, or holds them back within a transaction.
    async fn write(
        &mut self,
        relation: &Relation,
        routed: Vec<Routed>,
        claim: Option<ProducerClaim>,
        returning: &[Returned],
    ) -> Result<Outcome> {
        let needs_place = returning.iter().any(|r| !matches!(r.source, ReturnedSource::Stored(_)));
        if needs_place && self.transaction.is_pipeline() {
            // Each answer is wanted at its place, so it cannot wait for Sync.
            self.commit_before().await?;
        } else if needs_place && self.transaction.is_open() {
            return Err(SqlError::unsupported(
                "RETURNING rowpartition or rowoffset inside a transaction block",
                "offsets are assigned at COMMIT: send the INSERT by itself, outside of BEGIN",
            ));
        }
        let parts: Vec<_> = routed.iter().flat_map(|routed| routed.parts.iter().cloned()).collect();
        let bases = if needs_place {
            self.append_now(relation, parts, claim).await?
        } else {
            self.append(relation, parts, claim).await?
        };
        let Some(columns) = returned_columns(returning) else {
            let count: usize = routed.iter().map(|routed| routed.row_count).sum();
            return Ok(Outcome::Command { tag: format!("INSERT 0 {count}") });
        };
        let mut bases = bases.into_iter();
        let mut batches = Vec::with_capacity(routed.len());
        for routed in &routed {
            let own: Vec<Offset> = bases.by_ref().take(routed.parts.len()).collect();
            batches.extend(returned_rows(routed, returning, &own)?);
        }
        let stream = Box::pin(futures::stream::iter(batches.into_iter().map(|batch| Ok(batch.into()))));
        Ok(Outcome::Rows(Rows {
            columns,
            tag: RowsTag::Counted("INSERT 0"),
            is_push: false,
            stream,
            idle: Idle::default(),
            receipts: None,
        }))
    }

    /// Appends and gives the offset of each part's first row; within a transaction holds back, and gives none.
    pub(crate) async fn append(
        &mut self,
        relation: &Relation,
        parts: Vec<PartitionWrite>,
        claim: Option<ProducerClaim>,
    ) -> Result<Vec<Offset>> {
        if self.transaction.is_open() && !parts.is_empty() {
            let parts = (parts, Leaving::AtEnd);
            self.transaction.hold(&self.engine.holding, relation.shard, parts, claim)?;
            return Ok(Vec::new());
        }
        self.append_now(relation, parts, claim).await
    }

    pub(super) async fn append_now(
        &self,
        relation: &Relation,
        parts: Vec<PartitionWrite>,
        claim: Option<ProducerClaim>,
    ) -> Result<Vec<Offset>> {
        if parts.is_empty() {
            return Ok(Vec::new());
        }
        let claims: Vec<ProducerClaim> = claim.into_iter().collect();
        let now = if claims.is_empty() { Timestamp::default() } else { self.engine.clock().now() };
        let durability = self.durability_of(&parts, self.settings.durability());
        let append = Append { parts, claims, now, durability, ..Append::default() };
        if !self.transaction.has_locks() {
            self.pass_barriers(&append).await;
        }
        let offsets = self.append_to(relation.shard, append).await?;
        if self.settings.implicit_flush() {
            self.flush_written().await?;
        }
        Ok(offsets)
    }

    /// Waits while INSERTs into a table are held back. Whoever has locked rows must not: those behind the barrier may wait
    /// for them.
    pub(crate) async fn pass_barriers(&self, append: &Append) {
        if !has_guards(append) {
            self.engine.row_locks.pass(append.parts.iter().map(|part| part.topic)).await;
        }
    }

    /// When writes are acknowledged: as the session `wanted`, else as the topics say; together, as the strictest says.
    pub(crate) fn durability_of(&self, parts: &[PartitionWrite], wanted: Option<Durability>) -> Durability {
        let catalog = self.engine.catalog();
        let of = |part: &PartitionWrite| {
            catalog.relation_by_id(part.topic).map_or(Durability::Sync, |relation| relation.options.durability)
        };
        wanted.unwrap_or_else(|| parts.iter().map(of).fold(Durability::Async, Durability::and))
    }

    /// Commits writes as one; the offset of each part's first row, none when all rows were stored before.
    pub(crate) async fn append_to(&self, shard: ShardId, append: Append) -> Result<Vec<Offset>> {
        let shard = self.engine.shard(shard)?;
        let mut waits = 0;
        loop {
            let committed = match shard.begin(append.clone()).await {
                Ok(committed) => self.outcome(committed).await,
                Err(error) => Err(error),
            };
            match committed {
                Ok(appended) => return Ok(appended.offsets),
                // Rows that depend on nothing wait for the end of the transaction that has their keys.
                Err(ReplicationError::Changed(_)) if is_free(&append) && waits < PREPARED_WAITS_MAX => {
                    wait_for_prepared(&mut waits).await;
                }
                Err(ReplicationError::GroupHeld(_)) if waits < PREPARED_WAITS_MAX => {
                    wait_for_prepared(&mut waits).await
                }
                Err(error) => self.mend(error).await?,
            }
        }
    }

    /// Commits writes to several shards as one.
    pub(crate) async fn append_across(&self, appends: Vec<(ShardId, Append)>) -> Result<()> {
        for (shard, _) in &appends {
            // Its error says more of a shard that is not here.
            self.engine.shard(*shard)?;
        }
        let is_free = appends.iter().all(|(_, append)| is_free(append));
        let mut waits = 0;
        loop {
            match self.outcome(self.engine.replication().append_across(appends.clone())).await {
                Ok(()) => return Ok(()),
                Err(ReplicationError::Changed(_)) if is_free && waits < PREPARED_WAITS_MAX => {
                    wait_for_prepared(&mut waits).await;
                }
                Err(ReplicationError::GroupHeld(_)) if waits < PREPARED_WAITS_MAX => {
                    wait_for_prepared(&mut waits).await
                }
                Err(error) => self.mend(error).await?,
            }
        }
    }

    /// Awaits what becomes of writes that were handed to the log. Meanwhile, and once they are there, the statement is not
    /// cancelled: it would be told that nothing was written.
    async fn outcome<T>(
        &self,
        committed: impl Future<Output = std::result::Result<T, ReplicationError>>,
    ) -> std::result::Result<T, ReplicationError> {
        self.entry.handed().set(true);
        let committed = committed.await;
        self.entry.handed().set(committed.is_ok());
        committed
    }

    /// Makes what another session defined or altered just now, and the catalog has before the shard.
    ///
    /// # Errors
    /// Any other error.
    async fn mend(&self, error: ReplicationError) -> Result<()> {
        match error {
            ReplicationError::NoTopic(topic)
            | ReplicationError::NoPartition(topic, _)
            | ReplicationError::TopicBehind(topic) => {
                let catalog = self.engine.catalog();
                let relation = catalog.relation_by_id(topic);
                let relation = relation.ok_or_else(|| replication_error(ReplicationError::NoTopic(topic)))?;
                self.engine.ensure_topic(relation).await
            }
            error => Err(replication_error(error)),
        }
    }
}

/// A moment, longer each time: for a transaction that is about to commit to do so.
pub(crate) async fn wait_for_prepared(waits: &mut u32) {
    tokio::time::sleep(Duration::from_millis(1 << (*waits).min(16)).min(PREPARED_WAIT_MAX)).await;
    *waits += 1;
}

/// The columns of what an INSERT returns; `None` when that is nothing.
fn returned_columns(returning: &[Returned]) -> Option<Arc<[ResultColumn]>> {
    (!returning.is_empty()).then(|| returning.iter().map(|it| it.column.clone()).collect())
}

fn has_guards(append: &Append) -> bool {
    append.parts.iter().any(|part| part.guard.is_some())
}

/// Whether it can be tried again as it is.
fn is_free(append: &Append) -> bool {
    !has_guards(append) && append.staged.is_none()
}

/// Parameter types with that of a sequence that is a parameter.
fn with_sequence(declared: &[Option<SqlType>], sequence: Option<SequenceValue>) -> Vec<Option<SqlType>> {
    let mut declared = declared.to_vec();
    if let Some(SequenceValue::Param(index)) = sequence {
        declared.resize(declared.len().max(index + 1), None);
        declared[index].get_or_insert(SqlType::BigInt);
    }
    declared
}

/// The number a statement's first row has.
fn sequence_value(sequence: SequenceValue, types: &[SqlType], params: &[Param]) -> Result<Sequence> {
    let index = match sequence {
        SequenceValue::Number(number) => return Ok(number),
        SequenceValue::Param(index) => index,
    };
    let (Some(sql_type), Some(param)) = (types.get(index), params.get(index)) else {
        return Err(SqlError::internal("a parameter was not planned for"));
    };
    let value = match &param.value {
        None => ScalarValue::Null,
        Some(bytes) if param.is_binary => types::scalar_binary(sql_type, bytes)?,
        Some(bytes) => types::scalar_text(sql_type, bytes)?,
    };
    match value.cast_to(&DataType::Int64) {
        Ok(ScalarValue::Int64(Some(number))) if number >= 0 => Ok(Sequence::new(number as u64)),
        _ => Err(SqlError::new(SqlState::InvalidParameterValue, "a sequence is a whole number from 0")
            .detail(format!("parameter ${}", index + 1))),
    }
}

/// 54000 when a statement's rows are more than one entry may hold.
pub(crate) fn check_bytes(bytes: ByteSize) -> Result<()> {
    use millstream_catalog::model::limit::STATEMENT_ROWS_BYTES_MAX;
    if bytes <= STATEMENT_ROWS_BYTES_MAX {
        return Ok(());
    }
    Err(SqlError::new(SqlState::ProgramLimitExceeded, "the rows of the statement are too large")
        .detail(format!("a statement may write {STATEMENT_ROWS_BYTES_MAX} bytes"))
        .hint("write them in several statements"))
}

/// The columns of a `RETURNING` list.
fn returning(relation: &Relation, items: &[ast::SelectItem]) -> Result<Vec<Returned>> {
    let at = |error: SqlError, ident: &ast::Ident| error.at(ident.span.start.column as usize);
    let mut returned = Vec::new();
    for item in items {
        match item {
            ast::SelectItem::UnnamedExpr(ast::Expr::Identifier(ident)) => {
                returned.push(returned_column(relation, &ident.value, None).map_err(|error| at(error, ident))?);
            }
            ast::SelectItem::ExprWithAlias { expr: ast::Expr::Identifier(ident), alias } => {
                returned.push(
                    returned_column(relation, &ident.value, Some(&alias.value)).map_err(|error| at(error, ident))?,
                );
            }
            ast::SelectItem::Wildcard(_) => {
                for column in relation.schema.columns.iter().filter(|column| !column.is_hidden) {
                    returned.push(returned_column(relation, column.name.as_str(), None)?);
                }
            }
            _ => {
                return Err(SqlError::unsupported(
                    "an expression in RETURNING",
                    "return columns, rowtime, rowpartition and rowoffset",
                ));
            }
        }
    }
    Ok(returned)
}

fn returned_column(relation: &Relation, name: &str, alias: Option<&str>) -> Result<Returned> {
    let stored = relation.schema.columns.len();
    let (source, sql_type, origin) = match name {
        ROWTIME => (ReturnedSource::Stored(stored), SqlType::TimestampTz, None),
        ROWPARTITION => (ReturnedSource::Partition, SqlType::Integer, None),
        ROWOFFSET => (ReturnedSource::Offset, SqlType::BigInt, None),
        name => {
            let (at, column) = relation
                .schema
                .find(name)
                .ok_or_else(|| SqlError::new(SqlState::UndefinedColumn, format!("column \"{name}\" does not exist")))?;
            (ReturnedSource::Stored(at), column.sql_type.clone(), Some((relation.id, at)))
        }
    };
    let column = ResultColumn { name: alias.unwrap_or(name).to_owned(), sql_type, source: origin };
    Ok(Returned { column, source })
}

/// What `RETURNING` shows of routed rows; nothing when there are none.
fn returned_rows(routed: &Routed, returning: &[Returned], bases: &[Offset]) -> Result<Option<RecordBatch>> {
    let Some(stored) = &routed.stored else { return Ok(None) };
    let (partitions, offsets) = routed.places(bases);
    let column = |r: &Returned| -> ArrayRef {
        match r.source {
            ReturnedSource::Stored(at) => Arc::clone(stored.column(at)),
            ReturnedSource::Partition => Arc::clone(&partitions),
            ReturnedSource::Offset => Arc::clone(&offsets),
        }
    };
    let columns = returning.iter().map(|r| (r.column.name.clone(), column(r), true));
    let batch = RecordBatch::try_from_iter_with_nullable(columns);
    batch.map(Some).map_err(|error| SqlError::internal(format!("rows cannot be formed: {error}")))
}
