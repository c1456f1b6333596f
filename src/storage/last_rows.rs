//! The last row of each key, among rows that are compacted: which rows stay and which go.
//!
//! Owns the memory that compaction needs, as Kafka's offset map does: of each key a 128-bit hash and an offset. Two keys
//! of four million share a hash with probability 2⁻⁸⁵. Leaves out files ([`rewrite`](super::rewrite)). A crash loses it.

use super::batch::StoredBatch;
use super::error::StorageError;
use super::fit::Wanted;
use super::rewrite::CompactionPlan;
use super::segment::Segment;
use arrow::array::{Array, ArrayRef, AsArray, BooleanArray, Int64Array};
use arrow::buffer::BooleanBuffer;
use arrow::compute::{filter, filter_record_batch};
use arrow::datatypes::{Int64Type, SchemaRef};
use arrow::row::{RowConverter, SortField};
use millstream_catalog::model::Offset;
use millstream_catalog::schema::{ROW_IDS_METADATA, ROWTOMBSTONE};
use std::collections::HashMap;
use std::hash::{DefaultHasher, Hasher};
use std::sync::Arc;

/// The offset of the last row of each key that has rows from some offset on.
#[derive(Debug)]
pub(crate) struct LastRows {
    converter: RowConverter,
    /// Positions of the key columns, then of the tombstone, if there is one.
    columns: Vec<usize>,
    keys: usize,
    /// The key is the offset of a row's first event, NULL in that event.
    is_by_offset: bool,
    wanted: Wanted,
    last: HashMap<u128, u64>,
    tombstones_upto: Offset,
    /// Tombstones that stay, of the rows filtered so far.
    tombstones: u64,
}

fn unfit(error: impl std::fmt::Display) -> StorageError {
    StorageError::Schema { what: format!("keys cannot be compared: {error}") }
}

impl LastRows {
    /// Reads the keys of `segments` from `dirty_start` on.
    ///
    /// # Errors
    /// When rows cannot be read, or the key is not of the schema.
    pub(crate) fn read(
        segments: &[Arc<Segment>],
        schema: &SchemaRef,
        plan: &CompactionPlan,
        dirty_start: Offset,
    ) -> Result<Self, StorageError> {
        let mut columns: Vec<usize> = plan.key.iter().map(|column| *column as usize).collect();
        let keys = columns.len();
        let is_by_offset = matches!(columns.as_slice(), [key] if is_row_id(schema, *key));
        match is_by_offset {
            true => columns.push(columns[0] + 1),
            false => columns.extend(schema.index_of(ROWTOMBSTONE)),
        }
        let wanted = Wanted::new(schema, Some(&columns))?;
        let fields = wanted.output().fields().iter().take(keys);
        let fields = fields.map(|field| SortField::new(field.data_type().clone())).collect();
        let converter = RowConverter::new(fields).map_err(unfit)?;
        let (last, tombstones_upto) = (HashMap::new(), plan.tombstones_upto);
        let mut rows = Self { converter, columns, keys, is_by_offset, wanted, last, tombstones_upto, tombstones: 0 };
        for segment in segments.iter().filter(|segment| segment.offset_end() > dirty_start) {
            let open = segment.opened()?;
            for block in 0..open.blocks() {
                let stored = open.read_anew(block, &rows.wanted)?;
                let hashes = rows.hashes(&stored)?;
                for (hash, offset) in hashes.into_iter().zip(stored.row_offsets().values()) {
                    if let Some(hash) = hash {
                        rows.last.insert(hash, *offset as u64);
                    }
                }
            }
        }
        Ok(rows)
    }

    /// Tombstones that stay.
    pub(crate) fn tombstones(&self) -> u64 {
        self.tombstones
    }

