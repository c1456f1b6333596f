//! Continuous GROUP BY, with or without a window.
//!
//! Owns the groups, which of them a step touches, which have rows, lateness, and the letting go of closed windows. Leaves out the
//! aggregates' own state (`call`), event time (`time`), HAVING and the select list (`keyed`). State lives in memory.

use super::bounds::WindowBounds;
use super::call::{Arguments, Call, Rows, Touched};
use super::delta::{Delta, NEVER, Origin, Weights, arrow_error, concat, downcast, sql_error, with_weight};
use super::expression::evaluate;
use super::operator::{Merging, Operator, only};
use super::part::Part;
use super::save::{StateReader, StateWriter};
use super::slots::{Found, KeyCodec, Slots};
use crate::error::SqlError;
use crate::types::canonical;
use arrow::array::make_comparator;
use arrow::array::{
    ArrayRef, BooleanArray, Int64Array, RecordBatch, RecordBatchOptions, TimestampMicrosecondArray, UInt32Array,
};
use arrow::compute::SortOptions;
use arrow::datatypes::{DataType, Schema, SchemaRef};
use datafusion::logical_expr::EmitTo;
use datafusion::physical_expr::PhysicalExpr;
use datafusion::physical_plan::aggregates::group_values::new_group_values;
use datafusion::physical_plan::aggregates::order::GroupOrdering;
use millstream_catalog::model::{ByteSize, RowCount};
use std::sync::Arc;

/// What is told of a row with a key that changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Changes {
    /// Its new form, or that it is gone.
    Forms,
    /// Its old form with −1 and its new one with +1.
    Both,
}

/// Groups rows and keeps their aggregates.
///
/// Out: per step, what changed of each touched group, in the order of first touch: the grouping columns, then the
/// aggregates; event time is the group's greatest. A group without rows is gone, but for the only one of an aggregate
/// without grouping expressions.
///
/// An event is late, and dropped, when the query's time at it has reached the end of its window plus the grace period:
/// with windows of 60 and a grace of 10, an event at 59 is taken while time is 69 and late once time is 70.
pub(crate) struct Aggregate {
    keys: Vec<Arc<dyn PhysicalExpr>>,
    key_schema: SchemaRef,
    schema: SchemaRef,
    window: Option<WindowBounds>,
    calls: Vec<Call>,
    rows: Rows,
    changes: Changes,
    /// The keys of groups that are there without rows too.
    lasting: Vec<ArrayRef>,
    /// Their slots, once they are there.
    lasting_slots: Vec<u32>,
    slots: Slots,
    /// Greatest event time by slot.
    rowtime: Vec<i64>,
    /// Rows by slot, where they may go.
    counts: Vec<i64>,
    late_rows: RowCount,
}

/// What an aggregate is made of.
pub(crate) struct Grouping {
    /// The grouping expressions.
    pub(crate) keys: Vec<Arc<dyn PhysicalExpr>>,
    /// The window among them.
    pub(crate) window: Option<WindowBounds>,
    /// The aggregates.
    pub(crate) calls: Vec<Call>,
    /// The schema of the keys, then of the calls' results.
    pub(crate) schema: SchemaRef,
    /// Whether input rows go.
    pub(crate) rows: Rows,
    /// What comes out.
    pub(crate) changes: Changes,
    /// The keys of groups that are there without rows too; no columns for none.
    pub(crate) lasting: Vec<ArrayRef>,
}

/// The form of the touched groups before a step.
struct Before {
    columns: Vec<ArrayRef>,
    rowtime: Vec<i64>,
    /// Which of them there were.
    is_there: Vec<bool>,
}

/// The rows of a step, ready to be grouped.
struct Evaluated {
    delta: Delta,
    keys: Vec<ArrayRef>,
    /// Per call.
    arguments: Vec<Arguments>,
    /// Rows that are not among them.
    late_rows: RowCount,
}

