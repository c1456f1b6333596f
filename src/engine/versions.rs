//! Which events of tables without a key are rows: those that no later event replaced, of rows that did not go.
//!
//! An event that changes a row names the offset of the row's first event, its id, and stands in the same partition. Only such
//! events are kept here, read from the log once, forward; a table whose rows never changed costs nothing. Every fact is for
//! ever: an event that replaced another does so whatever comes later, so readers of older cuts share it. Leaves out the rows.
//! In memory; after a crash the log is read again.

use crate::engine::held::Held;
use crate::engine::read_error;
use crate::engine::table::out_of_memory;
use crate::storage::{KeyValues, Partition, PartitionView, Parts, Pruner, ScanRequest, StoredBatch};
use arrow::array::{Array, AsArray, BooleanArray};
use arrow::buffer::BooleanBuffer;
use arrow::compute::{filter, filter_record_batch};
use arrow::datatypes::Int64Type;
use millstream_catalog::Relation;
use millstream_catalog::model::{EntryIndex, Offset};
use millstream_sql::SqlError;
use parking_lot::RwLock;
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

/// Bytes that one changed row takes, about.
pub(super) const CHANGE_BYTES: u64 = 96;

/// The changes of one partition.
#[derive(Debug, Default)]
pub(crate) struct Versions {
    start: Offset,
    position: Offset,
    /// Events that are no rows any more, and the event that replaced each; an event by which a row goes replaces itself.
    replaced: BTreeMap<u64, u64>,
    /// The last event of each row that changed.
    last: HashMap<u64, u64>,
}

/// The changes of one partition, shared by those who read it.
pub(crate) type SharedVersions = Arc<RwLock<Versions>>;

/// Keeps the parts of a log that may have changes.
#[derive(Debug)]
struct Changed(String);

impl Pruner for Changed {
    fn keep(&self, parts: &Parts<'_>) -> Option<Vec<bool>> {
        let (rows, nulls) = (parts.rows(), parts.nulls(&self.0)?);
        Some((0..parts.len()).map(|part| nulls.is_null(part) || nulls.value(part) < rows.value(part)).collect())
    }

    fn keys(&self) -> &[KeyValues] {
        &[]
    }
}

impl Versions {
    /// Whether no row changed.
    pub(crate) fn is_empty(&self) -> bool {
        self.replaced.is_empty()
    }

    /// About the bytes it takes.
    fn bytes(&self) -> u64 {
        self.replaced.len() as u64 * CHANGE_BYTES
    }

    /// Brings `shared` to `cut`, counting it in `held`; replaces it where what it knows is of rows that are no longer there.
    ///
    /// # Errors
    /// When the log cannot be read; 53200 when the changes take too much memory.
    pub(super) fn catch_up(
        shared: &mut SharedVersions,
        held: &mut Held,
        (relation, partition): (&Relation, &Partition),
        cut: EntryIndex,
    ) -> Result<(), SqlError> {
        let view = partition.view();
        let is_old = {
            let known = shared.read();
            let has_missed = known.position < view.upkeep().tombstones_upto && known.position > known.start;
            known.start < view.offset_start() || has_missed
        };
        if is_old {
            // Whoever reads an older view keeps what was known.
            held.count(shared.read().bytes(), 0);
            let (start, position) = (view.offset_start(), view.offset_start());
            *shared = Arc::new(RwLock::new(Self { start, position, ..Self::default() }));
        }
        let end = view.state_end_at(cut).map_err(|error| read_error(&relation.name, error))?;
        let position = shared.read().position;
        if end <= position {
            return Ok(());
        }
        for stored in changes(relation, &view, position..end) {
            let stored = stored.map_err(|error| read_error(&relation.name, error))?;
            let (before, after) = {
                let mut known = shared.write();
                let before = known.bytes();
                changes_of(&stored).for_each(|(offset, id, is_gone)| known.take(offset, id, is_gone));
                known.position = stored.offset_end();
                (before, known.bytes())
            };
            held.count(before, after);
            if after > before && held.is_over() {
                return Err(out_of_memory(relation, held.bytes_max()));
            }
        }
        shared.write().position = end;
        Ok(())
    }

    fn take(&mut self, offset: u64, id: u64, is_gone: bool) {
        let before = self.last.insert(id, offset).unwrap_or(id);
        self.replaced.insert(before, offset);
        if is_gone {
            self.replaced.insert(offset, offset);
        }
    }

