//! Many clients, one row per statement each: how many acknowledged INSERTs share a sync.

use crate::Options;
use crate::flights::{self, OneRow};
use crate::postgres::Postgres;
use crate::report::{Aim, Report, Unit, middle};
use crate::server::{Server, directory};
use futures::future::try_join_all;
use std::time::{Duration, Instant};

const CLIENTS: usize = 64;
/// Each measure takes its turn this often.
const ROUNDS: u32 = 5;

pub(crate) async fn run(report: &mut Report, options: Options, peer: Option<&Postgres>) -> anyhow::Result<()> {
    let dir = directory()?;
    let server = Server::start(dir.path())?;
    server.client().await?.batch_execute(&flights::create_stream()).await?;
    let ours = try_join_all((0..CLIENTS).map(|_| async { OneRow::prepare(server.client().await?).await })).await?;
    let mut theirs = Vec::new();
    if let Some(peer) = peer {
        peer.client_with_table().await?;
        theirs = try_join_all((0..CLIENTS).map(|_| async { OneRow::prepare(peer.client().await?).await })).await?;
    }
    let turn = options.time / ROUNDS;
    rate(&ours, turn).await?;
    let (mut one, mut many, mut peer_one, mut peer_many) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        one.push(rate(&ours[..1], turn).await?);
        many.push(rate(&ours, turn).await?);
        if !theirs.is_empty() {
            peer_one.push(rate(&theirs[..1], turn).await?);
            peer_many.push(rate(&theirs, turn).await?);
        }
    }
    let (one, many) = (middle(&mut one), middle(&mut many));
    report.plain("INSERT of one row by one client", one, Unit::PerSecond("rows"));
    report.plain(format!("INSERT of one row by {CLIENTS} clients"), many, Unit::PerSecond("rows"));
    report.aimed("  against one client", many / one, Unit::Times("one"), Aim::AtLeast(8.0));
    if !theirs.is_empty() {
        let (peer_one, peer_many) = (middle(&mut peer_one), middle(&mut peer_many));
        report.peer("  PostgreSQL, one client", peer_one, Unit::PerSecond("rows"), one / peer_one);
        report.peer(format!("  PostgreSQL, {CLIENTS} clients"), peer_many, Unit::PerSecond("rows"), many / peer_many);
    }
    Ok(())
}

/// Acknowledged rows per second when each client sends the next statement after the answer to the last.
async fn rate(clients: &[OneRow], time: Duration) -> anyhow::Result<f64> {
    let begin = Instant::now();
    let counts = try_join_all(clients.iter().map(|client| async move {
        let mut count = 0;
        while begin.elapsed() < time {
            client.insert(count).await?;
            count += 1;
        }
        anyhow::Ok(count)
    }));
    let counts = counts.await?;
    Ok(f64::from(counts.iter().sum::<i32>()) / begin.elapsed().as_secs_f64())
}
