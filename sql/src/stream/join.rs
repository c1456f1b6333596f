//! Joins in which both sides trigger: of streams, within a time or not, and of changing tables.
//!
//! Owns the rows of both sides, which of them match, and when a row without a match is told. Leaves out the lookup of a
//! stream's rows in a table (`lookup`) and how rows are kept (`store`). State: the rows, with the number of their matches.

mod spec;

pub(crate) use self::spec::{JoinColumn, JoinInput, JoinKind, JoinSpec, Side, Within};

use super::call::Rows;
use super::condition::Condition;
use super::delta::{Delta, NEVER, Origin, Weights, arrow_error};
use super::heap::{NONE, Wanted};
use super::operator::{Operator, both};
use super::part::Part;
use super::rows::types_text;
use super::save::{StateReader, StateWriter};
use super::store::{Came, Entry, Going, Kept, Keys, Store};
use crate::error::SqlError;
use arrow::array::{
    ArrayRef, BooleanArray, Int64Array, RecordBatch, RecordBatchOptions, TimestampMicrosecondArray, UInt32Array,
};
use arrow::datatypes::{DataType, SchemaRef};
use millstream_catalog::model::limit::JOIN_ROWS_MAX;
use millstream_catalog::model::{ByteSize, RowCount, SqlState};
use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;

/// Pairs that are looked at together.
const PAIRS_TARGET: usize = 16_384;

/// One side at work.
struct Half {
    input: JoinInput,
    store: Store,
}

impl Half {
    fn new(input: JoinInput, types: &[DataType], is_within: bool) -> Result<Self, SqlError> {
        let going = Going::of(input.rows == Rows::Go, input.window.is_some() && !is_within);
        Ok(Self { store: Store::new(Arc::clone(&input.schema), types, going)?, input })
    }

    /// The join keys of the rows of `delta`.
    fn keys_of(&self, delta: &Delta, null_equals_null: bool) -> Result<Keys, SqlError> {
        Keys::of(delta, &self.input.keys, self.store.key_codec(), null_equals_null)
    }

    fn expires(&self, side: Side, within: Option<&Within>, delta: &Delta) -> Vec<i64> {
        let windows = self.input.window.and_then(|window| window.closes(delta.batch.columns()));
        let expires = |row: usize| {
            let time = within.map_or(i64::MAX, |within| within.expires(side, delta.rowtime.value(row)));
            time.min(windows.as_ref().map_or(i64::MAX, |windows| windows[row]))
        };
        (0..delta.len()).map(expires).collect()
    }
}

/// Joins two inputs; both trigger.
pub(crate) struct Join {
    kind: JoinKind,
    left: Half,
    right: Half,
    condition: Option<Condition>,
    filter_schema: SchemaRef,
    null_equals_null: bool,
    within: Option<Within>,
    keeps_unmatched: bool,
    columns: Vec<JoinColumn>,
    schema: SchemaRef,
    late_rows: RowCount,
}

/// A row that comes out: the numbers of the rows it is of.
struct Made {
    left: u32,
    right: u32,
    is_gone: bool,
    is_marked: bool,
    rowtime: i64,
    input_row: u32,
    clock: i64,
}

/// The rows of a step, ready to be joined.
struct Coming<'a> {
    rows: Vec<ComingRow>,
    keys: Keys,
    /// None where rows stay.
    hashes: Vec<u64>,
    wanted: Wanted<'a>,
}

struct ComingRow {
    at: usize,
    /// Its number; of one that goes, not known yet.
    id: u32,
    rowtime: i64,
    expires: i64,
    is_gone: bool,
    input_row: u32,
    clock: i64,
}

