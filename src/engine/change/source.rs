//! What UPDATE, DELETE and ON CONFLICT read: a table as it is committed, with what the transaction itself has written.
//!
//! A second change of a row in one transaction must start from the first one, or it would undo it; so these statements see
//! their transaction's own rows of the table they change, while SELECT sees what is committed. Leaves out planning (sql) and
//! locks (`row_lock`). Reads only.

use super::row_ids::{ids_of, partitions_of};
use crate::engine::Result;
use crate::engine::pull::LogSource;
use crate::replication::{Guard, PartitionWrite};
use crate::storage::KeySet;
use crate::storage::fit::Wanted;
use arrow::array::{ArrayRef, AsArray, BooleanArray, Int32Array, Int64Array, RecordBatch};
use arrow::compute::{concat_batches, filter_record_batch};
use arrow::datatypes::{Int32Type, SchemaRef};
use millstream_catalog::Relation;
use millstream_catalog::model::limit::LOOKUP_KEYS_MAX;
use millstream_catalog::model::{PartitionId, TopicId};
use millstream_sql::SqlError;
use millstream_sql::plan::scan_schema;
use millstream_sql::ports::{BatchIter, RelationSource, ScanColumn, ScanRequest, ScanSummary};
use parking_lot::{Mutex, RwLock};
use std::collections::{HashMap, HashSet};
use std::hash::Hash;
use std::sync::Arc;

/// The committed rows, and over them those a transaction wrote to one table.
#[derive(Debug)]
pub(crate) struct TargetSource {
    relation: Arc<Relation>,
    rows: RwLock<Arc<TargetRows>>,
}

/// What there is to read at one moment.
#[derive(Debug)]
struct TargetRows {
    log: LogSource,
    own: Option<OwnRows>,
}

/// A transaction's last form of each row it wrote.
#[derive(Debug)]
struct OwnRows {
    /// Every row it wrote, deleted rows too.
    keys: OwnKeys,
    /// The rows that are there, as [`scan_schema`] has them; offsets are below zero.
    rows: RecordBatch,
}

/// What a transaction wrote.
#[derive(Debug, Clone)]
enum OwnKeys {
    Keys(KeySet),
    /// Of a table without a key: partitions, and ids of rows.
    Ids(Arc<HashSet<(i32, i64)>>),
}

pub(super) fn internal(error: impl std::fmt::Display) -> SqlError {
    SqlError::internal(format!("changed rows cannot be formed: {error}"))
}

impl TargetSource {
    /// `relation` as `log` has it, under `writes` of the transaction.
    ///
    /// # Errors
    /// When the rows cannot be put together; none is known.
    pub(crate) fn new<'a>(
        log: LogSource,
        relation: &Arc<Relation>,
        writes: impl Iterator<Item = &'a PartitionWrite>,
    ) -> Result<Self> {
        let rows = RwLock::new(Arc::new(TargetRows::of(relation, log, writes)?));
        Ok(Self { relation: Arc::clone(relation), rows })
    }

    /// Reads what is committed as `log` has it, under these `writes`, from now on: plans over this source stay as they are.
    ///
    /// # Errors
    /// As of [`Self::new`].
    pub(crate) fn refresh<'a>(&self, log: LogSource, writes: impl Iterator<Item = &'a PartitionWrite>) -> Result<()> {
        *self.rows.write() = Arc::new(TargetRows::of(&self.relation, log, writes)?);
        Ok(())
    }

    /// The table.
    pub(crate) fn relation(&self) -> &Arc<Relation> {
        &self.relation
    }

    fn rows(&self) -> Arc<TargetRows> {
        Arc::clone(&self.rows.read())
    }

    /// What rows of `part` are computed from, when they are computed from this source.
    ///
    /// # Errors
    /// SE007 when the shard is not here.
    pub(crate) fn guard(&self, part: &PartitionWrite) -> Result<Guard> {
        let position = self.rows().log.position(&self.relation, part.partition)?;
        Ok(Guard { position, key: self.relation.identity().into() })
    }

    /// Whether rows of `part` came to the log since this source was made.
    ///
    /// # Errors
    /// When the log cannot be read.
    pub(crate) fn is_stale(&self, part: &PartitionWrite, keys: &KeySet) -> Result<bool> {
        let rows = self.rows();
        let position = rows.log.position(&self.relation, part.partition)?;
        rows.log.is_touched(&self.relation, part.partition, position, keys)
    }

    /// The rows of the target that have one of `keys`, those of `of`, as [`scan_schema`] has them: found by the index.
    ///
    /// # Errors
    /// When the table cannot be read.
    pub(crate) fn rows_of(&self, keys: &KeySet, of: &RecordBatch) -> Result<RecordBatch> {
        let schema = scan_schema(&self.relation);
        let arrays = || keys.columns().iter().filter_map(|at| of.columns().get(*at).cloned()).collect();
        let request = ScanRequest {
            projection: every_column(&self.relation),
            lookup: (of.num_rows() <= LOOKUP_KEYS_MAX).then(arrays),
            parallelism: 1,
            ..ScanRequest::default()
        };
        let mut found = Vec::new();
        for batch in self.scan(&self.relation, request)?.into_iter().flatten() {
            let batch = batch?;
            let has = keys.has(&batch).map_err(internal)?;
            let batch = filter_record_batch(&batch, &has.into()).map_err(internal)?;
            if batch.num_rows() > 0 {
                found.push(RecordBatch::try_new(Arc::clone(&schema), batch.columns().to_vec()).map_err(internal)?);
            }
        }
        concat_batches(&schema, &found).map_err(internal)
    }

    fn scan_over(&self, log: &LogSource, own: &OwnRows, request: ScanRequest) -> Result<Vec<BatchIter>> {
        let wanted = request.projection.clone();
        // Without a key, what a scan is asked of partitions and offsets is not asked again.
        let is_exact = self.relation.row_ids.is_some();
        let has_offsets = is_exact && request.offsets.is_some();
        let partitions = request.partitions.clone().filter(|_| is_exact);
        let all = every_column(&self.relation);
        let scanned = ScanRequest { projection: all.clone(), limit: None, ..request };
        let (keys, relation) = (own.keys.clone(), Arc::clone(&self.relation));
        let positions: Vec<usize> =
            wanted.iter().filter_map(|column| all.iter().position(|other| other == column)).collect();
        let committed = log.scan(&self.relation, scanned)?.into_iter().flatten();
        let places = positions.clone();
        let committed =
            committed.map(move |batch| others(&relation, &batch?, &keys)?.project(&places).map_err(internal));
        let own = own.wanted(partitions.as_deref(), has_offsets)?.project(&positions).map_err(internal);
        Ok(vec![Box::new(committed.chain([own]))])
    }
}

