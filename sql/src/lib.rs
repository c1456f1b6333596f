//! The SQL dialect of Millstream: text to plan to operators.
//!
//! Pure: no I/O, no runtime, no clock. Owns parsing, binding, planning, bounded execution over ports, and
//! the operators of continuous queries. Leaves out storage, sessions and the wire; the engine calls it.

pub mod bind;
pub mod copy;
pub mod dialect;
pub mod error;
pub mod exec;
pub mod function;
pub mod plan;
pub mod ports;
pub mod stream;
pub mod types;

pub use error::SqlError;
