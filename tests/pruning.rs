//! Reads that skip segments and batches give the rows of reads that do not; EXPLAIN ANALYZE tells what was skipped.
//!
//! A predicate in WHERE skips; the same predicate in FILTER is evaluated over every row and skips nothing. Both share
//! the evaluation of the predicate, not the decision what to read.

use crate::common::{DEADLINE, Server, config, connect, words};
use millstream::config::Config;
use millstream::node::Node;
use millstream_catalog::model::limit::SEAL_BYTES_MIN;
use tokio_postgres::{Client, SimpleQueryMessage};

/// Statements, each of which is about one segment.
const PARTS: u64 = 7;
/// Rows of a statement: over 64 KiB of them.
const ROWS: u64 = 700;
const PREDICATES: u64 = 500;

/// Columns, and values that are at odds with a careless order.
const COLUMNS: [(&str, &str, &[&str]); 14] = [
    ("i", "integer", &["0", "-1", "2147483647", "-2147483648"]),
    ("s", "smallint", &["0", "32767", "-32768"]),
    ("g", "bigint", &["0", "9223372036854775807", "-9223372036854775808"]),
    ("r", "real", &["'NaN'", "'-Infinity'", "'Infinity'", "'-0'", "0", "'1e-40'"]),
    ("d", "double precision", &["'NaN'", "'-Infinity'", "'Infinity'", "'-0'", "0", "'1e300'"]),
    ("n", "numeric(12, 3)", &["0", "-0.001", "999999999.999"]),
    (
        "t",
        "text",
        &["''", "'é'", "'zz'", "'A'", "repeat('x', 70)", "repeat('x', 63) || 'é'", "repeat(U&'\\+10FFFF', 20)"],
    ),
    ("v", "varchar(90)", &["''", "' '", "'a '", "repeat('y', 80)"]),
    ("c", "char(5)", &["''", "'a'", "'a '", "'ab'", "E'a\\t'"]),
    ("b", "boolean", &["true", "false"]),
    ("y", "date", &["'0001-01-01'", "'2024-02-29'", "'5000-01-01'"]),
    ("z", "timestamptz", &["'2024-01-01 00:00:00Z'", "'1969-12-31 23:59:59.999999Z'"]),
    ("u", "uuid", &["'00000000-0000-0000-0000-000000000000'", "'ffffffff-ffff-ffff-ffff-ffffffffffff'"]),
    ("e", "bytea", &["''::bytea", "'\\x00'::bytea", "'\\xff'::bytea"]),
];

struct Seeded(u64);

impl Seeded {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % bound
    }

    /// A literal for a column; values of one `part` are near each other.
    fn value(&mut self, column: usize, part: u64) -> String {
        let (name, _, odd) = COLUMNS[column];
        if self.below(60) == 0 {
            return odd[self.below(odd.len() as u64) as usize].to_owned();
        }
        let near = part * 100 + self.below(130);
        match name {
            "b" => (if part.is_multiple_of(3) { near } else { part }).is_multiple_of(2).to_string(),
            "r" | "d" | "n" => format!("{near}.{}", self.below(8) * 125),
            "t" => format!("'{}{near}'", "w".repeat((part % 3) as usize * 35)),
            "v" => format!("'{near:04}'"),
            "c" => format!("'{near}'"),
            "y" => format!("'2024-01-01'::date + {near}"),
            "z" => format!("'2024-01-01 00:00:00Z'::timestamptz + interval '{near} minutes'"),
            "u" => format!("'00000000-0000-0000-0000-{near:012}'::uuid"),
            "e" => format!("'\\x{near:06}'::bytea"),
            _ => near.to_string(),
        }
    }

    fn row(&mut self, id: u64, part: u64) -> String {
        let mut cells = vec![id.to_string()];
        for column in 0..COLUMNS.len() {
            // One part without nulls, one with nothing else in some columns.
            let is_null = match part {
                1 => false,
                2 if column % 4 == 0 => true,
                _ => self.below(20) == 0,
            };
            cells.push(if is_null { "NULL".to_owned() } else { self.value(column, part) });
        }
        format!("({})", cells.join(", "))
    }

    fn leaf(&mut self) -> String {
        let column = self.below(COLUMNS.len() as u64) as usize;
        let (name, sql_type, _) = COLUMNS[column];
        let literal = |seeded: &mut Self| {
            let part = seeded.below(PARTS + 2);
            let value = seeded.value(column, part);
            if seeded.below(3) == 0 { format!("({value})::{sql_type}") } else { format!("({value})") }
        };
        let comparison = ["=", "<>", "<", "<=", ">", ">="][self.below(6) as usize];
        match self.below(12) {
            0 => format!("{name} IS NULL"),
            1 => format!("{name} IS NOT NULL"),
            2 => format!("{name} BETWEEN {} AND {}", literal(self), literal(self)),
            3 => format!("{name} NOT BETWEEN {} AND {}", literal(self), literal(self)),
            4 => format!("{name} IN ({}, {}, {})", literal(self), literal(self), literal(self)),
            5 => format!("{name} NOT IN ({}, {})", literal(self), literal(self)),
            6 => format!("({name} IS DISTINCT FROM {})", literal(self)),
            7 if matches!(name, "t" | "v" | "c") => {
                let not = ["", "NOT "][self.below(2) as usize];
                format!(
                    "{name} {not}LIKE '{}'",
                    ["a%", "0%", "1_%", "%", "w%", "é%", "", "03__"][self.below(8) as usize]
                )
            }
            8 => format!("id {comparison} {}", self.below(PARTS * ROWS)),
            9 => format!("id IN ({}, {})", self.below(PARTS * ROWS), self.below(2 * PARTS * ROWS)),
            10 if matches!(name, "i" | "s" | "g") => format!("{name} / 3 {comparison} {}", self.below(300)),
            10 if name == "b" => name.to_owned(),
            11 => format!("{} {comparison} {name}", literal(self)),
            _ => format!("{name} {comparison} {}", literal(self)),
        }
    }

    fn predicate(&mut self, depth: u64) -> String {
        match self.below(6) {
            _ if depth == 0 => self.leaf(),
            0 => format!("NOT ({})", self.predicate(depth - 1)),
            1 | 2 => format!("({} AND {})", self.predicate(depth - 1), self.predicate(depth - 1)),
            3 => format!("({} OR {})", self.predicate(depth - 1), self.predicate(depth - 1)),
            _ => self.leaf(),
        }
    }
}

