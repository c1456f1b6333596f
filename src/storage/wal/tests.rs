//! The log under crashes, damage, failing syncs and a full disk. The checker keeps its own model of every shard and
//! shares nothing with the index.

use super::file::{DATA_START, log_name};
use super::prepare::{Mode, Preparer};
use super::writer::{Append, Marks, Writer};
use super::*;
use crate::storage::FaultDisk;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::thread::ThreadId;

const FILE_BYTES: u64 = 8 << 10;

fn dir() -> PathBuf {
    PathBuf::from("/data/wal")
}

fn options() -> WalOptions {
    WalOptions { file_bytes: ByteSize::new(FILE_BYTES), ..WalOptions::default() }
}

/// SplitMix64.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        (z ^ (z >> 31)) % bound
    }
}

fn bytes(len: u64, random: &mut Random) -> Bytes {
    (0..len).map(|_| random.below(256) as u8).collect::<Vec<_>>().into()
}

fn entry(term: u64, index: u64, payload: Bytes) -> WalRecord {
    WalRecord::Entry { term: Term::new(term), index: EntryIndex::new(index), payload }
}

/// One shard as the records make it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Model {
    vote: Option<Bytes>,
    purged: Option<(u64, Bytes)>,
    entries: BTreeMap<u64, (u64, Bytes)>,
}

impl Model {
    fn apply(&mut self, record: &WalRecord) {
        match record {
            WalRecord::Entry { term, index, payload } => {
                self.entries.insert(index.value(), (term.value(), payload.clone()));
            }
            WalRecord::Vote { payload } => self.vote = Some(payload.clone()),
            WalRecord::Committed { .. } => {}
            WalRecord::Truncate { after } => self.entries.retain(|index, _| *index <= after.value()),
            WalRecord::Purge { upto, payload } => {
                self.entries.retain(|index, _| *index > upto.value());
                self.purged = Some((upto.value(), payload.clone()));
            }
        }
    }

    fn next(&self) -> u64 {
        let after_purge = self.purged.as_ref().map_or(1, |(upto, _)| upto + 1);
        self.entries.keys().next_back().map_or(after_purge, |last| last + 1)
    }
}

/// Random records of one append, valid after `model`, which takes them too.
fn random_records(model: &mut Model, random: &mut Random, ticket: u64) -> Vec<WalRecord> {
    let mut records = Vec::new();
    match random.below(12) {
        0 => records.push(WalRecord::Vote { payload: Bytes::copy_from_slice(&ticket.to_le_bytes()) }),
        1 => {
            let last = model.next() - 1;
            let after = last.saturating_sub(random.below(4)).max(model.purged.as_ref().map_or(0, |(upto, _)| *upto));
            records.push(WalRecord::Truncate { after: EntryIndex::new(after) });
        }
        2 | 3 => {
            // Mostly within the log, sometimes past it, as after a snapshot.
            let ahead = if random.below(8) == 0 { 3 } else { 0 };
            let upto = model.next() - 1 + ahead;
            let upto = if ahead == 0 { upto.saturating_sub(random.below(3)) } else { upto };
            if upto > model.purged.as_ref().map_or(0, |(before, _)| *before) {
                records.push(WalRecord::Purge { upto: EntryIndex::new(upto), payload: bytes(9, random) });
            }
        }
        4 => records.push(WalRecord::Committed { payload: bytes(8, random) }),
        _ => {}
    }
    let mut after = model.clone();
    records.iter().for_each(|record| after.apply(record));
    for _ in 0..random.below(4) {
        // Some larger than a file.
        let len = if random.below(60) == 0 { FILE_BYTES + random.below(900) } else { random.below(900) };
        let record = entry(ticket, after.next(), bytes(len, random));
        after.apply(&record);
        records.push(record);
    }
    *model = after;
    records
}

type Answers = Arc<Mutex<Vec<(u64, Result<(), StorageError>)>>>;

/// The log without threads, so that a seed decides every step.
struct Driver {
    writer: Writer,
    shared: Arc<Shared>,
}

impl Driver {
    fn open(disk: &FaultDisk) -> Result<(Self, HashMap<ShardId, ShardRecovered>), StorageError> {
        let disk: Arc<dyn Disk> = Arc::new(disk.clone());
        let mut recovered = recover::recover(&disk, &dir(), &options())?;
        let index = std::mem::take(&mut recovered.index);
        let shards = index.shards.iter().map(|(shard, index)| (*shard, index.recovered())).collect();
        let shared = Arc::new(Shared::new(index));
        let found = (recovered.ready.take(), std::mem::take(&mut recovered.spares));
        let preparer = Arc::new(Preparer::new(disk, dir(), FILE_BYTES, Mode::Inline, found));
        let writer = Writer::new(shared.clone(), preparer, FILE_BYTES, &recovered);
        Ok((Self { writer, shared }, shards))
    }

    fn read_all(&self, shard: ShardId, recovered: &ShardRecovered) -> BTreeMap<u64, (u64, Bytes)> {
        let (Some(first), Some((_, last))) = (recovered.first, recovered.last) else { return BTreeMap::new() };
        let mut entries = BTreeMap::new();
        let mut at = first;
        while at <= last {
            let found = read::read(&self.shared.index, shard, at..last.next(), ByteSize::new(2000)).unwrap();
            assert_eq!(found[0].index, at);
            for entry in found {
                at = entry.index.next();
                entries.insert(entry.index.value(), (entry.term.value(), entry.payload));
            }
        }
        entries
    }
}

fn append(shard: ShardId, records: Vec<WalRecord>, ticket: u64, answers: &Answers) -> Append {
    append_as(Durability::Sync, shard, records, (ticket, answers))
}

