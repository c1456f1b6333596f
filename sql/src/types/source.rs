//! The Arrow arrays behind a `ColumnEncoder`, grouped by what they mean.
//!
//! Owns the choice of which Arrow type stands for which SQL type. Leaves out writing (`encoder.rs`).

use super::encoder::{ColumnEncoder, NamedField};
use arrow::array::{
    Array, ArrayRef, AsArray, BinaryArray, BinaryViewArray, BooleanArray, Decimal32Array, Decimal64Array,
    Decimal128Array, Decimal256Array, FixedSizeBinaryArray, Float16Array, Float32Array, Float64Array, Int8Array,
    Int16Array, Int32Array, Int64Array, IntervalDayTimeArray, IntervalMonthDayNanoArray, IntervalYearMonthArray,
    LargeBinaryArray, LargeStringArray, PrimitiveArray, StringArray, StringViewArray, UInt8Array, UInt16Array,
    UInt32Array, UInt64Array, make_array,
};
use arrow::buffer::NullBuffer;
use arrow::compute::cast;
use arrow::datatypes::{ArrowPrimitiveType, DataType, IntervalUnit, TimeUnit};
use arrow::datatypes::{
    Date32Type, Date64Type, Decimal32Type, Decimal64Type, Decimal128Type, Decimal256Type, DurationMicrosecondType,
    DurationMillisecondType, DurationNanosecondType, DurationSecondType, Float16Type, Float32Type, Float64Type,
    Int8Type, Int16Type, Int32Type, Int64Type, IntervalDayTimeType, IntervalMonthDayNanoType, IntervalYearMonthType,
    Time32MillisecondType, Time32SecondType, Time64MicrosecondType, Time64NanosecondType, TimestampMicrosecondType,
    TimestampMillisecondType, TimestampNanosecondType, TimestampSecondType, UInt8Type, UInt16Type, UInt32Type,
    UInt64Type,
};
use millstream_catalog::SqlType;
use millstream_catalog::schema::StructField;
use std::ops::Range;

/// An array, typed.
#[derive(Debug)]
pub(crate) enum Source {
    /// Only NULLs.
    Null,
    Boolean(BooleanArray),
    Int(Ints),
    Float(Floats),
    Decimal(Decimals),
    /// Text and JSON.
    Text(Bytes),
    Bytea(Bytes),
    Uuid(Bytes),
    Date(Days),
    Time(Micros),
    Timestamp(Micros),
    TimestampTz(Micros),
    Interval(Intervals),
    List(Lists),
    Struct(Structs),
    Map(Maps),
    /// Keys, and the encoder of the values.
    Dictionary(Keys, Box<ColumnEncoder>),
    /// What has no SQL form; shown as Arrow shows it.
    Display(ArrayRef),
}

#[derive(Debug)]
pub(crate) enum Ints {
    I8(Int8Array),
    I16(Int16Array),
    I32(Int32Array),
    I64(Int64Array),
    U8(UInt8Array),
    U16(UInt16Array),
    U32(UInt32Array),
    U64(UInt64Array),
}

#[derive(Debug)]
pub(crate) enum Floats {
    F16(Float16Array),
    F32(Float32Array),
    F64(Float64Array),
}

#[derive(Debug)]
pub(crate) enum Decimals {
    D32(Decimal32Array),
    D64(Decimal64Array),
    D128(Decimal128Array),
    D256(Decimal256Array),
}

#[derive(Debug)]
pub(crate) enum Bytes {
    Utf8(StringArray),
    LargeUtf8(LargeStringArray),
    Utf8View(StringViewArray),
    Binary(BinaryArray),
    LargeBinary(LargeBinaryArray),
    BinaryView(BinaryViewArray),
    Fixed(FixedSizeBinaryArray),
}

#[derive(Debug)]
pub(crate) enum Days {
    Date32(PrimitiveArray<Date32Type>),
    Date64(PrimitiveArray<Date64Type>),
}

/// Integers of some unit of time, as microseconds.
#[derive(Debug)]
pub(crate) struct Micros {
    values: Counts,
    unit: TimeUnit,
}

#[derive(Debug)]
enum Counts {
    Narrow(arrow::buffer::ScalarBuffer<i32>, Option<NullBuffer>),
    Wide(arrow::buffer::ScalarBuffer<i64>, Option<NullBuffer>),
}

