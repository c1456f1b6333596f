//! The result pump: rows from a stream of batches to the socket.
//!
//! Owns the rule that makes push queries live: whenever no row is ready, what was written is flushed before
//! the task waits. Memory is one batch and one output buffer; a client that reads slowly holds back only its
//! own stream. Every wait ends on cancellation, shutdown, time-out and the client's end. Leaves out what a
//! row looks like (`rows`) and who asked (`simple`, `extended`).

use crate::engine::{Asked, Idle, Receipts, ResultColumn, RowBatch, RowStream, Rows, RowsTag};
use crate::env;
use crate::server::pg::cancel::{Signals, Stopping};
use crate::server::pg::error::Stop;
use crate::server::pg::rows::{self, Formats, RowEncoder};
use crate::server::pg::wire::{Flushing, Orphan, Wire};
use futures::StreamExt as _;
use std::fmt;
use std::ops::Range;
use std::pin::pin;
use std::sync::Arc;
use std::time::Instant;
use tokio::io::{AsyncRead, AsyncWrite};

/// Rows on their way, perhaps between two Executes.
pub(super) struct Source {
    pub(super) columns: Arc<[ResultColumn]>,
    pub(super) tag: RowsTag,
    pub(super) is_push: bool,
    stream: RowStream,
    idle: Idle,
    /// A batch of which rows were sent up to this one.
    rest: Option<(RowBatch, usize)>,
    is_ended: bool,
    /// Of a member of a consumer group.
    receipts: Option<Receipts>,
    /// The commit of what its client took before.
    asked: Asked,
}

impl fmt::Debug for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Source")
            .field("is_push", &self.is_push)
            .field("is_ended", &self.is_ended)
            .finish_non_exhaustive()
    }
}

/// How far one call of `pump` goes.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Goal {
    /// Rows after which it stops; `None` is the end of the stream.
    pub(super) rows_max: Option<u64>,
    /// After this moment it stops short, provided that a row was sent.
    pub(super) short_after: Option<Instant>,
}

/// Where `pump` stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Reached {
    /// There may be more rows.
    Goal,
    /// There are none.
    End,
}

impl Source {
    /// Takes over the rows of a statement.
    pub(super) fn new(rows: Rows) -> Self {
        let Rows { columns, tag, is_push, stream, idle, receipts } = rows;
        let (rest, asked) = (None, Asked::default());
        Self { columns, tag, is_push, stream, idle, rest, is_ended: false, receipts, asked }
    }

    /// The rows that were not sent, for a cursor.
    pub(super) fn into_rows(self) -> Rows {
        let Self { columns, tag, is_push, stream, idle, rest, is_ended, receipts, .. } = self;
        let rest = rest.map(|(batch, row)| Ok(batch.slice(row, batch.num_rows() - row)));
        // Only a member's may be asked again once it has ended.
        let is_over = is_ended && !receipts.as_ref().is_some_and(Receipts::is_member);
        let stream = if is_over { Box::pin(futures::stream::empty()) } else { stream };
        let stream = Box::pin(futures::stream::iter(rest).chain(stream));
        Rows { columns, tag, is_push, stream, idle, receipts }
    }

    /// The signals that end a wait for these rows.
    pub(super) fn signals(&self, signals: &Signals, stopping: &Stopping) -> Signals {
        if self.is_push { signals.endless(stopping) } else { signals.clone() }
    }

