//! COPY in a session: rows from copy data as one atomic write, and rows as copy data.
//!
//! Leaves out the formats (sql) and the protocol (server). Until `finish` returns, nothing is written; a lost
//! client leaves nothing behind.

use crate::engine::bulk::Bulk;
use crate::engine::group::Delivery;
use crate::engine::prepare::Arguments;
use crate::engine::producer::Numbered;
use crate::engine::session::Session;
use crate::engine::write;
use crate::engine::{Engine, Form, Outcome, Result, Rows};
use millstream_catalog::model::SqlState;
use millstream_catalog::{Column, Relation};
use millstream_sql::copy::{CopyDecoder, CopyEncoder};
use millstream_sql::dialect::{Copy, CopyDirection, CopyFormat, CopyOptions, Ident, QualifiedName, Select};
use millstream_sql::plan::eval_constant;
use millstream_sql::{SqlError, dialect};
use sqlparser::ast;
use std::fmt;
use std::sync::Arc;

/// A COPY FROM STDIN that takes data.
pub struct CopyIn {
    engine: Arc<Engine>,
    relation: Arc<Relation>,
    columns: usize,
    decoder: CopyDecoder,
    numbered: Option<Numbered>,
    bulk: Bulk,
}

impl fmt::Debug for CopyIn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CopyIn").field("relation", &self.relation.name).finish_non_exhaustive()
    }
}

/// A COPY TO STDOUT.
#[derive(Debug)]
pub struct CopyOut {
    /// What is sent.
    pub rows: Rows,
    options: CopyOptions,
}

impl CopyOut {
    /// An encoder of the statement's format; it writes the header first where one is asked for.
    ///
    /// # Errors
    /// When an option names a column that is not among the rows'.
    pub fn encoder(&self) -> Result<CopyEncoder> {
        CopyEncoder::new(&self.options, &self.rows.columns)
    }

    /// The form of the rows, where it does not depend on those before.
    pub fn form(&self) -> Option<Form> {
        let is_lines = matches!(self.options.format, CopyFormat::Text | CopyFormat::Csv | CopyFormat::Json);
        is_lines.then(|| Form::CopyData(self.options.clone()))
    }
}

impl CopyIn {
    /// The number of columns the data has.
    pub fn columns(&self) -> usize {
        self.columns
    }

    /// True for data that is not text.
    pub fn is_binary(&self) -> bool {
        self.decoder.is_binary()
    }

    /// Takes some copy data, cut anywhere.
    ///
    /// # Errors
    /// 22P04, 22P02 and others, naming line and column; 53200 when all statements together hold too many rows.
    pub fn push(&mut self, data: &[u8]) -> Result<()> {
        self.decoder.push(data)?;
        self.drain()?;
        if self.bulk.is_short_with(self.decoder.held_bytes()) {
            // Rows can leave memory, what is not yet rows cannot.
            self.decoder.cut()?;
            self.drain()?;
        }
        self.bulk.set_undecoded(self.decoder.held_bytes())
    }

    /// Whether [`CopyIn::flush`] is due before more data is taken.
    pub fn is_full(&self) -> bool {
        self.bulk.is_full()
    }

    /// Writes the rows taken so far to the log, where nobody sees them before [`CopyIn::finish`].
    ///
    /// # Errors
    /// Of the write.
    pub async fn flush(&mut self, session: &mut Session) -> Result<()> {
        self.bulk.flush(session, &self.relation).await
    }

    fn drain(&mut self) -> Result<()> {
        let now = self.engine.clock().now();
        while let Some(rows) = self.decoder.next_rows()? {
            self.bulk.push(match &mut self.numbered {
                Some(numbered) => numbered.route(&self.engine, &self.relation, rows, now)?,
                None => vec![write::route(&self.engine, &self.relation, rows, now)?],
            });
        }
        Ok(())
    }