fn append_as(
    durability: Durability,
    shard: ShardId,
    records: Vec<WalRecord>,
    (ticket, answers): (u64, &Answers),
) -> Append {
    let answers = answers.clone();
    let done: WalDone = Box::new(move |result| answers.lock().push((ticket, result)));
    let Ok(append) = Append::new(shard, records, durability, done) else { panic!("too large") };
    append
}

/// Everything submitted to one shard: the states after each record, and how many of them are acknowledged.
#[derive(Debug, Clone)]
struct History {
    states: Vec<Model>,
    acknowledged: usize,
}

impl Default for History {
    fn default() -> Self {
        Self { states: vec![Model::default()], acknowledged: 0 }
    }
}

impl History {
    fn last(&self) -> &Model {
        self.states.last().unwrap()
    }
}

const SHARDS: u32 = 3;

/// Everything submitted so far is on stable storage: all shards share one order.
fn acknowledge(histories: &mut [History], states: &[usize]) {
    for (history, states) in histories.iter_mut().zip(states) {
        history.acknowledged = *states;
    }
}

/// Submits random batches until the disk fails or `batches` are through. Checks answers' order.
fn run(driver: &mut Driver, histories: &mut [History], random: &mut Random, batches: u64) {
    let answers = Answers::default();
    let mut ticket = 0;
    for _ in 0..batches {
        let mut batch = Vec::new();
        let mut submitted = Vec::new();
        let mut marks = Marks::new();
        for _ in 0..=random.below(4) {
            let shard = random.below(u64::from(SHARDS)) as usize;
            let history = &mut histories[shard];
            ticket += 1;
            let mut model = history.last().clone();
            let records = random_records(&mut model, random, ticket);
            for record in &records {
                let mut state = history.last().clone();
                state.apply(record);
                history.states.push(state);
            }
            if random.below(3) == 0 {
                marks.insert(ShardId::new(shard as u32), bytes(8, random));
            }
            let is_async = random.below(2) == 0 && records.iter().all(|it| matches!(it, WalRecord::Entry { .. }));
            let durability = if is_async { Durability::Async } else { Durability::Sync };
            let shard = ShardId::new(shard as u32);
            batch.push(append_as(durability, shard, records, (ticket, &answers)));
            let states: Vec<usize> = histories.iter().map(|history| history.states.len() - 1).collect();
            submitted.push((ticket, durability, states));
        }
        driver.writer.commit(batch, marks);
        let answered = std::mem::take(&mut *answers.lock());
        assert_eq!(answered.len(), submitted.len());
        let all: Vec<usize> = histories.iter().map(|history| history.states.len() - 1).collect();
        for ((ticket, result), (expected, durability, states)) in answered.into_iter().zip(submitted) {
            assert_eq!(ticket, expected, "answers come in the order of appends");
            match result {
                Ok(()) if durability == Durability::Sync => acknowledge(histories, &states),
                Ok(()) => {}
                Err(StorageError::SyncFailed | StorageError::Io { .. }) => return,
                Err(error) => panic!("{error}"),
            }
        }
        // As the thread does that syncs what was answered before.
        if random.below(3) == 0 {
            match driver.shared.syncer.sync(&driver.shared) {
                Ok(()) => acknowledge(histories, &all),
                Err(_) => return,
            }
        }
    }
}

/// What is recovered must be a state of each shard's history, not before what was acknowledged. Continues from there.
fn check(driver: &Driver, recovered: &HashMap<ShardId, ShardRecovered>, histories: &mut [History], what: &str) {
    for (shard, history) in histories.iter_mut().enumerate() {
        let shard = ShardId::new(shard as u32);
        let found = recovered.get(&shard).cloned().unwrap_or_default();
        assert!(found.corrupt.is_none(), "{what}: shard {shard}: {:?}", found.corrupt);
        let state = Model {
            vote: found.vote.clone(),
            purged: found.purged.clone().map(|(upto, payload)| (upto.value(), payload)),
            entries: driver.read_all(shard, &found),
        };
        let kept = history.states.iter().rposition(|candidate| *candidate == state);
        let kept = kept.unwrap_or_else(|| panic!("{what}: shard {shard} has a state it never had: {state:?}"));
        assert!(kept >= history.acknowledged, "{what}: shard {shard}: lost acknowledged records");
        history.states.truncate(kept + 1);
        history.acknowledged = kept;
    }
}

/// Runs until the power fails at `step`, crashes, checks, goes on, and crashes again.
fn crash_at(seed: u64, step: u64) -> bool {
    let disk = FaultDisk::new();
    if seed % 2 == 1 {
        disk.refuse_reserves();
    }
    disk.fail_after(step);
    let mut histories = vec![History::default(); SHARDS as usize];
    let mut random = Random(seed);
    if let Ok((mut driver, _)) = Driver::open(&disk) {
        run(&mut driver, &mut histories, &mut random, 40);
    }
    let is_whole = disk.steps() < step;
    let mut disk = disk.crash(seed ^ step);
    for round in 0..3 {
        let what = format!("seed {seed}, step {step}, round {round}");
        // The power also fails while recovery runs.
        disk.fail_after(random.below(12));
        let _ = Driver::open(&disk);
        disk = disk.crash(seed.wrapping_add(step * 3 + round));
        let (mut driver, recovered) = Driver::open(&disk).unwrap();
        check(&driver, &recovered, &mut histories, &what);
        disk.fail_after(random.below(60));
        run(&mut driver, &mut histories, &mut random, 8);
        disk = disk.crash(seed.wrapping_mul(31).wrapping_add(step + round));
        let (driver, recovered) = Driver::open(&disk).unwrap();
        check(&driver, &recovered, &mut histories, &format!("{what}, again"));
    }
    is_whole
}

