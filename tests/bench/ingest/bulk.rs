//! As much as goes in: COPY, and what the peers have for it.

use crate::kit::events::Events;
use crate::kit::flights::{self, Csv};
use crate::kit::race::{Party, Race};
use crate::kit::report::{Aim, Report, Unit};
use crate::kit::server::{Server, directory};
use crate::parties::{CopyIn, KafkaTurn, OURS, Stream, create_stream, create_table};
use crate::peer::Peers;
use crate::peer::kafka::Flush;
use crate::peer::postgres::Postgres;
use crate::{SIZES, report_peak};
use async_trait::async_trait;
use bytes::Bytes;
use std::rc::Rc;
use tokio_postgres::Client;

pub(crate) async fn run(report: &mut Report, scale: (usize, usize), peers: &Peers) -> anyhow::Result<()> {
    for size in SIZES {
        payloads(report, scale, size, peers).await?;
    }
    five_columns(report, scale, peers.postgres.as_ref()).await
}

async fn payloads(report: &mut Report, scale: (usize, usize), size: usize, peers: &Peers) -> anyhow::Result<()> {
    let (events, name) = (Rc::new(Events::new(scale.0 / size, size)), &format!("bulk_{size}"));
    let work = format!("bulk, {} events of {size} bytes a turn", events.count());
    let mut race = Race::new(work, Unit::MegabytesPerSecond);
    let copy = |client: Client, format: &str, parts: Vec<Bytes>| {
        let statement = format!("COPY {name} FROM STDIN WITH (FORMAT {format})");
        CopyIn { client, statement, parts, events: Rc::clone(&events) }
    };
    let dir = directory()?;
    let server = Server::start(dir.path())?;
    create_stream(&server.client().await?, name).await?;
    race.ours("COPY csv", copy(server.client().await?, "csv", events.csv()));
    race.ours("COPY binary", copy(server.client().await?, "binary", events.binary()));
    race.ours("COPY arrow", copy(server.client().await?, "arrow", events.arrow()?));
    if let Some(postgres) = &peers.postgres {
        create_table(&postgres.client().await?, name).await?;
        let versus = [("COPY csv", Some(2.0)), ("COPY arrow", Some(5.0))];
        race.peer("PostgreSQL, COPY csv", copy(postgres.client().await?, "csv", events.csv()), &versus);
        let binary = copy(postgres.client().await?, "binary", events.binary());
        race.peer("PostgreSQL, COPY binary", binary, &[("COPY binary", None), ("COPY arrow", None)]);
    }
    if let Some(kafka) = &peers.kafka {
        kafka.borrow_mut().create(name, Flush::Default)?;
        let count = events.count();
        // The answer is in seconds.
        let command = format!("bulk {name} {count} {size}");
        let party = KafkaBulk { turn: KafkaTurn { kafka, command, figure: |answer| answer[0] }, count, size };
        let versus = [("COPY csv", None), ("COPY arrow", Some(2.0))];
        race.peer("Kafka's producer, defaults (never synced)", party, &versus);
    }
    let versus = [("COPY csv", None), ("COPY arrow", None)];
    if let Some(redis) = &peers.redis {
        let party = Stream { client: redis.client(name).await?, events: Rc::clone(&events) };
        race.peer("Redis, XADD without waiting", party, &versus);
    }
    for nats in &peers.nats {
        let party = Stream { client: nats.client(name).await?, events: Rc::clone(&events) };
        race.peer(nats.name(), party, &versus);
    }
    race.run(report, scale.1).await;
    if let Some(redis) = &peers.redis {
        // It keeps all of it in memory.
        redis.client(name).await?.delete().await?;
    }
    report_peak(report, &server)
}

struct KafkaBulk<'a> {
    turn: KafkaTurn<'a>,
    count: usize,
    size: usize,
}

#[async_trait(?Send)]
impl Party for KafkaBulk<'_> {
    async fn turn(&mut self) -> anyhow::Result<f64> {
        Ok((self.count * self.size) as f64 / 1e6 / self.turn.turn().await?)
    }
}

/// Rows that have to be read, not only taken: numbers, times and short texts.
async fn five_columns(report: &mut Report, scale: (usize, usize), postgres: Option<&Postgres>) -> anyhow::Result<()> {
    let csv = Csv::of(scale.0 / 100)?;
    let mut race = Race::new("bulk, flights of five columns as csv", Unit::PerSecond("rows"));
    let dir = directory()?;
    let server = Server::start(dir.path())?;
    let client = server.client().await?;
    client.batch_execute(&flights::create_stream()).await?;
    race.ours(OURS, Flights { client, csv: csv.clone() });
    if let Some(postgres) = postgres {
        let client = postgres.client().await?;
        client.batch_execute(&flights::create_table()).await?;
        race.peer("PostgreSQL", Flights { client, csv }, &[(OURS, Some(2.0))]);
    }
    let figures = race.run(report, scale.1).await;
    if let Some(rate) = figures.get(OURS) {
        report.aimed("  Millstream against its aim", *rate, Unit::PerSecond("rows"), Aim::AtLeast(400_000.0));
    }
    report_peak(report, &server)
}

struct Flights {
    client: Client,
    csv: Csv,
}

#[async_trait(?Send)]
impl Party for Flights {
    async fn turn(&mut self) -> anyhow::Result<f64> {
        self.csv.load(&self.client).await
    }
}
