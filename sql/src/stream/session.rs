//! Continuous GROUP BY over sessions: windows that events make, each as long as events follow each other.
//!
//! Owns the open sessions of every key, which events join, begin and merge them, and lateness. Leaves out the
//! aggregates' own state (`call`). State lives in memory.

use super::aggregate::Grouping;
use super::call::{Call, Touched};
use super::delta::{Delta, NEVER, Origin, Weights, arrow_error, concat, downcast, with_weight};
use super::expression::evaluate;
use super::operator::{Merging, Operator, only};
use super::part::Part;
use super::save::{StateReader, StateWriter};
use super::slots::{Found, KeyBytes, KeyCodec};
use crate::error::SqlError;
use crate::types::canonical;
use arrow::array::{
    Array, ArrayRef, AsArray, Int64Array, RecordBatch, RecordBatchOptions, TimestampMicrosecondArray, UInt32Array,
    make_comparator,
};
use arrow::compute::{self, SortOptions};
use arrow::datatypes::{DataType, SchemaRef, TimestampMicrosecondType};
use datafusion::common::HashMap;
use datafusion::physical_expr::PhysicalExpr;
use millstream_catalog::model::{ByteSize, RowCount, Span};
use std::collections::BTreeSet;
use std::sync::Arc;

/// Memory of a session beside its key, about.
const ENTRY_BYTES: usize = 160;

/// What a grouping column of sessions is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum SessionColumn {
    /// The key at this position.
    Key(usize),
    /// The first event of the session.
    Start,
    /// Its last event, and the tail.
    End,
}

/// How sessions are told apart, in microseconds.
#[derive(Debug, Clone, Copy)]
pub(crate) struct SessionBounds {
    /// Events up to so far apart are one session.
    pub(crate) gap: i64,
    /// From the last event to the end.
    pub(crate) tail: i64,
    /// From the last event to when time closes the session: the gap, the grace period, and how far the time of rows may
    /// be behind the query's. A session is open while time is not beyond.
    pub(crate) open: i64,
}

/// Groups rows by keys and sessions.
///
/// Out: per step, the sessions that are no more or changed with −1, then those that are new or changed with +1: the
/// grouping columns, then the aggregates.
///
/// An event joins every open session it is within the gap of; they become one. One that joins none, and whose own
/// session would be closed, is late. With a gap of 10 and no grace, after 0 and 5 a session is open while time is up to
/// 15; an event at 15 joins it, though time is 15 then.
pub(crate) struct Sessions {
    keys: Vec<Arc<dyn PhysicalExpr>>,
    time: Arc<dyn PhysicalExpr>,
    columns: Vec<SessionColumn>,
    bounds: SessionBounds,
    calls: Vec<Call>,
    schema: SchemaRef,
    codec: KeyCodec,
    /// By slot.
    sessions: Vec<Option<Session>>,
    free: Vec<u32>,
    /// The open sessions of each key.
    open: HashMap<Arc<[u8]>, Vec<u32>>,
    /// Last events of sessions, with their slots.
    lasts: BTreeSet<(i64, u32)>,
    key_bytes: usize,
    late_rows: RowCount,
}

#[derive(Debug, Clone)]
struct Session {
    key: Arc<[u8]>,
    start: i64,
    last: i64,
    rowtime: i64,
}

/// A session while a step goes on.
#[derive(Debug)]
struct Work {
    session: Session,
    /// The slots of the sessions it was made of.
    old: Vec<u32>,
    /// The last row that joined it.
    row: Option<usize>,
    /// It became part of another.
    merged: Option<usize>,
}

/// The sessions of a step, and which of them each row that is not late is in.
#[derive(Default)]
struct Steps {
    works: Vec<Work>,
    /// By key, in the order of first touch.
    of_key: HashMap<Arc<[u8]>, Vec<usize>>,
    rows: Vec<u32>,
    groups: Vec<usize>,
}

impl Steps {
    /// The session that `work` is part of.
    fn root(&self, mut work: usize) -> usize {
        while let Some(next) = self.works[work].merged {
            work = next;
        }
        work
    }
}

impl Sessions {
    /// No sessions yet; `grouping` is of the keys without the session, its schema has `columns` first.
    pub(crate) fn new(
        grouping: Grouping,
        time: Arc<dyn PhysicalExpr>,
        columns: Vec<SessionColumn>,
        bounds: SessionBounds,
    ) -> Result<Self, SqlError> {
        let Grouping { keys, calls, schema, .. } = grouping;
        let types = key_types(&columns, &schema);
        Ok(Self {
            codec: KeyCodec::new(&types)?,
            keys,
            time,
            columns,
            bounds,
            calls,
            schema,
            sessions: Vec::new(),
            free: Vec::new(),
            open: HashMap::new(),
            lasts: BTreeSet::new(),
            key_bytes: 0,
            late_rows: RowCount::ZERO,
        })
    }

