//! The writer: turns appends into frames, one write and one sync for all that wait, then answers them in order. Appends
//! that do not wait for a sync are answered after the write.
//!
//! Owns the end of the log. Leaves out queueing and threads (`wal`) and what is synced (`syncer`), so that tests can drive
//! it step by step. A crash loses what was not synced, or keeps a part of it; `recover` sorts that out.

use super::file::{DATA_START, WalFile};
use super::index::{Bounds, Change, Location};
use super::prepare::Preparer;
use super::recover::Recovered;
use super::{Shared, WalDone, WalRecord};
use crate::env;
use crate::storage::error::StorageError;
use crate::storage::frame::{FrameHeader, FrameKind, frame_bytes};
use bytes::Bytes;
use millstream_catalog::model::{Durability, EntryIndex, ShardId, Term};
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// Buffers above this are given back after use.
const BUFFER_BYTES_MAX: usize = 16 << 20;
/// The system's pages, of which it keeps files.
const PAGE_BYTES: u64 = 4 << 10;
/// The frame that ends a file or the log.
const END_BYTES: u64 = frame_bytes(0);

/// Records on their way to the disk.
pub(super) struct Append {
    pub(super) shard: ShardId,
    /// Each with the checksum of its payload, computed on the caller's thread.
    records: Vec<(WalRecord, u32)>,
    /// Bytes of their frames.
    pub(super) bytes: u64,
    /// What `done` waits for.
    pub(super) durability: Durability,
    pub(super) done: Waiter,
}

/// Who waits for an append. Dropped without an answer, because the writer panicked, it is told
/// [`StorageError::SyncFailed`].
pub(super) struct Waiter(Option<WalDone>);

impl Waiter {
    pub(super) fn answer(mut self, result: Result<(), StorageError>) {
        if let Some(done) = self.0.take() {
            done(result);
        }
    }
}

impl Drop for Waiter {
    fn drop(&mut self) {
        if let Some(done) = self.0.take() {
            done(Err(StorageError::SyncFailed));
        }
    }
}

impl Append {
    /// An append that is answered as `durability` says, if all its records are entries: on others depends which files
    /// are needed.
    ///
    /// # Errors
    /// Gives `done` back with [`StorageError::TooLarge`] for a payload over 4 GiB.
    pub(super) fn new(
        shard: ShardId,
        records: Vec<WalRecord>,
        durability: Durability,
        done: WalDone,
    ) -> Result<Self, (WalDone, StorageError)> {
        let payloads = || records.iter().map(|record| payload_of(record).len() as u64);
        if let Some(bytes) = payloads().find(|bytes| u32::try_from(*bytes).is_err()) {
            return Err((done, StorageError::TooLarge { bytes }));
        }
        let bytes = payloads().map(frame_bytes).sum();
        let sealed = |record: WalRecord| {
            let crc = crc32c::crc32c(payload_of(&record));
            (record, crc)
        };
        let is_of_entries = records.iter().all(|record| matches!(record, WalRecord::Entry { .. }));
        let durability = if is_of_entries { durability } else { Durability::Sync };
        let (records, done) = (records.into_iter().map(sealed).collect(), Waiter(Some(done)));
        Ok(Self { shard, records, bytes, durability, done })
    }
}

fn payload_of(record: &WalRecord) -> &[u8] {
    match record {
        WalRecord::Entry { payload, .. }
        | WalRecord::Vote { payload }
        | WalRecord::Committed { payload }
        | WalRecord::Purge { payload, .. } => payload,
        WalRecord::Truncate { .. } => &[],
    }
}

/// Committed marks that wait for a sync to go with.
pub(super) type Marks = BTreeMap<ShardId, Bytes>;

/// The end of the log.
pub(super) struct Writer {
    shared: Arc<Shared>,
    preparer: Arc<Preparer>,
    /// Bytes at the end of a file that entries leave to votes and purges, for when the disk is full.
    reserve_bytes: u64,
    current: Arc<WalFile>,
    /// Where `buffer` goes; everything before is written.
    position: u64,
    buffer: Vec<u8>,
    /// What the frames in `buffer` do, in order.
    changes: Vec<(ShardId, Change)>,
    /// Answers due after the next write or sync, in order.
    answers: VecDeque<Answer>,
    bounds: HashMap<ShardId, Bounds>,
    /// Whether files may have become unneeded.
    is_purge_due: bool,
}