impl Join {
    /// No rows yet.
    pub(crate) fn new(spec: JoinSpec) -> Result<Self, SqlError> {
        let types = key_types(&spec.left)?;
        let condition = spec.filter.map(|filter| Condition::new(&filter, &spec.filter_schema, spec.left.visible));
        Ok(Self {
            kind: spec.kind,
            left: Half::new(spec.left, &types, spec.within.is_some())?,
            right: Half::new(spec.right, &types, spec.within.is_some())?,
            condition: condition.transpose()?,
            filter_schema: spec.filter_schema,
            null_equals_null: spec.null_equals_null,
            within: spec.within,
            keeps_unmatched: spec.keeps_unmatched,
            columns: spec.columns,
            schema: spec.schema,
            late_rows: RowCount::ZERO,
        })
    }

    fn half(&self, side: Side) -> &Half {
        match side {
            Side::Left => &self.left,
            Side::Right => &self.right,
        }
    }

    fn half_mut(&mut self, side: Side) -> &mut Half {
        match side {
            Side::Left => &mut self.left,
            Side::Right => &mut self.right,
        }
    }

    /// Takes in the rows of `delta` that are not late.
    fn coming<'a>(&mut self, side: Side, delta: &'a Delta) -> Result<Coming<'a>, SqlError> {
        let half = self.half(side);
        let keys = half.keys_of(delta, self.null_equals_null)?;
        let hashes = half.store.hashes(&delta.batch)?;
        let expires = half.expires(side, self.within.as_ref(), delta);
        let mut rows = Vec::with_capacity(delta.len());
        for (at, (expires, clock)) in expires.into_iter().zip(delta.times().iter().copied()).enumerate() {
            let rowtime = delta.rowtime.value(at);
            if self.within.as_ref().is_some_and(|within| clock != NEVER && clock > within.last(side, rowtime)) {
                continue;
            }
            let (is_gone, input_row) = (delta.weights.is_gone(at), delta.input_row(at) as u32);
            rows.push(ComingRow { at, id: NONE, rowtime, expires, is_gone, input_row, clock });
        }
        self.late_rows = self.late_rows.plus(RowCount::of(delta.len() - rows.len()));
        let picked: Vec<u32> = rows.iter().filter(|row| !row.is_gone).map(|row| row.at as u32).collect();
        let ids = self.half_mut(side).store.take_in(&delta.batch, &picked)?;
        rows.iter_mut().filter(|row| !row.is_gone).zip(ids).for_each(|(row, id)| row.id = id);
        Ok(Coming { rows, keys, hashes, wanted: Wanted::new(&delta.batch) })
    }

    /// Joins the rows of one side with what the other has.
    fn take(&mut self, side: Side, delta: &Delta, out: &mut Vec<Made>) -> Result<(), SqlError> {
        let mut coming = self.coming(side, delta)?;
        let mut pairs: Vec<(usize, u32)> = Vec::new();
        let mut start = 0;
        for index in 0..coming.rows.len() {
            self.add_pairs(side, index, &coming, &mut pairs);
            if pairs.len() >= PAIRS_TARGET || index + 1 == coming.rows.len() {
                let pairs = self.filtered(side, delta, &coming, std::mem::take(&mut pairs))?;
                self.settle(side, &mut coming, start..index + 1, &pairs, out)?;
                start = index + 1;
                if out.len() > JOIN_ROWS_MAX {
                    return Err(too_many(delta, coming.rows[index].at));
                }
            }
        }
        Ok(())
    }

    /// The rows of the other side that a row may match.
    fn add_pairs(&self, side: Side, index: usize, coming: &Coming<'_>, pairs: &mut Vec<(usize, u32)>) {
        let row = &coming.rows[index];
        let Some(key) = coming.keys.get(row.at) else { return };
        let fits = |(_, entry): &(u32, &Entry)| {
            self.within.as_ref().is_none_or(|within| within.fits(side, row.rowtime, entry.rowtime))
        };
        pairs.extend(self.half(side.other()).store.matching(key).filter(fits).map(|(id, _)| (index, id)));
    }

    /// The pairs for which the rest of the condition is true.
    fn filtered(
        &self,
        side: Side,
        delta: &Delta,
        coming: &Coming<'_>,
        pairs: Vec<(usize, u32)>,
    ) -> Result<Vec<(usize, u32)>, SqlError> {
        let Some(condition) = self.condition.as_ref().filter(|_| !pairs.is_empty()) else { return Ok(pairs) };
        let rows = UInt32Array::from_iter_values(pairs.iter().map(|(index, _)| coming.rows[*index].at as u32));
        let ids: Vec<u32> = pairs.iter().map(|(_, id)| *id).collect();
        let holds = condition.holds(side, (delta, rows), (&self.half(side.other()).store, &ids))?;
        Ok(pairs.into_iter().zip(holds.values()).filter(|(_, holds)| *holds).map(|(pair, _)| pair).collect())
    }

    /// Tells what the rows of `coming` in `range` change, and keeps them.
    fn settle(
        &mut self,
        side: Side,
        coming: &mut Coming<'_>,
        range: Range<usize>,
        pairs: &[(usize, u32)],
        out: &mut Vec<Made>,
    ) -> Result<(), SqlError> {
        let mut pairs = pairs;
        for index in range {
            let (own, rest) = pairs.split_at(pairs.partition_point(|(at, _)| *at <= index));
            pairs = rest;
            let row = &mut coming.rows[index];
            let hash = coming.hashes.get(row.at).copied();
            if row.is_gone {
                let store = &mut self.half_mut(side).store;
                let Some(id) = store.remove(hash.unwrap_or_default(), Some(row.expires), &mut coming.wanted, row.at)?
                else {
                    continue;
                };
                row.id = id;
            }
            for (_, id) in own {
                self.meet(side, row, *id, out);
            }
            if self.kind.counts(side) {
                self.tell_own(side, row, own.len(), out);
            }
            if !row.is_gone {
                self.keep(side, row, coming.keys.get(row.at), hash, own.len() as u32);
            }
        }
        Ok(())
    }

    /// Keeps a row that matches so many, unless nobody will ask for it.
    fn keep(&mut self, side: Side, row: &ComingRow, key: Option<&[u8]>, hash: Option<u64>, matches: u32) {
        let is_told = self.within.is_some() && self.kind.counts(side);
        let matches_never = key.is_none() && !is_told && !self.keeps_unmatched;
        let half = self.half_mut(side);
        if matches_never && half.input.rows != Rows::Go {
            return half.store.leave_out(row.id);
        }
        let came = Some(Came { input_row: row.input_row, clock: row.clock });
        let kept = Kept { key, rowtime: row.rowtime, expires: row.expires, matches, came };
        half.store.keep(row.id, hash, kept);
    }

    /// What a row gives of itself, with so many matches.
    fn tell_own(&self, side: Side, row: &ComingRow, matches: usize, out: &mut Vec<Made>) {
        let is_told = match self.kind {
            JoinKind::Semi => matches > 0,
            JoinKind::Mark => true,
            // Within a time it is told when no match can come any more.
            _ => matches == 0 && self.within.is_none(),
        };
        if is_told {
            out.push(alone(side, row.id, row, row.rowtime, row.is_gone, matches > 0));
        }
    }

    /// The pair of a row with one that is there, and what it changes for that one.
    fn meet(&mut self, side: Side, row: &ComingRow, id: u32, out: &mut Vec<Made>) {
        let kind = self.kind;
        let store = &mut self.half_mut(side.other()).store;
        // A pair came about with the later of its rows, also when that is met first: the left side's go first.
        let later = match store.came(id) {
            Some(came) if came.input_row > row.input_row => came,
            _ => Came { input_row: row.input_row, clock: row.clock },
        };
        let Some(entry) = store.entry_mut(id) else { return };
        let (left, right) = if side == Side::Left { (row.id, id) } else { (id, row.id) };
        let pair = kind.gives_pairs().then_some(Made {
            left,
            right,
            is_gone: row.is_gone,
            is_marked: false,
            rowtime: row.rowtime.max(entry.rowtime),
            input_row: later.input_row,
            clock: later.clock,
        });
        // What goes is told before what comes in its place.
        let (gone, come) = if row.is_gone { (pair, None) } else { (None, pair) };
        out.extend(gone);
        self.count(side, row, id, out);
        out.extend(come);
    }

    /// What one match more or less changes for a row that is there.
    fn count(&mut self, side: Side, row: &ComingRow, id: u32, out: &mut Vec<Made>) {
        let (kind, is_within) = (self.kind, self.within.is_some());
        if !kind.counts(side.other()) {
            return;
        }
        let Some(entry) = self.half_mut(side.other()).store.entry_mut(id) else { return };
        entry.matches = if row.is_gone { entry.matches.saturating_sub(1) } else { entry.matches + 1 };
        let has_first = !row.is_gone && entry.matches == 1;
        let has_none = row.is_gone && entry.matches == 0;
        if !has_first && !has_none {
            return;
        }
        let rowtime = entry.rowtime;
        let mut tell = |is_gone, is_marked| out.push(alone(side.other(), id, row, rowtime, is_gone, is_marked));
        match kind {
            JoinKind::Semi => tell(has_none, false),
            JoinKind::Mark => {
                tell(true, has_none);
                tell(false, has_first);
            }
            _ if is_within => {}
            _ => tell(has_first, false),
        }
    }

    /// Lets go of the rows whose time is over; those without a match are told now.
    fn close(&mut self, origin: &Origin, out: &mut Vec<Made>) -> Result<(), SqlError> {
        if origin.end == NEVER {
            return Ok(());
        }
        let last_row = origin.clock.len().saturating_sub(1) as u32;
        for side in [Side::Left, Side::Right] {
            let is_told = self.within.is_some()
                && self.kind.counts(side)
                && !matches!(self.kind, JoinKind::Semi | JoinKind::Mark);
            let gone = self.half_mut(side).store.expire(origin.end)?;
            for (id, entry) in gone.into_iter().filter(|(_, entry)| is_told && entry.matches == 0) {
                let (left, right) = if side == Side::Left { (id, NONE) } else { (NONE, id) };
                let (rowtime, clock) = (entry.rowtime, entry.expires.saturating_sub(1));
                let (is_gone, is_marked) = (false, false);
                out.push(Made { left, right, is_gone, is_marked, rowtime, input_row: last_row, clock });
            }
        }
        Ok(())
    }

    /// The columns of the left.
    pub(super) fn left_schema(&self) -> &SchemaRef {
        self.left.store.schema()
    }

    /// The rows of the left without a match that `is_wanted`, and their event times.
    pub(super) fn unmatched(&self, is_wanted: impl Fn(&Entry) -> bool) -> Result<(RecordBatch, Vec<i64>), SqlError> {
        let rows = self.left.store.rows().filter(|(_, entry)| entry.matches == 0 && is_wanted(entry));
        let (ids, rowtimes): (Vec<u32>, Vec<i64>) = rows.map(|(id, entry)| (id, entry.rowtime)).unzip();
        Ok((self.left.store.batch(&ids)?, rowtimes))
    }

    /// Rows of the left, with these event times, by themselves.
    pub(super) fn alone(
        &self,
        rows: &[ArrayRef],
        rowtimes: Vec<i64>,
        is_gone: bool,
        origin: &Arc<Origin>,
    ) -> Result<Delta, SqlError> {
        let count = rowtimes.len();
        let column = |column: &JoinColumn| match column {
            JoinColumn::Of(Side::Left, at) => rows.get(*at).cloned(),
            JoinColumn::Of(Side::Right, _) => None,
            JoinColumn::Mark => Some(Arc::new(BooleanArray::from(vec![false; count])) as ArrayRef),
            JoinColumn::HasLeft => Some(Arc::new(BooleanArray::from(vec![true; count])) as ArrayRef),
        };
        let input_row = origin.clock.len().saturating_sub(1) as u32;
        Ok(Delta {
            batch: self.batch(count, column)?,
            rowtime: TimestampMicrosecondArray::from(rowtimes).with_timezone("UTC"),
            weights: Weights::of(&vec![is_gone; count]),
            rows: Some(UInt32Array::from(vec![input_row; count])),
            clock: (!origin.clock.is_empty()).then(|| Int64Array::from(vec![origin.end; count])),
            origin: Arc::clone(origin),
        })
    }

    /// So many rows that come out, of these columns.
    fn batch(&self, count: usize, column: impl Fn(&JoinColumn) -> Option<ArrayRef>) -> Result<RecordBatch, SqlError> {
        let columns = self.columns.iter().map(column).collect::<Option<Vec<_>>>();
        let columns = columns.ok_or_else(|| SqlError::internal("a join without a column"))?;
        let options = RecordBatchOptions::new().with_row_count(Some(count));
        RecordBatch::try_new_with_options(Arc::clone(&self.schema), columns, &options).map_err(arrow_error)
    }

    /// The columns of a side that come out, by their places among all.
    fn wanted(&self, side: Side, ids: &[u32]) -> Result<HashMap<usize, ArrayRef>, SqlError> {
        let of_side = |column: &JoinColumn| match column {
            JoinColumn::Of(of, at) if *of == side => Some(*at),
            _ => None,
        };
        let mut places: Vec<usize> = self.columns.iter().filter_map(of_side).collect();
        places.sort_unstable();
        places.dedup();
        let columns = self.half(side).store.columns(ids, places.iter().copied())?;
        Ok(places.into_iter().zip(columns).collect())
    }

    fn output(&self, made: &[Made], origin: &Arc<Origin>) -> Result<Delta, SqlError> {
        if made.is_empty() {
            return Ok(Delta::empty(Arc::clone(&self.schema), origin));
        }
        let left = self.wanted(Side::Left, &made.iter().map(|made| made.left).collect::<Vec<_>>())?;
        let right = self.wanted(Side::Right, &made.iter().map(|made| made.right).collect::<Vec<_>>())?;
        let flags = |flag: fn(&Made) -> bool| -> ArrayRef {
            Arc::new(BooleanArray::from(made.iter().map(flag).collect::<Vec<bool>>()))
        };
        let column = |column: &JoinColumn| match column {
            JoinColumn::Of(Side::Left, at) => left.get(at).cloned(),
            JoinColumn::Of(Side::Right, at) => right.get(at).cloned(),
            JoinColumn::Mark => Some(flags(|made| made.is_marked)),
            JoinColumn::HasLeft => Some(flags(|made| made.left != NONE)),
        };
        let gone: Vec<bool> = made.iter().map(|made| made.is_gone).collect();
        Ok(Delta {
            batch: self.batch(made.len(), column)?,
            rowtime: TimestampMicrosecondArray::from_iter_values(made.iter().map(|made| made.rowtime))
                .with_timezone("UTC"),
            weights: Weights::of(&gone),
            rows: Some(UInt32Array::from_iter_values(made.iter().map(|made| made.input_row))),
            clock: (!origin.clock.is_empty()).then(|| Int64Array::from_iter_values(made.iter().map(|made| made.clock))),
            origin: Arc::clone(origin),
        })
    }
}

