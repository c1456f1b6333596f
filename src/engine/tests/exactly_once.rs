//! Continuous queries of every kind when the power fails at write steps: afterwards each result is that of the same SELECT
//! run once, and each event has made its rows once, none missing and none again.
//!
//! A dozen places by default; `MILLSTREAM_FAULT_STEPS=1000` crashes at up to so many, all of them if there are fewer.

use super::*;
use crate::storage::Disk as _;

/// Name, what it is, the query, and what gives the same rows once; with the columns that are compared.
struct Case {
    name: &'static str,
    create: &'static str,
    once: &'static str,
    columns: &'static str,
}

const fn case(name: &'static str, create: &'static str, columns: &'static str, once: &'static str) -> Case {
    Case { name, create, once, columns }
}

const CASES: &[Case] = &[
    case("filter", "CREATE STREAM filter AS SELECT k, v FROM s WHERE v % 2 = 0", "k, v", "SELECT k, v FROM s WHERE v % 2 = 0"),
    case(
        "hop",
        "CREATE TABLE hop AS SELECT k, window_start AS w, count(*) AS c FROM HOP(s, rowtime, INTERVAL '2 seconds', INTERVAL '6 seconds')
         GROUP BY k, window_start",
        "k, w, c",
        "SELECT k, window_start AS w, count(*) AS c FROM HOP(s, rowtime, INTERVAL '2 seconds', INTERVAL '6 seconds')
         GROUP BY k, window_start",
    ),
    case(
        "tumble",
        "CREATE TABLE tumble AS SELECT k, windowstart AS w, sum(v) AS z FROM s WINDOW TUMBLING (SIZE 5 SECONDS) GROUP BY k, windowstart",
        "k, w, z",
        "SELECT k, windowstart AS w, sum(v) AS z FROM s WINDOW TUMBLING (SIZE 5 SECONDS) GROUP BY k, windowstart",
    ),
    case(
        "sessions",
        "CREATE TABLE sessions AS SELECT k, window_start AS w, window_end AS e, count(*) AS c FROM SESSION(s, rowtime, INTERVAL '1 second')
         GROUP BY k, window_start, window_end",
        "k, w, e, c",
        "SELECT k, window_start AS w, window_end AS e, count(*) AS c FROM SESSION(s, rowtime, INTERVAL '1 second')
         GROUP BY k, window_start, window_end",
    ),
    case(
        "pairs",
        "CREATE STREAM pairs AS SELECT s.k, s.v, r.v AS x FROM s JOIN r WITHIN 3 SECONDS GRACE PERIOD 1 HOUR ON s.k = r.k",
        "k, v, x",
        "SELECT s.k, s.v, r.v AS x FROM s JOIN r WITHIN 3 SECONDS ON s.k = r.k",
    ),
    case(
        "outers",
        "CREATE TABLE outers AS SELECT s.k, s.v, r.v AS x FROM s FULL JOIN r ON s.k = r.k AND s.v = r.v",
        "k, v, x",
        "SELECT s.k, s.v, r.v AS x FROM s FULL JOIN r ON s.k = r.k AND s.v = r.v",
    ),
    case(
        "of_tables",
        "CREATE TABLE of_tables AS SELECT t.k, t.v, u.v AS x FROM t LEFT JOIN u ON t.v % 4 = u.k",
        "k, v, x",
        "SELECT t.k, t.v, u.v AS x FROM t LEFT JOIN u ON t.v % 4 = u.k",
    ),
    case(
        "looked_up",
        "CREATE STREAM looked_up AS SELECT s.k, s.v, t.v AS x FROM s LEFT JOIN t ON s.k = t.k",
        "k, v",
        "SELECT k, v FROM s",
    ),
    case("differing", "CREATE TABLE differing AS SELECT DISTINCT k, v % 3 AS m FROM s", "k, m", "SELECT DISTINCT k, v % 3 AS m FROM s"),
    case(
        "tops",
        "CREATE TABLE tops AS SELECT k, v FROM s ORDER BY v DESC, k LIMIT 4",
        "k, v",
        "SELECT k, v FROM s ORDER BY v DESC, k LIMIT 4",
    ),
    case(
        "overs",
        "CREATE TABLE overs AS SELECT k, v, row_number() OVER (PARTITION BY k ORDER BY v) AS n FROM s",
        "k, v, n",
        "SELECT k, v, row_number() OVER (PARTITION BY k ORDER BY v) AS n FROM s",
    ),
    case("unions", "CREATE STREAM unions AS SELECT k, v FROM s UNION ALL SELECT k, v FROM r", "k, v", "SELECT k, v FROM s UNION ALL SELECT k, v FROM r"),
    case("lists", "CREATE STREAM lists AS SELECT k, unnest(ARRAY[v, -v]) AS e FROM s", "k, e", "SELECT k, unnest(ARRAY[v, -v]) AS e FROM s"),
    case(
        "sets",
        "CREATE TABLE sets AS SELECT k, v % 2 AS p, count(*) AS c FROM s GROUP BY ROLLUP (k, v % 2)",
        "k, p, c",
        "SELECT k, v % 2 AS p, count(*) AS c FROM s GROUP BY ROLLUP (k, v % 2)",
    ),
    case(
        "finals",
        "CREATE TABLE finals AS SELECT k, windowstart AS w, count(*) AS c FROM s WINDOW TUMBLING (SIZE 5 SECONDS, GRACE PERIOD 0 SECONDS)
         GROUP BY k, windowstart EMIT FINAL",
        "k, w, c",
        "SELECT k, window_start AS w, count(*) AS c FROM TUMBLE(s, rowtime, INTERVAL '5 seconds')
         GROUP BY k, window_start, window_end HAVING window_end <= (SELECT max(rowtime) FROM s)",
    ),
    case("inserted", "INSERT INTO inserted SELECT k, v FROM s WHERE k < 2 EMIT CHANGES", "k, v", "SELECT k, v FROM s WHERE k < 2"),
    case(
        "every",
        "CREATE TABLE every WITH (emit = 'every_change') AS SELECT k, count(*) AS c FROM s GROUP BY k",
        "k, c",
        "SELECT k, count(*) AS c FROM s GROUP BY k",
    ),
];

