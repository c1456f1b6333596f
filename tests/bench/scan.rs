//! How fast stored events are queried, beside DuckDB on Parquet and PostgreSQL: `cargo bench --bench scan`.
//!
//! The same rows are in all three; each query gives the same answer in all three, or is not measured. Names of queries
//! as arguments run only those. What is compared, and how fair that is, says `src/docs/benchmarks.md`.

#![allow(clippy::disallowed_methods, reason = "it measures real time, files and processes; nothing here is simulated")]

#[path = "scan/data.rs"]
mod data;
#[path = "peer/duckdb.rs"]
mod duckdb;
mod kit;
#[path = "peer/postgres.rs"]
#[allow(dead_code, reason = "nobody listens here")]
mod postgres;

use async_trait::async_trait;
use clap::Parser;
use data::{Relation, relations};
use duckdb::Duckdb;
use kit::process::{peak_mebibytes, resident_mebibytes};
use kit::race::{Party, Race};
use kit::report::{Aim, Report, Unit};
use kit::server::{Server, directory};
use postgres::Postgres;
use std::cell::RefCell;
use std::path::Path;
use std::rc::Rc;
use std::time::Instant;
use tokio_postgres::{Client, SimpleQueryMessage};

const OURS: &str = "Millstream";
const DUCKDB: &str = "DuckDB on Parquet";

/// How fast stored events are queried.
#[derive(Debug, Parser)]
struct Options {
    /// Names of queries; without any, all
    queries: Vec<String>,
    /// A tenth of the rows
    #[arg(long)]
    quick: bool,
    /// Events that are stored [default: 10000000]
    #[arg(long)]
    rows: Option<usize>,
    /// Turns of each query
    #[arg(long, default_value_t = 7)]
    rounds: usize,
    /// No peers
    #[arg(long)]
    alone: bool,
}

/// Those that have the rows.
struct Servers {
    ours: Server,
    postgres: Option<Postgres>,
    duckdb: Option<RefCell<Duckdb>>,
}

// One thread: the client must leave the cores to what it measures.
#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    let options = Options::parse_from(kit::arguments());
    let rows = options.rows.unwrap_or(if options.quick { 1_000_000 } else { 10_000_000 });
    let mut report = Report::default();
    let dir = directory()?;
    let mut servers = Servers { ours: Server::start(dir.path())?, postgres: None, duckdb: None };
    if !options.alone {
        servers.postgres = present(&mut report, "PostgreSQL", Postgres::start());
        servers.duckdb = present(&mut report, "DuckDB", Duckdb::start()).map(RefCell::new);
    }
    report.heading("loading");
    for relation in relations(rows) {
        load(&mut report, &servers, &relation, dir.path()).await?;
    }
    for (name, query) in data::queries(rows) {
        if !options.queries.is_empty() && !options.queries.iter().any(|asked| name.starts_with(asked)) {
            continue;
        }
        run(&mut report, &servers, name, &query, options.rounds, rows).await?;
    }
    report.heading("the server");
    report.plain("  memory at its peak", peak_mebibytes(servers.ours.process_id())?, Unit::Mebibytes);
    report.plain("  memory after that", resident_mebibytes(servers.ours.process_id())?, Unit::Mebibytes);
    servers.ours.kill()?;
    let server = Server::start(dir.path())?;
    report.plain("  start after a kill", server.start_time.as_secs_f64() * 1e3, Unit::Millis);
    let found: i64 = server.client().await?.query_one("SELECT count(*) FROM events", &[]).await?.try_get(0)?;
    anyhow::ensure!(found as usize == rows, "{found} of {rows} events are there after a kill");
    println!("{report}");
    Ok(())
}

fn present<T>(report: &mut Report, name: &str, started: anyhow::Result<T>) -> Option<T> {
    started.inspect_err(|error| report.note(format!("{name} is not compared: {error:#}"))).ok()
}

