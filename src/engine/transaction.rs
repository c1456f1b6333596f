//! A session's transaction: what it has written but not committed, and whether it failed.
//!
//! Writes are held back until COMMIT and then appended at once, so they become visible together or not at all. Leaves out cursors (`cursor`) and the append (`replication`). A crash before COMMIT forgets
//! them, as it must.

use crate::engine::change::OwnRows;
use crate::engine::group::{Consumer, Fetched, FetchedMark};
use crate::engine::held::{Held, HoldingRoom};
use crate::engine::row_lock::{LockMark, LockOwner, RowLocks};
use crate::engine::{TransactionStatus, replication_error};
use crate::replication::{GroupCommit, PartitionWrite, ProducerClaim, Staging};
use crate::storage::batch::batch_bytes;
use millstream_catalog::Relation;
use millstream_catalog::model::limit::{SAVEPOINTS_MAX, STAGE_BYTES_MIN, STATEMENT_ROWS_BYTES_MAX};
use millstream_catalog::model::{ByteSize, GroupName, ProducerId, Sequence, ShardId, SqlState, TopicId};
use millstream_sql::SqlError;
use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

/// Why writes are held back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum Block {
    /// Each statement commits by itself.
    #[default]
    None,
    /// Several statements in one text: they commit together at its end.
    Implicit,
    /// Several statements before one Sync: they commit together at it.
    Pipeline,
    /// `BEGIN … COMMIT`.
    Explicit,
}

/// A session's transaction.
#[derive(Debug, Default)]
pub(crate) struct Transaction {
    block: Block,
    is_failed: bool,
    is_read_only: bool,
    savepoints: Vec<Savepoint>,
    writes: Vec<(ShardId, PartitionWrite)>,
    claims: Vec<(ShardId, ProducerClaim)>,
    fetched: Fetched,
    /// Rows before `writes` that are in the log already, and their topics.
    staging: BTreeMap<ShardId, Staging>,
    staged: BTreeSet<TopicId>,
    bytes: ByteSize,
    held: Option<Held>,
    /// Rows of `writes` as its statements read them, by table.
    own: HashMap<TopicId, (Arc<OwnRows>, Held)>,
    locks: Option<Arc<LockOwner>>,
}

/// What a transaction had when a savepoint was set.
#[derive(Debug)]
struct Savepoint {
    name: String,
    /// Counts those of the session.
    number: u64,
    writes: usize,
    claims: usize,
    fetched: FetchedMark,
    bytes: ByteSize,
    locks: LockMark,
    is_read_only: bool,
}

/// Rows of a table that a transaction wrote, and its writes since they were told.
pub(crate) type OwnSoFar = (Arc<OwnRows>, Vec<PartitionWrite>);

/// Bytes a write takes in memory beside its rows.
const WRITE_BYTES: ByteSize = ByteSize::new(1 << 10);

/// How long writes that are held stay in memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Leaving {
    /// Until COMMIT: they need room.
    AtEnd,
    /// The next thing done is to spill or commit them, so they are held even where there is no room; unless they
    /// cannot be spilled.
    Soon,
}

/// Writes to append at the end of a transaction.
#[derive(Debug)]
pub(crate) struct Pending {
    /// What, by shard.
    pub(crate) shares: BTreeMap<ShardId, Share>,
    /// What was fetched for consumer groups.
    pub(crate) fetched: Fetched,
    /// Their bytes, until they are appended.
    _held: Option<Held>,
    /// The rows they change, until they are appended.
    pub(crate) locks: Option<Arc<LockOwner>>,
}

/// What a transaction writes to one shard.
#[derive(Debug, Default)]
pub(crate) struct Share {
    /// In statement order.
    pub(crate) writes: Vec<PartitionWrite>,
    /// What producers say of them.
    pub(crate) claims: Vec<ProducerClaim>,
    /// Rows before them that are in the log already.
    pub(crate) staging: Option<Staging>,
}

