//! A consumer group's membership as a state machine: who is in it, who is to read what, and who does.
//!
//! Owns the rules as pure state. A partition has one owner at a time: whoever is to read it next is granted it once its
//! owner has released it or is gone, so members whose partitions stay never pause. Each change of the assignment has a
//! generation. Leaves out clocks, tasks and offsets (`coordinator`, `consumer`).

use super::TopicPartition;
use super::assignor::{Assignment, Subscriptions, assign};
use millstream_catalog::model::TopicId;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

/// A member, among all that this node ever had.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct MemberId(u64);

impl MemberId {
    /// Wraps a number.
    pub(crate) const fn new(number: u64) -> Self {
        Self(number)
    }
}

impl fmt::Display for MemberId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// One member.
#[derive(Debug)]
struct Member {
    /// `group_instance_id`: it may go away and come back to its partitions.
    instance: Option<String>,
    topics: BTreeSet<TopicId>,
    /// It is gone and may come back.
    is_absent: bool,
}

/// What a member is to do.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Moves {
    /// Partitions it owns from now on.
    pub(crate) granted: Vec<TopicPartition>,
    /// Partitions it owns and is to release.
    pub(crate) revoked: Vec<TopicPartition>,
}

/// The membership of one group.
#[derive(Debug, Default)]
pub(super) struct Machine {
    generation: u64,
    /// Each in a box: most groups have few, and a node of the map has room for eleven.
    members: BTreeMap<MemberId, Box<Member>>,
    topics: BTreeMap<TopicId, u32>,
    target: Assignment,
    owners: Assignment,
}

impl Machine {
    /// Counts changes of the assignment.
    pub(super) fn generation(&self) -> u64 {
        self.generation
    }

    /// Whether partitions are on their way from one member to another.
    pub(super) fn is_rebalancing(&self) -> bool {
        self.owners.iter().any(|(place, owner)| self.target.get(place) != Some(owner))
    }

    /// Members that are there.
    pub(super) fn present(&self) -> usize {
        self.members.values().filter(|member| !member.is_absent).count()
    }

    /// Whether the member is in the group.
    pub(super) fn has(&self, member: MemberId) -> bool {
        self.members.get(&member).is_some_and(|member| !member.is_absent)
    }

    /// Who owns a partition.
    #[cfg(test)]
    fn owner(&self, place: TopicPartition) -> Option<MemberId> {
        self.owners.get(&place).copied()
    }

    /// The partitions of a member.
    pub(super) fn owned(&self, member: MemberId) -> impl Iterator<Item = TopicPartition> {
        self.owners.iter().filter(move |(_, owner)| **owner == member).map(|(place, _)| *place)
    }

    /// A member joins, with the partitions that its topics have. One with the instance of another takes its place; the
    /// other, if it was there still, is removed.
    pub(super) fn join(
        &mut self,
        member: MemberId,
        instance: Option<String>,
        topics: &BTreeMap<TopicId, u32>,
    ) -> Option<MemberId> {
        let is_same = |other: &Member| instance.is_some() && other.instance == instance;
        let before = self.members.iter().find(|(_, other)| is_same(other)).map(|(id, _)| *id);
        if let Some(before) = before {
            self.members.remove(&before);
            self.owners.retain(|_, owner| *owner != before);
            self.target.values_mut().filter(|reader| **reader == before).for_each(|reader| *reader = member);
        }
        let joined = Member { instance, topics: topics.keys().copied().collect(), is_absent: false };
        self.members.insert(member, Box::new(joined));
        for (topic, count) in topics {
            let known = self.topics.entry(*topic).or_default();
            *known = (*known).max(*count);
        }
        self.assign();
        before
    }

    /// A topic has more partitions now; true if that was news.
    pub(super) fn grow(&mut self, topic: TopicId, count: u32) -> bool {
        let is_news = self.topics.get(&topic).is_some_and(|known| *known < count);
        if is_news {
            self.topics.insert(topic, count);
            self.assign();
        }
        is_news
    }

    /// A member leaves. One with an instance may come back: its partitions wait for it until [`Machine::expire`].
    pub(super) fn leave(&mut self, member: MemberId) {
        self.owners.retain(|_, owner| *owner != member);
        match self.members.get_mut(&member) {
            Some(left) if left.instance.is_some() => left.is_absent = true,
            Some(_) => self.expire(member),
            None => {}
        }
    }

