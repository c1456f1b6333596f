//! Tests of the store as a whole: against a naive model (`model`), under crashes, and beside concurrent readers.
//!
//! Leaves out what one module can show by itself.

use super::super::batch::StoredBatch;
use super::super::disk::RealDisk;
use super::super::fault_disk::FaultDisk;
use super::super::fit::Wanted;
use super::super::partition::PartitionView;
use super::super::scan::ScanRequest;
use super::super::testing::{dense, numbers, rows, topic};
use super::*;
use millstream_catalog::model::RowCount;
use millstream_catalog::relation::Compression;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};

#[path = "shard_store_model_tests.rs"]
mod model;

const DIR: &str = "/data/shard-1";

fn open(disk: &FaultDisk) -> Result<(ShardStore, Option<ManifestState>), StorageError> {
    ShardStore::open(Arc::new(disk.clone()), Path::new(DIR), ShardId::new(1))
}

fn fresh() -> (FaultDisk, ShardStore) {
    let disk = FaultDisk::new();
    let (store, state) = open(&disk).unwrap();
    assert_eq!(state, None);
    (disk, store)
}

fn entry(index: u64) -> EntryIndex {
    EntryIndex::new(index)
}

fn append(store: &mut ShardStore, index: u64, topic: u64, partition: u32, numbers: Range<u64>) -> u64 {
    let (topic, partition) = (TopicId::new(topic), PartitionId::new(partition));
    store.append(entry(index), topic, partition, rows(numbers)).unwrap().value()
}

fn seal(store: &mut ShardStore, applied: u64) -> Result<(), StorageError> {
    let state = Bytes::from(applied.to_string());
    let sealed = store.seal(state.clone(), state).run()?;
    store.install(sealed);
    Ok(())
}

fn read(store: &ShardStore, topic: u64, partition: u32) -> Vec<u64> {
    read_from(0, store, topic, partition)
}

fn read_from(start: u64, store: &ShardStore, topic: u64, partition: u32) -> Vec<u64> {
    let view = store.partitions().get(TopicId::new(topic), PartitionId::new(partition)).unwrap().view();
    assert_eq!(view.offset_start().value(), start);
    dense(start, view.scan(ScanRequest::all()).map(Result::unwrap))
}

fn move_start(store: &mut ShardStore, topic: u64, partition: u32, to: u64) -> u64 {
    store.move_start(TopicId::new(topic), PartitionId::new(partition), Offset::new(to)).unwrap().value()
}

fn files(disk: &FaultDisk, dir: &str) -> Vec<String> {
    let listed = disk.list(&Path::new(DIR).join(dir)).unwrap_or_default();
    listed.into_iter().map(|entry| entry.name).collect()
}

#[test]
fn rows_are_visible_only_after_publish_of_their_entry() {
    let (_disk, mut store) = fresh();
    store.create_topic(topic(1, 2, Compression::None));
    let partitions = store.partitions();
    let mut applied = partitions.subscribe_applied();
    assert_eq!(append(&mut store, 5, 1, 0, 0..3), 0);
    assert_eq!(append(&mut store, 5, 1, 1, 0..1), 0);
    assert_eq!(append(&mut store, 6, 1, 0, 3..5), 3);
    assert_eq!(read(&store, 1, 0), [0u64; 0]);
    store.publish(entry(5));
    assert_eq!((read(&store, 1, 0), read(&store, 1, 1)), (vec![0, 1, 2], vec![0]));
    assert_eq!((partitions.applied(), *applied.borrow_and_update()), (entry(5), entry(5)));
    store.publish(entry(9));
    assert_eq!(read(&store, 1, 0), [0, 1, 2, 3, 4]);
    assert_eq!(partitions.applied(), entry(9));
    let out_of_order = store.append(entry(9), TopicId::new(1), PartitionId::new(0), rows(0..1));
    assert!(matches!(out_of_order, Err(StorageError::OutOfOrder { .. })));
    let nowhere = store.append(entry(10), TopicId::new(1), PartitionId::new(2), rows(0..1));
    assert!(matches!(nowhere, Err(StorageError::NoPartition { .. })));
}

#[test]
fn who_is_woken_finds_the_entry_applied() {
    let (_disk, mut store) = fresh();
    store.create_topic(topic(1, 1, Compression::None));
    let partitions = store.partitions();
    let partition = partitions.get(TopicId::new(1), PartitionId::new(0)).unwrap();
    let mut end = partition.subscribe();
    #[expect(clippy::disallowed_methods, reason = "a test needs no seam")]
    let reader = std::thread::spawn(move || {
        for index in 1..=500 {
            let woken_at = *futures::executor::block_on(end.wait_for(|end| *end >= Offset::new(index))).unwrap();
            let applied = partitions.applied();
            assert!(partition.view().offset_end_at(applied).unwrap() >= woken_at, "{applied} is before {woken_at}");
        }
    });
    for index in 1..=500 {
        append(&mut store, index, 1, 0, index - 1..index);
        store.publish(entry(index));
    }
    reader.join().unwrap();
}

