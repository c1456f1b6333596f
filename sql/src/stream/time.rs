//! Event time of a query: the watermark of each partition, and the minimum over them.
//!
//! Owns idleness and the rule that time never goes back. Leaves out windows, which compare their ends with it. Called
//! once per step by the pipeline; saved and restored with its state.

use super::delta::{NEVER, Run, arrow_error, downcast};
use super::save::{StateReader, StateWriter};
use crate::error::SqlError;
use arrow::array::{ArrayRef, Int64Array, RecordBatch, UInt32Array};
use arrow::datatypes::{DataType, Field, Schema};
use millstream_catalog::model::{PartitionId, Span, Timestamp};
use std::sync::Arc;

/// Left out of the minimum.
const ABSENT: i64 = i64::MAX;

/// Progress of event time over the partitions of a query's sources.
///
/// Example, one source of two partitions, no delay: events at 10 and 30 in partition 0 leave time undefined, for
/// partition 1 had none. An event at 20 in partition 1 makes it 20. With partition 1 idle it is 30, and stays 30 when
/// partition 1 goes on at 25. A source may be left out of it: tables that streams look rows up in.
#[derive(Debug)]
pub(crate) struct EventTime {
    sources: Vec<SourceTime>,
    is_tracked: bool,
    /// Greatest event time, by place.
    greatest: Vec<i64>,
    /// By place.
    idle: Vec<bool>,
    /// The delay of the source of each place.
    delays: Vec<i64>,
    least: LeastTree,
    time: i64,
}

/// What time is to know of a source.
#[derive(Debug, Clone)]
pub(crate) struct SourceTime {
    /// How far time is behind its events.
    pub(crate) delay: Span,
    /// Whether its events move time.
    pub(crate) counts: bool,
    /// The place of each of its partitions.
    places: Vec<usize>,
}

impl SourceTime {
    /// Of a source with `delay`; it moves time if it `counts`.
    pub(crate) fn new(delay: Span, counts: bool) -> Self {
        Self { delay, counts, places: Vec::new() }
    }
}

impl EventTime {
    /// Of `sources` with so many partitions; `is_tracked` asks for the time at each row.
    pub(crate) fn new(sources: Vec<(SourceTime, u32)>, is_tracked: bool) -> Self {
        let mut time = Self {
            sources: Vec::new(),
            is_tracked,
            greatest: Vec::new(),
            idle: Vec::new(),
            delays: Vec::new(),
            least: LeastTree::new(0),
            time: NEVER,
        };
        for (source, partitions) in sources {
            time.sources.push(source);
            time.place(time.sources.len() - 1, partitions.max(1) as usize - 1);
        }
        time
    }

    /// The place of a partition; it gets one when it is named for the first time.
    fn place(&mut self, source: usize, partition: usize) -> Option<usize> {
        let found = self.sources.get_mut(source).filter(|source| source.counts)?;
        if partition >= found.places.len() {
            while partition >= found.places.len() {
                found.places.push(self.greatest.len());
                self.greatest.push(NEVER);
                self.idle.push(false);
                self.delays.push(found.delay.micros());
            }
            self.rebuild();
        }
        self.sources[source].places.get(partition).copied()
    }

    fn rebuild(&mut self) {
        self.least = LeastTree::new(self.greatest.len());
        for place in 0..self.greatest.len() {
            self.least.set(place, if self.idle[place] { ABSENT } else { self.watermark_of(place) });
        }
    }

    /// The time reached; `None` while a partition has had no event.
    pub(crate) fn time(&self) -> Option<Timestamp> {
        (self.time != NEVER).then(|| Timestamp::from_micros(self.time))
    }

    /// Takes the events of a step, in order, and gives the time at each of them (nothing if not tracked).
    ///
    /// A partition counts as idle until its first event in the step. When all are idle, time is the greatest of theirs.
    pub(crate) fn advance(&mut self, runs: &[Run], rowtime: &[i64], idle: &[(usize, PartitionId)]) -> Vec<i64> {
        self.mark_idle(runs, idle);
        self.raise();
        let mut clock = Vec::with_capacity(if self.is_tracked { rowtime.len() } else { 0 });
        for (index, run) in runs.iter().enumerate() {
            let end = runs.get(index + 1).map_or(rowtime.len(), |next| next.row_start);
            let events = rowtime.get(run.row_start..end).unwrap_or_default();
            let Some(place) = self.place(run.source, run.partition.value() as usize) else {
                clock.extend(events.iter().filter(|_| self.is_tracked).map(|_| self.time));
                continue;
            };
            if !events.is_empty() && self.idle[place] {
                self.idle[place] = false;
                self.least.set(place, self.watermark_of(place));
            }
            if self.is_tracked {
                for event in events {
                    self.observe(place, *event);
                    clock.push(self.time);
                }
            } else if let Some(greatest) = events.iter().max() {
                self.observe(place, *greatest);
            }
        }
        clock
    }

    fn observe(&mut self, place: usize, event: i64) {
        if event > self.greatest[place] {
            self.greatest[place] = event;
            self.least.set(place, self.watermark_of(place));
            self.raise();
        }
    }

    fn watermark_of(&self, place: usize) -> i64 {
        match self.greatest[place] {
            NEVER => NEVER,
            greatest => greatest.saturating_sub(self.delays[place]).max(NEVER + 1),
        }
    }

