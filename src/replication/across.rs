//! Transactions over several shards: two-phase commit among the shards' logs.
//!
//! Owns the protocol. Each shard *prepares* its share: checks it, keeps its rows and holds what they depend on. Then the
//! first shard records that the transaction commits, which is the moment it does; then each shard carries it out. Without
//! a record it does not commit (presumed abort), so a crash at any point leaves one answer, which the next start finds
//! ([`resolve`]) before anybody reads. Also owns the gate that keeps statements from seeing some shards before and others
//! after a commit. Leaves out what shards check and keep (`machine`, `stages`).
//!
//! Source: J. Gray, Notes on Data Base Operating Systems, 1978, §5.8.3.3; C. Mohan, B. Lindsay, R. Obermarck, Transaction
//! Management in the R* Distributed Database Management System, 1986 (presumed abort).

use super::error::ReplicationError;
use super::flow::Request;
use super::raft::Reply;
use super::shard::{CHANGE_BYTES, Core};
use super::staging;
use super::types::{Append, Decider};
use crate::env;
use futures::future::join_all;
use millstream_catalog::model::{EntryIndex, ShardId, StageId, TransactionId};
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::sync::{RwLock, oneshot};

/// How long until a decision is carried out anew that found no room.
const RETRY: Duration = Duration::from_millis(200);

/// The last applied entry of each shard, taken between commits.
pub type Cuts = HashMap<ShardId, EntryIndex>;

/// What commits over the shards of a node.
#[derive(Debug)]
pub(crate) struct Across {
    transactions: AtomicU64,
    /// Held by each transaction while its shards carry it out, together with others; alone by whoever takes cuts.
    gate: Arc<RwLock<()>>,
}

/// What one shard has of a transaction.
struct Share {
    core: Arc<Core>,
    append: Append,
}

impl Across {
    /// Carries out or gives up what a crash left prepared. No transaction may have begun.
    ///
    /// # Errors
    /// When a shard stopped.
    pub(crate) async fn start(cores: &[Arc<Core>], is_whole: bool) -> Result<Self, ReplicationError> {
        let last = resolve(cores, is_whole).await?;
        Ok(Self { transactions: AtomicU64::new(last.value()), gate: Arc::default() })
    }

    /// Commits appends to several shards, all or none. When it returns, all are durable, and visible to every later read.
    ///
    /// # Errors
    /// Of a shard that refuses its share; nothing was written then. With `Stopped` and `ShuttingDown` it is not known.
    ///
    /// # Cancellation
    /// The transaction goes on.
    pub(crate) async fn append(&self, shares: Vec<(Arc<Core>, Append)>) -> Result<(), ReplicationError> {
        let Some((first, _)) = shares.first() else { return Ok(()) };
        let (stopped, first) = (Arc::clone(first), Arc::clone(first));
        let transaction = TransactionId::new(self.transactions.fetch_add(1, Ordering::Relaxed) + 1);
        let decider = Decider { shard: first.id(), transaction };
        let shares = shares.into_iter().map(|(core, append)| Share { core, append }).collect();
        let (sender, receiver) = oneshot::channel();
        let gate = Arc::clone(&self.gate);
        // A task of its own: a caller that goes away must not leave a transaction halfway.
        let _task = env::spawn("transaction", async move {
            let committed = commit(&gate, decider, &first, shares).await;
            let is_decided = matches!(committed, Ok(true));
            // A caller that went away does not want the answer.
            let _ = sender.send(committed.map(drop));
            if is_decided {
                submit(&first, Request::Forget(transaction), "a decision was not forgotten").await;
            }
        });
        receiver.await.unwrap_or_else(|_| Err(stopped.stopped()))
    }

    /// The shards' last entries, with all or none of each transaction.
    pub(crate) async fn cuts(&self, cores: &[Arc<Core>]) -> Cuts {
        let _alone = self.gate.write().await;
        cores.iter().map(|core| (core.id(), core.applied())).collect()
    }
}

