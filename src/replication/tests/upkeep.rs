//! Replacing segments through the log, with crashes before the manifest knows of it.

use super::node::{TOPIC, part, shard, start, topic, until, values};
use crate::replication::Replication;
use crate::storage::{CompactionPlan, FaultDisk, Rewrite};
use millstream_catalog::Compression;
use millstream_catalog::model::{Durability, Offset, PartitionId, QueryId, Timestamp};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

fn segments(node: &Replication) -> usize {
    shard(node).partitions().get(TOPIC, PartitionId::new(0)).expect("partition").view().segments().len()
}

/// Three segments of two rows.
async fn sealed(disk: &FaultDisk) -> Replication {
    let node = start(disk).await;
    shard(&node).create_topic(topic(TOPIC, 1)).await.expect("created");
    for round in 0..3 {
        shard(&node).append(vec![part(0, [round * 2, round * 2 + 1])]).await.expect("appended");
        shard(&node).seal().await.expect("sealed");
        until(&node, |status| !status.is_sealing && segments(&node) == round as usize + 1).await;
    }
    node
}

fn rewrite(offsets: std::ops::Range<u64>, compaction: Option<CompactionPlan>) -> Rewrite {
    Rewrite {
        topic: TOPIC,
        partition: PartitionId::new(0),
        offsets: Offset::new(offsets.start)..Offset::new(offsets.end),
        number: 1,
        compression: Compression::None,
        compaction,
    }
}

async fn run(node: &Replication, rewrite: Rewrite) -> usize {
    let failed = shard(node).rewrite(vec![rewrite], Arc::new(AtomicBool::new(false))).await.expect("proposed");
    failed.len()
}

#[tokio::test]
async fn a_rewrite_is_done_again_after_a_crash_before_its_manifest() {
    for seed in 0..4 {
        let disk = FaultDisk::new();
        let node = sealed(&disk).await;
        assert_eq!(run(&node, rewrite(0..4, None)).await, 0);
        assert_eq!((segments(&node), values(&node, 0)), (2, (0..6).collect::<Vec<_>>()));
        assert!(shard(&node).status().bytes_rewritten.value() > 0);
        assert_eq!(run(&node, rewrite(0..4, None)).await, 1, "it was done");
        let after = disk.crash(seed);
        node.shutdown().await;
        let node = start(&after).await;
        assert_eq!((segments(&node), values(&node, 0)), (2, (0..6).collect::<Vec<_>>()));
        shard(&node).seal().await.expect("sealed");
        until(&node, |status| !status.is_sealing).await;
        let after = after.crash(seed);
        node.shutdown().await;
        let node = start(&after).await;
        assert_eq!((segments(&node), values(&node, 0)), (2, (0..6).collect::<Vec<_>>()));
        node.shutdown().await;
    }
}

#[tokio::test]
async fn a_query_that_would_read_rows_again_keeps_them_from_compaction() {
    use crate::replication::{Checkpoint, Step};
    use millstream_catalog::model::{RowCount, StepNumber};
    let disk = FaultDisk::new();
    let node = sealed(&disk).await;
    let query = QueryId::new(3);
    let position = (TOPIC, PartitionId::new(0), Offset::new(2));
    shard(&node).create_query(query, vec![position]).await.expect("created");
    let checkpoint = Checkpoint {
        query,
        step: StepNumber::default(),
        positions: [((position.0, position.1), position.2)].into(),
        fingerprint: String::new(),
        state: bytes::Bytes::new(),
        files: Vec::new(),
    };
    shard(&node).checkpoint(checkpoint).await.expect("kept");
    let now = Timestamp::from_micros(0);
    let compact = || Some(CompactionPlan { key: vec![0], tombstones_upto: Offset::ZERO, now });
    run(&node, rewrite(0..4, compact())).await;
    assert_eq!(segments(&node), 3, "its first step may have been read and not be committed yet");
    let step = Step {
        query,
        step: StepNumber::new(1),
        positions: vec![(TOPIC, PartitionId::new(0), Offset::new(4))],
        idle: Vec::new(),
        now,
        outputs: Vec::new(),
        input_rows: RowCount::new(2),
        late_rows: RowCount::ZERO,
        skipped_rows: RowCount::ZERO,
        durability: Durability::default(),
    };
    shard(&node).step(step).await.expect("taken");
    assert_eq!(shard(&node).hold(TOPIC, PartitionId::new(0)), Some(Offset::new(2)));
    run(&node, rewrite(0..4, compact())).await;
    assert_eq!(segments(&node), 3, "rows 2 and 3 would be read again");
    run(&node, rewrite(0..2, compact())).await;
    let view = shard(&node).partitions().get(TOPIC, PartitionId::new(0)).expect("partition").view();
    assert_eq!(view.upkeep().compacted_upto, Offset::new(2));
    shard(&node).end_query(query).await.expect("ended");
    assert_eq!(shard(&node).hold(TOPIC, PartitionId::new(0)), None);
    run(&node, Rewrite { number: 2, ..rewrite(0..4, compact()) }).await;
    assert_eq!((segments(&node), values(&node, 0)), (2, (0..6).collect::<Vec<_>>()));
    node.shutdown().await;
}
