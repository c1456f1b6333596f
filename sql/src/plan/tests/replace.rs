//! Which pipeline can go on with the state of which.

use super::{parse, source};
use crate::plan::plan_continuous;
use crate::stream::Pipeline;
use millstream_catalog::QueryOptions;

fn pipeline(sql: &str) -> Pipeline {
    let select = parse(sql).unwrap();
    Pipeline::plan(&plan_continuous(&source::context(), &select, &QueryOptions::default()).unwrap()).unwrap()
}

#[test]
fn another_filter_or_projection_around_the_same_state_fits() {
    let counts = "SELECT origin, count(*) AS n FROM flights GROUP BY origin";
    let joined = "SELECT f.id, a.name FROM flights f JOIN airports a ON f.origin = a.iata";
    for (old, new) in [
        ("SELECT id FROM flights", "SELECT id + 1 AS id FROM flights WHERE delay > 3"),
        (counts, "SELECT origin, count(*) AS n FROM flights WHERE small > 1 GROUP BY origin"),
        (
            counts,
            "SELECT q.o AS origin, count(*) AS n FROM (SELECT delay, origin AS o FROM flights) q WHERE delay > 1 GROUP BY q.o",
        ),
        (counts, "SELECT origin, count(*) * 2 AS n FROM flights GROUP BY origin"),
        (
            joined,
            "SELECT f.id, upper(a.name) AS name FROM flights f JOIN airports a ON f.origin = a.iata WHERE f.delay > 1",
        ),
        (
            "SELECT a.iata, b.name FROM airports a LEFT JOIN airports b ON a.name = b.iata WHERE b.name IS NULL",
            "SELECT a.iata, upper(b.name) AS name FROM airports a LEFT JOIN airports b ON a.name = b.iata WHERE b.name IS NULL",
        ),
        ("SELECT iata, name FROM airports", "SELECT iata, upper(name) AS name FROM airports"),
        ("SELECT iata FROM airports WHERE name > 'a'", "SELECT iata FROM airports WHERE name > 'b'"),
    ] {
        let (mut old, mut taking) = (pipeline(old), pipeline(new));
        taking.check_follows(&old).unwrap_or_else(|reason| panic!("{new}: {reason}"));
        taking.take_over(&old.save().unwrap().bytes).unwrap_or_else(|error| panic!("{new}: {error}"));
        assert_ne!(old.fingerprint(), taking.fingerprint(), "{new}");
    }
}

#[test]
fn other_state_is_refused_by_what_differs() {
    let counts = "SELECT origin, count(*) AS n FROM flights GROUP BY origin";
    for (old, new, reason) in [
        (counts, "SELECT dest, count(*) AS n FROM flights GROUP BY dest", "in the grouping of operator 1 (aggregate)"),
        (counts, "SELECT origin, sum(delay) AS n FROM flights GROUP BY origin", "in the aggregates of operator 1"),
        (counts, "SELECT id FROM flights", "are aggregate, and would be nothing"),
        (
            "SELECT origin, window_start, count(*) AS n FROM TUMBLE(flights, at, INTERVAL '1 minute') GROUP BY 1, 2",
            "SELECT origin, window_start, count(*) AS n FROM TUMBLE(flights, at, INTERVAL '1 hour') GROUP BY 1, 2",
            "in the grouping of operator 1 (aggregate)",
        ),
        (
            counts,
            "SELECT origin, count(*) AS n FROM (SELECT upper(origin) AS origin FROM flights) q GROUP BY origin",
            "in the grouping of operator 1 (aggregate)",
        ),
        (
            "SELECT name, count(*) AS n FROM airports WHERE iata > 'b' GROUP BY name",
            "SELECT name, count(*) AS n FROM airports WHERE iata > 'c' GROUP BY name",
            "in the input of operator 2 (aggregate)",
        ),
        (
            "SELECT f.id, a.name FROM flights f JOIN airports a ON f.origin = a.iata",
            "SELECT f.id, a.name FROM flights f JOIN airports a ON f.dest = a.iata",
            "in the ",
        ),
        (
            "SELECT n, count(*) AS c FROM (SELECT origin, count(*) AS n FROM flights GROUP BY origin) q WHERE n > 1 GROUP BY n",
            "SELECT n, count(*) AS c FROM (SELECT origin, count(*) AS n FROM flights GROUP BY origin) q WHERE n > 2 GROUP BY n",
            "in the input of operator 2 (aggregate)",
        ),
        (
            "SELECT a.iata, b.name FROM airports a LEFT JOIN airports b ON a.name = b.iata WHERE b.name IS NULL",
            "SELECT a.iata, b.name FROM airports a LEFT JOIN airports b ON a.name = b.iata WHERE b.name IS NULL OR a.iata > 'x'",
            "the condition on rows that come and go",
        ),
    ] {
        let (old, new) = (pipeline(old), pipeline(new));
        let found = new.check_follows(&old).unwrap_err();
        assert!(found.contains(reason), "{found}");
    }
}

