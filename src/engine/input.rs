//! What a continuous or push query reads next: the events of its source after given positions, in the order they were committed.
//!
//! With several partitions, events are ordered by the Raft entry they came with, then by partition; whole
//! entries are taken, so that the order does not depend on where one step ends. Leaves out what is done with
//! them (`query`, `push`). Reads only.

use crate::engine::versions::{self, SharedVersions};
use crate::engine::{Result, read_error};
use crate::storage::batch::batch_bytes;
use crate::storage::{Partition, PartitionView, Partitions, ScanRequest, StorageError, StoredBatch};
use arrow::array::RecordBatch;
use arrow::datatypes::SchemaRef;
use futures::future::select_all;
use millstream_catalog::Relation;
use millstream_catalog::model::limit::BATCH_ROWS_MAX;
use millstream_catalog::model::{ByteSize, EntryIndex, Offset, PartitionId, RowCount, SqlState};
use millstream_sql::SqlError;
use millstream_sql::stream::{InputBatch, Pipeline};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use tokio::sync::watch;

/// Next offsets to read, by partition.
pub(crate) type Positions = BTreeMap<PartitionId, Offset>;

/// The partitions of a relation as they are.
pub(super) type Views = BTreeMap<PartitionId, Arc<PartitionView>>;

/// Events of one step.
#[derive(Debug)]
pub(crate) struct Input {
    /// The batches, in total order.
    pub(crate) batches: Vec<InputBatch>,
    /// Positions after them.
    pub(crate) positions: Positions,
    /// Their number.
    pub(crate) rows: RowCount,
}

/// Reads one source.
#[derive(Debug, Clone)]
pub(crate) struct Reader {
    /// Its position among the query's sources.
    pub(crate) source: usize,
    pub(crate) relation: Arc<Relation>,
    pub(crate) partitions: Arc<Partitions>,
    /// Of the stored schema of `relation`.
    pub(crate) projection: Vec<usize>,
    /// That schema.
    pub(crate) schema: SchemaRef,
    /// About how many rows are taken at once.
    pub(crate) rows_max: usize,
    /// About how many bytes are taken at once.
    pub(crate) bytes_max: ByteSize,
    /// What happens when events it has not read were removed.
    pub(crate) removed: Removed,
    /// Of a table without a key, what is known of the rows before these positions: only those that are there are given.
    pub(crate) first: Option<Arc<First>>,
    /// The partitions that are read; `None` for all of them.
    pub(crate) only: Option<Arc<BTreeSet<PartitionId>>>,
}

/// What a reader does whose next events were removed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Removed {
    /// It goes on with the oldest events there are.
    Skip,
    /// It fails: who reads would not know otherwise.
    Refuse,
}

/// A table without a key when its reader began.
#[derive(Debug)]
pub(crate) struct First {
    pub(crate) ends: Positions,
    pub(crate) versions: Vec<SharedVersions>,
}

impl First {
    /// The rows of `stored` that a reader is to get.
    fn rows(&self, partition: PartitionId, stored: StoredBatch) -> Result<StoredBatch> {
        let end = position(&self.ends, partition);
        match self.versions.get(partition.value() as usize) {
            Some(versions) => versions::live(versions, stored, end),
            None => Ok(stored),
        }
    }
}

impl Reader {
    /// Of all partitions of a source, about `bytes_max` bytes at once; it goes on where events are removed.
    pub(crate) fn of(
        source: usize,
        relation: &Arc<Relation>,
        partitions: Arc<Partitions>,
        pipeline: &Pipeline,
        bytes_max: ByteSize,
    ) -> Self {
        Self {
            source,
            relation: Arc::clone(relation),
            partitions,
            projection: pipeline.projection(source).to_vec(),
            schema: relation.topic_schema(),
            rows_max: BATCH_ROWS_MAX,
            bytes_max,
            removed: Removed::Skip,
            first: None,
            only: None,
        }
    }

    /// The next events after `from`, about as many as the reader takes at once; `None` when there are none. Of several
    /// partitions, only rows are counted. Where the log starts later, because earlier events were removed, it goes on
    /// there, unless it must not; then there may be no rows, only new positions. None come after `limit`, which is where a step
    /// ended.
    ///
    /// # Errors
    /// When the log cannot be read; SE001.
    pub(crate) fn next(&self, from: &Positions, limit: Option<&Positions>) -> Result<Option<Input>> {
        let applied = self.partitions.applied();
        let views = self.views();
        self.check_start(&views, from)?;
        let stored = from_start(&views, from);
        let to: CutResult<Positions> = if views.len() == 1 {
            let ends = |(id, view): (&PartitionId, &Arc<PartitionView>)| {
                let at = position(&stored, *id);
                let limit = at.plus(RowCount::of(self.rows_max));
                Ok((*id, view.offset_end_at(applied)?.min(limit).max(at)))
            };
            views.iter().map(ends).collect()
        } else {
            cut(&views, &stored, applied, self.rows_target(&views))
        };
        let mut to = to.map_err(|error| read_error(&self.relation.name, error))?;
        limit.into_iter().for_each(|limit| stop_at(&mut to, limit));
        if views.keys().all(|id| position(&to, *id) <= position(from, *id)) {
            return Ok(None);
        }
        self.read(&views, from, to, self.bytes_max).map(Some)
    }

