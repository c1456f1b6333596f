//! Projection and filter of rows that have a key and change: a new form of each row, and tombstones.
//!
//! Owns which keys are shown, so that a row that stops passing a filter (WHERE over a table, HAVING) goes away exactly
//! once. Leaves out the stages themselves (`map`). State: the shown keys, kept only when a stage filters.

use super::bounds::WindowBounds;
use super::delta::{Delta, NEVER, Origin, Weights, arrow_error, downcast};
use super::expression::evaluate_predicate;
use super::map::Stage;
use super::operator::{Merging, Operator, only};
use super::part::Part;
use super::save::{StateReader, StateWriter};
use super::slots::{KeyBytes, KeyCodec, Slots};
use crate::error::SqlError;
use crate::types::canonical;
use arrow::array::{Array, ArrayRef, Int8Array, RecordBatch, RecordBatchOptions, UInt32Array};
use arrow::compute;
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use datafusion::common::HashMap;
use datafusion::common::hash_map::Entry;
use millstream_catalog::model::ByteSize;
use std::sync::Arc;

/// Stages over rows with a key.
///
/// In: any columns, the key among them, +1 for a row's new form and −1 for a row that went away. Out: the columns of the
/// last stage, then the key columns; −1 for a key whose row went away, with NULL in all columns but the key. One row
/// per key and step, in the order of the keys' first changes.
#[derive(Debug)]
pub(crate) struct KeyedMap {
    key: Vec<usize>,
    /// Of the key.
    window: Option<WindowBounds>,
    stages: Vec<Stage>,
    schema: SchemaRef,
    shown: Option<Shown>,
}

#[derive(Debug)]
struct Shown {
    slots: Slots,
    is_shown: Vec<bool>,
}

impl KeyedMap {
    /// Stages over rows of `input` identified by the columns at `key`.
    pub(crate) fn new(
        input: &Schema,
        key: Vec<usize>,
        window: Option<WindowBounds>,
        stages: Vec<Stage>,
    ) -> Result<Self, SqlError> {
        let key_fields: Vec<Field> = key.iter().map(|index| input.field(*index).clone()).collect();
        let projected = stages.iter().rev().find_map(|stage| match stage {
            Stage::Project { schema, .. } => Some(schema.as_ref()),
            Stage::Filter(_) => None,
        });
        let values = projected.unwrap_or(input).fields().iter().map(|field| field.as_ref().clone().with_nullable(true));
        let schema = Schema::new(values.chain(key_fields.iter().cloned()).collect::<Vec<_>>());
        let shown = match stages.iter().any(|stage| matches!(stage, Stage::Filter(_))) {
            false => None,
            true => {
                let types: Vec<DataType> = key_fields.iter().map(|field| field.data_type().clone()).collect();
                Some(Shown { slots: Slots::new(&types)?, is_shown: Vec::new() })
            }
        };
        Ok(Self { key, window, stages, schema: Arc::new(schema), shown })
    }

    fn key_columns(&self, batch: &RecordBatch) -> Vec<ArrayRef> {
        self.key.iter().map(|index| Arc::clone(batch.column(*index))).collect()
    }

    /// The rows that pass, and for each input row its position among them.
    fn pass(&self, input: &Delta) -> Result<(Delta, Vec<Option<u32>>), SqlError> {
        let mut kept: Vec<u32> = (0..input.len() as u32).filter(|row| !input.weights.is_gone(*row as usize)).collect();
        let mut passed = match kept.len() == input.len() {
            true => input.clone(),
            false => input.take(&UInt32Array::from(kept.clone()))?,
        };
        for stage in &self.stages {
            if let Stage::Filter(predicate) = stage {
                let mask = evaluate_predicate(predicate.as_ref(), &passed)?;
                let mut is_kept = (0..mask.len()).map(|row| mask.is_valid(row) && mask.value(row));
                kept.retain(|_| is_kept.next() == Some(true));
                passed = passed.filter(&mask)?;
            } else {
                passed = stage.apply(passed)?;
            }
        }
        let mut positions = vec![None; input.len()];
        for (position, row) in kept.into_iter().enumerate() {
            positions[row as usize] = Some(position as u32);
        }
        Ok((passed, positions))
    }

