//! The last stage: stored rows of the sink.
//!
//! Owns the order and types of stored columns, `rowtime` and `rowtombstone`. Leaves out partitioning and writing
//! (engine). Stateless: a crash loses nothing.

use super::delta::{Delta, Weights, arrow_error};
use super::slots::KeyCodec;
use crate::error::SqlError;
use crate::types::canonical;
use arrow::array::{Array, ArrayRef, BooleanArray, Int16Array, RecordBatch, RecordBatchOptions, UInt32Array};
use arrow::compute::{self, CastOptions};
use arrow::datatypes::{DataType, SchemaRef};
use datafusion::common::HashMap;
use datafusion::common::hash_map::Entry;
use std::sync::Arc;

/// Where a stored column's values come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum SinkColumn {
    /// The column of the delta at this position.
    Delta(usize),
    /// The key of the one row of a table without key columns: always 0.
    OneRow,
}

/// Makes stored rows.
#[derive(Debug)]
pub(crate) struct Sink {
    columns: Vec<SinkColumn>,
    schema: SchemaRef,
    has_tombstones: bool,
    merged: Option<Merged>,
}

/// Rows that come and go as what becomes of their keys.
#[derive(Debug)]
struct Merged {
    /// Positions of the key among the delta's columns.
    key: Vec<usize>,
    /// Made with the first rows.
    codec: Option<KeyCodec>,
}

impl Merged {
    /// The last change of each key, in the order of their first ones; nothing of what came and went.
    fn last(&mut self, delta: &Delta) -> Result<UInt32Array, SqlError> {
        let columns: Vec<ArrayRef> = self.key.iter().map(|at| canonical(Arc::clone(delta.batch.column(*at)))).collect();
        let codec = match &mut self.codec {
            Some(codec) => codec,
            none => {
                let types: Vec<DataType> = columns.iter().map(|column| column.data_type().clone()).collect();
                none.insert(KeyCodec::new(&types)?)
            }
        };
        let keys = codec.encode(&columns)?;
        let mut places: HashMap<&[u8], usize> = HashMap::with_capacity(delta.len());
        // The first change of a key, and the last.
        let mut changes: Vec<(u32, u32)> = Vec::with_capacity(delta.len());
        for row in 0..delta.len() {
            match places.entry(keys.get(row)) {
                Entry::Occupied(found) => changes[*found.get()].1 = row as u32,
                Entry::Vacant(vacant) => {
                    vacant.insert(changes.len());
                    changes.push((row as u32, row as u32));
                }
            }
        }
        let is_gone = |row: u32| delta.weights.is_gone(row as usize);
        let told = changes.into_iter().filter(|(first, last)| is_gone(*first) || !is_gone(*last));
        Ok(UInt32Array::from_iter_values(told.map(|(_, last)| last)))
    }
}

impl Sink {
    /// Stored rows of `schema`: the columns, `rowtime`, and `rowtombstone` if `has_tombstones`. Rows that come and go as
    /// they are have their key at `merged`.
    pub(crate) fn new(
        columns: Vec<SinkColumn>,
        schema: SchemaRef,
        has_tombstones: bool,
        merged: Option<Vec<usize>>,
    ) -> Self {
        let merged = merged.map(|key| Merged { key, codec: None });
        Self { columns, schema, has_tombstones, merged }
    }

    /// The stored rows of `delta`; `None` when it has none.
    ///
    /// # Errors
    /// 22003 and such when a value does not fit the stored type.
    pub(crate) fn rows(&mut self, delta: Delta) -> Result<Option<RecordBatch>, SqlError> {
        match &mut self.merged {
            Some(merged) if delta.len() > 0 => {
                let last = merged.last(&delta)?;
                self.stored(&delta.take(&last)?)
            }
            _ => self.stored(&delta),
        }
    }

    fn stored(&self, delta: &Delta) -> Result<Option<RecordBatch>, SqlError> {
        let count = delta.len();
        if count == 0 {
            return Ok(None);
        }
        let mut columns: Vec<ArrayRef> = Vec::with_capacity(self.schema.fields().len());
        for (column, field) in self.columns.iter().zip(self.schema.fields()) {
            let values: ArrayRef = match column {
                SinkColumn::Delta(index) => Arc::clone(delta.batch.column(*index)),
                SinkColumn::OneRow => Arc::new(Int16Array::from(vec![0; count])),
            };
            columns.push(stored(values, field.data_type()).map_err(|error| delta.blame(count - 1, error))?);
        }
        columns.push(Arc::new(delta.rowtime.clone().with_timezone("UTC")));
        if self.has_tombstones {
            let tombstones: BooleanArray = match &delta.weights {
                Weights::Ones => BooleanArray::from(vec![false; count]),
                Weights::Each(_) => (0..count).map(|row| Some(delta.weights.is_gone(row))).collect(),
            };
            columns.push(Arc::new(tombstones));
        }
        let options = RecordBatchOptions::new().with_row_count(Some(count));
        let batch = RecordBatch::try_new_with_options(Arc::clone(&self.schema), columns, &options);
        Ok(Some(batch.map_err(arrow_error)?))
    }

    /// True where rows come and go, and their last form is written.
    pub(crate) fn merges(&self) -> bool {
        self.merged.is_some()
    }

    /// True for the table of an aggregate without groups.
    pub(crate) fn has_one_row(&self) -> bool {
        self.columns.contains(&SinkColumn::OneRow)
    }

    /// For the fingerprint.
    pub(crate) fn text(&self) -> String {
        let types: Vec<String> = self.schema.fields().iter().map(|field| field.data_type().to_string()).collect();
        let merged = self.merged.as_ref().map(|merged| &merged.key);
        format!("sink({:?}; {}; {} {merged:?})", self.columns, types.join(", "), self.has_tombstones)
    }
}

/// `values` as the stored type; an error where one does not fit.
fn stored(values: ArrayRef, data_type: &DataType) -> Result<ArrayRef, SqlError> {
    if values.data_type() == data_type {
        return Ok(values);
    }
    let options = CastOptions { safe: false, ..CastOptions::default() };
    compute::cast_with_options(&values, data_type, &options).map_err(arrow_error)
}
