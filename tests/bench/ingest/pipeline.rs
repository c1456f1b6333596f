//! 1,000 writes of one connection, sent without waiting, each acknowledged by itself.

use crate::kit::events::Events;
use crate::kit::race::{Party, Race};
use crate::kit::report::{Report, Unit};
use crate::kit::server::{Server, directory};
use crate::parties::{OURS, create_stream, create_table};
use crate::peer::sql::SqlPipe;
use crate::peer::{Peers, Write};
use crate::report_peak;
use async_trait::async_trait;
use std::rc::Rc;
use std::time::Instant;

const COUNT: usize = 1_000;
const SIZE: usize = 100;
const NAME: &str = "pipeline";

pub(crate) async fn run(report: &mut Report, rounds: usize, peers: &Peers) -> anyhow::Result<()> {
    let events = Rc::new(Events::new(COUNT, SIZE));
    let work = format!("{COUNT} writes of {SIZE} bytes on one connection, not waiting in between");
    let mut race = Race::new(work, Unit::PerSecond("events"));
    let pipeline = |client: Box<dyn Write>| Pipeline { client, events: Rc::clone(&events) };
    let dir = directory()?;
    let server = Server::start(dir.path())?;
    create_stream(&server.client().await?, NAME).await?;
    race.ours(OURS, pipeline(Box::new(SqlPipe::connect(server.sql_address(), "", NAME).await?)));
    if let Some(postgres) = &peers.postgres {
        create_table(&postgres.client().await?, NAME).await?;
        let client = SqlPipe::connect(postgres.address(), "", NAME).await?;
        race.peer("PostgreSQL", pipeline(Box::new(client)), &[(OURS, Some(50.0))]);
    }
    if let Some(redis) = &peers.redis {
        race.peer("Redis", pipeline(Box::new(redis.client(NAME).await?)), &[(OURS, None)]);
    }
    for nats in &peers.nats {
        race.peer(nats.name(), pipeline(Box::new(nats.client(NAME).await?)), &[(OURS, None)]);
    }
    race.run(report, rounds).await;
    report_peak(report, &server)
}

struct Pipeline {
    client: Box<dyn Write>,
    events: Rc<Events>,
}

#[async_trait(?Send)]
impl Party for Pipeline {
    async fn turn(&mut self) -> anyhow::Result<f64> {
        let events: Vec<&str> = self.events.iter().collect();
        let begin = Instant::now();
        self.client.write(&events).await?;
        Ok(events.len() as f64 / begin.elapsed().as_secs_f64())
    }
}
