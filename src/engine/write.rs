//! Rows on their way to partitions: event time, partition by key, and the append.
//!
//! Turns rows in a relation's columns into stored batches, one per partition, and hands them to the shard.
//! Leaves out parsing and casts (sql) and durability (replication). An error before the append means that
//! nothing was written.

use crate::engine::Engine;
use crate::replication::PartitionWrite;
use arrow::array::{
    Array, ArrayRef, AsArray, BooleanArray, Int32Array, Int64Array, RecordBatch, TimestampMicrosecondArray, UInt32Array,
};
use arrow::compute::take_record_batch;
use arrow::datatypes::{DataType, Int64Type, SchemaRef, TimestampMicrosecondType};
use millstream_catalog::model::{Offset, PartitionId, SqlState, Timestamp, TopicId};
use millstream_catalog::{Relation, SqlType};
use millstream_sql::SqlError;
use millstream_sql::bind::insert::InsertRows;
use millstream_sql::types::{ColumnEncoder, canonical_of};
use parking_lot::Mutex;
use std::collections::HashMap;
use std::sync::Arc;

/// Spreads batches without a key evenly over the partitions of their topic.
#[derive(Debug, Default)]
pub(crate) struct Spreader {
    next: Mutex<HashMap<TopicId, u32>>,
}

impl Spreader {
    fn next(&self, relation: &Relation) -> PartitionId {
        let mut next = self.next.lock();
        let counter = next.entry(relation.id).or_default();
        let partition = *counter % relation.options.partitions;
        *counter = counter.wrapping_add(1);
        PartitionId::new(partition)
    }
}

/// Rows of one statement, split by partition.
#[derive(Debug, Default)]
pub(crate) struct Routed {
    /// What is appended, one batch per partition that gets rows.
    pub parts: Vec<PartitionWrite>,
    /// For each part, which input rows went there, in order; `None` when all rows went to the only part.
    pub rows: Option<Vec<UInt32Array>>,
    /// Number of input rows.
    pub row_count: usize,
    /// The rows as stored, in input order, for `RETURNING`.
    pub stored: Option<RecordBatch>,
}

fn internal(error: impl std::fmt::Display) -> SqlError {
    SqlError::new(SqlState::InternalError, format!("rows cannot be formed: {error}"))
}

/// Adds event times to `rows` and splits them by partition.
///
/// # Errors
/// 23502 for a NULL event time, 22008 for one out of range.
pub(crate) fn route(
    engine: &Engine,
    relation: &Relation,
    rows: InsertRows,
    now: Timestamp,
) -> Result<Routed, SqlError> {
    let stored = stored_rows(relation, engine.stored_schema(relation), rows, now)?;
    route_stored(relation, stored, &engine.spreader)
}

/// Adds event times to `rows`, and splits them by the partitions they are to stay in.
///
/// # Errors
/// As [`route`].
pub(crate) fn route_to(
    engine: &Engine,
    relation: &Relation,
    (rows, places): (InsertRows, &[PartitionId]),
    now: Timestamp,
) -> Result<Routed, SqlError> {
    split(relation, stored_rows(relation, engine.stored_schema(relation), rows, now)?, places)
}

/// Rows that were accepted before: acknowledged, and not written.
///
/// # Errors
/// As [`route`].
pub(crate) fn repeated(
    engine: &Engine,
    relation: &Relation,
    rows: InsertRows,
    now: Timestamp,
) -> Result<Routed, SqlError> {
    let row_count = rows.batch.num_rows();
    let stored = stored_rows(relation, engine.stored_schema(relation), rows, now)?;
    Ok(Routed { row_count, stored: Some(stored).filter(|_| row_count > 0), ..Routed::default() })
}

