//! Transactions of several entries: seen when they commit, gone when they do not, and kept over seals and crashes.

use super::node::{TOPIC, part, shard, start_sealing, topic, values};
use crate::replication::*;
use crate::storage::FaultDisk;
use millstream_catalog::model::*;
use std::path::Path;

async fn begin(disk: &FaultDisk) -> Replication {
    let node = start_sealing(disk, 1 << 20).await;
    shard(&node).create_topic(topic(TOPIC, 2)).await.expect("created");
    node
}

fn commit(staging: &Staging, parts: Vec<PartitionWrite>) -> Append {
    Append { parts, staged: staging.id(), ..Append::default() }
}

fn files(disk: &FaultDisk) -> usize {
    use crate::storage::Disk as _;
    disk.list(Path::new("/data/shards/1/staged")).map_or(0, |files| files.len())
}

#[tokio::test]
async fn staged_rows_are_seen_when_they_commit_and_in_their_order() {
    let disk = FaultDisk::new();
    let node = begin(&disk).await;
    let shard = shard(&node);
    let (mut first, mut second) = (shard.staging(), shard.staging());
    first.add(vec![part(0, [1, 2]), part(1, [3]), part(0, [4])]).await.expect("staged");
    second.add(vec![part(0, [-1])]).await.expect("staged");
    first.add(vec![part(0, 5..9)]).await.expect("staged");
    shard.append(vec![part(0, [0])]).await.expect("appended");
    assert_eq!((values(&node, 0), values(&node, 1)), (vec![0], vec![]));
    // One for each entry.
    assert_eq!(files(&disk), 3);
    let appended = shard.append(commit(&first, vec![part(0, [9]), part(1, [10])])).await.expect("committed");
    first.committed();
    assert_eq!(appended.offsets, [Offset::new(8), Offset::new(1)]);
    assert_eq!((values(&node, 0), values(&node, 1)), ((0..=2).chain(4..=9).collect(), vec![3, 10]));
    // Once more, as a client that did not hear of it would.
    let again = Append { staged: second.id(), ..Append::default() };
    shard.append(again.clone()).await.expect("committed");
    let refused = shard.append(again).await.expect_err("committed before");
    assert_eq!(refused.sqlstate(), SqlState::SerializationFailure);
    assert_eq!(values(&node, 0).last(), Some(&-1));
    node.shutdown().await;
}

#[tokio::test]
async fn what_was_not_committed_is_given_up() {
    let disk = FaultDisk::new();
    let node = begin(&disk).await;
    let mut dropped = shard(&node).staging();
    dropped.add(vec![part(0, 0..1_000)]).await.expect("staged");
    drop(dropped);
    let mut left = shard(&node).staging();
    left.add(vec![part(0, 0..1_000)]).await.expect("staged");
    node.cores()[1].seal().await.expect("sealed");
    left.add(vec![part(1, 0..1_000)]).await.expect("staged");
    let id = left.id();
    let after = disk.crash(3);
    node.shutdown().await;
    let node = start_sealing(&after, 1 << 20).await;
    let late = Append { staged: id, ..Append::default() };
    let refused = shard(&node).append(late).await.expect_err("the crash gave it up");
    assert_eq!(refused.sqlstate(), SqlState::SerializationFailure);
    assert_eq!((values(&node, 0), values(&node, 1)), (vec![], vec![]));
    // The file names of those that ended are gone with the next manifest.
    for value in 0..3 {
        shard(&node).append(vec![part(0, [value])]).await.expect("appended");
        node.cores()[1].seal().await.expect("sealed");
    }
    node.shutdown().await;
    drop(node);
    let node = start_sealing(&after, 1 << 20).await;
    assert_eq!(files(&after), 0);
    assert_eq!(values(&node, 0), [0, 1, 2]);
    node.shutdown().await;
}

/// A transaction over many seals, with a crash at a chosen step of the disk: all of it is there, or nothing.
#[tokio::test]
async fn a_crash_anywhere_leaves_all_of_a_transaction_or_nothing() {
    const PARTS: i64 = 12;
    let expected: Vec<i64> = (0..PARTS * 3_000).collect();
    let mut outcomes = [0; 2];
    for step in (40..400).step_by(23) {
        let disk = FaultDisk::new();
        let node = begin(&disk).await;
        let crash_at = disk.steps() + step;
        let mut after = None;
        let mut staging = shard(&node).staging();
        let mut is_committed = false;
        for number in 0..PARTS {
            let rows = number * 3_000..(number + 1) * 3_000;
            staging.add(vec![part(0, rows)]).await.expect("staged");
            shard(&node).append(vec![part(1, [number])]).await.expect("appended");
            if number % 3 == 2 {
                node.cores()[1].seal().await.expect("sealed");
            }
            if disk.steps() >= crash_at && after.is_none() {
                after = Some(disk.crash(step));
                break;
            }
        }
        if after.is_none() {
            shard(&node).append(commit(&staging, Vec::new())).await.expect("committed");
            staging.committed();
            is_committed = true;
            after = Some(disk.crash(step));
        }
        node.shutdown().await;
        let after = after.expect("crashed");
        let node = start_sealing(&after, 1 << 20).await;
        let stored = values(&node, 0);
        assert_eq!(stored, if is_committed { expected.clone() } else { Vec::new() }, "step {step}");
        outcomes[usize::from(is_committed)] += 1;
        // Its rows move into segments like all others.
        shard(&node).append(vec![part(0, [-1])]).await.expect("appended");
        node.cores()[1].seal().await.expect("sealed");
        assert_eq!(values(&node, 0).len(), stored.len() + 1);
        node.shutdown().await;
    }
    assert!(outcomes.iter().all(|count| *count > 0), "{outcomes:?}");
}
