//! Portals: bound statements, perhaps half read.
//!
//! Owns the portals of one connection and their number. Leaves out SQL cursors, which the session has; to a
//! client the two are one: a portal that a statement names becomes a cursor, and its formats stay here. Portals end with
//! the transaction, or with Sync outside of one.

use crate::engine::{Held, Param, Prepared, ResultColumn, SqlError, SqlState};
use crate::server::pg::pump::Source;
use crate::server::pg::rows::Formats;
use millstream_catalog::model::limit::PORTALS_MAX;
use std::collections::HashMap;
use std::sync::Arc;

/// A statement with its parameters.
#[derive(Debug)]
pub(super) struct Portal {
    /// `None` for a statement without text.
    pub(super) prepared: Option<Arc<Prepared>>,
    pub(super) formats: Formats,
    /// The columns that a Describe of it told the client of, which may be others than the statement's.
    pub(super) told: Option<Arc<[ResultColumn]>>,
    pub(super) state: State,
    /// Savepoints of the session that were set before it was bound.
    pub(super) savepoints: u64,
    /// Memory of its parameters, if they are large.
    pub(super) _held: Option<Held>,
}

impl Portal {
    /// One that was executed to its end, without rows.
    pub(super) fn done(prepared: Arc<Prepared>, formats: Formats, savepoints: u64) -> Self {
        Self { prepared: Some(prepared), formats, told: None, state: State::Done, savepoints, _held: None }
    }
}

/// How far a portal was executed.
#[derive(Debug)]
pub(super) enum State {
    /// Not yet; these are the parameters.
    Bound(Vec<Param>),
    /// Rows were asked for, and more may come.
    Open(Box<Source>),
    /// To its end, without rows.
    Done,
}

/// The portals of a connection, by name.
#[derive(Debug, Default)]
pub(super) struct Portals {
    open: HashMap<String, Portal>,
    /// Columns and formats of those that became cursors of the session.
    cursors: HashMap<String, (Arc<[ResultColumn]>, Formats)>,
}

impl Portals {
    /// Adds a portal; the one without a name replaces its predecessor.
    ///
    /// # Errors
    /// `42P03` when the name is taken, `53400` over the limit.
    pub(super) fn open(&mut self, name: &str, portal: Portal) -> Result<(), SqlError> {
        if !name.is_empty() {
            if self.open.contains_key(name) {
                return Err(taken(name));
            }
            if self.open.len() >= PORTALS_MAX {
                return Err(SqlError::new(SqlState::ConfigurationLimitExceeded, "too many open portals")
                    .detail(format!("a session may have {PORTALS_MAX}"))
                    .hint("close portals that are not needed any more"));
            }
        }
        self.open.insert(name.to_owned(), portal);
        Ok(())
    }

    /// The portal of this name is a cursor of the session from now on, whose rows go out in these formats.
    pub(super) fn became_cursor(&mut self, name: &str, columns: &Arc<[ResultColumn]>, formats: Formats) {
        self.cursors.insert(name.to_owned(), (Arc::clone(columns), formats));
    }

    /// The formats of a cursor with these columns, if it was a portal; of any other, text.
    pub(super) fn cursor_formats(&self, name: &str, columns: &Arc<[ResultColumn]>) -> Formats {
        let of = self.cursors.get(name).filter(|(of, _)| Arc::ptr_eq(of, columns));
        of.map_or_else(Formats::default, |(_, formats)| formats.clone())
    }

    /// Forgets formats of cursors that there are no more.
    pub(super) fn retain_cursors(&mut self, is_open: impl Fn(&str) -> bool) {
        self.cursors.retain(|name, _| is_open(name));
    }

    /// A Describe told the client of these columns of a portal.
    pub(super) fn tell(&mut self, name: &str, columns: &Arc<[ResultColumn]>) {
        self.open.get_mut(name).into_iter().for_each(|portal| portal.told = Some(Arc::clone(columns)));
    }

    /// The portal of this name.
    pub(super) fn find(&self, name: &str) -> Option<&Portal> {
        self.open.get(name)
    }

    /// Takes a portal out, to run it.
    pub(super) fn take(&mut self, name: &str) -> Option<Portal> {
        self.open.remove(name)
    }

    /// Takes a portal out that is like this.
    pub(super) fn take_if(&mut self, name: &str, is_like: impl FnOnce(&mut Portal) -> bool) -> Option<Portal> {
        let is_taken = self.open.get_mut(name).is_some_and(is_like);
        if is_taken { self.open.remove(name) } else { None }
    }

    /// Puts a portal back that `take` gave.
    pub(super) fn put_back(&mut self, name: &str, portal: Portal) {
        self.open.insert(name.to_owned(), portal);
    }

    /// Takes those out whose rows are on their way.
    pub(super) fn take_open(&mut self) -> Vec<Portal> {
        self.open.extract_if(|_, portal| matches!(portal.state, State::Open(_))).map(|(_, portal)| portal).collect()
    }

    /// `ROLLBACK TO` a savepoint of this number: those that were bound since end.
    pub(super) fn roll_back_to(&mut self, number: u64) {
        self.open.retain(|_, portal| portal.savepoints < number);
    }

    /// Ends all of them.
    pub(super) fn clear(&mut self) {
        self.open.clear();
        self.cursors.clear();
    }
}

/// `42P03`
pub(super) fn taken(name: &str) -> SqlError {
    SqlError::new(SqlState::DuplicateCursor, format!("cursor \"{name}\" already exists"))
}

/// `34000`
pub(super) fn missing(name: &str) -> SqlError {
    SqlError::new(SqlState::InvalidCursorName, format!("portal \"{name}\" does not exist"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn portal() -> Portal {
        let (formats, state) = (Formats::default(), State::Done);
        Portal { prepared: None, formats, told: None, state, savepoints: 0, _held: None }
    }

    #[test]
    fn names_are_unique_but_the_unnamed_portal_is_replaced() {
        let mut portals = Portals::default();
        portals.open("", portal()).unwrap();
        portals.open("", portal()).unwrap();
        portals.open("a", portal()).unwrap();
        assert_eq!(portals.open("a", portal()).unwrap_err().sqlstate, SqlState::DuplicateCursor);
        assert!(portals.take("a").is_some());
        portals.open("a", portal()).unwrap();
    }

    #[test]
    fn the_number_of_portals_is_bounded() {
        let mut portals = Portals::default();
        for n in 0..PORTALS_MAX {
            portals.open(&format!("p{n}"), portal()).unwrap();
        }
        let error = portals.open("one more", portal()).unwrap_err();
        assert_eq!(error.sqlstate, SqlState::ConfigurationLimitExceeded);
    }
}
