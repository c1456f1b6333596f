//! What rows of a partition of a table were before changes that a running statement does not see yet.
//!
//! A fold has the newest rows; with this it tells what they were at any offset from a certain one on, so that all scans
//! of a statement see one state. Leaves out the newest rows (`fold`) and how far back is asked for (`pin`). In memory; a
//! crash ends the statements that want it.

use crate::storage::batch::batch_bytes;
use arrow::array::RecordBatch;
use arrow::compute::interleave_record_batch;
use arrow::error::ArrowError;
use millstream_catalog::model::Offset;
use std::collections::{HashMap, VecDeque};

/// Bytes of a change beside its key and its row.
const CHANGE_BYTES: u64 = 48;

/// Former rows of a partition, by the changes that ended them.
#[derive(Debug, Default)]
pub(super) struct Undo {
    /// States from this offset on can be told.
    start: Offset,
    steps: VecDeque<Step>,
    bytes: u64,
}

/// The changes of one batch of the changelog.
#[derive(Debug)]
pub(super) struct Step {
    /// Ascending by offset.
    changes: Vec<Change>,
    /// What the changes refer to.
    rows: RecordBatch,
}

/// A row of the changelog.
#[derive(Debug)]
pub(super) struct Change {
    /// Where it is.
    pub(super) offset: Offset,
    /// The key it has.
    pub(super) key: Box<[u8]>,
    /// The key's row before it, in the rows of its step; `None` when there was none.
    pub(super) before: Option<u32>,
}

/// Where a former row is: which step, and which of its rows.
pub(super) type Former = (usize, usize);

impl Step {
    pub(super) fn new(changes: Vec<Change>, rows: RecordBatch) -> Self {
        Self { changes, rows }
    }

    fn is_before(&self, offset: Offset) -> bool {
        self.changes.last().is_none_or(|change| change.offset < offset)
    }

    fn bytes(&self) -> u64 {
        let changes = self.changes.iter().map(|change| change.key.len() as u64 + CHANGE_BYTES);
        changes.sum::<u64>() + batch_bytes(&self.rows).value()
    }
}

impl Undo {
    /// States from this offset on can be told.
    pub(super) fn start(&self) -> Offset {
        self.start
    }

    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Adds the changes that follow.
    pub(super) fn push(&mut self, step: Step) {
        self.bytes += step.bytes();
        self.steps.push_back(step);
    }

    /// Forgets how rows were before `offset`.
    pub(super) fn forget(&mut self, offset: Offset) {
        self.start = self.start.max(offset);
        while self.steps.front().is_some_and(|step| step.is_before(offset)) {
            self.bytes -= self.steps.pop_front().map_or(0, |step| step.bytes());
        }
    }

    /// Each key that was changed at `end` or later, and its row before that.
    pub(super) fn at(&self, end: Offset) -> HashMap<&[u8], Option<Former>> {
        let mut former = HashMap::new();
        for (at, step) in self.steps.iter().enumerate().filter(|(_, step)| !step.is_before(end)) {
            for change in step.changes.iter().filter(|change| change.offset >= end) {
                former.entry(change.key.as_ref()).or_insert(change.before.map(|row| (at, row as usize)));
            }
        }
        former
    }

    /// These rows; `None` for none.
    pub(super) fn rows(&self, of: &[Former]) -> Result<Option<RecordBatch>, ArrowError> {
        if of.is_empty() {
            return Ok(None);
        }
        let steps: Vec<&RecordBatch> = self.steps.iter().map(|step| &step.rows).collect();
        interleave_record_batch(&steps, of).map(Some)
    }
}