/// What an append gets once its frames are where it wants them.
struct Answer {
    done: Waiter,
    result: Result<(), StorageError>,
    durability: Durability,
}

impl Writer {
    /// A writer that goes on where recovery ended.
    pub(super) fn new(shared: Arc<Shared>, preparer: Arc<Preparer>, file_bytes: u64, at: &Recovered) -> Self {
        let bounds = shared.index.lock().shards.iter().map(|(shard, index)| (*shard, index.bounds())).collect();
        let mut writer = Self {
            shared,
            preparer,
            reserve_bytes: file_bytes / 64,
            current: at.current.clone(),
            position: at.position,
            buffer: Vec::new(),
            changes: Vec::new(),
            answers: VecDeque::new(),
            bounds,
            is_purge_due: true,
        };
        writer.shared.syncer.begin(&writer.current, writer.position);
        writer.publish_room();
        writer.purge_files();
        writer.preparer.used(writer.position, writer.current.bytes);
        writer.preparer.request(writer.current.sequence + 1);
        writer
    }

    /// Writes and answers a batch, after a sync if it has an append that waits for one; `marks` go along if there is
    /// something to write.
    pub(super) fn commit(&mut self, batch: Vec<Append>, marks: Marks) {
        for append in batch {
            let result = self.stage(append.shard, append.records, append.bytes);
            self.answers.push_back(Answer { done: append.done, result, durability: append.durability });
        }
        if !self.buffer.is_empty() {
            self.stage_marks(marks);
        }
        self.write();
        while let Some(answer) = self.answers.pop_front_if(|answer| answer.durability == Durability::Async) {
            self.answer(answer);
        }
        if self.answers.is_empty() {
            self.shared.syncer.owe();
        } else {
            self.sync();
            self.answer_all();
        }
        self.purge_files();
    }

    /// It panicked: what is on disk, and who was answered, is unknown from then on.
    pub(super) fn fail(&mut self) {
        self.shared.fail(&io::Error::other("its writer panicked"));
        self.answer_all();
    }

    /// Writes the last marks and a frame that proves everything before it was synced.
    pub(super) fn finish(&mut self, marks: Marks) {
        self.stage_marks(marks);
        self.write();
        self.sync();
        if !self.shared.has_failed() && self.fits(END_BYTES, 0) {
            self.push_mark_frame(FrameKind::Close);
            self.write();
            self.sync();
        }
    }

    fn stage_marks(&mut self, marks: Marks) {
        for (shard, payload) in marks {
            let crc = crc32c::crc32c(&payload);
            let bytes = frame_bytes(payload.len() as u64);
            // A mark that finds no room is dropped: it only saves work after a restart.
            if self.fits(bytes, self.reserve_bytes) && !self.is_corrupt(shard) {
                self.stage_state();
                self.push(shard, WalRecord::Committed { payload }, crc);
            }
        }
    }

    /// Puts an append's frames into the buffer: all of them, or none.
    fn stage(&mut self, shard: ShardId, records: Vec<(WalRecord, u32)>, bytes: u64) -> Result<(), StorageError> {
        if self.shared.has_failed() {
            return Err(StorageError::SyncFailed);
        }
        if let Some(corrupt) = self.shared.index.lock().shards.get(&shard).and_then(|index| index.corrupt.clone()) {
            return Err(corrupt);
        }
        let mut bounds = self.bounds.get(&shard).copied().unwrap_or_default();
        let mut is_essential = true;
        for (record, _) in &records {
            bounds.admit(shard, record)?;
            is_essential &= !matches!(record, WalRecord::Entry { .. });
        }
        self.make_room(bytes, is_essential)?;
        self.stage_state();
        self.bounds.insert(shard, bounds);
        for (record, crc) in records {
            self.push(shard, record, crc);
        }
        Ok(())
    }

    fn is_corrupt(&self, shard: ShardId) -> bool {
        self.shared.index.lock().shards.get(&shard).is_some_and(|index| index.corrupt.is_some())
    }

