//! Rows under construction from copy data: one builder per target, batches when they are full.
//!
//! Leaves out formats. The decoders append one cell after the other and end each row.

use crate::bind::insert::{InsertRows, PlanEval, Shape, Target, constant_default, repeat, resolve};
use crate::dialect::ast::Ident;
use crate::error::SqlError;
use crate::types::{ColumnBuilder, ValueError, filled_bytes};
use arrow::array::{Array, ArrayRef};
use millstream_catalog::model::limit::BATCH_ROWS_MAX;
use millstream_catalog::model::{Name, SqlState};
use millstream_catalog::{Relation, SqlType};
use std::borrow::Cow;
use std::collections::VecDeque;

/// Bytes of rows after which a batch is closed whatever their number: bounds the builders.
const BATCH_BYTES: usize = 16 << 20;
/// Rows the first builders have room for; small copies are common.
const ROWS_AT_FIRST: usize = 1024;

/// Bytes of a record or value that a context repeats, as in PostgreSQL.
const SHOWN_BYTES_MAX: usize = 100;

/// `data` for a context: lossy UTF-8, cut after 100 bytes.
fn shown(data: &[u8]) -> Cow<'_, str> {
    if data.len() <= SHOWN_BYTES_MAX {
        return String::from_utf8_lossy(data);
    }
    let end = (0..=SHOWN_BYTES_MAX).rev().find(|end| data[*end] & 0xC0 != 0x80).unwrap_or(0);
    Cow::Owned(format!("{}...", String::from_utf8_lossy(&data[..end])))
}

/// The bytes that a default, a column of one row, takes in each row.
pub(super) fn default_bytes(default: &ArrayRef) -> usize {
    default.to_data().get_slice_memory_size().unwrap_or(usize::MAX)
}

/// Builders of the targets, and finished batches.
#[derive(Debug)]
pub(super) struct Sink {
    relation: Name,
    shape: Shape,
    targets: Vec<Target>,
    is_not_null: Vec<bool>,
    builders: Vec<ColumnBuilder>,
    /// The default of each column, as a column of one row.
    defaults: Vec<ArrayRef>,
    /// Bytes that a row takes, however little data it is given in.
    row_bytes: usize,
    /// The targets whose values may take more than their data and `row_bytes`.
    composed: Vec<usize>,
    rows: usize,
    rows_before: usize,
    bytes: usize,
    /// Number of the line being read, from 1.
    pub(super) line: u64,
    ready: VecDeque<InsertRows>,
}

impl Sink {
    pub(super) fn new(relation: &Relation, columns: Option<&[Ident]>, eval: PlanEval<'_>) -> Result<Self, SqlError> {
        let shape = Shape::of(relation);
        let targets = resolve(relation, columns)?;
        let default = |i: usize| constant_default(&shape, i, &mut *eval);
        let defaults = (0..shape.columns.len()).map(default).collect::<Result<Vec<_>, _>>()?;
        let is_not_null = targets.iter().map(|target| match target {
            Target::Column(i) => !shape.columns[*i].is_nullable,
            // A NULL event time is refused where event times are formed.
            Target::Rowtime => false,
        });
        let is_not_null = is_not_null.collect();
        let builders = targets.iter().map(|target| ColumnBuilder::new(shape.sql_type(*target), ROWS_AT_FIRST));
        let builders = builders.collect();
        let ready = VecDeque::new();
        let is_target = |i: usize| targets.contains(&Target::Column(i));
        let column_bytes = |(i, default): (usize, &ArrayRef)| {
            let filled = if is_target(i) { filled_bytes(&shape.columns[i].sql_type) } else { 0 };
            filled.max(default_bytes(default))
        };
        let row_bytes = defaults.iter().enumerate().map(column_bytes).sum();
        let is_composed = |at: &usize| {
            matches!(shape.sql_type(targets[*at]), SqlType::Array(_) | SqlType::Struct(_) | SqlType::Map(..))
        };
        let composed = (0..targets.len()).filter(is_composed).collect();
        Ok(Self {
            relation: relation.name.clone(),
            shape,
            targets,
            is_not_null,
            builders,
            defaults,
            row_bytes,
            composed,
            rows: 0,
            rows_before: 0,
            bytes: 0,
            line: 1,
            ready,
        })
    }

    /// Number of targets.
    pub(super) fn width(&self) -> usize {
        self.targets.len()
    }

    /// The name of a target.
    pub(super) fn name(&self, at: usize) -> &str {
        self.shape.name(self.targets[at])
    }

    /// The target of a name.
    pub(super) fn find(&self, name: &[u8]) -> Option<usize> {
        (0..self.width()).find(|at| self.name(*at).as_bytes() == name)
    }

    /// 42703 for a name that is no column of the relation at all.
    pub(super) fn unknown(&self, name: &str) -> Option<SqlError> {
        let is_column = self.shape.columns.iter().any(|column| column.name.as_str() == name);
        let message = format!("column \"{name}\" of relation \"{}\" does not exist", self.relation);
        (!is_column).then(|| SqlError::new(SqlState::UndefinedColumn, message))
    }

    /// The builder of a target, for formats that find the parts of a value themselves.
    pub(super) fn builder(&mut self, at: usize) -> &mut ColumnBuilder {
        &mut self.builders[at]
    }

    /// Appends a value in PostgreSQL's text form.
    #[inline]
    pub(super) fn text(&mut self, at: usize, value: &[u8]) -> Result<(), SqlError> {
        match self.builders[at].append_text(value) {
            Ok(()) => Ok(()),
            Err(error) => Err(self.refuse(at, value, error)),
        }
    }

