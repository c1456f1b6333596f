//! `WITHIN` of a join as a condition: how far apart the event times of its rows are.
//!
//! Leaves out when rows are too late for one (`stream`). Pure.

use super::errors::external;
use crate::dialect::within::WITHIN;
use crate::error::SqlError;
use arrow::array::{ArrayRef, AsArray, BooleanArray};
use arrow::datatypes::{DataType, TimeUnit, TimestampMicrosecondType};
use datafusion::common::{Result, ScalarValue};
use datafusion::logical_expr::{
    ColumnarValue, Expr, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature, Volatility,
};
use millstream_catalog::model::Span;
use std::sync::Arc;

/// `$within(left, right, before, after, grace)`: event times, and constants of microseconds.
#[derive(Debug, PartialEq, Eq, Hash)]
struct Within {
    signature: Signature,
}

pub(super) fn function() -> ScalarUDF {
    let time = DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into()));
    let types = vec![time.clone(), time, DataType::Int64, DataType::Int64, DataType::Int64];
    ScalarUDF::new_from_impl(Within { signature: Signature::exact(types, Volatility::Immutable) })
}

fn constant(expr: &Expr) -> Option<Span> {
    match expr {
        Expr::Literal(ScalarValue::Int64(Some(micros)), _) => Some(Span::from_micros(*micros)),
        _ => None,
    }
}

/// Before, after and grace of a call of the function.
pub(crate) fn within_call(expr: &Expr) -> Option<(Span, Span, Span)> {
    let Expr::ScalarFunction(call) = expr else { return None };
    call.func.inner().downcast_ref::<Within>()?;
    match call.args.as_slice() {
        [_, _, before, after, grace] => Some((constant(before)?, constant(after)?, constant(grace)?)),
        _ => None,
    }
}

impl ScalarUDFImpl for Within {
    fn name(&self) -> &str {
        WITHIN
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, _: &[DataType]) -> Result<DataType> {
        Ok(DataType::Boolean)
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let rows = args.number_rows;
        let [left, right, ColumnarValue::Scalar(before), ColumnarValue::Scalar(after), _] = args.args.as_slice() else {
            return Err(external(SqlError::internal("WITHIN of times that are not constant")));
        };
        let (ScalarValue::Int64(Some(before)), ScalarValue::Int64(Some(after))) = (before, after) else {
            return Err(external(SqlError::internal("WITHIN of times that are not constant")));
        };
        let (left, right) = (left.to_array(rows)?, right.to_array(rows)?);
        let (left, right) = (times(&left), times(&right));
        let fits = |(left, right): (Option<i64>, Option<i64>)| {
            let (left, right) = (left?, right?);
            Some(right >= left.saturating_sub(*before) && right <= left.saturating_add(*after))
        };
        let mask: BooleanArray = left.iter().zip(right.iter()).map(fits).collect();
        Ok(ColumnarValue::Array(Arc::new(mask)))
    }
}

fn times(array: &ArrayRef) -> &arrow::array::TimestampMicrosecondArray {
    array.as_primitive::<TimestampMicrosecondType>()
}