#[test]
fn large_appends_are_cut_without_a_copy() {
    let (_disk, mut store) = fresh();
    store.create_topic(topic(1, 1, Compression::None));
    let batch = rows(0..150_000);
    let ids = batch.column(0).to_data().buffers()[0].as_slice().as_ptr_range();
    store.append(entry(1), TopicId::new(1), PartitionId::new(0), batch).unwrap();
    store.publish(entry(1));
    let view = store.partitions().get(TopicId::new(1), PartitionId::new(0)).unwrap().view();
    let sizes: Vec<usize> = view.in_memory().map(|batch| batch.stored.batch.num_rows()).collect();
    assert_eq!(sizes, [65_536, 65_536, 18_928]);
    for batch in view.in_memory() {
        assert!(ids.contains(&batch.stored.batch.column(0).to_data().buffers()[0].as_slice().as_ptr()));
    }
}

#[test]
fn cuts_are_consistent_over_partitions_before_and_after_a_seal() {
    let (disk, mut store) = fresh();
    store.create_topic(topic(1, 2, Compression::Lz4));
    for index in 1..=20 {
        append(&mut store, index, 1, 0, index * 3 - 3..index * 3);
        append(&mut store, index, 1, 1, index - 1..index);
        store.publish(entry(index));
    }
    let check = |store: &ShardStore| {
        let partition = |id| store.partitions().get(TopicId::new(1), PartitionId::new(id)).unwrap().view();
        for cut in 0..25u64 {
            assert_eq!(partition(0).offset_end_at(entry(cut)).unwrap().value(), cut.min(20) * 3, "cut {cut}");
            assert_eq!(partition(1).offset_end_at(entry(cut)).unwrap().value(), cut.min(20), "cut {cut}");
        }
    };
    check(&store);
    let job = store.seal(Bytes::new(), Bytes::new());
    check(&store);
    let sealed = job.run().unwrap();
    store.install(sealed);
    check(&store);
    check(&open(&disk).unwrap().0);
}

#[test]
fn what_is_appended_while_a_seal_runs_stays_readable_and_goes_with_the_next() {
    let (disk, mut store) = fresh();
    store.create_topic(topic(1, 1, Compression::None));
    append(&mut store, 1, 1, 0, 0..4);
    let job = store.seal(Bytes::from("a"), Bytes::new());
    assert_eq!(read(&store, 1, 0), [0, 1, 2, 3], "a seal publishes first");
    assert!(store.is_sealing() && store.unsealed_bytes() == ByteSize::ZERO);
    append(&mut store, 2, 1, 0, 4..6);
    store.publish(entry(2));
    let old = store.partitions().get(TopicId::new(1), PartitionId::new(0)).unwrap().view();
    let sealed = job.run().unwrap();
    assert_eq!((sealed.segments(), sealed.published()), (1, entry(1)));
    store.install(sealed);
    assert!(!store.is_sealing() && store.frozen_bytes() == ByteSize::ZERO);
    assert_eq!(read(&store, 1, 0), [0, 1, 2, 3, 4, 5]);
    assert_eq!(dense(0, old.scan(ScanRequest::all()).map(Result::unwrap)), [0, 1, 2, 3, 4, 5]);
    assert_eq!(read(&open(&disk).unwrap().0, 1, 0), [0, 1, 2, 3]);
    seal(&mut store, 2).unwrap();
    let (again, state) = open(&disk).unwrap();
    assert_eq!(read(&again, 1, 0), [0, 1, 2, 3, 4, 5]);
    assert_eq!(state.unwrap().applied, "2");
    assert_eq!(again.partitions().segments().len(), 2);
}

#[test]
fn a_full_disk_keeps_rows_in_memory_until_a_later_seal() {
    let (disk, mut store) = fresh();
    store.create_topic(topic(1, 2, Compression::None));
    append(&mut store, 1, 1, 0, 0..1_000);
    append(&mut store, 1, 1, 1, 0..10);
    let bytes = store.unsealed_bytes();
    assert_ne!(bytes, ByteSize::ZERO);
    disk.set_capacity(Some(10_000));
    assert!(matches!(seal(&mut store, 1), Err(StorageError::DiskFull)));
    assert_eq!(files(&disk, "segments"), [""; 0], "what was written is removed");
    assert_eq!((store.unsealed_bytes(), store.frozen_bytes()), (ByteSize::ZERO, bytes));
    append(&mut store, 2, 1, 0, 1_000..1_001);
    store.publish(entry(2));
    assert_eq!(read(&store, 1, 0).len(), 1_001);
    disk.set_capacity(None);
    seal(&mut store, 2).unwrap();
    assert_eq!(store.frozen_bytes(), ByteSize::ZERO);
    let (again, _) = open(&disk).unwrap();
    assert_eq!((read(&again, 1, 0).len(), read(&again, 1, 1).len()), (1_001, 10));
}

