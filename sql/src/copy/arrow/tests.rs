//! Tests of Arrow streams that come in: every type both ways, cuts anywhere, and streams that lie.

use super::super::tests::{column, decode_chunks, ident, no_eval, of, relation, result_columns};
use super::super::{CopyDecoder, CopyEncoder};
use crate::bind::insert::InsertRows;
use crate::dialect::ast::CopyFormat;
use crate::error::SqlError;
use crate::types::{ColumnBuilder, ColumnEncoder};
use arrow::array::*;
use arrow::buffer::{Buffer, OffsetBuffer, ScalarBuffer};
use arrow::compute::cast;
use arrow::datatypes::*;
use arrow::ipc::CompressionType;
use arrow::ipc::writer::{DictionaryHandling, IpcWriteOptions, StreamWriter};
use millstream_catalog::model::SqlState;
use millstream_catalog::model::limit::BATCH_ROWS_MAX;
use millstream_catalog::schema::StructField;
use millstream_catalog::{Relation, SqlType};
use proptest::prelude::*;
use std::sync::Arc;

fn stream_with(batches: &[RecordBatch], options: IpcWriteOptions) -> Vec<u8> {
    let mut writer = StreamWriter::try_new_with_options(Vec::new(), &batches[0].schema(), options).unwrap();
    batches.iter().for_each(|batch| writer.write(batch).unwrap());
    writer.into_inner().unwrap()
}

fn stream(batches: &[RecordBatch]) -> Vec<u8> {
    stream_with(batches, IpcWriteOptions::default())
}

fn batch(columns: Vec<(&str, ArrayRef)>) -> RecordBatch {
    RecordBatch::try_from_iter_with_nullable(columns.into_iter().map(|(name, array)| (name, array, true))).unwrap()
}

fn one(array: impl Array + 'static) -> RecordBatch {
    batch(vec![("a", Arc::new(array))])
}

fn read(relation: &Relation, bytes: &[u8]) -> Result<Vec<InsertRows>, SqlError> {
    decode_chunks(relation, None, &of(CopyFormat::Arrow), &[bytes])
}

/// What a column `a` of this type becomes, as text.
fn texts(sql_type: SqlType, array: impl Array + 'static) -> Result<Vec<String>, SqlError> {
    let rows = read(&relation(vec![column("a", sql_type.clone())]), &stream(&[one(array)]))?;
    let mut texts = Vec::new();
    for rows in rows {
        let array = rows.batch.column(0);
        assert_eq!(*array.data_type(), sql_type.arrow());
        let encoder = ColumnEncoder::new(array.as_ref(), &sql_type);
        for row in 0..array.len() {
            let mut text = Vec::new();
            let is_value = encoder.text(row, &mut text);
            texts.push(if is_value { String::from_utf8(text).unwrap() } else { "∅".to_owned() });
        }
    }
    Ok(texts)
}

fn refused(sql_type: SqlType, array: impl Array + 'static) -> (&'static str, String, String) {
    let error = texts(sql_type, array).unwrap_err();
    (error.sqlstate.code(), error.message, error.context.unwrap_or_default().into())
}

/// A column of every type, with values and NULLs.
fn every_type() -> (Relation, RecordBatch) {
    let array = |item: SqlType| SqlType::Array(Box::new(item));
    let all = [
        (SqlType::Boolean, ["t", "f"]),
        (SqlType::SmallInt, ["-32768", "7"]),
        (SqlType::Integer, ["2147483647", "0"]),
        (SqlType::BigInt, ["-9223372036854775808", "1"]),
        (SqlType::Real, ["1.5", "NaN"]),
        (SqlType::Double, ["-0", "Infinity"]),
        (SqlType::Numeric { precision: 38, scale: 10 }, ["1.5", "-9999999999999999999999999999.9999999999"]),
        (SqlType::Numeric { precision: 5, scale: 2 }, ["999.99", "0"]),
        (SqlType::Text, ["héllo", ""]),
        (SqlType::Varchar(3), ["äöü", "a"]),
        (SqlType::Char(3), ["ab", "ä"]),
        (SqlType::Bytea, ["\\x00ff", ""]),
        (SqlType::Date, ["4714-11-24 BC", "5874897-12-31"]),
        (SqlType::Time, ["24:00:00", "00:00:00.000001"]),
        (SqlType::Timestamp, ["4714-11-24 00:00:00 BC", "294247-01-10 04:00:54.775807"]),
        (SqlType::TimestampTz, ["1969-12-31 23:59:59.999999+00", "2001-02-03 04:05:06+07"]),
        (SqlType::Interval, ["1 year 2 days 00:00:00.000003", "-1 mons"]),
        (SqlType::Uuid, ["a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11", "00000000-0000-0000-0000-000000000000"]),
        (SqlType::Json, ["{\"b\" :1}", "[]"]),
        (SqlType::Jsonb, ["{\"b\": 1}", "1.50"]),
        (array(SqlType::Integer), ["{1,NULL,3}", "{}"]),
        (array(SqlType::Text), ["{a,\"b c\"}", "{NULL}"]),
        (array(array(SqlType::BigInt)), ["{{1,2},{3,4}}", "{{5}}"]),
    ];
    let mut columns = Vec::new();
    let mut arrays = Vec::new();
    for (i, (sql_type, values)) in all.into_iter().enumerate() {
        let mut builder = ColumnBuilder::new(&sql_type, 3);
        builder.append_text(values[0].as_bytes()).unwrap();
        builder.append_null();
        builder.append_text(values[1].as_bytes()).unwrap();
        arrays.push(builder.finish());
        columns.push(column(&format!("c{i}"), sql_type));
    }
    let relation = relation(columns);
    let fields: Vec<Field> =
        relation.schema.columns.iter().map(|column| column.sql_type.field(column.name.as_str(), true)).collect();
    let batch = RecordBatch::try_new(Arc::new(Schema::new(fields)), arrays).unwrap();
    (relation, batch)
}

