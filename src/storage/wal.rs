//! The write-ahead log of a node: what makes an entry durable, for all shards at once.
//!
//! Owns the queue, the writer's thread and the helper's, and the types callers see. Its parts: `file` (names,
//! headers, allocation), `prepare` (the next file, ahead of need), `writer` (frames, group commit), `syncer` (what is
//! on stable storage), `recover` (what a crash left), `index` and `read`. Leaves out what payloads mean: replication, its one caller, knows.
//!
//! While one batch is being synced the next forms, and goes out with one write and one sync. On a slow disk it waits a part
//! of a sync's time for the shards that were in the last.
//! A caller that is alone may write for itself ([`Urgency::Inline`]): that saves two changes of thread.
//! A crash loses nothing that was answered, but for entries that asked to be answered before they were synced
//! ([`Urgency::Written`]). Those, and what was submitted and not answered, may be there or not, but never with a hole
//! before something that is: all shards share one order, and a synced record makes everything before it durable.
//!
//! A file goes back when no entry in it, or in an older one, is left: a shard that never purges keeps everything
//! after its oldest entry. [`WalStats::oldest`] names it.

pub(crate) mod file;
mod index;
mod prepare;
mod read;
mod recover;
mod syncer;
#[cfg(test)]
mod tests;
mod writer;

use self::file::log_name;
use self::index::{Index, ShardIndex};
use self::prepare::{Mode, Preparer};
use self::syncer::Syncer;
use self::writer::{Append, Marks, Writer};
use super::disk::{DirLock, Disk};
use super::error::StorageError;
use super::patience::Patience;
use crate::env;
use bytes::Bytes;
use millstream_catalog::model::limit::ASYNC_INLINE_BYTES_MAX;
use millstream_catalog::model::{ByteSize, Durability, EntryIndex, ShardId, Term};
use parking_lot::{Condvar, Mutex};
use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::{self, JoinHandle, ThreadId};
use std::time::Duration;
use tokio::sync::watch;

/// How a log is laid out.
#[derive(Debug, Clone)]
pub struct WalOptions {
    /// Bytes of one file; files are zero-filled ahead and recycled.
    pub file_bytes: ByteSize,
    /// Bytes written with one sync; the rest of what waits goes with the next.
    pub batch_bytes_max: ByteSize,
    /// Bytes waiting before [`Wal::append`] holds its caller back.
    pub queue_bytes_max: ByteSize,
}

impl Default for WalOptions {
    fn default() -> Self {
        Self {
            file_bytes: ByteSize::new(64 << 20),
            batch_bytes_max: ByteSize::new(8 << 20),
            queue_bytes_max: ByteSize::new(64 << 20),
        }
    }
}

/// What a shard appends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum WalRecord {
    /// A Raft entry; must follow the shard's last one.
    Entry {
        /// Its term.
        term: Term,
        /// Its index.
        index: EntryIndex,
        /// Its content, opaque here.
        payload: Bytes,
    },
    /// The shard's vote; replaces the one before.
    Vote {
        /// Opaque here.
        payload: Bytes,
    },
    /// The shard's committed mark; replaces the one before. Written with the next record that is synced, and
    /// never the cause of a sync; a crash may lose it.
    Committed {
        /// Opaque here.
        payload: Bytes,
    },
    /// Entries after `after` are gone.
    Truncate {
        /// The last entry kept.
        after: EntryIndex,
    },
    /// Entries up to `upto` are gone.
    Purge {
        /// The last entry gone.
        upto: EntryIndex,
        /// Opaque here (the log id purged up to).
        payload: Bytes,
    },
}

/// Who writes an append, and when it is answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Urgency {
    /// The writer's thread, together with what else waits.
    Batched,
    /// The caller's thread when nothing else is on its way, the last sync was quick and no new file is needed;
    /// else the writer's. For callers that have nothing to do before they are answered.
    Inline,
    /// The caller's thread when nothing else is on its way, no new file is needed and the append is small; else the
    /// writer's. Entries are answered once they are written, behind what was submitted before; they are synced within
    /// [`ASYNC_SYNC_DELAY`](millstream_catalog::model::limit::ASYNC_SYNC_DELAY), or with the next record that is. Other records are
    /// answered when they are synced.
    Written,
}

