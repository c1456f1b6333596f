//! The grammar, as tables: what is accepted and what it becomes, what is refused with which code and where.

use super::ast::*;
use super::parse;
use crate::error::SqlError;
use millstream_catalog::model::{RowCount, Span};

fn one(text: &str) -> Statement {
    match parse(text) {
        Ok(mut parsed) if parsed.len() == 1 => parsed.remove(0).statement,
        Ok(parsed) => panic!("{} statements in {text}", parsed.len()),
        Err(error) => panic!("{text}: {error:?}"),
    }
}

fn refused(text: &str) -> SqlError {
    match parse(text) {
        Ok(parsed) => panic!("accepted: {text}: {:?}", parsed.first().map(|p| &p.statement)),
        Err(error) => error,
    }
}

const ACCEPTED: &[&str] = &[
    "SELECT 1",
    "select a, b from t where a > 1 and b is not null order by a desc nulls last limit 10 offset 5",
    "TABLE t",
    "TABLE t ORDER BY a LIMIT 1",
    "VALUES (1, 'a'), (2, 'b')",
    "WITH a AS (SELECT 1 AS x), b AS (SELECT x FROM a) SELECT * FROM b",
    "WITH RECURSIVE r AS (SELECT 1 AS n UNION ALL SELECT n + 1 FROM r WHERE n < 5) SELECT * FROM r",
    "(SELECT 1) UNION (SELECT 2)",
    "SELECT 1 UNION ALL SELECT 2 EXCEPT SELECT 3 INTERSECT SELECT 4",
    "SELECT count(*) FILTER (WHERE x > 1), sum(x) OVER (PARTITION BY y ORDER BY z ROWS BETWEEN 1 PRECEDING AND CURRENT ROW) FROM t",
    "SELECT rank() OVER w FROM t WINDOW w AS (PARTITION BY a ORDER BY b)",
    "SELECT percentile_cont(0.5) WITHIN GROUP (ORDER BY x) FROM t",
    "SELECT x::int, CAST(x AS numeric(10,2)), x::text[], '2020-01-01'::date, INTERVAL '1 day', DATE '2020-01-01', TIMESTAMP '2020-01-01 00:00:00'",
    "SELECT ARRAY[1,2,3][1], a[1:2], ARRAY(SELECT 1), ROW(1, 2)",
    "SELECT CASE WHEN a THEN 1 WHEN b THEN 2 ELSE 3 END AS x, CASE a WHEN 1 THEN 2 END FROM t",
    "SELECT a FROM t WHERE a IN (1, 2) AND b LIKE 'x%' AND c ILIKE 'y' AND d BETWEEN 1 AND 2 AND e ~ 'x' AND f !~* 'y'",
    "SELECT a IS DISTINCT FROM b, EXTRACT(epoch FROM ts), substring(a FROM 1 FOR 2), trim(both ' ' from a), position('a' in b) FROM t",
    "SELECT * FROM a JOIN b USING (x) LEFT JOIN c ON a.x = c.x CROSS JOIN d NATURAL JOIN e",
    "SELECT * FROM a LEFT SEMI JOIN b ON a.x = b.x",
    "SELECT * FROM a, LATERAL (SELECT * FROM b WHERE b.x = a.x) s",
    "SELECT * FROM generate_series(1, 10) WITH ORDINALITY AS g(i, n)",
    "SELECT * FROM unnest(ARRAY[1,2]) AS u(x)",
    "SELECT a, count(*) FROM t GROUP BY GROUPING SETS ((a), ()) HAVING count(*) > 1",
    "SELECT DISTINCT ON (a) a, b FROM t ORDER BY a, b",
    "SELECT a FROM t FETCH FIRST 5 ROWS ONLY",
    "SELECT a FROM t WHERE EXISTS (SELECT 1 FROM u WHERE u.a = t.a) AND a = ANY(ARRAY[1])",
    "SELECT \"Weird \"\"Name\"\"\", \"select\" FROM \"../x\"",
    "SELECT U&'d\\0061t\\+000061', E'a\\nb\\'c\\x41\\u0041', $$dollar 'q'$$, $t$a$$b$t$, N'n'",
    "SELECT 'a'\n'b'",
    "SELECT 1 AS window, session, tumbling FROM t",
    "SELECT j -> 'b' ->> 'c', j #>> '{a,b}', j @> '{}' FROM t",
    "SELECT a AT TIME ZONE 'UTC', now(), current_timestamp, current_user, localtime FROM t",
    "SELECT f(a => 1)",
    "SELECT top, format, settings, sample, sort, start, view, open, output, global, minus, match, map, struct FROM top",
    "SELECT a top FROM sample start JOIN view emit ON start.a = emit.a WHERE minus = 1 AND format = 'x'",
    "SELECT key, value, day, name, type, size, window_start, changes, final, session, pivot FROM t",
    "SELECT interval, interval x, interval '1 day' + interval '2' hour FROM t",
    "SELECT a FROM t EMIT CHANGES",
    "SELECT a FROM t WHERE a > 1 EMIT CHANGES WITH (auto_offset_reset = 'earliest') LIMIT 10",
    "SELECT * FROM t emit changes limit 3",
    "SELECT emit changes FROM t",
    "SELECT a FROM emit changes",
    "SELECT origin, count(*) FROM flights WINDOW TUMBLING (SIZE 1 HOUR, GRACE PERIOD 10 SECONDS) WHERE x GROUP BY origin EMIT CHANGES",
    "SELECT origin, count(*) FROM flights WINDOW TUMBLING (SIZE 1 HOUR) GROUP BY origin",
    "SELECT origin, count(*) FROM flights WINDOW HOPPING (SIZE 1 HOUR, ADVANCE BY 5 MINUTES, GRACE PERIOD 1 DAY) GROUP BY origin",
    "SELECT origin, count(*) FROM flights f JOIN x ON f.a = x.a WINDOW SESSION (5 MINUTES, GRACE PERIOD 1 DAY) GROUP BY origin",
    "SELECT * FROM TUMBLE(flights, at, INTERVAL '1 minute', INTERVAL '5' SECOND) AS f, session((SELECT a FROM x), a, '1 s')",
    "SELECT * FROM hop(public.flights, at, INTERVAL '1 minute', INTERVAL '5 minutes') EMIT CHANGES WITH (grace = '1 minute')",
    "CREATE TABLE d WITH (grace = '1 minute') AS SELECT window_start, count(*) AS n FROM TUMBLE(f, at, INTERVAL '1 day') GROUP BY 1",
    "CREATE STREAM s (a int KEY NOT NULL, b text DEFAULT 'x', c double precision, d timestamptz, e ARRAY<INT>, f int[][], g DECIMAL(10, 2), h varchar(5), WATERMARK FOR d AS d - INTERVAL '5 seconds') WITH (partitions = 3, timestamp = 'd')",
    "CREATE STREAM s (d timestamp, WATERMARK FOR d AS d - INTERVAL '5' SECOND)",
    "CREATE TABLE IF NOT EXISTS t (a int PRIMARY KEY, b text NULL)",
    "CREATE TABLE public.t (a int, b text, PRIMARY KEY (a, b))",
    "CREATE TOPIC t (key bytea KEY, value bytea)",
    "CREATE STREAM s (a STRUCT<b int, c MAP<text, STRUCT<d int>>>, e int)",
    "CREATE STREAM s (a ARRAY<STRUCT<b int>> NOT NULL, c MAP<text, int>[])",
    "CREATE STREAM s (h HEADERS, i STRUCT<key text, value bytea>[])",
    "CREATE STREAM s (a STRUCT<b STRUCT<c STRUCT<d int>>>)",
    "CREATE TOPIC t",
    "CREATE TOPIC t WITH (partitions = 2)",
    "SELECT STRUCT(a := 1, b := MAP('k' := 1 + 2)), (s).f.g, m['k'], a[1:2], a[:2], struct, map FROM t",
    "SELECT a::STRUCT<b int, c text>, CAST(a AS MAP<text, int>)",
    "CREATE STREAM s AS SELECT a FROM t",
    "CREATE STREAM IF NOT EXISTS s WITH (partitions = 1, auto_offset_reset = 'latest') AS SELECT a FROM t WHERE b EMIT CHANGES",
    "CREATE TABLE d AS SELECT origin, count(*) AS n FROM f WINDOW TUMBLING (SIZE 5 MINUTES) GROUP BY origin EMIT CHANGES",
    "DROP STREAM a",
    "DROP TABLE IF EXISTS a, b CASCADE",
    "DROP TOPIC a RESTRICT",
    "INSERT INTO t VALUES (1, 'a', NULL, DEFAULT), (2, $1, now(), -3)",
    "INSERT INTO t (a, b) VALUES ($1, $2) RETURNING rowpartition, rowoffset",
    "INSERT INTO t DEFAULT VALUES",
    "INSERT INTO t SELECT * FROM u WHERE a > 1",
    "INSERT INTO t (a) WITH x AS (SELECT 1) SELECT * FROM x RETURNING *",
    "INSERT INTO t (SELECT 1)",
    "INSERT INTO t (a) VALUES (1), (2) UNION ALL VALUES (3)",
    "INSERT INTO t SELECT a FROM b JOIN c ON b.x = c.x",
    "COPY t FROM STDIN",
    "COPY t (a, b) FROM STDIN WITH (FORMAT csv, HEADER, DELIMITER ';', NULL 'NULL', QUOTE '''', ESCAPE '\\', ENCODING 'UTF8', FORCE_NOT_NULL (a), FORCE_NULL (b))",
    "COPY t FROM STDIN CSV HEADER",
    "COPY t FROM STDIN WITH CSV DELIMITER AS '|' NULL AS 'x' QUOTE '\"' FORCE NOT NULL a, b",
    "COPY t FROM STDIN (FORMAT json)",
    "COPY t TO STDOUT (FORMAT csv, HEADER true, FORCE_QUOTE *)",
    "COPY (SELECT * FROM t EMIT CHANGES) TO STDOUT WITH (FORMAT csv)",
    "COPY t FROM STDIN (FORMAT csv, HEADER match)",
    "COPY t TO STDOUT (FORMAT arrow)",
    "COPY BINARY t (a, b) TO STDOUT",
    "COPY (SELECT * FROM t) TO STDOUT WITH BINARY",
    "EXPLAIN SELECT 1",
    "EXPLAIN ANALYZE VERBOSE SELECT a FROM t EMIT CHANGES",
    "EXPLAIN (ANALYZE, COSTS OFF, FORMAT TEXT) SELECT 1",
    "EXPLAIN (SELECT 1)",
    "EXPLAIN QUERY q",
    "EXPLAIN CREATE TABLE t AS SELECT count(*) FROM s",
    "SHOW STREAMS",
    "SHOW tables",
    "SHOW ALL",
    "SHOW server_version",
    "SHOW TIME ZONE",
    "SHOW TRANSACTION ISOLATION LEVEL",
    "DESCRIBE t",
    "DESCRIBE EXTENDED millstream.topics",
    "DESCRIBE extended",
    "PAUSE QUERY q",
    "RESUME QUERY q",
    "TERMINATE QUERY \"Q\"",
    "FLUSH",
    "SET auto_offset_reset = 'earliest'",
    "SET 'auto.offset.reset' = 'earliest'",
    "SET search_path TO public, \"$user\"",
    "SET LOCAL statement_timeout = 5000",
    "SET SESSION x.y = on",
    "SET TIME ZONE 'Europe/Berlin'",
    "SET TIME ZONE INTERVAL '-03:00' HOUR TO MINUTE",
    "SET TIME ZONE LOCAL",
    "SET NAMES 'UTF8'",
    "SET client_min_messages TO DEFAULT",
    "SET SESSION CHARACTERISTICS AS TRANSACTION ISOLATION LEVEL READ COMMITTED, READ ONLY",
    "SET TRANSACTION READ WRITE",
    "SET extra_float_digits = -3",
    "RESET ALL",
    "RESET timezone",
    "DISCARD ALL",
    "BEGIN",
    "BEGIN WORK ISOLATION LEVEL READ COMMITTED READ WRITE",
    "START TRANSACTION READ ONLY",
    "COMMIT AND CHAIN",
    "END TRANSACTION",
    "ROLLBACK",
    "ABORT WORK",
    "SAVEPOINT s",
    "RELEASE SAVEPOINT s",
    "ROLLBACK TO SAVEPOINT s",
    "ROLLBACK WORK TO s",
    "DECLARE c CURSOR FOR SELECT 1",
    "DECLARE c NO SCROLL CURSOR WITH HOLD FOR SELECT a FROM t EMIT CHANGES",
    "DECLARE \"_psql_cursor\" NO SCROLL CURSOR FOR\nSELECT 1",
    "FETCH 10 FROM c",
    "FETCH FORWARD 10 FROM \"_psql_cursor\"",
    "FETCH c",
    "FETCH NEXT FROM c",
    "FETCH ALL IN c",
    "FETCH FORWARD ALL FROM c WITH (timeout = '1s')",
    "MOVE FORWARD ALL IN c",
    "CLOSE c",
    "CLOSE ALL",
    "PREPARE p (int, text) AS SELECT $1, $2",
    "EXECUTE p (1, 'a')",
    "EXECUTE p",
    "DEALLOCATE p",
    "DEALLOCATE PREPARE ALL",
];

