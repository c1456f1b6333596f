//! Continuous equals bounded: a continuous table after FLUSH has the rows of its SELECT run once over the same log.
//!
//! Events are generated from a seed: several keys and none, times out of order within the grace period, several
//! partitions. They are inserted by several statements, with restarts of the node in between. The stream gets another
//! column, more partitions and another name, and is truncated; what is run once reads a stream that keeps all events.
//! The two sides share the expressions, but not the operators of GROUP BY, nor state, checkpoints, sink and table.

use crate::common::{DEADLINE, config, connect};
use millstream::node::Node;
use tokio_postgres::{Client, SimpleQueryMessage};

/// Events of a run, and after how many inserts the node restarts.
const EVENTS: u64 = 1_500;
const STATEMENTS: u64 = 30;
const RESTART_EVERY: u64 = 10;

/// What is grouped, how, and over which windows: every entry is one continuous table.
struct Case {
    select: &'static str,
    size: &'static str,
    tail: &'static str,
}

const fn case(select: &'static str, size: &'static str, tail: &'static str) -> Case {
    Case { select, size, tail }
}

const CASES: &[Case] = &[
    case("SELECT k, count(*) AS a, count(v) AS b, count(DISTINCT v) AS c", "1 MINUTE", "GROUP BY k"),
    case("SELECT k, sum(v) AS a, min(v) AS b, max(v) AS c, sum(big) AS d", "10 SECONDS", "GROUP BY k"),
    case("SELECT k, round(avg(v), 4) AS a, sum(n) AS b, min(n) AS c, max(n) AS d", "1 HOUR", "GROUP BY k"),
    case("SELECT min(t) AS a, max(t) AS b, min(at) AS c, max(at) AS d, min(d) AS e, k", "7 MINUTES", "GROUP BY k"),
    case("SELECT count(*) AS a, sum(v) AS b", "30 SECONDS", ""),
    case("SELECT k, t, count(*) AS a, bool_and(flag) AS b, bool_or(flag) AS c", "5 MINUTES", "GROUP BY k, t"),
    case("SELECT v % 3 AS m, k, count(*) AS a, sum(v * 2 + 1) AS b", "2 MINUTES", "GROUP BY v % 3, k"),
    case("SELECT upper(t) AS u, coalesce(k, -1) AS q, count(*) AS a", "1 DAY", "GROUP BY upper(t), coalesce(k, -1)"),
    case("SELECT k, count(*) FILTER (WHERE v > 50) AS a, sum(v) FILTER (WHERE flag) AS b", "3 MINUTES", "GROUP BY k"),
    case("SELECT k, array_agg(v ORDER BY v, big) AS a", "10 MINUTES", "GROUP BY k"),
    case("SELECT k, string_agg(t, ',' ORDER BY t, big) AS a", "10 MINUTES", "GROUP BY k"),
    case("SELECT k, bit_and(v) AS a, bit_or(v) AS b, bit_xor(v) AS c", "4 MINUTES", "GROUP BY k"),
    case("SELECT k, count(*) AS a, sum(v) AS b", "1 MINUTE", "GROUP BY k HAVING count(*) > 2"),
    case("SELECT k, sum(v) AS a", "2 MINUTES", "GROUP BY k HAVING sum(v) % 2 = 0"),
    case("SELECT t, max(v) - min(v) AS a", "90 SECONDS", "WHERE v IS NOT NULL AND k > 1 GROUP BY t"),
    case("SELECT k, count(*) AS a", "1 MINUTE", "WHERE t LIKE 'a%' OR flag GROUP BY k HAVING max(v) > 30"),
    case(
        "SELECT CASE WHEN v < 30 THEN 'low' WHEN v < 70 THEN 'middle' ELSE 'high' END AS band, count(*) AS a",
        "6 MINUTES",
        "GROUP BY 1",
    ),
    case("SELECT date_trunc('minute', at) AS minute, count(*) AS a", "1 HOUR", "GROUP BY date_trunc('minute', at)"),
    case("SELECT flag, count(DISTINCT k) AS a, count(DISTINCT t) AS b", "11 SECONDS", "GROUP BY flag"),
    case("SELECT k, median(v) AS a", "1 HOUR", "GROUP BY k"),
    case(
        "SELECT doc -> 'k' AS dk, count(*) AS a, sum((doc ->> 'v')::integer) AS b, count(DISTINCT doc -> 'v') AS c",
        "2 MINUTES",
        "GROUP BY doc -> 'k'",
    ),
    case("SELECT (s).a AS sa, s['b'] AS sb, count(*) AS a", "5 MINUTES", "WHERE (s).a < 5 GROUP BY (s).a, s['b']"),
    case("SELECT s, count(*) AS a, max((s).a) AS b", "5 MINUTES", "GROUP BY s"),
    case("SELECT m['x'] AS x, count(m['y']) AS a, sum(list[2]) AS b", "1 HOUR", "GROUP BY m['x']"),
    case("SELECT doc, list, count(*) AS a", "3 MINUTES", "WHERE doc ? 'v' GROUP BY doc, list"),
];

