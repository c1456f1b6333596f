//! The join of a stream with a table: each event finds the table's rows as of its own commit.
//!
//! Only the stream triggers. Within a step, events and changes of the table are taken in the order they were committed in.
//! Leaves out joins in which both sides trigger (`join`). State: the table's rows.

use super::delta::{Delta, Origin, Weights, arrow_error};
use super::expression::{evaluate, evaluate_predicate};
use super::join::{JoinColumn, JoinInput, Side, key_types};
use super::operator::{Operator, both};
use super::part::{Part, hash};
use super::rows::RowCodec;
use super::save::{StateReader, StateWriter};
use super::slots::KeyCodec;
use super::store::{Came, Kept, Store};
use crate::error::SqlError;
use crate::types::canonical;
use arrow::array::{Array, ArrayRef, RecordBatch, RecordBatchOptions, UInt32Array};
use arrow::datatypes::SchemaRef;
use datafusion::physical_expr::PhysicalExpr;
use millstream_catalog::model::ByteSize;
use std::sync::Arc;

/// What a lookup is made of.
#[derive(Clone)]
pub(crate) struct LookupSpec {
    /// The stream: the first input of the operator, the left one of its columns.
    pub(crate) stream: JoinInput,
    /// The table, its rows with −1 as they were.
    pub(crate) table: JoinInput,
    /// Whether events without a row come out too.
    pub(crate) is_outer: bool,
    /// The rest of the condition, over the visible columns of the left, then of the right as the statement has them.
    pub(crate) filter: Option<Arc<dyn PhysicalExpr>>,
    /// Those columns.
    pub(crate) filter_schema: SchemaRef,
    /// Which side of the statement's join the stream is.
    pub(crate) side: Side,
    /// The columns that come out; `Left` is the stream.
    pub(crate) columns: Vec<JoinColumn>,
    /// Their schema.
    pub(crate) schema: SchemaRef,
}

/// Finds rows of a table for the events of a stream.
pub(crate) struct Lookup {
    spec: LookupSpec,
    keys: KeyCodec,
    codec: RowCodec,
    table: Store,
}

/// An event's position, and a row it may match.
type Candidates = Vec<(u32, Option<Arc<[u8]>>)>;

impl Lookup {
    /// An empty table.
    pub(crate) fn new(spec: LookupSpec) -> Result<Self, SqlError> {
        Ok(Self {
            keys: KeyCodec::new(&key_types(&spec.stream)?)?,
            codec: RowCodec::new(Arc::clone(&spec.table.schema))?,
            table: Store::of_going(),
            spec,
        })
    }

    fn keys_of(&self, input: &JoinInput, delta: &Delta) -> Result<Vec<Option<Arc<[u8]>>>, SqlError> {
        let columns = input.keys.iter().map(|key| Ok(canonical(evaluate(key.as_ref(), delta)?)));
        let columns = columns.collect::<Result<Vec<ArrayRef>, SqlError>>()?;
        let bytes = self.keys.encode(&columns)?;
        let is_null = |row: usize| columns.iter().any(|column| column.is_null(row));
        Ok((0..delta.len()).map(|row| (!is_null(row)).then(|| Arc::from(bytes.get(row)))).collect())
    }

    /// Takes events and changes in the order of commit.
    fn candidates(&mut self, stream: &Delta, table: &Delta) -> Result<Candidates, SqlError> {
        let events = self.keys_of(&self.spec.stream, stream)?;
        let changes = self.keys_of(&self.spec.table, table)?;
        let rows = self.codec.encode(&table.batch)?;
        let mut candidates: Candidates = Vec::new();
        // What a join gives does not come in the order of its events, nor what an operator in parts does.
        let in_order = |delta: &Delta| {
            let mut order: Vec<usize> = (0..delta.len()).collect();
            order.sort_by_key(|row| delta.input_row(*row));
            order
        };
        let mut coming = in_order(table).into_iter().peekable();
        for event in in_order(stream) {
            let key = &events[event];
            while let Some(next) = coming.next_if(|next| table.input_row(*next) < stream.input_row(event)) {
                self.change(table, next, rows.get(next), &changes[next]);
            }
            let found = key.as_ref().map_or(&[] as &[u32], |key| self.table.matching(key));
            let found = found.iter().filter_map(|id| self.table.entry(*id));
            candidates.extend(found.map(|entry| (event as u32, Some(Arc::clone(&entry.row)))));
        }
        coming.for_each(|next| self.change(table, next, rows.get(next), &changes[next]));
        candidates.sort_by_key(|(event, _)| *event);
        Ok(candidates)
    }

    fn change(&mut self, table: &Delta, at: usize, row: &[u8], key: &Option<Arc<[u8]>>) {
        if table.weights.is_gone(at) {
            self.table.remove(row);
        } else {
            let rowtime = table.rowtime.value(at);
            self.table.insert(Kept {
                row: row.into(),
                key: key.clone(),
                rowtime,
                expires: i64::MAX,
                matches: 0,
                came: Came::default(),
            });
        }
    }