/// Text, SQLSTATE, position (0: none).
const REFUSED: &[(&str, &str, usize)] = &[
    ("foo", "42601", 1),
    ("SELEC 1", "42601", 1),
    ("SELECT 1 FROM", "42601", 14),
    ("SELECT 1 FROM;", "42601", 14),
    ("SELECT 1;\nSELECT * FROM WHERE", "42601", 25),
    ("SELECT (1", "42601", 10),
    ("SELECT 1)", "42601", 9),
    ("SELECT 'abc", "42601", 8),
    ("SELECT \"abc", "42601", 8),
    ("SELECT \"\"", "42601", 8),
    ("SELECT /* x /* y */", "42601", 8),
    ("SELECT $$abc", "42601", 8),
    ("SELECT 12ab", "42601", 8),
    ("SELECT default", "42601", 8),
    ("SELECT \u{e9}\u{e9} FROM FROM", "42601", 16),
    ("SELECT 1 \0", "22021", 10),
    ("SELECT \"a\u{1}b\"", "42602", 8),
    ("CREATE STREAM \"a\nb\" (a int)", "42602", 15),
    ("SELECT {}", "42601", 8),
    ("SELECT from + 1", "42601", 13),
    ("SELECT E'\\u12'", "22025", 10),
    ("SELECT B'101'", "0A000", 8),
    ("SELECT * FROM '/etc/passwd'", "42501", 15),
    ("SELECT 1 AS 'x'", "42601", 13),
    ("SELECT a FROM t FOR UPDATE", "0A000", 17),
    ("SELECT a FROM t TABLESAMPLE SYSTEM (10)", "0A000", 17),
    ("SELECT a INTO b FROM t", "0A000", 10),
    ("SELECT a FROM t FETCH FIRST 5 ROWS WITH TIES", "0A000", 17),
    ("WITH x AS (DELETE FROM t RETURNING *) SELECT 1", "0A000", 12),
    ("SELECT a FROM t GROUP BY ALL", "0A000", 17),
    ("SELECT a FROM t EMIT CHANGES foo", "42601", 30),
    ("SELECT a FROM EMIT CHANGES LIMIT", "42601", 33),
    ("SELECT a FROM t EMIT CHANGES LIMIT -1", "22023", 36),
    ("SELECT a FROM (SELECT b FROM t EMIT CHANGES) x", "0A000", 32),
    ("SELECT a FROM t WINDOW HOPPING (SIZE 1 MINUTE) GROUP BY a", "42601", 46),
    ("SELECT a FROM t WINDOW HOPPING (SIZE 1 MINUTE, ADVANCE BY 0 SECONDS) GROUP BY a", "22023", 59),
    ("SELECT a FROM t WINDOW SESSION (0 SECONDS) GROUP BY a", "22023", 33),
    ("SELECT a FROM t WINDOW SESSION (SIZE 1 DAY) GROUP BY a", "42601", 33),
    ("SELECT a FROM t WINDOW TUMBLING (SIZE 0 SECONDS) GROUP BY a", "22023", 39),
    ("SELECT a FROM t WINDOW TUMBLING (SIZE 1 MONTH) GROUP BY a", "22023", 39),
    ("SELECT a FROM t WINDOW TUMBLING (SIZE 1 DAY, RETENTION 0 DAYS) GROUP BY a", "22023", 56),
    ("SELECT a FROM t WINDOW TUMBLING (SIZE 1 DAY) x GROUP BY a", "42601", 46),
    ("SELECT a WINDOW TUMBLING (SIZE 1 DAY) FROM t", "42601", 10),
    ("SELECT a FROM t WHERE x WINDOW TUMBLING (SIZE 1 DAY)", "42601", 25),
    ("SELECT a FROM t JOIN (SELECT 1) u WITHIN 10 SECONDS ON t.a = u.a", "0A000", 35),
    ("SELECT a FROM t JOIN u WITHIN (1 SECOND 2 SECONDS) ON t.a = u.a", "42601", 41),
    ("SELECT a FROM t JOIN u WITHIN -1 SECONDS ON t.a = u.a", "42601", 31),
    ("ALTER STREAM s DROP COLUMN c", "0A000", 16),
    ("ALTER STREAM s ALTER COLUMN c TYPE bigint", "0A000", 16),
    ("ALTER STREAM s ADD CONSTRAINT c CHECK (a > 0)", "0A000", 16),
    ("ALTER STREAM s RENAME TO t, ADD c int", "0A000", 29),
    ("ALTER STREAM s ADD COLUMN c", "42601", 28),
    ("ALTER STREAM s SET partitions = 2", "0A000", 16),
    ("ALTER INDEX i RENAME TO j", "0A000", 1),
    ("ALTER STREAM s", "42601", 15),
    ("TRUNCATE t RESTART IDENTITY", "0A000", 12),
    ("TRUNCATE TABLE t, u CASCADE", "0A000", 21),
    ("TRUNCATE", "42601", 9),
    ("UPDATE t SET a = 1 WHERE CURRENT OF c", "0A000", 20),
    ("UPDATE t SET a = 1, a = 2", "42601", 21),
    ("UPDATE t SET (a, b) = (1)", "42601", 23),
    ("UPDATE t SET (a, b) = (SELECT 1, 2)", "0A000", 23),
    ("UPDATE t SET a[1] = 2", "0A000", 15),
    ("UPDATE t SET a = 1 LIMIT 1", "42601", 20),
    ("UPDATE ONLY t SET a = 1", "0A000", 8),
    ("DELETE t", "42601", 8),
    ("DELETE FROM t WITH (speed = 1)", "0A000", 21),
    ("DELETE FROM t WHERE a FOR UPDATE", "42601", 23),
    ("MERGE INTO t USING u ON true WHEN MATCHED THEN DELETE", "0A000", 1),
    ("CREATE VIEW v AS SELECT a FROM s EMIT CHANGES", "0A000", 34),
    ("CREATE OR REPLACE VIEW IF NOT EXISTS v AS SELECT 1", "42601", 24),
    ("CREATE VIEW v WITH (partitions = 1) AS SELECT 1", "0A000", 15),
    ("CREATE MATERIALIZED VIEW v (a integer) AS SELECT 1", "42601", 31),
    ("CREATE OR REPLACE TABLE t (a integer)", "0A000", 8),
    ("CREATE ROLE r", "0A000", 8),
    ("CREATE USER u PASSWORD 'x'", "0A000", 8),
    ("CREATE SOURCE CONNECTOR c WITH ()", "0A000", 8),
    ("CREATE TEMP TABLE t (a int)", "0A000", 8),
    ("CREATE UNLOGGED TABLE t (a int)", "0A000", 8),
    ("CREATE EXTERNAL TABLE t (a int) STORED AS CSV LOCATION 'x'", "42501", 8),
    ("CREATE INDEX i ON t (a)", "0A000", 8),
    ("CREATE foo", "42601", 8),
    ("CREATE TABLE t (a int) APPEND ONLY", "0A000", 24),
    ("CREATE TABLE t (a int) PARTITION BY HASH (a)", "0A000", 24),
    ("CREATE TABLE t (a int UNIQUE)", "0A000", 23),
    ("CREATE TABLE t (a int CHECK (a > 1))", "0A000", 23),
    ("CREATE TABLE t (a int REFERENCES u)", "0A000", 23),
    ("CREATE TABLE t (a text COLLATE \"C\")", "0A000", 24),
    ("CREATE TABLE t (a int GENERATED ALWAYS AS IDENTITY)", "0A000", 23),
    ("CREATE TABLE t (a int, UNIQUE (a))", "0A000", 24),
    ("CREATE TABLE t (a int, CONSTRAINT x PRIMARY KEY (a))", "0A000", 24),
    ("CREATE TABLE t (a int NULL NOT NULL)", "42601", 23),
    ("CREATE TABLE t (a int, PRIMARY KEY (a), PRIMARY KEY (a))", "42P16", 41),
    ("CREATE TABLE t (LIKE u)", "0A000", 17),
    ("CREATE TABLE t ()", "42601", 17),
    ("CREATE TABLE t (a int,)", "42601", 23),
    ("CREATE TABLE t (a int", "42601", 22),
    ("CREATE TABLE t (a)", "42601", 18),
    ("CREATE TABLE t (a, b) AS SELECT 1, 2", "0A000", 16),
    ("CREATE TABLE t AS SELECT 1 WITH NO DATA", "0A000", 28),
    ("CREATE STREAM pg_catalog.s (a int)", "42501", 15),
    ("CREATE STREAM other.s (a int)", "3F000", 15),
    ("CREATE STREAM a.b.c (a int)", "0A000", 15),
    ("CREATE STREAM s (a int) WITH (partitions = 1, partitions = 2)", "42601", 47),
    ("CREATE STREAM s AS SELECT a FROM t EMIT CHANGES LIMIT 5", "0A000", 49),
    ("CREATE STREAM s AS SELECT a FROM t EMIT CHANGES WITH (x = 1)", "0A000", 55),
    ("CREATE STREAM s AS SELECT a FROM t EMIT CHANGES WITH (group = 'g')", "0A000", 55),
    ("CREATE MATERIALIZED VIEW s AS SELECT a FROM t EMIT CHANGES WITH (grace = '1 s', mode = 'queue')", "0A000", 81),
    ("INSERT INTO s SELECT a FROM t EMIT CHANGES WITH (group = 'g')", "0A000", 50),
    ("INSERT INTO s WITH (group = 'g') SELECT a FROM t EMIT CHANGES", "0A000", 21),
    ("CREATE STREAM s (d timestamp, WATERMARK FOR d AS d - INTERVAL '1 month')", "22023", 63),
    ("ALTER VIEW v RENAME TO w", "0A000", 1),
    ("REFRESH MATERIALIZED VIEW v WITH NO DATA", "0A000", 29),
    ("CREATE CONSUMER GROUP g", "0A000", 8),
    ("DROP TABLE t x", "42601", 14),
    ("INSERT OR REPLACE INTO t VALUES (1)", "0A000", 8),
    ("INSERT INTO t VALUES (1), (1, 2)", "42601", 28),
    ("INSERT INTO t (a, a) VALUES (1, 2)", "42701", 19),
    ("INSERT INTO t VALUES (1) ON CONFLICT DO UPDATE SET a = 1", "42601", 26),
    ("INSERT INTO t VALUES (1) ON CONFLICT (lower(a)) DO NOTHING", "0A000", 44),
    ("INSERT INTO t VALUES (1) ON CONFLICT (a) WHERE a > 1 DO NOTHING", "0A000", 42),
    ("INSERT INTO t VALUES (1) ON CONFLICT (a) DO UPDATE SET a = 1 WITH (sequence = 1)", "0A000", 26),
    ("INSERT INTO t VALUES (1) WITH (sequence = -1)", "22023", 43),
    ("INSERT INTO t VALUES (1) WITH (speed = 1)", "0A000", 32),
    ("INSERT INTO t WITH (query = 'q') SELECT a FROM u", "0A000", 34),
    ("INSERT INTO t AS x SELECT a FROM u EMIT CHANGES", "0A000", 20),
    ("INSERT INTO t VALUES (1,)", "42601", 25),
    ("INSERT INTO t", "42601", 14),
    ("COPY t FROM '/etc/passwd'", "42501", 13),
    ("COPY t FROM PROGRAM 'ls'", "42501", 13),
    ("COPY t TO '/tmp/x'", "42501", 11),
    ("COPY t FROM STDIN (FORMAT binary, NULL 'x')", "42601", 35),
    ("COPY t FROM STDIN (FORMAT arrow, HEADER)", "0A000", 34),
    ("COPY BINARY t FROM STDIN DELIMITER '|'", "42601", 26),
    ("COPY t TO STDOUT (FORMAT binary, DELIMITER '|')", "42601", 34),
    ("COPY t TO STDOUT BINARY NULL 'x'", "42601", 25),
    ("COPY t TO STDOUT (FORMAT arrow, HEADER)", "0A000", 33),
    ("COPY t TO STDOUT (FORMAT binary, FORCE_QUOTE *)", "0A000", 34),
    ("COPY t FROM STDIN (FORMAT xml)", "22023", 27),
    ("COPY t FROM STDIN (FORMAT csv, FORMAT csv)", "42601", 32),
    ("COPY t FROM STDIN (FORMAT csv, DELIMITER 'ab')", "0A000", 32),
    ("COPY t FROM STDIN (FORMAT csv, QUOTE ',')", "22023", 32),
    ("COPY t FROM STDIN (QUOTE '\"')", "0A000", 20),
    ("COPY t FROM STDIN (DELIMITER 'a')", "22023", 20),
    ("COPY t FROM STDIN (FORMAT csv, FORCE_QUOTE *)", "0A000", 32),
    ("COPY t FROM STDIN (foo 1)", "42601", 20),
    ("COPY t FROM STDIN (FORMAT csv, DELIMITER '\"')", "22023", 32),
    ("COPY t FROM STDIN (FORMAT csv, NULL 'a\"')", "0A000", 32),
    ("COPY t FROM STDIN (NULL 'a|', DELIMITER '|')", "0A000", 20),
    ("COPY t FROM STDIN (DELIMITER)", "42601", 20),
    ("COPY t FROM STDIN (HEADER 2)", "42601", 27),
    ("COPY t TO STDOUT (HEADER match)", "0A000", 19),
    ("COPY t FROM STDIN (ENCODING 'latin1')", "0A000", 29),
    ("COPY t FROM STDIN (ENCODING 'nosuch')", "22023", 29),
    ("COPY t FROM STDIN (FORMAT csv, FORCE_NULL b)", "22023", 43),
    ("COPY t TO STDOUT WHERE a > 1", "42601", 18),
    ("COPY t FROM STDIN WHERE a > 1", "0A000", 19),
    ("EXPLAIN (FORMAT JSON) SELECT 1", "0A000", 17),
    ("EXPLAIN (FOO) SELECT 1", "42601", 10),
    ("EXPLAIN SHOW ALL", "42601", 9),
    ("BEGIN ISOLATION LEVEL SERIALIZABLE", "0A000", 23),
    ("BEGIN foo", "42601", 7),
    ("SET ROLE x", "0A000", 5),
    ("SET foo", "42601", 8),
    ("DECLARE c SCROLL CURSOR FOR SELECT 1", "0A000", 11),
    ("DECLARE c BINARY CURSOR FOR SELECT 1", "0A000", 11),
    ("FETCH BACKWARD 1 FROM c", "55000", 7),
    ("FETCH PRIOR FROM c", "55000", 7),
    ("FETCH -1 FROM c", "55000", 7),
    ("FETCH ABSOLUTE 1 FROM c", "0A000", 7),
    ("FETCH 0 FROM c", "0A000", 7),
    ("FETCH 1 FROM c WITH (foo = '1s')", "22023", 22),
    ("PREPARE p AS BEGIN", "42601", 14),
    ("PREPARE TRANSACTION 'x'", "0A000", 1),
    ("PRINT t FROM BEGINNING", "0A000", 1),
    ("NOTIFY x", "0A000", 1),
    ("GRANT SELECT ON t TO u", "0A000", 1),
    ("LOAD 'x'", "42501", 1),
];

