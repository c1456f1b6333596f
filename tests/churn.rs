//! Consumer groups whose members come, go, stall and die while others write, and the server is killed; checked by what each
//! client saw.
//!
//! Members keep what they were sent, when they asked for it, and when the server had answered the next question after it.
//! The checks know nothing of assignments: every event reached somebody; nobody saw an event again that had been taken
//! before; rows of a partition come in order. Seconds: four, or `MILLSTREAM_CHURN_SECONDS=300 cargo test --test main churn`.

use crate::common::{DEADLINE, connect};
use crate::crash::Process;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};
use tokio_postgres::{Client, Error, NoTls, SimpleQueryMessage};

const MEMBERS: u64 = 20;
const WRITERS: u64 = 4;
/// `max_poll_interval` of members that stall.
const SHORT: Duration = Duration::from_millis(1_000);

pub(crate) struct Seeded(pub(crate) u64);

impl Seeded {
    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % bound
    }
}

/// Topic, partition, offset.
type Place = (String, u32, u64);

/// Rows that one question brought.
#[derive(Debug)]
struct Fetched {
    /// Who asked: one subscription.
    life: u64,
    asked: Instant,
    answered: Instant,
    rows: Vec<(Place, i64)>,
    /// When the server had answered that these are taken.
    taken: Option<Instant>,
    how: &'static str,
}

/// What is known of one run.
#[derive(Debug, Default)]
struct Run {
    fetched: parking_lot::Mutex<Vec<Fetched>>,
    lives: AtomicU64,
    written: AtomicU64,
    grew: tokio::sync::Notify,
    is_over: AtomicBool,
    are_writers_over: AtomicBool,
    /// The server is killed, or about to be: whatever fails, fails for that.
    is_killed: AtomicBool,
}

/// Of rows of `topic, n, rowpartition, rowoffset`.
fn parse(messages: &[SimpleQueryMessage]) -> Vec<(Place, i64)> {
    let row = |message: &SimpleQueryMessage| match message {
        SimpleQueryMessage::Row(row) => {
            let field = |at: usize| row.get(at).unwrap();
            let place = (field(0).to_owned(), field(2).parse().unwrap(), field(3).parse().unwrap());
            Some((place, field(1).parse().unwrap()))
        }
        _ => None,
    };
    messages.iter().filter_map(row).collect()
}

pub(crate) async fn ask(client: &Client, sql: &str) -> Result<Vec<SimpleQueryMessage>, Error> {
    tokio::time::timeout(2 * DEADLINE, client.simple_query(sql)).await.unwrap_or_else(|_| panic!("no answer to {sql}"))
}

/// First column of the first row.
pub(crate) async fn scalar(client: &Client, sql: &str) -> Option<String> {
    parse_first(&ask(client, sql).await.unwrap_or_else(|error| panic!("{sql}: {error:?}")))
}

fn parse_first(messages: &[SimpleQueryMessage]) -> Option<String> {
    messages.iter().find_map(|message| match message {
        SimpleQueryMessage::Row(row) => row.get(0).map(str::to_owned),
        _ => None,
    })
}

/// Asks until the answer is `wanted`.
pub(crate) async fn until_it_is(client: &Client, sql: &str, wanted: &str) {
    let begun = Instant::now();
    loop {
        let found = scalar(client, sql).await;
        if found.as_deref() == Some(wanted) {
            return;
        }
        assert!(begun.elapsed() < DEADLINE, "{sql} is {found:?}, not {wanted}");
        tokio::task::yield_now().await;
    }
}

/// A connection that can be cut.
async fn cuttable(address: SocketAddr) -> Result<(Client, tokio::task::JoinHandle<Result<(), Error>>), Error> {
    let mut config = tokio_postgres::Config::new();
    config.host(address.ip().to_string()).port(address.port()).user("member").dbname("millstream");
    let (client, connection) = config.connect(NoTls).await?;
    Ok((client, tokio::spawn(connection)))
}

const READ: &str = "SELECT 'a' AS topic, n, rowpartition, rowoffset FROM a
    UNION ALL SELECT 'b', n, rowpartition, rowoffset FROM b
    EMIT CHANGES WITH (group = 'churn', auto_offset_reset = 'earliest')";

