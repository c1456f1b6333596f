//! The store against a naive model that shares no code with it.

use super::*;
use proptest::prelude::*;

/// What the store must hold, the slow way.
#[derive(Debug, Clone, Default, PartialEq)]
struct Model {
    /// Rows of each partition with their entries, by topic and partition.
    topics: BTreeMap<u64, Vec<Vec<(u64, u64)>>>,
    /// Log starts that are not zero.
    starts: BTreeMap<(u64, u32), u64>,
    index: u64,
}

impl Model {
    fn check(&self, store: &ShardStore) {
        let partitions = store.partitions();
        assert_eq!(
            partitions.topics().iter().map(|t| t.value()).collect::<Vec<_>>(),
            self.topics.keys().copied().collect::<Vec<_>>()
        );
        for (topic, expected) in &self.topics {
            assert_eq!(partitions.topic(TopicId::new(*topic)).unwrap().len(), expected.len());
            for (id, rows) in (0..).zip(expected) {
                let view = partitions.get(TopicId::new(*topic), PartitionId::new(id)).unwrap().view();
                let stored: Vec<StoredBatch> = view.scan(ScanRequest::all()).map(Result::unwrap).collect();
                let entries = stored.iter().flat_map(|s| s.entries.iter().collect::<Vec<_>>());
                let entries: Vec<u64> =
                    entries.flat_map(|(index, rows)| std::iter::repeat_n(index.value(), rows.as_usize())).collect();
                let start = self.starts.get(&(*topic, id)).copied().unwrap_or(0);
                let kept = &rows[start as usize..];
                assert_eq!((view.offset_start().value(), view.rows().unwrap()), (start, RowCount::of(kept.len())));
                assert_eq!(dense(start, stored), kept.iter().map(|row| row.0).collect::<Vec<_>>());
                assert_eq!(entries, kept.iter().map(|row| row.1).collect::<Vec<_>>());
                for cut in [0, 1, self.index / 2, self.index.saturating_sub(1), self.index, self.index + 1] {
                    let upto = rows.iter().filter(|row| row.1 <= cut).count();
                    assert_eq!(view.offset_end_at(entry(cut)).unwrap().value(), (upto as u64).max(start), "cut {cut}");
                }
            }
        }
    }
}

#[derive(Debug, Clone)]
enum Op {
    Append { topic: usize, partition: u32, rows: u64, is_same_entry: bool },
    Seal,
    SealAround { rows: u64 },
    FailedSeal { steps: u64 },
    Reopen,
    Create { partitions: u32 },
    Drop { topic: usize },
    MoveStart { topic: usize, partition: u32, share: f64 },
    MoveStartWhileSealing { share: f64 },
}

fn ops() -> impl Strategy<Value = Vec<Op>> {
    let append = (0..4usize, 0..3u32, prop_oneof![6 => 1u64..4, 1 => 4u64..600], any::<bool>())
        .prop_map(|(topic, partition, rows, is_same_entry)| Op::Append { topic, partition, rows, is_same_entry });
    let op = prop_oneof![
        24 => append,
        2 => Just(Op::Seal),
        1 => (1u64..20).prop_map(|rows| Op::SealAround { rows }),
        1 => (0u64..12).prop_map(|steps| Op::FailedSeal { steps }),
        2 => Just(Op::Reopen),
        2 => (1u32..4).prop_map(|partitions| Op::Create { partitions }),
        1 => (0..4usize).prop_map(|topic| Op::Drop { topic }),
        2 => (0..4usize, 0..3u32, 0.0..1.2).prop_map(|(topic, partition, share)| Op::MoveStart { topic, partition, share }),
        1 => (0.0..1.2).prop_map(|share| Op::MoveStartWhileSealing { share }),
    ];
    prop::collection::vec(op, 1..80)
}

/// The store, its model, and the model as of the last manifest.
struct Pair {
    disk: FaultDisk,
    store: ShardStore,
    model: Model,
    sealed: Option<Model>,
    topic_next: u64,
    number: u64,
}

impl Pair {
    fn new() -> Self {
        let (disk, store) = fresh();
        Self { disk, store, model: Model::default(), sealed: None, topic_next: 1, number: 0 }
    }

