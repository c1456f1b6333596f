//! Continuous plans: their shape, and what is refused.

use super::{parse, source};
use crate::plan::{ContinuousPlan, plan_continuous};
use crate::stream::Pipeline;
use millstream_catalog::QueryOptions;

fn plan(sql: &str) -> Result<ContinuousPlan, String> {
    parse(sql)
        .and_then(|select| plan_continuous(&source::context(), &select, &QueryOptions::default()))
        .map_err(|error| format!("{} {}", error.sqlstate.code(), error.message))
}

fn shape(sql: &str) -> String {
    plan(sql).unwrap().plan.display_indent().to_string()
}

#[test]
fn projection_and_filter_keep_their_levels() {
    assert_eq!(
        shape("SELECT id, delay * 2 AS twice FROM flights f WHERE origin = 'SFO'"),
        "Projection: f.id, $multiply(f.delay, Int32(2)) AS twice\n  Filter: f.origin = Utf8(\"SFO\")\n    \
         TableScan: f projection=[id, origin, delay], partial_filters=[f.origin = Utf8(\"SFO\")]"
    );
}

#[test]
fn a_window_is_a_projection_over_the_scan_and_extends_the_group() {
    let plan = plan("SELECT origin, count(*) AS n FROM flights WINDOW TUMBLING (SIZE 60 SECONDS) WHERE delay > 0 GROUP BY origin HAVING count(*) > 1").unwrap();
    let lines: Vec<String> =
        plan.plan.display_indent().to_string().lines().map(|line| line.trim().chars().take(120).collect()).collect();
    let wanted = [
        "Projection: flights.origin, count(Int64(1)) AS n",
        "Filter: count(Int64(1)) > Int64(1)",
        "Projection: flights.origin, count(Int64(1))",
        "Aggregate: groupBy=[[flights.origin, flights.windowstart, flights.windowend]], aggr=[[count(Int64(1))]]",
        "SubqueryAlias: flights",
        "Projection: flights.origin, $window_start(Int64(60000000)",
        "Filter: flights.delay > Int32(0)",
        "TableScan: flights projection=[origin, delay, rowtime]",
    ];
    assert_eq!(lines.len(), wanted.len(), "{lines:?}");
    for (line, wanted) in lines.iter().zip(wanted) {
        assert!(line.starts_with(wanted), "{line}");
    }
    assert_eq!(plan.window.unwrap().kind.length().micros(), 60_000_000);
}

#[test]
fn now_stays_a_call() {
    assert!(shape("SELECT id FROM flights WHERE rowtime > now() - INTERVAL '1 hour'").contains("now()"));
}

#[test]
fn what_cannot_run_continuously_is_refused_by_name() {
    for (sql, words) in [
        ("SELECT id FROM flights ORDER BY id", "ORDER BY without LIMIT"),
        ("SELECT id FROM flights LIMIT 1", "LIMIT or OFFSET without ORDER BY"),
        ("SELECT id FROM flights WHERE id = (SELECT id FROM flights WHERE delay = 1)", "a scalar sub-query"),
        ("SELECT random() AS r FROM flights", "random()"),
        ("SELECT gen_random_uuid() AS r FROM flights", "gen_random_uuid()"),
    ] {
        let error = plan(sql).unwrap_err();
        assert!(error.starts_with("0A000") && error.contains(words), "{sql}: {error}");
    }
    for (sql, words) in [
        ("SELECT row_number() OVER (ORDER BY now() - rowtime) AS n FROM flights", "an order by now()"),
        ("SELECT 1 AS one", "a SELECT without FROM"),
        ("SELECT name FROM millstream.topics", "a system view"),
        ("SELECT id FROM flights WHERE false", "a condition that is never true"),
        (
            "SELECT id FROM flights f WHERE id NOT IN (SELECT delay FROM flights g WHERE g.origin = f.origin)",
            "a correlated NOT IN",
        ),
        ("SELECT id FROM (SELECT id FROM flights LIMIT 3) q", "LIMIT without ORDER BY"),
    ] {
        let error = Pipeline::plan(&plan(sql).unwrap()).unwrap_err();
        assert!(error.sqlstate.code() == "0A000" && error.message.contains(words), "{sql}: {error}");
    }
    assert_eq!(plan("SELECT id, id FROM flights").unwrap_err(), "42701 column \"id\" specified more than once");
    for (sql, position) in [
        ("SELECT id, delay id FROM flights", Some(12)),
        ("SELECT *, delay FROM flights", None),
        ("SELECT id FROM flights LIMIT 3", Some(30)),
        ("SELECT id FROM flights WHERE (id, delay) IN (SELECT id, delay FROM flights)", Some(31)),
    ] {
        let planned =
            parse(sql).and_then(|select| plan_continuous(&source::context(), &select, &QueryOptions::default()));
        assert_eq!(planned.unwrap_err().position, position, "{sql}");
    }
    assert_eq!(
        plan("SELECT id FROM flights WINDOW TUMBLING (SIZE 0 SECONDS)").unwrap_err(),
        "22023 window size must be positive"
    );
}
