//! Joins in which both sides trigger: of streams, within a time or not, and of changing tables.
//!
//! Owns the rows of both sides, which of them match, and when a row without a match is told. Leaves out the lookup of a
//! stream's rows in a table (`lookup`) and how rows are kept (`store`). State: the rows, with the number of their matches.

use super::aggregate::WindowBounds;
use super::call::Rows;
use super::delta::{Delta, NEVER, Origin, Weights, arrow_error};
use super::expression::{evaluate, evaluate_predicate};
use super::operator::{Operator, both};
use super::part::{Part, hash};
use super::rows::RowCodec;
use super::save::{StateReader, StateWriter};
use super::slots::KeyCodec;
use super::store::{Came, Kept, Store};
use crate::error::SqlError;
use crate::types::canonical;
use arrow::array::{
    Array, ArrayRef, BooleanArray, Int64Array, RecordBatch, RecordBatchOptions, TimestampMicrosecondArray, UInt32Array,
};
use arrow::datatypes::{DataType, SchemaRef};
use datafusion::physical_expr::PhysicalExpr;
use millstream_catalog::model::limit::JOIN_ROWS_MAX;
use millstream_catalog::model::{ByteSize, RowCount, Span, SqlState};
use std::sync::Arc;

/// Pairs that are looked at together.
const PAIRS_TARGET: usize = 16_384;

/// What a join gives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum JoinKind {
    /// Pairs.
    Inner,
    /// Pairs, and rows of the left without a match.
    Left,
    /// Pairs, and rows of the right without a match.
    Right,
    /// Pairs, and rows of either side without a match.
    Full,
    /// Rows of the left with a match.
    Semi,
    /// Rows of the left without a match.
    Anti,
    /// Rows of the left, and whether they have a match.
    Mark,
}

impl JoinKind {
    fn gives_pairs(self) -> bool {
        matches!(self, Self::Inner | Self::Left | Self::Right | Self::Full)
    }

    /// Whether what it gives of a row of `side` depends on whether that has matches.
    fn counts(self, side: Side) -> bool {
        match side {
            Side::Left => !matches!(self, Self::Inner | Self::Right),
            Side::Right => matches!(self, Self::Right | Self::Full),
        }
    }
}

/// One of the two inputs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Side {
    /// The first.
    Left,
    /// The second.
    Right,
}

impl Side {
    /// The one across.
    pub(crate) fn other(self) -> Self {
        match self {
            Self::Left => Self::Right,
            Self::Right => Self::Left,
        }
    }
}

/// One column of what comes out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum JoinColumn {
    /// A column of an input.
    Of(Side, usize),
    /// Whether the row has a match.
    Mark,
    /// Whether there is a row of the left.
    HasLeft,
}

/// How far apart in event time rows may be: the right one from `before` ahead of the left one to `after` behind it, both included.
///
/// A row is late, and dropped, when the query's time at it is past the last moment of a match, and the grace period. It
/// is kept for as long as a row that is not late may match it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Within {
    /// How much earlier the right row may be.
    pub(crate) before: Span,
    /// How much later.
    pub(crate) after: Span,
    /// How long after that rows are taken.
    pub(crate) grace: Span,
    /// How far the time of the rows may be behind the query's.
    pub(crate) delay: Span,
}

impl Within {
    /// How much later than a row of `side` its match may be.
    fn reach(&self, side: Side) -> i64 {
        if side == Side::Left { self.after.micros() } else { self.before.micros() }
    }

    fn slack(&self) -> i64 {
        self.grace.micros().saturating_add(self.delay.micros())
    }

    /// The last of the query's times at which a row of `side` is taken. One that matches only earlier rows is not late
    /// by its own time.
    fn last(&self, side: Side, rowtime: i64) -> i64 {
        rowtime.saturating_add(self.reach(side).max(0)).saturating_add(self.slack())
    }

    /// The first of the query's times at which no row that is taken can match one of `side` any more.
    fn expires(&self, side: Side, rowtime: i64) -> i64 {
        self.last(side.other(), rowtime.saturating_add(self.reach(side))).saturating_add(1)
    }

    fn fits(&self, side: Side, rowtime: i64, other: i64) -> bool {
        let (left, right) = if side == Side::Left { (rowtime, other) } else { (other, rowtime) };
        right >= left.saturating_sub(self.before.micros()) && right <= left.saturating_add(self.after.micros())
    }
}

