//! A push query as a member of a consumer group: reads the partitions it is given, in their order.
//!
//! Owns which partition is read next, and the rows that were made and not yet taken. Leaves out how far the member is
//! (`group::consumer`), and delivery (server). Partitions are read one after the other, each in large batches; joined with
//! tables they are read together in the order of commits, so that each event finds the table as of its own.

use crate::engine::group::{Consumer, Delivery, Settled, TopicPartition, commit_died, position_of};
use crate::engine::input::{Positions, Reader, Split, Views};
use crate::engine::inputs::{Inputs, SourcePositions};
use crate::engine::push::{ROWS_INLINE_MAX, check_rows_stay, client_rows, dropped, shutting_down};
use crate::engine::shared::SharedQuery;
use crate::engine::{Engine, Idle, Result, RowBatch};
use crate::env;
use crate::replication::GroupPosition;
use arrow::array::RecordBatch;
use futures::Stream;
use futures::future::{BoxFuture, select_all};
use millstream_catalog::model::{EntryIndex, Offset, PartitionId, RowCount, Timestamp};
use millstream_sql::SqlError;
use millstream_sql::stream::{InputBatch, Pipeline, RowOrigins, StepInput};
use std::collections::{BTreeSet, VecDeque};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// How often offsets are committed of rows that are on the socket.
const WRITTEN_COMMIT_EVERY: Duration = Duration::from_millis(100);
/// How often offsets are committed of events that gave no row, while the client waits.
const PASSED_COMMIT_EVERY: Duration = Duration::from_secs(1);

/// The subscription of a member.
pub(crate) struct MemberSubscription {
    engine: Arc<Engine>,
    consumer: Arc<Consumer>,
    query: Arc<SharedQuery>,
    /// Of tables that events are joined with; `None` without any.
    tables: Option<Box<Tables>>,
    /// What the pipeline and `ready` were made under.
    seen: (u64, u64),
    /// Rows that were made and not taken.
    ready: VecDeque<RecordBatch>,
    versions: watch::Receiver<u64>,
    /// A topic may have partitions that the shard does not have yet.
    is_growing: bool,
    committing: Option<JoinHandle<Result<()>>>,
    idle: Idle,
}

/// The tables that a member has to itself.
struct Tables {
    /// Absent while it is on a query thread, and for good if it panics there.
    pipeline: Option<Pipeline>,
    /// What the pipeline has of them.
    positions: SourcePositions,
    /// Which sources they are.
    are_tables: Vec<bool>,
}

/// Events of one partition, and what comes before them of tables.
struct Piece {
    place: TopicPartition,
    batches: Vec<InputBatch>,
    /// Rows of the event at this offset that the group has taken before.
    taken: GroupPosition,
    /// The position after them.
    after: Offset,
}

/// Rows of one partition.
struct Made {
    place: TopicPartition,
    /// Rows that the group has taken before.
    start: usize,
    after: Offset,
    rows: Option<RecordBatch>,
    origins: RowOrigins,
}

impl MemberSubscription {
    /// Of the sources of `query`; those `are_tables` that rows are kept of, which each member reads whole.
    pub(crate) fn new(
        engine: &Arc<Engine>,
        consumer: &Arc<Consumer>,
        query: Arc<SharedQuery>,
        are_tables: Vec<bool>,
    ) -> Self {
        let joins_tables = are_tables.contains(&true);
        Self {
            engine: Arc::clone(engine),
            consumer: Arc::clone(consumer),
            query,
            tables: joins_tables.then(|| Box::new(Tables { pipeline: None, positions: Vec::new(), are_tables })),
            seen: (0, 0),
            ready: VecDeque::new(),
            versions: engine.replication().catalog().subscribe(),
            is_growing: true,
            committing: None,
            idle: Idle::default(),
        }
    }

    /// Whether it has given all there is.
    pub(crate) fn idle(&self) -> Idle {
        self.idle.clone()
    }

    /// The rows, which go on after an end that a rollback took back.
    pub(crate) fn into_stream(self) -> MemberStream {
        MemberStream { state: State::Idle(Box::new(self)) }
    }

