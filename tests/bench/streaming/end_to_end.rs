//! Events in through SQL, a query over them, and a subscriber to its result, all at once, as fast as they go.

use crate::events::{self, SCHEMA};
use crate::kit::process::{cpu_seconds, peak_mebibytes};
use crate::kit::report::{Aim, Report, Unit};
use crate::kit::server::{Server, directory};
use anyhow::Context as _;
use futures::StreamExt as _;
use std::pin::pin;
use std::time::{Duration, Instant};
use tokio::time::timeout;
use tokio_postgres::Client;

const QUERY: &str = "CREATE TABLE bids_of_auction AS
     SELECT auction, count(*) AS bids, max(price) AS highest FROM bid WINDOW TUMBLING (SIZE 10 SECONDS) GROUP BY auction";
const SUBSCRIPTION: &str = "COPY (SELECT auction, bids, highest FROM bids_of_auction EMIT CHANGES) TO STDOUT";
/// The last bid, which tells the subscriber that it has everything; no auction has this number.
const LAST_BID: &str = "INSERT INTO bid (auction, price, date_time) SELECT -1, 0, max(date_time) FROM bid";
const LAST_LINE: &[u8] = b"-1\t";
/// No run takes as long.
const TIME_MAX: Duration = Duration::from_secs(600);

pub(crate) async fn run(report: &mut Report, count: usize) -> anyhow::Result<()> {
    let dir = directory()?;
    let server = Server::start(dir.path())?;
    let (producer, subscriber) = (server.client().await?, server.client().await?);
    producer.batch_execute(SCHEMA).await?;
    producer.batch_execute(QUERY).await?;
    let chunks: Vec<_> = events::chunks(count).map(|events| events.arrow()).collect::<anyhow::Result<_>>()?;
    let mut changes = pin!(subscriber.copy_out(SUBSCRIPTION).await?);
    let cpu_before = cpu_seconds(server.process_id())?;
    let begin = Instant::now();
    let receiving = async {
        let mut lines = 0;
        loop {
            let part = changes.next().await.context("the subscription ended")??;
            // A part holds whole lines.
            for line in part.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
                lines += 1;
                if line.starts_with(LAST_LINE) {
                    return anyhow::Ok(lines);
                }
            }
        }
    };
    let both = async { tokio::try_join!(produce(&producer, &chunks), receiving) };
    let ((), changes) = timeout(TIME_MAX, both).await.context("it does not end")??;
    let time = begin.elapsed().as_secs_f64();
    let cpu = cpu_seconds(server.process_id())? - cpu_before;
    report.heading(&format!("events in, a query, and its subscriber, {count} events"));
    report.aimed("  Millstream", count as f64 / time, Unit::PerSecond("events"), Aim::AtLeast(200_000.0));
    report.plain("  changes that the subscriber got", f64::from(changes), Unit::Count("rows"));
    report.plain("  processor", cpu / count as f64 * 1e6, Unit::CoreSecondsPerMillion("events"));
    report.plain("  memory at its peak", peak_mebibytes(server.process_id())?, Unit::Mebibytes);
    Ok(())
}

async fn produce(client: &Client, chunks: &[events::Arrow]) -> anyhow::Result<()> {
    for chunk in chunks {
        chunk.load(client).await?;
    }
    client.batch_execute(LAST_BID).await?;
    Ok(())
}