#[test]
fn every_crash_point_keeps_what_was_acknowledged() {
    for seed in 0..2 {
        let mut step = 0;
        while !crash_at(seed, step) {
            step += 1;
        }
        assert!(step > 100, "the workload has {step} steps only");
    }
}

/// A log of several files in order, closed; gives the disk and the files' names.
fn filled(batches: u64) -> (FaultDisk, Vec<History>, Vec<String>) {
    let disk = FaultDisk::new();
    let mut histories = vec![History::default(); SHARDS as usize];
    let (mut driver, _) = Driver::open(&disk).unwrap();
    run(&mut driver, &mut histories, &mut Random(7), batches);
    driver.writer.finish(Marks::new());
    let files = driver.shared.index.lock().files.keys().map(|sequence| log_name(*sequence)).collect();
    (disk, histories, files)
}

#[test]
fn flipped_bits_are_named_or_harmless_and_never_returned() {
    let (disk, histories, files) = filled(60);
    assert!(files.len() > 1);
    let (mut named, mut random) = (0, Random(1));
    for round in 0..400 {
        let disk = disk.crash(round);
        let file = &files[random.below(files.len() as u64) as usize];
        let len = disk.open(&dir().join(file)).unwrap().len().unwrap();
        let position = random.below(len);
        disk.flip_bit(&dir().join(file), position, random.below(8) as u8).unwrap();
        let (driver, recovered) = Driver::open(&disk).unwrap();
        for (shard, history) in histories.iter().enumerate() {
            let shard = ShardId::new(shard as u32);
            let found = &recovered[&shard];
            if let Some(corrupt) = &found.corrupt {
                let StorageError::Corrupt { file: name, position: start, .. } = corrupt else { panic!("{corrupt}") };
                assert!(name == file && *start <= position, "round {round}: {corrupt}, not {file} at {position}");
                named += 1;
            } else {
                assert_eq!(driver.read_all(shard, found), history.last().entries, "round {round}");
                assert_eq!(found.vote, history.last().vote);
            }
        }
    }
    assert!(named > 40, "{named}");
}

#[test]
fn damage_stays_found_while_others_go_on() {
    let disk = FaultDisk::new();
    let (mut driver, _) = Driver::open(&disk).unwrap();
    let answers = Answers::default();
    let (one, two) = (ShardId::new(1), ShardId::new(2));
    let vote = |text: &'static str| WalRecord::Vote { payload: Bytes::from_static(text.as_bytes()) };
    let payload = Bytes::from(vec![b'x'; 700]);
    driver
        .writer
        .commit(vec![append(one, vec![vote("first"), entry(1, 1, payload.clone())], 1, &answers)], Marks::new());
    driver
        .writer
        .commit(vec![append(two, vec![vote("other"), entry(1, 1, payload.clone())], 2, &answers)], Marks::new());
    let position = driver.shared.index.lock().shards[&one].find(EntryIndex::new(1)).unwrap().position;
    drop(driver);
    disk.flip_bit(&dir().join(log_name(1)), position + 60, 3).unwrap();
    for round in 0..20 {
        let (mut driver, recovered) = Driver::open(&disk).unwrap();
        let corrupt = recovered[&one].corrupt.clone();
        assert!(
            matches!(&corrupt, Some(StorageError::Corrupt { file, position: at, .. }) if *file == log_name(1) && *at == position),
            "round {round}: {corrupt:?}"
        );
        assert!(recovered[&two].corrupt.is_none());
        let first = EntryIndex::new(1);
        let read = read::read(&driver.shared.index, one, first..first.next(), ByteSize::new(1));
        assert!(matches!(read, Err(StorageError::Corrupt { .. })));
        let last = recovered[&two].last.unwrap().1.value();
        let more = (1..=5).map(|more| entry(1, last + more, payload.clone())).collect();
        let purge = WalRecord::Purge { upto: EntryIndex::new(last + 4), payload: Bytes::new() };
        driver.writer.commit(vec![append(two, more, 3, &answers)], Marks::new());
        driver.writer.commit(vec![append(two, vec![purge], 4, &answers)], Marks::new());
        driver.writer.commit(vec![append(one, vec![vote("second")], 5, &answers)], Marks::new());
        let results: Vec<_> = answers.lock().drain(..).filter(|(ticket, _)| *ticket > 2).collect();
        assert!(results[0].1.is_ok() && results[1].1.is_ok());
        assert!(matches!(results[2].1, Err(StorageError::Corrupt { .. })));
    }
}

#[test]
fn missing_file_is_damage_of_every_shard() {
    let (disk, mut histories, files) = filled(60);
    assert!(files.len() > 2);
    let away = PathBuf::from("/data/away");
    // The oldest one too, which no other file tells of.
    for missing in &files[..2] {
        let disk = disk.crash(0);
        disk.rename(&dir().join(missing), &away).unwrap();
        let (mut driver, recovered) = Driver::open(&disk).unwrap();
        driver.writer.finish(Marks::new());
        let damage = recovered.values().filter_map(|shard| shard.corrupt.as_ref()).collect::<Vec<_>>();
        // Of the oldest one some may need nothing.
        assert!(damage.len() == recovered.len() || (*missing == files[0] && !damage.is_empty()), "{damage:?}");
        for error in damage {
            let is_named = matches!(error, StorageError::Corrupt { file, .. } if file == missing);
            assert!(is_named, "{missing}: {error:?}");
        }
        drop(driver);
        // Whoever finds it again loses nothing.
        disk.rename(&away, &dir().join(missing)).unwrap();
        let (driver, recovered) = Driver::open(&disk).unwrap();
        check(&driver, &recovered, &mut histories, missing);
    }
}

