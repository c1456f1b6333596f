//! State of an operator by parts of its keys, and the files that parts are kept in.
//!
//! Which part a key is in is written to disk: [`hash`] must never change. Leaves out when a part leaves memory (`parted`)
//! and the files themselves, which the engine gives as a [`StateStore`]. What is in a file is laid out in `save`.

use crate::error::SqlError;
use std::fmt::Debug;
use std::sync::Arc;

/// Where a query's state goes that memory has no room for, and that is too much for an entry of the log.
///
/// Files are written once and numbered. One is there while it is held, or named by the last checkpoint.
pub trait StateStore: Send + Sync + Debug {
    /// Writes a new file, held once. It is durable when a checkpoint names it, not before.
    ///
    /// # Errors
    /// 53100 when the disk is full, 58030 when it fails.
    fn write(&self, bytes: &[u8]) -> Result<u64, SqlError>;

    /// The bytes of a file.
    ///
    /// # Errors
    /// XX001 when they are not what was written, 58030 when they cannot be read.
    fn read(&self, file: u64) -> Result<Vec<u8>, SqlError>;

    /// Holds a file once more.
    fn hold(&self, file: u64);

    /// Holds a file once less.
    fn release(&self, file: u64);
}

/// A held file.
#[derive(Debug)]
pub(crate) struct StateFile {
    store: Arc<dyn StateStore>,
    number: u64,
}

impl StateFile {
    /// Writes a new one.
    ///
    /// # Errors
    /// As [`StateStore::write`].
    pub(crate) fn write(store: &Arc<dyn StateStore>, bytes: &[u8]) -> Result<Self, SqlError> {
        Ok(Self { store: Arc::clone(store), number: store.write(bytes)? })
    }

    /// One that a checkpoint names.
    pub(crate) fn of(store: &Arc<dyn StateStore>, number: u64) -> Self {
        store.hold(number);
        Self { store: Arc::clone(store), number }
    }

    /// Its number.
    pub(crate) fn number(&self) -> u64 {
        self.number
    }

    /// Its bytes.
    ///
    /// # Errors
    /// As [`StateStore::read`].
    pub(crate) fn read(&self) -> Result<Vec<u8>, SqlError> {
        self.store.read(self.number)
    }
}

impl Drop for StateFile {
    fn drop(&mut self) {
        self.store.release(self.number);
    }
}

/// Some of an operator's keys: those whose hashes have the same remainder by a power of two.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Part {
    index: usize,
    of: usize,
}

impl Part {
    /// All keys.
    pub(crate) const WHOLE: Self = Self { index: 0, of: 1 };

    /// Part `index` of `of`, which is a power of two.
    pub(crate) fn new(index: usize, of: usize) -> Self {
        debug_assert!(of.is_power_of_two() && index < of);
        Self { index, of }
    }

    /// Whether `key` is in it.
    pub(crate) fn has(self, key: &[u8]) -> bool {
        self.of == 1 || self.takes(hash(key))
    }

    /// Whether a key with this hash is in it.
    pub(crate) fn takes(self, hash: u64) -> bool {
        place(hash, self.of) == self.index
    }

    /// True of one part: what has no key is saved with it.
    pub(crate) fn is_first(self) -> bool {
        self.index == 0
    }
}

/// The part of a key, by its hash, among `of`, a power of two.
pub(crate) fn place(hash: u64, of: usize) -> usize {
    (hash as usize) & (of - 1)
}

/// The hash of a key's bytes: eight of them at a time, multiplied and folded, as Fibonacci hashing does (Knuth, The Art of
/// Computer Programming, volume 3, 6.4). Equal on every machine.
pub(crate) fn hash(key: &[u8]) -> u64 {
    const FACTOR: u64 = 0x9e37_79b9_7f4a_7c15;
    let fold = |hash: u64, bytes: [u8; 8]| {
        let mixed = (hash ^ u64::from_le_bytes(bytes)).wrapping_mul(FACTOR);
        mixed ^ (mixed >> 32)
    };
    let (words, rest) = key.as_chunks::<8>();
    let hash = words.iter().fold(key.len() as u64, |hash, word| fold(hash, *word));
    let mut last = [0; 8];
    last[..rest.len()].copy_from_slice(rest);
    fold(fold(hash, last), [0; 8])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_stays_in_its_part_for_ever() {
        // Of files on disk: another value makes them useless.
        assert_eq!(
            [hash(b""), hash(b"a"), hash(b"12345678"), hash(b"123456789")].map(|hash| hash & 0xffff),
            [0, 41740, 35579, 46020]
        );
    }

    #[test]
    fn keys_are_encoded_as_they_always_were() {
        use crate::stream::slots::KeyCodec;
        use arrow::array::{ArrayRef, BooleanArray, Int64Array, StringArray};
        use std::sync::Arc;
        let columns: [ArrayRef; 3] = [
            Arc::new(Int64Array::from(vec![Some(-5), None])),
            Arc::new(StringArray::from(vec![Some("a text of more than thirty-two bytes"), Some("")])),
            Arc::new(BooleanArray::from(vec![Some(true), None])),
        ];
        let types = columns.each_ref().map(|column| arrow::array::Array::data_type(column).clone());
        let hashes = KeyCodec::new(&types).unwrap().encode(&columns).unwrap().hashes(2);
        // Files on disk have parts by these.
        assert_eq!(hashes.iter().map(|hash| hash & 0xffff).collect::<Vec<_>>(), [41_286, 56_325]);
    }

    #[test]
    fn parts_are_of_like_size_and_split_into_parts() {
        let mut counts = [0_u32; 64];
        for number in 0..64_000_u64 {
            let key = number.to_be_bytes();
            let found: Vec<usize> = (0..64).filter(|index| Part::new(*index, 64).has(&key)).collect();
            assert_eq!(found, [place(hash(&key), 64)]);
            assert!(Part::new(found[0] % 16, 16).has(&key) && Part::WHOLE.has(&key));
            counts[found[0]] += 1;
        }
        assert!(counts.iter().all(|count| (850..1_150).contains(count)), "{counts:?}");
    }
}