#[test]
fn every_statement_of_the_contract_is_accepted() {
    let failed: Vec<String> =
        ACCEPTED.iter().filter_map(|text| parse(text).err().map(|error| format!("{text}\n  {error:?}"))).collect();
    assert!(failed.is_empty(), "{}", failed.join("\n"));
}

#[test]
fn every_refusal_has_its_code_and_place() {
    let mut failed = Vec::new();
    for (text, code, position) in REFUSED {
        match parse(text) {
            Ok(parsed) => failed.push(format!("accepted: {text}\n  {:?}", parsed.first().map(|p| &p.statement))),
            Err(error) => {
                if error.sqlstate.code() != *code || error.position.unwrap_or(0) != *position {
                    failed.push(format!("{text}\n  wanted {code} at {position}: {error:?}"));
                }
                if *code == "0A000" && error.hint.is_none() && !text.starts_with("COPY") {
                    failed.push(format!("{text}\n  no hint"));
                }
            }
        }
    }
    assert!(failed.is_empty(), "{}", failed.join("\n"));
}

#[test]
fn statements_have_their_own_text_and_start() {
    let parsed = parse(" /* é */ SELECT 'a;b' ; ;\n-- x\nFLUSH;").unwrap();
    let texts: Vec<_> = parsed.iter().map(|p| (&*p.text, p.start)).collect();
    assert_eq!(texts, [("SELECT 'a;b'", 9), ("FLUSH", 31)]);
    assert!(parse("").unwrap().is_empty());
    assert!(parse(" ; -- nothing").unwrap().is_empty());
}

