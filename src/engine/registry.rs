//! The sessions of this node: their ids, what they run, and how to cancel it.
//!
//! Leaves out the sessions themselves, which their connections own. Called by sessions, by cancel requests
//! and by `millstream.sessions`. A crash forgets all of it.

use crate::env;
use millstream_catalog::model::limit::SESSIONS_MAX;
use millstream_catalog::model::{SqlState, Timestamp};
use millstream_sql::SqlError;
use parking_lot::Mutex;
use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};
use tokio_util::sync::CancellationToken;

/// What a client must show to cancel a session's statement.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct SessionId {
    /// The number shown as `pg_backend_pid()`.
    pub pid: i32,
    /// A number only the client was told.
    pub secret: i32,
}

/// Whether what a statement writes was handed to the log: from then on it is not cancelled, unless it was refused.
#[derive(Debug, Clone, Default)]
pub struct Handed(Arc<AtomicBool>);

impl Handed {
    /// Of a statement that was handed over already.
    pub fn already() -> Self {
        Self(Arc::new(AtomicBool::new(true)))
    }

    /// Whether it was.
    pub fn is_set(&self) -> bool {
        self.0.load(Ordering::Acquire)
    }

    /// Hands over, or says that what was handed over is no longer all there is to do.
    pub(crate) fn set(&self, is_set: bool) {
        self.0.store(is_set, Ordering::Release);
    }
}

/// One open session, as others see it.
#[derive(Debug)]
pub(crate) struct SessionEntry {
    /// Its id.
    pub id: SessionId,
    /// The user it came with.
    pub user: String,
    /// The address of the client.
    pub client: String,
    /// When it began.
    pub started_at: Timestamp,
    activity: Mutex<Activity>,
    handed: Handed,
}

#[derive(Debug, Default)]
struct Activity {
    application_name: String,
    /// The beginning of the last statement.
    statement: String,
    is_running: bool,
    interrupt: CancellationToken,
}

/// The first characters of a statement that others are shown.
const SHOWN_CHARS_MAX: usize = 1_000;

/// A copy of a session's entry for the system view.
#[derive(Debug, Clone)]
pub struct SessionRow {
    /// The pid.
    pub pid: i32,
    /// The user.
    pub user: String,
    /// `application_name`.
    pub application_name: String,
    /// The client's address.
    pub client: String,
    /// When it began.
    pub started_at: Timestamp,
    /// The statement it runs, if any.
    pub statement: Option<String>,
}

impl SessionEntry {
    /// Marks the beginning of a statement; the token is cancelled by a cancel request from now on.
    pub(crate) fn begin(&self, text: &str) -> CancellationToken {
        self.handed.set(false);
        let end = match text.len() <= SHOWN_CHARS_MAX {
            true => text.len(),
            false => text.char_indices().nth(SHOWN_CHARS_MAX).map_or(text.len(), |(end, _)| end),
        };
        let mut activity = self.activity.lock();
        activity.is_running = true;
        activity.statement.clear();
        activity.statement.push_str(text.get(..end).unwrap_or_default());
        // A request that came between two statements has cancelled neither.
        if activity.interrupt.is_cancelled() {
            activity.interrupt = CancellationToken::new();
        }
        activity.interrupt.clone()
    }

    /// What the statement's commit says.
    pub(crate) fn handed(&self) -> &Handed {
        &self.handed
    }

    /// Marks the end of a statement.
    pub(crate) fn end(&self) {
        self.activity.lock().is_running = false;
    }

    /// A copy for others.
    pub(crate) fn row(&self) -> SessionRow {
        let activity = self.activity.lock();
        SessionRow {
            pid: self.id.pid,
            user: self.user.clone(),
            application_name: activity.application_name.clone(),
            client: self.client.clone(),
            started_at: self.started_at,
            statement: activity.is_running.then(|| activity.statement.clone()),
        }
    }

    /// Remembers `application_name` for the system view.
    pub(crate) fn rename(&self, application_name: &str) {
        application_name.clone_into(&mut self.activity.lock().application_name);
    }
}

/// Every open session.
#[derive(Debug)]
pub(crate) struct Registry {
    sessions: Mutex<HashMap<i32, Arc<SessionEntry>>>,
    pid_last: AtomicI32,
    secrets: RandomState,
    sessions_max: usize,
}

