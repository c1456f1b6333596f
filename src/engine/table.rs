//! The current rows of tables: a fold of each table's changelog, kept in memory and caught up on demand.
//!
//! A table equals its changelog by construction: this only reads the log, forward, once. Leaves out
//! durability (the log has it; after a crash the first read folds it again) and who may read. Called by
//! pull queries and by push queries that begin with the rows as they are.

use crate::storage::{Partitions, ScanRequest, StoredBatch};
use arrow::array::{ArrayRef, AsArray, BooleanArray, RecordBatch};
use arrow::buffer::BooleanBuffer;
use arrow::compute::{concat_batches, filter_record_batch};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use arrow::row::{RowConverter, SortField};
use millstream_catalog::model::limit::BATCH_ROWS_MAX;
use millstream_catalog::model::{EntryIndex, Offset, PartitionId, SqlState, TopicId};
use millstream_catalog::schema::{ROWOFFSET, ROWTOMBSTONE};
use millstream_catalog::{Relation, Snapshot};
use millstream_sql::SqlError;
use parking_lot::Mutex;
use std::collections::HashMap;
use std::sync::Arc;

/// Dead rows that may stay before a partition's rows are rewritten, beyond as many as are alive.
const DEAD_ROWS_SLACK: usize = 65_536;

/// The current rows of every table that was read since the start.
#[derive(Debug, Default)]
pub(crate) struct Tables {
    tables: Mutex<HashMap<TopicId, Arc<Mutex<Table>>>>,
}

impl Tables {
    /// The rows of `relation` as of `cut` or a little later: batches of the stored columns, then `rowoffset`
    /// as `Int64`, one list per partition, tombstoned rows left out.
    ///
    /// Also gives the positions up to which the changelog is folded in.
    ///
    /// # Errors
    /// When the log cannot be read.
    pub(crate) fn rows(
        &self,
        relation: &Arc<Relation>,
        partitions: &Partitions,
        cut: EntryIndex,
    ) -> Result<TableRows, SqlError> {
        let table = {
            let mut tables = self.tables.lock();
            match tables.get(&relation.id) {
                Some(table) => Arc::clone(table),
                None => {
                    let table = Arc::new(Mutex::new(Table::new(relation)?));
                    tables.insert(relation.id, Arc::clone(&table));
                    table
                }
            }
        };
        let mut table = table.lock();
        if !table.is_of(relation) {
            // Columns or partitions were added since, or the statement was planned before.
            *table = Table::new(relation)?;
        }
        for partition in relation.partitions() {
            table.catch_up(relation, partition, partitions, cut)?;
        }
        table.snapshot()
    }

    /// Forgets tables that are no longer in the catalog.
    pub(crate) fn retain(&self, catalog: &Snapshot) {
        self.tables.lock().retain(|id, _| catalog.relation_by_id(*id).is_some());
    }
}

/// A table's rows at a moment.
#[derive(Debug)]
pub(crate) struct TableRows {
    /// Batches per partition; see [`Tables::rows`].
    pub partitions: Vec<(PartitionId, Vec<RecordBatch>)>,
    /// The next offset of each partition's changelog.
    pub positions: Vec<(PartitionId, Offset)>,
}

#[derive(Debug)]
struct Table {
    /// The relation's stored schema.
    known: SchemaRef,
    schema: SchemaRef,
    key: Vec<usize>,
    tombstone: Option<usize>,
    converter: RowConverter,
    partitions: Vec<TablePartition>,
}

/// Where a key's current row is.
#[derive(Debug, Clone, Copy)]
struct Location {
    chunk: u32,
    row: u32,
}

#[derive(Debug, Default)]
struct TablePartition {
    /// The log start as of the last fold.
    start: Offset,
    position: Offset,
    chunks: Vec<Chunk>,
    index: HashMap<Box<[u8]>, Location>,
    rows_live: usize,
    rows_dead: usize,
}

#[derive(Debug)]
struct Chunk {
    batch: RecordBatch,
    live: Vec<bool>,
    rows_live: usize,
}

fn internal(error: impl std::fmt::Display) -> SqlError {
    SqlError::new(SqlState::InternalError, format!("table rows cannot be formed: {error}"))
}

impl Table {
    fn new(relation: &Relation) -> Result<Self, SqlError> {
        let stored = relation.stored_schema();
        let key = if relation.has_tombstones() { relation.schema.key() } else { Vec::new() };
        let fields = key.iter().map(|i| SortField::new(stored.field(*i).data_type().clone())).collect();
        let mut all: Vec<Arc<Field>> = stored.fields().iter().map(Arc::clone).collect();
        all.push(Arc::new(Field::new(ROWOFFSET, DataType::Int64, false)));
        Ok(Self {
            tombstone: stored.index_of(ROWTOMBSTONE).ok().filter(|_| relation.has_tombstones()),
            known: relation.topic_schema(),
            schema: Arc::new(Schema::new(all)),
            converter: RowConverter::new(fields).map_err(internal)?,
            key,
            partitions: relation.partitions().map(|_| TablePartition::default()).collect(),
        })
    }

    fn is_of(&self, relation: &Relation) -> bool {
        let columns = relation.schema.columns.len() + 1 + usize::from(relation.has_tombstones());
        self.known.fields().len() == columns && self.partitions.len() == relation.options.partitions as usize
    }

