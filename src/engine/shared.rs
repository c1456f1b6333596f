//! Push queries that many clients run at once: their plan is held once, each event is read and computed once, and its
//! rows are encoded once, however many get them.
//!
//! Of a query that computes each event by itself, what comes next does not depend on who asks. The results of the last
//! steps stand in a chain; who is behind takes them from there, and who has them all makes the next for everybody. Who
//! falls far behind reads for itself until it has caught up. A result goes when the last one has taken it, so that idle
//! subscribers keep none. Leaves out waiting and limits (`push`), and delivery (server). A crash forgets all of it.

use crate::engine::compute::{Compute, defect};
use crate::engine::input::Reader;
use crate::engine::inputs::{Inputs, SourcePositions};
use crate::engine::outcome::RowBatch;
use crate::engine::push::{ROWS_INLINE_MAX, client_rows, shutting_down};
use crate::engine::{Result, ResultColumn};
use arrow::array::RecordBatch;
use millstream_catalog::model::{ByteSize, RowCount, Timestamp};
use millstream_sql::SqlError;
use millstream_sql::plan::ContinuousPlan;
use millstream_sql::stream::{Pipeline, StepInput};
use parking_lot::Mutex;
use std::collections::{HashMap, VecDeque};
use std::hash::{BuildHasher, RandomState};
use std::sync::{Arc, Weak};
use tokio::sync::Notify;

/// Pipelines that are kept for the next step.
const SPARE_MAX: usize = 2;
/// Bytes that a link of the chain takes beside its rows.
const LINK_BYTES: usize = 512;

/// The shared queries of a node.
#[derive(Default)]
pub(crate) struct SharedQueries {
    queries: Mutex<Queries>,
    hasher: RandomState,
}

#[derive(Default)]
struct Queries {
    by_hash: HashMap<u64, Vec<Weak<SharedQuery>>>,
    /// When there are so many, those that ended are forgotten.
    purge_at: usize,
}

/// A push query that computes each event by itself.
pub(crate) struct SharedQuery {
    plan: ContinuousPlan,
    columns: Arc<[ResultColumn]>,
    inputs: Inputs,
    bytes_max: ByteSize,
    spare: Mutex<Vec<Pipeline>>,
    chain: Mutex<Chain>,
    /// Told when a link that took a while is there, or is not to come.
    made: Notify,
}

/// The results of the last steps.
#[derive(Default)]
struct Chain {
    links: VecDeque<Link>,
    /// The number of the first of `links`.
    base: u64,
    /// The positions after the last.
    head: Arc<SourcePositions>,
    /// Seats that are on it.
    seats: usize,
    bytes: usize,
    /// The next link is being made.
    is_making: bool,
    /// The last attempt found nothing to make one of.
    is_dry: bool,
    /// Why the next link cannot be made.
    failure: Option<SqlError>,
}

/// Rows of some events, if they gave any, and the positions after them.
type Step = (Option<RecordBatch>, SourcePositions);

/// The result of one step.
struct Link {
    /// `None` when its events gave no row.
    rows: Option<RowBatch>,
    /// After its events.
    positions: Arc<SourcePositions>,
    bytes: usize,
    /// Seats that have not taken it.
    left: usize,
}

impl Chain {
    fn end(&self) -> u64 {
        self.base + self.links.len() as u64
    }

    /// A seat takes the link at `at`, if it is there.
    fn take(&mut self, at: u64) -> Option<(Option<RowBatch>, Arc<SourcePositions>)> {
        let link = self.links.get_mut(at.checked_sub(self.base)? as usize)?;
        link.left -= 1;
        let taken = (link.rows.clone(), Arc::clone(&link.positions));
        self.forget();
        Some(taken)
    }

    /// A seat that was to take the link at `at` goes.
    fn leave(&mut self, at: u64) {
        // One that fell off is counted no more.
        let Some(from) = at.checked_sub(self.base) else { return };
        self.seats -= 1;
        self.links.iter_mut().skip(from as usize).for_each(|link| link.left -= 1);
        self.forget();
    }

