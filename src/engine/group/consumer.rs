//! A member's progress: what it has read, handed over, been asked to go on from, and committed.
//!
//! Owns the order of these, by partition: rows are committed once the client has asked for the next ones, or when they are
//! on the socket, or with a transaction; a partition is given up only when all that was handed over of it is committed.
//! Leaves out reading (`push`), delivery (server) and who is a member (`coordinator`). Shared between a subscription, who
//! delivers its rows, and the transaction they were fetched in; the member leaves with the last of them.

use super::TopicPartition;
use super::coordinator::{Coordinator, LetGo, MemberInfo, Membership};
use crate::engine::{Engine, Result, replication_error};
use crate::env;
use crate::replication::{Append, GroupCommit, GroupTake, ReplicationError, Shard, TakePartition, Taking};
use millstream_catalog::Relation;
use millstream_catalog::model::{Durability, GroupEpoch, GroupName, Offset, PartitionId, ShardId, SqlState};
use millstream_sql::SqlError;
use millstream_sql::stream::RowOrigins;
use parking_lot::Mutex;
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How long until something is tried again that a transaction over several shards is in the way of.
const HELD_WAIT: Duration = Duration::from_millis(2);

/// Where a group goes on in a partition without a committed offset, or whose events after it were removed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reset {
    /// At the oldest event.
    Earliest,
    /// After the newest.
    Latest,
    /// Nowhere: it fails.
    None,
}

/// How rows reach the client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Delivery {
    /// So many as the client asks for: it has taken them when it asks for the next.
    Asked,
    /// As they come: they are delivered once they are on the socket.
    Written,
}

/// What a member joins with.
pub(crate) struct Joining {
    pub(crate) group: GroupName,
    /// What it reads by partitions, all of one shard.
    pub(crate) topics: Vec<Arc<Relation>>,
    pub(crate) shard: Arc<Shard>,
    pub(crate) reset: Reset,
    pub(crate) delivery: Delivery,
    pub(crate) auto_commit: bool,
    pub(crate) info: MemberInfo,
}

/// How far the member is in a partition. `committed <= asked <= handed <= read`, but for a commit by others.
#[derive(Debug, Clone, Copy)]
struct Held {
    epoch: GroupEpoch,
    /// The next event to read.
    read: Offset,
    /// Up to here rows were handed over.
    handed: Offset,
    /// Up to here the client has taken them.
    asked: Offset,
    /// Up to here that is in the log.
    committed: Offset,
    /// It is to be given up.
    is_revoked: bool,
}

/// Rows that were given to whoever delivers them, all of one partition.
struct Mark {
    place: TopicPartition,
    rows: usize,
    /// The position after all of them.
    after: Offset,
    origins: RowOrigins,
}

/// Where a transaction began that rows were fetched in.
struct Begun {
    handed: BTreeMap<TopicPartition, Offset>,
    rows: u64,
}

#[derive(Default)]
struct Progress {
    held: BTreeMap<TopicPartition, Held>,
    marks: VecDeque<Mark>,
    /// Rows of the first mark that were handed over.
    of_first: usize,
    /// Rows handed over in total.
    rows: u64,
    begun: Option<Begun>,
    /// Whether the subscription reads what it was last told.
    is_reading: bool,
    /// Counts how often rows that were given became void.
    era: u64,
    /// Counts how often partitions were taken.
    taken: u64,
    /// Rows handed over when the client last asked.
    rows_asked: u64,
    /// Where reading goes on next, for each partition in turn.
    turn: Option<TopicPartition>,
    committed_at: Option<Instant>,
}

/// What a member reads next.
#[derive(Debug, Clone, Default)]
pub(crate) struct Settled {
    /// Partitions and positions, the one whose turn it is first.
    pub(crate) places: Vec<(TopicPartition, Offset)>,
    /// Counts how often what was read became void: state made of it must be made anew.
    pub(crate) era: u64,
    /// Counts how often partitions were taken, which may be read from before what was read of others.
    pub(crate) taken: u64,
}

