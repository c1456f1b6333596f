//! Queries that leave out events they cannot take: the result is that of the bounded run over the log without them.

use super::Random;
use super::bounded::{log_of, relation};
use super::log::{Log, bounded, rows, select};
use crate::error::SqlError;
use crate::plan::plan_continuous;
use crate::stream::{InputBatch, Pipeline, SkippedEvent, StepInput, StepOutput};
use arrow::array::{AsArray, BooleanArray, RecordBatch};
use arrow::datatypes::Int32Type;
use millstream_catalog::model::{Offset, PartitionId, Timestamp};
use millstream_catalog::{QueryOptions, SqlType};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// Steps over one log, each tried until it is taken; states are made again from the last saved one.
struct Skipper<'a> {
    make: &'a dyn Fn() -> Pipeline,
    pipeline: Pipeline,
    batch: &'a RecordBatch,
    skipped: Vec<SkippedEvent>,
    /// How often the pipeline was made again.
    made: usize,
    table: BTreeMap<Vec<String>, Vec<String>>,
    stream: Vec<Vec<String>>,
}

impl<'a> Skipper<'a> {
    fn new(make: &'a dyn Fn() -> Pipeline, batch: &'a RecordBatch) -> Self {
        let (table, stream) = (BTreeMap::new(), Vec::new());
        Self { make, pipeline: make(), batch, skipped: Vec::new(), made: 0, table, stream }
    }

    fn step(&mut self, start: usize, count: usize) -> Result<(), SqlError> {
        let input = InputBatch {
            source: 0,
            partition: PartitionId::new(0),
            offset_start: Offset::new(start as u64),
            offsets: None,
            batch: self.batch.slice(start, count).project(self.pipeline.projection(0)).unwrap(),
        };
        let input = StepInput { batches: vec![input], idle: &[], now: Timestamp::from_micros(7) };
        let saved = self.pipeline.save()?.bytes;
        let again = || {
            let mut pipeline = (self.make)();
            pipeline.restore(&saved)?;
            Ok(pipeline)
        };
        let mut made = 0;
        let mut counted = || {
            made += 1;
            again()
        };
        let (output, found) = self.pipeline.step_skipping(&input, Vec::new(), &mut counted)?;
        // A replay knows them, and leaves out just these.
        let mut repeated = again()?;
        let mut never = || panic!("a replay is not tried again");
        let (same, same_found) = repeated.step_skipping(&input, found.clone(), &mut never)?;
        assert_eq!((&same.batch, &same_found), (&output.batch, &found));
        assert_eq!(repeated.save()?, self.pipeline.save()?);
        self.made += made;
        self.skipped.extend(found);
        self.keep(&output);
        Ok(())
    }

    fn keep(&mut self, output: &StepOutput) {
        let Some(stored) = &output.batch else { return };
        let columns = &self.pipeline.output().columns;
        let types: Vec<SqlType> = columns.iter().map(|column| column.sql_type.clone()).collect();
        let cells = rows(&stored.project(&(0..types.len()).collect::<Vec<_>>()).unwrap(), &types);
        let tombstones = stored.column_by_name("rowtombstone").map(|column| column.as_boolean().clone());
        for (row, cells) in cells.into_iter().enumerate() {
            let keys = columns.iter().zip(&cells).filter(|(column, _)| column.is_key);
            let key: Vec<String> = keys.map(|(_, cell)| cell.clone()).collect();
            let shown = cells[..self.pipeline.output().selected].to_vec();
            match tombstones.as_ref().map(|tombstones| tombstones.value(row)) {
                None => self.stream.push(shown),
                Some(true) => assert!(self.table.remove(&key).is_some(), "nothing to remove"),
                Some(false) => drop(self.table.insert(key, shown)),
            }
        }
    }

    fn offsets(&self) -> BTreeSet<u64> {
        let offsets: BTreeSet<u64> = self.skipped.iter().map(|skipped| skipped.event.offset.value()).collect();
        assert_eq!(offsets.len(), self.skipped.len(), "each event is left out once");
        offsets
    }
}

/// What is known of the events at fault.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Fault {
    /// They are those with `i = 3`, and show before any state changes.
    Stage,
    /// They are the same, and show behind state.
    Behind,
    /// It depends on what came before.
    Open,
}

