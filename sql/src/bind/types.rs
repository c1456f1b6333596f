//! Type names in definitions.
//!
//! Leaves out type names in expressions, which are the same words (`plan`). Pure.

use crate::dialect::Position;
use crate::error::SqlError;
use crate::plan::type_name;
use millstream_catalog::SqlType;
use sqlparser::ast::DataType;

/// The SQL type that `data_type` names; arrays have one dimension.
///
/// # Errors
/// 42704 for an unknown name, 22023 for a length or precision out of range, 0A000 for STRUCT and MAP.
pub fn sql_type(data_type: &DataType, position: Position) -> Result<SqlType, SqlError> {
    let sql_type = match data_type {
        DataType::Struct(..) | DataType::Map(..) => {
            return Err(SqlError::unsupported("a column of type STRUCT or MAP", "use jsonb").at(position));
        }
        other => type_name::sql_type(other).map_err(|error| error.at(position))?,
    };
    match &sql_type {
        SqlType::Array(item) if matches!(**item, SqlType::Array(_)) => {
            Err(SqlError::unsupported("an array of arrays", "use jsonb").at(position))
        }
        _ => Ok(sql_type),
    }
}
