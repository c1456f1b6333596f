//! What values are compared and grouped by where their stored form is not it: `jsonb` and floating-point numbers, also
//! inside of arrays and structs, and intervals inside of those.
//!
//! A key has the order of the values; the canonical form is a value itself, one of those that are equal. Leaves out
//! intervals by themselves (`span`). Pure.

use super::cast::bad_argument;
use super::errors::external;
use crate::types::{canonical_of, scalar_first, sort_key_of, sort_key_type};
use arrow::datatypes::{DataType, FieldRef};
use datafusion::common::Result;
use datafusion::logical_expr::{
    ColumnarValue, ReturnFieldArgs, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature, Volatility,
};
use millstream_catalog::SqlType;
use std::sync::Arc;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Form {
    Key,
    Canonical,
}

#[derive(Debug, PartialEq, Eq, Hash)]
struct ByValue {
    form: Form,
    sql_type: SqlType,
    name: String,
    signature: Signature,
}

fn by_value(form: Form, sql_type: &SqlType) -> ScalarUDF {
    let word = if form == Form::Key { "$key" } else { "$canonical" };
    let name = format!("{word} {sql_type}");
    let signature = Signature::any(1, Volatility::Immutable);
    ScalarUDF::new_from_impl(ByValue { form, sql_type: sql_type.clone(), name, signature })
}

/// The function to what is ordered and equal as values of `sql_type` are; `None` where the values are, but for
/// floating-point numbers. Of an interval by itself, `span` gives the same.
pub(crate) fn key_function(sql_type: &SqlType) -> Option<ScalarUDF> {
    let is_other = [SqlType::Jsonb, SqlType::Interval].iter().any(|other| sql_type.has(other));
    is_other.then(|| by_value(Form::Key, sql_type))
}

/// The function to the one form of equal values of `sql_type`; `None` where equal values have one form.
pub(crate) fn canonical_function(sql_type: &SqlType) -> Option<ScalarUDF> {
    float_function(sql_type).or_else(|| sql_type.has(&SqlType::Jsonb).then(|| by_value(Form::Canonical, sql_type)))
}

/// The function to the one form of each floating-point number, where `sql_type` is or has some.
pub(crate) fn float_function(sql_type: &SqlType) -> Option<ScalarUDF> {
    let has_floats = sql_type.has(&SqlType::Double) || sql_type.has(&SqlType::Real);
    (has_floats && !sql_type.has(&SqlType::Jsonb)).then(|| by_value(Form::Canonical, sql_type))
}

/// True for a call of a function of this file.
pub(crate) fn is_by_value(function: &ScalarUDF) -> bool {
    function.inner().downcast_ref::<ByValue>().is_some()
}

impl ScalarUDFImpl for ByValue {
    fn name(&self) -> &str {
        &self.name
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, _: &[DataType]) -> Result<DataType> {
        Ok(match self.form {
            Form::Key => sort_key_type(&self.sql_type).arrow(),
            Form::Canonical => self.sql_type.arrow(),
        })
    }

    fn return_field_from_args(&self, args: ReturnFieldArgs<'_>) -> Result<FieldRef> {
        let is_nullable = args.arg_fields.iter().any(|field| field.is_nullable());
        Ok(Arc::new(match self.form {
            Form::Key => sort_key_type(&self.sql_type).field(&self.name, is_nullable),
            Form::Canonical => self.sql_type.field(&self.name, is_nullable),
        }))
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let [value] = args.args.as_slice() else { return Err(bad_argument(&self.name)) };
        let is_scalar = matches!(value, ColumnarValue::Scalar(_));
        let array = value.to_array(if is_scalar { 1 } else { args.number_rows })?;
        let array = match self.form {
            Form::Key => sort_key_of(array, &self.sql_type),
            Form::Canonical => canonical_of(array, &self.sql_type),
        };
        let array = array.map_err(|error| external(error.into()))?;
        match is_scalar {
            true => Ok(ColumnarValue::Scalar(scalar_first(&array)?)),
            false => Ok(ColumnarValue::Array(array)),
        }
    }
}
