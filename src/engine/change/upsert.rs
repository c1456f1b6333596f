//! INSERT … ON CONFLICT: rows whose keys are there already are left alone or updated, the others inserted.
//!
//! `DO UPDATE` is a query over pairs: the row that is there, under the table's name, and the proposed one, `excluded`.
//! Leaves out attempts and locks (`mod`).

use super::returning::{Returning, check_committed, has_query, names_offset, over_rows};
use super::source::{RowsSource, TargetSource, internal};
use super::update::shown;
use super::{Computed, Work, outcome};
use crate::engine::held::Held;
use crate::engine::insert::check_bytes;
use crate::engine::prepare::{Arguments, Plan, Planned, Prepared};
use crate::engine::session::Session;
use crate::engine::table::ROWS_AT_ONCE_MAX;
use crate::engine::write::{self, Routed, Spreader};
use crate::engine::{Outcome, Param, Result};
use crate::storage::KeySet;
use crate::storage::batch::batch_bytes;
use arrow::array::{AsArray, RecordBatch, UInt32Array};
use arrow::compute::{concat_batches, take_record_batch};
use arrow::datatypes::{Int32Type, Int64Type};
use datafusion::common::ScalarValue;
use futures::StreamExt;
use millstream_catalog::model::limit::PARAMETERS_MAX;
use millstream_catalog::model::{ByteSize, Name, SqlState, TopicId};
use millstream_catalog::schema::{ROWOFFSET, ROWPARTITION};
use millstream_catalog::{Relation, Snapshot, SqlType, State};
use millstream_sql::SqlError;
use millstream_sql::bind::change::{ChangePlan, column};
use millstream_sql::bind::insert::{InsertPlan, InsertSelect, literal_columns, select_types};
use millstream_sql::dialect::{
    ConflictAction, ConflictTarget, Insert, InsertSource, OnConflict, QualifiedName, Select, Target, from_items,
};
use millstream_sql::plan::{PlanContext, eval_constant, plan_select, scan_schema};
use sqlparser::ast::{self, BinaryOperator, Expr, Value, Visit, Visitor};
use std::collections::{BTreeSet, HashMap};
use std::ops::ControlFlow;
use std::sync::Arc;

/// The name of the proposed row.
const EXCLUDED: &str = "excluded";
/// The id of its relation, which no topic has.
const EXCLUDED_ID: TopicId = TopicId::new(u64::MAX);

/// Rows proposed to a table, and what becomes of those whose keys are there.
pub(super) struct Upsert<'a> {
    proposed: Arc<Proposed>,
    update: Option<Pairs<'a>>,
    /// The types of the parameters.
    declared: Vec<Option<SqlType>>,
}

/// Rows proposed to a table.
struct Proposed {
    relation: Arc<Relation>,
    rows: RecordBatch,
    /// Whether rows that are there are updated.
    has_update: bool,
}

/// What becomes of proposed rows.
struct Sorted {
    /// The rows that are there.
    existing: RecordBatch,
    inserted: Vec<u32>,
    /// A row that is there, and a proposed one.
    pairs: Vec<(u32, u32)>,
}

/// `DO UPDATE` bound to its table.
struct Pairs<'a> {
    target: Target,
    excluded: Arc<Relation>,
    plan: ChangePlan,
    selection: Option<&'a Expr>,
    /// Whether what it computes depends on where rows are.
    names_offset: bool,
}

