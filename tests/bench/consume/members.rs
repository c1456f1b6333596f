//! Subscribers of ours: by themselves, or as members of a group.

use crate::kit::server::Server;
use crate::peer::sql::{SqlPipe, SqlReader, SqlWriter};
use anyhow::Context as _;
use std::time::{Duration, Instant};
use tokio_postgres::Client;

/// Partitions of the topics that groups read.
pub(crate) const PARTITIONS: usize = 16;
/// Bytes of an event.
pub(crate) const SIZE: usize = 100;
/// Rows of one FETCH.
pub(crate) const FETCH_ROWS: usize = 1_000;
const SETTLE_TIME_MAX: Duration = Duration::from_secs(60);

/// How rows are received.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Way {
    /// `COPY (…) TO STDOUT`.
    Copy,
    /// The query itself, in the simple protocol.
    Select,
    /// The query itself, in the extended protocol.
    Extended,
    /// A cursor; FETCH waits for as many rows as it asks for, or a moment.
    Fetch,
    /// The same, committed as seldom as Kafka's consumer does.
    FetchSeldom,
}

impl Way {
    /// Its name in the table.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Copy => "Millstream, COPY",
            Self::Select => "Millstream, SELECT",
            Self::Extended => "Millstream, SELECT (extended protocol)",
            Self::Fetch => "Millstream, FETCH 1000",
            Self::FetchSeldom => "Millstream, FETCH 1000, auto_commit_interval = '5s'",
        }
    }

    /// Options it needs among those of the group.
    pub(crate) fn options(self) -> &'static str {
        match self {
            Self::FetchSeldom => ", auto_commit_interval = '5s'",
            Self::Copy | Self::Select | Self::Extended | Self::Fetch => "",
        }
    }

    fn is_fetch(self) -> bool {
        matches!(self, Self::Fetch | Self::FetchSeldom)
    }
}

/// Makes an empty stream; `more` are options of it.
pub(crate) async fn create_stream(client: &Client, name: &str, partitions: usize, more: &str) -> anyhow::Result<()> {
    let statement = format!("CREATE STREAM {name} (payload text) WITH (partitions = {partitions}{more})");
    Ok(client.batch_execute(&statement).await?)
}

/// A connection that subscribes.
#[derive(Debug)]
pub(crate) struct Member {
    reader: SqlReader,
    writer: SqlWriter,
    way: Way,
}

impl Member {
    /// Connects.
    pub(crate) async fn connect(server: &Server, way: Way) -> anyhow::Result<Self> {
        let (reader, writer) = SqlPipe::open(server.sql_address()).await?.into_halves();
        Ok(Self { reader, writer, way })
    }

    /// Connects so many.
    pub(crate) async fn connect_all(server: &Server, way: Way, count: usize) -> anyhow::Result<Vec<Self>> {
        let mut members = Vec::with_capacity(count);
        for _ in 0..count {
            members.push(Self::connect(server, way).await?);
        }
        Ok(members)
    }

    /// Sends the query; `options` are those behind EMIT CHANGES.
    pub(crate) async fn subscribe(&mut self, topic: &str, options: &str) -> anyhow::Result<()> {
        let query = format!("SELECT payload FROM {topic} EMIT CHANGES {options}");
        match self.way {
            Way::Copy => self.writer.simple(&format!("COPY ({query}) TO STDOUT")).await,
            Way::Select => self.writer.simple(&query).await,
            Way::Extended => self.writer.extended(&query).await,
            // Its answer lets the first FETCH be sent.
            Way::Fetch | Way::FetchSeldom => {
                self.writer.simple(&format!("DECLARE c CURSOR WITH HOLD FOR {query}")).await
            }
        }
    }

    /// Waits until the server has begun to answer the query.
    pub(crate) async fn begun(&mut self) -> anyhow::Result<()> {
        self.reader.begun().await
    }

    /// Shows `each` the values that are here, at least one, where they lie; how many.
    pub(crate) async fn values(&mut self, mut each: impl FnMut(&[u8]) -> anyhow::Result<()>) -> anyhow::Result<usize> {
        loop {
            let came = self.reader.values(&mut each).await?;
            if came.readies > 0 {
                anyhow::ensure!(self.way.is_fetch(), "the query ended");
                self.writer.simple(&format!("FETCH {FETCH_ROWS} FROM c WITH (timeout = '20ms')")).await?;
            }
            if came.rows > 0 {
                return Ok(came.rows);
            }
        }
    }
}

/// Looks at groups, again and again.
pub(crate) struct Observer {
    client: Client,
    members: tokio_postgres::Statement,
    state: tokio_postgres::Statement,
}

impl Observer {
    /// Connects.
    pub(crate) async fn connect(server: &Server) -> anyhow::Result<Self> {
        let client = server.client().await?;
        let members = client
            .prepare(
                "SELECT count(*), min(partitions)::bigint, max(partitions)::bigint, sum(partitions)::bigint
                 FROM millstream.consumer_group_members WHERE group_name = $1",
            )
            .await?;
        let state = client.prepare("SELECT state FROM millstream.consumer_groups WHERE group_name = $1").await?;
        Ok(Self { client, members, state })
    }

    /// Whether each of so many members has its part of the partitions, and none is on its way; the members are asked first.
    pub(crate) async fn is_settled(&self, group: &str, members: usize, partitions: usize) -> anyhow::Result<bool> {
        let row = self.client.query_one(&self.members, &[&group]).await?;
        let number = |at: usize| anyhow::Ok(row.try_get::<_, Option<i64>>(at)?.unwrap_or_default() as usize);
        let (least, most) = (partitions / members, partitions.div_ceil(members));
        if (number(0)?, number(3)?) != (members, partitions) || number(1)? < least || number(2)? > most {
            return Ok(false);
        }
        let state = self.client.query_opt(&self.state, &[&group]).await?.context("no such group")?;
        Ok(state.try_get::<_, &str>(0)? == "stable")
    }

    /// Waits until that is so; how often it was asked.
    pub(crate) async fn settled(&self, group: &str, members: usize, partitions: usize) -> anyhow::Result<usize> {
        let begin = Instant::now();
        for looks in 1.. {
            if self.is_settled(group, members, partitions).await? {
                return Ok(looks);
            }
            anyhow::ensure!(begin.elapsed() < SETTLE_TIME_MAX, "the group of {members} members does not settle");
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        Ok(0)
    }
}
