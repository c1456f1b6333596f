//! The frame: one record of the write-ahead log as bytes.
//!
//! Owns the layout, version 1, and its checksums. Leaves out where frames go and what they mean (`wal`). A frame
//! a crash tore, a stale one of a recycled file, and one found at another position than it was written to, all
//! fail the header's checksum or its sequence.
//!
//! Little-endian; a frame starts at a multiple of 8 and its payload is padded with zeros to one.
//!
//! | byte | size | field |
//! |---|---|---|
//! | 0 | 4 | magic `MSFR` |
//! | 4 | 1 | version, 1 |
//! | 5 | 1 | kind, see [`FrameKind`] |
//! | 6 | 2 | zero |
//! | 8 | 4 | shard |
//! | 12 | 4 | length of the payload |
//! | 16 | 8 | term, of an entry |
//! | 24 | 8 | index, of an entry, truncation or purge |
//! | 32 | 8 | sequence of the file |
//! | 40 | 8 | synced: the file was synced up to this byte when the frame was written |
//! | 48 | 4 | CRC-32C of the payload |
//! | 52 | 4 | CRC-32C of the frame's position in the file (8 bytes) and of bytes 0 to 51 |
//! | 56 | length | payload |

use millstream_catalog::model::{EntryIndex, ShardId, Term};

/// Bytes of a frame before its payload.
pub(crate) const HEADER_BYTES: u64 = 56;
/// Where frames may start, and what payloads are padded to.
pub(crate) const ALIGNMENT: u64 = 8;
/// The version written, and the newest one read.
pub(crate) const VERSION: u8 = 1;

const MAGIC: [u8; 4] = *b"MSFR";

/// What a frame records. The numbers are on disk and never reused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum FrameKind {
    /// A Raft entry.
    Entry = 1,
    /// A shard's vote.
    Vote = 2,
    /// A shard's committed mark.
    Committed = 3,
    /// Entries after `index` are gone.
    Truncate = 4,
    /// Entries up to `index` are gone.
    Purge = 5,
    /// The file's last frame; the log goes on in the next file.
    End = 6,
    /// The log was closed in order; it may go on after.
    Close = 7,
}

impl FrameKind {
    fn decode(byte: u8) -> Option<Self> {
        Some(match byte {
            1 => Self::Entry,
            2 => Self::Vote,
            3 => Self::Committed,
            4 => Self::Truncate,
            5 => Self::Purge,
            6 => Self::End,
            7 => Self::Close,
            _ => return None,
        })
    }
}

/// A frame without its payload.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct FrameHeader {
    pub(crate) kind: FrameKind,
    pub(crate) shard: ShardId,
    pub(crate) length: u32,
    pub(crate) term: Term,
    pub(crate) index: EntryIndex,
    pub(crate) sequence: u64,
    pub(crate) synced: u64,
    pub(crate) payload_crc: u32,
}

/// Why bytes are not a frame's header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum FrameFault {
    /// No magic, a checksum that does not hold, or too few bytes.
    Checksum,
    /// A whole header of a later version, or of a kind this one does not know.
    Newer(u8),
}

/// Bytes a frame with a payload of `length` takes in a file.
pub(crate) const fn frame_bytes(length: u64) -> u64 {
    (HEADER_BYTES + length).next_multiple_of(ALIGNMENT)
}

fn header_crc(header: &[u8], position: u64) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(&position.to_le_bytes()), header)
}

impl FrameHeader {
    /// Appends the frame to `out`; `position` is where its first byte goes in the file.
    pub(crate) fn encode(&self, position: u64, payload: &[u8], out: &mut Vec<u8>) {
        let start = out.len();
        out.extend_from_slice(&MAGIC);
        out.extend_from_slice(&[VERSION, self.kind as u8, 0, 0]);
        out.extend_from_slice(&self.shard.value().to_le_bytes());
        out.extend_from_slice(&self.length.to_le_bytes());
        out.extend_from_slice(&self.term.value().to_le_bytes());
        out.extend_from_slice(&self.index.value().to_le_bytes());
        out.extend_from_slice(&self.sequence.to_le_bytes());
        out.extend_from_slice(&self.synced.to_le_bytes());
        out.extend_from_slice(&self.payload_crc.to_le_bytes());
        let crc = header_crc(&out[start..], position);
        out.extend_from_slice(&crc.to_le_bytes());
        out.extend_from_slice(payload);
        out.resize(start + frame_bytes(u64::from(self.length)) as usize, 0);
    }

    /// Reads the header at the start of `bytes`, which were found at `position`. The payload is not looked at.
    ///
    /// # Errors
    /// [`FrameFault`] when there is none, or not one of this version.
    pub(crate) fn decode(bytes: &[u8], position: u64) -> Result<Self, FrameFault> {
        let header: &[u8; HEADER_BYTES as usize] = bytes.first_chunk().ok_or(FrameFault::Checksum)?;
        if header[..4] != MAGIC || header_crc(&header[..52], position) != u32_at(header, 52) {
            return Err(FrameFault::Checksum);
        }
        if header[4] != VERSION {
            return Err(FrameFault::Newer(header[4]));
        }
        Ok(Self {
            kind: FrameKind::decode(header[5]).ok_or(FrameFault::Newer(header[4]))?,
            shard: ShardId::new(u32_at(header, 8)),
            length: u32_at(header, 12),
            term: Term::new(u64_at(header, 16)),
            index: EntryIndex::new(u64_at(header, 24)),
            sequence: u64_at(header, 32),
            synced: u64_at(header, 40),
            payload_crc: u32_at(header, 48),
        })
    }

