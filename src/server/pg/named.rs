//! Portals as cursors: statements that name them.
//!
//! Owns that the cursor and the portal of a name are one thing: a portal that FETCH, MOVE or COMMIT OFFSETS names becomes a
//! cursor of the session, CLOSE ends it, DECLARE finds its name taken. The other way round, messages that name cursors, is
//! `extended`. Leaves out what the statements do (engine).

use crate::engine::{Outcome, Parsed, Prepared, ResultColumn, TransactionStatus, Via};
use crate::server::pg::cancel::Signals;
use crate::server::pg::connection::{Connection, step};
use crate::server::pg::error::Stop;
use crate::server::pg::portal::{self, Portal, State};
use std::pin::pin;
use std::sync::Arc;
use tokio::io::{AsyncRead, AsyncWrite};

impl<S: AsyncRead + AsyncWrite + Unpin + Send> Connection<'_, S> {
    /// Before a statement, which may name a portal. The tag, when that is all there was to do.
    ///
    /// # Errors
    /// `42P03`; of the portal's statement, which may begin here.
    pub(super) async fn meet(&mut self, parsed: &Parsed, signals: &Signals) -> Result<Option<&'static str>, Stop> {
        match parsed.cursor().or(parsed.declared()).is_some() || parsed.is_close() {
            true => Box::pin(self.meet_portal(parsed, signals)).await,
            false => Ok(None),
        }
    }

    async fn meet_portal(&mut self, parsed: &Parsed, signals: &Signals) -> Result<Option<&'static str>, Stop> {
        if parsed.is_close() && parsed.cursor().is_none() {
            let portals = self.portals.take_open();
            self.finish_portals(portals).await?;
            return Ok(None);
        }
        if let Some(name) = parsed.declared().filter(|name| self.has_portal(name)) {
            return Err(portal::taken(name).into());
        }
        let Some(name) = parsed.cursor().filter(|name| self.has_portal(name)) else { return Ok(None) };
        if parsed.is_close() {
            let portal = self.portals.take(name);
            self.finish_portals(portal).await?;
            return Ok(Some("CLOSE CURSOR"));
        }
        self.make_cursor(name, signals).await?;
        Ok(None)
    }

    /// Before a statement is prepared that may name a portal: it is told the columns.
    pub(super) fn know_portal(&mut self, parsed: &Parsed) {
        let Some(name) = parsed.cursor().filter(|name| self.has_portal(name)) else { return };
        let prepared = self.portals.find(name).and_then(|portal| portal.prepared.as_ref());
        if let Some(columns) = prepared.and_then(|prepared| prepared.columns()) {
            self.session.know_portal(name, columns);
        }
    }

    /// The columns that a statement's rows have now: those of a FETCH are its cursor's.
    pub(super) fn columns_now(&self, prepared: &Prepared) -> Option<Arc<[ResultColumn]>> {
        let columns = prepared.columns()?;
        let of_cursor = || {
            let parsed = prepared.parsed().ok()?;
            let name = parsed.cursor()?;
            let portal = || self.portals.find(name)?.prepared.as_ref()?.columns().cloned();
            self.session.cursor_columns(name).or_else(portal)
        };
        let now = if prepared.is_own() { None } else { of_cursor() };
        Some(now.unwrap_or_else(|| Arc::clone(columns)))
    }

    /// Whether a portal of this name was not ended by its block, and no cursor of the session has the name.
    fn has_portal(&mut self, name: &str) -> bool {
        self.end_portals_of_blocks();
        let is_in_block = self.session.transaction_status() == TransactionStatus::Open;
        is_in_block && self.portals.find(name).is_some() && self.session.cursor_columns(name).is_none()
    }

    /// Before a FETCH, MOVE or COMMIT OFFSETS of a portal by its name: it becomes a cursor of the session, as far as it was read. One without
    /// rows of its own stays what it is.
    ///
    /// # Errors
    /// Of its statement, which may begin here.
    async fn make_cursor(&mut self, name: &str, signals: &Signals) -> Result<(), Stop> {
        let has_rows = |portal: &mut Portal| {
            let of = portal.prepared.as_ref().filter(|prepared| prepared.is_own());
            of.is_some_and(|prepared| prepared.columns().is_some()) && !matches!(portal.state, State::Done)
        };
        let Some(Portal { prepared: Some(prepared), formats, state, savepoints, .. }) =
            self.portals.take_if(name, has_rows)
        else {
            return Ok(());
        };
        let rows = match state {
            State::Open(source) => source.into_rows(),
            State::Bound(params) => {
                match step(self.wire, signals, pin!(self.session.execute(&prepared, params, Via::Portal))).await?? {
                    Outcome::Rows(rows) => rows,
                    _ => return Ok(()),
                }
            }
            State::Done => return Ok(()),
        };
        let session = &self.session;
        self.portals.retain_cursors(|name| session.cursor_columns(name).is_some());
        self.portals.became_cursor(name, &rows.columns, formats);
        self.session.declare_rows(name, rows, savepoints)?;
        Ok(())
    }
}
