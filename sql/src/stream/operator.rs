//! The contract of an operator.
//!
//! Leaves out the operators themselves. The pipeline calls them; they live in memory, and their saved state survives.

use super::delta::Delta;
use super::save::{StateReader, StateWriter};
use crate::error::SqlError;
use millstream_catalog::model::{ByteSize, RowCount, Timestamp};

/// One stage of a continuous query. Deterministic: equal states and inputs give equal outputs and states.
///
/// After an error the operator is in no defined state and must be dropped.
pub(crate) trait Operator: Send + Sync {
    /// Takes the changes of one step and gives those it makes of them.
    fn step(&mut self, input: Delta) -> Result<Delta, SqlError>;

    /// Event time has reached `time` at the end of a step: state that can no longer change is let go.
    fn watermark(&mut self, time: Timestamp);

    /// Writes the state.
    fn save(&self, state: &mut StateWriter) -> Result<(), SqlError>;

    /// Takes over saved state; the operator is as new before.
    fn restore(&mut self, state: &mut StateReader) -> Result<(), SqlError>;

    /// True when `save` writes anything.
    fn is_stateful(&self) -> bool;

    /// True when the operator gives a row before any event, as `count(*)` over everything does.
    fn begins_with_row(&self) -> bool {
        false
    }

    /// Memory held by state, about.
    fn state_bytes(&self) -> ByteSize;

    /// Rows dropped as late since the operator was made, saved ones included.
    fn late_rows(&self) -> RowCount;

    /// What the operator does and how its state is laid out, stable for one build of expressions.
    fn fingerprint(&self) -> String;
}
