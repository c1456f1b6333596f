//! `repeat`, `lpad` and others that make a value of any size from a number, refused before it is more than a batch may hold.
//!
//! The library makes the value at once, outside the query's memory accounting. Pure.

use super::errors::fail;
use arrow::array::AsArray;
use arrow::compute::cast;
use arrow::datatypes::{DataType, Int64Type};
use datafusion::common::Result;
use datafusion::logical_expr::{ColumnarValue, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature};
use millstream_catalog::model::SqlState;
use std::sync::Arc;

/// Bytes that one call makes for one batch.
const TEXT_BYTES_MAX: i64 = 256 << 20;
/// Bytes an item of an array is counted as.
const ITEM_BYTES: i64 = 16;

#[derive(Debug, PartialEq, Eq, Hash)]
struct Bounded {
    inner: Arc<ScalarUDF>,
}

/// `function`, whose second argument says how long its result is.
pub(super) fn bounded(function: &Arc<ScalarUDF>) -> Option<ScalarUDF> {
    Some(ScalarUDF::new_from_impl(Bounded { inner: Arc::clone(function) }))
}

/// The length of each row's text, or one for all.
fn lengths(text: &ColumnarValue) -> Result<Vec<i64>> {
    let array = text.to_array(1)?;
    let lengths = cast(&arrow::compute::kernels::length::length(&array)?, &DataType::Int64)?;
    Ok(lengths.as_primitive::<Int64Type>().iter().map(|length| length.unwrap_or(0)).collect())
}

impl ScalarUDFImpl for Bounded {
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

    fn coerce_types(&self, types: &[DataType]) -> Result<Vec<DataType>> {
        self.inner.coerce_types(types)
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        if let [text, count, ..] = args.args.as_slice() {
            let counts = cast(&count.to_array(1)?, &DataType::Int64)?;
            let counts: Vec<i64> =
                counts.as_primitive::<Int64Type>().iter().map(|count| count.unwrap_or(0).max(0)).collect();
            // The padding functions count characters of at most four bytes.
            let unit = match self.name() {
                "repeat" => lengths(text)?,
                "lpad" | "rpad" => vec![4],
                // The item is the first argument, or the third of array_resize.
                _ => {
                    let item = args.args.get(2).unwrap_or(text).to_array(1)?;
                    vec![ITEM_BYTES.max(item.get_array_memory_size() as i64 / item.len().max(1) as i64)]
                }
            };
            let rows = if matches!((text, count), (ColumnarValue::Scalar(_), ColumnarValue::Scalar(_))) {
                1
            } else {
                args.number_rows
            };
            let at = |values: &[i64], row: usize| values.get(row).or(values.first()).copied().unwrap_or(0);
            let total = (0..rows)
                .fold(0_i64, |total, row| total.saturating_add(at(&unit, row).saturating_mul(at(&counts, row))));
            if total > TEXT_BYTES_MAX {
                return Err(fail(SqlState::ProgramLimitExceeded, "requested length too large"));
            }
        }
        self.inner.invoke_with_args(args)
    }
}
