//! What a query of any number of sources reads next: their events in the one order in which they were committed.
//!
//! Within an entry, rows of tables come before events of streams, which see the tables as of their own commit. Leaves out
//! how one source is read (`input`). Reads only.

use crate::engine::input::{CutResult, Input, Pieces, Positions, Reader, Split, Views, Waiting};
use crate::engine::input::{cut_entry, ends_of, from_start, position, stop_at};
use crate::engine::{Result, read_error};
use crate::storage::StorageError;
use millstream_catalog::model::{ByteSize, EntryIndex, Offset, PartitionId, RowCount, TopicId};
use millstream_catalog::{Relation, RelationKind};
use millstream_sql::SqlError;
use millstream_sql::stream::InputBatch;

/// Next offsets to read, by source.
pub(crate) type SourcePositions = Vec<Positions>;

/// Events of one step.
#[derive(Debug)]
pub(crate) struct StepEvents {
    /// The batches, in total order.
    pub(crate) batches: Vec<InputBatch>,
    /// Positions after them.
    pub(crate) positions: SourcePositions,
    /// Their number.
    pub(crate) rows: RowCount,
}

/// Reads the sources of a query, all of one shard.
#[derive(Debug, Clone)]
pub(crate) struct Inputs {
    readers: Vec<Reader>,
}

impl Inputs {
    /// Of sources in the order of the query's.
    pub(crate) fn new(readers: Vec<Reader>) -> Self {
        Self { readers }
    }

    /// The readers of the sources.
    pub(crate) fn readers(&self) -> &[Reader] {
        &self.readers
    }

    /// The next events after `from`; `None` when there are none.
    ///
    /// # Errors
    /// When the log cannot be read; SE001.
    pub(crate) fn next(&self, from: &SourcePositions) -> Result<Option<StepEvents>> {
        self.next_within(from, None)
    }

    /// As [`Inputs::next`], and none after `limit`, which is where a step ended.
    ///
    /// # Errors
    /// When the log cannot be read; SE001.
    pub(crate) fn next_within(
        &self,
        from: &SourcePositions,
        limit: Option<&SourcePositions>,
    ) -> Result<Option<StepEvents>> {
        if let ([reader], [from]) = (self.readers.as_slice(), from.as_slice()) {
            let single = |Input { batches, positions, rows }| StepEvents { batches, positions: vec![positions], rows };
            let limit = limit.and_then(|limit| limit.first());
            return Ok(reader.next(from, limit)?.map(single));
        }
        match self.readers.first().map(|reader| reader.partitions.applied()) {
            Some(applied) => self.next_cut(from, applied, limit),
            None => Ok(None),
        }
    }

    /// The next events after `from` that were committed by the entry `applied`.
    ///
    /// # Errors
    /// When the log cannot be read; SE001.
    pub(crate) fn next_up_to(&self, from: &SourcePositions, applied: EntryIndex) -> Result<Option<StepEvents>> {
        self.next_cut(from, applied, None)
    }

    fn next_cut(
        &self,
        from: &SourcePositions,
        applied: EntryIndex,
        limit: Option<&SourcePositions>,
    ) -> Result<Option<StepEvents>> {
        let views: Vec<Views> = self.readers.iter().map(Reader::views).collect();
        for (reader, from) in self.readers.iter().zip(from) {
            reader.check_removed(from)?;
        }
        let stored: Vec<Positions> = views.iter().zip(from).map(|(views, from)| from_start(views, from)).collect();
        let target = self.readers.iter().zip(&views).map(|(reader, views)| reader.rows_target(views)).min();
        let to = self.cut(&views, &stored, applied, target.unwrap_or(1));
        let mut to = to.map_err(|error| self.error(error))?;
        to.iter_mut().zip(limit.into_iter().flatten()).for_each(|(to, limit)| stop_at(to, limit));
        let is_past = |(views, (from, to)): (&Views, (&Positions, &Positions))| {
            views.keys().all(|id| position(to, *id) <= position(from, *id))
        };
        if views.iter().zip(from.iter().zip(&to)).all(is_past) {
            return Ok(None);
        }
        self.read(&views, &stored, to).map(Some)
    }

    fn cut(&self, views: &[Views], from: &[Positions], applied: EntryIndex, target: u64) -> CutResult<SourcePositions> {
        let all: Vec<(&Views, &Positions)> = views.iter().zip(from).collect();
        let entry = cut_entry(&all, applied, target)?;
        all.iter().map(|(views, from)| ends_of(views, from, entry)).collect()
    }

