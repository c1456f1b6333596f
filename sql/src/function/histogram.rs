//! How often each value is in an array: what ksqlDB's `histogram` makes of the values that were collected.
//!
//! Values are told apart, and shown, by their text. Leaves out collecting them (`array_agg`). Pure.

use super::cast::bad_argument;
use super::errors::external;
use crate::types::ColumnEncoder;
use arrow::array::{Array, ArrayRef, AsArray, Int64Array, MapArray, StringArray, StructArray};
use arrow::buffer::OffsetBuffer;
use arrow::datatypes::{DataType, FieldRef};
use datafusion::common::{DataFusionError, Result};
use datafusion::logical_expr::{
    ColumnarValue, ReturnFieldArgs, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature, Volatility,
};
use millstream_catalog::SqlType;
use std::collections::BTreeMap;
use std::sync::Arc;

/// The name under which statements call it, with an array.
pub(crate) const HISTOGRAM: &str = "$histogram";

#[derive(Debug, PartialEq, Eq, Hash)]
struct Histogram {
    signature: Signature,
}

/// The function.
pub(super) fn histogram() -> ScalarUDF {
    ScalarUDF::new_from_impl(Histogram { signature: Signature::any(1, Volatility::Immutable) })
}

fn result() -> SqlType {
    SqlType::Map(Box::new(SqlType::Text), Box::new(SqlType::BigInt))
}

impl ScalarUDFImpl for Histogram {
    fn name(&self) -> &str {
        HISTOGRAM
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, _: &[DataType]) -> Result<DataType> {
        Ok(result().arrow())
    }

    fn return_field_from_args(&self, _: ReturnFieldArgs<'_>) -> Result<FieldRef> {
        Ok(Arc::new(result().field(HISTOGRAM, true)))
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let (Some(arg), Some(field)) = (args.args.first(), args.arg_fields.first()) else {
            return Err(bad_argument(HISTOGRAM));
        };
        let is_scalar = matches!(arg, ColumnarValue::Scalar(_));
        let array = arg.to_array(if is_scalar { 1 } else { args.number_rows })?;
        let Some(SqlType::Array(item)) = SqlType::of(field) else { return Err(bad_argument(HISTOGRAM)) };
        Ok(ColumnarValue::Array(counted(&array, &item)?))
    }
}

/// The map of each list: texts of its values in order, and how often each is there.
fn counted(lists: &ArrayRef, item: &SqlType) -> Result<ArrayRef> {
    let lists = lists.as_list_opt::<i32>().ok_or_else(|| bad_argument(HISTOGRAM))?;
    let encoder = ColumnEncoder::new(lists.values().as_ref(), item);
    let (mut keys, mut counts, mut lengths) = (Vec::new(), Vec::new(), Vec::with_capacity(lists.len()));
    for row in 0..lists.len() {
        let mut found: BTreeMap<String, i64> = BTreeMap::new();
        let range = match lists.is_null(row) {
            true => 0..0,
            false => lists.value_offsets()[row] as usize..lists.value_offsets()[row + 1] as usize,
        };
        for at in range {
            let mut text = Vec::new();
            if encoder.text(at, &mut text) {
                let text = String::from_utf8(text).map_err(|_| bad_argument(HISTOGRAM))?;
                *found.entry(text).or_default() += 1;
            }
        }
        lengths.push(found.len());
        for (key, count) in found {
            keys.push(key);
            counts.push(count);
        }
    }
    let DataType::Map(entry, is_sorted) = result().arrow() else { return Err(bad_argument(HISTOGRAM)) };
    let DataType::Struct(fields) = entry.data_type().clone() else { return Err(bad_argument(HISTOGRAM)) };
    let columns: Vec<ArrayRef> = vec![Arc::new(StringArray::from(keys)), Arc::new(Int64Array::from(counts))];
    let shape = |error| external(crate::error::SqlError::internal(format!("a histogram cannot be formed: {error}")));
    let entries = StructArray::try_new(fields, columns, None).map_err(shape)?;
    let map = MapArray::try_new(entry, OffsetBuffer::from_lengths(lengths), entries, None, is_sorted);
    Ok(Arc::new(map.map_err(DataFusionError::from)?))
}