    /// About how many rows have the bytes that are taken at once.
    pub(super) fn rows_target(&self, views: &Views) -> u64 {
        let (rows, bytes) = views.values().fold((0, 0), |(rows, bytes), view| {
            let stored = view.offset_end().since(view.offset_start());
            let stored = view.rows().unwrap_or(stored);
            (rows + u128::from(stored.value()), bytes + u128::from(view.bytes().value()))
        });
        let fitting = rows * u128::from(self.bytes_max.value()) / bytes.max(1);
        u64::try_from(fitting).unwrap_or(u64::MAX).clamp(1, self.rows_max as u64)
    }

    /// Whether all events after `from` are there, or need not be.
    ///
    /// # Errors
    /// SE001.
    pub(crate) fn check_removed(&self, from: &Positions) -> Result<()> {
        self.check_start(&self.views(), from)
    }

    fn check_start(&self, views: &Views, from: &Positions) -> Result<()> {
        if self.removed == Removed::Skip {
            return Ok(());
        }
        let removed = |(id, view): (&PartitionId, &Arc<PartitionView>)| {
            // A partition that was added has no position yet: all of it is new.
            let at = from.get(id).copied().filter(|at| *at < view.offset_start())?;
            let message = format!("events of \"{}\" were removed before they were read", self.relation.name);
            let (first, last) = (at, view.offset_start().before());
            Some(
                SqlError::new(SqlState::OffsetBelowLogStart, message)
                    .detail(format!("offsets {first} to {last} of partition {id}, by its retention or TRUNCATE"))
                    .hint("subscribe again; with auto_offset_reset = 'earliest' from the oldest event that is left, and going on where events are removed"),
            )
        };
        views.iter().find_map(removed).map_or(Ok(()), Err)
    }

    /// The events from `from` to `to`, as one step had them.
    ///
    /// # Errors
    /// When the log cannot be read.
    pub(crate) fn between(&self, from: &Positions, to: &Positions) -> Result<Input> {
        let views = self.views();
        let to = views.keys().map(|id| (*id, position(to, *id).max(position(from, *id)))).collect();
        self.read(&views, from, to, ByteSize::new(u64::MAX))
    }

    /// Who reads went on from `from` to `to` and does not come back.
    pub(crate) fn pass(&self, from: &Positions, to: &Positions) {
        self.views().iter().for_each(|(id, view)| view.pass(position(from, *id), position(to, *id)));
    }

    /// The number of events after `from`, or about as many.
    pub(crate) fn behind(&self, from: &Positions) -> RowCount {
        let applied = self.partitions.applied();
        let views = self.views();
        let from = from_start(&views, from);
        let end = |view: &PartitionView| view.offset_end_at(applied).unwrap_or(view.offset_end());
        let rows = views.iter().map(|(id, view)| end(view).since(position(&from, *id)));
        rows.fold(RowCount::ZERO, RowCount::plus)
    }

    /// Something to wait for new events with; made before `next`, it misses none.
    pub(crate) fn waiting(&self) -> Waiting {
        let partitions = self.partitions.topic(self.relation.id);
        Waiting { ends: partitions.iter().flat_map(|all| all.iter()).map(|partition| partition.subscribe()).collect() }
    }

    /// The positions after everything committed by now.
    ///
    /// # Errors
    /// When the log cannot be read.
    pub(crate) fn ends(&self) -> Result<Positions> {
        self.ends_at(self.partitions.applied())
    }

    /// The positions after everything committed by an entry.
    ///
    /// # Errors
    /// When the log cannot be read.
    pub(crate) fn ends_at(&self, cut: EntryIndex) -> Result<Positions> {
        let views = self.views();
        let ends = views.iter().map(|(id, view)| Ok((*id, view.offset_end_at(cut)?)));
        ends.collect::<CutResult<Positions>>().map_err(|error| read_error(&self.relation.name, error))
    }

    /// The positions of the oldest events.
    pub(crate) fn starts(&self) -> Positions {
        self.views().iter().map(|(id, view)| (*id, view.offset_start())).collect()
    }

