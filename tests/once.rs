//! Consume, transform, produce exactly once with the drivers people use: each is killed, and so is the server under it.
//!
//! The clients are in `tests/clients`; what is not installed is left out, and the test says so. `TEST_PYTHON` names a
//! Python that can import psycopg and asyncpg; `TEST_JDBC` pgjdbc's jar; `TEST_NODE_MODULES` a directory with pg and
//! pg-cursor. Rounds: two, or `MILLSTREAM_CRASH_ROUNDS`.

use crate::churn::{Seeded, ask, scalar};
use crate::clients::is_there;
use crate::common::{DEADLINE, connect};
use crate::crash::Process;
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Instant;
use tokio_postgres::Client;

const EVENTS_A_ROUND: u64 = 600;

/// Starts a client of `driver`.
fn start(driver: &str, address: SocketAddr) -> Child {
    let clients = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/clients");
    let mut command = match driver {
        "psycopg" | "asyncpg" => {
            let mut command = Command::new(python());
            command.arg(clients.join(format!("once_{driver}.py")));
            command
        }
        "jdbc" => {
            let mut command = Command::new("java");
            command.args(["-Xmx64m", "-XX:TieredStopAtLevel=1", "-cp"]).arg(std::env::var("TEST_JDBC").unwrap());
            command.arg(clients.join("Once.java"));
            command
        }
        _ => {
            let mut command = Command::new("node");
            command.arg(clients.join("once_pg.js")).env("NODE_PATH", std::env::var("TEST_NODE_MODULES").unwrap());
            command
        }
    };
    let (host, port) = (address.ip().to_string(), address.port().to_string());
    command.env("SERVER", format!("host={host} port={port} user=tester dbname=millstream"));
    command.env("SERVER_HOST", host).env("SERVER_PORT", port).stdin(Stdio::null()).stdout(Stdio::null());
    command.stderr(Stdio::null()).spawn().unwrap()
}

fn python() -> String {
    std::env::var("TEST_PYTHON").unwrap_or_else(|_| "python3".to_owned())
}

/// Why a driver cannot be used here.
fn missing(driver: &str) -> Option<String> {
    let named = |variable: &str, has: &dyn Fn(&Path) -> bool| {
        let is_there = std::env::var(variable).is_ok_and(|path| has(Path::new(&path)));
        (!is_there).then(|| format!("{variable} does not name it"))
    };
    match driver {
        "psycopg" | "asyncpg" => {
            let import = format!("import {driver}");
            (!is_there(&python(), &["-c", &import])).then(|| format!("{} cannot import it", python()))
        }
        "jdbc" if !is_there("java", &["--version"]) => Some("java is not installed".to_owned()),
        "jdbc" => named("TEST_JDBC", &Path::is_file),
        _ if !is_there("node", &["--version"]) => Some("node is not installed".to_owned()),
        _ => named("TEST_NODE_MODULES", &|modules| modules.join("pg-cursor").is_dir()),
    }
}

struct Clients {
    driver: &'static str,
    address: SocketAddr,
    children: Vec<Child>,
}

impl Clients {
    fn start(driver: &'static str, address: SocketAddr) -> Self {
        Self { driver, address, children: (0..2).map(|_| start(driver, address)).collect() }
    }

    /// Kills one of them, and starts another.
    fn kill_one(&mut self, which: usize) {
        let mut killed = std::mem::replace(&mut self.children[which], start(self.driver, self.address));
        killed.kill().unwrap();
        killed.wait().unwrap();
    }

    /// Starts again those that have ended.
    fn revive(&mut self) {
        for child in &mut self.children {
            if child.try_wait().unwrap().is_some() {
                *child = start(self.driver, self.address);
            }
        }
    }
}

impl Drop for Clients {
    fn drop(&mut self) {
        for child in &mut self.children {
            drop(child.kill());
            drop(child.wait());
        }
    }
}

async fn count(client: &Client, what: &str, driver: &str) -> u64 {
    scalar(client, &format!("SELECT {what} FROM output WHERE driver = '{driver}'")).await.unwrap().parse().unwrap()
}

async fn once(driver: &'static str) {
    if let Some(why) = missing(driver) {
        println!("skipped: {driver}: {why}");
        return;
    }
    let rounds = std::env::var("MILLSTREAM_CRASH_ROUNDS").ok().map_or(2, |text| text.parse().unwrap());
    let (dir, mut seeded) = (tempfile::tempdir().unwrap(), Seeded(driver.len() as u64));
    for round in 0..rounds {
        let process = Process::start_with(dir.path(), &["--shards", "2"]);
        let client = connect(process.address).await;
        if round == 0 {
            let input = "CREATE STREAM input (k integer KEY, n bigint) WITH (partitions = 4)";
            ask(&client, &format!("{input}; CREATE STREAM output (n bigint, m bigint, driver text)")).await.unwrap();
        }
        let (first, all) = (round * EVENTS_A_ROUND, (round + 1) * EVENTS_A_ROUND);
        let feed = format!("INSERT INTO input SELECT n, n FROM generate_series({first}, {}) AS n", all - 1);
        ask(&client, &feed).await.unwrap();
        let mut clients = Clients::start(driver, process.address);
        // A client is killed twice in a round, at any moment; the server at the end of each, before all is done but in the last.
        let mut kills: Vec<u64> = (0..2).map(|_| first + 1 + seeded.below(EVENTS_A_ROUND - 200)).collect();
        kills.sort_unstable();
        let enough = if round + 1 == rounds { all } else { all - 100 };
        let (begun, mut done) = (Instant::now(), 0);
        while done < enough {
            assert!(begun.elapsed() < 4 * DEADLINE, "{driver}: {done} of {enough} in round {round}");
            done = count(&client, "count(*)", driver).await;
            if kills.first().is_some_and(|at| *at <= done) {
                kills.remove(0);
                clients.kill_one(usize::try_from(seeded.below(2)).unwrap());
            }
            clients.revive();
        }
        assert_eq!(count(&client, "count(*) - count(DISTINCT n)", driver).await, 0, "{driver}: moved twice");
        process.kill();
    }
    let process = Process::start_with(dir.path(), &["--shards", "2"]);
    let client = connect(process.address).await;
    let all = rounds * EVENTS_A_ROUND;
    for what in ["count(*)", "count(DISTINCT n)", "count(*) FILTER (WHERE m = 2 * n)", "max(n) + 1"] {
        assert_eq!(count(&client, what, driver).await, all, "{driver}: {what}");
    }
    let lag = "SELECT sum(lag) FROM millstream.consumer_group_offsets WHERE group_name = 'once'";
    assert_eq!(scalar(&client, lag).await.as_deref(), Some("0"), "{driver}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn psycopg_moves_each_event_once() {
    once("psycopg").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn asyncpg_moves_each_event_once() {
    once("asyncpg").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn jdbc_moves_each_event_once() {
    once("jdbc").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn node_postgres_moves_each_event_once() {
    once("node-postgres").await;
}
