//! RETURNING of UPDATE, DELETE and ON CONFLICT: a query over the rows the statement wrote.
//!
//! Leaves out how they came about. Reads only.

use super::source::{RowsSource, TargetSource, internal};
use crate::engine::session::Session;
use crate::engine::{Result, ResultColumn};
use arrow::array::{ArrayRef, RecordBatch};
use datafusion::common::ScalarValue;
use datafusion::common::tree_node::{TreeNode, TreeNodeRecursion};
use datafusion::logical_expr::LogicalPlan;
use millstream_catalog::model::{SqlState, Timestamp};
use millstream_catalog::schema::{ROWOFFSET, ROWPARTITION};
use millstream_catalog::{Relation, SqlType};
use millstream_sql::SqlError;
use millstream_sql::bind::change::select_of;
use millstream_sql::dialect::{Target, select_from};
use millstream_sql::plan::{PlanContext, PlanSettings, PlannedSelect, plan_select};
use sqlparser::ast::{Expr, Query, SelectItem, Visit, Visitor};
use std::ops::ControlFlow;
use std::sync::Arc;

/// A planned RETURNING.
#[derive(Debug)]
pub(super) struct Returning {
    planned: Arc<PlannedSelect>,
    /// The rows it shows.
    source: Arc<RowsSource>,
    relation: Arc<Relation>,
    pub(super) columns: Arc<[ResultColumn]>,
    /// Whether it asks where rows are.
    pub(super) shows_places: bool,
}

/// Whether a list has sub-queries, and whether it names places.
#[derive(Default)]
struct Look {
    has_query: bool,
    shows_places: bool,
}

impl Visitor for Look {
    type Break = ();

    fn pre_visit_query(&mut self, _: &Query) -> ControlFlow<()> {
        self.has_query = true;
        ControlFlow::Continue(())
    }

    fn pre_visit_expr(&mut self, expr: &Expr) -> ControlFlow<()> {
        let name = match expr {
            Expr::Identifier(ident) => Some(ident),
            Expr::CompoundIdentifier(idents) => idents.last(),
            _ => None,
        };
        self.shows_places |= name.is_some_and(|name| [ROWPARTITION, ROWOFFSET].contains(&name.value.as_str()));
        ControlFlow::Continue(())
    }
}

/// Whether an expression has a query in it.
pub(super) fn has_query(expr: &impl Visit) -> bool {
    let mut look = Look::default();
    let _ = expr.visit(&mut look);
    look.has_query
}

impl Returning {
    /// Plans `items` over the rows of `relation`; `None` for an empty list.
    ///
    /// # Errors
    /// What planning finds; 0A000 for a sub-query.
    pub(super) async fn plan(
        session: &Session,
        (source, now): (&Arc<TargetSource>, Timestamp),
        (target, items): (&Target, &[SelectItem]),
        declared: &[Option<SqlType>],
    ) -> Result<Option<Self>> {
        if items.is_empty() {
            return Ok(None);
        }
        let mut look = Look::default();
        let _ = items.to_vec().visit(&mut look);
        if look.has_query {
            return Err(SqlError::unsupported("a sub-query in RETURNING", "SELECT afterwards"));
        }
        let select = select_of(select_from(items.to_vec(), target, Vec::new(), None));
        let rows = Arc::new(RowsSource::new(Arc::clone(source)));
        let (context, types) = (PlanContext { now, ..over_rows(session, &rows) }, declared.to_vec());
        let planned = session.engine.compute.run(async move { plan_select(&context, &select, &types) }).await?;
        check(&planned)?;
        Ok(Some(Self {
            columns: planned.columns.clone().into(),
            planned: Arc::new(planned),
            source: rows,
            relation: Arc::clone(source.relation()),
            shows_places: look.shows_places,
        }))
    }

    /// The parameters and columns of a statement with this RETURNING.
    pub(super) fn describe(
        returning: Option<&Self>,
        declared: &[Option<SqlType>],
    ) -> (Vec<SqlType>, Option<Arc<[ResultColumn]>>) {
        match returning {
            Some(returning) => (returning.planned.params.clone(), Some(Arc::clone(&returning.columns))),
            None => (declared.iter().flatten().cloned().collect(), None),
        }
    }

    /// Whether both show the same.
    pub(super) fn is_same(&self, other: &Self) -> bool {
        self.planned.plan == other.planned.plan
    }

    /// What it shows of `rows`, which are as a scan of the table has them.
    ///
    /// # Errors
    /// Of its expressions.
    pub(super) async fn rows(
        &self,
        session: &Session,
        rows: RecordBatch,
        values: &[ScalarValue],
    ) -> Result<RecordBatch> {
        self.source.set(self.relation.id, rows);
        let context = over_rows(session, &self.source);
        let mut held = session.engine.holding.share();
        let found = session.run_plan(context, Arc::clone(&self.planned), values, &mut held).await;
        self.source.clear();
        Ok(found?.rows)
    }
}

/// Each changed row gives one.
///
/// # Errors
/// 42803 for an aggregate, 42P20 for a window function, 0A000 for a function that gives rows.
fn check(planned: &PlannedSelect) -> Result<()> {
    let mut result = Ok(());
    let visited = planned.plan.apply(|node| {
        let (state, what) = match node {
            LogicalPlan::Aggregate(_) => (SqlState::GroupingError, "aggregate"),
            LogicalPlan::Window(_) => (SqlState::WindowingError, "window"),
            LogicalPlan::Unnest(_) => (SqlState::FeatureNotSupported, "set-returning"),
            _ => return Ok(TreeNodeRecursion::Continue),
        };
        result = Err(SqlError::new(state, format!("{what} functions are not allowed in RETURNING")));
        Ok(TreeNodeRecursion::Stop)
    });
    visited.map_err(internal)?;
    result
}

/// A context in which relations have the rows of `source`, in their order.
pub(super) fn over_rows(session: &Session, source: &Arc<RowsSource>) -> PlanContext {
    let context = session.plan_context();
    let settings = PlanSettings { target_partitions: 1, ..PlanSettings::clone(&context.settings) };
    PlanContext { source: Arc::clone(source) as _, settings: Arc::new(settings), ..context }
}

/// `rows` of a scan at these partitions and offsets.
pub(super) fn with_places(rows: RecordBatch, (partitions, offsets): (ArrayRef, ArrayRef)) -> Result<RecordBatch> {
    let mut columns: Vec<ArrayRef> = rows.columns().to_vec();
    let stored = columns.len().saturating_sub(2);
    columns.truncate(stored);
    columns.extend([partitions, offsets]);
    RecordBatch::try_new(rows.schema(), columns).map_err(internal)
}
