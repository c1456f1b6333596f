//! The frame: one record of the write-ahead log as bytes.
