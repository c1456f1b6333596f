//! The join of a stream with a table: each event finds the table's rows as of its own commit.
//!
//! Only the stream triggers. Within a step, events and changes of the table are taken in the order they were committed in.
//! Leaves out joins in which both sides trigger (`join`). State: the table's rows.

use super::condition::Condition;
use super::delta::{Delta, Origin, Weights, arrow_error};
use super::heap::{NONE, Wanted};
use super::join::{JoinColumn, JoinInput, Side, key_types};
use super::operator::{Operator, both};
use super::part::Part;
use super::rows::types_text;
use super::save::{StateReader, StateWriter};
use super::store::{Going, Kept, Keys, Store};
use crate::error::SqlError;
use arrow::array::{RecordBatch, RecordBatchOptions, UInt32Array};
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
    condition: Option<Condition>,
    table: Store,
}

/// An event's position, and the number of a row it may match.
type Candidates = Vec<(u32, u32)>;

impl Lookup {
    /// An empty table.
    pub(crate) fn new(spec: LookupSpec) -> Result<Self, SqlError> {
        let visible = if spec.side == Side::Left { spec.stream.visible } else { spec.table.visible };
        let condition = spec.filter.as_ref().map(|filter| Condition::new(filter, &spec.filter_schema, visible));
        Ok(Self {
            condition: condition.transpose()?,
            table: Store::new(Arc::clone(&spec.table.schema), &key_types(&spec.stream)?, Going::ByValue)?,
            spec,
        })
    }

    fn keys_of(&self, input: &JoinInput, delta: &Delta) -> Result<Keys, SqlError> {
        Keys::of(delta, &input.keys, self.table.key_codec(), false)
    }

    /// Takes events and changes in the order of commit.
    fn candidates(&mut self, stream: &Delta, table: &Delta) -> Result<Candidates, SqlError> {
        let events = self.keys_of(&self.spec.stream, stream)?;
        let changes = self.keys_of(&self.spec.table, table)?;
        let hashes = self.table.hashes(&table.batch)?;
        let (come, mut wanted) = (table.come(), Wanted::new(&table.batch));
        let mut ids = vec![NONE; table.len()];
        self.table.take_in(&table.batch, &come)?.into_iter().zip(come).for_each(|(id, at)| ids[at as usize] = id);
        let mut candidates: Candidates = Vec::new();
        // What a join gives does not come in the order of its events, nor what an operator in parts does.
        let in_order = |delta: &Delta| {
            let mut order: Vec<usize> = (0..delta.len()).collect();
            order.sort_by_key(|row| delta.input_row(*row));
            order
        };
        let mut change = |store: &mut Store, at: usize| -> Result<(), SqlError> {
            if table.weights.is_gone(at) {
                return store.remove(hashes[at], None, &mut wanted, at).map(drop);
            }
            let (key, rowtime) = (changes.get(at), table.rowtime.value(at));
            store.keep(ids[at], Some(hashes[at]), Kept { key, rowtime, expires: i64::MAX, matches: 0, came: None });
            Ok(())
        };
        let mut coming = in_order(table).into_iter().peekable();
        for event in in_order(stream) {
            while let Some(next) = coming.next_if(|next| table.input_row(*next) < stream.input_row(event)) {
                change(&mut self.table, next)?;
            }
            if let Some(key) = events.get(event) {
                candidates.extend(self.table.matching(key).map(|(id, _)| (event as u32, id)));
            }
        }
        coming.try_for_each(|next| change(&mut self.table, next))?;
        candidates.sort_by_key(|(event, _)| *event);
        Ok(candidates)
    }

    /// The candidates for which the rest of the condition is true.
    fn filtered(&self, stream: &Delta, candidates: Candidates) -> Result<Candidates, SqlError> {
        let Some(condition) = self.condition.as_ref().filter(|_| !candidates.is_empty()) else {
            return Ok(candidates);
        };
        let events = UInt32Array::from_iter_values(candidates.iter().map(|(event, _)| *event));
        let ids: Vec<u32> = candidates.iter().map(|(_, id)| *id).collect();
        let holds = condition.holds(self.spec.side, (stream, events), (&self.table, &ids))?;
        Ok(candidates.into_iter().zip(holds.values()).filter(|(_, holds)| *holds).map(|(pair, _)| pair).collect())
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
                whole.push((event, NONE));
            }
        }
        whole
    }

    fn output(&self, stream: &Delta, found: &Candidates) -> Result<Delta, SqlError> {
        let events = UInt32Array::from_iter_values(found.iter().map(|(event, _)| *event));
        let taken = stream.take(&events)?;
        let ids: Vec<u32> = found.iter().map(|(_, id)| *id).collect();
        let is_wanted = |at: &usize| self.spec.columns.contains(&JoinColumn::Of(Side::Right, *at));
        let places: Vec<usize> = (0..self.spec.table.schema.fields().len()).filter(is_wanted).collect();
        let rows = self.table.columns(&ids, places.iter().copied())?;
        let column = |column: &JoinColumn| {
            let found = match column {
                JoinColumn::Of(Side::Left, at) => taken.batch.columns().get(*at),
                JoinColumn::Of(Side::Right, at) => places.binary_search(at).ok().and_then(|at| rows.get(at)),
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
        let output = self.output(&stream, &found)?;
        self.table.end_step()?;
        Ok(output)
    }

    fn save(&self, state: &mut StateWriter, part: Part) -> Result<(), SqlError> {
        let rows: Vec<_> = self.table.rows().filter(|(_, entry)| part.has(self.table.key(entry))).collect();
        self.table.save("table", &rows, state)
    }

    fn restore(&mut self, state: &mut StateReader) -> Result<(), SqlError> {
        let keys = &self.spec.table.keys;
        self.table.restore("table", state, |rows, codec| Keys::of(rows, keys, codec, false).map(Some))
    }

    fn fresh(&self) -> Result<Option<Box<dyn Operator>>, SqlError> {
        Ok(Some(Box::new(Self::new(self.spec.clone())?)))
    }

    fn hashes(&self, input: usize, delta: &Delta) -> Result<Vec<u64>, SqlError> {
        Ok(self.keys_of(if input == 0 { &self.spec.stream } else { &self.spec.table }, delta)?.hashes(delta.len()))
    }

    fn is_shareable(&self) -> bool {
        true
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
            types_text(&self.spec.table.schema),
            self.spec.columns
        )
    }
}
