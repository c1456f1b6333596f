//! Transactions over several shards: all of it or nothing, whatever the moment of a crash.

use super::node::{batch, topic};
use crate::replication::flow::Request;
use crate::replication::raft::Reply;
use crate::replication::shard::{CHANGE_BYTES, Core};
use crate::replication::types::Decider;
use crate::replication::*;
use crate::storage::wal::WalOptions;
use crate::storage::{FaultDisk, ScanRequest};
use arrow::array::AsArray;
use arrow::datatypes::Int64Type;
use millstream_catalog::model::*;
use std::path::PathBuf;
use std::sync::Arc;

pub(super) const SHARDS: u32 = 3;

pub(super) async fn start(disk: &FaultDisk) -> Replication {
    start_with(disk, (1 << 20, 1 << 20)).await
}

/// With so many bytes before a seal, and in a file of the log.
pub(super) async fn start_with(disk: &FaultDisk, (seal_bytes, file_bytes): (u64, u64)) -> Replication {
    let config = ReplicationConfig {
        data_dir: PathBuf::from("/data"),
        node: NodeId::new(1),
        shards: SHARDS,
        seal_bytes: ByteSize::new(seal_bytes),
        writes_bytes: ByteSize::new(64 << 20),
    };
    let wal_options = WalOptions { file_bytes: ByteSize::new(file_bytes), ..WalOptions::default() };
    Replication::start_on(config, Arc::new(disk.clone()), wal_options).await.expect("starts")
}

/// A topic in each shard.
pub(super) async fn create_topics(node: &Replication) {
    for shard in 1..=SHARDS {
        let created = of(node, shard).create_topic(topic(topic_of(shard), 1)).await;
        created.expect("created");
    }
}

pub(super) fn topic_of(shard: u32) -> TopicId {
    TopicId::new(u64::from(shard) + 10)
}

pub(super) async fn begin(disk: &FaultDisk) -> Replication {
    let node = start(disk).await;
    create_topics(&node).await;
    node
}

pub(super) fn of(node: &Replication, shard: u32) -> &Shard {
    node.shard(ShardId::new(shard)).expect("a shard")
}

pub(super) fn part(shard: u32, values: impl IntoIterator<Item = i64>) -> PartitionWrite {
    PartitionWrite { topic: topic_of(shard), partition: PartitionId::new(0), batch: batch(values), guard: None }
}

pub(super) fn guarded(shard: u32, position: u64, values: &[i64]) -> PartitionWrite {
    let guard = Some(Guard { position: Offset::new(position), key: Arc::new([0]) });
    PartitionWrite { guard, ..part(shard, values.iter().copied()) }
}

pub(super) fn share(part: PartitionWrite) -> (ShardId, Append) {
    (ShardId::new(part.topic.value() as u32 - 10), Append::from(vec![part]))
}

pub(super) fn values(node: &Replication, shard: u32) -> Vec<i64> {
    let partition = of(node, shard).partitions().get(topic_of(shard), PartitionId::new(0)).expect("partition");
    let batches = partition.view().scan(ScanRequest::all()).map(|batch| batch.expect("reads").batch);
    batches.flat_map(|batch| batch.column(0).as_primitive::<Int64Type>().values().to_vec()).collect()
}

/// What is left of transactions, over all shards: undecided, and decided.
pub(super) async fn left(node: &Replication) -> (usize, usize) {
    let mut left = (0, 0);
    for core in node.cores() {
        let (stages, decisions) = core.transactions().await.unwrap_or_default();
        left = (left.0 + stages.len(), left.1 + decisions.len());
    }
    left
}

pub(super) fn core(node: &Replication, shard: u32) -> &Arc<Core> {
    node.cores().iter().find(|core| core.id() == ShardId::new(shard)).expect("a shard")
}

pub(super) async fn prepare(
    node: &Replication,
    decider: Decider,
    part: PartitionWrite,
) -> Result<StageId, ReplicationError> {
    prepare_share(node, decider, share(part)).await
}

pub(super) async fn prepare_share(
    node: &Replication,
    decider: Decider,
    (shard, append): (ShardId, Append),
) -> Result<StageId, ReplicationError> {
    match core(node, shard.value()).submit(Request::Prepare(decider, append), CHANGE_BYTES).await? {
        Reply::Staged(stage) => Ok(stage),
        other => panic!("{other:?}"),
    }
}

pub(super) async fn submit(node: &Replication, shard: u32, request: Request) -> Result<Reply, ReplicationError> {
    core(node, shard).submit(request, CHANGE_BYTES).await
}

