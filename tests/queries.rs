//! Continuous queries over several relations: after FLUSH each has the rows of its SELECT run once.
//!
//! Two streams, a table with a key and one without, changed at random by statements and transactions, the server killed
//! now and then; half of the queries begin over what is stored. The operators, their saved state, the order of the
//! log over several topics and the sink are what is tried.

use crate::common::{DEADLINE, connect};
use crate::crash::Process;
use tokio_postgres::{Client, SimpleQueryMessage};

const STATEMENTS: u64 = 120;
const RESTART_EVERY: u64 = 40;

const CASES: &[&str] = &[
    "SELECT s.id, r.id AS rid, s.v + r.v AS z FROM s JOIN r ON s.k = r.k",
    "SELECT s.id, r.id AS rid FROM s LEFT JOIN r ON s.id = r.id",
    "SELECT s.id, r.id AS rid FROM s FULL JOIN r ON s.id = r.id AND s.v > r.v",
    "SELECT s.id, r.id AS rid FROM s JOIN r WITHIN 1 HOUR GRACE PERIOD 1 DAY ON s.k = r.k AND s.v = r.v",
    "SELECT a.id, b.id AS other FROM t a JOIN t b ON a.k = b.k AND a.id < b.id",
    "SELECT t.id, w.x FROM t LEFT JOIN w ON t.k = w.k",
    "SELECT t.id, w.k, w.x FROM t FULL JOIN w ON t.id = w.k",
    "SELECT w.k, count(*) AS c, sum(t.v) AS v, max(t.v) AS m FROM t JOIN w ON t.k = w.k GROUP BY w.k",
    "SELECT k, count(*) AS c, sum(v) AS v, min(v) AS l FROM t GROUP BY k HAVING count(*) > 1",
    "SELECT k, histogram(v) AS h FROM t GROUP BY k",
    "SELECT x, count(*) AS c, string_agg(k::text, ',' ORDER BY k) AS a FROM w GROUP BY x",
    "SELECT count(*) AS c, sum(v) AS v, max(v) AS m FROM t",
    "SELECT c, count(*) AS n FROM (SELECT k, count(*) AS c FROM s GROUP BY k) q GROUP BY c",
    "SELECT k FROM s UNION SELECT k FROM t",
    "SELECT id, k FROM s UNION ALL SELECT id, k FROM t",
    "SELECT DISTINCT k, v % 2 AS odd FROM t",
    "SELECT id FROM t WHERE EXISTS (SELECT 1 FROM w WHERE w.k = t.k)",
    "SELECT id FROM t WHERE NOT EXISTS (SELECT 1 FROM s WHERE s.k = t.k AND s.v > t.v)",
    "SELECT id, v FROM t WHERE v = (SELECT max(v) FROM t)",
    "SELECT k FROM s EXCEPT SELECT k FROM w",
    "SELECT t.id, q.c FROM t JOIN (SELECT k, count(*) AS c FROM s GROUP BY k) q ON q.k = t.k",
];

struct Seeded(u64);

impl Seeded {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % bound
    }
}

async fn try_rows(client: &Client, sql: &str) -> Result<Vec<Vec<Option<String>>>, tokio_postgres::Error> {
    let answer = tokio::time::timeout(DEADLINE, client.simple_query(sql)).await;
    let row = |message| match message {
        SimpleQueryMessage::Row(row) => Some((0..row.len()).map(|i| row.get(i).map(str::to_owned)).collect()),
        _ => None,
    };
    Ok(answer.unwrap_or_else(|_| panic!("no answer to {sql}"))?.into_iter().filter_map(row).collect())
}

async fn rows(client: &Client, sql: &str) -> Vec<Vec<Option<String>>> {
    try_rows(client, sql).await.unwrap_or_else(|error| panic!("{sql}: {error:?}"))
}

/// A stream or a table, as the SELECT has it.
async fn create(client: &Client, number: usize) {
    let select = CASES[number];
    if let Err(error) = try_rows(client, &format!("CREATE TABLE case{number} AS {select} EMIT CHANGES")).await {
        assert_eq!(error.code().map(|code| code.code()), Some("42809"), "{select}: {error:?}");
        rows(client, &format!("CREATE STREAM case{number} AS {select} EMIT CHANGES")).await;
    }
}