impl Case {
    fn continuous(&self, name: &str) -> String {
        let Self { select, size, tail } = self;
        format!(
            "CREATE TABLE {name} AS {select} FROM events WINDOW TUMBLING (SIZE {size}, GRACE PERIOD 1 DAY) \
             {tail} EMIT CHANGES"
        )
    }

    fn names(&self) -> String {
        let mut names = vec!["windowstart".to_owned(), "windowend".to_owned()];
        let mut depth = 0;
        let list = self.select.strip_prefix("SELECT ").unwrap();
        let items = list.split(|c: char| {
            depth += i32::from(c == '(') - i32::from(c == ')');
            c == ',' && depth == 0
        });
        names.extend(items.map(|item| item.rsplit(' ').next().unwrap().to_owned()));
        names.join(", ")
    }

    fn bounded(&self) -> String {
        let Self { select, size, tail } = self;
        let list = select.strip_prefix("SELECT ").unwrap();
        // A position in GROUP BY counts the columns put before.
        let tail = tail.replace("GROUP BY 1", "GROUP BY 3");
        format!("SELECT windowstart, windowend, {list} FROM kept WINDOW TUMBLING (SIZE {size}) {tail}")
    }
}

/// A small generator, so that a run can be repeated.
struct Seeded(u64);

impl Seeded {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % bound
    }

    fn or_null(&mut self, one_in: u64, value: String) -> String {
        if self.below(one_in) == 0 { "NULL".to_owned() } else { value }
    }

    /// A json value, a struct, a map and an array.
    fn nested(&mut self) -> String {
        let kind = ["1", "1.0", "1.00", "\"x\"", "null", "[1, 2.50]", "[1.0, 2.5]"][self.below(7) as usize];
        let doc = match self.below(4) {
            0 => format!("{{\"k\": {kind}}}"),
            number => format!("{{\"v\": {number}, \"k\": {kind}}}"),
        };
        let doc = self.or_null(10, format!("'{doc}'"));
        let item = match self.below(3) {
            0 => "{}".to_owned(),
            _ => format!("{{\"a\": {}, \"b\": \"{}\"}}", self.below(6), self.below(2)),
        };
        let item = self.or_null(10, format!("'{item}'"));
        let map = format!("'{{\"x\": {}, \"y\": {}}}'", self.below(3), ["1", "null"][self.below(2) as usize]);
        let map = self.or_null(10, map);
        let list = format!("'{{{},{}}}'", self.below(2), self.below(2));
        let list = self.or_null(10, list);
        format!("{doc}, {item}, {map}, {list}")
    }

    /// One event as a row of VALUES; `number` says how far time is.
    fn event(&mut self, number: u64) -> String {
        let seconds = 1_704_067_200 + number * 2;
        let jitter = self.below(600);
        let key = self.below(6).to_string();
        let key = self.or_null(12, key);
        let value = self.below(100).to_string();
        let value = self.or_null(9, value);
        let (big, cents) = (self.below(1 << 40), self.below(100_000));
        let word = format!("'{}{}'", ["a", "b", "Ç"][self.below(3) as usize], self.below(3));
        let word = self.or_null(15, word);
        let flag = if self.below(2) == 0 { "true" } else { "false" };
        let flag = self.or_null(8, flag.to_owned());
        let day = self.below(20) + 1;
        let at = seconds.saturating_sub(jitter);
        let micros = self.below(1_000_000);
        let nested = self.nested();
        format!(
            "({key}, {value}, {big}, {}.{:02}, {word}, {flag}, '2024-01-{day:02}', to_timestamp({at}.{micros:06})::timestamp, \
             {nested})",
            cents / 100,
            cents % 100
        )
    }
}