impl Run {
    fn saw(&self, life: u64, asked: Instant, rows: Vec<(Place, i64)>, how: &'static str) -> usize {
        let mut fetched = self.fetched.lock();
        fetched.push(Fetched { life, asked, answered: Instant::now(), rows, taken: None, how });
        fetched.len() - 1
    }

    /// The server knows by now that these rows were taken, unless it took so long that it may have removed the member.
    fn took(&self, at: usize, within: Duration) {
        let fetched = &mut self.fetched.lock()[at];
        if fetched.asked.elapsed() < within {
            fetched.taken = Some(Instant::now());
        }
    }

    fn next_life(&self) -> u64 {
        self.lives.fetch_add(1, Ordering::Relaxed)
    }

    fn is_over(&self) -> bool {
        self.is_over.load(Ordering::Relaxed)
    }

    /// Waits until so many more events were written.
    async fn more(&self, count: u64) {
        let wanted = self.written.load(Ordering::Relaxed) + count;
        let are_over = || [&self.are_writers_over, &self.is_killed].iter().any(|flag| flag.load(Ordering::Relaxed));
        while self.written.load(Ordering::Relaxed) < wanted && !are_over() {
            let grew = self.grew.notified();
            drop(tokio::time::timeout(Duration::from_millis(100), grew).await);
        }
    }
}

/// A subscription by cursor, of some FETCHes, which ends in one of several ways.
async fn by_cursor(run: &Run, address: SocketAddr, seeded: &mut Seeded) -> Result<(), Error> {
    let (client, connection) = cuttable(address).await?;
    let life = run.next_life();
    let stalls = seeded.below(5) == 0;
    let within = if stalls { SHORT } else { Duration::from_secs(300) };
    if stalls {
        ask(&client, &format!("SET max_poll_interval = '{}ms'", SHORT.as_millis())).await?;
    }
    ask(&client, &format!("DECLARE c CURSOR WITH HOLD FOR {READ}")).await?;
    let mut last: Option<usize> = None;
    for _ in 0..1 + seeded.below(30) {
        if run.is_over() {
            break;
        }
        let asked = Instant::now();
        let fetch = format!("FETCH {} FROM c WITH (timeout = '{}ms')", 1 + seeded.below(400), 5 + seeded.below(60));
        let messages = ask(&client, &fetch).await?;
        if let Some(last) = last {
            run.took(last, within);
        }
        last = Some(run.saw(life, asked, parse(&messages), "cursor"));
        if seeded.below(10) == 0 {
            // At work on them for a while; those with a short interval for longer than that.
            match stalls {
                true => stall(run, &client).await?,
                false => run.more(200).await,
            }
        }
    }
    match seeded.below(4) {
        0 => {
            if ask(&client, "CLOSE c").await.is_ok()
                && let Some(last) = last
            {
                run.took(last, within);
            }
        }
        1 => {
            let token = client.cancel_token();
            let mut fetch = std::pin::pin!(ask(&client, "FETCH 1000000 FROM c"));
            // Again and again: one that comes before the FETCH does nothing.
            let error = loop {
                match tokio::time::timeout(Duration::from_millis(1 + seeded.below(50)), &mut fetch).await {
                    Ok(fetched) => break fetched.unwrap_err(),
                    Err(_) => token.cancel_query(NoTls).await?,
                }
            };
            if error.code().is_none_or(|code| code.code() != "57014") {
                return Err(error);
            }
        }
        // Cut in the middle of an answer.
        2 => {
            let fetch = client.simple_query("FETCH 1000000 FROM c");
            let cut = async {
                run.more(20).await;
                connection.abort();
            };
            drop(tokio::join!(fetch, cut));
        }
        _ => drop(client),
    }
    Ok(())
}

/// Asks nothing of the cursor until the group has removed the member.
async fn stall(run: &Run, client: &Client) -> Result<(), Error> {
    let begun = Instant::now();
    let me = "SELECT count(*) FROM millstream.consumer_group_members
        WHERE group_name = 'churn' AND pid = pg_backend_pid()";
    while parse_first(&ask(client, me).await?).as_deref() != Some("0") {
        assert!(begun.elapsed() < SHORT + DEADLINE, "a member that stalls is not removed");
        run.more(50).await;
    }
    Ok(())
}