    /// Links that all have taken go.
    fn forget(&mut self) {
        while let Some(link) = self.links.pop_front_if(|link| link.left == 0) {
            self.base += 1;
            self.bytes -= link.bytes;
        }
    }

    fn push(&mut self, (rows, positions): Step, bytes_max: ByteSize) {
        let bytes = rows.as_ref().map_or(0, |rows| rows.get_array_memory_size()) + LINK_BYTES;
        let rows = rows.map(RowBatch::shared);
        self.head = Arc::new(positions);
        self.failure = None;
        self.links.push_back(Link { rows, positions: Arc::clone(&self.head), bytes, left: self.seats });
        self.bytes += bytes;
        while self.links.len() > 1
            && self.bytes as u64 > bytes_max.value()
            && let Some(link) = self.links.pop_front()
        {
            self.bytes -= link.bytes;
            self.base += 1;
            // Who has not taken it falls off: whoever is before a link is before all that come after.
            self.seats -= link.left;
            self.links.iter_mut().for_each(|later| later.left -= link.left);
        }
        self.forget();
    }

    /// Begins anew at `positions`: seats that are on it fall off.
    fn restart(&mut self, positions: &Arc<SourcePositions>) {
        self.base = self.end() + 1;
        self.links.clear();
        (self.seats, self.bytes) = (0, 0);
        self.head = Arc::clone(positions);
        self.failure = None;
    }
}

/// How far one subscriber is.
pub(crate) struct Seat {
    query: Arc<SharedQuery>,
    /// The number of the link it takes next, while it is on the chain.
    at: Option<u64>,
    positions: Arc<SourcePositions>,
}

impl Drop for Seat {
    fn drop(&mut self) {
        if let Some(at) = self.at {
            self.query.chain.lock().leave(at);
        }
    }
}

/// What became of one attempt to go on.
pub(crate) enum Next {
    /// Some events were passed, which gave these rows.
    Passed(Option<RowBatch>),
    /// There are none.
    AtEnd,
}

impl SharedQueries {
    /// The query of this plan that is shared already, or this one from now on.
    pub(crate) fn get(&self, plan: ContinuousPlan, pipeline: Pipeline, readers: Vec<Reader>) -> Arc<SharedQuery> {
        let hash = self.hasher.hash_one(&plan.plan);
        let mut queries = self.queries.lock();
        if queries.by_hash.len() >= queries.purge_at {
            queries.by_hash.retain(|_, queries| queries.iter().any(|query| query.strong_count() > 0));
            queries.purge_at = 64 + 2 * queries.by_hash.len();
        }
        let same = queries.by_hash.entry(hash).or_default();
        same.retain(|query| query.strong_count() > 0);
        if let Some(query) = same.iter().filter_map(Weak::upgrade).find(|query| query.is(&plan, &readers)) {
            return query;
        }
        let query = Arc::new(SharedQuery {
            columns: plan.columns.clone().into(),
            plan,
            bytes_max: readers.first().map_or(ByteSize::ZERO, |reader| reader.bytes_max),
            inputs: Inputs::new(readers),
            spare: Mutex::new(vec![pipeline]),
            chain: Mutex::default(),
            made: Notify::new(),
        });
        same.push(Arc::downgrade(&query));
        query
    }
}

impl SharedQuery {
    /// Whether its rows are those of another plan that is read so.
    fn is(&self, plan: &ContinuousPlan, readers: &[Reader]) -> bool {
        let is_same = |(own, other): (&Reader, &Reader)| {
            Arc::ptr_eq(&own.relation, &other.relation) && own.removed == other.removed
        };
        self.plan.plan == plan.plan
            && self.plan.columns == plan.columns
            && (self.plan.window, self.plan.grace, self.plan.emission) == (plan.window, plan.grace, plan.emission)
            && self.inputs.readers().len() == readers.len()
            && self.inputs.readers().iter().zip(readers).all(is_same)
    }

    /// The columns of its rows.
    pub(crate) fn columns(&self) -> &Arc<[ResultColumn]> {
        &self.columns
    }

