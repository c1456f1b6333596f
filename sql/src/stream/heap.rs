//! Whole rows by number, in columns: what operators keep of rows they must give again.
//!
//! Rows are copied into chunks of columns. Two chunks of about one size become one, so that a row that came alone is
//! copied again a logarithm of times, and a chunk most of whose rows are gone is copied without them. Leaves out how rows
//! are found (`store`). Lives in memory.

use super::delta::{arrow_error, sql_error};
use super::paged::Paged;
use crate::error::SqlError;
use arrow::array::new_null_array;
use arrow::array::{Array, ArrayRef, DynComparator, RecordBatch, UInt32Array, make_comparator, new_empty_array};
use arrow::compute::{self, SortOptions};
use arrow::datatypes::SchemaRef;
use datafusion::common::HashMap;
use datafusion::common::hash_map::Entry;
use datafusion::common::hash_utils::{RandomState, create_hashes};
use std::sync::Arc;

/// No row.
pub(super) const NONE: u32 = u32::MAX;
/// Rows of a chunk that is not put together with others any more.
const CHUNK_ROWS: usize = 1 << CLASSES;
/// Sizes of those that are, by powers of two.
const CLASSES: usize = 14;
/// Memory of a chunk that is not put together with others any more either.
const CHUNK_BYTES: usize = 4 << 20;

/// Where a row is.
#[derive(Debug, Clone, Copy)]
struct Spot {
    chunk: u32,
    at: u32,
}

#[derive(Debug)]
struct Chunk {
    columns: Vec<ArrayRef>,
    /// The number of each row; of one that is gone, [`NONE`].
    ids: Vec<u32>,
    live: usize,
    bytes: usize,
}

impl Chunk {
    fn new(columns: Vec<ArrayRef>, ids: Vec<u32>) -> Self {
        let bytes = columns.iter().map(|column| column.get_array_memory_size()).sum::<usize>() + ids.len() * 4;
        Self { columns, live: ids.len(), ids, bytes }
    }

    /// The rows that are there, and their numbers.
    fn living(self) -> Result<(Vec<ArrayRef>, Vec<u32>), SqlError> {
        if self.live == self.ids.len() {
            return Ok((self.columns, self.ids));
        }
        let places = self.ids.iter().enumerate().filter(|(_, id)| **id != NONE).map(|(at, _)| at as u32);
        let places = UInt32Array::from_iter_values(places);
        Ok((taken(&self.columns, &places)?, self.ids.into_iter().filter(|id| *id != NONE).collect()))
    }
}

/// Rows of one schema.
#[derive(Debug)]
pub(super) struct Heap {
    schema: SchemaRef,
    chunks: Vec<Option<Chunk>>,
    /// Places in `chunks` without one.
    spare: Vec<u32>,
    /// The chunk of each size that another is put to; [`NONE`] without one.
    open: [u32; CLASSES],
    /// By the number of the row.
    spots: Paged<Spot>,
    /// Numbers without a row.
    free: Vec<u32>,
    bytes: usize,
}

impl Heap {
    /// No rows yet.
    pub(super) fn new(schema: SchemaRef) -> Self {
        let (chunks, spare, free) = (Vec::new(), Vec::new(), Vec::new());
        Self { schema, chunks, spare, open: [NONE; CLASSES], spots: Paged::new(), free, bytes: 0 }
    }

    pub(super) fn schema(&self) -> &SchemaRef {
        &self.schema
    }

    /// Copies the rows at `picked`; gives their numbers, in that order.
    pub(super) fn insert(&mut self, batch: &RecordBatch, picked: &[u32]) -> Result<Vec<u32>, SqlError> {
        let mut ids = Vec::with_capacity(picked.len());
        for picked in picked.chunks(CHUNK_ROWS) {
            let own: Vec<u32> = picked.iter().map(|_| self.number()).collect();
            ids.extend_from_slice(&own);
            let columns = taken(batch.columns(), &UInt32Array::from(picked.to_vec()))?;
            self.put(columns, own)?;
        }
        Ok(ids)
    }

    fn number(&mut self) -> u32 {
        self.free.pop().unwrap_or_else(|| {
            self.spots.push(Spot { chunk: NONE, at: 0 });
            self.spots.len() as u32 - 1
        })
    }

    /// Keeps rows, at least one, with those of a chunk of their number.
    fn put(&mut self, mut columns: Vec<ArrayRef>, mut ids: Vec<u32>) -> Result<(), SqlError> {
        loop {
            let chunk = Chunk::new(columns, ids);
            let class = if chunk.bytes < CHUNK_BYTES { chunk.ids.len().ilog2() as usize } else { CLASSES };
            let other = self.open.get(class).copied().unwrap_or(NONE);
            let Some(other) = self.remove(other) else {
                let number = self.place(chunk);
                if let Some(open) = self.open.get_mut(class) {
                    *open = number;
                }
                return Ok(());
            };
            (columns, ids) = (chunk.columns, chunk.ids);
            let (more, mut all) = other.living()?;
            all.append(&mut ids);
            let both = more.iter().zip(&columns).map(|(one, other)| compute::concat(&[one, other]));
            (columns, ids) = (both.collect::<Result<_, _>>().map_err(arrow_error)?, all);
        }
    }

