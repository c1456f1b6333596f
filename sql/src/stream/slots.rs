//! Numbered places for keys that come and go.
//!
//! Owns the map from key bytes to slot, the reuse of slots, and which window each belongs to. Leaves out what is kept
//! per slot: columns of state indexed by it. Called once per step with the distinct keys of the step, not per row.

use super::delta::arrow_error;
use super::part::{Part, hash};
use crate::error::SqlError;
use arrow::array::ArrayRef;
use arrow::row::{RowConverter, Rows, SortField};
use datafusion::arrow::datatypes::DataType;
use datafusion::common::HashMap;
use std::collections::BTreeMap;
use std::sync::Arc;

/// Key bytes of the rows of a few columns.
pub(crate) enum KeyBytes {
    /// Of at least one column.
    Rows(Rows),
    /// No columns: every key is empty.
    Empty,
}

impl KeyBytes {
    /// The hashes of the keys of the first rows.
    pub(crate) fn hashes(&self, rows: usize) -> Vec<u64> {
        (0..rows).map(|row| hash(self.get(row))).collect()
    }

    /// The bytes of one row's key.
    pub(crate) fn get(&self, row: usize) -> &[u8] {
        match self {
            Self::Rows(rows) => rows.row(row).data(),
            Self::Empty => &[],
        }
    }
}

/// Encodes key columns to bytes and back; equal keys give equal bytes. NULL is a value.
#[derive(Debug)]
pub(crate) struct KeyCodec {
    converter: Option<RowConverter>,
}

impl KeyCodec {
    /// For columns of these types.
    pub(crate) fn new(types: &[DataType]) -> Result<Self, SqlError> {
        Self::sorted(types.iter().map(|data_type| SortField::new(data_type.clone())).collect())
    }

    /// For columns with an order each: keys sort as their rows do.
    pub(crate) fn sorted(fields: Vec<SortField>) -> Result<Self, SqlError> {
        let converter = match fields.is_empty() {
            true => None,
            false => Some(RowConverter::new(fields).map_err(arrow_error)?),
        };
        Ok(Self { converter })
    }

    /// The keys of the columns' rows.
    pub(crate) fn encode(&self, columns: &[ArrayRef]) -> Result<KeyBytes, SqlError> {
        match &self.converter {
            None => Ok(KeyBytes::Empty),
            Some(converter) => Ok(KeyBytes::Rows(converter.convert_columns(columns).map_err(arrow_error)?)),
        }
    }

    /// The columns of keys encoded by this codec.
    pub(crate) fn decode<'a>(&self, keys: impl Iterator<Item = &'a [u8]>) -> Result<Vec<ArrayRef>, SqlError> {
        let Some(converter) = &self.converter else { return Ok(Vec::new()) };
        let parser = converter.parser();
        let rows: Vec<_> = keys.map(|key| parser.parse(key)).collect();
        converter.convert_rows(rows).map_err(arrow_error)
    }
}

/// The slot a key was found in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Found {
    /// Its number, below [`Slots::capacity`].
    pub(crate) slot: u32,
    /// True when the key was not there before.
    pub(crate) is_new: bool,
}

/// The end of no window.
const STAYS: i64 = i64::MAX;

/// Keys and the slots they hold. Slots of removed keys are used again, the last freed first.
#[derive(Debug)]
pub(crate) struct Slots {
    codec: KeyCodec,
    /// Keys by the end of the window that they go with; of those that stay, [`STAYS`]. A window goes as a whole.
    windows: BTreeMap<i64, HashMap<Arc<[u8]>, u32>>,
    keys: Vec<Option<Arc<[u8]>>>,
    free: Vec<u32>,
    key_bytes: usize,
}

impl Slots {
    /// No keys yet, of columns of these types.
    pub(crate) fn new(types: &[DataType]) -> Result<Self, SqlError> {
        Ok(Self {
            codec: KeyCodec::new(types)?,
            windows: BTreeMap::new(),
            keys: Vec::new(),
            free: Vec::new(),
            key_bytes: 0,
        })
    }

    /// The codec of the keys.
    pub(crate) fn codec(&self) -> &KeyCodec {
        &self.codec
    }

    /// The slot of `key`, which goes with the window that ends at `end`, or with none, if it has one.
    pub(crate) fn find(&self, key: &[u8], end: Option<i64>) -> Option<u32> {
        self.windows.get(&end.unwrap_or(STAYS))?.get(key).copied()
    }

    /// The slot of `key`, a new one if need be; with `end`, it goes when that window does.
    pub(crate) fn insert(&mut self, key: &[u8], end: Option<i64>) -> Found {
        let window = self.windows.entry(end.unwrap_or(STAYS)).or_default();
        if let Some(slot) = window.get(key) {
            return Found { slot: *slot, is_new: false };
        }
        let key: Arc<[u8]> = Arc::from(key);
        self.key_bytes += key.len();
        let slot = match self.free.pop() {
            Some(slot) => {
                self.keys[slot as usize] = Some(Arc::clone(&key));
                slot
            }
            None => {
                self.keys.push(Some(Arc::clone(&key)));
                (self.keys.len() - 1) as u32
            }
        };
        window.insert(key, slot);
        Found { slot, is_new: true }
    }