impl Session {
    /// Plans as much of an INSERT … ON CONFLICT as Describe needs.
    pub(crate) async fn plan_upsert(
        &self,
        insert: &Insert,
        conflict: &OnConflict,
        declared: &[Option<SqlType>],
    ) -> Result<Planned> {
        let relation = self.target(&insert.name)?;
        let target = target_of(insert);
        let pairs = Pairs::bind(&relation, &target, conflict)?;
        let declared = self.types_of_pairs(&relation, pairs.as_ref(), insert, declared).await?;
        let types = match &insert.source {
            InsertSource::Select(select) => {
                let declared = select_types(&relation, insert.columns.as_deref(), select, &declared)?;
                self.plan_pull(select, &declared).await?.params
            }
            _ => self.insert_plan(&relation, insert, &declared)?.params().to_vec(),
        };
        let mut declared: Vec<Option<SqlType>> = types.into_iter().map(Some).collect();
        if let Some(pairs) = &pairs {
            let types = pairs.plan.param_types(&declared);
            let (context, select) = pairs.query(self, &relation)?;
            let planned = self.engine.compute.run(async move { plan_select(&context, &select, &types) }).await?;
            pairs.plan.check(&planned.columns)?;
            declared = planned.params.into_iter().map(Some).collect();
        }
        let (source, now) = (self.target_source(&relation), self.engine.clock().now());
        let returning = Returning::plan(self, (&source, now), (&target, &insert.returning), &declared).await?;
        let (params, columns) = Returning::describe(returning.as_ref(), &declared);
        Ok((params, columns, Plan::Late))
    }

    /// `declared` with the types of parameters that only `DO UPDATE` has.
    async fn types_of_pairs(
        &self,
        relation: &Arc<Relation>,
        pairs: Option<&Pairs<'_>>,
        insert: &Insert,
        declared: &[Option<SqlType>],
    ) -> Result<Vec<Option<SqlType>>> {
        let mut types = declared.to_vec();
        let Some(pairs) = pairs else { return Ok(types) };
        let (context, select) = pairs.query(self, relation)?;
        let in_rows = match &insert.source {
            InsertSource::Values(rows) => parameters(rows),
            InsertSource::DefaultValues => BTreeSet::new(),
            InsertSource::Select(select) => parameters(select.query.as_ref()),
        };
        let own: Vec<usize> = parameters(select.query.as_ref()).difference(&in_rows).copied().collect();
        if own.is_empty() {
            return Ok(types);
        }
        let given = pairs.plan.param_types(declared);
        let planned = self.engine.compute.run(async move { plan_select(&context, &select, &given) }).await?;
        for at in own {
            types.resize(types.len().max(at + 1), None);
            types[at] = types[at].take().or_else(|| planned.params.get(at).cloned());
        }
        Ok(types)
    }

    fn insert_plan(&self, relation: &Relation, insert: &Insert, declared: &[Option<SqlType>]) -> Result<InsertPlan> {
        let context = self.plan_context();
        let mut eval = |expr: &ast::Expr, sql_type: &SqlType| eval_constant(&context, expr, sql_type, &[]);
        match &insert.source {
            InsertSource::Values(rows) => {
                InsertPlan::plan(relation, insert.columns.as_deref(), rows, declared, &mut eval)
            }
            _ => InsertPlan::defaults(relation, declared, &mut eval),
        }
    }

    /// `INSERT … ON CONFLICT`
    pub(crate) async fn upsert(
        &mut self,
        insert: &Insert,
        conflict: &OnConflict,
        prepared: &Prepared,
        params: Vec<Param>,
    ) -> Result<Outcome> {
        let relation = self.target(&insert.name)?;
        let target = target_of(insert);
        let Arguments { types, values } = prepared.arguments(&params)?;
        let declared: Vec<Option<SqlType>> = types.iter().cloned().map(Some).collect();
        let (source, now) = (self.target_source(&relation), self.engine.clock().now());
        let returning = Returning::plan(self, (&source, now), (&target, &insert.returning), &declared).await?;
        prepared.check_columns(returning.as_ref().map(|returning| &*returning.columns))?;
        let update = Pairs::bind(&relation, &target, conflict)?;
        let mut held = self.engine.holding.share();
        let proposed = match &insert.source {
            InsertSource::Select(select) => {
                let arguments = Arguments { types, values: values.clone() };
                self.selected_rows(&relation, insert, (select, arguments), &mut held).await?
            }
            _ => {
                let context = self.plan_context();
                let mut eval = |expr: &ast::Expr, sql_type: &SqlType, values: &[ScalarValue]| {
                    eval_constant(&context, expr, sql_type, values)
                };
                let rows = self.insert_plan(&relation, insert, &declared)?.rows(&params, &mut eval)?;
                write::route(&self.engine, &relation, rows, self.engine.clock().now())?.stored
            }
        };
        let proposed = proposed.unwrap_or_else(|| RecordBatch::new_empty(self.engine.stored_schema(&relation)));
        let proposed = Arc::new(Proposed { relation, rows: proposed, has_update: update.is_some() });
        let work = Work::Upsert(Upsert { proposed, update, declared });
        let done = self.carry_out(&work, &source, &values, returning.as_ref()).await?;
        Ok(outcome("INSERT 0", done, returning.as_ref()))
    }