impl Transaction {
    /// As ReadyForQuery reports it.
    pub(crate) fn status(&self) -> TransactionStatus {
        match (self.block, self.is_failed) {
            (Block::Explicit, true) => TransactionStatus::Failed,
            (Block::Explicit, false) => TransactionStatus::Open,
            _ => TransactionStatus::Idle,
        }
    }

    /// True when writes are held back.
    pub(crate) fn is_open(&self) -> bool {
        self.block != Block::None
    }

    /// True within `BEGIN … COMMIT`.
    pub(crate) fn is_explicit(&self) -> bool {
        self.block == Block::Explicit
    }

    /// What waits for COMMIT, in statement order.
    fn writes(&self) -> impl Iterator<Item = &PartitionWrite> {
        self.writes.iter().map(|(_, write)| write)
    }

    /// The rows it wrote to `relation` as far as they were told before, and the writes since; `None` when there are none.
    ///
    /// # Errors
    /// As [`OwnRows::new`].
    pub(crate) fn take_own(&mut self, relation: &Arc<Relation>) -> Result<Option<OwnSoFar>, SqlError> {
        let known = self.own.remove(&relation.id).map(|(own, _)| own).filter(|own| own.is_of(relation));
        let from = known.as_ref().map_or(0, |own| own.writes());
        let of = |write: &&PartitionWrite| write.topic == relation.id;
        let since = self.writes.get(from..).unwrap_or_default().iter().map(|(_, write)| write);
        let more: Vec<PartitionWrite> = since.filter(of).cloned().collect();
        Ok(match known {
            Some(known) => Some((known, more)),
            None if more.is_empty() => None,
            None => Some((Arc::new(OwnRows::new(relation)?), more)),
        })
    }

    /// Keeps rows of all writes to a table for its next statement.
    ///
    /// # Errors
    /// 53200 when all transactions together hold too much.
    pub(crate) fn keep_own(&mut self, room: &HoldingRoom, topic: TopicId, own: &Arc<OwnRows>) -> Result<(), SqlError> {
        let mut held = room.share();
        held.set(own.bytes())?;
        self.own.insert(topic, (Arc::clone(own), held));
        Ok(())
    }

    /// How many writes wait for COMMIT.
    pub(crate) fn writes_len(&self) -> usize {
        self.writes.len()
    }

    /// Whether rows of `topic` are in the log already, where statements of this transaction do not see them.
    pub(crate) fn has_staged(&self, topic: TopicId) -> bool {
        self.staged.contains(&topic)
    }

    /// Who locks rows: within a block the same until its end, else one for the statement.
    pub(crate) fn lock_owner(&mut self, locks: &Arc<RowLocks>) -> Arc<LockOwner> {
        match self.is_open() {
            true => Arc::clone(self.locks.get_or_insert_with(|| locks.owner())),
            false => locks.owner(),
        }
    }

    /// Whether it locked rows: others may wait for its end.
    pub(crate) fn has_locks(&self) -> bool {
        self.locks.is_some()
    }

    /// Whether any write waits for COMMIT.
    pub(crate) fn has_writes(&self) -> bool {
        !self.writes.is_empty() || !self.staging.is_empty()
    }

    /// Rows of a member are fetched in it: they are committed with it.
    pub(crate) fn consume(&mut self, consumer: &Arc<Consumer>) {
        self.fetched.add(consumer);
    }

    /// Whether it keeps partitions of a group for a member whose client wants no more.
    pub(crate) fn has_left(&self, group: &GroupName) -> bool {
        self.fetched.has_left(group)
    }

    /// Commits an offset with it.
    pub(crate) fn hold_commit(&mut self, shard: ShardId, commit: GroupCommit) {
        self.fetched.hold(shard, commit);
    }

    /// `BEGIN`. False when a block was open already.
    pub(crate) fn begin(&mut self, is_read_only: bool) -> bool {
        let was_explicit = self.is_explicit();
        self.block = Block::Explicit;
        self.is_read_only = is_read_only || (was_explicit && self.is_read_only);
        !was_explicit
    }

