//! Tests of copy data: formats both ways, chunks cut anywhere, errors with line and column.

use super::sink::default_bytes;
use super::{CopyDecoder, CopyEncoder};
use crate::bind::insert::InsertRows;
use crate::dialect::ast::{CopyColumns, CopyFormat, CopyHeader, CopyOptions, Ident, Position};
use crate::error::SqlError;
use crate::plan::ResultColumn;
use arrow::array::{Array, ArrayRef, FixedSizeBinaryArray, Int32Array, RecordBatch, StringViewArray};
use arrow::ipc::reader::StreamReader;
use datafusion::common::ScalarValue;
use millstream_catalog::model::limit::BATCH_ROWS_MAX;
use millstream_catalog::model::{Name, ShardId, SqlState, Timestamp, TopicId};
use millstream_catalog::schema::StructField;
use millstream_catalog::{Column, Relation, RelationKind, Schema, SqlType, TopicOptions};
use proptest::prelude::*;
use sqlparser::ast;
use std::sync::Arc;

pub(super) fn column(name: &str, sql_type: SqlType) -> Column {
    Column {
        name: Name::new(name).unwrap(),
        sql_type,
        is_nullable: true,
        is_key: false,
        default: None,
        is_hidden: false,
        is_headers: false,
    }
}

pub(super) fn relation(columns: Vec<Column>) -> Relation {
    Relation {
        id: TopicId::new(1),
        name: Name::new("s").unwrap(),
        kind: RelationKind::Stream,
        schema: Schema { columns },
        timestamp: None,
        watermark_delay: None,
        options: TopicOptions::default(),
        shard: ShardId::new(1),
        query: None,
        created_at: Timestamp::from_micros(0),
        sql: String::new(),
        fills: Default::default(),
        row_ids: None,
        is_materialized: false,
    }
}

/// id integer not null, name text, at timestamp default '2001-01-01', tags text[], doc jsonb
fn events() -> Relation {
    let mut id = column("id", SqlType::Integer);
    id.is_nullable = false;
    let mut at = column("at", SqlType::Timestamp);
    at.default = Some("'2001-01-01 00:00:00'".into());
    let tags = column("tags", SqlType::Array(Box::new(SqlType::Text)));
    relation(vec![id, column("name", SqlType::Text), at, tags, column("doc", SqlType::Jsonb)])
}

pub(super) fn ident(name: &str) -> Ident {
    Ident { name: Name::new(name).unwrap(), position: Position::new(7) }
}

pub(super) fn no_eval(_: &ast::Expr, _: &SqlType) -> Result<ScalarValue, SqlError> {
    Err(SqlError::internal("no expression here"))
}

pub(super) fn decode_chunks(
    relation: &Relation,
    columns: Option<&[Ident]>,
    options: &CopyOptions,
    chunks: &[&[u8]],
) -> Result<Vec<InsertRows>, SqlError> {
    let mut decoder = CopyDecoder::new(relation, columns, options, &mut no_eval)?;
    let mut batches = Vec::new();
    for chunk in chunks {
        decoder.push(chunk)?;
        drain(&mut decoder, &mut batches)?;
    }
    decoder.finish()?;
    drain(&mut decoder, &mut batches)?;
    Ok(batches)
}

fn drain(decoder: &mut CopyDecoder, batches: &mut Vec<InsertRows>) -> Result<(), SqlError> {
    while let Some(rows) = decoder.next_rows()? {
        batches.push(rows);
    }
    Ok(())
}

pub(super) fn result_columns(relation: &Relation) -> Vec<ResultColumn> {
    let columns = relation.schema.columns.iter();
    columns
        .map(|column| ResultColumn { name: column.name.to_string(), sql_type: column.sql_type.clone(), source: None })
        .collect()
}

fn encode(relation: &Relation, options: &CopyOptions, batch: &RecordBatch) -> String {
    String::from_utf8(pieces(options, &result_columns(relation), std::slice::from_ref(batch)).concat()).unwrap()
}