#[test]
fn files_of_a_dropped_topic_go_after_the_next_manifest() {
    let (disk, mut store) = fresh();
    store.create_topic(topic(1, 1, Compression::None));
    store.create_topic(topic(2, 1, Compression::None));
    append(&mut store, 1, 1, 0, 0..4);
    append(&mut store, 1, 2, 0, 0..4);
    seal(&mut store, 1).unwrap();
    let held = store.partitions().get(TopicId::new(1), PartitionId::new(0)).unwrap();
    store.drop_topic(TopicId::new(1));
    assert!(held.is_dropped() && store.partitions().get(TopicId::new(1), PartitionId::new(0)).is_none());
    assert_eq!(files(&disk, "segments").len(), 2);
    seal(&mut store, 2).unwrap();
    assert_eq!(files(&disk, "segments"), ["t2-p0-00000000000000000000.arrow"]);
    assert_eq!(dense(0, held.view().scan(ScanRequest::all()).map(Result::unwrap)), [0, 1, 2, 3]);
    let (again, _) = open(&disk).unwrap();
    assert_eq!(again.partitions().topics(), [TopicId::new(2)]);
    assert_eq!(files(&disk, "unknown"), [""; 0]);
}

#[test]
fn removed_files_do_not_come_back_after_later_seals_and_crashes() {
    for seed in 0..16 {
        let (disk, mut store) = before_second_seal();
        seal(&mut store, 5).unwrap();
        seal(&mut store, 5).unwrap();
        let disk = disk.crash(seed);
        open(&disk).unwrap();
        assert!(files(&disk, "segments").iter().all(|file| !file.starts_with("t2-")));
        assert_eq!(files(&disk, "unknown"), [""; 0]);
    }
}

#[test]
fn a_topic_dropped_while_it_is_sealed_leaves_nothing_behind() {
    let (disk, mut store) = fresh();
    store.create_topic(topic(1, 1, Compression::None));
    append(&mut store, 1, 1, 0, 0..4);
    let job = store.seal(Bytes::new(), Bytes::new());
    append(&mut store, 2, 1, 0, 4..8);
    store.drop_topic(TopicId::new(1));
    assert_eq!((store.unsealed_bytes(), store.frozen_bytes()), (ByteSize::ZERO, ByteSize::ZERO));
    let sealed = job.run().unwrap();
    store.install(sealed);
    store.publish(entry(3));
    assert_eq!(files(&disk, "segments").len(), 1);
    seal(&mut store, 3).unwrap();
    assert_eq!(files(&disk, "segments"), [""; 0]);
}

#[test]
fn a_log_start_moves_through_segments_and_memory_and_never_back() {
    let (disk, mut store) = fresh();
    store.create_topic(topic(1, 2, Compression::None));
    for part in 0..3 {
        append(&mut store, part + 1, 1, 0, part * 10..part * 10 + 10);
        seal(&mut store, part + 1).unwrap();
    }
    append(&mut store, 4, 1, 0, 30..40);
    let held = store.partitions().get(TopicId::new(1), PartitionId::new(0)).unwrap().view();
    let unsealed = store.unsealed_bytes();
    // Within a segment, at its end, back, within the tail (which is published first), and past the end.
    for (to, start, segments) in [(5, 5, 3), (10, 10, 2), (7, 10, 2), (15, 15, 2), (34, 34, 0), (99, 40, 0)] {
        assert_eq!(move_start(&mut store, 1, 0, to), start);
        assert_eq!(read_from(start, &store, 1, 0), (start..40).collect::<Vec<_>>());
        assert_eq!(store.partitions().segments().len(), segments);
        let view = store.partitions().get(TopicId::new(1), PartitionId::new(0)).unwrap().view();
        for (cut, end) in [(0, 0), (1, 10), (2, 20), (3, 30), (4, 40)] {
            assert_eq!(view.offset_end_at(entry(cut)).unwrap().value(), end.max(start));
        }
        assert_eq!(view.rows().unwrap().value(), 40 - start);
    }
    assert!(unsealed > ByteSize::ZERO && store.unsealed_bytes() == ByteSize::ZERO);
    assert_eq!(dense(0, held.scan(ScanRequest::all()).map(Result::unwrap)).len(), 30, "a view that is held stays");
    assert_eq!(append(&mut store, 5, 1, 0, 40..41), 40, "offsets go on");
    assert_eq!(files(&disk, "segments").len(), 3, "files stay until a manifest no longer lists them");
    seal(&mut store, 5).unwrap();
    assert_eq!(files(&disk, "segments"), ["t1-p0-00000000000000000040.arrow"]);
    let (mut again, _) = open(&disk).unwrap();
    assert_eq!(read_from(40, &again, 1, 0), [40]);
    assert_eq!(append(&mut again, 6, 1, 0, 41..42), 41);
    assert!(again.move_start(TopicId::new(1), PartitionId::new(2), Offset::ZERO).is_err());
}

