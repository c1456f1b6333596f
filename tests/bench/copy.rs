//! Bulk load: one client, one COPY statement at a time.

use crate::flights::{self, Csv};
use crate::postgres::Postgres;
use crate::report::{Aim, Report, Unit, middle};
use crate::server::{Server, directory};

/// Rows of one COPY.
const ROWS: usize = 500_000;
const ROUNDS: usize = 7;

pub(crate) async fn run(report: &mut Report, peer: Option<&Postgres>) -> anyhow::Result<()> {
    let csv = Csv::of(ROWS)?;
    let dir = directory()?;
    let server = Server::start(dir.path())?;
    let ours = server.client().await?;
    ours.batch_execute(&flights::create_stream()).await?;
    let theirs = match peer {
        Some(peer) => Some(peer.client_with_table().await?),
        None => None,
    };
    let (mut rates, mut peer_rates) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        rates.push(csv.load(&ours).await?);
        if let Some(theirs) = &theirs {
            peer_rates.push(csv.load(theirs).await?);
        }
    }
    let rate = middle(&mut rates);
    let measure = format!("COPY csv, five columns, {ROWS} rows each, median");
    report.aimed(measure, rate, Unit::PerSecond("rows"), Aim::AtLeast(400_000.0));
    if theirs.is_some() {
        let peer = middle(&mut peer_rates);
        report.peer("  PostgreSQL", peer, Unit::PerSecond("rows"), rate / peer);
    }
    Ok(())
}
