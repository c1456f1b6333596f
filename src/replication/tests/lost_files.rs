//! Files taken away while the node was down: it says which, and touches nothing.

use super::node::{part, shard, start, topic};
use crate::replication::tests::node::TOPIC;
use crate::replication::{Replication, ReplicationConfig};
use crate::storage::wal::WalOptions;
use crate::storage::{Disk, FaultDisk};
use millstream_catalog::model::{ByteSize, NodeId};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// A stopped node's disk: rows in segments and in the log.
async fn used_disk() -> FaultDisk {
    let disk = FaultDisk::new();
    let node = start(&disk).await;
    shard(&node).create_topic(topic(TOPIC, 1)).await.expect("created");
    shard(&node).append(vec![part(0, 0..1_000)]).await.expect("appended");
    let mut seals = shard(&node).partitions().subscribe_applied();
    for core in node.cores() {
        core.seal().await.expect("sealed");
    }
    // The log lets go of sealed entries with the next ones.
    while node.shards()[0].status().purged.is_none() {
        shard(&node).append(vec![part(0, [1])]).await.expect("appended");
        seals.changed().await.expect("runs");
    }
    node.shutdown().await;
    drop(node);
    disk
}

async fn refusal(disk: &FaultDisk, shards: u32) -> String {
    let config = ReplicationConfig {
        data_dir: PathBuf::from("/data"),
        node: NodeId::new(1),
        shards,
        seal_bytes: ByteSize::new(64 << 20),
        writes_bytes: ByteSize::new(64 << 20),
    };
    let wal_options = WalOptions { file_bytes: ByteSize::new(1 << 20), ..WalOptions::default() };
    match Replication::start_on(config, Arc::new(disk.clone()), wal_options).await {
        Ok(node) => {
            // Until then the directory is in use.
            node.shutdown().await;
            "it started".to_owned()
        }
        Err(error) => error.to_string(),
    }
}

fn remove_all(disk: &FaultDisk, dir: &str) {
    for entry in disk.list(Path::new(dir)).expect("a directory") {
        disk.remove(&Path::new(dir).join(entry.name)).expect("removed");
    }
}

#[tokio::test]
async fn a_log_that_is_gone_is_missed() {
    let disk = used_disk().await;
    remove_all(&disk, "/data/wal");
    assert!(refusal(&disk, 1).await.contains("write-ahead log (\"wal\") is missing"));
}

#[tokio::test]
async fn without_its_name_a_directory_is_not_taken_for_one_of_fewer_shards() {
    let disk = used_disk().await;
    assert_eq!(refusal(&disk, 3).await, "it started");
    let name = Path::new("/data/node");
    disk.remove(name).expect("removed");
    let refused = refusal(&disk, 1).await;
    assert!(refused.contains('3') && refused != "it started", "{refused}");
    assert!(!disk.exists(name).expect("listed"), "nothing is written");
    assert_eq!(refusal(&disk, 3).await, "it started");
    assert!(disk.exists(name).expect("listed"));
}

#[tokio::test]
async fn a_missing_manifest_is_named_and_its_segments_stay() {
    let disk = used_disk().await;
    let segments = disk.list(Path::new("/data/shards/1/segments")).expect("segments");
    assert!(!segments.is_empty());
    let (manifest, elsewhere) = (Path::new("/data/shards/1/manifest"), Path::new("/data/elsewhere"));
    disk.rename(manifest, elsewhere).expect("renamed");
    assert_eq!(refusal(&disk, 1).await, "file \"shards/1/manifest\" is missing");
    assert_eq!(disk.list(Path::new("/data/shards/1/segments")).expect("segments"), segments);
    disk.rename(elsewhere, manifest).expect("renamed");
    let node = start(&disk).await;
    node.shutdown().await;
}

#[tokio::test]
async fn a_manifest_older_than_the_log_is_refused_and_its_segments_stay() {
    let disk = used_disk().await;
    let (manifest, old) = (Path::new("/data/shards/1/manifest"), Path::new("/data/old"));
    let file = disk.open(manifest).expect("opens");
    let mut bytes = vec![0; usize::try_from(file.len().expect("length")).expect("small")];
    file.read_at(&mut bytes, 0).expect("read");
    disk.create(old).expect("created").write_at(&bytes, 0).expect("written");
    let node = start(&disk).await;
    let before = node.shards()[0].status().purged;
    shard(&node).append(vec![part(0, 0..1_000)]).await.expect("appended");
    let mut seals = shard(&node).partitions().subscribe_applied();
    for core in node.cores() {
        core.seal().await.expect("sealed");
    }
    while node.shards()[0].status().purged == before {
        shard(&node).append(vec![part(0, [1])]).await.expect("appended");
        seals.changed().await.expect("runs");
    }
    node.shutdown().await;
    drop(node);
    let segments = disk.list(Path::new("/data/shards/1/segments")).expect("segments");
    disk.rename(old, manifest).expect("renamed");
    let refused = refusal(&disk, 1).await;
    assert!(refused.contains("shards/1/manifest\" is damaged") && refused.contains("older than the log"), "{refused}");
    assert_eq!(disk.list(Path::new("/data/shards/1/segments")).expect("segments"), segments);
}

#[tokio::test]
async fn shards_are_not_left_out() {
    let disk = used_disk().await;
    assert_eq!(refusal(&disk, 3).await, "it started");
    assert!(refusal(&disk, 1).await.contains("--shards 3"));
}

#[tokio::test]
async fn a_cut_or_foreign_file_of_the_log_is_damage() {
    let disk = used_disk().await;
    let last = disk.list(Path::new("/data/wal")).expect("files").pop().expect("a file");
    let path = Path::new("/data/wal").join(&last.name);
    let file = disk.open(&path).expect("opens");
    let len = file.len().expect("length");
    file.set_len(len / 2).expect("cut");
    assert!(refusal(&disk, 1).await.contains(&format!("\"{}\" is damaged at byte {}", last.name, len / 2)));
    file.set_len(len).expect("grown");
    disk.rename(&path, &Path::new("/data/wal").join("00000000000000000099.wal")).expect("renamed");
    assert!(refusal(&disk, 1).await.contains("it is another file of a log"));
}
