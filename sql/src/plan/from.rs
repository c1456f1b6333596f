//! FROM: relations, sub-queries, table functions and joins, and the names they give.
//!
//! Owns the search of names in the catalog, USING and NATURAL, and what `*` shows. Leaves out reading. Every name that
//! is let through is a relation or system view of this statement's catalog, marked as such: nothing else can be scanned.

use super::lateral;
use super::refuse;
use super::resolve::{OutputColumn, Resolver, renamed};
use super::rewrite::{resolve_condition, resolve_expr};
use super::scope::{Scope, ScopeColumn, ScopeRelation, StarColumn, ambiguous, quoted};
use super::window::{WindowCall, is_window_function};
use super::within;
use crate::dialect::ast::Position;
use crate::error::SqlError;
use crate::ports::refuse_later;
use millstream_catalog::model::{SqlState, TopicId};
use millstream_catalog::schema::{ROWOFFSET, ROWPARTITION, ROWTIME};
use millstream_catalog::{Relation, RelationKind, SourceForm, View};
use sqlparser::ast::{
    BinaryOperator, Expr, FunctionArg, FunctionArgExpr, Ident, Join, JoinConstraint, JoinOperator, ObjectName,
    ObjectNamePart, TableAlias, TableAliasColumnDef, TableFactor, TableWithJoins,
};
use std::sync::Arc;

/// The schema that marks a relation of the catalog in a resolved query.
pub(super) const RELATION: &str = "$relation";
/// The schema that marks a system view.
pub(super) const SYSTEM: &str = "$system";

/// True for a name that resolution marked as a relation.
pub(super) fn is_relation(name: &ObjectName) -> bool {
    name.0.first().and_then(ObjectNamePart::as_ident).is_some_and(|ident| ident.value == RELATION)
}

/// Resolves the comma-separated parts of FROM; adds their names and what `*` shows to `scope`.
pub(super) fn resolve_from(
    resolver: &mut Resolver<'_>,
    from: &mut Vec<TableWithJoins>,
    scope: &mut Scope<'_>,
) -> Result<(), SqlError> {
    let mut done: Vec<TableWithJoins> = Vec::new();
    for TableWithJoins { mut relation, joins } in std::mem::take(from) {
        let first = scope.relations.len();
        let (mut star, is_folded) = lateral::resolve(resolver, &mut relation, &mut done, &mut [], scope)?;
        if !is_folded {
            done.push(TableWithJoins { relation, joins: Vec::new() });
        }
        for mut join in joins {
            if lateral::is_inline(&join.relation) && lateral::is_cross(&join.join_operator) {
                let (shown, is_folded) = lateral::resolve(resolver, &mut join.relation, &mut done, &mut star, scope)?;
                star.extend(shown);
                if is_folded {
                    continue;
                }
                join.join_operator = JoinOperator::CrossJoin(JoinConstraint::None);
            } else {
                let within = within::take(&mut join.relation);
                let count = scope.relations.len();
                let right = resolve_factor(resolver, &mut join.relation, scope)?;
                star = resolve_join(resolver, &mut join, (star, right), scope)?;
                within::add(within, &mut join.join_operator, &scope.relations[first..], count - first)?;
            }
            if let Some(tree) = done.last_mut() {
                tree.joins.push(join);
            }
        }
        scope.star.extend(star);
    }
    *from = done;
    Ok(())
}

/// Resolves a join in parentheses; adds its names to `scope` and gives what `*` shows of it.
fn resolve_tree(
    resolver: &mut Resolver<'_>,
    tree: &mut TableWithJoins,
    scope: &mut Scope<'_>,
) -> Result<Vec<StarColumn>, SqlError> {
    let first = scope.relations.len();
    let mut left = resolve_factor(resolver, &mut tree.relation, scope)?;
    for join in &mut tree.joins {
        let within = within::take(&mut join.relation);
        let count = scope.relations.len();
        let right = resolve_factor(resolver, &mut join.relation, scope)?;
        left = resolve_join(resolver, join, (left, right), scope)?;
        within::add(within, &mut join.join_operator, &scope.relations[first..], count - first)?;
    }
    Ok(left)
}

