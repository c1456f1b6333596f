//! What a node costs that starts, or has nothing to do: `cargo bench --bench node`.
//!
//! Each part starts a server of its own, as a process, on the disk that holds the build. Names of parts as arguments run
//! only those: `cargo bench --bench node -- idle`.

#![allow(clippy::disallowed_methods, reason = "it measures real time, files and processes; nothing here is simulated")]

#[path = "node/idle.rs"]
mod idle;
mod kit;
#[path = "node/start.rs"]
mod start;

use clap::{Parser, ValueEnum};
use kit::report::Report;
use std::time::Duration;

/// What a node costs that starts, or has nothing to do.
#[derive(Debug, Parser)]
pub(crate) struct Options {
    /// What is measured; without any, all
    parts: Vec<Part>,
    /// Seconds of each measure that runs for a time
    #[arg(long, default_value_t = 10)]
    seconds: u64,
}

impl Options {
    /// How long a measure that runs for a time runs.
    pub(crate) fn time(&self) -> Duration {
        Duration::from_secs(self.seconds.max(1))
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Part {
    /// Memory and processor of a node without work
    Idle,
    /// Time until a node takes clients
    Start,
}

// One thread: the client must leave the cores to what it measures.
#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    let options = Options::parse_from(kit::arguments());
    let mut report = Report::default();
    for part in Part::value_variants() {
        if !options.parts.is_empty() && !options.parts.contains(part) {
            continue;
        }
        let result = match part {
            Part::Idle => idle::run(&mut report, options.time()).await,
            Part::Start => start::run(&mut report).await,
        };
        // One part that fails must not cost the figures of the others.
        if let Err(error) = result {
            report.note(format!("{part:?}: not measured: {error:#}"));
        }
    }
    println!("{report}");
    Ok(())
}
