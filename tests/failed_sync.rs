//! Real processes that must stop, or not start: the disk refuses a sync, or a later version wrote the data directory. Each
//! says why, and ends with status 1.
//!
//! The refusal is a library loaded before the system's: once a file is there, `fdatasync` fails as on a broken disk.

use crate::common::{DEADLINE, connect, words};
use std::fs::{self, File};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Instant;

const SHIM: &str = r#"
#define _GNU_SOURCE
#include <errno.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <unistd.h>
int fdatasync(int fd) {
    const char *broken = getenv("BROKEN_WHEN");
    if (broken && access(broken, F_OK) == 0) {
        errno = EIO;
        return -1;
    }
    return (int)syscall(SYS_fdatasync, fd);
}
"#;

/// The library, compiled by the compiler that links this test.
fn shim(dir: &Path) -> PathBuf {
    let (source, library) = (dir.join("shim.c"), dir.join("shim.so"));
    fs::write(&source, SHIM).unwrap();
    let status = Command::new("cc").args(["-shared", "-fPIC", "-o"]).arg(&library).arg(&source).status().unwrap();
    assert!(status.success());
    library
}

/// A server whose words go to a file.
struct Spoken {
    child: Child,
    file: PathBuf,
}

impl Spoken {
    fn spawn(dir: &Path, options: impl FnOnce(&mut Command)) -> Self {
        let file = dir.join("said");
        let mut command = Command::new(env!("CARGO_BIN_EXE_millstream"));
        command.args(["start", "--listen", "127.0.0.1:0", "--admin-listen", "127.0.0.1:0", "--data-dir"]);
        command.arg(dir.join("data")).stdin(Stdio::null()).stdout(Stdio::null());
        command.stderr(File::create(&file).unwrap());
        options(&mut command);
        Self { child: command.spawn().unwrap(), file }
    }

    fn said(&self) -> String {
        fs::read_to_string(&self.file).unwrap()
    }

    async fn address(&self) -> SocketAddr {
        let begun = Instant::now();
        loop {
            let said = self.said();
            let words: Vec<&str> = said.split_whitespace().collect();
            if let Some(at) = words.iter().position(|word| *word == "psql").filter(|at| words.len() > at + 4) {
                return format!("{}:{}", words[at + 2], words[at + 4]).parse().unwrap();
            }
            assert!(begun.elapsed() < DEADLINE, "not ready: {said}");
            tokio::task::yield_now().await;
        }
    }

    /// Waits until it has ended by itself: its status and what it said.
    async fn end(mut self) -> (Option<i32>, String) {
        let begun = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return (status.code(), self.said());
            }
            assert!(begun.elapsed() < DEADLINE, "it goes on: {}", self.said());
            tokio::task::yield_now().await;
        }
    }
}

impl Drop for Spoken {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

async fn count(dir: &Path) -> i64 {
    let server = Spoken::spawn(dir, |_| {});
    let client = connect(server.address().await).await;
    client.query_one("SELECT count(*) FROM s", &[]).await.unwrap().get(0)
}

#[tokio::test]
async fn a_sync_that_the_disk_refuses_stops_the_process_in_words_and_costs_nothing_synced() {
    let dir = tempfile::tempdir().unwrap();
    let (library, broken) = (shim(dir.path()), dir.path().join("broken"));
    let start = || {
        Spoken::spawn(dir.path(), |command| {
            command.env("LD_PRELOAD", &library).env("BROKEN_WHEN", &broken);
        })
    };
    for (statement, is_answered) in [
        ("INSERT INTO s VALUES (3)", false),
        // Answered before the sync, which nobody waits for.
        ("SET durability = 'async'; INSERT INTO s VALUES (3)", true),
    ] {
        let server = start();
        let client = connect(server.address().await).await;
        client.batch_execute("CREATE STREAM IF NOT EXISTS s (v integer); TRUNCATE s").await.unwrap();
        client.batch_execute("INSERT INTO s VALUES (1); INSERT INTO s VALUES (2)").await.unwrap();
        fs::write(&broken, "").unwrap();
        let mut answers = Ok(());
        for part in statement.split("; ") {
            answers = client.batch_execute(part).await;
        }
        assert_eq!(answers.is_ok(), is_answered, "{statement}: {:?}", answers.map_err(|error| words(&error)));
        let (code, said) = server.end().await;
        assert_eq!(code, Some(1), "{said}");
        assert!(said.contains("the log cannot be written"), "{said}");
        assert!(said.contains("Input/output error"), "{said}");
        fs::remove_file(&broken).unwrap();
        // The system may have the last one or not.
        assert!((2..=3).contains(&count(dir.path()).await));
    }
}

/// Raises the version of the newest file of the log, as a later program would have written it.
fn raise_log(data: &Path) {
    let files = fs::read_dir(data.join("wal")).unwrap().map(|entry| entry.unwrap().path());
    let newest = files.filter(|path| path.extension().is_some_and(|end| end == "wal")).max().unwrap();
    let mut bytes = fs::read(&newest).unwrap();
    bytes[8] = 99;
    let crc = crc32c::crc32c(&bytes[..60]);
    bytes[60..64].copy_from_slice(&crc.to_le_bytes());
    fs::write(&newest, bytes).unwrap();
}

/// The same of what the directory says of itself.
fn raise_node(data: &Path) {
    let text = fs::read_to_string(data.join("node")).unwrap();
    fs::write(data.join("node"), text.replacen("millstream 1", "millstream 99", 1)).unwrap();
}

/// The same of the manifest of a shard.
fn raise_manifest(data: &Path) {
    let file = data.join("shards/1/manifest");
    let mut bytes = fs::read(&file).unwrap();
    bytes[8..12].copy_from_slice(&99_u32.to_le_bytes());
    let crc = crc32c::crc32c_append(crc32c::crc32c(&bytes[..12]), &bytes[16..]);
    bytes[12..16].copy_from_slice(&crc.to_le_bytes());
    fs::write(&file, bytes).unwrap();
}

#[tokio::test]
async fn a_data_directory_of_a_later_version_is_refused_in_words_and_left_alone() {
    let raises: [fn(&Path); 3] = [raise_log, raise_node, raise_manifest];
    for raise in raises {
        let dir = tempfile::tempdir().unwrap();
        let server = Spoken::spawn(dir.path(), |command| {
            command.args(["--seal-bytes", "65536"]);
        });
        let client = connect(server.address().await).await;
        client.batch_execute("CREATE STREAM s (v text)").await.unwrap();
        let insert = "INSERT INTO s SELECT repeat('x', 1000) FROM generate_series(1, 200)";
        client.batch_execute(insert).await.unwrap();
        let data = dir.path().join("data");
        let begun = Instant::now();
        while !data.join("shards/1/manifest").exists() {
            assert!(begun.elapsed() < DEADLINE, "nothing was sealed");
            tokio::task::yield_now().await;
        }
        drop(server);
        raise(&data);
        let (code, said) = Spoken::spawn(dir.path(), |_| {}).end().await;
        assert_eq!(code, Some(1), "{said}");
        assert!(said.contains("version 99"), "{said}");
        assert!(said.contains("this binary reads up to"), "{said}");
        let segments = fs::read_dir(data.join("shards/1/segments")).unwrap().count();
        assert!(segments > 0, "its files are not touched");
    }
}