/// The groups of one step.
struct Interned {
    /// Per row, the position of its group.
    groups: Vec<usize>,
    /// Per group, the key columns.
    keys: Vec<ArrayRef>,
    count: usize,
}

impl Aggregate {
    /// No groups yet.
    pub(crate) fn new(grouping: Grouping) -> Result<Self, SqlError> {
        let Grouping { keys, window, calls, schema, rows, changes, lasting } = grouping;
        let key_fields = schema.fields().iter().take(keys.len()).cloned().collect::<Vec<_>>();
        let types: Vec<DataType> = key_fields.iter().map(|field| field.data_type().clone()).collect();
        Ok(Self {
            key_schema: Arc::new(Schema::new(key_fields)),
            schema,
            window,
            calls,
            rows,
            changes,
            lasting,
            lasting_slots: Vec::new(),
            slots: Slots::new(&types)?,
            rowtime: Vec::new(),
            counts: Vec::new(),
            late_rows: RowCount::ZERO,
            keys,
        })
    }

    fn is_global(&self) -> bool {
        self.keys.is_empty()
    }

    /// Whether a group is there without rows.
    fn has_lasting(&self) -> bool {
        self.is_global() || !self.lasting.is_empty()
    }

    fn key_columns(&self, delta: &Delta) -> Result<Vec<ArrayRef>, SqlError> {
        self.keys.iter().map(|key| Ok(canonical(evaluate(key.as_ref(), delta)?))).collect()
    }

    /// The position of a window that shares its events with others.
    fn shared_window(&self) -> Option<usize> {
        self.window.filter(|window| window.is_shared).map(|window| window.key)
    }

    /// What tells the parts of rows with these keys. All windows of an event are of one part, which knows whether it is late
    /// for all of them.
    fn part_hashes(&self, keys: &[ArrayRef], rows: usize) -> Result<Vec<u64>, SqlError> {
        let Some(shared) = self.shared_window() else {
            return Ok(self.slots.codec().encode(keys)?.hashes(rows));
        };
        let keys: Vec<ArrayRef> =
            keys.iter().enumerate().filter(|(at, _)| *at != shared).map(|(_, key)| Arc::clone(key)).collect();
        let types: Vec<DataType> = keys.iter().map(|key| key.data_type().clone()).collect();
        Ok(KeyCodec::new(&types)?.encode(&keys)?.hashes(rows))
    }

    /// When the window of each row goes, by the query's time.
    fn closes(&self, keys: &[ArrayRef]) -> Result<Option<Vec<i64>>, SqlError> {
        let Some(window) = self.window else { return Ok(None) };
        let closes = window.closes(keys);
        closes.map(Some).ok_or_else(|| SqlError::internal("no window end among the groups"))
    }

    /// True for the rows whose window is open at their time; `None` when all are.
    fn open_rows(&self, delta: &Delta, keys: &[ArrayRef]) -> Result<Option<BooleanArray>, SqlError> {
        let Some(closes) = self.closes(keys)? else { return Ok(None) };
        let times = delta.times();
        let is_open = |(time, close): (&i64, &i64)| time < close;
        if times.iter().zip(&closes).all(is_open) {
            return Ok(None);
        }
        Ok(Some(BooleanArray::from(times.iter().zip(&closes).map(is_open).collect::<Vec<bool>>())))
    }

    /// Numbers the groups of the rows in the order of their first rows; those that last come before, at first.
    fn intern(&self, keys: &[ArrayRef], rows: usize, is_first: bool) -> Result<Interned, SqlError> {
        if self.is_global() {
            return Ok(Interned { groups: vec![0; rows], keys: Vec::new(), count: 1 });
        }
        let ordering = GroupOrdering::None;
        let mut values = new_group_values(Arc::clone(&self.key_schema), &ordering).map_err(sql_error)?;
        let mut groups = Vec::with_capacity(rows);
        if is_first && !self.lasting.is_empty() {
            values.intern(&self.lasting, &mut groups).map_err(sql_error)?;
        }
        values.intern(keys, &mut groups).map_err(sql_error)?;
        let count = values.len();
        Ok(Interned { groups, keys: values.emit(EmitTo::All).map_err(sql_error)?, count })
    }

