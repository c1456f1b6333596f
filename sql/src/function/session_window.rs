//! Sessions over rows that do not change: the first and last event of the session each row is in.
//!
//! Owns the window functions `$session_start` and `$session_end`, over the rows of one group in the order of their
//! times. Leaves out who asks for them (`plan::session`) and sessions of continuous queries (`stream::session`). Pure.

use super::errors::external;
use super::window::{SESSION, SessionMark, WindowEdge};
use crate::error::SqlError;
use arrow::array::{ArrayRef, AsArray, TimestampMicrosecondArray};
use arrow::datatypes::{FieldRef, TimestampMicrosecondType};
use datafusion::common::{Result, ScalarValue};
use datafusion::logical_expr::expr::WindowFunction;
use datafusion::logical_expr::function::{PartitionEvaluatorArgs, WindowUDFFieldArgs};
use datafusion::logical_expr::{
    Expr, PartitionEvaluator, Signature, Volatility, WindowFunctionDefinition, WindowUDF, WindowUDFImpl,
};
use std::sync::Arc;

#[derive(Debug, PartialEq, Eq, Hash)]
struct SessionFunction {
    edge: WindowEdge,
    signature: Signature,
}

/// The call that gives the edge `mark` stands for, of the rows of equal `keys`, whose time is `time`.
pub(crate) fn session_edge(mark: SessionMark, time: Expr, keys: &[Expr]) -> Expr {
    let function = SessionFunction { edge: mark.edge, signature: Signature::any(4, Volatility::Immutable) };
    let literal = |micros: i64| Expr::Literal(ScalarValue::Int64(Some(micros)), None);
    let arguments = vec![literal(mark.number), literal(mark.gap), literal(mark.tail), time.clone()];
    let definition = WindowFunctionDefinition::WindowUDF(Arc::new(WindowUDF::new_from_impl(function)));
    let mut call = WindowFunction::new(definition, arguments);
    call.params.partition_by = keys.to_vec();
    call.params.order_by = vec![time.sort(true, false)];
    Expr::WindowFunction(Box::new(call))
}

/// What a call that [`session_edge`] made gives, and of which time.
pub(crate) fn session_call(expr: &Expr) -> Option<(SessionMark, &Expr)> {
    let Expr::WindowFunction(call) = expr else { return None };
    let WindowFunctionDefinition::WindowUDF(function) = &call.fun else { return None };
    let edge = function.inner().downcast_ref::<SessionFunction>()?.edge;
    let length = |expr: &Expr| match expr {
        Expr::Literal(ScalarValue::Int64(Some(length)), _) => Some(*length),
        _ => None,
    };
    match call.params.args.as_slice() {
        [number, gap, tail, time] => {
            let mark = SessionMark { edge, number: length(number)?, gap: length(gap)?, tail: length(tail)? };
            Some((mark, time))
        }
        _ => None,
    }
}

impl WindowUDFImpl for SessionFunction {
    fn name(&self) -> &str {
        match self.edge {
            WindowEdge::Start => SESSION[0],
            WindowEdge::End => SESSION[1],
        }
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn partition_evaluator(&self, _: PartitionEvaluatorArgs) -> Result<Box<dyn PartitionEvaluator>> {
        Ok(Box::new(Sessions { edge: self.edge }))
    }

    fn field(&self, args: WindowUDFFieldArgs) -> Result<FieldRef> {
        let time = args.get_input_field(3).ok_or_else(|| external(SqlError::internal("a session without a time")))?;
        Ok(Arc::new(time.as_ref().clone().with_name(args.name()).with_nullable(true)))
    }
}

#[derive(Debug)]
struct Sessions {
    edge: WindowEdge,
}

impl PartitionEvaluator for Sessions {
    fn evaluate_all(&mut self, values: &[ArrayRef], num_rows: usize) -> Result<ArrayRef> {
        let [_, gap, tail, times] = values else {
            return Err(external(SqlError::internal("a session of other arguments")));
        };
        let length = |array: &ArrayRef| {
            let array = array.as_primitive::<arrow::datatypes::Int64Type>();
            if array.is_empty() { 0 } else { array.value(0) }
        };
        let (gap, tail) = (length(gap), length(tail));
        let times = times.as_primitive::<TimestampMicrosecondType>();
        let values = times.values();
        let mut edges = vec![0; num_rows];
        let mut first = 0;
        for row in 1..=num_rows {
            if row < num_rows && values[row].saturating_sub(values[row - 1]) <= gap {
                continue;
            }
            let edge = match self.edge {
                WindowEdge::Start => values[first],
                WindowEdge::End => values[row - 1].saturating_add(tail),
            };
            edges[first..row].fill(edge);
            first = row;
        }
        Ok(Arc::new(TimestampMicrosecondArray::from(edges).with_timezone_opt(times.timezone())))
    }
}
