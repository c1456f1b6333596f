//! Queries over many stored events, and a restart with them.

use crate::Options;
use crate::flights::{self, Csv};
use crate::idle::resident_mebibytes;
use crate::report::{Aim, Report, Unit, median};
use crate::server::{Server, directory};
use std::time::{Duration, Instant};
use tokio_postgres::Client;

/// Rows of one COPY.
const COPY_ROWS: usize = 500_000;
const ROUNDS: usize = 9;

pub(crate) async fn run(report: &mut Report, options: Options) -> anyhow::Result<()> {
    let csv = Csv::of(COPY_ROWS.min(options.rows))?;
    let dir = directory()?;
    let server = Server::start(dir.path())?;
    let client = server.client().await?;
    client.batch_execute(&flights::create_stream()).await?;
    let copies = options.rows.div_ceil(COPY_ROWS).max(1);
    let rows = copies * COPY_ROWS.min(options.rows);
    let begin = Instant::now();
    for _ in 0..copies {
        csv.load(&client).await?;
    }
    let rate = rows as f64 / begin.elapsed().as_secs_f64();
    report.plain(format!("COPY csv, {rows} rows in all"), rate, Unit::PerSecond("rows"));
    let mut count = times(&client, "SELECT count(*) FROM flights", rows as i64).await?;
    let measure = format!("SELECT count(*) of {rows} events, median");
    report.aimed(measure, median(&mut count), Unit::Millis, Aim::Under(100.0));
    let filtered = "SELECT count(delay_minutes) FROM flights WHERE distance_miles > 1000";
    let matching: i64 = client.query_one(filtered, &[]).await?.try_get(0)?;
    anyhow::ensure!(0 < matching && (matching as usize) < rows, "the filter does not filter");
    let aggregate = "SELECT count(delay_minutes), avg(delay_minutes), max(delay_minutes) FROM flights \
                     WHERE distance_miles > 1000";
    let seconds = median(&mut times(&client, aggregate, matching).await?) / 1e3;
    report.aimed("filtered aggregate", rows as f64 / seconds, Unit::PerSecond("rows"), Aim::AtLeast(20e6));
    let by_text = "SELECT count(delay_minutes), avg(delay_minutes) FROM flights WHERE origin = 'DTW'";
    let matching: i64 = client.query_one(by_text, &[]).await?.try_get(0)?;
    let seconds = median(&mut times(&client, by_text, matching).await?) / 1e3;
    report.aimed("aggregate filtered by text", rows as f64 / seconds, Unit::PerSecond("rows"), Aim::AtLeast(20e6));
    report.plain("resident memory after that", resident_mebibytes(server.process_id())?, Unit::Mebibytes);
    server.kill()?;
    let server = Server::start(dir.path())?;
    report.plain("start after a kill, with all of them", server.start_time.as_secs_f64() * 1e3, Unit::Millis);
    let found: i64 = server.client().await?.query_one("SELECT count(*) FROM flights", &[]).await?.try_get(0)?;
    anyhow::ensure!(found == rows as i64, "{found} of {rows} events are there after a kill");
    Ok(())
}

/// Times of a query whose first column is known.
async fn times(client: &Client, query: &str, expected: i64) -> anyhow::Result<Vec<Duration>> {
    let statement = client.prepare(query).await?;
    let mut times = Vec::new();
    for _ in 0..ROUNDS {
        let begin = Instant::now();
        let row = client.query_one(&statement, &[]).await?;
        times.push(begin.elapsed());
        let found: i64 = row.try_get(0)?;
        anyhow::ensure!(found == expected, "{query}: {found} instead of {expected}");
    }
    Ok(times)
}
