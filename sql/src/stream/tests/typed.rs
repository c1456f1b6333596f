//! Continuous equals bounded for keys of every type: each operator over each column, with values that are awkward: NULL,
//! NaN, -0, empty texts, times before 1970, intervals of one length, numbers in documents that differ in zeros, the greatest
//! and least numbers. Few values of each, so that rows meet, move between groups and go.

use super::log::{Log, LogEvent, difference, relation};
use super::{Random, S};
use millstream_catalog::{RelationKind, SqlType};
use std::collections::BTreeSet;
use std::sync::Arc;

/// Columns that are keys in turn.
const KEYS: [&str; 9] = ["g", "f", "d", "b", "y", "j", "w", "l", "h"];

/// Over stream `p` and tables `m` and `o`; `$` stands for the key.
const OF_EACH: &[&str] = &[
    "SELECT $, count(*) AS c, max(id) AS x FROM p GROUP BY $",
    "SELECT $, count(*) AS c, sum(n) AS z, min(y) AS low FROM m GROUP BY $ HAVING count(*) > 1",
    "SELECT DISTINCT $ FROM m",
    "SELECT $ FROM p UNION SELECT $ FROM m",
    "SELECT $ FROM p EXCEPT SELECT $ FROM m",
    "SELECT $ FROM m INTERSECT SELECT $ FROM o",
    "SELECT p.id, q.id AS other FROM p JOIN p AS q WITHIN 5 SECONDS GRACE PERIOD 2 MINUTES ON p.$ = q.$",
    "SELECT p.id, q.x FROM p JOIN (SELECT $ AS k, max(id) AS x FROM m GROUP BY $) q ON p.$ = q.k",
    "SELECT a.id, b.id AS other FROM m a LEFT JOIN m b ON a.$ = b.$ AND a.id < b.id",
    "SELECT m.id, o.id AS other FROM m FULL JOIN o ON m.$ = o.$",
    "SELECT m.id, o.id AS other FROM m JOIN o ON m.$ IS NOT DISTINCT FROM o.$",
    "SELECT id FROM m WHERE NOT EXISTS (SELECT 1 FROM p WHERE p.$ = m.$ AND p.id > m.id)",
    "SELECT id FROM m WHERE $ IN (SELECT $ FROM o)",
    "SELECT id FROM m WHERE $ NOT IN (SELECT $ FROM o WHERE id < 3 AND $ IS NOT NULL)",
    "SELECT id, row_number() OVER (PARTITION BY $ ORDER BY id) AS r, count(*) OVER (PARTITION BY $) AS c FROM m",
    "SELECT id, rank() OVER (ORDER BY $) AS r, dense_rank() OVER (ORDER BY $ DESC NULLS LAST) AS s FROM m",
    "SELECT DISTINCT ON ($) id FROM m ORDER BY $, id DESC",
    "SELECT id FROM m ORDER BY $, id LIMIT 4",
    "SELECT $, windowstart, count(*) AS c FROM p WINDOW TUMBLING (SIZE 10 SECONDS) GROUP BY $",
    "SELECT count(DISTINCT $) AS d, count($) AS c, count(*) FILTER (WHERE $ IS NULL) AS n FROM m",
    "SELECT $, id, count(*) AS c FROM m GROUP BY ROLLUP ($, id)",
    "SELECT c, count(*) AS n FROM (SELECT $, count(*) AS c FROM m GROUP BY $) q GROUP BY c",
];