type Rows = Vec<Vec<Option<String>>>;

async fn rows(client: &Client, sql: &str) -> Rows {
    answer(client, sql).await.unwrap_or_else(|error| panic!("{sql}: {error}"))
}

async fn answer(client: &Client, sql: &str) -> Result<Rows, String> {
    let answer = tokio::time::timeout(DEADLINE, client.simple_query(sql)).await;
    let messages = answer.unwrap_or_else(|_| panic!("no answer to {sql}")).map_err(|error| words(&error))?;
    let row = |message| match message {
        SimpleQueryMessage::Row(row) => Some((0..row.len()).map(|i| row.get(i).map(str::to_owned)).collect()),
        _ => None,
    };
    Ok(messages.into_iter().filter_map(row).collect())
}

async fn one(client: &Client, sql: &str) -> String {
    rows(client, sql).await[0][0].clone().unwrap_or_default()
}

/// A node that makes many small segments.
async fn start() -> (tempfile::TempDir, Node, Client) {
    let dir = tempfile::tempdir().unwrap();
    let node = Node::start(&Config { seal_bytes: SEAL_BYTES_MIN, ..config(dir.path()) }).await.unwrap();
    let client = connect(node.pg_address()).await;
    (dir, node, client)
}

/// Waits until a topic has so many segments.
async fn sealed(client: &Client, topic: &str, segments: u64) {
    let sql = format!("SELECT count(*) FROM millstream.segments WHERE topic = '{topic}'");
    let waited = async {
        while one(client, &sql).await.parse::<u64>().unwrap() < segments {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(DEADLINE, waited).await.expect("segments are made");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn reads_that_skip_give_the_rows_of_reads_that_do_not() {
    let (_dir, node, client) = start().await;
    let columns: Vec<String> = COLUMNS.iter().map(|(name, sql_type, _)| format!("{name} {sql_type}")).collect();
    rows(&client, &format!("CREATE STREAM p (id bigint KEY, {})", columns.join(", "))).await;
    let mut seeded = Seeded(11);
    for part in 0..PARTS {
        let values: Vec<String> = (part * ROWS..(part + 1) * ROWS).map(|id| seeded.row(id, part)).collect();
        rows(&client, &format!("INSERT INTO p VALUES {}", values.join(", "))).await;
        sealed(&client, "p", part + 1).await;
    }
    let (mut differences, mut errors) = (Vec::new(), 0);
    for _ in 0..PREDICATES {
        let predicate = seeded.predicate(2);
        let skipping = format!("SELECT count(*), min(id), max(id), sum(id) FROM p WHERE {predicate}");
        let only = format!("FILTER (WHERE {predicate})");
        let reading = format!("SELECT count(*) {only}, min(id) {only}, max(id) {only}, sum(id) {only} FROM p");
        let (skipped, read) = (answer(&client, &skipping).await, answer(&client, &reading).await);
        errors += usize::from(read.is_err());
        // A part that is skipped cannot fail.
        if skipped != read && read.is_ok() {
            differences.push(format!("{predicate}\n  {skipped:?} instead of {read:?}"));
        }
    }
    assert!(differences.is_empty(), "{}", differences.join("\n"));
    assert!(errors < PREDICATES as usize / 20, "{errors} predicates are refused");
    node.stop().await;
}

/// What `EXPLAIN ANALYZE` says was read.
async fn read(client: &Client, sql: &str) -> String {
    let lines = rows(client, &format!("EXPLAIN ANALYZE {sql}")).await;
    let lines: Vec<String> = lines.into_iter().filter_map(|mut row| row.remove(0)).collect();
    let found = lines.iter().find_map(|line| line.trim_start().strip_prefix("Read: "));
    found.unwrap_or_else(|| panic!("{sql}: {lines:?}")).to_owned()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn explain_analyze_counts_segments_read_and_skipped() {
    let (_dir, node, client) = start().await;
    rows(&client, "CREATE STREAM q (id bigint KEY, a integer, t text) WITH (compression = 'lz4')").await;
    for part in 0..4 {
        // Keys 0, 4, 8 … in the first segment, 1, 5, 9 … in the second: only filters tell them apart.
        let insert = format!(
            "INSERT INTO q SELECT n * 4 + {part}, {part} * 1000 + n % 1000, repeat('x', 60) || n FROM generate_series(0, 2999) AS g(n)"
        );
        rows(&client, &insert).await;
        sealed(&client, "q", part + 1).await;
    }
    let skipped = |what: &str| format!("skipped: {what}");
    for (predicate, segments, expected) in [
        ("a > 2999", 1, "3 segments (3 by statistics, 0 by bloom filter), 3 batches"),
        ("a BETWEEN 1500 AND 2500", 2, "2 segments (2 by statistics, 0 by bloom filter), 2 batches"),
        ("a = 5000 OR a < 0", 0, "4 segments (4 by statistics, 0 by bloom filter), 4 batches"),
        ("a IN (1, 3001)", 2, "2 segments (2 by statistics, 0 by bloom filter), 2 batches"),
        ("a IS NULL", 0, "4 segments (4 by statistics, 0 by bloom filter), 4 batches"),
        ("NOT (a >= 1000)", 1, "3 segments (3 by statistics, 0 by bloom filter), 3 batches"),
        ("t LIKE 'y%'", 0, "4 segments (4 by statistics, 0 by bloom filter), 4 batches"),
        ("id = 4002", 1, "3 segments (0 by statistics, 3 by bloom filter), 3 batches"),
        ("id IN (4001, 4003) AND a < 2000", 1, "3 segments (2 by statistics, 1 by bloom filter), 3 batches"),
        ("rowoffset >= 9000", 1, "3 segments (3 by statistics, 0 by bloom filter), 3 batches"),
        ("upper(t) = 'A'", 4, "0 segments (0 by statistics, 0 by bloom filter), 0 batches"),
    ] {
        let found = read(&client, &format!("SELECT sum(a) FROM q WHERE {predicate}")).await;
        assert!(found.starts_with(&format!("{segments} segments, {segments} batches, ")), "{predicate}: {found}");
        assert!(found.ends_with(&skipped(expected)), "{predicate}: {found}");
    }
    // Only wanted columns are read: 3,000 integers of 4 bytes.
    let found = read(&client, "SELECT sum(a) FROM q WHERE a > 2999").await;
    assert!(found.contains(", 3000 rows, 12000 bytes;"), "{found}");
    // What a prepared statement is given skips too.
    rows(&client, "PREPARE s AS SELECT count(*) FROM q WHERE id = $1").await;
    assert_eq!(one(&client, "EXECUTE s (4002)").await, "1");
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_large_partition_is_shared_by_threads_and_gives_every_row_once() {
    let server = Server::start().await;
    let client = server.client().await;
    rows(&client, "CREATE STREAM w (n integer)").await;
    rows(&client, "INSERT INTO w SELECT n FROM generate_series(1, 400000) AS g(n)").await;
    let plan = rows(&client, "EXPLAIN SELECT sum(n) FROM w WHERE n > 0").await;
    let threads = std::thread::available_parallelism().unwrap().get();
    let plan = format!("{plan:?}");
    assert!(threads == 1 || !plan.contains("parallel=1]"), "{plan}");
    let sum = rows(&client, "SELECT count(*), count(DISTINCT n), sum(n) FROM w WHERE n > 0").await;
    assert_eq!(format!("{sum:?}"), r#"[[Some("400000"), Some("400000"), Some("80000200000")]]"#);
    server.node.stop().await;
}
