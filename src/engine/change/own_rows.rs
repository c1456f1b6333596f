//! A transaction's last form of each row it wrote to one table.
//!
//! Taken in write by write: a transaction of many small changes costs what they cost, not each time all before it. Leaves
//! out the committed rows (`source`) and who keeps them (`transaction`). In memory; a crash forgets them with the writes.

use super::row_ids::{ids_of, partitions_of};
use super::source::internal;
use crate::engine::Result;
use crate::replication::PartitionWrite;
use crate::storage::batch::batch_bytes;
use crate::storage::fit::Wanted;
use arrow::array::{ArrayRef, AsArray, BooleanArray, Int32Array, Int64Array, RecordBatch};
use arrow::compute::{concat_batches, filter_record_batch};
use arrow::datatypes::{Int32Type, Int64Type};
use arrow::row::{RowConverter, SortField};
use millstream_catalog::Relation;
use millstream_catalog::model::{ByteSize, PartitionId};
use millstream_sql::plan::scan_schema;
use std::collections::HashMap;
use std::sync::Arc;

/// Rows of chunks that are put together, at most: more are worth a batch of their own.
const CHUNK_ROWS_MAX: usize = 1 << 16;
/// Bytes of a key beside itself.
const KEY_BYTES: u64 = 64;
/// The place of a row that is gone; those of the others are below it.
const GONE: i64 = 0;

/// The rows a transaction wrote to a table.
#[derive(Debug, Clone)]
pub(crate) struct OwnRows {
    relation: Arc<Relation>,
    /// Gives keys as bytes; `None` in a table without one.
    key: Option<Arc<RowConverter>>,
    /// How many of the transaction's writes are in it.
    writes: usize,
    /// Of every row it wrote, the place of the last form.
    last: HashMap<Box<[u8]>, i64>,
    chunks: Vec<Chunk>,
    /// The place of the next row: −1, −2, …
    next: i64,
    key_bytes: u64,
}

/// Rows as [`scan_schema`] has them, in descending order of their places, which are their offsets.
#[derive(Debug, Clone)]
struct Chunk {
    rows: RecordBatch,
    live: Vec<bool>,
    rows_live: usize,
    /// Put together from others; else the writes have the same bytes.
    is_copy: bool,
}

impl OwnRows {
    /// No rows of `relation` yet.
    ///
    /// # Errors
    /// When keys cannot be compared; none is known.
    pub(crate) fn new(relation: &Arc<Relation>) -> Result<Self> {
        let schema = scan_schema(relation);
        let field = |at: usize| SortField::new(schema.field(at).data_type().clone());
        let key = match relation.row_ids {
            Some(_) => None,
            None => {
                let fields = relation.schema.key().into_iter().map(field).collect();
                Some(Arc::new(RowConverter::new(fields).map_err(internal)?))
            }
        };
        let (relation, last) = (Arc::clone(relation), HashMap::new());
        Ok(Self { relation, key, writes: 0, last, chunks: Vec::new(), next: GONE - 1, key_bytes: 0 })
    }

    /// Whether these are rows of `relation` as it is defined now.
    pub(crate) fn is_of(&self, relation: &Arc<Relation>) -> bool {
        Arc::ptr_eq(&self.relation, relation) || *self.relation == **relation
    }

    /// How many of the transaction's writes are in it.
    pub(crate) fn writes(&self) -> usize {
        self.writes
    }

    /// About the bytes it takes besides the writes.
    pub(crate) fn bytes(&self) -> ByteSize {
        let copies = self.chunks.iter().filter(|chunk| chunk.is_copy).map(|chunk| batch_bytes(&chunk.rows));
        copies.fold(ByteSize::new(self.key_bytes), ByteSize::plus)
    }

    /// Takes in `writes` to the table, with which the transaction has `upto` writes.
    ///
    /// # Errors
    /// When the rows cannot be put together; none is known.
    pub(crate) fn extend(&mut self, writes: &[PartitionWrite], upto: usize) -> Result<()> {
        let wanted = Wanted::new(&self.relation.topic_schema(), None).map_err(internal)?;
        for write in writes.iter().filter(|write| write.batch.num_rows() > 0) {
            // Columns may have been added since.
            self.take(write.partition, &wanted.of(&write.batch).map_err(internal)?)?;
        }
        self.writes = upto;
        Ok(())
    }

    fn take(&mut self, partition: PartitionId, batch: &RecordBatch) -> Result<()> {
        let rows = batch.num_rows();
        let mut columns: Vec<ArrayRef> =
            batch.columns().iter().take(self.relation.schema.columns.len() + 1).cloned().collect();
        columns.push(Arc::new(Int32Array::from_value(partition.value() as i32, rows)));
        columns.push(Arc::new(Int64Array::from_iter_values((0..rows as i64).map(|row| self.next - row))));
        let chunk = RecordBatch::try_new(scan_schema(&self.relation), columns).map_err(internal)?;
        let mut keys: Vec<Box<[u8]>> = Vec::with_capacity(rows);
        self.each_key(&chunk, |key| keys.push(Box::from(key)))?;
        self.chunks.push(Chunk { rows: chunk, live: vec![true; rows], rows_live: rows, is_copy: false });
        let gone = self.relation.row_ids.map_or(batch.num_columns() - 1, |at| at + 1);
        for (key, is_gone) in keys.into_iter().zip(batch.column(gone).as_boolean()) {
            let (place, is_gone, bytes) = (self.next, is_gone == Some(true), key.len() as u64 + KEY_BYTES);
            self.next -= 1;
            match self.last.insert(key, if is_gone { GONE } else { place }) {
                Some(before) => self.bury(before),
                None => self.key_bytes += bytes,
            }
            if is_gone {
                self.bury(place);
            }
        }
        self.tidy()
    }