/// One input of a join.
#[derive(Clone)]
pub(crate) struct JoinInput {
    /// Its columns.
    pub(crate) schema: SchemaRef,
    /// The first of them, which the condition sees.
    pub(crate) visible: usize,
    /// The join key.
    pub(crate) keys: Vec<Arc<dyn PhysicalExpr>>,
    /// Whether its rows go.
    pub(crate) rows: Rows,
    /// The window among its columns that is part of the key: rows go with it.
    pub(crate) window: Option<WindowBounds>,
}

/// What a join is made of.
pub(crate) struct JoinSpec {
    /// What it gives.
    pub(crate) kind: JoinKind,
    /// The left input.
    pub(crate) left: JoinInput,
    /// The right input.
    pub(crate) right: JoinInput,
    /// The rest of the condition, over the visible columns of the left, then of the right.
    pub(crate) filter: Option<Arc<dyn PhysicalExpr>>,
    /// Those columns.
    pub(crate) filter_schema: SchemaRef,
    /// Whether NULL equals NULL in the key.
    pub(crate) null_equals_null: bool,
    /// Between streams, how far apart rows may be.
    pub(crate) within: Option<Within>,
    /// Whether rows of the left are kept that match nothing, and stay.
    pub(crate) keeps_unmatched: bool,
    /// The columns that come out.
    pub(crate) columns: Vec<JoinColumn>,
    /// Their schema.
    pub(crate) schema: SchemaRef,
}

/// One side at work.
struct Half {
    input: JoinInput,
    keys: KeyCodec,
    codec: RowCodec,
    store: Store,
}

impl Half {
    fn new(input: JoinInput, types: &[DataType]) -> Result<Self, SqlError> {
        let store = match input.rows {
            Rows::Stay | Rows::Merge => Store::of_staying(),
            Rows::Go => Store::of_going(),
        };
        Ok(Self { keys: KeyCodec::new(types)?, codec: RowCodec::new(Arc::clone(&input.schema))?, store, input })
    }

