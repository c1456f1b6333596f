//! The names a SELECT can see, and how a reference finds its column.
//!
//! Owns lookup by PostgreSQL's rules: inner before outer, merged columns of USING, ambiguity. Leaves out walking the
//! statement (`resolve`). Pure.

use crate::error::SqlError;
use millstream_catalog::model::SqlState;
use sqlparser::ast::{Expr, Ident};

/// A column of something in FROM.
#[derive(Debug, Clone)]
pub(super) struct ScopeColumn {
    /// The name statements use.
    pub(super) name: String,
    /// Its name in the plan, unique within the relation.
    pub(super) internal: String,
    /// Not in `*`.
    pub(super) is_hidden: bool,
}

/// Something in FROM.
#[derive(Debug, Clone)]
pub(super) struct ScopeRelation {
    /// Its alias, or its name.
    pub(super) alias: String,
    /// Its name in the plan; another than `alias` once a lateral source took it in.
    pub(super) plan_alias: String,
    /// Its schema, when it may be named with it.
    pub(super) schema: Option<String>,
    /// Its columns.
    pub(super) columns: Vec<ScopeColumn>,
    /// A stream of the catalog: its rows have a time of their own.
    pub(super) is_stream: bool,
}

/// A column that `*` shows.
#[derive(Debug, Clone)]
pub(super) struct StarColumn {
    /// Its name.
    pub(super) name: String,
    /// What it stands for.
    pub(super) expr: Expr,
}

/// The names of one FROM clause, and those around it.
#[derive(Debug, Clone, Default)]
pub(super) struct Scope<'a> {
    /// What stands in FROM, in order.
    pub(super) relations: Vec<ScopeRelation>,
    /// Columns that `USING` made one.
    pub(super) merged: Vec<StarColumn>,
    /// What `*` shows.
    pub(super) star: Vec<StarColumn>,
    /// The query around, for correlated sub-queries.
    pub(super) outer: Option<&'a Scope<'a>>,
}

/// An identifier that is never folded again.
pub(super) fn quoted(name: &str) -> Ident {
    Ident::with_quote('"', name)
}

/// A reference to `internal` of the relation `alias`.
pub(super) fn reference(alias: &str, internal: &str) -> Expr {
    Expr::CompoundIdentifier(vec![quoted(alias), quoted(internal)])
}

impl Scope<'_> {
    /// A scope inside `outer`.
    pub(super) fn inside<'a>(outer: Option<&'a Scope<'a>>) -> Scope<'a> {
        Scope { outer, ..Scope::default() }
    }

    /// The expression that `name` stands for here or further out; `None` when nothing has the name.
    pub(super) fn find(&self, name: &str) -> Result<Option<Expr>, SqlError> {
        match self.find_here(name)? {
            Some(found) => Ok(Some(found)),
            None => self.outer.map_or(Ok(None), |outer| outer.find(name)),
        }
    }

    /// The expression that `name` stands for in this FROM clause.
    pub(super) fn find_here(&self, name: &str) -> Result<Option<Expr>, SqlError> {
        if let Some(merged) = self.merged.iter().find(|column| column.name == name) {
            return Ok(Some(merged.expr.clone()));
        }
        for is_hidden in [false, true] {
            let mut found = self.relations.iter().flat_map(|relation| {
                let fits = move |column: &&ScopeColumn| column.name == name && column.is_hidden == is_hidden;
                relation.columns.iter().filter(fits).map(|column| reference(&relation.plan_alias, &column.internal))
            });
            if let Some(first) = found.next() {
                return match found.next() {
                    None => Ok(Some(first)),
                    Some(_) => Err(ambiguous(name)),
                };
            }
        }
        Ok(None)
    }

    /// The relation named `alias`, or `schema.alias`, here or further out.
    pub(super) fn relation(&self, schema: Option<&str>, alias: &str) -> Option<&ScopeRelation> {
        let fits = |relation: &&ScopeRelation| {
            relation.alias == alias && schema.is_none_or(|schema| relation.schema.as_deref() == Some(schema))
        };
        match self.relations.iter().find(fits) {
            Some(found) => Some(found),
            None => self.outer.and_then(|outer| outer.relation(schema, alias)),
        }
    }

    /// Adds something of FROM.
    ///
    /// # Errors
    /// 42712 when the alias is taken.
    pub(super) fn add(&mut self, relation: ScopeRelation) -> Result<Vec<StarColumn>, SqlError> {
        if self.relations.iter().any(|present| present.alias == relation.alias) {
            let fact = format!("table name \"{}\" specified more than once", relation.alias);
            return Err(SqlError::new(SqlState::DuplicateAlias, fact));
        }
        let star = relation.star();
        self.relations.push(relation);
        Ok(star)
    }
}

impl ScopeRelation {
    /// What `alias.*` shows.
    pub(super) fn star(&self) -> Vec<StarColumn> {
        let shown = self.columns.iter().filter(|column| !column.is_hidden);
        shown
            .map(|column| StarColumn { name: column.name.clone(), expr: reference(&self.plan_alias, &column.internal) })
            .collect()
    }

    /// The column named `name`.
    ///
    /// # Errors
    /// 42703 when there is none, 42702 when there are several.
    pub(super) fn column(&self, name: &str) -> Result<Expr, SqlError> {
        let mut found = self.columns.iter().filter(|column| column.name == name);
        let Some(first) = found.next() else {
            let fact = format!("column \"{}.{name}\" does not exist", self.alias);
            return Err(SqlError::new(SqlState::UndefinedColumn, fact));
        };
        match found.next() {
            None => Ok(reference(&self.plan_alias, &first.internal)),
            Some(_) => Err(ambiguous(name)),
        }
    }
}

/// 42702.
pub(super) fn ambiguous(name: &str) -> SqlError {
    SqlError::new(SqlState::AmbiguousColumn, format!("column reference \"{name}\" is ambiguous"))
}