#[test]
fn a_segment_partly_before_the_log_start_opens_again() {
    let (disk, mut store) = fresh();
    store.create_topic(topic(1, 1, Compression::Lz4));
    append(&mut store, 1, 1, 0, 0..100_000);
    seal(&mut store, 1).unwrap();
    move_start(&mut store, 1, 0, 70_000);
    seal(&mut store, 2).unwrap();
    let (store, _) = open(&disk).unwrap();
    assert_eq!(read_from(70_000, &store, 1, 0), (70_000..100_000).collect::<Vec<_>>());
    let view = store.partitions().get(TopicId::new(1), PartitionId::new(0)).unwrap().view();
    assert_eq!(view.scan(ScanRequest::all()).counts().batches_skipped, 1);
    assert_eq!(files(&disk, "segments").len(), 1);
}

#[test]
fn a_log_start_moves_while_rows_are_sealed() {
    for to in [3, 6, 8] {
        let (disk, mut store) = fresh();
        store.create_topic(topic(1, 1, Compression::None));
        append(&mut store, 1, 1, 0, 0..6);
        let job = store.seal(Bytes::from("1"), Bytes::new());
        append(&mut store, 2, 1, 0, 6..9);
        move_start(&mut store, 1, 0, to);
        let sealed = job.run().unwrap();
        store.install(sealed);
        assert_eq!(read_from(to, &store, 1, 0), (to..9).collect::<Vec<_>>());
        assert_eq!(store.frozen_bytes(), ByteSize::ZERO);
        assert_eq!(read(&open(&disk).unwrap().0, 1, 0), (0..6).collect::<Vec<_>>(), "the log repeats what came later");
        seal(&mut store, 2).unwrap();
        let (again, _) = open(&disk).unwrap();
        assert_eq!(read_from(to, &again, 1, 0), (to..9).collect::<Vec<_>>());
        assert_eq!(files(&disk, "segments").len(), again.partitions().segments().len());
        assert_eq!(files(&disk, "unknown"), [""; 0]);
    }
}

#[test]
fn another_shards_directory_is_refused_with_words() {
    let (disk, mut store) = fresh();
    store.create_topic(topic(1, 1, Compression::None));
    append(&mut store, 1, 1, 0, 0..4);
    seal(&mut store, 1).unwrap();
    let other = ShardStore::open(Arc::new(disk.clone()), Path::new(DIR), ShardId::new(2));
    assert!(matches!(other, Err(StorageError::Corrupt { file, .. }) if file == "manifest"));
}

/// What a scan of everything gives: rows, or the offsets that are damaged.
fn outcomes(store: &ShardStore, partition: u32) -> Vec<Result<Vec<u64>, (u64, u64)>> {
    let view = store.partitions().get(TopicId::new(1), PartitionId::new(partition)).unwrap().view();
    let outcome = |stored: Result<StoredBatch, StorageError>| match stored {
        Ok(stored) => Ok(numbers(&stored.batch)),
        Err(StorageError::DamagedRows { offsets, .. }) => Err((offsets.start.value(), offsets.end.value())),
        Err(error) => panic!("{error}"),
    };
    view.scan(ScanRequest::all()).map(outcome).collect()
}

