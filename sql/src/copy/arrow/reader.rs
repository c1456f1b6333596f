//! `ArrowReader`: an Arrow IPC stream to batches of a relation's rows.
//!
//! Owns which column of the stream goes where: by name, or in the order of the COPY's list of columns. Batches stay what
//! they are, but for casts (`assign`): slices of at most 65,536 rows share the memory of their message, so that the
//! next copy of a value is the one into the log. Many small batches become one.

use super::assign::{Refused, assign, is_assignable, stored_bytes};
use super::frames::{Frame, Frames};
use super::vet::{self, malformed};
use crate::bind::insert::{InsertRows, PlanEval, Shape, Target, constant_default, repeat, resolve};
use crate::copy::sink::default_bytes;
use crate::dialect::ast::{Ident, Position};
use crate::error::SqlError;
use arrow::array::{Array, ArrayRef, RecordBatch};
use arrow::buffer::Buffer;
use arrow::compute::{concat, concat_batches};
use arrow::datatypes::{DataType, Schema, SchemaRef};
use arrow::error::ArrowError;
use arrow::ipc::reader::{read_dictionary, read_record_batch};
use arrow::ipc::{MessageHeader, root_as_message};
use millstream_catalog::Relation;
use millstream_catalog::model::limit::{BATCH_ROWS_MAX, STATEMENT_ROWS_BYTES_MAX};
use millstream_catalog::model::{Name, SqlState};
use std::collections::{HashMap, VecDeque};

/// Bytes of the rows of one batch, as far as they are alike.
const BATCH_BYTES_TARGET: u64 = 16 << 20;
/// What rows may become when they are stored, before they are taken in smaller parts.
const STORED_BYTES_TARGET: usize = 64 << 20;
/// Batches of fewer rows wait for others.
const SMALL_ROWS: usize = 8 << 10;

/// Reads a stream.
#[derive(Debug)]
pub(in crate::copy) struct ArrowReader {
    relation: Relation,
    columns: Option<Vec<Ident>>,
    shape: Shape,
    /// The default of each column, as a column of one row.
    defaults: Vec<ArrayRef>,
    frames: Frames,
    /// The stream's schema, and where its columns go.
    schema: Option<(SchemaRef, Vec<Target>)>,
    dictionaries: HashMap<i64, ArrayRef>,
    /// Data, and how much of it was looked at.
    rest: (Vec<u8>, usize),
    /// A batch whose rows were taken up to this one, and how many are taken at once.
    current: Option<(RecordBatch, usize, usize)>,
    /// Rows of small batches: themselves, their number, and the bytes they keep.
    small: (Vec<InsertRows>, usize, usize),
    ready: VecDeque<InsertRows>,
    rows_before: usize,
    is_finished: bool,
}

impl ArrowReader {
    /// A reader for `COPY relation (columns)`.
    ///
    /// # Errors
    /// 42703 and 42701 for columns.
    pub(in crate::copy) fn new(
        relation: &Relation,
        columns: Option<&[Ident]>,
        eval: PlanEval<'_>,
    ) -> Result<Self, SqlError> {
        let shape = Shape::of(relation);
        resolve(relation, columns)?;
        let default = |i: usize| constant_default(&shape, i, &mut *eval);
        let defaults = (0..shape.columns.len()).map(default).collect::<Result<_, _>>()?;
        Ok(Self {
            relation: relation.clone(),
            columns: columns.map(<[Ident]>::to_vec),
            shape,
            defaults,
            frames: Frames::new(),
            schema: None,
            dictionaries: HashMap::new(),
            rest: (Vec::new(), 0),
            current: None,
            small: (Vec::new(), 0, 0),
            ready: VecDeque::new(),
            rows_before: 0,
            is_finished: false,
        })
    }

    /// Takes the next chunk of data, cut anywhere.
    pub(in crate::copy) fn push(&mut self, data: &[u8]) -> Result<(), SqlError> {
        let mut data = data;
        if self.rest.0.is_empty() {
            self.read(&mut data)?;
        }
        self.rest.0.extend_from_slice(data);
        Ok(())
    }