    /// The rows of INSERT … SELECT as they would be stored.
    async fn selected_rows(
        &self,
        relation: &Relation,
        insert: &Insert,
        (select, arguments): (&Select, Arguments),
        held: &mut Held,
    ) -> Result<Option<RecordBatch>> {
        let mut rows = self.run_select(select, arguments).await?;
        let mut binding = {
            let context = self.plan_context();
            let mut eval = |expr: &ast::Expr, sql_type: &SqlType| eval_constant(&context, expr, sql_type, &[]);
            let literals = literal_columns(select);
            InsertSelect::plan(relation, insert.columns.as_deref(), &rows.columns, &literals, &mut eval)?
        };
        let now = self.engine.clock().now();
        let (mut stored, mut bytes) = (Vec::new(), ByteSize::ZERO);
        while let Some(batch) = rows.stream.next().await {
            let batch = batch?;
            bytes = bytes.plus(batch_bytes(&batch));
            check_bytes(bytes)?;
            held.set(bytes)?;
            stored.extend(write::route(&self.engine, relation, binding.rows(&batch)?, now)?.stored);
        }
        match stored.first() {
            None => Ok(None),
            Some(first) => concat_batches(&first.schema(), &stored).map(Some).map_err(internal),
        }
    }
}

/// Whether an INSERT's conflicts can occur: the rows of the relation have a key.
///
/// # Errors
/// 42P10 when the statement names another key.
pub(crate) fn has_conflicts(relation: &Relation, conflict: &OnConflict) -> Result<bool> {
    let key: BTreeSet<&str> = match relation.has_tombstones() {
        true => relation.schema.columns.iter().filter(|c| c.is_key && !c.is_hidden).map(|c| c.name.as_str()).collect(),
        false => BTreeSet::new(),
    };
    match &conflict.target {
        ConflictTarget::Any => Ok(!key.is_empty()),
        ConflictTarget::Columns(columns) => {
            if let Some(unknown) = columns.iter().find(|column| relation.schema.find(column.as_str()).is_none()) {
                let fact = format!("column \"{unknown}\" does not exist");
                return Err(SqlError::new(SqlState::UndefinedColumn, fact).at(unknown.position));
            }
            if !key.is_empty() && key == columns.iter().map(|column| column.as_str()).collect() {
                return Ok(true);
            }
            let fact = "there is no unique or exclusion constraint matching the ON CONFLICT specification";
            let error = SqlError::new(SqlState::InvalidColumnReference, fact).at(conflict.position);
            Err(match key.is_empty() {
                true => error.hint("only the primary key of a table is unique"),
                false => {
                    error.hint(format!("name the primary key: ({})", key.into_iter().collect::<Vec<_>>().join(", ")))
                }
            })
        }
        ConflictTarget::Constraint(name) => {
            if !key.is_empty() && name.as_str() == format!("{}_pkey", relation.name) {
                return Ok(true);
            }
            let fact = format!("constraint \"{name}\" for table \"{}\" does not exist", relation.name);
            Err(SqlError::new(SqlState::UndefinedObject, fact).at(name.position))
        }
    }
}

