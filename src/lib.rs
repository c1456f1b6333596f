//! Millstream: a replicated event log, a streaming SQL engine and a PostgreSQL server in one process.

pub mod cli;
pub mod config;
pub mod docs;
pub mod engine;
pub mod env;
pub mod node;
pub mod offline;
pub mod replication;
pub mod server;
pub mod shell;
pub mod storage;
