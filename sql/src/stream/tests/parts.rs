//! State in parts: what is in memory, what is written, and what is read again.

use super::bounded::log_of;
use super::log::select;
use super::{Files, Random};
use crate::plan::{ContinuousPlan, plan_continuous};
use crate::stream::{InputBatch, Pipeline, StateStore, StepInput};
use arrow::array::RecordBatch;
use millstream_catalog::QueryOptions;
use millstream_catalog::model::{ByteSize, Offset, PartitionId, Timestamp};
use std::sync::Arc;

fn pipeline(plan: &ContinuousPlan, files: &Arc<Files>) -> Pipeline {
    let mut pipeline = Pipeline::plan(plan).unwrap();
    pipeline.set_store(Arc::<Files>::clone(files) as Arc<dyn StateStore>);
    pipeline
}

#[test]
fn parts_that_did_not_change_are_neither_read_nor_written_again() {
    const EVENTS: usize = 400;
    const ALL: u64 = EVENTS as u64;
    let log = log_of(&mut Random::new(2), ALL);
    let sql = "SELECT n, count(*) AS c, max(i) AS m FROM e GROUP BY n EMIT CHANGES";
    let plan = plan_continuous(&log.context(), &select(sql), &QueryOptions::default()).unwrap();
    let files = Arc::new(Files::default());
    let mut first = pipeline(&plan, &files);
    let step = |pipeline: &mut Pipeline, start: usize, count: usize| {
        let batch = log.stored[0].slice(start, count).project(pipeline.projection(0)).unwrap();
        let (source, partition, offset_start) = (0, PartitionId::new(0), Offset::new(start as u64));
        let batches = vec![InputBatch { source, partition, offset_start, offsets: None, batch }];
        pipeline.step(&StepInput { batches, idle: &[], now: Timestamp::from_micros(7) }).unwrap();
    };
    step(&mut first, 0, EVENTS - 1);
    assert_eq!((first.spilled_bytes(), files.written()), (ByteSize::ZERO, 0));
    // Here parts are divided further as long as they have more than a few rows.
    (0..4).for_each(|_| first.keep_within(ByteSize::ZERO).unwrap());
    let bytes = first.state_bytes();
    assert!(bytes > ByteSize::ZERO && first.spilled_bytes() == bytes);
    let written = files.written();
    // What is in files as it is, is not written again.
    let saved = first.save().unwrap();
    let parts = saved.files.len() as u64;
    assert!(parts >= 4 && files.written() == written);
    let mut second = pipeline(&plan, &files);
    second.restore(&saved.bytes).unwrap();
    assert_eq!((second.spilled_bytes(), second.state_bytes()), (bytes, bytes));
    // One event is of one part, which takes the place of the one before.
    second.keep_within(ByteSize::ZERO).unwrap();
    step(&mut second, EVENTS - 1, 1);
    assert!(second.spilled_bytes() < second.state_bytes());
    let again = second.save().unwrap();
    assert_eq!(files.written(), written + 1);
    let same = again.files.iter().filter(|file| saved.files.contains(file)).count();
    assert_eq!((same as u64, again.files.len() as u64), (parts - 1, parts));
    assert!(second.operators_shown()[0].to_string().contains("on disk"), "{:?}", second.operators_shown());
    drop((first, second));
    assert_eq!(files.count(), 0);
}

#[test]
fn a_damaged_part_is_an_error() {
    let log = log_of(&mut Random::new(2), 50);
    let sql = "SELECT n, count(*) AS c FROM e GROUP BY n EMIT CHANGES";
    let plan = plan_continuous(&log.context(), &select(sql), &QueryOptions::default()).unwrap();
    let files = Arc::new(Files::default());
    let mut first = pipeline(&plan, &files);
    let batch = log.stored[0].project(first.projection(0)).unwrap();
    let (source, partition, offset_start) = (0, PartitionId::new(0), Offset::ZERO);
    let batches = vec![InputBatch { source, partition, offset_start, offsets: None, batch }];
    let input = StepInput { batches, idle: &[], now: Timestamp::from_micros(7) };
    first.step(&input).unwrap();
    first.keep_within(ByteSize::ZERO).unwrap();
    files.spoil();
    assert_eq!(first.step(&input).unwrap_err().sqlstate.code(), "XX001");
}