/// The awkward ones.
const OTHERS: &[&str] = &[
    "SELECT sum(n) AS s, avg(n) AS a, max(n) AS m, min(n) AS l FROM m",
    "SELECT sum(d) AS s, avg(d) AS a, max(d) AS m, min(d) AS l FROM m",
    "SELECT max(f) AS m, count(DISTINCT f) AS d FROM m WHERE f <> 0",
    "SELECT id FROM m WHERE f = 0",
    "SELECT id, f > 1 AS big, f = 'NaN' AS nan FROM m",
    "SELECT g, count(*) AS c FROM m WHERE id > 100 GROUP BY g",
    "SELECT count(*) AS c, sum(n) AS s FROM m WHERE id > 100",
    "SELECT g, y, sum(n) AS s FROM m GROUP BY GROUPING SETS ((g), (y), (g, y), ())",
    "SELECT g, y, count(*) AS c FROM p GROUP BY CUBE (g, y)",
    "SELECT windowstart, windowend, count(*) AS c FROM p WINDOW TUMBLING (SIZE 7 SECONDS) GROUP BY windowstart, windowend",
    "SELECT windowstart, windowend, count(*) AS c, max(y) AS y FROM p WINDOW HOPPING (SIZE 9 SECONDS, ADVANCE BY 4 SECONDS) GROUP BY g",
    "SELECT g, windowstart, windowend, count(*) AS c FROM p WINDOW SESSION (1 SECOND) GROUP BY g",
    "SELECT window_start, count(*) AS c FROM TUMBLE(p, h, INTERVAL '1 day') GROUP BY window_start",
    "SELECT date_bin('6 seconds', rowtime, '1970-01-01') AS w, count(*) AS c FROM p GROUP BY 1",
    "SELECT date_trunc('month', rowtime) AS w, count(*) AS c FROM p GROUP BY 1",
    "SELECT y, h, min(h) AS a, max(h) AS z FROM m GROUP BY y, h",
    "SELECT m.g, m.id, o.y FROM m JOIN o USING (g, id)",
    "SELECT a.id FROM m a WHERE a.n = (SELECT max(n) FROM m)",
    "SELECT a.id, (SELECT count(*) FROM o WHERE o.g = a.g) AS c FROM m a",
    "SELECT id, lag(g) OVER (ORDER BY id) AS p, lead(y, 1) OVER (PARTITION BY g ORDER BY id) AS n FROM m",
    "SELECT id, sum(n) OVER (PARTITION BY y ORDER BY id ROWS BETWEEN 1 PRECEDING AND 1 FOLLOWING) AS s FROM m",
    "SELECT string_agg(g, '|' ORDER BY g) AS s, array_agg(y ORDER BY y DESC, id) AS a FROM m",
    "SELECT g, id FROM (SELECT g, id, row_number() OVER (PARTITION BY g ORDER BY n DESC NULLS LAST, id) AS r FROM m) q WHERE r <= 2",
    "SELECT id, unnest(ARRAY[g, 'x', NULL]) AS e FROM m",
    "SELECT e, count(*) AS c FROM (SELECT unnest(ARRAY[y, y + 1]) AS e FROM m) q GROUP BY e",
    "SELECT p.id, s FROM p, generate_series(1, p.id % 3) AS s",
    "SELECT g, bool_and(id > 3) AS a, bool_or(f IS NULL) AS o, bit_xor(id) AS x FROM m GROUP BY g",
    "SELECT g, percentile_disc(0.5) WITHIN GROUP (ORDER BY id) AS p, mode() WITHIN GROUP (ORDER BY y) AS m FROM m GROUP BY g",
    "SELECT j -> 'a' AS a, j ->> 'a' AS t, count(*) AS c FROM m GROUP BY 1, 2",
    "SELECT l, l + l AS two, count(*) AS c FROM p GROUP BY l",
    "SELECT m.id, x.id AS xid, o.id AS oid FROM m LEFT JOIN o AS x ON m.g = x.g LEFT JOIN o ON o.y = x.y",
    "SELECT g, count(*) AS c FROM (SELECT g FROM m UNION ALL SELECT g FROM o UNION ALL SELECT g FROM p) q GROUP BY g",
    "WITH a AS (SELECT g, count(*) AS c FROM m GROUP BY g), b AS (SELECT g, count(*) AS c FROM o GROUP BY g)
       SELECT g, a.c AS x, b.c AS y FROM a FULL JOIN b USING (g)",
];