/// What is sent of a result, in the pieces it comes in.
fn pieces(options: &CopyOptions, columns: &[ResultColumn], batches: &[RecordBatch]) -> Vec<Vec<u8>> {
    let mut encoder = CopyEncoder::new(options, columns).unwrap();
    let mut pieces = vec![Vec::new()];
    encoder.header(&mut pieces[0]);
    for batch in batches {
        encoder.begin(batch).unwrap();
        let mut piece = Vec::new();
        while encoder.next(&mut piece) {
            pieces.push(std::mem::take(&mut piece));
        }
    }
    let mut end = Vec::new();
    encoder.finish(&mut end);
    pieces.push(end);
    pieces.retain(|piece| !piece.is_empty());
    pieces
}

/// What a COPY of `data` into `relation` stores, as text with `|` between columns and ∅ for NULL.
fn rows(relation: &Relation, options: &CopyOptions, data: &str) -> Result<Vec<String>, SqlError> {
    let batches = decode_chunks(relation, None, options, &[data.as_bytes()])?;
    let mut plain = CopyOptions::of(CopyFormat::Text);
    (plain.delimiter, plain.null) = (b'|', "∅".into());
    let lines: String = batches.iter().map(|rows| encode(relation, &plain, &rows.batch)).collect();
    Ok(lines.lines().map(str::to_owned).collect())
}

fn refused(relation: &Relation, options: &CopyOptions, data: &str) -> (&'static str, String, String) {
    let error = rows(relation, options, data).unwrap_err();
    (error.sqlstate.code(), error.message, error.context.unwrap_or_default().into())
}

pub(super) fn of(format: CopyFormat) -> CopyOptions {
    CopyOptions::of(format)
}

#[test]
fn text_is_read_as_postgresql_reads_it() {
    let data = "1\ta\\tb\\\\c\t\\N\t{x,NULL}\t{\"b\":1,\"a\":2}\n2\t\\101\\x42\\\nz\t2001-02-03 04:05:06\t{}\t[]\n\\.\nignored";
    assert_eq!(
        rows(&events(), &of(CopyFormat::Text), data).unwrap(),
        ["1|a\\tb\\\\c|∅|{x,NULL}|{\"a\": 2, \"b\": 1}", "2|AB\\nz|2001-02-03 04:05:06|{}|[]",]
    );
}

#[test]
fn csv_is_read_as_postgresql_reads_it() {
    let data = "1,\"a,\"\"b\"\"\r\nc\",,\"{x,\"\"y z\"\"}\",\r\n2,\"\",2001-02-03,,1\r\n3,x\"y,z\"w,,,";
    assert_eq!(
        rows(&events(), &of(CopyFormat::Csv), data).unwrap(),
        ["1|a,\"b\"\\r\\nc|∅|{x,\"y z\"}|∅", "2||2001-02-03 00:00:00|∅|1", "3|xy,zw|∅|∅|∅"]
    );
}

#[test]
fn csv_options_hold() {
    let mut options = of(CopyFormat::Csv);
    (options.delimiter, options.quote, options.escape) = (b';', b'\'', b'\\');
    options.null = "nil".into();
    options.header = CopyHeader::Match;
    options.force_null = CopyColumns::Named(vec![ident("name")]);
    options.force_not_null = CopyColumns::Named(vec![ident("doc")]);
    let data = "id;name;'at';tags;doc\n1;'it\\'s \\x';nil;nil;1\n2;'nil';nil;nil;2\n";
    assert_eq!(rows(&events(), &options, data).unwrap(), ["1|it's \\\\x|∅|∅|1", "2|∅|∅|∅|2"]);
    let (code, message, _) = refused(&events(), &options, "id;name;at;tags;nope\n");
    assert_eq!(code, "22P04");
    assert_eq!(message, "column name mismatch in header line field 5: got \"nope\", expected \"doc\"");
    let (_, message, _) = refused(&events(), &options, "id;name\n");
    assert_eq!(message, "wrong number of fields in header line: got 2, expected 5");
    options.force_null = CopyColumns::Named(vec![ident("zzz")]);
    assert!(rows(&events(), &options, "").is_err());
}

