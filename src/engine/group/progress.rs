//! A member's progress, as pure state: by partition what was read, handed over, taken by the client, and committed.
//!
//! Owns the order of these, what a transaction takes back, and when a partition can be given up. Leaves out the log, the
//! coordinator, and who asks (`consumer`).

use super::TopicPartition;
use crate::replication::{GroupCommit, GroupPosition};
use millstream_catalog::model::{GroupEpoch, GroupName, Offset, RowCount};
use millstream_sql::stream::RowOrigins;
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Instant;
use tokio::sync::{Notify, oneshot};

/// How far the member is in a partition. `committed <= asked <= handed <= read`, but for a commit by others.
#[derive(Debug, Clone, Copy)]
pub(super) struct Held {
    pub(super) epoch: GroupEpoch,
    /// Up to here no row was handed over that is not committed.
    pub(super) clean: GroupPosition,
    /// The next event to read.
    pub(super) read: Offset,
    /// Up to here rows were handed over.
    pub(super) handed: GroupPosition,
    /// Up to here the client has taken them.
    pub(super) asked: GroupPosition,
    /// Up to here that is in the log.
    pub(super) committed: GroupPosition,
    /// It is to be given up.
    pub(super) is_revoked: bool,
}

impl Held {
    /// Whether the client has taken all rows it was handed, and that is committed if it is to be.
    fn is_taken(&self, auto_commit: bool) -> bool {
        self.handed == self.asked && (self.asked == self.committed || !auto_commit)
    }

    /// Whether rows were handed over that are not committed.
    fn is_uncommitted(&self) -> bool {
        self.handed > self.clean
    }
}

/// Rows that were given to whoever delivers them, all of one partition.
pub(super) struct Mark {
    pub(super) place: TopicPartition,
    /// The first of them among those of `origins`.
    pub(super) start: usize,
    pub(super) rows: usize,
    /// The position after all of them.
    pub(super) after: GroupPosition,
    pub(super) origins: RowOrigins,
}

/// Where `row` begins: its event, and how many rows that has before it.
pub(crate) fn position_of(origins: &RowOrigins, row: usize) -> Option<GroupPosition> {
    let offset = origins.offset(row)?;
    let rows = (0..row).rev().take_while(|before| origins.offset(*before) == Some(offset)).count();
    Some(GroupPosition { offset, rows: u32::try_from(rows).unwrap_or(u32::MAX) })
}

/// Where a transaction began that rows were fetched in.
pub(super) struct Begun {
    pub(super) handed: BTreeMap<TopicPartition, GroupPosition>,
    pub(super) rows: u64,
    /// A partition was lost meanwhile: what was fetched of it is not the transaction's to commit.
    pub(super) has_lost: bool,
}

#[derive(Default)]
pub(super) struct Progress {
    /// Each in a box: most members have few, and a node of the map has room for eleven.
    pub(super) held: BTreeMap<TopicPartition, Box<Held>>,
    pub(super) marks: VecDeque<Mark>,
    /// Rows of the first mark that were handed over.
    pub(super) of_first: usize,
    /// Rows handed over in total.
    pub(super) rows: u64,
    pub(super) begun: Option<Begun>,
    /// The client wants no more.
    pub(super) is_closed: bool,
    /// Partitions went with rows that the client is to commit itself, before it did: it is told when it commits.
    pub(super) has_uncommitted: bool,
    /// Whether the subscription reads what it was last told.
    pub(super) is_reading: bool,
    /// Counts how often rows that were given became void.
    pub(super) era: u64,
    /// Counts how often partitions were taken.
    pub(super) taken: u64,
    /// Rows handed over when the client last asked.
    pub(super) rows_asked: u64,
    /// Where reading goes on next, for each partition in turn.
    pub(super) turn: Option<TopicPartition>,
    pub(super) committed_at: Option<Instant>,
    /// Of a task that commits later: dropped, it commits at once.
    pub(super) later: Option<oneshot::Sender<()>>,
    /// Told when what is to be read changed.
    pub(super) stirred: Arc<Notify>,
}

impl Progress {
    /// Every partition.
    pub(super) fn each(&self) -> impl Iterator<Item = (&TopicPartition, &Held)> {
        self.held.iter().map(|(place, held)| (place, &**held))
    }

    /// Whether so many rows were given and not handed over.
    pub(super) fn has_given(&self, rows: usize) -> bool {
        let mut given = 0;
        self.marks.iter().any(|mark| {
            given += mark.rows;
            given - self.of_first >= rows
        }) || rows == 0
    }

    /// Rows go to the client; false when there are not as many, as those that were given are void.
    pub(super) fn hand_over(&mut self, mut rows: usize, is_taken: bool) -> bool {
        if !self.has_given(rows) {
            return false;
        }
        self.rows += rows as u64;
        while let Some(first) = self.marks.front() {
            let left = first.rows - self.of_first;
            if rows < left {
                self.of_first += rows;
                let (place, next) = (first.place, position_of(&first.origins, first.start + self.of_first));
                if let Some(next) = next {
                    self.advance(place, next, is_taken, true);
                }
                return true;
            }
            rows -= left;
            let (place, after, has_rows) = (first.place, first.after, first.rows > 0);
            self.of_first = 0;
            self.marks.pop_front();
            self.advance(place, after, is_taken, has_rows);
        }
        true
    }

    fn advance(&mut self, place: TopicPartition, to: GroupPosition, is_taken: bool, has_rows: bool) {
        let in_transaction = self.begun.is_some();
        if let Some(held) = self.held.get_mut(&place) {
            if !has_rows && !held.is_uncommitted() {
                held.clean = held.clean.max(to);
            }
            held.handed = held.handed.max(to);
            if is_taken && !in_transaction {
                held.asked = held.handed;
            }
        }
    }

