//! `round` of floats: halves go to the even neighbour, as the C library's `rint` has it and PostgreSQL with it.
//!
//! `numeric` and two arguments are the library's own: halves go away from zero, in PostgreSQL too. Pure.

use arrow::array::{AsArray, Float64Array};
use arrow::datatypes::{DataType, Float32Type, Float64Type};
use datafusion::common::{Result, ScalarValue};
use datafusion::logical_expr::{ColumnarValue, ScalarFunctionArgs, ScalarUDF};
use std::sync::Arc;

/// A call of the library's `round`, or of ours.
pub(super) fn round(function: &ScalarUDF, args: ScalarFunctionArgs) -> Result<ColumnarValue> {
    match args.args.as_slice() {
        [ColumnarValue::Scalar(ScalarValue::Float64(value))] => {
            Ok(ColumnarValue::Scalar(ScalarValue::Float64(value.map(f64::round_ties_even))))
        }
        [ColumnarValue::Scalar(ScalarValue::Float32(value))] => {
            Ok(ColumnarValue::Scalar(ScalarValue::Float32(value.map(f32::round_ties_even))))
        }
        [ColumnarValue::Array(array)] => match array.data_type() {
            DataType::Float64 => {
                let rounded: Float64Array = array.as_primitive::<Float64Type>().unary(f64::round_ties_even);
                Ok(ColumnarValue::Array(Arc::new(rounded)))
            }
            DataType::Float32 => {
                let rounded = array.as_primitive::<Float32Type>().unary::<_, Float32Type>(f32::round_ties_even);
                Ok(ColumnarValue::Array(Arc::new(rounded)))
            }
            _ => function.invoke_with_args(args),
        },
        _ => function.invoke_with_args(args),
    }
}
