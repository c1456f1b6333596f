//! Reading entries back, checksums and identity verified each time.
//!
//! Owns the way from the index to bytes. Leaves out caching: the owner of a shard keeps what it needs often.

use super::WalEntry;
use super::file::{WalFile, log_name};
use super::index::{Index, Location};
use crate::storage::error::StorageError;
use crate::storage::frame::{FrameHeader, FrameKind, HEADER_BYTES};
use bytes::Bytes;
use millstream_catalog::model::{ByteSize, EntryIndex, ShardId};
use parking_lot::Mutex;
use std::ops::Range;
use std::sync::Arc;

/// Bytes of one read call: neighbouring frames are read together up to this.
const RUN_BYTES_MAX: u64 = 1 << 20;

/// Neighbouring frames of one file.
struct Run {
    file: Arc<WalFile>,
    entries: Vec<(EntryIndex, Location)>,
}

impl Run {
    fn start(&self) -> u64 {
        self.entries.first().map_or(0, |(_, location)| location.position)
    }

    fn end(&self) -> u64 {
        self.entries.last().map_or(0, |(_, location)| location.end())
    }
}

/// Entries of `range` from its first on, see [`Wal::read`](super::Wal::read).
pub(super) fn read(
    index: &Mutex<Index>,
    shard: ShardId,
    range: Range<EntryIndex>,
    bytes_max: ByteSize,
) -> Result<Vec<WalEntry>, StorageError> {
    loop {
        let runs = plan(&index.lock(), shard, &range, bytes_max);
        match runs.iter().map(|run| read_run(run, shard)).collect::<Result<Vec<_>, _>>() {
            Ok(entries) => return Ok(entries.into_iter().flatten().collect()),
            // A file purged meanwhile may already hold other frames: then the plan is out of date, not the data bad.
            Err(error) if is_current(&index.lock(), shard, &runs) => return Err(error),
            Err(_) => {}
        }
    }
}

fn plan(index: &Index, shard: ShardId, range: &Range<EntryIndex>, bytes_max: ByteSize) -> Vec<Run> {
    let mut runs: Vec<Run> = Vec::new();
    let Some(shard) = index.shards.get(&shard) else { return runs };
    let mut bytes = 0;
    let mut at = range.start;
    while at < range.end {
        let Some(location) = shard.find(at).copied() else { break };
        bytes += u64::from(location.length);
        if bytes > bytes_max.value() && at != range.start {
            break;
        }
        match runs.last_mut() {
            Some(run)
                if run.file.sequence == location.sequence
                    && run.end() == location.position
                    && location.end() - run.start() <= RUN_BYTES_MAX =>
            {
                run.entries.push((at, location));
            }
            _ => {
                let Some(file) = index.files.get(&location.sequence).cloned() else { break };
                runs.push(Run { file, entries: vec![(at, location)] });
            }
        }
        at = at.next();
    }
    runs
}

fn is_current(index: &Index, shard: ShardId, runs: &[Run]) -> bool {
    let Some(shard) = index.shards.get(&shard) else { return false };
    runs.iter().flat_map(|run| &run.entries).all(|(index, location)| shard.find(*index) == Some(location))
}

fn read_run(run: &Run, shard: ShardId) -> Result<Vec<WalEntry>, StorageError> {
    let start = run.start();
    let mut bytes = vec![0; (run.end() - start) as usize];
    let read = run.file.file.read_at(&mut bytes, start);
    read.map_err(|source| StorageError::io("read the write-ahead log", source))?;
    let bytes = Bytes::from(bytes);
    let mut entries = Vec::with_capacity(run.entries.len());
    for (index, location) in &run.entries {
        let at = (location.position - start) as usize;
        let length = location.length;
        let header = FrameHeader::decode(&bytes[at..], location.position).ok();
        let whole = header.filter(|header| {
            (header.kind, header.shard, header.index, header.term) == (FrameKind::Entry, shard, *index, location.term)
                && (header.sequence, header.length) == (location.sequence, length)
                && header.payload(&bytes[at..]).is_some()
        });
        if whole.is_none() {
            let what = "the checksum of a frame does not match";
            let file = log_name(location.sequence);
            return Err(StorageError::Corrupt { file, position: location.position, what });
        }
        let payload = at + HEADER_BYTES as usize;
        let payload = bytes.slice(payload..payload + length as usize);
        entries.push(WalEntry { term: location.term, index: *index, payload });
    }
    Ok(entries)
}