/// A member of a group.
pub(crate) struct Consumer {
    joining: Joining,
    coordinator: Arc<Coordinator>,
    engine: Arc<Engine>,
    membership: Mutex<Option<Arc<Membership>>>,
    /// Shared with the coordinator, which takes back partitions that nobody is at work on.
    progress: Arc<Mutex<Progress>>,
    /// One commit at a time.
    committing: tokio::sync::Mutex<()>,
}

impl std::fmt::Debug for Consumer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Consumer").field("group", &self.joining.group).finish_non_exhaustive()
    }
}

impl Progress {
    /// Rows were handed over.
    fn hand_over(&mut self, mut rows: usize, is_taken: bool) {
        self.rows += rows as u64;
        while let Some(first) = self.marks.front() {
            let left = first.rows - self.of_first;
            if rows < left {
                self.of_first += rows;
                let (place, next) = (first.place, first.origins.offset(self.of_first));
                if let Some(next) = next {
                    self.advance(place, next, is_taken);
                }
                return;
            }
            rows -= left;
            let (place, after) = (first.place, first.after);
            self.of_first = 0;
            self.marks.pop_front();
            self.advance(place, after, is_taken);
        }
    }

    fn advance(&mut self, place: TopicPartition, to: Offset, is_taken: bool) {
        let in_transaction = self.begun.is_some();
        if let Some(held) = self.held.get_mut(&place) {
            held.handed = held.handed.max(to);
            if is_taken && !in_transaction {
                held.asked = held.handed;
            }
        }
    }

    /// Takes back what was given and not handed over: it is read again.
    fn void(&mut self) {
        self.marks.clear();
        self.of_first = 0;
        self.era += 1;
        self.held.values_mut().for_each(|held| held.read = held.handed);
    }

    /// Takes back what was handed over in a transaction too.
    fn rewind(&mut self) {
        let Some(begun) = self.begun.take() else { return };
        for (place, held) in &mut self.held {
            let to = begun.handed.get(place).copied().unwrap_or(held.committed);
            (held.handed, held.asked) = (to, held.asked.min(to));
        }
        self.rows = begun.rows;
        self.void();
    }

    /// What the client has taken, or was handed over if `is_all`, and is not committed.
    fn commits(&self, group: &GroupName, is_all: bool) -> Vec<GroupCommit> {
        let commit = |((topic, partition), held): (&TopicPartition, &Held)| {
            let offset = if is_all { held.handed } else { held.asked };
            let (group, epoch) = (group.clone(), Some(held.epoch));
            (offset != held.committed).then_some(GroupCommit {
                group,
                topic: *topic,
                partition: *partition,
                epoch,
                offset,
            })
        };
        self.held.iter().filter_map(commit).collect()
    }

    /// Commits are in the log.
    fn committed(&mut self, commits: &[GroupCommit]) {
        for commit in commits {
            if let Some(held) = self.held.get_mut(&(commit.topic, commit.partition))
                && Some(held.epoch) == commit.epoch
            {
                held.committed = commit.offset;
                held.asked = held.asked.max(commit.offset);
            }
        }
    }

    /// Partitions are to be given up; those that can be now, unless just now some is read.
    fn let_go(&mut self, places: &[TopicPartition], auto_commit: bool) -> Vec<TopicPartition> {
        for place in places {
            if let Some(held) = self.held.get_mut(place) {
                held.is_revoked = true;
            }
        }
        if self.is_reading { Vec::new() } else { self.released(auto_commit) }
    }

    /// Partitions that can be given up now.
    fn released(&mut self, auto_commit: bool) -> Vec<TopicPartition> {
        if self.begun.is_some() {
            return Vec::new();
        }
        let is_free = |held: &Held| {
            held.is_revoked
                && held.read == held.handed
                && held.handed == held.asked
                && (held.asked == held.committed || !auto_commit)
        };
        let free: Vec<TopicPartition> =
            self.held.iter().filter(|(_, held)| is_free(held)).map(|(place, _)| *place).collect();
        for place in &free {
            self.held.remove(place);
        }
        free
    }
}

