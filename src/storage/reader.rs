//! Following a partition: what is published from a position on, then waiting for more.
//!
//! Owns the position of one reader. Leaves out committed positions and fan-in over partitions. Called by
//! subscriptions and continuous queries. A crash loses the position; whoever needs it stores it.

use super::batch::{StoredBatch, batch_bytes};
use super::error::StorageError;
use super::partition::Partition;
use millstream_catalog::model::{ByteSize, Offset};
use std::sync::Arc;
use tokio::sync::watch;

/// Reads a partition in offset order, from a position on.
#[derive(Debug)]
pub struct PartitionReader {
    partition: Arc<Partition>,
    position: Offset,
    projection: Option<Vec<usize>>,
    /// What was read of a batch and not handed out, so that a block is not decoded again for each part.
    rest: Option<StoredBatch>,
    end: watch::Receiver<Offset>,
}

impl PartitionReader {
    /// Reads from `position` on, all columns.
    pub fn new(partition: Arc<Partition>, position: Offset) -> Self {
        let end = partition.subscribe();
        Self { partition, position, projection: None, rest: None, end }
    }

    /// Reads only these columns of the stored schema, in this order.
    pub fn with_projection(mut self, projection: Vec<usize>) -> Self {
        self.projection = Some(projection);
        self.rest = None;
        self
    }

    /// The next offset to read.
    pub fn position(&self) -> Offset {
        self.position
    }

    /// The partition that is read.
    pub fn partition(&self) -> &Arc<Partition> {
        &self.partition
    }

    /// The next rows if there are any now: at most `rows_max`, and of about `bytes_max` bytes, but at least
    /// one row. `None` when the reader is at the end. May read a block from disk; never waits for events.
    ///
    /// # Errors
    /// [`StorageError::BelowStart`] when the position is no longer stored, [`StorageError::Dropped`] after
    /// the last row of a dropped topic, [`StorageError::Corrupt`] for a damaged block. The position stays.
    pub fn next_ready(&mut self, rows_max: usize, bytes_max: ByteSize) -> Result<Option<StoredBatch>, StorageError> {
        let batch = match self.rest.take() {
            Some(rest) => rest,
            None => match self.read()? {
                Some(batch) => batch,
                None => return Ok(None),
            },
        };
        let rows = batch.batch.num_rows();
        let mut take = rows.min(rows_max.max(1));
        while take > 1 && batch_bytes(&batch.batch.slice(0, take)) > bytes_max {
            take = take.div_ceil(2);
        }
        if take < rows {
            self.rest = Some(batch.slice(take, rows - take));
        }
        let batch = batch.slice(0, take);
        self.position = batch.offset_end();
        Ok(Some(batch))
    }

    /// Waits until there is something to read, or the topic is dropped.
    ///
    /// # Cancellation
    /// Safe: nothing is taken.
    pub async fn wait(&mut self) {
        loop {
            let end = *self.end.borrow_and_update();
            if end > self.position || self.partition.is_dropped() {
                return;
            }
            if self.end.changed().await.is_err() {
                return;
            }
        }
    }

    fn read(&self) -> Result<Option<StoredBatch>, StorageError> {
        let view = self.partition.view();
        if self.position < view.offset_start() {
            return Err(StorageError::BelowStart { position: self.position, offset_start: view.offset_start() });
        }
        if self.position >= view.offset_end() {
            return match self.partition.is_dropped() {
                true => Err(StorageError::Dropped { topic: self.partition.topic() }),
                false => Ok(None),
            };
        }
        view.batch_at(self.position, self.projection.as_deref())
    }
}
