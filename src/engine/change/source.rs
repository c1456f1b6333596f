//! What UPDATE, DELETE and ON CONFLICT read: a table as it is committed, with what the transaction itself has written.
//!
//! A second change of a row in one transaction must start from the first one, or it would undo it; so these statements see
//! their transaction's own rows of the table they change, while SELECT sees what is committed. Leaves out planning (sql) and
//! locks (`row_lock`). Reads only.

use super::own_rows::OwnRows;
use crate::engine::Result;
use crate::engine::pull::LogSource;
use crate::replication::{Guard, PartitionWrite};
use crate::storage::KeySet;
use arrow::array::RecordBatch;
use arrow::compute::{concat_batches, filter_record_batch};
use arrow::datatypes::SchemaRef;
use millstream_catalog::Relation;
use millstream_catalog::model::limit::LOOKUP_KEYS_MAX;
use millstream_catalog::model::{PartitionId, TopicId};
use millstream_sql::SqlError;
use millstream_sql::plan::scan_schema;
use millstream_sql::ports::{BatchIter, RelationSource, ScanColumn, ScanRequest, ScanSummary};
use parking_lot::{Mutex, RwLock};
use std::collections::HashMap;
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
    log: Arc<LogSource>,
    own: Option<Arc<OwnRows>>,
}

/// A statement that reads a source; when it ends, the source lets go of the transaction's rows.
#[derive(Debug)]
pub(super) struct Reading<'a>(&'a TargetSource);

impl Drop for Reading<'_> {
    fn drop(&mut self) {
        let log = Arc::clone(&self.0.rows().log);
        *self.0.rows.write() = Arc::new(TargetRows { log, own: None });
    }
}

pub(super) fn internal(error: impl std::fmt::Display) -> SqlError {
    SqlError::internal(format!("changed rows cannot be formed: {error}"))
}

impl TargetSource {
    /// `relation` as `log` has it.
    pub(crate) fn new(log: LogSource, relation: &Arc<Relation>) -> Self {
        let rows = RwLock::new(Arc::new(TargetRows { log: Arc::new(log), own: None }));
        Self { relation: Arc::clone(relation), rows }
    }

    /// Reads what is committed as `log` has it, under the transaction's `own` rows, from now on: plans over this source stay
    /// as they are.
    pub(super) fn refresh(&self, log: LogSource, own: Option<Arc<OwnRows>>) {
        *self.rows.write() = Arc::new(TargetRows { log: Arc::new(log), own });
    }

    /// The beginning of a statement.
    pub(super) fn reading(&self) -> Reading<'_> {
        Reading(self)
    }

    /// Whether it holds rows of a transaction.
    #[cfg(test)]
    pub(super) fn has_own(&self) -> bool {
        self.rows().own.is_some()
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

    /// Whether rows with `keys` came to the partition since this source was made.
    ///
    /// # Errors
    /// When the log cannot be read.
    pub(crate) fn is_stale(&self, partition: PartitionId, keys: &KeySet) -> Result<bool> {
        let rows = self.rows();
        let position = rows.log.position(&self.relation, partition)?;
        rows.log.is_touched(&self.relation, partition, position, keys)
    }

    /// How many rows came to the partition since this source was made.
    ///
    /// # Errors
    /// SE007 when the shard is not here.
    pub(crate) fn rows_since(&self, partition: PartitionId) -> Result<u64> {
        self.rows().log.rows_since(&self.relation, partition)
    }

    /// Whether the table's committed rows are in memory, but for a few.
    pub(crate) fn is_folded(&self) -> bool {
        self.rows().log.is_folded(&self.relation)
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

    fn scan_over(&self, log: &LogSource, own: &Arc<OwnRows>, request: ScanRequest) -> Result<Vec<BatchIter>> {
        let wanted = request.projection.clone();
        // Without a key, what a scan is asked of partitions is not asked again. Rows that are not committed have no offset.
        let partitions = request.partitions.clone().filter(|_| self.relation.row_ids.is_some());
        let rows = match request.offsets {
            Some(_) => Vec::new(),
            None => own.rows(partitions.as_deref(), request.lookup.as_ref())?,
        };
        let all = every_column(&self.relation);
        let scanned = ScanRequest { projection: all.clone(), limit: None, ..request };
        let places: Vec<usize> =
            wanted.iter().filter_map(|column| all.iter().position(|other| other == column)).collect();
        let own = Arc::clone(own);
        let committed = log.scan(&self.relation, scanned)?.into_iter().flatten();
        let committed = committed.map(move |batch| own.others(&batch?));
        let every = committed.chain(rows.into_iter().map(Ok));
        Ok(vec![Box::new(every.map(move |batch| batch?.project(&places).map_err(internal)))])
    }
}

/// The columns of [`scan_schema`].
fn every_column(relation: &Relation) -> Vec<ScanColumn> {
    let stored = (0..=relation.schema.columns.len()).map(ScanColumn::Stored);
    stored.chain([ScanColumn::RowPartition, ScanColumn::RowOffset]).collect()
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