    /// `SET TRANSACTION READ ONLY | READ WRITE`.
    pub(crate) fn set_read_only(&mut self, is_read_only: bool) {
        self.is_read_only = is_read_only;
    }

    /// The beginning of a text with several statements.
    pub(crate) fn begin_implicit(&mut self) {
        if self.block == Block::None {
            self.block = Block::Implicit;
        }
    }

    /// The beginning of several statements before one Sync.
    pub(crate) fn begin_pipeline(&mut self) {
        if self.block == Block::None {
            self.block = Block::Pipeline;
        }
    }

    /// Whether the block is the text's or the pipeline's own, to be ended with it.
    pub(crate) fn is_implicit(&self) -> bool {
        matches!(self.block, Block::Implicit | Block::Pipeline)
    }

    /// Whether statements came before in a pipeline, or may come behind.
    pub(crate) fn is_pipeline(&self) -> bool {
        self.block == Block::Pipeline
    }

    /// A statement failed: of a block only its end is accepted from now on. What came since the last savepoint is forgotten
    /// and its rows are free, before the client ends the block.
    pub(crate) fn fail(&mut self) {
        if !self.is_open() {
            return;
        }
        self.is_failed = true;
        if let Some(last) = self.savepoints.len().checked_sub(1) {
            self.cut_back(last);
            return;
        }
        let (block, is_read_only) = (self.block, self.is_read_only);
        *self = Self { block, is_read_only, is_failed: true, ..Self::default() };
    }

    /// Forgets what came after a savepoint.
    fn cut_back(&mut self, savepoint: usize) {
        let Some(Savepoint { writes, claims, fetched, bytes, locks, is_read_only, .. }) =
            self.savepoints.get(savepoint)
        else {
            return;
        };
        self.fetched.back_to(fetched);
        self.locks.iter().for_each(|own| own.release_since(locks));
        self.writes.truncate(*writes);
        self.claims.truncate(*claims);
        self.own.retain(|_, (own, _)| own.writes() <= *writes);
        self.bytes = *bytes;
        self.is_read_only = *is_read_only;
        self.held.iter_mut().for_each(|held| held.put(*bytes));
    }

    /// Whether a statement failed in the block.
    pub(crate) fn is_failed(&self) -> bool {
        self.is_failed
    }

    /// Whether it can go back to a savepoint.
    pub(crate) fn has_savepoints(&self) -> bool {
        !self.savepoints.is_empty()
    }

    /// Whether it was begun as one that only reads.
    pub(crate) fn is_read_only(&self) -> bool {
        self.is_read_only
    }

    /// 25006 in a read-only transaction.
    pub(crate) fn check_writable(&self, word: &str) -> Result<(), SqlError> {
        if self.is_read_only && self.is_explicit() {
            return Err(SqlError::new(
                SqlState::ReadOnlySqlTransaction,
                format!("cannot execute {word} in a read-only transaction"),
            ));
        }
        Ok(())
    }

    /// Holds `writes` back.
    ///
    /// # Errors
    /// 54000 over the limit of a transaction, 53200 over that of all.
    pub(crate) fn hold(
        &mut self,
        room: &HoldingRoom,
        shard: ShardId,
        (writes, leaving): (Vec<PartitionWrite>, Leaving),
        claim: Option<ProducerClaim>,
    ) -> Result<(), SqlError> {
        let bytes = |write: &PartitionWrite| batch_bytes(&write.batch).plus(WRITE_BYTES);
        let bytes = writes.iter().map(bytes).fold(self.bytes, ByteSize::plus);
        if bytes > STATEMENT_ROWS_BYTES_MAX {
            return Err(SqlError::new(SqlState::ProgramLimitExceeded, "transaction is too large")
                .detail(format!("a transaction may write {STATEMENT_ROWS_BYTES_MAX} bytes"))
                .hint("commit more often"));
        }
        let is_leaving = leaving == Leaving::Soon && self.is_free();
        let held = self.held.get_or_insert_with(|| room.share());
        match is_leaving {
            true => held.put(bytes),
            false => held.set(bytes)?,
        }
        self.bytes = bytes;
        self.writes.extend(writes.into_iter().map(|write| (shard, write)));
        self.claims.extend(claim.map(|claim| (shard, claim)));
        Ok(())
    }

