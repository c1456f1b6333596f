//! Window functions, and what is the first rows of something: `row_number() <= n`, `rank() <= n`, `ORDER BY … LIMIT`.
//!
//! Leaves out the operators (`stream::over`, `stream::top_n`, `stream::deduplicate`). Pure.

use super::built::{Built, Key, Mode, WindowColumn};
use super::{Need, Planner, has_now, nullable, unalias};
use crate::error::SqlError;
use crate::stream::{
    Changes, Deduplicate, Deduplication, Number, Operator as PipelineOperator, Over, Ranking, TopN, TopSpec,
    WindowBounds, sql_error,
};
use arrow::compute::SortOptions;
use arrow::datatypes::{FieldRef, Schema};
use datafusion::common::{DFSchemaRef, ScalarValue};
use datafusion::logical_expr::execution_props::ExecutionProps;
use datafusion::logical_expr::expr::{Sort, WindowFunctionParams};
use datafusion::logical_expr::physical_planning_context::PhysicalPlanningContext;
use datafusion::logical_expr::utils::{conjunction, split_conjunction};
use datafusion::logical_expr::{self, Expr, FetchType, LogicalPlan, Operator, SkipType};
use datafusion::physical_expr::PhysicalSortExpr;
use datafusion::physical_planner::create_window_expr;
use std::collections::BTreeSet;
use std::sync::Arc;

/// A row of a top-n, before it is known what it reads.
struct Top<'a> {
    partition: &'a [Expr],
    order: &'a [Sort],
    ranking: Ranking,
    skip: usize,
    count: usize,
    number: Number,
}

/// A filter that keeps the first rows of each partition of a window.
struct Ranked<'a> {
    window: &'a logical_expr::Window,
    /// What stands between the window and the filter.
    between: Option<&'a logical_expr::Projection>,
    params: &'a WindowFunctionParams,
    ranking: Ranking,
    count: usize,
    /// What the filter asks beside that.
    rest: Option<Expr>,
}

