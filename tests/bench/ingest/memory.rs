//! Gigabytes in, with many subscribers of whom a quarter does not read: what the server needs for that.

use crate::Options;
use crate::kit::events::Events;
use crate::kit::process::{mapped_mebibytes, own_mebibytes, peak_mebibytes, resident_mebibytes};
use crate::kit::report::{Aim, Report, Unit};
use crate::kit::server::{Server, directory};
use anyhow::Context as _;
use bytes::Bytes;
use futures::future::try_join_all;
use futures::{SinkExt as _, StreamExt as _};
use std::convert::Infallible;
use std::fmt::Write as _;
use std::pin::{Pin, pin};
use std::process::Command;
use std::time::{Duration, Instant};
use tokio::time::{sleep, timeout};
use tokio_postgres::{Client, RowStream};

const LIVELY: usize = 150;
const STALLED: usize = 50;
/// Of either kind, so many take the whole event; the others its number only, or the test would be one of the loopback
/// device: all events to all of them would be 2 TB.
const WHOLE: usize = 3;
const EVENT_BYTES: usize = 8 << 10;
/// Rows of one COPY.
const COPY_ROWS: usize = 8 << 10;
/// Rows of one message of it.
const PART_ROWS: usize = 8;
const WATCH_INTERVAL: Duration = Duration::from_millis(200);
const RECEIVE_TIME_MAX: Duration = Duration::from_secs(120);

pub(crate) async fn run(report: &mut Report, options: &Options) -> anyhow::Result<()> {
    let gigabytes = options.gigabytes.unwrap_or(if options.quick { 1.0 } else { 10.0 });
    let copies = ((gigabytes * 1e9) as usize).div_ceil(COPY_ROWS * EVENT_BYTES);
    let count = copies * COPY_ROWS;
    let dir = directory()?;
    let budget = has_budget()?.then_some(options.memory.as_str());
    let server = match budget {
        Some(budget) => Server::start_with(dir.path(), &["--memory", budget])?,
        None => Server::start(dir.path())?,
    };
    let client = server.client().await?;
    client.batch_execute("CREATE STREAM events (number bigint, payload text)").await?;
    let mut lively = subscribe(&server, LIVELY, count).await?;
    let mut stalled = subscribe(&server, STALLED, count).await?;
    report.heading(&format!(
        "{gigabytes} GB in events of {EVENT_BYTES} bytes, {} subscribers, {STALLED} of them stalled",
        LIVELY + STALLED
    ));
    let begin = Instant::now();
    let writing = async {
        write(&client, copies).await?;
        anyhow::Ok(begin.elapsed())
    };
    let reading = try_join_all(lively.iter_mut().map(Subscriber::read));
    let (mut peaks, process) = (Peaks::default(), server.process_id());
    let watching = watch(process, &mut peaks);
    let both = async { tokio::try_join!(writing, reading) };
    let (written, _) = tokio::select! {
        done = both => done?,
        failed = watching => match failed? {},
    };
    let rate = (count * EVENT_BYTES) as f64 / 1e6 / written.as_secs_f64();
    report.plain("  written, acknowledged", rate, Unit::MegabytesPerSecond);
    let all = (count * LIVELY) as f64 / begin.elapsed().as_secs_f64();
    report.plain(format!("  {LIVELY} subscribers got every event, in order: in all"), all, Unit::PerSecond("rows"));
    let begin = Instant::now();
    let watching = watch(process, &mut peaks);
    tokio::select! {
        done = try_join_all(stalled.iter_mut().map(Subscriber::read)) => drop(done?),
        failed = watching => match failed? {},
    }
    let all = (count * STALLED) as f64 / begin.elapsed().as_secs_f64();
    report.plain(format!("  {STALLED} read again, and got every event: in all"), all, Unit::PerSecond("rows"));
    let peak = peak_mebibytes(server.process_id())?;
    match budget {
        Some(budget) => {
            let most = mebibytes(budget)?;
            report.aimed("  memory at its peak, against --memory", peak, Unit::Mebibytes, Aim::Under(most));
        }
        None => report.plain("  memory at its peak", peak, Unit::Mebibytes),
    }
    report.plain("  its own at its peak, mapped files left out", peaks.own, Unit::Mebibytes);
    report.plain("  mapped files at their peak, the program among them", peaks.mapped, Unit::Mebibytes);
    report.plain("  memory at the end", resident_mebibytes(server.process_id())?, Unit::Mebibytes);
    let stored: i64 = client.query_one("SELECT count(*) FROM events", &[]).await?.try_get(0)?;
    anyhow::ensure!(stored as usize == count, "{stored} of {count} events are stored");
    let most = budget.map(mebibytes).transpose()?;
    anyhow::ensure!(most.is_none_or(|most| peak < most), "its peak of {peak:.0} MiB is above --memory");
    Ok(())
}

