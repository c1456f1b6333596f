//! Limits, tried: 1,000 topics, 10,000 partitions of one, 100,000 on a node, more segments than a process may map, 50 GB
//! of data.
//!
//! They run only when `MILLSTREAM_LIMITS` is set, and print what they took:
//! `MILLSTREAM_LIMITS=1 cargo test -p millstream --test main limits -- --nocapture`.

use crate::common::{config, connect, words};
use millstream::config::Config;
use millstream::node::Node;
use millstream_catalog::model::limit::SEAL_BYTES_MIN;
use std::time::{Duration, Instant};
use tokio_postgres::{Client, SimpleQueryMessage};

/// Topics of one partition, and topics of as many as one may have.
const TOPICS: usize = 1_000;
const LARGE_TOPICS: usize = 10;
const PARTITIONS: usize = 10_000;

async fn value(client: &Client, sql: &str) -> String {
    let messages = client.simple_query(sql).await.unwrap_or_else(|error| panic!("{sql}: {error:?}"));
    let row = messages.iter().find_map(|message| match message {
        SimpleQueryMessage::Row(row) => row.get(0).map(str::to_owned),
        _ => None,
    });
    row.unwrap_or_default()
}

fn say(what: &str, since: Instant) {
    println!("{what}: {:.3} s", since.elapsed().as_secs_f64());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_topics_and_a_hundred_thousand_partitions() {
    if std::env::var_os("MILLSTREAM_LIMITS").is_none() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let mut node = Node::start(&config(dir.path())).await.unwrap();
    let mut client = connect(node.pg_address()).await;
    let begun = Instant::now();
    for number in 0..TOPICS {
        value(&client, &format!("CREATE STREAM s{number} (k integer KEY, v text)")).await;
    }
    say("1,000 topics created", begun);
    for number in 0..LARGE_TOPICS {
        let begun = Instant::now();
        let create = format!("CREATE STREAM large{number} (k integer KEY, v text) WITH (partitions = {PARTITIONS})");
        value(&client, &create).await;
        say("a topic of 10,000 partitions created", begun);
    }
    let begun = Instant::now();
    value(&client, "INSERT INTO large3 SELECT g, 'v' || g FROM generate_series(1, 50000) AS n(g)").await;
    say("50,000 events to 10,000 partitions", begun);
    value(&client, "INSERT INTO s7 VALUES (1, 'one')").await;
    for restart in 0..2 {
        drop(client);
        node.stop().await;
        let begun = Instant::now();
        node = Node::start(&config(dir.path())).await.unwrap();
        say("opened", begun);
        client = connect(node.pg_address()).await;
        assert_eq!(value(&client, "SELECT count(*) FROM millstream.partitions").await, "101000", "restart {restart}");
        let begun = Instant::now();
        assert_eq!(value(&client, "SELECT count(DISTINCT k) FROM large3").await, "50000");
        assert_eq!(value(&client, "SELECT count(DISTINCT rowpartition) > 9000 FROM large3").await, "t");
        say("two scans of 10,000 partitions", begun);
        assert_eq!(value(&client, "SELECT v FROM s7").await, "one");
    }
    let begun = Instant::now();
    for number in 0..LARGE_TOPICS {
        let rows = "SELECT g, 'v' || g FROM generate_series(1, 90000) AS n(g)";
        value(&client, &format!("INSERT INTO large{number} {rows}")).await;
    }
    say("900,000 events to 100,000 partitions", begun);
    drop(client);
    node.stop().await;
    let begun = Instant::now();
    node = Node::start(&Config { seal_bytes: SEAL_BYTES_MIN, ..config(dir.path()) }).await.unwrap();
    client = connect(node.pg_address()).await;
    value(&client, "INSERT INTO s8 SELECT g, repeat('x', 100) FROM generate_series(1, 2000) AS n(g)").await;
    while value(&client, "SELECT count(*) > 90000 FROM millstream.segments").await != "t" {
        tokio::task::yield_now().await;
    }
    say("sealed", begun);
    for _ in 0..2 {
        drop(client);
        node.stop().await;
        let begun = Instant::now();
        node = Node::start(&config(dir.path())).await.unwrap();
        say("opened with a segment in each partition", begun);
        client = connect(node.pg_address()).await;
        let begun = Instant::now();
        assert_eq!(value(&client, "SELECT count(DISTINCT k) FROM large5").await, "90000");
        say("a scan of 10,000 segments", begun);
        let before = cpu_seconds();
        let nothing = std::future::pending::<()>();
        drop(tokio::time::timeout(Duration::from_secs(10), nothing).await);
        println!("idle: {:.1} % of a core", (cpu_seconds() - before) * 10.0);
    }
    let sum = (0..LARGE_TOPICS).map(|number| format!("(SELECT count(v) FROM large{number})")).collect::<Vec<_>>();
    let begun = Instant::now();
    assert_eq!(value(&client, &format!("SELECT {}", sum.join(" + "))).await, "950000");
    say("a scan of 100,000 segments", begun);
    drop(client);
    node.stop().await;
}

/// Seconds of CPU this process has used.
fn cpu_seconds() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap();
    let fields: Vec<&str> = stat.rsplit_once(')').unwrap().1.split_whitespace().collect();
    // In hundredths of a second: user and system time, fields 14 and 15.
    fields[11..13].iter().map(|ticks| ticks.parse::<f64>().unwrap()).sum::<f64>() / 100.0
}

/// As many segments as 50 GB are, each a sparse file of 64 MiB: what its blocks hold is not read when a node opens.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fifty_gigabytes_open_without_being_read() {
    if std::env::var_os("MILLSTREAM_LIMITS").is_none() {
        return;
    }
    const SEGMENTS: u64 = 800;
    let dir = tempfile::tempdir().unwrap();
    let config = Config { seal_bytes: SEAL_BYTES_MIN, ..config(dir.path()) };
    let node = Node::start(&config).await.unwrap();
    let client = connect(node.pg_address()).await;
    value(&client, "CREATE STREAM s (v text KEY) WITH (partitions = 800, compression = 'none')").await;
    // Each topic has its own segments of a seal: one row in each partition, and enough bytes for a seal.
    value(&client, "INSERT INTO s SELECT repeat(md5(g::text), 8) FROM generate_series(1, 80000) AS n(g)").await;
    let count = format!("SELECT count(DISTINCT partition) = {SEGMENTS} FROM millstream.segments");
    while value(&client, &count).await != "t" {
        tokio::task::yield_now().await;
    }
    drop(client);
    node.stop().await;
    let files = crate::damage::files(&config.data_dir.join("shards"));
    let segments: Vec<_> = files.iter().filter(|path| path.extension().is_some_and(|end| end == "arrow")).collect();
    let mut bytes = 0;
    for path in &segments {
        let file = std::fs::OpenOptions::new().write(true).open(path).unwrap();
        file.set_len(64 << 20).unwrap();
        bytes += file.metadata().unwrap().len();
    }
    assert!(bytes > 50_000_000_000, "{bytes}");
    for _ in 0..2 {
        let begun = Instant::now();
        let node = Node::start(&config).await.unwrap();
        say(&format!("{} segments, {bytes} bytes opened", segments.len()), begun);
        let client = connect(node.pg_address()).await;
        assert_eq!(value(&client, "SELECT count(*) FROM s").await, "80000", "the manifest knows");
        // What is not what was written is never read as rows.
        let error = client.simple_query("SELECT count(v) FROM s").await.unwrap_err();
        assert!(words(&error).starts_with("XX001: "), "{}", words(&error));
        drop(client);
        node.stop().await;
    }
}
