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
pub(crate) mod equality;
mod float;
mod from;
mod json;
mod lateral;
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
mod settle;
mod syntax;
mod union;
mod window;

pub use crate::exec::table::{scan_schema, scanned_relation};
pub use constant::eval_constant;
pub use continuous::{describe_push, plan_continuous, plan_push};
pub use outline::outline;
pub(crate) use parameter::with_values;
pub use select::plan_select;

use crate::exec::{Interrupts, QueryMemory};
use crate::ports::RelationSource;
use datafusion::logical_expr::LogicalPlan;
use millstream_catalog::model::{Span, Timestamp, TopicId};
use millstream_catalog::{Relation, Snapshot, SqlType};
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

/// The window of a continuous query.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WindowSpec {
    /// The length of a tumbling window; positive.
    pub size: Span,
    /// How long after its end a window takes late events; `None` where the statement does not say.
    pub grace: Option<Span>,
}

/// A SELECT that may run continuously: resolved, typed, coerced and simplified.
///
/// # Shape
/// From the root down, every level in brackets may be missing, nothing else occurs, and each level has one input:
///
/// ```text
/// Projection          the output, one expression per entry of `columns`, in order
///   [Filter]          HAVING
///   [Aggregate]       GROUP BY and aggregates; with a window, `windowstart` and `windowend` are among the group keys
///   [Filter]          WHERE
///   [Projection]      every column of the scan, then `windowstart`, `windowend`; there exactly when `window` is
///   TableScan         the source: no projection, no filters, no fetch
/// ```
///
/// The scan's columns are those of `relation.stored_schema()` without `rowtombstone`, then `rowpartition` and
/// `rowoffset`; so a position below `columns.len() + 1` is one of the stored schema. `plan::scanned_relation` gives the relation.
///
/// `windowstart` is `rowtime` rounded down to a multiple of the size since the Unix epoch, `windowend` is
/// `windowstart` plus the size; both are `Timestamp(µs, "UTC")`.
///
/// Aggregates may have DISTINCT, FILTER and ORDER BY. Expressions hold no sub-query, no placeholder and no volatile function;
/// `now()` is still a call of the scalar function `now`, for the streaming planner to set per step.
#[derive(Debug, Clone)]
pub struct ContinuousPlan {
    /// The plan, of the shape above.
    pub plan: LogicalPlan,
    /// The window, when the statement has one.
    pub window: Option<WindowSpec>,
    /// What it reads; the first is the source of the scan.
    pub sources: Vec<Arc<Relation>>,
    /// The output columns; their names are unique.
    pub columns: Vec<ResultColumn>,
}

/// Grace of windows, with their size, where neither the query nor the stream says otherwise.
const GRACE_AND_SIZE: Span = Span::from_secs(24 * 3_600);

impl ContinuousPlan {
    /// How long after its end a window takes late events; `None` without a window.
    pub fn grace(&self) -> Option<Span> {
        let window = self.window?;
        let delay = self.sources.first().and_then(|source| source.watermark_delay);
        Some(match (window.grace, delay) {
            (Some(grace), _) => grace,
            (None, Some(_)) => Span::ZERO,
            (None, None) => Span::from_micros((GRACE_AND_SIZE.micros() - window.size.micros()).max(0)),
        })
    }
}

#[cfg(test)]
mod tests;
