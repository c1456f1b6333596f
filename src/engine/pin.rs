//! How far back running statements read: what tables keep of the past, they keep for these.
//!
//! A statement holds a pin from before it fixes its cut, so no fold of a table passes that cut without the pin in sight,
//! and no compaction. Leaves out the cut itself (`pull`) and what is kept (`undo`, `upkeep`). In memory; a crash ends the
//! statements.

use crate::replication::Shard;
use millstream_catalog::model::{EntryIndex, ShardId};
use parking_lot::Mutex;
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

/// The pins of a node: for each shard the entries statements began at, and how many did.
#[derive(Debug, Default)]
pub(crate) struct Pins {
    began_at: Mutex<HashMap<ShardId, BTreeMap<EntryIndex, usize>>>,
}

/// A statement reads nothing older than this, until it is dropped.
#[derive(Debug)]
pub(crate) struct Pin {
    pins: Arc<Pins>,
    began_at: Vec<(ShardId, EntryIndex)>,
}

impl Pins {
    /// Holds what is committed now, and later: the cut is to be taken after this.
    pub(crate) fn hold(self: &Arc<Self>, shards: &[Arc<Shard>]) -> Pin {
        let shards: Vec<_> = shards.iter().map(|shard| (shard.id(), shard.partitions())).collect();
        // Read under the lock: whoever reads the pins with a later cut in hand finds this one, or will be found later.
        let mut began_at = self.began_at.lock();
        let of = |(shard, partitions): &(ShardId, Arc<crate::storage::Partitions>)| (*shard, partitions.applied());
        let pin = Pin { pins: Arc::clone(self), began_at: shards.iter().map(of).collect() };
        for (shard, entry) in &pin.began_at {
            *began_at.entry(*shard).or_default().entry(*entry).or_default() += 1;
        }
        pin
    }

    /// The entries that statements which run now began at, ascending.
    pub(crate) fn of(&self, shard: ShardId) -> Vec<EntryIndex> {
        self.began_at.lock().get(&shard).into_iter().flat_map(|entries| entries.keys().copied()).collect()
    }
}

impl Drop for Pin {
    fn drop(&mut self) {
        let mut began_at = self.pins.began_at.lock();
        for (shard, entry) in &self.began_at {
            let Some(entries) = began_at.get_mut(shard) else { continue };
            if let Some(count) = entries.get_mut(entry) {
                *count -= 1;
                if *count == 0 {
                    entries.remove(entry);
                }
            }
        }
    }
}
