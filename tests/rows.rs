//! Random changes of rows, with a key and without, against a model: transactions, savepoints, restarts, segments and
//! compaction, and continuous queries that follow.
//!
//! The model is a list of rows in memory; it shares nothing with what it checks.

use crate::changes::{number, together};
use crate::common::{DEADLINE, Server, connect, words};
use crate::damage::{rows, sealing};
use millstream::node::Node;
use millstream::offline::backup::{backup, restore};
use millstream::offline::dump::{RowFormat, dump};
use millstream::storage::RealDisk;
use std::sync::Arc;
use tokio_postgres::Client;

const STEPS: usize = 360;
/// The table without a key gets so many rows at once now and then, so that there are segments.
const MANY: i64 = 700;

struct Seeded(u64);

impl Seeded {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % bound
    }
}

/// Rows of the table without a key: a number, and how often it was changed.
#[derive(Debug, Clone, Default)]
struct Model {
    rows: Vec<(i64, i64)>,
}

/// Which rows a statement is about, in SQL and in the model.
fn condition(seeded: &mut Seeded) -> (String, Box<dyn Fn(i64, i64) -> bool>) {
    let number = seeded.below(40) as i64;
    match seeded.below(6) {
        0 => (format!("v = {number}"), Box::new(move |v, _| v == number)),
        1 => (format!("v IN ({number}, {})", number + 3), Box::new(move |v, _| v == number || v == number + 3)),
        2 => (format!("v % 7 = {}", number % 7), Box::new(move |v, _| v % 7 == number % 7)),
        3 => (format!("n > {}", number % 4), Box::new(move |_, n| n > number % 4)),
        4 => {
            (format!("v BETWEEN {number} AND {}", number + 2), Box::new(move |v, _| (number..=number + 2).contains(&v)))
        }
        _ => (format!("v > 30 AND n = {}", number % 3), Box::new(move |v, n| v > 30 && n == number % 3)),
    }
}

impl Model {
    /// One statement, which is run and repeated here.
    async fn step(&mut self, client: &Client, seeded: &mut Seeded) {
        let (sql, changed) = match seeded.below(9) {
            0..3 => {
                let new: Vec<i64> = (0..=seeded.below(4)).map(|_| seeded.below(40) as i64).collect();
                self.rows.extend(new.iter().map(|v| (*v, 0)));
                let values: Vec<String> = new.iter().map(|v| format!("({v}, 0)")).collect();
                (format!("INSERT INTO b VALUES {}", values.join(", ")), new.len())
            }
            3..7 => {
                let (sql, is_meant) = condition(seeded);
                let mut changed = 0;
                for (v, n) in self.rows.iter_mut().filter(|(v, n)| is_meant(*v, *n)) {
                    (*v, *n, changed) = ((*v + 1) % 45, *n + 1, changed + 1);
                }
                (format!("UPDATE b SET v = (v + 1) % 45, n = n + 1 WHERE {sql}"), changed)
            }
            _ => {
                let (sql, is_meant) = condition(seeded);
                let before = self.rows.len();
                self.rows.retain(|(v, n)| !is_meant(*v, *n));
                (format!("DELETE FROM b WHERE {sql}"), before - self.rows.len())
            }
        };
        let told = client.execute(sql.as_str(), &[]).await;
        assert_eq!(told.unwrap_or_else(|error| panic!("{sql}: {}", words(&error))), changed as u64, "{sql}");
    }

    /// A transaction with savepoints, of which some are rolled back.
    async fn transaction(&mut self, client: &Client, seeded: &mut Seeded) {
        let before = self.clone();
        client.batch_execute("BEGIN").await.unwrap();
        for _ in 0..seeded.below(5) {
            let saved = self.clone();
            client.batch_execute("SAVEPOINT s").await.unwrap();
            for _ in 0..1 + seeded.below(3) {
                self.step(client, seeded).await;
            }
            if seeded.below(3) == 0 {
                client.batch_execute("ROLLBACK TO s").await.unwrap();
                *self = saved;
            }
        }
        if seeded.below(4) == 0 {
            client.batch_execute("ROLLBACK").await.unwrap();
            *self = before;
        } else {
            client.batch_execute("COMMIT").await.unwrap();
        }
    }

