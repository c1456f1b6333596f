//! Bounded reads: the log, tables and system views as one source for a statement, and running the plan.
//!
//! A statement sees one consistent cut of each shard, taken when it begins; its session holds a pin since before. Leaves out planning (sql) and
//! how rows are stored (storage). Reads only; a crash ends the statement.

use crate::engine::pin::Pin;
use crate::engine::skip::LogPruner;
use crate::engine::table::Tables;
use crate::engine::versions::{self, SharedVersions};
use crate::engine::{Engine, Result};
use crate::engine::{read_error, system_view};
use crate::replication::{Cuts, Shard};
use crate::storage::batch::batch_bytes;
use crate::storage::scan::ScanCounts;
use crate::storage::summary::Summary;
use crate::storage::{KeySet, PartitionScan, Partitions, ScanRequest as StorageScan, StoredBatch};
use arrow::array::{ArrayRef, Int32Array, RecordBatch, RecordBatchOptions};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use millstream_catalog::Relation;
use millstream_catalog::model::limit::BATCH_ROWS_MAX;
use millstream_catalog::model::{EntryIndex, Offset, PartitionId, RowCount, ShardId, SqlState};
use millstream_catalog::schema::{ROWOFFSET, ROWPARTITION};
use millstream_sql::SqlError;
use millstream_sql::ports::{BatchIter, RelationSource, ScanColumn, ScanCount, ScanMetrics, ScanRequest, ScanSummary};
use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;

/// Least rows per unit of parallelism: below, a second thread costs more than it brings.
const PARALLEL_ROWS_MIN: u64 = 65_536;
/// Units of a large scan per thread: the last one to finish keeps the others waiting for an eighth of its work.
const UNITS_PER_THREAD: u64 = 8;

/// The changes of a partition whose rows change, and the end of what is read.
type Cut = Option<(SharedVersions, Offset)>;

/// What one statement reads.
#[derive(Debug)]
pub(crate) struct LogSource {
    engine: Arc<Engine>,
    session: Option<system_view::SessionView>,
    shards: HashMap<ShardId, (Arc<Partitions>, EntryIndex)>,
}

impl LogSource {
    /// Fixes the cut of every shard: as `cuts` has it, or now.
    pub(crate) fn new(engine: &Arc<Engine>, session: Option<system_view::SessionView>, cuts: Option<&Cuts>) -> Self {
        let cut = |shard: &Arc<Shard>| {
            let partitions = shard.partitions();
            let cut = cuts.and_then(|cuts| cuts.get(&shard.id()).copied());
            let cut = cut.unwrap_or_else(|| partitions.applied());
            (shard.id(), (partitions, cut))
        };
        Self { engine: Arc::clone(engine), session, shards: engine.replication().shards().iter().map(cut).collect() }
    }

    fn shard(&self, relation: &Relation) -> Result<(&Arc<Partitions>, EntryIndex)> {
        match self.shards.get(&relation.shard) {
            Some((partitions, cut)) => Ok((partitions, *cut)),
            None => Err(self.engine.shard(relation.shard).err().unwrap_or_else(|| {
                SqlError::new(SqlState::NoLeader, format!("shard {} was not here", relation.shard))
            })),
        }
    }

    /// The end of a partition, as this source sees it.
    ///
    /// # Errors
    /// SE007 when the shard is not here.
    pub(crate) fn position(&self, relation: &Relation, partition: PartitionId) -> Result<Offset> {
        let (partitions, cut) = self.shard(relation)?;
        let partition = partitions.get(relation.id, partition);
        let end = partition.map_or(Ok(Offset::ZERO), |partition| partition.view().offset_end_at(cut));
        end.map_err(|error| read_error(&relation.name, error))
    }

    /// Whether a row from `position` on has one of `keys`, as the log is now.
    ///
    /// # Errors
    /// When it cannot be read.
    pub(crate) fn is_touched(
        &self,
        relation: &Relation,
        partition: PartitionId,
        position: Offset,
        keys: &KeySet,
    ) -> Result<bool> {
        let Some(partition) = self.shard(relation)?.0.get(relation.id, partition) else { return Ok(false) };
        partition.view().is_touched(position, keys).map_err(|error| read_error(&relation.name, error))
    }