#[test]
fn json_is_one_object_per_line() {
    let data = r#"{"id":1,"name":"a\u00e9\n","at":"2001-02-03T04:05:06","tags":["x",null,"y z"],"doc":{"b":[1],"a":null}}

 { "doc" : "text" , "id" : 2 , "name" : {"nested": 1} }
{"id":3,"at":null,"tags":"{p,q}","na\u006de":true}"#;
    assert_eq!(
        rows(&events(), &of(CopyFormat::Json), data).unwrap(),
        [
            "1|aé\\n|2001-02-03 04:05:06|{x,NULL,\"y z\"}|{\"a\": null, \"b\": [1]}",
            "2|{\"nested\": 1}|2001-01-01 00:00:00|∅|\"text\"",
            "3|true|∅|{p,q}|∅",
        ]
    );
}

#[test]
fn errors_name_line_and_column() {
    let (text, csv, json) = (of(CopyFormat::Text), of(CopyFormat::Csv), of(CopyFormat::Json));
    let s = relation(vec![column("a", SqlType::Integer), column("b", SqlType::Text)]);
    for (options, data, code, message, detail) in [
        (
            &csv,
            "1,x\nabc,y\n",
            "22P02",
            "invalid input syntax for type integer: \"abc\"",
            "COPY s, line 2, column a: \"abc\"",
        ),
        (&csv, "1\n", "22P04", "missing data for column \"b\"", "COPY s, line 1: \"1\""),
        (&csv, "1,é,3\n", "22P04", "extra data after last expected column", "COPY s, line 1, character 5: \"1,é,3\""),
        (&csv, "1,\"2\n3", "22P04", "unterminated CSV quoted field", "COPY s, line 1, column b: \"2\n3\""),
        (
            &csv,
            "1,\"2\n3\"\nx,y",
            "22P02",
            "invalid input syntax for type integer: \"x\"",
            "COPY s, line 3, column a: \"x\"",
        ),
        (&csv, "1,2\r3\n", "22P04", "unquoted newline found in data", "COPY s, line 2"),
        (&csv, "1,2\n3\r,4", "22P04", "unquoted carriage return found in data", "COPY s, line 2"),
        (&text, "1\tx\n2\r\ty\n", "22P04", "literal carriage return found in data", "COPY s, line 2"),
        (&text, "1\tx\\.\n", "22P04", "end-of-copy marker corrupt", "COPY s, line 1, column b: \"x\\.\""),
        (
            &text,
            "99999999999\tx\n",
            "22003",
            "value \"99999999999\" is out of range for type integer",
            "COPY s, line 1, column a: \"99999999999\"",
        ),
        (
            &json,
            "{\"a\":1}\n{\"c\":1}",
            "42703",
            "key \"c\" is not a column of the COPY",
            "COPY s, line 2, character 2: \"{\"c\":1}\"",
        ),
        (&json, "[1]", "22P04", "line is not a JSON object", "COPY s, line 1, character 1: \"[1]\""),
        (
            &json,
            "{\"a\":1,}",
            "22P02",
            "invalid input syntax for type json",
            "COPY s, line 1, character 8: \"{\"a\":1,}\"",
        ),
        (&json, "{\"a\":1", "22P02", "invalid input syntax for type json", "COPY s, line 1, character 7: \"{\"a\":1\""),
        (
            &json,
            "{\"a\":1} x",
            "22P02",
            "invalid input syntax for type json",
            "COPY s, line 1, character 9: \"{\"a\":1} x\"",
        ),
        (
            &json,
            "{\"a\":1,\"a\":2}",
            "22P04",
            "duplicate key \"a\"",
            "COPY s, line 1, character 8: \"{\"a\":1,\"a\":2}\"",
        ),
        (
            &json,
            "{\"a\":[1]}",
            "22P02",
            "invalid input syntax for type integer: \"[1]\"",
            "COPY s, line 1, column a: \"[1]\"",
        ),
    ] {
        assert_eq!(refused(&s, options, data), (code, message.to_owned(), detail.to_owned()), "{data:?}");
    }
}