    /// The slots of so many keys.
    fn find(&mut self, keys: &[ArrayRef], count: usize) -> Result<Vec<Found>, SqlError> {
        let bytes = self.slots.codec().encode(keys)?;
        let closes = self.closes(keys)?;
        let found = (0..count).map(|row| {
            let close = closes.as_ref().map(|closes| closes[row]);
            self.slots.insert(bytes.get(row), close)
        });
        let found: Vec<Found> = found.collect();
        self.rowtime.resize(self.slots.capacity(), NEVER);
        if self.rows == Rows::Go {
            self.counts.resize(self.slots.capacity(), 0);
        }
        for found in found.iter().filter(|found| found.is_new) {
            self.rowtime[found.slot as usize] = NEVER;
            if let Some(count) = self.counts.get_mut(found.slot as usize) {
                *count = 0;
            }
        }
        Ok(found)
    }

    /// Finds the slots of the groups that last.
    fn find_lasting(&mut self) -> Result<(), SqlError> {
        let rows = self.lasting.first().map_or(0, |column| column.len());
        if rows > self.lasting_slots.len() {
            let bytes = self.slots.codec().encode(&self.lasting)?;
            self.lasting_slots = (0..rows).filter_map(|row| self.slots.find(bytes.get(row), None)).collect();
        }
        Ok(())
    }

    /// Whether a group has a row in the result.
    fn is_there(&self, found: Found) -> bool {
        match self.rows {
            _ if self.is_global() || self.lasting_slots.contains(&found.slot) => true,
            Rows::Stay | Rows::Merge => true,
            Rows::Go => self.counts[found.slot as usize] > 0,
        }
    }

    /// Raises the groups' event times, and counts their rows; gives each group's last row.
    fn raise(&mut self, delta: &Delta, touched: &Touched) -> Vec<usize> {
        let mut last = vec![0; touched.found.len()];
        for (row, (group, event)) in touched.groups.iter().zip(delta.rowtime.values()).enumerate() {
            let slot = touched.found[*group].slot as usize;
            self.rowtime[slot] = self.rowtime[slot].max(*event);
            last[*group] = row;
            if self.rows == Rows::Go {
                self.counts[slot] += if delta.weights.is_gone(row) { -1 } else { 1 };
            }
        }
        last
    }

    /// The touched groups as they are.
    fn before(&self, interned: &Interned, touched: &Touched) -> Result<Before, SqlError> {
        let mut columns = interned.keys.clone();
        if self.changes == Changes::Both {
            for call in &self.calls {
                columns.push(call.current(touched)?);
            }
        }
        Ok(Before {
            columns,
            rowtime: touched.found.iter().map(|found| self.rowtime[found.slot as usize]).collect(),
            is_there: touched.found.iter().map(|found| !found.is_new && self.is_there(*found)).collect(),
        })
    }

    /// What changed: the new forms of the groups, or their ends.
    fn forms(
        &self,
        delta: &Delta,
        columns: Vec<ArrayRef>,
        touched: &Touched,
        before: &Before,
        last: &[usize],
    ) -> Result<Delta, SqlError> {
        let is_there: Vec<bool> = touched.found.iter().map(|found| self.is_there(*found)).collect();
        let gone: Vec<bool> = is_there.iter().map(|is_there| !is_there).collect();
        let all = self.rows_of(delta, columns, touched, last, Weights::of(&gone))?;
        if !gone.contains(&true) {
            return Ok(all);
        }
        let wanted = is_there.iter().zip(&before.is_there).map(|(is_there, was_there)| Some(*is_there || *was_there));
        all.filter(&wanted.collect())
    }

