//! Continuous equals bounded: random queries over random logs, against a model that shares no code with the operators.

use super::*;
use std::collections::{BTreeMap, HashMap};

/// Rows of one group, in event order.
#[derive(Debug, Default)]
struct Group {
    rows: Vec<(Option<f64>, Option<i64>)>,
    rowtime: i64,
}

struct Model {
    greatest: HashMap<u32, i64>,
    time: Option<i64>,
    groups: BTreeMap<(Option<String>, i64), Group>,
    late: u64,
}

struct Setting {
    partitions: u32,
    size: i64,
    grace: i64,
    delay: i64,
}

impl Model {
    fn new() -> Self {
        Self { greatest: HashMap::new(), time: None, groups: BTreeMap::new(), late: 0 }
    }

    /// Time over the partitions that are not idle, by the definition: the least of their greatest, never back.
    fn tick(&mut self, setting: &Setting, idle: &[u32]) {
        let awake: Vec<u32> = (0..setting.partitions).filter(|partition| !idle.contains(partition)).collect();
        let progress = match awake.is_empty() {
            true => (0..setting.partitions).filter_map(|partition| self.greatest.get(&partition)).max().copied(),
            false => awake.iter().map(|partition| self.greatest.get(partition).copied()).min().flatten(),
        };
        if let Some(progress) = progress.map(|greatest| greatest - setting.delay) {
            self.time = Some(self.time.map_or(progress, |time| time.max(progress)));
        }
    }

    fn step(&mut self, setting: &Setting, events: &[Event], idle: &[u32]) {
        let mut idle = idle.to_vec();
        self.tick(setting, &idle);
        for event in events {
            idle.retain(|partition| *partition != event.partition);
            let greatest = self.greatest.entry(event.partition).or_insert(event.at);
            *greatest = (*greatest).max(event.at);
            self.tick(setting, &idle);
            if event.n == Some(0) {
                continue; // WHERE n <> 0; NULL does not pass either, below.
            }
            if event.n.is_none() {
                continue;
            }
            let start = event.at.div_euclid(setting.size) * setting.size;
            if self.time.is_some_and(|time| time >= start + setting.size + setting.grace) {
                self.late += 1;
                continue;
            }
            let group =
                self.groups.entry((event.k.clone(), start)).or_insert(Group { rows: Vec::new(), rowtime: event.at });
            group.rows.push((event.v, event.n));
            group.rowtime = group.rowtime.max(event.at);
        }
    }

    /// One line per group that HAVING lets through.
    fn lines(&self, setting: &Setting) -> BTreeMap<(String, i64), String> {
        let mut lines = BTreeMap::new();
        for ((k, start), group) in &self.groups {
            let doubles: Vec<f64> = group.rows.iter().filter_map(|row| row.0).collect();
            let sum = doubles.iter().fold(None, |sum: Option<f64>, v| Some(sum.unwrap_or(0.0) + v));
            let max = doubles.iter().copied().reduce(f64::max);
            let average = sum.map(|sum| sum / doubles.len() as f64);
            let total: i64 = group.rows.iter().filter_map(|row| row.1).sum();
            let mut distinct: Vec<i64> = group.rows.iter().filter_map(|row| row.1).collect();
            distinct.sort_unstable();
            distinct.dedup();
            if total % 5 == 0 {
                continue;
            }
            let show = |value: Option<f64>| value.map_or("null".to_owned(), |value| format!("{value:?}"));
            let key = k.clone().unwrap_or("null".to_owned());
            let line = format!(
                "{key} {start} {} {} {} {} {total} {} {} {}",
                group.rows.len(),
                show(sum),
                show(max),
                show(average),
                distinct.len(),
                start + setting.size,
                group.rowtime,
            );
            lines.insert((key, *start), line);
        }
        lines
    }
}

fn query(setting: &Setting) -> Query {
    let select = [
        ("k", "k"),
        ("windowstart", "windowstart"),
        ("c", "c"),
        ("s", "s"),
        ("m", "m"),
        ("a", "a"),
        ("t", "t"),
        ("d", "d"),
        ("windowend", "windowend"),
    ];
    let calls = [
        ("c", "count(*)"),
        ("s", "sum(v)"),
        ("m", "max(v)"),
        ("a", "avg(v)"),
        ("t", "sum(n)"),
        ("d", "count(distinct n)"),
    ];
    let mut query = Query::select(&select).group_by(&[("k", "k")], &calls).window(setting.size, Some(setting.grace));
    query.filter = Some("n <> 0");
    query.having = Some("t % 5 <> 0");
    query.partitions = setting.partitions;
    query.delay = Some(setting.delay);
    query
}