    async fn next(&mut self) -> Option<Result<RecordBatch>> {
        // Who asks for rows says so; others wait until they have some.
        let is_written = self.consumer.delivery() == Delivery::Written;
        if is_written {
            self.consumer.set_waiting(true);
        }
        let next = loop {
            // Whatever wakes it, others have their turn.
            tokio::task::coop::consume_budget().await;
            if self.consumer.era() != self.seen.0 {
                self.ready.clear();
            }
            let left = self.consumer.limit().map_or(u64::MAX, |limit| limit.value().saturating_sub(self.rows_given()));
            if left == 0 {
                break None;
            }
            match self.advance(left).await {
                Ok(Some(batch)) => break Some(Ok(batch)),
                Ok(None) => {}
                Err(error) => {
                    Box::pin(self.consumer.quit()).await;
                    break Some(Err(error));
                }
            }
        };
        if is_written {
            self.consumer.set_waiting(false);
        }
        next
    }

    /// Rows that are the client's, or on their way to it.
    fn rows_given(&self) -> u64 {
        let ready: usize = self.ready.iter().map(RecordBatch::num_rows).sum();
        self.consumer.rows_given().saturating_sub(ready as u64)
    }

    /// Takes the next events, waiting for them; `None` when they gave no row. At most `left` rows.
    async fn advance(&mut self, left: u64) -> Result<Option<RecordBatch>> {
        if let Some(batch) = self.ready.pop_front() {
            return Ok(Some(batch));
        }
        self.commit_soon().await?;
        let settled = self.consumer.settle().await?;
        if (settled.era, settled.taken) != self.seen {
            self.consumer.rest();
            self.seen = (settled.era, settled.taken);
            self.ready.clear();
            Box::pin(self.begin_again()).await?;
            return Ok(None);
        }
        let ends = self.ends(&settled);
        if self.versions.has_changed().unwrap_or(false) {
            self.look_at_catalog()?;
        }
        let applied = self.growing();
        let read = match self.tables.is_some() {
            true => Box::pin(self.read_together(&settled, left)).await?,
            // While it waits it has no room for this.
            false => Box::pin(self.read_in_turn(&settled, left)).await?,
        };
        self.consumer.rest();
        if !read {
            self.wait(ends, applied).await?;
        }
        Ok(self.ready.pop_front())
    }

    /// Partitions are read from elsewhere than before: what was made of tables is of another time.
    async fn begin_again(&mut self) -> Result<()> {
        if let Some(tables) = &mut self.tables {
            tables.positions = self.query.inputs().readers().iter().map(Reader::starts).collect();
            let query = Arc::clone(&self.query);
            tables.pipeline = Some(self.engine.compute.run(async move { query.pipeline() }).await?);
        }
        Ok(())
    }

    fn readers(&self) -> &[Reader] {
        self.query.inputs().readers()
    }

    fn reader_of(&self, place: TopicPartition) -> Option<&Reader> {
        self.readers().iter().find(|reader| reader.relation.id == place.0)
    }

    /// What grows when there is more to read.
    fn ends(&self, settled: &Settled) -> Vec<watch::Receiver<Offset>> {
        let of_place = |(place, _): &(TopicPartition, GroupPosition)| {
            self.reader_of(*place)?.partitions.get(place.0, place.1).map(|partition| partition.subscribe())
        };
        settled.places.iter().filter_map(of_place).collect()
    }