#[test]
fn state_of_every_operator_is_taken_over_by_its_like() {
    for sql in [
        "SELECT id FROM flights",
        "SELECT origin, count(*) AS n, max(delay) AS m FROM flights GROUP BY origin HAVING count(*) > 1",
        "SELECT name, count(*) AS n, string_agg(iata, ',') AS l FROM airports GROUP BY name",
        "SELECT DISTINCT origin, dest FROM flights",
        "SELECT origin FROM flights UNION SELECT iata FROM airports",
        "SELECT origin FROM flights EXCEPT SELECT iata FROM airports",
        "SELECT id FROM flights WHERE origin NOT IN (SELECT iata FROM airports)",
        "SELECT id FROM flights WHERE EXISTS (SELECT 1 FROM airports WHERE iata = dest AND name > origin)",
        "SELECT a.id, b.id AS other FROM flights a LEFT JOIN flights b WITHIN 1 HOUR ON a.origin = b.dest",
        "SELECT a.name, b.name AS other FROM airports a FULL JOIN airports b ON a.iata = b.name",
        "SELECT f.id, a.name FROM flights f LEFT JOIN airports a ON f.origin = a.iata",
        "SELECT id, origin FROM (SELECT *, row_number() OVER (PARTITION BY origin ORDER BY delay DESC) AS r FROM flights) q WHERE r <= 3",
        "SELECT id, sum(delay) OVER (PARTITION BY origin ORDER BY id) AS total FROM flights",
        "SELECT id FROM flights ORDER BY delay LIMIT 5",
        "SELECT origin, windowstart, count(*) AS n FROM flights WINDOW SESSION (1 MINUTE) GROUP BY origin",
        "SELECT origin, windowstart, count(*) AS n FROM flights WINDOW HOPPING (SIZE 1 MINUTE, ADVANCE BY 10 SECONDS) GROUP BY origin",
        "SELECT origin, windowstart, count(*) AS n FROM flights WINDOW TUMBLING (SIZE 1 MINUTE) GROUP BY origin EMIT FINAL",
        "SELECT origin, dest, count(*) AS n FROM flights GROUP BY ROLLUP (origin, dest)",
        "SELECT id, tag FROM flights, unnest(tags) AS tag",
        "SELECT n, count(*) AS c FROM (SELECT origin, count(*) AS n FROM flights GROUP BY origin) q GROUP BY n",
    ] {
        let (mut old, mut taking) = (pipeline(sql), pipeline(sql));
        taking.check_follows(&old).unwrap_or_else(|reason| panic!("{sql}: {reason}"));
        taking.take_over(&old.save().unwrap().bytes).unwrap_or_else(|error| panic!("{sql}: {error}"));
        assert_eq!(taking.save().unwrap(), old.save().unwrap(), "{sql}");
    }
}
