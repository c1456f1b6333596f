//! `durability = 'async'` when the power fails: what was acknowledged as synced is there, of the rest a beginning.

use super::*;

/// A stopped engine's disk: two topics that are async and one that is not, spread over two shards, and a table made of
/// one of them, async too.
async fn founded() -> FaultDisk {
    let disk = FaultDisk::new();
    let engine = open(&disk, Arc::default()).await.unwrap();
    let mut session = session(&engine);
    for sql in [
        "CREATE STREAM a (k integer KEY, v bigint) WITH (partitions = 2, durability = 'async')",
        "CREATE STREAM f (v bigint)",
        "CREATE TABLE sums WITH (durability = 'async') AS SELECT k, count(*) AS n, max(v) AS top FROM a \
         GROUP BY k EMIT CHANGES",
        "CREATE STREAM b (v bigint) WITH (durability = 'async')",
        "INSERT INTO a VALUES (0, 0), (1, 0), (2, 0)",
    ] {
        run(&mut session, sql).await.unwrap();
    }
    drop(session);
    engine.shutdown().await;
    disk
}

/// Statement `number`, of three rows, and whether its acknowledgement means that it is synced.
fn statement(number: i64) -> (String, bool) {
    let n = number;
    match n % 6 {
        1 => (format!("INSERT INTO f VALUES ({n}), ({n}), ({n})"), true),
        2 => (format!("BEGIN; INSERT INTO a VALUES (1, {n}); INSERT INTO a VALUES (2, {n}), (0, {n}); COMMIT"), false),
        3 => (format!("SET durability = 'async'; INSERT INTO f VALUES ({n}), ({n}), ({n}); RESET durability"), false),
        _ if n % 2 == 0 => (format!("INSERT INTO b VALUES ({n}), ({n}), ({n})"), false),
        _ => (format!("INSERT INTO a VALUES (0, {n}), (1, {n}), (2, {n})"), false),
    }
}

/// What a client knows.
#[derive(Debug, Default, Clone, Copy)]
struct Told {
    /// The last statement that was sent.
    sent: i64,
    /// The last one acknowledged as synced: all of one connection before it are, too.
    synced: i64,
}

/// Runs statement `number`; false when it failed.
async fn write_one(session: &mut Session, number: i64, told: &mut Told) -> bool {
    let (sql, is_synced) = statement(number);
    told.sent = number;
    for sql in sql.split_inclusive("; ") {
        if run(session, sql).await.is_err() {
            return false;
        }
    }
    if is_synced {
        told.synced = number;
    }
    true
}

/// Statements 1 to some number are there, whole and once, and none after it; all that were acknowledged as synced are.
/// Gives the number.
async fn verify(engine: &Arc<Engine>, told: Told, what: &str) -> i64 {
    let mut session = session(engine);
    run(&mut session, "FLUSH").await.unwrap_or_else(|error| panic!("{what}: {error}"));
    let sql = "SELECT v, count(*) FROM (SELECT v FROM a WHERE v > 0 UNION ALL SELECT v FROM b UNION ALL SELECT v FROM f) \
               AS every GROUP BY v ORDER BY v";
    let found = run(&mut session, sql).await.unwrap();
    let last = found.len() as i64;
    let expected: Vec<String> = (1..=last).map(|number| format!("{number}|3")).collect();
    assert_eq!(found, expected, "{what}");
    assert!((told.synced..=told.sent).contains(&last), "{what}: {last} of {told:?}");
    let sums = run(&mut session, "SELECT k, n, top FROM sums ORDER BY k").await.unwrap();
    let bounded = run(&mut session, "SELECT k, count(*), max(v) FROM a GROUP BY k ORDER BY k").await.unwrap();
    assert_eq!(sums, bounded, "{what}");
    last
}

