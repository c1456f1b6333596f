//! The speed of Millstream against its aims, and against PostgreSQL when that is installed: `cargo bench --bench millstream`.
//!
//! Each part starts a server of its own, as a process, on the disk that holds the build. What is compared with one
//! another (the disk's own sync, the server, PostgreSQL) takes turns within one run, so that a busy machine slows all
//! of them alike: trust the ratios more than the figures. Names of parts as arguments run only those:
//! `cargo bench --bench millstream -- insert copy`.
//!
//! | variable | meaning | default |
//! |---|---|---|
//! | `BENCH_ROWS` | events that are stored for the scans | 10,000,000 |
//! | `BENCH_SECONDS` | seconds of each measure that runs for a time | 10 |

#![allow(clippy::disallowed_methods, reason = "it measures real time, files and processes; nothing here is simulated")]

mod clients;
mod copy;
mod disk;
mod flights;
mod idle;
mod insert;
mod latency;
mod postgres;
mod report;
mod scan;
mod server;
mod start;

use anyhow::{Context as _, bail};
use postgres::Postgres;
use report::Report;
use std::time::Duration;

/// What a run was asked for.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Options {
    /// Events stored for the scans.
    pub(crate) rows: usize,
    /// How long a measure that runs for a time runs.
    pub(crate) time: Duration,
}

impl Options {
    fn load() -> anyhow::Result<Self> {
        let number = |name: &str, default: usize| match std::env::var(name) {
            Ok(text) => text.replace(['_', ','], "").parse().with_context(|| format!("{name} is not a number")),
            Err(_) => Ok(default),
        };
        let seconds = number("BENCH_SECONDS", 10)?;
        Ok(Self { rows: number("BENCH_ROWS", 10_000_000)?, time: Duration::from_secs(seconds.max(1) as u64) })
    }
}

const PARTS: [&str; 7] = ["insert", "clients", "copy", "latency", "scan", "idle", "start"];

// One thread: the client must leave the cores to what it measures.
#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    // Cargo adds `--bench`.
    let asked: Vec<String> = std::env::args().skip(1).filter(|argument| !argument.starts_with('-')).collect();
    if let Some(unknown) = asked.iter().find(|name| !PARTS.contains(&name.as_str())) {
        bail!("no part \"{unknown}\": there are {}", PARTS.join(", "));
    }
    let is_asked = |part: &str| asked.is_empty() || asked.iter().any(|name| name == part);
    let options = Options::load()?;
    let mut report = Report::default();
    let needs_peer = ["insert", "clients", "copy"].into_iter().any(is_asked);
    let peer = if needs_peer { Postgres::start(&mut report).await? } else { None };
    for part in PARTS.into_iter().filter(|part| is_asked(part)) {
        eprintln!("measuring {part}");
        let result = match part {
            "insert" => insert::run(&mut report, options, peer.as_ref()).await,
            "clients" => clients::run(&mut report, options, peer.as_ref()).await,
            "copy" => copy::run(&mut report, peer.as_ref()).await,
            "latency" => latency::run(&mut report, options).await,
            "scan" => scan::run(&mut report, options).await,
            "idle" => idle::run(&mut report, options).await,
            _ => start::run(&mut report).await,
        };
        // One part that fails must not cost the figures of the others.
        if let Err(error) = result {
            report.note(format!("{part}: not measured: {error:#}"));
        }
    }
    println!("{report}");
    Ok(())
}