    async fn check(&self, client: &Client, table: &str, step: usize) {
        let mut expected: Vec<(i64, i64)> = self.rows.clone();
        expected.sort_unstable();
        let expected: Vec<String> = expected.into_iter().map(|(v, n)| format!("{v}|{n}")).collect();
        let found = rows(client, &format!("SELECT v, n FROM {table} ORDER BY v, n")).await.unwrap();
        assert_eq!(found, expected, "{table} after step {step}");
        let counted = rows(client, &format!("SELECT count(*), sum(v) FROM {table} WHERE v > 20")).await.unwrap();
        let own: Vec<i64> = self.rows.iter().map(|row| row.0).filter(|v| *v > 20).collect();
        let sum = if own.is_empty() { "null".to_owned() } else { own.iter().sum::<i64>().to_string() };
        assert_eq!(counted, [format!("{}|{sum}", own.len())], "{table} after step {step}");
        assert_eq!(number(client, &format!("SELECT count(*) FROM {table}")).await, self.rows.len() as i64, "{table}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rows_without_a_key_are_what_a_model_says() {
    let dir = tempfile::tempdir().unwrap();
    let config = sealing(dir.path());
    let mut node = Node::start(&config).await.unwrap();
    let mut client = connect(node.pg_address()).await;
    client.batch_execute("CREATE TABLE b (v bigint NOT NULL, n bigint NOT NULL) WITH (partitions = 3)").await.unwrap();
    let follow = "CREATE TABLE copied AS SELECT v, n FROM b EMIT CHANGES";
    client.batch_execute(follow).await.unwrap();
    client.batch_execute("CREATE TABLE part AS SELECT v, n FROM b WHERE v > 20 EMIT CHANGES").await.unwrap();
    let (mut model, mut seeded) = (Model::default(), Seeded(7));
    for step in 0..STEPS {
        match seeded.below(40) {
            0..8 => model.transaction(&client, &mut seeded).await,
            8..11 => {
                let insert = format!("INSERT INTO b SELECT i % 40, 0 FROM generate_series(1, {MANY}) AS i");
                client.batch_execute(&insert).await.unwrap();
                model.rows.extend((1..=MANY).map(|i| (i % 40, 0)));
            }
            11 if step > STEPS / 2 => {
                client.batch_execute("TRUNCATE b").await.unwrap();
                model.rows.clear();
                // What queries made of the events stays: they begin again.
                client.batch_execute(&format!("DROP TABLE copied; DROP TABLE part; {follow}")).await.unwrap();
                let part = "CREATE TABLE part AS SELECT v, n FROM b WHERE v > 20 EMIT CHANGES";
                client.batch_execute(part).await.unwrap();
            }
            12..14 => {
                node.stop().await;
                node = Node::start(&config).await.unwrap();
                client = connect(node.pg_address()).await;
            }
            _ => model.step(&client, &mut seeded).await,
        }
        if step % 4 == 0 {
            model.check(&client, "b", step).await;
        }
    }
    client.batch_execute("FLUSH").await.unwrap();
    model.check(&client, "b", STEPS).await;
    model.check(&client, "copied", STEPS).await;
    model.rows.retain(|(v, _)| *v > 20);
    model.check(&client, "part", STEPS).await;
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rows_without_a_key_lose_no_change_of_many_clients() {
    let server = Server::start().await;
    let client = server.client().await;
    let address = server.node.pg_address();
    client.batch_execute("CREATE TABLE c (n bigint); INSERT INTO c VALUES (0)").await.unwrap();
    let changes = together(address, "UPDATE c SET n = n + 1").await;
    assert_eq!(rows(&client, "SELECT * FROM c").await.unwrap(), [changes.to_string()]);
    // Two transactions want each other's row: one is told, nobody hangs.
    client.batch_execute("TRUNCATE c; INSERT INTO c VALUES (1), (2)").await.unwrap();
    let (one, two) = (connect(address).await, connect(address).await);
    one.batch_execute("BEGIN; UPDATE c SET n = n + 10 WHERE n = 1").await.unwrap();
    two.batch_execute("BEGIN; UPDATE c SET n = n + 10 WHERE n = 2").await.unwrap();
    let both = async {
        tokio::join!(
            one.batch_execute("UPDATE c SET n = n + 100 WHERE n = 2; COMMIT"),
            two.batch_execute("UPDATE c SET n = n + 100 WHERE n = 1; COMMIT")
        )
    };
    let waiting = tokio::time::timeout(DEADLINE, both);
    let release = async {
        // Neither may wait for ever: the one that is told gives its row back with its connection's block.
        let (first, second) = waiting.await.unwrap();
        [first, second].into_iter().filter_map(Result::err).map(|error| words(&error)).collect::<Vec<_>>()
    };
    assert_eq!(release.await, ["40P01: deadlock detected"]);
    // Own rows of two transactions are not each other's, though both call their first row the same.
    client.batch_execute("TRUNCATE c").await.unwrap();
    one.batch_execute("ROLLBACK; BEGIN; INSERT INTO c VALUES (1); UPDATE c SET n = n + 1").await.unwrap();
    let other = two.batch_execute("ROLLBACK; BEGIN; INSERT INTO c VALUES (5); UPDATE c SET n = n + 1; COMMIT");
    tokio::time::timeout(DEADLINE, other).await.unwrap().unwrap();
    one.batch_execute("DELETE FROM c WHERE n = 2; COMMIT").await.unwrap();
    assert_eq!(rows(&client, "SELECT * FROM c").await.unwrap(), ["6"]);
    // Who waits is told after its time.
    one.batch_execute("BEGIN; UPDATE c SET n = 0").await.unwrap();
    for (setting, expected) in [("lock_timeout", "55P03"), ("statement_timeout", "57014")] {
        two.batch_execute(&format!("SET {setting} = '50ms'")).await.unwrap();
        let error = two.batch_execute("UPDATE c SET n = 1").await.unwrap_err();
        assert!(words(&error).starts_with(expected), "{}", words(&error));
        two.batch_execute(&format!("RESET {setting}")).await.unwrap();
    }
    one.batch_execute("ROLLBACK").await.unwrap();
    two.batch_execute("UPDATE c SET n = 1").await.unwrap();
    server.node.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn changed_rows_without_a_key_outlast_compaction_backup_and_restart() {
    let dir = tempfile::tempdir().unwrap();
    let mut config = sealing(dir.path());
    let node = Node::start(&config).await.unwrap();
    let client = connect(node.pg_address()).await;
    client.batch_execute("CREATE TABLE t (v bigint NOT NULL, s text) WITH (partitions = 2)").await.unwrap();
    client.batch_execute("INSERT INTO t SELECT i, 'same' FROM generate_series(1, 1000) AS x(i)").await.unwrap();
    client.batch_execute("INSERT INTO t SELECT 1, 'same' FROM generate_series(1, 1000) AS x(i)").await.unwrap();
    for _ in 0..40 {
        client.batch_execute("UPDATE t SET v = v + 1").await.unwrap();
    }
    client.batch_execute("DELETE FROM t WHERE v % 10 = 0; UPDATE t SET s = md5(v::text) WHERE v < 500").await.unwrap();
    // Numbers 41 to 1040, less those that end in 0; and 1000 times 41.
    let sql = "SELECT count(*), sum(v), min(v), max(v), count(DISTINCT v), count(*) FILTER (WHERE s = 'same') FROM t";
    let expected = "1900|527000|41|1039|900|486";
    assert_eq!(rows(&client, sql).await.unwrap(), [expected]);
    let places = "SELECT count(DISTINCT rowpartition * 1000000 + rowoffset), sum(rowoffset) FROM t";
    let placed = rows(&client, places).await.unwrap();
    let begun = std::time::Instant::now();
    let events = "SELECT sum(events)::bigint FROM millstream.partitions WHERE topic = 't'";
    while number(&client, events).await > 20_000 {
        assert!(begun.elapsed() < DEADLINE, "{} events", number(&client, events).await);
        assert_eq!(rows(&client, sql).await.unwrap(), [expected], "while it is compacted");
    }
    assert_eq!(rows(&client, sql).await.unwrap(), [expected]);
    assert_eq!(rows(&client, places).await.unwrap(), placed, "rows stay in their places");
    let (data, to, restored) = (config.data_dir.clone(), dir.path().join("copy"), dir.path().join("restored"));
    let (from, into) = (to.clone(), restored.clone());
    let copying = tokio::task::spawn_blocking(move || {
        assert!(backup(Arc::new(RealDisk), &data, &to, None).unwrap().report.is_clean());
        assert!(restore(Arc::new(RealDisk), &from, &into).unwrap().report.is_clean());
    });
    copying.await.unwrap();
    drop(client);
    node.stop().await;
    for data_dir in [config.data_dir.clone(), restored] {
        config.data_dir = data_dir;
        let node = Node::start(&config).await.unwrap();
        let client = connect(node.pg_address()).await;
        assert_eq!(rows(&client, sql).await.unwrap(), [expected]);
        assert_eq!(rows(&client, places).await.unwrap(), placed);
        assert_eq!(client.execute("UPDATE t SET s = 'last' WHERE v = 41", &[]).await.unwrap(), 1001);
        assert_eq!(client.execute("DELETE FROM t WHERE s <> 'last'", &[]).await.unwrap(), 899);
        assert_eq!(rows(&client, "SELECT v, s, count(*) FROM t GROUP BY v, s").await.unwrap(), ["41|last|1001"]);
        drop(client);
        node.stop().await;
        // Files have every event as it is, also those by which rows changed.
        let mut text = Vec::new();
        dump(&RealDisk, &config.data_dir, Some(RowFormat::Csv), &mut text).unwrap();
        let text = String::from_utf8(text).unwrap();
        assert!(text.contains("rowfirst,rowgone"), "{}", &text[..text.len().min(2000)]);
        assert!(text.lines().filter(|line| line.contains(",last,")).count() >= 1001);
    }
}