    /// How many rows came to a partition since this source was made.
    ///
    /// # Errors
    /// SE007 when the shard is not here.
    pub(crate) fn rows_since(&self, relation: &Relation, partition: PartitionId) -> Result<u64> {
        let end = self.shard(relation)?.0.get(relation.id, partition).map(|partition| partition.view().offset_end());
        Ok(end.unwrap_or_default().value().saturating_sub(self.position(relation, partition)?.value()))
    }

    /// Whether the rows of a table with a key are in memory, but for a few: to look some up takes no time.
    pub(crate) fn is_folded(&self, relation: &Arc<Relation>) -> bool {
        self.shard(relation).is_ok_and(|(partitions, _)| self.engine.tables().is_folded(relation, partitions))
    }

    fn scan_log(&self, relation: &Arc<Relation>, request: &ScanRequest) -> Result<Vec<BatchIter>> {
        let (partitions, cut) = self.shard(relation)?;
        let layout = Arc::new(Layout::new(&request.projection, &relation.stored_schema()));
        let known = relation.topic_schema();
        let pruner = request.pruning.as_ref().map(|pruning| LogPruner::shared(pruning));
        let versions = self.versions(relation)?;
        let mut scans: Vec<(PartitionId, PartitionScan, Cut)> = Vec::new();
        for id in relation.partitions().filter(|id| request.wants(*id)) {
            let Some(partition) = partitions.get(relation.id, id) else { continue };
            let view = partition.view();
            let end = view.state_end_at(cut).map_err(|error| read_error(&relation.name, error))?;
            let scan = view.scan(StorageScan {
                offsets: intersect(view.offset_start()..end, request.offsets.as_ref()),
                rowtime: (request.rowtime.0.is_some() || request.rowtime.1.is_some()).then_some(request.rowtime),
                pruner: pruner.clone(),
                schema: Some(Arc::clone(&known)),
                projection: Some(layout.stored.clone()),
                batch_rows: BATCH_ROWS_MAX,
            });
            count_plan(&request.metrics, scan.counts());
            let versions = versions.get(id.value() as usize).filter(|versions| !versions.read().is_empty());
            scans.push((id, scan, versions.map(|versions| (Arc::clone(versions), end))));
        }
        let rows: u64 = scans.iter().map(|(_, scan, _)| scan.rows()).sum();
        let unit = match request.parallelism {
            0 | 1 => u64::MAX,
            threads => (rows / (threads as u64 * UNITS_PER_THREAD)).max(PARALLEL_ROWS_MIN),
        };
        let mut iterators: Vec<BatchIter> = Vec::new();
        for (partition, scan, versions) in scans {
            for mut part in scan.divide(unit) {
                let (metrics, layout, name) =
                    (Arc::clone(&request.metrics), Arc::clone(&layout), relation.name.clone());
                let versions = versions.clone();
                iterators.push(limited(request.limit, move || match part.next()? {
                    Ok(stored) => {
                        count_batch(&metrics, &stored.batch);
                        let live = match &versions {
                            Some((versions, end)) => versions::live(versions, stored, *end),
                            None => Ok(stored),
                        };
                        Some(live.and_then(|stored| layout.arrange(partition, &stored)))
                    }
                    Err(error) => Some(Err(read_error(&name, error))),
                }));
            }
        }
        Ok(iterators)
    }

    /// The changes of a table without a key.
    fn versions(&self, relation: &Relation) -> Result<Vec<SharedVersions>> {
        let (partitions, cut) = self.shard(relation)?;
        match relation.row_ids {
            Some(_) => self.engine.tables().versions(relation, partitions, cut),
            None => Ok(Vec::new()),
        }
    }

