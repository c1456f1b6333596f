//! The current rows of one partition of a table: its changelog folded by key.
//!
//! Owns the rows, the hash index from key to row, and their bytes. Leaves out reading the changelog (`table`). In memory
//! only: after a crash the changelog is folded again.
//!
//! Rows are kept in chunks as they came; a row that is replaced is marked dead in its chunk. Sixteen chunks of one size
//! in a row become one, so rows are copied a few times and a table that is written row by row has few chunks.

use crate::engine::undo::{Change, Step, Undo};
use crate::storage::batch::{StoredBatch, batch_bytes};
use arrow::array::{ArrayRef, AsArray, BooleanArray, RecordBatch, UInt32Array};
use arrow::buffer::BooleanBuffer;
use arrow::compute::{concat_batches, filter_record_batch, interleave_record_batch, take_record_batch};
use arrow::datatypes::{DataType, Field, Int64Type, Schema, SchemaRef};
use arrow::row::{Row, RowConverter, Rows, SortField};
use millstream_catalog::Relation;
use millstream_catalog::model::limit::{BATCH_ROWS_MAX, TABLE_UNDO_BYTES_MAX};
use millstream_catalog::model::{Offset, SqlState};
use millstream_catalog::schema::{ROWOFFSET, ROWTOMBSTONE};
use millstream_sql::SqlError;
use millstream_sql::types::canonical;
use std::collections::{HashMap, HashSet};
use std::sync::Arc;

/// Dead rows that may stay before a partition's rows are rewritten, beyond as many as are alive.
const DEAD_ROWS_SLACK: usize = 65_536;
/// Chunks of one size that become one.
const FAN: usize = 16;
/// Fewer rows are copied out of the batch they came in, so that a few rows do not keep a large batch in memory.
const COPY_ROWS_MAX: usize = 4_096;
/// Bytes of an index entry beside its key.
const ENTRY_BYTES: u64 = 48;

/// How the rows of a table are keyed.
#[derive(Debug)]
pub(super) struct Keyed {
    /// The stored columns, then `rowoffset` as `Int64`.
    pub(super) schema: SchemaRef,
    key: Vec<usize>,
    tombstone: Option<usize>,
    converter: RowConverter,
}

/// Where a key's current row is.
#[derive(Debug, Clone, Copy)]
struct Location {
    chunk: u32,
    row: u32,
}

/// The rows of a partition.
#[derive(Debug, Default)]
pub(super) struct Fold {
    /// The log start as of the last fold.
    pub(super) start: Offset,
    /// The next offset to fold in.
    pub(super) position: Offset,
    chunks: Vec<Chunk>,
    index: HashMap<Box<[u8]>, Location>,
    rows_live: usize,
    rows_dead: usize,
    bytes: u64,
    undo: Undo,
    /// Former rows are kept that somebody may read who is as far as this.
    reader: Option<Offset>,
}

#[derive(Debug)]
struct Chunk {
    batch: RecordBatch,
    live: Vec<bool>,
    rows_live: usize,
    bytes: u64,
}

fn internal(error: impl std::fmt::Display) -> SqlError {
    SqlError::new(SqlState::InternalError, format!("table rows cannot be formed: {error}"))
}

impl Keyed {
    pub(super) fn new(relation: &Relation) -> Result<Self, SqlError> {
        let stored = relation.stored_schema();
        let key = if relation.has_tombstones() { relation.schema.key() } else { Vec::new() };
        let fields = key.iter().map(|i| SortField::new(stored.field(*i).data_type().clone())).collect();
        let mut all: Vec<Arc<Field>> = stored.fields().iter().map(Arc::clone).collect();
        all.push(Arc::new(Field::new(ROWOFFSET, DataType::Int64, false)));
        Ok(Self {
            tombstone: stored.index_of(ROWTOMBSTONE).ok().filter(|_| relation.has_tombstones()),
            schema: Arc::new(Schema::new(all)),
            converter: RowConverter::new(fields).map_err(internal)?,
            key,
        })
    }

    /// The keys of `batch`; `None` for a table without a key.
    fn keys(&self, batch: &RecordBatch) -> Result<Option<Rows>, SqlError> {
        if self.key.is_empty() {
            return Ok(None);
        }
        let columns: Vec<ArrayRef> = self.key.iter().map(|i| Arc::clone(batch.column(*i))).collect();
        self.converter.convert_columns(&columns).map(Some).map_err(internal)
    }

