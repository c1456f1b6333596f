//! Merging and compaction against naive models, beside seals and readers, and under crashes at every write.

use super::super::fault_disk::FaultDisk;
use super::super::scan::ScanRequest;
use super::super::seal::SEGMENTS;
use super::super::shard_store::{ManifestState, ShardStore};
use super::super::testing::{dense, rows, topic};
use super::super::{KeySet, PartitionFacts, RealDisk, TopicStorage};
use super::*;
use arrow::array::{AsArray, BooleanArray, Int64Array, RecordBatch, TimestampMicrosecondArray};
use arrow::datatypes::{DataType, Field, Int64Type, Schema, TimeUnit};
use bytes::Bytes;
use millstream_catalog::model::{ByteSize, EntryIndex, ShardId};
use proptest::prelude::*;
use std::collections::BTreeMap;
use std::path::Path;

const DIR: &str = "/data/shard-1";
const TOPIC: TopicId = TopicId::new(1);
const PARTITION: PartitionId = PartitionId::new(0);

fn open(disk: &FaultDisk) -> (ShardStore, Option<ManifestState>) {
    ShardStore::open(Arc::new(disk.clone()), Path::new(DIR), ShardId::new(1)).unwrap()
}

fn view(store: &ShardStore) -> Arc<PartitionView> {
    store.partitions().get(TOPIC, PARTITION).unwrap().view()
}

fn append(store: &mut ShardStore, index: u64, batch: RecordBatch) {
    store.append(EntryIndex::new(index), TOPIC, PARTITION, batch).unwrap();
    store.publish(EntryIndex::new(index));
}

fn seal(store: &mut ShardStore, applied: &str) -> Result<(), StorageError> {
    let sealed = store.seal(Bytes::from(applied.to_owned()), Bytes::new()).run()?;
    store.install(sealed);
    Ok(())
}

fn request(store: &ShardStore, offsets: Range<u64>, compaction: Option<CompactionPlan>) -> Rewrite {
    Rewrite {
        topic: TOPIC,
        partition: PARTITION,
        offsets: Offset::new(offsets.start)..Offset::new(offsets.end),
        number: PartitionFacts::of(&view(store)).rewrites() + 1,
        compression: Compression::Lz4,
        compaction,
    }
}

fn rewrite(store: &mut ShardStore, rewrite: &Rewrite) -> Result<ByteSize, StorageError> {
    let job = store.rewrite_job(rewrite).expect("the segments are there");
    let rewritten = job.run(&AtomicBool::new(false))?;
    Ok(store.install_rewrite(rewrite, rewritten).expect("the segments are still there"))
}

fn files(disk: &FaultDisk) -> Vec<String> {
    let listed = disk.list(&Path::new(DIR).join(SEGMENTS)).unwrap();
    listed.into_iter().map(|entry| entry.name).collect()
}

fn read(store: &ShardStore) -> Vec<u64> {
    dense(0, view(store).scan(ScanRequest::all()).map(Result::unwrap))
}

/// Five segments of ten rows, each row an entry of its own.
fn five(disk: &FaultDisk) -> ShardStore {
    let (mut store, _) = open(disk);
    store.create_topic(topic(1, 1, Compression::None));
    for number in 0..50 {
        append(&mut store, number + 1, rows(number..number + 1));
        if number % 10 == 9 {
            seal(&mut store, "1").unwrap();
        }
    }
    store
}

#[test]
fn merged_segments_have_the_same_rows_offsets_and_entries() {
    let disk = FaultDisk::new();
    let mut store = five(&disk);
    let old = view(&store);
    let request = request(&store, 10..40, None);
    rewrite(&mut store, &request).unwrap();
    let check = |store: &ShardStore| {
        let view = view(store);
        assert_eq!(view.segments().iter().map(|s| s.rows().value()).collect::<Vec<_>>(), [10, 30, 10]);
        assert_eq!(read(store), (0..50).collect::<Vec<_>>());
        let ends: Vec<u64> = (0..=50).map(|cut| view.offset_end_at(EntryIndex::new(cut)).unwrap().value()).collect();
        assert_eq!(ends, (0..=50).collect::<Vec<_>>());
        assert_eq!(
            (view.rows().unwrap().value(), view.segments()[1].opened().unwrap().columns()[0].max.as_deref()),
            (50, Some("39"))
        );
    };
    check(&store);
    assert_eq!(files(&disk).len(), 6, "the old manifest needs the old files");
    seal(&mut store, "2").unwrap();
    assert_eq!(files(&disk).len(), 3);
    assert_eq!(dense(0, old.scan(ScanRequest::all()).map(Result::unwrap)), (0..50).collect::<Vec<_>>());
    let (store, _) = open(&disk);
    check(&store);
    assert!(store.rewrite_job(&request).is_none(), "it was done");
}

