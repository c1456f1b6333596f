//! `round` of floats: halves go to the even neighbour, as the C library's `rint` has it and PostgreSQL with it.
//!
//! `numeric` and two arguments are the library's own: halves go away from zero, in PostgreSQL too. Pure.

use arrow::array::{AsArray, Float64Array};
use arrow::datatypes::{DataType, FieldRef, Float32Type, Float64Type};
use datafusion::common::{Result, ScalarValue};
use datafusion::logical_expr::{
    ColumnarValue, ReturnFieldArgs, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature,
};
use std::sync::Arc;

#[derive(Debug, PartialEq, Eq, Hash)]
struct Round {
    inner: Arc<ScalarUDF>,
}

/// `round` over the library's.
pub(super) fn round(library: &Arc<ScalarUDF>) -> ScalarUDF {
    ScalarUDF::new_from_impl(Round { inner: Arc::clone(library) })
}

impl ScalarUDFImpl for Round {
    fn name(&self) -> &str {
        self.inner.name()
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

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> Result<ColumnarValue> {
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
                _ => self.inner.invoke_with_args(args),
            },
            _ => self.inner.invoke_with_args(args),
        }
    }
}
