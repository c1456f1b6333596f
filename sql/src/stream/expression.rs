//! Evaluation of expressions over a delta, with the failing event named, and the step's `now()`.
//!
//! Leaves out making physical expressions from logical ones (`plan::pipeline`). Stateless but for the clock cell, which
//! the pipeline sets at the start of each step.

use super::delta::{Delta, downcast, sql_error};
use crate::error::SqlError;
use arrow::array::{ArrayRef, BooleanArray, RecordBatch};
use arrow::datatypes::{DataType, TimeUnit};
use datafusion::error::{DataFusionError, Result as DataFusionResult};
use datafusion::logical_expr::{
    ColumnarValue, ScalarFunctionArgs, ScalarUDFImpl, Signature, TypeSignature, Volatility,
};
use datafusion::physical_expr::PhysicalExpr;
use datafusion::scalar::ScalarValue;
use millstream_catalog::model::Timestamp;
use std::hash::{Hash, Hasher};
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

/// The values of `expression` over the rows of `delta`.
///
/// # Errors
/// The expression's own, with the first event that fails alone named in the detail.
pub(crate) fn evaluate(expression: &dyn PhysicalExpr, delta: &Delta) -> Result<ArrayRef, SqlError> {
    evaluate_batch(expression, &delta.batch).map_err(|error| {
        let fails = |start, count| evaluate_batch(expression, &delta.batch.slice(start, count)).is_err();
        delta.blame(first_failure(delta.len(), fails), sql_error(error))
    })
}

/// The rows where `predicate` is true.
pub(crate) fn evaluate_predicate(predicate: &dyn PhysicalExpr, delta: &Delta) -> Result<BooleanArray, SqlError> {
    downcast(&evaluate(predicate, delta)?)
}

fn evaluate_batch(expression: &dyn PhysicalExpr, batch: &RecordBatch) -> DataFusionResult<ArrayRef> {
    expression.evaluate(batch)?.into_array(batch.num_rows())
}

/// The first row of `0..count` that `fails` when tried alone, by halving; `fails(0, count)` is known to be true.
///
/// Each half is tried once, so finding the row costs about as much as what failed.
pub(crate) fn first_failure(count: usize, mut fails: impl FnMut(usize, usize) -> bool) -> usize {
    let (mut start, mut length) = (0, count);
    while length > 1 {
        let half = length / 2;
        if fails(start, half) {
            length = half;
        } else {
            start += half;
            length -= half;
        }
    }
    start
}

/// `now()` of a continuous query: the time its step was given, the same on replay.
#[derive(Debug)]
pub(crate) struct StepNow {
    cell: Arc<AtomicI64>,
    return_type: DataType,
    signature: Signature,
}

impl StepNow {
    /// A function of type `return_type` that reads the microseconds in `cell`.
    pub(crate) fn new(cell: Arc<AtomicI64>, return_type: DataType) -> Self {
        Self { cell, return_type, signature: Signature::new(TypeSignature::Nullary, Volatility::Volatile) }
    }

    /// Sets the time of the step that begins.
    pub(crate) fn set(cell: &AtomicI64, now: Timestamp) {
        cell.store(now.micros(), Ordering::Relaxed);
    }
}

impl PartialEq for StepNow {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.cell, &other.cell) && self.return_type == other.return_type
    }
}
impl Eq for StepNow {}
impl Hash for StepNow {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.return_type.hash(state);
    }
}

impl ScalarUDFImpl for StepNow {
    fn name(&self) -> &str {
        "now"
    }
    fn signature(&self) -> &Signature {
        &self.signature
    }
    fn return_type(&self, _arg_types: &[DataType]) -> DataFusionResult<DataType> {
        Ok(self.return_type.clone())
    }
    fn invoke_with_args(&self, _args: ScalarFunctionArgs) -> DataFusionResult<ColumnarValue> {
        let micros = self.cell.load(Ordering::Relaxed);
        let value = match &self.return_type {
            DataType::Timestamp(TimeUnit::Microsecond, zone) => {
                ScalarValue::TimestampMicrosecond(Some(micros), zone.clone())
            }
            DataType::Timestamp(TimeUnit::Nanosecond, zone) => {
                ScalarValue::TimestampNanosecond(micros.checked_mul(1_000), zone.clone())
            }
            other => return Err(DataFusionError::Internal(format!("now() of type {other}"))),
        };
        Ok(ColumnarValue::Scalar(value))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_failing_row_is_found_by_halving() {
        for count in 1..20 {
            for bad in 0..count {
                let found = first_failure(count, |start, length| start <= bad && bad < start + length);
                assert_eq!(found, bad);
            }
        }
    }
}
