//! A continuous query as a graph of operators, driven step by step.
//!
//! Owns the order of things within a step, and the whole of the saved state. Leaves out making the graph from a plan
//! (`plan::pipeline`), how events become rows (`source`), and everything about storage and commit. The engine's task of the query owns one pipeline and calls
//! it from one thread at a time; after a crash it makes a new one, restores the last checkpoint and repeats the steps.

mod skip;

use super::delta::{Delta, NEVER, Origin, arrow_error};
use super::expression::StepNow;
use super::operator::Operator;
use super::part::{Part, StateFile, StateStore};
use super::parted::Parted;
use super::save::{StateReader, StateWriter};
use super::sink::Sink;
use super::source::{SourceReader, read};
use super::time::EventTime;
use crate::error::SqlError;
use arrow::array::{Int64Array, RecordBatch, UInt32Array};
use arrow::datatypes::SchemaRef;
use millstream_catalog::model::{ByteSize, Offset, PartitionId, RowCount, SqlState, Timestamp};
use millstream_catalog::{Column, RelationKind, Schema};
pub use skip::{Again, SkippedEvent};
use skip::{Failed, Skipping};
use std::sync::Arc;
use std::sync::atomic::AtomicI64;

/// What a continuous query gives.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Output {
    /// The columns of the sink: those of the select list in order, then `windowstart` and `windowend` of a windowed
    /// aggregate if they were not selected, then hidden key columns.
    pub columns: Vec<Column>,
    /// A stream, or a table where rows change or go away.
    pub kind: RelationKind,
    /// How many of `columns` are the select list: what a push query shows.
    pub selected: usize,
}

impl Output {
    /// The stored schema of the sink: the columns, `rowtime`, and `rowtombstone` if the sink has a key.
    pub fn stored_schema(&self) -> SchemaRef {
        Schema { columns: self.columns.clone() }.stored(self.has_tombstones())
    }

    /// True when the sink is a table with a key.
    pub fn has_tombstones(&self) -> bool {
        self.kind == RelationKind::Table && self.columns.iter().any(|column| column.is_key)
    }

    /// Checks that the columns can be those of a relation.
    ///
    /// # Errors
    /// 42701 when two have one name, or one has the name of a pseudo-column.
    pub fn check_storable(&self) -> Result<(), SqlError> {
        use millstream_catalog::schema::{ROWOFFSET, ROWPARTITION, ROWTIME, ROWTOMBSTONE};
        let mut names = std::collections::HashSet::from([ROWTIME, ROWTOMBSTONE, ROWPARTITION, ROWOFFSET]);
        for column in &self.columns {
            let name = column.name.as_str();
            if !names.insert(name) {
                let is_own = matches!(name, ROWTIME | ROWTOMBSTONE | ROWPARTITION | ROWOFFSET);
                let message = match is_own {
                    true => format!("column name \"{name}\" conflicts with a pseudo-column"),
                    false => format!("column \"{name}\" specified more than once"),
                };
                return Err(SqlError::new(SqlState::DuplicateColumn, message).hint("give it another name with AS"));
            }
        }
        Ok(())
    }

    /// What a push query shows of stored rows: the select list. A row that went away has NULL in all but its key.
    pub fn client_rows(&self, stored: &RecordBatch) -> Result<RecordBatch, SqlError> {
        stored.project(&(0..self.selected).collect::<Vec<_>>()).map_err(arrow_error)
    }
}

/// A batch of events of one partition.
#[derive(Debug, Clone)]
pub struct InputBatch {
    /// Position of the source among the query's sources.
    pub source: usize,
    /// The partition.
    pub partition: PartitionId,
    /// The offset of the first row.
    pub offset_start: Offset,
    /// The offset of each row, ascending, where they do not simply follow each other.
    pub offsets: Option<Int64Array>,
    /// The stored columns at [`Pipeline::projection`], in that order.
    pub batch: RecordBatch,
}

impl InputBatch {
    /// Its events, each for itself.
    fn each(&self) -> impl Iterator<Item = Self> {
        (0..self.batch.num_rows()).map(|row| {
            let offset = match &self.offsets {
                Some(offsets) => Offset::new(offsets.value(row) as u64),
                None => self.offset_start.plus(RowCount::of(row)),
            };
            Self { offset_start: offset, offsets: None, batch: self.batch.slice(row, 1), ..self.clone() }
        })
    }
}

