//! The first rows of each partition: `row_number() OVER (…) <= n`, `ORDER BY … LIMIT n OFFSET m`, `DISTINCT ON`.
//!
//! Owns the rows in order: the first ones, and those that take their place when one goes; of rows that stay, the first
//! only. A row costs the logarithm of their number. Leaves out other window functions (`over`). State: the rows.

use super::aggregate::WindowBounds;
use super::call::Rows;
use super::delta::{Delta, Origin, Weights, arrow_error, downcast};
use super::operator::{Operator, only};
use super::ordered::{Closing, RowOrder, insert_columns};
use super::save::{StateReader, StateWriter};
use crate::error::SqlError;
use arrow::array::{
    ArrayRef, Int64Array, RecordBatch, TimestampMicrosecondArray, UInt32Array, UInt64Array, new_null_array,
};
use arrow::datatypes::{DataType, SchemaRef};
use datafusion::physical_expr::{PhysicalExpr, PhysicalSortExpr};
use millstream_catalog::model::ByteSize;
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

/// Memory of a row beside its bytes, about.
const ENTRY_BYTES: usize = 72;

/// What becomes of a row's number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Number {
    /// There is no column for it.
    Absent,
    /// Nobody reads its column: NULL, so that rows do not change with it.
    Unread,
    /// It is told.
    Told,
}

/// What a top-n is made of.
pub(crate) struct TopSpec {
    /// PARTITION BY.
    pub(crate) partition: Vec<Arc<dyn PhysicalExpr>>,
    /// The window among PARTITION BY whose rows change no more once it is closed.
    pub(crate) window: Option<WindowBounds>,
    /// ORDER BY.
    pub(crate) order: Vec<PhysicalSortExpr>,
    /// Rows of a partition that are left out at its start.
    pub(crate) skip: usize,
    /// Rows of a partition that come out after those.
    pub(crate) count: usize,
    /// The number of a row in its partition.
    pub(crate) number: Number,
    /// Whether rows of the input go.
    pub(crate) rows: Rows,
    /// The columns of the input.
    pub(crate) input: SchemaRef,
    /// Those before the number.
    pub(crate) visible: usize,
    /// What comes out.
    pub(crate) schema: SchemaRef,
}

/// Gives the first rows of each partition, of rows that each have a key.
///
/// Rows that go are told before those that come.
pub(crate) struct TopN {
    order: RowOrder,
    skip: usize,
    /// Those left out, and those that come out.
    first: usize,
    number: Number,
    rows: Rows,
    visible: usize,
    schema: SchemaRef,
    partitions: HashMap<Arc<[u8]>, Ranked>,
    closing: Closing,
    bytes: usize,
}

/// Rows by place, with their event times.
type Ranks = BTreeMap<Arc<[u8]>, i64>;

/// The rows of a partition.
#[derive(Default)]
struct Ranked {
    first: Ranks,
    /// Those after them.
    rest: Ranks,
}

/// A row, its event time and its number.
type Numbered = (Arc<[u8]>, i64, usize);

/// Rows to be told.
#[derive(Default)]
struct Changes {
    rows: Vec<Numbered>,
    /// The query's time at the last row that changed the first ones of the partition.
    clock: Vec<i64>,
}

/// The first rows of a partition as they were before a step.
struct Before {
    rows: Vec<Numbered>,
    clock: i64,
}

impl Ranked {
    /// The rows from number `skip` on that come out.
    fn told(&self, skip: usize) -> Vec<Numbered> {
        let rows = self.first.iter().enumerate().skip(skip);
        rows.map(|(number, (place, rowtime))| (Arc::clone(place), *rowtime, number + 1)).collect()
    }

    /// Memory of the rows, about.
    fn bytes(&self) -> usize {
        self.first.keys().chain(self.rest.keys()).map(|place| place.len() + ENTRY_BYTES).sum()
    }

    /// Whether a row at `place` is, or would be, one of the first `count`.
    fn is_first(&self, place: &[u8], count: usize) -> bool {
        self.first.len() < count || self.first.last_key_value().is_some_and(|(last, _)| place <= last.as_ref())
    }

