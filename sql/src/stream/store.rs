//! Rows of one side of a join, found by key, by their values, and by when they go.
//!
//! Rows of a step are taken in first and kept one by one; one that goes, or is not kept, can be read until the step ends. Leaves
//! out what is joined (`join`, `lookup`) and the rows' columns (`heap`). Lives in memory; saved as rows with their times and
//! counts.

use super::delta::{Delta, arrow_error, downcast};
use super::expression::evaluate;
use super::heap::{Heap, NONE, Wanted, hashes};
use super::paged::Paged;
use super::part::hash;
use super::save::{StateReader, StateWriter};
use super::slots::{KeyBytes, KeyCodec, Slots};
use crate::error::SqlError;
use crate::types::canonical;
use arrow::array::{Array, ArrayRef, Int64Array, RecordBatch, UInt64Array};
use arrow::buffer::NullBuffer;
use arrow::datatypes::{DataType, SchemaRef};
use datafusion::common::HashMap;
use datafusion::physical_expr::PhysicalExpr;
use std::collections::BTreeMap;
use std::sync::Arc;

/// Memory of a row beside its columns, about.
const ENTRY_BYTES: usize = 52;
/// The same, of one that may go by its values.
const BY_VALUE_BYTES: usize = 32;
/// The same, of one that goes with time.
const BY_TIME_BYTES: usize = 16;
/// Memory of a key beside its bytes, about.
const KEY_BYTES: usize = 58;
/// Rows whose hashes are computed together.
const ROWS_AT_ONCE: usize = 16_384;

/// A kept row.
#[derive(Debug, Clone, Copy)]
pub(super) struct Entry {
    /// The list it is in.
    list: u32,
    /// Its neighbours in the list of its key.
    next: u32,
    before: u32,
    /// Another row with the same hash.
    same: u32,
    /// One more than its place among those that came with this step; zero for an earlier one.
    arrived: u32,
    /// Event time, in microseconds.
    pub(super) rowtime: i64,
    /// The query's time at which it goes; `i64::MAX` for never.
    pub(super) expires: i64,
    /// Rows of the other side that match it.
    pub(super) matches: u32,
}

impl Entry {
    /// Whether there is something it equals.
    pub(super) fn has_key(&self) -> bool {
        self.list != 0
    }
}

/// The event that a row came with: its input row, and the time at it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Came {
    pub(super) input_row: u32,
    pub(super) clock: i64,
}

/// What a row is to be kept with.
#[derive(Debug, Clone, Copy)]
pub(super) struct Kept<'a> {
    /// The join key; `None` when it equals nothing.
    pub(super) key: Option<&'a [u8]>,
    pub(super) rowtime: i64,
    pub(super) expires: i64,
    pub(super) matches: u32,
    pub(super) came: Option<Came>,
}

/// Join keys of rows.
pub(super) struct Keys {
    bytes: KeyBytes,
    /// Those that equal nothing.
    nulls: Option<NullBuffer>,
}

impl Keys {
    /// Those of the rows of `delta`. One with a NULL equals nothing, unless `null_equals_null`.
    pub(super) fn of(
        delta: &Delta,
        keys: &[Arc<dyn PhysicalExpr>],
        codec: &KeyCodec,
        null_equals_null: bool,
    ) -> Result<Self, SqlError> {
        let columns = keys.iter().map(|key| Ok(canonical(evaluate(key.as_ref(), delta)?)));
        let columns = columns.collect::<Result<Vec<ArrayRef>, SqlError>>()?;
        let nulls = match null_equals_null {
            true => None,
            false => columns.iter().fold(None, |all: Option<NullBuffer>, column| {
                NullBuffer::union(all.as_ref(), column.logical_nulls().as_ref())
            }),
        };
        Ok(Self { bytes: codec.encode(&columns)?, nulls })
    }

    /// The key of a row; `None` when it equals nothing.
    pub(super) fn get(&self, row: usize) -> Option<&[u8]> {
        self.nulls.as_ref().is_none_or(|nulls| nulls.is_valid(row)).then(|| self.bytes.get(row))
    }

