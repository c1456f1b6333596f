//! A data directory that is damaged while no server runs, and a disk that is full: what is hit says so, everything else
//! answers.

use crate::common::{config, connect, words};
use millstream::config::Config;
use millstream::node::Node;
use millstream_catalog::model::ByteSize;
use std::path::{Path, PathBuf};
use tokio_postgres::{Client, SimpleQueryMessage};

/// A configuration whose shards seal early.
pub(crate) fn sealing(dir: &Path) -> Config {
    Config { seal_bytes: ByteSize::new(64 << 10), ..config(dir) }
}

/// The text of a query's rows, `|` between columns.
pub(crate) async fn rows(client: &Client, sql: &str) -> Result<Vec<String>, String> {
    let messages = client.simple_query(sql).await.map_err(|error| words(&error))?;
    let row = |message| match message {
        SimpleQueryMessage::Row(row) => {
            Some((0..row.len()).map(|i| row.get(i).unwrap_or("null")).collect::<Vec<_>>().join("|"))
        }
        _ => None,
    };
    Ok(messages.into_iter().filter_map(row).collect())
}

/// Two topics of several segments each, and rows that are only in the log. Stopped in order.
pub(crate) async fn filled(dir: &Path) -> Config {
    let config = sealing(dir);
    let node = Node::start(&config).await.unwrap();
    let client = connect(node.pg_address()).await;
    rows(&client, "CREATE STREAM a (k integer KEY, v text) WITH (partitions = 2); CREATE STREAM b (v text)")
        .await
        .unwrap();
    for part in 0..4 {
        let (from, to) = (part * 1000, part * 1000 + 999);
        let text = "repeat(md5(i::text), 2)";
        for sql in [
            format!("INSERT INTO a SELECT i, {text} FROM generate_series({from}, {to}) AS t(i)"),
            format!("INSERT INTO b SELECT {text} FROM generate_series({from}, {to}) AS t(i)"),
        ] {
            rows(&client, &sql).await.unwrap();
        }
    }
    rows(&client, "INSERT INTO a VALUES (1, 'last'); INSERT INTO b VALUES ('last')").await.unwrap();
    drop(client);
    node.stop().await;
    config
}

/// The files of a directory and those below, sorted.
pub(crate) fn files(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() { found.extend(files(&path)) } else { found.push(path) }
    }
    found.sort();
    found
}

/// The segments of topic `topic`, by offset.
pub(crate) fn segments(config: &Config, topic: u64, partition: u32) -> Vec<PathBuf> {
    let begin = format!("t{topic}-p{partition}-");
    let is_one = |path: &PathBuf| path.file_name().unwrap().to_string_lossy().starts_with(&begin);
    files(&config.data_dir).into_iter().filter(is_one).collect()
}

pub(crate) fn flip(path: &Path, position: usize, bit: u8) {
    let mut bytes = std::fs::read(path).unwrap();
    bytes[position] ^= 1 << bit;
    std::fs::write(path, bytes).unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_damaged_segment_fails_reads_of_its_rows_and_nothing_else() {
    let dir = tempfile::tempdir().unwrap();
    let config = filled(dir.path()).await;
    let damaged = segments(&config, 1, 0);
    assert!(damaged.len() > 1, "{damaged:?}");
    let length = std::fs::metadata(&damaged[0]).unwrap().len() as usize;
    // A row, the footer, and the whole file.
    for attempt in 0..3 {
        match attempt {
            0 => flip(&damaged[0], length / 3, 5),
            1 => flip(&damaged[0], length - 40, 1),
            _ => std::fs::remove_file(&damaged[0]).unwrap(),
        }
        let node = Node::start(&config).await.unwrap();
        let client = connect(node.pg_address()).await;
        let error = rows(&client, "SELECT count(v) FROM a").await.unwrap_err();
        assert!(
            error.starts_with("XX001: offsets 0 to ") && error.ends_with("of \"a\", partition 0 are damaged"),
            "{error}"
        );
        let sql = "SELECT min(rowoffset) FROM a WHERE rowpartition = 0 AND rowoffset >= 1800 AND v IS NOT NULL";
        assert_eq!(rows(&client, sql).await.unwrap(), ["1800"]);
        let sql = "SELECT count(v) > 1000 FROM a WHERE rowpartition = 1";
        assert_eq!(rows(&client, sql).await.unwrap(), ["t"]);
        assert_eq!(rows(&client, "SELECT count(v) FROM b").await.unwrap(), [format!("{}", 4001 + attempt)]);
        rows(&client, "INSERT INTO b VALUES ('more'); INSERT INTO a VALUES (7, 'more')").await.unwrap();
        if attempt > 0 {
            let sql = "SELECT topic, partition, offset_start FROM millstream.segments WHERE damage IS NOT NULL";
            assert_eq!(rows(&client, sql).await.unwrap(), ["a|0|0"]);
        }
        drop(client);
        node.stop().await;
    }
}

/// A small file system, taken away when dropped.
struct SmallDisk(PathBuf);

impl SmallDisk {
    /// `None` where this process may not mount one.
    fn mount(dir: PathBuf, size: &str) -> Option<Self> {
        std::fs::create_dir(&dir).unwrap();
        let options = format!("size={size}");
        let mounted =
            std::process::Command::new("mount").args(["-t", "tmpfs", "-o", &options, "tmpfs"]).arg(&dir).status();
        mounted.is_ok_and(|status| status.success()).then_some(Self(dir))
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        drop(std::process::Command::new("umount").arg("-l").arg(&self.0).status());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_file_system_refuses_writers_not_readers_and_passes() {
    let dir = tempfile::tempdir().unwrap();
    let Some(disk) = SmallDisk::mount(dir.path().join("small"), "256m") else {
        eprintln!("skipped: a file system can be mounted by root only");
        return;
    };
    let ballast = disk.0.join("ballast");
    std::fs::write(&ballast, vec![1; 96 << 20]).unwrap();
    let config = Config { seal_bytes: ByteSize::new(8 << 20), ..config(&disk.0) };
    let node = Node::start(&config).await.unwrap();
    let client = connect(node.pg_address()).await;
    rows(&client, "CREATE STREAM s (v text)").await.unwrap();
    let insert = "INSERT INTO s SELECT repeat(md5(i::text), 16000) FROM generate_series(1, 4) AS t(i)";
    let mut stored = 0;
    let refused = loop {
        match rows(&client, insert).await {
            Ok(_) => stored += 4,
            Err(error) => break error,
        }
        assert!(stored < 1_000, "the disk never filled");
    };
    assert!(refused.starts_with("53100: "), "{refused}");
    assert_eq!(rows(&client, "SELECT count(v) FROM s").await.unwrap(), [stored.to_string()]);
    // Less than a file of the log is enough to go on, then all.
    for freed in [24, 96] {
        std::fs::File::options().write(true).open(&ballast).unwrap().set_len((96 - freed) << 20).unwrap();
        let goes_on = async {
            while rows(&client, insert).await.is_err() {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(crate::common::DEADLINE, goes_on).await.expect("there is space again");
        stored += 4;
    }
    drop(client);
    node.stop().await;
    drop(node);
    let node = Node::start(&config).await.unwrap();
    let client = connect(node.pg_address()).await;
    assert_eq!(rows(&client, "SELECT count(v) FROM s").await.unwrap(), [stored.to_string()]);
    drop(client);
    node.stop().await;
}