/// True when it was decided, false when its rows were written before.
async fn commit(
    gate: &RwLock<()>,
    decider: Decider,
    first: &Arc<Core>,
    shares: Vec<Share>,
) -> Result<bool, ReplicationError> {
    let claims: Vec<_> = shares.iter().map(|share| share.append.claims.first().cloned()).collect();
    let cores: Vec<_> = shares.iter().map(|share| Arc::clone(&share.core)).collect();
    let answers = join_all(shares.into_iter().map(|share| prepare(decider, share))).await;
    let (mut prepared, mut refused, mut is_repeated) = (Vec::new(), None, false);
    // Claims of rows that are new here, and were written before elsewhere.
    let mut unmatched = None;
    for ((core, claim), answer) in cores.into_iter().zip(claims).zip(answers) {
        match answer {
            Ok(Some(stage)) => {
                unmatched = unmatched.or_else(|| Some((Arc::clone(&core), claim?)));
                prepared.push((core, stage));
            }
            Ok(None) => is_repeated = true,
            Err(error) => refused = Some(error),
        }
    }
    if is_repeated && let Some((core, claim)) = unmatched {
        let next = core.sequence_next(claim.topic, &claim.producer);
        let (producer, topic, sequence) = (claim.producer, claim.topic, claim.sequence);
        refused.get_or_insert(ReplicationError::SequenceGap { producer, topic, sequence, next });
    }
    if refused.is_some() || is_repeated {
        join_all(prepared.iter().map(|(core, stage)| staging::abort(core, *stage))).await;
        return refused.map_or(Ok(false), Err);
    }
    match first.submit(Request::Decide(decider.transaction), CHANGE_BYTES).await {
        Ok(_) => {}
        // Whether the record is there is known at the next start.
        Err(error @ (ReplicationError::Stopped { .. } | ReplicationError::ShuttingDown)) => return Err(error),
        Err(error) => {
            join_all(prepared.iter().map(|(core, stage)| staging::abort(core, *stage))).await;
            return Err(error);
        }
    }
    carry_out(gate, prepared).await.map(|()| true)
}

/// The stage that waits for the decision; `None` when all rows were written before.
async fn prepare(decider: Decider, share: Share) -> Result<Option<StageId>, ReplicationError> {
    let Share { core, mut append } = share;
    let staged = append.staged;
    let (mut parts, bytes) = core.check(std::mem::take(&mut append.parts))?;
    parts.retain(|part| part.batch.num_rows() > 0);
    append.parts = parts;
    let bytes = bytes + append.overhead_bytes() + CHANGE_BYTES;
    let answer = core.submit(Request::Prepare(decider, append), bytes).await;
    match (answer, staged) {
        (Ok(Reply::Staged(stage)), _) => Ok(Some(stage)),
        (Ok(Reply::Appended(_)), _) => Ok(None),
        (Ok(_), _) => Err(core.stopped()),
        (Err(error), _) => Err(error),
    }
}

/// Carries out a decision in every shard at once, as far as readers see.
async fn carry_out(gate: &RwLock<()>, prepared: Vec<(Arc<Core>, StageId)>) -> Result<(), ReplicationError> {
    let mut rest = prepared;
    loop {
        let answers = {
            let _shared = gate.read().await;
            let commits = rest.iter().map(|(core, stage)| core.submit(Request::Commit(*stage), CHANGE_BYTES));
            join_all(commits).await
        };
        let mut without_room = Vec::new();
        for (share, answer) in rest.into_iter().zip(answers) {
            match answer {
                // Carried out before.
                Ok(_) | Err(ReplicationError::NoStage(_)) => {}
                Err(ReplicationError::DiskFull) => without_room.push(share),
                Err(error) => return Err(error),
            }
        }
        if without_room.is_empty() {
            return Ok(());
        }
        rest = without_room;
        tokio::time::sleep(RETRY).await;
    }
}

async fn submit(core: &Arc<Core>, request: Request, failure: &'static str) {
    if let Err(error) = core.submit(request, CHANGE_BYTES).await {
        tracing::debug!(shard = core.id().value(), %error, failure);
    }
}

/// Ends what is prepared as its decider says, and forgets decisions that nobody waits for any more; the last transaction
/// that is still known. `is_whole` when no shard is out of service.
async fn resolve(cores: &[Arc<Core>], is_whole: bool) -> Result<TransactionId, ReplicationError> {
    let kept = join_all(cores.iter().map(|core| core.transactions())).await;
    let decisions: HashMap<ShardId, _> =
        cores.iter().zip(&kept).map(|(core, (_, decisions))| (core.id(), decisions)).collect();
    let mut last = TransactionId::default();
    for (core, (stages, own)) in cores.iter().zip(&kept) {
        last = own.iter().copied().fold(last, TransactionId::max);
        for (stage, decider) in stages {
            let Some(Decider { shard, transaction }) = decider else { continue };
            last = last.max(*transaction);
            let request = match decisions.get(shard) {
                Some(decided) if decided.contains(transaction) => Request::Commit(*stage),
                Some(_) => Request::Abort(*stage),
                None => {
                    tracing::warn!(shard = core.id().value(), decider = shard.value(), "a transaction is in doubt");
                    continue;
                }
            };
            core.submit(request, CHANGE_BYTES).await?;
        }
    }
    if is_whole {
        for (core, (_, decisions)) in cores.iter().zip(&kept) {
            for transaction in decisions {
                core.submit(Request::Forget(*transaction), CHANGE_BYTES).await?;
            }
        }
    }
    Ok(last)
}
