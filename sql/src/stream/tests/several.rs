//! Continuous equals bounded over several relations: two streams and two tables whose rows change, their events in one
//! random order, in random steps with restarts. What is kept must be the rows of the bounded run over the same log.

use super::log::{Log, LogEvent, YEAR_2024, continuous, cuts, difference, relation, select};
use super::{Random, S};
use crate::plan::plan_continuous;
use crate::stream::{Pipeline, StepInput};
use arrow::array::AsArray;
use millstream_catalog::model::Timestamp;
use millstream_catalog::{QueryOptions, Relation, RelationKind, SqlType};
use std::sync::Arc;

/// Queries over streams `s` and `r` and tables `t` and `u`.
pub(super) const QUERIES: &[&str] = &[
    // Sub-queries, CTEs, unions, DISTINCT.
    "SELECT k, c FROM (SELECT k, count(*) AS c FROM s GROUP BY k) q WHERE c > 3",
    "WITH q AS (SELECT k, sum(v) AS v FROM s GROUP BY k) SELECT max(v) AS m, min(v) AS l, count(*) AS c FROM q",
    "SELECT c, count(*) AS n FROM (SELECT k, count(*) AS c FROM s GROUP BY k) q GROUP BY c",
    "SELECT avg(m) AS a, sum(m) AS s, count(m) AS c FROM (SELECT k, max(v) AS m FROM s GROUP BY k) q",
    "SELECT DISTINCT k, x FROM s",
    "SELECT DISTINCT k FROM t",
    "SELECT id, k FROM s UNION ALL SELECT id, k FROM r",
    "SELECT id, k FROM s UNION ALL SELECT id, v FROM t",
    "SELECT k FROM s UNION SELECT k FROM t",
    "SELECT k, count(*) AS c, sum(v) AS v FROM (SELECT k, v FROM s UNION ALL SELECT k, w FROM r) q GROUP BY k",
    // Over tables.
    "SELECT id, v * 2 AS w FROM t WHERE v > 5",
    "SELECT k, count(*) AS c, sum(v) AS s, avg(v) AS a, min(v) AS l, max(x) AS m FROM t GROUP BY k",
    "SELECT count(*) AS c, sum(v) AS s, max(v) AS m FROM t",
    "SELECT k, count(DISTINCT v) AS d, sum(DISTINCT v) AS s FROM t GROUP BY k",
    "SELECT k, array_agg(v ORDER BY v, id) AS a, string_agg(x, ',' ORDER BY id) AS s FROM t GROUP BY k",
    "SELECT k, count(*) FILTER (WHERE v > 4) AS c, sum(v) FILTER (WHERE x = 'x1') AS s FROM t GROUP BY k",
    "SELECT k, percentile_cont(0.5) WITHIN GROUP (ORDER BY v) AS p, bool_or(v > 5) AS b FROM t GROUP BY k",
    "SELECT k, sum(v) AS s FROM t GROUP BY k HAVING sum(v) > 10",
    "SELECT v, x, count(*) AS c FROM t WHERE id < 20 GROUP BY v, x",
    // Streams with streams.
    "SELECT s.id, r.id AS rid, s.v + r.w AS z FROM s JOIN r ON s.k = r.k AND s.x = r.y",
    "SELECT s.id, r.id AS rid FROM s LEFT JOIN r ON s.id = r.id",
    "SELECT s.id, r.id AS rid FROM s RIGHT JOIN r ON s.id = r.id AND s.v > r.w",
    "SELECT s.id, r.id AS rid, s.k FROM s FULL JOIN r ON s.id = r.id",
    "SELECT a.id, b.id AS other FROM s a JOIN s b ON a.k = b.k AND a.id < b.id WHERE a.v = b.v",
    "SELECT s.id, r.id AS rid FROM s JOIN r ON s.v < r.w AND s.id = 3",
    // Tables with tables.
    "SELECT t.id, t.v, u.name FROM t JOIN u ON t.k = u.k",
    "SELECT t.id, u.name FROM t LEFT JOIN u ON t.k = u.k",
    "SELECT t.id, u.name, u.k FROM t RIGHT JOIN u ON t.k = u.k",
    "SELECT t.id, u.name FROM t FULL JOIN u ON t.k = u.k AND t.v > u.n",
    "SELECT u.name, count(*) AS c, sum(t.v) AS s FROM t JOIN u ON t.k = u.k GROUP BY u.name",
    "SELECT u.name, count(t.id) AS c FROM u LEFT JOIN t ON t.k = u.k GROUP BY u.name",
    "SELECT a.id, b.id AS other FROM t a JOIN t b ON a.k = b.k AND a.id < b.id",
    "SELECT t.id, u.k FROM t, u WHERE t.v > u.n",
    "SELECT t.id, u.name, q.c FROM t JOIN u ON t.k = u.k JOIN (SELECT k, count(*) AS c FROM s GROUP BY k) q ON q.k = t.k",
    "SELECT id FROM t WHERE EXISTS (SELECT 1 FROM u WHERE u.k = t.k)",
    "SELECT id FROM t WHERE NOT EXISTS (SELECT 1 FROM u WHERE u.k = t.k AND u.n > t.v)",
    "SELECT id, v FROM t WHERE k IN (SELECT k FROM u WHERE n > 3)",
    "SELECT id FROM s WHERE k IN (SELECT k FROM u)",
    "SELECT id FROM s WHERE EXISTS (SELECT 1 FROM r WHERE r.id = s.id)",
    "SELECT id FROM s WHERE NOT EXISTS (SELECT 1 FROM r WHERE r.id = s.id)",
    "SELECT id FROM t WHERE v > 7 OR EXISTS (SELECT 1 FROM u WHERE u.k = t.k)",
    "SELECT id, v FROM t WHERE v = (SELECT max(v) FROM t)",
    "SELECT id, v - (SELECT min(n) FROM u) AS d FROM t",
    "SELECT id, (SELECT count(*) FROM r WHERE r.k = t.k) AS c FROM t",
    "SELECT k FROM t INTERSECT SELECT k FROM u",
    "SELECT k FROM s EXCEPT SELECT k FROM u",
    "SELECT s.id, q.m FROM s JOIN (SELECT k, max(w) AS m FROM r GROUP BY k) q ON s.k = q.k",
    "SELECT q.k, q.c, p.c AS d FROM (SELECT k, count(*) AS c FROM s GROUP BY k) q
       FULL JOIN (SELECT k, count(*) AS c FROM r GROUP BY k) p ON q.k = p.k",
    // Windows.
    "SELECT k, windowstart, count(*) AS c FROM s WINDOW TUMBLING (SIZE 1 MINUTE) GROUP BY k",
    "SELECT date_bin('1 minute', rowtime, '1970-01-01') AS w, count(*) AS c FROM s GROUP BY 1",
    "SELECT w, max(c) AS m FROM (SELECT date_bin('1 minute', rowtime, '1970-01-01') AS w, k, count(*) AS c FROM s GROUP BY 1, 2) q
       GROUP BY w",
    // Window functions.
    "SELECT id, k, sum(v) OVER (PARTITION BY k ORDER BY id) AS z, rank() OVER (PARTITION BY k ORDER BY v DESC) AS r FROM t",
    "SELECT id, v, count(*) OVER () AS c, max(v) OVER (PARTITION BY x) AS m FROM t WHERE v > 2",
    "SELECT id, lag(v) OVER (PARTITION BY k ORDER BY id) AS p, lead(v, 2, 0) OVER (ORDER BY id DESC) AS n FROM t",
    "SELECT id, sum(v) OVER (ORDER BY id ROWS BETWEEN 2 PRECEDING AND 1 FOLLOWING) AS w,
       avg(v) OVER (ORDER BY id RANGE BETWEEN 3 PRECEDING AND CURRENT ROW) AS a FROM t",
    "SELECT id, first_value(x) OVER (PARTITION BY k ORDER BY id) AS f, ntile(3) OVER (ORDER BY id) AS n,
       percent_rank() OVER (ORDER BY v) AS p, dense_rank() OVER (ORDER BY v NULLS FIRST) AS d FROM t",
    "SELECT k, v, row_number() OVER (PARTITION BY k ORDER BY v, rowoffset) AS n, count(v) OVER (PARTITION BY k) AS c FROM s",
    "SELECT k, c, rank() OVER (ORDER BY c DESC) AS r FROM (SELECT k, count(*) AS c FROM s GROUP BY k) q",
    "SELECT k, max(d) AS m FROM (SELECT k, v - lag(v) OVER (PARTITION BY k ORDER BY id) AS d FROM t JOIN u USING (k)) q GROUP BY k",
    "SELECT k, sum(c) OVER (ORDER BY k) AS z, sum(sum(v)) OVER () AS y FROM (SELECT k, v, 1 AS c FROM t) q GROUP BY k, c",
    "SELECT w, sum(c) AS z FROM (SELECT w, c, row_number() OVER (PARTITION BY w ORDER BY c DESC, k) AS n FROM
       (SELECT date_bin('20 seconds', rowtime, '1970-01-01') AS w, k, count(*) AS c FROM s GROUP BY 1, 2) p) q
       WHERE n <= 2 GROUP BY w",
    // The first rows.
    "SELECT id, k, v, n FROM (SELECT *, row_number() OVER (PARTITION BY k ORDER BY v DESC, id) AS n FROM t) q WHERE n <= 3",
    "SELECT id, k, v FROM (SELECT *, row_number() OVER (PARTITION BY k ORDER BY v DESC, id) AS n FROM t) q WHERE n < 3",
    "SELECT k, v, x FROM (SELECT *, row_number() OVER (PARTITION BY k, x ORDER BY v NULLS FIRST, id DESC) AS n FROM t) q
       WHERE n = 1",
    "SELECT id, v FROM (SELECT *, row_number() OVER (ORDER BY v, id) AS n FROM t) q WHERE n = 4",
    "SELECT id, v, n FROM (SELECT *, row_number() OVER (ORDER BY v, id) AS n FROM t) q WHERE n <= 9 AND v > 1",
    "SELECT id, v FROM (SELECT *, row_number() OVER (ORDER BY v, id) AS n FROM t) q WHERE n < 1",
    "SELECT k, v, rowoffset AS o FROM (SELECT *, rowoffset, row_number() OVER (PARTITION BY k ORDER BY rowoffset DESC) AS n FROM s) q
       WHERE n = 1",
    "SELECT id, v FROM s QUALIFY row_number() OVER (PARTITION BY k ORDER BY v DESC, rowoffset) <= 2",
    "SELECT k, c FROM (SELECT k, c, row_number() OVER (ORDER BY c DESC, k) AS n FROM (SELECT k, count(*) AS c FROM s GROUP BY k) p) q
       WHERE n <= 3",
    "SELECT id, v FROM (SELECT *, rank() OVER (PARTITION BY x ORDER BY v) AS n FROM t) q WHERE n <= 2",
    "SELECT id, v FROM t ORDER BY v DESC, id LIMIT 5",
    "SELECT id FROM t ORDER BY v NULLS FIRST, id LIMIT 4 OFFSET 3",
    "SELECT id, v + 1 AS w FROM s ORDER BY rowoffset DESC LIMIT 7",
    "SELECT id FROM t ORDER BY id OFFSET 3",
    "SELECT k, count(*) AS c FROM s GROUP BY k ORDER BY count(*) DESC, k LIMIT 3",
    "SELECT sum(v) AS z FROM (SELECT v FROM t ORDER BY v DESC, id LIMIT 6) q",
    "SELECT u.k, q.id FROM u JOIN (SELECT id, k FROM t ORDER BY v, id LIMIT 9) q ON q.k = u.k",
    "SELECT id FROM t WHERE v = (SELECT v FROM t ORDER BY v DESC NULLS LAST LIMIT 1)",
    "SELECT DISTINCT ON (k) k, id, v FROM t ORDER BY k, v DESC, id",
    "SELECT DISTINCT ON (k) id, v FROM s ORDER BY k, rowoffset DESC",
    "SELECT x, count(*) AS c FROM (SELECT DISTINCT ON (k) k, x FROM t ORDER BY k, v, id) q GROUP BY x",
    // Set-returning functions.
    "SELECT id, unnest(ARRAY[k, v]) AS e FROM s",
    "SELECT id, explode(ARRAY[v, id, v]) AS e, x FROM t",
    "SELECT id, unnest(ARRAY[k, v, 1]) AS e, unnest(ARRAY[x]) AS f FROM t WHERE v > 3",
    "SELECT id, unnest(CASE WHEN v > 4 THEN ARRAY[v] END) AS e FROM t",
    "SELECT t.id, n FROM t, generate_series(1, t.v) AS n WHERE n % 2 = 0",
    "SELECT n, count(*) AS c FROM s, generate_series(1, s.v) AS n GROUP BY n",
    "SELECT e, count(*) AS c FROM (SELECT unnest(ARRAY[k, v]) AS e FROM t) q GROUP BY e",
    "SELECT s.id, e.a FROM s CROSS JOIN LATERAL unnest(string_to_array(s.x, 'x')) AS e(a)",
    "SELECT e, row_number() OVER (PARTITION BY e ORDER BY id, k) AS n FROM (SELECT id, k, unnest(ARRAY[k]) AS e FROM t) q",
    // Grouping sets.
    "SELECT k, x, count(*) AS c, sum(v) AS z FROM t GROUP BY ROLLUP (k, x)",
    "SELECT k, x, count(*) AS c, grouping(k) AS g, grouping(x) AS h FROM s GROUP BY CUBE (k, x)",
    "SELECT k, x, v % 2 AS p, min(v) AS m FROM t GROUP BY GROUPING SETS ((k, x), (v % 2), ())",
    "SELECT k, x, count(*) AS c FROM t GROUP BY k, ROLLUP (x) HAVING count(*) > 1",
    "SELECT k, count(*) AS c FROM t GROUP BY GROUPING SETS ((k), (k), ())",
    "SELECT k, mode() WITHIN GROUP (ORDER BY v) AS m, percentile_disc(0.5) WITHIN GROUP (ORDER BY v DESC) AS p FROM t GROUP BY k",
    "SELECT mode() WITHIN GROUP (ORDER BY x DESC) AS m, percentile_disc(0.9) WITHIN GROUP (ORDER BY id) AS p, count(*) AS c
       FROM s GROUP BY v",
    "SELECT k, count(*) AS c FROM t WHERE v > 100 GROUP BY ROLLUP (k)",
    "SELECT k, windowstart, count(*) AS c FROM s WINDOW TUMBLING (SIZE 1 MINUTE) GROUP BY k, windowstart, ROLLUP (x)",
    // NOT IN.
    "SELECT id FROM t WHERE k NOT IN (SELECT k FROM u)",
    "SELECT id, v FROM t WHERE v NOT IN (SELECT n FROM u WHERE k < 3)",
    "SELECT id FROM s WHERE k NOT IN (SELECT k FROM u WHERE n > 4)",
    "SELECT id, k FROM s WHERE id NOT IN (SELECT id FROM r WHERE k > 4)",
    "SELECT id FROM t WHERE v NOT IN (SELECT v FROM t WHERE k = 2 AND v > 7)",
    "SELECT k, count(*) AS c FROM t WHERE v NOT IN (SELECT n FROM u WHERE n < 2) GROUP BY k",
    "SELECT * FROM TUMBLE(s, rowtime, INTERVAL '20 seconds', INTERVAL '-7 seconds') w",
    "SELECT k, window_start, window_end, count(*) AS c FROM TUMBLE(s, rowtime, '20 seconds') GROUP BY k, window_start, window_end",
    "SELECT w.k, max(w.window_end - w.at) AS m FROM TUMBLE((SELECT k, rowtime AS at FROM s WHERE v > 3), at, INTERVAL '1' MINUTE) w
       GROUP BY w.k, w.window_start",
    "SELECT id, window_start FROM TUMBLE(t, rowtime, INTERVAL '20 seconds') WHERE v > 2",
    "SELECT window_start, count(*) AS c FROM TUMBLE((SELECT k, rowtime FROM s UNION ALL SELECT k, rowtime FROM r), rowtime,
       INTERVAL '20 seconds') GROUP BY window_start",
    "SELECT a.id, b.id AS other, a.window_start FROM TUMBLE(s, rowtime, INTERVAL '20 seconds') a
       JOIN TUMBLE(r, rowtime, INTERVAL '20 seconds') b ON a.k = b.k AND a.window_start = b.window_start",
    "SELECT id, window_start, window_end FROM HOP(s, rowtime, INTERVAL '7 seconds', INTERVAL '20 seconds')",
    "SELECT id, window_start FROM HOP(s, rowtime, INTERVAL '9 seconds', INTERVAL '4 seconds', INTERVAL '2 seconds')",
    "SELECT window_end, count(*) AS c FROM HOP(s, rowtime, INTERVAL '5 seconds', INTERVAL '15 seconds') GROUP BY window_end",
    "SELECT id, window_end FROM HOP(t, rowtime, INTERVAL '5 seconds', INTERVAL '15 seconds') WHERE v > 2",
    "SELECT h.k, h.window_start, count(*) AS c, sum(h.v) AS v FROM HOP(s, rowtime, '5 seconds', '20 seconds') h
       GROUP BY h.k, h.window_start, h.window_end HAVING count(*) > 2",
    "WITH q AS (SELECT * FROM HOP(s, rowtime, INTERVAL '10 seconds', INTERVAL '20 seconds'))
       SELECT window_end, max(c) AS m FROM (SELECT k, window_end, count(*) AS c FROM q GROUP BY k, window_end) p GROUP BY window_end",
    "SELECT k, windowstart, windowend, sum(v) AS v FROM s WINDOW HOPPING (SIZE 30 SECONDS, ADVANCE BY 10 SECONDS) GROUP BY k",
    "SELECT k, windowstart, count(*) AS c FROM (SELECT k, rowtime FROM s WHERE v > 2) q WINDOW TUMBLING (SIZE 20 SECONDS) GROUP BY k",
    "SELECT k, windowstart, windowend, count(*) AS c, sum(v) AS s, min(x) AS l, max(id) AS m FROM s WINDOW SESSION (2 SECONDS) GROUP BY k",
    "SELECT k, window_start, window_end, count(DISTINCT v) AS d, sum(DISTINCT v) AS s, array_agg(v ORDER BY v, id) AS a
       FROM SESSION(s, rowtime, INTERVAL '2 seconds') GROUP BY k, window_start, window_end",
    "SELECT window_start, window_end, count(*) AS c FROM SESSION(s, rowtime, INTERVAL '1 second') GROUP BY window_start, window_end",
    "SELECT x, count(*) AS c FROM SESSION(s, rowtime, INTERVAL '3 seconds') w WHERE v < 8 GROUP BY w.window_end, x, k HAVING count(*) > 1",
    "SELECT window_start, max(c) AS m, count(*) AS n FROM (SELECT k, window_start, count(*) AS c
       FROM SESSION(s, rowtime, INTERVAL '2 seconds') GROUP BY k, window_start, window_end) q GROUP BY window_start",
    "WITH q AS (SELECT k AS key, window_start AS f, window_end AS t FROM SESSION((SELECT k, rowtime FROM s UNION ALL
       SELECT k, rowtime FROM r), rowtime, INTERVAL '2 seconds') w) SELECT key, f, t, count(*) AS c FROM q GROUP BY key, f, t",
    // Found by random queries.
    "SELECT u.k AS a FROM u FULL JOIN t ON u.n = t.v UNION ALL SELECT id FROM s",
    "SELECT t.v AS a FROM t FULL JOIN t b ON t.k = b.v UNION ALL SELECT u.n FROM u RIGHT JOIN t ON u.k = t.id",
    "SELECT DISTINCT u.k FROM t JOIN u ON t.k = u.k AND t.v < u.n",
    "SELECT DISTINCT t.k FROM t JOIN u ON t.k = u.k AND t.v < u.n",
    "SELECT r.k FROM s JOIN r ON s.k = r.id AND s.v < r.w EXCEPT SELECT k FROM t",
    "SELECT DISTINCT ON (k) k, v, id FROM t ORDER BY k, v DESC, k, v, id",
];

