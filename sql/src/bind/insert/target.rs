//! Where written values go: the columns of an INSERT or COPY, and the checks every row passes.
//!
//! Leaves out how values are read. INSERT, INSERT … SELECT and COPY share it.

use crate::dialect::ast::{Ident, Position};
use crate::error::SqlError;
use crate::types::{ValueError, with_one_nan};
use arrow::array::{Array, ArrayRef, AsArray, RecordBatch};
use arrow::datatypes::{DataType, Schema as ArrowSchema, SchemaRef};
use millstream_catalog::model::SqlState;
use millstream_catalog::model::limit::EVENT_BYTES_MAX;
use millstream_catalog::schema::{ROWOFFSET, ROWPARTITION, ROWTIME, ROWTOMBSTONE};
use millstream_catalog::{Column, Relation, SqlType};
use sqlparser::ast;
use std::sync::Arc;

/// Rows of a statement, converted and checked.
#[derive(Debug, Clone)]
pub struct InsertRows {
    /// All columns of the relation, hidden ones included, in declaration order.
    pub batch: RecordBatch,
    /// `Timestamp(µs, UTC)` for each row, when the statement names `rowtime`; may have NULLs.
    pub rowtime: Option<ArrayRef>,
}

/// One column a statement gives values for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Target {
    /// The relation's column at this position.
    Column(usize),
    /// The event time.
    Rowtime,
}

/// What rows are checked against: a relation's columns by value, so that plans outlive catalog snapshots.
#[derive(Debug, Clone)]
pub(crate) struct Shape {
    pub(crate) relation: String,
    pub(crate) columns: Vec<Column>,
    pub(crate) schema: SchemaRef,
}

impl Shape {
    pub(crate) fn of(relation: &Relation) -> Self {
        let columns = relation.schema.columns.clone();
        let fields: Vec<_> =
            columns.iter().map(|column| column.sql_type.field(column.name.as_str(), column.is_nullable)).collect();
        Self { relation: relation.name.to_string(), columns, schema: Arc::new(ArrowSchema::new(fields)) }
    }

    pub(crate) fn sql_type(&self, target: Target) -> &SqlType {
        match target {
            Target::Column(i) => &self.columns[i].sql_type,
            Target::Rowtime => &SqlType::TimestampTz,
        }
    }

    pub(crate) fn name(&self, target: Target) -> &str {
        match target {
            Target::Column(i) => self.columns[i].name.as_str(),
            Target::Rowtime => ROWTIME,
        }
    }

    /// 23502 for a NULL in column `i`.
    pub(crate) fn null_error(&self, i: usize) -> SqlError {
        let name = self.columns[i].name.as_str();
        let message =
            format!("null value in column \"{name}\" of relation \"{}\" violates not-null constraint", self.relation);
        SqlError::new(SqlState::NotNullViolation, message)
    }

    /// 42804 for an expression of type `from` in `target`.
    pub(crate) fn type_error(&self, target: Target, from: &str) -> SqlError {
        let (name, to) = (self.name(target), self.sql_type(target));
        let message = format!("column \"{name}\" is of type {to} but expression is of type {from}");
        SqlError::new(SqlState::DatatypeMismatch, message).hint("You will need to rewrite or cast the expression.")
    }

    /// Checks NOT NULL and the size of each row, and makes the batch.
    ///
    /// # Errors
    /// 23502 and 54000, naming the first row at fault, counted from `row_first`.
    pub(crate) fn finish(
        &self,
        columns: Vec<ArrayRef>,
        rowtime: Option<ArrayRef>,
        row_first: usize,
    ) -> Result<InsertRows, SqlError> {
        for (i, (column, array)) in self.columns.iter().zip(&columns).enumerate() {
            if !column.is_nullable && array.null_count() > 0 {
                let row = (0..array.len()).find(|row| array.is_null(*row)).unwrap_or(0);
                return Err(self.null_error(i).detail(place(row_first + row, self.name(Target::Column(i)))));
            }
        }
        check_sizes(&columns, row_first)?;
        let columns = columns.into_iter().map(with_one_nan).collect();
        let batch = RecordBatch::try_new(self.schema.clone(), columns)
            .map_err(|_| SqlError::internal("rows do not have the columns of their relation"))?;
        Ok(InsertRows { batch, rowtime })
    }
}

/// `row 3, column "x"`, rows counted from 1.
pub(crate) fn place(row: usize, column: &str) -> String {
    format!("row {row}, column \"{column}\"")
}

/// `error` with its place in front of its own detail.
pub(crate) fn value_error(error: ValueError, place: &str) -> SqlError {
    let detail = match &error.detail {
        Some(detail) => format!("{place}: {detail}"),
        None => place.to_owned(),
    };
    SqlError::from(error).detail(detail)
}

