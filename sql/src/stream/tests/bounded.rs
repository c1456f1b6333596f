//! Continuous equals bounded over one stream with columns of many types: each query runs once over the whole log and
//! continuously in random steps with restarts; the table, or the stream, must have the rows of the bounded run.

use super::log::{Log, LogEvent, YEAR_2024, difference, select};
use super::{Random, S, log};
use crate::plan::plan_continuous;
use crate::stream::Pipeline;
use arrow::datatypes::DataType;
use millstream_catalog::{QueryOptions, Relation, RelationKind, SqlType};
use std::sync::Arc;

pub(super) const QUERIES: &[&str] = &[
    "SELECT * FROM e",
    "SELECT k, v * 2 AS w, rowtime, rowoffset, rowpartition FROM e WHERE i % 3 = 1 OR b",
    "SELECT upper(k) AS u, coalesce(n, 0) + s AS sum, d / 3 AS third, x || '!' AS bang FROM e WHERE k IS NOT NULL",
    "SELECT CASE WHEN i > 3 THEN 'big' WHEN i IS NULL THEN NULL ELSE 'small' END AS size, t - rowtime AS lag FROM e",
    "SELECT k, count(*) AS c FROM e GROUP BY k",
    "SELECT k, count(*) AS c, sum(i) AS s, avg(i) AS a, min(i) AS l, max(i) AS m FROM e WINDOW TUMBLING (SIZE 1 MINUTE) GROUP BY k",
    "SELECT k, windowstart, windowend, sum(n) AS n, sum(s) AS s, sum(d) AS d, sum(v) AS v
       FROM e WINDOW TUMBLING (SIZE 30 SECONDS) GROUP BY k, windowstart, windowend",
    "SELECT avg(n) AS n, avg(s) AS s, avg(d) AS d, avg(v) AS v, x FROM e GROUP BY x",
    "SELECT min(k) AS a, max(k) AS c, min(d) AS d, max(t) AS t, min(rowtime) AS r, max(x) AS x, b FROM e GROUP BY b",
    "SELECT count(DISTINCT k) AS k, count(DISTINCT v) AS v, sum(DISTINCT i) AS i, avg(DISTINCT d) AS d FROM e",
    "SELECT b, sum(DISTINCT n) AS n, count(DISTINCT x) FILTER (WHERE i > 2) AS x FROM e GROUP BY b",
    "SELECT k, count(*) FILTER (WHERE b) AS t, sum(v) FILTER (WHERE NOT b) AS f FROM e GROUP BY k",
    "SELECT k, array_agg(i ORDER BY i, v) AS a, string_agg(x, ',' ORDER BY x DESC, v) AS s FROM e GROUP BY k",
    "SELECT k, array_agg(v) AS a FROM e GROUP BY k",
    "SELECT k, first_value(v ORDER BY t, v) AS f, last_value(x ORDER BY t DESC, v) AS l FROM e GROUP BY k",
    "SELECT k, stddev(v) AS a, var_pop(v) AS b, corr(v, n) AS c, regr_slope(v, n) AS d, covar_samp(v, n) AS e
       FROM e GROUP BY k",
    "SELECT k, median(v) AS m, percentile_cont(0.25) WITHIN GROUP (ORDER BY v) AS p FROM e GROUP BY k",
    "SELECT k, bool_and(b) AS a, bool_or(b) AS o, bit_and(i) AS i, bit_xor(i) AS x FROM e GROUP BY k",
    "SELECT k, sum(i) AS s FROM e GROUP BY k HAVING sum(i) % 2 = 0",
    "SELECT k, sum(i) AS s, count(*) AS c FROM e WINDOW TUMBLING (SIZE 20 SECONDS) WHERE i <> 5 GROUP BY k
       HAVING count(*) > 2 AND avg(i) < 4",
    "SELECT sum(i) * 100 / count(*) AS r, 'all' AS what FROM e HAVING count(*) > 10",
    "SELECT count(*) AS c, max(v) AS m FROM e",
    "SELECT lower(x) AS l, i % 2 AS odd, count(*) AS c FROM e GROUP BY lower(x), i % 2",
    "SELECT i % 2 + 1 AS up, count(*) AS c FROM e GROUP BY i % 2",
    "SELECT d, t, b, s, count(*) AS c FROM e GROUP BY d, t, b, s",
    "SELECT date_trunc('minute', rowtime) AS m, count(*) AS c FROM e GROUP BY date_trunc('minute', rowtime)",
    "SELECT k AS a, k AS b, count(*) AS c FROM e GROUP BY k",
    "SELECT max(rowoffset) AS o, k FROM e GROUP BY k",
    "SELECT k, windowstart, windowend, count(*) AS c, avg(i) AS a, sum(d) AS d, median(v) AS m, count(DISTINCT x) AS x,
       min(k) AS l, bool_or(b) AS b, string_agg(x, ',' ORDER BY x, v) AS s, first_value(v ORDER BY t, v) AS f
       FROM e WINDOW SESSION (2 SECONDS) GROUP BY k",
    "SELECT b, window_end, array_agg(v ORDER BY v) AS a, median(n) AS n, sum(DISTINCT i) FILTER (WHERE i > 2) AS i
       FROM SESSION(e, rowtime, INTERVAL '1 second') GROUP BY b, window_start, window_end",
    "SELECT k, windowend, count(*) FILTER (WHERE b) AS c, max(v) AS m, stddev(i) AS s FROM e
       WINDOW HOPPING (SIZE 1 MINUTE, ADVANCE BY 15 SECONDS) GROUP BY k",
    "SELECT window_start, window_end, t, count(*) AS c FROM HOP(e, t, INTERVAL '5 seconds', INTERVAL '12 seconds') GROUP BY 1, 2, 3",
    "SELECT window_start, window_end, count(*) AS c FROM TUMBLE(e, t, INTERVAL '5 seconds') GROUP BY 1, 2",
    "SELECT window_start, window_end, k, sum(i) AS i FROM SESSION(e, t, INTERVAL '2 seconds') GROUP BY 1, 2, 3",
    "SELECT u, w.window_start FROM TUMBLE((SELECT k AS u, t AT TIME ZONE 'UTC' AS at FROM e), at, INTERVAL '10 seconds') w",
    "SELECT k, latest_by_offset(v) AS l, earliest_by_offset(x) AS e, count_distinct(i) AS c FROM e GROUP BY k",
    "SELECT k, topk(i, 3) AS t, topkdistinct(i, 3) AS d FROM e GROUP BY k",
    "SELECT k, collect_list(i) AS a FROM e GROUP BY k",
    "SELECT k, histogram(i) AS h FROM e GROUP BY k",
    "SELECT b, array_length(collect_set(i), 1) AS n FROM e GROUP BY b",
    "SELECT t - date_bin('10 seconds', t, '1970-01-01') AS d, extract(second FROM date_bin('7 seconds', t, '1970-01-01')) AS x FROM e",
    "SELECT sum(i) AS s, count(DISTINCT i) AS d FROM e",
    "SELECT k, sum(i) AS s FROM e GROUP BY k HAVING count(DISTINCT i) <> 2",
    "SELECT k, first_value(x ORDER BY v, i, v) AS f FROM e GROUP BY k",
];

