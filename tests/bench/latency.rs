//! From a row's acknowledgement to the row at a subscriber, at a steady rate of events.

use crate::Options;
use crate::report::{Aim, Report, Unit, quantile};
use crate::server::{Server, directory};
use anyhow::Context as _;
use futures::StreamExt as _;
use std::cell::RefCell;
use std::pin::pin;
use std::rc::Rc;
use std::time::{Duration, Instant};
use tokio::task::LocalSet;
use tokio::time::{MissedTickBehavior, interval, timeout};
use tokio_postgres::{Client, Statement};

const EVENTS_PER_SECOND: usize = 1_000;
/// Producers take turns, so that a slow acknowledgement holds back no event that is due.
const PRODUCERS: usize = 8;
/// Events whose times are not counted.
const WARM_UP: usize = 1_000;
const RECEIVE_TIME_MAX: Duration = Duration::from_secs(30);

/// When an event was sent, acknowledged and received.
#[derive(Debug, Clone, Copy, Default)]
struct Times {
    sent: Option<Instant>,
    acknowledged: Option<Instant>,
    received: Option<Instant>,
}

pub(crate) async fn run(report: &mut Report, options: Options) -> anyhow::Result<()> {
    let dir = directory()?;
    let server = Server::start(dir.path())?;
    let client = server.client().await?;
    client.batch_execute("CREATE STREAM ticks (number bigint, note text)").await?;
    let count = WARM_UP + EVENTS_PER_SECOND * options.time.as_secs() as usize;
    let times = Rc::new(RefCell::new(vec![Times::default(); count]));
    let mut producers = Vec::new();
    for _ in 0..PRODUCERS {
        let client = server.client().await?;
        let statement = client.prepare("INSERT INTO ticks VALUES ($1, $2)").await?;
        producers.push(Rc::new((client, statement)));
    }
    let producing = async {
        let tasks = LocalSet::new();
        tasks.run_until(produce(&producers, &times, count)).await?;
        tasks.await;
        anyhow::Ok(())
    };
    let (received, produced) = tokio::join!(receive(&client, &times, count), producing);
    produced?;
    received?;
    let times = &times.borrow()[WARM_UP..];
    // A row may overtake its acknowledgement.
    let between = |from: Option<Instant>, to: Option<Instant>| Some(to?.saturating_duration_since(from?));
    let mut after: Vec<_> = times.iter().filter_map(|time| between(time.acknowledged, time.received)).collect();
    let mut whole: Vec<_> = times.iter().filter_map(|time| between(time.sent, time.received)).collect();
    anyhow::ensure!(after.len() == times.len(), "{} of {} events arrived", after.len(), times.len());
    let measure = "acknowledgement to subscriber at 1,000 events/s";
    report.plain(format!("{measure}, p50"), quantile(&mut after, 0.5), Unit::Millis);
    report.aimed(format!("{measure}, p99"), quantile(&mut after, 0.99), Unit::Millis, Aim::Under(5.0));
    report.plain("INSERT to subscriber, p50", quantile(&mut whole, 0.5), Unit::Millis);
    report.plain("INSERT to subscriber, p99", quantile(&mut whole, 0.99), Unit::Millis);
    Ok(())
}

/// Sends an event each millisecond, whether or not those before are acknowledged.
async fn produce(
    producers: &[Rc<(Client, Statement)>],
    times: &Rc<RefCell<Vec<Times>>>,
    count: usize,
) -> anyhow::Result<()> {
    let mut ticks = interval(Duration::from_secs(1) / EVENTS_PER_SECOND as u32);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Burst);
    for number in 0..count {
        ticks.tick().await;
        let producer = Rc::clone(producers.get(number % PRODUCERS).context("no producer")?);
        let times = Rc::clone(times);
        times.borrow_mut()[number].sent = Some(Instant::now());
        tokio::task::spawn_local(async move {
            let (client, statement) = &*producer;
            // An event that fails is missed at the end.
            if client.execute(statement, &[&(number as i64), &"tick"]).await.is_ok() {
                times.borrow_mut()[number].acknowledged = Some(Instant::now());
            }
        });
    }
    Ok(())
}

/// Receives events through a push query until all that count are there; it may begin after the first ones.
async fn receive(client: &Client, times: &Rc<RefCell<Vec<Times>>>, count: usize) -> anyhow::Result<()> {
    let no_params: [i32; 0] = [];
    let rows = client.query_raw("SELECT number, note FROM ticks EMIT CHANGES", no_params).await?;
    let mut rows = pin!(rows);
    let mut missing = count - WARM_UP;
    while missing > 0 {
        let row = timeout(RECEIVE_TIME_MAX, rows.next()).await.context("events are missing")?;
        let row = row.context("the subscription ended")??;
        let number = usize::try_from(row.try_get::<_, i64>(0)?)?;
        missing -= usize::from(number >= WARM_UP);
        if let Some(time) = times.borrow_mut().get_mut(number) {
            time.received = Some(Instant::now());
        }
    }
    Ok(())
}
