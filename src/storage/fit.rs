//! Rows written before a column was added, read as rows of the present.
//!
//! A relation's columns are only ever added at the end, so a stored schema is its first columns, then `rowtime` and what
//! follows it. Owns the places of columns between two such schemas, and the values of columns that rows do not have: the
//! field's metadata says what they are, NULL unless it does. Names do not count: they may have changed. Leaves out who
//! adds columns. Called by every read and by appends of rows that were made before. A crash does nothing to it.

use super::batch::{StoredBatch, rowtime_column};
use super::error::StorageError;
use arrow::array::{ArrayRef, RecordBatch, RecordBatchOptions, UInt32Array, new_null_array};
use arrow::compute::take;
use arrow::datatypes::{Field, Schema, SchemaRef};
use arrow::ipc::reader::StreamReader;
use arrow::ipc::writer::StreamWriter;
use millstream_catalog::schema::FILL_METADATA;
use std::sync::Arc;

fn unfit(what: impl std::fmt::Display) -> StorageError {
    StorageError::Schema { what: format!("rows do not have the topic's schema: {what}") }
}

/// The relation's columns of a stored schema: those before `rowtime`.
fn columns(schema: &Schema) -> usize {
    rowtime_column(schema).unwrap_or(schema.fields().len())
}

/// Where the column at `index` of `wanted` is in `stored`; `None` when it was added later.
///
/// `a, b, c, rowtime` wanted of `a, b, rowtime`: 0, 1, none, 2.
pub(crate) fn place(wanted: &Schema, stored: &Schema, index: usize) -> Option<usize> {
    match index.checked_sub(columns(wanted)) {
        Some(hidden) => Some(columns(stored) + hidden),
        None => (index < columns(stored)).then_some(index),
    }
}

/// Whether rows of `stored` can be read as rows of `wanted`: the columns that both have are of the same types.
pub(crate) fn is_older(stored: &Schema, wanted: &Schema) -> bool {
    let is_same = |index: usize| {
        let place = place(wanted, stored, index);
        place.is_none_or(|at| stored.fields().get(at).map(|f| f.data_type()) == Some(wanted.field(index).data_type()))
    };
    let hidden = |schema: &Schema| schema.fields().len() - columns(schema);
    columns(stored) <= columns(wanted) && hidden(stored) == hidden(wanted) && (0..wanted.fields().len()).all(is_same)
}

/// `schema` as it was with only the first `kept` of the relation's columns.
pub(crate) fn without_later(schema: &SchemaRef, kept: usize) -> SchemaRef {
    let all = schema.fields();
    let (own, hidden) = all.split_at(columns(schema));
    let fields: Vec<_> = own.iter().take(kept).chain(hidden).cloned().collect();
    Arc::new(Schema::new_with_metadata(fields, schema.metadata().clone()))
}

/// The number of the relation's columns in `schema`.
pub(crate) fn width(schema: &Schema) -> usize {
    columns(schema)
}

