//! PostgreSQL as a peer, when its server is installed: a cluster of its own, with its defaults, on the same disk.

use crate::report::Report;
use crate::server::{connect, directory};
use anyhow::{Context as _, bail};
use std::fs;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::os::unix::fs::{MetadataExt as _, chown};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use tempfile::TempDir;
use tokio_postgres::Client;

const START_TIME_MAX: Duration = Duration::from_secs(30);

/// A running PostgreSQL; stopped when dropped.
#[derive(Debug)]
pub(crate) struct Postgres {
    process: Child,
    address: SocketAddr,
    _dir: TempDir,
}

/// The user PostgreSQL runs as when this is root, which it refuses.
#[derive(Debug, Clone, Copy)]
struct Identity {
    user: u32,
    group: u32,
}

impl Postgres {
    /// Starts one; `None`, with a note, when that cannot be.
    pub(crate) async fn start(report: &mut Report) -> anyhow::Result<Option<Self>> {
        match Self::launch().await {
            Ok(postgres) => Ok(Some(postgres)),
            Err(error) => {
                report.note(format!("PostgreSQL is not compared: {error:#}"));
                Ok(None)
            }
        }
    }

    async fn launch() -> anyhow::Result<Self> {
        let programs = programs()?;
        let identity = identity()?;
        let dir = directory_for(identity)?;
        let data = dir.path().join("postgres");
        let init = command(&programs, "initdb", identity)
            .args(["--auth=trust", "--username=bench", "--encoding=UTF8", "--locale=C", "-D"])
            .arg(&data)
            .stdout(Stdio::null())
            .status()?;
        anyhow::ensure!(init.success(), "initdb failed");
        let port = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port();
        let process = command(&programs, "postgres", identity)
            .arg("-D")
            .arg(&data)
            .args(["-p", &port.to_string(), "-c", "synchronous_commit=on", "-c", "listen_addresses=127.0.0.1"])
            .args(["-c", "unix_socket_directories=", "-c", "max_connections=200"])
            .stderr(Stdio::null())
            .spawn()?;
        let postgres = Self { process, address: SocketAddr::from((Ipv4Addr::LOCALHOST, port)), _dir: dir };
        let begin = Instant::now();
        while postgres.client().await.is_err() {
            anyhow::ensure!(begin.elapsed() < START_TIME_MAX, "it does not take clients");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        Ok(postgres)
    }

    /// A client of it.
    pub(crate) async fn client(&self) -> anyhow::Result<Client> {
        connect(self.address, "bench").await
    }

    /// A client that finds an empty table.
    pub(crate) async fn client_with_table(&self) -> anyhow::Result<Client> {
        let client = self.client().await?;
        client.batch_execute(&format!("DROP TABLE IF EXISTS flights; {}", crate::flights::create_table())).await?;
        Ok(client)
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        // SIGINT is its fast stop; a kill alone would leave its children behind for a while.
        let _ = Command::new("kill").args(["-INT", &self.process.id().to_string()]).status();
        let _ = self.process.wait();
    }
}

/// The directory of the newest installed server's programs.
fn programs() -> anyhow::Result<PathBuf> {
    let versions = fs::read_dir("/usr/lib/postgresql").context("no server in /usr/lib/postgresql")?;
    let mut found: Vec<(u32, PathBuf)> = versions
        .filter_map(Result::ok)
        .filter_map(|version| Some((version.file_name().to_str()?.parse().ok()?, version.path().join("bin"))))
        .filter(|(_, path)| path.join("initdb").exists())
        .collect();
    found.sort();
    found.pop().map(|(_, path)| path).context("no server in /usr/lib/postgresql")
}

fn identity() -> anyhow::Result<Option<Identity>> {
    if fs::metadata("/proc/self")?.uid() != 0 {
        return Ok(None);
    }
    let users = fs::read_to_string("/etc/passwd")?;
    let line = users.lines().find(|line| line.starts_with("postgres:")).context("there is no user \"postgres\"")?;
    let mut fields = line.split(':').skip(2);
    let mut number = || fields.next().and_then(|field| field.parse().ok()).context("no ids of \"postgres\"");
    Ok(Some(Identity { user: number()?, group: number()? }))
}

fn command(programs: &Path, name: &str, identity: Option<Identity>) -> Command {
    let mut command = Command::new(programs.join(name));
    command.current_dir("/");
    if let Some(Identity { user, group }) = identity {
        command.uid(user).gid(group);
    }
    command
}

/// A directory the peer can use, on the disk the server uses.
fn directory_for(identity: Option<Identity>) -> anyhow::Result<TempDir> {
    let own = directory()?;
    let Some(identity) = identity else { return Ok(own) };
    let device = fs::metadata(own.path())?.dev();
    let elsewhere = |parent: &str| tempfile::Builder::new().prefix("bench-").tempdir_in(parent);
    let candidates = [Ok(own), elsewhere("/var/tmp"), elsewhere("/tmp")];
    for dir in candidates.into_iter().filter_map(Result::ok) {
        chown(dir.path(), Some(identity.user), Some(identity.group))?;
        let is_reachable = command(Path::new("/usr/bin"), "test", Some(identity)).arg("-w").arg(dir.path()).status()?;
        if is_reachable.success() && fs::metadata(dir.path())?.dev() == device {
            return Ok(dir);
        }
    }
    bail!("user \"postgres\" reaches no directory on the disk that holds the build")
}
