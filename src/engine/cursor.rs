//! A session's cursors: named results that are read in parts.
//!
//! A cursor over a subscription waits until a FETCH is full, because drivers take a short answer for the
//! end. Leaves out portals of the extended protocol, which the server holds. A crash forgets cursors.

use crate::engine::group::{Asked, FetchReceipts, Receipts, is_final};
use crate::engine::{Idle, ResultColumn, RowBatch, RowStream, Rows, RowsTag};
use crate::env;
use futures::StreamExt;
use millstream_catalog::model::limit::PORTALS_MAX;
use millstream_catalog::model::{Span, SqlState};
use millstream_sql::SqlError;
use millstream_sql::dialect::FetchCount;
use std::collections::HashMap;
use std::future::poll_fn;
use std::sync::{Arc, Weak};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};
use tokio::sync::{Mutex, MutexGuard};

/// How long FETCH ALL goes on where more comes all the time.
const READY_TIME_MAX: Duration = Duration::from_secs(10);

/// The cursors of a session.
#[derive(Debug, Default)]
pub(crate) struct Cursors {
    open: HashMap<String, Cursor>,
}

#[derive(Debug)]
struct Cursor {
    columns: Arc<[ResultColumn]>,
    is_push: bool,
    /// `WITH HOLD`: outlives its transaction.
    life: Life,
    /// Savepoints of the session that were set before it.
    savepoints: u64,
    source: Arc<Mutex<Source>>,
}

/// What is left of a cursor's rows.
struct Source {
    stream: RowStream,
    /// Whether `stream` has given all there is.
    idle: Idle,
    rest: Option<RowBatch>,
    is_done: bool,
    /// Of a member of a consumer group.
    receipts: Option<Receipts>,
    /// The FETCH that was last.
    fetching: Option<Weak<FetchReceipts>>,
    /// The commit of what was fetched before, which a FETCH ends with.
    asked: Asked,
    /// Why a member gives no more rows: it has left.
    failure: Option<SqlError>,
}

impl std::fmt::Debug for Source {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Source").field("is_done", &self.is_done).finish_non_exhaustive()
    }
}

/// How far one FETCH goes.
#[derive(Debug, Clone, Copy)]
struct Goal {
    /// Rows still wanted.
    rows: u64,
    /// Give what is there instead of waiting.
    ready_only: bool,
    /// Give what is there once this moment has passed.
    deadline: Option<Instant>,
}

/// How long a cursor stays open.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Life {
    /// Until its transaction ends.
    Transaction,
    /// Declared WITH HOLD in a transaction that still runs: a rollback takes it back.
    HoldOnCommit,
    /// Until it is closed.
    Session,
}

impl Cursors {
    /// `DECLARE`.
    ///
    /// # Errors
    /// 42P03 when the name is taken, 53400 over the limit.
    pub(crate) fn declare(&mut self, name: &str, rows: Rows, life: Life, savepoints: u64) -> Result<(), SqlError> {
        if self.open.contains_key(name) {
            return Err(SqlError::new(SqlState::DuplicateCursor, format!("cursor \"{name}\" already exists")));
        }
        if self.open.len() >= PORTALS_MAX {
            return Err(SqlError::new(SqlState::ConfigurationLimitExceeded, "too many open cursors")
                .detail(format!("a session may have {PORTALS_MAX}")));
        }
        let Rows { stream, idle, receipts, .. } = rows;
        let (fetching, asked) = (None, Asked::default());
        let source = Source { stream, idle, rest: None, is_done: false, receipts, fetching, asked, failure: None };
        let (columns, is_push, source) = (rows.columns, rows.is_push, Arc::new(Mutex::new(source)));
        let cursor = Cursor { columns, is_push, life, savepoints, source };
        self.open.insert(name.to_owned(), cursor);
        Ok(())
    }

    /// The columns of a cursor, for Describe.
    pub(crate) fn columns(&self, name: &str) -> Option<Arc<[ResultColumn]>> {
        self.open.get(name).map(|cursor| Arc::clone(&cursor.columns))
    }

