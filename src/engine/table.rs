//! The current rows of tables: a fold of each table's changelog, kept in memory and caught up on demand.
//!
//! A table equals its changelog by construction: this only reads the log, forward, once. Leaves out how rows are kept
//! (`fold`), durability (the log has it; after a crash the first read folds it again) and who may read. Called by
//! pull queries and by push queries that begin with the rows as they are.

use crate::engine::fold::{Fold, Keyed};
use crate::engine::held::{Held, HoldingRoom};
use crate::engine::pin::Pins;
use crate::engine::versions::{SharedVersions, Versions};
use crate::storage::{PartitionView, Partitions, ScanRequest};
use arrow::array::{ArrayRef, RecordBatch};
use arrow::datatypes::SchemaRef;
use millstream_catalog::model::{ByteSize, EntryIndex, Offset, PartitionId, SqlState, TopicId};
use millstream_catalog::{Relation, Snapshot};
use millstream_sql::SqlError;
use parking_lot::Mutex;
use std::collections::HashMap;
use std::sync::Arc;

/// Rows that are looked at where statements are served, at most: more are for the threads of queries.
pub(crate) const ROWS_AT_ONCE_MAX: u64 = 1_024;

/// The current rows of every table that was read since the start.
#[derive(Debug)]
pub(crate) struct Tables {
    tables: Mutex<HashMap<TopicId, Arc<Mutex<Table>>>>,
    /// How far back statements read.
    pub(crate) pins: Arc<Pins>,
    /// Of tables without a key, the changes of each partition.
    versions: Mutex<HashMap<TopicId, Arc<Mutex<Changed>>>>,
    /// For the rows of all of them.
    room: HoldingRoom,
}

impl Tables {
    /// No table read yet.
    pub(crate) fn new(room: HoldingRoom) -> Self {
        let (tables, versions) = Default::default();
        Self { tables, versions, pins: Arc::default(), room }
    }

