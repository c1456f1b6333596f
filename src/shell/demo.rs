//! `millstream demo`: a node in a temporary directory, real flights in through SQL, a live windowed result out.
//!
//! Everything goes over the wire, as any client would do it. Leaves nothing behind.

use crate::cli::{DemoArgs, Format};
use crate::config::Config;
use crate::env;
use crate::node::Node;
use crate::shell::client::{Client, Column, Reply, Target};
use crate::shell::render::Renderer;
use anyhow::{Context as _, bail};
use bytes::Bytes;
use std::io::IsTerminal as _;
use std::net::{Ipv4Addr, SocketAddr};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::signal::unix::{SignalKind, signal};

/// 20,000 flights of January to March 2001, in time order (U.S. Bureau of Transportation Statistics, public domain).
const FLIGHTS: &str = include_str!("../../examples/flights/flights.csv");

const CREATE_STREAM: &str = "\
CREATE STREAM flights (
    scheduled timestamp, delay_minutes integer, distance_miles integer, origin text KEY, destination text
) WITH (timestamp = 'scheduled');";

const CREATE_TABLE: &str = "\
CREATE TABLE delays_by_airport AS
SELECT origin, count(*) AS flights, avg(delay_minutes) AS average_delay, max(delay_minutes) AS worst_delay
FROM flights WINDOW TUMBLING (SIZE 1 HOUR)
GROUP BY origin EMIT CHANGES;";

const SUBSCRIBE: &str = "\
SELECT windowstart, origin, flights, round(average_delay, 1) AS average_delay, worst_delay
FROM delays_by_airport EMIT CHANGES;";

const COPY: &str = "COPY flights FROM STDIN WITH (FORMAT csv);";

const WORST: &str = "\
SELECT windowstart, origin, flights, round(average_delay, 1) AS average_delay, worst_delay
FROM delays_by_airport WHERE flights >= 3
ORDER BY average_delay DESC, windowstart LIMIT 10;";

/// Flights per COPY when the pace is to be watched, and the time between two.
const PACE_ROWS: usize = 100;
const PACE_EVERY: Duration = Duration::from_millis(50);
/// How long the subscriber may take to receive what was committed before the end.
const RECEIVE_TIME_MAX: Duration = Duration::from_secs(30);
/// The first changes are shown all, then one at a time.
const SHOW_FIRST: u64 = 10;
const SHOW_EVERY: Duration = Duration::from_millis(100);

/// Runs the demo. On a terminal the node then stays until Ctrl-C.
///
/// # Errors
/// When the node cannot start or a statement fails.
pub async fn run(args: &DemoArgs) -> anyhow::Result<ExitCode> {
    let dir = tempfile::Builder::new().prefix("millstream-demo-").tempdir();
    let dir = dir.context("cannot create a temporary directory")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot watch for Ctrl-C")?;
    let mut terminate = signal(SignalKind::terminate()).context("cannot watch for SIGTERM")?;
    let node = start(dir.path()).await?;
    let address = node.pg_address();
    let result = tokio::select! {
        result = show(address, args.fast) => result.map(|()| true),
        _ = interrupt.recv() => Ok(false),
        _ = terminate.recv() => Ok(false),
    };
    if matches!(result, Ok(true)) {
        if std::io::stdin().is_terminal() && std::io::stdout().is_terminal() {
            println!("\nConnect with:  psql -h {} -p {} -U millstream", address.ip(), address.port());
            println!("Ctrl-C ends the demo and removes its data.");
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
            }
        } else {
            println!("\nThe demo's server ends here. One that stays: millstream start");
            println!("Connect with:  psql -h {} -p 7432 -U millstream", address.ip());
        }
    }
    node.stop().await;
    // As a shell shows a program that Ctrl-C ended.
    result.map(|is_whole| if is_whole { ExitCode::SUCCESS } else { ExitCode::from(130) })
}

/// A node on the usual port if it is free, else on any.
async fn start(dir: &std::path::Path) -> anyhow::Result<Node> {
    let any = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    let config = Config { data_dir: dir.join("data"), admin_listen: any, ..Config::default() };
    match Node::start(&config).await {
        Ok(node) => Ok(node),
        Err(crate::node::NodeError::Listen { .. }) => Ok(Node::start(&Config { listen: any, ..config }).await?),
        Err(error) => Err(error.into()),
    }
}

