//! Whether a silent client is there still: the kernel asks it while nothing is sent, and what was sent wants an answer.
//!
//! Owns what stands behind `session_timeout`. A client that is at work, stopped, or does not read, answers; one whose
//! machine or network is gone does not. Leaves out what ends with the connection (`wire`).

use crate::server::pg::tcp_info;
use socket2::{SockRef, TcpKeepalive};
use std::pin::Pin;
use std::task::Context;
use std::time::Duration;
use tokio::net::TcpStream;
use tokio::time::{Instant, Sleep};

/// The most that Linux takes.
const SECONDS_MAX: Duration = Duration::from_secs(32_767);
/// Probes that go without an answer before the connection is closed.
const PROBES: u32 = 4;
/// Looks in a row after which an other end that does not answer is gone.
const SILENT_LOOKS: u32 = 4;
/// Between two of them.
const PERIOD_MIN: Duration = Duration::from_millis(100);

/// A connection whose other end may vanish without a word.
pub(super) trait Peer {
    /// After how long a silent other end counts as gone; `None` for never.
    fn set_patience(&self, timeout: Option<Duration>);

    /// What it has said of what was sent, so long ago or later.
    fn answer(&self, time: Duration) -> Answer;
}

/// What the other end has said of what was sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Answer {
    /// It has all of it.
    All,
    /// It is on its way, or waits for room.
    Some,
    /// Nothing, though it was sent again.
    None,
}

/// How long what is sent may go without an answer.
#[derive(Debug)]
pub(super) struct Patience<S> {
    /// Between two looks.
    period: Duration,
    answer: fn(&S, Duration) -> Answer,
    /// Looks in a row that found no answer.
    looks: u32,
    /// Something was sent since the last look.
    has_sent: bool,
    /// What was sent before was looked at once.
    has_begun: bool,
    /// Until the next look, while there is something to look for.
    timer: Option<Pin<Box<Sleep>>>,
}

/// The other end is gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Silent;

impl<S: Peer> Patience<S> {
    /// With what is sent, and was before.
    pub(super) fn new(time: Duration) -> Self {
        let period = (time / SILENT_LOOKS).max(PERIOD_MIN);
        Self { period, answer: S::answer, looks: 0, has_sent: true, has_begun: false, timer: None }
    }
}

impl<S> Patience<S> {
    /// Something was sent.
    pub(super) fn sent(&mut self) {
        self.has_sent = true;
    }

    /// Looks from time to time whether the other end still answers, while it has something to answer.
    ///
    /// # Errors
    /// When it does not.
    pub(super) fn poll(&mut self, socket: &S, cx: &mut Context<'_>) -> Result<(), Silent> {
        if !std::mem::replace(&mut self.has_begun, true) && (self.answer)(socket, self.period) == Answer::All {
            self.has_sent = false;
        }
        if self.timer.is_none() && !self.has_sent {
            return Ok(());
        }
        let timer = self.timer.get_or_insert_with(|| Box::pin(tokio::time::sleep(self.period)));
        // Nobody looked meanwhile: what was seen before says nothing now.
        if timer.deadline() + self.period < Instant::now() {
            self.looks = 0;
            timer.as_mut().reset(Instant::now() + self.period);
        }
        while timer.as_mut().poll(cx).is_ready() {
            let answer = (self.answer)(socket, self.period);
            self.looks = if answer == Answer::None { self.looks + 1 } else { 0 };
            if self.looks >= SILENT_LOOKS {
                return Err(Silent);
            }
            if answer == Answer::All && !std::mem::take(&mut self.has_sent) {
                self.timer = None;
                return Ok(());
            }
            timer.as_mut().reset(Instant::now() + self.period);
        }
        Ok(())
    }
}

impl Peer for TcpStream {
    fn set_patience(&self, timeout: Option<Duration>) {
        let socket = SockRef::from(self);
        let set = match timeout {
            None => socket.set_keepalive(false),
            Some(timeout) => {
                // A third of the time without a word, then the probes; the kernel counts in seconds.
                let seconds = |time: Duration| time.clamp(Duration::from_secs(1), SECONDS_MAX);
                let (idle, interval) = (seconds(timeout / 3), seconds(timeout / (2 * PROBES)));
                let keepalive = TcpKeepalive::new().with_time(idle).with_interval(interval).with_retries(PROBES);
                socket.set_tcp_keepalive(&keepalive)
            }
        };
        if let Err(error) = set {
            tracing::debug!(%error, "a socket refused its time-outs");
        }
    }

    fn answer(&self, time: Duration) -> Answer {
        tcp_info::answer(self, time)
    }
}

#[cfg(test)]
impl Peer for tokio::io::DuplexStream {
    fn set_patience(&self, _: Option<Duration>) {}

    fn answer(&self, _: Duration) -> Answer {
        Answer::All
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::net::TcpListener;

    #[tokio::test]
    async fn the_kernel_is_told_how_long_to_wait() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let socket = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        socket.set_patience(Some(Duration::from_secs(45)));
        let of = SockRef::from(&socket);
        assert!(of.keepalive().unwrap());
        assert_eq!(of.tcp_keepalive_time().unwrap(), Duration::from_secs(15));
        socket.set_patience(None);
        assert!(!of.keepalive().unwrap());
    }
}
