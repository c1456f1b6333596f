//! The first rows of each partition: `row_number() OVER (…) <= n`, also `rank()` and `dense_rank()`, `ORDER BY … LIMIT n
//! OFFSET m`, `DISTINCT ON`.
//!
//! Owns partitions and what is told of their rows. Leaves out the rows in order (`ranked`) and other window functions
//! (`over`). State: the rows.

use super::aggregate::Changes;
use super::bounds::WindowBounds;
use super::call::Rows;
use super::delta::{Delta, Origin, Weights, arrow_error, downcast};
use super::operator::{Merging, Operator, only};
use super::ordered::{Closing, Placed, RowOrder, insert_columns};
use super::part::Part;
use super::ranked::{ENTRY_BYTES, Numbered, Numbering, Place, Ranked, Ranking};
use super::save::{StateReader, StateWriter};
use super::slots::KeyBytes;
use crate::error::SqlError;
use arrow::array::{
    ArrayRef, Int64Array, RecordBatch, TimestampMicrosecondArray, UInt32Array, UInt64Array, new_null_array,
};
use arrow::datatypes::SchemaRef;
use datafusion::common::HashMap;
use datafusion::common::hash_map::EntryRef;
use datafusion::physical_expr::{PhysicalExpr, PhysicalSortExpr};
use millstream_catalog::model::ByteSize;
use std::sync::Arc;

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

impl Number {
    /// `batch` with `numbers` after its first `visible` columns, as far as they are wanted.
    pub(super) fn insert(
        self,
        batch: &RecordBatch,
        visible: usize,
        numbers: impl Iterator<Item = u64>,
        schema: &SchemaRef,
    ) -> Result<RecordBatch, SqlError> {
        let data_type = || schema.field(visible).data_type();
        let columns: Vec<ArrayRef> = match self {
            Self::Absent => Vec::new(),
            Self::Unread => vec![new_null_array(data_type(), batch.num_rows())],
            Self::Told => {
                let numbers = UInt64Array::from_iter_values(numbers);
                vec![arrow::compute::cast(&numbers, data_type()).map_err(arrow_error)?]
            }
        };
        insert_columns(batch, visible, columns, schema)
    }
}

/// What a top-n is made of.
pub(crate) struct TopSpec {
    /// PARTITION BY.
    pub(crate) partition: Vec<Arc<dyn PhysicalExpr>>,
    /// The window among PARTITION BY whose rows change no more once it is closed.
    pub(crate) window: Option<WindowBounds>,
    /// ORDER BY.
    pub(crate) order: Vec<PhysicalSortExpr>,
    /// How they are numbered.
    pub(crate) ranking: Ranking,
    /// Rows of a partition that are left out at its start.
    pub(crate) skip: usize,
    /// The numbers that come out after those.
    pub(crate) count: usize,
    /// The number of a row in its partition.
    pub(crate) number: Number,
    /// Whether rows of the input go.
    pub(crate) rows: Rows,
    /// What is told of a row that has another number.
    pub(crate) changes: Changes,
    /// The columns of the input.
    pub(crate) input: SchemaRef,
    /// Those before the number.
    pub(crate) visible: usize,
    /// What comes out.
    pub(crate) schema: SchemaRef,
}

/// Gives the first rows of each partition, of rows that each have a key.
///
/// Rows that go are told before those that come; of a row with another number both, or with [`Changes::Forms`] the new form only.
pub(crate) struct TopN {
    order: RowOrder,
    /// Of the numbers left out, and those that come out.
    numbering: Numbering,
    skip: usize,
    number: Number,
    changes: Changes,
    visible: usize,
    schema: SchemaRef,
    partitions: HashMap<Arc<[u8]>, Ranked>,
    closing: Closing,
    bytes: usize,
}

/// Rows to be told.
#[derive(Default)]
struct Told {
    rows: Vec<Numbered>,
    /// The query's time at the last row that changed the first ones of the partition.
    clock: Vec<i64>,
}

/// The first rows of a partition as they were before a step.
struct Before {
    rows: Vec<Numbered>,
    clock: i64,
}

