//! Names to columns: rewrites a query so that every reference is qualified and every output column has its own name.
//!
//! Owns CTEs, set operations, `SELECT` lists with `*`, GROUP BY and ORDER BY by position and by output name, as PostgreSQL
//! has them. Leaves out FROM (`from`), expressions (`rewrite`) and types (`operator`). Called before the logical plan is
//! made; what it lets through names only things the catalog has. Pure.

use super::names::{column_name, number};
use super::refuse;
use super::rewrite::{resolve_condition, resolve_expr};
use super::scope::{Scope, ScopeColumn, StarColumn, quoted};
use super::settle::{condition, has_window_call};
use super::syntax;
use super::view::Expansion;
use super::{PlanContext, WindowSpec};
use crate::dialect::ast::Position;
use crate::error::SqlError;
use crate::function::Registry;
use datafusion::logical_expr::ScalarUDF;
use millstream_catalog::model::limit::COLUMNS_MAX;
use millstream_catalog::model::{SqlState, TopicId};
use millstream_catalog::{Relation, SqlType, View};
use sqlparser::ast::{
    Cte, Distinct, Expr, GroupByExpr, Ident, LimitClause, NamedWindowExpr, ObjectName, ObjectNamePart, OrderBy, Query,
    Select, SelectItem, SelectItemQualifiedWildcardKind, SetExpr, Spanned, Visit, Visitor, With,
};
use std::collections::{BTreeSet, HashSet};
use std::ops::ControlFlow;
use std::sync::Arc;

/// A column of a resolved query.
#[derive(Debug, Clone)]
pub(super) struct OutputColumn {
    /// The name clients see.
    pub(super) name: String,
    /// The name in the plan, unique within the query.
    pub(super) internal: String,
}

/// A name that `WITH` made.
struct CteName {
    name: String,
    columns: Vec<ScopeColumn>,
}

/// Resolves one statement.
pub(super) struct Resolver<'c> {
    /// The statement's world.
    pub(super) context: &'c PlanContext,
    /// The functions there are.
    pub(super) registry: &'static Registry,
    /// Functions made for this statement; `$f3` is the one at 3.
    pub(super) functions: Vec<Arc<ScalarUDF>>,
    /// The relations it reads, each once, in order of mention.
    pub(super) sources: Vec<Arc<Relation>>,
    /// The highest parameter number.
    pub(super) parameters: usize,
    /// The statement's `WINDOW …`: the outermost SELECT sees `windowstart` and `windowend`.
    pub(super) window: Option<WindowSpec>,
    /// Where its session windows stand; each has its number here.
    pub(super) sessions: Vec<Position>,
    /// `now()` stays a call: the statement runs continuously.
    pub(super) keeps_clock: bool,
    /// The types of parameters that the client gave.
    pub(super) declared: &'c [Option<SqlType>],
    /// The views it reads, each once, in order of mention.
    pub(super) views: Vec<Arc<View>>,
    /// What the statement's own text names of the catalog.
    pub(super) direct: BTreeSet<TopicId>,
    /// The views whose text is being resolved, the innermost last.
    pub(super) inside: Vec<Arc<View>>,
    /// How much its views have expanded to.
    pub(super) expansion: Expansion,
    /// The statement's `WINDOW …`, or that of a view it reads.
    pub(super) clause: Option<WindowSpec>,
    ctes: Vec<CteName>,
    names_given: usize,
}

impl<'c> Resolver<'c> {
    /// A resolver for a statement of `context`.
    pub(super) fn new(context: &'c PlanContext, registry: &'static Registry, window: Option<WindowSpec>) -> Self {
        Self {
            context,
            registry,
            functions: Vec::new(),
            sources: Vec::new(),
            parameters: 0,
            window,
            sessions: Vec::new(),
            keeps_clock: false,
            declared: &[],
            views: Vec::new(),
            direct: BTreeSet::new(),
            inside: Vec::new(),
            expansion: Expansion::default(),
            clause: window,
            ctes: Vec::new(),
            names_given: 0,
        }
    }

