//! Everything that is tested over the wire or across layers, as one binary.
//!
//! `clients`: drivers and psql. `crash`: real processes, killed. `equivalence`: continuous tables against their
//! SELECT run once. `damage`: files that changed while no server ran. `protocol`: the wire, byte by byte. `slt`: statements and their rows. `scripts`: several
//! sessions, rows in the order they arrive. `tidy`: the rules of the code that a machine can check.

#![allow(clippy::disallowed_methods, reason = "tests use the machine as it is")]
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that finds something else than it expects must fail")]

mod clients;
mod common;
mod crash;
mod damage;
mod equivalence;
mod pipelined;
mod protocol;
mod script;
mod slt;
mod tidy;