    /// Whether a partition that is to be given up has to wait for the client: until then nobody else reads it.
    pub(super) fn must_keep(&self, held: &Held) -> bool {
        held.handed != held.asked || self.is_in_transaction(held)
    }

    /// Whether a transaction may have rows of it to commit, or to give back.
    fn is_in_transaction(&self, held: &Held) -> bool {
        self.begun.is_some() && held.handed != held.committed
    }

    /// Whether `limit` rows were handed over, and nothing brings back any.
    pub(super) fn is_spent(&self, limit: RowCount) -> bool {
        self.begun.is_none() && self.rows >= limit.value() && self.each().all(|(_, held)| held.handed == held.committed)
    }

    /// Forgets every partition, and says which they were.
    pub(super) fn clear(&mut self, auto_commit: bool) -> Vec<TopicPartition> {
        self.has_uncommitted |= !auto_commit && self.each().any(|(_, held)| held.is_uncommitted());
        let held = std::mem::take(&mut self.held);
        self.void();
        held.into_keys().collect()
    }

    /// Whether a transaction has rows to commit, or to give back.
    pub(super) fn is_transaction_waiting(&self) -> bool {
        self.held.values().any(|held| self.is_in_transaction(held))
    }

    /// A partition is read by others, or from elsewhere: where it was when a transaction began says nothing.
    pub(super) fn forget(&mut self, place: TopicPartition) {
        if let Some(begun) = &mut self.begun {
            begun.handed.remove(&place);
        }
    }

    /// Takes back what was given and not handed over: it is read again.
    pub(super) fn void(&mut self) {
        self.marks.clear();
        self.of_first = 0;
        self.era += 1;
        self.held.values_mut().for_each(|held| held.read = held.handed.offset);
        self.stirred.notify_one();
    }

    /// Takes back what was handed over in a transaction too.
    pub(super) fn rewind(&mut self) {
        let Some(begun) = self.begun.take() else { return };
        for (place, held) in &mut self.held {
            let to = begun.handed.get(place).copied().unwrap_or(held.committed);
            (held.handed, held.asked) = (to, held.asked.min(to));
        }
        self.rows = begun.rows;
        self.void();
    }

    /// What the client has taken, or was handed over if `is_all`, and is not committed.
    pub(super) fn commits(&self, group: &GroupName, is_all: bool) -> Vec<GroupCommit> {
        let commit = |((topic, partition), held): (&TopicPartition, &Held)| {
            let position = if is_all { held.handed } else { held.asked };
            let (group, topic, partition, epoch) = (group.clone(), *topic, *partition, Some(held.epoch));
            (position != held.committed).then_some(GroupCommit { group, topic, partition, epoch, position })
        };
        self.each().filter_map(commit).collect()
    }

    /// Commits are in the log.
    pub(super) fn committed(&mut self, commits: &[GroupCommit]) {
        for commit in commits {
            if let Some(held) = self.held.get_mut(&(commit.topic, commit.partition))
                && Some(held.epoch) == commit.epoch
            {
                held.committed = commit.position;
                held.clean = held.clean.max(commit.position);
                held.asked = held.asked.max(commit.position);
            }
        }
    }

    /// Partitions are to be given up, beside those that were before; those that can be now, unless just now some is read.
    pub(super) fn let_go(&mut self, places: &[TopicPartition], auto_commit: bool) -> Vec<TopicPartition> {
        for place in places {
            if let Some(held) = self.held.get_mut(place) {
                held.is_revoked = true;
            }
        }
        // Rows that the client has not seen are read again, by whoever reads then.
        let is_unseen = |mark: &Mark| {
            let held = self.held.get(&mark.place);
            let is_free = |held: &Held| held.is_revoked && held.is_taken(auto_commit) && !self.is_in_transaction(held);
            held.is_some_and(|held| is_free(held))
        };
        if !self.is_reading && self.marks.iter().any(is_unseen) {
            self.void();
        }
        self.released(auto_commit)
    }

    /// Partitions that can be given up now.
    fn released(&mut self, auto_commit: bool) -> Vec<TopicPartition> {
        // Others wait for no more than a commit.
        let is_taken = |held: &Held| held.is_revoked && held.handed == held.asked && held.asked != held.committed;
        if self.begun.is_none() && self.each().any(|(_, held)| is_taken(held)) {
            self.later = None;
        }
        // What is read just now would be given by two.
        if self.is_reading {
            return Vec::new();
        }
        let has_rows = |place: &TopicPartition| self.marks.iter().any(|mark| mark.place == *place);
        let is_taken = |held: &Held| held.is_taken(auto_commit) && !self.is_in_transaction(held);
        let is_free = |held: &Held| held.is_revoked && held.read == held.handed.offset && is_taken(held);
        let free: Vec<TopicPartition> = self
            .held
            .iter()
            .filter(|(place, held)| is_free(held) && !has_rows(place))
            .map(|(place, _)| *place)
            .collect();
        for place in &free {
            let held = self.held.remove(place);
            self.has_uncommitted |= held.is_some_and(|held| held.is_uncommitted());
        }
        free
    }
}

/// Where a member was when a savepoint was set.
#[derive(Debug, Clone)]
pub(crate) struct ConsumerMark {
    pub(super) handed: BTreeMap<TopicPartition, (GroupEpoch, GroupPosition)>,
    pub(super) rows: u64,
}
