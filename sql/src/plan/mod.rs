//! From a parsed SELECT to a logical plan, for one bounded run or for a continuous query.
//!
//! Owns name resolution, PostgreSQL's typing rules, result columns, and the shape the streaming planner relies on. Leaves
//! out execution (`exec`), operators over endless input (`stream`), and statements other than SELECT. Called by the engine
//! and by `bind`. Pure: a crash does nothing to it.

mod pipeline;

mod access;
mod any;
mod constant;
mod continuous;
mod distinct_on;
pub(crate) mod equality;
mod float;
mod from;
mod guard;
mod json;
pub(crate) mod ksqldb;
mod lateral;
mod named_window;
mod names;
mod operator;
mod outline;
mod parameter;
mod provider;
mod refuse;
mod resolve;
mod rewrite;
mod scope;
mod select;
mod session;
mod settle;
mod syntax;
mod union;
mod view;
mod window;
mod within;

pub use crate::exec::table::{scan_schema, scanned_relation};
pub use constant::eval_constant;
pub use continuous::{describe_push, plan_continuous, plan_insert_query, plan_push};
pub use outline::outline;
pub(crate) use parameter::with_values;
pub use select::plan_select;
pub use view::{PlannedView, plan_view};

use crate::dialect::ast::{Position, WindowKind};
use crate::exec::{Interrupts, QueryMemory};
use crate::ports::RelationSource;
use datafusion::logical_expr::LogicalPlan;
use millstream_catalog::model::{Span, Timestamp, TopicId};
use millstream_catalog::{Relation, Snapshot, SqlType, View};
use std::sync::Arc;

/// Everything one statement is planned and run with.
#[derive(Debug, Clone)]
pub struct PlanContext {
    /// The definitions at the statement's start.
    pub catalog: Snapshot,
    /// The stored rows at the statement's start.
    pub source: Arc<dyn RelationSource>,
    /// What `now()` and `current_timestamp` give.
    pub now: Timestamp,
    /// The session's settings.
    pub settings: Arc<PlanSettings>,
}

/// The settings of a session, as far as plans depend on them.
#[derive(Debug, Clone)]
pub struct PlanSettings {
    /// `TimeZone`; times are stored in UTC.
    pub timezone: String,
    /// `search_path`, without `pg_catalog`, which is always searched.
    pub search_path: Vec<String>,
    /// `current_user` and `session_user`.
    pub user: String,
    /// `current_database()`.
    pub database: String,
    /// `version()`.
    pub version: String,
    /// `pg_backend_pid()`.
    pub backend_pid: i32,
    /// Threads one query may use.
    pub target_partitions: usize,
    /// Memory of sorts, aggregates and joins; more is 53200.
    pub memory: QueryMemory,
    /// What stops the query while it works.
    pub interrupts: Arc<Interrupts>,
}

impl Default for PlanSettings {
    fn default() -> Self {
        Self {
            timezone: "UTC".to_owned(),
            search_path: vec!["public".to_owned()],
            user: "millstream".to_owned(),
            database: "millstream".to_owned(),
            version: "PostgreSQL 15.0 (Millstream)".to_owned(),
            backend_pid: 0,
            target_partitions: 2,
            memory: QueryMemory::default(),
            interrupts: Arc::default(),
        }
    }
}

/// A column of a result.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ResultColumn {
    /// Its name; names of a result need not be unique.
    pub name: String,
    /// Its type.
    pub sql_type: SqlType,
    /// The topic and position of the stored column it shows unchanged.
    pub source: Option<(TopicId, usize)>,
}

/// A SELECT, resolved and typed, ready for `exec::execute`.
#[derive(Debug, Clone)]
pub struct PlannedSelect {
    /// The plan, with placeholders `$1 … $n` where the statement has parameters.
    pub plan: LogicalPlan,
    /// The types of the parameters.
    pub params: Vec<SqlType>,
    /// The result's columns. The plan's own field names are internal.
    pub columns: Vec<ResultColumn>,
}

/// The window of a statement's clause.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WindowSpec {
    /// Its kind; lengths are positive.
    pub kind: WindowKind,
    /// How long after its end a window takes late events; `None` where the clause does not say.
    pub grace: Option<Span>,
    /// Where the clause stands.
    pub position: Position,
}

/// A SELECT that may run continuously: resolved, typed, coerced, simplified, its sub-queries made joins.
///
/// Any tree of projections, filters, aggregates, joins, unions and scans of relations. The root's columns are those of
/// `columns`, in order. The columns of a scan are some of `exec::table::scan_schema`; `plan::scanned_relation` gives its relation.
///
/// The edges of windows are ordinary columns: functions of the time, rows that come once for each of their windows, and
/// window functions for those of sessions, directly below the aggregate.
///
/// Expressions hold no sub-query, no placeholder and no volatile function; `now()` is still a call of the scalar function
/// `now`, for the streaming planner to set per step.
#[derive(Debug, Clone)]
pub struct ContinuousPlan {
    /// The plan.
    pub plan: LogicalPlan,
    /// The window, when the statement has a clause.
    pub window: Option<WindowSpec>,
    /// `WITH (grace = …)`.
    pub grace: Option<Span>,
    /// What it reads, each once.
    pub sources: Vec<Arc<Relation>>,
    /// The views it reads, each once, those of views included.
    pub views: Vec<Arc<View>>,
    /// The output columns; their names are unique.
    pub columns: Vec<ResultColumn>,
    /// Those that PARTITION BY names: the key of the stream that is made of it.
    pub partition_by: Vec<usize>,
    /// When rows come out.
    pub emission: Emission,
    /// How long a join of streams without a range of time keeps rows.
    pub state_retention: Option<Span>,
}

/// When the rows of a continuous query come out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Emission {
    /// The new form of each row that changed in a step.
    Changes,
    /// One form for each event.
    EveryChange,
    /// Each row once, when it cannot change any more.
    Final,
}

/// Grace of windows, with their size, where neither the query nor the stream says otherwise.
const GRACE_AND_SIZE: Span = Span::from_secs(24 * 3_600);

impl ContinuousPlan {
    /// How long after its end the window of the statement takes late events; `None` without one.
    pub fn grace(&self) -> Option<Span> {
        let is_declared = self.sources.first().is_some_and(|source| source.watermark_delay.is_some());
        Some(self.grace_of(self.window?.kind.length(), is_declared))
    }

    /// The same for a window of `size`; whether the stream tells by itself how late its events are.
    pub(crate) fn grace_of(&self, size: Span, is_declared: bool) -> Span {
        match (self.window.and_then(|window| window.grace).or(self.grace), is_declared) {
            (Some(grace), _) => grace,
            (None, true) => Span::ZERO,
            (None, false) => Span::from_micros((GRACE_AND_SIZE.micros() - size.micros()).max(0)),
        }
    }
}

#[cfg(test)]
mod tests;
