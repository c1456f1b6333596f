//! The current rows of tables: a fold of each table's changelog, kept in memory and caught up on demand.
//!
//! A table equals its changelog by construction: this only reads the log, forward, once. Leaves out how rows are kept
//! (`fold`), durability (the log has it; after a crash the first read folds it again) and who may read. Called by
//! pull queries and by push queries that begin with the rows as they are.

use crate::engine::fold::{Fold, Keyed};
use crate::engine::held::{Held, HoldingRoom};
use crate::storage::{Partitions, ScanRequest};
use arrow::array::{ArrayRef, RecordBatch};
use arrow::datatypes::SchemaRef;
use millstream_catalog::model::{ByteSize, EntryIndex, Offset, PartitionId, SqlState, TopicId};
use millstream_catalog::{Relation, Snapshot};
use millstream_sql::SqlError;
use parking_lot::Mutex;
use std::collections::HashMap;
use std::sync::Arc;

/// The current rows of every table that was read since the start.
#[derive(Debug)]
pub(crate) struct Tables {
    tables: Mutex<HashMap<TopicId, Arc<Mutex<Table>>>>,
    /// For the rows of all of them.
    room: HoldingRoom,
}

impl Tables {
    /// No table read yet.
    pub(crate) fn new(room: HoldingRoom) -> Self {
        Self { tables: Mutex::default(), room }
    }

    /// The rows of `relation` as of `cut` or a little later: batches of the stored columns, then `rowoffset`
    /// as `Int64`, one list per partition, tombstoned rows left out.
    ///
    /// Also gives the positions up to which the changelog is folded in.
    ///
    /// # Errors
    /// When the log cannot be read; 53200 when the rows of all tables take too much memory.
    pub(crate) fn rows(
        &self,
        relation: &Arc<Relation>,
        partitions: &Partitions,
        cut: EntryIndex,
    ) -> Result<TableRows, SqlError> {
        self.with(relation, partitions, cut, |table| {
            let mut rows = TableRows { partitions: Vec::new(), positions: Vec::new() };
            for (id, fold) in table.folds() {
                rows.partitions.push((id, fold.batches()?));
                rows.positions.push((id, fold.position));
            }
            Ok(rows)
        })
    }

    /// The rows with these keys, one array per key column, as [`Tables::rows`] gives them: found by the index.
    ///
    /// # Errors
    /// As [`Tables::rows`].
    pub(crate) fn lookup(
        &self,
        relation: &Arc<Relation>,
        partitions: &Partitions,
        cut: EntryIndex,
        keys: &[ArrayRef],
    ) -> Result<Vec<(PartitionId, Vec<RecordBatch>)>, SqlError> {
        self.with(relation, partitions, cut, |table| {
            let keys = table.keyed.encoded(keys)?;
            Ok(table.folds().map(|(id, fold)| (id, fold.find(&keys))).filter(|(_, rows)| !rows.is_empty()).collect())
        })
    }

    /// The number of rows of each partition.
    ///
    /// # Errors
    /// As [`Tables::rows`].
    pub(crate) fn counts(
        &self,
        relation: &Arc<Relation>,
        partitions: &Partitions,
        cut: EntryIndex,
    ) -> Result<Vec<(PartitionId, usize)>, SqlError> {
        self.with(relation, partitions, cut, |table| Ok(table.folds().map(|(id, fold)| (id, fold.rows())).collect()))
    }

    /// Forgets tables that are no longer in the catalog.
    pub(crate) fn retain(&self, catalog: &Snapshot) {
        self.tables.lock().retain(|id, _| catalog.relation_by_id(*id).is_some());
    }

    /// What `read` makes of the table, caught up to `cut`.
    fn with<T>(
        &self,
        relation: &Arc<Relation>,
        partitions: &Partitions,
        cut: EntryIndex,
        read: impl FnOnce(&Table) -> Result<T, SqlError>,
    ) -> Result<T, SqlError> {
        let table = {
            let mut tables = self.tables.lock();
            match tables.get(&relation.id) {
                Some(table) => Arc::clone(table),
                None => {
                    let table = Arc::new(Mutex::new(Table::new(relation, &self.room)?));
                    tables.insert(relation.id, Arc::clone(&table));
                    table
                }
            }
        };
        let mut table = table.lock();
        if !table.is_of(relation) {
            // Columns or partitions were added since, or the statement was planned before.
            *table = Table::new(relation, &self.room)?;
        }
        for partition in relation.partitions() {
            table.catch_up(relation, partition, partitions, cut)?;
        }
        read(&table)
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
    keyed: Keyed,
    partitions: Vec<Fold>,
    /// Its bytes.
    held: Held,
}

impl Table {
    fn new(relation: &Relation, room: &HoldingRoom) -> Result<Self, SqlError> {
        let partitions = relation.partitions().map(|_| Fold::default()).collect();
        let (known, keyed) = (relation.topic_schema(), Keyed::new(relation)?);
        Ok(Self { known, keyed, partitions, held: room.share() })
    }

    fn folds(&self) -> impl Iterator<Item = (PartitionId, &Fold)> {
        (0..).map(PartitionId::new).zip(&self.partitions)
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
        let Some(fold) = self.partitions.get_mut(id.value() as usize) else { return Ok(()) };
        // Rows whose events were removed are gone; and of those deleted, the tombstone may have been removed.
        let has_missed = fold.position < view.upkeep().tombstones_upto && fold.position > fold.start;
        if fold.start < view.offset_start() || has_missed {
            let before = std::mem::replace(fold, Fold::starting(view.offset_start())).bytes();
            self.count(before, 0);
        }
        let Some(fold) = self.partitions.get(id.value() as usize) else { return Ok(()) };
        let (position, end) = (fold.position, view.state_end_at(cut));
        if end <= position {
            return Ok(());
        }
        let request =
            ScanRequest { offsets: position..end, schema: Some(Arc::clone(&self.known)), ..ScanRequest::all() };
        for stored in view.scan(request) {
            let stored = stored.map_err(|error| crate::engine::read_error(&relation.name, error))?;
            let Some(fold) = self.partitions.get_mut(id.value() as usize) else { return Ok(()) };
            let before = fold.bytes();
            fold.take(&self.keyed, &stored)?;
            fold.tidy(&self.keyed)?;
            let after = fold.bytes();
            self.count(before, after);
            if self.held.is_over() {
                self.partitions.iter_mut().for_each(|fold| *fold = Fold::default());
                self.held.put(ByteSize::ZERO);
                return Err(out_of_memory(relation, self.held.bytes_max()));
            }
        }
        // The last offsets may be gaps.
        self.partitions.get_mut(id.value() as usize).into_iter().for_each(|fold| fold.position = end);
        Ok(())
    }

    /// Counts bytes that became others.
    fn count(&mut self, before: u64, after: u64) {
        self.held.put(ByteSize::new(self.held.bytes().value().saturating_sub(before) + after));
    }
}

fn out_of_memory(relation: &Relation, bytes_max: ByteSize) -> SqlError {
    SqlError::new(SqlState::OutOfMemory, format!("the rows of table \"{}\" do not fit in memory", relation.name))
        .detail(format!("current rows of all tables and the state of continuous queries may take {bytes_max} bytes"))
        .hint(
            "drop tables and queries that are not needed, keep fewer keys, or start the server with a larger --memory",
        )
}
