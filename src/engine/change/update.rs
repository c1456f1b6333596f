//! UPDATE and DELETE: the rows a query finds, in their new form.
//!
//! Leaves out attempts and locks (`mod`).

use super::returning::{check_committed, names_offset};
use super::row_ids;
use super::source::{TargetSource, internal};
use super::{Computed, Found};
use crate::engine::held::Held;
use crate::engine::session::Session;
use crate::engine::table::ROWS_AT_ONCE_MAX;
use crate::engine::write::{self, Routed};
use crate::engine::{Engine, Result, ResultColumn};
use crate::storage::KeySet;
use arrow::array::{
    ArrayRef, AsArray, BooleanArray, Int32Array, Int64Array, RecordBatch, TimestampMicrosecondArray, new_null_array,
};
use arrow::compute::filter_record_batch;
use arrow::datatypes::{Int32Type, Int64Type};
use datafusion::common::ScalarValue;
use millstream_catalog::model::{SqlState, Timestamp};
use millstream_catalog::{Relation, SqlType};
use millstream_sql::SqlError;
use millstream_sql::bind::change::{ChangePlan, InsertRows};
use millstream_sql::dialect::{Change, ChangeKind, Select};
use millstream_sql::exec::RunningPlan;
use millstream_sql::plan::{PlannedSelect, scan_schema};
use millstream_sql::types::ColumnEncoder;
use parking_lot::Mutex;
use sqlparser::ast::Expr;
use std::collections::HashSet;
use std::sync::Arc;

/// An UPDATE or DELETE bound to its table.
pub(super) struct Update<'a> {
    change: &'a Change,
    forms: Arc<Forms>,
    /// Whether what it computes depends on where rows are.
    names_offset: bool,
    /// The query that finds the rows, once it is planned.
    find: Option<Arc<PlannedSelect>>,
    /// What the last attempt's query did.
    ran: Mutex<Option<RunningPlan>>,
}

/// What becomes of rows that were found.
struct Forms {
    relation: Arc<Relation>,
    plan: ChangePlan,
    is_delete: bool,
    /// A row may be found several times.
    is_joined: bool,
}

impl<'a> Update<'a> {
    pub(super) fn bind(relation: &Arc<Relation>, change: &'a Change) -> Result<Self> {
        let plan = match &change.kind {
            ChangeKind::Update(assignments) => ChangePlan::new(relation, assignments)?,
            ChangeKind::Delete(rowtime) => {
                if let (Some(_), Some(column)) = (rowtime, relation.timestamp) {
                    let name = &relation.schema.columns[column].name;
                    return Err(SqlError::unsupported(
                        format!("DELETE … WITH (rowtime = …) from table \"{}\"", relation.name),
                        format!("leave it out: the event time of the table's rows is column \"{name}\""),
                    ));
                }
                ChangePlan::rowtime(relation, rowtime.as_deref())?
            }
        };
        let names = |expr: &Expr| names_offset(expr, &change.target);
        let in_values = match &change.kind {
            ChangeKind::Update(assignments) => assignments.iter().filter_map(|it| it.value.as_ref()).any(names),
            ChangeKind::Delete(_) => names_offset(&change.returning, &change.target),
        };
        let names_offset = in_values || change.selection.as_ref().is_some_and(names);
        let (is_delete, is_joined) = (matches!(change.kind, ChangeKind::Delete(_)), !change.from.is_empty());
        let forms = Arc::new(Forms { relation: Arc::clone(relation), plan, is_delete, is_joined });
        Ok(Self { change, forms, names_offset, find: None, ran: Mutex::default() })
    }

    pub(super) fn relation(&self) -> &Arc<Relation> {
        &self.forms.relation
    }

    pub(super) fn is_delete(&self) -> bool {
        self.forms.is_delete
    }

    /// The query that finds the rows.
    pub(super) fn select(&self) -> Select {
        self.forms.plan.select(&self.change.target, self.change.from.clone(), self.change.selection.clone())
    }

    pub(super) fn param_types(&self, declared: &[Option<SqlType>]) -> Vec<Option<SqlType>> {
        self.forms.plan.param_types(declared)
    }

    pub(super) fn check(&self, columns: &[ResultColumn]) -> Result<()> {
        self.forms.plan.check(columns)
    }

    /// Runs `find` to find the rows.
    pub(super) fn by(self, find: &Arc<PlannedSelect>) -> Self {
        Self { find: Some(Arc::clone(find)), ..self }
    }

    /// What the query that found the rows did, for `EXPLAIN ANALYZE`.
    pub(super) fn ran(&self) -> Vec<String> {
        self.ran.lock().as_ref().map(RunningPlan::lines).unwrap_or_default()
    }

