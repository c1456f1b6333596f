//! Window functions: `OVER (PARTITION BY … ORDER BY … frame)`.
//!
//! Owns the rows of each partition, in order. A step evaluates the partitions it touches anew, with the functions of a
//! bounded run, and tells which rows have other values. Leaves out the first rows of a partition (`top_n`), which need not
//! all be looked at. State: the rows, and what was told of each.

use super::bounds::WindowBounds;
use super::delta::{Delta, Origin, Weights, arrow_error, downcast, sql_error};
use super::operator::{Merging, Operator, only};
use super::ordered::{Closing, RowOrder, insert_columns};
use super::part::Part;
use super::save::{StateReader, StateWriter};
use super::slots::KeyCodec;
use crate::error::SqlError;
use arrow::array::{ArrayRef, Int64Array, RecordBatch, RecordBatchOptions, TimestampMicrosecondArray, UInt32Array};
use arrow::datatypes::{DataType, Schema, SchemaRef};
use datafusion::common::HashMap;
use datafusion::physical_expr::window::WindowExpr;
use millstream_catalog::model::ByteSize;
use std::collections::BTreeMap;
use std::sync::Arc;

/// Memory of a row beside its bytes, about.
const ENTRY_BYTES: usize = 96;

/// Evaluates window functions of one PARTITION BY and ORDER BY over rows that each have a key.
///
/// Out: the first columns of the input, those of the functions, then the rest; a row with its old values goes before any
/// row comes.
pub(crate) struct Over {
    order: RowOrder,
    calls: Vec<Arc<dyn WindowExpr>>,
    /// The functions' values.
    made: KeyCodec,
    /// Their schema.
    made_schema: SchemaRef,
    /// Columns of the input before them.
    visible: usize,
    schema: SchemaRef,
    partitions: HashMap<Box<[u8]>, Partition>,
    closing: Closing,
    bytes: usize,
}

type Partition = BTreeMap<Arc<[u8]>, Kept>;

/// A row of a partition.
struct Kept {
    rowtime: i64,
    /// The values that were told.
    told: Option<Told>,
}

impl Kept {
    /// Memory with its place, about.
    fn bytes(&self, place: &[u8]) -> usize {
        place.len() + self.told.as_ref().map_or(0, |told| told.values.len()) + ENTRY_BYTES
    }
}

/// What was told of a row.
#[derive(Clone)]
struct Told {
    rowtime: i64,
    values: Box<[u8]>,
}

/// What a step's rows change at once.
struct Taken {
    /// The partitions they touch, with the last row of each.
    touched: BTreeMap<Box<[u8]>, usize>,
    /// What was told of rows that are gone, with the query's time then.
    gone: HashMap<Arc<[u8]>, (Told, i64)>,
}

/// Rows to be told.
#[derive(Default)]
struct Changes {
    places: Vec<Arc<[u8]>>,
    told: Vec<Told>,
    /// The query's time at the last row that touched the partition.
    clock: Vec<i64>,
}

impl Changes {
    fn push(&mut self, place: &Arc<[u8]>, told: Told, clock: i64) {
        self.places.push(Arc::clone(place));
        self.told.push(told);
        self.clock.push(clock);
    }
}

impl Over {
    /// No rows yet, of `input`; `schema` is what comes out. Rows go with the `window` of their partition.
    pub(crate) fn new(
        calls: Vec<Arc<dyn WindowExpr>>,
        window: Option<WindowBounds>,
        input: SchemaRef,
        visible: usize,
        schema: SchemaRef,
    ) -> Result<Self, SqlError> {
        let first = calls.first().ok_or_else(|| SqlError::internal("a window without a function"))?;
        let order = RowOrder::new(first.partition_by().to_vec(), first.order_by().to_vec(), window, input)?;
        let made: Vec<_> = schema.fields().iter().skip(visible).take(calls.len()).cloned().collect();
        let types: Vec<DataType> = made.iter().map(|field| field.data_type().clone()).collect();
        Ok(Self {
            order,
            made: KeyCodec::new(&types)?,
            made_schema: Arc::new(Schema::new(made)),
            calls,
            visible,
            schema,
            partitions: HashMap::new(),
            closing: Closing::default(),
            bytes: 0,
        })
    }

