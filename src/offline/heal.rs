//! Finding the one flipped bit that explains a checksum.
//!
//! CRC-32C is linear: flipping bit `b` of a byte with `n` bytes behind it changes the checksum by a value that depends on
//! `b` and `n` only, and these values differ from each other up to 256 MiB. So a checksum that does not match names the
//! flipped bit, if one bit is all that is wrong. Bytes damaged in another way look like that by chance, in 8 × length of
//! 2³² cases; callers bound the length or have a second proof. Pure.

/// Bytes above which one flipped bit is not told by a checksum alone: by chance in one of 8,192 cases below it.
pub(crate) const BYTES_MAX: usize = 64 << 10;

/// The reversed polynomial of CRC-32C.
const POLYNOMIAL: u32 = 0x82f6_3b78;

fn table() -> [u32; 256] {
    let mut table = [0; 256];
    for (value, byte) in table.iter_mut().zip(0u32..) {
        *value = (0..8).fold(byte, |crc, _| if crc & 1 == 1 { (crc >> 1) ^ POLYNOMIAL } else { crc >> 1 });
    }
    table
}

/// The bit of `bytes` (8 × position + number in its byte) whose flip makes the checksum `crc`.
pub(crate) fn flipped_bit(bytes: &[u8], crc: u32) -> Option<usize> {
    let difference = crc32c::crc32c(bytes) ^ crc;
    let table = table();
    let mut changes: [u32; 8] = std::array::from_fn(|bit| table[1 << bit]);
    for position in (0..bytes.len()).rev() {
        if let Some(bit) = changes.iter().position(|change| *change == difference) {
            return Some(position * 8 + bit);
        }
        for change in &mut changes {
            *change = table[(*change & 0xff) as usize] ^ (*change >> 8);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_flipped_bit_is_named_and_two_are_not_taken_for_one() {
        let good: Vec<u8> = (0..700u32).map(|i| (i * 31 % 251) as u8).collect();
        let crc = crc32c::crc32c(&good);
        for bit in 0..good.len() * 8 {
            let mut bad = good.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(flipped_bit(&bad, crc), Some(bit));
            let other = (bit * 7 + 3) % (good.len() * 8);
            bad[other / 8] ^= 1 << (other % 8);
            assert!(other == bit || flipped_bit(&bad, crc).is_none(), "{bit} and {other}");
        }
        assert_eq!(flipped_bit(&good, crc), None);
    }
}