/// The columns of [`scan_schema`].
fn every_column(relation: &Relation) -> Vec<ScanColumn> {
    let stored = (0..=relation.schema.columns.len()).map(ScanColumn::Stored);
    stored.chain([ScanColumn::RowPartition, ScanColumn::RowOffset]).collect()
}

/// The rows of `batch`, as [`scan_schema`] has them, that are not among `keys`.
fn others(relation: &Relation, batch: &RecordBatch, keys: &OwnKeys) -> Result<RecordBatch> {
    let is_other: BooleanArray = match (keys, relation.row_ids) {
        (OwnKeys::Ids(own), Some(at)) => {
            let end = batch.num_columns();
            let partitions = batch.column(end - 2).as_primitive::<Int32Type>().values();
            let ids = ids_of(batch, at, end - 1);
            partitions.iter().zip(ids.values()).map(|(partition, id)| Some(!own.contains(&(*partition, *id)))).collect()
        }
        (OwnKeys::Keys(keys), _) => keys.has(batch).map_err(internal)?.into_iter().map(|has| Some(!has)).collect(),
        (OwnKeys::Ids(_), None) => return Err(internal("rows have lost their ids")),
    };
    filter_record_batch(batch, &is_other).map_err(internal)
}

impl TargetRows {
    fn of<'a>(
        relation: &Arc<Relation>,
        log: LogSource,
        writes: impl Iterator<Item = &'a PartitionWrite>,
    ) -> Result<Self> {
        let writes: Vec<&PartitionWrite> = writes.filter(|write| write.topic == relation.id).collect();
        let own = if writes.is_empty() { None } else { Some(OwnRows::of(relation, &writes)?) };
        Ok(Self { log, own })
    }
}

impl OwnRows {
    /// The rows in these partitions; none where offsets are asked for, which they do not have yet.
    fn wanted(&self, partitions: Option<&[PartitionId]>, has_offsets: bool) -> Result<RecordBatch> {
        if has_offsets {
            return Ok(self.rows.slice(0, 0));
        }
        let Some(partitions) = partitions else { return Ok(self.rows.clone()) };
        let places = partitions_of(self.rows.column(self.rows.num_columns() - 2));
        let is_wanted: BooleanArray = places.iter().map(|place| Some(partitions.contains(place))).collect();
        filter_record_batch(&self.rows, &is_wanted).map_err(internal)
    }

