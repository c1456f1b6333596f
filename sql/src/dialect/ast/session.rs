//! Statements that define and change nothing stored: of the session, of transactions and of cursors.
//!
//! Leaves out what they do (engine). Built by `dialect::parse`; a crash does nothing to it.

use super::{Ident, Parsed, Position, QualifiedName, Select};
use millstream_catalog::model::{RowCount, Span};
use sqlparser::ast;

/// `EXPLAIN [ANALYZE] [VERBOSE] statement`.
#[derive(Debug, Clone, PartialEq)]
pub struct Explain {
    /// The statement runs, and what it did is shown.
    pub analyze: bool,
    /// More of the plan is shown.
    pub verbose: bool,
    /// A `SELECT`, `INSERT … SELECT` or `CREATE … AS SELECT`.
    pub statement: Box<Parsed>,
}

/// `SHOW …`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Show {
    /// `SHOW STREAMS`
    Streams,
    /// `SHOW TABLES`
    Tables,
    /// `SHOW TOPICS`
    Topics,
    /// `SHOW VIEWS`
    Views,
    /// `SHOW QUERIES`
    Queries,
    /// `SHOW FUNCTIONS`
    Functions,
    /// `SHOW NODES`
    Nodes,
    /// `SHOW CONSUMER GROUPS`
    Groups,
    /// `SHOW ALL`: every setting
    All,
    /// `SHOW name`: one setting, in lower case
    Setting(String),
}

/// `DESCRIBE [EXTENDED] name`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Describe {
    /// Options, partitions and queries are shown too.
    pub extended: bool,
    /// The relation.
    pub name: QualifiedName,
}

/// `PAUSE | RESUME | TERMINATE QUERY name`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct QueryControl {
    /// What to do.
    pub action: QueryAction,
    /// Which query.
    pub name: Ident,
}

/// What may be done to a continuous query.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum QueryAction {
    /// Stop taking steps.
    Pause,
    /// Go on where it was.
    Resume,
    /// End for good.
    Terminate,
}

/// `SET [SESSION | LOCAL] name = value`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Set {
    /// For how long.
    pub scope: SetScope,
    /// The setting, in lower case; dots of ksqlDB's names become underscores.
    pub name: String,
    /// The value.
    pub value: SetValue,
    /// Where the name stands.
    pub position: Position,
}

/// For how long a `SET` holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SetScope {
    /// Until the session ends.
    Session,
    /// Until the transaction ends.
    Local,
}

/// The value of a `SET`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SetValue {
    /// `DEFAULT`
    Default,
    /// One or more values, quotes taken away; several are PostgreSQL's list settings.
    Values(Vec<String>),
}

/// `DISCARD …`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Discard {
    /// Everything of the session.
    All,
    /// Cached plans.
    Plans,
    /// Cached sequence values.
    Sequences,
    /// Temporary tables.
    Temp,
}

/// The modes of a transaction. Isolation is always read committed; other levels are refused while parsing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct TransactionModes {
    /// `READ ONLY` or `READ WRITE`, if given.
    pub access: Option<TransactionAccess>,
}

/// What a transaction may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TransactionAccess {
    /// Writes are refused (25006).
    ReadOnly,
    /// Writes are taken.
    ReadWrite,
}

/// `AND [NO] CHAIN`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Chain {
    /// The session leaves the transaction.
    No,
    /// A new transaction with the same modes begins.
    Yes,
}

/// `DECLARE name [NO SCROLL] CURSOR [WITH HOLD] FOR select`.
#[derive(Debug, Clone, PartialEq)]
pub struct Declare {
    /// The cursor.
    pub name: Ident,
    /// `WITH HOLD`: it outlives the transaction.
    pub hold: bool,
    /// What it reads.
    pub select: Select,
}

/// `FETCH count FROM cursor [WITH (timeout = '…')]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fetch {
    /// The cursor.
    pub cursor: Ident,
    /// How many rows.
    pub count: FetchCount,
    /// After how long an answer may be short.
    pub timeout: Option<Span>,
}

/// How many rows a `FETCH` asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FetchCount {
    /// Exactly so many, unless the query or the timeout ends; at least 1.
    Rows(RowCount),
    /// What is ready now; of a pull query, all that is left.
    All,
}

/// `PREPARE name [(types)] AS statement`.
#[derive(Debug, Clone, PartialEq)]
pub struct Prepare {
    /// Its name.
    pub name: Ident,
    /// The declared parameter types, as written, with their places.
    pub types: Vec<(ast::DataType, Position)>,
    /// A `SELECT` or `INSERT`.
    pub statement: Parsed,
}

/// `EXECUTE name [(arguments)]`.
#[derive(Debug, Clone, PartialEq)]
pub struct Execute {
    /// The prepared statement.
    pub name: Ident,
    /// The arguments.
    pub arguments: Vec<ast::Expr>,
}