    /// What it reads.
    pub(crate) fn inputs(&self) -> &Inputs {
        &self.inputs
    }

    /// A pipeline of it, for one step or more.
    ///
    /// # Errors
    /// None that planning it before did not have.
    pub(crate) fn pipeline(&self) -> Result<Pipeline> {
        let spare = self.spare.lock().pop();
        spare.map_or_else(|| Pipeline::plan(&self.plan), Ok)
    }

    /// Takes a pipeline back.
    pub(crate) fn give_back(&self, pipeline: Pipeline) {
        let mut spare = self.spare.lock();
        if spare.len() < SPARE_MAX {
            spare.push(pipeline);
        }
    }

    /// Some events after `from`, none of them after `to`: their rows, and the positions after them; `None` when there are
    /// none.
    fn step(&self, from: &SourcePositions, to: Option<&SourcePositions>, now: Timestamp) -> Result<Option<Step>> {
        let Some(input) = self.inputs.next_within(from, to)? else { return Ok(None) };
        let mut pipeline = self.pipeline()?;
        let output = pipeline.step(&StepInput { batches: input.batches, idle: &[], now })?;
        let rows = client_rows(&pipeline, output.batch)?;
        self.give_back(pipeline);
        Ok(Some((rows, input.positions)))
    }
}

impl Seat {
    /// Of a subscriber that begins at `positions`.
    pub(crate) fn new(query: &Arc<SharedQuery>, positions: SourcePositions) -> Self {
        Self { query: Arc::clone(query), at: None, positions: Arc::new(positions) }
    }

    /// What it reads.
    pub(crate) fn query(&self) -> &Arc<SharedQuery> {
        &self.query
    }

    /// Goes on by some events.
    ///
    /// # Errors
    /// SE001; when the log cannot be read; of an expression.
    ///
    /// # Cancellation
    /// Safe: it has not gone on. Nobody else waits for who is no longer polled.
    pub(crate) async fn next(&mut self, compute: &Compute, now: Timestamp) -> Result<Next> {
        let query = Arc::clone(&self.query);
        loop {
            // Made before the chain is looked at, it misses nothing.
            let made = query.made.notified();
            if let Some(rows) = self.take() {
                return Ok(Next::Passed(rows));
            }
            query.inputs.check_removed(&self.positions)?;
            match self.look()? {
                Look::Again => continue,
                Look::AtEnd => return Ok(Next::AtEnd),
                Look::Alone => return self.step_alone(compute, now).await,
                Look::Make(making, rows) if rows <= ROWS_INLINE_MAX as u64 => making.run(now),
                Look::Make(making, _) => {
                    // Nobody's: who asked for it may be gone, or not go on for long.
                    let _task = compute.spawn(async move { making.run(now) });
                    made.await;
                }
                Look::Others => made.await,
            }
            if query.chain.lock().is_dry {
                return Ok(Next::AtEnd);
            }
        }
    }

    /// Goes on without the others.
    async fn step_alone(&mut self, compute: &Compute, now: Timestamp) -> Result<Next> {
        let (query, from) = (Arc::clone(&self.query), Arc::clone(&self.positions));
        let behind = query.inputs.behind(&from).as_usize();
        let work = move || query.step(&from, None, now);
        let Some((rows, positions)) = compute.run_if(behind > ROWS_INLINE_MAX, work).await? else {
            return Ok(Next::AtEnd);
        };
        self.positions = Arc::new(positions);
        Ok(Next::Passed(rows.map(RowBatch::from)))
    }

    /// The next link of the chain; `None` when there is none, or it is not on the chain.
    pub(crate) fn take(&mut self) -> Option<Option<RowBatch>> {
        let at = self.at?;
        let mut chain = self.query.chain.lock();
        if at < chain.base {
            self.at = None;
            return None;
        }
        let (rows, positions) = chain.take(at)?;
        drop(chain);
        (self.at, self.positions) = (Some(at + 1), positions);
        Some(rows)
    }

