//! Which writes of an entry are accepted.

use super::{Fatal, Machine};
use crate::replication::codec::DecodeError;
use crate::replication::entry::{AppendWrite, Part, StepWrite, Write, Writes};
use crate::replication::error::Refused;
use crate::replication::guard::{self, GuardError};
use crate::replication::producers::{Novelty, Verdict};
use crate::replication::types::{GroupCommit, GroupOffset, GroupTake, TakePartition};
use crate::replication::{progress, stages};
use millstream_catalog::model::limit::STAGED_PARTS_MAX;
use millstream_catalog::model::{EntryIndex, RowCount};

/// What becomes of each write of an entry, and what those that take partitions found committed.
type Decided = (Vec<Verdict>, Vec<Vec<GroupOffset>>);

impl Machine {
    /// What becomes of each write, and what those that take partitions found committed.
    pub(super) fn decide(&self, index: EntryIndex, writes: &Writes, runs: &Runs) -> Result<Decided, Fatal> {
        let mut taken = Vec::new();
        let mut queries = self.read.queries.write();
        let mut verdicts = Vec::with_capacity(writes.writes.len());
        for write in &writes.writes {
            let verdict = match write {
                Write::Append(append) => {
                    let verdict = self.check_append(append, (writes, runs, &verdicts));
                    let mut verdict = verdict.map_err(|error| error.at(index))?;
                    if verdict == Ok(Novelty::New) {
                        self.record(append);
                    } else if verdict == Ok(Novelty::Repeated) {
                        // The rows are there, with these offsets or without.
                        match self.check_commits(&append.commits) {
                            Ok(()) => self.read.groups.write().record(&append.commits, append.now),
                            Err(refused) => verdict = Err(refused),
                        }
                    }
                    verdict
                }
                Write::Prepare(_, append) => {
                    let verdict = self.check_append(append, (writes, runs, &verdicts));
                    let staged = |novelty| if novelty == Novelty::New { Novelty::Staged } else { novelty };
                    verdict.map_err(|error| error.at(index))?.map(staged)
                }
                Write::Stage(stage, parts) => match stage.filter(|stage| self.stages.rows(*stage).is_none()) {
                    Some(stage) => Err(Refused::NoStage(stage)),
                    None if self.stages.parts() >= STAGED_PARTS_MAX => Err(Refused::StagesFull),
                    None => self.check_parts(writes, parts).map(|()| Novelty::Staged),
                },
                Write::Commit(stage) if self.stages.prepared(*stage).is_none() => Err(Refused::NoStage(*stage)),
                Write::Commit(stage) => match self.stages.damage(*stage) {
                    Some(damage) => return Err(damage.clone().into()),
                    None => Ok(Novelty::Staged),
                },
                Write::Abort(_) | Write::GiveUp(_) | Write::Decide(_) | Write::Forget(_) => Ok(Novelty::Staged),
                Write::Step(step) => {
                    let verdict = progress::check_step(&queries, step);
                    let verdict = verdict.and_then(|()| self.check_parts(writes, &step.outputs));
                    if verdict.is_ok() {
                        progress::record_step(&mut queries, step, rows_of(step));
                    }
                    verdict.map(|()| Novelty::New)
                }
                Write::Checkpoint(checkpoint) => {
                    progress::record_checkpoint(&mut queries, checkpoint).map(|()| Novelty::New)
                }
                Write::Take(take) => self.take(take).map(|offsets| {
                    taken.push(offsets);
                    Novelty::New
                }),
            };
            verdicts.push(verdict);
        }
        Ok((verdicts, taken))
    }

    /// What else an append that brings new rows changes.
    fn record(&self, append: &AppendWrite) {
        self.read.producers.write().record(&append.claims, append.now);
        if !append.commits.is_empty() {
            self.read.groups.write().record(&append.commits, append.now);
        }
    }

    fn take(&self, take: &GroupTake) -> Result<Vec<GroupOffset>, Refused> {
        for part in &take.partitions {
            let topic = self.store.topic(part.topic).ok_or(Refused::NoTopic(part.topic))?;
            if part.partition.value() >= topic.partitions {
                return Err(Refused::NoPartition(part.topic, part.partition));
            }
        }
        let is_held = |part: &TakePartition| self.stages.holds_offset(&take.group, part.topic, part.partition);
        if take.partitions.iter().any(is_held) {
            return Err(Refused::GroupHeld(take.group.clone()));
        }
        self.read.groups.write().take(take)
    }

