//! Many continuous queries over one topic, to which events come at a steady rate.

use crate::events::{self, SCHEMA};
use crate::kit::process::{cpu_seconds, peak_mebibytes};
use crate::kit::report::{Aim, Report, Unit};
use crate::kit::server::{Server, directory};
use std::cell::Cell;
use std::time::{Duration, Instant};
use tokio::time::{MissedTickBehavior, interval};
use tokio_postgres::Client;

const QUERIES: usize = 500;
const EVENTS_PER_SECOND: usize = 10_000;
/// Between two transactions of the producer.
const TICK: Duration = Duration::from_millis(100);
/// Between two looks at how far the queries are behind.
const LOOK: Duration = Duration::from_millis(500);
/// What is current: no query lacks more than the events of one second.
const LAG_MAX: f64 = EVENTS_PER_SECOND as f64;

pub(crate) async fn run(report: &mut Report, time: Duration) -> anyhow::Result<()> {
    let dir = directory()?;
    let server = Server::start(dir.path())?;
    let (producer, observer) = (server.client().await?, server.client().await?);
    producer.batch_execute(SCHEMA).await?;
    let begin = Instant::now();
    for number in 0..QUERIES {
        producer.batch_execute(&query(number)).await?;
    }
    report.heading(&format!("{QUERIES} queries over one topic, {EVENTS_PER_SECOND} events/s"));
    report.plain("  creating one", begin.elapsed().as_secs_f64() * 1e3 / QUERIES as f64, Unit::Millis);
    let cpu_before = cpu_seconds(server.process_id())?;
    let begin = Instant::now();
    let is_over = Cell::new(false);
    let producing = async {
        produce(&producer, time).await?;
        is_over.set(true);
        let end = Instant::now();
        producer.batch_execute("FLUSH").await?;
        anyhow::Ok(end.elapsed())
    };
    let (flush, lag) = tokio::try_join!(producing, observe(&observer, &is_over))?;
    let cpu = cpu_seconds(server.process_id())? - cpu_before;
    let percent = cpu / begin.elapsed().as_secs_f64() * 100.0;
    report.aimed("  the most events that a query was behind", lag as f64, Unit::Count("events"), Aim::Under(LAG_MAX));
    report.plain("  until all had the last event", flush.as_secs_f64() * 1e3, Unit::Millis);
    report.plain("  processor", percent, Unit::Percent);
    report.plain("  memory at its peak", peak_mebibytes(server.process_id())?, Unit::Mebibytes);
    Ok(())
}

/// Another query for each number.
fn query(number: usize) -> String {
    format!(
        "CREATE TABLE many{number} AS SELECT channel, count(*) AS bids, max(price) AS highest
         FROM bid WHERE mod(bidder, {QUERIES}) = {number} GROUP BY channel"
    )
}

async fn produce(client: &Client, time: Duration) -> anyhow::Result<()> {
    let per_tick = (EVENTS_PER_SECOND as f64 * TICK.as_secs_f64()) as usize;
    let count = (EVENTS_PER_SECOND as f64 * time.as_secs_f64()) as usize;
    let mut ticks = interval(TICK);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Burst);
    for events in events::chunks_of(count, per_tick) {
        ticks.tick().await;
        events.arrow()?.load(client).await?;
    }
    Ok(())
}

/// The most events that a query was behind, until all are sent.
async fn observe(client: &Client, is_over: &Cell<bool>) -> anyhow::Result<i64> {
    let mut ticks = interval(LOOK);
    let mut most = 0;
    while !is_over.get() {
        ticks.tick().await;
        let row = client.query_one("SELECT coalesce(max(lag_rows), 0) FROM millstream.queries", &[]).await?;
        most = most.max(row.try_get(0)?);
    }
    Ok(most)
}