    /// A name no user can write by accident.
    pub(super) fn fresh_name(&mut self, what: &str) -> String {
        self.names_given += 1;
        format!("{what}#{}", self.names_given)
    }

    /// The columns of the CTE `name`, the innermost of that name.
    pub(super) fn cte(&self, name: &str) -> Option<Vec<ScopeColumn>> {
        self.ctes.iter().rev().find(|cte| cte.name == name).map(|cte| cte.columns.clone())
    }

    /// Resolves the whole statement.
    pub(super) fn statement(&mut self, query: &mut Query) -> Result<Vec<OutputColumn>, SqlError> {
        let is_windowed = self.window.is_some();
        self.query_level(query, None, is_windowed)
    }

    /// Resolves a sub-query inside `outer`.
    pub(super) fn query(
        &mut self,
        query: &mut Query,
        outer: Option<&Scope<'_>>,
    ) -> Result<Vec<OutputColumn>, SqlError> {
        self.query_level(query, outer, false)
    }

    /// Resolves the text of `view`, which sees nothing of the statement around it.
    pub(super) fn inside_view(
        &mut self,
        view: &Arc<View>,
        window: Option<WindowSpec>,
        query: &mut Query,
    ) -> Result<Vec<OutputColumn>, SqlError> {
        let ctes = std::mem::take(&mut self.ctes);
        let around = std::mem::replace(&mut self.window, window);
        let declared = std::mem::take(&mut self.declared);
        self.inside.push(Arc::clone(view));
        let output = self.query_level(query, None, window.is_some());
        self.inside.pop();
        (self.ctes, self.window, self.declared) = (ctes, around, declared);
        output
    }

    fn query_level(
        &mut self,
        query: &mut Query,
        outer: Option<&Scope<'_>>,
        is_windowed: bool,
    ) -> Result<Vec<OutputColumn>, SqlError> {
        refuse::query(query)?;
        let ctes = self.ctes.len();
        if let Some(with) = &mut query.with {
            self.with(with, outer)?;
        }
        let mut order_by = query.order_by.take();
        let output = self.set_expr(&mut query.body, outer, order_by.as_mut(), is_windowed)?;
        query.order_by = order_by;
        if let Some(limit) = &mut query.limit_clause {
            self.limit(limit)?;
        }
        self.ctes.truncate(ctes);
        Ok(output)
    }

    fn with(&mut self, with: &mut With, outer: Option<&Scope<'_>>) -> Result<(), SqlError> {
        let mut names = HashSet::new();
        for cte in &mut with.cte_tables {
            if !names.insert(cte.alias.name.value.clone()) {
                let fact = format!("WITH query name \"{}\" specified more than once", cte.alias.name.value);
                return Err(SqlError::new(SqlState::DuplicateAlias, fact).at(Position::of(cte.alias.name.span)));
            }
            self.cte_definition(cte, with.recursive, outer)?;
        }
        Ok(())
    }

    fn cte_definition(&mut self, cte: &mut Cte, is_recursive: bool, outer: Option<&Scope<'_>>) -> Result<(), SqlError> {
        let renames: Vec<Ident> = cte.alias.columns.drain(..).map(|column| column.name).collect();
        let name = cte.alias.name.value.clone();
        cte.alias.name = quoted(&name);
        if let (true, SetExpr::SetOperation { left, right, .. }) = (is_recursive, cte.query.body.as_mut()) {
            refuse::recursive(&cte.query.with, &cte.query.order_by, &cte.query.limit_clause)?;
            let output = self.set_expr(left, outer, None, false)?;
            let columns = renamed(&name, &output, &renames)?;
            self.ctes.push(CteName { name, columns });
            let right = self.set_expr(right, outer, None, false)?;
            return same_width(&output, &right);
        }
        let output = self.query(&mut cte.query, outer)?;
        let columns = renamed(&name, &output, &renames)?;
        self.ctes.push(CteName { name, columns });
        Ok(())
    }

