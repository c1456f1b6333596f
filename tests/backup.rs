//! Backups of a node that is written to, and what they give when restored.

use crate::common::{DEADLINE, connect};
use crate::damage::{filled, flip, rows, sealing, segments};
use millstream::node::Node;
use millstream::offline::backup::{Copied, backup, restore};
use millstream::offline::check::check;
use millstream::storage::RealDisk;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

const WRITERS: usize = 2;

async fn write(address: std::net::SocketAddr, writer: usize, acknowledged: Arc<AtomicU64>, stop: Arc<AtomicBool>) {
    let client = connect(address).await;
    for round in 0.. {
        if stop.load(Ordering::Relaxed) {
            return;
        }
        // Some large, so that segments are written all the time.
        let (first, count) = (acknowledged.load(Ordering::Relaxed) + 1, if round % 8 == 0 { 400 } else { 3 });
        let last = first + count - 1;
        let numbers = format!("generate_series({first}, {last}) AS t(i)");
        client
            .batch_execute(&format!("INSERT INTO a SELECT {writer}, i, repeat(md5(i::text), 4) FROM {numbers}"))
            .await
            .unwrap();
        acknowledged.store(last, Ordering::Relaxed);
    }
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    tokio::task::spawn_blocking(work).await.unwrap()
}

pub(crate) async fn take(data: PathBuf, to: PathBuf, base: Option<PathBuf>) -> Copied {
    blocking(move || backup(Arc::new(RealDisk), &data, &to, base.as_deref()).unwrap()).await
}

/// Each writer's rows in the node on `dir` are 1 to n without a hole; gives n.
async fn written(dir: &Path) -> Vec<u64> {
    let mut config = sealing(dir);
    config.data_dir = dir.to_owned();
    config.shards = 2;
    let node = Node::start(&config).await.unwrap();
    let client = connect(node.pg_address()).await;
    let mut found = Vec::new();
    for writer in 0..WRITERS {
        let sql = format!("SELECT count(*), coalesce(max(n), 0), count(DISTINCT n) FROM a WHERE writer = {writer}");
        let row = rows(&client, &sql).await.unwrap().remove(0);
        let numbers: Vec<u64> = row.split('|').map(|number| number.parse().unwrap()).collect();
        assert!(numbers.iter().all(|number| *number == numbers[0]), "writer {writer}: {row}");
        found.push(numbers[0]);
    }
    drop(client);
    node.stop().await;
    found
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn backups_of_a_busy_node_have_what_was_acknowledged_and_no_half_statement() {
    let dir = tempfile::tempdir().unwrap();
    let mut config = sealing(dir.path());
    config.shards = 2;
    let node = Node::start(&config).await.unwrap();
    let client = connect(node.pg_address()).await;
    rows(&client, "CREATE STREAM a (writer integer KEY, n bigint, v text) WITH (partitions = 2)").await.unwrap();
    let acknowledged: Vec<Arc<AtomicU64>> = (0..WRITERS).map(|_| Arc::default()).collect();
    let stop = Arc::new(AtomicBool::new(false));
    let address = node.pg_address();
    let writers: Vec<_> = acknowledged
        .iter()
        .enumerate()
        .map(|(writer, told)| tokio::spawn(write(address, writer, Arc::clone(told), Arc::clone(&stop))))
        .collect();
    let told = || acknowledged.iter().map(|told| told.load(Ordering::Relaxed)).collect::<Vec<_>>();
    let (mut base, mut linked) = (None, 0);
    for round in 0..4 {
        let goal = told().iter().sum::<u64>() + 900;
        let reached = async {
            while told().iter().sum::<u64>() < goal {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(DEADLINE, reached).await.expect("the writers get on");
        let before = told();
        let to = dir.path().join(format!("backup-{round}"));
        let copied = take(config.data_dir.clone(), to.clone(), base.clone()).await;
        assert!(copied.report.is_clean(), "{}", copied.report);
        linked += copied.linked;
        let after = told();
        let restored = dir.path().join(format!("restored-{round}"));
        let (from, data) = (to.clone(), restored.clone());
        let copied = blocking(move || restore(Arc::new(RealDisk), &from, &data).unwrap()).await;
        assert!(copied.report.is_clean(), "{}", copied.report);
        for (writer, found) in written(&restored).await.into_iter().enumerate() {
            // One statement per writer may be on its way.
            let range = before[writer]..=after[writer] + 400;
            assert!(range.contains(&found), "round {round}, writer {writer}: {found} is not in {range:?}");
        }
        assert!(!config.data_dir.join("backup").exists(), "what was pinned is let go");
        base = Some(to);
    }
    // Between two of them all segments may have been merged, but hardly between all.
    assert!(linked > 0, "nothing was taken from a backup before");
    stop.store(true, Ordering::Relaxed);
    for writer in writers {
        writer.await.unwrap();
    }
    drop(client);
    node.stop().await;
    assert!(check(Arc::new(RealDisk), &config.data_dir).unwrap().is_clean());
    assert_eq!(written(&config.data_dir).await, told());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn restoring_refuses_what_is_there_and_what_is_damaged() {
    let dir = tempfile::tempdir().unwrap();
    let config = filled(dir.path()).await;
    let to = dir.path().join("backup");
    let copied = take(config.data_dir.clone(), to.clone(), None).await;
    assert!(copied.report.is_clean(), "{}", copied.report);
    let disk = || Arc::new(RealDisk);
    let error = backup(disk(), &config.data_dir, &to, None).unwrap_err().to_string();
    assert!(error.ends_with("is not empty"), "{error}");
    let error = restore(disk(), &to, &config.data_dir).unwrap_err().to_string();
    assert!(error.ends_with("is not empty"), "{error}");
    let mut copy = config.clone();
    copy.data_dir = to.clone();
    flip(&segments(&copy, 1, 0)[0], 2_000, 3);
    let error = restore(disk(), &to, &dir.path().join("new")).unwrap_err().to_string();
    assert!(error.contains("the backup is damaged") && error.contains("topic \"a\", partition 0"), "{error}");
    // A copy that was not finished is no data directory, and no repair makes it one.
    std::fs::write(to.join("node"), "unfinished\n").unwrap();
    let report = check(disk(), &to).unwrap();
    assert!(report.to_string().contains("was not finished"), "{report}");
    let error = Node::start(&copy).await.unwrap_err().to_string();
    assert!(error.contains("was not finished"), "{error}");
}
