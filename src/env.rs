//! The seam to the world: clock, tasks and threads. Files have their own seam, `storage::disk`.
//!
//! Owns the only calls to the system clock and to task spawning, so that a whole node can run under
//! simulated time. Leaves out randomness (nothing of ours needs it) and sockets (the server's listeners).

use millstream_catalog::model::Timestamp;
use std::fmt;
use std::future::Future;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use tokio::runtime::{Handle, RuntimeFlavor};
use tokio::task::JoinHandle;

/// How long a thread waits for another to take its place.
const PLACE_TAKEN_MAX: Duration = Duration::from_millis(10);

/// Where the time comes from.
pub trait Clock: Send + Sync + fmt::Debug + 'static {
    /// Wall-clock time; may step back.
    fn now(&self) -> Timestamp;
}

/// The machine's clock.
#[derive(Debug, Clone, Copy, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    #[expect(clippy::disallowed_methods, reason = "the seam itself")]
    fn now(&self) -> Timestamp {
        let micros = match SystemTime::now().duration_since(UNIX_EPOCH) {
            Ok(after) => i64::try_from(after.as_micros()).unwrap_or(i64::MAX),
            Err(before) => i64::try_from(before.duration().as_micros()).map_or(i64::MIN, |m| -m),
        };
        Timestamp::from_micros(micros)
    }
}

/// The clock of this process, shared.
pub fn system_clock() -> Arc<dyn Clock> {
    Arc::new(SystemClock)
}

/// A monotonic reading, for durations in metrics and deadlines.
#[expect(clippy::disallowed_methods, reason = "the seam itself")]
pub fn instant() -> Instant {
    Instant::now()
}

/// Time since `start`.
pub fn elapsed(start: Instant) -> Duration {
    instant().saturating_duration_since(start)
}

/// Starts a task on the current runtime. `name` appears in traces.
#[expect(clippy::disallowed_methods, reason = "the seam itself")]
pub fn spawn<F>(name: &'static str, future: F) -> JoinHandle<F::Output>
where
    F: Future + Send + 'static,
    F::Output: Send + 'static,
{
    use tracing::Instrument as _;
    tokio::spawn(future.instrument(tracing::debug_span!("task", name)))
}

/// Runs blocking or long work on the runtime's blocking threads.
#[expect(clippy::disallowed_methods, reason = "the seam itself")]
pub fn spawn_blocking<F, R>(work: F) -> JoinHandle<R>
where
    F: FnOnce() -> R + Send + 'static,
    R: Send + 'static,
{
    tokio::task::spawn_blocking(work)
}

/// Starts a named thread.
///
/// # Errors
/// When the system has no more threads.
#[expect(clippy::disallowed_methods, reason = "the seam itself")]
pub fn thread<F>(name: &str, work: F) -> std::io::Result<std::thread::JoinHandle<()>>
where
    F: FnOnce() + Send + 'static,
{
    std::thread::Builder::new().name(name.to_owned()).spawn(work)
}

/// Whether a task that came from outside waits for a thread of this runtime.
pub fn is_place_wanted() -> bool {
    Handle::try_current().is_ok_and(|runtime| runtime.metrics().global_queue_depth() > 0)
}

/// Hands the place of this thread in its runtime to another, which goes on with the tasks that wait for it, while this one
/// stays with its task. Returns when a task that came last was run.
pub fn give_up_place() {
    let Ok(runtime) = Handle::try_current() else { return };
    if runtime.runtime_flavor() != RuntimeFlavor::MultiThread {
        return;
    }
    tokio::task::block_in_place(|| {
        let (send, receive) = std::sync::mpsc::sync_channel(1);
        runtime.spawn(async move { send.send(()) });
        // An error is that the runtime stops, or that the machine is too busy to wait longer.
        let _ = receive.recv_timeout(PLACE_TAKEN_MAX);
    });
}

/// Starts a runtime of its own with `threads` named threads.
///
/// # Errors
/// When the system has no more threads.
pub fn runtime(name: &str, threads: usize, stack_bytes: usize) -> std::io::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(threads)
        .thread_name(name.to_owned())
        .thread_stack_size(stack_bytes)
        .enable_all()
        .build()
}

