//! Event time of a query: the watermark of each partition, and the minimum over them.
//!
//! Owns idleness and the rule that time never goes back. Leaves out windows, which compare their ends with it. Called
//! once per step by the pipeline; saved and restored with its state.

use super::delta::{Run, arrow_error, downcast};
use super::save::{StateReader, StateWriter};
use crate::error::SqlError;
use arrow::array::{Array, Int64Array, RecordBatch};
use arrow::datatypes::{DataType, Field, Schema};
use millstream_catalog::model::{PartitionId, Span, Timestamp};
use std::sync::Arc;

/// No event yet: holds the query's time back.
const NEVER: i64 = i64::MIN;
/// Left out of the minimum.
const ABSENT: i64 = i64::MAX;

/// Progress of event time over the partitions of one source.
///
/// Example, two partitions, no delay: events at 10 and 30 in partition 0 leave time undefined, for partition 1 had none.
/// An event at 20 in partition 1 makes it 20. With partition 1 idle it is 30, and stays 30 when partition 1 goes on at 25.
#[derive(Debug)]
pub(crate) struct EventTime {
    delay: Span,
    is_tracked: bool,
    /// Greatest event time per partition.
    greatest: Vec<i64>,
    idle: Vec<bool>,
    least: LeastTree,
    time: i64,
}

impl EventTime {
    /// Of a source with `partitions` partitions whose time is `delay` behind its events; `is_tracked` asks for the
    /// time at each row.
    pub(crate) fn new(partitions: u32, delay: Span, is_tracked: bool) -> Self {
        let count = partitions.max(1) as usize;
        Self {
            delay,
            is_tracked,
            greatest: vec![NEVER; count],
            idle: vec![false; count],
            least: LeastTree::new(count),
            time: NEVER,
        }
    }

    /// The time reached; `None` while a partition has had no event.
    pub(crate) fn time(&self) -> Option<Timestamp> {
        (self.time != NEVER).then(|| Timestamp::from_micros(self.time))
    }

    /// Takes the events of a step, in order, and gives the time at each of them (nothing if not tracked).
    ///
    /// A partition counts as idle until its first event in the step. When all are idle, time is the greatest of theirs.
    pub(crate) fn advance(&mut self, runs: &[Run], rowtime: &[i64], idle: &[PartitionId]) -> Vec<i64> {
        self.mark_idle(runs, idle);
        self.raise();
        let mut clock = Vec::with_capacity(if self.is_tracked { rowtime.len() } else { 0 });
        for (index, run) in runs.iter().enumerate() {
            let end = runs.get(index + 1).map_or(rowtime.len(), |next| next.row_start);
            let partition = run.partition.value() as usize;
            if run.row_start < end && self.idle[partition] {
                self.idle[partition] = false;
                self.least.set(partition, self.watermark_of(partition));
            }
            let events = rowtime.get(run.row_start..end).unwrap_or_default();
            if self.is_tracked {
                for event in events {
                    self.observe(partition, *event);
                    clock.push(self.time);
                }
            } else if let Some(greatest) = events.iter().max() {
                self.observe(partition, *greatest);
            }
        }
        clock
    }

    fn observe(&mut self, partition: usize, event: i64) {
        if event > self.greatest[partition] {
            self.greatest[partition] = event;
            self.least.set(partition, self.watermark_of(partition));
            self.raise();
        }
    }

    fn watermark_of(&self, partition: usize) -> i64 {
        match self.greatest[partition] {
            NEVER => NEVER,
            greatest => greatest.saturating_sub(self.delay.micros()).max(NEVER + 1),
        }
    }

    fn mark_idle(&mut self, runs: &[Run], idle: &[PartitionId]) {
        let named = idle.iter().chain(runs.iter().map(|run| &run.partition)).map(|id| id.value() as usize);
        let count = named.max().map_or(0, |last| last + 1);
        if count > self.greatest.len() {
            self.resize(count);
        }
        let mut is_idle = vec![false; self.greatest.len()];
        for id in idle {
            is_idle[id.value() as usize] = true;
        }
        for (partition, is_idle) in is_idle.into_iter().enumerate() {
            if is_idle != self.idle[partition] {
                self.idle[partition] = is_idle;
                self.least.set(partition, if is_idle { ABSENT } else { self.watermark_of(partition) });
            }
        }
    }

    fn resize(&mut self, count: usize) {
        self.greatest.resize(count, NEVER);
        self.idle.resize(count, false);
        self.least = LeastTree::new(count);
        for partition in 0..count {
            self.least.set(partition, if self.idle[partition] { ABSENT } else { self.watermark_of(partition) });
        }
    }

    fn raise(&mut self) {
        let least = match self.least.least() {
            ABSENT => (0..self.greatest.len()).map(|partition| self.watermark_of(partition)).max().unwrap_or(NEVER),
            least => least,
        };
        self.time = self.time.max(least);
    }