pub(super) const DECIDER: Decider = Decider { shard: ShardId::new(1), transaction: TransactionId::new(77) };

#[tokio::test]
async fn all_shards_have_it_and_keep_it() {
    let disk = FaultDisk::new();
    let node = begin(&disk).await;
    of(&node, 2).append(vec![part(2, [1])]).await.expect("appended");
    let shares = vec![share(part(1, [1, 2])), share(part(2, [3])), share(part(3, []))];
    node.append_across(shares).await.expect("committed");
    let expected = [vec![1, 2], vec![1, 3], vec![]];
    assert_eq!([1, 2, 3].map(|shard| values(&node, shard)), expected);
    let gone = vec![share(part(1, [4])), (ShardId::new(9), Append::default())];
    assert!(matches!(node.append_across(gone).await, Err(ReplicationError::NoLeader(_))));
    let refused = vec![share(part(1, [4])), (ShardId::new(2), Append::from(vec![part(3, [4])]))];
    assert!(matches!(node.append_across(refused).await, Err(ReplicationError::NoTopic(_))));
    node.shutdown().await;
    drop(node);
    let node = start(&disk).await;
    assert_eq!([1, 2, 3].map(|shard| values(&node, shard)), expected);
    assert_eq!(left(&node).await, (0, 0));
    node.shutdown().await;
}

/// A crash at every step of the disk, several ways each.
#[tokio::test]
async fn a_crash_anywhere_leaves_all_or_nothing() {
    let mut outcomes = [0; 2];
    for with_seals in [false, true] {
        let disk = FaultDisk::new();
        let node = begin(&disk).await;
        let mut crashes = Vec::new();
        for number in 0..3_i64 {
            let shares = (1..=SHARDS).map(|shard| share(part(shard, [number]))).collect();
            let mut committing = Box::pin(node.append_across(shares));
            let mut steps = 0;
            loop {
                let committed = futures::poll!(&mut committing);
                if disk.steps() != steps {
                    steps = disk.steps();
                    crashes.push((number, committed.is_ready(), disk.crash(steps)));
                }
                match committed {
                    std::task::Poll::Ready(committed) => break committed.expect("committed"),
                    std::task::Poll::Pending => {
                        // Cores without anything new to seal answer at once.
                        tokio::task::yield_now().await;
                        for core in node.cores().iter().filter(|_| with_seals) {
                            core.seal().await.expect("sealed");
                        }
                    }
                }
            }
            crashes.push((number, true, disk.crash(steps)));
        }
        node.shutdown().await;
        for (number, is_acknowledged, disk) in crashes {
            let node = start(&disk).await;
            let all = [1, 2, 3].map(|shard| values(&node, shard));
            let (before, after): (Vec<i64>, Vec<i64>) = ((0..number).collect(), (0..=number).collect());
            let is_there = all == [after.clone(), after.clone(), after];
            assert!(is_there || !is_acknowledged && all == [before.clone(), before.clone(), before], "{all:?}");
            assert_eq!(left(&node).await, (0, 0));
            outcomes[usize::from(is_there)] += 1;
            of(&node, 1).append(vec![part(1, [9])]).await.expect("appended");
            node.shutdown().await;
        }
    }
    assert!(outcomes.iter().all(|count| *count > 2), "{outcomes:?}");
}

#[tokio::test]
async fn a_decision_is_carried_out_after_a_restart_and_nothing_without_one() {
    for (is_decided, is_sealed) in [(false, false), (true, false), (false, true), (true, true)] {
        let disk = FaultDisk::new();
        let node = begin(&disk).await;
        prepare(&node, DECIDER, part(1, [1])).await.expect("prepared");
        prepare(&node, DECIDER, guarded(2, 0, &[2])).await.expect("prepared");
        if is_decided {
            submit(&node, 1, Request::Decide(DECIDER.transaction)).await.expect("decided");
        }
        if is_sealed {
            for core in node.cores() {
                core.seal().await.expect("sealed");
            }
        }
        // What is held stays held over a seal.
        assert!(matches!(of(&node, 2).append(vec![part(2, [2])]).await, Err(ReplicationError::Changed(_))));
        of(&node, 2).append(vec![part(2, [3])]).await.expect("another key");
        assert!(values(&node, 1).is_empty());
        node.shutdown().await;
        drop(node);
        let node = start(&disk).await;
        let expected = if is_decided { (vec![1], vec![3, 2]) } else { (vec![], vec![3]) };
        assert_eq!((values(&node, 1), values(&node, 2)), expected, "sealed {is_sealed}");
        assert_eq!(left(&node).await, (0, 0));
        of(&node, 2).append(vec![part(2, [2])]).await.expect("held no more");
        node.shutdown().await;
    }
}

