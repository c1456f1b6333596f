//! What a transaction fetched for consumer groups: it is committed with the transaction, or read again.
//!
//! Owns giving back what is not committed, however the transaction ends. Leaves out when it ends (`transaction`).

use super::consumer::Consumer;
use super::progress::ConsumerMark;
use crate::engine::Result;
use crate::replication::GroupCommit;
use millstream_catalog::model::{GroupName, ShardId};
use std::collections::BTreeMap;
use std::sync::Arc;

/// Members whose rows were fetched, and offsets that were committed by hand.
#[derive(Debug, Default)]
pub(crate) struct Fetched {
    consumers: Vec<Arc<Consumer>>,
    commits: Vec<(ShardId, GroupCommit)>,
}

/// What of it there was at a savepoint.
#[derive(Debug, Default)]
pub(crate) struct FetchedMark {
    consumers: Vec<ConsumerMark>,
    commits: usize,
}

impl Drop for Fetched {
    fn drop(&mut self) {
        self.consumers.drain(..).for_each(|consumer| consumer.end(None));
    }
}

impl Fetched {
    /// Whether it has rows of a member of this group whose client wants no more.
    pub(crate) fn has_left(&self, group: &GroupName) -> bool {
        self.consumers.iter().any(|consumer| consumer.is_left_in(group))
    }

    /// Whether there is nothing to commit.
    pub(crate) fn is_empty(&self) -> bool {
        self.consumers.is_empty() && self.commits.is_empty()
    }

    /// Rows of a member are fetched from now on.
    pub(crate) fn add(&mut self, consumer: &Arc<Consumer>) {
        if !self.consumers.iter().any(|known| Arc::ptr_eq(known, consumer)) {
            consumer.begin();
            self.consumers.push(Arc::clone(consumer));
        }
    }

    /// An offset is committed by hand; of the same partition the last one counts.
    pub(crate) fn hold(&mut self, shard: ShardId, commit: GroupCommit) {
        self.commits.push((shard, commit));
    }

    /// For a savepoint.
    pub(crate) fn mark(&self) -> FetchedMark {
        let consumers = self.consumers.iter().map(|consumer| consumer.mark()).collect();
        FetchedMark { consumers, commits: self.commits.len() }
    }

    /// Goes back to a savepoint.
    pub(crate) fn back_to(&mut self, mark: &FetchedMark) {
        self.commits.truncate(mark.commits);
        self.consumers.drain(mark.consumers.len().min(self.consumers.len())..).for_each(|consumer| consumer.end(None));
        self.consumers.iter().zip(&mark.consumers).for_each(|(consumer, mark)| consumer.back_to(mark));
    }

    /// How far groups have come, by shard.
    ///
    /// # Errors
    /// SE004 when a member was removed from its group.
    pub(crate) fn commits(&self) -> Result<BTreeMap<ShardId, Vec<GroupCommit>>> {
        let mut all: BTreeMap<ShardId, Vec<GroupCommit>> = BTreeMap::new();
        for consumer in &self.consumers {
            let (shard, commits) = consumer.pending()?;
            all.entry(shard).or_default().extend(commits);
        }
        for (shard, commit) in &self.commits {
            all.entry(*shard).or_default().push(commit.clone());
        }
        Ok(all)
    }

    /// The transaction is in the log.
    pub(crate) fn committed(mut self, commits: &BTreeMap<ShardId, Vec<GroupCommit>>) {
        for consumer in self.consumers.drain(..) {
            let own = commits.get(&consumer.shard()).map_or(&[][..], Vec::as_slice);
            consumer.end(Some(own));
        }
    }

    /// The commit failed, or it is not known whether: the log says where the groups are.
    pub(crate) fn doubt(&self) {
        self.consumers.iter().for_each(|consumer| consumer.give_up());
    }
}