    fn set_expr(
        &mut self,
        body: &mut SetExpr,
        outer: Option<&Scope<'_>>,
        order_by: Option<&mut OrderBy>,
        is_windowed: bool,
    ) -> Result<Vec<OutputColumn>, SqlError> {
        let output = match body {
            SetExpr::Select(select) => return self.select(select, outer, order_by, is_windowed),
            SetExpr::Query(query) => self.query_level(query, outer, is_windowed)?,
            SetExpr::SetOperation { left, right, set_quantifier, op } => {
                refuse::set_quantifier(*op, *set_quantifier)?;
                let output = self.set_expr(left, outer, None, false)?;
                let right = self.set_expr(right, outer, None, false)?;
                same_width(&output, &right)?;
                output
            }
            SetExpr::Values(values) => {
                let scope = Scope::inside(outer);
                let width = values.rows.first().map_or(0, |row| row.content.len());
                syntax::type_values(&mut values.rows, self.declared);
                for row in &mut values.rows {
                    if row.content.len() != width {
                        return Err(SqlError::syntax("VALUES lists must all be the same length"));
                    }
                    for expr in &mut row.content {
                        resolve_expr(self, &scope, expr)?;
                    }
                }
                let name = |at: usize| format!("column{at}");
                (1..=width).map(|at| OutputColumn { name: name(at), internal: name(at) }).collect()
            }
            SetExpr::Table(table) => {
                let parts = [&table.schema_name, &table.table_name];
                let parts = parts.into_iter().flatten().map(|part| ObjectNamePart::Identifier(quoted(part)));
                *body = SetExpr::Select(Box::new(refuse::select_all(ObjectName(parts.collect()))));
                return self.set_expr(body, outer, order_by, is_windowed);
            }
            SetExpr::Insert(_) | SetExpr::Update(_) | SetExpr::Delete(_) | SetExpr::Merge(_) => {
                return Err(SqlError::unsupported(
                    "a data-modifying statement in WITH or FROM",
                    "use a statement of its own",
                ));
            }
        };
        if is_windowed && !matches!(body, SetExpr::Query(_)) {
            return Err(SqlError::unsupported("WINDOW on this query", "put the window into a plain SELECT … FROM"));
        }
        if let Some(order_by) = order_by {
            order_set_operation(order_by, &output)?;
        }
        Ok(output)
    }

    fn limit(&mut self, limit: &mut LimitClause) -> Result<(), SqlError> {
        let scope = Scope::default();
        let exprs: Vec<&mut Expr> = match limit {
            LimitClause::LimitOffset { limit, offset, limit_by } => {
                if !limit_by.is_empty() {
                    return Err(SqlError::unsupported("LIMIT BY", "use a window function"));
                }
                limit.iter_mut().chain(offset.iter_mut().map(|offset| &mut offset.value)).collect()
            }
            LimitClause::OffsetCommaLimit { offset, limit } => vec![offset, limit],
        };
        for expr in exprs {
            if number(expr).is_none() {
                resolve_expr(self, &scope, expr)?;
                *expr = refuse::as_bigint(std::mem::replace(expr, refuse::null()));
            }
        }
        Ok(())
    }

    fn select(
        &mut self,
        select: &mut Select,
        outer: Option<&Scope<'_>>,
        mut order_by: Option<&mut OrderBy>,
        is_windowed: bool,
    ) -> Result<Vec<OutputColumn>, SqlError> {
        refuse::select(select)?;
        super::named_window::spell_out(select, order_by.as_deref_mut())?;
        let scope = self.from(&mut select.from, outer, is_windowed)?;
        let is_grouped = is_windowed && self.is_grouped(select);
        let output = self.projection(&mut select.projection, &scope)?;
        if let Some(selection) = &mut select.selection {
            resolve_condition(self, &scope, selection)?;
            condition(selection, "WHERE")?;
        }
        let list = SelectList { items: &select.projection, output: &output };
        self.group_by(&mut select.group_by, &scope, &list, is_grouped)?;
        if let Some(having) = &mut select.having {
            resolve_condition(self, &scope, having)?;
            condition(having, "HAVING")?;
        }
        if let Some(qualify) = &mut select.qualify {
            resolve_condition(self, &scope, qualify)?;
            condition(qualify, "QUALIFY")?;
        }
        for window in &mut select.named_window {
            if let NamedWindowExpr::WindowSpec(spec) = &mut window.1 {
                let exprs = spec.partition_by.iter_mut().chain(spec.order_by.iter_mut().map(|key| &mut key.expr));
                for expr in exprs {
                    resolve_expr(self, &scope, expr)?;
                }
            }
        }
        if let Some(Distinct::On(exprs)) = &mut select.distinct {
            for expr in exprs {
                match list.by_name_or_position(expr, "SELECT DISTINCT ON")? {
                    Some(item) => *expr = item,
                    None => resolve_expr(self, &scope, expr)?,
                }
            }
        }
        if let Some(order_by) = order_by {
            self.order_by(order_by, &scope, &list)?;
        }
        Ok(output)
    }