    fn error(&self, error: StorageError) -> SqlError {
        match self.readers.first() {
            Some(reader) => read_error(&reader.relation.name, error),
            None => SqlError::internal(error.to_string()),
        }
    }

    fn read(&self, views: &[Views], from: &[Positions], to: SourcePositions) -> Result<StepEvents> {
        let mut all: Vec<(EntryIndex, InputBatch)> = Vec::new();
        let (mut positions, mut rows) = (Vec::with_capacity(to.len()), RowCount::ZERO);
        for (number, (reader, to)) in self.readers.iter().zip(to).enumerate() {
            let read = reader.pieces(&views[number], &from[number], to, Split::Entries)?;
            let Pieces { pieces, positions: after, rows: count } = read;
            all.extend(pieces);
            positions.push(after);
            rows = rows.plus(count);
        }
        let is_stream = |batch: &InputBatch| self.readers[batch.source].relation.kind == RelationKind::Stream;
        all.sort_by_key(|(entry, batch)| (*entry, is_stream(batch), batch.source, batch.partition));
        Ok(StepEvents { batches: all.into_iter().map(|(_, batch)| batch).collect(), positions, rows })
    }

    /// The events from `from` to `to`, as one step had them.
    ///
    /// # Errors
    /// When the log cannot be read.
    pub(crate) fn between(&self, from: &SourcePositions, to: &SourcePositions) -> Result<StepEvents> {
        if let ([reader], [from], [to]) = (self.readers.as_slice(), from.as_slice(), to.as_slice()) {
            let Input { batches, positions, rows } = reader.between(from, to)?;
            return Ok(StepEvents { batches, positions: vec![positions], rows });
        }
        let views: Vec<Views> = self.readers.iter().map(Reader::views).collect();
        let to = views.iter().zip(from.iter().zip(to)).map(|(views, (from, to))| {
            views.keys().map(|id| (*id, position(to, *id).max(position(from, *id)))).collect()
        });
        self.read(&views, from, to.collect())
    }

    /// The positions of the sources among those of topics.
    pub(crate) fn positions<'a>(
        &self,
        positions: impl Iterator<Item = ((TopicId, PartitionId), &'a Offset)> + Clone,
    ) -> SourcePositions {
        let of = |reader: &Reader| {
            let own = positions.clone().filter(|((topic, _), _)| *topic == reader.relation.id);
            own.map(|((_, id), offset)| (id, *offset)).collect()
        };
        self.readers.iter().map(of).collect()
    }

    /// Positions by topic and partition.
    pub(crate) fn flat(&self, positions: &SourcePositions) -> Vec<((TopicId, PartitionId), Offset)> {
        let of = |(reader, positions): (&Reader, &Positions)| {
            let topic = reader.relation.id;
            positions.iter().map(move |(id, offset)| ((topic, *id), *offset)).collect::<Vec<_>>()
        };
        self.readers.iter().zip(positions).flat_map(of).collect()
    }

    /// Who reads went on from `from` to `to` and does not come back.
    pub(crate) fn pass(&self, from: &SourcePositions, to: &SourcePositions) {
        self.readers.iter().zip(from.iter().zip(to)).for_each(|(reader, (from, to))| reader.pass(from, to));
    }

    /// About how many bytes of each source are taken at once from now on.
    pub(crate) fn take_about(&mut self, bytes: impl Fn(&Relation) -> ByteSize) {
        self.readers.iter_mut().for_each(|reader| reader.bytes_max = bytes(&reader.relation));
    }

    /// The number of events after `from`, or about as many.
    pub(crate) fn behind(&self, from: &SourcePositions) -> RowCount {
        let behind = self.readers.iter().zip(from).map(|(reader, from)| reader.behind(from));
        behind.fold(RowCount::ZERO, RowCount::plus)
    }

    /// Whether all events after `from` are there, or need not be.
    ///
    /// # Errors
    /// SE001.
    pub(crate) fn check_removed(&self, from: &SourcePositions) -> Result<()> {
        self.readers.iter().zip(from).try_for_each(|(reader, from)| reader.check_removed(from))
    }

    /// Something to wait for new events with; made before `next`, it misses none.
    pub(crate) fn waiting(&self) -> Waiting {
        Waiting { ends: self.readers.iter().flat_map(|reader| reader.waiting().ends).collect() }
    }
}
