//! Real processes, killed: what was acknowledged is there once and in order, and continuous results equal bounded ones.
//!
//! Writers send numbered events until the server dies under them. What a writer was told is kept outside of the
//! server; after each restart the stored events are compared with it. Rounds: ten, or `MILLSTREAM_CRASH_ROUNDS`.
//! A kill says nothing about syncing: that is for the tests on a disk that forgets.

use crate::common::{DEADLINE, connect};
use std::io::{BufRead, BufReader, Read};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, mpsc};
use tokio_postgres::{Client, NoTls, SimpleQueryMessage};

const WRITERS: usize = 4;

/// A server in a process of its own.
pub(crate) struct Process {
    child: Child,
    pub(crate) address: SocketAddr,
}

fn command(dir: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_millstream"));
    command.args(["start", "--listen", "127.0.0.1:0", "--admin-listen", "127.0.0.1:0", "--data-dir"]);
    command.arg(dir).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("MILLSTREAM_")) {
        command.env_remove(name);
    }
    command
}

/// The address in `… psql -h 127.0.0.1 -p 40123 …`.
fn ready_address(line: &str) -> Option<SocketAddr> {
    let rest = line.split("psql -h ").nth(1)?;
    let mut words = rest.split_whitespace();
    let host = words.next()?;
    let port = words.nth(1)?;
    format!("{host}:{port}").parse().ok()
}

impl Process {
    pub(crate) fn start(dir: &Path) -> Self {
        Self::start_with(dir, &[])
    }

    pub(crate) fn start_with(dir: &Path, options: &[&str]) -> Self {
        Self::spawn(command(dir).args(options))
    }

    fn spawn(command: &mut Command) -> Self {
        let mut child = command.spawn().unwrap();
        let stderr = BufReader::new(child.stderr.take().unwrap());
        let (tx, rx) = mpsc::sync_channel(64);
        // Reads on, so that the server never waits for a full pipe.
        std::thread::spawn(move || {
            for line in stderr.lines().map_while(Result::ok) {
                drop(tx.try_send(line));
            }
        });
        let mut said = Vec::new();
        let mut process = Self { child, address: SocketAddr::from(([127, 0, 0, 1], 0)) };
        while process.address.port() == 0 {
            let line = rx.recv_timeout(DEADLINE).unwrap_or_else(|_| panic!("not ready; it said {said:?}"));
            match ready_address(&line) {
                Some(address) => process.address = address,
                None => said.push(line),
            }
        }
        process
    }

    /// Bytes of memory the process has.
    pub(crate) fn resident_bytes(&self) -> u64 {
        let statm = std::fs::read_to_string(format!("/proc/{}/statm", self.child.id())).unwrap();
        statm.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() * 4096
    }

