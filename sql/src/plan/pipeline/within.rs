//! How far apart in event time the rows of a join of two streams may be: by WITHIN, or by a range in its condition.
//!
//! Leaves out what is done with it (`stream::join`). Pure.

use super::{is_changelog, unalias};
use crate::function::within::within_call;
use crate::plan::scanned_relation;
use arrow::array::{Array, ArrayRef, AsArray, RecordBatch, TimestampMicrosecondArray, new_null_array};
use arrow::datatypes::{DataType, TimestampMicrosecondType};
use datafusion::common::DFSchema;
use datafusion::logical_expr::execution_props::ExecutionProps;
use datafusion::logical_expr::physical_planning_context::PhysicalPlanningContext;
use datafusion::logical_expr::utils::split_conjunction;
use datafusion::logical_expr::{self, Between, BinaryExpr, Expr, LogicalPlan, Operator};
use datafusion::physical_expr::create_physical_expr;
use millstream_catalog::model::Span;
use std::collections::BTreeSet;
use std::sync::Arc;

/// The right row's time is from `before` ahead of the left one's to `after` behind it. Either may be negative.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Range {
    pub(super) before: Span,
    pub(super) after: Span,
    pub(super) grace: Span,
}

/// The range of a join of two streams, where its condition has one with both ends.
pub(super) fn range(join: &logical_expr::Join) -> Option<Range> {
    if is_changelog(&join.left) || is_changelog(&join.right) {
        return None;
    }
    let conditions: Vec<&Expr> = join.filter.iter().flat_map(split_conjunction).collect();
    if let Some((before, after, grace)) = conditions.iter().find_map(|condition| within_call(condition)) {
        return Some(Range { before, after, grace });
    }
    let sides = Sides {
        left: (join.left.schema(), event_times(&join.left)),
        right: (join.right.schema(), event_times(&join.right)),
    };
    // Least and greatest of the right time less the left one.
    let (mut least, mut greatest): (Option<i64>, Option<i64>) = (None, None);
    let equal = join.on.iter().filter_map(|(left, right)| sides.bounds(left, Operator::Eq, right));
    for (low, high) in conditions.iter().flat_map(|condition| sides.of(condition)).chain(equal) {
        least = low.map_or(least, |low| Some(least.map_or(low, |least| least.max(low))));
        greatest = high.map_or(greatest, |high| Some(greatest.map_or(high, |greatest| greatest.min(high))));
    }
    let before = least?.checked_neg()?;
    Some(Range { before: Span::from_micros(before), after: Span::from_micros(greatest?), grace: Span::ZERO })
}

/// Whether the join has the clause, not only conditions that amount to it.
pub(super) fn says_within(join: &logical_expr::Join) -> bool {
    let conditions = join.filter.iter().flat_map(split_conjunction);
    conditions.into_iter().any(|condition| within_call(condition).is_some())
}

/// The columns of `plan` that have the event time of their row, or of one of the rows it was joined of within a time.
pub(super) fn event_times(plan: &LogicalPlan) -> BTreeSet<usize> {
    match plan {
        LogicalPlan::TableScan(scan) => {
            let Some(relation) = scanned_relation(scan) else { return BTreeSet::new() };
            let whole: Vec<usize> = (0..relation.schema.columns.len() + 3).collect();
            super::scan::times(&relation, scan.projection.as_ref().unwrap_or(&whole))
        }
        LogicalPlan::Filter(filter) => event_times(&filter.input),
        LogicalPlan::SubqueryAlias(alias) => event_times(&alias.input),
        LogicalPlan::Projection(projection) => {
            let times = event_times(&projection.input);
            let is_time = |expression: &Expr| match unalias(expression) {
                Expr::Column(column) => {
                    projection.input.schema().maybe_index_of_column(column).is_some_and(|at| times.contains(&at))
                }
                _ => false,
            };
            let expressions = projection.expr.iter().enumerate();
            expressions.filter(|(_, expression)| is_time(expression)).map(|(at, _)| at).collect()
        }
        LogicalPlan::Join(join) if is_pairs(join) => {
            let left = join.left.schema().fields().len();
            let right = event_times(&join.right).into_iter().map(|at| at + left);
            event_times(&join.left).into_iter().chain(right).collect()
        }
        _ => BTreeSet::new(),
    }
}

