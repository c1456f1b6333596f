//! What a statement gives back: rows, a command tag, or a COPY in one direction.
//!
//! Owns the shapes only, and the encoded forms of rows that many get. Leaves out how they are sent: the server and
//! embedding programs poll them.

use crate::engine::copy::{CopyIn, CopyOut};
use crate::engine::group::Receipts;
use crate::storage::batch::batch_bytes;
use arrow::array::RecordBatch;
use bytes::Bytes;
use futures::stream::BoxStream;
use millstream_sql::SqlError;
use millstream_sql::dialect::CopyOptions;
use millstream_sql::plan::ResultColumn;
use parking_lot::Mutex;
use std::fmt;
use std::ops::Deref;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

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
    pub stream: RowStream,
    /// Of a subscription, whether it has given all there is.
    pub idle: Idle,
    /// Of a member of a consumer group, whom to tell what became of the rows.
    pub receipts: Option<Receipts>,
}

/// Whether a subscription waits for events: it has given the rows of all there are.
#[derive(Debug, Clone, Default)]
pub struct Idle {
    is_idle: Arc<AtomicBool>,
}

/// While it is there, the subscription is idle.
#[derive(Debug)]
pub(crate) struct Waiting {
    is_idle: Arc<AtomicBool>,
}

impl Idle {
    /// From now on, until the answer is dropped.
    pub(crate) fn begin(&self) -> Waiting {
        self.is_idle.store(true, Ordering::Release);
        Waiting { is_idle: Arc::clone(&self.is_idle) }
    }

    /// Whether it is.
    pub(crate) fn get(&self) -> bool {
        self.is_idle.load(Ordering::Acquire)
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.is_idle.store(false, Ordering::Release);
    }
}

impl fmt::Debug for Rows {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Rows").field("columns", &self.columns).field("is_push", &self.is_push).finish_non_exhaustive()
    }
}

/// Batches of rows.
pub type RowStream = BoxStream<'static, Result<RowBatch>>;

/// Rows of a result.
#[derive(Debug, Clone)]
pub struct RowBatch {
    rows: RecordBatch,
    forms: Option<Arc<Forms>>,
}

impl From<RecordBatch> for RowBatch {
    fn from(rows: RecordBatch) -> Self {
        Self { rows, forms: None }
    }
}

impl Deref for RowBatch {
    type Target = RecordBatch;

    fn deref(&self) -> &RecordBatch {
        &self.rows
    }
}

impl RowBatch {
    /// Rows that several get, who may have them encoded once for all.
    pub(crate) fn shared(rows: RecordBatch) -> Self {
        let is_small = batch_bytes(&rows).as_usize() <= FORM_BYTES_MAX;
        Self { rows, forms: is_small.then(Arc::default) }
    }

    /// Some of the rows, one after the other.
    pub(crate) fn slice(&self, from: usize, count: usize) -> Self {
        match (from, count) {
            (0, count) if count == self.rows.num_rows() => self.clone(),
            _ => self.rows.slice(from, count).into(),
        }
    }

    /// Where all of them are encoded once for several readers, if they are such rows.
    pub fn forms(&self) -> Option<&Forms> {
        self.forms.as_deref()
    }
}

/// Bytes of rows that are encoded at once.
const FORM_BYTES_MAX: usize = 256 << 10;

/// How rows are encoded.
#[derive(Debug, Clone, PartialEq)]
pub enum Form {
    /// As DataRow messages; whether each column is binary, or all if it is one.
    DataRows(Vec<bool>),
    /// As CopyData messages in a format of lines.
    CopyData(CopyOptions),
}

/// The encoded forms of some rows.
#[derive(Debug, Default)]
pub struct Forms(Mutex<Vec<(Form, Bytes)>>);

impl Forms {
    /// The rows in a form, encoded by who asks first.
    ///
    /// # Errors
    /// Of `encode`.
    pub fn get<E>(
        &self,
        form: &Form,
        encode: impl FnOnce() -> std::result::Result<Vec<u8>, E>,
    ) -> std::result::Result<Bytes, E> {
        // Locked meanwhile: who comes now would encode them too.
        let mut forms = self.0.lock();
        if let Some((_, bytes)) = forms.iter().find(|(known, _)| known == form) {
            return Ok(bytes.clone());
        }
        let bytes = Bytes::from(encode()?);
        forms.push((form.clone(), bytes.clone()));
        Ok(bytes)
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