    /// Takes the rows of `delta`.
    fn take(&mut self, delta: &Delta) -> Result<Taken, SqlError> {
        let placed = self.order.place(delta)?;
        let mut touched = BTreeMap::new();
        let mut gone: HashMap<Arc<[u8]>, (Told, i64)> = HashMap::new();
        for row in 0..delta.len() {
            let (partition, place) = (placed.partition(row), placed.row(row));
            if !self.partitions.contains_key(partition) {
                self.closing.note(&placed, row);
            }
            let rows = self.partitions.entry(partition.into()).or_default();
            touched.insert(partition.into(), row);
            if delta.weights.is_gone(row) {
                let Some((place, kept)) = rows.remove_entry(place) else { continue };
                self.bytes -= kept.bytes(&place);
                if let Some(told) = kept.told {
                    gone.insert(place, (told, delta.time_at(row)));
                }
            } else {
                // One that went and came again is as it was.
                let told = gone.remove(place).map(|(told, _)| told);
                let kept = Kept { rowtime: delta.rowtime.value(row), told };
                self.bytes += kept.bytes(place);
                rows.insert(place.into(), kept);
            }
        }
        Ok(Taken { touched, gone })
    }

    /// The functions' values over the rows of a partition.
    fn values(&self, rows: &Partition) -> Result<super::slots::KeyBytes, SqlError> {
        let batch = self.order.rows(rows.keys().map(AsRef::as_ref))?;
        let columns = self.calls.iter().zip(self.made_schema.fields()).map(|(call, field)| {
            let values = call.evaluate(&batch).map_err(sql_error)?;
            match values.data_type() == field.data_type() {
                true => Ok(values),
                false => arrow::compute::cast(&values, field.data_type()).map_err(arrow_error),
            }
        });
        self.made.encode(&columns.collect::<Result<Vec<ArrayRef>, SqlError>>()?)
    }

    /// Evaluates a partition anew.
    fn evaluate(
        &mut self,
        partition: &[u8],
        clock: i64,
        gone: &mut Changes,
        come: &mut Changes,
    ) -> Result<(), SqlError> {
        let Some(rows) = self.partitions.get(partition) else { return Ok(()) };
        if rows.is_empty() {
            self.partitions.remove(partition);
            return Ok(());
        }
        let values = self.values(rows)?;
        let Some(rows) = self.partitions.get_mut(partition) else { return Ok(()) };
        for (row, (place, kept)) in rows.iter_mut().enumerate() {
            let now = values.get(row);
            if kept.told.as_ref().is_some_and(|told| *told.values == *now) {
                continue;
            }
            let told = Told { rowtime: kept.rowtime, values: now.into() };
            self.bytes += now.len();
            if let Some(old) = kept.told.replace(told.clone()) {
                self.bytes -= old.values.len();
                gone.push(place, old, clock);
            }
            come.push(place, told, clock);
        }
        Ok(())
    }

    /// Lets go of the rows of closed windows.
    fn close(&mut self, end: i64) {
        for partition in self.closing.until(end) {
            let rows = self.partitions.remove(partition.as_ref()).unwrap_or_default();
            self.bytes -= rows.iter().map(|(place, kept)| kept.bytes(place)).sum::<usize>();
        }
    }

    fn output(&self, gone: Changes, come: Changes, delta: &Delta) -> Result<Delta, SqlError> {
        let count = gone.places.len();
        let places = gone.places.iter().chain(&come.places).map(AsRef::as_ref);
        let told: Vec<&Told> = gone.told.iter().chain(&come.told).collect();
        let rows = self.order.rows(places)?;
        let made = self.made.decode(told.iter().map(|told| told.values.as_ref()))?;
        let is_gone: Vec<bool> = (0..told.len()).map(|row| row < count).collect();
        let last = (0..delta.len()).map(|row| delta.input_row(row)).max().unwrap_or(0) as u32;
        Ok(Delta {
            batch: insert_columns(&rows, self.visible, made, &self.schema)?,
            rowtime: TimestampMicrosecondArray::from_iter_values(told.iter().map(|told| told.rowtime))
                .with_timezone("UTC"),
            weights: Weights::of(&is_gone),
            rows: Some(UInt32Array::from(vec![last; told.len()])),
            clock: Some(Int64Array::from_iter_values(gone.clock.into_iter().chain(come.clock))),
            origin: Arc::clone(&delta.origin),
        })
    }
}

