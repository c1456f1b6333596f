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

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_block_declared_and_set_goes_when_its_commit_is_cancelled() {
    let engine = open(&FaultDisk::new(), Arc::default()).await.unwrap();
    let mut writer = session(&engine);
    run(&mut writer, "CREATE STREAM s (v bigint)").await.unwrap();
    let block = "BEGIN; SET fetch_timeout = '7s'; DECLARE c CURSOR WITH HOLD FOR SELECT 1; INSERT INTO s VALUES (1)";
    loop {
        run(&mut writer, block).await.unwrap();
        let parsed = writer.parse("COMMIT").await.unwrap().remove(0);
        let prepared = writer.prepare(parsed, &[]).await.unwrap();
        let mut commit = Box::pin(writer.execute(&prepared, vec![], Via::Simple));
        if futures::poll!(&mut commit).is_pending() {
            break;
        }
        // It was done sooner than it could be cancelled.
        drop(commit);
        assert_eq!(run(&mut writer, "SHOW fetch_timeout").await.unwrap(), ["7s"]);
        run(&mut writer, "CLOSE c; RESET fetch_timeout").await.unwrap();
    }
    drop(writer.begin_statement("SHOW fetch_timeout"));
    assert_eq!(run(&mut writer, "SHOW fetch_timeout").await.unwrap(), ["0"]);
    assert!(writer.cursor_columns("c").is_none());
    run(&mut writer, block).await.unwrap();
    run(&mut writer, "COMMIT").await.unwrap();
    drop(writer.begin_statement("SHOW fetch_timeout"));
    assert_eq!(run(&mut writer, "SHOW fetch_timeout").await.unwrap(), ["7s"]);
    assert!(writer.cursor_columns("c").is_some());
    drop(writer);
    in_time("shutdown", engine.shutdown()).await;
}
