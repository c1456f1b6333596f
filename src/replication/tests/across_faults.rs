//! Transactions over several shards when clients go away, shards end, files are lost, and there is no memory.

use super::across::*;
use crate::replication::across::finish;
use crate::replication::flow::Request;
use crate::replication::inspect::read_manifest;
use crate::replication::types::Decider;
use crate::replication::*;
use crate::storage::manifest::Manifest;
use crate::storage::{Disk, FaultDisk, StorageError};
use bytes::Bytes;
use futures::FutureExt as _;
use millstream_catalog::model::*;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::RwLock;

/// Rows staged in shard 2, and its share of a transaction that commits them with one more.
async fn staged_share(node: &Replication) -> (Staging, (ShardId, Append)) {
    let mut staging = of(node, 2).staging();
    staging.add(vec![part(2, 0..5_000)]).await.expect("staged");
    let append = Append { parts: vec![part(2, [5_000])], staged: staging.id(), ..Append::default() };
    (staging, (ShardId::new(2), append))
}

#[tokio::test]
async fn a_client_that_goes_away_takes_no_staged_rows_with_it() {
    let disk = FaultDisk::new();
    let node = begin(&disk).await;
    let (staging, share_of) = staged_share(&node).await;
    let stage = prepare_share(&node, DECIDER, share_of).await.expect("prepared");
    drop(staging);
    submit(&node, 2, Request::GiveUp(stage)).await.expect("of no effect");
    submit(&node, 1, Request::Decide(DECIDER.transaction)).await.expect("decided");
    submit(&node, 2, Request::Commit(stage)).await.expect("committed");
    submit(&node, 1, Request::Forget(DECIDER.transaction)).await.expect("forgotten");
    assert_eq!(values(&node, 2), (0..=5_000).collect::<Vec<_>>());
    let (staging, share_of) = staged_share(&node).await;
    let mut committing = Box::pin(node.append_across(vec![share(part(1, [1])), share_of]));
    while futures::poll!(&mut committing).is_pending() {
        let stages = core(&node, 2).transactions().await.expect("runs").0;
        if stages.iter().any(|(_, decider)| decider.is_some()) {
            break;
        }
    }
    drop(committing);
    drop(staging);
    while left(&node).await != (0, 0) {
        tokio::task::yield_now().await;
    }
    assert_eq!((values(&node, 1), values(&node, 2).len()), (vec![1], 10_002));
    node.shutdown().await;
}

async fn seal_all(node: &Replication) {
    for shard in 1..=SHARDS {
        of(node, shard).seal().await.expect("sealed");
        let is_sealed = |status: ShardStatus| !status.is_sealing && status.sealed == status.applied;
        while !is_sealed(of(node, shard).status()) {
            tokio::task::yield_now().await;
        }
    }
}

/// The files of open transactions that the manifest of shard 2 lists, and what decides about these.
fn staged_of_second(disk: &FaultDisk) -> Vec<(String, Option<ShardId>)> {
    let file = disk.open(Path::new("/data/shards/2/manifest")).expect("a manifest");
    let mut bytes = vec![0; file.len().expect("length") as usize];
    file.read_at(&mut bytes, 0).expect("read");
    let manifest = Manifest::decode(&Bytes::from(bytes)).expect("whole");
    let staged = read_manifest(manifest.applied, manifest.extra).expect("whole").staged;
    staged.iter().map(|listed| (listed.file.file().to_owned(), listed.decider)).collect()
}

