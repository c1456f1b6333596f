//! Whether a silent client is there still: the kernel asks it while nothing is sent, and what was sent wants an answer.
//!
//! Owns what stands behind `session_timeout`. A client that is at work, stopped, or does not read, answers; one whose
//! machine or network is gone does not. Leaves out when that is looked at (`wire`), and what ends with the connection.

use crate::server::pg::tcp_info;
use socket2::{SockRef, TcpKeepalive};
use std::time::Duration;
use tokio::net::TcpStream;

/// The most that Linux takes.
const SECONDS_MAX: Duration = Duration::from_secs(32_767);
/// Probes that go without an answer before the connection is closed.
const PROBES: u32 = 4;

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