    /// Ends the data. A stream may leave out its end.
    pub(in crate::copy) fn finish(&mut self) -> Result<(), SqlError> {
        self.is_finished = true;
        Ok(())
    }

    /// Bytes of what was taken and is not yet given as rows, and of dictionaries, which stay.
    pub(in crate::copy) fn held_bytes(&self) -> usize {
        let bytes = |array: &ArrayRef| array.to_data().get_slice_memory_size().unwrap_or(0);
        let current = self.current.iter().flat_map(|(batch, ..)| batch.columns()).map(bytes).sum::<usize>();
        let dictionaries = self.dictionaries.values().map(bytes).sum::<usize>();
        self.frames.held_bytes() + self.rest.0.capacity() + current + dictionaries + self.small.2
    }

    /// Reads up to the next batch of rows.
    fn read(&mut self, data: &mut &[u8]) -> Result<(), SqlError> {
        while self.current.is_none() {
            let Some(frame) = self.frames.next(data).map_err(|error| self.placed(error))? else { return Ok(()) };
            self.message(&frame).map_err(|error| self.placed(error))?;
        }
        Ok(())
    }

    /// The next batch of rows: they are converted as they are taken, so that memory is bounded.
    pub(in crate::copy) fn next_rows(&mut self) -> Result<Option<InsertRows>, SqlError> {
        while self.ready.is_empty() {
            if let Some((batch, row, rows_at_once)) = self.current.take() {
                let rows = self.slice(&batch, row, rows_at_once)?;
                let next = row + rows.batch.num_rows();
                self.current = (next < batch.num_rows()).then_some((batch, next, rows_at_once));
                self.gather(rows)?;
            } else if !self.rest.0.is_empty() {
                let (rest, seen) = std::mem::take(&mut self.rest);
                let mut data = &rest[seen..];
                self.read(&mut data)?;
                let seen = rest.len() - data.len();
                self.rest = if data.is_empty() { (Vec::new(), 0) } else { (rest, seen) };
            } else {
                if self.is_finished {
                    self.check_end()?;
                    self.gathered()?;
                }
                break;
            }
        }
        Ok(self.ready.pop_front())
    }

    fn check_end(&self) -> Result<(), SqlError> {
        if !self.frames.is_between() {
            return Err(self.placed(malformed("ends within a message")));
        }
        match self.schema {
            Some(_) => Ok(()),
            None => Err(malformed("has no schema")),
        }
    }

    fn message(&mut self, frame: &Frame) -> Result<(), SqlError> {
        let message = root_as_message(&frame.metadata).map_err(|_| malformed("has a damaged message"))?;
        let version = message.version();
        match (message.header_type(), &self.schema) {
            (MessageHeader::Schema, None) => {
                let schema = vet::schema(&message)?;
                let targets = self.targets(&schema)?;
                self.schema = Some((schema.into(), targets));
            }
            (MessageHeader::Schema, Some(_)) => return Err(malformed("has a second schema")),
            (_, None) => return Err(malformed("does not begin with its schema")),
            (MessageHeader::DictionaryBatch, Some((schema, _))) => {
                let found = message.header_as_dictionary_batch();
                let (batch, data) = found
                    .and_then(|batch| Some((batch, batch.data()?)))
                    .ok_or_else(|| malformed("has a damaged dictionary"))?;
                let values = dictionary_type(schema, batch.id())
                    .ok_or_else(|| malformed(format!("has dictionary {}, which no column uses", batch.id())))?;
                let values = Schema::new(vec![arrow::datatypes::Field::new("", values, true)]);
                vet::batch(data, &values, &frame.body)?;
                read_dictionary(&frame.body, batch, schema, &mut self.dictionaries, &version).map_err(invalid)?;
                self.check_dictionaries()?;
            }
            (MessageHeader::RecordBatch, Some((schema, _))) => {
                let batch = message.header_as_record_batch().ok_or_else(|| malformed("has a damaged record batch"))?;
                let bytes = vet::batch(batch, schema, &frame.body)?;
                let batch = decode(&frame.body, batch, schema, &self.dictionaries, version)?;
                let rows = batch.num_rows();
                // Parts of equal size, so that none is small.
                let parts = (rows.div_ceil(BATCH_ROWS_MAX)).max(bytes.div_ceil(BATCH_BYTES_TARGET) as usize).max(1);
                self.current = (rows > 0).then_some((batch, 0, rows.div_ceil(parts)));
            }
            _ => return Err(malformed("has a message that is no batch")),
        }
        Ok(())
    }