    /// Appends a value in PostgreSQL's binary form.
    #[inline]
    pub(super) fn binary(&mut self, at: usize, value: &[u8]) -> Result<(), SqlError> {
        match self.builders[at].append_binary(value) {
            Ok(()) => Ok(()),
            Err(error) => Err(self.binary_refused(at, error)),
        }
    }

    /// A value cut short is a fault of the data here, not of the protocol.
    #[cold]
    fn binary_refused(&self, at: usize, mut error: ValueError) -> SqlError {
        if error.sqlstate == SqlState::ProtocolViolation {
            error.sqlstate = SqlState::InvalidBinaryRepresentation;
        }
        SqlError::from(error).context(format!("{}, column {}", self.place(), self.name(at)))
    }

    /// Appends NULL.
    #[inline]
    pub(super) fn null(&mut self, at: usize) -> Result<(), SqlError> {
        if self.is_not_null[at] {
            return Err(self.null_refused(at));
        }
        self.builders[at].append_null();
        Ok(())
    }

    #[cold]
    fn null_refused(&self, at: usize) -> SqlError {
        let Target::Column(i) = self.targets[at] else { return SqlError::internal("rowtime may be NULL here") };
        self.shape.null_error(i).context(format!("{}, column {}: null input", self.place(), self.name(at)))
    }

    /// The default of a target the row leaves out, or NULL.
    pub(super) fn absent(&mut self, at: usize) -> Result<(), SqlError> {
        let Target::Column(i) = self.targets[at] else { return self.null(at) };
        if self.defaults[i].is_null(0) {
            return self.null(at);
        }
        Ok(self.builders[at].append_first(&self.defaults[i])?)
    }

    #[cold]
    pub(super) fn refuse(&self, at: usize, value: &[u8], error: ValueError) -> SqlError {
        SqlError::from(error).context(self.place_of(at, value))
    }

    /// `COPY s, line 3`, which PostgreSQL's clients find in the context.
    pub(super) fn place(&self) -> String {
        format!("COPY {}, line {}", self.relation, self.line)
    }

    /// `COPY s, line 3, column v: "x"`
    pub(super) fn place_of(&self, at: usize, value: &[u8]) -> String {
        format!("{}, column {}: \"{}\"", self.place(), self.name(at), shown(value))
    }

    /// `COPY s, line 3, character 7: "1,2,x"`, for the byte at `at` of the record.
    pub(super) fn place_in(&self, record: &[u8], at: usize) -> String {
        let before = record.get(..at).unwrap_or(record);
        let character = 1 + before.iter().filter(|byte| **byte & 0xC0 != 0x80).count();
        format!("{}, character {character}: \"{}\"", self.place(), shown(record))
    }

    /// 22P04 in the record at the current line.
    #[cold]
    pub(super) fn bad(&self, message: impl Into<String>, record: &[u8]) -> SqlError {
        let context = format!("{}: \"{}\"", self.place(), shown(record));
        SqlError::new(SqlState::BadCopyFileFormat, message).context(context)
    }

    /// 22P04 at the byte `at` of the record.
    #[cold]
    pub(super) fn bad_at(&self, message: impl Into<String>, record: &[u8], at: usize) -> SqlError {
        SqlError::new(SqlState::BadCopyFileFormat, message).context(self.place_in(record, at))
    }

    /// Ends a row of `bytes` bytes of copy data.
    #[inline]
    pub(super) fn end_row(&mut self, bytes: usize) -> Result<(), SqlError> {
        self.rows += 1;
        self.bytes += bytes.max(self.row_bytes);
        let is_full = self.rows >= BATCH_ROWS_MAX || self.bytes >= BATCH_BYTES || self.element_bytes() >= BATCH_BYTES;
        if is_full { self.close_batch() } else { Ok(()) }
    }

    /// Makes a batch of the rows so far.
    pub(super) fn close_batch(&mut self) -> Result<(), SqlError> {
        if self.rows == 0 {
            return Ok(());
        }
        let rows = std::mem::take(&mut self.rows);
        self.bytes = 0;
        let mut columns: Vec<Option<ArrayRef>> = vec![None; self.shape.columns.len()];
        let mut rowtime = None;
        for (target, builder) in self.targets.iter().zip(&mut self.builders) {
            let full = builder.finish();
            match target {
                Target::Column(i) => columns[*i] = Some(full),
                Target::Rowtime => rowtime = Some(full),
            }
            *builder = ColumnBuilder::new(self.shape.sql_type(*target), rows);
        }
        let mut filled = Vec::with_capacity(columns.len());
        for (column, default) in columns.into_iter().zip(&self.defaults) {
            filled.push(match column {
                Some(column) => column,
                None => repeat(default, rows)?,
            });
        }
        self.ready.push_back(self.shape.finish(filled, rowtime, self.rows_before + 1)?);
        self.rows_before += rows;
        Ok(())
    }

    /// Bytes of the rows of the batch that is not finished, as far as they are alike.
    pub(super) fn held_bytes(&self) -> usize {
        self.bytes + self.element_bytes()
    }

    fn element_bytes(&self) -> usize {
        self.composed.iter().map(|at| self.builders[*at].element_bytes()).sum()
    }

    /// The next finished batch.
    pub(super) fn next_rows(&mut self) -> Option<InsertRows> {
        self.ready.pop_front()
    }
}
