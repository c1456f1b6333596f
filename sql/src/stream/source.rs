//! The sources of a continuous query: how the events of a step become the rows its operators see.
//!
//! Owns the columns that are read, pseudo-columns among them, and the numbering of a step's events over all sources.
//! Leaves out reading the log (engine). Stateless: a crash loses nothing.

use super::delta::{Delta, Origin, Run, Weights, arrow_error, downcast};
use super::pipeline::{InputBatch, StepInput};
use crate::error::SqlError;
use arrow::array::{
    Array, ArrayRef, BooleanArray, Int32Array, Int64Array, RecordBatch, RecordBatchOptions, TimestampMicrosecondArray,
    UInt32Array,
};
use arrow::compute;
use arrow::datatypes::SchemaRef;
use millstream_catalog::model::{Name, Offset};
use std::sync::Arc;

/// A column a source gives to the operators.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum SourceColumn {
    /// The input's column at this position of the projection.
    Input(usize),
    /// The id of the row, from the input's column at this position: the event's offset where that is NULL.
    RowId(usize),
    /// The partition, `Int32`.
    RowPartition,
    /// The offset, `Int64`.
    RowOffset,
}

/// How the events of one source become rows.
#[derive(Debug)]
pub(crate) struct SourceReader {
    /// The relation's name.
    pub(crate) name: Name,
    /// Positions in the stored schema that are read.
    pub(crate) projection: Vec<usize>,
    /// The stored schema at those positions.
    pub(crate) input: SchemaRef,
    /// Position of `rowtime` in the projection.
    pub(crate) rowtime: usize,
    /// Position of `rowtombstone` in the projection, or of what stands for it, for tables whose rows change.
    pub(crate) rowtombstone: Option<usize>,
    /// Whether operators keep its current rows: it is a table, and not only its new forms are passed on.
    pub(crate) keeps_rows: bool,
    /// The columns that operators see.
    pub(crate) columns: Vec<SourceColumn>,
    /// Their schema.
    pub(crate) schema: SchemaRef,
}

/// The events of a step.
pub(super) struct Read {
    /// In total order.
    pub(super) runs: Vec<Run>,
    /// The event time of each.
    pub(super) rowtime: Vec<i64>,
    /// The rows of each source.
    pub(super) deltas: Vec<Delta>,
}

/// The events of `input` as rows of each of the sources.
pub(super) fn read(readers: &[SourceReader], input: &StepInput<'_>) -> Result<Read, SqlError> {
    let mut runs: Vec<Run> = Vec::with_capacity(input.batches.len());
    let mut starts = Vec::with_capacity(input.batches.len());
    let mut rowtime: Vec<i64> = Vec::new();
    for batch in &input.batches {
        let reader = readers.get(batch.source).filter(|reader| reader.projection.len() == batch.batch.num_columns());
        let reader = reader.ok_or_else(|| SqlError::internal("a batch is not of the query's source"))?;
        push_runs(&mut runs, batch, rowtime.len());
        starts.push(rowtime.len());
        let times: TimestampMicrosecondArray = downcast(batch.batch.column(reader.rowtime))?;
        rowtime.extend_from_slice(times.values());
    }
    let mut deltas = Vec::with_capacity(readers.len());
    for (source, reader) in readers.iter().enumerate() {
        let own = input.batches.iter().zip(&starts).filter(|(batch, _)| batch.source == source);
        let (batches, starts): (Vec<&InputBatch>, Vec<usize>) = own.map(|(batch, start)| (batch, *start)).unzip();
        let mut delta = reader.rows(&batches)?;
        if readers.len() > 1 {
            let numbers = batches.iter().zip(starts).flat_map(|(batch, start)| start..start + batch.batch.num_rows());
            delta.rows = Some(UInt32Array::from_iter_values(numbers.map(|row| row as u32)));
        }
        deltas.push(delta);
    }
    Ok(Read { runs, rowtime, deltas })
}

impl SourceReader {
    /// For the fingerprint.
    pub(crate) fn text(&self) -> String {
        format!("{:?} {:?}", self.projection, self.columns)
    }

