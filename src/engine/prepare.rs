//! Prepared statements: a statement with its parameter types and result columns.
//!
//! An INSERT of values keeps its plan, so that executing it again never meets the planner. Leaves out names
//! of prepared statements (`session`). A crash forgets them.

use crate::engine::change::KeptPlans;
use crate::engine::settings::Settings;
use crate::engine::{Engine, Param, Result};
use datafusion::common::ScalarValue;
use millstream_catalog::model::{EntryIndex, Span, SqlState, Timestamp};
use millstream_catalog::{Relation, SqlType};
use millstream_sql::bind::insert::InsertPlan;
use millstream_sql::dialect::{Parsed, SequenceValue};
use millstream_sql::plan::{PlannedSelect, ResultColumn};
use millstream_sql::{SqlError, types};
use parking_lot::Mutex;
use std::sync::Arc;

/// A statement that can be executed, many times.
#[derive(Debug)]
pub struct Prepared {
    said: Said,
    pub(crate) params: Vec<SqlType>,
    pub(crate) columns: Option<Arc<[ResultColumn]>>,
    /// What it was planned with.
    pub(crate) moment: Moment,
    pub(crate) plan: Plan,
}

/// A statement's text, and what it says: a tree of some 10 KiB, which one that goes on for long need not keep.
#[derive(Debug)]
struct Said {
    text: Arc<str>,
    start: usize,
    parsed: Mutex<Option<Arc<Parsed>>>,
}

/// Parameters, columns of a result, and plan of a statement.
pub(crate) type Planned = (Vec<SqlType>, Option<Arc<[ResultColumn]>>, Plan);

/// What a plan fixes besides the statement: definitions, the rows it sees, `now()` and settings.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Moment {
    version: u64,
    applied: Vec<EntryIndex>,
    at: Timestamp,
    settings: Settings,
}

/// How old a plan's `now()` may be when it runs, if nothing was committed since.
const PLAN_AGE_MAX: Span = Span::from_micros(100_000);

impl Moment {
    /// The present, in a session of these settings.
    pub(crate) fn now(engine: &Engine, settings: &Settings) -> Self {
        Self {
            version: engine.catalog().version(),
            applied: engine.replication().shards().iter().map(|shard| shard.partitions().applied()).collect(),
            at: engine.clock().now(),
            settings: settings.clone(),
        }
    }

    /// What `now()` gives.
    pub(crate) fn at(&self) -> Timestamp {
        self.at
    }

    /// Whether a plan of this moment gives the rows that one made now would give.
    pub(crate) fn is_present(&self, engine: &Engine, settings: &Settings) -> bool {
        let present = Self::now(engine, settings);
        let is_fresh = present.at.minus(PLAN_AGE_MAX) <= self.at;
        is_fresh && present == Self { at: present.at, ..self.clone() }
    }
}

/// The parameters of one execution: their types, and as many values.
#[derive(Debug, Default)]
pub(crate) struct Arguments {
    pub(crate) types: Vec<SqlType>,
    pub(crate) values: Vec<ScalarValue>,
}

/// What of the planning is kept.
#[derive(Debug)]
pub(crate) enum Plan {
    /// Planned when it runs.
    Late,
    /// Rows for one relation.
    Insert(InsertTarget),
    /// The rows an UPDATE or DELETE changes, and what it returns.
    Change(KeptPlans),
    /// A pull query; an execution right after takes the plan, later ones plan anew to see what was committed since.
    Select(Mutex<Option<PlannedSelect>>),
}

/// Where an INSERT of values goes.
#[derive(Debug)]
pub(crate) struct InsertTarget {
    pub(crate) relation: Arc<Relation>,
    pub(crate) plan: InsertPlan,
    pub(crate) returning: Vec<Returned>,
    pub(crate) sequence: Option<SequenceValue>,
}

/// One column of `RETURNING`.
#[derive(Debug, Clone)]
pub(crate) struct Returned {
    pub(crate) column: ResultColumn,
    pub(crate) source: ReturnedSource,
}

/// Where a returned column comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ReturnedSource {
    /// The stored column at this position, `rowtime` included.
    Stored(usize),
    /// `rowpartition`
    Partition,
    /// `rowoffset`
    Offset,
}

