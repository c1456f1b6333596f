//! The helper that has the next file ready before the current one is full, and takes purged files back.
//!
//! A new file only has its space taken; while there is time it is filled too, slowly, and may be used before that ends.
//!
//! Owns spare and prepared files. Leaves out frames. The writer asks ([`Preparer::request`]) as soon as it moves to a
//! new file and takes the result when it is full; only then a slow or full disk reaches it. A crash leaves a
//! prepared, a spare or an unfinished file, each told by its name.

use super::file::{self, DATA_START, WalFile, log_name, spare_name};
use crate::storage::disk::Disk;
use crate::storage::error::StorageError;
use parking_lot::{Condvar, Mutex, MutexGuard};
use std::collections::VecDeque;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Spare files kept: about as many as a seal gives back at once, so that a log that is written without a pause is made of
/// files that need no filling. On a full disk they go first.
const SPARES_MAX: usize = 8;

/// On a full disk a file may be smaller by this factor: writers go on as soon as there is a little space.
const SMALLER_MAX: u64 = 16;

/// What a file holds beside the frames of entries, as a share of the usual size: the reserve, and votes and marks.
const OVERHEAD_SHARE: u64 = 32;

/// Between attempts on a full disk.
const RETRY: Duration = Duration::from_secs(1);

/// Between the steps in which a new file is filled that is not yet due: each keeps the writer's syncs waiting.
const FILL_PACE: Duration = Duration::from_millis(5);
/// Of the current file this part is used when the next one is filled.
const USED_PART: u64 = 2;

/// Where files are prepared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Mode {
    /// On a thread that runs [`Preparer::run`].
    Threaded,
    /// Within the calls, for tests that count steps.
    #[cfg(test)]
    Inline,
}

/// Prepares and recycles files.
#[derive(Debug)]
pub(super) struct Preparer {
    disk: Arc<dyn Disk>,
    dir: PathBuf,
    file_bytes: u64,
    mode: Mode,
    /// Up to where the next file should be filled by now.
    due: AtomicU64,
    /// Up to where it is; the largest number when there is nothing to fill.
    filled: AtomicU64,
    state: Mutex<State>,
    changed: Condvar,
}

/// A file to prepare.
#[derive(Debug, Clone, Copy)]
struct Wanted {
    sequence: u64,
    bytes: u64,
    /// How few will do on a full disk.
    least: u64,
    /// Whether to try (again).
    is_due: bool,
}

#[derive(Debug, Default)]
struct State {
    wanted: Option<Wanted>,
    /// Finished attempts.
    attempts: u64,
    ready: Option<Arc<WalFile>>,
    /// Up to where the ready file is filled, if there is more to fill. `Preparer::filled` says the same to the writer.
    filled: Option<u64>,
    /// It is written to: nobody else may have it.
    is_filling: bool,
    /// The writer wants it as it is.
    is_awaited: bool,
    /// The log was just made: nobody writes much yet.
    is_new: bool,
    /// Why the last attempt failed, until one succeeds.
    failure: Option<StorageError>,
    /// The last file is smaller than usual: there was no space for more.
    is_short: bool,
    /// Names of spare files.
    spares: Vec<String>,
    /// Purged files, oldest first.
    retired: VecDeque<Arc<WalFile>>,
    /// Whether the first of them could not be put away; tried again when more come.
    is_stuck: bool,
    is_closing: bool,
    /// A panic ended it: there will be no file.
    is_broken: bool,
}

impl State {
    fn has_work(&self) -> bool {
        (!self.retired.is_empty() && !self.is_stuck) || self.is_due()
    }

    /// Whether a file is to be made.
    fn is_due(&self) -> bool {
        self.wanted.is_some_and(|wanted| wanted.is_due)
    }

    /// Has the file that is wanted, if one is, tried (again).
    fn try_again(&mut self) {
        if let Some(wanted) = &mut self.wanted {
            wanted.is_due = true;
        }
    }
}