#[test]
fn a_byte_order_mark_is_passed_over_however_it_is_cut() {
    let s = relation(vec![column("a", SqlType::Integer)]);
    for (format, data) in [(CopyFormat::Csv, &b"\xEF\xBB\xBF7\n"[..]), (CopyFormat::Json, b"\xEF\xBB\xBF{\"a\":7}")] {
        for cut in 0..5 {
            let (head, tail) = data.split_at(cut);
            let batches = decode_chunks(&s, None, &of(format), &[head, tail]).unwrap();
            assert_eq!(encode(&s, &of(CopyFormat::Csv), &batches[0].batch), "7\n", "{format:?} {cut}");
        }
    }
    assert!(rows(&s, &of(CopyFormat::Text), "\u{feff}7\n").is_err());
    let long = format!("{}é", "x".repeat(99));
    let (_, _, context) = refused(&s, &of(CopyFormat::Csv), &long);
    assert_eq!(context, format!("COPY s, line 1, column a: \"{}...\"", "x".repeat(99)));
}

#[test]
fn not_null_names_the_line() {
    let message = "null value in column \"id\" of relation \"s\" violates not-null constraint".to_owned();
    let expected = ("23502", message, "COPY s, line 2, column id: null input".to_owned());
    assert_eq!(refused(&events(), &of(CopyFormat::Text), "1\t\\N\t\\N\t\\N\t\\N\n\\N\t\\N\t\\N\t\\N\t\\N\n"), expected);
    assert_eq!(refused(&events(), &of(CopyFormat::Json), "{\"id\":1}\n{\"name\":\"x\"}"), expected);
}

#[test]
fn column_lists_choose_and_defaults_fill() {
    let columns = [ident("rowtime"), ident("id")];
    let batches =
        decode_chunks(&events(), Some(&columns), &of(CopyFormat::Csv), &[b"2020-01-01 00:00:00Z,5\n,6\n"]).unwrap();
    let rows = &batches[0];
    assert_eq!(
        encode(&events(), &of(CopyFormat::Csv), &rows.batch),
        "5,,2001-01-01 00:00:00,,\n6,,2001-01-01 00:00:00,,\n"
    );
    let rowtime = rows.rowtime.as_ref().unwrap();
    assert_eq!((rowtime.len(), rowtime.null_count()), (2, 1));
    assert_eq!(rowtime.data_type(), &SqlType::TimestampTz.arrow());

    let error = decode_chunks(&events(), Some(&[ident("x")]), &of(CopyFormat::Csv), &[]).unwrap_err();
    assert_eq!((error.sqlstate, error.position), (SqlState::UndefinedColumn, Some(7)));
    let error = decode_chunks(&events(), Some(&[ident("id"), ident("id")]), &of(CopyFormat::Csv), &[]).unwrap_err();
    assert_eq!(error.sqlstate, SqlState::DuplicateColumn);
    let error = decode_chunks(&events(), Some(&[ident("rowoffset")]), &of(CopyFormat::Csv), &[]).unwrap_err();
    assert_eq!(error.sqlstate, SqlState::FeatureNotSupported);
}

#[test]
fn batches_are_bounded() {
    let s = relation(vec![column("a", SqlType::Integer)]);
    let data = "7\n".repeat(BATCH_ROWS_MAX + 1);
    let batches = decode_chunks(&s, None, &of(CopyFormat::Text), &[data.as_bytes()]).unwrap();
    let counts: Vec<usize> = batches.iter().map(|rows| rows.batch.num_rows()).collect();
    assert_eq!(counts, [BATCH_ROWS_MAX, 1]);
    assert!(decode_chunks(&s, None, &of(CopyFormat::Text), &[]).unwrap().is_empty());
}