    /// The first frames of each file: votes and marks of all shards, so that no older file is needed for them.
    /// Those of a damaged shard stay where they are, and keep their files.
    fn state(&self) -> Vec<(ShardId, WalRecord)> {
        let index = self.shared.index.lock();
        let mut state = Vec::new();
        for (shard, index) in index.shards.iter().filter(|(_, index)| index.corrupt.is_none()) {
            let vote = index.vote.iter().map(|payload| WalRecord::Vote { payload: payload.clone() });
            let purged = index.purged.iter();
            let purged = purged.map(|(upto, payload)| WalRecord::Purge { upto: *upto, payload: payload.clone() });
            let committed = index.committed.iter().map(|payload| WalRecord::Committed { payload: payload.clone() });
            state.extend(vote.chain(purged).chain(committed).map(|record| (*shard, record)));
        }
        state.sort_by_key(|(shard, _)| *shard);
        state
    }

    fn is_fresh(&self) -> bool {
        self.position == DATA_START && self.buffer.is_empty()
    }

    fn stage_state(&mut self) {
        if !self.is_fresh() {
            return;
        }
        for (shard, record) in self.state() {
            let crc = crc32c::crc32c(payload_of(&record));
            self.push(shard, record, crc);
        }
    }

    fn state_bytes(&self) -> u64 {
        self.state().iter().map(|(_, record)| frame_bytes(payload_of(record).len() as u64)).sum()
    }

    /// Whether `bytes` fit the current file and leave `reserve` free.
    fn fits(&self, bytes: u64, reserve: u64) -> bool {
        let state = if self.is_fresh() { self.state_bytes() } else { 0 };
        self.position + self.buffer.len() as u64 + state + bytes + END_BYTES + reserve <= self.current.bytes
    }

    fn make_room(&mut self, bytes: u64, is_essential: bool) -> Result<(), StorageError> {
        while !self.fits(bytes, self.reserve_bytes) {
            if is_essential && self.preparer.failure().is_some() && self.fits(bytes, 0) {
                self.preparer.retry();
                return Ok(());
            }
            let needed = DATA_START + self.state_bytes() + bytes + END_BYTES + self.reserve_bytes;
            match self.roll(needed) {
                Err(_) if is_essential && !self.shared.has_failed() && self.fits(bytes, 0) => return Ok(()),
                rolled => rolled?,
            }
        }
        Ok(())
    }

    /// Ends the current file, synced, and goes on in the next.
    fn roll(&mut self, needed: u64) -> Result<(), StorageError> {
        let next = self.preparer.take(self.current.sequence + 1, needed)?;
        self.push_mark_frame(FrameKind::End);
        self.write();
        self.sync();
        if self.shared.has_failed() {
            return Err(StorageError::SyncFailed);
        }
        self.answer_all();
        self.shared.index.lock().files.insert(next.sequence, next.clone());
        self.current = next;
        self.position = DATA_START;
        self.shared.syncer.begin(&self.current, DATA_START);
        self.preparer.used(DATA_START, self.current.bytes);
        self.is_purge_due = true;
        if self.current.bytes >= needed {
            self.preparer.request(self.current.sequence + 1);
        }
        self.publish_room();
        Ok(())
    }

    fn push(&mut self, shard: ShardId, record: WalRecord, payload_crc: u32) {
        let mut header = self.header(FrameKind::Entry, shard);
        header.length = payload_of(&record).len() as u32;
        header.payload_crc = payload_crc;
        (header.kind, header.term, header.index) = match &record {
            WalRecord::Entry { term, index, .. } => (FrameKind::Entry, *term, *index),
            WalRecord::Vote { .. } => (FrameKind::Vote, Term::default(), EntryIndex::default()),
            WalRecord::Committed { .. } => (FrameKind::Committed, Term::default(), EntryIndex::default()),
            WalRecord::Truncate { after } => (FrameKind::Truncate, Term::default(), *after),
            WalRecord::Purge { upto, .. } => (FrameKind::Purge, Term::default(), *upto),
        };
        let position = self.position + self.buffer.len() as u64;
        header.encode(position, payload_of(&record), &mut self.buffer);
        let change = match record {
            WalRecord::Entry { term, index, .. } => {
                let sequence = self.current.sequence;
                Change::Entry(index, Location { sequence, position, term, length: header.length })
            }
            WalRecord::Vote { payload } => Change::Vote(payload),
            WalRecord::Committed { payload } => Change::Committed(payload),
            WalRecord::Truncate { after } => Change::Truncate(after),
            WalRecord::Purge { upto, payload } => Change::Purge(upto, payload),
        };
        self.is_purge_due |= matches!(change, Change::Purge(..) | Change::Truncate(_));
        self.changes.push((shard, change));
    }