/// A stopped engine's disk with all of the queries.
async fn founded_with_queries() -> FaultDisk {
    let disk = FaultDisk::new();
    let engine = open_with(&disk, Arc::default(), 1).await.unwrap();
    let mut session = session(&engine);
    for sql in [
        "CREATE STREAM s (k integer, v bigint, ms bigint) WITH (timestamp = 'ms')",
        "CREATE STREAM r (k integer, v bigint, ms bigint) WITH (timestamp = 'ms')",
        "CREATE TABLE t (k integer PRIMARY KEY, v bigint)",
        "CREATE TABLE u (k integer PRIMARY KEY, v bigint)",
        "CREATE STREAM inserted (k integer, v bigint)",
    ]
    .into_iter()
    .chain(CASES.iter().map(|case| case.create))
    {
        run(&mut session, sql).await.unwrap_or_else(|error| panic!("{sql}: {error}"));
    }
    drop(session);
    engine.shutdown().await;
    disk
}

/// Statement `number`: two events of `s`, one of `r`, changes of both tables.
fn statement(number: i64) -> String {
    let (n, k, ms) = (number, number % 3, number * 700);
    format!(
        "BEGIN; INSERT INTO s VALUES ({k}, {n}, {ms}), (3, {n}, {ms}); INSERT INTO r VALUES ({k}, {n}, {ms}); \
         INSERT INTO t VALUES ({}, {n}); INSERT INTO u VALUES ({}, {n}); DELETE FROM t WHERE k = {}; COMMIT",
        n % 5,
        n % 4,
        (n + 2) % 5
    )
}

/// Runs statements from `first` to `last` until one fails; the last that was answered.
async fn write_to(engine: &Arc<Engine>, first: i64, last: i64) -> i64 {
    let mut session = session(engine);
    for number in first..=last {
        for sql in statement(number).split_inclusive("; ") {
            if run(&mut session, sql).await.is_err() {
                return number - 1;
            }
        }
    }
    last
}

