//! Views: a name in FROM that stands for a stored SELECT.
//!
//! The SELECT becomes a sub-query. Its names mean what they meant when the view was made: relations are found among those
//! it reads, under the names they had, and with the columns they had. Leaves out keeping definitions (catalog). Pure.

use super::from::{Named, plain_alias, relation_columns};
use super::resolve::{OutputColumn, Resolver};
use super::scope::{ScopeColumn, ScopeRelation};
use super::select::{Planned, planned};
use super::window::window_spec;
use super::{PlanContext, WindowSpec};
use crate::dialect;
use crate::dialect::ast::{CreateView, Position, Select, Statement};
use crate::error::SqlError;
use millstream_catalog::model::limit::{COLUMNS_MAX, QUERIES_NESTED_MAX, VIEWS_EXPANDED_MAX};
use millstream_catalog::model::{Name, SqlState, TopicId};
use millstream_catalog::{Relation, SourceForm, View, ViewColumn};
use sqlparser::ast::{Query, TableFactor};
use std::collections::{BTreeSet, HashSet};
use std::sync::Arc;

/// What a view is made of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlannedView {
    /// Its columns.
    pub columns: Vec<ViewColumn>,
    /// The relations and views that its text names.
    pub sources: BTreeSet<TopicId>,
}

/// Checks the SELECT of a view, and finds its columns.
///
/// # Errors
/// As `plan_select`; 42P02 for parameters, 42601 and 42701 for names of columns.
pub fn plan_view(context: &PlanContext, create: &CreateView) -> Result<PlannedView, SqlError> {
    let Planned { select, direct, expansion } = planned(context, &create.select, &[])?;
    expansion.around().check().map_err(|error| error.at(create.name.position))?;
    if !select.params.is_empty() {
        let fact = "a view cannot have parameters";
        return Err(SqlError::new(SqlState::UndefinedParameter, fact).hint("write the values into the statement"));
    }
    let given = create.columns.as_deref().unwrap_or_default();
    if given.len() > select.columns.len() {
        let fact = "CREATE VIEW specifies more column names than columns";
        return Err(SqlError::syntax(fact).at(create.name.position));
    }
    if select.columns.len() > COLUMNS_MAX {
        let fact = format!("a view can have at most {COLUMNS_MAX} columns");
        return Err(SqlError::new(SqlState::TooManyColumns, fact).at(create.name.position));
    }
    let mut names = HashSet::new();
    let mut columns = Vec::with_capacity(select.columns.len());
    for (at, column) in select.columns.into_iter().enumerate() {
        let (name, position) = match given.get(at) {
            Some(ident) => (ident.name.clone(), ident.position),
            None => (Name::new(column.name)?, Position::UNKNOWN),
        };
        if !names.insert(name.clone()) {
            let fact = format!("column \"{name}\" specified more than once");
            let error = SqlError::new(SqlState::DuplicateColumn, fact).at(position);
            return Err(error.hint("give the columns different names with AS, or name them after the view's name"));
        }
        columns.push(ViewColumn { name, sql_type: column.sql_type });
    }
    Ok(PlannedView { columns, sources: direct })
}

/// How much a statement's views expand to.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Expansion {
    count: usize,
    depth: usize,
}

impl Expansion {
    /// With one view more, whose text is so deep in the statement.
    fn with(self, depth: usize) -> Self {
        Self { count: self.count + 1, depth: self.depth.max(depth) }
    }

    /// What a statement expands to that reads a view of this.
    fn around(self) -> Self {
        Self { count: self.count + 1, depth: self.depth + 1 }
    }

    /// Refuses what planners could not hold.
    fn check(self) -> Result<(), SqlError> {
        let hint = "make a table of one of the views";
        if self.count > VIEWS_EXPANDED_MAX {
            let fact =
                format!("the statement reads more than {VIEWS_EXPANDED_MAX} views, those that its views read included");
            return Err(SqlError::new(SqlState::ProgramLimitExceeded, fact).hint(hint));
        }
        if self.depth > QUERIES_NESTED_MAX {
            let fact = format!("views read each other more than {QUERIES_NESTED_MAX} deep");
            return Err(SqlError::new(SqlState::StatementTooComplex, fact).hint(hint));
        }
        Ok(())
    }
}

