//! One form for values that are equal but not the same bytes.
//!
//! Keys and groups are compared as bytes. Leaves out where that is needed. Pure.

use arrow::array::{Array, ArrayRef, Float32Array, Float64Array};
use arrow::datatypes::{DataType, Float32Type, Float64Type};
use std::sync::Arc;

/// `array` with one form of zero and of NaN, so that values that are equal in SQL are equal bytes.
pub fn canonical(array: ArrayRef) -> ArrayRef {
    match array.data_type() {
        DataType::Float64 => match array.as_any().downcast_ref::<Float64Array>() {
            Some(floats) => {
                Arc::new(floats.unary::<_, Float64Type>(|value| if value.is_nan() { f64::NAN } else { value + 0.0 }))
            }
            None => array,
        },
        DataType::Float32 => match array.as_any().downcast_ref::<Float32Array>() {
            Some(floats) => {
                Arc::new(floats.unary::<_, Float32Type>(|value| if value.is_nan() { f32::NAN } else { value + 0.0 }))
            }
            None => array,
        },
        _ => array,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use arrow::array::AsArray;

    #[test]
    fn zeros_and_nans_have_one_form() {
        let array: ArrayRef = Arc::new(Float64Array::from(vec![Some(-0.0), Some(-f64::NAN), None, Some(1.5)]));
        let array = canonical(array);
        let array = array.as_primitive::<Float64Type>();
        assert_eq!(array.value(0).to_bits(), 0.0_f64.to_bits());
        assert_eq!(array.value(1).to_bits(), f64::NAN.to_bits());
        assert!(array.is_null(2));
        assert_eq!(array.value(3), 1.5);
    }
}
