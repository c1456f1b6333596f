//! Which entries of which shard are where, and each shard's vote and marks.
//!
//! Owns the rules of a shard's log in memory: what an entry, a truncation, a purge do. Leaves out the disk:
//! recovery fills it from frames, the writer after each sync, readers look entries up. A crash loses it all.

use super::file::WalFile;
use super::{ShardRecovered, WalRecord};
use crate::storage::error::StorageError;
use crate::storage::frame::frame_bytes;
use bytes::Bytes;
use millstream_catalog::model::{EntryIndex, ShardId, Term};
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;

/// Where an entry's frame is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Location {
    pub(super) sequence: u64,
    pub(super) position: u64,
    pub(super) term: Term,
    pub(super) length: u32,
}

impl Location {
    /// The first byte after the frame.
    pub(super) fn end(&self) -> u64 {
        self.position + frame_bytes(u64::from(self.length))
    }
}

/// What a synced frame does to its shard.
#[derive(Debug)]
pub(super) enum Change {
    Entry(EntryIndex, Location),
    Vote(Bytes),
    Committed(Bytes),
    Truncate(EntryIndex),
    Purge(EntryIndex, Bytes),
}

/// The log of one shard.
#[derive(Debug, Default)]
pub(super) struct ShardIndex {
    pub(super) vote: Option<Bytes>,
    pub(super) committed: Option<Bytes>,
    pub(super) purged: Option<(EntryIndex, Bytes)>,
    pub(super) corrupt: Option<StorageError>,
    /// Index of the first of `entries`.
    first: u64,
    entries: VecDeque<Location>,
}

impl ShardIndex {
    /// Does what a frame says; false for an entry that leaves a gap or comes twice, which is then left out.
    pub(super) fn apply(&mut self, change: Change) -> bool {
        match change {
            Change::Vote(payload) => self.vote = Some(payload),
            Change::Committed(payload) => self.committed = Some(payload),
            Change::Truncate(after) => {
                let kept = after.next().value().saturating_sub(self.first).min(self.entries.len() as u64);
                self.entries.truncate(kept as usize);
            }
            Change::Purge(upto, payload) => self.purge(upto, payload),
            Change::Entry(index, location) => return self.push(index, location),
        }
        true
    }

    fn purge(&mut self, upto: EntryIndex, payload: Bytes) {
        if self.purged.as_ref().is_some_and(|(before, _)| *before > upto) {
            return;
        }
        let gone = upto.next().value().saturating_sub(self.first).min(self.entries.len() as u64);
        self.entries.drain(..gone as usize);
        self.first += gone;
        if self.entries.capacity() > 1024 && self.entries.len() < self.entries.capacity() / 4 {
            self.entries.shrink_to(self.entries.len() * 2);
        }
        self.purged = Some((upto, payload));
    }

    fn push(&mut self, index: EntryIndex, location: Location) -> bool {
        if self.purged.as_ref().is_some_and(|(upto, _)| *upto >= index) {
            return true;
        }
        if self.entries.is_empty() {
            self.first = index.value();
        } else if index.value() != self.first + self.entries.len() as u64 {
            return false;
        }
        self.entries.push_back(location);
        true
    }

    /// The entry's frame, if the entry is present.
    pub(super) fn find(&self, index: EntryIndex) -> Option<&Location> {
        let at = index.value().checked_sub(self.first)?;
        self.entries.get(usize::try_from(at).ok()?)
    }

    /// Index of the first entry present.
    pub(super) fn first(&self) -> Option<EntryIndex> {
        (!self.entries.is_empty()).then(|| EntryIndex::new(self.first))
    }

    /// Whether entries are missing between what was purged and the first one present.
    pub(super) fn has_gap(&self) -> bool {
        // Without a purge a log starts at 0 or 1; which one is the owner's business.
        let start_max = self.purged.as_ref().map_or(1, |(upto, _)| upto.next().value());
        !self.entries.is_empty() && self.first > start_max
    }

    /// Whether there is a vote and nothing of a log, which comes before the first vote.
    pub(super) fn has_only_vote(&self) -> bool {
        self.vote.is_some() && self.entries.is_empty() && self.purged.is_none()
    }

    /// The oldest file that has an entry of the shard.
    pub(super) fn oldest(&self) -> Option<u64> {
        self.entries.front().map(|location| location.sequence)
    }

    /// What the owner of the shard starts from.
    pub(super) fn recovered(&self) -> ShardRecovered {
        let last = self.entries.back().map(|location| location.term);
        ShardRecovered {
            vote: self.vote.clone(),
            committed: self.committed.clone(),
            purged: self.purged.clone(),
            first: self.first(),
            last: last.map(|term| (term, EntryIndex::new(self.first + self.entries.len() as u64 - 1))),
            corrupt: self.corrupt.clone(),
            file_before: None,
        }
    }

    /// The ends of the log, for checking what comes next.
    pub(super) fn bounds(&self) -> Bounds {
        let end = self.first + self.entries.len() as u64;
        Bounds { first: self.first, end, purged: self.purged.as_ref().map(|(upto, _)| *upto) }
    }
}

/// The ends of a shard's log as they will be once everything submitted is synced.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Bounds {
    first: u64,
    end: u64,
    purged: Option<EntryIndex>,
}

impl Bounds {
    /// Takes the next record.
    ///
    /// # Errors
    /// [`StorageError::OutOfOrder`] for an entry that does not follow the last one.
    pub(super) fn admit(&mut self, shard: ShardId, record: &WalRecord) -> Result<(), StorageError> {
        match record {
            WalRecord::Entry { index, .. } => {
                let is_empty = self.first == self.end;
                let next = if is_empty { self.purged.map(|upto| upto.next().value()) } else { Some(self.end) };
                if next.is_some_and(|next| next != index.value()) {
                    return Err(StorageError::OutOfOrder { shard, index: *index });
                }
                if is_empty {
                    self.first = index.value();
                }
                self.end = index.next().value();
            }
            WalRecord::Truncate { after } => self.end = self.end.min(after.next().value()).max(self.first),
            WalRecord::Purge { upto, .. } => {
                self.purged = self.purged.max(Some(*upto));
                self.first = self.first.max(upto.next().value()).min(self.end);
            }
            WalRecord::Vote { .. } | WalRecord::Committed { .. } => {}
        }
        Ok(())
    }
}

/// All shards, and the open files that have their entries.
#[derive(Debug, Default)]
pub(super) struct Index {
    pub(super) shards: HashMap<ShardId, ShardIndex>,
    pub(super) files: BTreeMap<u64, Arc<WalFile>>,
    /// The oldest file with damage that still matters: it and all after it are kept.
    pub(super) pinned: Option<u64>,
}

impl Index {
    /// The shard with the oldest entry, and the file that has it.
    pub(super) fn oldest(&self) -> Option<(u64, ShardId)> {
        self.shards.iter().filter_map(|(shard, index)| Some((index.oldest()?, *shard))).min()
    }

    /// Takes out the files before `current` that nobody needs, oldest first. Only a run from the oldest on: a file
    /// in between may hold the truncation that an older one's entries need.
    pub(super) fn take_unneeded(&mut self, current: u64) -> Vec<Arc<WalFile>> {
        let oldest = self.oldest().map_or(current, |(sequence, _)| sequence);
        let keep_from = oldest.min(current).min(self.pinned.unwrap_or(current));
        let kept = self.files.split_off(&keep_from);
        std::mem::replace(&mut self.files, kept).into_values().collect()
    }
}
