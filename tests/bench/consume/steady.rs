//! Events that are sent at a steady rate, each when it is due, and the times until those who read them have them.
//!
//! The times count from when an event was due, so that a producer that is held back hides nothing.

use crate::kit::events::Events;
use crate::kit::report::quantile;
use crate::members::{Member, SIZE};
use crate::peer::nats::NatsClient;
use crate::peer::nats_pull::NatsPuller;
use crate::peer::sql::SqlWriter;
use anyhow::Context as _;
use futures::future::try_join_all;
use std::cell::{Cell, RefCell};
use std::time::{Duration, Instant};
use tokio::sync::{Notify, mpsc};

pub(crate) const EVENTS_PER_SECOND: usize = 1_000;
const TICK: Duration = Duration::from_millis(1);
/// Events that are due and not sent yet.
const DUE_MAX: usize = 1 << 16;
/// Part of the events, at the beginning, whose times are not counted.
const WARM_UP_PART: usize = 5;
/// After the last event was sent.
const RECEIVE_TIME_MAX: Duration = Duration::from_secs(30);

/// Who sends.
pub(crate) enum Producer {
    Sql(SqlWriter),
    Nats(NatsClient),
}

impl Producer {
    async fn send(&mut self, event: &str) -> anyhow::Result<()> {
        match self {
            Self::Sql(writer) => writer.send(&[event]).await,
            Self::Nats(client) => client.publish(&[event]).await,
        }
    }
}

/// Who receives.
pub(crate) enum Receiver {
    Ours(Member),
    Nats(NatsPuller),
}

impl Receiver {
    async fn values(&mut self, each: impl FnMut(&[u8]) -> anyhow::Result<()>) -> anyhow::Result<usize> {
        match self {
            Self::Ours(member) => member.values(each).await,
            Self::Nats(puller) => puller.values(each).await,
        }
    }
}

/// Times in milliseconds.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Turn {
    pub(crate) p50: f64,
    pub(crate) p99: f64,
    pub(crate) most: f64,
}

/// What receivers share.
struct Arrivals {
    due: RefCell<Vec<Instant>>,
    /// How often each event came.
    came: RefCell<Vec<u32>>,
    times: RefCell<Vec<Duration>>,
    missing: Cell<usize>,
    done: Notify,
}

impl Arrivals {
    fn take(&self, value: &[u8], warm_up: usize) -> anyhow::Result<()> {
        let number: usize = std::str::from_utf8(value.get(..20).context("no number")?)?.parse()?;
        let due = *self.due.borrow().get(number).context("an event before it was sent")?;
        if let Some(came) = self.came.borrow_mut().get_mut(number) {
            *came += 1;
        }
        if number >= warm_up {
            self.times.borrow_mut().push(due.elapsed());
        }
        self.missing.set(self.missing.get().saturating_sub(1));
        if self.missing.get() == 0 {
            self.done.notify_one();
        }
        Ok(())
    }
}

/// Sends for `time`, and receives each event `copies` times in all.
pub(crate) async fn measure(
    producer: Producer,
    receivers: Vec<Receiver>,
    copies: usize,
    time: Duration,
) -> anyhow::Result<Turn> {
    let count = (time.as_secs_f64() * EVENTS_PER_SECOND as f64) as usize;
    let arrivals = &Arrivals {
        due: RefCell::new(Vec::with_capacity(count)),
        came: RefCell::new(vec![0; count]),
        times: RefCell::new(Vec::with_capacity(count * copies)),
        missing: Cell::new(count * copies),
        done: Notify::new(),
    };
    let warm_up = count / WARM_UP_PART;
    let receiving = try_join_all(receivers.into_iter().map(|receiver| receive(receiver, arrivals, warm_up)));
    let sending = async {
        // Its connection must not end before the last event has come.
        let _producer = produce(producer, &arrivals.due, count).await?;
        tokio::time::sleep(RECEIVE_TIME_MAX).await;
        anyhow::bail!("it does not keep up: {} of {} rows did not come", arrivals.missing.get(), count * copies)
    };
    tokio::select! {
        biased;
        () = arrivals.done.notified() => {}
        failed = sending => failed?,
        failed = receiving => drop(failed?),
    }
    let is_right = arrivals.came.borrow().iter().all(|came| *came as usize == copies);
    anyhow::ensure!(is_right, "some events came too often");
    let mut times = arrivals.times.borrow_mut();
    Ok(Turn { p50: quantile(&mut times, 0.5), p99: quantile(&mut times, 0.99), most: quantile(&mut times, 1.0) })
}

/// Takes events for as long as they come.
async fn receive(mut receiver: Receiver, arrivals: &Arrivals, warm_up: usize) -> anyhow::Result<()> {
    loop {
        receiver.values(|value| arrivals.take(value, warm_up)).await?;
    }
}

async fn produce(mut producer: Producer, due: &RefCell<Vec<Instant>>, count: usize) -> anyhow::Result<Producer> {
    let texts = Events::new(1_000, SIZE);
    let mut ticks = ticks(count);
    for number in 0..count {
        let time = ticks.recv().await.context("the pacer ended")?;
        due.borrow_mut().push(time);
        producer.send(&format!("{number:020}{}", &texts.get(number)[20..])).await?;
    }
    Ok(producer)
}

/// When each event is due, told then: by a thread, since the runtime's timers are up to two milliseconds late, which is
/// longer than an event takes.
fn ticks(count: usize) -> mpsc::Receiver<Instant> {
    let (tell, ticks) = mpsc::channel(DUE_MAX);
    std::thread::spawn(move || {
        let start = Instant::now();
        for number in 0..count {
            let due = start + TICK * number as u32;
            while let Some(left) = due.checked_duration_since(Instant::now()).filter(|left| !left.is_zero()) {
                std::thread::park_timeout(left);
            }
            if tell.blocking_send(due).is_err() {
                return;
            }
        }
    });
    ticks
}
