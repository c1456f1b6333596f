//! Which parts of a plan are computed once.

use super::Random;
use super::bounded::log_of;
use super::log::select;
use crate::plan::plan_continuous;
use crate::stream::{OperatorShown, Pipeline};
use millstream_catalog::QueryOptions;

fn operators(sql: &str) -> Vec<String> {
    let log = log_of(&mut Random::new(1), 1);
    let plan = plan_continuous(&log.context(), &select(sql), &QueryOptions::default()).unwrap();
    let shown = Pipeline::plan(&plan).unwrap().operators_shown();
    let kind =
        |one: &OperatorShown| one.text.split(": ").nth(1).unwrap_or("").split(' ').next().unwrap_or("").to_owned();
    shown.iter().map(kind).collect()
}

#[test]
fn rows_of_hopping_windows_are_grouped_by_pane_where_that_is_exact() {
    let sql = |select: &str, group: &str| {
        format!(
            "SELECT {select} FROM HOP(e, rowtime, INTERVAL '2 seconds', INTERVAL '10 seconds') GROUP BY {group} EMIT CHANGES"
        )
    };
    let is_by_pane = |select: &str, group: &str| operators(&sql(select, group)).contains(&"panes".to_owned());
    assert!(is_by_pane("k, window_start, count(*) AS c", "k, window_start"));
    assert!(is_by_pane(
        "window_end, sum(i) AS s, max(v) AS m, avg(d) FILTER (WHERE b) AS a",
        "window_start, window_end"
    ));
    for (select, group) in [
        // Sums of floating-point numbers depend on the order.
        ("k, window_start, sum(v) AS s", "k, window_start"),
        ("k, window_start, count(DISTINCT i) AS c", "k, window_start"),
        ("k, window_start, string_agg(x, ',' ORDER BY x) AS a", "k, window_start"),
        ("k, window_start, latest_by_offset(i) AS l", "k, window_start"),
        ("k, count(*) AS c", "k"),
        ("window_start, max(window_end) AS m", "window_start"),
        ("t, window_start, count(*) AS c", "t, window_start"),
    ] {
        assert!(!is_by_pane(select, group), "{select}");
    }
}

#[test]
fn what_is_there_twice_is_computed_once() {
    let counts = "SELECT k, window_start, window_end, count(*) AS num
        FROM HOP(e, rowtime, INTERVAL '2 seconds', INTERVAL '10 seconds') GROUP BY k, window_start, window_end";
    let sql = format!(
        "SELECT a.window_start, a.k, a.num FROM ({counts}) AS a
         JOIN (SELECT window_start, window_end, max(num) AS most FROM ({counts}) AS c GROUP BY window_start, window_end) AS b
         ON a.window_start = b.window_start AND a.window_end = b.window_end AND a.num >= b.most EMIT CHANGES"
    );
    let operators = operators(&sql);
    let count = |kind: &str| operators.iter().filter(|operator| *operator == kind).count();
    assert_eq!((count("panes"), count("aggregate"), count("join")), (1, 2, 1), "{operators:?}");
}

#[test]
fn the_first_event_of_each_key_is_told_without_keeping_rows_where_only_new_forms_are_wanted() {
    let first = "SELECT DISTINCT ON (k) k, v FROM e ORDER BY k, rowtime DESC, rowoffset";
    let kinds = |sql: &str| operators(&format!("{sql} EMIT CHANGES"));
    assert!(kinds(first).contains(&"deduplicate".to_owned()), "{:?}", kinds(first));
    // Its rows are taken back from what is made of them.
    assert!(kinds(&format!("SELECT v, count(*) AS c FROM ({first}) AS f GROUP BY v")).contains(&"top".to_owned()));
    // Rows of what changes may go, and others take their place.
    let counts = "SELECT k, v, count(*) AS c FROM e GROUP BY k, v";
    let first = format!("SELECT DISTINCT ON (k) k, v, c FROM ({counts}) AS counts ORDER BY k, c DESC, v");
    assert!(kinds(&first).contains(&"top".to_owned()), "{:?}", kinds(&first));
}
