//! Floating-point numbers as integers of the same order, and back: NaN is the greatest, as in PostgreSQL.
//!
//! `min` and `max` of the engine, asked by group, forget what came before a NaN. The order is totalOrder of IEEE 754-2008, 5.10,
//! with one NaN. Leaves out other comparisons (`by_value`). Pure.

use super::cast::bad_argument;
use arrow::array::{Array, ArrayRef, AsArray};
use arrow::datatypes::{DataType, Float32Type, Float64Type, Int32Type, Int64Type};
use datafusion::common::Result;
use datafusion::logical_expr::{
    ColumnarValue, Expr, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature, Volatility,
};
use millstream_catalog::SqlType;
use std::sync::Arc;

#[derive(Debug, PartialEq, Eq, Hash)]
struct Ordered {
    from: DataType,
    to: DataType,
    signature: Signature,
}

fn ordered(from: DataType, to: DataType) -> ScalarUDF {
    let signature = Signature::exact(vec![from.clone()], Volatility::Immutable);
    ScalarUDF::new_from_impl(Ordered { from, to, signature })
}

/// The functions to integers and back, for floating-point numbers.
pub(crate) fn order_functions(sql_type: &SqlType) -> Option<(ScalarUDF, ScalarUDF)> {
    let (float, integer) = match sql_type {
        SqlType::Real => (DataType::Float32, DataType::Int32),
        SqlType::Double => (DataType::Float64, DataType::Int64),
        _ => return None,
    };
    Some((ordered(float.clone(), integer.clone()), ordered(integer, float)))
}

fn long(bits: i64) -> i64 {
    bits ^ (((bits >> 63) as u64) >> 1) as i64
}

fn short(bits: i32) -> i32 {
    bits ^ (((bits >> 31) as u32) >> 1) as i32
}

fn long_of(value: f64) -> i64 {
    long(if value.is_nan() { f64::NAN } else { value }.to_bits() as i64)
}

fn short_of(value: f32) -> i32 {
    short(if value.is_nan() { f32::NAN } else { value }.to_bits() as i32)
}

impl ScalarUDFImpl for Ordered {
    fn name(&self) -> &str {
        if self.from.is_floating() { "$order" } else { "$float" }
    }

    fn display_name(&self, args: &[Expr]) -> Result<String> {
        Ok(args.first().map_or_else(|| self.name().to_owned(), ToString::to_string))
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, _: &[DataType]) -> Result<DataType> {
        Ok(self.to.clone())
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let [value] = args.args.as_slice() else { return Err(bad_argument(self.name())) };
        let is_scalar = matches!(value, ColumnarValue::Scalar(_));
        let array = value.to_array(if is_scalar { 1 } else { args.number_rows })?;
        let array: ArrayRef = match array.data_type() {
            DataType::Float64 => Arc::new(array.as_primitive::<Float64Type>().unary::<_, Int64Type>(long_of)),
            DataType::Float32 => Arc::new(array.as_primitive::<Float32Type>().unary::<_, Int32Type>(short_of)),
            DataType::Int64 => {
                let float = |bits| f64::from_bits(long(bits) as u64);
                Arc::new(array.as_primitive::<Int64Type>().unary::<_, Float64Type>(float))
            }
            DataType::Int32 => {
                let float = |bits| f32::from_bits(short(bits) as u32);
                Arc::new(array.as_primitive::<Int32Type>().unary::<_, Float32Type>(float))
            }
            _ => return Err(bad_argument(self.name())),
        };
        match is_scalar {
            true => Ok(ColumnarValue::Scalar(crate::types::scalar_first(&array)?)),
            false => Ok(ColumnarValue::Array(array)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn integers_are_in_the_order_of_the_numbers_and_give_them_back() {
        let ascending = [f64::NEG_INFINITY, f64::MIN, -1.5, -f64::MIN_POSITIVE, -0.0, 0.0, 5e-324, 1.0, f64::MAX];
        let ascending: Vec<f64> = ascending.into_iter().chain([f64::INFINITY, f64::NAN]).collect();
        for pair in ascending.windows(2) {
            assert!(long_of(pair[0]) < long_of(pair[1]), "{pair:?}");
            assert!(short_of(pair[0] as f32) <= short_of(pair[1] as f32), "{pair:?}");
        }
        for value in ascending {
            assert_eq!(f64::from_bits(long(long_of(value)) as u64).to_bits(), value.to_bits());
            let value = value as f32;
            assert_eq!(f32::from_bits(short(short_of(value)) as u32).to_bits(), value.to_bits());
        }
        assert_eq!(long_of(-f64::NAN), long_of(f64::NAN));
        assert_eq!(short_of(-f32::NAN), short_of(f32::NAN));
    }
}
