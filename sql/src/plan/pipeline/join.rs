//! Joins: which kind one is, its keys, and how far apart in time rows may be.
//!
//! A stream and a table of the catalog are joined by lookup; two streams, or anything derived that changes, by a join in
//! which both sides trigger. Leaves out the operators (`stream::join`, `stream::lookup`). Pure.

use super::built::{Built, Key, Mode, WindowColumn};
use super::within::{Range, event_times, range, says_within};
use super::{Need, Planner, is_changelog, nullable, scan};
use crate::error::SqlError;
use crate::stream::{
    Join, JoinColumn, JoinInput, JoinKind, JoinSpec, Lookup, LookupSpec, NotIn, Operator, Side, WindowBounds, Within,
};
use arrow::datatypes::{DataType, Field, FieldRef, Schema};
use datafusion::common::NullEquality;
use datafusion::logical_expr::{self, Expr, JoinType, LogicalPlan};
use millstream_catalog::model::Span;
use std::collections::BTreeSet;
use std::sync::Arc;

/// The key column of a full join that tells rows of the left from those of the right.
const HAS_LEFT: &str = "rowside";

/// A table of the catalog, perhaps with fewer rows and columns.
fn is_table(plan: &LogicalPlan) -> bool {
    match plan {
        LogicalPlan::TableScan(scan) => {
            crate::plan::scanned_relation(scan).is_some_and(|relation| scan::is_changelog(&relation))
        }
        LogicalPlan::Projection(_) | LogicalPlan::Filter(_) | LogicalPlan::SubqueryAlias(_) => {
            plan.inputs().into_iter().all(is_table)
        }
        _ => false,
    }
}

/// Which side is a stream whose events are looked up in the table on the other.
fn lookup_side(join: &logical_expr::Join) -> Option<Side> {
    let is_explicit = matches!(join.join_type, JoinType::Inner | JoinType::Left | JoinType::Right | JoinType::Full);
    if !is_explicit {
        return None;
    }
    match (is_changelog(&join.left), is_changelog(&join.right)) {
        (false, true) if is_table(&join.right) => Some(Side::Left),
        (true, false) if is_table(&join.left) => Some(Side::Right),
        _ => None,
    }
}

/// Whether events of a stream are looked up in a table.
pub(super) fn is_lookup(join: &logical_expr::Join) -> bool {
    lookup_side(join).is_some()
}

/// Whether both sides are streams whose rows match only within a time.
pub(super) fn is_within(join: &logical_expr::Join) -> bool {
    range(join).is_some()
}

/// Which of its inputs an operator has, and what comes of them.
struct Shape {
    kind: JoinKind,
    /// `RightSemi` and the like are planned as their mirror images.
    is_swapped: bool,
}

fn shape(join_type: JoinType) -> Shape {
    let (kind, is_swapped) = match join_type {
        JoinType::Inner => (JoinKind::Inner, false),
        JoinType::Left => (JoinKind::Left, false),
        JoinType::Right => (JoinKind::Right, false),
        JoinType::Full => (JoinKind::Full, false),
        JoinType::LeftSemi => (JoinKind::Semi, false),
        JoinType::LeftAnti => (JoinKind::Anti, false),
        JoinType::LeftMark => (JoinKind::Mark, false),
        JoinType::RightSemi => (JoinKind::Semi, true),
        JoinType::RightAnti => (JoinKind::Anti, true),
        JoinType::RightMark => (JoinKind::Mark, true),
    };
    Shape { kind, is_swapped }
}

/// The columns that come out of a join, and where those of the inputs are among them.
struct Columns {
    columns: Vec<JoinColumn>,
    fields: Vec<FieldRef>,
}

