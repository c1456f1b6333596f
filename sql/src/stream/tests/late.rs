//! Hopping windows and sessions with little grace: random logs whose events come late, cut into random steps with
//! restarts, against a model that shares no code with the operators.

use super::bounded::relation;
use super::log::{Log, LogEvent, continuous, cuts, select};
use super::{Random, S};
use crate::plan::plan_continuous;
use crate::stream::{Pipeline, StepInput};
use millstream_catalog::model::{Span, Timestamp};
use millstream_catalog::{Column, QueryOptions};
use std::collections::BTreeMap;
use std::sync::Arc;

/// `(k, i, second)`.
type Event = (String, i64, i64);

/// By key and window, the values.
type Groups = BTreeMap<(String, i64, i64), Vec<i64>>;

fn events(random: &mut Random, count: usize) -> Vec<Event> {
    let event = |at: usize| {
        let lag = if random.below(4) == 0 { random.below(60) } else { random.below(4) };
        (format!("k{}", random.below(3)), random.below(8) as i64, 1_000 + at as i64 * 2 / 3 - lag as i64)
    };
    (0..count).map(event).collect()
}

fn log(events: &[Event], delay: Option<i64>) -> Arc<Log> {
    let mut relation = relation();
    relation.watermark_delay = delay.map(Span::from_secs);
    let event = |(k, i, second): &Event| {
        let cell = |column: &Column| match column.name.as_str() {
            "k" => Some(k.clone()),
            "i" => Some(i.to_string()),
            _ => None,
        };
        let cells = relation.schema.columns.iter().map(cell).collect();
        LogEvent { relation: 0, partition: 0, cells, rowtime: second * S, is_gone: false }
    };
    let events: Vec<LogEvent> = events.iter().map(event).collect();
    Arc::new(Log::new(vec![relation], &events))
}

/// Runs `sql`, whose columns are the key, the edges of the window in seconds, a count and a sum, over the events with
/// the stream `delay` behind; the lines of the table, and how many events were late.
fn run(sql: &str, events: &[Event], delay: Option<i64>, random: &mut Random) -> (Vec<String>, u64) {
    let log = log(events, delay);
    let (rows, late) = continuous(&log.context(), sql, &log, cuts(random, 30)).unwrap();
    let mut lines: Vec<String> = rows.into_iter().map(|cells| cells.join(" ")).collect();
    lines.sort();
    (lines, late)
}

fn lines(groups: &Groups) -> Vec<String> {
    let line = |((k, start, end), values): (&(String, i64, i64), &Vec<i64>)| {
        format!("{k} {start} {end} {} {}", values.len(), values.iter().sum::<i64>())
    };
    let mut lines: Vec<String> = groups.iter().map(line).collect();
    lines.sort();
    lines
}

/// Windows `[n·slide, n·slide + size)` take an event while time is below their end and the grace.
fn hopping(events: &[Event], (size, slide, grace, delay): (i64, i64, i64, i64)) -> (Groups, u64) {
    let (mut groups, mut late, mut time) = (Groups::new(), 0, i64::MIN);
    for (k, i, at) in events {
        time = time.max(at - delay);
        let starts = (at - size + 1..=*at).filter(|start| start.rem_euclid(slide) == 0);
        let (open, closed): (Vec<i64>, Vec<i64>) = starts.partition(|start| time < start + size + grace);
        late += u64::from(open.is_empty() && !closed.is_empty());
        for start in open {
            groups.entry((k.clone(), start, start + size)).or_default().push(*i);
        }
    }
    (groups, late)
}

/// A session is open while time is not beyond its last event, the gap and the grace.
fn sessions(events: &[Event], (gap, grace, delay): (i64, i64, i64)) -> (Groups, u64) {
    let (mut groups, mut late, mut time) = (Groups::new(), 0, i64::MIN);
    for (k, i, at) in events {
        time = time.max(at - delay);
        let joined: Vec<(String, i64, i64)> = groups
            .keys()
            .filter(|(key, start, last)| {
                key == k && time <= last + gap + grace && *at >= start - gap && *at <= last + gap
            })
            .cloned()
            .collect();
        if joined.is_empty() && time > at + gap + grace {
            late += 1;
            continue;
        }
        let (mut start, mut last, mut values) = (*at, *at, vec![*i]);
        for key in joined {
            (start, last) = (start.min(key.1), last.max(key.2));
            values.extend(groups.remove(&key).unwrap());
        }
        groups.entry((k.clone(), start, last)).or_default().extend(values);
    }
    (groups, late)
}