#[test]
fn a_segment_that_cannot_be_opened_costs_its_own_rows_only() {
    for is_removed in [false, true] {
        let (disk, mut store) = fresh();
        store.create_topic(topic(1, 2, Compression::None));
        for part in 0..3 {
            append(&mut store, part + 1, 1, 0, part * 10..part * 10 + 10);
            append(&mut store, part + 1, 1, 1, part * 10..part * 10 + 10);
            seal(&mut store, part + 1).unwrap();
        }
        let file = Path::new(DIR).join("segments").join("t1-p0-00000000000000000010.arrow");
        if is_removed {
            disk.remove(&file).unwrap();
        } else {
            disk.flip_bit(&file, disk.open(&file).unwrap().len().unwrap() - 100, 3).unwrap();
        }
        let (mut store, _) = open(&disk).unwrap();
        let good = |part: u64| Ok((part * 10..part * 10 + 10).collect::<Vec<_>>());
        assert_eq!(outcomes(&store, 0), [good(0), Err((10, 20)), good(2)]);
        assert_eq!(outcomes(&store, 1), [good(0), good(1), good(2)]);
        // Writes, cuts and seals go on, and a later start finds the same.
        assert_eq!(append(&mut store, 4, 1, 0, 30..40), 30);
        seal(&mut store, 4).unwrap();
        let view = store.partitions().get(TopicId::new(1), PartitionId::new(0)).unwrap().view();
        let ends: Vec<u64> = (1..=4).map(|cut| view.offset_end_at(entry(cut)).unwrap().value()).collect();
        assert_eq!(ends, [10, 20, 30, 40], "its entries stand in the manifest");
        let (store, _) = open(&disk).unwrap();
        assert_eq!(outcomes(&store, 0), [good(0), Err((10, 20)), good(2), good(3)]);
        assert_eq!(files(&disk, "unknown"), [""; 0]);
    }
}

#[test]
fn a_segment_is_opened_when_it_is_read_and_stays_readable_after_its_file_went() {
    let (disk, mut store) = fresh();
    store.create_topic(topic(1, 1, Compression::None));
    for part in 0..3 {
        append(&mut store, part + 1, 1, 0, part * 10..part * 10 + 10);
        seal(&mut store, part + 1).unwrap();
    }
    let (mut store, _) = open(&disk).unwrap();
    let old = store.partitions().get(TopicId::new(1), PartitionId::new(0)).unwrap().view();
    let open = |view: &PartitionView| view.segments().iter().filter(|segment| segment.is_open()).count();
    assert_eq!((open(&old), old.rows().unwrap().value(), old.offset_end_at(entry(2)).unwrap().value()), (0, 30, 20));
    let offsets = Offset::new(10)..Offset::new(15);
    assert_eq!(old.scan(ScanRequest { offsets, ..ScanRequest::all() }).count(), 1);
    assert_eq!(open(&old), 1);
    // Who has the old view reads on, also what was never open before.
    move_start(&mut store, 1, 0, 30);
    seal(&mut store, 4).unwrap();
    assert_eq!(files(&disk, "segments"), [""; 0]);
    assert_eq!(dense(0, old.scan(ScanRequest::all()).map(Result::unwrap)), (0..30).collect::<Vec<_>>());
}

#[test]
fn blocks_that_were_planned_of_a_file_that_is_gone_fail_each() {
    let (disk, mut store) = fresh();
    store.create_topic(topic(1, 1, Compression::None));
    append(&mut store, 1, 1, 0, 0..150_000);
    seal(&mut store, 1).unwrap();
    let view = store.partitions().get(TopicId::new(1), PartitionId::new(0)).unwrap().view();
    let segment = &view.segments()[0];
    let scan = view.scan(ScanRequest::all());
    assert_eq!(scan.counts().batches_read, 3);
    segment.evict();
    disk.remove(&Path::new(DIR).join("segments").join(segment.file())).unwrap();
    let all = Offset::ZERO..Offset::new(150_000);
    for read in scan {
        assert!(matches!(read, Err(StorageError::DamagedRows { offsets, .. }) if offsets == all));
    }
    let wanted = Wanted::new(&view.schema, None).unwrap();
    let read = segment.opened().unwrap().read_anew(2, &wanted);
    assert!(matches!(read, Err(StorageError::DamagedRows { offsets, .. }) if offsets == all));
}

/// A reader finds it not open and goes to the disk; meanwhile it is opened, kept, and its file is unlinked.
#[test]
fn a_file_that_is_unlinked_while_it_is_kept_open_is_no_damage() {
    let (disk, mut store) = fresh();
    store.create_topic(topic(1, 1, Compression::None));
    append(&mut store, 1, 1, 0, 0..10);
    seal(&mut store, 1).unwrap();
    let view = store.partitions().get(TopicId::new(1), PartitionId::new(0)).unwrap().view();
    let segment = &view.segments()[0];
    segment.evict();
    segment.pin().unwrap();
    disk.remove(&Path::new(DIR).join("segments").join(segment.file())).unwrap();
    let open = segment.opened_after(StorageError::Missing { file: segment.file().to_owned() }).unwrap();
    let wanted = Wanted::new(&view.schema, None).unwrap();
    assert_eq!(numbers(&open.read(0, &wanted).unwrap().batch), (0..10).collect::<Vec<_>>());
    assert_eq!(segment.damage(), None);
}