impl Columns {
    fn of(join: &logical_expr::Join, kind: JoinKind, left: &Built, right: &Built) -> Self {
        let gives_right = !matches!(kind, JoinKind::Semi | JoinKind::Anti | JoinKind::Mark);
        let mut columns: Vec<JoinColumn> = (0..left.visible()).map(|at| JoinColumn::Of(Side::Left, at)).collect();
        match (kind, gives_right) {
            (JoinKind::Mark, _) => columns.push(JoinColumn::Mark),
            (_, true) => columns.extend((0..right.visible()).map(|at| JoinColumn::Of(Side::Right, at))),
            (_, false) => {}
        }
        let mut fields: Vec<FieldRef> = join.schema.fields().iter().map(nullable).collect();
        let hidden = |side: Side, built: &Built| -> Vec<(JoinColumn, FieldRef)> {
            let hidden =
                (built.visible()..built.fields.len()).map(|at| (JoinColumn::Of(side, at), nullable(&built.fields[at])));
            hidden.collect()
        };
        let mut all = hidden(Side::Left, left);
        if gives_right {
            all.extend(hidden(Side::Right, right));
        }
        if kind == JoinKind::Full {
            // Rows of either side alone may have NULL in all of their keys.
            all.push((JoinColumn::HasLeft, Arc::new(Field::new(HAS_LEFT, DataType::Boolean, true))));
        }
        for (column, field) in all {
            columns.push(column);
            fields.push(field);
        }
        Self { columns, fields }
    }

    fn position(&self, side: Side, at: usize) -> Option<usize> {
        self.columns.iter().position(|column| *column == JoinColumn::Of(side, at))
    }
}

