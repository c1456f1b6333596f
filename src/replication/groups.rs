//! Committed offsets of consumer groups: where each group goes on in each partition, and who may move that on.
//!
//! Owns the rules as pure functions over [`Groups`]; equal entries give equal offsets on every replica, the clock being
//! in the entry. Whoever begins to read a partition for a group *takes* it, which gives the partition's next epoch; a
//! commit carries the epoch it was read in and is refused once somebody else has taken the partition. So the events
//! between two commits are committed once, whatever members believe of one another, as Kafka fences a producer's
//! transactions by its epoch. Leaves out who is to read what (engine). Persisted with the shard's manifest.

use super::codec::{DecodeError, Decoder, Encoder};
use super::entry::Change;
use super::error::{Refused, ReplicationError};
use super::flow::Request;
use super::raft::Reply;
use super::shard::{CHANGE_BYTES, Shard};
use super::types::{GroupCommit, GroupOffset, GroupPosition, GroupTake, Taking};
use millstream_catalog::model::limit::GROUP_OFFSETS_MAX;
use millstream_catalog::model::{GroupEpoch, GroupName, Offset, PartitionId, Timestamp, TopicId};
use std::collections::BTreeMap;

/// What is committed of one group.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Committed {
    /// By partition.
    pub offsets: BTreeMap<(TopicId, PartitionId), GroupOffset>,
    /// When it was last used.
    pub used_at: Timestamp,
}

/// The groups of a shard.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Groups {
    by_name: BTreeMap<GroupName, Committed>,
    /// The last one given.
    epoch: GroupEpoch,
    count: usize,
}

impl Groups {
    /// All of them, by name.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (&GroupName, &Committed)> {
        self.by_name.iter()
    }

    /// One of them.
    pub(crate) fn get(&self, group: &GroupName) -> Option<&Committed> {
        self.by_name.get(group)
    }

    /// Gives partitions to a new reader: what is committed of each, or begins there.
    ///
    /// # Errors
    /// [`Refused::NoOffset`] for a partition to be read of which nothing is committed;
    /// [`Refused::GroupsFull`].
    pub(crate) fn take(&mut self, take: &GroupTake) -> Result<Vec<GroupOffset>, Refused> {
        let known = self.by_name.get(&take.group);
        let mut new = 0;
        for part in &take.partitions {
            let is_known = known.is_some_and(|known| known.offsets.contains_key(&(part.topic, part.partition)));
            if !is_known && part.taking == Taking::Read {
                return Err(Refused::NoOffset {
                    group: take.group.clone(),
                    topic: part.topic,
                    partition: part.partition,
                });
            }
            new += usize::from(!is_known);
        }
        if new > 0 && self.count + new > GROUP_OFFSETS_MAX {
            return Err(Refused::GroupsFull);
        }
        if known.is_none() && take.partitions.is_empty() {
            // Said to be used, and forgotten before.
            return Ok(Vec::new());
        }
        self.epoch = self.epoch.next();
        let epoch = self.epoch;
        let group = self.by_name.entry(take.group.clone()).or_default();
        group.used_at = group.used_at.max(take.now);
        let mut taken = Vec::with_capacity(take.partitions.len());
        for part in &take.partitions {
            let place = (part.topic, part.partition);
            let known = group.offsets.get(&place).copied();
            self.count += usize::from(known.is_none());
            let stored = match (part.taking, known) {
                (Taking::Begin(_), Some(known)) => known,
                (Taking::Begin(offset) | Taking::Set(offset), _) => GroupOffset { position: offset.into(), epoch },
                (Taking::Read, known) => {
                    GroupOffset { position: known.map_or_else(Default::default, |known| known.position), epoch }
                }
            };
            group.offsets.insert(place, stored);
            taken.push(stored);
        }
        Ok(taken)
    }

    /// Whether `commits` may be recorded: `end` is where a partition ends.
    ///
    /// # Errors
    /// [`Refused::NoPartition`]; [`Refused::Fenced`] when somebody else took a partition since, or the group is gone;
    /// [`Refused::AboveEnd`].
    pub(crate) fn check(
        &self,
        commits: &[GroupCommit],
        end: impl Fn(TopicId, PartitionId) -> Option<Offset>,
    ) -> Result<(), Refused> {
        let mut new = 0;
        for commit in commits {
            let (topic, partition) = (commit.topic, commit.partition);
            let end = end(topic, partition).ok_or(Refused::NoPartition(topic, partition))?;
            let stored = self.by_name.get(&commit.group).and_then(|group| group.offsets.get(&(topic, partition)));
            let is_own = match commit.epoch {
                Some(epoch) => stored.is_some_and(|stored| stored.epoch == epoch),
                None => {
                    new += usize::from(stored.is_none());
                    if stored.is_none() && self.count + new > GROUP_OFFSETS_MAX {
                        return Err(Refused::GroupsFull);
                    }
                    true
                }
            };
            if !is_own {
                return Err(Refused::Fenced { group: commit.group.clone(), topic, partition });
            }
            if commit.position.offset > end {
                let offset = commit.position.offset;
                return Err(Refused::AboveEnd { topic, partition, offset, end });
            }
        }
        Ok(())
    }

    /// Records commits that [`Groups::check`] accepted.
    pub(crate) fn record<'a>(&mut self, commits: impl IntoIterator<Item = &'a GroupCommit>, now: Timestamp) {
        for commit in commits {
            let place = (commit.topic, commit.partition);
            let group = self.by_name.entry(commit.group.clone()).or_default();
            group.used_at = group.used_at.max(now);
            self.count += usize::from(!group.offsets.contains_key(&place));
            // By hand: nobody has begun to read it.
            let begin = GroupOffset { position: commit.position, epoch: GroupEpoch::default() };
            group.offsets.entry(place).or_insert(begin).position = commit.position;
        }
    }

    /// Forgets groups; only those that were not used since `unless_since`, if that is given.
    pub(crate) fn drop_groups(&mut self, groups: &[GroupName], unless_since: Option<Timestamp>) {
        for name in groups {
            let is_used = |group: &Committed| unless_since.is_some_and(|since| group.used_at >= since);
            if self.by_name.get(name).is_some_and(|group| !is_used(group)) {
                self.count -= self.by_name.remove(name).map_or(0, |group| group.offsets.len());
            }
        }
    }

    /// Forgets what groups have committed of a topic.
    pub(crate) fn drop_topic(&mut self, topic: TopicId) {
        self.by_name.retain(|_, group| {
            group.offsets.retain(|(of, _), _| *of != topic);
            !group.offsets.is_empty()
        });
        self.count = self.by_name.values().map(|group| group.offsets.len()).sum();
    }

    /// `epoch u64, count u32` groups of `name bytes, used at i64, count u32` offsets of `topic u64, partition u32, offset
    /// u64, rows u32, epoch u64`.
    pub(crate) fn encode(&self, encoder: &mut Encoder) {
        encoder.u64(self.epoch.value());
        encoder.count(self.by_name.len());
        for (name, group) in &self.by_name {
            encoder.bytes(name.as_str().as_bytes());
            encoder.i64(group.used_at.micros());
            encoder.count(group.offsets.len());
            for ((topic, partition), stored) in &group.offsets {
                encoder.position(*topic, *partition, stored.position.offset);
                encoder.u32(stored.position.rows);
                encoder.u64(stored.epoch.value());
            }
        }
    }

    /// The reverse of [`Groups::encode`].
    pub(crate) fn decode(decoder: &mut Decoder) -> Result<Self, DecodeError> {
        let mut groups = Self { epoch: GroupEpoch::new(decoder.u64()?), ..Self::default() };
        for _ in 0..decoder.count(20)? {
            let name = decode_group(decoder)?;
            let mut group = Committed { used_at: Timestamp::from_micros(decoder.i64()?), ..Committed::default() };
            for _ in 0..decoder.count(32)? {
                let (topic, partition, offset) = decoder.position()?;
                let position = GroupPosition { offset, rows: decoder.u32()? };
                let epoch = GroupEpoch::new(decoder.u64()?);
                group.offsets.insert((topic, partition), GroupOffset { position, epoch });
            }
            groups.count += group.offsets.len();
            groups.by_name.insert(name, group);
        }
        Ok(groups)
    }
}