/// What one step takes.
#[derive(Debug, Clone)]
pub struct StepInput<'a> {
    /// The events, in total order of commit.
    pub batches: Vec<InputBatch>,
    /// Sources and partitions that hold event time back no longer. One counts again from its next event on.
    pub idle: &'a [(usize, PartitionId)],
    /// What `now()` gives.
    pub now: Timestamp,
}

/// What one step gives.
#[derive(Debug, Clone)]
pub struct StepOutput {
    /// Rows of the sink's stored schema, in order; `None` when there are none.
    pub batch: Option<RecordBatch>,
    /// Events taken.
    pub input_rows: RowCount,
    /// Events dropped as late.
    pub late_rows: RowCount,
}

/// Which event each row of an output stems from.
#[derive(Debug, Clone)]
pub struct RowOrigins {
    origin: Arc<Origin>,
    rows: Option<UInt32Array>,
}

impl RowOrigins {
    /// The offset of the event that `row` stems from, in its partition.
    pub fn offset(&self, row: usize) -> Option<Offset> {
        let event = match &self.rows {
            None => row,
            Some(rows) => *rows.values().get(row)? as usize,
        };
        self.origin.place(event).map(|place| place.offset)
    }
}

/// Where an operator's input comes from.
#[derive(Debug, Clone)]
pub(crate) enum Edge {
    /// Columns of a source, by their positions among those its reader gives.
    Source {
        /// The source.
        source: usize,
        /// The columns.
        columns: Vec<usize>,
        /// Their schema.
        schema: SchemaRef,
    },
    /// The operator at this position.
    Node(usize),
}

impl Edge {
    fn text(&self) -> String {
        match self {
            Self::Source { source, columns, .. } => format!("source {source} {columns:?}"),
            Self::Node(node) => format!("node {node}"),
        }
    }
}

/// An operator and what it reads.
pub(crate) struct Node {
    /// The operator.
    pub(crate) operator: Box<dyn Operator>,
    /// Its inputs: sources, and operators before it.
    pub(crate) inputs: Vec<Edge>,
}

/// Everything a pipeline is made of.
pub(crate) struct Parts {
    /// The readers of the sources.
    pub(crate) sources: Vec<SourceReader>,
    /// Event time of the query.
    pub(crate) time: EventTime,
    /// The operators, each after those it reads.
    pub(crate) nodes: Vec<Node>,
    /// What the sink reads.
    pub(crate) root: Edge,
    /// The last stage.
    pub(crate) sink: Sink,
    /// What comes out.
    pub(crate) output: Output,
    /// The cell `now()` reads.
    pub(crate) now: Arc<AtomicI64>,
    /// How much is taken at once.
    pub(crate) steps: Steps,
    /// Whether rows of streams are kept for ever.
    pub(crate) is_unbounded: bool,
    /// Whether time by itself may give rows.
    pub(crate) waits_for_time: bool,
}

impl Parts {
    /// The number of the operator at `at`, what it is, and what it reads.
    fn shown(&self, at: usize, node: &Node) -> String {
        let text = node.operator.fingerprint();
        let source = |edge: &Edge| match edge {
            Edge::Node(at) => at.checked_add(1).map_or_else(String::new, |number| format!("operator {number}")),
            Edge::Source { source, .. } => {
                let name = self.sources.get(*source).map_or("", |source| source.name.as_str());
                format!("\"{name}\"")
            }
        };
        let inputs: Vec<String> = node.inputs.iter().map(source).collect();
        let name = text.split('(').next().unwrap_or_default();
        format!("operator {}: {name} of {}", at + 1, inputs.join(" and "))
    }
}

/// How much of a step's events the operators take at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Steps {
    /// All of them: changes of a row are merged into the last.
    Whole,
    /// One after the other: each has its own changes.
    Each,
}

/// Rows that an operator took and made.
#[derive(Debug, Clone, Copy, Default)]
struct Flow {
    rows_in: RowCount,
    rows_out: RowCount,
}

/// An operator of a running query, for people.
#[derive(Debug, Clone)]
pub struct OperatorShown {
    /// Its number, what it is, and what it reads.
    pub text: Arc<str>,
    /// Its state, if it has any.
    pub state: Option<ByteSize>,
    /// What of that is in files only.
    pub spilled: ByteSize,
    /// Rows it took since the query started here.
    pub rows_in: RowCount,
    /// Rows it made since.
    pub rows_out: RowCount,
}