    /// Removes a key that belongs to no window.
    pub(crate) fn remove(&mut self, slot: u32) {
        if let Some(key) = self.clear(slot)
            && let Some(staying) = self.windows.get_mut(&STAYS)
        {
            staying.remove(&key);
        }
    }

    fn clear(&mut self, slot: u32) -> Option<Arc<[u8]>> {
        let key = self.keys.get_mut(slot as usize)?.take()?;
        self.key_bytes -= key.len();
        self.free.push(slot);
        Some(key)
    }

    /// Removes the keys of windows that end at or before `end`; gives their former slots.
    pub(crate) fn remove_until(&mut self, end: i64) -> Vec<u32> {
        let mut gone = Vec::new();
        while let Some(window) = self.windows.first_entry().filter(|window| *window.key() <= end.min(STAYS - 1)) {
            let mut slots: Vec<u32> = window.remove().into_values().collect();
            slots.sort_unstable();
            gone.append(&mut slots);
        }
        gone.iter().for_each(|slot| drop(self.clear(*slot)));
        gone
    }

    /// Slots in use, ascending.
    pub(crate) fn live(&self) -> Vec<u32> {
        self.live_of(Part::WHOLE)
    }

    /// Slots in use by keys of `part`, ascending.
    pub(crate) fn live_of(&self, part: Part) -> Vec<u32> {
        let is_wanted = |key: &Option<Arc<[u8]>>| key.as_ref().is_some_and(|key| part.has(key));
        let in_use = self.keys.iter().enumerate().filter(|(_, key)| is_wanted(key));
        in_use.map(|(slot, _)| slot as u32).collect()
    }

    /// The first time at which keys go with their window; `i64::MAX` for never.
    pub(crate) fn due(&self) -> i64 {
        self.windows.first_key_value().map_or(STAYS, |(end, _)| *end)
    }

    /// The key columns of `slots`, in their order.
    pub(crate) fn columns(&self, slots: &[u32]) -> Result<Vec<ArrayRef>, SqlError> {
        self.codec.decode(slots.iter().filter_map(|slot| self.keys.get(*slot as usize)?.as_deref()))
    }

    /// The key in a slot, if there is one.
    pub(crate) fn key(&self, slot: u32) -> Option<&[u8]> {
        self.keys.get(slot as usize)?.as_deref()
    }

    /// One more than the greatest slot ever used.
    pub(crate) fn capacity(&self) -> usize {
        self.keys.len()
    }

    /// Memory held, about.
    pub(crate) fn bytes(&self) -> usize {
        // Per key: two fat pointers, the reference counts, the slot number and the table's slack.
        self.key_bytes + self.keys.len() * 80
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use arrow::array::StringArray;

    fn slots() -> Slots {
        Slots::new(&[DataType::Utf8]).unwrap()
    }

    fn keys(slots: &Slots, texts: &[Option<&str>]) -> KeyBytes {
        slots.codec().encode(&[Arc::new(StringArray::from(texts.to_vec()))]).unwrap()
    }

    #[test]
    fn null_is_a_key_and_keys_come_back_as_columns() {
        let mut slots = slots();
        let bytes = keys(&slots, &[Some("a"), None, Some("a")]);
        let found: Vec<u32> = (0..3).map(|row| slots.insert(bytes.get(row), None).slot).collect();
        assert_eq!(found, vec![0, 1, 0]);
        let expected: ArrayRef = Arc::new(StringArray::from(vec![None, Some("a")]));
        assert_eq!(&slots.columns(&[1, 0]).unwrap()[0], &expected);
    }

    #[test]
    fn slots_of_closed_windows_are_used_again() {
        let mut slots = slots();
        let bytes = keys(&slots, &[Some("a"), Some("b"), Some("c")]);
        slots.insert(bytes.get(0), Some(10));
        slots.insert(bytes.get(1), Some(20));
        assert_eq!(slots.remove_until(9), Vec::<u32>::new());
        assert_eq!(slots.remove_until(10), vec![0]);
        assert_eq!((slots.find(bytes.get(0), Some(10)), slots.find(bytes.get(1), Some(20))), (None, Some(1)));
        assert_eq!(slots.insert(bytes.get(2), Some(30)), Found { slot: 0, is_new: true });
        assert_eq!(slots.live(), vec![0, 1]);
        assert_eq!(slots.remove_until(100), vec![1, 0]);
        assert_eq!(slots.live(), Vec::<u32>::new());
    }
}
