//! Statements sent without waiting for answers: each is answered by itself, in order, and is a transaction of its own.

use crate::common::{Server, words};
use crate::protocol::{Raw, bind, execute, parse, query, sync};

const COUNT: usize = 3_000;

/// Types of messages, without changed settings.
fn tags(messages: &[(char, String)]) -> String {
    messages.iter().map(|(tag, _)| *tag).filter(|tag| *tag != 'S').collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pipelined_inserts_are_answered_one_by_one_and_in_order() {
    let server = Server::start().await;
    let mut raw = Raw::connect(server.node.pg_address()).await;
    raw.run("CREATE STREAM s (n integer NOT NULL)").await;
    let mut sent = Vec::new();
    for number in 0..COUNT {
        let value = if number % 1_000 == 999 { "NULL".to_owned() } else { number.to_string() };
        sent.extend(parse("", &format!("INSERT INTO s VALUES ({value})")));
        sent.extend(bind("", ""));
        sent.extend(execute("", 0));
        sent.extend(sync());
    }
    // It sees all that was sent before it.
    sent.extend(query("SELECT count(*) FROM s"));
    raw.send(&[&sent]).await;
    for number in 0..COUNT {
        let messages = raw.messages().await;
        let expected = if number % 1_000 == 999 { "12EZI" } else { "12CZI" };
        assert_eq!(tags(&messages), expected, "{number}: {messages:?}");
    }
    let messages = raw.messages().await;
    let count = COUNT - COUNT / 1_000;
    assert!(messages[1].1.ends_with(&count.to_string()), "{messages:?}");
    assert_eq!(raw.value("SELECT count(DISTINCT n) FROM s WHERE n = rowoffset + n / 1000").await, count.to_string());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pipelined_texts_keep_their_order_with_what_is_no_insert() {
    let server = Server::start().await;
    let mut raw = Raw::connect(server.node.pg_address()).await;
    raw.run("CREATE STREAM s (n integer NOT NULL); CREATE TABLE t (k integer PRIMARY KEY, v integer)").await;
    let mut sent = Vec::new();
    let mut expected = Vec::new();
    let mut send = |sql: &str, tags: &str| {
        sent.extend(query(sql));
        expected.push((sql.to_owned(), tags.to_owned()));
    };
    for round in 0..50 {
        send("INSERT INTO s VALUES (1)", "CZI");
        send("INSERT INTO t VALUES (1, 1)", "CZI");
        send("INSERT INTO s VALUES (2), (3)", "CZI");
        send("INSERT INTO s VALUES (2), (NULL)", "EZI");
        send("nonsense", "EZI");
        send("INSERT INTO s VALUES (4) RETURNING rowoffset", "TDCZI");
        send("SELECT n FROM s WHERE n > 4", "TCZI");
        send("BEGIN", "CZT");
        send("INSERT INTO s VALUES (5)", "CZT");
        send(if round % 2 == 0 { "COMMIT" } else { "ROLLBACK" }, "CZI");
        send("INSERT INTO s VALUES (6); INSERT INTO s VALUES (7)", "CCZI");
        send("DELETE FROM s", "EZI");
        send("SET application_name = 'x'", "CZI");
        send("TRUNCATE s", "CZI");
    }
    raw.send(&[&sent]).await;
    for (sql, tags) in expected {
        let messages = raw.messages().await;
        assert_eq!(self::tags(&messages), tags, "{sql}: {messages:?}");
    }
    assert_eq!(raw.value("SELECT count(*) FROM s").await, "0");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pipelined_statement_behind_a_gap_fails_too() {
    let server = Server::start().await;
    let client = server.client().await;
    client.batch_execute("CREATE STREAM s (n bigint); SET producer_id = 'p'").await.unwrap();
    let insert = client.prepare("INSERT INTO s VALUES ($1) WITH (sequence = $1)").await.unwrap();
    let numbers: Vec<i64> = (0..10).chain(11..15).collect();
    let sending = numbers.iter().map(|number| {
        let (client, insert) = (&client, &insert);
        async move { client.execute(insert, &[number]).await }
    });
    let answers = futures::future::join_all(sending).await;
    for (number, answer) in numbers.iter().zip(answers) {
        match answer {
            Ok(count) => assert!(*number < 10 && count == 1, "{number}"),
            Err(error) => assert!(*number > 10 && words(&error).contains("does not follow"), "{number}: {error}"),
        }
    }
    let row = client.query_one("SELECT count(*), max(n) FROM s", &[]).await.unwrap();
    assert_eq!((row.get::<_, i64>(0), row.get::<_, i64>(1)), (10, 9));
}
