//! Bloom filters: whether a segment may hold a key, from about ten bits per distinct key.
//!
//! Owns the bits and the hash of values, both part of the on-disk format. Leaves out where filters stand in a
//! file (`footer`) and who asks. Pure. A crash does nothing to it.
//!
//! Split-block filters as in Apache Parquet (format, "BloomFilter.md"; Putze, Sanders, Singler, "Cache-, Hash- and
//! Space-Efficient Bloom Filters", 2007): blocks of eight 32-bit words, little-endian; a hash picks one block
//! and sets one bit in each of its words, so a question touches one cache line.
//!
//! | filter | |
//! |---|---|
//! | bytes | 32 per block, `ceil(distinct values × 9.69 / 256)` blocks, at least 1, at most 512 Ki (16 MiB) |
//! | false positives | 1 % at that size; more once a segment has over 13.8 million distinct keys |
//! | block of a hash | `(hash >> 32) × blocks >> 32` |
//! | bit in word `i` | `(low 32 bits × SALT[i]) >> 27` |
//! | hash of a value | xxHash64, seed 0, of: integers, dates, times, booleans as `i64`; decimals, unscaled, as `i128`; floats as `f64` bits, one zero and one NaN; texts and bytes as they are |

use arrow::array::{Array, ArrayRef, ArrowPrimitiveType, AsArray};
use arrow::buffer::Buffer;
use arrow::datatypes::{
    DataType, Date32Type, Decimal128Type, Float32Type, Float64Type, Int16Type, Int32Type, Int64Type,
    Time64MicrosecondType, TimeUnit, TimestampMicrosecondType,
};

const BLOCK_BYTES: usize = 32;
/// Bits per distinct value for 1 % of false positives: `-8 / ln(1 - 0.01^(1/8))`.
const BITS_PER_VALUE: f64 = 9.69;
const BLOCKS_MAX: usize = 512 << 10;
const SALT: [u32; 8] =
    [0x47b6_137b, 0x4497_4d91, 0x8824_ad5b, 0xa2b7_289d, 0x7054_95c7, 0x2df1_424b, 0x9efc_4947, 0x5c6b_fb31];

/// Collects the values of one column.
#[derive(Debug, Default)]
pub(crate) struct BloomBuilder {
    hashes: Vec<u64>,
}

impl BloomBuilder {
    /// Adds the values that are not null; false when the type has no hash, and then there is no filter.
    pub(crate) fn add(&mut self, array: &ArrayRef) -> bool {
        let Some(hashes) = hashes(array) else { return false };
        self.hashes.extend(hashes);
        // Equal neighbours are common; what is left is made distinct at the end.
        self.hashes.dedup();
        true
    }

    /// The bytes of the filter.
    pub(crate) fn finish(mut self) -> Vec<u8> {
        self.hashes.sort_unstable();
        self.hashes.dedup();
        let bits = self.hashes.len() as f64 * BITS_PER_VALUE;
        let blocks = ((bits / (BLOCK_BYTES * 8) as f64).ceil() as usize).clamp(1, BLOCKS_MAX);
        let mut words = vec![[0u32; 8]; blocks];
        for hash in self.hashes {
            for (word, mask) in words[block_of(hash, blocks)].iter_mut().zip(masks(hash)) {
                *word |= mask;
            }
        }
        words.iter().flatten().flat_map(|word| word.to_le_bytes()).collect()
    }
}

/// A filter as it was written.
#[derive(Debug)]
pub(crate) struct Bloom(Buffer);

impl Bloom {
    /// The filter of these bytes; `None` when they are no whole blocks.
    pub(crate) fn new(bytes: Buffer) -> Option<Self> {
        (!bytes.is_empty() && bytes.len().is_multiple_of(BLOCK_BYTES)).then_some(Self(bytes))
    }

    /// False when no value with this hash was added.
    pub(crate) fn may_contain(&self, hash: u64) -> bool {
        let at = block_of(hash, self.0.len() / BLOCK_BYTES) * BLOCK_BYTES;
        let block = self.0.get(at..at + BLOCK_BYTES).unwrap_or_default();
        block.chunks_exact(4).zip(masks(hash)).all(|(word, mask)| match word {
            [a, b, c, d] => u32::from_le_bytes([*a, *b, *c, *d]) & mask != 0,
            _ => true,
        })
    }
}