    /// These keys, one array per key column, as the index has them; each once.
    pub(super) fn encoded(&self, columns: &[ArrayRef]) -> Result<HashSet<Box<[u8]>>, SqlError> {
        let columns: Vec<ArrayRef> = columns.iter().map(|column| canonical(Arc::clone(column))).collect();
        let rows = self.converter.convert_columns(&columns).map_err(internal)?;
        Ok(rows.iter().map(|key| key.as_ref().into()).collect())
    }
}

impl Fold {
    /// No rows, to be folded from `start` on.
    pub(super) fn starting(start: Offset) -> Self {
        Self { start, position: start, ..Self::default() }
    }

    /// Bytes of rows, former rows and index.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes + self.undo.bytes()
    }

    /// The state at any offset from this one to `position` can be read.
    pub(super) fn first(&self) -> Offset {
        self.undo.start()
    }

    /// From now on keeps what `reader` may want, the one who is least far, and forgets the rest. What there was before
    /// `first` is not known.
    pub(super) fn keep_for(&mut self, reader: Option<Offset>, first: Offset) {
        self.reader = reader;
        self.undo.forget(reader.unwrap_or(self.position).max(first));
    }

    /// The number of rows at `end`.
    pub(super) fn rows(&self, end: Offset) -> usize {
        let former = self.undo.at(end);
        let later = former.keys().filter(|key| self.index.contains_key(**key)).count();
        self.rows_live - later + former.values().flatten().count()
    }

    /// Takes the next batch of the changelog in, and moves `position` behind it.
    pub(super) fn take(&mut self, keyed: &Keyed, stored: &StoredBatch) -> Result<(), SqlError> {
        let rows = stored.batch.num_rows();
        let mut columns: Vec<ArrayRef> = stored.batch.columns().to_vec();
        columns.push(Arc::new(stored.row_offsets()));
        let mut batch = RecordBatch::try_new(Arc::clone(&keyed.schema), columns).map_err(internal)?;
        if rows <= COPY_ROWS_MAX {
            let all = UInt32Array::from_iter_values(0..rows as u32);
            batch = take_record_batch(&batch, &all).map_err(internal)?;
        }
        let keys = keyed.keys(&batch)?;
        let tombstones = keyed.tombstone.map(|column| batch.column(column).as_boolean().clone());
        let step = match (&keys, self.reader) {
            (Some(keys), Some(_)) => Some(self.step(&batch, keys, tombstones.as_ref())?),
            _ => None,
        };
        // From here on nothing fails: a batch is taken in as a whole or not at all.
        let chunk = self.push(batch);
        for (row, key) in keys.iter().flat_map(|keys| keys.iter()).enumerate() {
            let here = Location { chunk, row: row as u32 };
            let old = if tombstones.as_ref().is_some_and(|flags| flags.value(row)) {
                self.bury(here);
                let old = self.index.remove(key.as_ref());
                self.bytes -= old.map_or(0, |_| entry_bytes(key.as_ref()));
                old
            } else {
                match self.index.get_mut(key.as_ref()) {
                    Some(location) => Some(std::mem::replace(location, here)),
                    None => {
                        self.bytes += entry_bytes(key.as_ref());
                        self.index.insert(key.as_ref().into(), here)
                    }
                }
            };
            if let Some(old) = old {
                self.bury(old);
            }
        }
        self.position = stored.offset_end();
        match step {
            Some(step) => self.undo.push(step),
            None => self.reader = None,
        }
        if self.reader.is_none() || self.undo.bytes() > TABLE_UNDO_BYTES_MAX.value() {
            self.keep_for(None, self.position);
        }
        Ok(())
    }

    /// What rows are before the changes of `batch`, which is not taken in yet.
    fn step(&self, batch: &RecordBatch, keys: &Rows, tombstones: Option<&BooleanArray>) -> Result<Step, SqlError> {
        let offsets = batch.column(batch.num_columns() - 1).as_primitive::<Int64Type>();
        let chunk = self.chunks.len();
        let mut within: HashMap<Row<'_>, Option<(usize, usize)>> = HashMap::new();
        let (mut changes, mut former) = (Vec::with_capacity(batch.num_rows()), Vec::new());
        for (row, key) in keys.iter().enumerate() {
            let is_deleted = tombstones.is_some_and(|flags| flags.value(row));
            let before = match within.insert(key, (!is_deleted).then_some((chunk, row))) {
                Some(before) => before,
                None => self.index.get(key.as_ref()).map(|at| (at.chunk as usize, at.row as usize)),
            };
            let before = before.map(|before| {
                former.push(before);
                former.len() as u32 - 1
            });
            changes.push(Change { offset: Offset::new(offsets.value(row) as u64), key: key.as_ref().into(), before });
        }
        let chunks: Vec<&RecordBatch> = self.chunks.iter().map(|chunk| &chunk.batch).chain([batch]).collect();
        Ok(Step::new(changes, interleave_record_batch(&chunks, &former).map_err(internal)?))
    }

    /// Copies rows together where chunks are too many or too much of them is dead.
    pub(super) fn tidy(&mut self, keyed: &Keyed) -> Result<(), SqlError> {
        if self.rows_dead > self.rows_live + DEAD_ROWS_SLACK {
            return self.merge_from(keyed, 0);
        }
        while let Some(level) = self.chunks.last().map(Chunk::level) {
            let equal = self.chunks.iter().rev().take_while(|chunk| chunk.level() <= level).count();
            if equal < FAN || level >= Chunk::LEVEL_FULL {
                return Ok(());
            }
            self.merge_from(keyed, self.chunks.len() - equal)?;
        }
        Ok(())
    }

    /// Makes the live rows of the chunks from `at` on as few chunks as may be. Fails with everything as it was.
    fn merge_from(&mut self, keyed: &Keyed, at: usize) -> Result<(), SqlError> {
        let merged = self.chunks.get(at..).unwrap_or_default();
        let live: Vec<RecordBatch> = merged.iter().map(|chunk| chunk.rows(&[])).collect::<Result<_, _>>()?;
        let batch = concat_batches(&keyed.schema, &live).map_err(internal)?;
        let keys = keyed.keys(&batch)?;
        let freed: u64 = merged.iter().map(|chunk| chunk.bytes).sum();
        let dead: usize = merged.iter().map(|chunk| chunk.live.len() - chunk.rows_live).sum();
        self.chunks.truncate(at);
        self.bytes -= freed;
        self.rows_dead -= dead;
        self.rows_live -= batch.num_rows();
        for start in (0..batch.num_rows()).step_by(BATCH_ROWS_MAX) {
            let part = batch.slice(start, BATCH_ROWS_MAX.min(batch.num_rows() - start));
            let rows = part.num_rows();
            let chunk = self.push(part);
            for (row, key) in (start..start + rows).zip(0..).filter_map(|(at, row)| Some((row, keys.as_ref()?.row(at))))
            {
                if let Some(location) = self.index.get_mut(key.as_ref()) {
                    *location = Location { chunk, row };
                }
            }
        }
        Ok(())
    }

    /// The rows with these keys at `end`.
    pub(super) fn find(&self, keys: &HashSet<Box<[u8]>>, end: Offset) -> Result<Vec<RecordBatch>, SqlError> {
        let former = self.undo.at(end);
        let (mut found, mut old) = (Vec::new(), Vec::new());
        for key in keys {
            match (former.get(key.as_ref()), self.index.get(key)) {
                (Some(before), _) => old.extend(*before),
                (None, Some(at)) => {
                    let chunk = self.chunks.get(at.chunk as usize);
                    found.extend(chunk.map(|chunk| chunk.batch.slice(at.row as usize, 1)));
                }
                (None, None) => {}
            }
        }
        found.extend(self.undo.rows(&old).map_err(internal)?);
        Ok(found)
    }

    /// All rows at `end`.
    pub(super) fn batches(&self, end: Offset) -> Result<Vec<RecordBatch>, SqlError> {
        let former = self.undo.at(end);
        let mut later: HashMap<u32, Vec<u32>> = HashMap::new();
        for at in former.keys().filter_map(|key| self.index.get(*key)) {
            later.entry(at.chunk).or_default().push(at.row);
        }
        let chunks = (0..).zip(&self.chunks).filter(|(_, chunk)| chunk.rows_live > 0);
        let rows = chunks.map(|(at, chunk)| chunk.rows(later.get(&at).map(Vec::as_slice).unwrap_or_default()));
        let mut batches = rows.collect::<Result<Vec<_>, _>>()?;
        let old: Vec<_> = former.into_values().flatten().collect();
        batches.extend(self.undo.rows(&old).map_err(internal)?);
        Ok(batches)
    }

    fn push(&mut self, batch: RecordBatch) -> u32 {
        let rows = batch.num_rows();
        let bytes = batch_bytes(&batch).value() + rows as u64;
        self.rows_live += rows;
        self.bytes += bytes;
        self.chunks.push(Chunk { rows_live: rows, batch, live: vec![true; rows], bytes });
        self.chunks.len() as u32 - 1
    }

    /// Marks a row dead; frees its chunk with the last one.
    fn bury(&mut self, location: Location) {
        let Some(chunk) = self.chunks.get_mut(location.chunk as usize) else { return };
        chunk.live[location.row as usize] = false;
        chunk.rows_live -= 1;
        self.rows_live -= 1;
        self.rows_dead += 1;
        if chunk.rows_live == 0 {
            self.rows_dead -= chunk.live.len();
            self.bytes -= std::mem::take(&mut chunk.bytes);
            chunk.batch = RecordBatch::new_empty(chunk.batch.schema());
            chunk.live = Vec::new();
        }
    }
}

