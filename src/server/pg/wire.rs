//! One connection's bytes: cuts input into frames, holds output until it is flushed, and watches the client.
//!
//! Owns both buffers and their bounds. Leaves out what frames mean (`message`) and what is answered. Every
//! wait goes through here: `during` polls a statement's future while it flushes, reads a bounded amount
//! ahead to notice that the client is gone, and listens for cancellation and shutdown. Called by the
//! connection's one task; nothing is shared. A crash loses what was not yet written, as a lost connection.
//!
//! Input is bounded by the largest frame a client may send; CopyData frames are handed on in parts and
//! frames over their limit are skipped as they come, so neither is ever held whole. Output is bounded by
//! what its writers add between two calls of `make_room`.

use crate::engine::Held;
use crate::server::pg::alive::{Patience, Silent};
use crate::server::pg::cancel::{Interrupt, Signals};
use bytes::{Buf, Bytes, BytesMut};
use millstream_catalog::model::{ByteSize, limit};
use std::future::{Future, poll_fn};
use std::io;
use std::mem::MaybeUninit;
use std::pin::{Pin, pin};
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep};

/// Output is written once it holds this much, so that memory stays constant however long a result is.
pub(super) const OUTPUT_BYTES_TARGET: usize = 64 << 10;
/// What is read of further messages while a statement runs. Enough to see the client leave, and bounded.
const AHEAD_BYTES_MAX: usize = 64 << 10;
/// First size of a read; doubles while reads come full.
const READ_BYTES_FIRST: usize = 8 << 10;
/// What is left of input that is kept without a buffer to read into: a Sync behind what is being executed.
const INPUT_BYTES_SMALL: usize = 64;
/// Largest size of a read.
const READ_BYTES_MAX: usize = 128 << 10;
/// Frames longer than PostgreSQL's own limit come from something that does not speak the protocol.
const FRAME_BYTES_MAX: usize = (1 << 30) - 1;
/// Bytes of a message that count as the connection's own.
pub(super) const UNCOUNTED_BYTES_MAX: usize = 128 << 10;
/// Bytes of a message that carries a name or nothing.
const SMALL_BYTES_MAX: usize = 10_000;
/// Output that is not of a subscription waits for more of it at most this long.
const FLUSH_DELAY: Duration = Duration::from_millis(10);
/// How long a command goes on for a client that hung up: it may have sent all it wanted and left.
const ORPHAN_GRACE: Duration = Duration::from_secs(5);

/// What `next_frame` found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Frame {
    /// A whole message: type byte and body.
    Whole(u8, Bytes),
    /// A part of a CopyData message; parts do not respect its bounds, which mean nothing.
    CopyData(Bytes),
    /// A message over its limit of bytes was skipped.
    TooLarge { tag: u8, bytes: usize, bytes_max: usize },
    /// A message was skipped for which the node has no memory.
    NoRoom { tag: u8 },
}

/// Why no further frame comes.
#[derive(Debug)]
pub(super) enum WireError {
    /// The client closed, or the connection broke.
    Gone,
    /// The bytes are not the protocol; where the next message begins is unknown.
    Violation(String),
}

impl From<io::Error> for WireError {
    fn from(_: io::Error) -> Self {
        Self::Gone
    }
}

/// When output is sent while a future is pending.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Flushing {
    /// At once: rows of a subscription.
    Now,
    /// After `FLUSH_DELAY`: what ends by itself is better sent together.
    Soon,
}

/// What becomes of a statement when its client hangs up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Orphan {
    /// Nobody is left to read the rows.
    Stop,
    /// The effect counts, not the answer: a few seconds are left to it.
    Finish,
}

