//! The statements of Millstream, after parsing and before any name is looked up.
//!
//! Owns the shapes; `SELECT`s, expressions and type names inside them are sqlparser's. Unquoted
//! identifiers are already folded to lower case. Every location in sqlparser's spans is on line 1, with
//! the column counted in characters from the start of the whole text: [`Position::of`] makes it ours.
//! Leaves out types and options checks (`bind`). Built by `dialect::parse`; a crash does nothing to it.

mod change;
mod group;
mod session;

pub use change::*;
pub use group::*;
pub use session::*;

use crate::error::SqlError;
use millstream_catalog::RelationKind;
use millstream_catalog::model::{Name, RowCount, Sequence, Span};
use millstream_catalog::query::OnError;
use sqlparser::ast;
use std::fmt;
use std::sync::Arc;

/// A place in the text: characters from 1; 0 is unknown. All positions are equal, so that two statements
/// that say the same compare equal wherever they stand.
#[derive(Debug, Clone, Copy, Default, Eq)]
pub struct Position(usize);

impl Position {
    /// Nowhere in particular.
    pub const UNKNOWN: Self = Self(0);

    /// Wraps a count of characters from 1.
    pub const fn new(position: usize) -> Self {
        Self(position)
    }

    /// The count of characters from 1; 0 is unknown.
    pub const fn get(self) -> usize {
        self.0
    }

    /// Where a part of a statement parsed by this crate begins.
    pub fn of(span: sqlparser::tokenizer::Span) -> Self {
        Self(usize::try_from(span.start.column).unwrap_or(0))
    }
}

impl PartialEq for Position {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

impl From<Position> for usize {
    fn from(position: Position) -> Self {
        position.0
    }
}

/// One statement of a text, with its source.
#[derive(Debug, Clone, PartialEq)]
pub struct Parsed {
    /// What it says.
    pub statement: Statement,
    /// Its own source text, from its first token to its last, without the semicolon.
    pub text: Arc<str>,
    /// Characters of the whole text before it.
    pub start: usize,
}

impl Parsed {
    /// The statement whose text this is, with as many characters before it.
    ///
    /// # Errors
    /// None, if it was parsed before.
    pub fn again(text: &str, start: usize) -> Result<Self, SqlError> {
        let mut statements = super::parse(&format!("{:start$}{text}", ""))?;
        statements.pop().ok_or_else(|| SqlError::internal("a statement without a text"))
    }

    /// The cursor that a FETCH, MOVE, CLOSE or COMMIT OFFSETS names.
    pub fn cursor(&self) -> Option<&str> {
        match &self.statement {
            Statement::Fetch(fetch) | Statement::Move(fetch) => Some(fetch.cursor.as_str()),
            Statement::Close(name) => name.as_ref().map(Ident::as_str),
            Statement::CommitOffsets(CommitOffsets::Cursor(name)) => Some(name.as_str()),
            _ => None,
        }
    }

    /// The cursor that a DECLARE makes.
    pub fn declared(&self) -> Option<&str> {
        match &self.statement {
            Statement::Declare(declare) => Some(declare.name.as_str()),
            _ => None,
        }
    }

    /// A FETCH of so many rows waits for them, whatever `fetch_timeout` says.
    pub fn wait_for_rows(&mut self) {
        if let Statement::Fetch(fetch) = &mut self.statement
            && matches!(fetch.count, FetchCount::Rows(_))
        {
            fetch.timeout = Some(Span::from_micros(i64::MAX));
        }
    }