impl Operator for Over {
    fn step(&mut self, inputs: Vec<Delta>, origin: &Arc<Origin>) -> Result<Delta, SqlError> {
        let input = only(inputs)?;
        if input.len() == 0 {
            self.close(origin.end);
            return Ok(Delta::empty(Arc::clone(&self.schema), origin));
        }
        let Taken { touched, gone: went } = self.take(&input)?;
        let (mut gone, mut come) = (Changes::default(), Changes::default());
        let mut went = went.into_iter().collect::<Vec<_>>();
        went.sort_unstable_by(|(one, _), (other, _)| one.cmp(other));
        went.into_iter().for_each(|(place, (told, clock))| gone.push(&place, told, clock));
        for (partition, row) in touched {
            let clock = input.time_at(row);
            self.evaluate(&partition, clock, &mut gone, &mut come).map_err(|error| input.blame(row, error))?;
        }
        self.close(origin.end);
        self.output(gone, come, &input)
    }

    fn save(&self, state: &mut StateWriter, part: Part) -> Result<(), SqlError> {
        let mut partitions: Vec<(&Box<[u8]>, &Partition)> =
            self.partitions.iter().filter(|(partition, _)| part.has(partition)).collect();
        partitions.sort_unstable_by_key(|(partition, _)| *partition);
        let rows: Vec<(&[u8], &Kept)> = partitions
            .into_iter()
            .flat_map(|(_, rows)| rows.iter().map(|(place, kept)| (place.as_ref(), kept)))
            .collect();
        let told = rows.iter().filter_map(|(_, kept)| kept.told.as_ref()).collect::<Vec<_>>();
        let times: ArrayRef = Arc::new(Int64Array::from_iter_values(rows.iter().map(|(_, kept)| kept.rowtime)));
        let told_times: ArrayRef = Arc::new(Int64Array::from_iter_values(told.iter().map(|told| told.rowtime)));
        let times = RecordBatch::try_from_iter([("rowtime", times), ("told", told_times)]).map_err(arrow_error)?;
        state.put("times", &times)?;
        state.put("rows", &self.order.rows(rows.iter().map(|(place, _)| *place))?)?;
        let made = self.made.decode(told.iter().map(|told| told.values.as_ref()))?;
        let options = RecordBatchOptions::new().with_row_count(Some(told.len()));
        let made = RecordBatch::try_new_with_options(Arc::clone(&self.made_schema), made, &options);
        state.put("values", &made.map_err(arrow_error)?)
    }

    fn restore(&mut self, state: &mut StateReader) -> Result<(), SqlError> {
        let times = state.take("times")?;
        let (rowtime, told): (Int64Array, Int64Array) = (downcast(times.column(0))?, downcast(times.column(1))?);
        let rows = Delta::of_batch(state.take("rows")?);
        let values = self.made.encode(state.take("values")?.columns())?;
        let placed = self.order.place(&rows)?;
        for row in 0..rows.len() {
            let (partition, place) = (placed.partition(row), placed.row(row));
            let told = Told { rowtime: told.value(row), values: values.get(row).into() };
            let kept = Kept { rowtime: rowtime.value(row), told: Some(told) };
            self.bytes += kept.bytes(place);
            if !self.partitions.contains_key(partition) {
                self.closing.note(&placed, row);
            }
            self.partitions.entry(partition.into()).or_default().insert(place.into(), kept);
        }
        Ok(())
    }

    fn fresh(&self) -> Result<Option<Box<dyn Operator>>, SqlError> {
        let types: Vec<DataType> = self.made_schema.fields().iter().map(|field| field.data_type().clone()).collect();
        Ok(Some(Box::new(Self {
            order: self.order.again()?,
            made: KeyCodec::new(&types)?,
            made_schema: Arc::clone(&self.made_schema),
            calls: self.calls.clone(),
            visible: self.visible,
            schema: Arc::clone(&self.schema),
            partitions: HashMap::new(),
            closing: Closing::default(),
            bytes: 0,
        })))
    }

    fn hashes(&self, _: usize, delta: &Delta) -> Result<Vec<u64>, SqlError> {
        Ok(self.order.partitions(delta)?.hashes(delta.len()))
    }

    fn merging(&self) -> Merging {
        Merging::GoneFirst
    }

    fn due(&self) -> i64 {
        self.closing.due()
    }

    fn is_stateful(&self) -> bool {
        true
    }

    fn state_bytes(&self) -> ByteSize {
        ByteSize::of(self.bytes)
    }

    fn fingerprint(&self) -> String {
        // The text of a function does not have its arguments and frame.
        let call = |call: &Arc<dyn WindowExpr>| {
            let arguments: Vec<String> = call.expressions().iter().map(ToString::to_string).collect();
            format!("{}({}) {}", call.name(), arguments.join(", "), call.get_window_frame())
        };
        let calls: Vec<String> = self.calls.iter().map(call).collect();
        format!("over({}; {}; {})", self.order.text(), calls.join(", "), self.visible)
    }
}
