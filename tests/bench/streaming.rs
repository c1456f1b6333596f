//! How fast continuous queries are, beside Apache Flink: `cargo bench --bench streaming`.
//!
//! Nexmark's queries of `examples/nexmark`, each over the same stored events, and each compared with the same SELECT run
//! once: a different result ends the bench with an error. Names of works as arguments run only those:
//! `cargo bench --bench streaming -- q0 q3 latency --quick`. What is compared, and how fair that is, says
//! `src/docs/benchmarks.md`.

#![allow(clippy::disallowed_methods, reason = "it measures real time, files and processes; nothing here is simulated")]

#[path = "streaming/compare.rs"]
mod compare;
#[path = "streaming/end_to_end.rs"]
mod end_to_end;
#[path = "streaming/events.rs"]
mod events;
#[path = "peer/flink.rs"]
mod flink;
mod kit;
#[path = "streaming/latency.rs"]
mod latency;
#[path = "streaming/many.rs"]
mod many;
#[path = "streaming/queries.rs"]
mod queries;

use clap::Parser;
use kit::report::Report;
use std::time::Duration;

/// How fast continuous queries are.
#[derive(Debug, Parser)]
pub(crate) struct Options {
    /// What is measured: q0 to q22, latency, end_to_end, many; without any, all
    works: Vec<String>,
    /// A fifth of the events
    #[arg(long)]
    quick: bool,
    /// Events that the queries read [default: 1000000]
    #[arg(long)]
    events: Option<usize>,
    /// No Flink
    #[arg(long)]
    alone: bool,
}

impl Options {
    /// How many events the queries read.
    pub(crate) fn events(&self) -> usize {
        self.events.unwrap_or(if self.quick { 200_000 } else { 1_000_000 })
    }

    /// How long a measure that runs for a time runs.
    pub(crate) fn time(&self) -> Duration {
        Duration::from_secs(if self.quick { 3 } else { 15 })
    }

    fn is_asked(&self, work: &str) -> bool {
        self.works.is_empty() || self.works.iter().any(|asked| asked == work)
    }
}

// One thread: the client must leave the cores to what it measures.
#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    let options = Options::parse_from(kit::arguments());
    let queries = queries::load()?;
    let names = queries.iter().map(|query| query.name.as_str()).chain(["latency", "end_to_end", "many"]);
    let known: Vec<&str> = names.collect();
    for work in &options.works {
        anyhow::ensure!(known.contains(&work.as_str()), "there is no \"{work}\"; there are {}", known.join(", "));
    }
    let mut report = Report::default();
    let asked: Vec<_> = queries.iter().filter(|query| options.is_asked(&query.name)).collect();
    let mut is_right = true;
    if !asked.is_empty() {
        is_right = queries::run(&mut report, &options, &asked).await?;
    }
    for work in ["latency", "end_to_end", "many"].into_iter().filter(|work| options.is_asked(work)) {
        let result = match work {
            "latency" => latency::run(&mut report, options.time()).await,
            "end_to_end" => end_to_end::run(&mut report, options.events()).await,
            _ => many::run(&mut report, options.time()).await,
        };
        // One work that fails must not cost the figures of the others.
        if let Err(error) = result {
            is_right = false;
            report.note(format!("{work}: not measured: {error:#}"));
        }
    }
    println!("{report}");
    anyhow::ensure!(is_right, "a query failed, or its result is not that of the same SELECT run once");
    Ok(())
}
