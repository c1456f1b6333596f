//! The extended query protocol: Parse, Bind, Describe, Execute, Close.
//!
//! Owns prepared statements without text, parameter and result formats, and row-limited execution: a limit
//! is filled exactly, because drivers take less for the end. A DECLAREd cursor is a portal too: it can be
//! described, executed and closed by its name. Leaves out rows (`pump`) and Sync (`connection`).

use crate::engine::{Outcome, Param, Prepared, ResultColumn, SqlError, SqlState, Via, check_columns, types};
use crate::env;
use crate::server::pg::cancel::Signals;
use crate::server::pg::connection::{Connection, step};
use crate::server::pg::error::{Stop, violation};
use crate::server::pg::message::{Bind, Format, Target};
use crate::server::pg::portal::{self, Portal, State};
use crate::server::pg::pump::{Goal, Reached, Source};
use crate::server::pg::reply::{self, Bare};
use crate::server::pg::rows::{self, Formats};
use crate::server::pg::wire::UNCOUNTED_BYTES_MAX;
use millstream_catalog::model::ByteSize;
use millstream_catalog::model::limit::PREPARED_MAX;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};

/// `unknown`, which leaves a parameter's type to us, as 0 does.
const UNKNOWN_OID: u32 = 705;

/// Bytes of a Sync message.
const SYNC_BYTES: usize = 5;

