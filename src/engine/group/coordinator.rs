//! The coordinator of this node's consumer groups: runs their state machines, and tells members what to do.
//!
//! Owns who is a member, since when it has not asked for more, and how long whoever left may come back. Leaves out the
//! rules (`machine`) and offsets (`consumer`). One task looks for members whose time is over; everything else runs on the
//! caller's. In memory: after a crash there are no members.

use super::TopicPartition;
use super::machine::{Machine, MemberId, Moves};
use crate::env;
use millstream_catalog::model::{GroupName, Timestamp, TopicId};
use parking_lot::Mutex;
use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};
use tokio::sync::Notify;

/// How often members are looked at whose time may be over, at most.
const TICK: Duration = Duration::from_millis(250);
/// Looking takes at most one part in so many of the time, however many members there are.
const TICK_LOOKS: u32 = 1_000;

/// What a member says of itself.
#[derive(Debug, Clone)]
pub(crate) struct MemberInfo {
    /// Its session.
    pub(crate) pid: i32,
    /// The user of that.
    pub(crate) user: String,
    /// `application_name`.
    pub(crate) application_name: String,
    /// The client's address.
    pub(crate) client: String,
    /// `group_instance_id`.
    pub(crate) instance: Option<String>,
    /// When it joined.
    pub(crate) joined_at: Timestamp,
    /// How long it may take before it asks for more; `None` for ever.
    pub(crate) max_poll_interval: Option<Duration>,
    /// How long one with an instance may stay away; `None` for ever.
    pub(crate) session_timeout: Option<Duration>,
}

/// What the coordinator and a member tell each other without a lock.
#[derive(Debug, Default)]
struct Signal {
    changed: Notify,
    /// The member is to look what changed.
    is_due: AtomicBool,
    /// The member is none any more.
    is_removed: AtomicBool,
    /// Since when it has rows and did not ask for more: microseconds after the coordinator began; 0 while it waits.
    busy_since: AtomicU64,
}

/// Gives up those of a member's partitions that it can give up now, while its client is at work; says which.
pub(super) type LetGo = Box<dyn Fn(&[TopicPartition]) -> Vec<TopicPartition> + Send + Sync>;

struct Seat {
    info: MemberInfo,
    signal: Arc<Signal>,
    let_go: LetGo,
    /// Of one that left and may come back.
    absent: Option<Absence>,
}

/// Until when one that left may come back; `None` for ever.
type Absence = Option<Instant>;

impl fmt::Debug for Seat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Seat").field("info", &self.info).field("signal", &self.signal).finish_non_exhaustive()
    }
}

#[derive(Debug, Default)]
struct Group {
    machine: Machine,
    /// In boxes: a group of one has a whole leaf of the map.
    seats: BTreeMap<MemberId, Box<Seat>>,
}

impl Group {
    /// Moves what can move at once, and tells those who have something to do.
    fn wake(&mut self) {
        for (member, places) in self.machine.revoked() {
            let let_go = self.seats.get(&member).map(|seat| (seat.let_go)(&places));
            for place in let_go.into_iter().flatten() {
                self.machine.release(member, place);
            }
        }
        for member in self.machine.concerned() {
            if let Some(seat) = self.seats.get(&member) {
                seat.signal.is_due.store(true, Ordering::Release);
                seat.signal.changed.notify_one();
            }
        }
    }

    /// A topic has so many partitions now.
    fn grow(&mut self, topic: TopicId, count: u32) {
        if self.machine.grow(topic, count) {
            self.wake();
        }
    }

    /// Tells a member that it is none any more.
    fn remove(&mut self, member: MemberId) {
        if let Some(seat) = self.seats.remove(&member) {
            seat.signal.is_removed.store(true, Ordering::Release);
            seat.signal.is_due.store(true, Ordering::Release);
            seat.signal.changed.notify_one();
        }
    }
}

/// A member as system views show it.
#[derive(Debug, Clone)]
pub(crate) struct MemberRow {
    /// The member.
    pub(crate) member: MemberId,
    /// What it said.
    pub(crate) info: MemberInfo,
    /// Whether it is there, and not one that may come back.
    pub(crate) is_present: bool,
    /// What it reads.
    pub(crate) partitions: Vec<TopicPartition>,
}

