//! An operator whose state is too much to be held or saved at once: it falls into parts by key.
//!
//! Owns which parts are in memory and which in files. One part is a whole operator of its own, which sees the rows of its
//! keys only; a step takes one after the other, those in memory first, and the parts that were not used for longest leave.
//! Leaves out what operators do, and how much memory there is (`pipeline`, engine). What a part is saved as is what
//! operators save; a part that did not change since needs no new file.

use super::delta::{Delta, Origin, arrow_error, concat, downcast};
use super::operator::{Merging, Operator, Origins};
use super::part::{Part, StateFile, StateStore, place};
use super::save::{StateReader, StateWriter};
use super::slots::KeyCodec;
use crate::error::SqlError;
use arrow::array::{ArrayRef, Int64Array, RecordBatch, UInt32Array, UInt64Array};
use arrow::datatypes::DataType;
use datafusion::common::HashMap;
use millstream_catalog::model::{ByteSize, RowCount};
use std::sync::Arc;

/// State of an operator that falls into parts whatever memory there is: what is saved at once stays within bounds.
const WHOLE_BYTES_MAX: u64 = 512 << 20;
/// State of a part that is divided further.
const PART_BYTES_MAX: u64 = if cfg!(test) { 2_000 } else { 16 << 20 };
/// State that is not worth parts.
const PARTED_BYTES_MIN: u64 = if cfg!(test) { 0 } else { 256 << 10 };
/// State of a part as it is made, if there are not too many.
const PART_BYTES: u64 = 4 << 20;
/// Into how many parts a whole falls: each is picked from all of it.
const PARTS_MIN: usize = if cfg!(test) { 4 } else { 16 };
const PARTS_FIRST_MAX: usize = 32;
/// Into how many a part falls.
const FACTOR: usize = 4;
/// There are no more parts.
const PARTS_MAX: usize = 16_384;
/// The section that lists the parts.
const PARTS: &str = "parts";

/// An operator in one part or many.
pub(crate) struct Parted {
    /// All of it while there are no parts; then none of it.
    own: Box<dyn Operator>,
    /// None, or a power of two.
    parts: Vec<State>,
    store: Option<Arc<dyn StateStore>>,
    /// About so much of it stays in memory.
    bytes_max: u64,
    /// Steps so far.
    step: u64,
}

/// One part.
struct State {
    /// The part in memory.
    operator: Option<Box<dyn Operator>>,
    /// It in a file, unless it changed since.
    file: Option<Arc<StateFile>>,
    /// Memory it takes, or took.
    bytes: u64,
    due: i64,
    late_rows: RowCount,
    /// The step that used it last.
    used: u64,
}

impl State {
    fn of(operator: Box<dyn Operator>) -> Self {
        let mut state =
            Self { operator: Some(operator), file: None, bytes: 0, due: i64::MAX, late_rows: RowCount::ZERO, used: 0 };
        state.count();
        state
    }

    /// Takes down what must be known of it while it is in its file.
    fn count(&mut self) {
        if let Some(operator) = &self.operator {
            self.bytes = operator.state_bytes().value();
            self.due = operator.due();
            self.late_rows = operator.late_rows();
        }
    }

    /// Writes the part, unless it is in a file as it is.
    fn write(&mut self, store: &Arc<dyn StateStore>) -> Result<(), SqlError> {
        if let (Some(operator), None) = (&self.operator, &self.file) {
            let mut state = StateWriter::default();
            operator.save(&mut state, Part::WHOLE)?;
            self.file = Some(Arc::new(StateFile::write(store, &state.finish()?.0)?));
        }
        Ok(())
    }

    fn held_bytes(&self) -> u64 {
        if self.operator.is_some() { self.bytes } else { 0 }
    }
}

impl Parted {
    /// In one part.
    pub(crate) fn new(own: Box<dyn Operator>) -> Self {
        Self { own, parts: Vec::new(), store: None, bytes_max: u64::MAX, step: 0 }
    }

    fn fresh(&self) -> Result<Box<dyn Operator>, SqlError> {
        self.own.fresh()?.ok_or_else(|| SqlError::internal("an operator without parts is in parts"))
    }