    fn of(relation: &Relation, writes: &[&PartitionWrite]) -> Result<Self> {
        let schema = scan_schema(relation);
        let wanted = Wanted::new(&relation.topic_schema(), None).map_err(internal)?;
        let mut batches = Vec::new();
        let mut deleted = Vec::new();
        let mut next = -1;
        for write in writes {
            let rows = write.batch.num_rows();
            // Columns may have been added since.
            let batch = wanted.of(&write.batch).map_err(internal)?;
            let mut columns: Vec<ArrayRef> =
                batch.columns().iter().take(relation.schema.columns.len() + 1).cloned().collect();
            columns.push(Arc::new(Int32Array::from_value(write.partition.value() as i32, rows)));
            columns.push(Arc::new(Int64Array::from_iter_values((0..rows as i64).map(|row| next - row))));
            next -= rows as i64;
            let gone = relation.row_ids.map_or(batch.num_columns() - 1, |at| at + 1);
            deleted.extend(batch.column(gone).as_boolean().iter().map(|is| is == Some(true)));
            batches.push(RecordBatch::try_new(Arc::clone(&schema), columns).map_err(internal)?);
        }
        let all = concat_batches(&schema, &batches).map_err(internal)?;
        let (keys, last) = match relation.row_ids {
            Some(at) => {
                let end = all.num_columns();
                let partitions = all.column(end - 2).as_primitive::<Int32Type>().values().iter();
                let ids: Vec<(i32, i64)> =
                    partitions.copied().zip(ids_of(&all, at, end - 1).values().iter().copied()).collect();
                (OwnKeys::Ids(Arc::new(ids.iter().copied().collect())), last_of_each(&ids))
            }
            None => {
                let keys = KeySet::new(&all, &relation.schema.key()).map_err(internal)?;
                let last = last_of_each(&keys.keys_of(&all).map_err(internal)?);
                (OwnKeys::Keys(keys), last)
            }
        };
        let live = last.into_iter().zip(deleted).map(|(is_last, is_deleted)| Some(is_last && !is_deleted));
        let rows = filter_record_batch(&all, &live.collect()).map_err(internal)?;
        Ok(Self { keys, rows })
    }
}

/// Whether each row is the last one of its key.
fn last_of_each<K: Eq + Hash>(keys: &[K]) -> Vec<bool> {
    let last: HashMap<&K, usize> = keys.iter().enumerate().map(|(row, key)| (key, row)).collect();
    keys.iter().enumerate().map(|(row, key)| last.get(key) == Some(&row)).collect()
}

impl RelationSource for TargetSource {
    fn scan(&self, relation: &Arc<Relation>, request: ScanRequest) -> Result<Vec<BatchIter>> {
        let rows = self.rows();
        match &rows.own {
            Some(own) if relation.id == self.relation.id => self.scan_over(&rows.log, own, request),
            _ => rows.log.scan(relation, request),
        }
    }

    fn summary(&self, relation: &Arc<Relation>, request: &ScanRequest) -> Option<ScanSummary> {
        let rows = self.rows();
        match &rows.own {
            Some(_) if relation.id == self.relation.id => None,
            _ => rows.log.summary(relation, request),
        }
    }

    fn setting(&self, name: &str) -> Option<String> {
        self.rows().log.setting(name)
    }

    fn system_views(&self) -> Vec<(String, SchemaRef)> {
        self.rows().log.system_views()
    }

    fn system_view(&self, name: &str) -> Result<RecordBatch> {
        self.rows().log.system_view(name)
    }
}

/// Rows that a statement holds, by the relation they stand for.
#[derive(Debug)]
pub(super) struct RowsSource {
    rows: Mutex<HashMap<TopicId, RecordBatch>>,
    settings: Arc<TargetSource>,
}

impl RowsSource {
    pub(super) fn new(settings: Arc<TargetSource>) -> Self {
        Self { rows: Mutex::default(), settings }
    }

    /// Gives `relation` these rows, as [`scan_schema`] has them.
    pub(super) fn set(&self, relation: TopicId, rows: RecordBatch) {
        self.rows.lock().insert(relation, rows);
    }

    /// Lets go of the rows.
    pub(super) fn clear(&self) {
        self.rows.lock().clear();
    }
}

impl RelationSource for RowsSource {
    fn scan(&self, relation: &Arc<Relation>, request: ScanRequest) -> Result<Vec<BatchIter>> {
        let Some(rows) = self.rows.lock().get(&relation.id).cloned() else { return Ok(Vec::new()) };
        let stored = relation.schema.columns.len() + 1;
        let at = |column: &ScanColumn| match column {
            ScanColumn::Stored(at) => *at,
            ScanColumn::RowPartition => stored,
            ScanColumn::RowOffset => stored + 1,
        };
        let positions: Vec<usize> = request.projection.iter().map(at).collect();
        let rows = rows.project(&positions).map_err(internal);
        Ok(vec![Box::new(std::iter::once(rows))])
    }

    fn summary(&self, _: &Arc<Relation>, _: &ScanRequest) -> Option<ScanSummary> {
        None
    }

    fn setting(&self, name: &str) -> Option<String> {
        self.settings.setting(name)
    }

    fn system_views(&self) -> Vec<(String, SchemaRef)> {
        Vec::new()
    }

    fn system_view(&self, name: &str) -> Result<RecordBatch> {
        self.settings.system_view(name)
    }
}