    /// What tells the parts of the first rows.
    pub(super) fn hashes(&self, rows: usize) -> Vec<u64> {
        (0..rows).map(|row| hash(self.get(row).unwrap_or_default())).collect()
    }
}

/// The first and the last row with a key.
#[derive(Debug, Clone, Copy)]
struct List {
    first: u32,
    last: u32,
}

impl Default for List {
    fn default() -> Self {
        Self { first: NONE, last: NONE }
    }
}

/// How rows go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Going {
    /// With their time only.
    InTime,
    /// By their values too.
    ByValue,
    /// By their values too, which tell when they go in time.
    WithWindow,
}

impl Going {
    /// Of rows that may go before their time, which their values tell if they are of a window.
    pub(super) fn of(may_go: bool, has_window: bool) -> Self {
        match (may_go, has_window) {
            (false, _) => Self::InTime,
            (true, false) => Self::ByValue,
            (true, true) => Self::WithWindow,
        }
    }
}

/// The rows of one side.
#[derive(Debug)]
pub(super) struct Store {
    heap: Heap,
    /// By the number of the row.
    entries: Paged<Entry>,
    keys: Slots,
    /// By slot of the key, from the second on; the first is of rows that equal nothing.
    lists: Vec<List>,
    going: Going,
    /// Where rows go by their values: by the time of their window, the first of those with a hash. A window goes as a whole.
    by_hash: BTreeMap<i64, HashMap<u64, u32>>,
    /// Rows that go with time. One that went earlier may still be named: its entry then has another time, or none.
    by_time: BTreeMap<i64, Vec<u32>>,
    /// Rows that go with this step.
    gone: Vec<u32>,
    /// Rows that came with it.
    arrived: Vec<(u32, Came)>,
    live: usize,
    key_bytes: usize,
}

impl Store {
    /// Of rows of `schema`, found by keys of these types.
    pub(super) fn new(schema: SchemaRef, keys: &[DataType], going: Going) -> Result<Self, SqlError> {
        Ok(Self {
            heap: Heap::new(schema),
            entries: Paged::new(),
            keys: Slots::new(keys)?,
            lists: vec![List::default()],
            going,
            by_hash: BTreeMap::new(),
            by_time: BTreeMap::new(),
            gone: Vec::new(),
            arrived: Vec::new(),
            live: 0,
            key_bytes: 0,
        })
    }

    /// Encodes the keys.
    pub(super) fn key_codec(&self) -> &KeyCodec {
        self.keys.codec()
    }

    /// The rows' schema.
    pub(super) fn schema(&self) -> &SchemaRef {
        self.heap.schema()
    }

    /// Takes in the rows of `batch` at `picked`, and gives their numbers. One that is not kept goes with the step.
    pub(super) fn take_in(&mut self, batch: &RecordBatch, picked: &[u32]) -> Result<Vec<u32>, SqlError> {
        self.heap.insert(batch, picked)
    }

    /// The hashes of rows, by which they are kept and found; none where rows stay.
    pub(super) fn hashes(&self, batch: &RecordBatch) -> Result<Vec<u64>, SqlError> {
        if self.going == Going::InTime { Ok(Vec::new()) } else { hashes(batch) }
    }

    /// The columns at `which` of rows, some of them [`NONE`].
    ///
    /// # Errors
    /// As [`Heap::columns`].
    pub(super) fn columns(&self, ids: &[u32], which: impl Iterator<Item = usize>) -> Result<Vec<ArrayRef>, SqlError> {
        self.heap.columns(ids, which)
    }

    /// Rows.
    ///
    /// # Errors
    /// As [`Heap::columns`].
    pub(super) fn batch(&self, ids: &[u32]) -> Result<RecordBatch, SqlError> {
        self.heap.rows(ids)
    }

    /// The rows with `key`, in the order in which they came.
    pub(super) fn matching(&self, key: &[u8]) -> impl Iterator<Item = (u32, &Entry)> {
        self.list(self.keys.find(key, None).map_or(NONE, |slot| slot + 1))
    }

