//! What waits for a shard and when the next entry is formed: group commit without a timer.
//!
//! Owns the queue and the decision, as pure state under a lock of the appender's. An entry is formed at once
//! when none is on its way to the disk; while one is, whatever arrives forms the next, so under load
//! most statements of one sync share one entry. Enough bytes for a full entry do not wait, to keep the disk
//! busy under bulk loads. On a slow disk an entry waits a little for those whose last requests were just answered: else
//! they and the others would take turns, and each wait for two syncs. Leaves out encoding and proposing (`appender`).

use super::entry::Change;
use super::error::ReplicationError;
use super::raft::Reply;
use super::types::{Append, Checkpoint, Decider, GroupTake, PartitionWrite, Step};
use crate::storage::Patience;
use millstream_catalog::Command;
use millstream_catalog::model::limit::ENTRY_BYTES_TARGET;
use millstream_catalog::model::{Durability, StageId, TransactionId};
use std::collections::VecDeque;
use std::time::Instant;
use tokio::sync::{OwnedSemaphorePermit, oneshot};

/// Entries proposed and not yet committed.
const UNCOMMITTED_MAX: usize = 4;
/// Entries proposed and not yet applied; apply may lag behind the disk, but not without bound.
const IN_FLIGHT_MAX: usize = 16;
/// Entries in a row, each of one small request with nothing waiting behind it, after which requests count as coming
/// one at a time.
const ALONE_ENTRIES: u32 = 8;
/// The most bytes of such a request.
const ALONE_BYTES_MAX: usize = 64 << 10;

/// What one caller wants done.
#[derive(Debug)]
pub(crate) enum Request {
    Append(Append),
    /// Rows of a transaction; `None` begins one.
    Stage(Option<StageId>, Vec<PartitionWrite>),
    Abort(StageId),
    /// As `Abort`, unless it is prepared.
    GiveUp(StageId),
    Prepare(Decider, Append),
    Commit(StageId),
    Decide(TransactionId),
    Forget(TransactionId),
    Step(Step),
    Checkpoint(Checkpoint),
    Take(GroupTake),
    Change(Change),
}

/// Which requests may share an entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Company {
    /// None: a change of definitions, and what is large.
    None,
    /// All but [`Company::Committing`]: it has conditions, which do not see rows that were staged.
    Conditional,
    /// All but [`Company::Conditional`].
    Committing,
    /// All.
    Any,
}

impl Request {
    fn company(&self) -> Company {
        match self {
            Self::Change(_) | Self::Append(Append { staged: Some(_), .. }) => Company::None,
            // What it holds is known to later entries.
            Self::Prepare(_, append) if append.is_conditional() || append.staged.is_some() => Company::None,
            Self::Append(append) if append.is_conditional() => Company::Conditional,
            Self::Take(_) => Company::Conditional,
            Self::Commit(_) => Company::Committing,
            _ => Company::Any,
        }
    }

    /// When it counts as stored. Definitions and saved states always wait for the disk, and so do rows that were staged,
    /// and transactions over shards: others are made of them, or files.
    pub(crate) fn durability(&self) -> Durability {
        match self {
            Self::Append(Append { staged: None, durability, .. }) => *durability,
            Self::Step(step) => step.durability,
            _ => Durability::Sync,
        }
    }

    /// Whether files are not needed any more after it, from the next seal on.
    pub(crate) fn frees_files(&self) -> bool {
        use Change::{DropTopic, MoveStarts, Rewrite, Truncate};
        matches!(
            self,
            Self::Abort(_) | Self::GiveUp(_) | Self::Change(DropTopic(_) | MoveStarts(_) | Rewrite(_) | Truncate(_))
        )
    }

    /// Whether it waits for room for its bytes: not what gives room back, or ends what others wait for.
    pub(crate) fn takes_room(&self) -> bool {
        !self.frees_space() && !matches!(self, Self::Decide(_))
    }

    /// Whether space comes back by it, or by what follows it, or others wait for it to end what is decided: it goes on when
    /// the disk is full.
    pub(crate) fn frees_space(&self) -> bool {
        self.frees_files()
            || match self {
                Self::Commit(_) | Self::Forget(_) => true,
                Self::Change(Change::Seal | Change::DropQuery(_) | Change::EndQuery(_) | Change::DropGroups(..)) => {
                    true
                }
                Self::Change(Change::Catalog(command)) => matches!(**command, Command::DropRelation { .. }),
                _ => false,
            }
    }
}