/// A socket with its buffers.
#[derive(Debug)]
pub(super) struct Wire<S> {
    socket: S,
    input: BytesMut,
    /// How much of `input` has a buffer of its own size.
    input_alone: usize,
    read_size: usize,
    /// The client sent its last byte.
    is_ended: bool,
    /// Bytes of a CopyData frame yet to be handed on.
    copy_left: usize,
    /// A frame over its limit: the frame to report, and its bytes yet to be skipped.
    skipping: Option<(Frame, usize)>,
    output: Vec<u8>,
    written: usize,
    /// Memory for a message on its way in, and until the next one is asked for; not bounded before there is a session.
    room: Option<Held>,
    /// Output that waits for something before it; while there is some, more goes behind it.
    held: Option<Vec<u8>>,
    /// Left as it is when a wait ends: a timer set anew for each statement would wake a thread each time.
    flush_timer: Option<Pin<Box<Sleep>>>,
    patience: Option<Patience<S>>,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Wire<S> {
    /// Wraps a connected socket.
    pub(super) fn new(socket: S) -> Self {
        Self {
            socket,
            input: BytesMut::new(),
            input_alone: 0,
            read_size: READ_BYTES_FIRST,
            is_ended: false,
            copy_left: 0,
            skipping: None,
            output: Vec::new(),
            written: 0,
            room: None,
            held: None,
            flush_timer: None,
            patience: None,
        }
    }

    /// From now on what is sent may go so long without an answer; `None` is for ever.
    pub(super) fn set_patience(&mut self, patience: Option<Patience<S>>) {
        self.patience = patience;
    }

    /// Looks from time to time whether the other end still answers.
    fn poll_patience(&mut self, cx: &mut Context<'_>) -> Result<(), WireError> {
        match &mut self.patience {
            Some(patience) => patience.poll(&self.socket, cx).map_err(|Silent| WireError::Gone),
            None => Ok(()),
        }
    }

    /// Counts large messages there from now on.
    pub(super) fn set_room(&mut self, room: Held) {
        self.room = Some(room);
    }

    /// Counts the input, if it is large; false when there is no room for it. Buffers grow by doubling.
    fn has_room(&mut self) -> bool {
        let bytes = if self.input.len() > UNCOUNTED_BYTES_MAX { 2 * self.input.len() } else { 0 };
        self.room.as_mut().is_none_or(|room| room.set(ByteSize::of(bytes)).is_ok())
    }

    /// The socket, for its options.
    pub(super) fn socket(&self) -> &S {
        &self.socket
    }

    /// The socket alone, to close it.
    pub(super) fn into_socket(self) -> S {
        self.socket
    }

    /// Where messages to the client are appended.
    pub(super) fn out(&mut self) -> &mut Vec<u8> {
        self.held.as_mut().unwrap_or(&mut self.output)
    }

    /// Holds output back from now on; how much is held already.
    pub(super) fn hold_back(&mut self) -> usize {
        self.held.get_or_insert_default().len()
    }

    /// What was held back; output is sent again from now on.
    pub(super) fn held_back(&mut self) -> Vec<u8> {
        self.held.take().unwrap_or_default()
    }

    /// Whether a whole frame, or the beginning of copy data, was read already.
    pub(super) fn has_frame(&self) -> bool {
        let whole = |(_, len)| self.input.len() >= 5 + len;
        match &self.skipping {
            Some((_, left)) => self.input.len() >= *left,
            None if self.copy_left > 0 => !self.input.is_empty(),
            None => self.header().is_ok_and(|header| header.is_some_and(whole)),
        }
    }

    /// Whether output has reached the size at which it should be written.
    pub(super) fn is_full(&self) -> bool {
        let held = self.held.as_ref().map_or(0, Vec::len);
        held.max(self.output.len() - self.written) >= OUTPUT_BYTES_TARGET
    }

    /// Bytes that came and were not read as anything yet.
    pub(super) fn input(&self) -> &[u8] {
        &self.input
    }

    /// Takes the first `len` bytes of the input; fewer if there are fewer.
    pub(super) fn take_input(&mut self, len: usize) -> Bytes {
        self.input.split_to(len.min(self.input.len())).freeze()
    }

    /// Takes in what has arrived by now, without waiting.
    pub(super) async fn read_arrived(&mut self) -> Result<(), WireError> {
        poll_fn(|cx| Poll::Ready(self.poll_io(cx, false))).await
    }

    /// Reads until `input` holds `len` bytes: the start-up handshake, which has no frames.
    ///
    /// # Cancellation
    /// Safe: what was read stays in `input`.
    pub(super) async fn fill_to(&mut self, len: usize) -> Result<(), WireError> {
        while self.input.len() < len {
            if self.is_ended {
                return Err(WireError::Gone);
            }
            self.read_more().await?;
        }
        Ok(())
    }

    /// The next frame; output is flushed before it waits for one.
    ///
    /// # Errors
    /// `Gone` at the end of the stream, `Violation` when framing is lost.
    ///
    /// # Cancellation
    /// Safe: no byte is lost.
    pub(super) async fn next_frame(&mut self) -> Result<Frame, WireError> {
        // The message before is done with. What it was counts again if it is still on its way.
        let _ = self.has_room();
        loop {
            if let Some(frame) = self.buffered_frame()? {
                return Ok(frame);
            }
            if self.is_ended {
                return Err(WireError::Gone);
            }
            self.read_more().await?;
        }
    }

    /// Flushes if there is output, else reads. Flushing may read too, so the caller looks at the input in between.
    async fn read_more(&mut self) -> Result<(), WireError> {
        if self.output.is_empty() { poll_fn(|cx| self.poll_read(cx)).await } else { self.flush().await }
    }

    /// A frame out of what was read already.
    fn buffered_frame(&mut self) -> Result<Option<Frame>, WireError> {
        loop {
            if let Some((frame, left)) = self.skipping.take() {
                let here = left.min(self.input.len());
                self.input.advance(here);
                if here == left {
                    // Without the room the message took before it was refused.
                    self.input = BytesMut::from(&self.input[..]);
                    return Ok(Some(frame));
                }
                self.skipping = Some((frame, left - here));
                return Ok(None);
            }
            if self.copy_left > 0 {
                if self.input.is_empty() {
                    return Ok(None);
                }
                let here = self.copy_left.min(self.input.len());
                self.copy_left -= here;
                return Ok(Some(Frame::CopyData(self.input.split_to(here).freeze())));
            }
            let Some((tag, len)) = self.header()? else { return Ok(None) };
            let bytes_max = body_bytes_max(tag);
            if tag == b'd' {
                self.input.advance(5);
                self.copy_left = len;
            } else if len > bytes_max && is_skippable(tag) {
                self.input.advance(5);
                self.skipping = Some((Frame::TooLarge { tag, bytes: len, bytes_max }, len));
            } else if len > bytes_max {
                return Err(WireError::Violation(format!("invalid message length: {len} bytes of body")));
            } else if self.input.len() < 5 + len {
                if self.has_room() {
                    return Ok(None);
                }
                self.room.iter_mut().for_each(|room| room.put(ByteSize::ZERO));
                self.input.advance(5);
                self.skipping = Some((Frame::NoRoom { tag }, len));
            } else {
                self.input.advance(5);
                return Ok(Some(Frame::Whole(tag, self.input.split_to(len).freeze())));
            }
        }
    }

    /// Type byte and length of body of the frame that comes next.
    fn header(&self) -> Result<Option<(u8, usize)>, WireError> {
        let Some(tag) = self.input.first().copied() else { return Ok(None) };
        if !b"QPBDECSHXcdfFp".contains(&tag) {
            return Err(WireError::Violation(format!("invalid frontend message type {tag}")));
        }
        let Some(length) = self.input.get(1..5).and_then(|bytes| bytes.try_into().ok()) else { return Ok(None) };
        let length = i32::from_be_bytes(length);
        match usize::try_from(length) {
            Ok(length @ 4..=FRAME_BYTES_MAX) => Ok(Some((tag, length - 4))),
            _ => Err(WireError::Violation(format!("invalid message length: {length}"))),
        }
    }

    /// Writes all output. Reads a bounded amount ahead meanwhile, so that two sides that both write do not
    /// wait for each other sooner than they must.
    ///
    /// # Cancellation
    /// Safe: what was not written stays in the buffer.
    pub(super) async fn flush(&mut self) -> Result<(), WireError> {
        poll_fn(|cx| {
            self.poll_io(cx, true)?;
            if self.output.is_empty() { Poll::Ready(Ok(())) } else { Poll::Pending }
        })
        .await
    }

    /// As `flush`, but gives up when the statement is interrupted.
    pub(super) async fn make_room(&mut self, signals: &Signals) -> Result<(), Interrupt> {
        let mut interrupted = pin!(signals.interrupted());
        poll_fn(|cx| {
            if self.poll_io(cx, true).is_err() {
                return Poll::Ready(Err(Interrupt::Gone));
            }
            if self.output.is_empty() {
                return Poll::Ready(Ok(()));
            }
            interrupted.as_mut().poll(cx).map(Err)
        })
        .await
    }

    /// Awaits `future` and serves the connection meanwhile.
    ///
    /// # Errors
    /// `Cancelled` by request, `Stopped` by shutdown, `Gone` when the connection broke or, as `orphan` says,
    /// when the client sent its last byte. The future is dropped then, which ends the statement.
    pub(super) async fn during<F: Future + Unpin>(
        &mut self,
        signals: &Signals,
        flushing: Flushing,
        orphan: Orphan,
        mut future: F,
    ) -> Result<F::Output, Interrupt> {
        let mut interrupted = pin!(signals.interrupted());
        let mut flush_at: Option<Instant> = None;
        let mut orphan_timer: Option<Pin<Box<Sleep>>> = None;
        poll_fn(|cx| {
            if let Poll::Ready(output) = Pin::new(&mut future).poll(cx) {
                return Poll::Ready(Ok(output));
            }
            if let Poll::Ready(interrupt) = interrupted.as_mut().poll(cx) {
                return Poll::Ready(Err(interrupt));
            }
            let is_due = match flushing {
                Flushing::Now => true,
                Flushing::Soon => {
                    let at = || Instant::now() + FLUSH_DELAY;
                    !self.output.is_empty() && self.is_flush_due(*flush_at.get_or_insert_with(at), cx)
                }
            };
            if self.poll_io(cx, is_due).is_err() || (flushing == Flushing::Now && self.poll_patience(cx).is_err()) {
                return Poll::Ready(Err(Interrupt::Gone));
            }
            let has_left = self.is_ended || self.input.first() == Some(&b'X');
            if has_left && (orphan == Orphan::Stop || is_over(&mut orphan_timer, ORPHAN_GRACE, cx)) {
                return Poll::Ready(Err(Interrupt::Gone));
            }
            Poll::Pending
        })
        .await
    }

    /// Whether `at` has come; if not, the task is woken then or before. A timer that an earlier wait left is not later.
    fn is_flush_due(&mut self, at: Instant, cx: &mut Context<'_>) -> bool {
        let timer = self.flush_timer.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(at)));
        while timer.as_mut().poll(cx).is_ready() {
            if timer.deadline() >= at {
                return true;
            }
            timer.as_mut().reset(at);
        }
        false
    }

    /// Writes what can be written, if asked to, and reads ahead what may be read.
    fn poll_io(&mut self, cx: &mut Context<'_>, is_writing: bool) -> Result<(), WireError> {
        while is_writing && self.written < self.output.len() {
            let rest = self.output.get(self.written..).unwrap_or_default();
            match Pin::new(&mut self.socket).poll_write(cx, rest) {
                Poll::Ready(Ok(0)) => return Err(WireError::Gone),
                Poll::Ready(Ok(count)) => {
                    self.written += count;
                    self.patience.iter_mut().for_each(|patience| patience.sent());
                }
                Poll::Ready(Err(_)) => return Err(WireError::Gone),
                Poll::Pending => break,
            }
        }
        if self.written == self.output.len() && self.written > 0 {
            self.written = 0;
            self.output.clear();
            self.output.shrink_to(4 * OUTPUT_BYTES_TARGET);
        } else if is_writing && self.written < self.output.len() {
            self.poll_patience(cx)?;
        }
        while !self.is_ended && self.input.len() < AHEAD_BYTES_MAX {
            match self.poll_read(cx) {
                Poll::Ready(Ok(())) => {}
                Poll::Ready(Err(error)) => return Err(error),
                Poll::Pending => break,
            }
        }
        Ok(())
    }

    /// A read of what may never come: a client that says nothing has no buffer.
    fn poll_read_first(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        let mut bytes = [MaybeUninit::uninit(); READ_BYTES_FIRST];
        let mut bytes = ReadBuf::uninit(&mut bytes);
        if Pin::new(&mut self.socket).poll_read(cx, &mut bytes)?.is_pending() {
            if self.input_alone != self.input.len() || self.input.is_empty() {
                self.input = BytesMut::from(&self.input[..]);
                self.input_alone = self.input.len();
            }
            return Poll::Pending;
        }
        self.input.extend_from_slice(bytes.filled());
        Poll::Ready(Ok(bytes.filled().len()))
    }

    /// One read. The buffer grows with what comes, not with what a header promises.
    fn poll_read(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), WireError>> {
        let read = match self.input.len() <= INPUT_BYTES_SMALL && self.read_size == READ_BYTES_FIRST {
            true => self.poll_read_first(cx),
            false => {
                self.input.reserve(self.read_size);
                pin!(self.socket.read_buf(&mut self.input)).poll(cx)
            }
        };
        match read {
            Poll::Pending => Poll::Pending,
            Poll::Ready(Err(_)) => Poll::Ready(Err(WireError::Gone)),
            Poll::Ready(Ok(0)) => {
                self.is_ended = true;
                Poll::Ready(Ok(()))
            }
            Poll::Ready(Ok(count)) => {
                self.input_alone = 0;
                self.read_size =
                    if count >= self.read_size { (count * 2).min(READ_BYTES_MAX) } else { READ_BYTES_FIRST };
                Poll::Ready(Ok(()))
            }
        }
    }
}