#[derive(Debug)]
pub(crate) enum Intervals {
    MonthDayNano(IntervalMonthDayNanoArray),
    YearMonth(IntervalYearMonthArray),
    DayTime(IntervalDayTimeArray),
    Duration(Micros),
}

/// A list array: where each cell's elements are, and their encoder.
#[derive(Debug)]
pub(crate) struct Lists {
    offsets: Offsets,
    nulls: Option<NullBuffer>,
    pub(crate) items: Box<ColumnEncoder>,
}

/// A struct array: the encoder of each field, behind its name as JSON has it.
#[derive(Debug)]
pub(crate) struct Structs {
    pub(crate) fields: Vec<NamedField>,
    nulls: Option<NullBuffer>,
}

/// A map array: where each cell's entries are, and the encoders of keys and values.
#[derive(Debug)]
pub(crate) struct Maps {
    offsets: arrow::buffer::OffsetBuffer<i32>,
    nulls: Option<NullBuffer>,
    pub(crate) keys: Box<ColumnEncoder>,
    pub(crate) values: Box<ColumnEncoder>,
}

#[derive(Debug)]
enum Offsets {
    Small(arrow::buffer::OffsetBuffer<i32>),
    Large(arrow::buffer::OffsetBuffer<i64>),
    Fixed(usize),
}

/// The keys of a dictionary array.
#[derive(Debug)]
pub(crate) struct Keys {
    indexes: Vec<usize>,
    nulls: Option<NullBuffer>,
}

impl Source {
    /// The source of `array` for cells of `sql_type`.
    pub(crate) fn new(array: &dyn Array, sql_type: &SqlType) -> Self {
        if let Some(source) = Self::native(array, sql_type) {
            return source;
        }
        let as_stored = cast(&make_array(array.to_data()), &sql_type.arrow()).ok();
        let native = as_stored.and_then(|stored| Self::native(stored.as_ref(), sql_type));
        native.unwrap_or_else(|| Self::Display(make_array(array.to_data())))
    }

    /// Without a cast; `None` when the Arrow type does not stand for `sql_type`.
    fn native(array: &dyn Array, sql_type: &SqlType) -> Option<Self> {
        if *array.data_type() == DataType::Null {
            return Some(Self::Null);
        }
        if let DataType::Dictionary(..) = array.data_type() {
            return dictionary(array, sql_type);
        }
        match sql_type {
            SqlType::Boolean => array.as_boolean_opt().cloned().map(Self::Boolean),
            SqlType::SmallInt | SqlType::Integer | SqlType::BigInt => Ints::of(array).map(Self::Int),
            SqlType::Real | SqlType::Double => Floats::of(array).map(Self::Float),
            SqlType::Numeric { .. } => {
                Decimals::of(array).map(Self::Decimal).or_else(|| Ints::of(array).map(Self::Int))
            }
            SqlType::Text | SqlType::Varchar(_) | SqlType::Char(_) | SqlType::Json | SqlType::Jsonb => {
                Bytes::of_text(array).map(Self::Text)
            }
            SqlType::Bytea => Bytes::of_binary(array).map(Self::Bytea),
            SqlType::Uuid => Bytes::of_binary(array).map(Self::Uuid),
            SqlType::Date => Days::of(array).map(Self::Date),
            SqlType::Time => Micros::of_time(array).map(Self::Time),
            SqlType::Timestamp => Micros::of_timestamp(array).map(Self::Timestamp),
            SqlType::TimestampTz => Micros::of_timestamp(array).map(Self::TimestampTz),
            SqlType::Interval => Intervals::of(array).map(Self::Interval),
            SqlType::Array(item) => Lists::of(array, item).map(Self::List),
            SqlType::Struct(fields) => Structs::of(array, fields).map(Self::Struct),
            SqlType::Map(key, value) => Maps::of(array, key, value).map(Self::Map),
        }
    }

    pub(crate) fn is_null(&self, row: usize) -> bool {
        match self {
            Self::Null => true,
            Self::Boolean(values) => values.is_null(row),
            Self::Int(values) => values.as_array().is_null(row),
            Self::Float(values) => values.as_array().is_null(row),
            Self::Decimal(values) => values.as_array().is_null(row),
            Self::Text(values) | Self::Bytea(values) | Self::Uuid(values) => values.as_array().is_null(row),
            Self::Date(Days::Date32(values)) => values.is_null(row),
            Self::Date(Days::Date64(values)) => values.is_null(row),
            Self::Time(values) | Self::Timestamp(values) | Self::TimestampTz(values) => values.is_null(row),
            Self::Interval(values) => values.is_null(row),
            Self::List(values) => is_null(values.nulls.as_ref(), row),
            Self::Struct(values) => is_null(values.nulls.as_ref(), row),
            Self::Map(values) => is_null(values.nulls.as_ref(), row),
            Self::Dictionary(keys, values) => is_null(keys.nulls.as_ref(), row) || values.is_null(keys.index(row)),
            Self::Display(array) => array.is_null(row),
        }
    }
}

