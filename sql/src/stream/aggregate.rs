//! Continuous GROUP BY, with or without a tumbling window.
//!
//! Owns the groups, which of them a step touches, lateness, and the letting go of closed windows. Leaves out the
//! aggregates' own state (`call`), event time (`time`), HAVING and the select list (`keyed`). State lives in memory and
//! is saved whole.

use super::call::{Call, Touched};
use super::delta::{Delta, Weights, arrow_error, downcast, sql_error};
use super::expression::evaluate;
use super::operator::Operator;
use super::save::{StateReader, StateWriter};
use super::slots::{Found, Slots};
use crate::error::SqlError;
use crate::types::canonical;
use arrow::array::{
    ArrayRef, BooleanArray, Int64Array, RecordBatch, RecordBatchOptions, TimestampMicrosecondArray, UInt32Array,
};
use arrow::datatypes::{DataType, Schema, SchemaRef};
use datafusion::logical_expr::EmitTo;
use datafusion::physical_expr::PhysicalExpr;
use datafusion::physical_plan::aggregates::group_values::new_group_values;
use datafusion::physical_plan::aggregates::order::GroupOrdering;
use millstream_catalog::model::{ByteSize, RowCount, Span, Timestamp};
use std::sync::Arc;

/// A group without events has no event time.
const NO_EVENT: i64 = i64::MIN;

/// Where the window's end is among the grouping expressions, and how long after it late events are taken.
#[derive(Debug, Clone, Copy)]
pub(crate) struct WindowBounds {
    /// Position of `windowend` among the grouping expressions.
    pub(crate) end: usize,
    /// The grace period.
    pub(crate) grace: Span,
}

/// Groups rows and keeps their aggregates.
///
/// In: rows that are never taken back. Out: per step, the new form of each touched group, in the order of first touch:
/// the grouping columns, then the aggregates; event time is the group's greatest.
///
/// An event is late, and dropped, when the query's time at it has reached the end of its window plus the grace period:
/// with windows of 60 and a grace of 10, an event at 59 is taken while time is 69 and late once time is 70.
pub(crate) struct Aggregate {
    keys: Vec<Arc<dyn PhysicalExpr>>,
    key_schema: SchemaRef,
    schema: SchemaRef,
    window: Option<WindowBounds>,
    calls: Vec<Call>,
    slots: Slots,
    /// Greatest event time by slot.
    rowtime: Vec<i64>,
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
    /// Groups by `keys`; `schema` is that of the keys, then of the calls' results.
    pub(crate) fn new(
        keys: Vec<Arc<dyn PhysicalExpr>>,
        window: Option<WindowBounds>,
        calls: Vec<Call>,
        schema: SchemaRef,
    ) -> Result<Self, SqlError> {
        let key_fields = schema.fields().iter().take(keys.len()).cloned().collect::<Vec<_>>();
        let types: Vec<DataType> = key_fields.iter().map(|field| field.data_type().clone()).collect();
        Ok(Self {
            key_schema: Arc::new(Schema::new(key_fields)),
            schema,
            window,
            calls,
            slots: Slots::new(&types)?,
            rowtime: Vec::new(),
            late_rows: RowCount::ZERO,
            keys,
        })
    }

    fn is_global(&self) -> bool {
        self.keys.is_empty()
    }

    fn key_columns(&self, delta: &Delta) -> Result<Vec<ArrayRef>, SqlError> {
        self.keys.iter().map(|key| Ok(canonical(evaluate(key.as_ref(), delta)?))).collect()
    }

    fn window_ends(&self, keys: &[ArrayRef]) -> Result<Option<TimestampMicrosecondArray>, SqlError> {
        let Some(window) = self.window else { return Ok(None) };
        let ends = keys.get(window.end).ok_or_else(|| SqlError::internal("no window end among the groups"))?;
        Ok(Some(downcast(ends)?))
    }

