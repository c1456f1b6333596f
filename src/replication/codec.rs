//! Little-endian reading and writing of small fields, for entries and manifests.
//!
//! Owns bounds checking: damaged bytes give [`DecodeError`], never a panic or a huge allocation. Leaves out
//! checksums, which the WAL and the manifest add below, and versions, which each format writes itself.

use bytes::Bytes;
use millstream_catalog::Compression;
use millstream_catalog::model::{Offset, PartitionId, TopicId};

/// Why bytes are not what they should be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum DecodeError {
    #[error("ends too early")]
    Short,
    #[error("has bytes left over")]
    Trailing,
    #[error("has version {0}, newer than this program")]
    Version(u8),
    #[error("has unknown kind {0}")]
    Kind(u8),
    #[error("is damaged: {0}")]
    Damaged(String),
}

/// 0 none, 1 LZ4, 2 ZSTD.
pub(crate) fn encode_compression(compression: Compression) -> u8 {
    match compression {
        Compression::None => 0,
        Compression::Lz4 => 1,
        Compression::Zstd => 2,
    }
}

pub(crate) fn decode_compression(kind: u8) -> Result<Compression, DecodeError> {
    match kind {
        0 => Ok(Compression::None),
        1 => Ok(Compression::Lz4),
        2 => Ok(Compression::Zstd),
        kind => Err(DecodeError::Kind(kind)),
    }
}

/// Appends fields to a buffer.
#[derive(Debug, Default)]
pub(crate) struct Encoder {
    bytes: Vec<u8>,
}

impl Encoder {
    pub(crate) fn with_capacity(capacity: usize) -> Self {
        Self { bytes: Vec::with_capacity(capacity) }
    }
    pub(crate) fn u8(&mut self, value: u8) {
        self.bytes.push(value);
    }
    pub(crate) fn u32(&mut self, value: u32) {
        self.bytes.extend_from_slice(&value.to_le_bytes());
    }
    pub(crate) fn u64(&mut self, value: u64) {
        self.bytes.extend_from_slice(&value.to_le_bytes());
    }
    pub(crate) fn i64(&mut self, value: i64) {
        self.bytes.extend_from_slice(&value.to_le_bytes());
    }
    /// A length (8 bytes) and the bytes.
    pub(crate) fn bytes(&mut self, value: &[u8]) {
        self.u64(value.len() as u64);
        self.bytes.extend_from_slice(value);
    }
    /// Like [`Encoder::bytes`] of both, one after the other.
    pub(crate) fn bytes_of_two(&mut self, head: &[u8], body: &[u8]) {
        self.u64((head.len() + body.len()) as u64);
        self.bytes.extend_from_slice(head);
        self.bytes.extend_from_slice(body);
    }
    /// A count of items that follow (4 bytes). Counts are bounded far below 2³² by `limit`.
    pub(crate) fn count(&mut self, count: usize) {
        self.u32(u32::try_from(count).expect("counts in entries are bounded by limits below 2^32"));
    }
    pub(crate) fn partition(&mut self, topic: TopicId, partition: PartitionId) {
        self.u64(topic.value());
        self.u32(partition.value());
    }
    pub(crate) fn position(&mut self, topic: TopicId, partition: PartitionId, offset: Offset) {
        self.partition(topic, partition);
        self.u64(offset.value());
    }
    pub(crate) fn finish(self) -> Bytes {
        Bytes::from(self.bytes)
    }
}

/// Takes fields from bytes; byte strings share the allocation.
#[derive(Debug)]
pub(crate) struct Decoder {
    bytes: Bytes,
}

impl Decoder {
    pub(crate) fn new(bytes: Bytes) -> Self {
        Self { bytes }
    }
    fn take<const N: usize>(&mut self) -> Result<[u8; N], DecodeError> {
        let (head, _) = self.bytes.split_first_chunk::<N>().ok_or(DecodeError::Short)?;
        let head = *head;
        let _ = self.bytes.split_to(N);
        Ok(head)
    }
    pub(crate) fn u8(&mut self) -> Result<u8, DecodeError> {
        Ok(u8::from_le_bytes(self.take()?))
    }
    pub(crate) fn u32(&mut self) -> Result<u32, DecodeError> {
        Ok(u32::from_le_bytes(self.take()?))
    }
    pub(crate) fn u64(&mut self) -> Result<u64, DecodeError> {
        Ok(u64::from_le_bytes(self.take()?))
    }
    pub(crate) fn i64(&mut self) -> Result<i64, DecodeError> {
        Ok(i64::from_le_bytes(self.take()?))
    }
    pub(crate) fn bytes(&mut self) -> Result<Bytes, DecodeError> {
        let length = usize::try_from(self.u64()?).map_err(|_| DecodeError::Short)?;
        if length > self.bytes.len() {
            return Err(DecodeError::Short);
        }
        Ok(self.bytes.split_to(length))
    }
    pub(crate) fn text(&mut self) -> Result<String, DecodeError> {
        let bytes = self.bytes()?;
        String::from_utf8(bytes.to_vec()).map_err(|e| DecodeError::Damaged(e.to_string()))
    }
    /// A count of items of at least `size` bytes each that follow.
    pub(crate) fn count(&mut self, size: usize) -> Result<usize, DecodeError> {
        let count = self.u32()? as usize;
        if count.saturating_mul(size) > self.bytes.len() { Err(DecodeError::Short) } else { Ok(count) }
    }
    pub(crate) fn partition(&mut self) -> Result<(TopicId, PartitionId), DecodeError> {
        Ok((TopicId::new(self.u64()?), PartitionId::new(self.u32()?)))
    }
    pub(crate) fn position(&mut self) -> Result<(TopicId, PartitionId, Offset), DecodeError> {
        let (topic, partition) = self.partition()?;
        Ok((topic, partition, Offset::new(self.u64()?)))
    }
    /// The version byte, refused when above `newest`.
    pub(crate) fn version(&mut self, newest: u8) -> Result<u8, DecodeError> {
        match self.u8()? {
            version if version == 0 || version > newest => Err(DecodeError::Version(version)),
            version => Ok(version),
        }
    }
    /// Checks that nothing is left.
    pub(crate) fn finish(self) -> Result<(), DecodeError> {
        if self.bytes.is_empty() { Ok(()) } else { Err(DecodeError::Trailing) }
    }
}