#[test]
fn what_goes_out_comes_in_again_in_binary_and_arrow() {
    let (relation, batch) = every_type();
    for format in [CopyFormat::Arrow, CopyFormat::Binary] {
        let mut encoder = CopyEncoder::new(&of(format), &result_columns(&relation)).unwrap();
        let mut bytes = Vec::new();
        encoder.header(&mut bytes);
        for batch in [&batch, &batch.slice(1, 2)] {
            encoder.begin(batch).unwrap();
            while encoder.next(&mut bytes) {}
        }
        encoder.finish(&mut bytes);
        for cut in [1, 7, 64, 1000, bytes.len()] {
            let chunks: Vec<&[u8]> = bytes.chunks(cut).collect();
            let rows = decode_chunks(&relation, None, &of(format), &chunks).unwrap();
            let [rows] = rows.as_slice() else { panic!("{} batches", rows.len()) };
            let expected = arrow::compute::concat_batches(&batch.schema(), [&batch, &batch.slice(1, 2)]).unwrap();
            assert_eq!(rows.batch, expected, "{format:?} in pieces of {cut}");
        }
    }
}

#[test]
fn values_share_the_memory_of_their_message() {
    let numbers = Int64Array::from_iter_values(0..200_000);
    let strings = StringArray::from_iter_values((0..200_000).map(|n| n.to_string()));
    let bytes = stream(&[batch(vec![("n", Arc::new(numbers)), ("s", Arc::new(strings))])]);
    let s = relation(vec![column("s", SqlType::Text), column("n", SqlType::BigInt)]);
    let rows = read(&s, &bytes).unwrap();
    let sizes: Vec<usize> = rows.iter().map(|rows| rows.batch.num_rows()).collect();
    assert_eq!(sizes, [50_000; 4]);
    let memory = |rows: &InsertRows| {
        let data = rows.batch.column(1).to_data();
        data.buffers()[0].data_ptr()
    };
    let first = memory(&rows[0]);
    assert!(rows.iter().all(|rows| memory(rows) == first));
    assert_eq!(rows[0].batch.column(0).to_data().buffers()[1].data_ptr(), first);
    assert_eq!(rows[3].batch.column(0).as_string::<i32>().value(49_999), "199999");
}

#[test]
fn small_batches_become_one() {
    let s = relation(vec![column("a", SqlType::Integer)]);
    let small: Vec<RecordBatch> = (0..3_000).map(|n| one(Int32Array::from(vec![n, n]))).collect();
    let large = one(Int32Array::from_iter_values(0..BATCH_ROWS_MAX as i32 + 1));
    let bytes = stream(&[small.as_slice(), &[large], &small[..1]].concat());
    let sizes: Vec<usize> = read(&s, &bytes).unwrap().iter().map(|rows| rows.batch.num_rows()).collect();
    assert_eq!(sizes, [6_000, 32_769, 32_768, 2]);
}

#[test]
fn columns_are_matched_by_name_or_in_the_order_of_a_list() {
    let mut id = column("id", SqlType::Integer);
    id.is_nullable = false;
    let mut at = column("v", SqlType::Text);
    at.default = Some("'none'".into());
    let s = relation(vec![id, at, column("w", SqlType::Double)]);
    let ints = || Arc::new(Int32Array::from(vec![1, 2])) as ArrayRef;
    let times = || Arc::new(TimestampSecondArray::from(vec![Some(5), None])) as ArrayRef;
    let rows = read(&s, &stream(&[batch(vec![("rowtime", times()), ("id", ints())])])).unwrap();
    assert_eq!(rows[0].batch.column(0), &ints());
    assert_eq!(rows[0].batch.column(1).as_string::<i32>().value(1), "none");
    assert_eq!(rows[0].batch.column(2).null_count(), 2);
    let rowtime = rows[0].rowtime.as_ref().unwrap();
    assert_eq!(rowtime.as_primitive::<TimestampMicrosecondType>().value(0), 5_000_000);
    assert_eq!((rowtime.data_type(), rowtime.null_count()), (&SqlType::TimestampTz.arrow(), 1));

    let listed = [ident("w"), ident("id")];
    let bytes = stream(&[batch(vec![("x", ints()), ("y", ints())])]);
    let rows = decode_chunks(&s, Some(&listed), &of(CopyFormat::Arrow), &[&bytes]).unwrap();
    assert_eq!(rows[0].batch.column(2).as_primitive::<Float64Type>().values().as_ref(), [1.0, 2.0]);
    let error = decode_chunks(&s, Some(&listed[..1]), &of(CopyFormat::Arrow), &[&bytes]).unwrap_err();
    assert_eq!((error.sqlstate, error.message.as_str()), {
        (SqlState::BadCopyFileFormat, "the arrow stream has 2 columns, expected 1")
    });
    for (columns, code, message) in [
        (vec![("id", ints()), ("x", ints())], "42703", "column \"x\" of relation \"s\" does not exist"),
        (vec![("id", ints()), ("id", ints())], "42701", "column \"id\" specified more than once"),
        (vec![("w", ints())], "23502", "null value in column \"id\" of relation \"s\" violates not-null constraint"),
        (
            vec![("id", times())],
            "42804",
            "column \"id\" is of type integer but expression is of type Timestamp(s) in the arrow stream",
        ),
    ] {
        let schema = Schema::new(
            columns.iter().map(|(name, array)| Field::new(*name, array.data_type().clone(), true)).collect::<Vec<_>>(),
        );
        let columns = columns.into_iter().map(|(_, array)| array).collect();
        let error = read(&s, &stream(&[RecordBatch::try_new(Arc::new(schema), columns).unwrap()])).unwrap_err();
        assert_eq!((error.sqlstate.code(), error.message.as_str()), (code, message));
    }
    let bytes = stream(&[batch(vec![("id", Arc::new(Int32Array::from(vec![Some(1), Some(2), None])))])]);
    let error = read(&s, &bytes).unwrap_err();
    assert_eq!((error.sqlstate.code(), error.context.as_deref()), ("23502", Some("COPY s, row 3, column id")));
}