#[test]
fn messages_are_those_of_postgresql() {
    for (text, message) in [
        ("SELECT 1 frm t x", "syntax error at or near \"t\""),
        ("select (", "syntax error at end of input"),
        ("select 1 +;", "syntax error at or near \";\""),
        ("SELECT 'abc", "unterminated quoted string at or near \"'abc\""),
        ("SELECT \"\"", "zero-length delimited identifier at or near \"\"\"\""),
        ("CREATE TABLE t (a int) WITH (x = 1, X = 2)", "parameter \"x\" specified more than once"),
        ("SELECT 1 Foo Bar", "syntax error at or near \"Bar\""),
    ] {
        assert_eq!(refused(text).message, message, "{text}");
    }
}

#[test]
fn names_fold_and_quoted_names_do_not() {
    let Statement::CreateRelation(create) = one("CREATE Stream FooBar (\"Ab\" INT, Cd Text)") else { panic!() };
    assert_eq!(create.name.as_str(), "foobar");
    let names: Vec<_> = create.columns.iter().map(|column| column.name.as_str()).collect();
    assert_eq!(names, ["Ab", "cd"]);
    let Statement::Select(select) = one("SELECT FooBar FROM Public.T") else { panic!() };
    assert_eq!(select.query.to_string(), "SELECT foobar FROM public.t");
}

