//! What whoever delivers the rows of a member tells it: what was handed over, and what the client has taken.
//!
//! Leaves out what follows from that (`consumer`). Used by cursors and by the server's portals.

use super::consumer::Consumer;
use crate::engine::Result;
use crate::env;
use std::sync::Arc;
use tokio::task::JoinHandle;

/// Whom to tell of the rows of a member of a consumer group.
#[derive(Debug, Clone)]
pub struct Receipts {
    consumer: Arc<Consumer>,
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
        Self { consumer }
    }

    pub(crate) fn consumer(&self) -> &Arc<Consumer> {
        &self.consumer
    }

    /// The client asks for rows: it has taken those it was handed. They are committed while the next are read; the answer
    /// is complete once that is done.
    ///
    /// # Errors
    /// When the member cannot go on.
    pub async fn ask(&self) -> Result<Asked> {
        self.consumer.set_waiting(true);
        self.consumer.take_handed();
        let commit = self.consumer.due().map(|_| {
            let consumer = Arc::clone(&self.consumer);
            env::spawn("commit-offsets", async move { consumer.commit().await })
        });
        let mut asking = Asking { consumer: &self.consumer, is_done: false };
        self.consumer.ask().await?;
        asking.is_done = true;
        Ok(Asked { commit })
    }

    /// The client waits for rows, or has what it asked for and is at work on that.
    pub fn set_waiting(&self, is_waiting: bool) {
        self.consumer.set_waiting(is_waiting);
    }

    /// So many rows go to the client now. False when they are void, because the member reads from elsewhere since they were
    /// given: they are to be forgotten, the stream gives them again where they are still this member's.
    #[must_use]
    pub fn hand_over(&self, rows: usize) -> bool {
        self.consumer.hand_over(rows)
    }

    /// What was handed over is on the socket: nothing more is heard of it.
    pub fn written(&self) {
        self.consumer.take_handed();
    }

    /// The client has all rows it will take.
    ///
    /// # Errors
    /// When that cannot be committed.
    pub async fn finish(&self) -> Result<()> {
        self.consumer.take_handed();
        self.consumer.commit().await
    }
}