#[test]
fn types_of_the_same_kind_are_taken() {
    let dictionary: DictionaryArray<Int8Type> = ["x", "y", "x"].into_iter().collect();
    let ints = Int32Array::from(vec![Some(1), None, Some(-3)]);
    let as_type = |data_type: DataType| make_array(cast(&ints, &data_type).unwrap().to_data());
    let numeric = SqlType::Numeric { precision: 5, scale: 1 };
    assert_eq!(texts(SqlType::Text, dictionary.clone()).unwrap(), ["x", "y", "x"]);
    assert_eq!(texts(SqlType::Jsonb, StringViewArray::from(vec!["{\"b\":1}"])).unwrap(), ["{\"b\": 1}"]);
    assert_eq!(texts(SqlType::Text, NullArray::new(2)).unwrap(), ["∅", "∅"]);
    assert_eq!(texts(SqlType::Text, LargeStringArray::from(vec![Some("ä"), None])).unwrap(), ["ä", "∅"]);
    assert_eq!(texts(SqlType::Varchar(2), StringArray::from(vec!["ä ", "ä   "])).unwrap(), ["ä ", "ä "]);
    assert_eq!(texts(SqlType::Char(2), StringArray::from(vec!["ab", "a"])).unwrap(), ["ab", "a "]);
    for data_type in [DataType::Int8, DataType::Int16, DataType::Int64, DataType::Int32] {
        assert_eq!(texts(SqlType::SmallInt, as_type(data_type.clone())).unwrap(), ["1", "∅", "-3"]);
        assert_eq!(texts(SqlType::BigInt, as_type(data_type.clone())).unwrap(), ["1", "∅", "-3"]);
        assert_eq!(texts(SqlType::Double, as_type(data_type.clone())).unwrap(), ["1", "∅", "-3"]);
        assert_eq!(texts(numeric.clone(), as_type(data_type)).unwrap(), ["1.0", "∅", "-3.0"]);
    }
    assert_eq!(texts(SqlType::BigInt, UInt64Array::from(vec![7])).unwrap(), ["7"]);
    assert_eq!(texts(SqlType::Double, Float32Array::from(vec![1.5])).unwrap(), ["1.5"]);
    assert_eq!(texts(SqlType::Real, Float64Array::from(vec![1.1])).unwrap(), ["1.1"]);
    assert_eq!(texts(numeric.clone(), Float64Array::from(vec![1.25])).unwrap(), ["1.3"]);
    let decimals = Decimal128Array::from(vec![1_250, -1_250]).with_precision_and_scale(20, 3).unwrap();
    assert_eq!(texts(numeric, decimals).unwrap(), ["1.3", "-1.3"]);
    assert_eq!(
        texts(SqlType::Bytea, FixedSizeBinaryArray::try_from_iter([[1_u8, 2]].iter()).unwrap()).unwrap(),
        ["\\x0102"]
    );
    assert_eq!(texts(SqlType::Bytea, BinaryViewArray::from_iter_values([b"\0\xff"])).unwrap(), ["\\x00ff"]);
    assert_eq!(texts(SqlType::Date, Date64Array::from(vec![-1, 86_400_000])).unwrap(), ["1969-12-31", "1970-01-02"]);
    assert_eq!(texts(SqlType::Timestamp, Date32Array::from(vec![1])).unwrap(), ["1970-01-02 00:00:00"]);
    assert_eq!(
        texts(SqlType::TimestampTz, TimestampNanosecondArray::from(vec![-1]).with_timezone("Europe/Berlin")).unwrap(),
        ["1969-12-31 23:59:59.999999+00"]
    );
    let millis = TimestampMillisecondArray::from(vec![1]);
    assert_eq!(texts(SqlType::TimestampTz, millis.clone()).unwrap(), ["1970-01-01 00:00:00.001+00"]);
    assert_eq!(texts(SqlType::Timestamp, millis.with_timezone("UTC")).unwrap(), ["1970-01-01 00:00:00.001"]);
    assert_eq!(texts(SqlType::Time, Time32SecondArray::from(vec![3_601])).unwrap(), ["01:00:01"]);
    assert_eq!(texts(SqlType::Time, Time64NanosecondArray::from(vec![1_999])).unwrap(), ["00:00:00.000001"]);
    assert_eq!(texts(SqlType::Interval, DurationSecondArray::from(vec![90_061])).unwrap(), ["1 day 01:01:01"]);
    let nanos = IntervalMonthDayNanoArray::from(vec![IntervalMonthDayNano::new(1, 2, 3_999)]);
    assert_eq!(texts(SqlType::Interval, nanos).unwrap(), ["1 mon 2 days 00:00:00.000003"]);
}