#[test]
fn strings_lose_their_quotes_and_escapes() {
    let text = r"SELECT U&'d\0061t\+000061', E'a\nb\'c\x41\u0041\101', $$it's$$, 'a''b', 'a'
                  'b'";
    let Statement::Select(select) = one(text) else { panic!() };
    assert_eq!(select.sql, "SELECT 'data', 'a\nb''cAAA', 'it''s', 'a''b', 'ab'");
}

#[test]
fn window_and_emit_stand_beside_the_query() {
    let text = "SELECT a, count(*) FROM t WINDOW TUMBLING (SIZE 90 SECONDS, GRACE PERIOD 0 SECONDS) WHERE b GROUP BY a \
                EMIT CHANGES WITH ('auto.offset.reset' = 'earliest') LIMIT 7";
    let Statement::Select(select) = one(text) else { panic!() };
    let window = select.window.clone().unwrap();
    assert_eq!(window.kind, WindowKind::Tumbling { size: Span::from_secs(90) });
    assert_eq!(window.grace, Some(Span::ZERO));
    assert_eq!(window.position.get(), 27);
    assert_eq!(select.emit.as_ref().unwrap().position.get(), text.find("EMIT").unwrap() + 1);
    assert_eq!(select.limit, Some(RowCount::new(7)));
    assert_eq!(select.options.find("auto_offset_reset").unwrap().value, OptionValue::Text("earliest".into()));
    assert_eq!(select.query.to_string(), "SELECT a, count(*) FROM t WHERE b GROUP BY a");
}

