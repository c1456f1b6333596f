//! From when events are due at their producer until a subscriber has what a query made of them: a count in tumbling
//! windows at a steady rate, of events and results that are on disk, and of such as the operating system has.

use crate::events::{copy, encode};
use crate::kit::disk::SyncProbe;
use crate::kit::process::{cpu_seconds, peak_mebibytes};
use crate::kit::report::{Aim, Report, Unit, quantile};
use crate::kit::server::{Server, directory};
use anyhow::Context as _;
use arrow::array::{Int32Array, Int64Array, RecordBatch, TimestampMicrosecondArray};
use futures::StreamExt as _;
use std::cell::RefCell;
use std::collections::VecDeque;
use std::pin::pin;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::time::{MissedTickBehavior, interval, timeout};
use tokio_postgres::Client;

const EVENTS_PER_SECOND: usize = 100_000;
/// Between two batches of the producer, which is one transaction each.
const TICK: Duration = Duration::from_millis(5);
const KINDS: i32 = 10;
/// Of all batches, those that are sent first and not counted.
const WARM_UP_PART: usize = 5;
/// Syncs of each batch: of its events, then of what the query makes of them.
const SYNCS: usize = 2;
/// After the last event was sent.
const RECEIVE_TIME_MAX: Duration = Duration::from_secs(30);

const SUBSCRIPTION: &str = "SELECT sent FROM counts EMIT CHANGES";

pub(crate) async fn run(report: &mut Report, time: Duration) -> anyhow::Result<()> {
    report.heading(&format!("from the producer to the subscriber of a tumbling count, {EVENTS_PER_SECOND} events/s"));
    let batches = (time.as_secs_f64() / TICK.as_secs_f64()) as usize;
    let mut disk = disk_times(batches).await?;
    report.plain(
        "  the disk alone, two syncs in a row as often as there are batches, p50",
        quantile(&mut disk, 0.5),
        Unit::Millis,
    );
    report.plain("    p99", quantile(&mut disk, 0.99), Unit::Millis);
    for (durability, meaning) in [("sync", "on disk"), ("async", "in the operating system's memory")] {
        one(report, batches, durability, meaning).await?;
    }
    Ok(())
}

async fn one(report: &mut Report, batches: usize, durability: &str, meaning: &str) -> anyhow::Result<()> {
    let dir = directory()?;
    settle()?;
    let server = Server::start(dir.path())?;
    let (producer, subscriber) = (server.client().await?, server.client().await?);
    producer.batch_execute(&definitions(durability)).await?;
    let due = RefCell::new(VecDeque::new());
    let cpu_before = cpu_seconds(server.process_id())?;
    let begin = Instant::now();
    let producing = produce(&producer, &due, begin, batches);
    let receiving = receive(&subscriber, &due, begin, batches);
    let limit = TICK * 2 * batches as u32 + RECEIVE_TIME_MAX;
    let both = timeout(limit, async { tokio::try_join!(producing, receiving) });
    let (sending, mut times) = both.await.context("it does not keep up")??;
    let cpu = cpu_seconds(server.process_id())? - cpu_before;
    let events = (batches * events_per_batch()) as f64;
    report.plain(format!("  acknowledged {meaning}, sent"), events / sending.as_secs_f64(), Unit::PerSecond("events"));
    report.plain("    p50", quantile(&mut times, 0.5), Unit::Millis);
    report.aimed("    p99", quantile(&mut times, 0.99), Unit::Millis, Aim::Under(10.0));
    report.plain("    processor", cpu / events * 1e6, Unit::CoreSecondsPerMillion("events"));
    report.plain("    memory at its peak", peak_mebibytes(server.process_id())?, Unit::Mebibytes);
    Ok(())
}

fn definitions(durability: &str) -> String {
    format!(
        "CREATE STREAM signals (kind integer, sent bigint, at timestamp) WITH (timestamp = 'at', durability = '{durability}');
         CREATE TABLE counts WITH (durability = '{durability}') AS SELECT kind, count(*) AS signals, max(sent) AS sent
         FROM signals WINDOW TUMBLING (SIZE 1 SECOND) GROUP BY kind"
    )
}

/// What earlier works left to be written is not this one's.
fn settle() -> anyhow::Result<()> {
    anyhow::ensure!(Command::new("sync").status()?.success(), "the disk does not take what is to be written");
    Ok(())
}

/// What the syncs of each batch take by themselves.
async fn disk_times(batches: usize) -> anyhow::Result<Vec<Duration>> {
    let dir = directory()?;
    settle()?;
    let mut probe = SyncProbe::new(dir.path())?;
    let mut ticks = interval(TICK);
    let mut times = Vec::with_capacity(batches);
    for _ in 0..batches {
        let due = ticks.tick().await.into_std();
        for _ in 0..SYNCS {
            probe.append()?;
        }
        times.push(due.elapsed());
    }
    Ok(times)
}

fn events_per_batch() -> usize {
    (EVENTS_PER_SECOND as f64 * TICK.as_secs_f64()) as usize
}

/// Sends the batches, each when it is due or as soon after that as the last one is acknowledged; the time of all.
async fn produce(
    client: &Client,
    due: &RefCell<VecDeque<(i64, Instant)>>,
    begin: Instant,
    batches: usize,
) -> anyhow::Result<Duration> {
    let mut ticks = interval(TICK);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Burst);
    for number in 0..batches {
        let time = ticks.tick().await.into_std();
        let number = number as i64;
        due.borrow_mut().push_back((number, time));
        copy(client, "signals", &encode(&batch(number, time.saturating_duration_since(begin))?)?).await?;
    }
    Ok(begin.elapsed())
}

fn batch(number: i64, at: Duration) -> anyhow::Result<RecordBatch> {
    let count = events_per_batch();
    let at = i64::try_from(at.as_micros())?;
    Ok(RecordBatch::try_from_iter([
        ("kind", Arc::new((0..count as i32).map(|event| event % KINDS).collect::<Int32Array>()) as _),
        ("sent", Arc::new(Int64Array::from(vec![number; count])) as _),
        ("at", Arc::new(TimestampMicrosecondArray::from(vec![at; count])) as _),
    ])?)
}

/// How long each batch took, from when it was due: it is there with the first row that has its number or a later one.
async fn receive(
    client: &Client,
    due: &RefCell<VecDeque<(i64, Instant)>>,
    begin: Instant,
    batches: usize,
) -> anyhow::Result<Vec<Duration>> {
    let mut times = Vec::with_capacity(batches);
    let mut rows = pin!(client.query_raw(SUBSCRIPTION, std::iter::empty::<i64>()).await?);
    let mut received = 0;
    while received < batches {
        let row = rows.next().await.context("the subscription ended")??;
        let (sent, now): (i64, _) = (row.try_get(0)?, Instant::now());
        let mut due = due.borrow_mut();
        while due.front().is_some_and(|(number, _)| *number <= sent) {
            let time = due.pop_front().map_or(begin, |(_, time)| time);
            received += 1;
            if received > batches / WARM_UP_PART {
                times.push(now.saturating_duration_since(time));
            }
        }
    }
    Ok(times)
}
