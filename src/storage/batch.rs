//! Stored batches: rows of a partition with their offsets and the entries they came with.
//!
//! Owns [`StoredBatch`], what is derived from one (event-time range, bytes), and [`TopicStorage`]. Leaves
//! out how batches are kept: tail and segments. A crash does nothing to it.

use super::entries::EntryRuns;
use super::error::StorageError;
use super::fit::{Wanted, is_older};
use arrow::array::{Array, ArrayRef, AsArray, Int64Array, RecordBatch, TimestampMicrosecondArray};
use arrow::compute::{concat_batches, max, min};
use arrow::datatypes::{DataType, Schema, SchemaRef, TimeUnit};
use millstream_catalog::model::{ByteSize, Offset, RowCount, Timestamp, TopicId};
use millstream_catalog::relation::Compression;
use millstream_catalog::schema::ROWTIME;

/// What storage knows of a topic.
#[derive(Debug, Clone, PartialEq)]
pub struct TopicStorage {
    /// The topic.
    pub topic: TopicId,
    /// Its number of partitions, at least 1.
    pub partitions: u32,
    /// The schema of its stored batches.
    pub schema: SchemaRef,
    /// Compression of its sealed segments.
    pub compression: Compression,
}

/// Rows of a partition, in order: row `i` has offset `offset_start + i`, unless compaction left gaps.
#[derive(Debug, Clone)]
pub struct StoredBatch {
    /// Offset of the first row.
    pub offset_start: Offset,
    /// The offset of each row, ascending, where they do not simply follow each other.
    pub offsets: Option<Int64Array>,
    /// The rows, in the stored schema or in what was projected of it.
    pub batch: RecordBatch,
    /// Which Raft entry each run of rows came with; as many rows as `batch`.
    pub entries: EntryRuns,
}

impl StoredBatch {
    /// Number of rows.
    pub fn rows(&self) -> RowCount {
        RowCount::of(self.batch.num_rows())
    }

    /// The offset after the last row.
    pub fn offset_end(&self) -> Offset {
        match self.offsets.as_ref().and_then(|offsets| offsets.values().last()) {
            Some(last) => Offset::new(*last as u64).next(),
            None => self.offset_start.plus(self.rows()),
        }
    }

    /// The offset of each row.
    pub fn row_offsets(&self) -> Int64Array {
        let start = self.offset_start.value() as i64;
        let dense = || Int64Array::from_iter_values(start..start + self.batch.num_rows() as i64);
        self.offsets.clone().unwrap_or_else(dense)
    }

    /// Rows before `offset`.
    ///
    /// Of the rows 5, 6 and 9: none before 5, two before 7, 8 and 9, three before 10.
    pub fn rows_before(&self, offset: Offset) -> usize {
        match &self.offsets {
            Some(offsets) => offsets.values().partition_point(|row| (*row as u64) < offset.value()),
            None => offset.since(self.offset_start).as_usize().min(self.batch.num_rows()),
        }
    }

    /// `rows` rows from row `start`, without a copy; both must lie within the batch.
    pub fn slice(&self, start: usize, rows: usize) -> Self {
        if start == 0 && rows == self.batch.num_rows() {
            return self.clone();
        }
        let offsets = self.offsets.as_ref().map(|offsets| offsets.slice(start, rows));
        let first = offsets.as_ref().and_then(|offsets| offsets.values().first());
        Self {
            offset_start: first.map_or(self.offset_start.plus(RowCount::of(start)), |first| Offset::new(*first as u64)),
            offsets,
            batch: self.batch.slice(start, rows),
            entries: self.entries.slice(RowCount::of(start), RowCount::of(rows)),
        }
    }
}

/// Position of the event time in a stored schema: the last column named `rowtime`, if it is a timestamp.
pub(crate) fn rowtime_column(schema: &Schema) -> Option<usize> {
    let found = schema.fields().iter().rposition(|field| field.name() == ROWTIME)?;
    matches!(schema.field(found).data_type(), DataType::Timestamp(TimeUnit::Microsecond, _)).then_some(found)
}

/// The smallest and largest event time of some rows, both inclusive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RowtimeRange {
    /// The smallest.
    pub first: Timestamp,
    /// The largest.
    pub last: Timestamp,
}

impl RowtimeRange {
    /// The range of `batch`; `None` when it has no event time or no rows.
    pub(crate) fn of(batch: &RecordBatch) -> Option<Self> {
        let column = batch.column(rowtime_column(batch.schema_ref())?);
        let times: &TimestampMicrosecondArray = column.as_any().downcast_ref()?;
        if times.len() == 1 && times.null_count() == 0 {
            let only = Timestamp::from_micros(times.value(0));
            return Some(Self { first: only, last: only });
        }
        Some(Self { first: Timestamp::from_micros(min(times)?), last: Timestamp::from_micros(max(times)?) })
    }

    /// The range of both.
    pub(crate) fn union(one: Option<Self>, other: Option<Self>) -> Option<Self> {
        match (one, other) {
            (Some(a), Some(b)) => Some(Self { first: a.first.min(b.first), last: a.last.max(b.last) }),
            (a, b) => a.or(b),
        }
    }

    /// Whether some time may lie between the inclusive bounds.
    pub(crate) fn meets(self, bounds: (Option<Timestamp>, Option<Timestamp>)) -> bool {
        bounds.0.is_none_or(|low| self.last >= low) && bounds.1.is_none_or(|high| self.first <= high)
    }
}

/// Bytes that the rows of `batch` need by themselves; a slice counts its own rows only.
///
/// A function of the rows alone, so that replicas agree on when to seal.
pub fn batch_bytes(batch: &RecordBatch) -> ByteSize {
    ByteSize::of(batch.columns().iter().map(array_bytes).sum())
}

