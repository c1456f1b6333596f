//! State in parts: what is in memory, what is written, and what is read again.

use super::bounded::log_of;
use super::log::select;
use super::{Files, Random};
use crate::plan::{ContinuousPlan, plan_continuous};
use crate::stream::{InputBatch, Pipeline, StateStore, StepInput};
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
