//! Rows of one side of a join, found by key, by their bytes, and by when they go.
//!
//! Leaves out what is joined (`join`, `lookup`). Lives in memory; saved as rows with their times and counts.

use super::delta::{arrow_error, downcast};
use super::rows::RowCodec;
use super::save::{StateReader, StateWriter};
use crate::error::SqlError;
use arrow::array::{ArrayRef, Int64Array, RecordBatch, UInt64Array};
use datafusion::common::HashMap;
use std::collections::BTreeMap;
use std::sync::Arc;

/// Memory of a row beside its bytes and those of its key, about.
const ENTRY_BYTES: usize = 160;

/// A kept row.
#[derive(Debug)]
pub(super) struct Entry {
    /// The whole row.
    pub(super) row: Arc<[u8]>,
    /// The join key; `None` when it equals nothing.
    key: Option<Arc<[u8]>>,
    /// Event time, in microseconds.
    pub(super) rowtime: i64,
    /// The query's time at which it goes; `i64::MAX` for never.
    pub(super) expires: i64,
    /// Rows of the other side that match it.
    pub(super) matches: u64,
    /// When it came.
    pub(super) came: Came,
    /// Its position in the list of its key.
    place: usize,
}

impl Entry {
    /// Whether there is something it equals.
    pub(super) fn has_key(&self) -> bool {
        self.key.is_some()
    }

    /// What tells its part: the join key.
    pub(super) fn key(&self) -> &[u8] {
        self.key.as_deref().unwrap_or_default()
    }
}

/// The event that a row came with: of the step, counted since the operator was made, its input row and the time at it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Came {
    pub(super) step: u64,
    pub(super) input_row: u32,
    pub(super) clock: i64,
}

/// What a row is to be kept with.
pub(super) struct Kept {
    pub(super) row: Arc<[u8]>,
    pub(super) key: Option<Arc<[u8]>>,
    pub(super) rowtime: i64,
    pub(super) expires: i64,
    pub(super) matches: u64,
    pub(super) came: Came,
}

/// The rows of one side.
#[derive(Debug, Default)]
pub(super) struct Store {
    entries: Vec<Option<Entry>>,
    free: Vec<u32>,
    by_key: HashMap<Arc<[u8]>, Vec<u32>>,
    /// Where rows go again: those of equal bytes.
    by_row: Option<HashMap<Arc<[u8]>, Vec<u32>>>,
    /// Rows that go with time. One that went earlier may still be named: its entry then has another time, or none.
    by_time: BTreeMap<i64, Vec<u32>>,
    bytes: usize,
}

impl Store {
    /// Of rows that stay until their time.
    pub(super) fn of_staying() -> Self {
        Self::default()
    }

    /// Of rows that may be removed.
    pub(super) fn of_going() -> Self {
        Self { by_row: Some(HashMap::new()), ..Self::default() }
    }

    /// The rows with `key`, in no order that means anything.
    pub(super) fn matching(&self, key: &[u8]) -> &[u32] {
        self.by_key.get(key).map_or(&[], Vec::as_slice)
    }

    /// A row by its number.
    pub(super) fn entry(&self, id: u32) -> Option<&Entry> {
        self.entries.get(id as usize)?.as_ref()
    }

    /// A row by its number.
    pub(super) fn entry_mut(&mut self, id: u32) -> Option<&mut Entry> {
        self.entries.get_mut(id as usize)?.as_mut()
    }

    /// All rows.
    pub(super) fn rows(&self) -> impl Iterator<Item = &Entry> {
        self.entries.iter().flatten()
    }

    /// Keeps a row.
    pub(super) fn insert(&mut self, kept: Kept) {
        let Kept { row, key, rowtime, expires, matches, came } = kept;
        let id = self.free.pop().unwrap_or(self.entries.len() as u32);
        self.bytes += row.len() + key.as_ref().map_or(0, |key| key.len()) + ENTRY_BYTES;
        let mut place = 0;
        if let Some(key) = &key {
            let list = self.by_key.entry(Arc::clone(key)).or_default();
            place = list.len();
            list.push(id);
        }
        if let Some(by_row) = &mut self.by_row {
            by_row.entry(Arc::clone(&row)).or_default().push(id);
        }
        if expires != i64::MAX {
            self.by_time.entry(expires).or_default().push(id);
        }
        let entry = Some(Entry { row, key, rowtime, expires, matches, came, place });
        match self.entries.get_mut(id as usize) {
            Some(slot) => *slot = entry,
            None => self.entries.push(entry),
        }
    }

    /// Removes one of the rows that equal `row`; `None` when there is none.
    pub(super) fn remove(&mut self, row: &[u8]) -> Option<Entry> {
        let by_row = self.by_row.as_mut()?;
        let id = by_row.get_mut(row)?.pop()?;
        if by_row.get(row).is_some_and(Vec::is_empty) {
            by_row.remove(row);
        }
        self.take(id)
    }

    /// Takes an entry out of all but `by_row` and `by_time`.
    fn take(&mut self, id: u32) -> Option<Entry> {
        let entry = self.entries.get_mut(id as usize)?.take()?;
        self.free.push(id);
        self.bytes -= entry.row.len() + entry.key.as_ref().map_or(0, |key| key.len()) + ENTRY_BYTES;
        if let Some(key) = &entry.key
            && let Some(list) = self.by_key.get_mut(key)
        {
            list.swap_remove(entry.place);
            match list.get(entry.place).copied() {
                Some(moved) => {
                    if let Some(moved) = self.entries.get_mut(moved as usize).and_then(Option::as_mut) {
                        moved.place = entry.place;
                    }
                }
                None if list.is_empty() => {
                    self.by_key.remove(key);
                }
                None => {}
            }
        }
        Some(entry)
    }