/// 54000 for a row of more bytes than an event may have.
fn check_sizes(columns: &[ArrayRef], row_first: usize) -> Result<(), SqlError> {
    let max = EVENT_BYTES_MAX.as_usize();
    let held: usize = columns.iter().map(|array| array.get_array_memory_size()).sum();
    // A slice holds the memory of its whole, but counts its own rows only.
    let own = |array: &ArrayRef| array.to_data().get_slice_memory_size().unwrap_or(usize::MAX);
    if held <= max || columns.iter().map(own).fold(0, usize::saturating_add) <= max {
        return Ok(());
    }
    let rows = columns.first().map_or(0, |array| array.len());
    for row in 0..rows {
        let bytes: usize = columns.iter().map(|array| cell_bytes(array.as_ref(), row)).sum();
        if bytes > max {
            return Err(row_too_large(bytes).detail(format!("row {} has {bytes} bytes", row_first + row)));
        }
    }
    Ok(())
}

pub(crate) fn row_too_large(bytes: usize) -> SqlError {
    debug_assert!(bytes > EVENT_BYTES_MAX.as_usize());
    SqlError::new(SqlState::ProgramLimitExceeded, format!("row exceeds {EVENT_BYTES_MAX} bytes"))
        .hint("store large values outside, or split the event")
}

/// Bytes of one value, without the validity bits.
fn cell_bytes(array: &dyn Array, row: usize) -> usize {
    match array.data_type() {
        DataType::Utf8 => array.as_string::<i32>().value_length(row).unsigned_abs() as usize,
        DataType::Binary => array.as_binary::<i32>().value_length(row).unsigned_abs() as usize,
        DataType::List(_) => {
            let list = array.as_list::<i32>();
            let offsets = list.value_offsets();
            let range = offsets[row] as usize..offsets[row + 1] as usize;
            range.map(|item| cell_bytes(list.values().as_ref(), item)).sum()
        }
        DataType::Struct(_) => array.as_struct().columns().iter().map(|child| cell_bytes(child.as_ref(), row)).sum(),
        DataType::Map(..) => {
            let map = array.as_map();
            let offsets = map.value_offsets();
            let range = offsets[row] as usize..offsets[row + 1] as usize;
            range.map(|entry| cell_bytes(map.entries(), entry)).sum()
        }
        other => other.primitive_width().unwrap_or(16),
    }
}

/// The targets of a column list; without one, all columns that are not hidden.
///
/// # Errors
/// 42703 for a name that is no column, 42701 for one given twice, with its position.
pub(crate) fn resolve(relation: &Relation, names: Option<&[Ident]>) -> Result<Vec<Target>, SqlError> {
    let Some(names) = names else {
        let columns = relation.schema.columns.iter().enumerate();
        return Ok(columns.filter(|(_, column)| !column.is_hidden).map(|(i, _)| Target::Column(i)).collect());
    };
    let mut targets = Vec::with_capacity(names.len());
    for name in names {
        let target = resolve_one(relation, name.as_str()).map_err(|error| error.at(name.position))?;
        if targets.contains(&target) {
            let message = format!("column \"{name}\" specified more than once");
            return Err(SqlError::new(SqlState::DuplicateColumn, message).at(name.position));
        }
        targets.push(target);
    }
    Ok(targets)
}

fn resolve_one(relation: &Relation, name: &str) -> Result<Target, SqlError> {
    if let Some((i, _)) = relation.schema.find(name).filter(|(_, column)| !column.is_hidden) {
        return Ok(Target::Column(i));
    }
    match name {
        ROWTIME => match relation.timestamp.and_then(|i| relation.schema.columns.get(i)) {
            None => Ok(Target::Rowtime),
            Some(column) => Err(SqlError::unsupported(
                format!("writing rowtime of relation \"{}\"", relation.name),
                format!("its event time is column \"{}\": write that", column.name),
            )),
        },
        ROWPARTITION | ROWOFFSET | ROWTOMBSTONE => {
            Err(SqlError::unsupported(format!("writing column \"{name}\""), "the server assigns it"))
        }
        _ => {
            let message = format!("column \"{name}\" of relation \"{}\" does not exist", relation.name);
            Err(SqlError::new(SqlState::UndefinedColumn, message))
        }
    }
}

/// The stored default of a column as an expression; `None` is NULL.
///
/// # Errors
/// `XX000`: the text was checked when the relation was made.
pub(crate) fn default_expr(column: &Column) -> Result<Option<ast::Expr>, SqlError> {
    let Some(text) = &column.default else { return Ok(None) };
    let parsed = sqlparser::parser::Parser::new(&sqlparser::dialect::PostgreSqlDialect {})
        .try_with_sql(text)
        .and_then(|mut parser| parser.parse_expr());
    parsed
        .map(Some)
        .map_err(|_| SqlError::internal(format!("the default of column \"{}\" cannot be read", column.name)))
}

/// Where an expression stands in the statement.
pub(crate) fn position(expr: &ast::Expr) -> Position {
    Position::of(ast::Spanned::span(expr))
}
