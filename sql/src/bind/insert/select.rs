//! `INSERT … SELECT`: result columns assigned to the relation's.
//!
//! PostgreSQL's assignment rules: numbers must fit, text becomes another type only where it stood as a
//! literal in the SELECT list. Leaves out running the SELECT. The engine calls it for each batch.

use super::cell::PlanEval;
use super::constant_default;
use super::target::{InsertRows, Shape, Target, place, resolve, value_error};
use crate::dialect::ast::{Ident, Select};
use crate::error::SqlError;
use crate::function::assign::Assignment;
use crate::plan::ResultColumn;
use crate::types::{ColumnBuilder, ColumnEncoder, assign_array, is_assignable};
use arrow::array::{Array, ArrayRef, RecordBatch, UInt32Array};
use arrow::datatypes::DataType;
use millstream_catalog::model::SqlState;
use millstream_catalog::model::limit::{PARAMETERS_MAX, STATEMENT_ROWS_BYTES_MAX};
use millstream_catalog::{Relation, SqlType};
use sqlparser::ast::{Expr, SelectItem, SetExpr, Value};

/// An `INSERT … SELECT` bound to a relation: takes the batches of the SELECT one by one.
#[derive(Debug)]
pub struct InsertSelect {
    shape: Shape,
    /// Of each result column: its type, whether it is an untyped literal, and where it goes.
    sources: Vec<(SqlType, bool, Target)>,
    /// One-row columns of what the INSERT does not name.
    defaults: Vec<Option<ArrayRef>>,
    row_next: usize,
}

impl InsertSelect {
    /// Binds the columns of a SELECT's result to those of a relation; `columns` as the INSERT names them.
    ///
    /// `literals` (of [`literal_columns`]) tells which result columns are untyped literals: their text is read
    /// as the column's type. `eval` gives the defaults that are not literals, once.
    ///
    /// # Errors
    /// 42601 for another number of columns, 42804 for a type that cannot be assigned.
    pub fn plan(
        relation: &Relation,
        columns: Option<&[Ident]>,
        result: &[ResultColumn],
        literals: &[bool],
        eval: PlanEval<'_>,
    ) -> Result<Self, SqlError> {
        let shape = Shape::of(relation);
        let mut targets = resolve(relation, columns)?;
        if columns.is_none() {
            targets.truncate(result.len());
        }
        if result.len() > targets.len() {
            return Err(SqlError::syntax("INSERT has more expressions than target columns"));
        }
        if result.len() < targets.len() {
            return Err(SqlError::syntax("INSERT has more target columns than expressions"));
        }
        let mut sources = Vec::with_capacity(result.len());
        for (i, (column, target)) in result.iter().zip(&targets).enumerate() {
            let is_literal = literals.get(i).copied().unwrap_or(false);
            sources.push((column.sql_type.clone(), is_literal, *target));
        }
        let default = |i: usize| match targets.contains(&Target::Column(i)) {
            true => Ok(None),
            false => constant_default(&shape, i, &mut *eval).map(Some),
        };
        let defaults = (0..shape.columns.len()).map(default).collect::<Result<_, _>>()?;
        Ok(Self { shape, sources, defaults, row_next: 1 })
    }

    /// Checks the types and literals of a continuous query's result, that of `select`, before there are rows.
    ///
    /// # Errors
    /// 42804 for a type that cannot be assigned, 22P02 and the like for a literal, 23502 for a column that always is NULL.
    pub fn check(&self, select: &Select) -> Result<(), SqlError> {
        let texts: Vec<Option<String>> = expressions(select).unwrap_or_default().into_iter().map(text).collect();
        for (at, (from, is_literal, target)) in self.sources.iter().enumerate() {
            let to = self.shape.sql_type(*target);
            match texts.get(at) {
                Some(Some(text)) if *is_literal => ColumnBuilder::new(to, 1).append_text(text.as_bytes())?,
                _ if *is_literal || is_assignable(from, to) => {}
                _ => return Err(self.shape.type_error(*target, &from.to_string())),
            }
            if let (Target::Column(column), true, Some(None)) = (target, *is_literal, texts.get(at)) {
                self.check_null(*column)?;
            }
        }
        let is_null = |default: &ArrayRef| default.is_null(0);
        let empty = self.defaults.iter().enumerate().filter(|(_, default)| default.as_ref().is_some_and(is_null));
        empty.map(|(column, _)| column).try_for_each(|column| self.check_null(column))
    }

