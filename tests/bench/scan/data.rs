//! The rows that are scanned, and what is asked of them.

use bytes::Bytes;
use futures::SinkExt as _;
use std::fs::File;
use std::io::{BufRead as _, BufReader, BufWriter, Write as _};
use std::path::{Path, PathBuf};
use std::pin::pin;
use tokio_postgres::Client;

const FLIGHTS: &str = include_str!("../../../examples/flights/flights.csv");
const ACCOUNTS: usize = 100_000;
const KINDS: [&str; 8] = ["view", "click", "search", "cart", "checkout", "refund", "login", "logout"];
const REGIONS: [&str; 5] = ["north", "east", "south", "west", "sea"];
/// Rows of one COPY.
const COPY_ROWS: usize = 500_000;
/// Bytes of one CopyData message.
const PART_BYTES: usize = 64 << 10;
/// A prime: multiples of it meet every number below a round one.
const STRIDE: usize = 7_368_787;

/// A relation that all have.
pub(crate) struct Relation {
    pub(crate) name: &'static str,
    pub(crate) columns: &'static [(&'static str, &'static str)],
    pub(crate) rows: usize,
    /// Its key, and whether there is one row of each.
    key: Option<(&'static str, Key)>,
    line: fn(usize, usize) -> String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Key {
    /// `KEY` of a stream: where an event goes.
    Partitioning,
    /// `PRIMARY KEY` of a table.
    Primary,
}

/// What is loaded.
pub(crate) fn relations(rows: usize) -> [Relation; 3] {
    [
        Relation {
            name: "events",
            columns: &[
                ("id", "bigint"),
                ("made", "timestamp"),
                ("account", "integer"),
                ("kind", "text"),
                ("amount", "integer"),
                ("url", "text"),
            ],
            rows,
            key: Some(("id", Key::Partitioning)),
            line: event,
        },
        Relation {
            name: "accounts",
            columns: &[("account", "integer"), ("region", "text")],
            rows: ACCOUNTS,
            key: Some(("account", Key::Primary)),
            line: |number, _| format!("{number},{}", REGIONS[number * 7 % REGIONS.len()]),
        },
        Relation {
            name: "flights",
            columns: &[
                ("scheduled", "timestamp"),
                ("delay_minutes", "integer"),
                ("distance_miles", "integer"),
                ("origin", "text"),
                ("destination", "text"),
            ],
            rows: rows / 5,
            key: None,
            line: flight,
        },
    ]
}

/// One event: `id` without order, `made` in order, the rest by chance.
fn event(number: usize, rows: usize) -> String {
    let id = number * STRIDE % rows;
    let mut state = (number as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let mut draw = |below: u64| {
        state ^= state >> 30;
        state = state.wrapping_mul(0xbf58_476d_1ce4_e5b9);
        state ^= state >> 27;
        state = state.wrapping_mul(0x94d0_49bb_1331_11eb);
        state ^= state >> 31;
        state % below
    };
    let (account, kind, amount) = (draw(ACCOUNTS as u64), KINDS[draw(8) as usize], draw(1_000_000));
    let (item, page) = (draw(50_000), KINDS[draw(8) as usize]);
    let (day, second) = (number / 86_400 % 28 + 1, number % 86_400);
    let month = number / (86_400 * 28) + 1;
    let time = format!("{:02}:{:02}:{:02}", second / 3600, second / 60 % 60, second % 60);
    format!("{id},2026-{month:02}-{day:02} {time},{account},{kind},{amount},https://shop.example/{page}/{item}")
}

/// A real flight; after the last comes the first again.
fn flight(number: usize, _rows: usize) -> String {
    // Lines are looked up again and again: found once.
    static LINES: std::sync::OnceLock<Vec<&str>> = std::sync::OnceLock::new();
    let lines = LINES.get_or_init(|| FLIGHTS.lines().skip(1).collect());
    lines[number % lines.len()].to_owned()
}

/// Names of queries, and their text.
pub(crate) fn queries(rows: usize) -> Vec<(&'static str, String)> {
    let key = rows / 2 + 1;
    [
        ("count", "SELECT count(*) FROM events"),
        ("filtered-sum", "SELECT sum(amount) FROM events WHERE account < 50000"),
        ("group-low", "SELECT kind, count(*), sum(amount) FROM events GROUP BY kind"),
        (
            "group-high",
            "SELECT account, count(*) AS n, sum(amount) AS total FROM events GROUP BY account \
             ORDER BY total DESC, account LIMIT 10",
        ),
        ("distinct", "SELECT count(DISTINCT account) FROM events"),
        ("top", "SELECT id, amount FROM events ORDER BY amount DESC, id LIMIT 10"),
        ("point", "SELECT id, account, kind, amount, url FROM events WHERE id = {key}"),
        ("point-table", "SELECT account, region FROM accounts WHERE account = 77777"),
        (
            "range",
            "SELECT count(*), sum(amount) FROM events WHERE made >= '2026-01-05 10:00:00' AND made < '2026-01-05 12:00:00'",
        ),
        ("like", "SELECT count(*) FROM events WHERE url LIKE '%checkout/777%'"),
        (
            "join",
            "SELECT region, count(*), sum(amount) FROM events JOIN accounts ON events.account = accounts.account \
             GROUP BY region",
        ),
        ("flights-sum", "SELECT count(*), sum(delay_minutes) FROM flights WHERE distance_miles > 1000"),
        ("flights-group", "SELECT origin, count(*), max(delay_minutes) FROM flights GROUP BY origin"),
        ("flights-text", "SELECT count(*), sum(delay_minutes) FROM flights WHERE origin = 'DTW'"),
    ]
    .map(|(name, query)| (name, query.replace("{key}", &key.to_string())))
    .to_vec()
}

impl Relation {
    fn columns(&self, key: &str) -> String {
        let of_key = |name: &str| self.key.is_some_and(|(column, _)| column == name);
        let columns = self.columns.iter().map(|(name, kind)| match of_key(name) {
            true => format!("{name} {kind} {key}"),
            false => format!("{name} {kind}"),
        });
        columns.collect::<Vec<_>>().join(", ")
    }

    /// The definition on our server.
    pub(crate) fn ours(&self) -> String {
        match self.key {
            Some((_, Key::Primary)) => format!("CREATE TABLE {} ({})", self.name, self.columns("PRIMARY KEY")),
            _ => format!("CREATE STREAM {} ({})", self.name, self.columns("KEY")),
        }
    }

    /// The definition in PostgreSQL.
    pub(crate) fn postgres(&self) -> String {
        format!("CREATE TABLE {} ({})", self.name, self.columns(""))
    }

    /// What PostgreSQL has for a key, made after the rows, and what its planner knows of them.
    pub(crate) fn postgres_index(&self) -> Vec<String> {
        let index = self.key.map(|(column, _)| format!("CREATE INDEX ON {} ({column})", self.name));
        index.into_iter().chain([format!("VACUUM ANALYZE {}", self.name)]).collect()
    }

    /// Writes the rows as csv.
    pub(crate) fn write(&self, dir: &Path) -> anyhow::Result<PathBuf> {
        let path = dir.join(format!("{}.csv", self.name));
        let mut file = BufWriter::new(File::create(&path)?);
        for number in 0..self.rows {
            writeln!(file, "{}", (self.line)(number, self.rows))?;
        }
        file.flush()?;
        Ok(path)
    }

    /// Loads them, with a COPY for each `COPY_ROWS` of them.
    pub(crate) async fn copy(&self, client: &Client, csv: &Path) -> anyhow::Result<()> {
        let mut lines = BufReader::with_capacity(PART_BYTES, File::open(csv)?);
        let statement = format!("COPY {} FROM STDIN WITH (FORMAT csv)", self.name);
        for start in (0..self.rows).step_by(COPY_ROWS) {
            let count = COPY_ROWS.min(self.rows - start);
            let mut sink = pin!(client.copy_in::<_, Bytes>(&statement).await?);
            let mut part = Vec::with_capacity(PART_BYTES * 2);
            for _ in 0..count {
                lines.read_until(b'\n', &mut part)?;
                if part.len() >= PART_BYTES {
                    let full = std::mem::replace(&mut part, Vec::with_capacity(PART_BYTES * 2));
                    sink.feed(Bytes::from(full)).await?;
                }
            }
            sink.feed(Bytes::from(part)).await?;
            let rows = sink.as_mut().finish().await?;
            anyhow::ensure!(rows as usize == count, "{rows} of {count} rows of {} were copied", self.name);
        }
        Ok(())
    }
}
