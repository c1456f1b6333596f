//! `windowstart` and `windowend`: the edges of the tumbling window an event time falls into.
//!
//! Owns the two functions and their recognition in plans. Leaves out when windows close (`stream`). Pure.

use crate::error::SqlError;
use crate::function::errors::external;
use arrow::array::{ArrayRef, AsArray, PrimitiveArray};
use arrow::datatypes::{DataType, TimeUnit, TimestampMicrosecondType};
use datafusion::common::{Result, ScalarValue};
use datafusion::logical_expr::{
    ColumnarValue, Expr, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature, Volatility,
};
use millstream_catalog::model::{Span, SqlState};
use std::sync::Arc;

/// Which edge of a window.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum WindowEdge {
    /// The first moment in it.
    Start,
    /// The first moment after it.
    End,
}

/// `window_start(size, rowtime)`, `window_end(size, rowtime)`; size is a literal of microseconds.
#[derive(Debug, PartialEq, Eq, Hash)]
struct WindowFunction {
    edge: WindowEdge,
    signature: Signature,
}

/// The call that gives `edge` of the window of length `size` that holds the event time `rowtime`.
///
/// The edge is a multiple of `size` from the Unix epoch: for 1 minute, 00:00:59.999999 starts at 00:00:00, ends at 00:01:00.
pub fn window_edge(edge: WindowEdge, size: Span, rowtime: Expr) -> Expr {
    let function = WindowFunction {
        edge,
        signature: Signature::exact(vec![DataType::Int64, timestamptz()], Volatility::Immutable),
    };
    let size = Expr::Literal(ScalarValue::Int64(Some(size.micros())), None);
    ScalarUDF::new_from_impl(function).call(vec![size, rowtime])
}

/// The edge, size in microseconds and argument of a call that [`window_edge`] made.
pub fn window_call(expr: &Expr) -> Option<(WindowEdge, i64, &Expr)> {
    let Expr::ScalarFunction(call) = expr else { return None };
    let function = call.func.inner().downcast_ref::<WindowFunction>()?;
    match call.args.as_slice() {
        [Expr::Literal(ScalarValue::Int64(Some(size)), _), input] => Some((function.edge, *size, input)),
        _ => None,
    }
}

fn timestamptz() -> DataType {
    DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into()))
}

/// The start of the window of `size` that holds `at`.
fn start_of(at: i64, size: i64) -> Option<i64> {
    at.checked_sub(at.rem_euclid(size))
}

impl ScalarUDFImpl for WindowFunction {
    fn name(&self) -> &str {
        match self.edge {
            WindowEdge::Start => "window_start",
            WindowEdge::End => "window_end",
        }
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, _: &[DataType]) -> Result<DataType> {
        Ok(timestamptz())
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let [ColumnarValue::Scalar(ScalarValue::Int64(Some(size))), input] = args.args.as_slice() else {
            return Err(external(SqlError::internal("window size is not a constant")));
        };
        let size = *size;
        let edge = |at: i64| {
            let start = start_of(at, size)?;
            match self.edge {
                WindowEdge::Start => Some(start),
                WindowEdge::End => start.checked_add(size),
            }
        };
        let edge = |at: i64| {
            edge(at).ok_or_else(|| external(SqlError::new(SqlState::DatetimeFieldOverflow, "timestamp out of range")))
        };
        match input {
            ColumnarValue::Scalar(ScalarValue::TimestampMicrosecond(value, zone)) => {
                let value = value.map(edge).transpose()?;
                Ok(ColumnarValue::Scalar(ScalarValue::TimestampMicrosecond(value, zone.clone())))
            }
            input => {
                let array = input.to_array(args.number_rows)?;
                let times = array.as_primitive::<TimestampMicrosecondType>();
                let out: PrimitiveArray<TimestampMicrosecondType> = times.try_unary(edge)?;
                Ok(ColumnarValue::Array(Arc::new(out.with_timezone("UTC")) as ArrayRef))
            }
        }
    }
}