    /// Whether it is a CLOSE.
    pub fn is_close(&self) -> bool {
        matches!(self.statement, Statement::Close(_))
    }
}

/// A statement.
#[derive(Debug, Clone, PartialEq)]
pub enum Statement {
    /// `CREATE STREAM | TOPIC | TABLE name (…)`
    CreateRelation(Box<CreateRelation>),
    /// `CREATE STREAM | TABLE | MATERIALIZED VIEW name AS SELECT …`
    CreateAs(Box<CreateAs>),
    /// `CREATE VIEW name AS SELECT …`
    CreateView(Box<CreateView>),
    /// `REFRESH MATERIALIZED VIEW name`
    Refresh(QualifiedName),
    /// `DROP STREAM | TOPIC | TABLE | VIEW | MATERIALIZED VIEW …`
    Drop(Drop),
    /// `ALTER STREAM | TABLE | TOPIC …`
    Alter(Box<Alter>),
    /// `TRUNCATE names`
    Truncate(Vec<QualifiedName>),
    /// `INSERT INTO …`
    Insert(Box<Insert>),
    /// `INSERT INTO … SELECT … EMIT CHANGES`
    InsertQuery(Box<InsertQuery>),
    /// `UPDATE …`, `DELETE …`
    Change(Box<Change>),
    /// `COPY …`
    Copy(Box<Copy>),
    /// `SELECT`, `VALUES`, `TABLE`, `WITH … SELECT`
    Select(Box<Select>),
    /// `EXPLAIN …`
    Explain(Explain),
    /// `EXPLAIN QUERY name`
    ExplainQuery(Ident),
    /// `SHOW …`
    Show(Show),
    /// `DESCRIBE [EXTENDED] name`
    Describe(Describe),
    /// `PAUSE | RESUME | TERMINATE QUERY name`
    Query(QueryControl),
    /// `FLUSH`
    Flush,
    /// `SET …`
    Set(Set),
    /// `RESET name`; `None` is `RESET ALL`
    Reset(Option<String>),
    /// `DISCARD …`
    Discard(Discard),
    /// `BEGIN`, `START TRANSACTION`
    Begin(TransactionModes),
    /// `COMMIT`, `END`
    Commit(Chain),
    /// `ROLLBACK`, `ABORT`
    Rollback(Chain),
    /// `SAVEPOINT name`
    Savepoint(Ident),
    /// `RELEASE [SAVEPOINT] name`
    Release(Ident),
    /// `ROLLBACK TO [SAVEPOINT] name`
    RollbackTo(Ident),
    /// `SET TRANSACTION …`
    SetTransaction(TransactionModes),
    /// `SET SESSION CHARACTERISTICS AS TRANSACTION …`
    SetSessionCharacteristics(TransactionModes),
    /// `DECLARE name CURSOR FOR …`
    Declare(Box<Declare>),
    /// `FETCH …`
    Fetch(Fetch),
    /// `MOVE …`: `FETCH` without the rows
    Move(Fetch),
    /// `CLOSE name`; `None` is `CLOSE ALL`
    Close(Option<Ident>),
    /// `PREPARE name AS …`
    Prepare(Box<Prepare>),
    /// `EXECUTE name (…)`
    Execute(Execute),
    /// `DEALLOCATE name`; `None` is `DEALLOCATE ALL`
    Deallocate(Option<Ident>),
    /// `COMMIT OFFSETS …`
    CommitOffsets(CommitOffsets),
    /// `ALTER CONSUMER GROUP …`
    AlterGroup(AlterGroup),
    /// `DROP CONSUMER GROUP …`
    DropGroups(DropGroups),
    /// `DESCRIBE CONSUMER GROUP name`
    DescribeGroup(GroupRef),
    /// `LISTEN topic`
    Listen(Ident),
    /// `UNLISTEN topic`; `None` is `UNLISTEN *`
    Unlisten(Option<Ident>),
}

/// A name as used in a statement.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ident {
    /// The name, folded if it was unquoted.
    pub name: Name,
    /// Where it stands.
    pub position: Position,
}

impl Ident {
    /// The text of the name.
    pub fn as_str(&self) -> &str {
        self.name.as_str()
    }
}

impl fmt::Display for Ident {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.name.fmt(f)
    }
}

/// A name that a schema may precede.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct QualifiedName {
    /// The schema; `None` is the search path.
    pub schema: Option<Name>,
    /// The name in it.
    pub name: Name,
    /// Where it stands.
    pub position: Position,
}