impl Preparer {
    /// A helper for the log in `dir`, with what recovery found.
    pub(super) fn new(
        disk: Arc<dyn Disk>,
        dir: PathBuf,
        file_bytes: u64,
        mode: Mode,
        found: (Option<Arc<WalFile>>, Vec<String>),
    ) -> Self {
        // One that was found ready and half filled stays so.
        let state = State { is_new: found.0.is_none(), ready: found.0, spares: found.1, ..State::default() };
        let (due, filled) = (AtomicU64::new(0), AtomicU64::new(u64::MAX));
        Self { disk, dir, file_bytes, mode, due, filled, state: Mutex::new(state), changed: Condvar::new() }
    }

    /// The current file of `bytes` is used up to `position`.
    pub(super) fn used(&self, position: u64, bytes: u64) {
        let due = self.file_bytes.saturating_mul(USED_PART).saturating_mul(position) / bytes.max(1);
        self.due.store(due, Ordering::Relaxed);
        if self.is_behind() {
            // One that comes too early is made up for by the next, or by the pace.
            self.changed.notify_all();
        }
    }

    fn is_behind(&self) -> bool {
        self.filled.load(Ordering::Relaxed) < self.due.load(Ordering::Relaxed)
    }

    /// Works until [`Preparer::close`].
    pub(super) fn run(&self) {
        loop {
            let mut state = self.state.lock();
            let mut must_fill = false;
            while !must_fill && !state.has_work() && !state.is_closing {
                if state.failure.is_some() && state.wanted.is_some() {
                    // There may be space again.
                    if self.changed.wait_for(&mut state, RETRY).timed_out() {
                        state.try_again();
                    }
                } else if state.filled.is_none() {
                    self.changed.wait(&mut state);
                } else {
                    must_fill =
                        state.is_new || self.is_behind() || self.changed.wait_for(&mut state, FILL_PACE).timed_out();
                }
            }
            if state.is_closing {
                return;
            }
            let work = if must_fill { Self::fill } else { Self::work };
            if catch_unwind(AssertUnwindSafe(|| work(self, state))).is_err() {
                tracing::error!("the write-ahead log's helper panicked");
                self.state.lock().is_broken = true;
                self.changed.notify_all();
                return;
            }
        }
    }

    /// Ends [`Preparer::run`] after what it is doing.
    pub(super) fn close(&self) {
        self.state.lock().is_closing = true;
        self.changed.notify_all();
    }

    /// Asks for a file of the usual size to be ready.
    pub(super) fn request(&self, sequence: u64) {
        let mut state = self.state.lock();
        if state.ready.is_none() {
            let (bytes, least) = (self.file_bytes, self.file_bytes / SMALLER_MAX);
            state.wanted = Some(Wanted { sequence, bytes, least, is_due: true });
            self.wake(state);
        }
    }

    /// Tries again if the last attempt failed.
    pub(super) fn retry(&self) {
        let mut state = self.state.lock();
        if state.failure.is_some() && !state.is_due() {
            state.try_again();
            self.wake(state);
        }
    }

    /// Whether the next file, as far as is known, takes `bytes` of frames. When it was made on a full disk and is too small
    /// for them, a larger one is tried instead.
    ///
    /// # Errors
    /// [`StorageError::DiskFull`] when it is too small; why there is none otherwise.
    pub(super) fn check_room(&self, bytes: u64) -> Result<(), StorageError> {
        let mut state = self.state.lock();
        let needed = bytes + self.file_bytes / OVERHEAD_SHARE;
        match &state.ready {
            Some(file) if file.bytes >= self.file_bytes || file.bytes >= needed => Ok(()),
            Some(file) => {
                let (sequence, bytes) = (file.sequence, needed.max(self.file_bytes));
                // Said before the attempt: until it is over there is no next file.
                let refused = state.failure.get_or_insert(StorageError::DiskFull).clone();
                if !state.is_due() {
                    state.wanted = Some(Wanted { sequence, bytes, least: needed, is_due: true });
                    self.wake(state);
                }
                Err(refused)
            }
            None => match state.failure.clone() {
                Some(failure) => {
                    drop(state);
                    self.retry();
                    Err(failure)
                }
                // It is being made; after a small one it may fail, and what was proposed until then would wait.
                None if state.is_short => Err(StorageError::DiskFull),
                None => Ok(()),
            },
        }
    }