    fn is_open(&self, last: i64, time: i64) -> bool {
        time <= last.saturating_add(self.bounds.open)
    }

    /// Puts the rows into sessions.
    fn assign(&mut self, delta: &Delta) -> Result<Steps, SqlError> {
        let columns = self.keys.iter().map(|key| Ok(canonical(evaluate(key.as_ref(), delta)?)));
        let keys: KeyBytes = self.codec.encode(&columns.collect::<Result<Vec<_>, SqlError>>()?)?;
        let times = evaluate(self.time.as_ref(), delta)?;
        let times = times
            .as_primitive_opt::<TimestampMicrosecondType>()
            .ok_or_else(|| SqlError::internal("the time of a session is no timestamp"))?;
        let mut steps = Steps::default();
        for row in (0..delta.len()).filter(|row| times.is_valid(*row)) {
            match self.join(&mut steps, keys.get(row), times.value(row), delta.time_at(row)) {
                None => self.late_rows = self.late_rows.plus(RowCount::new(1)),
                Some(work) => {
                    let found = &mut steps.works[work];
                    found.row = Some(row);
                    found.session.rowtime = found.session.rowtime.max(delta.rowtime.value(row));
                    steps.rows.push(row as u32);
                    steps.groups.push(work);
                }
            }
        }
        Ok(steps)
    }

    /// The session that an event of `key` at `at` joins when time is `time`; `None` when it is late.
    fn join(&self, steps: &mut Steps, key: &[u8], at: i64, time: i64) -> Option<usize> {
        if !steps.of_key.contains_key(key) {
            self.load(steps, key);
        }
        let gap = self.bounds.gap;
        let here = steps.of_key.get(key).into_iter().flatten().copied().filter(|work| {
            let Work { session, merged, .. } = &steps.works[*work];
            let is_near = session.start.saturating_sub(gap) <= at && at <= session.last.saturating_add(gap);
            merged.is_none() && is_near && self.is_open(session.last, time)
        });
        let here: Vec<usize> = here.collect();
        let Some((first, others)) = here.split_first() else {
            let key = steps.of_key.get_key_value(key)?.0.clone();
            if !self.is_open(at, time) {
                return None;
            }
            let session = Session { key: Arc::clone(&key), start: at, last: at, rowtime: NEVER };
            steps.works.push(Work { session, old: Vec::new(), row: None, merged: None });
            let work = steps.works.len() - 1;
            steps.of_key.entry(key).or_default().push(work);
            return Some(work);
        };
        for other in others {
            let other_work = &mut steps.works[*other];
            other_work.merged = Some(*first);
            let (session, old) = (other_work.session.clone(), std::mem::take(&mut other_work.old));
            let work = &mut steps.works[*first];
            work.old.extend(old);
            work.session.start = work.session.start.min(session.start);
            work.session.last = work.session.last.max(session.last);
            work.session.rowtime = work.session.rowtime.max(session.rowtime);
        }
        let session = &mut steps.works[*first].session;
        session.start = session.start.min(at);
        session.last = session.last.max(at);
        Some(*first)
    }

    fn load(&self, steps: &mut Steps, key: &[u8]) {
        let known = self.open.get_key_value(key);
        let shared = known.map_or_else(|| Arc::from(key), |(key, _)| Arc::clone(key));
        let slots = known.map(|(_, slots)| slots.as_slice()).unwrap_or_default();
        let mut works = Vec::with_capacity(slots.len());
        for slot in slots {
            let Some(session) = self.sessions.get(*slot as usize).and_then(Option::as_ref) else { continue };
            steps.works.push(Work { session: session.clone(), old: vec![*slot], row: None, merged: None });
            works.push(steps.works.len() - 1);
        }
        steps.of_key.insert(shared, works);
    }