/// What a crash leaves is opened, verified, written to, and verified again after another crash. Gives what was kept.
async fn recover(disk: FaultDisk, told: Told, what: &str) -> i64 {
    let engine = in_time(what, open(&disk, Arc::default())).await.unwrap_or_else(|e| panic!("{what}: {e}"));
    let last = in_time(what, verify(&engine, told, what)).await;
    let mut writer = session(&engine);
    let mut again = Told { sent: last, synced: last };
    // The first is synced, and all before it with it.
    let first = (last + 1..).find(|number| statement(*number).1).unwrap_or_default();
    for number in (last + 1..=first).chain(first + 1..first + 4) {
        assert!(write_one(&mut writer, number, &mut again).await, "{what}");
    }
    drop(writer);
    let crashed = disk.crash(told.sent.unsigned_abs());
    in_time(what, engine.shutdown()).await;
    drop(engine);
    let report = check(Arc::new(disk), Path::new("/data")).unwrap();
    assert!(report.is_clean(), "{what}: {report}");
    let engine = in_time(what, open(&crashed, Arc::default())).await.unwrap_or_else(|e| panic!("{what}: {e}"));
    in_time(what, verify(&engine, again, what)).await;
    in_time(what, engine.shutdown()).await;
    drop(engine);
    let report = check(Arc::new(crashed), Path::new("/data")).unwrap();
    assert!(report.is_clean(), "{what}: {report}");
    last
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_power_cut_after_any_statement_keeps_a_beginning_with_all_that_was_synced() {
    const STATEMENTS: i64 = 30;
    let disk = founded().await.crash(0);
    let engine = open(&disk, Arc::default()).await.unwrap();
    let mut writer = session(&engine);
    let mut told = Told::default();
    let mut crashes = Vec::new();
    for number in 1..=STATEMENTS {
        assert!(write_one(&mut writer, number, &mut told).await);
        crashes.push((disk.crash(number.unsigned_abs()), told));
    }
    drop(writer);
    engine.shutdown().await;
    let mut lost = 0;
    for (crashed, told) in crashes {
        lost += told.sent - recover(crashed, told, &format!("after statement {}", told.sent)).await;
    }
    assert!(lost > 0, "every statement was synced");
    let engine = open(&disk.crash(1), Arc::default()).await.unwrap();
    let all = Told { sent: STATEMENTS, synced: STATEMENTS };
    verify(&engine, all, "after a clean end").await;
    engine.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_power_cut_at_any_write_step_keeps_a_beginning_with_all_that_was_synced() {
    const STATEMENTS: i64 = 24;
    let founded = founded().await;
    let whole = founded.crash(0);
    let before = whole.steps();
    let engine = open(&whole, Arc::default()).await.unwrap();
    let mut writer = session(&engine);
    for number in 1..=STATEMENTS {
        assert!(write_one(&mut writer, number, &mut Told::default()).await);
    }
    drop(writer);
    engine.shutdown().await;
    let steps = whole.steps() - before;
    assert!(steps > 40, "{steps}");
    for step in (0..steps).step_by(usize::try_from(steps / 30).unwrap().max(1)) {
        let what = format!("step {step} of {steps}");
        let disk = founded.crash(0);
        disk.fail_after(step);
        let mut told = Told::default();
        if let Ok(engine) = in_time(&what, open(&disk, Arc::default())).await {
            let mut writer = session(&engine);
            let mut number = 1;
            while number <= STATEMENTS && in_time(&what, write_one(&mut writer, number, &mut told)).await {
                number += 1;
            }
            drop(writer);
            in_time(&what, engine.shutdown()).await;
        }
        recover(disk.crash(step), told, &what).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failed_sync_that_nobody_waits_for_stops_the_engine() {
    let disk = founded().await.crash(0);
    let engine = open(&disk, Arc::default()).await.unwrap();
    disk.fail_sync_after(0);
    let mut writer = session(&engine);
    run(&mut writer, "INSERT INTO b VALUES (1), (1), (1)").await.unwrap();
    let reason = in_time("a failed sync", engine.failed()).await;
    assert!(reason.contains("sync"), "{reason}");
    assert!(run(&mut writer, "INSERT INTO b VALUES (2)").await.is_err(), "it goes on writing");
    drop(writer);
    let crashed = disk.crash(5);
    in_time("a failed sync", engine.shutdown()).await;
    let engine = open(&crashed, Arc::default()).await.unwrap();
    verify(&engine, Told { sent: 1, synced: 0 }, "after a failed sync").await;
    engine.shutdown().await;
}
