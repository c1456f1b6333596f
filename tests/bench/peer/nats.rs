//! NATS JetStream: a server with a file store, and a client of its text protocol.
//!
//! A publish asks for its acknowledgement by a reply subject; one subscription takes all of them.

use super::Pipe;
use crate::kit::process::{Process, free_address, is_installed};
use crate::kit::server::directory;
use anyhow::{Context as _, bail};
use async_trait::async_trait;
use std::fs;
use std::io::Write as _;
use std::net::SocketAddr;
use std::process::{Command, Stdio};
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};

const BUFFER_BYTES: usize = 256 << 10;

/// When the server syncs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum SyncInterval {
    /// As it is made: every two minutes.
    Default,
    /// Each message before it is acknowledged.
    Always,
}

/// A running server.
#[derive(Debug)]
pub(crate) struct Nats {
    _process: Process,
    address: SocketAddr,
    sync: SyncInterval,
    _dir: TempDir,
}

impl Nats {
    /// Starts one.
    pub(crate) fn start(sync: SyncInterval) -> anyhow::Result<Self> {
        let program = if is_installed("nats-server") { "nats-server" } else { "/usr/sbin/nats-server" };
        let dir = directory()?;
        let address = free_address()?;
        let interval = match sync {
            SyncInterval::Default => "",
            SyncInterval::Always => ", sync_interval: always",
        };
        let path = dir.path().join("nats.conf");
        let store = dir.path().join("store");
        // A client that waits for its turn does not answer a ping.
        let text = format!(
            "listen: \"{address}\"\nping_interval: \"1h\"\njetstream {{ store_dir: \"{}\"{interval} }}\n",
            store.display()
        );
        fs::write(&path, text)?;
        let check = Command::new(program).arg("-t").arg("-c").arg(&path).output().context("no nats-server")?;
        anyhow::ensure!(check.status.success(), "it refuses the configuration: {}", said(&check.stderr));
        let mut command = Command::new(program);
        command.arg("-c").arg(&path).stdout(Stdio::null()).stderr(Stdio::null());
        let mut process = Process::start(&mut command, "-TERM")?;
        process.wait_until_listening(address)?;
        Ok(Self { _process: process, address, sync, _dir: dir })
    }

    /// Its name in the table.
    pub(crate) fn name(&self) -> &'static str {
        match self.sync {
            SyncInterval::Default => "NATS (syncs each 2 min)",
            SyncInterval::Always => "NATS (syncs each message)",
        }
    }

    /// Whether an acknowledged message is on disk.
    pub(crate) fn is_durable(&self) -> bool {
        self.sync == SyncInterval::Always
    }

    /// Where it listens.
    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// A client that publishes to the stream of this name, which is made if it is not there.
    pub(crate) async fn client(&self, stream: &str) -> anyhow::Result<NatsClient> {
        let connection = TcpStream::connect(self.address).await?;
        connection.set_nodelay(true)?;
        let (reader, writer) = connection.into_split();
        let messages = Messages { reader: BufReader::with_capacity(BUFFER_BYTES, reader), line: Vec::new() };
        let inbox = format!("_INBOX.{}", writer.local_addr()?.port());
        let mut outbox = Vec::new();
        write!(outbox, "CONNECT {{\"verbose\":false,\"pedantic\":false,\"headers\":true,\"protocol\":1}}\r\n")?;
        write!(outbox, "SUB {inbox} 1\r\n")?;
        let mut client = NatsClient { stream: stream.to_owned(), inbox, messages, writer, outbox };
        let config = format!("{{\"name\":\"{stream}\",\"subjects\":[\"{stream}\"],\"storage\":\"file\"}}");
        client.api(&format!("STREAM.CREATE.{stream}"), &config).await?;
        Ok(client)
    }
}

/// One line of what a program says, without names of files.
fn said(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes);
    let line = text.lines().next().unwrap_or_default();
    line.rsplit_once(": ").map_or(line, |(_, fact)| fact).to_owned()
}

/// A message that came.
#[derive(Debug)]
pub(crate) struct Message {
    reply: Option<String>,
    has_headers: bool,
    /// What was published; empty for the protocol's own messages.
    pub(crate) payload: Vec<u8>,
}

/// A connection.
#[derive(Debug)]
pub(crate) struct NatsClient {
    stream: String,
    inbox: String,
    messages: Messages,
    writer: OwnedWriteHalf,
    outbox: Vec<u8>,
}

impl NatsClient {
    async fn flush(&mut self) -> anyhow::Result<()> {
        self.writer.write_all(&self.outbox).await?;
        self.outbox.clear();
        Ok(())
    }

    /// Asks JetStream, and refuses an answer that is an error.
    async fn api(&mut self, subject: &str, body: &str) -> anyhow::Result<()> {
        write!(self.outbox, "PUB $JS.API.{subject} {} {}\r\n{body}\r\n", self.inbox, body.len())?;
        self.flush().await?;
        let answer = String::from_utf8(self.messages.next(&mut self.writer).await?.payload)?;
        anyhow::ensure!(!answer.contains("\"error\""), "{answer}");
        Ok(())
    }

