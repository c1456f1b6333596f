//! Views and replaced queries over kills: a definition is there whole or not at all, and a query that runs does not change
//! by the way.

use crate::common::{DEADLINE, connect};
use crate::crash::Process;
use tokio_postgres::{Client, SimpleQueryMessage};

async fn try_rows(client: &Client, sql: &str) -> Result<Vec<String>, tokio_postgres::Error> {
    let answer = tokio::time::timeout(DEADLINE, client.simple_query(sql)).await;
    let row = |message| match message {
        SimpleQueryMessage::Row(row) => {
            let cells = (0..row.len()).map(|i| row.get(i).unwrap_or("NULL").to_owned());
            Some(cells.collect::<Vec<_>>().join(" "))
        }
        _ => None,
    };
    Ok(answer.unwrap_or_else(|_| panic!("no answer to {sql}"))?.into_iter().filter_map(row).collect())
}

async fn rows(client: &Client, sql: &str) -> Vec<String> {
    try_rows(client, sql).await.unwrap_or_else(|error| panic!("{sql}: {error:?}"))
}

/// Kills the server and starts it again.
async fn restart(server: Process, dir: &std::path::Path) -> (Process, Client) {
    server.kill();
    let server = Process::start(dir);
    let client = connect(server.address).await;
    (server, client)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn views_survive_kills_and_a_replaced_one_changes_no_query() {
    let dir = tempfile::tempdir().unwrap();
    let server = Process::start(dir.path());
    let client = connect(server.address).await;
    for sql in [
        "CREATE STREAM s (id integer, v integer)",
        "CREATE VIEW high AS SELECT id, v FROM s WHERE v > 10",
        "CREATE VIEW higher (number) AS SELECT id FROM high WHERE v > 20",
        "CREATE STREAM kept AS SELECT number FROM higher",
        "CREATE MATERIALIZED VIEW counted (n) AS SELECT count(*) FROM high",
        "INSERT INTO s VALUES (1, 5), (2, 15), (3, 25)",
        "FLUSH",
        "CREATE OR REPLACE VIEW high AS SELECT id, v FROM s WHERE v > 1000",
        "ALTER STREAM s RENAME COLUMN v TO w",
        "ALTER STREAM s RENAME TO t",
    ] {
        rows(&client, sql).await;
    }
    drop(client);
    let (server, client) = restart(server, dir.path()).await;
    rows(&client, "INSERT INTO t VALUES (4, 35), (5, 1035)").await;
    rows(&client, "FLUSH").await;
    assert_eq!(rows(&client, "SELECT number FROM kept ORDER BY 1").await, ["3", "4", "5"]);
    assert_eq!(rows(&client, "SELECT * FROM counted").await, ["4"]);
    assert_eq!(rows(&client, "SELECT * FROM high").await, ["5 1035"]);
    assert_eq!(rows(&client, "SELECT * FROM higher").await, ["5"]);
    let error = try_rows(&client, "DROP VIEW high").await.unwrap_err();
    assert_eq!(error.code().unwrap().code(), "2BP01");
    rows(&client, "DROP VIEW high CASCADE").await;
    drop(client);
    let (server, client) = restart(server, dir.path()).await;
    assert_eq!(rows(&client, "SELECT name FROM millstream.views").await, Vec::<String>::new());
    assert_eq!(rows(&client, "SELECT name FROM millstream.topics").await, ["t"]);
    drop(client);
    server.kill();
}