impl std::fmt::Display for OperatorShown {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.text)?;
        self.state.map_or(Ok(()), |state| write!(f, ", {state} bytes of state"))?;
        match self.spilled {
            ByteSize::ZERO => Ok(()),
            spilled => write!(f, " ({spilled} on disk)"),
        }
    }
}

/// A running continuous query.
///
/// Deterministic: equal state and equal input give equal output. How the log is cut into steps changes only which
/// intermediate forms of a row appear; the last form, the state and the late events are the same.
pub struct Pipeline {
    pub(super) parts: Parts,
    /// How often each operator is read.
    readers: Vec<usize>,
    /// What each is, for people.
    texts: Vec<Arc<str>>,
    /// What each has taken and made since the pipeline was.
    flows: Vec<Flow>,
    fingerprint: String,
    pub(super) store: Option<Arc<dyn StateStore>>,
    /// The files of the last saved state.
    saved: Vec<Arc<StateFile>>,
}

/// A pipeline's state.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SavedState {
    /// The state, versioned; layout in `save`.
    pub bytes: Vec<u8>,
    /// The files it names, ascending. They are held until the pipeline saves its state again.
    pub files: Vec<u64>,
}

impl std::fmt::Debug for Pipeline {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pipeline").field("output", &self.parts.output).field("fingerprint", &self.fingerprint).finish()
    }
}

impl Pipeline {
    /// Chains the parts.
    ///
    /// # Errors
    /// XX000.
    pub(crate) fn new(parts: Parts) -> Result<Self, SqlError> {
        let parted = |node: Node| match node.operator.is_stateful() && node.operator.fresh()?.is_some() {
            true => Ok(Node { operator: Box::new(Parted::new(node.operator)), ..node }),
            false => Ok(node),
        };
        let nodes = parts.nodes.into_iter().map(parted).collect::<Result<_, SqlError>>()?;
        let parts = Parts { nodes, ..parts };
        let sources = parts.sources.iter().map(SourceReader::text);
        let nodes = parts.nodes.iter().map(|node| {
            let inputs: Vec<String> = node.inputs.iter().map(Edge::text).collect();
            format!("{} of {}", node.operator.fingerprint(), inputs.join(", "))
        });
        let mut lines: Vec<String> = sources.chain(nodes).collect();
        lines.push(format!("{} of {}", parts.sink.text(), parts.root.text()));
        lines.push(format!("{:?}", parts.steps));
        let mut readers = vec![0; parts.nodes.len()];
        for edge in parts.nodes.iter().flat_map(|node| &node.inputs).chain([&parts.root]) {
            if let Edge::Node(at) = edge
                && let Some(readers) = readers.get_mut(*at)
            {
                *readers += 1;
            }
        }
        Ok(Self {
            fingerprint: format!("2-{:016x}", fnv(lines.join(" | ").as_bytes())),
            texts: parts.nodes.iter().enumerate().map(|(at, node)| parts.shown(at, node).into()).collect(),
            flows: vec![Flow::default(); readers.len()],
            readers,
            parts,
            store: None,
            saved: Vec::new(),
        })
    }

    /// Gives it a place for state that is too much for memory, or to be saved at once.
    pub fn set_store(&mut self, store: Arc<dyn StateStore>) {
        self.store = Some(store);
    }

    /// Keeps about so many bytes of state in memory from now on, where operators can do with less than all of theirs. Each
    /// has a part of them as large as its part of the state. Of a query that gives every change, all stays.
    ///
    /// # Errors
    /// As [`StateStore::write`].
    pub fn keep_within(&mut self, bytes: ByteSize) -> Result<(), SqlError> {
        let Some(store) = &self.store else { return Ok(()) };
        // With a step for each event, each would read a part and write one.
        let bytes = if self.parts.steps == Steps::Each { ByteSize::new(u64::MAX) } else { bytes };
        let all = self.state_bytes().value();
        for node in self.parts.nodes.iter_mut().filter(|node| node.operator.is_stateful()) {
            let own = node.operator.state_bytes().value();
            let part = u128::from(bytes.value()) * u128::from(own) / u128::from(all.max(1));
            let rest = bytes.value().saturating_sub(all - own);
            node.operator.keep_within(rest.max(u64::try_from(part).unwrap_or(u64::MAX)), store)?;
        }
        Ok(())
    }