#[test]
fn segments_that_changed_meanwhile_are_left_alone() {
    let disk = FaultDisk::new();
    let mut store = five(&disk);
    let request = request(&store, 10..40, None);
    let rewritten = store.rewrite_job(&request).unwrap().run(&AtomicBool::new(false)).unwrap();
    store.move_start(TOPIC, PARTITION, Offset::new(20)).unwrap();
    assert!(store.install_rewrite(&request, rewritten).is_none() && store.rewrite_job(&request).is_none());
    seal(&mut store, "2").unwrap();
    assert_eq!(files(&disk).len(), 3, "what was written for nothing is gone");
    assert_eq!(dense(20, view(&store).scan(ScanRequest::all()).map(Result::unwrap)), (20..50).collect::<Vec<_>>());
}

#[test]
fn a_rewrite_beside_a_running_seal_is_listed_by_the_next() {
    let disk = FaultDisk::new();
    let mut store = five(&disk);
    append(&mut store, 51, rows(50..60));
    let job = store.seal(Bytes::from("2"), Bytes::new());
    let request = request(&store, 0..50, None);
    rewrite(&mut store, &request).unwrap();
    let sealed = job.run().unwrap();
    store.install(sealed);
    assert_eq!(read(&store), (0..60).collect::<Vec<_>>());
    // The manifest is of before: after a crash the entry is applied again.
    let crashed = disk.crash(1);
    let (mut again, _) = open(&crashed);
    assert_eq!((read(&again), files(&crashed).len()), ((0..60).collect::<Vec<_>>(), 6));
    rewrite(&mut again, &request).unwrap();
    for (store, disk) in [(&mut store, &disk), (&mut again, &crashed)] {
        seal(store, "3").unwrap();
        assert_eq!((read(store), files(disk).len()), ((0..60).collect::<Vec<_>>(), 2));
    }
}

#[test]
fn a_full_disk_and_a_stop_leave_the_old_segments_and_nothing_else() {
    let disk = FaultDisk::new();
    let store = five(&disk);
    let before = files(&disk);
    let job = || store.rewrite_job(&request(&store, 0..50, None)).unwrap();
    disk.set_capacity(Some(disk.bytes_used() + 100));
    assert!(matches!(job().run(&AtomicBool::new(false)), Err(StorageError::DiskFull)));
    disk.set_capacity(None);
    assert!(matches!(job().run(&AtomicBool::new(true)), Err(StorageError::Closed)));
    assert_eq!((files(&disk), read(&store)), (before, (0..50).collect::<Vec<_>>()));
}

#[test]
fn a_crash_at_any_write_of_a_rewrite_and_its_seal_leaves_every_row() {
    let steps = {
        let disk = FaultDisk::new();
        let mut store = five(&disk);
        let start = disk.steps();
        let request = request(&store, 10..40, None);
        rewrite(&mut store, &request).unwrap();
        seal(&mut store, "2").unwrap();
        disk.steps() - start
    };
    assert!(steps > 8, "{steps} steps");
    let mut found = [false; 2];
    for step in 0..=steps {
        for seed in 0..12 {
            let disk = FaultDisk::new();
            let mut store = five(&disk);
            let request = request(&store, 10..40, None);
            disk.fail_after(step);
            let is_done = rewrite(&mut store, &request).and_then(|_| seal(&mut store, "2")).is_ok();
            let disk = disk.crash(seed * 1_000 + step);
            let (mut store, state) = open(&disk);
            let is_new = state.unwrap().applied == "2";
            assert!(is_new || !is_done, "what is sealed stays sealed");
            found[usize::from(is_new)] = true;
            assert_eq!(view(&store).segments().len(), if is_new { 3 } else { 5 });
            assert_eq!(read(&store), (0..50).collect::<Vec<_>>());
            if !is_new {
                rewrite(&mut store, &request).unwrap();
            }
            seal(&mut store, "3").unwrap();
            let (store, _) = open(&disk.crash(7));
            assert_eq!((read(&store), files(&disk).len()), ((0..50).collect::<Vec<_>>(), 3));
        }
    }
    assert_eq!(found, [true, true]);
}

