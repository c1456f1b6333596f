//! Binding: statements of the dialect against the catalog, before any plan.
//!
//! Leaves out SELECT, which `plan` resolves. The engine calls it. Pure: a crash does nothing to it.

pub mod alter;
pub mod change;
pub mod ddl;
pub mod insert;
mod options;
#[cfg(test)]
mod tests;