    /// `FETCH`: rows that come as the cursor's source gives them.
    ///
    /// # Errors
    /// 34000 when there is no such cursor.
    pub(crate) fn fetch(
        &self,
        name: &str,
        count: FetchCount,
        timeout: Option<Span>,
        receipts: Option<Receipts>,
        tag: &'static str,
    ) -> Result<Rows, SqlError> {
        let cursor = self.find(name)?;
        let rows = match count {
            FetchCount::Rows(rows) => rows.value(),
            FetchCount::All => u64::MAX,
        };
        let timeout = timeout.filter(|_| cursor.is_push).and_then(|span| u64::try_from(span.micros()).ok());
        let ready_only = cursor.is_push && count == FetchCount::All && timeout.is_none();
        let goal = Goal {
            rows,
            ready_only,
            deadline: timeout
                .map(Duration::from_micros)
                .or(ready_only.then_some(READY_TIME_MAX))
                .map(|time| env::instant() + time),
        };
        let receipts = receipts.as_ref().and_then(Receipts::consumer).map(FetchReceipts::new);
        let mut source = cursor.try_lock(name)?;
        if let Some(before) = std::mem::replace(&mut source.fetching, receipts.as_ref().map(Arc::downgrade)) {
            before.upgrade().into_iter().for_each(|before| before.end());
        }
        drop(source);
        let told = receipts.as_ref().map(|receipts| Receipts::of_fetch(Arc::clone(receipts)));
        let fetching = Fetching { source: Arc::clone(&cursor.source), goal, receipts };
        let stream = futures::stream::unfold(fetching, |mut fetching| async move {
            let batch = fetching.next().await?;
            Some((batch, fetching))
        });
        let (columns, is_push, stream) = (Arc::clone(&cursor.columns), cursor.is_push, Box::pin(stream.fuse()));
        Ok(Rows { columns, tag: RowsTag::Counted(tag), is_push, stream, idle: Idle::default(), receipts: told })
    }

    fn find(&self, name: &str) -> Result<&Cursor, SqlError> {
        self.open
            .get(name)
            .ok_or_else(|| SqlError::new(SqlState::InvalidCursorName, format!("cursor \"{name}\" does not exist")))
    }

    /// Whom to tell of a cursor's rows, of a member of a consumer group.
    ///
    /// # Errors
    /// 34000 when there is no such cursor; why it gives no more rows.
    pub(crate) fn receipts(&self, name: &str) -> Result<Option<Receipts>, SqlError> {
        let source = self.find(name)?.try_lock(name)?;
        source.failure.clone().map_or_else(|| Ok(source.receipts.clone()), Err)
    }

    /// The client asks for more rows of a member: it has taken those it was handed.
    ///
    /// # Errors
    /// When that cannot be committed.
    pub(crate) async fn ask(&self, name: &str) -> Result<(), SqlError> {
        self.find(name)?.try_lock(name)?.ask().await
    }

    /// `CLOSE name`: the client has taken what it was handed.
    ///
    /// # Errors
    /// 34000 when there is no such cursor; when that cannot be committed.
    pub(crate) async fn close(&mut self, name: &str) -> Result<(), SqlError> {
        self.find(name)?;
        match self.open.remove(name) {
            Some(cursor) => cursor.close().await,
            None => Ok(()),
        }
    }

    /// `CLOSE ALL`.
    ///
    /// # Errors
    /// As [`Cursors::close`]; all are closed.
    pub(crate) async fn close_all(&mut self) -> Result<(), SqlError> {
        let mut result = Ok(());
        for cursor in std::mem::take(&mut self.open).into_values() {
            result = result.and(cursor.close().await);
        }
        result
    }

    /// The end of a transaction: cursors without hold end with it, and all it declared when it was rolled back. Those that
    /// outlive it, for [`Cursors::take_back`].
    pub(crate) fn end_transaction(&mut self, is_committed: bool) -> Vec<String> {
        let is_new = |(_, cursor): &(&String, &Cursor)| cursor.life == Life::HoldOnCommit;
        let new = self.open.iter().filter(|_| is_committed).filter(is_new).map(|(name, _)| name.clone()).collect();
        self.open.retain(|_, cursor| match cursor.life {
            Life::Transaction => false,
            Life::HoldOnCommit => is_committed,
            Life::Session => true,
        });
        self.open.values_mut().for_each(|cursor| cursor.life = Life::Session);
        new
    }

    /// `ROLLBACK TO` a savepoint of this number: what was declared since goes.
    pub(crate) fn roll_back_to(&mut self, number: u64) {
        self.open.retain(|_, cursor| cursor.savepoints < number);
    }

    /// The transaction did not commit: what it declared goes too.
    pub(crate) fn take_back(&mut self, declared: &[String]) {
        self.open.retain(|name, _| !declared.contains(name));
    }
}

impl Cursor {
    /// What is left of its rows. A portal that was suspended while it waited for some keeps it.
    fn try_lock(&self, name: &str) -> Result<MutexGuard<'_, Source>, SqlError> {
        self.source.try_lock().map_err(|_| {
            let message = format!("cursor \"{name}\" is being used by another portal");
            SqlError::new(SqlState::ObjectInUse, message).hint("close the portal, or go on with it")
        })
    }

    async fn close(self) -> Result<(), SqlError> {
        // One that a portal keeps ends with that.
        let receipts = self.source.try_lock().ok().and_then(|mut source| source.receipts.take());
        match receipts {
            Some(receipts) => receipts.finish().await,
            None => Ok(()),
        }
    }
}

