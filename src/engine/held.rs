//! Bytes in memory that a bound of the node is for: rows that statements and transactions hold before they are
//! committed, and the state of tables and continuous queries.
//!
//! Owns counting against the bound; leaves out how large it is (`budget`), and the limits of one statement. What is
//! dropped gives its bytes back.

use crate::engine::Result;
use millstream_catalog::model::{ByteSize, SqlState};
use millstream_sql::SqlError;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use tokio::sync::Notify;

/// What all of a node may hold of one kind.
#[derive(Debug, Clone)]
pub(crate) struct HoldingRoom {
    used: Arc<AtomicU64>,
    /// Of that, what those hold that can do with less, and how many they are.
    yielding: Arc<AtomicU64>,
    yielders: Arc<AtomicU64>,
    /// Told when somebody wants what others have too much.
    wanted: Arc<Notify>,
    bytes_max: ByteSize,
}

impl HoldingRoom {
    /// Room for `bytes_max`.
    pub(crate) fn new(bytes_max: ByteSize) -> Self {
        Self {
            used: Arc::default(),
            yielding: Arc::default(),
            yielders: Arc::default(),
            wanted: Arc::default(),
            bytes_max,
        }
    }

    /// A share of nothing, to be grown.
    pub(crate) fn share(&self) -> Held {
        Held { room: self.clone(), bytes: 0, yields: false }
    }

    /// A share of one that can do with less than it holds: it keeps to [`Held::fair`].
    pub(crate) fn yielding_share(&self) -> Held {
        self.yielders.fetch_add(1, Ordering::Relaxed);
        Held { room: self.clone(), bytes: 0, yields: true }
    }

    /// Bytes held.
    pub(crate) fn used(&self) -> ByteSize {
        ByteSize::new(self.used.load(Ordering::Relaxed))
    }

    /// Bytes that may still be held.
    fn free(&self) -> u64 {
        self.bytes_max.value().saturating_sub(self.used().value())
    }
}

/// The bytes that one of them holds.
#[derive(Debug)]
pub(crate) struct Held {
    room: HoldingRoom,
    bytes: u64,
    yields: bool,
}

impl Held {
    /// Holds `bytes` from now on, more or fewer than before.
    ///
    /// # Errors
    /// 53200 when all together hold too much; the share stays as it was.
    pub(crate) fn set(&mut self, bytes: ByteSize) -> Result<()> {
        let (more, most) = (bytes.value().saturating_sub(self.bytes), self.room.bytes_max.value());
        if more == 0 {
            self.put(bytes);
            return Ok(());
        }
        let grown = |used: u64| used.checked_add(more).filter(|sum| *sum <= most);
        let taken = self.room.used.fetch_update(Ordering::Relaxed, Ordering::Relaxed, grown);
        taken.map_err(|_| {
            self.want();
            full(self.room.bytes_max)
        })?;
        if self.yields {
            self.room.yielding.fetch_add(more, Ordering::Relaxed);
        }
        self.bytes = bytes.value();
        Ok(())
    }

    /// Holds `bytes` whether there is room or not: they are in memory already, and [`Held::is_much`] says that they must
    /// leave it.
    pub(crate) fn put(&mut self, bytes: ByteSize) {
        let bytes = bytes.value();
        let before = std::mem::replace(&mut self.bytes, bytes);
        // Only the difference: others must not see more than there is, not for a moment.
        for counter in [Some(&self.room.used), self.yields.then_some(&self.room.yielding)].into_iter().flatten() {
            match bytes.checked_sub(before) {
                Some(more) => counter.fetch_add(more, Ordering::Relaxed),
                None => counter.fetch_sub(before - bytes, Ordering::Relaxed),
            };
        }
    }

    /// As [`Held::put`], of a part of it that took `before` bytes and takes `after` now.
    pub(crate) fn count(&mut self, before: u64, after: u64) {
        self.put(ByteSize::new(self.bytes.saturating_sub(before) + after));
    }

    /// What this one holds.
    pub(crate) fn bytes(&self) -> ByteSize {
        ByteSize::new(self.bytes)
    }

    /// What all may hold.
    pub(crate) fn bytes_max(&self) -> ByteSize {
        self.room.bytes_max
    }

    /// Whether these bytes are a quarter of what others leave, so that however many hold some, each has its part.
    pub(crate) fn is_much(&self) -> bool {
        self.bytes >= self.room.free().saturating_add(self.bytes) / 4
    }

