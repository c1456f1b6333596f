//! How wide a value is when it is stored, however few bytes it was given in.
//!
//! Two bytes of copy data may become a row of a thousand columns: what is made of data is bounded by this, and not by
//! the data. Pure.

use arrow::datatypes::DataType;
use millstream_catalog::SqlType;

/// The bytes that each value of a type takes at least in an Arrow array, NULL too.
pub(crate) fn least_bytes(data_type: &DataType) -> usize {
    match data_type {
        DataType::Null => 0,
        DataType::Boolean => 1,
        DataType::FixedSizeBinary(bytes) => usize::try_from(*bytes).unwrap_or(0),
        DataType::Struct(fields) => 1 + fields.iter().map(|field| least_bytes(field.data_type())).sum::<usize>(),
        // Others have an offset.
        other => other.primitive_width().unwrap_or(4),
    }
}

/// As [`least_bytes`], for a value of `sql_type` that is not NULL: a `char(n)` is filled with blanks.
pub(crate) fn filled_bytes(sql_type: &SqlType) -> usize {
    match sql_type {
        SqlType::Char(chars) => 4 + *chars as usize,
        other => least_bytes(&other.arrow()),
    }
}
