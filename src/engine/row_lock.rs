//! Locks on rows that statements change, from reading them to their commit.
//!
//! They keep two statements from computing new forms of one row from the same old one: the second waits, reads again and
//! goes on, as in PostgreSQL. They are for progress, not for correctness: whether a row changed since it was read is decided
//! when the write is applied. Plain INSERTs take none. Held in memory, by owners: a statement, or a transaction. Leaves out
//! who reads and writes (`change`). A crash forgets them with the statements that held them.

use crate::engine::Result;
use millstream_catalog::model::limit::ROW_LOCKS_MAX;
use millstream_catalog::model::{SqlState, TopicId};
use millstream_sql::SqlError;
use parking_lot::Mutex;
use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use tokio_util::sync::CancellationToken;

/// The locks of a node.
#[derive(Debug, Default)]
pub(crate) struct RowLocks {
    state: Mutex<State>,
    /// Tables whose plain INSERTs are held back; nearly always none.
    barriers: AtomicUsize,
}

#[derive(Debug, Default)]
struct State {
    owner_last: u64,
    tables: HashMap<TopicId, TableLocks>,
    owners: HashMap<u64, Owner>,
    barriers: HashMap<TopicId, (usize, CancellationToken)>,
}

#[derive(Debug, Default)]
struct TableLocks {
    /// Hash of a key, and who has it: two keys of one hash share their lock.
    rows: HashMap<u64, u64>,
    /// Who has the whole table.
    whole: Option<u64>,
    /// How many rows each owner has.
    counts: HashMap<u64, usize>,
    /// Who waits for the whole table: owners that have no rows of it come later.
    wanted: Option<u64>,
}

#[derive(Debug)]
struct Owner {
    released: CancellationToken,
    waits_for: Option<u64>,
}

/// The locks of one statement or transaction, until it is dropped.
#[derive(Debug)]
pub(crate) struct LockOwner {
    locks: Arc<RowLocks>,
    id: u64,
    held: Mutex<HashMap<TopicId, Vec<u64>>>,
}

impl RowLocks {
    /// An owner without locks.
    pub(crate) fn owner(self: &Arc<Self>) -> Arc<LockOwner> {
        let mut state = self.state.lock();
        state.owner_last += 1;
        let id = state.owner_last;
        state.owners.insert(id, Owner { released: CancellationToken::new(), waits_for: None });
        Arc::new(LockOwner { locks: Arc::clone(self), id, held: Mutex::default() })
    }

    /// Holds plain INSERTs into `topic` back until the barrier is dropped.
    pub(crate) fn barrier(self: &Arc<Self>, topic: TopicId) -> Barrier {
        self.state.lock().barriers.entry(topic).or_default().0 += 1;
        self.barriers.fetch_add(1, Ordering::Release);
        Barrier { locks: Arc::clone(self), topic }
    }

    /// Whether INSERTs into `topic` are held back now.
    pub(crate) fn is_closed(&self, topic: TopicId) -> bool {
        self.barriers.load(Ordering::Acquire) > 0 && self.state.lock().barriers.contains_key(&topic)
    }

    /// Waits while INSERTs into one of `topics` are held back.
    pub(crate) async fn pass(&self, topics: impl Iterator<Item = TopicId> + Clone) {
        while self.barriers.load(Ordering::Acquire) > 0 {
            let waiting = {
                let state = self.state.lock();
                topics.clone().find_map(|topic| state.barriers.get(&topic).map(|(_, lifted)| lifted.clone()))
            };
            match waiting {
                Some(lifted) => lifted.cancelled().await,
                None => return,
            }
        }
    }
}

impl State {
    /// Takes all the locks, or none: the rows that `owner` did not have, or who has one of them.
    fn take(&mut self, owner: u64, topic: TopicId, rows: &[u64]) -> std::result::Result<Vec<u64>, u64> {
        let table = self.tables.entry(topic).or_default();
        if let Some(other) = table.whole {
            return if other == owner { Ok(Vec::new()) } else { Err(other) };
        }
        let has = table.counts.get(&owner).copied().unwrap_or(0);
        if let Some(other) = table.wanted.filter(|other| *other != owner && has == 0) {
            return Err(other);
        }
        let new: HashSet<u64> = rows.iter().copied().filter(|row| table.rows.get(row) != Some(&owner)).collect();
        if has + new.len() > ROW_LOCKS_MAX {
            if let Some(other) = table.counts.keys().find(|other| **other != owner) {
                table.wanted.get_or_insert(owner);
                return Err(*other);
            }
            table.whole = Some(owner);
            table.counts.entry(owner).or_default();
            return Ok(Vec::new());
        }
        if let Some(other) = new.iter().find_map(|row| table.rows.get(row)) {
            return Err(*other);
        }
        table.rows.extend(new.iter().map(|row| (*row, owner)));
        *table.counts.entry(owner).or_default() += new.len();
        Ok(new.into_iter().collect())
    }

