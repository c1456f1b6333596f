//! Versioned encoding of commands and states. Old versions are frozen: they open for ever.
//!
//! Version 2 says more than 1: relations that were altered, and what queries that read them know of them. Version 3
//! has views.
//! A text of one byte of version, then JSON: the catalog is small, changes rarely, and is worth reading
//! with the eye when something is wrong. Leaves out checksums, which the log and manifest add.

use crate::command::Command;
use crate::state::State;
use serde::{Serialize, de::DeserializeOwned};

/// The version written now.
const VERSION: u8 = 3;

/// Why bytes are not a command or state of this program.
#[derive(Debug, thiserror::Error)]
pub enum PersistError {
    /// There are no bytes.
    #[error("catalog bytes are empty")]
    Empty,
    /// A newer program wrote it.
    #[error("catalog bytes have version {0}, newer than this program")]
    Version(u8),
    /// The JSON does not fit.
    #[error("catalog bytes are damaged")]
    Damaged(#[from] serde_json::Error),
}

fn encode<T: Serialize>(value: &T) -> Vec<u8> {
    let mut bytes = vec![VERSION];
    serde_json::to_writer(&mut bytes, value).expect("definitions have string keys only, and memory takes every byte");
    bytes
}

fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, PersistError> {
    match bytes.split_first() {
        None => Err(PersistError::Empty),
        Some((&(1..=VERSION), json)) => Ok(serde_json::from_slice(json)?),
        Some((&version, _)) => Err(PersistError::Version(version)),
    }
}

/// Bytes of a command.
pub fn encode_command(command: &Command) -> Vec<u8> {
    encode(command)
}
/// The command in `bytes`.
///
/// # Errors
/// [`PersistError`] when the bytes are damaged or newer than this program.
pub fn decode_command(bytes: &[u8]) -> Result<Command, PersistError> {
    decode(bytes)
}
/// Bytes of a state.
pub fn encode_state(state: &State) -> Vec<u8> {
    encode(state)
}
/// The state in `bytes`.
///
/// # Errors
/// [`PersistError`] when the bytes are damaged or newer than this program.
pub fn decode_state(bytes: &[u8]) -> Result<State, PersistError> {
    decode(bytes)
}