    /// The sink's columns.
    pub fn output(&self) -> &Output {
        &self.parts.output
    }

    /// A text that differs whenever the operators, or the layout of their state, do. State saved by a pipeline is for
    /// pipelines of equal fingerprint only.
    pub fn fingerprint(&self) -> String {
        self.fingerprint.clone()
    }

    /// Names of the columns of a source that are read, for people.
    pub fn columns_read(&self, source: usize) -> impl Iterator<Item = &str> {
        let reader = self.parts.sources.get(source);
        reader.into_iter().flat_map(|reader| reader.schema.fields().iter().map(|field| field.name().as_str()))
    }

    /// True when the sink's table has one row and a key nobody asked for.
    pub fn has_one_row(&self) -> bool {
        self.parts.sink.has_one_row()
    }

    /// Whether what comes of later events depends on the rows a source has had: it is a table, or joined.
    pub fn keeps_rows_of(&self, source: usize) -> bool {
        self.parts.sources.get(source).is_some_and(|reader| reader.keeps_rows)
    }

    /// Whether rows of streams are kept for ever, as a join without a range of time does.
    pub fn is_unbounded(&self) -> bool {
        self.parts.is_unbounded
    }

    /// Whether time by itself may give rows.
    pub fn waits_for_time(&self) -> bool {
        self.parts.waits_for_time
    }

    /// True when later output depends on earlier events, so that checkpoints are worth taking.
    pub fn is_stateful(&self) -> bool {
        self.operators().any(Operator::is_stateful)
    }

    /// Whether members of a consumer group may share the work: what comes of an event depends on no other event, but for
    /// rows of tables, and its rows stand together, in the order of events.
    pub fn is_shareable(&self) -> bool {
        let edges = || self.parts.nodes.iter().flat_map(|node| &node.inputs).chain([&self.parts.root]);
        let reads =
            |of: usize| edges().filter(|edge| matches!(edge, Edge::Source { source, .. } if *source == of)).count();
        let is_once = |source: usize| self.keeps_rows_of(source) || reads(source) == 1;
        (0..self.parts.sources.len()).all(is_once)
            && self.operators().all(Operator::is_shareable)
            && !self.parts.sink.merges()
    }

    /// True when a new pipeline gives a row in a step without events, so that such a step is worth taking.
    pub fn begins_with_row(&self) -> bool {
        self.operators().any(Operator::begins_with_row)
    }

    /// Positions in the stored schema of a source that the pipeline reads, `rowtime` among them.
    pub fn projection(&self, source: usize) -> &[usize] {
        self.parts.sources.get(source).map_or(&[], |reader| &reader.projection)
    }

    /// Event time of the query; `None` before every partition that is not idle had an event.
    pub fn watermark(&self) -> Option<Timestamp> {
        self.parts.time.time()
    }

    /// State that is in files and not in memory, in bytes of memory it would take.
    pub fn spilled_bytes(&self) -> ByteSize {
        self.operators().fold(ByteSize::ZERO, |sum, operator| sum.plus(operator.spilled_bytes()))
    }

    /// State, in bytes of memory, about; also what is in files only.
    pub fn state_bytes(&self) -> ByteSize {
        self.operators().fold(ByteSize::ZERO, |sum, operator| sum.plus(operator.state_bytes()))
    }

    fn operators(&self) -> impl Iterator<Item = &dyn Operator> {
        self.parts.nodes.iter().map(|node| node.operator.as_ref())
    }

    /// The operators, each after those it reads.
    pub fn operators_shown(&self) -> Vec<OperatorShown> {
        let shown = |((node, flow), text): ((&Node, &Flow), &Arc<str>)| OperatorShown {
            text: Arc::clone(text),
            state: node.operator.is_stateful().then(|| node.operator.state_bytes()),
            spilled: node.operator.spilled_bytes(),
            rows_in: flow.rows_in,
            rows_out: flow.rows_out,
        };
        self.parts.nodes.iter().zip(&self.flows).zip(&self.texts).map(shown).collect()
    }

    /// Takes the events of one step. A step without events may still give output: time passes when partitions are
    /// idle, and a global aggregate has its row at the first step.
    ///
    /// # Errors
    /// The SQL error of an expression or aggregate, the partition and offset of the event in its detail. The pipeline
    /// is then in no defined state and must be dropped.
    pub fn step(&mut self, input: &StepInput<'_>) -> Result<StepOutput, SqlError> {
        self.run(input, None)
    }