    /// Lets those look again who wait for `owner`.
    fn wake(&mut self, owner: u64) {
        for other in self.owners.values_mut().filter(|other| other.waits_for == Some(owner)) {
            other.waits_for = None;
        }
        if let Some(own) = self.owners.get_mut(&owner) {
            std::mem::take(&mut own.released).cancel();
        }
    }

    /// Whether `owner` would wait for itself if it waited for `other`.
    fn closes_circle(&self, owner: u64, mut other: u64) -> bool {
        while let Some(next) = self.owners.get(&other).and_then(|other| other.waits_for) {
            if next == owner {
                return true;
            }
            other = next;
        }
        false
    }
}

impl LockOwner {
    /// Locks the rows whose keys have these hashes; waits for others that have one of them.
    ///
    /// # Errors
    /// 40P01 when one of those waits for this owner.
    ///
    /// # Cancellation
    /// Nothing new is locked then.
    pub(crate) async fn lock(&self, topic: TopicId, rows: &[u64]) -> Result<()> {
        let _waiting = Waiting(self, topic);
        loop {
            let blocker = {
                let mut state = self.locks.state.lock();
                let other = match state.take(self.id, topic, rows) {
                    Ok(new) => {
                        self.held.lock().entry(topic).or_default().extend(new);
                        return Ok(());
                    }
                    Err(other) => other,
                };
                if state.closes_circle(self.id, other) {
                    return Err(SqlError::new(SqlState::DeadlockDetected, "deadlock detected")
                        .detail("the transaction waits for rows of another one, which waits for rows of this one")
                        .hint("run the transaction again; change rows in the same order everywhere"));
                }
                let blocker = state.owners.get(&other).map(|other| other.released.clone());
                if let Some(own) = state.owners.get_mut(&self.id) {
                    own.waits_for = Some(other);
                }
                blocker
            };
            if let Some(blocker) = blocker {
                blocker.cancelled().await;
            }
        }
    }
}

impl LockOwner {
    /// What is locked now.
    pub(crate) fn mark(&self) -> LockMark {
        self.held.lock().iter().map(|(topic, rows)| (*topic, rows.len())).collect()
    }

    /// Gives back what was locked since `mark`; who has a whole table keeps it.
    pub(crate) fn release_since(&self, mark: &LockMark) {
        let mut state = self.locks.state.lock();
        for (topic, rows) in self.held.lock().iter_mut() {
            let kept = mark.get(topic).copied().unwrap_or(0).min(rows.len());
            let released = rows.split_off(kept);
            let Some(table) = state.tables.get_mut(topic) else { continue };
            for row in &released {
                table.rows.remove(row);
            }
            if let Some(count) = table.counts.get_mut(&self.id) {
                *count = count.saturating_sub(released.len());
                if *count == 0 && table.whole != Some(self.id) {
                    table.counts.remove(&self.id);
                }
            }
        }
        state.wake(self.id);
    }
}

/// How many rows of each table an owner had locked.
pub(crate) type LockMark = HashMap<TopicId, usize>;

/// Ends the waiting of an owner for rows of a table, also when its statement is cancelled.
struct Waiting<'a>(&'a LockOwner, TopicId);

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        let mut state = self.0.locks.state.lock();
        if let Some(own) = state.owners.get_mut(&self.0.id) {
            own.waits_for = None;
        }
        let Some(table) = state.tables.get_mut(&self.1) else { return };
        if table.wanted == Some(self.0.id) {
            table.wanted = None;
            if table.counts.is_empty() {
                state.tables.remove(&self.1);
            }
            state.wake(self.0.id);
        }
    }
}

impl Drop for LockOwner {
    fn drop(&mut self) {
        let mut state = self.locks.state.lock();
        for (topic, rows) in self.held.get_mut().drain() {
            let Some(table) = state.tables.get_mut(&topic) else { continue };
            for row in &rows {
                table.rows.remove(row);
            }
            table.whole = table.whole.filter(|owner| *owner != self.id);
            table.counts.remove(&self.id);
            if table.counts.is_empty() && table.wanted.is_none() {
                state.tables.remove(&topic);
            }
        }
        if let Some(own) = state.owners.remove(&self.id) {
            own.released.cancel();
        }
    }
}

/// Holds plain INSERTs into a table back; see [`RowLocks::barrier`].
#[derive(Debug)]
pub(crate) struct Barrier {
    locks: Arc<RowLocks>,
    topic: TopicId,
}