/// The stream `e`.
pub(super) fn relation() -> Relation {
    let columns = [
        ("k", SqlType::Text, false),
        ("v", SqlType::Double, false),
        ("n", SqlType::BigInt, false),
        ("i", SqlType::Integer, false),
        ("s", SqlType::SmallInt, false),
        ("d", SqlType::Numeric { precision: 10, scale: 2 }, false),
        ("b", SqlType::Boolean, false),
        ("t", SqlType::TimestampTz, false),
        ("x", SqlType::Varchar(5), false),
    ];
    log::relation(0, "e", RelationKind::Stream, &columns)
}

/// A log of `e`.
pub(super) fn log_of(random: &mut Random, rows: u64) -> Arc<Log> {
    let event = |row: u64| {
        let cells = [
            format!("k{}", random.below(4)),
            random.double().to_string(),
            random.below(1_000_000).to_string(),
            random.below(8).to_string(),
            random.below(100).to_string(),
            format!("{}.{}", random.below(900), random.below(90) + 10),
            ["t", "f"][random.below(2) as usize].to_owned(),
            format!("2024-01-01 00:00:{:02}Z", random.below(60)),
            format!("x{}", random.below(5)),
        ];
        let rowtime = (YEAR_2024 + (row / 30 * 60 + random.below(60)) as i64) * S;
        let cells = cells.into_iter().map(|cell| Some(cell).filter(|_| random.below(9) > 0)).collect();
        LogEvent { relation: 0, partition: 0, cells, rowtime, is_gone: false }
    };
    let events: Vec<LogEvent> = (0..rows).map(event).collect();
    Arc::new(Log::new(vec![relation()], &events))
}

#[tokio::test]
async fn every_query_gives_the_rows_of_the_bounded_run() {
    let mut random = Random::new(11);
    let log = log_of(&mut random, 400);
    let mut differing = Vec::new();
    for sql in QUERIES {
        differing.extend(difference(&log, sql, &mut random, |_| true).await);
    }
    assert!(differing.is_empty(), "{}", differing.join("\n"));
}

#[test]
fn the_key_of_a_table_is_found_through_the_planner() {
    let log = log_of(&mut Random::new(1), 1);
    let context = log.context();
    let sql = "SELECT count(*) AS c, k FROM e WINDOW TUMBLING (SIZE 1 MINUTE) GROUP BY k, i % 2";
    let pipeline = Pipeline::plan(&plan_continuous(&context, &select(sql), &QueryOptions::default()).unwrap()).unwrap();
    let shown = pipeline.output().columns.iter();
    let shown: Vec<String> =
        shown.map(|column| format!("{} {} {}", column.name, column.is_key, column.is_hidden)).collect();
    assert_eq!(
        shown,
        vec!["c false false", "k true false", "windowstart true false", "windowend true false", "key2 true true"]
    );
    assert!(matches!(log.stored[0].schema().field(0).data_type(), DataType::Utf8));
}
