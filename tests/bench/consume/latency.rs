//! From when an event is due at its one producer until a member of a group has it.

use crate::Scale;
use crate::kit::report::{Aim, Report, Unit, middle};
use crate::kit::server::{Server, directory};
use crate::members::{Member, Observer, PARTITIONS, SIZE, Way, create_stream};
use crate::peer::Peers;
use crate::peer::kafka::Flush;
use crate::peer::nats_pull::{BATCH, NatsPuller, REQUESTS};
use crate::peer::sql::{SqlPipe, SqlReader};
use crate::steady::{EVENTS_PER_SECOND, Producer, Receiver, Turn, measure};
use anyhow::Context as _;
use std::time::Duration;

/// Whose turns they are, and whether what is delivered is on disk, or will be before it is acknowledged.
struct Line {
    name: String,
    is_durable: bool,
    is_ours: bool,
    turns: Vec<Turn>,
}

pub(crate) async fn run(report: &mut Report, scale: Scale, members: &[usize], peers: &Peers) -> anyhow::Result<()> {
    let dir = directory()?;
    let server = Server::start(dir.path())?;
    for count in members {
        let mut lines: Vec<Line> = Vec::new();
        // The first round is not counted: servers and clients are cold in it.
        for round in 0..=scale.rounds {
            for contender in contenders(peers) {
                let (name, is_durable, is_ours) = contender.name(peers);
                let topic = format!("latency_{count}_{round}");
                let turn = match contender.turn(&server, peers, (&topic, *count), scale.latency).await {
                    Ok(turn) => turn,
                    Err(error) => {
                        report.note(format!("latency of {count} members, {name}: not measured: {error:#}"));
                        continue;
                    }
                };
                match lines.iter_mut().find(|line| line.name == name) {
                    _ if round == 0 => {}
                    Some(line) => line.turns.push(turn),
                    None => lines.push(Line { name, is_durable, is_ours, turns: vec![turn] }),
                }
            }
        }
        print(report, *count, &lines);
    }
    Ok(())
}

fn print(report: &mut Report, members: usize, lines: &[Line]) {
    report.heading(&format!(
        "producer to one of {members} members, {EVENTS_PER_SECOND} events/s of {SIZE} bytes, {PARTITIONS} partitions"
    ));
    let part = |line: &Line, of: fn(&Turn) -> f64| middle(&mut line.turns.iter().map(of).collect::<Vec<_>>());
    for line in lines {
        report.plain(format!("  {}, p50", line.name), part(line, |turn| turn.p50), Unit::Millis);
        report.plain("    p99", part(line, |turn| turn.p99), Unit::Millis);
        report.plain("    the most", part(line, |turn| turn.most), Unit::Millis);
    }
    let p99 = |line: &Line| part(line, |turn| turn.p99);
    for ours in lines.iter().filter(|line| line.is_ours) {
        // One that syncs is compared with all: with its like, and with those that do less.
        for (is_durable, which) in [(true, "the best peer that syncs"), (false, "the best peer")] {
            let is_asked = ours.is_durable || !is_durable;
            let theirs = lines.iter().filter(|line| is_asked && !line.is_ours && (line.is_durable || !is_durable));
            if let Some(best) = theirs.map(p99).min_by(f64::total_cmp) {
                let measure = format!("  p99 of {which}, against {}", ours.name);
                report.ratio(measure, best / p99(ours), Some(Aim::AtLeast(1.0)));
            }
        }
    }
}

/// One who takes turns.
#[derive(Debug, Clone, Copy)]
enum Contender {
    Ours(Way, Durability),
    Nats(usize),
    Kafka(Flush),
}

/// When our INSERT is acknowledged, and its row delivered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Durability {
    /// When it is on disk.
    Sync,
    /// When the operating system has it.
    Async,
}

