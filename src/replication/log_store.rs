//! A shard's Raft log: openraft's log storage on the node's shared WAL.
//!
//! Owns the shard's vote, committed mark and log bounds in memory, and a cache of entries from append until
//! they are applied, so that apply on the leader never reads the WAL. The cache is bounded by what the
//! appender lets into flight. Leaves out files and syncing (`storage::wal`). openraft's core is the only writer.
//! A crash loses the cache; the WAL gives back what was synced.

use super::codec::DecodeError;
use super::entry::{decode_payload, encode_payload};
use super::raft::{
    Entry, LogId, TypeConfig, Vote, decode_log_id, decode_vote, encode_log_id, encode_vote, index_of, log_id, term_of,
};
use super::read_side::Failure;
use super::stall::{EntryAppend, Stall};
use crate::storage::StorageError;
use crate::storage::wal::{ShardRecovered, Urgency, Wal, WalRecord};
use futures::Stream;
use millstream_catalog::model::{ByteSize, Durability, EntryIndex, ShardId};
use openraft::entry::RaftEntry;
use openraft::storage::{IOFlushed, LogState, RaftLogReader, RaftLogStorage};
use openraft::{EntryPayload, LogIdOptionExt, OptionalSend};
use parking_lot::Mutex;
use std::collections::VecDeque;
use std::fmt::Debug;
use std::io;
use std::ops::{Bound, RangeBounds};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use tokio::sync::{Notify, oneshot};

/// Bytes read from the WAL at once when entries are applied after a restart.
const READ_BYTES: ByteSize = ByteSize::new(8 << 20);

/// The log of one shard. Clones share it; openraft reads through clones.
#[derive(Debug, Clone)]
pub(crate) struct LogStore {
    wal: Wal,
    shard: ShardId,
    state: Arc<Mutex<State>>,
    stall: Arc<Stall>,
    /// The statements that come, come one at a time.
    is_alone: Arc<AtomicBool>,
    failure: Failure,
    /// Woken when entries are gone from the WAL.
    purges: Arc<Notify>,
}

/// Where the log stands. Indexes here are Raft's; the WAL's are one higher, so that the WAL can say "nothing
/// is left" (`after` 0), while Raft's first entry is 0.
#[derive(Debug, Default)]
struct State {
    vote: Option<Vote>,
    committed: Option<LogId>,
    purged: Option<LogId>,
    last: Option<LogId>,
    /// The index of the first entry, when there is one; or where the next would go.
    first: u64,
    /// Consecutive entries up to `last`, from the first that is not applied yet, or none.
    cache: VecDeque<Entry>,
}

fn wal_index(index: u64) -> EntryIndex {
    EntryIndex::new(index.saturating_add(1))
}

fn damaged(shard: ShardId, what: &str, error: &DecodeError) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("{what} of shard {shard} {error}"))
}

impl LogStore {
    /// The log of `shard` as the WAL recovered it; `purges` is woken when entries are gone from it.
    ///
    /// # Errors
    /// When a recovered mark cannot be read.
    pub(crate) fn open(
        wal: Wal,
        shard: ShardId,
        recovered: ShardRecovered,
        failure: Failure,
        purges: Arc<Notify>,
    ) -> Result<Self, io::Error> {
        let vote = recovered.vote.map(decode_vote).transpose().map_err(|e| damaged(shard, "vote", &e))?;
        let purged = recovered.purged.map(|(_, payload)| decode_log_id(payload)).transpose();
        let purged = purged.map_err(|e| damaged(shard, "purge mark", &e))?;
        let entry_last =
            recovered.last.map(|(term, index)| log_id(term, EntryIndex::new(index.value().saturating_sub(1))));
        let last = entry_last.max(purged);
        let committed = recovered.committed.map(decode_log_id).transpose();
        // A mark past the log would claim entries that are not there.
        let committed = committed.map_err(|e| damaged(shard, "commit mark", &e))?.min(last);
        let first = recovered.first.map_or_else(|| last.next_index(), |first| first.value().saturating_sub(1));
        let state = State { vote, committed, purged, last, first, cache: VecDeque::new() };
        let (state, is_alone) = (Arc::new(Mutex::new(state)), Arc::default());
        Ok(Self { wal, shard, state, stall: Arc::default(), is_alone, failure, purges })
    }

