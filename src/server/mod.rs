//! The server: PostgreSQL's protocol for clients, HTTP for operators.
//!
//! Owns sockets and what is said on them. Leaves out everything a statement does (engine). The node starts
//! and stops it. A crash loses the connections; clients see it as a lost server.

pub mod admin;
mod limits;
pub mod pg;
