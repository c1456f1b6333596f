//! What whoever delivers the rows of a member tells it: what was handed over, and what the client has taken.
//!
//! Leaves out what follows from that (`consumer`). Used by cursors and by the server's portals.

use super::consumer::Consumer;
use crate::engine::Result;
use crate::env;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
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
    /// Rows that a FETCH took of them: whether all that was wanted is sent.
    Fetch(Arc<AtomicBool>),
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
            Some(commit) => commit.await.unwrap_or(Ok(())),
            None => Ok(()),
        }
    }
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

    /// Of a FETCH, which is told by `is_sent` that its rows are sent.
    pub(crate) fn of_fetch(is_sent: Arc<AtomicBool>) -> Self {
        Self { of: Of::Fetch(is_sent) }
    }

    pub(crate) fn consumer(&self) -> Option<&Arc<Consumer>> {
        match &self.of {
            Of::Member(consumer) => Some(consumer),
            Of::Fetch(_) => None,
        }
    }

    /// The client asks for rows: it has taken those it was handed. They are committed while the next are read; the answer
    /// is complete once that is done.
    ///
    /// # Errors
    /// When the member cannot go on.
    pub async fn ask(&self) -> Result<Asked> {
        let Some(consumer) = self.consumer() else { return Ok(Asked::default()) };
        consumer.set_waiting(true);
        consumer.take_handed();
        let commit = consumer.due().map(|_| {
            let consumer = Arc::clone(consumer);
            env::spawn("commit-offsets", async move { consumer.commit().await })
        });
        let mut asking = Asking { consumer, is_done: false };
        consumer.ask().await?;
        asking.is_done = true;
        Ok(Asked { commit })
    }

    /// The client takes rows as they come.
    pub fn wait(&self) {
        self.consumer().into_iter().for_each(|consumer| consumer.set_waiting(true));
    }

    /// The client has what it asked for, and is at work on that.
    pub fn pause(&self) {
        match &self.of {
            Of::Member(consumer) => consumer.set_waiting(false),
            Of::Fetch(is_sent) => is_sent.store(true, Ordering::Release),
        }
    }

    /// So many rows go to the client now. False when they are void, because the member reads from elsewhere since they were
    /// given: they are to be forgotten, the stream gives them again where they are still this member's.
    #[must_use]
    pub fn hand_over(&self, rows: usize) -> bool {
        self.consumer().is_none_or(|consumer| consumer.hand_over(rows))
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
