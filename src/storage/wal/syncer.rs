//! What of the newest file is on stable storage, and the thread that syncs what was answered before it was.
//!
//! Owns the order of syncs: one at a time, because the system tells a failure to one of those that wait for the same file,
//! and another would take its own sync for good. Leaves out frames and answers (`writer`). A crash loses what was
//! written and not synced, or keeps parts of it; `recover` cuts that off.

use super::Shared;
use super::file::WalFile;
use crate::env;
use crate::storage::error::StorageError;
use millstream_catalog::model::limit::{ASYNC_SYNC_DELAY, ASYNC_UNSYNCED_BYTES_TARGET};
use parking_lot::{Condvar, Mutex};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

/// Syncs the newest file.
#[derive(Debug, Default)]
pub(super) struct Syncer {
    /// Held while a file is synced.
    turn: Mutex<()>,
    state: Mutex<State>,
    /// Something for the thread to do.
    work: Condvar,
}

#[derive(Debug, Default)]
struct State {
    file: Option<Arc<WalFile>>,
    /// Everything before is in the file.
    written: u64,
    /// Everything before is on stable storage.
    synced: u64,
    /// Since when there is something between the two that was answered.
    since: Option<Instant>,
    /// The thread waits for nothing but being woken.
    is_idle: bool,
    /// It was woken because there is much.
    is_hurried: bool,
    is_closing: bool,
}

impl State {
    fn is_synced(&self) -> bool {
        self.written == self.synced
    }

    fn is_large(&self) -> bool {
        self.written - self.synced >= ASYNC_UNSYNCED_BYTES_TARGET.value()
    }
}

impl Syncer {
    /// The newest file is `file` now, written and synced up to `position`.
    pub(super) fn begin(&self, file: &Arc<WalFile>, position: u64) {
        let mut state = self.state.lock();
        (state.written, state.synced, state.since) = (position, position, None);
        state.file = Some(Arc::clone(file));
    }

    /// The file is written up to `position`.
    pub(super) fn wrote(&self, position: u64) {
        self.state.lock().written = position;
    }

    /// Has the thread sync what is written, in time: it was answered.
    pub(super) fn owe(&self) {
        let mut state = self.state.lock();
        if state.is_synced() {
            return;
        }
        state.since.get_or_insert_with(env::instant);
        let must_wake = state.is_idle || (state.is_large() && !std::mem::replace(&mut state.is_hurried, true));
        state.is_idle = false;
        drop(state);
        if must_wake {
            self.work.notify_one();
        }
    }

    /// Up to where the newest file is synced.
    pub(super) fn synced(&self) -> u64 {
        self.state.lock().synced
    }

    /// Whether everything written is synced.
    pub(super) fn is_synced(&self) -> bool {
        self.state.lock().is_synced()
    }

    /// Syncs everything written so far, if it is not; blocks.
    ///
    /// # Errors
    /// [`StorageError::SyncFailed`], for ever, when this or anything before it failed.
    pub(super) fn sync(&self, shared: &Shared) -> Result<(), StorageError> {
        let _turn = self.turn.lock();
        if shared.has_failed() {
            return Err(StorageError::SyncFailed);
        }
        let (file, upto) = {
            let state = self.state.lock();
            let Some(file) = state.file.clone().filter(|_| !state.is_synced()) else { return Ok(()) };
            (file, state.written)
        };
        let begin = env::instant();
        if let Err(error) = file.file.sync_data() {
            shared.fail(&error);
            return Err(StorageError::SyncFailed);
        }
        shared.counts.syncs.fetch_add(1, Ordering::Relaxed);
        let mut state = self.state.lock();
        // The writer goes on to another file only when all of this one is synced.
        state.synced = upto;
        state.since = state.since.filter(|_| !state.is_synced()).map(|since| since.max(begin));
        state.is_hurried = false;
        Ok(())
    }

    /// Syncs what was written a while ago, until [`Syncer::close`].
    pub(super) fn run(&self, shared: &Shared) {
        let delay = Duration::from_micros(ASYNC_SYNC_DELAY.micros().unsigned_abs());
        let mut state = self.state.lock();
        while !state.is_closing {
            let Some(since) = state.since else {
                state.is_idle = true;
                self.work.wait(&mut state);
                continue;
            };
            let must_wait = !state.is_large() && env::instant() < since + delay;
            if must_wait {
                // Others may sync meanwhile: then `since` is another, or none.
                self.work.wait_until(&mut state, since + delay);
                continue;
            }
            drop(state);
            if self.sync(shared).is_err() {
                return;
            }
            state = self.state.lock();
        }
    }

    /// Ends [`Syncer::run`] after what it is doing.
    pub(super) fn close(&self) {
        self.state.lock().is_closing = true;
        self.work.notify_all();
    }
}
