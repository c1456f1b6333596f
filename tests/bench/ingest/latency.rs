//! From when an event is due at its producer until a subscriber has it, at a steady rate.
//!
//! The events of a millisecond are sent at once, whether or not those before are acknowledged; each round has a topic of
//! its own. The times count from when an event was due, so that a producer that is held back hides nothing.

use crate::kit::events::Events;
use crate::kit::report::{Aim, Report, Unit, middle, quantile};
use crate::kit::server::{Server, directory};
use crate::parties::{OURS, create_stream, create_table};
use crate::peer::Peers;
use crate::peer::kafka::Flush;
use crate::peer::nats::NatsClient;
use crate::peer::postgres::Postgres;
use crate::peer::redis::{RedisClient, RedisWriter};
use crate::peer::sql::{SqlPipe, SqlReader, SqlWriter};
use crate::report_peak;
use anyhow::Context as _;
use async_trait::async_trait;
use futures::future::join_all;
use std::cell::RefCell;
use std::rc::Rc;
use std::time::{Duration, Instant};
use tokio::task::LocalSet;
use tokio::time::{MissedTickBehavior, interval, timeout};

const EVENTS_PER_SECOND: usize = 5_000;
const EVENTS_PER_TICK: usize = EVENTS_PER_SECOND / 1_000;
const SIZE: usize = 100;
/// Producers of PostgreSQL take turns: one waits for each commit before it begins the next.
const PRODUCERS: usize = 8;
/// Part of the events, at the beginning, whose times are not counted.
const WARM_UP_PART: usize = 5;
const RECEIVE_TIME_MAX: Duration = Duration::from_secs(20);
const NAME: &str = "latency";

/// A producer that does not wait.
#[async_trait(?Send)]
trait Publish {
    async fn publish(&mut self, events: Vec<String>) -> anyhow::Result<()>;
}

/// A subscriber.
#[async_trait(?Send)]
trait Subscribe {
    /// The events that came, at least one.
    async fn next(&mut self) -> anyhow::Result<Vec<String>>;
}

/// The middle and the slow end of one turn, in milliseconds.
struct Turn {
    p50: f64,
    p99: f64,
}

/// Whose turns they are, and whether what is delivered is on disk, or will be before it is acknowledged.
struct Line {
    name: String,
    is_durable: bool,
    turns: Vec<Turn>,
}

pub(crate) async fn run(report: &mut Report, scale: (Duration, usize), peers: &Peers) -> anyhow::Result<()> {
    let dir = directory()?;
    let server = Server::start(dir.path())?;
    let mut lines: Vec<Line> = Vec::new();
    let mut failed: Vec<String> = Vec::new();
    for round in 0..scale.1 {
        for contender in contenders(peers) {
            let (name, is_durable) = contender.name();
            if failed.contains(&name) {
                continue;
            }
            match contender.turn(&server, peers, &format!("{NAME}_{round}"), scale.0).await {
                Ok(turn) => match lines.iter_mut().find(|line| line.name == name) {
                    Some(line) => line.turns.push(turn),
                    None => lines.push(Line { name, is_durable, turns: vec![turn] }),
                },
                Err(error) => {
                    report.note(format!("latency, {name}: not measured: {error:#}"));
                    failed.push(name);
                }
            }
        }
    }
    report.heading(&format!("producer to subscriber, {EVENTS_PER_SECOND} events/s of {SIZE} bytes"));
    let mut slow_ends: Vec<(f64, bool)> = Vec::new();
    for line in &lines {
        let part = |of: fn(&Turn) -> f64| middle(&mut line.turns.iter().map(of).collect::<Vec<_>>());
        report.plain(format!("  {}, p50", line.name), part(|turn| turn.p50), Unit::Millis);
        report.plain("    p99", part(|turn| turn.p99), Unit::Millis);
        slow_ends.push((part(|turn| turn.p99), line.is_durable));
    }
    if let Some(((ours, _), theirs)) = slow_ends.split_first().filter(|_| lines[0].name == OURS) {
        let best =
            |durable: bool| theirs.iter().filter(|peer| peer.1 || !durable).map(|peer| peer.0).min_by(f64::total_cmp);
        if let Some(best) = best(true) {
            report.ratio("  p99 of the best peer that syncs, against ours", best / ours, Some(Aim::AtLeast(1.0)));
        }
        if let Some(best) = best(false) {
            report.ratio("  p99 of the best peer, against ours", best / ours, Some(Aim::AtLeast(1.0)));
        }
    }
    report_peak(report, &server)
}

