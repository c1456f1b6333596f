//! One connection after its handshake: reads messages, has them handled, reports errors, stays in step.
//!
//! Owns the order of messages: errors, skipping to Sync, ReadyForQuery, notices and changed settings. Leaves
//! out what each statement message does (`simple`, `extended`, `copy`). Runs as one task; its session ends
//! with it, and whatever the session had not committed.

use crate::engine::{Session, SqlError, SqlState, TransactionStatus};
use crate::env;
use crate::server::admin::metrics::Meters;
use crate::server::pg::ahead::Ahead;
use crate::server::pg::alive::{Patience, Peer};
use crate::server::pg::cancel::{Interrupt, Signals, Stopping};
use crate::server::pg::error::{self, Severity, Stop};
use crate::server::pg::message::{self, Frontend};
use crate::server::pg::portal::Portals;
use crate::server::pg::reply;
use crate::server::pg::wire::{Flushing, Frame, Orphan, Wire, WireError};
use millstream_catalog::model::Span;
use std::collections::HashSet;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};

/// A connection with its session.
#[derive(Debug)]
pub(super) struct Connection<'a, S> {
    pub(super) wire: &'a mut Wire<S>,
    pub(super) session: Session,
    pub(super) portals: Portals,
    /// Names of prepared statements without text; the session knows only those with one.
    pub(super) statements_empty: HashSet<String>,
    pub(super) stopping: Stopping,
    pub(super) meters: Arc<Meters>,
    /// INSERTs that are queued and not committed.
    pub(super) ahead: Ahead,
    /// The `session_timeout` that the kernel knows.
    patience: Option<Option<Span>>,
    /// After an error in the extended protocol nothing counts until Sync.
    is_skipping: bool,
    /// Transaction blocks that ended before the portals that there are.
    blocks_ended: u64,
    /// ReadyForQuery was the last that was said, and nothing came since.
    is_ready: bool,
}

impl<S: AsyncRead + AsyncWrite + Unpin + Send + Peer> Connection<'_, S> {
    /// Serves the client until it leaves.
    ///
    /// # Errors
    /// Why the connection ends otherwise.
    pub(super) async fn run(&mut self) -> Result<(), Stop> {
        let ended = self.serve().await;
        if let Err(Stop::Fatal(_)) = &ended {
            // The client hears of what it sent before.
            self.settle().await?;
        }
        ended
    }

    async fn serve(&mut self) -> Result<(), Stop> {
        self.welcome();
        loop {
            self.keep_patience();
            if !self.ahead.is_empty() && !self.wire.has_frame() {
                // What has arrived meanwhile may join.
                if self.wire.read_arrived().await.is_err() || !self.wire.has_frame() {
                    self.settle().await?;
                }
            }
            let frame = match self.next_frame().await {
                Ok(frame) => frame,
                Err(Stop::Gone) => return Ok(()),
                Err(stop) => return Err(stop),
            };
            let Some(message) = self.read(frame)? else { continue };
            if message == Frontend::Terminate {
                return Ok(());
            }
            self.handle(message).await?;
            self.session.end_statement();
            if self.wire.is_full() {
                self.settle().await?;
                let signals = self.signals("");
                self.wire.make_room(&signals).await?;
            }
        }
    }

    /// Has the kernel look for a silent client as `session_timeout` says.
    fn keep_patience(&mut self) {
        let wanted = self.session.session_timeout();
        if self.patience != Some(wanted) {
            self.patience = Some(wanted);
            let micros = wanted.and_then(|span| u64::try_from(span.micros()).ok());
            let patience = micros.map(Duration::from_micros);
            self.wire.socket().set_patience(patience);
            self.wire.set_patience(patience.map(Patience::new));
        }
    }
}

impl<'a, S: AsyncRead + AsyncWrite + Unpin + Send> Connection<'a, S> {
    /// A connection whose client was let in.
    pub(super) fn new(wire: &'a mut Wire<S>, session: Session, stopping: Stopping, meters: Arc<Meters>) -> Self {
        let (portals, statements_empty) = (Portals::default(), HashSet::new());
        let ahead = Ahead::default();
        let (is_skipping, is_ready) = (false, false);
        let (patience, blocks_ended) = (None, session.blocks_ended());
        Self {
            wire,
            session,
            portals,
            statements_empty,
            stopping,
            meters,
            ahead,
            patience,
            is_skipping,
            blocks_ended,
            is_ready,
        }
    }

