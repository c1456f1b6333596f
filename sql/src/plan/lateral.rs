//! Lateral sources that compute from each row to their left: `FROM t, unnest(t.tags) AS tag`.
//!
//! What stands to the left becomes a sub-query whose SELECT list has the lateral columns at its end; names to the left
//! then stand for columns of that sub-query. Covers `unnest`, `generate_series` and sub-queries without FROM, joined by a
//! comma, CROSS JOIN, or JOIN … ON true. Leaves out correlated sub-queries, which the engine turns into joins. Pure.

use super::from::resolve_factor;
use super::refuse;
use super::resolve::Resolver;
use super::scope::{Scope, ScopeRelation, StarColumn, quoted, reference};
use crate::error::SqlError;
use sqlparser::ast::{
    Expr, JoinConstraint, JoinOperator, Query, Select, SelectItem, SetExpr, TableAlias, TableFactor, TableWithJoins,
    Value, VisitMut, VisitorMut,
};
use std::collections::HashMap;
use std::ops::ControlFlow;

/// True for a source that may be computed from the row to its left.
pub(super) fn is_inline(factor: &TableFactor) -> bool {
    match factor {
        TableFactor::UNNEST { .. } | TableFactor::Function { .. } => true,
        TableFactor::Table { args, .. } => args.is_some(),
        TableFactor::Derived { lateral: true, subquery, .. } => plain_items(subquery).is_some(),
        _ => false,
    }
}

/// True for a join that keeps every pair.
pub(super) fn is_cross(operator: &JoinOperator) -> bool {
    match operator {
        JoinOperator::CrossJoin(JoinConstraint::None) => true,
        JoinOperator::Join(JoinConstraint::On(expr)) | JoinOperator::Inner(JoinConstraint::On(expr)) => {
            matches!(expr, Expr::Value(value) if value.value == Value::Boolean(true))
        }
        _ => false,
    }
}

/// The SELECT list of a query that is nothing else.
fn plain_items(query: &Query) -> Option<&Vec<SelectItem>> {
    let is_bare =
        query.with.is_none() && query.order_by.is_none() && query.limit_clause.is_none() && query.fetch.is_none();
    match query.body.as_ref() {
        SetExpr::Select(select) if is_bare && is_plain(select) => Some(&select.projection),
        _ => None,
    }
}

fn is_plain(select: &Select) -> bool {
    let mut rest = select.clone();
    rest.projection = Vec::new();
    let mut nothing = refuse::select_all(sqlparser::ast::ObjectName(Vec::new()));
    nothing.projection = Vec::new();
    nothing.from = Vec::new();
    nothing.select_token = rest.select_token.clone();
    let is_item = |item: &SelectItem| matches!(item, SelectItem::UnnamedExpr(_) | SelectItem::ExprWithAlias { .. });
    rest == nothing && select.projection.iter().all(is_item)
}

/// True when `factor`, resolved, names something to its left.
fn looks_left(factor: &mut TableFactor, left: &[ScopeRelation]) -> bool {
    let aliases: HashMap<&str, ()> = left.iter().map(|relation| (relation.plan_alias.as_str(), ())).collect();
    struct Find<'a>(HashMap<&'a str, ()>);
    impl VisitorMut for Find<'_> {
        type Break = ();
        fn pre_visit_expr(&mut self, expr: &mut Expr) -> ControlFlow<()> {
            match expr {
                Expr::CompoundIdentifier(idents)
                    if idents.first().is_some_and(|ident| self.0.contains_key(ident.value.as_str())) =>
                {
                    ControlFlow::Break(())
                }
                _ => ControlFlow::Continue(()),
            }
        }
    }
    factor.visit(&mut Find(aliases)).is_break()
}

