//! Rows for the tests of this folder: every value of a row follows from its number.
//!
//! Leaves out anything a product build needs. A crash is what the tests make of it.

use super::batch::{StoredBatch, TopicStorage};
use super::tail::TailBatch;
use arrow::array::{ArrayRef, AsArray, Int64Array, ListArray, RecordBatch, StringArray, TimestampMicrosecondArray};
use arrow::datatypes::{DataType, Field, Int32Type, Int64Type, Schema, SchemaRef, TimeUnit, TimestampMicrosecondType};
use millstream_catalog::model::{EntryIndex, Offset, TopicId};
use millstream_catalog::relation::Compression;
use millstream_catalog::schema::KEY_METADATA;
use std::collections::HashMap;
use std::ops::Range;
use std::sync::{Arc, LazyLock};

static SCHEMA: LazyLock<SchemaRef> = LazyLock::new(|| {
    let fields = vec![
        Field::new("id", DataType::Int64, false),
        Field::new("name", DataType::Utf8, true),
        Field::new("items", DataType::List(Arc::new(Field::new("item", DataType::Int32, true))), true),
        Field::new("rowtime", DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into())), false),
    ];
    Arc::new(Schema::new_with_metadata(fields, HashMap::from([(KEY_METADATA.to_owned(), "0,1".to_owned())])))
});

/// `id bigint, name text, items integer[], rowtime`, the first two the key.
pub(crate) fn schema() -> SchemaRef {
    SCHEMA.clone()
}

/// A topic with that schema.
pub(crate) fn topic(id: u64, partitions: u32, compression: Compression) -> TopicStorage {
    TopicStorage { topic: TopicId::new(id), partitions, schema: schema(), compression }
}

/// Rows with these numbers; `rowtime` is ten times the number.
pub(crate) fn rows(numbers: Range<u64>) -> RecordBatch {
    let names = numbers.clone().map(|n| (!n.is_multiple_of(5)).then(|| format!("name {n}")));
    let items = numbers.clone().map(|n| (n % 3 != 0).then(|| (0..n % 4).map(|i| Some(i as i32)).collect::<Vec<_>>()));
    let times = numbers.clone().map(|n| n as i64 * 10);
    let columns: Vec<ArrayRef> = vec![
        Arc::new(Int64Array::from_iter_values(numbers.map(|n| n as i64))),
        Arc::new(names.collect::<StringArray>()),
        Arc::new(ListArray::from_iter_primitive::<Int32Type, _, _>(items)),
        Arc::new(TimestampMicrosecondArray::from_iter_values(times).with_timezone("UTC")),
    ];
    RecordBatch::try_new(schema(), columns).unwrap()
}

/// The numbers of rows in `batch`, after checking that every other value is as [`rows`] makes it.
pub(crate) fn numbers(batch: &RecordBatch) -> Vec<u64> {
    let ids = batch.column(0).as_primitive::<Int64Type>();
    let times = batch.column(3).as_primitive::<TimestampMicrosecondType>();
    let numbers: Vec<u64> = ids.values().iter().map(|id| *id as u64).collect();
    for (row, number) in numbers.iter().enumerate() {
        let expected = rows(*number..*number + 1);
        assert_eq!(times.value(row), *number as i64 * 10);
        if numbers.len() < 2_000 {
            assert_eq!(batch.slice(row, 1), expected);
        }
    }
    numbers
}

/// The numbers in batches that must follow each other from `start`.
pub(crate) fn dense(start: u64, batches: impl IntoIterator<Item = StoredBatch>) -> Vec<u64> {
    let mut next = Offset::new(start);
    let mut all = Vec::new();
    for stored in batches {
        assert_eq!(stored.offset_start, next);
        assert_eq!(stored.entries.rows(), stored.rows());
        next = stored.offset_end();
        all.extend(numbers(&stored.batch));
    }
    all
}

/// A batch in memory whose row numbers are its offsets.
pub(crate) fn tail_batch(offsets: Range<u64>, entry: u64) -> TailBatch {
    TailBatch::new(Offset::new(offsets.start), rows(offsets), EntryIndex::new(entry))
}