impl TopN {
    /// No rows yet.
    pub(crate) fn new(spec: TopSpec) -> Result<Self, SqlError> {
        let order = RowOrder::new(spec.partition, spec.order, spec.window, spec.input)?;
        Ok(Self {
            order: if spec.ranking == Ranking::RowNumber && spec.rows == Rows::Go {
                order
            } else {
                order.with_peers()?
            },
            numbering: Numbering {
                ranking: spec.ranking,
                count: spec.skip.saturating_add(spec.count),
                rows: spec.rows,
            },
            skip: spec.skip,
            number: spec.number,
            changes: spec.changes,
            visible: spec.visible,
            schema: spec.schema,
            partitions: HashMap::new(),
            closing: Closing::default(),
            bytes: 0,
        })
    }

    /// Which rows may be among the first of their partitions after the step, or may be asked for later; of those, where
    /// only the very first are wanted, the ones that no other of the step goes before.
    fn wanted(&self, partitions: &KeyBytes, peers: Option<&KeyBytes>, rows: usize) -> Vec<u32> {
        let all = 0..rows as u32;
        let Some(peers) = peers.filter(|_| self.numbering.rows != Rows::Go) else { return all.collect() };
        let may_be_first = |row: &u32| {
            let ranked = self.partitions.get(partitions.get(*row as usize));
            ranked.is_none_or(|ranked| ranked.may_be_first(&self.numbering, peers.get(*row as usize)))
        };
        let mut wanted: Vec<u32> = all.filter(may_be_first).collect();
        if self.numbering.count == 1 {
            let mut best: HashMap<&[u8], &[u8]> = HashMap::new();
            for row in &wanted {
                let own = peers.get(*row as usize);
                let best = best.entry(partitions.get(*row as usize)).or_insert(own);
                *best = own.min(*best);
            }
            wanted.retain(|row| best.get(partitions.get(*row as usize)) == Some(&peers.get(*row as usize)));
        }
        wanted
    }