/// Splits rows that already have the stored schema.
///
/// # Errors
/// When a key column cannot be encoded; none is known.
pub(crate) fn route_stored(relation: &Relation, stored: RecordBatch, spreader: &Spreader) -> Result<Routed, SqlError> {
    let row_count = stored.num_rows();
    if row_count == 0 {
        return Ok(Routed::default());
    }
    let key = relation.schema.key();
    let stored = with_equal_keys(&key, stored)?;
    let part = |partition, batch| PartitionWrite { topic: relation.id, partition, batch, guard: None };
    if relation.options.partitions == 1 {
        let parts = vec![part(PartitionId::new(0), stored.clone())];
        return Ok(Routed { parts, rows: None, row_count, stored: Some(stored) });
    }
    if key.is_empty() {
        let parts = vec![part(spreader.next(relation), stored.clone())];
        return Ok(Routed { parts, rows: None, row_count, stored: Some(stored) });
    }
    let encoders: Vec<ColumnEncoder> = key
        .iter()
        .map(|i| ColumnEncoder::new(stored.column(*i).as_ref(), &relation.schema.columns[*i].sql_type))
        .collect();
    let mut bytes = Vec::new();
    let mut spread = None;
    let place = |row: usize| match key_hash(&encoders, row, &mut bytes) {
        Some(hash) => PartitionId::new((hash & 0x7fff_ffff) % relation.options.partitions),
        None => *spread.get_or_insert_with(|| spreader.next(relation)),
    };
    let places: Vec<PartitionId> = (0..row_count).map(place).collect();
    split(relation, stored, &places)
}

/// Splits rows that already have the stored schema, each to its partition in `places`.
///
/// # Errors
/// When Arrow cannot take them apart; none is known.
pub(crate) fn split(relation: &Relation, stored: RecordBatch, places: &[PartitionId]) -> Result<Routed, SqlError> {
    let row_count = stored.num_rows();
    if row_count == 0 {
        return Ok(Routed::default());
    }
    let part = |partition, batch| PartitionWrite { topic: relation.id, partition, batch, guard: None };
    let mut by_partition: Vec<Vec<u32>> = vec![Vec::new(); relation.options.partitions as usize];
    for (row, partition) in (0..).zip(places) {
        by_partition.get_mut(partition.value() as usize).ok_or_else(|| internal("no such partition"))?.push(row);
    }
    let mut routed = Routed { row_count, ..Routed::default() };
    let mut rows = Vec::new();
    for (partition, indices) in by_partition.into_iter().enumerate().filter(|(_, rows)| !rows.is_empty()) {
        let indices = UInt32Array::from(indices);
        let batch = take_record_batch(&stored, &indices).map_err(internal)?;
        routed.parts.push(part(PartitionId::new(partition as u32), batch));
        rows.push(indices);
    }
    routed.rows = Some(rows);
    routed.stored = Some(stored);
    Ok(routed)
}

/// Gives equal keys the same bytes.
fn with_equal_keys(key: &[usize], stored: RecordBatch) -> Result<RecordBatch, SqlError> {
    let schema = stored.schema();
    let mut columns = stored.columns().to_vec();
    for i in key {
        if let Some(sql_type) = SqlType::of(schema.field(*i)) {
            columns[*i] = canonical_of(Arc::clone(&columns[*i]), &sql_type).map_err(SqlError::from)?;
        }
    }
    RecordBatch::try_new(schema, columns).map_err(internal)
}

/// Hash of a row's key in PostgreSQL's binary format, each value behind its length; `None` with a NULL in it.
fn key_hash(encoders: &[ColumnEncoder], row: usize, bytes: &mut Vec<u8>) -> Option<u32> {
    bytes.clear();
    for encoder in encoders {
        let at = bytes.len();
        bytes.extend_from_slice(&[0; 4]);
        if !encoder.binary(row, bytes) {
            return None;
        }
        let len = (bytes.len() - at - 4) as u32;
        bytes[at..at + 4].copy_from_slice(&len.to_le_bytes());
    }
    Some(murmur2(bytes))
}

/// MurmurHash2, 32 bits, with the seed Kafka's default partitioner uses.
///
/// Source: Austin Appleby, MurmurHash2; `org.apache.kafka.common.utils.Utils.murmur2`. Part of the on-disk
/// contract: it must never change, or equal keys would meet in different partitions.
fn murmur2(bytes: &[u8]) -> u32 {
    const M: u32 = 0x5bd1_e995;
    let mut hash = 0x9747_b28c_u32 ^ bytes.len() as u32;
    let mut words = bytes.chunks_exact(4);
    for word in &mut words {
        let mut k = u32::from_le_bytes([word[0], word[1], word[2], word[3]]).wrapping_mul(M);
        k ^= k >> 24;
        hash = hash.wrapping_mul(M) ^ k.wrapping_mul(M);
    }
    let rest = words.remainder();
    if !rest.is_empty() {
        for (i, byte) in rest.iter().enumerate() {
            hash ^= u32::from(*byte) << (8 * i);
        }
        hash = hash.wrapping_mul(M);
    }
    hash ^= hash >> 13;
    hash = hash.wrapping_mul(M);
    hash ^ (hash >> 15)
}

