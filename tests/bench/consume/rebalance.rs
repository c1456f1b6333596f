//! How long a group over many partitions takes until each member has its part, after one joined, and when all join.

use crate::kit::process::raise_open_files;
use crate::kit::report::{Aim, Report, Unit, quantile};
use crate::kit::server::{Server, directory};
use crate::members::{Member, Observer, Way, create_stream};
use futures::future::try_join_all;
use std::time::{Duration, Instant};

const TOPIC: &str = "rebalance";
const PARTITIONS: usize = 1_000;
const MEMBERS: usize = 100;
const ROUNDS: usize = 7;
const MILLIS_MAX: f64 = 200.0;
const FILES_MAX: usize = 2_000;

pub(crate) async fn run(report: &mut Report) -> anyhow::Result<()> {
    raise_open_files(FILES_MAX)?;
    let dir = directory()?;
    let server = Server::start(dir.path())?;
    create_stream(&server.client().await?, TOPIC, PARTITIONS, "").await?;
    let observer = Observer::connect(&server).await?;
    let mut all = Vec::new();
    for round in 0..ROUNDS {
        all.push(all_at_once(&server, &observer, &format!("all_{round}")).await?);
    }
    let (mut joins, mut leaves, look) = one_more(&server, &observer).await?;
    report.heading(&format!("a group over {PARTITIONS} partitions"));
    let join = quantile(&mut joins, 0.5);
    report.aimed(
        format!("  member {MEMBERS} joins, until all have their part"),
        join,
        Unit::Millis,
        Aim::Under(MILLIS_MAX),
    );
    report.plain("    the most", quantile(&mut joins, 1.0), Unit::Millis);
    report.plain("  it leaves again", quantile(&mut leaves, 0.5), Unit::Millis);
    let from_scratch = quantile(&mut all, 0.5);
    report.aimed(format!("  {MEMBERS} join a new group at once"), from_scratch, Unit::Millis, Aim::Under(MILLIS_MAX));
    report.plain("    the most", quantile(&mut all, 1.0), Unit::Millis);
    report.plain("  of these times one look at the group takes", look.as_secs_f64() * 1e3, Unit::Millis);
    Ok(())
}

async fn all_at_once(server: &Server, observer: &Observer, group: &str) -> anyhow::Result<Duration> {
    let options = format!("WITH (group = '{group}')");
    let mut members = Member::connect_all(server, Way::Select, MEMBERS).await?;
    let begin = Instant::now();
    try_join_all(members.iter_mut().map(|member| member.subscribe(TOPIC, &options))).await?;
    observer.settled(group, MEMBERS, PARTITIONS).await?;
    Ok(begin.elapsed())
}

/// One more joins a settled group, and leaves it, again and again; and what a look takes.
async fn one_more(server: &Server, observer: &Observer) -> anyhow::Result<(Vec<Duration>, Vec<Duration>, Duration)> {
    let (group, options) = ("one_more", "WITH (group = 'one_more')");
    let mut members = Member::connect_all(server, Way::Select, MEMBERS - 1).await?;
    for member in &mut members {
        member.subscribe(TOPIC, options).await?;
        member.begun().await?;
    }
    observer.settled(group, MEMBERS - 1, PARTITIONS).await?;
    let (mut joins, mut leaves) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        let mut last = Member::connect(server, Way::Select).await?;
        let begin = Instant::now();
        last.subscribe(TOPIC, options).await?;
        observer.settled(group, MEMBERS, PARTITIONS).await?;
        joins.push(begin.elapsed());
        let begin = Instant::now();
        drop(last);
        observer.settled(group, MEMBERS - 1, PARTITIONS).await?;
        leaves.push(begin.elapsed());
    }
    let begin = Instant::now();
    observer.settled(group, MEMBERS - 1, PARTITIONS).await?;
    Ok((joins, leaves, begin.elapsed()))
}
