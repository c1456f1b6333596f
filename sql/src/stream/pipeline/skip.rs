//! Steps that leave out the events that cannot be taken.
//!
//! An event cannot be taken when a step with it, after a step without it, fails with 23502 or an error of class 22: an overflow, a
//! division by zero, a cast. It is left out as if the log did not have it, but that it moves time. Where nothing but
//! stateless stages, and the arguments of an aggregate, stood before the error, the events are found by halving and the
//! step goes on. An error behind state needs the pipeline as it was before the step: the caller makes it again. Leaves out
//! where skipped events are kept (engine). Equal steps skip equal events, so a replay repeats them.

use super::{Delta, Edge, InputBatch, Made, Origin, Pipeline, StepInput, StepOutput, follow};
use crate::error::{EventPlace, Near, SqlError};
use arrow::array::BooleanArray;
use millstream_catalog::model::SqlState;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// An event that was left out, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SkippedEvent {
    /// Where it is.
    pub event: EventPlace,
    /// What it made fail.
    pub error: SqlError,
}

/// Makes a pipeline as it was before the step.
pub type Again<'a> = &'a mut dyn FnMut() -> Result<Pipeline, SqlError>;

/// The events a step leaves out.
#[derive(Debug, Default)]
pub(super) struct Skipping {
    /// With the error of each.
    events: BTreeMap<EventPlace, SqlError>,
    /// Those found in a step that changed state before it failed.
    found: BTreeMap<EventPlace, SqlError>,
}

/// A step that failed within the graph.
pub(super) struct Failed {
    /// The operator, or the number of operators for the sink.
    pub(super) at: usize,
    /// Whether an operator has changed its state.
    pub(super) is_dirty: bool,
    /// Why.
    pub(super) error: SqlError,
}

impl Skipping {
    /// Takes the events to be left out from `sources`.
    pub(super) fn leave_out(&self, sources: &mut [Delta], origin: &Origin) -> Result<(), SqlError> {
        if self.events.is_empty() {
            return Ok(());
        }
        let stays = |row: usize| origin.place(row).is_none_or(|event| !self.events.contains_key(&event));
        sources.iter_mut().try_for_each(|delta| keep(delta, &stays))
    }

    /// Notes the only event of a step that changed state before it failed.
    pub(super) fn note_only(&mut self, batch: &InputBatch, error: &SqlError) {
        let event = place_of(batch);
        if is_skippable(error) && self.found.is_empty() && !self.events.contains_key(&event) {
            self.found.insert(event, error.clone());
        }
    }
}

fn place_of(one: &InputBatch) -> EventPlace {
    EventPlace { source: one.source, partition: one.partition, offset: one.offset_start }
}

fn keep(delta: &mut Delta, stays: &dyn Fn(usize) -> bool) -> Result<(), SqlError> {
    let mask: BooleanArray = (0..delta.len()).map(|row| Some(stays(delta.input_row(row)))).collect();
    if mask.true_count() < mask.len() {
        *delta = delta.filter(&mask)?;
    }
    Ok(())
}

fn is_skippable(error: &SqlError) -> bool {
    error.sqlstate == SqlState::NotNullViolation || error.sqlstate.code().starts_with("22")
}

impl Pipeline {
    /// As [`Pipeline::step`], without the events that cannot be taken. `known` are such of this step, from when it was
    /// taken before; `again` makes the pipeline as it was before this step, and is called when state was changed already.
    ///
    /// # Errors
    /// What is no event's fault, or neither 23502 nor of class 22; the pipeline is then in no defined state.
    pub fn step_skipping(
        &mut self,
        input: &StepInput<'_>,
        known: Vec<SkippedEvent>,
        again: Again<'_>,
    ) -> Result<(StepOutput, Vec<SkippedEvent>), SqlError> {
        let events = known.into_iter().map(|skipped| (skipped.event, skipped.error)).collect();
        let mut skipping = Skipping { events, ..Skipping::default() };
        loop {
            let error = match self.run(input, Some(&mut skipping)) {
                Ok(output) => {
                    let skipped = skipping.events.into_iter().map(|(event, error)| SkippedEvent { event, error });
                    return Ok((output, skipped.collect()));
                }
                Err(error) if !is_skippable(&error) => return Err(error),
                Err(error) => error,
            };
            let mut found = std::mem::take(&mut skipping.found);
            if found.is_empty() {
                found.extend([locate(input, &mut skipping, error, again)?]);
            }
            *self = again()?;
            skipping.events.extend(found);
        }
    }

    /// After a failure: the events that fail by themselves are left out of `sources` when no state was changed, so that
    /// the step can be tried again at once.
    ///
    /// # Errors
    /// That of the failure, when the pipeline must be made again.
    pub(super) fn sift(
        &mut self,
        failed: Failed,
        sources: &mut [Delta],
        origin: &Arc<Origin>,
        skipping: &mut Skipping,
    ) -> Result<(), SqlError> {
        if !is_skippable(&failed.error) {
            return Err(failed.error);
        }
        let found = match self.stages_before(failed.at) {
            Some(stages) => self.failing(&stages, failed.at, sources, origin)?,
            None => BTreeMap::new(),
        };
        if failed.is_dirty || found.is_empty() {
            let places = found.into_iter().filter_map(|(row, error)| Some((origin.place(row)?, error)));
            skipping.found.extend(places);
            return Err(failed.error);
        }
        sources.iter_mut().try_for_each(|delta| keep(delta, &|row| !found.contains_key(&row)))?;
        skipping.events.extend(found.into_iter().filter_map(|(row, error)| Some((origin.place(row)?, error))));
        Ok(())
    }