impl Consumer {
    /// Joins the group.
    ///
    /// # Errors
    /// SE003 when the group has no committed offset and is not to begin anywhere.
    pub(crate) async fn join(engine: &Arc<Engine>, joining: Joining) -> Result<Arc<Self>> {
        let consumer = Self {
            joining,
            coordinator: Arc::clone(engine.groups()),
            engine: Arc::clone(engine),
            membership: Mutex::default(),
            progress: Arc::default(),
            committing: tokio::sync::Mutex::default(),
        };
        consumer.begin_topics().await?;
        *consumer.membership.lock() = Some(Arc::new(consumer.take_seat()));
        Ok(Arc::new(consumer))
    }

    fn take_seat(&self) -> Membership {
        let counts = self.joining.topics.iter().map(|topic| (topic.id, self.partitions_of(topic).len() as u32));
        let (progress, auto_commit) = (Arc::downgrade(&self.progress), self.joining.auto_commit);
        let let_go: LetGo = Box::new(move |places| match progress.upgrade() {
            Some(progress) => progress.lock().let_go(places, auto_commit),
            None => Vec::new(),
        });
        self.coordinator.join(&self.joining.group, self.joining.info.clone(), &counts.collect(), let_go)
    }

    fn partitions_of(&self, topic: &Relation) -> Vec<PartitionId> {
        let partitions = self.joining.shard.partitions().topic(topic.id);
        partitions.iter().flat_map(|all| all.iter()).map(|partition| partition.id()).collect()
    }

    fn range(&self, (topic, partition): TopicPartition) -> Option<(Offset, Offset)> {
        let view = self.joining.shard.partitions().get(topic, partition)?.view();
        Some((view.offset_start(), view.offset_end()))
    }

    /// Records where the group begins in partitions it has not read yet: of a topic that is new to it as `auto_offset_reset`
    /// says, of partitions that came later at their beginning, since all of their events are new.
    async fn begin_topics(&self) -> Result<()> {
        let known = self.joining.shard.group(&self.joining.group).unwrap_or_default();
        let mut partitions = Vec::new();
        for topic in &self.joining.topics {
            let is_known = known.offsets.keys().any(|(of, _)| *of == topic.id);
            for partition in self.partitions_of(topic) {
                let place = (topic.id, partition);
                if known.offsets.contains_key(&place) {
                    continue;
                }
                let Some((start, end)) = self.range(place) else { continue };
                let begin = match (is_known, self.joining.reset) {
                    (true, _) | (false, Reset::Earliest) => start,
                    (false, Reset::Latest) => end,
                    (false, Reset::None) => return Err(self.no_offset(topic)),
                };
                partitions.push(TakePartition { topic: topic.id, partition, taking: Taking::Begin(begin) });
            }
        }
        if partitions.is_empty() { Ok(()) } else { self.take(partitions).await.map(drop) }
    }

    fn no_offset(&self, topic: &Relation) -> SqlError {
        let group = &self.joining.group;
        let message = format!("consumer group \"{group}\" has no committed offset in \"{}\"", topic.name);
        SqlError::new(SqlState::NoCommittedOffset, message)
            .hint("say auto_offset_reset = 'earliest' or 'latest', or ALTER CONSUMER GROUP … RESET OFFSETS first")
    }

    async fn take(&self, partitions: Vec<TakePartition>) -> Result<Vec<crate::replication::GroupOffset>> {
        let take = GroupTake { group: self.joining.group.clone(), now: self.engine.clock().now(), partitions };
        loop {
            match self.joining.shard.take_partitions(take.clone()).await {
                Err(ReplicationError::GroupHeld(_)) => tokio::time::sleep(HELD_WAIT).await,
                taken => return taken.map_err(replication_error),
            }
        }
    }

