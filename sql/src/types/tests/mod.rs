//! Tests of every type through the public builder and encoder.

mod golden;
mod property;

use super::*;
use arrow::array::ArrayRef;
use golden::GOLDENS;
use millstream_catalog::SqlType;
use millstream_catalog::model::SqlState;

/// The type of a name as the goldens spell it.
fn named(name: &str) -> SqlType {
    if let Some(item) = name.strip_suffix("[]") {
        return SqlType::Array(Box::new(named(item)));
    }
    let numbers: Vec<u32> = name
        .split(|c: char| !c.is_ascii_digit())
        .filter(|part| !part.is_empty())
        .map(|part| part.parse().unwrap())
        .collect();
    match name.split('(').next().unwrap() {
        "boolean" => SqlType::Boolean,
        "smallint" => SqlType::SmallInt,
        "integer" => SqlType::Integer,
        "bigint" => SqlType::BigInt,
        "real" => SqlType::Real,
        "double precision" => SqlType::Double,
        "numeric" => SqlType::Numeric { precision: numbers[0] as u8, scale: numbers[1] as i8 },
        "text" => SqlType::Text,
        "varchar" => SqlType::Varchar(numbers[0]),
        "char" => SqlType::Char(numbers[0]),
        "bytea" => SqlType::Bytea,
        "date" => SqlType::Date,
        "time" => SqlType::Time,
        "timestamp" => SqlType::Timestamp,
        "timestamptz" => SqlType::TimestampTz,
        "interval" => SqlType::Interval,
        "uuid" => SqlType::Uuid,
        "json" => SqlType::Json,
        "jsonb" => SqlType::Jsonb,
        other => panic!("unknown type {other}"),
    }
}

fn column(sql_type: &SqlType, text: &[u8]) -> Result<ArrayRef, ValueError> {
    let mut builder = ColumnBuilder::new(sql_type, 1);
    builder.append_text(text)?;
    Ok(builder.finish())
}

fn text_of(array: &ArrayRef, sql_type: &SqlType) -> String {
    let mut out = Vec::new();
    assert!(ColumnEncoder::new(array.as_ref(), sql_type).text(0, &mut out));
    String::from_utf8(out).unwrap()
}

fn binary_of(array: &ArrayRef, sql_type: &SqlType) -> Vec<u8> {
    let mut out = Vec::new();
    assert!(ColumnEncoder::new(array.as_ref(), sql_type).binary(0, &mut out));
    out
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[test]
fn every_golden_of_postgresql_holds() {
    let mut failures = Vec::new();
    for (name, text, expected) in GOLDENS {
        let sql_type = named(name);
        let found = column(&sql_type, text.as_bytes());
        let shown = match (&found, expected) {
            (Ok(array), Ok((output, binary))) => {
                let found = (text_of(array, &sql_type), hex(&binary_of(array, &sql_type)));
                if (found.0.as_str(), found.1.as_str()) == (*output, *binary) { continue } else { format!("{found:?}") }
            }
            (Err(error), Err((sqlstate, message))) => {
                if error.sqlstate.code() == *sqlstate && error.message == *message {
                    continue;
                } else {
                    format!("{error:?}")
                }
            }
            (Ok(array), Err(_)) => text_of(array, &sql_type),
            (Err(error), Ok(_)) => format!("{error:?}"),
        };
        failures.push(format!("{name} {text:?}: {shown}, PostgreSQL: {expected:?}"));
    }
    assert!(failures.is_empty(), "{} of {}:\n{}", failures.len(), GOLDENS.len(), failures.join("\n"));
}

#[test]
fn binary_forms_are_read_back() {
    for (name, text, expected) in GOLDENS {
        let sql_type = named(name);
        let (Ok(_), Ok(array)) = (expected, column(&sql_type, text.as_bytes())) else { continue };
        let mut builder = ColumnBuilder::new(&sql_type, 1);
        builder.append_binary(&binary_of(&array, &sql_type)).unwrap_or_else(|error| panic!("{name} {text}: {error}"));
        assert_eq!(text_of(&builder.finish(), &sql_type), text_of(&array, &sql_type), "{name} {text}");
    }
}

#[test]
fn refusals_of_ours_say_what_to_do() {
    for (name, text) in [
        ("numeric(5,2)", "NaN"),
        ("numeric(5,2)", "-Infinity"),
        ("timestamp", "infinity"),
        ("date", "-infinity"),
        ("timestamptz", "now"),
        ("date", "today"),
        ("integer[]", "[1:2]={1,2}"),
    ] {
        let error = column(&named(name), text.as_bytes()).unwrap_err();
        assert_eq!(error.sqlstate, SqlState::FeatureNotSupported, "{name} {text}");
        assert!(error.hint.is_some(), "{name} {text}");
    }
}

#[test]
fn invalid_utf8_and_nul_are_refused() {
    for (bytes, shown) in
        [(&b"a\xff"[..], "0xff"), (b"a\0b", "0x00"), (b"\xe2\x82", "0xe2 0x82"), (b"\xc3(", "0xc3 0x28")]
    {
        for name in ["text", "varchar(9)", "char(9)", "text[]"] {
            let literal = [&b"{"[..], bytes, b"}"].concat();
            let sql_type = named(name);
            let given = if name.ends_with("[]") { &literal[..] } else { bytes };
            let error = column(&sql_type, given).unwrap_err();
            assert_eq!(error.sqlstate, SqlState::CharacterNotInRepertoire, "{name}");
            assert_eq!(error.message, format!("invalid byte sequence for encoding \"UTF8\": {shown}"));
        }
    }
}

#[test]
fn nulls_are_nothing() {
    for (name, ..) in GOLDENS {
        let sql_type = named(name);
        let mut builder = ColumnBuilder::new(&sql_type, 1);
        builder.append_null();
        assert_eq!(builder.len(), 1);
        let array = builder.finish();
        assert_eq!(array.data_type(), &sql_type.arrow());
        let encoder = ColumnEncoder::new(array.as_ref(), &sql_type);
        let mut out = Vec::new();
        assert!(!encoder.text(0, &mut out) && !encoder.binary(0, &mut out) && out.is_empty());
        assert!(scalar_null(&sql_type).unwrap().is_null());
    }
}

#[test]
fn multidimensional_text_needs_a_nested_type() {
    let error = column(&named("integer[]"), b"{{1,2},{3,4}}").unwrap_err();
    assert_eq!(error.sqlstate, SqlState::FeatureNotSupported);
    assert!(column(&named("text[]"), b"{a,{b}}").is_err());
    let nested = named("integer[][]");
    let array = column(&nested, b"{{1,2},{3,NULL}}").unwrap();
    assert_eq!(text_of(&array, &nested), "{{1,2},{3,NULL}}");
    assert_eq!(oid(&nested), 1007);
}

#[test]
fn sizes_are_bounded() {
    let error = column(&SqlType::Char(u32::MAX), b"x").unwrap_err();
    assert_eq!(error.sqlstate, SqlState::ProgramLimitExceeded);
    let many = format!("[{}]", vec!["1e131000"; 1000].join(","));
    assert!(column(&SqlType::Jsonb, many.as_bytes()).is_err());
}
