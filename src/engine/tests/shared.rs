//! Subscribers of one query: whoever comes, goes, lags or is polled when, each gets every event after its beginning once.

use super::{open, run, session};
use crate::engine::{Engine, Form, Outcome, RowBatch, Rows, Session, Via};
use crate::storage::FaultDisk;
use arrow::array::{AsArray as _, RecordBatch};
use arrow::datatypes::Int64Type;
use futures::{FutureExt as _, StreamExt as _};
use millstream_catalog::model::SqlState;
use millstream_sql::SqlError;
use proptest::prelude::*;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::timeout;

const DEADLINE: Duration = Duration::from_secs(30);
const PARTITIONS: i64 = 3;

/// A subscription, and what it gave.
struct Subscriber {
    _session: Session,
    rows: Rows,
    given: Vec<i64>,
    /// What was written before it began.
    begun: usize,
    /// Why it ended.
    failure: Option<SqlError>,
}

impl Subscriber {
    async fn begin(engine: &Arc<Engine>, sql: &str, begun: usize) -> Self {
        let mut session = session(engine);
        let parsed = session.parse(sql).await.unwrap().pop().unwrap();
        let prepared = session.prepare(parsed, &[]).await.unwrap();
        let outcome = session.execute(&prepared, vec![], Via::Extended).await.unwrap();
        let Outcome::Rows(rows) = outcome else { unreachable!() };
        Self { _session: session, rows, given: Vec::new(), begun, failure: None }
    }

    /// Takes a batch, if one is ready.
    fn poll(&mut self) -> Option<RowBatch> {
        if self.failure.is_some() {
            return None;
        }
        let batch = self.rows.stream.next().now_or_never()??;
        let batch = batch.map_err(|error| self.failure = Some(error)).ok()?;
        self.given.extend(batch.column(0).as_primitive::<Int64Type>().values());
        Some(batch)
    }

    async fn wait(&mut self) -> Option<RowBatch> {
        let batch = timeout(DEADLINE, self.rows.stream.next()).await.expect("it hangs")?;
        let batch = batch.map_err(|error| self.failure = Some(error)).ok()?;
        self.given.extend(batch.column(0).as_primitive::<Int64Type>().values());
        Some(batch)
    }

    /// Waits for the rest of `written`, and compares. What was removed at `removed` it may have missed, and says so.
    async fn finish(mut self, written: &[i64], removed: usize) {
        let expected: Vec<i64> = written[self.begun..].iter().copied().filter(|v| v % 7 != 0).collect();
        while self.given.len() < expected.len() && self.failure.is_none() {
            self.wait().await;
        }
        if let Some(failure) = self.failure {
            assert_eq!(failure.sqlstate, SqlState::OffsetBelowLogStart, "{failure}");
            assert!(self.begun < removed, "nothing that it was to have was removed");
            for partition in 0..PARTITIONS {
                let of = |all: &[i64]| all.iter().copied().filter(|v| v % PARTITIONS == partition).collect::<Vec<_>>();
                assert!(of(&expected).starts_with(&of(&self.given)), "it went on after what it missed");
            }
            return;
        }
        for partition in 0..PARTITIONS {
            let of = |all: &[i64]| all.iter().copied().filter(|v| v % PARTITIONS == partition).collect::<Vec<_>>();
            assert_eq!(of(&self.given), of(&expected));
        }
        assert_eq!(self.given.len(), expected.len());
    }
}

const QUERY: &str = "SELECT v FROM s WHERE v % 7 <> 0 EMIT CHANGES";

async fn founded() -> Arc<Engine> {
    let engine = open(&FaultDisk::new(), Arc::default()).await.unwrap();
    let mut session = session(&engine);
    run(&mut session, &format!("CREATE STREAM s (v bigint, k bigint KEY) WITH (partitions = {PARTITIONS})"))
        .await
        .unwrap();
    engine
}

async fn insert(writer: &mut Session, written: &mut Vec<i64>, count: usize) {
    let from = written.len() as i64;
    written.extend(from..from + count as i64);
    let sql = format!(
        "INSERT INTO s SELECT v, v % {PARTITIONS} FROM generate_series({from}, {}) AS g(v)",
        from + count as i64 - 1
    );
    run(writer, &sql).await.unwrap();
}

#[derive(Debug, Clone)]
enum Step {
    Insert(usize),
    Begin,
    Leave(usize),
    /// A subscriber takes so many batches, if they are ready.
    Take(usize, usize),
    All,
    Truncate,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (1..6_usize).prop_map(Step::Insert),
        1 => (900..2_500_usize).prop_map(Step::Insert),
        3 => Just(Step::Begin),
        1 => any::<usize>().prop_map(Step::Leave),
        6 => (any::<usize>(), 1..4_usize).prop_map(|(of, count)| Step::Take(of, count)),
        2 => Just(Step::All),
        1 => Just(Step::Truncate),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, max_shrink_iters: 16, ..ProptestConfig::default() })]

    #[test]
    fn each_subscriber_gets_what_came_after_it_began(steps in prop::collection::vec(step(), 1..60)) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let engine = founded().await;
            let (mut writer, mut written, mut subscribers) = (session(&engine), Vec::new(), Vec::<Subscriber>::new());
            let mut removed = 0;
            for step in steps {
                match step {
                    Step::Insert(count) => insert(&mut writer, &mut written, count).await,
                    Step::Begin => subscribers.push(Subscriber::begin(&engine, QUERY, written.len()).await),
                    Step::Leave(which) if !subscribers.is_empty() => {
                        subscribers.swap_remove(which % subscribers.len());
                    }
                    Step::Take(which, count) if !subscribers.is_empty() => {
                        let which = which % subscribers.len();
                        (0..count).for_each(|_| drop(subscribers[which].poll()));
                    }
                    Step::All => subscribers.iter_mut().for_each(|subscriber| while subscriber.poll().is_some() {}),
                    Step::Truncate => {
                        run(&mut writer, "TRUNCATE s").await.unwrap();
                        removed = written.len();
                    }
                    Step::Leave(_) | Step::Take(..) => {}
                }
            }
            for subscriber in subscribers {
                subscriber.finish(&written, removed).await;
            }
            drop(writer);
            engine.shutdown().await;
        });
    }
}

