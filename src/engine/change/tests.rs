//! Changes beside other sessions: in pipelines, behind barriers, and of tables whose definition changes meanwhile.

use super::plans::Known;
use super::{Plan, Update, Work};
use crate::engine::tests::{in_time, open, run, session};
use crate::engine::{Engine, Session, TransactionStatus};
use crate::storage::upkeep::decide;
use crate::storage::{CompactionPlan, FaultDisk, PartitionFacts, Rewrite, UpkeepPolicy};
use futures::FutureExt;
use millstream_catalog::Relation;
use millstream_catalog::model::{ByteSize, Offset, PartitionId, Span};
use millstream_sql::dialect::Statement;
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

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_error_of_returning_leaves_nothing_written() {
    let (engine, mut session) = with_table().await;
    for sql in [
        "UPDATE t SET v = 5 WHERE k = 1 RETURNING rowoffset, 1 / (v - 5)",
        "INSERT INTO t VALUES (1, 5) ON CONFLICT (k) DO UPDATE SET v = 5 RETURNING 1 / (t.v - 5), *, rowoffset",
    ] {
        assert_eq!(run(&mut session, sql).await.unwrap_err().sqlstate.code(), "22012");
        assert_eq!(rows(&engine).await, ["1|10", "2|20"]);
    }
    let over = "UPDATE t SET v = 5 WHERE k = 1 RETURNING rowoffset + 1";
    assert_eq!(run(&mut session, over).await.unwrap_err().sqlstate.code(), "0A000");
    assert_eq!(rows(&engine).await, ["1|10", "2|20"]);
    let told = "UPDATE t SET v = 5 WHERE k = 1 RETURNING *, rowoffset AS at, t.*, t.rowpartition, v + 1";
    let told = run(&mut session, told).await.unwrap();
    let place = run(&mut session, "SELECT t.*, rowoffset, t.*, rowpartition, v + 1 FROM t WHERE k = 1").await.unwrap();
    assert_eq!(told, place);
    // Where rows were is known.
    let gone = run(&mut session, "DELETE FROM t WHERE k = 1 RETURNING rowoffset * 2 - rowoffset").await.unwrap();
    assert_eq!(gone.len(), 1);
    engine.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rows_that_are_not_committed_have_no_offset() {
    let (engine, mut session) = with_table().await;
    run(&mut session, "CREATE TABLE bag (v bigint)").await.unwrap();
    for sql in [
        "BEGIN; INSERT INTO t VALUES (3, 30); DELETE FROM t WHERE k = 3 RETURNING rowoffset",
        "BEGIN; INSERT INTO t VALUES (3, 30); UPDATE t SET v = rowoffset",
        "BEGIN; INSERT INTO t VALUES (3, 30); UPDATE t AS x SET v = 1 + x.rowoffset WHERE k = 3",
        "BEGIN; INSERT INTO bag VALUES (3); UPDATE bag SET v = rowoffset",
        "BEGIN; INSERT INTO t VALUES (3, 30); \
         INSERT INTO t VALUES (3, 0) ON CONFLICT (k) DO UPDATE SET v = t.rowoffset",
    ] {
        assert_eq!(run(&mut session, sql).await.expect_err(sql).sqlstate.code(), "0A000", "{sql}");
        run(&mut session, "ROLLBACK").await.unwrap();
    }
    let sql = "BEGIN; INSERT INTO t VALUES (3, 30); DELETE FROM t WHERE rowoffset < 1000; \
               UPDATE t SET v = 31 WHERE k = 3; COMMIT";
    run(&mut session, sql).await.unwrap();
    assert_eq!(rows(&engine).await, ["3|31"]);
    // In a pipeline what came before is committed first.
    session.begin_pipeline();
    run(&mut session, "INSERT INTO bag VALUES (1)").await.unwrap();
    let told = run(&mut session, "UPDATE bag SET v = 2 RETURNING v, rowoffset").await.unwrap();
    session.end_implicit(true).await.unwrap();
    assert_eq!(told, run(&mut session, "SELECT v, rowoffset FROM bag").await.unwrap());
    engine.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_statement_of_a_long_transaction_sees_those_before_it() {
    const ROWS: i64 = 60;
    let (engine, mut session) = with_table().await;
    run(&mut session, "CREATE TABLE bag (k integer, v bigint); INSERT INTO bag VALUES (1, 0)").await.unwrap();
    run(&mut session, "BEGIN").await.unwrap();
    for k in 3..3 + ROWS {
        run(&mut session, &format!("INSERT INTO t VALUES ({k}, 0); INSERT INTO bag VALUES ({k}, 0)")).await.unwrap();
        run(&mut session, "SAVEPOINT a; UPDATE t SET v = 1000 WHERE k > 2; DELETE FROM bag").await.unwrap();
        run(&mut session, "ROLLBACK TO a").await.unwrap();
        run(&mut session, "RELEASE a; UPDATE bag SET v = v + 1").await.unwrap();
        for k in [3, k] {
            run(&mut session, &format!("UPDATE t SET v = v + 1 WHERE k = {k}")).await.unwrap();
        }
        if k % 2 == 0 {
            run(&mut session, &format!("DELETE FROM t WHERE k = {k}")).await.unwrap();
        }
    }
    run(&mut session, "DELETE FROM t WHERE k < 3; UPDATE t SET v = v + 100; COMMIT").await.unwrap();
    let expected: Vec<String> = (3..3 + ROWS)
        .filter(|k| k % 2 == 1)
        .map(|k| format!("{k}|{}", if k == 3 { 101 + ROWS } else { 101 }))
        .collect();
    assert_eq!(rows(&engine).await, expected);
    let bag = run(&mut session, "SELECT k, v FROM bag ORDER BY k").await.unwrap();
    let begun = |k: i64| if k == 1 { ROWS } else { ROWS + 3 - k };
    let expected: Vec<String> = [1].into_iter().chain(3..3 + ROWS).map(|k| format!("{k}|{}", begun(k))).collect();
    assert_eq!(bag, expected);
    engine.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_transaction_holds_is_given_back_when_it_fails_or_ends() {
    let (engine, mut session) = with_table().await;
    let many = "INSERT INTO t SELECT g, g FROM generate_series(1, 3000) AS s(g)";
    let sql = "UPDATE t SET v = v + 1 WHERE k = 7";
    let parsed = session.parse(sql).await.unwrap().remove(0);
    let prepared = session.prepare(parsed, &[]).await.unwrap();
    let mut plans_kept = 0;
    for _ in 0..4 {
        run(&mut session, &format!("BEGIN; {many}")).await.unwrap();
        let before = engine.holding.used();
        session.execute(&prepared, vec![], crate::engine::Via::Simple).await.unwrap();
        assert!(engine.holding.used().value() > before.value() + 100_000, "the rows it reads of its own");
        if let Plan::Change(kept) = &prepared.plan
            && let Known::Plans(plans) = kept.take(&engine, &session.settings)
        {
            assert!(!plans.source.has_own(), "a plan that is kept");
            plans_kept += 1;
        }
        run(&mut session, "COMMIT").await.unwrap();
        assert_eq!(engine.holding.used(), ByteSize::ZERO);
    }
    assert!(plans_kept > 0);
    run(&mut session, &format!("BEGIN; {many}; SAVEPOINT a; {many}; SAVEPOINT b")).await.unwrap();
    let held = engine.holding.used();
    run(&mut session, &format!("{many}; {sql}; SELECT nosuch")).await.unwrap_err();
    assert_eq!(engine.holding.used(), held);
    run(&mut session, "ROLLBACK TO a; SELECT nosuch").await.unwrap_err();
    assert!(engine.holding.used().value() <= held.value() / 2 + 1);
    run(&mut session, "ROLLBACK TO a; COMMIT").await.unwrap();
    run(&mut session, &format!("BEGIN; {many}; SELECT nosuch")).await.unwrap_err();
    assert_eq!(engine.holding.used(), ByteSize::ZERO);
    run(&mut session, "COMMIT").await.unwrap();
    // Of a pipeline the rest is passed over until Sync; its rows are free before.
    session.begin_pipeline();
    run(&mut session, "UPDATE t SET v = 0 WHERE k = 7; SELECT nosuch").await.unwrap_err();
    in_time("update", run(&mut self::session(&engine), "UPDATE t SET v = -7 WHERE k = 7")).await.unwrap();
    session.end_implicit(false).await.unwrap();
    assert_eq!(run(&mut session, "SELECT v FROM t WHERE k = 7").await.unwrap(), ["-7"]);
    engine.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn inserts_go_on_while_a_statement_waits_for_rows() {
    let (engine, mut session) = with_table().await;
    let relation = engine.catalog().relation("t").unwrap().clone();
    let mut other = self::session(&engine);
    run(&mut other, "BEGIN; UPDATE t SET v = 1 WHERE k = 1").await.unwrap();
    let parsed = session.parse("UPDATE t SET v = 5 WHERE k = 1").await.unwrap().remove(0);
    let Statement::Change(change) = &parsed.statement else { panic!("no change") };
    let update = Update::bind(&relation, change).unwrap();
    session.take_cuts().await;
    let plans = session.plans(change, &update, &[], engine.clock().now()).await.unwrap();
    let work = Work::Update(update.by(&plans.find));
    let (mut held, owner) = (engine.holding.share(), engine.row_locks.owner());
    let mut computed = work.compute(&session, &plans.source, &[], &mut held).await.unwrap();
    let mut barrier = Some(engine.row_locks.barrier(relation.id));
    let mut looking = Box::pin(session.lock_and_look(&plans.source, &owner, &mut barrier, &mut computed));
    assert!(looking.as_mut().now_or_never().is_none());
    assert!(!engine.row_locks.is_closed(relation.id));
    run(&mut other, "ROLLBACK").await.unwrap();
    assert!(!in_time("lock", looking).await.unwrap());
    // A chain keeps what the transaction was, and is of a block.
    for end in ["COMMIT", "ROLLBACK"] {
        let error = run(&mut other, &format!("{end} AND CHAIN")).await.unwrap_err();
        assert_eq!(error.sqlstate.code(), "25P01");
        run(&mut other, &format!("BEGIN READ ONLY; {end} AND CHAIN")).await.unwrap();
        assert_eq!(run(&mut other, "INSERT INTO t VALUES (8, 8)").await.unwrap_err().sqlstate.code(), "25006");
        run(&mut other, "ROLLBACK").await.unwrap();
    }
    engine.shutdown().await;
}

/// Leaves of each row of the first partition its last event.
async fn compact(engine: &Engine, relation: &Relation) {
    let shard = engine.shard(relation.shard).unwrap();
    let (policy, partition) =
        (UpkeepPolicy { compaction: Some(Span::from_micros(0)), ..Default::default() }, PartitionId::new(0));
    for _ in 0..20 {
        shard.seal().await.unwrap();
        let facts = PartitionFacts::of(&shard.partitions().get(relation.id, partition).unwrap().view());
        let now = engine.clock().now();
        let Some(range) = decide(&facts, &policy, Offset::new(u64::MAX), now).rewrite else { return };
        let key = relation.identity().into_iter().map(|column| column as u32).collect();
        let rewrite = Rewrite {
            topic: relation.id,
            partition,
            offsets: range.offsets,
            number: facts.rewrites() + 1,
            compression: relation.options.compression,
            compaction: range.tombstones_upto.map(|tombstones_upto| CompactionPlan { key, tombstones_upto, now }),
        };
        shard.rewrite(vec![rewrite], Arc::default()).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn changes_of_rows_without_a_key_take_no_more_than_there_is() {
    let (engine, mut session) = with_table().await;
    run(&mut session, "CREATE TABLE bag (v bigint); INSERT INTO bag VALUES (1), (2)").await.unwrap();
    for _ in 0..20 {
        run(&mut session, "UPDATE bag SET v = v + 1").await.unwrap();
    }
    let relation = engine.catalog().relation("bag").unwrap().clone();
    let partitions = engine.shard(relation.shard).unwrap().partitions();
    let room = crate::engine::held::HoldingRoom::new(ByteSize::new(30 * 96));
    let tables = crate::engine::table::Tables::new(room.clone());
    let cut = partitions.applied();
    for _ in 0..2 {
        assert_eq!(tables.versions(&relation, &partitions, cut).unwrap_err().sqlstate.code(), "53200");
        assert_eq!(room.used(), ByteSize::ZERO);
    }
    // What compaction has left fits again.
    let room = crate::engine::held::HoldingRoom::new(ByteSize::new(45 * 96));
    let tables = crate::engine::table::Tables::new(room.clone());
    tables.versions(&relation, &partitions, cut).unwrap();
    compact(&engine, &relation).await;
    for _ in 0..10 {
        run(&mut session, "UPDATE bag SET v = v + 1").await.unwrap();
        tables.versions(&relation, &partitions, partitions.applied()).unwrap();
    }
    run(&mut session, "TRUNCATE bag; INSERT INTO bag VALUES (1); UPDATE bag SET v = 2").await.unwrap();
    let partitions = engine.shard(relation.shard).unwrap().partitions();
    tables.versions(&relation, &partitions, partitions.applied()).unwrap();
    assert_eq!(room.used().value(), 96);
    engine.shutdown().await;
}
