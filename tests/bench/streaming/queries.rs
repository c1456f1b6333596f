//! Nexmark's queries: each on a node of its own that has the events stored, from CREATE until FLUSH returns.

use crate::Options;
use crate::compare::{Comparison, compare};
use crate::events::{self, SCHEMA};
use crate::flink::{Figures, Flink, Input};
use crate::kit::process::{cpu_seconds, forget_peak, peak_mebibytes, settle};
use crate::kit::report::{Aim, Report, Unit};
use crate::kit::server::{Server, directory};
use anyhow::{Context as _, bail};
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};
use tempfile::TempDir;
use tokio::time::timeout;
use tokio_postgres::Client;
use tokio_postgres::error::SqlState;

const QUERIES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/nexmark");
const LAST: usize = 22;
const EVENTS: &str = "events";
/// No query takes as long.
const TIME_MAX: Duration = Duration::from_secs(900);
/// Those that do little more than read and write are measured against Flink from files, which reads too.
const FROM_FILES: [&str; 6] = ["q0", "q1", "q2", "q14", "q21", "q22"];
/// Those that Flink does not run.
const NOT_IN_FLINK: [&str; 2] = ["q6", "q13"];
/// Those that have no aim.
const WITHOUT_AIM: [&str; 2] = ["q10", "q12"];

/// A query of `examples/nexmark`.
#[derive(Debug)]
pub(crate) struct Query {
    /// Its name, and that of its result.
    pub(crate) name: String,
    /// Its statement.
    create: String,
    /// The SELECT in it.
    select: String,
}

/// All of them, in order.
pub(crate) fn load() -> anyhow::Result<Vec<Query>> {
    (0..=LAST).map(|number| read(&format!("q{number}"))).collect()
}

fn read(name: &str) -> anyhow::Result<Query> {
    let path = Path::new(QUERIES).join(format!("{name}.sql"));
    let text = fs::read_to_string(&path).with_context(|| format!("no {}", path.display()))?;
    let lines: Vec<&str> = text.lines().filter(|line| !line.starts_with("--")).collect();
    let create = lines.join("\n").trim_end().trim_end_matches(';').to_owned();
    let (_, select) = create.split_once(" AS\n").with_context(|| format!("no SELECT in {}", path.display()))?;
    Ok(Query { name: name.to_owned(), select: select.to_owned(), create })
}

/// Measures each; whether none failed or gave another result than its SELECT run once.
pub(crate) async fn run(report: &mut Report, options: &Options, queries: &[&Query]) -> anyhow::Result<bool> {
    let count = options.events();
    let dir = directory()?;
    load_events(report, dir.path(), count).await?;
    let flink = if options.alone { None } else { start_flink(report, dir.path(), count) };
    let mut is_right = true;
    for query in queries {
        report.heading(&query.name);
        let outcome = measure(report, &dir, query, count).await.unwrap_or_else(|error| {
            report.note(format!("{}: failed: {error:#}", query.name));
            Outcome::Wrong
        });
        is_right &= !matches!(outcome, Outcome::Wrong);
        let ours = if let Outcome::Right(figures) = outcome { Some(figures) } else { None };
        if let Some(flink) = flink.as_ref().filter(|_| !NOT_IN_FLINK.contains(&query.name.as_str())) {
            beside(report, flink, &query.name, count, ours.as_ref());
        }
    }
    Ok(is_right)
}

async fn load_events(report: &mut Report, dir: &Path, count: usize) -> anyhow::Result<()> {
    let server = Server::start(dir)?;
    let client = server.client().await?;
    client.batch_execute(SCHEMA).await?;
    let mut time = Duration::ZERO;
    for events in events::chunks(count) {
        let events = events.arrow()?;
        let begin = Instant::now();
        events.load(&client).await?;
        time += begin.elapsed();
    }
    report.heading("loading");
    report.plain(format!("  {count} events"), count as f64 / time.as_secs_f64(), Unit::PerSecond(EVENTS));
    server.stop()
}

fn start_flink(report: &mut Report, dir: &Path, count: usize) -> Option<Flink> {
    let flink = Flink::find(dir).and_then(|flink| events::write_csv(dir, count).map(|()| flink));
    flink.inspect_err(|error| report.note(format!("Flink is not compared: {error:#}"))).ok()
}

enum Outcome {
    /// Its result is right, as far as that can be told.
    Right(Figures),
    /// It failed, or its result is another one.
    Wrong,
    /// It is not supported.
    Refused,
}