/// What rows without a column have in it, as text for [`FILL_METADATA`]; one value.
///
/// # Errors
/// [`StorageError::Schema`] when Arrow cannot encode it.
pub fn encode_fill(value: &ArrayRef) -> Result<String, StorageError> {
    let batch = RecordBatch::try_from_iter_with_nullable([("fill", value.clone(), true)]).map_err(unfit)?;
    let mut writer = StreamWriter::try_new(Vec::new(), &batch.schema()).map_err(unfit)?;
    writer.write(&batch).map_err(unfit)?;
    let bytes = writer.into_inner().map_err(unfit)?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

fn decode_fill(text: &str) -> Result<ArrayRef, StorageError> {
    let pair = |at: usize| text.get(at..at + 2).and_then(|pair| u8::from_str_radix(pair, 16).ok());
    let bytes: Option<Vec<u8>> = (0..text.len()).step_by(2).map(pair).collect();
    let bytes = bytes.ok_or_else(|| unfit("a default is not hexadecimal"))?;
    let mut reader = StreamReader::try_new(bytes.as_slice(), None).map_err(unfit)?;
    let batch = reader.next().ok_or_else(|| unfit("a default is empty"))?.map_err(unfit)?;
    Ok(Arc::clone(batch.column(0)))
}

/// `rows` values of a column that the rows do not have.
fn filled(field: &Field, rows: usize) -> Result<ArrayRef, StorageError> {
    match field.metadata().get(FILL_METADATA) {
        None => Ok(new_null_array(field.data_type(), rows)),
        Some(text) => take(&decode_fill(text)?, &UInt32Array::from(vec![0; rows]), None).map_err(unfit),
    }
}

/// Columns of a schema, to be read from rows of that schema or of an older one.
#[derive(Debug, Clone)]
pub(crate) struct Wanted {
    schema: SchemaRef,
    columns: Vec<usize>,
    output: SchemaRef,
}

impl Wanted {
    /// The columns at `projection` of `schema`; all without one.
    ///
    /// # Errors
    /// [`StorageError::Schema`] when there is no such column.
    pub(crate) fn new(schema: &SchemaRef, projection: Option<&[usize]>) -> Result<Self, StorageError> {
        let Some(projection) = projection else {
            let columns = (0..schema.fields().len()).collect();
            return Ok(Self { schema: schema.clone(), columns, output: schema.clone() });
        };
        let output = schema
            .project(projection)
            .map_err(|e| StorageError::Schema { what: format!("no such column to project: {e}") })?;
        Ok(Self { schema: schema.clone(), columns: projection.to_vec(), output: Arc::new(output) })
    }

    /// The schema of what is read.
    pub(crate) fn output(&self) -> &SchemaRef {
        &self.output
    }

    /// The columns to read of rows of schema `stored`.
    pub(crate) fn places(&self, stored: &Schema) -> Vec<usize> {
        self.columns.iter().filter_map(|index| place(&self.schema, stored, *index)).collect()
    }

    /// Rows of the output from the columns at [`Wanted::places`].
    ///
    /// # Errors
    /// [`StorageError::Schema`] when they are of other types.
    pub(crate) fn rows(
        &self,
        stored: &Schema,
        read: impl IntoIterator<Item = ArrayRef>,
        rows: usize,
    ) -> Result<RecordBatch, StorageError> {
        let mut read = read.into_iter();
        let column = |index: &usize| match place(&self.schema, stored, *index) {
            Some(_) => read.next().ok_or_else(|| unfit("a column is missing")),
            None => filled(self.schema.field(*index), rows),
        };
        let columns = self.columns.iter().map(column).collect::<Result<Vec<_>, _>>()?;
        let options = RecordBatchOptions::new().with_row_count(Some(rows));
        RecordBatch::try_new_with_options(self.output.clone(), columns, &options).map_err(unfit)
    }

    /// The columns of rows in memory.
    ///
    /// # Errors
    /// [`StorageError::Schema`] when the rows have no such columns.
    pub(crate) fn of(&self, rows: &RecordBatch) -> Result<RecordBatch, StorageError> {
        if Arc::ptr_eq(&self.output, rows.schema_ref()) {
            return Ok(rows.clone());
        }
        let stored = rows.schema_ref();
        let read = self.places(stored).into_iter().map(|at| rows.columns().get(at).cloned());
        let read: Option<Vec<ArrayRef>> = read.collect();
        self.rows(stored, read.ok_or_else(|| unfit("a column is missing"))?, rows.num_rows())
    }

    /// The same of rows with their offsets.
    ///
    /// # Errors
    /// [`StorageError::Schema`] when the rows have no such columns.
    pub(crate) fn of_stored(&self, stored: &StoredBatch) -> Result<StoredBatch, StorageError> {
        let batch = self.of(&stored.batch)?;
        Ok(StoredBatch { batch, ..stored.clone() })
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{rows, schema};
    use super::*;
    use arrow::array::{Array, AsArray, Int64Array, StringArray};
    use arrow::datatypes::{DataType, Int64Type};
    use std::collections::HashMap;

    fn field(name: &str, data_type: DataType, fill: Option<&ArrayRef>) -> Field {
        let field = Field::new(name, data_type, fill.is_none());
        let metadata = fill.map(|fill| (FILL_METADATA.to_owned(), encode_fill(fill).unwrap()));
        field.with_metadata(metadata.into_iter().collect::<HashMap<_, _>>())
    }

    /// `id, name, items`, then `added` bigint default 7, `note` text, then `rowtime`.
    fn wide() -> SchemaRef {
        let seven: ArrayRef = Arc::new(Int64Array::from(vec![7]));
        let mut fields: Vec<Field> = schema().fields().iter().map(|field| field.as_ref().clone()).collect();
        let rowtime = fields.pop().unwrap();
        fields.push(field("added", DataType::Int64, Some(&seven)));
        fields.push(field("note", DataType::Utf8, None));
        fields.push(rowtime);
        Arc::new(Schema::new(fields))
    }

    #[test]
    fn added_columns_are_filled_and_later_ones_left_out() {
        let (old, wide) = (rows(0..3), wide());
        let all = Wanted::new(&wide, None).unwrap().of(&old).unwrap();
        assert_eq!(all.schema(), wide);
        assert_eq!(all.column(3).as_primitive::<Int64Type>().values(), &[7, 7, 7]);
        assert_eq!(all.column(4).null_count(), 3);
        assert_eq!((all.column(0), all.column(5)), (old.column(0), old.column(3)));
        let some = Wanted::new(&wide, Some(&[5, 3, 1])).unwrap().of(&old).unwrap();
        assert_eq!(some, all.project(&[5, 3, 1]).unwrap());
        assert_eq!(Wanted::new(&schema(), None).unwrap().of(&all).unwrap(), old);
        assert!(Wanted::new(&wide, Some(&[6])).is_err());
    }

    #[test]
    fn only_schemas_with_fewer_columns_of_the_same_types_are_older() {
        assert!(is_older(&schema(), &wide()) && is_older(&wide(), &wide()) && !is_older(&wide(), &schema()));
        assert_eq!(without_later(&wide(), 3).fields(), schema().fields());
        let other = Schema::new(vec![Field::new("id", DataType::Utf8, false), schema().field(3).clone()]);
        assert!(!is_older(&other, &schema()));
    }

    #[test]
    fn a_default_of_any_type_survives_as_text() {
        let texts: ArrayRef = Arc::new(StringArray::from(vec!["a \u{1F600} \0"]));
        for value in [Arc::clone(rows(4..5).column(2)), texts, Arc::clone(rows(4..5).column(3))] {
            assert_eq!(*decode_fill(&encode_fill(&value).unwrap()).unwrap(), *value);
        }
        assert!(decode_fill("0").is_err() && decode_fill("zz").is_err() && decode_fill("00").is_err());
    }
}