    /// Portals end with their block, also where another follows at once, and with what ROLLBACK TO takes back.
    pub(super) fn end_portals_of_blocks(&mut self) {
        if self.session.blocks_ended() != self.blocks_ended {
            self.blocks_ended = self.session.blocks_ended();
            self.portals.clear();
        }
        if let Some(number) = self.session.take_rolled_back() {
            self.portals.roll_back_to(number);
        }
    }

    fn welcome(&mut self) {
        let id = self.session.id();
        let out = self.wire.out();
        reply::authentication_ok(out);
        for (name, value) in self.session.reported_settings() {
            reply::parameter_status(out, &name, &value);
        }
        reply::backend_key(out, id.pid, id.secret);
        self.ready();
    }

    /// The next frame, unless the server stops first. Until it comes, notifications are sent.
    async fn next_frame(&mut self) -> Result<Frame, Stop> {
        if self.wire.has_frame() && !self.stopping.is_gentle() {
            // Who is sent much has it done in parts: what was queued meanwhile goes on its way.
            tokio::task::coop::consume_budget().await;
            return Ok(self.wire.next_frame().await?);
        }
        loop {
            let is_told = self.is_ready && self.session.is_listening() && self.is_idle();
            if is_told {
                // Another notification is made only once those before it were read.
                tokio::select! {
                    biased;
                    () = self.stopping.gently() => return Err(Stop::Fatal(error::shutting_down())),
                    flushed = self.wire.flush() => flushed?,
                }
            }
            tokio::select! {
                biased;
                () = self.stopping.gently() => return Err(Stop::Fatal(error::shutting_down())),
                frame = self.wire.next_frame() => return Ok(frame?),
                () = self.session.notified(), if is_told => self.send_notifications(),
            }
        }
    }

    /// Whether the client is in no transaction block.
    fn is_idle(&self) -> bool {
        self.session.transaction_status() == TransactionStatus::Idle
    }

    /// Sends the notifications that are due.
    fn send_notifications(&mut self) {
        for channel in self.session.take_notifications() {
            reply::notification(self.wire.out(), channel.as_str());
        }
    }

    /// Makes a message of a frame; `None` when there is nothing to handle. A frame that makes no sense is
    /// reported like a failed statement, because the next one can still be found.
    fn read(&mut self, frame: Frame) -> Result<Option<Frontend>, Stop> {
        let (tag, result) = match frame {
            // Left over from a COPY that failed.
            Frame::CopyData(_) | Frame::Whole(b'c' | b'f', _) => return Ok(None),
            Frame::Whole(tag, body) => (tag, message::decode(tag, body).map_err(Stop::from)),
            Frame::TooLarge { tag, bytes, bytes_max } => (tag, Err(Stop::Statement(too_large(tag, bytes, bytes_max)))),
            Frame::NoRoom { tag } => (tag, Err(Stop::Statement(no_room()))),
        };
        self.is_ready = false;
        if self.is_skipping && !matches!(tag, b'S' | b'X') {
            return Ok(None);
        }
        match result {
            Ok(message) => Ok(Some(message)),
            Err(Stop::Statement(error)) if matches!(tag, b'Q' | b'F' | b'P' | b'B' | b'D' | b'E' | b'C') => {
                self.session.fail_transaction();
                self.report(&error);
                self.after_error(tag);
                Ok(None)
            }
            Err(Stop::Statement(error) | Stop::Fatal(error)) => Err(Stop::Fatal(error)),
            Err(Stop::Gone) => Err(Stop::Gone),
        }
    }

    /// A simple query is over after its error; the extended protocol goes on after the next Sync.
    fn after_error(&mut self, tag: u8) {
        if matches!(tag, b'Q' | b'F') {
            self.ready();
        } else {
            self.is_skipping = true;
        }
    }