/// What is told of a row by itself, because of `cause`.
fn alone(side: Side, id: u32, cause: &ComingRow, rowtime: i64, is_gone: bool, is_marked: bool) -> Made {
    let (left, right) = if side == Side::Left { (id, NONE) } else { (NONE, id) };
    Made { left, right, is_gone, is_marked, rowtime, input_row: cause.input_row, clock: cause.clock }
}

/// A step's rows are in memory at once: more of them would take the server with them.
fn too_many(delta: &Delta, row: usize) -> SqlError {
    let fact = "the events of one step have too many matches in a join";
    let error = SqlError::new(SqlState::ProgramLimitExceeded, fact)
        .detail(format!("at most {JOIN_ROWS_MAX} rows are made at once"))
        .hint("join on more columns, or within less time");
    delta.blame(row, error)
}

/// The types of the join key, which are those of both sides.
pub(super) fn key_types(input: &JoinInput) -> Result<Vec<DataType>, SqlError> {
    let types = input.keys.iter().map(|key| key.data_type(&input.schema).map_err(super::delta::sql_error));
    types.collect()
}

impl Operator for Join {
    fn step(&mut self, inputs: Vec<Delta>, origin: &Arc<Origin>) -> Result<Delta, SqlError> {
        let (left, right) = both(inputs)?;
        let mut made = Vec::new();
        self.take(Side::Left, &left, &mut made)?;
        self.take(Side::Right, &right, &mut made)?;
        self.close(origin, &mut made)?;
        // The left side's rows were taken first. Where rows only come, it is not to be seen.
        if !made.iter().any(|made| made.is_gone) {
            made.sort_by_key(|made| (made.input_row, made.clock));
        }
        let output = self.output(&made, origin)?;
        self.left.store.end_step()?;
        self.right.store.end_step()?;
        Ok(output)
    }

