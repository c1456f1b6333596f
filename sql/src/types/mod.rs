//! Values: PostgreSQL's text and binary forms of every SQL type, to and from Arrow columns.
//!
//! Owns names and OIDs of types, input (`ColumnBuilder`), output (`ColumnEncoder`) and assignment between types. Leaves out
//! expressions and explicit casts, which are DataFusion's. INSERT, COPY, parameters and the wire call it.
//! Pure: a crash does nothing to it.

mod array;
mod assign;
mod binary;
mod builder;
mod canonical;
mod datetime;
mod datetime_input;
pub(crate) mod document;
mod encoder;
mod error;
mod interval;
pub(crate) mod json;
pub(crate) mod json_match;
pub(crate) mod json_node;
pub(crate) mod json_path;
pub(crate) mod json_value;
mod name;
mod number;
mod numeric;
mod oid;
mod scalar;
mod source;
mod text;
mod width;
pub(crate) mod zone;

#[cfg(test)]
mod tests;

pub use assign::{AssignRefused, assign_array, is_assignable};
pub use builder::ColumnBuilder;
pub use canonical::{canonical, canonical_of};
pub use encoder::ColumnEncoder;
pub use error::ValueError;
pub use name::sql_type;
pub use oid::{from_oid, oid, typlen, typmod};
pub(crate) use scalar::scalar_first;
pub use scalar::{scalar_binary, scalar_null, scalar_text};

pub(crate) use assign::integer_literal;
pub(crate) use canonical::{lengths_of, sort_key_of, sort_key_type, with_one_nan};
pub(crate) use datetime::{DATE_END, DATE_FIRST, DAY, parse_timestamptz};
pub(crate) use error::quoted;
pub(crate) use name::{check_type, type_named};
pub(crate) use width::{filled_bytes, least_bytes};
