//! Nexmark's events: people, auctions and bids of an auction house, the same ones in each run.
//!
//! One in fifty is a person, three are auctions, the others bids. Ten fall into a millisecond of event time, and none is
//! out of order.

use crate::kit::events::parts;
use anyhow::Context as _;
use arrow::array::{ArrayRef, Int64Array, RecordBatch, StringArray, TimestampMicrosecondArray};
use arrow::ipc::writer::StreamWriter;
use bytes::Bytes;
use chrono::DateTime;
use futures::SinkExt as _;
use nexmark::EventGenerator;
use nexmark::config::NexmarkConfig;
use nexmark::event::{Auction, Bid, Event, Person};
use std::fs::File;
use std::io::{BufWriter, Write as _};
use std::path::Path;
use std::pin::pin;
use std::sync::Arc;
use tokio_postgres::Client;

/// The streams, in the order of [`Events::arrow`].
pub(crate) const STREAMS: [&str; 3] = ["person", "auction", "bid"];
/// Their statements.
pub(crate) const SCHEMA: &str = include_str!("../../../examples/nexmark/nexmark.sql");
/// The time of the first event: 2026-01-01.
const BASE_MILLIS: u64 = 1_767_225_600_000;
/// Events that are loaded in one transaction.
const CHUNK_EVENTS: usize = 10_000;

/// Some events, those of each stream in order.
#[derive(Debug, Default)]
pub(crate) struct Events {
    people: Vec<Person>,
    auctions: Vec<Auction>,
    bids: Vec<Bid>,
}

/// The first `count` events, in order, so many at a time.
pub(crate) fn chunks_of(count: usize, size: usize) -> impl Iterator<Item = Events> {
    let mut generator = EventGenerator::new(NexmarkConfig { base_time: BASE_MILLIS, ..NexmarkConfig::default() });
    (0..count).step_by(size).map(move |start| {
        let mut events = Events::default();
        for event in generator.by_ref().take(size.min(count - start)) {
            match event {
                Event::Person(person) => events.people.push(person),
                Event::Auction(auction) => events.auctions.push(auction),
                Event::Bid(bid) => events.bids.push(bid),
            }
        }
        events
    })
}

/// The same, as many at a time as one transaction takes.
pub(crate) fn chunks(count: usize) -> impl Iterator<Item = Events> {
    chunks_of(count, CHUNK_EVENTS)
}

impl Events {
    /// Events of all three streams.
    pub(crate) fn count(&self) -> usize {
        self.people.len() + self.auctions.len() + self.bids.len()
    }

    /// Those of each stream as a batch.
    pub(crate) fn batches(&self) -> anyhow::Result<[RecordBatch; 3]> {
        let (people, auctions, bids) = (&self.people, &self.auctions, &self.bids);
        Ok([
            RecordBatch::try_from_iter([
                ("id", integers(people, |row| row.id)),
                ("name", texts(people, |row| &row.name)),
                ("email_address", texts(people, |row| &row.email_address)),
                ("credit_card", texts(people, |row| &row.credit_card)),
                ("city", texts(people, |row| &row.city)),
                ("state", texts(people, |row| &row.state)),
                ("date_time", times(people, |row| row.date_time)),
                ("extra", texts(people, |row| &row.extra)),
            ])?,
            RecordBatch::try_from_iter([
                ("id", integers(auctions, |row| row.id)),
                ("item_name", texts(auctions, |row| &row.item_name)),
                ("description", texts(auctions, |row| &row.description)),
                ("initial_bid", integers(auctions, |row| row.initial_bid)),
                ("reserve", integers(auctions, |row| row.reserve)),
                ("date_time", times(auctions, |row| row.date_time)),
                ("expires", times(auctions, |row| row.expires)),
                ("seller", integers(auctions, |row| row.seller)),
                ("category", integers(auctions, |row| row.category)),
                ("extra", texts(auctions, |row| &row.extra)),
            ])?,
            RecordBatch::try_from_iter([
                ("auction", integers(bids, |row| row.auction)),
                ("bidder", integers(bids, |row| row.bidder)),
                ("price", integers(bids, |row| row.price)),
                ("channel", texts(bids, |row| &row.channel)),
                ("url", texts(bids, |row| &row.url)),
                ("date_time", times(bids, |row| row.date_time)),
                ("extra", texts(bids, |row| &row.extra)),
            ])?,
        ])
    }