    fn save(&self, state: &mut StateWriter, part: Part) -> Result<(), SqlError> {
        state.put_late(if part.is_first() { self.late_rows } else { RowCount::ZERO })?;
        for (name, half) in [("left", &self.left), ("right", &self.right)] {
            let rows: Vec<_> = half.store.rows().filter(|(_, entry)| part.has(half.store.key(entry))).collect();
            half.store.save(name, &rows, state)?;
        }
        Ok(())
    }

    fn restore(&mut self, state: &mut StateReader) -> Result<(), SqlError> {
        self.late_rows = state.take_late()?;
        let null_equals_null = self.null_equals_null;
        for (name, half) in [("left", &mut self.left), ("right", &mut self.right)] {
            let keys = &half.input.keys;
            half.store.restore(name, state, |rows, codec| Keys::of(rows, keys, codec, null_equals_null).map(Some))?;
        }
        Ok(())
    }

    fn fresh(&self) -> Result<Option<Box<dyn Operator>>, SqlError> {
        let spec = JoinSpec {
            kind: self.kind,
            left: self.left.input.clone(),
            right: self.right.input.clone(),
            filter: self.condition.as_ref().map(|condition| Arc::clone(condition.whole())),
            filter_schema: Arc::clone(&self.filter_schema),
            null_equals_null: self.null_equals_null,
            within: self.within,
            keeps_unmatched: self.keeps_unmatched,
            columns: self.columns.clone(),
            schema: Arc::clone(&self.schema),
        };
        Ok(Some(Box::new(Self::new(spec)?)))
    }