impl Planner<'_> {
    pub(super) fn join(&mut self, join: &logical_expr::Join, need: Need) -> Result<Built, SqlError> {
        if join.null_aware && (join.on.len() != 1 || join.filter.is_some() || join.join_type != JoinType::LeftAnti) {
            return Err(SqlError::unsupported("a correlated NOT IN in a continuous query", "use NOT EXISTS"));
        }
        let lookup = lookup_side(join);
        if lookup.is_some() && join.null_equality == NullEquality::NullEqualsNull {
            let hint = "compare with =, or coalesce(…) of both sides";
            return Err(SqlError::unsupported("IS NOT DISTINCT FROM in a join of a stream with a table", hint));
        }
        let Shape { kind, is_swapped } = shape(join.join_type);
        check_lookup(lookup, kind)?;
        let is_changelog = is_changelog(&LogicalPlan::Join(join.clone()));
        let key = need.key || is_changelog;
        let gives_pairs = !matches!(kind, JoinKind::Semi | JoinKind::Anti | JoinKind::Mark);
        let keys = match (lookup, is_swapped) {
            (Some(Side::Left), _) => (need.key, true),
            (Some(Side::Right), _) => (true, need.key),
            (None, false) => (key, key && gives_pairs),
            (None, true) => (key && gives_pairs, key),
        };
        let left = self.build(&join.left, Need { key: keys.0, forms: false })?.settle(self)?;
        let right = self.build(&join.right, Need { key: keys.1, forms: false })?.settle(self)?;
        // The operator's left is the right of a join that is planned as its mirror image.
        let filter_schema = Arc::new(match is_swapped {
            false => left.schema.join(&right.schema)?,
            true => right.schema.join(&left.schema)?,
        });
        let filter = join.filter.iter().map(|filter| {
            self.check_filter(filter)?;
            self.physical(filter, &filter_schema)
        });
        let filter = filter.collect::<Result<Vec<_>, _>>()?.pop();
        let parts = Parts { join, left, right, filter, filter_schema: Arc::clone(filter_schema.inner()) };
        match lookup {
            Some(side) => self.lookup(parts, side, kind),
            None => self.join_both(parts, kind, is_swapped, is_changelog),
        }
    }

    /// Both sides trigger.
    fn join_both(
        &mut self,
        parts: Parts<'_>,
        kind: JoinKind,
        is_swapped: bool,
        is_changelog: bool,
    ) -> Result<Built, SqlError> {
        let Parts { join, left, right, filter, filter_schema } = parts;
        let windows = shared_window(join, &left, &right);
        let mut left_input = self.input(&left, join.on.iter().map(|(key, _)| key))?;
        let mut right_input = self.input(&right, join.on.iter().map(|(_, key)| key))?;
        let not_in = match (join.null_aware, left_input.keys.as_slice(), right_input.keys.as_slice()) {
            (true, [left], [right]) => Some([Arc::clone(left), Arc::clone(right)]),
            _ => None,
        };
        if let (Some((of_left, of_right)), false) = (windows, join.null_aware) {
            (left_input.window, right_input.window) = (Some(of_left), Some(of_right));
        }
        let (first, second) = if is_swapped { (&right, &left) } else { (&left, &right) };
        let columns = Columns::of(join, kind, first, second);
        let within = match kind {
            // A join of which only one side is wanted, each row once.
            JoinKind::Semi if says_within(join) => {
                range(join).filter(|_| !is_changelog).map(|range| match is_swapped {
                    false => range,
                    true => Range { before: range.after, after: range.before, ..range },
                })
            }
            // What it gives of a row may change until no match can come: then nothing is let go.
            JoinKind::Semi | JoinKind::Mark => None,
            _ => range(join).filter(|_| !is_swapped && !is_changelog),
        };
        let within = match within {
            Some(within) => Some(within),
            None => self.kept_for(kind, &left, &right)?,
        };
        let mut built = joined(join, &columns, (first, second), is_changelog);
        let delay = built.delay;
        if let Some(within) = within {
            self.is_timed = true;
            let reach = [within.before, within.after, within.grace].map(|span| span.micros().max(0));
            let most = reach.iter().fold(delay.micros(), |sum, span| sum.saturating_add(*span));
            built.delay = Span::from_micros(most);
            built.times = event_times(&LogicalPlan::Join(join.clone()));
        }
        let (left_input, right_input) = if is_swapped { (right_input, left_input) } else { (left_input, right_input) };
        let operator = Join::new(JoinSpec {
            kind,
            left: left_input,
            right: right_input,
            filter,
            filter_schema,
            null_equals_null: join.null_equality == NullEquality::NullEqualsNull,
            within: within.map(|Range { before, after, grace }| Within { before, after, grace, delay }),
            keeps_unmatched: join.null_aware,
            columns: columns.columns,
            schema: built.arrow(),
        })?;
        let operator: Box<dyn Operator> = match &not_in {
            Some([key, other]) => Box::new(NotIn::new(operator, Arc::clone(key), Arc::clone(other))?),
            None => Box::new(operator),
        };
        let edges = if is_swapped { vec![right.edge, left.edge] } else { vec![left.edge, right.edge] };
        let edge = self.add(operator, edges);
        Ok(Built { edge, ..built })
    }

    /// Of two streams that are joined whatever their times, how long rows are kept.
    fn kept_for(&mut self, kind: JoinKind, left: &Built, right: &Built) -> Result<Option<Range>, SqlError> {
        if left.mode != Mode::Append || right.mode != Mode::Append {
            return Ok(None);
        }
        match (self.query.state_retention, kind) {
            (None, _) => {
                self.is_unbounded = true;
                Ok(None)
            }
            (Some(kept), JoinKind::Inner) => Ok(Some(Range { before: kept, after: kept, grace: Span::ZERO })),
            (Some(_), _) => Err(SqlError::unsupported(
                "state_retention of an outer join, IN or EXISTS of streams",
                "put a range of event times into ON, or WITHIN",
            )),
        }
    }

    /// Events of the stream on `side` find rows of the table.
    fn lookup(&mut self, parts: Parts<'_>, side: Side, kind: JoinKind) -> Result<Built, SqlError> {
        let Parts { join, left, right, filter, filter_schema } = parts;
        let columns = Columns::of(join, kind, &left, &right);
        let built = joined(join, &columns, (&left, &right), false);
        let left_input = self.input(&left, join.on.iter().map(|(key, _)| key))?;
        let right_input = self.input(&right, join.on.iter().map(|(_, key)| key))?;
        let as_stream = |column: &JoinColumn| match (column, side) {
            (JoinColumn::Of(of, at), Side::Right) => JoinColumn::Of(of.other(), *at),
            (column, _) => *column,
        };
        let (stream, table, edges, times, delay) = match side {
            Side::Left => (left_input, right_input, vec![left.edge, right.edge], left.times, left.delay),
            Side::Right => (right_input, left_input, vec![right.edge, left.edge], right.times, right.delay),
        };
        let times = times.into_iter().filter_map(|at| columns.position(side, at)).collect();
        let operator = Lookup::new(LookupSpec {
            stream,
            table,
            is_outer: kind != JoinKind::Inner,
            filter,
            filter_schema,
            side,
            columns: columns.columns.iter().map(as_stream).collect(),
            schema: built.arrow(),
        })?;
        let edge = self.add(Box::new(operator), edges);
        Ok(Built { edge, times, delay, mode: Mode::Append, ..built })
    }

    fn input<'e>(&self, built: &Built, keys: impl Iterator<Item = &'e Expr>) -> Result<JoinInput, SqlError> {
        Ok(JoinInput {
            schema: built.arrow(),
            visible: built.visible(),
            keys: keys.map(|key| self.physical(key, &built.schema)).collect::<Result<Vec<_>, _>>()?,
            rows: built.rows(),
            window: None,
        })
    }
}