/// Answers an append: runs on the thread that wrote, after the sync unless [`Urgency::Written`] was asked for. Must not block: everybody waits for that
/// thread. Must not append.
pub type WalDone = Box<dyn FnOnce(Result<(), StorageError>) + Send>;

/// A stored entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WalEntry {
    /// Its term.
    pub term: Term,
    /// Its index.
    pub index: EntryIndex,
    /// Its content.
    pub payload: Bytes,
}

/// What the log holds of one shard when it is opened.
#[derive(Debug, Clone, Default)]
pub struct ShardRecovered {
    /// The last vote.
    pub vote: Option<Bytes>,
    /// The last committed mark that reached the disk.
    pub committed: Option<Bytes>,
    /// Up to where entries were purged, with the payload of that purge.
    pub purged: Option<(EntryIndex, Bytes)>,
    /// The first entry present.
    pub first: Option<EntryIndex>,
    /// The last entry present.
    pub last: Option<(Term, EntryIndex)>,
    /// Damage that may have cost this shard something: it must neither vote nor lead here.
    pub corrupt: Option<StorageError>,
    /// The file before the oldest one, if there ever was one: it had what comes before everything here.
    pub file_before: Option<String>,
}

/// Counts since the log was opened, and its size now.
#[derive(Debug, Clone, Default)]
pub struct WalStats {
    /// Files, the current one and the one prepared included.
    pub files: usize,
    /// Their bytes.
    pub bytes: ByteSize,
    /// Of these, those of files that hold nothing.
    pub spare_bytes: ByteSize,
    /// Appends answered.
    pub appends: u64,
    /// Syncs for them.
    pub syncs: u64,
    /// Bytes written for them.
    pub bytes_written: ByteSize,
    /// Whether the next file could not be allocated.
    pub is_disk_full: bool,
    /// The shard whose oldest entry keeps the oldest file; seal and purge it to get space back.
    pub oldest: Option<ShardId>,
}

/// The log: a handle, cheap to clone. The last one dropped closes the log.
#[derive(Clone)]
pub struct Wal {
    inner: Arc<Inner>,
}

struct Inner {
    shared: Arc<Shared>,
    preparer: Arc<Preparer>,
    damage: Option<StorageError>,
    queue_bytes_max: u64,
    /// Held while a batch is written; who holds it took the batch from the queue just before.
    writer: Arc<Mutex<Writer>>,
    thread: ThreadId,
    threads: Mutex<Vec<JoinHandle<()>>>,
    lock: Mutex<Option<DirLock>>,
}

/// What callers and the writer share.
struct Shared {
    queue: Mutex<Queue>,
    /// Something for the writer to do.
    work: Condvar,
    /// The queue is shorter.
    drained: Condvar,
    index: Mutex<Index>,
    counts: Counts,
    /// Bytes left in the current file.
    room: AtomicU64,
    /// Bytes of the current file.
    current_bytes: AtomicU64,
    /// Microseconds the last sync took that an append waited for.
    sync_micros: AtomicU64,
    syncer: Syncer,
    failed: watch::Sender<bool>,
}

#[derive(Debug, Default)]
struct Counts {
    appends: AtomicU64,
    syncs: AtomicU64,
    bytes_written: AtomicU64,
}

#[derive(Default)]
struct Queue {
    waiting: VecDeque<Append>,
    /// Bytes in `waiting`.
    bytes: u64,
    marks: Marks,
    is_writer_idle: bool,
    /// A caller writes for itself; the writer's thread waits for it.
    is_inline: bool,
    is_closing: bool,
}

