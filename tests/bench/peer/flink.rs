//! Apache Flink SQL in one process with its task manager: a job of `tests/bench/flink/Nexmark.java` for each query.
//!
//! The jars are those `tests/bench/flink.sh` fetched. Each job is a process of its own, so that its memory is its own.

use anyhow::Context as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

const JOB: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/bench/flink/Nexmark.java");
const QUERIES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/bench/flink/queries.sql");

/// Where a job's events are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Input {
    /// In its own rows, in its memory.
    Memory,
    /// In files of csv.
    Files,
}

impl Input {
    /// Its name in the table.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Memory => "Flink from memory",
            Self::Files => "Flink from files",
        }
    }
}

/// What a query took.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Figures {
    /// From begin to end.
    pub(crate) seconds: f64,
    /// Of processor time, of all threads.
    pub(crate) core_seconds: f64,
    /// Of memory at its peak; of Flink's without the events that were there before.
    pub(crate) mebibytes: f64,
}

/// A Flink that is there.
#[derive(Debug)]
pub(crate) struct Flink {
    class_path: String,
    events: PathBuf,
}

impl Flink {
    /// Finds it, and compiles its job; `events` has the csv of each stream when a job runs.
    pub(crate) fn find(events: &Path) -> anyhow::Result<Self> {
        let jars = Path::new(env!("CARGO_TARGET_TMPDIR")).join("flink");
        let mut names = fs::read_dir(&jars).into_iter().flatten().filter_map(Result::ok);
        let is_there = names.any(|name| name.file_name().to_string_lossy().starts_with("flink-dist-"));
        anyhow::ensure!(is_there, "tests/bench/flink.sh fetches it");
        let classes = events.join("flink");
        let jars = jars.join("*");
        let compile = Command::new("javac").arg("-cp").arg(&jars).arg("-d").arg(&classes).arg(JOB).output();
        let compile = compile.context("its job needs Debian's default-jdk-headless")?;
        anyhow::ensure!(compile.status.success(), "{}", String::from_utf8_lossy(&compile.stderr).trim());
        let class_path = format!("{}:{}", classes.display(), jars.display());
        Ok(Self { class_path, events: events.to_owned() })
    }

    /// Runs a query over all events.
    pub(crate) fn run(&self, query: &str, input: Input) -> anyhow::Result<Figures> {
        let input = match input {
            Input::Memory => "memory",
            Input::Files => "files",
        };
        let output = Command::new("java")
            .args(["-Xmx4g", "-Dlog4j2.level=OFF", "-cp", &self.class_path, "Nexmark", QUERIES, query, input])
            .arg(&self.events)
            .output()
            .context("no java")?;
        let (said, errors) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        let last = said.lines().find_map(|line| line.strip_prefix("ok "));
        let last = last.with_context(|| errors.lines().next().unwrap_or("it ended").to_owned())?;
        let figures: Vec<f64> = last.split(' ').map(str::parse).collect::<Result<_, _>>()?;
        let [seconds, core_seconds, mebibytes] = figures[..] else { anyhow::bail!("not three figures: {last}") };
        Ok(Figures { seconds, core_seconds, mebibytes })
    }
}