    fn hashes(&self, input: usize, delta: &Delta) -> Result<Vec<u64>, SqlError> {
        let half = self.half(if input == 0 { Side::Left } else { Side::Right });
        Ok(half.keys_of(delta, self.null_equals_null)?.hashes(delta.len()))
    }

    fn due(&self) -> i64 {
        self.left.store.due().min(self.right.store.due())
    }

    fn is_stateful(&self) -> bool {
        true
    }

    fn state_bytes(&self) -> ByteSize {
        ByteSize::of(self.left.store.bytes() + self.right.store.bytes())
    }

    fn late_rows(&self) -> RowCount {
        self.late_rows
    }

    fn fingerprint(&self) -> String {
        let keys = |half: &Half| half.input.keys.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
        let side = |half: &Half| format!("{} of {} {:?}", keys(half), types_text(&half.input.schema), half.input.rows);
        let filter = self.condition.as_ref().map_or(String::new(), |condition| condition.whole().to_string());
        let within = self.within.map_or(String::new(), |within| {
            format!("{} {} {}", within.before.micros(), within.after.micros(), within.slack())
        });
        format!(
            "join({:?} {} {}; {}; {}; {filter}; within {within}; {:?})",
            self.kind,
            self.null_equals_null,
            self.filter_schema.fields().len(),
            side(&self.left),
            side(&self.right),
            self.columns
        )
    }
}