    /// The grouping columns of `sessions`.
    fn group_columns<'s>(
        &self,
        sessions: impl Iterator<Item = &'s Session> + Clone,
    ) -> Result<Vec<ArrayRef>, SqlError> {
        let keys = self.codec.decode(sessions.clone().map(|session| session.key.as_ref()))?;
        let edge = |at: usize, edge: &dyn Fn(&Session) -> i64| -> Result<ArrayRef, SqlError> {
            let values = TimestampMicrosecondArray::from_iter_values(sessions.clone().map(edge));
            compute::cast(&values, self.schema.field(at).data_type()).map_err(arrow_error)
        };
        let columns = self.columns.iter().enumerate().map(|(at, column)| match column {
            SessionColumn::Key(key) => Ok(Arc::clone(&keys[*key])),
            SessionColumn::Start => edge(at, &|session| session.start),
            SessionColumn::End => edge(at, &|session| session.last.saturating_add(self.bounds.tail)),
        });
        columns.collect()
    }

    fn rows_of(
        &self,
        delta: &Delta,
        mut columns: Vec<ArrayRef>,
        calls: Vec<ArrayRef>,
        (sessions, rows): (Vec<&Session>, Vec<usize>),
    ) -> Result<Delta, SqlError> {
        columns.extend(calls);
        let options = RecordBatchOptions::new().with_row_count(Some(sessions.len()));
        let batch = RecordBatch::try_new_with_options(Arc::clone(&self.schema), columns, &options);
        let rowtime = sessions.iter().map(|session| session.rowtime);
        let places = rows.iter().map(|row| delta.input_row(*row) as u32);
        let clock = delta.clock.as_ref();
        Ok(Delta {
            batch: batch.map_err(arrow_error)?,
            rowtime: TimestampMicrosecondArray::from_iter_values(rowtime).with_timezone("UTC"),
            weights: Weights::Ones,
            rows: Some(UInt32Array::from_iter_values(places)),
            clock: clock.map(|clock| Int64Array::from_iter_values(rows.iter().map(|row| clock.value(*row)))),
            origin: Arc::clone(&delta.origin),
        })
    }

    /// The sessions that rows of this step change, as they were; and of each the work it is part of.
    fn before(&self, delta: &Delta, steps: &Steps, changed: &[usize]) -> Result<(Delta, Vec<usize>), SqlError> {
        let slots: Vec<(usize, u32)> =
            changed.iter().flat_map(|work| steps.works[*work].old.iter().map(|slot| (*work, *slot))).collect();
        let found = slots.iter().map(|(_, slot)| Found { slot: *slot, is_new: false }).collect();
        let touched = Touched::new(Vec::new(), found, self.sessions.len());
        let sessions: Vec<&Session> =
            slots.iter().filter_map(|(_, slot)| self.sessions.get(*slot as usize)?.as_ref()).collect();
        let calls = match slots.is_empty() {
            true => self.calls.iter().map(|call| arrow::array::new_empty_array(call.data_type())).collect(),
            false => self.calls.iter().map(|call| call.current(&touched)).collect::<Result<Vec<_>, _>>()?,
        };
        let rows = slots.iter().map(|(work, _)| steps.works[*work].row.unwrap_or(0)).collect();
        let columns = self.group_columns(sessions.iter().copied())?;
        let works = slots.into_iter().map(|(work, _)| work).collect();
        Ok((self.rows_of(delta, columns, calls, (sessions, rows))?, works))
    }

    /// Gives each changed session its place, its state that of all it was made of.
    fn settle(&mut self, steps: &Steps, changed: &[usize]) -> Result<Vec<Found>, SqlError> {
        let (mut found, mut pairs) = (Vec::with_capacity(changed.len()), Vec::new());
        for work in changed.iter().map(|work| &steps.works[*work]) {
            for slot in &work.old {
                self.remove(*slot);
            }
            let first = work.old.first().copied();
            pairs.extend(work.old.iter().skip(1).filter_map(|slot| Some((first?, *slot))));
            found.push(Found { slot: first.unwrap_or(u32::MAX), is_new: first.is_none() });
        }
        let gone: Vec<u32> = pairs.iter().map(|(_, slot)| *slot).collect();
        if !pairs.is_empty() {
            for call in &mut self.calls {
                call.merge(&pairs)?;
                call.clear(&gone);
            }
        }
        self.free.extend(gone);
        for (found, work) in found.iter_mut().zip(changed.iter().map(|work| &steps.works[*work])) {
            if found.is_new {
                found.slot = self.free.pop().unwrap_or_else(|| {
                    self.sessions.push(None);
                    self.sessions.len() as u32 - 1
                });
            }
            self.put(found.slot, work.session.clone());
        }
        Ok(found)
    }

    fn put(&mut self, slot: u32, session: Session) {
        self.lasts.insert((session.last, slot));
        let slots = self.open.entry(Arc::clone(&session.key)).or_default();
        if slots.is_empty() {
            self.key_bytes += session.key.len();
        }
        slots.push(slot);
        slots.sort_unstable();
        self.sessions[slot as usize] = Some(session);
    }

    /// Takes a session out; its slot and state stay.
    fn remove(&mut self, slot: u32) {
        let Some(session) = self.sessions.get_mut(slot as usize).and_then(Option::take) else { return };
        self.lasts.remove(&(session.last, slot));
        if let Some(slots) = self.open.get_mut(&session.key) {
            slots.retain(|other| *other != slot);
            if slots.is_empty() {
                self.open.remove(&session.key);
                self.key_bytes -= session.key.len();
            }
        }
    }

    /// Lets go of the sessions that are closed when time is `end`.
    fn close(&mut self, end: i64) {
        let mut gone = Vec::new();
        while let Some((last, slot)) = self.lasts.first().copied().filter(|_| end != NEVER) {
            if self.is_open(last, end) {
                break;
            }
            self.remove(slot);
            gone.push(slot);
        }
        if !gone.is_empty() {
            self.calls.iter_mut().for_each(|call| call.clear(&gone));
            self.free.extend(gone);
        }
    }

    fn take(&mut self, input: &Delta) -> Result<Delta, SqlError> {
        let mut steps = self.assign(input)?;
        if steps.rows.is_empty() {
            return Ok(Delta::empty(Arc::clone(&self.schema), &input.origin));
        }
        let delta = match steps.rows.len() == input.len() {
            true => input.clone(),
            false => input.take(&UInt32Array::from(std::mem::take(&mut steps.rows)))?,
        };
        let changed: Vec<usize> = (0..steps.works.len())
            .filter(|work| steps.works[*work].merged.is_none() && steps.works[*work].row.is_some())
            .collect();
        let mut position = vec![0; steps.works.len()];
        changed.iter().enumerate().for_each(|(at, work)| position[*work] = at);
        let groups = steps.groups.iter().map(|work| position[steps.root(*work)]).collect();
        let (before, was) = self.before(input, &steps, &changed)?;
        let found = self.settle(&steps, &changed)?;
        let touched = Touched::new(groups, found, self.sessions.len());
        let step = |call: &mut Call| call.step(call.evaluate(&delta)?, &delta, &touched);
        let calls = self.calls.iter_mut().map(step).collect::<Result<Vec<_>, _>>()?;
        let sessions: Vec<&Session> = changed.iter().map(|work| &steps.works[*work].session).collect();
        let rows = changed.iter().map(|work| steps.works[*work].row.unwrap_or(0)).collect();
        let columns = self.group_columns(sessions.iter().copied())?;
        let after = self.rows_of(input, columns, calls, (sessions, rows))?;
        let was: Vec<usize> = was.into_iter().map(|work| position[work]).collect();
        changes(before, after, &was)
    }
}

