//! How fast events go in and come out again, beside the peers that are installed: `cargo bench --bench ingest`.
//!
//! Each server is a process of its own, on the disk that holds the build. At each work they take turns within one run,
//! so that a busy machine slows all of them alike: trust the ratios more than the figures. Names of works as arguments
//! run only those: `cargo bench --bench ingest -- one clients --quick`. What is compared, and how fair that is, says
//! `src/docs/benchmarks.md`.

#![allow(clippy::disallowed_methods, reason = "it measures real time, files and processes; nothing here is simulated")]

#[path = "ingest/bulk.rs"]
mod bulk;
mod kit;
#[path = "ingest/latency.rs"]
mod latency;
#[path = "ingest/memory.rs"]
mod memory;
#[path = "ingest/parties.rs"]
mod parties;
mod peer;
#[path = "ingest/pipeline.rs"]
mod pipeline;
#[path = "ingest/replay.rs"]
mod replay;
#[path = "ingest/update.rs"]
mod update;
#[path = "ingest/writes.rs"]
mod writes;

use clap::{Parser, ValueEnum};
use kit::report::{Report, Unit};
use kit::server::Server;
use peer::{PeerName, Peers};
use std::time::Duration;

/// Sizes of an event.
const SIZES: [usize; 2] = [100, 1024];

/// How fast events go in and come out again.
#[derive(Debug, Parser)]
pub(crate) struct Options {
    /// What is measured; without any, all but memory
    parts: Vec<Part>,
    /// Everything in three minutes, with less to trust
    #[arg(long)]
    quick: bool,
    /// Only these peers
    #[arg(long, value_delimiter = ',')]
    peers: Vec<PeerName>,
    /// Gigabytes that `memory` writes [default: 10; 1 with --quick]
    #[arg(long)]
    gigabytes: Option<f64>,
    /// The server's budget in `memory`
    #[arg(long, default_value = "1GB")]
    memory: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Part {
    /// Durable, acknowledged writes of one client
    One,
    /// The same of 64 clients
    Clients,
    /// Both, acknowledged before they are synced
    Async,
    /// 1,000 statements on one connection, sent without waiting
    Pipeline,
    /// Changes of single rows by their primary key
    Update,
    /// As much as goes in
    Bulk,
    /// From the beginning
    Replay,
    /// From the producer to the subscriber at 5,000 events/s
    Latency,
    /// Gigabytes in, with 200 subscribers, 50 of them stalled
    Memory,
}

/// How much is done.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Scale {
    /// One turn of one client, and how many turns.
    pub(crate) one: (Duration, usize),
    /// One turn of many clients, and how many turns.
    pub(crate) clients: (Duration, usize),
    /// Turns of 1,000 statements.
    pub(crate) pipeline: usize,
    /// Bytes of events one turn writes, and how many turns.
    pub(crate) bulk: (usize, usize),
    /// Bytes of events that are read, and how many turns.
    pub(crate) replay: (usize, usize),
    /// One turn of events at a steady rate, and how many turns.
    pub(crate) latency: (Duration, usize),
}

impl Scale {
    fn of(options: &Options) -> Self {
        let millis = Duration::from_millis;
        match options.quick {
            true => Self {
                one: (millis(100), 7),
                clients: (millis(300), 3),
                pipeline: 3,
                bulk: (20_000_000, 2),
                replay: (40_000_000, 2),
                latency: (millis(2_000), 1),
            },
            false => Self {
                one: (millis(200), 25),
                clients: (millis(1_000), 5),
                pipeline: 9,
                bulk: (50_000_000, 5),
                replay: (200_000_000, 5),
                latency: (millis(5_000), 3),
            },
        }
    }
}

// One thread: the client must leave the cores to what it measures.
#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    let options = Options::parse_from(kit::arguments());
    let is_asked = |part: &Part| match options.parts.is_empty() {
        true => *part != Part::Memory,
        false => options.parts.contains(part),
    };
    let mut report = Report::default();
    let needs_peers = Part::value_variants().iter().any(|part| is_asked(part) && *part != Part::Memory);
    let peers = if needs_peers { Peers::start(&mut report, &options.peers) } else { Peers::default() };
    let scale = Scale::of(&options);
    let mut has_kept_memory = true;
    for part in Part::value_variants().iter().filter(|part| is_asked(part)) {
        let result = match part {
            Part::One => writes::one(&mut report, scale.one, &peers).await,
            Part::Clients => writes::clients(&mut report, scale.clients, &peers).await,
            Part::Async => writes::unsynced(&mut report, (scale.one, scale.clients), &peers).await,
            Part::Pipeline => pipeline::run(&mut report, scale.pipeline, &peers).await,
            Part::Update => update::run(&mut report, scale.one, &peers).await,
            Part::Bulk => bulk::run(&mut report, scale.bulk, &peers).await,
            Part::Replay => replay::run(&mut report, scale.replay, &peers).await,
            Part::Latency => latency::run(&mut report, scale.latency, &peers).await,
            Part::Memory => memory::run(&mut report, &options).await,
        };
        // One part that fails must not cost the figures of the others.
        if let Err(error) = result {
            has_kept_memory &= *part != Part::Memory;
            report.note(format!("{part:?}: not measured: {error:#}"));
        }
    }
    println!("{report}");
    anyhow::ensure!(has_kept_memory, "the server was not measured within --memory");
    Ok(())
}

/// The most memory the server has had.
pub(crate) fn report_peak(report: &mut Report, server: &Server) -> anyhow::Result<()> {
    let peak = kit::process::peak_mebibytes(server.process_id())?;
    report.plain("  Millstream's memory at its peak", peak, Unit::Mebibytes);
    Ok(())
}