impl Company {
    fn admits(self, other: Self) -> bool {
        match self {
            Self::None => false,
            Self::Conditional => !matches!(other, Self::None | Self::Committing),
            Self::Committing => !matches!(other, Self::None | Self::Conditional),
            Self::Any => other != Self::None,
        }
    }
}

/// A request that waits, and who waits for it.
#[derive(Debug)]
pub(crate) struct Waiting {
    pub(crate) request: Request,
    pub(crate) bytes: usize,
    pub(crate) reply: ReplySender,
}

/// Answers one caller, and gives its share of the queue back.
#[derive(Debug)]
pub(crate) struct ReplySender {
    pub(crate) sender: oneshot::Sender<Result<Reply, ReplicationError>>,
    /// Held until the answer: the request's bytes are in memory until then.
    pub(crate) _permits: (OwnedSemaphorePermit, Option<OwnedSemaphorePermit>),
}

impl ReplySender {
    pub(crate) fn send(self, reply: Result<Reply, ReplicationError>) {
        // A caller that went away does not want the answer.
        let _ = self.sender.send(reply);
    }
}

/// The queue of one shard.
#[derive(Debug, Default)]
pub(crate) struct Flow {
    waiting: VecDeque<Waiting>,
    waiting_bytes: usize,
    /// One entry at a time is formed, so that entries are proposed in the order of their requests.
    is_forming: bool,
    uncommitted: usize,
    in_flight: usize,
    /// Entries in a row that were of one small request.
    alone: u32,
    gather: Gather,
    is_closed: bool,
}

/// Those who come back once they are answered.
#[derive(Debug, Default)]
struct Gather {
    patience: Patience,
    /// Requests of the last entry, and when it was formed.
    last: Option<(usize, Instant)>,
    /// Requests that the next entry waits for, and until when.
    expected: Option<(usize, Instant)>,
}

impl Gather {
    /// The last entry is committed, and so many requests wait.
    fn committed(&mut self, waiting: usize, now: Instant) {
        let Some((count, since)) = self.last.take() else { return };
        self.patience.took(now.saturating_duration_since(since));
        let time = self.patience.time();
        if !time.is_zero() && count + waiting > 1 {
            self.expected = Some((count + waiting, now + time));
        }
    }

    /// An entry of so many requests is formed.
    fn taken(&mut self, count: usize, now: Instant) {
        if self.expected.take().is_some_and(|(expected, _)| count < expected) {
            self.patience.waited_in_vain();
        }
        self.last = Some((count, now));
    }
}

impl Flow {
    /// Adds a request at the end. When the queue is closed it is dropped, and whoever waits sees that.
    pub(crate) fn push(&mut self, waiting: Waiting) {
        if self.is_closed {
            return;
        }
        self.waiting_bytes += waiting.bytes;
        self.waiting.push_back(waiting);
    }

    /// Whether an entry may be formed at `now`.
    pub(crate) fn is_ready(&self, now: Instant) -> bool {
        if self.is_forming || self.waiting.is_empty() || self.in_flight >= IN_FLIGHT_MAX {
            return false;
        }
        let is_full = self.waiting_bytes >= ENTRY_BYTES_TARGET.as_usize() && self.uncommitted < UNCOMMITTED_MAX;
        is_full || (self.uncommitted == 0 && self.gathering(now).is_none())
    }

    /// Until when the next entry waits for more requests, if it does.
    pub(crate) fn gathering(&self, now: Instant) -> Option<Instant> {
        let (expected, until) = self.gather.expected?;
        // Others than rows are not held up.
        let is_of_rows = self.waiting.back().is_some_and(|last| matches!(last.request, Request::Append(_)));
        (is_of_rows && self.waiting.len() < expected && now < until).then_some(until)
    }

