//! Rows of open transactions in backups and under damage, and damage that is met while entries are applied.

use super::*;
use crate::offline::backup::{backup, restore};
use crate::replication::{Append, Guard, Staging};
use futures::FutureExt as _;
use millstream_catalog::model::SqlState;

const SHARD: ShardId = ShardId::new(1);

fn part(values: &[i64]) -> PartitionWrite {
    let (topic, partition) = (TopicId::new(7), PartitionId::new(0));
    PartitionWrite { topic, partition, batch: rows(values), guard: None }
}

/// A node of [`filled`] with a transaction that is open, whose rows are in a file that the manifest lists.
async fn with_open_transaction() -> (FaultDisk, Model, Replication, Staging) {
    let (disk, model) = filled().await;
    let node = start(&disk).await.unwrap();
    let shard = node.shard(SHARD).unwrap();
    let mut staging = shard.staging();
    staging.add(vec![part(&[5_000, 5_001])]).await.unwrap();
    shard.seal().await.unwrap();
    while shard.status().is_sealing || shard.status().sealed != shard.status().applied {
        tokio::task::yield_now().await;
    }
    (disk, model, node, staging)
}

/// That node's disk after a crash, the transaction being open, and after its commit; with what is read then.
async fn crashed() -> [(FaultDisk, Model); 2] {
    let (disk, model, node, staging) = with_open_transaction().await;
    let open = disk.crash(0);
    let append = Append { parts: vec![part(&[5_002])], staged: staging.id(), ..Append::default() };
    node.shard(SHARD).unwrap().append(append).await.unwrap();
    let committed = disk.crash(0);
    staging.committed();
    node.shutdown().await;
    let mut more = model.clone();
    more.get_mut(&(1, 7, 0)).unwrap().extend([5_000, 5_001, 5_002]);
    [(open, model), (committed, more)]
}

#[tokio::test]
async fn a_backup_has_the_rows_of_transactions_that_are_not_sealed() {
    for (disk, model) in crashed().await {
        let all: Arc<dyn Disk> = Arc::new(disk.clone());
        let (first, second) = (Path::new("/backup-1"), Path::new("/backup-2"));
        assert!(backup(Arc::clone(&all), Path::new(DIR), first, None).unwrap().report.is_clean());
        let copied = backup(Arc::clone(&all), Path::new(DIR), second, Some(first)).unwrap();
        assert!(copied.report.is_clean() && copied.linked > 0, "{}", copied.report);
        for path in files(&disk, Path::new(DIR)) {
            disk.remove(&path).unwrap();
        }
        for dir in ["shards/0/segments", "shards/0", "shards/1/segments", "shards/1/staged", "shards/1"] {
            let _ = disk.remove_dir(&Path::new(DIR).join(dir));
        }
        for dir in ["shards/2/segments", "shards/2", "shards", "wal", "backup"] {
            let _ = disk.remove_dir(&Path::new(DIR).join(dir));
        }
        restore(Arc::clone(&all), second, Path::new(DIR)).unwrap();
        let node = start(&disk).await.unwrap();
        assert_eq!(compare(&node, &model), []);
        node.shutdown().await;
    }
}

fn staged_file(disk: &FaultDisk) -> PathBuf {
    let staged: Vec<PathBuf> =
        files(disk, Path::new(DIR)).into_iter().filter(|path| name(path).contains("/staged/")).collect();
    let [only] = &staged[..] else { panic!("{staged:?}") };
    only.clone()
}

#[tokio::test]
async fn damaged_rows_of_an_open_transaction_cost_nothing_and_of_a_committed_one_that_transaction() {
    let [(_, without), _] = crashed().await;
    for (number, (disk, model)) in crashed().await.into_iter().enumerate() {
        assert_eq!(damages(&disk), []);
        for is_gone in [false, true] {
            let bad = disk.crash(0);
            let file = staged_file(&bad);
            match is_gone {
                true => bad.remove(&file).unwrap(),
                false => scribble(&bad, &file, 300..400),
            }
            let found = damages(&bad);
            assert!(found.iter().any(|f| f.severity == Severity::Damage && f.file == name(&file)), "{found:?}");
            let node = start(&bad.crash(0)).await.unwrap();
            assert_eq!(node.damage(SHARD).is_some(), number == 1, "{is_gone}");
            assert_eq!(compare(&node, &without), []);
            node.shutdown().await;
            let (_, left) = check_and_repair(Arc::new(bad.clone()), Path::new(DIR)).unwrap();
            assert!(left.is_clean(), "{left}");
            let node = start(&bad.crash(0)).await.unwrap();
            assert_eq!((compare(&node, &without), node.damaged().len()), (vec![], 0), "{is_gone}");
            node.shutdown().await;
        }
        // One bit costs nothing.
        let length = read_file(&disk, &staged_file(&disk)).unwrap().len() as u64;
        for position in (0..length).step_by(61) {
            let bad = disk.crash(0);
            bad.flip_bit(&staged_file(&bad), position, (position % 8) as u8).unwrap();
            let (found, left) = check_and_repair(Arc::new(bad.clone()), Path::new(DIR)).unwrap();
            assert!(!found.is_clean() && left.is_clean(), "byte {position}: {found} {left}");
            let node = start(&bad).await.unwrap();
            assert_eq!(compare(&node, &model), [], "byte {position}");
            node.shutdown().await;
        }
    }
}

#[tokio::test]
async fn a_write_that_depends_on_damaged_rows_takes_its_shard_out_and_no_other() {
    let (disk, _) = filled().await;
    let broken = files(&disk, Path::new(DIR)).into_iter().find(|path| name(path).contains("segments/t7-p0")).unwrap();
    scribble(&disk, &broken, 600..700);
    let node = start(&disk).await.unwrap();
    let guarded = || {
        let guard = Guard { position: Offset::ZERO, key: Arc::new([0]) };
        vec![PartitionWrite { guard: Some(guard), ..part(&[-1]) }]
    };
    let shard = Arc::clone(node.shard(SHARD).unwrap());
    let error = shard.append(guarded()).await.unwrap_err();
    assert_eq!(error.sqlstate(), SqlState::DataCorrupted, "{error}");
    let other = || vec![PartitionWrite { topic: TopicId::new(8), ..part(&[1]) }];
    for round in 0..3 {
        assert!(node.failed().now_or_never().is_none(), "{round}");
        assert!(node.damage(SHARD).is_some() && node.shard(SHARD).is_none(), "{round}");
        assert_eq!(shard.append(vec![part(&[1])]).await.unwrap_err().sqlstate(), SqlState::DataCorrupted);
        node.shard(ShardId::new(2)).unwrap().append(other()).await.unwrap();
    }
    node.shutdown().await;
    drop((node, shard));
    let node = start(&disk).await.unwrap();
    assert!(node.damage(SHARD).is_some());
    node.shard(ShardId::new(2)).unwrap().append(other()).await.unwrap();
    node.shutdown().await;
    drop(node);
    let (_, left) = check_and_repair(Arc::new(disk.clone()), Path::new(DIR)).unwrap();
    assert!(left.is_clean(), "{left}");
    let node = start(&disk).await.unwrap();
    assert_eq!(node.damaged().len(), 0);
    let shard = node.shard(SHARD).unwrap();
    let refused = shard.append(guarded()).await.unwrap_err();
    assert_eq!(refused.sqlstate(), SqlState::SerializationFailure, "{refused}");
    shard.append(vec![part(&[1])]).await.unwrap();
    node.shutdown().await;
}