#[test]
fn files_behind_a_missing_one_stay_until_it_is_back() {
    let disk = FaultDisk::new();
    let (mut driver, _) = Driver::open(&disk).unwrap();
    let (answers, payload) = (Answers::default(), Bytes::from(vec![b'x'; 700]));
    let (quiet, busy) = (ShardId::new(1), ShardId::new(2));
    let mut commit = |shard, records| {
        driver.writer.commit(vec![append(shard, records, 1, &answers)], Marks::new());
    };
    // All entries of the one are in the first file; the other one needs only the last.
    commit(quiet, vec![WalRecord::Vote { payload: Bytes::from_static(b"vote") }, entry(1, 1, payload.clone())]);
    (1..=60).for_each(|index| commit(busy, vec![entry(1, index, payload.clone())]));
    commit(busy, vec![WalRecord::Purge { upto: EntryIndex::new(59), payload: Bytes::new() }]);
    driver.writer.finish(Marks::new());
    let logs = |disk: &FaultDisk| {
        let names = disk.list(&dir()).unwrap().into_iter().map(|entry| entry.name);
        names.filter(|name| name.ends_with(".wal")).collect::<Vec<_>>()
    };
    let before = logs(&disk);
    assert!(before.len() > 3, "{before:?}");
    let away = PathBuf::from("/data/away");
    disk.rename(&dir().join(&before[0]), &away).unwrap();
    let (mut without, _) = Driver::open(&disk).unwrap();
    without.writer.finish(Marks::new());
    drop(without);
    assert!(before[1..].iter().all(|name| logs(&disk).contains(name)), "{before:?}, {:?}", logs(&disk));
    disk.rename(&away, &dir().join(&before[0])).unwrap();
    let (driver, recovered) = Driver::open(&disk).unwrap();
    assert!(recovered.values().all(|shard| shard.corrupt.is_none()));
    assert_eq!(driver.read_all(quiet, &recovered[&quiet]).len(), 1);
}

#[test]
fn failed_sync_is_for_ever_and_costs_nothing_acknowledged() {
    for seed in 0..40 {
        let disk = FaultDisk::new();
        let mut histories = vec![History::default(); SHARDS as usize];
        let (mut driver, _) = Driver::open(&disk).unwrap();
        let mut random = Random(seed);
        run(&mut driver, &mut histories, &mut random, 5);
        disk.fail_sync_after(random.below(20));
        run(&mut driver, &mut histories, &mut random, 60);
        if *driver.shared.failed.borrow() {
            let answers = Answers::default();
            driver
                .writer
                .commit(vec![append(ShardId::new(9), vec![entry(1, 1, Bytes::new())], 1, &answers)], Marks::new());
            assert!(matches!(answers.lock()[0].1, Err(StorageError::SyncFailed)));
        }
        drop(driver);
        // First a start that finds in the cache what never reached the disk, then a power cut after that start.
        let (driver, recovered) = Driver::open(&disk).unwrap();
        check(&driver, &recovered, &mut histories, &format!("seed {seed}, restarted"));
        for history in &mut histories {
            history.acknowledged = history.states.len() - 1;
        }
        drop(driver);
        let disk = disk.crash(seed);
        let (driver, recovered) = Driver::open(&disk).unwrap();
        check(&driver, &recovered, &mut histories, &format!("seed {seed}, crashed"));
    }
}

#[test]
fn full_disk_refuses_entries_but_not_votes_and_goes_on_when_there_is_space() {
    let disk = FaultDisk::new();
    let (mut driver, _) = Driver::open(&disk).unwrap();
    let answers = Answers::default();
    let shard = ShardId::new(1);
    let payload = Bytes::from(vec![1; 300]);
    let commit = |driver: &mut Driver, record: WalRecord| {
        driver.writer.commit(vec![append(shard, vec![record], 0, &answers)], Marks::new());
        answers.lock().pop().unwrap().1
    };
    disk.set_capacity(Some(disk.bytes_used()));
    let mut next = 1;
    while commit(&mut driver, entry(1, next, payload.clone())).is_ok() {
        next += 1;
    }
    assert!((FILE_BYTES / 400..2 * FILE_BYTES / 300).contains(&next), "both files there are were used: {next}");
    assert!(matches!(commit(&mut driver, entry(1, next, payload.clone())), Err(StorageError::DiskFull)));
    assert!(!*driver.shared.failed.borrow());
    let after_refused = commit(&mut driver, entry(1, next + 1, Bytes::new()));
    assert!(matches!(after_refused, Err(StorageError::OutOfOrder { .. })));
    commit(&mut driver, WalRecord::Vote { payload: Bytes::from_static(b"v") }).unwrap();
    // A purge gives a file back without any new space.
    commit(&mut driver, WalRecord::Purge { upto: EntryIndex::new(next - 1), payload: Bytes::new() }).unwrap();
    commit(&mut driver, entry(1, next, payload.clone())).unwrap();
    next += 1;
    while commit(&mut driver, entry(1, next, payload.clone())).is_ok() {
        next += 1;
    }
    disk.set_capacity(None);
    commit(&mut driver, entry(1, next, payload.clone())).unwrap();
    drop(driver);
    let (_, recovered) = Driver::open(&disk.crash(1)).unwrap();
    assert_eq!(recovered[&shard].last, Some((Term::new(1), EntryIndex::new(next))));
    assert_eq!(recovered[&shard].vote.as_deref(), Some(b"v".as_slice()));
}

