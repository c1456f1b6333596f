//! Properties: what is written is read back, other engines' Arrow types write the same, noise never panics.

use super::{binary_of, column, named, text_of};
use crate::types::{ColumnBuilder, ColumnEncoder, assign_array, is_assignable};
use arrow::array::{
    Array, ArrayRef, Date64Array, Decimal256Array, DictionaryArray, DurationMicrosecondArray, FixedSizeBinaryArray,
    Int8Array, Int32Array, IntervalYearMonthArray, LargeListArray, LargeStringArray, ListArray, NullArray,
    StringViewArray, TimestampMillisecondArray, TimestampNanosecondArray, TimestampSecondArray, UInt32Array,
    UInt64Array,
};
use arrow::buffer::OffsetBuffer;
use arrow::datatypes::{DataType, Field, Int32Type, i256};
use datafusion::common::ScalarValue;
use millstream_catalog::SqlType;
use millstream_catalog::model::SqlState;
use proptest::prelude::*;
use std::sync::Arc;

const ALL: &[&str] = &[
    "boolean",
    "smallint",
    "integer",
    "bigint",
    "real",
    "double precision",
    "numeric(38,10)",
    "numeric(5,2)",
    "text",
    "varchar(5)",
    "char(5)",
    "bytea",
    "date",
    "time",
    "timestamp",
    "timestamptz",
    "interval",
    "uuid",
    "json",
    "jsonb",
    "integer[]",
    "text[]",
    "jsonb[]",
    "timestamptz[]",
    "integer[][]",
];

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn noise_never_panics(bytes in prop::collection::vec(any::<u8>(), 0..60)) {
        for name in ALL {
            for is_text in [true, false] {
                let mut builder = ColumnBuilder::new(&named(name), 1);
                let outcome = if is_text { builder.append_text(&bytes) } else { builder.append_binary(&bytes) };
                if outcome.is_ok() {
                    let array = builder.finish();
                    text_of(&array, &named(name));
                    binary_of(&array, &named(name));
                }
            }
        }
    }

    #[test]
    fn likely_noise_never_panics(text in "[-+0-9:. TZeEPDHMSJjanbcAUG/{}\",\\\\NULx\\[\\]]{0,40}") {
        for name in ALL {
            if let Ok(array) = column(&named(name), text.as_bytes()) {
                let written = text_of(&array, &named(name));
                let again = column(&named(name), written.as_bytes()).unwrap();
                prop_assert_eq!(text_of(&again, &named(name)), written, "{} {}", name, text);
            }
        }
    }

    #[test]
    fn numbers_round_trip(int in any::<i64>(), double in any::<f64>(), real in any::<f32>(), wide in any::<i64>()) {
        let trip = |value: ScalarValue, sql_type: SqlType| {
            let array = value.to_array().unwrap();
            let back = column(&sql_type, text_of(&array, &sql_type).as_bytes()).unwrap();
            assert_eq!(&back, &array);
            let mut builder = ColumnBuilder::new(&sql_type, 1);
            builder.append_binary(&binary_of(&array, &sql_type)).unwrap();
            assert_eq!(&builder.finish(), &array);
        };
        trip(ScalarValue::Int64(Some(int)), SqlType::BigInt);
        if !double.is_nan() {
            trip(ScalarValue::Float64(Some(double)), SqlType::Double);
        }
        if !real.is_nan() {
            trip(ScalarValue::Float32(Some(real)), SqlType::Real);
        }
        let numeric = SqlType::Numeric { precision: 38, scale: 10 };
        trip(ScalarValue::Decimal128(Some(i128::from(wide) * 1_000_003), 38, 10), numeric);
    }

    #[test]
    fn times_round_trip(micros in -210_866_803_200_000_000i64..i64::MAX, months in any::<i32>(), days in any::<i32>(), span in -9_000_000_000_000_000i64..9_000_000_000_000_000) {
        let trip = |value: ScalarValue, sql_type: SqlType| {
            let array = value.to_array().unwrap();
            let back = column(&sql_type, text_of(&array, &sql_type).as_bytes()).unwrap();
            assert_eq!(&back, &array, "{}", text_of(&array, &sql_type));
            let mut builder = ColumnBuilder::new(&sql_type, 1);
            builder.append_binary(&binary_of(&array, &sql_type)).unwrap();
            assert_eq!(&builder.finish(), &array);
        };
        trip(ScalarValue::TimestampMicrosecond(Some(micros), None), SqlType::Timestamp);
        trip(ScalarValue::TimestampMicrosecond(Some(micros), Some("UTC".into())), SqlType::TimestampTz);
        let interval = arrow::datatypes::IntervalMonthDayNano::new(months, days, span * 1000);
        trip(ScalarValue::IntervalMonthDayNano(Some(interval)), SqlType::Interval);
    }

    #[test]
    fn text_and_arrays_round_trip(items in prop::collection::vec(prop::option::of("[^\\x00]{0,8}"), 0..5)) {
        let list = SqlType::Array(Box::new(SqlType::Text));
        let mut builder = ColumnBuilder::new(&list, 1);
        for item in &items {
            match item {
                Some(text) => builder.items().unwrap().append_text(text.as_bytes()).unwrap(),
                None => builder.items().unwrap().append_null(),
            }
        }
        builder.end_items();
        let array = builder.finish();
        prop_assert_eq!(&column(&list, text_of(&array, &list).as_bytes()).unwrap(), &array);
        let mut builder = ColumnBuilder::new(&list, 1);
        builder.append_binary(&binary_of(&array, &list)).unwrap();
        prop_assert_eq!(&builder.finish(), &array);
    }
}