    fn list(&self, list: u32) -> impl Iterator<Item = (u32, &Entry)> {
        let at = |id: u32| Some((id, self.entries.get(id)?));
        let first = self.lists.get(list as usize).map_or(NONE, |list| list.first);
        std::iter::successors(at(first), move |(_, entry)| at(entry.next))
    }

    /// A row that is kept.
    pub(super) fn entry_mut(&mut self, id: u32) -> Option<&mut Entry> {
        self.entries.get_mut(id)
    }

    /// What a row came with, if that was in this step.
    pub(super) fn came(&self, id: u32) -> Option<Came> {
        let arrived = self.entries.get(id)?.arrived.checked_sub(1)?;
        self.arrived.get(arrived as usize).map(|(_, came)| *came)
    }

    /// All rows, those of a key in the order in which they came.
    pub(super) fn rows(&self) -> impl Iterator<Item = (u32, &Entry)> {
        (0..self.lists.len() as u32).flat_map(|list| self.list(list))
    }

    /// Keeps a row that was taken in.
    pub(super) fn keep(&mut self, id: u32, hash: Option<u64>, kept: Kept<'_>) {
        let Kept { key, rowtime, expires, matches, came } = kept;
        let list = key.map_or(0, |key| {
            let found = self.keys.insert(key, None);
            self.key_bytes += if found.is_new { key.len() + KEY_BYTES } else { 0 };
            found.slot + 1
        });
        if self.lists.len() <= list as usize {
            self.lists.resize(list as usize + 1, List::default());
        }
        let List { last, .. } = self.lists[list as usize];
        let mut entry = Entry { list, next: NONE, before: last, same: NONE, arrived: 0, rowtime, expires, matches };
        match self.entries.get_mut(last) {
            Some(last) => last.next = id,
            None => self.lists[list as usize].first = id,
        }
        self.lists[list as usize].last = id;
        if let Some(hash) = hash {
            let window = self.window(expires);
            entry.same = self.by_hash.entry(window).or_default().insert(hash, id).unwrap_or(NONE);
        }
        if expires != i64::MAX {
            self.by_time.entry(expires).or_default().push(id);
        }
        if let Some(came) = came {
            self.arrived.push((id, came));
            entry.arrived = self.arrived.len() as u32;
        }
        // Of rows that were not kept.
        while self.entries.len() <= id as usize {
            self.entries.push(Entry { list: NONE, next: NONE, before: NONE, ..entry });
        }
        if let Some(kept) = self.entries.get_mut(id) {
            *kept = entry;
        }
        self.live += 1;
    }

    /// Under which time a row with a hash is found.
    fn window(&self, expires: i64) -> i64 {
        if self.going == Going::WithWindow { expires } else { i64::MAX }
    }

    /// A row that was taken in is not kept.
    pub(super) fn leave_out(&mut self, id: u32) {
        self.gone.push(id);
    }

    /// Removes one of the rows that equal row `row` of those that are wanted, and go at `expires` if they are of a window;
    /// `None` when there is none.
    pub(super) fn remove(
        &mut self,
        hash: u64,
        expires: Option<i64>,
        wanted: &mut Wanted<'_>,
        row: usize,
    ) -> Result<Option<u32>, SqlError> {
        let window = self.window(expires.unwrap_or(i64::MAX));
        let mut id = self.by_hash.get(&window).and_then(|by_hash| by_hash.get(&hash)).copied().unwrap_or(NONE);
        while let Some(entry) = self.entries.get(id) {
            if self.heap.is_same(id, wanted, row)? {
                self.take(id);
                self.unhash(window, hash, 1);
                return Ok(Some(id));
            }
            id = entry.same;
        }
        Ok(None)
    }