    /// A new form of each changed row, or its end.
    fn changes(&mut self, input: Delta) -> Result<Delta, SqlError> {
        let (passed, positions) = self.pass(&input)?;
        let columns = self.key_columns(&input.batch);
        let types: Vec<DataType> = columns.iter().map(|column| column.data_type().clone()).collect();
        let canonical: Vec<ArrayRef> = columns.iter().map(|column| canonical(Arc::clone(column))).collect();
        let keys = KeyCodec::new(&types)?.encode(&canonical)?;
        let ends = self.window_ends(&columns);
        let (mut sources, mut rows, mut weights) = (Vec::new(), Vec::new(), Vec::new());
        for row in last_rows(&keys, input.len()) {
            let position = positions[row];
            let is_wanted = match &mut self.shown {
                None => true,
                Some(shown) => {
                    let end = ends.as_ref().map(|ends| ends[row]);
                    let was_shown = shown.note(keys.get(row), position.is_some(), end);
                    was_shown || position.is_some()
                }
            };
            if is_wanted {
                sources.push(position);
                rows.push(row as u32);
                weights.push(if position.is_some() { 1_i8 } else { -1 });
            }
        }
        let is_whole = rows.len() == input.len() && passed.len() == input.len();
        let sources = UInt32Array::from(sources);
        let rows = UInt32Array::from(rows);
        // Where every row is the only one of its key, as those of aggregates are, all of them come as they are.
        let take = |column: &ArrayRef, indexes: &UInt32Array| match is_whole {
            true => Ok(Arc::clone(column)),
            false => compute::take(column, indexes, None).map_err(arrow_error),
        };
        let mut out = Vec::with_capacity(self.schema.fields().len());
        for column in passed.batch.columns() {
            out.push(take(column, &sources)?);
        }
        for column in &columns {
            out.push(take(column, &rows)?);
        }
        let options = RecordBatchOptions::new().with_row_count(Some(rows.len()));
        let batch = RecordBatch::try_new_with_options(Arc::clone(&self.schema), out, &options);
        Ok(Delta {
            batch: batch.map_err(arrow_error)?,
            rowtime: downcast(&compute::take(&input.rowtime, &rows, None).map_err(arrow_error)?)?,
            weights: if sources.null_count() == 0 { Weights::Ones } else { Weights::Each(Int8Array::from(weights)) },
            rows: Some(
                rows.values().iter().map(|row| input.input_row(*row as usize) as u32).collect::<Vec<_>>().into(),
            ),
            clock: None,
            origin: input.origin,
        })
    }

    fn window_ends(&self, keys: &[ArrayRef]) -> Option<Vec<i64>> {
        self.window.and_then(|window| window.closes(keys))
    }
}

/// The last row of each key, in the order of the keys' first rows.
fn last_rows(keys: &KeyBytes, count: usize) -> Vec<usize> {
    let mut last: Vec<usize> = Vec::with_capacity(count);
    let mut index: HashMap<&[u8], usize> = HashMap::with_capacity(count);
    for row in 0..count {
        match index.entry(keys.get(row)) {
            Entry::Occupied(found) => last[*found.get()] = row,
            Entry::Vacant(vacant) => {
                vacant.insert(last.len());
                last.push(row);
            }
        }
    }
    last
}

impl Shown {
    /// Notes whether the row of `key` is shown now; tells whether it was before.
    fn note(&mut self, key: &[u8], is_shown: bool, window_end: Option<i64>) -> bool {
        let slot = match (self.slots.find(key, window_end), is_shown) {
            (Some(slot), _) => slot,
            (None, false) => return false,
            (None, true) => {
                let found = self.slots.insert(key, window_end);
                self.is_shown.resize(self.slots.capacity(), false);
                self.is_shown[found.slot as usize] = false;
                found.slot
            }
        };
        let was_shown = std::mem::replace(&mut self.is_shown[slot as usize], is_shown);
        if !is_shown && window_end.is_none() {
            self.slots.remove(slot);
        }
        was_shown
    }
}