#[test]
fn purged_files_are_recycled_and_their_old_frames_never_come_back() {
    let disk = FaultDisk::new();
    let (mut driver, _) = Driver::open(&disk).unwrap();
    let answers = Answers::default();
    let shard = ShardId::new(1);
    for index in 1..400 {
        let mut records = vec![entry(1, index, Bytes::from(vec![7; 500]))];
        if index % 10 == 0 {
            records.push(WalRecord::Purge { upto: EntryIndex::new(index - 1), payload: Bytes::new() });
        }
        driver.writer.commit(vec![append(shard, records, index, &answers)], Marks::new());
    }
    assert!(answers.lock().iter().all(|(_, result)| result.is_ok()));
    assert!(driver.writer.sequence() > 10);
    assert!(disk.bytes_used() <= 6 * FILE_BYTES, "{}", disk.bytes_used());
    drop(driver);
    let (_, recovered) = Driver::open(&disk).unwrap();
    assert_eq!(recovered[&shard].first, Some(EntryIndex::new(390)));
    assert_eq!(recovered[&shard].last, Some((Term::new(1), EntryIndex::new(399))));
    assert!(recovered[&shard].corrupt.is_none());
}

#[test]
fn a_file_with_a_second_name_is_never_written_again() {
    let disk = FaultDisk::new();
    let (mut driver, _) = Driver::open(&disk).unwrap();
    let answers = Answers::default();
    let mut pinned = BTreeMap::new();
    for index in 1..400 {
        let mut records = vec![entry(1, index, Bytes::from(vec![7; 500]))];
        if index % 10 == 0 {
            records.push(WalRecord::Purge { upto: EntryIndex::new(index - 1), payload: Bytes::new() });
        }
        driver.writer.commit(vec![append(ShardId::new(1), records, index, &answers)], Marks::new());
        let before = driver.writer.sequence() - 1;
        if before > 0 && before.is_multiple_of(2) && !pinned.contains_key(&before) {
            let name = PathBuf::from(format!("/data/pinned-{before}"));
            if disk.link(&dir().join(log_name(before)), &name).is_ok() {
                pinned.insert(before, (name.clone(), disk.map(&name).unwrap()));
            }
        }
    }
    assert!(answers.lock().iter().all(|(_, result)| result.is_ok()));
    assert!(pinned.len() > 5, "{}", pinned.len());
    for (sequence, (name, bytes)) in pinned {
        assert_eq!(disk.map(&name).unwrap(), bytes, "file {sequence}");
    }
}

#[test]
fn frames_behind_a_cut_never_come_back() {
    let disk = FaultDisk::new();
    let answers = Answers::default();
    let shard = ShardId::new(1);
    let payload = Bytes::from(vec![b'x'; 700]);
    let (mut driver, _) = Driver::open(&disk).unwrap();
    let torn = vec![entry(1, 1, payload.clone()), entry(1, 2, payload.clone()), entry(1, 3, payload.clone())];
    driver.writer.commit(vec![append(shard, torn, 1, &answers)], Marks::new());
    drop(driver);
    // Nothing tells the last batch, were it torn so, from one that was synced.
    disk.flip_bit(&dir().join(log_name(1)), DATA_START + 100, 1).unwrap();
    let (mut driver, recovered) = Driver::open(&disk).unwrap();
    assert_eq!(recovered.get(&shard).and_then(|found| found.last), None);
    driver.writer.commit(vec![append(shard, vec![entry(2, 1, payload)], 2, &answers)], Marks::new());
    drop(driver);
    let (_, recovered) = Driver::open(&disk.crash(1)).unwrap();
    assert_eq!(recovered[&shard].last, Some((Term::new(2), EntryIndex::new(1))));
    assert!(recovered[&shard].corrupt.is_none());
}

#[test]
fn a_file_that_was_not_used_yet_gets_its_header_back() {
    let disk = FaultDisk::new();
    let answers = Answers::default();
    let shard = ShardId::new(1);
    let (mut driver, _) = Driver::open(&disk).unwrap();
    driver.writer.commit(vec![append(shard, vec![entry(1, 1, Bytes::new())], 1, &answers)], Marks::new());
    drop(driver);
    let prepared = dir().join(log_name(2));
    let header = |disk: &FaultDisk| {
        let (file, mut bytes) = (disk.open(&prepared).unwrap(), vec![0; DATA_START as usize]);
        file.read_at(&mut bytes, 0).unwrap();
        bytes
    };
    let before = header(&disk);
    disk.flip_bit(&prepared, 20, 1).unwrap();
    assert_ne!(header(&disk), before);
    Driver::open(&disk).unwrap();
    assert_eq!(header(&disk.crash(0)), before);
}

#[test]
fn unknown_files_are_left_alone() {
    let disk = FaultDisk::new();
    disk.create_dir_all(&dir()).unwrap();
    disk.create(&dir().join("notes.txt")).unwrap();
    drop(Driver::open(&disk).unwrap());
    assert!(disk.exists(&dir().join("notes.txt")).unwrap());
}

fn open_threaded(disk: &FaultDisk) -> (Wal, HashMap<ShardId, ShardRecovered>) {
    Wal::open(Arc::new(disk.clone()), &dir(), options()).unwrap()
}

/// Appends and waits for the answer; with the thread that gave it.
fn append_from(
    wal: &Wal,
    shard: u32,
    records: Vec<WalRecord>,
    urgency: Urgency,
) -> (Result<(), StorageError>, ThreadId) {
    let (sender, receiver) = std::sync::mpsc::sync_channel(1);
    let done = move |result| sender.send((result, std::thread::current().id())).unwrap();
    wal.append(ShardId::new(shard), records, urgency, Box::new(done));
    receiver.recv().unwrap()
}

fn append_and_wait(wal: &Wal, shard: u32, records: Vec<WalRecord>) -> Result<(), StorageError> {
    append_from(wal, shard, records, Urgency::Batched).0
}