    /// A member does not come back.
    pub(super) fn expire(&mut self, member: MemberId) {
        self.owners.retain(|_, owner| *owner != member);
        if self.members.remove(&member).is_some() {
            self.assign();
        }
    }

    /// Whether the member is one that left and may come back.
    pub(super) fn is_absent(&self, member: MemberId) -> bool {
        self.members.get(&member).is_some_and(|member| member.is_absent)
    }

    /// A member gives up a partition it owns.
    pub(super) fn release(&mut self, member: MemberId, place: TopicPartition) {
        if self.owners.get(&place) == Some(&member) {
            self.owners.remove(&place);
        }
    }

    /// Grants a member what is free of its partitions, and says what it is to release.
    pub(super) fn sync(&mut self, member: MemberId) -> Moves {
        let mut sync = Moves::default();
        if !self.has(member) {
            return sync;
        }
        for (place, reader) in &self.target {
            if *reader == member && !self.owners.contains_key(place) {
                self.owners.insert(*place, member);
                sync.granted.push(*place);
            }
        }
        let is_revoked = |(place, owner): &(&TopicPartition, &MemberId)| {
            **owner == member && self.target.get(place) != Some(&member)
        };
        sync.revoked = self.owners.iter().filter(is_revoked).map(|(place, _)| *place).collect();
        sync
    }

    /// Partitions that their owners are to release.
    pub(super) fn revoked(&self) -> BTreeMap<MemberId, Vec<TopicPartition>> {
        let mut revoked: BTreeMap<MemberId, Vec<TopicPartition>> = BTreeMap::new();
        for (place, owner) in self.owners.iter().filter(|(place, owner)| self.target.get(place) != Some(owner)) {
            revoked.entry(*owner).or_default().push(*place);
        }
        revoked
    }

    /// Members that have something to do: to release a partition, or to take one.
    pub(super) fn concerned(&self) -> BTreeSet<MemberId> {
        let releasing = self.owners.iter().filter(|(place, owner)| self.target.get(place) != Some(owner));
        let taking = self.target.iter().filter(|(place, _)| !self.owners.contains_key(place));
        releasing.chain(taking).map(|(_, member)| *member).filter(|member| self.has(*member)).collect()
    }

