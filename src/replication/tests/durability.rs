//! A node whose rows are acknowledged before they are synced, when the power fails at each write step: sealing, purging
//! and staging go on meanwhile.

use super::node::{TOPIC, part, shard, start_sealing, topic, until, values};
use crate::replication::*;
use crate::storage::wal::WalOptions;
use crate::storage::{FaultDisk, ScanRequest};
use arrow::array::AsArray;
use arrow::datatypes::Int64Type;
use futures::FutureExt as _;
use millstream_catalog::model::{ByteSize, Durability, NodeId, Offset, PartitionId, ShardId};
use std::path::PathBuf;

/// Bytes of rows that are sealed: those of a few statements.
const SEAL_BYTES: u64 = 300;
const STATEMENTS: i64 = 24;
/// Statements go to one after the other.
const SHARDS: u32 = 2;

/// What a client knows: the last statement that was sent, and the last one acknowledged as synced.
#[derive(Debug, Clone, Copy)]
struct Told {
    sent: i64,
    synced: i64,
}

async fn open(disk: &FaultDisk) -> Result<Replication, ReplicationError> {
    let (data_dir, node, shards) = (PathBuf::from("/data"), NodeId::new(1), SHARDS);
    let config = ReplicationConfig {
        data_dir,
        node,
        shards,
        seal_bytes: ByteSize::new(SEAL_BYTES),
        writes_bytes: ByteSize::new(64 << 20),
    };
    let wal_options = WalOptions { file_bytes: ByteSize::new(16 << 10), ..WalOptions::default() };
    Replication::start_on(config, std::sync::Arc::new(disk.clone()), wal_options).await
}

fn shard_of(node: &Replication, number: i64) -> &Shard {
    node.shard(ShardId::new(1 + number as u32 % SHARDS)).expect("there")
}

/// The values of both shards, each in its order.
fn both(node: &Replication) -> Vec<i64> {
    let mut both = Vec::new();
    for number in 0..SHARDS {
        let partition = shard_of(node, number.into()).partitions().get(TOPIC, PartitionId::new(0)).expect("partition");
        let from = both.len();
        for batch in partition.view().scan(ScanRequest::all()) {
            both.extend(batch.expect("reads").batch.column(0).as_primitive::<Int64Type>().values());
        }
        assert!(both[from..].is_sorted(), "{both:?}");
    }
    both.sort_unstable();
    both
}

/// Statement `number`: most are two rows that are not synced, some are synced, some large enough to be staged.
async fn write(node: &Replication, number: i64) -> Result<Durability, ReplicationError> {
    let mut append = Append::from(vec![part(0, [2 * number, 2 * number + 1])]);
    append.durability = if number % 11 == 7 { Durability::Sync } else { Durability::Async };
    let durability = append.durability;
    if number % 13 != 4 {
        return shard_of(node, number).append(append).await.map(|_| durability);
    }
    let mut staging = shard_of(node, number).staging();
    staging.add(append.parts).await?;
    let commit = Append { staged: staging.id(), durability: Durability::Async, ..Append::default() };
    shard_of(node, number).append(commit).await?;
    staging.committed();
    // What is staged is synced whatever was asked for.
    Ok(Durability::Sync)
}

async fn write_all(node: &Replication, from: i64) -> Told {
    let mut told = Told { sent: from - 1, synced: from - 1 };
    for number in from..from + STATEMENTS {
        told.sent = number;
        match write(node, number).await {
            Ok(Durability::Sync) => told.synced = number,
            Ok(Durability::Async) => {}
            Err(_) => break,
        }
    }
    told
}

/// The statements that are there: whole ones, from the first on whatever shard they went to, and all that were acknowledged
/// as synced.
fn kept(node: &Replication, told: Told, what: &str) -> i64 {
    let values = both(node);
    let expected: Vec<i64> = (0..values.len() as i64).collect();
    assert_eq!(values, expected, "{what}");
    assert!(values.len().is_multiple_of(2), "{what}: half of a statement");
    let last = values.len() as i64 / 2 - 1;
    assert!((told.synced..=told.sent).contains(&last), "{what}: {last} of {told:?}");
    last
}