/// A plain query or COPY that ends by itself: it is never cut, since what was on its way then would be missing.
async fn by_limit(run: &Run, address: SocketAddr, seeded: &mut Seeded) {
    let (client, _connection) = cuttable(address).await.unwrap();
    let (life, asked) = (run.next_life(), Instant::now());
    let query = format!("{READ} LIMIT {}", 1 + seeded.below(600));
    let (rows, how) = match seeded.below(2) {
        0 => (parse(&ask(&client, &query).await.unwrap()), "plain"),
        _ => {
            let copy = client.copy_out(&format!("COPY ({query}) TO STDOUT WITH (FORMAT csv)")).await.unwrap();
            let pieces = futures::TryStreamExt::try_collect::<Vec<_>>(copy);
            let pieces =
                tokio::time::timeout(2 * DEADLINE, pieces).await.unwrap_or_else(|_| panic!("no end of {query}"));
            let bytes: Vec<u8> = pieces.unwrap().into_iter().flat_map(|piece| piece.to_vec()).collect();
            let row = |line: &str| {
                let fields: Vec<&str> = line.split(',').collect();
                let place = (fields[0].to_owned(), fields[2].parse().unwrap(), fields[3].parse().unwrap());
                (place, fields[1].parse().unwrap())
            };
            (String::from_utf8(bytes).unwrap().lines().map(row).collect(), "copy")
        }
    };
    let at = run.saw(life, asked, rows, how);
    run.took(at, Duration::MAX);
}

/// Of a server that is killed only by cursor: what was on its way of a plain query is missing then.
async fn member(run: Arc<Run>, address: SocketAddr, (seed, is_mortal): (u64, bool)) {
    let mut seeded = Seeded(seed);
    while !run.is_over() {
        match seeded.below(10) {
            0..3 if !is_mortal => by_limit(&run, address, &mut seeded).await,
            _ => match by_cursor(&run, address, &mut seeded).await {
                Err(_) if run.is_killed.load(Ordering::Relaxed) => return,
                result => result.unwrap(),
            },
        }
    }
}

/// Numbered events from `next` on to both topics; the first number that was not acknowledged.
async fn write(run: Arc<Run>, address: SocketAddr, (writer, mut next): (u64, u64)) -> u64 {
    let (client, mut seeded) = (connect(address).await, Seeded(90 + writer + next));
    while !run.are_writers_over.load(Ordering::Relaxed) {
        let topic = if seeded.below(4) == 0 { "b" } else { "a" };
        let count = 1 + seeded.below(60);
        let rows: Vec<String> =
            (next..next + count).map(|n| format!("({}, {})", n % 101, writer * 1_000_000_000 + n)).collect();
        match ask(&client, &format!("INSERT INTO {topic} VALUES {}", rows.join(", "))).await {
            Err(_) if run.is_killed.load(Ordering::Relaxed) => break,
            result => drop(result.unwrap()),
        }
        next += count;
        run.written.fetch_add(count, Ordering::Relaxed);
        run.grew.notify_waiters();
    }
    next
}

/// One member reads what is left.
async fn drain(run: &Run, address: SocketAddr) {
    let client = connect(address).await;
    let life = run.next_life();
    ask(&client, &format!("DECLARE c CURSOR WITH HOLD FOR {READ}")).await.unwrap();
    let (begun, mut last) = (Instant::now(), None);
    loop {
        let asked = Instant::now();
        let rows = parse(&ask(&client, "FETCH 5000 FROM c WITH (timeout = '100ms')").await.unwrap());
        if let Some(last) = last {
            run.took(last, Duration::MAX);
        }
        let lag = "SELECT sum(lag) FROM millstream.consumer_group_offsets WHERE group_name = 'churn'";
        let is_empty = rows.is_empty();
        last = Some(run.saw(life, asked, rows, "drain"));
        if is_empty && scalar(&client, lag).await.as_deref() == Some("0") {
            break;
        }
        let describe = "SELECT string_agg(topic || partition || ': ' || lag || ' ' || coalesce(member, '-'), ', ')
            FROM millstream.consumer_group_offsets WHERE group_name = 'churn'";
        assert!(begun.elapsed() < 2 * DEADLINE, "not read to the end: {:?}", scalar(&client, describe).await);
    }
    ask(&client, "CLOSE c").await.unwrap();
}

