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

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn places_are_true_in_a_pipeline_and_for_rows_in_conflict() {
    let (engine, mut session) = with_table().await;
    session.begin_pipeline();
    let sql = "INSERT INTO t VALUES (9, 90); UPDATE t SET v = 11 WHERE k = 1 RETURNING rowpartition, rowoffset";
    let told = run(&mut session, sql).await.unwrap();
    let upsert = "INSERT INTO t VALUES (3, 30), (2, 21) ON CONFLICT (k) DO UPDATE SET v = excluded.v \
                  RETURNING rowpartition, rowoffset, v";
    let upserted = run(&mut session, upsert).await.unwrap();
    session.end_implicit(true).await.unwrap();
    let place = "SELECT rowpartition, rowoffset FROM t WHERE k = 1";
    assert_eq!(told, run(&mut session, place).await.unwrap());
    assert_ne!(told, ["0|0"]);
    let places = "SELECT rowpartition, rowoffset, v FROM t WHERE k IN (2, 3) ORDER BY v DESC";
    assert_eq!(upserted, run(&mut session, places).await.unwrap());
    // Those in DO UPDATE are of the row that is there.
    let place = run(&mut session, "SELECT rowpartition * 1000 + rowoffset FROM t WHERE k = 3").await.unwrap();
    let seen =
        "INSERT INTO t VALUES (4, 0), (3, 0) ON CONFLICT (k) DO UPDATE SET v = t.rowpartition * 1000 + t.rowoffset";
    run(&mut session, seen).await.unwrap();
    assert_eq!(run(&mut session, "SELECT v FROM t WHERE k = 3").await.unwrap(), place);
    let none = "INSERT INTO t VALUES (2, 0) ON CONFLICT (k) DO UPDATE SET v = 0 WHERE t.rowoffset > 1000";
    run(&mut session, none).await.unwrap();
    assert_eq!(run(&mut session, "SELECT v FROM t WHERE k = 2").await.unwrap(), ["21"]);
    let error =
        run(&mut session, "INSERT INTO t VALUES (2, 0) ON CONFLICT (k) DO UPDATE SET v = excluded.rowoffset").await;
    assert_eq!(error.unwrap_err().sqlstate.code(), "42703");
    engine.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pipelines_that_want_places_do_not_fail_when_rows_change_meanwhile() {
    const ROUNDS: i64 = 20;
    let (engine, _) = with_table().await;
    let update = |mut session: Session| async move {
        for _ in 0..ROUNDS {
            session.begin_pipeline();
            let told = run(&mut session, "UPDATE t SET v = v + 1 WHERE k = 2 RETURNING rowoffset").await.unwrap();
            session.end_implicit(true).await.unwrap();
            assert_eq!(told.len(), 1);
        }
    };
    futures::future::join_all((0..4).map(|_| update(session(&engine)))).await;
    assert_eq!(rows(&engine).await, ["1|10".to_owned(), format!("2|{}", 20 + 4 * ROUNDS)]);
    engine.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn columns_may_be_added_between_two_changes_of_a_transaction() {
    let (engine, mut session) = with_table().await;
    run(&mut session, "BEGIN; UPDATE t SET v = v + 1; INSERT INTO t VALUES (3, 30)").await.unwrap();
    run(&mut self::session(&engine), "ALTER TABLE t ADD COLUMN w integer DEFAULT 7").await.unwrap();
    run(&mut session, "UPDATE t SET v = v + w WHERE k < 3; UPDATE t SET w = 8 WHERE k = 3; COMMIT").await.unwrap();
    assert_eq!(rows(&engine).await, ["1|18|7", "2|28|7", "3|30|8"]);
    engine.shutdown().await;
}
