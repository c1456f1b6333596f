//! Values of a continuous query as a column of the relation it inserts into takes them.
//!
//! A value that the column cannot take fails where it is computed, so that the event it is made of is known. Leaves out
//! which types can be assigned (`bind::insert`). Pure.

use super::cast::bad_argument;
use super::errors::external;
use crate::error::SqlError;
use crate::types::{assign_array, scalar_first};
use arrow::array::Array;
use arrow::datatypes::{DataType, FieldRef};
use datafusion::common::Result;
use datafusion::logical_expr::{
    ColumnarValue, ReturnFieldArgs, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature, Volatility,
};
use millstream_catalog::SqlType;
use millstream_catalog::model::SqlState;
use std::sync::Arc;

/// The name of the function, which no statement can call.
const NAME: &str = "$assign";

/// A column that values of a type are assigned to.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Assignment {
    /// The values' type.
    pub(crate) from: SqlType,
    /// The column's.
    pub(crate) to: SqlType,
    /// The column.
    pub(crate) column: String,
    /// What a NULL in it says; `None` where it takes NULL.
    pub(crate) refuses_null: Option<String>,
}

#[derive(Debug, PartialEq, Eq, Hash)]
struct Assign {
    assignment: Assignment,
    name: String,
    signature: Signature,
}

/// The function that assigns its argument.
pub(crate) fn assign_function(assignment: Assignment) -> ScalarUDF {
    let null = if assignment.refuses_null.is_some() { " not null" } else { "" };
    let name = format!("{NAME} {}{null}", assignment.to);
    ScalarUDF::new_from_impl(Assign { assignment, name, signature: Signature::any(1, Volatility::Immutable) })
}

impl ScalarUDFImpl for Assign {
    fn name(&self) -> &str {
        &self.name
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, _: &[DataType]) -> Result<DataType> {
        Ok(self.assignment.to.arrow())
    }

    fn return_field_from_args(&self, _: ReturnFieldArgs<'_>) -> Result<FieldRef> {
        Ok(Arc::new(self.assignment.to.field(&self.name, true)))
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let [value] = args.args.as_slice() else { return Err(bad_argument(NAME)) };
        let Assignment { from, to, column, refuses_null } = &self.assignment;
        let is_scalar = matches!(value, ColumnarValue::Scalar(_));
        let array = value.to_array(if is_scalar { 1 } else { args.number_rows })?;
        let assigned = assign_array(&array, from, to)
            .map_err(|refused| external(SqlError::from(refused.error).detail(format!("column \"{column}\""))))?;
        if let Some(fact) = refuses_null.as_ref().filter(|_| assigned.null_count() > 0) {
            return Err(external(SqlError::new(SqlState::NotNullViolation, fact.clone())));
        }
        match is_scalar {
            true => Ok(ColumnarValue::Scalar(scalar_first(&assigned)?)),
            false => Ok(ColumnarValue::Array(assigned)),
        }
    }
}
