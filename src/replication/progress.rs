//! The progress of continuous queries: which step follows which, and what a restart replays.
//!
//! Owns the rules as pure functions over [`QueryProgress`]; equal entries give equal progress on every
//! replica. Leaves out rows (`machine` stores them) and operators (`sql`). Persisted with the shard's manifest.

use super::entry::StepWrite;
use super::error::Refused;
use super::types::{Checkpoint, PartitionPosition, QueryProgress, Step, StepRecord};
use millstream_catalog::model::limit::STEPS_SINCE_CHECKPOINT_MAX;
use millstream_catalog::model::{Offset, PartitionId, QueryId, RowCount, TopicId};
use std::collections::BTreeMap;

/// Progress of every query of a shard.
pub(crate) type Queries = BTreeMap<QueryId, QueryProgress>;

/// Begins `query` at `positions`. A query that exists keeps its progress, so that a create can be repeated.
pub(crate) fn create(queries: &mut Queries, query: QueryId, positions: &[PartitionPosition]) {
    queries.entry(query).or_insert_with(|| QueryProgress {
        positions: positions.iter().map(|(topic, partition, offset)| ((*topic, *partition), *offset)).collect(),
        ..QueryProgress::default()
    });
}

/// Whether `step` may be taken next.
pub(crate) fn check_step(queries: &Queries, step: &StepWrite) -> Result<(), Refused> {
    let progress = queries.get(&step.query).ok_or(Refused::NoQuery(step.query))?;
    if step.step != progress.step.next() {
        return Err(Refused::StaleStep { query: step.query, step: step.step, last: progress.step });
    }
    if progress.since_checkpoint.len() >= STEPS_SINCE_CHECKPOINT_MAX {
        let steps = progress.since_checkpoint.len();
        return Err(Refused::CheckpointOverdue { query: step.query, steps });
    }
    Ok(())
}

/// Records `step`, which [`check_step`] accepted and which wrote `output_rows`.
pub(crate) fn record_step(queries: &mut Queries, step: &StepWrite, output_rows: RowCount) {
    let Some(progress) = queries.get_mut(&step.query) else { return };
    progress.step = step.step;
    for (topic, partition, offset) in &step.positions {
        progress.positions.insert((*topic, *partition), *offset);
    }
    progress.input_rows = progress.input_rows.plus(step.input_rows);
    progress.output_rows = progress.output_rows.plus(output_rows);
    progress.late_rows = progress.late_rows.plus(step.late_rows);
    progress.skipped_rows = progress.skipped_rows.plus(step.skipped_rows);
    progress.since_checkpoint.push(StepRecord {
        step: step.step,
        positions: step.positions.clone(),
        idle: step.idle.clone(),
        now: step.now,
    });
}

/// Keeps `checkpoint` and drops the steps it covers.
pub(crate) fn record_checkpoint(queries: &mut Queries, checkpoint: &Checkpoint) -> Result<(), Refused> {
    let query = checkpoint.query;
    let progress = queries.get_mut(&query).ok_or(Refused::NoQuery(query))?;
    let is_newer = progress.checkpoint.as_ref().is_none_or(|last| checkpoint.step > last.step);
    if !is_newer || checkpoint.step > progress.step {
        return Err(Refused::StaleCheckpoint { query, step: checkpoint.step });
    }
    progress.since_checkpoint.retain(|record| record.step > checkpoint.step);
    progress.checkpoint = Some(checkpoint.clone());
    Ok(())
}

/// A query that would read events of `topic` again after a restart, to come back to its last step.
pub(crate) fn reader_again(queries: &Queries, topic: TopicId) -> Option<QueryId> {
    let reads = |progress: &QueryProgress| {
        progress.since_checkpoint.iter().flat_map(|record| &record.positions).any(|(read, ..)| *read == topic)
    };
    queries.iter().find(|(_, progress)| reads(progress)).map(|(query, _)| *query)
}

/// Forgets the checkpoint of a query that will not run again.
pub(crate) fn end(queries: &mut Queries, query: QueryId) {
    if let Some(progress) = queries.get_mut(&query) {
        progress.checkpoint = None;
        progress.since_checkpoint.clear();
    }
}