/// Some statements that commit together, or one.
fn change(seeded: &mut Seeded, number: u64) -> String {
    let mut one = || {
        let (id, k, v) = (seeded.below(30), seeded.below(6), seeded.below(10));
        let at = format!("'2024-01-01 00:{:02}:{:02}'", number % 60, seeded.below(60));
        match seeded.below(9) {
            0 | 1 => format!("INSERT INTO s VALUES ({id}, {k}, {v}, {at}), ({v}, {k}, {id}, {at})"),
            2 => format!("INSERT INTO r VALUES ({id}, {k}, {v}, {at})"),
            3 | 4 => format!("INSERT INTO t VALUES ({id}, {k}, {v})"),
            5 => format!("UPDATE t SET v = v + 1, k = {k} WHERE id % 5 = {}", id % 5),
            6 => format!("DELETE FROM t WHERE id = {id}"),
            7 => format!("INSERT INTO w VALUES ({k}, 'x{v}'), ({k}, 'x{v}')"),
            _ => match v < 5 {
                true => format!("UPDATE w SET x = x || 'y' WHERE k = {k}"),
                false => format!("DELETE FROM w WHERE k = {k}"),
            },
        }
    };
    match number % 4 {
        0 => format!("BEGIN; {}; {}; COMMIT", one(), one()),
        _ => one(),
    }
}

async fn compare(client: &Client, seed: u64) {
    rows(client, "FLUSH").await;
    let errors =
        rows(client, "SELECT name, error FROM millstream.queries WHERE error IS NOT NULL OR late_rows > 0").await;
    assert_eq!(errors, Vec::<Vec<Option<String>>>::new());
    for (number, select) in CASES.iter().enumerate() {
        let mut found = rows(client, &format!("SELECT * FROM case{number}")).await;
        let mut expected = rows(client, select).await;
        found.sort();
        expected.sort();
        assert_eq!(found, expected, "seed {seed}: {select}");
    }
}