    fn assign(&mut self) {
        let subscriptions: Subscriptions<'_> = self.members.iter().map(|(id, member)| (*id, &member.topics)).collect();
        let mut current = self.target.clone();
        current.retain(|_, reader| self.members.contains_key(reader));
        let target = assign(&subscriptions, &self.topics, &current);
        if target != self.target {
            self.generation += 1;
            self.target = target;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use millstream_catalog::model::PartitionId;
    use proptest::prelude::*;

    const TOPIC: TopicId = TopicId::new(1);

    fn topics(count: u32) -> BTreeMap<TopicId, u32> {
        BTreeMap::from([(TOPIC, count)])
    }

    fn id(number: u64) -> MemberId {
        MemberId::new(number)
    }

    fn place(number: u32) -> TopicPartition {
        (TOPIC, PartitionId::new(number))
    }

    #[test]
    fn a_partition_moves_once_it_is_released_and_the_others_stay() {
        let mut group = Machine::default();
        group.join(id(1), None, &topics(4));
        assert_eq!(group.sync(id(1)).granted.len(), 4);
        group.join(id(2), None, &topics(4));
        assert_eq!(group.sync(id(2)), Moves::default());
        let sync = group.sync(id(1));
        assert_eq!((sync.granted.len(), sync.revoked.len()), (0, 2));
        assert!(group.is_rebalancing());
        assert_eq!(group.concerned(), BTreeSet::from([id(1)]));
        group.release(id(1), sync.revoked[0]);
        assert_eq!(group.sync(id(2)).granted, [sync.revoked[0]]);
        // Whoever is gone holds nothing.
        group.leave(id(1));
        assert_eq!(group.sync(id(2)).granted.len(), 3);
        assert!(!group.is_rebalancing());
        group.leave(id(2));
        assert_eq!(group.present(), 0);
    }

    #[test]
    fn an_instance_comes_back_to_its_partitions() {
        let mut group = Machine::default();
        group.join(id(1), Some("a".to_owned()), &topics(4));
        group.sync(id(1));
        group.join(id(2), Some("b".to_owned()), &topics(4));
        group.sync(id(1)).revoked.into_iter().for_each(|place| group.release(id(1), place));
        let mine = group.sync(id(2)).granted;
        let generation = group.generation();
        group.leave(id(2));
        assert_eq!((group.sync(id(1)), group.generation()), (Moves::default(), generation));
        assert_eq!(group.join(id(3), Some("b".to_owned()), &topics(4)), Some(id(2)));
        assert_eq!((group.sync(id(3)).granted, group.generation()), (mine, generation));
        // One that is there still is removed.
        assert_eq!(group.join(id(4), Some("b".to_owned()), &topics(4)), Some(id(3)));
        assert!(!group.has(id(3)) && group.sync(id(4)).granted.len() == 2);
        group.leave(id(4));
        group.expire(id(4));
        assert_eq!(group.sync(id(1)).granted.len(), 2);
    }

    #[test]
    fn new_partitions_are_given_out() {
        let mut group = Machine::default();
        group.join(id(1), None, &topics(2));
        group.join(id(2), None, &topics(2));
        group.sync(id(1));
        group.sync(id(2));
        assert!(group.grow(TOPIC, 4) && !group.grow(TOPIC, 4));
        assert_eq!(group.sync(id(1)).granted.len() + group.sync(id(2)).granted.len(), 2);
    }

    #[derive(Debug, Clone)]
    enum Op {
        Join(Option<u8>),
        Leave(u64),
        Expire(u64),
        Sync(u64),
        Grow(u32),
    }

    fn op() -> impl Strategy<Value = Op> {
        prop_oneof![
            2 => prop::option::of(0_u8..2).prop_map(Op::Join),
            1 => (0_u64..40).prop_map(Op::Leave),
            1 => (0_u64..40).prop_map(Op::Expire),
            4 => (0_u64..40).prop_map(Op::Sync),
            1 => (1_u32..12).prop_map(Op::Grow),
        ]
    }

    proptest! {
        /// Members believe what they were granted until they release it: no two believe the same.
        #[test]
        fn a_partition_has_one_owner(ops in prop::collection::vec(op(), 1..120)) {
            let (mut group, mut next) = (Machine::default(), 0);
            let mut held: BTreeMap<MemberId, BTreeSet<TopicPartition>> = BTreeMap::new();
            let mut generation = 0;
            for op in ops {
                match op {
                    Op::Join(instance) => {
                        next += 1;
                        if let Some(gone) = group.join(id(next), instance.map(|it| it.to_string()), &topics(6)) {
                            held.remove(&gone);
                        }
                    }
                    Op::Leave(member) => {
                        group.leave(id(member));
                        held.remove(&id(member));
                    }
                    Op::Expire(member) => {
                        group.expire(id(member));
                        held.remove(&id(member));
                    }
                    Op::Sync(member) => {
                        let sync = group.sync(id(member));
                        let own = held.entry(id(member)).or_default();
                        for place in sync.revoked {
                            prop_assert!(own.remove(&place));
                            group.release(id(member), place);
                        }
                        own.extend(sync.granted);
                    }
                    Op::Grow(count) => drop(group.grow(TOPIC, count)),
                }
                let all: Vec<_> = held.values().flatten().collect();
                prop_assert_eq!(all.len(), all.iter().collect::<BTreeSet<_>>().len());
                for (member, own) in &held {
                    prop_assert_eq!(&group.owned(*member).collect::<BTreeSet<_>>(), own);
                }
                prop_assert!(group.generation() >= generation);
                generation = group.generation();
            }
            // Once all have synced twice, every partition has a present owner, unless an absent one may come back.
            for _ in 0..2 {
                for member in (1..=next).map(id) {
                    let sync = group.sync(member);
                    sync.revoked.into_iter().for_each(|place| group.release(member, place));
                }
            }
            prop_assert!(!group.is_rebalancing() && group.concerned().is_empty());
            let absent = (1..=next).any(|member| group.is_absent(id(member)));
            if group.present() > 0 && !absent {
                for number in 0..6 {
                    prop_assert!(group.owner(place(number)).is_some());
                }
            }
        }
    }
}
