//! A client of PostgreSQL's protocol for one prepared statement of one text, and for the rows of a query, of ours and of
//! PostgreSQL: the least that works, as those of Redis and NATS are.

use super::Pipe;
use anyhow::{Context as _, bail};
use async_trait::async_trait;
use bytes::{Buf as _, Bytes, BytesMut};
use std::net::SocketAddr;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};

const PROTOCOL: u32 = 196_608;
/// Tag and length of a message.
const HEAD_BYTES: usize = 5;
/// Room for what is read at once of many rows.
const READ_BYTES: usize = 64 << 10;

/// A connection, perhaps with a statement.
#[derive(Debug)]
pub(crate) struct SqlPipe {
    reader: SqlReader,
    writer: SqlWriter,
}

/// What comes of a connection.
#[derive(Debug)]
pub(crate) struct SqlReader {
    connection: OwnedReadHalf,
    inbox: BytesMut,
}

/// Where events go.
#[derive(Debug)]
pub(crate) struct SqlWriter {
    connection: OwnedWriteHalf,
    outbox: Vec<u8>,
}

/// What came of a connection.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Came {
    /// Rows.
    pub(crate) rows: usize,
    /// How often the server was ready for the next statement.
    pub(crate) readies: usize,
}

impl SqlPipe {
    /// Connects.
    pub(crate) async fn open((address, user): (SocketAddr, &str)) -> anyhow::Result<Self> {
        let connection = TcpStream::connect(address).await?;
        connection.set_nodelay(true)?;
        let (read, write) = connection.into_split();
        let reader = SqlReader { connection: read, inbox: BytesMut::new() };
        let writer = SqlWriter { connection: write, outbox: Vec::new() };
        let mut pipe = Self { reader, writer };
        let startup = [&PROTOCOL.to_be_bytes()[..], b"user\0", user.as_bytes(), b"\0database\0postgres\0\0"].concat();
        pipe.writer.outbox.extend_from_slice(&(u32::try_from(startup.len())? + 4).to_be_bytes());
        pipe.writer.outbox.extend_from_slice(&startup);
        pipe.ask().await?;
        Ok(pipe)
    }

    /// Connects, runs `set` unless it is empty, and prepares `statement`.
    pub(crate) async fn prepare(at: (SocketAddr, &str), set: &str, statement: &str) -> anyhow::Result<Self> {
        let mut pipe = Self::open(at).await?;
        if !set.is_empty() {
            pipe.writer.add(b'Q', &[set.as_bytes(), b"\0"])?;
            pipe.ask().await?;
        }
        pipe.writer.add(b'P', &[b"event\0", statement.as_bytes(), b"\0\0\0"])?;
        pipe.writer.add(b'S', &[])?;
        pipe.ask().await?;
        Ok(pipe)
    }

    /// The same with the INSERT of one text into `table`.
    pub(crate) async fn connect(at: (SocketAddr, &str), set: &str, table: &str) -> anyhow::Result<Self> {
        Self::prepare(at, set, &format!("INSERT INTO {table} VALUES ($1)")).await
    }

    /// Connects and runs `statement`; what it is told later is read with [`SqlReader::rows`].
    pub(crate) async fn listen(at: (SocketAddr, &str), statement: &str) -> anyhow::Result<(SqlReader, SqlWriter)> {
        let mut pipe = Self::open(at).await?;
        pipe.writer.add(b'Q', &[statement.as_bytes(), b"\0"])?;
        pipe.ask().await?;
        Ok(pipe.into_halves())
    }

    /// Connects and sends a query, whose rows are read with [`SqlReader::rows`].
    pub(crate) async fn query(at: (SocketAddr, &str), query: &str) -> anyhow::Result<(SqlReader, SqlWriter)> {
        let mut pipe = Self::open(at).await?;
        pipe.writer.add(b'Q', &[query.as_bytes(), b"\0"])?;
        pipe.writer.flush().await?;
        Ok(pipe.into_halves())
    }

    /// One half to send, and one that must be read. The connection ends with both.
    pub(crate) fn into_halves(self) -> (SqlReader, SqlWriter) {
        (self.reader, self.writer)
    }

    async fn ask(&mut self) -> anyhow::Result<()> {
        self.writer.flush().await?;
        self.reader.ready(1).await
    }
}

impl SqlWriter {
    fn add(&mut self, tag: u8, parts: &[&[u8]]) -> anyhow::Result<()> {
        let bytes: usize = parts.iter().map(|part| part.len()).sum();
        self.outbox.push(tag);
        self.outbox.extend_from_slice(&(u32::try_from(bytes)? + 4).to_be_bytes());
        parts.iter().for_each(|part| self.outbox.extend_from_slice(part));
        Ok(())
    }

    /// Sends a statement, or several.
    pub(crate) async fn simple(&mut self, statement: &str) -> anyhow::Result<()> {
        self.add(b'Q', &[statement.as_bytes(), b"\0"])?;
        self.flush().await
    }

    /// Sends a statement without parameters by the extended protocol, for all its rows, as texts.
    pub(crate) async fn extended(&mut self, statement: &str) -> anyhow::Result<()> {
        self.add(b'P', &[b"\0", statement.as_bytes(), b"\0\0\0"])?;
        self.add(b'B', &[b"\0\0\0\0\0\0\0\0"])?;
        self.add(b'D', &[b"P\0"])?;
        self.add(b'E', &[b"\0\0\0\0\0"])?;
        self.add(b'S', &[])?;
        self.flush().await
    }