    /// A part as an operator.
    fn operator(&mut self, at: usize) -> Result<&mut Box<dyn Operator>, SqlError> {
        let loaded = match &self.parts[at] {
            State { operator: Some(_), .. } => None,
            State { file: None, .. } => return Err(SqlError::internal("a part of an operator is nowhere")),
            State { file: Some(file), .. } => Some(self.restored(&file.read()?)?),
        };
        let operator = &mut self.parts[at].operator;
        if loaded.is_some() {
            *operator = loaded;
        }
        operator.as_mut().ok_or_else(|| SqlError::internal("a part of an operator is gone"))
    }

    /// Divides every part in `factor`, a power of two. As many as have room stay in memory.
    fn divide(&mut self, factor: usize, store: &Arc<dyn StateStore>) -> Result<(), SqlError> {
        if self.parts.is_empty() {
            let fresh = self.fresh()?;
            let whole = std::mem::replace(&mut self.own, fresh);
            self.parts = vec![State::of(whole)];
        }
        let (before, mut held) = (self.parts.len(), 0);
        let mut divided: Vec<Option<State>> = (0..before * factor).map(|_| None).collect();
        for at in 0..before {
            self.operator(at)?;
            let used = self.parts[at].used;
            let Some(old) = self.parts[at].operator.take() else { continue };
            for piece in 0..factor {
                // Hashes with one remainder by the number before have these by the new one.
                let index = at + before * piece;
                let mut state = StateWriter::default();
                old.save(&mut state, Part::new(index, before * factor))?;
                let bytes = state.finish()?.0;
                let mut part = State { used, ..State::of(self.restored(&bytes)?) };
                held += part.bytes;
                if held > self.bytes_max {
                    held -= part.bytes;
                    part.file = Some(Arc::new(StateFile::write(store, &bytes)?));
                    part.operator = None;
                }
                divided[index] = Some(part);
            }
            self.parts[at].file = None;
        }
        self.parts = divided.into_iter().flatten().collect();
        Ok(())
    }

    /// A part, of what it was saved as.
    fn restored(&self, bytes: &[u8]) -> Result<Box<dyn Operator>, SqlError> {
        let mut operator = self.fresh()?;
        let mut state = StateReader::open(bytes, None)?;
        operator.restore(&mut state)?;
        state.finish()?;
        Ok(operator)
    }

    /// Lets the parts leave that were not used for longest, until the rest is within bounds; but for `busy`.
    fn leave(&mut self, busy: Option<usize>) -> Result<(), SqlError> {
        let Some(store) = self.store.clone() else { return Ok(()) };
        let mut held: u64 = self.parts.iter().map(State::held_bytes).sum();
        if held <= self.bytes_max {
            return Ok(());
        }
        // One that has no room by itself would come back with the next step.
        let may_leave = |at: &usize| {
            let part = &self.parts[*at];
            part.operator.is_some() && Some(*at) != busy && part.bytes <= self.bytes_max.max(PART_BYTES_MAX)
        };
        let mut here: Vec<usize> = (0..self.parts.len()).filter(may_leave).collect();
        here.sort_by_key(|at| self.parts[*at].used);
        for at in here {
            if held <= self.bytes_max {
                break;
            }
            let part = &mut self.parts[at];
            held -= part.held_bytes();
            part.write(&store)?;
            part.operator = None;
        }
        Ok(())
    }