/// `k bigint, v bigint, rowtime, rowtombstone`.
fn changelog() -> TopicStorage {
    let time = DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into()));
    let schema = Schema::new(vec![
        Field::new("k", DataType::Int64, true),
        Field::new("v", DataType::Int64, true),
        Field::new("rowtime", time, false),
        Field::new("rowtombstone", DataType::Boolean, false),
    ]);
    TopicStorage { schema: Arc::new(schema), ..topic(1, 1, Compression::None) }
}

/// A change of a key: a value, or `None` for its deletion.
type Update = (Option<i64>, Option<i64>);

fn changes(updates: &[Update]) -> RecordBatch {
    let times = TimestampMicrosecondArray::from(vec![7; updates.len()]).with_timezone("UTC");
    let tombstones = BooleanArray::from_iter(updates.iter().map(|(_, value)| Some(value.is_none())));
    RecordBatch::try_new(
        changelog().schema,
        vec![
            Arc::new(Int64Array::from_iter(updates.iter().map(|(key, _)| *key))),
            Arc::new(Int64Array::from_iter(updates.iter().map(|(_, value)| *value))),
            Arc::new(times),
            Arc::new(tombstones),
        ],
    )
    .unwrap()
}

/// Offsets and changes as a reader sees them from `from` on.
fn seen(store: &ShardStore, from: u64) -> Vec<(u64, Update)> {
    let request = ScanRequest { offsets: Offset::new(from)..Offset::new(u64::MAX), ..ScanRequest::all() };
    let mut all = Vec::new();
    for stored in view(store).scan(request).map(Result::unwrap) {
        let column = |at: usize| stored.batch.column(at).as_primitive::<Int64Type>().iter().collect::<Vec<_>>();
        assert_eq!(stored.entries.rows(), stored.rows());
        let offsets = stored.row_offsets();
        let rows = column(0).into_iter().zip(column(1));
        all.extend(offsets.values().iter().map(|offset| *offset as u64).zip(rows));
    }
    all
}

/// The rows that compaction up to `upto` leaves, the slow way.
fn compacted(rows: &[(u64, Update)], upto: u64, tombstones_upto: u64) -> Vec<(u64, Update)> {
    let last: BTreeMap<i64, u64> = rows
        .iter()
        .filter(|(offset, _)| *offset < upto)
        .filter_map(|(offset, (key, _))| Some((*key.as_ref()?, *offset)))
        .collect();
    let stays = |(offset, (key, value)): &&(u64, Update)| {
        let Some(key) = key else { return true };
        let is_gone = value.is_none() && *offset < tombstones_upto;
        *offset >= upto || (last.get(key) == Some(offset) && !is_gone)
    };
    rows.iter().filter(stays).copied().collect()
}

fn plan(tombstones_upto: u64) -> Option<CompactionPlan> {
    Some(CompactionPlan { key: vec![0], tombstones_upto: Offset::new(tombstones_upto), now: Timestamp::from_micros(5) })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]
    #[test]
    fn compaction_leaves_the_last_row_of_each_key_at_its_offset(
        seals in prop::collection::vec(
            (prop::collection::vec((0i64..8, 0i64..40, 0u8..10), 1..30), 0u8..4, 0u64..200), 1..10),
    ) {
        let disk = FaultDisk::new();
        let (mut store, _) = open(&disk);
        store.create_topic(changelog());
        let (mut expected, mut index, mut next, mut tombstones_upto) = (Vec::new(), 0, 0u64, 0u64);
        for (updates, action, place) in seals {
            for (key, value, kind) in updates {
                // Some are deletions, a few have no key.
                let update = match kind { 0..3 => (Some(key), None), 3 => (None, Some(value)), _ => (Some(key), Some(value)) };
                index += 1;
                append(&mut store, index, changes(&[update]));
                expected.push((next, update));
                next += 1;
            }
            seal(&mut store, "1").unwrap();
            let segments = view(&store).segments().to_vec();
            let last = &segments[place as usize % segments.len()];
            let (start, upto) = (segments[0].offset_start().value(), last.offset_end().value());
            if action == 1 {
                // Merging first, so that rows with gaps are merged too.
                let merge = request(&store, start..upto, None);
                rewrite(&mut store, &merge).unwrap();
            } else if action > 1 && upto >= view(&store).upkeep().compacted_upto.value() {
                tombstones_upto = tombstones_upto.max(place.min(upto));
                let compact = request(&store, start..upto, plan(tombstones_upto));
                rewrite(&mut store, &compact).unwrap();
                expected = compacted(&expected, upto, tombstones_upto);
                let tombstones = expected.iter().filter(|(offset, (_, value))| *offset < upto && value.is_none());
                let keyed = tombstones.filter(|(_, (key, _))| key.is_some()).count() as u64;
                prop_assert_eq!(view(&store).upkeep().tombstones, keyed);
            }
            if action == 3 {
                seal(&mut store, "2").unwrap();
                store = open(&disk).0;
            }
            let view = view(&store);
            prop_assert_eq!(seen(&store, 0), expected.clone());
            prop_assert_eq!((view.rows().unwrap().as_usize(), view.offset_end().value()), (expected.len(), next));
            for from in [1, next / 3, next / 2, next - 1] {
                let rest: Vec<_> = expected.iter().filter(|(offset, _)| *offset >= from).copied().collect();
                prop_assert_eq!(view.rows_before(Offset::new(from)).unwrap().as_usize(), expected.len() - rest.len());
                prop_assert_eq!(seen(&store, from), rest);
            }
            if view.segments().is_empty() {
                break;
            }
        }
    }
}