impl MemberRow {
    /// Its name for people: the instance's, or of the session and a number.
    pub(crate) fn name(&self) -> String {
        self.info.instance.clone().unwrap_or_else(|| format!("{}-{}", self.info.pid, self.member))
    }
}

/// A group's membership for people.
#[derive(Debug, Clone, Default)]
pub(crate) struct GroupRow {
    /// Counts changes of the assignment since the node started.
    pub(crate) generation: u64,
    /// Whether partitions are on their way.
    pub(crate) is_rebalancing: bool,
    /// The members.
    pub(crate) members: Vec<MemberRow>,
}

impl GroupRow {
    /// Members that are there.
    pub(crate) fn present(&self) -> usize {
        self.members.iter().filter(|member| member.is_present).count()
    }

    /// The names of those who read partitions.
    pub(crate) fn readers(&self) -> HashMap<TopicPartition, String> {
        let of = |member: &MemberRow| {
            let name = member.name();
            member.partitions.iter().map(move |place| (*place, name.clone())).collect::<Vec<_>>()
        };
        self.members.iter().flat_map(of).collect()
    }
}

/// The groups of this node.
#[derive(Debug)]
pub(crate) struct Coordinator {
    groups: Mutex<HashMap<GroupName, Group>>,
    members: AtomicU64,
    begun: Instant,
    /// Members whose time may run out.
    watched: Notify,
}

impl Default for Coordinator {
    fn default() -> Self {
        let (groups, members) = (Mutex::default(), AtomicU64::new(0));
        Self { groups, members, begun: env::instant(), watched: Notify::new() }
    }
}

/// A member's seat in a group; it leaves when this is dropped.
#[derive(Debug)]
pub(crate) struct Membership {
    coordinator: Arc<Coordinator>,
    group: GroupName,
    member: MemberId,
    signal: Arc<Signal>,
}

impl Drop for Membership {
    fn drop(&mut self) {
        self.coordinator.leave(&self.group, self.member);
    }
}

impl Coordinator {
    /// Joins a group, with the partitions that each topic has.
    pub(crate) fn join(
        self: &Arc<Self>,
        group: &GroupName,
        info: MemberInfo,
        topics: &BTreeMap<TopicId, u32>,
        let_go: LetGo,
    ) -> Membership {
        let member = MemberId::new(self.members.fetch_add(1, Ordering::Relaxed) + 1);
        let signal = Arc::new(Signal { is_due: AtomicBool::new(true), ..Signal::default() });
        let mut groups = self.groups.lock();
        let joined = groups.entry(group.clone()).or_default();
        if let Some(before) = joined.machine.join(member, info.instance.clone(), topics) {
            joined.remove(before);
        }
        let seat = Seat { info, signal: Arc::clone(&signal), let_go, absent: None };
        joined.seats.insert(member, Box::new(seat));
        joined.wake();
        drop(groups);
        self.watched.notify_one();
        Membership { coordinator: Arc::clone(self), group: group.clone(), member, signal }
    }

    fn leave(&self, group: &GroupName, member: MemberId) {
        let mut groups = self.groups.lock();
        let Some(left) = groups.get_mut(group) else { return };
        left.machine.leave(member);
        match left.seats.get_mut(&member) {
            Some(seat) if left.machine.is_absent(member) => {
                let until = seat.info.session_timeout.and_then(|timeout| env::instant().checked_add(timeout));
                seat.absent = Some(until);
            }
            _ => drop(left.seats.remove(&member)),
        }
        left.wake();
        drop(groups);
        self.watched.notify_one();
    }