    fn scan_table(&self, relation: &Arc<Relation>, request: &ScanRequest) -> Result<Vec<BatchIter>> {
        let (partitions, cut) = self.shard(relation)?;
        let found = match &request.lookup {
            Some(keys) => self.engine.tables().lookup(relation, partitions, cut, keys)?,
            None => self.engine.tables().rows(relation, partitions, cut)?.partitions,
        };
        let stored = relation.stored_schema();
        let layout = Layout::new(&request.projection, &stored);
        let offset_column = stored.fields().len();
        let mut iterators: Vec<BatchIter> = Vec::new();
        for (partition, batches) in found {
            if !request.wants(partition) {
                continue;
            }
            for unit in units(batches) {
                let arranged: Vec<Result<RecordBatch>> = unit
                    .iter()
                    .map(|batch| layout.arrange_with(partition, batch, batch.column(offset_column)))
                    .inspect(|batch| batch.iter().for_each(|batch| count_batch(&request.metrics, batch)))
                    .collect();
                let mut arranged = arranged.into_iter();
                iterators.push(limited(request.limit, move || arranged.next()));
            }
        }
        Ok(iterators)
    }
}

/// Neighbours together, as many as are worth a thread.
fn units(batches: Vec<RecordBatch>) -> Vec<Vec<RecordBatch>> {
    let mut units: Vec<Vec<RecordBatch>> = Vec::new();
    let mut rows = PARALLEL_ROWS_MIN;
    for batch in batches {
        if rows >= PARALLEL_ROWS_MIN {
            units.push(Vec::new());
            rows = 0;
        }
        rows += batch.num_rows() as u64;
        units.last_mut().into_iter().for_each(|unit| unit.push(batch.clone()));
    }
    units
}

fn count_plan(metrics: &ScanMetrics, counts: ScanCounts) {
    for (count, more) in [
        (ScanCount::SegmentsRead, counts.segments_read),
        (ScanCount::SegmentsSkipped, counts.segments_skipped),
        (ScanCount::SegmentsSkippedByFilter, counts.segments_skipped_by_filter),
        (ScanCount::BatchesSkipped, counts.batches_skipped),
    ] {
        metrics.add(count, more as u64);
    }
}

fn count_batch(metrics: &ScanMetrics, batch: &RecordBatch) {
    metrics.add(ScanCount::BatchesRead, 1);
    metrics.add(ScanCount::Rows, batch.num_rows() as u64);
    metrics.add(ScanCount::Bytes, batch_bytes(batch).value());
}

trait Wants {
    fn wants(&self, partition: PartitionId) -> bool;
}

impl Wants for ScanRequest {
    fn wants(&self, partition: PartitionId) -> bool {
        self.partitions.as_ref().is_none_or(|wanted| wanted.contains(&partition))
    }
}

/// An iterator over `next` that stops once `limit` rows came.
fn limited(limit: Option<usize>, mut next: impl FnMut() -> Option<Result<RecordBatch>> + Send + 'static) -> BatchIter {
    let mut left = limit.unwrap_or(usize::MAX);
    Box::new(std::iter::from_fn(move || {
        if left == 0 {
            return None;
        }
        let batch = next()?;
        if let Ok(batch) = &batch {
            left = left.saturating_sub(batch.num_rows());
        }
        Some(batch)
    }))
}

fn intersect(range: Range<Offset>, wanted: Option<&Range<Offset>>) -> Range<Offset> {
    match wanted {
        None => range,
        Some(wanted) => {
            let start = range.start.max(wanted.start);
            start..range.end.min(wanted.end).max(start)
        }
    }
}

/// How stored columns and pseudo-columns make up the requested ones.
#[derive(Debug)]
struct Layout {
    columns: Vec<ScanColumn>,
    /// Stored columns read, in order; `columns` refers to them by their stored index.
    stored: Vec<usize>,
    schema: SchemaRef,
}

impl Layout {
    fn new(columns: &[ScanColumn], stored_schema: &Schema) -> Self {
        let mut stored: Vec<usize> =
            columns.iter().filter_map(|c| if let ScanColumn::Stored(i) = c { Some(*i) } else { None }).collect();
        stored.sort_unstable();
        stored.dedup();
        let field = |column: &ScanColumn| match column {
            ScanColumn::Stored(i) => Arc::clone(&stored_schema.fields()[*i]),
            ScanColumn::RowPartition => Arc::new(Field::new(ROWPARTITION, DataType::Int32, false)),
            ScanColumn::RowOffset => Arc::new(Field::new(ROWOFFSET, DataType::Int64, false)),
        };
        let schema = Arc::new(Schema::new(columns.iter().map(field).collect::<Vec<_>>()));
        Self { columns: columns.to_vec(), stored, schema }
    }

