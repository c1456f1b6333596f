//! Attempts of a statement that changes rows: read, compute, lock, look whether the rows changed meanwhile, write.
//!
//! Leaves out what is computed (`update`, `upsert`) and planning (`mod`).

use super::own_rows::OwnRows;
use super::returning::Returning;
use super::source::{TargetSource, internal};
use super::{Computed, Done, Work, row_ids};
use crate::engine::Result;
use crate::engine::row_lock::{Barrier, LockOwner};
use crate::engine::session::Session;
use crate::engine::table::ROWS_AT_ONCE_MAX;
use crate::replication::PartitionWrite;
use crate::storage::KeySet;
use datafusion::common::ScalarValue;
use futures::FutureExt;
use millstream_catalog::Relation;
use millstream_catalog::model::limit::CHANGE_ATTEMPTS_MAX;
use millstream_catalog::model::{Offset, SqlState};
use millstream_sql::SqlError;
use std::pin::pin;
use std::sync::Arc;

/// Attempts that found their rows changed, after which plain INSERTs into the table are held back.
const FREE_ATTEMPTS: usize = 8;

/// What RETURNING shows, and when that is known.
enum Shows<'a> {
    Nothing,
    /// What is known before rows are written.
    Columns(&'a Returning),
    /// The places of rows too, which are known once they are written; nothing is computed then that could fail.
    Places(&'a Returning),
}

impl<'a> Shows<'a> {
    /// # Errors
    /// 0A000 for an expression over the place of a row that is not written yet.
    fn of(returning: Option<&'a Returning>, work: &Work<'_>) -> Result<Self> {
        let Some(returning) = returning else { return Ok(Self::Nothing) };
        if !returning.shows_places || !work.gives_places() {
            return Ok(Self::Columns(returning));
        }
        match returning.places {
            Some(_) => Ok(Self::Places(returning)),
            None => Err(SqlError::unsupported(
                "an expression over rowpartition or rowoffset in RETURNING",
                "return the columns themselves: they are known once the rows are written",
            )),
        }
    }
}

impl Session {
    /// The rows that the transaction has written to a table.
    async fn own_rows(&mut self, relation: &Arc<Relation>) -> Result<Option<Arc<OwnRows>>> {
        let upto = self.transaction.writes_len();
        let Some((mut own, more)) = self.transaction.take_own(relation)? else { return Ok(None) };
        let rows: usize = more.iter().map(|write| write.batch.num_rows()).sum();
        let extend = move || {
            if !more.is_empty() {
                Arc::make_mut(&mut own).extend(&more, upto)?;
            }
            Ok(own)
        };
        let own = self.engine.compute.run_if(rows as u64 > ROWS_AT_ONCE_MAX, extend).await?;
        self.transaction.keep_own(&self.engine.holding, relation.id, &own)?;
        Ok(Some(own))
    }

    /// Computes and writes, anew when rows changed meanwhile.
    pub(super) async fn carry_out(
        &mut self,
        work: &Work<'_>,
        source: &Arc<TargetSource>,
        values: &[ScalarValue],
        returning: Option<&Returning>,
    ) -> Result<Done> {
        let relation = source.relation();
        if self.transaction.has_staged(relation.id) {
            let what =
                format!("changing rows of \"{}\" after many were written to it in the same transaction", relation.name);
            return Err(SqlError::unsupported(what, "commit what was written first"));
        }
        let shows = Shows::of(returning, work)?;
        if let Shows::Places(_) = shows {
            self.commit_before_places().await?;
        }
        let is_by_itself = !self.transaction.is_open() || matches!(shows, Shows::Places(_));
        let owner = self.transaction.lock_owner(&self.engine.row_locks);
        let mut barrier = None;
        let _reading = source.reading();
        for attempt in 0..CHANGE_ATTEMPTS_MAX {
            if attempt >= FREE_ATTEMPTS && barrier.is_none() {
                barrier = Some(self.engine.row_locks.barrier(relation.id));
            }
            if attempt > 0 {
                self.take_cuts().await;
            }
            let own = self.own_rows(relation).await?;
            source.refresh(self.log_source(), own);
            let mut held = self.engine.holding.share();
            let mut computed = work.compute(self, source, values, &mut held).await?;
            if self.lock_and_look(source, &owner, &mut barrier, &mut computed).await? {
                continue;
            }
            match self.write_computed(relation, computed, &shows, values).await {
                Err(error) if error.sqlstate == SqlState::SerializationFailure && is_by_itself => {}
                done => return done,
            }
        }
        drop(barrier);
        Err(SqlError::new(SqlState::SerializationFailure, "could not serialize access due to concurrent update")
            .detail(format!("the rows changed during each of {CHANGE_ATTEMPTS_MAX} attempts"))
            .hint("try again"))
    }

    /// Locks the rows and guards their writes; true when they changed since they were read. INSERTs are not held back while
    /// this waits for whoever has the rows.
    pub(super) async fn lock_and_look(
        &self,
        source: &Arc<TargetSource>,
        owner: &LockOwner,
        barrier: &mut Option<Barrier>,
        computed: &mut Computed,
    ) -> Result<bool> {
        let relation = source.relation();
        let key = relation.identity();
        let (mut keys, mut hashes) = (Vec::new(), Vec::new());
        for part in computed.parts() {
            part.guard = Some(source.guard(part)?);
            let of_part = KeySet::new(&part.batch, &key).map_err(internal)?;
            match relation.row_ids {
                Some(at) => hashes.extend(row_ids::locks(part, at)),
                None => hashes.extend(of_part.hashes()),
            }
            keys.push((part.partition, of_part));
        }
        if hashes.is_empty() {
            return Ok(false);
        }
        let mut locked = pin!(owner.lock(relation.id, &hashes));
        match locked.as_mut().now_or_never() {
            Some(locked) => locked?,
            None => {
                *barrier = None;
                match self.settings.lock_timeout() {
                    None => locked.await?,
                    Some(wait) => tokio::time::timeout(wait, locked).await.map_err(|_| {
                        SqlError::new(SqlState::LockNotAvailable, "canceling statement due to lock timeout")
                    })??,
                }
            }
        }
        for (partition, keys) in keys {
            let is_much = source.rows_since(partition)? > ROWS_AT_ONCE_MAX;
            let source = Arc::clone(source);
            let is_stale = self.engine.compute.run_if(is_much, move || source.is_stale(partition, &keys)).await?;
            if is_stale {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Offsets are known once rows are written: within a block they are not; in a pipeline what came before is written too.
    async fn commit_before_places(&mut self) -> Result<()> {
        if !self.transaction.is_open() {
            return Ok(());
        }
        if !self.transaction.is_pipeline() {
            return Err(SqlError::unsupported(
                "RETURNING rowpartition or rowoffset inside a transaction block",
                "offsets are assigned at COMMIT: send the statement by itself, outside of BEGIN",
            ));
        }
        self.commit_before().await?;
        self.take_cuts().await;
        Ok(())
    }

    /// Appends, or holds back within a transaction.
    async fn write_computed(
        &mut self,
        relation: &Relation,
        computed: Computed,
        shows: &Shows<'_>,
        values: &[ScalarValue],
    ) -> Result<Done> {
        let Computed { tombstones, new, shown } = computed;
        let count = shown.num_rows();
        let parts: Vec<PartitionWrite> = tombstones.parts.iter().chain(&new.parts).cloned().collect();
        let rows = match shows {
            Shows::Nothing => None,
            Shows::Columns(returning) => Some(returning.rows(self, shown, values).await?),
            Shows::Places(returning) => {
                let rows = returning.rows(self, shown, values).await?;
                let bases = self.append_now(relation, parts, None).await?;
                let of_new: Vec<Offset> = bases.into_iter().skip(tombstones.parts.len()).collect();
                let rows = Some(returning.with_places(rows, new.places(&of_new))?);
                return Ok(Done { count, rows });
            }
        };
        self.append(relation, parts, None).await?;
        Ok(Done { count, rows })
    }
}