    /// One more row; gives one that was pushed out for good.
    fn insert(&mut self, place: Arc<[u8]>, rowtime: i64, count: usize, rows: Rows) -> Option<Arc<[u8]>> {
        if !self.is_first(&place, count) {
            return self.put_by(place, rowtime, rows);
        }
        self.first.insert(place, rowtime);
        match self.first.len() > count {
            true => self.first.pop_last().and_then(|(place, rowtime)| self.put_by(place, rowtime, rows)),
            false => None,
        }
    }

    fn put_by(&mut self, place: Arc<[u8]>, rowtime: i64, rows: Rows) -> Option<Arc<[u8]>> {
        match rows {
            Rows::Stay | Rows::Merge => Some(place),
            Rows::Go => {
                self.rest.insert(place, rowtime);
                None
            }
        }
    }

    /// One row less; whether it was there.
    fn remove(&mut self, place: &[u8]) -> bool {
        if self.first.remove(place).is_none() {
            return self.rest.remove(place).is_some();
        }
        if let Some((place, rowtime)) = self.rest.pop_first() {
            self.first.insert(place, rowtime);
        }
        true
    }
}

impl TopN {
    /// No rows yet.
    pub(crate) fn new(spec: TopSpec) -> Result<Self, SqlError> {
        Ok(Self {
            order: RowOrder::new(spec.partition, spec.order, spec.window, spec.input)?,
            skip: spec.skip,
            first: spec.skip.saturating_add(spec.count),
            number: spec.number,
            rows: spec.rows,
            visible: spec.visible,
            schema: spec.schema,
            partitions: HashMap::new(),
            closing: Closing::default(),
            bytes: 0,
        })
    }

    /// Takes the rows of `delta`; gives the partitions whose first rows change, and those rows as they were.
    fn take(&mut self, delta: &Delta) -> Result<BTreeMap<Arc<[u8]>, Before>, SqlError> {
        let placed = self.order.place(delta)?;
        let mut before: BTreeMap<Arc<[u8]>, Before> = BTreeMap::new();
        for row in 0..delta.len() {
            let (partition, place) = (placed.partitions.get(row), placed.rows.get(row));
            if !self.partitions.contains_key(partition) {
                self.closing.note(&placed, row);
                self.bytes += partition.len() + ENTRY_BYTES;
                self.partitions.insert(partition.into(), Ranked::default());
            }
            let Some(ranked) = self.partitions.get_mut(partition) else { continue };
            if ranked.is_first(place, self.first) {
                let clock = delta.time_at(row);
                match before.get_mut(partition) {
                    Some(before) => before.clock = clock,
                    None => drop(before.insert(partition.into(), Before { rows: ranked.told(self.skip), clock })),
                }
            }
            if !delta.weights.is_gone(row) {
                let pushed = ranked.insert(place.into(), delta.rowtime.value(row), self.first, self.rows);
                self.bytes += place.len() + ENTRY_BYTES;
                self.bytes -= pushed.map_or(0, |place| place.len() + ENTRY_BYTES);
            } else if ranked.remove(place) {
                self.bytes -= place.len() + ENTRY_BYTES;
            }
        }
        Ok(before)
    }

    /// Lets go of the rows of closed windows.
    fn close(&mut self, end: i64) {
        for partition in self.closing.until(end) {
            if let Some(ranked) = self.partitions.remove(&partition) {
                self.bytes -= partition.len() + ENTRY_BYTES + ranked.bytes();
            }
        }
    }

    /// Which rows went and which came.
    fn compare(&self, old: Before, new: Vec<Numbered>, gone: &mut Changes, come: &mut Changes) {
        let is_told = self.number == Number::Told;
        let clock = old.clock;
        let (mut old, mut new) = (old.rows.into_iter().peekable(), new.into_iter().peekable());
        loop {
            let order = match (old.peek(), new.peek()) {
                (None, None) => return,
                (Some(_), None) => std::cmp::Ordering::Less,
                (None, Some(_)) => std::cmp::Ordering::Greater,
                (Some(old), Some(new)) => old.0.cmp(&new.0),
            };
            let left = if order.is_le() { old.next() } else { None };
            let right = if order.is_ge() { new.next() } else { None };
            match (left, right) {
                (Some(old), Some(new)) if old.2 == new.2 || !is_told => {}
                (left, right) => {
                    gone.clock.extend(left.as_ref().map(|_| clock));
                    come.clock.extend(right.as_ref().map(|_| clock));
                    gone.rows.extend(left);
                    come.rows.extend(right);
                }
            }
        }
    }