/// What each step gives, whole and in parts: the same rows and late events, and where rows only come, in the same order.
#[test]
fn a_step_gives_in_parts_what_it_gives_whole() {
    // Tables are looked up as of each event, also within a step. Among the matches of one event there is no order.
    const QUERIES: &[(&str, bool)] = &[
        ("SELECT s.id, s.k, u.name FROM s LEFT JOIN u ON s.k = u.k", true),
        ("SELECT s.id, s.k, t.v, t.x FROM s JOIN t ON s.id = t.id", true),
        ("SELECT s.id, r.id AS rid FROM s JOIN r WITHIN 10 SECONDS GRACE PERIOD 1 DAY ON s.k = r.k", false),
        ("SELECT s.id, r.id AS rid FROM s LEFT JOIN r WITHIN 4 SECONDS GRACE PERIOD 2 SECONDS ON s.k = r.k", false),
        ("SELECT s.id, r.id AS rid FROM s JOIN r ON s.k = r.k AND s.v = r.w", false),
        ("SELECT id, k, v FROM s EMIT FINAL", false),
        (
            "SELECT r.y, latest_by_offset(s.v) AS l, earliest_by_offset(s.v) AS e, array_agg(s.id) AS a
             FROM s JOIN r WITHIN 10 SECONDS GRACE PERIOD 1 DAY ON s.k = r.k GROUP BY r.y",
            false,
        ),
        (
            "SELECT k, window_start, count(*) AS c FROM HOP(s, rowtime, INTERVAL '2 seconds', INTERVAL '8 seconds')
             GROUP BY k, window_start",
            false,
        ),
        (
            "SELECT k, window_start, array_agg(v) AS a FROM HOP(s, rowtime, INTERVAL '2 seconds', INTERVAL '8 seconds')
             GROUP BY k, window_start",
            false,
        ),
        ("SELECT k, windowstart, count(*) AS c FROM s WINDOW SESSION (2 SECONDS) GROUP BY k, windowstart", false),
    ];
    let mut late_at_all = 0;
    for (number, (sql, is_in_order)) in QUERIES.iter().enumerate() {
        for seed in 1..=6 {
            let mut random = Random::new(seed * 100 + number as u64);
            let log = super::several::log(&mut random, 300);
            let sql = if sql.ends_with("FINAL") { (*sql).to_owned() } else { format!("{sql} EMIT CHANGES") };
            let plan = plan_continuous(&log.context(), &select(&sql), &QueryOptions::default()).unwrap();
            let files = Arc::new(Files::default());
            let (mut whole, mut parted) = (Pipeline::plan(&plan).unwrap(), pipeline(&plan, &files));
            let (sources, mut next, mut start) = (log.sources(&plan), vec![0; log.relations.len()], 0);
            while start < log.order.len() {
                let count = (1 + random.below(40) as usize).min(log.order.len() - start);
                parted.keep_within(ByteSize::ZERO).unwrap();
                let batches = log.batches(start..start + count, &sources, &mut next, &whole);
                let input = StepInput { batches, idle: &[], now: Timestamp::from_micros(7) };
                let (expected, found) = (whole.step(&input).unwrap(), parted.step(&input).unwrap());
                assert_eq!(found.late_rows, expected.late_rows, "{sql}, seed {seed}, at {start}");
                late_at_all += found.late_rows.value();
                let rows = |batch: Option<&RecordBatch>| {
                    let mut rows = batch.map_or_else(Vec::new, super::lines);
                    if !is_in_order {
                        rows.sort();
                    }
                    rows
                };
                let times = |batch: Option<&RecordBatch>| {
                    let rows = batch.map_or_else(Vec::new, super::lines);
                    rows.iter().map(|row| row.rsplit(' ').next().map(str::to_owned)).collect::<Vec<_>>()
                };
                if sql.ends_with("FINAL") {
                    assert_eq!(
                        times(found.batch.as_ref()),
                        times(expected.batch.as_ref()),
                        "{sql}, seed {seed}, at {start}"
                    );
                }
                let (expected, found) = (rows(expected.batch.as_ref()), rows(found.batch.as_ref()));
                assert_eq!(found, expected, "{sql}, seed {seed}, at {start}");
                start += count;
            }
            assert!(files.written() > 0, "{sql}");
        }
    }
    assert!(late_at_all > 100, "{late_at_all}");
}
