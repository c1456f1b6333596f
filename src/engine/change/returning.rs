//! RETURNING of UPDATE, DELETE and ON CONFLICT: a query over the rows the statement wrote.
//!
//! Leaves out how they came about. Reads only.

use super::source::{RowsSource, TargetSource, internal};
use crate::engine::session::Session;
use crate::engine::{Result, ResultColumn};
use arrow::array::{ArrayRef, AsArray, RecordBatch};
use arrow::datatypes::Int64Type;
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
    /// The columns that are places; `None` when places are in expressions too.
    pub(super) places: Option<Vec<(usize, Place)>>,
}

/// Where a row is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    Partition,
    Offset,
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
        self.shows_places |= place(expr).is_some();
        ControlFlow::Continue(())
    }
}

/// The place that an expression is.
fn place(expr: &Expr) -> Option<Place> {
    let name = match expr {
        Expr::Identifier(ident) => ident,
        Expr::CompoundIdentifier(idents) => idents.last()?,
        _ => return None,
    };
    match name.value.as_str() {
        ROWPARTITION => Some(Place::Partition),
        ROWOFFSET => Some(Place::Offset),
        _ => None,
    }
}

/// Which of a list's `columns` are places; `None` when a place is within an expression.
fn places(items: &[SelectItem], columns: usize) -> Option<Vec<(usize, Place)>> {
    let is_wildcard = |item: &SelectItem| matches!(item, SelectItem::Wildcard(_) | SelectItem::QualifiedWildcard(..));
    let wildcards = items.iter().filter(|item| is_wildcard(item)).count();
    // Each stands for the columns of the one table.
    let width = columns.saturating_sub(items.len() - wildcards) / wildcards.max(1);
    let (mut at, mut places) = (0, Vec::new());
    for item in items {
        match item {
            SelectItem::UnnamedExpr(expr) | SelectItem::ExprWithAlias { expr, .. } => match place(expr) {
                Some(place) => places.push((at, place)),
                None if names_place(expr) => return None,
                None => {}
            },
            _ => {}
        }
        at += if is_wildcard(item) { width } else { 1 };
    }
    Some(places)
}

fn names_place(expr: &Expr) -> bool {
    let mut look = Look::default();
    let _ = expr.visit(&mut look);
    look.shows_places
}

/// Whether an expression names the offset of the target's row.
pub(super) fn names_offset(part: &impl Visit, target: &Target) -> bool {
    struct Find<'a>(&'a str);
    impl Visitor for Find<'_> {
        type Break = ();
        fn pre_visit_expr(&mut self, expr: &Expr) -> ControlFlow<()> {
            let is_of_target = match expr {
                Expr::CompoundIdentifier(idents) => idents.iter().rev().nth(1).is_none_or(|of| of.value == self.0),
                _ => true,
            };
            match place(expr) {
                Some(Place::Offset) if is_of_target => ControlFlow::Break(()),
                _ => ControlFlow::Continue(()),
            }
        }
    }
    part.visit(&mut Find(target.shown())).is_break()
}

/// 0A000 where offsets are asked for and some of `offsets` are of rows that the transaction wrote itself.
pub(super) fn check_committed(offsets: &ArrayRef) -> Result<()> {
    match offsets.as_primitive::<Int64Type>().values().iter().all(|offset| *offset >= 0) {
        true => Ok(()),
        false => Err(SqlError::unsupported(
            "rowoffset of a row that the transaction has written itself",
            "offsets are assigned at COMMIT: commit first",
        )),
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
            places: places(items, planned.columns.len()),
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

    /// What it showed of rows before they were written, with their places.
    ///
    /// # Errors
    /// When they cannot be put together; none is known.
    pub(super) fn with_places(
        &self,
        rows: RecordBatch,
        (partitions, offsets): (ArrayRef, ArrayRef),
    ) -> Result<RecordBatch> {
        let mut columns: Vec<ArrayRef> = rows.columns().to_vec();
        for (at, place) in self.places.iter().flatten() {
            let column = columns.get_mut(*at).ok_or_else(|| internal("a column of RETURNING is missing"))?;
            *column = Arc::clone(if *place == Place::Partition { &partitions } else { &offsets });
        }
        RecordBatch::try_new(rows.schema(), columns).map_err(internal)
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