    /// Dictionaries stay for the whole stream, and grow by deltas.
    fn check_dictionaries(&self) -> Result<(), SqlError> {
        let bytes: usize = self.dictionaries.values().map(|array| array.get_array_memory_size()).sum();
        if bytes <= STATEMENT_ROWS_BYTES_MAX.as_usize() {
            return Ok(());
        }
        Err(SqlError::new(SqlState::ProgramLimitExceeded, "the dictionaries of the arrow stream are too large")
            .detail(format!("they may have {STATEMENT_ROWS_BYTES_MAX} bytes")))
    }

    /// Where the columns of the stream go.
    fn targets(&self, schema: &Schema) -> Result<Vec<Target>, SqlError> {
        let targets = match &self.columns {
            Some(columns) if columns.len() != schema.fields().len() => {
                let (found, expected) = (schema.fields().len(), columns.len());
                return Err(malformed(format!("has {found} columns, expected {expected}")));
            }
            Some(columns) => resolve(&self.relation, Some(columns))?,
            None => resolve(&self.relation, Some(&named(schema)?))?,
        };
        for (field, target) in schema.fields().iter().zip(&targets) {
            if !is_assignable(field.data_type(), self.shape.sql_type(*target)) {
                let from = format!("{} in the arrow stream", field.data_type());
                let error = self.shape.type_error(*target, &from);
                return Err(error.hint("cast it before it is written"));
            }
        }
        for (i, column) in self.shape.columns.iter().enumerate() {
            if !column.is_nullable && self.defaults[i].is_null(0) && !targets.contains(&Target::Column(i)) {
                return Err(self
                    .shape
                    .null_error(i)
                    .detail(format!("column \"{}\" is not in the arrow stream and has no default", column.name)));
            }
        }
        Ok(targets)
    }

    /// Rows from `row`, at most so many.
    fn slice(&mut self, batch: &RecordBatch, row: usize, rows_at_once: usize) -> Result<InsertRows, SqlError> {
        let mut rows = rows_at_once.min(batch.num_rows() - row);
        let targets = self.schema.as_ref().map(|(_, targets)| targets.as_slice()).unwrap_or_default();
        let is_absent = |i: &usize| !targets.contains(&Target::Column(*i));
        let absent: usize = (0..self.defaults.len()).filter(is_absent).map(|i| default_bytes(&self.defaults[i])).sum();
        let stored = |rows: usize| {
            let columns = batch.columns().iter().zip(targets);
            columns
                .map(|(array, target)| stored_bytes(array.slice(row, rows).as_ref(), self.shape.sql_type(*target)))
                .fold(absent.saturating_mul(rows), usize::saturating_add)
        };
        while rows > 1 && stored(rows) > STORED_BYTES_TARGET {
            rows = rows.div_ceil(2);
        }
        if stored(rows) > STATEMENT_ROWS_BYTES_MAX.as_usize() {
            return Err(crate::bind::insert::row_too_large(stored(rows)).context(self.place(0)));
        }
        let mut columns: Vec<Option<ArrayRef>> = vec![None; self.shape.columns.len()];
        let mut rowtime = None;
        for (array, target) in batch.columns().iter().zip(targets) {
            let name = self.shape.name(*target);
            let place = |row: usize| format!("{}, column {name}", self.place(row));
            let array = assign(&array.slice(row, rows), self.shape.sql_type(*target))
                .map_err(|Refused { row, error }| SqlError::from(error).context(place(row)))?;
            match target {
                Target::Column(i) => {
                    if let (false, Some(nulls)) = (self.shape.columns[*i].is_nullable, array.nulls())
                        && let Some(row) = (0..nulls.len()).find(|row| nulls.is_null(*row))
                    {
                        return Err(self.shape.null_error(*i).context(place(row)));
                    }
                    columns[*i] = Some(array);
                }
                Target::Rowtime => rowtime = Some(array),
            }
        }
        let filled = columns.into_iter().zip(&self.defaults).map(|(column, default)| match column {
            Some(column) => Ok(column),
            None => repeat(default, rows),
        });
        let rows_converted = self.shape.finish(filled.collect::<Result<_, _>>()?, rowtime, self.rows_before + 1)?;
        self.rows_before += rows;
        Ok(rows_converted)
    }

