//! Tumbling windows: lateness to the second, several partitions, idleness, step cuts, restarts.

use super::*;

fn counts(partitions: u32, size: i64, grace: Option<i64>) -> Query {
    let select = [("k", "k"), ("windowstart", "windowstart"), ("c", "c"), ("m", "m")];
    let mut query = Query::select(&select).group_by(&[("k", "k")], &[("c", "count(*)"), ("m", "max(v)")]);
    query.partitions = partitions;
    query.window(size, grace)
}

#[test]
fn columns_are_selected_then_window_then_hidden_keys() {
    let query = Query::select(&[("c", "c")]).group_by(&[("k", "k"), ("g", "n % 2")], &[("c", "count(*)")]);
    let pipeline = query.window(60, None).pipeline().unwrap();
    let shown = pipeline.output().columns.iter();
    let shown: Vec<String> = shown
        .map(|column| format!("{} {} key={} hidden={}", column.name, column.sql_type, column.is_key, column.is_hidden))
        .collect();
    assert_eq!(
        shown,
        vec![
            "c bigint key=false hidden=false",
            "windowstart timestamp with time zone key=true hidden=false",
            "windowend timestamp with time zone key=true hidden=false",
            "k text key=true hidden=true",
            "key2 bigint key=true hidden=true",
        ]
    );
    assert_eq!(pipeline.output().kind, RelationKind::Table);
    assert_eq!(pipeline.output().selected, 1);
    assert_eq!(pipeline.projection(0), &[0, 2, 3]);
    pipeline.output().check_storable().unwrap();
}

#[test]
fn an_event_is_taken_until_time_reaches_end_plus_grace() {
    // The window 0..60 has grace 10: open while time is below 70.
    for (time, is_late) in [(59, false), (60, false), (61, false), (69, false), (70, true), (71, true)] {
        let mut run = Run::new(&counts(1, 60, Some(10)));
        run.lines(&[event(0, time, "clock", 0.0)]);
        let output = run.step(&[event(0, 59, "a", 1.0)], &[]).unwrap();
        assert_eq!(output.late_rows.value(), u64::from(is_late), "time {time}");
        assert_eq!(output.batch.is_none(), is_late, "time {time}");
    }
}

#[test]
fn window_edges_are_half_open() {
    let mut run = Run::new(&counts(1, 60, None));
    let events = [event(0, 59, "a", 1.0), event(0, 60, "a", 2.0), event(0, 119, "a", 3.0), event(0, -1, "a", 4.0)];
    let lines = run.lines(&events);
    assert_eq!(lines, vec!["a 0 1 1.0 60 59", "a 60 2 3.0 120 119", "a -60 1 4.0 0 -1"]);
}

#[test]
fn lateness_is_judged_at_each_event_however_steps_are_cut() {
    let events = [
        event(0, 10, "a", 1.0),
        event(0, 59, "a", 2.0),
        event(0, 60, "b", 3.0),
        event(0, 5, "a", 9.0),
        event(0, 61, "a", 4.0),
        event(0, 50, "b", 9.0),
    ];
    for cut in 0..=events.len() {
        let mut run = Run::new(&counts(1, 60, Some(0)));
        let mut late = 0;
        let mut table = std::collections::BTreeMap::new();
        for part in [&events[..cut], &events[cut..]] {
            let output = run.step(part, &[]).unwrap();
            late += output.late_rows.value();
            for line in output.batch.iter().flat_map(lines) {
                table.insert(line[..4].to_owned(), line);
            }
        }
        assert_eq!(late, 2, "cut {cut}");
        let table: Vec<&str> = table.values().map(String::as_str).collect();
        assert_eq!(table, vec!["a 0 2 2.0 60 59", "a 60 1 4.0 120 61", "b 60 1 3.0 120 60"], "cut {cut}");
    }
}