/// The same, whose last rows wait for time: without those of the far event at the end of each stream.
pub(super) const TIMED: &[&str] = &[
    "SELECT s.id, r.id AS rid, s.v FROM s JOIN r WITHIN 15 SECONDS GRACE PERIOD 1 MINUTE ON s.k = r.k",
    "SELECT s.id, r.id AS rid, s.v FROM s JOIN r WITHIN (5 SECONDS, 20 SECONDS) GRACE PERIOD 1 MINUTE ON s.k = r.k AND s.v <> r.w",
    "SELECT s.id, r.id AS rid FROM s LEFT JOIN r WITHIN 3 SECONDS GRACE PERIOD 1 MINUTE ON s.k = r.k",
    "SELECT s.id, r.id AS rid FROM s RIGHT JOIN r WITHIN 3 SECONDS GRACE PERIOD 1 MINUTE ON s.k = r.k",
    "SELECT s.id, r.id AS rid, s.v, r.w FROM s FULL JOIN r WITHIN 2 SECONDS GRACE PERIOD 1 MINUTE ON s.k = r.k AND s.v > r.w",
    "SELECT a.id, r.id AS rid, b.id AS bid FROM s a JOIN r WITHIN 9 SECONDS GRACE PERIOD 1 MINUTE ON a.k = r.k
       JOIN s b WITHIN 4 SECONDS GRACE PERIOD 2 MINUTES ON b.k = r.k",
    "SELECT q.k, count(*) AS c FROM (SELECT s.k, r.id FROM s JOIN r WITHIN 9 SECONDS GRACE PERIOD 1 MINUTE ON s.k = r.k) q
       GROUP BY q.k",
    "SELECT id, k, v FROM s EMIT FINAL",
    "SELECT k, windowstart, count(*) AS c, sum(v) AS v FROM s WINDOW TUMBLING (SIZE 20 SECONDS, GRACE PERIOD 1 MINUTE)
       GROUP BY k EMIT FINAL",
    "SELECT k, windowstart, count(*) AS c FROM s WINDOW TUMBLING (SIZE 20 SECONDS, GRACE PERIOD 1 MINUTE)
       GROUP BY k HAVING count(*) > 1 EMIT FINAL",
    "SELECT k, windowstart, count(*) AS c FROM s WINDOW TUMBLING (SIZE 20 SECONDS, GRACE PERIOD 1 MINUTE)
       GROUP BY k, windowstart QUALIFY row_number() OVER (PARTITION BY windowstart ORDER BY count(*) DESC, k) <= 2 EMIT FINAL",
    "SELECT k, windowend, sum(count(*)) OVER (PARTITION BY windowend) AS c
       FROM s WINDOW TUMBLING (SIZE 20 SECONDS, GRACE PERIOD 1 MINUTE) GROUP BY k, windowend EMIT FINAL",
    "SELECT k, date_bin('20 seconds', rowtime, '1970-01-01') AS w, count(*) AS c FROM s GROUP BY 1, 2 EMIT FINAL",
];