/// Which side a merged column takes its value from.
#[derive(Clone, Copy)]
enum Merge {
    Left,
    Right,
    Both,
}

fn resolve_join(
    resolver: &mut Resolver<'_>,
    join: &mut Join,
    (left, right): (Vec<StarColumn>, Vec<StarColumn>),
    scope: &mut Scope<'_>,
) -> Result<Vec<StarColumn>, SqlError> {
    if join.global {
        return Err(SqlError::unsupported("GLOBAL JOIN", "use JOIN"));
    }
    let (constraint, merge) = match &mut join.join_operator {
        JoinOperator::CrossJoin(JoinConstraint::None) => return Ok([left, right].concat()),
        JoinOperator::Join(constraint)
        | JoinOperator::Inner(constraint)
        | JoinOperator::Left(constraint)
        | JoinOperator::LeftOuter(constraint) => (constraint, Merge::Left),
        JoinOperator::Right(constraint) | JoinOperator::RightOuter(constraint) => (constraint, Merge::Right),
        JoinOperator::FullOuter(constraint) => (constraint, Merge::Both),
        _ => return Err(SqlError::unsupported("this kind of join", "use INNER, LEFT, RIGHT, FULL or CROSS JOIN")),
    };
    let names: Vec<Ident> = match constraint {
        JoinConstraint::On(expr) => {
            resolve_condition(resolver, scope, expr)?;
            super::settle::condition(expr, "JOIN/ON")?;
            return Ok([left, right].concat());
        }
        JoinConstraint::Using(names) => names.iter().filter_map(|name| name.0.last()?.as_ident().cloned()).collect(),
        JoinConstraint::Natural => {
            let shared = left.iter().filter(|column| right.iter().any(|other| other.name == column.name));
            shared.map(|column| quoted(&column.name)).collect()
        }
        JoinConstraint::None => {
            return Err(SqlError::syntax("a join needs ON or USING").hint("use CROSS JOIN for all pairs"));
        }
    };
    let (condition, star) = using(&names, left, right, merge, scope)?;
    *constraint = JoinConstraint::On(condition);
    Ok(star)
}

/// The condition of `USING (names)` and what `*` shows: the merged columns, the rest of the left, the rest of the right.
fn using(
    names: &[Ident],
    mut left: Vec<StarColumn>,
    mut right: Vec<StarColumn>,
    merge: Merge,
    scope: &mut Scope<'_>,
) -> Result<(Expr, Vec<StarColumn>), SqlError> {
    let mut condition = None;
    let mut star = Vec::new();
    for ident in names {
        let (one, other) = (take(&mut left, ident, "left")?, take(&mut right, ident, "right")?);
        let equal = binary(one.expr.clone(), BinaryOperator::Eq, other.expr.clone());
        condition = Some(match condition {
            None => equal,
            Some(before) => binary(before, BinaryOperator::And, equal),
        });
        let expr = match merge {
            Merge::Left => one.expr,
            Merge::Right => other.expr,
            Merge::Both => super::settle::marked(super::rewrite::call("coalesce", vec![one.expr, other.expr])),
        };
        let merged = StarColumn { name: ident.value.clone(), expr };
        scope.merged.retain(|column| column.name != merged.name);
        scope.merged.push(merged.clone());
        star.push(merged);
    }
    star.extend(left);
    star.extend(right);
    let always = || refuse::literal(sqlparser::ast::Value::Boolean(true));
    Ok((condition.unwrap_or_else(always), star))
}