#[tokio::test]
async fn rows_of_a_decided_transaction_that_cannot_be_read_are_missed_and_nothing_else() {
    for (is_committed, is_guarded) in [(false, false), (true, false), (true, true)] {
        let disk = FaultDisk::new();
        let node = begin(&disk).await;
        let first = prepare(&node, DECIDER, part(1, [1])).await.expect("prepared");
        let of_second = if is_guarded { guarded(2, 0, &[2]) } else { part(2, [2]) };
        let second = prepare(&node, DECIDER, of_second).await.expect("prepared");
        seal_all(&node).await;
        submit(&node, 1, Request::Decide(DECIDER.transaction)).await.expect("decided");
        if is_committed {
            submit(&node, 1, Request::Commit(first)).await.expect("committed");
            submit(&node, 2, Request::Commit(second)).await.expect("committed");
            assert_eq!(values(&node, 2), [2]);
        }
        let bad = disk.crash(0);
        node.shutdown().await;
        let staged = staged_of_second(&bad);
        assert_eq!((staged.len(), staged[0].1), (1, Some(DECIDER.shard)));
        bad.remove(&Path::new("/data/shards/2/staged").join(&staged[0].0)).expect("removed");
        for _ in 0..2 {
            let node = start(&bad).await;
            assert!(node.damage(ShardId::new(2)).is_some() && node.failed().now_or_never().is_none());
            assert_eq!((values(&node, 1), values(&node, 3)), (vec![1], vec![]));
            // Shard 2 will ask for it.
            let decisions = core(&node, 1).transactions().await.expect("runs").1;
            assert_eq!(decisions, [DECIDER.transaction]);
            node.shutdown().await;
        }
    }
}

fn lost() -> StorageError {
    StorageError::Missing { file: "x".to_owned() }
}

/// The shard of the decision ends with it on its way: whether it is in the log is found at the next start.
#[tokio::test]
async fn a_decision_that_is_not_known_is_nobodys_refusal() {
    for is_recorded in [false, true] {
        let disk = FaultDisk::new();
        let node = begin(&disk).await;
        let first = prepare(&node, DECIDER, part(1, [1])).await.expect("prepared");
        let second = prepare(&node, DECIDER, part(2, [2])).await.expect("prepared");
        if is_recorded {
            submit(&node, 1, Request::Decide(DECIDER.transaction)).await.expect("decided");
        }
        core(&node, 1).failure().give_up(ShardId::new(1), &lost());
        let prepared = vec![(Arc::clone(core(&node, 1)), first), (Arc::clone(core(&node, 2)), second)];
        let finished = finish(&RwLock::new(()), core(&node, 1), DECIDER.transaction, prepared).await;
        assert!(matches!(finished, Err(ReplicationError::Storage(_))));
        assert_eq!(core(&node, 2).transactions().await.expect("runs").0, [(second, Some(DECIDER))]);
        node.shutdown().await;
        drop(node);
        let node = start(&disk).await;
        let expected = if is_recorded { (vec![1], vec![2]) } else { (vec![], vec![]) };
        assert_eq!((values(&node, 1), values(&node, 2)), expected);
        assert_eq!(left(&node).await, (0, 0));
        node.shutdown().await;
    }
}

#[tokio::test]
async fn a_shard_that_cannot_carry_out_a_decision_stops_no_other() {
    let disk = FaultDisk::new();
    let node = begin(&disk).await;
    let mut prepared = Vec::new();
    for shard in 1..=SHARDS {
        let stage = prepare(&node, DECIDER, part(shard, [1])).await.expect("prepared");
        prepared.push((Arc::clone(core(&node, shard)), stage));
    }
    core(&node, 2).failure().give_up(ShardId::new(2), &lost());
    // A share that is gone is no success.
    let (gone, _) = staged_share_gone(&node).await;
    let finished = finish(&RwLock::new(()), core(&node, 1), DECIDER.transaction, prepared).await;
    assert!(matches!(finished, Err(ReplicationError::Storage(_))));
    assert!(matches!(gone, Err(ReplicationError::Stopped { .. })));
    assert_eq!((values(&node, 1), values(&node, 3)), (vec![1], vec![1]));
    node.shutdown().await;
    drop(node);
    let node = start(&disk).await;
    assert_eq!([1, 2, 3].map(|shard| values(&node, shard)), [vec![1], vec![1], vec![1]]);
    assert_eq!(left(&node).await, (0, 0));
    node.shutdown().await;
}

