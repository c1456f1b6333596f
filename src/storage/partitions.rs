//! The partitions of a shard, for concurrent readers.
//!
//! Owns the directory from topic to partitions, and how far the shard is applied. Leaves out writing. Called
//! by the engine, by continuous queries and by system views. A crash loses it; opening the shard rebuilds it.
//!
//! Readers take no lock: the directory is 64 maps by topic, each replaced as a whole when a topic comes or
//! goes (one map would make creating 100,000 topics quadratic in earnest).

use super::partition::Partition;
use super::segment::Segment;
use arc_swap::ArcSwap;
use millstream_catalog::model::{ByteSize, EntryIndex, PartitionId, ShardId, TopicId};
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use tokio::sync::watch;

const BUCKETS: usize = 64;

type Bucket = HashMap<TopicId, Arc<[Arc<Partition>]>>;

/// The read side of a shard's store.
#[derive(Debug)]
pub struct Partitions {
    shard: ShardId,
    buckets: Vec<ArcSwap<Bucket>>,
    applied: AtomicU64,
    applied_watch: watch::Sender<EntryIndex>,
    /// Segments that went because the log start moved past them, and their bytes.
    removed: (AtomicU64, AtomicU64),
    /// Segments that others replaced.
    replaced: AtomicU64,
}

/// A sealed segment and where it belongs.
#[derive(Debug, Clone)]
pub struct SegmentListing {
    /// The topic.
    pub topic: TopicId,
    /// The partition.
    pub partition: PartitionId,
    /// The segment.
    pub segment: Arc<Segment>,
}

impl Partitions {
    pub(crate) fn new(shard: ShardId, applied: EntryIndex) -> Self {
        let (applied_watch, _) = watch::channel(applied);
        let buckets = (0..BUCKETS).map(|_| ArcSwap::default()).collect();
        let applied = AtomicU64::new(applied.value());
        Self { shard, buckets, applied, applied_watch, removed: Default::default(), replaced: AtomicU64::new(0) }
    }

    /// The shard.
    pub fn shard(&self) -> ShardId {
        self.shard
    }

    /// A partition; `None` when the topic does not exist here or has fewer partitions.
    pub fn get(&self, topic: TopicId, partition: PartitionId) -> Option<Arc<Partition>> {
        let found = self.bucket(topic).load();
        let index = usize::try_from(partition.value()).ok()?;
        found.get(&topic)?.get(index).cloned()
    }

    /// All partitions of a topic, by number; `None` when it does not exist here.
    pub fn topic(&self, topic: TopicId) -> Option<Arc<[Arc<Partition>]>> {
        self.bucket(topic).load().get(&topic).cloned()
    }

    /// The topics, ascending.
    pub fn topics(&self) -> Vec<TopicId> {
        let mut topics: Vec<TopicId> =
            self.buckets.iter().flat_map(|bucket| bucket.load().keys().copied().collect::<Vec<_>>()).collect();
        topics.sort_unstable();
        topics
    }

    /// Every sealed segment, by topic, partition and offset.
    pub fn segments(&self) -> Vec<SegmentListing> {
        let mut listing = Vec::new();
        for topic in self.topics() {
            for partition in self.topic(topic).iter().flat_map(|partitions| partitions.iter()) {
                let id = partition.id();
                let view = partition.view();
                let segments = view.segments().iter().cloned();
                listing.extend(segments.map(|segment| SegmentListing { topic, partition: id, segment }));
            }
        }
        listing
    }

    /// The last published entry: every view taken from now on has all its rows.
    pub fn applied(&self) -> EntryIndex {
        EntryIndex::new(self.applied.load(Ordering::Acquire))
    }

    /// Follows [`Partitions::applied`].
    pub fn subscribe_applied(&self) -> watch::Receiver<EntryIndex> {
        self.applied_watch.subscribe()
    }

    /// Segments that retention or TRUNCATE removed since the start, and their bytes.
    pub fn removed(&self) -> (u64, ByteSize) {
        let (segments, bytes) = &self.removed;
        (segments.load(Ordering::Relaxed), ByteSize::new(bytes.load(Ordering::Relaxed)))
    }

    /// Segments that merging and compaction replaced since the start.
    pub fn replaced(&self) -> u64 {
        self.replaced.load(Ordering::Relaxed)
    }

    pub(crate) fn count_removed(&self, gone: &[Arc<Segment>]) {
        let bytes: u64 = gone.iter().map(|segment| segment.bytes().value()).sum();
        self.removed.0.fetch_add(gone.len() as u64, Ordering::Relaxed);
        self.removed.1.fetch_add(bytes, Ordering::Relaxed);
    }

    pub(crate) fn count_replaced(&self, gone: &[Arc<Segment>]) {
        self.replaced.fetch_add(gone.len() as u64, Ordering::Relaxed);
    }

    /// Moves on after the views of `index` are published; never back.
    pub(crate) fn set_applied(&self, index: EntryIndex) {
        if self.applied.fetch_max(index.value(), Ordering::AcqRel) < index.value() {
            self.applied_watch.send_replace(index);
        }
    }

    pub(crate) fn insert(&self, topic: TopicId, partitions: Arc<[Arc<Partition>]>) {
        let bucket = self.bucket(topic);
        let mut next = Bucket::clone(&bucket.load());
        next.insert(topic, partitions);
        bucket.store(Arc::new(next));
    }

    pub(crate) fn remove(&self, topic: TopicId) {
        let bucket = self.bucket(topic);
        let mut next = Bucket::clone(&bucket.load());
        next.remove(&topic);
        bucket.store(Arc::new(next));
    }

    fn bucket(&self, topic: TopicId) -> &ArcSwap<Bucket> {
        &self.buckets[(topic.value() % BUCKETS as u64) as usize]
    }
}
