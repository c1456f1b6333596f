//! A continuous query as a chain of operators, driven step by step.
//!
//! Owns the order of things within a step, and the whole of the saved state. Leaves out making the chain from a plan
//! (`plan::pipeline`), and everything about storage and commit. The engine's task of the query owns one pipeline and calls
//! it from one thread at a time; after a crash it makes a new one, restores the last checkpoint and repeats the steps.

use super::delta::{Delta, Origin, Run, Weights, arrow_error, downcast};
use super::expression::StepNow;
use super::operator::Operator;
use super::save::{StateReader, StateWriter};
use super::sink::Sink;
use super::time::EventTime;
use crate::error::SqlError;
use arrow::array::TimestampMicrosecondArray;
use arrow::array::{Array, ArrayRef, BooleanArray, Int8Array, Int32Array, Int64Array, RecordBatch, RecordBatchOptions};
use arrow::compute;
use arrow::datatypes::SchemaRef;
use millstream_catalog::model::{ByteSize, Name, Offset, PartitionId, RowCount, SqlState, Timestamp};
use millstream_catalog::{Column, RelationKind, Schema};
use std::sync::Arc;
use std::sync::atomic::AtomicI64;

/// What a continuous query gives.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Output {
    /// The columns of the sink: those of the select list in order, then `windowstart` and `windowend` of a windowed
    /// aggregate if they were not selected, then hidden key columns.
    pub columns: Vec<Column>,
    /// A stream, or a table where rows change or go away.
    pub kind: RelationKind,
    /// How many of `columns` are the select list: what a push query shows.
    pub selected: usize,
}

impl Output {
    /// The stored schema of the sink: the columns, `rowtime`, and `rowtombstone` if the sink has a key.
    pub fn stored_schema(&self) -> SchemaRef {
        Schema { columns: self.columns.clone() }.stored(self.has_tombstones())
    }

    /// True when the sink is a table with a key.
    pub fn has_tombstones(&self) -> bool {
        self.kind == RelationKind::Table && self.columns.iter().any(|column| column.is_key)
    }

    /// Checks that the columns can be those of a relation.
    ///
    /// # Errors
    /// 42701 when two have one name, or one has the name of a pseudo-column.
    pub fn check_storable(&self) -> Result<(), SqlError> {
        use millstream_catalog::schema::{ROWOFFSET, ROWPARTITION, ROWTIME, ROWTOMBSTONE};
        let mut names = std::collections::HashSet::from([ROWTIME, ROWTOMBSTONE, ROWPARTITION, ROWOFFSET]);
        for column in &self.columns {
            let name = column.name.as_str();
            if !names.insert(name) {
                let is_own = matches!(name, ROWTIME | ROWTOMBSTONE | ROWPARTITION | ROWOFFSET);
                let message = match is_own {
                    true => format!("column name \"{name}\" conflicts with a pseudo-column"),
                    false => format!("column \"{name}\" specified more than once"),
                };
                return Err(SqlError::new(SqlState::DuplicateColumn, message).hint("give it another name with AS"));
            }
        }
        Ok(())
    }

    /// What a push query shows of stored rows: the select list. A row that went away has NULL in all but its key.
    pub fn client_rows(&self, stored: &RecordBatch) -> Result<RecordBatch, SqlError> {
        stored.project(&(0..self.selected).collect::<Vec<_>>()).map_err(arrow_error)
    }
}

/// A batch of events of one partition.
#[derive(Debug, Clone)]
pub struct InputBatch {
    /// Position of the source among the query's sources.
    pub source: usize,
    /// The partition.
    pub partition: PartitionId,
    /// The offset of the first row.
    pub offset_start: Offset,
    /// The offset of each row, ascending, where they do not simply follow each other.
    pub offsets: Option<Int64Array>,
    /// The stored columns at [`Pipeline::projection`], in that order.
    pub batch: RecordBatch,
}