/// Of a transaction of shard 3 whose share went before it was carried out.
async fn staged_share_gone(node: &Replication) -> (Result<(), ReplicationError>, StageId) {
    let decider = Decider { shard: ShardId::new(3), transaction: TransactionId::new(5) };
    let stage = prepare(node, decider, part(3, [7])).await.expect("prepared");
    submit(node, 3, Request::Abort(stage)).await.expect("given up");
    let prepared = vec![(Arc::clone(core(node, 3)), stage)];
    (finish(&RwLock::new(()), core(node, 3), decider.transaction, prepared).await, stage)
}

#[tokio::test]
async fn what_ends_a_transaction_or_gives_space_back_waits_for_no_memory() {
    let disk = FaultDisk::new();
    let node = begin(&disk).await;
    let first = prepare(&node, DECIDER, part(1, [1])).await.expect("prepared");
    let second = prepare(&node, DECIDER, part(2, [2])).await.expect("prepared");
    let (staging, _) = staged_share(&node).await;
    let all = node.room().acquire(usize::MAX).await.expect("free");
    let mut waiting = Box::pin(of(&node, 1).append(vec![part(1, [3])]));
    assert!(futures::poll!(&mut waiting).is_pending());
    let ending = async {
        submit(&node, 1, Request::Decide(DECIDER.transaction)).await.expect("decided");
        submit(&node, 1, Request::Commit(first)).await.expect("committed");
        submit(&node, 2, Request::Abort(second)).await.expect("given up");
        submit(&node, 2, Request::GiveUp(staging.id().expect("staged"))).await.expect("given up");
        submit(&node, 1, Request::Forget(DECIDER.transaction)).await.expect("forgotten");
        of(&node, 3).drop_topic(topic_of(3)).await.expect("dropped");
        seal_all(&node).await;
    };
    tokio::time::timeout(Duration::from_secs(20), ending).await.expect("nothing of it waits");
    assert!(futures::poll!(&mut waiting).is_pending());
    assert_eq!(values(&node, 1), [1]);
    drop(all);
    waiting.await.expect("appended");
    node.shutdown().await;
}

/// The number of a transaction, as shard 2 keeps it.
async fn a_number(node: &Replication) -> TransactionId {
    loop {
        let mut committing = Box::pin(node.append_across(vec![share(part(1, [1])), share(part(2, [2]))]));
        let mut number = None;
        while futures::poll!(&mut committing).is_pending() {
            let stages = core(node, 2).transactions().await.expect("runs").0;
            number = number.or_else(|| stages.iter().find_map(|(_, decider)| Some(decider.as_ref()?.transaction)));
        }
        if let Some(number) = number {
            return number;
        }
    }
}

#[tokio::test]
async fn numbers_of_transactions_do_not_come_again() {
    let disk = FaultDisk::new();
    let node = begin(&disk).await;
    let first = a_number(&node).await;
    node.shutdown().await;
    drop(node);
    let node = start(&disk).await;
    assert!(a_number(&node).await.value() >> 40 > first.value() >> 40);
    node.shutdown().await;
}

#[tokio::test]
async fn what_producers_say_of_a_topic_that_is_dropped_is_forgotten() {
    let disk = FaultDisk::new();
    let node = begin(&disk).await;
    let producer = ProducerId::new("p".to_owned()).expect("a name");
    let (sequence, rows) = (Sequence::new(0), RowCount::new(1));
    let claim = ProducerClaim { producer: producer.clone(), topic: topic_of(1), sequence, rows };
    let (id, append) = share(part(1, [1]));
    let stage = prepare_share(&node, DECIDER, (id, Append { claims: vec![claim], ..append })).await.expect("prepared");
    of(&node, 1).drop_topic(topic_of(1)).await.expect("dropped");
    submit(&node, 1, Request::Commit(stage)).await.expect("committed");
    assert_eq!(core(&node, 1).sequence_next(topic_of(1), &producer), None);
    node.shutdown().await;
}
