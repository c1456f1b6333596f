//! Windows as columns: the edges of the window an event time falls into, the starts of all that hold it, and sessions.
//!
//! Owns the functions, which no statement can write, and their recognition in plans. Leaves out when windows close
//! (`stream`) and which rows are one session (`session`). Pure.

use super::errors::{external, fail};
use crate::error::SqlError;
use arrow::array::{Array, ArrayRef, AsArray, BooleanBufferBuilder, ListArray, TimestampMicrosecondArray};
use arrow::buffer::{NullBuffer, OffsetBuffer};
use arrow::datatypes::{DataType, Field, TimeUnit, TimestampMicrosecondType};
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

/// What a function gives; lengths are literals of microseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Part {
    /// `(size, offset, time)`: an edge of the window that holds the time.
    Edge(WindowEdge),
    /// `(size, slide, offset, time)`: the starts of the windows that hold the time, as a list.
    Starts,
    /// `(length, time)`: the time that much later.
    Later,
    /// `(number, gap, tail, time)`: the time; stands for an edge of a session until the plan knows its keys.
    Session(WindowEdge),
}

#[derive(Debug, PartialEq, Eq, Hash)]
struct WindowFunction {
    part: Part,
    signature: Signature,
}

/// The name of the edges of tumbling windows.
pub(crate) const EDGES: [&str; 2] = ["$window_start", "$window_end"];
/// The name of the list of starts.
pub(crate) const STARTS: &str = "$window_starts";
/// The name of the end of a window of known start.
pub(crate) const LATER: &str = "$window_later";
/// The name of the edges of sessions.
pub(crate) const SESSION: [&str; 2] = ["$session_start", "$session_end"];

/// Every one of them.
pub(super) fn functions() -> impl Iterator<Item = ScalarUDF> {
    use WindowEdge::{End, Start};
    let parts =
        [Part::Edge(Start), Part::Edge(End), Part::Starts, Part::Later, Part::Session(Start), Part::Session(End)];
    parts.into_iter().map(function)
}

fn function(part: Part) -> ScalarUDF {
    ScalarUDF::new_from_impl(WindowFunction {
        part,
        signature: Signature::any(part.lengths() + 1, Volatility::Immutable),
    })
}

impl Part {
    /// The number of lengths before the time.
    fn lengths(self) -> usize {
        match self {
            Self::Later => 1,
            Self::Edge(_) => 2,
            Self::Starts | Self::Session(_) => 3,
        }
    }
}

/// The call that gives `edge` of the window of length `size` that holds the event time `rowtime`.
///
/// The edge is a multiple of `size` from the Unix epoch: for 1 minute, 00:00:59.999999 starts at 00:00:00, ends at 00:01:00.
pub fn window_edge(edge: WindowEdge, size: Span, rowtime: Expr) -> Expr {
    let literal = |micros: i64| Expr::Literal(ScalarValue::Int64(Some(micros)), None);
    function(Part::Edge(edge)).call(vec![literal(size.micros()), literal(0), rowtime])
}

/// The part, lengths and time of a call.
fn call(expr: &Expr) -> Option<(Part, Vec<i64>, &Expr)> {
    let Expr::ScalarFunction(call) = expr else { return None };
    let function = call.func.inner().downcast_ref::<WindowFunction>()?;
    let (time, lengths) = call.args.split_last()?;
    let lengths = lengths.iter().map(|length| match length {
        Expr::Literal(ScalarValue::Int64(Some(length)), _) => Some(*length),
        _ => None,
    });
    Some((function.part, lengths.collect::<Option<Vec<i64>>>()?, time))
}

/// The edge, size in microseconds and time of the edge of a tumbling window.
pub fn window_call(expr: &Expr) -> Option<(WindowEdge, i64, &Expr)> {
    match call(expr)? {
        (Part::Edge(edge), lengths, time) => Some((edge, *lengths.first()?, time)),
        _ => None,
    }
}

/// The windows and time of the starts of hopping windows.
pub(crate) fn starts_call(expr: &Expr) -> Option<(Hopping, &Expr)> {
    match call(expr)? {
        (Part::Starts, lengths, time) => match lengths.as_slice() {
            [size, slide, offset] => Some((Hopping { size: *size, slide: *slide, offset: *offset }, time)),
            _ => None,
        },
        _ => None,
    }
}

/// The microseconds that are added, and to which time.
pub(crate) fn later_call(expr: &Expr) -> Option<(i64, &Expr)> {
    match call(expr)? {
        (Part::Later, lengths, time) => Some((*lengths.first()?, time)),
        _ => None,
    }
}

/// A column that stands for an edge of a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct SessionMark {
    /// Which.
    pub(crate) edge: WindowEdge,
    /// The number of the window within the statement.
    pub(crate) number: i64,
    /// Events up to so many microseconds apart are one session.
    pub(crate) gap: i64,
    /// From the last event to the end.
    pub(crate) tail: i64,
}

