//! A new group reads all that is stored, from the first row that any member has until the last.

use crate::Scale;
use crate::kit::events::Events;
use crate::kit::process::cpu_seconds;
use crate::kit::race::{Party, Race};
use crate::kit::report::{Report, Unit, middle};
use crate::kit::server::{Server, directory};
use crate::members::{FETCH_ROWS, Member, PARTITIONS, SIZE, Way, create_stream};
use crate::peer::kafka::{Flush, Kafka};
use crate::peer::nats::Nats;
use crate::peer::nats_pull::{BATCH, NatsPuller, REQUESTS};
use crate::peer::{Peers, Pipe as _};
use async_trait::async_trait;
use bytes::Bytes;
use futures::SinkExt as _;
use futures::future::try_join_all;
use std::cell::{Cell, RefCell};
use std::pin::pin;
use std::rc::Rc;
use std::time::{Duration, Instant};
use tokio::sync::Notify;
use tokio::time::timeout;

const TOPIC: &str = "stored";
/// Events that differ.
const EVENTS: usize = 16_000;
const READ_TIME_MAX: Duration = Duration::from_secs(300);
const WAYS: [Way; 4] = [Way::Copy, Way::Extended, Way::Fetch, Way::FetchSeldom];

pub(crate) async fn run(report: &mut Report, scale: Scale, members: &[usize], peers: &Peers) -> anyhow::Result<()> {
    let events = Rc::new(Events::new(EVENTS, SIZE));
    let (ours, kafkas, natses) = scale.throughput;
    let dir = directory()?;
    let server = Server::start(dir.path())?;
    load(&server, &events, ours).await?;
    // How they sync makes no difference to reading.
    if let Some(nats) = peers.nats.first() {
        load_nats(nats, &events, natses).await?;
    }
    if let Some(kafka) = &peers.kafka {
        kafka.borrow_mut().create_partitioned(TOPIC, Flush::Default, PARTITIONS)?;
        kafka.borrow_mut().ask(&format!("fill {TOPIC} {kafkas} {SIZE} {PARTITIONS}"))?;
    }
    for count in members {
        let work = format!("{count} members read stored events of {SIZE} bytes of {PARTITIONS} partitions");
        let mut race = Race::new(work, Unit::PerSecond("rows"));
        let shares: Vec<_> = WAYS.iter().map(|way| (way, Rc::<RefCell<Vec<f64>>>::default())).collect();
        for (way, share) in &shares {
            let turn = Ours {
                server: &server,
                way: **way,
                members: *count,
                tally: Tally::new(&events, ours),
                turns: 0,
                share: Rc::clone(share),
            };
            race.ours(way.name(), turn);
        }
        let versus: Vec<(&str, Option<f64>)> = WAYS.iter().map(|way| (way.name(), Some(1.0))).collect();
        if let Some(nats) = peers.nats.first() {
            let turn = Natses { nats, members: *count, tally: Tally::new(&events, natses), turns: 0 };
            race.peer("NATS, pull consumer", turn, &versus);
        }
        if let Some(kafka) = &peers.kafka {
            let party = |commit_rows| Kafkas { kafka, members: *count, count: kafkas, turns: 0, commit_rows };
            race.peer("Kafka's consumer", party(0), &versus);
            let name = "Kafka's consumer, commitSync after each 1,000";
            race.peer(name, party(FETCH_ROWS), &[(Way::Fetch.name(), Some(1.0))]);
        }
        race.run(report, scale.rounds).await;
        for (way, share) in shares {
            let seconds = middle(&mut share.borrow_mut());
            report.plain(format!("  {}: the server's part", way.name()), seconds, Unit::CoreSecondsPerMillion("rows"));
        }
    }
    Ok(())
}

/// Writes the events over and over, in transactions of all of them.
async fn load(server: &Server, events: &Events, count: usize) -> anyhow::Result<()> {
    let client = server.client().await?;
    create_stream(&client, TOPIC, PARTITIONS, "").await?;
    let parts = events.csv();
    for _ in 0..count / EVENTS {
        let mut sink = pin!(client.copy_in::<_, Bytes>(&format!("COPY {TOPIC} FROM STDIN WITH (FORMAT csv)")).await?);
        for part in &parts {
            sink.feed(part.clone()).await?;
        }
        sink.as_mut().finish().await?;
    }
    let query = format!(
        "SELECT min(events), max(events), sum(events)::bigint FROM millstream.partitions WHERE topic = '{TOPIC}'"
    );
    let row = client.query_one(&query, &[]).await?;
    let (least, most, all): (i64, i64, i64) = (row.try_get(0)?, row.try_get(1)?, row.try_get(2)?);
    anyhow::ensure!(all as usize == count, "{all} of {count} events are stored");
    anyhow::ensure!(least * 10 >= most * 9, "partitions have from {least} to {most} events");
    Ok(())
}

async fn load_nats(nats: &Nats, events: &Events, count: usize) -> anyhow::Result<()> {
    let mut client = nats.client(TOPIC).await?;
    let (texts, mut sent): (Vec<&str>, usize) = (events.iter().collect(), 0);
    for _ in 0..count / EVENTS {
        for window in texts.chunks(BATCH) {
            client.send(window).await?;
            client.acknowledged(std::mem::replace(&mut sent, window.len())).await?;
        }
    }
    client.acknowledged(sent).await
}

/// Counts values, and what they add up to, for members that share it.
struct Tally {
    count: usize,
    expected: u64,
    seen: Cell<usize>,
    sum: Cell<u64>,
    begin: Cell<Option<Instant>>,
    done: Notify,
}