    fn output(&self, gone: &Changes, come: &Changes, delta: &Delta) -> Result<Delta, SqlError> {
        let all: Vec<&Numbered> = gone.rows.iter().chain(&come.rows).collect();
        let rows = self.order.rows(all.iter().map(|(place, ..)| place.as_ref()))?;
        let number: Vec<ArrayRef> = match self.number {
            Number::Absent => Vec::new(),
            Number::Unread => vec![new_null_array(self.schema.field(self.visible).data_type(), all.len())],
            Number::Told => {
                let numbers = UInt64Array::from_iter_values(all.iter().map(|(.., number)| *number as u64));
                let wanted: &DataType = self.schema.field(self.visible).data_type();
                vec![arrow::compute::cast(&numbers, wanted).map_err(arrow_error)?]
            }
        };
        let is_gone: Vec<bool> = (0..all.len()).map(|row| row < gone.rows.len()).collect();
        let last = (0..delta.len()).map(|row| delta.input_row(row)).max().unwrap_or(0) as u32;
        Ok(Delta {
            batch: insert_columns(&rows, self.visible, number, &self.schema)?,
            rowtime: TimestampMicrosecondArray::from_iter_values(all.iter().map(|(_, rowtime, _)| *rowtime))
                .with_timezone("UTC"),
            weights: Weights::of(&is_gone),
            rows: Some(UInt32Array::from(vec![last; all.len()])),
            clock: Some(Int64Array::from_iter_values(gone.clock.iter().chain(&come.clock).copied())),
            origin: Arc::clone(&delta.origin),
        })
    }
}

impl Operator for TopN {
    fn step(&mut self, inputs: Vec<Delta>, origin: &Arc<Origin>) -> Result<Delta, SqlError> {
        let input = only(inputs)?;
        if input.len() == 0 {
            self.close(origin.end);
            return Ok(Delta::empty(Arc::clone(&self.schema), origin));
        }
        let before = self.take(&input)?;
        let (mut gone, mut come) = (Changes::default(), Changes::default());
        for (partition, old) in before {
            let new = self.partitions.get(&partition).map_or(Vec::new(), |ranked| ranked.told(self.skip));
            self.compare(old, new, &mut gone, &mut come);
            if self.partitions.get(&partition).is_some_and(|ranked| ranked.first.is_empty()) {
                self.partitions.remove(&partition);
                self.bytes -= partition.len() + ENTRY_BYTES;
            }
        }
        self.close(origin.end);
        self.output(&gone, &come, &input)
    }

    fn save(&self, state: &mut StateWriter) -> Result<(), SqlError> {
        let mut partitions: Vec<(&Arc<[u8]>, &Ranked)> = self.partitions.iter().collect();
        partitions.sort_unstable_by_key(|(partition, _)| *partition);
        let rows: Vec<(&[u8], i64)> = partitions
            .into_iter()
            .flat_map(|(_, ranked)| ranked.first.iter().chain(&ranked.rest))
            .map(|(place, rowtime)| (place.as_ref(), *rowtime))
            .collect();
        let times: ArrayRef = Arc::new(Int64Array::from_iter_values(rows.iter().map(|(_, rowtime)| *rowtime)));
        state.put("times", &RecordBatch::try_from_iter([("rowtime", times)]).map_err(arrow_error)?)?;
        state.put("rows", &self.order.rows(rows.iter().map(|(place, _)| *place))?)
    }

    fn restore(&mut self, state: &mut StateReader) -> Result<(), SqlError> {
        let times: Int64Array = downcast(state.take("times")?.column(0))?;
        let rows = Delta::of_batch(state.take("rows")?);
        let rowtime = TimestampMicrosecondArray::new(times.values().clone(), None).with_timezone("UTC");
        self.take(&Delta { rowtime, ..rows }).map(drop)
    }

    fn is_stateful(&self) -> bool {
        true
    }

    fn state_bytes(&self) -> ByteSize {
        ByteSize::of(self.bytes)
    }

    fn fingerprint(&self) -> String {
        let number = format!("{:?} at {}", self.number, self.visible);
        format!("top({}; {} to {}; {number}; {:?})", self.order.text(), self.skip, self.first, self.rows)
    }
}
