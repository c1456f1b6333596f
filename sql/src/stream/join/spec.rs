//! What a join is made of: its kind, its sides, how far apart rows may be, what comes out.
//!
//! Leaves out the joining. Holds nothing.

use crate::stream::bounds::WindowBounds;
use crate::stream::call::Rows;
use arrow::datatypes::SchemaRef;
use datafusion::physical_expr::PhysicalExpr;
use millstream_catalog::model::Span;
use std::sync::Arc;

/// What a join gives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum JoinKind {
    /// Pairs.
    Inner,
    /// Pairs, and rows of the left without a match.
    Left,
    /// Pairs, and rows of the right without a match.
    Right,
    /// Pairs, and rows of either side without a match.
    Full,
    /// Rows of the left with a match.
    Semi,
    /// Rows of the left without a match.
    Anti,
    /// Rows of the left, and whether they have a match.
    Mark,
}

impl JoinKind {
    pub(super) fn gives_pairs(self) -> bool {
        matches!(self, Self::Inner | Self::Left | Self::Right | Self::Full)
    }

    /// Whether what it gives of a row of `side` depends on whether that has matches.
    pub(super) fn counts(self, side: Side) -> bool {
        match side {
            Side::Left => !matches!(self, Self::Inner | Self::Right),
            Side::Right => matches!(self, Self::Right | Self::Full),
        }
    }
}

/// One of the two inputs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Side {
    /// The first.
    Left,
    /// The second.
    Right,
}

impl Side {
    /// The one across.
    pub(crate) fn other(self) -> Self {
        match self {
            Self::Left => Self::Right,
            Self::Right => Self::Left,
        }
    }
}

/// One column of what comes out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum JoinColumn {
    /// A column of an input.
    Of(Side, usize),
    /// Whether the row has a match.
    Mark,
    /// Whether there is a row of the left.
    HasLeft,
}

/// How far apart in event time rows may be: the right one from `before` ahead of the left one to `after` behind it, both included.
///
/// A row is late, and dropped, when the query's time at it is past the last moment of a match, and the grace period. It
/// is kept for as long as a row that is not late may match it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Within {
    /// How much earlier the right row may be.
    pub(crate) before: Span,
    /// How much later.
    pub(crate) after: Span,
    /// How long after that rows are taken.
    pub(crate) grace: Span,
    /// How far the time of the rows may be behind the query's.
    pub(crate) delay: Span,
}

impl Within {
    /// How much later than a row of `side` its match may be.
    pub(super) fn reach(&self, side: Side) -> i64 {
        if side == Side::Left { self.after.micros() } else { self.before.micros() }
    }

    pub(super) fn slack(&self) -> i64 {
        self.grace.micros().saturating_add(self.delay.micros())
    }

    /// The last of the query's times at which a row of `side` is taken. One that matches only earlier rows is not late
    /// by its own time.
    pub(super) fn last(&self, side: Side, rowtime: i64) -> i64 {
        rowtime.saturating_add(self.reach(side).max(0)).saturating_add(self.slack())
    }

    /// The first of the query's times at which no row that is taken can match one of `side` any more.
    pub(super) fn expires(&self, side: Side, rowtime: i64) -> i64 {
        self.last(side.other(), rowtime.saturating_add(self.reach(side))).saturating_add(1)
    }

    pub(super) fn fits(&self, side: Side, rowtime: i64, other: i64) -> bool {
        let (left, right) = if side == Side::Left { (rowtime, other) } else { (other, rowtime) };
        right >= left.saturating_sub(self.before.micros()) && right <= left.saturating_add(self.after.micros())
    }
}

/// One input of a join.
#[derive(Clone)]
pub(crate) struct JoinInput {
    /// Its columns.
    pub(crate) schema: SchemaRef,
    /// The first of them, which the condition sees.
    pub(crate) visible: usize,
    /// The join key.
    pub(crate) keys: Vec<Arc<dyn PhysicalExpr>>,
    /// Whether its rows go.
    pub(crate) rows: Rows,
    /// The window among its columns that is part of the key: rows go with it.
    pub(crate) window: Option<WindowBounds>,
}

/// What a join is made of.
pub(crate) struct JoinSpec {
    /// What it gives.
    pub(crate) kind: JoinKind,
    /// The left input.
    pub(crate) left: JoinInput,
    /// The right input.
    pub(crate) right: JoinInput,
    /// The rest of the condition, over the visible columns of the left, then of the right.
    pub(crate) filter: Option<Arc<dyn PhysicalExpr>>,
    /// Those columns.
    pub(crate) filter_schema: SchemaRef,
    /// Whether NULL equals NULL in the key.
    pub(crate) null_equals_null: bool,
    /// Between streams, how far apart rows may be.
    pub(crate) within: Option<Within>,
    /// Whether rows of the left are kept that match nothing, and stay.
    pub(crate) keeps_unmatched: bool,
    /// The columns that come out.
    pub(crate) columns: Vec<JoinColumn>,
    /// Their schema.
    pub(crate) schema: SchemaRef,
}