    fn catch_up(
        &mut self,
        relation: &Relation,
        id: PartitionId,
        partitions: &Partitions,
        cut: EntryIndex,
    ) -> Result<(), SqlError> {
        let Some(source) = partitions.get(relation.id, id) else { return Ok(()) };
        let view = source.view();
        let Some(partition) = self.partitions.get_mut(id.value() as usize) else { return Ok(()) };
        // Rows whose events were removed are gone; and of those deleted, the tombstone may have been removed.
        let has_missed = partition.position < view.upkeep().tombstones_upto && partition.position > partition.start;
        if partition.start < view.offset_start() || has_missed {
            let start = view.offset_start();
            *partition = TablePartition { start, position: start, ..TablePartition::default() };
        }
        let position = partition.position;
        let end = view.state_end_at(cut);
        if end <= position {
            return Ok(());
        }
        let request =
            ScanRequest { offsets: position..end, schema: Some(Arc::clone(&self.known)), ..ScanRequest::all() };
        for stored in view.scan(request) {
            let stored = stored.map_err(|error| crate::engine::read_error(&relation.name, error))?;
            self.fold(id, &stored)?;
            // Kept as it goes: a damaged batch must not make the rows before it come twice.
            self.partitions[id.value() as usize].position = stored.offset_end();
        }
        let partition = &mut self.partitions[id.value() as usize];
        partition.position = end;
        if partition.rows_dead > partition.rows_live + DEAD_ROWS_SLACK {
            self.rewrite(id)?;
        }
        Ok(())
    }

    /// Takes one batch of the changelog in.
    fn fold(&mut self, id: PartitionId, stored: &StoredBatch) -> Result<(), SqlError> {
        let rows = stored.batch.num_rows();
        let mut columns: Vec<ArrayRef> = stored.batch.columns().to_vec();
        columns.push(Arc::new(stored.row_offsets()));
        let batch = RecordBatch::try_new(Arc::clone(&self.schema), columns).map_err(internal)?;
        let keys = if self.key.is_empty() {
            None
        } else {
            let keys: Vec<ArrayRef> = self.key.iter().map(|i| Arc::clone(batch.column(*i))).collect();
            Some(self.converter.convert_columns(&keys).map_err(internal)?)
        };
        let tombstones = self.tombstone.map(|column| batch.column(column).as_boolean().clone());
        let partition = &mut self.partitions[id.value() as usize];
        let chunk = partition.chunks.len() as u32;
        partition.push(Chunk { rows_live: rows, batch, live: vec![true; rows] });
        for (row, key) in keys.iter().flat_map(|keys| keys.iter()).enumerate() {
            let here = Location { chunk, row: row as u32 };
            let old = if tombstones.as_ref().is_some_and(|flags| flags.value(row)) {
                partition.bury(here);
                partition.index.remove(key.as_ref())
            } else {
                match partition.index.get_mut(key.as_ref()) {
                    Some(location) => Some(std::mem::replace(location, here)),
                    None => partition.index.insert(key.as_ref().into(), here),
                }
            };
            if let Some(old) = old {
                partition.bury(old);
            }
        }
        Ok(())
    }

    /// Copies the live rows of a partition together and rebuilds its index.
    fn rewrite(&mut self, id: PartitionId) -> Result<(), SqlError> {
        let old = std::mem::take(&mut self.partitions[id.value() as usize]);
        let mut kept = TablePartition { start: old.start, position: old.position, ..TablePartition::default() };
        let live: Vec<RecordBatch> = old.chunks.iter().map(Chunk::rows).collect::<Result<_, _>>()?;
        let batch = concat_batches(&self.schema, &live).map_err(internal)?;
        for start in (0..batch.num_rows()).step_by(BATCH_ROWS_MAX) {
            let batch = batch.slice(start, BATCH_ROWS_MAX.min(batch.num_rows() - start));
            let rows = batch.num_rows();
            if !self.key.is_empty() {
                let keys: Vec<ArrayRef> = self.key.iter().map(|i| Arc::clone(batch.column(*i))).collect();
                let keys = self.converter.convert_columns(&keys).map_err(internal)?;
                let chunk = kept.chunks.len() as u32;
                for (row, key) in keys.iter().enumerate() {
                    kept.index.insert(key.as_ref().into(), Location { chunk, row: row as u32 });
                }
            }
            kept.push(Chunk { rows_live: rows, batch, live: vec![true; rows] });
        }
        self.partitions[id.value() as usize] = kept;
        Ok(())
    }

    fn snapshot(&self) -> Result<TableRows, SqlError> {
        let mut rows = TableRows { partitions: Vec::new(), positions: Vec::new() };
        for (id, partition) in self.partitions.iter().enumerate() {
            let id = PartitionId::new(id as u32);
            let batches: Vec<RecordBatch> =
                partition.chunks.iter().filter(|c| c.rows_live > 0).map(Chunk::rows).collect::<Result<_, _>>()?;
            rows.partitions.push((id, batches));
            rows.positions.push((id, partition.position));
        }
        Ok(rows)
    }
}

impl TablePartition {
    fn push(&mut self, chunk: Chunk) {
        self.rows_live += chunk.rows_live;
        self.chunks.push(chunk);
    }

    /// Marks a row dead; frees its chunk with the last one.
    fn bury(&mut self, location: Location) {
        let Some(chunk) = self.chunks.get_mut(location.chunk as usize) else { return };
        chunk.live[location.row as usize] = false;
        chunk.rows_live -= 1;
        self.rows_live -= 1;
        self.rows_dead += 1;
        if chunk.rows_live == 0 {
            chunk.batch = RecordBatch::new_empty(chunk.batch.schema());
            chunk.live = Vec::new();
        }
    }
}

impl Chunk {
    fn rows(&self) -> Result<RecordBatch, SqlError> {
        if self.rows_live == self.batch.num_rows() {
            return Ok(self.batch.clone());
        }
        let mask = BooleanArray::new(BooleanBuffer::from(self.live.as_slice()), None);
        filter_record_batch(&self.batch, &mask).map_err(internal)
    }
}
