//! Apache Kafka: one broker (KRaft), and its own Java client, which does each turn when it is told to.
//!
//! The jars are those `tests/bench/kafka.sh` fetched. The client is one process for the whole run, so that it is warm.

use crate::kit::process::{Process, free_address};
use crate::kit::server::directory;
use anyhow::{Context as _, bail};
use std::fs;
use std::io::{BufRead as _, BufReader, Lines, Write as _};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use tempfile::TempDir;

const LOAD: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/bench/kafka/Load.java");
const CLUSTER: &str = "AAAAAAAAAAAAAAAAAAAAAQ";

/// When a topic is synced.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Flush {
    /// When the kernel likes: Kafka's default.
    Default,
    /// `flush.messages=1`: before a batch is acknowledged.
    Always,
}

impl Flush {
    /// Its name in the table.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Default => "Kafka (default flush: never synced)",
            Self::Always => "Kafka (flush.messages=1)",
        }
    }
}

/// A running broker with its client.
#[derive(Debug)]
pub(crate) struct Kafka {
    load: Child,
    commands: ChildStdin,
    answers: Lines<BufReader<ChildStdout>>,
    _broker: Process,
    _dir: TempDir,
}

impl Kafka {
    /// Starts both.
    pub(crate) fn start() -> anyhow::Result<Self> {
        let jars = jars()?;
        let dir = directory()?;
        let (address, controller) = (free_address()?, free_address()?);
        let config = dir.path().join("server.properties");
        fs::write(&config, properties(dir.path(), address, controller))?;
        let format = java(&jars)
            .args(["kafka.tools.StorageTool", "format", "-t", CLUSTER, "-c"])
            .arg(&config)
            .output()
            .context("no java")?;
        anyhow::ensure!(format.status.success(), "{}", String::from_utf8_lossy(&format.stderr).trim());
        // The heap of Kafka's own start script.
        let mut command = java(&jars);
        command.args(["-Xms1G", "-Xmx1G", "kafka.Kafka"]).arg(&config).stdout(Stdio::null()).stderr(Stdio::null());
        let mut broker = Process::start(&mut command, "-TERM")?;
        broker.wait_until_listening(address)?;
        let mut load = java(&jars)
            .args(["-Xms256M", "-Xmx2G", LOAD, &address.to_string()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()?;
        let commands = load.stdin.take().context("no standard input")?;
        let answers = BufReader::new(load.stdout.take().context("no standard output")?).lines();
        let mut kafka = Self { load, commands, answers, _broker: broker, _dir: dir };
        kafka.ask("ready").context("its client needs Debian's default-jdk-headless")?;
        Ok(kafka)
    }

    /// Makes a topic of one partition.
    pub(crate) fn create(&mut self, topic: &str, flush: Flush) -> anyhow::Result<()> {
        self.create_partitioned(topic, flush, 1)
    }

    /// Makes a topic.
    pub(crate) fn create_partitioned(&mut self, topic: &str, flush: Flush, partitions: usize) -> anyhow::Result<()> {
        let messages = match flush {
            Flush::Default => "default",
            Flush::Always => "1",
        };
        self.ask(&format!("create {topic} {messages} {partitions}")).map(drop)
    }

    /// Has the client carry out a command of `Load.java`; the numbers it answers.
    pub(crate) fn ask(&mut self, command: &str) -> anyhow::Result<Vec<f64>> {
        writeln!(self.commands, "{command}")?;
        self.commands.flush()?;
        let answer = self.answers.next().context("its client ended")??;
        let Some(numbers) = answer.strip_prefix("ok") else { bail!("{command}: {answer}") };
        numbers.split_whitespace().map(|number| number.parse().context("no number")).collect()
    }
}

impl Drop for Kafka {
    fn drop(&mut self) {
        let _ = self.load.kill();
        let _ = self.load.wait();
    }
}

/// The directory of the jars.
fn jars() -> anyhow::Result<PathBuf> {
    let jars = Path::new(env!("CARGO_TARGET_TMPDIR")).join("kafka");
    let mut names = fs::read_dir(&jars).into_iter().flatten().filter_map(Result::ok);
    let is_there = names.any(|name| name.file_name().to_string_lossy().starts_with("kafka_2.13-"));
    anyhow::ensure!(is_there, "tests/bench/kafka.sh fetches it");
    Ok(jars)
}

fn java(jars: &Path) -> Command {
    let mut command = Command::new("java");
    command.arg("-Dorg.slf4j.simpleLogger.defaultLogLevel=off");
    command.arg("-cp").arg(jars.join("*"));
    command
}

fn properties(dir: &Path, address: SocketAddr, controller: SocketAddr) -> String {
    format!(
        "process.roles=broker,controller\n\
         node.id=1\n\
         controller.quorum.voters=1@{controller}\n\
         listeners=PLAINTEXT://{address},CONTROLLER://{controller}\n\
         advertised.listeners=PLAINTEXT://{address}\n\
         controller.listener.names=CONTROLLER\n\
         log.dirs={}\n\
         offsets.topic.replication.factor=1\n\
         transaction.state.log.replication.factor=1\n\
         transaction.state.log.min.isr=1\n",
        dir.join("kafka").display()
    )
}
