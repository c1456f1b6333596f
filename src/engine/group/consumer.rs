//! A member's progress: what it has read, handed over, been asked to go on from, and committed.
//!
//! Owns the order of these, by partition: rows are committed once the client has asked for the next ones, or when they are
//! on the socket, or with a transaction; a partition is given up only when all that was handed over of it is committed.
//! Leaves out reading (`push`), delivery (server) and who is a member (`coordinator`). Shared between a subscription, who
//! delivers its rows, and the transaction they were fetched in; the member leaves with the last of them.

use super::TopicPartition;
use super::coordinator::{Coordinator, LetGo, MemberInfo, Membership};
use super::progress::{Begun, ConsumerMark, Held, Mark, Progress};
use super::receipts::commit_died;
use crate::engine::push::dropped;
use crate::engine::{Engine, Result, replication_error};
use crate::env;
use crate::replication::{
    GroupCommit, GroupOffset, GroupPosition, GroupTake, ReplicationError, Shard, TakePartition, Taking,
};
use millstream_catalog::Relation;
use millstream_catalog::model::{Durability, GroupName, Offset, PartitionId, RowCount, ShardId, SqlState};
use millstream_sql::SqlError;
use millstream_sql::stream::RowOrigins;
use parking_lot::Mutex;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

mod commit;

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
    /// How often that is done at most, if the member says so.
    pub(crate) commit_interval: Option<Duration>,
    /// How many rows it reads, if not without end.
    pub(crate) limit: Option<RowCount>,
    /// What its commits outside of transactions survive; `None` for what the topics' events do.
    pub(crate) durability: Option<Durability>,
    pub(crate) info: MemberInfo,
}

/// What a member reads next.
#[derive(Debug, Clone, Default)]
pub(crate) struct Settled {
    /// Partitions and positions, the one whose turn it is first.
    pub(crate) places: Vec<(TopicPartition, GroupPosition)>,
    /// Counts how often what was read became void: state made of it must be made anew.
    pub(crate) era: u64,
    /// Counts how often partitions were taken, which may be read from before what was read of others.
    pub(crate) taken: u64,
}

/// Partitions that are on their way to a member: if they do not arrive, they go back.
struct Returning {
    seat: Option<Arc<Membership>>,
    places: Vec<TopicPartition>,
}