    /// The next batch, with what was written flushed while it waits; `None` at the end.
    pub(super) async fn next_batch<S>(
        &mut self,
        wire: &mut Wire<S>,
        signals: &Signals,
    ) -> Result<Option<RowBatch>, Stop>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        if self.is_ended {
            return Ok(None);
        }
        let flushing = if self.is_push { Flushing::Now } else { Flushing::Soon };
        let set_waiting = |is_waiting| self.receipts.iter().for_each(|receipts| receipts.set_waiting(is_waiting));
        set_waiting(true);
        let next = wire.during(signals, flushing, Orphan::Stop, self.stream.next()).await?;
        set_waiting(false);
        self.is_ended = !matches!(next, Some(Ok(_)));
        Ok(next.transpose()?)
    }

    /// The client asks for rows of a member of a consumer group: it has taken those before.
    async fn ask<S>(&mut self, wire: &mut Wire<S>, signals: &Signals) -> Result<(), Stop>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let Some(receipts) = &self.receipts else { return Ok(()) };
        self.asked = wire.during(signals, Flushing::Now, Orphan::Stop, Box::pin(receipts.ask())).await??;
        // A rollback takes an end back too.
        self.is_ended &= !receipts.is_member();
        Ok(())
    }

    /// Whom to tell of the rows of a member of a consumer group.
    pub(super) fn receipts(&self) -> Option<&Receipts> {
        self.receipts.as_ref()
    }

    /// The client of a member has what it asked for, and is at work on that.
    pub(super) fn pause(&self) {
        if let Some(receipts) = &self.receipts {
            receipts.pause();
        }
    }

    /// Rows of a member go to the client now; false when they are void.
    pub(super) fn hand_over(&self, rows: usize) -> bool {
        self.receipts.as_ref().is_none_or(|receipts| receipts.hand_over(rows))
    }

    /// Rows of a member whose client asks for none were encoded: puts them on the socket.
    pub(super) async fn put<S>(&mut self, wire: &mut Wire<S>, signals: &Signals) -> Result<(), Stop>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        if let Some(receipts) = self.receipts.as_ref().filter(|receipts| receipts.is_written()) {
            wire.make_room(signals).await?;
            receipts.written();
        }
        Ok(())
    }

    /// What a member's client took before is committed before it is told that it has what it asked for.
    async fn answered<S>(&mut self, wire: &mut Wire<S>, signals: &Signals) -> Result<(), Stop>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let asked = std::mem::take(&mut self.asked);
        Ok(wire.during(signals, Flushing::Now, Orphan::Stop, pin!(asked.done())).await??)
    }

    /// The client has all rows of a member that it will take.
    pub(super) async fn finish<S>(&mut self, wire: &mut Wire<S>, signals: &Signals) -> Result<(), Stop>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        if let Some(receipts) = &self.receipts {
            wire.during(signals, Flushing::Now, Orphan::Stop, Box::pin(receipts.finish())).await??;
        }
        Ok(())
    }

    /// Sends rows until the goal is reached or they end; returns how many.
    ///
    /// # Errors
    /// Of the stream, and of whatever interrupted a wait.
    pub(super) async fn pump<S>(
        &mut self,
        wire: &mut Wire<S>,
        signals: &Signals,
        formats: &Formats,
        goal: Goal,
    ) -> Result<(u64, Reached), Stop>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        if goal.rows_max.is_some() {
            self.ask(wire, signals).await?;
        }
        let mut sent = 0;
        loop {
            if let Some((batch, row)) = self.rest.take() {
                let wanted = goal.rows_max.map_or(u64::MAX, |rows_max| rows_max - sent);
                let end = usize::try_from(wanted)
                    .map_or(batch.num_rows(), |wanted| batch.num_rows().min(row.saturating_add(wanted)));
                signals.check()?;
                if !self.hand_over(end - row) {
                    continue;
                }
                let rows = row..end;
                if !rows::put_shared(&batch, &rows, &self.columns, formats, wire.out()) {
                    let encoder = RowEncoder::new(&batch, &self.columns, formats)?;
                    send(wire, signals, &encoder, rows).await?;
                } else if wire.is_full() {
                    wire.make_room(signals).await?;
                }
                sent += (end - row) as u64;
                if goal.rows_max.is_none() {
                    self.put(wire, signals).await?;
                }
                if end < batch.num_rows() {
                    self.rest = Some((batch, end));
                }
            }
            let is_short = sent > 0 && goal.short_after.is_some_and(|moment| moment <= env::instant());
            if goal.rows_max == Some(sent) || is_short {
                self.answered(wire, signals).await?;
                return Ok((sent, Reached::Goal));
            }
            let patience = goal.short_after.filter(|_| sent > 0);
            let Some(next) = before(patience, pin!(self.next_batch(wire, signals))).await else {
                self.answered(wire, signals).await?;
                return Ok((sent, Reached::Goal));
            };
            match next? {
                Some(batch) => self.rest = Some((batch, 0)),
                None => {
                    match goal.rows_max {
                        None => self.finish(wire, signals).await?,
                        Some(_) => self.answered(wire, signals).await?,
                    }
                    return Ok((sent, Reached::End));
                }
            }
        }
    }
}

