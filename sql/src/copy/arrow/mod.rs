//! Arrow IPC streams, in and out.
//!
//! What comes in is not trusted: messages are cut out within bounds (`frames`), their metadata is checked before Arrow
//! sees it (`vet`), Arrow validates the values, and then they become the relation's columns (`assign`).

mod assign;
mod frames;
mod reader;
mod vet;
mod writer;

#[cfg(test)]
mod tests;

pub(super) use reader::ArrowReader;
pub(super) use writer::ArrowWriter;