/// What is looked at of a value.
fn look(value: &[u8]) -> u64 {
    value.first_chunk::<8>().map_or(0, |bytes| u64::from_le_bytes(*bytes)).wrapping_add(value.len() as u64)
}

impl Tally {
    fn new(events: &Events, count: usize) -> Self {
        let once = events.iter().fold(0_u64, |sum, event| sum.wrapping_add(look(event.as_bytes())));
        Self {
            count: count / EVENTS * EVENTS,
            expected: once.wrapping_mul((count / EVENTS) as u64),
            seen: Cell::default(),
            sum: Cell::default(),
            begin: Cell::default(),
            done: Notify::new(),
        }
    }

    fn begin(&self) {
        self.seen.set(0);
        self.sum.set(0);
        self.begin.set(None);
    }

    fn add(&self, rows: usize, sum: u64) {
        if self.begin.get().is_none() {
            self.begin.set(Some(Instant::now()));
        }
        self.sum.set(self.sum.get().wrapping_add(sum));
        self.seen.set(self.seen.get() + rows);
        if self.seen.get() >= self.count {
            self.done.notify_one();
        }
    }

    /// Runs members until all is read; rows per second.
    async fn until_all(&self, members: impl Future<Output = anyhow::Result<Vec<()>>>) -> anyhow::Result<f64> {
        let all = async {
            tokio::select! {
                biased;
                () = self.done.notified() => Ok(()),
                ended = members => ended.map(drop),
            }
        };
        let ended = timeout(READ_TIME_MAX, all).await;
        let begin = self.begin.get().unwrap_or_else(Instant::now);
        let (seen, seconds) = (self.seen.get(), begin.elapsed().as_secs_f64());
        ended.map_err(|_| anyhow::anyhow!("{seen} of {} events came", self.count))??;
        anyhow::ensure!(
            seen == self.count && self.sum.get() == self.expected,
            "{seen} events came, some of them twice"
        );
        Ok(seen as f64 / seconds)
    }
}

struct Ours<'a> {
    server: &'a Server,
    way: Way,
    members: usize,
    tally: Tally,
    turns: usize,
    /// Seconds of the server's processor time for a million rows, of each turn.
    share: Rc<RefCell<Vec<f64>>>,
}

#[async_trait(?Send)]
impl Party for Ours<'_> {
    async fn turn(&mut self) -> anyhow::Result<f64> {
        self.turns += 1;
        let group = format!("{:?}_{}_{}", self.way, self.members, self.turns).to_lowercase();
        let more = self.way.options();
        let options = format!("WITH (group = '{group}', auto_offset_reset = 'earliest'{more})");
        let mut members = Member::connect_all(self.server, self.way, self.members).await?;
        self.tally.begin();
        let before = cpu_seconds(self.server.process_id())?;
        for member in &mut members {
            member.subscribe(TOPIC, &options).await?;
        }
        let tally = &self.tally;
        let reading = members.into_iter().map(|mut member| async move {
            loop {
                let mut sum = 0_u64;
                let rows = member.values(|value| {
                    sum = sum.wrapping_add(look(value));
                    Ok(())
                });
                let rows = rows.await?;
                tally.add(rows, sum);
            }
        });
        let rate = tally.until_all(try_join_all(reading)).await?;
        let seconds = cpu_seconds(self.server.process_id())? - before;
        self.share.borrow_mut().push(seconds / self.tally.count as f64 * 1e6);
        Ok(rate)
    }
}

struct Natses<'a> {
    nats: &'a Nats,
    members: usize,
    tally: Tally,
    turns: usize,
}

#[async_trait(?Send)]
impl Party for Natses<'_> {
    async fn turn(&mut self) -> anyhow::Result<f64> {
        self.turns += 1;
        let name = format!("group_{}_{}", self.members, self.turns);
        let pending_max = self.members * BATCH * REQUESTS * 2;
        self.nats.client(TOPIC).await?.create_consumer(&name, pending_max).await?;
        let mut members = Vec::new();
        for _ in 0..self.members {
            members.push(NatsPuller::connect(self.nats.address(), TOPIC, &name).await?);
        }
        self.tally.begin();
        for member in &mut members {
            member.begin().await?;
        }
        let tally = &self.tally;
        let reading = members.into_iter().map(|mut member| async move {
            loop {
                let mut sum = 0_u64;
                let rows = member.values(|value| {
                    sum = sum.wrapping_add(look(value));
                    Ok(())
                });
                let rows = rows.await?;
                tally.add(rows, sum);
            }
        });
        tally.until_all(try_join_all(reading)).await
    }
}

struct Kafkas<'a> {
    kafka: &'a RefCell<Kafka>,
    members: usize,
    count: usize,
    turns: usize,
    /// It commits after each poll of so many, or by itself.
    commit_rows: usize,
}

#[async_trait(?Send)]
impl Party for Kafkas<'_> {
    async fn turn(&mut self) -> anyhow::Result<f64> {
        self.turns += 1;
        let Self { members, count, turns, commit_rows, .. } = self;
        let command = format!("consume {TOPIC} {count} {members} group_{members}_{turns}_{commit_rows} {commit_rows}");
        let [seconds, bytes] =
            self.kafka.borrow_mut().ask(&command)?.try_into().map_err(|_| anyhow::anyhow!("no figures"))?;
        anyhow::ensure!(bytes as usize == *count * SIZE, "{bytes} bytes came");
        Ok(*count as f64 / seconds)
    }
}