    /// The requests of the next entry, if one may be formed at `now`. [`Flow::formed`] must follow.
    pub(crate) fn take(&mut self, now: Instant) -> Option<Vec<Waiting>> {
        if !self.is_ready(now) {
            return None;
        }
        let target = ENTRY_BYTES_TARGET.as_usize();
        let mut taken = Vec::new();
        let mut bytes = 0;
        let mut company = Company::Any;
        while let Some(next) = self.waiting.front() {
            let of_next = next.request.company();
            if !taken.is_empty() && (!company.admits(of_next) || bytes + next.bytes > target) {
                break;
            }
            if of_next != Company::Any {
                company = of_next;
            }
            bytes += next.bytes;
            taken.extend(self.waiting.pop_front());
        }
        self.waiting_bytes = self.waiting_bytes.saturating_sub(bytes);
        let is_alone = taken.len() == 1 && self.waiting.is_empty() && bytes <= ALONE_BYTES_MAX;
        self.alone = if is_alone { self.alone.saturating_add(1) } else { 0 };
        self.gather.taken(taken.len(), now);
        self.is_forming = true;
        self.uncommitted += 1;
        self.in_flight += 1;
        Some(taken)
    }

    /// Whether requests come one at a time: there is nothing to form while an entry is on its way.
    pub(crate) fn is_alone(&self) -> bool {
        self.alone >= ALONE_ENTRIES
    }

