//! Transactions over topics of several shards: all of it is there or nothing, for readers and after the server is killed.

use crate::common::{Server, connect, words};
use crate::crash::Process;
use futures::SinkExt as _;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use tokio_postgres::Client;

const SHARDS: u32 = 3;

async fn start() -> Server {
    Server::start_with(|config| config.shards = SHARDS).await
}

async fn numbers(client: &Client, sql: &str) -> Vec<i64> {
    let row = client.query_one(sql, &[]).await.unwrap_or_else(|e| panic!("{sql}: {}", words(&e)));
    (0..row.len()).map(|column| row.get(column)).collect()
}

/// Six relations of a kind, in all shards.
async fn create(client: &Client, kind: &str) {
    for number in 0..6 {
        let sql = format!("CREATE {kind} a{number} (k integer PRIMARY KEY, n bigint)");
        let sql = if kind == "STREAM" { sql.replace("PRIMARY KEY", "KEY") } else { sql };
        client.batch_execute(&sql).await.unwrap();
    }
    let sql = "SELECT count(DISTINCT shard) FROM millstream.partitions WHERE topic LIKE 'a_'";
    assert_eq!(numbers(client, sql).await, [i64::from(SHARDS)]);
}

const COUNTS: &str = "SELECT (SELECT count(*) FROM a0), (SELECT count(*) FROM a1), (SELECT count(*) FROM a2), \
                      (SELECT count(*) FROM a3), (SELECT count(*) FROM a4), (SELECT count(*) FROM a5)";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn readers_see_all_shards_of_a_transaction_or_none() {
    let server = start().await;
    let client = server.client().await;
    create(&client, "STREAM").await;
    client.batch_execute("BEGIN; INSERT INTO a0 VALUES (1, 1); INSERT INTO a1 VALUES (1, 1)").await.unwrap();
    client.batch_execute("SAVEPOINT s; INSERT INTO a2 VALUES (1, 1); ROLLBACK TO s").await.unwrap();
    client.batch_execute("INSERT INTO a3 VALUES (1, 1), (2, 2); COMMIT").await.unwrap();
    assert_eq!(numbers(&client, COUNTS).await, [1, 1, 0, 2, 0, 0]);
    client.batch_execute("BEGIN; INSERT INTO a0 VALUES (1, 1); INSERT INTO a1 VALUES (1, 1); ROLLBACK").await.unwrap();
    // Statements of one text are a transaction too.
    client
        .batch_execute("INSERT INTO a2 VALUES (1, 1); INSERT INTO a4 VALUES (1, 1); INSERT INTO a5 VALUES (1, 1)")
        .await
        .unwrap();
    client.batch_execute("INSERT INTO a2 VALUES (1, 1); INSERT INTO a5 VALUES ('x', 1)").await.unwrap_err();
    assert_eq!(numbers(&client, COUNTS).await, [1, 1, 1, 2, 1, 1]);
    let done = Arc::new(AtomicBool::new(false));
    let address = server.node.pg_address();
    let writers: Vec<_> = (0..3)
        .map(|writer| {
            tokio::spawn(async move {
                let client = connect(address).await;
                for number in 0..30 {
                    let insert = |table: i32| format!("INSERT INTO a{table} VALUES ({writer}, {number});");
                    let sql: String = (0..6).map(insert).collect();
                    client.batch_execute(&format!("BEGIN; {sql} COMMIT")).await.unwrap();
                }
            })
        })
        .collect();
    let reading = {
        let done = Arc::clone(&done);
        tokio::spawn(async move {
            let client = connect(address).await;
            let mut seen = std::collections::BTreeSet::new();
            while !done.load(Ordering::Relaxed) {
                let counts = numbers(&client, COUNTS).await;
                let before = [1, 1, 1, 2, 1, 1];
                let new: Vec<i64> = counts.iter().zip(before).map(|(count, before)| count - before).collect();
                assert!(new.iter().all(|count| *count == new[0]), "{counts:?}");
                seen.insert(new[0]);
            }
            seen.len()
        })
    };
    for writer in writers {
        writer.await.unwrap();
    }
    done.store(true, Ordering::Relaxed);
    assert!(reading.await.unwrap() > 1);
    assert_eq!(numbers(&client, COUNTS).await, [91, 91, 91, 92, 91, 91]);
    server.node.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn transfers_between_tables_of_several_shards_lose_nothing() {
    let server = start().await;
    let client = server.client().await;
    create(&client, "TABLE").await;
    for table in 0..6 {
        client.batch_execute(&format!("INSERT INTO a{table} VALUES (1, 100), (2, 100)")).await.unwrap();
    }
    let address = server.node.pg_address();
    let moved = Arc::new(AtomicI64::new(0));
    let writers: Vec<_> = (0..4_i64)
        .map(|writer| {
            let moved = Arc::clone(&moved);
            tokio::spawn(async move {
                let client = connect(address).await;
                for round in 0..20 {
                    let (from, to) = ((writer + round) % 6, (writer * 2 + round * 5 + 1) % 6);
                    let (from_key, to_key) = (round % 2 + 1, writer % 2 + 1);
                    let sql = format!(
                        "BEGIN; UPDATE a{from} SET n = n - 1 WHERE k = {from_key}; \
                         UPDATE a{to} SET n = n + 1 WHERE k = {to_key}; INSERT INTO a{from} VALUES ({}, 0); COMMIT",
                        writer * 100 + round + 10
                    );
                    match client.batch_execute(&sql).await {
                        Ok(()) => drop(moved.fetch_add(1, Ordering::Relaxed)),
                        Err(error) => {
                            let code = error.code().map(tokio_postgres::error::SqlState::code);
                            assert!(matches!(code, Some("40001" | "40P01")), "{}", words(&error));
                            client.batch_execute("ROLLBACK").await.unwrap();
                        }
                    }
                }
            })
        })
        .collect();
    for writer in writers {
        writer.await.unwrap();
    }
    let sums = numbers(&client, &COUNTS.replace("count(*)", "sum(n)::bigint")).await;
    assert_eq!(sums.iter().sum::<i64>(), 1_200, "{sums:?}");
    let moved = moved.load(Ordering::Relaxed);
    assert!(moved >= 40, "{moved}");
    assert_eq!(numbers(&client, COUNTS).await.iter().sum::<i64>(), 12 + moved);
    server.node.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rows_that_were_staged_commit_with_those_of_other_shards() {
    const ROWS: i64 = 400;
    let server = start().await;
    let client = server.client().await;
    create(&client, "TABLE").await;
    client.batch_execute("CREATE TABLE b (k integer PRIMARY KEY, v text)").await.unwrap();
    let large = |from: i64| {
        let client = &client;
        async move {
            let sink = client.copy_in::<_, bytes::Bytes>("COPY b FROM STDIN WITH (FORMAT csv)").await.unwrap();
            let mut sink = pin!(sink);
            for number in from..from + ROWS {
                sink.send(format!("{number},{}\n", "x".repeat(100_000)).into()).await.unwrap();
            }
            assert_eq!(sink.finish().await.unwrap(), ROWS as u64);
        }
    };
    let insert: String = (0..6).map(|table| format!("INSERT INTO a{table} VALUES (-1, 1);")).collect();
    client.batch_execute(&format!("BEGIN; {insert}")).await.unwrap();
    large(0).await;
    // Its statements do not see what is in the log already: so they may not depend on it.
    for sql in ["UPDATE b SET v = '' WHERE k = 7", "INSERT INTO b VALUES (7, '') ON CONFLICT DO NOTHING"] {
        client.batch_execute("SAVEPOINT s").await.unwrap();
        let refused = client.batch_execute(sql).await.unwrap_err();
        assert!(words(&refused).starts_with("0A000"), "{}", words(&refused));
        client.batch_execute("ROLLBACK TO s").await.unwrap();
    }
    client.batch_execute("ROLLBACK").await.unwrap();
    assert_eq!(numbers(&client, COUNTS).await, [0; 6]);
    client.batch_execute(&format!("BEGIN; {insert}")).await.unwrap();
    large(0).await;
    client.batch_execute("COMMIT").await.unwrap();
    large(ROWS).await;
    assert_eq!(numbers(&client, COUNTS).await, [1; 6]);
    assert_eq!(numbers(&client, "SELECT count(*), sum(k)::bigint FROM b").await, [800, 799 * 400]);
    server.node.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_server_keeps_whole_transactions() {
    let dir = tempfile::tempdir().unwrap();
    let shards = ["--shards", "3"];
    let told: Vec<Arc<AtomicI64>> = (0..3).map(|_| Arc::default()).collect();
    let mut sent = [0_i64; 3];
    for round in 0..4 {
        let process = Process::start_with(dir.path(), &shards);
        let client = connect(process.address).await;
        if round == 0 {
            create(&client, "STREAM").await;
        }
        let counts = numbers(&client, COUNTS).await;
        assert!(counts.iter().all(|count| *count == counts[0]), "{counts:?}");
        for (writer, sent) in sent.iter_mut().enumerate() {
            let sql = format!("SELECT count(*), count(DISTINCT n), coalesce(max(n), 0) FROM a5 WHERE k = {writer}");
            let found = numbers(&client, &sql).await;
            assert!(found.iter().all(|number| *number == found[0]), "{found:?}");
            assert!(found[0] >= told[writer].load(Ordering::Relaxed), "a transaction is lost");
            *sent = found[0];
        }
        let address = process.address;
        let writers: Vec<_> = (0..3)
            .map(|writer| {
                let (told, mut number) = (Arc::clone(&told[writer]), sent[writer]);
                tokio::spawn(async move {
                    let client = connect(address).await;
                    loop {
                        number += 1;
                        let insert = |table: i32| format!("INSERT INTO a{table} VALUES ({writer}, {number});");
                        let sql: String = (0..6).map(insert).collect();
                        if client.batch_execute(&format!("BEGIN; {sql} COMMIT")).await.is_err() {
                            break;
                        }
                        told.store(number, Ordering::Relaxed);
                    }
                })
            })
            .collect();
        let goal = told[0].load(Ordering::Relaxed) + 15;
        while told[0].load(Ordering::Relaxed) < goal {
            tokio::task::yield_now().await;
        }
        process.kill();
        for writer in writers {
            writer.await.unwrap();
        }
    }
}
