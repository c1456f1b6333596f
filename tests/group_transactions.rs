//! Members of consumer groups within transactions, beside others of their group.

use crate::churn::{ask, scalar, until_it_is};
use crate::common::{Server, words};
use std::collections::BTreeSet;
use tokio_postgres::{Client, SimpleQueryMessage};

const CURSOR: &str = "CURSOR WITH HOLD FOR SELECT n, rowpartition FROM t
                      EMIT CHANGES WITH (group = 'g', auto_offset_reset = 'earliest')";

async fn run(client: &Client, sql: &str) {
    ask(client, sql).await.unwrap_or_else(|error| panic!("{sql}: {}", words(&error)));
}

/// Numbers and partitions.
async fn fetch(client: &Client, sql: &str) -> Vec<(i64, i64)> {
    let messages = ask(client, sql).await.unwrap_or_else(|error| panic!("{sql}: {}", words(&error)));
    let row = |message: &SimpleQueryMessage| match message {
        SimpleQueryMessage::Row(row) => {
            Some((row.get(0).unwrap().parse().unwrap(), row.get(1).unwrap().parse().unwrap()))
        }
        _ => None,
    };
    messages.iter().filter_map(row).collect()
}

async fn begun(partitions: u32) -> (Server, Client) {
    let server = Server::start().await;
    let client = server.client().await;
    run(&client, &format!("CREATE STREAM t (n bigint KEY) WITH (partitions = {partitions})")).await;
    run(&client, "INSERT INTO t SELECT n FROM generate_series(0, 99) AS g(n)").await;
    (server, client)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_transaction_keeps_the_partitions_it_has_rows_of_and_no_others() {
    for end in ["COMMIT", "ROLLBACK"] {
        let (server, client) = begun(4).await;
        let (a, b) = (server.client().await, server.client().await);
        run(&a, &format!("DECLARE c {CURSOR}")).await;
        run(&a, "BEGIN").await;
        let first = fetch(&a, "FETCH 2 FROM c").await;
        run(&b, &format!("DECLARE c {CURSOR}")).await;
        let theirs = fetch(&b, "FETCH 40 FROM c").await;
        let of = |rows: &[(i64, i64)]| rows.iter().map(|(_, partition)| *partition).collect::<BTreeSet<_>>();
        assert!(of(&first).is_disjoint(&of(&theirs)), "{first:?} {theirs:?}");
        let second = fetch(&a, "FETCH 2 FROM c").await;
        run(&a, end).await;
        // Each event comes to one of them; what was rolled back, again.
        let kept = if end == "COMMIT" { [first, second, theirs].concat() } else { theirs };
        let mut all: Vec<i64> = kept.iter().map(|row| row.0).collect();
        while all.len() < 100 {
            for client in [&a, &b] {
                let rows = fetch(client, "FETCH 100 FROM c WITH (timeout = '50ms')").await;
                all.extend(rows.iter().map(|row| row.0));
            }
        }
        all.sort_unstable();
        assert_eq!(all, (0..100).collect::<Vec<_>>());
        run(&a, "CLOSE c").await;
        run(&b, "CLOSE c").await;
        let lag = "SELECT sum(lag) FROM millstream.consumer_group_offsets WHERE group_name = 'g'";
        assert_eq!(scalar(&client, lag).await, Some("0".to_owned()));
        server.node.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_transaction_reads_a_group_by_two_cursors_and_does_not_wait_for_itself() {
    let (server, client) = begun(2).await;
    let a = server.client().await;
    run(&a, &format!("BEGIN; DECLARE c {CURSOR}")).await;
    let first = fetch(&a, "FETCH 2 FROM c").await;
    run(&a, &format!("DECLARE d {CURSOR}")).await;
    let second = fetch(&a, "FETCH 2 FROM d").await;
    assert_ne!(first[0].1, second[0].1);
    // What a closed cursor gave is the transaction's.
    run(&a, "CLOSE d; SAVEPOINT s").await;
    let error = ask(&a, &format!("DECLARE e {CURSOR}")).await.unwrap_err();
    assert_eq!(error.code().unwrap().code(), "55006");
    run(&a, "ROLLBACK TO s; COMMIT").await;
    let taken = "SELECT sum(committed_offset) FROM millstream.consumer_group_offsets WHERE group_name = 'g'";
    until_it_is(&client, taken, "4").await;
    run(&a, &format!("DECLARE e {CURSOR}")).await;
    assert_eq!(fetch(&a, "FETCH 10 FROM e").await.len(), 10);
    server.node.stop().await;
}
