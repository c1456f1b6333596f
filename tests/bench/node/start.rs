//! How long a node takes to start.

use crate::kit::flights::{self, Csv, OneRow};
use crate::kit::report::{Aim, Report, Unit, median};
use crate::kit::server::{Server, directory};

const ROUNDS: usize = 5;
const COPY_ROWS: usize = 500_000;
const ONE_ROWS: i32 = 2_000;

pub(crate) async fn run(report: &mut Report) -> anyhow::Result<()> {
    let mut times = Vec::new();
    for _ in 0..ROUNDS {
        let dir = directory()?;
        times.push(Server::start(dir.path())?.start_time);
    }
    report.aimed("start on an empty directory, median", median(&mut times), Unit::Millis, Aim::Under(1_000.0));
    restart(report).await
}

async fn restart(report: &mut Report) -> anyhow::Result<()> {
    let dir = directory()?;
    let server = Server::start(dir.path())?;
    let client = server.client().await?;
    client.batch_execute(&flights::create_stream()).await?;
    Csv::of(COPY_ROWS)?.load(&client).await?;
    let one = OneRow::prepare(client).await?;
    for number in 0..ONE_ROWS {
        one.insert(number).await?;
    }
    server.kill()?;
    let server = Server::start(dir.path())?;
    let measure = format!("start after a kill, {COPY_ROWS} copied and {ONE_ROWS} inserted rows in the log");
    report.plain(measure, server.start_time.as_secs_f64() * 1e3, Unit::Millis);
    server.stop()?;
    let server = Server::start(dir.path())?;
    report.plain("start after a stop in order", server.start_time.as_secs_f64() * 1e3, Unit::Millis);
    let found: i64 = server.client().await?.query_one("SELECT count(*) FROM flights", &[]).await?.try_get(0)?;
    let expected = COPY_ROWS as i64 + i64::from(ONE_ROWS);
    anyhow::ensure!(found == expected, "{found} of {expected} rows are there after a restart");
    Ok(())
}