/// The events as they are stored.
async fn stored(client: &Client) -> BTreeMap<Place, i64> {
    let all = "SELECT 'a', n, rowpartition, rowoffset FROM a UNION ALL SELECT 'b', n, rowpartition, rowoffset FROM b";
    parse(&ask(client, all).await.unwrap()).into_iter().collect()
}

/// Everything was sent to somebody, as it is stored.
fn check_union(fetched: &[Fetched], stored: &BTreeMap<Place, i64>) {
    let mut seen: BTreeSet<&Place> = BTreeSet::new();
    for (place, n) in fetched.iter().flat_map(|fetched| &fetched.rows) {
        assert_eq!(stored.get(place), Some(n), "{place:?} is not what is stored");
        seen.insert(place);
    }
    let missing: Vec<&Place> = stored.keys().filter(|place| !seen.contains(place)).collect();
    assert!(missing.is_empty(), "{} events reached nobody: {:?}…", missing.len(), &missing[..missing.len().min(5)]);
}

/// What was taken was not sent again to anybody who asked after that.
fn check_repeats(fetched: &[Fetched]) -> usize {
    let mut by_place: HashMap<&Place, Vec<usize>> = HashMap::new();
    for (at, one) in fetched.iter().enumerate() {
        one.rows.iter().for_each(|(place, _)| by_place.entry(place).or_default().push(at));
    }
    let mut repeats = 0;
    for (place, seen) in by_place.iter().filter(|(_, seen)| seen.len() > 1) {
        repeats += seen.len() - 1;
        for (first, second) in seen.iter().flat_map(|a| seen.iter().map(move |b| (*a, *b))).filter(|(a, b)| a != b) {
            let (first, second) = (&fetched[first], &fetched[second]);
            let Some(taken) = first.taken else { continue };
            assert!(
                second.asked <= taken,
                "{place:?} was taken by {} ({}) and came again to {} ({}), asked for {:?} after",
                first.life,
                first.how,
                second.life,
                second.how,
                second.asked - taken
            );
            let is_again = first.life == second.life && first.asked < second.asked;
            assert!(!is_again, "{place:?} came again to {}, who had taken it", first.life);
        }
    }
    repeats
}

/// Rows of a partition come in order to each member: it goes back only to what it had not taken, and leaves out only what
/// others had been sent.
fn check_order(fetched: &[Fetched]) {
    let mut seen_by: HashMap<&Place, Vec<(u64, Instant)>> = HashMap::new();
    for one in fetched {
        one.rows.iter().for_each(|(place, _)| seen_by.entry(place).or_default().push((one.life, one.asked)));
    }
    let mut next: HashMap<(u64, &str, u32), u64> = HashMap::new();
    let mut taken: HashMap<(u64, &str, u32), u64> = HashMap::new();
    for one in fetched {
        for ((topic, partition, offset), _) in &one.rows {
            let key = (one.life, topic.as_str(), *partition);
            if let Some(next) = next.get(&key) {
                if offset < next {
                    let floor = taken.get(&key).copied().unwrap_or(0);
                    assert!(*offset >= floor, "{key:?}: {offset} after {next}, taken up to {floor}");
                }
                for left_out in *next..*offset {
                    let by = &seen_by.get(&(topic.clone(), *partition, left_out));
                    let is_sent =
                        by.is_some_and(|by| by.iter().any(|(life, at)| *life != one.life && *at < one.answered));
                    assert!(is_sent, "{key:?}: {left_out} is left out before {offset}");
                }
            }
            next.insert(key, offset + 1);
        }
        if one.taken.is_some() {
            for ((topic, partition, offset), _) in &one.rows {
                let floor = taken.entry((one.life, topic.as_str(), *partition)).or_default();
                *floor = (*floor).max(offset + 1);
            }
        }
    }
}