    /// Replaces `*`, and gives every item an alias of its own.
    fn projection(
        &mut self,
        projection: &mut Vec<SelectItem>,
        scope: &Scope<'_>,
    ) -> Result<Vec<OutputColumn>, SqlError> {
        let mut items = Vec::with_capacity(projection.len());
        for item in projection.drain(..) {
            match item {
                SelectItem::Wildcard(options) => {
                    refuse::wildcard(&options)?;
                    if scope.relations.is_empty() {
                        return Err(SqlError::syntax("SELECT * with no tables specified is not valid"));
                    }
                    items.extend(scope.star.iter().cloned());
                }
                SelectItem::QualifiedWildcard(SelectItemQualifiedWildcardKind::ObjectName(name), options) => {
                    refuse::wildcard(&options)?;
                    items.extend(qualified_star(scope, &name)?);
                }
                SelectItem::QualifiedWildcard(SelectItemQualifiedWildcardKind::Expr(_), _) => {
                    return Err(SqlError::unsupported("(row).*", "name the columns"));
                }
                SelectItem::UnnamedExpr(mut expr) => {
                    let name = column_name(&expr);
                    resolve_expr(self, scope, &mut expr)?;
                    items.push(StarColumn { name, expr });
                }
                SelectItem::ExprWithAlias { mut expr, alias } => {
                    resolve_expr(self, scope, &mut expr)?;
                    items.push(StarColumn { name: alias.value, expr });
                }
                SelectItem::ExprWithAliases { .. } => {
                    return Err(SqlError::unsupported("several aliases of one column", "give one alias"));
                }
            }
        }
        if items.len() > COLUMNS_MAX {
            let fact = format!("target lists can have at most {COLUMNS_MAX} entries");
            return Err(SqlError::new(SqlState::TooManyColumns, fact));
        }
        if items.is_empty() {
            return Err(SqlError::unsupported("a SELECT without columns", "name a column or a constant"));
        }
        let output = unique(items.iter().map(|item| item.name.clone()));
        let aliased = items.into_iter().zip(&output);
        projection.extend(
            aliased
                .map(|(item, column)| SelectItem::ExprWithAlias { expr: item.expr, alias: quoted(&column.internal) }),
        );
        Ok(output)
    }

    fn group_by(
        &mut self,
        group_by: &mut GroupByExpr,
        scope: &Scope<'_>,
        list: &SelectList<'_>,
        is_windowed: bool,
    ) -> Result<(), SqlError> {
        let GroupByExpr::Expressions(exprs, modifiers) = group_by else {
            return Err(SqlError::unsupported("GROUP BY ALL", "name the grouping columns"));
        };
        if !modifiers.is_empty() {
            return Err(SqlError::unsupported("GROUP BY … WITH", "use ROLLUP, CUBE or GROUPING SETS"));
        }
        for expr in exprs.iter_mut() {
            if number(expr).is_some()
                && let Some(item) = list.by_position(expr, "GROUP BY")?
            {
                *expr = item;
                continue;
            }
            // GROUP BY prefers input columns to output names, unlike ORDER BY.
            let is_output = match &*expr {
                Expr::Identifier(ident) => scope.find(&ident.value)?.is_none(),
                _ => false,
            };
            match list.by_name(expr).filter(|_| is_output) {
                Some(item) => *expr = item,
                None => resolve_expr(self, scope, expr)?,
            }
        }
        if exprs.iter().any(has_window_call) {
            let fact = "window functions are not allowed in GROUP BY";
            return Err(
                SqlError::new(SqlState::WindowingError, fact).hint("put the query into FROM, and group around it")
            );
        }
        if is_windowed {
            for name in [super::window::WINDOWSTART, super::window::WINDOWEND] {
                let key = scope.find_here(name)?.ok_or_else(|| SqlError::internal("the window has no columns"))?;
                if !exprs.contains(&key) {
                    exprs.push(key);
                }
            }
        }
        Ok(())
    }

