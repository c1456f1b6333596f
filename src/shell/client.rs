//! The shell's connection: PostgreSQL's protocol from the client's side, over simple queries.
//!
//! Owns the socket, the start-up and the messages of one query at a time. Leaves out what is shown and
//! typed. The protocol's messages are pgwire's.

use bytes::{Bytes, BytesMut};
use pgwire::messages::cancel::CancelRequest;
use pgwire::messages::copy::{CopyData, CopyDone, CopyFail};
use pgwire::messages::simplequery::Query;
use pgwire::messages::startup::{Authentication, SecretKey, Startup};
use pgwire::messages::terminate::Terminate;
use pgwire::messages::{DecodeContext, PgWireBackendMessage, PgWireFrontendMessage, ProtocolVersion};
use std::io;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// Bytes read from the socket at once.
const READ_BYTES: usize = 64 << 10;

/// Where to connect, and as whom.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Target {
    pub(crate) host: String,
    pub(crate) port: u16,
    pub(crate) user: String,
    pub(crate) database: String,
}

/// A column of rows to come.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Column {
    pub(crate) name: String,
    /// The type's OID.
    pub(crate) type_id: u32,
}

/// What the server says next.
#[derive(Debug)]
pub(crate) enum Reply {
    /// Rows with these columns follow.
    Columns(Vec<Column>),
    /// A row in text; `None` is NULL.
    Row(Vec<Option<Bytes>>),
    /// A statement is done, with its tag.
    Done(String),
    /// A statement failed.
    Error(ServerError),
    /// A message beside.
    Notice(ServerError),
    /// The server waits for copy data.
    CopyIn,
    /// Copy data follows.
    CopyOut,
    /// Some copy data.
    CopyData(Bytes),
    /// Nothing more comes until the next query.
    Ready,
}

/// The fields of an error or notice.
#[derive(Debug, Clone, Default, PartialEq, Eq, thiserror::Error)]
#[error("{severity}: {message} ({sqlstate})")]
pub(crate) struct ServerError {
    pub(crate) severity: String,
    pub(crate) sqlstate: String,
    pub(crate) message: String,
    pub(crate) detail: Option<String>,
    pub(crate) hint: Option<String>,
    pub(crate) context: Option<String>,
    /// Characters from the start of the text, 1-based.
    pub(crate) position: Option<usize>,
}

impl ServerError {
    fn new(fields: Vec<(u8, String)>) -> Self {
        let mut error = Self::default();
        for (kind, text) in fields {
            match kind {
                b'V' => error.severity = text,
                b'S' if error.severity.is_empty() => error.severity = text,
                b'C' => error.sqlstate = text,
                b'M' => error.message = text,
                b'D' => error.detail = Some(text),
                b'W' => error.context = Some(text),
                b'H' => error.hint = Some(text),
                b'P' => error.position = text.parse().ok(),
                _ => {}
            }
        }
        error
    }
}

