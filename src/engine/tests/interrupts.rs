//! Statements that nobody waits for any more, and those beside them.

use super::{in_time, open, run, session};
use crate::engine::{Outcome, Rows, Session, Via};
use crate::storage::FaultDisk;
use std::sync::Arc;

/// Hours of work that has no row to give.
const ENDLESS: &str =
    "SELECT count(*) FROM generate_series(1, 300000) AS a(x), generate_series(1, 300000) AS b(y) WHERE x + y < 0";

async fn begin(session: &mut Session, sql: &str) -> Rows {
    let parsed = session.parse(sql).await.unwrap().remove(0);
    let prepared = session.prepare(parsed, &[]).await.unwrap();
    match session.execute(&prepared, vec![], Via::Simple).await.unwrap() {
        Outcome::Rows(rows) => rows,
        other => panic!("{other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_long_join_holds_up_nobody_and_ends_when_nobody_waits_for_it() {
    let engine = open(&FaultDisk::new(), Arc::default()).await.unwrap();
    let mut reader = session(&engine);
    run(&mut reader, "CREATE STREAM s (v bigint); INSERT INTO s VALUES (7)").await.unwrap();
    let (mut first, mut second) = (session(&engine), session(&engine));
    let joins = [begin(&mut first, ENDLESS).await, begin(&mut second, ENDLESS).await];
    let working = async {
        while engine.query_memory.used().value() == 0 {
            tokio::task::yield_now().await;
        }
    };
    in_time("the joins begin", working).await;
    // There is one query thread.
    let read = in_time("a read beside two joins", run(&mut reader, "SELECT v + 1 FROM s")).await;
    assert_eq!(read.unwrap(), ["8"]);
    drop(joins);
    let idle = async {
        while engine.query_memory.used().value() > 0 {
            tokio::task::yield_now().await;
        }
    };
    in_time("the joins end", idle).await;
    drop((first, second, reader));
    in_time("shutdown", engine.shutdown()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_statement_that_commits_those_before_it_can_be_cancelled_afterwards() {
    let engine = open(&FaultDisk::new(), Arc::default()).await.unwrap();
    let mut writer = session(&engine);
    run(&mut writer, "CREATE STREAM s (v bigint); INSERT INTO s VALUES (1)").await.unwrap();
    assert!(writer.handed().is_set());
    writer.begin_pipeline();
    run(&mut writer, "INSERT INTO s VALUES (2); FLUSH").await.unwrap();
    assert!(!writer.handed().is_set());
    assert_eq!(run(&mut writer, "SELECT v FROM s").await.unwrap(), ["1", "2"]);
    drop(writer);
    in_time("shutdown", engine.shutdown()).await;
}