impl QualifiedName {
    /// The text of the name, without the schema.
    pub fn as_str(&self) -> &str {
        self.name.as_str()
    }
}

impl fmt::Display for QualifiedName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.name.fmt(f)
    }
}

/// The word for what is in a statement's catalog.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ObjectKind {
    /// `STREAM`
    Stream,
    /// `TOPIC`: a stream, in Kafka's word
    Topic,
    /// `TABLE`
    Table,
    /// `VIEW`
    View,
    /// `MATERIALIZED VIEW`: a stream or table, by what its query gives
    MaterializedView,
}

impl ObjectKind {
    /// How the topic is read; `None` where the word does not say.
    pub fn relation_kind(self) -> Option<RelationKind> {
        match self {
            Self::Stream | Self::Topic => Some(RelationKind::Stream),
            Self::Table => Some(RelationKind::Table),
            Self::View | Self::MaterializedView => None,
        }
    }

    /// The keyword.
    pub fn keyword(self) -> &'static str {
        match self {
            Self::Stream => "STREAM",
            Self::Topic => "TOPIC",
            Self::Table => "TABLE",
            Self::View => "VIEW",
            Self::MaterializedView => "MATERIALIZED VIEW",
        }
    }
}

/// `CREATE STREAM | TOPIC | TABLE name (columns) WITH (options)`.
#[derive(Debug, Clone, PartialEq)]
pub struct CreateRelation {
    /// The word used.
    pub kind: ObjectKind,
    /// Its name.
    pub name: QualifiedName,
    /// An existing relation of the name is left alone.
    pub if_not_exists: bool,
    /// The columns, in order.
    pub columns: Vec<ColumnDef>,
    /// The columns of a table-level `PRIMARY KEY (…)`.
    pub primary_key: Option<Vec<Ident>>,
    /// `WATERMARK FOR column AS column - INTERVAL '…'`.
    pub watermark: Option<Watermark>,
    /// `WITH (…)`.
    pub options: WithOptions,
    /// The canonical text of the statement.
    pub sql: String,
}

/// A column of a `CREATE`.
#[derive(Debug, Clone, PartialEq)]
pub struct ColumnDef {
    /// Its name.
    pub name: Ident,
    /// Its type as written; `types::sql_type` gives the meaning.
    pub data_type: ast::DataType,
    /// Where the type stands.
    pub type_position: Position,
    /// `KEY` or `PRIMARY KEY`.
    pub key: ColumnKey,
    /// `NOT NULL`.
    pub is_not_null: bool,
    /// `HEADERS`.
    pub is_headers: bool,
    /// `DEFAULT expr`.
    pub default: Option<DefaultValue>,
    /// Where the `DEFAULT` or the `KEY` stands.
    pub constraint_position: Position,
}

/// `DEFAULT expr`.
#[derive(Debug, Clone, PartialEq)]
pub struct DefaultValue {
    /// The expression.
    pub expr: ast::Expr,
    /// Its canonical text.
    pub sql: String,
}

/// The key word on a column.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ColumnKey {
    /// None.
    No,
    /// `KEY`: part of a stream's partitioning key.
    Key,
    /// `PRIMARY KEY`: part of a table's primary key.
    PrimaryKey,
}

/// `WATERMARK FOR column AS column - INTERVAL 'delay'`.
#[derive(Debug, Clone, PartialEq)]
pub struct Watermark {
    /// The event-time column.
    pub column: Ident,
    /// How far time stays behind the highest event.
    pub delay: Span,
}

/// `WITH (name = value, …)`, in the order written; names are lower case and unique.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct WithOptions(pub Vec<WithOption>);

impl WithOptions {
    /// The option of that name.
    pub fn find(&self, name: &str) -> Option<&WithOption> {
        self.0.iter().find(|option| option.name == name)
    }

