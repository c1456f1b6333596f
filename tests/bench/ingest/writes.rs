//! Durable, acknowledged writes: what one costs, and how many clients share a sync.

use crate::kit::disk::SyncProbe;
use crate::kit::events::Events;
use crate::kit::race::Race;
use crate::kit::report::{Aim, Report, Unit};
use crate::kit::server::{Server, directory};
use crate::parties::{Disk, Figure, KafkaTurn, OURS, SqlClient, Writers, create_stream, create_table};
use crate::peer::kafka::Flush;
use crate::peer::{Peers, Write};
use crate::{SIZES, report_peak};
use std::rc::Rc;
use std::time::Duration;

const CLIENTS: usize = 64;
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
        let mut clients: Vec<Box<dyn Write>> = Vec::new();
        for _ in 0..self.clients {
            clients.push(Box::new(SqlClient::prepare(server.client().await?, name).await?));
        }
        race.ours(OURS, writers(clients));
        if let Some(postgres) = &peers.postgres {
            create_table(&postgres.client().await?, name).await?;
            let mut clients: Vec<Box<dyn Write>> = Vec::new();
            for _ in 0..self.clients {
                clients.push(Box::new(SqlClient::prepare(postgres.client().await?, name).await?));
            }
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
        self.enter_kafka(race, peers, name)
    }

    fn enter_kafka<'a>(&self, race: &mut Race<'a>, peers: &'a Peers, name: &str) -> anyhow::Result<()> {
        let Some(kafka) = &peers.kafka else { return Ok(()) };
        for flush in [Flush::Default, Flush::Always] {
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
