//! Which offsets, partitions and event times a predicate can be true for.
//!
//! Owns reading bounds out of simplified predicates. Leaves out evaluating them: a bound is a promise that rows outside
//! cannot match, and the filter runs again over what comes, unless the bounds say all of it ([`is_exact`]). Called while a scan is planned. Pure.

use crate::function::window::{WindowEdge, window_call};
use datafusion::common::ScalarValue;
use datafusion::logical_expr::expr::InList;
use datafusion::logical_expr::{Between, BinaryExpr, Expr, Operator};
use millstream_catalog::model::{Offset, PartitionId, Timestamp};
use millstream_catalog::schema::{ROWOFFSET, ROWPARTITION, ROWTIME};
use std::ops::Range;

/// What rows a conjunction of predicates leaves.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Bounds {
    offset_start: Option<u64>,
    offset_end: Option<u64>,
    partition_start: Option<i64>,
    partition_end: Option<i64>,
    partitions: Option<Vec<i64>>,
    rowtime_first: Option<i64>,
    rowtime_last: Option<i64>,
}

impl Bounds {
    /// The bounds of `predicates`, all of which must hold.
    ///
    /// `rowoffset >= 10 AND rowoffset < 20` gives offsets `10..20`.
    pub fn of<'a>(predicates: impl IntoIterator<Item = &'a Expr>) -> Self {
        let mut bounds = Self::default();
        for predicate in predicates {
            bounds.add(predicate);
        }
        bounds
    }

    /// True when nothing is bounded.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// The offsets, when bounded on either side; an empty range when none can match.
    pub fn offsets(&self) -> Option<Range<Offset>> {
        if self.offset_start.is_none() && self.offset_end.is_none() {
            return None;
        }
        let end = self.offset_end.unwrap_or(u64::MAX);
        Some(Offset::new(self.offset_start.unwrap_or(0).min(end))..Offset::new(end))
    }

    /// The partitions among `count`, when bounded.
    pub fn partitions(&self, count: u32) -> Option<Vec<PartitionId>> {
        if self.partition_start.is_none() && self.partition_end.is_none() && self.partitions.is_none() {
            return None;
        }
        let wanted = |id: &u32| {
            let id = i64::from(*id);
            self.partition_start.is_none_or(|start| id >= start)
                && self.partition_end.is_none_or(|end| id < end)
                && self.partitions.as_ref().is_none_or(|list| list.contains(&id))
        };
        Some((0..count).filter(wanted).map(PartitionId::new).collect())
    }

    /// The first and last event time, both inclusive.
    pub fn rowtime(&self) -> (Option<Timestamp>, Option<Timestamp>) {
        (self.rowtime_first.map(Timestamp::from_micros), self.rowtime_last.map(Timestamp::from_micros))
    }

    fn add(&mut self, predicate: &Expr) {
        match predicate {
            Expr::BinaryExpr(BinaryExpr { left, op: Operator::And, right }) => {
                self.add(left);
                self.add(right);
            }
            Expr::BinaryExpr(BinaryExpr { op: Operator::Or, .. }) | Expr::InList(_) => {
                if let Some(values) = partition_list(predicate) {
                    self.intersect_partitions(values);
                }
            }
            Expr::BinaryExpr(BinaryExpr { left, op, right }) => {
                if let Some(value) = literal(right) {
                    self.compare(left, *op, value);
                } else if let (Some(value), Some(op)) = (literal(left), op.swap()) {
                    self.compare(right, op, value);
                }
            }
            Expr::Between(Between { expr, negated: false, low, high }) => {
                if let Some(low) = literal(low) {
                    self.compare(expr, Operator::GtEq, low);
                }
                if let Some(high) = literal(high) {
                    self.compare(expr, Operator::LtEq, high);
                }
            }
            _ => {}
        }
    }

    fn intersect_partitions(&mut self, values: Vec<i64>) {
        match &mut self.partitions {
            Some(present) => present.retain(|id| values.contains(id)),
            none => *none = Some(values),
        }
    }

    fn compare(&mut self, expr: &Expr, op: Operator, value: &ScalarValue) {
        match column(expr) {
            Some(ROWOFFSET) => {
                if let Some(value) = integer(value) {
                    self.compare_offset(op, value);
                }
            }
            Some(ROWPARTITION) => {
                if let Some(value) = integer(value) {
                    self.compare_partition(op, value);
                }
            }
            Some(ROWTIME) => {
                if let Some(value) = micros(value) {
                    self.compare_rowtime(op, value);
                }
            }
            _ => self.compare_window(expr, op, value),
        }
    }

    fn compare_offset(&mut self, op: Operator, value: i64) {
        // Offsets are never negative: a bound below zero is zero, and an end at zero matches nothing.
        let at = |value: i64| u64::try_from(value).unwrap_or(0);
        let after = |value: i64| at(value.saturating_add(1));
        match op {
            Operator::Eq => {
                raise(&mut self.offset_start, at(value));
                lower(&mut self.offset_end, after(value));
            }
            Operator::Gt => raise(&mut self.offset_start, after(value)),
            Operator::GtEq => raise(&mut self.offset_start, at(value)),
            Operator::Lt => lower(&mut self.offset_end, at(value)),
            Operator::LtEq => lower(&mut self.offset_end, after(value)),
            _ => {}
        }
    }

    fn compare_partition(&mut self, op: Operator, value: i64) {
        match op {
            Operator::Eq => self.intersect_partitions(vec![value]),
            Operator::Gt => raise(&mut self.partition_start, value.saturating_add(1)),
            Operator::GtEq => raise(&mut self.partition_start, value),
            Operator::Lt => lower(&mut self.partition_end, value),
            Operator::LtEq => lower(&mut self.partition_end, value.saturating_add(1)),
            _ => {}
        }
    }

    fn compare_rowtime(&mut self, op: Operator, value: i64) {
        match op {
            Operator::Eq => {
                raise(&mut self.rowtime_first, value);
                lower(&mut self.rowtime_last, value);
            }
            Operator::Gt => raise(&mut self.rowtime_first, value.saturating_add(1)),
            Operator::GtEq => raise(&mut self.rowtime_first, value),
            Operator::Lt => lower(&mut self.rowtime_last, value.saturating_sub(1)),
            Operator::LtEq => lower(&mut self.rowtime_last, value),
            _ => {}
        }
    }

    /// `windowstart <= rowtime < windowend`, and the two are one size apart.
    fn compare_window(&mut self, expr: &Expr, op: Operator, value: &ScalarValue) {
        let (Some((edge, size, input)), Some(value)) = (window_call(expr), micros(value)) else { return };
        if column(input) != Some(ROWTIME) {
            return;
        }
        let start = match edge {
            WindowEdge::Start => value,
            WindowEdge::End => value.saturating_sub(size),
        };
        if matches!(op, Operator::Eq | Operator::Gt | Operator::GtEq) {
            raise(&mut self.rowtime_first, start);
        }
        if matches!(op, Operator::Eq | Operator::Lt | Operator::LtEq) {
            lower(&mut self.rowtime_last, start.saturating_add(size));
        }
    }
}