#[test]
fn output_is_quoted_as_postgresql_quotes_it() {
    let s = relation(vec![column("a", SqlType::Text), column("b,c", SqlType::Double)]);
    let mut options = of(CopyFormat::Csv);
    let data = "{\"a\":\"\",\"b,c\":1.5}\n{\"a\":\"x,\\\"y\\n\",\"b,c\":\"NaN\"}\n{\"a\":null,\"b,c\":null}\n{\"a\":\"t\\t\\\\\",\"b,c\":1e20}";
    let batches = decode_chunks(&s, None, &of(CopyFormat::Json), &[data.as_bytes()]).unwrap();
    options.header = CopyHeader::Yes;
    assert_eq!(encode(&s, &options, &batches[0].batch), "a,\"b,c\"\n\"\",1.5\n\"x,\"\"y\n\",NaN\n,\nt\t\\,1e+20\n");
    options.force_quote = CopyColumns::All;
    assert!(encode(&s, &options, &batches[0].batch).contains("\"1.5\""));
    assert_eq!(
        encode(&s, &of(CopyFormat::Text), &batches[0].batch),
        "\t1.5\nx,\"y\\n\tNaN\n\\N\t\\N\nt\\t\\\\\t1e+20\n"
    );
    assert_eq!(
        encode(&s, &of(CopyFormat::Json), &batches[0].batch),
        "{\"a\":\"\",\"b,c\":1.5}\n{\"a\":\"x,\\\"y\\n\",\"b,c\":\"NaN\"}\n{\"a\":null,\"b,c\":null}\n{\"a\":\"t\\t\\\\\",\"b,c\":1e+20}\n"
    );
    options.force_quote = CopyColumns::Named(vec![ident("zzz")]);
    assert!(CopyEncoder::new(&options, &result_columns(&s)).is_err());
    let mut out = Vec::new();
    options.force_quote = CopyColumns::None;
    CopyEncoder::new(&options, &result_columns(&s)).unwrap().header(&mut out);
    assert_eq!(out, b"a,\"b,c\"\n");
}

#[test]
fn binary_output_has_postgresqls_layout() {
    let s = relation(vec![column("a", SqlType::Integer), column("b", SqlType::Text)]);
    let batches = decode_chunks(&s, None, &of(CopyFormat::Csv), &[b"7,\n,xy\n"]).unwrap();
    let (columns, binary) = (result_columns(&s), of(CopyFormat::Binary));
    let signature = b"PGCOPY\n\xff\r\n\0\0\0\0\0\0\0\0\0";
    let rows: [&[u8]; 2] = [b"\0\x02\0\0\0\x04\0\0\0\x07\xff\xff\xff\xff", b"\0\x02\xff\xff\xff\xff\0\0\0\x02xy"];
    let batch = batches[0].batch.clone();
    assert_eq!(pieces(&binary, &columns, &[batch]), [&[signature, rows[0]].concat(), rows[1], b"\xff\xff"]);
    assert_eq!(pieces(&binary, &columns, &[]), [[&signature[..], b"\xff\xff"].concat()]);
}

#[test]
fn arrow_output_is_one_stream_of_bounded_pieces() {
    let s = relation(vec![column("a", SqlType::Integer), column("b\"c", SqlType::Uuid), column("a", SqlType::Text)]);
    let columns = result_columns(&s);
    let (ints, uuids) = (Int32Array::from_iter_values(0..20_000), FixedSizeBinaryArray::new_null(16, 20_000));
    let views = StringViewArray::from_iter_values((0..20_000).map(|n| n.to_string()));
    let arrays: [(&str, ArrayRef); 3] = [("x", Arc::new(ints)), ("y", Arc::new(uuids)), ("z", Arc::new(views))];
    let batch = RecordBatch::try_from_iter(arrays).unwrap();
    let pieces = pieces(&of(CopyFormat::Arrow), &columns, &[batch.slice(0, 3), batch.slice(3, 19_997)]);
    assert!(pieces.len() >= 5 && pieces.iter().all(|piece| piece.len() <= 256 << 10), "{}", pieces.len());
    let bytes = pieces.concat();
    let reader = StreamReader::try_new(bytes.as_slice(), None).unwrap();
    assert_eq!(reader.schema().field(1), &SqlType::Uuid.field("b\"c", true));
    assert_eq!(reader.schema().field(2), &SqlType::Text.field("a", true));
    let read: Vec<RecordBatch> = reader.map(Result::unwrap).collect();
    assert_eq!(read.iter().map(RecordBatch::num_rows).collect::<Vec<_>>(), [3, 19_997]);
    assert_eq!(read[1].column(0), batch.slice(3, 19_997).column(0));
}