/// Polls a timer that is started by the first call.
fn is_over(timer: &mut Option<Pin<Box<Sleep>>>, after: Duration, cx: &mut Context<'_>) -> bool {
    let timer = timer.get_or_insert_with(|| Box::pin(tokio::time::sleep(after)));
    timer.as_mut().poll(cx).is_ready()
}

/// The longest body of a message of this type.
const fn body_bytes_max(tag: u8) -> usize {
    match tag {
        // The text, and the zero that ends it.
        b'Q' => limit::STATEMENT_BYTES_MAX + 1,
        // The text, two zeros, a name, and four bytes for each parameter's type.
        b'P' => limit::STATEMENT_BYTES_MAX + SMALL_BYTES_MAX + 4 * limit::PARAMETERS_MAX,
        b'B' | b'F' => limit::MESSAGE_BYTES_MAX,
        _ => SMALL_BYTES_MAX,
    }
}

/// Messages that may honestly be long: they are skipped and refused, and the connection goes on.
const fn is_skippable(tag: u8) -> bool {
    matches!(tag, b'Q' | b'P' | b'B' | b'F' | b'f')
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::server::pg::cancel::Stopping;
    use proptest::prelude::*;
    use tokio::io::{AsyncWriteExt as _, DuplexStream};
    use tokio_util::sync::CancellationToken;

    fn pair(buffer: usize) -> (DuplexStream, Wire<DuplexStream>) {
        let (client, server) = tokio::io::duplex(buffer);
        (client, Wire::new(server))
    }

    fn frame(tag: u8, body: &[u8]) -> Vec<u8> {
        let mut bytes = vec![tag];
        bytes.extend_from_slice(&u32::try_from(body.len() + 4).unwrap().to_be_bytes());
        bytes.extend_from_slice(body);
        bytes
    }

    fn signals() -> (CancellationToken, Stopping, Signals) {
        let (cancel, stopping) = (CancellationToken::new(), Stopping::default());
        let signals = Signals::finite(cancel.clone(), &stopping);
        (cancel, stopping, signals)
    }

    #[tokio::test]
    async fn a_message_without_room_is_skipped_and_its_bytes_are_not_kept() {
        let room = crate::engine::HoldingRoom::new(ByteSize::new(4 << 20));
        let (mut client, mut wire) = pair(64 << 10);
        wire.set_room(room.share());
        let large = frame(b'Q', &vec![b'x'; 3 << 20]);
        let sending = async {
            for bytes in [&large[..], &frame(b'S', b""), &frame(b'Q', &vec![b'y'; 1 << 20]), &frame(b'S', b"")] {
                client.write_all(bytes).await.unwrap();
            }
        };
        let reading = async {
            assert_eq!(wire.next_frame().await.unwrap(), Frame::NoRoom { tag: b'Q' });
            assert_eq!(room.used(), ByteSize::ZERO);
            assert_eq!(wire.next_frame().await.unwrap(), Frame::Whole(b'S', Bytes::new()));
            // One that fits counts until the next is asked for.
            assert!(matches!(wire.next_frame().await.unwrap(), Frame::Whole(b'Q', _)));
            assert!(room.used() > ByteSize::new(1 << 20));
            assert_eq!(wire.next_frame().await.unwrap(), Frame::Whole(b'S', Bytes::new()));
            assert_eq!(room.used(), ByteSize::ZERO);
        };
        tokio::join!(sending, reading);
    }

    #[tokio::test]
    async fn frames_are_cut_wherever_the_bytes_are_split() {
        let mut bytes = frame(b'Q', b"SELECT 1\0");
        bytes.extend(frame(b'S', b""));
        for split in 0..bytes.len() {
            let (mut client, mut wire) = pair(64);
            let (first, second) = bytes.split_at(split);
            client.write_all(first).await.unwrap();
            let reading = async {
                let query = wire.next_frame().await.unwrap();
                (query, wire.next_frame().await.unwrap())
            };
            let writing = async {
                tokio::task::yield_now().await;
                client.write_all(second).await.unwrap();
            };
            let ((query, sync), ()) = tokio::join!(reading, writing);
            assert_eq!(query, Frame::Whole(b'Q', Bytes::from_static(b"SELECT 1\0")));
            assert_eq!(sync, Frame::Whole(b'S', Bytes::new()));
        }
    }

    #[tokio::test]
    async fn a_few_bytes_that_wait_have_no_large_buffer() {
        let (mut client, mut wire) = pair(64 << 10);
        client.write_all(&[frame(b'Q', &[b'x'; 3_000]), frame(b'S', b"")].concat()).await.unwrap();
        assert!(matches!(wire.next_frame().await.unwrap(), Frame::Whole(b'Q', _)));
        wire.read_arrived().await.unwrap();
        assert!(wire.input.capacity() <= INPUT_BYTES_SMALL, "{}", wire.input.capacity());
        // Those behind them are not lost.
        client.write_all(&frame(b'Q', &[b'y'; 20_000])).await.unwrap();
        wire.read_arrived().await.unwrap();
        assert_eq!(wire.next_frame().await.unwrap(), Frame::Whole(b'S', Bytes::new()));
        assert_eq!(wire.next_frame().await.unwrap(), Frame::Whole(b'Q', Bytes::from(vec![b'y'; 20_000])));
    }

    #[tokio::test]
    async fn a_statement_over_the_limit_is_skipped_without_being_held() {
        let (mut client, mut wire) = pair(64 << 10);
        let body = limit::STATEMENT_BYTES_MAX + 2;
        let writing = async {
            client.write_all(b"Q").await.unwrap();
            client.write_all(&u32::try_from(body + 4).unwrap().to_be_bytes()).await.unwrap();
            let chunk = vec![b'x'; 64 << 10];
            let mut left = body;
            while left > 0 {
                let here = left.min(chunk.len());
                client.write_all(&chunk[..here]).await.unwrap();
                left -= here;
            }
            client.write_all(&frame(b'S', b"")).await.unwrap();
        };
        let reading = async {
            let first = wire.next_frame().await.unwrap();
            assert!(wire.input.capacity() <= 4 * READ_BYTES_MAX, "{}", wire.input.capacity());
            (first, wire.next_frame().await.unwrap())
        };
        let ((), (first, second)) = tokio::join!(writing, reading);
        assert_eq!(first, Frame::TooLarge { tag: b'Q', bytes: body, bytes_max: body - 1 });
        assert_eq!(second, Frame::Whole(b'S', Bytes::new()));
    }

    #[tokio::test]
    async fn copy_data_comes_in_parts_as_it_arrives() {
        let (mut client, mut wire) = pair(1024);
        client.write_all(&[b'd', 0, 0, 0, 10]).await.unwrap();
        client.write_all(b"abc").await.unwrap();
        assert_eq!(wire.next_frame().await.unwrap(), Frame::CopyData(Bytes::from_static(b"abc")));
        client.write_all(b"def").await.unwrap();
        client.write_all(&frame(b'c', b"")).await.unwrap();
        assert_eq!(wire.next_frame().await.unwrap(), Frame::CopyData(Bytes::from_static(b"def")));
        assert_eq!(wire.next_frame().await.unwrap(), Frame::Whole(b'c', Bytes::new()));
    }

    #[tokio::test]
    async fn lost_framing_is_a_violation() {
        for bytes in
            [&b"GET / HTTP/1.1\r\n"[..], b"Q\0\0\0\x03", b"S\xff\xff\xff\xff", b"S\0\x01\0\0", b"Q\x7f\xff\xff\xff"]
        {
            let (mut client, mut wire) = pair(1024);
            client.write_all(bytes).await.unwrap();
            assert!(matches!(wire.next_frame().await, Err(WireError::Violation(_))), "{bytes:?}");
        }
    }

    #[tokio::test]
    async fn the_end_of_the_stream_within_a_frame_is_gone() {
        let (mut client, mut wire) = pair(1024);
        client.write_all(b"Q\0\0\0\x20SELECT").await.unwrap();
        drop(client);
        assert!(matches!(wire.next_frame().await, Err(WireError::Gone)));
    }

    #[tokio::test]
    async fn output_is_flushed_while_a_subscription_waits_and_cancel_ends_it() {
        let (mut client, mut wire) = pair(1024);
        let (cancel, _, signals) = signals();
        wire.out().extend_from_slice(b"row");
        let watching = async {
            let mut row = [0; 3];
            client.read_exact(&mut row).await.unwrap();
            assert_eq!(&row, b"row");
            cancel.cancel();
        };
        let waiting = wire.during(&signals, Flushing::Now, Orphan::Stop, std::future::pending::<()>());
        let (ended, ()) = tokio::join!(waiting, watching);
        assert_eq!(ended, Err(Interrupt::Cancelled));
    }

    #[tokio::test]
    async fn a_part_of_copy_data_is_no_frame_before_it_is_there() {
        let (mut client, mut wire) = pair(1024);
        client.write_all(b"d\0\0\0\x08ab").await.unwrap();
        assert_eq!(wire.next_frame().await.unwrap(), Frame::CopyData(Bytes::from_static(b"ab")));
        assert!(!wire.has_frame());
        client.write_all(b"cd").await.unwrap();
        wire.read_arrived().await.unwrap();
        assert!(wire.has_frame());
        assert_eq!(wire.next_frame().await.unwrap(), Frame::CopyData(Bytes::from_static(b"cd")));
        assert!(!wire.has_frame());
    }

    #[tokio::test]
    async fn a_client_that_hangs_up_ends_a_subscription() {
        let (client, mut wire) = pair(1024);
        let (_, _, signals) = signals();
        drop(client);
        let ended = wire.during(&signals, Flushing::Now, Orphan::Stop, std::future::pending::<()>()).await;
        assert_eq!(ended, Err(Interrupt::Gone));
    }

    #[tokio::test]
    async fn a_terminate_behind_a_subscription_ends_it() {
        let (mut client, mut wire) = pair(1024);
        let (_, _, signals) = signals();
        client.write_all(&frame(b'X', b"")).await.unwrap();
        let ended = wire.during(&signals, Flushing::Now, Orphan::Stop, std::future::pending::<()>()).await;
        assert_eq!(ended, Err(Interrupt::Gone));
    }

    #[tokio::test]
    async fn a_command_outlives_its_client_and_pipelined_messages_stay() {
        let (mut client, mut wire) = pair(1024);
        let (_, _, signals) = signals();
        client.write_all(&frame(b'S', b"")).await.unwrap();
        drop(client);
        let command = async {
            tokio::task::yield_now().await;
            tokio::task::yield_now().await;
            5
        };
        assert_eq!(wire.during(&signals, Flushing::Soon, Orphan::Finish, pin!(command)).await, Ok(5));
        assert_eq!(wire.next_frame().await.unwrap(), Frame::Whole(b'S', Bytes::new()));
        assert!(matches!(wire.next_frame().await, Err(WireError::Gone)));
    }

    #[tokio::test]
    async fn a_blocked_write_is_cancelled_and_what_was_not_written_stays() {
        let (mut client, mut wire) = pair(16);
        let (cancel, _, signals) = signals();
        wire.out().extend_from_slice(&[7; 100]);
        cancel.cancel();
        assert_eq!(wire.make_room(&signals).await, Err(Interrupt::Cancelled));
        let mut all = [0; 100];
        let (read, flushed) = tokio::join!(client.read_exact(&mut all), wire.flush());
        assert_eq!(read.unwrap(), 100);
        flushed.unwrap();
        assert_eq!(all, [7; 100]);
    }

    #[tokio::test]
    async fn reading_ahead_is_bounded() {
        let (mut client, mut wire) = pair(1 << 20);
        let (cancel, _, signals) = signals();
        client.write_all(&vec![b'S'; 1 << 20]).await.unwrap();
        let waiting = wire.during(&signals, Flushing::Now, Orphan::Stop, std::future::pending::<()>());
        let (ended, ()) = tokio::join!(waiting, async { cancel.cancel() });
        assert_eq!(ended, Err(Interrupt::Cancelled));
        assert!(wire.input.len() <= AHEAD_BYTES_MAX + READ_BYTES_MAX * 2, "{}", wire.input.len());
    }

    #[tokio::test]
    async fn shutdown_ends_a_wait() {
        let (_client, mut wire) = pair(16);
        let (_, stopping, signals) = signals();
        stopping.stop_now();
        let ended = wire.during(&signals, Flushing::Now, Orphan::Stop, std::future::pending::<()>()).await;
        assert_eq!(ended, Err(Interrupt::Stopped));
    }

    proptest! {
        #[test]
        fn no_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
            runtime.block_on(async {
                let (mut client, mut wire) = pair(1024);
                client.write_all(&bytes).await.unwrap();
                drop(client);
                while let Ok(frame) = wire.next_frame().await {
                    if let Frame::Whole(tag, body) = frame {
                        let _ = crate::server::pg::message::decode(tag, body);
                    }
                }
            });
        }
    }
}
