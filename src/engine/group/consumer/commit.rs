//! When a member's offsets are committed, and what becomes of a commit.
//!
//! Owns that there is one at a time, and what is lost where another has the partition by now. Leaves out what there is to
//! commit (`progress`), and transactions, which commit with what they write. A crash forgets what was not committed: it is
//! read again.

use super::{Consumer, HELD_WAIT};
use crate::engine::group::TopicPartition;
use crate::engine::{Result, replication_error};
use crate::env;
use crate::replication::{Append, GroupCommit, ReplicationError};
use millstream_catalog::Relation;
use millstream_catalog::model::Durability;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::oneshot;

impl Consumer {
    /// When what the client has taken is to be committed, at most `every` so often; `None` when that is nothing.
    pub(crate) fn commit_at(&self, every: Duration) -> Option<Instant> {
        let progress = self.progress.lock();
        let is_dirty = progress.held.values().any(|held| held.asked != held.committed);
        let is_due = self.joining.auto_commit && is_dirty && progress.begun.is_none();
        progress.committed_at.map_or_else(|| Some(env::instant()), |last| last.checked_add(every)).filter(|_| is_due)
    }

    /// How often it is committed at most, if the member says so.
    pub(crate) fn commit_interval(&self) -> Option<Duration> {
        self.joining.commit_interval
    }

    /// Commits at `moment`, though the client asks for nothing until then; at once when others wait for a partition.
    pub(crate) fn commit_later(self: &Arc<Self>, moment: Instant) {
        let mut progress = self.progress.lock();
        if progress.later.is_some() {
            return;
        }
        let (later, sooner) = oneshot::channel();
        progress.later = Some(later);
        let consumer = Arc::downgrade(self);
        let _task = env::spawn("commit-offsets", async move {
            tokio::select! {
                () = tokio::time::sleep_until(moment.into()) => {}
                _ = sooner => {}
            }
            let Some(consumer) = consumer.upgrade() else { return };
            consumer.progress.lock().later = None;
            match consumer.commit_interval().filter(|_| consumer.is_in_transaction()) {
                // The transaction commits what it has, or gives it back: then there is the rest.
                Some(every) => consumer.commit_later(env::instant() + every),
                None => consumer.commit_rest().await,
            }
        });
    }

    /// Commits what the client has taken, for nobody who could be told that it failed.
    pub(crate) async fn commit_rest(&self) {
        if self.commit_at(Duration::ZERO).is_some()
            && let Err(error) = self.commit().await
        {
            tracing::debug!(%error, "offsets of rows that the client has taken are not committed");
        }
    }

    /// Offsets are as durable as the events before them, which they cannot outlive: both are in one log.
    fn durability(&self) -> Durability {
        let catalog = self.engine.catalog();
        let of = |topic: &Arc<Relation>| {
            catalog.relation_by_id(topic.id).map_or(Durability::Sync, |topic| topic.options.durability)
        };
        let topics = self.joining.topics.iter().map(of);
        self.joining.durability.unwrap_or_else(|| topics.fold(Durability::Async, Durability::and))
    }

    /// Commits what the client has taken, if that is done for it.
    ///
    /// # Errors
    /// When the log cannot be written.
    pub(crate) async fn commit(&self) -> Result<()> {
        match self.joining.auto_commit {
            true => self.commit_now(false).await,
            false => Ok(()),
        }
    }

    /// Commits all that was handed over, because the client says so.
    ///
    /// # Errors
    /// SE004 when the member was removed, or another has one of its partitions; when the log cannot be written.
    pub(crate) async fn commit_handed(&self) -> Result<()> {
        if self.seat().is_some_and(|seat| !seat.is_current()) {
            // It is told now, and not again when it is back.
            let mut progress = self.progress.lock();
            progress.clear(self.joining.auto_commit);
            progress.has_uncommitted = false;
            drop(progress);
            return Err(self.removed());
        }
        self.check_uncommitted()?;
        self.commit_now(true).await
    }

    /// Commits what the client has taken, or `is_all` that was handed over. What is of others by now is left out, unless it
    /// was to be all.
    async fn commit_now(&self, is_all: bool) -> Result<()> {
        let _one = self.committing.lock().await;
        loop {
            let commits = {
                let mut progress = self.progress.lock();
                progress.committed_at = Some(env::instant());
                progress.commits(&self.joining.group, is_all)
            };
            if commits.is_empty() {
                self.leave_if_done();
                return Ok(());
            }
            let now = self.engine.clock().now();
            let durability = self.durability();
            let append = Append { commits: commits.clone(), now, durability, ..Append::default() };
            match self.joining.shard.append(append).await {
                Ok(_) => {
                    self.progress.lock().committed(&commits);
                    if let Some(seat) = self.seat() {
                        self.release(&seat);
                    }
                    self.leave_if_done();
                    return Ok(());
                }
                Err(ReplicationError::Fenced { topic, partition, .. }) => {
                    self.lose((topic, partition), &commits);
                    if is_all {
                        return Err(self.removed());
                    }
                }
                Err(ReplicationError::GroupHeld(_)) => tokio::time::sleep(HELD_WAIT).await,
                // Dropped: the subscription says so.
                Err(ReplicationError::NoTopic(topic) | ReplicationError::NoPartition(topic, _)) => {
                    self.progress.lock().held.retain(|(of, _), _| *of != topic);
                }
                Err(error) => return Err(replication_error(error)),
            }
        }
    }

    /// Somebody else took a partition, or its offset was reset: it is taken anew, if it is still the member's, and was not
    /// since these commits were made.
    fn lose(&self, place: TopicPartition, commits: &[GroupCommit]) {
        let mut progress = self.progress.lock();
        let epoch = commits.iter().find(|commit| (commit.topic, commit.partition) == place).and_then(|of| of.epoch);
        if progress.held.get(&place).is_none_or(|held| Some(held.epoch) != epoch) {
            return;
        }
        progress.held.remove(&place);
        progress.forget(place);
        progress.begun.iter_mut().for_each(|begun| begun.has_lost = true);
        progress.void();
        drop(progress);
        if let Some(seat) = self.seat() {
            seat.release([place]);
        }
    }
}
