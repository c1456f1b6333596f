//! Numbered places for keys that come and go.
//!
//! Owns the map from key bytes to slot, the reuse of slots, and which window each belongs to. Leaves out what is kept
//! per slot: columns of state indexed by it. Called once per step with the distinct keys of the step, not per row.

use super::delta::arrow_error;
use super::paged::Paged;
use super::part::{Part, hash};
use crate::error::SqlError;
use arrow::array::ArrayRef;
use arrow::row::{RowConverter, Rows, SortField};
use datafusion::arrow::datatypes::DataType;
use hashbrown::{DefaultHashBuilder, HashTable};
use std::collections::BTreeMap;
use std::hash::BuildHasher as _;

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
/// Memory of a slot: the key's place, the place in the table and its slack, the slot's number in its window.
const SLOT_BYTES: usize = 50;
/// Bytes of a key that is kept in its place; the encoding of three integers or timestamps is as long as 27.
const SHORT_MAX: usize = 30;

/// The key of a slot.
#[derive(Debug)]
enum Key {
    /// None: the slot is free.
    Free,
    Short {
        length: u8,
        bytes: [u8; SHORT_MAX],
    },
    Long(Box<[u8]>),
}

impl Key {
    fn new(key: &[u8]) -> Self {
        if key.len() > SHORT_MAX {
            return Self::Long(Box::from(key));
        }
        let mut bytes = [0; SHORT_MAX];
        bytes[..key.len()].copy_from_slice(key);
        Self::Short { length: key.len() as u8, bytes }
    }

    fn get(&self) -> Option<&[u8]> {
        match self {
            Self::Free => None,
            Self::Short { length, bytes } => bytes.get(..usize::from(*length)),
            Self::Long(bytes) => Some(bytes),
        }
    }

    /// Memory beside its place.
    fn bytes(&self) -> usize {
        if let Self::Long(bytes) = self { bytes.len() } else { 0 }
    }
}

/// A slot, and half of the hash of its key.
#[derive(Debug, Clone, Copy)]
struct Place {
    hash: u32,
    slot: u32,
}

impl Place {
    /// The hash by which the table has it: its low bits and its high ones count there.
    fn table_hash(&self) -> u64 {
        u64::from(self.hash) << 32 | u64::from(self.hash)
    }
}

/// The keys that go together.
#[derive(Debug, Default)]
struct Window {
    places: HashTable<Place>,
    /// Their slots in the order in which they came; empty where keys go one by one.
    slots: Vec<u32>,
}

impl Window {
    fn find(&self, key: &[u8], hash: u32, keys: &Paged<Key>) -> Option<u32> {
        let wanted = Place { hash, slot: 0 };
        let is_same = |place: &Place| place.hash == hash && keys.get(place.slot).and_then(Key::get) == Some(key);
        self.places.find(wanted.table_hash(), is_same).map(|place| place.slot)
    }
}

/// Keys and the slots they hold. Slots of removed keys are used again, the last freed first.
#[derive(Debug)]
pub(crate) struct Slots {
    codec: KeyCodec,
    hasher: DefaultHashBuilder,
    /// Keys by the end of the window that they go with; of those that stay, [`STAYS`]. A window goes as a whole.
    windows: BTreeMap<i64, Window>,
    /// By slot.
    keys: Paged<Key>,
    free: Vec<u32>,
    long_bytes: usize,
}

impl Slots {
    /// No keys yet, of columns of these types.
    pub(crate) fn new(types: &[DataType]) -> Result<Self, SqlError> {
        Ok(Self {
            codec: KeyCodec::new(types)?,
            hasher: DefaultHashBuilder::default(),
            windows: BTreeMap::new(),
            keys: Paged::new(),
            free: Vec::new(),
            long_bytes: 0,
        })
    }

    /// The codec of the keys.
    pub(crate) fn codec(&self) -> &KeyCodec {
        &self.codec
    }

    fn hash(&self, key: &[u8]) -> u32 {
        (self.hasher.hash_one(key) >> 32) as u32
    }