    /// The rows of `stored` that are there at `end`; `None` when all are.
    pub(crate) fn rows_at(&self, stored: &StoredBatch, end: Offset) -> Option<BooleanBuffer> {
        let range = stored.offset_start.value()..stored.offset_end().value();
        let mut gone = self.replaced.range(range).filter(|(_, by)| **by < end.value()).map(|(offset, _)| *offset);
        let mut next = Some(gone.next()?);
        let offsets = stored.row_offsets();
        Some(BooleanBuffer::collect_bool(offsets.len(), |row| {
            let offset = offsets.value(row) as u64;
            while next.is_some_and(|next| next < offset) {
                next = gone.next();
            }
            next != Some(offset)
        }))
    }
}

/// The rows of `stored` that are there at `end`.
///
/// # Errors
/// When Arrow cannot filter them; none is known.
pub(crate) fn live(versions: &SharedVersions, stored: StoredBatch, end: Offset) -> Result<StoredBatch, SqlError> {
    let Some(kept) = versions.read().rows_at(&stored, end) else { return Ok(stored) };
    let internal = |error: arrow::error::ArrowError| SqlError::internal(format!("rows cannot be filtered: {error}"));
    let entries = stored.entries.filter(&kept);
    let mask = BooleanArray::new(kept, None);
    let offsets = filter(&stored.row_offsets(), &mask).map_err(internal)?.as_primitive().clone();
    let offset_start = offsets.values().first().map_or(stored.offset_start, |first| Offset::new(*first as u64));
    let batch = filter_record_batch(&stored.batch, &mask).map_err(internal)?;
    Ok(StoredBatch { offset_start, offsets: Some(offsets), batch, entries })
}

/// The batches that may have changes: the offset of the row's first event, and whether it is gone.
fn changes(
    relation: &Relation,
    view: &PartitionView,
    offsets: std::ops::Range<Offset>,
) -> impl Iterator<Item = Result<StoredBatch, crate::storage::StorageError>> + use<> {
    let at = relation.row_ids.unwrap_or_default();
    let name = relation.schema.columns.get(at).map(|column| column.name.as_str().to_owned());
    view.scan(ScanRequest {
        offsets,
        schema: Some(relation.topic_schema()),
        projection: Some(vec![at, at + 1]),
        pruner: Some(Arc::new(Changed(name.unwrap_or_default()))),
        ..ScanRequest::all()
    })
}

/// Offset, id and end of each row that changed.
fn changes_of(stored: &StoredBatch) -> impl Iterator<Item = (u64, u64, bool)> + '_ {
    let (ids, gone) = (stored.batch.column(0).as_primitive::<Int64Type>(), stored.batch.column(1).as_boolean());
    let offsets = stored.row_offsets();
    let rows = (0..ids.len()).filter(|row| ids.is_valid(*row));
    rows.map(move |row| (offsets.value(row) as u64, ids.value(row) as u64, gone.is_valid(row) && gone.value(row)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::EntryRuns;
    use arrow::array::{ArrayRef, Int64Array, RecordBatch};
    use millstream_catalog::model::RowCount;

    fn stored(offsets: std::ops::Range<u64>) -> StoredBatch {
        let values: ArrayRef = Arc::new(Int64Array::from_iter_values(offsets.clone().map(|offset| offset as i64)));
        let rows = RowCount::new(offsets.end - offsets.start);
        StoredBatch {
            offset_start: Offset::new(offsets.start),
            offsets: None,
            batch: RecordBatch::try_from_iter([("v", values)]).unwrap(),
            entries: EntryRuns::of(EntryIndex::new(1), rows),
        }
    }

    fn rows(versions: &Versions, range: std::ops::Range<u64>, end: u64) -> Vec<u64> {
        let shared = Arc::new(RwLock::new(Versions {
            replaced: versions.replaced.clone(),
            last: versions.last.clone(),
            ..Versions::default()
        }));
        let live = live(&shared, stored(range), Offset::new(end)).unwrap();
        live.row_offsets().values().iter().map(|offset| *offset as u64).collect()
    }

    #[test]
    fn each_cut_sees_the_rows_of_its_time() {
        let mut versions = Versions::default();
        assert_eq!(rows(&versions, 0..3, 3), [0, 1, 2]);
        // 0, 1, 2 come; 3 is a new form of 1, 4 one of that; by 5 row 0 goes, by 6 row 1.
        for (offset, id, is_gone) in [(3, 1, false), (4, 1, false), (5, 0, true), (6, 1, true)] {
            versions.take(offset, id, is_gone);
        }
        assert_eq!(rows(&versions, 0..3, 3), [0, 1, 2]);
        assert_eq!(rows(&versions, 0..4, 4), [0, 2, 3]);
        assert_eq!(rows(&versions, 0..5, 5), [0, 2, 4]);
        assert_eq!(rows(&versions, 0..6, 6), [2, 4]);
        assert_eq!(rows(&versions, 0..7, 7), [2]);
        assert_eq!((rows(&versions, 1..3, 7), rows(&versions, 4..6, 6)), (vec![2], vec![4]));
    }
}