/// One query on a node of its own, which has no other left from before.
async fn measure(report: &mut Report, dir: &TempDir, query: &Query, count: usize) -> anyhow::Result<Outcome> {
    let server = Server::start(dir.path())?;
    let outcome = run_on(report, &server, query, count).await;
    let kind = if query.create.starts_with("CREATE STREAM") { "STREAM" } else { "TABLE" };
    let drop = format!("DROP {kind} IF EXISTS {}", query.name);
    server.client().await?.batch_execute(&drop).await.context("the result cannot be dropped")?;
    server.stop()?;
    outcome
}

async fn run_on(report: &mut Report, server: &Server, query: &Query, count: usize) -> anyhow::Result<Outcome> {
    let client = server.client().await?;
    let name = &query.name;
    settle(server.process_id()).await?;
    forget_peak(server.process_id())?;
    let cpu_before = cpu_seconds(server.process_id())?;
    let begin = Instant::now();
    let run = async {
        client.batch_execute(&query.create).await?;
        client.batch_execute("FLUSH").await
    };
    if let Err(error) = timeout(TIME_MAX, run).await.context("it does not end")? {
        return refused(report, &format!("{name}: not yet"), error).map(|()| Outcome::Refused);
    }
    let figures = Figures {
        seconds: begin.elapsed().as_secs_f64(),
        core_seconds: cpu_seconds(server.process_id())? - cpu_before,
        mebibytes: peak_mebibytes(server.process_id())?,
    };
    check_state(&client, name).await?;
    show(report, "Millstream", &figures, count);
    match compare(&client, name, &query.select).await {
        Ok(Comparison::Equal(rows)) => {
            report.plain("    rows, the same as run once", rows as f64, Unit::Count("rows"));
            Ok(Outcome::Right(figures))
        }
        Ok(Comparison::Different(how)) => {
            report.note(format!("{name}: WRONG: {how}"));
            Ok(Outcome::Wrong)
        }
        Err(error) => {
            refused(report, &format!("{name}: not compared, as run once it is refused"), error)?;
            Ok(Outcome::Right(figures))
        }
    }
}

/// A refusal of something that is not supported is a note.
fn refused(report: &mut Report, what: &str, error: tokio_postgres::Error) -> anyhow::Result<()> {
    if error.code() != Some(&SqlState::FEATURE_NOT_SUPPORTED) {
        bail!(describe(&error));
    }
    report.note(format!("{what}: {}", describe(&error)));
    Ok(())
}

/// What the server said; the error's own text says only that it said something.
fn describe(error: &tokio_postgres::Error) -> String {
    error.as_db_error().map_or_else(|| error.to_string(), ToString::to_string)
}

async fn check_state(client: &Client, name: &str) -> anyhow::Result<()> {
    let row =
        client.query_one("SELECT state, error, lag_rows FROM millstream.queries WHERE name = $1", &[&name]).await?;
    let (state, error, lag): (String, Option<String>, i64) = (row.try_get(0)?, row.try_get(1)?, row.try_get(2)?);
    anyhow::ensure!(
        state == "running" && lag == 0,
        "it is {state}, {lag} events behind: {}",
        error.unwrap_or_default()
    );
    Ok(())
}

fn show(report: &mut Report, who: &str, figures: &Figures, count: usize) {
    let million = count as f64 / 1e6;
    report.plain(format!("  {who}"), count as f64 / figures.seconds, Unit::PerSecond(EVENTS));
    report.plain("    processor", figures.core_seconds / million, Unit::CoreSecondsPerMillion(EVENTS));
    report.plain("    memory at its peak", figures.mebibytes, Unit::Mebibytes);
}

/// Flink's figures for the same query, from memory and from files, and ours against them.
fn beside(report: &mut Report, flink: &Flink, name: &str, count: usize, ours: Option<&Figures>) {
    for input in [Input::Memory, Input::Files] {
        let figures = match flink.run(name, input) {
            Ok(figures) => figures,
            Err(error) => return report.note(format!("{name}, {}: not measured: {error:#}", input.name())),
        };
        show(report, input.name(), &figures, count);
        let Some(ours) = ours else { continue };
        let is_aimed = !WITHOUT_AIM.contains(&name) && FROM_FILES.contains(&name) == (input == Input::Files);
        let times = if input == Input::Files { 2.0 } else { 4.0 };
        let aim = |times: f64| is_aimed.then_some(Aim::AtLeast(times));
        report.ratio("    its processor time against ours", figures.core_seconds / ours.core_seconds, aim(times));
        report.ratio("    its memory against ours", figures.mebibytes / ours.mebibytes, aim(4.0));
    }
}
