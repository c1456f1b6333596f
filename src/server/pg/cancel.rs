//! What interrupts a statement from outside: a cancel request, shutdown, and the client's end.
//!
//! Owns the signals a connection listens to in every wait of its own. Leaves out the keys of sessions and
//! the statements they cancel: the engine has them, and gives each statement a token. A cancel request that
//! finds no statement running therefore has no effect, as in PostgreSQL. A crash forgets all of it.

use crate::engine::Handed;
use crate::env;
use std::future::{pending, poll_fn};
use std::task::Poll;
use std::time::Instant;
use tokio_util::sync::CancellationToken;

/// Why a statement did not run to its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Interrupt {
    /// A cancel request with the right key came.
    Cancelled,
    /// `statement_timeout` passed.
    TimedOut,
    /// The server stops.
    Stopped,
    /// The client is gone; nobody is left to tell.
    Gone,
}

/// The two stages of a shutdown.
#[derive(Debug, Clone, Default)]
pub(crate) struct Stopping {
    gently: CancellationToken,
    now: CancellationToken,
}

impl Stopping {
    /// No new work; statements that end by themselves may do so.
    pub(crate) fn stop_gently(&self) {
        self.gently.cancel();
    }

    /// Everything ends.
    pub(crate) fn stop_now(&self) {
        self.gently.cancel();
        self.now.cancel();
    }

    /// Whether no new work is taken.
    pub(crate) fn is_gentle(&self) -> bool {
        self.gently.is_cancelled()
    }

    /// Resolves when no new work is taken.
    pub(crate) async fn gently(&self) {
        self.gently.cancelled().await;
    }
}

/// What a wait of one statement listens to.
#[derive(Debug, Clone)]
pub(super) struct Signals {
    cancel: CancellationToken,
    stop: CancellationToken,
    deadline: Option<Instant>,
    handed: Handed,
}

impl Signals {
    /// For a statement that ends by itself: shutdown leaves it some time.
    pub(super) fn finite(cancel: CancellationToken, stopping: &Stopping) -> Self {
        Self { cancel, stop: stopping.now.clone(), deadline: None, handed: Handed::default() }
    }

    /// The same for a statement that does not end by itself: it stops when the shutdown begins.
    pub(super) fn endless(&self, stopping: &Stopping) -> Self {
        Self { stop: stopping.gently.clone(), ..self.clone() }
    }

    /// The same with another moment at which the statement has taken too long; `None` is never.
    pub(super) fn until(self, deadline: Option<Instant>) -> Self {
        Self { deadline, ..self }
    }

    /// The same for a statement that can be cancelled only as long as it was not handed over.
    pub(super) fn unless(self, handed: Handed) -> Self {
        Self { handed, ..self }
    }

    /// Resolves when the statement must end. Polled again whenever the statement went on, it sees what was handed over.
    pub(super) async fn interrupted(&self) -> Interrupt {
        tokio::select! {
            biased;
            () = self.stop.cancelled() => Interrupt::Stopped,
            interrupt = self.ended_early() => interrupt,
        }
    }

    async fn ended_early(&self) -> Interrupt {
        let interrupt = tokio::select! {
            biased;
            () = self.cancel.cancelled() => Interrupt::Cancelled,
            () = self.timed_out() => Interrupt::TimedOut,
        };
        poll_fn(|_| if self.handed.is_set() { Poll::Pending } else { Poll::Ready(()) }).await;
        interrupt
    }

    async fn timed_out(&self) {
        match self.deadline {
            Some(deadline) => tokio::time::sleep_until(deadline.into()).await,
            None => pending().await,
        }
    }

    /// The reason to end now, if there is one: for loops that never wait.
    pub(super) fn check(&self) -> Result<(), Interrupt> {
        if self.stop.is_cancelled() {
            Err(Interrupt::Stopped)
        } else if self.handed.is_set() {
            Ok(())
        } else if self.cancel.is_cancelled() {
            Err(Interrupt::Cancelled)
        } else if self.deadline.is_some_and(|deadline| deadline <= env::instant()) {
            Err(Interrupt::TimedOut)
        } else {
            Ok(())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::FutureExt as _;

    #[tokio::test]
    async fn endless_statements_stop_at_the_first_stage_and_others_at_the_second() {
        let stopping = Stopping::default();
        let finite = Signals::finite(CancellationToken::new(), &stopping);
        let endless = finite.endless(&stopping);
        assert_eq!(endless.check(), Ok(()));
        stopping.stop_gently();
        assert_eq!(finite.check(), Ok(()));
        assert_eq!(endless.interrupted().await, Interrupt::Stopped);
        stopping.stop_now();
        assert_eq!(finite.interrupted().await, Interrupt::Stopped);
    }

    #[tokio::test]
    async fn a_deadline_that_passed_times_out() {
        let signals = Signals::finite(CancellationToken::new(), &Stopping::default()).until(Some(env::instant()));
        assert_eq!(signals.check(), Err(Interrupt::TimedOut));
        assert_eq!(signals.interrupted().await, Interrupt::TimedOut);
    }

    #[tokio::test]
    async fn what_was_handed_over_is_not_cancelled_unless_it_is_refused() {
        let (cancel, stopping, handed) = (CancellationToken::new(), Stopping::default(), Handed::already());
        let signals = Signals::finite(cancel.clone(), &stopping).until(Some(env::instant())).unless(handed.clone());
        cancel.cancel();
        assert_eq!(signals.check(), Ok(()));
        let mut interrupted = std::pin::pin!(signals.interrupted());
        assert_eq!(interrupted.as_mut().now_or_never(), None);
        handed.set(false);
        assert_eq!(signals.check(), Err(Interrupt::Cancelled));
        assert_eq!(interrupted.as_mut().now_or_never(), Some(Interrupt::Cancelled));
        handed.set(true);
        stopping.stop_now();
        assert_eq!(signals.check(), Err(Interrupt::Stopped));
        assert_eq!(signals.interrupted().await, Interrupt::Stopped);
    }

    #[tokio::test]
    async fn a_cancelled_token_cancels() {
        let cancel = CancellationToken::new();
        let signals = Signals::finite(cancel.clone(), &Stopping::default());
        cancel.cancel();
        assert_eq!(signals.check(), Err(Interrupt::Cancelled));
        assert_eq!(signals.interrupted().await, Interrupt::Cancelled);
    }
}