    /// What there is to do where it has taken all that is there. It joins the chain, if it is not before its end.
    fn look(&mut self) -> Result<Look> {
        let query = Arc::clone(&self.query);
        let behind = query.inputs.behind(&self.positions);
        let mut chain = query.chain.lock();
        let (to, rows) = match self.at {
            Some(at) if at != chain.end() => return Ok(Look::Again),
            Some(_) => match &chain.failure {
                Some(error) => return Err(error.clone()),
                None if behind == RowCount::ZERO => return Ok(Look::AtEnd),
                None => (None, behind.value()),
            },
            None if chain.seats == 0 => return Ok(self.join(&mut chain, true)),
            None if chain.head == self.positions => return Ok(self.join(&mut chain, false)),
            None => match rows_between(&chain.head, &self.positions) {
                // Also where it knows of partitions that the others have not heard of.
                None | Some(0) => return Ok(Look::Alone),
                // What is between is made first, up to here.
                Some(gap) if gap <= ROWS_INLINE_MAX as u64 && chain.failure.is_none() => {
                    (Some(Arc::clone(&self.positions)), gap)
                }
                // All who are on the chain are far behind, or are to hear why they cannot go on.
                Some(_) => return Ok(self.join(&mut chain, true)),
            },
        };
        if std::mem::replace(&mut chain.is_making, true) {
            return Ok(Look::Others);
        }
        chain.is_dry = false;
        let from = Arc::clone(&chain.head);
        drop(chain);
        Ok(Look::Make(Making { query, from, to, is_done: false }, rows))
    }

    /// Joins the chain at its end, which is where it stands or where the chain begins anew.
    fn join(&mut self, chain: &mut Chain, is_anew: bool) -> Look {
        if is_anew {
            chain.restart(&self.positions);
        }
        chain.seats += 1;
        // Equal to its own; from now on it is known by its address.
        (self.at, self.positions) = (Some(chain.end()), Arc::clone(&chain.head));
        Look::Again
    }
}

/// What a seat is to do next.
enum Look {
    /// To look again.
    Again,
    /// To wait for new events.
    AtEnd,
    /// To go on without the others.
    Alone,
    /// To make the next link, of about so many events.
    Make(Making, u64),
    /// To wait for others who make it.
    Others,
}

/// The next link of a chain, which is being made.
struct Making {
    query: Arc<SharedQuery>,
    from: Arc<SourcePositions>,
    /// Not of events after these.
    to: Option<Arc<SourcePositions>>,
    is_done: bool,
}

impl Making {
    fn run(mut self, now: Timestamp) {
        let step = self.query.step(&self.from, self.to.as_deref(), now);
        self.end(step);
    }

    fn end(&mut self, step: Result<Option<Step>>) {
        self.is_done = true;
        let mut chain = self.query.chain.lock();
        if !Arc::ptr_eq(&chain.head, &self.from) || chain.seats == 0 {
            // It began anew meanwhile, or nobody is left.
            return;
        }
        match step {
            Ok(None) => chain.is_dry = true,
            Ok(Some(step)) => chain.push(step, self.query.bytes_max),
            Err(error) => chain.failure = Some(error),
        }
    }
}

/// Who waits for a link that does not come, because of a panic or since the query threads stopped, is told so.
impl Drop for Making {
    fn drop(&mut self) {
        if !self.is_done {
            let is_defect = std::thread::panicking();
            if is_defect {
                tracing::error!("the step of a subscription panicked");
            }
            self.end(Err(if is_defect { defect() } else { shutting_down() }));
        }
        self.query.chain.lock().is_making = false;
        self.query.made.notify_waiters();
    }
}

/// Offsets from one place to another; `None` when it is not behind everywhere.
fn rows_between(from: &SourcePositions, to: &SourcePositions) -> Option<u64> {
    let mut rows = 0;
    for (from, to) in from.iter().zip(to) {
        if from.keys().any(|partition| !to.contains_key(partition)) {
            return None;
        }
        for (partition, to) in to {
            let from = from.get(partition).copied().unwrap_or_default();
            rows += to.value().checked_sub(from.value())?;
        }
    }
    Some(rows)
}
