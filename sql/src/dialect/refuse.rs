//! Statements that are known and not supported, each with the alternative; anything else is no statement.
//!
//! Called for a first word that nothing else takes. A crash does nothing to it.

use super::cursor::Cursor;
use crate::error::SqlError;
use millstream_catalog::model::SqlState;

/// First words, what to call the statement, and the hint.
const STATEMENTS: &[(&[&str], &str, &str)] = &[
    (&["alter", "system"], "ALTER SYSTEM", "use SET, or the server's configuration file"),
    (&["alter", "role"], "ALTER ROLE", "every session may do everything until there are roles"),
    (&["alter", "user"], "ALTER USER", "every session may do everything until there are roles"),
    (&["alter", "view"], "ALTER VIEW", "use CREATE OR REPLACE VIEW"),
    (&["alter", "materialized", "view"], "ALTER MATERIALIZED VIEW", "use ALTER STREAM or ALTER TABLE, whichever it is"),
    (&["alter"], "this ALTER", "use ALTER STREAM, ALTER TABLE or ALTER TOPIC"),
    (&["merge"], "MERGE", "use INSERT … SELECT … ON CONFLICT (…) DO UPDATE, and DELETE … USING"),
    (&["upsert"], "UPSERT", "use INSERT: into a table with a primary key it is an upsert"),
    (&["grant"], "GRANT", "every session may do everything until there are roles"),
    (&["revoke"], "REVOKE", "every session may do everything until there are roles"),
    (&["print"], "PRINT", "use SELECT * FROM topic EMIT CHANGES"),
    (&["notify"], "NOTIFY", "INSERT into the topic: who listens to it is notified of new events"),
    (&["list"], "LIST", "use SHOW"),
    (&["comment"], "COMMENT", "keep the description in your own documents"),
    (&["lock"], "LOCK", "leave it out: readers and writers do not block each other"),
    (&["vacuum"], "VACUUM", "leave it out: stored events need no vacuum"),
    (&["analyze"], "ANALYZE", "leave it out: statistics are kept with the stored events"),
    (&["analyse"], "ANALYSE", "leave it out: statistics are kept with the stored events"),
    (&["reindex"], "REINDEX", "leave it out: there are no indexes"),
    (&["cluster"], "CLUSTER", "leave it out: events stay in the order of their offsets"),
    (&["checkpoint"], "CHECKPOINT", "use FLUSH to wait for continuous queries"),
    (&["do"], "DO", "send the statements themselves"),
    (&["call"], "CALL", "send the statements themselves"),
    (&["security"], "SECURITY LABEL", "leave it out"),
    (&["reassign"], "REASSIGN OWNED", "leave it out: nothing is owned"),
    (&["import"], "IMPORT FOREIGN SCHEMA", "load the rows with COPY … FROM STDIN"),
];

/// The error for a statement that begins at the next token.
pub(super) fn statement(cursor: &Cursor<'_>) -> SqlError {
    if cursor.is(&["load"]) {
        return SqlError::new(SqlState::InsufficientPrivilege, "permission denied: statements do not load files")
            .hint("every function is built in; see SHOW FUNCTIONS")
            .at(cursor.position());
    }
    match STATEMENTS.iter().find(|(words, _, _)| cursor.is(words)) {
        Some((_, what, hint)) => cursor.unsupported(what, hint),
        None => cursor.unexpected(),
    }
}