/// A log in commit order: event times wander, and sometimes lag by more than the grace.
fn log(random: &mut Random, setting: &Setting, count: usize) -> Vec<Event> {
    let spread = (setting.size + setting.grace) as u64 * (1 + random.below(3));
    let mut event = |index: usize| Event {
        partition: random.below(u64::from(setting.partitions)) as u32,
        at: index as i64 / 2 + random.below(spread) as i64 - 50,
        k: (random.below(10) > 0).then(|| format!("k{}", random.below(4))),
        v: (random.below(10) > 0).then(|| random.double()),
        n: (random.below(10) > 0).then(|| random.below(6) as i64),
        is_gone: false,
    };
    (0..count).map(&mut event).collect()
}

/// Applies stored rows to a table of lines.
fn apply(table: &mut BTreeMap<(String, i64), String>, batch: &RecordBatch) {
    for line in lines(batch) {
        let words: Vec<&str> = line.split(' ').collect();
        let key = (words[0].to_owned(), words[1].parse().unwrap());
        if words.last() == Some(&"gone") {
            assert!(table.remove(&key).is_some(), "a tombstone for a row that is not there: {line}");
        } else {
            table.insert(key, line);
        }
    }
}

fn check(seed: u64) {
    let mut random = Random::new(seed);
    let setting = Setting {
        partitions: 1 + random.below(4) as u32,
        size: 1 + random.below(40) as i64,
        grace: random.below(30) as i64,
        delay: random.below(10) as i64,
    };
    let events = log(&mut random, &setting, 300);
    let mut run = Run::new(&query(&setting));
    let mut model = Model::new();
    let (mut table, mut late, mut start) = (BTreeMap::new(), 0, 0);
    while start < events.len() {
        let end = (start + random.below(1 + (events.len() / 6) as u64) as usize).min(events.len());
        let idle: Vec<u32> = (0..setting.partitions).filter(|_| random.below(6) == 0).collect();
        let output = run.step(&events[start..end], &idle).unwrap();
        model.step(&setting, &events[start..end], &idle);
        late += output.late_rows.value();
        output.batch.iter().for_each(|batch| apply(&mut table, batch));
        if random.below(3) == 0 {
            run.restart();
        }
        start = end;
    }
    assert_eq!(run.pipeline.watermark().map(|time| time.micros() / S), model.time, "seed {seed}");
    assert_eq!(late, model.late, "seed {seed}");
    let expected = model.lines(&setting);
    for (key, line) in &expected {
        assert_eq!(table.get(key), Some(line), "seed {seed}");
    }
    assert_eq!(table.len(), expected.len(), "seed {seed}");
}

#[test]
fn the_table_equals_the_model_however_the_log_is_cut() {
    for seed in 0..60 {
        check(seed);
    }
}

#[test]
fn shuffled_events_within_the_grace_give_the_table_of_the_sorted_log() {
    for seed in 0..20 {
        let mut random = Random::new(seed + 1_000);
        let setting = Setting { partitions: 1, size: 30, grace: 200, delay: 0 };
        let mut sorted: Vec<Event> =
            (0..200).map(|at| event(0, at, &format!("k{}", at % 3), (at % 7) as f64)).collect();
        let table_of = |events: &[Event]| {
            let mut run = Run::new(&query(&setting));
            let mut table = BTreeMap::new();
            for part in events.chunks(17) {
                let output = run.step(part, &[]).unwrap();
                assert_eq!(output.late_rows.value(), 0);
                output.batch.iter().for_each(|batch| apply(&mut table, batch));
            }
            table
        };
        let expected = table_of(&sorted);
        for index in (1..sorted.len()).rev() {
            sorted.swap(index, random.below(index as u64 + 1) as usize);
        }
        assert_eq!(table_of(&sorted), expected, "seed {seed}");
    }
}
