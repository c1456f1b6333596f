//! Who takes part: clients of servers of SQL, and what others share.

use crate::kit::disk::SyncProbe;
use crate::kit::events::Events;
use crate::kit::race::Party;
use crate::kit::report::median;
use crate::peer::kafka::Kafka;
use crate::peer::sql::SqlPipe;
use crate::peer::{Pipe, Write};
use arrow::array::{Array, AsArray as _};
use arrow::buffer::Buffer;
use arrow::datatypes::DataType;
use arrow::ipc::reader::StreamDecoder;
use async_trait::async_trait;
use bytes::Bytes;
use futures::future::try_join_all;
use futures::{SinkExt as _, StreamExt as _};
use std::cell::RefCell;
use std::net::SocketAddr;
use std::pin::pin;
use std::rc::Rc;
use std::time::{Duration, Instant};
use tokio_postgres::Client;

/// Events a client may have sent that are not acknowledged yet: two of these.
const WINDOW: usize = 1_000;

/// Our name in the table, where we do a work in one way only.
pub(crate) const OURS: &str = "Millstream";

/// Makes an empty stream.
pub(crate) async fn create_stream(client: &Client, name: &str) -> anyhow::Result<()> {
    Ok(client.batch_execute(&format!("CREATE STREAM {name} (payload text)")).await?)
}

/// Makes an empty table without an index.
pub(crate) async fn create_table(client: &Client, name: &str) -> anyhow::Result<()> {
    Ok(client.batch_execute(&format!("CREATE TABLE {name} (payload text)")).await?)
}

/// Clients that do no more than INSERT into `table`, each after it has said `set`.
pub(crate) async fn inserters(
    count: usize,
    at: (SocketAddr, &str),
    set: &str,
    table: &str,
) -> anyhow::Result<Vec<Box<dyn Write>>> {
    let mut clients: Vec<Box<dyn Write>> = Vec::new();
    for _ in 0..count {
        clients.push(Box::new(SqlPipe::connect(at, set, table).await?));
    }
    Ok(clients)
}

/// What is taken of a turn of writes.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Figure {
    /// The middle time of one, in milliseconds.
    Median,
    /// Events per second.
    Rate,
}

/// Clients that each send the next event after the acknowledgement of the last.
pub(crate) struct Writers {
    pub(crate) clients: Vec<Box<dyn Write>>,
    pub(crate) events: Rc<Events>,
    pub(crate) time: Duration,
    pub(crate) figure: Figure,
}

#[async_trait(?Send)]
impl Party for Writers {
    async fn turn(&mut self) -> anyhow::Result<f64> {
        let (begin, time, events) = (Instant::now(), self.time, &self.events);
        let running = self.clients.iter_mut().map(|client| async move {
            let mut times = Vec::new();
            while begin.elapsed() < time {
                let sent = Instant::now();
                client.write(&[events.get(times.len())]).await?;
                times.push(sent.elapsed());
            }
            anyhow::Ok(times)
        });
        let mut times: Vec<Duration> = try_join_all(running).await?.into_iter().flatten().collect();
        Ok(match self.figure {
            Figure::Median => median(&mut times),
            Figure::Rate => times.len() as f64 / begin.elapsed().as_secs_f64(),
        })
    }
}

/// The disk alone.
pub(crate) struct Disk {
    pub(crate) probe: SyncProbe,
    pub(crate) time: Duration,
}

#[async_trait(?Send)]
impl Party for Disk {
    async fn turn(&mut self) -> anyhow::Result<f64> {
        let (begin, mut times) = (Instant::now(), Vec::new());
        while begin.elapsed() < self.time {
            times.push(self.probe.append()?);
        }
        Ok(median(&mut times))
    }
}

/// A turn of Kafka's client.
pub(crate) struct KafkaTurn<'a> {
    pub(crate) kafka: &'a RefCell<Kafka>,
    pub(crate) command: String,
    /// Its figure, of what the client answers.
    pub(crate) figure: fn(&[f64]) -> f64,
}

