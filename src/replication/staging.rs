//! A transaction that writes its rows to the log before it commits.
//!
//! Owns the handle: rows are handed over part by part, then [`Shard::append`] commits them with the rest, or dropping the
//! handle gives them up. Leaves out what the state machine keeps (`stages`). A crash gives up what was not committed: the
//! shard does so when it starts.

use super::error::ReplicationError;
use super::flow::Request;
use super::raft::Reply;
use super::shard::{CHANGE_BYTES, Core, Shard};
use super::types::PartitionWrite;
use crate::env;
use millstream_catalog::model::StageId;
use std::fmt;
use std::sync::{Arc, OnceLock};
use std::time::Duration;
use tokio::sync::oneshot;

/// How long until a transaction is given up again.
const ABORT_RETRY: Duration = Duration::from_millis(200);

/// The rows of one transaction that are in the log of a shard and not committed.
pub struct Staging {
    core: Arc<Core>,
    /// Set by the task that began it, which may end after whoever waited for it went away.
    stage: Arc<OnceLock<StageId>>,
    is_committed: bool,
}

impl fmt::Debug for Staging {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Staging").field("stage", &self.stage).finish_non_exhaustive()
    }
}

impl Shard {
    /// Begins a transaction; nothing is in the log yet.
    pub fn staging(&self) -> Staging {
        Staging { core: Arc::clone(self.core()), stage: Arc::default(), is_committed: false }
    }
}

impl Staging {
    /// Writes rows to the log. When it returns they are durable, but seen by nobody.
    ///
    /// # Errors
    /// [`ReplicationError`]; the transaction can only be given up then.
    ///
    /// # Cancellation
    /// The transaction can only be given up.
    pub async fn add(&mut self, parts: Vec<PartitionWrite>) -> Result<(), ReplicationError> {
        let (mut parts, bytes) = self.core.check(parts)?;
        parts.retain(|part| part.batch.num_rows() > 0);
        if parts.is_empty() {
            return Ok(());
        }
        let (sender, receiver) = oneshot::channel();
        let (core, stage) = (Arc::clone(&self.core), Arc::clone(&self.stage));
        // A task of its own, because a caller that goes away would never know which transaction was begun.
        let _task = env::spawn("stage", async move {
            let staged = core.submit(Request::Stage(stage.get().copied(), parts), bytes).await;
            if let Ok(Reply::Staged(begun)) = staged {
                let begun = *stage.get_or_init(|| begun);
                if sender.send(staged).is_err() {
                    abort(&core, begun).await;
                }
            } else {
                // A caller that went away does not want the answer.
                let _ = sender.send(staged);
            }
        });
        match receiver.await {
            Ok(Ok(Reply::Staged(_))) => Ok(()),
            Ok(Err(error)) => Err(error),
            Ok(Ok(_)) | Err(_) => Err(self.core.stopped()),
        }
    }

    /// For [`super::Append`], which commits it; `None` while nothing is in the log.
    pub fn id(&self) -> Option<StageId> {
        self.stage.get().copied()
    }

    /// It is committed: there is nothing to give up.
    pub fn committed(mut self) {
        self.is_committed = true;
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        let stage = self.stage.get().copied().filter(|_| !self.is_committed);
        let (Some(stage), Ok(_)) = (stage, tokio::runtime::Handle::try_current()) else { return };
        let core = Arc::clone(&self.core);
        // Without a runtime the node is gone; its next start gives it up.
        let _task = env::spawn("abort", async move { abort(&core, stage).await });
    }
}

/// Gives a transaction up; on a full disk as soon as the log has room for that. Of one that is prepared nothing happens: a
/// client may go away while its transaction commits.
pub(super) async fn abort(core: &Core, stage: StageId) {
    while let Err(error) = core.submit(Request::GiveUp(stage), CHANGE_BYTES).await {
        if !error.is_retryable() {
            tracing::debug!(shard = core.id().value(), %error, "a transaction was not given up before the end");
            return;
        }
        tokio::time::sleep(ABORT_RETRY).await;
    }
}