/// What `name` of schema `public` is in the text of `view`.
pub(super) fn named_inside(resolver: &Resolver<'_>, view: &View, name: &str) -> Option<Named> {
    let catalog = &resolver.context.catalog;
    if let Some((id, form)) = view.forms.iter().find(|(_, form)| form.name.as_str() == name) {
        let relation =
            catalog.relation_by_id(*id).map(|relation| Named::Relation(Arc::clone(relation), Some(form.clone())));
        let inner = || catalog.view_by_id(*id).map(|view| Named::View(Arc::clone(view), Some(form.columns.len())));
        return relation.or_else(inner);
    }
    let is_read = |id: TopicId| view.sources.contains(&id) && !view.forms.contains_key(&id);
    let relation = catalog.relation(name).filter(|relation| is_read(relation.id));
    let relation = relation.map(|relation| Named::Relation(Arc::clone(relation), None));
    let inner = || catalog.view(name).filter(|view| is_read(view.id)).map(|view| Named::View(Arc::clone(view), None));
    relation.or_else(inner)
}

/// Puts the SELECT of `view` in the place of its name, with its first `width` columns, or all.
///
/// # Errors
/// 54001 where views read each other too deeply, 54000 where there are too many.
pub(super) fn expand(
    resolver: &mut Resolver<'_>,
    view: &Arc<View>,
    width: Option<usize>,
) -> Result<(Box<Query>, Vec<ScopeColumn>), SqlError> {
    resolver.expansion = resolver.expansion.with(resolver.inside.len() + 1);
    resolver.expansion.check()?;
    if !resolver.views.iter().any(|other| other.id == view.id) {
        resolver.views.push(Arc::clone(view));
    }
    let Select { mut query, window, .. } = *text(view)?;
    let window = window.as_ref().map(window_spec).transpose()?;
    if let Some(window) = window {
        share(resolver, view, window)?;
    }
    // Its places are not those of the statement.
    let output =
        resolver.inside_view(view, window, &mut query).map_err(|error| SqlError { near: None, ..error.at(0_usize) })?;
    if output.len() < view.columns.len() {
        return Err(SqlError::internal(format!("view \"{}\" has other columns than it had", view.name)));
    }
    let visible = |(column, output): (&ViewColumn, OutputColumn)| ScopeColumn {
        name: column.name.to_string(),
        internal: output.internal,
        is_hidden: false,
    };
    let columns = view.columns.iter().zip(output).take(width.unwrap_or(usize::MAX)).map(visible).collect();
    Ok((query, columns))
}

/// The parsed text of `view`.
fn text(view: &View) -> Result<Box<Select>, SqlError> {
    match dialect::parse(&view.sql)?.into_iter().next().map(|parsed| parsed.statement) {
        Some(Statement::Select(select)) => Ok(select),
        _ => Err(SqlError::internal(format!("the text of view \"{}\" is not a SELECT", view.name))),
    }
}

/// The grace of a window clause is that of the whole statement.
fn share(resolver: &mut Resolver<'_>, view: &View, window: WindowSpec) -> Result<(), SqlError> {
    match resolver.clause {
        None => resolver.clause = Some(window),
        Some(other) if other.grace == window.grace => {}
        Some(_) => {
            let what = format!("WINDOW beside that of view \"{}\" with another grace period", view.name);
            return Err(SqlError::unsupported(what, "give both windows one GRACE PERIOD"));
        }
    }
    Ok(())
}

/// The columns of a relation as whoever knows it in `form` sees them.
pub(super) fn columns_in(relation: &Relation, form: Option<&SourceForm>) -> Vec<ScopeColumn> {
    let mut columns = relation_columns(relation);
    if let Some(form) = form {
        let declared = relation.schema.columns.len();
        let known = form.columns.len();
        for (column, name) in columns.iter_mut().zip(&form.columns) {
            column.name = name.to_string();
        }
        let mut at = 0;
        columns.retain(|_| {
            at += 1;
            at <= known || at > declared
        });
    }
    columns
}

/// A view in FROM, as `alias`.
pub(super) fn factor(
    resolver: &mut Resolver<'_>,
    view: &Arc<View>,
    width: Option<usize>,
    alias: &str,
) -> Result<(TableFactor, ScopeRelation), SqlError> {
    let (subquery, columns) = expand(resolver, view, width)?;
    let factor = TableFactor::Derived { lateral: false, subquery, alias: Some(plain_alias(alias)), sample: None };
    let (plan_alias, alias) = (alias.to_owned(), alias.to_owned());
    Ok((factor, ScopeRelation { plan_alias, alias, schema: None, columns, is_stream: false }))
}
