//! The memory of queries: one pool of the node, and a bound for each query in it.
//!
//! Owns both bounds: what an operator may not take, it is refused. Leaves out how large they are (the engine). Counting
//! only.

use datafusion::common::{DataFusionError, Result};
use datafusion::execution::memory_pool::{GreedyMemoryPool, MemoryLimit, MemoryPool, MemoryReservation};
use millstream_catalog::model::ByteSize;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// What all queries of a node share. Clones are the same pool.
#[derive(Debug, Clone)]
pub struct QueryMemory {
    node: Arc<GreedyMemoryPool>,
    node_bytes: ByteSize,
    query_bytes: ByteSize,
}

/// Of a query outside of any node.
const BYTES: ByteSize = ByteSize::new(1 << 30);

impl Default for QueryMemory {
    fn default() -> Self {
        Self::new(BYTES, BYTES)
    }
}

impl QueryMemory {
    /// A pool of `node_bytes`, of which one query gets at most `query_bytes`.
    pub fn new(node_bytes: ByteSize, query_bytes: ByteSize) -> Self {
        let node = Arc::new(GreedyMemoryPool::new(node_bytes.as_usize()));
        Self { node, node_bytes, query_bytes }
    }

    /// Bytes that queries hold now.
    pub fn used(&self) -> ByteSize {
        ByteSize::of(self.node.reserved())
    }

    /// The part of a query that begins.
    pub(super) fn query(&self) -> Arc<dyn MemoryPool> {
        Arc::new(OneQuery { memory: self.clone(), used: AtomicUsize::new(0) })
    }
}

/// What one query takes of the pool.
#[derive(Debug)]
struct OneQuery {
    memory: QueryMemory,
    used: AtomicUsize,
}

impl fmt::Display for OneQuery {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl MemoryPool for OneQuery {
    fn name(&self) -> &str {
        "query"
    }

    fn grow(&self, reservation: &MemoryReservation, additional: usize) {
        self.used.fetch_add(additional, Ordering::Relaxed);
        self.memory.node.grow(reservation, additional);
    }

    fn shrink(&self, reservation: &MemoryReservation, shrink: usize) {
        self.used.fetch_sub(shrink, Ordering::Relaxed);
        self.memory.node.shrink(reservation, shrink);
    }

    fn try_grow(&self, reservation: &MemoryReservation, additional: usize) -> Result<()> {
        let most = self.memory.query_bytes.as_usize();
        let grown = |used: usize| used.checked_add(additional).filter(|sum| *sum <= most);
        if self.used.fetch_update(Ordering::Relaxed, Ordering::Relaxed, grown).is_err() {
            return Err(DataFusionError::ResourcesExhausted(format!("{ONE}{most} bytes")));
        }
        self.memory.node.try_grow(reservation, additional).map_err(|_| {
            self.used.fetch_sub(additional, Ordering::Relaxed);
            DataFusionError::ResourcesExhausted(format!("{ALL}{} bytes", self.memory.node_bytes))
        })
    }

    fn reserved(&self) -> usize {
        self.used.load(Ordering::Relaxed)
    }

    fn memory_limit(&self) -> MemoryLimit {
        MemoryLimit::Finite(self.memory.query_bytes.as_usize())
    }
}

const ONE: &str = "one query may hold ";
const ALL: &str = "all queries together may hold ";

/// The bound that an error of the pool names, however operators wrapped it.
pub(super) fn bound_of(text: &str) -> Option<&str> {
    let at = text.find(ONE).or_else(|| text.find(ALL))?;
    let rest = text.get(at..)?;
    let end = rest.find(" bytes")? + " bytes".len();
    rest.get(..end)
}

#[cfg(test)]
mod tests {
    use super::*;
    use datafusion::execution::memory_pool::MemoryConsumer;

    #[test]
    fn a_query_has_its_bound_and_all_together_have_theirs() {
        let memory = QueryMemory::new(ByteSize::new(100), ByteSize::new(60));
        let (first, second) = (memory.query(), memory.query());
        let reserve = |pool: &Arc<dyn MemoryPool>| MemoryConsumer::new("sort").register(pool);
        let (one, other, third) = (reserve(&first), reserve(&first), reserve(&second));
        one.try_grow(50).unwrap();
        let refused = other.try_grow(11).unwrap_err().to_string();
        assert_eq!(bound_of(&refused), Some("one query may hold 60 bytes"));
        other.try_grow(10).unwrap();
        let refused = third.try_grow(41).unwrap_err().to_string();
        assert_eq!(bound_of(&refused), Some("all queries together may hold 100 bytes"));
        third.try_grow(40).unwrap();
        assert_eq!((first.reserved(), second.reserved(), memory.used().value()), (60, 40, 100));
        drop((one, other));
        third.try_grow(20).unwrap();
        drop(third);
        assert_eq!((first.reserved(), second.reserved(), memory.used().value()), (0, 0, 0));
    }
}
