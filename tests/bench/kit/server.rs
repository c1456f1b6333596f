//! A server as its own process, on a directory on the disk that holds the build.

use anyhow::{Context as _, bail};
use std::io::{BufRead as _, BufReader};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, ChildStderr, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};
use tempfile::TempDir;
use tokio_postgres::{Client, Config, NoTls};

/// A directory of this run's on the disk that holds the build; never in memory, as `/tmp` may be.
pub(crate) fn directory() -> anyhow::Result<TempDir> {
    tempfile::Builder::new().prefix("bench-").tempdir_in(env!("CARGO_TARGET_TMPDIR")).context("no directory")
}

/// A running server; killed when dropped.
#[derive(Debug)]
pub(crate) struct Server {
    process: Child,
    address: SocketAddr,
    /// From the start of the process until it takes clients.
    pub(crate) start_time: Duration,
}

impl Server {
    /// Starts a server on `dir`, and waits until it takes clients.
    pub(crate) fn start(dir: &Path) -> anyhow::Result<Self> {
        Self::start_with(dir, &[])
    }

    /// The same, with further options.
    pub(crate) fn start_with(dir: &Path, options: &[&str]) -> anyhow::Result<Self> {
        let begin = Instant::now();
        let mut process = Command::new(env!("CARGO_BIN_EXE_millstream"))
            .args(["start", "--listen", "127.0.0.1:0", "--admin-listen", "127.0.0.1:0", "--data-dir"])
            .arg(dir.join("data"))
            .args(options)
            .stderr(Stdio::piped())
            .spawn()
            .context("the server does not start")?;
        let stderr = process.stderr.take().context("the server has no standard error")?;
        let address = address_of(stderr)?;
        Ok(Self { process, address, start_time: begin.elapsed() })
    }

    /// Its process.
    pub(crate) fn process_id(&self) -> u32 {
        self.process.id()
    }

    /// Where it listens.
    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Where it listens, and for whom.
    pub(crate) fn sql_address(&self) -> (SocketAddr, &'static str) {
        (self.address, "millstream")
    }

    /// A client of it.
    pub(crate) async fn client(&self) -> anyhow::Result<Client> {
        connect(self.address, "millstream").await
    }

    /// Kills it: a crash.
    pub(crate) fn kill(mut self) -> anyhow::Result<()> {
        self.process.kill()?;
        self.process.wait()?;
        Ok(())
    }

    /// Stops it in order.
    pub(crate) fn stop(mut self) -> anyhow::Result<()> {
        let status = Command::new("kill").args(["-TERM", &self.process.id().to_string()]).status()?;
        anyhow::ensure!(status.success(), "the server could not be stopped");
        self.process.wait()?;
        Ok(())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// The address a server announces; what it says later is passed over.
fn address_of(stderr: ChildStderr) -> anyhow::Result<SocketAddr> {
    let mut lines = BufReader::new(stderr).lines();
    let mut said = String::new();
    while let Some(line) = lines.next().transpose()? {
        if let Some((_, rest)) = line.split_once("is ready: psql -h ") {
            let mut words = rest.split(' ');
            let (host, port) = (words.next().unwrap_or_default(), words.nth(1).unwrap_or_default());
            thread::spawn(move || lines.for_each(drop));
            return format!("{host}:{port}").parse().with_context(|| format!("no address in \"{line}\""));
        }
        said.push_str(&line);
        said.push('\n');
    }
    bail!("the server ended: {said}")
}

/// A client of a server of either kind.
pub(crate) async fn connect(address: SocketAddr, user: &str) -> anyhow::Result<Client> {
    let (client, connection) = config(address, user).connect(NoTls).await.context("cannot connect")?;
    tokio::spawn(connection);
    Ok(client)
}

/// How to connect to a server of either kind.
pub(crate) fn config(address: SocketAddr, user: &str) -> Config {
    let mut config = Config::new();
    config.host(address.ip().to_string()).port(address.port()).user(user).dbname("postgres");
    config
}