/// One who takes turns.
#[derive(Debug, Clone, Copy)]
enum Contender {
    Ours,
    Postgres,
    Redis,
    Nats(usize, &'static str, bool),
    Kafka(Flush),
}

fn contenders(peers: &Peers) -> Vec<Contender> {
    let mut contenders = vec![Contender::Ours];
    contenders.extend(peers.postgres.as_ref().map(|_| Contender::Postgres));
    contenders.extend(peers.redis.as_ref().map(|_| Contender::Redis));
    let nats = peers.nats.iter().enumerate();
    contenders.extend(nats.map(|(at, nats)| Contender::Nats(at, nats.name(), nats.is_durable())));
    if peers.kafka.is_some() {
        contenders.extend([Contender::Kafka(Flush::Default), Contender::Kafka(Flush::Always)]);
    }
    contenders
}

impl Contender {
    fn name(self) -> (String, bool) {
        match self {
            Self::Ours => (OURS.to_owned(), true),
            Self::Postgres => ("PostgreSQL, INSERT and NOTIFY".to_owned(), true),
            Self::Redis => ("Redis, XREAD BLOCK".to_owned(), true),
            Self::Nats(_, name, is_durable) => (name.to_owned(), is_durable),
            Self::Kafka(flush) => (flush.name().to_owned(), flush == Flush::Always),
        }
    }