    /// Requested columns from a batch that has just the `stored` ones.
    fn arrange(&self, partition: PartitionId, stored: &StoredBatch) -> Result<RecordBatch> {
        let batch = &stored.batch;
        let rows = batch.num_rows();
        let column = |column: &ScanColumn| -> ArrayRef {
            match column {
                ScanColumn::Stored(i) => {
                    let at = self.stored.partition_point(|stored| stored < i);
                    Arc::clone(batch.column(at))
                }
                ScanColumn::RowPartition => partition_column(partition, rows),
                ScanColumn::RowOffset => Arc::new(stored.row_offsets()),
            }
        };
        self.batch(self.columns.iter().map(column).collect(), rows)
    }

    /// Requested columns from a batch that has every stored column, and the offsets beside it.
    fn arrange_with(&self, partition: PartitionId, batch: &RecordBatch, offsets: &ArrayRef) -> Result<RecordBatch> {
        let rows = batch.num_rows();
        let column = |column: &ScanColumn| -> ArrayRef {
            match column {
                ScanColumn::Stored(i) => Arc::clone(batch.column(*i)),
                ScanColumn::RowPartition => partition_column(partition, rows),
                ScanColumn::RowOffset => Arc::clone(offsets),
            }
        };
        self.batch(self.columns.iter().map(column).collect(), rows)
    }

    fn batch(&self, columns: Vec<ArrayRef>, rows: usize) -> Result<RecordBatch> {
        let options = RecordBatchOptions::new().with_row_count(Some(rows));
        RecordBatch::try_new_with_options(Arc::clone(&self.schema), columns, &options)
            .map_err(|error| SqlError::internal(format!("stored columns do not fit their schema: {error}")))
    }
}

fn partition_column(partition: PartitionId, rows: usize) -> ArrayRef {
    Arc::new(Int32Array::from_value(partition.value() as i32, rows))
}

impl RelationSource for LogSource {
    fn scan(&self, relation: &Arc<Relation>, request: ScanRequest) -> Result<Vec<BatchIter>> {
        match relation.has_tombstones() {
            true => self.scan_table(relation, &request),
            false => self.scan_log(relation, &request),
        }
    }

    fn summary(&self, relation: &Arc<Relation>, request: &ScanRequest) -> Option<ScanSummary> {
        let (partitions, cut) = self.shard(relation).ok()?;
        if relation.has_tombstones() {
            if request.offsets.is_some() {
                return None;
            }
            let counts = self.engine.tables().counts(relation, partitions, cut).ok()?;
            let rows = counts.iter().filter(|(id, _)| request.wants(*id)).map(|(_, rows)| rows).sum();
            return Some(ScanSummary { rows: RowCount::of(rows), ..ScanSummary::default() });
        }
        if self.versions(relation).ok()?.iter().any(|versions| !versions.read().is_empty()) {
            return None;
        }
        let rowtime = ScanColumn::Stored(relation.schema.columns.len());
        let mut summary = Summary::default();
        for id in relation.partitions().filter(|id| request.wants(*id)) {
            let Some(partition) = partitions.get(relation.id, id) else { continue };
            let view = partition.view();
            let end = view.state_end_at(cut).ok()?;
            let range = intersect(view.offset_start()..end, request.offsets.as_ref());
            let more = match request.projection.contains(&rowtime) {
                true => view.summary_with_times(range),
                false => view.summary(range),
            };
            summary = summary.and(more.ok()?);
        }
        let rowtime = summary.rowtime.map(|range| (range.first, range.last));
        Some(ScanSummary { rows: summary.rows, offsets: summary.offsets, rowtime })
    }

    fn setting(&self, name: &str) -> Option<String> {
        self.session.as_ref()?.settings.show(name).ok()
    }

    fn system_views(&self) -> Vec<(String, SchemaRef)> {
        system_view::schemas()
    }

    fn system_view(&self, name: &str) -> Result<RecordBatch> {
        system_view::rows(&self.engine, self.session.as_ref(), name)
    }
}

impl Engine {
    /// The tables kept in memory.
    pub(crate) fn tables(&self) -> &Tables {
        &self.tables
    }

