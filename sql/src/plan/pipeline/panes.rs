//! Aggregates over hopping windows, computed once for each pane.
//!
//! Owns when that gives the same as aggregating each row in each of its windows, and the operators before the aggregate.
//! Leaves out the operators (`stream::partial`, `stream::hop`, `stream::aggregate`). Pure.

use super::aggregate::Grouped;
use super::built::{Built, Mode, WindowColumn, WindowColumnKind};
use super::hop::starts;
use super::{Need, Planner, is_changelog, nullable, unalias};
use crate::error::SqlError;
use crate::function::window::{Hopping, starts_call};
use crate::stream::{Call, Hop, Partial, PartialCall, Rows, WindowBounds, sql_error, state_fields};
use arrow::datatypes::{DataType, Field, FieldRef, Schema};
use datafusion::common::tree_node::{Transformed, TreeNode};
use datafusion::common::{Column, DFSchema, TableReference};
use datafusion::error::Result as DataFusionResult;
use datafusion::logical_expr::{self, Expr, ExprSchemable, LogicalPlan, Projection, Unnest};
use datafusion::physical_expr::PhysicalExpr;
use datafusion::physical_expr::expressions::Column as PhysicalColumn;
use millstream_catalog::model::Span;
use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

/// Aggregates that give the same whatever the order their states are merged in.
const EXACT: [&str; 11] =
    ["count", "sum", "avg", "min", "max", "bool_and", "bool_or", "every", "bit_and", "bit_or", "bit_xor"];

/// An aggregate over hopping windows: everything over the columns below the windows.
struct Panes<'a> {
    projection: &'a Projection,
    unnest: &'a Unnest,
    /// The position of the windows.
    at: usize,
    hopping: Hopping,
    time: &'a Expr,
    groups: Vec<Expr>,
    calls: Vec<Expr>,
}

/// `expression` over the columns of what is below `plan`, down to the windows; `None` when it is not that simple.
fn below<'a>(plan: &'a LogicalPlan, expressions: &mut [Expr]) -> Option<&'a Unnest> {
    let (input, map): (&LogicalPlan, Vec<Expr>) = match plan {
        LogicalPlan::Projection(projection) => {
            (&projection.input, projection.expr.iter().map(|expression| unalias(expression).clone()).collect())
        }
        LogicalPlan::SubqueryAlias(alias) => (&alias.input, columns_of(alias.input.schema())),
        LogicalPlan::Unnest(unnest) => {
            starts(unnest)?;
            replace(expressions, plan.schema(), &columns_of(unnest.input.schema()))?;
            return Some(unnest);
        }
        _ => return None,
    };
    replace(expressions, plan.schema(), &map)?;
    below(input, expressions)
}

fn columns_of(schema: &DFSchema) -> Vec<Expr> {
    (0..schema.fields().len()).map(|at| Expr::Column(Column::from(schema.qualified_field(at)))).collect()
}

/// Puts `map` in place of the columns of `schema`.
fn replace(expressions: &mut [Expr], schema: &DFSchema, map: &[Expr]) -> Option<()> {
    for expression in expressions {
        let replaced = expression.clone().transform(|part| -> DataFusionResult<Transformed<Expr>> {
            let Expr::Column(column) = &part else { return Ok(Transformed::no(part)) };
            let at = schema.index_of_column(column)?;
            // What is put in is over other columns already.
            Ok(Transformed::new(map[at].clone(), true, datafusion::common::tree_node::TreeNodeRecursion::Jump))
        });
        *expression = replaced.ok()?.data;
    }
    Some(())
}

impl<'a> Panes<'a> {
    fn of(aggregate: &'a logical_expr::Aggregate) -> Option<Self> {
        if aggregate.group_expr.iter().any(|group| matches!(group, Expr::GroupingSet(_))) {
            return None;
        }
        let mut all: Vec<Expr> =
            aggregate.group_expr.iter().chain(&aggregate.aggr_expr).map(|one| unalias(one).clone()).collect();
        let unnest = below(&aggregate.input, &mut all)?;
        let LogicalPlan::Projection(projection) = unnest.input.as_ref() else { return None };
        let (at, call) = starts(unnest)?;
        let (hopping, time) = starts_call(call)?;
        let calls = all.split_off(aggregate.group_expr.len());
        let panes = Self { projection, unnest, at, hopping, time, groups: all, calls };
        panes.is_exact().then_some(panes)
    }