fn is_null(nulls: Option<&NullBuffer>, row: usize) -> bool {
    nulls.is_some_and(|nulls| nulls.is_null(row))
}

fn dictionary(array: &dyn Array, sql_type: &SqlType) -> Option<Source> {
    let dictionary = array.as_any_dictionary_opt()?;
    if dictionary.values().is_empty() {
        return Some(Source::Null);
    }
    let keys = Keys { indexes: dictionary.normalized_keys(), nulls: dictionary.keys().nulls().cloned() };
    Some(Source::Dictionary(keys, Box::new(ColumnEncoder::new(dictionary.values().as_ref(), sql_type))))
}

impl Keys {
    /// The position of a cell's value.
    pub(crate) fn index(&self, row: usize) -> usize {
        self.indexes[row]
    }
}

fn primitive<T: ArrowPrimitiveType>(array: &dyn Array) -> Option<PrimitiveArray<T>> {
    array.as_primitive_opt::<T>().cloned()
}

impl Ints {
    fn of(array: &dyn Array) -> Option<Self> {
        match array.data_type() {
            DataType::Int8 => primitive::<Int8Type>(array).map(Self::I8),
            DataType::Int16 => primitive::<Int16Type>(array).map(Self::I16),
            DataType::Int32 => primitive::<Int32Type>(array).map(Self::I32),
            DataType::Int64 => primitive::<Int64Type>(array).map(Self::I64),
            DataType::UInt8 => primitive::<UInt8Type>(array).map(Self::U8),
            DataType::UInt16 => primitive::<UInt16Type>(array).map(Self::U16),
            DataType::UInt32 => primitive::<UInt32Type>(array).map(Self::U32),
            DataType::UInt64 => primitive::<UInt64Type>(array).map(Self::U64),
            _ => None,
        }
    }

    fn as_array(&self) -> &dyn Array {
        match self {
            Self::I8(values) => values,
            Self::I16(values) => values,
            Self::I32(values) => values,
            Self::I64(values) => values,
            Self::U8(values) => values,
            Self::U16(values) => values,
            Self::U32(values) => values,
            Self::U64(values) => values,
        }
    }

    pub(crate) fn value(&self, row: usize) -> i128 {
        match self {
            Self::I8(values) => values.value(row).into(),
            Self::I16(values) => values.value(row).into(),
            Self::I32(values) => values.value(row).into(),
            Self::I64(values) => values.value(row).into(),
            Self::U8(values) => values.value(row).into(),
            Self::U16(values) => values.value(row).into(),
            Self::U32(values) => values.value(row).into(),
            Self::U64(values) => values.value(row).into(),
        }
    }
}

impl Floats {
    fn of(array: &dyn Array) -> Option<Self> {
        match array.data_type() {
            DataType::Float16 => primitive::<Float16Type>(array).map(Self::F16),
            DataType::Float32 => primitive::<Float32Type>(array).map(Self::F32),
            DataType::Float64 => primitive::<Float64Type>(array).map(Self::F64),
            _ => None,
        }
    }

    fn as_array(&self) -> &dyn Array {
        match self {
            Self::F16(values) => values,
            Self::F32(values) => values,
            Self::F64(values) => values,
        }
    }

    pub(crate) fn value(&self, row: usize) -> f64 {
        match self {
            Self::F16(values) => values.value(row).to_f64(),
            Self::F32(values) => values.value(row).into(),
            Self::F64(values) => values.value(row),
        }
    }
}

impl Decimals {
    fn of(array: &dyn Array) -> Option<Self> {
        match array.data_type() {
            DataType::Decimal32(..) => primitive::<Decimal32Type>(array).map(Self::D32),
            DataType::Decimal64(..) => primitive::<Decimal64Type>(array).map(Self::D64),
            DataType::Decimal128(..) => primitive::<Decimal128Type>(array).map(Self::D128),
            DataType::Decimal256(..) => primitive::<Decimal256Type>(array).map(Self::D256),
            _ => None,
        }
    }

