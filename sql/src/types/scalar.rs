//! Single values: query parameters and literals as DataFusion's scalars.
//!
//! Leaves out columns of values (`builder.rs`). The engine calls it for each bound parameter.

use super::builder::ColumnBuilder;
use super::error::ValueError;
use crate::error::SqlError;
use arrow::array::{Array, ArrayRef, AsArray};
use datafusion::common::ScalarValue;
use millstream_catalog::SqlType;
use std::sync::Arc;

impl From<ValueError> for SqlError {
    fn from(error: ValueError) -> Self {
        let mut out = Self::new(error.sqlstate, error.message);
        out.detail = error.detail;
        out.hint = error.hint.map(str::to_owned);
        out
    }
}

/// The value of a parameter in text format.
///
/// # Errors
/// PostgreSQL's SQLSTATE and message for text the type does not accept.
pub fn scalar_text(sql_type: &SqlType, value: &[u8]) -> Result<ScalarValue, SqlError> {
    scalar(sql_type, |builder| builder.append_text(value))
}

/// The value of a parameter in binary format.
///
/// # Errors
/// 22P03 or 08P01 for bytes that are not a value of the type.
pub fn scalar_binary(sql_type: &SqlType, value: &[u8]) -> Result<ScalarValue, SqlError> {
    scalar(sql_type, |builder| builder.append_binary(value))
}

/// NULL of a type.
pub fn scalar_null(sql_type: &SqlType) -> Result<ScalarValue, SqlError> {
    scalar(sql_type, |builder| {
        builder.append_null();
        Ok(())
    })
}

fn scalar(
    sql_type: &SqlType,
    append: impl FnOnce(&mut ColumnBuilder) -> Result<(), ValueError>,
) -> Result<ScalarValue, SqlError> {
    let mut builder = ColumnBuilder::new(sql_type, 1);
    append(&mut builder)?;
    scalar_first(&builder.finish()).map_err(|_| SqlError::internal(format!("no scalar form of type {sql_type}")))
}

/// The first value of an array. The engine's own function forgets which SQL type the items of a list have.
pub(crate) fn scalar_first(array: &ArrayRef) -> datafusion::common::Result<ScalarValue> {
    match array.as_list_opt::<i32>() {
        Some(list) if !list.is_empty() => Ok(ScalarValue::List(Arc::new(list.slice(0, 1)))),
        _ => ScalarValue::try_from_array(array, 0),
    }
}