    /// How much one that yields should hold at most: of what those leave that do not, all but what the others that do have
    /// taken, or an equal part if that is more. Half of the room stays free for those that do not.
    pub(crate) fn fair(&self) -> ByteSize {
        let yielding = self.room.yielding.load(Ordering::Relaxed);
        let fixed = self.room.used().value().saturating_sub(yielding);
        let most = (self.room.bytes_max.value() - fixed.min(self.room.bytes_max.value())) / 2;
        let equal = most / self.room.yielders.load(Ordering::Relaxed).max(1);
        ByteSize::new(equal.max(most.saturating_sub(yielding.saturating_sub(self.bytes))))
    }

    /// Asks those who have a choice for what they hold above [`Held::fair`].
    pub(crate) fn want(&self) {
        self.room.wanted.notify_waiters();
    }

    /// Told when others ask for it.
    pub(crate) fn wanted(&self) -> Arc<Notify> {
        Arc::clone(&self.room.wanted)
    }

    /// Whether all together hold too much.
    pub(crate) fn is_over(&self) -> bool {
        self.room.used() > self.room.bytes_max
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.put(ByteSize::ZERO);
        if self.yields {
            self.room.yielders.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

fn full(bytes_max: ByteSize) -> SqlError {
    SqlError::new(SqlState::OutOfMemory, "out of memory: too many rows wait to be committed")
        .detail(format!("statements and transactions of all sessions may hold {bytes_max} bytes"))
        .hint("try again when others have committed, write in smaller statements, or start the server with a larger --memory")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_grow_shrink_and_go_back() {
        let room = HoldingRoom::new(ByteSize::new(100));
        let (mut first, mut second) = (room.share(), room.share());
        first.set(ByteSize::new(60)).unwrap();
        let error = second.set(ByteSize::new(41)).unwrap_err();
        assert_eq!(error.sqlstate, SqlState::OutOfMemory);
        assert!(error.hint.unwrap().contains("--memory"));
        second.set(ByteSize::new(40)).unwrap();
        second.set(ByteSize::new(41)).unwrap_err();
        assert_eq!(room.used().value(), 100);
        first.set(ByteSize::new(59)).unwrap();
        second.set(ByteSize::new(41)).unwrap();
        drop(first);
        second.set(ByteSize::new(100)).unwrap();
        drop(second);
        assert_eq!(room.used(), ByteSize::ZERO);
    }

    #[test]
    fn of_what_is_left_each_that_yields_has_an_equal_part() {
        let room = HoldingRoom::new(ByteSize::new(800));
        let (mut fixed, mut first, second) = (room.share(), room.yielding_share(), room.yielding_share());
        assert_eq!((first.fair().value(), second.fair().value()), (400, 400));
        first.put(ByteSize::new(400));
        assert_eq!((first.fair().value(), second.fair().value()), (400, 200));
        fixed.set(ByteSize::new(400)).unwrap();
        assert_eq!((first.fair().value(), second.fair().value()), (200, 100));
        first.put(ByteSize::new(200));
        fixed.set(ByteSize::new(600)).unwrap();
        assert_eq!((first.fair().value(), second.fair().value()), (100, 50));
        drop(first);
        assert_eq!(second.fair().value(), 100);
        drop(fixed);
        assert_eq!(second.fair().value(), 400);
    }

    #[test]
    fn nobody_sees_a_share_twice() {
        let room = HoldingRoom::new(ByteSize::new(100));
        let (mut share, mut other) = (room.share(), room.share());
        other.put(ByteSize::new(1));
        let is_done = std::sync::atomic::AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                for round in 0..1_000_000_u64 {
                    share.put(ByteSize::new(60 + round % 2));
                    share.set(ByteSize::new(60)).unwrap();
                }
                is_done.store(true, Ordering::Release);
            });
            while !is_done.load(Ordering::Acquire) {
                assert!(!other.is_over());
            }
        });
    }

    #[test]
    fn what_is_in_memory_already_counts_and_must_leave_it() {
        let room = HoldingRoom::new(ByteSize::new(100));
        let (mut first, mut second) = (room.share(), room.share());
        first.put(ByteSize::new(24));
        assert!(!first.is_much());
        first.put(ByteSize::new(25));
        assert!(first.is_much());
        second.put(ByteSize::new(90));
        assert!(second.is_much() && second.is_over() && first.is_much());
        assert_eq!(room.used().value(), 115);
        second.set(ByteSize::new(91)).unwrap_err();
        second.set(ByteSize::new(10)).unwrap();
        assert!(!second.is_over());
        assert_eq!(room.used().value(), 35);
    }
}
