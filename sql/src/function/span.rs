//! What an interval is compared by: its length, a month counted as 30 days and a day as 24 hours.
//!
//! Leaves out grouping, minimum and maximum, which see the parts. Pure.

use super::cast::bad_argument;
use crate::types::lengths_of;
use arrow::array::AsArray;
use arrow::datatypes::{DataType, IntervalMonthDayNanoType, IntervalUnit};
use datafusion::common::{Result, ScalarValue};
use datafusion::logical_expr::{ColumnarValue, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature, Volatility};
use std::sync::Arc;

/// The name of the function, which no statement can call.
const NAME: &str = "$span";

#[derive(Debug, PartialEq, Eq, Hash)]
struct Span {
    signature: Signature,
}

/// An interval's length in nanoseconds.
pub(crate) fn function() -> ScalarUDF {
    let types = vec![DataType::Interval(IntervalUnit::MonthDayNano)];
    ScalarUDF::new_from_impl(Span { signature: Signature::exact(types, Volatility::Immutable) })
}

impl ScalarUDFImpl for Span {
    fn name(&self) -> &str {
        NAME
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, _: &[DataType]) -> Result<DataType> {
        Ok(DataType::Decimal128(38, 0))
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let [interval] = args.args.as_slice() else { return Err(bad_argument(NAME)) };
        let intervals = interval.to_array(args.number_rows)?;
        let lengths = lengths_of(intervals.as_primitive::<IntervalMonthDayNanoType>());
        match interval {
            ColumnarValue::Scalar(_) => Ok(ColumnarValue::Scalar(ScalarValue::try_from_array(&lengths, 0)?)),
            ColumnarValue::Array(_) => Ok(ColumnarValue::Array(Arc::new(lengths))),
        }
    }
}