    /// Takes the rows of `delta`, which are at `placed`; gives for each partition whose first rows change one of its rows,
    /// and those first rows as they were, in the order in which they change.
    fn take(&mut self, delta: &Delta, placed: &Placed) -> Vec<(usize, Before)> {
        let mut before: Vec<(usize, Before)> = Vec::new();
        for row in 0..delta.len() {
            let (partition, place) = (placed.partition(row), placed.row(row));
            let place = Place { bytes: place, order: placed.peers_len(row), rowtime: delta.rowtime.value(row) };
            let ranked = match self.partitions.entry_ref(partition) {
                EntryRef::Occupied(found) => found.into_mut(),
                EntryRef::Vacant(vacant) => {
                    self.closing.note(placed, row);
                    self.bytes += partition.len() + ENTRY_BYTES;
                    vacant.insert_with_key(partition.into(), Ranked::default())
                }
            };
            if ranked.is_first(&self.numbering, place) {
                let clock = delta.time_at(row);
                match ranked.touched.checked_sub(1).and_then(|at| before.get_mut(at as usize)) {
                    Some((_, before)) => before.clock = clock,
                    None => {
                        before.push((row, Before { rows: ranked.told(&self.numbering, self.skip), clock }));
                        ranked.touched = before.len() as u32;
                    }
                }
            }
            if !delta.weights.is_gone(row) {
                let dropped = ranked.insert(&self.numbering, place);
                self.bytes += place.bytes.len() + ENTRY_BYTES;
                self.bytes -= dropped;
            } else if ranked.remove(&self.numbering, place) {
                self.bytes -= place.bytes.len() + ENTRY_BYTES;
            }
        }
        before
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
    fn compare(&self, old: Before, new: Vec<Numbered>, gone: &mut Told, come: &mut Told) {
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
                    // The new form of a row says that it has the old one no more.
                    let left = left.filter(|_| right.is_none() || self.changes == Changes::Both);
                    gone.clock.extend(left.as_ref().map(|_| clock));
                    come.clock.extend(right.as_ref().map(|_| clock));
                    gone.rows.extend(left);
                    come.rows.extend(right);
                }
            }
        }
    }

    fn output(&self, gone: &Told, come: &Told, delta: &Delta) -> Result<Delta, SqlError> {
        let all: Vec<&Numbered> = gone.rows.iter().chain(&come.rows).collect();
        let rows = self.order.rows(all.iter().map(|(place, ..)| place.as_ref()))?;
        let numbers = all.iter().map(|(.., number)| *number as u64);
        let is_gone: Vec<bool> = (0..all.len()).map(|row| row < gone.rows.len()).collect();
        let last = (0..delta.len()).map(|row| delta.input_row(row)).max().unwrap_or(0) as u32;
        Ok(Delta {
            batch: self.number.insert(&rows, self.visible, numbers, &self.schema)?,
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
        let (rows, placed) =
            self.order.place_some(&input, |partitions, peers| self.wanted(partitions, peers, input.len()))?;
        let before = self.take(&rows, &placed);
        let (mut gone, mut come) = (Told::default(), Told::default());
        for (row, old) in before {
            let partition = placed.partition(row);
            let Some(ranked) = self.partitions.get_mut(partition) else { continue };
            ranked.touched = 0;
            let (is_empty, new) = (ranked.is_empty(), ranked.told(&self.numbering, self.skip));
            self.compare(old, new, &mut gone, &mut come);
            if is_empty {
                self.partitions.remove(partition);
                self.bytes -= partition.len() + ENTRY_BYTES;
            }
        }
        self.close(origin.end);
        self.output(&gone, &come, &input)
    }

    fn save(&self, state: &mut StateWriter, part: Part) -> Result<(), SqlError> {
        let mut partitions: Vec<(&Arc<[u8]>, &Ranked)> =
            self.partitions.iter().filter(|(partition, _)| part.has(partition)).collect();
        partitions.sort_unstable_by_key(|(partition, _)| *partition);
        let rows: Vec<(&[u8], i64)> = partitions.into_iter().flat_map(|(_, ranked)| ranked.rows()).collect();
        let times: ArrayRef = Arc::new(Int64Array::from_iter_values(rows.iter().map(|(_, rowtime)| *rowtime)));
        state.put("times", &RecordBatch::try_from_iter([("rowtime", times)]).map_err(arrow_error)?)?;
        state.put("rows", &self.order.rows(rows.iter().map(|(place, _)| *place))?)
    }

    fn restore(&mut self, state: &mut StateReader) -> Result<(), SqlError> {
        let times: Int64Array = downcast(state.take("times")?.column(0))?;
        let rows = Delta::of_batch(state.take("rows")?);
        let rowtime = TimestampMicrosecondArray::new(times.values().clone(), None).with_timezone("UTC");
        let rows = Delta { rowtime, ..rows };
        let placed = self.order.place(&rows)?;
        self.take(&rows, &placed);
        self.partitions.values_mut().for_each(|ranked| ranked.touched = 0);
        Ok(())
    }

    fn fresh(&self) -> Result<Option<Box<dyn Operator>>, SqlError> {
        Ok(Some(Box::new(Self {
            order: self.order.again()?,
            numbering: self.numbering,
            skip: self.skip,
            number: self.number,
            changes: self.changes,
            visible: self.visible,
            schema: Arc::clone(&self.schema),
            partitions: HashMap::new(),
            closing: Closing::default(),
            bytes: 0,
        })))
    }

    fn hashes(&self, _: usize, delta: &Delta) -> Result<Vec<u64>, SqlError> {
        Ok(self.order.partitions(delta)?.hashes(delta.len()))
    }

    fn merging(&self) -> Merging {
        Merging::GoneFirst
    }

    fn due(&self) -> i64 {
        self.closing.due()
    }

    fn is_stateful(&self) -> bool {
        true
    }

    fn state_bytes(&self) -> ByteSize {
        ByteSize::of(self.bytes)
    }

    fn fingerprint(&self) -> String {
        let number = format!("{:?} at {}", self.number, self.visible);
        format!(
            "top({}; {:?} {} to {}; {number}; {:?} {:?})",
            self.order.text(),
            self.numbering.ranking,
            self.skip,
            self.numbering.count,
            self.numbering.rows,
            self.changes
        )
    }
}
