//! A whole engine on the disk in memory: the power fails at write steps, the disk is full, a sync fails, the clock goes
//! back. What was acknowledged is kept outside of the engine and compared.

mod durability;
mod exactly_once;
mod interrupts;
mod shared;

use super::{Engine, EngineConfig, Outcome, Session, SessionOptions, Via};
use crate::env::Clock;
use crate::offline::check::check;
use crate::storage::FaultDisk;
use crate::storage::wal::WalOptions;
use arrow::util::display::array_value_to_string;
use futures::StreamExt;
use millstream_catalog::model::{ByteSize, Timestamp};
use millstream_sql::SqlError;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

/// How long anything may take.
const DEADLINE: Duration = Duration::from_secs(60);

/// A clock that stands where it is put.
#[derive(Debug, Default)]
pub(super) struct SetClock(AtomicI64);

impl Clock for SetClock {
    fn now(&self) -> Timestamp {
        Timestamp::from_micros(self.0.load(Ordering::Relaxed))
    }
}

pub(super) async fn open(disk: &FaultDisk, clock: Arc<SetClock>) -> Result<Arc<Engine>, SqlError> {
    open_with(disk, clock, 2).await
}

async fn open_with(disk: &FaultDisk, clock: Arc<SetClock>, shards: u32) -> Result<Arc<Engine>, SqlError> {
    let (data_dir, seal_bytes) = (PathBuf::from("/data"), ByteSize::new(1 << 10));
    let config = EngineConfig {
        data_dir,
        shards,
        seal_bytes,
        query_threads: 1,
        memory: ByteSize::new(1 << 30),
        offsets_retention: millstream_catalog::model::Span::from_secs(86_400),
    };
    let log = WalOptions { file_bytes: ByteSize::new(64 << 10), ..WalOptions::default() };
    Engine::open_on(config, Arc::new(disk.clone()), clock, log).await
}

/// Runs a statement; its rows, `|` between columns.
pub(super) async fn run(session: &mut Session, sql: &str) -> Result<Vec<String>, SqlError> {
    let mut found = Vec::new();
    for parsed in session.parse(sql).await? {
        let prepared = session.prepare(parsed, &[]).await?;
        if let Outcome::Rows(mut rows) = session.execute(&prepared, vec![], Via::Simple).await? {
            while let Some(batch) = rows.stream.next().await {
                let batch = batch?;
                for row in 0..batch.num_rows() {
                    let cells = batch.columns().iter().map(|column| array_value_to_string(column, row).unwrap());
                    found.push(cells.collect::<Vec<_>>().join("|"));
                }
            }
        }
    }
    Ok(found)
}

pub(super) fn session(engine: &Arc<Engine>) -> Session {
    engine.session(SessionOptions { user: "tester".to_owned(), ..SessionOptions::default() }).unwrap()
}

/// A stopped engine's disk: two topics in two shards, and a table made of one of them.
async fn founded() -> FaultDisk {
    let disk = FaultDisk::new();
    let engine = open(&disk, Arc::default()).await.unwrap();
    let mut session = session(&engine);
    for sql in [
        "CREATE STREAM e (k integer KEY, v bigint) WITH (partitions = 2)",
        "CREATE STREAM f (v bigint)",
        "CREATE TABLE sums AS SELECT k, count(*) AS n, max(v) AS top FROM e GROUP BY k EMIT CHANGES",
        "INSERT INTO e VALUES (0, 0), (1, 0), (2, 0)",
    ] {
        run(&mut session, sql).await.unwrap();
    }
    drop(session);
    engine.shutdown().await;
    disk
}

/// Numbered statements of three rows each, until one fails; the number of those that were answered, and whether one more
/// was sent.
async fn write(engine: &Arc<Engine>, first: i64, count: i64) -> (i64, bool) {
    let mut session = session(engine);
    for number in first..first + count {
        let sql = match number % 3 {
            0 => format!("INSERT INTO f VALUES ({number}), ({number}), ({number})"),
            1 => format!("INSERT INTO e VALUES (0, {number}), (1, {number}), (2, {number})"),
            _ => format!(
                "BEGIN; INSERT INTO e VALUES (1, {number}); INSERT INTO e VALUES (2, {number}), (0, {number}); COMMIT"
            ),
        };
        if run(&mut session, &sql).await.is_err() {
            return (number - 1, true);
        }
    }
    (first + count - 1, false)
}