    /// The header at the start of `bytes` if it is as written but for one bit, with the number of that bit: the payload's
    /// checksum, which is in the header, says so too.
    pub(crate) fn heal(bytes: &[u8], position: u64, sequence: u64) -> Option<(Self, usize)> {
        let mut header: [u8; HEADER_BYTES as usize] = *bytes.first_chunk()?;
        (0..HEADER_BYTES as usize * 8).find_map(|bit| {
            header[bit / 8] ^= 1 << (bit % 8);
            let healed = Self::decode(&header, position).ok();
            header[bit / 8] ^= 1 << (bit % 8);
            let healed = healed.filter(|healed| healed.sequence == sequence && healed.payload(bytes).is_some())?;
            Some((healed, bit))
        })
    }

    /// Bytes of the whole frame.
    pub(crate) fn bytes(&self) -> u64 {
        frame_bytes(u64::from(self.length))
    }

    /// The payload of the frame that starts `bytes`, if it is all there and as written.
    pub(crate) fn payload<'a>(&self, bytes: &'a [u8]) -> Option<&'a [u8]> {
        let start = HEADER_BYTES as usize;
        let payload = bytes.get(start..start + self.length as usize)?;
        (crc32c::crc32c(payload) == self.payload_crc).then_some(payload)
    }
}

pub(super) fn u32_at(bytes: &[u8], at: usize) -> u32 {
    let mut value = [0; 4];
    value.copy_from_slice(&bytes[at..at + 4]);
    u32::from_le_bytes(value)
}

pub(super) fn u64_at(bytes: &[u8], at: usize) -> u64 {
    let mut value = [0; 8];
    value.copy_from_slice(&bytes[at..at + 8]);
    u64::from_le_bytes(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> (FrameHeader, &'static [u8]) {
        let payload = b"millstream!";
        let header = FrameHeader {
            kind: FrameKind::Entry,
            shard: ShardId::new(3),
            length: 11,
            term: Term::new(5),
            index: EntryIndex::new(0x0102_0304),
            sequence: 9,
            synced: 512,
            payload_crc: crc32c::crc32c(payload),
        };
        (header, payload)
    }

    /// The bytes of version 1; they never change.
    const FIXTURE: &str = "4d53465201010000030000000b0000000500000000000000040302010000000009000000000000000002000000000000\
                           d71df50ad6e466b66d696c6c73747265616d210000000000";

    #[test]
    fn version_1_keeps_its_bytes() {
        let (header, payload) = sample();
        let mut bytes = Vec::new();
        header.encode(1024, payload, &mut bytes);
        let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(hex, FIXTURE);
        assert_eq!(FrameHeader::decode(&bytes, 1024), Ok(header));
        assert_eq!(header.payload(&bytes), Some(payload));
    }

    #[test]
    fn every_flipped_bit_is_noticed() {
        let (header, payload) = sample();
        let mut bytes = Vec::new();
        header.encode(1024, payload, &mut bytes);
        for bit in 0..(HEADER_BYTES as usize + payload.len()) * 8 {
            bytes[bit / 8] ^= 1 << (bit % 8);
            let found = FrameHeader::decode(&bytes, 1024).ok().and_then(|header| header.payload(&bytes));
            assert_eq!(found, None, "bit {bit}");
            bytes[bit / 8] ^= 1 << (bit % 8);
        }
    }

    #[test]
    fn a_header_with_one_flipped_bit_is_known_again() {
        let (header, payload) = sample();
        let mut bytes = Vec::new();
        header.encode(1024, payload, &mut bytes);
        for bit in 0..HEADER_BYTES as usize * 8 {
            bytes[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(FrameHeader::heal(&bytes, 1024, 9), Some((header, bit)));
            assert_eq!(FrameHeader::heal(&bytes, 1024, 8), None, "of another file");
            bytes[60] ^= 1;
            assert_eq!(FrameHeader::heal(&bytes, 1024, 9), None, "its payload is damaged too");
            bytes[60] ^= 1;
            bytes[bit / 8] ^= 1 << (bit % 8);
        }
    }

    #[test]
    fn frame_at_another_position_and_of_a_later_version_are_refused() {
        let (header, payload) = sample();
        let mut bytes = Vec::new();
        header.encode(1024, payload, &mut bytes);
        assert_eq!(FrameHeader::decode(&bytes, 1032), Err(FrameFault::Checksum));
        assert_eq!(FrameHeader::decode(&bytes[..55], 1024), Err(FrameFault::Checksum));
        bytes[4] = 2;
        let crc = header_crc(&bytes[..52], 1024);
        bytes[52..56].copy_from_slice(&crc.to_le_bytes());
        assert_eq!(FrameHeader::decode(&bytes, 1024), Err(FrameFault::Newer(2)));
    }
}