    fn order_by(&mut self, order_by: &mut OrderBy, scope: &Scope<'_>, list: &SelectList<'_>) -> Result<(), SqlError> {
        for key in refuse::order_keys(order_by)? {
            if list.by_position(&key.expr, "ORDER BY")?.is_some() {
                continue;
            }
            match list.internal_name(&key.expr)? {
                Some(internal) => key.expr = Expr::Identifier(quoted(&internal)),
                None => resolve_expr(self, scope, &mut key.expr)?,
            }
        }
        Ok(())
    }

    /// True when the SELECT groups, with or without GROUP BY.
    fn is_grouped(&self, select: &Select) -> bool {
        let has_keys = matches!(&select.group_by, GroupByExpr::Expressions(exprs, _) if !exprs.is_empty());
        has_keys || select.having.is_some() || has_aggregate(self.registry, &select.projection)
    }

    /// Resolves FROM.
    fn from<'a>(
        &mut self,
        from: &mut Vec<sqlparser::ast::TableWithJoins>,
        outer: Option<&'a Scope<'a>>,
        is_windowed: bool,
    ) -> Result<Scope<'a>, SqlError> {
        let mut scope = Scope::inside(outer);
        super::from::resolve_from(self, from, &mut scope)?;
        if let Some(window) = self.window.filter(|_| is_windowed) {
            super::window::apply_clause(self, from, &mut scope, window)?;
        }
        Ok(scope)
    }
}

/// The items of a SELECT, for references by position and by output name.
struct SelectList<'a> {
    items: &'a [SelectItem],
    output: &'a [OutputColumn],
}

impl SelectList<'_> {
    fn item(&self, at: usize) -> Option<Expr> {
        match self.items.get(at)? {
            SelectItem::ExprWithAlias { expr, .. } => Some(expr.clone()),
            _ => None,
        }
    }

    /// The item that a literal number names.
    fn by_position(&self, expr: &Expr, clause: &str) -> Result<Option<Expr>, SqlError> {
        let Some(text) = number(expr) else { return Ok(None) };
        let position = Position::of(expr.span());
        let Ok(wanted) = text.parse::<usize>() else {
            return Err(SqlError::syntax(format!("non-integer constant in {clause}")).at(position));
        };
        let item = wanted.checked_sub(1).and_then(|at| self.item(at));
        item.map(Some).ok_or_else(|| {
            let fact = format!("{clause} position {wanted} is not in select list");
            SqlError::new(SqlState::InvalidColumnReference, fact).at(position)
        })
    }

    /// The item whose output name is the bare identifier `expr`.
    fn by_name(&self, expr: &Expr) -> Option<Expr> {
        let Expr::Identifier(ident) = expr else { return None };
        self.output.iter().position(|column| column.name == ident.value).and_then(|at| self.item(at))
    }

    fn by_name_or_position(&self, expr: &Expr, clause: &str) -> Result<Option<Expr>, SqlError> {
        Ok(self.by_position(expr, clause)?.or_else(|| self.by_name(expr)))
    }

    /// The plan's name of the output column that the bare identifier `expr` names.
    fn internal_name(&self, expr: &Expr) -> Result<Option<String>, SqlError> {
        let Expr::Identifier(ident) = expr else { return Ok(None) };
        let mut found = self.output.iter().enumerate().filter(|(_, column)| column.name == ident.value);
        let Some((first, column)) = found.next() else { return Ok(None) };
        if found.any(|(other, _)| self.item(other) != self.item(first)) {
            let fact = format!("ORDER BY \"{}\" is ambiguous", ident.value);
            return Err(SqlError::new(SqlState::AmbiguousColumn, fact).at(Position::of(ident.span)));
        }
        Ok(Some(column.internal.clone()))
    }
}

