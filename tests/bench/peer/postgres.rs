//! PostgreSQL as a peer, when its server is installed: a cluster of its own, with its defaults, on the same disk.

use crate::kit::process::{Process, free_address};
use crate::kit::server::{connect, directory};
use anyhow::{Context as _, bail};
use std::fs;
use std::net::SocketAddr;
use std::os::unix::fs::{MetadataExt as _, chown};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;
use tempfile::TempDir;
use tokio_postgres::Client;

/// A running PostgreSQL; stopped when dropped.
#[derive(Debug)]
pub(crate) struct Postgres {
    _process: Process,
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
    /// Starts one.
    pub(crate) fn start() -> anyhow::Result<Self> {
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
        let address = free_address()?;
        let mut server = command(&programs, "postgres", identity);
        server.arg("-D").arg(&data);
        server.args(["-p", &address.port().to_string(), "-c", "listen_addresses=127.0.0.1"]);
        server.args(["-c", "synchronous_commit=on", "-c", "unix_socket_directories=", "-c", "max_connections=200"]);
        // SIGINT is its fast stop; a kill alone would leave its children behind for a while.
        let mut process = Process::start(server.stderr(Stdio::null()), "-INT")?;
        process.wait_until_listening(address)?;
        // It listens before it is ready.
        let mut ready = Command::new(programs.join("pg_isready"));
        ready.args(["-q", "-t", "30", "-h", "127.0.0.1", "-p", &address.port().to_string()]);
        while !ready.status()?.success() {
            thread::sleep(Duration::from_millis(20));
        }
        Ok(Self { _process: process, address, _dir: dir })
    }

    /// Where it listens, and for whom.
    pub(crate) fn address(&self) -> (SocketAddr, &'static str) {
        (self.address, "bench")
    }

    /// A client of it.
    pub(crate) async fn client(&self) -> anyhow::Result<Client> {
        connect(self.address, "bench").await
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