    /// What changed: the old forms of the groups, then the new ones; nothing of those that are as they were.
    fn both(
        &self,
        delta: &Delta,
        columns: Vec<ArrayRef>,
        touched: &Touched,
        before: Before,
        last: &[usize],
    ) -> Result<Delta, SqlError> {
        let is_there: Vec<bool> = touched.found.iter().map(|found| self.is_there(*found)).collect();
        let mut is_equal: Vec<bool> =
            is_there.iter().zip(&before.is_there).map(|(is_there, was_there)| *is_there && *was_there).collect();
        for (old, new) in before.columns.iter().zip(&columns).skip(self.keys.len()) {
            let order = make_comparator(old, new, SortOptions::default()).map_err(arrow_error)?;
            let same = |(group, is_equal): (usize, &mut bool)| *is_equal = *is_equal && order(group, group).is_eq();
            is_equal.iter_mut().enumerate().for_each(same);
        }
        let picked = |there: &[bool]| {
            let there =
                there.iter().zip(&is_equal).enumerate().filter(|(_, (is_there, is_equal))| **is_there && !**is_equal);
            UInt32Array::from_iter_values(there.map(|(group, _)| group as u32))
        };
        let (gone, come) = (picked(&before.is_there), picked(&is_there));
        if gone.is_empty() {
            let new = self.rows_of(delta, columns, touched, last, Weights::Ones)?;
            return if come.len() == new.len() { Ok(new) } else { new.take(&come) };
        }
        let old = self.rows_of(delta, before.columns, touched, last, Weights::Ones)?;
        let rowtime = before
            .rowtime
            .into_iter()
            .map(|rowtime| if rowtime == NEVER { delta.origin.now.micros() } else { rowtime });
        let old = Delta { rowtime: TimestampMicrosecondArray::from_iter_values(rowtime).with_timezone("UTC"), ..old };
        let new = self.rows_of(delta, columns, touched, last, Weights::Ones)?;
        concat(&[with_weight(old.take(&gone)?, -1), with_weight(new.take(&come)?, 1)])
    }

    /// `columns` of the touched groups as a delta.
    fn rows_of(
        &self,
        delta: &Delta,
        columns: Vec<ArrayRef>,
        touched: &Touched,
        last: &[usize],
        weights: Weights,
    ) -> Result<Delta, SqlError> {
        let options = RecordBatchOptions::new().with_row_count(Some(touched.found.len()));
        let batch = RecordBatch::try_new_with_options(Arc::clone(&self.schema), columns, &options);
        let now = delta.origin.now.micros();
        let rowtime = touched.found.iter().map(|found| match self.rowtime[found.slot as usize] {
            NEVER => now,
            rowtime => rowtime,
        });
        let rows = last.iter().map(|row| if delta.len() == 0 { 0 } else { delta.input_row(*row) as u32 });
        let clock = delta.clock.as_ref().filter(|_| delta.len() > 0);
        Ok(Delta {
            batch: batch.map_err(arrow_error)?,
            rowtime: TimestampMicrosecondArray::from_iter_values(rowtime).with_timezone("UTC"),
            weights,
            rows: Some(UInt32Array::from_iter_values(rows)),
            clock: clock.map(|clock| Int64Array::from_iter_values(last.iter().map(|row| clock.value(*row)))),
            origin: Arc::clone(&delta.origin),
        })
    }