    /// Those of each stream as an Arrow IPC stream, ready to be sent.
    pub(crate) fn arrow(&self) -> anyhow::Result<Arrow> {
        let [people, auctions, bids] = self.batches()?;
        Ok(Arrow { count: self.count(), streams: [encode(&people)?, encode(&auctions)?, encode(&bids)?] })
    }
}

/// Events of the three streams, ready to be sent.
#[derive(Debug)]
pub(crate) struct Arrow {
    /// How many they are.
    pub(crate) count: usize,
    streams: [Vec<Bytes>; 3],
}

impl Arrow {
    /// Loads them with one transaction.
    pub(crate) async fn load(&self, client: &Client) -> anyhow::Result<()> {
        client.batch_execute("BEGIN").await?;
        let mut rows = 0;
        for (name, bytes) in STREAMS.into_iter().zip(&self.streams) {
            rows += copy(client, name, bytes).await?;
        }
        client.batch_execute("COMMIT").await?;
        anyhow::ensure!(rows as usize == self.count, "{rows} events of {} were copied", self.count);
        Ok(())
    }
}

/// Copies an Arrow IPC stream into a stream; its rows.
pub(crate) async fn copy(client: &Client, name: &str, bytes: &[Bytes]) -> anyhow::Result<u64> {
    let statement = format!("COPY {name} FROM STDIN WITH (FORMAT arrow)");
    let mut sink = pin!(client.copy_in::<_, Bytes>(&statement).await?);
    for part in bytes {
        sink.feed(part.clone()).await?;
    }
    Ok(sink.as_mut().finish().await?)
}

/// A batch as an Arrow IPC stream, ready to be sent.
pub(crate) fn encode(batch: &RecordBatch) -> anyhow::Result<Vec<Bytes>> {
    let mut stream = StreamWriter::try_new(Vec::new(), &batch.schema())?;
    stream.write(batch)?;
    Ok(parts(stream.into_inner()?))
}

/// Writes the first `count` events as one file of csv for each stream: `person.csv`, `auction.csv` and `bid.csv`.
///
/// Nothing in them needs quotes. Times are `2026-01-01 00:00:00.000`.
pub(crate) fn write_csv(dir: &Path, count: usize) -> anyhow::Result<()> {
    let create = |name: &str| File::create(dir.join(format!("{name}.csv"))).map(BufWriter::new);
    let [mut people, mut auctions, mut bids] = [create(STREAMS[0])?, create(STREAMS[1])?, create(STREAMS[2])?];
    for events in chunks(count) {
        for row in &events.people {
            let time = time_text(row.date_time)?;
            let Person { id, name, email_address, credit_card, city, state, extra, .. } = row;
            writeln!(people, "{id},{name},{email_address},{credit_card},{city},{state},{time},{extra}")?;
        }
        for row in &events.auctions {
            let (time, expires) = (time_text(row.date_time)?, time_text(row.expires)?);
            let Auction { id, item_name, description, initial_bid, reserve, seller, category, extra, .. } = row;
            write!(auctions, "{id},{item_name},{description},{initial_bid},{reserve},{time},{expires}")?;
            writeln!(auctions, ",{seller},{category},{extra}")?;
        }
        for row in &events.bids {
            let time = time_text(row.date_time)?;
            let Bid { auction, bidder, price, channel, url, extra, .. } = row;
            writeln!(bids, "{auction},{bidder},{price},{channel},{url},{time},{extra}")?;
        }
    }
    [people, auctions, bids].iter_mut().try_for_each(|file| file.flush().context("not written"))
}

fn time_text(millis: u64) -> anyhow::Result<String> {
    let time = DateTime::from_timestamp_millis(i64::try_from(millis)?).context("no time")?;
    Ok(time.format("%Y-%m-%d %H:%M:%S%.3f").to_string())
}

fn integers<T>(rows: &[T], value: impl Fn(&T) -> usize) -> ArrayRef {
    Arc::new(rows.iter().map(|row| Some(value(row) as i64)).collect::<Int64Array>())
}

fn texts<'a, T>(rows: &'a [T], value: impl Fn(&'a T) -> &'a String) -> ArrayRef {
    Arc::new(rows.iter().map(|row| Some(value(row))).collect::<StringArray>())
}

fn times<T>(rows: &[T], millis: impl Fn(&T) -> u64) -> ArrayRef {
    Arc::new(rows.iter().map(|row| Some(millis(row) as i64 * 1_000)).collect::<TimestampMicrosecondArray>())
}
