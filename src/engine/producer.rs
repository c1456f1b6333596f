//! Idempotent producers: what a numbered statement still has to write.
//!
//! Owns reading the session's `producer_id` and leaving out rows that were accepted before. Leaves out the decision,
//! which the shard takes when it applies the write (`replication`): what is read here may be older.

use crate::engine::session::Session;
use crate::engine::write::{self, Routed};
use crate::engine::{Engine, Result};
use crate::replication::ProducerClaim;
use millstream_catalog::Relation;
use millstream_catalog::model::{ProducerId, RowCount, Sequence, SqlState, Timestamp};
use millstream_sql::SqlError;
use millstream_sql::bind::insert::InsertRows;

/// The rows of one statement, as its producer numbers them.
#[derive(Debug)]
pub(crate) struct Numbered {
    claim: ProducerClaim,
    /// Rows at the beginning that were accepted before.
    accepted: usize,
}

impl Numbered {
    /// Numbers `rows` more rows, and routes those that were not accepted before.
    ///
    /// # Errors
    /// Of routing.
    pub(crate) fn route(
        &mut self,
        engine: &Engine,
        relation: &Relation,
        rows: InsertRows,
        now: Timestamp,
    ) -> Result<Vec<Routed>> {
        let count = rows.batch.num_rows();
        let before = self.accepted.min(count);
        self.accepted -= before;
        let slice = |start: usize, length: usize| InsertRows {
            batch: rows.batch.slice(start, length),
            rowtime: rows.rowtime.as_ref().map(|rowtime| rowtime.slice(start, length)),
        };
        let repeated = write::repeated(engine, relation, slice(0, before), now)?;
        let new = write::route(engine, relation, slice(before, count - before), now)?;
        self.claim.rows = self.claim.rows.plus(RowCount::of(count - before));
        Ok(vec![repeated, new])
    }

    /// What the producer says of the rows that are written; `None` when none is.
    pub(crate) fn finish(self) -> Option<ProducerClaim> {
        (self.claim.rows > RowCount::ZERO).then_some(self.claim)
    }
}

impl Session {
    /// Begins a statement of this session's producer, whose first row has the number `sequence`.
    ///
    /// # Errors
    /// 55000 without a producer.
    pub(crate) fn number(&self, relation: &Relation, sequence: Sequence) -> Result<Numbered> {
        let producer = ProducerId::new(self.settings.producer_id()).map_err(|_| {
            SqlError::new(SqlState::ObjectNotInPrerequisiteState, "a sequence needs a producer")
                .hint("SET producer_id = 'name' first")
        })?;
        let topic = relation.id;
        let next = match self.transaction.sequence_next(topic, &producer) {
            Some(next) => Some(next),
            None => self.engine.shard(relation.shard)?.sequence_next(topic, &producer),
        };
        let accepted = next.map_or(0, |next| next.since(sequence).as_usize());
        let sequence = sequence.plus(RowCount::of(accepted));
        Ok(Numbered { claim: ProducerClaim { producer, topic, sequence, rows: RowCount::ZERO }, accepted })
    }
}