impl Planner<'_> {
    /// Window functions of one order.
    pub(super) fn window(&mut self, window: &logical_expr::Window) -> Result<Built, SqlError> {
        let input = self.build(&window.input, Need { key: true, forms: false })?.settle(self)?;
        let mut calls = Vec::with_capacity(window.window_expr.len());
        for call in &window.window_expr {
            if let Expr::WindowFunction(function) = unalias(call) {
                let params = &function.params;
                check_order(params.partition_by.iter().chain(params.order_by.iter().map(|one| &one.expr)))?;
            }
            let call = self.with_step_now(call, &input.schema)?;
            let (props, context) = (ExecutionProps::new(), PhysicalPlanningContext::default());
            calls.push(create_window_expr(&call, &input.schema, &props, &context).map_err(sql_error)?);
        }
        let orders = |at: usize| calls.get(at).map(|call| (call.partition_by(), call.order_by()));
        if (1..calls.len()).any(|at| orders(at) != orders(0)) {
            return Err(SqlError::internal("window functions of several orders on one level"));
        }
        let (fields, arrow) = (with_fields(&input, &window.schema), input.arrow());
        let schema = Arc::new(Schema::new(fields.clone()));
        let partition = match window.window_expr.first().map(unalias) {
            Some(Expr::WindowFunction(function)) => function.params.partition_by.as_slice(),
            _ => &[],
        };
        let kept = closing(&window.input, &input, partition);
        let closes = kept.map(|(_, bounds)| bounds);
        let operator = Over::new(calls, closes, arrow, input.visible(), schema)?;
        let edge = self.add(Box::new(operator), vec![input.edge.clone()]);
        Ok(Built { edge, ..changing(input, fields, &window.schema, Mode::Both, kept) })
    }

    /// The filter as a top-n, if it is one; `above` are the expressions that read it, where they are known.
    pub(super) fn ranked(
        &mut self,
        filter: &logical_expr::Filter,
        above: Option<&[Expr]>,
        need: Need,
    ) -> Result<Option<Built>, SqlError> {
        let Some(Ranked { window, between, params, ranking, count, rest }) = ranked(filter) else { return Ok(None) };
        self.check_filter(&filter.predicate)?;
        let at = window.schema.fields().len() - 1;
        let name = window.schema.field(at).name();
        let reads = |expression: &Expr| expression.column_refs().iter().any(|column| column.name == *name);
        let is_read = above.is_none_or(|above| above.iter().any(reads)) || rest.as_ref().is_some_and(reads);
        let number = if is_read { Number::Told } else { Number::Unread };
        let (partition, order) = (params.partition_by.as_slice(), params.order_by.as_slice());
        let top = Top { partition, order, ranking, skip: 0, count, number };
        let mut built = self.top(&window.input, &top, &window.schema, need)?;
        if let Some(between) = between {
            built = built.project(self, &between.expr, &between.schema)?;
        }
        match rest {
            Some(rest) => built.filter(self, &rest).map(Some),
            None => Ok(Some(built)),
        }
    }

    /// LIMIT, which needs an order.
    pub(super) fn limit(&mut self, limit: &logical_expr::Limit) -> Result<Built, SqlError> {
        let (SkipType::Literal(skip), FetchType::Literal(fetch)) = (limit.get_skip_type()?, limit.get_fetch_type()?)
        else {
            return Err(SqlError::unsupported("a computed LIMIT in a continuous query", "write a number"));
        };
        self.first_of(&limit.input, skip, fetch.unwrap_or(usize::MAX))
    }

    fn first_of(&mut self, plan: &LogicalPlan, skip: usize, count: usize) -> Result<Built, SqlError> {
        match plan {
            LogicalPlan::Projection(projection) => {
                let input = self.first_of(&projection.input, skip, count)?;
                input.project(self, &projection.expr, &projection.schema)
            }
            LogicalPlan::Sort(sort) => {
                let (ranking, number) = (Ranking::RowNumber, Number::Absent);
                let top = Top { partition: &[], order: &sort.expr, ranking, skip, count, number };
                self.top(&sort.input, &top, sort.input.schema(), Need::ROWS)
            }
            _ => Err(SqlError::unsupported(
                "LIMIT without ORDER BY in a continuous query",
                "say with ORDER BY which rows",
            )),
        }
    }

    fn top(&mut self, input: &LogicalPlan, top: &Top<'_>, schema: &DFSchemaRef, need: Need) -> Result<Built, SqlError> {
        check_order(top.partition.iter().chain(top.order.iter().map(|one| &one.expr)))?;
        let plan = input;
        let input = self.build(plan, Need { key: true, forms: false })?.settle(self)?;
        let partition = top.partition.iter().map(|key| self.physical(key, &input.schema));
        let partition = partition.collect::<Result<Vec<_>, _>>()?;
        let order = top.order.iter().map(|one| {
            let options = SortOptions { descending: !one.asc, nulls_first: one.nulls_first };
            Ok(PhysicalSortExpr { expr: self.physical(&one.expr, &input.schema)?, options })
        });
        let order = order.collect::<Result<Vec<_>, SqlError>>()?;
        let fields = match top.number {
            Number::Absent => input.fields.clone(),
            Number::Unread | Number::Told => with_fields(&input, schema),
        };
        let key = own_key(&input, top);
        let (columns, visible) = (input.arrow(), input.visible());
        let (number, out) = (top.number, Arc::new(Schema::new(fields.clone())));
        let kept = closing(plan, &input, top.partition);
        // What is shown of new forms is kept until they go: a window that closes would not take it along.
        let mode = if need.forms && kept.is_none() { Mode::Forms } else { Mode::Both };
        let operator: Box<dyn PipelineOperator> = match (&key, input.mode, mode) {
            (Some(_), Mode::Append, Mode::Forms) => {
                let spec = Deduplication { partition, order, number, input: columns, visible, schema: out };
                Box::new(Deduplicate::new(spec)?)
            }
            _ => Box::new(TopN::new(TopSpec {
                window: kept.map(|(_, bounds)| bounds),
                partition,
                order,
                ranking: top.ranking,
                skip: top.skip,
                count: top.count,
                number,
                rows: input.rows(),
                changes: if mode == Mode::Forms { Changes::Forms } else { Changes::Both },
                input: columns,
                visible,
                schema: out,
            })?),
        };
        let edge = self.add(operator, vec![input.edge.clone()]);
        let built = Built { edge, ..changing(input, fields, schema, mode, kept) };
        Ok(match key {
            Some(key) => Built { key, ..built },
            None => built,
        })
    }
}

/// Of the first row of each partition, the partition, where it is columns.
fn own_key(input: &Built, top: &Top<'_>) -> Option<Vec<Key>> {
    if top.skip > 0 || top.count != 1 || top.partition.is_empty() || top.ranking != Ranking::RowNumber {
        return None;
    }
    let key = |expression: &Expr| match unalias(expression) {
        Expr::Column(column) => {
            let at = input.schema.maybe_index_of_column(column)?;
            Some(Key { at, shown: Some(at), name: column.name.clone(), is_hidden: true })
        }
        _ => None,
    };
    let mut keys: Vec<Key> = Vec::new();
    for one in top.partition {
        let one = key(one)?;
        if keys.iter().all(|other| other.at != one.at) {
            keys.push(one);
        }
    }
    Some(keys)
}

/// The columns of `input`, those that `schema` has more after the visible ones.
fn with_fields(input: &Built, schema: &DFSchemaRef) -> Vec<FieldRef> {
    let (visible, hidden) = input.fields.split_at(input.visible());
    let added = schema.fields().iter().skip(input.visible()).map(nullable);
    visible.iter().cloned().chain(added).chain(hidden.iter().cloned()).collect()
}

