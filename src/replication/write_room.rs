//! Memory for rows on their way to the log, of all shards of a node: who writes waits until there is some.
//!
//! Owns the bound. A session that waits reads nothing from its socket, so a slow disk holds its clients back and not
//! memory. Leaves out the number of statements that wait (`appender`).

use millstream_catalog::model::ByteSize;
use std::sync::Arc;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Bytes are counted in these, to fit a semaphore.
const PERMIT_BYTES: usize = 1 << 10;
/// Rows are in memory as they came, and in the entry they are encoded in.
const COPIES: usize = 2;

/// What all writes of a node that are not answered may take. Clones share it.
#[derive(Debug, Clone)]
pub(crate) struct WriteRoom {
    permits: Arc<Semaphore>,
    most: u32,
}

impl WriteRoom {
    /// Room for `bytes`.
    pub(crate) fn new(bytes: ByteSize) -> Self {
        let most = (bytes.as_usize() / PERMIT_BYTES).clamp(1, Semaphore::MAX_PERMITS.min(u32::MAX as usize));
        Self { permits: Arc::new(Semaphore::new(most)), most: most as u32 }
    }

    /// Waits until there is room for the rows of a request of `bytes`; one that is larger than all of it waits until it is
    /// alone. In the order of the calls. `None` once it is closed.
    pub(crate) async fn acquire(&self, bytes: usize) -> Option<OwnedSemaphorePermit> {
        let permits = (bytes / PERMIT_BYTES * COPIES + 1).min(self.most as usize) as u32;
        Arc::clone(&self.permits).acquire_many_owned(permits).await.ok()
    }

    /// Bytes taken.
    pub(crate) fn used(&self) -> ByteSize {
        ByteSize::of((self.most as usize).saturating_sub(self.permits.available_permits()) * PERMIT_BYTES)
    }

    /// Nobody waits any more.
    pub(crate) fn close(&self) {
        self.permits.close();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::FutureExt as _;

    #[tokio::test]
    async fn who_finds_no_room_waits_and_nobody_passes() {
        let room = WriteRoom::new(ByteSize::new(100 << 10));
        let first = room.acquire(40 << 10).await.unwrap();
        assert_eq!(room.used().value(), 81 << 10);
        let mut second = Box::pin(room.acquire(10 << 10));
        let mut third = Box::pin(room.acquire(1 << 10));
        assert!(second.as_mut().now_or_never().is_none() && third.as_mut().now_or_never().is_none());
        drop(first);
        let second = second.now_or_never().flatten().unwrap();
        let third = third.now_or_never().flatten().unwrap();
        assert_eq!(room.used().value(), (21 + 3) << 10);
        // Larger than all of it: alone.
        let mut large = Box::pin(room.acquire(1 << 30));
        assert!(large.as_mut().now_or_never().is_none());
        drop((second, third));
        let _large = large.now_or_never().flatten().unwrap();
        assert_eq!(room.used().value(), 100 << 10);
        let waiting = room.acquire(1);
        room.close();
        assert!(waiting.await.is_none());
    }
}