/// The queries, and their events at fault.
const QUERIES: &[(&str, Fault)] = &[
    ("SELECT k, 10 / (i - 3) AS q FROM e EMIT CHANGES", Fault::Stage),
    ("SELECT k, n FROM e WHERE 10 / (i - 3) > 2 EMIT CHANGES", Fault::Stage),
    ("SELECT k, sum(10 / (i - 3)) AS q, count(*) AS c FROM e GROUP BY k EMIT CHANGES", Fault::Stage),
    ("SELECT 10 / (i - 3) AS g, count(*) AS c FROM e GROUP BY 10 / (i - 3) EMIT CHANGES", Fault::Stage),
    ("SELECT k, u FROM (SELECT k, 10 / (i - 3) AS q FROM e) s CROSS JOIN unnest(ARRAY[1, q]) AS t(u) EMIT CHANGES", Fault::Stage),
    ("SELECT k, count(q) AS c FROM (SELECT k, 10 / (i - 3) AS q FROM e UNION ALL SELECT k, i FROM e) s GROUP BY k
      EMIT CHANGES", Fault::Stage),
    ("SELECT k, 10 / (i - 3) AS q, rank() OVER (PARTITION BY k ORDER BY n) AS r FROM e EMIT CHANGES", Fault::Behind),
    ("SELECT a.k, a.n FROM e a JOIN e b ON a.n = b.n AND a.k = b.k WHERE 10 / (a.i - 3) > 0 EMIT CHANGES", Fault::Stage),
    ("SELECT k, sum(CAST(i + 32763 AS smallint)) AS c FROM e GROUP BY k EMIT CHANGES", Fault::Open),
    // Behind state: what fails depends on what came before.
    ("SELECT k, 100 / (count(*) % 7 - 6) AS q FROM e GROUP BY k EMIT CHANGES", Fault::Open),
    ("SELECT k, CAST(sum(n) AS integer) AS q FROM (SELECT k, n * 4000 AS n FROM e) s GROUP BY k EMIT CHANGES", Fault::Open),
    ("SELECT a.k, b.n, 10 / (a.i + b.i - 9) AS q FROM e a JOIN e b ON a.n / 4000 = b.n / 4000 EMIT CHANGES", Fault::Open),
    ("SELECT k, max(c) AS m, sum(10 / (c - 5)) AS q FROM (SELECT k, i, count(*) AS c FROM e GROUP BY k, i) s GROUP BY k
      EMIT CHANGES", Fault::Open),
];

fn without(batch: &RecordBatch, gone: &BTreeSet<u64>) -> Arc<Log> {
    let mask: BooleanArray = (0..batch.num_rows() as u64).map(|row| Some(!gone.contains(&row))).collect();
    Arc::new(Log::of_one(relation(), arrow::compute::filter_record_batch(batch, &mask).unwrap()))
}

#[tokio::test]
async fn what_cannot_be_taken_is_as_if_it_had_not_come() {
    let log = log_of(&mut Random::new(3), 300);
    let batch = log.stored[0].clone();
    let i = batch.column(3).as_primitive::<Int32Type>();
    let threes: BTreeSet<u64> = (0..300).filter(|row| i.value(*row as usize) == 3).collect();
    assert!(threes.len() > 10);
    let all = log.context();
    for (number, (sql, fault)) in QUERIES.iter().enumerate() {
        let plan = plan_continuous(&all, &select(sql), &QueryOptions::default()).unwrap();
        let make = || Pipeline::plan(&plan).unwrap();
        let mut skipper = Skipper::new(&make, &batch);
        let (mut start, mut random) = (0, Random::new(number as u64 + 1));
        while start < 300 {
            let count = (random.below(90) as usize).min(300 - start);
            skipper.step(start, count).unwrap_or_else(|error| panic!("{sql}: {error:?}"));
            start += count;
        }
        let gone = skipper.offsets();
        assert!(!gone.is_empty(), "{sql}: nothing failed");
        if *fault != Fault::Open {
            assert_eq!(gone, threes, "{sql}");
            assert_eq!(skipper.made == 0, *fault == Fault::Stage, "{sql}: made again {} times", skipper.made);
        }
        let mut found: Vec<Vec<String>> =
            std::mem::take(&mut skipper.stream).into_iter().chain(skipper.table.into_values()).collect();
        let mut expected = bounded(&without(&batch, &gone).context(), sql.trim_end_matches(" EMIT CHANGES").trim())
            .await
            .unwrap_or_else(|error| panic!("{sql}: {error:?}"));
        found.sort();
        expected.sort();
        let first = found.iter().zip(&expected).find(|(found, expected)| found != expected);
        assert_eq!((found.len(), first), (expected.len(), None), "{sql}");
    }
}

#[test]
fn an_event_alone_is_at_fault_only_when_it_fails_alone() {
    // The step as a whole is fine: an event in the middle would fail, but no form of the group in between is told.
    let log = log_of(&mut Random::new(3), 40);
    let batch = log.stored[0].clone();
    let sql = "SELECT 100 / (count(*) - 20) AS q FROM e EMIT CHANGES";
    let plan = plan_continuous(&log.context(), &select(sql), &QueryOptions::default()).unwrap();
    let make = || Pipeline::plan(&plan).unwrap();
    let mut skipper = Skipper::new(&make, &batch);
    skipper.step(0, 40).unwrap();
    assert_eq!((skipper.offsets().len(), skipper.made), (0, 0));
    // To its end only the twentieth does.
    let mut skipper = Skipper::new(&make, &batch);
    skipper.step(0, 20).unwrap();
    assert_eq!(skipper.offsets(), BTreeSet::from([19]));
    assert_eq!(skipper.table.into_values().collect::<Vec<_>>(), [["-100"]]);
}

#[test]
fn what_is_no_fault_of_an_event_stops_the_query() {
    // Some events divide by zero, and some make a text that is too long for any.
    let log = log_of(&mut Random::new(3), 60);
    let batch = log.stored[0].clone();
    let sql = "SELECT 10 / (i - 3) AS q, length(repeat('abcdefghij', CAST(n % 3 AS integer) * 500000000)) AS r FROM e EMIT CHANGES";
    let plan = plan_continuous(&log.context(), &select(sql), &QueryOptions::default()).unwrap();
    let make = || Pipeline::plan(&plan).unwrap();
    let error = Skipper::new(&make, &batch).step(0, 60).unwrap_err();
    assert_eq!(error.sqlstate.code(), "54000", "{error:?}");
}