fn qualified_star(scope: &Scope<'_>, name: &ObjectName) -> Result<Vec<StarColumn>, SqlError> {
    let parts: Vec<&Ident> = name.0.iter().filter_map(ObjectNamePart::as_ident).collect();
    let relation = match parts.as_slice() {
        [alias] => scope.relation(None, &alias.value),
        [schema, alias] => scope.relation(Some(&schema.value), &alias.value),
        _ => None,
    };
    relation.map(super::scope::ScopeRelation::star).ok_or_else(|| super::rewrite::missing_from(parts.last().copied()))
}

/// Makes the plan's names of output columns unique: the second `a` becomes `a#2`.
fn unique(names: impl Iterator<Item = String>) -> Vec<OutputColumn> {
    let mut taken = HashSet::new();
    let mut output = Vec::new();
    for name in names {
        let mut internal = name.clone();
        let mut count = 1;
        while !taken.insert(internal.clone()) {
            count += 1;
            internal = format!("{name}#{count}");
        }
        output.push(OutputColumn { name, internal });
    }
    output
}

/// The columns of `alias (renames)` over a query with `output`.
pub(super) fn renamed(alias: &str, output: &[OutputColumn], renames: &[Ident]) -> Result<Vec<ScopeColumn>, SqlError> {
    if renames.len() > output.len() {
        let fact =
            format!("table \"{alias}\" has {} columns available but {} columns specified", output.len(), renames.len());
        return Err(SqlError::new(SqlState::InvalidColumnReference, fact));
    }
    let name =
        |at: usize, column: &OutputColumn| renames.get(at).map_or(column.name.clone(), |ident| ident.value.clone());
    let columns = output.iter().enumerate();
    Ok(columns
        .map(|(at, column)| ScopeColumn { name: name(at, column), internal: column.internal.clone(), is_hidden: false })
        .collect())
}

fn same_width(left: &[OutputColumn], right: &[OutputColumn]) -> Result<(), SqlError> {
    match left.len() == right.len() {
        true => Ok(()),
        false => Err(SqlError::syntax("each UNION, INTERSECT or EXCEPT query must have the same number of columns")),
    }
}

/// Only output names and positions may order a set operation.
fn order_set_operation(order_by: &mut OrderBy, output: &[OutputColumn]) -> Result<(), SqlError> {
    for key in refuse::order_keys(order_by)? {
        let position = Position::of(key.expr.span());
        if let Some(text) = number(&key.expr) {
            let fits = text.parse::<usize>().is_ok_and(|at| (1..=output.len()).contains(&at));
            if !fits {
                let fact = format!("ORDER BY position {text} is not in select list");
                return Err(SqlError::new(SqlState::InvalidColumnReference, fact).at(position));
            }
            continue;
        }
        let found = match &key.expr {
            Expr::Identifier(ident) => output.iter().find(|column| column.name == ident.value),
            _ => None,
        };
        let Some(found) = found else {
            return Err(SqlError::unsupported(
                "ORDER BY with an expression on UNION, INTERSECT, EXCEPT or VALUES",
                "order by an output column, or put the query into FROM",
            )
            .at(position));
        };
        key.expr = Expr::Identifier(quoted(&found.internal));
    }
    Ok(())
}

/// True when a select list has an aggregate that is no window function.
pub(super) fn has_aggregate(registry: &'static Registry, items: &[SelectItem]) -> bool {
    struct Find(&'static Registry);
    impl Visitor for Find {
        type Break = ();
        fn pre_visit_expr(&mut self, expr: &Expr) -> ControlFlow<()> {
            match expr {
                Expr::Function(call) if call.over.is_none() && self.0.is_aggregate(&call.name) => {
                    ControlFlow::Break(())
                }
                _ => ControlFlow::Continue(()),
            }
        }
    }
    let mut find = Find(registry);
    items.iter().any(|item| item.visit(&mut find).is_break())
}
