//! The contract of an operator.
//!
//! Leaves out the operators themselves. The pipeline calls them; they live in memory, and their saved state survives.

use super::delta::{Delta, Origin};
use super::part::{Part, StateStore};
use super::save::{StateReader, StateWriter};
use crate::error::SqlError;
use millstream_catalog::model::{ByteSize, RowCount};
use std::sync::Arc;

/// One stage of a continuous query. Deterministic: equal states and inputs give equal outputs and states.
///
/// After an error the operator is in no defined state and must be dropped.
pub(crate) trait Operator: Send + Sync {
    /// Takes the changes of one step, those of each input, and gives those it makes of them; then, as event time has
    /// reached `origin.end`, those that time makes. State that can no longer change is let go. Of rows with a key, the
    /// one that goes comes before the one in its place.
    fn step(&mut self, inputs: Vec<Delta>, origin: &Arc<Origin>) -> Result<Delta, SqlError>;

    /// Fails as `step` would before it changes any state.
    fn check(&self, _inputs: &[Delta]) -> Result<(), SqlError> {
        Ok(())
    }

    /// Writes the state of the keys of `part`, if there is any.
    fn save(&self, _state: &mut StateWriter, _part: Part) -> Result<(), SqlError> {
        Ok(())
    }

    /// Takes over saved state; the operator is as new before.
    fn restore(&mut self, _state: &mut StateReader) -> Result<(), SqlError> {
        Ok(())
    }

    /// The same operator without state, of one whose state falls into parts: what happens to rows of one key depends on
    /// no row of another.
    ///
    /// # Errors
    /// XX000.
    fn fresh(&self) -> Result<Option<Box<dyn Operator>>, SqlError> {
        Ok(None)
    }

    /// Of such an operator, the hash of the key of each row of an input.
    fn hashes(&self, _input: usize, delta: &Delta) -> Result<Vec<u64>, SqlError> {
        Ok(vec![0; delta.len()])
    }

    /// Of such an operator, the query's time, in microseconds, from which on a step without rows may do something.
    fn due(&self) -> i64 {
        i64::MAX
    }

    /// Of such an operator, how what the parts of it make is put together.
    fn merging(&self) -> Merging {
        Merging::Net
    }

    /// Whether its state is in parts, some of which a step may change before it fails.
    fn is_divided(&self) -> bool {
        false
    }

    /// Writes much state to `store` from now on, and keeps about so many bytes of it in memory.
    ///
    /// # Errors
    /// As [`StateStore::write`].
    fn keep_within(&mut self, _bytes_max: u64, _store: &Arc<dyn StateStore>) -> Result<(), SqlError> {
        Ok(())
    }

    /// Writes the files that `save` names.
    ///
    /// # Errors
    /// As [`StateStore::write`].
    fn settle(&mut self) -> Result<(), SqlError> {
        Ok(())
    }

    /// State that is in files only, in bytes of memory it would take.
    fn spilled_bytes(&self) -> ByteSize {
        ByteSize::ZERO
    }

    /// True when `save` writes anything.
    fn is_stateful(&self) -> bool {
        false
    }

    /// Whether what it makes of an event depends on no other one, but for rows of tables.
    fn is_shareable(&self) -> bool {
        !self.is_stateful()
    }

    /// True when the operator gives a row before any event, as `count(*)` over everything does.
    fn begins_with_row(&self) -> bool {
        false
    }

    /// State, in bytes of memory, about; also what is in files only.
    fn state_bytes(&self) -> ByteSize {
        ByteSize::ZERO
    }

    /// Rows dropped as late since the operator was made, saved ones included.
    fn late_rows(&self) -> RowCount {
        RowCount::ZERO
    }

    /// Of one without state over one input, its columns: the name of each, and what it is in terms of the sources. Those of
    /// the input are given likewise.
    fn origins(&self, _input: &[Origins]) -> Option<Vec<Origins>> {
        None
    }

    /// What the operator does and how its state is laid out, stable for one build of expressions.
    fn fingerprint(&self) -> String;
}

/// How the rows that parts of an operator make in a step are put together. Those that come are in the order of the events
/// they stem from, then of time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Merging {
    /// All of them in that order: a key stays in its part, and its forms follow each other as events do.
    Forms,
    /// Rows that go before those that come: one may come in the place of another part's.
    GoneFirst,
    /// The same, without those that come and go within the step.
    Net,
}

/// A column's name, and what it is in terms of the sources.
pub(crate) type Origins = (String, String);

/// `expression`, which names columns by name and position, in terms of what those are.
pub(crate) fn in_origins(expression: &str, columns: &[Origins]) -> String {
    let numbered = columns.iter().enumerate().rev();
    numbered.fold(expression.to_owned(), |text, (at, (name, origin))| text.replace(&format!("{name}@{at}"), origin))
}

/// The only input of an operator.
pub(crate) fn only(mut inputs: Vec<Delta>) -> Result<Delta, SqlError> {
    match (inputs.pop(), inputs.is_empty()) {
        (Some(input), true) => Ok(input),
        _ => Err(SqlError::internal("an operator with another number of inputs")),
    }
}

/// The two inputs of an operator.
pub(crate) fn both(mut inputs: Vec<Delta>) -> Result<(Delta, Delta), SqlError> {
    match (inputs.pop(), inputs.pop(), inputs.is_empty()) {
        (Some(right), Some(left), true) => Ok((left, right)),
        _ => Err(SqlError::internal("an operator with another number of inputs")),
    }
}
