//! How fast consumer groups are, and what subscribers cost, beside the peers that are installed: `cargo bench --bench
//! consume`.
//!
//! Names of parts as arguments run only those: `cargo bench --bench consume -- throughput --quick`. What is compared, and
//! how fair that is, says `src/docs/benchmarks.md`.

#![allow(clippy::disallowed_methods, reason = "it measures real time, files and processes; nothing here is simulated")]

#[path = "consume/fan_out.rs"]
mod fan_out;
#[path = "consume/idle.rs"]
mod idle;
mod kit;
#[path = "consume/latency.rs"]
mod latency;
#[path = "consume/members.rs"]
mod members;
mod peer;
#[path = "consume/rebalance.rs"]
mod rebalance;
#[path = "consume/steady.rs"]
mod steady;
#[path = "consume/throughput.rs"]
mod throughput;

use clap::{Parser, ValueEnum};
use kit::report::Report;
use peer::{PeerName, Peers};
use std::time::Duration;

/// How fast consumer groups are.
#[derive(Debug, Parser)]
pub(crate) struct Options {
    /// What is measured; without any, all
    parts: Vec<Part>,
    /// Less of each, with less to trust
    #[arg(long)]
    quick: bool,
    /// Only these peers
    #[arg(long, value_delimiter = ',')]
    peers: Vec<PeerName>,
    /// Members of groups whose rate and latency is measured
    #[arg(long, value_delimiter = ',', default_values_t = [1, 4, 16])]
    members: Vec<usize>,
    /// Subscribers in `idle`
    #[arg(long, default_value_t = 5_000)]
    idle: usize,
    /// Subscribers in `fan-out`
    #[arg(long, default_value_t = 1_000)]
    fan_out: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Part {
    /// A group reads what is stored
    Throughput,
    /// From the producer to a group's member at 1,000 events/s
    Latency,
    /// Subscribers to whom nothing comes
    Idle,
    /// 1,000 subscribers of one topic at 1,000 events/s
    FanOut,
    /// Members that join a group over 1,000 partitions
    Rebalance,
}

impl Part {
    fn has_peers(self) -> bool {
        matches!(self, Self::Throughput | Self::Latency)
    }
}

/// How much is done.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Scale {
    /// Events that ours, Kafka and NATS read in one turn, so that each takes seconds.
    pub(crate) throughput: (usize, usize, usize),
    /// Turns of each work.
    pub(crate) rounds: usize,
    /// How long events come at a steady rate.
    pub(crate) latency: Duration,
    /// How long idle subscribers are watched.
    pub(crate) idle: Duration,
}

impl Scale {
    fn of(options: &Options) -> Self {
        let seconds = Duration::from_secs;
        match options.quick {
            true => {
                Self { throughput: (8_000_000, 4_000_000, 800_000), rounds: 1, latency: seconds(5), idle: seconds(10) }
            }
            false => Self {
                throughput: (24_000_000, 12_000_000, 2_000_000),
                rounds: 3,
                latency: seconds(15),
                idle: seconds(10),
            },
        }
    }
}

// One thread: the client must leave the cores to what it measures.
#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    let options = Options::parse_from(kit::arguments());
    let is_asked = |part: &Part| options.parts.is_empty() || options.parts.contains(part);
    let mut report = Report::default();
    let scale = Scale::of(&options);
    let asked = Part::value_variants().iter().filter(|part| is_asked(part));
    let peers = match asked.clone().any(|part| part.has_peers()) {
        true => {
            let all = [PeerName::Nats, PeerName::Kafka];
            Peers::start(&mut report, if options.peers.is_empty() { &all } else { &options.peers })
        }
        false => Peers::default(),
    };
    for part in asked {
        let result = match part {
            Part::Throughput => throughput::run(&mut report, scale, &options.members, &peers).await,
            Part::Latency => latency::run(&mut report, scale, &options.members, &peers).await,
            Part::Idle => idle::run(&mut report, scale.idle, options.idle).await,
            Part::FanOut => fan_out::run(&mut report, options.fan_out).await,
            Part::Rebalance => rebalance::run(&mut report).await,
        };
        // One part that fails must not cost the figures of the others.
        if let Err(error) = result {
            report.note(format!("{part:?}: not measured: {error:#}"));
        }
    }
    println!("{report}");
    Ok(())
}
