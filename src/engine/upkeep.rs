//! Upkeep of stored events: retention, merging and compaction, decided here and carried out by the shards.
//!
//! One task per node. Each second it looks at topics whose events go by time or size, and at all partitions after a seal;
//! what `storage::upkeep` decides becomes entries of the shard's log. Policies and the clock are read anew each time, so
//! that `ALTER … SET` needs nothing of it. Leaves out the decisions (`storage::upkeep`) and their execution
//! (`replication`, `storage::rewrite`). A crash leaves everything as it was before the last entry.

use crate::engine::{Engine, Result, replication_error};
use crate::env;
use crate::replication::Shard;
use crate::storage::upkeep::decide;
use crate::storage::{CompactionPlan, PartitionFacts, Rewrite, UpkeepPolicy};
use millstream_catalog::Relation;
use millstream_catalog::model::limit::{REWRITE_BYTES_TARGET, REWRITES_MAX};
use millstream_catalog::model::{EntryIndex, Offset, PartitionId, ShardId, TopicId};
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use tokio::task::JoinHandle;

/// Time between looks.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// Looks after which all partitions are looked at, whatever happened: tombstones may be due, a query may have moved on.
const LOOKS_UNTIL_ALL: u32 = 60;
/// Looks after which consumer groups are looked for that nobody uses.
const LOOKS_UNTIL_GROUPS: u32 = 5;
/// As many while a query holds something back: its checkpoints move every few seconds.
const LOOKS_WHILE_HELD: u32 = 3;
/// How long a partition rests whose files could not be written.
const REST: Duration = Duration::from_secs(60);
/// Partitions looked at before others get their turn on the thread.
const PARTITIONS_AT_ONCE: usize = 1_024;

/// The running task.
#[derive(Debug)]
pub(crate) struct Upkeep {
    stop: Arc<AtomicBool>,
    task: JoinHandle<()>,
}

impl Upkeep {
    /// Begins to look after everything that is stored.
    pub(crate) fn start(engine: &Arc<Engine>) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let keeper = Keeper { engine: Arc::clone(engine), stop: Arc::clone(&stop), shards: HashMap::new(), looks: 0 };
        Self { stop, task: env::spawn("upkeep", keeper.run()) }
    }

    /// Ends what it does, between two blocks of a file at the latest. The engine's token must be cancelled before.
    pub(crate) async fn stop(self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Err(error) = self.task.await {
            tracing::debug!(%error, "the upkeep task was already gone");
        }
    }
}

/// What the task remembers.
struct Keeper {
    engine: Arc<Engine>,
    stop: Arc<AtomicBool>,
    shards: HashMap<ShardId, Seen>,
    looks: u32,
}

/// What was seen of a shard at the last look.
#[derive(Default)]
struct Seen {
    sealed: Option<EntryIndex>,
    /// The last entry that replaced or removed segments: a manifest of before still lists their files.
    unlisted: Option<EntryIndex>,
    /// A query holds something back.
    is_held: bool,
    resting: HashMap<(TopicId, PartitionId), Instant>,
}

/// What one look found to do.
#[derive(Default)]
struct Work {
    starts: Vec<(TopicId, PartitionId, Offset)>,
    rewrites: Vec<Rewrite>,
    rewrite_bytes: u64,
    needs_seal: bool,
}

impl Work {
    fn is_full(&self) -> bool {
        self.starts.len() >= REWRITES_MAX
            || self.rewrites.len() >= REWRITES_MAX
            || self.rewrite_bytes >= REWRITE_BYTES_TARGET.value()
    }
}

impl Keeper {
    async fn run(mut self) {
        let shutdown = self.engine.shutdown_token().clone();
        loop {
            tokio::select! {
                () = shutdown.cancelled() => return,
                () = tokio::time::sleep(LOOK_EVERY) => {}
            }
            self.looks += 1;
            let engine = Arc::clone(&self.engine);
            if self.looks.is_multiple_of(LOOKS_UNTIL_GROUPS) {
                let now = engine.clock().now();
                let oldest = now.minus(engine.config.offsets_retention);
                engine.expire_groups(oldest, now).await;
            }
            for shard in engine.replication().shards().iter().filter(|shard| shard.damage().is_none()) {
                if let Err(error) = self.look_after(shard).await
                    && !shutdown.is_cancelled()
                {
                    tracing::warn!(shard = shard.id().value(), %error, "upkeep of stored events will be tried again");
                }
            }
        }
    }

