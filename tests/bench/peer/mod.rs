//! The peers, as far as they are installed; each is a process of its own on the disk the server uses.

#![allow(dead_code, reason = "each bench uses its own part of it")]

pub(crate) mod kafka;
pub(crate) mod nats;
pub(crate) mod nats_pull;
pub(crate) mod postgres;
pub(crate) mod redis;
pub(crate) mod sql;

use crate::kit::report::Report;
use async_trait::async_trait;
use clap::ValueEnum;
use kafka::Kafka;
use nats::{Nats, SyncInterval};
use postgres::Postgres;
use redis::Redis;
use std::cell::RefCell;

/// A peer's name on the command line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum PeerName {
    /// PostgreSQL, synchronous_commit on
    Postgres,
    /// Redis Streams, appendfsync always
    Redis,
    /// NATS JetStream, file store
    Nats,
    /// Apache Kafka, one broker
    Kafka,
    /// Nobody
    None,
}

/// Those that run.
#[derive(Debug, Default)]
pub(crate) struct Peers {
    /// With `synchronous_commit`.
    pub(crate) postgres: Option<Postgres>,
    /// With `appendfsync always`.
    pub(crate) redis: Option<Redis>,
    /// With its defaults and, where it knows that, with a sync of each message.
    pub(crate) nats: Vec<Nats>,
    /// With acks=all.
    pub(crate) kafka: Option<RefCell<Kafka>>,
}

impl Peers {
    /// Starts what is installed and wanted (all, if `wanted` is empty); a note names each that is not there.
    pub(crate) fn start(report: &mut Report, wanted: &[PeerName]) -> Self {
        let is_wanted = |name| wanted.is_empty() || wanted.contains(&name);
        let mut peers = Self::default();
        if is_wanted(PeerName::Postgres) {
            peers.postgres = present(report, "PostgreSQL", Postgres::start());
        }
        if is_wanted(PeerName::Redis) {
            peers.redis = present(report, "Redis", Redis::start());
        }
        if is_wanted(PeerName::Nats) {
            peers.nats.extend(present(report, "NATS", Nats::start(SyncInterval::Default)));
            if !peers.nats.is_empty() {
                let always = Nats::start(SyncInterval::Always);
                peers.nats.extend(present(report, "NATS that syncs each message", always));
            }
        }
        if is_wanted(PeerName::Kafka) {
            peers.kafka = present(report, "Kafka", Kafka::start()).map(RefCell::new);
        }
        peers
    }
}

fn present<T>(report: &mut Report, name: &str, started: anyhow::Result<T>) -> Option<T> {
    started.inspect_err(|error| report.note(format!("{name} is not compared: {error:#}"))).ok()
}

/// A client that appends events, each acknowledged by itself.
#[async_trait(?Send)]
pub(crate) trait Write {
    /// Sends `events` without waiting in between, and waits until each is acknowledged.
    async fn write(&mut self, events: &[&str]) -> anyhow::Result<()>;
}

/// A client whose acknowledgements come later.
#[async_trait(?Send)]
pub(crate) trait Pipe {
    /// Sends `events`.
    async fn send(&mut self, events: &[&str]) -> anyhow::Result<()>;

    /// Waits for the next `count` acknowledgements.
    async fn acknowledged(&mut self, count: usize) -> anyhow::Result<()>;
}

#[async_trait(?Send)]
impl<P: Pipe> Write for P {
    async fn write(&mut self, events: &[&str]) -> anyhow::Result<()> {
        self.send(events).await?;
        self.acknowledged(events.len()).await
    }
}
