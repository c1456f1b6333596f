//! Mathematical functions outside of their domain: errors, as in PostgreSQL, not infinities.
//!
//! Roots and logarithms refuse their arguments (2201F, 2201E), powers a result that no double holds (22003). Pure.

use super::errors::fail;
use arrow::array::{Array, AsArray};
use arrow::compute::cast;
use arrow::datatypes::{DataType, Float64Type};
use datafusion::common::{DataFusionError, Result};
use datafusion::logical_expr::{ColumnarValue, ScalarFunctionArgs, ScalarUDF};
use millstream_catalog::model::SqlState;

/// The functions that are checked.
pub(super) const NAMES: [&str; 7] = ["ln", "log", "log10", "log2", "sqrt", "power", "exp"];

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

/// A call of `function` with its arguments and its result checked.
pub(super) fn checked(function: &ScalarUDF, args: ScalarFunctionArgs) -> Result<ColumnarValue> {
    let name = function.name();
    let arguments = args.args.iter().map(Numbers::of).collect::<Result<Vec<_>>>()?;
    let rows = arguments.iter().flatten().map(|numbers| numbers.0.len()).max().unwrap_or(0);
    let row_of = |row: usize| arguments.iter().map(|it| it.as_ref()?.get(row)).collect::<Option<Vec<f64>>>();
    for row in 0..rows {
        let Some(values) = row_of(row) else { continue };
        if let Some(error) = values.iter().find_map(|value| argument_error(name, *value)) {
            return Err(error);
        }
    }
    let result = function.invoke_with_args(args)?;
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
