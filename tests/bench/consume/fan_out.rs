//! Many subscribers who each get every event of one topic.

use crate::kit::process::{cpu_seconds, peak_mebibytes, raise_open_files};
use crate::kit::report::{Report, Unit};
use crate::kit::server::{Server, directory};
use crate::latency::acknowledged;
use crate::members::{Member, Way, create_stream};
use crate::peer::sql::SqlPipe;
use crate::steady::{EVENTS_PER_SECOND, Producer, Receiver, measure};
use std::time::{Duration, Instant};

const TIME: Duration = Duration::from_secs(5);
const TOPIC: &str = "fan_out";
/// Open files of the bench and of the server beside those of subscribers.
const FILES_BESIDE: usize = 500;

pub(crate) async fn run(report: &mut Report, subscribers: usize) -> anyhow::Result<()> {
    raise_open_files(subscribers + FILES_BESIDE)?;
    for way in [Way::Copy, Way::Select] {
        let dir = directory()?;
        let server = Server::start(dir.path())?;
        create_stream(&server.client().await?, TOPIC, 1, "").await?;
        let mut receivers = Vec::with_capacity(subscribers);
        for mut member in Member::connect_all(&server, way, subscribers).await? {
            member.subscribe(TOPIC, "").await?;
            member.begun().await?;
            receivers.push(Receiver::Ours(member));
        }
        let (replies, writer) = SqlPipe::connect(server.sql_address(), "", TOPIC).await?.into_halves();
        let (before, begin) = (cpu_seconds(server.process_id())?, Instant::now());
        let turn = tokio::select! {
            turn = measure(Producer::Sql(writer), receivers, subscribers, TIME) => turn?,
            failed = acknowledged(replies) => return failed,
        };
        let seconds = begin.elapsed().as_secs_f64();
        let cpu = cpu_seconds(server.process_id())? - before;
        let rows = TIME.as_secs_f64() * EVENTS_PER_SECOND as f64 * subscribers as f64;
        report.heading(&format!(
            "{subscribers} subscribers of one topic, {EVENTS_PER_SECOND} events/s for {} s, {}",
            TIME.as_secs(),
            way.name()
        ));
        report.plain("  all got every event: rows in all", rows / seconds, Unit::PerSecond("rows"));
        report.plain("  p50", turn.p50, Unit::Millis);
        report.plain("  p99", turn.p99, Unit::Millis);
        report.plain("  the most", turn.most, Unit::Millis);
        report.plain("  the server's processor time", cpu, Unit::CoreSeconds);
        report.plain("  for a million rows", cpu / rows * 1e6, Unit::CoreSecondsPerMillion("rows"));
        report.plain("  memory at its peak", peak_mebibytes(server.process_id())?, Unit::Mebibytes);
    }
    Ok(())
}