impl Shard {
    /// Gives partitions to a new reader of a group: where it goes on in each, in their order.
    ///
    /// # Errors
    /// [`ReplicationError::NoOffset`], [`ReplicationError::GroupHeld`], [`ReplicationError::GroupsFull`] and others.
    pub async fn take_partitions(&self, take: GroupTake) -> Result<Vec<GroupOffset>, ReplicationError> {
        let bytes = CHANGE_BYTES + 32 * take.partitions.len();
        match self.core.submit(Request::Take(take), bytes).await? {
            Reply::Taken(taken) => Ok(taken),
            _ => Err(self.core.stopped()),
        }
    }

    /// Forgets groups; only those that were not used since `unless_since`, if that is given. Those that are not there are
    /// no error.
    ///
    /// # Errors
    /// [`ReplicationError::GroupHeld`] and others.
    pub async fn drop_groups(
        &self,
        groups: Vec<GroupName>,
        unless_since: Option<Timestamp>,
    ) -> Result<(), ReplicationError> {
        self.core.change(Change::DropGroups(groups, unless_since)).await.map(drop)
    }

    /// What groups have committed here, by name.
    pub fn groups(&self) -> Vec<(GroupName, Committed)> {
        self.core.groups().read().iter().map(|(name, group)| (name.clone(), group.clone())).collect()
    }

    /// What one group has committed here.
    pub fn group(&self, group: &GroupName) -> Option<Committed> {
        self.core.groups().read().get(group).cloned()
    }
}