    /// The columns below the windows, the time in place of the list of starts.
    fn timed(&self) -> Result<(Vec<Expr>, Arc<DFSchema>), SqlError> {
        let schema = &self.projection.schema;
        let mut expressions = self.projection.expr.clone();
        expressions[self.at] = self.time.clone();
        let fields = (0..schema.fields().len()).map(|at| {
            let (qualifier, field) = schema.qualified_field(at);
            let mut field = Arc::clone(field);
            if at == self.at {
                let time = self.time.get_type(self.projection.input.schema())?;
                field = Arc::new(field.as_ref().clone().with_data_type(time).with_nullable(true));
            }
            Ok((qualifier.cloned(), field))
        });
        let fields = fields.collect::<DataFusionResult<Vec<_>>>().map_err(sql_error)?;
        Ok((expressions, Arc::new(DFSchema::new_with_metadata(fields, HashMap::new()).map_err(sql_error)?)))
    }

    /// Whether `expression` reads the window.
    fn reads_window(&self, expression: &Expr) -> bool {
        let window = columns_of(&self.projection.schema).swap_remove(self.at);
        expression.exists(|part| Ok(*part == window)).unwrap_or(true)
    }

    /// Whether rows can be aggregated before they come once for each window.
    fn is_exact(&self) -> bool {
        let schema = &self.projection.schema;
        let is_plain = |group: &Expr| {
            let is_time = group.get_type(schema).map_or(true, |one| matches!(one, DataType::Timestamp(..)));
            !is_time && !self.reads_window(group)
        };
        let only_window = |group: &Expr| self.reads_window(group) && group.column_refs().len() == 1;
        let has_windows = self.groups.iter().any(only_window);
        let is_exact = |call: &Expr| {
            let Expr::AggregateFunction(function) = call else { return false };
            let (name, params) = (function.func.name(), &function.params);
            let is_float = |argument: &Expr| argument.get_type(schema).map_or(true, |one| one.is_floating());
            let is_sum = matches!(name, "sum" | "avg");
            EXACT.contains(&name)
                && !params.distinct
                && params.order_by.is_empty()
                && !(is_sum && params.args.iter().any(is_float))
                && !self.reads_window(call)
        };
        has_windows
            && self.groups.iter().all(|group| is_plain(group) || only_window(group))
            && self.calls.iter().all(is_exact)
            && !is_changelog(&self.projection.input)
    }
}

/// What comes out of the panes, and out of the windows above.
struct Columns {
    /// Positions of the grouping expressions that are not windows.
    plain: Vec<usize>,
    panes: Vec<FieldRef>,
    windows: DFSchema,
}

impl Columns {
    /// The keys, the window, then the states of `calls`.
    fn new(
        panes: &Panes<'_>,
        keys: &[Arc<dyn PhysicalExpr>],
        plain: Vec<usize>,
        calls: &[PartialCall],
    ) -> Result<Self, SqlError> {
        let input = panes.projection.schema.as_arrow();
        let mut fields: Vec<FieldRef> = Vec::new();
        for (at, key) in keys.iter().enumerate() {
            let data_type = key.data_type(input).map_err(sql_error)?;
            fields.push(Arc::new(Field::new(format!("key{at}"), data_type, true)));
        }
        let list = nullable(&panes.projection.schema.fields()[panes.at]);
        let (qualifier, _) = panes.projection.schema.qualified_field(panes.at);
        let element = nullable(&panes.unnest.schema.fields()[panes.at]).as_ref().clone().with_name(list.name().clone());
        let states = state_fields(calls).into_iter().map(Arc::new);
        let unqualified = |field: &FieldRef| (None, Arc::clone(field));
        let mut windows: Vec<(Option<TableReference>, FieldRef)> = fields.iter().map(unqualified).collect();
        windows.push((qualifier.cloned(), Arc::new(element)));
        fields.push(list);
        for state in states {
            windows.push((None, Arc::clone(&state)));
            fields.push(state);
        }
        let windows = DFSchema::new_with_metadata(windows, HashMap::new()).map_err(sql_error)?;
        Ok(Self { plain, panes: fields, windows })
    }
}