#[tokio::test]
async fn what_is_prepared_holds_its_keys_and_producers_and_what_changed_is_refused() {
    let disk = FaultDisk::new();
    let node = begin(&disk).await;
    for shard in [1, 2] {
        of(&node, shard).append(vec![part(shard, [1, 2])]).await.expect("appended");
    }
    let stale = vec![share(guarded(1, 2, &[1])), share(guarded(2, 1, &[2]))];
    assert!(matches!(node.append_across(stale).await, Err(ReplicationError::Changed(_))));
    assert_eq!(left(&node).await, (0, 0));
    let stage = prepare(&node, DECIDER, guarded(1, 2, &[1])).await.expect("prepared");
    for write in [part(1, [1]), guarded(1, 2, &[1])] {
        let refused = of(&node, 1).append(vec![write.clone()]).await;
        assert!(matches!(refused, Err(ReplicationError::Changed(_))));
        assert!(matches!(prepare(&node, DECIDER, write).await, Err(ReplicationError::Changed(_))));
    }
    let mut staged = of(&node, 1).staging();
    staged.add(vec![part(1, [1])]).await.expect("staged");
    let refused = of(&node, 1).append(Append { staged: staged.id(), ..Append::default() }).await;
    assert!(matches!(refused, Err(ReplicationError::Changed(_))));
    of(&node, 1).append(vec![part(1, [2])]).await.expect("another key");
    submit(&node, 1, Request::Commit(stage)).await.expect("committed");
    assert!(matches!(submit(&node, 1, Request::Commit(stage)).await, Err(ReplicationError::NoStage(_))));
    of(&node, 1).append(vec![part(1, [1])]).await.expect("held no more");
    assert_eq!(values(&node, 1), [1, 2, 2, 1, 1]);
    node.shutdown().await;
}

#[tokio::test]
async fn numbered_rows_are_written_once_in_all_shards() {
    let disk = FaultDisk::new();
    let node = begin(&disk).await;
    let claimed = |shard: u32, sequence: u64| {
        let (id, append) = share(part(shard, [sequence as i64]));
        let producer = ProducerId::new("p".to_owned()).expect("a name");
        let claim = ProducerClaim {
            producer,
            topic: topic_of(shard),
            sequence: Sequence::new(sequence),
            rows: RowCount::new(1),
        };
        (id, Append { claims: vec![claim], ..append })
    };
    let both = |one, two| node.append_across(vec![claimed(1, one), claimed(2, two), share(part(3, [one as i64]))]);
    both(0, 0).await.expect("new");
    both(0, 0).await.expect("written before");
    assert!(matches!(both(1, 0).await, Err(ReplicationError::SequenceGap { .. })));
    assert!(matches!(both(1, 2).await, Err(ReplicationError::SequenceGap { .. })));
    both(1, 1).await.expect("new");
    assert_eq!([1, 2, 3].map(|shard| values(&node, shard)), [vec![0, 1], vec![0, 1], vec![0, 1]]);
    let (_, append) = claimed(1, 2);
    let held = submit(&node, 1, Request::Prepare(DECIDER, append.clone())).await.expect("prepared");
    assert!(matches!(of(&node, 1).append(append.clone()).await, Err(ReplicationError::Changed(_))));
    let Reply::Staged(stage) = held else { panic!("{held:?}") };
    submit(&node, 1, Request::Abort(stage)).await.expect("given up");
    of(&node, 1).append(append).await.expect("held no more");
    assert_eq!(left(&node).await, (0, 0));
    node.shutdown().await;
}

