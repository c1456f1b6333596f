//! RETURNING of UPDATE, DELETE and ON CONFLICT: a query over the rows the statement wrote.
//!
//! Leaves out how they came about. Reads only.

use super::source::{RowsSource, internal};
use crate::engine::session::Session;
use crate::engine::{Result, ResultColumn};
use arrow::array::{ArrayRef, RecordBatch};
use datafusion::common::ScalarValue;
use millstream_catalog::schema::{ROWOFFSET, ROWPARTITION};
use millstream_catalog::{Relation, SqlType};
use millstream_sql::SqlError;
use millstream_sql::bind::change::select_of;
use millstream_sql::dialect::{Select, Target, select_from};
use millstream_sql::plan::{PlanContext, PlanSettings, plan_select};
use sqlparser::ast::{Expr, Query, SelectItem, Visit, Visitor};
use std::ops::ControlFlow;
use std::sync::Arc;

/// A planned RETURNING.
pub(super) struct Returning {
    select: Select,
    relation: Arc<Relation>,
    params: Vec<Option<SqlType>>,
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
        (relation, target): (&Arc<Relation>, &Target),
        items: &[SelectItem],
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
        let source = session.target_source(relation)?;
        let context = over_rows(session, RowsSource::new(source));
        let (planning, types) = (select.clone(), declared.to_vec());
        let planned = session.engine.compute.run(async move { plan_select(&context, &planning, &types) }).await?;
        Ok(Some(Self {
            select,
            relation: Arc::clone(relation),
            params: planned.params.into_iter().map(Some).collect(),
            columns: planned.columns.into(),
            shows_places: look.shows_places,
        }))
    }

    /// The parameters and columns of a statement with this RETURNING.
    pub(super) fn describe(
        returning: Option<Self>,
        declared: Vec<Option<SqlType>>,
    ) -> (Vec<SqlType>, Option<Arc<[ResultColumn]>>) {
        let (params, columns) = match returning {
            Some(returning) => (returning.params, Some(returning.columns)),
            None => (declared, None),
        };
        (params.into_iter().flatten().collect(), columns)
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
        let source = RowsSource::new(session.target_source(&self.relation)?);
        source.set(self.relation.id, rows);
        let context = over_rows(session, source);
        let mut held = session.engine.holding.share();
        let arguments = (self.params.as_slice(), values);
        Ok(session.run_whole(context, self.select.clone(), arguments, &mut held).await?.rows)
    }
}

/// A context in which relations have the rows of `source`, in their order.
pub(super) fn over_rows(session: &Session, source: RowsSource) -> PlanContext {
    let context = session.plan_context();
    let settings = PlanSettings { target_partitions: 1, ..PlanSettings::clone(&context.settings) };
    PlanContext { source: Arc::new(source), settings: Arc::new(settings), ..context }
}

/// `rows` of a scan at these partitions and offsets.
pub(super) fn with_places(rows: RecordBatch, (partitions, offsets): (ArrayRef, ArrayRef)) -> Result<RecordBatch> {
    let mut columns: Vec<ArrayRef> = rows.columns().to_vec();
    let stored = columns.len().saturating_sub(2);
    columns.truncate(stored);
    columns.extend([partitions, offsets]);
    RecordBatch::try_new(rows.schema(), columns).map_err(internal)
}