#[test]
fn a_caller_writes_for_itself_when_the_log_is_quiet() {
    let disk = FaultDisk::new();
    let (wal, _) = open_threaded(&disk);
    let mut inline = 0;
    let mut index = 0;
    // Not when a file is nearly full, the sync before was slow, or the writer's thread is not back yet.
    while inline < 50 {
        index += 1;
        let records = vec![entry(1, index, Bytes::from(vec![7; 100]))];
        let (result, thread) = append_from(&wal, 1, records, Urgency::Inline);
        result.unwrap();
        inline += usize::from(thread == std::thread::current().id());
    }
    assert_eq!(wal.stats().appends, index);
    drop(wal);
    let (wal, recovered) = open_threaded(&disk.crash(0));
    assert_eq!(recovered[&ShardId::new(1)].last, Some((Term::new(1), EntryIndex::new(index))));
    drop(wal);
}

/// Entries `first..=last` of a shard, one after the other, answered before they are synced.
fn write_unsynced(driver: &mut Driver, shard: ShardId, range: std::ops::RangeInclusive<u64>) {
    let answers = Answers::default();
    let syncs = || driver.shared.counts.syncs.load(Ordering::Relaxed);
    let before = syncs();
    for index in range.clone() {
        let record = entry(1, index, Bytes::from(vec![index as u8; 300]));
        let append = append_as(Durability::Async, shard, vec![record], (index, &answers));
        driver.writer.commit(vec![append], Marks::new());
    }
    assert_eq!(driver.shared.counts.syncs.load(Ordering::Relaxed), before);
    let answered: Vec<u64> =
        answers.lock().drain(..).map(|(ticket, result)| result.map(|()| ticket).unwrap()).collect();
    assert_eq!(answered, range.collect::<Vec<_>>());
}

/// The last of a shard's entries after a crash, all of them read.
fn last_after(disk: &FaultDisk, shard: ShardId) -> u64 {
    let (driver, recovered) = Driver::open(disk).unwrap();
    let Some(found) = recovered.get(&shard) else { return 0 };
    assert!(found.corrupt.is_none(), "{:?}", found.corrupt);
    let entries = driver.read_all(shard, found);
    for (place, (index, (_, payload))) in (1..).zip(&entries) {
        assert_eq!((*index, payload), (place, &Bytes::from(vec![place as u8; 300])));
    }
    entries.len() as u64
}

#[test]
fn entries_answered_before_their_sync_are_lost_only_from_the_end_on() {
    let disk = FaultDisk::new();
    let (mut driver, _) = Driver::open(&disk).unwrap();
    let shard = ShardId::new(1);
    write_unsynced(&mut driver, shard, 1..=9);
    let kept: Vec<u64> = (0..60).map(|seed| last_after(&disk.crash(seed), shard)).collect();
    assert!(kept.iter().all(|last| *last <= 9) && kept.iter().any(|last| *last < 9), "{kept:?}");
    assert!(kept.iter().any(|last| *last > 0), "{kept:?}");
    assert_eq!(last_after(&disk, shard), 9, "the end of the process loses nothing");
    drop(driver);
    let (mut driver, _) = Driver::open(&disk).unwrap();
    driver.writer.finish(Marks::new());
    assert!((0..20).all(|seed| last_after(&disk.crash(seed), shard) == 9), "a log that was closed is synced");
}

#[test]
fn the_first_to_write_to_a_page_writes_all_of_it() {
    const PAGE: usize = 4 << 10;
    let disk = FaultDisk::new();
    let (mut driver, _) = Driver::open(&disk).unwrap();
    let file = disk.open(&dir().join(log_name(driver.writer.sequence()))).unwrap();
    let second_page = || {
        let mut bytes = vec![0; PAGE];
        file.read_at(&mut bytes, PAGE as u64).unwrap();
        bytes
    };
    // As in a file that is used again.
    file.write_at(&[0xA5; PAGE], PAGE as u64).unwrap();
    let shard = ShardId::new(1);
    let first = (1..).find(|index| {
        write_unsynced(&mut driver, shard, *index..=*index);
        second_page() != [0xA5; PAGE]
    });
    let first = first.unwrap();
    let used = second_page().iter().rposition(|byte| *byte != 0).unwrap();
    assert!(used < 600, "what was there before is gone: {used}");
    file.write_at(&[0xA5], 2 * PAGE as u64 - 1).unwrap();
    write_unsynced(&mut driver, shard, first + 1..=first + 1);
    assert_eq!(second_page()[PAGE - 1], 0xA5, "who writes to it later leaves the rest alone");
    assert_eq!(last_after(&disk, shard), first + 1);
}

#[test]
fn a_synced_entry_makes_those_of_all_shards_before_it_durable() {
    let disk = FaultDisk::new();
    let (mut driver, _) = Driver::open(&disk).unwrap();
    let (one, two, answers) = (ShardId::new(1), ShardId::new(2), Answers::default());
    write_unsynced(&mut driver, one, 1..=4);
    let unsynced = entry(1, 5, Bytes::from(vec![5; 300]));
    let batch = vec![
        append_as(Durability::Async, one, vec![unsynced], (1, &answers)),
        append(two, vec![entry(1, 1, Bytes::from(vec![1; 300]))], 2, &answers),
    ];
    driver.writer.commit(batch, Marks::new());
    assert!(answers.lock().iter().map(|(ticket, _)| *ticket).eq(1..=2));
    write_unsynced(&mut driver, one, 6..=9);
    let kept: Vec<u64> = (0..60)
        .map(|seed| {
            let crashed = disk.crash(seed);
            assert_eq!(last_after(&crashed, two), 1, "seed {seed}");
            last_after(&crashed, one)
        })
        .collect();
    assert!(kept.iter().all(|last| (5..=9).contains(last)) && kept.contains(&5), "{kept:?}");
}