fn target_of(insert: &Insert) -> Target {
    Target { name: insert.name.clone(), alias: insert.alias.clone() }
}

/// The parameters in `part`, from 0.
fn parameters(part: &impl Visit) -> BTreeSet<usize> {
    #[derive(Default)]
    struct Find(BTreeSet<usize>);
    impl Visitor for Find {
        type Break = ();
        fn pre_visit_expr(&mut self, expr: &Expr) -> ControlFlow<()> {
            if let Expr::Value(value) = expr
                && let Value::Placeholder(id) = &value.value
            {
                let at = id.trim_start_matches('$').parse::<usize>().ok().and_then(|number| number.checked_sub(1));
                self.0.extend(at.filter(|at| *at < PARAMETERS_MAX));
            }
            ControlFlow::Continue(())
        }
    }
    let mut find = Find::default();
    let _ = part.visit(&mut find);
    find.0
}

impl<'a> Pairs<'a> {
    /// `None` for `DO NOTHING`.
    fn bind(relation: &Arc<Relation>, target: &Target, conflict: &'a OnConflict) -> Result<Option<Self>> {
        has_conflicts(relation, conflict)?;
        let ConflictAction::Update(assignments, selection) = &conflict.action else { return Ok(None) };
        let values = assignments.iter().filter_map(|assignment| assignment.value.as_ref());
        if values.clone().chain(selection.as_deref()).any(has_query) {
            return Err(SqlError::unsupported("a sub-query in ON CONFLICT", "use UPDATE … FROM").at(conflict.position));
        }
        if let Some(place) = values.chain(selection.as_deref()).find_map(place_of_excluded) {
            let fact = format!("column {EXCLUDED}.{place} does not exist");
            let error = SqlError::new(SqlState::UndefinedColumn, fact).hint("a proposed row has no place yet");
            return Err(error.at(conflict.position));
        }
        let is_key = |name: &str| relation.schema.find(name).is_some_and(|(_, column)| column.is_key);
        if let Some(assignment) = assignments.iter().find(|assignment| is_key(assignment.column.as_str())) {
            let error = SqlError::unsupported(
                format!("assigning key column \"{}\" in ON CONFLICT", assignment.column),
                "use UPDATE",
            );
            return Err(error.at(assignment.column.position));
        }
        let name = Name::new(EXCLUDED).map_err(|error| SqlError::internal(error.to_string()))?;
        if target.shown() == EXCLUDED {
            let fact = format!("table name \"{EXCLUDED}\" specified more than once");
            return Err(SqlError::new(SqlState::DuplicateAlias, fact).hint("give the table an alias"));
        }
        let excluded = Arc::new(Relation { id: EXCLUDED_ID, name, ..Relation::clone(relation) });
        let plan = ChangePlan::new(relation, assignments)?;
        let names = |expr: &Expr| names_offset(expr, target);
        let names_offset = assignments.iter().filter_map(|it| it.value.as_ref()).chain(selection.as_deref()).any(names);
        Ok(Some(Self { target: target.clone(), excluded, plan, selection: selection.as_deref(), names_offset }))
    }

    /// The query over pairs, and what it sees: nothing but them.
    fn query(&self, session: &Session, relation: &Arc<Relation>) -> Result<(PlanContext, Select)> {
        self.query_over(session, relation, &Arc::new(RowsSource::new(session.target_source(relation))))
    }