/// Sends some rows of a batch, and writes whenever the output is full.
async fn send<S>(wire: &mut Wire<S>, signals: &Signals, encoder: &RowEncoder, rows: Range<usize>) -> Result<(), Stop>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    for row in rows {
        encoder.encode(row, wire.out())?;
        if wire.is_full() {
            wire.make_room(signals).await?;
            signals.check()?;
        }
    }
    Ok(())
}

/// Awaits `future` until `moment`; `None` when that comes first. The stream loses nothing by it: its next
/// batch is taken only when it is ready.
async fn before<F: Future + Unpin>(moment: Option<Instant>, future: F) -> Option<F::Output> {
    match moment {
        Some(moment) => tokio::time::timeout_at(moment.into(), future).await.ok(),
        None => Some(future.await),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::{SqlError, SqlState, SqlType};
    use arrow::array::{Int32Array, RecordBatch};
    use futures::channel::mpsc;
    use tokio::io::{AsyncReadExt as _, DuplexStream};
    use tokio_util::sync::CancellationToken;

    const ROW_BYTES: usize = 5 + 2 + 4 + 1;

    type Sender = mpsc::Sender<Result<RowBatch, SqlError>>;

    fn batch(values: std::ops::Range<i32>) -> RowBatch {
        let values = Int32Array::from_iter_values(values.map(|value| value % 10));
        RecordBatch::try_from_iter([("n", Arc::new(values) as _)]).unwrap().into()
    }

    fn source(is_push: bool) -> (Sender, Source) {
        let (sender, receiver) = mpsc::channel(16);
        let column = ResultColumn { name: "n".to_owned(), sql_type: SqlType::Integer, source: None };
        let rows = Rows {
            columns: [column].into(),
            tag: RowsTag::Counted("SELECT"),
            is_push,
            stream: Box::pin(receiver),
            idle: Idle::default(),
            receipts: None,
        };
        (sender, Source::new(rows))
    }

    fn wire(buffer: usize) -> (DuplexStream, Wire<DuplexStream>, CancellationToken, Signals) {
        let (client, server) = tokio::io::duplex(buffer);
        let cancel = CancellationToken::new();
        let signals = Signals::finite(cancel.clone(), &Stopping::default());
        (client, Wire::new(server), cancel, signals)
    }

    fn rows(rows_max: u64) -> Goal {
        Goal { rows_max: Some(rows_max), short_after: None }
    }

    #[tokio::test]
    async fn each_row_is_at_the_client_while_the_subscription_waits() {
        let (mut client, mut wire, cancel, signals) = wire(1 << 16);
        let (mut sender, mut source) = source(true);
        let formats = Formats::default();
        let pumping = source.pump(&mut wire, &signals, &formats, Goal::default());
        let feeding = async {
            let mut row = [0; ROW_BYTES];
            for value in 0..3 {
                sender.try_send(Ok(batch(value..value + 1))).unwrap();
                client.read_exact(&mut row).await.unwrap();
                assert_eq!(i32::from(row[ROW_BYTES - 1] - b'0'), value);
            }
            cancel.cancel();
        };
        let (ended, ()) = tokio::join!(pumping, feeding);
        let Err(Stop::Statement(error)) = ended else { unreachable!() };
        assert_eq!(error.sqlstate, SqlState::QueryCanceled);
    }

    #[tokio::test]
    async fn a_limit_is_filled_exactly_and_the_next_call_goes_on() {
        let (_client, mut wire, _, signals) = wire(1 << 16);
        let (mut sender, mut source) = source(true);
        let formats = Formats::default();
        sender.try_send(Ok(batch(0..3))).unwrap();
        sender.try_send(Ok(batch(3..10))).unwrap();
        let reached = source.pump(&mut wire, &signals, &formats, rows(4)).await.unwrap();
        assert_eq!(reached, (4, Reached::Goal));
        assert_eq!(wire.out().len(), 4 * ROW_BYTES);
        let reached = source.pump(&mut wire, &signals, &formats, rows(6)).await.unwrap();
        assert_eq!(reached, (6, Reached::Goal));
        drop(sender);
        assert_eq!(source.pump(&mut wire, &signals, &formats, rows(6)).await.unwrap(), (0, Reached::End));
        assert_eq!(source.pump(&mut wire, &signals, &formats, rows(6)).await.unwrap(), (0, Reached::End));
    }

    #[tokio::test]
    async fn a_timeout_gives_what_is_there_but_never_nothing() {
        let (_client, mut wire, _, signals) = wire(1 << 16);
        let (mut sender, mut source) = source(true);
        let formats = Formats::default();
        let goal = Goal { rows_max: Some(5), short_after: Some(env::instant()) };
        let feeding = async {
            tokio::task::yield_now().await;
            sender.try_send(Ok(batch(0..2))).unwrap();
        };
        let (reached, ()) = tokio::join!(source.pump(&mut wire, &signals, &formats, goal), feeding);
        assert_eq!(reached.unwrap(), (2, Reached::Goal));
    }

    #[tokio::test]
    async fn a_large_result_passes_in_constant_memory_to_a_slow_reader() {
        let (mut client, mut wire, _, signals) = wire(1024);
        let (mut sender, mut source) = source(false);
        let formats = Formats::default();
        sender.try_send(Ok(batch(0..50_000))).unwrap();
        drop(sender);
        let pumping = async {
            let reached = source.pump(&mut wire, &signals, &formats, Goal::default()).await.unwrap();
            wire.flush().await.unwrap();
            assert!(wire.out().capacity() <= 4 * crate::server::pg::wire::OUTPUT_BYTES_TARGET);
            drop(wire);
            reached
        };
        let reading = async {
            let mut count = 0;
            let mut chunk = [0; 777];
            loop {
                match client.read(&mut chunk).await.unwrap() {
                    0 => return count,
                    read => count += read,
                }
            }
        };
        let (reached, count) = tokio::join!(pumping, reading);
        assert_eq!(reached, (50_000, Reached::End));
        assert_eq!(count, 50_000 * ROW_BYTES);
    }

    #[tokio::test]
    async fn a_blocked_write_is_cancellable() {
        let (_client, mut wire, cancel, signals) = wire(16);
        let (mut sender, mut source) = source(false);
        sender.try_send(Ok(batch(0..50_000))).unwrap();
        let formats = Formats::default();
        let pumping = source.pump(&mut wire, &signals, &formats, Goal::default());
        let (ended, ()) = tokio::join!(pumping, async { cancel.cancel() });
        assert!(matches!(ended, Err(Stop::Statement(error)) if error.sqlstate == SqlState::QueryCanceled));
    }

    #[tokio::test]
    async fn a_client_that_died_ends_the_subscription() {
        let (client, mut wire, _, signals) = wire(1024);
        let (_sender, mut source) = source(true);
        drop(client);
        let ended = source.pump(&mut wire, &signals, &Formats::default(), Goal::default()).await;
        assert!(matches!(ended, Err(Stop::Gone)));
    }

    #[tokio::test]
    async fn an_error_of_the_stream_comes_after_its_rows() {
        let (_client, mut wire, _, signals) = wire(1 << 16);
        let (mut sender, mut source) = source(false);
        sender.try_send(Ok(batch(0..2))).unwrap();
        sender.try_send(Err(SqlError::new(SqlState::DivisionByZero, "division by zero"))).unwrap();
        let ended = source.pump(&mut wire, &signals, &Formats::default(), Goal::default()).await;
        assert!(matches!(ended, Err(Stop::Statement(error)) if error.sqlstate == SqlState::DivisionByZero));
        assert_eq!(wire.out().len(), 2 * ROW_BYTES);
    }
}