#[test]
fn unknown_files_are_moved_aside_and_temporary_ones_removed() {
    let (disk, store) = fresh();
    drop(store);
    let dir = Path::new(DIR);
    for round in 0..2 {
        for name in ["segments/notes.txt", "segments/t9-p0-0.arrow", "segments/x.tmp", "manifest.tmp"] {
            disk.create(&dir.join(name)).unwrap().write_at(b"x", 0).unwrap();
        }
        open(&disk).unwrap();
        assert_eq!(files(&disk, "segments"), [""; 0]);
        assert_eq!(files(&disk, "unknown").len(), 2 * (round + 1));
        assert!(!disk.exists(&dir.join("manifest.tmp")).unwrap());
    }
}

#[test]
fn segments_that_no_manifest_got_to_list_are_removed() {
    let (disk, mut store) = fresh();
    store.create_topic(topic(1, 1, Compression::None));
    append(&mut store, 1, 1, 0, 0..4);
    seal(&mut store, 1).unwrap();
    let segments = Path::new(DIR).join("segments");
    let file = |topic: u32, offset: u64| format!("t{topic}-p0-{offset:020}.arrow");
    // Of a later seal, of a topic made later, and one that stands where rows already have their segment.
    for name in [file(1, 4), file(7, 0), file(1, 2)] {
        disk.create(&segments.join(name)).unwrap().write_at(b"x", 0).unwrap();
    }
    let (again, _) = open(&disk).unwrap();
    assert_eq!(read(&again, 1, 0), [0, 1, 2, 3]);
    assert_eq!(files(&disk, "segments"), [file(1, 0)]);
    assert_eq!(files(&disk, "unknown"), [file(1, 2)]);
}

#[test]
fn the_machines_disk_does_as_the_simulated_one() {
    let dir = tempfile::tempdir().unwrap();
    let shard = dir.path().join("shard-1");
    let open = || ShardStore::open(Arc::new(RealDisk), &shard, ShardId::new(1)).unwrap();
    let (mut store, _) = open();
    store.create_topic(topic(1, 1, Compression::None));
    append(&mut store, 1, 1, 0, 0..1_000);
    seal(&mut store, 1).unwrap();
    let held = store.partitions().get(TopicId::new(1), PartitionId::new(0)).unwrap().view();
    RealDisk.create_dir_all(&shard.join("segments/somebody")).unwrap();
    let (mut store, state) = open();
    assert_eq!(state.unwrap().applied, "1");
    assert_eq!(read(&store, 1, 0).len(), 1_000);
    assert!(RealDisk.exists(&shard.join("unknown/somebody")).unwrap());
    store.drop_topic(TopicId::new(1));
    seal(&mut store, 2).unwrap();
    assert_eq!(RealDisk.list(&shard.join("segments")).unwrap(), []);
    assert_eq!(dense(0, held.scan(ScanRequest::all()).map(Result::unwrap)).len(), 1_000);
}

/// Ends the readers of a test whose writer panics.
struct StopOnDrop<'a>(&'a AtomicBool);

impl Drop for StopOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
fn readers_beside_the_writer_see_dense_prefixes() {
    let (_disk, mut store) = fresh();
    store.create_topic(topic(1, 1, Compression::None));
    let partition = store.partitions().get(TopicId::new(1), PartitionId::new(0)).unwrap();
    let is_stopped = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let _stop = StopOnDrop(&is_stopped);
        for _ in 0..2 {
            scope.spawn(|| {
                let mut seen = 0;
                while seen < 3_000 && !is_stopped.load(Ordering::Relaxed) {
                    let view = partition.view();
                    let end = view.offset_end().value();
                    assert!(end >= seen);
                    seen = end;
                    let start = Offset::new(end.saturating_sub(50));
                    let request = ScanRequest { offsets: start..Offset::new(u64::MAX), ..ScanRequest::all() };
                    let read = dense(start.value(), view.scan(request).map(Result::unwrap));
                    assert_eq!(read, (start.value()..end).collect::<Vec<_>>());
                }
            });
        }
        for index in 1..=3_000 {
            append(&mut store, index, 1, 0, index - 1..index);
            store.publish(entry(index));
            if index % 700 == 0 {
                seal(&mut store, index).unwrap();
            }
        }
    });
}