fn take(columns: &mut Vec<StarColumn>, ident: &Ident, side: &str) -> Result<StarColumn, SqlError> {
    let position = Position::of(ident.span);
    let mut found = columns.iter().enumerate().filter(|(_, column)| column.name == ident.value);
    let Some((at, _)) = found.next() else {
        let fact = format!("column \"{}\" specified in USING clause does not exist in {side} table", ident.value);
        return Err(SqlError::new(SqlState::UndefinedColumn, fact).at(position));
    };
    if found.next().is_some() {
        return Err(ambiguous(&ident.value).at(position));
    }
    Ok(columns.remove(at))
}

/// `left op right`.
pub(super) fn binary(left: Expr, op: BinaryOperator, right: Expr) -> Expr {
    Expr::BinaryOp { left: Box::new(left), op, right: Box::new(right) }
}

pub(super) fn resolve_factor(
    resolver: &mut Resolver<'_>,
    factor: &mut TableFactor,
    scope: &mut Scope<'_>,
) -> Result<Vec<StarColumn>, SqlError> {
    match factor {
        TableFactor::Table { args: Some(call), name, alias, with_ordinality, .. } => {
            let (args, name, alias) = (std::mem::take(&mut call.args), name.clone(), alias.take());
            let is_plain = call.settings.is_none() && !*with_ordinality;
            let call = TableCall { name, args, alias, is_plain };
            let (relation, replaced) = table_function(resolver, call, scope)?;
            *factor = replaced;
            scope.add(relation)
        }
        TableFactor::Table { .. } => {
            let relation = named(resolver, factor)?;
            scope.add(relation)
        }
        TableFactor::Derived { lateral, subquery, alias, sample } => {
            if sample.is_some() {
                return Err(SqlError::unsupported("TABLESAMPLE", "filter with random()"));
            }
            let output = match lateral {
                true => resolver.query(subquery, Some(&*scope))?,
                false => resolver.query(subquery, scope.outer)?,
            };
            let given = alias.take();
            let name = given
                .as_ref()
                .map_or_else(|| resolver.fresh_name("unnamed_subquery"), |alias| alias.name.value.clone());
            let renames: Vec<Ident> =
                given.into_iter().flat_map(|alias| alias.columns).map(|column| column.name).collect();
            *alias = Some(plain_alias(&name));
            let columns = renamed(&name, &output, &renames)?;
            scope.add(ScopeRelation { plan_alias: name.clone(), alias: name, schema: None, columns, is_stream: false })
        }
        TableFactor::NestedJoin { table_with_joins, alias: None } => resolve_tree(resolver, table_with_joins, scope),
        TableFactor::NestedJoin { .. } => {
            Err(SqlError::unsupported("an alias of a join", "put the join into a sub-query"))
        }
        TableFactor::Function { name, args, alias, with_ordinality, .. } => {
            let is_plain = !*with_ordinality;
            let call = TableCall { name: name.clone(), args: std::mem::take(args), alias: alias.take(), is_plain };
            let (relation, replaced) = table_function(resolver, call, scope)?;
            *factor = replaced;
            scope.add(relation)
        }
        TableFactor::UNNEST { alias, array_exprs, with_offset, with_ordinality, .. } => {
            if *with_offset || *with_ordinality {
                return Err(SqlError::unsupported("WITH ORDINALITY or OFFSET", "use row_number() OVER ()"));
            }
            let relation = unnest(resolver, array_exprs, alias, scope)?;
            scope.add(relation)
        }
        _ => Err(SqlError::unsupported("this kind of source in FROM", "use a stream, table or sub-query")),
    }
}

/// A call in FROM.
struct TableCall {
    name: ObjectName,
    args: Vec<FunctionArg>,
    alias: Option<TableAlias>,
    is_plain: bool,
}

