//! A part of a pipeline while it is made: where its rows come from, and what is known of its columns.
//!
//! Owns projections and filters, which follow what is known of columns through them. Leaves out the other operators.
//! Pure.

use super::{Planner, nullable, unalias};
use crate::error::SqlError;
use crate::function::window::{SessionMark, WindowEdge, later_call, session_mark, window_call};
use crate::stream::{Edge, KeyedMap, Map, Rows, Stage, WindowBounds};
use arrow::datatypes::{FieldRef, Schema, SchemaRef};
use datafusion::common::DFSchemaRef;
use datafusion::logical_expr::Expr;
use datafusion::physical_expr::PhysicalExpr;
use datafusion::physical_expr::expressions::Column as PhysicalColumn;
use millstream_catalog::model::Span;
use std::collections::BTreeSet;
use std::sync::Arc;

/// How rows come along an edge.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Mode {
    /// Each stays.
    Append,
    /// New forms of keyed rows, and their ends.
    Forms,
    /// Rows come and go as they are.
    Both,
}

/// A column that identifies a row, with others.
#[derive(Debug, Clone)]
pub(super) struct Key {
    /// Its position among the columns; where new forms come, among those along the edge.
    pub(super) at: usize,
    /// Where it is among the columns; `None` where it was left out.
    pub(super) shown: Option<usize>,
    /// Its name where the select list does not give one.
    pub(super) name: String,
    /// Left out of `SELECT *` where the select list does not have it.
    pub(super) is_hidden: bool,
}

/// A column from which the end of a window is known.
#[derive(Debug, Clone, Copy)]
pub(super) struct WindowColumn {
    /// Its position.
    pub(super) at: usize,
    /// What is added to have the end.
    pub(super) length: Span,
    /// The grace period.
    pub(super) grace: Span,
    pub(super) kind: WindowColumnKind,
}

/// Which windows a column is of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum WindowColumnKind {
    /// One for each row.
    Plain,
    /// Several for each event, which has a row for each.
    Shared,
    /// A session: the column has the event's time until rows are grouped.
    Session(SessionMark),
}

/// Rows, and what is known of them.
#[derive(Clone)]
pub(super) struct Built {
    /// Where they come from.
    pub(super) edge: Edge,
    /// The columns along the edge.
    pub(super) base: Vec<FieldRef>,
    /// What is still to be done with them.
    pub(super) stages: Vec<Stage>,
    /// The columns after that: those of the plan, then hidden ones.
    pub(super) fields: Vec<FieldRef>,
    /// Those of the plan.
    pub(super) schema: DFSchemaRef,
    pub(super) mode: Mode,
    /// Empty where it was not asked for.
    pub(super) key: Vec<Key>,
    pub(super) windows: Vec<WindowColumn>,
    /// The window of a key, by its position in the key, where new forms come.
    pub(super) window: Option<WindowBounds>,
    /// Columns that have the event time of their row.
    pub(super) times: BTreeSet<usize>,
    /// How far the rows' time may be behind the query's.
    pub(super) delay: Span,
    /// The stream says by itself how late events are.
    pub(super) is_declared: bool,
}

impl Built {
    /// The number of the plan's columns.
    pub(super) fn visible(&self) -> usize {
        self.schema.fields().len()
    }

    pub(super) fn arrow(&self) -> SchemaRef {
        Arc::new(Schema::new(self.fields.clone()))
    }

    /// Whether rows go.
    pub(super) fn rows(&self) -> Rows {
        if self.mode == Mode::Append { Rows::Stay } else { Rows::Go }
    }

    /// The same rows under other names.
    pub(super) fn named(self, schema: &DFSchemaRef) -> Self {
        Self { schema: Arc::clone(schema), ..self }
    }

    /// The window column that `expression` is, over these rows.
    pub(super) fn window_of(&self, expression: &Expr, planner: &Planner<'_>) -> Option<WindowColumn> {
        let expression = unalias(expression);
        if let Expr::Column(column) = expression {
            let at = self.schema.maybe_index_of_column(column)?;
            return self.windows.iter().find(|window| window.at == at).copied();
        }
        if let Some((micros, start)) = later_call(expression) {
            let window = self.window_of(start, planner)?;
            let length = window.length.micros().checked_sub(micros)?;
            return Some(WindowColumn { length: Span::from_micros(length), ..window });
        }
        let is_time = |expression: &Expr| self.is_time(expression);
        let (edge, size, time) = match window_call(expression) {
            Some((edge, size, time)) => (edge, Span::from_micros(size), time),
            None => {
                let (size, time) = super::window::bin(expression)?;
                (WindowEdge::Start, size, time)
            }
        };
        if !is_time(time) {
            return None;
        }
        let length = if edge == WindowEdge::Start { size } else { Span::ZERO };
        let grace = planner.query.grace_of(size, self.is_declared);
        Some(WindowColumn { at: 0, length, grace, kind: WindowColumnKind::Plain })
    }

