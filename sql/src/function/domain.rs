//! Mathematical functions outside of their domain: errors, as in PostgreSQL, not infinities.
//!
//! Roots and logarithms refuse their arguments (2201F, 2201E), powers a result that no double holds (22003). Pure.

use super::errors::fail;
use arrow::array::{Array, AsArray};
use arrow::compute::cast;
use arrow::datatypes::{DataType, FieldRef, Float64Type};
use datafusion::common::{DataFusionError, Result};
use datafusion::logical_expr::{
    ColumnarValue, ReturnFieldArgs, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature,
};
use millstream_catalog::model::SqlState;
use std::sync::Arc;

/// The functions that are checked.
pub(super) const NAMES: [&str; 7] = ["ln", "log", "log10", "log2", "sqrt", "power", "exp"];

#[derive(Debug, PartialEq, Eq, Hash)]
struct Checked {
    inner: Arc<ScalarUDF>,
}

/// `function` of the library, checked.
pub(super) fn checked(function: &Arc<ScalarUDF>) -> ScalarUDF {
    ScalarUDF::new_from_impl(Checked { inner: Arc::clone(function) })
}

/// A number of a row, or of all; `None` where there is none.
struct Numbers(arrow::array::Float64Array);

impl Numbers {
    fn of(value: &ColumnarValue) -> Result<Option<Self>> {
        let array = value.to_array(1)?;
        match array.data_type().is_numeric() {
            true => Ok(Some(Self(cast(&array, &DataType::Float64)?.as_primitive::<Float64Type>().clone()))),
            false => Ok(None),
        }
    }

    fn get(&self, row: usize) -> Option<f64> {
        let row = if self.0.len() == 1 { 0 } else { row };
        (row < self.0.len() && self.0.is_valid(row)).then(|| self.0.value(row))
    }
}

fn argument_error(name: &str, value: f64) -> Option<DataFusionError> {
    let logarithm =
        |what: &str| fail(SqlState::InvalidArgumentForLogarithm, format!("cannot take logarithm of {what}"));
    match name {
        "sqrt" if value < 0.0 => {
            Some(fail(SqlState::InvalidArgumentForPowerFunction, "cannot take square root of a negative number"))
        }
        "ln" | "log" | "log10" | "log2" if value == 0.0 => Some(logarithm("zero")),
        "ln" | "log" | "log10" | "log2" if value < 0.0 => Some(logarithm("a negative number")),
        _ => None,
    }
}

/// Whether `result` of finite arguments is one that no double holds.
fn result_error(name: &str, first: f64, result: f64) -> Option<DataFusionError> {
    let range = |what: &str| Some(fail(SqlState::NumericValueOutOfRange, format!("value out of range: {what}")));
    match name {
        "power" | "exp" if result.is_infinite() => range("overflow"),
        "exp" if result == 0.0 => range("underflow"),
        "power" if result == 0.0 && first != 0.0 => range("underflow"),
        _ => None,
    }
}

impl ScalarUDFImpl for Checked {
    fn name(&self) -> &str {
        self.inner.name()
    }

    fn aliases(&self) -> &[String] {
        self.inner.aliases()
    }

    fn signature(&self) -> &Signature {
        self.inner.signature()
    }

    fn return_type(&self, types: &[DataType]) -> Result<DataType> {
        self.inner.return_type(types)
    }

    fn return_field_from_args(&self, args: ReturnFieldArgs<'_>) -> Result<FieldRef> {
        self.inner.return_field_from_args(args)
    }

    fn coerce_types(&self, types: &[DataType]) -> Result<Vec<DataType>> {
        self.inner.coerce_types(types)
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let name = self.inner.name();
        let arguments = args.args.iter().map(Numbers::of).collect::<Result<Vec<_>>>()?;
        let rows = arguments.iter().flatten().map(|numbers| numbers.0.len()).max().unwrap_or(0);
        let row_of = |row: usize| arguments.iter().map(|it| it.as_ref()?.get(row)).collect::<Option<Vec<f64>>>();
        for row in 0..rows {
            let Some(values) = row_of(row) else { continue };
            if let Some(error) = values.iter().find_map(|value| argument_error(name, *value)) {
                return Err(error);
            }
        }
        let result = self.inner.invoke_with_args(args)?;
        if let ("power" | "exp", Some(results)) = (name, Numbers::of(&result)?) {
            for row in 0..rows {
                let (Some(values), Some(result)) = (row_of(row), results.get(row)) else { continue };
                if values.iter().all(|value| value.is_finite())
                    && let Some(error) = result_error(name, values.first().copied().unwrap_or(0.0), result)
                {
                    return Err(error);
                }
            }
        }
        Ok(result)
    }
}