/// Every result is that of its query run once; gives the last statement that is there.
async fn verify_all(engine: &Arc<Engine>, acknowledged: i64, what: &str) -> i64 {
    let mut session = session(engine);
    run(&mut session, "FLUSH").await.unwrap_or_else(|error| panic!("{what}: {error}"));
    let found = run(&mut session, "SELECT v, count(*) FROM s GROUP BY v ORDER BY v").await.unwrap();
    let last = found.len() as i64;
    assert_eq!(found, (1..=last).map(|number| format!("{number}|2")).collect::<Vec<_>>(), "{what}");
    assert!((acknowledged..=acknowledged + 1).contains(&last), "{what}: {last} of {acknowledged}");
    let errors =
        run(&mut session, "SELECT name, error FROM millstream.queries WHERE error IS NOT NULL OR late_rows > 0").await;
    assert_eq!(errors.unwrap(), Vec::<String>::new(), "{what}");
    for Case { name, columns, once, .. } in CASES {
        let mut kept = run(&mut session, &format!("SELECT {columns} FROM {name}")).await.unwrap();
        let mut expected = run(&mut session, once).await.unwrap_or_else(|error| panic!("{once}: {error}"));
        kept.sort();
        expected.sort();
        assert_eq!(kept, expected, "{what}: {name}");
    }
    // One form for each event, none missing and none again: as many as there are events, the last of them at the end.
    let forms = run(&mut session, "SELECT coalesce(max(rowoffset) + 1, 0) FROM every").await.unwrap();
    assert_eq!(forms, [(2 * last).to_string()], "{what}: forms of every change");
    last
}

/// What a crash leaves is opened, verified, written to, crashed again, and verified again.
async fn recover_twice(disk: FaultDisk, acknowledged: i64, what: &str) {
    let engine = in_time(what, open_with(&disk, Arc::default(), 1)).await.unwrap_or_else(|e| panic!("{what}: {e}"));
    let last = in_time(what, verify_all(&engine, acknowledged, what)).await;
    assert_eq!(in_time(what, write_to(&engine, last + 1, last + 3)).await, last + 3, "{what}");
    let crashed = disk.crash(acknowledged.unsigned_abs());
    in_time(what, engine.shutdown()).await;
    drop(engine);
    let engine = in_time(what, open_with(&crashed, Arc::default(), 1)).await.unwrap_or_else(|e| panic!("{what}: {e}"));
    assert_eq!(in_time(what, verify_all(&engine, last + 3, what)).await, last + 3, "{what}");
    in_time(what, engine.shutdown()).await;
    drop(engine);
    let report = check(Arc::new(crashed), Path::new("/data")).unwrap();
    assert!(report.is_clean(), "{what}: {report}");
}