fn entry_bytes(key: &[u8]) -> u64 {
    key.len() as u64 + ENTRY_BYTES
}

impl Chunk {
    /// The level of 65,536 rows, which are left alone.
    const LEVEL_FULL: u32 = 4;

    fn level(&self) -> u32 {
        self.rows_live.max(1).ilog(FAN).min(Self::LEVEL_FULL)
    }

    /// The live rows without those at `later`.
    fn rows(&self, later: &[u32]) -> Result<RecordBatch, SqlError> {
        if self.rows_live == self.batch.num_rows() && later.is_empty() {
            return Ok(self.batch.clone());
        }
        let mut live = self.live.clone();
        later.iter().for_each(|row| live[*row as usize] = false);
        let mask = BooleanArray::new(BooleanBuffer::from(live.as_slice()), None);
        filter_record_batch(&self.batch, &mask).map_err(internal)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::EntryRuns;
    use arrow::array::{Int64Array, StringArray};
    use millstream_catalog::RelationKind;
    use millstream_catalog::model::{EntryIndex, Name, RowCount, ShardId, Timestamp, TopicId};
    use millstream_catalog::relation::TopicOptions;
    use millstream_catalog::{Column, SqlType};
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    fn keyed() -> Keyed {
        let column = |name: &str, sql_type: SqlType, is_key: bool| Column {
            name: Name::new(name).unwrap(),
            sql_type,
            is_nullable: !is_key,
            is_key,
            default: None,
            is_hidden: false,
            is_headers: false,
        };
        let columns = vec![column("id", SqlType::BigInt, true), column("v", SqlType::Text, false)];
        Keyed::new(&Relation {
            id: TopicId::new(1),
            name: Name::new("t").unwrap(),
            kind: RelationKind::Table,
            schema: millstream_catalog::Schema { columns },
            timestamp: None,
            watermark_delay: None,
            options: TopicOptions::default(),
            shard: ShardId::new(1),
            query: None,
            created_at: Timestamp::from_micros(0),
            sql: String::new(),
            fills: Default::default(),
            row_ids: None,
            is_materialized: false,
        })
        .unwrap()
    }

    /// Changes of keys from an offset on: a value, or `None` for a tombstone.
    fn changes(keyed: &Keyed, start: u64, rows: &[(i64, Option<String>)]) -> StoredBatch {
        let fields: Vec<_> = keyed.schema.fields().iter().take(4).cloned().collect();
        let times = arrow::array::TimestampMicrosecondArray::from(vec![0; rows.len()]).with_timezone("UTC");
        let columns: Vec<ArrayRef> = vec![
            Arc::new(Int64Array::from_iter_values(rows.iter().map(|row| row.0))),
            Arc::new(rows.iter().map(|row| row.1.clone()).collect::<StringArray>()),
            Arc::new(times),
            Arc::new(BooleanArray::from(rows.iter().map(|row| row.1.is_none()).collect::<Vec<_>>())),
        ];
        let batch = RecordBatch::try_new(Arc::new(Schema::new(fields)), columns).unwrap();
        let entries = EntryRuns::of(EntryIndex::new(1), RowCount::of(rows.len()));
        StoredBatch { offset_start: Offset::new(start), offsets: None, batch, entries }
    }

    fn rows(batches: &[RecordBatch]) -> BTreeMap<i64, (String, i64)> {
        let mut all = BTreeMap::new();
        for batch in batches {
            let (ids, values) = (batch.column(0).as_primitive::<Int64Type>(), batch.column(1).as_string::<i32>());
            let offsets = batch.column(4).as_primitive::<Int64Type>();
            for row in 0..batch.num_rows() {
                let old = all.insert(ids.value(row), (values.value(row).to_owned(), offsets.value(row)));
                assert!(old.is_none());
            }
        }
        all
    }

    #[test]
    fn rows_written_one_by_one_stay_in_few_chunks() {
        let keyed = keyed();
        let mut fold = Fold::starting(Offset::ZERO);
        for id in 0..5_000 {
            fold.take(&keyed, &changes(&keyed, id as u64, &[(id, Some("x".to_owned()))])).unwrap();
            fold.tidy(&keyed).unwrap();
            assert!(fold.chunks.len() < 64, "{}", fold.chunks.len());
        }
        assert_eq!(rows(&fold.batches(fold.position).unwrap()).len(), 5_000);
        for turn in 0..5_000u64 {
            fold.take(&keyed, &changes(&keyed, 5_000 + turn, &[(7, Some(turn.to_string()))])).unwrap();
            fold.tidy(&keyed).unwrap();
        }
        assert!(fold.chunks.len() < 64, "{}", fold.chunks.len());
        assert_eq!(rows(&fold.batches(fold.position).unwrap())[&7], ("4999".to_owned(), 9_999));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn a_fold_is_the_map_of_its_changes(
            batches in prop::collection::vec(prop::collection::vec((0i64..40, prop::option::of("[a-c]{0,3}")), 1..30), 1..60)
        ) {
            let keyed = keyed();
            let mut fold = Fold::starting(Offset::ZERO);
            let mut model: BTreeMap<i64, (String, i64)> = BTreeMap::new();
            let mut offset = 0i64;
            // The same with a reader at each offset from that of the third batch on.
            let mut watched = Fold::starting(Offset::ZERO);
            let mut states = Vec::new();
            for (at, batch) in batches.iter().enumerate() {
                let start = offset as u64;
                if at >= 2 {
                    watched.keep_for(Some(states.first().map_or(Offset::new(start), |(at, _)| *at)), Offset::ZERO);
                }
                for (id, value) in batch {
                    if at >= 2 && offset % 17 == 0 {
                        states.push((Offset::new(offset as u64), model.clone()));
                    }
                    match value {
                        Some(value) => drop(model.insert(*id, (value.clone(), offset))),
                        None => drop(model.remove(id)),
                    }
                    offset += 1;
                }
                watched.take(&keyed, &changes(&keyed, start, batch)).unwrap();
                watched.tidy(&keyed).unwrap();
                fold.take(&keyed, &changes(&keyed, start, batch)).unwrap();
                fold.tidy(&keyed).unwrap();
            }
            prop_assert_eq!(&rows(&fold.batches(fold.position).unwrap()), &model);
            prop_assert_eq!(fold.rows(fold.position), model.len());
            for id in 0..40i64 {
                let key: ArrayRef = Arc::new(Int64Array::from(vec![id, id]));
                let found = rows(&fold.find(&keyed.encoded(&[key]).unwrap(), fold.position).unwrap());
                prop_assert_eq!(found.get(&id), model.get(&id));
            }
            for (at, state) in states {
                prop_assert_eq!(&rows(&watched.batches(at).unwrap()), &state);
                prop_assert_eq!(watched.rows(at), state.len());
                for id in [0i64, 7, 23, 39] {
                    let key: ArrayRef = Arc::new(Int64Array::from(vec![id]));
                    let found = rows(&watched.find(&keyed.encoded(&[key]).unwrap(), at).unwrap());
                    prop_assert_eq!(found.get(&id), state.get(&id));
                }
            }
            watched.keep_for(None, Offset::ZERO);
            prop_assert_eq!((watched.first(), watched.bytes()), (watched.position, watched.bytes));
            fold.merge_from(&keyed, 0).unwrap();
            prop_assert_eq!(&rows(&fold.batches(fold.position).unwrap()), &model);
            let chunks: u64 = fold.chunks.iter().map(|chunk| chunk.bytes).sum();
            let index: u64 = fold.index.keys().map(|key| entry_bytes(key)).sum();
            prop_assert_eq!(fold.bytes(), chunks + index);
            prop_assert_eq!(fold.rows_dead, 0);
        }
    }
}
