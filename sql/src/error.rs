//! The one error of the SQL layer: what PostgreSQL clients see.
//!
//! Owns the fields of an error report and their constructors. Leaves out the wire encoding (server) and
//! the mapping of DataFusion's errors (`exec`). Built wherever SQL is refused; a crash does nothing to it.

use millstream_catalog::model::name::NameError;
use millstream_catalog::model::{Offset, PartitionId, SqlState};
use std::fmt;

/// Why a statement was refused or failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SqlError {
    /// The code clients decide by.
    pub sqlstate: SqlState,
    /// One line, lower case, no full stop: the fact, names in double quotes.
    pub message: String,
    /// The values behind the fact.
    pub detail: Option<String>,
    /// The next step.
    pub hint: Option<String>,
    /// Where in the data it happened: `COPY s, line 3, column v: "x"`.
    pub context: Option<Box<str>>,
    /// Characters from the start of the text that was sent, 1-based, as PostgreSQL counts.
    pub position: Option<usize>,
    /// What it is about, where the place is not known: see [`crate::dialect::locate`].
    pub near: Option<Box<Near>>,
}

/// Where an event of a continuous query's input is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct EventPlace {
    /// The source, by its position among the query's.
    pub source: usize,
    /// The partition.
    pub partition: PartitionId,
    /// The offset.
    pub offset: Offset,
}

/// A part of a statement, or an event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Near {
    /// A name or key word.
    Word(String),
    /// An operator.
    Sign(String),
    /// A literal with this text.
    Literal(String),
    /// What stands behind this key word.
    Behind(String),
    /// The event of a continuous query's input that it came with.
    Event(EventPlace),
}

/// The result of the SQL layer.
pub type Result<T, E = SqlError> = std::result::Result<T, E>;

impl SqlError {
    /// An error with a code and a message only.
    pub fn new(sqlstate: SqlState, message: impl Into<String>) -> Self {
        Self { sqlstate, message: message.into(), detail: None, hint: None, context: None, position: None, near: None }
    }

    /// `0A000`: `what` (a clause or statement, as in "EMIT FINAL") is not supported; `hint` names the alternative.
    pub fn unsupported(what: impl fmt::Display, hint: impl Into<String>) -> Self {
        Self::new(SqlState::FeatureNotSupported, format!("{what} is not supported")).hint(hint)
    }

    /// `42601`, with PostgreSQL's words for the place.
    pub fn syntax(message: impl Into<String>) -> Self {
        Self::new(SqlState::SyntaxError, message)
    }

    /// `XX000`: a defect of ours, not of the statement.
    pub fn internal(message: impl Into<String>) -> Self {
        Self::new(SqlState::InternalError, message)
    }

    /// With the values behind the fact.
    #[must_use]
    pub fn detail(mut self, detail: impl Into<String>) -> Self {
        self.detail = Some(detail.into());
        self
    }

    /// With the next step.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// With the place in the data.
    #[must_use]
    pub fn context(mut self, context: impl Into<String>) -> Self {
        self.context = Some(context.into().into_boxed_str());
        self
    }

    /// With what it is about, for its place to be found.
    #[must_use]
    pub fn near(mut self, near: Near) -> Self {
        self.near = Some(Box::new(near));
        self
    }

    /// With the place, in characters from 1; zero means unknown and sets nothing.
    #[must_use]
    pub fn at(mut self, position: impl Into<usize>) -> Self {
        let position = position.into();
        self.position = (position > 0).then_some(position);
        self
    }
}

impl fmt::Display for SqlError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for SqlError {}

impl From<NameError> for SqlError {
    fn from(error: NameError) -> Self {
        let sqlstate = match error {
            NameError::Empty => SqlState::SyntaxError,
            NameError::TooLong(_) => SqlState::NameTooLong,
            NameError::Control => SqlState::InvalidName,
        };
        Self::new(sqlstate, error.to_string())
    }
}