    pub(crate) fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// Runs `command` to its end: exit code and what it said on stderr.
fn run_to_end(mut command: Command) -> (Option<i32>, String) {
    let mut child = command.spawn().unwrap();
    let mut stderr = child.stderr.take().unwrap();
    let (tx, rx) = mpsc::sync_channel(1);
    std::thread::spawn(move || {
        let mut text = String::new();
        drop(stderr.read_to_string(&mut text));
        drop(tx.send(text));
    });
    let text = rx.recv_timeout(DEADLINE);
    if text.is_err() {
        drop(child.kill());
    }
    let code = child.wait().unwrap().code();
    (code, text.expect("it ends by itself"))
}

/// What one writer sent and was told; numbers begin at 1 and are sent in order, each at most once.
#[derive(Debug, Default)]
struct Told {
    /// The last number sent.
    sent: AtomicU64,
    /// What each statement sent, first and last.
    statements: parking_lot::Mutex<Vec<(u64, u64)>>,
    /// The acknowledged ranges, first and last.
    acknowledged: parking_lot::Mutex<Vec<(u64, u64)>>,
}

/// Events acknowledged in a round.
#[derive(Debug, Default)]
struct Total {
    count: AtomicU64,
    grew: tokio::sync::Notify,
}

async fn connect_if_alive(address: SocketAddr) -> Option<Client> {
    let mut config = tokio_postgres::Config::new();
    config.host(address.ip().to_string()).port(address.port()).user("writer").dbname("millstream");
    let (client, connection) = config.connect(NoTls).await.ok()?;
    tokio::spawn(connection);
    Some(client)
}

/// Event time of a number: mostly forwards, a little out of order, well within the grace period.
fn event_millis(number: u64) -> i64 {
    let swing = (number * 7_919) % 4_000;
    i64::try_from(number * 500 + swing).unwrap()
}

/// Writes until the server is gone: single prepared INSERTs, INSERTs of several rows, and COPYs in turn.
async fn write(address: SocketAddr, writer: usize, told: Arc<Told>, total: Arc<Total>) -> Option<()> {
    let client = connect_if_alive(address).await?;
    let one = client.prepare("INSERT INTO events VALUES ($1, $2, $3)").await.ok()?;
    let id = i32::try_from(writer).unwrap();
    loop {
        let first = told.sent.load(Ordering::Relaxed) + 1;
        let count = match first % 5 {
            0 => 40,
            1 => 3,
            _ => 1,
        };
        let last = first + count - 1;
        told.sent.store(last, Ordering::Relaxed);
        told.statements.lock().push((first, last));
        let numbers = first..=last;
        match count {
            1 => {
                let n = i64::try_from(first).unwrap();
                client.execute(&one, &[&id, &n, &event_millis(first)]).await.ok()?;
            }
            3 => {
                let rows: Vec<String> = numbers.map(|n| format!("({id}, {n}, {})", event_millis(n))).collect();
                client.batch_execute(&format!("INSERT INTO events VALUES {}", rows.join(", "))).await.ok()?;
            }
            _ => {
                let sink = client.copy_in::<_, bytes::Bytes>("COPY events FROM STDIN WITH (FORMAT csv)").await.ok()?;
                let mut sink = Box::pin(sink);
                let text: String = numbers.map(|n| format!("{id},{n},{}\n", event_millis(n))).collect();
                futures::SinkExt::send(&mut sink, text.into()).await.ok()?;
                sink.as_mut().finish().await.ok()?;
            }
        }
        told.acknowledged.lock().push((first, last));
        total.count.fetch_add(count, Ordering::Relaxed);
        total.grew.notify_one();
    }
}

async fn rows(client: &Client, sql: &str) -> Vec<Vec<Option<String>>> {
    let messages = tokio::time::timeout(DEADLINE, client.simple_query(sql)).await.expect("an answer").unwrap();
    let row = |message| match message {
        SimpleQueryMessage::Row(row) => Some((0..row.len()).map(|i| row.get(i).map(str::to_owned)).collect()),
        _ => None,
    };
    messages.into_iter().filter_map(row).collect()
}

/// What the kills come upon.
fn definitions(durability: &str) -> String {
    format!(
        "CREATE STREAM events (writer integer KEY, n bigint, ms bigint)
         WITH (timestamp = 'ms', partitions = 3, durability = '{durability}');
         CREATE TABLE counts WITH (durability = '{durability}') AS
         SELECT writer, count(*) AS events, max(n) AS top, sum(n) AS total
         FROM events WINDOW TUMBLING (SIZE 10 SECONDS) GROUP BY writer EMIT CHANGES;
         CREATE STREAM copied WITH (durability = '{durability}') AS SELECT writer, n FROM events EMIT CHANGES;"
    )
}

/// Every acknowledged event is there once and in order, and nothing that was never sent.
async fn check_events(client: &Client, told: &[Arc<Told>], name: &str) {
    for (writer, told) in told.iter().enumerate() {
        let sql = format!("SELECT n FROM {name} WHERE writer = {writer} ORDER BY rowpartition, rowoffset");
        let numbers: Vec<u64> =
            rows(client, &sql).await.iter().map(|row| row[0].as_ref().unwrap().parse().unwrap()).collect();
        assert!(numbers.is_sorted_by(|a, b| a < b), "{name}, writer {writer}: twice or out of order");
        let sent = told.sent.load(Ordering::Relaxed);
        assert!(numbers.last().is_none_or(|last| *last <= sent), "{name}, writer {writer}: never sent");
        let there = |(first, last): (u64, u64)| {
            let from = numbers.partition_point(|n| *n < first);
            numbers[from..].iter().take_while(|n| **n <= last).count() as u64
        };
        for (first, last) in told.acknowledged.lock().iter().copied() {
            let there = there((first, last));
            assert_eq!(there, last - first + 1, "{name}, writer {writer}: {first} to {last} were acknowledged");
        }
        for (first, last) in told.statements.lock().iter().copied() {
            let there = there((first, last));
            let is_whole = there == 0 || there == last - first + 1;
            assert!(is_whole, "{name}, writer {writer}: {there} of {first} to {last}, a statement, are there");
        }
    }
}

/// The continuous results are those of a batch query.
async fn check_continuous(client: &Client) {
    rows(client, "FLUSH").await;
    let columns = "windowstart, windowend, writer";
    let continuous = format!("SELECT {columns}, events, top, total FROM counts ORDER BY 1, 3");
    let bounded = format!(
        "SELECT {columns}, count(*), max(n), sum(n) FROM events WINDOW TUMBLING (SIZE 10 SECONDS) GROUP BY writer
         ORDER BY 1, 3"
    );
    let (continuous, bounded) = (rows(client, &continuous).await, rows(client, &bounded).await);
    assert_eq!(continuous, bounded);
    let state = rows(client, "SELECT name, late_rows, lag_rows, error FROM millstream.queries ORDER BY name").await;
    let all_well = |name: &str| vec![Some(name.to_owned()), Some("0".to_owned()), Some("0".to_owned()), None];
    assert_eq!(state, [all_well("copied"), all_well("counts")]);
    let log = rows(
        client,
        "SELECT count(*), count(DISTINCT n) FROM copied UNION ALL SELECT count(*), count(DISTINCT n) FROM events",
    )
    .await;
    assert_eq!(log[0], log[1], "a step of a continuous query took effect twice, or not at all");
}

/// A small generator, so that a run can be repeated.
struct Seeded(u64);

impl Seeded {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % bound
    }
}