#[test]
fn json_output_has_json_values() {
    let data = "1\ta\t2001-02-03 04:05:06\t{x,NULL,\"y z\"}\t{\"b\":[1]}\n";
    let batches = decode_chunks(&events(), None, &of(CopyFormat::Text), &[data.as_bytes()]).unwrap();
    assert_eq!(
        encode(&events(), &of(CopyFormat::Json), &batches[0].batch),
        "{\"id\":1,\"name\":\"a\",\"at\":\"2001-02-03T04:05:06\",\"tags\":[\"x\",null,\"y z\"],\"doc\":{\"b\": [1]}}\n"
    );
}

#[test]
fn binary_is_read_as_postgresql_reads_it() {
    let mut id = column("id", SqlType::Integer);
    id.is_nullable = false;
    let s = relation(vec![id, column("b", SqlType::Text)]);
    let header = b"PGCOPY\n\xff\r\n\0\0\0\x12\x34\0\0\0\x03xyz";
    let row = b"\0\x02\0\0\0\x04\0\0\0\x07\0\0\0\x02\xc3\xa4";
    let read = |parts: &[&[u8]]| {
        let all = parts.concat();
        let whole = decode_chunks(&s, None, &of(CopyFormat::Binary), &[&all]);
        for cut in 1..all.len() {
            let chunks: Vec<&[u8]> = all.chunks(cut).collect();
            let found = decode_chunks(&s, None, &of(CopyFormat::Binary), &chunks);
            let batches = |found: &Vec<InsertRows>| found.iter().map(|rows| rows.batch.clone()).collect::<Vec<_>>();
            assert_eq!(found.as_ref().map(batches), whole.as_ref().map(batches), "{parts:?} in pieces of {cut}");
        }
        whole
    };
    for end in [&b"\xff\xff"[..], b"", b"\0"] {
        let rows = read(&[header, row, b"\0\x02\0\0\0\x04\x80\0\0\0\xff\xff\xff\xff", end]).unwrap();
        assert_eq!(encode(&s, &of(CopyFormat::Csv), &rows[0].batch), "7,ä\n-2147483648,\n");
    }
    let place = |line: usize, column: &str| format!("COPY s, line {line}, column {column}");
    for (parts, code, message, context) in [
        (vec![], "22P04", "COPY file signature not recognized", String::new()),
        (vec![&b"1\tx\n"[..]], "22P04", "COPY file signature not recognized", String::new()),
        (vec![&header[..13]], "22P04", "invalid COPY file header (missing flags)", String::new()),
        (vec![&header[..16]], "22P04", "invalid COPY file header (missing length)", String::new()),
        (vec![&header[..20]], "22P04", "invalid COPY file header (wrong length)", String::new()),
        (vec![&header[..11], b"\0\x01\0\0\0\0\0\0"], "22P04", "invalid COPY file header (WITH OIDS)", String::new()),
        (
            vec![&header[..11], b"\0\x02\0\0\0\0\0\0"],
            "22P04",
            "unrecognized critical flags in COPY file header",
            String::new(),
        ),
        (vec![&header[..15], b"\xff\xff\xff\xff"], "22P04", "invalid COPY file header (missing length)", String::new()),
        (vec![header, b"\0\x03"], "22P04", "row field count is 3, expected 2", "COPY s, line 1".to_owned()),
        (vec![header, row, &row[..9]], "22P04", "unexpected EOF in COPY data", place(2, "id")),
        (vec![header, row, &row[..15]], "22P04", "unexpected EOF in COPY data", place(2, "b")),
        (vec![header, row, b"\0\x02\xff\xff\xff\xfe"], "22P04", "invalid field size", place(2, "id")),
        (vec![header, row, b"\0\x02\x7f\xff\xff\xff"], "54000", "row exceeds 33554432 bytes", place(2, "id")),
        (vec![header, b"\xff\xff", row], "22P04", "received copy data after EOF marker", "COPY s, line 1".to_owned()),
        (vec![header, b"\0\x02\0\0\0\x02\0\0\0\0\0\0"], "22P03", "insufficient data left in message", place(1, "id")),
        (vec![header, b"\0\x02\0\0\0\x05\0\0\0\0\0\0\0\0\0"], "22P03", "incorrect binary data format", place(1, "id")),
        (
            vec![header, &row[..14], b"\xff\xff"],
            "22021",
            "invalid byte sequence for encoding \"UTF8\": 0xff",
            place(1, "b"),
        ),
        (
            vec![header, b"\0\x02\xff\xff\xff\xff\0\0\0\0"],
            "23502",
            "null value in column \"id\" of relation \"s\" violates not-null constraint",
            "COPY s, line 1, column id: null input".to_owned(),
        ),
    ] {
        let error = read(&parts).unwrap_err();
        let found = (error.sqlstate.code(), error.message.as_str(), error.context.as_deref().unwrap_or_default());
        assert_eq!(found, (code, message, context.as_str()), "{parts:?}");
    }
}