    pub(super) async fn compute(
        &self,
        session: &Session,
        source: &Arc<TargetSource>,
        values: &[ScalarValue],
        held: &mut Held,
    ) -> Result<Computed> {
        let find = self.find.as_ref().ok_or_else(|| SqlError::internal("an UPDATE has no plan"))?;
        let mut found = session.run_plan(session.reading(source), Arc::clone(find), values, held).await?;
        *self.ran.lock() = found.ran.take();
        if self.names_offset {
            check_committed(found.rows.column(self.forms.plan.found_columns() - 1))?;
        }
        let is_much = found.rows.num_rows() as u64 > ROWS_AT_ONCE_MAX || !self.forms.is_at_hand(source);
        let (forms, engine, source) = (Arc::clone(&self.forms), Arc::clone(&session.engine), Arc::clone(source));
        let now = engine.clock().now();
        session.engine.compute.run_if(is_much, move || forms.of(&engine, &source, found, now)).await
    }
}

impl Forms {
    /// Whether what it looks up is in memory.
    fn is_at_hand(&self, source: &TargetSource) -> bool {
        self.is_delete || self.relation.row_ids.is_some() || source.is_folded()
    }

    /// The new forms of found rows, or what ends them.
    fn of(&self, engine: &Engine, source: &TargetSource, mut found: Found, now: Timestamp) -> Result<Computed> {
        if self.is_joined {
            found.rows = first_of_each(&found.rows, self.plan.found_columns())?;
        }
        match self.is_delete {
            true => self.deleted(engine, &found, now),
            false => self.updated(engine, source, &found, now),
        }
    }

    fn deleted(&self, engine: &Engine, found: &Found, now: Timestamp) -> Result<Computed> {
        let rowtime = self.plan.rowtimes(&found.rows, &found.columns)?;
        let rowtime = rowtime.map(|rowtime| write::not_null(rowtime, "rowtime", &self.relation)).transpose()?;
        let tombstones = match self.relation.row_ids {
            Some(at) => self.ends(&found.rows, at, rowtime, now)?,
            None => {
                let tombstones = tombstones(&self.relation, &found.rows, rowtime, now)?;
                write::route_stored(&self.relation, tombstones, &engine.spreader)?
            }
        };
        let shown = found.rows.columns().iter().take(self.plan.found_columns()).cloned().collect();
        let shown = RecordBatch::try_new(scan_schema(&self.relation), shown).map_err(internal)?;
        Ok(Computed { tombstones, new: Routed::default(), shown })
    }

    fn updated(&self, engine: &Engine, source: &TargetSource, found: &Found, now: Timestamp) -> Result<Computed> {
        let rows = self.plan.rows(&found.rows, &found.columns)?;
        if let Some(at) = self.relation.row_ids {
            let new = self.renamed(engine, (rows, &found.rows), at, now)?;
            return Ok(Computed { tombstones: Routed::default(), shown: shown(&self.relation, &new)?, new });
        }
        let new = write::route(engine, &self.relation, rows, now)?;
        let shown = shown(&self.relation, &new)?;
        let moved = self.moved(source, found, new.stored.as_ref())?;
        let tombstones = match moved {
            Some(left) => {
                write::route_stored(&self.relation, tombstones(&self.relation, &left, None, now)?, &engine.spreader)?
            }
            None => Routed::default(),
        };
        Ok(Computed { tombstones, new, shown })
    }

    /// New forms of `found` rows of a table without a key, each in the partition it was in.
    fn renamed(
        &self,
        engine: &Engine,
        (rows, found): (InsertRows, &RecordBatch),
        at: usize,
        now: Timestamp,
    ) -> Result<Routed> {
        let places = self.plan.found_columns() - 2;
        let mut columns = rows.batch.columns().to_vec();
        row_ids::name_rows(&mut columns, at, &row_ids::ids_of(found, at, places + 1), false)?;
        let batch = RecordBatch::try_new(rows.batch.schema(), columns).map_err(internal)?;
        let places = row_ids::partitions_of(found.column(places));
        write::route_to(engine, &self.relation, (InsertRows { batch, ..rows }, &places), now)
    }

    /// Events by which `found` rows of a table without a key go: what they were, for those that must not be NULL.
    fn ends(&self, found: &RecordBatch, at: usize, rowtime: Option<ArrayRef>, now: Timestamp) -> Result<Routed> {
        let places = self.plan.found_columns() - 2;
        let count = self.relation.schema.columns.len();
        let mut columns: Vec<ArrayRef> = found.columns().iter().take(count).cloned().collect();
        row_ids::name_rows(&mut columns, at, &row_ids::ids_of(found, at, places + 1), true)?;
        let times = || TimestampMicrosecondArray::from_value(now.micros(), found.num_rows()).with_timezone("UTC");
        columns.push(rowtime.unwrap_or_else(|| Arc::new(times())));
        let stored = RecordBatch::try_new(self.relation.topic_schema(), columns).map_err(internal)?;
        write::split(&self.relation, stored, &row_ids::partitions_of(found.column(places)))
    }

