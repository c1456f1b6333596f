//! Bytes of rows that statements and transactions hold before they are committed, bounded over all sessions.
//!
//! Owns the bound of the node; leaves out those of one statement and of the log's queue. What is dropped gives its
//! bytes back.

use crate::engine::Result;
use millstream_catalog::model::limit::HELD_BYTES_MAX;
use millstream_catalog::model::{ByteSize, SqlState};
use millstream_sql::SqlError;
use std::sync::Arc;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Bytes are counted in these, to fit a semaphore.
const PERMIT_BYTES: u64 = 1 << 10;

/// What all sessions of a node may hold.
#[derive(Debug, Clone)]
pub(crate) struct HoldingRoom(Arc<Semaphore>);

impl HoldingRoom {
    /// Room for `bytes`.
    pub(crate) fn new(bytes: ByteSize) -> Self {
        Self(Arc::new(Semaphore::new(usize::try_from(bytes.value() / PERMIT_BYTES).unwrap_or(usize::MAX))))
    }

    /// A share of nothing, to be grown.
    pub(crate) fn share(&self) -> Held {
        Held { room: Arc::clone(&self.0), permit: None }
    }
}

impl Default for HoldingRoom {
    fn default() -> Self {
        Self::new(HELD_BYTES_MAX)
    }
}

/// The bytes one statement or transaction holds.
#[derive(Debug)]
pub(crate) struct Held {
    room: Arc<Semaphore>,
    permit: Option<OwnedSemaphorePermit>,
}

impl Held {
    /// Holds `bytes` from now on, more or fewer than before.
    ///
    /// # Errors
    /// 53200 when all sessions together hold too much; the share stays as it was.
    pub(crate) fn set(&mut self, bytes: ByteSize) -> Result<()> {
        let wanted = usize::try_from(bytes.value().div_ceil(PERMIT_BYTES)).unwrap_or(usize::MAX);
        let has = self.permit.as_ref().map_or(0, OwnedSemaphorePermit::num_permits);
        if wanted <= has {
            if let Some(permit) = &mut self.permit {
                drop(permit.split(has - wanted));
            }
            return Ok(());
        }
        let more = u32::try_from(wanted - has).map_err(|_| full())?;
        let more = Arc::clone(&self.room).try_acquire_many_owned(more).map_err(|_| full())?;
        match &mut self.permit {
            Some(permit) => permit.merge(more),
            None => self.permit = Some(more),
        }
        Ok(())
    }
}

fn full() -> SqlError {
    SqlError::new(SqlState::OutOfMemory, "out of memory: too many rows wait to be committed")
        .detail(format!("statements and transactions of all sessions may hold {HELD_BYTES_MAX} bytes of rows"))
        .hint("try again when others have committed, or write in smaller statements")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_grow_shrink_and_go_back() {
        let room = HoldingRoom::new(ByteSize::new(100 << 10));
        let (mut first, mut second) = (room.share(), room.share());
        first.set(ByteSize::new(60 << 10)).unwrap();
        let error = second.set(ByteSize::new(50 << 10)).unwrap_err();
        assert_eq!(error.sqlstate, SqlState::OutOfMemory);
        second.set(ByteSize::new(40 << 10)).unwrap();
        second.set(ByteSize::new((40 << 10) + 1)).unwrap_err();
        first.set(ByteSize::new(59 << 10)).unwrap();
        second.set(ByteSize::new((40 << 10) + 1)).unwrap();
        drop(first);
        second.set(ByteSize::new(100 << 10)).unwrap();
    }
}