    /// The partitions there are now.
    pub(crate) fn ids(&self) -> Vec<PartitionId> {
        let partitions = self.partitions.topic(self.relation.id);
        partitions.iter().flat_map(|all| all.iter()).map(|partition| partition.id()).collect()
    }

    pub(super) fn views(&self) -> Views {
        // All there are now: they may have become more.
        let partitions = self.partitions.topic(self.relation.id);
        let partitions = partitions.iter().flat_map(|all| all.iter());
        let is_read =
            |partition: &&Arc<Partition>| self.only.as_ref().is_none_or(|only| only.contains(&partition.id()));
        partitions.filter(is_read).map(|partition| (partition.id(), partition.view())).collect()
    }

    fn read(&self, views: &Views, from: &Positions, to: Positions, bytes_max: ByteSize) -> Result<Input> {
        let split = if views.len() == 1 { Split::Batches(bytes_max) } else { Split::Entries };
        let Pieces { mut pieces, positions, rows } = self.pieces(views, from, to, split)?;
        // Stable: within an entry and a partition, offsets stay in order.
        pieces.sort_by_key(|(entry, batch)| (*entry, batch.partition));
        Ok(Input { batches: pieces.into_iter().map(|(_, batch)| batch).collect(), positions, rows })
    }

    /// The events from `from` to `to`, or less of them.
    pub(super) fn pieces(&self, views: &Views, from: &Positions, mut to: Positions, split: Split) -> Result<Pieces> {
        let mut pieces: Vec<(EntryIndex, InputBatch)> = Vec::new();
        let mut rows = RowCount::ZERO;
        let mut bytes = ByteSize::ZERO;
        for (id, view) in views {
            let request = ScanRequest {
                offsets: position(from, *id)..position(&to, *id),
                schema: Some(Arc::clone(&self.schema)),
                projection: Some(self.projection.clone()),
                ..ScanRequest::all()
            };
            for stored in view.scan(request) {
                let mut stored = stored.map_err(|error| read_error(&self.relation.name, error))?;
                let count = stored.batch.num_rows();
                if let Split::Batches(bytes_max) = split {
                    let left = bytes_max.value().saturating_sub(bytes.value());
                    stored = stored.slice(0, fitting(&stored.batch, left));
                }
                let (is_cut, end) = (stored.batch.num_rows() < count, stored.offset_end());
                let stored = match &self.first {
                    Some(first) => first.rows(*id, stored)?,
                    None => stored,
                };
                rows = rows.plus(RowCount::of(stored.batch.num_rows()));
                let whole = |stored: StoredBatch| InputBatch {
                    source: self.source,
                    partition: *id,
                    offset_start: stored.offset_start,
                    offsets: stored.offsets,
                    batch: stored.batch,
                };
                if let Split::Batches(bytes_max) = split {
                    bytes = bytes.plus(batch_bytes(&stored.batch));
                    pieces.push((EntryIndex::default(), whole(stored)));
                    // What is left of a batch that was cut comes next, also where its rows took less than their share.
                    if is_cut || bytes >= bytes_max {
                        to.insert(*id, end);
                        break;
                    }
                    continue;
                }
                let mut at = 0;
                for (entry, count) in stored.entries.iter() {
                    pieces.push((entry, whole(stored.slice(at, count.as_usize()))));
                    at += count.as_usize();
                }
            }
        }
        Ok(Pieces { pieces, positions: to, rows })
    }
}

/// How events are taken apart.
#[derive(Debug, Clone, Copy)]
pub(super) enum Split {
    /// As they are stored, about so many bytes of them.
    Batches(ByteSize),
    /// By the entries they came with.
    Entries,
}

/// Events with the entries they came with.
pub(super) struct Pieces {
    pub(super) pieces: Vec<(EntryIndex, InputBatch)>,
    /// Positions after them.
    pub(super) positions: Positions,
    /// Their number.
    pub(super) rows: RowCount,
}

/// The ends of the partitions that readers read.
#[derive(Debug)]
pub(crate) struct Waiting {
    pub(super) ends: Vec<watch::Receiver<Offset>>,
}

impl Waiting {
    /// Completes when any partition has grown since this was made, or since the last call.
    pub(crate) async fn changed(&mut self) {
        if self.ends.is_empty() {
            return std::future::pending().await;
        }
        let (result, ..) = select_all(self.ends.iter_mut().map(|end| Box::pin(end.changed()))).await;
        if result.is_err() {
            // A dropped partition does not grow; the catalog tells of it.
            std::future::pending::<()>().await;
        }
    }
}