#[test]
fn lists_are_taken_whatever_their_offsets() {
    let integers = SqlType::Array(Box::new(SqlType::Integer));
    let values = [Some(vec![Some(9)]), None, Some(vec![]), Some(vec![Some(1), None]), Some(vec![Some(2)])];
    let list = ListArray::from_iter_primitive::<Int64Type, _, _>(values.clone());
    let large = LargeListArray::from_iter_primitive::<Int16Type, _, _>(
        values.clone().map(|list| list.map(|list| list.into_iter().map(|v| v.map(|v| v as i16)).collect::<Vec<_>>())),
    );
    let expected = ["∅", "{}", "{1,NULL}", "{2}"];
    assert_eq!(texts(integers.clone(), list.slice(1, 4)).unwrap(), expected);
    assert_eq!(texts(integers.clone(), large.slice(1, 4)).unwrap(), expected);
    let pairs = [Some(vec![Some(1), Some(2)]), None, Some(vec![Some(3), None])];
    let pairs = FixedSizeListArray::from_iter_primitive::<Int32Type, _, _>(pairs, 2);
    assert_eq!(texts(integers.clone(), pairs.slice(1, 2)).unwrap(), ["∅", "{3,NULL}"]);
    let too_large =
        ListArray::from_iter_primitive::<Int64Type, _, _>([Some(vec![]), None, Some(vec![Some(1), Some(1 << 40)])]);
    let (code, _, context) = refused(integers, too_large);
    assert_eq!((code, context.as_str()), ("22003", "COPY s, row 3, column a"));
}

#[test]
fn values_that_do_not_fit_are_refused_as_insert_refuses_them() {
    let numeric = SqlType::Numeric { precision: 5, scale: 2 };
    let place = |row| format!("COPY s, row {row}, column a");
    let range = |text: &str, name: &str| format!("value \"{text}\" is out of range for type {name}");
    assert_eq!(
        refused(SqlType::SmallInt, Int64Array::from(vec![1, 70_000])),
        ("22003", range("70000", "smallint"), place(2))
    );
    assert_eq!(
        refused(SqlType::BigInt, UInt64Array::from(vec![u64::MAX])),
        ("22003", range("18446744073709551615", "bigint"), place(1))
    );
    assert_eq!(refused(SqlType::Real, Float64Array::from(vec![1e300])).0, "22003");
    let overflow = "numeric field overflow".to_owned();
    assert_eq!(
        refused(numeric.clone(), Int32Array::from(vec![Some(999), None, Some(1000)])),
        ("22003", overflow.clone(), place(3))
    );
    // Arrow does not hold the values of a decimal to its precision.
    let same = Decimal128Array::from(vec![99_999, 100_000]).with_precision_and_scale(5, 2).unwrap();
    assert_eq!(refused(numeric.clone(), same), ("22003", overflow, place(2)));
    assert_eq!(refused(numeric.clone(), Float64Array::from(vec![f64::NAN])).0, "0A000");
    let too_long = "value too long for type character varying(2)".to_owned();
    assert_eq!(refused(SqlType::Varchar(2), StringArray::from(vec!["ab", "äöü"])), ("22001", too_long, place(2)));
    let zero = "invalid byte sequence for encoding \"UTF8\": 0x00".to_owned();
    assert_eq!(refused(SqlType::Text, StringArray::from(vec!["a", "b\0"])), ("22021", zero, place(2)));
    assert_eq!(refused(SqlType::Json, StringArray::from(vec!["{", "{}"])).0, "22P02");
    assert_eq!(refused(SqlType::Date, Date32Array::from(vec![i32::MIN])).0, "22008");
    assert_eq!(refused(SqlType::Time, Time64MicrosecondArray::from(vec![-1])).0, "22008");
    assert_eq!(refused(SqlType::Timestamp, TimestampSecondArray::from(vec![i64::MAX])).0, "22008");
    assert_eq!(refused(SqlType::Timestamp, TimestampMicrosecondArray::from(vec![i64::MIN])).0, "22008");
    for (sql_type, array) in [
        (SqlType::Integer, make_array(Float64Array::from(vec![1.0]).to_data())),
        (SqlType::Text, make_array(Int32Array::from(vec![1]).to_data())),
        (SqlType::Uuid, make_array(StringArray::from(vec!["a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11"]).to_data())),
        (SqlType::Boolean, make_array(Int8Array::from(vec![1]).to_data())),
    ] {
        assert_eq!(refused(sql_type, array).0, "42804");
    }
    assert_eq!(refused(SqlType::Text, point([Some(1)], [None])).0, "42804");
}

