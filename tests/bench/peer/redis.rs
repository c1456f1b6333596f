//! Redis Streams: a server that syncs each append, and a client of its protocol (RESP 2).

use super::Pipe;
use crate::kit::process::{Process, free_address};
use crate::kit::server::directory;
use anyhow::{Context as _, bail};
use async_trait::async_trait;
use std::io::Write as _;
use std::net::SocketAddr;
use std::process::{Command, Stdio};
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};

const BUFFER_BYTES: usize = 256 << 10;
/// Entries of one XRANGE.
const READ_COUNT: &str = "10000";

/// A running Redis.
#[derive(Debug)]
pub(crate) struct Redis {
    _process: Process,
    address: SocketAddr,
    _dir: TempDir,
}

impl Redis {
    /// Starts one.
    pub(crate) fn start() -> anyhow::Result<Self> {
        let dir = directory()?;
        let address = free_address()?;
        let mut command = Command::new("redis-server");
        command.args(["--port", &address.port().to_string(), "--bind", "127.0.0.1", "--dir"]).arg(dir.path());
        command.args(["--appendonly", "yes", "--appendfsync", "always", "--save", ""]);
        let mut process = Process::start(command.stdout(Stdio::null()).stderr(Stdio::null()), "-TERM")?;
        process.wait_until_listening(address)?;
        Ok(Self { _process: process, address, _dir: dir })
    }

    /// A client that appends to the stream of this name.
    pub(crate) async fn client(&self, stream: &str) -> anyhow::Result<RedisClient> {
        let connection = TcpStream::connect(self.address).await?;
        connection.set_nodelay(true)?;
        let (reader, writer) = connection.into_split();
        let replies = Replies { reader: BufReader::with_capacity(BUFFER_BYTES, reader), line: Vec::new() };
        Ok(RedisClient { stream: stream.to_owned(), replies, writer, outbox: Vec::new() })
    }
}

/// A connection.
#[derive(Debug)]
pub(crate) struct RedisClient {
    stream: String,
    replies: Replies,
    writer: OwnedWriteHalf,
    outbox: Vec<u8>,
}

impl RedisClient {
    fn add(&mut self, words: &[&str]) -> anyhow::Result<()> {
        write!(self.outbox, "*{}\r\n", words.len())?;
        for word in words {
            write!(self.outbox, "${}\r\n{word}\r\n", word.len())?;
        }
        Ok(())
    }

    async fn flush(&mut self) -> anyhow::Result<()> {
        self.writer.write_all(&self.outbox).await?;
        self.outbox.clear();
        Ok(())
    }

    async fn ask(&mut self, words: &[&str]) -> anyhow::Result<Vec<String>> {
        self.add(words)?;
        self.flush().await?;
        self.replies.next().await
    }

    /// Forgets the stream.
    pub(crate) async fn delete(&mut self) -> anyhow::Result<()> {
        let stream = self.stream.clone();
        self.ask(&["DEL", &stream]).await.map(drop)
    }

    /// Reads the whole stream; how many events, and how many bytes.
    pub(crate) async fn read_all(&mut self) -> anyhow::Result<(usize, usize)> {
        let stream = self.stream.clone();
        let (mut from, mut count, mut bytes) = ("-".to_owned(), 0, 0);
        loop {
            let reply = self.ask(&["XRANGE", &stream, &from, "+", "COUNT", READ_COUNT]).await?;
            let Some([last, ..]) = reply.chunks_exact(3).next_back() else { return Ok((count, bytes)) };
            from = format!("({last}");
            count += reply.len() / 3;
            bytes += reply.chunks_exact(3).map(|entry| entry[2].len()).sum::<usize>();
        }
    }

    /// The events behind `position`, as soon as there are any; moves it behind them.
    pub(crate) async fn next(&mut self, position: &mut String) -> anyhow::Result<Vec<String>> {
        let stream = self.stream.clone();
        let reply = self.ask(&["XREAD", "BLOCK", "0", "STREAMS", &stream, position]).await?;
        // The stream's name, then identifier, field and value of each.
        let entries = reply.get(1..).context("no entries")?.chunks_exact(3);
        let events = entries.clone().map(|entry| entry[2].clone()).collect();
        *position = entries.last().context("no entries")?[0].clone();
        Ok(events)
    }

    /// The writing and the reading half, for one that does not wait.
    pub(crate) fn into_halves(self) -> (RedisWriter, Replies) {
        let Self { stream, replies, writer, outbox } = self;
        (RedisWriter { stream, writer, outbox }, replies)
    }
}

/// The writing half of a connection.
#[derive(Debug)]
pub(crate) struct RedisWriter {
    stream: String,
    writer: OwnedWriteHalf,
    outbox: Vec<u8>,
}

impl RedisWriter {
    /// Sends events.
    pub(crate) async fn send(&mut self, events: &[&str]) -> anyhow::Result<()> {
        for event in events {
            add_event(&mut self.outbox, &self.stream, event)?;
        }
        self.writer.write_all(&self.outbox).await?;
        self.outbox.clear();
        Ok(())
    }
}

fn add_event(outbox: &mut Vec<u8>, stream: &str, event: &str) -> anyhow::Result<()> {
    write!(outbox, "*5\r\n$4\r\nXADD\r\n${}\r\n{stream}\r\n$1\r\n*\r\n$1\r\np\r\n", stream.len())?;
    write!(outbox, "${}\r\n{event}\r\n", event.len())?;
    Ok(())
}

#[async_trait(?Send)]
impl Pipe for RedisClient {
    async fn send(&mut self, events: &[&str]) -> anyhow::Result<()> {
        for event in events {
            add_event(&mut self.outbox, &self.stream, event)?;
        }
        self.flush().await
    }

    async fn acknowledged(&mut self, count: usize) -> anyhow::Result<()> {
        for _ in 0..count {
            self.replies.next().await?;
        }
        Ok(())
    }
}

/// The reading half of a connection.
#[derive(Debug)]
pub(crate) struct Replies {
    reader: BufReader<OwnedReadHalf>,
    line: Vec<u8>,
}

impl Replies {
    /// The next reply's texts and numbers, its arrays flattened.
    pub(crate) async fn next(&mut self) -> anyhow::Result<Vec<String>> {
        let (mut texts, mut missing) = (Vec::new(), 1);
        while missing > 0 {
            missing -= 1;
            self.line.clear();
            self.reader.read_until(b'\n', &mut self.line).await?;
            let line = std::str::from_utf8(&self.line)?.trim_end();
            let (kind, rest) = line.split_at_checked(1).context("the connection ended")?;
            match kind {
                "+" | ":" => texts.push(rest.to_owned()),
                "*" => missing += rest.parse::<i64>()?.max(0),
                "$" => {
                    if let Ok(length) = usize::try_from(rest.parse::<i64>()?) {
                        let mut text = vec![0; length + 2];
                        self.reader.read_exact(&mut text).await?;
                        text.truncate(length);
                        texts.push(String::from_utf8(text)?);
                    }
                }
                _ => bail!("{line}"),
            }
        }
        Ok(texts)
    }
}