/// What one step takes.
#[derive(Debug, Clone)]
pub struct StepInput<'a> {
    /// The events, in total order of commit.
    pub batches: Vec<InputBatch>,
    /// Sources and partitions that hold event time back no longer. One counts again from its next event on.
    pub idle: &'a [(usize, PartitionId)],
    /// What `now()` gives.
    pub now: Timestamp,
}

/// What one step gives.
#[derive(Debug, Clone)]
pub struct StepOutput {
    /// Rows of the sink's stored schema, in order; `None` when there are none.
    pub batch: Option<RecordBatch>,
    /// Events taken.
    pub input_rows: RowCount,
    /// Events dropped as late.
    pub late_rows: RowCount,
}

/// A column the source gives to the first operator.
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

/// How events become the first operator's rows.
#[derive(Debug)]
pub(crate) struct SourceReader {
    /// Positions in the stored schema that are read.
    pub(crate) projection: Vec<usize>,
    /// The stored schema at those positions.
    pub(crate) input: SchemaRef,
    /// Position of `rowtime` in the projection.
    pub(crate) rowtime: usize,
    /// Position of `rowtombstone` in the projection, or of what stands for it, for tables whose rows change.
    pub(crate) rowtombstone: Option<usize>,
    /// Where rows are not taken back, the position of what tells that one changes, and the table.
    pub(crate) settled: Option<(usize, Name)>,
    /// The columns the first operator sees.
    pub(crate) columns: Vec<SourceColumn>,
    /// Their schema.
    pub(crate) schema: SchemaRef,
}

/// Everything a pipeline is made of.
pub(crate) struct Parts {
    /// The source's reader.
    pub(crate) source: SourceReader,
    /// Event time of the source.
    pub(crate) time: EventTime,
    /// The operators, first to last.
    pub(crate) operators: Vec<Box<dyn Operator>>,
    /// The last stage.
    pub(crate) sink: Sink,
    /// What comes out.
    pub(crate) output: Output,
    /// The cell `now()` reads.
    pub(crate) now: Arc<AtomicI64>,
}

/// A running continuous query.
///
/// Deterministic: equal state and equal input give equal output. How the log is cut into steps changes only which
/// intermediate forms of a row appear; the last form, the state and the late events are the same.
pub struct Pipeline {
    parts: Parts,
    fingerprint: String,
}

impl std::fmt::Debug for Pipeline {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pipeline").field("output", &self.parts.output).field("fingerprint", &self.fingerprint).finish()
    }
}

impl Pipeline {
    /// Chains the parts.
    pub(crate) fn new(parts: Parts) -> Self {
        let operators: Vec<String> = parts.operators.iter().map(|operator| operator.fingerprint()).collect();
        let source = format!("{:?} {:?}", parts.source.projection, parts.source.columns);
        let text = format!("{source} | {} | {}", operators.join(" | "), parts.sink.text());
        Self { fingerprint: format!("1-{:016x}", fnv(text.as_bytes())), parts }
    }

    /// The sink's columns.
    pub fn output(&self) -> &Output {
        &self.parts.output
    }

    /// A text that differs whenever the operators, or the layout of their state, do. State saved by a pipeline is for
    /// pipelines of equal fingerprint only.
    pub fn fingerprint(&self) -> String {
        self.fingerprint.clone()
    }

    /// Names of the source's columns that are read, for people.
    pub fn columns_read(&self) -> impl Iterator<Item = &str> {
        self.parts.source.schema.fields().iter().map(|field| field.name().as_str())
    }

    /// True when the sink's table has one row and a key nobody asked for.
    pub fn has_one_row(&self) -> bool {
        self.parts.sink.has_one_row()
    }

    /// Whether it follows rows of its source that change; where they never do, it need not.
    pub fn takes_changes(&self) -> bool {
        self.parts.source.rowtombstone.is_some() && self.parts.source.settled.is_none()
    }

    /// True when later output depends on earlier events, so that checkpoints are worth taking.
    pub fn is_stateful(&self) -> bool {
        self.parts.operators.iter().any(|operator| operator.is_stateful())
    }