/// The rows of `before` with −1, then those of `after` with +1; row `was[i]` of `after` took the place of row `i` of
/// `before`. Nothing of rows that are as they were.
fn changes(before: Delta, after: Delta, was: &[usize]) -> Result<Delta, SqlError> {
    let mut is_same = vec![true; before.len()];
    for (old, new) in before.batch.columns().iter().zip(after.batch.columns()) {
        let order = make_comparator(old, new, SortOptions::default()).map_err(arrow_error)?;
        is_same.iter_mut().enumerate().for_each(|(row, is_same)| *is_same &= order(row, was[row]).is_eq());
    }
    let mut is_new = vec![true; after.len()];
    is_same.iter().zip(was).filter(|(is_same, _)| **is_same).for_each(|(_, row)| is_new[*row] = false);
    let picked = |wanted: Vec<bool>| {
        let rows = wanted.into_iter().enumerate().filter(|(_, is_wanted)| *is_wanted);
        UInt32Array::from_iter_values(rows.map(|(row, _)| row as u32))
    };
    let gone = picked(is_same.into_iter().map(|is_same| !is_same).collect());
    concat(&[with_weight(before.take(&gone)?, -1), with_weight(after.take(&picked(is_new))?, 1)])
}

/// The types of the keys among grouping columns.
fn key_types(columns: &[SessionColumn], schema: &SchemaRef) -> Vec<DataType> {
    let keys = columns.iter().zip(schema.fields()).filter(|(column, _)| matches!(column, SessionColumn::Key(_)));
    keys.map(|(_, field)| field.data_type().clone()).collect()
}

impl Operator for Sessions {
    fn step(&mut self, inputs: Vec<Delta>, origin: &Arc<Origin>) -> Result<Delta, SqlError> {
        let output = self.take(&only(inputs)?)?;
        self.close(origin.end);
        Ok(output)
    }

