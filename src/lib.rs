//! Millstream: a replicated event log, a streaming SQL engine and a PostgreSQL server in one process.

pub mod env;
pub mod replication;
pub mod storage;