    /// One delta of the events of `batches`.
    fn rows(&self, batches: &[&InputBatch]) -> Result<Delta, SqlError> {
        let rows = batches.iter().map(|batch| batch.batch.num_rows()).sum();
        let inputs = self.gather(batches)?;
        let mut columns = Vec::with_capacity(self.columns.len());
        for column in &self.columns {
            columns.push(match column {
                SourceColumn::Input(index) => Arc::clone(&inputs[*index]),
                SourceColumn::RowId(index) => row_ids(&inputs[*index], &row_offset(batches, rows))?,
                SourceColumn::RowPartition => row_partition(batches, rows),
                SourceColumn::RowOffset => row_offset(batches, rows),
            });
        }
        let options = RecordBatchOptions::new().with_row_count(Some(rows));
        let batch = RecordBatch::try_new_with_options(Arc::clone(&self.schema), columns, &options);
        let rowtime: TimestampMicrosecondArray = downcast(&inputs[self.rowtime])?;
        let weights = match self.rowtombstone {
            None => Weights::Ones,
            Some(index) => tombstone_weights(&downcast(&inputs[index])?),
        };
        let origin = Arc::new(Origin::default());
        Ok(Delta { batch: batch.map_err(arrow_error)?, rowtime, weights, rows: None, clock: None, origin })
    }

    /// The input columns of all batches, one after the other.
    fn gather(&self, batches: &[&InputBatch]) -> Result<Vec<ArrayRef>, SqlError> {
        if let [batch] = batches {
            return Ok(batch.batch.columns().to_vec());
        }
        let mut columns = Vec::with_capacity(self.projection.len());
        for (index, field) in self.input.fields().iter().enumerate() {
            let parts: Vec<&dyn Array> = batches.iter().map(|batch| batch.batch.column(index).as_ref()).collect();
            columns.push(match parts.is_empty() {
                true => arrow::array::new_empty_array(field.data_type()),
                false => compute::concat(&parts).map_err(arrow_error)?,
            });
        }
        Ok(columns)
    }
}

/// Adds the runs of a batch whose first row is `row_start` of the step's.
fn push_runs(runs: &mut Vec<Run>, batch: &InputBatch, row_start: usize) {
    let (source, partition) = (batch.source, batch.partition);
    runs.push(Run { source, partition, offset_start: batch.offset_start, row_start });
    let offsets = batch.offsets.iter().flat_map(|offsets| offsets.values().windows(2).enumerate());
    for (row, pair) in offsets.filter(|(_, pair)| pair[1] != pair[0] + 1) {
        let offset_start = Offset::new(pair[1] as u64);
        runs.push(Run { source, partition, offset_start, row_start: row_start + row + 1 });
    }
}

fn tombstone_weights(tombstones: &BooleanArray) -> Weights {
    let gone: Vec<bool> = tombstones.iter().map(|is_gone| is_gone == Some(true)).collect();
    Weights::of(&gone)
}

fn row_ids(ids: &ArrayRef, offsets: &ArrayRef) -> Result<ArrayRef, SqlError> {
    let (ids, offsets): (Int64Array, Int64Array) = (downcast(ids)?, downcast(offsets)?);
    Ok(Arc::new(
        ids.iter().zip(offsets.values()).map(|(id, offset)| Some(id.unwrap_or(*offset))).collect::<Int64Array>(),
    ))
}

fn row_partition(batches: &[&InputBatch], rows: usize) -> ArrayRef {
    let mut values = Vec::with_capacity(rows);
    for batch in batches {
        values.resize(values.len() + batch.batch.num_rows(), batch.partition.value() as i32);
    }
    Arc::new(Int32Array::from(values))
}

fn row_offset(batches: &[&InputBatch], rows: usize) -> ArrayRef {
    let mut values = Vec::with_capacity(rows);
    for batch in batches {
        let start = batch.offset_start.value() as i64;
        match &batch.offsets {
            Some(offsets) => values.extend_from_slice(offsets.values()),
            None => values.extend(start..start + batch.batch.num_rows() as i64),
        }
    }
    Arc::new(Int64Array::from(values))
}