    /// Whether `expression` has the event time of its row.
    pub(super) fn is_time(&self, expression: &Expr) -> bool {
        let expression = unalias(expression);
        let expression = session_mark(expression).map_or(expression, |(_, time)| time);
        self.position(expression).is_some_and(|at| self.times.contains(&at))
    }

    /// Whether `expression` has an edge of a session that is not known yet.
    pub(super) fn has_session_edge(&self, expression: &Expr) -> bool {
        let is_edge = |at: usize| {
            let mut windows = self.windows.iter();
            windows.any(|window| window.at == at && matches!(window.kind, WindowColumnKind::Session(_)))
        };
        expression.column_refs().iter().any(|column| self.schema.maybe_index_of_column(column).is_some_and(is_edge))
    }

    fn position(&self, expression: &Expr) -> Option<usize> {
        match unalias(expression) {
            Expr::Column(column) => self.schema.maybe_index_of_column(column),
            _ => None,
        }
    }

    /// With `expressions` in place of the columns.
    pub(super) fn project(
        mut self,
        planner: &Planner<'_>,
        expressions: &[Expr],
        schema: &DFSchemaRef,
    ) -> Result<Self, SqlError> {
        let physical = expressions.iter().map(|expression| planner.physical(expression, &self.schema));
        let mut physical = physical.collect::<Result<Vec<_>, _>>()?;
        let mut fields: Vec<FieldRef> = schema.fields().iter().map(nullable).collect();
        let sources: Vec<Option<usize>> = expressions.iter().map(|expression| self.position(expression)).collect();
        let shown = |at: usize| sources.iter().position(|source| *source == Some(at));
        let mut windows = Vec::new();
        for (at, expression) in expressions.iter().enumerate() {
            windows.extend(self.window_of(expression, planner).map(|window| WindowColumn { at, ..window }));
        }
        let mut key = std::mem::take(&mut self.key);
        let before: Vec<usize> = key.iter().map(|key| key.at).collect();
        for key in &mut key {
            key.shown = key.shown.and_then(shown);
            if self.mode == Mode::Forms {
                continue;
            }
            key.at = match shown(key.at) {
                Some(at) => at,
                None => {
                    let hidden: Arc<dyn PhysicalExpr> =
                        Arc::new(PhysicalColumn::new(self.fields[key.at].name(), key.at));
                    physical.push(hidden);
                    fields.push(Arc::clone(&self.fields[key.at]));
                    fields.len() - 1
                }
            };
        }
        // Windows of keys that were left out are known still.
        for window in self.windows.iter().filter(|_| self.mode != Mode::Forms) {
            let hidden = before.iter().zip(&key).find(|(before, _)| **before == window.at);
            let hidden = hidden.map(|(_, key)| key.at).filter(|at| *at >= expressions.len());
            windows.extend(hidden.map(|at| WindowColumn { at, ..*window }));
        }
        let times = (0..expressions.len()).filter(|at| self.is_time(&expressions[*at])).collect();
        self.stages.push(Stage::Project { expressions: physical, schema: Arc::new(Schema::new(fields.clone())) });
        Ok(Self { fields, schema: Arc::clone(schema), key, windows, times, ..self })
    }

    /// The rows for which `predicate` is true.
    pub(super) fn filter(mut self, planner: &Planner<'_>, predicate: &Expr) -> Result<Self, SqlError> {
        if self.has_session_edge(predicate) {
            let hint = "filter when reading the result";
            return Err(SqlError::unsupported("a condition on a session's edges in a continuous query", hint));
        }
        self.stages.push(Stage::Filter(planner.physical(predicate, &self.schema)?));
        Ok(self)
    }

    /// With nothing left to be done.
    pub(super) fn settle(mut self, planner: &mut Planner<'_>) -> Result<Self, SqlError> {
        if self.stages.is_empty() {
            return Ok(self);
        }
        if self.mode == Mode::Forms {
            return Err(SqlError::internal("rows of which only new forms come are not at the end"));
        }
        let map = Map::new(std::mem::take(&mut self.stages));
        self.edge = planner.add(Box::new(map), vec![self.edge]);
        self.base = self.fields.clone();
        Ok(self)
    }

    /// New forms with nothing left to be done: the columns, then the key.
    pub(super) fn settle_forms(mut self, planner: &mut Planner<'_>) -> Result<Self, SqlError> {
        let base = Schema::new(self.base.clone());
        let inputs: Vec<usize> = self.key.iter().map(|key| key.at).collect();
        let keyed = KeyedMap::new(&base, inputs, self.window, std::mem::take(&mut self.stages))?;
        self.edge = planner.add(Box::new(keyed), vec![self.edge]);
        let first = self.fields.len();
        for (number, key) in self.key.iter_mut().enumerate() {
            self.fields.push(Arc::clone(&self.base[key.at]));
            key.at = first + number;
        }
        self.base = self.fields.clone();
        Ok(self)
    }
}
