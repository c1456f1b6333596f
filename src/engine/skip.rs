//! Between storage and SQL: the statistics of segments as the tests of a query's predicates want them.
//!
//! Owns the translation, nothing else. Pure.

use crate::storage::{KeyValues, Parts, Pruner};
use arrow::array::{ArrayRef, BooleanArray};
use datafusion::common::pruning::PruningStatistics;
use datafusion::common::{Column, ScalarValue};
use millstream_sql::exec::pruning::Pruning;
use std::collections::HashSet;
use std::sync::Arc;

/// A query's tests, for storage.
#[derive(Debug)]
pub(crate) struct LogPruner {
    pruning: Arc<Pruning>,
    keys: Vec<KeyValues>,
}

impl LogPruner {
    /// The tests of `pruning`.
    pub(crate) fn shared(pruning: &Arc<Pruning>) -> Arc<dyn Pruner> {
        let key = |set: &millstream_sql::exec::pruning::KeySet| KeyValues {
            column: set.column,
            values: Arc::clone(&set.values),
        };
        Arc::new(Self { keys: pruning.keys().iter().map(key).collect(), pruning: Arc::clone(pruning) })
    }
}

impl Pruner for LogPruner {
    fn keep(&self, parts: &Parts<'_>) -> Option<Vec<bool>> {
        (!parts.is_empty()).then(|| self.pruning.keep(&Statistics(parts)))
    }

    fn keys(&self) -> &[KeyValues] {
        &self.keys
    }
}

struct Statistics<'a>(&'a Parts<'a>);

impl PruningStatistics for Statistics<'_> {
    fn min_values(&self, column: &Column) -> Option<ArrayRef> {
        self.0.mins(column.name())
    }

    fn max_values(&self, column: &Column) -> Option<ArrayRef> {
        self.0.maxs(column.name())
    }

    fn num_containers(&self) -> usize {
        self.0.len()
    }

    fn null_counts(&self, column: &Column) -> Option<ArrayRef> {
        Some(Arc::new(self.0.nulls(column.name())?))
    }

    fn row_counts(&self) -> Option<ArrayRef> {
        Some(Arc::new(self.0.rows()))
    }

    fn contained(&self, _: &Column, _: &HashSet<ScalarValue>) -> Option<BooleanArray> {
        None
    }
}