    /// Does what there is to do in one shard.
    async fn look_after(&mut self, shard: &Arc<Shard>) -> Result<()> {
        let sealed = shard.status().sealed;
        let seen = self.shards.entry(shard.id()).or_default();
        let wait = if seen.is_held { LOOKS_WHILE_HELD } else { LOOKS_UNTIL_ALL };
        let mut all = seen.sealed != sealed || self.looks.is_multiple_of(wait);
        if seen.unlisted.is_some() && sealed >= seen.unlisted {
            seen.unlisted = None;
        } else if seen.unlisted.is_some() {
            // No seal has come by itself.
            shard.seal().await.map_err(replication_error)?;
        }
        while !self.stop.load(Ordering::Relaxed) {
            let work = self.find(shard, all).await;
            if work.needs_seal {
                shard.seal().await.map_err(replication_error)?;
            }
            let has_starts = !work.starts.is_empty();
            if has_starts {
                shard.move_starts(work.starts).await.map_err(replication_error)?;
            }
            let rewrites = work.rewrites.len();
            let failed = match rewrites {
                0 => Vec::new(),
                _ => shard.rewrite(work.rewrites, Arc::clone(&self.stop)).await.map_err(replication_error)?,
            };
            let is_done = !has_starts && rewrites == failed.len();
            let seen = self.shards.entry(shard.id()).or_default();
            let now = env::instant();
            seen.resting.extend(failed.into_iter().map(|rewrite| ((rewrite.topic, rewrite.partition), now)));
            if is_done {
                seen.sealed = if all { sealed } else { seen.sealed };
                return Ok(());
            }
            seen.unlisted = shard.status().applied;
            all |= rewrites > 0;
        }
        Ok(())
    }

    /// What the partitions of a shard need: `all` of them, or those whose events go by time or size.
    async fn find(&mut self, shard: &Shard, all: bool) -> Work {
        let mut work = Work::default();
        let catalog = self.engine.catalog();
        let partitions = shard.partitions();
        let mut looked = 0;
        let seen = self.shards.entry(shard.id()).or_default();
        seen.resting.retain(|_, since| env::elapsed(*since) < REST);
        seen.is_held &= !all;
        for relation in catalog.relations().filter(|relation| relation.shard == shard.id()) {
            let policy = policy_of(relation);
            if !all && policy.retention.is_none() && policy.retention_bytes.is_none() {
                continue;
            }
            for id in relation.partitions() {
                let Some(partition) = partitions.get(relation.id, id) else { continue };
                self.look_at(shard, relation, (policy, id), &PartitionFacts::of(&partition.view()), &mut work);
                looked += 1;
                if work.is_full() {
                    return work;
                }
                if looked % PARTITIONS_AT_ONCE == 0 {
                    tokio::task::yield_now().await;
                }
            }
        }
        work
    }

    fn look_at(
        &mut self,
        shard: &Shard,
        relation: &Relation,
        (policy, id): (UpkeepPolicy, PartitionId),
        facts: &PartitionFacts,
        work: &mut Work,
    ) {
        // Statements that run read a table as it was when they began.
        let read_at = || {
            let oldest = self.engine.tables().pins.of(shard.id()).into_iter().next()?;
            let view = shard.partitions().get(relation.id, id)?.view();
            // Where that cannot be told now, nothing goes.
            Some(view.offset_end_at(oldest).unwrap_or(view.offset_start()))
        };
        let hold = match policy == UpkeepPolicy::default() {
            true => None,
            false => shard.hold(relation.id, id).into_iter().chain(read_at()).min(),
        };
        let now = self.engine.clock().now();
        let free = decide(facts, &policy, Offset::new(u64::MAX), now);
        let actions = hold.map_or_else(|| free.clone(), |hold| decide(facts, &policy, hold, now));
        self.shards.entry(shard.id()).or_default().is_held |= actions != free;
        work.needs_seal |= actions.needs_seal;
        work.starts.extend(actions.offset_start.map(|offset| (relation.id, id, offset)));
        let Some(range) = actions.rewrite else { return };
        let seen = self.shards.entry(shard.id()).or_default();
        let place = (relation.id, id);
        // A second run in a partition waits for the first: it changes what the second would be decided on.
        if seen.resting.contains_key(&place) || actions.offset_start.is_some() {
            return;
        }
        let key = relation.identity().into_iter().filter_map(|column| u32::try_from(column).ok()).collect();
        work.rewrite_bytes += range.bytes.value();
        work.rewrites.push(Rewrite {
            topic: relation.id,
            partition: id,
            offsets: range.offsets,
            number: facts.rewrites() + 1,
            compression: relation.options.compression,
            compaction: range.tombstones_upto.map(|tombstones_upto| CompactionPlan { key, tombstones_upto, now }),
        });
    }
}

/// What the options of a stream or table ask for.
fn policy_of(relation: &Relation) -> UpkeepPolicy {
    let (cleanup, policy) = (&relation.options.cleanup, relation.cleanup_policy());
    let has_key = !relation.identity().is_empty();
    UpkeepPolicy {
        retention: cleanup.retention.filter(|_| policy.deletes()),
        retention_bytes: cleanup.retention_bytes.filter(|_| policy.deletes()),
        compaction: (policy.compacts() && has_key).then(|| cleanup.delete_retention()),
    }
}