    /// Drops entries up to `upto` from the cache: they are applied.
    pub(crate) fn applied(&self, upto: EntryIndex) {
        let mut state = self.state.lock();
        while state.cache.front().is_some_and(|entry| entry.index() <= upto.value()) {
            state.cache.pop_front();
        }
    }

    /// Says whether statements come one at a time, each after the one before was answered: then nothing is won
    /// by handing entries to another thread.
    pub(crate) fn set_alone(&self, is_alone: bool) {
        self.is_alone.store(is_alone, Ordering::Relaxed);
    }

    /// Whether the log has a vote and has lost every entry: the first one comes before the first vote.
    pub(crate) fn has_lost_all(&self) -> bool {
        let state = self.state.lock();
        state.vote.is_some() && state.last.is_none()
    }

    /// The last entry that is gone, for system views.
    pub(crate) fn purged(&self) -> Option<EntryIndex> {
        self.state.lock().purged.as_ref().map(index_of)
    }

    /// Whether entries of `bytes` will find space in the WAL; asked before they are proposed, because a failed
    /// write is fatal.
    pub(crate) fn check_room(&self, bytes: usize) -> Result<(), StorageError> {
        if self.stall.is_stalled() {
            return Err(StorageError::DiskFull);
        }
        self.wal.check_room(ByteSize::of(bytes))
    }

    /// Syncs every entry that is applied; blocks. A manifest may not be ahead of the log: a power cut would take entries of
    /// other shards from the log's end, and the manifest would keep what came after them.
    pub(crate) fn sync(&self) -> Result<(), StorageError> {
        self.wal.sync()
    }

    /// As [`Wal::free_spares`].
    pub(crate) fn free_spares(&self) {
        self.wal.free_spares();
    }

    /// As [`LogStore::check_room`], of entries by which space comes back.
    pub(crate) fn check_room_to_free(&self, bytes: usize) -> Result<(), StorageError> {
        if self.stall.is_stalled() {
            return Err(StorageError::DiskFull);
        }
        self.wal.check_room_to_free(ByteSize::of(bytes))
    }

    /// Whether the log cannot grow.
    pub(crate) fn is_disk_full(&self) -> bool {
        self.wal.is_disk_full()
    }

    /// Appends again what the WAL had no room for, whenever it has some. Runs until it is aborted.
    pub(crate) async fn retry_stalled(self) {
        self.stall.run(self.wal, self.shard, self.failure).await;
    }

    /// Appends `records` and waits until they are synced.
    async fn write(&self, records: Vec<WalRecord>) -> Result<(), io::Error> {
        let (done, synced) = oneshot::channel();
        let failure = self.failure.clone();
        self.wal.append(
            self.shard,
            records,
            Urgency::Batched,
            Box::new(move |result| {
                if let Err(error) = &result {
                    failure.report(error);
                }
                // The waiter is gone only when the core is.
                let _ = done.send(result);
            }),
        );
        synced.await.unwrap_or(Err(StorageError::Closed)).map_err(io::Error::other)
    }

    /// Writes `record` without waiting, and then does `then`; a failure stops the node.
    fn write_later(&self, record: WalRecord, then: impl FnOnce() + Send + 'static) {
        let failure = self.failure.clone();
        let done = move |result: Result<(), StorageError>| match result {
            Ok(()) => then(),
            Err(error) => failure.report(&error),
        };
        self.wal.append(self.shard, vec![record], Urgency::Batched, Box::new(done));
    }