    /// Reads some events of the first partition that has any; false when none has.
    async fn read_in_turn(&mut self, settled: &Settled, left: u64) -> Result<bool> {
        for (place, taken) in &settled.places {
            let Some(reader) = self.reader_of(*place) else { continue };
            let Some(partition) = reader.partitions.get(place.0, place.1) else { continue };
            let view = partition.view();
            let (from, taken) = (self.consumer.in_log(*place, taken.offset)?, *taken);
            let end = view.offset_end();
            if from >= end {
                continue;
            }
            let to = end.min(from.plus(RowCount::of(reader.rows_max)));
            let views = Views::from([(place.1, view)]);
            let (from, to) = (Positions::from([(place.1, from)]), Positions::from([(place.1, to)]));
            let (reader, place) = (reader.clone(), *place);
            let rows = to.values().zip(from.values()).map(|(to, from)| to.since(*from).as_usize()).sum();
            let read = move || {
                let read = reader.pieces(&views, &from, to, Split::Batches(reader.bytes_max))?;
                let after = read.positions.get(&place.1).copied().unwrap_or_default();
                let batches = read.pieces.into_iter().map(|(_, batch)| batch).collect();
                Ok(vec![Piece { place, batches, taken, after }])
            };
            self.compute(rows, left, read).await?;
            return Ok(true);
        }
        Ok(false)
    }

    /// Reads some events of all partitions, and changes of tables, in the order of commits; false when there are none.
    async fn read_together(&mut self, settled: &Settled, left: u64) -> Result<bool> {
        let Some(tables) = &self.tables else { return Ok(false) };
        let (mut positions, are_tables) = (tables.positions.clone(), tables.are_tables.clone());
        let mut readers = self.readers().to_vec();
        for (source, reader) in readers.iter_mut().enumerate().filter(|(source, _)| !are_tables[*source]) {
            let own = settled.places.iter().filter(|(place, _)| place.0 == reader.relation.id);
            let mut from = Positions::new();
            for (place, taken) in own {
                from.insert(place.1, self.consumer.in_log(*place, taken.offset)?);
            }
            reader.only = Some(Arc::new(from.keys().copied().collect::<BTreeSet<PartitionId>>()));
            if let Some(positions) = positions.get_mut(source) {
                *positions = from;
            }
        }
        let topics: Vec<_> = readers.iter().map(|reader| reader.relation.id).collect();
        let inputs = Inputs::new(readers);
        let behind = inputs.behind(&positions);
        if behind == RowCount::ZERO {
            return Ok(false);
        }
        let Some(input) =
            self.engine.compute.run_if(behind.as_usize() > ROWS_INLINE_MAX, move || inputs.next(&positions)).await?
        else {
            return Ok(false);
        };
        let mut pieces: Vec<Piece> = Vec::new();
        let mut before = Vec::new();
        for batch in input.batches {
            let place = (topics[batch.source], batch.partition);
            if are_tables[batch.source] {
                before.push(batch);
                continue;
            }
            let after = match &batch.offsets {
                Some(offsets) => offsets.values().last().map(|last| Offset::new(*last as u64 + 1)),
                None => Some(batch.offset_start.plus(RowCount::of(batch.batch.num_rows()))),
            };
            let after = after.unwrap_or(batch.offset_start);
            before.push(batch);
            match pieces.last_mut() {
                Some(last) if last.place == place => {
                    last.after = after;
                    last.batches.append(&mut before);
                }
                _ => {
                    let taken = settled.places.iter().find(|(of, _)| *of == place).map(|(_, taken)| *taken);
                    let (batches, taken) = (std::mem::take(&mut before), taken.unwrap_or_default());
                    pieces.push(Piece { place, batches, taken, after });
                }
            }
        }
        // Positions also pass what compaction has removed.
        for piece in &mut pieces {
            let source = topics.iter().position(|topic| *topic == piece.place.0);
            let to = source.and_then(|source| input.positions.get(source)?.get(&piece.place.1));
            piece.after = piece.after.min(to.copied().unwrap_or(piece.after));
        }
        if !before.is_empty() {
            self.take_tables(before).await?;
        }
        let rows = input.rows.as_usize();
        self.compute(rows, left, move || Ok(pieces)).await?;
        self.tables.iter_mut().for_each(|tables| tables.positions.clone_from(&input.positions));
        Ok(true)
    }

    /// Changes of tables behind which no event came.
    async fn take_tables(&mut self, batches: Vec<InputBatch>) -> Result<()> {
        let now = self.engine.clock().now();
        let mut pipeline = self.take_pipeline()?;
        let work = async move {
            pipeline.step_traced(&StepInput { batches, idle: &[], now })?;
            Ok(pipeline)
        };
        let pipeline = self.engine.compute.run(work).await?;
        self.give_back(pipeline);
        Ok(())
    }