    /// The next file, of any size that is ready or else of `bytes`; waits for the allocation.
    ///
    /// # Errors
    /// Why it failed: [`StorageError::DiskFull`], or the system's error. Asking again tries again.
    /// [`StorageError::SyncFailed`] when the helper panicked.
    pub(super) fn take(&self, sequence: u64, bytes: u64) -> Result<Arc<WalFile>, StorageError> {
        let mut state = self.state.lock();
        let attempts_before = state.attempts;
        loop {
            if !state.is_filling
                && let Some(file) = state.ready.take()
            {
                (state.wanted, state.is_new) = (None, false);
                self.set_filled(&mut state, None);
                return Ok(file);
            }
            if state.is_closing {
                return Err(StorageError::Closed);
            }
            if state.is_broken {
                return Err(StorageError::SyncFailed);
            }
            if state.attempts > attempts_before
                && let Some(failure) = &state.failure
            {
                return Err(failure.clone());
            }
            state.is_awaited = state.is_filling;
            if !state.is_due() && !state.is_filling {
                let least = bytes.max(self.file_bytes / SMALLER_MAX);
                state.wanted = Some(Wanted { sequence, bytes: bytes.max(self.file_bytes), least, is_due: true });
            }
            match self.mode {
                Mode::Threaded => {
                    self.changed.notify_all();
                    self.changed.wait(&mut state);
                }
                #[cfg(test)]
                Mode::Inline => {
                    self.work(state);
                    state = self.state.lock();
                }
            }
        }
    }

    /// Takes back files nobody needs, oldest first.
    pub(super) fn retire(&self, files: Vec<Arc<WalFile>>) {
        let mut state = self.state.lock();
        state.retired.extend(files);
        state.is_stuck = false;
        // Space comes back, so a failed allocation may succeed now.
        if state.failure.is_some() {
            state.try_again();
        }
        self.wake(state);
    }

    /// Removes spare files, for what else wants space.
    ///
    /// # Errors
    /// The system's error; the others stay.
    pub(super) fn free_spares(&self) -> io::Result<()> {
        while let Some(name) = self.take_spare() {
            self.disk.remove(&self.dir.join(name))?;
        }
        self.disk.sync_dir(&self.dir)
    }

    fn take_spare(&self) -> Option<String> {
        self.state.lock().spares.pop()
    }

    /// Why the next file cannot be had, if so.
    pub(super) fn failure(&self) -> Option<StorageError> {
        self.state.lock().failure.clone()
    }

    /// The file that is ready, and the spare ones: files and bytes each.
    pub(super) fn held(&self) -> [(usize, u64); 2] {
        let state = self.state.lock();
        let ready = state.ready.as_ref().map_or((0, 0), |file| (1, file.bytes));
        [ready, (state.spares.len(), state.spares.len() as u64 * self.file_bytes)]
    }

    fn wake(&self, state: MutexGuard<'_, State>) {
        match self.mode {
            Mode::Threaded => {
                drop(state);
                self.changed.notify_all();
            }
            #[cfg(test)]
            Mode::Inline => {
                let mut state = state;
                while state.has_work() {
                    let before = (state.retired.len(), state.attempts);
                    self.work(state);
                    state = self.state.lock();
                    if before == (state.retired.len(), state.attempts) {
                        return;
                    }
                }
            }
        }
    }