    /// Takes `count` rows that are gone out of those with a hash.
    fn unhash(&mut self, window: i64, hash: u64, count: usize) {
        let Some(by_hash) = self.by_hash.get_mut(&window) else { return };
        let (mut left, mut before, mut at) = (count, NONE, by_hash.get(&hash).copied().unwrap_or(NONE));
        while let Some(Entry { list, same, .. }) = self.entries.get(at).copied()
            && left > 0
        {
            if list != NONE {
                before = at;
            } else {
                left -= 1;
                match self.entries.get_mut(before) {
                    Some(before) => before.same = same,
                    None if same == NONE => drop(by_hash.remove(&hash)),
                    None => drop(by_hash.insert(hash, same)),
                }
            }
            at = same;
        }
    }

    /// Takes a row out of the list of its key.
    fn take(&mut self, id: u32) -> Option<Entry> {
        let entry = *self.entries.get(id)?;
        let list = entry.list as usize;
        match self.entries.get_mut(entry.before) {
            Some(before) => before.next = entry.next,
            None => self.lists[list].first = entry.next,
        }
        match self.entries.get_mut(entry.next) {
            Some(next) => next.before = entry.before,
            None => self.lists[list].last = entry.before,
        }
        if let (Some(slot), NONE) = (entry.list.checked_sub(1), self.lists[list].first) {
            self.key_bytes -= self.keys.key(slot).map_or(0, <[u8]>::len) + KEY_BYTES;
            self.keys.remove(slot);
        }
        self.entries.get_mut(id)?.list = NONE;
        self.live -= 1;
        self.gone.push(id);
        Some(entry)
    }

    /// Removes the rows that go at `end` or before, and gives them in the order in which they go.
    ///
    /// # Errors
    /// XX000.
    pub(super) fn expire(&mut self, end: i64) -> Result<Vec<(u32, Entry)>, SqlError> {
        let mut gone = Vec::new();
        while let Some(first) = self.by_time.first_entry() {
            let expires = *first.key();
            if expires > end {
                break;
            }
            for id in first.remove() {
                if self.entries.get(id).is_some_and(|entry| entry.list != NONE && entry.expires == expires) {
                    gone.extend(self.take(id).map(|entry| (id, entry)));
                }
            }
        }
        match self.going {
            Going::InTime => {}
            Going::WithWindow => self.by_hash = self.by_hash.split_off(&end.saturating_add(1)),
            Going::ByValue => {
                let ids: Vec<u32> = gone.iter().map(|(id, _)| *id).collect();
                let mut all = Vec::with_capacity(ids.len());
                for ids in ids.chunks(ROWS_AT_ONCE) {
                    all.extend(hashes(&self.heap.rows(ids)?)?);
                }
                all.sort_unstable();
                all.chunk_by(u64::eq).for_each(|equal| self.unhash(i64::MAX, equal[0], equal.len()));
            }
        }
        Ok(gone)
    }

    /// Ends a step: rows that went can be read no longer.
    pub(super) fn end_step(&mut self) -> Result<(), SqlError> {
        for (id, _) in self.arrived.drain(..) {
            if let Some(entry) = self.entries.get_mut(id) {
                entry.arrived = 0;
            }
        }
        let gone = std::mem::take(&mut self.gone);
        self.heap.free(&gone)
    }

    /// The first time at which a row goes; `i64::MAX` for never.
    pub(super) fn due(&self) -> i64 {
        self.by_time.first_key_value().map_or(i64::MAX, |(expires, _)| *expires)
    }

    /// Memory held, about.
    pub(super) fn bytes(&self) -> usize {
        let by_value = if self.going == Going::InTime { 0 } else { BY_VALUE_BYTES };
        let by_time = if self.by_time.is_empty() { 0 } else { BY_TIME_BYTES };
        self.heap.bytes() + self.live * (ENTRY_BYTES + by_value + by_time) + self.key_bytes
    }

    /// What tells the part of a row: its key.
    pub(super) fn key(&self, entry: &Entry) -> &[u8] {
        entry.list.checked_sub(1).and_then(|slot| self.keys.key(slot)).unwrap_or_default()
    }

