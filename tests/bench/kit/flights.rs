//! The five-column events that are written: real flights, repeated.

use super::events::parts;
use anyhow::Context as _;
use bytes::Bytes;
use futures::SinkExt as _;
use std::pin::pin;
use std::time::{Instant, SystemTime};
use tokio_postgres::types::ToSql;
use tokio_postgres::{Client, Statement};

const FLIGHTS: &str = include_str!("../../../examples/flights/flights.csv");

const COLUMNS: &str =
    "(scheduled timestamp, delay_minutes integer, distance_miles integer, origin text, destination text)";

/// The stream on the server.
pub(crate) fn create_stream() -> String {
    format!("CREATE STREAM flights {COLUMNS}")
}

/// The same as a table without an index.
pub(crate) fn create_table() -> String {
    format!("CREATE TABLE flights {COLUMNS}")
}

/// A prepared INSERT of one flight, and its client.
pub(crate) struct OneRow {
    client: Client,
    statement: Statement,
}

impl OneRow {
    /// Prepares it on `client`.
    pub(crate) async fn prepare(client: Client) -> anyhow::Result<Self> {
        let statement = client.prepare("INSERT INTO flights VALUES ($1, $2, $3, $4, $5)").await?;
        Ok(Self { client, statement })
    }

    /// Runs it.
    pub(crate) async fn insert(&self, number: i32) -> anyhow::Result<()> {
        let values: [&(dyn ToSql + Sync); 5] = [&SystemTime::now(), &(number % 180), &number, &"DTW", &"LAS"];
        self.client.execute(&self.statement, &values).await?;
        Ok(())
    }
}

/// Flights as CSV, ready to be sent.
#[derive(Debug, Clone)]
pub(crate) struct Csv {
    parts: Vec<Bytes>,
    rows: usize,
}

impl Csv {
    /// The file's flights over and over, `rows` of them.
    pub(crate) fn of(rows: usize) -> anyhow::Result<Self> {
        let (_header, flights) = FLIGHTS.split_once('\n').context("the flights have no header")?;
        let mut text = String::new();
        for line in flights.lines().cycle().take(rows) {
            text.push_str(line);
            text.push('\n');
        }
        Ok(Self { parts: parts(text.into_bytes()), rows })
    }

    /// Loads it with one COPY; rows per second from the statement to its acknowledgement.
    pub(crate) async fn load(&self, client: &Client) -> anyhow::Result<f64> {
        let begin = Instant::now();
        let mut sink = pin!(client.copy_in::<_, Bytes>("COPY flights FROM STDIN WITH (FORMAT csv)").await?);
        for part in &self.parts {
            sink.feed(part.clone()).await?;
        }
        let rows = sink.as_mut().finish().await?;
        anyhow::ensure!(rows as usize == self.rows, "{rows} rows of {} were copied", self.rows);
        Ok(rows as f64 / begin.elapsed().as_secs_f64())
    }
}