fn seconds() -> u64 {
    std::env::var("MILLSTREAM_CHURN_SECONDS").ok().map_or(4, |text| text.parse().unwrap())
}

/// Writers and members for a while, until the server is killed, or they come to their end. What writers had acknowledged.
async fn turn(
    run: &Arc<Run>,
    process: Process,
    (time, is_mortal): (Duration, bool),
    next: &mut [u64],
) -> Option<Process> {
    let address = process.address;
    [&run.is_over, &run.are_writers_over, &run.is_killed].iter().for_each(|flag| flag.store(false, Ordering::Relaxed));
    let spawn = |(writer, next): (usize, &u64)| tokio::spawn(write(Arc::clone(run), address, (writer as u64, *next)));
    let writers: Vec<_> = next.iter().enumerate().map(spawn).collect();
    let seeds = run.lives.load(Ordering::Relaxed) + 7_000;
    let spawn = |number| tokio::spawn(member(Arc::clone(run), address, (seeds + number, is_mortal)));
    let members: Vec<_> = (0..MEMBERS).map(spawn).collect();
    let begun = Instant::now();
    while begun.elapsed() < time {
        run.more(100).await;
        assert!(!members.iter().any(|member| member.is_finished()), "a member failed");
    }
    let mut process = Some(process);
    if is_mortal {
        run.is_killed.store(true, Ordering::Relaxed);
        process.take().into_iter().for_each(Process::kill);
    }
    run.is_over.store(true, Ordering::Relaxed);
    for member in members {
        tokio::time::timeout(3 * DEADLINE, member).await.expect("members come to their end").unwrap();
    }
    run.are_writers_over.store(true, Ordering::Relaxed);
    for (next, writer) in next.iter_mut().zip(writers) {
        *next = writer.await.unwrap();
    }
    process
}

/// Members and writers of a server that is killed so often, each time after such a time, and of one that is not.
async fn churn(kills: u32, time: Duration) {
    let dir = tempfile::tempdir().unwrap();
    let run = Arc::new(Run::default());
    let mut process = Process::start(dir.path());
    let client = connect(process.address).await;
    for (topic, partitions) in [("a", 8), ("b", 3)] {
        let create = format!("CREATE STREAM {topic} (k integer KEY, n bigint) WITH (partitions = {partitions})");
        ask(&client, &create).await.unwrap();
    }
    let mut acknowledged = BTreeSet::new();
    let mut next = [0; WRITERS as usize];
    for turn_number in 0..=kills {
        let is_mortal = turn_number < kills;
        let from = next;
        let alive = turn(&run, process, (time, is_mortal), &mut next).await;
        for (writer, (from, to)) in from.into_iter().zip(&mut next).enumerate() {
            acknowledged.extend((from..*to).map(|n| (writer as u64 * 1_000_000_000 + n) as i64));
            // What was on its way may be there, or not.
            *to += 1_000;
        }
        process = alive.unwrap_or_else(|| Process::start(dir.path()));
    }
    drain(&run, process.address).await;
    let stored = stored(&connect(process.address).await).await;
    let numbers: BTreeSet<i64> = stored.values().copied().collect();
    assert_eq!(numbers.len(), stored.len(), "an event is there twice");
    assert!(acknowledged.is_subset(&numbers), "an acknowledged event is missing");
    assert!(kills > 0 || acknowledged.len() == numbers.len());
    let fetched = run.fetched.lock();
    check_union(&fetched, &stored);
    let repeats = check_repeats(&fetched);
    check_order(&fetched);
    let ways: BTreeSet<&str> = fetched.iter().map(|one| one.how).collect();
    assert!(kills > 0 || ways.len() == 4, "{ways:?}");
    println!("{} events to {} members, {repeats} repeated", stored.len(), run.lives.load(Ordering::Relaxed));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn members_that_come_and_go_miss_nothing_and_see_nothing_twice_that_they_took() {
    churn(0, Duration::from_secs(seconds())).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn members_of_a_server_that_is_killed_miss_nothing_and_see_nothing_twice_that_they_took() {
    let time = Duration::from_secs(seconds()) / 2;
    churn(u32::try_from(seconds() / 2).unwrap().clamp(2, 30), time.min(Duration::from_secs(10))).await;
}