impl Operator for KeyedMap {
    fn step(&mut self, inputs: Vec<Delta>, origin: &Arc<Origin>) -> Result<Delta, SqlError> {
        let output = self.changes(only(inputs)?);
        if let (Some(shown), true) = (&mut self.shown, self.window.is_some() && origin.end != NEVER) {
            shown.slots.remove_until(origin.end);
        }
        output
    }

    fn save(&self, state: &mut StateWriter, part: Part) -> Result<(), SqlError> {
        let Some(shown) = &self.shown else { return Ok(()) };
        let live: Vec<u32> =
            shown.slots.live_of(part).into_iter().filter(|slot| shown.is_shown[*slot as usize]).collect();
        // There may be no key columns; a batch must have one.
        let numbers: ArrayRef = Arc::new(UInt32Array::from_iter_values(0..live.len() as u32));
        let mut columns: Vec<(String, ArrayRef)> = vec![("number".to_owned(), numbers)];
        for (index, column) in shown.slots.columns(&live)?.into_iter().enumerate() {
            columns.push((format!("key{index}"), column));
        }
        state.put(
            "shown",
            &RecordBatch::try_from_iter_with_nullable(columns.into_iter().map(|(name, column)| (name, column, true)))
                .map_err(arrow_error)?,
        )
    }

    fn restore(&mut self, state: &mut StateReader) -> Result<(), SqlError> {
        if self.shown.is_none() {
            return Ok(());
        }
        let batch = state.take("shown")?;
        let columns: Vec<ArrayRef> = batch.columns().iter().skip(1).cloned().collect();
        let ends = self.window_ends(&columns);
        let Some(shown) = &mut self.shown else { return Ok(()) };
        let keys = shown.slots.codec().encode(&columns)?;
        for row in 0..batch.num_rows() {
            shown.note(keys.get(row), true, ends.as_ref().map(|ends| ends[row]));
        }
        Ok(())
    }

    fn fresh(&self) -> Result<Option<Box<dyn Operator>>, SqlError> {
        let first = self.schema.fields().len() - self.key.len();
        let types: Vec<DataType> =
            self.schema.fields().iter().skip(first).map(|field| field.data_type().clone()).collect();
        let shown = match self.shown {
            Some(_) => Some(Shown { slots: Slots::new(&types)?, is_shown: Vec::new() }),
            None => return Ok(None),
        };
        Ok(Some(Box::new(Self {
            key: self.key.clone(),
            window: self.window,
            stages: self.stages.clone(),
            schema: Arc::clone(&self.schema),
            shown,
        })))
    }

    fn hashes(&self, _: usize, delta: &Delta) -> Result<Vec<u64>, SqlError> {
        let columns = self.key_columns(&delta.batch).into_iter().map(canonical).collect::<Vec<_>>();
        let types: Vec<DataType> = columns.iter().map(|column| column.data_type().clone()).collect();
        Ok(KeyCodec::new(&types)?.encode(&columns)?.hashes(delta.len()))
    }

    fn merging(&self) -> Merging {
        Merging::GoneFirst
    }

    fn due(&self) -> i64 {
        self.shown.as_ref().map_or(i64::MAX, |shown| shown.slots.due())
    }

    fn is_stateful(&self) -> bool {
        self.shown.is_some()
    }

    fn state_bytes(&self) -> ByteSize {
        self.shown.as_ref().map_or(ByteSize::ZERO, |shown| ByteSize::of(shown.slots.bytes()))
    }

    fn fingerprint(&self) -> String {
        let stages: Vec<String> = self.stages.iter().map(Stage::text).collect();
        format!("keyed({:?}; {})", self.key, stages.join("; "))
    }
}
