//! Everything that is tested over the wire or across layers, as one binary.
//!
//! `slt`: statements and their rows. `scripts`: several sessions, rows in the order they arrive. `tidy`: the
//! rules of the code that a machine can check.

mod common;
mod script;
mod slt;
mod tidy;