    /// Makes a durable consumer of the stream that others pull from; they acknowledge all up to a message.
    pub(crate) async fn create_consumer(&mut self, name: &str, pending_max: usize) -> anyhow::Result<()> {
        let config = format!(
            "{{\"stream_name\":\"{0}\",\"config\":{{\"durable_name\":\"{name}\",\"deliver_policy\":\"all\",\
             \"ack_policy\":\"all\",\"replay_policy\":\"instant\",\"max_ack_pending\":{pending_max}}}}}",
            self.stream
        );
        let subject = format!("CONSUMER.DURABLE.CREATE.{}.{name}", self.stream);
        self.api(&subject, &config).await
    }

    /// Has everything delivered to this client, from the first message stored.
    pub(crate) async fn subscribe(&mut self) -> anyhow::Result<()> {
        let deliver = format!("{}.events", self.inbox);
        write!(self.outbox, "SUB {deliver} 2\r\n")?;
        let config = format!(
            "{{\"stream_name\":\"{0}\",\"config\":{{\"deliver_subject\":\"{deliver}\",\"deliver_policy\":\"all\",\
             \"ack_policy\":\"none\",\"replay_policy\":\"instant\",\"flow_control\":true,\
             \"idle_heartbeat\":30000000000}}}}",
            self.stream
        );
        let subject = format!("CONSUMER.CREATE.{}", self.stream);
        write!(self.outbox, "PUB $JS.API.{subject} {} {}\r\n{config}\r\n", self.inbox, config.len())?;
        self.flush().await
    }

    /// The next event delivered.
    pub(crate) async fn next(&mut self) -> anyhow::Result<Vec<u8>> {
        loop {
            let message = self.messages.next(&mut self.writer).await?;
            match message {
                // "Go on?": flow control.
                Message { has_headers: true, reply: Some(reply), .. } => {
                    self.writer.write_all(format!("PUB {reply} 0\r\n\r\n").as_bytes()).await?;
                }
                Message { has_headers: true, .. } => {}
                // The answer to the subscription.
                Message { payload, .. } if payload.starts_with(b"{") => {
                    let answer = String::from_utf8_lossy(&payload);
                    anyhow::ensure!(!answer.contains("\"error\""), "{answer}");
                }
                Message { payload, .. } => return Ok(payload),
            }
        }
    }
}

impl NatsClient {
    /// Sends events; their acknowledgements come to nobody.
    pub(crate) async fn publish(&mut self, events: &[&str]) -> anyhow::Result<()> {
        for event in events {
            write!(self.outbox, "PUB {} _INBOX.nobody {}\r\n{event}\r\n", self.stream, event.len())?;
        }
        self.flush().await
    }
}

#[async_trait(?Send)]
impl Pipe for NatsClient {
    async fn send(&mut self, events: &[&str]) -> anyhow::Result<()> {
        for event in events {
            write!(self.outbox, "PUB {} {} {}\r\n{event}\r\n", self.stream, self.inbox, event.len())?;
        }
        self.flush().await
    }

    async fn acknowledged(&mut self, count: usize) -> anyhow::Result<()> {
        for _ in 0..count {
            let answer = self.messages.next(&mut self.writer).await?.payload;
            // An acknowledgement has the sequence; an error or "no responders" has not.
            let has_sequence = answer.windows(6).any(|word| word == b"\"seq\":");
            anyhow::ensure!(has_sequence, "not stored: {}", String::from_utf8_lossy(&answer));
        }
        Ok(())
    }
}

/// The reading half of a connection.
#[derive(Debug)]
struct Messages {
    reader: BufReader<OwnedReadHalf>,
    line: Vec<u8>,
}

impl Messages {
    /// The next message; pings are answered on the way.
    async fn next(&mut self, writer: &mut OwnedWriteHalf) -> anyhow::Result<Message> {
        loop {
            self.line.clear();
            self.reader.read_until(b'\n', &mut self.line).await?;
            let line = std::str::from_utf8(&self.line)?.trim_end();
            let words: Vec<&str> = line.split(' ').collect();
            let (headers, length, reply) = match words.as_slice() {
                ["MSG", _, _, length] => (None, length, None),
                ["MSG", _, _, reply, length] => (None, length, Some(reply)),
                ["HMSG", _, _, headers, length] => (Some(headers), length, None),
                ["HMSG", _, _, reply, headers, length] => (Some(headers), length, Some(reply)),
                ["PING"] => {
                    writer.write_all(b"PONG\r\n").await?;
                    continue;
                }
                ["INFO", ..] | ["PONG" | "+OK"] => continue,
                _ => bail!("the server says \"{line}\""),
            };
            let (length, reply) = (length.parse::<usize>()?, reply.map(|reply| (*reply).to_owned()));
            let has_headers = headers.is_some();
            let mut payload = vec![0; length + 2];
            self.reader.read_exact(&mut payload).await?;
            payload.truncate(length);
            return Ok(Message { reply, has_headers, payload });
        }
    }
}