    /// The join keys of the rows of `delta`; `None` where one equals nothing.
    fn keys_of(&self, delta: &Delta, null_equals_null: bool) -> Result<Vec<Option<Arc<[u8]>>>, SqlError> {
        let columns = self.input.keys.iter().map(|key| Ok(canonical(evaluate(key.as_ref(), delta)?)));
        let columns = columns.collect::<Result<Vec<ArrayRef>, SqlError>>()?;
        let bytes = self.keys.encode(&columns)?;
        let is_null = |row: usize| !null_equals_null && columns.iter().any(|column| column.is_null(row));
        Ok((0..delta.len()).map(|row| (!is_null(row)).then(|| Arc::from(bytes.get(row)))).collect())
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
    filter: Option<Arc<dyn PhysicalExpr>>,
    filter_schema: SchemaRef,
    null_equals_null: bool,
    within: Option<Within>,
    keeps_unmatched: bool,
    columns: Vec<JoinColumn>,
    schema: SchemaRef,
    late_rows: RowCount,
    /// Steps since the operator was made; the first is 1.
    step: u64,
}

/// A row that comes out.
struct Made {
    left: Option<Arc<[u8]>>,
    right: Option<Arc<[u8]>>,
    is_gone: bool,
    is_marked: bool,
    rowtime: i64,
    input_row: u32,
    clock: i64,
}

/// A row of a step, ready to be joined.
struct Coming {
    at: usize,
    row: Arc<[u8]>,
    key: Option<Arc<[u8]>>,
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
        Ok(Self {
            kind: spec.kind,
            left: Half::new(spec.left, &types)?,
            right: Half::new(spec.right, &types)?,
            filter: spec.filter,
            filter_schema: spec.filter_schema,
            null_equals_null: spec.null_equals_null,
            within: spec.within,
            keeps_unmatched: spec.keeps_unmatched,
            columns: spec.columns,
            schema: spec.schema,
            late_rows: RowCount::ZERO,
            step: 0,
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

    /// The rows of `delta` that are not late.
    fn coming(&mut self, side: Side, delta: &Delta) -> Result<Vec<Coming>, SqlError> {
        let half = self.half(side);
        let keys = half.keys_of(delta, self.null_equals_null)?;
        let rows = half.codec.encode(&delta.batch)?;
        let expires = half.expires(side, self.within.as_ref(), delta);
        let mut coming = Vec::with_capacity(delta.len());
        let mut late = 0;
        for (at, key) in keys.into_iter().enumerate() {
            let (rowtime, clock) = (delta.rowtime.value(at), delta.time_at(at));
            if self.within.as_ref().is_some_and(|within| clock != NEVER && clock > within.last(side, rowtime)) {
                late += 1;
                continue;
            }
            coming.push(Coming {
                at,
                row: Arc::from(rows.get(at)),
                key,
                rowtime,
                expires: expires[at],
                is_gone: delta.weights.is_gone(at),
                input_row: delta.input_row(at) as u32,
                clock,
            });
        }
        self.late_rows = self.late_rows.plus(RowCount::of(late));
        Ok(coming)
    }

    /// Joins the rows of one side with what the other has.
    fn take(&mut self, side: Side, delta: &Delta, out: &mut Vec<Made>) -> Result<(), SqlError> {
        let coming = self.coming(side, delta)?;
        let mut pairs: Vec<(usize, u32)> = Vec::new();
        let mut start = 0;
        for (index, row) in coming.iter().enumerate() {
            self.add_pairs(side, index, row, &mut pairs);
            if pairs.len() >= PAIRS_TARGET || index + 1 == coming.len() {
                let pairs = self.filtered(side, delta, &coming, std::mem::take(&mut pairs))?;
                self.settle(side, &coming[start..=index], start, &pairs, out);
                start = index + 1;
                if out.len() > JOIN_ROWS_MAX {
                    return Err(too_many(delta, row.at));
                }
            }
        }
        Ok(())
    }

    /// The rows of the other side that `row` may match.
    fn add_pairs(&self, side: Side, index: usize, row: &Coming, pairs: &mut Vec<(usize, u32)>) {
        let Some(key) = &row.key else { return };
        let other = &self.half(side.other()).store;
        let fits = |id: &u32| match &self.within {
            None => true,
            Some(within) => other.entry(*id).is_some_and(|entry| within.fits(side, row.rowtime, entry.rowtime)),
        };
        pairs.extend(other.matching(key).iter().copied().filter(fits).map(|id| (index, id)));
    }

    /// The pairs for which the rest of the condition is true.
    fn filtered(
        &self,
        side: Side,
        delta: &Delta,
        coming: &[Coming],
        pairs: Vec<(usize, u32)>,
    ) -> Result<Vec<(usize, u32)>, SqlError> {
        let Some(filter) = &self.filter else { return Ok(pairs) };
        if pairs.is_empty() {
            return Ok(pairs);
        }
        let (own, other) = (self.half(side), self.half(side.other()));
        let own_rows = UInt32Array::from_iter_values(pairs.iter().map(|(index, _)| coming[*index].at as u32));
        let mine = delta.take(&own_rows)?;
        let stored = pairs.iter().map(|(_, id)| other.store.entry(*id).map(|entry| entry.row.as_ref()));
        let theirs = other.codec.decode_some(stored)?;
        let mine_columns = mine.batch.columns().iter().take(own.input.visible).cloned();
        let theirs_columns = theirs.into_iter().take(other.input.visible);
        let columns: Vec<ArrayRef> = match side {
            Side::Left => mine_columns.chain(theirs_columns).collect(),
            Side::Right => theirs_columns.chain(mine_columns).collect(),
        };
        let options = RecordBatchOptions::new().with_row_count(Some(pairs.len()));
        let batch = RecordBatch::try_new_with_options(Arc::clone(&self.filter_schema), columns, &options);
        let both = Delta { batch: batch.map_err(arrow_error)?, ..mine };
        let mask = evaluate_predicate(filter.as_ref(), &both)?;
        let is_true = |row: usize| mask.is_valid(row) && mask.value(row);
        Ok(pairs.into_iter().enumerate().filter(|(row, _)| is_true(*row)).map(|(_, pair)| pair).collect())
    }

    /// Tells what the rows of `coming`, the first of which is number `start`, change, and keeps them.
    fn settle(&mut self, side: Side, coming: &[Coming], start: usize, pairs: &[(usize, u32)], out: &mut Vec<Made>) {
        let mut pairs = pairs;
        for (index, row) in coming.iter().enumerate() {
            let count = pairs.partition_point(|(at, _)| *at <= start + index);
            let (own, rest) = pairs.split_at(count);
            pairs = rest;
            if row.is_gone && self.half_mut(side).store.remove(&row.row).is_none() {
                continue;
            }
            for (_, id) in own {
                self.meet(side, row, *id, out);
            }
            if self.kind.counts(side) {
                self.tell_own(side, row, own.len(), out);
            }
            let is_told = self.within.is_some() && self.kind.counts(side);
            let matches_never = row.key.is_none() && !is_told && !self.keeps_unmatched;
            if !row.is_gone && (!matches_never || self.half(side).input.rows == Rows::Go) {
                let step = self.step;
                self.half_mut(side).store.insert(Kept {
                    row: Arc::clone(&row.row),
                    key: row.key.clone(),
                    rowtime: row.rowtime,
                    expires: row.expires,
                    matches: own.len() as u64,
                    came: Came { step, input_row: row.input_row, clock: row.clock },
                });
            }
        }
    }

    /// What a row gives of itself, with so many matches.
    fn tell_own(&self, side: Side, row: &Coming, matches: usize, out: &mut Vec<Made>) {
        let is_told = match self.kind {
            JoinKind::Semi => matches > 0,
            JoinKind::Mark => true,
            // Within a time it is told when no match can come any more.
            _ => matches == 0 && self.within.is_none(),
        };
        if is_told {
            out.push(alone(side, &row.row, row, row.rowtime, row.is_gone, matches > 0));
        }
    }

    /// The pair of a row with one that is there, and what it changes for that one.
    fn meet(&mut self, side: Side, row: &Coming, id: u32, out: &mut Vec<Made>) {
        let (kind, step) = (self.kind, self.step);
        let Some(entry) = self.half_mut(side.other()).store.entry_mut(id) else { return };
        let (left, right) = match side {
            Side::Left => (Arc::clone(&row.row), Arc::clone(&entry.row)),
            Side::Right => (Arc::clone(&entry.row), Arc::clone(&row.row)),
        };
        // A pair came about with the later of its rows, also when that is met first: the left side's go first.
        let later = match entry.came {
            came if came.step == step && came.input_row > row.input_row => came,
            _ => Came { step, input_row: row.input_row, clock: row.clock },
        };
        let pair = kind.gives_pairs().then(|| Made {
            left: Some(left),
            right: Some(right),
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
    fn count(&mut self, side: Side, row: &Coming, id: u32, out: &mut Vec<Made>) {
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
        let mut tell = |is_gone, is_marked| {
            out.push(alone(side.other(), &entry.row, row, entry.rowtime, is_gone, is_marked));
        };
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
    fn close(&mut self, origin: &Origin, out: &mut Vec<Made>) {
        if origin.end == NEVER {
            return;
        }
        let last_row = origin.clock.len().saturating_sub(1) as u32;
        for side in [Side::Left, Side::Right] {
            let is_told = self.within.is_some()
                && self.kind.counts(side)
                && !matches!(self.kind, JoinKind::Semi | JoinKind::Mark);
            let gone = self.half_mut(side).store.expire(origin.end);
            for entry in gone.into_iter().filter(|entry| is_told && entry.matches == 0) {
                let (left, right) = match side {
                    Side::Left => (Some(entry.row), None),
                    Side::Right => (None, Some(entry.row)),
                };
                let (rowtime, clock) = (entry.rowtime, entry.expires.saturating_sub(1));
                let (is_gone, is_marked) = (false, false);
                out.push(Made { left, right, is_gone, is_marked, rowtime, input_row: last_row, clock });
            }
        }
    }

    /// The rows of the left without a match, with their event times, and whether one could match.
    pub(super) fn unmatched(&self) -> impl Iterator<Item = (&Arc<[u8]>, i64, bool)> {
        let rows = self.left.store.rows().filter(|entry| entry.matches == 0);
        rows.map(|entry| (&entry.row, entry.rowtime, entry.has_key()))
    }

    /// Rows of the left by themselves.
    pub(super) fn alone<'r>(
        &self,
        rows: impl Iterator<Item = (&'r Arc<[u8]>, i64)>,
        is_gone: bool,
        origin: &Arc<Origin>,
    ) -> Result<Delta, SqlError> {
        let input_row = origin.clock.len().saturating_sub(1) as u32;
        let made = rows.map(|(row, rowtime)| Made {
            left: Some(Arc::clone(row)),
            right: None,
            is_gone,
            is_marked: false,
            rowtime,
            input_row,
            clock: origin.end,
        });
        self.output(&made.collect::<Vec<_>>(), origin)
    }

    fn output(&self, made: &[Made], origin: &Arc<Origin>) -> Result<Delta, SqlError> {
        if made.is_empty() {
            return Ok(Delta::empty(Arc::clone(&self.schema), origin));
        }
        let wants =
            |side: Side| self.columns.iter().any(|column| matches!(column, JoinColumn::Of(of, _) if *of == side));
        let left = match wants(Side::Left) {
            true => self.left.codec.decode_some(made.iter().map(|made| made.left.as_deref()))?,
            false => Vec::new(),
        };
        let right = match wants(Side::Right) {
            true => self.right.codec.decode_some(made.iter().map(|made| made.right.as_deref()))?,
            false => Vec::new(),
        };
        let column = |column: &JoinColumn| -> Result<ArrayRef, SqlError> {
            let (from, at) = match column {
                JoinColumn::Of(Side::Left, at) => (&left, *at),
                JoinColumn::Of(Side::Right, at) => (&right, *at),
                JoinColumn::Mark => {
                    return Ok(Arc::new(BooleanArray::from_iter(made.iter().map(|made| Some(made.is_marked)))));
                }
                JoinColumn::HasLeft => {
                    return Ok(Arc::new(BooleanArray::from_iter(made.iter().map(|made| Some(made.left.is_some())))));
                }
            };
            from.get(at).cloned().ok_or_else(|| SqlError::internal("a join without a column"))
        };
        let columns = self.columns.iter().map(column).collect::<Result<Vec<_>, _>>()?;
        let options = RecordBatchOptions::new().with_row_count(Some(made.len()));
        let batch = RecordBatch::try_new_with_options(Arc::clone(&self.schema), columns, &options);
        let gone: Vec<bool> = made.iter().map(|made| made.is_gone).collect();
        Ok(Delta {
            batch: batch.map_err(arrow_error)?,
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
fn alone(side: Side, row: &Arc<[u8]>, cause: &Coming, rowtime: i64, is_gone: bool, is_marked: bool) -> Made {
    let row = Some(Arc::clone(row));
    let (left, right) = if side == Side::Left { (row, None) } else { (None, row) };
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
        self.step += 1;
        let mut made = Vec::new();
        self.take(Side::Left, &left, &mut made)?;
        self.take(Side::Right, &right, &mut made)?;
        self.close(origin, &mut made);
        // The left side's rows were taken first. Where rows only come, it is not to be seen.
        if !made.iter().any(|made| made.is_gone) {
            made.sort_by_key(|made| (made.input_row, made.clock));
        }
        self.output(&made, origin)
    }

    fn save(&self, state: &mut StateWriter, part: Part) -> Result<(), SqlError> {
        let late_rows = if part.is_first() { self.late_rows.value() as i64 } else { 0 };
        let late: ArrayRef = Arc::new(Int64Array::from(vec![late_rows]));
        state.put("late", &RecordBatch::try_from_iter([("late", late)]).map_err(arrow_error)?)?;
        self.left.store.save("left", &self.left.codec, state, |entry| part.has(entry.key()))?;
        self.right.store.save("right", &self.right.codec, state, |entry| part.has(entry.key()))
    }

    fn restore(&mut self, state: &mut StateReader) -> Result<(), SqlError> {
        let late: Int64Array = super::delta::downcast(state.take("late")?.column(0))?;
        self.late_rows = RowCount::new(late.values().first().map_or(0, |rows| *rows as u64));
        let null_equals_null = self.null_equals_null;
        for (name, half) in [("left", &mut self.left), ("right", &mut self.right)] {
            let mut store = std::mem::take(&mut half.store);
            let restored = store.restore(name, &half.codec, state, |batch| {
                half.keys_of(&Delta::of_batch(batch.clone()), null_equals_null)
            });
            half.store = store;
            restored?;
        }
        Ok(())
    }

    fn fresh(&self) -> Result<Option<Box<dyn Operator>>, SqlError> {
        let types = key_types(&self.left.input)?;
        Ok(Some(Box::new(Self {
            kind: self.kind,
            left: Half::new(self.left.input.clone(), &types)?,
            right: Half::new(self.right.input.clone(), &types)?,
            filter: self.filter.clone(),
            filter_schema: Arc::clone(&self.filter_schema),
            null_equals_null: self.null_equals_null,
            within: self.within,
            keeps_unmatched: self.keeps_unmatched,
            columns: self.columns.clone(),
            schema: Arc::clone(&self.schema),
            late_rows: RowCount::ZERO,
            step: 0,
        })))
    }

    fn hashes(&self, input: usize, delta: &Delta) -> Result<Vec<u64>, SqlError> {
        let keys =
            self.half(if input == 0 { Side::Left } else { Side::Right }).keys_of(delta, self.null_equals_null)?;
        Ok(keys.iter().map(|key| hash(key.as_deref().unwrap_or_default())).collect())
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
        let side = |half: &Half| format!("{} of {} {:?}", keys(half), half.codec.text(), half.input.rows);
        let filter = self.filter.as_ref().map_or(String::new(), ToString::to_string);
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
