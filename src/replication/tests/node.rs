//! One node with all its shards.

use crate::replication::*;
use crate::storage::wal::WalOptions;
use crate::storage::{Disk as _, FaultDisk, ScanRequest, StorageError, TopicStorage};
use arrow::array::{AsArray, Int64Array, RecordBatch, TimestampMicrosecondArray};
use arrow::datatypes::{DataType, Field, Int64Type, Schema, SchemaRef, TimeUnit};
use bytes::Bytes;
use millstream_catalog::model::*;
use millstream_catalog::{Command, Compression, Relation, RelationKind, Reply, TopicOptions};
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::{Arc, LazyLock};
use std::time::Duration;

static SCHEMA: LazyLock<SchemaRef> = LazyLock::new(|| {
    let rowtime = DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into()));
    Arc::new(Schema::new(vec![Field::new("v", DataType::Int64, true), Field::new("rowtime", rowtime, false)]))
});
pub(super) const TOPIC: TopicId = TopicId::new(7);
const QUERY: QueryId = QueryId::new(3);

pub(super) fn batch(values: impl IntoIterator<Item = i64>) -> RecordBatch {
    let values = Int64Array::from_iter_values(values);
    let times = TimestampMicrosecondArray::from(vec![1; values.len()]).with_timezone("UTC");
    RecordBatch::try_new(Arc::clone(&SCHEMA), vec![Arc::new(values), Arc::new(times)]).expect("fits")
}
pub(super) fn topic(id: TopicId, partitions: u32) -> TopicStorage {
    TopicStorage { topic: id, partitions, schema: Arc::clone(&SCHEMA), compression: Compression::None }
}
pub(super) fn part(partition: u32, values: impl IntoIterator<Item = i64>) -> PartitionWrite {
    PartitionWrite { topic: TOPIC, partition: PartitionId::new(partition), batch: batch(values), guard: None }
}
pub(super) async fn start_sealing(disk: &FaultDisk, seal_bytes: u64) -> Replication {
    let config = ReplicationConfig {
        data_dir: PathBuf::from("/data"),
        node: NodeId::new(1),
        shards: 1,
        seal_bytes: ByteSize::new(seal_bytes),
        writes_bytes: ByteSize::new(64 << 20),
    };
    // Small files, so that the log moves from one to the next.
    let wal_options = WalOptions { file_bytes: ByteSize::new(1 << 20), ..WalOptions::default() };
    Replication::start_on(config, Arc::new(disk.clone()), wal_options).await.expect("starts")
}
pub(super) async fn start(disk: &FaultDisk) -> Replication {
    start_sealing(disk, 64 << 20).await
}
pub(super) fn shard(node: &Replication) -> &Shard {
    node.shard(ShardId::new(1)).expect("shard 1")
}
pub(super) fn values(node: &Replication, partition: u32) -> Vec<i64> {
    let partition = shard(node).partitions().get(TOPIC, PartitionId::new(partition)).expect("partition");
    let mut values = Vec::new();
    for batch in partition.view().scan(ScanRequest::all()) {
        let batch = batch.expect("reads");
        assert_eq!(batch.offset_start, Offset::new(values.len() as u64));
        values.extend(batch.batch.column(0).as_primitive::<Int64Type>().values());
    }
    values
}
/// Waits for a condition of the shard's status.
pub(super) async fn until(node: &Replication, condition: impl Fn(&ShardStatus) -> bool) {
    let deadline = crate::env::instant() + Duration::from_secs(20);
    while !condition(&shard(node).status()) {
        assert!(crate::env::instant() < deadline, "never happened: {:?}", shard(node).status());
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn an_acknowledged_append_is_visible_and_survives_a_restart() {
    let disk = FaultDisk::new();
    let node = start(&disk).await;
    shard(&node).create_topic(topic(TOPIC, 2)).await.expect("created");
    let first = shard(&node).append(vec![part(0, [1, 2]), part(1, [3]), part(0, [4])]).await.expect("appended");
    assert_eq!(first.offsets, [Offset::new(0), Offset::new(0), Offset::new(2)]);
    assert_eq!(shard(&node).partitions().applied(), first.index);
    let second = shard(&node).append(vec![part(1, []), part(0, [5])]).await.expect("appended");
    assert_eq!(second.offsets, [Offset::new(1), Offset::new(3)]);
    assert_eq!(values(&node, 0), [1, 2, 4, 5]);
    node.shutdown().await;
    let refused = shard(&node).append(vec![part(0, [6])]).await.expect_err("shut down");
    assert_eq!(refused.sqlstate(), SqlState::AdminShutdown);
    drop(node);
    let node = start(&disk).await;
    assert_eq!((values(&node, 0), values(&node, 1)), (vec![1, 2, 4, 5], vec![3]));
    let third = shard(&node).append(vec![part(0, [7])]).await.expect("appended");
    assert_eq!(third.offsets, [Offset::new(4)]);
    node.shutdown().await;
}

#[tokio::test]
async fn a_crash_loses_nothing_acknowledged() {
    let mut disk = FaultDisk::new();
    let mut expected = Vec::new();
    for round in 0..6 {
        let node = start_sealing(&disk, 256).await;
        if round == 0 {
            shard(&node).create_topic(topic(TOPIC, 1)).await.expect("created");
        }
        assert_eq!(values(&node, 0), expected, "round {round}");
        for number in 0..9 {
            let value = round * 100 + number;
            shard(&node).append(vec![part(0, [value])]).await.expect("appended");
            expected.push(value);
        }
        let after = disk.crash(round as u64);
        node.shutdown().await;
        disk = after;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn concurrent_statements_get_dense_unique_offsets() {
    let disk = FaultDisk::new();
    let node = Arc::new(start_sealing(&disk, 40_000).await);
    shard(&node).create_topic(topic(TOPIC, 2)).await.expect("created");
    let syncs = node.wal_stats().syncs;
    let tasks: Vec<_> = (0..64)
        .map(|task| {
            let node = Arc::clone(&node);
            crate::env::spawn("client", async move {
                let mut offsets = Vec::new();
                for number in 0..200 {
                    let value = task * 1_000 + number;
                    let parts = vec![part(0, [value, -value]), part(1, [value])];
                    let appended = shard(&node).append(parts).await.expect("appended");
                    offsets.push((value, appended.offsets[0]));
                }
                offsets
            })
        })
        .collect();
    let mut seen = BTreeSet::new();
    let mut by_offset = BTreeMap::new();
    for task in tasks {
        for (value, offset) in task.await.expect("ran") {
            assert!(seen.insert(offset), "offset {offset} twice");
            by_offset.insert(offset, value);
        }
    }
    let stored = values(&node, 0);
    assert_eq!(stored.len(), 64 * 200 * 2);
    for (offset, value) in by_offset {
        let at = offset.value() as usize;
        assert_eq!(stored[at..at + 2], [value, -value]);
    }
    let syncs = node.wal_stats().syncs - syncs;
    assert!(syncs < 64 * 200 / 4, "statements did not share syncs: {syncs}");
    until(&node, |status| !status.is_sealing).await;
    let before = (values(&node, 0), values(&node, 1));
    node.shutdown().await;
    drop(node);
    let node = start_sealing(&disk, 40_000).await;
    assert_eq!((values(&node, 0), values(&node, 1)), before);
    node.shutdown().await;
}

#[tokio::test]
async fn sealing_shrinks_the_log_and_keeps_the_rows() {
    let disk = FaultDisk::new();
    let node = start_sealing(&disk, 4_000).await;
    shard(&node).create_topic(topic(TOPIC, 1)).await.expect("created");
    for start in 0..200 {
        shard(&node).append(vec![part(0, start * 10..start * 10 + 10)]).await.expect("appended");
    }
    until(&node, |status| !status.is_sealing && status.purged.is_some() && status.sealed > status.purged).await;
    let status = shard(&node).status();
    assert!(status.sealed > Some(EntryIndex::new(150)), "{status:?}");
    until(&node, |status| status.purged > Some(EntryIndex::new(150))).await;
    assert!(!shard(&node).partitions().segments().is_empty());
    let expected: Vec<i64> = (0..2_000).collect();
    assert_eq!(values(&node, 0), expected);
    let after = disk.crash(1);
    node.shutdown().await;
    let node = start_sealing(&after, 4_000).await;
    assert_eq!(values(&node, 0), expected);
    assert!(shard(&node).status().sealed >= status.sealed);
    node.shutdown().await;
}

fn step(number: u64, position: u64, outputs: Vec<PartitionWrite>) -> Step {
    Step {
        query: QUERY,
        step: StepNumber::new(number),
        positions: vec![(TOPIC, PartitionId::new(0), Offset::new(position))],
        idle: vec![(TOPIC, PartitionId::new(1))],
        now: Timestamp::from_micros(i64::try_from(number).expect("small")),
        outputs,
        input_rows: RowCount::new(2),
        late_rows: RowCount::new(1),
        skipped_rows: RowCount::ZERO,
        durability: Durability::Sync,
    }
}

#[tokio::test]
async fn steps_and_checkpoints_survive_restarts_and_seals() {
    let mut disk = FaultDisk::new();
    let node = start(&disk).await;
    shard(&node).create_topic(topic(TOPIC, 2)).await.expect("created");
    let missing = shard(&node).step(step(1, 1, Vec::new())).await.expect_err("no query");
    assert!(matches!(missing, ReplicationError::NoQuery(QUERY)));
    shard(&node).create_query(QUERY, vec![(TOPIC, PartitionId::new(0), Offset::new(5))]).await.expect("created");
    assert_eq!(shard(&node).progress(QUERY).expect("query").step, StepNumber::new(0));
    // The second is submitted before the first is committed.
    let (one, two) = tokio::join!(
        shard(&node).step(step(1, 6, vec![part(1, [10])])),
        shard(&node).step(step(2, 7, vec![part(1, [20, 21])]))
    );
    assert_eq!(one.expect("first").offsets, [Offset::new(0)]);
    assert_eq!(two.expect("second").offsets, [Offset::new(1)]);
    for stale in [0, 1, 2, 4] {
        let refused = shard(&node).step(step(stale, 9, vec![part(1, [99])])).await.expect_err("stale");
        assert!(matches!(refused, ReplicationError::StaleStep { last, .. } if last == StepNumber::new(2)));
        assert_eq!(refused.sqlstate(), SqlState::SerializationFailure);
    }
    let checkpoint = Checkpoint {
        query: QUERY,
        step: StepNumber::new(1),
        positions: BTreeMap::from([((TOPIC, PartitionId::new(0)), Offset::new(6))]),
        fingerprint: "pipeline".to_owned(),
        state: Bytes::from_static(b"state"),
        files: Vec::new(),
    };
    shard(&node).checkpoint(checkpoint.clone()).await.expect("newer");
    shard(&node).checkpoint(checkpoint.clone()).await.expect_err("not newer");
    let progress = shard(&node).progress(QUERY).expect("query");
    assert_eq!(progress.checkpoint, Some(checkpoint));
    assert_eq!(progress.since_checkpoint.len(), 1);
    assert_eq!((progress.input_rows, progress.output_rows), (RowCount::new(4), RowCount::new(3)));
    assert_eq!(progress.late_rows, RowCount::new(2));
    // Replayed from the log, then from the manifest.
    for seal_bytes in [64 << 20, 1, 1] {
        disk = disk.crash(seal_bytes);
        let node = start_sealing(&disk, seal_bytes).await;
        assert_eq!(shard(&node).progress(QUERY), Some(Arc::clone(&progress)));
        assert_eq!(values(&node, 1), [10, 20, 21]);
        until(&node, |status| !status.is_sealing).await;
        node.shutdown().await;
    }
    let node = start(&disk).await;
    shard(&node).step(step(3, 8, Vec::new())).await.expect("next step");
    shard(&node).drop_query(QUERY).await.expect("dropped");
    shard(&node).drop_query(QUERY).await.expect("dropped twice");
    assert_eq!(shard(&node).progress(QUERY), None);
    node.shutdown().await;
}

#[tokio::test]
async fn log_starts_move_with_the_log_and_stop_at_what_a_query_reads_again() {
    let mut disk = FaultDisk::new();
    let node = start_sealing(&disk, 2_000).await;
    shard(&node).create_topic(topic(TOPIC, 2)).await.expect("creates");
    shard(&node).create_query(QUERY, vec![(TOPIC, PartitionId::new(0), Offset::ZERO)]).await.expect("creates");
    for number in 0..200 {
        shard(&node).append(vec![part(0, [number]), part(1, [number])]).await.expect("appends");
    }
    shard(&node).checkpoint(checkpoint_at(0, 50)).await.expect("checkpoint");
    shard(&node).step(step(1, 100, vec![])).await.expect("step");
    let starts = |node: &Replication| -> Vec<(u64, u64)> {
        let partition = |id| shard(node).partitions().get(TOPIC, PartitionId::new(id)).expect("partition").view();
        [0, 1].map(|id| (partition(id).offset_start().value(), partition(id).rows().expect("opens").value())).into()
    };
    let to = [0, 1].map(|id| (TOPIC, PartitionId::new(id), Offset::new(120))).to_vec();
    shard(&node).move_starts(to.clone()).await.expect("moves");
    assert_eq!(starts(&node), [(50, 150), (120, 80)]);
    let refused = shard(&node).truncate(vec![TOPIC]).await.expect_err("a query reads events again");
    assert!(matches!(refused, ReplicationError::EventsNeeded { query: QUERY, topic: TOPIC }), "{refused}");
    shard(&node).checkpoint(checkpoint_at(1, 100)).await.expect("checkpoint");
    shard(&node).move_starts(to).await.expect("moves");
    assert_eq!(starts(&node), [(100, 100), (120, 80)], "a step may have been read and not be committed yet");
    shard(&node).truncate(vec![TOPIC, TopicId::new(99)]).await.expect("truncates");
    assert_eq!(starts(&node), [(200, 0), (200, 0)]);
    let appended = shard(&node).append(vec![part(0, [7])]).await.expect("appends");
    assert_eq!(appended.offsets, [Offset::new(200)]);
    for crash in 0..4 {
        disk = disk.crash(crash);
        let node = start_sealing(&disk, 2_000).await;
        assert_eq!(starts(&node), [(200, 1), (200, 0)]);
        shard(&node).create_query(QueryId::new(100 + crash), vec![]).await.expect("creates");
        node.shutdown().await;
    }
}

fn checkpoint_at(number: u64, position: u64) -> Checkpoint {
    Checkpoint {
        query: QUERY,
        step: StepNumber::new(number),
        positions: [(0, position), (1, 200)].map(|(id, at)| ((TOPIC, PartitionId::new(id)), Offset::new(at))).into(),
        fingerprint: "f".to_owned(),
        state: Bytes::new(),
        files: Vec::new(),
    }
}

#[tokio::test]
async fn a_dropped_topic_refuses_only_its_own_statements() {
    let disk = FaultDisk::new();
    let node = start(&disk).await;
    let other = TopicId::new(8);
    shard(&node).create_topic(topic(TOPIC, 1)).await.expect("created");
    shard(&node).create_topic(topic(other, 1)).await.expect("created");
    let to = |topic: TopicId, value: i64| PartitionWrite { topic, ..part(0, [value]) };
    // Queued behind the drop, so that the state machine decides.
    let (_, both, alone) = tokio::join!(
        shard(&node).drop_topic(other),
        shard(&node).append(vec![to(TOPIC, 1), to(other, 2)]),
        shard(&node).append(vec![to(TOPIC, 3)])
    );
    assert!(matches!(both, Err(ReplicationError::NoTopic(topic)) if topic == other), "{both:?}");
    assert_eq!(alone.expect("appended").offsets, [Offset::ZERO]);
    assert_eq!(values(&node, 0), [3]);
    let refused = shard(&node).append(vec![to(other, 4)]).await.expect_err("dropped");
    assert_eq!(refused.sqlstate(), SqlState::UndefinedTable);
    let refused = shard(&node).append(vec![PartitionWrite { partition: PartitionId::new(1), ..part(0, [4]) }]).await;
    assert!(matches!(refused, Err(ReplicationError::NoPartition(..))));
    shard(&node).drop_topic(other).await.expect("dropped twice");
    node.shutdown().await;
}

#[tokio::test]
async fn of_writes_computed_from_one_row_the_first_wins_and_replay_decides_alike() {
    let disk = FaultDisk::new();
    let node = start(&disk).await;
    shard(&node).create_topic(topic(TOPIC, 1)).await.expect("created");
    shard(&node).append(vec![part(0, [1, 2])]).await.expect("appended");
    let guarded = |position: u64, values: &[i64]| {
        let guard = Some(Guard { position: Offset::new(position), key: Arc::new([0]) });
        PartitionWrite { guard, ..part(0, values.iter().copied()) }
    };
    // One entry or two: the outcome is the same. The second write's parts do not meet each other.
    let (first, second, third) = tokio::join!(
        shard(&node).append(vec![guarded(2, &[1])]),
        shard(&node).append(vec![guarded(2, &[2]), guarded(2, &[2])]),
        shard(&node).append(vec![part(0, [3]), guarded(2, &[1, 9])])
    );
    first.expect("the row was as it was read");
    second.expect("another row");
    let third = third.expect_err("the first write changed the row");
    assert!(matches!(third, ReplicationError::Changed(TOPIC)), "{third:?}");
    assert_eq!(third.sqlstate(), SqlState::SerializationFailure);
    assert_eq!(values(&node, 0), [1, 2, 1, 2, 2]);
    shard(&node).append(vec![guarded(3, &[1])]).await.expect("read anew");
    assert!(shard(&node).append(vec![guarded(3, &[2])]).await.is_err());
    node.shutdown().await;
    drop(node);
    let node = start_sealing(&disk, 1).await;
    assert_eq!(values(&node, 0), [1, 2, 1, 2, 2, 1]);
    assert!(shard(&node).append(vec![guarded(5, &[1])]).await.is_err());
    shard(&node).append(vec![guarded(6, &[1])]).await.expect("nothing came since");
    node.shutdown().await;
}

#[tokio::test]
async fn rows_of_another_schema_are_refused_before_the_log() {
    let disk = FaultDisk::new();
    let node = start(&disk).await;
    shard(&node).create_topic(topic(TOPIC, 1)).await.expect("created");
    let narrow = batch([1]).project(&[0]).expect("one column");
    let write = PartitionWrite { topic: TOPIC, partition: PartitionId::new(0), batch: narrow, guard: None };
    let refused = shard(&node).append(vec![write]).await.expect_err("one column missing");
    assert_eq!(refused.sqlstate(), SqlState::InternalError);
    assert_eq!(values(&node, 0), Vec::<i64>::new());
    node.shutdown().await;
}

#[tokio::test]
async fn a_failed_sync_stops_the_node_with_words() {
    let disk = FaultDisk::new();
    let node = start(&disk).await;
    shard(&node).create_topic(topic(TOPIC, 1)).await.expect("created");
    disk.fail_sync_after(0);
    let failed = shard(&node).append(vec![part(0, [1])]).await.expect_err("sync failed");
    assert_eq!(failed.sqlstate(), SqlState::IoError, "{failed}");
    assert!(!failed.is_retryable());
    assert!(!node.failed().await.is_empty());
    let refused = shard(&node).append(vec![part(0, [2])]).await.expect_err("stopped");
    assert!(matches!(refused, ReplicationError::Stopped { .. }));
    assert_eq!(values(&node, 0), Vec::<i64>::new());
    node.shutdown().await;
}

#[tokio::test]
async fn a_full_disk_refuses_writes_until_there_is_space_again() {
    let disk = FaultDisk::new();
    let node = start(&disk).await;
    shard(&node).create_topic(topic(TOPIC, 1)).await.expect("created");
    disk.set_capacity(Some(disk.bytes_used() + 1_000));
    let mut stored = Vec::new();
    let mut refused = 0;
    for round in 0..200 {
        let appends = (0..16).map(|number| {
            let value = round * 16 + number;
            let append = shard(&node).append(vec![part(0, vec![value; 1_000])]);
            async move { (value, append.await) }
        });
        for (value, outcome) in futures::future::join_all(appends).await {
            match outcome {
                Ok(_) => stored.push(value),
                Err(error) => {
                    assert_eq!(error.sqlstate(), SqlState::DiskFull, "{error}");
                    assert!(error.is_retryable());
                    refused += 1;
                }
            }
        }
        if refused > 100 {
            break;
        }
    }
    assert!(refused > 100);
    assert_eq!(values(&node, 0).len(), stored.len() * 1_000);
    disk.set_capacity(None);
    let deadline = crate::env::instant() + Duration::from_secs(20);
    loop {
        match shard(&node).append(vec![part(0, [-1])]).await {
            Ok(_) => break,
            Err(error) => assert_eq!(error.sqlstate(), SqlState::DiskFull),
        }
        assert!(crate::env::instant() < deadline, "there is space again");
        tokio::task::yield_now().await;
    }
    stored.push(-1);
    let mut seen = values(&node, 0);
    seen.dedup();
    assert_eq!(seen, stored);
    let after = disk.crash(3);
    node.shutdown().await;
    let node = start(&after).await;
    let mut seen = values(&node, 0);
    seen.dedup();
    assert_eq!(seen, stored);
    node.shutdown().await;
}

#[tokio::test]
async fn on_a_full_disk_what_gives_space_back_goes_on() {
    let disk = FaultDisk::new();
    let node = start(&disk).await;
    let partition = PartitionId::new(0);
    let storage = TopicStorage { compression: Compression::Lz4, ..topic(TOPIC, 1) };
    shard(&node).create_topic(storage).await.expect("created");
    let mut staging = shard(&node).staging();
    staging.add(vec![part(0, 0..50_000)]).await.expect("staged");
    shard(&node).append(vec![part(0, vec![7; 1_000])]).await.expect("appended");
    shard(&node).seal().await.expect("sealed");
    until(&node, |status| !status.is_sealing && status.sealed == status.applied).await;
    let staged = || disk.list(std::path::Path::new("/data/shards/1/staged")).expect("a directory").len();
    assert_eq!(staged(), 1);
    // Enough for a segment, too little for a file of the log.
    disk.set_capacity(Some(disk.bytes_used() + (900 << 10)));
    // Numbers that no compression makes smaller.
    let noise = |round: i64| (0..1_000).map(move |n| (round * 1_000 + n).wrapping_mul(0x1E37_79B9_7F4A_7C15));
    let (mut refused, mut round) = (0, 0);
    while refused < 50 {
        round += 1;
        if let Err(error) = shard(&node).append(vec![part(0, noise(round))]).await {
            assert_eq!(error.sqlstate(), SqlState::DiskFull, "{error}");
            refused += 1;
        }
    }
    drop(staging);
    let all = vec![(TOPIC, partition, Offset::new(u64::MAX))];
    shard(&node).move_starts(all).await.expect("retention goes on");
    let deadline = crate::env::instant() + Duration::from_secs(20);
    // Nobody gave space from outside, and nobody asks for a seal.
    while shard(&node).append(vec![part(0, [-1])]).await.is_err() || staged() > 0 {
        assert!(crate::env::instant() < deadline, "there is space again");
        tokio::task::yield_now().await;
    }
    node.shutdown().await;
}

#[tokio::test]
async fn a_data_directory_is_used_by_one_node_at_a_time() {
    let disk = FaultDisk::new();
    let node = start(&disk).await;
    let config = ReplicationConfig {
        data_dir: PathBuf::from("/data"),
        node: NodeId::new(1),
        shards: 1,
        seal_bytes: ByteSize::new(1),
        writes_bytes: ByteSize::new(64 << 20),
    };
    let second = Replication::start_on(config, Arc::new(disk.clone()), WalOptions::default()).await;
    assert!(matches!(second.err(), Some(ReplicationError::Storage(StorageError::Locked))));
    node.shutdown().await;
}

fn relation(name: &str) -> Relation {
    Relation {
        id: TopicId::new(0),
        name: Name::new(name).expect("valid"),
        kind: RelationKind::Stream,
        schema: millstream_catalog::Schema { columns: Vec::new() },
        timestamp: None,
        watermark_delay: None,
        options: TopicOptions::default(),
        shard: ShardId::new(1),
        query: None,
        created_at: Timestamp::from_micros(0),
        sql: String::new(),
        fills: Default::default(),
        row_ids: None,
        is_materialized: false,
    }
}
fn create(name: &str) -> Command {
    Command::CreateRelation { relation: Box::new(relation(name)), query: None }
}

#[tokio::test]
async fn the_catalog_survives_crashes_and_its_own_snapshots() {
    let mut disk = FaultDisk::new();
    let mut created = 0;
    for commands in [3, 520, 5] {
        let node = start(&disk).await;
        assert_eq!(node.catalog().snapshot().relations().count(), created);
        let mut versions = node.catalog().subscribe();
        for _ in 0..commands {
            let reply = node.catalog().propose(create(&format!("r{created}"))).await.expect("created");
            created += 1;
            assert_eq!(reply, Reply::Created { topic: TopicId::new(created as u64), query: None });
        }
        let taken = node.catalog().propose(create("r0")).await.expect_err("taken");
        assert_eq!(taken.sqlstate(), SqlState::DuplicateTable);
        assert_eq!(*versions.borrow_and_update(), created as u64);
        assert_eq!(node.catalog().snapshot().version(), created as u64);
        assert!(node.catalog().snapshot().relation("r1").is_some());
        if commands > 512 {
            let deadline = crate::env::instant() + Duration::from_secs(20);
            while node.catalog().status().purged.is_none() {
                assert!(crate::env::instant() < deadline, "the catalog's log was not purged");
                tokio::task::yield_now().await;
            }
        }
        let after = disk.crash(created as u64);
        node.shutdown().await;
        disk = after;
    }
}

#[tokio::test]
async fn a_quiet_shard_is_sealed_on_request_and_only_once() {
    let disk = FaultDisk::new();
    let node = start(&disk).await;
    shard(&node).create_topic(topic(TOPIC, 1)).await.expect("created");
    shard(&node).append(vec![part(0, [1])]).await.expect("appended");
    let core = &node.cores()[1];
    core.seal().await.expect("sealed");
    until(&node, |status| !status.is_sealing && status.sealed == status.applied).await;
    let log_last = shard(&node).status().log_last;
    core.seal().await.expect("nothing to do");
    assert_eq!(shard(&node).status().log_last, log_last);
    until(&node, |status| status.purged.is_some()).await;
    assert_eq!(values(&node, 0), [1]);
    node.shutdown().await;
    drop(node);
    let node = start(&disk).await;
    assert_eq!(values(&node, 0), [1]);
    node.shutdown().await;
}
