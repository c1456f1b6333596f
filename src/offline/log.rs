//! Checking the write-ahead log: every frame, and each shard's entries from the first to the last.
//!
//! Owns a model of its own of what the frames say. Leaves out manifests (`shards`), whose places in the log it is given.
//! Reads file by file.

use super::check::{Check, Patch};
use super::heal::{BYTES_MAX, flipped_bit};
use super::report::Finding;
use crate::replication::inspect::{EntryContent, blank_entry, read_entry, read_place, read_vote};
use crate::storage::StorageError;
use crate::storage::frame::{ALIGNMENT, FrameFault, FrameHeader, FrameKind, HEADER_BYTES};
use crate::storage::wal::file::{DATA_START, FileName, check_header, encode_header, log_name};
use bytes::Bytes;
use millstream_catalog::State;
use millstream_catalog::model::{EntryIndex, QueryId, ShardId, Term};
use std::collections::{BTreeMap, VecDeque};
use std::ops::Range;
use std::path::PathBuf;

/// What stands at a place of a file.
#[derive(Debug, Clone)]
pub(crate) enum Piece {
    /// A frame as it was written.
    Frame(FrameHeader),
    /// A frame whose payload is damaged.
    Payload(FrameHeader),
    /// A frame with this one bit of its header flipped.
    Header(FrameHeader, usize),
    /// No frame, though others follow.
    Unknown,
}

impl Piece {
    pub(crate) fn header(&self) -> Option<&FrameHeader> {
        match self {
            Self::Frame(header) | Self::Payload(header) | Self::Header(header, _) => Some(header),
            Self::Unknown => None,
        }
    }
}

/// The pieces of a file with this sequence, each with its bytes, up to the last frame.
///
/// # Errors
/// [`StorageError::Newer`].
pub(crate) fn pieces(bytes: &[u8], sequence: u64) -> Result<Vec<(Range<u64>, Piece)>, StorageError> {
    let mut found = Vec::new();
    let mut position = DATA_START;
    while let Some(rest) = bytes.get(position as usize..).filter(|rest| !rest.is_empty()) {
        let piece = match FrameHeader::decode(rest, position) {
            Ok(header) if header.sequence == sequence => match header.payload(rest) {
                Some(_) => Piece::Frame(header),
                None => Piece::Payload(header),
            },
            Err(FrameFault::Newer(version)) => {
                let (file, supported) = (log_name(sequence), crate::storage::frame::VERSION.into());
                return Err(StorageError::Newer { file, version: version.into(), supported });
            }
            _ => match FrameHeader::heal(rest, position, sequence) {
                Some((header, bit)) => Piece::Header(header, bit),
                None => Piece::Unknown,
            },
        };
        let end = match piece.header() {
            Some(header) => position + header.bytes(),
            None => match next_frame(bytes, position + ALIGNMENT, sequence) {
                Some(next) => next,
                None => break,
            },
        };
        let is_end = matches!(&piece, Piece::Frame(header) | Piece::Header(header, _) if header.kind == FrameKind::End);
        found.push((position..end.min(bytes.len() as u64), piece));
        position = end;
        if is_end {
            break;
        }
    }
    Ok(found)
}