/// Data that means the same rows however it is cut; or the same error.
fn outcome(options: &CopyOptions, data: &[u8], cuts: &[usize]) -> Result<Vec<RecordBatch>, SqlError> {
    let s = relation(vec![column("a", SqlType::Text), column("b", SqlType::Text)]);
    let mut chunks = Vec::new();
    let mut rest = data;
    for cut in cuts {
        let (chunk, tail) = rest.split_at(cut % (rest.len() + 1));
        chunks.push(chunk);
        rest = tail;
    }
    chunks.push(rest);
    Ok(decode_chunks(&s, None, options, &chunks)?.into_iter().map(|rows| rows.batch).collect())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(500))]

    #[test]
    fn cuts_make_no_difference(
        data in "[ab,\"\\\\\t\r\n.N{}:1]{0,60}",
        cuts in prop::collection::vec(0usize..12, 0..12),
        format in 0usize..4,
    ) {
        let mut options = match format {
            0 => of(CopyFormat::Text),
            1 | 2 => of(CopyFormat::Csv),
            _ => of(CopyFormat::Json),
        };
        if format == 2 {
            options.escape = b'\\';
        }
        prop_assert_eq!(outcome(&options, data.as_bytes(), &cuts), outcome(&options, data.as_bytes(), &[]));
    }

    #[test]
    fn noise_never_panics(data in prop::collection::vec(any::<u8>(), 0..80), cuts in prop::collection::vec(0usize..20, 0..4)) {
        for format in [CopyFormat::Text, CopyFormat::Csv, CopyFormat::Json, CopyFormat::Binary, CopyFormat::Arrow] {
            let _ = outcome(&of(format), &data, &cuts);
        }
        let rows = [&b"PGCOPY\n\xff\r\n\0\0\0\0\0\0\0\0\0\0\x02"[..], &data].concat();
        prop_assert_eq!(outcome(&of(CopyFormat::Binary), &rows, &cuts), outcome(&of(CopyFormat::Binary), &rows, &[]));
    }

    #[test]
    fn what_is_written_is_read_back(cells in prop::collection::vec((prop::option::of("[^\\x00]{0,9}"), any::<Option<i32>>()), 1..20)) {
        let s = relation(vec![column("a", SqlType::Text), column("b", SqlType::Integer)]);
        let mut a = crate::types::ColumnBuilder::new(&SqlType::Text, 1);
        let mut b = crate::types::ColumnBuilder::new(&SqlType::Integer, 1);
        for (text, int) in &cells {
            match text {
                Some(text) => a.append_text(text.as_bytes()).unwrap(),
                None => a.append_null(),
            }
            b.append_scalar(&ScalarValue::Int32(*int)).unwrap();
        }
        let schema = arrow::datatypes::Schema::new(vec![SqlType::Text.field("a", true), SqlType::Integer.field("b", true)]);
        let batch = RecordBatch::try_new(std::sync::Arc::new(schema), vec![a.finish(), b.finish()]).unwrap();
        for format in [CopyFormat::Text, CopyFormat::Csv, CopyFormat::Json] {
            let text = encode(&s, &of(format), &batch);
            let batches = decode_chunks(&s, None, &of(format), &[text.as_bytes()]).unwrap();
            prop_assert_eq!(&batches[0].batch, &batch, "{}", text);
        }
    }
}