    fn as_array(&self) -> &dyn Array {
        match self {
            Self::D32(values) => values,
            Self::D64(values) => values,
            Self::D128(values) => values,
            Self::D256(values) => values,
        }
    }
}

impl Bytes {
    fn of_text(array: &dyn Array) -> Option<Self> {
        match array.data_type() {
            DataType::Utf8 => array.as_string_opt::<i32>().cloned().map(Self::Utf8),
            DataType::LargeUtf8 => array.as_string_opt::<i64>().cloned().map(Self::LargeUtf8),
            DataType::Utf8View => array.as_string_view_opt().cloned().map(Self::Utf8View),
            _ => None,
        }
    }

    fn of_binary(array: &dyn Array) -> Option<Self> {
        match array.data_type() {
            DataType::Binary => array.as_binary_opt::<i32>().cloned().map(Self::Binary),
            DataType::LargeBinary => array.as_binary_opt::<i64>().cloned().map(Self::LargeBinary),
            DataType::BinaryView => array.as_binary_view_opt().cloned().map(Self::BinaryView),
            DataType::FixedSizeBinary(_) => array.as_fixed_size_binary_opt().cloned().map(Self::Fixed),
            _ => None,
        }
    }

    fn as_array(&self) -> &dyn Array {
        match self {
            Self::Utf8(values) => values,
            Self::LargeUtf8(values) => values,
            Self::Utf8View(values) => values,
            Self::Binary(values) => values,
            Self::LargeBinary(values) => values,
            Self::BinaryView(values) => values,
            Self::Fixed(values) => values,
        }
    }
}

impl Days {
    fn of(array: &dyn Array) -> Option<Self> {
        match array.data_type() {
            DataType::Date32 => primitive::<Date32Type>(array).map(Self::Date32),
            DataType::Date64 => primitive::<Date64Type>(array).map(Self::Date64),
            _ => None,
        }
    }

    /// Days since 1970.
    pub(crate) fn days(&self, row: usize) -> i64 {
        match self {
            Self::Date32(values) => values.value(row).into(),
            Self::Date64(values) => values.value(row).div_euclid(86_400_000),
        }
    }
}

impl Micros {
    fn wide<T: ArrowPrimitiveType<Native = i64>>(array: &dyn Array, unit: TimeUnit) -> Option<Self> {
        let array = array.as_primitive_opt::<T>()?;
        Some(Self { values: Counts::Wide(array.values().clone(), array.nulls().cloned()), unit })
    }

    fn narrow<T: ArrowPrimitiveType<Native = i32>>(array: &dyn Array, unit: TimeUnit) -> Option<Self> {
        let array = array.as_primitive_opt::<T>()?;
        Some(Self { values: Counts::Narrow(array.values().clone(), array.nulls().cloned()), unit })
    }

    fn of_time(array: &dyn Array) -> Option<Self> {
        match array.data_type() {
            DataType::Time32(unit @ TimeUnit::Second) => Self::narrow::<Time32SecondType>(array, *unit),
            DataType::Time32(unit) => Self::narrow::<Time32MillisecondType>(array, *unit),
            DataType::Time64(unit @ TimeUnit::Microsecond) => Self::wide::<Time64MicrosecondType>(array, *unit),
            DataType::Time64(unit) => Self::wide::<Time64NanosecondType>(array, *unit),
            _ => None,
        }
    }

    fn of_timestamp(array: &dyn Array) -> Option<Self> {
        let DataType::Timestamp(unit, _) = array.data_type() else { return None };
        match unit {
            TimeUnit::Second => Self::wide::<TimestampSecondType>(array, *unit),
            TimeUnit::Millisecond => Self::wide::<TimestampMillisecondType>(array, *unit),
            TimeUnit::Microsecond => Self::wide::<TimestampMicrosecondType>(array, *unit),
            TimeUnit::Nanosecond => Self::wide::<TimestampNanosecondType>(array, *unit),
        }
    }

    fn of_duration(array: &dyn Array) -> Option<Self> {
        let DataType::Duration(unit) = array.data_type() else { return None };
        match unit {
            TimeUnit::Second => Self::wide::<DurationSecondType>(array, *unit),
            TimeUnit::Millisecond => Self::wide::<DurationMillisecondType>(array, *unit),
            TimeUnit::Microsecond => Self::wide::<DurationMicrosecondType>(array, *unit),
            TimeUnit::Nanosecond => Self::wide::<DurationNanosecondType>(array, *unit),
        }
    }