/// Names of the environment's variables, those that are text.
pub fn variables() -> impl Iterator<Item = String> {
    std::env::vars_os().filter_map(|(name, _)| name.into_string().ok())
}

/// A text file named by the user of this process: configuration, statements, copy data.
///
/// # Errors
/// The system's, or that it is not UTF-8.
pub fn read_text(path: &std::path::Path) -> std::io::Result<String> {
    std::fs::read_to_string(path)
}

/// Processors this process may use.
pub fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, std::num::NonZero::get)
}

/// Bytes of memory this process may use: the machine's, or what its control groups leave it.
pub fn memory_bytes() -> Option<u64> {
    let read = |path: &str| std::fs::read_to_string(path).ok();
    let machine = field_bytes(&read("/proc/meminfo")?, "MemTotal:")?;
    let groups = read("/proc/self/cgroup").unwrap_or_default();
    let limits = group_limits(&groups).into_iter().filter_map(|path| read(&path)?.trim().parse().ok());
    Some(limits.fold(machine, u64::min))
}

/// Memory of this process that is in the machine: of its own, and of mapped files.
pub fn resident_bytes() -> Option<(u64, u64)> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    Some((field_bytes(&status, "RssAnon:")?, field_bytes(&status, "RssFile:")?))
}

/// A value in kB of a file of /proc.
fn field_bytes(text: &str, name: &str) -> Option<u64> {
    let value = text.lines().find_map(|line| line.strip_prefix(name))?;
    value.trim().strip_suffix(" kB")?.parse::<u64>().ok().map(|kilobytes| kilobytes * 1024)
}

/// The files with the limits of the groups in a /proc/self/cgroup, of either version, and of the groups they are in.
fn group_limits(groups: &str) -> Vec<String> {
    let mut paths = Vec::new();
    for line in groups.lines() {
        let mut parts = line.splitn(3, ':').skip(1);
        let (Some(controllers), Some(group)) = (parts.next(), parts.next()) else { continue };
        let (root, file) = match controllers {
            "" => ("/sys/fs/cgroup", "memory.max"),
            "memory" => ("/sys/fs/cgroup/memory", "memory.limit_in_bytes"),
            _ => continue,
        };
        let above = std::path::Path::new(group).ancestors();
        paths.extend(above.map(|group| format!("{root}{}/{file}", group.display()).replace("//", "/")));
    }
    paths
}

/// A variable of the environment, if it is set and text.
pub fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok()
}

/// A file that the user of this process named, in the shell.
pub type UserFile = std::fs::File;

/// A file that the user of this process asked to write: the shell's output.
///
/// # Errors
/// The system's.
pub fn create_file(path: &std::path::Path) -> std::io::Result<UserFile> {
    std::fs::OpenOptions::new().write(true).create(true).truncate(true).open(path)
}

/// A file that the user of this process asked to read: copy data.
///
/// # Errors
/// The system's.
pub fn open_file(path: &std::path::Path) -> std::io::Result<UserFile> {
    std::fs::OpenOptions::new().read(true).open(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_of_a_group_and_of_those_it_is_in_count() {
        let paths = group_limits("0::/a/b\n5:memory:/c\n3:cpu:/d\nnothing\n");
        let expected = [
            "/sys/fs/cgroup/a/b/memory.max",
            "/sys/fs/cgroup/a/memory.max",
            "/sys/fs/cgroup/memory.max",
            "/sys/fs/cgroup/memory/c/memory.limit_in_bytes",
            "/sys/fs/cgroup/memory/memory.limit_in_bytes",
        ];
        assert_eq!(paths, expected);
        assert_eq!(field_bytes("A: 1 kB\nRssAnon:\t     300 kB\n", "RssAnon:"), Some(300 << 10));
    }
}