#[test]
fn compaction_of_many_updates_leaves_the_keys_and_the_bytes_of_the_rest_come_back() {
    let disk = FaultDisk::new();
    let (mut store, _) = open(&disk);
    store.create_topic(changelog());
    for round in 0..20 {
        let updates: Vec<Update> = (0..1_000).map(|key| (Some(key), Some(round))).collect();
        append(&mut store, round as u64 + 1, changes(&updates));
        seal(&mut store, "1").unwrap();
    }
    let before = disk.bytes_used();
    let all = request(&store, 0..20_000, plan(0));
    let replaced = rewrite(&mut store, &all).unwrap();
    seal(&mut store, "2").unwrap();
    assert!(disk.bytes_used() < before - replaced.value() / 2, "{} of {before}", disk.bytes_used());
    assert_eq!(seen(&store, 0), (0..1_000).map(|key| (19_000 + key as u64, (Some(key), Some(19)))).collect::<Vec<_>>());
    assert_eq!(view(&store).segments()[0].offset_start(), Offset::ZERO);
}

#[test]
fn a_range_that_compaction_emptied_is_a_gap_that_opens_again() {
    let disk = FaultDisk::new();
    let (mut store, _) = open(&disk);
    store.create_topic(changelog());
    for (index, updates) in
        [[(Some(1), Some(5)), (Some(2), Some(6))], [(Some(1), None), (Some(2), None)]].iter().enumerate()
    {
        append(&mut store, index as u64 + 1, changes(updates));
        seal(&mut store, "1").unwrap();
    }
    let first = request(&store, 0..4, plan(0));
    rewrite(&mut store, &first).unwrap();
    assert_eq!(seen(&store, 0), [(2, (Some(1), None)), (3, (Some(2), None))]);
    let second = request(&store, 0..4, plan(4));
    rewrite(&mut store, &second).unwrap();
    let check = |store: &ShardStore| {
        let view = view(store);
        assert_eq!((seen(store, 0), view.rows().unwrap().value(), view.offset_end().value()), (Vec::new(), 0, 4));
    };
    check(&store);
    seal(&mut store, "2").unwrap();
    assert_eq!(files(&disk), [""; 0]);
    let (mut store, _) = open(&disk);
    check(&store);
    append(&mut store, 3, changes(&[(Some(3), Some(7))]));
    seal(&mut store, "3").unwrap();
    let (store, _) = open(&disk);
    assert_eq!((seen(&store, 0), view(&store).rows().unwrap().value()), (vec![(4, (Some(3), Some(7)))], 1));
}

/// Five segments of changes to four keys, each change an entry, and all of them.
fn keyed(disk: &FaultDisk) -> (ShardStore, Vec<(u64, Update)>) {
    let (mut store, _) = open(disk);
    store.create_topic(changelog());
    let mut all = Vec::new();
    for number in 0..30 {
        let update = (Some(number as i64 % 4), (number % 7 != 3).then_some(number as i64));
        append(&mut store, number + 1, changes(&[update]));
        all.push((number, update));
        if number % 6 == 5 {
            seal(&mut store, "1").unwrap();
        }
    }
    (store, all)
}