    /// Takes the rows of a step.
    fn take(&mut self, evaluated: Evaluated) -> Result<Delta, SqlError> {
        let Evaluated { delta, keys, arguments, late_rows } = evaluated;
        self.late_rows = self.late_rows.plus(late_rows);
        let is_first = self.has_lasting() && self.slots.capacity() == 0;
        if delta.len() == 0 && !is_first {
            return Ok(Delta::empty(Arc::clone(&self.schema), &delta.origin));
        }
        let mut interned = self.intern(&keys, delta.len(), is_first)?;
        let found = self.find(&interned.keys, interned.count)?;
        self.find_lasting()?;
        let groups = std::mem::take(&mut interned.groups);
        let touched = Touched::new(groups, found, self.slots.capacity());
        let before = self.before(&interned, &touched)?;
        let last = self.raise(&delta, &touched);
        let mut columns = interned.keys;
        for (call, arguments) in self.calls.iter_mut().zip(arguments) {
            columns.push(call.step(arguments, &delta, &touched)?);
        }
        let output = match self.changes {
            Changes::Forms => self.forms(&delta, columns, &touched, &before, &last)?,
            Changes::Both => self.both(&delta, columns, &touched, before, &last)?,
        };
        self.let_go(&touched);
        Ok(output)
    }

    /// Forgets groups without rows. Those of windows stay until the window goes: their place is known there.
    fn let_go(&mut self, touched: &Touched) {
        if self.rows == Rows::Stay || self.window.is_some() {
            return;
        }
        let gone: Vec<u32> =
            touched.found.iter().filter(|found| !self.is_there(**found)).map(|found| found.slot).collect();
        gone.iter().for_each(|slot| self.slots.remove(*slot));
        self.calls.iter_mut().for_each(|call| call.clear(&gone));
    }

    /// Lets go of the windows that are closed when time is `end`.
    fn close(&mut self, end: i64) {
        if self.window.is_none() || end == NEVER {
            return;
        }
        let gone = self.slots.remove_until(end);
        if !gone.is_empty() {
            self.calls.iter_mut().for_each(|call| call.clear(&gone));
        }
    }

    /// How many events no window takes.
    fn refused(&self, delta: &Delta, open: &BooleanArray) -> RowCount {
        if !self.window.is_some_and(|window| window.is_shared) {
            return RowCount::of(open.len() - open.true_count());
        }
        let rows: Vec<usize> = (0..delta.len()).collect();
        let events = rows.chunk_by(|one, other| delta.input_row(*one) == delta.input_row(*other));
        RowCount::of(events.filter(|rows| !rows.iter().any(|row| open.value(*row))).count())
    }

    /// The rows that are not late, with what is computed of each before any state changes.
    fn evaluate(&self, input: Delta) -> Result<Evaluated, SqlError> {
        let keys = self.key_columns(&input)?;
        let (delta, keys, late_rows) = match self.open_rows(&input, &keys)? {
            None => (input, keys, RowCount::ZERO),
            Some(open) => {
                let keys = keys.iter().map(|column| arrow::compute::filter(column, &open));
                let keys = keys.collect::<Result<Vec<_>, _>>().map_err(arrow_error)?;
                (input.filter(&open)?, keys, self.refused(&input, &open))
            }
        };
        let arguments = self.calls.iter().map(|call| call.evaluate(&delta)).collect::<Result<Vec<_>, _>>()?;
        Ok(Evaluated { delta, keys, arguments, late_rows })
    }
}

impl Operator for Aggregate {
    fn step(&mut self, inputs: Vec<Delta>, origin: &Arc<Origin>) -> Result<Delta, SqlError> {
        let evaluated = self.evaluate(only(inputs)?)?;
        let output = self.take(evaluated)?;
        self.close(origin.end);
        Ok(output)
    }

    fn check(&self, inputs: &[Delta]) -> Result<(), SqlError> {
        inputs.iter().try_for_each(|input| self.evaluate(input.clone()).map(drop))
    }