    /// True without options.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// One `name = value`.
#[derive(Debug, Clone, PartialEq)]
pub struct WithOption {
    /// Lower case; dots of quoted names (`'auto.offset.reset'`) become underscores.
    pub name: String,
    /// The value.
    pub value: OptionValue,
    /// Where the name stands.
    pub position: Position,
    /// Where the value stands.
    pub value_position: Position,
}

/// A literal after `=`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum OptionValue {
    /// `'text'`, unquoted.
    Text(String),
    /// A number as written, sign included.
    Number(String),
    /// A bare word in lower case: `true`, `earliest`, `lz4`.
    Word(String),
}

impl OptionValue {
    /// The text of the value, whichever way it was written.
    pub fn as_str(&self) -> &str {
        match self {
            Self::Text(text) | Self::Number(text) | Self::Word(text) => text,
        }
    }
}

/// `OR REPLACE`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Replace {
    /// One of the name is an error.
    No,
    /// One of the name becomes this.
    Yes,
}

/// `CREATE VIEW name (columns) AS SELECT …`.
#[derive(Debug, Clone, PartialEq)]
pub struct CreateView {
    /// Its name.
    pub name: QualifiedName,
    /// An existing relation of the name is left alone.
    pub if_not_exists: bool,
    /// `OR REPLACE`.
    pub replace: Replace,
    /// Names of its first columns; the others have those of the SELECT.
    pub columns: Option<Vec<Ident>>,
    /// What it stands for; `select.sql` is its canonical text.
    pub select: Select,
    /// The canonical text of the statement.
    pub sql: String,
}

/// `CREATE STREAM | TABLE | MATERIALIZED VIEW name WITH (…) AS SELECT …`.
#[derive(Debug, Clone, PartialEq)]
pub struct CreateAs {
    /// The word used.
    pub kind: ObjectKind,
    /// Its name, which is the query's too.
    pub name: QualifiedName,
    /// An existing relation of the name is left alone.
    pub if_not_exists: bool,
    /// `OR REPLACE`.
    pub replace: Replace,
    /// Names of its first columns; the others have those of the SELECT.
    pub columns: Option<Vec<Ident>>,
    /// `WITH (…)`: options of the topic and of the query.
    pub options: WithOptions,
    /// What it computes; `select.sql` is its canonical text.
    pub select: Select,
    /// The canonical text of the statement.
    pub sql: String,
}

/// `DROP STREAM | TOPIC | TABLE | VIEW | MATERIALIZED VIEW [IF EXISTS] names [CASCADE]`.
#[derive(Debug, Clone, PartialEq)]
pub struct Drop {
    /// The word used.
    pub kind: ObjectKind,
    /// What to drop.
    pub names: Vec<QualifiedName>,
    /// Names that are not there are no error.
    pub if_exists: bool,
    /// Views and queries that read them are dropped too.
    pub cascade: bool,
}

/// `ALTER STREAM | TABLE | TOPIC [IF EXISTS] name actions`.
#[derive(Debug, Clone, PartialEq)]
pub struct Alter {
    /// The word used.
    pub kind: ObjectKind,
    /// What to change.
    pub name: QualifiedName,
    /// A name that is not there is no error.
    pub if_exists: bool,
    /// What to do, at least one; a renaming is alone.
    pub actions: Vec<AlterAction>,
}

/// One change of an `ALTER`.
#[derive(Debug, Clone, PartialEq)]
pub enum AlterAction {
    /// `ADD COLUMN [IF NOT EXISTS] …`
    AddColumn {
        /// A column of the name is left alone.
        if_not_exists: bool,
        /// The column.
        column: Box<ColumnDef>,
    },
    /// `RENAME TO name`
    Rename(QualifiedName),
    /// `RENAME COLUMN from TO to`
    RenameColumn {
        /// The old name.
        from: Ident,
        /// The new name.
        to: Ident,
    },
    /// `SET (option = value, …)`
    Set(WithOptions),
    /// `RESET (option, …)`: names and their places
    Reset(Vec<(String, Position)>),
}

