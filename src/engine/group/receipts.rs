//! What whoever delivers the rows of a member tells it: what was handed over, and what the client has taken.
//!
//! Leaves out what follows from that (`consumer`). Used by cursors and by the server's portals.

use super::consumer::{Consumer, Delivery};
use crate::engine::Result;
use crate::env;
use millstream_catalog::model::SqlState;
use millstream_sql::SqlError;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use tokio::task::JoinHandle;

/// Whom to tell of the rows of a member of a consumer group.
#[derive(Debug, Clone)]
pub struct Receipts {
    of: Of,
}

#[derive(Debug, Clone)]
enum Of {
    /// The member's own rows.
    Member(Arc<Consumer>),
    /// Rows that a FETCH took of them.
    Fetch(Arc<FetchReceipts>),
}

/// What became of the rows of one FETCH.
#[derive(Debug)]
pub(crate) struct FetchReceipts {
    consumer: Arc<Consumer>,
    /// Rows that were taken of the member's and not handed over.
    left: AtomicUsize,
    /// Rows that were void when they were to be handed over: others are to come in their place.
    void: AtomicUsize,
    /// All rows that were handed over are with the client.
    is_sent: AtomicBool,
    /// Another FETCH goes on in its place.
    is_over: AtomicBool,
}

impl FetchReceipts {
    pub(crate) fn new(consumer: &Arc<Consumer>) -> Arc<Self> {
        let (is_sent, is_over) = (AtomicBool::new(false), AtomicBool::new(false));
        let (left, void) = (AtomicUsize::new(0), AtomicUsize::new(0));
        Arc::new(Self { consumer: Arc::clone(consumer), left, void, is_sent, is_over })
    }

    /// Rows are on their way to whoever delivers them.
    pub(crate) fn take(&self, rows: usize) {
        self.left.fetch_add(rows, Ordering::AcqRel);
    }

    pub(crate) fn set_sent(&self) {
        self.is_sent.store(true, Ordering::Release);
    }

    pub(crate) fn is_over(&self) -> bool {
        self.is_over.load(Ordering::Acquire)
    }

    /// It gives no more rows: those that were not handed over are fetched again.
    pub(crate) fn end(&self) {
        self.is_over.store(true, Ordering::Release);
        if self.left.swap(0, Ordering::AcqRel) > 0 {
            self.consumer.void();
        }
    }

    fn hand_over(&self, rows: usize) -> bool {
        if self.is_over() {
            return false;
        }
        self.is_sent.store(false, Ordering::Release);
        self.left.fetch_sub(rows, Ordering::AcqRel);
        let is_given = self.consumer.hand_over(rows);
        if !is_given {
            // With them all that were to come after them.
            let rest = self.left.swap(0, Ordering::AcqRel);
            self.void.fetch_add(rows + rest, Ordering::AcqRel);
        }
        is_given
    }

    /// How many rows became void since the last call.
    pub(crate) fn voided(&self) -> usize {
        self.void.swap(0, Ordering::AcqRel)
    }
}

/// A FETCH that failed did not reach the client: what it handed over is fetched again.
impl Drop for FetchReceipts {
    fn drop(&mut self) {
        self.end();
        self.consumer.set_waiting(false);
        if !self.is_sent.load(Ordering::Acquire) {
            self.consumer.take_back();
        }
    }
}

/// Whether a member that fails so can never go on.
pub(crate) fn is_final(error: &SqlError) -> bool {
    use SqlState::{GroupMemberFenced, NoCommittedOffset, UndefinedTable};
    matches!(error.sqlstate, UndefinedTable | GroupMemberFenced | NoCommittedOffset)
}

/// The commit of rows that the client has taken, while the next ones are on their way.
#[derive(Debug, Default)]
pub struct Asked {
    commit: Option<JoinHandle<Result<()>>>,
}

impl Asked {
    /// Waits until the rows before are committed.
    ///
    /// # Errors
    /// When they cannot be.
    pub async fn done(self) -> Result<()> {
        match self.commit {
            Some(commit) => commit.await.unwrap_or_else(|_| Err(commit_died())),
            None => Ok(()),
        }
    }
}

/// A task that commits offsets panicked.
pub(crate) fn commit_died() -> SqlError {
    SqlError::internal("offsets could not be committed")
}

