//! Parts of values: `array[1]`, `array[1:2]`, `jsonb['key']`.
//!
//! Leaves out operators (`operator`, `json`) and evaluation (`function`). Pure.

use super::operator::{array_function, type_of};
use crate::error::SqlError;
use crate::function::errors::external;
use datafusion::common::{DFSchema, Result};
use datafusion::logical_expr::{Expr, GetFieldAccess};
use millstream_catalog::SqlType;
use millstream_catalog::model::SqlState;

/// The part of `value` that `access` names.
pub(super) fn access(value: Expr, access: GetFieldAccess, schema: &DFSchema) -> Result<Expr> {
    let of_value = type_of(&value, schema)?;
    match (of_value, access) {
        (Some(document @ (SqlType::Json | SqlType::Jsonb)), GetFieldAccess::ListIndex { key }) => {
            super::json::subscript(value, &document, *key, schema)
        }
        (Some(document @ (SqlType::Json | SqlType::Jsonb)), GetFieldAccess::NamedStructField { name }) => {
            super::json::subscript(value, &document, Expr::Literal(name, None), schema)
        }
        (_, GetFieldAccess::ListIndex { key }) => Ok(array_function("array_element")?.call(vec![value, *key])),
        (_, GetFieldAccess::ListRange { start, stop, .. }) => {
            Ok(array_function("array_slice")?.call(vec![value, *start, *stop]))
        }
        (of_value, GetFieldAccess::NamedStructField { .. }) => {
            let shown = of_value.map_or_else(|| "unknown".to_owned(), |sql_type| sql_type.to_string());
            let fact = format!("cannot subscript type {shown} by a name");
            Err(external(SqlError::new(SqlState::DatatypeMismatch, fact).hint("use ->> for json")))
        }
    }
}
