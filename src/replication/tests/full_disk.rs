//! What a node does by itself to have space again, and what it leaves for later while there is none.

use super::across::{self, DECIDER, create_topics, left, of, prepare, start_with, submit};
use super::node::{TOPIC, part, shard, start, topic, until, values};
use crate::replication::flow::Request;
use crate::replication::*;
use crate::storage::{Disk as _, FaultDisk};
use millstream_catalog::model::*;
use std::path::Path;
use std::time::{Duration, Instant};

const DEADLINE: Duration = Duration::from_secs(30);

fn names(disk: &FaultDisk, dir: &str) -> Vec<String> {
    disk.list(Path::new(dir)).expect("a directory").into_iter().map(|entry| entry.name).collect()
}

fn spares(disk: &FaultDisk) -> usize {
    names(disk, "/data/wal").iter().filter(|name| name.ends_with(".spare")).count()
}

/// Gives other tasks their turn, until the deadline.
async fn wait(begun: Instant, what: &str) {
    assert!(crate::env::elapsed(begun) < DEADLINE, "never happened: {what}");
    tokio::task::yield_now().await;
}

/// The first seal finds no space for its segment, the second that of log files which were kept to be used again.
#[tokio::test]
async fn a_seal_without_space_gives_up_spare_files_of_the_log() {
    let disk = FaultDisk::new();
    let node = start(&disk).await;
    shard(&node).create_topic(topic(TOPIC, 1)).await.expect("created");
    for round in 0..250 {
        shard(&node).append(vec![part(0, vec![round; 1_000])]).await.expect("appended");
    }
    for core in node.cores() {
        core.seal().await.expect("sealed");
    }
    until(&node, |status| !status.is_sealing && spares(&disk) > 1).await;
    shard(&node).append(vec![part(0, vec![-1; 1_000])]).await.expect("appended");
    let before = shard(&node).status().sealed;
    disk.set_capacity(Some(disk.bytes_used()));
    shard(&node).seal().await.expect("asked for");
    until(&node, |_| spares(&disk) == 0).await;
    assert_eq!((shard(&node).status().sealed, node.wal_stats().spare_bytes), (before, ByteSize::ZERO));
    let begun = crate::env::instant();
    while shard(&node).status().sealed == before {
        shard(&node).seal().await.expect("asked for again");
        wait(begun, "a seal in the space of spare files").await;
    }
    let expected: Vec<i64> = (0..250).chain([-1]).flat_map(|round| vec![round; 1_000]).collect();
    assert_eq!(values(&node, 0), expected);
    node.shutdown().await;
    drop(node);
    let node = start(&disk).await;
    assert_eq!(values(&node, 0), expected);
    node.shutdown().await;
}

/// Each shard but the first has one row in the oldest file of the log, and gets no more.
#[tokio::test]
async fn on_a_full_disk_quiet_shards_are_sealed_so_that_log_files_go() {
    for is_asked in [true, false] {
        let disk = FaultDisk::new();
        // Too little for the smallest file of the log, enough for a segment of one row.
        let node = full_log(&disk, (40 << 10, is_asked)).await;
        // Nobody asks for a seal, writes, or gives space from outside.
        let begun = crate::env::instant();
        while (2..=3).any(|shard| of(&node, shard).status().sealed.is_none()) || node.wal_stats().is_disk_full {
            wait(begun, "quiet shards are sealed and log files go").await;
        }
        of(&node, 1).append(vec![across::part(1, 0..60_000)]).await.expect("there is space again");
        let found = [1, 2, 3].map(|shard| across::values(&node, shard));
        assert!(found[0].iter().skip_while(|value| **value < 0).copied().eq(0..60_000));
        assert_eq!(found[1..], [vec![2], vec![3]]);
        node.shutdown().await;
    }
}

async fn forget_first(node: &Replication) {
    of(node, 1).truncate(vec![across::topic_of(1)]).await.expect("truncated");
}