#[test]
fn canonical_text_parses_to_the_same() {
    for text in ACCEPTED {
        match one(text) {
            Statement::Select(select) => {
                let Statement::Select(again) = one(&select.sql) else { panic!("{text}") };
                assert_eq!(again, select, "{text}");
            }
            Statement::CreateRelation(create) => {
                let Statement::CreateRelation(again) = one(&create.sql) else { panic!("{text}") };
                assert_eq!(again, create, "{text}");
            }
            Statement::CreateAs(create) => {
                let Statement::CreateAs(again) = one(&create.sql) else { panic!("{text}") };
                assert_eq!(again, create, "{text}");
                assert_eq!(one(&create.select.sql), Statement::Select(Box::new(create.select.clone())), "{text}");
            }
            _ => {}
        }
    }
}

#[test]
fn canonical_text_has_no_comments_and_single_spaces() {
    let text = "create /* c */ stream  S1 AS\n  select 1-/* x */-1 , \"A b\", e'\\'' -- end\n from T";
    let Statement::CreateAs(create) = one(text) else { panic!() };
    assert_eq!(create.sql, "create stream S1 AS select 1- -1 , \"A b\", '''' from T");
}

#[test]
fn fetch_has_every_direction() {
    let fetch = |text: &str| match one(text) {
        Statement::Fetch(fetch) | Statement::Move(fetch) => fetch,
        other => panic!("{other:?}"),
    };
    let rows = |n| FetchCount::Rows(RowCount::new(n));
    for (text, count) in [
        ("FETCH c", rows(1)),
        ("FETCH NEXT c", rows(1)),
        ("FETCH FORWARD c", rows(1)),
        ("FETCH FORWARD 5 IN c", rows(5)),
        ("FETCH 5 c", rows(5)),
        ("FETCH RELATIVE 1 FROM c", rows(1)),
        ("FETCH ALL c", FetchCount::All),
        ("MOVE FORWARD ALL FROM c", FetchCount::All),
    ] {
        assert_eq!(fetch(text).count, count, "{text}");
        assert_eq!(fetch(text).cursor.as_str(), "c", "{text}");
    }
    assert_eq!(fetch("FETCH 2 FROM c WITH (timeout = '1.5s')").timeout, Some(Span::from_micros(1_500_000)));
}