const COLUMNS_CHANGED: &str = "cached plan must not change result type";

/// Whether a statement failed in [`check_columns`], before it did anything: prepared again it may run.
pub fn has_other_columns(error: &SqlError) -> bool {
    error.sqlstate == SqlState::FeatureNotSupported && error.message == COLUMNS_CHANGED
}

/// Whether rows of these columns can be sent to a client that was told of others.
///
/// # Errors
/// 0A000 when they differ.
pub fn check_columns(told: &[ResultColumn], columns: &[ResultColumn]) -> Result<()> {
    let is_same =
        |(told, column): (&ResultColumn, &ResultColumn)| told.name == column.name && told.sql_type == column.sql_type;
    match told.len() == columns.len() && told.iter().zip(columns).all(is_same) {
        true => Ok(()),
        false => Err(SqlError::new(SqlState::FeatureNotSupported, COLUMNS_CHANGED).hint("prepare the statement again")),
    }
}

impl Prepared {
    pub(crate) fn new(parsed: Parsed, (params, columns, plan): Planned, moment: Moment) -> Self {
        let (text, start) = (Arc::clone(&parsed.text), parsed.start);
        let said = Said { text, start, parsed: Mutex::new(Some(Arc::new(parsed))) };
        Self { said, params, columns, moment, plan }
    }

    /// What it says.
    ///
    /// # Errors
    /// None, since its text was parsed before.
    pub fn parsed(&self) -> Result<Arc<Parsed>> {
        let mut kept = self.said.parsed.lock();
        let parsed = match kept.take() {
            Some(parsed) => parsed,
            None => Arc::new(Parsed::again(&self.said.text, self.said.start)?),
        };
        Ok(Arc::clone(kept.insert(parsed)))
    }

    /// Keeps its text alone: it goes on for long, and may never be executed again.
    pub(crate) fn fold(&self) {
        *self.said.parsed.lock() = None;
    }

    /// The parameters' types, `$1` first.
    pub fn params(&self) -> &[SqlType] {
        &self.params
    }

    /// The columns of its rows; `None` when it gives none.
    pub fn columns(&self) -> Option<&Arc<[ResultColumn]>> {
        self.columns.as_ref()
    }

    /// Whether its rows are its own, not those of a cursor that it names.
    pub fn is_own(&self) -> bool {
        self.said.parsed.lock().as_ref().is_none_or(|parsed| parsed.cursor().is_none())
    }

    /// Its text.
    pub fn text(&self) -> &str {
        &self.said.text
    }

    /// The parameters of an execution with these values.
    ///
    /// # Errors
    /// 22P02 and the like for a value that is none of its type.
    pub(crate) fn arguments(&self, params: &[Param]) -> Result<Arguments> {
        let scalar = |(sql_type, param): (&SqlType, &Param)| match &param.value {
            None => types::scalar_null(sql_type),
            Some(bytes) if param.is_binary => types::scalar_binary(sql_type, bytes),
            Some(bytes) => types::scalar_text(sql_type, bytes),
        };
        let values = self.params.iter().zip(params).map(scalar).collect::<Result<_>>()?;
        Ok(Arguments { types: self.params.clone(), values })
    }

    pub(crate) fn check_param_count(&self, given: usize) -> Result<()> {
        if given == self.params.len() {
            return Ok(());
        }
        Err(SqlError::new(
            SqlState::ProtocolViolation,
            format!("bind message supplies {given} parameters, but prepared statement requires {}", self.params.len()),
        ))
    }

    /// 0A000 when a new plan gives other columns than the client was told of.
    pub(crate) fn check_columns(&self, columns: Option<&[ResultColumn]>) -> Result<()> {
        self.columns.as_deref().zip(columns).map_or(Ok(()), |(told, columns)| check_columns(told, columns))
    }

    /// The relation an INSERT plan was made for.
    pub(crate) fn insert_relation(&self) -> Option<&Arc<Relation>> {
        match &self.plan {
            Plan::Insert(target) => Some(&target.relation),
            _ => None,
        }
    }
}