    /// The rows of each part, for the parts that have any or whose time has come; those in memory first.
    fn divided(&self, inputs: &[Delta], origin: &Origin) -> Result<Vec<(usize, Vec<UInt32Array>)>, SqlError> {
        let of = self.parts.len();
        let mut rows: Vec<Vec<Vec<u32>>> = vec![Vec::new(); of];
        for (input, delta) in inputs.iter().enumerate() {
            for (row, hash) in self.own.hashes(input, delta)?.into_iter().enumerate() {
                let rows = &mut rows[place(hash, of)];
                if rows.is_empty() {
                    rows.resize(inputs.len(), Vec::new());
                }
                rows[input].push(row as u32);
            }
        }
        let touched = rows.into_iter().enumerate().filter(|(at, rows)| {
            let is_due = origin.end != super::delta::NEVER && self.parts[*at].due <= origin.end;
            !rows.is_empty() || is_due
        });
        let mut touched: Vec<(usize, Vec<UInt32Array>)> = touched
            .map(|(at, mut rows)| {
                rows.resize(inputs.len(), Vec::new());
                (at, rows.into_iter().map(UInt32Array::from).collect())
            })
            .collect();
        touched.sort_by_key(|(at, _)| self.parts[*at].operator.is_none());
        Ok(touched)
    }

    fn step_parts(&mut self, inputs: &[Delta], origin: &Arc<Origin>) -> Result<Delta, SqlError> {
        self.step += 1;
        let mut made: Vec<(usize, Delta)> = Vec::new();
        for (at, rows) in self.divided(inputs, origin)? {
            let own = inputs.iter().zip(&rows).map(|(delta, rows)| delta.take(rows));
            let own = own.collect::<Result<Vec<Delta>, _>>()?;
            let output = self.operator(at)?.step(own, origin)?;
            let part = &mut self.parts[at];
            part.used = self.step;
            part.file = None;
            part.count();
            if output.len() > 0 {
                made.push((at, output));
            }
            self.leave(Some(at))?;
        }
        made.sort_by_key(|(at, _)| *at);
        let made: Vec<Delta> = made.into_iter().map(|(_, delta)| delta).collect();
        match made.as_slice() {
            [] => {
                let none = UInt32Array::from(Vec::<u32>::new());
                let empty = inputs.iter().map(|delta| delta.take(&none)).collect::<Result<Vec<_>, _>>()?;
                self.own.step(empty, origin)
            }
            [one] => Ok(one.clone()),
            made => self.together(&concat(made)?),
        }
    }

    /// What parts made, as one.
    fn together(&self, made: &Delta) -> Result<Delta, SqlError> {
        let place = |row: &u32| (made.input_row(*row as usize), made.time_at(*row as usize));
        let mut rows: Vec<u32> = (0..made.len() as u32).collect();
        let has_gone = rows.iter().any(|row| made.weights.is_gone(*row as usize));
        if has_gone && self.own.merging() == Merging::Net {
            rows = net(made)?;
        }
        if has_gone && self.own.merging() != Merging::Forms {
            rows.sort_by_key(|row| (!made.weights.is_gone(*row as usize), place(row)));
        } else {
            rows.sort_by_key(place);
        }
        made.take(&UInt32Array::from(rows))
    }
}

/// The rows that are gone after all of `made`, and those that are there: one that went and came in between is neither.
fn net(made: &Delta) -> Result<Vec<u32>, SqlError> {
    let types: Vec<DataType> = made.batch.columns().iter().map(|column| column.data_type().clone()).collect();
    let rows = KeyCodec::new(&types)?.encode(made.batch.columns())?;
    let mut left: HashMap<&[u8], Vec<u32>> = HashMap::new();
    for row in 0..made.len() {
        let same = left.entry(rows.get(row)).or_default();
        match same.last() {
            Some(last) if made.weights.is_gone(*last as usize) != made.weights.is_gone(row) => drop(same.pop()),
            _ => same.push(row as u32),
        }
    }
    let mut left: Vec<u32> = left.into_values().flatten().collect();
    left.sort_unstable();
    Ok(left)
}

impl Operator for Parted {
    fn step(&mut self, inputs: Vec<Delta>, origin: &Arc<Origin>) -> Result<Delta, SqlError> {
        match self.parts.is_empty() {
            true => self.own.step(inputs, origin),
            false => self.step_parts(&inputs, origin),
        }
    }

    fn check(&self, inputs: &[Delta]) -> Result<(), SqlError> {
        self.own.check(inputs)
    }