#[test]
fn settings_take_ksqldb_names() {
    let Statement::Set(set) = one("SET 'auto.offset.reset' = 'earliest'") else { panic!() };
    assert_eq!((set.name.as_str(), set.value), ("auto_offset_reset", SetValue::Values(vec!["earliest".into()])));
    let Statement::Set(set) = one("SET TIME ZONE INTERVAL '-03:30' HOUR TO MINUTE") else { panic!() };
    assert_eq!(set.value, SetValue::Values(vec!["-03:30".into()]));
    let Statement::Set(set) = one("SET LOCAL search_path TO a, 'B'") else { panic!() };
    assert_eq!((set.scope, set.value), (SetScope::Local, SetValue::Values(vec!["a".into(), "B".into()])));
}

/// Texts that grow with `n`, each deep or long in its own way.
fn deep(n: usize) -> Vec<(&'static str, String)> {
    let wrap = |before: &str, core: &str, after: &str| format!("{}{core}{}", before.repeat(n), after.repeat(n));
    let select = |text: String| format!("SELECT {text}");
    vec![
        ("parentheses", select(wrap("(", "1", ")"))),
        ("unclosed parentheses", select("(".repeat(n))),
        ("closing parentheses", select(")".repeat(n))),
        ("sum", select(format!("1{}", "+1".repeat(n)))),
        ("or", select(format!("a=1{}", " or a=1".repeat(n)))),
        ("and", select(format!("a{}", " and a".repeat(n)))),
        ("concat", select(format!("'a'{}", "||'a'".repeat(n)))),
        ("not", select(format!("{}true", "not ".repeat(n)))),
        ("minus", select(format!("{}1", "- ".repeat(n)))),
        ("tilde", select(format!("{}1", "~ ".repeat(n)))),
        ("case", select(wrap("case when a then 1 else ", "1", " end"))),
        ("case unclosed", select("case when ".repeat(n))),
        ("array", select(wrap("ARRAY[", "1", "]"))),
        ("bracket", select(wrap("[", "1", "]"))),
        ("function", select(wrap("f(", "1", ")"))),
        ("ceil", select(wrap("ceil(", "1", ")"))),
        ("ceil broken", select(format!("{} from from", "ceil(".repeat(n)))),
        ("position", select(wrap("position('a' in ", "'b'", ")"))),
        ("position call", select(wrap("position(", "'b'", ")"))),
        ("trim", select(wrap("trim(", "'b'", ")"))),
        ("substring", select(wrap("substring(", "'b'", " from 1)"))),
        ("extract", select(wrap("extract(year from ", "a", ")"))),
        ("exists", select(wrap("exists(select 1 where ", "true", ")"))),
        ("in", select(wrap("1 in (", "1", ")"))),
        ("in double", select(wrap("1 in ((", "1", "))"))),
        ("any", select(wrap("1 = any(", "a", ")"))),
        ("cast", select(format!("1{}", "::int".repeat(n)))),
        ("cast call", select(wrap("cast(", "1", " as int)"))),
        ("subscript", select(format!("a{}", "[1]".repeat(n)))),
        ("is null", select(format!("a{}", " is null".repeat(n)))),
        ("distinct from", select(format!("a{}", " is distinct from a".repeat(n)))),
        ("between", select(format!("a{}", " between 1 and 2".repeat(n)))),
        ("names of clauses", select(format!("on{}", " + on".repeat(n)))),
        ("collate", select(format!("a{}", " collate x".repeat(n)))),
        ("time zone", select(format!("a{}", " at time zone 'UTC'".repeat(n)))),
        ("sub-query", wrap("select * from (", "select 1", ") x")),
        ("sub-query broken", format!("{} from", "select * from ((".repeat(n))),
        ("sub-query doubled", wrap("select * from ((", "select 1", ") x) y")),
        ("scalar sub-query", wrap("select (", "select 1", ")")),
        ("from parentheses", format!("select * from {}", wrap("(", "a", ")"))),
        ("from joins", format!("select * from {}", wrap("(a join ", "b", " on true)"))),
        ("joins", format!("select * from a{}", " join a on true".repeat(n))),
        ("relations", format!("select * from a{}", ", a".repeat(n))),
        ("union", format!("select 1{}", " union select 1".repeat(n))),
        ("union nested", wrap("(select 1 union ", "select 1", ")")),
        ("query parentheses", wrap("(", "select 1", ")")),
        ("union of parentheses", wrap("((select 1) union ", "select 1", ")")),
        ("with", format!("with {} select 1", wrap("a as (with ", "a as (select 1)", " select 1)"))),
        ("arrays of arrays", format!("create stream s (a {})", wrap("array<", "int", ">"))),
        ("type brackets", format!("create stream s (a int{})", "[]".repeat(n))),
        ("cast type", select(format!("null::{}", wrap("array<", "int", ">")))),
        ("explain", format!("{}select 1", "explain ".repeat(n))),
        ("comments", format!("select 1 {}", wrap("/*", "", "*/"))),
        ("interval", select(format!("{}'1'", "interval ".repeat(n)))),
        ("interval call", select(wrap("interval (", "1", ")"))),
        ("row", select(wrap("row(", "1", ")"))),
        ("lateral", format!("select * from a{}", ", lateral (select 1) x".repeat(n))),
        ("values", format!("values {}1{}", "(".repeat(n), ")".repeat(n))),
        ("insert", format!("insert into t values ({})", wrap("(", "1", ")"))),
        ("mixed", select(wrap("(1+1+1+case when not a then f(", "1", ") end)"))),
        ("words", "select ".repeat(n)),
        ("filter", select(wrap("count(*) filter (where ", "a", ")"))),
        ("over", select(wrap("sum(", "a", ") over (partition by a)"))),
    ]
}