    /// The rows of `relation` as of `cut`, which whoever reads took while holding a pin: batches of the stored columns, then
    /// `rowoffset` as `Int64`, one list per partition, tombstoned rows left out.
    ///
    /// Also gives the positions up to which the changelog is folded in.
    ///
    /// # Errors
    /// When the log cannot be read; 53200 when the rows of all tables take too much memory; 40001 when the changelog was
    /// compacted beyond `cut` meanwhile.
    pub(crate) fn rows(
        &self,
        relation: &Arc<Relation>,
        partitions: &Partitions,
        cut: EntryIndex,
    ) -> Result<TableRows, SqlError> {
        self.with(relation, partitions, cut, |_, table| {
            let mut rows = TableRows { partitions: Vec::new(), positions: Vec::new() };
            for (id, fold, end) in table {
                rows.partitions.push((*id, fold.batches(*end)?));
                rows.positions.push((*id, *end));
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
        self.with(relation, partitions, cut, |keyed, table| {
            let keys = keyed.encoded(keys)?;
            table.iter().map(|(id, fold, end)| Ok((*id, fold.find(&keys, *end)?))).collect()
        })
    }

    /// Whether the rows are in memory, but for those of the last [`ROWS_AT_ONCE_MAX`] events, and nobody is at work on them.
    pub(crate) fn is_folded(&self, relation: &Arc<Relation>, partitions: &Partitions) -> bool {
        let Some(table) = self.tables.lock().get(&relation.id).map(Arc::clone) else { return false };
        let Some(table) = table.try_lock() else { return false };
        let is_folded = |(id, fold): (PartitionId, &Fold)| match partitions.get(relation.id, id) {
            Some(partition) => partition.view().offset_end().since(fold.position).value() <= ROWS_AT_ONCE_MAX,
            None => true,
        };
        table.is_of(relation) && relation.partitions().zip(&table.partitions).all(is_folded)
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
        self.with(relation, partitions, cut, |_, table| {
            Ok(table.iter().map(|(id, fold, end)| (*id, fold.rows(*end))).collect())
        })
    }

    /// The changes of a table without a key, by partition, as of `cut` at least.
    ///
    /// # Errors
    /// As [`Tables::rows`].
    pub(crate) fn versions(
        &self,
        relation: &Relation,
        partitions: &Partitions,
        cut: EntryIndex,
    ) -> Result<Vec<SharedVersions>, SqlError> {
        let new = || Arc::new(Mutex::new(Changed { partitions: Vec::new(), held: self.room.share() }));
        let table = Arc::clone(self.versions.lock().entry(relation.id).or_insert_with(new));
        let mut table = table.lock();
        let has_known = table.held.bytes() > ByteSize::ZERO;
        match table.catch_up(relation, partitions, cut) {
            // Of what was known, compaction may have removed most.
            Err(error) if error.sqlstate == SqlState::OutOfMemory && has_known => {
                table.catch_up(relation, partitions, cut)?;
            }
            caught_up => caught_up?,
        }
        Ok(table.partitions.clone())
    }

    /// Forgets tables that are no longer in the catalog.
    pub(crate) fn retain(&self, catalog: &Snapshot) {
        self.versions.lock().retain(|id, _| catalog.relation_by_id(*id).is_some());
        self.tables.lock().retain(|id, _| catalog.relation_by_id(*id).is_some());
    }

    /// What `read` makes of the table as of `cut`.
    fn with<T>(
        &self,
        relation: &Arc<Relation>,
        partitions: &Partitions,
        cut: EntryIndex,
        read: impl FnOnce(&Keyed, &[State<'_>]) -> Result<T, SqlError>,
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
        let (from, pins) = ((&**relation, partitions), self.pins.of(relation.shard));
        if let Some(ends) = table.catch_up_all(from, cut, &pins)? {
            return read(&table.keyed, &table.at(&ends));
        }
        drop(table);
        // Others read on, and what was before them is not kept: the log has it, more slowly.
        let mut own = Table::new(relation, &self.room)?;
        match own.catch_up_all(from, cut, &[])? {
            Some(ends) => read(&own.keyed, &own.at(&ends)),
            None => Err(SqlError::new(
                SqlState::SerializationFailure,
                format!("table \"{}\" was compacted while the statement began", relation.name),
            )
            .hint("try again")),
        }
    }
}

/// A partition of a table, and the offset its rows are read at.
type State<'a> = (PartitionId, &'a Fold, Offset);

/// What changed in a table without a key.
#[derive(Debug)]
struct Changed {
    partitions: Vec<SharedVersions>,
    held: Held,
}

impl Changed {
    /// Reads the changes up to `cut`; forgets all of them when they do not fit.
    fn catch_up(&mut self, relation: &Relation, partitions: &Partitions, cut: EntryIndex) -> Result<(), SqlError> {
        self.partitions.resize_with(relation.options.partitions as usize, SharedVersions::default);
        let mut each = relation.partitions().zip(self.partitions.iter_mut());
        let caught_up = each.try_for_each(|(id, versions)| match partitions.get(relation.id, id) {
            Some(partition) => Versions::catch_up(versions, &mut self.held, (relation, &partition), cut),
            None => Ok(()),
        });
        if caught_up.as_ref().is_err_and(|error| error.sqlstate == SqlState::OutOfMemory) {
            self.partitions.clear();
            self.held.put(ByteSize::ZERO);
        }
        caught_up
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

    fn at(&self, ends: &[Offset]) -> Vec<State<'_>> {
        let folds = (0..).map(PartitionId::new).zip(&self.partitions);
        folds.zip(ends).map(|((id, fold), end)| (id, fold, *end)).collect()
    }

    /// Folds every partition up to `cut`; the offsets its rows are to be read at, `None` when those can no longer be told.
    fn catch_up_all(
        &mut self,
        (relation, partitions): (&Relation, &Partitions),
        cut: EntryIndex,
        pins: &[EntryIndex],
    ) -> Result<Option<Vec<Offset>>, SqlError> {
        let mut ends = Vec::with_capacity(self.partitions.len());
        for id in relation.partitions() {
            let Some(source) = partitions.get(relation.id, id) else {
                ends.push(Offset::ZERO);
                continue;
            };
            let view = source.view();
            self.catch_up((relation, id), &view, (cut, pins))?;
            let end = view.offset_end_at(cut).map_err(|error| crate::engine::read_error(&relation.name, error))?;
            let first = self.partitions.get(id.value() as usize).map_or(Offset::ZERO, Fold::first);
            if end < first {
                return Ok(None);
            }
            ends.push(end);
        }
        Ok(Some(ends))
    }

    fn is_of(&self, relation: &Relation) -> bool {
        let columns = relation.schema.columns.len() + 1 + usize::from(relation.has_tombstones());
        self.known.fields().len() == columns && self.partitions.len() == relation.options.partitions as usize
    }

    fn catch_up(
        &mut self,
        (relation, id): (&Relation, PartitionId),
        view: &PartitionView,
        (cut, pins): (EntryIndex, &[EntryIndex]),
    ) -> Result<(), SqlError> {
        let Some(fold) = self.partitions.get_mut(id.value() as usize) else { return Ok(()) };
        let before = fold.bytes();
        // Rows whose events were removed are gone; and of those deleted, the tombstone may have been removed.
        let has_missed = fold.position < view.upkeep().tombstones_upto && fold.position > fold.start;
        if fold.start < view.offset_start() || has_missed {
            *fold = Fold::starting(view.offset_start());
        }
        let read_error = |error| crate::engine::read_error(&relation.name, error);
        let exact = view.offset_end_at(cut).map_err(read_error)?;
        let position = fold.position;
        let is_there = fold.first() <= exact && exact <= position;
        let end = if is_there { position } else { view.state_end_at(cut).map_err(read_error)? };
        // Among rows that were compacted there are no states but the last one.
        let compacted = view.upkeep().compacted_upto.min(end);
        let first = fold.first().max(if position < compacted { compacted } else { Offset::ZERO });
        let mut keep_from = None;
        for pin in pins {
            let reach = view.offset_end_at(*pin).map_err(read_error)?;
            if reach >= first && reach < end.max(position) {
                keep_from = Some(keep_from.map_or(reach, |kept: Offset| kept.min(reach)));
            }
        }
        fold.keep_for(keep_from, first);
        self.held.count(before, fold.bytes());
        if end <= position {
            return Ok(());
        }
        let request =
            ScanRequest { offsets: position..end, schema: Some(Arc::clone(&self.known)), ..ScanRequest::all() };
        for stored in view.scan(request) {
            let stored = stored.map_err(read_error)?;
            let Some(fold) = self.partitions.get_mut(id.value() as usize) else { return Ok(()) };
            let before = fold.bytes();
            fold.take(&self.keyed, &stored)?;
            fold.tidy(&self.keyed)?;
            self.held.count(before, fold.bytes());
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
}

pub(super) fn out_of_memory(relation: &Relation, bytes_max: ByteSize) -> SqlError {
    SqlError::new(SqlState::OutOfMemory, format!("the rows of table \"{}\" do not fit in memory", relation.name))
        .detail(format!("current rows of all tables and the state of continuous queries may take {bytes_max} bytes"))
        .hint(
            "drop tables and queries that are not needed, keep fewer keys, or start the server with a larger --memory",
        )
}