/// What a column that stands for an edge of a session is, and its time.
pub(crate) fn session_mark(expr: &Expr) -> Option<(SessionMark, &Expr)> {
    match call(expr)? {
        (Part::Session(edge), lengths, time) => match lengths.as_slice() {
            [number, gap, tail] => Some((SessionMark { edge, number: *number, gap: *gap, tail: *tail }, time)),
            _ => None,
        },
        _ => None,
    }
}

/// The start of the window of `size` that holds `at`.
fn start_of(at: i64, size: i64, offset: i64) -> Option<i64> {
    let since = match at.checked_sub(offset) {
        Some(since) => since.rem_euclid(size),
        None => (i128::from(at) - i128::from(offset)).rem_euclid(i128::from(size)) as i64,
    };
    at.checked_sub(since)
}

fn out_of_range() -> datafusion::common::DataFusionError {
    fail(SqlState::DatetimeFieldOverflow, "timestamp out of range")
}

/// Hopping windows, in microseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Hopping {
    /// Of each.
    pub(crate) size: i64,
    /// From one start to the next.
    pub(crate) slide: i64,
    /// From the Unix epoch to a start.
    pub(crate) offset: i64,
}

/// Times that are in the same hopping windows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Pane {
    /// The first start, and how many there are.
    pub(crate) first: i64,
    pub(crate) count: i64,
    /// The first time, and the first after them.
    from: i64,
    until: i64,
}

impl Pane {
    /// Whether `at` is one of its times; of the very last ones it is not known.
    pub(crate) fn holds(&self, at: i64) -> bool {
        self.from <= at && at < self.until
    }
}

impl Hopping {
    /// The pane of a time.
    ///
    /// # Errors
    /// 22008 when a start is out of range.
    pub(crate) fn pane(self, at: i64) -> Result<Pane> {
        let Self { size, slide, offset } = self;
        let last = start_of(at, slide, offset).ok_or_else(out_of_range)?;
        // What is left of the last window, in slides, is how many begin before it.
        let left = size.checked_sub(1).and_then(|size| size.checked_sub(at.checked_sub(last)?));
        let left = left.ok_or_else(out_of_range)?;
        let next = last.saturating_add(slide);
        if left < 0 {
            return Ok(Pane { first: last, count: 0, from: last.saturating_add(size), until: next });
        }
        let earlier = left / slide;
        let first = earlier.checked_mul(slide).and_then(|width| last.checked_sub(width)).ok_or_else(out_of_range)?;
        let from = last.max(first.saturating_sub(slide).saturating_add(size));
        Ok(Pane { first, count: earlier + 1, from, until: next.min(first.saturating_add(size)) })
    }

    /// The starts of the windows of a pane, ascending.
    pub(crate) fn starts_of(self, pane: Pane) -> impl Iterator<Item = i64> {
        (0..pane.count).map(move |number| pane.first + number * self.slide)
    }

    /// The starts of the windows that hold each of `times`, ascending; of NULL, one NULL.
    ///
    /// # Errors
    /// As [`Hopping::pane`].
    pub(crate) fn starts(self, times: &TimestampMicrosecondArray) -> Result<ListArray> {
        let mut values: Vec<i64> = Vec::with_capacity(times.len());
        let mut lengths = Vec::with_capacity(times.len());
        let mut is_null: Vec<usize> = Vec::new();
        let mut pane = None;
        for at in times {
            let before = values.len();
            match at {
                None => {
                    is_null.push(before);
                    values.push(0);
                }
                Some(at) => {
                    let own = match pane.filter(|pane: &Pane| pane.holds(at)) {
                        Some(pane) => pane,
                        None => self.pane(at)?,
                    };
                    values.extend(self.starts_of(own));
                    pane = Some(own);
                }
            }
            lengths.push(values.len() - before);
        }
        let nulls = (!is_null.is_empty()).then(|| {
            let mut valid = BooleanBufferBuilder::new(values.len());
            valid.append_n(values.len(), true);
            is_null.iter().for_each(|at| valid.set_bit(*at, false));
            NullBuffer::new(valid.finish())
        });
        let values = TimestampMicrosecondArray::new(values.into(), nulls).with_timezone_opt(times.timezone());
        let item = Arc::new(Field::new_list_field(times.data_type().clone(), true));
        Ok(ListArray::try_new(item, OffsetBuffer::from_lengths(lengths), Arc::new(values), None)?)
    }
}