    /// Entries of `start..end` in order, from cache and WAL, stopping after `bytes_max` but never before one.
    fn read(&self, start: u64, end: u64, bytes_max: ByteSize) -> Result<Vec<Entry>, io::Error> {
        let (start, end, mut cached) = self.read_cached(start, end);
        let cache_start = cached.first().map_or(end, RaftEntry::index);
        if start >= cache_start {
            return Ok(cached);
        }
        let mut entries = Vec::new();
        let (mut next, mut bytes) = (start, 0);
        while next < cache_start && (bytes < bytes_max.value() || entries.is_empty()) {
            let left = ByteSize::new(bytes_max.value().saturating_sub(bytes));
            let read = self.wal.read(self.shard, wal_index(next), wal_index(cache_start), left);
            let read = read.map_err(io::Error::other)?;
            if read.is_empty() {
                let text = format!("entry {next} of shard {} is missing", self.shard);
                return Err(io::Error::new(io::ErrorKind::NotFound, text));
            }
            for entry in read {
                bytes += entry.payload.len() as u64;
                let payload = decode_payload(entry.payload).map_err(|e| damaged(self.shard, "entry", &e))?;
                let id = log_id(entry.term, EntryIndex::new(next));
                entries.push(Entry::new(id, payload));
                next += 1;
            }
        }
        if next == cache_start {
            entries.append(&mut cached);
        }
        Ok(entries)
    }

    /// The bounds cut to what the log holds, and the cached entries at their end.
    fn read_cached(&self, start: u64, end: u64) -> (u64, u64, Vec<Entry>) {
        let state = self.state.lock();
        let start = start.max(state.first);
        let end = end.min(state.last.next_index());
        let cached = match state.cache.front() {
            Some(front) if start < end => {
                let front = front.index();
                let skip = usize::try_from(start.saturating_sub(front)).unwrap_or(usize::MAX);
                state.cache.iter().skip(skip).take_while(|entry| entry.index() < end).cloned().collect()
            }
            _ => Vec::new(),
        };
        (start, end.max(start), cached)
    }
}

fn bounds(range: &impl RangeBounds<u64>) -> (u64, u64) {
    let start = match range.start_bound() {
        Bound::Included(start) => *start,
        Bound::Excluded(start) => start.saturating_add(1),
        Bound::Unbounded => 0,
    };
    let end = match range.end_bound() {
        Bound::Included(last) => last.saturating_add(1),
        Bound::Excluded(end) => *end,
        Bound::Unbounded => u64::MAX,
    };
    (start, end)
}

impl RaftLogReader<TypeConfig> for LogStore {
    async fn try_get_log_entries<RB>(&mut self, range: RB) -> Result<Vec<Entry>, io::Error>
    where
        RB: RangeBounds<u64> + Clone + Debug + OptionalSend,
    {
        let (start, end) = bounds(&range);
        self.read(start, end, ByteSize::new(u64::MAX))
    }

    async fn read_vote(&mut self) -> Result<Option<Vote>, io::Error> {
        Ok(self.state.lock().vote)
    }

    /// Streams in chunks, so that a restart does not hold the whole log in memory.
    async fn entries_stream<RB>(&mut self, range: RB) -> impl Stream<Item = Result<Entry, io::Error>> + OptionalSend
    where
        RB: RangeBounds<u64> + Clone + Debug + OptionalSend,
    {
        let (start, end) = bounds(&range);
        let store = self.clone();
        futures::stream::try_unfold((store, start, VecDeque::new()), move |(store, next, mut ready)| async move {
            if ready.is_empty() && next < end {
                ready = VecDeque::from(store.read(next, end, READ_BYTES)?);
            }
            Ok(ready.pop_front().map(|entry: Entry| {
                let next = entry.index().saturating_add(1);
                (entry, (store, next, ready))
            }))
        })
    }

    async fn limited_get_log_entries(&mut self, start: u64, end: u64) -> Result<Vec<Entry>, io::Error> {
        self.read(start, end, READ_BYTES)
    }
}