/// Loads the rows of one relation, from one file, into all that are there.
async fn load(report: &mut Report, servers: &Servers, relation: &Relation, dir: &Path) -> anyhow::Result<()> {
    let csv = relation.write(dir)?;
    let client = servers.ours.client().await?;
    client.batch_execute(&relation.ours()).await?;
    let begin = Instant::now();
    relation.copy(&client, &csv).await?;
    let rate = relation.rows as f64 / begin.elapsed().as_secs_f64();
    report.plain(format!("  {}, {} rows", relation.name, relation.rows), rate, Unit::PerSecond("rows"));
    if let Some(postgres) = &servers.postgres {
        let client = postgres.client().await?;
        client.batch_execute(&relation.postgres()).await?;
        relation.copy(&client, &csv).await?;
        for statement in relation.postgres_index() {
            client.batch_execute(&statement).await?;
        }
    }
    if let Some(duckdb) = &servers.duckdb {
        duckdb.borrow_mut().load(relation.name, relation.columns, &csv)?;
    }
    std::fs::remove_file(csv)?;
    Ok(())
}

async fn run(
    report: &mut Report,
    servers: &Servers,
    name: &str,
    query: &str,
    rounds: usize,
    rows: usize,
) -> anyhow::Result<()> {
    let answer = Rc::new(RefCell::new(None));
    let sql = |client| Sql { client, query: query.to_owned(), answer: Rc::clone(&answer) };
    let mut race = Race::new(name, Unit::Millis);
    race.ours(OURS, sql(servers.ours.client().await?));
    if let Some(duckdb) = &servers.duckdb {
        let party = InDuckdb { duckdb, query: query.to_owned(), answer: Rc::clone(&answer) };
        race.peer(DUCKDB, party, &[(OURS, Some(0.8))]);
    }
    if let Some(postgres) = &servers.postgres {
        race.peer("PostgreSQL", sql(postgres.client().await?), &[(OURS, None)]);
    }
    let figures = race.run(report, rounds).await;
    if let Some(millis) = figures.get(OURS) {
        match name {
            "count" => report.aimed("  Millstream against its aim", *millis, Unit::Millis, Aim::Under(100.0)),
            "filtered-sum" => {
                let rate = rows as f64 / millis * 1e3;
                report.aimed("  Millstream against its aim", rate, Unit::PerSecond("rows"), Aim::AtLeast(20e6));
            }
            _ => {}
        }
    }
    Ok(())
}

/// The rows of the first who answered, sorted.
type Answer = Rc<RefCell<Option<Vec<String>>>>;

/// Refuses another answer than the first one.
fn check(answer: &Answer, mut rows: Vec<String>) -> anyhow::Result<()> {
    rows.sort_unstable();
    match &mut *answer.borrow_mut() {
        Some(first) => anyhow::ensure!(*first == rows, "another answer: {rows:?} instead of {first:?}"),
        first => *first = Some(rows),
    }
    Ok(())
}

struct Sql {
    client: Client,
    query: String,
    answer: Answer,
}

#[async_trait(?Send)]
impl Party for Sql {
    async fn turn(&mut self) -> anyhow::Result<f64> {
        let begin = Instant::now();
        let messages = self.client.simple_query(&self.query).await?;
        let millis = begin.elapsed().as_secs_f64() * 1e3;
        let mut rows = Vec::new();
        for message in &messages {
            if let SimpleQueryMessage::Row(row) = message {
                let values: Vec<&str> = (0..row.len()).map(|at| row.get(at).unwrap_or("None")).collect();
                rows.push(values.join("|"));
            }
        }
        check(&self.answer, rows)?;
        Ok(millis)
    }
}

struct InDuckdb<'a> {
    duckdb: &'a RefCell<Duckdb>,
    query: String,
    answer: Answer,
}

#[async_trait(?Send)]
impl Party for InDuckdb<'_> {
    async fn turn(&mut self) -> anyhow::Result<f64> {
        let (millis, rows) = self.duckdb.borrow_mut().query(&self.query)?;
        check(&self.answer, rows)?;
        Ok(millis)
    }
}
