//! Opening a log: what a crash left is read, judged, repaired and indexed.
//!
//! Owns the one decision that matters: what is a torn tail and what is damage. Each frame says up to where its file
//! was synced when it was written, and a file gets its first frame only after the one before it was synced whole.
//! So a bad frame before the largest such mark, or in any file but the newest, was once synced: damage, reported
//! with file and position. Every other bad frame was never acknowledged: the log is cut there, and what remains of
//! frames behind is zeroed, or a later frame might make it look valid again. Leaves out the frames' payloads, but
//! for votes and marks. A crash in here changes nothing: it only rewrites what was not yet known to be synced.

use super::WalOptions;
use super::file::{self, DATA_START, FileName, WalFile, log_name};
use super::index::{Change, Index, Location, ShardIndex};
use crate::storage::disk::Disk;
use crate::storage::error::StorageError;
use crate::storage::frame::{ALIGNMENT, FrameFault, FrameHeader, FrameKind, VERSION};
use crate::storage::mmap::scratch;
use bytes::Bytes;
use millstream_catalog::model::ShardId;
use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

/// Bytes of a new log's first file; the next one is prepared while this one is in use.
const FIRST_FILE_BYTES: u64 = 4 << 20;

/// A log ready to be appended to.
#[derive(Debug)]
pub(super) struct Recovered {
    pub(super) index: Index,
    pub(super) current: Arc<WalFile>,
    /// Where the next frame goes in `current`.
    pub(super) position: u64,
    /// The file after `current`, if it was prepared before.
    pub(super) ready: Option<Arc<WalFile>>,
    pub(super) spares: Vec<String>,
    /// Damage whose shard is unknown: it may have cost any shard something, those without a frame left too.
    pub(super) damage: Option<StorageError>,
}

/// What stands at a position of a file.
#[derive(Debug, Clone, Copy)]
enum Piece {
    /// A whole frame.
    Frame(u64, FrameHeader),
    /// Bytes that are none, though frames follow; with the header, if at least that is whole, or is but for one bit.
    Bad(u64, Option<FrameHeader>),
}

impl Piece {
    fn position(&self) -> u64 {
        match self {
            Self::Frame(position, _) | Self::Bad(position, _) => *position,
        }
    }

    fn header(&self) -> Option<&FrameHeader> {
        match self {
            Self::Frame(_, header) => Some(header),
            Self::Bad(_, header) => header.as_ref(),
        }
    }
}

/// What stands in a file.
#[derive(Debug, Default)]
struct Scan {
    pieces: Vec<Piece>,
    /// The first byte after the last piece.
    end: u64,
}

impl Scan {
    fn is_ended(&self) -> bool {
        self.pieces.last().and_then(Piece::header).is_some_and(|header| header.kind == FrameKind::End)
    }

    /// Up to where the file is known to have been synced.
    fn synced(&self) -> u64 {
        let marks = self.pieces.iter().filter_map(Piece::header).map(|header| header.synced);
        marks.max().unwrap_or(DATA_START)
    }
}

/// Reads the pieces of a file that has `sequence`.
fn scan(bytes: &[u8], sequence: u64) -> Result<Scan, StorageError> {
    let mut pieces = Vec::new();
    let mut position = DATA_START;
    while let Some(rest) = bytes.get(position as usize..) {
        match FrameHeader::decode(rest, position) {
            Ok(header) if header.sequence == sequence => {
                let is_whole = header.payload(rest).is_some();
                let is_end = is_whole && header.kind == FrameKind::End;
                let piece = if is_whole { Piece::Frame(position, header) } else { Piece::Bad(position, Some(header)) };
                pieces.push(piece);
                position += header.bytes();
                if is_end {
                    break;
                }
            }
            Err(FrameFault::Newer(version)) => {
                let (file, version, supported) = (log_name(sequence), version.into(), VERSION.into());
                return Err(StorageError::Newer { file, version, supported });
            }
            Ok(_) | Err(FrameFault::Checksum) => {
                if let Some((header, _)) = FrameHeader::heal(rest, position, sequence) {
                    pieces.push(Piece::Bad(position, Some(header)));
                    position += header.bytes();
                    continue;
                }
                let Some(next) = find_header(bytes, position + ALIGNMENT, sequence) else { break };
                pieces.push(Piece::Bad(position, None));
                position = next;
            }
        }
    }
    Ok(Scan { pieces, end: position })
}