/// A log whose next file has no space, with so many bytes left on the disk. The first shard has given up its rows: before
/// that, or since, which asks for a seal of that shard.
async fn full_log(disk: &FaultDisk, (bytes_left, is_asked): (u64, bool)) -> Replication {
    let node = start_with(disk, (64 << 20, 1 << 20)).await;
    create_topics(&node).await;
    for shard in [2, 3] {
        of(&node, shard).append(vec![across::part(shard, [i64::from(shard)])]).await.expect("appended");
    }
    let rows = || vec![across::part(1, vec![-1; 1_000])];
    while names(disk, "/data/wal").iter().filter(|name| name.ends_with(".wal")).count() < 3 {
        of(&node, 1).append(rows()).await.expect("appended");
    }
    assert!((1..=3).all(|shard| of(&node, shard).status().sealed.is_none()));
    let begun = crate::env::instant();
    if !is_asked {
        forget_first(&node).await;
        of(&node, 1).seal().await.expect("sealed");
        while of(&node, 1).status().purged.is_none() {
            wait(begun, "a seal").await;
        }
    }
    disk.set_capacity(Some(disk.bytes_used() + bytes_left));
    while !node.wal_stats().is_disk_full {
        of(&node, 1).append(rows()).await.expect("the prepared file has room");
        wait(begun, "a log that is full").await;
    }
    if is_asked {
        forget_first(&node).await;
    }
    node
}

#[tokio::test]
async fn seals_that_find_no_space_do_not_fill_the_rest_of_the_log() {
    let disk = FaultDisk::new();
    let node = full_log(&disk, (0, true)).await;
    let entries = |node: &Replication| {
        let last = |status: ShardStatus| status.log_last.map_or(0, |last| last.value());
        last(node.catalog().status()) + (1..=3).map(|shard| last(of(node, shard).status())).sum::<u64>()
    };
    let before = entries(&node);
    for _ in 0..2_000 {
        assert!(of(&node, 2).append(vec![across::part(2, 0..60_000)]).await.is_err());
        tokio::task::yield_now().await;
    }
    let more = entries(&node) - before;
    assert!(more < 50, "{more}");
    of(&node, 3).drop_topic(across::topic_of(3)).await.expect("what gives space back goes on");
    node.shutdown().await;
}

#[tokio::test]
async fn files_of_topics_that_are_truncated_or_dropped_go_at_once() {
    let other = TopicId::new(8);
    for is_dropped in [false, true] {
        let disk = FaultDisk::new();
        let node = start(&disk).await;
        shard(&node).create_topic(topic(TOPIC, 2)).await.expect("created");
        shard(&node).create_topic(topic(other, 1)).await.expect("created");
        let kept = PartitionWrite { topic: other, ..part(0, [3]) };
        shard(&node).append(vec![part(0, 0..1_000), part(1, [1]), kept]).await.expect("appended");
        shard(&node).seal().await.expect("sealed");
        until(&node, |status| !status.is_sealing && status.sealed == status.applied).await;
        let of = |topic: TopicId| {
            let start = format!("t{}-", topic.value());
            names(&disk, "/data/shards/1/segments").iter().filter(|name| name.starts_with(&start)).count()
        };
        assert_eq!((of(TOPIC), of(other)), (2, 1));
        match is_dropped {
            false => shard(&node).truncate(vec![TOPIC]).await.expect("truncated"),
            true => shard(&node).drop_topic(TOPIC).await.expect("dropped"),
        }
        until(&node, |_| of(TOPIC) == 0).await;
        assert_eq!(of(other), 1);
        node.shutdown().await;
        drop(node);
        let node = start(&disk).await;
        let left = shard(&node).partitions().get(other, PartitionId::new(0)).expect("partition").view();
        assert_eq!(left.rows().expect("reads").value(), 1);
        assert_eq!(shard(&node).topic(TOPIC).is_none(), is_dropped);
        node.shutdown().await;
    }
}

/// Retention asks for no seal by itself.
#[tokio::test]
async fn after_a_seal_without_space_files_that_retention_gives_up_go_at_once() {
    let disk = FaultDisk::new();
    let node = start(&disk).await;
    shard(&node).create_topic(topic(TOPIC, 1)).await.expect("created");
    shard(&node).append(vec![part(0, 0..1_000)]).await.expect("appended");
    shard(&node).seal().await.expect("sealed");
    let segments = || names(&disk, "/data/shards/1/segments").len();
    until(&node, |status| !status.is_sealing && status.sealed == status.applied).await;
    // The log needs nothing: its next file is there.
    until(&node, |_| names(&disk, "/data/wal").iter().filter(|name| name.ends_with(".wal")).count() == 2).await;
    disk.set_capacity(Some(disk.bytes_used() + (8 << 10)));
    shard(&node).append(vec![part(0, 0..1_000)]).await.expect("appended");
    shard(&node).seal().await.expect("asked for");
    // Behind what the seal begins with.
    across::core(&node, 1).transactions().await.expect("runs");
    until(&node, |status| !status.is_sealing).await;
    assert!(segments() == 1 && shard(&node).status().sealed < shard(&node).status().applied);
    let all = vec![(TOPIC, PartitionId::new(0), Offset::new(u64::MAX))];
    shard(&node).move_starts(all).await.expect("moved");
    until(&node, |_| segments() == 0).await;
    assert!(!node.wal_stats().is_disk_full);
    node.shutdown().await;
}