/// Why a connection cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ClientError {
    /// No server answers.
    #[error("cannot connect to {0}: {1}")]
    Connect(String, #[source] io::Error),
    /// The connection broke.
    #[error("the connection was lost: {0}")]
    Lost(#[from] io::Error),
    /// The server sent something else than PostgreSQL's protocol.
    #[error("the server does not speak PostgreSQL's protocol: {0}")]
    Protocol(String),
    /// The server refused the session.
    #[error("{0}")]
    Refused(Box<ServerError>),
}

/// How to cancel what a connection runs.
#[derive(Debug, Clone)]
pub(crate) struct Canceller {
    address: (String, u16),
    pid: i32,
    secret: SecretKey,
}

impl Canceller {
    /// Asks the server to cancel the running statement.
    pub(crate) async fn cancel(&self) -> Result<(), ClientError> {
        let mut stream = TcpStream::connect((self.address.0.as_str(), self.address.1)).await?;
        let request = PgWireFrontendMessage::CancelRequest(CancelRequest::new(self.pid, self.secret.clone()));
        stream.write_all(&encode(&request)?).await?;
        // The server closes the connection once it has acted.
        let mut rest = Vec::new();
        stream.read_to_end(&mut rest).await?;
        Ok(())
    }
}

/// An open session.
#[derive(Debug)]
pub(crate) struct Client {
    stream: TcpStream,
    incoming: BytesMut,
    context: DecodeContext,
    target: Target,
    key: Option<(i32, SecretKey)>,
    pub(crate) server_version: String,
}

fn encode(message: &PgWireFrontendMessage) -> Result<BytesMut, ClientError> {
    let mut bytes = BytesMut::new();
    message.encode(&mut bytes).map_err(|error| ClientError::Protocol(error.to_string()))?;
    Ok(bytes)
}

impl Client {
    /// Opens a session.
    pub(crate) async fn connect(target: &Target) -> Result<Self, ClientError> {
        let place = format!("{}:{}", target.host, target.port);
        let stream = TcpStream::connect((target.host.as_str(), target.port))
            .await
            .map_err(|error| ClientError::Connect(place, error))?;
        stream.set_nodelay(true)?;
        let mut context = DecodeContext::new(ProtocolVersion::PROTOCOL3_0);
        context.awaiting_frontend_ssl = false;
        context.awaiting_frontend_startup = false;
        let mut client = Self {
            stream,
            incoming: BytesMut::with_capacity(READ_BYTES),
            context,
            target: target.clone(),
            key: None,
            server_version: String::new(),
        };
        let mut startup = Startup::new();
        for (name, value) in
            [("user", &target.user), ("database", &target.database), ("application_name", &"millstream sql".to_owned())]
        {
            startup.parameters.insert(name.to_owned(), value.clone());
        }
        client.send(&PgWireFrontendMessage::Startup(startup)).await?;
        loop {
            match client.receive().await? {
                Reply::Ready => return Ok(client),
                Reply::Error(error) => return Err(ClientError::Refused(Box::new(error))),
                _ => {}
            }
        }
    }

    /// Where this is connected.
    pub(crate) fn target(&self) -> &Target {
        &self.target
    }

    /// How to cancel from another task.
    pub(crate) fn canceller(&self) -> Option<Canceller> {
        let (pid, secret) = self.key.clone()?;
        Some(Canceller { address: (self.target.host.clone(), self.target.port), pid, secret })
    }

    async fn send(&mut self, message: &PgWireFrontendMessage) -> Result<(), ClientError> {
        self.stream.write_all(&encode(message)?).await?;
        Ok(())
    }

    /// Sends a text of statements; replies follow until [`Reply::Ready`].
    pub(crate) async fn query(&mut self, sql: &str) -> Result<(), ClientError> {
        self.send(&PgWireFrontendMessage::Query(Query::new(sql.to_owned()))).await
    }

    /// Sends some copy data.
    pub(crate) async fn copy(&mut self, data: Bytes) -> Result<(), ClientError> {
        self.send(&PgWireFrontendMessage::CopyData(CopyData::new(data))).await
    }

    /// Ends copy data.
    pub(crate) async fn copy_done(&mut self) -> Result<(), ClientError> {
        self.send(&PgWireFrontendMessage::CopyDone(CopyDone::new())).await
    }

    /// Gives up copying.
    pub(crate) async fn copy_fail(&mut self, reason: &str) -> Result<(), ClientError> {
        self.send(&PgWireFrontendMessage::CopyFail(CopyFail::new(reason.to_owned()))).await
    }

    /// Says goodbye.
    pub(crate) async fn close(mut self) -> Result<(), ClientError> {
        self.send(&PgWireFrontendMessage::Terminate(Terminate::new())).await
    }

    /// The next reply.
    ///
    /// # Cancellation
    /// Safe: bytes that have come are kept.
    pub(crate) async fn receive(&mut self) -> Result<Reply, ClientError> {
        loop {
            let decoded = PgWireBackendMessage::decode(&mut self.incoming, &self.context);
            match decoded.map_err(|error| ClientError::Protocol(error.to_string()))? {
                Some(message) => {
                    if let Some(reply) = self.take(message)? {
                        return Ok(reply);
                    }
                }
                None => {
                    self.incoming.reserve(READ_BYTES);
                    if self.stream.read_buf(&mut self.incoming).await? == 0 {
                        return Err(ClientError::Lost(io::ErrorKind::UnexpectedEof.into()));
                    }
                }
            }
        }
    }

    fn take(&mut self, message: PgWireBackendMessage) -> Result<Option<Reply>, ClientError> {
        Ok(Some(match message {
            PgWireBackendMessage::RowDescription(rows) => Reply::Columns(
                rows.fields.into_iter().map(|field| Column { name: field.name, type_id: field.type_id }).collect(),
            ),
            PgWireBackendMessage::DataRow(row) => Reply::Row(cells(row.data.freeze(), row.field_count)?),
            PgWireBackendMessage::CommandComplete(done) => Reply::Done(done.tag),
            PgWireBackendMessage::EmptyQueryResponse(_) => Reply::Done(String::new()),
            PgWireBackendMessage::ErrorResponse(error) => Reply::Error(ServerError::new(error.fields)),
            PgWireBackendMessage::NoticeResponse(notice) => Reply::Notice(ServerError::new(notice.fields)),
            PgWireBackendMessage::ReadyForQuery(_) => Reply::Ready,
            PgWireBackendMessage::CopyInResponse(_) => Reply::CopyIn,
            PgWireBackendMessage::CopyOutResponse(_) => Reply::CopyOut,
            PgWireBackendMessage::CopyData(data) => Reply::CopyData(data.data),
            PgWireBackendMessage::BackendKeyData(key) => {
                self.key = Some((key.pid, key.secret_key));
                return Ok(None);
            }
            PgWireBackendMessage::ParameterStatus(status) => {
                if status.name == "server_version" {
                    self.server_version = status.value;
                }
                return Ok(None);
            }
            PgWireBackendMessage::Authentication(Authentication::Ok) => return Ok(None),
            PgWireBackendMessage::Authentication(_) => {
                return Err(ClientError::Protocol("it asks for a password, which is not supported yet".to_owned()));
            }
            _ => return Ok(None),
        }))
    }
}

/// The values of a row: each a length of four bytes, -1 for NULL, and so many bytes.
fn cells(mut data: Bytes, count: i16) -> Result<Vec<Option<Bytes>>, ClientError> {
    use bytes::Buf as _;
    let short = || ClientError::Protocol("a row is shorter than it says".to_owned());
    let mut cells = Vec::new();
    for _ in 0..count {
        let len = data.try_get_i32().map_err(|_| short())?;
        match usize::try_from(len) {
            Err(_) => cells.push(None),
            Ok(len) if len <= data.len() => cells.push(Some(data.split_to(len))),
            Ok(_) => return Err(short()),
        }
    }
    Ok(cells)
}