#[test]
fn a_crash_at_any_write_of_compaction_merging_and_retention_leaves_the_rows_before_or_after() {
    for start in [13, 24] {
        let upkeep = |store: &mut ShardStore| -> Result<(), StorageError> {
            let compact = request(store, 0..18, plan(10));
            rewrite(store, &compact)?;
            let merge = request(store, 0..24, None);
            rewrite(store, &merge)?;
            store.move_start(TOPIC, PARTITION, Offset::new(start))?;
            seal(store, "2")
        };
        let (steps, expected) = {
            let disk = FaultDisk::new();
            let (mut store, all) = keyed(&disk);
            let begin = disk.steps();
            upkeep(&mut store).unwrap();
            assert_eq!(files(&disk).len(), view(&store).segments().len(), "nobody needs the old files");
            let mut kept = compacted(&all, 18, 10);
            kept.retain(|(offset, _)| *offset >= start);
            (disk.steps() - begin, kept)
        };
        assert!(steps > 10, "{steps} steps");
        let mut found = [false; 2];
        for step in 0..=steps {
            for seed in 0..8 {
                let disk = FaultDisk::new();
                let (mut store, all) = keyed(&disk);
                disk.fail_after(step);
                let is_done = upkeep(&mut store).is_ok();
                let disk = disk.crash(seed * 1_000 + step);
                let (mut store, state) = open(&disk);
                let is_new = state.unwrap().applied == "2";
                assert!(is_new || !is_done, "what is sealed stays sealed");
                found[usize::from(is_new)] = true;
                assert_eq!(seen(&store, 0), if is_new { expected.clone() } else { all }, "step {step}, seed {seed}");
                if is_new {
                    seal(&mut store, "3").unwrap();
                } else {
                    // The log repeats it.
                    upkeep(&mut store).unwrap();
                }
                let disk = disk.crash(7);
                let (store, _) = open(&disk);
                assert_eq!(seen(&store, 0), expected);
                assert_eq!(files(&disk).len(), view(&store).segments().len());
            }
        }
        assert_eq!(found, [true, true]);
    }
}

/// A shard as manifests and footers of version 3 were first written: compacted, with gaps, and without the entries of
/// segments in the manifest. Every later version must read it.
const SHARD_3: [(&str, &str); 3] = [
    ("manifest", "manifest"),
    ("segments/t1-p0-00000000000000000000-r1.arrow", "compacted.arrow"),
    ("segments/t1-p0-00000000000000000018.arrow", "sealed.arrow"),
];

#[test]
fn a_shard_of_version_3_opens() {
    let disk = FaultDisk::new();
    disk.create_dir_all(&Path::new(DIR).join(SEGMENTS)).unwrap();
    let fixture = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/storage/fixtures/shard-3");
    for (name, file) in SHARD_3 {
        let bytes = RealDisk.map(&fixture.join(file)).unwrap();
        disk.create(&Path::new(DIR).join(name)).unwrap().write_at(&bytes, 0).unwrap();
    }
    let all: Vec<_> = keyed(&FaultDisk::new()).1.into_iter().take(24).collect();
    let expected = compacted(&all, 18, 10);
    let (mut store, state) = open(&disk);
    assert_eq!(state.unwrap().applied, "2");
    let check = |store: &ShardStore| {
        assert_eq!(seen(store, 0), expected);
        let view = view(store);
        let ends: Vec<u64> = (0..=24).map(|cut| view.offset_end_at(EntryIndex::new(cut)).unwrap().value()).collect();
        let upto = |cut| expected.iter().rfind(|(offset, _)| *offset < cut).map_or(0, |(offset, _)| offset + 1);
        let upto = |cut: u64| if cut >= 18 { cut } else { upto(cut) };
        assert_eq!(ends, (0..=24).map(upto).collect::<Vec<_>>());
        assert_eq!(view.upkeep().compacted_upto, Offset::new(18));
    };
    check(&store);
    // The next manifest says more, and then no segment is opened at the start.
    seal(&mut store, "3").unwrap();
    let (store, _) = open(&disk);
    assert!(view(&store).segments().iter().all(|segment| !segment.is_open()));
    check(&store);
}