    fn append(&mut self, topic: usize, partition: u32, rows: u64, is_same_entry: bool) {
        let Some(topic) = self.model.topics.keys().nth(topic % self.model.topics.len().max(1)).copied() else { return };
        let count = self.model.topics[&topic].len() as u32;
        let partition = partition % count;
        // Two appends of one entry to one partition, and one in between, are one entry's rows all the same.
        for part in 0..=u32::from(is_same_entry) {
            let partition = (partition + part) % count;
            let numbers = self.number..self.number + rows;
            self.number += rows;
            let list = &mut self.model.topics.get_mut(&topic).unwrap()[partition as usize];
            let base = append(&mut self.store, self.model.index + 1, topic, partition, numbers.clone());
            assert_eq!(base, list.len() as u64);
            list.extend(numbers.map(|number| (number, self.model.index + 1)));
        }
        self.model.index += 1;
        self.store.publish(entry(self.model.index));
    }

    fn seal_around(&mut self, rows: u64) {
        let before = self.model.clone();
        let state = Bytes::from(before.index.to_string());
        let job = self.store.seal(state.clone(), state);
        self.append(0, 0, rows, false);
        let sealed = job.run().unwrap();
        self.model.check(&self.store);
        self.store.install(sealed);
        self.sealed = Some(before);
    }

    fn move_start(&mut self, topic: usize, partition: u32, share: f64) {
        let Some(topic) = self.model.topics.keys().nth(topic % self.model.topics.len().max(1)).copied() else { return };
        let partition = partition % self.model.topics[&topic].len() as u32;
        let end = self.model.topics[&topic][partition as usize].len() as u64;
        let to = (end as f64 * share) as u64;
        let start = self.model.starts.entry((topic, partition)).or_default();
        *start = to.min(end).max(*start);
        assert_eq!(move_start(&mut self.store, topic, partition, to), *start);
    }

    /// Everything after the last manifest is lost, and is not replayed here.
    fn reopen(&mut self) {
        let (store, state) = open(&self.disk).unwrap();
        self.store = store;
        self.model = self.sealed.clone().unwrap_or_default();
        let expected = self.sealed.as_ref().map(|model| Bytes::from(model.index.to_string()));
        assert_eq!(state.map(|state| state.applied), expected);
        assert_eq!(self.store.partitions().applied(), entry(self.model.index));
    }

    fn run(&mut self, op: Op) {
        match op {
            Op::Append { topic, partition, rows, is_same_entry } => self.append(topic, partition, rows, is_same_entry),
            Op::Seal => {
                seal(&mut self.store, self.model.index).unwrap();
                self.sealed = Some(self.model.clone());
            }
            Op::SealAround { rows } => self.seal_around(rows),
            Op::FailedSeal { steps } => {
                // A full disk stands for any failure that leaves the node running.
                self.disk.set_capacity(Some(self.disk.bytes_used() + steps * 100));
                let result = seal(&mut self.store, self.model.index);
                self.disk.set_capacity(None);
                match result {
                    Ok(()) => self.sealed = Some(self.model.clone()),
                    Err(error) => assert!(matches!(error, StorageError::DiskFull)),
                }
            }
            Op::Reopen => self.reopen(),
            Op::Create { partitions } => {
                self.store.create_topic(topic(self.topic_next, partitions, Compression::Lz4));
                self.model.topics.insert(self.topic_next, vec![Vec::new(); partitions as usize]);
                self.topic_next += 1;
            }
            Op::Drop { topic } => {
                let Some(topic) = self.model.topics.keys().nth(topic).copied() else { return };
                self.store.drop_topic(TopicId::new(topic));
                self.model.topics.remove(&topic);
            }
            Op::MoveStart { topic, partition, share } => self.move_start(topic, partition, share),
            Op::MoveStartWhileSealing { share } => {
                let before = self.model.clone();
                let state = Bytes::from(before.index.to_string());
                let job = self.store.seal(state.clone(), state);
                (0..4).for_each(|topic| self.move_start(topic, 0, share));
                let sealed = job.run().unwrap();
                self.model.check(&self.store);
                self.store.install(sealed);
                self.sealed = Some(before);
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    #[test]
    fn the_store_equals_a_naive_model(ops in ops()) {
        let mut pair = Pair::new();
        pair.run(Op::Create { partitions: 2 });
        for op in ops {
            let is_large = !matches!(op, Op::Append { .. });
            pair.run(op);
            if is_large {
                pair.model.check(&pair.store);
            }
        }
        pair.model.check(&pair.store);
        let expected: Vec<String> = pair.store.partitions().segments().iter().map(|s| s.segment.file().to_owned()).collect();
        seal(&mut pair.store, pair.model.index).unwrap();
        prop_assert!(expected.iter().all(|file| files(&pair.disk, "segments").contains(file)));
        prop_assert_eq!(files(&pair.disk, "unknown"), Vec::<String>::new());
    }
}