fn rounds() -> u64 {
    std::env::var("MILLSTREAM_CRASH_ROUNDS").ok().map_or(10, |text| text.parse().unwrap())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn acknowledged_events_survive_kills_once_and_in_order() {
    survive_kills("sync", rounds()).await;
}

/// The end of the process takes nothing from the system's memory.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn events_acknowledged_before_they_are_synced_survive_kills_too() {
    survive_kills("async", rounds().div_ceil(3)).await;
}

async fn survive_kills(durability: &str, rounds: u64) {
    let dir = tempfile::tempdir().unwrap();
    let told: Vec<Arc<Told>> = (0..WRITERS).map(|_| Arc::default()).collect();
    let mut seeded = Seeded(20_240_229);
    for round in 0..rounds {
        // Small seals: kills then also fall between segments, manifest and purge.
        let process = Process::spawn(command(dir.path()).args(["--seal-bytes", "65536"]));
        let client = connect(process.address).await;
        if round == 0 {
            rows(&client, &definitions(durability)).await;
        }
        check_events(&client, &told, "events").await;
        check_continuous(&client).await;
        let total = Arc::new(Total::default());
        let writers: Vec<_> = told
            .iter()
            .enumerate()
            .map(|(writer, told)| tokio::spawn(write(process.address, writer, Arc::clone(told), Arc::clone(&total))))
            .collect();
        // The kill comes after a number of acknowledged events, in the middle of whatever then runs.
        let enough = 100 + seeded.below(1_500);
        let reached = async {
            while total.count.load(Ordering::Relaxed) < enough {
                total.grew.notified().await;
            }
        };
        tokio::time::timeout(2 * DEADLINE, reached).await.expect("the writers get on");
        process.kill();
        for writer in writers {
            tokio::time::timeout(DEADLINE, writer).await.expect("a writer sees the end").unwrap();
        }
    }
    let process = Process::start(dir.path());
    let client = connect(process.address).await;
    check_events(&client, &told, "events").await;
    check_continuous(&client).await;
    check_events(&client, &told, "copied").await;
    let segments = rows(&client, "SELECT count(*) > 0 FROM millstream.segments").await;
    assert_eq!(segments, [[Some("t".to_owned())]], "nothing was ever sealed");
}