    fn check_null(&self, column: usize) -> Result<(), SqlError> {
        if self.shape.columns[column].is_nullable { Ok(()) } else { Err(self.shape.null_error(column)) }
    }

    /// How the columns of the result become those of the relation; `None` for one that is there as it is, or a literal.
    pub fn assignments(&self) -> Vec<Option<Assignment>> {
        let assignment = |(from, is_literal, target): &(SqlType, bool, Target)| {
            let to = self.shape.sql_type(*target);
            let refuses_null = match target {
                Target::Column(at) if !self.shape.columns[*at].is_nullable => Some(self.shape.null_error(*at).message),
                _ => None,
            };
            let is_needed = !is_literal && (from != to || refuses_null.is_some());
            let column = self.shape.name(*target).to_owned();
            is_needed.then(|| Assignment { from: from.clone(), to: to.clone(), column, refuses_null })
        };
        self.sources.iter().map(assignment).collect()
    }

    /// The rows of the next batch.
    ///
    /// # Errors
    /// 42804 for a type that cannot be assigned, 22003 and the like, 23502 and 54000 for a value or row, with
    /// its row in the detail.
    pub fn rows(&mut self, batch: &RecordBatch) -> Result<InsertRows, SqlError> {
        let row_first = self.row_next;
        self.row_next += batch.num_rows();
        let mut arrays: Vec<Option<ArrayRef>> = vec![None; self.shape.columns.len()];
        let mut rowtime = None;
        for (array, (from, is_literal, target)) in batch.columns().iter().zip(&self.sources) {
            let array = assign_column(array, from, *is_literal, &self.shape, (*target, row_first))?;
            match target {
                Target::Column(at) => arrays[*at] = Some(array),
                Target::Rowtime => rowtime = Some(array),
            }
        }
        let mut filled = Vec::with_capacity(arrays.len());
        for (array, default) in arrays.into_iter().zip(&self.defaults) {
            filled.push(match (array, default) {
                (Some(array), _) => array,
                (None, Some(default)) => repeat(default, batch.num_rows())?,
                (None, None) => return Err(SqlError::internal("a result has fewer columns than it was planned with")),
            });
        }
        self.shape.finish(filled, rowtime, row_first)
    }
}

/// The one value of `array`, `rows` times.
pub(crate) fn repeat(array: &ArrayRef, rows: usize) -> Result<ArrayRef, SqlError> {
    let bytes = array.to_data().get_slice_memory_size().unwrap_or(usize::MAX);
    if bytes.saturating_mul(rows) > STATEMENT_ROWS_BYTES_MAX.as_usize() {
        let error = SqlError::new(SqlState::ProgramLimitExceeded, "a default is too large for so many rows at once");
        return Err(error.detail(format!("{rows} rows of {bytes} bytes, at most {STATEMENT_ROWS_BYTES_MAX} are made")));
    }
    let indices = UInt32Array::from(vec![0; rows]);
    arrow::compute::take(array.as_ref(), &indices, None)
        .map_err(|_| SqlError::internal("a default could not be repeated"))
}

/// Assigns one batch; for relations whose defaults are literals.
///
/// # Errors
/// Those of [`InsertSelect`]; 0A000 where a default would have to be evaluated.
pub fn assign(
    batch: &RecordBatch,
    result: &[ResultColumn],
    relation: &Relation,
    columns: Option<&[Ident]>,
) -> Result<InsertRows, SqlError> {
    let mut refuse = |_: &Expr, _: &SqlType| {
        Err(SqlError::unsupported(
            "a default that is not a literal in INSERT … SELECT",
            "name the column and select its value",
        ))
    };
    InsertSelect::plan(relation, columns, result, &[], &mut refuse)?.rows(batch)
}