    /// Puts small chunks together: a row is copied as often as their sizes double.
    fn tidy(&mut self) -> Result<()> {
        while let [.., before, last] = self.chunks.as_slice() {
            let (rows, more) = (before.rows.num_rows(), last.rows.num_rows());
            if rows > 2 * more || rows + more > CHUNK_ROWS_MAX {
                break;
            }
            let both = concat_batches(&before.rows.schema(), &[before.live_rows()?, last.live_rows()?]);
            let rows = both.map_err(internal)?;
            self.chunks.truncate(self.chunks.len() - 2);
            let rows_live = rows.num_rows();
            if rows_live > 0 {
                self.chunks.push(Chunk { rows, live: vec![true; rows_live], rows_live, is_copy: true });
            }
        }
        Ok(())
    }

    /// Marks the row at `place` as none any more.
    fn bury(&mut self, place: i64) {
        let Some((chunk, row)) = self.find(place) else { return };
        let Some(chunk) = self.chunks.get_mut(chunk) else { return };
        if std::mem::replace(&mut chunk.live[row], false) {
            chunk.rows_live -= 1;
        }
    }

    /// The chunk and the row at a place; none for one that is gone.
    fn find(&self, place: i64) -> Option<(usize, usize)> {
        let at = self.chunks.partition_point(|chunk| chunk.places().last().is_some_and(|last| *last > place));
        let row = self.chunks.get(at)?.places().binary_search_by(|other| place.cmp(other)).ok()?;
        Some((at, row))
    }

    /// Gives `take` the key of each row of `rows`, as [`scan_schema`] has them.
    fn each_key(&self, rows: &RecordBatch, mut take: impl FnMut(&[u8])) -> Result<()> {
        match (&self.key, self.relation.row_ids) {
            (Some(key), _) => {
                let columns: Vec<ArrayRef> =
                    self.relation.schema.key().into_iter().map(|at| Arc::clone(rows.column(at))).collect();
                key.convert_columns(&columns).map_err(internal)?.iter().for_each(|key| take(key.as_ref()));
                Ok(())
            }
            (None, Some(at)) => {
                let end = rows.num_columns();
                let partitions = rows.column(end - 2).as_primitive::<Int32Type>().values();
                let mut key = [0; 12];
                for (partition, id) in partitions.iter().zip(ids_of(rows, at, end - 1).values()) {
                    key[..4].copy_from_slice(&partition.to_le_bytes());
                    key[4..].copy_from_slice(&id.to_le_bytes());
                    take(&key);
                }
                Ok(())
            }
            (None, None) => Err(internal("rows have lost their ids")),
        }
    }

    /// Of committed `rows`, as [`scan_schema`] has them, those that the transaction has not written anew.
    ///
    /// # Errors
    /// When they cannot be told apart; none is known.
    pub(super) fn others(&self, rows: &RecordBatch) -> Result<RecordBatch> {
        let mut is_other = Vec::with_capacity(rows.num_rows());
        self.each_key(rows, |key| is_other.push(!self.last.contains_key(key)))?;
        filter_record_batch(rows, &is_other.into()).map_err(internal)
    }

    /// The rows that are there, in these partitions; `lookup` may leave out those with other keys.
    ///
    /// # Errors
    /// When they cannot be put together; none is known.
    pub(super) fn rows(
        &self,
        partitions: Option<&[PartitionId]>,
        lookup: Option<&Vec<ArrayRef>>,
    ) -> Result<Vec<RecordBatch>> {
        let found = lookup.and_then(|keys| self.with_keys(keys));
        let rows = match found {
            Some(rows) => rows,
            None => {
                let chunks = self.chunks.iter().filter(|chunk| chunk.rows_live > 0);
                chunks.map(Chunk::live_rows).collect::<Result<Vec<_>>>()?
            }
        };
        let Some(partitions) = partitions else { return Ok(rows) };
        let wanted = |rows: RecordBatch| {
            let places = partitions_of(rows.column(rows.num_columns() - 2));
            let is_wanted: BooleanArray = places.iter().map(|place| Some(partitions.contains(place))).collect();
            filter_record_batch(&rows, &is_wanted).map_err(internal)
        };
        rows.into_iter().map(wanted).collect()
    }

    /// The rows with these keys, one array per key column; `None` when the arrays are of other types.
    fn with_keys(&self, keys: &[ArrayRef]) -> Option<Vec<RecordBatch>> {
        let keys = self.key.as_ref()?.convert_columns(keys).ok()?;
        let found = keys.iter().filter_map(|key| self.find(*self.last.get(key.as_ref())?));
        let mut found: Vec<(usize, usize)> = found.collect();
        found.sort_unstable();
        found.dedup();
        Some(found.into_iter().map(|(chunk, row)| self.chunks[chunk].rows.slice(row, 1)).collect())
    }
}

impl Chunk {
    fn places(&self) -> &[i64] {
        self.rows.column(self.rows.num_columns() - 1).as_primitive::<Int64Type>().values()
    }

    fn live_rows(&self) -> Result<RecordBatch> {
        if self.rows_live == self.rows.num_rows() {
            return Ok(self.rows.clone());
        }
        filter_record_batch(&self.rows, &BooleanArray::from(self.live.clone())).map_err(internal)
    }
}
