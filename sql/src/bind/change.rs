//! `UPDATE`, `DELETE` and `DO UPDATE`: the query that finds rows and computes values, and new rows from its result.
//!
//! Owns which columns the query has, and assignment of its values by the rules of INSERT. Leaves out running it, and what
//! becomes of the rows (engine). Pure: a crash does nothing to it.

use super::insert::{Shape, Target, assign_column, default_expr, resolve};
use crate::dialect::ast::{Assignment, Ident, Select, Target as Table, WithOptions, select_from};
use crate::error::SqlError;
use crate::plan::ResultColumn;
use arrow::array::{ArrayRef, RecordBatch};
use millstream_catalog::model::limit::PARAMETERS_MAX;
use millstream_catalog::schema::{ROWOFFSET, ROWPARTITION, ROWTIME};
use millstream_catalog::{Relation, SqlType};
use sqlparser::ast::{self, Expr, SelectItem, TableWithJoins, Value};

pub use super::insert::InsertRows;

/// The values a statement gives to rows of a table.
#[derive(Debug, Clone)]
pub struct ChangePlan {
    shape: Shape,
    /// What is assigned, and whether by an untyped literal.
    targets: Vec<(Target, bool)>,
    values: Vec<Expr>,
}

impl ChangePlan {
    /// Binds `assignments` to the columns of `relation`; `DEFAULT` becomes the default's expression.
    ///
    /// # Errors
    /// 42703 for what is no column, 0A000 for a column the server gives.
    pub fn new(relation: &Relation, assignments: &[Assignment]) -> Result<Self, SqlError> {
        let names: Vec<Ident> = assignments.iter().map(|assignment| assignment.column.clone()).collect();
        let shape = Shape::of(relation);
        let (mut targets, mut values) = (Vec::new(), Vec::new());
        for (assignment, target) in assignments.iter().zip(resolve(relation, Some(&names))?) {
            let value = match (&assignment.value, target) {
                (Some(value), _) => value.clone(),
                (None, Target::Column(at)) => default_expr(&shape.columns[at])?.unwrap_or_else(null),
                (None, Target::Rowtime) => {
                    let error = SqlError::unsupported("DEFAULT for rowtime", "leave it out");
                    return Err(error.at(assignment.column.position));
                }
            };
            targets.push((target, is_untyped(&value)));
            values.push(value);
        }
        Ok(Self { shape, targets, values })
    }

    /// The event time of a DELETE.
    ///
    /// # Errors
    /// 0A000 where a column gives the event time.
    pub fn rowtime(relation: &Relation, value: Option<&Expr>) -> Result<Self, SqlError> {
        let mut plan = Self::new(relation, &[])?;
        if let Some(value) = value {
            plan.targets.push((Target::Rowtime, is_untyped(value)));
            plan.values.push(value.clone());
        }
        Ok(plan)
    }

    /// The query whose rows are changed: see [`Self::found_columns`], then the values.
    pub fn select(&self, table: &Table, from: Vec<TableWithJoins>, selection: Option<Expr>) -> Select {
        let names = self.shape.columns.iter().map(|column| column.name.as_str());
        let own = names.chain([ROWTIME, ROWPARTITION, ROWOFFSET]).map(|name| column(table, name));
        let items = own.chain(self.values.iter().cloned()).map(SelectItem::UnnamedExpr).collect();
        select_of(select_from(items, table, from, selection))
    }

    /// `declared` with the types of parameters that are assigned as they are and left open.
    pub fn param_types(&self, declared: &[Option<SqlType>]) -> Vec<Option<SqlType>> {
        let mut types = declared.to_vec();
        for (value, (target, _)) in self.values.iter().zip(&self.targets) {
            let Expr::Value(value) = value else { continue };
            let Value::Placeholder(id) = &value.value else { continue };
            let Some(at) = id.trim_start_matches('$').parse::<usize>().ok().and_then(|n| n.checked_sub(1)) else {
                continue;
            };
            if at < PARAMETERS_MAX {
                types.resize(types.len().max(at + 1), None);
                types[at].get_or_insert_with(|| self.shape.sql_type(*target).clone());
            }
        }
        types
    }

    /// Refuses values that cannot be assigned, whatever they are.
    ///
    /// # Errors
    /// 42804.
    pub fn check(&self, columns: &[ResultColumn]) -> Result<(), SqlError> {
        let found = self.found_columns();
        for (column, (target, is_literal)) in columns.iter().skip(found).zip(&self.targets) {
            let empty = arrow::array::new_empty_array(&column.sql_type.arrow());
            assign_column(&empty, &column.sql_type, *is_literal, &self.shape, (*target, 1))?;
        }
        Ok(())
    }

    /// Columns of the query before the values: the relation's, `rowtime`, `rowpartition`, `rowoffset`.
    pub fn found_columns(&self) -> usize {
        self.shape.columns.len() + 3
    }

    /// The new form of rows the query found.
    ///
    /// # Errors
    /// 42804, 22003 and the like, 23502 and 54000 for a value or row, with its row in the detail.
    pub fn rows(&self, found: &RecordBatch, columns: &[ResultColumn]) -> Result<InsertRows, SqlError> {
        let mut arrays: Vec<ArrayRef> = found.columns().iter().take(self.shape.columns.len()).cloned().collect();
        let rowtime = self.assign(found, columns, &mut arrays)?;
        self.shape.finish(arrays, rowtime, 1)
    }

    /// The event times the statement gives; `None` without.
    ///
    /// # Errors
    /// As of [`Self::rows`].
    pub fn rowtimes(&self, found: &RecordBatch, columns: &[ResultColumn]) -> Result<Option<ArrayRef>, SqlError> {
        self.assign(found, columns, &mut [])
    }

    fn assign(
        &self,
        found: &RecordBatch,
        columns: &[ResultColumn],
        arrays: &mut [ArrayRef],
    ) -> Result<Option<ArrayRef>, SqlError> {
        let mut rowtime = None;
        let start = self.found_columns();
        let given = found.columns().iter().zip(columns).skip(start);
        for ((value, column), (target, is_literal)) in given.zip(&self.targets) {
            let value = assign_column(value, &column.sql_type, *is_literal, &self.shape, (*target, 1))?;
            match target {
                Target::Rowtime => rowtime = Some(value),
                Target::Column(at) => {
                    if let Some(array) = arrays.get_mut(*at) {
                        *array = value;
                    }
                }
            }
        }
        Ok(rowtime)
    }
}

/// `query` as a statement.
pub fn select_of(query: ast::Query) -> Select {
    Select {
        query: Box::new(query),
        window: None,
        partition_by: None,
        emit: None,
        options: WithOptions::default(),
        limit: None,
        sql: String::new(),
    }
}

/// `table.name`
pub fn column(table: &Table, name: &str) -> Expr {
    let quoted = |name: &str| ast::Ident::with_quote('"', name);
    Expr::CompoundIdentifier(vec![quoted(table.shown()), quoted(name)])
}

/// A literal that takes the type of the column: a string, or NULL.
fn is_untyped(value: &Expr) -> bool {
    match value {
        Expr::Nested(inner) => is_untyped(inner),
        Expr::Value(literal) if matches!(literal.value, Value::Null) => true,
        other => super::insert::is_string(other),
    }
}

fn null() -> Expr {
    Expr::value(Value::Null)
}