/// Sends numbered statements until the server is gone, from the first that was not acknowledged on.
async fn produce(address: SocketAddr, producer: String, next: Arc<AtomicU64>, total: Arc<Total>) -> Option<()> {
    let client = connect_if_alive(address).await?;
    client.batch_execute(&format!("SET producer_id = '{producer}'")).await.ok()?;
    let two = "INSERT INTO numbered VALUES ($1, $2), ($1, $3) WITH (sequence = $4)";
    let two = client.prepare(two).await.ok()?;
    loop {
        let first = next.load(Ordering::Relaxed);
        let n = i64::try_from(first).unwrap();
        if first.is_multiple_of(20) {
            let copy = format!("COPY numbered FROM STDIN WITH (FORMAT csv, sequence = {n})");
            let mut sink = Box::pin(client.copy_in::<_, bytes::Bytes>(&copy).await.ok()?);
            let text = format!("{producer},{n}\n{producer},{}\n", n + 1);
            futures::SinkExt::send(&mut sink, text.into()).await.ok()?;
            sink.as_mut().finish().await.ok()?;
        } else {
            client.execute(&two, &[&producer, &n, &(n + 1), &n]).await.ok()?;
        }
        next.store(first + 2, Ordering::Relaxed);
        total.count.fetch_add(2, Ordering::Relaxed);
        total.grew.notify_one();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn numbered_statements_sent_again_after_kills_are_written_once() {
    let dir = tempfile::tempdir().unwrap();
    let next: Vec<Arc<AtomicU64>> = (0..WRITERS).map(|_| Arc::default()).collect();
    let mut seeded = Seeded(7);
    for round in 0..rounds().min(5) {
        let process = Process::spawn(command(dir.path()).args(["--seal-bytes", "65536"]));
        let client = connect(process.address).await;
        if round == 0 {
            rows(&client, "CREATE STREAM numbered (producer text KEY, n bigint) WITH (partitions = 3)").await;
        }
        let total = Arc::new(Total::default());
        let producer = |(number, next): (usize, &Arc<AtomicU64>)| {
            tokio::spawn(produce(process.address, format!("p{number}"), Arc::clone(next), Arc::clone(&total)))
        };
        let producers: Vec<_> = next.iter().enumerate().map(producer).collect();
        let enough = 100 + seeded.below(4_000);
        let reached = async {
            while total.count.load(Ordering::Relaxed) < enough {
                total.grew.notified().await;
            }
        };
        tokio::time::timeout(2 * DEADLINE, reached).await.expect("the producers get on");
        process.kill();
        for producer in producers {
            tokio::time::timeout(DEADLINE, producer).await.expect("a producer sees the end").unwrap();
        }
    }
    let process = Process::start(dir.path());
    let client = connect(process.address).await;
    for (number, next) in next.iter().enumerate() {
        let sql = format!("SELECT n FROM numbered WHERE producer = 'p{number}' ORDER BY rowpartition, rowoffset");
        let stored: Vec<u64> =
            rows(&client, &sql).await.iter().map(|row| row[0].as_ref().unwrap().parse().unwrap()).collect();
        assert!(stored.iter().copied().eq(0..stored.len() as u64), "p{number}: a number twice, or missing");
        let acknowledged = next.load(Ordering::Relaxed);
        // The last statement may have been stored and not acknowledged.
        assert!((acknowledged..=acknowledged + 2).contains(&(stored.len() as u64)), "p{number}: {acknowledged}");
    }
}

#[tokio::test]
async fn a_second_process_on_a_data_directory_is_refused_in_words() {
    let dir = tempfile::tempdir().unwrap();
    let process = Process::start(dir.path());
    let (code, said) = run_to_end(command(dir.path()));
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("in use") || said.contains("another process"), "{said}");
    let client = connect(process.address).await;
    assert_eq!(rows(&client, "SELECT 1").await, [[Some("1".to_owned())]]);
}

#[tokio::test]
async fn sigterm_ends_with_status_zero_and_keeps_everything() {
    let dir = tempfile::tempdir().unwrap();
    let mut process = Process::start(dir.path());
    let client = connect(process.address).await;
    rows(&client, "CREATE STREAM s (v integer); INSERT INTO s VALUES (1), (2)").await;
    let status = Command::new("kill").args(["-TERM", &process.child.id().to_string()]).status().unwrap();
    assert!(status.success());
    let (tx, rx) = mpsc::sync_channel(1);
    let code = std::thread::scope(|scope| {
        scope.spawn(|| tx.send(process.child.wait().unwrap().code()).unwrap());
        rx.recv_timeout(DEADLINE).expect("it stops")
    });
    assert_eq!(code, Some(0));
    let process = Process::start(dir.path());
    let client = connect(process.address).await;
    assert_eq!(rows(&client, "SELECT count(*) FROM s").await, [[Some("2".to_owned())]]);
}

#[test]
fn options_that_are_wrong_are_refused_in_words() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    let mut open = command(&data);
    open.args(["--config", "/nonexistent/file.toml"]);
    let (code, said) = run_to_end(open);
    assert_eq!(code, Some(1), "{said}");
    let file = dir.path().join("config.toml");
    std::fs::write(&file, "shards = 1\nno_such_key = 2\n").unwrap();
    let mut unknown = command(&data);
    unknown.arg("--config").arg(&file);
    let (code, said) = run_to_end(unknown);
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("no_such_key"), "{said}");
    let mut variable = command(&data);
    variable.env("MILLSTREAM_NO_SUCH", "1");
    let (code, said) = run_to_end(variable);
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("MILLSTREAM_NO_SUCH"), "{said}");
    std::fs::write(&file, "listen = \"0.0.0.0:0\"\n").unwrap();
    let mut exposed = Command::new(env!("CARGO_BIN_EXE_millstream"));
    exposed.args(["start", "--data-dir"]).arg(&data).arg("--config").arg(&file).stderr(Stdio::piped());
    let (code, said) = run_to_end(exposed);
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("--insecure"), "{said}");
    assert!(!data.exists(), "nothing was created");
}
