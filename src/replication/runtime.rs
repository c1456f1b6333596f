//! The runtime openraft runs on: tokio, with the tasks of one Raft group in one tokio task.
//!
//! An entry passes through four of openraft's tasks (core, forwarder of flushed I/O, core, state machine). As tasks of
//! tokio's each step may wake another thread, which costs more than the step; as parts of one task they follow each
//! other on the thread that proposed the entry. Owns that grouping; leaves everything else to [`TokioRuntime`].
//! Tasks that openraft starts later, for peers and snapshots, are tasks of their own.

use super::read_side::Failure;
use crate::env;
use futures::task::AtomicWaker;
use openraft::TokioRuntime;
use openraft::{AsyncRuntime, OptionalSend};
use parking_lot::Mutex;
use std::cell::RefCell;
use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;
use tokio::sync::oneshot;

/// Rounds over the ready parts before a group lets other tasks run.
const ROUNDS_MAX: usize = 32;
/// Parts a group may have: the bits of its ready mask.
const PARTS_MAX: usize = 64;

type Part = Pin<Box<dyn Future<Output = ()> + Send>>;

thread_local! {
    /// The group that tasks started now become parts of.
    static FOUNDING: RefCell<Option<Arc<Group>>> = const { RefCell::new(None) };
}

/// What a group and the wakers of its parts share.
struct Group {
    /// Told of a part that panics: the others would wait for it for ever.
    failure: Failure,
    /// One bit for each part that was woken.
    ready: AtomicU64,
    /// The group's task looks at `ready` again by itself.
    is_running: AtomicBool,
    task: AtomicWaker,
    founded: Mutex<Vec<Part>>,
}

/// Wakes one part.
struct PartWaker {
    group: Arc<Group>,
    bit: u64,
}

impl Wake for PartWaker {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        // Sequentially consistent on both sides: either the task sees the bit, or this sees that it has stopped looking.
        self.group.ready.fetch_or(self.bit, Ordering::SeqCst);
        if !self.group.is_running.load(Ordering::SeqCst) {
            self.group.task.wake();
        }
    }
}

/// The task of a group.
struct GroupTask {
    group: Arc<Group>,
    parts: Vec<Option<(Part, Waker)>>,
}

impl GroupTask {
    fn poll_part(&mut self, number: usize) {
        let Some(slot) = self.parts.get_mut(number) else { return };
        let Some((part, waker)) = slot else { return };
        if part.as_mut().poll(&mut Context::from_waker(waker)).is_ready() {
            *slot = None;
        }
    }
}

impl Future for GroupTask {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let group = Arc::clone(&self.group);
        group.task.register(cx.waker());
        group.is_running.store(true, Ordering::SeqCst);
        for _ in 0..ROUNDS_MAX {
            let mut ready = group.ready.swap(0, Ordering::SeqCst);
            while ready != 0 {
                self.poll_part(ready.trailing_zeros() as usize);
                ready &= ready - 1;
            }
            if self.parts.iter().all(Option::is_none) {
                return Poll::Ready(());
            }
            if group.ready.load(Ordering::SeqCst) != 0 {
                continue;
            }
            group.is_running.store(false, Ordering::SeqCst);
            if group.ready.load(Ordering::SeqCst) == 0 {
                return Poll::Pending;
            }
            group.is_running.store(true, Ordering::SeqCst);
        }
        group.is_running.store(false, Ordering::SeqCst);
        cx.waker().wake_by_ref();
        Poll::Pending
    }
}

/// Runs `founding`, and makes one task of all those that openraft starts in it. If one of them panics, the node fails.
pub(crate) async fn as_group<F: Future>(failure: &Failure, founding: F) -> F::Output {
    let group = Arc::new(Group {
        failure: failure.clone(),
        ready: AtomicU64::default(),
        is_running: AtomicBool::default(),
        task: AtomicWaker::default(),
        founded: Mutex::default(),
    });
    let mut founding = Box::pin(founding);
    let output = std::future::poll_fn(|cx| {
        let before = FOUNDING.replace(Some(Arc::clone(&group)));
        let polled = founding.as_mut().poll(cx);
        FOUNDING.replace(before);
        polled
    })
    .await;
    let waker = |(number, part)| {
        let bit = 1_u64 << number;
        (part, Waker::from(Arc::new(PartWaker { group: Arc::clone(&group), bit })))
    };
    let founded = std::mem::take(&mut *group.founded.lock());
    let parts: Vec<_> = founded.into_iter().enumerate().map(waker).map(Some).collect();
    let all = u64::MAX.checked_shr(64 - parts.len() as u32).unwrap_or(0);
    group.ready.store(all, Ordering::SeqCst);
    // Ends with its parts. Its rounds are bounded, so it needs no budget of tokio's.
    let _task = env::spawn("raft-group", tokio::task::unconstrained(GroupTask { group, parts }));
    output
}

/// How a task ended that gave nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum JoinError {
    #[error("the task panicked")]
    Panicked,
    #[error("the task was dropped")]
    Dropped,
}

/// The outcome of a task.
#[derive(Debug)]
pub(crate) struct JoinHandle<T>(oneshot::Receiver<Result<T, JoinError>>);

impl<T> Future for JoinHandle<T> {
    type Output = Result<T, JoinError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        Pin::new(&mut self.0).poll(cx).map(|outcome| outcome.unwrap_or(Err(JoinError::Dropped)))
    }
}

