//! ALTER and TRUNCATE beside writers, and over restarts with segments of several schemas.

use crate::common::{DEADLINE, config, connect};
use millstream::node::Node;
use millstream_catalog::model::ByteSize;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use tokio_postgres::{Client, SimpleQueryMessage};

async fn start(dir: &Path) -> (Node, Client) {
    let config = millstream::config::Config { seal_bytes: ByteSize::new(64 << 10), ..config(dir) };
    let node = Node::start(&config).await.unwrap();
    let client = connect(node.pg_address()).await;
    (node, client)
}

async fn stop(node: Node, client: Client) {
    drop(client);
    node.stop().await;
}

/// The rows of `sql`, as texts.
async fn rows(client: &Client, sql: &str) -> Vec<String> {
    let answer = tokio::time::timeout(DEADLINE, client.simple_query(sql)).await;
    let messages = answer.unwrap_or_else(|_| panic!("no answer to {sql}")).unwrap_or_else(|e| panic!("{sql}: {e:?}"));
    let row = |message| match message {
        SimpleQueryMessage::Row(row) => {
            Some((0..row.len()).map(|i| row.get(i).unwrap_or("∅").to_owned()).collect::<Vec<_>>().join("|"))
        }
        _ => None,
    };
    messages.into_iter().filter_map(row).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn segments_of_several_schemas_are_read_after_restarts() {
    let dir = tempfile::tempdir().unwrap();
    let (mut node, mut client) = start(dir.path()).await;
    rows(&client, "CREATE STREAM s (k text KEY, v integer) WITH (partitions = 2, compression = 'lz4')").await;
    rows(&client, "CREATE TABLE t (id integer PRIMARY KEY, v text)").await;
    for round in 0..4 {
        rows(&client, "INSERT INTO s (k, v) SELECT 'k' || g, g FROM generate_series(1, 5000) AS n(g)").await;
        rows(&client, "INSERT INTO t (id, v) SELECT g, 'v' || g FROM generate_series(1, 3000) AS n(g)").await;
        rows(&client, &format!("ALTER STREAM s ADD COLUMN c{round} integer NOT NULL DEFAULT {round}")).await;
        rows(&client, &format!("ALTER TABLE t ADD COLUMN c{round} text")).await;
        // In the tail, in the log, and in segments.
        rows(&client, &format!("INSERT INTO s (k, v, c{round}) VALUES ('one', 0, 100)")).await;
        rows(&client, &format!("INSERT INTO t (id, c{round}) VALUES (0, 'x')")).await;
        if round == 2 {
            rows(&client, "TRUNCATE s").await;
            rows(&client, "ALTER STREAM s SET (partitions = 4)").await;
        }
        for _ in 0..2 {
            let events = if round < 2 { (round + 1) * 5001 } else { (round - 2) * 5001 };
            let own = if round == 2 { 0 } else { 1 };
            let read = format!("SELECT count(*), count(*) FILTER (WHERE c{round} = 100), coalesce(max(c0), 0) FROM s");
            let most = if round < 2 { 100 } else { 0 };
            assert_eq!(rows(&client, &read).await, [format!("{events}|{own}|{most}")], "round {round}");
            let filled = format!("SELECT count(*) FROM s WHERE c{round} <> {round}");
            assert_eq!(rows(&client, &filled).await, [own.to_string()]);
            let table = format!("SELECT count(*), count(v), count(c{round}) FROM t");
            assert_eq!(rows(&client, &table).await, ["3001|3000|1"]);
            stop(node, client).await;
            (node, client) = start(dir.path()).await;
        }
    }
    let segments = rows(&client, "SELECT count(*) > 2 FROM millstream.segments WHERE topic = 't'").await;
    assert_eq!(segments, ["t"]);
    stop(node, client).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn writers_beside_alter_lose_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let (node, client) = start(dir.path()).await;
    rows(&client, "CREATE STREAM s (k integer KEY, v bigint)").await;
    rows(&client, "CREATE TABLE sums AS SELECT k, count(*) AS n, sum(v) AS total FROM s GROUP BY k EMIT CHANGES").await;
    let (sent, is_done) = (Arc::new(AtomicI64::new(0)), Arc::new(AtomicBool::new(false)));
    let mut writers = Vec::new();
    for writer in 0..4 {
        let client = connect(node.pg_address()).await;
        let (sent, is_done) = (Arc::clone(&sent), Arc::clone(&is_done));
        writers.push(tokio::spawn(async move {
            let prepared = client.prepare("INSERT INTO s (k, v) VALUES ($1, $2), ($1, 1)").await.unwrap();
            let mut number = 0_i64;
            while !is_done.load(Ordering::Relaxed) {
                number += 1;
                if writer % 2 == 0 {
                    client.execute(&prepared, &[&(number as i32), &number]).await.unwrap();
                } else {
                    let insert = format!("INSERT INTO s (k, v) VALUES ({number}, {number}), ({number}, 1)");
                    client.simple_query(&insert).await.unwrap();
                }
                sent.fetch_add(2, Ordering::Relaxed);
            }
        }));
    }
    for number in 0..12 {
        rows(&client, &format!("ALTER STREAM s ADD COLUMN c{number} text NOT NULL DEFAULT 'd{number}'")).await;
        rows(&client, &format!("ALTER STREAM s SET (partitions = {})", number + 2)).await;
        tokio::task::yield_now().await;
    }
    is_done.store(true, Ordering::Relaxed);
    for writer in writers {
        writer.await.unwrap();
    }
    rows(&client, "FLUSH").await;
    let expected = sent.load(Ordering::Relaxed).to_string();
    let check = async |client: &Client| {
        assert_eq!(rows(client, "SELECT count(*) FROM s").await, [expected.as_str()]);
        assert_eq!(rows(client, "SELECT sum(n) FROM sums").await, [expected.as_str()]);
        let equal = "SELECT (SELECT sum(v) FROM s) = (SELECT sum(total) FROM sums)";
        assert_eq!(rows(client, equal).await, ["t"]);
        for number in [0, 5, 11] {
            let wrong = format!("SELECT count(*) FROM s WHERE c{number} IS DISTINCT FROM 'd{number}'");
            assert_eq!(rows(client, &wrong).await, ["0"]);
        }
    };
    check(&client).await;
    stop(node, client).await;
    let (node, client) = start(dir.path()).await;
    check(&client).await;
    stop(node, client).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn open_cursors_and_subscriptions_keep_to_their_columns() {
    let dir = tempfile::tempdir().unwrap();
    let (node, client) = start(dir.path()).await;
    rows(&client, "CREATE STREAM s (v integer)").await;
    rows(&client, "INSERT INTO s SELECT g FROM generate_series(1, 1000) AS n(g)").await;
    let other = connect(node.pg_address()).await;
    rows(&other, "BEGIN").await;
    rows(&other, "DECLARE stored CURSOR FOR SELECT * FROM s ORDER BY v").await;
    rows(&other, "DECLARE live CURSOR FOR SELECT * FROM s EMIT CHANGES WITH (auto_offset_reset = 'earliest')").await;
    assert_eq!(rows(&other, "FETCH 2 FROM stored").await, ["1", "2"]);
    assert_eq!(rows(&other, "FETCH 2 FROM live").await, ["1", "2"]);
    rows(&client, "ALTER STREAM s ADD COLUMN w text DEFAULT 'x'").await;
    rows(&client, "ALTER STREAM s SET (partitions = 3)").await;
    rows(&client, "ALTER STREAM s RENAME TO r").await;
    rows(&client, "INSERT INTO r VALUES (1001, 'y')").await;
    assert_eq!(rows(&other, "FETCH 2 FROM stored").await, ["3", "4"]);
    let fetched = rows(&other, "FETCH 999 FROM live").await;
    assert_eq!((fetched.len(), fetched.last().map(String::as_str)), (999, Some("1001")));
    // It picks up the new partitions.
    for number in 0..3 {
        rows(&client, &format!("INSERT INTO r (v) VALUES ({})", 2000 + number)).await;
    }
    let mut fetched = rows(&other, "FETCH 3 FROM live").await;
    fetched.sort();
    assert_eq!(fetched, ["2000", "2001", "2002"]);
    rows(&client, "TRUNCATE r").await;
    rows(&client, "INSERT INTO r (v) VALUES (3000)").await;
    assert_eq!(rows(&other, "FETCH 1 FROM live").await, ["3000"]);
    stop(node, client).await;
}