fn next_frame(bytes: &[u8], from: u64, sequence: u64) -> Option<u64> {
    /// Most of a file was never written.
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

/// The log of one shard, as the frames tell it. Indexes are the log's: one more than Raft's.
#[derive(Debug, Default)]
pub(crate) struct ShardLog {
    first: u64,
    /// One per entry from `first` on: the damage that hit it, if any.
    entries: VecDeque<Option<usize>>,
    terms: Option<Term>,
    pub(crate) purged: Option<u64>,
    vote: Option<Result<Term, usize>>,
    purge_damage: Option<usize>,
}

impl ShardLog {
    /// The entry after the last one present or purged.
    pub(crate) fn next(&self) -> Option<u64> {
        match self.entries.is_empty() {
            true => self.purged.map(|upto| upto + 1),
            false => Some(self.first + self.entries.len() as u64),
        }
    }

    /// The first entry present.
    pub(crate) fn first(&self) -> Option<u64> {
        (!self.entries.is_empty()).then_some(self.first)
    }

    pub(crate) fn has_vote(&self) -> bool {
        self.vote.is_some()
    }

    fn push(&mut self, index: u64, damage: Option<usize>) -> Result<(), u64> {
        if self.purged.is_some_and(|upto| index <= upto) {
            return Ok(());
        }
        if self.entries.is_empty() {
            self.first = index;
        }
        let next = self.first + self.entries.len() as u64;
        if index != next {
            return Err(next);
        }
        self.entries.push_back(damage);
        Ok(())
    }

    fn truncate(&mut self, after: u64) {
        self.entries.truncate(usize::try_from((after + 1).saturating_sub(self.first)).unwrap_or(usize::MAX));
    }

    fn purge(&mut self, upto: u64) {
        if self.purged.is_none_or(|before| before <= upto) {
            let gone = (upto + 1).saturating_sub(self.first).min(self.entries.len() as u64);
            self.entries.drain(..gone as usize);
            self.first += gone;
            self.purged = Some(upto);
        }
    }

    /// Whether a damage hit something the shard still has.
    fn needs(&self, damage: usize) -> bool {
        self.entries.contains(&Some(damage)) || self.vote == Some(Err(damage)) || self.purge_damage == Some(damage)
    }
}

/// A frame that is not as it was written, until it is known whether anybody needs it.
struct Damaged {
    finding: Finding,
    path: PathBuf,
    position: u64,
    header: FrameHeader,
    /// The bytes of the frame as found.
    found: Bytes,
    /// The bit of the frame to flip back.
    bit: Option<usize>,
}

/// The whole log.
#[derive(Default)]
pub(crate) struct Log {
    pub(crate) shards: BTreeMap<u32, ShardLog>,
    /// The catalog, if shard 0's manifest or its entries could be read.
    pub(crate) catalog: Option<State>,
    /// By shard and query, the files that the last checkpoint names.
    pub(crate) states: BTreeMap<(u32, QueryId), Vec<u64>>,
    /// By shard: the last entry its manifest covers, as the log counts.
    covered: BTreeMap<u32, u64>,
    /// The oldest file with frames.
    first_file: Option<u64>,
    damaged: Vec<Damaged>,
}

/// Checks the files in `wal/`; `covered` says up to which entry each shard's manifest goes.
///
/// # Errors
/// [`StorageError::Newer`], or when the directory cannot be read.
pub(crate) fn check(
    check: &mut Check,
    covered: BTreeMap<u32, u64>,
    catalog: Option<State>,
    states: BTreeMap<(u32, QueryId), Vec<u64>>,
) -> Result<Log, StorageError> {
    let mut log = Log { covered, catalog, states, ..Log::default() };
    let files = names(check)?;
    let mut newest = None;
    for sequence in files.iter().rev() {
        if let Some(bytes) = check.read(&format!("wal/{}", log_name(*sequence)))
            && !pieces(&bytes, *sequence)?.is_empty()
        {
            newest = Some(*sequence);
            break;
        }
    }
    let Some(newest) = newest else {
        if files.first().is_none_or(|first| *first > 1) {
            check.report.findings.push(Finding::damage("wal", "the files of the log are missing"));
        }
        return Ok(log);
    };
    let mut next = None;
    let (used, prepared): (Vec<_>, Vec<_>) = files.into_iter().partition(|sequence| *sequence <= newest);
    log.first_file = used.first().copied();
    for sequence in used {
        for missing in next.into_iter().flat_map(|next| next..sequence) {
            check.report.findings.push(Finding::damage(format!("wal/{}", log_name(missing)), "the file is missing"));
        }
        next = Some(sequence + 1);
        let is_ended = log.read_file(check, sequence, sequence == newest)?;
        // A file is ended only once the one after it has its name.
        if sequence == newest && is_ended && !prepared.contains(&(newest + 1)) {
            let file = format!("wal/{}", log_name(newest + 1));
            check.report.findings.push(Finding::damage(file, "the file is missing"));
        }
    }
    for sequence in prepared {
        let file = format!("wal/{}", log_name(sequence));
        if let Some(bytes) = check.read(&file) {
            check_file_header(check, &file, &bytes, sequence)?;
        }
    }
    log.judge_damage(check);
    log.judge_shards(check);
    Ok(log)
}

fn names(check: &mut Check) -> Result<Vec<u64>, StorageError> {
    let mut files = Vec::new();
    for entry in super::list(&*check.disk, &check.dir.join("wal"))? {
        let file = format!("wal/{}", entry.name);
        match FileName::parse(&entry.name) {
            FileName::Log(sequence) if !entry.is_dir => files.push(sequence),
            FileName::Spare | FileName::Unfinished if !entry.is_dir => {}
            _ => check.report.findings.push(Finding::note(file, "nothing of the log; it is left alone")),
        }
    }
    files.sort_unstable();
    Ok(files)
}

impl Log {
    /// Gives whether the file was ended.
    fn read_file(&mut self, check: &mut Check, sequence: u64, is_newest: bool) -> Result<bool, StorageError> {
        let file = format!("wal/{}", log_name(sequence));
        let Some(bytes) = check.read(&file) else { return Ok(false) };
        check_file_header(check, &file, &bytes, sequence)?;
        let pieces = pieces(&bytes, sequence)?;
        let synced = pieces.iter().filter_map(|(_, piece)| piece.header()).map(|header| header.synced).max();
        let synced = synced.unwrap_or(DATA_START);
        let mut is_ended = false;
        for (at, (range, piece)) in pieces.iter().enumerate() {
            if is_newest && range.start >= synced && !matches!(piece, Piece::Frame(_)) {
                cut_tail(check, &file, range.start..pieces.last().map_or(range.end, |(last, _)| last.end));
                return Ok(false);
            }
            is_ended = piece.header().is_some_and(|header| header.kind == FrameKind::End) && at + 1 == pieces.len();
            check.report.frames += 1;
            self.take(check, &file, (range.clone(), piece), &bytes);
        }
        if !is_newest && !is_ended {
            let end = pieces.last().map_or(DATA_START, |(range, _)| range.end);
            let what = "the frames at the end of the file are missing";
            check.report.findings.push(Finding::damage(file, what).at(end..bytes.len() as u64));
        }
        Ok(is_ended)
    }

    fn take(&mut self, check: &mut Check, file: &str, (range, piece): (Range<u64>, &Piece), bytes: &Bytes) {
        let found = bytes.slice(range.start as usize..range.end as usize);
        let (what, bit) = match piece {
            Piece::Frame(header) => {
                if header.synced > range.start {
                    let what = "the frame says that bytes after it were synced before it was written";
                    check.report.findings.push(Finding::damage(file, what).at(range.clone()));
                }
                let payload = header.payload(&found).map(Bytes::copy_from_slice);
                return self.apply(check, file, range, header, payload);
            }
            Piece::Unknown => {
                let what = "no frame where frames were written";
                check.report.findings.push(Finding::damage(file, what).at(range));
                return;
            }
            Piece::Header(_, bit) => ("one bit of a frame's header is flipped", Some(*bit)),
            Piece::Payload(header) => {
                let payload = found.get(HEADER_BYTES as usize..).unwrap_or_default();
                let payload = payload.get(..header.length as usize).filter(|payload| payload.len() <= BYTES_MAX);
                let bit = payload.and_then(|payload| flipped_bit(payload, header.payload_crc));
                ("the checksum of a frame's payload does not match", bit.map(|bit| bit + HEADER_BYTES as usize * 8))
            }
        };
        let Some(header) = piece.header() else { return };
        let what = format!("{what} ({})", describe(header));
        let finding = Finding::damage(file, what).at(range.clone()).of_shard(header.shard.value());
        let path = check.dir.join(file);
        self.damaged.push(Damaged { finding, path, position: range.start, header: *header, found, bit });
        self.apply(check, file, range, header, None);
    }

    /// Does what a frame says; of a damaged one (no payload), which is the last in `damaged`, what its header says.
    fn apply(
        &mut self,
        check: &mut Check,
        file: &str,
        range: Range<u64>,
        header: &FrameHeader,
        payload: Option<Bytes>,
    ) {
        let damage = payload.is_none().then(|| self.damaged.len() - 1);
        let covered = self.covered.get(&header.shard.value()).copied();
        let shard = self.shards.entry(header.shard.value()).or_default();
        let mut wrong = None;
        match header.kind {
            FrameKind::Entry => {
                if let Err(next) = shard.push(header.index.value(), damage) {
                    wrong = Some(format!("entry {} follows entry {}", raft(header.index), next.saturating_sub(2)));
                }
                if shard.terms.is_some_and(|last| last > header.term) && wrong.is_none() {
                    wrong = Some(format!("entry {} has an older term than the one before", raft(header.index)));
                }
                shard.terms = Some(header.term);
            }
            FrameKind::Vote => {
                let term = payload.clone().map(read_vote).transpose();
                match (term, damage) {
                    (Ok(Some((term, _, _))), _) => {
                        let is_older = matches!(shard.vote, Some(Ok(last)) if last > term);
                        wrong = is_older.then(|| "the vote is older than the one before".to_owned());
                        shard.vote = Some(Ok(term));
                    }
                    (Err(error), _) => wrong = Some(format!("the vote {error}")),
                    (Ok(None), damage) => shard.vote = damage.map(Err).or(shard.vote.take()),
                }
            }
            FrameKind::Committed => {
                wrong = payload.clone().and_then(|payload| read_place(payload).err()).map(|e| format!("the mark {e}"));
            }
            FrameKind::Truncate => shard.truncate(header.index.value()),
            FrameKind::Purge => {
                shard.purge(header.index.value());
                shard.purge_damage = damage;
            }
            FrameKind::End | FrameKind::Close => {}
        }
        if let (FrameKind::Entry, Some(payload)) = (header.kind, payload)
            && covered.is_none_or(|covered| header.index.value() > covered)
            && let Err(error) = self.read_content(header, payload)
        {
            wrong = Some(format!("entry {} {error}", raft(header.index)));
        }
        if let Some(wrong) = wrong {
            let finding = Finding::damage(file, wrong).at(range).of_shard(header.shard.value());
            check.report.findings.push(finding);
        }
    }

    fn read_content(&mut self, header: &FrameHeader, payload: Bytes) -> Result<(), String> {
        let shard = header.shard.value();
        match read_entry(payload)? {
            EntryContent::Catalog(command) if header.shard == ShardId::CATALOG => {
                // One the catalog refuses changes nothing.
                let _ = millstream_catalog::apply(self.catalog.get_or_insert_default(), *command);
            }
            EntryContent::Writes { checkpoints, .. } => {
                self.states.extend(checkpoints.into_iter().map(|(query, files)| ((shard, query), files)));
            }
            EntryContent::QueryEnds(query) => drop(self.states.remove(&(shard, query))),
            EntryContent::Catalog(_) | EntryContent::Other(_) => {}
        }
        Ok(())
    }

    /// Says what each damaged frame costs, and what can be done.
    fn judge_damage(&mut self, check: &mut Check) {
        for (number, damaged) in std::mem::take(&mut self.damaged).into_iter().enumerate() {
            let Damaged { mut finding, path, position, header, found, bit } = damaged;
            let id = header.shard.value();
            let is_needed = self.shards.get(&id).is_some_and(|shard| shard.needs(number));
            let is_covered = header.kind == FrameKind::Entry
                && self.covered.get(&id).is_some_and(|covered| header.index.value() <= *covered);
            let patch = match bit {
                Some(bit) => {
                    finding.repair = Some("the flipped bit is put back; nothing is lost".to_owned());
                    let byte = found.get(bit / 8).map_or(0, |byte| byte ^ (1 << (bit % 8)));
                    Some((position + bit as u64 / 8, vec![byte]))
                }
                None if !is_needed || is_covered => {
                    finding.repair = Some("nobody needs the frame any more: it is replaced by an empty one".to_owned());
                    Some((position, placeholder(&header, position)))
                }
                None => None,
            };
            if !is_needed {
                finding.what.push_str("; nobody needs it any more");
            } else if patch.is_none() {
                finding.what.push_str("; the shard cannot go on from it");
            }
            if let Some((position, bytes)) = patch {
                check.patches.push(Patch { path, position, bytes });
            }
            check.report.findings.push(finding);
        }
    }

    fn judge_shards(&self, check: &mut Check) {
        for (id, shard) in &self.shards {
            let start_max = shard.purged.map_or(1, |upto| upto + 1);
            let missing = match shard.first() {
                Some(first) => (first > start_max).then(|| format!("entries {start_max} to {} are missing", first - 1)),
                // The first entry comes before the first vote.
                None if shard.purged.is_none() && shard.has_vote() => Some("all entries are missing".to_owned()),
                None => None,
            };
            if let Some(what) = missing {
                // They were in the file before the first one, if there ever was one.
                let (file, what) = match self.first_file {
                    Some(first) if first > 1 => {
                        (format!("wal/{}", log_name(first - 1)), format!("the file is missing: {what}"))
                    }
                    _ => ("wal".to_owned(), what),
                };
                check.report.findings.push(Finding::damage(file, what).of_shard(*id));
            }
        }
    }
}

/// A frame of the same length that says nothing, or the same entry without content.
fn placeholder(header: &FrameHeader, position: u64) -> Vec<u8> {
    let length = header.length as usize;
    let (kind, payload) = match header.kind {
        FrameKind::Entry => (FrameKind::Entry, blank_entry(length)),
        _ => (FrameKind::Close, vec![0; length]),
    };
    let header = FrameHeader { kind, payload_crc: crc32c::crc32c(&payload), ..*header };
    let mut bytes = Vec::new();
    header.encode(position, &payload, &mut bytes);
    bytes
}

fn cut_tail(check: &mut Check, file: &str, range: Range<u64>) {
    let what = "frames that were never acknowledged, torn by a crash";
    let finding = Finding::note(file, what).at(range.clone()).repaired_by("they are cut, as the next start would");
    check.report.findings.push(finding);
    let bytes = vec![0; (range.end - range.start) as usize];
    check.patches.push(Patch { path: check.dir.join(file), position: range.start, bytes });
}

fn check_file_header(check: &mut Check, file: &str, bytes: &Bytes, sequence: u64) -> Result<(), StorageError> {
    match check_header(bytes, sequence, bytes.len() as u64) {
        Ok(true) => {}
        Ok(false) => {
            let what = "the file's header is damaged; each frame names its file, so nothing depends on it";
            let finding = Finding::damage(file, what).at(0..64).repaired_by("it is written anew; nothing is lost");
            check.report.findings.push(finding);
            let bytes = encode_header(sequence, bytes.len() as u64).to_vec();
            check.patches.push(Patch { path: check.dir.join(file), position: 0, bytes });
        }
        Err(error @ StorageError::Newer { .. }) => return Err(error),
        Err(error) => check.report.findings.push(Finding::damage(file, error.to_string())),
    }
    Ok(())
}

fn raft(index: EntryIndex) -> u64 {
    index.value().saturating_sub(1)
}

fn describe(header: &FrameHeader) -> String {
    match header.kind {
        FrameKind::Entry => format!("entry {} of term {}", raft(header.index), header.term),
        FrameKind::Vote => "a vote".to_owned(),
        FrameKind::Committed => "a mark of what is committed".to_owned(),
        FrameKind::Truncate => format!("a cut after entry {}", raft(header.index)),
        FrameKind::Purge => format!("a purge up to entry {}", raft(header.index)),
        FrameKind::End => "the end of the file".to_owned(),
        FrameKind::Close => "the end of a run".to_owned(),
    }
}