impl<S: AsyncRead + AsyncWrite + Unpin + Send> Connection<'_, S> {
    /// Parse: a statement under a name.
    ///
    /// # Errors
    /// Of parsing and planning; `42P05` when the name is taken; `42601` for several statements.
    pub(super) async fn parse(&mut self, name: &str, sql: &str, param_oids: &[u32]) -> Result<(), Stop> {
        if !name.is_empty() && self.statements_empty.contains(name) {
            let message = format!("prepared statement \"{name}\" already exists");
            return Err(SqlError::new(SqlState::DuplicatePreparedStatement, message).into());
        }
        let param_types = param_oids.iter().map(|oid| param_type(*oid)).collect::<Result<Vec<_>, _>>()?;
        let signals = self.signals(sql);
        let mut statements = step(self.wire, &signals, pin!(self.session.parse(sql))).await??;
        let parsed = statements.pop();
        if !statements.is_empty() {
            let message = "cannot insert multiple commands into a prepared statement";
            return Err(SqlError::new(SqlState::SyntaxError, message).into());
        }
        match parsed {
            Some(parsed) => {
                self.know_portal(&parsed);
                let prepared = step(self.wire, &signals, pin!(self.session.prepare(parsed, &param_types))).await??;
                self.session.store_statement(name, prepared)?;
                self.statements_empty.remove(name);
            }
            None => {
                if !name.is_empty() && self.session.statement(name).is_ok() {
                    let message = format!("prepared statement \"{name}\" already exists");
                    return Err(SqlError::new(SqlState::DuplicatePreparedStatement, message).into());
                }
                if self.statements_empty.len() >= PREPARED_MAX {
                    return Err(SqlError::new(SqlState::ConfigurationLimitExceeded, "too many prepared statements")
                        .detail(format!("a session may have {PREPARED_MAX}"))
                        .into());
                }
                self.session.close_statement(name);
                self.statements_empty.insert(name.to_owned());
            }
        }
        reply::bare(self.wire.out(), Bare::ParseComplete);
        Ok(())
    }

    /// The statement of this name; `None` for one without text.
    fn statement(&self, name: &str) -> Result<Option<Arc<Prepared>>, SqlError> {
        if self.statements_empty.contains(name) {
            return Ok(None);
        }
        match self.session.statement(name) {
            Err(_) if name.is_empty() => {
                Err(SqlError::new(SqlState::InvalidSqlStatementName, "unnamed prepared statement does not exist"))
            }
            result => result.map(Some),
        }
    }

    /// Bind: a portal of a statement and its parameters.
    ///
    /// # Errors
    /// `26000`, `42P03`, `53400`, and `08P01` when counts do not fit the statement.
    pub(super) fn bind(&mut self, bind: Bind) -> Result<(), Stop> {
        let prepared = self.statement(&bind.statement)?;
        if !bind.portal.is_empty() && self.session.cursor_columns(&bind.portal).is_some() {
            return Err(portal::taken(&bind.portal).into());
        }
        let expected = prepared.as_ref().map_or(0, |prepared| prepared.params().len());
        if bind.params.len() != expected {
            return Err(violation(format!(
                "bind message supplies {} parameters, but prepared statement \"{}\" requires {expected}",
                bind.params.len(),
                bind.statement
            ))
            .into());
        }
        let formats = Formats::new(bind.result_formats);
        self.check_formats(prepared.as_deref(), &formats)?;
        let param_formats = Formats::new(bind.param_formats);
        let param = |(index, value)| Param { is_binary: param_formats.of(index) == Format::Binary, value };
        let bytes: usize = bind.params.iter().flatten().map(|value| value.len()).sum();
        let mut held = (bytes > UNCOUNTED_BYTES_MAX).then(|| self.session.room());
        if let Some(held) = &mut held {
            held.set(ByteSize::of(bytes))?;
        }
        let params = bind.params.into_iter().enumerate().map(param).collect();
        let (state, savepoints) = (State::Bound(params), self.session.savepoints());
        self.portals.open(&bind.portal, Portal { prepared, formats, told: None, state, savepoints, _held: held })?;
        reply::bare(self.wire.out(), Bare::BindComplete);
        Ok(())
    }

    /// Whether there are as many formats as columns. A cursor may have others by now than when its FETCH was prepared.
    fn check_formats(&self, prepared: Option<&Prepared>, formats: &Formats) -> Result<(), SqlError> {
        // Most bring one for all.
        if formats.len() <= 1 {
            return Ok(());
        }
        let of = prepared.and_then(|prepared| Some((prepared.columns()?, self.columns_now(prepared)?)));
        let Some((told, now)) = of.filter(|(_, now)| now.len() != formats.len()) else { return Ok(()) };
        if told.len() == formats.len() {
            return check_columns(told, &now);
        }
        let (formats, columns) = (formats.len(), now.len());
        Err(violation(format!("bind message has {formats} result formats but query has {columns} columns")))
    }

    /// Describe: parameters and columns of a statement, or columns of a portal or cursor.
    ///
    /// # Errors
    /// `26000` or `34000` when there is no such thing.
    pub(super) fn describe(&mut self, target: Target, name: &str) -> Result<(), Stop> {
        let (columns, formats) = match target {
            Target::Statement => {
                let prepared = self.statement(name)?;
                let params = prepared.as_ref().map_or(&[][..], |prepared| prepared.params());
                let oids: Vec<u32> = params.iter().map(types::oid).collect();
                reply::parameter_description(self.wire.out(), &oids);
                (prepared.and_then(|prepared| prepared.columns().cloned()), Formats::default())
            }
            Target::Portal => match self.portals.find(name) {
                Some(portal) => {
                    let columns = match &portal.state {
                        State::Open(source) => Some(Arc::clone(&source.columns)),
                        _ => portal.prepared.as_ref().and_then(|prepared| self.columns_now(prepared)),
                    };
                    let formats = portal.formats.clone();
                    columns.iter().for_each(|columns| self.portals.tell(name, columns));
                    (columns, formats)
                }
                None => {
                    let columns = self.session.cursor_columns(name).ok_or_else(|| portal::missing(name))?;
                    let formats = self.portals.cursor_formats(name, &columns);
                    (Some(columns), formats)
                }
            },
        };
        match columns {
            Some(columns) => rows::describe(self.wire.out(), &columns, &formats),
            None => reply::bare(self.wire.out(), Bare::NoData),
        }
        Ok(())
    }

    /// Close: forgets a statement, portal or cursor; one that is not there is no error.
    ///
    /// # Errors
    /// None of its own.
    pub(super) async fn close(&mut self, target: Target, name: &str) -> Result<(), Stop> {
        match target {
            Target::Statement => {
                self.statements_empty.remove(name);
                self.session.close_statement(name);
            }
            Target::Portal => {
                let portal = self.portals.take(name);
                let is_portal = portal.is_some();
                Box::pin(self.finish_portals(portal)).await?;
                if !is_portal && self.session.cursor_columns(name).is_some() {
                    let signals = self.signals("");
                    step(self.wire, &signals, Box::pin(self.session.close_cursor(name))).await??;
                }
            }
        }
        reply::bare(self.wire.out(), Bare::CloseComplete);
        Ok(())
    }

    /// Of portals over members of consumer groups that end, the rows that were sent are taken.
    pub(super) async fn finish_portals(&mut self, portals: impl IntoIterator<Item = Portal>) -> Result<(), Stop> {
        for portal in portals {
            if let State::Open(mut source) = portal.state {
                let signals = self.signals("");
                source.finish(self.wire, &signals).await?;
            }
        }
        Ok(())
    }

    /// Takes a portal out, to execute it.
    ///
    /// # Errors
    /// `25P02` of one whose rows are on their way, in a block that failed.
    fn take_portal(&mut self, name: &str) -> Result<Option<Portal>, SqlError> {
        self.end_portals_of_blocks();
        if self.portals.find(name).is_some_and(|portal| matches!(portal.state, State::Open(_))) {
            self.session.check_not_aborted()?;
        }
        Ok(self.portals.take(name))
    }

    /// Execute: runs a portal, or goes on with one, for at most `rows_max` rows; 0 is all.
    ///
    /// # Errors
    /// Of the statement; the portal is gone then.
    pub(super) async fn execute_portal(&mut self, name: &str, rows_max: u32) -> Result<(), Stop> {
        let Some(portal) = self.take_portal(name)? else {
            self.settle().await?;
            return Box::pin(self.execute_cursor(name, rows_max)).await;
        };
        let Some(prepared) = portal.prepared.clone() else {
            reply::bare(self.wire.out(), Bare::EmptyQuery);
            self.portals.put_back(name, portal);
            return Ok(());
        };
        let mut signals = self.signals(prepared.text());
        let timer = self.meters.statement();
        let (formats, told, savepoints) = (portal.formats, portal.told, portal.savepoints);
        let (source, is_first) = match portal.state {
            State::Open(source) => {
                signals = self.settled(signals, prepared.text()).await?;
                // Also after ROLLBACK TO a savepoint that was set before its first row.
                step(self.wire, &signals, Box::pin(self.session.fetch_more(source.receipts()))).await??;
                (Some(source), false)
            }
            State::Done => {
                let message = format!("portal \"{name}\" cannot be run");
                return Err(SqlError::new(SqlState::ObjectNotInPrerequisiteState, message).into());
            }
            State::Bound(params) => {
                // More comes behind the Sync that commits this by itself, or it is the last of many.
                let may_run_ahead = rows_max == 0 && self.is_followed(true);
                let shard = if may_run_ahead { self.session.ahead_shard(&prepared) } else { None };
                if let Some(shard) = shard {
                    if !self.ahead.takes(shard) {
                        signals = self.settled(signals, prepared.text()).await?;
                    }
                    let queued =
                        step(self.wire, &signals, Box::pin(self.session.insert_ahead(&prepared, params))).await??;
                    self.run_ahead(shard, queued, timer);
                    self.portals.put_back(name, Portal::done(prepared, formats, savepoints));
                    return Ok(());
                }
                signals = self.settled(signals, prepared.text()).await?;
                if let Some(tag) = self.meet(&*prepared.parsed()?, &signals).await? {
                    reply::command_complete(self.wire.out(), tag);
                    self.portals.put_back(name, Portal::done(prepared, formats, savepoints));
                    return Ok(());
                }
                // A Sync right behind commits by itself what came alone.
                if self.wire.input().first() != Some(&b'S') {
                    self.session.begin_pipeline();
                }
                let via = if rows_max == 0 { Via::Extended } else { Via::Portal };
                // Boxed: a subscription need not hold what it needed to begin.
                let execution = Box::pin(self.session.execute(&prepared, params, via));
                let outcome = step(self.wire, &signals, execution).await??;
                let told = told.as_ref().or(prepared.columns()).filter(|_| !prepared.is_own());
                (self.begin(outcome, told, &signals).await?, true)
            }
        };
        let state = match source {
            Some(mut source) => {
                Box::pin(self.send_portal(&mut source, &formats, &signals, rows_max)).await?;
                State::Open(source)
            }
            None => State::Done,
        };
        if is_first {
            timer.succeeded();
        }
        self.portals.put_back(name, Portal { prepared: Some(prepared), formats, told, state, savepoints, _held: None });
        Ok(())
    }

    /// Whether more messages are at hand behind this one, or behind the Sync that must come after it; or others were
    /// before it and wait.
    pub(super) fn is_followed(&self, by_sync: bool) -> bool {
        let (input, is_last) = (self.wire.input(), !self.ahead.is_empty());
        if by_sync {
            return input.first() == Some(&b'S') && (input.len() > SYNC_BYTES || is_last);
        }
        !input.is_empty() || is_last
    }

    /// Completes an outcome without rows; gives back the rows of one with. Those of a cursor have the columns that the client was
    /// `told` of.
    async fn begin(
        &mut self,
        outcome: Outcome,
        told: Option<&Arc<[ResultColumn]>>,
        signals: &Signals,
    ) -> Result<Option<Box<Source>>, Stop> {
        let tag = match outcome {
            Outcome::Rows(rows) => {
                told.map_or(Ok(()), |told| check_columns(told, &rows.columns))?;
                self.send_messages();
                return Ok(Some(Box::new(Source::new(rows))));
            }
            Outcome::Command { tag } => tag,
            Outcome::CopyIn(copy) => Box::pin(self.copy_in(copy, signals)).await?,
            Outcome::CopyOut(copy) => Box::pin(self.copy_out(copy, signals)).await?,
            Outcome::Empty => {
                reply::bare(self.wire.out(), Bare::EmptyQuery);
                return Ok(None);
            }
        };
        self.send_messages();
        reply::command_complete(self.wire.out(), &tag);
        Ok(None)
    }

    async fn send_portal(
        &mut self,
        source: &mut Source,
        formats: &Formats,
        signals: &Signals,
        rows_max: u32,
    ) -> Result<(), Stop> {
        let signals = source.signals(signals, &self.stopping);
        let rows_max = (rows_max > 0).then(|| u64::from(rows_max));
        let timeout = self.session.fetch_timeout().filter(|_| source.is_push && rows_max.is_some());
        let micros = timeout.and_then(|span| u64::try_from(span.micros()).ok());
        let goal = Goal { rows_max, short_after: micros.map(|micros| env::instant() + Duration::from_micros(micros)) };
        let (sent, reached) = source.pump(self.wire, &signals, formats, goal).await?;
        source.pause();
        self.meters.rows_sent(sent);
        self.send_messages();
        match reached {
            Reached::Goal => reply::bare(self.wire.out(), Bare::PortalSuspended),
            Reached::End => reply::command_complete(self.wire.out(), &source.tag.render(sent)),
        }
        Ok(())
    }

    /// Executes a cursor as a portal: the next rows of it, in text if it was DECLAREd.
    async fn execute_cursor(&mut self, name: &str, rows_max: u32) -> Result<(), Stop> {
        let Some(columns) = self.session.cursor_columns(name) else { return Err(portal::missing(name).into()) };
        let formats = self.portals.cursor_formats(name, &columns);
        let count = if rows_max == 0 { "ALL".to_owned() } else { rows_max.to_string() };
        let text = format!("FETCH {count} FROM {}", quote(name));
        let signals = self.signals(&text);
        let Outcome::Rows(rows) = self.run_text(&text, &signals).await? else { return Ok(()) };
        let mut source = Source::new(rows);
        let signals = source.signals(&signals, &self.stopping);
        let timeout = self.session.fetch_timeout().filter(|_| source.is_push && rows_max > 0);
        let micros = timeout.and_then(|span| u64::try_from(span.micros()).ok());
        let short_after = micros.map(|micros| env::instant() + Duration::from_micros(micros));
        let (sent, reached) = source.pump(self.wire, &signals, &formats, Goal { rows_max: None, short_after }).await?;
        source.pause();
        self.meters.rows_sent(sent);
        if rows_max > 0 && (sent == u64::from(rows_max) || reached == Reached::Goal) {
            reply::bare(self.wire.out(), Bare::PortalSuspended);
        } else {
            reply::command_complete(self.wire.out(), &format!("SELECT {sent}"));
        }
        Ok(())
    }

    /// Runs a statement of ours on behalf of a message.
    async fn run_text(&mut self, text: &str, signals: &Signals) -> Result<Outcome, Stop> {
        let mut statements = step(self.wire, signals, pin!(self.session.parse(text))).await??;
        let Some(mut parsed) = statements.pop() else { return Ok(Outcome::Empty) };
        parsed.wait_for_rows();
        let prepared = step(self.wire, signals, pin!(self.session.prepare(parsed, &[]))).await??;
        Ok(step(self.wire, signals, pin!(self.session.execute(&prepared, Vec::new(), Via::Extended))).await??)
    }
}

fn param_type(oid: u32) -> Result<Option<crate::engine::SqlType>, SqlError> {
    if oid == 0 || oid == UNKNOWN_OID {
        return Ok(None);
    }
    types::from_oid(oid).map(Some).ok_or_else(|| {
        SqlError::unsupported(format!("a parameter of the type with OID {oid}"), "leave its type open, or cast it")
    })
}

fn quote(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn open_parameter_types_are_left_to_planning_and_unknown_ones_refused() {
        assert_eq!(param_type(0).unwrap(), None);
        assert_eq!(param_type(UNKNOWN_OID).unwrap(), None);
        assert_eq!(param_type(23).unwrap(), Some(crate::engine::SqlType::Integer));
        assert_eq!(param_type(4_000_000).unwrap_err().sqlstate, SqlState::FeatureNotSupported);
    }

    #[test]
    fn names_are_quoted_for_our_own_statements() {
        assert_eq!(quote("a\"b"), "\"a\"\"b\"");
    }
}