    fn is_null(&self, row: usize) -> bool {
        let (Counts::Narrow(_, nulls) | Counts::Wide(_, nulls)) = &self.values;
        is_null(nulls.as_ref(), row)
    }

    /// Microseconds; saturates.
    pub(crate) fn micros(&self, row: usize) -> i64 {
        let count = match &self.values {
            Counts::Narrow(values, _) => i64::from(values[row]),
            Counts::Wide(values, _) => values[row],
        };
        match self.unit {
            TimeUnit::Second => count.saturating_mul(1_000_000),
            TimeUnit::Millisecond => count.saturating_mul(1000),
            TimeUnit::Microsecond => count,
            TimeUnit::Nanosecond => count.div_euclid(1000),
        }
    }
}

impl Intervals {
    fn of(array: &dyn Array) -> Option<Self> {
        match array.data_type() {
            DataType::Interval(IntervalUnit::MonthDayNano) => {
                primitive::<IntervalMonthDayNanoType>(array).map(Self::MonthDayNano)
            }
            DataType::Interval(IntervalUnit::YearMonth) => {
                primitive::<IntervalYearMonthType>(array).map(Self::YearMonth)
            }
            DataType::Interval(IntervalUnit::DayTime) => primitive::<IntervalDayTimeType>(array).map(Self::DayTime),
            DataType::Duration(_) => Micros::of_duration(array).map(Self::Duration),
            _ => None,
        }
    }

    fn is_null(&self, row: usize) -> bool {
        match self {
            Self::MonthDayNano(values) => values.is_null(row),
            Self::YearMonth(values) => values.is_null(row),
            Self::DayTime(values) => values.is_null(row),
            Self::Duration(values) => values.is_null(row),
        }
    }
}

impl Structs {
    fn of(array: &dyn Array, fields: &[StructField]) -> Option<Self> {
        let array = array.as_struct_opt().filter(|array| array.num_columns() == fields.len())?;
        let field = |(field, column): (&StructField, &ArrayRef)| {
            let mut name = Vec::new();
            super::json::write_string(field.name.as_bytes(), &mut name);
            (name, ColumnEncoder::new(column.as_ref(), &field.sql_type))
        };
        Some(Self { fields: fields.iter().zip(array.columns()).map(field).collect(), nulls: array.nulls().cloned() })
    }
}

impl Maps {
    fn of(array: &dyn Array, key: &SqlType, value: &SqlType) -> Option<Self> {
        let array = array.as_map_opt()?;
        Some(Self {
            offsets: array.offsets().clone(),
            nulls: array.nulls().cloned(),
            keys: Box::new(ColumnEncoder::new(array.keys().as_ref(), key)),
            values: Box::new(ColumnEncoder::new(array.values().as_ref(), value)),
        })
    }

    /// Where the entries of a cell are.
    pub(crate) fn range(&self, row: usize) -> Range<usize> {
        self.offsets[row] as usize..self.offsets[row + 1] as usize
    }
}

impl Lists {
    fn of(array: &dyn Array, item: &SqlType) -> Option<Self> {
        let (offsets, values) = match array.data_type() {
            DataType::List(_) => {
                let list = array.as_list_opt::<i32>()?;
                (Offsets::Small(list.offsets().clone()), list.values())
            }
            DataType::LargeList(_) => {
                let list = array.as_list_opt::<i64>()?;
                (Offsets::Large(list.offsets().clone()), list.values())
            }
            DataType::FixedSizeList(_, len) => {
                let list = array.as_fixed_size_list_opt()?;
                (Offsets::Fixed(usize::try_from(*len).ok()?), list.values())
            }
            _ => return None,
        };
        let items = Box::new(ColumnEncoder::new(values.as_ref(), item));
        Some(Self { offsets, nulls: array.nulls().cloned(), items })
    }

    /// Where the elements of a cell are.
    pub(crate) fn range(&self, row: usize) -> Range<usize> {
        match &self.offsets {
            Offsets::Small(offsets) => offsets[row] as usize..offsets[row + 1] as usize,
            Offsets::Large(offsets) => offsets[row] as usize..offsets[row + 1] as usize,
            Offsets::Fixed(len) => row * len..(row + 1) * len,
        }
    }
}
