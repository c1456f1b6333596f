//! The documentation: how it works, the SQL it speaks, its files, and what was decided and why.

#[doc = include_str!("architecture.md")]
pub mod architecture {}

#[doc = include_str!("sql.md")]
pub mod sql {}

#[doc = include_str!("formats.md")]
pub mod formats {}

#[doc = include_str!("operations.md")]
pub mod operations {}

#[doc = include_str!("benchmarks.md")]
pub mod benchmarks {}

#[doc = include_str!("changelog.md")]
pub mod changelog {}
