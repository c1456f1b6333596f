//! The simple query protocol: one text, perhaps of several statements.
//!
//! Owns the order of replies to a Query message. Several statements of one text commit together, as in
//! PostgreSQL, unless the text says otherwise; the first error ends the text. Leaves out rows (`pump`) and
//! copy data (`copy`).

use crate::engine::{Outcome, Parsed, Rows, Session, SqlError, SqlState, Via};
use crate::server::pg::cancel::Signals;
use crate::server::pg::connection::{Connection, step};
use crate::server::pg::error::Stop;
use crate::server::pg::pump::{Goal, Source};
use crate::server::pg::reply::{self, Bare};
use crate::server::pg::rows::{self, Formats};
use std::pin::pin;
use tokio::io::{AsyncRead, AsyncWrite};

impl<S: AsyncRead + AsyncWrite + Unpin + Send> Connection<'_, S> {
    /// Runs a text. ReadyForQuery is left to the caller.
    ///
    /// # Errors
    /// Of the first statement that fails.
    pub(super) async fn simple_query(&mut self, sql: &str) -> Result<(), Stop> {
        // The unnamed statement and portal do not survive a simple query.
        self.session.close_statement("");
        self.statements_empty.remove("");
        self.portals.take("");
        let signals = self.signals(sql);
        let mut statements = step(self.wire, &signals, pin!(self.session.parse(sql))).await??;
        if statements.is_empty() {
            reply::bare(self.wire.out(), Bare::EmptyQuery);
            return Ok(());
        }
        let is_several = statements.len() > 1;
        if is_several || self.session.is_implicit() || !self.is_followed(false) {
            self.settle().await?;
        } else if Box::pin(self.run_one_ahead(&mut statements)).await? {
            return Ok(());
        }
        let result = self.run_all(statements, is_several).await;
        // One statement may end a pipeline.
        if self.session.is_implicit() {
            let ending = step(self.wire, &signals, pin!(self.session.end_implicit(result.is_ok()))).await;
            let tag = result?;
            ending??;
            self.finish(tag);
            return Ok(());
        }
        self.finish(result?);
        Ok(())
    }

    /// Queues the one statement of a text, if it may run ahead.
    async fn run_one_ahead(&mut self, statements: &mut Vec<Parsed>) -> Result<bool, Stop> {
        if !statements.first().is_some_and(Session::may_run_ahead) {
            self.settle().await?;
            return Ok(false);
        }
        let Some(parsed) = statements.pop() else { return Ok(false) };
        let signals = self.signals(&parsed.text);
        let timer = self.meters.statement();
        let prepared = step(self.wire, &signals, pin!(self.session.prepare(parsed.clone(), &[]))).await??;
        let shard = if prepared.params().is_empty() { self.session.ahead_shard(&prepared) } else { None };
        let Some(shard) = shard else {
            self.settle().await?;
            statements.push(parsed);
            return Ok(false);
        };
        if !self.ahead.takes(shard) {
            self.settle().await?;
        }
        let queued = step(self.wire, &signals, pin!(self.session.insert_ahead(&prepared, Vec::new()))).await??;
        self.run_ahead(shard, queued, timer);
        Ok(true)
    }

    /// Runs the statements; gives the last one's tag, which is sent once all are committed.
    async fn run_all(&mut self, statements: Vec<Parsed>, is_several: bool) -> Result<Option<String>, Stop> {
        let mut last = None;
        for parsed in statements {
            if let Some(tag) = last.take() {
                self.finish(tag);
            }
            if is_several {
                self.session.begin_implicit();
            }
            let timer = self.meters.statement();
            last = Some(self.run_one(parsed).await?);
            timer.succeeded();
        }
        Ok(last.flatten())
    }

    /// Ends a statement for the client: with its tag, or as an empty one.
    fn finish(&mut self, tag: Option<String>) {
        match tag {
            Some(tag) => {
                self.send_messages();
                reply::command_complete(self.wire.out(), &tag);
            }
            None => reply::bare(self.wire.out(), Bare::EmptyQuery),
        }
    }

    async fn run_one(&mut self, parsed: Parsed) -> Result<Option<String>, Stop> {
        let signals = self.signals(&parsed.text);
        if let Some(tag) = self.meet(&parsed, &signals).await? {
            return Ok(Some(tag.to_owned()));
        }
        // Boxed, and the statement forgotten once it began: a subscription need not hold what it needed to begin.
        let prepared = step(self.wire, &signals, Box::pin(self.session.prepare(parsed, &[]))).await??;
        if !prepared.params().is_empty() {
            return Err(SqlError::new(SqlState::UndefinedParameter, "there is no parameter $1").into());
        }
        let outcome =
            step(self.wire, &signals, Box::pin(self.session.execute(&prepared, Vec::new(), Via::Simple))).await??;
        drop(prepared);
        let tag = match outcome {
            Outcome::Rows(rows) => self.send_rows(rows, &signals).await?,
            Outcome::Command { tag } => tag,
            Outcome::CopyIn(copy) => Box::pin(self.copy_in(copy, &signals)).await?,
            Outcome::CopyOut(copy) => Box::pin(self.copy_out(copy, &signals)).await?,
            Outcome::Empty => return Ok(None),
        };
        Ok(Some(tag))
    }

    /// Sends a whole result in text; returns the completion tag.
    async fn send_rows(&mut self, rows: Rows, signals: &Signals) -> Result<String, Stop> {
        self.send_messages();
        let formats = Formats::default();
        let mut source = Source::new(rows);
        rows::describe(self.wire.out(), &source.columns, &formats);
        let signals = source.signals(signals, &self.stopping);
        let (sent, _) = source.pump(self.wire, &signals, &formats, Goal::default()).await?;
        self.meters.rows_sent(sent);
        Ok(source.tag.render(sent))
    }
}
