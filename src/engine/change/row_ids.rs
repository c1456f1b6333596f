//! Rows of tables without a key: their ids, and the changes of rows that are not committed yet.
//!
//! A row's id is the offset of its first event, in its partition. A row of the transaction itself has none before COMMIT: until
//! then its id is below zero, −1 for the first row the transaction wrote to the table, −2 for the next one. COMMIT puts the
//! last form of such a row in the place of its first. Leaves out reading (`source`) and locks (`mod`). Pure.

use super::source::internal;
use crate::engine::Result;
use crate::replication::PartitionWrite;
use crate::storage::fit::Wanted;
use arrow::array::{Array, ArrayRef, AsArray, BooleanArray, Int64Array, RecordBatch};
use arrow::compute::interleave_record_batch;
use arrow::datatypes::{Int32Type, Int64Type};
use millstream_catalog::model::{PartitionId, TopicId};
use millstream_catalog::{Relation, Snapshot};
use std::collections::{BTreeSet, HashMap};
use std::hash::{BuildHasher, BuildHasherDefault, DefaultHasher};
use std::sync::Arc;

/// The ids of rows that a query found, of a table whose ids are in the column at `at`.
pub(super) fn ids_of(found: &RecordBatch, at: usize, rowoffset: usize) -> Int64Array {
    let (ids, offsets) = (found.column(at).as_primitive::<Int64Type>(), found.column(rowoffset));
    let offsets = offsets.as_primitive::<Int64Type>();
    ids.iter().zip(offsets.values()).map(|(id, offset)| Some(id.unwrap_or(*offset))).collect()
}

/// The partitions in a column `rowpartition`.
pub(super) fn partitions_of(column: &ArrayRef) -> Vec<PartitionId> {
    column.as_primitive::<Int32Type>().values().iter().map(|id| PartitionId::new(id.unsigned_abs())).collect()
}

/// `columns` of rows whose id columns are at `at`, as events that change the rows with these ids, or let them go.
pub(super) fn name_rows(columns: &mut [ArrayRef], at: usize, ids: &Int64Array, is_gone: bool) -> Result<()> {
    let gone = BooleanArray::from(vec![is_gone.then_some(true); ids.len()]);
    let [first, last] = columns.get_mut(at..at + 2).ok_or_else(|| internal("a table has no row ids"))? else {
        return Err(internal("a table has no row ids"));
    };
    (*first, *last) = (Arc::new(ids.clone()), Arc::new(gone));
    Ok(())
}

/// Hashes to lock the committed rows that `write` changes; nobody else knows of the others.
pub(super) fn locks(write: &PartitionWrite, at: usize) -> Vec<u64> {
    let hasher = BuildHasherDefault::<DefaultHasher>::default();
    let ids = write.batch.column(at).as_primitive::<Int64Type>();
    ids.values().iter().filter(|id| **id >= 0).map(|id| hasher.hash_one((write.partition, *id))).collect()
}

/// The rows of `write` as the relation has them now: columns may have been added since.
fn fitted(relation: &Relation, write: &PartitionWrite) -> Result<RecordBatch> {
    Wanted::new(&relation.topic_schema(), None).and_then(|wanted| wanted.of(&write.batch)).map_err(internal)
}

/// `writes` of a transaction as they are committed: rows it wrote and changed itself once, in their last form.
///
/// # Errors
/// When the rows cannot be put together; none is known.
pub(crate) fn settled(catalog: &Snapshot, writes: &[PartitionWrite]) -> Result<Vec<PartitionWrite>> {
    let topics: BTreeSet<TopicId> =
        writes.iter().filter(|write| write.guard.is_some()).map(|write| write.topic).collect();
    let mut settled = writes.to_vec();
    for topic in topics {
        let Some(relation) = catalog.relation_by_id(topic) else { continue };
        let Some(at) = relation.row_ids else { continue };
        let own: Vec<usize> = (0..writes.len()).filter(|write| writes[*write].topic == topic).collect();
        let batches = own.iter().map(|write| fitted(relation, &writes[*write])).collect::<Result<Vec<_>>>()?;
        for (write, batch) in own.iter().zip(settle(&batches, at)?) {
            settled[*write].batch = batch;
        }
    }
    settled.retain(|write| write.batch.num_rows() > 0);
    Ok(settled)
}

/// The batches, in each the last form of the rows that began in it; changes of committed rows stay where they are.
fn settle(batches: &[RecordBatch], at: usize) -> Result<Vec<RecordBatch>> {
    let ids = |batch: &RecordBatch| batch.column(at).as_primitive::<Int64Type>().clone();
    let own = |id: Option<i64>| id.filter(|id| *id < 0).map(|id| id.unsigned_abs() as usize - 1);
    let mut last: HashMap<usize, (usize, usize)> = HashMap::new();
    for (number, batch) in batches.iter().enumerate() {
        for (row, id) in ids(batch).iter().enumerate() {
            last.extend(own(id).map(|first| (first, (number, row))));
        }
    }
    if last.is_empty() {
        return Ok(batches.to_vec());
    }
    let is_gone = |(number, row): (usize, usize)| {
        let gone = batches[number].column(at + 1).as_boolean();
        gone.is_valid(row) && gone.value(row)
    };
    let mut sequence = 0;
    let mut settled = Vec::with_capacity(batches.len());
    let all: Vec<&RecordBatch> = batches.iter().collect();
    for (number, batch) in batches.iter().enumerate() {
        let (mut rows, mut names) = (Vec::new(), Vec::new());
        for (row, id) in ids(batch).iter().enumerate() {
            sequence += 1;
            if own(id).is_some() {
                continue;
            }
            let form = last.get(&(sequence - 1)).copied().unwrap_or((number, row));
            if id.is_some() || !is_gone(form) {
                rows.push(form);
                names.push(id);
            }
        }
        let taken = match rows.is_empty() {
            true => batch.slice(0, 0),
            false => interleave_record_batch(&all, &rows).map_err(internal)?,
        };
        let mut columns = taken.columns().to_vec();
        columns[at] = Arc::new(Int64Array::from(names));
        settled.push(RecordBatch::try_new(batch.schema(), columns).map_err(internal)?);
    }
    Ok(settled)
}
