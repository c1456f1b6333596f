//! The keys of some rows, to see whether other rows have one of them.
//!
//! Keys are compared by value, in Arrow's row form, made anew each time: the answer is a function of the rows alone, equal
//! on every replica and after every restart. Leaves out where rows are. The state machine asks it whether rows that a
//! statement was computed from changed since; the engine asks the same before it proposes. Nothing outlives a crash.

use super::error::StorageError;
use arrow::array::{ArrayRef, RecordBatch};
use arrow::row::{RowConverter, Rows, SortField};
use std::collections::HashSet;
use std::hash::{BuildHasher, BuildHasherDefault, DefaultHasher};
use std::sync::Arc;

/// Keys of rows of one topic.
#[derive(Debug, Clone)]
pub struct KeySet {
    converter: Arc<RowConverter>,
    columns: Vec<usize>,
    keys: HashSet<Box<[u8]>>,
}

fn unfit(error: impl std::fmt::Display) -> StorageError {
    StorageError::Schema { what: format!("keys cannot be compared: {error}") }
}

impl KeySet {
    /// The keys in `columns` of `batch`.
    ///
    /// # Errors
    /// [`StorageError::Schema`] when there are no such columns.
    pub fn new(batch: &RecordBatch, columns: &[usize]) -> Result<Self, StorageError> {
        let schema = batch.schema();
        let field = |at: &usize| {
            let field = schema.fields().get(*at).ok_or_else(|| unfit(format!("no column {at}")))?;
            Ok(SortField::new(field.data_type().clone()))
        };
        let fields = columns.iter().map(field).collect::<Result<_, StorageError>>()?;
        let mut set = Self {
            converter: Arc::new(RowConverter::new(fields).map_err(unfit)?),
            columns: columns.to_vec(),
            keys: HashSet::with_capacity(batch.num_rows()),
        };
        let rows = set.rows(&project(batch, columns)?)?;
        set.keys.extend(rows.iter().map(|key| Box::from(key.as_ref())));
        Ok(set)
    }

    /// Adds keys that stand in the same columns of the same types.
    pub fn extend(&mut self, other: Self) {
        self.keys.extend(other.keys);
    }

    /// The columns the keys stand in.
    pub fn columns(&self) -> &[usize] {
        &self.columns
    }

    /// Whether a row of `batch`, which has all columns of the topic, has one of the keys.
    ///
    /// # Errors
    /// [`StorageError::Schema`] when the columns are of other types.
    pub fn meets(&self, batch: &RecordBatch) -> Result<bool, StorageError> {
        self.meets_keys(&project(batch, &self.columns)?)
    }

    /// The same for key columns alone.
    ///
    /// # Errors
    /// [`StorageError::Schema`] when the columns are of other types.
    pub fn meets_keys(&self, keys: &[ArrayRef]) -> Result<bool, StorageError> {
        Ok(self.rows(keys)?.iter().any(|key| self.keys.contains(key.as_ref())))
    }

    /// For each row of `batch`, whether it has one of the keys.
    ///
    /// # Errors
    /// [`StorageError::Schema`] when the columns are of other types.
    pub fn has(&self, batch: &RecordBatch) -> Result<Vec<bool>, StorageError> {
        let rows = self.rows(&project(batch, &self.columns)?)?;
        Ok(rows.iter().map(|key| self.keys.contains(key.as_ref())).collect())
    }

    /// The key of each row of `batch`, comparable with those of others this set gave.
    ///
    /// # Errors
    /// [`StorageError::Schema`] when the columns are of other types.
    pub fn keys_of(&self, batch: &RecordBatch) -> Result<Vec<Box<[u8]>>, StorageError> {
        let rows = self.rows(&project(batch, &self.columns)?)?;
        Ok(rows.iter().map(|key| Box::from(key.as_ref())).collect())
    }

    /// A hash of each key; equal in this process only.
    pub fn hashes(&self) -> impl Iterator<Item = u64> + '_ {
        let hasher = BuildHasherDefault::<DefaultHasher>::default();
        self.keys.iter().map(move |key| hasher.hash_one(key))
    }

    fn rows(&self, keys: &[ArrayRef]) -> Result<Rows, StorageError> {
        self.converter.convert_columns(keys).map_err(unfit)
    }
}

fn project(batch: &RecordBatch, columns: &[usize]) -> Result<Vec<ArrayRef>, StorageError> {
    let column = |at: &usize| batch.columns().get(*at).cloned().ok_or_else(|| unfit(format!("no column {at}")));
    columns.iter().map(column).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use arrow::array::{Int64Array, StringArray};

    fn rows(keys: &[(i64, &str)]) -> RecordBatch {
        let numbers: ArrayRef = Arc::new(Int64Array::from_iter_values(keys.iter().map(|key| key.0)));
        let names: ArrayRef = Arc::new(StringArray::from_iter_values(keys.iter().map(|key| key.1)));
        let values: ArrayRef = Arc::new(Int64Array::from(vec![7; keys.len()]));
        RecordBatch::try_from_iter([("a", numbers), ("v", values), ("b", names)]).unwrap()
    }

    #[test]
    fn only_whole_keys_meet() {
        let set = KeySet::new(&rows(&[(1, "x"), (2, "y")]), &[0, 2]).unwrap();
        assert!(set.meets(&rows(&[(3, "x"), (2, "y")])).unwrap());
        assert!(!set.meets(&rows(&[(1, "y"), (2, "x"), (3, "x")])).unwrap());
        assert_eq!(set.hashes().collect::<HashSet<_>>().len(), 2);
        assert!(KeySet::new(&rows(&[]), &[9]).is_err());
    }
}
