//! `INSERT`: values, parameters and defaults into rows of a relation, without the planner.
//!
//! Literals are converted once, when the statement is planned; a statement of parameters only is decoded
//! straight into columns. Other expressions are evaluated by the caller. Leaves out event time and
//! partitions (engine). Pure: a crash does nothing to it.

mod cell;
mod select;
mod target;

#[cfg(test)]
mod tests;

pub use cell::PlanEval;
pub use select::{InsertSelect, assign, literal_columns, select_types};
pub(crate) use select::{assign_column, is_string, repeat};
pub use target::InsertRows;
pub(crate) use target::{Shape, Target, default_expr, place, resolve, row_too_large, value_error};

use crate::dialect::ast::{Ident, is_default};
use crate::error::SqlError;
use crate::types::{ColumnBuilder, scalar_binary, scalar_null, scalar_text};
use arrow::array::ArrayRef;
use bytes::Bytes;
use cell::{Cell, Planner, append_scalar};
use datafusion::common::ScalarValue;
use millstream_catalog::model::SqlState;
use millstream_catalog::{Relation, SqlType};
use sqlparser::ast;

/// One parameter value as it came over the wire.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Param {
    /// True for PostgreSQL's binary format, false for text.
    pub is_binary: bool,
    /// The bytes; `None` is NULL.
    pub value: Option<Bytes>,
}

/// Evaluates an expression for a target of a type, with the values of all parameters.
pub type RowEval<'a> = &'a mut dyn FnMut(&ast::Expr, &SqlType, &[ScalarValue]) -> Result<ScalarValue, SqlError>;

/// How the values of one column come about.
#[derive(Debug, Clone)]
enum Fill {
    /// The same for each execution: all rows of it.
    Constant(ArrayRef),
    /// One cell per row.
    Cells(Vec<Cell>),
}

/// An `INSERT … VALUES` bound to a relation; executed any number of times.
#[derive(Debug, Clone)]
pub struct InsertPlan {
    shape: Shape,
    row_count: usize,
    fills: Vec<Fill>,
    rowtime: Option<Fill>,
    params: Vec<SqlType>,
    has_exprs: bool,
}

impl InsertPlan {
    /// Plans the rows of `VALUES`.
    ///
    /// `declared` are the parameter types the client gave; others take the type of the column they go to.
    /// `eval` folds expressions of literals only; those with functions or parameters wait for execution.
    ///
    /// # Errors
    /// 42703 and 42701 for the column list, 42601 for rows of another length, and what a literal of the
    /// wrong form gives, with its position.
    pub fn plan(
        relation: &Relation,
        columns: Option<&[Ident]>,
        rows: &[Vec<ast::Expr>],
        declared: &[Option<SqlType>],
        eval: PlanEval<'_>,
    ) -> Result<Self, SqlError> {
        let mut targets = resolve(relation, columns)?;
        if columns.is_none() {
            // Columns that are neither named nor given have their defaults.
            targets.truncate(rows.first().map_or(0, Vec::len));
        }
        for row in rows {
            check_length(row, &targets, columns)?;
        }
        Self::build(relation, &targets, rows, rows.len(), declared, eval)
    }

    /// Plans `DEFAULT VALUES`: one row.
    ///
    /// # Errors
    /// When a default does not fit its column.
    pub fn defaults(relation: &Relation, declared: &[Option<SqlType>], eval: PlanEval<'_>) -> Result<Self, SqlError> {
        Self::build(relation, &[], &[], 1, declared, eval)
    }

    fn build(
        relation: &Relation,
        targets: &[Target],
        rows: &[Vec<ast::Expr>],
        row_count: usize,
        declared: &[Option<SqlType>],
        eval: PlanEval<'_>,
    ) -> Result<Self, SqlError> {
        let shape = Shape::of(relation);
        let mut planner = Planner::new(&shape, declared, eval);
        let mut fills = Vec::with_capacity(shape.columns.len());
        for i in 0..shape.columns.len() {
            let target = Target::Column(i);
            let given = targets.iter().position(|given| *given == target);
            let default = match given {
                Some(at) if !rows.iter().any(|row| is_default(&row[at])) => None,
                _ => default_expr(&shape.columns[i])?,
            };
            fills.push(planner.fill(target, given, rows, row_count, default.as_ref())?);
        }
        let rowtime = match targets.iter().position(|target| *target == Target::Rowtime) {
            None => None,
            Some(at) => {
                if let Some(row) = rows.iter().find(|row| is_default(&row[at])) {
                    let error = SqlError::unsupported("DEFAULT for rowtime", "leave rowtime out of the column list");
                    return Err(error.at(target::position(&row[at])));
                }
                Some(planner.fill(Target::Rowtime, Some(at), rows, row_count, None)?)
            }
        };
        let (params, has_exprs) = planner.finish()?;
        Ok(Self { shape, row_count, fills, rowtime, params, has_exprs })
    }

    /// The types of the parameters, `$1` first.
    pub fn params(&self) -> &[SqlType] {
        &self.params
    }

    /// True if [`Self::rows`] will call its `eval`.
    pub fn needs_eval(&self) -> bool {
        self.has_exprs
    }