pub(crate) fn assign_column(
    array: &ArrayRef,
    from: &SqlType,
    is_literal: bool,
    shape: &Shape,
    (target, row_first): (Target, usize),
) -> Result<ArrayRef, SqlError> {
    let to = shape.sql_type(target);
    let refuse = |row: usize, error| value_error(error, &place(row_first + row, shape.name(target)));
    if is_literal && *array.data_type() != DataType::Null {
        let encoder = ColumnEncoder::new(array.as_ref(), from);
        let mut builder = ColumnBuilder::new(to, array.len());
        let mut text = Vec::new();
        for row in 0..array.len() {
            text.clear();
            if encoder.text(row, &mut text) {
                builder.append_text(&text).map_err(|error| refuse(row, error))?;
            } else {
                builder.append_null();
            }
        }
        return Ok(builder.finish());
    }
    if *array.data_type() != DataType::Null && !is_assignable(from, to) {
        return Err(shape.type_error(target, &from.to_string()));
    }
    assign_array(array, from, to).map_err(|refused| refuse(refused.row, refused.error))
}

/// Which columns of a SELECT are string literals or NULLs without a type, in the order of its list.
///
/// Empty where it cannot be told: a `*` before a literal shifts the rest, so such lists tell nothing.
pub fn literal_columns(select: &Select) -> Vec<bool> {
    let expressions = expressions(select).unwrap_or_default();
    expressions.into_iter().map(|expr| is_string(expr) || is_null(expr)).collect()
}

/// The expressions of a SELECT's list, where there is nothing else in it.
fn expressions(select: &Select) -> Option<Vec<&Expr>> {
    let mut body = select.query.body.as_ref();
    while let SetExpr::Query(inner) = body {
        body = inner.body.as_ref();
    }
    let SetExpr::Select(inner) = body else { return None };
    fn expression(item: &SelectItem) -> Option<&Expr> {
        match item {
            SelectItem::UnnamedExpr(expr) | SelectItem::ExprWithAlias { expr, .. } => Some(expr),
            _ => None,
        }
    }
    inner.projection.iter().map(expression).collect()
}

/// What a string literal says.
fn text(expr: &Expr) -> Option<String> {
    match expr {
        Expr::Nested(inner) => text(inner),
        Expr::Value(value) if is_string(expr) => value.value.clone().into_string(),
        _ => None,
    }
}

fn is_null(expr: &Expr) -> bool {
    match expr {
        Expr::Nested(inner) => is_null(inner),
        Expr::Value(value) => value.value == Value::Null,
        _ => false,
    }
}

/// The declared parameter types of `INSERT … SELECT`: a parameter that is a result column by itself, of a type the client
/// leaves open, has the type of the column it goes to.
///
/// # Errors
/// 42703 and 42701 for the list of columns.
pub fn select_types(
    relation: &Relation,
    columns: Option<&[Ident]>,
    select: &Select,
    declared: &[Option<SqlType>],
) -> Result<Vec<Option<SqlType>>, SqlError> {
    let shape = Shape::of(relation);
    let mut types = declared.to_vec();
    let SetExpr::Select(inner) = select.query.body.as_ref() else { return Ok(types) };
    for (item, target) in inner.projection.iter().zip(resolve(relation, columns)?) {
        let (SelectItem::UnnamedExpr(expr) | SelectItem::ExprWithAlias { expr, .. }) = item else { break };
        let Expr::Value(value) = expr else { continue };
        let Value::Placeholder(id) = &value.value else { continue };
        let Some(at) = id.trim_start_matches('$').parse::<usize>().ok().and_then(|number| number.checked_sub(1)) else {
            continue;
        };
        if at < PARAMETERS_MAX {
            types.resize(types.len().max(at + 1), None);
            types[at].get_or_insert_with(|| shape.sql_type(target).clone());
        }
    }
    Ok(types)
}

pub(crate) fn is_string(expr: &Expr) -> bool {
    match expr {
        Expr::Nested(inner) => is_string(inner),
        Expr::Value(value) => matches!(
            value.value,
            Value::SingleQuotedString(_)
                | Value::EscapedStringLiteral(_)
                | Value::UnicodeStringLiteral(_)
                | Value::NationalStringLiteral(_)
                | Value::DollarQuotedString(_)
        ),
        _ => false,
    }
}