#[test]
fn a_partition_whose_newest_rows_were_compacted_away_opens_again() {
    let disk = FaultDisk::new();
    let (mut store, _) = open(&disk);
    store.create_topic(changelog());
    // Every file counts as large: a clean one is kept.
    let compact = |store: &mut ShardStore, upto: u64, tombstones_upto: u64| {
        let request = request(store, 0..upto, plan(tombstones_upto));
        let mut job = store.rewrite_job(&request).unwrap();
        job.target_bytes = 1;
        let rewritten = job.run(&AtomicBool::new(false)).unwrap();
        store.install_rewrite(&request, rewritten).unwrap();
    };
    append(&mut store, 1, changes(&[(Some(1), Some(5)), (Some(2), Some(6))]));
    seal(&mut store, "1").unwrap();
    compact(&mut store, 2, 0);
    append(&mut store, 2, changes(&[(Some(3), Some(7)), (Some(3), None)]));
    seal(&mut store, "1").unwrap();
    compact(&mut store, 4, 0);
    assert_eq!(view(&store).segments().len(), 2);
    compact(&mut store, 4, 4);
    let kept = [(0, (Some(1), Some(5))), (1, (Some(2), Some(6)))];
    let check = |store: &ShardStore| {
        let view = view(store);
        assert_eq!((view.segments().len(), view.offset_end().value()), (1, 4));
        assert_eq!(seen(store, 0), kept);
    };
    check(&store);
    seal(&mut store, "2").unwrap();
    let (mut store, _) = open(&disk);
    check(&store);
    append(&mut store, 3, changes(&[(Some(4), Some(8))]));
    seal(&mut store, "3").unwrap();
    let (store, _) = open(&disk);
    assert_eq!(seen(&store, 0), [kept[0], kept[1], (4, (Some(4), Some(8)))]);
}

#[test]
fn a_bit_that_flips_after_a_block_was_read_is_not_written_again() {
    let dir = tempfile::tempdir().unwrap();
    let disk: Arc<dyn Disk> = Arc::new(RealDisk);
    let (mut store, _) = ShardStore::open(Arc::clone(&disk), dir.path(), ShardId::new(1)).unwrap();
    store.create_topic(topic(1, 1, Compression::None));
    for part in 0..2 {
        append(&mut store, part + 1, rows(part * 10..part * 10 + 10));
        seal(&mut store, "1").unwrap();
    }
    assert_eq!(read(&store), (0..20).collect::<Vec<_>>());
    let segment = Arc::clone(&view(&store).segments()[0]);
    let file = disk.open(&dir.path().join(SEGMENTS).join(segment.file())).unwrap();
    let position = segment.opened().unwrap().block_bytes(0).end - 20;
    let mut byte = [0];
    file.read_at(&mut byte, position).unwrap();
    file.write_at(&[byte[0] ^ 4], position).unwrap();
    let merge = request(&store, 0..20, None);
    let merged = store.rewrite_job(&merge).unwrap().run(&AtomicBool::new(false));
    assert!(matches!(merged, Err(StorageError::DamagedRows { .. })), "{merged:?}");
}

#[test]
fn a_key_whose_deletion_was_compacted_away_counts_as_touched() {
    let disk = FaultDisk::new();
    let (mut store, _) = open(&disk);
    store.create_topic(changelog());
    for (index, update) in [(1, (Some(1), Some(5))), (2, (Some(1), None)), (3, (Some(2), Some(6)))] {
        append(&mut store, index, changes(&[update]));
    }
    seal(&mut store, "1").unwrap();
    let keys = KeySet::new(&changes(&[(Some(1), Some(9))]), &[0]).unwrap();
    let touched = |store: &ShardStore| {
        [0, 1, 2, 3].map(|from| store.is_touched(TOPIC, PARTITION, Offset::new(from), &keys).unwrap())
    };
    assert_eq!(touched(&store), [true, true, false, false]);
    let compact = request(&store, 0..3, plan(2));
    // Here its files could not be written; elsewhere they are: the answer must be the same.
    store.forget_tombstones(&compact);
    assert_eq!(touched(&store), [true, true, false, false]);
    rewrite(&mut store, &compact).unwrap();
    store.forget_tombstones(&compact);
    assert_eq!(touched(&store), [true, true, false, false]);
    seal(&mut store, "2").unwrap();
    assert_eq!(touched(&open(&disk).0), [true, true, false, false]);
}

#[test]
fn a_replica_that_missed_rewrites_takes_the_next_ones() {
    let disk = FaultDisk::new();
    let mut store = five(&disk);
    let fifth = Rewrite { number: 5, ..request(&store, 0..20, None) };
    rewrite(&mut store, &fifth).unwrap();
    assert_eq!(PartitionFacts::of(&view(&store)).rewrites(), 5);
    let again = Rewrite { offsets: Offset::new(20)..Offset::new(40), ..fifth };
    assert!(store.rewrite_job(&again).is_none(), "numbers ascend");
    rewrite(&mut store, &Rewrite { number: 9, ..again }).unwrap();
    assert_eq!((read(&store), view(&store).segments().len()), ((0..50).collect::<Vec<_>>(), 3));
}
