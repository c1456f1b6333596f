//! Transactions of several entries: seen when they commit, gone when they do not, and kept over seals and crashes.

use super::node::{TOPIC, part, shard, start_sealing, topic, until, values};
use crate::replication::*;
use crate::storage::FaultDisk;
use futures::future::join_all;
use millstream_catalog::model::limit::STAGED_PARTS_MAX;
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

#[tokio::test]
async fn parts_of_open_transactions_are_limited() {
    let disk = FaultDisk::new();
    let node = begin(&disk).await;
    let mut stagings: Vec<Staging> = (0..STAGED_PARTS_MAX).map(|_| shard(&node).staging()).collect();
    for some in stagings.chunks_mut(512) {
        let added = join_all(some.iter_mut().map(|staging| staging.add(vec![part(0, [1])]))).await;
        assert!(added.iter().all(Result::is_ok));
    }
    let mut more = shard(&node).staging();
    let refused = more.add(vec![part(0, [1])]).await.expect_err("one more");
    assert_eq!(refused.sqlstate(), SqlState::ProgramLimitExceeded);
    let first = stagings.swap_remove(0);
    shard(&node).append(commit(&first, Vec::new())).await.expect("committed");
    shard(&node).staging().add(vec![part(0, [1])]).await.expect("there is room for one");
    node.shutdown().await;
}

/// A manifest that lists a file has it synced: later ones need not. One that is gone before costs its shard, not the node.
#[tokio::test]
async fn staged_files_are_synced_once_and_missed_by_the_first_manifest() {
    use crate::storage::Disk as _;
    use futures::FutureExt as _;
    for is_listed in [true, false] {
        let disk = FaultDisk::new();
        let node = begin(&disk).await;
        let owned = std::sync::Arc::clone(&node.shards()[0]);
        let mut staging = owned.staging();
        staging.add(vec![part(0, 0..1_000)]).await.expect("staged");
        if is_listed {
            owned.seal().await.expect("sealed");
            until(&node, |status| !status.is_sealing && status.sealed == status.applied).await;
        }
        let dir = Path::new("/data/shards/1/staged");
        for file in disk.list(dir).expect("files") {
            disk.remove(&dir.join(file.name)).expect("removed");
        }
        owned.append(vec![part(1, [1])]).await.expect("appended");
        owned.seal().await.expect("sealed");
        if is_listed {
            until(&node, |status| !status.is_sealing && status.sealed == status.applied).await;
            owned.append(commit(&staging, Vec::new())).await.expect("its map has the rows");
            assert_eq!(values(&node, 0).len(), 1_000);
        } else {
            while node.damage(ShardId::new(1)).is_none() {
                tokio::task::yield_now().await;
            }
        }
        assert!(node.failed().now_or_never().is_none());
        node.shutdown().await;
    }
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
