//! Processes that are measured: their ports, their memory, their end.

use anyhow::Context as _;
use std::fs;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::process::{Child, Command};
use std::thread;
use std::time::{Duration, Instant};

const START_TIME_MAX: Duration = Duration::from_secs(60);
const SETTLE_TIME_MAX: Duration = Duration::from_secs(60);
const SETTLE_LOOK: Duration = Duration::from_millis(500);
/// `USER_HZ`: the unit of times in `/proc`, the same on all of Linux's platforms of today.
const TICKS_PER_SECOND: f64 = 100.0;

/// A process that ends when this is dropped.
#[derive(Debug)]
pub(crate) struct Process {
    child: Child,
    /// Of `kill`, for a stop in order.
    signal: &'static str,
}

impl Process {
    /// Starts a command; `signal` will end it.
    pub(crate) fn start(command: &mut Command, signal: &'static str) -> anyhow::Result<Self> {
        let child = command.spawn().with_context(|| format!("{} does not start", command.get_program().display()))?;
        Ok(Self { child, signal })
    }

    /// Waits until it listens on `address`.
    pub(crate) fn wait_until_listening(&mut self, address: SocketAddr) -> anyhow::Result<()> {
        let begin = Instant::now();
        while TcpStream::connect(address).is_err() {
            anyhow::ensure!(self.child.try_wait()?.is_none(), "it ended at once");
            anyhow::ensure!(begin.elapsed() < START_TIME_MAX, "it does not take clients");
            thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }

    /// Its number.
    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = Command::new("kill").args([self.signal, &self.child.id().to_string()]).status();
        let _ = self.child.wait();
    }
}

/// An address that nothing listens on.
pub(crate) fn free_address() -> anyhow::Result<SocketAddr> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?)
}

/// Whether a program is installed.
pub(crate) fn is_installed(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|dir| dir.join(program).is_file())
}

/// Processor time of a process, of all its threads.
pub(crate) fn cpu_seconds(process: u32) -> anyhow::Result<f64> {
    let stat = fs::read_to_string(format!("/proc/{process}/stat"))?;
    // The name in parentheses may hold spaces; user and system time are the 12th and 13th field after it.
    let (_, fields) = stat.rsplit_once(") ").context("no fields")?;
    let ticks: Vec<f64> = fields.split(' ').skip(11).take(2).filter_map(|field| field.parse().ok()).collect();
    Ok(ticks.iter().sum::<f64>() / TICKS_PER_SECOND)
}

/// Waits until a process has no more to do than an idle one: what a start leaves to the background is done.
pub(crate) async fn settle(process: u32) -> anyhow::Result<()> {
    let begin = Instant::now();
    let mut seconds = cpu_seconds(process)?;
    while begin.elapsed() < SETTLE_TIME_MAX {
        tokio::time::sleep(SETTLE_LOOK).await;
        let before = std::mem::replace(&mut seconds, cpu_seconds(process)?);
        if seconds - before < SETTLE_LOOK.as_secs_f64() / 20.0 {
            return Ok(());
        }
    }
    anyhow::bail!("it does not come to rest")
}

/// Resident memory of a process.
pub(crate) fn resident_mebibytes(process: u32) -> anyhow::Result<f64> {
    memory_mebibytes(process, "VmRSS:")
}

/// The most resident memory a process has had.
pub(crate) fn peak_mebibytes(process: u32) -> anyhow::Result<f64> {
    memory_mebibytes(process, "VmHWM:")
}

/// Lets a process's peak begin again with what is resident now.
pub(crate) fn forget_peak(process: u32) -> anyhow::Result<()> {
    fs::write(format!("/proc/{process}/clear_refs"), "5").context("its peak cannot be reset")
}

/// Resident memory of a process that is not a mapped file's.
pub(crate) fn own_mebibytes(process: u32) -> anyhow::Result<f64> {
    memory_mebibytes(process, "RssAnon:")
}

/// Resident pages of files that a process has mapped.
pub(crate) fn mapped_mebibytes(process: u32) -> anyhow::Result<f64> {
    memory_mebibytes(process, "RssFile:")
}

/// Lets this process, and those it starts, have so many open files.
///
/// # Errors
/// When the system does not let it: says what would.
pub(crate) fn raise_open_files(needed: usize) -> anyhow::Result<()> {
    let (soft, hard) = open_files()?;
    if soft >= needed {
        return Ok(());
    }
    anyhow::ensure!(
        hard >= needed,
        "{needed} open files are needed, and the system allows {hard}: begin with `ulimit -Hn {needed}` as root"
    );
    // Of util-linux; a call of the system by itself would be unsafe code.
    let (limit, process) = (format!("--nofile={needed}:{hard}"), std::process::id().to_string());
    let done = Command::new("prlimit").args([limit.as_str(), "--pid", process.as_str()]).status();
    let is_raised = done.is_ok_and(|status| status.success()) && open_files()?.0 >= needed;
    anyhow::ensure!(is_raised, "{needed} open files are needed, and {soft} allowed: begin with `ulimit -Sn {needed}`");
    Ok(())
}

/// How many files this process may open, and how far that may be raised.
fn open_files() -> anyhow::Result<(usize, usize)> {
    let limits = fs::read_to_string("/proc/self/limits")?;
    let line = limits.lines().find_map(|line| line.strip_prefix("Max open files")).context("no limit of open files")?;
    let mut words = line.split_whitespace().map(|word| word.parse().unwrap_or(usize::MAX));
    Ok((words.next().context("no soft limit")?, words.next().context("no hard limit")?))
}

fn memory_mebibytes(process: u32, field: &str) -> anyhow::Result<f64> {
    let status = fs::read_to_string(format!("/proc/{process}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix(field)).with_context(|| format!("no {field}"))?;
    let kibibytes: f64 = line.trim().trim_end_matches(" kB").parse()?;
    Ok(kibibytes / 1024.0)
}