    /// True for the rows whose window is open at their time; `None` when all are.
    fn open_rows(&self, delta: &Delta, keys: &[ArrayRef]) -> Result<Option<BooleanArray>, SqlError> {
        let Some(WindowBounds { grace, .. }) = self.window else { return Ok(None) };
        let Some(ends) = self.window_ends(keys)? else { return Ok(None) };
        let clock = &delta.origin.clock;
        let is_open = |row: usize, end: i64| {
            let time = clock.get(delta.input_row(row)).copied().unwrap_or(NO_EVENT);
            time == NO_EVENT || time < end.saturating_add(grace.micros())
        };
        let open: BooleanArray = ends.values().iter().enumerate().map(|(row, end)| Some(is_open(row, *end))).collect();
        Ok((open.true_count() < open.len()).then_some(open))
    }

    /// Numbers the groups of the rows in the order of their first rows.
    fn intern(&self, keys: &[ArrayRef], rows: usize) -> Result<Interned, SqlError> {
        if self.is_global() {
            return Ok(Interned { groups: vec![0; rows], keys: Vec::new(), count: 1 });
        }
        let ordering = GroupOrdering::None;
        let mut values = new_group_values(Arc::clone(&self.key_schema), &ordering).map_err(sql_error)?;
        let mut groups = Vec::with_capacity(rows);
        values.intern(keys, &mut groups).map_err(sql_error)?;
        let count = values.len();
        Ok(Interned { groups, keys: values.emit(EmitTo::All).map_err(sql_error)?, count })
    }

    /// The slots of the groups.
    fn find(&mut self, interned: &Interned) -> Result<Vec<Found>, SqlError> {
        let bytes = self.slots.codec().encode(&interned.keys)?;
        let ends = self.window_ends(&interned.keys)?;
        let found = (0..interned.count).map(|group| {
            let end = ends.as_ref().map(|ends| ends.value(group));
            self.slots.insert(bytes.get(group), end)
        });
        let found: Vec<Found> = found.collect();
        self.rowtime.resize(self.slots.capacity(), NO_EVENT);
        for found in found.iter().filter(|found| found.is_new) {
            self.rowtime[found.slot as usize] = NO_EVENT;
        }
        Ok(found)
    }

    /// Raises the groups' event times; gives each group's last row.
    fn raise(&mut self, delta: &Delta, interned: &Interned, found: &[Found]) -> Vec<usize> {
        let mut last = vec![0; interned.count];
        for (row, (group, event)) in interned.groups.iter().zip(delta.rowtime.values()).enumerate() {
            let rowtime = &mut self.rowtime[found[*group].slot as usize];
            *rowtime = (*rowtime).max(*event);
            last[*group] = row;
        }
        last
    }

    /// The new forms of the groups.
    fn emit(&self, delta: &Delta, columns: Vec<ArrayRef>, found: &[Found], last: &[usize]) -> Result<Delta, SqlError> {
        let options = RecordBatchOptions::new().with_row_count(Some(found.len()));
        let batch = RecordBatch::try_new_with_options(Arc::clone(&self.schema), columns, &options);
        let now = delta.origin.now.micros();
        let rowtime = found.iter().map(|found| match self.rowtime[found.slot as usize] {
            NO_EVENT => now,
            rowtime => rowtime,
        });
        let rows = last.iter().map(|row| if delta.len() == 0 { 0 } else { delta.input_row(*row) as u32 });
        Ok(Delta {
            batch: batch.map_err(arrow_error)?,
            rowtime: TimestampMicrosecondArray::from_iter_values(rowtime).with_timezone("UTC"),
            weights: Weights::Ones,
            rows: Some(UInt32Array::from_iter_values(rows)),
            origin: Arc::clone(&delta.origin),
        })
    }

    /// Drops late rows, counting them.
    fn drop_late(&mut self, delta: Delta) -> Result<(Delta, Vec<ArrayRef>), SqlError> {
        let keys = self.key_columns(&delta)?;
        let Some(open) = self.open_rows(&delta, &keys)? else { return Ok((delta, keys)) };
        self.late_rows = self.late_rows.plus(RowCount::of(open.len() - open.true_count()));
        let keys = keys.iter().map(|column| arrow::compute::filter(column, &open)).collect::<Result<Vec<_>, _>>();
        Ok((delta.filter(&open)?, keys.map_err(arrow_error)?))
    }
}