#[test]
fn a_file_is_given_back_only_when_the_votes_in_the_next_one_are_synced() {
    let disk = FaultDisk::new();
    let (mut driver, _) = Driver::open(&disk).unwrap();
    let (shard, answers) = (ShardId::new(1), Answers::default());
    let vote = WalRecord::Vote { payload: Bytes::from_static(b"vote") };
    driver.writer.commit(vec![append(shard, vec![vote], 0, &answers)], Marks::new());
    let mut index = 0;
    while driver.shared.room.load(Ordering::Relaxed) > 1_200 {
        index += 1;
        let record = entry(1, index, Bytes::from(vec![1; 300]));
        driver.writer.commit(vec![append(shard, vec![record], index, &answers)], Marks::new());
    }
    let purge = WalRecord::Purge { upto: EntryIndex::new(index), payload: Bytes::from_static(b"purged") };
    driver.writer.commit(vec![append(shard, vec![purge], 0, &answers)], Marks::new());
    let (first, large) = (driver.writer.sequence(), entry(1, index + 1, Bytes::from(vec![2; 1_500])));
    driver.writer.commit(vec![append_as(Durability::Async, shard, vec![large], (0, &answers))], Marks::new());
    assert_eq!(driver.writer.sequence(), first + 1);
    assert!(answers.lock().iter().all(|(_, result)| result.is_ok()));
    for seed in 0..60 {
        let (_, recovered) = Driver::open(&disk.crash(seed)).unwrap();
        let found = &recovered[&shard];
        assert_eq!(found.vote.as_deref(), Some(b"vote".as_slice()), "seed {seed}");
        assert_eq!(found.purged, Some((EntryIndex::new(index), Bytes::from_static(b"purged"))), "seed {seed}");
        assert!(found.corrupt.is_none(), "seed {seed}");
    }
    // Then it is.
    driver.shared.syncer.sync(&driver.shared).unwrap();
    let next = entry(1, index + 2, Bytes::new());
    driver.writer.commit(vec![append_as(Durability::Async, shard, vec![next], (0, &answers))], Marks::new());
    assert!(!disk.exists(&dir().join(log_name(first))).unwrap());
}

/// Waits for something another thread does.
fn in_time(what: &str, mut is_done: impl FnMut() -> bool) {
    let begin = env::instant();
    while !is_done() {
        assert!(env::elapsed(begin) < std::time::Duration::from_secs(20), "{what}: never");
        std::thread::yield_now();
    }
}

#[test]
fn what_was_answered_unsynced_is_synced_soon_and_a_failure_then_is_for_ever() {
    let disk = FaultDisk::new();
    let (wal, _) = open_threaded(&disk);
    let shard = ShardId::new(1);
    append_and_wait(&wal, 1, vec![entry(1, 1, Bytes::from(vec![1; 300]))]).unwrap();
    let syncs = wal.stats().syncs;
    append_from(&wal, 1, vec![entry(1, 2, Bytes::from(vec![2; 300]))], Urgency::Written).0.unwrap();
    in_time("the sync", || wal.stats().syncs > syncs);
    assert!((0..20).all(|seed| last_after(&disk.crash(seed), shard) == 2));
    append_from(&wal, 1, vec![entry(1, 3, Bytes::from(vec![3; 300]))], Urgency::Written).0.unwrap();
    wal.sync().unwrap();
    assert!((0..20).all(|seed| last_after(&disk.crash(seed), shard) == 3));
    disk.fail_sync_after(0);
    append_from(&wal, 1, vec![entry(1, 4, Bytes::new())], Urgency::Written).0.unwrap();
    in_time("the failure", || *wal.failed().borrow());
    for urgency in [Urgency::Written, Urgency::Batched, Urgency::Inline] {
        let failed = append_from(&wal, 1, vec![entry(1, 5, Bytes::new())], urgency).0;
        assert!(matches!(failed, Err(StorageError::SyncFailed)), "{failed:?}");
    }
    assert!(matches!(wal.sync(), Err(StorageError::SyncFailed)));
    assert!((0..20).all(|seed| (3..=4).contains(&recovered_last(&disk.crash(seed), shard))));
}

/// The last entry a shard has after a crash.
fn recovered_last(disk: &FaultDisk, shard: ShardId) -> u64 {
    let (_, recovered) = Driver::open(disk).unwrap();
    recovered[&shard].last.map_or(0, |(_, index)| index.value())
}

#[test]
fn unsynced_entries_fill_one_file_after_the_other() {
    let disk = FaultDisk::new();
    let (wal, _) = open_threaded(&disk);
    for index in 1..=200 {
        append_from(&wal, 1, vec![entry(1, index, Bytes::from(vec![index as u8; 300]))], Urgency::Written).0.unwrap();
        let index = EntryIndex::new(index);
        let read = wal.read(ShardId::new(1), index, index.next(), ByteSize::ZERO).unwrap();
        assert_eq!(read[0].index, index);
    }
    assert!(wal.stats().files > 5);
    assert!(wal.stats().syncs < 100, "{:?}", wal.stats());
    wal.close();
    assert_eq!(last_after(&disk.crash(0), ShardId::new(1)), 200);
}