/// Appends `rowtime`, and `rowtombstone` where the relation has it, to the relation's columns.
fn stored_rows(
    relation: &Relation,
    schema: SchemaRef,
    rows: InsertRows,
    now: Timestamp,
) -> Result<RecordBatch, SqlError> {
    let count = rows.batch.num_rows();
    let rowtime = match (relation.timestamp, rows.rowtime) {
        (Some(column), _) => event_time(relation, column, rows.batch.column(column))?,
        (None, Some(rowtime)) => not_null(rowtime, "rowtime", relation)?,
        (None, None) => Arc::new(TimestampMicrosecondArray::from_value(now.micros(), count).with_timezone("UTC")),
    };
    let mut columns = rows.batch.columns().to_vec();
    columns.push(rowtime);
    if relation.has_tombstones() {
        columns.push(Arc::new(BooleanArray::from(vec![false; count])));
    }
    RecordBatch::try_new(schema, columns).map_err(internal)
}

pub(crate) fn not_null(array: ArrayRef, name: &str, relation: &Relation) -> Result<ArrayRef, SqlError> {
    match (0..array.len()).find(|row| array.is_null(*row)) {
        None => Ok(array),
        Some(row) => Err(SqlError::new(
            SqlState::NotNullViolation,
            format!("null event time in column \"{name}\" of relation \"{}\"", relation.name),
        )
        .detail(format!("row {} of the statement", row + 1))),
    }
}

fn event_time(relation: &Relation, column: usize, array: &ArrayRef) -> Result<ArrayRef, SqlError> {
    let name = relation.schema.columns[column].name.as_str();
    let array = not_null(Arc::clone(array), name, relation)?;
    let micros = match (&relation.schema.columns[column].sql_type, array.data_type()) {
        (_, DataType::Timestamp(_, _)) => array.as_primitive::<TimestampMicrosecondType>().clone().with_timezone("UTC"),
        (SqlType::BigInt, _) => {
            let millis = array.as_primitive::<Int64Type>();
            let micros: Option<Vec<i64>> = millis.values().iter().map(|ms| ms.checked_mul(1_000)).collect();
            let micros = micros.ok_or_else(|| {
                SqlError::new(
                    SqlState::DatetimeFieldOverflow,
                    format!("event time in column \"{name}\" is out of range"),
                )
            })?;
            TimestampMicrosecondArray::from(micros).with_timezone("UTC")
        }
        (other, _) => return Err(internal(format!("event time of type {other}"))),
    };
    Ok(Arc::new(micros))
}

impl Routed {
    /// Where each input row landed: partitions and offsets, in input order; NULL for rows that were accepted before.
    ///
    /// `bases` are the base offsets of `parts`, as the append gave them.
    pub(crate) fn places(&self, bases: &[Offset]) -> (ArrayRef, ArrayRef) {
        if bases.is_empty() {
            let (partitions, offsets) = (Int32Array::new_null(self.row_count), Int64Array::new_null(self.row_count));
            return (Arc::new(partitions), Arc::new(offsets));
        }
        let mut partitions = vec![0_i32; self.row_count];
        let mut offsets = vec![0_i64; self.row_count];
        for (i, (part, base)) in self.parts.iter().zip(bases).enumerate() {
            let mut place = |at: usize, nth: usize| {
                partitions[at] = part.partition.value() as i32;
                offsets[at] = (base.value() + nth as u64) as i64;
            };
            match &self.rows {
                None => (0..self.row_count).for_each(|row| place(row, row)),
                Some(rows) => rows[i].values().iter().enumerate().for_each(|(nth, at)| place(*at as usize, nth)),
            }
        }
        (Arc::new(Int32Array::from(partitions)), Arc::new(Int64Array::from(offsets)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Values from the test of `Utils.murmur2` in Apache Kafka (UtilsTest.testMurmur2).
    #[test]
    fn murmur2_equals_kafkas() {
        let cases: [(&[u8], i32); 6] = [
            (b"21", -973_932_308),
            (b"foobar", -790_332_482),
            (b"a-little-bit-long-string", -985_981_536),
            (b"a-little-bit-longer-string", -1_486_304_829),
            (b"lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8", -58_897_971),
            (b"abc", 479_470_107),
        ];
        for (bytes, hash) in cases {
            assert_eq!(murmur2(bytes) as i32, hash);
        }
    }
}
