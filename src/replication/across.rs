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
use super::types::{Append, Decider};
use crate::env;
use futures::future::join_all;
use millstream_catalog::model::{EntryIndex, ShardId, StageId, TransactionId};
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::sync::{RwLock, oneshot};

/// How long until a decision is carried out anew that found no room.
const RETRY: Duration = Duration::from_millis(200);

/// The last applied entry of each shard, taken between commits.
pub type Cuts = HashMap<ShardId, EntryIndex>;

/// Bits of a transaction's number that count those of one life of its decider; the term is in the others, so that no
/// number comes again while a shard that still knows it is out of service.
const COUNT_BITS: u32 = 40;

/// A prepared transaction in one shard.
type Prepared = (Arc<Core>, StageId);

/// What commits over the shards of a node.
#[derive(Debug, Default)]
pub(crate) struct Across {
    /// Transactions since the start.
    count: AtomicU64,
    /// Held by each transaction while its shards carry it out, together with others; alone by whoever takes cuts.
    gate: Arc<RwLock<()>>,
}

/// What one shard has of a transaction.
struct Share {
    core: Arc<Core>,
    append: Append,
}

impl Across {
    /// Carries out or gives up what a crash left prepared. No transaction may have begun. `is_whole` when no shard is out
    /// of service. On a full disk that goes on after the start.
    pub(crate) async fn start(cores: &[Arc<Core>], is_whole: bool) -> Self {
        let across = Self::default();
        let ending = resolve(Arc::clone(&across.gate), cores, is_whole).await;
        let mut ending = env::spawn("resolve", ending);
        while cores.iter().all(|core| core.has_room_to_free()) {
            if tokio::time::timeout(RETRY, &mut ending).await.is_ok() {
                break;
            }
        }
        across
    }

    /// Commits appends to several shards, all or none. When it returns, all are durable, and visible to every later read.
    ///
    /// # Errors
    /// Of a shard that refuses its share; nothing was written then, but for offsets beside rows that were all stored before,
    /// which are recorded shard by shard. With `Stopped`, `Storage` and `ShuttingDown` it is not known.
    ///
    /// # Cancellation
    /// The transaction goes on.
    pub(crate) async fn append(&self, shares: Vec<(Arc<Core>, Append)>) -> Result<(), ReplicationError> {
        let Some((first, _)) = shares.first() else { return Ok(()) };
        let (stopped, first) = (Arc::clone(first), Arc::clone(first));
        let count = self.count.fetch_add(1, Ordering::Relaxed) + 1;
        let transaction = TransactionId::new(first.term().value() << COUNT_BITS | count);
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
                forget(&first, transaction).await;
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
    let offsets: Vec<_> = shares.iter().filter_map(offsets_of).collect();
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
        abort(prepared).await;
        if let Some(refused) = refused {
            return Err(refused);
        }
        // The rows are there, with these offsets or without.
        for (core, append) in offsets {
            let bytes = append.overhead_bytes() + CHANGE_BYTES;
            core.submit(Request::Append(append), bytes).await?;
        }
        return Ok(false);
    }
    finish(gate, first, decider.transaction, prepared).await.map(|()| true)
}

/// How far groups come in a shard, alone.
fn offsets_of(share: &Share) -> Option<(Arc<Core>, Append)> {
    let Append { commits, now, .. } = &share.append;
    let append = Append { commits: commits.clone(), now: *now, ..Append::default() };
    (!commits.is_empty()).then(|| (Arc::clone(&share.core), append))
}

/// The stage that waits for the decision; `None` when all rows were written before.
async fn prepare(decider: Decider, share: Share) -> Result<Option<StageId>, ReplicationError> {
    let Share { core, mut append } = share;
    let (mut parts, bytes) = core.check(std::mem::take(&mut append.parts))?;
    parts.retain(|part| part.batch.num_rows() > 0);
    append.parts = parts;
    let bytes = bytes + append.overhead_bytes() + CHANGE_BYTES;
    match core.submit(Request::Prepare(decider, append), bytes).await? {
        Reply::Staged(stage) => Ok(Some(stage)),
        Reply::Appended(_) => Ok(None),
        Reply::Done(_) | Reply::Catalog(_) | Reply::Taken(_) => Err(core.stopped()),
    }
}