    fn take_pipeline(&mut self) -> Result<Pipeline> {
        match &mut self.tables {
            Some(tables) => tables.pipeline.take().ok_or_else(|| SqlError::internal("the subscription has ended")),
            None => self.query.pipeline(),
        }
    }

    fn give_back(&mut self, pipeline: Pipeline) {
        match &mut self.tables {
            Some(tables) => tables.pipeline = Some(pipeline),
            None => self.query.give_back(pipeline),
        }
    }

    /// Runs the pipeline over what `read` gives, about `rows` events, and keeps at most `left` rows.
    async fn compute(
        &mut self,
        rows: usize,
        left: u64,
        read: impl FnOnce() -> Result<Vec<Piece>> + Send + 'static,
    ) -> Result<()> {
        let now = self.engine.clock().now();
        let mut pipeline = self.take_pipeline()?;
        let work = move || {
            let made =
                read()?.into_iter().map(|piece| step(&mut pipeline, piece, now)).collect::<Result<Vec<Made>>>()?;
            Ok((pipeline, made))
        };
        let (pipeline, made) = self.engine.compute.run_if(rows > ROWS_INLINE_MAX, work).await?;
        self.give_back(pipeline);
        check_rows_stay(&self.engine, self.readers())?;
        let mut left = usize::try_from(left).unwrap_or(usize::MAX);
        for Made { place, start, after, rows, origins } in made {
            let count = rows.as_ref().map_or(0, RecordBatch::num_rows) - start;
            let given = count.min(left);
            // Of the last rows there will be: what gives the others is not read.
            let cut = if given < count { position_of(&origins, start + given) } else { None };
            let after = cut.unwrap_or_else(|| after.into());
            if !self.consumer.give(self.seen.0, (place, after), start..start + given, origins) {
                break;
            }
            self.ready.extend(rows.filter(|_| given > 0).map(|rows| rows.slice(start, given)));
            left -= given;
            if given < count {
                break;
            }
        }
        Ok(())
    }

    async fn wait(
        &mut self,
        mut ends: Vec<watch::Receiver<Offset>>,
        mut applied: Option<watch::Receiver<EntryIndex>>,
    ) -> Result<()> {
        let commit_at = self.commit_at();
        let grown = async {
            match ends.is_empty() {
                true => std::future::pending().await,
                false => {
                    let (result, ..) = select_all(ends.iter_mut().map(|end| Box::pin(end.changed()))).await;
                    if result.is_err() {
                        // A dropped partition does not grow; the catalog tells of it.
                        std::future::pending::<()>().await;
                    }
                }
            }
        };
        let _idle = self.idle.begin();
        tokio::select! {
            () = grown => {}
            () = self.consumer.changed() => {}
            () = until(commit_at) => {}
            ended = joined(&mut self.committing) => {
                self.committing = None;
                ended?;
            }
            () = next_entry(&mut applied) => {}
            changed = self.versions.changed() => {
                changed.map_err(|_| shutting_down())?;
                self.look_at_catalog()?;
            }
            () = self.engine.shutdown_token().cancelled() => return Err(shutting_down()),
        }
        Ok(())
    }

    /// The catalog changed: its topics may have been dropped, or have more partitions.
    fn look_at_catalog(&mut self) -> Result<()> {
        self.versions.mark_unchanged();
        let catalog = self.engine.catalog();
        let is_gone = |reader: &&Reader| catalog.relation_by_id(reader.relation.id).is_none();
        if let Some(reader) = self.readers().iter().find(is_gone) {
            return Err(dropped(&reader.relation));
        }
        self.is_growing = true;
        Ok(())
    }

    /// Tells the group of partitions that were added. While the shard does not have them yet, what to wait for.
    fn growing(&mut self) -> Option<watch::Receiver<EntryIndex>> {
        if !self.is_growing {
            return None;
        }
        let applied = self.readers().first().map(|reader| reader.partitions.subscribe_applied());
        let catalog = self.engine.catalog();
        let is_behind = |reader: &Reader| {
            let now = catalog.relation_by_id(reader.relation.id);
            now.is_some_and(|now| now.options.partitions as usize > reader.ids().len())
        };
        self.is_growing = self.readers().iter().any(is_behind);
        self.consumer.grow();
        applied.filter(|_| self.is_growing)
    }