    /// True when a new pipeline gives a row in a step without events, so that such a step is worth taking.
    pub fn begins_with_row(&self) -> bool {
        self.parts.operators.iter().any(|operator| operator.begins_with_row())
    }

    /// Positions in the stored schema of a source that the pipeline reads, `rowtime` among them.
    pub fn projection(&self, _source: usize) -> &[usize] {
        &self.parts.source.projection
    }

    /// Event time of the query; `None` before every partition that is not idle had an event.
    pub fn watermark(&self) -> Option<Timestamp> {
        self.parts.time.time()
    }

    /// Memory held by state, about.
    pub fn state_bytes(&self) -> ByteSize {
        self.parts.operators.iter().fold(ByteSize::ZERO, |sum, operator| sum.plus(operator.state_bytes()))
    }

    /// Takes the events of one step. A step without events may still give output: time passes when partitions are
    /// idle, and a global aggregate has its row at the first step.
    ///
    /// # Errors
    /// The SQL error of an expression or aggregate, the partition and offset of the event in its detail. The pipeline
    /// is then in no defined state and must be dropped.
    pub fn step(&mut self, input: StepInput<'_>) -> Result<StepOutput, SqlError> {
        StepNow::set(&self.parts.now, input.now);
        let late_before = self.late_rows();
        let mut delta = self.parts.source.read(&input)?;
        let input_rows = RowCount::of(delta.len());
        let idle: Vec<PartitionId> = input.idle.iter().map(|(_, partition)| *partition).collect();
        let runs = delta.origin.runs.clone();
        let clock = self.parts.time.advance(&runs, delta.rowtime.values(), &idle);
        delta.origin = Arc::new(Origin { runs, clock, now: input.now });
        for operator in &mut self.parts.operators {
            delta = operator.step(delta)?;
        }
        let batch = self.parts.sink.rows(&delta)?;
        if let Some(time) = self.parts.time.time() {
            self.parts.operators.iter_mut().for_each(|operator| operator.watermark(time));
        }
        let late_rows = RowCount::new(self.late_rows().value() - late_before.value());
        Ok(StepOutput { batch, input_rows, late_rows })
    }

    fn late_rows(&self) -> RowCount {
        self.parts.operators.iter().fold(RowCount::ZERO, |sum, operator| sum.plus(operator.late_rows()))
    }

    /// The state, versioned; layout in `save`.
    pub fn save(&self) -> Result<Vec<u8>, SqlError> {
        let mut state = StateWriter::default();
        self.parts.time.save(&mut state)?;
        for (index, operator) in self.parts.operators.iter().enumerate() {
            state.scope(format!("{index}."));
            operator.save(&mut state)?;
        }
        state.finish()
    }

    /// Takes over state saved by a pipeline of equal fingerprint. The pipeline is as new before.
    ///
    /// # Errors
    /// `SE006` when it is of another version or query, `XX001` when it is damaged.
    pub fn restore(&mut self, bytes: &[u8]) -> Result<(), SqlError> {
        let mut state = StateReader::open(bytes)?;
        self.parts.time.restore(&mut state)?;
        for (index, operator) in self.parts.operators.iter_mut().enumerate() {
            state.scope(format!("{index}."));
            operator.restore(&mut state)?;
        }
        state.finish()
    }
}

