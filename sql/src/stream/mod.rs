//! Continuous queries: operators over endless input, and the pipeline that chains them.
//!
//! Owns event time, windows, grouped state, the changes a query emits, and the saved form of its state. Leaves out
//! planning of SQL (`plan`), reading and writing of topics, step numbers and checkpoints (engine, replication). Pure and
//! synchronous: no clock, no I/O, no threads. The engine drives a [`Pipeline`] step by step; after a crash it restores
//! the last saved state and repeats the steps since, which gives the same output.

mod aggregate;
mod boxed;
mod call;
mod columns;
mod delta;
mod distinct;
mod expression;
mod keyed;
mod map;
mod moments;
mod operator;
mod pipeline;
mod replayed;
mod save;
mod sink;
mod slots;
mod states;
mod time;

#[cfg(test)]
mod tests;

pub(crate) use aggregate::{Aggregate, WindowBounds};
pub(crate) use call::Call;
pub(crate) use delta::sql_error;
pub(crate) use expression::StepNow;
pub(crate) use keyed::KeyedMap;
pub(crate) use map::{Map, Stage};
pub(crate) use operator::Operator;
pub use pipeline::{InputBatch, Output, Pipeline, StepInput, StepOutput};
pub(crate) use pipeline::{Parts, SourceColumn, SourceReader};
pub(crate) use sink::{Sink, SinkColumn};
pub(crate) use time::EventTime;