impl Drop for Returning {
    fn drop(&mut self) {
        if let Some(seat) = self.seat.take().filter(|_| !self.places.is_empty()) {
            seat.release(std::mem::take(&mut self.places));
        }
    }
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
        // Until it asks for rows it is not known to be alive.
        consumer.set_waiting(false);
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
            let is_known = known.offsets.iter().any(|((of, _), offset)| *of == topic.id && offset.is_begun());
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
            .hint(format!(
                "say auto_offset_reset = 'earliest' or 'latest', or ALTER CONSUMER GROUP {group} RESET OFFSETS FOR TOPIC {} TO … first",
                topic.name
            ))
    }

    async fn take(&self, partitions: Vec<TakePartition>) -> Result<Vec<GroupOffset>> {
        let take = GroupTake { group: self.joining.group.clone(), now: self.engine.clock().now(), partitions };
        loop {
            match self.joining.shard.take_partitions(take.clone()).await {
                Err(ReplicationError::GroupHeld(_)) => tokio::time::sleep(HELD_WAIT).await,
                Err(ReplicationError::NoTopic(id) | ReplicationError::NoPartition(id, _)) => {
                    let topic = self.joining.topics.iter().find(|topic| topic.id == id);
                    return Err(
                        topic.map_or_else(|| replication_error(ReplicationError::NoTopic(id)), |topic| dropped(topic))
                    );
                }
                taken => return taken.map_err(replication_error),
            }
        }
    }

    fn seat(&self) -> Option<Arc<Membership>> {
        self.membership.lock().clone()
    }

    /// Counts how often rows that were given became void.
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
    pub(crate) async fn settle(self: &Arc<Self>) -> Result<Settled> {
        self.rest();
        // Removed meanwhile, it joins again.
        let seat = loop {
            self.rejoin().await?;
            match self.seat() {
                Some(seat) if self.hear(&seat).await? && seat.is_current() => break seat,
                Some(_) => {}
                None => return Ok(Settled::default()),
            }
        };
        if self.is_releasing() {
            // By itself: nobody may be there to carry it on, and others wait for it.
            if !self.is_in_transaction() {
                let consumer = Arc::clone(self);
                let commit = env::spawn("commit-offsets", async move { consumer.commit().await });
                commit.await.unwrap_or_else(|_| Err(commit_died()))?;
            }
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
            // In a box, as all that a member seldom does: it is in no future that waits.
            Box::pin(self.take_over(&moves.granted)).await?;
        }
        Ok(true)
    }

    /// Its client wants no more of it, or does again.
    pub(crate) fn set_closed(&self, is_closed: bool) {
        self.progress.lock().is_closed = is_closed;
    }

    /// Its subscription ended. What a transaction fetched is the transaction's until that ends; without any it leaves.
    pub(crate) fn close(&self) {
        self.set_closed(true);
        self.leave_if_done();
    }

    /// Its subscription failed: it leaves, once what its client has taken is committed. In a transaction that it is part of it
    /// stays until it is closed, or that ends.
    pub(crate) async fn quit(&self) {
        if !self.is_in_transaction() {
            self.commit_rest().await;
            let seat = self.membership.lock().take();
            drop(seat);
        }
    }

    /// A member leaves with the last rows that it or its transaction has; before it is closed, once all are committed that
    /// its LIMIT lets through.
    fn leave_if_done(&self) {
        let is_done = {
            let progress = self.progress.lock();
            let is_left = progress.begun.is_some() && progress.is_closed && !progress.is_transaction_waiting();
            is_left || self.joining.limit.is_some_and(|limit| progress.is_spent(limit))
        };
        let seat = if is_done { self.membership.lock().take() } else { None };
        drop(seat);
    }

    /// Whether rows that a transaction of its client's fetched are all that keeps it in this group.
    pub(crate) fn is_left_in(&self, group: &GroupName) -> bool {
        let progress = self.progress.lock();
        self.joining.group == *group && progress.is_closed && progress.is_transaction_waiting()
    }

    fn is_releasing(&self) -> bool {
        self.progress.lock().held.values().any(|held| held.is_revoked)
    }

    fn release(&self, seat: &Membership) {
        let released = self.progress.lock().let_go(&[], self.joining.auto_commit);
        if !released.is_empty() {
            seat.release(released);
        }
    }

    fn next_places(&self) -> Settled {
        let mut progress = self.progress.lock();
        progress.is_reading = true;
        let of = |(place, held): (&TopicPartition, &Held)| {
            let rows = if held.read == held.handed.offset { held.handed.rows } else { 0 };
            let is_read = !held.is_revoked || progress.must_keep(held);
            is_read.then_some((*place, GroupPosition { offset: held.read, rows }))
        };
        let mut places: Vec<(TopicPartition, GroupPosition)> = progress.each().filter_map(of).collect();
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
        self.progress.lock().clear(self.joining.auto_commit);
        self.leave_if_done();
        if self.seat().is_none() {
            return Ok(());
        }
        Box::pin(self.begin_topics()).await?;
        let seat = Arc::new(self.take_seat());
        *self.membership.lock() = Some(seat);
        Ok(())
    }

    /// Begins to read partitions, where the group is. Those that it does not come to, because it fails or nobody carries it
    /// on, are given back.
    async fn take_over(&self, granted: &[TopicPartition]) -> Result<()> {
        let mut returning = Returning { seat: self.seat(), places: granted.to_vec() };
        let of = |(topic, partition): &TopicPartition| TakePartition {
            topic: *topic,
            partition: *partition,
            taking: Taking::Read,
        };
        let taken = loop {
            self.begin_topics().await?;
            match self.take(granted.iter().map(of).collect()).await {
                // The group was dropped in between.
                Err(error) if error.sqlstate == SqlState::NoCommittedOffset => {}
                taken => break taken?,
            }
        };
        let held = |(place, taken): (&TopicPartition, GroupOffset)| {
            let read = self.in_log(*place, taken.position.offset)?;
            // What is committed is what the log says: the jump is committed with the next rows.
            let is_there = read == taken.position.offset;
            let handed = if is_there { taken.position } else { read.into() };
            let (epoch, committed) = (taken.epoch, taken.position);
            Ok((*place, Held { epoch, clean: handed, read, handed, asked: handed, committed, is_revoked: false }))
        };
        let held = granted.iter().zip(taken).map(held).collect::<Result<Vec<_>>>()?;
        {
            let mut progress = self.progress.lock();
            // Removed meanwhile, it may not read what others read.
            if !returning.seat.as_ref().is_some_and(|seat| seat.is_current()) {
                return Ok(());
            }
            for (place, held) in held {
                progress.forget(place);
                progress.held.insert(place, Box::new(held));
            }
            progress.taken += 1;
            progress.stirred.notify_one();
            returning.places.clear();
        }
        // What was revoked meanwhile was not there to be given up.
        returning.seat.iter().for_each(|seat| seat.look_again());
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

    /// Events up to `after` were read under `era`, and gave the rows from `start` on of those that `origins` knows. False
    /// when they are void by now.
    pub(crate) fn give(
        &self,
        era: u64,
        (place, after): (TopicPartition, GroupPosition),
        rows: Range<usize>,
        origins: RowOrigins,
    ) -> bool {
        let mut progress = self.progress.lock();
        if progress.era != era || !progress.held.contains_key(&place) {
            return false;
        }
        progress.turn = Some(place);
        if let Some(held) = progress.held.get_mut(&place) {
            held.read = held.read.max(after.offset);
        }
        progress.marks.push_back(Mark { place, start: rows.start, rows: rows.len(), after, origins });
        // Events that gave no row are behind the client at once, unless it has rows before them to take.
        let is_taken = progress.held.get(&place).is_some_and(|held| held.handed == held.asked);
        if progress.marks.iter().all(|mark| mark.rows == 0) {
            progress.hand_over(0, is_taken);
        }
        true
    }

    /// What was handed over and what comes next go in a transaction of the client's: until that ends nothing is committed.
    pub(crate) fn begin(&self) {
        let mut progress = self.progress.lock();
        if progress.begun.is_none() {
            let handed = progress.held.iter().map(|(place, held)| (*place, held.handed)).collect();
            progress.begun = Some(Begun { handed, rows: progress.rows, has_lost: false });
        }
    }

    /// Positions of what was fetched in the transaction so far, for a savepoint.
    pub(crate) fn mark(&self) -> ConsumerMark {
        let progress = self.progress.lock();
        ConsumerMark {
            handed: progress.held.iter().map(|(place, held)| (*place, (held.epoch, held.handed))).collect(),
            rows: progress.rows,
        }
    }

    /// Goes back to a savepoint, within the transaction.
    pub(crate) fn back_to(&self, mark: &ConsumerMark) {
        let mut progress = self.progress.lock();
        for (place, held) in &mut progress.held {
            let of = mark.handed.get(place).filter(|(epoch, _)| *epoch == held.epoch);
            held.handed = of.map_or(held.committed, |(_, handed)| *handed);
        }
        progress.rows = mark.rows;
        progress.void();
        drop(progress);
        if let Some(seat) = self.seat() {
            self.release(&seat);
        }
        self.leave_if_done();
    }

    /// What a transaction commits.
    ///
    /// # Errors
    /// SE004 when the member was removed.
    pub(crate) fn pending(&self) -> Result<(ShardId, Vec<GroupCommit>)> {
        let has_lost = self.progress.lock().begun.as_ref().is_some_and(|begun| begun.has_lost);
        if has_lost || self.seat().is_some_and(|seat| !seat.is_current()) {
            return Err(self.removed());
        }
        self.check_uncommitted()?;
        Ok((self.joining.shard.id(), self.progress.lock().commits(&self.joining.group, true)))
    }

    /// SE004, once, when rows that the client is to commit itself went to another member before it did.
    fn check_uncommitted(&self) -> Result<()> {
        if !std::mem::take(&mut self.progress.lock().has_uncommitted) {
            return Ok(());
        }
        let group = &self.joining.group;
        let message = format!("a partition of consumer group \"{group}\" was given up before its rows were committed");
        let hint = match self.is_in_transaction() {
            true => "roll back, then fetch and work on the rows again",
            false => {
                "what this member has now can be committed; commit before the next FETCH, which gives up partitions"
            }
        };
        Err(SqlError::new(SqlState::GroupMemberFenced, message)
            .detail("rows that were fetched of it since the last commit are delivered again, to whoever reads it now")
            .hint(hint))
    }

    /// SE004
    fn removed(&self) -> SqlError {
        let message = format!("this member was removed from consumer group \"{}\"", self.joining.group);
        let hint = match self.is_in_transaction() {
            true => "roll back, then fetch and work on the rows again",
            false => "fetch again: rows that were not committed may be with other members",
        };
        SqlError::new(SqlState::GroupMemberFenced, message)
            .detail("it took longer than max_poll_interval to ask for more rows, or its instance id joined again")
            .hint(hint)
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
        self.leave_if_done();
    }

    /// Gives up every partition: they are taken anew, if they are still the member's.
    pub(crate) fn give_up(&self) {
        let mut progress = self.progress.lock();
        let places = progress.clear(self.joining.auto_commit);
        places.iter().for_each(|place| progress.forget(*place));
        drop(progress);
        if let Some(seat) = self.seat() {
            seat.release(places);
        }
    }

    /// How many rows it reads, if not without end.
    pub(crate) fn limit(&self) -> Option<RowCount> {
        self.joining.limit
    }

    /// The shard of its topics.
    pub(crate) fn shard(&self) -> ShardId {
        self.joining.shard.id()
    }

    /// How rows reach the client.
    pub(crate) fn delivery(&self) -> Delivery {
        self.joining.delivery
    }

    /// Rows go to the client, who takes them later; false when they are void.
    pub(super) fn hand_over(&self, rows: usize) -> bool {
        self.progress.lock().hand_over(rows, false)
    }

    /// Whether so many rows were given and not handed over.
    pub(super) fn has_given(&self, rows: usize) -> bool {
        self.progress.lock().has_given(rows)
    }

    /// What was given and not handed over is given again.
    pub(super) fn void(&self) {
        self.progress.lock().void();
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

    /// Completes when something changed in the group for this member, or what it is to read did.
    pub(crate) async fn changed(&self) {
        let stirred = Arc::clone(&self.progress.lock().stirred);
        let seat = self.seat();
        let heard = async {
            match &seat {
                Some(seat) => seat.changed().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = stirred.notified() => {}
            () = heard => {}
        }
    }

    /// Topics may have more partitions.
    pub(crate) fn grow(&self) {
        let Some(seat) = self.seat() else { return };
        for topic in &self.joining.topics {
            seat.grow(topic.id, self.partitions_of(topic).len() as u32);
        }
    }

    /// What was handed over was taken, unless in a transaction.
    pub(super) fn take_handed(&self) {
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
        drop(progress);
        if let Some(seat) = self.seat() {
            self.release(&seat);
        }
    }

    /// The client asks for the next rows, and has taken those before: moves what the coordinator says.
    pub(super) async fn ask(&self) -> Result<()> {
        let catalog = self.engine.catalog();
        if let Some(gone) = self.joining.topics.iter().find(|topic| catalog.relation_by_id(topic.id).is_none()) {
            return Err(dropped(gone));
        }
        // Before a transaction begins in which it may not: what is fetched in one is read by the same member.
        Box::pin(self.rejoin()).await?;
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
        self.leave_if_done();
        Ok(())
    }
}