    async fn handle(&mut self, message: Frontend) -> Result<(), Stop> {
        let tag = match &message {
            Frontend::Query(_) => b'Q',
            Frontend::FunctionCall => b'F',
            _ => b'P',
        };
        let result = match message {
            // Boxed: an idle connection need not hold what they need.
            Frontend::Query(sql) => Box::pin(self.simple_query(&sql)).await,
            Frontend::Parse { name, sql, param_oids } => Box::pin(self.parse(&name, &sql, &param_oids)).await,
            Frontend::Bind(bind) => self.bind(bind),
            Frontend::Describe { target, name } => self.describe(target, &name),
            Frontend::Execute { portal, rows_max } => Box::pin(self.execute_portal(&portal, rows_max)).await,
            Frontend::Close { target, name } => Box::pin(self.close(target, &name)).await,
            Frontend::Flush => Box::pin(self.flush()).await,
            Frontend::Sync => return self.sync().await,
            Frontend::FunctionCall => {
                Err(SqlError::unsupported("the function call message", "use SELECT function(…)").into())
            }
            Frontend::Terminate | Frontend::CopyDone | Frontend::CopyFail(_) => Ok(()),
        };
        self.end_portals_of_blocks();
        match result {
            Err(Stop::Statement(error)) => {
                self.session.fail_transaction();
                self.report(&error);
                self.after_error(tag);
                Ok(())
            }
            Err(stop) => Err(stop),
            Ok(()) => {
                if tag == b'Q' {
                    self.ready();
                }
                Ok(())
            }
        }
    }

    /// The signals of a statement of `text` that had to wait for those before it: only now it begins.
    pub(super) async fn settled(&mut self, signals: Signals, text: &str) -> Result<Signals, Stop> {
        if self.ahead.is_empty() {
            return Ok(signals);
        }
        self.settle().await?;
        Ok(self.signals(text))
    }

    async fn flush(&mut self) -> Result<(), Stop> {
        self.settle().await?;
        let signals = self.signals("");
        Ok(self.wire.make_room(&signals).await?)
    }

    /// Ends a series of extended messages: outside of a transaction block it is committed, and its portals end with it.
    async fn sync(&mut self) -> Result<(), Stop> {
        let mut is_ok = !std::mem::take(&mut self.is_skipping);
        if self.session.is_implicit() {
            self.settle().await?;
            let signals = self.signals("");
            match step(self.wire, &signals, Box::pin(self.session.end_implicit(is_ok))).await.map_err(Stop::from) {
                Ok(Ok(())) => {}
                Ok(Err(error)) | Err(Stop::Statement(error)) => {
                    self.report(&error);
                    is_ok = false;
                }
                Err(stop) => return Err(stop),
            }
        }
        // In a block that failed too, which may go back to a savepoint.
        if self.session.transaction_status() == TransactionStatus::Idle {
            if is_ok {
                let open = self.portals.take_open();
                match Box::pin(self.finish_portals(open)).await {
                    Ok(()) => {}
                    Err(Stop::Statement(error)) => self.report(&error),
                    Err(stop) => return Err(stop),
                }
            }
            self.portals.clear();
        } else if self.session.is_lost() {
            self.portals.clear();
        }
        self.ready();
        Ok(())
    }

    /// Tells the client of an error, and of what came before it.
    pub(super) fn report(&mut self, error: &SqlError) {
        self.meters.failed(error.sqlstate.code());
        self.send_messages();
        error::error_response(self.wire.out(), Severity::Error, error);
    }

    /// Sends notices and changed settings.
    pub(super) fn send_messages(&mut self) {
        for notice in self.session.take_notices() {
            error::notice_response(self.wire.out(), &notice);
        }
        for (name, value) in self.session.take_reported() {
            reply::parameter_status(self.wire.out(), &name, &value);
        }
    }

    fn ready(&mut self) {
        self.send_messages();
        if self.is_idle() {
            self.send_notifications();
        }
        self.is_ready = true;
        let status = match self.session.transaction_status() {
            TransactionStatus::Idle => b'I',
            TransactionStatus::Open => b'T',
            TransactionStatus::Failed => b'E',
        };
        reply::ready_for_query(self.wire.out(), status);
    }

    /// Begins a statement: what can interrupt it from now on.
    pub(super) fn signals(&mut self, text: &str) -> Signals {
        let cancel = self.session.begin_statement(text);
        let timeout = self.session.statement_timeout().and_then(|span| u64::try_from(span.micros()).ok());
        let deadline = timeout.map(|micros| env::instant() + Duration::from_micros(micros));
        Signals::finite(cancel, &self.stopping).until(deadline).unless(self.session.handed())
    }
}

/// Awaits a step of a statement that changes something, while the connection is served.
pub(super) async fn step<S, F>(wire: &mut Wire<S>, signals: &Signals, future: F) -> Result<F::Output, Interrupt>
where
    S: AsyncRead + AsyncWrite + Unpin,
    F: Future + Unpin,
{
    wire.during(signals, Flushing::Soon, Orphan::Finish, future).await
}

