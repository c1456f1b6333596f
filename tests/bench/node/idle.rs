//! What a node costs that has nothing to do.

use crate::kit::process::{cpu_seconds, resident_mebibytes};
use crate::kit::report::{Aim, Report, Unit};
use crate::kit::server::{Server, directory};
use std::time::{Duration, Instant};

/// Time for what a start leaves to the background.
const SETTLE_TIME: Duration = Duration::from_secs(3);

pub(crate) async fn run(report: &mut Report, time: Duration) -> anyhow::Result<()> {
    let dir = directory()?;
    let server = Server::start(dir.path())?;
    tokio::time::sleep(SETTLE_TIME).await;
    let seconds_before = cpu_seconds(server.process_id())?;
    let begin = Instant::now();
    tokio::time::sleep(time).await;
    let seconds = cpu_seconds(server.process_id())? - seconds_before;
    let percent = seconds / begin.elapsed().as_secs_f64() * 100.0;
    let memory = resident_mebibytes(server.process_id())?;
    report.aimed("idle node: resident memory", memory, Unit::Mebibytes, Aim::Under(150.0));
    report.aimed("idle node: processor", percent, Unit::Percent, Aim::Under(1.0));
    Ok(())
}
