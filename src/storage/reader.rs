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
    /// the last row of a dropped topic, [`StorageError::DamagedRows`] for a damaged block. The position stays.
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

#[cfg(test)]
mod tests {
    use super::super::fault_disk::FaultDisk;
    use super::super::shard_store::ShardStore;
    use super::super::testing::{dense, numbers, rows, topic};
    use super::*;
    use bytes::Bytes;
    use futures::FutureExt;
    use millstream_catalog::model::{EntryIndex, PartitionId, ShardId, TopicId};
    use millstream_catalog::relation::Compression;
    use std::ops::Range;
    use std::path::Path;

    const ALL: ByteSize = ByteSize::new(u64::MAX);

    struct Fixture {
        store: ShardStore,
        index: EntryIndex,
    }

    impl Fixture {
        fn new() -> Self {
            let (mut store, _) =
                ShardStore::open(Arc::new(FaultDisk::new()), Path::new("/s"), ShardId::new(1)).unwrap();
            store.create_topic(topic(1, 1, Compression::Lz4));
            Self { store, index: EntryIndex::new(0) }
        }

        fn publish(&mut self, offsets: Range<u64>) {
            self.index = self.index.next();
            self.store.append(self.index, TopicId::new(1), PartitionId::new(0), rows(offsets)).unwrap();
            self.store.publish(self.index);
        }

        fn seal(&mut self) {
            let sealed = self.store.seal(Bytes::new(), Bytes::new()).run().unwrap();
            self.store.install(sealed);
        }

        fn reader(&self, position: u64) -> PartitionReader {
            let partition = self.store.partitions().get(TopicId::new(1), PartitionId::new(0)).unwrap();
            PartitionReader::new(partition, Offset::new(position))
        }
    }

    #[test]
    fn every_row_comes_once_through_seals_and_small_reads() {
        let mut fixture = Fixture::new();
        let mut reader = fixture.reader(3);
        assert!(reader.next_ready(100, ALL).unwrap().is_none());
        let mut read = Vec::new();
        for part in 0..12 {
            fixture.publish(part * 7..part * 7 + 7);
            if part % 4 == 3 {
                fixture.seal();
            }
            for _ in 0..3 {
                read.extend(reader.next_ready(3, ALL).unwrap());
            }
        }
        while let Some(batch) = reader.next_ready(3, ALL).unwrap() {
            assert!(batch.batch.num_rows() <= 3);
            read.push(batch);
        }
        assert_eq!(dense(3, read), (3..84).collect::<Vec<_>>());
        assert_eq!(reader.position(), Offset::new(84));
    }

    #[test]
    fn bytes_bound_a_read_but_one_row_always_comes() {
        let mut fixture = Fixture::new();
        fixture.publish(0..100);
        let mut reader = fixture.reader(0);
        let all = batch_bytes(&rows(0..100)).value();
        let half = reader.next_ready(100, ByteSize::new(all / 2 + 1)).unwrap().unwrap();
        assert!((20..=50).contains(&half.batch.num_rows()), "{}", half.batch.num_rows());
        assert_eq!(reader.next_ready(100, ByteSize::ZERO).unwrap().unwrap().batch.num_rows(), 1);
    }

    #[test]
    fn a_projected_reader_reads_its_columns() {
        let mut fixture = Fixture::new();
        fixture.publish(0..10);
        fixture.seal();
        fixture.publish(10..20);
        let mut reader = fixture.reader(5).with_projection(vec![3, 0]);
        assert_eq!(reader.next_ready(100, ALL).unwrap().unwrap().batch, rows(5..10).project(&[3, 0]).unwrap());
        assert_eq!(reader.next_ready(100, ALL).unwrap().unwrap().batch, rows(10..20).project(&[3, 0]).unwrap());
    }

    #[tokio::test]
    async fn waiting_ends_when_rows_are_published_or_the_topic_is_dropped() {
        let mut fixture = Fixture::new();
        let mut reader = fixture.reader(0);
        assert!(reader.wait().now_or_never().is_none());
        fixture.publish(0..2);
        reader.wait().await;
        reader.wait().await;
        assert_eq!(numbers(&reader.next_ready(10, ALL).unwrap().unwrap().batch), [0, 1]);
        assert!(reader.wait().now_or_never().is_none());
        fixture.seal();
        assert!(reader.wait().now_or_never().is_none());
        fixture.publish(2..3);
        fixture.store.drop_topic(TopicId::new(1));
        reader.wait().await;
        assert_eq!(numbers(&reader.next_ready(10, ALL).unwrap().unwrap().batch), [2]);
        reader.wait().await;
        assert!(matches!(reader.next_ready(10, ALL), Err(StorageError::Dropped { .. })));
    }
}