impl Shared {
    fn new(index: Index) -> Self {
        Self {
            queue: Mutex::default(),
            work: Condvar::new(),
            drained: Condvar::new(),
            index: Mutex::new(index),
            counts: Counts::default(),
            room: AtomicU64::new(0),
            current_bytes: AtomicU64::new(0),
            sync_micros: AtomicU64::new(u64::MAX),
            syncer: Syncer::default(),
            failed: watch::Sender::new(false),
        }
    }

    /// Has the writer's thread write what waits, and end.
    fn close(&self) {
        self.queue.lock().is_closing = true;
        self.work.notify_one();
        self.drained.notify_all();
    }

    /// The writer's thread: batches until the log is closed.
    fn write(&self, writer: &Mutex<Writer>, batch_bytes_max: u64) {
        // Whose entries the last sync made durable, and until when their next ones are waited for: they answer their clients
        // only now, and would have to wait for the sync after the next, and each client for two of those.
        let (mut last, mut until, mut patience) = (Vec::new(), env::instant(), Patience::default());
        loop {
            let mut queue = self.queue.lock();
            while queue.is_inline || (queue.waiting.is_empty() && !queue.is_closing) {
                queue.is_writer_idle = true;
                self.work.wait(&mut queue);
            }
            while env::instant() < until && !queue.is_closing && queue.bytes < batch_bytes_max && !queue.has_all(&last)
            {
                queue.is_writer_idle = true;
                if self.work.wait_until(&mut queue, until).timed_out() {
                    patience.waited_in_vain();
                }
            }
            queue.is_writer_idle = false;
            let marks = std::mem::take(&mut queue.marks);
            if queue.waiting.is_empty() {
                drop(queue);
                return writer.lock().finish(marks);
            }
            let batch = queue.take_batch(batch_bytes_max);
            drop(queue);
            self.drained.notify_all();
            last.clear();
            let synced = batch.iter().filter(|append| append.durability == Durability::Sync);
            last.extend(synced.map(|append| append.shard));
            let begin = env::instant();
            Self::commit(writer, batch, marks);
            let now = env::instant();
            if !last.is_empty() {
                patience.took(now.saturating_duration_since(begin));
            }
            until = now + if last.is_empty() { Duration::ZERO } else { patience.time() };
        }
    }

    /// Writes a batch. After a panic everything is answered with [`StorageError::SyncFailed`].
    fn commit(writer: &Mutex<Writer>, batch: Vec<Append>, marks: Marks) {
        let mut committed = catch_unwind(AssertUnwindSafe(|| writer.lock().commit(batch, marks)));
        // An answer may panic: the next one has its turn.
        while committed.is_err() {
            committed = catch_unwind(AssertUnwindSafe(|| writer.lock().fail()));
        }
    }

    /// Whether an append may be written by its caller.
    fn may_inline(&self, queue: &Queue, append: &Append) -> bool {
        queue.is_writer_idle
            && !queue.is_inline
            && !queue.is_closing
            && queue.waiting.is_empty()
            && append.bytes + INLINE_ROOM_MIN <= self.room.load(Ordering::Relaxed)
            && match append.durability {
                // What others wrote and did not sync makes the sync a long one.
                Durability::Sync => {
                    self.sync_micros.load(Ordering::Relaxed) <= INLINE_SYNC_MICROS_MAX && self.syncer.is_synced()
                }
                Durability::Async => append.bytes <= ASYNC_INLINE_BYTES_MAX.value(),
            }
    }

    /// Whether a write or sync ever failed.
    fn has_failed(&self) -> bool {
        *self.failed.borrow()
    }

    /// A write or sync failed: what is on disk is unknown from then on.
    fn fail(&self, error: &std::io::Error) {
        tracing::error!(%error, "the write-ahead log could not be written: the node must stop");
        self.failed.send_replace(true);
    }
}

/// Room a file must have beside an append that its caller writes, so that no caller waits for a new file.
const INLINE_ROOM_MIN: u64 = 4 << 10;
/// The slowest sync after which callers still write for themselves: a blocked one holds its thread that long.
const INLINE_SYNC_MICROS_MAX: u64 = 1_000;

