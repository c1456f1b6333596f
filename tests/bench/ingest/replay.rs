//! Reading from the beginning.

use crate::kit::events::Events;
use crate::kit::race::{Party, Race};
use crate::kit::report::{Report, Unit};
use crate::kit::server::{Server, directory};
use crate::parties::{CopyIn, CopyOut, Format, KafkaTurn, Stream, create_stream, create_table};
use crate::peer::Peers;
use crate::peer::kafka::Flush;
use crate::peer::nats::Nats;
use crate::peer::redis::Redis;
use crate::{SIZES, report_peak};
use async_trait::async_trait;
use futures::StreamExt as _;
use std::pin::pin;
use std::rc::Rc;
use std::time::Instant;
use tokio_postgres::Client;

pub(crate) async fn run(report: &mut Report, scale: (usize, usize), peers: &Peers) -> anyhow::Result<()> {
    for size in SIZES {
        replay(report, scale, size, peers).await?;
    }
    Ok(())
}

async fn replay(report: &mut Report, scale: (usize, usize), size: usize, peers: &Peers) -> anyhow::Result<()> {
    let (events, name) = (Rc::new(Events::new(scale.0 / size, size)), &format!("replay_{size}"));
    let mut race = Race::new(format!("replay of {} events of {size} bytes", events.count()), Unit::MegabytesPerSecond);
    let dir = directory()?;
    let server = Server::start(dir.path())?;
    let client = server.client().await?;
    create_stream(&client, name).await?;
    load(client, name, &events).await?;
    let push = format!(
        "SELECT payload FROM {name} EMIT CHANGES WITH (auto_offset_reset = 'earliest') LIMIT {}",
        events.count()
    );
    let copy = |client: Client, query: &str, format: Format| {
        let options = match format {
            Format::Text => "",
            Format::Arrow => " WITH (FORMAT arrow)",
        };
        CopyOut { client, statement: format!("COPY ({query}) TO STDOUT{options}"), format, events: Rc::clone(&events) }
    };
    let pull = format!("SELECT payload FROM {name}");
    race.ours("COPY arrow", copy(server.client().await?, &pull, Format::Arrow));
    race.ours("COPY text", copy(server.client().await?, &pull, Format::Text));
    race.ours("EMIT CHANGES, COPY arrow", copy(server.client().await?, &push, Format::Arrow));
    let rows = Rows { client: server.client().await?, query: push, events: Rc::clone(&events) };
    race.ours("EMIT CHANGES, rows", rows);
    if let Some(postgres) = &peers.postgres {
        create_table(&postgres.client().await?, name).await?;
        load(postgres.client().await?, name, &events).await?;
        let party = copy(postgres.client().await?, &pull, Format::Text);
        race.peer("PostgreSQL, COPY text", party, &[("COPY text", None), ("COPY arrow", None)]);
    }
    let versus = [("EMIT CHANGES, COPY arrow", None), ("COPY arrow", None)];
    if let Some(kafka) = &peers.kafka {
        let count = events.count();
        kafka.borrow_mut().create(name, Flush::Default)?;
        kafka.borrow_mut().ask(&format!("bulk {name} {count} {size}"))?;
        let turn = KafkaTurn {
            kafka,
            command: format!("replay {name} {count}"),
            figure: |answer| answer[1] / 1e6 / answer[0],
        };
        race.peer("Kafka's consumer", turn, &[("EMIT CHANGES, COPY arrow", None), ("COPY arrow", Some(2.0))]);
    }
    if let Some(redis) = &peers.redis {
        Stream { client: redis.client(name).await?, events: Rc::clone(&events) }.turn().await?;
        let party = RedisReplay { redis, name: name.clone(), events: Rc::clone(&events) };
        race.peer("Redis, XRANGE", party, &versus);
    }
    // How it syncs makes no difference to reading.
    if let Some(nats) = peers.nats.first() {
        Stream { client: nats.client(name).await?, events: Rc::clone(&events) }.turn().await?;
        let party = NatsReplay { nats, name: name.clone(), events: Rc::clone(&events) };
        race.peer("NATS, push consumer", party, &versus);
    }
    race.run(report, scale.1).await;
    if let Some(redis) = &peers.redis {
        redis.client(name).await?.delete().await?;
    }
    report_peak(report, &server)
}

async fn load(client: Client, name: &str, events: &Rc<Events>) -> anyhow::Result<()> {
    let statement = format!("COPY {name} FROM STDIN WITH (FORMAT csv)");
    CopyIn { client, statement, parts: events.csv(), events: Rc::clone(events) }.turn().await.map(drop)
}

/// A push query's rows, one by one.
struct Rows {
    client: Client,
    query: String,
    events: Rc<Events>,
}

#[async_trait(?Send)]
impl Party for Rows {
    async fn turn(&mut self) -> anyhow::Result<f64> {
        let begin = Instant::now();
        let no_params: [i32; 0] = [];
        let mut rows = pin!(self.client.query_raw(&self.query, no_params).await?);
        let (mut count, mut bytes) = (0, 0);
        while let Some(row) = rows.next().await.transpose()? {
            count += 1;
            bytes += row.try_get::<_, &str>(0)?.len();
        }
        self.events.check(count, bytes)?;
        Ok(self.events.megabytes() / begin.elapsed().as_secs_f64())
    }
}

struct RedisReplay<'a> {
    redis: &'a Redis,
    name: String,
    events: Rc<Events>,
}

#[async_trait(?Send)]
impl Party for RedisReplay<'_> {
    async fn turn(&mut self) -> anyhow::Result<f64> {
        let begin = Instant::now();
        let (count, bytes) = self.redis.client(&self.name).await?.read_all().await?;
        self.events.check(count, bytes)?;
        Ok(self.events.megabytes() / begin.elapsed().as_secs_f64())
    }
}

struct NatsReplay<'a> {
    nats: &'a Nats,
    name: String,
    events: Rc<Events>,
}

#[async_trait(?Send)]
impl Party for NatsReplay<'_> {
    async fn turn(&mut self) -> anyhow::Result<f64> {
        let begin = Instant::now();
        let mut client = self.nats.client(&self.name).await?;
        client.subscribe().await?;
        let mut bytes = 0;
        for _ in 0..self.events.count() {
            bytes += client.next().await?.len();
        }
        self.events.check(self.events.count(), bytes)?;
        Ok(self.events.megabytes() / begin.elapsed().as_secs_f64())
    }
}
