//! A client of NATS JetStream that pulls batches of a durable consumer: the least that works, as ours.

use anyhow::{Context as _, bail};
use bytes::{Buf as _, BytesMut};
use std::io::Write as _;
use std::net::SocketAddr;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};

/// Messages of one request, each of which is acknowledged with its last message.
pub(crate) const BATCH: usize = 1_000;
/// Requests on their way, so that the server need not wait for the next.
pub(crate) const REQUESTS: usize = 2;
const READ_BYTES: usize = 64 << 10;

/// A connection.
#[derive(Debug)]
pub(crate) struct NatsPuller {
    connection: OwnedReadHalf,
    writer: OwnedWriteHalf,
    inbox: BytesMut,
    outbox: Vec<u8>,
    request: Vec<u8>,
    /// Messages of the batch that is not acknowledged.
    of_batch: usize,
}

impl NatsPuller {
    /// Connects; [`NatsPuller::begin`] asks for messages.
    pub(crate) async fn connect(address: SocketAddr, stream: &str, consumer: &str) -> anyhow::Result<Self> {
        let connection = TcpStream::connect(address).await?;
        connection.set_nodelay(true)?;
        let (connection, writer) = connection.into_split();
        let replies = format!("_INBOX.pull.{}", writer.local_addr()?.port());
        let body = format!("{{\"batch\":{BATCH}}}");
        let request =
            format!("PUB $JS.API.CONSUMER.MSG.NEXT.{stream}.{consumer} {replies} {}\r\n{body}\r\n", body.len());
        let mut outbox = Vec::new();
        write!(outbox, "CONNECT {{\"verbose\":false,\"pedantic\":false,\"headers\":true,\"protocol\":1}}\r\n")?;
        write!(outbox, "SUB {replies} 1\r\n")?;
        let request = request.into_bytes();
        let mut puller = Self { connection, writer, inbox: BytesMut::new(), outbox, request, of_batch: 0 };
        puller.flush().await?;
        Ok(puller)
    }

    /// Asks for the first messages.
    pub(crate) async fn begin(&mut self) -> anyhow::Result<()> {
        for _ in 0..REQUESTS {
            self.outbox.extend_from_slice(&self.request);
        }
        self.flush().await
    }

    async fn flush(&mut self) -> anyhow::Result<()> {
        self.writer.write_all(&self.outbox).await?;
        self.outbox.clear();
        Ok(())
    }

    /// Shows `each` the messages that are here, at least one; how many.
    pub(crate) async fn values(&mut self, mut each: impl FnMut(&[u8]) -> anyhow::Result<()>) -> anyhow::Result<usize> {
        loop {
            let mut rows = 0;
            let mut rest: &[u8] = &self.inbox;
            while let Some(end) = rest.iter().position(|byte| *byte == b'\n') {
                let line = rest[..end].strip_suffix(b"\r").context("a line without its end")?;
                let after = &rest[end + 1..];
                if !line.starts_with(b"MSG ") {
                    match line {
                        b"PING" => self.outbox.extend_from_slice(b"PONG\r\n"),
                        b"PONG" | b"+OK" => {}
                        _ if line.starts_with(b"INFO ") => {}
                        _ => bail!("the server says \"{}\"", String::from_utf8_lossy(line)),
                    }
                    rest = after;
                    continue;
                }
                // Of MSG, the subject, the subscription, the reply's subject and the length.
                let mut words = line.rsplitn(3, |byte| *byte == b' ');
                let length = std::str::from_utf8(words.next().context("no length")?)?.parse::<usize>()?;
                let Some(value) = after.get(..length + 2) else { break };
                each(&value[..length])?;
                rows += 1;
                self.of_batch += 1;
                if self.of_batch == BATCH {
                    self.of_batch = 0;
                    let reply = words.next().context("no reply")?;
                    self.outbox.extend_from_slice(b"PUB ");
                    self.outbox.extend_from_slice(reply);
                    self.outbox.extend_from_slice(b" 4\r\n+ACK\r\n");
                    self.outbox.extend_from_slice(&self.request);
                }
                rest = &after[length + 2..];
            }
            let taken = self.inbox.len() - rest.len();
            self.inbox.advance(taken);
            if !self.outbox.is_empty() {
                self.flush().await?;
            }
            if rows > 0 {
                return Ok(rows);
            }
            self.inbox.reserve(READ_BYTES);
            let read = self.connection.read_buf(&mut self.inbox).await?;
            anyhow::ensure!(read > 0, "the connection ended");
        }
    }
}
