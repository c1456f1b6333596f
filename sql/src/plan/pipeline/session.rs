//! GROUP BY over sessions.
//!
//! Leaves out the operator (`stream::session`). Pure.

use super::built::{Built, Mode, WindowColumn, WindowColumnKind};
use super::{Need, Planner, nullable};
use crate::error::SqlError;
use crate::function::session_window::session_call;
use crate::function::window::{SessionMark, WindowEdge};
use crate::stream::{Changes, Grouping, Rows, SessionBounds, SessionColumn, Sessions};
use arrow::datatypes::{FieldRef, Schema};
use datafusion::common::Column;
use datafusion::logical_expr::{self, Expr};
use millstream_catalog::model::Span;
use std::collections::BTreeSet;
use std::sync::Arc;

/// Never late, never closed.
const FOREVER: Span = Span::from_micros(i64::MAX);

/// Whether `window` computes edges of sessions, for the aggregate above.
pub(super) fn is_session(window: &logical_expr::Window) -> bool {
    window.window_expr.iter().all(|expression| session_call(expression).is_some())
}

impl Planner<'_> {
    /// Columns that stand for the edges of sessions: they have the time of the event.
    pub(super) fn session_edges(&mut self, window: &logical_expr::Window) -> Result<Built, SqlError> {
        let input = self.build(&window.input, Need::ROWS)?;
        if input.mode != Mode::Append {
            let hint = "put a stream into it, or run the query without EMIT CHANGES";
            return Err(SqlError::unsupported("a session window over rows that change in a continuous query", hint));
        }
        let mut expressions: Vec<Expr> = input.schema.iter().map(|field| Expr::Column(Column::from(field))).collect();
        let mut windows = Vec::new();
        for expression in &window.window_expr {
            let (mark, time) =
                session_call(expression).ok_or_else(|| SqlError::internal("a session of another form"))?;
            let grace = match input.is_time(time) {
                true => self.query.grace_of(Span::from_micros(mark.gap), input.is_declared),
                false => FOREVER,
            };
            let at = expressions.len();
            windows.push(WindowColumn { at, length: Span::ZERO, grace, kind: WindowColumnKind::Session(mark) });
            expressions.push(time.clone());
        }
        let built = input.project(self, &expressions, &window.schema)?;
        windows.extend(
            built
                .windows
                .iter()
                .filter(|window| !windows.iter().any(|other| other.at == window.at))
                .copied()
                .collect::<Vec<_>>(),
        );
        Ok(Built { windows, ..built })
    }

    /// An aggregate over sessions, whose edges are among its grouping columns.
    pub(super) fn sessions(
        &mut self,
        aggregate: &logical_expr::Aggregate,
        input: Built,
        windows: &[WindowColumn],
    ) -> Result<Built, SqlError> {
        if aggregate.aggr_expr.iter().any(|call| input.has_session_edge(call)) {
            let hint = "group by it, or run the query without EMIT CHANGES";
            return Err(SqlError::unsupported("an aggregate of a session's edge in a continuous query", hint));
        }
        let of = |at: usize| -> Option<(SessionMark, Span)> {
            windows.iter().find(|window| window.at == at).and_then(|window| match window.kind {
                WindowColumnKind::Session(mark) => Some((mark, window.grace)),
                _ => None,
            })
        };
        let found = (0..aggregate.group_expr.len()).find_map(|at| Some((at, of(at)?)));
        let (first, (mark, grace)) = found.ok_or_else(|| SqlError::internal("an aggregate without a session"))?;
        let (mut keys, mut columns, mut out) = (Vec::new(), Vec::new(), Vec::new());
        let delay = grace.micros().saturating_add(input.delay.micros());
        for (at, expression) in aggregate.group_expr.iter().enumerate() {
            columns.push(match of(at) {
                Some((SessionMark { edge: WindowEdge::Start, .. }, _)) => SessionColumn::Start,
                Some((SessionMark { edge: WindowEdge::End, .. }, _)) => {
                    // The last moment at which an event joins is not yet beyond it.
                    let length = Span::from_micros(mark.gap - mark.tail + 1);
                    out.push(WindowColumn { at, length, grace, kind: WindowColumnKind::Plain });
                    SessionColumn::End
                }
                None => {
                    keys.push(self.physical(expression, &input.schema)?);
                    SessionColumn::Key(keys.len() - 1)
                }
            });
        }
        let time = self.physical(&aggregate.group_expr[first], &input.schema)?;
        let calls = aggregate.aggr_expr.iter().map(|call| self.call(call, &input, Rows::Merge));
        let calls = calls.collect::<Result<Vec<_>, _>>()?;
        self.is_timed = true;
        let fields: Vec<FieldRef> = aggregate.schema.fields().iter().map(nullable).collect();
        let schema = Arc::new(Schema::new(fields.clone()));
        let bounds = SessionBounds { gap: mark.gap, tail: mark.tail, open: mark.gap.saturating_add(delay) };
        let grouping = Grouping {
            keys,
            window: None,
            calls,
            schema,
            rows: Rows::Merge,
            changes: Changes::Both,
            lasting: Vec::new(),
        };
        let operator = Sessions::new(grouping, time, columns, bounds)?;
        let edge = self.add(Box::new(operator), vec![input.edge]);
        Ok(Built {
            edge,
            base: fields.clone(),
            stages: Vec::new(),
            fields,
            schema: Arc::clone(&aggregate.schema),
            mode: Mode::Both,
            key: self.group_keys(aggregate.group_expr.iter().map(Some)),
            windows: out,
            window: None,
            times: BTreeSet::new(),
            delay: input.delay,
            is_declared: input.is_declared,
        })
    }
}