    fn run(&mut self, input: &StepInput<'_>, mut skipping: Option<&mut Skipping>) -> Result<StepOutput, SqlError> {
        if self.parts.steps == Steps::Whole {
            return self.take(input, skipping);
        }
        let mut whole = self.take(&StepInput { batches: Vec::new(), ..*input }, skipping.as_deref_mut())?;
        let mut rows: Vec<RecordBatch> = whole.batch.into_iter().collect();
        for batch in input.batches.iter().flat_map(InputBatch::each) {
            let one = StepInput { batches: vec![batch.clone()], ..*input };
            let one = match (self.take(&one, skipping.as_deref_mut()), skipping.as_deref_mut()) {
                (Err(error), Some(skipping)) => {
                    skipping.note_only(&batch, &error);
                    return Err(error);
                }
                (one, _) => one?,
            };
            rows.extend(one.batch);
            whole.input_rows = whole.input_rows.plus(one.input_rows);
            whole.late_rows = whole.late_rows.plus(one.late_rows);
        }
        let batch = match rows.as_slice() {
            [] => None,
            [first, ..] => Some(arrow::compute::concat_batches(&first.schema(), &rows).map_err(arrow_error)?),
        };
        Ok(StepOutput { batch, input_rows: whole.input_rows, late_rows: whole.late_rows })
    }

    /// Takes events at once.
    fn take(&mut self, input: &StepInput<'_>, mut skipping: Option<&mut Skipping>) -> Result<StepOutput, SqlError> {
        StepNow::set(&self.parts.now, input.now);
        let late_before = self.late_rows();
        let (mut sources, origin, input_rows) = self.begin(input)?;
        if let Some(skipping) = &skipping {
            skipping.leave_out(&mut sources, &origin)?;
        }
        let batch = loop {
            match (self.work(&sources, &origin, skipping.is_some()), skipping.as_deref_mut()) {
                (Ok(batch), _) => break batch,
                (Err(failed), Some(skipping)) => self.sift(*failed, &mut sources, &origin, skipping)?,
                (Err(failed), None) => return Err(failed.error),
            }
        };
        let late_rows = RowCount::new(self.late_rows().value() - late_before.value());
        Ok(StepOutput { batch, input_rows, late_rows })
    }

    /// The rows of each source, where they come from, and how many events there are; event time moves on.
    fn begin(&mut self, input: &StepInput<'_>) -> Result<(Vec<Delta>, Arc<Origin>, RowCount), SqlError> {
        let read = read(&self.parts.sources, input)?;
        let clock = self.parts.time.advance(&read.runs, &read.rowtime, input.idle);
        let end = self.parts.time.time().map_or(NEVER, Timestamp::micros);
        let names = match self.parts.sources.as_slice() {
            [_] => Arc::default(),
            sources => sources.iter().map(|source| source.name.clone()).collect(),
        };
        let input_rows = RowCount::of(read.rowtime.len());
        let origin = Arc::new(Origin { runs: read.runs, clock, end, now: input.now, names });
        let sources = read.deltas.into_iter().map(|delta| Delta { origin: Arc::clone(&origin), ..delta }).collect();
        Ok((sources, origin, input_rows))
    }

    /// The rows of the sink.
    fn work(
        &mut self,
        sources: &[Delta],
        origin: &Arc<Origin>,
        is_skipping: bool,
    ) -> Result<Option<RecordBatch>, Box<Failed>> {
        let rows = self.made(sources, origin, is_skipping)?;
        let (at, is_dirty) = (self.parts.nodes.len(), self.is_stateful());
        self.parts.sink.rows(rows).map_err(|error| Box::new(Failed { at, is_dirty, error }))
    }

