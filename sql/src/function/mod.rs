//! Functions and operators where PostgreSQL differs from the engine's libraries.
//!
//! Owns checked arithmetic, casts, aggregates with PostgreSQL's result types, and the session functions drivers call.
//! Leaves out parsing and formatting of values (`types`). Called by `plan`. Pure: a crash does nothing to it.

pub mod errors;
pub mod window;