/// `INSERT INTO name (columns) … RETURNING …`.
#[derive(Debug, Clone, PartialEq)]
pub struct Insert {
    /// Where the rows go.
    pub name: QualifiedName,
    /// `AS alias`: the table's name in `ON CONFLICT` and `RETURNING`.
    pub alias: Option<Ident>,
    /// The named columns; `None` is all, in order.
    pub columns: Option<Vec<Ident>>,
    /// The rows.
    pub source: InsertSource,
    /// `ON CONFLICT …`
    pub conflict: Option<OnConflict>,
    /// `RETURNING`; empty without.
    pub returning: Vec<ast::SelectItem>,
    /// `WITH (sequence = …)`
    pub sequence: Option<SequenceValue>,
}

/// `INSERT INTO name [(columns)] [WITH (query = 'name', on_error = 'skip')] SELECT … EMIT CHANGES`: one more continuous
/// query.
#[derive(Debug, Clone, PartialEq)]
pub struct InsertQuery {
    /// Where the rows go.
    pub name: QualifiedName,
    /// The named columns; `None` is all, in order.
    pub columns: Option<Vec<Ident>>,
    /// The query's name, if it has one.
    pub query: Option<Ident>,
    /// What it does with an event it cannot take.
    pub on_error: OnError,
    /// The query.
    pub select: Box<Select>,
}

/// The number of a statement's first row, as its producer counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SequenceValue {
    /// The number.
    Number(Sequence),
    /// The parameter with this index, from 0.
    Param(usize),
}

/// Where the rows of an `INSERT` come from.
#[derive(Debug, Clone, PartialEq)]
pub enum InsertSource {
    /// `VALUES`: at least one row, all of one length; [`is_default`] tells `DEFAULT`.
    Values(Vec<Vec<ast::Expr>>),
    /// `DEFAULT VALUES`: one row of defaults.
    DefaultValues,
    /// A pull query.
    Select(Box<Select>),
}

/// True for the word `DEFAULT` in place of a value.
pub fn is_default(expr: &ast::Expr) -> bool {
    matches!(expr, ast::Expr::Identifier(ident) if ident.quote_style.is_none() && ident.value == "default")
}

/// `COPY … FROM STDIN` or `COPY … TO STDOUT`.
#[derive(Debug, Clone, PartialEq)]
pub struct Copy {
    /// Which way, and what.
    pub direction: CopyDirection,
    /// The options, all of them effective.
    pub options: CopyOptions,
}

/// Which way a `COPY` goes.
#[derive(Debug, Clone, PartialEq)]
pub enum CopyDirection {
    /// From the client into a relation.
    FromStdin {
        /// Where the rows go.
        name: QualifiedName,
        /// The columns of the data, in its order; `None` is all.
        columns: Option<Vec<Ident>>,
    },
    /// A relation's rows to the client.
    TableToStdout {
        /// What to read.
        name: QualifiedName,
        /// Which columns; `None` is all.
        columns: Option<Vec<Ident>>,
    },
    /// A query's rows to the client.
    SelectToStdout(Box<Select>),
}

/// The format of copy data.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum CopyFormat {
    /// PostgreSQL's text format.
    #[default]
    Text,
    /// Comma-separated values, as PostgreSQL has them.
    Csv,
    /// One JSON object per line.
    Json,
    /// PostgreSQL's binary format.
    Binary,
    /// An Arrow IPC stream.
    Arrow,
}

/// The first line of copy data.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum CopyHeader {
    /// It is data.
    #[default]
    No,
    /// It has column names, which are skipped on input.
    Yes,
    /// It has column names, which must be the expected ones (input only).
    Match,
}

/// Columns an option of `COPY` applies to.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum CopyColumns {
    /// None: the option was not given.
    #[default]
    None,
    /// `*`
    All,
    /// Those named.
    Named(Vec<Ident>),
}