    fn seat(&self) -> Option<Arc<Membership>> {
        self.membership.lock().clone()
    }

    /// Whether rows given under `era` are void.
    pub(crate) fn era(&self) -> u64 {
        self.progress.lock().era
    }

    /// Rows handed over, and those given and not handed over yet.
    pub(crate) fn rows_given(&self) -> u64 {
        let progress = self.progress.lock();
        let given: usize = progress.marks.iter().map(|mark| mark.rows).sum();
        progress.rows + (given - progress.of_first.min(given)) as u64
    }

    /// What to read next. Takes over partitions that the member was given, and gives up those it is to.
    ///
    /// # Errors
    /// SE004 when another took its place, SE003, and when the log cannot be written.
    pub(crate) async fn settle(&self) -> Result<Settled> {
        self.rejoin().await?;
        let Some(seat) = self.seat() else { return Ok(Settled::default()) };
        if !self.hear(&seat).await? {
            // Removed just now.
            return Ok(Settled { era: self.era(), ..Settled::default() });
        }
        if self.is_releasing() {
            self.commit().await?;
            self.release(&seat);
        }
        Ok(self.next_places())
    }

    /// Hears what the coordinator decided; false when the member was removed.
    async fn hear(&self, seat: &Membership) -> Result<bool> {
        let Some(moves) = seat.sync() else { return Ok(false) };
        if !moves.revoked.is_empty() {
            let released = self.progress.lock().let_go(&moves.revoked, self.joining.auto_commit);
            seat.release(released);
        }
        if !moves.granted.is_empty() {
            self.take_over(&moves.granted).await?;
        }
        Ok(true)
    }

    fn is_releasing(&self) -> bool {
        let progress = self.progress.lock();
        progress.begun.is_none() && progress.held.values().any(|held| held.is_revoked)
    }

    fn release(&self, seat: &Membership) {
        let released = self.progress.lock().released(self.joining.auto_commit);
        if !released.is_empty() {
            seat.release(released);
        }
    }

    fn next_places(&self) -> Settled {
        let mut progress = self.progress.lock();
        progress.is_reading = true;
        let of = |(place, held): (&TopicPartition, &Held)| (!held.is_revoked).then_some((*place, held.read));
        let mut places: Vec<(TopicPartition, Offset)> = progress.held.iter().filter_map(of).collect();
        if let Some(turn) = progress.turn {
            let first = places.partition_point(|(place, _)| *place <= turn);
            places.rotate_left(first);
        }
        Settled { places, era: progress.era, taken: progress.taken }
    }

    /// A member that was removed, because it took too long, joins again.
    async fn rejoin(&self) -> Result<()> {
        let Some(seat) = self.seat().filter(|seat| !seat.is_current()) else { return Ok(()) };
        if let Some(instance) = &self.joining.info.instance
            && seat.is_replaced(instance)
        {
            let group = &self.joining.group;
            let message = format!("another member of consumer group \"{group}\" has the instance id \"{instance}\"");
            return Err(SqlError::new(SqlState::GroupMemberFenced, message)
                .hint("give each member its own: SET group_instance_id"));
        }
        if self.is_in_transaction() {
            return Err(self.removed());
        }
        {
            let mut progress = self.progress.lock();
            progress.held.clear();
            progress.void();
        }
        self.begin_topics().await?;
        let seat = Arc::new(self.take_seat());
        *self.membership.lock() = Some(seat);
        Ok(())
    }

