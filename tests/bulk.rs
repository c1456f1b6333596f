//! COPY of more rows than memory should hold: atomic all the same.

use crate::common::Server;
use futures::SinkExt as _;
use std::pin::pin;
use tokio_postgres::{Client, NoTls};

const ROW_BYTES: usize = 100_000;
/// More than two parts are written to the log before the commit.
const ROWS: usize = 800;

/// Copies rows and then `end`; what the server says.
async fn copy(client: &Client, end: &str) -> Result<u64, tokio_postgres::Error> {
    let sink = client.copy_in::<_, bytes::Bytes>("COPY s FROM STDIN WITH (FORMAT csv)").await?;
    let mut sink = pin!(sink);
    let filler = "x".repeat(ROW_BYTES);
    for number in 0..ROWS {
        sink.send(format!("{number},{filler}\n").into()).await?;
    }
    sink.send(end.to_owned().into()).await?;
    sink.finish().await
}

async fn count(client: &Client) -> i64 {
    client.query_one("SELECT count(*) FROM s", &[]).await.unwrap().get(0)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_large_copy_is_seen_whole_or_not_at_all() {
    let server = Server::start().await;
    let (client, other) = (server.client().await, server.client().await);
    client.batch_execute("CREATE STREAM s (k integer KEY, v text) WITH (partitions = 3)").await.unwrap();
    let refused = copy(&client, "nonsense,x\n").await.unwrap_err();
    assert_eq!(refused.code().map(tokio_postgres::error::SqlState::code), Some("22P02"), "{refused:?}");
    assert_eq!(count(&other).await, 0);
    client.batch_execute("BEGIN").await.unwrap();
    client.execute("INSERT INTO s VALUES (-1, 'first')", &[]).await.unwrap();
    assert_eq!(copy(&client, "").await.unwrap(), ROWS as u64);
    client.execute("INSERT INTO s VALUES (-2, 'last')", &[]).await.unwrap();
    assert_eq!(count(&other).await, 0);
    client.batch_execute("ROLLBACK; BEGIN; SAVEPOINT a").await.unwrap();
    assert_eq!(copy(&client, "").await.unwrap(), ROWS as u64);
    client.batch_execute("ROLLBACK TO a").await.unwrap();
    client.execute("INSERT INTO s VALUES (-3, 'kept')", &[]).await.unwrap();
    client.batch_execute("COMMIT").await.unwrap();
    assert_eq!(count(&other).await, 1);
    assert_eq!(copy(&client, "").await.unwrap(), ROWS as u64);
    assert_eq!(count(&other).await, ROWS as i64 + 1);
    let copied = client.execute("INSERT INTO s SELECT k + 1000, v FROM s WHERE k >= 0", &[]).await.unwrap();
    assert_eq!(copied, ROWS as u64);
    let sql = "SELECT count(*), count(DISTINCT k), sum(length(v))::bigint FROM s WHERE k >= 0";
    let row = other.query_one(sql, &[]).await.unwrap();
    let rows = 2 * ROWS as i64;
    assert_eq!((row.get(0), row.get(1), row.get(2)), (rows, rows, rows * ROW_BYTES as i64));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_large_copy_that_is_cancelled_leaves_nothing() {
    let server = Server::start().await;
    let (client, other) = (server.client().await, server.client().await);
    client.batch_execute("CREATE STREAM s (k integer KEY, v text)").await.unwrap();
    let sink = client.copy_in::<_, bytes::Bytes>("COPY s FROM STDIN WITH (FORMAT csv)").await.unwrap();
    let mut sink = pin!(sink);
    let filler = "x".repeat(ROW_BYTES);
    for number in 0..ROWS {
        sink.send(format!("{number},{filler}\n").into()).await.unwrap();
    }
    client.cancel_token().cancel_query(NoTls).await.unwrap();
    let running = "SELECT count(*) FROM millstream.sessions WHERE statement LIKE 'COPY%'";
    while other.query_one(running, &[]).await.unwrap().get::<_, i64>(0) > 0 {}
    let refused = sink.finish().await.unwrap_err();
    assert_eq!(refused.code().map(tokio_postgres::error::SqlState::code), Some("57014"), "{refused:?}");
    assert_eq!(count(&other).await, 0);
    client.execute("INSERT INTO s VALUES (1, 'next')", &[]).await.unwrap();
    assert_eq!(count(&other).await, 1);
}
