//! Which member is to read which partition: balanced, and with as few partitions moved as that allows.
//!
//! Owns the rule as a pure function. No two members that read the same topics differ by more than one partition, and
//! partitions move only from members with more than their share. Leaves out when a move may happen (`machine`). The goals
//! are those of Kafka's cooperative sticky assignor (KIP-54, KIP-429).

use super::TopicPartition;
use super::machine::MemberId;
use millstream_catalog::model::{PartitionId, TopicId};
use std::collections::{BTreeMap, BTreeSet};

/// Who is to read each partition.
pub(super) type Assignment = BTreeMap<TopicPartition, MemberId>;

/// What the members subscribe to.
pub(super) type Subscriptions<'a> = BTreeMap<MemberId, &'a BTreeSet<TopicId>>;

/// Assigns the partitions of `topics`, starting from what members have.
pub(super) fn assign(members: &Subscriptions<'_>, topics: &BTreeMap<TopicId, u32>, current: &Assignment) -> Assignment {
    let mut readers: BTreeMap<TopicId, BTreeSet<MemberId>> = BTreeMap::new();
    for (member, subscribed) in members {
        for topic in subscribed.iter() {
            readers.entry(*topic).or_default().insert(*member);
        }
    }
    let mut loads: BTreeMap<MemberId, usize> = members.keys().map(|member| (*member, 0)).collect();
    let mut target = Assignment::new();
    let mut free = Vec::new();
    for (topic, readers) in &readers {
        for partition in (0..topics.get(topic).copied().unwrap_or(0)).map(PartitionId::new) {
            let place = (*topic, partition);
            match current.get(&place).filter(|member| readers.contains(member)) {
                Some(member) => {
                    target.insert(place, *member);
                    *loads.entry(*member).or_default() += 1;
                }
                None => free.push(place),
            }
        }
    }
    for place in free {
        let readers = readers.get(&place.0).into_iter().flatten();
        if let Some(least) = readers.min_by_key(|member| (loads.get(member).copied().unwrap_or(0), **member)) {
            target.insert(place, *least);
            *loads.entry(*least).or_default() += 1;
        }
    }
    balance(&readers, &mut target, &mut loads);
    target
}

/// Moves partitions, one by one, from members with at least two more than another who may read them.
fn balance(
    readers: &BTreeMap<TopicId, BTreeSet<MemberId>>,
    target: &mut Assignment,
    loads: &mut BTreeMap<MemberId, usize>,
) {
    let mut owned: BTreeMap<MemberId, BTreeSet<TopicPartition>> = BTreeMap::new();
    for (place, member) in target.iter() {
        owned.entry(*member).or_default().insert(*place);
    }
    // Each move makes the sum of the squares of the loads less, so this ends.
    while let Some((place, from, to)) = unbalanced(readers, &owned, loads) {
        target.insert(place, to);
        owned.entry(from).or_default().remove(&place);
        owned.entry(to).or_default().insert(place);
        *loads.entry(from).or_default() -= 1;
        *loads.entry(to).or_default() += 1;
    }
}

/// A partition to move, the member with the most it can come from, and that with the least it can go to.
fn unbalanced(
    readers: &BTreeMap<TopicId, BTreeSet<MemberId>>,
    owned: &BTreeMap<MemberId, BTreeSet<TopicPartition>>,
    loads: &BTreeMap<MemberId, usize>,
) -> Option<(TopicPartition, MemberId, MemberId)> {
    let load = |member: &MemberId| loads.get(member).copied().unwrap_or(0);
    // By topic, who of its readers has the least.
    let least: BTreeMap<TopicId, MemberId> = readers
        .iter()
        .filter_map(|(topic, readers)| Some((*topic, *readers.iter().min_by_key(|member| (load(member), **member))?)))
        .collect();
    let fewest = least.values().map(load).min()?;
    let mut donors: Vec<MemberId> = owned.keys().copied().filter(|member| load(member) > fewest + 1).collect();
    donors.sort_by_key(|member| (std::cmp::Reverse(load(member)), *member));
    for from in donors {
        let mut moves = owned.get(&from).into_iter().flatten().rev().filter_map(|place| {
            let to = *least.get(&place.0)?;
            (load(&from) > load(&to) + 1).then_some((load(&to), *place, to))
        });
        // All partitions of one topic have the same taker: one of each topic is enough.
        let first = moves.next();
        let best = first.into_iter().chain(moves).min_by_key(|(load, _, to)| (*load, *to));
        if let Some((_, place, to)) = best {
            return Some((place, from, to));
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn loads(target: &Assignment, members: &Subscriptions<'_>) -> BTreeMap<MemberId, usize> {
        let mut loads: BTreeMap<MemberId, usize> = members.keys().map(|member| (*member, 0)).collect();
        target.values().for_each(|member| *loads.entry(*member).or_default() += 1);
        loads
    }

    #[test]
    fn a_new_member_gets_its_share_and_nothing_else_moves() {
        let topics = BTreeMap::from([(TopicId::new(1), 1_000)]);
        let all = BTreeSet::from([TopicId::new(1)]);
        let mut members: Subscriptions<'_> = Subscriptions::new();
        let mut current = Assignment::new();
        for number in 1..=100 {
            members.insert(MemberId::new(number), &all);
            let target = assign(&members, &topics, &current);
            let moved = target.iter().filter(|(place, member)| current.get(place) != Some(member)).count();
            let share = 1_000 / number as usize;
            assert!(moved <= if number == 1 { 1_000 } else { share }, "{moved} moved to member {number}");
            let loads = loads(&target, &members);
            assert!(loads.values().max().unwrap() - loads.values().min().unwrap() <= 1);
            current = target;
        }
    }

    proptest! {
        #[test]
        fn it_is_complete_balanced_and_sticky(
            topics in prop::collection::btree_map(0_u64..4, 0_u32..12, 1..4),
            subscribed in prop::collection::vec(prop::collection::btree_set(0_u64..4, 1..4), 1..8),
            leaving in 0_usize..8,
        ) {
            let topics: BTreeMap<TopicId, u32> = topics.into_iter().map(|(id, n)| (TopicId::new(id), n)).collect();
            let subscribed: Vec<BTreeSet<TopicId>> =
                subscribed.into_iter().map(|ids| ids.into_iter().map(TopicId::new).collect()).collect();
            let mut members: Subscriptions<'_> =
                subscribed.iter().enumerate().map(|(n, topics)| (MemberId::new(n as u64), topics)).collect();
            let mut current = Assignment::new();
            for _ in 0..3 {
                let target = assign(&members, &topics, &current);
                for (topic, count) in &topics {
                    let has_reader = members.values().any(|subscribed| subscribed.contains(topic));
                    for partition in (0..*count).map(PartitionId::new) {
                        let reader = target.get(&(*topic, partition));
                        prop_assert_eq!(reader.is_some(), has_reader);
                        prop_assert!(reader.is_none_or(|reader| members[reader].contains(topic)));
                    }
                }
                let loads = loads(&target, &members);
                for (place, owner) in &target {
                    for (other, subscribed) in &members {
                        prop_assert!(!subscribed.contains(&place.0) || loads[owner] <= loads[other] + 1);
                    }
                }
                prop_assert_eq!(&assign(&members, &topics, &target), &target);
                current = target;
                members.remove(&MemberId::new(leaving as u64));
            }
        }
    }
}