    /// The taken entry is proposed, or failed.
    pub(crate) fn formed(&mut self) {
        self.is_forming = false;
    }
    /// An entry is on a quorum at `now`; whether something waits for that.
    pub(crate) fn committed(&mut self, now: Instant) -> bool {
        self.uncommitted = self.uncommitted.saturating_sub(1);
        if self.uncommitted == 0 {
            self.gather.committed(self.waiting.len(), now);
        }
        !self.waiting.is_empty()
    }
    /// An entry is answered; whether something waits for that.
    pub(crate) fn completed(&mut self) -> bool {
        self.in_flight = self.in_flight.saturating_sub(1);
        !self.waiting.is_empty()
    }
    /// Refuses further requests, and gives back those that wait.
    pub(crate) fn close(&mut self) -> Vec<Waiting> {
        self.is_closed = true;
        self.waiting_bytes = 0;
        self.waiting.drain(..).collect()
    }
    /// Requests that wait, and their bytes.
    pub(crate) fn depth(&self) -> (usize, usize) {
        (self.waiting.len(), self.waiting_bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::env;
    use crate::replication::types::ProducerClaim;
    use millstream_catalog::model::{ProducerId, RowCount, Sequence, TopicId};
    use std::sync::Arc;
    use std::time::Duration;
    use tokio::sync::Semaphore;

    fn waiting(request: Request, bytes: usize) -> Waiting {
        let permit = Arc::new(Semaphore::new(1)).try_acquire_owned().expect("free permit");
        let sender = oneshot::channel().0;
        Waiting { request, bytes, reply: ReplySender { sender, _permits: (permit, None) } }
    }
    fn append(bytes: usize) -> Waiting {
        waiting(Request::Append(Append::default()), bytes)
    }
    fn taken(flow: &mut Flow) -> Option<usize> {
        flow.take(env::instant()).map(|taken| {
            flow.formed();
            taken.len()
        })
    }

    #[test]
    fn the_first_goes_at_once_and_what_follows_shares_the_next_entry() {
        let mut flow = Flow::default();
        assert!(flow.take(env::instant()).is_none());
        flow.push(append(10));
        assert_eq!(taken(&mut flow), Some(1));
        flow.push(append(10));
        flow.push(append(10));
        // Two arrived while the first was on its way.
        assert_eq!(taken(&mut flow), None);
        assert!(flow.committed(env::instant()));
        assert_eq!(taken(&mut flow), Some(2));
        assert!(!flow.committed(env::instant()));
    }

    #[test]
    fn a_full_entry_does_not_wait_but_only_so_many_are_in_flight() {
        let mut flow = Flow::default();
        let full = ENTRY_BYTES_TARGET.as_usize();
        for _ in 0..40 {
            flow.push(append(full));
        }
        for _ in 0..UNCOMMITTED_MAX {
            assert_eq!(taken(&mut flow), Some(1));
        }
        assert_eq!(taken(&mut flow), None);
        for _ in UNCOMMITTED_MAX..IN_FLIGHT_MAX {
            flow.committed(env::instant());
            assert_eq!(taken(&mut flow), Some(1));
        }
        flow.committed(env::instant());
        assert_eq!(taken(&mut flow), None);
        assert!(flow.completed());
        assert_eq!(taken(&mut flow), Some(1));
    }

    #[test]
    fn a_change_is_alone_and_keeps_its_place() {
        let mut flow = Flow::default();
        flow.push(append(1));
        flow.push(append(1));
        flow.push(waiting(Request::Change(Change::DropTopic(TopicId::new(1))), 1));
        flow.push(append(1));
        for expected in [2, 1, 1] {
            assert_eq!(taken(&mut flow), Some(expected));
            flow.committed(env::instant());
            flow.completed();
        }
    }

    #[test]
    fn conditions_and_commits_do_not_share_an_entry() {
        let commit = || waiting(Request::Commit(StageId::new(1)), 1);
        let claim = ProducerClaim {
            producer: ProducerId::new("a".to_owned()).unwrap(),
            topic: TopicId::new(1),
            sequence: Sequence::new(0),
            rows: RowCount::new(1),
        };
        let claimed = || waiting(Request::Append(Append { claims: vec![claim.clone()], ..Append::default() }), 1);
        let mut flow = Flow::default();
        for request in [append(1), claimed(), append(1), claimed(), commit(), append(1), commit(), claimed()] {
            flow.push(request);
        }
        for expected in [4, 3, 1] {
            assert_eq!(taken(&mut flow), Some(expected));
            flow.committed(env::instant());
            flow.completed();
        }
    }

    #[test]
    fn one_entry_is_formed_at_a_time_and_none_after_closing() {
        let mut flow = Flow::default();
        let full = ENTRY_BYTES_TARGET.as_usize();
        flow.push(append(full));
        flow.push(append(full));
        assert!(flow.take(env::instant()).is_some());
        assert!(flow.take(env::instant()).is_none());
        flow.formed();
        assert_eq!(flow.close().len(), 1);
        assert!(flow.take(env::instant()).is_none());
        flow.push(append(1));
        assert_eq!(flow.depth(), (0, 0));
    }

    #[test]
    fn on_a_slow_disk_an_entry_waits_for_those_who_were_answered() {
        let mut flow = Flow::default();
        let mut now = env::instant();
        let millis = Duration::from_millis;
        let taken = |flow: &mut Flow, now: Instant| {
            let taken = flow.take(now).map(|taken| taken.len());
            flow.formed();
            taken
        };
        // Until the disk is known to be slow nobody waits.
        for _ in 0..8 {
            flow.push(append(1));
            assert_eq!(taken(&mut flow, now), Some(1));
            now += millis(40);
            flow.committed(now);
            flow.completed();
        }
        // Two clients of three come while the first one's entry is on its way.
        flow.push(append(1));
        assert_eq!(taken(&mut flow, now), Some(1));
        flow.push(append(1));
        flow.push(append(1));
        now += millis(40);
        flow.committed(now);
        flow.completed();
        assert_eq!((taken(&mut flow, now), flow.gathering(now)), (None, Some(now + millis(20))));
        flow.push(append(1));
        assert_eq!((flow.gathering(now), taken(&mut flow, now)), (None, Some(3)));
        // One of them goes away: the others wait for it once.
        now += millis(40);
        flow.committed(now);
        flow.completed();
        for is_waited_for in [true, false] {
            flow.push(append(1));
            flow.push(append(1));
            if is_waited_for {
                assert_eq!(taken(&mut flow, now), None);
                now += millis(20);
            }
            assert_eq!(taken(&mut flow, now), Some(2));
            now += millis(40);
            flow.committed(now);
            flow.completed();
        }
        // What is no row waits for nobody.
        for _ in 0..8 {
            flow.push(append(1));
            flow.push(append(1));
            assert_eq!(taken(&mut flow, now), Some(2));
            now += millis(40);
            flow.committed(now);
            flow.completed();
        }
        flow.push(append(1));
        assert_eq!(taken(&mut flow, now), None);
        flow.push(waiting(Request::Change(Change::Seal), 1));
        assert_eq!(taken(&mut flow, now), Some(1));
    }
}