/// Resolves `factor`; if it computes from `left`, folds both into one source and changes `star` and `scope` to it.
///
/// Gives what `*` shows of the factor, and whether it was folded (then it is part of `left`).
pub(super) fn resolve(
    resolver: &mut Resolver<'_>,
    factor: &mut TableFactor,
    left: &mut Vec<TableWithJoins>,
    star: &mut [StarColumn],
    scope: &mut Scope<'_>,
) -> Result<(Vec<StarColumn>, bool), SqlError> {
    let known = scope.relations.len();
    let shown = resolve_factor(resolver, factor, scope)?;
    if left.is_empty() || !is_inline(factor) || !looks_left(factor, &scope.relations[..known]) {
        return Ok((shown, false));
    }
    let Some(added) = scope.relations.pop() else { return Err(SqlError::internal("a source without names")) };
    let name = resolver.fresh_name("lateral");
    let mut items: Vec<SelectItem> = Vec::new();
    let mut moved = HashMap::new();
    for relation in &mut scope.relations {
        for column in &mut relation.columns {
            let internal = format!("{}#{}", relation.plan_alias, column.internal);
            items.push(SelectItem::ExprWithAlias {
                expr: reference(&relation.plan_alias, &column.internal),
                alias: quoted(&internal),
            });
            moved.insert((relation.plan_alias.clone(), column.internal.clone()), internal.clone());
            column.internal = internal;
        }
        relation.plan_alias.clone_from(&name);
    }
    let exprs = computed(factor)?;
    let mut added = ScopeRelation { plan_alias: name.clone(), ..added };
    for (column, expr) in added.columns.iter_mut().zip(exprs) {
        column.internal = format!("{}#{}", added.alias, column.internal);
        items.push(SelectItem::ExprWithAlias { expr, alias: quoted(&column.internal) });
    }
    let mut select = refuse::select_all(sqlparser::ast::ObjectName(Vec::new()));
    select.from = std::mem::take(left);
    select.projection = items;
    let query = Query { body: Box::new(SetExpr::Select(Box::new(select))), ..refuse::empty_query() };
    let alias = TableAlias { explicit: true, name: quoted(&name), columns: Vec::new(), at: None };
    let relation = TableFactor::Derived { lateral: false, subquery: Box::new(query), alias: Some(alias), sample: None };
    left.push(TableWithJoins { relation, joins: Vec::new() });
    let mut redirect = Redirect { name: &name, moved: &moved };
    let exprs = star.iter_mut().chain(&mut scope.star).chain(&mut scope.merged);
    for column in exprs {
        let _: ControlFlow<()> = column.expr.visit(&mut redirect);
    }
    let shown = added.star();
    scope.relations.push(added);
    Ok((shown, true))
}

/// The values of a resolved lateral source, one per column.
fn computed(factor: &mut TableFactor) -> Result<Vec<Expr>, SqlError> {
    match factor {
        TableFactor::UNNEST { array_exprs, .. } => {
            Ok(array_exprs.drain(..).map(|array| super::rewrite::call("unnest", vec![array])).collect())
        }
        TableFactor::Derived { subquery, .. } => match subquery.body.as_mut() {
            SetExpr::Select(select) => Ok(select
                .projection
                .drain(..)
                .filter_map(|item| match item {
                    SelectItem::ExprWithAlias { expr, .. } | SelectItem::UnnamedExpr(expr) => Some(expr),
                    _ => None,
                })
                .collect()),
            _ => Err(SqlError::internal("a lateral sub-query of another form")),
        },
        _ => Err(SqlError::internal("a lateral source of another form")),
    }
}

/// References to the left now go to the folded source.
struct Redirect<'a> {
    name: &'a str,
    moved: &'a HashMap<(String, String), String>,
}

impl VisitorMut for Redirect<'_> {
    type Break = ();

    fn pre_visit_expr(&mut self, expr: &mut Expr) -> ControlFlow<()> {
        if let Expr::CompoundIdentifier(idents) = expr
            && let [alias, column] = idents.as_slice()
            && let Some(internal) = self.moved.get(&(alias.value.clone(), column.value.clone()))
        {
            *expr = reference(self.name, internal);
        }
        ControlFlow::Continue(())
    }
}