    /// Begins to read partitions, where the group is.
    async fn take_over(&self, granted: &[TopicPartition]) -> Result<()> {
        self.begin_topics().await?;
        let of = |(topic, partition): &TopicPartition| TakePartition {
            topic: *topic,
            partition: *partition,
            taking: Taking::Read,
        };
        let taken = match self.take(granted.iter().map(of).collect()).await {
            Ok(taken) => taken,
            Err(error) => {
                // Whoever asks next tries again.
                if let Some(seat) = self.seat() {
                    seat.release(granted.iter().copied());
                }
                return Err(error);
            }
        };
        self.progress.lock().taken += 1;
        for (place, taken) in granted.iter().zip(taken) {
            let read = self.in_log(*place, taken.offset)?;
            // What is committed is what the log says: the jump is committed with the next rows.
            let held = Held {
                epoch: taken.epoch,
                read,
                handed: read,
                asked: read,
                committed: taken.offset,
                is_revoked: false,
            };
            self.progress.lock().held.insert(*place, held);
        }
        Ok(())
    }

    /// Where to read on, if the event at `offset` was removed.
    ///
    /// # Errors
    /// SE003 where it is to go on nowhere.
    pub(crate) fn in_log(&self, place: TopicPartition, offset: Offset) -> Result<Offset> {
        let Some((start, end)) = self.range(place).filter(|(start, _)| offset < *start) else { return Ok(offset) };
        match self.joining.reset {
            Reset::Earliest => Ok(start),
            Reset::Latest => Ok(end),
            Reset::None => {
                let (group, partition) = (&self.joining.group, place.1);
                let name =
                    self.joining.topics.iter().find(|topic| topic.id == place.0).map(|topic| topic.name.to_string());
                let message = format!(
                    "the committed offset of consumer group \"{group}\" in \"{}\" was removed",
                    name.unwrap_or_default()
                );
                Err(SqlError::new(SqlState::NoCommittedOffset, message)
                    .detail(format!(
                        "offsets {offset} to {} of partition {partition}, by retention or TRUNCATE",
                        start.before()
                    ))
                    .hint("say auto_offset_reset = 'earliest' or 'latest', or ALTER CONSUMER GROUP … RESET OFFSETS"))
            }
        }
    }

    /// What was to be read was read, and given.
    pub(crate) fn rest(&self) {
        self.progress.lock().is_reading = false;
    }

    /// Events up to `after` were read, and gave so many rows.
    pub(crate) fn give(&self, place: TopicPartition, after: Offset, rows: usize, origins: RowOrigins) {
        let mut progress = self.progress.lock();
        progress.turn = Some(place);
        if let Some(held) = progress.held.get_mut(&place) {
            held.read = held.read.max(after);
        }
        progress.marks.push_back(Mark { place, rows, after, origins });
        // Events that gave no row are behind the client at once, unless it has rows before them to take.
        let has_taken = |held: &Held| held.handed == held.asked;
        let is_taken = progress.held.get(&place).is_some_and(has_taken);
        if progress.marks.iter().all(|mark| mark.rows == 0) {
            progress.hand_over(0, is_taken);
        }
    }

    /// What was handed over and what comes next go in a transaction of the client's: until that ends nothing is committed.
    pub(crate) fn begin(&self) {
        let mut progress = self.progress.lock();
        if progress.begun.is_none() {
            let handed = progress.held.iter().map(|(place, held)| (*place, held.handed)).collect();
            progress.begun = Some(Begun { handed, rows: progress.rows });
        }
    }

    /// Positions of what was fetched in the transaction so far, for a savepoint.
    pub(crate) fn mark(&self) -> ConsumerMark {
        let progress = self.progress.lock();
        ConsumerMark {
            handed: progress.held.iter().map(|(place, held)| (*place, held.handed)).collect(),
            rows: progress.rows,
        }
    }

    /// Goes back to a savepoint, within the transaction.
    pub(crate) fn back_to(&self, mark: &ConsumerMark) {
        let mut progress = self.progress.lock();
        for (place, held) in &mut progress.held {
            held.handed = mark.handed.get(place).copied().unwrap_or(held.committed);
        }
        progress.rows = mark.rows;
        progress.void();
    }

