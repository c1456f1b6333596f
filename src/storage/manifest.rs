//! The manifest of a shard: what is sealed, and the state that goes with it.
//!
//! Owns the layout, the codec and the atomic replacement. Leaves out the meaning of `applied` and `extra`
//! (replication's) and opening the segments ([`recovery`](super::recovery)). Written by a seal job. A crash
//! leaves the old manifest or the new one: the new one is written to `manifest.tmp` and synced, renamed over
//! the old one, and the directory is synced.
//!
//! | bytes | field |
//! |---|---|
//! | 0..8 | magic `MLSTMANI` |
//! | 8..12 | version, u32; places of magic, version and checksum hold in all versions |
//! | 12..16 | CRC-32C of bytes 0..12 and 16..end |
//! | 16..24 | bytes of the index, u64 |
//! | 24..32 | bytes of `applied`, u64 |
//! | 32..40 | bytes of `extra`, u64 |
//! | 40.. | index (JSON of [`ManifestIndex`]), `applied`, `extra` |
//!
//! Numbers are little-endian. Later versions differ from 1 in what they may say: from 2 on, the first segment of a
//! partition may begin before its log start; from 3 on, segments have gaps, and one that compaction emptied is not
//! listed. A topic's schema is an Arrow IPC schema message in hexadecimal.

use super::batch::{RowtimeRange, TopicStorage};
use super::compaction::PartitionUpkeep;
use super::disk::Disk;
use super::error::StorageError;
use super::segment::{SegmentEnd, SegmentExpected};
use arrow::datatypes::{Schema, SchemaRef};
use arrow::ipc::convert::try_schema_from_flatbuffer_bytes;
use arrow::ipc::writer::{DictionaryTracker, IpcDataGenerator, IpcWriteOptions};
use bytes::Bytes;
use millstream_catalog::model::{EntryIndex, Offset, PartitionId, RowCount, ShardId, Timestamp, TopicId};
use millstream_catalog::relation::Compression;
use serde::{Deserialize, Serialize};
use std::io;
use std::path::Path;
use std::sync::Arc;

/// Name of the manifest in a shard's directory.
pub(crate) const MANIFEST: &str = "manifest";
/// Name of the manifest being written.
pub(crate) const MANIFEST_TMP: &str = "manifest.tmp";

const MAGIC: &[u8; 8] = b"MLSTMANI";
const VERSION: u32 = 3;
const HEADER_BYTES: usize = 40;
/// Where the checksum is.
pub(crate) const CRC_POSITION: usize = 12;

/// Everything a manifest holds.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Manifest {
    pub(crate) index: ManifestIndex,
    pub(crate) applied: Bytes,
    pub(crate) extra: Bytes,
}

/// What storage itself keeps in the manifest.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct ManifestIndex {
    pub(crate) shard: ShardId,
    /// The last entry whose rows are in the segments.
    pub(crate) published: EntryIndex,
    pub(crate) topics: Vec<TopicManifest>,
    /// Segment files of dropped topics, or before the log start, to be removed.
    pub(crate) removed: Vec<String>,
}

/// A topic and its partitions, by number.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct TopicManifest {
    pub(crate) topic: TopicId,
    pub(crate) compression: Compression,
    /// Hexadecimal IPC schema message.
    pub(crate) schema: String,
    pub(crate) partitions: Vec<PartitionManifest>,
}

/// A partition: segments that follow each other up to `offset_next`, but for ranges that compaction emptied. The first may
/// begin before `offset_start`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct PartitionManifest {
    pub(crate) offset_start: Offset,
    pub(crate) offset_next: Offset,
    pub(crate) segments: Vec<SegmentManifest>,
    /// What compaction and merging did.
    #[serde(default, skip_serializing_if = "PartitionUpkeep::is_none")]
    pub(crate) upkeep: PartitionUpkeep,
}

/// A segment, its place and what verifies its file.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct SegmentManifest {
    pub(crate) file: String,
    pub(crate) offset_start: Offset,
    /// Where a segment with gaps ends; else it is `offset_start` and `rows`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) offset_end: Option<Offset>,
    pub(crate) rows: RowCount,
    pub(crate) bytes: u64,
    pub(crate) compression: Compression,
    /// What of the file stands after the last block, the checksums of all else included.
    pub(crate) end: SegmentEnd,
    /// Inclusive event-time range in µs.
    pub(crate) rowtime: Option<(i64, i64)>,
    /// The first and the last entry with rows in it: with them it need not be opened before it is read.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub(crate) entries: Option<(EntryIndex, EntryIndex)>,
    /// Why a repair took the file away: its rows keep their offsets and cannot be read.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub(crate) lost: Option<String>,
}

impl SegmentManifest {
    /// The offset after the last one it is for.
    pub(crate) fn end(&self) -> Offset {
        self.offset_end.unwrap_or(self.offset_start.plus(self.rows))
    }