    /// Removes members whose time is over; whether there are others to look at.
    fn expire(&self, now: Instant) -> bool {
        let mut is_watching = false;
        for group in self.groups.lock().values_mut() {
            let is_over = |seat: &Seat| match (seat.absent, seat.info.max_poll_interval) {
                (Some(until), _) => until.is_some_and(|until| until <= now),
                (None, Some(interval)) => self.busy_until(seat, interval).is_some_and(|until| until <= now),
                (None, None) => false,
            };
            let over: Vec<MemberId> =
                group.seats.iter().filter(|(_, seat)| is_over(seat)).map(|(member, _)| *member).collect();
            for member in &over {
                group.machine.expire(*member);
                group.remove(*member);
            }
            if !over.is_empty() {
                group.wake();
            }
            is_watching |= !group.seats.is_empty();
        }
        is_watching
    }

    fn busy_until(&self, seat: &Seat, interval: Duration) -> Option<Instant> {
        let since = seat.signal.busy_since.load(Ordering::Relaxed);
        let since = self.begun.checked_add(Duration::from_micros(since)).filter(|_| since > 0);
        since.and_then(|since| since.checked_add(interval))
    }

    /// Removes members whose time is over, for as long as the node runs.
    pub(crate) async fn watch(self: Arc<Self>) {
        loop {
            let begun = env::instant();
            match self.expire(begun) {
                true => tokio::time::sleep(TICK.max(env::elapsed(begun) * TICK_LOOKS)).await,
                false => self.watched.notified().await,
            }
        }
    }

    /// All of them.
    pub(crate) fn rows(&self) -> BTreeMap<GroupName, GroupRow> {
        self.groups.lock().iter().map(|(name, group)| (name.clone(), group.row())).collect()
    }

    /// A topic has so many partitions now, and the log has them.
    pub(crate) fn grow(&self, topic: TopicId, count: u32) {
        for group in self.groups.lock().values_mut() {
            group.grow(topic, count);
        }
    }

    /// Members that are there.
    pub(crate) fn present(&self, group: &GroupName) -> usize {
        self.groups.lock().get(group).map_or(0, |group| group.machine.present())
    }

    /// Forgets a group whose offsets are gone, unless it has members; those that may come back are none.
    pub(crate) fn forget(&self, group: &GroupName) {
        let mut groups = self.groups.lock();
        if groups.get(group).is_some_and(|group| group.machine.present() == 0) {
            groups.remove(group);
        }
    }
}

impl Group {
    fn row(&self) -> GroupRow {
        let row = |member: &MemberId, seat: &Seat| MemberRow {
            member: *member,
            info: seat.info.clone(),
            is_present: seat.absent.is_none(),
            partitions: self.machine.owned(*member).collect(),
        };
        GroupRow {
            generation: self.machine.generation(),
            is_rebalancing: self.machine.is_rebalancing(),
            members: self.seats.iter().map(|(member, seat)| row(member, seat)).collect(),
        }
    }
}

impl Membership {
    /// What changed for the member since the last call; `None` when it was removed.
    pub(crate) fn sync(&self) -> Option<Moves> {
        if !self.signal.is_due.swap(false, Ordering::AcqRel) {
            return Some(Moves::default());
        }
        let mut groups = self.coordinator.groups.lock();
        let group = groups.get_mut(&self.group).filter(|group| group.machine.has(self.member))?;
        Some(group.machine.sync(self.member))
    }

    /// Whether it is still a member.
    pub(crate) fn is_current(&self) -> bool {
        !self.signal.is_removed.load(Ordering::Acquire)
    }

    /// Whether another member with the same instance is in the group.
    pub(crate) fn is_replaced(&self, instance: &str) -> bool {
        let groups = self.coordinator.groups.lock();
        let seats = groups.get(&self.group).into_iter().flat_map(|group| &group.seats);
        seats
            .into_iter()
            .any(|(member, seat)| *member != self.member && seat.info.instance.as_deref() == Some(instance))
    }

    /// Gives partitions up: they go to whoever is to read them, or come back. Of none nobody is told: one that has to keep
    /// what it is to give up would wake itself without end.
    pub(crate) fn release(&self, places: impl IntoIterator<Item = TopicPartition>) {
        let mut places = places.into_iter().peekable();
        if places.peek().is_none() {
            return;
        }
        let mut groups = self.coordinator.groups.lock();
        let Some(group) = groups.get_mut(&self.group) else { return };
        places.for_each(|place| group.machine.release(self.member, place));
        group.wake();
    }