/// Runs `future` to its end or panic, and tells its handle; of a panic also `failure`.
async fn reporting<T: Future>(
    future: T,
    failure: Option<Failure>,
    outcome: oneshot::Sender<Result<T::Output, JoinError>>,
) {
    let mut future = Box::pin(future);
    let ended = std::future::poll_fn(|cx| {
        let polled = catch_unwind(AssertUnwindSafe(|| future.as_mut().poll(cx)));
        match polled {
            Ok(polled) => polled.map(Ok),
            Err(panic) => {
                let text = panic.downcast_ref::<&str>().copied();
                let text = text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or_default();
                if let Some(failure) = &failure {
                    failure.stop(&format!("a task of a shard panicked: {text}"));
                }
                Poll::Ready(Err(JoinError::Panicked))
            }
        }
    });
    // Nobody need want to know.
    let _ = outcome.send(ended.await);
}

/// The runtime of every shard's Raft group.
#[derive(Debug)]
pub(crate) struct Runtime(TokioRuntime);

impl AsyncRuntime for Runtime {
    type JoinError = JoinError;
    type JoinHandle<T: OptionalSend + 'static> = JoinHandle<T>;
    type Sleep = <TokioRuntime as AsyncRuntime>::Sleep;
    type Instant = <TokioRuntime as AsyncRuntime>::Instant;
    type TimeoutError = <TokioRuntime as AsyncRuntime>::TimeoutError;
    type Timeout<R, T: Future<Output = R> + OptionalSend> = <TokioRuntime as AsyncRuntime>::Timeout<R, T>;
    type ThreadLocalRng = <TokioRuntime as AsyncRuntime>::ThreadLocalRng;
    type Mpsc = <TokioRuntime as AsyncRuntime>::Mpsc;
    type Watch = <TokioRuntime as AsyncRuntime>::Watch;
    type Oneshot = <TokioRuntime as AsyncRuntime>::Oneshot;
    type Mutex<T: OptionalSend + 'static> = <TokioRuntime as AsyncRuntime>::Mutex<T>;

    fn spawn<T>(future: T) -> Self::JoinHandle<T::Output>
    where
        T: Future + OptionalSend + 'static,
        T::Output: OptionalSend + 'static,
    {
        let (outcome, handle) = oneshot::channel();
        let failure = FOUNDING.with_borrow(|group| group.as_ref().map(|group| group.failure.clone()));
        let part: Part = Box::pin(reporting(future, failure, outcome));
        let alone = FOUNDING.with_borrow(|group| match group {
            Some(group) => {
                let mut founded = group.founded.lock();
                if founded.len() < PARTS_MAX {
                    founded.push(part);
                    return None;
                }
                Some(part)
            }
            None => Some(part),
        });
        if let Some(part) = alone {
            // Its handle tells how it ends.
            let _task = env::spawn("raft", part);
        }
        JoinHandle(handle)
    }

    fn sleep(duration: Duration) -> Self::Sleep {
        TokioRuntime::sleep(duration)
    }

    fn sleep_until(deadline: Self::Instant) -> Self::Sleep {
        TokioRuntime::sleep_until(deadline)
    }

    fn timeout<R, F: Future<Output = R> + OptionalSend>(duration: Duration, future: F) -> Self::Timeout<R, F> {
        TokioRuntime::timeout(duration, future)
    }

    fn timeout_at<R, F: Future<Output = R> + OptionalSend>(deadline: Self::Instant, future: F) -> Self::Timeout<R, F> {
        TokioRuntime::timeout_at(deadline, future)
    }

    fn is_panic(error: &Self::JoinError) -> bool {
        *error == JoinError::Panicked
    }

    fn thread_rng() -> Self::ThreadLocalRng {
        TokioRuntime::thread_rng()
    }

    fn new(threads: usize) -> Self {
        Self(TokioRuntime::new(threads))
    }

    fn block_on<F, T>(&mut self, future: F) -> T
    where
        F: Future<Output = T>,
    {
        self.0.block_on(future)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn parts_wake_each_other_and_others_wake_them() {
        let (to_second, mut second_in) = tokio::sync::mpsc::channel::<u32>(1);
        let (to_first, mut first_in) = tokio::sync::mpsc::channel::<u32>(1);
        let (to_both, mut both_in) = tokio::sync::mpsc::channel::<u32>(4);
        let founding = async move {
            let first = Runtime::spawn(async move {
                let mut sum = 0;
                while let Some(value) = both_in.recv().await {
                    to_second.send(value).await.unwrap();
                    sum += first_in.recv().await.unwrap();
                }
                sum
            });
            let second = Runtime::spawn(async move {
                while let Some(value) = second_in.recv().await {
                    to_first.send(value * 2).await.unwrap();
                }
            });
            (first, second)
        };
        let (first, second) = as_group(&Failure::new(), founding).await;
        // From another task, with pauses in which the group may sleep.
        let sender = env::spawn("sender", async move {
            for value in 0..2_000 {
                to_both.send(value).await.unwrap();
                for _ in 0..value % 50 {
                    tokio::task::yield_now().await;
                }
            }
        });
        assert_eq!(first.await, Ok(1_999 * 2_000));
        assert_eq!(second.await, Ok(()));
        sender.await.unwrap();
    }

    #[tokio::test]
    async fn a_part_that_panics_is_reported_and_takes_no_other_with_it() {
        let founding = async {
            let other = Runtime::spawn(async {
                tokio::task::yield_now().await;
                7
            });
            (Runtime::spawn(async { assert_eq!(1, 2) }), other)
        };
        let failure = Failure::new();
        let (panicking, other) = as_group(&failure, founding).await;
        let error = panicking.await.unwrap_err();
        assert!(Runtime::is_panic(&error));
        let reason = failure.reason().expect("the node must stop");
        assert!(reason.contains("left: 1"), "{reason}");
        assert_eq!(other.await, Ok(7));
        assert_eq!(Runtime::spawn(async { 3 }).await, Ok(3));
    }
}
