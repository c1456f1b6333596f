//! What a continuous query does, in the words of the statement: for EXPLAIN and DESCRIBE.
//!
//! Leaves out how operators lay out their state, which is `Pipeline::fingerprint`. Pure.

use super::ContinuousPlan;
use crate::dialect::ast::{Select, WindowKind};
use crate::function::registry;
use crate::stream::Pipeline;
use millstream_catalog::model::Name;
use millstream_catalog::{Relation, RelationKind};
use sqlparser::ast::{Expr, Function, GroupByExpr, Select as SqlSelect, SelectItem, SetExpr, Value, Visit, Visitor};
use std::fmt::Display;
use std::ops::ControlFlow;

/// The parts of the query `select`, which `plan` and `pipeline` are made of, from what it reads to what it writes: the
/// name of each and what is to be said of it. `sink` is what it writes, `None` for a subscription.
pub fn outline(
    select: &Select,
    plan: &ContinuousPlan,
    pipeline: &Pipeline,
    sink: Option<&Name>,
) -> Vec<(&'static str, String)> {
    let mut parts = source(plan, pipeline);
    let Some(body) = body(select) else { return parts };
    parts.extend(body.selection.as_ref().map(|filter| ("Filter", filter.to_string())));
    if let (Some(window), Some(grace)) = (plan.window, plan.grace()) {
        let shape = match window.kind {
            WindowKind::Tumbling { size } => format!("tumbling, size {size}"),
            WindowKind::Hopping { size, advance } => format!("hopping, size {size}, advance by {advance}"),
            WindowKind::Session { gap } => format!("session, gap {gap}"),
        };
        parts.push(("Window", format!("{shape}, grace {grace}")));
    }
    let keys = group_keys(body);
    if !keys.is_empty() {
        parts.push(("Group by", keys.join(", ")));
    }
    let mut aggregates = Aggregates::default();
    let _ = body.projection.visit(&mut aggregates);
    let _ = body.having.visit(&mut aggregates);
    if !aggregates.0.is_empty() {
        parts.push(("Aggregates", aggregates.0.join(", ")));
    }
    parts.extend(body.having.as_ref().map(|having| ("Having", having.to_string())));
    parts.push(("Gives", columns(body, plan)));
    parts.push(result(pipeline, sink));
    parts
}

/// The one SELECT of a continuous query.
fn body(select: &Select) -> Option<&SqlSelect> {
    let mut query = select.query.as_ref();
    loop {
        match query.body.as_ref() {
            SetExpr::Select(body) => return Some(body),
            SetExpr::Query(inner) => query = inner,
            _ => return None,
        }
    }
}

fn word(kind: RelationKind) -> &'static str {
    match kind {
        RelationKind::Stream => "stream",
        RelationKind::Table => "table",
    }
}

fn source(plan: &ContinuousPlan, pipeline: &Pipeline) -> Vec<(&'static str, String)> {
    let sources = plan.sources.iter().enumerate();
    sources.flat_map(|(number, relation)| source_parts(number, relation, pipeline)).collect()
}

fn source_parts(number: usize, relation: &Relation, pipeline: &Pipeline) -> Vec<(&'static str, String)> {
    let read: Vec<&str> = pipeline.columns_read(number).collect();
    let read = if read.is_empty() { "no columns".to_owned() } else { format!("columns {}", read.join(", ")) };
    let mut parts = vec![("Reads", format!("{} \"{}\", {read}", word(relation.kind), relation.name))];
    let column = relation.timestamp.and_then(|index| relation.schema.columns.get(index));
    let column = column.map(|column| format!("column \"{}\"", column.name));
    let delay = relation.watermark_delay.map(|delay| format!("the watermark is {delay} behind"));
    let time: Vec<String> = column.into_iter().chain(delay).collect();
    if !time.is_empty() {
        parts.push(("Event time", time.join(", ")));
    }
    parts
}

fn group_keys(body: &SqlSelect) -> Vec<String> {
    let GroupByExpr::Expressions(keys, _) = &body.group_by else { return Vec::new() };
    let key = |key: &Expr| {
        let Expr::Value(value) = key else { return key.to_string() };
        let Value::Number(number, _) = &value.value else { return key.to_string() };
        let item = number.parse::<usize>().ok().and_then(|n| body.projection.get(n.checked_sub(1)?));
        match item {
            Some(SelectItem::UnnamedExpr(expr) | SelectItem::ExprWithAlias { expr, .. }) => expr.to_string(),
            _ => key.to_string(),
        }
    };
    keys.iter().map(key).collect()
}

/// The calls of aggregates in an expression, each once.
#[derive(Default)]
struct Aggregates(Vec<String>);

impl Visitor for Aggregates {
    type Break = ();

    fn pre_visit_expr(&mut self, expr: &Expr) -> ControlFlow<()> {
        if let Expr::Function(call @ Function { over: None, name, .. }) = expr
            && registry().is_aggregate(name)
            && !self.0.contains(&call.to_string())
        {
            self.0.push(call.to_string());
        }
        ControlFlow::Continue(())
    }
}

/// The select list, with `*` written out.
fn columns(body: &SqlSelect, plan: &ContinuousPlan) -> String {
    fn list(items: impl Iterator<Item = impl Display>) -> String {
        items.map(|item| item.to_string()).collect::<Vec<_>>().join(", ")
    }
    let is_plain = |item: &SelectItem| matches!(item, SelectItem::UnnamedExpr(_) | SelectItem::ExprWithAlias { .. });
    match body.projection.iter().all(is_plain) {
        true => list(body.projection.iter()),
        false => list(plan.columns.iter().map(|column| &column.name)),
    }
}

fn result(pipeline: &Pipeline, sink: Option<&Name>) -> (&'static str, String) {
    let output = pipeline.output();
    let Some(sink) = sink else {
        let rows = match output.kind {
            RelationKind::Stream => "each row",
            RelationKind::Table => "the new form of each changed row",
        };
        return ("Sends", format!("{rows} to the client"));
    };
    let is_one_row = pipeline.has_one_row();
    let key = output.columns.iter().filter(|column| column.is_key && !is_one_row);
    let key: Vec<&str> = key.map(|column| column.name.as_str()).collect();
    let key = match (output.kind, key.is_empty()) {
        (RelationKind::Stream, true) => String::new(),
        (RelationKind::Table, true) => ", one row".to_owned(),
        (_, false) => format!(", key {}", key.join(", ")),
    };
    ("Writes", format!("{} \"{sink}\"{key}", word(output.kind)))
}
