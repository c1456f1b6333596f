//! Whether a column's values lie within what its statistics say.
//!
//! Compares values one by one with the bounds as text; nothing of how the bounds were computed is used. Pure.

use crate::storage::statistics::ColumnStatistics;
use arrow::array::{Array, ArrayRef, AsArray};
use arrow::compute::cast;
use arrow::datatypes::{DataType, Decimal128Type, Float64Type, Int64Type};

/// What was seen of one column.
#[derive(Debug, Default)]
pub(crate) struct ColumnCheck {
    nulls: u64,
    outside: u64,
}

impl ColumnCheck {
    pub(crate) fn add(&mut self, values: &ArrayRef, said: Option<&ColumnStatistics>) {
        self.nulls += values.null_count() as u64;
        let Some(ColumnStatistics { min: Some(min), max: Some(max), .. }) = said else { return };
        self.outside += outside(values, min, max).unwrap_or_default();
    }

    pub(crate) fn disagreement(&self, said: Option<&ColumnStatistics>) -> Option<String> {
        let said = said?;
        if said.nulls != self.nulls {
            return Some(format!("{} nulls, the footer says {}", self.nulls, said.nulls));
        }
        (self.outside > 0).then(|| format!("{} values lie outside of the footer's bounds", self.outside))
    }
}

/// The number of values outside of the bounds; `None` for a type without an order, or bounds that are not of the type.
fn outside(values: &ArrayRef, min: &str, max: &str) -> Option<u64> {
    let count = |is_outside: &mut dyn Iterator<Item = bool>| is_outside.filter(|is_outside| *is_outside).count() as u64;
    match values.data_type() {
        DataType::Boolean => {
            let (min, max): (bool, bool) = (min.parse().ok()?, max.parse().ok()?);
            Some(count(&mut values.as_boolean().iter().flatten().map(|v| (!v && min) || (v && !max))))
        }
        DataType::Decimal128(_, _) => {
            let (min, max): (i128, i128) = (min.parse().ok()?, max.parse().ok()?);
            Some(count(&mut values.as_primitive::<Decimal128Type>().iter().flatten().map(|v| v < min || v > max)))
        }
        DataType::Float32 | DataType::Float64 => {
            // A least NaN is the negative one, which stands below everything.
            let (min, max): (f64, f64) = (min.parse().ok()?, max.parse().ok()?);
            let min = if min.is_nan() { -f64::NAN.abs() } else { min };
            let values = cast(values, &DataType::Float64).ok()?;
            let is_outside = |v: f64| v.total_cmp(&min).is_lt() || v.total_cmp(&max).is_gt();
            Some(count(
                &mut values.as_primitive::<Float64Type>().iter().flatten().filter(|v| !v.is_nan()).map(is_outside),
            ))
        }
        DataType::Utf8 => Some(count(&mut values.as_string::<i32>().iter().flatten().map(|v| v < min || v > max))),
        DataType::Binary => {
            let (min, max) = (hex(min)?, hex(max)?);
            let is_outside = |v: &[u8]| v < min.as_slice() || v > max.as_slice();
            Some(count(&mut values.as_binary::<i32>().iter().flatten().map(is_outside)))
        }
        DataType::Int16 | DataType::Int32 | DataType::Int64 | DataType::Date32 => integers(values, min, max),
        DataType::Time64(_) | DataType::Timestamp(_, _) => integers(values, min, max),
        _ => None,
    }
}

fn integers(values: &ArrayRef, min: &str, max: &str) -> Option<u64> {
    let (min, max): (i64, i64) = (min.parse().ok()?, max.parse().ok()?);
    let values = cast(values, &DataType::Int64).ok()?;
    let outside = values.as_primitive::<Int64Type>().iter().flatten().filter(|v| *v < min || *v > max).count();
    Some(outside as u64)
}

fn hex(text: &str) -> Option<Vec<u8>> {
    let digits = text.as_bytes().chunks(2);
    digits.map(|pair| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use arrow::array::{Int32Array, StringArray};
    use std::sync::Arc;

    #[test]
    fn values_outside_of_bounds_and_wrong_counts_of_nulls_are_found() {
        let said = |nulls, min: &str, max: &str| ColumnStatistics {
            nulls,
            min: Some(min.to_owned()),
            max: Some(max.to_owned()),
        };
        let found = |values: ArrayRef, said: &ColumnStatistics| {
            let mut check = ColumnCheck::default();
            check.add(&values, Some(said));
            check.disagreement(Some(said))
        };
        let numbers: ArrayRef = Arc::new(Int32Array::from(vec![Some(-3), None, Some(10)]));
        assert_eq!(found(numbers.clone(), &said(1, "-3", "10")), None);
        assert_eq!(found(numbers.clone(), &said(1, "-4", "11")), None, "wider bounds are true too");
        assert!(found(numbers.clone(), &said(0, "-3", "10")).unwrap().contains("1 nulls"));
        assert!(found(numbers.clone(), &said(1, "-2", "10")).unwrap().contains("1 values"));
        assert!(found(numbers, &said(1, "-3", "9")).is_some());
        let texts: ArrayRef = Arc::new(StringArray::from(vec!["a", "é"]));
        assert_eq!(found(texts.clone(), &said(0, "a", "é")), None);
        assert!(found(texts, &said(0, "a", "z")).is_some());
    }
}
