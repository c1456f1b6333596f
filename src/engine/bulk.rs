//! The rows of one statement on their way to the log, however many.
//!
//! Owns when they leave memory: after so many bytes they are written to the log as part of a transaction that nobody sees
//! before it commits. Within `BEGIN … COMMIT` that is the session's own. Leaves out where rows come from (`copy`,
//! `insert`). A statement that fails or is dropped gives up what it wrote.

use crate::engine::held::Held;
use crate::engine::session::Session;
use crate::engine::transaction::{Leaving, Transaction};
use crate::engine::write::Routed;
use crate::engine::{Engine, Result};
use crate::replication::{PartitionWrite, ProducerClaim};
use crate::storage::batch::batch_bytes;
use millstream_catalog::Relation;
use millstream_catalog::model::ByteSize;
use millstream_catalog::model::limit::{STAGE_BYTES_MIN, STAGE_BYTES_TARGET};
use std::sync::Arc;

/// Rows that were routed and not committed.
#[derive(Debug)]
pub(crate) struct Bulk {
    /// The statement's own transaction, outside of a block.
    own: Transaction,
    parts: Vec<PartitionWrite>,
    bytes: ByteSize,
    /// Bytes of data that is not yet rows.
    undecoded: ByteSize,
    held: Held,
    count: u64,
}

impl Bulk {
    /// No rows yet.
    pub(crate) fn new(engine: &Engine) -> Self {
        let mut own = Transaction::default();
        own.begin_implicit();
        let (bytes, undecoded) = (ByteSize::ZERO, ByteSize::ZERO);
        Self { own, parts: Vec::new(), bytes, undecoded, held: engine.holding.share(), count: 0 }
    }

    /// Adds rows.
    pub(crate) fn push(&mut self, routed: Vec<Routed>) {
        for routed in routed {
            self.count += routed.row_count as u64;
            for part in routed.parts {
                self.bytes = self.bytes.plus(batch_bytes(&part.batch));
                self.parts.push(part);
            }
        }
        self.hold();
    }

    /// Whether memory is short with so many bytes of data that is not yet rows.
    pub(crate) fn is_short_with(&mut self, undecoded: ByteSize) -> bool {
        self.held.put(self.bytes.plus(undecoded));
        let is_short = undecoded >= STAGE_BYTES_MIN && self.held.is_much();
        self.hold();
        is_short
    }

    /// Holds `bytes` of data that is not yet rows besides them. Much of it needs room: it cannot leave memory.
    ///
    /// # Errors
    /// 53200 when all statements together hold too much.
    pub(crate) fn set_undecoded(&mut self, bytes: ByteSize) -> Result<()> {
        if bytes > self.undecoded && bytes >= STAGE_BYTES_MIN {
            self.held.set(self.bytes.plus(bytes))?;
        }
        self.undecoded = bytes;
        self.hold();
        Ok(())
    }

    fn hold(&mut self) {
        self.held.put(self.bytes.plus(self.undecoded));
    }

    /// Whether [`Bulk::flush`] is due: there are many rows, or memory is short.
    pub(crate) fn is_full(&self) -> bool {
        self.bytes >= STAGE_BYTES_TARGET || (self.bytes >= STAGE_BYTES_MIN && self.held.is_much())
    }

    /// Hands the rows in memory to the transaction, which writes them to the log if they are many.
    ///
    /// # Errors
    /// 54000 for more rows than a transaction with savepoints may hold; of the write.
    pub(crate) async fn flush(&mut self, session: &mut Session, relation: &Relation) -> Result<()> {
        self.hand_over(session, relation, (None, Leaving::Soon))?;
        let engine = Arc::clone(&session.engine);
        let staging = |shard| Ok(engine.shard(shard)?.staging());
        self.transaction(session).spill(staging).await
    }

    /// Commits, or leaves it to the transaction's end; gives the number of rows.
    ///
    /// # Errors
    /// As [`Bulk::flush`], and of the commit.
    pub(crate) async fn finish(
        mut self,
        session: &mut Session,
        relation: &Relation,
        claim: Option<ProducerClaim>,
    ) -> Result<u64> {
        if self.own.has_writes() || session.transaction.is_open() {
            let leaving = if session.transaction.is_open() { Leaving::AtEnd } else { Leaving::Soon };
            self.hand_over(session, relation, (claim, leaving))?;
            if let Some(pending) = self.own.end() {
                session.commit(pending).await?;
            }
        } else {
            session.append(relation, self.parts, claim).await?;
        }
        Ok(self.count)
    }

    fn transaction<'a>(&'a mut self, session: &'a mut Session) -> &'a mut Transaction {
        if session.transaction.is_open() { &mut session.transaction } else { &mut self.own }
    }

    fn hand_over(
        &mut self,
        session: &mut Session,
        relation: &Relation,
        (claim, leaving): (Option<ProducerClaim>, Leaving),
    ) -> Result<()> {
        let parts = std::mem::take(&mut self.parts);
        self.bytes = ByteSize::ZERO;
        self.hold();
        let room = session.engine.holding.clone();
        self.transaction(session).hold(&room, relation.shard, (parts, leaving), claim)
    }
}