#[test]
fn batches_are_bounded_by_what_rows_become() {
    let fields = (0..1_000).map(|i| StructField { name: format!("f{i}"), sql_type: SqlType::Double });
    let wide = SqlType::Struct(fields.collect());
    let columns = (0..1_000).map(|i| column(&format!("c{i}"), SqlType::Double)).collect();
    let (json, text) = (of(CopyFormat::Json), of(CopyFormat::Text));
    let batches = |relation: &Relation, options: &CopyOptions, data: &str| {
        let batches = decode_chunks(relation, None, options, &[data.as_bytes()]).unwrap();
        let bytes = batches.iter().map(|rows| rows.batch.columns().iter().map(default_bytes).sum::<usize>());
        assert!(bytes.max().unwrap() < 64 << 20);
        (batches.len(), batches.iter().map(|rows| rows.batch.num_rows()).sum::<usize>())
    };
    let count = 20_000;
    let (found, rows) = batches(&relation(columns), &json, &"{}\n".repeat(count));
    assert!(found > 5 && rows == count, "{found} batches of {rows} rows");
    let arrays = relation(vec![column("a", SqlType::Array(Box::new(wide.clone())))]);
    let (found, rows) = batches(&arrays, &json, &"{\"a\":[{},null,{}]}\n".repeat(count / 3));
    assert!(found > 5 && rows == count / 3, "{found} batches of {rows} rows");
    let (found, rows) = batches(&relation(vec![column("a", SqlType::Char(10_000))]), &text, &"x\n".repeat(count));
    assert!(found > 5 && rows == count, "{found} batches of {rows} rows");
    let mut filled = column("b", SqlType::Text);
    filled.default = Some(format!("'{}'", "x".repeat(10_000)));
    let filled = relation(vec![column("a", SqlType::Integer), filled]);
    let (found, rows) = batches(&filled, &json, &"{}\n".repeat(count));
    assert!(found > 5 && rows == count, "{found} batches of {rows} rows");
    let too_large = format!("{{\"a\":[{}null]}}\n", "null,".repeat(100_000));
    let (code, message, _) = refused(&arrays, &json, &too_large);
    assert_eq!((code, message.as_str()), ("54000", "column of one statement exceeds 536870912 bytes"));
    let map = relation(vec![column("a", SqlType::Map(Box::new(SqlType::Integer), Box::new(wide)))]);
    let entries: String = (0..100_000).map(|i| format!("\"{i}\":null,")).collect();
    assert_eq!(refused(&map, &json, &format!("{{\"a\":{{{entries}\"-1\":null}}}}\n")).0, "54000");
}

#[test]
fn data_that_is_not_yet_a_row_is_counted() {
    let s = relation(vec![column("a", SqlType::Text)]);
    let value = "x".repeat(1 << 20);
    let header = b"PGCOPY\n\xff\r\n\0\0\0\0\0\0\0\0\0\0\x01\x01\0\0\0";
    for (format, start) in [(CopyFormat::Text, &b""[..]), (CopyFormat::Csv, b"\""), (CopyFormat::Binary, header)] {
        let mut decoder = CopyDecoder::new(&s, None, &of(format), &mut no_eval).unwrap();
        decoder.push(start).unwrap();
        decoder.push(value.as_bytes()).unwrap();
        assert!(decoder.held_bytes().value() >= 1 << 20, "{format:?}: {}", decoder.held_bytes());
    }
    let mut decoder = CopyDecoder::new(&s, None, &of(CopyFormat::Text), &mut no_eval).unwrap();
    decoder.push(format!("{value}\n").as_bytes()).unwrap();
    assert!(decoder.held_bytes().value() >= 1 << 20, "rows of a batch that is not full");
    decoder.finish().unwrap();
    assert!(decoder.next_rows().unwrap().is_some());
    assert_eq!(decoder.held_bytes().value(), 0);
}
