//! One client, one row per statement: how much an acknowledged INSERT costs beyond the sync it cannot avoid.

use crate::Options;
use crate::disk::SyncProbe;
use crate::flights::{self, OneRow};
use crate::postgres::Postgres;
use crate::report::{Aim, Report, Unit, median, quantile};
use crate::server::{Server, directory};
use std::time::Instant;

/// Statements of one before the next takes its turn.
const TURN: i32 = 20;
/// Statements that are not counted.
const WARM_UP: i32 = 200;

pub(crate) async fn run(report: &mut Report, options: Options, peer: Option<&Postgres>) -> anyhow::Result<()> {
    let dir = directory()?;
    let mut probe = SyncProbe::new(dir.path())?;
    let server = Server::start(dir.path())?;
    let client = server.client().await?;
    client.batch_execute(&flights::create_stream()).await?;
    let ours = OneRow::prepare(client).await?;
    let theirs = match peer {
        Some(peer) => Some(OneRow::prepare(peer.client_with_table().await?).await?),
        None => None,
    };
    for number in 0..WARM_UP {
        ours.insert(number).await?;
        probe.append()?;
    }
    let (mut syncs, mut trips, mut inserts, mut peers) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    let begin = Instant::now();
    while begin.elapsed() < options.time * 2 {
        for _ in 0..TURN {
            syncs.push(probe.append()?);
        }
        for _ in 0..TURN {
            trips.push(ours.nothing().await?);
        }
        for number in 0..TURN {
            inserts.push(ours.insert(number).await?);
        }
        if let Some(theirs) = &theirs {
            for number in 0..TURN {
                peers.push(theirs.insert(number).await?);
            }
        }
    }
    let (sync, insert) = (median(&mut syncs), median(&mut inserts));
    report.plain("disk: 4 KiB append and fdatasync, median", sync, Unit::Millis);
    report.plain("a statement without text, median", median(&mut trips), Unit::Millis);
    report.plain("INSERT of one row, prepared, one client, median", insert, Unit::Millis);
    report.plain("  p99", quantile(&mut inserts, 0.99), Unit::Millis);
    report.aimed("  against the disk", insert / sync, Unit::Times("disk"), Aim::Under(1.5));
    if theirs.is_some() {
        let peer = median(&mut peers);
        report.peer("  PostgreSQL, median", peer, Unit::Millis, peer / insert);
    }
    Ok(())
}
