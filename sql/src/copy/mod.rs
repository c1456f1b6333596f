//! Copy data: rows from and to PostgreSQL's text, csv and binary formats, JSON lines and Arrow.
//!
//! Owns the scanners and writers of the formats. Leaves out the protocol and where rows go. The engine
//! decodes, the server encodes. Pure: a crash does nothing to it.

mod arrow;
mod binary;
mod csv;
mod decoder;
mod encoder;
mod json;
mod lines;
mod records;
mod sink;
mod text;
mod writer;

#[cfg(test)]
mod tests;

pub use decoder::CopyDecoder;
pub use encoder::CopyEncoder;