async fn show(address: SocketAddr, is_fast: bool) -> anyhow::Result<()> {
    let target = Target {
        host: address.ip().to_string(),
        port: address.port(),
        user: "millstream".to_owned(),
        database: "millstream".to_owned(),
    };
    let mut client = Client::connect(&target).await?;
    statement(&mut client, CREATE_STREAM).await?;
    statement(&mut client, CREATE_TABLE).await?;
    let received = Arc::new(AtomicU64::new(0));
    let mut subscriber = Client::connect(&target).await?;
    println!("\n-- a second session subscribes\n{SUBSCRIBE}");
    subscriber.query(SUBSCRIBE).await?;
    let columns = match subscriber.receive().await? {
        Reply::Columns(columns) => columns,
        // A notice that the query does not end may come first.
        _ => match subscriber.receive().await? {
            Reply::Columns(columns) => columns,
            other => bail!("no columns came, but {other:?}"),
        },
    };
    let count = Arc::clone(&received);
    let watching = env::spawn("demo subscriber", async move { watch(subscriber, columns, &count).await });
    let start = env::instant();
    load(&mut client, is_fast).await?;
    statement(&mut client, "FLUSH;").await?;
    let changes = count_changes(&mut client).await?;
    let deadline = env::instant() + RECEIVE_TIME_MAX;
    while received.load(Ordering::Relaxed) < changes && env::instant() < deadline && !watching.is_finished() {
        tokio::time::sleep(PACE_EVERY).await;
    }
    watching.abort();
    match watching.await {
        Ok(result) => result?,
        Err(error) if error.is_cancelled() => {}
        Err(error) => return Err(error).context("the subscriber failed"),
    }
    let received = received.load(Ordering::Relaxed);
    let rate = received as f64 / env::elapsed(start).as_secs_f64();
    println!("\n{received} of {changes} changes received, {rate:.0} rows/s");
    statement(&mut client, WORST).await
}

/// Prints a statement, runs it, and prints its rows.
async fn statement(client: &mut Client, sql: &str) -> anyhow::Result<()> {
    println!("\n{sql}");
    client.query(sql).await?;
    let mut renderer = None;
    let mut rows = Vec::new();
    let mut failure = None;
    loop {
        match client.receive().await? {
            Reply::Columns(columns) => renderer = Some(Renderer::new(Format::Table, columns)),
            Reply::Row(row) => rows.push(row),
            Reply::Done(tag) if renderer.is_none() => println!("{tag}"),
            Reply::Error(error) => failure = Some(error),
            Reply::Ready => break,
            _ => {}
        }
    }
    if let Some(error) = failure {
        bail!(error);
    }
    if let Some(mut renderer) = renderer {
        print!("{}{}", renderer.rows_text(&rows), renderer.end_text());
    }
    Ok(())
}

/// The changes that the continuous query has committed.
async fn count_changes(client: &mut Client) -> anyhow::Result<u64> {
    client.query("SELECT events FROM millstream.topics WHERE name = 'delays_by_airport';").await?;
    let mut changes = 0;
    loop {
        match client.receive().await? {
            Reply::Row(row) => {
                let cell = row.first().and_then(Option::as_ref).context("no count came")?;
                changes = String::from_utf8_lossy(cell).parse()?;
            }
            Reply::Error(error) => bail!(error),
            Reply::Ready => return Ok(changes),
            _ => {}
        }
    }
}

/// Loads the flights, in one COPY or in many.
async fn load(client: &mut Client, is_fast: bool) -> anyhow::Result<()> {
    let (_, lines) = FLIGHTS.split_once('\n').context("the flights have no header")?;
    let lines: Vec<&str> = lines.split_inclusive('\n').collect();
    let pace = if is_fast { lines.len() } else { PACE_ROWS };
    println!("\n{COPY}{}", if is_fast { "" } else { "   -- again and again, 100 flights at a time" });
    let start = env::instant();
    for (i, chunk) in lines.chunks(pace.max(1)).enumerate() {
        copy(client, chunk.concat()).await?;
        let due = PACE_EVERY * (i as u32 + 1);
        if !is_fast {
            tokio::time::sleep(due.saturating_sub(env::elapsed(start))).await;
        }
    }
    let seconds = env::elapsed(start).as_secs_f64();
    println!("COPY {}: {:.2} s, {:.0} flights/s", lines.len(), seconds, lines.len() as f64 / seconds);
    Ok(())
}

async fn copy(client: &mut Client, data: String) -> anyhow::Result<()> {
    client.query(COPY).await?;
    let mut data = Some(data);
    let mut failure = None;
    loop {
        match client.receive().await? {
            Reply::CopyIn => {
                client.copy(Bytes::from(data.take().unwrap_or_default())).await?;
                client.copy_done().await?;
            }
            Reply::Error(error) => failure = Some(error),
            Reply::Ready => return failure.map_or(Ok(()), |error| Err(error.into())),
            _ => {}
        }
    }
}

/// Counts the changes as they arrive, and shows one now and then.
async fn watch(mut client: Client, columns: Vec<Column>, received: &AtomicU64) -> anyhow::Result<()> {
    let mut renderer = Renderer::new(Format::Table, columns);
    let (mut shown, mut shown_at) = (0, env::instant());
    loop {
        match client.receive().await? {
            Reply::Row(row) => {
                let count = received.fetch_add(1, Ordering::Relaxed) + 1;
                let since = env::elapsed(shown_at);
                if count > SHOW_FIRST && since < SHOW_EVERY {
                    continue;
                }
                let text = renderer.rows_text(std::slice::from_ref(&row));
                let text = text.trim_end();
                if count <= SHOW_FIRST {
                    println!("{text}");
                } else {
                    let rate = (count - shown) as f64 / since.as_secs_f64();
                    println!("{text}  -- {count} changes, {rate:.0} rows/s");
                }
                (shown, shown_at) = (count, env::instant());
            }
            Reply::Error(error) => bail!(error),
            Reply::Ready => return Ok(()),
            _ => {}
        }
    }
}