    async fn flush(&mut self) -> anyhow::Result<()> {
        self.connection.write_all(&self.outbox).await?;
        self.outbox.clear();
        Ok(())
    }

    /// Executes the prepared statement for each event.
    pub(crate) async fn send(&mut self, events: &[&str]) -> anyhow::Result<()> {
        for event in events {
            // One parameter, a text; then no result formats. A Sync each: each is a transaction.
            let length = u32::try_from(event.len())?.to_be_bytes();
            self.add(b'B', &[b"\0event\0\0\0\0\x01", &length, event.as_bytes(), b"\0\0"])?;
            self.add(b'E', &[b"\0\0\0\0\0"])?;
            self.add(b'S', &[])?;
        }
        self.flush().await
    }
}

impl SqlReader {
    /// The next message that is here: its tag and its body.
    fn message(&mut self) -> anyhow::Result<Option<(u8, Bytes)>> {
        let head = self.inbox.first_chunk::<HEAD_BYTES>();
        let Some([tag, length @ ..]) = head.copied() else { return Ok(None) };
        let length = u32::from_be_bytes(length) as usize + 1;
        if length > self.inbox.len() {
            return Ok(None);
        }
        let body = self.inbox.split_to(length).freeze().slice(HEAD_BYTES..);
        match tag {
            b'E' => bail!("{}", String::from_utf8_lossy(&body).replace('\0', " ")),
            b'R' if *body != [0; 4] => bail!("a password is asked for"),
            _ => Ok(Some((tag, body))),
        }
    }

    async fn read(&mut self) -> anyhow::Result<()> {
        let read = self.connection.read_buf(&mut self.inbox).await?;
        anyhow::ensure!(read > 0, "the connection ended");
        Ok(())
    }

    /// Waits for `count` times ReadyForQuery: one for each Sync.
    pub(crate) async fn ready(&mut self, count: usize) -> anyhow::Result<()> {
        let mut missing = count;
        while missing > 0 {
            match self.message()? {
                Some((b'Z', _)) => missing -= 1,
                Some(_) => {}
                None => self.read().await?,
            }
        }
        Ok(())
    }

    /// Waits until a query, or a COPY of one, has begun.
    pub(crate) async fn begun(&mut self) -> anyhow::Result<()> {
        loop {
            match self.message()? {
                Some((b'T' | b'H', _)) => return Ok(()),
                Some(_) => {}
                None => self.read().await?,
            }
        }
    }

    /// Shows `each` the first column of each row that is here, or each line of a COPY as text, where it lies; what came, at
    /// least one row or ReadyForQuery.
    pub(crate) async fn values(&mut self, mut each: impl FnMut(&[u8]) -> anyhow::Result<()>) -> anyhow::Result<Came> {
        loop {
            let mut came = Came::default();
            let mut rest: &[u8] = &self.inbox;
            while let Some([tag, length @ ..]) = rest.first_chunk::<HEAD_BYTES>().copied() {
                let end = u32::from_be_bytes(length) as usize + 1;
                let Some(body) = rest.get(HEAD_BYTES..end) else { break };
                rest = &rest[end..];
                match tag {
                    b'D' => {
                        // The number of columns; the length of the first.
                        let length = body.get(2..6).and_then(|length| length.try_into().ok()).context("no column")?;
                        let length = usize::try_from(i32::from_be_bytes(length)).context("a null")?;
                        each(body.get(6..6 + length).context("a short row")?)?;
                        came.rows += 1;
                    }
                    b'd' => {
                        for line in body.split_inclusive(|byte| *byte == b'\n') {
                            each(line.strip_suffix(b"\n").context("a part of a row")?)?;
                            came.rows += 1;
                        }
                    }
                    b'Z' => came.readies += 1,
                    b'E' => bail!("{}", String::from_utf8_lossy(body).replace('\0', " ")),
                    _ => {}
                }
            }
            let taken = self.inbox.len() - rest.len();
            self.inbox.advance(taken);
            if came.rows + came.readies > 0 {
                return Ok(came);
            }
            self.inbox.reserve(READ_BYTES);
            self.read().await?;
        }
    }

    /// The first columns, texts, of the rows that are here, and what notifications say; at least one.
    pub(crate) async fn rows(&mut self) -> anyhow::Result<Vec<String>> {
        let mut rows = Vec::new();
        loop {
            match self.message()? {
                Some((b'D', mut body)) => {
                    // The number of columns; the length of the first.
                    body.advance(2);
                    let length = usize::try_from(body.get_i32()).context("a null")?;
                    rows.push(String::from_utf8(body.slice(..length).to_vec())?);
                }
                Some((b'A', body)) => {
                    // Who, where and what.
                    let text = body.slice(4..).split(|byte| *byte == 0).nth(1).map(<[u8]>::to_vec);
                    rows.push(String::from_utf8(text.context("no payload")?)?);
                }
                Some((b'C', tag)) if tag.starts_with(b"SELECT") => bail!("the query ended"),
                Some(_) => {}
                None if rows.is_empty() => self.read().await?,
                None => return Ok(rows),
            }
        }
    }
}

#[async_trait(?Send)]
impl Pipe for SqlPipe {
    async fn send(&mut self, events: &[&str]) -> anyhow::Result<()> {
        self.writer.send(events).await
    }

    async fn acknowledged(&mut self, count: usize) -> anyhow::Result<()> {
        self.reader.ready(count).await
    }
}