async fn rows(client: &Client, sql: &str) -> Vec<Vec<Option<String>>> {
    let answer = tokio::time::timeout(DEADLINE, client.simple_query(sql)).await;
    let messages = answer.unwrap_or_else(|_| panic!("no answer to {sql}")).unwrap_or_else(|e| panic!("{sql}: {e:?}"));
    let row = |message| match message {
        SimpleQueryMessage::Row(row) => Some((0..row.len()).map(|i| row.get(i).map(str::to_owned)).collect()),
        _ => None,
    };
    messages.into_iter().filter_map(row).collect()
}

async fn compare(client: &Client) {
    rows(client, "FLUSH").await;
    let errors =
        rows(client, "SELECT name, error FROM millstream.queries WHERE error IS NOT NULL OR late_rows > 0").await;
    assert_eq!(errors, Vec::<Vec<Option<String>>>::new());
    let mut differences = Vec::new();
    for (number, case) in CASES.iter().enumerate() {
        let mut continuous = rows(client, &format!("SELECT {} FROM case{number}", case.names())).await;
        let mut bounded = rows(client, &case.bounded()).await;
        continuous.sort();
        bounded.sort();
        if continuous != bounded {
            let only = |a: &[Vec<_>], b: &[Vec<Option<String>>]| {
                a.iter().filter(|row| !b.contains(row)).take(3).cloned().collect::<Vec<_>>()
            };
            differences.push(format!(
                "{}\n  only continuous: {:?}\n  only bounded: {:?}",
                case.bounded(),
                only(&continuous, &bounded),
                only(&bounded, &continuous)
            ));
        }
    }
    assert!(differences.is_empty(), "{}", differences.join("\n"));
}