impl Planner<'_> {
    /// The rows of `aggregate` by pane, once for each window; `None` when they are to be aggregated there one by one.
    pub(super) fn panes<'p>(
        &mut self,
        aggregate: &'p logical_expr::Aggregate,
    ) -> Result<Option<Grouped<'p>>, SqlError> {
        let Some(panes) = Panes::of(aggregate) else { return Ok(None) };
        let plain: Vec<usize> = (0..panes.groups.len()).filter(|at| !panes.reads_window(&panes.groups[*at])).collect();
        let projection = panes.projection;
        let schema = projection.schema.as_ref();
        let calls = panes.calls.iter().map(|call| self.call_over(call, schema, Rows::Stay));
        let mut calls: Vec<Call> = calls.collect::<Result<_, _>>()?;
        let (mut partial, mut merging) = (Vec::new(), Vec::new());
        let mut first = plain.len() + 1;
        for call in calls.drain(..) {
            let Some((part, rest)) = call.split(first) else { return Ok(None) };
            first += state_fields(std::slice::from_ref(&part)).len();
            partial.push(part);
            merging.push(rest);
        }
        let keys = plain.iter().map(|at| self.physical(&panes.groups[*at], schema));
        let keys = keys.collect::<Result<Vec<_>, _>>()?;
        let columns = Columns::new(&panes, &keys, plain, &partial)?;
        let input = self.build(&projection.input, Need::ROWS)?;
        let is_timed = input.is_time(panes.time);
        let (expressions, timed) = panes.timed()?;
        let input = input.project(self, &expressions, &timed)?.settle(self)?;
        let size = Span::from_micros(panes.hopping.size);
        let grace = self.query.grace_of(size, input.is_declared);
        let bounds = WindowBounds { key: 0, length: size, grace, delay: input.delay, is_shared: true };
        let list = columns.plain.len();
        let out = Arc::new(Schema::new(columns.panes.clone()));
        let partial = Partial::new(keys, (panes.at, panes.hopping), is_timed.then_some(bounds), partial, out);
        let edge = self.add(Box::new(partial), vec![input.edge.clone()]);
        let edge = self.add(Box::new(Hop::new(list, Arc::clone(columns.windows.inner()))), vec![edge]);
        let fields: Vec<FieldRef> = columns.windows.fields().iter().cloned().collect();
        let window = WindowColumn { at: list, length: size, grace, kind: WindowColumnKind::Shared };
        let windows = if is_timed { vec![window] } else { Vec::new() };
        let built = Built {
            edge,
            base: fields.clone(),
            fields,
            schema: Arc::new(columns.windows.clone()),
            mode: Mode::Append,
            key: Vec::new(),
            windows,
            times: BTreeSet::new(),
            ..input
        };
        self.over_windows(aggregate, &panes, &columns, built, merging).map(Some)
    }

    fn over_windows<'p>(
        &self,
        aggregate: &'p logical_expr::Aggregate,
        panes: &Panes<'_>,
        columns: &Columns,
        input: Built,
        calls: Vec<Call>,
    ) -> Result<Grouped<'p>, SqlError> {
        let (mut keys, mut windows) = (Vec::with_capacity(panes.groups.len()), Vec::new());
        for (at, group) in panes.groups.iter().enumerate() {
            keys.push(match columns.plain.iter().position(|plain| *plain == at) {
                Some(key) => Arc::new(PhysicalColumn::new(&format!("key{key}"), key)) as Arc<dyn PhysicalExpr>,
                None => {
                    windows.extend(input.window_of(group, self).map(|window| WindowColumn { at, ..window }));
                    self.physical(group, &columns.windows)?
                }
            });
        }
        let grouped = aggregate.group_expr.iter().map(Some).collect();
        Ok(Grouped { input, keys, grouped, windows, calls, lasting: Vec::new() })
    }
}