/// Structs of `y` and `x`, the second of which is NULL over values.
fn point<const N: usize>(x: [Option<i64>; N], y: [Option<&str>; N]) -> StructArray {
    let fields = vec![Field::new("y", DataType::Utf8, true), Field::new("x", DataType::Int64, true)];
    let columns: Vec<ArrayRef> = vec![Arc::new(StringArray::from(y.to_vec())), Arc::new(Int64Array::from(x.to_vec()))];
    let nulls = (0..N).map(|row| row != 1).collect();
    StructArray::new(fields.into(), columns, Some(nulls))
}

#[test]
fn structs_and_maps_are_taken_by_names_and_keys() {
    let field = |name: &str, sql_type: SqlType| StructField { name: name.to_owned(), sql_type };
    let of = |names: &[&str]| SqlType::Struct(names.iter().map(|name| field(name, SqlType::Varchar(2))).collect());
    let points = SqlType::Struct(vec![
        field("x", SqlType::SmallInt),
        field("y", SqlType::Varchar(2)),
        field("z", SqlType::Date),
    ]);
    // What a NULL stands over fits nothing.
    let found = point([Some(1), Some(70_000), None], [Some("ab"), Some("too long"), None]);
    let expected = [r#"{"x":1,"y":"ab","z":null}"#, "∅", r#"{"x":null,"y":null,"z":null}"#];
    assert_eq!(texts(points.clone(), found.clone()).unwrap(), expected);
    assert_eq!(texts(points.clone(), found.slice(1, 2)).unwrap(), expected[1..]);
    let (code, _, context) = refused(points.clone(), point([Some(1), None, Some(70_000)], [None; 3]));
    assert_eq!((code, context.as_str()), ("22003", "COPY s, row 3, column a"));
    assert_eq!(refused(of(&["y"]), found.clone()).0, "42804", "x is no field");
    let pairs = point([Some(1), None, Some(1), Some(2)], [Some("a"), None, Some("b"), None]);
    let map = |offsets: Vec<i32>, keys: ArrayRef| {
        let fields = vec![Field::new("key", DataType::Int64, false), Field::new("value", DataType::Utf8, true)];
        let entries = StructArray::new(fields.into(), vec![keys, Arc::clone(pairs.column(0))], None);
        let field = Arc::new(Field::new("entries", entries.data_type().clone(), false));
        MapArray::new(field, OffsetBuffer::new(offsets.into()), entries, None, false)
    };
    let numbers = SqlType::Map(Box::new(SqlType::Integer), Box::new(SqlType::Text));
    let keys = || Arc::new(Int64Array::from(vec![1, 7, 1, 2]));
    let found = map(vec![0, 2, 2, 4], keys());
    let expected = [r#"{"1":"a","7":null}"#, "{}", r#"{"1":"b","2":null}"#];
    assert_eq!(texts(numbers.clone(), found.clone()).unwrap(), expected);
    assert_eq!(texts(numbers.clone(), found.slice(1, 2)).unwrap(), expected[1..]);
    let (code, _, context) = refused(numbers.clone(), map(vec![0, 0, 3, 4], keys()));
    assert_eq!((code, context.as_str()), ("42804", "COPY s, row 2, column a"));
    assert_eq!(refused(SqlType::Map(Box::new(SqlType::Date), Box::new(SqlType::Text)), found).0, "42804");
    // What a NULL stands over is no entry.
    let (field, offsets, entries, _, is_sorted) = map(vec![0, 0, 3, 4], keys()).into_parts();
    let nulls = arrow::buffer::NullBuffer::from(vec![true, false, true]);
    let found = MapArray::new(field, offsets, entries, Some(nulls), is_sorted);
    assert_eq!(texts(numbers, found).unwrap(), ["{}", "∅", r#"{"2":null}"#]);
}

#[test]
fn documents_that_go_out_come_in_again() {
    let (relation, batch) = documents();
    let mut encoder = CopyEncoder::new(&of(CopyFormat::Arrow), &result_columns(&relation)).unwrap();
    let mut bytes = Vec::new();
    encoder.header(&mut bytes);
    encoder.begin(&batch).unwrap();
    while encoder.next(&mut bytes) {}
    encoder.finish(&mut bytes);
    let found = decode_chunks(&relation, None, &of(CopyFormat::Arrow), &[&bytes]).unwrap();
    assert_eq!(found.len(), 1);
    assert_eq!(&found[0].batch.columns()[..batch.num_columns()], batch.columns());
}

#[test]
fn a_null_slot_may_hold_anything() {
    let nulls = Some(vec![true, false].into());
    let strings =
        StringArray::new(OffsetBuffer::new(ScalarBuffer::from(vec![0, 1, 2])), Buffer::from(b"a\0"), nulls.clone());
    assert_eq!(texts(SqlType::Text, strings).unwrap(), ["a", "∅"]);
    let decimals =
        Decimal128Array::new(vec![1, i128::MAX].into(), nulls.clone()).with_precision_and_scale(5, 2).unwrap();
    assert_eq!(texts(SqlType::Numeric { precision: 5, scale: 2 }, decimals).unwrap(), ["0.01", "∅"]);
    let times = TimestampSecondArray::new(vec![1, i64::MAX].into(), nulls);
    assert_eq!(texts(SqlType::Timestamp, times).unwrap(), ["1970-01-01 00:00:01", "∅"]);
}

/// A batch with most kinds of columns, as others write it.
fn mixed() -> (Relation, RecordBatch) {
    let dictionary: DictionaryArray<Int32Type> = ["one", "two", "one", "three"].into_iter().collect();
    let lists =
        ListArray::from_iter_primitive::<Int32Type, _, _>([Some(vec![Some(1)]), None, Some(vec![]), Some(vec![None])]);
    let columns: Vec<(&str, ArrayRef)> = vec![
        ("b", Arc::new(BooleanArray::from(vec![Some(true), None, Some(false), None]))),
        ("i", Arc::new(Int32Array::from(vec![Some(1), Some(2), None, Some(4)]))),
        (
            "s",
            Arc::new(StringArray::from(vec![
                Some("ä"),
                None,
                Some("a long text that compresses well, well, well"),
                Some(""),
            ])),
        ),
        (
            "v",
            Arc::new(StringViewArray::from(vec![
                Some("short"),
                Some("a text that is not short at all"),
                None,
                Some(""),
            ])),
        ),
        ("d", Arc::new(dictionary)),
        ("l", Arc::new(lists)),
        ("n", Arc::new(NullArray::new(4))),
        ("t", Arc::new(TimestampNanosecondArray::from(vec![1, 2, 3, 4]))),
        ("u", Arc::new(FixedSizeBinaryArray::try_from_iter([[7_u8; 16]; 4].iter()).unwrap())),
    ];
    let types = [
        SqlType::Boolean,
        SqlType::BigInt,
        SqlType::Text,
        SqlType::Text,
        SqlType::Text,
        SqlType::Array(Box::new(SqlType::BigInt)),
        SqlType::Integer,
        SqlType::TimestampTz,
        SqlType::Uuid,
    ];
    let named = columns.iter().zip(types).map(|((name, _), sql_type)| column(name, sql_type)).collect();
    (relation(named), batch(columns))
}

#[test]
fn compressed_streams_and_deltas_of_dictionaries_are_read() {
    let (relation, rows) = mixed();
    let plain = read(&relation, &stream(&[rows.clone(), rows.clone()])).unwrap();
    for compression in [CompressionType::LZ4_FRAME, CompressionType::ZSTD] {
        let options = IpcWriteOptions::default().try_with_compression(Some(compression)).unwrap();
        let found = read(&relation, &stream_with(&[rows.clone(), rows.clone()], options)).unwrap();
        assert_eq!(found[0].batch, plain[0].batch, "{compression:?}");
    }
    let values = |texts: &[&str]| Arc::new(StringArray::from(texts.to_vec())) as ArrayRef;
    let keys = |keys: Vec<i32>, texts: &[&str]| one(DictionaryArray::new(Int32Array::from(keys), values(texts)));
    let options = IpcWriteOptions::default().with_dictionary_handling(DictionaryHandling::Delta);
    let batches = [keys(vec![0, 1], &["p", "q"]), keys(vec![2, 0], &["p", "q", "r"])];
    let s = super::super::tests::relation(vec![column("a", SqlType::Text)]);
    let found = read(&s, &stream_with(&batches, options)).unwrap();
    assert_eq!(found[0].batch.column(0), &values(&["p", "q", "r", "p"]));
}

#[test]
fn streams_that_end_early_or_late_are_refused() {
    let (relation, rows) = mixed();
    let bytes = stream(&[rows]);
    let error = |bytes: &[u8]| read(&relation, bytes).unwrap_err();
    let mut ends = 0;
    for cut in 0..bytes.len() - 8 {
        match read(&relation, &bytes[..cut]) {
            Ok(_) => ends += 1,
            Err(error) => assert_eq!(error.sqlstate, SqlState::BadCopyFileFormat, "{cut}: {error}"),
        }
    }
    // Behind the schema, the dictionary and the rows.
    assert_eq!(ends, 2, "a stream may leave out its end only");
    assert_eq!(error(b"").message, "the arrow stream has no schema");
    assert_eq!(error(&[&bytes[..], b"x"].concat()).message, "the arrow stream has data after its end");
    assert_eq!(error(b"id,name\n1,2\n").message, "the arrow stream does not begin with a message");
    assert_eq!(error(b"ARROW1\0\0").message, "the arrow stream begins like an Arrow file");
    assert_eq!(
        error(&[&bytes[..bytes.len() - 8], &bytes[..]].concat()).message,
        "the arrow stream has a second schema"
    );
    let damaged = [&bytes[..bytes.len() - 8], b"\xff\xff\xff\xff\xff\xff\xff\x7f"].concat();
    assert_eq!(error(&damaged).message, "the arrow stream has a message whose metadata has 2147483647 bytes");
}

#[test]
fn text_that_is_not_utf8_is_refused() {
    let s = relation(vec![column("a", SqlType::Text)]);
    let mut bytes = stream(&[one(StringArray::from(vec!["good", "evil"]))]);
    let at = bytes.windows(4).position(|window| window == b"evil").unwrap();
    bytes[at] = 0xff;
    assert_eq!(read(&s, &bytes).unwrap_err().sqlstate, SqlState::CharacterNotInRepertoire);
    let mut bytes = stream(&[one(StringViewArray::from(vec!["good", "evil"]))]);
    let at = bytes.windows(4).position(|window| window == b"evil").unwrap();
    bytes[at] = 0xff;
    assert_eq!(read(&s, &bytes).unwrap_err().sqlstate, SqlState::CharacterNotInRepertoire);
}

#[test]
fn what_would_become_too_large_is_taken_in_parts_or_refused() {
    let s = relation(vec![column("a", SqlType::Text)]);
    let long = "x".repeat(1 << 20);
    let many: DictionaryArray<Int32Type> = std::iter::repeat_n(long.as_str(), 200).collect();
    let rows = read(&s, &stream(&[one(many)])).unwrap();
    assert!(rows.len() > 2, "{} batches", rows.len());
    assert_eq!(rows.iter().map(|rows| rows.batch.num_rows()).sum::<usize>(), 200);
    // Rows without bytes.
    let error = texts(SqlType::Text, NullArray::new(1 << 21)).unwrap_err();
    assert_eq!(error.sqlstate, SqlState::BadCopyFileFormat);
    // A frame of LZ4 that says it becomes 64 bytes, of four blocks of 4 MiB.
    let frame = [&[4, 0x22, 0x4d, 0x18, 0x60, 0x70, 0x73][..], &[1, 0, 0, 0, 0].repeat(4), &[0; 4]].concat();
    assert_eq!(super::vet::lz4_bytes_max(&frame), Some((16 << 20, 4 << 20)));
}

#[test]
fn values_without_bytes_are_not_taken_for_few() {
    let item = || Arc::new(Field::new("item", DataType::Null, true));
    let numeric = SqlType::Numeric { precision: 38, scale: 0 };
    let array = |item: SqlType| SqlType::Array(Box::new(item));
    let rows = 65_536;
    // 2^46 elements in a few hundred bytes.
    let fixed = ArrayData::builder(DataType::FixedSizeList(item(), 1 << 30))
        .len(rows)
        .add_child_data(NullArray::new(rows << 30).to_data())
        .build()
        .unwrap();
    let fixed = FixedSizeListArray::from(fixed);
    let list = |end: i32| {
        let offsets = OffsetBuffer::new(ScalarBuffer::from(vec![0, end]));
        ListArray::new(item(), offsets, Arc::new(NullArray::new(end as usize)), None)
    };
    let offsets = OffsetBuffer::new(ScalarBuffer::from(vec![0_i64, 1 << 40]));
    let large = LargeListArray::new(item(), offsets, Arc::new(NullArray::new(1 << 40)), None);
    let bits = DictionaryArray::new(
        Int32Array::from(vec![0; 100]),
        Arc::new(BooleanArray::new(arrow::buffer::BooleanBuffer::new_unset(1 << 24), None)),
    );
    let message = "a message of the arrow stream is too large".to_owned();
    let limit = ("54000", message, "COPY s, row 1 and after".to_owned());
    assert_eq!(refused(array(SqlType::BigInt), fixed.clone()), limit);
    assert_eq!(refused(array(SqlType::Boolean), fixed), limit);
    assert_eq!(refused(array(SqlType::BigInt), list(i32::MAX)), limit);
    assert_eq!(refused(array(SqlType::BigInt), large), limit);
    let limit = ("54000", "row exceeds 33554432 bytes".to_owned(), "COPY s, row 1".to_owned());
    assert_eq!(refused(array(numeric.clone()), list(1 << 26)), limit);
    assert_eq!(texts(array(SqlType::BigInt), list(3)).unwrap(), ["{NULL,NULL,NULL}"]);
    assert_eq!(texts(SqlType::Boolean, bits).unwrap().len(), 100);
    // Rows of many columns are taken in parts that are not large either.
    let names: Vec<String> = (0..1_000).map(|i| format!("c{i}")).collect();
    let s = relation(names.iter().map(|name| column(name, numeric.clone())).collect());
    let nulls = || Arc::new(NullArray::new(rows)) as ArrayRef;
    for columns in [1, names.len()] {
        let bytes = stream(&[batch(names[..columns].iter().map(|name| (name.as_str(), nulls())).collect())]);
        let found = read(&s, &bytes).unwrap();
        assert_eq!(found.iter().map(|rows| rows.batch.num_rows()).sum::<usize>(), rows);
        assert!(found.len() > 10, "{} batches", found.len());
    }
}

#[test]
fn what_is_held_back_is_counted() {
    let (relation, rows) = mixed();
    let bytes = stream(&[rows]);
    let mut decoder = CopyDecoder::new(&relation, None, &of(CopyFormat::Arrow), &mut no_eval).unwrap();
    assert_eq!(decoder.held_bytes().value(), 0);
    decoder.push(&bytes[..bytes.len() - 100]).unwrap();
    assert!(decoder.next_rows().unwrap().is_none());
    assert!(decoder.held_bytes().value() > 300, "{}", decoder.held_bytes());
    decoder.push(&bytes[bytes.len() - 100..]).unwrap();
    decoder.finish().unwrap();
    assert!(decoder.next_rows().unwrap().is_some() && decoder.next_rows().unwrap().is_none());
    let dictionary = decoder.held_bytes().value();
    assert!((1..100).contains(&dictionary), "{dictionary}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(if cfg!(debug_assertions) { 400 } else { 20_000 }))]

    #[test]
    fn damaged_streams_never_panic(
        has_documents in any::<bool>(),
        flips in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
        cut in any::<prop::sample::Index>(),
        compression in 0..3,
        words in prop::collection::vec((any::<prop::sample::Index>(), prop_oneof![Just(-1_i64), Just(i64::MAX), Just(i64::MIN), Just(1 << 31), any::<i64>()]), 0..3),
    ) {
        let (relation, rows) = if has_documents { documents() } else { mixed() };
        let compression = [None, Some(CompressionType::LZ4_FRAME), Some(CompressionType::ZSTD)][compression as usize];
        let options = IpcWriteOptions::default().try_with_compression(compression).unwrap();
        let mut bytes = stream_with(&[rows.clone(), rows], options);
        for (at, byte) in flips {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        for (at, word) in words {
            let at = at.index(bytes.len() - 8) & !7;
            bytes[at..at + 8].copy_from_slice(&word.to_le_bytes());
        }
        let cut = cut.index(bytes.len());
        let _ = read(&relation, &bytes);
        let _ = decode_chunks(&relation, None, &of(CopyFormat::Arrow), &[&bytes[..cut], &bytes[cut..]]);
    }

    #[test]
    fn damaged_data_of_every_format_is_read_or_refused_with_words(
        format in prop_oneof![
            Just(CopyFormat::Text), Just(CopyFormat::Csv), Just(CopyFormat::Json), Just(CopyFormat::Binary),
            Just(CopyFormat::Arrow),
        ],
        has_documents in any::<bool>(),
        edits in prop::collection::vec((any::<prop::sample::Index>(), 0..4, any::<u8>(), 0..SIGNS.len()), 1..5),
        cut in any::<prop::sample::Index>(),
    ) {
        let (relation, batch) = if has_documents { documents() } else { every_type() };
        let mut encoder = CopyEncoder::new(&of(format), &result_columns(&relation)).unwrap();
        let mut bytes = Vec::new();
        encoder.header(&mut bytes);
        encoder.begin(&batch).unwrap();
        while encoder.next(&mut bytes) {}
        encoder.finish(&mut bytes);
        for (at, kind, byte, sign) in edits {
            let at = at.index(bytes.len());
            match kind {
                0 => bytes[at] = byte,
                1 => drop(bytes.splice(at..at, SIGNS[sign].iter().copied())),
                2 => drop(bytes.splice(at..(at + SIGNS[sign].len()).min(bytes.len()), SIGNS[sign].iter().copied())),
                _ => drop(bytes.drain(at..(at + usize::from(byte % 16)).min(bytes.len()))),
            }
            bytes.push(b'\n');
        }
        let cut = cut.index(bytes.len());
        for chunks in [vec![&bytes[..]], vec![&bytes[..cut], &bytes[cut..]]] {
            match decode_chunks(&relation, None, &of(format), &chunks) {
                Ok(found) => {
                    for column in found.iter().flat_map(|rows| rows.batch.columns()) {
                        prop_assert!(column.to_data().validate_full().is_ok());
                    }
                }
                Err(error) => prop_assert!(error.sqlstate != SqlState::InternalError, "{format:?}: {error}"),
            }
        }
    }
}

/// What formats and types give a meaning.
const SIGNS: [&[u8]; 24] = [
    b"\"",
    b"\\",
    b"\\.\n",
    b"\t",
    b"\n",
    b"\r\n",
    b",",
    b"{",
    b"}",
    b"[",
    b"]",
    b":",
    b"\0",
    b"\xff\xff\xff\xff",
    b"\x7f\xff\xff\xff",
    b"\x80\0\0\0",
    b"1e999999999",
    b"-9223372036854775809",
    b"NaN",
    b"infinity",
    b"294276-12-31",
    b"\xc3",
    b"\\ud800",
    b"\xff\xff",
];

/// A column of every kind of document.
fn documents() -> (Relation, RecordBatch) {
    let field = |name: &str, sql_type: SqlType| StructField { name: name.to_owned(), sql_type };
    let point = || SqlType::Struct(vec![field("x", SqlType::Integer), field("y", SqlType::Text)]);
    let map = SqlType::Map(Box::new(SqlType::Integer), Box::new(SqlType::Array(Box::new(point()))));
    let all = [
        (point(), "{\"x\":1,\"y\":\"b\"}"),
        (map, "{\"1\":[{\"x\":2}],\"-2\":[null,{}]}"),
        (SqlType::Array(Box::new(point())), "[{\"y\":\"\\u00e4\"},null]"),
    ];
    let mut columns = Vec::new();
    let mut arrays = Vec::new();
    for (i, (sql_type, value)) in all.into_iter().enumerate() {
        let mut builder = ColumnBuilder::new(&sql_type, 2);
        builder.append_text(value.as_bytes()).unwrap();
        builder.append_null();
        arrays.push(builder.finish());
        columns.push(column(&format!("c{i}"), sql_type));
    }
    let relation = relation(columns);
    let columns = relation.schema.columns.iter();
    let fields: Vec<Field> = columns.map(|column| column.sql_type.field(column.name.as_str(), true)).collect();
    let batch = RecordBatch::try_new(Arc::new(Schema::new(fields)), arrays).unwrap();
    (relation, batch)
}