impl Operator for Aggregate {
    fn step(&mut self, input: Delta) -> Result<Delta, SqlError> {
        if let Weights::Each(_) = input.weights {
            return Err(SqlError::internal("an aggregate over rows that go away"));
        }
        let (delta, keys) = self.drop_late(input)?;
        let is_first = self.is_global() && self.slots.capacity() == 0;
        if delta.len() == 0 && !is_first {
            let empty = RecordBatch::new_empty(Arc::clone(&self.schema));
            return Ok(Delta { batch: empty, rows: None, ..delta });
        }
        let interned = self.intern(&keys, delta.len())?;
        let found = self.find(&interned)?;
        let last = self.raise(&delta, &interned, &found);
        let touched = Touched::new(interned.groups, found, self.slots.capacity());
        let mut columns = interned.keys;
        for call in &mut self.calls {
            columns.push(call.step(&delta, &touched)?);
        }
        self.emit(&delta, columns, &touched.found, &last)
    }

    fn watermark(&mut self, time: Timestamp) {
        let Some(window) = self.window else { return };
        let gone = self.slots.remove_until(time.minus(window.grace).micros());
        if gone.is_empty() {
            return;
        }
        for call in &mut self.calls {
            call.clear(&gone);
        }
    }

    fn save(&self, state: &mut StateWriter) -> Result<(), SqlError> {
        let live = self.slots.live();
        let rowtime = live.iter().map(|slot| self.rowtime[*slot as usize]);
        let mut columns: Vec<(String, ArrayRef)> =
            vec![("rowtime".to_owned(), Arc::new(Int64Array::from_iter_values(rowtime)) as ArrayRef)];
        for (index, column) in self.slots.columns(&live)?.into_iter().enumerate() {
            columns.push((format!("key{index}"), column));
        }
        let columns = columns.into_iter().map(|(name, column)| (name, column, true));
        state.put("groups", &RecordBatch::try_from_iter_with_nullable(columns).map_err(arrow_error)?)?;
        let late: ArrayRef = Arc::new(Int64Array::from(vec![self.late_rows.value() as i64]));
        state.put("late", &RecordBatch::try_from_iter([("late", late)]).map_err(arrow_error)?)?;
        for (index, call) in self.calls.iter().enumerate() {
            call.save(&format!("call{index}"), &live, state)?;
        }
        Ok(())
    }

    fn restore(&mut self, state: &mut StateReader) -> Result<(), SqlError> {
        let batch = state.take("groups")?;
        let rowtime: Int64Array = downcast(batch.column(0))?;
        let interned = Interned {
            groups: Vec::new(),
            keys: batch.columns().iter().skip(1).cloned().collect(),
            count: batch.num_rows(),
        };
        self.find(&interned)?;
        self.rowtime = rowtime.values().to_vec();
        let late = state.take("late")?;
        let late: Int64Array = downcast(late.column(0))?;
        self.late_rows = RowCount::new(late.values().first().map_or(0, |rows| *rows as u64));
        for (index, call) in self.calls.iter_mut().enumerate() {
            call.restore(&format!("call{index}"), interned.count, state)?;
        }
        Ok(())
    }

    fn is_stateful(&self) -> bool {
        true
    }

    fn begins_with_row(&self) -> bool {
        self.is_global()
    }

    fn state_bytes(&self) -> ByteSize {
        let calls: usize = self.calls.iter().map(Call::bytes).sum();
        ByteSize::of(self.slots.bytes() + self.rowtime.capacity() * 8 + calls)
    }

    fn late_rows(&self) -> RowCount {
        self.late_rows
    }

    fn fingerprint(&self) -> String {
        let keys: Vec<String> = self.keys.iter().map(ToString::to_string).collect();
        let types: Vec<String> = self.schema.fields().iter().map(|field| field.data_type().to_string()).collect();
        let calls: Vec<String> = self.calls.iter().map(Call::text).collect();
        let window = self.window.map_or(String::new(), |window| format!("{} {}", window.end, window.grace.micros()));
        format!("aggregate({}; {}; window {window}; {})", keys.join(", "), calls.join(", "), types.join(", "))
    }
}