/// A client that asks. One that gets no answer does not wait.
struct Asking<'a> {
    consumer: &'a Consumer,
    is_done: bool,
}

impl Drop for Asking<'_> {
    fn drop(&mut self) {
        if !self.is_done {
            self.consumer.set_waiting(false);
        }
    }
}

impl Receipts {
    pub(crate) fn new(consumer: Arc<Consumer>) -> Self {
        Self { of: Of::Member(consumer) }
    }

    /// Of a FETCH.
    pub(crate) fn of_fetch(fetch: Arc<FetchReceipts>) -> Self {
        Self { of: Of::Fetch(fetch) }
    }

    pub(crate) fn consumer(&self) -> Option<&Arc<Consumer>> {
        match &self.of {
            Of::Member(consumer) => Some(consumer),
            Of::Fetch(_) => None,
        }
    }

    /// The client asks for rows: it has taken those it was handed. They are committed while the next are read, and the
    /// answer is complete once that is done; or later, where the member says how often.
    ///
    /// # Errors
    /// When the member cannot go on.
    pub async fn ask(&self) -> Result<Asked> {
        let Some(consumer) = self.consumer() else { return Ok(Asked::default()) };
        consumer.set_waiting(true);
        consumer.set_closed(false);
        consumer.take_handed();
        let commit = match consumer.commit_at(consumer.commit_interval().unwrap_or_default()) {
            Some(moment) if moment <= env::instant() => {
                let consumer = Arc::clone(consumer);
                Some(env::spawn("commit-offsets", async move { consumer.commit().await }))
            }
            Some(moment) => {
                consumer.commit_later(moment);
                None
            }
            None => None,
        };
        let asked = Asked { commit };
        let mut asking = Asking { consumer, is_done: false };
        if let Err(error) = consumer.ask().await {
            // It has no other answer, and others wait for what it had.
            let _ = asked.done().await;
            if is_final(&error) {
                Box::pin(consumer.quit()).await;
            }
            return Err(error);
        }
        asking.is_done = true;
        Ok(asked)
    }

    /// Rows are waited for, or the client is at work on those it has. Those who get rows as they come say so themselves.
    pub fn set_waiting(&self, is_waiting: bool) {
        let consumer = self.member();
        if consumer.delivery() == Delivery::Asked {
            consumer.set_waiting(is_waiting);
        }
    }

    /// The client has what it asked for, and is at work on that.
    pub fn pause(&self) {
        self.set_waiting(false);
        if let Of::Fetch(fetch) = &self.of {
            fetch.set_sent();
        }
    }

    /// The member whose rows these are, or were fetched of.
    pub(crate) fn member(&self) -> &Arc<Consumer> {
        match &self.of {
            Of::Member(consumer) => consumer,
            Of::Fetch(fetch) => &fetch.consumer,
        }
    }

    pub(crate) fn has_given(&self, rows: usize) -> bool {
        self.consumer().is_none_or(|consumer| consumer.has_given(rows))
    }

    /// Whether these are the member's own rows, which may go on after their end: a rollback takes that back too.
    pub fn is_member(&self) -> bool {
        self.consumer().is_some()
    }

    /// So many rows go to the client now. False when they are void, because the member reads from elsewhere since they were
    /// given: they are to be forgotten, the stream gives them again where they are still this member's.
    #[must_use]
    pub fn hand_over(&self, rows: usize) -> bool {
        match &self.of {
            Of::Member(consumer) => consumer.hand_over(rows),
            Of::Fetch(fetch) => fetch.hand_over(rows),
        }
    }

    /// Whether rows count as taken once they are on the socket.
    pub fn is_written(&self) -> bool {
        self.consumer().is_some()
    }

    /// What was handed over is on the socket: nothing more is heard of it.
    pub fn written(&self) {
        self.consumer().into_iter().for_each(|consumer| consumer.take_handed());
    }

    /// The client has all rows it will take.
    ///
    /// # Errors
    /// When that cannot be committed.
    pub async fn finish(&self) -> Result<()> {
        match &self.of {
            Of::Member(consumer) => {
                consumer.set_closed(true);
                consumer.take_handed();
                consumer.commit().await
            }
            Of::Fetch(_) => {
                self.pause();
                Ok(())
            }
        }
    }
}