#[test]
fn default_grace_is_a_day_less_the_size_or_zero_with_a_watermark() {
    let hour = 3_600;
    let grace = |query: Query, time: i64| {
        let mut run = Run::new(&query);
        run.lines(&[event(0, time, "clock", 0.0)]);
        run.step(&[event(0, 1, "a", 1.0)], &[]).unwrap().late_rows.value()
    };
    assert_eq!(grace(counts(1, hour, None), 24 * hour - 1), 0);
    assert_eq!(grace(counts(1, hour, None), 24 * hour), 1);
    assert_eq!(grace(counts(1, 48 * hour, None), 48 * hour - 1), 0);
    assert_eq!(grace(counts(1, 48 * hour, None), 48 * hour), 1);
    let mut delayed = counts(1, 60, None);
    delayed.delay = Some(5);
    assert_eq!(grace(delayed.clone(), 64), 0);
    assert_eq!(grace(delayed, 65), 1);
}

#[test]
fn time_moves_with_events_that_where_drops() {
    let mut query = counts(1, 60, Some(0));
    query.filter = Some("k <> 'clock'");
    let mut run = Run::new(&query);
    let output =
        run.step(&[event(0, 60, "clock", 0.0), event(0, 30, "a", 1.0), event(0, 3, "clock", 1.0)], &[]).unwrap();
    assert_eq!((output.late_rows.value(), output.batch), (1, None));
    assert_eq!(run.pipeline.watermark().unwrap().micros(), 60 * S);
}

#[test]
fn a_partition_without_events_holds_windows_open_until_it_is_idle() {
    let mut run = Run::new(&counts(2, 60, Some(0)));
    run.step(&[event(0, 500, "clock", 0.0)], &[]).unwrap();
    assert_eq!(run.pipeline.watermark(), None);
    assert_eq!(run.step(&[event(0, 10, "a", 1.0)], &[]).unwrap().late_rows.value(), 0);
    run.step(&[], &[1]).unwrap();
    assert_eq!(run.pipeline.watermark().unwrap().micros(), 500 * S);
    assert_eq!(run.step(&[event(0, 10, "a", 1.0)], &[1]).unwrap().late_rows.value(), 1);
    // The idle partition comes back behind: its events are judged by the time already reached.
    assert_eq!(run.step(&[event(1, 20, "a", 1.0)], &[]).unwrap().late_rows.value(), 1);
}

#[test]
fn closed_windows_leave_no_state() {
    let mut run = Run::new(&counts(1, 60, Some(0)));
    for minute in 0..200 {
        let events: Vec<Event> = (0..20).map(|key| event(0, minute * 60 + key, &format!("k{key}"), 1.0)).collect();
        run.step(&events, &[]).unwrap();
    }
    let bytes = run.pipeline.state_bytes().value();
    for minute in 200..400 {
        let events: Vec<Event> = (0..20).map(|key| event(0, minute * 60 + key, &format!("k{key}"), 1.0)).collect();
        run.step(&events, &[]).unwrap();
    }
    assert_eq!(run.pipeline.state_bytes().value(), bytes);
    run.restart();
}

#[test]
fn late_counts_and_time_survive_a_restart() {
    let mut run = Run::new(&counts(2, 60, Some(0)));
    run.step(&[event(0, 100, "a", 1.0), event(1, 90, "b", 1.0), event(0, 3, "late", 1.0)], &[]).unwrap();
    run.restart();
    assert_eq!(run.pipeline.watermark().unwrap().micros(), 90 * S);
    let output = run.step(&[event(1, 59, "late", 1.0), event(1, 61, "b", 1.0)], &[]).unwrap();
    assert_eq!(output.late_rows.value(), 1);
    assert_eq!(lines(&output.batch.unwrap()), vec!["b 60 2 1.0 120 90"]);
}

#[test]
fn null_and_the_two_zeros_are_grouping_values() {
    let query = Query::select(&[("v", "v"), ("c", "c")]).group_by(&[("v", "v")], &[("c", "count(*)")]);
    let mut run = Run::new(&query);
    let null = Event { v: None, ..event(0, 1, "a", 0.0) };
    let lines = run.lines(&[event(0, 1, "a", -0.0), null.clone(), event(0, 2, "a", 0.0), null]);
    assert_eq!(lines, vec!["0.0 2 2", "null 2 1"]);
}