fn array_bytes(array: &ArrayRef) -> usize {
    let rows = array.len();
    let validity = if array.null_count() > 0 { rows.div_ceil(8) } else { 0 };
    let values = match array.data_type() {
        DataType::Null => 0,
        DataType::Boolean => rows.div_ceil(8),
        DataType::Utf8 => offsets_bytes(array.as_string::<i32>().value_offsets()),
        DataType::Binary => offsets_bytes(array.as_binary::<i32>().value_offsets()),
        DataType::FixedSizeBinary(width) => rows * usize::try_from(*width).unwrap_or(0),
        DataType::List(_) => {
            let list = array.as_list::<i32>();
            let (start, end) = ends(list.value_offsets());
            (rows + 1) * 4 + array_bytes(&list.values().slice(start, end - start))
        }
        DataType::Struct(_) => array.as_struct().columns().iter().map(array_bytes).sum(),
        DataType::Map(..) => {
            let map = array.as_map();
            let (start, end) = ends(map.value_offsets());
            let entries: ArrayRef = std::sync::Arc::new(map.entries().slice(start, end - start));
            (rows + 1) * 4 + array_bytes(&entries)
        }
        other => match other.primitive_width() {
            Some(width) => rows * width,
            None => array.to_data().get_slice_memory_size().unwrap_or_else(|_| array.get_buffer_memory_size()),
        },
    };
    validity + values
}

fn ends(offsets: &[i32]) -> (usize, usize) {
    let at = |offset: Option<&i32>| offset.and_then(|offset| usize::try_from(*offset).ok()).unwrap_or(0);
    (at(offsets.first()), at(offsets.last()))
}

fn offsets_bytes(offsets: &[i32]) -> usize {
    let (start, end) = ends(offsets);
    offsets.len() * 4 + (end - start)
}

/// `batch` with exactly `schema`, which it must have but for metadata and nullability, or but for columns added later.
///
/// # Errors
/// [`StorageError::Schema`] when columns or types differ, or a column that must not be null is.
pub(crate) fn with_schema(batch: RecordBatch, schema: &SchemaRef) -> Result<RecordBatch, StorageError> {
    if std::sync::Arc::ptr_eq(batch.schema_ref(), schema) {
        return Ok(batch);
    }
    if batch.num_columns() < schema.fields().len() && is_older(batch.schema_ref(), schema) {
        return Wanted::new(schema, None)?.of(&batch);
    }
    RecordBatch::try_new(schema.clone(), batch.columns().to_vec())
        .map_err(|e| StorageError::Schema { what: format!("rows do not have the topic's schema: {e}") })
}

/// One batch of all `parts`, in order.
///
/// # Errors
/// [`StorageError::Schema`] when the values of a column exceed what one array can address.
pub(crate) fn concat(schema: &SchemaRef, parts: &[RecordBatch]) -> Result<RecordBatch, StorageError> {
    match parts {
        [only] => Ok(only.clone()),
        _ => concat_batches(schema, parts)
            .map_err(|e| StorageError::Schema { what: format!("rows do not fit in one batch: {e}") }),
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{rows, schema};
    use super::*;
    use arrow::array::{BooleanArray, StringArray};
    use arrow::datatypes::Field;
    use std::sync::Arc;

    #[test]
    fn slices_count_their_own_rows_only() {
        let whole = rows(0..1_000);
        let parts: u64 = (0..1_000).map(|row| batch_bytes(&whole.slice(row, 1)).value()).sum();
        let all = batch_bytes(&whole).value();
        assert!(parts >= all && parts < all + 1_000 * 16, "{parts} of {all}");
        assert_eq!(batch_bytes(&rows(500..501)), batch_bytes(&whole.slice(500, 1)));
    }

    #[test]
    fn bytes_of_fixed_and_variable_columns_are_those_of_the_values() {
        let batch = |array: ArrayRef| RecordBatch::try_from_iter_with_nullable([("a", array, true)]).unwrap();
        assert_eq!(batch_bytes(&batch(Arc::new(Int64Array::from(vec![1; 9])))).value(), 72);
        assert_eq!(batch_bytes(&batch(Arc::new(Int64Array::from(vec![Some(1), None])))).value(), 17);
        assert_eq!(batch_bytes(&batch(Arc::new(BooleanArray::from(vec![true; 9])))).value(), 2);
        assert_eq!(batch_bytes(&batch(Arc::new(StringArray::from(vec!["ab", "c"])))).value(), 15);
    }

    #[test]
    fn event_times_meet_bounds_at_their_ends() {
        let range = RowtimeRange::of(&rows(2..5)).unwrap();
        let at = |micros: i64| Some(Timestamp::from_micros(micros));
        for (low, high, meets) in [
            (at(39), None, true),
            (at(40), None, true),
            (at(41), None, false),
            (None, at(19), false),
            (None, at(20), true),
            (None, at(21), true),
            (None, None, true),
            (at(25), at(26), true),
        ] {
            assert_eq!(range.meets((low, high)), meets, "{low:?} {high:?}");
        }
        assert_eq!(RowtimeRange::of(&rows(3..3)), None);
    }

    #[test]
    fn rows_of_another_schema_are_refused() {
        let other = RecordBatch::try_from_iter([("a", Arc::new(Int64Array::from(vec![1])) as ArrayRef)]).unwrap();
        assert!(matches!(with_schema(other, &schema()), Err(StorageError::Schema { .. })));
        let renamed: Vec<Field> = schema().fields().iter().map(|field| field.as_ref().clone()).collect();
        let equal = RecordBatch::try_new(Arc::new(Schema::new(renamed)), rows(0..3).columns().to_vec()).unwrap();
        assert!(Arc::ptr_eq(with_schema(equal, &schema()).unwrap().schema_ref(), &schema()));
    }
}