    async fn turn(self, server: &Server, peers: &Peers, topic: &str, time: Duration) -> anyhow::Result<Turn> {
        match self {
            Self::Ours => {
                create_stream(&server.client().await?, topic).await?;
                let producer = SqlPipe::connect(server.sql_address(), "", topic).await?;
                let query = format!("SELECT payload FROM {topic} EMIT CHANGES WITH (auto_offset_reset = 'earliest')");
                sql_turn(vec![producer], SqlPipe::query(server.sql_address(), &query).await?, time).await
            }
            Self::Postgres => {
                let postgres = peers.postgres.as_ref().context("no PostgreSQL")?;
                postgres_turn(postgres, topic, time).await
            }
            Self::Redis => {
                let redis = peers.redis.as_ref().context("no Redis")?;
                let (writer, mut replies) = redis.client(topic).await?.into_halves();
                // It ends with the producer, before the last event has come.
                let drain = async move {
                    while replies.next().await.is_ok() {}
                    std::future::pending().await
                };
                let subscriber = RedisSubscriber { client: redis.client(topic).await?, position: "0-0".to_owned() };
                tokio::select! {
                    turn = measure(RedisPublisher { writer }, subscriber, time) => turn,
                    turn = drain => turn,
                }
            }
            Self::Nats(at, ..) => {
                let nats = peers.nats.get(at).context("no NATS")?;
                let publisher = NatsPublisher { client: nats.client(topic).await? };
                let mut client = nats.client(topic).await?;
                client.subscribe().await?;
                measure(publisher, NatsSubscriber { client }, time).await
            }
            Self::Kafka(flush) => {
                let mut kafka = peers.kafka.as_ref().context("no Kafka")?.borrow_mut();
                let topic = format!("{topic}_{flush:?}");
                kafka.create(&topic, flush)?;
                let command = format!("latency {topic} {EVENTS_PER_SECOND} {} {SIZE}", time.as_millis());
                let [p50, p99, missing] = kafka.ask(&command)?.try_into().map_err(|_| anyhow::anyhow!("no figures"))?;
                anyhow::ensure!(missing == 0.0, "{missing} events did not come");
                Ok(Turn { p50, p99 })
            }
        }
    }
}

async fn postgres_turn(postgres: &Postgres, topic: &str, time: Duration) -> anyhow::Result<Turn> {
    create_table(&postgres.client().await?, topic).await?;
    let text = format!("WITH stored AS (INSERT INTO {topic} VALUES ($1)) SELECT pg_notify('{topic}', $1)");
    let mut producers = Vec::new();
    for _ in 0..PRODUCERS {
        producers.push(SqlPipe::prepare(postgres.address(), "", &text).await?);
    }
    let listener = SqlPipe::listen(postgres.address(), &format!("LISTEN {topic}")).await?;
    sql_turn(producers, listener, time).await
}

async fn sql_turn(
    producers: Vec<SqlPipe>,
    (reader, _writer): (SqlReader, SqlWriter),
    time: Duration,
) -> anyhow::Result<Turn> {
    let (readers, writers): (Vec<_>, Vec<_>) = producers.into_iter().map(SqlPipe::into_halves).unzip();
    // An event that fails is missed at the end.
    let drain = async {
        join_all(readers.into_iter().map(|mut reader| async move { while reader.ready(1).await.is_ok() {} })).await;
        std::future::pending().await
    };
    tokio::select! {
        turn = measure(SqlPublisher { writers, next: 0 }, SqlSubscriber { reader }, time) => turn,
        turn = drain => turn,
    }
}

/// Publishes for `time`, receives all of it.
async fn measure(publisher: impl Publish, subscriber: impl Subscribe, time: Duration) -> anyhow::Result<Turn> {
    let count = EVENTS_PER_TICK * time.as_millis() as usize;
    let due = Rc::new(RefCell::new(Vec::with_capacity(count)));
    let tasks = LocalSet::new();
    let producing = produce(publisher, &due, count);
    let receiving = receive(subscriber, &due, count);
    let both = async { tokio::try_join!(producing, receiving) };
    let ((), mut times) = tasks.run_until(both).await?;
    Ok(Turn { p50: quantile(&mut times, 0.5), p99: quantile(&mut times, 0.99) })
}

async fn produce(mut publisher: impl Publish, due: &RefCell<Vec<Instant>>, count: usize) -> anyhow::Result<()> {
    let texts = Events::new(1_000, SIZE);
    let mut ticks = interval(Duration::from_millis(1));
    ticks.set_missed_tick_behavior(MissedTickBehavior::Burst);
    for start in (0..count).step_by(EVENTS_PER_TICK) {
        let time = ticks.tick().await.into_std();
        let numbers = start..start + EVENTS_PER_TICK;
        due.borrow_mut().extend(numbers.clone().map(|_| time));
        publisher.publish(numbers.map(|number| format!("{number:020}{}", &texts.get(number)[20..])).collect()).await?;
    }
    Ok(())
}

async fn receive(
    mut subscriber: impl Subscribe,
    due: &RefCell<Vec<Instant>>,
    count: usize,
) -> anyhow::Result<Vec<Duration>> {
    let (mut received, mut times) = (0, Vec::with_capacity(count));
    let deadline = Instant::now() + RECEIVE_TIME_MAX;
    while received < count {
        let left = deadline.saturating_duration_since(Instant::now());
        let events = timeout(left, subscriber.next()).await;
        let events =
            events.map_err(|_| anyhow::anyhow!("it does not keep up: {received} of {count} events came"))??;
        let now = Instant::now();
        for event in events {
            received += 1;
            let number: usize = event.get(..20).context("no number")?.parse()?;
            let due = *due.borrow().get(number).context("an event before it was sent")?;
            if number >= count / WARM_UP_PART {
                times.push(now.saturating_duration_since(due));
            }
        }
    }
    Ok(times)
}

struct SqlPublisher {
    writers: Vec<SqlWriter>,
    next: usize,
}

#[async_trait(?Send)]
impl Publish for SqlPublisher {
    async fn publish(&mut self, events: Vec<String>) -> anyhow::Result<()> {
        let events: Vec<&str> = events.iter().map(String::as_str).collect();
        let per_writer = if self.writers.len() == 1 { events.len() } else { 1 };
        for some in events.chunks(per_writer) {
            let writer = self.next % self.writers.len();
            self.next += 1;
            self.writers[writer].send(some).await?;
        }
        Ok(())
    }
}

struct SqlSubscriber {
    reader: SqlReader,
}

#[async_trait(?Send)]
impl Subscribe for SqlSubscriber {
    async fn next(&mut self) -> anyhow::Result<Vec<String>> {
        self.reader.rows().await
    }
}

struct RedisPublisher {
    writer: RedisWriter,
}

#[async_trait(?Send)]
impl Publish for RedisPublisher {
    async fn publish(&mut self, events: Vec<String>) -> anyhow::Result<()> {
        self.writer.send(&events.iter().map(String::as_str).collect::<Vec<_>>()).await
    }
}

struct RedisSubscriber {
    client: RedisClient,
    position: String,
}

#[async_trait(?Send)]
impl Subscribe for RedisSubscriber {
    async fn next(&mut self) -> anyhow::Result<Vec<String>> {
        self.client.next(&mut self.position).await
    }
}

struct NatsPublisher {
    client: NatsClient,
}

#[async_trait(?Send)]
impl Publish for NatsPublisher {
    async fn publish(&mut self, events: Vec<String>) -> anyhow::Result<()> {
        self.client.publish(&events.iter().map(String::as_str).collect::<Vec<_>>()).await
    }
}

struct NatsSubscriber {
    client: NatsClient,
}

#[async_trait(?Send)]
impl Subscribe for NatsSubscriber {
    async fn next(&mut self) -> anyhow::Result<Vec<String>> {
        Ok(vec![String::from_utf8(self.client.next().await?)?])
    }
}