    /// The found rows whose keys nothing has any more.
    ///
    /// # Errors
    /// 23505 when a new key is another row's.
    fn moved(&self, source: &TargetSource, found: &Found, new: Option<&RecordBatch>) -> Result<Option<RecordBatch>> {
        let Some(new) = new else { return Ok(None) };
        let key = self.relation.schema.key();
        let old_keys = KeySet::new(&found.rows, &key).map_err(internal)?;
        let new_keys = KeySet::new(new, &key).map_err(internal)?;
        let mut seen = HashSet::new();
        for (row, bytes) in new_keys.keys_of(new).map_err(internal)?.into_iter().enumerate() {
            if !seen.insert(bytes) {
                return Err(duplicate(&self.relation, new, row));
            }
        }
        let is_there = old_keys.has(new).map_err(internal)?;
        let comes: BooleanArray = is_there.iter().map(|is| Some(!is)).collect();
        if comes.true_count() > 0 {
            let arrivals = filter_record_batch(new, &comes).map_err(internal)?;
            let existing = source.rows_of(&KeySet::new(&arrivals, &key).map_err(internal)?, &arrivals)?;
            if existing.num_rows() > 0 {
                return Err(duplicate(&self.relation, &existing, 0));
            }
        }
        let leaves = new_keys.has(&found.rows).map_err(internal)?;
        let leaves: BooleanArray = leaves.into_iter().map(|stays| Some(!stays)).collect();
        filter_record_batch(&found.rows, &leaves).map(Some).map_err(internal)
    }
}

/// New rows as a scan has them, their places unknown.
pub(super) fn shown(relation: &Relation, new: &Routed) -> Result<RecordBatch> {
    let schema = scan_schema(relation);
    let Some(stored) = &new.stored else { return Ok(RecordBatch::new_empty(schema)) };
    let rows = stored.num_rows();
    let mut columns: Vec<ArrayRef> = stored.columns().iter().take(relation.schema.columns.len() + 1).cloned().collect();
    columns.push(Arc::new(Int32Array::from_value(0, rows)));
    columns.push(Arc::new(Int64Array::from_value(0, rows)));
    RecordBatch::try_new(schema, columns).map_err(internal)
}

/// 23505 for the key of a row.
pub(super) fn duplicate(relation: &Relation, rows: &RecordBatch, row: usize) -> SqlError {
    let (mut names, mut values) = (Vec::new(), Vec::new());
    for at in relation.schema.key() {
        let column = &relation.schema.columns[at];
        let mut text = Vec::new();
        ColumnEncoder::new(rows.column(at).as_ref(), &column.sql_type).text(row, &mut text);
        names.push(column.name.as_str());
        values.push(String::from_utf8_lossy(&text).into_owned());
    }
    let fact = format!("duplicate key value violates unique constraint \"{}_pkey\"", relation.name);
    SqlError::new(SqlState::UniqueViolation, fact).detail(format!(
        "Key ({})=({}) already exists.",
        names.join(", "),
        values.join(", ")
    ))
}

/// Tombstones of `rows`, whose first columns are the relation's.
fn tombstones(
    relation: &Relation,
    rows: &RecordBatch,
    rowtime: Option<ArrayRef>,
    now: Timestamp,
) -> Result<RecordBatch> {
    let schema = relation.stored_schema();
    let count = rows.num_rows();
    let mut columns: Vec<ArrayRef> = Vec::with_capacity(schema.fields().len());
    for (at, column) in relation.schema.columns.iter().enumerate() {
        columns.push(match column.is_key {
            true => Arc::clone(rows.column(at)),
            false => new_null_array(schema.field(at).data_type(), count),
        });
    }
    let now = || Arc::new(TimestampMicrosecondArray::from_value(now.micros(), count).with_timezone("UTC")) as ArrayRef;
    columns.push(rowtime.unwrap_or_else(now));
    columns.push(Arc::new(BooleanArray::from(vec![true; count])));
    RecordBatch::try_new(schema, columns).map_err(internal)
}

/// Of the rows that a join found several times, the first; partition and offset are the two columns before `end`.
fn first_of_each(rows: &RecordBatch, end: usize) -> Result<RecordBatch> {
    let partitions = rows.column(end - 2).as_primitive::<Int32Type>();
    let offsets = rows.column(end - 1).as_primitive::<Int64Type>();
    let mut seen = HashSet::new();
    let first: BooleanArray =
        partitions.values().iter().zip(offsets.values()).map(|place| Some(seen.insert(place))).collect();
    filter_record_batch(rows, &first).map_err(internal)
}