fn block_of(hash: u64, blocks: usize) -> usize {
    (((hash >> 32) * blocks as u64) >> 32) as usize
}

fn masks(hash: u64) -> [u32; 8] {
    SALT.map(|salt| 1 << ((hash as u32).wrapping_mul(salt) >> 27))
}

/// The hashes of the values that are not null; `None` for types without an equality of bytes.
pub(crate) fn hashes(array: &ArrayRef) -> Option<Vec<u64>> {
    let float = |value: f64| {
        let one = if value.is_nan() { f64::NAN } else { value + 0.0 };
        xxh64(&one.to_bits().to_le_bytes())
    };
    Some(match array.data_type() {
        DataType::Boolean => array.as_boolean().iter().flatten().map(|value| integer(value.into())).collect(),
        DataType::Int16 => primitive::<Int16Type>(array, |value| integer(value.into())),
        DataType::Int32 => primitive::<Int32Type>(array, |value| integer(value.into())),
        DataType::Int64 => primitive::<Int64Type>(array, integer),
        DataType::Float32 => primitive::<Float32Type>(array, |value| float(value.into())),
        DataType::Float64 => primitive::<Float64Type>(array, float),
        DataType::Decimal128(_, _) => primitive::<Decimal128Type>(array, |value| xxh64(&value.to_le_bytes())),
        DataType::Date32 => primitive::<Date32Type>(array, |value| integer(value.into())),
        DataType::Time64(TimeUnit::Microsecond) => primitive::<Time64MicrosecondType>(array, integer),
        DataType::Timestamp(TimeUnit::Microsecond, _) => primitive::<TimestampMicrosecondType>(array, integer),
        DataType::Utf8 => array.as_string::<i32>().iter().flatten().map(|text| xxh64(text.as_bytes())).collect(),
        DataType::Binary => array.as_binary::<i32>().iter().flatten().map(xxh64).collect(),
        DataType::FixedSizeBinary(_) => array.as_fixed_size_binary().iter().flatten().map(xxh64).collect(),
        _ => return None,
    })
}

fn integer(value: i64) -> u64 {
    xxh64(&value.to_le_bytes())
}

fn primitive<T: ArrowPrimitiveType>(array: &ArrayRef, hash: impl Fn(T::Native) -> u64) -> Vec<u64> {
    let array = array.as_primitive::<T>();
    match array.null_count() {
        0 => array.values().iter().map(|value| hash(*value)).collect(),
        _ => array.iter().flatten().map(hash).collect(),
    }
}

const PRIMES: [u64; 5] =
    [0x9e37_79b1_85eb_ca87, 0xc2b2_ae3d_27d4_eb4f, 0x1656_67b1_9e37_79f9, 0x85eb_ca77_c2b2_ae63, 0x27d4_eb2f_1656_67c5];

fn round(lane: u64, input: u64) -> u64 {
    lane.wrapping_add(input.wrapping_mul(PRIMES[1])).rotate_left(31).wrapping_mul(PRIMES[0])
}

fn word(bytes: &[u8]) -> u64 {
    bytes.iter().rev().fold(0, |word, byte| word << 8 | u64::from(*byte))
}