/// The next position from `from` on with a whole header. Most of what it passes over was never written.
fn find_header(bytes: &[u8], from: u64, sequence: u64) -> Option<u64> {
    const ZEROS: [u8; 4096] = [0; 4096];
    let mut position = from;
    while let Some(rest) = bytes.get(position as usize..).filter(|rest| !rest.is_empty()) {
        if rest.starts_with(&ZEROS) {
            position += ZEROS.len() as u64;
            continue;
        }
        if rest[0] != 0 && FrameHeader::decode(rest, position).is_ok_and(|header| header.sequence == sequence) {
            return Some(position);
        }
        position += ALIGNMENT;
    }
    None
}

fn has_frames(bytes: &[u8], sequence: u64) -> bool {
    find_header(bytes, DATA_START, sequence).is_some()
}

/// The names in the log's directory.
struct Names {
    logs: Vec<u64>,
    spares: Vec<String>,
}

fn read_names(disk: &dyn Disk, dir: &Path, file_bytes: u64) -> Result<Names, StorageError> {
    let failed = |source| StorageError::io("list the write-ahead log", source);
    let mut names = Names { logs: Vec::new(), spares: Vec::new() };
    for entry in disk.list(dir).map_err(failed)? {
        let path = dir.join(&entry.name);
        match FileName::parse(&entry.name) {
            _ if entry.is_dir => tracing::warn!(name = entry.name, "unknown directory in the write-ahead log"),
            FileName::Log(sequence) => names.logs.push(sequence),
            FileName::Spare if disk.open(&path).and_then(|file| file.len()).map_err(failed)? == file_bytes => {
                names.spares.push(entry.name);
            }
            FileName::Spare | FileName::Unfinished => disk.remove(&path).map_err(failed)?,
            FileName::Unknown => tracing::warn!(name = entry.name, "unknown file in the write-ahead log"),
        }
    }
    names.logs.sort_unstable();
    Ok(names)
}

fn open_file(disk: &dyn Disk, dir: &Path, sequence: u64) -> Result<WalFile, StorageError> {
    let failed = |source| StorageError::io("open a file of the write-ahead log", source);
    let file = disk.open(&dir.join(log_name(sequence))).map_err(failed)?;
    let bytes = file.len().map_err(failed)?;
    Ok(WalFile { sequence, bytes, file })
}

fn read_file(file: &WalFile) -> Result<impl std::ops::Deref<Target = [u8]> + use<>, StorageError> {
    let read = scratch(file.bytes as usize).and_then(|mut bytes| file.file.read_at(&mut bytes, 0).map(|()| bytes));
    let bytes = read.map_err(|source| StorageError::io("read the write-ahead log", source))?;
    if !file::check_header(&bytes, file.sequence, file.bytes)? {
        tracing::warn!(file = log_name(file.sequence), "the header of a log file is damaged; its frames are not");
    }
    Ok(bytes)
}

