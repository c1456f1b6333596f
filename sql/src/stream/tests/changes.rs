//! Stateless queries, HAVING, tables as sources, global aggregates, `now()` and errors.

use super::*;

#[test]
fn a_projection_and_filter_gives_a_stream() {
    let mut query = Query::select(&[("u", "upper(k)"), ("o", "rowoffset"), ("p", "rowpartition")]);
    query.filter = Some("v > 1");
    query.partitions = 2;
    let mut run = Run::new(&query);
    assert!(!run.pipeline.is_stateful());
    assert_eq!(run.pipeline.output().kind, RelationKind::Stream);
    let events = [event(0, 5, "a", 2.0), event(0, 4, "b", 1.0), event(1, 3, "c", 3.0), event(0, 9, "d", 7.0)];
    assert_eq!(run.lines(&events), vec!["A 0 0 5", "C 0 1 3", "D 2 0 9"]);
    assert_eq!(run.lines(&[]), Vec::<String>::new());
    run.restart();
    assert_eq!(run.lines(&[event(0, 9, "e", 2.0)]), vec!["E 3 0 9"]);
}

#[test]
fn having_takes_rows_away_once_and_gives_them_back() {
    let mut query = Query::select(&[("c", "c"), ("r", "10 / (3 - c)")]).group_by(&[("k", "k")], &[("c", "sum(n)")]);
    query.having = Some("c < 3");
    let mut run = Run::new(&query);
    assert_eq!(run.lines(&[event(0, 1, "a", 1.0), event(0, 2, "b", 5.0)]), vec!["1 5 a 1"]);
    run.restart();
    assert_eq!(run.lines(&[event(0, 3, "a", 2.0)]), vec!["null null a 3 gone"]);
    run.restart();
    assert_eq!(run.lines(&[event(0, 3, "a", 2.0)]), Vec::<String>::new());
    assert_eq!(run.lines(&[event(0, 4, "a", -4.0)]), vec!["1 5 a 4"]);
}

#[test]
fn having_state_goes_with_the_window() {
    let select = [("k", "k"), ("c", "c")];
    let mut query = Query::select(&select).group_by(&[("k", "k")], &[("c", "sum(n)")]).window(60, Some(0));
    query.having = Some("c > 1");
    let mut run = Run::new(&query);
    assert_eq!(run.lines(&[event(0, 1, "a", 2.0)]), vec!["a 2 0 60 1"]);
    assert_eq!(run.lines(&[event(0, 2, "a", -2.0)]), vec!["a null 0 60 2 gone"]);
    assert_eq!(run.lines(&[event(0, 3, "a", 5.0), event(0, 70, "b", 5.0)]), vec!["a 5 0 60 3", "b 5 60 120 70"]);
    run.restart();
    assert_eq!(
        run.lines(&[event(0, 75, "b", -9.0), event(0, 76, "a", 9.0)]),
        vec!["b null 60 120 75 gone", "a 9 60 120 76"]
    );
}

#[test]
fn a_global_aggregate_has_its_one_row_at_once() {
    let query = Query::select(&[("c", "c"), ("m", "m")]).group_by(&[], &[("c", "count(*)"), ("m", "max(v)")]);
    let mut run = Run::new(&query);
    let key = run.pipeline.output().columns.last().unwrap();
    assert!(key.is_hidden && key.is_key && key.name.as_str() == "rowid");
    assert_eq!(run.lines(&[]), vec!["0 null 0 1000000"]);
    assert_eq!(run.lines(&[]), Vec::<String>::new());
    run.restart();
    assert_eq!(run.lines(&[]), Vec::<String>::new());
    assert_eq!(run.lines(&[event(0, 7, "a", 3.0)]), vec!["1 3.0 0 7"]);
}

#[test]
fn changes_to_one_key_within_a_step_are_merged_into_the_last() {
    let query = Query::select(&[("k", "k"), ("c", "c")]).group_by(&[("k", "k")], &[("c", "count(*)")]);
    let mut run = Run::new(&query);
    let events = [event(0, 1, "b", 1.0), event(0, 2, "a", 1.0), event(0, 3, "b", 1.0)];
    assert_eq!(run.lines(&events), vec!["b 2 3", "a 1 2"]);
}

fn gone(at: i64, k: &str) -> Event {
    Event { v: None, n: None, is_gone: true, ..event(0, at, k, 0.0) }
}