/// Encodes rows, or takes what was encoded; whether it had to.
fn is_encoded_here(batch: &RowBatch) -> bool {
    let mut was_asked = false;
    let encode = || {
        was_asked = true;
        Ok::<_, SqlError>(vec![0])
    };
    match batch.forms() {
        Some(forms) => drop(forms.get(&Form::DataRows(Vec::new()), encode).unwrap()),
        None => was_asked = true,
    }
    was_asked
}

#[tokio::test]
async fn rows_are_computed_and_encoded_once_for_all_who_keep_up() {
    let engine = founded().await;
    let (mut writer, mut written) = (session(&engine), Vec::new());
    insert(&mut writer, &mut written, 5).await;
    let mut subscribers = Vec::new();
    for number in 0..10 {
        // Another text of the same query; some come when the others are behind.
        let sql = if number % 2 == 0 { QUERY } else { "select s.v\nfrom s where (v % 7) <> 0 EMIT CHANGES LIMIT 1000" };
        subscribers.push(Subscriber::begin(&engine, sql, written.len()).await);
        if number == 4 {
            for subscriber in &mut subscribers {
                assert!(subscriber.poll().is_none(), "nothing came");
            }
            insert(&mut writer, &mut written, 3).await;
        }
    }
    for round in 0..20 {
        insert(&mut writer, &mut written, 3).await;
        let mut encoded = 0;
        for subscriber in &mut subscribers {
            while let Some(batch) = subscriber.poll() {
                encoded += usize::from(is_encoded_here(&batch));
            }
        }
        // Those who were overtaken before they took anything read for themselves at first.
        assert!(round == 0 || encoded == 1, "{encoded} times in round {round}");
    }
    let batches: usize = subscribers.iter().map(|subscriber| subscriber.given.len()).sum();
    assert!(batches > 400);
    for subscriber in subscribers {
        subscriber.finish(&written, 0).await;
    }
    engine.shutdown().await;
}

#[tokio::test]
async fn one_that_is_not_read_neither_holds_the_others_nor_keeps_what_they_made() {
    let engine = founded().await;
    let (mut writer, mut written) = (session(&engine), Vec::new());
    let mut still = Subscriber::begin(&engine, QUERY, 0).await;
    let mut live = Subscriber::begin(&engine, QUERY, 0).await;
    assert!(still.poll().is_none() && live.poll().is_none());
    let mut first: Option<std::sync::Weak<dyn arrow::array::Array>> = None;
    for _ in 0..400 {
        insert(&mut writer, &mut written, 1_000).await;
        let batch: RecordBatch = (*live.wait().await.expect("rows")).clone();
        first.get_or_insert_with(|| Arc::downgrade(batch.column(0)));
    }
    assert!(first.is_some_and(|first| first.upgrade().is_none()), "the first rows are still kept");
    let late = Subscriber::begin(&engine, QUERY, written.len()).await;
    insert(&mut writer, &mut written, 10).await;
    for subscriber in [late, live, still] {
        subscriber.finish(&written, 0).await;
    }
    engine.shutdown().await;
}

#[tokio::test]
async fn who_comes_later_takes_nobody_past_what_was_removed() {
    let engine = founded().await;
    let (mut writer, mut written) = (session(&engine), Vec::new());
    let mut first = Subscriber::begin(&engine, QUERY, 0).await;
    assert!(first.poll().is_none());
    insert(&mut writer, &mut written, 5).await;
    run(&mut writer, "TRUNCATE s").await.unwrap();
    let mut second = Subscriber::begin(&engine, QUERY, written.len()).await;
    assert!(second.poll().is_none());
    insert(&mut writer, &mut written, 5).await;
    assert!(first.wait().await.is_none());
    assert_eq!(first.failure.take().map(|error| error.sqlstate), Some(SqlState::OffsetBelowLogStart));
    second.finish(&written, 5).await;
    engine.shutdown().await;
}

#[tokio::test]
async fn subscribers_hear_that_the_query_threads_have_stopped() {
    let engine = founded().await;
    let (mut writer, mut written) = (session(&engine), Vec::new());
    let mut subscribers = [Subscriber::begin(&engine, QUERY, 0).await, Subscriber::begin(&engine, QUERY, 0).await];
    assert!(subscribers.iter_mut().all(|subscriber| subscriber.poll().is_none()));
    insert(&mut writer, &mut written, 5_000).await;
    engine.compute.stop();
    for subscriber in &mut subscribers {
        assert!(subscriber.wait().await.is_none());
        let failure = subscriber.failure.take().map(|error| error.sqlstate);
        assert_eq!(failure, Some(SqlState::AdminShutdown));
    }
    engine.shutdown().await;
}