    /// Writes the greatest event time per partition, and the time.
    pub(crate) fn save(&self, state: &mut StateWriter) -> Result<(), SqlError> {
        let schema = Schema::new(vec![Field::new("time", DataType::Int64, true)]);
        let values = self.greatest.iter().chain([&self.time]).map(|time| (*time != NEVER).then_some(*time));
        let batch = RecordBatch::try_new(Arc::new(schema), vec![Arc::new(values.collect::<Int64Array>())]);
        state.put("time", &batch.map_err(arrow_error)?)
    }

    /// Takes over what `save` wrote. Idleness is not state: every step names the idle partitions anew.
    pub(crate) fn restore(&mut self, state: &mut StateReader) -> Result<(), SqlError> {
        let batch = state.take("time")?;
        let times: Int64Array = downcast(batch.column(0))?;
        let Some(count) = times.len().checked_sub(1) else { return Err(SqlError::internal("empty saved time")) };
        let at = |index: usize| if times.is_null(index) { NEVER } else { times.value(index) };
        self.greatest = (0..count).map(at).collect();
        self.idle = vec![false; count];
        self.time = at(count);
        self.resize(count);
        Ok(())
    }
}

/// A complete binary tree of minima: one leaf per partition, O(log n) per change.
#[derive(Debug)]
struct LeastTree {
    /// Node 1 is the root; the children of node i are 2i and 2i + 1; leaves start at `leaves`.
    nodes: Vec<i64>,
    leaves: usize,
}

impl LeastTree {
    fn new(count: usize) -> Self {
        let leaves = count.next_power_of_two();
        let mut nodes = vec![ABSENT; 2 * leaves];
        for leaf in 0..count {
            nodes[leaves + leaf] = NEVER;
        }
        for node in (1..leaves).rev() {
            nodes[node] = nodes[2 * node].min(nodes[2 * node + 1]);
        }
        Self { nodes, leaves }
    }

    fn set(&mut self, leaf: usize, value: i64) {
        let mut node = self.leaves + leaf;
        self.nodes[node] = value;
        while node > 1 {
            node /= 2;
            let least = self.nodes[2 * node].min(self.nodes[2 * node + 1]);
            if self.nodes[node] == least {
                return;
            }
            self.nodes[node] = least;
        }
    }

    fn least(&self) -> i64 {
        self.nodes[1]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use millstream_catalog::model::Offset;

    fn run(partition: u32, row_start: usize) -> Run {
        Run { partition: PartitionId::new(partition), offset_start: Offset::ZERO, row_start }
    }

    fn micros(time: &EventTime) -> Option<i64> {
        time.time().map(Timestamp::micros)
    }

    #[test]
    fn time_is_the_greatest_event_of_one_partition_less_the_delay() {
        let mut time = EventTime::new(1, Span::from_micros(5), true);
        assert_eq!(micros(&time), None);
        let clock = time.advance(&[run(0, 0)], &[10, 8, 12, 11], &[]);
        assert_eq!(clock, vec![5, 5, 7, 7]);
        assert_eq!(micros(&time), Some(7));
    }

    #[test]
    fn time_waits_for_the_slowest_partition() {
        let mut time = EventTime::new(3, Span::ZERO, true);
        time.advance(&[run(0, 0), run(1, 1)], &[10, 30], &[]);
        assert_eq!(micros(&time), None);
        let clock = time.advance(&[run(2, 0), run(0, 1)], &[20, 25], &[]);
        assert_eq!(clock, vec![10, 20]);
    }

    #[test]
    fn an_idle_partition_is_left_out_and_time_never_goes_back() {
        let mut time = EventTime::new(2, Span::ZERO, true);
        time.advance(&[run(0, 0)], &[30], &[]);
        assert_eq!(micros(&time), None);
        time.advance(&[], &[], &[PartitionId::new(1)]);
        assert_eq!(micros(&time), Some(30));
        assert_eq!(time.advance(&[run(1, 0)], &[7], &[]), vec![30]);
        assert_eq!(time.advance(&[run(0, 0)], &[40], &[]), vec![30]);
        assert_eq!(time.advance(&[run(1, 0)], &[35], &[]), vec![35]);
    }

    #[test]
    fn an_event_ends_idleness_within_the_step() {
        let mut time = EventTime::new(2, Span::ZERO, true);
        let clock = time.advance(&[run(0, 0), run(1, 1), run(0, 2)], &[10, 5, 20], &[PartitionId::new(1)]);
        assert_eq!(clock, vec![10, 10, 10]);
        assert_eq!(time.advance(&[run(1, 0)], &[15], &[]), vec![15]);
    }

    #[test]
    fn all_idle_gives_the_greatest() {
        let mut time = EventTime::new(2, Span::ZERO, false);
        time.advance(&[run(0, 0), run(1, 1)], &[10, 50], &[]);
        assert_eq!(micros(&time), Some(10));
        time.advance(&[], &[], &[PartitionId::new(0), PartitionId::new(1)]);
        assert_eq!(micros(&time), Some(50));
    }
}