/// Opens the log in `dir`, or begins one.
///
/// # Errors
/// The system's error, [`StorageError::DiskFull`] for a new log, [`StorageError::Newer`], or [`StorageError::Missing`]
/// for the first or last file. Other damage is no error: it is in the result, by shard.
pub(super) fn recover(disk: &Arc<dyn Disk>, dir: &Path, options: &WalOptions) -> Result<Recovered, StorageError> {
    let failed = |source| StorageError::io("create the write-ahead log", source);
    let file_bytes = options.file_bytes.value();
    disk.create_dir_durable(dir).map_err(failed)?;
    let names = read_names(&**disk, dir, file_bytes)?;
    let mut files = Vec::new();
    for sequence in &names.logs {
        files.push(Arc::new(open_file(&**disk, dir, *sequence)?));
    }
    let mut newest = files.len();
    let first = names.logs.first().copied().unwrap_or(1);
    while newest > 0 && !has_frames(&read_file(&files[newest - 1])?, files[newest - 1].sequence) {
        newest -= 1;
    }
    // The first file ever is made before the second, and a file goes only once a later one has frames.
    if newest == 0 && first > 1 {
        return Err(StorageError::Missing { file: log_name(first - 1) });
    }
    let mut after = files.split_off(newest).into_iter().peekable();
    let mut replay = Replay::default();
    let (mut end, mut is_ended) = (DATA_START, true);
    let newest = files.last().map_or(0, |file| file.sequence);
    for file in &files {
        (end, is_ended) = replay.read(file, file.sequence == newest)?;
    }
    // What follows the newest file with frames was prepared and not used; anything else there is left over from
    // a preparation that was not finished.
    let mut next = |sequence: u64| after.next_if(|file| file.sequence == sequence);
    let current = match files.last() {
        Some(last) if !is_ended => last.clone(),
        _ => match next(newest + 1) {
            Some(file) => file,
            // A file is ended only once the one after it has its name.
            None if newest > 0 => return Err(StorageError::Missing { file: log_name(newest + 1) }),
            // Small, because the start waits for it.
            None => {
                let (first, must_fill) = file::create(&**disk, dir, newest + 1, file_bytes.min(FIRST_FILE_BYTES))?;
                if must_fill {
                    file::fill(&first).map_err(failed)?;
                }
                Arc::new(first)
            }
        },
    };
    let position = if current.sequence == newest { end } else { DATA_START };
    let ready = next(current.sequence + 1);
    for file in ready.iter().chain((current.sequence != newest).then_some(&current)) {
        file::heal_header(file)?;
    }
    for file in after {
        disk.remove(&dir.join(log_name(file.sequence))).map_err(failed)?;
    }
    let (mut index, damage) = replay.finish();
    index.files = files.into_iter().map(|file| (file.sequence, file)).collect();
    index.files.insert(current.sequence, current.clone());
    Ok(Recovered { index, current, position, ready, spares: names.spares, damage })
}

/// A bad frame whose header is whole.
#[derive(Debug)]
struct Damage {
    shard: ShardId,
    header: FrameHeader,
    position: u64,
    error: StorageError,
}

/// Builds the index from frames, in the order they were written.
#[derive(Debug, Default)]
struct Replay {
    shards: HashMap<ShardId, ShardIndex>,
    damaged: Vec<Damage>,
    /// The first damage of unknown identity, and its file.
    unknown: Option<(u64, StorageError)>,
    sequence_first: Option<u64>,
    sequence_next: Option<u64>,
}

impl Replay {
    /// Reads a file and repairs its tail if it is the newest. Gives where its frames end, and whether for good.
    fn read(&mut self, file: &WalFile, is_newest: bool) -> Result<(u64, bool), StorageError> {
        if let Some(missing) = self.sequence_next.filter(|next| *next != file.sequence) {
            self.damage_unknown(missing, 0, "the file is missing");
        }
        self.sequence_first.get_or_insert(file.sequence);
        self.sequence_next = Some(file.sequence + 1);
        let bytes = read_file(file)?;
        let mut scan = scan(&bytes, file.sequence)?;
        if is_newest {
            repair(file, &bytes, &mut scan)?;
        }
        for piece in &scan.pieces {
            self.apply(file.sequence, piece, &bytes);
        }
        if !is_newest && !scan.is_ended() {
            self.damage_unknown(file.sequence, scan.end, "frames are missing at the end");
        }
        Ok((scan.end, scan.is_ended()))
    }

    fn damage_unknown(&mut self, sequence: u64, position: u64, what: &'static str) {
        self.unknown.get_or_insert((sequence, damaged(sequence, position, what)));
    }

    fn apply(&mut self, sequence: u64, piece: &Piece, bytes: &[u8]) {
        let position = piece.position();
        let Some(header) = piece.header() else {
            return self.damage_unknown(sequence, position, "no frame where one was written");
        };
        let is_whole = matches!(piece, Piece::Frame(..));
        let payload = header.payload(&bytes[position as usize..]).filter(|_| is_whole);
        let shard = header.shard;
        if payload.is_none() {
            let error = damaged(sequence, position, "a checksum of a frame does not match");
            self.damaged.push(Damage { shard, header: *header, position, error });
        } else {
            // A later vote or purge makes an earlier one worthless.
            self.damaged.retain(|damage| {
                let is_same = damage.shard == shard && damage.header.kind == header.kind;
                !(is_same && matches!(header.kind, FrameKind::Vote | FrameKind::Purge))
            });
        }
        let Some(change) = decode_change(header, position, payload) else { return };
        let index = self.shards.entry(shard).or_default();
        if !index.apply(change) && index.corrupt.is_none() {
            index.corrupt = Some(damaged(sequence, position, "an entry does not follow the one before"));
        }
    }