    /// What a transaction commits.
    ///
    /// # Errors
    /// SE004 when the member was removed.
    pub(crate) fn pending(&self) -> Result<(ShardId, Vec<GroupCommit>)> {
        if self.seat().is_some_and(|seat| !seat.is_current()) {
            return Err(self.removed());
        }
        Ok((self.joining.shard.id(), self.progress.lock().commits(&self.joining.group, true)))
    }

    /// SE004
    fn removed(&self) -> SqlError {
        let message = format!("this member was removed from consumer group \"{}\"", self.joining.group);
        SqlError::new(SqlState::GroupMemberFenced, message)
            .detail("it took longer than max_poll_interval to ask for more rows, or its instance id joined again")
            .hint("roll back, then fetch and work on the rows again")
    }

    /// The transaction ended: with these commits in the log, or without.
    pub(crate) fn end(&self, commits: Option<&[GroupCommit]>) {
        let mut progress = self.progress.lock();
        match commits {
            Some(commits) => {
                progress.committed(commits);
                progress.begun = None;
                progress.held.values_mut().for_each(|held| held.asked = held.handed);
            }
            None => progress.rewind(),
        }
        drop(progress);
        if let Some(seat) = self.seat() {
            self.release(&seat);
        }
    }

    /// Whether something that the client has taken is to be committed, and since when nothing was.
    pub(crate) fn due(&self) -> Option<Option<Instant>> {
        let progress = self.progress.lock();
        let is_dirty = progress.held.values().any(|held| held.asked != held.committed);
        (self.joining.auto_commit && is_dirty && progress.begun.is_none()).then_some(progress.committed_at)
    }

    /// Commits what the client has taken, if that is done for it.
    ///
    /// # Errors
    /// When the log cannot be written.
    pub(crate) async fn commit(&self) -> Result<()> {
        match self.joining.auto_commit {
            true => self.commit_now(false).await,
            false => Ok(()),
        }
    }

    /// Commits what the client has taken, or `is_all` that was handed over.
    ///
    /// # Errors
    /// When the log cannot be written.
    pub(crate) async fn commit_now(&self, is_all: bool) -> Result<()> {
        let _one = self.committing.lock().await;
        loop {
            let commits = {
                let mut progress = self.progress.lock();
                progress.committed_at = Some(env::instant());
                progress.commits(&self.joining.group, is_all)
            };
            if commits.is_empty() {
                return Ok(());
            }
            let now = self.engine.clock().now();
            let append = Append { commits: commits.clone(), now, durability: Durability::Sync, ..Append::default() };
            match self.joining.shard.append(append).await {
                Ok(_) => {
                    self.progress.lock().committed(&commits);
                    return Ok(());
                }
                Err(ReplicationError::Fenced { topic, partition, .. }) => self.lose((topic, partition)),
                Err(ReplicationError::GroupHeld(_)) => tokio::time::sleep(HELD_WAIT).await,
                Err(error) => return Err(replication_error(error)),
            }
        }
    }

    /// Somebody else took a partition, or its offset was reset: it is taken anew, if it is still the member's.
    fn lose(&self, place: TopicPartition) {
        let mut progress = self.progress.lock();
        progress.held.remove(&place);
        progress.void();
        drop(progress);
        if let Some(seat) = self.seat() {
            seat.release([place]);
        }
    }

    /// Gives up every partition: they are taken anew, if they are still the member's.
    pub(crate) fn give_up(&self) {
        let mut progress = self.progress.lock();
        let held = std::mem::take(&mut progress.held);
        progress.void();
        drop(progress);
        if let Some(seat) = self.seat() {
            seat.release(held.into_keys());
        }
    }

    /// The shard of its topics.
    pub(crate) fn shard(&self) -> ShardId {
        self.joining.shard.id()
    }

    /// How rows reach the client.
    pub(crate) fn delivery(&self) -> Delivery {
        self.joining.delivery
    }

