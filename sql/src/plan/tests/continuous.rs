//! Continuous plans: their shape, and what is refused.

use super::{parse, source};
use crate::plan::{ContinuousPlan, plan_continuous};

fn plan(sql: &str) -> Result<ContinuousPlan, String> {
    parse(sql)
        .and_then(|select| plan_continuous(&source::context(), &select))
        .map_err(|error| format!("{} {}", error.sqlstate.code(), error.message))
}

fn shape(sql: &str) -> String {
    plan(sql).unwrap().plan.display_indent().to_string()
}

#[test]
fn projection_and_filter_keep_their_levels() {
    assert_eq!(
        shape("SELECT id, delay * 2 AS twice FROM flights f WHERE origin = 'SFO'"),
        "Projection: f.id, $multiply(f.delay, Int32(2)) AS twice\n  Filter: f.origin = Utf8(\"SFO\")\n    TableScan: f"
    );
}

#[test]
fn a_window_is_a_projection_over_the_scan_and_extends_the_group() {
    let plan = plan("SELECT origin, count(*) AS n FROM flights WINDOW TUMBLING (SIZE 60 SECONDS) WHERE delay > 0 GROUP BY origin HAVING count(*) > 1").unwrap();
    let lines: Vec<String> =
        plan.plan.display_indent().to_string().lines().map(|line| line.trim().chars().take(120).collect()).collect();
    assert_eq!(lines[0], "Projection: flights.origin, count(Int64(1)) AS count(*) AS n");
    assert_eq!(lines[1], "Filter: count(Int64(1)) > Int64(1)");
    assert_eq!(
        lines[2],
        "Aggregate: groupBy=[[flights.origin, flights.windowstart, flights.windowend]], aggr=[[count(Int64(1))]]"
    );
    assert_eq!(lines[3], "Filter: flights.delay > Int32(0)");
    assert!(lines[4].starts_with("Projection: flights.id, flights.origin,"), "{}", lines[4]);
    assert_eq!(lines[5], "TableScan: flights");
    assert_eq!(lines.len(), 6);
    assert_eq!(plan.window.unwrap().size.micros(), 60_000_000);
}

#[test]
fn now_stays_a_call() {
    assert!(shape("SELECT id FROM flights WHERE rowtime > now() - INTERVAL '1 hour'").contains("now()"));
}

#[test]
fn what_cannot_run_continuously_is_refused_by_name() {
    for (sql, words) in [
        ("SELECT DISTINCT id FROM flights", "DISTINCT"),
        ("SELECT id FROM flights ORDER BY id", "ORDER BY"),
        ("SELECT id FROM flights LIMIT 1", "LIMIT"),
        ("SELECT f.id FROM flights f JOIN airports a ON a.iata = f.origin", "a join"),
        ("SELECT id FROM flights, airports", "a join"),
        ("SELECT id FROM (SELECT id FROM flights) s", "a sub-query in FROM"),
        ("SELECT id FROM flights WHERE id IN (SELECT 1)", "a sub-query"),
        ("SELECT row_number() OVER () AS n FROM flights", "OVER"),
        ("SELECT id FROM flights UNION ALL SELECT id FROM flights", "UNION"),
        ("WITH a AS (SELECT 1) SELECT id FROM flights", "WITH"),
        ("SELECT random() AS r FROM flights", "random()"),
        ("SELECT gen_random_uuid() AS r FROM flights", "gen_random_uuid()"),
        ("SELECT 1 AS one", "a SELECT without FROM"),
        ("SELECT origin, count(*) AS n FROM flights GROUP BY ROLLUP (origin)", "ROLLUP"),
        ("SELECT name FROM millstream.topics", "a system view"),
    ] {
        let error = plan(sql).unwrap_err();
        assert!(error.starts_with("0A000") && error.contains(words), "{sql}: {error}");
    }
    assert_eq!(plan("SELECT id, id FROM flights").unwrap_err(), "42701 column \"id\" specified more than once");
    assert_eq!(
        plan("SELECT id FROM flights WINDOW TUMBLING (SIZE 0 SECONDS)").unwrap_err(),
        "22023 window size must be positive"
    );
}