/// A group's name.
pub(crate) fn decode_group(decoder: &mut Decoder) -> Result<GroupName, DecodeError> {
    GroupName::new(decoder.text()?).map_err(|error| DecodeError::Damaged(error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::super::types::TakePartition;
    use super::*;
    use proptest::prelude::*;

    const TOPIC: TopicId = TopicId::new(1);

    fn group() -> GroupName {
        GroupName::new("g").unwrap()
    }

    fn take(taking: Taking) -> GroupTake {
        let part = TakePartition { topic: TOPIC, partition: PartitionId::new(0), taking };
        GroupTake { group: group(), now: Timestamp::from_micros(5), partitions: vec![part] }
    }

    fn commit(epoch: Option<GroupEpoch>, offset: u64) -> [GroupCommit; 1] {
        let (partition, position) = (PartitionId::new(0), GroupPosition { offset: Offset::new(offset), rows: 3 });
        [GroupCommit { group: group(), topic: TOPIC, partition, epoch, position }]
    }

    fn write(groups: &mut Groups, commits: &[GroupCommit]) -> Result<(), Refused> {
        groups.check(commits, |_, _| Some(Offset::new(100)))?;
        groups.record(commits, Timestamp::from_micros(7));
        Ok(())
    }

    #[test]
    fn whoever_took_a_partition_last_commits_and_nobody_before() {
        let mut groups = Groups::default();
        groups.take(&take(Taking::Read)).expect_err("it begins nowhere");
        let first = groups.take(&take(Taking::Begin(Offset::new(3)))).unwrap()[0];
        assert_eq!(groups.take(&take(Taking::Begin(Offset::new(9)))), Ok(vec![first]));
        assert_eq!(first.position.offset, Offset::new(3));
        write(&mut groups, &commit(Some(first.epoch), 10)).unwrap();
        let second = groups.take(&take(Taking::Read)).unwrap()[0];
        assert_eq!(second.position.offset, Offset::new(10));
        write(&mut groups, &commit(Some(first.epoch), 20)).expect_err("another took it");
        write(&mut groups, &commit(Some(second.epoch), 101)).expect_err("above the end");
        write(&mut groups, &commit(Some(second.epoch), 30)).unwrap();
        write(&mut groups, &commit(None, 40)).unwrap();
        write(&mut groups, &commit(Some(second.epoch), 41)).unwrap();
        let reset = groups.take(&take(Taking::Set(Offset::ZERO))).unwrap()[0];
        assert_eq!(reset.position.offset, Offset::ZERO);
        write(&mut groups, &commit(Some(second.epoch), 50)).expect_err("reset since");
        groups.drop_groups(&[group()], Some(Timestamp::from_micros(7)));
        assert!(groups.get(&group()).is_some());
        groups.drop_groups(&[group()], Some(Timestamp::from_micros(8)));
        assert!(groups.get(&group()).is_none());
        // One of that name that came later is another group.
        groups.take(&take(Taking::Begin(Offset::ZERO))).unwrap();
        write(&mut groups, &commit(Some(reset.epoch), 50)).expect_err("of the group before");
        groups.drop_topic(TOPIC);
        assert_eq!(groups.iter().count() + groups.count, 0);
        // By hand, before anybody read.
        write(&mut groups, &commit(None, 7)).unwrap();
        let by_hand = groups.get(&group()).unwrap().offsets[&(TOPIC, PartitionId::new(0))];
        assert_eq!((by_hand.epoch, groups.count), (GroupEpoch::default(), 1));
        let read = groups.take(&take(Taking::Read)).unwrap()[0];
        assert_eq!(read.position, by_hand.position);
        assert_ne!(read.epoch, by_hand.epoch);
    }

    proptest! {
        /// Any number of readers that take and commit as they like: each event is committed in one epoch's range.
        #[test]
        fn committed_ranges_follow_each_other(steps in prop::collection::vec((0_usize..4, 0_u64..20, any::<bool>()), 1..200)) {
            let mut groups = Groups::default();
            let mut readers: Vec<Option<(GroupOffset, u64)>> = vec![None; 4];
            let mut committed = 0;
            groups.take(&take(Taking::Begin(Offset::ZERO))).unwrap();
            for (reader, rows, is_take) in steps {
                match readers[reader] {
                    Some((taken, position)) if !is_take => {
                        let to = (position + rows).min(100);
                        if write(&mut groups, &commit(Some(taken.epoch), to)).is_ok() {
                            prop_assert_eq!(position, committed);
                            committed = to;
                            readers[reader] = Some((taken, to));
                        } else {
                            readers[reader] = None;
                        }
                    }
                    _ => {
                        let taken = groups.take(&take(Taking::Read)).unwrap()[0];
                        prop_assert_eq!(taken.position.offset.value(), committed);
                        readers[reader] = Some((taken, committed));
                    }
                }
            }
        }
    }

    #[test]
    fn groups_survive_encoding() {
        let mut groups = Groups::default();
        groups.take(&take(Taking::Begin(Offset::new(3)))).unwrap();
        write(&mut groups, &commit(None, 9)).unwrap();
        let mut encoder = Encoder::default();
        groups.encode(&mut encoder);
        let bytes = encoder.finish();
        let mut decoder = Decoder::new(bytes.clone());
        assert_eq!(Groups::decode(&mut decoder), Ok(groups));
        decoder.finish().unwrap();
        for cut in 0..bytes.len() {
            Groups::decode(&mut Decoder::new(bytes.slice(..cut))).expect_err("cut short");
        }
    }
}