fn relations() -> Vec<Relation> {
    use SqlType::{Integer, Text};
    let (stream, table) = (RelationKind::Stream, RelationKind::Table);
    vec![
        relation(
            0,
            "s",
            stream,
            &[("id", Integer, false), ("k", Integer, false), ("v", Integer, false), ("x", Text, false)],
        ),
        relation(
            1,
            "r",
            stream,
            &[("id", Integer, false), ("k", Integer, false), ("w", Integer, false), ("y", Text, false)],
        ),
        relation(
            2,
            "t",
            table,
            &[("id", Integer, true), ("k", Integer, false), ("v", Integer, false), ("x", Text, false)],
        ),
        relation(3, "u", table, &[("k", Integer, true), ("name", Text, false), ("n", Integer, false)]),
    ]
}

/// An event of any of them; times move on by some seconds.
fn event(random: &mut Random, number: u64) -> LogEvent {
    let relation = random.below(4) as usize;
    let mut small = |bound: u64| Some(random.below(bound).to_string()).filter(|_| random.below(12) > 0);
    let cells = match relation {
        0 | 1 => vec![small(25), small(6), small(10), small(3).map(|x| format!("x{x}"))],
        2 => vec![small(30).or(Some("7".to_owned())), small(6), small(10), small(3).map(|x| format!("x{x}"))],
        _ => vec![small(6).or(Some("2".to_owned())), small(4).map(|x| format!("n{x}")), small(10)],
    };
    let rowtime = (YEAR_2024 + (number / 3 + random.below(20)) as i64) * S;
    LogEvent { relation, partition: 0, cells, rowtime, is_gone: relation >= 2 && random.below(5) == 0 }
}