    /// Writes rows, their times and counts as sections that start with `name`.
    pub(super) fn save(&self, name: &str, rows: &[(u32, &Entry)], state: &mut StateWriter) -> Result<(), SqlError> {
        let column = |value: fn(&Entry) -> i64| -> ArrayRef {
            Arc::new(Int64Array::from_iter_values(rows.iter().map(|(_, entry)| value(entry))))
        };
        let matches: ArrayRef =
            Arc::new(UInt64Array::from_iter_values(rows.iter().map(|(_, entry)| u64::from(entry.matches))));
        let columns = [
            ("rowtime", column(|entry| entry.rowtime)),
            ("expires", column(|entry| entry.expires)),
            ("matches", matches),
        ];
        state.put(&format!("{name}.times"), &RecordBatch::try_from_iter(columns).map_err(arrow_error)?)?;
        state.put(name, &self.batch(&rows.iter().map(|(id, _)| *id).collect::<Vec<u32>>())?)
    }

    /// Takes over what `save` wrote; `keys` gives the join keys of the rows.
    pub(super) fn restore(
        &mut self,
        name: &str,
        state: &mut StateReader,
        keys: impl FnOnce(&Delta, &KeyCodec) -> Result<Option<Keys>, SqlError>,
    ) -> Result<(), SqlError> {
        let times = state.take(&format!("{name}.times"))?;
        let (rowtime, expires): (Int64Array, Int64Array) = (downcast(times.column(0))?, downcast(times.column(1))?);
        let matches: UInt64Array = downcast(times.column(2))?;
        let rows = Delta::of_batch(state.take(name)?);
        let (keys, hashes) = (keys(&rows, self.key_codec())?, self.hashes(&rows.batch)?);
        let ids = self.take_in(&rows.batch, &(0..rows.len() as u32).collect::<Vec<u32>>())?;
        for (row, id) in ids.into_iter().enumerate() {
            let kept = Kept {
                key: keys.as_ref().and_then(|keys| keys.get(row)),
                rowtime: rowtime.value(row),
                expires: expires.value(row),
                matches: matches.value(row) as u32,
                came: None,
            };
            self.keep(id, hashes.get(row).copied(), kept);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use arrow::array::StringArray;
    use arrow::datatypes::{Field, Schema};

    fn batch(rows: &[&str]) -> RecordBatch {
        let column: ArrayRef = Arc::new(StringArray::from(rows.to_vec()));
        RecordBatch::try_new(schema(), vec![column]).unwrap()
    }

    fn schema() -> SchemaRef {
        Arc::new(Schema::new(vec![Field::new("row", DataType::Utf8, true)]))
    }

    fn keep(store: &mut Store, row: &str, key: Option<&str>, expires: i64) {
        let batch = batch(&[row]);
        let (ids, hashes) = (store.take_in(&batch, &[0]).unwrap(), store.hashes(&batch).unwrap());
        let key = key.map(str::as_bytes);
        store.keep(ids[0], hashes.first().copied(), Kept { key, rowtime: 0, expires, matches: 0, came: None });
    }

    fn texts(store: &Store, ids: &[u32]) -> Vec<String> {
        let rows = store.batch(ids).unwrap();
        let rows: StringArray = downcast(rows.column(0)).unwrap();
        rows.iter().map(|row| row.unwrap().to_owned()).collect()
    }

    fn rows(store: &Store, key: &str) -> Vec<String> {
        texts(store, &store.matching(key.as_bytes()).map(|(id, _)| id).collect::<Vec<u32>>())
    }

    fn remove(store: &mut Store, row: &str) -> Option<i64> {
        let batch = batch(&[row]);
        let hash = store.hashes(&batch).unwrap()[0];
        let window = (store.going == Going::WithWindow).then_some(7);
        let id = store.remove(hash, window, &mut Wanted::new(&batch), 0).unwrap()?;
        assert_eq!(texts(store, &[id]), [row], "it can be read until the step ends");
        Some(store.entries.get(id).unwrap().expires)
    }

    #[test]
    fn rows_are_found_by_key_removed_one_by_one_and_go_with_time() {
        let mut store = Store::new(schema(), &[DataType::Utf8], Going::ByValue).unwrap();
        for (row, key, expires) in
            [("a", Some("k"), 5), ("a", Some("k"), 7), ("b", Some("k"), 7), ("c", Some("l"), i64::MAX), ("d", None, 6)]
        {
            keep(&mut store, row, key, expires);
        }
        assert_eq!(rows(&store, "k"), ["a", "a", "b"]);
        assert_eq!(remove(&mut store, "a"), Some(7));
        assert_eq!(remove(&mut store, "x"), None);
        assert_eq!(rows(&store, "k"), ["a", "b"]);
        store.end_step().unwrap();
        // Its number is used again by a row that goes later.
        keep(&mut store, "e", Some("k"), 9);
        let gone: Vec<u32> = store.expire(7).unwrap().into_iter().map(|(id, _)| id).collect();
        assert_eq!(texts(&store, &gone), ["a", "d", "b"]);
        assert_eq!(rows(&store, "k"), ["e"]);
        assert_eq!(remove(&mut store, "b"), None);
        assert_eq!(remove(&mut store, "e"), Some(9));
        assert_eq!(rows(&store, "k"), Vec::<String>::new());
        assert!(remove(&mut store, "c").is_some());
        store.end_step().unwrap();
        assert_eq!(store.expire(9).unwrap().len(), 0);
        assert_eq!(store.bytes(), 0);
    }

    #[test]
    fn rows_of_windows_go_by_their_values_until_the_window_does() {
        let mut store = Store::new(schema(), &[DataType::Utf8], Going::WithWindow).unwrap();
        for (row, expires) in [("a", 7), ("b", 5), ("a", 7), ("c", 7)] {
            keep(&mut store, row, Some("k"), expires);
        }
        assert_eq!((remove(&mut store, "a"), remove(&mut store, "b")), (Some(7), None));
        let gone =
            |store: &mut Store, end| -> Vec<u32> { store.expire(end).unwrap().iter().map(|(id, _)| *id).collect() };
        let first = gone(&mut store, 6);
        assert_eq!(texts(&store, &first), ["b"]);
        store.end_step().unwrap();
        assert_eq!((remove(&mut store, "a"), remove(&mut store, "a")), (Some(7), None));
        let rest = gone(&mut store, 7);
        assert_eq!(texts(&store, &rest), ["c"]);
        store.end_step().unwrap();
        assert!(store.by_hash.is_empty() && store.bytes() == 0);
    }

    #[test]
    fn rows_come_back_in_the_order_in_which_they_came() {
        let mut store = Store::new(schema(), &[DataType::Utf8], Going::ByValue).unwrap();
        for (at, key) in [Some("k"), None, Some("l"), Some("k"), None, Some("k"), Some("l")].into_iter().enumerate() {
            keep(&mut store, &format!("{}{at}", key.unwrap_or("-")), key, i64::MAX);
        }
        remove(&mut store, "k0").unwrap();
        store.end_step().unwrap();
        keep(&mut store, "k7", Some("k"), i64::MAX);
        assert_eq!(rows(&store, "k"), ["k3", "k5", "k7"]);
        let mut state = StateWriter::default();
        store.save("rows", &store.rows().collect::<Vec<_>>(), &mut state).unwrap();
        let mut state = StateReader::open(&state.finish().unwrap().0, None).unwrap();
        let mut again = Store::new(schema(), &[DataType::Utf8], Going::ByValue).unwrap();
        let key: Arc<dyn PhysicalExpr> = Arc::new(datafusion::physical_expr::expressions::Column::new("row", 0));
        again.restore("rows", &mut state, |rows, codec| Keys::of(rows, &[key], codec, false).map(Some)).unwrap();
        let all = |store: &Store| texts(store, &store.rows().map(|(id, _)| id).collect::<Vec<u32>>());
        assert_eq!(all(&store), ["-1", "-4", "k3", "k5", "k7", "l2", "l6"]);
        assert_eq!(all(&again), all(&store));
    }
}