    /// The slot of `key`, which goes with the window that ends at `end`, or with none, if it has one.
    pub(crate) fn find(&self, key: &[u8], end: Option<i64>) -> Option<u32> {
        self.windows.get(&end.unwrap_or(STAYS))?.find(key, self.hash(key), &self.keys)
    }

    /// The slot of `key`, a new one if need be; with `end`, it goes when that window does.
    pub(crate) fn insert(&mut self, key: &[u8], end: Option<i64>) -> Found {
        let hash = self.hash(key);
        let window = self.windows.entry(end.unwrap_or(STAYS)).or_default();
        if let Some(slot) = window.find(key, hash, &self.keys) {
            return Found { slot, is_new: false };
        }
        let key = Key::new(key);
        self.long_bytes += key.bytes();
        let free = self.free.pop();
        let slot = match free.and_then(|slot| Some((slot, self.keys.get_mut(slot)?))) {
            Some((slot, place)) => {
                *place = key;
                slot
            }
            None => {
                self.keys.push(key);
                (self.keys.len() - 1) as u32
            }
        };
        let place = Place { hash, slot };
        window.places.insert_unique(place.table_hash(), place, Place::table_hash);
        if end.is_some_and(|end| end != STAYS) {
            window.slots.push(slot);
        }
        Found { slot, is_new: true }
    }

    /// Removes a key that belongs to no window.
    pub(crate) fn remove(&mut self, slot: u32) {
        let Some(key) = self.keys.get(slot).and_then(Key::get) else { return };
        let place = Place { hash: self.hash(key), slot };
        if let Some(staying) = self.windows.get_mut(&STAYS)
            && let Ok(entry) = staying.places.find_entry(place.table_hash(), |other| other.slot == slot)
        {
            entry.remove();
        }
        self.clear(slot);
    }

    fn clear(&mut self, slot: u32) {
        let Some(key) = self.keys.get_mut(slot).filter(|key| !matches!(key, Key::Free)) else { return };
        self.long_bytes -= key.bytes();
        *key = Key::Free;
        self.free.push(slot);
    }

    /// Removes the keys of windows that end at or before `end`; gives their former slots, window by window in the order
    /// in which the keys came.
    pub(crate) fn remove_until(&mut self, end: i64) -> Vec<u32> {
        let mut gone = Vec::new();
        while let Some(window) = self.windows.first_entry().filter(|window| *window.key() <= end.min(STAYS - 1)) {
            gone.append(&mut window.remove().slots);
        }
        gone.iter().for_each(|slot| self.clear(*slot));
        gone
    }

    /// Slots in use, ascending.
    pub(crate) fn live(&self) -> Vec<u32> {
        self.live_of(Part::WHOLE)
    }

    /// Slots in use by keys of `part`, ascending.
    pub(crate) fn live_of(&self, part: Part) -> Vec<u32> {
        (0..self.keys.len() as u32).filter(|slot| self.key(*slot).is_some_and(|key| part.has(key))).collect()
    }

    /// The first time at which keys go with their window; `i64::MAX` for never.
    pub(crate) fn due(&self) -> i64 {
        self.windows.first_key_value().map_or(STAYS, |(end, _)| *end)
    }

    /// The key columns of `slots`, in their order.
    pub(crate) fn columns(&self, slots: &[u32]) -> Result<Vec<ArrayRef>, SqlError> {
        self.codec.decode(slots.iter().filter_map(|slot| self.key(*slot)))
    }

    /// The key in a slot, if there is one.
    pub(crate) fn key(&self, slot: u32) -> Option<&[u8]> {
        self.keys.get(slot)?.get()
    }

    /// One more than the greatest slot ever used.
    pub(crate) fn capacity(&self) -> usize {
        self.keys.len()
    }

    /// Memory held, about.
    pub(crate) fn bytes(&self) -> usize {
        self.long_bytes + self.keys.len() * SLOT_BYTES
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use arrow::array::StringArray;
    use std::sync::Arc;

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