/// The first event of a partition that a query which reads its topic may need as it is: what follows its checkpoint. After
/// a restart it takes its steps from there on again, also one that was computed and was not committed when this is asked.
/// A partition that came later than the checkpoint was read from its beginning on.
pub(crate) fn hold(queries: &Queries, topic: TopicId, partition: PartitionId) -> Option<Offset> {
    let position = |progress: &QueryProgress| {
        let kept = progress.checkpoint.as_ref().map(|checkpoint| &checkpoint.positions);
        let at_checkpoint = kept.into_iter().flatten().map(|((read, _), _)| *read);
        let since = progress.since_checkpoint.iter().flat_map(|record| &record.positions).map(|(read, ..)| *read);
        let is_read = at_checkpoint.chain(since).any(|read| read == topic);
        is_read.then(|| kept.and_then(|kept| kept.get(&(topic, partition))).copied().unwrap_or(Offset::ZERO))
    };
    queries.values().filter_map(position).min()
}

impl Step {
    /// Bytes this step costs besides its rows, roughly.
    pub(crate) fn overhead_bytes(&self) -> usize {
        64 + 24 * (self.positions.len() + self.idle.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;
    use millstream_catalog::model::{StepNumber, Timestamp};

    fn step(number: u64, offset: u64) -> StepWrite {
        StepWrite {
            query: QueryId::new(1),
            step: StepNumber::new(number),
            positions: vec![(TopicId::new(1), PartitionId::new(0), Offset::new(offset))],
            idle: Vec::new(),
            now: Timestamp::from_micros(number as i64),
            input_rows: RowCount::new(10),
            late_rows: RowCount::new(1),
            skipped_rows: RowCount::new(2),
            outputs: Vec::new(),
        }
    }

    fn checkpoint(number: u64) -> Checkpoint {
        Checkpoint {
            query: QueryId::new(1),
            step: StepNumber::new(number),
            positions: BTreeMap::new(),
            fingerprint: "f".to_owned(),
            state: Bytes::from_static(b"state"),
            files: Vec::new(),
        }
    }

    #[test]
    fn a_step_follows_the_last_one_and_a_checkpoint_drops_what_it_covers() {
        let mut queries = Queries::new();
        assert_eq!(check_step(&queries, &step(1, 5)), Err(Refused::NoQuery(QueryId::new(1))));
        create(&mut queries, QueryId::new(1), &[(TopicId::new(1), PartitionId::new(0), Offset::new(2))]);
        for number in 1..=3 {
            let step = step(number, 5 * number);
            check_step(&queries, &step).expect("next step");
            record_step(&mut queries, &step, RowCount::new(2));
            let stale = Refused::StaleStep { query: step.query, step: step.step, last: step.step };
            assert_eq!(check_step(&queries, &step), Err(stale));
        }
        create(&mut queries, QueryId::new(1), &[]);
        record_checkpoint(&mut queries, &checkpoint(2)).expect("newer checkpoint");
        for stale in [2, 1, 4] {
            record_checkpoint(&mut queries, &checkpoint(stale)).expect_err("not newer, or not taken");
        }
        let progress = &queries[&QueryId::new(1)];
        assert_eq!(progress.step, StepNumber::new(3));
        assert_eq!(progress.positions[&(TopicId::new(1), PartitionId::new(0))], Offset::new(15));
        assert_eq!(progress.input_rows, RowCount::new(30));
        assert_eq!(progress.output_rows, RowCount::new(6));
        assert_eq!(progress.late_rows, RowCount::new(3));
        assert_eq!(progress.skipped_rows, RowCount::new(6));
        let kept: Vec<u64> = progress.since_checkpoint.iter().map(|record| record.step.value()).collect();
        assert_eq!(kept, [3]);
    }

    #[test]
    fn a_query_without_checkpoints_is_held_at_the_limit() {
        let mut queries = Queries::new();
        create(&mut queries, QueryId::new(1), &[]);
        for number in 1..=STEPS_SINCE_CHECKPOINT_MAX as u64 {
            let step = step(number, number);
            check_step(&queries, &step).expect("below the limit");
            record_step(&mut queries, &step, RowCount::ZERO);
        }
        let number = STEPS_SINCE_CHECKPOINT_MAX as u64;
        check_step(&queries, &step(number + 1, 0)).expect_err("at the limit");
        record_checkpoint(&mut queries, &checkpoint(number)).expect("newer checkpoint");
        check_step(&queries, &step(number + 1, 0)).expect("after a checkpoint");
    }
}