const LOG_FILE_BYTES: u64 = 64 << 10;

async fn start_small(disk: &FaultDisk) -> Replication {
    let started = tokio::time::timeout(DEADLINE, start_with(disk, (1 << 20, LOG_FILE_BYTES))).await;
    started.expect("a start waits for no space")
}

/// Writes until not even that finds room by which space comes back.
async fn fill(node: &Replication, disk: &FaultDisk) {
    let begun = crate::env::instant();
    while names(disk, "/data/wal").iter().filter(|name| name.ends_with(".wal")).count() < 2 {
        wait(begun, "the next file of the log").await;
    }
    disk.set_capacity(Some(disk.bytes_used()));
    // Small, so that the log has room until it knows that there is no file after the next.
    while !node.wal_stats().is_disk_full {
        of(node, 1).append(vec![across::part(1, vec![-1; 50])]).await.expect("the next file has room");
        wait(begun, "a full log").await;
    }
    while of(node, 1).append(vec![across::part(1, vec![-1; 50])]).await.is_ok() {
        wait(begun, "a full log").await;
    }
    while across::core(node, 1).has_room_to_free() {
        // Of a decision that nobody took: it changes nothing.
        let forgotten = submit(node, 1, Request::Forget(TransactionId::new(5))).await;
        assert!(forgotten.is_ok() || matches!(forgotten, Err(ReplicationError::DiskFull)));
        wait(begun, "a log that is full to the end").await;
    }
}

/// What transactions wrote.
fn committed(node: &Replication) -> [Vec<i64>; 3] {
    [1, 2, 3].map(|shard| across::values(node, shard).into_iter().filter(|value| *value >= 0).collect())
}

#[tokio::test]
async fn a_start_on_a_full_disk_leaves_transactions_to_be_resolved_when_there_is_space() {
    for (is_decided, is_begun, seed) in [(false, false, 1), (true, false, 2), (true, true, 3), (false, false, 4)] {
        let disk = FaultDisk::new();
        let node = start_small(&disk).await;
        create_topics(&node).await;
        let mut stages = Vec::new();
        for shard in 1..=across::SHARDS {
            stages.push(prepare(&node, DECIDER, across::part(shard, [7])).await.expect("prepared"));
        }
        let mut open = of(&node, 3).staging();
        if seed == 1 {
            open.add(vec![across::part(3, [9])]).await.expect("staged");
        }
        if is_decided {
            submit(&node, 1, Request::Decide(DECIDER.transaction)).await.expect("decided");
        }
        if is_begun {
            submit(&node, 2, Request::Commit(stages[1])).await.expect("committed");
        }
        fill(&node, &disk).await;
        let crashed = disk.crash(seed);
        drop(open);
        node.shutdown().await;
        drop(node);
        crashed.set_capacity(Some(crashed.bytes_used()));
        let node = start_small(&crashed).await;
        let what = format!("decided {is_decided}, begun {is_begun}, seed {seed}");
        let waiting = 3 + usize::from(seed == 1) - usize::from(is_begun);
        assert_eq!(left(&node).await, (waiting, usize::from(is_decided)), "{what}");
        let refused = of(&node, 2).append(vec![across::part(2, [1])]).await.expect_err("no space");
        assert!(matches!(refused, ReplicationError::DiskFull), "{refused}");
        let begun = if is_begun { vec![7] } else { vec![] };
        assert_eq!(committed(&node), [vec![], begun, vec![]], "{what}");
        crashed.set_capacity(None);
        let begun = crate::env::instant();
        while left(&node).await != (0, 0) {
            wait(begun, &what).await;
        }
        let expected = [1, 2, 3].map(|_| if is_decided { vec![7] } else { vec![] });
        assert_eq!(committed(&node), expected, "{what}");
        let again = crashed.crash(seed);
        node.shutdown().await;
        let node = start_small(&again).await;
        assert_eq!((committed(&node), left(&node).await), (expected, (0, 0)), "{what}");
        node.shutdown().await;
    }
}