    fn save(&self, state: &mut StateWriter, part: Part) -> Result<(), SqlError> {
        let live =
            self.sessions.iter().enumerate().filter_map(|(slot, session)| Some((slot as u32, session.as_ref()?)));
        let live = live.filter(|(_, session)| part.has(&session.key));
        let (slots, sessions): (Vec<u32>, Vec<&Session>) = live.unzip();
        let number = |value: &dyn Fn(&Session) -> i64| -> ArrayRef {
            Arc::new(Int64Array::from_iter_values(sessions.iter().map(|session| value(session))))
        };
        let mut columns: Vec<(String, ArrayRef)> = vec![
            ("start".to_owned(), number(&|session| session.start)),
            ("last".to_owned(), number(&|session| session.last)),
            ("rowtime".to_owned(), number(&|session| session.rowtime)),
        ];
        let keys = self.codec.decode(sessions.iter().map(|session| session.key.as_ref()))?;
        columns.extend(keys.into_iter().enumerate().map(|(at, key)| (format!("key{at}"), key)));
        let columns = columns.into_iter().map(|(name, column)| (name, column, true));
        state.put("sessions", &RecordBatch::try_from_iter_with_nullable(columns).map_err(arrow_error)?)?;
        state.put_late(if part.is_first() { self.late_rows } else { RowCount::ZERO })?;
        for (index, call) in self.calls.iter().enumerate() {
            call.save(&format!("call{index}"), &slots, state)?;
        }
        Ok(())
    }

    fn restore(&mut self, state: &mut StateReader) -> Result<(), SqlError> {
        let batch = state.take("sessions")?;
        let number = |at: usize| downcast::<Int64Array>(batch.column(at));
        let (start, last, rowtime) = (number(0)?, number(1)?, number(2)?);
        let columns: Vec<ArrayRef> = batch.columns().iter().skip(3).cloned().collect();
        let keys = self.codec.encode(&columns)?;
        self.sessions = vec![None; batch.num_rows()];
        for row in 0..batch.num_rows() {
            let key = Arc::from(keys.get(row));
            let session = Session { key, start: start.value(row), last: last.value(row), rowtime: rowtime.value(row) };
            self.put(row as u32, session);
        }
        self.late_rows = state.take_late()?;
        for (index, call) in self.calls.iter_mut().enumerate() {
            call.restore(&format!("call{index}"), batch.num_rows(), state)?;
        }
        Ok(())
    }

    fn fresh(&self) -> Result<Option<Box<dyn Operator>>, SqlError> {
        let types = key_types(&self.columns, &self.schema);
        Ok(Some(Box::new(Self {
            keys: self.keys.clone(),
            time: Arc::clone(&self.time),
            columns: self.columns.clone(),
            bounds: self.bounds,
            calls: self.calls.iter().map(Call::fresh).collect::<Result<_, _>>()?,
            schema: Arc::clone(&self.schema),
            codec: KeyCodec::new(&types)?,
            sessions: Vec::new(),
            free: Vec::new(),
            open: HashMap::new(),
            lasts: BTreeSet::new(),
            key_bytes: 0,
            late_rows: RowCount::ZERO,
        })))
    }

    fn hashes(&self, _: usize, delta: &Delta) -> Result<Vec<u64>, SqlError> {
        let columns = self.keys.iter().map(|key| Ok(canonical(evaluate(key.as_ref(), delta)?)));
        Ok(self.codec.encode(&columns.collect::<Result<Vec<_>, SqlError>>()?)?.hashes(delta.len()))
    }

    fn merging(&self) -> Merging {
        Merging::GoneFirst
    }

    fn due(&self) -> i64 {
        let first = self.lasts.first();
        first.map_or(i64::MAX, |(last, _)| last.saturating_add(self.bounds.open).saturating_add(1))
    }

    fn is_stateful(&self) -> bool {
        true
    }

    fn state_bytes(&self) -> ByteSize {
        let calls: usize = self.calls.iter().map(Call::bytes).sum();
        ByteSize::of(self.key_bytes + self.sessions.len() * ENTRY_BYTES + calls)
    }

    fn late_rows(&self) -> RowCount {
        self.late_rows
    }

    fn fingerprint(&self) -> String {
        let keys: Vec<String> = self.keys.iter().map(ToString::to_string).collect();
        let types: Vec<String> = self.schema.fields().iter().map(|field| field.data_type().to_string()).collect();
        let calls: Vec<String> = self.calls.iter().map(Call::text).collect();
        let SessionBounds { gap, tail, open } = self.bounds;
        let [gap, tail, open] = [gap, tail, open].map(Span::from_micros);
        format!(
            "sessions({}; {}; {:?}, gap {gap}, end after {tail}, closed after {open}; {}; {})",
            keys.join(", "),
            self.time,
            self.columns,
            calls.join(", "),
            types.join(", ")
        )
    }
}