/// Random events, and at the end of each stream one that is far away in time.
pub(super) fn log(random: &mut Random, count: u64) -> Arc<Log> {
    let mut events: Vec<LogEvent> = (0..count).map(|number| event(random, number)).collect();
    events.extend([0, 1].map(|relation| {
        let cells = ["5000", "5000", "5000", "far"].map(|cell| Some(cell.to_owned())).to_vec();
        LogEvent { relation, partition: 0, cells, rowtime: (YEAR_2024 + 2 * 86_400) * S, is_gone: false }
    }));
    Arc::new(Log::new(relations(), &events))
}

#[tokio::test]
async fn every_query_over_several_relations_gives_the_rows_of_the_bounded_run() {
    compare(QUERIES).await;
}

#[tokio::test]
async fn every_query_that_waits_for_time_gives_the_rows_of_the_bounded_run() {
    compare(TIMED).await;
}

async fn compare(queries: &[&str]) {
    let is_near = |row: &Vec<String>| queries != TIMED || row.iter().all(|cell| cell != "5000");
    let mut differing = Vec::new();
    for seed in 1..=3 {
        let mut random = Random::new(seed);
        let log = log(&mut random, 300);
        for sql in queries {
            let found = difference(&log, sql, &mut random, is_near).await;
            differing.extend(found.map(|found| format!("seed {seed}: {found}")));
        }
    }
    assert!(differing.is_empty(), "{}", differing.join("\n"));
}

