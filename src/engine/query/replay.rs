//! A query's pipeline as one of its committed steps left it: the last checkpoint, and the steps since.
//!
//! Leaves out when that is wanted: after a restart, and when a step failed that had changed state. Reads only.

use super::state::QueryFiles;
use super::task::plan;
use crate::engine::inputs::{Inputs, SourcePositions};
use crate::engine::{Engine, Result};
use crate::replication::{Checkpoint, Shard, StepRecord};
use millstream_catalog::Query;
use millstream_catalog::model::{ByteSize, Offset, PartitionId, SqlState, StepNumber, TopicId};
use millstream_catalog::query::OnError;
use millstream_sql::SqlError;
use millstream_sql::stream::{Again, Pipeline, SkippedEvent, StepInput, StepOutput};
use std::collections::BTreeMap;
use std::sync::Arc;
use tokio_util::sync::CancellationToken;

/// The events that steps since the last checkpoint left out.
pub(super) type Skipped = BTreeMap<StepNumber, Vec<SkippedEvent>>;

/// What a replay reads.
pub(super) struct History {
    pub(super) engine: Arc<Engine>,
    pub(super) query: Arc<Query>,
    pub(super) shard: Arc<Shard>,
    pub(super) files: Arc<QueryFiles>,
    /// State that a pipeline may keep in memory.
    pub(super) state_bytes_max: ByteSize,
    pub(super) inputs: Inputs,
    /// Ends a search for events that cannot be taken.
    pub(super) stop: CancellationToken,
}

impl History {
    /// The positions of the query's sources.
    pub(super) fn of_sources(&self, positions: &BTreeMap<(TopicId, PartitionId), Offset>) -> SourcePositions {
        self.inputs.positions(positions.iter().map(|(at, offset)| (*at, offset)))
    }

    /// A partition of a source, by the position of that.
    fn place(&self, topic: TopicId, id: PartitionId) -> Option<(usize, PartitionId)> {
        let source = self.query.sources.iter().position(|source| *source == topic)?;
        Some((source, id))
    }

    /// Brings `pipeline`, which is as new, to `checkpoint`; gives the positions there.
    ///
    /// # Errors
    /// SE006 when the checkpoint does not fit it.
    pub(super) fn restore(&self, pipeline: &mut Pipeline, checkpoint: &Checkpoint) -> Result<SourcePositions> {
        if checkpoint.fingerprint == pipeline.fingerprint() {
            pipeline.restore(&checkpoint.state)?;
        } else if self.query.former.as_ref() == Some(&checkpoint.fingerprint) {
            pipeline.take_over(&checkpoint.state)?;
        } else {
            return Err(SqlError::new(
                SqlState::CheckpointIncompatible,
                format!("the checkpoint of query \"{}\" does not fit its pipeline", self.query.name),
            )
            .hint("drop and create the query to compute it anew"));
        }
        Ok(self.of_sources(&checkpoint.positions))
    }

    /// Takes a committed step again; what it leaves out goes to `skipped`, or is there already.
    ///
    /// # Errors
    /// When its events cannot be read.
    pub(super) fn repeat(
        &self,
        pipeline: &mut Pipeline,
        positions: &mut SourcePositions,
        record: &StepRecord,
        skipped: &mut Skipped,
    ) -> Result<()> {
        let mut to = positions.clone();
        let moved = record.positions.iter().map(|(topic, id, offset)| ((*topic, *id), offset));
        for (to, moved) in to.iter_mut().zip(self.inputs.positions(moved)) {
            to.extend(moved);
        }
        let input = self.inputs.between(positions, &to)?;
        let idle: Vec<(usize, PartitionId)> =
            record.idle.iter().flat_map(|(topic, id)| self.place(*topic, *id)).collect();
        let input = StepInput { batches: input.batches, idle: &idle, now: record.now };
        self.step(pipeline, record.step, &input, skipped)?;
        *positions = to;
        Ok(())
    }

    /// Takes a step of `pipeline`, by the query's policy for events that cannot be taken.
    ///
    /// # Errors
    /// As [`Pipeline::step`].
    pub(super) fn step(
        &self,
        pipeline: &mut Pipeline,
        step: StepNumber,
        input: &StepInput<'_>,
        skipped: &mut Skipped,
    ) -> Result<StepOutput> {
        if self.query.options.on_error == OnError::Stop {
            return pipeline.step(input);
        }
        let known = skipped.get(&step).cloned().unwrap_or_default();
        let again: Again<'_> = &mut || self.before(step, skipped);
        let (output, found) = pipeline.step_skipping(input, known, again)?;
        if !found.is_empty() {
            skipped.insert(step, found);
        }
        Ok(output)
    }

    /// The pipeline before `step`, when the steps before it left out `skipped`.
    fn before(&self, step: StepNumber, skipped: &Skipped) -> Result<Pipeline> {
        if self.stop.is_cancelled() {
            return Err(SqlError::new(SqlState::QueryCanceled, "the query was stopped in a step"));
        }
        let gone = || SqlError::internal(format!("the progress of query \"{}\" is gone", self.query.name));
        let progress = self.shard.progress(self.query.id).ok_or_else(gone)?;
        let (_, _, mut pipeline) = plan(&self.engine, &self.query)?;
        pipeline.set_store(Arc::<QueryFiles>::clone(&self.files));
        pipeline.keep_within(self.state_bytes_max)?;
        let Some(checkpoint) = &progress.checkpoint else { return Ok(pipeline) };
        let mut positions = self.restore(&mut pipeline, checkpoint)?;
        let mut known = skipped.clone();
        let since = |record: &&StepRecord| record.step > checkpoint.step && record.step < step;
        for record in progress.since_checkpoint.iter().filter(since) {
            self.repeat(&mut pipeline, &mut positions, record, &mut known)?;
        }
        Ok(pipeline)
    }
}