/// Rows that were written before move the group that they were made of all the same: in their own shard, or another.
#[tokio::test]
async fn offsets_beside_numbered_rows_that_were_written_before_are_recorded_or_refused() {
    let disk = FaultDisk::new();
    let node = begin(&disk).await;
    of(&node, 1).append(Append::from(vec![part(1, 0..10)])).await.expect("input");
    let group = GroupName::new("g".to_owned()).expect("a name");
    let take = |taking| {
        let partitions = vec![TakePartition { topic: topic_of(1), partition: PartitionId::new(0), taking }];
        of(&node, 1).take_partitions(GroupTake { group: group.clone(), now: Timestamp::default(), partitions })
    };
    let rows = |shard: u32| {
        let (topic, sequence, rows) = (topic_of(shard), Sequence::new(0), RowCount::new(1));
        let producer = ProducerId::new("p".to_owned()).expect("a name");
        let claims = vec![ProducerClaim { producer, topic, sequence, rows }];
        let (id, append) = share(part(shard, [7]));
        (id, Append { claims, ..append })
    };
    let commits = |epoch, offset| {
        let (group, topic, partition) = (group.clone(), topic_of(1), PartitionId::new(0));
        vec![GroupCommit { group, topic, partition, epoch: Some(epoch), position: Offset::new(offset).into() }]
    };
    let committed =
        || of(&node, 1).group(&group).expect("a group").offsets[&(topic_of(1), PartitionId::new(0))].position;
    let epoch = take(Taking::Begin(Offset::ZERO)).await.expect("taken")[0].epoch;
    let across = |epoch, offset| {
        let offsets = (ShardId::new(1), Append { commits: commits(epoch, offset), ..Append::default() });
        node.append_across(vec![offsets, rows(2)])
    };
    let alone = |epoch, offset| {
        let (_, append) = rows(1);
        of(&node, 1).append(Append { commits: commits(epoch, offset), ..append })
    };
    across(epoch, 2).await.expect("new");
    across(epoch, 4).await.expect("written before");
    assert_eq!(committed(), Offset::new(4).into());
    alone(epoch, 5).await.expect("new");
    alone(epoch, 6).await.expect("written before");
    assert_eq!(committed(), Offset::new(6).into());
    take(Taking::Read).await.expect("taken by another");
    assert!(matches!(across(epoch, 7).await, Err(ReplicationError::Fenced { .. })));
    assert!(matches!(alone(epoch, 7).await, Err(ReplicationError::Fenced { .. })));
    assert_eq!(committed(), Offset::new(6).into());
    assert_eq!(values(&node, 2), [7]);
    assert_eq!(left(&node).await, (0, 0));
    node.shutdown().await;
}

/// Large rows are staged before; they are part of it.
#[tokio::test]
async fn staged_rows_commit_with_the_rest() {
    let disk = FaultDisk::new();
    let node = begin(&disk).await;
    let mut staging = of(&node, 1).staging();
    staging.add(vec![part(1, 0..5_000)]).await.expect("staged");
    let first = Append { parts: vec![part(1, [5_000])], staged: staging.id(), ..Append::default() };
    node.append_across(vec![(ShardId::new(1), first), share(part(2, [1]))]).await.expect("committed");
    staging.committed();
    assert_eq!((values(&node, 1), values(&node, 2)), ((0..=5_000).collect(), vec![1]));
    let mut dropped = of(&node, 2).staging();
    dropped.add(vec![part(2, [7])]).await.expect("staged");
    let share_of = Append { staged: dropped.id(), ..Append::default() };
    let refused = node.append_across(vec![(ShardId::new(2), share_of), share(guarded(1, 0, &[1]))]).await;
    assert!(matches!(refused, Err(ReplicationError::Changed(_))));
    drop(dropped);
    while left(&node).await != (0, 0) {
        tokio::task::yield_now().await;
    }
    assert_eq!(values(&node, 2), [1]);
    node.shutdown().await;
}

/// Cuts taken while transactions commit have all or none of each.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn cuts_are_not_between_the_shards_of_a_transaction() {
    let disk = FaultDisk::new();
    let node = begin(&disk).await;
    let writing = async {
        for number in 0..60 {
            let shares = (1..=SHARDS).map(|shard| share(part(shard, [number]))).collect();
            node.append_across(shares).await.expect("committed");
        }
    };
    let mut seen = std::collections::BTreeSet::new();
    let reading = async {
        while seen.last() != Some(&60) {
            let cuts = node.cuts().await.expect("several shards");
            let ends: Vec<u64> = (1..=SHARDS)
                .map(|shard| {
                    let partition = of(&node, shard).partitions().get(topic_of(shard), PartitionId::new(0));
                    let view = partition.expect("partition").view();
                    view.offset_end_at(cuts[&ShardId::new(shard)]).expect("entries").value()
                })
                .collect();
            assert!(ends.iter().all(|end| *end == ends[0]), "{ends:?}");
            seen.insert(ends[0]);
            tokio::task::yield_now().await;
        }
    };
    tokio::join!(writing, reading);
    assert!(seen.len() > 5, "{seen:?}");
    node.shutdown().await;
}
