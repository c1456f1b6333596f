//! A query's files, as its pipeline writes and reads them.
//!
//! Owns the words for what can go wrong. Leaves out the files themselves (`storage`), and when they are written.

use crate::engine::Result;
use crate::replication::Shard;
use crate::storage::{StateFiles, StorageError};
use millstream_catalog::Query;
use millstream_catalog::model::Name;
use millstream_sql::SqlError;
use millstream_sql::stream::StateStore;

/// The files of one query's state.
#[derive(Debug)]
pub(super) struct QueryFiles {
    name: Name,
    files: StateFiles,
}

impl QueryFiles {
    /// Those of `query`, for its only task.
    ///
    /// # Errors
    /// 58030 when the directory cannot be read.
    pub(super) fn open(shard: &Shard, query: &Query) -> Result<Self> {
        let name = query.name.clone();
        match shard.state_files(query.id) {
            Ok(files) => Ok(Self { name, files }),
            Err(error) => Err(failed(&name, error)),
        }
    }

    /// As [`StateFiles::save`].
    pub(super) fn save(&self, files: &[u64]) -> Result<()> {
        self.files.save(files).map_err(|error| failed(&self.name, error))
    }

    /// As [`StateFiles::name`].
    pub(super) fn name(&self, files: &[u64]) {
        self.files.name(files);
    }
}

impl StateStore for QueryFiles {
    fn write(&self, bytes: &[u8]) -> Result<u64> {
        self.files.write(bytes).map_err(|error| failed(&self.name, error))
    }

    fn read(&self, file: u64) -> Result<Vec<u8>> {
        self.files.read(file).map_err(|error| failed(&self.name, error))
    }

    fn hold(&self, file: u64) {
        self.files.hold(file);
    }

    fn release(&self, file: u64) {
        self.files.release(file);
    }
}

fn failed(name: &Name, error: StorageError) -> SqlError {
    let sqlstate = error.sqlstate();
    let message = format!("the state of query \"{name}\": {error}");
    match error {
        StorageError::Corrupt { .. } | StorageError::Missing { .. } => {
            SqlError::new(sqlstate, message).hint("drop and create the query to compute it anew")
        }
        _ => SqlError::new(sqlstate, message),
    }
}