/// `unnest(…)`, `generate_series(…)`; others do not exist, so nothing can read files.
fn table_function(
    resolver: &mut Resolver<'_>,
    call: TableCall,
    scope: &Scope<'_>,
) -> Result<(ScopeRelation, TableFactor), SqlError> {
    let ident = call.name.0.last().and_then(ObjectNamePart::as_ident);
    let function = ident.map_or_else(String::new, |ident| ident.value.to_lowercase());
    let position = ident.map_or(Position::UNKNOWN, |ident| Position::of(ident.span));
    if !call.is_plain {
        return Err(SqlError::unsupported("WITH ORDINALITY", "use row_number() OVER ()").at(position));
    }
    let mut args = Vec::new();
    for arg in call.args {
        match arg {
            FunctionArg::Unnamed(FunctionArgExpr::Expr(expr)) => args.push(expr),
            _ => {
                return Err(
                    SqlError::unsupported("a named or * argument of a table function", "pass values").at(position)
                );
            }
        }
    }
    let mut alias = call.alias;
    match function.as_str() {
        "unnest" | "explode" => {
            let relation = unnest(resolver, &mut args, &mut alias, scope)?;
            let factor = TableFactor::UNNEST {
                alias,
                array_exprs: args,
                with_offset: false,
                with_offset_alias: None,
                with_ordinality: false,
            };
            Ok((relation, factor))
        }
        "generate_series" => {
            let mut array = vec![super::rewrite::call("$series", args)];
            let mut alias = alias.or_else(|| Some(plain_alias("generate_series")));
            let relation = unnest(resolver, &mut array, &mut alias, scope)?;
            let factor = TableFactor::UNNEST {
                alias,
                array_exprs: array,
                with_offset: false,
                with_offset_alias: None,
                with_ordinality: false,
            };
            Ok((relation, factor))
        }
        name if is_window_function(name) => {
            super::window::table_function(resolver, WindowCall { function, position, args, alias }, scope)
        }
        _ => {
            let fact = format!("function \"{function}\" does not exist in FROM");
            Err(SqlError::new(SqlState::UndefinedFunction, fact)
                .hint("functions in FROM are unnest, generate_series, tumble, hop and session")
                .at(position))
        }
    }
}

/// `unnest(arrays) AS alias(columns)`: one column per array, named after the alias when there is one.
fn unnest(
    resolver: &mut Resolver<'_>,
    arrays: &mut [Expr],
    alias: &mut Option<TableAlias>,
    scope: &Scope<'_>,
) -> Result<ScopeRelation, SqlError> {
    for array in arrays.iter_mut() {
        resolve_expr(resolver, scope, array)?;
    }
    let given = alias.take();
    let name = given.as_ref().map_or("unnest".to_owned(), |alias| alias.name.value.clone());
    let output: Vec<OutputColumn> = (0..arrays.len())
        .map(|at| OutputColumn {
            name: if arrays.len() == 1 { name.clone() } else { "unnest".to_owned() },
            internal: format!("{name}#{at}"),
        })
        .collect();
    let renames: Vec<Ident> = given.into_iter().flat_map(|alias| alias.columns).map(|column| column.name).collect();
    let columns = renamed(&name, &output, &renames)?;
    let mut internal = plain_alias(&name);
    internal.columns =
        output.iter().map(|column| TableAliasColumnDef { name: quoted(&column.internal), data_type: None }).collect();
    *alias = Some(internal);
    Ok(ScopeRelation { plan_alias: name.clone(), alias: name, schema: None, columns, is_stream: false })
}

pub(super) fn plain_alias(name: &str) -> TableAlias {
    TableAlias { explicit: true, name: quoted(name), columns: Vec::new(), at: None }
}

/// What a name in FROM is.
pub(super) enum Named {
    Cte(Vec<ScopeColumn>),
    /// With how a view knows it, if not as it is.
    Relation(Arc<Relation>, Option<SourceForm>),
    /// With how many of its columns another view knows, if not all.
    View(Arc<View>, Option<usize>),
    SystemView(Vec<ScopeColumn>),
}