    fn place(&mut self, chunk: Chunk) -> u32 {
        let number = self.spare.pop().unwrap_or_else(|| {
            self.chunks.push(None);
            self.chunks.len() as u32 - 1
        });
        for (at, id) in chunk.ids.iter().enumerate() {
            if let Some(spot) = self.spots.get_mut(*id) {
                *spot = Spot { chunk: number, at: at as u32 };
            }
        }
        self.bytes += chunk.bytes;
        self.chunks[number as usize] = Some(chunk);
        number
    }

    fn remove(&mut self, number: u32) -> Option<Chunk> {
        let chunk = self.chunks.get_mut(number as usize)?.take()?;
        self.bytes -= chunk.bytes;
        self.spare.push(number);
        if let Some(open) = self.open.iter_mut().find(|open| **open == number) {
            *open = NONE;
        }
        Some(chunk)
    }

    fn chunk(&self, id: u32) -> Option<(u32, &Chunk, usize)> {
        let spot = self.spots.get(id)?;
        let chunk = self.chunks.get(spot.chunk as usize)?.as_ref()?;
        Some((spot.chunk, chunk, spot.at as usize))
    }

    /// Lets go of rows; their numbers are given again.
    pub(super) fn free(&mut self, ids: &[u32]) -> Result<(), SqlError> {
        let mut touched = Vec::new();
        for id in ids {
            let Some(spot) = self.spots.get_mut(*id) else { continue };
            let spot = std::mem::replace(spot, Spot { chunk: NONE, at: 0 });
            let Some(Some(chunk)) = self.chunks.get_mut(spot.chunk as usize) else { continue };
            chunk.ids[spot.at as usize] = NONE;
            chunk.live -= 1;
            self.free.push(*id);
            if touched.last() != Some(&spot.chunk) {
                touched.push(spot.chunk);
            }
        }
        touched.sort_unstable();
        touched.dedup();
        for number in touched {
            let is_sparse = |chunk: &Chunk| chunk.live * 2 < chunk.ids.len() || chunk.live == 0;
            if !self.chunks[number as usize].as_ref().is_some_and(is_sparse) {
                continue;
            }
            let Some(chunk) = self.remove(number).filter(|chunk| chunk.live > 0) else { continue };
            let (columns, ids) = chunk.living()?;
            self.put(columns, ids)?;
        }
        Ok(())
    }

    /// The columns at `which` of the rows `ids`, one after the other; of [`NONE`], NULLs.
    ///
    /// # Errors
    /// When text of all of them is longer than a column may be.
    pub(super) fn columns(&self, ids: &[u32], which: impl Iterator<Item = usize>) -> Result<Vec<ArrayRef>, SqlError> {
        let mut used: Vec<Option<&Chunk>> = Vec::new();
        let mut known: HashMap<u32, usize> = HashMap::new();
        let mut last = None;
        let mut places = Vec::with_capacity(ids.len());
        for id in ids {
            let (number, chunk, at) =
                self.chunk(*id).map_or((NONE, None, 0), |(number, chunk, at)| (number, Some(chunk), at));
            let index = match last {
                Some((before, index)) if before == number => index,
                _ => *known.entry(number).or_insert_with(|| {
                    used.push(chunk);
                    used.len() - 1
                }),
            };
            last = Some((number, index));
            places.push((index, at));
        }
        let columns = which.map(|at| {
            let data_type = self.schema.field(at).data_type();
            if ids.is_empty() {
                return Ok(new_empty_array(data_type));
            }
            let null = new_null_array(data_type, 1);
            let arrays = used.iter().map(|chunk| chunk.map_or(&null, |chunk| &chunk.columns[at]).as_ref());
            compute::interleave(&arrays.collect::<Vec<&dyn Array>>(), &places).map_err(arrow_error)
        });
        columns.collect()
    }

    /// All columns of the rows `ids`.
    ///
    /// # Errors
    /// As [`Heap::columns`].
    pub(super) fn rows(&self, ids: &[u32]) -> Result<RecordBatch, SqlError> {
        let columns = self.columns(ids, 0..self.schema.fields().len())?;
        let options = arrow::array::RecordBatchOptions::new().with_row_count(Some(ids.len()));
        RecordBatch::try_new_with_options(Arc::clone(&self.schema), columns, &options).map_err(arrow_error)
    }

    /// Whether row `id` has the values of a row that is looked for.
    pub(super) fn is_same(&self, id: u32, wanted: &mut Wanted<'_>, row: usize) -> Result<bool, SqlError> {
        let Some((number, chunk, at)) = self.chunk(id) else { return Ok(false) };
        let comparators = match wanted.comparators.entry(number) {
            Entry::Occupied(found) => found.into_mut(),
            Entry::Vacant(vacant) => {
                let pairs = chunk.columns.iter().zip(wanted.batch.columns());
                let comparators = pairs.map(|(own, other)| make_comparator(own, other, SortOptions::default()));
                vacant.insert(comparators.collect::<Result<_, _>>().map_err(arrow_error)?)
            }
        };
        Ok(comparators.iter().all(|compare| compare(at, row).is_eq()))
    }