async fn run(seed: u64) {
    let dir = tempfile::tempdir().unwrap();
    let mut seeded = Seeded(seed);
    let mut node = Node::start(&config(dir.path())).await.unwrap();
    let mut client = connect(node.pg_address()).await;
    for name in ["events", "kept"] {
        let create = format!(
            "CREATE STREAM {name} (k integer KEY, v integer, big bigint, n numeric(12, 2), t text, flag boolean, d date, \
             at timestamp, doc jsonb, s STRUCT<a integer, b text>, m MAP<text, integer>, list integer[]) \
             WITH (timestamp = 'at', partitions = 3)"
        );
        rows(&client, &create).await;
    }
    let mut name = "events";
    let mut sent = 0;
    for statement in 0..STATEMENTS {
        // Half of the tables begin over stored events.
        let due = CASES.iter().enumerate().filter(|(number, _)| match statement {
            0 => number % 2 == 0,
            7 => number % 2 == 1,
            _ => false,
        });
        for (number, case) in due {
            rows(&client, &case.continuous(&format!("case{number}"))).await;
        }
        let count = match statement {
            _ if statement + 1 == STATEMENTS => EVENTS - sent,
            _ => seeded.below(2 * EVENTS / STATEMENTS).min(EVENTS - sent - 1) + 1,
        };
        let events: Vec<String> = (sent..sent + count).map(|number| seeded.event(number)).collect();
        sent += count;
        for name in [name, "kept"] {
            rows(&client, &format!("INSERT INTO {name} VALUES {}", events.join(", "))).await;
        }
        match statement {
            8 => drop(rows(&client, "ALTER STREAM events ADD COLUMN later text DEFAULT 'none'").await),
            12 => drop(rows(&client, "ALTER STREAM events SET (partitions = 5)").await),
            16 => {
                rows(&client, "FLUSH").await;
                rows(&client, "TRUNCATE events").await;
            }
            18 => {
                rows(&client, "ALTER STREAM events RENAME TO happened").await;
                name = "happened";
            }
            _ => {}
        }
        if statement % RESTART_EVERY == RESTART_EVERY - 1 {
            drop(client);
            node.stop().await;
            drop(node);
            node = Node::start(&config(dir.path())).await.unwrap();
            client = connect(node.pg_address()).await;
        }
        if statement == STATEMENTS / 2 {
            compare(&client).await;
        }
        if sent == EVENTS {
            break;
        }
    }
    compare(&client).await;
    drop(client);
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn continuous_tables_equal_their_select_run_once() {
    for seed in [1, 2] {
        run(seed).await;
    }
}

/// A table of the model: its rows by key.
type Model = std::collections::BTreeMap<i64, (i64, String)>;

/// What a changed table is compared as: itself, and continuous tables over it.
const CHANGED: &[(&str, &str)] = &[
    ("changed", "SELECT k, v, t FROM changed"),
    ("doubled", "SELECT k, v * 2 AS w FROM changed WHERE v % 3 <> 0"),
    ("upper", "SELECT k, upper(t) AS u, v + k AS s FROM changed"),
];

/// What the model says of each of them.
fn expected(model: &Model, name: &str) -> Vec<Vec<Option<String>>> {
    let row = |(k, (v, t)): (&i64, &(i64, String))| {
        let cells = match name {
            "changed" => vec![k.to_string(), v.to_string(), t.clone()],
            "doubled" if v % 3 == 0 => return None,
            "doubled" => vec![k.to_string(), (v * 2).to_string()],
            _ => vec![k.to_string(), t.to_uppercase(), (v + k).to_string()],
        };
        Some(cells.into_iter().map(Some).collect())
    };
    let mut rows: Vec<Vec<Option<String>>> = model.iter().filter_map(row).collect();
    rows.sort();
    rows
}

/// One statement over the table, and the same over the model.
fn change(seeded: &mut Seeded, model: &mut Model) -> String {
    let (k, v) = (seeded.below(20) as i64, seeded.below(50) as i64);
    let t = ["a", "b", "c"][seeded.below(3) as usize];
    match seeded.below(6) {
        0 => {
            model.insert(k, (v, t.to_owned()));
            format!("INSERT INTO changed VALUES ({k}, {v}, '{t}')")
        }
        1 => {
            model.entry(k).and_modify(|row| row.0 += v).or_insert((v, t.to_owned()));
            format!(
                "INSERT INTO changed VALUES ({k}, {v}, '{t}') ON CONFLICT (k) DO UPDATE SET v = changed.v + excluded.v"
            )
        }
        2 => {
            model.entry(k).or_insert((v, t.to_owned()));
            format!("INSERT INTO changed VALUES ({k}, {v}, '{t}') ON CONFLICT DO NOTHING")
        }
        3 => {
            model.values_mut().filter(|row| row.0 < v).for_each(|row| *row = (row.0 + 1, t.to_owned()));
            format!("UPDATE changed SET v = v + 1, t = '{t}' WHERE v < {v}")
        }
        4 => {
            let old = std::mem::take(model);
            model.extend(old.into_iter().map(|(key, row)| (if key % 5 == k % 5 { key + 100 } else { key }, row)));
            format!("UPDATE changed SET k = k + 100 WHERE k % 5 = {}", k % 5)
        }
        _ => {
            model.retain(|_, row| row.0 % 7 != v % 7);
            format!("DELETE FROM changed WHERE v % 7 = {}", v % 7)
        }
    }
}

async fn run_changes(seed: u64) {
    let dir = tempfile::tempdir().unwrap();
    let (mut seeded, mut model) = (Seeded(seed), Model::new());
    let mut node = Node::start(&config(dir.path())).await.unwrap();
    let mut client = connect(node.pg_address()).await;
    rows(&client, "CREATE TABLE changed (k bigint PRIMARY KEY, v bigint, t text) WITH (partitions = 3)").await;
    for statement in 0..90 {
        for (name, select) in CHANGED.iter().filter(|_| statement == 10).skip(1) {
            rows(&client, &format!("CREATE TABLE {name} AS {select} EMIT CHANGES")).await;
        }
        rows(&client, &change(&mut seeded, &mut model)).await;
        if statement % 30 == 29 {
            drop(client);
            node.stop().await;
            drop(node);
            node = Node::start(&config(dir.path())).await.unwrap();
            client = connect(node.pg_address()).await;
            rows(&client, "FLUSH").await;
            for (name, select) in CHANGED {
                for sql in [format!("SELECT * FROM {name}"), (*select).to_owned()] {
                    let mut found = rows(&client, &sql).await;
                    found.sort();
                    assert_eq!(found, expected(&model, name), "seed {seed}, statement {statement}: {sql}");
                }
            }
        }
    }
    drop(client);
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn changed_tables_and_continuous_ones_over_them_equal_a_model() {
    for seed in [3, 4] {
        run_changes(seed).await;
    }
}