impl ScalarUDFImpl for WindowFunction {
    fn name(&self) -> &str {
        let at = |names: [&'static str; 2], edge| if edge == WindowEdge::Start { names[0] } else { names[1] };
        match self.part {
            Part::Edge(edge) => at(EDGES, edge),
            Part::Starts => STARTS,
            Part::Later => LATER,
            Part::Session(edge) => at(SESSION, edge),
        }
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, types: &[DataType]) -> Result<DataType> {
        let time = types.last().filter(|time| matches!(time, DataType::Timestamp(TimeUnit::Microsecond, _)));
        let time = time.cloned().ok_or_else(|| {
            let fact = "the time of a window must be timestamp or timestamp with time zone";
            external(SqlError::new(SqlState::DatatypeMismatch, fact).hint("cast it, such as ts::timestamptz"))
        })?;
        Ok(match self.part {
            Part::Starts => DataType::List(Arc::new(Field::new_list_field(time, true))),
            _ => time,
        })
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let Some((time, lengths)) = args.args.split_last() else { return Err(external(no_constant())) };
        let length = |at: usize| match lengths.get(at) {
            Some(ColumnarValue::Scalar(ScalarValue::Int64(Some(length)))) => Ok(*length),
            _ => Err(external(no_constant())),
        };
        let array = time.to_array(args.number_rows)?;
        let times = array.as_primitive::<TimestampMicrosecondType>();
        let mapped = |map: &dyn Fn(i64) -> Option<i64>| -> Result<ArrayRef> {
            let out: TimestampMicrosecondArray = times.try_unary(|at| map(at).ok_or_else(out_of_range))?;
            Ok(Arc::new(out.with_timezone_opt(times.timezone())))
        };
        let first = length(0)?;
        let out = match self.part {
            Part::Edge(edge) => {
                let offset = length(1)?;
                let tail = if edge == WindowEdge::Start { 0 } else { first };
                mapped(&|at| start_of(at, first, offset)?.checked_add(tail))?
            }
            Part::Later => mapped(&|at| at.checked_add(first))?,
            Part::Starts => Arc::new(Hopping { size: first, slide: length(1)?, offset: length(2)? }.starts(times)?),
            Part::Session(_) => array,
        };
        Ok(ColumnarValue::Array(out))
    }
}

fn no_constant() -> SqlError {
    SqlError::internal("the length of a window is not a constant")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_that_hold_a_time_are_half_open_on_both_sides_of_the_epoch() {
        for (at, size, slide, offset, expected) in [
            (0, 10, 10, 0, vec![0]),
            (9, 10, 10, 0, vec![0]),
            (10, 10, 10, 0, vec![10]),
            (-1, 10, 10, 0, vec![-10]),
            (10, 10, 4, 0, vec![4, 8]),
            (12, 10, 4, 0, vec![4, 8, 12]),
            (-1, 10, 4, 0, vec![-8, -4]),
            (5, 2, 10, 0, vec![]),
            (11, 2, 10, 0, vec![10]),
            (10, 10, 10, 3, vec![3]),
            (2, 10, 5, -1, vec![-6, -1]),
        ] {
            let found = Hopping { size, slide, offset }.starts(&TimestampMicrosecondArray::from(vec![at])).unwrap();
            let found = found.value(0);
            assert_eq!(found.as_primitive::<TimestampMicrosecondType>().values(), expected.as_slice(), "{at} {offset}");
        }
    }

    #[test]
    fn panes_are_the_times_that_are_in_the_same_windows() {
        for (size, slide, offset) in
            [(10, 3, 0), (10, 10, 2), (1, 1, 0), (7, 20, 5), (20, 20, -3), (9, 2, 1), (2, 5, 0)]
        {
            let hopping = Hopping { size, slide, offset };
            let starts = |at: i64| hopping.starts_of(hopping.pane(at).unwrap()).collect::<Vec<i64>>();
            for (at, other) in (-40..40).flat_map(|at| (-40..40).map(move |other| (at, other))) {
                let (holds, is_same) = (hopping.pane(at).unwrap().holds(other), starts(at) == starts(other));
                // Of times that are in no window, those of one gap.
                let is_near = !starts(at).is_empty() || (at.min(other)..at.max(other)).all(|at| starts(at).is_empty());
                assert_eq!(holds, is_same && is_near, "{at} {other} in {hopping:?}");
            }
        }
        assert!(!Hopping { size: 100, slide: 10, offset: 0 }.pane(i64::MAX).unwrap().holds(i64::MAX));
    }

    #[test]
    fn starts_are_those_whose_windows_hold_the_time() {
        let times: Vec<Option<i64>> = (-40..40).map(|at| (at % 7 != 0).then_some(at)).collect();
        for (size, slide, offset) in [(10, 3, 0), (10, 10, 2), (1, 1, 0), (7, 20, 5), (20, 20, -3), (9, 2, 1)] {
            let found =
                Hopping { size, slide, offset }.starts(&TimestampMicrosecondArray::from(times.clone())).unwrap();
            for (row, at) in times.iter().enumerate() {
                let own = found.value(row);
                let own: Vec<Option<i64>> = own.as_primitive::<TimestampMicrosecondType>().iter().collect();
                let expected: Vec<Option<i64>> = match at {
                    None => vec![None],
                    Some(at) => {
                        let begins = |start: &i64| (start - offset).rem_euclid(slide) == 0;
                        (at - size + 1..=*at).filter(begins).map(Some).collect()
                    }
                };
                assert_eq!(own, expected, "{at:?} in {size} every {slide} from {offset}");
            }
        }
        let ten = Hopping { size: 100, slide: 10, offset: 0 };
        for at in [i64::MIN, i64::MIN + 5] {
            assert!(ten.starts(&TimestampMicrosecondArray::from(vec![at])).is_err());
        }
        let last = ten.starts(&TimestampMicrosecondArray::from(vec![i64::MAX])).unwrap();
        assert_eq!(last.value(0).len(), 10);
    }
}