    /// Memory of the rows, about.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }
}

/// Rows that are looked for in a heap that does not change meanwhile.
pub(super) struct Wanted<'a> {
    batch: &'a RecordBatch,
    /// By chunk, those of each column.
    comparators: HashMap<u32, Vec<DynComparator>>,
}

impl<'a> Wanted<'a> {
    pub(super) fn new(batch: &'a RecordBatch) -> Self {
        Self { batch, comparators: HashMap::new() }
    }
}

/// The hash of each row: rows of the same values have the same. Another build may give others.
pub(super) fn hashes(batch: &RecordBatch) -> Result<Vec<u64>, SqlError> {
    let mut hashes = vec![0; batch.num_rows()];
    create_hashes(batch.columns(), &RandomState::default(), &mut hashes).map_err(sql_error)?;
    Ok(hashes)
}

fn taken(columns: &[ArrayRef], places: &UInt32Array) -> Result<Vec<ArrayRef>, SqlError> {
    let columns = columns.iter().map(|column| compute::take(column, places, None));
    columns.collect::<Result<_, _>>().map_err(arrow_error)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stream::tests::Random;
    use arrow::array::{AsArray, Int64Array, StringArray};
    use arrow::datatypes::{DataType, Field, Int64Type, Schema};
    use std::collections::BTreeMap;

    fn batch(values: &[i64]) -> RecordBatch {
        let texts = values.iter().map(|value| (value % 3 != 0).then(|| format!("text {value}")));
        let columns: Vec<ArrayRef> =
            vec![Arc::new(Int64Array::from(values.to_vec())), Arc::new(texts.collect::<StringArray>())];
        RecordBatch::try_new(schema(), columns).unwrap()
    }

    fn schema() -> SchemaRef {
        let field = |name: &str, data_type| Field::new(name, data_type, true);
        Arc::new(Schema::new(vec![field("a", DataType::Int64), field("b", DataType::Utf8)]))
    }

    #[test]
    fn rows_keep_their_values_while_others_come_and_go() {
        for seed in 0..20 {
            let mut random = Random::new(seed);
            let (mut heap, mut rows, mut next) = (Heap::new(schema()), BTreeMap::<u32, i64>::new(), 0);
            let most = [3, 40, 700][seed as usize % 3];
            for _ in 0..200 {
                let values: Vec<i64> = (0..=random.below(most) as i64).map(|at| next + at).collect();
                next += values.len() as i64;
                let picked: Vec<u32> = (0..values.len() as u32).filter(|_| random.below(4) > 0).collect();
                for (id, at) in heap.insert(&batch(&values), &picked).unwrap().into_iter().zip(&picked) {
                    assert_eq!(rows.insert(id, values[*at as usize]), None, "a number is given twice");
                }
                let share = random.below(3);
                let gone: Vec<u32> = rows.keys().copied().filter(|_| random.below(3) < share).collect();
                heap.free(&gone).unwrap();
                rows.retain(|id, _| !gone.contains(id));
                let ids: Vec<u32> = rows.keys().rev().copied().chain([NONE]).collect();
                let columns = heap.columns(&ids, [1, 0].into_iter()).unwrap();
                let values: Vec<i64> = rows.values().rev().copied().collect();
                assert_eq!(&columns[0].slice(0, values.len()), batch(&values).column(1));
                assert_eq!(columns[1].slice(0, values.len()).as_primitive::<Int64Type>().values(), &values);
                assert!(columns[0].is_null(values.len()) && columns[1].is_null(values.len()));
                // About a chunk of each size, and no more than twice the rows.
                let (all, live): (usize, usize) = heap
                    .chunks
                    .iter()
                    .flatten()
                    .fold((0, 0), |sum, chunk| (sum.0 + chunk.ids.len(), sum.1 + chunk.live));
                assert!(all <= 2 * live && live == rows.len(), "{all} kept for {live}");
                assert!(heap.chunks.iter().flatten().count() <= CLASSES + 2 * rows.len() / CHUNK_ROWS);
            }
            heap.free(&rows.keys().copied().collect::<Vec<_>>()).unwrap();
            assert_eq!(heap.bytes(), 0);
        }
    }

    #[test]
    fn rows_are_the_same_by_their_values() {
        let mut heap = Heap::new(schema());
        let ids = heap.insert(&batch(&[1, 2, 3]), &[0, 1, 2]).unwrap();
        let wanted = batch(&[2, 3, 4]);
        let mut wanted = Wanted::new(&wanted);
        let same: Vec<bool> = (0..3).map(|row| heap.is_same(ids[1], &mut wanted, row).unwrap()).collect();
        assert_eq!(same, [true, false, false]);
        assert!(heap.is_same(ids[2], &mut wanted, 1).unwrap());
        let (one, other) = (hashes(&batch(&[3, 4])).unwrap(), hashes(&batch(&[5, 3])).unwrap());
        assert!(one[0] == other[1] && one[1] != other[0]);
    }
}