/// xxHash64 with seed 0. Source: Yann Collet, "xxHash fast digest algorithm", version 0.1.1.
fn xxh64(bytes: &[u8]) -> u64 {
    let mut stripes = bytes.chunks_exact(32);
    let mut hash = PRIMES[4];
    if bytes.len() >= 32 {
        let mut lanes = [PRIMES[0].wrapping_add(PRIMES[1]), PRIMES[1], 0, 0u64.wrapping_sub(PRIMES[0])];
        for stripe in &mut stripes {
            for (lane, input) in lanes.iter_mut().zip(stripe.chunks_exact(8)) {
                *lane = round(*lane, word(input));
            }
        }
        let turned = lanes.iter().zip([1, 7, 12, 18]).map(|(lane, turn)| lane.rotate_left(turn));
        hash = turned.fold(0, u64::wrapping_add);
        for lane in lanes {
            hash = (hash ^ round(0, lane)).wrapping_mul(PRIMES[0]).wrapping_add(PRIMES[3]);
        }
    }
    hash = hash.wrapping_add(bytes.len() as u64);
    let mut words = stripes.remainder().chunks_exact(8);
    for input in &mut words {
        hash = (hash ^ round(0, word(input))).rotate_left(27).wrapping_mul(PRIMES[0]).wrapping_add(PRIMES[3]);
    }
    let mut halves = words.remainder().chunks_exact(4);
    for input in &mut halves {
        let input = word(input).wrapping_mul(PRIMES[0]);
        hash = (hash ^ input).rotate_left(23).wrapping_mul(PRIMES[1]).wrapping_add(PRIMES[2]);
    }
    for byte in halves.remainder() {
        hash = (hash ^ u64::from(*byte).wrapping_mul(PRIMES[4])).rotate_left(11).wrapping_mul(PRIMES[0]);
    }
    hash = (hash ^ (hash >> 33)).wrapping_mul(PRIMES[1]);
    hash = (hash ^ (hash >> 29)).wrapping_mul(PRIMES[2]);
    hash ^ (hash >> 32)
}

#[cfg(test)]
mod tests {
    use super::*;
    use arrow::array::{Float64Array, Int32Array, Int64Array, NullArray, StringArray};
    use std::sync::Arc;

    fn filter(array: ArrayRef) -> Bloom {
        let mut builder = BloomBuilder::default();
        assert!(builder.add(&array));
        Bloom::new(Buffer::from(builder.finish())).unwrap()
    }

    /// Values of the reference implementation (`xxhsum -H1`).
    #[test]
    fn the_hash_is_xxhash64() {
        assert_eq!(xxh64(b""), 0xef46_db37_51d8_e999);
        assert_eq!(xxh64(b"a"), 0xd24e_c4f1_a98c_6e5b);
        assert_eq!(xxh64(b"abc"), 0x44bc_2cf5_ad77_0999);
        assert_eq!(xxh64(b"Nobody inspects the spammish repetition"), 0xfbce_a83c_8a37_8bf1);
    }

    #[test]
    fn what_was_added_is_found_and_one_in_a_hundred_others() {
        for rows in [1i64, 100, 65_536, 200_000] {
            let bloom = filter(Arc::new(Int64Array::from_iter_values(0..rows)));
            let found = |from: i64, to: i64| (from..to).filter(|value| bloom.may_contain(integer(*value))).count();
            assert_eq!(found(0, rows), rows as usize);
            let wrong = found(1_000_000, 1_100_000);
            assert!(wrong < 1_600, "{wrong} of 100,000 at {rows} rows");
        }
    }

    #[test]
    fn repeated_values_take_no_room() {
        let mut builder = BloomBuilder::default();
        builder.add(&(Arc::new(StringArray::from(vec![Some("a"); 10_000])) as ArrayRef));
        builder.add(&(Arc::new(StringArray::from(vec![None, Some("b"), Some("a")])) as ArrayRef));
        assert_eq!(builder.finish().len(), BLOCK_BYTES);
    }

    #[test]
    fn equal_values_have_equal_hashes_and_lists_have_none() {
        let of = |array: ArrayRef| hashes(&array).unwrap();
        let floats = of(Arc::new(Float64Array::from(vec![0.0, -0.0, f64::NAN, -f64::NAN])));
        assert_eq!((floats[0], floats[2]), (floats[1], floats[3]));
        assert_eq!(of(Arc::new(Int32Array::from(vec![7]))), of(Arc::new(Int64Array::from(vec![7]))));
        assert!(hashes(&(Arc::new(NullArray::new(1)) as ArrayRef)).is_none());
    }

    #[test]
    fn damaged_lengths_are_no_filter() {
        assert!(Bloom::new(Buffer::from(vec![0; 31])).is_none());
        assert!(Bloom::new(Buffer::from(Vec::<u8>::new())).is_none());
    }
}