impl Drop for Barrier {
    fn drop(&mut self) {
        let mut state = self.locks.state.lock();
        if let Some((count, lifted)) = state.barriers.get_mut(&self.topic) {
            *count -= 1;
            if *count == 0 {
                lifted.cancel();
                state.barriers.remove(&self.topic);
            }
        }
        self.locks.barriers.fetch_sub(1, Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::FutureExt;

    const T: TopicId = TopicId::new(1);

    fn waits(owner: &LockOwner, rows: &[u64]) -> bool {
        owner.lock(T, rows).now_or_never().is_none()
    }

    #[test]
    fn a_row_has_one_owner_and_goes_back_when_it_ends() {
        let locks = Arc::new(RowLocks::default());
        let (first, second) = (locks.owner(), locks.owner());
        assert!(!waits(&first, &[1, 2]));
        assert!(!waits(&first, &[2, 3]));
        assert!(waits(&second, &[4, 3]));
        assert!(!waits(&second, &[4]));
        drop(first);
        assert!(!waits(&second, &[1, 2, 3]));
        drop(second);
        assert!(locks.state.lock().tables.is_empty() && locks.state.lock().owners.is_empty());
    }

    #[tokio::test]
    async fn who_would_wait_for_itself_is_told() {
        let locks = Arc::new(RowLocks::default());
        let (first, second) = (locks.owner(), locks.owner());
        first.lock(T, &[1]).await.unwrap();
        second.lock(T, &[2]).await.unwrap();
        let mut waiting = Box::pin(first.lock(T, &[2]));
        assert!(waiting.as_mut().now_or_never().is_none());
        assert_eq!(second.lock(T, &[1]).await.unwrap_err().sqlstate, SqlState::DeadlockDetected);
        drop(second);
        waiting.await.unwrap();
    }

    #[tokio::test]
    async fn rows_locked_since_a_mark_go_back() {
        let locks = Arc::new(RowLocks::default());
        let (first, second) = (locks.owner(), locks.owner());
        first.lock(T, &[1]).await.unwrap();
        let mark = first.mark();
        first.lock(T, &[1, 2]).await.unwrap();
        let mut waiting = Box::pin(second.lock(T, &[2]));
        assert!(waiting.as_mut().now_or_never().is_none());
        first.release_since(&mark);
        waiting.await.unwrap();
        assert!(waits(&second, &[1]), "locked before the mark");
        first.release_since(&LockMark::default());
        assert!(!waits(&second, &[1]));
        drop((first, second));
        assert!(locks.state.lock().tables.is_empty() && locks.state.lock().owners.is_empty());
    }

    #[test]
    fn many_rows_are_the_whole_table() {
        let locks = Arc::new(RowLocks::default());
        let (first, second) = (locks.owner(), locks.owner());
        let rows = |count: usize| (0..count as u64).collect::<Vec<_>>();
        assert!(!waits(&first, &rows(ROW_LOCKS_MAX)));
        assert!(!waits(&second, &[u64::MAX]));
        assert!(waits(&first, &[u64::MAX - 1]), "one more is the whole table, of which another has a row");
        drop(second);
        assert!(!waits(&first, &[u64::MAX - 1]));
        assert!(waits(&locks.owner(), &[u64::MAX]));
    }

    #[test]
    fn a_row_locked_again_counts_once() {
        let locks = Arc::new(RowLocks::default());
        let (first, second) = (locks.owner(), locks.owner());
        assert!(!waits(&second, &[7]));
        assert!(!waits(&first, &vec![1; ROW_LOCKS_MAX + 1]));
        assert!(!waits(&first, &(10..9 + ROW_LOCKS_MAX as u64).collect::<Vec<_>>()));
        for _ in 0..3 {
            assert!(!waits(&first, &[1, 10]));
        }
        assert!(waits(&first, &[8]), "one more is the whole table");
        assert!(waits(&second, &[10]) && !waits(&second, &[8]));
    }

    #[tokio::test]
    async fn who_wants_the_whole_table_comes_before_those_who_have_nothing_of_it() {
        let locks = Arc::new(RowLocks::default());
        let (all, has, new, other) = (locks.owner(), locks.owner(), locks.owner(), locks.owner());
        let rows: Vec<u64> = (0..=ROW_LOCKS_MAX as u64).collect();
        has.lock(T, &[u64::MAX]).await.unwrap();
        let mut whole = Box::pin(all.lock(T, &rows));
        assert!(whole.as_mut().now_or_never().is_none());
        let mut late = Box::pin(new.lock(T, &[u64::MAX - 1]));
        assert!(late.as_mut().now_or_never().is_none());
        assert!(!waits(&has, &[u64::MAX - 2]), "who has rows goes on");
        has.release_since(&LockMark::default());
        assert!(waits(&has, &[u64::MAX]), "who has none any more does not");
        whole.as_mut().await.unwrap();
        assert!(late.as_mut().now_or_never().is_none());
        drop(whole);
        drop(all);
        late.as_mut().await.unwrap();
        // Who gives up waiting for the table holds nobody up.
        let mut whole = Box::pin(other.lock(T, &rows));
        assert!(whole.as_mut().now_or_never().is_none());
        let mut late = Box::pin(has.lock(T, &[1]));
        assert!(late.as_mut().now_or_never().is_none());
        drop(whole);
        late.as_mut().await.unwrap();
        drop(late);
        drop((has, other));
        assert_eq!(locks.state.lock().tables.len(), 1);
    }

    #[test]
    fn inserts_pass_unless_their_table_is_closed() {
        let locks = Arc::new(RowLocks::default());
        let passes = |topic| locks.pass([topic].into_iter()).now_or_never().is_some();
        let (one, two) = (locks.barrier(T), locks.barrier(T));
        assert!(!passes(T) && passes(TopicId::new(2)));
        drop(one);
        assert!(!passes(T));
        drop(two);
        assert!(passes(T));
    }
}
