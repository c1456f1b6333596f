//! A client of PostgreSQL's protocol for one prepared INSERT, of ours and of PostgreSQL: the least that works, as those
//! of Redis and NATS are.

use super::Pipe;
use anyhow::{Context as _, bail};
use async_trait::async_trait;
use bytes::{Buf as _, BytesMut};
use std::net::SocketAddr;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

const PROTOCOL: u32 = 196_608;
/// Tag and length of a message.
const HEAD_BYTES: usize = 5;

/// A connection with its INSERT.
#[derive(Debug)]
pub(crate) struct SqlPipe {
    connection: TcpStream,
    inbox: BytesMut,
    outbox: Vec<u8>,
}

impl SqlPipe {
    /// Connects, runs `set` unless it is empty, and prepares the INSERT of one text into `table`.
    pub(crate) async fn connect(address: SocketAddr, user: &str, set: &str, table: &str) -> anyhow::Result<Self> {
        let connection = TcpStream::connect(address).await?;
        connection.set_nodelay(true)?;
        let mut pipe = Self { connection, inbox: BytesMut::new(), outbox: Vec::new() };
        let startup = [&PROTOCOL.to_be_bytes()[..], b"user\0", user.as_bytes(), b"\0database\0postgres\0\0"].concat();
        pipe.outbox.extend_from_slice(&(u32::try_from(startup.len())? + 4).to_be_bytes());
        pipe.outbox.extend_from_slice(&startup);
        pipe.ask().await?;
        if !set.is_empty() {
            pipe.add(b'Q', &[set.as_bytes(), b"\0"])?;
            pipe.ask().await?;
        }
        pipe.add(b'P', &[b"insert\0INSERT INTO ", table.as_bytes(), b" VALUES ($1)\0\0\0"])?;
        pipe.add(b'S', &[])?;
        pipe.ask().await?;
        Ok(pipe)
    }

    fn add(&mut self, tag: u8, parts: &[&[u8]]) -> anyhow::Result<()> {
        let bytes: usize = parts.iter().map(|part| part.len()).sum();
        self.outbox.push(tag);
        self.outbox.extend_from_slice(&(u32::try_from(bytes)? + 4).to_be_bytes());
        parts.iter().for_each(|part| self.outbox.extend_from_slice(part));
        Ok(())
    }

    async fn ask(&mut self) -> anyhow::Result<()> {
        self.flush().await?;
        self.acknowledged(1).await
    }

    async fn flush(&mut self) -> anyhow::Result<()> {
        self.connection.write_all(&self.outbox).await?;
        self.outbox.clear();
        Ok(())
    }
}

#[async_trait(?Send)]
impl Pipe for SqlPipe {
    async fn send(&mut self, events: &[&str]) -> anyhow::Result<()> {
        for event in events {
            // One parameter, a text; then no result formats. A Sync each: each is a transaction.
            let length = u32::try_from(event.len())?.to_be_bytes();
            self.add(b'B', &[b"\0insert\0\0\0\0\x01", &length, event.as_bytes(), b"\0\0"])?;
            self.add(b'E', &[b"\0\0\0\0\0"])?;
            self.add(b'S', &[])?;
        }
        self.flush().await
    }

    /// One ReadyForQuery for each Sync.
    async fn acknowledged(&mut self, count: usize) -> anyhow::Result<()> {
        let mut missing = count;
        while missing > 0 {
            let head = self.inbox.first_chunk::<HEAD_BYTES>();
            let length = head.map(|[_, length @ ..]| u32::from_be_bytes(*length) as usize + 1);
            let Some(length) = length.filter(|length| *length <= self.inbox.len()) else {
                let read = self.connection.read_buf(&mut self.inbox).await?;
                anyhow::ensure!(read > 0, "the connection ended");
                continue;
            };
            match *self.inbox.first().context("no message")? {
                b'Z' => missing -= 1,
                b'E' => bail!("{}", String::from_utf8_lossy(&self.inbox[HEAD_BYTES..length]).replace('\0', " ")),
                b'R' if self.inbox[HEAD_BYTES..length] != [0; 4] => bail!("a password is asked for"),
                _ => {}
            }
            self.inbox.advance(length);
        }
        Ok(())
    }
}
