//! Everything that is tested over the wire or across layers, as one binary.
//!
//! `across`: transactions over several shards. `alter`: definitions that change beside writers. `backup`: of running nodes. `changes`: rows that many clients change.
//! `clients`: drivers and psql. `copy`: formats of COPY, with the programs that write them. `crash`: real processes,
//! killed; `failed_sync`: those that must stop or not start. `fetches`: rows of consumer groups, message by message. `damage`: files that changed while no server ran, and a full disk. `equivalence`: continuous tables against
//! their SELECT run once. `events`: large ones, by every way in. `listen`: notifications on the wire. `limits`: as many topics and partitions as a node takes. `pipelined`: statements sent without
//! waiting. `protocol`: the wire, byte by byte. `pruning`: reads that skip segments against
//! reads that do not. `rows`: changes of random rows against a model. `segments`: as other programs open them. `slt`: statements and their rows. `scripts`: several sessions, rows in
//! the order they arrive. `tidy`: the rules of the code that a machine can check. `views`: views and replaced queries over kills.

#![allow(clippy::disallowed_methods, reason = "tests use the machine as it is")]
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that finds something else than it expects must fail")]

mod across;
mod alter;
mod backup;
mod bulk;
mod changes;
mod churn;
mod clients;
mod common;
mod copy;
mod crash;
mod damage;
mod equivalence;
mod events;
mod exactly_once;
mod failed_sync;
mod fetches;
mod group_transactions;
mod groups;
mod limits;
mod listen;
mod once;
mod pipelined;
mod protocol;
mod pruning;
mod queries;
mod rows;
mod script;
mod segments;
mod slt;
mod tidy;
mod upkeep;
mod views;