fn contenders(peers: &Peers) -> Vec<Contender> {
    let ours = [Durability::Sync, Durability::Async]
        .map(|durability| [Way::Copy, Way::Select].map(|way| Contender::Ours(way, durability)));
    let mut contenders = ours.concat();
    contenders.extend((0..peers.nats.len()).map(Contender::Nats));
    if peers.kafka.is_some() {
        contenders.extend([Contender::Kafka(Flush::Default), Contender::Kafka(Flush::Always)]);
    }
    contenders
}

impl Contender {
    /// Its name, whether it is durable, whether it is ours.
    fn name(self, peers: &Peers) -> (String, bool, bool) {
        match self {
            Self::Ours(way, Durability::Sync) => (way.name().to_owned(), true, true),
            Self::Ours(way, Durability::Async) => (format!("{} (durability = 'async')", way.name()), false, true),
            Self::Nats(at) => peers
                .nats
                .get(at)
                .map_or_else(Default::default, |nats| (nats.name().to_owned(), nats.is_durable(), false)),
            Self::Kafka(flush) => (flush.name().to_owned(), flush == Flush::Always, false),
        }
    }

    async fn turn(
        self,
        server: &Server,
        peers: &Peers,
        (topic, count): (&str, usize),
        time: Duration,
    ) -> anyhow::Result<Turn> {
        match self {
            Self::Ours(way, durability) => ours(server, (way, durability), (topic, count), time).await,
            Self::Nats(at) => {
                let nats = peers.nats.get(at).context("no NATS")?;
                let mut client = nats.client(topic).await?;
                client.create_consumer("members", count * BATCH * REQUESTS * 2).await?;
                let mut receivers = Vec::new();
                for _ in 0..count {
                    let mut puller = NatsPuller::connect(nats.address(), topic, "members").await?;
                    puller.begin().await?;
                    receivers.push(Receiver::Nats(puller));
                }
                measure(Producer::Nats(client), receivers, 1, time).await
            }
            Self::Kafka(flush) => {
                let mut kafka = peers.kafka.as_ref().context("no Kafka")?.borrow_mut();
                let topic = format!("{topic}_{flush:?}");
                kafka.create_partitioned(&topic, flush, PARTITIONS)?;
                let millis = time.as_millis();
                let command = format!("group-latency {topic} {EVENTS_PER_SECOND} {millis} {SIZE} {count} {PARTITIONS}");
                let [p50, p99, most, missing] =
                    kafka.ask(&command)?.try_into().map_err(|_| anyhow::anyhow!("no figures"))?;
                anyhow::ensure!(missing == 0.0, "{missing} events did not come");
                Ok(Turn { p50, p99, most })
            }
        }
    }
}

async fn ours(
    server: &Server,
    (way, durability): (Way, Durability),
    (topic, count): (&str, usize),
    time: Duration,
) -> anyhow::Result<Turn> {
    let topic = &format!("{topic}_{way:?}_{durability:?}").to_lowercase();
    let option = format!(", durability = '{durability:?}'").to_lowercase();
    create_stream(&server.client().await?, topic, PARTITIONS, &option).await?;
    let mut receivers = Vec::new();
    for mut member in Member::connect_all(server, way, count).await? {
        member.subscribe(topic, &format!("WITH (group = '{topic}', auto_offset_reset = 'earliest')")).await?;
        member.begun().await?;
        receivers.push(Receiver::Ours(member));
    }
    Observer::connect(server).await?.settled(topic, count, PARTITIONS).await?;
    let (replies, writer) = SqlPipe::connect(server.sql_address(), "", topic).await?.into_halves();
    tokio::select! {
        turn = measure(Producer::Sql(writer), receivers, 1, time) => turn,
        failed = acknowledged(replies) => failed.and_then(|()| anyhow::bail!("no acknowledgement")),
    }
}

/// Takes acknowledgements for as long as they come.
pub(crate) async fn acknowledged(mut replies: SqlReader) -> anyhow::Result<()> {
    loop {
        replies.ready(1).await?;
    }
}