/// A join within a time over events up to a minute out of order, against pairs found one by one.
#[test]
fn rows_too_late_for_any_match_are_dropped_by_a_join_within_a_time() {
    use arrow::datatypes::{Int32Type, TimestampMicrosecondType};
    let sql =
        "SELECT s.id, r.id AS rid FROM s JOIN r WITHIN (10 SECONDS, 4 SECONDS) GRACE PERIOD 5 SECONDS ON s.k = r.k";
    let mut late_at_all = 0;
    for seed in 1..=20 {
        let mut random = Random::new(seed);
        let log = log(&mut random, 200);
        let context = log.context();
        let (mut greatest, mut next, mut kept) = ([i64::MIN; 2], [0; 4], [Vec::new(), Vec::new()]);
        let (mut late, mut expected) = (0, Vec::new());
        for relation in &log.order {
            let row = next[*relation];
            next[*relation] += 1;
            if *relation > 1 {
                continue;
            }
            let stored = &log.stored[*relation];
            let time = stored.column(4).as_primitive::<TimestampMicrosecondType>().value(row) / 1_000_000;
            let cell = |at: usize| {
                let cells = stored.column(at).as_primitive::<Int32Type>();
                if arrow::array::Array::is_valid(cells, row) { cells.value(row).to_string() } else { "∅".to_owned() }
            };
            greatest[*relation] = greatest[*relation].max(time);
            let now = greatest[0].min(greatest[1]);
            let reach = if *relation == 0 { 4 } else { 10 };
            if now != i64::MIN && now > time + reach + 5 {
                late += 1;
                continue;
            }
            for (id, k, at) in &kept[1 - *relation] {
                let (left, right) = if *relation == 0 { (time, *at) } else { (*at, time) };
                if *k == cell(1) && *k != "∅" && right >= left - 10 && right <= left + 4 {
                    let (left, right) =
                        if *relation == 0 { (cell(0), String::clone(id)) } else { (id.clone(), cell(0)) };
                    expected.push(vec![left, right]);
                }
            }
            kept[*relation].push((cell(0), cell(1), time));
        }
        late_at_all += late;
        let (mut found, late_rows) = continuous(&context, sql, &log, cuts(&mut random, 40)).unwrap();
        found.sort();
        expected.sort();
        assert_eq!((found, late_rows), (expected, late), "seed {seed}");
    }
    assert!(late_at_all > 20);
}