    /// The candidates for which the rest of the condition is true.
    fn filtered(&self, stream: &Delta, candidates: Candidates) -> Result<Candidates, SqlError> {
        let Some(filter) = &self.spec.filter else { return Ok(candidates) };
        if candidates.is_empty() {
            return Ok(candidates);
        }
        let events = UInt32Array::from_iter_values(candidates.iter().map(|(event, _)| *event));
        let events = stream.take(&events)?;
        let rows = self.codec.decode_some(candidates.iter().map(|(_, row)| row.as_deref()))?;
        let own = events.batch.columns().iter().take(self.spec.stream.visible).cloned();
        let found = rows.into_iter().take(self.spec.table.visible);
        let columns: Vec<ArrayRef> = match self.spec.side {
            Side::Left => own.chain(found).collect(),
            Side::Right => found.chain(own).collect(),
        };
        let options = RecordBatchOptions::new().with_row_count(Some(candidates.len()));
        let batch = RecordBatch::try_new_with_options(Arc::clone(&self.spec.filter_schema), columns, &options);
        let mask = evaluate_predicate(filter.as_ref(), &Delta { batch: batch.map_err(arrow_error)?, ..events })?;
        let mut is_true = (0..mask.len()).map(|row| mask.is_valid(row) && mask.value(row));
        Ok(candidates.into_iter().filter(|_| is_true.next() == Some(true)).collect())
    }

    /// With the events that found nothing.
    fn whole(&self, stream: &Delta, candidates: Candidates) -> Candidates {
        if !self.spec.is_outer {
            return candidates;
        }
        let mut found = candidates.into_iter().peekable();
        let mut whole = Vec::with_capacity(stream.len());
        for event in 0..stream.len() as u32 {
            let before = whole.len();
            while let Some(candidate) = found.next_if(|(at, _)| *at == event) {
                whole.push(candidate);
            }
            if whole.len() == before {
                whole.push((event, None));
            }
        }
        whole
    }

    fn output(&self, stream: &Delta, found: &Candidates) -> Result<Delta, SqlError> {
        let events = UInt32Array::from_iter_values(found.iter().map(|(event, _)| *event));
        let taken = stream.take(&events)?;
        let rows = self.codec.decode_some(found.iter().map(|(_, row)| row.as_deref()))?;
        let column = |column: &JoinColumn| -> Result<ArrayRef, SqlError> {
            let found = match column {
                JoinColumn::Of(Side::Left, at) => taken.batch.columns().get(*at),
                JoinColumn::Of(Side::Right, at) => rows.get(*at),
                JoinColumn::Mark | JoinColumn::HasLeft => None,
            };
            found.cloned().ok_or_else(|| SqlError::internal("a lookup without a column"))
        };
        let columns = self.spec.columns.iter().map(column).collect::<Result<Vec<_>, _>>()?;
        let options = RecordBatchOptions::new().with_row_count(Some(found.len()));
        let batch = RecordBatch::try_new_with_options(Arc::clone(&self.spec.schema), columns, &options);
        Ok(Delta { batch: batch.map_err(arrow_error)?, weights: Weights::Ones, ..taken })
    }
}

impl Operator for Lookup {
    fn step(&mut self, inputs: Vec<Delta>, _: &Arc<Origin>) -> Result<Delta, SqlError> {
        let (stream, table) = both(inputs)?;
        let candidates = self.candidates(&stream, &table)?;
        let found = self.filtered(&stream, candidates)?;
        let found = self.whole(&stream, found);
        self.output(&stream, &found)
    }

    fn save(&self, state: &mut StateWriter, part: Part) -> Result<(), SqlError> {
        self.table.save("table", &self.codec, state, |entry| part.has(entry.key()))
    }

    fn restore(&mut self, state: &mut StateReader) -> Result<(), SqlError> {
        let mut table = std::mem::take(&mut self.table);
        let keys = |batch: &RecordBatch| self.keys_of(&self.spec.table, &Delta::of_batch(batch.clone()));
        let restored = table.restore("table", &self.codec, state, keys);
        self.table = table;
        restored
    }

    fn fresh(&self) -> Result<Option<Box<dyn Operator>>, SqlError> {
        Ok(Some(Box::new(Self::new(self.spec.clone())?)))
    }

    fn hashes(&self, input: usize, delta: &Delta) -> Result<Vec<u64>, SqlError> {
        let keys = self.keys_of(if input == 0 { &self.spec.stream } else { &self.spec.table }, delta)?;
        Ok(keys.iter().map(|key| hash(key.as_deref().unwrap_or_default())).collect())
    }

    fn is_stateful(&self) -> bool {
        true
    }

    fn state_bytes(&self) -> ByteSize {
        ByteSize::of(self.table.bytes())
    }

    fn fingerprint(&self) -> String {
        let keys = |input: &JoinInput| input.keys.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
        let filter = self.spec.filter.as_ref().map_or(String::new(), ToString::to_string);
        format!(
            "lookup({:?} {}; {} in {} of {}; {filter}; {:?})",
            self.spec.side,
            self.spec.is_outer,
            keys(&self.spec.stream),
            keys(&self.spec.table),
            self.codec.text(),
            self.spec.columns
        )
    }
}