/// A store with one seal behind it, a dropped topic, and rows to seal.
fn before_second_seal() -> (FaultDisk, ShardStore) {
    let (disk, mut store) = fresh();
    store.create_topic(topic(1, 2, Compression::None));
    store.create_topic(topic(2, 1, Compression::Zstd));
    append(&mut store, 1, 1, 0, 0..40);
    append(&mut store, 2, 2, 0, 0..40);
    seal(&mut store, 2).unwrap();
    store.drop_topic(TopicId::new(2));
    append(&mut store, 3, 1, 0, 40..90);
    append(&mut store, 4, 1, 1, 0..30);
    store.create_topic(topic(3, 1, Compression::Lz4));
    append(&mut store, 5, 3, 0, 0..5);
    store.publish(entry(5));
    (disk, store)
}

fn check_old_or_new(store: &ShardStore, state: &ManifestState) {
    assert_eq!(state.applied, state.extra);
    let topics: Vec<u64> = store.partitions().topics().iter().map(|topic| topic.value()).collect();
    match state.applied.as_ref() {
        b"2" => {
            assert_eq!(topics, [1, 2]);
            assert_eq!(read(store, 1, 0), (0..40).collect::<Vec<_>>());
            assert_eq!(read(store, 1, 1), [0u64; 0]);
            assert_eq!(read(store, 2, 0), (0..40).collect::<Vec<_>>());
            assert_eq!(store.partitions().applied(), entry(2));
        }
        b"5" => {
            assert_eq!(topics, [1, 3]);
            assert_eq!(read(store, 1, 0), (0..90).collect::<Vec<_>>());
            assert_eq!(read(store, 1, 1), (0..30).collect::<Vec<_>>());
            assert_eq!(read(store, 3, 0), (0..5).collect::<Vec<_>>());
            assert_eq!(store.partitions().applied(), entry(5));
        }
        other => panic!("state {other:?}"),
    }
}

#[test]
fn a_crash_at_any_write_of_a_seal_leaves_the_old_or_the_new_state() {
    let (disk, mut store) = before_second_seal();
    let start = disk.steps();
    seal(&mut store, 5).unwrap();
    let steps = disk.steps() - start;
    assert!(steps > 12, "{steps} steps");
    let mut found = BTreeSet::new();
    for step in 0..=steps {
        for seed in 0..24 {
            let (disk, mut store) = before_second_seal();
            disk.fail_after(step);
            let is_done = seal(&mut store, 5).is_ok();
            let disk = disk.crash(seed * 1_000 + step);
            let (mut store, state) = open(&disk).unwrap_or_else(|e| panic!("step {step} seed {seed}: {e}"));
            let state = state.unwrap();
            check_old_or_new(&store, &state);
            assert!(!is_done || state.applied == "5", "what is sealed stays sealed");
            found.insert(state.applied.clone());
            replay_and_seal_again(&disk, &mut store, &state);
        }
    }
    assert_eq!(found.len(), 2);
}

#[test]
fn a_crash_at_any_write_of_a_seal_keeps_the_old_log_start_or_the_new() {
    let prepared = || {
        let (disk, mut store) = fresh();
        store.create_topic(topic(1, 2, Compression::None));
        append(&mut store, 1, 1, 0, 0..40);
        append(&mut store, 1, 1, 1, 0..40);
        seal(&mut store, 1).unwrap();
        append(&mut store, 2, 1, 0, 40..60);
        append(&mut store, 2, 1, 1, 40..60);
        move_start(&mut store, 1, 0, 50);
        move_start(&mut store, 1, 1, 30);
        (disk, store)
    };
    let (disk, mut store) = prepared();
    let start = disk.steps();
    seal(&mut store, 2).unwrap();
    let mut found = BTreeSet::new();
    for step in 0..=disk.steps() - start {
        for seed in 0..24 {
            let (disk, mut store) = prepared();
            disk.fail_after(step);
            let is_done = seal(&mut store, 2).is_ok();
            let disk = disk.crash(seed * 1_000 + step);
            let (mut store, state) = open(&disk).unwrap_or_else(|e| panic!("step {step} seed {seed}: {e}"));
            let is_new = state.unwrap().applied == "2";
            assert!(is_new || !is_done, "what is sealed stays sealed");
            found.insert(is_new);
            if !is_new {
                assert_eq!(read(&store, 1, 0), (0..40).collect::<Vec<_>>());
                assert_eq!(read(&store, 1, 1), (0..40).collect::<Vec<_>>());
                append(&mut store, 2, 1, 0, 40..60);
                append(&mut store, 2, 1, 1, 40..60);
                move_start(&mut store, 1, 0, 50);
                move_start(&mut store, 1, 1, 30);
                seal(&mut store, 2).unwrap();
            }
            let disk = disk.crash(seed);
            let (store, _) = open(&disk).unwrap();
            assert_eq!(read_from(50, &store, 1, 0), (50..60).collect::<Vec<_>>());
            assert_eq!(read_from(30, &store, 1, 1), (30..60).collect::<Vec<_>>());
            assert_eq!((files(&disk, "segments").len(), files(&disk, "unknown").len()), (3, 0));
        }
    }
    assert_eq!(found.len(), 2);
}