#[test]
fn of_the_first_rows_only_what_changes_is_told_and_of_a_stream_no_others_are_kept() {
    let log = log(&mut Random::new(5), 800);
    let context = log.context();
    for (sql, rows_max, is_bounded) in [
        // A row that moves to another partition, one that takes its place, one that it pushes out.
        (
            "SELECT id FROM (SELECT *, row_number() OVER (PARTITION BY k ORDER BY v, id) AS n FROM t) q WHERE n <= 2",
            3,
            false,
        ),
        ("SELECT id, v FROM s ORDER BY v, rowoffset LIMIT 5", 2, true),
        ("SELECT DISTINCT ON (k) k, v FROM s ORDER BY k, rowoffset DESC", 1, true),
    ] {
        let plan = plan_continuous(&context, &select(sql), &QueryOptions::default()).unwrap();
        let mut pipeline = Pipeline::plan(&plan).unwrap();
        let (sources, mut next) = (log.sources(&plan), vec![0; log.relations.len()]);
        let (mut told, mut state_max) = (0, 0);
        for at in 0..log.order.len() {
            let batches = log.batches(at..at + 1, &sources, &mut next, &pipeline);
            let output = pipeline.step(&StepInput { batches, idle: &[], now: Timestamp::from_micros(7) }).unwrap();
            let rows = output.batch.map_or(0, |batch| batch.num_rows());
            assert!(rows <= rows_max, "{sql}: {rows} rows for one event");
            told += rows;
            state_max = state_max.max(pipeline.state_bytes().value());
        }
        assert!(told > 10, "{sql}: {told}");
        assert!(!is_bounded || state_max < 4_000, "{sql}: {state_max} bytes");
    }
}

