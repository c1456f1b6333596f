//! GROUP BY: grouping expressions, the window among them, and aggregates.
//!
//! Leaves out the operator (`stream::aggregate`). Pure.

use super::built::{Built, Key, Mode, WindowColumn, WindowColumnKind};
use super::{Need, Planner, nullable, unalias};
use crate::error::SqlError;
use crate::plan::window::is_window_column;
use crate::stream::{Aggregate, Call, Changes, Grouping, Rows, WindowBounds, sql_error};
use arrow::array::ArrayRef;
use arrow::datatypes::FieldRef;
use datafusion::common::DFSchema;
use datafusion::logical_expr::execution_props::ExecutionProps;
use datafusion::logical_expr::physical_planning_context::PhysicalPlanningContext;
use datafusion::logical_expr::{self, Expr};
use datafusion::physical_expr::PhysicalExpr;
use datafusion::physical_expr::aggregate::LoweredAggregateBuilder;
use std::collections::BTreeSet;
use std::sync::Arc;

/// What is grouped, and how.
pub(super) struct Grouped<'p> {
    pub(super) input: Built,
    pub(super) keys: Vec<Arc<dyn PhysicalExpr>>,
    /// The grouping expressions of the plan, in the order of the keys.
    pub(super) grouped: Vec<Option<&'p Expr>>,
    /// Those that are windows, by their positions in the key.
    pub(super) windows: Vec<WindowColumn>,
    pub(super) calls: Vec<Call>,
    /// Keys of groups that are there without rows.
    pub(super) lasting: Vec<ArrayRef>,
}

/// Aggregates that are of the order of their rows alone, which rows that change do not have.
const OF_AN_ORDER: [&str; 3] = ["first_value", "last_value", "nth_value"];

impl Planner<'_> {
    pub(super) fn aggregate(&mut self, aggregate: &logical_expr::Aggregate, need: Need) -> Result<Built, SqlError> {
        let grouped = match self.panes(aggregate)? {
            Some(grouped) => grouped,
            None => self.rows_grouped(aggregate)?,
        };
        if grouped.windows.iter().any(|window| matches!(window.kind, WindowColumnKind::Session(_))) {
            return self.sessions(aggregate, grouped.input, &grouped.windows);
        }
        self.groups(aggregate, grouped, need)
    }

    fn rows_grouped<'p>(&mut self, aggregate: &'p logical_expr::Aggregate) -> Result<Grouped<'p>, SqlError> {
        let mut input = self.build(&aggregate.input, Need::ROWS)?.settle(self)?;
        let (keys, grouped, lasting) = match aggregate.group_expr.as_slice() {
            [Expr::GroupingSet(set)] => self.expand(&mut input, set, &aggregate.schema)?,
            all => {
                let keys = all.iter().map(|expression| self.physical(expression, &input.schema));
                (keys.collect::<Result<Vec<_>, _>>()?, all.iter().map(Some).collect(), Vec::new())
            }
        };
        let windows = grouped.iter().enumerate();
        let windows = windows.filter_map(|(at, expression)| {
            input.window_of((*expression)?, self).map(|window| WindowColumn { at, ..window })
        });
        let windows: Vec<WindowColumn> = windows.collect();
        let is_session = windows.iter().any(|window| matches!(window.kind, WindowColumnKind::Session(_)));
        let calls = aggregate.aggr_expr.iter().filter(|_| !is_session);
        let calls = calls.map(|call| self.call(call, &input, input.rows())).collect::<Result<Vec<_>, _>>()?;
        Ok(Grouped { input, keys, grouped, windows, calls, lasting })
    }

    fn groups(
        &mut self,
        aggregate: &logical_expr::Aggregate,
        grouped: Grouped<'_>,
        need: Need,
    ) -> Result<Built, SqlError> {
        let Grouped { input, keys, grouped, windows, calls, lasting } = grouped;
        let rows = input.rows();
        // The end, where it is there: it is what the window is judged by.
        let judged = windows.iter().min_by_key(|window| window.length);
        let window = judged.map(|window| WindowBounds {
            key: window.at,
            length: window.length,
            grace: window.grace,
            delay: input.delay,
            is_shared: window.kind == WindowColumnKind::Shared,
        });
        self.is_timed |= window.is_some();
        let fields: Vec<FieldRef> = aggregate.schema.fields().iter().map(nullable).collect();
        let changes = if need.forms { Changes::Forms } else { Changes::Both };
        let schema = Arc::new(arrow::datatypes::Schema::new(fields.clone()));
        let operator = Aggregate::new(Grouping { keys, window, calls, schema, rows, changes, lasting })?;
        let edge = self.add(Box::new(operator), vec![input.edge]);
        let key = self.group_keys(grouped.into_iter());
        Ok(Built {
            edge,
            base: fields.clone(),
            stages: Vec::new(),
            fields,
            schema: Arc::clone(&aggregate.schema),
            mode: if need.forms { Mode::Forms } else { Mode::Both },
            key,
            // A group has one window.
            windows: windows.into_iter().map(|one| WindowColumn { kind: WindowColumnKind::Plain, ..one }).collect(),
            window,
            times: BTreeSet::new(),
            delay: input.delay,
            is_declared: input.is_declared,
        })
    }

    /// The grouping columns as the key of the rows that come out.
    pub(super) fn group_keys<'e>(&self, grouped: impl Iterator<Item = Option<&'e Expr>>) -> Vec<Key> {
        let key = |(at, expression): (usize, Option<&Expr>)| {
            let (name, is_edge) = match expression.map(unalias) {
                Some(Expr::Column(column)) => (column.name.clone(), is_window_column(&column.name)),
                _ => (format!("key{}", at + 1), false),
            };
            let is_hidden = !(is_edge && self.query.window.is_some());
            Key { at, shown: Some(at), name, is_hidden }
        };
        grouped.enumerate().map(key).collect()
    }

    /// The aggregate `call`, DISTINCT taken off: it is done before the function sees the rows.
    pub(super) fn call(&self, call: &Expr, input: &Built, rows: Rows) -> Result<Call, SqlError> {
        self.call_over(call, &input.schema, rows)
    }

    /// The same, over columns of `schema`.
    pub(super) fn call_over(&self, call: &Expr, schema: &DFSchema, rows: Rows) -> Result<Call, SqlError> {
        let mut call = self.with_step_now(unalias(call), schema)?;
        let Expr::AggregateFunction(function) = &mut call else {
            return Err(SqlError::internal("an aggregate is not a function"));
        };
        if let Some(filter) = &function.params.filter {
            self.check_filter(filter)?;
        }
        if rows == Rows::Go && function.params.order_by.is_empty() && OF_AN_ORDER.contains(&function.func.name()) {
            return Err(SqlError::unsupported(
                "a first, last or nth value of rows that change, without an order, in a continuous query",
                "give it one, as in last_value(v ORDER BY id)",
            ));
        }
        let is_distinct = std::mem::replace(&mut function.params.distinct, false);
        let (props, context) = (ExecutionProps::new(), PhysicalPlanningContext::default());
        let lowered = LoweredAggregateBuilder::new(&call, schema, schema.as_arrow(), &props, &context);
        let lowered = lowered.build().map_err(sql_error)?;
        Call::new(lowered.aggregate, lowered.filter, is_distinct, schema.as_arrow(), rows)
    }
}
