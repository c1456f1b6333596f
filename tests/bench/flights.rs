//! The five-column events that are written: real flights, repeated.

use anyhow::Context as _;
use bytes::Bytes;
use futures::SinkExt as _;
use std::pin::pin;
use std::time::{Duration, Instant, SystemTime};
use tokio_postgres::types::ToSql;
use tokio_postgres::{Client, Statement};

const FLIGHTS: &str = include_str!("../../examples/flights/flights.csv");
/// Bytes of one CopyData message.
const PART_BYTES: usize = 64 << 10;

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
    empty: Statement,
}

impl OneRow {
    /// Prepares it on `client`.
    pub(crate) async fn prepare(client: Client) -> anyhow::Result<Self> {
        let statement = client.prepare("INSERT INTO flights VALUES ($1, $2, $3, $4, $5)").await?;
        let empty = client.prepare("").await?;
        Ok(Self { client, statement, empty })
    }

    /// Runs it; the time until it is acknowledged.
    pub(crate) async fn insert(&self, number: i32) -> anyhow::Result<Duration> {
        let values: [&(dyn ToSql + Sync); 5] = [&SystemTime::now(), &(number % 180), &number, &"DTW", &"LAS"];
        let begin = Instant::now();
        self.client.execute(&self.statement, &values).await?;
        Ok(begin.elapsed())
    }

    /// Executes a statement without text: what the way there and back takes.
    pub(crate) async fn nothing(&self) -> anyhow::Result<Duration> {
        let begin = Instant::now();
        self.client.execute(&self.empty, &[]).await?;
        Ok(begin.elapsed())
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
        let text = Bytes::from(text);
        let starts = (0..text.len()).step_by(PART_BYTES);
        let parts = starts.map(|start| text.slice(start..(start + PART_BYTES).min(text.len()))).collect();
        Ok(Self { parts, rows })
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