#[test]
fn other_arrow_types_write_the_same() {
    let cases: Vec<(ArrayRef, &str, &str)> = vec![
        (Arc::new(StringViewArray::from(vec!["a"])), "text", "a"),
        (Arc::new(LargeStringArray::from(vec!["a"])), "varchar(3)", "a"),
        (Arc::new(DictionaryArray::<Int32Type>::from_iter([Some("x")])), "text", "x"),
        (Arc::new(Int8Array::from(vec![-3])), "smallint", "-3"),
        (Arc::new(UInt32Array::from(vec![u32::MAX])), "bigint", "4294967295"),
        (Arc::new(UInt64Array::from(vec![u64::MAX])), "numeric(20,0)", "18446744073709551615"),
        (
            Arc::new(Decimal256Array::from(vec![i256::from_i128(-12345)]).with_precision_and_scale(50, 3).unwrap()),
            "numeric(38,3)",
            "-12.345",
        ),
        (Arc::new(TimestampSecondArray::from(vec![978_310_020])), "timestamp", "2001-01-01 00:47:00"),
        (Arc::new(TimestampMillisecondArray::from(vec![1500])), "timestamptz", "1970-01-01 00:00:01.5+00"),
        (Arc::new(TimestampNanosecondArray::from(vec![-1])), "timestamp", "1969-12-31 23:59:59.999999"),
        (Arc::new(Date64Array::from(vec![86_400_000])), "date", "1970-01-02"),
        (Arc::new(DurationMicrosecondArray::from(vec![90_061_000_000])), "interval", "1 day 01:01:01"),
        (Arc::new(IntervalYearMonthArray::from(vec![14])), "interval", "1 year 2 mons"),
        (Arc::new(FixedSizeBinaryArray::try_from_iter(std::iter::once(vec![1u8, 255])).unwrap()), "bytea", "\\x01ff"),
        (Arc::new(Int32Array::from(vec![7])), "text", "7"),
        (
            Arc::new(LargeListArray::new(
                Arc::new(Field::new("item", DataType::Int32, true)),
                OffsetBuffer::from_lengths([2]),
                Arc::new(Int32Array::from(vec![Some(1), None])),
                None,
            )),
            "integer[]",
            "{1,NULL}",
        ),
    ];
    for (array, name, expected) in cases {
        assert_eq!(text_of(&array, &named(name)), expected, "{name}");
        assert!(!binary_of(&array, &named(name)).is_empty());
    }
    let nulls: ArrayRef = Arc::new(NullArray::new(1));
    assert!(!ColumnEncoder::new(nulls.as_ref(), &SqlType::Text).text(0, &mut Vec::new()));
}

