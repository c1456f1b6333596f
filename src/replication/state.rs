//! The state of continuous queries: their checkpoints, and the files of this node that those name.
//!
//! A checkpoint is an entry of the log; much state is in files beside the segments, which are durable before the entry is
//! written. Leaves out what the state is (`sql`) and when it is saved (engine). After a crash the files that the last
//! committed checkpoint names are there.

use super::error::ReplicationError;
use super::flow::Request;
use super::shard::{CHANGE_BYTES, Shard};
use super::types::Checkpoint;
use crate::replication::entry::Change;
use crate::storage::{StateFiles, StorageError};
use millstream_catalog::model::limit::STATEMENT_ROWS_BYTES_MAX;
use millstream_catalog::model::{ByteSize, QueryId};

impl Shard {
    /// Keeps the state of a query's operators, and drops the steps it covers. Its files were saved
    /// ([`StateFiles::save`]); once this is done, they are to be named ([`StateFiles::name`]).
    ///
    /// # Errors
    /// [`ReplicationError::StaleCheckpoint`] when it is not newer than the last.
    pub async fn checkpoint(&self, checkpoint: Checkpoint) -> Result<(), ReplicationError> {
        let bytes = ByteSize::of(checkpoint.state.len() + 8 * checkpoint.files.len());
        if bytes > STATEMENT_ROWS_BYTES_MAX {
            return Err(ReplicationError::TooLarge { bytes, limit: STATEMENT_ROWS_BYTES_MAX });
        }
        self.core.submit(Request::Checkpoint(checkpoint), bytes.as_usize() + CHANGE_BYTES).await.map(|_| ())
    }

    /// Forgets a query. One that does not exist is no error.
    ///
    /// # Errors
    /// [`ReplicationError`].
    pub async fn drop_query(&self, query: QueryId) -> Result<(), ReplicationError> {
        self.core.change(Change::DropQuery(query)).await?;
        self.remove_files(query);
        Ok(())
    }

    /// Forgets the checkpoint of a query that will not run again, so that it holds back no events.
    ///
    /// # Errors
    /// [`ReplicationError`].
    pub async fn end_query(&self, query: QueryId) -> Result<(), ReplicationError> {
        self.core.change(Change::EndQuery(query)).await?;
        self.remove_files(query);
        Ok(())
    }

    /// What cannot be removed now, the next start removes.
    fn remove_files(&self, query: QueryId) {
        let named = self.named_files(query);
        if let Err(error) = StateFiles::tidy(&*self.core.disk(), self.core.dir(), query.value(), &named) {
            tracing::debug!(%query, %error, "files of state are removed later");
        }
    }

    /// The files of a query's state, for the only one who uses them.
    ///
    /// # Errors
    /// When the directory cannot be read.
    pub fn state_files(&self, query: QueryId) -> Result<StateFiles, StorageError> {
        StateFiles::open(self.core.disk(), self.core.dir(), query.value(), &self.named_files(query))
    }

    /// The files that the last checkpoint of a query names.
    fn named_files(&self, query: QueryId) -> Vec<u64> {
        let checkpoint = self.progress(query).and_then(|progress| progress.checkpoint.clone());
        checkpoint.map_or_else(Vec::new, |checkpoint| checkpoint.files)
    }

    /// Removes the files that no checkpoint names, after a start, while no query runs.
    ///
    /// # Errors
    /// When the directory cannot be read.
    pub fn remove_state(&self) -> Result<(), StorageError> {
        let queries = StateFiles::queries(&*self.core.disk(), self.core.dir())?;
        queries.into_iter().map(QueryId::new).for_each(|query| self.remove_files(query));
        Ok(())
    }
}
