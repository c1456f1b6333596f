//! Rows of transactions that wait for their COMMIT: taken in, brought in, given up.

use super::decide::Runs;
use super::{Fatal, Machine};
use crate::env;
use crate::replication::entry::{AppendWrite, Part, Write, Writes};
use crate::replication::producers::{Novelty, Verdict};
use crate::replication::stages::{self, Prepared};
use crate::replication::types::Guard;
use crate::storage::{KeySet, StagedRows, StorageError};
use millstream_catalog::model::{EntryIndex, StageId};
use std::collections::BTreeSet;

impl Machine {
    /// Takes in staged rows, gives up transactions, and brings the rows of those that commit: per write, its transaction.
    pub(super) fn apply_stages(
        &mut self,
        index: EntryIndex,
        (writes, runs): (&Writes, &Runs),
        verdicts: &[Verdict],
    ) -> Result<Vec<Option<StageId>>, Fatal> {
        let mut stages = vec![None; writes.writes.len()];
        for (number, write) in writes.writes.iter().enumerate() {
            match write {
                Write::Stage(stage, parts) if matches!(verdicts.get(number), Some(Ok(_))) => {
                    let rows = self.staged_rows(index, (writes, runs), (number, parts, &[]))?;
                    let rows = rows.into_iter().map(|(rows, _)| rows).collect();
                    stages[number] = self.stages.stage(*stage, index, rows);
                }
                Write::Append(AppendWrite { staged: Some(stage), .. }) => {
                    if matches!(verdicts.get(number), Some(Ok(Novelty::New))) {
                        self.append_staged(index, *stage)?;
                    }
                    self.stages.end(*stage);
                }
                Write::Prepare(decider, append) => {
                    let verdict = verdicts.get(number);
                    if matches!(verdict, Some(Ok(Novelty::Staged))) {
                        let write = (number, append.parts.as_slice(), append.guards.as_slice());
                        let rows = self.staged_rows(index, (writes, runs), write)?;
                        let (decider, claims, commits) = (*decider, append.claims.clone(), append.commits.clone());
                        let prepared = Prepared { decider, claims, commits, now: append.now };
                        stages[number] = self.stages.prepare(append.staged, index, rows, prepared);
                    } else if let Some(stage) = append.staged.filter(|_| matches!(verdict, Some(Ok(_)))) {
                        // Written before.
                        self.stages.end(stage);
                    }
                }
                Write::Commit(stage) => {
                    if let Some(Prepared { claims, commits, now, .. }) = self.stages.prepared(*stage) {
                        // Those of topics that were dropped meanwhile are no more.
                        let claims = claims.iter().filter(|claim| self.store.topic(claim.topic).is_some());
                        self.read.producers.write().record(claims, *now);
                        let commits = commits.iter().filter(|commit| self.store.topic(commit.topic).is_some());
                        self.read.groups.write().record(commits, *now);
                        self.append_staged(index, *stage)?;
                    }
                    self.stages.end(*stage);
                }
                Write::GiveUp(stage) if self.stages.prepared(*stage).is_some() => {}
                Write::Abort(stage) | Write::GiveUp(stage) => self.stages.end(*stage),
                Write::Decide(transaction) => self.stages.decide(*transaction),
                Write::Forget(transaction) => self.stages.forget(*transaction),
                Write::Stage(..) | Write::Append(_) | Write::Step(_) | Write::Checkpoint(_) | Write::Take(_) => {}
            }
        }
        Ok(stages)
    }

    /// Stores the rows of a transaction; those of topics that were dropped meanwhile are no more.
    fn append_staged(&mut self, index: EntryIndex, stage: StageId) -> Result<(), Fatal> {
        for (rows, is_mapped) in self.stages.rows_placed(stage) {
            if stages::fits(rows, &self.store).is_err() {
                continue;
            }
            for batch in rows.batches.iter().cloned() {
                match is_mapped {
                    true => self.store.append_mapped(index, rows.topic, rows.partition, batch)?,
                    false => self.store.append(index, rows.topic, rows.partition, batch)?,
                };
            }
        }
        Ok(())
    }

    /// The rows of the parts of write `number`, one run for each of its batches; of those with a guarded part also the
    /// keys.
    fn staged_rows(
        &self,
        index: EntryIndex,
        (writes, runs): (&Writes, &Runs),
        (number, parts, guards): (usize, &[Part], &[Option<Guard>]),
    ) -> Result<Vec<(StagedRows, Option<KeySet>)>, Fatal> {
        let mut staged = Vec::new();
        for place in parts.iter().map(|part| part.batch).collect::<BTreeSet<_>>() {
            // The rows of one write stand together.
            let mut own = runs.of_batch(place).filter(|run| run.write == number);
            let (Some(batch), Some(first)) = (writes.batches.get(place), own.next()) else { continue };
            let Some(topic) = self.store.topic(batch.topic) else { continue };
            let rows = own.fold(first.rows, |sum, run| sum.plus(run.rows));
            let all = batch.data.batch(&topic.schema).map_err(|error| Fatal::Entry { index, error })?;
            let batches = vec![all.slice(first.start.as_usize(), rows.as_usize())];
            let rows = StagedRows { topic: batch.topic, partition: batch.partition, batches };
            let guard =
                parts.iter().zip(guards).find_map(|(part, guard)| guard.as_ref().filter(|_| part.batch == place));
            let held = guard.map(|guard| stages::keys_of(&rows, &guard.key)).transpose()?.flatten();
            staged.push((rows, held));
        }
        Ok(staged)
    }

    /// Writes staged rows to files, before the next entry brings more.
    pub(super) async fn move_out(&mut self, is_all: bool) -> Result<(), Fatal> {
        let Some(job) = self.stages.move_out(&self.store, is_all) else { return Ok(()) };
        let moved = env::spawn_blocking(move || job.run()).await;
        let moved =
            moved.map_err(|error| if error.is_panic() { Fatal::SealDied } else { StorageError::Closed.into() })??;
        self.stages.moved(moved);
        Ok(())
    }
}