    /// Ends the data and writes the rows: all of them, or none.
    ///
    /// # Errors
    /// Of the last line, or of the write.
    pub async fn finish(self: Box<Self>, session: &mut Session) -> Result<u64> {
        let result = self.write(session).await;
        if result.is_err() {
            session.fail_transaction();
        }
        result
    }

    async fn write(mut self: Box<Self>, session: &mut Session) -> Result<u64> {
        self.decoder.finish()?;
        self.drain()?;
        self.bulk.set_undecoded(self.decoder.held_bytes())?;
        let claim = self.numbered.and_then(Numbered::finish);
        self.bulk.finish(session, &self.relation, claim).await
    }
}

impl Session {
    /// `COPY`
    pub(crate) async fn copy(&mut self, copy: &Copy) -> Result<Outcome> {
        match &copy.direction {
            CopyDirection::FromStdin { name, columns } => self.copy_in(name, columns.as_deref(), &copy.options),
            CopyDirection::TableToStdout { name, columns } => {
                if self.view_named(name).is_some() {
                    let message = format!("cannot copy from view \"{name}\"");
                    let error = SqlError::new(SqlState::WrongObjectType, message).at(name.position);
                    return Err(error.hint("try the COPY (SELECT …) TO variant"));
                }
                let select = table_select(name, columns.as_deref())?;
                let rows = self.run_select(&select, Arguments::default()).await?;
                Ok(Outcome::CopyOut(CopyOut { rows, options: copy.options.clone() }))
            }
            CopyDirection::SelectToStdout(select) => {
                let rows = match select.emit {
                    Some(_) => self.subscribe(select, Arguments::default(), Delivery::Written).await?,
                    None => self.run_select(select, Arguments::default()).await?,
                };
                self.consume(rows.receipts.as_ref(), select.limit.is_some());
                Ok(Outcome::CopyOut(CopyOut { rows, options: copy.options.clone() }))
            }
        }
    }

    fn copy_in(&mut self, name: &QualifiedName, columns: Option<&[Ident]>, options: &CopyOptions) -> Result<Outcome> {
        self.transaction.check_writable("COPY FROM")?;
        self.check_no_view(name, "copy to")?;
        let relation = self.target(name)?;
        let context = self.plan_context();
        let mut eval =
            |expr: &ast::Expr, sql_type: &millstream_catalog::SqlType| eval_constant(&context, expr, sql_type, &[]);
        let decoder = CopyDecoder::new(&relation, columns, options, &mut eval)?;
        let columns = columns.map_or_else(|| visible(&relation).count(), <[Ident]>::len);
        let engine = Arc::clone(&self.engine);
        let numbered = options.sequence.map(|sequence| self.number(&relation, sequence)).transpose()?;
        let bulk = Bulk::new(&engine);
        Ok(Outcome::CopyIn(Box::new(CopyIn { engine, relation, columns, decoder, numbered, bulk })))
    }
}

fn visible(relation: &Relation) -> impl Iterator<Item = &Column> {
    relation.schema.columns.iter().filter(|column| !column.is_hidden)
}

/// `SELECT columns FROM name`, as a parsed statement.
fn table_select(name: &QualifiedName, columns: Option<&[Ident]>) -> Result<Select> {
    let quote = |text: &str| format!("\"{}\"", text.replace('"', "\"\""));
    let columns = columns.map_or_else(
        || "*".to_owned(),
        |columns| columns.iter().map(|c| quote(c.as_str())).collect::<Vec<_>>().join(", "),
    );
    let schema = name.schema.as_ref().map(|schema| format!("{}.", quote(schema.as_str()))).unwrap_or_default();
    let text = format!("SELECT {columns} FROM {schema}{}", quote(name.name.as_str()));
    let parsed = dialect::parse(&text).map_err(|error| error.at(name.position))?;
    match parsed.into_iter().next().map(|parsed| parsed.statement) {
        Some(dialect::Statement::Select(select)) => Ok(*select),
        _ => Err(SqlError::new(SqlState::InternalError, "a table could not be read as a query")),
    }
}
