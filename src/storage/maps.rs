//! How many segments are open at once: the system bounds the maps of a process, and a node may have more segments.
//!
//! Owns the choice of which to let go: of those that were not used since it last came by, the one that was opened first
//! (CLOCK). Leaves out opening. Called by [`Segment`](super::segment::Segment). A crash ends it.
//!
//! One for the process, as the bound is. A reader that holds an open segment keeps it: letting go means that the next
//! one opens it anew.

use super::error::StorageError;
use super::open_segment::OpenSegment;
use arc_swap::ArcSwapOption;
use millstream_catalog::model::limit::{SEGMENTS_OPEN_MAX, SEGMENTS_PINNED_MAX};
use parking_lot::Mutex;
use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Weak};

/// Where a segment keeps its open file.
#[derive(Debug, Default)]
pub(super) struct Slot {
    open: ArcSwapOption<OpenSegment>,
    is_used: AtomicBool,
    is_pinned: AtomicBool,
}

impl Slot {
    /// The open file, if it is open; it counts as used.
    pub(super) fn open(&self) -> Option<Arc<OpenSegment>> {
        let open = self.open.load_full();
        if open.is_some() && !self.is_used.load(Ordering::Relaxed) {
            self.is_used.store(true, Ordering::Relaxed);
        }
        open
    }

    /// Lets the file go, as when others are used more.
    #[cfg(test)]
    pub(super) fn evict(&self) {
        self.open.store(None);
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        if *self.is_pinned.get_mut() {
            PINNED.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

/// Slots with an open file, the one opened first in front.
static OPEN: Mutex<VecDeque<Weak<Slot>>> = Mutex::new(VecDeque::new());
/// Slots whose file stays open.
static PINNED: AtomicUsize = AtomicUsize::new(0);

/// Puts an open file into its slot, and lets others go when there are too many.
pub(super) fn keep(slot: &Arc<Slot>, open: &Arc<OpenSegment>) {
    let mut queue = OPEN.lock();
    slot.open.store(Some(Arc::clone(open)));
    queue.push_back(Arc::downgrade(slot));
    let gone = let_go(&mut queue, SEGMENTS_OPEN_MAX);
    // Unmapping takes its time.
    drop(queue);
    drop(gone);
}

/// As [`keep`], of a file that is not let go of as long as the slot is there.
///
/// # Errors
/// [`StorageError::Io`] when there are too many of them.
pub(super) fn pin(slot: &Arc<Slot>, open: &Arc<OpenSegment>) -> Result<(), StorageError> {
    let _queue = OPEN.lock();
    if !slot.is_pinned.load(Ordering::Relaxed) {
        if PINNED.load(Ordering::Relaxed) >= SEGMENTS_PINNED_MAX {
            let error = std::io::Error::other("too many removed segments are still read");
            return Err(StorageError::io("keep a segment open", error));
        }
        PINNED.fetch_add(1, Ordering::Relaxed);
        slot.is_pinned.store(true, Ordering::Relaxed);
    }
    slot.open.store(Some(Arc::clone(open)));
    Ok(())
}

/// Takes the files out of slots until no more than `most` are left; gives them to be dropped.
fn let_go(queue: &mut VecDeque<Weak<Slot>>, most: usize) -> Vec<Arc<OpenSegment>> {
    let mut gone = Vec::new();
    // Each is passed over at most once: then it counts as not used, unless it is used meanwhile.
    let mut turns = queue.len() * 2;
    while queue.len() > most && turns > 0 {
        turns -= 1;
        let Some(slot) = queue.pop_front() else { break };
        let Some(held) = slot.upgrade().filter(|held| !held.is_pinned.load(Ordering::Relaxed)) else { continue };
        if held.is_used.swap(false, Ordering::Relaxed) {
            queue.push_back(slot);
        } else {
            gone.extend(held.open.swap(None));
        }
    }
    gone
}

#[cfg(test)]
mod tests {
    use super::super::open_segment::tests::open_one;
    use super::*;

    #[test]
    fn of_many_open_segments_those_not_used_go_first() {
        let slots: Vec<Arc<Slot>> = (0..10).map(|_| Arc::new(Slot::default())).collect();
        let mut queue = VecDeque::new();
        for slot in &slots {
            slot.open.store(Some(Arc::new(open_one())));
            queue.push_back(Arc::downgrade(slot));
        }
        let pinned = Arc::clone(&slots[2]);
        pin(&pinned, &Arc::new(open_one())).unwrap();
        for used in [0, 4, 9] {
            assert!(slots[used].open().is_some());
        }
        let gone = let_go(&mut queue, 4);
        assert_eq!(gone.len(), 5);
        let open: Vec<usize> = (0..10).filter(|slot| slots[*slot].open.load().is_some()).collect();
        assert_eq!(open, [0, 2, 4, 8, 9]);
        assert_eq!(queue.len(), 4);
        drop(slots);
        assert!(let_go(&mut queue, 0).is_empty());
        assert!(queue.is_empty());
        let before = PINNED.load(Ordering::Relaxed);
        assert!(before > 0);
    }
}
