//! Consume, transform, produce by transactions of members that roll back, die, and lose their server: each input once.
//!
//! Workers move numbered events from a topic of several partitions to another, which is in another shard. Nothing they
//! believe is used to check: the output is compared with the input once the group's lag is zero.
//! Rounds: three, or `MILLSTREAM_CRASH_ROUNDS=50 cargo test --test main exactly_once`.

use crate::churn::{Seeded, ask, scalar};
use crate::common::{DEADLINE, words};
use crate::crash::Process;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};
use tokio_postgres::{Client, Error, NoTls, SimpleQueryMessage};

const WORKERS: u64 = 8;
const EVENTS_A_ROUND: u64 = 3_000;

/// What workers did, to show that it was done at all.
#[derive(Debug, Default)]
struct Done {
    commits: AtomicU64,
    rollbacks: AtomicU64,
    partial: AtomicU64,
    cuts: AtomicU64,
    refused: parking_lot::Mutex<BTreeMap<String, u64>>,
}

fn numbers(messages: &[SimpleQueryMessage]) -> Vec<i64> {
    let row = |message: &SimpleQueryMessage| match message {
        SimpleQueryMessage::Row(row) => Some(row.get(0).unwrap().parse().unwrap()),
        _ => None,
    };
    messages.iter().filter_map(row).collect()
}

fn put(worker: u64, numbers: &[i64]) -> String {
    let rows: Vec<String> = numbers.iter().map(|n| format!("({n}, {worker}, {})", n * 2)).collect();
    // Two outputs: the second is in the shard of the input.
    format!("INSERT INTO doubled VALUES {0}; INSERT INTO nearby VALUES {0}", rows.join(", "))
}

async fn fetch(client: &Client, seeded: &mut Seeded) -> Result<Vec<i64>, Error> {
    let (count, wait) = (1 + seeded.below(60), 1 + seeded.below(40));
    Ok(numbers(&ask(client, &format!("FETCH {count} FROM c WITH (timeout = '{wait}ms')")).await?))
}

/// Goes on with what a savepoint leaves; returns the rows that count.
async fn with_savepoint(client: &Client, seeded: &mut Seeded, worker: u64, done: &Done) -> Result<(), Error> {
    ask(client, "SAVEPOINT half").await?;
    let gone = fetch(client, seeded).await?;
    if !gone.is_empty() {
        ask(client, &put(worker, &gone)).await?;
    }
    ask(client, "ROLLBACK TO half").await?;
    done.partial.fetch_add(1, Ordering::Relaxed);
    if seeded.below(2) == 0 {
        let rows = fetch(client, seeded).await?;
        if !rows.is_empty() {
            ask(client, &put(worker, &rows)).await?;
        }
    }
    Ok(())
}

/// One connection: transactions until it ends itself or is ended.
async fn work(address: SocketAddr, worker: u64, seeded: &mut Seeded, done: &Done) -> Result<(), Error> {
    let mut config = tokio_postgres::Config::new();
    config.host(address.ip().to_string()).port(address.port()).user("worker").dbname("millstream");
    let (client, connection) = config.connect(NoTls).await?;
    let connection = tokio::spawn(connection);
    let commit = match seeded.below(4) {
        0 => "auto_commit = false",
        1 => "auto_commit_interval = '20ms'",
        2 => "auto_commit_interval = '1 hour'",
        _ => "auto_commit = true",
    };
    ask(
        &client,
        &format!(
            "DECLARE c CURSOR WITH HOLD FOR SELECT n FROM input
             EMIT CHANGES WITH (group = 'move', auto_offset_reset = 'earliest', {commit})"
        ),
    )
    .await?;
    for _ in 0..3 + seeded.below(20) {
        ask(&client, "BEGIN").await?;
        let rows = fetch(&client, seeded).await?;
        if !rows.is_empty() {
            ask(&client, &put(worker, &rows)).await?;
        }
        if seeded.below(4) == 0 {
            with_savepoint(&client, seeded, worker, done).await?;
        }
        match seeded.below(12) {
            0 | 1 => {
                ask(&client, "ROLLBACK").await?;
                done.rollbacks.fetch_add(1, Ordering::Relaxed);
            }
            2 => {
                done.cuts.fetch_add(1, Ordering::Relaxed);
                // Cut: before COMMIT is sent, or while it is on its way.
                if seeded.below(2) == 0 {
                    let commit = client.simple_query("COMMIT");
                    drop(tokio::time::timeout(Duration::from_micros(seeded.below(3_000)), commit).await);
                }
                connection.abort();
                return Ok(());
            }
            _ => match ask(&client, "COMMIT").await {
                Ok(_) => drop(done.commits.fetch_add(1, Ordering::Relaxed)),
                Err(error) if error.as_db_error().is_some() => {
                    *done.refused.lock().entry(words(&error)).or_default() += 1;
                    ask(&client, "ROLLBACK").await?;
                }
                Err(error) => return Err(error),
            },
        }
    }
    if seeded.below(2) == 0 { ask(&client, "CLOSE c").await.map(drop) } else { Ok(()) }
}