#[async_trait(?Send)]
impl Party for KafkaTurn<'_> {
    async fn turn(&mut self) -> anyhow::Result<f64> {
        let answer = self.kafka.borrow_mut().ask(&self.command)?;
        anyhow::ensure!(!answer.is_empty(), "no figures");
        Ok((self.figure)(&answer))
    }
}

/// One COPY of all events.
pub(crate) struct CopyIn {
    pub(crate) client: Client,
    pub(crate) statement: String,
    pub(crate) parts: Vec<Bytes>,
    pub(crate) events: Rc<Events>,
}

#[async_trait(?Send)]
impl Party for CopyIn {
    async fn turn(&mut self) -> anyhow::Result<f64> {
        let begin = Instant::now();
        let mut sink = pin!(self.client.copy_in::<_, Bytes>(&self.statement).await?);
        for part in &self.parts {
            sink.feed(part.clone()).await?;
        }
        let rows = sink.as_mut().finish().await?;
        anyhow::ensure!(rows as usize == self.events.count(), "{rows} rows were copied");
        Ok(self.events.megabytes() / begin.elapsed().as_secs_f64())
    }
}

/// All events, with a bounded number that are not acknowledged yet.
pub(crate) struct Stream<P> {
    pub(crate) client: P,
    pub(crate) events: Rc<Events>,
}

#[async_trait(?Send)]
impl<P: Pipe> Party for Stream<P> {
    async fn turn(&mut self) -> anyhow::Result<f64> {
        let begin = Instant::now();
        let events: Vec<&str> = self.events.iter().collect();
        let mut sent = 0;
        for window in events.chunks(WINDOW) {
            self.client.send(window).await?;
            self.client.acknowledged(std::mem::replace(&mut sent, window.len())).await?;
        }
        self.client.acknowledged(sent).await?;
        Ok(self.events.megabytes() / begin.elapsed().as_secs_f64())
    }
}

/// The format of a COPY that is read.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Format {
    /// Lines.
    Text,
    /// An Arrow IPC stream with one column.
    Arrow,
}

/// One COPY that gives all events.
pub(crate) struct CopyOut {
    pub(crate) client: Client,
    pub(crate) statement: String,
    pub(crate) format: Format,
    pub(crate) events: Rc<Events>,
}

#[async_trait(?Send)]
impl Party for CopyOut {
    async fn turn(&mut self) -> anyhow::Result<f64> {
        let begin = Instant::now();
        let mut parts = pin!(self.client.copy_out(&self.statement).await?);
        let (mut rows, mut bytes, mut decoder) = (0, 0, StreamDecoder::new());
        while let Some(part) = parts.next().await.transpose()? {
            match self.format {
                Format::Text => {
                    let lines = part.iter().filter(|byte| **byte == b'\n').count();
                    rows += lines;
                    bytes += part.len() - lines;
                }
                Format::Arrow => {
                    let mut buffer = Buffer::from(part);
                    while !buffer.is_empty() {
                        let Some(batch) = decoder.decode(&mut buffer)? else { continue };
                        rows += batch.num_rows();
                        bytes += text_bytes(batch.column(0))?;
                    }
                }
            }
        }
        self.events.check(rows, bytes)?;
        Ok(self.events.megabytes() / begin.elapsed().as_secs_f64())
    }
}

/// Bytes of all texts of a column.
fn text_bytes(column: &dyn Array) -> anyhow::Result<usize> {
    Ok(match column.data_type() {
        DataType::Utf8 => column.as_string::<i32>().iter().flatten().map(str::len).sum(),
        DataType::LargeUtf8 => column.as_string::<i64>().iter().flatten().map(str::len).sum(),
        DataType::Utf8View => column.as_string_view().iter().flatten().map(str::len).sum(),
        other => anyhow::bail!("a column of {other}"),
    })
}
