//! Rows that many clients change at once: no change is lost, in transactions and pipelines, and with the server killed.

use crate::common::{DEADLINE, Server, connect, words};
use crate::crash::Process;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use tokio_postgres::Client;

const CLIENTS: i64 = 16;
const ROUNDS: i64 = 12;

pub(crate) async fn number(client: &Client, sql: &str) -> i64 {
    client.query_one(sql, &[]).await.unwrap().get(0)
}

/// Lets clients send `statement` at once, each several times; fails with the first error.
pub(crate) async fn together(address: SocketAddr, statement: &'static str) -> i64 {
    let send = |client: i64| async move {
        let connection = connect(address).await;
        let prepared = connection.prepare(statement).await.unwrap();
        for round in 0..ROUNDS {
            let changed = connection.execute(&prepared, &[]).await;
            let changed = changed.unwrap_or_else(|e| panic!("client {client}, round {round}: {}", words(&e)));
            assert_eq!(changed, 1);
        }
    };
    let all = (0..CLIENTS).map(|client| tokio::spawn(send(client)));
    for sent in futures::future::join_all(all).await {
        sent.unwrap();
    }
    CLIENTS * ROUNDS
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn increments_of_many_clients_all_count() {
    let server = Server::start().await;
    let client = server.client().await;
    client.batch_execute("CREATE TABLE c (k integer PRIMARY KEY, n bigint)").await.unwrap();
    let address = server.node.pg_address();
    let insert = "INSERT INTO c VALUES (1, 1) ON CONFLICT (k) DO UPDATE SET n = c.n + 1";
    together(address, insert).await;
    assert_eq!(number(&client, "SELECT n FROM c").await, CLIENTS * ROUNDS);
    together(address, "UPDATE c SET n = n + 1 WHERE k = 1").await;
    assert_eq!(number(&client, "SELECT n FROM c").await, 2 * CLIENTS * ROUNDS);
    // A row that comes and goes is counted by whoever sees it.
    let (seen, other) = (connect(address).await, connect(address).await);
    for _ in 0..ROUNDS {
        let (inserted, deleted) = tokio::join!(
            seen.execute("INSERT INTO c VALUES (2, 0) ON CONFLICT DO NOTHING", &[]),
            other.execute("DELETE FROM c WHERE k = 2", &[])
        );
        assert!(inserted.unwrap() <= 1 && deleted.unwrap() <= 1);
    }
    server.node.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn plain_inserts_of_the_same_row_do_not_fail_updates() {
    let server = Server::start().await;
    let address = server.node.pg_address();
    let client = server.client().await;
    client
        .batch_execute("CREATE TABLE c (k integer PRIMARY KEY, n bigint); INSERT INTO c VALUES (1, 0)")
        .await
        .unwrap();
    let done = Arc::new(AtomicI64::new(0));
    let writers: Vec<_> = (0..4)
        .map(|_| {
            let done = Arc::clone(&done);
            tokio::spawn(async move {
                let writer = connect(address).await;
                let insert = writer.prepare("INSERT INTO c VALUES (1, 0)").await.unwrap();
                while done.load(Ordering::Relaxed) < 4 {
                    writer.execute(&insert, &[]).await.unwrap();
                }
            })
        })
        .collect();
    for _ in 0..4 {
        let updated = client.execute("UPDATE c SET n = n + 1 WHERE k = 1", &[]);
        let updated = tokio::time::timeout(DEADLINE, updated).await.unwrap();
        assert_eq!(updated.unwrap_or_else(|e| panic!("{}", words(&e))), 1);
        done.fetch_add(1, Ordering::Relaxed);
    }
    for writer in writers {
        writer.await.unwrap();
    }
    server.node.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn transactions_wait_for_rows_and_find_circles() {
    let server = Server::start().await;
    let address = server.node.pg_address();
    let (one, two, reader) = (connect(address).await, connect(address).await, server.client().await);
    one.batch_execute("CREATE TABLE c (k integer PRIMARY KEY, n bigint); INSERT INTO c VALUES (1, 0), (2, 0)")
        .await
        .unwrap();
    // Each changes a row and then wants the other's: one is told, the other one goes on.
    one.batch_execute("BEGIN; UPDATE c SET n = n + 1 WHERE k = 1").await.unwrap();
    two.batch_execute("BEGIN; UPDATE c SET n = n + 1 WHERE k = 2").await.unwrap();
    let cross = |client: Client, key: i64| async move {
        let sql = format!("UPDATE c SET n = n + 10 WHERE k = {key}");
        let crossed = client.batch_execute(&sql).await;
        if crossed.is_err() {
            client.batch_execute("ROLLBACK").await.unwrap();
        }
        (client, crossed)
    };
    let both = async { tokio::join!(cross(one, 2), cross(two, 1)) };
    let (one, two) = tokio::time::timeout(DEADLINE, both).await.unwrap();
    let told: Vec<String> = [&one.1, &two.1].into_iter().filter_map(|r| r.as_ref().err()).map(words).collect();
    assert_eq!(told, ["40P01: deadlock detected"]);
    assert_eq!(number(&reader, "SELECT sum(n)::bigint FROM c").await, 0);
    one.0.batch_execute("COMMIT").await.unwrap();
    two.0.batch_execute("COMMIT").await.unwrap();
    assert_eq!(number(&reader, "SELECT sum(n)::bigint FROM c").await, 11);
    // Who waits for a row goes on from its new form.
    let (one, two) = (one.0, two.0);
    one.batch_execute("UPDATE c SET n = 0").await.unwrap();
    one.batch_execute("BEGIN; UPDATE c SET n = n + 1 WHERE k = 1").await.unwrap();
    let waiting = tokio::spawn(async move {
        two.batch_execute("UPDATE c SET n = n + 10 WHERE k = 1").await.unwrap();
        two
    });
    assert_eq!(number(&reader, "SELECT n FROM c WHERE k = 1").await, 0);
    one.batch_execute("COMMIT").await.unwrap();
    let two = tokio::time::timeout(DEADLINE, waiting).await.unwrap().unwrap();
    assert_eq!(number(&reader, "SELECT n FROM c WHERE k = 1").await, 11);
    // A row that an INSERT replaced since it was read: the transaction is told at its end.
    two.batch_execute("BEGIN; UPDATE c SET n = n + 1 WHERE k = 1; DELETE FROM c WHERE k = 2").await.unwrap();
    reader.batch_execute("INSERT INTO c VALUES (1, 100)").await.unwrap();
    let refused = two.batch_execute("COMMIT").await.unwrap_err();
    assert!(words(&refused).starts_with("40001: "), "{}", words(&refused));
    assert_eq!(number(&reader, "SELECT sum(n)::bigint FROM c").await, 100);
    server.node.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn acknowledged_increments_survive_kills() {
    let dir = tempfile::tempdir().unwrap();
    let (sent, told) = (Arc::new(AtomicI64::new(0)), Arc::new(AtomicI64::new(0)));
    for round in 0..3 {
        let process = Process::start(dir.path());
        let client = connect(process.address).await;
        if round == 0 {
            let table = "CREATE TABLE c (k integer PRIMARY KEY, n bigint); INSERT INTO c VALUES (1, 0)";
            client.batch_execute(table).await.unwrap();
        }
        let before = number(&client, "SELECT n FROM c").await;
        let (least, most) = (told.load(Ordering::SeqCst), sent.load(Ordering::SeqCst));
        assert!((least..=most).contains(&before), "round {round}: {least} <= {before} <= {most}");
        // What was told is what is there: later rounds count from here.
        told.store(before, Ordering::SeqCst);
        sent.store(before, Ordering::SeqCst);
        let address = process.address;
        let (counted, mut enough) = tokio::sync::watch::channel(0);
        let writers: Vec<_> = (0..CLIENTS)
            .map(|_| {
                let (sent, told, counted) = (Arc::clone(&sent), Arc::clone(&told), counted.clone());
                tokio::spawn(async move {
                    let writer = connect(address).await;
                    loop {
                        sent.fetch_add(1, Ordering::SeqCst);
                        if writer.execute("UPDATE c SET n = n + 1 WHERE k = 1", &[]).await.is_err() {
                            return;
                        }
                        let count = told.fetch_add(1, Ordering::SeqCst) + 1;
                        counted.send_modify(|last| *last = count.max(*last));
                    }
                })
            })
            .collect();
        let enough = enough.wait_for(|count| *count >= before + 20);
        tokio::time::timeout(DEADLINE, enough).await.unwrap().unwrap();
        process.kill();
        for writer in writers {
            tokio::time::timeout(DEADLINE, writer).await.unwrap().unwrap();
        }
    }
    let process = Process::start(dir.path());
    let last = number(&connect(process.address).await, "SELECT n FROM c").await;
    let (least, most) = (told.load(Ordering::SeqCst), sent.load(Ordering::SeqCst));
    assert!((least..=most).contains(&last), "{least} <= {last} <= {most}");
}

/// The lines of a plan.
async fn plan(client: &Client, sql: &str) -> String {
    let rows = client.query(sql, &[]).await.unwrap();
    rows.iter().map(|row| row.get::<_, String>(0)).collect::<Vec<_>>().join("\n")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn changed_rows_are_found_by_the_index() {
    let server = Server::start().await;
    let client = server.client().await;
    client.batch_execute("CREATE TABLE t (k bigint PRIMARY KEY, n bigint, s text)").await.unwrap();
    client.batch_execute("INSERT INTO t SELECT i, 0, 'x' FROM generate_series(1, 5000) AS i").await.unwrap();
    let update = "UPDATE t SET n = n + 1 WHERE k = 17 RETURNING n";
    let shown = plan(&client, &format!("EXPLAIN ANALYZE {update}")).await;
    assert!(shown.starts_with("Update on t  (actual time="), "{shown}");
    assert!(shown.contains(" rows=1)") && shown.contains("Index lookup on t using primary key"), "{shown}");
    assert!(shown.contains("keys=1") && shown.contains("Read: 1 rows"), "{shown}");
    // As in PostgreSQL, it was carried out, and EXPLAIN alone is not.
    plan(&client, &format!("EXPLAIN {update}")).await;
    assert_eq!(client.query_one(update, &[]).await.unwrap().get::<_, i64>(0), 2);
    let shown = plan(&client, "EXPLAIN ANALYZE DELETE FROM t WHERE k IN (1, 2, 9999)").await;
    assert!(shown.starts_with("Delete on t") && shown.contains("keys=3"), "{shown}");
    assert!(shown.contains("Read: 2 rows"), "{shown}");
    assert_eq!(number(&client, "SELECT count(*) FROM t").await, 4998);
    // Within a transaction its own rows are seen too.
    client.batch_execute("BEGIN; UPDATE t SET k = -1 WHERE k = 17; INSERT INTO t VALUES (18, 5, 'own')").await.unwrap();
    let shown = plan(&client, "EXPLAIN ANALYZE UPDATE t SET n = n + 1 WHERE k IN (-1, 17, 18)").await;
    assert!(shown.contains("keys=3"), "{shown}");
    client.batch_execute("COMMIT").await.unwrap();
    assert_eq!(number(&client, "SELECT sum(n)::bigint FROM t").await, 9);
    // ON CONFLICT and a key that moves look their rows up: they read no more than that, whatever the size of the table.
    let upsert = "INSERT INTO t VALUES (20, 1, 'a'), (6000, 1, 'b') ON CONFLICT (k) DO UPDATE SET n = t.n + excluded.n";
    assert_eq!(client.execute(upsert, &[]).await.unwrap(), 2);
    let error = client.execute("UPDATE t SET k = 21 WHERE k = 20", &[]).await.unwrap_err();
    assert_eq!(error.code().unwrap().code(), "23505");
    assert_eq!(client.execute("UPDATE t SET k = 7000 WHERE k = 20", &[]).await.unwrap(), 1);
    assert_eq!(number(&client, "SELECT n FROM t WHERE k = 7000").await, 1);
    server.node.stop().await;
}

/// Amounts move between rows of one table, between two tables, and out to a stream: each statement sees all of a move or
/// nothing of it, however it reads.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sums_over_several_tables_are_never_torn() {
    const READS: usize = 40;
    let server = Server::start().await;
    let address = server.node.pg_address();
    let client = server.client().await;
    let setup = "CREATE TABLE a (k integer PRIMARY KEY, n bigint) WITH (partitions = 3); CREATE STREAM s (n bigint);
                 CREATE TABLE b (k integer PRIMARY KEY, n bigint);
                 INSERT INTO a SELECT k, 100 FROM generate_series(0, 7) AS g(k);
                 INSERT INTO b SELECT k, 100 FROM generate_series(0, 7) AS g(k)";
    client.batch_execute(setup).await.unwrap();
    let reading = Arc::new(AtomicI64::new(4));
    let write = |writer: i64| {
        let reading = Arc::clone(&reading);
        async move {
            let (client, other) = (connect(address).await, writer + 4);
            let moves = [
                format!("UPDATE a SET n = n + CASE k WHEN {writer} THEN -7 ELSE 7 END WHERE k IN ({writer}, {other})"),
                format!("BEGIN; INSERT INTO s VALUES (1); UPDATE b SET n = n - 1 WHERE k = {other}; COMMIT"),
                format!(
                    "BEGIN; UPDATE a SET n = n - 10 WHERE k = {writer}; UPDATE b SET n = n + 10 WHERE k = {writer}; COMMIT"
                ),
                format!(
                    "BEGIN; UPDATE a SET n = n + 10 WHERE k = {writer}; UPDATE b SET n = n - 10 WHERE k = {writer}; COMMIT"
                ),
                // Row `writer` of b has 100 again; it goes away and comes back.
                format!(
                    "BEGIN; DELETE FROM b WHERE k = {writer}; UPDATE a SET n = n + 100 WHERE k = {writer}; \
                     INSERT INTO b VALUES ({writer}, 0); COMMIT"
                ),
                format!(
                    "BEGIN; UPDATE b SET n = 100 WHERE k = {writer}; UPDATE a SET n = n - 100 WHERE k = {writer}; COMMIT"
                ),
            ];
            while reading.load(Ordering::Relaxed) > 0 {
                for sql in &moves {
                    client.batch_execute(sql).await.unwrap();
                }
            }
        }
    };
    let read = |_| {
        let reading = Arc::clone(&reading);
        async move {
            let client = connect(address).await;
            let sums = [
                "SELECT (SELECT sum(n) FROM a)::bigint + (SELECT sum(n) FROM b)::bigint + (SELECT count(*) FROM s)",
                "SELECT (SELECT count(*) FROM s) + (SELECT sum(n) FROM b)::bigint
                        + (SELECT sum(n) FROM a WHERE k < 4)::bigint + (SELECT sum(n) FROM a WHERE k IN (4, 5, 6, 7))::bigint",
                "SELECT (SELECT sum(a.n + b.n) FROM a JOIN b USING (k))::bigint + (SELECT count(*) FROM s)",
                "SELECT (SELECT sum(x.n + y.n) FROM a AS x JOIN a AS y USING (k))::bigint
                        - (SELECT sum(n) FROM a)::bigint + (SELECT sum(n) FROM b)::bigint + (SELECT count(*) FROM s)",
            ];
            for round in 0..READS {
                for sql in sums {
                    assert_eq!(number(&client, sql).await, 1_600, "round {round}: {sql}");
                }
            }
            reading.fetch_sub(1, Ordering::Relaxed);
        }
    };
    let writers: Vec<_> = (0..4).map(|writer| tokio::spawn(write(writer))).collect();
    let readers: Vec<_> = (0..4).map(|reader| tokio::spawn(read(reader))).collect();
    let all = futures::future::join_all(readers).await;
    // Writers end also when a reader failed.
    reading.store(0, Ordering::Relaxed);
    for ended in all.into_iter().chain(futures::future::join_all(writers).await) {
        ended.unwrap();
    }
    server.node.stop().await;
}