#[test]
fn many_threads_append_read_close_and_find_everything_again() {
    let disk = FaultDisk::new();
    let (wal, recovered) = open_threaded(&disk);
    assert!(recovered.is_empty());
    let appenders: Vec<_> = (0..4)
        .map(|shard| {
            let wal = wal.clone();
            env::thread("appender", move || {
                for index in 1..=100 {
                    let urgency = [Urgency::Batched, Urgency::Inline, Urgency::Written][index as usize % 3];
                    let records = vec![entry(1, index, Bytes::from(vec![shard as u8; 200]))];
                    append_from(&wal, shard, records, urgency).0.unwrap();
                    let index = EntryIndex::new(index);
                    let read = wal.read(ShardId::new(shard), index, index.next(), ByteSize::ZERO).unwrap();
                    assert_eq!(read[0].payload, vec![shard as u8; 200]);
                }
            })
            .unwrap()
        })
        .collect();
    appenders.into_iter().for_each(|appender| appender.join().unwrap());
    append_and_wait(&wal, 0, vec![WalRecord::Committed { payload: Bytes::from_static(b"100") }]).unwrap();
    let stats = wal.stats();
    assert_eq!(stats.appends, 400);
    assert!(stats.files > 5 && stats.oldest.is_some() && !stats.is_disk_full);
    wal.close();
    assert!(matches!(append_and_wait(&wal, 0, vec![entry(1, 101, Bytes::new())]), Err(StorageError::Closed)));
    let (wal, recovered) = open_threaded(&disk.crash(0));
    assert_eq!(recovered[&ShardId::new(0)].committed.as_deref(), Some(b"100".as_slice()));
    for shard in 0..4 {
        let found = &recovered[&ShardId::new(shard)];
        assert_eq!((found.first, found.last), (Some(EntryIndex::new(1)), Some((Term::new(1), EntryIndex::new(100)))));
        let all = wal.read(ShardId::new(shard), EntryIndex::new(1), EntryIndex::new(500), ByteSize::new(1 << 20));
        assert_eq!(all.unwrap().len(), 100);
    }
    let none = wal.read(ShardId::new(0), EntryIndex::new(101), EntryIndex::new(200), ByteSize::new(1));
    assert_eq!(none.unwrap(), []);
}

#[test]
fn failed_sync_and_full_disk_reach_every_handle() {
    let disk = FaultDisk::new();
    let (wal, _) = open_threaded(&disk);
    append_and_wait(&wal, 1, vec![entry(1, 1, Bytes::new())]).unwrap();
    disk.set_capacity(Some(disk.bytes_used()));
    let mut index = 2;
    while append_and_wait(&wal, 1, vec![entry(1, index, Bytes::from(vec![0; 500]))]).is_ok() {
        index += 1;
    }
    assert!(wal.stats().is_disk_full);
    assert!(matches!(wal.check_room(ByteSize::new(1)), Err(StorageError::DiskFull)));
    disk.set_capacity(None);
    append_and_wait(&wal, 1, vec![entry(1, index, Bytes::from(vec![0; 500]))]).unwrap();
    let deadline = env::instant() + std::time::Duration::from_secs(20);
    while wal.check_room(ByteSize::new(1)).is_err() {
        assert!(env::instant() < deadline, "a file of the usual size is made");
    }
    assert!(!*wal.failed().borrow());
    disk.fail_after(0);
    // A vote needs no other file, which could not be had either.
    let vote = append_and_wait(&wal, 1, vec![WalRecord::Vote { payload: Bytes::new() }]);
    assert!(matches!(vote, Err(StorageError::SyncFailed)), "{vote:?}");
    assert!(*wal.clone().failed().borrow());
    let failed = append_and_wait(&wal, 1, vec![entry(1, index + 1, Bytes::new())]);
    assert!(matches!(failed, Err(StorageError::SyncFailed)), "{failed:?}");
}

#[test]
fn a_panic_of_the_writer_answers_everyone_and_ends_the_log() {
    let (wal, _) = Wal::open(Arc::new(FaultDisk::new()), &dir(), options()).unwrap();
    let failed = wal.failed();
    let (answer, answers) = std::sync::mpsc::sync_channel(8);
    for urgency in [Urgency::Batched, Urgency::Inline, Urgency::Batched] {
        for index in 1..=3 {
            let answer = answer.clone();
            let done = move |result: Result<(), StorageError>| {
                assert!(index > 1, "a panic on purpose");
                answer.send((index, result)).unwrap();
            };
            // The first of a shard of its own, so that it is in order.
            let shard = ShardId::new(index);
            let record = WalRecord::Vote { payload: Bytes::from_static(b"v") };
            let appended = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                wal.append(shard, vec![record], urgency, Box::new(done));
            }));
            assert!(appended.is_ok(), "a panic of the writer reached its caller");
        }
        for _ in 0..2 {
            let (_, result) = answers.recv_timeout(std::time::Duration::from_secs(20)).expect("an answer");
            assert!(result.is_ok() || matches!(result, Err(StorageError::SyncFailed)), "{result:?}");
        }
    }
    assert!(*failed.borrow());
    wal.close();
}

#[test]
fn a_panic_of_the_helper_is_no_endless_wait() {
    let disk = FaultDisk::new();
    let (wal, _) = Wal::open(Arc::new(disk.clone()), &dir(), options()).unwrap();
    let (answer, answers) = std::sync::mpsc::sync_channel(1);
    disk.panic_at_create();
    let shard = ShardId::new(1);
    for index in 1.. {
        let answer = answer.clone();
        let record = entry(1, index, Bytes::from(vec![0; 1 << 10]));
        wal.append(shard, vec![record], Urgency::Batched, Box::new(move |result| answer.send(result).unwrap()));
        match answers.recv_timeout(std::time::Duration::from_secs(20)).expect("an answer") {
            Ok(()) => assert!(index < 100),
            Err(error) => return assert!(matches!(error, StorageError::SyncFailed), "{error}"),
        }
    }
}