#[test]
fn sliced_lists_write_their_own_elements() {
    let list = ListArray::from_iter_primitive::<Int32Type, _, _>([Some(vec![Some(1)]), Some(vec![Some(2), Some(3)])]);
    let slice = list.slice(1, 1);
    assert_eq!(text_of(&(Arc::new(slice) as ArrayRef), &named("integer[]")), "{2,3}");
}

#[test]
fn assignment_follows_postgresql() {
    let assign = |text: &str, from: &str, to: &str| {
        let array = column(&named(from), text.as_bytes()).unwrap();
        assign_array(&array, &named(from), &named(to)).map(|array| text_of(&array, &named(to))).map_err(|e| e.error)
    };
    for (text, from, to, expected) in [
        ("7", "bigint", "integer", "7"),
        ("2.5", "double precision", "integer", "2"),
        ("3.5", "double precision", "integer", "4"),
        ("2.5", "numeric(5,1)", "integer", "3"),
        ("-2.5", "numeric(5,1)", "bigint", "-3"),
        ("0.1", "real", "double precision", "0.10000000149011612"),
        ("0.1", "double precision", "numeric(5,2)", "0.10"),
        ("0.30000000000000004", "double precision", "numeric(38,10)", "0.3000000000"),
        ("1.25", "numeric(5,2)", "double precision", "1.25"),
        ("9", "integer", "numeric(5,2)", "9.00"),
        ("t", "boolean", "text", "true"),
        ("12", "integer", "varchar(3)", "12"),
        ("ab", "char(4)", "text", "ab"),
        ("ab", "char(4)", "char(3)", "ab "),
        ("{\"b\": 1,\"a\":2}", "json", "jsonb", "{\"a\": 2, \"b\": 1}"),
        ("2001-01-01", "date", "timestamptz", "2001-01-01 00:00:00+00"),
        ("2001-01-01 10:00:00", "timestamp", "timestamptz", "2001-01-01 10:00:00+00"),
        ("1969-12-31 10:00:00", "timestamptz", "date", "1969-12-31"),
        ("1969-12-31 10:00:00", "timestamptz", "time", "10:00:00"),
        ("10:00", "time", "interval", "10:00:00"),
        ("1 day 25:00", "interval", "time", "01:00:00"),
        ("{1,2}", "bigint[]", "integer[]", "{1,2}"),
    ] {
        assert_eq!(assign(text, from, to).as_deref(), Ok(expected), "{text} {from} -> {to}");
    }
    for (text, from, to, sqlstate) in [
        ("2147483648", "bigint", "integer", SqlState::NumericValueOutOfRange),
        ("NaN", "double precision", "integer", SqlState::NumericValueOutOfRange),
        ("1e300", "double precision", "real", SqlState::NumericValueOutOfRange),
        ("1000", "integer", "numeric(5,2)", SqlState::NumericValueOutOfRange),
        ("abcdef", "text", "varchar(3)", SqlState::StringDataRightTruncation),
        ("1", "text", "integer", SqlState::DatatypeMismatch),
        ("t", "boolean", "integer", SqlState::DatatypeMismatch),
        ("1", "integer", "boolean", SqlState::DatatypeMismatch),
        ("{}", "text", "json", SqlState::DatatypeMismatch),
    ] {
        assert_eq!(assign(text, from, to).unwrap_err().sqlstate, sqlstate, "{text} {from} -> {to}");
    }
    assert!(is_assignable(&SqlType::Uuid, &SqlType::Text) && !is_assignable(&SqlType::Text, &SqlType::Uuid));
}

#[test]
fn scalars_are_assigned() {
    let mut builder = ColumnBuilder::new(&SqlType::SmallInt, 1);
    builder.append_scalar(&ScalarValue::Int64(Some(5))).unwrap();
    builder.append_scalar(&ScalarValue::Int32(None)).unwrap();
    assert!(builder.append_scalar(&ScalarValue::Int64(Some(70_000))).is_err());
    assert!(builder.append_scalar(&ScalarValue::Utf8(Some("5".into()))).is_err());
    assert_eq!(builder.finish().null_count(), 1);
    let mut builder = ColumnBuilder::new(&SqlType::Varchar(2), 1);
    builder.append_scalar(&ScalarValue::Utf8View(Some("ab ".into()))).unwrap();
    assert_eq!(text_of(&builder.finish(), &SqlType::Varchar(2)), "ab");
}
