//! Whether rows that a write was computed from changed since: a function of the log alone.
//!
//! Owns the check of guarded writes against what is stored and what earlier writes of the same entry bring. Leaves out how
//! keys compare (storage) and what is done about a refusal (engine: computes the statement anew). The state machine calls
//! it for each guarded write. It keeps nothing, so there is nothing to recover.

use super::codec::DecodeError;
use super::entry::{AppendWrite, Writes};
use super::error::Refused;
use super::machine::Runs;
use super::producers::{Novelty, Verdict};
use super::stages::Stages;
use crate::storage::{KeySet, ShardStore, StorageError};
use millstream_catalog::model::{PartitionId, TopicId};

/// What a check cannot go on from.
#[derive(Debug)]
pub(super) enum GuardError {
    Entry(DecodeError),
    Storage(StorageError),
}

impl From<DecodeError> for GuardError {
    fn from(error: DecodeError) -> Self {
        Self::Entry(error)
    }
}

impl From<StorageError> for GuardError {
    fn from(error: StorageError) -> Self {
        Self::Storage(error)
    }
}

/// An entry's writes, their rows, and the verdicts on those before the one at hand.
pub(super) type Entry<'a> = (&'a Writes, &'a Runs, &'a [Verdict]);

/// [`Refused::Changed`] when a key of a guarded part was written since its position.
pub(super) fn check(
    store: &ShardStore,
    entry: Entry<'_>,
    append: &AppendWrite,
) -> Result<Result<(), Refused>, GuardError> {
    let (writes, _, verdicts) = entry;
    let mut nth = vec![0; writes.batches.len()];
    for (part, guard) in append.parts.iter().zip(&append.guards) {
        let (Some(batch), Some(nth)) = (writes.batches.get(part.batch), nth.get_mut(part.batch)) else { continue };
        let of_write = *nth;
        *nth += 1;
        let Some(guard) = guard.as_ref().filter(|_| part.rows.value() > 0) else { continue };
        let Some(topic) = store.topic(batch.topic) else { return Ok(Err(Refused::NoTopic(batch.topic))) };
        let rows = batch.data.batch(&topic.schema)?;
        let (_, runs, _) = entry;
        let own = runs.of_batch(part.batch).filter(|run| run.write == verdicts.len()).nth(of_write);
        let Some(own) = own.filter(|own| own.start.plus(own.rows).as_usize() <= rows.num_rows()) else {
            return Err(DecodeError::Damaged("its guarded parts have no rows".to_owned()).into());
        };
        let keys = KeySet::new(&rows.slice(own.start.as_usize(), own.rows.as_usize()), &guard.key)?;
        let is_touched = is_touched_before(store, entry, (batch.topic, batch.partition), &keys)?
            || store.is_touched(batch.topic, batch.partition, guard.position, &keys)?;
        if is_touched {
            return Ok(Err(Refused::Changed(batch.topic)));
        }
    }
    Ok(Ok(()))
}

/// [`Refused::Changed`] when a row of the write has a key that a prepared transaction holds, or comes from a producer it
/// writes as: what it was computed from is not known before that transaction ends.
pub(super) fn check_held(
    store: &ShardStore,
    stages: &Stages,
    (writes, runs, verdicts): Entry<'_>,
    append: &AppendWrite,
) -> Result<Result<(), Refused>, GuardError> {
    if let Some(claim) = append.claims.iter().find(|claim| stages.holds_producer(claim.topic, &claim.producer)) {
        return Ok(Err(Refused::Changed(claim.topic)));
    }
    let own = verdicts.len();
    for (number, batch) in writes.batches.iter().enumerate() {
        let Some(topic) = store.topic(batch.topic) else { continue };
        let mut runs = runs.of_batch(number).filter(|run| run.write == own).peekable();
        if runs.peek().is_none() {
            continue;
        }
        let rows = batch.data.batch(&topic.schema)?;
        for run in runs.filter(|run| run.start.plus(run.rows).as_usize() <= rows.num_rows()) {
            let rows = rows.slice(run.start.as_usize(), run.rows.as_usize());
            if stages.holds_key((batch.topic, batch.partition), &rows)? {
                return Ok(Err(Refused::Changed(batch.topic)));
            }
        }
    }
    let staged = append.staged.and_then(|stage| stages.rows(stage));
    for rows in staged.into_iter().flatten() {
        for batch in &rows.batches {
            if stages.holds_key((rows.topic, rows.partition), batch)? {
                return Ok(Err(Refused::Changed(rows.topic)));
            }
        }
    }
    Ok(Ok(()))
}

/// Whether an accepted write before the one at hand brings one of `keys` to the partition.
fn is_touched_before(
    store: &ShardStore,
    (writes, runs, verdicts): Entry<'_>,
    place: (TopicId, PartitionId),
    keys: &KeySet,
) -> Result<bool, GuardError> {
    for (number, batch) in writes.batches.iter().enumerate() {
        if (batch.topic, batch.partition) != place {
            continue;
        }
        let Some(topic) = store.topic(batch.topic) else { continue };
        let accepted = |write: usize| matches!(verdicts.get(write), Some(Ok(Novelty::New)));
        if !runs.of_batch(number).any(|run| accepted(run.write)) {
            continue;
        }
        let rows = batch.data.batch(&topic.schema)?;
        for run in runs.of_batch(number).filter(|run| accepted(run.write)) {
            if keys.meets(&rows.slice(run.start.as_usize(), run.rows.as_usize()))? {
                return Ok(true);
            }
        }
    }
    Ok(false)
}