/// Every text is parsed or refused, within the stack of a test's thread; neither dropping nor comparing it
/// overflows; and none takes long, although sqlparser backtracks.
#[test]
fn deep_and_long_texts_are_bounded() {
    let mut most = (0, "");
    for n in [1, 5, 20, 60, 190, 990, 10_000, 100_000] {
        for (what, text) in deep(n) {
            if n == 100_000 && !matches!(what, "sum" | "or" | "not" | "parentheses" | "case" | "array") {
                continue;
            }
            let result = parse(&text);
            if n >= 10_000 && !matches!(what, "comments" | "words") {
                assert!(result.is_err(), "{what} {n} was accepted");
            }
            if let Ok(parsed) = result {
                assert_eq!(parsed, parsed.clone());
                most = most.max((n, what));
            }
        }
    }
    assert!(most.0 > 60, "{most:?}");
}

#[test]
fn what_people_write_is_within_the_bounds() {
    for text in [
        format!("SELECT {}", vec!["a = 1"; 450].join(" OR ")),
        format!("SELECT a FROM t WHERE a IN ({})", vec!["1"; 50_000].join(", ")),
        format!("SELECT CASE {} END", "WHEN a = 1 AND b = 2 THEN c + 1 ".repeat(2_000)),
        format!("SELECT {}", vec!["a + b * c"; 1_600].join(", ")),
        format!("INSERT INTO t VALUES {}", vec!["(1, 'a', -2.5, NULL)"; 20_000].join(", ")),
    ] {
        parse(&text).unwrap();
    }
}

#[test]
fn limits_are_refused_with_words() {
    use millstream_catalog::model::limit;
    let error = refused(&format!("SELECT '{}'", "x".repeat(limit::STATEMENT_BYTES_MAX)));
    assert_eq!(error.sqlstate.code(), "54000");
    let error = refused(&format!("SELECT a IN ({}1)", "1,".repeat(limit::LIST_ITEMS_MAX)));
    assert_eq!(error.sqlstate.code(), "54000");
    let error = refused(&";".repeat(limit::STATEMENT_TOKENS_MAX + 1));
    assert_eq!(error.sqlstate.code(), "54000");
    let error = refused(&format!("SELECT {}1{}", "(".repeat(10_000), ")".repeat(10_000)));
    assert_eq!(error.sqlstate.code(), "54001");
    assert!(error.hint.is_some() && error.position == Some(8 + limit::NESTING_MAX), "{error:?}");
}
