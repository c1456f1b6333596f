//! Definitions of continuous queries.
//!
//! The catalog keeps the SQL text and a fingerprint of the pipeline, never a serialised plan. Leaves out
//! progress, which is state of the shard that runs the query. A crash does nothing to it.

use crate::model::{Name, QueryId, Span, SqlState, Timestamp, TopicId};
use crate::view::View;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// What a continuous query is doing, as far as the catalog decides it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum QueryState {
    /// It takes steps.
    Running,
    /// `PAUSE QUERY` stopped it; `RESUME QUERY` goes on where it was.
    Paused,
    /// It failed and waits for `RESUME QUERY`.
    Error {
        /// The SQLSTATE of the failure.
        sqlstate: SqlState,
        /// One line: the fact.
        message: String,
    },
    /// `TERMINATE QUERY` ended it for good; what it wrote stays.
    Terminated,
}

impl QueryState {
    /// The word shown to users.
    pub fn word(&self) -> &'static str {
        match self {
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Error { .. } => "error",
            Self::Terminated => "terminated",
        }
    }
}

/// Where a query begins to read inputs that already hold events.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OffsetReset {
    /// At the oldest stored event (backfill).
    #[default]
    Earliest,
    /// After the newest.
    Latest,
}

/// Which forms of a changed row a query writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EmitForms {
    /// The last one of each step.
    #[default]
    Changes,
    /// One for each event, also where the row is as it was.
    EveryChange,
}

/// What becomes of a query at an event that it cannot take.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OnError {
    /// It stops, and names the event.
    #[default]
    Stop,
    /// The event is left out, counted and kept in `millstream.query_errors`.
    Skip,
}

/// The `WITH` options of a continuous query.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct QueryOptions {
    /// Where it begins.
    pub auto_offset_reset: OffsetReset,
    /// After how long without events a partition no longer holds back the watermark.
    pub idle_timeout: Span,
    /// Which forms of a changed row it writes.
    #[serde(default)]
    pub emit: EmitForms,
    /// How long after an event's time a join of streams without a range of time keeps it; `None` for ever.
    #[serde(default)]
    pub state_retention: Option<Span>,
    /// What becomes of it at an event that it cannot take.
    #[serde(default)]
    pub on_error: OnError,
}

impl Default for QueryOptions {
    fn default() -> Self {
        Self {
            auto_offset_reset: OffsetReset::Earliest,
            idle_timeout: Span::from_secs(10),
            emit: EmitForms::Changes,
            state_retention: None,
            on_error: OnError::Stop,
        }
    }
}

/// A continuous query: reads relations, writes one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Query {
    /// Its id, never reused.
    pub id: QueryId,
    /// Its name; that of its sink for `CREATE … AS SELECT`.
    pub name: Name,
    /// The SELECT, canonical text, from which the pipeline is planned anew at each start.
    pub sql: String,
    /// What it reads.
    pub sources: Vec<TopicId>,
    /// What it writes.
    pub sink: TopicId,
    /// Identifies the pipeline's operators and their state layout.
    pub fingerprint: String,
    /// Its state.
    pub state: QueryState,
    /// Its options.
    pub options: QueryOptions,
    /// When it was created.
    pub created_at: Timestamp,
    /// Of one that inserts into a relation of its own, the columns it gives; `None` for that of `CREATE … AS SELECT`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target: Option<Vec<Name>>,
    /// Sources that were altered since: as `sql` knows them.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub forms: BTreeMap<TopicId, SourceForm>,
    /// The views it reads, as they were when it was made: another definition of one changes nothing here.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub views: BTreeMap<TopicId, View>,
    /// The fingerprint of the pipeline that it replaced, whose saved state it goes on with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub former: Option<String>,
}

impl Query {
    /// Whether it reads the relation or view.
    pub fn reads(&self, id: TopicId) -> bool {
        self.sources.contains(&id) || self.views.contains_key(&id)
    }
}

/// A relation as it was when a query that reads it was made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SourceForm {
    /// Its name then.
    pub name: Name,
    /// The names of its columns then; columns added later follow them and are not read.
    pub columns: Vec<Name>,
}