/// Records that a transaction commits, and carries it out.
///
/// # Errors
/// When it is not recorded, which ends it; or it is not known whether, which the next start finds: until then its shares
/// stay prepared. And as [`carry_out`].
pub(super) async fn finish(
    gate: &RwLock<()>,
    first: &Core,
    transaction: TransactionId,
    prepared: Vec<Prepared>,
) -> Result<(), ReplicationError> {
    if let Err(error) = first.submit(Request::Decide(transaction), CHANGE_BYTES).await {
        if error.is_unwritten() {
            abort(prepared).await;
        }
        return Err(error);
    }
    carry_out(gate, prepared).await
}

/// Carries out a decision in every shard at once, as far as readers see.
///
/// # Errors
/// Of a shard that cannot: its next start does. The others have carried it out.
async fn carry_out(gate: &RwLock<()>, prepared: Vec<Prepared>) -> Result<(), ReplicationError> {
    let (mut rest, mut failed) = (prepared, None);
    loop {
        // Before the gate: statements wait for whoever holds it.
        while !rest.iter().all(|(core, _)| core.has_room_to_free()) {
            tokio::time::sleep(RETRY).await;
        }
        let answers = {
            let _shared = gate.read().await;
            let commits = rest.iter().map(|(core, stage)| core.submit(Request::Commit(*stage), CHANGE_BYTES));
            join_all(commits).await
        };
        let mut again = Vec::new();
        for (share, answer) in rest.into_iter().zip(answers) {
            match answer {
                Ok(_) => {}
                Err(error) if error.is_retryable() => again.push(share),
                Err(ReplicationError::NoStage(_)) => {
                    let reason = "its share of a transaction that commits is gone".to_owned();
                    failed = Some(ReplicationError::Stopped { shard: share.0.id(), reason });
                }
                Err(error) => failed = Some(error),
            }
        }
        if again.is_empty() {
            return failed.map_or(Ok(()), Err);
        }
        rest = again;
        tokio::time::sleep(RETRY).await;
    }
}

/// Gives up what is prepared of a transaction that does not commit; on a full disk as soon as there is room for that.
async fn abort(prepared: Vec<Prepared>) {
    join_all(prepared.into_iter().map(|(core, stage)| abort_share(core, stage))).await;
}

async fn abort_share(core: Arc<Core>, stage: StageId) {
    while let Err(error) = core.submit(Request::Abort(stage), CHANGE_BYTES).await {
        if !error.is_retryable() {
            tracing::debug!(shard = core.id().value(), %error, "a transaction was not given up before the end");
            return;
        }
        tokio::time::sleep(RETRY).await;
    }
}

/// Nobody waits for a decision any more.
async fn forget(core: &Core, transaction: TransactionId) {
    if let Err(error) = core.submit(Request::Forget(transaction), CHANGE_BYTES).await {
        tracing::debug!(shard = core.id().value(), %error, "a decision was not forgotten");
    }
}

/// What ends all that is prepared, as its decider says, and forgets decisions that nobody waits for any more.
async fn resolve(
    gate: Arc<RwLock<()>>,
    cores: &[Arc<Core>],
    mut is_whole: bool,
) -> impl Future<Output = ()> + Send + 'static {
    let mut kept = Vec::new();
    for core in cores {
        match core.transactions().await {
            Some(transactions) => kept.push((Arc::clone(core), transactions)),
            // It ended since its start.
            None => is_whole = false,
        }
    }
    let decisions: HashMap<ShardId, _> = kept.iter().map(|(core, (_, decisions))| (core.id(), decisions)).collect();
    let (mut decided, mut undecided) = (BTreeMap::<_, Vec<Prepared>>::new(), Vec::new());
    for (core, (stages, _)) in &kept {
        for (stage, decider) in stages {
            let Some(Decider { shard, transaction }) = decider else { continue };
            let prepared = (Arc::clone(core), *stage);
            match decisions.get(shard) {
                Some(of) if of.contains(transaction) => {
                    decided.entry((*shard, *transaction)).or_default().push(prepared)
                }
                Some(_) => undecided.push(prepared),
                None => {
                    tracing::warn!(shard = core.id().value(), decider = shard.value(), "a transaction is in doubt");
                }
            }
        }
    }
    async move {
        abort(undecided).await;
        for committed in join_all(decided.into_values().map(|prepared| carry_out(&gate, prepared))).await {
            if let Err(error) = committed {
                tracing::warn!(%error, "a transaction that commits waits for a shard that is out of service");
                is_whole = false;
            }
        }
        for (core, (_, decisions)) in kept.iter().filter(|_| is_whole) {
            for transaction in decisions {
                forget(core, *transaction).await;
            }
        }
    }
}
