//! Continuous queries: operators over endless input, and the pipeline that chains them.
//!
//! Owns event time, windows, grouped state, the changes a query emits, and the saved form of its state. Leaves out
//! planning of SQL (`plan`), reading and writing of topics, step numbers and checkpoints (engine, replication). Pure and
//! synchronous: no clock, no I/O, no threads. The engine drives a [`Pipeline`] step by step; after a crash it restores
//! the last saved state and repeats the steps since, which gives the same output.

mod aggregate;
mod bounds;
mod boxed;
mod call;
mod columns;
mod condition;
mod deduplicate;
mod delta;
mod distinct;
mod expand;
mod expression;
mod few;
mod finalise;
mod heap;
mod hop;
mod join;
mod keyed;
mod lookup;
mod map;
mod moments;
mod multiset;
mod normalize;
mod not_in;
mod operator;
mod ordered;
mod over;
mod paged;
mod part;
mod parted;
mod partial;
mod pipeline;
mod ranked;
mod replace;
mod replayed;
mod retracted;
mod rows;
mod save;
mod session;
mod sink;
mod slots;
mod source;
mod states;
mod store;
mod time;
mod top_n;
mod union;
mod unnest;

#[cfg(test)]
mod tests;

pub(crate) use aggregate::{Aggregate, Changes, Grouping};
pub(crate) use bounds::WindowBounds;
pub(crate) use call::{Call, PartialCall, Rows};
pub(crate) use deduplicate::{Deduplicate, Deduplication};
pub(crate) use delta::sql_error;
pub(crate) use expand::{Expand, GroupingSet};
pub(crate) use expression::StepNow;
pub(crate) use finalise::Finalise;
pub(crate) use hop::Hop;
pub(crate) use join::{Join, JoinColumn, JoinInput, JoinKind, JoinSpec, Side, Within};
pub(crate) use keyed::KeyedMap;
pub(crate) use lookup::{Lookup, LookupSpec};
pub(crate) use map::{Map, Stage};
pub(crate) use normalize::Normalize;
pub(crate) use not_in::NotIn;
pub(crate) use operator::Operator;
pub(crate) use over::Over;
pub use part::StateStore;
pub(crate) use partial::{Partial, state_fields};
pub use pipeline::{
    Again, InputBatch, OperatorShown, Output, Pipeline, RowOrigins, SavedState, SkippedEvent, StepInput, StepOutput,
};
pub(crate) use pipeline::{Edge, Node, Parts, Steps};
pub(crate) use ranked::Ranking;
pub(crate) use session::{SessionBounds, SessionColumn, Sessions};
pub(crate) use sink::{Sink, SinkColumn};
pub(crate) use source::{SourceColumn, SourceReader};
pub(crate) use time::{EventTime, SourceTime};
pub(crate) use top_n::{Number, TopN, TopSpec};
pub(crate) use union::{Union, UnionColumn};
pub(crate) use unnest::{Unnest, UnnestColumn};