    /// Whether what it holds may leave memory.
    fn is_free(&self) -> bool {
        self.savepoints.is_empty() && self.writes().all(|write| write.guard.is_none())
    }

    /// Writes the rows held so far to the log, by `staging` those that are a shard's first: they stay part of the
    /// transaction, and leave memory. Nothing is done while a savepoint may want some of them back, or while they depend on
    /// what others
    /// write meanwhile.
    ///
    /// # Errors
    /// Of the write.
    pub(crate) async fn spill(
        &mut self,
        staging: impl Fn(ShardId) -> Result<Staging, SqlError>,
    ) -> Result<(), SqlError> {
        if !self.is_free() || self.bytes < STAGE_BYTES_MIN {
            return Ok(());
        }
        let mut by_shard: BTreeMap<ShardId, Vec<PartitionWrite>> = BTreeMap::new();
        self.own.clear();
        for (shard, write) in std::mem::take(&mut self.writes) {
            self.staged.insert(write.topic);
            by_shard.entry(shard).or_default().push(write);
        }
        for (shard, writes) in by_shard {
            let staging = match self.staging.entry(shard) {
                Entry::Occupied(begun) => begun.into_mut(),
                Entry::Vacant(none) => none.insert(staging(shard)?),
            };
            staging.add(writes).await.map_err(replication_error)?;
        }
        self.bytes = ByteSize::ZERO;
        match &mut self.held {
            Some(held) => held.set(ByteSize::ZERO),
            None => Ok(()),
        }
    }

    /// The number of a producer's next row in `topic`, as far as this transaction has written any.
    pub(crate) fn sequence_next(&self, topic: TopicId, producer: &ProducerId) -> Option<Sequence> {
        let of = |claim: &&ProducerClaim| claim.topic == topic && claim.producer == *producer;
        self.claims.iter().rev().map(|(_, claim)| claim).find(of).map(|claim| claim.sequence.plus(claim.rows))
    }

    /// `SAVEPOINT name`.
    ///
    /// # Errors
    /// 53400 over the limit.
    pub(crate) fn save(&mut self, name: &str, number: u64) -> Result<(), SqlError> {
        if self.savepoints.len() >= SAVEPOINTS_MAX {
            return Err(SqlError::new(SqlState::ConfigurationLimitExceeded, "too many savepoints")
                .detail(format!("a transaction may have {SAVEPOINTS_MAX}"))
                .hint("release those that are no longer needed"));
        }
        self.savepoints.push(Savepoint {
            name: name.to_owned(),
            number,
            writes: self.writes.len(),
            claims: self.claims.len(),
            fetched: self.fetched.mark(),
            bytes: self.bytes,
            locks: self.locks.as_ref().map(|locks| locks.mark()).unwrap_or_default(),
            is_read_only: self.is_read_only,
        });
        Ok(())
    }

    /// `RELEASE name`.
    ///
    /// # Errors
    /// 3B001 when there is none of that name.
    pub(crate) fn release(&mut self, name: &str) -> Result<(), SqlError> {
        let at = self.find(name)?;
        self.savepoints.truncate(at);
        Ok(())
    }

    /// `ROLLBACK TO name`: forgets later writes, keeps the savepoint; its number.
    ///
    /// # Errors
    /// 3B001 when there is none of that name.
    pub(crate) fn rollback_to(&mut self, name: &str) -> Result<u64, SqlError> {
        let at = self.find(name)?;
        self.cut_back(at);
        self.savepoints.truncate(at + 1);
        self.is_failed = false;
        Ok(self.savepoints.last().map_or(0, |saved| saved.number))
    }