    /// Keeps what is committed now readable, and what comes.
    pub(crate) fn pin(&self) -> Pin {
        self.tables.pins.hold(self.replication().shards())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::EngineConfig;
    use crate::engine::tests::{SetClock, run, session};
    use crate::storage::FaultDisk;
    use crate::storage::wal::WalOptions;
    use arrow::array::AsArray;
    use arrow::datatypes::Int64Type;
    use millstream_catalog::model::ByteSize;

    /// Keys and values as `source` has them: by a scan, by the index, and their number.
    fn read(source: &LogSource, relation: &Arc<Relation>) -> Vec<(i64, i64)> {
        let request = |lookup| ScanRequest {
            projection: vec![ScanColumn::Stored(0), ScanColumn::Stored(1)],
            parallelism: 1,
            lookup,
            ..ScanRequest::default()
        };
        let rows = |request| {
            let batches = source.scan(relation, request).unwrap().into_iter().flatten().map(Result::unwrap);
            let numbers = |batch: &RecordBatch, at| batch.column(at).as_primitive::<Int64Type>().values().to_vec();
            let rows = batches.flat_map(|batch| numbers(&batch, 0).into_iter().zip(numbers(&batch, 1)));
            let mut rows: Vec<(i64, i64)> = rows.collect();
            rows.sort_unstable();
            rows
        };
        let keys: ArrayRef = Arc::new(arrow::array::Int64Array::from_iter_values(0..10));
        let (all, found) = (rows(request(None)), rows(request(Some(vec![keys]))));
        let summary = source.summary(relation, &request(None)).unwrap();
        assert_eq!((&found, summary.rows), (&all, RowCount::of(all.len())));
        all
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_source_reads_its_cut_however_far_others_are() {
        // Segments that are never full are not compacted, which sources without a pin would not bear.
        let config = EngineConfig {
            data_dir: "/data".into(),
            shards: 1,
            seal_bytes: ByteSize::new(64 << 20),
            query_threads: 1,
            memory: ByteSize::new(1 << 30),
            offsets_retention: millstream_catalog::model::Span::from_secs(86_400),
        };
        let log = WalOptions { file_bytes: ByteSize::new(64 << 10), ..WalOptions::default() };
        let clock = Arc::<SetClock>::default();
        let engine = Engine::open_on(config, Arc::new(FaultDisk::new()), clock, log).await.unwrap();
        let mut session = session(&engine);
        let sql = "CREATE TABLE t (k bigint PRIMARY KEY, v bigint) WITH (partitions = 2); \
                   INSERT INTO t SELECT k, 10 * k FROM generate_series(0, 4) AS g(k)";
        run(&mut session, sql).await.unwrap();
        let relation = Arc::clone(engine.catalog().relation("t").unwrap());
        let states: [&[(i64, i64)]; 3] = [
            &[(0, 0), (1, 10), (2, 20), (3, 30), (4, 40)],
            &[(1, 11), (2, 20), (3, 30), (4, 40), (5, 50)],
            &[(0, 1), (1, 13), (3, 30), (4, 40), (5, 51)],
        ];
        let moves = [
            "DELETE FROM t WHERE k = 0; UPDATE t SET v = 11 WHERE k = 1; INSERT INTO t VALUES (5, 50)",
            "DELETE FROM t WHERE k = 2; INSERT INTO t VALUES (5, 51), (0, 1); UPDATE t SET v = v + 1 WHERE k = 1; \
             UPDATE t SET v = v + 1 WHERE k = 1",
        ];
        for is_held in [true, false] {
            run(&mut session, "DELETE FROM t; INSERT INTO t SELECT k, 10 * k FROM generate_series(0, 4) AS g(k)")
                .await
                .unwrap();
            let mut sources = Vec::new();
            for change in moves.iter().map(Some).chain([None]) {
                sources.push((is_held.then(|| engine.pin()), LogSource::new(&engine, None, None)));
                if let Some(change) = change {
                    run(&mut session, change).await.unwrap();
                }
            }
            // The newest first, which folds all changes in.
            for ((_, source), state) in sources.iter().zip(states).rev() {
                assert_eq!(read(source, &relation), state, "{is_held}");
            }
            for ((_, source), state) in sources.iter().zip(states) {
                assert_eq!(read(source, &relation), state, "{is_held}");
            }
        }
        drop(session);
        engine.shutdown().await;
    }
}