    /// Holds back small batches until they are large enough together.
    fn gather(&mut self, rows: InsertRows) -> Result<(), SqlError> {
        if rows.batch.num_rows() >= SMALL_ROWS {
            self.gathered()?;
            self.ready.push_back(rows);
            return Ok(());
        }
        let (small, count, bytes) = &mut self.small;
        *count += rows.batch.num_rows();
        *bytes += rows.batch.get_array_memory_size();
        small.push(rows);
        if *count < SMALL_ROWS && *bytes < BATCH_BYTES_TARGET as usize { Ok(()) } else { self.gathered() }
    }

    fn gathered(&mut self) -> Result<(), SqlError> {
        let (mut small, ..) = std::mem::take(&mut self.small);
        if small.len() <= 1 {
            self.ready.extend(small.pop());
            return Ok(());
        }
        let internal = |error: ArrowError| SqlError::internal(format!("batches cannot be joined: {error}"));
        let batch = concat_batches(&self.shape.schema, small.iter().map(|rows| &rows.batch)).map_err(internal)?;
        let rowtimes: Vec<&dyn Array> = small.iter().filter_map(|rows| rows.rowtime.as_deref()).collect();
        let rowtime = if rowtimes.is_empty() { None } else { Some(concat(&rowtimes).map_err(internal)?) };
        self.ready.push_back(InsertRows { batch, rowtime });
        Ok(())
    }

    /// `COPY s, row 3`, `row` counted from those that were taken.
    fn place(&self, row: usize) -> String {
        format!("COPY {}, row {}", self.relation.name, self.rows_before + row + 1)
    }

    fn placed(&self, error: SqlError) -> SqlError {
        match self.schema {
            Some(_) if error.context.is_none() => error.context(format!("{} and after", self.place(0))),
            _ => error,
        }
    }
}

/// The names of a stream's columns, as a list of columns.
fn named(schema: &Schema) -> Result<Vec<Ident>, SqlError> {
    let ident = |field: &std::sync::Arc<arrow::datatypes::Field>| match Name::new(field.name().as_str()) {
        Ok(name) => Ok(Ident { name, position: Position::UNKNOWN }),
        Err(_) => {
            let message = format!("column \"{}\" of the arrow stream does not exist", field.name());
            Err(SqlError::new(SqlState::UndefinedColumn, message))
        }
    };
    schema.fields().iter().map(ident).collect()
}

/// The type of the values of a dictionary.
fn dictionary_type(schema: &Schema, id: i64) -> Option<DataType> {
    #[allow(deprecated, reason = "how Arrow's reader finds them too")]
    let fields = schema.fields_with_dict_id(id);
    let mut types = fields.iter().map(|field| match field.data_type() {
        DataType::Dictionary(_, values) => Some(values.as_ref().clone()),
        _ => None,
    });
    let first = types.next()??;
    // A dictionary that columns of several types share would not be checked as all of them.
    types.all(|other| other.as_ref() == Some(&first)).then_some(first)
}

fn decode(
    body: &Buffer,
    batch: arrow::ipc::RecordBatch<'_>,
    schema: &SchemaRef,
    dictionaries: &HashMap<i64, ArrayRef>,
    version: arrow::ipc::MetadataVersion,
) -> Result<RecordBatch, SqlError> {
    read_record_batch(body, batch, SchemaRef::clone(schema), dictionaries, None, &version).map_err(invalid)
}

/// 22021 for text that is not UTF-8, else 22P04.
fn invalid(error: ArrowError) -> SqlError {
    let detail = error.to_string();
    if detail.contains("UTF8") || detail.contains("UTF-8") {
        let message = "invalid byte sequence for encoding \"UTF8\" in the arrow stream";
        return SqlError::new(SqlState::CharacterNotInRepertoire, message).detail(detail);
    }
    malformed("has values that are not valid").detail(detail)
}