/// Works until the server is gone for good: nobody listens where it was.
async fn worker(address: SocketAddr, worker: u64, round: u64, done: Arc<Done>) {
    let mut seeded = Seeded(31 * round + worker);
    loop {
        match work(address, worker, &mut seeded, &done).await {
            Ok(()) => {}
            Err(error) if error.as_db_error().is_some() => panic!("worker {worker}: {error:?}"),
            Err(_) if tokio::net::TcpStream::connect(address).await.is_err() => return,
            Err(_) => {}
        }
    }
}

async fn feed(client: &Client, first: u64) {
    for from in (first..first + EVENTS_A_ROUND).step_by(500) {
        let insert = format!("INSERT INTO input SELECT n, n FROM generate_series({from}, {}) AS n", from + 499);
        ask(client, &insert).await.unwrap();
    }
}

async fn check(client: &Client, output: &str) {
    let twice = format!("SELECT count(*) - count(DISTINCT n) FROM {output}");
    assert_eq!(scalar(client, &twice).await.as_deref(), Some("0"), "{output}: events that were moved twice");
    let strange = format!("SELECT count(*) FROM {output} WHERE m <> 2 * n");
    assert_eq!(scalar(client, &strange).await.as_deref(), Some("0"), "{output}");
}

fn rounds() -> u64 {
    std::env::var("MILLSTREAM_CRASH_ROUNDS").ok().map_or(3, |text| text.parse().unwrap())
}

async fn lag(client: &Client) -> Option<u64> {
    let lag = "SELECT sum(lag)::bigint FROM millstream.consumer_group_offsets WHERE group_name = 'move'";
    scalar(client, lag).await.map(|text| text.parse().unwrap())
}

/// Waits until the lag of the group is at most `wanted`.
async fn until_behind(client: &Client, wanted: u64) {
    let begun = Instant::now();
    loop {
        let found = lag(client).await;
        if found.is_some_and(|found| found <= wanted) {
            return;
        }
        assert!(begun.elapsed() < 3 * DEADLINE, "the group is behind by {found:?}, not {wanted}");
        // The lag is asked for again once something else was.
        scalar(client, "SELECT count(*) FROM millstream.consumer_group_members").await;
    }
}

async fn move_through_kills(durability: &str, rounds: u64) {
    let (dir, done) = (tempfile::tempdir().unwrap(), Arc::new(Done::default()));
    let mut seeded = Seeded(4_711);
    for round in 0..=rounds {
        let process = Process::start_with(dir.path(), &["--shards", "3", "--seal-bytes", "65536"]);
        let address = process.address;
        let client = crate::common::connect(address).await;
        if round == 0 {
            for (name, columns, partitions) in [
                ("input", "k integer KEY, n bigint", 5),
                ("doubled", "n bigint KEY, worker integer, m bigint", 2),
                ("elsewhere", "n bigint", 1),
                ("nearby", "n bigint KEY, worker integer, m bigint", 2),
            ] {
                let create = format!(
                    "CREATE STREAM {name} ({columns}) WITH (partitions = {partitions}, durability = '{durability}')"
                );
                ask(&client, &create).await.unwrap();
            }
            let shards = "SELECT count(DISTINCT shard) FROM millstream.topics WHERE name IN ('input', 'doubled')";
            assert_eq!(scalar(&client, shards).await.as_deref(), Some("2"));
            let near = "SELECT count(DISTINCT shard) FROM millstream.topics WHERE name IN ('input', 'nearby')";
            assert_eq!(scalar(&client, near).await.as_deref(), Some("1"));
        }
        check(&client, "doubled").await;
        check(&client, "nearby").await;
        feed(&client, round * EVENTS_A_ROUND).await;
        let workers: Vec<_> =
            (0..WORKERS).map(|number| tokio::spawn(worker(address, number, round, Arc::clone(&done)))).collect();
        match round < rounds {
            true => until_behind(&client, seeded.below(EVENTS_A_ROUND)).await,
            false => until_behind(&client, 0).await,
        }
        if round == rounds {
            let all = (rounds + 1) * EVENTS_A_ROUND;
            for output in ["doubled", "nearby"] {
                check(&client, output).await;
                let count = scalar(&client, &format!("SELECT count(*) FROM {output}")).await;
                assert_eq!(count, Some(all.to_string()), "{output}");
                let missing = format!("SELECT count(*) FROM input WHERE n NOT IN (SELECT n FROM {output})");
                assert_eq!(scalar(&client, &missing).await.as_deref(), Some("0"), "{output}");
            }
        }
        process.kill();
        for worker in workers {
            tokio::time::timeout(2 * DEADLINE, worker).await.expect("a worker sees the end").unwrap();
        }
    }
    println!("{durability}: {done:?}");
    let all = [&done.commits, &done.rollbacks, &done.partial, &done.cuts];
    assert!(all.iter().all(|count| count.load(Ordering::Relaxed) > 0), "{done:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_event_is_moved_once_through_rollbacks_cuts_and_kills() {
    move_through_kills("sync", rounds()).await;
}

/// What the process had acknowledged stays in the system's memory.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_event_is_moved_once_where_events_are_not_synced() {
    move_through_kills("async", rounds().div_ceil(3)).await;
}