    /// What its file must hold.
    pub(crate) fn expected(&self, topic: TopicId, partition: PartitionId, schema: &SchemaRef) -> SegmentExpected {
        let rowtime = self.rowtime.map(|(first, last)| RowtimeRange {
            first: Timestamp::from_micros(first),
            last: Timestamp::from_micros(last),
        });
        SegmentExpected {
            topic,
            partition,
            offset_start: self.offset_start,
            offset_end: self.offset_end,
            rows: self.rows,
            bytes: self.bytes,
            end: self.end,
            compression: self.compression,
            schema: Arc::clone(schema),
            rowtime,
            entries: self.entries,
        }
    }
}

impl TopicManifest {
    /// The topic as the store knows it.
    pub(crate) fn storage(&self) -> Result<TopicStorage, StorageError> {
        let schema = decode_schema(&self.schema)
            .ok_or_else(|| corrupt(HEADER_BYTES, "the schema of a topic does not decode"))?;
        let partitions = u32::try_from(self.partitions.len())
            .map_err(|_| corrupt(HEADER_BYTES, "a topic has too many partitions"))?;
        Ok(TopicStorage { topic: self.topic, partitions, schema, compression: self.compression })
    }
}

impl Manifest {
    /// The bytes of the file.
    ///
    /// # Errors
    /// [`StorageError::Schema`] when the index cannot be encoded.
    pub(crate) fn encode(&self) -> Result<Vec<u8>, StorageError> {
        let index = serde_json::to_vec(&self.index)
            .map_err(|e| StorageError::Schema { what: format!("the manifest cannot be encoded: {e}") })?;
        let mut bytes = Vec::with_capacity(HEADER_BYTES + index.len() + self.applied.len() + self.extra.len());
        bytes.extend_from_slice(MAGIC);
        bytes.extend_from_slice(&VERSION.to_le_bytes());
        bytes.extend_from_slice(&[0; 4]);
        for section in [&index[..], &self.applied, &self.extra] {
            bytes.extend_from_slice(&(section.len() as u64).to_le_bytes());
        }
        for section in [&index[..], &self.applied, &self.extra] {
            bytes.extend_from_slice(section);
        }
        let crc = checksum(&bytes);
        bytes[12..16].copy_from_slice(&crc.to_le_bytes());
        Ok(bytes)
    }

    /// The manifest of `bytes`.
    ///
    /// # Errors
    /// [`StorageError::Corrupt`] or [`StorageError::Newer`].
    pub(crate) fn decode(bytes: &Bytes) -> Result<Self, StorageError> {
        let number = |position: usize| bytes.get(position..position + 4)?.try_into().ok().map(u32::from_le_bytes);
        let size = |position: usize| -> Option<usize> {
            let raw: [u8; 8] = bytes.get(position..position + 8)?.try_into().ok()?;
            usize::try_from(u64::from_le_bytes(raw)).ok()
        };
        if bytes.get(..8) != Some(MAGIC) {
            return Err(corrupt(0, "it does not begin as a manifest"));
        }
        let (Some(version), Some(crc)) = (number(8), number(12)) else {
            return Err(corrupt(bytes.len(), "it ends within the header"));
        };
        if checksum(bytes) != crc {
            return Err(corrupt(12, "the checksum does not match"));
        }
        if version > VERSION {
            return Err(StorageError::Newer { file: MANIFEST.to_owned(), version, supported: VERSION });
        }
        let (Some(index), Some(applied), Some(extra)) = (size(16), size(24), size(32)) else {
            return Err(corrupt(bytes.len(), "it ends within the header"));
        };
        let total = [index, applied, extra].iter().try_fold(HEADER_BYTES, |sum, part| sum.checked_add(*part));
        if total != Some(bytes.len()) {
            return Err(corrupt(16, "its sections do not add up"));
        }
        let applied_start = HEADER_BYTES + index;
        let extra_start = applied_start + applied;
        let index = serde_json::from_slice(&bytes[HEADER_BYTES..applied_start])
            .map_err(|_| corrupt(HEADER_BYTES, "its index does not decode"))?;
        Ok(Self { index, applied: bytes.slice(applied_start..extra_start), extra: bytes.slice(extra_start..) })
    }

    /// The manifest in `dir`; `None` when there is none.
    ///
    /// # Errors
    /// As [`Manifest::decode`], and the disk's errors.
    pub(crate) fn read(disk: &dyn Disk, dir: &Path) -> Result<Option<Self>, StorageError> {
        let failed = |error| StorageError::io("read a manifest", error);
        let file = match disk.open(&dir.join(MANIFEST)) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(failed(error)),
        };
        let mut bytes = vec![0; file.len().map_err(failed)? as usize];
        file.read_at(&mut bytes, 0).map_err(failed)?;
        Self::decode(&Bytes::from(bytes)).map(Some)
    }

    /// Replaces the manifest in `dir`, durably.
    ///
    /// # Errors
    /// [`StorageError::SyncFailed`] when it is unknown which manifest is on disk; otherwise the old one is.
    pub(crate) fn replace(&self, disk: &dyn Disk, dir: &Path) -> Result<(), StorageError> {
        let failed = |error| StorageError::io("write a manifest", error);
        let tmp = dir.join(MANIFEST_TMP);
        let file = disk.create(&tmp).map_err(failed)?;
        file.write_at(&self.encode()?, 0).map_err(failed)?;
        file.sync_data().map_err(|_| StorageError::SyncFailed)?;
        disk.rename(&tmp, &dir.join(MANIFEST)).map_err(failed)?;
        disk.sync_dir(dir).map_err(|_| StorageError::SyncFailed)
    }
}