    /// What the sink is given.
    fn made(&mut self, sources: &[Delta], origin: &Arc<Origin>, is_skipping: bool) -> Result<Delta, Box<Failed>> {
        let mut made: Vec<Made> = Vec::with_capacity(self.parts.nodes.len());
        let mut is_dirty = false;
        for (at, node) in self.parts.nodes.iter_mut().enumerate() {
            let inputs = node.inputs.iter().map(|edge| follow(edge, sources, &mut made));
            let flow = &mut self.flows[at];
            let output = inputs.collect::<Result<Vec<_>, _>>().and_then(|inputs| {
                inputs.iter().for_each(|input| flow.rows_in = flow.rows_in.plus(RowCount::of(input.len())));
                // What an event is at fault for must fail before any part has changed.
                if is_skipping && node.operator.is_divided() {
                    node.operator.check(&inputs)?;
                }
                node.operator.step(inputs, origin)
            });
            flow.rows_out = flow.rows_out.plus(RowCount::of(output.as_ref().map_or(0, Delta::len)));
            let delta = output.map_err(|error| Box::new(Failed { at, is_dirty, error }))?;
            made.push(Made { delta: Some(delta), readers: self.readers[at] });
            is_dirty |= node.operator.is_stateful();
        }
        let rows = follow(&self.parts.root, sources, &mut made);
        rows.map_err(|error| Box::new(Failed { at: self.parts.nodes.len(), is_dirty, error }))
    }

    /// Takes events as [`Pipeline::step`] does, and says which of them each row stems from. Of one whose rows are not merged:
    /// see [`Pipeline::is_shareable`].
    ///
    /// # Errors
    /// As [`Pipeline::step`].
    pub fn step_traced(&mut self, input: &StepInput<'_>) -> Result<(Option<RecordBatch>, RowOrigins), SqlError> {
        StepNow::set(&self.parts.now, input.now);
        let (sources, origin, _) = self.begin(input)?;
        let rows = self.made(&sources, &origin, false).map_err(|failed| failed.error)?;
        let origins = RowOrigins { rows: rows.rows.clone(), origin };
        Ok((self.parts.sink.rows(rows)?, origins))
    }

    fn late_rows(&self) -> RowCount {
        self.operators().fold(RowCount::ZERO, |sum, operator| sum.plus(operator.late_rows()))
    }

    /// The state, and the files of it.
    ///
    /// # Errors
    /// As [`StateStore::write`].
    pub fn save(&mut self) -> Result<SavedState, SqlError> {
        let mut state = StateWriter::to(self.store.as_ref());
        self.parts.time.save(&mut state)?;
        for (index, node) in self.parts.nodes.iter_mut().enumerate() {
            node.operator.settle()?;
            state.put_within(&format!("{index}."), |state| node.operator.save(state, Part::WHOLE))?;
        }
        let (bytes, files) = state.finish()?;
        let mut numbers: Vec<u64> = files.iter().map(|file| file.number()).collect();
        numbers.sort_unstable();
        self.saved = files;
        Ok(SavedState { bytes, files: numbers })
    }

    /// Takes over state saved by a pipeline of equal fingerprint. The pipeline is as new before.
    ///
    /// # Errors
    /// `SE006` when it is of another version or query, `XX001` when it is damaged.
    pub fn restore(&mut self, bytes: &[u8]) -> Result<(), SqlError> {
        let mut state = StateReader::open(bytes, self.store.as_ref())?;
        self.parts.time.restore(&mut state)?;
        for (index, node) in self.parts.nodes.iter_mut().enumerate() {
            state.take_within(&format!("{index}."), |state| node.operator.restore(state))?;
        }
        state.finish()
    }
}

/// What an operator made in this step, until its last reader has it.
#[derive(Debug, Clone, Default)]
struct Made {
    delta: Option<Delta>,
    readers: usize,
}

impl Made {
    fn read(&mut self) -> Option<Delta> {
        self.readers = self.readers.saturating_sub(1);
        if self.readers == 0 { self.delta.take() } else { self.delta.clone() }
    }
}

/// What comes along `edge` in this step.
fn follow(edge: &Edge, sources: &[Delta], made: &mut [Made]) -> Result<Delta, SqlError> {
    match edge {
        Edge::Node(node) => {
            let made = made.get_mut(*node).and_then(Made::read);
            made.ok_or_else(|| SqlError::internal("an operator is read too often, or before it ran"))
        }
        Edge::Source { source, columns, schema } => {
            let delta = sources.get(*source).ok_or_else(|| SqlError::internal("an operator without its source"))?;
            let batch = delta.batch.project(columns).map_err(arrow_error)?;
            Ok(Delta { batch: batch.with_schema(Arc::clone(schema)).map_err(arrow_error)?, ..delta.clone() })
        }
    }
}

/// FNV-1a, 64 bits: stable over builds, unlike the standard library's hashers.
fn fnv(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3))
}