/// A FETCH under way.
struct Fetching {
    source: Arc<Mutex<Source>>,
    goal: Goal,
    receipts: Option<Arc<FetchReceipts>>,
}

impl Fetching {
    async fn next(&mut self) -> Option<Result<RowBatch, SqlError>> {
        if self.receipts.as_ref().is_some_and(|receipts| receipts.is_over()) {
            return None;
        }
        let voided = self.receipts.as_ref().map_or(0, |receipts| receipts.voided());
        self.goal.rows = self.goal.rows.saturating_add(voided as u64);
        let batch = self.source.lock().await.take(&mut self.goal).await;
        if let Some(receipts) = &self.receipts {
            match &batch {
                Some(Ok(rows)) => receipts.take(rows.num_rows()),
                Some(Err(_)) => {}
                None => receipts.set_sent(),
            }
        }
        batch
    }
}

impl Source {
    /// The client asks for more rows of a member.
    async fn ask(&mut self) -> Result<(), SqlError> {
        let Some(receipts) = &self.receipts else { return Ok(()) };
        // What another FETCH did not come to hand over comes now.
        self.fetching.take().and_then(|before| before.upgrade()).into_iter().for_each(|before| before.end());
        // A rollback takes an end back too.
        self.is_done = false;
        // Of a FETCH that nobody read to its end.
        std::mem::take(&mut self.asked).done().await?;
        match receipts.ask().await {
            Ok(asked) => self.asked = asked,
            Err(error) => {
                let is_in_block = receipts.consumer().is_some_and(|consumer| consumer.is_in_transaction());
                if !is_in_block && is_final(&error) {
                    self.fail(&error);
                }
                return Err(error);
            }
        }
        Ok(())
    }

    /// A member that failed leaves: others read its partitions, and who fetches again is told why.
    fn fail(&mut self, error: &SqlError) {
        if self.receipts.take().is_some() {
            self.stream = Box::pin(futures::stream::empty());
            self.failure = Some(error.clone());
        }
    }

    /// The next batch towards `goal`; `None` when the goal is reached or the rows have ended. What was fetched before is
    /// committed at its end, and when it fails.
    async fn take(&mut self, goal: &mut Goal) -> Option<Result<RowBatch, SqlError>> {
        let next = self.rows(goal).await;
        if let Some(Ok(_)) = next {
            return next;
        }
        let committed = std::mem::take(&mut self.asked).done().await;
        next.or_else(|| committed.err().map(Err))
    }

    async fn rows(&mut self, goal: &mut Goal) -> Option<Result<RowBatch, SqlError>> {
        while goal.rows > 0 {
            if self.rest.is_none() && !self.is_done {
                match self.wait(goal).await? {
                    Ok(batch) => self.rest = Some(batch),
                    Err(error) => {
                        self.is_done = true;
                        self.fail(&error);
                        return Some(Err(error));
                    }
                }
            }
            let batch = self.rest.take()?;
            let wanted = batch.num_rows().min(usize::try_from(goal.rows).unwrap_or(usize::MAX));
            if self.receipts.as_ref().is_some_and(|receipts| !receipts.has_given(wanted)) {
                continue;
            }
            goal.rows -= wanted as u64;
            if wanted < batch.num_rows() {
                self.rest = Some(batch.slice(wanted, batch.num_rows() - wanted));
            }
            return Some(Ok(batch.slice(0, wanted)));
        }
        None
    }

    /// The next batch; within that, `None` when there is none now.
    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Option<Option<Result<RowBatch, SqlError>>>> {
        match self.stream.poll_next_unpin(cx) {
            Poll::Ready(batch) => Poll::Ready(Some(batch)),
            Poll::Pending if self.idle.get() => Poll::Ready(None),
            // It is at work on some.
            Poll::Pending => Poll::Pending,
        }
    }

    async fn wait(&mut self, goal: &Goal) -> Option<Result<RowBatch, SqlError>> {
        let next = match (goal.ready_only, goal.deadline) {
            (true, Some(deadline)) if deadline <= env::instant() => return None,
            (true, _) => poll_fn(|cx| self.poll_ready(cx)).await?,
            (false, Some(deadline)) => tokio::time::timeout_at(deadline.into(), self.stream.next()).await.ok()?,
            (false, None) => self.stream.next().await,
        };
        self.is_done = next.is_none();
        next
    }
}