    fn save(&self, state: &mut StateWriter, part: Part) -> Result<(), SqlError> {
        if self.parts.is_empty() {
            return self.own.save(state, part);
        }
        let number = |value: &dyn Fn(&State) -> i64| -> ArrayRef {
            Arc::new(Int64Array::from_iter_values(self.parts.iter().map(value)))
        };
        let mut files = Vec::with_capacity(self.parts.len());
        for part in &self.parts {
            let file = part.file.as_ref().ok_or_else(|| SqlError::internal("a part of an operator is in no file"))?;
            state.keep(file);
            files.push(file.number());
        }
        let columns: [(&str, ArrayRef); 4] = [
            ("file", Arc::new(UInt64Array::from(files))),
            ("bytes", number(&|part| part.bytes as i64)),
            ("due", number(&|part| part.due)),
            ("late", number(&|part| part.late_rows.value() as i64)),
        ];
        state.put(PARTS, &RecordBatch::try_from_iter(columns).map_err(arrow_error)?)
    }

    fn restore(&mut self, state: &mut StateReader) -> Result<(), SqlError> {
        if !state.has(PARTS) {
            return self.own.restore(state);
        }
        let batch = state.take(PARTS)?;
        let files: UInt64Array = downcast(batch.column(0))?;
        let number = |at: usize| downcast::<Int64Array>(batch.column(at));
        let (bytes, due, late) = (number(1)?, number(2)?, number(3)?);
        let store = Arc::clone(state.store()?);
        let part = |at: usize| State {
            operator: None,
            file: Some(Arc::new(StateFile::of(&store, files.value(at)))),
            bytes: bytes.value(at) as u64,
            due: due.value(at),
            late_rows: RowCount::new(late.value(at) as u64),
            used: 0,
        };
        self.parts = (0..batch.num_rows()).map(part).collect();
        self.store = Some(store);
        match self.parts.len().is_power_of_two() {
            true => Ok(()),
            false => Err(SqlError::internal("saved state is in a strange number of parts")),
        }
    }

    fn settle(&mut self) -> Result<(), SqlError> {
        let Some(store) = self.store.clone() else { return Ok(()) };
        self.parts.iter_mut().try_for_each(|part| part.write(&store))
    }

    fn keep_within(&mut self, bytes_max: u64, store: &Arc<dyn StateStore>) -> Result<(), SqlError> {
        (self.store, self.bytes_max) = (Some(Arc::clone(store)), bytes_max);
        let bytes = self.state_bytes().value();
        match self.parts.len() {
            0 if bytes > WHOLE_BYTES_MAX || (bytes > bytes_max && bytes > PARTED_BYTES_MIN) => {
                let factor = usize::try_from(bytes / PART_BYTES).unwrap_or(PARTS_MAX).next_power_of_two();
                self.divide(factor.clamp(PARTS_MIN, PARTS_FIRST_MAX), store)?;
            }
            0 => {}
            count if bytes / count as u64 > PART_BYTES_MAX && count < PARTS_MAX => self.divide(FACTOR, store)?,
            _ => {}
        }
        self.leave(None)
    }

    fn is_divided(&self) -> bool {
        !self.parts.is_empty()
    }

    fn is_stateful(&self) -> bool {
        self.own.is_stateful()
    }

    fn is_shareable(&self) -> bool {
        self.own.is_shareable()
    }

    fn begins_with_row(&self) -> bool {
        self.own.begins_with_row()
    }

    fn state_bytes(&self) -> ByteSize {
        match self.parts.is_empty() {
            true => self.own.state_bytes(),
            false => ByteSize::new(self.parts.iter().map(|part| part.bytes).sum()),
        }
    }

    fn spilled_bytes(&self) -> ByteSize {
        ByteSize::new(self.parts.iter().map(|part| part.bytes - part.held_bytes()).sum())
    }

    fn late_rows(&self) -> RowCount {
        match self.parts.is_empty() {
            true => self.own.late_rows(),
            false => self.parts.iter().fold(RowCount::ZERO, |sum, part| sum.plus(part.late_rows)),
        }
    }

    fn origins(&self, input: &[Origins]) -> Option<Vec<Origins>> {
        self.own.origins(input)
    }

    fn fingerprint(&self) -> String {
        self.own.fingerprint()
    }
}