#[tokio::test]
async fn a_crash_at_any_step_loses_only_an_end_that_was_not_synced() {
    let founded = FaultDisk::new();
    let node = open(&founded).await.expect("starts");
    for number in 0..SHARDS {
        shard_of(&node, number.into()).create_topic(topic(TOPIC, 1)).await.expect("created");
    }
    node.shutdown().await;
    drop(node);
    let whole = founded.crash(0);
    let before = whole.steps();
    let node = open(&whole).await.expect("starts");
    let told = write_all(&node, 0).await;
    assert_eq!(told.sent, STATEMENTS - 1);
    assert!(shard(&node).status().sealed.is_some());
    node.shutdown().await;
    let (steps, mut lost) = (whole.steps() - before, 0);
    for step in 0..steps {
        let what = format!("step {step} of {steps}");
        let disk = founded.crash(0);
        disk.fail_after(step);
        let mut told = Told { sent: -1, synced: -1 };
        if let Ok(node) = open(&disk).await {
            told = write_all(&node, 0).await;
            node.shutdown().await;
        }
        let disk = disk.crash(step);
        let node = open(&disk).await.unwrap_or_else(|error| panic!("{what}: {error}"));
        let last = kept(&node, told, &what);
        lost += told.sent - last;
        if !step.is_multiple_of(5) {
            node.shutdown().await;
            continue;
        }
        // It goes on in the place of what was lost, and the next crash finds that.
        let told = write_all(&node, last + 1).await;
        assert_eq!(told.sent, last + STATEMENTS, "{what}");
        let disk = disk.crash(step + 1);
        node.shutdown().await;
        let node = open(&disk).await.unwrap_or_else(|error| panic!("{what}, again: {error}"));
        kept(&node, told, &what);
        node.shutdown().await;
    }
    assert!(lost > 0, "every statement was synced");
}

#[tokio::test]
async fn a_last_sync_that_fails_is_told() {
    for is_failing in [false, true] {
        let disk = FaultDisk::new();
        let node = start_sealing(&disk, 64 << 20).await;
        shard(&node).create_topic(topic(TOPIC, 1)).await.expect("created");
        let append = Append { durability: Durability::Async, ..Append::from(vec![part(0, [1])]) };
        if is_failing {
            disk.fail_sync_after(0);
        }
        shard(&node).append(append).await.expect("appended");
        node.shutdown().await;
        assert_eq!(node.failed().now_or_never().is_some(), is_failing);
    }
}

#[tokio::test]
async fn a_statement_that_is_not_synced_is_visible_when_it_is_answered_and_waits_for_no_sync() {
    let disk = FaultDisk::new();
    let node = start_sealing(&disk, 64 << 20).await;
    shard(&node).create_topic(topic(TOPIC, 1)).await.expect("created");
    let syncs = node.wal_stats().syncs;
    let begin = crate::env::instant();
    for number in 0..50 {
        let append = Append { durability: Durability::Async, ..Append::from(vec![part(0, [number])]) };
        let appended = shard(&node).append(append).await.expect("appended");
        assert_eq!(appended.offsets, [Offset::new(number.unsigned_abs())]);
        assert_eq!(values(&node, 0).len() as i64, number + 1);
    }
    // One sync for each fifth of a second, and one that was due before.
    let most = 2 + crate::env::elapsed(begin).as_millis() as u64 / 200;
    assert!(node.wal_stats().syncs - syncs <= most, "{}", node.wal_stats().syncs - syncs);
    // A statement together with others is as durable as the strictest of them.
    let append = Append { durability: Durability::Async, ..Append::from(vec![part(0, [50])]) };
    let (one, other) = tokio::join!(shard(&node).append(append), shard(&node).append(vec![part(0, [51])]));
    one.expect("appended");
    other.expect("appended");
    let crashed = disk.crash(9);
    shard(&node).seal().await.expect("sealed");
    until(&node, |status| !status.is_sealing && status.sealed == status.applied).await;
    node.shutdown().await;
    for disk in [crashed, disk.crash(1)] {
        let node = start_sealing(&disk, 64 << 20).await;
        assert_eq!(values(&node, 0), (0..52).collect::<Vec<_>>());
        node.shutdown().await;
    }
}