/// Whether times of both sides are those of what comes out, or nearly so.
fn is_pairs(join: &logical_expr::Join) -> bool {
    use datafusion::logical_expr::JoinType::{Full, Inner, Left, Right};
    matches!(join.join_type, Inner | Left | Right | Full) && (super::join::is_lookup(join) || range(join).is_some())
}

/// The two sides of a join, and which of their columns are event times.
struct Sides<'a> {
    left: (&'a DFSchema, BTreeSet<usize>),
    right: (&'a DFSchema, BTreeSet<usize>),
}

/// Least and greatest of a difference of times.
type Bounds = (Option<i64>, Option<i64>);

/// A time of one side, moved by a constant.
#[derive(Clone, Copy)]
enum Moved {
    Left(i64),
    Right(i64),
}

impl Sides<'_> {
    /// What a condition says of the difference.
    fn of(&self, condition: &Expr) -> Vec<Bounds> {
        match unalias(condition) {
            Expr::BinaryExpr(BinaryExpr { left, op, right }) => self.bounds(left, *op, right).into_iter().collect(),
            Expr::Between(Between { expr, negated: false, low, high }) => {
                let low = self.bounds(expr, Operator::GtEq, low);
                low.into_iter().chain(self.bounds(expr, Operator::LtEq, high)).collect()
            }
            _ => Vec::new(),
        }
    }

    fn bounds(&self, one: &Expr, op: Operator, other: &Expr) -> Option<Bounds> {
        let (left, right, op) = match (self.moved(one)?, self.moved(other)?) {
            (Moved::Left(left), Moved::Right(right)) => (left, right, op),
            (Moved::Right(right), Moved::Left(left)) => (left, right, op.swap()?),
            _ => return None,
        };
        // left time + left op right time + right, so right time − left time is compared with this.
        let difference = left.checked_sub(right)?;
        match op {
            Operator::LtEq => Some((Some(difference), None)),
            Operator::Lt => Some((Some(difference.checked_add(1)?), None)),
            Operator::GtEq => Some((None, Some(difference))),
            Operator::Gt => Some((None, Some(difference.checked_sub(1)?))),
            Operator::Eq => Some((Some(difference), Some(difference))),
            _ => None,
        }
    }

    /// `expression` as an event time and a constant.
    fn moved(&self, expression: &Expr) -> Option<Moved> {
        let columns = expression.column_refs();
        let mut columns = columns.into_iter();
        let (column, None) = (columns.next()?, columns.next()) else { return None };
        let find = |(schema, times): &(&DFSchema, BTreeSet<usize>)| {
            schema.maybe_index_of_column(column).filter(|at| times.contains(at))
        };
        match (find(&self.left), find(&self.right)) {
            (Some(at), None) => moved_by(expression, self.left.0, at).map(Moved::Left),
            (None, Some(at)) => moved_by(expression, self.right.0, at).map(Moved::Right),
            _ => None,
        }
    }
}

/// Moments far apart, in months of all lengths.
const PROBES: [i64; 5] = [0, 951_782_400_000_000, 1_080_691_200_000_000, 1_706_745_599_999_999, 2_524_608_000_000_001];

/// The constant that `expression` adds to a column, if it does nothing else: found by trying.
fn moved_by(expression: &Expr, schema: &DFSchema, at: usize) -> Option<i64> {
    let (props, context) = (ExecutionProps::new(), PhysicalPlanningContext::default());
    let physical = create_physical_expr(expression, schema, &props, &context).ok()?;
    let columns = schema.fields().iter().enumerate().map(|(index, field)| -> ArrayRef {
        match (index == at, field.data_type()) {
            (true, DataType::Timestamp(_, zone)) => {
                Arc::new(TimestampMicrosecondArray::from(PROBES.to_vec()).with_timezone_opt(zone.clone()))
            }
            (_, data_type) => new_null_array(data_type, PROBES.len()),
        }
    });
    let fields: Vec<_> = schema.fields().iter().map(super::nullable).collect();
    let batch = RecordBatch::try_new(Arc::new(arrow::datatypes::Schema::new(fields)), columns.collect()).ok()?;
    let values = physical.evaluate(&batch).ok()?.into_array(PROBES.len()).ok()?;
    let values = values.as_primitive_opt::<TimestampMicrosecondType>()?;
    let first = values.is_valid(0).then(|| values.value(0))?;
    let is_moved =
        |(row, probe): (usize, &i64)| values.is_valid(row) && values.value(row).checked_sub(*probe) == Some(first);
    PROBES.iter().enumerate().all(is_moved).then_some(first)
}