#[test]
fn rows_of_a_table_come_in_their_new_form_and_deletions_as_keys() {
    let mut query = Query::select(&[("d", "v * 2"), ("k", "k")]);
    query.kind = RelationKind::Table;
    let mut run = Run::new(&query);
    assert!(!run.pipeline.is_stateful());
    assert_eq!(run.lines(&[event(0, 1, "a", 1.0), event(0, 2, "b", 2.0)]), vec!["2.0 a 1", "4.0 b 2"]);
    let output = run.step(&[event(0, 3, "a", 5.0), gone(4, "b"), event(0, 5, "a", 6.0)], &[]).unwrap().batch.unwrap();
    assert_eq!(lines(&output), vec!["12.0 a 5", "null b 4 gone"]);
    assert_eq!(lines(&run.pipeline.output().client_rows(&output).unwrap()), vec!["12.0 a", "null b"]);
}

#[test]
fn a_filter_over_a_table_takes_away_only_what_it_gave() {
    let mut query = Query::select(&[("v", "v")]);
    query.kind = RelationKind::Table;
    query.filter = Some("v > 1");
    let mut run = Run::new(&query);
    assert!(run.pipeline.is_stateful());
    assert_eq!(run.lines(&[event(0, 1, "a", 5.0), event(0, 2, "b", 0.0)]), vec!["5.0 a 1"]);
    run.restart();
    assert_eq!(run.lines(&[event(0, 3, "a", 0.0), gone(4, "b")]), vec!["null a 3 gone"]);
    assert_eq!(run.lines(&[event(0, 5, "b", 3.0), gone(6, "b")]), Vec::<String>::new());
    assert_eq!(run.lines(&[gone(7, "a"), event(0, 8, "b", 3.0)]), vec!["3.0 b 8"]);
    assert_eq!(run.lines(&[gone(9, "b")]), vec!["null b 9 gone"]);
}

#[test]
fn errors_name_partition_and_offset() {
    let query = Query::select(&[("q", "10 / n")]);
    let mut run = Run::new(&query);
    let mut events: Vec<Event> = (0..100).map(|row| event(0, row, "a", (row + 1) as f64)).collect();
    run.step(&events, &[]).unwrap();
    events[37] = event(0, 1, "a", 0.0);
    let error = run.step(&events, &[]).unwrap_err();
    assert_eq!(error.sqlstate.code(), "22012");
    assert_eq!(error.detail.as_deref(), Some("partition 0, offset 137"));
}

#[test]
fn errors_after_grouping_name_the_last_event_of_the_group() {
    let query = Query::select(&[("q", "10 / c")]).group_by(&[("k", "k")], &[("c", "sum(n)")]);
    let mut run = Run::new(&query);
    let events = [event(0, 1, "a", 1.0), event(0, 1, "b", 1.0), event(0, 1, "b", -1.0), event(0, 1, "a", 1.0)];
    let error = run.step(&events, &[]).unwrap_err();
    assert_eq!(error.detail.as_deref(), Some("partition 0, offset 2"));
}

#[test]
fn now_is_the_time_of_the_step() {
    let mut run = Run::new(&Query::select(&[("t", "cast(now() as timestamp)")]));
    let first = run.step(&[event(0, 1, "a", 1.0)], &[]).unwrap().batch.unwrap();
    let again = Run::new(&Query::select(&[("t", "cast(now() as timestamp)")]));
    let mut again = again;
    assert_eq!(again.step(&[event(0, 1, "a", 1.0)], &[]).unwrap().batch.unwrap(), first);
    let second = run.step(&[event(0, 1, "a", 1.0)], &[]).unwrap().batch.unwrap();
    assert_ne!(second, first);
    let mut filtered = Query::select(&[("k", "k")]);
    filtered.filter = Some("rowtime > now()");
    assert_eq!(filtered.pipeline().unwrap_err().sqlstate.code(), "0A000");
}

#[test]
fn names_that_cannot_be_stored_are_refused() {
    for names in [["a", "a"], ["a", "rowtime"]] {
        let query = Query::select(&[(names[0], "k"), (names[1], "v")]);
        let plan = ContinuousPlan {
            columns: names
                .iter()
                .zip([SqlType::Text, SqlType::Double])
                .map(|(name, sql_type)| ResultColumn { name: (*name).to_owned(), sql_type, source: None })
                .collect(),
            ..Query::select(&[("x", "k"), ("y", "v")]).plan()
        };
        let pipeline = Pipeline::plan(&plan).unwrap();
        assert_eq!(pipeline.output().check_storable().unwrap_err().sqlstate.code(), "42701", "{:?}", query.select);
    }
}

#[test]
fn state_of_another_query_is_refused() {
    let first = Query::select(&[("c", "c")]).group_by(&[("k", "k")], &[("c", "count(*)")]);
    let mut second = first.clone();
    second.having = Some("c > 1");
    assert_ne!(first.pipeline().unwrap().fingerprint(), second.pipeline().unwrap().fingerprint());
    let saved = second.pipeline().unwrap().save().unwrap().bytes;
    assert_eq!(first.pipeline().unwrap().restore(&saved).unwrap_err().sqlstate.code(), "SE006");
}