    /// Whether a transaction of the client's goes on that rows were fetched in.
    pub(crate) fn is_in_transaction(&self) -> bool {
        self.progress.lock().begun.is_some()
    }

    /// The member waits for rows, or its client is at work on some.
    pub(crate) fn set_waiting(&self, is_waiting: bool) {
        if let Some(seat) = self.seat() {
            seat.set_waiting(is_waiting);
        }
    }

    /// Completes when something changed in the group for this member.
    pub(crate) async fn changed(&self) {
        match self.seat() {
            Some(seat) => seat.changed().await,
            None => std::future::pending().await,
        }
    }

    /// Topics may have more partitions.
    pub(crate) fn grow(&self) {
        let Some(seat) = self.seat() else { return };
        for topic in &self.joining.topics {
            seat.grow(topic.id, self.partitions_of(topic).len() as u32);
        }
    }
}

/// Where a member was when a savepoint was set.
#[derive(Debug, Clone)]
pub(crate) struct ConsumerMark {
    handed: BTreeMap<TopicPartition, Offset>,
    rows: u64,
}

/// What whoever delivers the rows of a member tells it.
#[derive(Debug, Clone)]
pub struct Receipts {
    consumer: Arc<Consumer>,
    era: u64,
}

impl Receipts {
    pub(crate) fn new(consumer: Arc<Consumer>) -> Self {
        let era = consumer.era();
        Self { consumer, era }
    }

    pub(crate) fn consumer(&self) -> &Arc<Consumer> {
        &self.consumer
    }

    /// The client asks for rows: it has taken those it was handed. True when rows that were given and not handed over are
    /// void: they are to be forgotten, the stream gives them again where they are still this member's.
    ///
    /// # Errors
    /// When that cannot be committed.
    pub async fn ask(&mut self) -> Result<bool> {
        self.consumer.ask().await?;
        let era = self.consumer.era();
        Ok(std::mem::replace(&mut self.era, era) != era)
    }

    /// Rows were handed over to the client, who will ask for more when it has taken them.
    pub fn hand_over(&self, rows: usize) {
        self.consumer.progress.lock().hand_over(rows, false);
    }

    /// Rows are on the socket: nothing more is heard of them.
    pub fn written(&self, rows: usize) {
        self.consumer.progress.lock().hand_over(rows, true);
    }

    /// The client has all rows it will take.
    ///
    /// # Errors
    /// When that cannot be committed.
    pub async fn finish(&self) -> Result<()> {
        self.consumer.take_handed();
        self.consumer.commit().await
    }
}

impl Consumer {
    /// What was handed over was taken, unless in a transaction.
    fn take_handed(&self) {
        let mut progress = self.progress.lock();
        if progress.begun.is_none() {
            progress.held.values_mut().for_each(|held| held.asked = held.handed);
        }
        progress.rows_asked = progress.rows;
    }

    /// What was handed over since the client last asked did not reach it: it is read again.
    pub(crate) fn take_back(&self) {
        let mut progress = self.progress.lock();
        if progress.begun.is_some() {
            // The transaction failed, and goes back further.
            return;
        }
        progress.held.values_mut().for_each(|held| held.handed = held.asked);
        progress.rows = progress.rows_asked;
        progress.void();
    }

    /// The client asks for the next rows.
    async fn ask(&self) -> Result<()> {
        self.set_waiting(true);
        self.take_handed();
        self.commit().await?;
        // Rows of a partition that is to be given up go back; those of others with them, which are read again.
        let is_in = match self.seat() {
            Some(seat) => seat.is_current() && self.hear(&seat).await?,
            None => false,
        };
        let mut progress = self.progress.lock();
        let is_revoked = |mark: &Mark| progress.held.get(&mark.place).is_none_or(|held| held.is_revoked);
        if !is_in || progress.marks.iter().any(is_revoked) {
            progress.void();
        }
        drop(progress);
        if let Some(seat) = self.seat() {
            self.release(&seat);
        }
        Ok(())
    }
}