impl Queue {
    /// Whether something of each of `shards` waits.
    fn has_all(&self, shards: &[ShardId]) -> bool {
        shards.iter().all(|shard| self.waiting.iter().any(|append| append.shard == *shard))
    }

    /// The longest run of what waits that fits `bytes_max`, but at least one append.
    fn take_batch(&mut self, bytes_max: u64) -> Vec<Append> {
        let mut bytes = 0;
        let mut count = 0;
        for append in &self.waiting {
            if count > 0 && bytes + append.bytes > bytes_max {
                break;
            }
            bytes += append.bytes;
            count += 1;
        }
        self.bytes -= bytes;
        self.waiting.drain(..count).collect()
    }
}

impl Wal {
    /// Opens or creates the log in `dir`, and says what it holds of each shard.
    ///
    /// # Errors
    /// When the directory cannot be read or written, or a later version wrote it. Damage is no error: it is reported
    /// by shard, in [`ShardRecovered::corrupt`], and [`Wal::damage`].
    pub fn open(
        disk: Arc<dyn Disk>,
        dir: &Path,
        options: WalOptions,
    ) -> Result<(Self, HashMap<ShardId, ShardRecovered>), StorageError> {
        let mut recovered = recover::recover(&disk, dir, &options)?;
        let index = std::mem::take(&mut recovered.index);
        let file_before = index.files.keys().next().filter(|first| **first > 1).map(|first| log_name(first - 1));
        let recovered_of =
            |index: &ShardIndex| ShardRecovered { file_before: file_before.clone(), ..index.recovered() };
        let shards = index.shards.iter().map(|(shard, index)| (*shard, recovered_of(index))).collect();
        let shared = Arc::new(Shared::new(index));
        let file_bytes = options.file_bytes.value();
        let found = (recovered.ready.take(), std::mem::take(&mut recovered.spares));
        let preparer = Arc::new(Preparer::new(disk, dir.to_owned(), file_bytes, Mode::Threaded, found));
        let no_thread = |source| StorageError::io("start a thread of the write-ahead log", source);
        let helper = preparer.clone();
        let helper = env::thread("wal-prepare", move || helper.run()).map_err(no_thread)?;
        let writer = Arc::new(Mutex::new(Writer::new(shared.clone(), preparer.clone(), file_bytes, &recovered)));
        let (writing, writes) = (shared.clone(), writer.clone());
        let batch_bytes_max = options.batch_bytes_max.value();
        let started = env::thread("wal-writer", move || writing.write(&writes, batch_bytes_max));
        let syncing = shared.clone();
        let started = started.and_then(|thread| {
            let syncer = env::thread("wal-sync", move || {
                if catch_unwind(AssertUnwindSafe(|| syncing.syncer.run(&syncing))).is_err() {
                    syncing.fail(&std::io::Error::other("its syncer panicked"));
                }
            });
            syncer.map(|syncer| (thread, syncer))
        });
        let (thread, syncer) = started.map_err(|source| {
            preparer.close();
            shared.close();
            no_thread(source)
        })?;
        let inner = Inner {
            shared,
            preparer,
            damage: recovered.damage,
            queue_bytes_max: options.queue_bytes_max.value(),
            writer,
            thread: thread.thread().id(),
            threads: Mutex::new(vec![thread, helper, syncer]),
            lock: Mutex::new(None),
        };
        Ok((Self { inner: Arc::new(inner) }, shards))
    }