/// The options of `COPY`, checked against each other, with the format's defaults filled in.
#[derive(Debug, Clone, PartialEq)]
pub struct CopyOptions {
    /// `FORMAT`
    pub format: CopyFormat,
    /// `DELIMITER`: one byte; tab for text, comma for csv.
    pub delimiter: u8,
    /// `NULL`: `\N` for text, empty for csv.
    pub null: String,
    /// `HEADER`
    pub header: CopyHeader,
    /// `QUOTE`: one byte, csv only.
    pub quote: u8,
    /// `ESCAPE`: one byte, csv only; the quote unless given.
    pub escape: u8,
    /// `FORCE_QUOTE`, csv output only.
    pub force_quote: CopyColumns,
    /// `FORCE_NOT_NULL`, csv input only.
    pub force_not_null: CopyColumns,
    /// `FORCE_NULL`, csv input only.
    pub force_null: CopyColumns,
    /// `sequence`, input only: the number of the first row, as its producer counts.
    pub sequence: Option<Sequence>,
}

impl CopyOptions {
    /// The defaults of a format.
    pub fn of(format: CopyFormat) -> Self {
        let (delimiter, null) = match format {
            CopyFormat::Text => (b'\t', "\\N"),
            _ => (b',', ""),
        };
        Self {
            format,
            delimiter,
            null: null.to_owned(),
            header: CopyHeader::No,
            quote: b'"',
            escape: b'"',
            force_quote: CopyColumns::None,
            force_not_null: CopyColumns::None,
            force_null: CopyColumns::None,
            sequence: None,
        }
    }
}

/// A query with its streaming clauses, which stand beside sqlparser's part.
#[derive(Debug, Clone, PartialEq)]
pub struct Select {
    /// The query without the clauses below.
    pub query: Box<ast::Query>,
    /// `WINDOW …` of the outermost SELECT.
    pub window: Option<WindowClause>,
    /// `PARTITION BY …` behind FROM and WHERE: what the key of the stream that is made of the query is.
    pub partition_by: Option<PartitionBy>,
    /// `EMIT …`: a push or continuous query. Without, a pull query.
    pub emit: Option<Emit>,
    /// `WITH (…)` after `EMIT`.
    pub options: WithOptions,
    /// `LIMIT n` after `EMIT`: the subscription ends after that many rows.
    pub limit: Option<RowCount>,
    /// The canonical text, with the clauses above, from which the same is parsed again.
    pub sql: String,
}

/// `PARTITION BY …` as ksqlDB has it.
#[derive(Debug, Clone, PartialEq)]
pub struct PartitionBy {
    /// The expressions, each also one of the select list.
    pub expressions: Vec<ast::Expr>,
    /// Where the clause stands.
    pub position: Position,
}

/// `WINDOW …` as ksqlDB has it.
#[derive(Debug, Clone, PartialEq)]
pub struct WindowClause {
    /// The kind and its lengths.
    pub kind: WindowKind,
    /// `GRACE PERIOD`.
    pub grace: Option<Span>,
    /// `RETENTION`: how long the table keeps windows, and where that stands.
    pub retention: Option<(Span, Position)>,
    /// Where `WINDOW` stands.
    pub position: Position,
}

/// The kinds of windows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WindowKind {
    /// Fixed, adjacent windows aligned to the epoch.
    Tumbling {
        /// The length.
        size: Span,
    },
    /// Windows of one length, each beginning some time after the one before, aligned to the epoch.
    Hopping {
        /// The length.
        size: Span,
        /// From one start to the next.
        advance: Span,
    },
    /// Events close together.
    Session {
        /// How far apart two events of one session may be.
        gap: Span,
    },
}

impl WindowKind {
    /// The length that default grace is less by.
    pub fn length(self) -> Span {
        match self {
            Self::Tumbling { size } | Self::Hopping { size, .. } => size,
            Self::Session { gap } => gap,
        }
    }
}

/// `EMIT …`.
#[derive(Debug, Clone, PartialEq)]
pub struct Emit {
    /// What is emitted.
    pub kind: EmitKind,
    /// Where `EMIT` stands.
    pub position: Position,
}

/// What a push or continuous query emits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EmitKind {
    /// A new form of each changed row.
    Changes,
    /// Each row once, when it cannot change any more.
    Final,
}