    /// The rows for these parameters.
    ///
    /// # Errors
    /// 08P01 for a wrong number of parameters; what the conversion of a value gives, 23502 for NULL in a
    /// NOT NULL column, 54000 for a row that is too large: with row and column in the detail.
    pub fn rows(&self, params: &[Param], eval: RowEval<'_>) -> Result<InsertRows, SqlError> {
        if params.len() != self.params.len() {
            let message = format!(
                "bind message supplies {} parameters, but prepared statement requires {}",
                params.len(),
                self.params.len()
            );
            return Err(SqlError::new(SqlState::ProtocolViolation, message));
        }
        let values = if self.has_exprs { scalars(&self.params, params)? } else { Vec::new() };
        let mut source = Values { plan: self, params, values, eval, last: None };
        let mut columns = Vec::with_capacity(self.fills.len());
        for (i, fill) in self.fills.iter().enumerate() {
            columns.push(source.column(fill, Target::Column(i))?);
        }
        let rowtime = self.rowtime.as_ref().map(|fill| source.column(fill, Target::Rowtime)).transpose()?;
        self.shape.finish(columns, rowtime, 1)
    }
}

/// 42601 for a row of more or fewer values than targets.
fn check_length(row: &[ast::Expr], targets: &[Target], columns: Option<&[Ident]>) -> Result<(), SqlError> {
    if let Some(extra) = row.get(targets.len()) {
        let error = SqlError::syntax("INSERT has more expressions than target columns");
        return Err(error.at(target::position(extra)));
    }
    if row.len() < targets.len() {
        let error = SqlError::syntax("INSERT has more target columns than expressions");
        let place = columns.and_then(|columns| columns.get(row.len())).map(|column| column.position);
        return Err(match place {
            Some(place) => error.at(place),
            None => SqlError::syntax("VALUES lists must all be the same length"),
        });
    }
    Ok(())
}

/// The parameters as scalars, for expressions.
fn scalars(types: &[SqlType], params: &[Param]) -> Result<Vec<ScalarValue>, SqlError> {
    let scalar = |(i, (sql_type, param)): (usize, (&SqlType, &Param))| {
        let value = match &param.value {
            None => scalar_null(sql_type),
            Some(bytes) if param.is_binary => scalar_binary(sql_type, bytes),
            Some(bytes) => scalar_text(sql_type, bytes),
        };
        value.map_err(|error| error.detail(format!("parameter ${}", i + 1)))
    };
    types.iter().zip(params).enumerate().map(scalar).collect()
}

/// One execution: the plan, the parameters and the caller's evaluator.
struct Values<'a, 'b> {
    plan: &'a InsertPlan,
    params: &'a [Param],
    values: Vec<ScalarValue>,
    eval: RowEval<'b>,
    /// Of the column at hand: the last expression that is the same for all rows, and its value.
    last: Option<(&'a ast::Expr, ScalarValue)>,
}

impl<'a> Values<'a, '_> {
    fn column(&mut self, fill: &'a Fill, target: Target) -> Result<ArrayRef, SqlError> {
        let cells = match fill {
            Fill::Constant(array) => return Ok(array.clone()),
            Fill::Cells(cells) => cells,
        };
        let mut builder = ColumnBuilder::new(self.plan.shape.sql_type(target), self.plan.row_count);
        self.last = None;
        for (row, cell) in cells.iter().enumerate() {
            self.append(&mut builder, cell, target, row + 1)?;
        }
        Ok(builder.finish())
    }

    fn append(
        &mut self,
        builder: &mut ColumnBuilder,
        cell: &'a Cell,
        target: Target,
        row: usize,
    ) -> Result<(), SqlError> {
        let shape = &self.plan.shape;
        let scalar = match cell {
            Cell::Null => {
                builder.append_null();
                return Ok(());
            }
            Cell::Constant(value) => return Ok(builder.append_stored(value)?),
            Cell::Param(i) => {
                let param = &self.params[*i];
                let outcome = match &param.value {
                    None => {
                        builder.append_null();
                        Ok(())
                    }
                    Some(bytes) if param.is_binary => builder.append_binary(bytes),
                    Some(bytes) => builder.append_text(bytes),
                };
                return outcome.map_err(|error| value_error(error, &place(row, shape.name(target))));
            }
            Cell::ParamOf(i) => {
                let (sql_type, param) = (&self.plan.params[*i], &self.params[*i]);
                let scalar = scalars(std::slice::from_ref(sql_type), std::slice::from_ref(param));
                let scalar = scalar.map_err(|error| error.detail(place(row, shape.name(target))))?;
                scalar.into_iter().next().unwrap_or(ScalarValue::Null)
            }
            Cell::Expr { expr, is_stable } => match &self.last {
                Some((last, value)) if *is_stable && **last == **expr => value.clone(),
                _ => {
                    let value = (self.eval)(expr, shape.sql_type(target), &self.values)?;
                    if *is_stable {
                        self.last = Some((expr, value.clone()));
                    }
                    value
                }
            },
        };
        append_scalar(builder, &scalar, shape, target, row)
    }
}

/// The default of column `i` as a column of one row; `eval` is called for what is not a literal.
///
/// # Errors
/// What `eval` gives, or what a literal that does not fit the column gives.
pub(crate) fn constant_default(shape: &Shape, i: usize, eval: PlanEval<'_>) -> Result<ArrayRef, SqlError> {
    let target = Target::Column(i);
    let default = default_expr(&shape.columns[i])?;
    let mut builder = ColumnBuilder::new(shape.sql_type(target), 1);
    let cells = {
        let mut planner = Planner::new(shape, &[], &mut *eval);
        match planner.fill(target, None, &[], 1, default.as_ref())? {
            Fill::Constant(array) => return Ok(array),
            Fill::Cells(cells) => cells,
        }
    };
    match cells.first() {
        Some(Cell::Expr { expr, .. }) => {
            let value = eval(expr, shape.sql_type(target))?;
            append_scalar(&mut builder, &value, shape, target, 1)?;
        }
        _ => builder.append_null(),
    }
    Ok(builder.finish())
}