    fn query_over(
        &self,
        session: &Session,
        relation: &Arc<Relation>,
        source: &Arc<RowsSource>,
    ) -> Result<(PlanContext, Select)> {
        let name = QualifiedName { schema: None, name: self.excluded.name.clone(), position: Default::default() };
        let excluded = Target { name, alias: None };
        // A proposed row has the place of the row it meets.
        let is_same = |place: &str| {
            let of = |target: &Target| Box::new(column(target, place));
            Expr::BinaryOp { left: of(&self.target), op: BinaryOperator::Eq, right: of(&excluded) }
        };
        let both = |left: Expr, right: Expr| Expr::BinaryOp {
            left: Box::new(left),
            op: BinaryOperator::And,
            right: Box::new(right),
        };
        let equal = both(is_same(ROWPARTITION), is_same(ROWOFFSET));
        let selection = match self.selection {
            None => equal,
            Some(more) => both(equal, Expr::Nested(Box::new(more.clone()))),
        };
        let from = from_items(&excluded);
        let select = self.plan.select(&self.target, from, Some(selection));
        let relations = [relation, &self.excluded].map(|relation| (relation.id, Arc::clone(relation)));
        let catalog = Snapshot::new(State { relations: relations.into(), ..State::default() });
        Ok((PlanContext { catalog, ..over_rows(session, source) }, select))
    }
}

impl Upsert<'_> {
    pub(super) async fn compute(
        &self,
        session: &Session,
        source: &Arc<TargetSource>,
        values: &[ScalarValue],
        held: &mut Held,
    ) -> Result<Computed> {
        let arguments = (self.declared.as_slice(), values);
        let compute = &session.engine.compute;
        let is_much = self.proposed.rows.num_rows() as u64 > ROWS_AT_ONCE_MAX;
        let (proposed, read) = (Arc::clone(&self.proposed), Arc::clone(source));
        let sorted = compute.run_if(is_much || !source.is_folded(), move || proposed.sort_out(&read)).await?;
        let updated = match &self.update {
            Some(update) if !sorted.pairs.is_empty() => {
                Some(self.updated(update, session, (source, &sorted), (arguments, held)).await?)
            }
            _ => None,
        };
        let (proposed, engine) = (Arc::clone(&self.proposed), Arc::clone(&session.engine));
        compute.run_if(is_much, move || proposed.with(sorted.inserted, updated, &engine.spreader)).await
    }

    /// New forms of the rows of `pairs` that the condition lets through, and the places of their proposed rows.
    async fn updated(
        &self,
        update: &Pairs<'_>,
        session: &Session,
        (source, Sorted { existing, pairs, .. }): (&Arc<TargetSource>, &Sorted),
        (arguments, held): ((&[Option<SqlType>], &[ScalarValue]), &mut Held),
    ) -> Result<(RecordBatch, Vec<u32>)> {
        let Proposed { relation, rows: stored, .. } = &*self.proposed;
        let rows = RowsSource::new(Arc::clone(source));
        let there = UInt32Array::from_iter_values(pairs.iter().map(|(there, _)| *there));
        let there = take_record_batch(existing, &there).map_err(internal)?;
        if update.names_offset {
            check_committed(there.column(there.num_columns() - 1))?;
        }
        let proposed = UInt32Array::from_iter_values(pairs.iter().map(|(_, proposed)| *proposed));
        let placed = placed(relation, &take_record_batch(stored, &proposed).map_err(internal)?, &there)?;
        let at: HashMap<_, _> = places(&there).zip(pairs.iter().map(|(_, proposed)| *proposed)).collect();
        rows.set(EXCLUDED_ID, placed);
        rows.set(relation.id, there);
        let (context, select) = update.query_over(session, relation, &Arc::new(rows))?;
        let found = session.run_whole(context, select, arguments, held).await?;
        let own = found.rows.project(&(0..update.plan.found_columns()).collect::<Vec<_>>()).map_err(internal)?;
        let places = places(&own).filter_map(|place| at.get(&place).copied()).collect();
        let rows = update.plan.rows(&found.rows, &found.columns)?;
        let routed = write::route(&session.engine, relation, rows, session.engine.clock().now())?;
        let empty = || RecordBatch::new_empty(stored.schema());
        Ok((routed.stored.unwrap_or_else(empty), places))
    }
}

