//! INSERTs of one connection that are queued and not yet committed: a client that does not wait for each answer shares
//! one sync among many, and still gets an answer for each.
//!
//! Owns what was answered behind them, which is held back until they are settled, in order. A statement runs ahead only
//! while more of the client's messages are at hand or others run ahead of it, and only INSERTs of one shard: they are
//! committed in the order they were sent, so after a crash a prefix of them is there. Everything else waits for them first. Leaves out which
//! statements may (engine). A crash loses what was not answered, as a lost connection does.

use crate::engine::{Commit, Handed, ShardId};
use crate::server::admin::metrics::StatementTimer;
use crate::server::pg::connection::{Connection, step};
use crate::server::pg::error::Stop;
use crate::server::pg::reply;
use tokio::io::{AsyncRead, AsyncWrite};

/// Statements that may be on their way at once.
const AHEAD_MAX: usize = 4_096;

/// Statements on their way.
#[derive(Default)]
pub(super) struct Ahead {
    waiting: Vec<Waiting>,
    shard: Option<ShardId>,
}

struct Waiting {
    commit: Commit,
    tag: String,
    timer: StatementTimer,
    /// Where its answer goes in what is held back.
    at: usize,
}

impl std::fmt::Debug for Ahead {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Ahead({})", self.waiting.len())
    }
}

impl Ahead {
    /// Whether a statement of this shard may join.
    pub(super) fn takes(&self, shard: ShardId) -> bool {
        self.waiting.len() < AHEAD_MAX && self.shard.is_none_or(|held| held == shard)
    }

    /// Whether nothing is on its way.
    pub(super) fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin + Send> Connection<'_, S> {
    /// Takes in a statement that was queued; its answer comes when it is committed, and what follows behind it.
    pub(super) fn run_ahead(&mut self, shard: ShardId, (tag, commit): (String, Commit), timer: StatementTimer) {
        let at = self.wire.hold_back();
        self.ahead.shard = Some(shard);
        self.ahead.waiting.push(Waiting { commit, tag, timer, at });
    }

    /// Awaits what is on its way and sends what was held back.
    ///
    /// # Errors
    /// Why the connection ends.
    pub(super) async fn settle(&mut self) -> Result<(), Stop> {
        if self.ahead.is_empty() {
            return Ok(());
        }
        let held = self.wire.held_back();
        let signals = self.signals("").unless(Handed::already());
        let mut sent = 0;
        for Waiting { commit, tag, timer, at } in std::mem::take(&mut self.ahead).waiting {
            self.wire.out().extend_from_slice(held.get(sent..at).unwrap_or_default());
            sent = at;
            match step(self.wire, &signals, commit).await.map_err(Stop::from) {
                Ok(Ok(())) => {
                    reply::command_complete(self.wire.out(), &tag);
                    timer.succeeded();
                }
                Ok(Err(error)) | Err(Stop::Statement(error)) => self.report(&error),
                Err(stop) => return Err(stop),
            }
        }
        self.wire.out().extend_from_slice(held.get(sent..).unwrap_or_default());
        Ok(())
    }
}
