//! What subscribers cost to whom nothing comes: by themselves, and as groups of one member each.

use crate::kit::process::{cpu_seconds, own_mebibytes, raise_open_files, resident_mebibytes, settle};
use crate::kit::report::{Aim, Report, Unit};
use crate::kit::server::{Server, directory};
use crate::members::{Member, Way, create_stream};
use std::time::{Duration, Instant};

const TOPIC: &str = "idle";
const MEMORY_MAX: f64 = 20.0;
const PERCENT_MAX: f64 = 3.0;
/// Open files of the bench and of the server beside those of subscribers.
const FILES_BESIDE: usize = 500;
/// Subscribers whose connections are measured after these have made the server take what it takes once.
const WARM_UP: usize = 100;

pub(crate) async fn run(report: &mut Report, time: Duration, subscribers: usize) -> anyhow::Result<()> {
    raise_open_files(subscribers + WARM_UP + FILES_BESIDE)?;
    // As psql and as most drivers ask, who leave a Sync behind what goes on.
    for (way, is_group) in [(Way::Select, false), (Way::Extended, false), (Way::Select, true), (Way::Extended, true)] {
        one(report, time, subscribers, (way, is_group)).await?;
    }
    Ok(())
}

async fn one(
    report: &mut Report,
    time: Duration,
    subscribers: usize,
    (way, is_group): (Way, bool),
) -> anyhow::Result<()> {
    let dir = directory()?;
    let server = Server::start(dir.path())?;
    let process = server.process_id();
    create_stream(&server.client().await?, TOPIC, 1, "").await?;
    let options = |number: usize| if is_group { format!("WITH (group = 'idle_{number}')") } else { String::new() };
    // What the first ones make the server take is not theirs alone.
    let mut first = Member::connect_all(&server, way, WARM_UP).await?;
    for (number, member) in first.iter_mut().enumerate() {
        member.subscribe(TOPIC, &options(subscribers + number)).await?;
        member.begun().await?;
    }
    settle(process).await?;
    let (resident, own) = (resident_mebibytes(process)?, own_mebibytes(process)?);
    let each = |now: f64, before: f64| (now - before) * 1024.0 / subscribers as f64;
    let mut members = Member::connect_all(&server, way, subscribers).await?;
    settle(process).await?;
    let connected = each(resident_mebibytes(process)?, resident);
    let begin = Instant::now();
    for (number, member) in members.iter_mut().enumerate() {
        member.subscribe(TOPIC, &options(number)).await?;
        member.begun().await?;
    }
    let subscribing = begin.elapsed().as_secs_f64() * 1e3 / subscribers as f64;
    settle(process).await?;
    let what = if is_group { "idle groups of one member each" } else { "idle subscribers" };
    report.heading(&format!("{subscribers} {what}, one topic, {}", way.name()));
    let memory = each(resident_mebibytes(process)?, resident);
    report.aimed("  memory of each", memory, Unit::Kibibytes, Aim::Under(MEMORY_MAX));
    report.plain("    of that before it subscribed, connected", connected, Unit::Kibibytes);
    report.plain("    of that not mapped from files", each(own_mebibytes(process)?, own), Unit::Kibibytes);
    report.plain("  subscribing, one after the other, each", subscribing, Unit::Millis);
    let (before, begin) = (cpu_seconds(process)?, Instant::now());
    tokio::time::sleep(time).await;
    let percent = (cpu_seconds(process)? - before) / begin.elapsed().as_secs_f64() * 100.0;
    report.aimed("  processor while nothing comes", percent, Unit::Percent, Aim::Under(PERCENT_MAX));
    drop((first, members));
    Ok(())
}
