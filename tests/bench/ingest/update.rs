//! One client that changes one row after the other of a large table, by its primary key.

use crate::kit::events::Events;
use crate::kit::race::{Party, Race};
use crate::kit::report::{Report, Unit, median};
use crate::kit::server::{Server, directory};
use crate::parties::OURS;
use crate::peer::Peers;
use crate::report_peak;
use async_trait::async_trait;
use std::time::{Duration, Instant};
use tokio_postgres::{Client, Statement};

const NAME: &str = "accounts";
const ROWS: u64 = 1_000_000;
const UPDATE: &str = "UPDATE accounts SET n = n + 1 WHERE id = $1";

pub(crate) async fn run(report: &mut Report, scale: (Duration, usize), peers: &Peers) -> anyhow::Result<()> {
    let work = format!("one client, UPDATE of a row of {ROWS} by its key: median");
    let mut race = Race::new(work, Unit::Millis);
    let dir = directory()?;
    let server = Server::start(dir.path())?;
    race.ours(OURS, Updates::begin(server.client().await?, scale.0).await?);
    if let Some(postgres) = &peers.postgres {
        race.peer("PostgreSQL", Updates::begin(postgres.client().await?, scale.0).await?, &[(OURS, None)]);
    }
    race.run(report, scale.1).await;
    report_peak(report, &server)
}

/// A client of ours, or of PostgreSQL, and its table.
struct Updates {
    client: Client,
    statement: Statement,
    time: Duration,
    state: u64,
}

impl Updates {
    /// Fills the table.
    async fn begin(client: Client, time: Duration) -> anyhow::Result<Self> {
        let payload = Events::new(1, 100).get(0).replace('\'', "");
        client.batch_execute(&format!("CREATE TABLE {NAME} (id bigint PRIMARY KEY, n bigint, payload text)")).await?;
        let fill = format!("INSERT INTO {NAME} SELECT i, 0, '{payload}' FROM generate_series(1, {ROWS}) AS i");
        client.batch_execute(&fill).await?;
        let statement = client.prepare(UPDATE).await?;
        Ok(Self { client, statement, time, state: 1 })
    }

    /// Some row's key: each client takes the same ones.
    fn key(&mut self) -> i64 {
        self.state = self.state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((self.state >> 33) % ROWS + 1) as i64
    }
}

#[async_trait(?Send)]
impl Party for Updates {
    async fn turn(&mut self) -> anyhow::Result<f64> {
        let (begin, mut times) = (Instant::now(), Vec::new());
        while begin.elapsed() < self.time {
            let key = self.key();
            let sent = Instant::now();
            let changed = self.client.execute(&self.statement, &[&key]).await?;
            anyhow::ensure!(changed == 1, "no row has key {key}");
            times.push(sent.elapsed());
        }
        Ok(median(&mut times))
    }
}
