//! What whoever delivers the rows of a member tells it: what was handed over, and what the client has taken.
//!
//! Leaves out what follows from that (`consumer`). Used by cursors and by the server's portals.

use super::consumer::Consumer;
use crate::engine::Result;
use std::sync::Arc;

/// What whoever delivers the rows of a member tells it.
#[derive(Debug, Clone)]
pub struct Receipts {
    consumer: Arc<Consumer>,
    era: u64,
}

impl Receipts {
    pub(crate) fn new(consumer: Arc<Consumer>) -> Self {
        let era = consumer.era();
        Self { consumer, era }
    }

    pub(crate) fn consumer(&self) -> &Arc<Consumer> {
        &self.consumer
    }

    /// The client asks for rows: it has taken those it was handed. True when rows that were given and not handed over are
    /// void: they are to be forgotten, the stream gives them again where they are still this member's.
    ///
    /// # Errors
    /// When that cannot be committed.
    pub async fn ask(&mut self) -> Result<bool> {
        self.consumer.ask().await?;
        let era = self.consumer.era();
        Ok(std::mem::replace(&mut self.era, era) != era)
    }

    /// The client waits for rows, or has what it asked for and is at work on that.
    pub fn set_waiting(&self, is_waiting: bool) {
        self.consumer.set_waiting(is_waiting);
    }

    /// Rows were handed over to the client, who will ask for more when it has taken them.
    pub fn hand_over(&self, rows: usize) {
        self.consumer.hand_over(rows, false);
    }

    /// Rows are on the socket: nothing more is heard of them.
    pub fn written(&self, rows: usize) {
        self.consumer.hand_over(rows, true);
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
