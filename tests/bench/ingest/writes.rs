//! Acknowledged writes: what one costs, and how many clients share a sync; the same, acknowledged before the sync.

use crate::kit::disk::SyncProbe;
use crate::kit::events::Events;
use crate::kit::race::Race;
use crate::kit::report::{Aim, Report, Unit};
use crate::kit::server::{Server, directory};
use crate::parties::{Disk, Figure, KafkaTurn, OURS, Writers, create_stream, create_table, inserters};
use crate::peer::kafka::Flush;
use crate::peer::{Peers, Write};
use crate::{SIZES, report_peak};
use std::rc::Rc;
use std::time::Duration;

const CLIENTS: usize = 64;
/// Our name where writes are acknowledged before they are synced, and where they are not, beside them.
const WRITTEN: &str = "Millstream, async";
const SYNCED: &str = "Millstream, sync";
/// Different events; then they come again.
const EVENTS: usize = 16_384;

/// One client: the middle time of a write, against the disk's own.
pub(crate) async fn one(report: &mut Report, scale: (Duration, usize), peers: &Peers) -> anyhow::Result<()> {
    let aims = Aims { postgres: Some(4.0), ..Aims::default() };
    for size in SIZES {
        let work = Work { clients: 1, size, time: scale.0, figure: Figure::Median, aims };
        let mut race = Race::new(format!("one client, {size} bytes: median of a write"), Unit::Millis);
        let dir = directory()?;
        let server = Server::start(dir.path())?;
        race.ours("disk: 4 KiB append and fdatasync", Disk { probe: SyncProbe::new(dir.path())?, time: scale.0 });
        work.enter(&mut race, &server, peers).await?;
        let figures = race.run(report, scale.1).await;
        if let (Some(ours), Some(disk)) = (figures.get(OURS), figures.get("disk: 4 KiB append and fdatasync")) {
            report.aimed("  Millstream against the disk", ours / disk, Unit::Times("disk"), Aim::Under(1.3));
        }
        report_peak(report, &server)?;
    }
    Ok(())
}

/// Many clients: writes per second.
pub(crate) async fn clients(report: &mut Report, scale: (Duration, usize), peers: &Peers) -> anyhow::Result<()> {
    let aims = Aims { postgres: Some(3.0), redis: Some(2.0), nats: Some(20.0), kafka: Some(2.0) };
    for size in SIZES {
        let work = Work { clients: CLIENTS, size, time: scale.0, figure: Figure::Rate, aims };
        let mut race = Race::new(format!("{CLIENTS} clients, {size} bytes: writes"), Unit::PerSecond("events"));
        let dir = directory()?;
        let server = Server::start(dir.path())?;
        work.enter(&mut race, &server, peers).await?;
        race.run(report, scale.1).await;
        report_peak(report, &server)?;
    }
    Ok(())
}

/// One client and many, whose writes are acknowledged before they are synced.
pub(crate) async fn unsynced(
    report: &mut Report,
    (one, clients): ((Duration, usize), (Duration, usize)),
    peers: &Peers,
) -> anyhow::Result<()> {
    for size in SIZES {
        for (clients, (time, turns)) in [(1, one), (CLIENTS, clients)] {
            let name = &format!("unsynced_{clients}_{size}");
            let work = Work { clients, size, time, figure: Figure::Rate, aims: Aims::default() };
            let unit = Unit::PerSecond("events");
            let mut race = Race::new(format!("{clients} client(s), {size} bytes, acknowledged before synced"), unit);
            let dir = directory()?;
            let server = Server::start(dir.path())?;
            let events = Rc::new(Events::new(EVENTS, size));
            let writers = |clients| Writers { clients, events: Rc::clone(&events), time, figure: work.figure };
            server
                .client()
                .await?
                .batch_execute(&format!("CREATE STREAM {name} (payload text) WITH (durability = 'async')"))
                .await?;
            race.ours(WRITTEN, writers(inserters(clients, server.sql_address(), "", name).await?));
            let synced = inserters(clients, server.sql_address(), "SET durability = 'sync'", name).await?;
            race.peer(SYNCED, writers(synced), &[(WRITTEN, None)]);
            if let Some(postgres) = &peers.postgres {
                create_table(&postgres.client().await?, name).await?;
                let set = "SET synchronous_commit = off";
                let unsynced = inserters(clients, postgres.address(), set, name).await?;
                race.peer("PostgreSQL, synchronous_commit=off", writers(unsynced), &[(WRITTEN, None)]);
            }
            for nats in peers.nats.iter().filter(|nats| !nats.is_durable()) {
                let mut clients: Vec<Box<dyn Write>> = Vec::new();
                for _ in 0..work.clients {
                    clients.push(Box::new(nats.client(name).await?));
                }
                race.peer(nats.name(), writers(clients), &[(WRITTEN, None)]);
            }
            work.enter_kafka(&mut race, peers, name, &[Flush::Default])?;
            race.run(report, turns).await;
            report_peak(report, &server)?;
        }
    }
    Ok(())
}