    /// Removes the rows that go at `end` or before, and gives them in the order in which they go.
    pub(super) fn expire(&mut self, end: i64) -> Vec<Entry> {
        let mut gone = Vec::new();
        while let Some(first) = self.by_time.first_entry() {
            let expires = *first.key();
            if expires > end {
                break;
            }
            for id in first.remove() {
                if self.entry(id).is_none_or(|entry| entry.expires != expires) {
                    continue;
                }
                let Some(entry) = self.take(id) else { continue };
                if let Some(by_row) = &mut self.by_row
                    && let Some(list) = by_row.get_mut(&entry.row)
                {
                    list.retain(|other| *other != id);
                    if list.is_empty() {
                        by_row.remove(&entry.row);
                    }
                }
                gone.push(entry);
            }
        }
        gone
    }

    /// The first time at which a row goes; `i64::MAX` for never.
    pub(super) fn due(&self) -> i64 {
        self.by_time.first_key_value().map_or(i64::MAX, |(expires, _)| *expires)
    }

    /// Memory held, about.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// None of the same rows.
    pub(super) fn fresh(&self) -> Self {
        if self.by_row.is_some() { Self::of_going() } else { Self::of_staying() }
    }

    /// Writes the rows that are wanted, their times and counts as sections that start with `name`.
    pub(super) fn save(
        &self,
        name: &str,
        codec: &RowCodec,
        state: &mut StateWriter,
        is_wanted: impl Fn(&Entry) -> bool,
    ) -> Result<(), SqlError> {
        let entries: Vec<&Entry> = self.rows().filter(|entry| is_wanted(entry)).collect();
        let column = |value: fn(&Entry) -> i64| -> ArrayRef {
            Arc::new(Int64Array::from_iter_values(entries.iter().map(|entry| value(entry))))
        };
        let matches: ArrayRef = Arc::new(UInt64Array::from_iter_values(entries.iter().map(|entry| entry.matches)));
        let columns = [
            ("rowtime", column(|entry| entry.rowtime)),
            ("expires", column(|entry| entry.expires)),
            ("matches", matches),
        ];
        state.put(&format!("{name}.times"), &RecordBatch::try_from_iter(columns).map_err(arrow_error)?)?;
        state.put(name, &codec.decode(entries.iter().map(|entry| entry.row.as_ref()))?)
    }

    /// Takes over what `save` wrote; `keys` gives the join keys of the rows.
    pub(super) fn restore(
        &mut self,
        name: &str,
        codec: &RowCodec,
        state: &mut StateReader,
        keys: impl FnOnce(&RecordBatch) -> Result<Vec<Option<Arc<[u8]>>>, SqlError>,
    ) -> Result<(), SqlError> {
        let times = state.take(&format!("{name}.times"))?;
        let (rowtime, expires): (Int64Array, Int64Array) = (downcast(times.column(0))?, downcast(times.column(1))?);
        let matches: UInt64Array = downcast(times.column(2))?;
        let batch = state.take(name)?;
        let (rows, keys) = (codec.encode(&batch)?, keys(&batch)?);
        for (row, key) in keys.into_iter().enumerate() {
            self.insert(Kept {
                row: rows.get(row).into(),
                key,
                rowtime: rowtime.value(row),
                expires: expires.value(row),
                matches: matches.value(row),
                came: Came::default(),
            });
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kept(row: &str, key: Option<&str>, expires: i64) -> Kept {
        let key = key.map(|key| Arc::from(key.as_bytes()));
        Kept { row: Arc::from(row.as_bytes()), key, rowtime: 0, expires, matches: 0, came: Came::default() }
    }

    fn rows(store: &Store, key: &str) -> Vec<String> {
        let ids = store.matching(key.as_bytes()).iter();
        let mut rows: Vec<String> =
            ids.map(|id| String::from_utf8(store.entry(*id).unwrap().row.to_vec()).unwrap()).collect();
        rows.sort();
        rows
    }

    #[test]
    fn rows_are_found_by_key_removed_one_by_one_and_go_with_time() {
        let mut store = Store::of_going();
        for (row, key, expires) in
            [("a", Some("k"), 5), ("a", Some("k"), 7), ("b", Some("k"), 7), ("c", Some("l"), i64::MAX), ("d", None, 6)]
        {
            store.insert(kept(row, key, expires));
        }
        assert_eq!(rows(&store, "k"), ["a", "a", "b"]);
        assert_eq!(store.remove(b"a").unwrap().expires, 7);
        assert!(store.remove(b"x").is_none());
        assert_eq!(rows(&store, "k"), ["a", "b"]);
        // Its number is used again by a row that goes later.
        store.insert(kept("e", Some("k"), 9));
        let gone: Vec<Vec<u8>> = store.expire(7).iter().map(|entry| entry.row.to_vec()).collect();
        assert_eq!(gone, [b"a", b"d", b"b"].map(|row| row.to_vec()));
        assert_eq!(rows(&store, "k"), ["e"]);
        assert!(store.remove(b"b").is_none());
        assert!(store.remove(b"e").is_some());
        assert_eq!(rows(&store, "k"), Vec::<String>::new());
        assert!(store.remove(b"c").is_some());
        assert_eq!(store.bytes(), 0);
    }
}