fn places() -> u64 {
    std::env::var("MILLSTREAM_FAULT_STEPS").ok().map_or(8, |text| text.parse().unwrap())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_power_cut_at_any_write_step_leaves_each_event_once_in_every_result() {
    const STATEMENTS: i64 = 10;
    let founded = founded_with_queries().await;
    let whole = founded.crash(0);
    let before = whole.steps();
    let engine = open_with(&whole, Arc::default(), 1).await.unwrap();
    assert_eq!(write_to(&engine, 1, STATEMENTS).await, STATEMENTS);
    assert_eq!(verify_all(&engine, STATEMENTS, "without a crash").await, STATEMENTS);
    engine.shutdown().await;
    let steps = whole.steps() - before;
    assert!(steps > 40, "{steps}");
    for step in (0..steps).step_by(usize::try_from(steps / places()).unwrap().max(1)) {
        let what = format!("step {step} of {steps}");
        let disk = founded.crash(0);
        disk.fail_after(step);
        let mut acknowledged = 0;
        if let Ok(engine) = in_time(&what, open_with(&disk, Arc::default(), 1)).await {
            acknowledged = in_time(&what, write_to(&engine, 1, STATEMENTS)).await;
            in_time(&what, engine.shutdown()).await;
        }
        recover_twice(disk.crash(step), acknowledged, &what).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_power_cut_after_any_step_of_the_queries_leaves_each_event_once() {
    let disk = founded_with_queries().await.crash(0);
    let engine = open_with(&disk, Arc::default(), 1).await.unwrap();
    let mut crashes = Vec::new();
    for number in 1..=i64::try_from(places().div_ceil(2)).unwrap() {
        assert_eq!(write_to(&engine, number, number).await, number);
        crashes.push((disk.crash(number.unsigned_abs()), number));
        run(&mut session(&engine), "FLUSH").await.unwrap();
        crashes.push((disk.crash(number.unsigned_abs() + 1_000), number));
    }
    engine.shutdown().await;
    for (crashed, number) in crashes {
        recover_twice(crashed, number, &format!("after statement {number}")).await;
    }
}

/// State of more than an entry of the log takes, which is saved whenever the query is replaced by itself.
const LARGE: &str =
    "CREATE OR REPLACE TABLE large AS SELECT k, count(DISTINCT repeat(v::text || '.', 40000)) AS c FROM s GROUP BY k";

/// Saves the query's state in files, and writes events.
async fn save_and_write(engine: &Arc<Engine>, rounds: i64) -> i64 {
    let mut session = session(engine);
    for number in 1..=rounds {
        let insert = format!("INSERT INTO s VALUES ({}, {number}), (2, {number})", number % 2);
        if run(&mut session, &insert).await.is_err() {
            return number - 1;
        }
        if number % 2 == 0 && run(&mut session, LARGE).await.is_err() {
            return number;
        }
    }
    rounds
}

/// What the query counts is what there is; gives the last round that is there.
async fn verify_large(engine: &Arc<Engine>, acknowledged: i64, what: &str) -> i64 {
    let mut session = session(engine);
    run(&mut session, "FLUSH").await.unwrap_or_else(|error| panic!("{what}: {error}"));
    let kept = run(&mut session, "SELECT k, c FROM large ORDER BY k").await.unwrap();
    let expected = run(&mut session, "SELECT k, count(DISTINCT v) FROM s GROUP BY k ORDER BY k").await.unwrap();
    assert_eq!(kept, expected, "{what}");
    let last = run(&mut session, "SELECT count(*) / 2 FROM s").await.unwrap()[0].parse().unwrap();
    assert!((acknowledged..=acknowledged + 1).contains(&last), "{what}: {last} of {acknowledged}");
    last
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_power_cut_while_state_is_saved_in_files_loses_none_of_it() {
    const ROUNDS: i64 = 6;
    let founded = FaultDisk::new();
    let engine = open_with(&founded, Arc::default(), 1).await.unwrap();
    for sql in ["CREATE STREAM s (k integer, v bigint)", LARGE] {
        run(&mut session(&engine), sql).await.unwrap_or_else(|error| panic!("{sql}: {error}"));
    }
    engine.shutdown().await;
    let whole = founded.crash(0);
    let before = whole.steps();
    let engine = open_with(&whole, Arc::default(), 1).await.unwrap();
    assert_eq!(save_and_write(&engine, ROUNDS).await, ROUNDS);
    assert_eq!(verify_large(&engine, ROUNDS, "without a crash").await, ROUNDS);
    engine.shutdown().await;
    let files = whole.list(Path::new("/data/shards/1/state")).unwrap();
    assert_eq!(files.len(), 1, "state is in files: {files:?}");
    let steps = whole.steps() - before;
    for step in (0..steps).step_by(usize::try_from(steps / (3 * places())).unwrap().max(1)) {
        let what = format!("step {step} of {steps}");
        let disk = founded.crash(0);
        disk.fail_after(step);
        let mut acknowledged = 0;
        if let Ok(engine) = in_time(&what, open_with(&disk, Arc::default(), 1)).await {
            acknowledged = in_time(&what, save_and_write(&engine, ROUNDS)).await;
            in_time(&what, engine.shutdown()).await;
        }
        let crashed = disk.crash(step);
        let engine =
            in_time(&what, open_with(&crashed, Arc::default(), 1)).await.unwrap_or_else(|e| panic!("{what}: {e}"));
        in_time(&what, verify_large(&engine, acknowledged, &what)).await;
        in_time(&what, engine.shutdown()).await;
        drop(engine);
        let report = check(Arc::new(crashed), Path::new("/data")).unwrap();
        assert!(report.is_clean(), "{what}: {report}");
    }
}
