//! SQL values as JSON.
//!
//! Leaves out where they stand: COPY, `to_json`, and the text of STRUCT and MAP write them. Pure.

use super::datetime::write_timestamp_with;
use super::encoder::ColumnEncoder;
use super::json::write_string;
use millstream_catalog::SqlType;

/// Appends a cell as one JSON value, as PostgreSQL's `to_json` has it; a json value keeps its white space.
pub(crate) fn write_json(encoder: &ColumnEncoder, row: usize, scratch: &mut Vec<u8>, out: &mut Vec<u8>) {
    if encoder.is_null(row) {
        out.extend_from_slice(b"null");
        return;
    }
    if let Some((items, range)) = encoder.items(row) {
        out.push(b'[');
        for (i, item) in range.enumerate() {
            if i > 0 {
                out.push(b',');
            }
            write_json(items, item, scratch, out);
        }
        out.push(b']');
        return;
    }
    if let Some((fields, row)) = encoder.fields(row) {
        for (at, (name, cell)) in fields.iter().enumerate() {
            out.push(if at == 0 { b'{' } else { b',' });
            out.extend_from_slice(name);
            out.push(b':');
            write_json(cell, row, scratch, out);
        }
        out.push(b'}');
        return;
    }
    if let Some((keys, values, range)) = encoder.entries(row) {
        out.push(b'{');
        for (i, entry) in range.enumerate() {
            if i > 0 {
                out.push(b',');
            }
            scratch.clear();
            keys.text(entry, scratch);
            write_string(scratch, out);
            out.push(b':');
            write_json(values, entry, scratch, out);
        }
        out.push(b'}');
        return;
    }
    let start = out.len();
    match encoder.sql_type() {
        SqlType::Boolean => {
            scratch.clear();
            encoder.text(row, scratch);
            out.extend_from_slice(if scratch.as_slice() == b"t" { b"true" } else { b"false" });
        }
        SqlType::SmallInt | SqlType::Integer | SqlType::BigInt | SqlType::Numeric { .. } => {
            encoder.text(row, out);
        }
        SqlType::Real | SqlType::Double => {
            encoder.text(row, out);
            // NaN and the infinities are no JSON numbers.
            if matches!(out.last(), Some(b'N' | b'y')) {
                out.insert(start, b'"');
                out.push(b'"');
            }
        }
        SqlType::Json | SqlType::Jsonb => {
            encoder.text(row, out);
        }
        SqlType::Timestamp | SqlType::TimestampTz => json_timestamp(encoder, row, out),
        _ => {
            scratch.clear();
            encoder.text(row, scratch);
            write_string(scratch, out);
        }
    }
}

/// `"2001-01-01T00:47:00+00:00"`
fn json_timestamp(encoder: &ColumnEncoder, row: usize, out: &mut Vec<u8>) {
    let zone: &[u8] = if *encoder.sql_type() == SqlType::TimestampTz { b"+00:00" } else { b"" };
    out.push(b'"');
    write_timestamp_with(encoder.timestamp_micros(row).unwrap_or(0), b'T', zone, out);
    out.push(b'"');
}