    /// Queues records of a shard, which are written all or none; `done` runs once they are synced (or as `urgency` says), in
    /// the order of appends. Holds the caller back while [`WalOptions::queue_bytes_max`] bytes wait.
    ///
    /// An append of committed marks only is answered at once, on the caller's thread.
    ///
    /// `done` gets [`StorageError::SyncFailed`] when a write or sync failed, now or ever before;
    /// [`StorageError::DiskFull`] when entries find no room (nothing of this append was written, later ones may
    /// succeed); [`StorageError::OutOfOrder`] for an entry that does not follow the last one (as after a refused
    /// one); [`StorageError::Corrupt`] when the shard is; [`StorageError::TooLarge`]; [`StorageError::Closed`].
    pub fn append(&self, shard: ShardId, records: Vec<WalRecord>, urgency: Urgency, done: WalDone) {
        if records.iter().all(|record| matches!(record, WalRecord::Committed { .. })) {
            return done(self.keep_marks(shard, records));
        }
        let durability = if urgency == Urgency::Written { Durability::Async } else { Durability::Sync };
        match Append::new(shard, records, durability, done) {
            Ok(append) => match urgency {
                Urgency::Batched => self.queue(append),
                Urgency::Inline | Urgency::Written => self.write_inline(append),
            },
            Err((done, error)) => done(Err(error)),
        }
    }

    fn keep_marks(&self, shard: ShardId, records: Vec<WalRecord>) -> Result<(), StorageError> {
        if self.inner.shared.has_failed() {
            return Err(StorageError::SyncFailed);
        }
        let mut queue = self.inner.shared.queue.lock();
        if queue.is_closing {
            return Err(StorageError::Closed);
        }
        for record in records {
            if let WalRecord::Committed { payload } = record {
                queue.marks.insert(shard, payload);
            }
        }
        Ok(())
    }

    /// Writes on this thread if that may be, and syncs if that was asked for; else queues.
    fn write_inline(&self, append: Append) {
        let shared = &self.inner.shared;
        let mut queue = shared.queue.lock();
        if !shared.may_inline(&queue, &append) {
            drop(queue);
            return self.queue(append);
        }
        queue.is_inline = true;
        let marks = std::mem::take(&mut queue.marks);
        drop(queue);
        Shared::commit(&self.inner.writer, vec![append], marks);
        let mut queue = shared.queue.lock();
        queue.is_inline = false;
        if !queue.waiting.is_empty() || queue.is_closing {
            queue.is_writer_idle = false;
            drop(queue);
            shared.work.notify_one();
        }
    }

    fn queue(&self, append: Append) {
        let shared = &self.inner.shared;
        let mut queue = shared.queue.lock();
        // The writer itself must not wait for the writer.
        while queue.bytes > 0
            && queue.bytes + append.bytes > self.inner.queue_bytes_max
            && !queue.is_closing
            && thread::current().id() != self.inner.thread
        {
            shared.drained.wait(&mut queue);
        }
        if queue.is_closing {
            drop(queue);
            return append.done.answer(Err(StorageError::Closed));
        }
        queue.bytes += append.bytes;
        queue.waiting.push_back(append);
        let is_idle = !queue.is_inline && std::mem::take(&mut queue.is_writer_idle);
        drop(queue);
        if is_idle {
            shared.work.notify_one();
        }
    }

    /// Entries `first..end` of a shard, as many as fit `bytes_max` but at least one; none if `first` is not
    /// present. An entry can be read once its append is done.
    ///
    /// # Errors
    /// [`StorageError::Corrupt`] when a checksum does not hold, or the system's error.
    pub fn read(
        &self,
        shard: ShardId,
        first: EntryIndex,
        end: EntryIndex,
        bytes_max: ByteSize,
    ) -> Result<Vec<WalEntry>, StorageError> {
        read::read(&self.inner.shared.index, shard, first..end, bytes_max)
    }

    /// Syncs what was answered and is not synced yet; blocks. Whatever is to outlive the log on stable storage and was made of
    /// its entries needs that before.
    ///
    /// # Errors
    /// [`StorageError::SyncFailed`].
    pub fn sync(&self) -> Result<(), StorageError> {
        self.inner.shared.syncer.sync(&self.inner.shared)
    }