/// True when the bounds of `predicate` on offsets and partitions say the same as it does.
pub fn is_exact(predicate: &Expr) -> bool {
    let is_place = |expr: &Expr| matches!(column(expr), Some(ROWOFFSET | ROWPARTITION));
    let is_integer = |expr: &Expr| literal(expr).and_then(integer).is_some();
    match predicate {
        Expr::BinaryExpr(BinaryExpr { left, op: Operator::And, right }) => is_exact(left) && is_exact(right),
        Expr::BinaryExpr(BinaryExpr { op: Operator::Or, .. }) => partition_list(predicate).is_some(),
        Expr::BinaryExpr(BinaryExpr { left, op, right }) => {
            let sides = is_place(left) && is_integer(right) || is_place(right) && is_integer(left);
            sides && matches!(op, Operator::Eq | Operator::Lt | Operator::LtEq | Operator::Gt | Operator::GtEq)
        }
        Expr::Between(Between { expr, negated: false, low, high }) => {
            is_place(expr) && is_integer(low) && is_integer(high)
        }
        Expr::InList(_) => partition_list(predicate).is_some(),
        _ => false,
    }
}

/// The partitions of `rowpartition IN (1, 2)` or `rowpartition = 1 OR rowpartition = 2`; `None` for anything else.
fn partition_list(expr: &Expr) -> Option<Vec<i64>> {
    match expr {
        Expr::InList(InList { expr, list, negated: false }) if column(expr) == Some(ROWPARTITION) => {
            list.iter().map(|item| integer(literal(item)?)).collect()
        }
        Expr::BinaryExpr(BinaryExpr { left, op: Operator::Or, right }) => {
            Some([partition_list(left)?, partition_list(right)?].concat())
        }
        Expr::BinaryExpr(BinaryExpr { left, op: Operator::Eq, right }) if column(left) == Some(ROWPARTITION) => {
            Some(vec![integer(literal(right)?)?])
        }
        _ => None,
    }
}

fn raise<T: Ord + Copy>(bound: &mut Option<T>, value: T) {
    *bound = Some(bound.map_or(value, |old| old.max(value)));
}

fn lower<T: Ord + Copy>(bound: &mut Option<T>, value: T) {
    *bound = Some(bound.map_or(value, |old| old.min(value)));
}

fn column(expr: &Expr) -> Option<&str> {
    match expr {
        Expr::Column(column) => Some(column.name.as_str()),
        Expr::Alias(alias) => column(&alias.expr),
        _ => None,
    }
}

fn literal(expr: &Expr) -> Option<&ScalarValue> {
    match expr {
        Expr::Literal(value, _) if !value.is_null() => Some(value),
        _ => None,
    }
}

fn integer(value: &ScalarValue) -> Option<i64> {
    match value {
        ScalarValue::Int16(Some(value)) => Some(i64::from(*value)),
        ScalarValue::Int32(Some(value)) => Some(i64::from(*value)),
        ScalarValue::Int64(Some(value)) => Some(*value),
        _ => None,
    }
}

fn micros(value: &ScalarValue) -> Option<i64> {
    match value {
        ScalarValue::TimestampMicrosecond(Some(value), _) => Some(*value),
        _ => None,
    }
}
