//! Errors and notices as the client sees them, and what becomes of the connection after one.
//!
//! Owns ErrorResponse and NoticeResponse, and the choice between going on and closing. Leaves out which
//! error a statement gives: the engine's `SqlError` comes with its code. No state.

use crate::engine::{Notice, SqlError, SqlState, has_other_columns};
use crate::server::pg::cancel::Interrupt;
use crate::server::pg::message::Malformed;
use crate::server::pg::reply::{message, put_text};
use crate::server::pg::wire::WireError;

/// Why the handling of a message ended early.
#[derive(Debug)]
pub(super) enum Stop {
    /// The statement failed: the client is told, and the connection goes on.
    Statement(SqlError),
    /// The connection ends after the client is told why.
    Fatal(SqlError),
    /// The connection ends; nobody is left to be told.
    Gone,
}

impl From<SqlError> for Stop {
    fn from(error: SqlError) -> Self {
        Self::Statement(error)
    }
}

impl From<Malformed> for Stop {
    fn from(error: Malformed) -> Self {
        Self::Statement(SqlError::new(error.sqlstate, error.message))
    }
}

impl From<WireError> for Stop {
    fn from(error: WireError) -> Self {
        match error {
            WireError::Gone => Self::Gone,
            WireError::Violation(message) => Self::Fatal(SqlError::new(SqlState::ProtocolViolation, message)),
        }
    }
}

impl From<Interrupt> for Stop {
    fn from(interrupt: Interrupt) -> Self {
        let cancelled = |why| Self::Statement(SqlError::new(SqlState::QueryCanceled, why));
        match interrupt {
            Interrupt::Cancelled => cancelled("canceling statement due to user request"),
            Interrupt::TimedOut => cancelled("canceling statement due to statement timeout"),
            Interrupt::Stopped => Self::Fatal(shutting_down()),
            Interrupt::Gone => Self::Gone,
        }
    }
}

/// What a client is told when the server stops.
pub(super) fn shutting_down() -> SqlError {
    SqlError::new(SqlState::AdminShutdown, "terminating connection due to administrator command")
}

/// `08P01` with `message`.
pub(super) fn violation(message: impl Into<String>) -> SqlError {
    SqlError::new(SqlState::ProtocolViolation, message)
}

/// How bad it is, in PostgreSQL's words.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Severity {
    /// The statement failed.
    Error,
    /// The connection ends.
    Fatal,
}

/// `E`: an error.
pub(super) fn error_response(out: &mut Vec<u8>, severity: Severity, error: &SqlError) {
    let severity = match severity {
        Severity::Error => "ERROR",
        Severity::Fatal => "FATAL",
    };
    let position = error.position.map(|position| position.to_string());
    // asyncpg and pgjdbc prepare again when they are told that this failed.
    let routine = has_other_columns(error).then_some("RevalidateCachedQuery");
    let fields = [
        (b'S', Some(severity)),
        (b'V', Some(severity)),
        (b'C', Some(error.sqlstate.code())),
        (b'M', Some(error.message.as_str())),
        (b'D', error.detail.as_deref()),
        (b'H', error.hint.as_deref()),
        (b'P', position.as_deref()),
        (b'W', error.context.as_deref()),
        (b'R', routine),
    ];
    message(out, b'E', |out| put_fields(out, &fields));
}

/// `N`: a message beside the result.
pub(super) fn notice_response(out: &mut Vec<u8>, notice: &Notice) {
    let fields = [
        (b'S', Some(notice.severity)),
        (b'V', Some(notice.severity)),
        (b'C', Some(notice.sqlstate.code())),
        (b'M', Some(notice.message.as_str())),
        (b'H', notice.hint.as_deref()),
    ];
    message(out, b'N', |out| put_fields(out, &fields));
}

fn put_fields(out: &mut Vec<u8>, fields: &[(u8, Option<&str>)]) {
    for (code, value) in fields {
        if let Some(value) = value {
            out.push(*code);
            put_text(out, value);
        }
    }
    out.push(0);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_field_that_is_known_is_sent_and_no_other() {
        let error =
            SqlError::new(SqlState::SyntaxError, "syntax error").hint("write it so").at(8_usize).context("line 2");
        let mut out = Vec::new();
        error_response(&mut out, Severity::Error, &error);
        assert_eq!(&out[5..], b"SERROR\0VERROR\0C42601\0Msyntax error\0Hwrite it so\0P8\0Wline 2\0\0");
        assert_eq!(usize::from(out[4]), out.len() - 1);
    }

    #[test]
    fn interrupts_have_postgresqls_codes() {
        for (interrupt, code) in [(Interrupt::Cancelled, "57014"), (Interrupt::TimedOut, "57014")] {
            let Stop::Statement(error) = Stop::from(interrupt) else { unreachable!() };
            assert_eq!(error.sqlstate.code(), code);
        }
        let Stop::Fatal(error) = Stop::from(Interrupt::Stopped) else { unreachable!() };
        assert_eq!(error.sqlstate.code(), "57P01");
    }
}