    fn save(&self, state: &mut StateWriter, part: Part) -> Result<(), SqlError> {
        let mut live = match self.shared_window() {
            None => self.slots.live_of(part),
            Some(_) => self.slots.live(),
        };
        if part != Part::WHOLE && self.shared_window().is_some() {
            let hashes = self.part_hashes(&self.slots.columns(&live)?, live.len())?;
            let mut is_wanted = hashes.into_iter().map(|hash| part.takes(hash));
            live.retain(|_| is_wanted.next() == Some(true));
        }
        let rowtime = live.iter().map(|slot| self.rowtime[*slot as usize]);
        let counts = live.iter().map(|slot| self.counts.get(*slot as usize).copied().unwrap_or(0));
        let mut columns: Vec<(String, ArrayRef)> = vec![
            ("rowtime".to_owned(), Arc::new(Int64Array::from_iter_values(rowtime)) as ArrayRef),
            ("count".to_owned(), Arc::new(Int64Array::from_iter_values(counts)) as ArrayRef),
        ];
        for (index, column) in self.slots.columns(&live)?.into_iter().enumerate() {
            columns.push((format!("key{index}"), column));
        }
        let columns = columns.into_iter().map(|(name, column)| (name, column, true));
        state.put("groups", &RecordBatch::try_from_iter_with_nullable(columns).map_err(arrow_error)?)?;
        state.put_late(if part.is_first() { self.late_rows } else { RowCount::ZERO })?;
        for (index, call) in self.calls.iter().enumerate() {
            call.save(&format!("call{index}"), &live, state)?;
        }
        Ok(())
    }

    fn restore(&mut self, state: &mut StateReader) -> Result<(), SqlError> {
        let batch = state.take("groups")?;
        let (rowtime, counts): (Int64Array, Int64Array) = (downcast(batch.column(0))?, downcast(batch.column(1))?);
        let keys: Vec<ArrayRef> = batch.columns().iter().skip(2).cloned().collect();
        self.find(&keys, batch.num_rows())?;
        self.find_lasting()?;
        self.rowtime = rowtime.values().to_vec();
        if self.rows == Rows::Go {
            self.counts = counts.values().to_vec();
        }
        self.late_rows = state.take_late()?;
        for (index, call) in self.calls.iter_mut().enumerate() {
            call.restore(&format!("call{index}"), batch.num_rows(), state)?;
        }
        Ok(())
    }

    fn fresh(&self) -> Result<Option<Box<dyn Operator>>, SqlError> {
        if self.has_lasting() {
            return Ok(None);
        }
        let grouping = Grouping {
            keys: self.keys.clone(),
            window: self.window,
            calls: self.calls.iter().map(Call::fresh).collect::<Result<_, _>>()?,
            schema: Arc::clone(&self.schema),
            rows: self.rows,
            changes: self.changes,
            lasting: Vec::new(),
        };
        Ok(Some(Box::new(Self::new(grouping)?)))
    }

    fn hashes(&self, _: usize, delta: &Delta) -> Result<Vec<u64>, SqlError> {
        self.part_hashes(&self.key_columns(delta)?, delta.len())
    }

    fn merging(&self) -> Merging {
        Merging::GoneFirst
    }

    fn due(&self) -> i64 {
        self.slots.due()
    }

    fn is_stateful(&self) -> bool {
        true
    }

    fn begins_with_row(&self) -> bool {
        self.has_lasting()
    }

    fn state_bytes(&self) -> ByteSize {
        let calls: usize = self.calls.iter().map(Call::bytes).sum();
        let by_slot = (self.rowtime.capacity() + self.counts.capacity()) * 8;
        ByteSize::of(self.slots.bytes() + by_slot + calls)
    }

    fn late_rows(&self) -> RowCount {
        self.late_rows
    }

    fn fingerprint(&self) -> String {
        let keys: Vec<String> = self.keys.iter().map(ToString::to_string).collect();
        let types: Vec<String> = self.schema.fields().iter().map(|field| field.data_type().to_string()).collect();
        let calls: Vec<String> = self.calls.iter().map(Call::text).collect();
        let window = self.window.map_or_else(|| "no window".to_owned(), |window| window.text());
        let lasting = self.lasting.first().map_or(0, |column| column.len());
        let kind = format!("{:?} {:?} {lasting}", self.rows, self.changes);
        format!("aggregate({}; {}; {window}; {}; {kind})", keys.join(", "), calls.join(", "), types.join(", "))
    }
}
