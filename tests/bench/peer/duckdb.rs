//! DuckDB over Parquet files, in a Python process: what `tests/bench/duckdb.sh` fetched, else what `python3` has.

use anyhow::Context as _;
use serde_json::{Value, json};
use std::io::{BufRead as _, BufReader, Lines, Write as _};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

const LOAD: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/bench/duckdb/load.py");

/// A running DuckDB.
#[derive(Debug)]
pub(crate) struct Duckdb {
    process: Child,
    commands: ChildStdin,
    answers: Lines<BufReader<ChildStdout>>,
}

impl Duckdb {
    /// Starts one.
    pub(crate) fn start() -> anyhow::Result<Self> {
        let own = Path::new(env!("CARGO_TARGET_TMPDIR")).join("duckdb/bin/python");
        let python = if own.exists() { own } else { "python3".into() };
        let mut process = Command::new(python)
            .arg(LOAD)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .context("no python")?;
        let commands = process.stdin.take().context("no standard input")?;
        let answers = BufReader::new(process.stdout.take().context("no standard output")?).lines();
        let mut duckdb = Self { process, commands, answers };
        duckdb.query("SELECT 1").context("tests/bench/duckdb.sh fetches it")?;
        Ok(duckdb)
    }

    /// Makes a Parquet file beside a file of csv, and a view of this name on it.
    pub(crate) fn load(&mut self, name: &str, columns: &[(&str, &str)], csv: &Path) -> anyhow::Result<()> {
        let parquet = csv.with_extension("parquet");
        self.ask(&json!({ "load": name, "columns": columns, "csv": csv, "parquet": parquet })).map(drop)
    }

    /// Runs a query: its time in milliseconds, and its rows as text.
    pub(crate) fn query(&mut self, query: &str) -> anyhow::Result<(f64, Vec<String>)> {
        let answer = self.ask(&json!({ "query": query }))?;
        let millis = answer["millis"].as_f64().context("no time")?;
        let rows = answer["rows"].as_array().context("no rows")?;
        Ok((millis, rows.iter().filter_map(Value::as_str).map(str::to_owned).collect()))
    }

    fn ask(&mut self, command: &Value) -> anyhow::Result<Value> {
        writeln!(self.commands, "{command}")?;
        self.commands.flush()?;
        let answer: Value = serde_json::from_str(&self.answers.next().context("it ended")??)?;
        match answer.get("error") {
            Some(error) => anyhow::bail!("{error}"),
            None => Ok(answer),
        }
    }
}

impl Drop for Duckdb {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