    /// When offsets are to be committed next, though the client asks for nothing.
    fn commit_at(&self) -> Option<Instant> {
        if self.committing.is_some() {
            return None;
        }
        let every = match self.consumer.delivery() {
            Delivery::Written => WRITTEN_COMMIT_EVERY,
            Delivery::Asked => PASSED_COMMIT_EVERY,
        };
        self.consumer.commit_at(self.consumer.commit_interval().unwrap_or(every))
    }

    /// Commits offsets, if that is due, while the rows go on.
    async fn commit_soon(&mut self) -> Result<()> {
        if let Some(task) = self.committing.take_if(|task| task.is_finished()) {
            joined(&mut Some(task)).await?;
        }
        if self.commit_at().is_some_and(|at| at <= env::instant()) {
            let consumer = Arc::clone(&self.consumer);
            self.committing = Some(env::spawn("commit-offsets", async move { consumer.commit().await }));
        }
        Ok(())
    }
}

/// What the client has taken is committed, whoever ends the subscription; the member leaves after that.
impl Drop for MemberSubscription {
    fn drop(&mut self) {
        if self.consumer.commit_at(Duration::ZERO).is_some() {
            let consumer = Arc::clone(&self.consumer);
            let _task = env::spawn("commit-offsets", async move { consumer.commit_rest().await });
        }
        self.consumer.close();
    }
}

async fn next_entry(applied: &mut Option<watch::Receiver<EntryIndex>>) {
    let Some(applied) = applied else { return std::future::pending().await };
    if applied.changed().await.is_err() {
        // A shard that ended applies nothing more.
        std::future::pending::<()>().await;
    }
}

/// The end of a commit that is on its way.
async fn joined(task: &mut Option<JoinHandle<Result<()>>>) -> Result<()> {
    match task {
        Some(task) => task.await.unwrap_or_else(|_| Err(commit_died())),
        None => std::future::pending().await,
    }
}

async fn until(moment: Option<Instant>) {
    match moment {
        Some(moment) => tokio::time::sleep_until(moment.into()).await,
        None => std::future::pending().await,
    }
}

fn step(pipeline: &mut Pipeline, piece: Piece, now: Timestamp) -> Result<Made> {
    let Piece { place, batches, taken, after } = piece;
    let (rows, origins) = pipeline.step_traced(&StepInput { batches, idle: &[], now })?;
    let rows = client_rows(pipeline, rows)?;
    let count = rows.as_ref().map_or(0, RecordBatch::num_rows).min(taken.rows as usize);
    let start = (0..count).take_while(|row| origins.offset(*row) == Some(taken.offset)).count();
    Ok(Made { place, start, after, rows, origins })
}

/// The rows of a member as a stream that may end and go on: a rollback takes the end back too.
pub(crate) struct MemberStream {
    state: State,
}

type Next = (Box<MemberSubscription>, Option<Result<RecordBatch>>);

enum State {
    Idle(Box<MemberSubscription>),
    Waiting(BoxFuture<'static, Next>),
    Gone,
}

impl Stream for MemberStream {
    type Item = Result<RowBatch>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let mut next = match std::mem::replace(&mut self.state, State::Gone) {
            State::Idle(mut subscription) => Box::pin(async move {
                let next = subscription.next().await;
                (subscription, next)
            }),
            State::Waiting(next) => next,
            State::Gone => return Poll::Ready(None),
        };
        match next.as_mut().poll(cx) {
            Poll::Pending => {
                self.state = State::Waiting(next);
                Poll::Pending
            }
            Poll::Ready((subscription, next)) => {
                if !matches!(next, Some(Err(_))) {
                    self.state = State::Idle(subscription);
                }
                Poll::Ready(next.map(|next| next.map(RowBatch::from)))
            }
        }
    }
}
