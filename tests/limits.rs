//! Limits, tried: 1,000 topics, 10,000 partitions of one, 100,000 on a node, and events of 1 and of 64 MiB.
//!
//! The large ones run only when `MILLSTREAM_LIMITS` is set, and print what they took:
//! `MILLSTREAM_LIMITS=1 cargo test -p millstream --test main limits -- --nocapture`.

use crate::common::{Server, config, connect, words};
use millstream::node::Node;
use std::time::Instant;
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
    drop(client);
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_event_of_a_mebibyte_is_stored_and_one_of_64_refused() {
    let server = Server::start().await;
    let client = server.client().await;
    value(&client, "CREATE STREAM s (v text)").await;
    let event = "x".repeat(1 << 20);
    value(&client, &format!("INSERT INTO s VALUES ('{event}')")).await;
    client.execute("INSERT INTO s VALUES ($1)", &[&event]).await.unwrap();
    assert_eq!(value(&client, "SELECT count(*) FROM s WHERE length(v) = 1048576").await, "2");
    let error = client.execute("INSERT INTO s SELECT repeat('x', 67108864)", &[]).await.unwrap_err();
    assert!(words(&error).starts_with("54000"), "{}", words(&error));
    let hint = error.as_db_error().unwrap().hint().unwrap_or_default().to_owned();
    let detail = error.as_db_error().unwrap().detail().unwrap_or_default().to_owned();
    assert!(!hint.is_empty(), "{} / {detail}", words(&error));
    assert_eq!(value(&client, "SELECT count(*) FROM s").await, "2");
    drop(client);
    server.node.stop().await;
}