    /// Whether every row of a segment stays; then its tombstones are counted.
    ///
    /// # Errors
    /// When rows cannot be read.
    pub(crate) fn keeps_all(&mut self, segment: &Segment) -> Result<bool, StorageError> {
        let mut tombstones = 0;
        let open = segment.opened()?;
        for block in 0..open.blocks() {
            let stored = open.read(block, &self.wanted)?;
            let (kept, more) = self.kept(&stored)?;
            if kept.count_set_bits() < kept.len() {
                return Ok(false);
            }
            tombstones += more;
        }
        self.tombstones += tombstones;
        Ok(true)
    }

    /// The rows of a batch, which has all columns, that stay.
    ///
    /// # Errors
    /// [`StorageError::Schema`] when the key does not fit.
    pub(crate) fn filter(&mut self, stored: &StoredBatch) -> Result<StoredBatch, StorageError> {
        let projected = StoredBatch { batch: stored.batch.project(&self.columns).map_err(unfit)?, ..stored.clone() };
        let (kept, tombstones) = self.kept(&projected)?;
        self.tombstones += tombstones;
        let entries = stored.entries.filter(&kept);
        let mask = BooleanArray::new(kept, None);
        let offsets = filter(&stored.row_offsets(), &mask).map_err(unfit)?;
        let offsets = offsets.as_primitive().clone();
        let first = offsets.values().first().map_or(stored.offset_start, |first| Offset::new(*first as u64));
        let batch = filter_record_batch(&stored.batch, &mask).map_err(unfit)?;
        Ok(StoredBatch { offset_start: first, offsets: Some(offsets), batch, entries })
    }

    /// Which rows of a projected batch stay, and how many of these are tombstones. A row with a NULL in its key is not
    /// one of many, and stays.
    fn kept(&self, stored: &StoredBatch) -> Result<(BooleanBuffer, u64), StorageError> {
        let hashes = self.hashes(stored)?;
        let flags = stored.batch.columns().get(self.keys).map(|column| column.as_boolean());
        let offsets = stored.row_offsets();
        let mut tombstones = 0;
        let kept = BooleanBuffer::collect_bool(hashes.len(), |row| {
            let offset = offsets.value(row) as u64;
            let is_last = hashes[row].and_then(|hash| self.last.get(&hash)).is_none_or(|last| *last <= offset);
            let is_tombstone = flags.is_some_and(|flags| flags.is_valid(row) && flags.value(row));
            let is_kept = is_last && !(is_tombstone && offset < self.tombstones_upto.value());
            tombstones += u64::from(is_kept && is_tombstone);
            is_kept
        });
        Ok((kept, tombstones))
    }

    /// The hash of each row's key; `None` when it has a NULL.
    fn hashes(&self, stored: &StoredBatch) -> Result<Vec<Option<u128>>, StorageError> {
        let mut keys: Vec<ArrayRef> = stored.batch.columns().iter().take(self.keys).cloned().collect();
        if self.is_by_offset {
            keys = vec![row_ids(stored)];
        }
        let rows = self.converter.convert_columns(&keys).map_err(unfit)?;
        let hash = |(row, key): (usize, arrow::row::Row<'_>)| {
            let is_whole = keys.iter().all(|column| column.is_valid(row));
            is_whole.then(|| u128::from(half(0, key.as_ref())) << 64 | u128::from(half(1, key.as_ref())))
        };
        Ok(rows.iter().enumerate().map(hash).collect())
    }
}

/// Whether the column at `index` is the id of rows of a table without a key.
fn is_row_id(schema: &SchemaRef, index: usize) -> bool {
    schema.metadata().get(ROW_IDS_METADATA).is_some_and(|at| *at == index.to_string())
}

/// The ids in the first column of `stored`: an event without one is its row's first.
fn row_ids(stored: &StoredBatch) -> ArrayRef {
    let (ids, offsets) = (stored.batch.column(0).as_primitive::<Int64Type>(), stored.row_offsets());
    Arc::new(ids.iter().zip(offsets.values()).map(|(id, offset)| Some(id.unwrap_or(*offset))).collect::<Int64Array>())
}

fn half(seed: u8, key: &[u8]) -> u64 {
    let mut hasher = DefaultHasher::new();
    hasher.write_u8(seed);
    hasher.write(key);
    hasher.finish()
}