/// The most the process has had.
#[derive(Debug, Default)]
struct Peaks {
    own: f64,
    mapped: f64,
}

/// Looks at the process's memory again and again.
async fn watch(process: u32, peaks: &mut Peaks) -> anyhow::Result<Infallible> {
    loop {
        peaks.own = peaks.own.max(own_mebibytes(process)?);
        peaks.mapped = peaks.mapped.max(mapped_mebibytes(process)?);
        sleep(WATCH_INTERVAL).await;
    }
}

/// Whether the server has the option.
fn has_budget() -> anyhow::Result<bool> {
    let help = Command::new(env!("CARGO_BIN_EXE_millstream")).args(["start", "--help"]).output()?;
    Ok(String::from_utf8_lossy(&help.stdout).contains("--memory"))
}

fn mebibytes(size: &str) -> anyhow::Result<f64> {
    let units = [("GB", 1024.0), ("MB", 1.0)];
    let found = units.iter().find_map(|(unit, factor)| Some((size.strip_suffix(unit)?.trim(), factor)));
    let (number, factor) = found.context("--memory takes a number of GB or MB")?;
    Ok(number.parse::<f64>()? * factor)
}

/// Writes the events, numbered, in one COPY after the other.
async fn write(client: &Client, copies: usize) -> anyhow::Result<()> {
    let events = Events::new(COPY_ROWS, EVENT_BYTES);
    for copy in 0..copies {
        let mut sink = pin!(client.copy_in::<_, Bytes>("COPY events FROM STDIN WITH (FORMAT csv)").await?);
        for start in (0..COPY_ROWS).step_by(PART_ROWS) {
            let mut part = String::with_capacity(PART_ROWS * (EVENT_BYTES + 24));
            for at in start..start + PART_ROWS {
                writeln!(part, "{},{}", copy * COPY_ROWS + at, events.get(at))?;
            }
            sink.send(Bytes::from(part)).await?;
        }
        sink.as_mut().finish().await?;
    }
    Ok(())
}

/// One who has asked for every event, and need not read.
struct Subscriber {
    rows: Pin<Box<RowStream>>,
    count: usize,
    _client: Client,
}

async fn subscribe(server: &Server, subscribers: usize, count: usize) -> anyhow::Result<Vec<Subscriber>> {
    let mut made = Vec::new();
    for at in 0..subscribers {
        let columns = if at < WHOLE { "number, payload" } else { "number" };
        let query =
            format!("SELECT {columns} FROM events EMIT CHANGES WITH (auto_offset_reset = 'earliest') LIMIT {count}");
        let client = server.client().await?;
        let no_params: [i32; 0] = [];
        let rows = Box::pin(client.query_raw(&query, no_params).await?);
        made.push(Subscriber { rows, count, _client: client });
    }
    Ok(made)
}

impl Subscriber {
    /// Reads until the end; every event must come once, in order.
    async fn read(&mut self) -> anyhow::Result<()> {
        for expected in 0..self.count {
            let row = timeout(RECEIVE_TIME_MAX, self.rows.next()).await.context("a subscriber waits in vain")?;
            let number: i64 = row.context("a subscription ended too early")??.try_get(0)?;
            anyhow::ensure!(number as usize == expected, "event {number} came instead of {expected}");
        }
        let last = timeout(RECEIVE_TIME_MAX, self.rows.next()).await.context("a subscription does not end")?;
        anyhow::ensure!(last.is_none(), "a subscription gave too much");
        Ok(())
    }
}
