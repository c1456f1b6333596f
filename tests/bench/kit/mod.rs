//! What the benches share: the server as a process, the disk's own speed, turns, and the table of figures.

#![allow(dead_code, reason = "each bench uses its own part of it")]

pub(crate) mod disk;
pub(crate) mod events;
pub(crate) mod flights;
pub(crate) mod process;
pub(crate) mod race;
pub(crate) mod report;
pub(crate) mod server;

/// What Cargo adds to the arguments of a bench.
pub(crate) fn arguments() -> impl Iterator<Item = String> {
    std::env::args().filter(|argument| argument != "--bench")
}