fn columns() -> Vec<(&'static str, SqlType, bool)> {
    vec![
        ("id", SqlType::Integer, false),
        ("g", SqlType::Text, false),
        ("f", SqlType::Double, false),
        ("d", SqlType::Numeric { precision: 38, scale: 2 }, false),
        ("b", SqlType::Bytea, false),
        ("y", SqlType::Date, false),
        ("j", SqlType::Jsonb, false),
        ("w", SqlType::Uuid, false),
        ("l", SqlType::Interval, false),
        ("h", SqlType::TimestampTz, false),
        ("n", SqlType::BigInt, false),
    ]
}

/// Values of each column but the first.
const VALUES: [&[&str]; 10] = [
    &["", "a", "A", "é"],
    &["0", "-0", "NaN", "1.5", "-Infinity", "4.9e-324"],
    &["0.00", "99999999999999999999.99", "-99999999999999999999.99", "1.50"],
    &["\\x", "\\x00", "\\x0000", "\\xff"],
    &["1969-12-31", "1970-01-01", "0001-01-01", "2024-02-29"],
    &["1", "1.0", "null", "{\"a\": 1}", "{\"a\": 1.00}", "[]"],
    &["00000000-0000-0000-0000-000000000000", "ffffffff-ffff-ffff-ffff-ffffffffffff"],
    &["0", "1 mon", "30 days", "-00:00:01", "2 days"],
    &["1969-12-31 23:59:59.999999Z", "1970-01-01 00:00:00Z", "1900-01-01 00:00:00Z", "2024-02-29 12:00:00Z"],
    &["9223372036854775807", "-9223372036854775808", "0", "1"],
];

fn log(random: &mut Random, count: u64) -> Arc<Log> {
    let mut keyed = columns();
    keyed[0].2 = true;
    let table = |at: u64, name: &str| relation(at, name, RelationKind::Table, &keyed);
    let relations = vec![relation(0, "p", RelationKind::Stream, &columns()), table(1, "m"), table(2, "o")];
    let event = |number: u64| {
        let relation = random.below(3) as usize;
        let mut cells = vec![Some(random.below(9).to_string())];
        for values in VALUES {
            let value = values[random.below(values.len() as u64) as usize].to_owned();
            cells.push(Some(value).filter(|_| random.below(6) > 0));
        }
        // From before 1970 on.
        let rowtime = (number as i64 / 4 - 20 + random.below(10) as i64) * S - random.below(2) as i64;
        LogEvent { relation, partition: 0, cells, rowtime, is_gone: relation > 0 && random.below(4) == 0 }
    };
    let events: Vec<LogEvent> = (0..count).map(event).collect();
    Arc::new(Log::new(relations, &events))
}

async fn compare(queries: &[String], seed: u64) {
    let mut random = Random::new(seed);
    let log = log(&mut random, 150);
    let mut differing = Vec::new();
    for sql in queries {
        let found = difference(&log, sql, &mut random, |_| true).await;
        differing.extend(found.map(|found| format!("seed {seed}: {found}")));
    }
    assert!(differing.is_empty(), "{}", differing.join("\n"));
}

#[tokio::test]
async fn keys_of_every_type_give_the_rows_of_the_bounded_run() {
    let of_each = KEYS.iter().flat_map(|key| OF_EACH.iter().map(|sql| sql.replace('$', key)));
    let queries: Vec<String> = of_each.collect();
    for seed in [1, 2] {
        compare(&queries, seed).await;
    }
}

#[tokio::test]
async fn awkward_values_give_the_rows_of_the_bounded_run() {
    let queries: Vec<String> = OTHERS.iter().map(|sql| (*sql).to_owned()).collect();
    for seed in 1..=3 {
        compare(&queries, seed).await;
    }
}

#[test]
fn the_corpus_has_three_hundred_queries() {
    let mut all: BTreeSet<String> =
        KEYS.iter().flat_map(|key| OF_EACH.iter().map(|sql| sql.replace('$', key))).collect();
    let rest = [OTHERS, super::several::QUERIES, super::several::TIMED, super::bounded::QUERIES];
    all.extend(rest.into_iter().flatten().map(|sql| (*sql).to_owned()));
    assert!(all.len() >= 300, "{}", all.len());
}
