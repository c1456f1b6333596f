//! Retention, merging and compaction over the wire: what is on the disk shrinks, what is asked for does not change.

use crate::common::{DEADLINE, connect};
use crate::damage::{files, rows, sealing};
use millstream::node::Node;
use std::path::Path;
use tokio_postgres::Client;

async fn one(client: &Client, sql: &str) -> String {
    rows(client, sql).await.unwrap_or_else(|error| panic!("{sql}: {error}")).join(",")
}

async fn number(client: &Client, sql: &str) -> u64 {
    let value = one(client, sql).await;
    value.parse().unwrap_or_else(|_| panic!("{sql}: {value}"))
}

/// Asks until the answer is as it must become.
async fn until(client: &Client, sql: &str, is_right: impl Fn(u64) -> bool) -> u64 {
    let begun = std::time::Instant::now();
    loop {
        let value = number(client, sql).await;
        if is_right(value) {
            return value;
        }
        assert!(begun.elapsed() < DEADLINE, "{sql}: {value}");
        tokio::task::yield_now().await;
    }
}

fn segment_bytes(dir: &Path) -> u64 {
    let segments = files(dir).into_iter().filter(|path| path.extension().is_some_and(|kind| kind == "arrow"));
    // A file may go between its listing and its size.
    segments.map(|path| std::fs::metadata(path).map_or(0, |metadata| metadata.len())).sum()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn retention_by_bytes_bounds_a_topic_that_is_written_to() {
    let dir = tempfile::tempdir().unwrap();
    let config = sealing(dir.path());
    let node = Node::start(&config).await.unwrap();
    let client = connect(node.pg_address()).await;
    one(&client, "CREATE STREAM s (k integer, v text) WITH (retention_bytes = '256 KiB')").await;
    let start = "SELECT offset_start FROM millstream.partitions WHERE topic = 's'";
    let (mut written, mut moves, mut last_start) = (0, 0, 0);
    let begun = std::time::Instant::now();
    // Until the log start has moved several times while rows kept coming.
    while moves < 4 {
        assert!(begun.elapsed() < DEADLINE * 3, "the log start moved {moves} times");
        let sql = "INSERT INTO s SELECT i, repeat(md5(i::text), 3) FROM generate_series($1, $1 + 999) AS t(i)";
        one(&client, &sql.replace("$1", &written.to_string())).await;
        written += 1_000;
        let now = number(&client, start).await;
        (moves, last_start) = (moves + usize::from(now > last_start), now);
    }
    let bytes = "SELECT bytes FROM millstream.partitions WHERE topic = 's'";
    // What is kept, a segment more that would leave less, and what is in memory.
    let most = (256 + 2 * 64 + 64) << 10;
    until(&client, bytes, |bytes| bytes <= most).await;
    // The log start may move once more.
    let [first, count, least, smallest] = loop {
        let first = number(&client, start).await;
        let count = number(&client, "SELECT count(*) FROM s").await;
        let least = number(&client, "SELECT min(rowoffset) FROM s").await;
        let smallest = number(&client, "SELECT min(k) FROM s").await;
        if number(&client, start).await == first {
            break [first, count, least, smallest];
        }
    };
    assert_eq!(number(&client, "SELECT offset_end FROM millstream.partitions WHERE topic = 's'").await, written);
    assert_eq!((count, least), (written - first, first));
    assert_eq!(smallest, first, "rows keep their offsets");
    // The files follow the manifest.
    let waited = std::time::Instant::now();
    while segment_bytes(dir.path()) > most {
        assert!(waited.elapsed() < DEADLINE, "{} bytes of segments", segment_bytes(dir.path()));
        tokio::task::yield_now().await;
    }
    drop(client);
    node.stop().await;
    let node = Node::start(&config).await.unwrap();
    let client = connect(node.pg_address()).await;
    assert!(number(&client, start).await >= first, "a log start never moves back");
    assert_eq!(number(&client, "SELECT max(k) FROM s").await, written - 1);
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn old_events_go_also_from_memory_and_offsets_go_on() {
    let dir = tempfile::tempdir().unwrap();
    let node = Node::start(&sealing(dir.path())).await.unwrap();
    let client = connect(node.pg_address()).await;
    one(&client, "CREATE STREAM s (v integer) WITH (retention = '1 hour')").await;
    one(
        &client,
        "INSERT INTO s (v, rowtime) VALUES (1, now() - INTERVAL '2 hours'), (2, now() - INTERVAL '61 minutes')",
    )
    .await;
    until(&client, "SELECT count(*) FROM s", |rows| rows == 0).await;
    assert_eq!(one(&client, "SELECT offset_start, offset_end, events FROM millstream.partitions").await, "2|2|0");
    one(&client, "INSERT INTO s (v, rowtime) VALUES (3, now() - INTERVAL '59 minutes')").await;
    assert_eq!(one(&client, "SELECT v, rowoffset FROM s").await, "3|2");
    // A query that is paused keeps what it has not read.
    one(&client, "CREATE STREAM q AS SELECT v FROM s EMIT CHANGES").await;
    one(&client, "FLUSH").await;
    one(&client, "PAUSE QUERY q").await;
    one(&client, "INSERT INTO s (v, rowtime) VALUES (4, now() - INTERVAL '3 hours')").await;
    // Another topic shows that upkeep has come by since.
    one(&client, "CREATE STREAM other (v integer) WITH (retention = '1 hour')").await;
    one(&client, "INSERT INTO other (v, rowtime) VALUES (1, now() - INTERVAL '2 hours')").await;
    until(&client, "SELECT count(*) FROM other", |rows| rows == 0).await;
    assert_eq!(one(&client, "SELECT v FROM s ORDER BY rowoffset").await, "3,4");
    one(&client, "RESUME QUERY q").await;
    one(&client, "FLUSH").await;
    assert_eq!(one(&client, "SELECT v FROM q ORDER BY rowoffset").await, "3,4");
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_table_shrinks_to_its_keys_and_answers_the_same() {
    let dir = tempfile::tempdir().unwrap();
    let config = sealing(dir.path());
    let node = Node::start(&config).await.unwrap();
    let client = connect(node.pg_address()).await;
    one(&client, "CREATE TABLE t (k integer PRIMARY KEY, v integer)").await;
    one(&client, "CREATE TABLE a AS SELECT k, v % 7 AS g FROM t EMIT CHANGES").await;
    for round in 0..100 {
        one(&client, &format!("INSERT INTO t SELECT i, i * 31 + {round} FROM generate_series(1, 1000) AS x(i)")).await;
    }
    one(&client, "FLUSH").await;
    let answers = [
        "SELECT count(*), sum(v), min(rowoffset), max(rowoffset) FROM t",
        "SELECT k, v, rowoffset FROM t ORDER BY k LIMIT 5",
        "SELECT v FROM t WHERE k = 500",
        "SELECT g, count(*), sum(k) FROM a GROUP BY g ORDER BY g",
        "SELECT v % 7 AS g, count(*), sum(k) FROM t GROUP BY g ORDER BY g",
    ];
    let mut before = Vec::new();
    for sql in answers {
        before.push(one(&client, sql).await);
    }
    assert_eq!(before[0].split('|').nth(2), Some("99000"));
    assert_eq!(before[3], before[4], "the continuous table equals its SELECT");
    // At most as many dead rows as live ones, and what is not sealed yet.
    let events = "SELECT events FROM millstream.partitions WHERE topic = 't'";
    until(&client, events, |events| events < 10_000).await;
    for (sql, before) in answers.iter().zip(&before) {
        assert_eq!(one(&client, sql).await, *before, "{sql}");
    }
    // A query made now reads what is left.
    one(&client, "CREATE TABLE b AS SELECT k, v % 7 AS g FROM t EMIT CHANGES").await;
    one(&client, "FLUSH").await;
    assert_eq!(one(&client, "SELECT g, count(*), sum(k) FROM b GROUP BY g ORDER BY g").await, before[3]);
    drop(client);
    node.stop().await;
    let node = Node::start(&config).await.unwrap();
    let client = connect(node.pg_address()).await;
    for (sql, before) in answers.iter().zip(&before) {
        assert_eq!(one(&client, sql).await, *before, "after a restart: {sql}");
    }
    // Changes after it retract the right rows.
    one(&client, "INSERT INTO t SELECT i, i FROM generate_series(1, 1000) AS x(i)").await;
    one(&client, "FLUSH").await;
    let expected = one(&client, answers[4]).await;
    assert_eq!(one(&client, "SELECT g, count(*), sum(k) FROM a GROUP BY g ORDER BY g").await, expected);
    assert_eq!(one(&client, "SELECT g, count(*), sum(k) FROM b GROUP BY g ORDER BY g").await, expected);
    assert!(number(&client, events).await < 12_000);
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn small_segments_become_few() {
    let dir = tempfile::tempdir().unwrap();
    let config = sealing(dir.path());
    let node = Node::start(&config).await.unwrap();
    let client = connect(node.pg_address()).await;
    one(&client, "CREATE STREAM s (k integer, v text) WITH (compression = 'lz4')").await;
    for part in 0..40 {
        let sql = "INSERT INTO s SELECT i, repeat(md5(i::text), 3) FROM generate_series($1, $1 + 999) AS t(i)";
        one(&client, &sql.replace("$1", &(part * 1_000).to_string())).await;
    }
    until(&client, "SELECT segments FROM millstream.partitions WHERE topic = 's'", |segments| segments < 16).await;
    let check = async |client: &Client| {
        let sql = "SELECT count(*), count(DISTINCT k), sum(k - rowoffset), max(rowoffset) FROM s";
        assert_eq!(one(client, sql).await, "40000|40000|0|39999");
        assert_eq!(one(client, "SELECT count(*) FROM s").await, "40000");
    };
    check(&client).await;
    drop(client);
    node.stop().await;
    let node = Node::start(&config).await.unwrap();
    check(&connect(node.pg_address()).await).await;
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn flush_does_not_wait_for_rows_that_were_compacted_away() {
    let dir = tempfile::tempdir().unwrap();
    let node = Node::start(&sealing(dir.path())).await.unwrap();
    let client = connect(node.pg_address()).await;
    one(&client, "CREATE TABLE t (k integer PRIMARY KEY, v integer) WITH (delete_retention = '1 second')").await;
    one(&client, "INSERT INTO t SELECT i, i FROM generate_series(1, 1000) AS x(i)").await;
    one(&client, "DELETE FROM t").await;
    // Rows of others, in any shard, bring the seals.
    for other in ["a", "b", "c"] {
        one(&client, &format!("CREATE STREAM {other} (k integer, v text)")).await;
    }
    let begun = std::time::Instant::now();
    while number(&client, "SELECT sum(events) FROM millstream.partitions WHERE topic = 't'").await > 0 {
        assert!(begun.elapsed() < DEADLINE, "rows of deleted keys are still there");
        for other in ["a", "b", "c"] {
            let sql = format!("INSERT INTO {other} SELECT i, md5(i::text) FROM generate_series(1, 1000) AS x(i)");
            one(&client, &sql).await;
        }
    }
    one(&client, "CREATE TABLE q AS SELECT k, v FROM t EMIT CHANGES").await;
    tokio::time::timeout(DEADLINE, one(&client, "FLUSH")).await.expect("there is nothing to wait for");
    one(&client, "INSERT INTO t VALUES (7, 8)").await;
    one(&client, "FLUSH").await;
    assert_eq!(one(&client, "SELECT k, v FROM q").await, "7|8");
    node.stop().await;
}