/// The next frame while a statement waits for the client.
pub(super) async fn frame_of<S>(wire: &mut Wire<S>, signals: &Signals) -> Result<Frame, Stop>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    tokio::select! {
        biased;
        interrupt = signals.interrupted() => Err(interrupt.into()),
        frame = wire.next_frame() => frame.map_err(|error: WireError| error.into()),
    }
}

/// 53200 for a message that there is no memory for.
fn no_room() -> SqlError {
    SqlError::new(SqlState::OutOfMemory, "out of memory: no room for the message")
        .detail("messages, statements and transactions of all sessions share the bytes that millstream.memory shows as rows")
        .hint("try again later, send smaller messages, or start the server with a larger --memory")
}

fn too_large(tag: u8, bytes: usize, bytes_max: usize) -> SqlError {
    let what = if matches!(tag, b'Q' | b'P') { "statement" } else { "message" };
    SqlError::new(SqlState::ProgramLimitExceeded, format!("{what} is too long"))
        .detail(format!("it has {bytes} bytes, and {bytes_max} are allowed"))
        .hint("send rows with COPY, or in several statements")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::{Engine, EngineConfig, Outcome, SessionId, SessionOptions, Via};
    use crate::storage::FaultDisk;
    use crate::storage::wal::WalOptions;
    use futures::{StreamExt as _, poll};
    use millstream_catalog::model::ByteSize;
    use std::pin::pin;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream};
    use tokio::time::timeout;

    const DEADLINE: Duration = Duration::from_secs(60);

    async fn engine(disk: &FaultDisk) -> Arc<Engine> {
        let config = EngineConfig {
            data_dir: "/data".into(),
            shards: 2,
            seal_bytes: ByteSize::new(1 << 20),
            query_threads: 1,
            memory: ByteSize::new(1 << 30),
            offsets_retention: millstream_catalog::model::Span::from_secs(86_400),
        };
        let log = WalOptions { file_bytes: ByteSize::new(64 << 10), ..WalOptions::default() };
        Engine::open_on(config, Arc::new(disk.clone()), env::system_clock(), log).await.unwrap()
    }

    async fn run(session: &mut Session, sql: &str) -> usize {
        let mut count = 0;
        for parsed in session.parse(sql).await.unwrap() {
            let prepared = session.prepare(parsed, &[]).await.unwrap();
            if let Outcome::Rows(mut rows) = session.execute(&prepared, vec![], Via::Simple).await.unwrap() {
                while let Some(batch) = rows.stream.next().await {
                    count += batch.unwrap().num_rows();
                }
            }
        }
        count
    }

    fn query(sql: &str) -> Vec<u8> {
        let mut bytes = Vec::new();
        reply::message(&mut bytes, b'Q', |out| reply::put_text(out, sql));
        bytes
    }

    /// What the server says up to ReadyForQuery: completion tags, and codes of errors.
    async fn replies(client: &mut DuplexStream) -> Vec<String> {
        let mut said = Vec::new();
        loop {
            let tag = client.read_u8().await.unwrap();
            let mut body = vec![0; client.read_u32().await.unwrap() as usize - 4];
            client.read_exact(&mut body).await.unwrap();
            let texts: Vec<String> =
                body.split(|byte| *byte == 0).map(|it| String::from_utf8_lossy(it).into()).collect();
            match tag {
                b'C' => said.push(texts[0].clone()),
                b'E' => said.extend(texts.iter().filter_map(|text| text.strip_prefix('C')).map(str::to_owned)),
                b'Z' => return said,
                _ => {}
            }
        }
    }

    fn session(engine: &Arc<Engine>) -> Session {
        engine.session(SessionOptions { user: "tester".to_owned(), ..SessionOptions::default() }).unwrap()
    }

    /// Sends `sql` while no sync ends, cancels it once it was handed to the log, and lets the sync end; what was said.
    async fn cancelled_while_it_syncs(engine: &Arc<Engine>, disk: &FaultDisk, before: &str, sql: &str) -> Vec<String> {
        let (mut client, server) = tokio::io::duplex(1 << 16);
        let mut wire = Wire::new(server);
        let session_of_client = session(engine);
        let (id, handed): (SessionId, _) = (session_of_client.id(), session_of_client.handed());
        let meters = Arc::new(Meters::new());
        let mut connection = Connection::new(&mut wire, session_of_client, Stopping::default(), meters);
        let mut serving = pin!(connection.run());
        // The welcome ends as an answer does.
        for text in ["", before] {
            if !text.is_empty() {
                client.write_all(&query(text)).await.unwrap();
            }
            tokio::select! {
                ended = &mut serving => panic!("{ended:?}"),
                _ = replies(&mut client) => {}
            }
        }
        let held = disk.hold_syncs();
        // Somebody else's sync keeps the disk: this one waits behind it.
        let mut other = session(engine);
        let first = env::spawn("other", async move { run(&mut other, "INSERT INTO other VALUES (1)").await });
        while held.waiting() == 0 {
            tokio::task::yield_now().await;
        }
        client.write_all(&query(sql)).await.unwrap();
        while !handed.is_set() {
            assert!(poll!(&mut serving).is_pending());
            tokio::task::yield_now().await;
        }
        engine.cancel(id);
        assert!(poll!(&mut serving).is_pending());
        drop(held);
        let said = tokio::select! {
            ended = &mut serving => panic!("{ended:?}"),
            said = replies(&mut client) => said,
        };
        first.await.unwrap();
        said
    }

    /// Types of messages up to ReadyForQuery.
    async fn tags(client: &mut DuplexStream) -> String {
        let mut tags = String::new();
        while !tags.ends_with('Z') {
            tags.push(char::from(client.read_u8().await.unwrap()));
            let mut body = vec![0; client.read_u32().await.unwrap() as usize - 4];
            client.read_exact(&mut body).await.unwrap();
        }
        tags
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_client_that_does_not_read_is_sent_few_notifications() {
        const EVENTS: usize = 300;
        let engine = engine(&FaultDisk::new()).await;
        let mut writer = session(&engine);
        run(&mut writer, "CREATE STREAM s (v int)").await;
        // Five notifications of twelve bytes fit in.
        let (mut client, server) = tokio::io::duplex(64);
        let mut wire = Wire::new(server);
        let mut connection = Connection::new(&mut wire, session(&engine), Stopping::default(), Arc::new(Meters::new()));
        let serving = pin!(connection.run());
        let talking = async {
            tags(&mut client).await;
            client.write_all(&query("LISTEN s")).await.unwrap();
            assert_eq!(tags(&mut client).await, "CZ");
            for v in 0..EVENTS {
                run(&mut writer, &format!("INSERT INTO s VALUES ({v})")).await;
                tokio::task::yield_now().await;
            }
            client.write_all(&query("SELECT 1")).await.unwrap();
            let said = tags(&mut client).await;
            let notified = said.matches('A').count();
            assert!((1..10).contains(&notified), "{said}");
            assert_eq!(said.replace('A', ""), "TDCZ");
            run(&mut writer, "INSERT INTO s VALUES (0)").await;
            assert_eq!(client.read_u8().await.unwrap(), b'A');
        };
        tokio::select! {
            ended = serving => panic!("{ended:?}"),
            done = timeout(DEADLINE, talking) => done.expect("it hangs"),
        }
        drop(writer);
        engine.shutdown().await;
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 3)]
    async fn what_was_handed_to_the_log_is_not_cancelled() {
        let disk = FaultDisk::new();
        let engine = engine(&disk).await;
        let mut reader = session(&engine);
        run(
            &mut reader,
            "CREATE STREAM s (v int); CREATE STREAM other (v int); CREATE TABLE t (k int PRIMARY KEY, v int)",
        )
        .await;
        for (before, sql, tag, read) in [
            ("SELECT 1", "INSERT INTO s VALUES (1)", "INSERT 0 1", "SELECT v FROM s"),
            ("BEGIN; INSERT INTO s VALUES (2)", "COMMIT", "COMMIT", "SELECT v FROM s WHERE v = 2"),
            ("SELECT 1", "INSERT INTO t VALUES (1, 1) RETURNING k", "INSERT 0 1", "SELECT k FROM t"),
            ("SELECT 1", "UPDATE t SET v = 2", "UPDATE 1", "SELECT k FROM t WHERE v = 2"),
            ("SELECT 1", "CREATE STREAM made (v int)", "CREATE STREAM", "SELECT count(*) FROM made"),
        ] {
            let said = timeout(DEADLINE, cancelled_while_it_syncs(&engine, &disk, before, sql)).await;
            assert_eq!(said.expect("it hangs"), [tag], "{sql}");
            assert_eq!(run(&mut reader, read).await, 1, "{sql}");
        }
        drop(reader);
        engine.shutdown().await;
    }
}