#[test]
fn rows_of_closed_windows_are_let_go() {
    let log = log(&mut Random::new(6), 1_500);
    let context = log.context();
    for (columns, above) in [
        ("count(*) AS c", "QUALIFY row_number() OVER (PARTITION BY windowstart ORDER BY count(*) DESC, k) = 1"),
        ("sum(count(*)) OVER (PARTITION BY windowstart) AS z", ""),
    ] {
        let window = "WINDOW TUMBLING (SIZE 30 SECONDS, GRACE PERIOD 0 SECONDS)";
        let sql = format!("SELECT k, windowstart, {columns} FROM s {window} GROUP BY k, windowstart {above}");
        let plan = plan_continuous(&context, &select(&sql), &QueryOptions::default()).unwrap();
        let mut pipeline = Pipeline::plan(&plan).unwrap();
        let (sources, mut next) = (log.sources(&plan), vec![0; log.relations.len()]);
        let mut state_max = [0, 0];
        for at in 0..log.order.len() {
            let batches = log.batches(at..at + 1, &sources, &mut next, &pipeline);
            pipeline.step(&StepInput { batches, idle: &[], now: Timestamp::from_micros(7) }).unwrap();
            let half = &mut state_max[2 * at / log.order.len()];
            *half = pipeline.state_bytes().value().max(*half);
            if at % 100 == 7 {
                let saved = pipeline.save().unwrap();
                pipeline = Pipeline::plan(&plan).unwrap();
                pipeline.restore(&saved.bytes).unwrap();
            }
        }
        assert!(state_max[1] < state_max[0] * 3 / 2, "{sql}: {state_max:?}");
    }
}