#[test]
fn late_events_of_hopping_windows_are_those_of_the_model() {
    let mut all_late = 0;
    for seed in 0..40 {
        let mut random = Random::new(seed);
        let (size, slide, grace) = (1 + random.below(30) as i64, 1 + random.below(12) as i64, random.below(15) as i64);
        let delay = (random.below(2) == 0).then(|| random.below(10) as i64);
        let events = events(&mut random, 250);
        let sql = format!(
            "SELECT k, extract(epoch FROM window_start)::int AS f, extract(epoch FROM window_end)::int AS t, count(*) AS c,
             sum(i) AS s FROM HOP(e, rowtime, INTERVAL '{slide} seconds', INTERVAL '{size} seconds')
             GROUP BY k, window_start, window_end EMIT CHANGES WITH (grace = '{grace} seconds')"
        );
        let (expected, late) = hopping(&events, (size, slide, grace, delay.unwrap_or(0)));
        all_late += late;
        assert_eq!(run(&sql, &events, delay, &mut random), (lines(&expected), late), "seed {seed} {sql}");
    }
    assert!(all_late > 100, "{all_late}");
}

#[test]
fn late_events_of_sessions_are_those_of_the_model() {
    let mut all_late = 0;
    for seed in 0..60 {
        let mut random = Random::new(seed + 500);
        let (gap, grace) = (1 + random.below(6) as i64, random.below(15) as i64);
        let delay = (random.below(2) == 0).then(|| random.below(10) as i64);
        let events = events(&mut random, 250);
        let sql = format!(
            "SELECT k, extract(epoch FROM windowstart)::int AS f, extract(epoch FROM windowend)::int AS t, count(*) AS c,
             sum(i) AS s FROM e WINDOW SESSION ({gap} SECONDS, GRACE PERIOD {grace} SECONDS) GROUP BY k EMIT CHANGES"
        );
        let (expected, late) = sessions(&events, (gap, grace, delay.unwrap_or(0)));
        all_late += late;
        assert_eq!(run(&sql, &events, delay, &mut random), (lines(&expected), late), "seed {seed} {sql}");
    }
    assert!(all_late > 100, "{all_late}");
}

#[test]
fn final_rows_of_windows_are_those_of_the_model_that_are_closed() {
    for seed in 0..20 {
        let mut random = Random::new(seed + 900);
        let (size, slide, gap, grace) = (20, 7, 3, random.below(15) as i64);
        let events = events(&mut random, 250);
        let time = events.iter().map(|event| event.2).max().unwrap();
        let is_closed = |lines: Vec<String>, length: i64| {
            let is_closed = |line: &String| line.split(' ').nth(2).unwrap().parse::<i64>().unwrap() + length <= time;
            lines.into_iter().filter(is_closed).collect::<Vec<String>>()
        };
        let hop = format!(
            "SELECT k, extract(epoch FROM window_start)::int AS f, extract(epoch FROM window_end)::int AS t, count(*) AS c,
             sum(i) AS s FROM HOP(e, rowtime, INTERVAL '{slide} seconds', INTERVAL '{size} seconds')
             GROUP BY k, window_start, window_end EMIT FINAL WITH (grace = '{grace} seconds')"
        );
        let (expected, late) = hopping(&events, (size, slide, grace, 0));
        assert_eq!(run(&hop, &events, None, &mut random), (is_closed(lines(&expected), grace), late), "seed {seed}");
        let session = format!(
            "SELECT k, extract(epoch FROM windowstart)::int AS f, extract(epoch FROM windowend)::int AS t, count(*) AS c,
             sum(i) AS s FROM e WINDOW SESSION ({gap} SECONDS, GRACE PERIOD {grace} SECONDS) GROUP BY k EMIT FINAL"
        );
        let (expected, late) = sessions(&events, (gap, grace, 0));
        let expected = is_closed(lines(&expected), gap + grace + 1);
        assert_eq!(run(&session, &events, None, &mut random), (expected, late), "seed {seed}");
    }
}

#[test]
fn closed_windows_and_sessions_leave_no_state() {
    for sql in [
        "SELECT k, window_start, count(DISTINCT i) AS c FROM HOP(e, rowtime, '5 seconds', '20 seconds')
           GROUP BY k, window_start EMIT CHANGES WITH (grace = '0 seconds')",
        "SELECT k, window_start, count(DISTINCT i) AS c, array_agg(i) AS a FROM SESSION(e, rowtime, INTERVAL '2 seconds')
           GROUP BY k, window_start EMIT CHANGES WITH (grace = '0 seconds')",
    ] {
        let event = |at: i64| (format!("k{}", at % 3), at % 7, at / 30 * 100 + at % 30 / 3);
        let events: Vec<Event> = (0..40 * 30).map(event).collect();
        let log = log(&events, None);
        let plan = plan_continuous(&log.context(), &select(sql), &QueryOptions::default()).unwrap();
        let mut pipeline = Pipeline::plan(&plan).unwrap();
        let (mut bytes, mut next) = (Vec::new(), vec![0]);
        for round in 0..40 {
            let batches = log.batches(round * 30..(round + 1) * 30, &[0], &mut next, &pipeline);
            pipeline.step(&StepInput { batches, idle: &[], now: Timestamp::from_micros(S) }).unwrap();
            bytes.push(pipeline.state_bytes().value());
        }
        assert_eq!(bytes[10], bytes[39], "{sql}: {bytes:?}");
    }
}