fn corrupt(position: usize, what: &'static str) -> StorageError {
    StorageError::Corrupt { file: MANIFEST.to_owned(), position: position as u64, what }
}

fn checksum(bytes: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(&bytes[..12]), &bytes[16.min(bytes.len())..])
}

/// A schema as a hexadecimal IPC message.
pub(crate) fn encode_schema(schema: &Schema) -> String {
    let mut tracker = DictionaryTracker::new(true);
    let options = IpcWriteOptions::default();
    let encoded = IpcDataGenerator::default().schema_to_bytes_with_dictionary_tracker(schema, &mut tracker, &options);
    encoded.ipc_message.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn decode_schema(hex: &str) -> Option<SchemaRef> {
    let digits = hex.as_bytes();
    let digit = |byte: u8| char::from(byte).to_digit(16).and_then(|value| u8::try_from(value).ok());
    let pairs = digits.chunks(2).map(|pair| Some((digit(*pair.first()?)? << 4) | digit(*pair.get(1)?)?));
    let bytes: Vec<u8> = pairs.collect::<Option<_>>()?;
    try_schema_from_flatbuffer_bytes(&bytes).ok().map(Arc::new)
}

#[cfg(test)]
mod tests {
    use super::super::fault_disk::FaultDisk;
    use super::super::testing::schema;
    use super::*;
    use std::path::Path;

    /// A manifest as version 1 wrote it; every later version must read it.
    const FIXTURE: &[u8] = include_bytes!("fixtures/manifest-1");

    /// As in the fixture, without the key.
    fn plain_schema() -> SchemaRef {
        Arc::new(schema().as_ref().clone().with_metadata(Default::default()))
    }

    fn example() -> Manifest {
        let segment = SegmentManifest {
            file: "t7-p0-00000000000000000005.arrow".to_owned(),
            offset_start: Offset::new(5),
            offset_end: None,
            rows: RowCount::new(10),
            bytes: 1_234,
            compression: Compression::Lz4,
            end: SegmentEnd { bytes: 300, crc: 0xdead_beef },
            rowtime: Some((-1, 2)),
            entries: None,
            lost: None,
        };
        let empty = PartitionManifest::default();
        let partition = PartitionManifest {
            offset_start: Offset::new(5),
            offset_next: Offset::new(15),
            segments: vec![segment],
            ..PartitionManifest::default()
        };
        let topic = TopicManifest {
            topic: TopicId::new(7),
            compression: Compression::Zstd,
            schema: encode_schema(&plain_schema()),
            partitions: vec![partition, empty],
        };
        let index = ManifestIndex {
            shard: ShardId::new(3),
            published: EntryIndex::new(99),
            topics: vec![topic],
            removed: vec!["t1-p0-00000000000000000000.arrow".to_owned()],
        };
        Manifest { index, applied: Bytes::from_static(b"applied"), extra: Bytes::from_static(b"extra\0") }
    }

    #[test]
    fn what_is_written_is_read() {
        let disk = FaultDisk::new();
        let dir = Path::new("/shard");
        disk.create_dir_all(dir).unwrap();
        assert_eq!(Manifest::read(&disk, dir).unwrap(), None);
        example().replace(&disk, dir).unwrap();
        let read = Manifest::read(&disk, dir).unwrap().unwrap();
        assert_eq!(read, example());
        assert_eq!(read.index.topics[0].storage().unwrap().schema, plain_schema());
        assert!(!disk.exists(&dir.join(MANIFEST_TMP)).unwrap());
    }

    #[test]
    fn the_first_version_opens() {
        assert_eq!(Manifest::decode(&Bytes::from_static(FIXTURE)).unwrap(), example());
    }

    #[test]
    fn every_flipped_bit_and_every_cut_is_found() {
        let good = example().encode().unwrap();
        for position in 0..good.len() {
            let mut bad = good.clone();
            bad[position] ^= 1 << (position % 8);
            let found = Manifest::decode(&Bytes::from(bad));
            assert!(matches!(found, Err(StorageError::Corrupt { .. })), "byte {position}: {found:?}");
            let cut = Manifest::decode(&Bytes::from(good[..position].to_vec()));
            assert!(matches!(cut, Err(StorageError::Corrupt { .. })), "length {position}: {cut:?}");
        }
    }

    #[test]
    fn a_later_version_is_refused() {
        let mut later = example().encode().unwrap();
        later[8] = 4;
        let crc = checksum(&later).to_le_bytes();
        later[12..16].copy_from_slice(&crc);
        let found = Manifest::decode(&Bytes::from(later));
        assert!(matches!(found, Err(StorageError::Newer { version: 4, supported: 3, .. })), "{found:?}");
    }
}