impl Named {
    /// Its id in the catalog.
    fn id(&self) -> Option<TopicId> {
        match self {
            Self::Relation(relation, _) => Some(relation.id),
            Self::View(view, _) => Some(view.id),
            Self::Cte(_) | Self::SystemView(_) => None,
        }
    }
}

fn named(resolver: &mut Resolver<'_>, factor: &mut TableFactor) -> Result<ScopeRelation, SqlError> {
    let TableFactor::Table { name, alias, with_hints, partitions, json_path, sample, index_hints, .. } = factor else {
        return Err(SqlError::internal("not a table"));
    };
    let is_current = within::is_current(with_hints);
    if is_current {
        with_hints.clear();
    }
    if !with_hints.is_empty() || !partitions.is_empty() || json_path.is_some() || !index_hints.is_empty() {
        return Err(SqlError::unsupported("a hint after a table", "leave it out"));
    }
    if sample.is_some() {
        return Err(SqlError::unsupported("TABLESAMPLE", "filter with random()"));
    }
    let (found, bare, schema) = look_up(resolver, name)?;
    let given = alias.take();
    let shown = given.as_ref().map_or(bare.clone(), |alias| alias.name.value.clone());
    let is_stream = matches!(&found, Named::Relation(relation, _) if relation.kind == RelationKind::Stream);
    if is_current && !matches!(&found, Named::Relation(relation, _) if relation.kind == RelationKind::Table) {
        return Err(SqlError::unsupported("FOR SYSTEM_TIME AS OF of what is no table", "leave it out"));
    }
    if resolver.inside.is_empty() {
        resolver.direct.extend(found.id());
    }
    let schema = schema.filter(|_| given.is_none());
    let mut marked = bare;
    let (mark, mut columns) = match found {
        Named::Cte(columns) => (None, columns),
        Named::View(view, width) => {
            let (expanded, mut shown) = super::view::factor(resolver, &view, width, &shown)?;
            shown.schema = schema;
            rename_visible(&shown.alias, &mut shown.columns, given.map(|alias| alias.columns).unwrap_or_default())?;
            *factor = expanded;
            return Ok(shown);
        }
        Named::Relation(relation, form) => {
            let columns = super::view::columns_in(&relation, form.as_ref());
            marked = relation.name.to_string();
            if !resolver.sources.iter().any(|source| source.id == relation.id) {
                resolver.sources.push(relation);
            }
            (Some(RELATION), columns)
        }
        Named::SystemView(columns) => (Some(SYSTEM), columns),
    };
    let parts = mark.into_iter().chain([marked.as_str()]);
    *name = ObjectName(parts.map(|part| ObjectNamePart::Identifier(quoted(part))).collect());
    rename_visible(&shown, &mut columns, given.map(|alias| alias.columns).unwrap_or_default())?;
    *alias = Some(plain_alias(&shown));
    Ok(ScopeRelation { plan_alias: shown.clone(), alias: shown, schema, columns, is_stream })
}

pub(super) fn rename_visible(
    alias: &str,
    columns: &mut [ScopeColumn],
    renames: Vec<TableAliasColumnDef>,
) -> Result<(), SqlError> {
    let count = columns.iter().filter(|column| !column.is_hidden).count();
    if renames.len() > count {
        let fact = format!("table \"{alias}\" has {count} columns available but {} columns specified", renames.len());
        return Err(SqlError::new(SqlState::InvalidColumnReference, fact));
    }
    for (column, rename) in columns.iter_mut().filter(|column| !column.is_hidden).zip(renames) {
        column.name = rename.name.value;
    }
    Ok(())
}

