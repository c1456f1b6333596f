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

/// Kills in each of these come while a replacement is on its way.
const ROUNDS: usize = 10;

/// Two statements of a version: what they give shows which version took an event, and that it was taken once.
fn replacements(version: usize) -> [String; 2] {
    [
        format!("CREATE OR REPLACE STREAM passed AS SELECT id, {version} AS version FROM s WHERE id > -{version}"),
        format!(
            "CREATE OR REPLACE TABLE summed AS SELECT k, count(*) AS n, sum(id) AS total FROM s WHERE id > -{version} GROUP BY k"
        ),
    ]
}

/// The version of a query's text.
async fn version_of(client: &Client, query: &str) -> usize {
    let sql = rows(client, &format!("SELECT sql FROM millstream.queries WHERE name = '{query}'")).await;
    let rest = sql[0].split_once("id > -").unwrap().1;
    rest.split(' ').next().unwrap().parse().unwrap()
}

async fn check_replaced(client: &Client, last: usize) {
    rows(client, "FLUSH").await;
    let failed = "SELECT name, error FROM millstream.queries WHERE error IS NOT NULL";
    assert_eq!(rows(client, failed).await, Vec::<String>::new());
    assert_eq!(
        rows(client, "SELECT id FROM passed ORDER BY id").await,
        rows(client, "SELECT id FROM s ORDER BY id").await,
        "each event is taken by one version"
    );
    let sums = "SELECT k, count(*) AS n, sum(id) AS total FROM s GROUP BY k ORDER BY k";
    assert_eq!(rows(client, "SELECT k, n, total FROM summed ORDER BY k").await, rows(client, sums).await);
    let versions = rows(client, "SELECT version FROM passed ORDER BY rowoffset").await;
    let versions: Vec<usize> = versions.iter().map(|version| version.parse().unwrap()).collect();
    assert!(versions.is_sorted(), "an older version after a newer one: {versions:?}");
    assert!(versions.iter().all(|version| *version <= last), "{versions:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replaced_query_takes_each_event_once_whenever_the_server_is_killed() {
    let dir = tempfile::tempdir().unwrap();
    let mut server = Process::start(dir.path());
    let mut client = connect(server.address).await;
    rows(&client, "CREATE STREAM s (id integer, k integer)").await;
    for sql in replacements(0) {
        rows(&client, &sql).await;
    }
    let mut id = 0;
    let insert = |id: &mut usize| {
        *id += 1;
        format!("INSERT INTO s VALUES ({id}, {})", *id % 3)
    };
    for version in 1..=ROUNDS {
        rows(&client, &insert(&mut id)).await;
        let other = connect(server.address).await;
        let replacing = tokio::spawn(async move {
            for sql in replacements(version) {
                drop(other.simple_query(&sql).await);
            }
        });
        for _ in 0..version % 5 {
            rows(&client, &insert(&mut id)).await;
        }
        if version % 3 == 0 {
            replacing.await.unwrap();
        }
        drop(client);
        (server, client) = restart(server, dir.path()).await;
        check_replaced(&client, version).await;
        // Events from now on are the new version's if its text is there.
        rows(&client, &insert(&mut id)).await;
        rows(&client, "FLUSH").await;
        let text = version_of(&client, "passed").await;
        assert!(text == version || version % 3 != 0, "an acknowledged replacement is gone");
        assert_eq!(rows(&client, &format!("SELECT version FROM passed WHERE id = {id}")).await, [text.to_string()]);
        assert!(version_of(&client, "summed").await <= text);
    }
    check_replaced(&client, ROUNDS).await;
    drop(client);
    server.kill();
}
