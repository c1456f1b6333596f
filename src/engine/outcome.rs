//! What a statement gives back: rows, a command tag, or a COPY in one direction.
//!
//! Owns the shapes only. Leaves out how they are sent: the server and embedding programs poll them.

use crate::engine::copy::{CopyIn, CopyOut};
use crate::engine::group::Receipts;
use millstream_sql::SqlError;
use millstream_sql::exec::BatchStream;
use millstream_sql::plan::ResultColumn;
use std::fmt;
use std::sync::Arc;

/// The result of one statement.
#[derive(Debug)]
pub enum Outcome {
    /// Rows; perhaps endless.
    Rows(Rows),
    /// Done, with PostgreSQL's command tag.
    Command {
        /// For example `INSERT 0 3` or `CREATE STREAM`.
        tag: String,
    },
    /// The statement waits for copy data.
    CopyIn(Box<CopyIn>),
    /// Rows to be sent as copy data.
    CopyOut(CopyOut),
    /// The statement had no text.
    Empty,
}

/// The words of the completion tag after rows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RowsTag {
    /// `WORD n`, n the number of rows sent: `SELECT 3`, `FETCH 1`, `INSERT 0 2`.
    Counted(&'static str),
    /// The word alone: `SHOW`, `EXPLAIN`.
    Plain(&'static str),
}

impl RowsTag {
    /// The tag after `rows` rows were sent.
    pub fn render(&self, rows: u64) -> String {
        match self {
            Self::Counted(word) => format!("{word} {rows}"),
            Self::Plain(word) => (*word).to_owned(),
        }
    }
}

/// Rows with their columns.
///
/// The stream yields batches whose columns are those of `columns`, by position. `Pending` means that no row
/// is ready: whoever delivers flushes what it holds, then waits. Dropping the stream ends the statement.
pub struct Rows {
    /// Names and types, in order.
    pub columns: Arc<[ResultColumn]>,
    /// The completion tag.
    pub tag: RowsTag,
    /// True for a subscription: the stream does not end by itself, and a row-limited read waits to be full.
    pub is_push: bool,
    /// The batches.
    pub stream: BatchStream,
    /// Of a member of a consumer group, whom to tell what became of the rows.
    pub receipts: Option<Receipts>,
}

impl fmt::Debug for Rows {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Rows").field("columns", &self.columns).field("is_push", &self.is_push).finish_non_exhaustive()
    }
}

/// How a statement came in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Via {
    /// A simple query: rows in text, the statement runs to its end.
    Simple,
    /// Parse, Bind, Execute for all rows.
    Extended,
    /// Parse, Bind, Execute for so many rows at a time.
    Portal,
}

/// A message beside the result: PostgreSQL's NOTICE and WARNING.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Notice {
    /// `NOTICE` or `WARNING`.
    pub severity: &'static str,
    /// Its SQLSTATE.
    pub sqlstate: millstream_catalog::model::SqlState,
    /// One line.
    pub message: String,
    /// What to do next.
    pub hint: Option<String>,
}

/// What the session's transaction is doing, as ReadyForQuery reports it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TransactionStatus {
    /// No transaction block.
    Idle,
    /// In a block.
    Open,
    /// In a block whose statement failed: only its end is accepted.
    Failed,
}

/// The error of a statement.
pub type Result<T> = std::result::Result<T, SqlError>;