/// What `name` is, its last part, and the schema it is in.
fn look_up(resolver: &Resolver<'_>, name: &ObjectName) -> Result<(Named, String, Option<String>), SqlError> {
    let parts: Vec<&Ident> = name.0.iter().filter_map(ObjectNamePart::as_ident).collect();
    if parts.len() != name.0.len() || parts.iter().any(|part| part.quote_style == Some('\'')) {
        return Err(SqlError::new(SqlState::InsufficientPrivilege, "files and URLs cannot be read")
            .hint("use COPY … FROM STDIN"));
    }
    let database = &resolver.context.settings.database;
    let (schema, bare) = match parts.as_slice() {
        [bare] => (None, bare),
        [schema, bare] => (Some(schema.value.as_str()), bare),
        [first, schema, bare] if first.value == *database => (Some(schema.value.as_str()), bare),
        _ => {
            let fact = format!("cross-database references are not implemented: {name}");
            return Err(SqlError::new(SqlState::FeatureNotSupported, fact));
        }
    };
    let found = match schema {
        Some(schema) => in_schema(resolver, schema, &bare.value).map(|found| (found, schema.to_owned())),
        None => match resolver.cte(&bare.value) {
            Some(columns) => return Ok((Named::Cte(columns), bare.value.clone(), None)),
            None => match resolver.inside.last() {
                Some(view) => &view.search_path,
                None => &resolver.context.settings.search_path,
            }
            .iter()
            .find_map(|schema| Some((in_schema(resolver, schema, &bare.value)?, schema.clone()))),
        },
    };
    match found {
        Some((found, schema)) => Ok((found, bare.value.clone(), Some(schema))),
        None => {
            let shown = schema.map_or_else(|| bare.value.clone(), |schema| format!("{schema}.{}", bare.value));
            if schema == Some("millstream") {
                refuse_later(&bare.value).map_err(|error| error.at(Position::of(bare.span)))?;
            }
            if matches!(schema, Some("pg_catalog" | "information_schema")) || bare.value.starts_with("pg_") {
                let hint = "schema millstream has the views: SELECT * FROM millstream.topics; or DESCRIBE name";
                let refused = SqlError::unsupported(format!("the system view {shown}"), hint);
                return Err(refused.at(Position::of(bare.span)));
            }
            let fact = format!("relation \"{shown}\" does not exist");
            Err(SqlError::new(SqlState::UndefinedTable, fact).at(Position::of(bare.span)))
        }
    }
}

/// The relation or view `name` of `schema`.
fn in_schema(resolver: &Resolver<'_>, schema: &str, name: &str) -> Option<Named> {
    match schema {
        "public" => match resolver.inside.last() {
            Some(view) => super::view::named_inside(resolver, view, name),
            None => {
                let catalog = &resolver.context.catalog;
                let relation = catalog.relation(name).map(|relation| Named::Relation(Arc::clone(relation), None));
                relation.or_else(|| catalog.view(name).map(|view| Named::View(Arc::clone(view), None)))
            }
        },
        "millstream" => {
            let views = resolver.context.source.system_views();
            let Some((_, schema)) = views.into_iter().find(|(view, _)| view == name) else {
                let own = resolver.context.catalog.relation(&format!("{schema}.{name}"));
                return own.map(|relation| Named::Relation(Arc::clone(relation), None));
            };
            let column = |field: &Arc<arrow::datatypes::Field>| visible(field.name());
            Some(Named::SystemView(schema.fields().iter().map(column).collect()))
        }
        _ => None,
    }
}

fn visible(name: &str) -> ScopeColumn {
    ScopeColumn { name: name.to_owned(), internal: name.to_owned(), is_hidden: false }
}

pub(super) fn relation_columns(relation: &Relation) -> Vec<ScopeColumn> {
    let declared = relation.schema.columns.iter();
    let declared = declared.map(|column| ScopeColumn { is_hidden: column.is_hidden, ..visible(column.name.as_str()) });
    let pseudo = [ROWTIME, ROWPARTITION, ROWOFFSET];
    let pseudo = pseudo.into_iter().filter(|name| relation.schema.find(name).is_none());
    declared.chain(pseudo.map(|name| ScopeColumn { is_hidden: true, ..visible(name) })).collect()
}