    fn push_mark_frame(&mut self, kind: FrameKind) {
        let position = self.position + self.buffer.len() as u64;
        self.header(kind, ShardId::default()).encode(position, &[], &mut self.buffer);
    }

    fn header(&self, kind: FrameKind, shard: ShardId) -> FrameHeader {
        FrameHeader {
            kind,
            shard,
            length: 0,
            term: Term::default(),
            index: EntryIndex::default(),
            sequence: self.current.sequence,
            synced: self.shared.syncer.synced(),
            payload_crc: crc32c::crc32c(&[]),
        }
    }

    /// Writes the buffer. A failure is for ever: what is on disk is unknown from then on.
    fn write(&mut self) {
        if self.buffer.is_empty() || self.shared.has_failed() {
            return;
        }
        let bytes = self.buffer.len() as u64;
        self.fill_page();
        if let Err(error) = self.current.file.write_at(&self.buffer, self.position) {
            return self.shared.fail(&error);
        }
        self.shared.counts.bytes_written.fetch_add(bytes, Ordering::Relaxed);
        self.position += bytes;
        self.shared.syncer.wrote(self.position);
        self.preparer.used(self.position, self.current.bytes);
        self.buffer.clear();
        if self.buffer.capacity() > BUFFER_BYTES_MAX {
            self.buffer = Vec::new();
        }
        let mut index = self.shared.index.lock();
        for (shard, change) in self.changes.drain(..) {
            // Checked by `Bounds::admit` before, so it cannot be out of order.
            let is_in_order = index.shards.entry(shard).or_default().apply(change);
            debug_assert!(is_in_order, "an entry out of order was written");
        }
        drop(index);
        self.publish_room();
    }

    /// Fills the page that the buffer ends in, if it is the first to write there: what is written of a page that the system
    /// has dropped waits until the rest is read, and the rest is nothing.
    fn fill_page(&mut self) {
        let end = self.position + self.buffer.len() as u64;
        let filled = end.next_multiple_of(PAGE_BYTES).min(self.current.bytes);
        if end - end % PAGE_BYTES >= self.position {
            self.buffer.resize(self.buffer.len() + (filled - end) as usize, 0);
        }
    }

    /// Syncs what is written. A failure is for ever, and in `shared`.
    fn sync(&self) {
        let begin = env::instant();
        if self.shared.syncer.sync(&self.shared).is_ok() {
            let micros = u64::try_from(env::elapsed(begin).as_micros()).unwrap_or(u64::MAX);
            self.shared.sync_micros.store(micros, Ordering::Relaxed);
        }
    }

    /// Answers every append, in order.
    fn answer_all(&mut self) {
        while let Some(answer) = self.answers.pop_front() {
            self.answer(answer);
        }
    }

    fn answer(&self, Answer { done, result, .. }: Answer) {
        let result = if self.shared.has_failed() { result.and(Err(StorageError::SyncFailed)) } else { result };
        self.shared.counts.appends.fetch_add(1, Ordering::Relaxed);
        done.answer(result);
    }

    fn publish_room(&self) {
        let room = self.current.bytes.saturating_sub(self.position + END_BYTES + self.reserve_bytes);
        self.shared.room.store(room, Ordering::Relaxed);
        self.shared.current_bytes.store(self.current.bytes, Ordering::Relaxed);
    }

    /// Hands unneeded files over, once the current one has the votes and marks that were in them, synced.
    fn purge_files(&mut self) {
        if !self.is_purge_due || self.shared.has_failed() || self.shared.syncer.synced() == DATA_START {
            return;
        }
        self.is_purge_due = false;
        let unneeded = self.shared.index.lock().take_unneeded(self.current.sequence);
        if !unneeded.is_empty() {
            self.preparer.retire(unneeded);
        }
    }

    #[cfg(test)]
    pub(super) fn sequence(&self) -> u64 {
        self.current.sequence
    }
}