/// After the crash the log is replayed and the seal is done again, and crashes may come while opening, too.
fn replay_and_seal_again(disk: &FaultDisk, store: &mut ShardStore, state: &ManifestState) {
    if state.applied == "2" {
        store.drop_topic(TopicId::new(2));
        append(store, 3, 1, 0, 40..90);
        append(store, 4, 1, 1, 0..30);
        store.create_topic(topic(3, 1, Compression::Lz4));
        append(store, 5, 3, 0, 0..5);
        store.publish(entry(5));
    }
    seal(store, 5).unwrap();
    let disk = disk.crash(7);
    let (store, state) = open(&disk).unwrap();
    check_old_or_new(&store, &state.unwrap());
    assert_eq!(store.partitions().segments().len(), files(&disk, "segments").len());
}

#[test]
fn a_crash_while_opening_is_survived_by_the_next_open() {
    for step in 0..20 {
        let (disk, mut store) = before_second_seal();
        let job = store.seal(Bytes::from("5"), Bytes::from("5"));
        disk.fail_after(8);
        assert!(job.run().is_err());
        let disk = disk.crash(1);
        disk.fail_after(step);
        let _ = open(&disk);
        let disk = disk.crash(step);
        let (store, state) = open(&disk).unwrap();
        check_old_or_new(&store, &state.unwrap());
    }
}

#[test]
fn a_failed_sync_of_a_seal_is_told_apart_from_other_failures() {
    for syncs in 0..4 {
        let (disk, mut store) = before_second_seal();
        disk.fail_sync_after(syncs);
        assert!(matches!(seal(&mut store, 5), Err(StorageError::SyncFailed)), "after {syncs} syncs");
        let (store, state) = open(&disk.crash(1)).unwrap();
        check_old_or_new(&store, &state.unwrap());
    }
}

#[test]
fn a_damaged_block_is_an_error_and_never_rows() {
    let (disk, mut store) = before_second_seal();
    seal(&mut store, 5).unwrap();
    let file = Path::new(DIR).join("segments").join("t1-p0-00000000000000000000.arrow");
    disk.flip_bit(&file, 700, 2).unwrap();
    let (store, _) = open(&disk).unwrap();
    let view = store.partitions().get(TopicId::new(1), PartitionId::new(0)).unwrap().view();
    let mut scan = view.scan(ScanRequest::all());
    let Some(Err(StorageError::DamagedRows { topic, offsets, reason, .. })) = scan.next() else { panic!("not found") };
    assert_eq!((topic.value(), offsets.start.value(), offsets.end.value()), (1, 0, 40));
    assert!(reason.contains("t1-p0-00000000000000000000.arrow"), "{reason}");
    assert_eq!(numbers(&scan.next().unwrap().unwrap().batch), (40..90).collect::<Vec<_>>());
    assert!(scan.next().is_none());
}

#[test]
fn what_counts_towards_a_seal_does_not_depend_on_how_entries_were_published() {
    let counted = |publishes_each: fn(u64) -> bool| {
        let (_disk, mut store) = fresh();
        store.create_topic(topic(1, 1, Compression::None));
        let mut next = 0;
        for index in 1..=20 {
            append(&mut store, index, 1, 0, next..next + index % 4 + 1);
            next += index % 4 + 1;
            if publishes_each(index) {
                store.publish(entry(index));
            }
        }
        store.publish(entry(20));
        let mut all = vec![store.unsealed_bytes()];
        let mut fields = topic(1, 1, Compression::None).schema.fields().to_vec();
        fields.insert(3, Arc::new(arrow::datatypes::Field::new("more", arrow::datatypes::DataType::Int64, true)));
        let schema = Arc::new(arrow::datatypes::Schema::new(fields));
        store.alter_topic(TopicStorage { schema, ..topic(1, 1, Compression::None) }).unwrap();
        all.push(store.unsealed_bytes());
        for to in [3, 17, 31] {
            move_start(&mut store, 1, 0, to);
            all.push(store.unsealed_bytes());
        }
        assert!(all.is_sorted_by(|a, b| a != b), "{all:?}");
        store.drop_topic(TopicId::new(1));
        assert_eq!(store.unsealed_bytes(), ByteSize::ZERO);
        all
    };
    let together = counted(|_| false);
    assert_eq!(counted(|_| true), together);
    assert_eq!(counted(|index| index % 3 == 0), together);
}
