//! Changes beside other sessions: in pipelines, behind barriers, and of tables whose definition changes meanwhile.

use crate::engine::tests::{in_time, open, run, session};
use crate::engine::{Engine, Session, TransactionStatus};
use crate::storage::FaultDisk;
use std::sync::Arc;

/// An engine with table `t (k, v)` of the rows (1, 10) and (2, 20), at places that say which is which.
async fn with_table() -> (Arc<Engine>, Session) {
    let engine = open(&FaultDisk::new(), Arc::default()).await.unwrap();
    let mut session = session(&engine);
    let sql = "CREATE TABLE t (k integer PRIMARY KEY, v bigint); \
               INSERT INTO t VALUES (1, 0); INSERT INTO t VALUES (1, 10), (2, 20)";
    run(&mut session, sql).await.unwrap();
    (engine, session)
}

async fn rows(engine: &Arc<Engine>) -> Vec<String> {
    run(&mut session(engine), "SELECT * FROM t ORDER BY k").await.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_insert_is_queued_ahead_while_its_table_is_closed() {
    let (engine, mut session) = with_table().await;
    let parsed = session.parse("INSERT INTO t VALUES (3, 30)").await.unwrap().remove(0);
    let prepared = session.prepare(parsed, &[]).await.unwrap();
    assert!(session.ahead_shard(&prepared).is_some());
    let table = engine.catalog().relation("t").unwrap().id;
    let barrier = engine.row_locks.barrier(table);
    assert!(session.ahead_shard(&prepared).is_none());
    drop(barrier);
    assert!(session.ahead_shard(&prepared).is_some());
    engine.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_has_rows_does_not_wait_for_those_who_want_them() {
    let (engine, mut session) = with_table().await;
    let table = engine.catalog().relation("t").unwrap().id;
    let sql = "BEGIN; SAVEPOINT a; UPDATE t SET v = 1 WHERE k = 1; ROLLBACK TO a; INSERT INTO t VALUES (3, 30)";
    run(&mut session, sql).await.unwrap();
    let barrier = engine.row_locks.barrier(table);
    in_time("commit", run(&mut session, "COMMIT")).await.unwrap();
    session.begin_pipeline();
    let pipelined = "UPDATE t SET v = 11 WHERE k = 1; INSERT INTO t VALUES (4, 40) RETURNING k, rowoffset >= 0";
    assert_eq!(in_time("pipeline", run(&mut session, pipelined)).await.unwrap_err().sqlstate.code(), "0A000");
    session.end_implicit(false).await.unwrap();
    session.begin_pipeline();
    let pipelined = "UPDATE t SET v = 11 WHERE k = 1; INSERT INTO t VALUES (4, 40) RETURNING rowoffset";
    assert_eq!(in_time("pipeline", run(&mut session, pipelined)).await.unwrap().len(), 1);
    session.end_implicit(true).await.unwrap();
    drop(barrier);
    assert_eq!(rows(&engine).await, ["1|11", "2|20", "3|30", "4|40"]);
    engine.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_commit_that_fails_begins_nothing() {
    let (engine, mut session) = with_table().await;
    run(&mut session, "BEGIN; UPDATE t SET v = v + 1 WHERE k = 1").await.unwrap();
    run(&mut self::session(&engine), "INSERT INTO t VALUES (1, 100)").await.unwrap();
    let error = run(&mut session, "COMMIT AND CHAIN").await.unwrap_err();
    assert_eq!((error.sqlstate.code(), session.transaction_status()), ("40001", TransactionStatus::Idle));
    run(&mut session, "BEGIN; UPDATE t SET v = v + 1 WHERE k = 1; COMMIT AND CHAIN").await.unwrap();
    assert_eq!(session.transaction_status(), TransactionStatus::Open);
    run(&mut session, "ROLLBACK").await.unwrap();
    assert_eq!(rows(&engine).await, ["1|101", "2|20"]);
    engine.shutdown().await;
}
