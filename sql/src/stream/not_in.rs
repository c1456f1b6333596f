//! `NOT IN (sub-query)`: as SQL has it with NULL among the values.
//!
//! Nothing is not in values with a NULL among them, NULL is not in no values only, and what has no match is not in the
//! others. Owns how many values there are and how many of them are NULL. Leaves out matches, which the join below knows
//! (`join`). State: the counts, and that of the join.

use super::delta::{Delta, Origin, arrow_error, concat, downcast};
use super::expression::evaluate;
use super::join::Join;
use super::operator::{Operator, both};
use super::part::Part;
use super::rows::RowCodec;
use super::save::{StateReader, StateWriter};
use crate::error::SqlError;
use arrow::array::{Array, ArrayRef, BooleanArray, Int64Array, RecordBatch};
use datafusion::physical_expr::PhysicalExpr;
use millstream_catalog::model::{ByteSize, RowCount};
use std::collections::BTreeMap;
use std::sync::Arc;

/// What the values let through of the rows without a match.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Gate {
    /// There are no values: all.
    Open,
    /// Those that are not NULL.
    NotNull,
    /// A value is NULL: none.
    Closed,
}

impl Gate {
    fn passes(self, has_key: bool) -> bool {
        match self {
            Self::Open => true,
            Self::NotNull => has_key,
            Self::Closed => false,
        }
    }
}

/// Rows, with how often they are there and their event time.
type Passing = BTreeMap<Box<[u8]>, (i64, i64)>;

/// The rows of the left that are not in the values on the right.
pub(crate) struct NotIn {
    /// Gives and keeps the rows without a match.
    join: Join,
    /// The rows of the left.
    codec: RowCodec,
    /// What is looked for, over the columns of the join.
    key: Arc<dyn PhysicalExpr>,
    value: Arc<dyn PhysicalExpr>,
    values: i64,
    nulls: i64,
}

impl NotIn {
    /// Over an anti join that keeps rows without a match.
    ///
    /// # Errors
    /// XX000.
    pub(crate) fn new(join: Join, key: Arc<dyn PhysicalExpr>, value: Arc<dyn PhysicalExpr>) -> Result<Self, SqlError> {
        Ok(Self { codec: RowCodec::new(Arc::clone(join.left_schema()))?, join, key, value, values: 0, nulls: 0 })
    }

    fn gate(&self) -> Gate {
        match (self.values, self.nulls) {
            (0, _) => Gate::Open,
            (_, 0) => Gate::NotNull,
            _ => Gate::Closed,
        }
    }

    fn count(&mut self, right: &Delta) -> Result<(), SqlError> {
        let values = evaluate(self.value.as_ref(), right)?;
        for row in 0..right.len() {
            let change = if right.weights.is_gone(row) { -1 } else { 1 };
            self.values += change;
            self.nulls += if values.is_null(row) { change } else { 0 };
        }
        Ok(())
    }

    /// The rows that pass, with how often, and their event times.
    fn passing(&self, gate: Gate) -> Result<Passing, SqlError> {
        let (batch, rowtimes) = self.join.unmatched(|entry| gate.passes(entry.has_key()))?;
        let bytes = self.codec.encode(&batch)?;
        let mut rows = Passing::new();
        for (row, rowtime) in rowtimes.into_iter().enumerate() {
            rows.entry(bytes.get(row).into()).or_insert((0, rowtime)).0 += 1;
        }
        Ok(rows)
    }

    /// The rows of `one` that are not in `other`.
    fn fewer(&self, one: &Passing, other: &Passing, is_gone: bool, origin: &Arc<Origin>) -> Result<Delta, SqlError> {
        let rows = one.iter().flat_map(|(row, (count, rowtime))| {
            let left = count - other.get(row).map_or(0, |(count, _)| *count);
            std::iter::repeat_n((row.as_ref(), *rowtime), usize::try_from(left).unwrap_or(0))
        });
        let (rows, rowtimes): (Vec<&[u8]>, Vec<i64>) = rows.unzip();
        self.join.alone(self.codec.decode(rows.into_iter())?.columns(), rowtimes, is_gone, origin)
    }

    /// What the step changes where another gate stands after it.
    fn changed(&mut self, inputs: Vec<Delta>, old: Gate, origin: &Arc<Origin>) -> Result<Delta, SqlError> {
        let before = self.passing(old)?;
        self.join.step(inputs, origin)?;
        let after = self.passing(self.gate())?;
        concat(&[self.fewer(&before, &after, true, origin)?, self.fewer(&after, &before, false, origin)?])
    }
}

impl Operator for NotIn {
    fn step(&mut self, inputs: Vec<Delta>, origin: &Arc<Origin>) -> Result<Delta, SqlError> {
        let old = self.gate();
        let (left, right) = both(inputs)?;
        self.count(&right)?;
        let gate = self.gate();
        if gate != old {
            return self.changed(vec![left, right], old, origin);
        }
        let unmatched = self.join.step(vec![left, right], origin)?;
        let keys = match gate {
            Gate::Open => return Ok(unmatched),
            Gate::NotNull | Gate::Closed => evaluate(self.key.as_ref(), &unmatched)?,
        };
        let passes: BooleanArray = (0..keys.len()).map(|row| Some(gate.passes(keys.is_valid(row)))).collect();
        unmatched.filter(&passes)
    }

    fn save(&self, state: &mut StateWriter, part: Part) -> Result<(), SqlError> {
        let counts: ArrayRef = Arc::new(Int64Array::from(vec![self.values, self.nulls]));
        state.put("values", &RecordBatch::try_from_iter([("count", counts)]).map_err(arrow_error)?)?;
        self.join.save(state, part)
    }

    fn restore(&mut self, state: &mut StateReader) -> Result<(), SqlError> {
        let counts: Int64Array = downcast(state.take("values")?.column(0))?;
        if let [values, nulls] = counts.values().as_ref() {
            (self.values, self.nulls) = (*values, *nulls);
        }
        self.join.restore(state)
    }

    fn is_stateful(&self) -> bool {
        true
    }

    fn state_bytes(&self) -> ByteSize {
        self.join.state_bytes()
    }

    fn late_rows(&self) -> RowCount {
        self.join.late_rows()
    }

    fn fingerprint(&self) -> String {
        format!("not in({}; {}; {})", self.key, self.value, self.join.fingerprint())
    }
}