    fn set_filled(&self, state: &mut State, filled: Option<u64>) {
        state.filled = filled;
        self.filled.store(filled.unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    /// Fills some of the ready file, with the lock released meanwhile.
    fn fill(&self, mut state: MutexGuard<'_, State>) {
        let (Some(file), Some(from)) = (state.ready.clone(), state.filled.take()) else { return };
        state.is_filling = true;
        drop(state);
        let filled = file::fill_step(&file, from);
        let mut state = self.state.lock();
        state.is_filling = false;
        let is_awaited = std::mem::take(&mut state.is_awaited);
        let left = match filled {
            Ok(end) => Some(end).filter(|end| *end < file.bytes && !is_awaited),
            Err(error) => {
                tracing::warn!(%error, "a prepared log file could not be filled; it is used as it is");
                None
            }
        };
        self.set_filled(&mut state, left);
        drop(state);
        self.changed.notify_all();
    }

    /// One piece of work, with the lock released meanwhile. Retired files go first: they are space.
    fn work(&self, mut state: MutexGuard<'_, State>) {
        if !state.is_stuck
            && let Some(retired) = state.retired.pop_front()
        {
            let is_spare = retired.bytes == self.file_bytes && state.spares.len() < SPARES_MAX;
            drop(state);
            let done = self.put_away(&retired, is_spare);
            let mut state = self.state.lock();
            match done {
                Ok(()) if is_spare => state.spares.push(spare_name(retired.sequence)),
                Ok(()) => {}
                Err(error) => {
                    // The files after it wait too: the log on disk must have no holes.
                    tracing::warn!(error = %error, "could not put a purged log file away");
                    state.retired.push_front(retired);
                    state.is_stuck = true;
                }
            }
            return;
        }
        let Some(Wanted { sequence, bytes, least, .. }) = state.wanted.filter(|wanted| wanted.is_due) else { return };
        let spare = if bytes == self.file_bytes { state.spares.pop() } else { None };
        let was_full = matches!(state.failure, Some(StorageError::DiskFull));
        // It has the same name: nobody may write to it while a larger one takes its place.
        let small = state.ready.take();
        drop(state);
        let made = match &spare {
            Some(name) => file::recycle(&*self.disk, &self.dir, name, sequence, bytes),
            // Each attempt fills what space there is: the one that is most likely to succeed goes first.
            None if was_full => file::create(&*self.disk, &self.dir, sequence, least),
            None => self.create(sequence, bytes, least),
        };
        let mut state = self.state.lock();
        state.attempts += 1;
        if let Some(wanted) = &mut state.wanted {
            wanted.is_due = false;
        }
        match made {
            Ok((file, must_fill)) => {
                state.is_short = file.bytes < self.file_bytes;
                let must_fill = must_fill && !state.is_short && self.mode == Mode::Threaded;
                self.set_filled(&mut state, must_fill.then_some(DATA_START));
                state.ready = Some(Arc::new(file));
                state.failure = None;
            }
            Err(failure) => {
                if state.failure.is_none() {
                    tracing::warn!(error = %failure, "could not allocate the next log file");
                }
                state.failure = Some(failure);
                state.ready = small;
            }
        }
        drop(state);
        self.changed.notify_all();
    }

    /// A file of `bytes`, or as many as there is space for, but not fewer than `least`.
    fn create(&self, sequence: u64, bytes: u64, least: u64) -> Result<(WalFile, bool), StorageError> {
        let mut size = bytes;
        loop {
            match file::create(&*self.disk, &self.dir, sequence, size) {
                Err(StorageError::DiskFull) if size > least => size = (size / 2).max(least),
                made => return made,
            }
        }
    }

    /// Synced by itself, so that the names that remain always are a run without holes.
    fn put_away(&self, file: &WalFile, is_spare: bool) -> io::Result<()> {
        let path = self.dir.join(log_name(file.sequence));
        if is_spare {
            self.disk.rename(&path, &self.dir.join(spare_name(file.sequence)))?;
        } else {
            self.disk.remove(&path)?;
        }
        self.disk.sync_dir(&self.dir)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::env;
    use crate::storage::fault_disk::FaultDisk;

    #[test]
    fn files_given_back_are_used_again_or_removed() {
        const BYTES: u64 = 1 << 16;
        let disk = Arc::new(FaultDisk::new());
        let dir = PathBuf::from("wal");
        disk.create_dir_all(&dir).unwrap();
        let preparer = Preparer::new(disk.clone(), dir, BYTES, Mode::Inline, (None, Vec::new()));
        let files: Vec<_> = (1..=12).map(|sequence| preparer.take(sequence, 1).unwrap()).collect();
        let used = disk.bytes_used();
        preparer.retire(files);
        assert_eq!(preparer.held(), [(0, 0), (SPARES_MAX, SPARES_MAX as u64 * BYTES)]);
        let again: Vec<_> = (13..=20).map(|sequence| preparer.take(sequence, 1).unwrap()).collect();
        assert_eq!((again.len(), preparer.held()[1].0), (SPARES_MAX, 0));
        assert_eq!(disk.bytes_used(), used / 12 * SPARES_MAX as u64, "none was made anew");
        preparer.retire(again);
        preparer.free_spares().unwrap();
        assert_eq!((preparer.held(), disk.bytes_used()), ([(0, 0), (0, 0)], 0));
    }

    #[test]
    fn a_file_made_on_a_full_disk_takes_what_fits_it_and_gives_way_to_a_larger_one() {
        const BYTES: u64 = 1 << 16;
        let disk = Arc::new(FaultDisk::new());
        let dir = PathBuf::from("wal");
        disk.create_dir_all(&dir).unwrap();
        disk.set_capacity(Some(9_000));
        let preparer = Preparer::new(disk.clone(), dir, BYTES, Mode::Inline, (None, Vec::new()));
        preparer.request(1);
        assert_eq!(preparer.held()[0], (1, BYTES / 8));
        preparer.check_room(BYTES / 16).unwrap();
        for _ in 0..2 {
            assert!(matches!(preparer.check_room(BYTES / 4), Err(StorageError::DiskFull)));
            assert_eq!(preparer.held()[0], (1, BYTES / 8));
        }
        preparer.check_room(BYTES / 16).unwrap();
        disk.set_capacity(Some(40_000));
        assert!(matches!(preparer.check_room(BYTES / 4), Err(StorageError::DiskFull)));
        preparer.check_room(BYTES / 4).unwrap();
        disk.set_capacity(None);
        let file = preparer.take(1, BYTES / 4).unwrap();
        assert!(file.bytes >= BYTES / 4 && disk.bytes_used() == file.bytes);
        preparer.request(2);
        preparer.check_room(10 * BYTES).unwrap();
    }

    #[test]
    fn a_small_file_taken_before_its_larger_one_is_tried_leaves_nothing_to_wait_for() {
        const BYTES: u64 = 1 << 16;
        let disk = Arc::new(FaultDisk::new());
        let dir = PathBuf::from("wal");
        disk.create_dir_all(&dir).unwrap();
        disk.set_capacity(Some(9_000));
        let preparer = Arc::new(Preparer::new(disk.clone(), dir, BYTES, Mode::Threaded, (None, Vec::new())));
        preparer.request(1);
        preparer.work(preparer.state.lock());
        assert_eq!(preparer.held()[0], (1, BYTES / 8));
        assert!(matches!(preparer.check_room(BYTES / 4), Err(StorageError::DiskFull)));
        // The helper did not get to it.
        preparer.take(1, BYTES / 4).unwrap();
        disk.set_capacity(None);
        let helper = Arc::clone(&preparer);
        let helper = env::thread("wal-prepare", move || helper.run()).unwrap();
        let (send, taken) = std::sync::mpsc::sync_channel(1);
        let taker = Arc::clone(&preparer);
        let taker = env::thread("taker", move || send.send(taker.take(2, BYTES / 4)).unwrap()).unwrap();
        let file = taken.recv_timeout(Duration::from_secs(20)).expect("the next file is made").unwrap();
        assert!(file.bytes >= BYTES / 4);
        taker.join().unwrap();
        preparer.close();
        helper.join().unwrap();
    }

    #[test]
    fn a_file_is_used_while_it_is_filled_and_no_zero_comes_after_that() {
        const BYTES: u64 = 4 << 20;
        let written = vec![7; BYTES as usize];
        for round in 0..100 {
            let disk = Arc::new(FaultDisk::new());
            let dir = PathBuf::from("wal");
            disk.create_dir_all(&dir).unwrap();
            let preparer = Arc::new(Preparer::new(disk, dir, BYTES, Mode::Threaded, (None, Vec::new())));
            let helper = Arc::clone(&preparer);
            let helper = env::thread("wal-prepare", move || helper.run()).unwrap();
            preparer.request(1);
            // As if the current file were full: the whole next one is due.
            preparer.used(BYTES, BYTES);
            let steps = round % 8;
            while preparer.filled.load(Ordering::Relaxed) < steps * (256 << 10) {
                std::thread::yield_now();
            }
            let file = preparer.take(1, 1).unwrap();
            file.file.write_at(&written, 0).unwrap();
            preparer.close();
            helper.join().unwrap();
            let mut found = vec![0; BYTES as usize];
            file.file.read_at(&mut found, 0).unwrap();
            assert!(found == written, "round {round}");
        }
    }
}