    fn inputs_of(&self, at: usize) -> &[Edge] {
        match self.parts.nodes.get(at) {
            Some(node) => &node.inputs,
            None => std::slice::from_ref(&self.parts.root),
        }
    }

    /// The operators whose output an operator, or the sink, reads; `None` when one of them has state.
    fn stages_before(&self, at: usize) -> Option<BTreeSet<usize>> {
        let mut stages = BTreeSet::new();
        let mut left = vec![at];
        while let Some(at) = left.pop() {
            for edge in self.inputs_of(at) {
                if let Edge::Node(before) = edge
                    && stages.insert(*before)
                {
                    left.push(*before);
                }
            }
        }
        let has_state = |at: &usize| self.parts.nodes.get(*at).is_none_or(|node| node.operator.is_stateful());
        (!stages.iter().any(has_state)).then_some(stages)
    }

    /// The input rows with which the operator `at` fails when each is tried alone.
    fn failing(
        &mut self,
        stages: &BTreeSet<usize>,
        at: usize,
        sources: &[Delta],
        origin: &Arc<Origin>,
    ) -> Result<BTreeMap<usize, SqlError>, SqlError> {
        let mut rows: Vec<usize> =
            sources.iter().flat_map(|delta| (0..delta.len()).map(|row| delta.input_row(row))).collect();
        rows.sort_unstable();
        let mut found = BTreeMap::new();
        // Each part is taken from the one it is half of.
        let mut left: Vec<(&[usize], Vec<Delta>)> = vec![(&rows, sources.to_vec())];
        while let Some((rows, part)) = left.pop() {
            match (self.probe(stages, at, &part, origin), rows) {
                (Ok(()), _) | (_, []) => {}
                (Err(error), [row]) if is_skippable(&error) => drop(found.insert(*row, error)),
                (Err(error), [_]) => return Err(error),
                (Err(_), rows) => {
                    let (one, other) = rows.split_at(rows.len() / 2);
                    for half in [one, other] {
                        let (Some(first), Some(last)) = (half.first(), half.last()) else { continue };
                        let mut part = part.clone();
                        part.iter_mut().try_for_each(|delta| keep(delta, &|row| (*first..=*last).contains(&row)))?;
                        left.push((half, part));
                    }
                }
            }
        }
        Ok(found)
    }

    /// What becomes of `sources` before the operator `at` changes state.
    fn probe(
        &mut self,
        stages: &BTreeSet<usize>,
        at: usize,
        sources: &[Delta],
        origin: &Arc<Origin>,
    ) -> Result<(), SqlError> {
        let mut made = vec![Made::default(); self.parts.nodes.len()];
        for stage in stages {
            let Some(node) = self.parts.nodes.get_mut(*stage) else { continue };
            let inputs = node.inputs.iter().map(|edge| follow(edge, sources, &mut made));
            let inputs = inputs.collect::<Result<Vec<_>, _>>()?;
            made[*stage] = Made { delta: Some(node.operator.step(inputs, origin)?), readers: self.readers[*stage] };
        }
        let inputs = self.inputs_of(at).iter().map(|edge| follow(edge, sources, &mut made));
        let inputs = inputs.collect::<Result<Vec<_>, _>>()?;
        match self.parts.nodes.get_mut(at) {
            Some(node) if node.operator.is_stateful() => node.operator.check(&inputs),
            Some(node) => node.operator.step(inputs, origin).map(drop),
            None => inputs.into_iter().try_for_each(|rows| self.parts.sink.rows(rows).map(drop)),
        }
    }
}

/// The event whose step fails behind state: that which `error` names, if the steps before it and its own show so, or else
/// the first one by one.
///
/// # Errors
/// `error` when no event fails by itself.
fn locate(
    input: &StepInput<'_>,
    skipping: &mut Skipping,
    error: SqlError,
    again: Again<'_>,
) -> Result<(EventPlace, SqlError), SqlError> {
    let events: Vec<InputBatch> = input.batches.iter().flat_map(InputBatch::each).collect();
    let part = |batches: &[InputBatch]| StepInput { batches: batches.to_vec(), ..*input };
    let named = match error.near.as_deref() {
        Some(Near::Event(named)) => events.iter().position(|event| place_of(event) == *named),
        _ => None,
    };
    if let Some(at) = named {
        let mut pipeline = again()?;
        if pipeline.take(&part(&events[..at]), Some(skipping)).is_ok()
            && let Err(error) = pipeline.take(&part(&events[at..=at]), Some(skipping))
            && is_skippable(&error)
            && !skipping.events.contains_key(&place_of(&events[at]))
        {
            skipping.found.clear();
            return Ok((place_of(&events[at]), error));
        }
    }
    let mut pipeline = again()?;
    for event in &events {
        let Err(error) = pipeline.take(&part(std::slice::from_ref(event)), Some(skipping)) else { continue };
        skipping.found.clear();
        // Left out already, it fails all the same: it is what time did.
        return match is_skippable(&error) && !skipping.events.contains_key(&place_of(event)) {
            true => Ok((place_of(event), error)),
            false => Err(error),
        };
    }
    Err(error)
}