/// How many times as fast as a peer that syncs every message.
#[derive(Debug, Clone, Copy, Default)]
struct Aims {
    postgres: Option<f64>,
    redis: Option<f64>,
    nats: Option<f64>,
    kafka: Option<f64>,
}

struct Work {
    clients: usize,
    size: usize,
    time: Duration,
    figure: Figure,
    aims: Aims,
}

impl Work {
    async fn enter<'a>(&self, race: &mut Race<'a>, server: &Server, peers: &'a Peers) -> anyhow::Result<()> {
        let name = &format!("writes_{}_{}", self.clients, self.size);
        let events = Rc::new(Events::new(EVENTS, self.size));
        let writers = |clients| Writers { clients, events: Rc::clone(&events), time: self.time, figure: self.figure };
        create_stream(&server.client().await?, name).await?;
        race.ours(OURS, writers(inserters(self.clients, server.sql_address(), "", name).await?));
        if let Some(postgres) = &peers.postgres {
            create_table(&postgres.client().await?, name).await?;
            let clients = inserters(self.clients, postgres.address(), "", name).await?;
            race.peer("PostgreSQL", writers(clients), &[(OURS, self.aims.postgres)]);
        }
        if let Some(redis) = &peers.redis {
            let mut clients: Vec<Box<dyn Write>> = Vec::new();
            for _ in 0..self.clients {
                clients.push(Box::new(redis.client(name).await?));
            }
            race.peer("Redis", writers(clients), &[(OURS, self.aims.redis)]);
        }
        for nats in &peers.nats {
            let mut clients: Vec<Box<dyn Write>> = Vec::new();
            for _ in 0..self.clients {
                clients.push(Box::new(nats.client(name).await?));
            }
            let aim = self.aims.nats.filter(|_| nats.is_durable());
            race.peer(nats.name(), writers(clients), &[(OURS, aim)]);
        }
        self.enter_kafka(race, peers, name, &[Flush::Default, Flush::Always])
    }

    fn enter_kafka<'a>(
        &self,
        race: &mut Race<'a>,
        peers: &'a Peers,
        name: &str,
        flushes: &[Flush],
    ) -> anyhow::Result<()> {
        let Some(kafka) = &peers.kafka else { return Ok(()) };
        for flush in flushes.iter().copied() {
            let topic = format!("{name}_{flush:?}");
            kafka.borrow_mut().create(&topic, flush)?;
            let command = format!("write {topic} {} {} {}", self.clients, self.size, self.time.as_millis());
            let figure: fn(&[f64]) -> f64 = match self.figure {
                Figure::Rate => |answer| answer[0],
                Figure::Median => |answer| answer[1],
            };
            let aim = self.aims.kafka.filter(|_| flush == Flush::Always);
            race.peer(flush.name(), KafkaTurn { kafka, command, figure }, &[(OURS, aim)]);
        }
        Ok(())
    }
}