impl SourceReader {
    /// One delta of all events of the step.
    fn read(&self, input: &StepInput<'_>) -> Result<Delta, SqlError> {
        let mut runs: Vec<Run> = Vec::with_capacity(input.batches.len());
        let mut rows = 0;
        for batch in &input.batches {
            if batch.source != 0 || batch.batch.num_columns() != self.projection.len() {
                return Err(SqlError::internal("a batch is not of the query's source"));
            }
            push_runs(&mut runs, batch, rows);
            rows += batch.batch.num_rows();
        }
        let inputs = self.gather(input)?;
        if let Some((index, table)) = &self.settled
            && inputs[*index].null_count() < inputs[*index].len()
        {
            let what = format!("a continuous aggregate over table \"{table}\", whose rows have changed,");
            return Err(SqlError::unsupported(what, "run the query without EMIT CHANGES"));
        }
        let mut columns = Vec::with_capacity(self.columns.len());
        for column in &self.columns {
            columns.push(match column {
                SourceColumn::Input(index) => Arc::clone(&inputs[*index]),
                SourceColumn::RowId(index) => row_ids(&inputs[*index], &row_offset(input, rows))?,
                SourceColumn::RowPartition => row_partition(input, rows),
                SourceColumn::RowOffset => row_offset(input, rows),
            });
        }
        let options = RecordBatchOptions::new().with_row_count(Some(rows));
        let batch = RecordBatch::try_new_with_options(Arc::clone(&self.schema), columns, &options);
        let rowtime: TimestampMicrosecondArray = downcast(&inputs[self.rowtime])?;
        let weights = match self.rowtombstone {
            None => Weights::Ones,
            Some(index) => tombstone_weights(&downcast(&inputs[index])?),
        };
        let origin = Arc::new(Origin { runs, clock: Vec::new(), now: input.now });
        Ok(Delta { batch: batch.map_err(arrow_error)?, rowtime, weights, rows: None, origin })
    }

    /// The input columns of all batches, one after the other.
    fn gather(&self, input: &StepInput<'_>) -> Result<Vec<ArrayRef>, SqlError> {
        if let [batch] = input.batches.as_slice() {
            return Ok(batch.batch.columns().to_vec());
        }
        let mut columns = Vec::with_capacity(self.projection.len());
        for (index, field) in self.input.fields().iter().enumerate() {
            let parts: Vec<&dyn Array> = input.batches.iter().map(|batch| batch.batch.column(index).as_ref()).collect();
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
    let partition = batch.partition;
    runs.push(Run { partition, offset_start: batch.offset_start, row_start });
    let offsets = batch.offsets.iter().flat_map(|offsets| offsets.values().windows(2).enumerate());
    for (row, pair) in offsets.filter(|(_, pair)| pair[1] != pair[0] + 1) {
        let offset_start = Offset::new(pair[1] as u64);
        runs.push(Run { partition, offset_start, row_start: row_start + row + 1 });
    }
}

fn tombstone_weights(tombstones: &BooleanArray) -> Weights {
    if tombstones.true_count() == 0 {
        return Weights::Ones;
    }
    let weights = tombstones.iter().map(|is_gone| if is_gone == Some(true) { -1 } else { 1 });
    Weights::Each(Int8Array::from_iter_values(weights))
}

fn row_ids(ids: &ArrayRef, offsets: &ArrayRef) -> Result<ArrayRef, SqlError> {
    let (ids, offsets): (Int64Array, Int64Array) = (downcast(ids)?, downcast(offsets)?);
    Ok(Arc::new(
        ids.iter().zip(offsets.values()).map(|(id, offset)| Some(id.unwrap_or(*offset))).collect::<Int64Array>(),
    ))
}

fn row_partition(input: &StepInput<'_>, rows: usize) -> ArrayRef {
    let mut values = Vec::with_capacity(rows);
    for batch in &input.batches {
        values.resize(values.len() + batch.batch.num_rows(), batch.partition.value() as i32);
    }
    Arc::new(Int32Array::from(values))
}

fn row_offset(input: &StepInput<'_>, rows: usize) -> ArrayRef {
    let mut values = Vec::with_capacity(rows);
    for batch in &input.batches {
        let start = batch.offset_start.value() as i64;
        match &batch.offsets {
            Some(offsets) => values.extend_from_slice(offsets.values()),
            None => values.extend(start..start + batch.batch.num_rows() as i64),
        }
    }
    Arc::new(Int64Array::from(values))
}

/// FNV-1a, 64 bits: stable over builds, unlike the standard library's hashers.
fn fnv(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3))
}
