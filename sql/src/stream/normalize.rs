//! New forms of keyed rows as changes: the old form is taken back, the new one comes.
//!
//! A table's topic has the new forms of its rows and their ends only. Owns the current row of each key. Leaves out where
//! keys come from. State: the rows, saved as they are.

use super::delta::{Delta, Origin, Weights, arrow_error, downcast};
use super::operator::{Merging, Operator, only};
use super::part::Part;
use super::rows::RowCodec;
use super::save::{StateReader, StateWriter};
use super::slots::KeyCodec;
use crate::error::SqlError;
use crate::types::canonical;
use arrow::array::{ArrayRef, Int64Array, RecordBatch, TimestampMicrosecondArray, UInt32Array};
use arrow::datatypes::{DataType, SchemaRef};
use datafusion::common::HashMap;
use datafusion::common::hash_map::Entry;
use millstream_catalog::model::ByteSize;
use std::sync::Arc;

/// Memory of a row beside its bytes and those of its key, about.
const ENTRY_BYTES: usize = 80;

/// Current rows by key.
///
/// In: +1 for the new form of a row, −1 for a key whose row is gone. Out, in the same columns: −1 and +1 with whole rows;
/// nothing where a form repeats the last one.
pub(crate) struct Normalize {
    key: Vec<usize>,
    keys: KeyCodec,
    codec: RowCodec,
    rows: HashMap<Box<[u8]>, Row>,
    bytes: usize,
}

struct Row {
    bytes: Box<[u8]>,
    rowtime: i64,
}

impl Normalize {
    /// Of rows of `schema` with the key columns at `key`.
    pub(crate) fn new(schema: SchemaRef, key: Vec<usize>) -> Result<Self, SqlError> {
        let types: Vec<DataType> = key.iter().map(|at| schema.field(*at).data_type().clone()).collect();
        let (keys, codec) = (KeyCodec::new(&types)?, RowCodec::new(schema)?);
        Ok(Self { key, keys, codec, rows: HashMap::new(), bytes: 0 })
    }

    fn put(&mut self, key: &[u8], row: Row) -> Option<Row> {
        self.bytes += row.bytes.len();
        match self.rows.entry(key.into()) {
            Entry::Occupied(mut found) => {
                let old = found.insert(row);
                self.bytes -= old.bytes.len();
                Some(old)
            }
            Entry::Vacant(vacant) => {
                self.bytes += key.len() + ENTRY_BYTES;
                vacant.insert(row);
                None
            }
        }
    }

    fn remove(&mut self, key: &[u8]) -> Option<Row> {
        let old = self.rows.remove(key)?;
        self.bytes -= key.len() + ENTRY_BYTES + old.bytes.len();
        Some(old)
    }
}

impl Operator for Normalize {
    fn step(&mut self, inputs: Vec<Delta>, _: &Arc<Origin>) -> Result<Delta, SqlError> {
        let input = only(inputs)?;
        let columns = self.key.iter().map(|at| canonical(Arc::clone(input.batch.column(*at)))).collect::<Vec<_>>();
        let (keys, rows) = (self.keys.encode(&columns)?, self.codec.encode(&input.batch)?);
        let mut out: Vec<Row> = Vec::with_capacity(input.len());
        let (mut gone, mut places) = (Vec::with_capacity(input.len()), Vec::with_capacity(input.len()));
        for row in 0..input.len() {
            let is_gone = input.weights.is_gone(row);
            let rowtime = input.rowtime.value(row);
            let old = match is_gone {
                true => self.remove(keys.get(row)),
                false => self.put(keys.get(row), Row { bytes: rows.get(row).into(), rowtime }),
            };
            if old.as_ref().is_some_and(|old| !is_gone && *old.bytes == *rows.get(row)) {
                continue;
            }
            if let Some(old) = old {
                out.push(old);
                gone.push(true);
                places.push(row);
            }
            if !is_gone {
                out.push(Row { bytes: rows.get(row).into(), rowtime });
                gone.push(false);
                places.push(row);
            }
        }
        let rowtime = out.iter().map(|row| row.rowtime);
        Ok(Delta {
            batch: self.codec.decode(out.iter().map(|row| row.bytes.as_ref()))?,
            rowtime: TimestampMicrosecondArray::from_iter_values(rowtime).with_timezone("UTC"),
            weights: Weights::of(&gone),
            rows: Some(UInt32Array::from_iter_values(places.iter().map(|row| input.input_row(*row) as u32))),
            clock: None,
            origin: Arc::clone(&input.origin),
        })
    }

    fn save(&self, state: &mut StateWriter, part: Part) -> Result<(), SqlError> {
        // In the order of keys, so that equal states are saved as equal bytes.
        let mut rows: Vec<(&Box<[u8]>, &Row)> = self.rows.iter().filter(|(key, _)| part.has(key)).collect();
        rows.sort_unstable_by_key(|(key, _)| *key);
        let times: ArrayRef = Arc::new(Int64Array::from_iter_values(rows.iter().map(|(_, row)| row.rowtime)));
        state.put("times", &RecordBatch::try_from_iter([("rowtime", times)]).map_err(arrow_error)?)?;
        state.put("rows", &self.codec.decode(rows.iter().map(|(_, row)| row.bytes.as_ref()))?)
    }

    fn restore(&mut self, state: &mut StateReader) -> Result<(), SqlError> {
        let times: Int64Array = downcast(state.take("times")?.column(0))?;
        let batch = state.take("rows")?;
        let columns = self.key.iter().map(|at| canonical(Arc::clone(batch.column(*at)))).collect::<Vec<_>>();
        let (keys, rows) = (self.keys.encode(&columns)?, self.codec.encode(&batch)?);
        for row in 0..batch.num_rows() {
            self.put(keys.get(row), Row { bytes: rows.get(row).into(), rowtime: times.value(row) });
        }
        Ok(())
    }

    fn fresh(&self) -> Result<Option<Box<dyn Operator>>, SqlError> {
        Ok(Some(Box::new(Self::new(Arc::clone(self.codec.schema()), self.key.clone())?)))
    }

    fn merging(&self) -> Merging {
        Merging::Forms
    }

    fn hashes(&self, _: usize, delta: &Delta) -> Result<Vec<u64>, SqlError> {
        let columns = self.key.iter().map(|at| canonical(Arc::clone(delta.batch.column(*at)))).collect::<Vec<_>>();
        Ok(self.keys.encode(&columns)?.hashes(delta.len()))
    }

    /// Its source is a table, which is read whole wherever its rows are kept.
    fn is_shareable(&self) -> bool {
        true
    }

    fn is_stateful(&self) -> bool {
        true
    }

    fn state_bytes(&self) -> ByteSize {
        ByteSize::of(self.bytes)
    }

    fn fingerprint(&self) -> String {
        format!("normalize({:?}; {})", self.key, self.codec.text())
    }
}