impl RaftLogStorage<TypeConfig> for LogStore {
    type LogReader = Self;

    async fn get_log_state(&mut self) -> Result<LogState<TypeConfig>, io::Error> {
        let state = self.state.lock();
        Ok(LogState { last_purged_log_id: state.purged, last_log_id: state.last })
    }

    async fn get_log_reader(&mut self) -> Self {
        self.clone()
    }

    async fn save_vote(&mut self, vote: &Vote) -> Result<(), io::Error> {
        self.write(vec![WalRecord::Vote { payload: encode_vote(vote) }]).await?;
        self.state.lock().vote = Some(*vote);
        Ok(())
    }

    async fn save_committed(&mut self, committed: Option<LogId>) -> Result<(), io::Error> {
        let Some(id) = committed else { return Ok(()) };
        self.write_later(WalRecord::Committed { payload: encode_log_id(&id) }, || ());
        self.state.lock().committed = Some(id);
        Ok(())
    }

    async fn read_committed(&mut self) -> Result<Option<LogId>, io::Error> {
        Ok(self.state.lock().committed)
    }

    async fn append<I>(&mut self, entries: I, callback: IOFlushed<TypeConfig>) -> Result<(), io::Error>
    where
        I: IntoIterator<Item = Entry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let entries: Vec<Entry> = entries.into_iter().collect();
        let Some(first) = entries.first().map(RaftEntry::index) else {
            callback.io_completed(Ok(()));
            return Ok(());
        };
        let mut records = Vec::with_capacity(entries.len());
        let mut is_async = true;
        for entry in &entries {
            is_async &= matches!(&entry.payload, EntryPayload::Normal(data) if data.durability() == Durability::Async);
            let payload = encode_payload(&entry.payload).map_err(io::Error::other)?;
            records.push(WalRecord::Entry {
                term: term_of(&entry.log_id),
                index: wal_index(entry.log_id.index()),
                payload,
            });
        }
        {
            let mut state = self.state.lock();
            if state.first == state.last.next_index() {
                state.first = first;
            }
            if let Some(last) = entries.last() {
                state.last = Some(last.log_id);
            }
            state.cache.extend(entries);
        }
        let urgency = match is_async {
            true => Urgency::Written,
            false if self.is_alone.load(Ordering::Relaxed) => Urgency::Inline,
            false => Urgency::Batched,
        };
        let append = EntryAppend { first, records, flushed: callback, urgency };
        self.stall.append(&self.wal, self.shard, &self.failure, append);
        Ok(())
    }

    async fn truncate_after(&mut self, last: Option<LogId>) -> Result<(), io::Error> {
        let kept = last.next_index();
        {
            let mut state = self.state.lock();
            if last >= state.last {
                return Ok(());
            }
            if self.stall.is_stalled() {
                return Err(io::Error::other("cannot cut the log while entries wait for space"));
            }
            while state.cache.back().is_some_and(|entry| entry.index() >= kept) {
                state.cache.pop_back();
            }
            state.last = last.max(state.purged);
            state.first = state.first.min(state.last.next_index());
        }
        // `kept` is Raft's next index, so it is the WAL's index of the last entry kept.
        self.write(vec![WalRecord::Truncate { after: EntryIndex::new(kept) }]).await
    }

    async fn purge(&mut self, id: LogId) -> Result<(), io::Error> {
        {
            let mut state = self.state.lock();
            while state.cache.front().is_some_and(|entry| entry.index() <= id.index()) {
                state.cache.pop_front();
            }
            state.purged = state.purged.max(Some(id));
            state.last = state.last.max(Some(id));
            state.first = state.first.max(state.purged.next_index());
        }
        let record = WalRecord::Purge { upto: wal_index(id.index()), payload: encode_log_id(&id) };
        let purges = Arc::clone(&self.purges);
        self.write_later(record, move || purges.notify_one());
        Ok(())
    }
}