    /// A topic has so many partitions now.
    pub(crate) fn grow(&self, topic: TopicId, count: u32) {
        if let Some(group) = self.coordinator.groups.lock().get_mut(&self.group) {
            group.grow(topic, count);
        }
    }

    /// Has the member look what changed, though it heard of all.
    pub(crate) fn look_again(&self) {
        self.signal.is_due.store(true, Ordering::Release);
        self.signal.changed.notify_one();
    }

    /// Completes when something changed for the member.
    pub(crate) async fn changed(&self) {
        while !self.signal.is_due.load(Ordering::Acquire) {
            self.signal.changed.notified().await;
        }
    }

    /// The member waits for rows, or has some and is at work on them.
    pub(crate) fn set_waiting(&self, is_waiting: bool) {
        let since = match is_waiting {
            true => 0,
            false => u64::try_from(env::elapsed(self.coordinator.begun).as_micros()).unwrap_or(u64::MAX).max(1),
        };
        self.signal.busy_since.store(since, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::FutureExt as _;
    use millstream_catalog::model::PartitionId;

    /// A member that is at work on all it has.
    fn keep() -> LetGo {
        Box::new(|_| Vec::new())
    }

    fn info(instance: Option<&str>) -> MemberInfo {
        MemberInfo {
            pid: 1,
            user: "u".to_owned(),
            application_name: String::new(),
            client: String::new(),
            instance: instance.map(str::to_owned),
            joined_at: Timestamp::default(),
            max_poll_interval: Some(Duration::from_secs(300)),
            session_timeout: Some(Duration::from_secs(45)),
        }
    }

    #[test]
    fn members_whose_time_is_over_are_removed() {
        let (coordinator, group) = (Arc::new(Coordinator::default()), GroupName::new("g").unwrap());
        let topics = BTreeMap::from([(TopicId::new(1), 2)]);
        let first = coordinator.join(&group, info(None), &topics, keep());
        assert_eq!(first.sync().unwrap().granted.len(), 2);
        assert_eq!(first.sync().unwrap(), Moves::default());
        let second = coordinator.join(&group, info(Some("b")), &topics, keep());
        let revoked = first.sync().unwrap().revoked;
        // What it cannot give up yet is no reason to look again.
        first.release([]);
        assert!(first.changed().now_or_never().is_none());
        first.release(revoked.clone());
        assert_eq!(second.sync().unwrap().granted, revoked);
        let now = env::instant();
        // Who waits for rows may do so for ever.
        assert!(coordinator.expire(now + Duration::from_secs(1_000)));
        assert!(first.is_current() && second.is_current());
        first.set_waiting(false);
        coordinator.expire(now + Duration::from_secs(200));
        assert!(first.is_current());
        coordinator.expire(now + Duration::from_secs(1_000));
        assert!(!first.is_current() && first.sync().is_none());
        assert_eq!(second.sync().unwrap().granted.len(), 1);
        // An instance that left may come back for a while.
        drop(second);
        assert_eq!(coordinator.present(&group), 0);
        coordinator.expire(env::instant());
        assert_eq!(coordinator.rows()[&group].members.len(), 1);
        assert!(!coordinator.expire(env::instant() + Duration::from_secs(46)));
        coordinator.forget(&group);
        assert!(coordinator.rows().is_empty());
    }

    #[test]
    fn an_instance_that_joins_again_replaces_itself() {
        let (coordinator, group) = (Arc::new(Coordinator::default()), GroupName::new("g").unwrap());
        let topics = BTreeMap::from([(TopicId::new(1), 2)]);
        let first = coordinator.join(&group, info(Some("a")), &topics, keep());
        first.sync();
        let second = coordinator.join(&group, info(Some("a")), &topics, keep());
        assert!(first.sync().is_none() && first.is_replaced("a") && !second.is_replaced("a"));
        assert_eq!(second.sync().unwrap().granted.len(), 2);
        drop(first);
        let readers = coordinator.rows()[&group].readers();
        assert_eq!(readers[&(TopicId::new(1), PartitionId::new(0))], "a");
    }
}