/// `input` as rows that change with others, with columns more. Nothing is known of their time but the window of their
/// partition; that of a row's key does not end what becomes of it.
fn changing(
    mut input: Built,
    fields: Vec<FieldRef>,
    schema: &DFSchemaRef,
    mode: Mode,
    kept: Option<(WindowColumn, WindowBounds)>,
) -> Built {
    let (visible, added) = (input.visible(), fields.len() - input.fields.len());
    for key in &mut input.key {
        key.at = if key.at < visible { key.at } else { key.at + added };
    }
    Built {
        base: fields.clone(),
        fields,
        schema: Arc::clone(schema),
        mode,
        windows: kept.map(|(window, _)| window).into_iter().collect(),
        window: None,
        times: BTreeSet::new(),
        ..input
    }
}

/// The window among `partition` whose rows, those of `plan`, change no more once it is closed: it was grouped by.
fn closing(plan: &LogicalPlan, input: &Built, partition: &[Expr]) -> Option<(WindowColumn, WindowBounds)> {
    let windows = partition.iter().enumerate().filter_map(|(key, expression)| {
        let Expr::Column(column) = unalias(expression) else { return None };
        let at = input.schema.maybe_index_of_column(column)?;
        let window = input.windows.iter().find(|window| window.at == at).filter(|_| is_grouped(plan, at))?;
        let WindowColumn { length, grace, .. } = *window;
        Some((*window, WindowBounds { key, length, grace, delay: input.delay, is_shared: false }))
    });
    windows.min_by_key(|(window, _)| window.length)
}

/// Whether column `at` of `plan` is one that an aggregate below groups by.
fn is_grouped(plan: &LogicalPlan, at: usize) -> bool {
    match plan {
        LogicalPlan::Projection(projection) => match projection.expr.get(at).map(unalias) {
            Some(Expr::Column(column)) => {
                let from = projection.input.schema().maybe_index_of_column(column);
                from.is_some_and(|at| is_grouped(&projection.input, at))
            }
            _ => false,
        },
        LogicalPlan::SubqueryAlias(alias) => is_grouped(&alias.input, at),
        LogicalPlan::Filter(filter) => is_grouped(&filter.input, at),
        LogicalPlan::Aggregate(aggregate) => at < aggregate.group_expr.len(),
        _ => false,
    }
}

/// Rows must stay where they are.
fn check_order<'e>(mut expressions: impl Iterator<Item = &'e Expr>) -> Result<(), SqlError> {
    match expressions.any(has_now) {
        true => Err(SqlError::unsupported("an order by now() in a continuous query", "order by a column")),
        false => Ok(()),
    }
}

fn ranked(filter: &logical_expr::Filter) -> Option<Ranked<'_>> {
    let (between, window) = match filter.input.as_ref() {
        LogicalPlan::Window(window) => (None, window),
        LogicalPlan::Projection(projection) => match projection.input.as_ref() {
            LogicalPlan::Window(window) => (Some(projection), window),
            _ => return None,
        },
        _ => return None,
    };
    let [call] = window.window_expr.as_slice() else { return None };
    let Expr::WindowFunction(function) = unalias(call) else { return None };
    let ranking = match function.fun.name() {
        "row_number" => Ranking::RowNumber,
        "rank" => Ranking::Rank,
        "dense_rank" => Ranking::DenseRank,
        _ => return None,
    };
    let passes = |expression: &Expr| matches!(expression, Expr::Column(_));
    if between.is_some_and(|between| !between.expr.iter().all(passes)) {
        return None;
    }
    let name = window.schema.fields().last()?.name();
    let conditions = split_conjunction(&filter.predicate);
    let bounds = conditions.iter().enumerate();
    let (at, (count, is_all)) = bounds.filter_map(|(at, one)| Some((at, bound(one, name)?))).next()?;
    let rest = conditions.iter().enumerate().filter(|(other, _)| *other != at || !is_all);
    let rest = conjunction(rest.map(|(_, one)| (*one).clone()));
    Some(Ranked { window, between, params: &function.params, ranking, count, rest })
}

/// How many rows `condition` on the number in column `name` leaves at most, and whether it says no more than that.
fn bound(condition: &Expr, name: &str) -> Option<(usize, bool)> {
    let Expr::BinaryExpr(binary) = condition else { return None };
    let is_number = |expression: &Expr| matches!(expression, Expr::Column(column) if column.name == name);
    let (operator, value) = match is_number(&binary.left) {
        true => (binary.op, binary.right.as_ref()),
        false if is_number(&binary.right) => (binary.op.swap()?, binary.left.as_ref()),
        false => return None,
    };
    let count = match value {
        Expr::Literal(ScalarValue::UInt64(Some(value)), _) => usize::try_from(*value).ok()?,
        Expr::Literal(ScalarValue::Int64(Some(value)), _) => usize::try_from(*value).ok()?,
        _ => return None,
    };
    match operator {
        Operator::LtEq => Some((count, true)),
        Operator::Lt => Some((count.saturating_sub(1), count > 0)),
        Operator::Eq => Some((count, count == 1)),
        _ => None,
    }
}