impl Proposed {
    /// The proposed rows that are inserted, and pairs of a row that is there and a proposed one.
    ///
    /// # Errors
    /// 21000 for two proposed rows with one key, when rows are updated.
    fn sort_out(&self, source: &TargetSource) -> Result<Sorted> {
        let keys = KeySet::new(&self.rows, &self.relation.schema.key()).map_err(internal)?;
        let existing = source.rows_of(&keys, &self.rows)?;
        let there = keys.keys_of(&existing).map_err(internal)?;
        let there: HashMap<_, _> = there.into_iter().zip(0_u32..).collect();
        let mut seen = HashMap::new();
        let mut sorted = Sorted { existing, inserted: Vec::new(), pairs: Vec::new() };
        for (row, key) in (0_u32..).zip(keys.keys_of(&self.rows).map_err(internal)?) {
            let found = there.get(&key).copied();
            if seen.insert(key, row).is_some() {
                if !self.has_update {
                    continue;
                }
                let fact = "ON CONFLICT DO UPDATE command cannot affect row a second time";
                return Err(SqlError::new(SqlState::CardinalityViolation, fact).hint(
                    "Ensure that no rows proposed for insertion within the same command have duplicate constrained values.",
                ));
            }
            match found {
                None => sorted.inserted.push(row),
                Some(found) => sorted.pairs.push((found, row)),
            }
        }
        Ok(sorted)
    }

    /// The rows that are inserted, and those that are updated with the places of their proposed rows, in the order proposed.
    fn with(
        &self,
        inserted: Vec<u32>,
        updated: Option<(RecordBatch, Vec<u32>)>,
        spreader: &Spreader,
    ) -> Result<Computed> {
        // Of each row to write: its place among the proposed, and its row in `rows`.
        let mut order: Vec<(u32, u32)> = inserted.into_iter().map(|row| (row, row)).collect();
        let mut rows = vec![self.rows.clone()];
        if let Some((updated, numbers)) = updated {
            order.extend(numbers.into_iter().zip(self.rows.num_rows() as u32..));
            rows.push(updated);
        }
        order.sort_unstable();
        let all = concat_batches(&self.rows.schema(), &rows).map_err(internal)?;
        let indices = UInt32Array::from_iter_values(order.into_iter().map(|(_, row)| row));
        let stored = take_record_batch(&all, &indices).map_err(internal)?;
        let new = write::route_stored(&self.relation, stored, spreader)?;
        let shown = shown(&self.relation, &new)?;
        Ok(Computed { tombstones: Routed::default(), new, shown })
    }
}

/// Stored rows as a scan has them, at the places of `others`.
fn placed(relation: &Relation, stored: &RecordBatch, others: &RecordBatch) -> Result<RecordBatch> {
    let own = relation.schema.columns.len() + 1;
    let places = others.columns().iter().skip(own);
    let columns = stored.columns().iter().take(own).chain(places).cloned().collect();
    RecordBatch::try_new(scan_schema(relation), columns).map_err(internal)
}

/// Partition and offset of each row, which are its last columns.
fn places(rows: &RecordBatch) -> impl Iterator<Item = (i32, i64)> + '_ {
    let last = rows.num_columns();
    let partitions = rows.column(last - 2).as_primitive::<Int32Type>().values();
    let offsets = rows.column(last - 1).as_primitive::<Int64Type>().values();
    partitions.iter().copied().zip(offsets.iter().copied())
}

/// The place of `excluded` that an expression names.
fn place_of_excluded(expr: &impl Visit) -> Option<&'static str> {
    struct Find;
    impl Visitor for Find {
        type Break = &'static str;
        fn pre_visit_expr(&mut self, expr: &Expr) -> ControlFlow<&'static str> {
            let Expr::CompoundIdentifier(idents) = expr else { return ControlFlow::Continue(()) };
            let [.., table, column] = idents.as_slice() else { return ControlFlow::Continue(()) };
            let place = [ROWPARTITION, ROWOFFSET].into_iter().find(|place| *place == column.value);
            match place.filter(|_| table.value == EXCLUDED) {
                Some(place) => ControlFlow::Break(place),
                None => ControlFlow::Continue(()),
            }
        }
    }
    expr.visit(&mut Find).break_value()
}