    fn find(&self, name: &str) -> Result<usize, SqlError> {
        self.savepoints
            .iter()
            .rposition(|saved| saved.name == name)
            .ok_or_else(|| SqlError::new(SqlState::InvalidSavepoint, format!("savepoint \"{name}\" does not exist")))
    }

    /// Writes to commit so far, the block staying open: before a statement that cannot be held back.
    pub(crate) fn take_writes(&mut self) -> Option<Pending> {
        let mut shares: BTreeMap<ShardId, Share> = BTreeMap::new();
        for (shard, write) in std::mem::take(&mut self.writes) {
            shares.entry(shard).or_default().writes.push(write);
        }
        for (shard, staging) in std::mem::take(&mut self.staging) {
            shares.entry(shard).or_default().staging = Some(staging);
        }
        for (shard, claim) in std::mem::take(&mut self.claims) {
            shares.entry(shard).or_default().claims.push(claim);
        }
        self.savepoints.clear();
        self.staged.clear();
        self.own.clear();
        self.bytes = ByteSize::ZERO;
        let held = self.held.take();
        let fetched = std::mem::take(&mut self.fetched);
        let is_any = !shares.is_empty() || !fetched.is_empty();
        is_any.then_some(Pending { shares, fetched, _held: held, locks: self.locks.clone() })
    }

    /// Ends the block; gives what is to be appended, nothing when it failed.
    pub(crate) fn end(&mut self) -> Option<Pending> {
        let mut ended = std::mem::take(self);
        if ended.is_failed {
            return None;
        }
        ended.take_writes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use arrow::array::{ArrayRef, Int64Array, RecordBatch};
    use millstream_catalog::model::PartitionId;
    use std::sync::Arc;

    fn write(rows: usize) -> Vec<PartitionWrite> {
        let column: ArrayRef = Arc::new(Int64Array::from(vec![1; rows]));
        let batch = RecordBatch::try_from_iter([("a", column)]).unwrap();
        vec![PartitionWrite { topic: TopicId::new(1), partition: PartitionId::new(0), batch, guard: None }]
    }

    #[test]
    fn transactions_share_the_room_and_give_it_back() {
        let room = HoldingRoom::new(ByteSize::new(20 << 10));
        let shard = ShardId::new(1);
        let (mut first, mut second) = (Transaction::default(), Transaction::default());
        first.hold(&room, shard, (write(1_000), Leaving::AtEnd), None).unwrap();
        first.save("a", 1).unwrap();
        first.hold(&room, shard, (write(1_000), Leaving::AtEnd), None).unwrap();
        let error = second.hold(&room, shard, (write(1_000), Leaving::AtEnd), None).unwrap_err();
        assert_eq!(error.sqlstate, SqlState::OutOfMemory);
        assert!(!second.has_writes());
        first.rollback_to("a").unwrap();
        second.hold(&room, shard, (write(1_000), Leaving::AtEnd), None).unwrap();
        let pending = first.take_writes().unwrap();
        assert_eq!(pending.shares[&shard].writes.len(), 1);
        // Until they are appended.
        assert!(second.hold(&room, shard, (write(1_000), Leaving::AtEnd), None).is_err());
        // Those that leave memory at once need no room, but for what a savepoint may want back.
        let mut third = Transaction::default();
        third.hold(&room, shard, (write(1_000), Leaving::Soon), None).unwrap();
        third.save("a", 1).unwrap();
        assert!(third.hold(&room, shard, (write(1_000), Leaving::Soon), None).is_err());
        drop((pending, third));
        second.hold(&room, shard, (write(1_000), Leaving::AtEnd), None).unwrap();
    }

    #[test]
    fn savepoints_are_bounded() {
        let mut transaction = Transaction::default();
        for _ in 0..SAVEPOINTS_MAX {
            transaction.save("a", 1).unwrap();
        }
        assert_eq!(transaction.save("a", 1).unwrap_err().sqlstate, SqlState::ConfigurationLimitExceeded);
    }
}