    /// Whether entries of `bytes` can be expected to find room. Ask before proposing them: it refuses while what was
    /// proposed before still fits.
    ///
    /// # Errors
    /// [`StorageError::DiskFull`] (or the system's error) when the next file could not be allocated and the current
    /// one nears its end. Allocation is tried again meanwhile.
    pub fn check_room(&self, bytes: ByteSize) -> Result<(), StorageError> {
        self.check_room_beside(bytes, self.inner.shared.current_bytes.load(Ordering::Relaxed) / 4)
    }

    /// As [`Wal::check_room`], of entries by which space comes back: they may use what others leave.
    ///
    /// # Errors
    /// As [`Wal::check_room`].
    pub fn check_room_to_free(&self, bytes: ByteSize) -> Result<(), StorageError> {
        self.check_room_beside(bytes, 0)
    }

    /// Removes files that are kept to be used again: something else has no space.
    pub fn free_spares(&self) {
        if let Err(error) = self.inner.preparer.free_spares() {
            tracing::warn!(%error, "could not remove a spare file of the write-ahead log");
        }
    }

    /// Whether the next file could not be allocated.
    pub fn is_disk_full(&self) -> bool {
        self.inner.preparer.failure().is_some()
    }

    fn check_room_beside(&self, bytes: ByteSize, margin: u64) -> Result<(), StorageError> {
        let shared = &self.inner.shared;
        let bytes = shared.queue.lock().bytes.saturating_add(bytes.value());
        if bytes.saturating_add(margin) <= shared.room.load(Ordering::Relaxed) {
            return Ok(());
        }
        self.inner.preparer.check_room(bytes)
    }

    /// Turns true, for ever, when a write or sync failed: the node must stop.
    pub fn failed(&self) -> watch::Receiver<bool> {
        self.inner.shared.failed.subscribe()
    }

    /// Damage found at opening that may have cost any shard something, those without a frame left too.
    pub fn damage(&self) -> Option<&StorageError> {
        self.inner.damage.as_ref()
    }

    /// Counts and sizes.
    pub fn stats(&self) -> WalStats {
        let shared = &self.inner.shared;
        let [(ready, ready_bytes), (spares, spare_bytes)] = self.inner.preparer.held();
        let index = shared.index.lock();
        let bytes: u64 = index.files.values().map(|file| file.bytes).sum();
        WalStats {
            files: index.files.len() + ready + spares,
            bytes: ByteSize::new(bytes + ready_bytes + spare_bytes),
            spare_bytes: ByteSize::new(spare_bytes),
            appends: shared.counts.appends.load(Ordering::Relaxed),
            syncs: shared.counts.syncs.load(Ordering::Relaxed),
            bytes_written: ByteSize::new(shared.counts.bytes_written.load(Ordering::Relaxed)),
            is_disk_full: self.is_disk_full(),
            oldest: index.oldest().map(|(_, shard)| shard),
        }
    }

    /// Keeps the data directory's lock until the log is closed and its threads have ended: nobody opens it before.
    pub fn hold(&self, lock: DirLock) {
        *self.inner.lock.lock() = Some(lock);
    }

    /// Writes what waits, marks the end, and stops the threads. Appends from now on get [`StorageError::Closed`].
    pub fn close(&self) {
        self.inner.close();
    }
}

impl Inner {
    fn close(&self) {
        self.shared.close();
        let threads = std::mem::take(&mut *self.threads.lock());
        let mut threads = threads.into_iter();
        // A callback may drop the last handle: the writer cannot wait for itself.
        if thread::current().id() == self.thread {
            self.shared.syncer.close();
            return self.preparer.close();
        }
        if let Some(writer) = threads.next()
            && writer.join().is_err()
        {
            tracing::error!("the write-ahead log's writer panicked");
            self.shared.failed.send_replace(true);
        }
        self.shared.syncer.close();
        self.preparer.close();
        for helper in threads {
            if helper.join().is_err() {
                tracing::error!("the write-ahead log's helper panicked");
            }
        }
        self.lock.lock().take();
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.close();
    }
}

impl fmt::Debug for Wal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Wal").field("stats", &self.stats()).finish_non_exhaustive()
    }
}