async fn run(seed: u64) {
    let dir = tempfile::tempdir().unwrap();
    let mut seeded = Seeded(seed);
    let mut server = Process::start(dir.path());
    let mut client = connect(server.address).await;
    for name in ["s", "r"] {
        let sql = format!(
            "CREATE STREAM {name} (id integer, k integer KEY, v integer, at timestamp) WITH (timestamp = 'at', partitions = 2)"
        );
        rows(&client, &sql).await;
    }
    rows(&client, "CREATE TABLE t (id integer PRIMARY KEY, k integer, v integer) WITH (partitions = 2)").await;
    rows(&client, "CREATE TABLE w (k integer, x text)").await;
    for number in 0..STATEMENTS {
        let due = match number {
            0 => 0,
            50 => 1,
            _ => 2,
        };
        for case in (0..CASES.len()).filter(|case| case % 2 == due) {
            create(&client, case).await;
        }
        rows(&client, &change(&mut seeded, number)).await;
        if number % RESTART_EVERY == RESTART_EVERY - 1 {
            drop(client);
            server.kill();
            server = Process::start(dir.path());
            client = connect(server.address).await;
            if number > 50 {
                compare(&client, seed).await;
            }
        }
    }
    compare(&client, seed).await;
    drop(client);
    server.kill();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn queries_over_several_relations_equal_their_select_run_once() {
    for seed in [1, 2] {
        run(seed).await;
    }
}

/// Queries with `on_error = 'skip'`, killed between and in steps: each event that cannot be taken is kept once.
#[tokio::test]
async fn skipped_events_are_kept_once() {
    let dir = tempfile::tempdir().unwrap();
    let mut server = Process::start(dir.path());
    let mut client = connect(server.address).await;
    rows(&client, "CREATE STREAM s (k integer KEY, v integer) WITH (partitions = 2)").await;
    for sql in [
        "CREATE STREAM plain WITH (on_error = 'skip') AS SELECT k, 10 / (v - 3) AS q FROM s EMIT CHANGES",
        "CREATE TABLE sums WITH (on_error = 'skip') AS SELECT k, sum(10 / (v - 3)) AS q FROM s GROUP BY k EMIT CHANGES",
        // Behind state: the third event of a key fails, and all after it.
        "CREATE TABLE counts WITH (on_error = 'skip') AS SELECT k, 6 / (count(*) - 3) AS q, count(*) AS c FROM s GROUP BY k
         EMIT CHANGES",
    ] {
        rows(&client, sql).await;
    }
    let (mut seeded, mut bad, mut all) = (Seeded(5), 0, 0);
    for number in 0..60 {
        let (k, v) = (number % 4, seeded.below(5));
        bad += u64::from(v == 3);
        all += 1;
        rows(&client, &format!("INSERT INTO s VALUES ({k}, {v})")).await;
        if number % 20 == 13 {
            drop(client);
            server.kill();
            server = Process::start(dir.path());
            client = connect(server.address).await;
        }
        // One event a step, so that it is known which fail behind state.
        rows(&client, "FLUSH").await;
    }
    assert!(bad > 5);
    let kept = "SELECT query_name, count(*), count(DISTINCT partition || ':' || event_offset), min(sqlstate) AS s
        FROM millstream.query_errors GROUP BY query_name ORDER BY query_name";
    let line = |name: &str, count: u64| {
        [name, &count.to_string(), &count.to_string(), "22012"].map(|cell| Some(cell.to_owned())).to_vec()
    };
    let expected = [line("counts", all - 8), line("plain", bad), line("sums", bad)];
    assert_eq!(rows(&client, kept).await, expected);
    let counted = rows(&client, "SELECT name, skipped_rows, error FROM millstream.queries ORDER BY name").await;
    let line = |name: &str, count: u64| vec![Some(name.to_owned()), Some(count.to_string()), None];
    assert_eq!(counted, [line("counts", all - 8), line("plain", bad), line("sums", bad)]);
    let good = "FROM s WHERE v <> 3";
    for (found, expected) in [
        ("SELECT * FROM plain".to_owned(), format!("SELECT k, 10 / (v - 3) AS q {good}")),
        ("SELECT * FROM sums".to_owned(), format!("SELECT k, sum(10 / (v - 3)) AS q {good} GROUP BY k")),
        ("SELECT DISTINCT c, q FROM counts".to_owned(), "SELECT 2, -6".to_owned()),
        (
            "SELECT (event->>'k')::integer, (event->>'v')::integer FROM millstream.query_errors WHERE query_name = 'plain'".to_owned(),
            "SELECT k, v FROM s WHERE v = 3".to_owned(),
        ),
    ] {
        let (mut found, mut expected) = (rows(&client, &found).await, rows(&client, &expected).await);
        found.sort();
        expected.sort();
        assert_eq!(found, expected);
    }
    drop(client);
    server.kill();
}

/// Groups, pairs and first rows that need more memory than there is, the server killed while it takes them: parts of the state
/// are in files, and the results are those of the SELECT run once.
#[tokio::test]
async fn state_beyond_its_memory_is_on_disk_and_survives_kills() {
    const KEYS: u64 = 120_000;
    const TIMES: &str = "SELECT name, watermark FROM millstream.queries WHERE watermark IS NOT NULL ORDER BY name";
    const QUERIES: [(&str, &str, &str); 3] = [
        ("sums", "SELECT k, t, count(*) AS c, sum(v) AS z FROM e GROUP BY k, t", "k, t, c, z"),
        ("pairs", "SELECT e.k, e.v, f.t FROM e JOIN f ON e.k = f.k", "k, v, t"),
        (
            "firsts",
            "SELECT k, v FROM (SELECT *, row_number() OVER (PARTITION BY k ORDER BY v DESC) AS n FROM e) q WHERE n = 1",
            "k, v",
        ),
    ];
    let dir = tempfile::tempdir().unwrap();
    let small = || Process::start_with(dir.path(), &["--memory", "512MB"]);
    let mut server = small();
    let mut client = connect(server.address).await;
    for name in ["e", "f"] {
        rows(&client, &format!("CREATE STREAM {name} (k bigint, t text, v bigint)")).await;
    }
    for (name, select, _) in QUERIES {
        let kind = if name == "pairs" { "STREAM" } else { "TABLE" };
        rows(&client, &format!("CREATE {kind} {name} AS {select} EMIT CHANGES")).await;
    }
    for round in 0..3 {
        for (stream, every) in [("e", 1), ("f", 3)] {
            let sql = format!(
                "INSERT INTO {stream} SELECT n * 7919 % {KEYS}, repeat('text ', 12) || (n * 7919 % {KEYS}), n
                 FROM generate_series({}::bigint, {}::bigint) AS g(n) WHERE n % {every} = 0",
                round * KEYS + 1,
                (round + 1) * KEYS
            );
            rows(&client, &sql).await;
        }
        if round == 1 {
            rows(&client, "FLUSH").await;
            let shown = async {
                loop {
                    let lines = rows(&client, "EXPLAIN QUERY sums").await.concat().into_iter().flatten();
                    let lines: Vec<String> = lines.filter(|line| line.contains("operator ")).collect();
                    if lines.iter().any(|line| line.contains("on disk"))
                        && lines.iter().all(|line| !line.contains(" 0 rows in"))
                    {
                        return;
                    }
                    tokio::task::yield_now().await;
                }
            };
            tokio::time::timeout(DEADLINE, shown).await.expect("operators show what they took, and their files");
        }
        // In the middle of taking them.
        drop(client);
        server.kill();
        server = small();
        client = connect(server.address).await;
    }
    rows(&client, "FLUSH").await;
    let failed = rows(&client, "SELECT name, state, error FROM millstream.queries WHERE error IS NOT NULL").await;
    assert_eq!(failed, Vec::<Vec<Option<String>>>::new());
    let times = rows(&client, TIMES).await;
    assert!(!times.is_empty());
    drop(client);
    server.kill();
    // To read the whole of a table takes memory.
    let server = Process::start_with(dir.path(), &["--memory", "4GB"]);
    let client = connect(server.address).await;
    rows(&client, "FLUSH").await;
    // Queries take their state from files first; nothing comes that would tell them the time.
    let known = async {
        while rows(&client, TIMES).await != times {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(DEADLINE, known).await.expect("the time of a query is known after a restart");
    for (name, select, columns) in QUERIES {
        let sum = |of: &str| format!("SELECT count(*), sum(k) FROM {of}");
        let (found, expected) =
            (rows(&client, &sum(name)).await, rows(&client, &sum(&format!("({select}) once"))).await);
        assert_eq!(found, expected, "{name}");
        let differing = format!(
            "SELECT count(*) FROM (SELECT {columns} FROM {name} EXCEPT SELECT {columns} FROM ({select}) once) q"
        );
        assert_eq!(rows(&client, &differing).await, [[Some("0".to_owned())]], "{name}");
    }
    let files = |of: &std::path::Path| {
        let state = of.join("shards/1/state");
        std::fs::read_dir(state).unwrap().flatten().flat_map(|dir| std::fs::read_dir(dir.path()).unwrap()).count()
    };
    // At the latest with the next checkpoint: what was read again after the kill may have none yet.
    let begun = std::time::Instant::now();
    while files(dir.path()) == 0 {
        assert!(begun.elapsed() < DEADLINE, "no file of a state");
        tokio::task::yield_now().await;
    }
    let copy = tempfile::tempdir().unwrap();
    let copied = crate::backup::take(dir.path().to_owned(), copy.path().join("backup"), None).await;
    assert!(copied.report.is_clean() && files(&copy.path().join("backup")) > 0, "{}", copied.report);
    for (name, ..) in QUERIES {
        let kind = if name == "pairs" { "STREAM" } else { "TABLE" };
        rows(&client, &format!("DROP {kind} {name}")).await;
    }
    assert_eq!(files(dir.path()), 0, "files of queries that are gone");
    drop(client);
    server.kill();
}
