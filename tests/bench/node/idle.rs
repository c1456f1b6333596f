//! What a node costs that has nothing to do.

use crate::kit::process::resident_mebibytes;
use crate::kit::report::{Aim, Report, Unit};
use crate::kit::server::{Server, directory};
use anyhow::Context as _;
use std::fs;
use std::time::{Duration, Instant};

/// Time for what a start leaves to the background.
const SETTLE_TIME: Duration = Duration::from_secs(3);
/// `USER_HZ`: the unit of times in `/proc`, the same on all of Linux's platforms of today.
const TICKS_PER_SECOND: f64 = 100.0;

pub(crate) async fn run(report: &mut Report, time: Duration) -> anyhow::Result<()> {
    let dir = directory()?;
    let server = Server::start(dir.path())?;
    tokio::time::sleep(SETTLE_TIME).await;
    let ticks_before = cpu_ticks(server.process_id())?;
    let begin = Instant::now();
    tokio::time::sleep(time).await;
    let ticks = cpu_ticks(server.process_id())? - ticks_before;
    let percent = ticks / TICKS_PER_SECOND / begin.elapsed().as_secs_f64() * 100.0;
    let memory = resident_mebibytes(server.process_id())?;
    report.aimed("idle node: resident memory", memory, Unit::Mebibytes, Aim::Under(150.0));
    report.aimed("idle node: processor", percent, Unit::Percent, Aim::Under(1.0));
    Ok(())
}

/// Processor time of a process, in ticks.
fn cpu_ticks(process: u32) -> anyhow::Result<f64> {
    let stat = fs::read_to_string(format!("/proc/{process}/stat"))?;
    // The name in parentheses may hold spaces; user and system time are the 12th and 13th field after it.
    let (_, fields) = stat.rsplit_once(") ").context("no fields")?;
    let times: Vec<f64> = fields.split(' ').skip(11).take(2).filter_map(|field| field.parse().ok()).collect();
    Ok(times.iter().sum())
}