/// The parts of a join.
struct Parts<'a> {
    join: &'a logical_expr::Join,
    left: Built,
    right: Built,
    filter: Option<Arc<dyn datafusion::physical_expr::PhysicalExpr>>,
    filter_schema: Arc<Schema>,
}

fn check_lookup(lookup: Option<Side>, kind: JoinKind) -> Result<(), SqlError> {
    let is_told = match (lookup, kind) {
        (None, _) | (_, JoinKind::Inner) => true,
        (Some(Side::Left), kind) => kind == JoinKind::Left,
        (Some(Side::Right), kind) => kind == JoinKind::Right,
    };
    match is_told {
        true => Ok(()),
        false => Err(SqlError::unsupported(
            "an outer join that keeps rows of a table without an event",
            "only the stream triggers: keep the rows of the stream, or join a table made from it",
        )),
    }
}

/// What is known of the rows that come out; their edge is still that of the left.
fn joined(join: &logical_expr::Join, columns: &Columns, (left, right): (&Built, &Built), is_changelog: bool) -> Built {
    let mut key: Vec<Key> = Vec::new();
    let mut windows: Vec<WindowColumn> = Vec::new();
    let visible = join.schema.fields().len();
    if let Some(at) = columns.columns.iter().position(|column| *column == JoinColumn::HasLeft) {
        key.push(Key { at, shown: None, name: HAS_LEFT.to_owned(), is_hidden: true });
    }
    for (side, built) in [(Side::Left, left), (Side::Right, right)] {
        for one in &built.key {
            key.extend(columns.position(side, one.at).map(|at| Key {
                at,
                shown: (at < visible).then_some(at),
                name: one.name.clone(),
                is_hidden: true,
            }));
        }
        for one in &built.windows {
            windows.extend(columns.position(side, one.at).map(|at| WindowColumn { at, ..*one }));
        }
    }
    Built {
        edge: left.edge.clone(),
        base: columns.fields.clone(),
        stages: Vec::new(),
        fields: columns.fields.clone(),
        schema: Arc::clone(&join.schema),
        mode: if is_changelog { Mode::Both } else { Mode::Append },
        key,
        windows,
        window: None,
        times: BTreeSet::new(),
        delay: left.delay.max(right.delay),
        is_declared: left.is_declared && right.is_declared,
    }
}

/// Of a join of windows with equal windows, the window of each side: state goes when both are closed.
fn shared_window(join: &logical_expr::Join, left: &Built, right: &Built) -> Option<(WindowBounds, WindowBounds)> {
    join.on.iter().find_map(|(one, other)| {
        let column = |expression: &Expr, built: &Built| match super::unalias(expression) {
            Expr::Column(column) => {
                let at = built.schema.maybe_index_of_column(column)?;
                built.windows.iter().find(|window| window.at == at).copied()
            }
            _ => None,
        };
        let (one, other) = (column(one, left)?, column(other, right)?);
        let close = |window: WindowColumn, delay: Span| {
            Span::from_micros(
                window.length.micros().saturating_add(window.grace.micros()).saturating_add(delay.micros()),
            )
        };
        let last = close(one, left.delay).max(close(other, right.delay));
        let bounds =
            |at: usize| WindowBounds { key: at, length: last, grace: Span::ZERO, delay: Span::ZERO, is_shared: false };
        Some((bounds(one.at), bounds(other.at)))
    })
}
