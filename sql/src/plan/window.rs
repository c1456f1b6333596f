//! `WINDOW TUMBLING` as ordinary columns: `windowstart` and `windowend` of the source.
//!
//! Owns their names, and the plan of a source with them. Leaves out when windows close. Pure.

use super::WindowSpec;
use super::scope::ScopeColumn;
use crate::dialect::ast::{WindowClause, WindowKind};
use crate::error::SqlError;
use crate::function::window::{WindowEdge, window_edge};
use datafusion::common::{Column, Result, TableReference};
use datafusion::logical_expr::{Expr, LogicalPlan, LogicalPlanBuilder};
use millstream_catalog::model::{Span, SqlState};
use millstream_catalog::schema::ROWTIME;

/// The first moment in the window.
pub(super) const WINDOWSTART: &str = "windowstart";
/// The first moment after the window.
pub(super) const WINDOWEND: &str = "windowend";

/// The window a clause describes.
///
/// # Errors
/// 22023 for a size that is not positive.
pub(super) fn window_spec(clause: &WindowClause) -> Result<WindowSpec, SqlError> {
    let WindowKind::Tumbling { size } = clause.kind;
    if size <= Span::ZERO {
        let fact = "the size of a window must be positive";
        return Err(SqlError::new(SqlState::InvalidParameterValue, fact).at(clause.position));
    }
    Ok(WindowSpec { size, grace: clause.grace })
}

/// True for the two names.
pub(super) fn is_window_column(name: &str) -> bool {
    name == WINDOWSTART || name == WINDOWEND
}

/// The two columns as a SELECT sees them: by name, not in `*`.
pub(super) fn scope_columns() -> [ScopeColumn; 2] {
    [WINDOWSTART, WINDOWEND].map(|name| ScopeColumn {
        name: name.to_owned(),
        internal: name.to_owned(),
        is_hidden: true,
    })
}

/// `scan`, named `alias`, with the columns of its window at the end; a column of the source that has one of
/// their names gives way.
pub(super) fn with_window(scan: LogicalPlan, alias: &TableReference, size: Span) -> Result<LogicalPlan> {
    let rowtime = Expr::Column(Column::new(Some(alias.clone()), ROWTIME));
    let kept = scan.schema().columns().into_iter().filter(|column| !is_window_column(column.name()));
    let mut exprs: Vec<Expr> = kept.map(Expr::Column).collect();
    for (edge, name) in [(WindowEdge::Start, WINDOWSTART), (WindowEdge::End, WINDOWEND)] {
        exprs.push(window_edge(edge, size, rowtime.clone()).alias_qualified(Some(alias.clone()), name));
    }
    LogicalPlanBuilder::from(scan).project(exprs)?.build()
}