impl Registry {
    /// Nobody yet, of at most so many.
    pub(crate) fn new(sessions_max: usize) -> Self {
        let (sessions, pid_last, secrets) = (Mutex::default(), AtomicI32::new(0), RandomState::new());
        Self { sessions, pid_last, secrets, sessions_max }
    }

    /// Adds a session.
    ///
    /// # Errors
    /// 53300 when there are as many as the limit allows.
    pub(crate) fn open(
        &self,
        user: &str,
        application_name: &str,
        client: &str,
        now: Timestamp,
    ) -> Result<Arc<SessionEntry>, SqlError> {
        let mut sessions = self.sessions.lock();
        if sessions.len() >= self.sessions_max {
            let error = SqlError::new(SqlState::TooManyConnections, "sorry, too many clients already")
                .detail(format!("there may be {} sessions", self.sessions_max));
            return Err(match self.sessions_max < SESSIONS_MAX {
                true => error.hint("start the server with a larger --memory"),
                false => error,
            });
        }
        let mut pid = self.pid_last.fetch_add(1, Ordering::Relaxed) & i32::MAX;
        while pid == 0 || sessions.contains_key(&pid) {
            pid = self.pid_last.fetch_add(1, Ordering::Relaxed) & i32::MAX;
        }
        // SipHash under a random key of this process, over values that do not repeat.
        let secret = self.secrets.hash_one((pid, now.micros(), env::instant())) as i32;
        let entry = Arc::new(SessionEntry {
            id: SessionId { pid, secret },
            user: user.to_owned(),
            client: client.to_owned(),
            started_at: now,
            activity: Mutex::new(Activity { application_name: application_name.to_owned(), ..Activity::default() }),
            handed: Handed::default(),
        });
        sessions.insert(pid, Arc::clone(&entry));
        Ok(entry)
    }

    /// Removes a session.
    pub(crate) fn close(&self, id: SessionId) {
        self.sessions.lock().remove(&id.pid);
    }

    /// Cancels what the session runs; says nothing when the id or secret is wrong, as PostgreSQL does.
    pub(crate) fn cancel(&self, id: SessionId) {
        let entry = self.sessions.lock().get(&id.pid).cloned();
        if let Some(entry) = entry
            && entry.id.secret == id.secret
        {
            entry.activity.lock().interrupt.cancel();
        }
    }

    /// Every session, by pid.
    pub(crate) fn rows(&self) -> Vec<SessionRow> {
        let sessions = self.sessions.lock();
        let mut rows: Vec<SessionRow> = sessions.values().map(|entry| entry.row()).collect();
        rows.sort_by_key(|row| row.pid);
        rows
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_session_too_many_is_refused_and_told_why() {
        let registry = Registry::new(1);
        let open = || registry.open("ann", "", "here", Timestamp::default());
        let first = open().unwrap();
        let error = open().unwrap_err();
        assert_eq!(error.sqlstate.code(), "53300");
        assert!(error.detail.unwrap().contains("1 sessions") && error.hint.unwrap().contains("--memory"));
        registry.close(first.id);
        open().unwrap();
    }

    #[test]
    fn a_cancel_request_cancels_what_runs_and_not_what_follows() {
        let registry = Registry::new(1);
        let entry = registry.open("ann", "", "here", Timestamp::default()).unwrap();
        let shown = || registry.rows().remove(0).statement;
        let long = "é".repeat(SHOWN_CHARS_MAX + 1);
        let first = entry.begin(&long);
        assert_eq!(shown().unwrap(), "é".repeat(SHOWN_CHARS_MAX));
        registry.cancel(SessionId { secret: entry.id.secret.wrapping_add(1), ..entry.id });
        assert!(!first.is_cancelled());
        registry.cancel(entry.id);
        assert!(first.is_cancelled());
        let second = entry.begin("SELECT 2");
        assert!(!second.is_cancelled());
        entry.end();
        assert_eq!(shown(), None);
        registry.cancel(entry.id);
        let third = entry.begin("SELECT 3");
        assert!(!third.is_cancelled());
        assert_eq!(shown().unwrap(), "SELECT 3");
    }
}