/// How many rows of a batch have about `bytes` bytes; at least one.
fn fitting(batch: &RecordBatch, bytes: u64) -> usize {
    let (rows, all) = (batch.num_rows(), batch_bytes(batch).value());
    if all <= bytes {
        return rows;
    }
    let fitting = rows as u128 * u128::from(bytes) / u128::from(all.max(1));
    usize::try_from(fitting).unwrap_or(rows).clamp(1, rows.max(1))
}

/// The positions of `from` in the events that are still stored.
pub(super) fn from_start(views: &Views, from: &Positions) -> Positions {
    views.iter().map(|(id, view)| (*id, position(from, *id).max(view.offset_start()))).collect()
}

pub(super) fn position(positions: &Positions, id: PartitionId) -> Offset {
    positions.get(&id).copied().unwrap_or(Offset::ZERO)
}

/// Takes `positions` back to `limit` where they are after it. Ends of steps stay ends of steps: each is where all partitions were
/// at some entry, or there is only one.
pub(super) fn stop_at(positions: &mut Positions, limit: &Positions) {
    positions.iter_mut().for_each(|(id, at)| *at = (*at).min(position(limit, *id)));
}

pub(super) type CutResult<T> = std::result::Result<T, StorageError>;

/// Positions at the latest entry up to `applied` that takes about `target` rows, and at least one entry.
fn cut(views: &Views, from: &Positions, applied: EntryIndex, target: u64) -> CutResult<Positions> {
    let all = [(views, from)];
    ends_of(views, from, cut_entry(&all, applied, target)?)
}

/// Where the partitions end at `entry`, and not before `from`.
pub(super) fn ends_of(views: &Views, from: &Positions, entry: EntryIndex) -> CutResult<Positions> {
    let end = |(id, view): (&PartitionId, &Arc<PartitionView>)| {
        Ok((*id, view.offset_end_at(entry)?.max(position(from, *id))))
    };
    views.iter().map(end).collect()
}

/// The latest entry up to `applied` with which all of `views` have about `target` rows after their positions, and at
/// least one entry.
pub(super) fn cut_entry(views: &[(&Views, &Positions)], applied: EntryIndex, target: u64) -> CutResult<EntryIndex> {
    let rows = |entry: EntryIndex| -> CutResult<u64> {
        let mut rows = 0;
        for (views, from) in views {
            let ends = ends_of(views, from, entry)?;
            rows += ends.iter().map(|(id, end)| end.since(position(from, *id)).value()).sum::<u64>();
        }
        Ok(rows)
    };
    if rows(applied)? <= target {
        return Ok(applied);
    }
    // `rows` grows with the entry: the first entry that reaches the target.
    let (mut low, mut high) = (0, applied.value());
    while low < high {
        let middle = low + (high - low) / 2;
        if rows(EntryIndex::new(middle))? >= target { high = middle } else { low = middle + 1 }
    }
    Ok(EntryIndex::new(low))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::tests::{SetClock, open, run, session};
    use crate::storage::FaultDisk;

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn steps_of_any_size_skip_no_row() {
        let engine = open(&FaultDisk::new(), Arc::<SetClock>::default()).await.unwrap();
        let mut session = session(&engine);
        run(&mut session, "CREATE STREAM s (v text)").await.unwrap();
        for rows in [7, 1, 12, 5] {
            let sql = format!("INSERT INTO s SELECT repeat('x', 3 * i + 1) FROM generate_series(1, {rows}) AS t(i)");
            run(&mut session, &sql).await.unwrap();
        }
        let relation = Arc::clone(engine.catalog().relation("s").unwrap());
        let (partitions, schema) = (engine.shard_of(&relation).unwrap().partitions(), relation.topic_schema());
        let (projection, rows_max) = (vec![0], 100);
        let mut reader = Reader {
            source: 0,
            relation,
            partitions,
            projection,
            schema,
            rows_max,
            bytes_max: ByteSize::ZERO,
            removed: Removed::Skip,
            first: None,
            only: None,
        };
        for bytes in (1..200).chain([250, 400, 1000, 100_000]) {
            reader.bytes_max = ByteSize::new(bytes);
            let (mut positions, mut offsets) = (reader.starts(), Vec::new());
            while let Some(input) = reader.next(&positions, None).unwrap() {
                for batch in &input.batches {
                    let first = batch.offset_start.value();
                    offsets.extend(first..first + batch.batch.num_rows() as u64);
                }
                positions = input.positions;
            }
            assert_eq!(offsets, (0..25).collect::<Vec<u64>>(), "{bytes} bytes at once");
        }
        drop(session);
        engine.shutdown().await;
    }
}