/// Statements 1 to `acknowledged` are there, whole and once; the next one, if it was sent, may be. The table made of the
/// events says what they are.
async fn verify(engine: &Arc<Engine>, (acknowledged, is_one_sent): (i64, bool), what: &str) {
    let mut session = session(engine);
    run(&mut session, "FLUSH").await.unwrap_or_else(|error| panic!("{what}: {error}"));
    let sql = "SELECT v, count(*) FROM (SELECT v FROM e WHERE v > 0 UNION ALL SELECT v FROM f) AS both_of_them \
               GROUP BY v ORDER BY v";
    let found = run(&mut session, sql).await.unwrap();
    let last = acknowledged + i64::from(is_one_sent && found.len() as i64 > acknowledged);
    let expected: Vec<String> = (1..=last).map(|number| format!("{number}|3")).collect();
    assert_eq!(found, expected, "{what}");
    let sums = run(&mut session, "SELECT k, n, top FROM sums ORDER BY k").await.unwrap();
    let bounded = run(&mut session, "SELECT k, count(*), max(v) FROM e GROUP BY k ORDER BY k").await.unwrap();
    assert_eq!(sums, bounded, "{what}");
}

pub(super) async fn in_time<T>(what: &str, work: impl Future<Output = T>) -> T {
    tokio::time::timeout(DEADLINE, work).await.unwrap_or_else(|_| panic!("{what}: it hangs"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_power_cut_at_any_write_step_keeps_what_was_acknowledged() {
    const STATEMENTS: i64 = 15;
    let founded = founded().await;
    let whole = founded.crash(0);
    let before = whole.steps();
    let engine = open(&whole, Arc::default()).await.unwrap();
    assert_eq!(write(&engine, 1, STATEMENTS).await, (STATEMENTS, false));
    engine.shutdown().await;
    let steps = whole.steps() - before;
    assert!(steps > 40, "{steps}");
    // Every step of the first runs is too many: each run takes a fraction, all of them in turn.
    for step in (0..steps).step_by(usize::try_from(steps / 36).unwrap().max(1)) {
        let what = format!("step {step} of {steps}");
        let disk = founded.crash(0);
        disk.fail_after(step);
        let mut told = (0, false);
        if let Ok(engine) = in_time(&what, open(&disk, Arc::default())).await {
            told = in_time(&what, write(&engine, 1, STATEMENTS)).await;
            in_time(&what, engine.shutdown()).await;
        }
        let after = disk.crash(step);
        let engine = in_time(&what, open(&after, Arc::default())).await.unwrap_or_else(|e| panic!("{what}: {e}"));
        in_time(&what, verify(&engine, told, &what)).await;
        in_time(&what, engine.shutdown()).await;
        drop(engine);
        let report = check(Arc::new(after), Path::new("/data")).unwrap();
        assert!(report.is_clean(), "{what}: {report}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_disk_refuses_writers_not_readers_and_passes() {
    let disk = founded().await.crash(0);
    let engine = open(&disk, Arc::default()).await.unwrap();
    assert_eq!(write(&engine, 1, 3).await, (3, false));
    disk.set_capacity(Some(disk.bytes_used()));
    let mut writer = session(&engine);
    let mut reader = session(&engine);
    let mut stored = 3;
    let refused = loop {
        let number = stored + 1;
        match run(&mut writer, &format!("INSERT INTO f VALUES ({number}), ({number}), ({number})")).await {
            Ok(_) => stored = number,
            Err(error) => break error,
        }
        assert!(stored < 10_000, "the disk never filled");
    };
    assert_eq!((refused.sqlstate.code(), refused.message.contains("no space")), ("53100", true), "{refused}");
    assert_eq!(run(&mut reader, "SELECT max(v) FROM f").await.unwrap(), [stored.to_string()]);
    disk.set_capacity(None);
    let number = stored + 1;
    let goes_on = async {
        while run(&mut writer, &format!("INSERT INTO f VALUES ({number}), ({number}), ({number})")).await.is_err() {
            tokio::task::yield_now().await;
        }
    };
    in_time("after the disk was full", goes_on).await;
    drop((writer, reader));
    let crashed = disk.crash(7);
    engine.shutdown().await;
    let engine = open(&crashed, Arc::default()).await.unwrap();
    verify(&engine, (number, false), "after a full disk").await;
    engine.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failed_sync_stops_the_engine_with_words_and_costs_nothing_acknowledged() {
    let disk = founded().await.crash(0);
    let engine = open(&disk, Arc::default()).await.unwrap();
    assert_eq!(write(&engine, 1, 4).await, (4, false));
    disk.fail_sync_after(2);
    let told = in_time("a failed sync", write(&engine, 5, 200)).await;
    assert!(told.1, "no statement failed");
    let reason = in_time("a failed sync", engine.failed()).await;
    assert!(reason.contains("synced") || reason.contains("sync"), "{reason}");
    let mut session = session(&engine);
    assert!(run(&mut session, "INSERT INTO f VALUES (0)").await.is_err(), "it goes on writing");
    drop(session);
    let crashed = disk.crash(3);
    in_time("a failed sync", engine.shutdown()).await;
    let engine = open(&crashed, Arc::default()).await.unwrap();
    verify(&engine, told, "after a failed sync").await;
    engine.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_clock_that_goes_back_keeps_the_order_of_events_and_their_times() {
    let disk = FaultDisk::new();
    let clock = Arc::new(SetClock::default());
    let engine = open(&disk, Arc::clone(&clock)).await.unwrap();
    let mut session = session(&engine);
    run(&mut session, "CREATE STREAM s (v bigint)").await.unwrap();
    for (number, seconds) in [(1, 1_000), (2, 1_001), (3, 5), (4, 6), (5, 1_002)] {
        clock.0.store(seconds * 1_000_000, Ordering::Relaxed);
        run(&mut session, &format!("INSERT INTO s VALUES ({number})")).await.unwrap();
    }
    let rows = "SELECT v, rowoffset, extract(epoch FROM rowtime) FROM s ORDER BY rowoffset";
    let stored = run(&mut session, rows).await.unwrap();
    let plain: Vec<String> =
        stored.iter().map(|row| row.trim_end_matches('0').trim_end_matches('.').to_owned()).collect();
    for (row, expected) in plain.iter().zip(["1|0|1", "2|1|1001", "3|2|5", "4|3|6", "5|4|1002"]) {
        assert!(row.starts_with(expected), "{stored:?}");
    }
    // Bounds on the time of rows are answered from segments' statistics too: the order of arrival is not theirs.
    let early = run(&mut session, "SELECT v FROM s WHERE rowtime < '1970-01-01 00:01:00+00' ORDER BY v").await.unwrap();
    assert_eq!(early, ["3", "4"]);
    drop(session);
    engine.shutdown().await;
    drop(engine);
    let engine = open(&disk, clock).await.unwrap();
    let mut session = self::session(&engine);
    assert_eq!(run(&mut session, rows).await.unwrap(), stored);
    run(&mut session, "INSERT INTO s VALUES (6)").await.unwrap();
    assert_eq!(run(&mut session, "SELECT max(rowoffset) FROM s WHERE v = 6").await.unwrap(), ["5"]);
    drop(session);
    engine.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_damaged_shard_is_out_of_service_and_the_others_are_not() {
    let disk = founded().await.crash(0);
    let engine = open(&disk, Arc::default()).await.unwrap();
    assert_eq!(write(&engine, 1, 12).await, (12, false));
    engine.shutdown().await;
    drop(engine);
    // Streams are spread over the shards: "e" and what is made of it are in the first, "f" is in the second.
    disk.flip_bit(Path::new("/data/shards/1/manifest"), 100, 2).unwrap();
    let engine = open(&disk, Arc::default()).await.unwrap();
    let mut session = session(&engine);
    for sql in ["SELECT * FROM e", "INSERT INTO e VALUES (1, 1)", "SELECT * FROM sums"] {
        let error = run(&mut session, sql).await.unwrap_err();
        assert_eq!(error.sqlstate.code(), "XX001", "{sql}: {error}");
        assert!(error.message.contains("shard 1 is damaged"), "{sql}: {error}");
        assert!(error.detail.as_ref().is_some_and(|detail| detail.contains("manifest")), "{sql}: {error:?}");
    }
    run(&mut session, "INSERT INTO f VALUES (100)").await.unwrap();
    run(&mut session, "CREATE STREAM g (v bigint)").await.unwrap();
    run(&mut session, "INSERT INTO g SELECT v FROM f").await.unwrap();
    assert_eq!(run(&mut session, "SELECT count(*) FROM g").await.unwrap(), ["13"]);
    let sql = "SELECT shard, damage IS NULL FROM millstream.shards ORDER BY shard";
    assert_eq!(run(&mut session, sql).await.unwrap(), ["1|false", "2|true"]);
    drop(session);
    engine.shutdown().await;
    drop(engine);
    // Once it is whole it goes on where it was.
    disk.flip_bit(Path::new("/data/shards/1/manifest"), 100, 2).unwrap();
    let engine = open(&disk, Arc::default()).await.unwrap();
    let mut session = self::session(&engine);
    run(&mut session, "DROP STREAM g; FLUSH").await.unwrap();
    let counts = run(&mut session, "SELECT count(*) FROM e UNION ALL SELECT sum(n) FROM sums").await.unwrap();
    assert_eq!((counts.len(), &counts[0]), (2, &counts[1]));
    drop(session);
    engine.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_prepared_update_is_planned_once_unless_it_reads_the_clock() {
    let clock = Arc::new(SetClock::default());
    let engine = open(&FaultDisk::new(), Arc::clone(&clock)).await.unwrap();
    let mut session = session(&engine);
    run(&mut session, "CREATE TABLE t (k integer PRIMARY KEY, n bigint, at timestamptz)").await.unwrap();
    run(&mut session, "INSERT INTO t VALUES (1, 0), (2, 0)").await.unwrap();
    let cases = [
        ("UPDATE t SET n = n + 1 WHERE k = 1 RETURNING n * 2", true),
        ("UPDATE t SET n = n + 1, at = now() WHERE k = 2", false),
        ("DELETE FROM t WHERE k = 3 AND at < now()", false),
        ("UPDATE t SET n = n WHERE k = 2 RETURNING current_date", false),
        ("DELETE FROM t USING t AS other WHERE t.k = other.k + 5", true),
    ];
    for (sql, expected) in cases {
        let parsed = session.parse(sql).await.unwrap().remove(0);
        let prepared = session.prepare(parsed, &[]).await.unwrap();
        for round in 0..4 {
            clock.0.fetch_add(7_000_000, Ordering::Relaxed);
            let outcome = session.execute(&prepared, vec![], Via::Portal).await.unwrap();
            let crate::engine::prepare::Plan::Change(kept) = &prepared.plan else { panic!("{sql} keeps nothing") };
            assert_eq!(kept.are_timeless(), expected && round > 0, "{sql}, round {round}");
            drop(outcome);
        }
    }
    let now = clock.now().micros();
    let rows = run(&mut session, "SELECT k, n, extract(epoch FROM at)::bigint FROM t ORDER BY k").await.unwrap();
    // Of the last of four executions, two statements with four each before the present.
    assert_eq!(rows, ["1|4|".to_owned(), format!("2|4|{}", (now - 12 * 7_000_000) / 1_000_000)]);
    // What it was planned with has changed: it is planned anew.
    let parsed = session.parse("UPDATE t SET n = n + 10 WHERE k = 1 RETURNING *").await.unwrap().remove(0);
    let prepared = session.prepare(parsed, &[]).await.unwrap();
    for _ in 0..3 {
        session.execute(&prepared, vec![], Via::Portal).await.unwrap();
    }
    run(&mut session, "ALTER TABLE t ADD COLUMN more text").await.unwrap();
    let error = session.execute(&prepared, vec![], Via::Portal).await.map(drop).unwrap_err();
    assert_eq!(error.message, "cached plan must not change result type");
    assert_eq!(run(&mut session, "SELECT n FROM t WHERE k = 1").await.unwrap(), ["34"]);
    engine.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rows_without_room_are_refused_or_leave_memory_sooner() {
    let engine = open(&FaultDisk::new(), Arc::default()).await.unwrap();
    let mut session = session(&engine);
    run(&mut session, "CREATE STREAM s (v bigint)").await.unwrap();
    let mut others = engine.room();
    others.put(others.bytes_max());
    run(&mut session, "BEGIN").await.unwrap();
    let error = run(&mut session, "INSERT INTO s VALUES (1)").await.unwrap_err();
    assert_eq!(error.sqlstate.code(), "53200", "{error}");
    assert!(error.hint.unwrap().contains("--memory"));
    run(&mut session, "ROLLBACK").await.unwrap();
    // What is committed at once waits for the log only.
    run(&mut session, "INSERT INTO s VALUES (1)").await.unwrap();
    let appends = engine.log_stats().appends;
    let many = "INSERT INTO s SELECT n FROM generate_series(2, 200000) AS g(n)";
    run(&mut session, many).await.unwrap();
    let in_parts = engine.log_stats().appends - appends;
    assert!(in_parts >= 8, "{in_parts}");
    assert_eq!(run(&mut session, "SELECT count(*), count(DISTINCT v) FROM s").await.unwrap(), ["200000|200000"]);
    // With room, the same rows are one entry.
    others.put(ByteSize::ZERO);
    assert_eq!(engine.holding.used(), ByteSize::ZERO);
    drop(session);
    engine.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn state_without_room_is_refused_and_works_again_once_there_is_some() {
    let engine = open(&FaultDisk::new(), Arc::default()).await.unwrap();
    let mut session = session(&engine);
    for sql in [
        "CREATE STREAM e (k bigint)",
        "CREATE TABLE counts AS SELECT count(DISTINCT k) AS n FROM e EMIT CHANGES",
        "CREATE TABLE t (id bigint PRIMARY KEY, v bigint)",
        "INSERT INTO t VALUES (1, 2)",
    ] {
        run(&mut session, sql).await.unwrap();
    }
    let mut others = engine.state_room.share();
    others.put(others.bytes_max());
    let error = run(&mut session, "SELECT * FROM t").await.unwrap_err();
    assert_eq!(error.sqlstate.code(), "53200", "{error}");
    assert!(error.hint.unwrap().contains("--memory"));
    run(&mut session, "INSERT INTO e SELECT n FROM generate_series(1, 100000) AS g(n)").await.unwrap();
    let state = "SELECT state, error FROM millstream.queries";
    let mut found = run(&mut session, state).await.unwrap();
    let begun = crate::env::instant();
    while !found[0].contains("53200") {
        assert!(begun.elapsed() < DEADLINE, "{found:?}");
        found = run(&mut session, state).await.unwrap();
    }
    let waits = "running|53200: the state of query \"counts\" does not fit in memory (it is tried again)";
    assert_eq!(found, [waits]);
    drop(others);
    assert_eq!(run(&mut session, "SELECT * FROM t").await.unwrap(), ["1|2"]);
    // The query goes on by itself.
    run(&mut session, "INSERT INTO e VALUES (100001)").await.unwrap();
    run(&mut session, "FLUSH").await.unwrap();
    assert_eq!(run(&mut session, "SELECT n FROM counts").await.unwrap(), ["100001"]);
    assert!(!run(&mut session, state).await.unwrap()[0].contains("53200"), "it has taken a step");
    assert!(engine.state_room.used() > ByteSize::ZERO);
    run(&mut session, "DROP TABLE counts").await.unwrap();
    run(&mut session, "DROP TABLE t").await.unwrap();
    assert_eq!(engine.state_room.used(), ByteSize::ZERO);
    drop(session);
    engine.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_shares_of_memory_are_shown() {
    let engine = open(&FaultDisk::new(), Arc::default()).await.unwrap();
    let mut session = session(&engine);
    let sql = "SELECT share, bytes_max / 1048576 FROM millstream.memory LIMIT 8";
    let expected = ["queries|224", "rows|112", "writes|56", "tails|168", "state|112", "maps|112", "connections|112"];
    let shown = run(&mut session, sql).await.unwrap();
    assert_eq!(shown[..7], expected);
    assert_eq!(shown[7], "process|1024");
    let mut held = engine.room();
    held.put(ByteSize::new(12_345));
    run(&mut session, "CREATE STREAM s (v bigint)").await.unwrap();
    run(&mut session, "BEGIN").await.unwrap();
    let rows = "SELECT bytes FROM millstream.memory WHERE share = 'rows'";
    assert_eq!(run(&mut session, rows).await.unwrap(), ["12345"]);
    run(&mut session, "INSERT INTO s VALUES (1)").await.unwrap();
    let with_insert: u64 = run(&mut session, rows).await.unwrap()[0].parse().unwrap();
    assert!(with_insert > 12_345);
    run(&mut session, "ROLLBACK").await.unwrap();
    assert_eq!(run(&mut session, rows).await.unwrap(), ["12345"]);
    drop(session);
    engine.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn copy_data_that_is_not_yet_rows_is_held_against_the_room_of_the_node() {
    let engine = open(&founded().await, Arc::default()).await.unwrap();
    let mut others = engine.room();
    others.set(ByteSize::new(others.bytes_max().value() - (1 << 20))).unwrap();
    let mut session = session(&engine);
    for (format, start) in
        [("text", &b"1\t"[..]), ("csv", b"1,\""), ("binary", b"PGCOPY\n\xff\r\n\0\0\0\0\0\0\0\0\0\0\x02\0\x20\0\0")]
    {
        let sql = format!("COPY e FROM STDIN (FORMAT {format})");
        let parsed = session.parse(&sql).await.unwrap().remove(0);
        let prepared = session.prepare(parsed, &[]).await.unwrap();
        let Outcome::CopyIn(mut copy) = session.execute(&prepared, vec![], Via::Simple).await.unwrap() else {
            panic!("{sql} takes no data")
        };
        copy.push(start).unwrap();
        let chunk = [b'7'; 1 << 16];
        let error = (0..64).find_map(|_| copy.push(&chunk).err()).expect("half a row is not free");
        assert_eq!(error.sqlstate.code(), "53200", "{format}: {error}");
    }
    others.set(others.bytes_max()).unwrap();
    engine.shutdown().await;
}

/// Short rows with the numbers below `count`, as copy data.
fn copy_data(format: &str, count: u64) -> Vec<u8> {
    let filler = "x".repeat(60);
    let binary = |number: u64| {
        let value = format!("{filler}{number}");
        let mut row = [&2_u16.to_be_bytes()[..], &8_u32.to_be_bytes(), &number.to_be_bytes()].concat();
        row.extend((value.len() as u32).to_be_bytes());
        row.extend(value.into_bytes());
        row
    };
    let row = |number: u64| match format {
        "text" => format!("{number}\t{filler}{number}\n").into_bytes(),
        "csv" => format!("{number},\"{filler}{number}\"\n").into_bytes(),
        "json" => format!("{{\"k\": {number}, \"v\": \"{filler}{number}\"}}\n").into_bytes(),
        _ => binary(number),
    };
    let mut data = if format == "binary" { b"PGCOPY\n\xff\r\n\0\0\0\0\0\0\0\0\0".to_vec() } else { Vec::new() };
    data.extend((0..count).flat_map(row));
    if format == "binary" {
        data.extend([0xff; 2]);
    }
    data
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn copied_rows_leave_memory_before_their_batch_is_full_when_memory_is_short() {
    const ROWS: u64 = 40_000;
    let engine = open(&FaultDisk::new(), Arc::default()).await.unwrap();
    let mut others = engine.room();
    let room = ByteSize::new(1 << 20);
    others.set(ByteSize::new(others.bytes_max().value() - room.value())).unwrap();
    let mut session = session(&engine);
    for format in ["text", "csv", "json", "binary"] {
        run(&mut session, &format!("CREATE STREAM s_{format} (k bigint, v text) WITH (partitions = 2)")).await.unwrap();
        let sql = format!("COPY s_{format} FROM STDIN (FORMAT {format})");
        let parsed = session.parse(&sql).await.unwrap().remove(0);
        let prepared = session.prepare(parsed, &[]).await.unwrap();
        let Outcome::CopyIn(mut copy) = session.execute(&prepared, vec![], Via::Simple).await.unwrap() else {
            panic!("{sql} takes no data")
        };
        let data = copy_data(format, ROWS);
        // Fewer rows than a batch has, and more bytes than others leave.
        assert!(data.len() as u64 > 2 * room.value());
        let mut flushes = 0;
        for chunk in data.chunks(10_007) {
            copy.push(chunk).unwrap_or_else(|error| panic!("{format}, after {flushes} flushes: {error}"));
            if copy.is_full() {
                copy.flush(&mut session).await.unwrap();
                flushes += 1;
            }
        }
        assert_eq!(copy.finish(&mut session).await.unwrap(), ROWS, "{format}");
        assert!(flushes >= 3, "{format}: {flushes}");
        let sql = format!(
            "SELECT count(*), count(DISTINCT k), min(k), max(k), bool_and(v = repeat('x', 60) || k) FROM s_{format}"
        );
        assert_eq!(run(&mut session, &sql).await.unwrap(), [format!("{ROWS}|{ROWS}|0|{}|true", ROWS - 1)], "{format}");
        assert_eq!(engine.holding.used(), others.bytes(), "{format}");
    }
    drop(session);
    engine.shutdown().await;
}