    /// Whether the groups' offsets may move on with an append.
    fn check_commits(&self, commits: &[GroupCommit]) -> Result<(), Refused> {
        if commits.is_empty() {
            return Ok(());
        }
        let is_held = |commit: &&GroupCommit| self.stages.holds_offset(&commit.group, commit.topic, commit.partition);
        if let Some(held) = commits.iter().find(is_held) {
            return Err(Refused::GroupHeld(held.group.clone()));
        }
        self.read.groups.read().check(commits, |topic, partition| self.store.offset_end(topic, partition))
    }

    fn check_append(&self, append: &AppendWrite, entry: guard::Entry<'_>) -> Result<Verdict, GuardError> {
        if let Err(refused) = self.check_parts(entry.0, &append.parts) {
            return Ok(Err(refused));
        }
        if let Some(stage) = append.staged {
            let Some(mut rows) = self.stages.rows(stage) else { return Ok(Err(Refused::NoStage(stage))) };
            if let Err(refused) = rows.try_for_each(|rows| stages::fits(rows, &self.store)) {
                return Ok(Err(refused));
            }
            if let Some(damage) = self.stages.damage(stage) {
                return Err(damage.clone().into());
            }
        }
        if self.stages.holds_any()
            && let Err(refused) = guard::check_held(&self.store, &self.stages, entry, append)?
        {
            return Ok(Err(refused));
        }
        let novelty = match self.read.producers.write().check(&append.claims, append.now) {
            Ok(novelty) => novelty,
            Err(refused) => return Ok(Err(refused)),
        };
        if novelty == Novelty::New
            && let Err(refused) = guard::check(&self.store, entry, append)?
        {
            return Ok(Err(refused));
        }
        if novelty == Novelty::New
            && let Err(refused) = self.check_commits(&append.commits)
        {
            return Ok(Err(refused));
        }
        Ok(Ok(novelty))
    }

    fn check_parts(&self, writes: &Writes, parts: &[Part]) -> Result<(), Refused> {
        for batch in parts.iter().filter_map(|part| writes.batches.get(part.batch)) {
            let topic = self.store.topic(batch.topic).ok_or(Refused::NoTopic(batch.topic))?;
            if batch.partition.value() >= topic.partitions {
                return Err(Refused::NoPartition(batch.topic, batch.partition));
            }
        }
        Ok(())
    }
}

pub(super) fn parts_of(write: &Write) -> &[Part] {
    match write {
        Write::Append(append) | Write::Prepare(_, append) => &append.parts,
        Write::Stage(_, parts) => parts,
        Write::Abort(_) | Write::GiveUp(_) | Write::Commit(_) | Write::Decide(_) | Write::Forget(_) => &[],
        Write::Step(step) => &step.outputs,
        Write::Checkpoint(_) | Write::Take(_) => &[],
    }
}

fn rows_of(step: &StepWrite) -> RowCount {
    step.outputs.iter().fold(RowCount::ZERO, |sum, part| sum.plus(part.rows))
}

/// The rows of one part within its batch.
#[derive(Debug, Clone, Copy)]
pub(in crate::replication) struct Run {
    pub(in crate::replication) write: usize,
    pub(in crate::replication) start: RowCount,
    pub(in crate::replication) rows: RowCount,
}

/// Which rows of which batch belong to which write.
pub(in crate::replication) struct Runs {
    by_batch: Vec<Vec<Run>>,
}

impl Runs {
    pub(super) fn new(writes: &Writes) -> Result<Self, DecodeError> {
        let mut by_batch: Vec<Vec<Run>> = writes.batches.iter().map(|_| Vec::new()).collect();
        let mut ends = vec![RowCount::ZERO; writes.batches.len()];
        let damaged = || DecodeError::Damaged("its parts do not add up to its batches".to_owned());
        for (number, write) in writes.writes.iter().enumerate() {
            for part in parts_of(write) {
                let runs = by_batch.get_mut(part.batch).ok_or_else(damaged)?;
                let end = ends.get_mut(part.batch).ok_or_else(damaged)?;
                runs.push(Run { write: number, start: *end, rows: part.rows });
                *end = end.plus(part.rows);
            }
        }
        if ends.iter().zip(&writes.batches).any(|(end, batch)| *end != batch.rows) {
            return Err(damaged());
        }
        Ok(Self { by_batch })
    }

    pub(in crate::replication) fn of_batch(&self, batch: usize) -> impl Iterator<Item = &Run> {
        self.by_batch.get(batch).into_iter().flatten()
    }
}