    fn mark_idle(&mut self, runs: &[Run], idle: &[(usize, PartitionId)]) {
        for (source, partition) in runs.iter().map(|run| (run.source, run.partition)).chain(idle.iter().copied()) {
            self.place(source, partition.value() as usize);
        }
        let mut is_idle = vec![false; self.greatest.len()];
        for (source, partition) in idle {
            if let Some(place) = self.place(*source, partition.value() as usize) {
                is_idle[place] = true;
            }
        }
        for (place, is_idle) in is_idle.into_iter().enumerate() {
            if is_idle != self.idle[place] {
                self.idle[place] = is_idle;
                self.least.set(place, if is_idle { ABSENT } else { self.watermark_of(place) });
            }
        }
    }

    fn raise(&mut self) {
        let least = match self.least.least() {
            ABSENT => (0..self.greatest.len()).map(|place| self.watermark_of(place)).max().unwrap_or(NEVER),
            least => least,
        };
        self.time = self.time.max(least);
    }

    /// Writes the greatest event time per partition, and the time.
    pub(crate) fn save(&self, state: &mut StateWriter) -> Result<(), SqlError> {
        let (mut owners, mut times) = (Vec::new(), Vec::new());
        for (number, source) in self.sources.iter().enumerate() {
            for place in &source.places {
                owners.push(number as u32);
                times.push(self.greatest[*place]);
            }
        }
        owners.push(u32::MAX);
        times.push(self.time);
        let schema =
            Schema::new(vec![Field::new("source", DataType::UInt32, false), Field::new("time", DataType::Int64, true)]);
        let times = times.into_iter().map(|time| (time != NEVER).then_some(time));
        let columns: Vec<ArrayRef> = vec![Arc::new(UInt32Array::from(owners)), Arc::new(times.collect::<Int64Array>())];
        state.put("time", &RecordBatch::try_new(Arc::new(schema), columns).map_err(arrow_error)?)
    }

    /// Takes over what `save` wrote. Idleness is not state: every step names the idle partitions anew.
    pub(crate) fn restore(&mut self, state: &mut StateReader) -> Result<(), SqlError> {
        let batch = state.take("time")?;
        let owners: UInt32Array = downcast(batch.column(0))?;
        let times: Int64Array = downcast(batch.column(1))?;
        let mut next = vec![0; self.sources.len()];
        for (owner, time) in owners.values().iter().zip(times.iter()) {
            let Some(next) = next.get_mut(*owner as usize) else {
                self.time = time.unwrap_or(NEVER);
                continue;
            };
            *next += 1;
            if let Some(place) = self.place(*owner as usize, *next - 1) {
                self.greatest[place] = time.unwrap_or(NEVER);
            }
        }
        self.idle.fill(false);
        self.rebuild();
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
        Run { source: 0, partition: PartitionId::new(partition), offset_start: Offset::ZERO, row_start }
    }

    fn micros(time: &EventTime) -> Option<i64> {
        time.time().map(Timestamp::micros)
    }

    #[test]
    fn time_is_the_greatest_event_of_one_partition_less_the_delay() {
        let mut time = EventTime::new(vec![(SourceTime::new(Span::from_micros(5), true), 1)], true);
        assert_eq!(micros(&time), None);
        let clock = time.advance(&[run(0, 0)], &[10, 8, 12, 11], &[]);
        assert_eq!(clock, vec![5, 5, 7, 7]);
        assert_eq!(micros(&time), Some(7));
    }

    #[test]
    fn time_waits_for_the_slowest_partition() {
        let mut time = EventTime::new(vec![(SourceTime::new(Span::ZERO, true), 3)], true);
        time.advance(&[run(0, 0), run(1, 1)], &[10, 30], &[]);
        assert_eq!(micros(&time), None);
        let clock = time.advance(&[run(2, 0), run(0, 1)], &[20, 25], &[]);
        assert_eq!(clock, vec![10, 20]);
    }

    #[test]
    fn an_idle_partition_is_left_out_and_time_never_goes_back() {
        let mut time = EventTime::new(vec![(SourceTime::new(Span::ZERO, true), 2)], true);
        time.advance(&[run(0, 0)], &[30], &[]);
        assert_eq!(micros(&time), None);
        time.advance(&[], &[], &[(0, PartitionId::new(1))]);
        assert_eq!(micros(&time), Some(30));
        assert_eq!(time.advance(&[run(1, 0)], &[7], &[]), vec![30]);
        assert_eq!(time.advance(&[run(0, 0)], &[40], &[]), vec![30]);
        assert_eq!(time.advance(&[run(1, 0)], &[35], &[]), vec![35]);
    }

    #[test]
    fn an_event_ends_idleness_within_the_step() {
        let mut time = EventTime::new(vec![(SourceTime::new(Span::ZERO, true), 2)], true);
        let clock = time.advance(&[run(0, 0), run(1, 1), run(0, 2)], &[10, 5, 20], &[(0, PartitionId::new(1))]);
        assert_eq!(clock, vec![10, 10, 10]);
        assert_eq!(time.advance(&[run(1, 0)], &[15], &[]), vec![15]);
    }

    #[test]
    fn all_idle_gives_the_greatest() {
        let mut time = EventTime::new(vec![(SourceTime::new(Span::ZERO, true), 2)], false);
        time.advance(&[run(0, 0), run(1, 1)], &[10, 50], &[]);
        assert_eq!(micros(&time), Some(10));
        time.advance(&[], &[], &[(0, PartitionId::new(0)), (0, PartitionId::new(1))]);
        assert_eq!(micros(&time), Some(50));
    }
}