    /// The index, and damage whose shard is unknown.
    fn finish(mut self) -> (Index, Option<StorageError>) {
        let mut pinned = self.unknown.as_ref().map(|(sequence, _)| *sequence);
        for damage in self.damaged {
            let Some(shard) = self.shards.get_mut(&damage.shard) else { continue };
            let header = damage.header;
            let is_live = match header.kind {
                FrameKind::Entry => shard.find(header.index) == Some(&locate(&header, damage.position)),
                FrameKind::Vote | FrameKind::Purge => true,
                FrameKind::Committed | FrameKind::Truncate | FrameKind::End | FrameKind::Close => false,
            };
            if is_live {
                shard.corrupt = Some(damage.error);
                pinned = Some(pinned.map_or(header.sequence, |before| before.min(header.sequence)));
            }
        }
        let damage = self.unknown.map(|(_, error)| error);
        for shard in self.shards.values_mut() {
            // The cause goes before its effects: a lost frame may leave a gap.
            if damage.is_some() {
                shard.corrupt.clone_from(&damage);
            }
            if shard.corrupt.is_none() && shard.has_gap() {
                // They were in a file before, or, if there never was one, in its own.
                let before = self.sequence_first.map_or(0, |first| first.saturating_sub(1));
                let oldest = shard.oldest().unwrap_or_default();
                shard.corrupt = Some(match before {
                    0 => damaged(oldest, DATA_START, "entries before the first one are missing"),
                    _ => damaged(before, 0, "the file is missing"),
                });
            }
        }
        // Somebody may bring the missing file back: what came after it stays until then.
        if self.shards.values().any(|shard| shard.has_gap() || shard.has_only_vote()) {
            pinned = pinned.into_iter().chain(self.sequence_first).min();
        }
        (Index { shards: self.shards, pinned, ..Index::default() }, damage)
    }
}

fn damaged(sequence: u64, position: u64, what: &'static str) -> StorageError {
    StorageError::Corrupt { file: log_name(sequence), position, what }
}

fn locate(header: &FrameHeader, position: u64) -> Location {
    Location { sequence: header.sequence, position, term: header.term, length: header.length }
}

/// What a frame does; of a damaged one, what its header alone can say.
fn decode_change(header: &FrameHeader, position: u64, payload: Option<&[u8]>) -> Option<Change> {
    Some(match header.kind {
        FrameKind::Entry => Change::Entry(header.index, locate(header, position)),
        FrameKind::Vote => Change::Vote(Bytes::copy_from_slice(payload?)),
        FrameKind::Committed => Change::Committed(Bytes::copy_from_slice(payload?)),
        FrameKind::Truncate => Change::Truncate(header.index),
        FrameKind::Purge => Change::Purge(header.index, Bytes::copy_from_slice(payload.unwrap_or_default())),
        FrameKind::End | FrameKind::Close => return None,
    })
}

/// Cuts the torn tail of the newest file, zeroes what is left of its frames, and makes what is kept durable.
///
/// What is kept may be only in the system's cache (the process was killed, or a sync failed), so it is written once
/// more: syncing alone would not write pages that a failed sync has marked clean.
fn repair(file: &WalFile, bytes: &[u8], scan: &mut Scan) -> Result<(), StorageError> {
    let synced = scan.synced();
    let mut zero_end = 0;
    let cut = scan.pieces.iter().position(|piece| matches!(piece, Piece::Bad(..)) && piece.position() >= synced);
    if let Some(cut) = cut {
        let ends = scan.pieces[cut..].iter().filter_map(|piece| Some(piece.position() + piece.header()?.bytes()));
        zero_end = ends.max().unwrap_or(0).min(file.bytes);
        scan.end = scan.pieces[cut].position();
        scan.pieces.truncate(cut);
        tracing::info!(file = log_name(file.sequence), position = scan.end, "cut unacknowledged frames of a crash");
    }
    if scan.end <= synced && zero_end <= scan.end {
        return Ok(());
    }
    let mut tail = bytes[synced.min(scan.end) as usize..scan.end as usize].to_vec();
    let start = scan.end - tail.len() as u64;
    tail.resize((zero_end.max(scan.end) - start) as usize, 0);
    let written = file.file.write_at(&tail, start).and_then(|()| file.file.sync_data());
    written.map_err(|source| StorageError::io("repair the write-ahead log", source))
}
